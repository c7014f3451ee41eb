use super::*;
use crate::error::Source;
use crate::testing::{TEXT, elf_with};
use proptest::prelude::*;

/// A loop around a call, with a pointer, a comparison and an argument.
const CODE: &[u8] = &[
    0x48, 0x8b, 0x43, 0x08, // mov rax, [rbx + 8]
    0x48, 0x89, 0xc7, // mov rdi, rax
    0xe8, 0, 0, 0, 0, // call
    0x48, 0x83, 0xf8, 10, // cmp rax, 10
    0x72, 0xee, // jb start
    0xc3,
];

fn image() -> Image {
    Image::parse(&elf_with(&[("blkback::step", CODE), ("core::step", CODE)])).unwrap()
}

fn campaign(more: &str) -> Campaign {
    let text =
        format!("setup = \"a\"\ndriver = \"disk\"\nseed = 5\nfaults = 9\nfront = \"g\"\n{more}");
    Campaign::parse(Source { name: "inject.toml".into(), text }, Path::new(".")).unwrap()
}

fn plan(more: &str) -> Plan {
    Plan::new(&campaign(more), image()).unwrap()
}

#[test]
fn every_model_comes_and_every_fault_fits_the_image() {
    let plan = plan("");
    let mut seen = BTreeSet::new();
    for number in 0..1000 {
        let fault = plan.fault(number);
        fault.check(&image()).unwrap();
        assert!(fault.after_us < Us::from_ms(50));
        seen.insert(fault.model);
    }
    assert_eq!(seen.len(), Model::ALL.len());
}

#[test]
fn a_fault_depends_on_seed_and_number_alone() {
    let (one, other) = (plan(""), plan("[limits]\nfaults = 3\n[deadlines]\nwindow = \"9s\""));
    let forward: Vec<_> = (0..50).map(|number| one.fault(number)).collect();
    let backward: Vec<_> = (0..50).rev().map(|number| other.fault(number)).collect();
    assert!(forward.iter().eq(backward.iter().rev()));
}

#[test]
fn places_are_chosen_by_the_weight_of_their_area_not_by_size() {
    let plan = plan("[models]\nelided-instruction = 1\n[places]\nback-end = 3\nlibrary = 1");
    let in_library = (0..1000)
        .filter(|number| plan.fault(*number).va().unwrap() >= Va::new(TEXT + CODE.len() as u64));
    // 250 expected; six standard deviations are 82.
    let count = in_library.count();
    assert!(count.abs_diff(250) < 82, "{count}");
}

#[test]
fn functions_can_be_chosen_and_left_out() {
    let only = plan("[models]\nbinary = 1\ndata-bit-flip = 0\n[places]\nonly = [\"blkback\"]");
    let except =
        plan("[models]\nbinary = 1\ndata-bit-flip = 0\n[places]\nexcept = [\"core::step\"]");
    for number in 0..100 {
        assert!(only.fault(number).va().unwrap() < Va::new(TEXT + CODE.len() as u64));
        assert!(except.fault(number).va().unwrap() < Va::new(TEXT + CODE.len() as u64));
    }
    let error = Plan::new(&campaign("[places]\nonly = [\"nobody\"]"), image()).unwrap_err();
    assert!(error.to_string().contains("no place for `source-register`"), "{error}");
}

#[test]
fn only_what_was_executed_is_changed_if_that_is_known() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{:#x}\n\n{:x}\n", TEXT, TEXT + 4)).unwrap();
    let path = file.path().display();
    let more = format!("[models]\ntext-bit-flip = 1\n[places]\nexecuted = \"{path}\"");
    let with = plan(&more);
    for number in 0..50 {
        assert!(with.fault(number).va().unwrap() <= Va::new(TEXT + 4));
    }
    std::fs::write(file.path(), format!("{TEXT:x}\n")).unwrap();
    assert_ne!(with.identity(), plan(&more).identity(), "another list is another campaign");
    std::fs::write(file.path(), "here\n").unwrap();
    let error = Plan::new(&campaign(&more), image()).unwrap_err();
    assert!(error.to_string().contains("line 1: `here`"), "{error}");
}

#[test]
fn static_data_faults_stay_out_of_the_stack() {
    let plan = plan("[models]\ndata-bit-flip = 1");
    let mut kinds = [0; 3];
    for number in 0..300 {
        let fault = plan.fault(number);
        fault.check(&image()).unwrap();
        let Action::FlipMemory { target, .. } = fault.action else { panic!("{fault:?}") };
        kinds[match target {
            Target::Static { .. } => 0,
            Target::Heap { .. } => 1,
            Target::Stack { .. } => 2,
        }] += 1;
    }
    assert!(kinds.iter().all(|count| *count > 60), "{kinds:?}");
}

#[test]
fn a_shard_is_written_as_two_numbers() {
    assert_eq!("2/3".parse::<Shard>().unwrap(), Shard::new(2, 3).unwrap());
    for wrong in ["3/3", "0/0", "1", "a/b", "-1/2", "1/2/3"] {
        let error = wrong.parse::<Shard>().unwrap_err();
        assert!(error.remedy().unwrap().contains("K/N"), "{wrong}");
    }
}

proptest! {
    #[test]
    fn shards_share_a_campaign_without_gap_or_overlap(of in 1u64..20, end in 0u64..200) {
        let shards = (0..of).map(|index| Shard::new(index, of).unwrap());
        let mut all: Vec<_> = shards.clone().flat_map(|shard| shard.numbers(end)).collect();
        all.sort_unstable();
        prop_assert!(all.into_iter().eq(0..end));
        prop_assert_eq!(shards.map(|shard| shard.part(end)).sum::<u64>(), end);
    }
}

/// If this fails, seeds mean other faults than they did: then `PLAN_VERSION` has to be
/// raised, so that logs of before are not mixed with logs of after.
#[test]
fn a_seed_means_the_same_faults_as_it_always_did() {
    let plan = plan("");
    let faults: Vec<_> = (0..500).map(|number| plan.fault(number)).collect();
    let all = serde_json::to_vec(&faults).unwrap();
    assert_eq!(Hash::of(&all).short(), "cf22afcdac84");
}
