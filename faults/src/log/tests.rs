use super::*;
use crate::Campaign;
use crate::error::Source;
use crate::fake::{FakeMachine, Quiet, made_up};
use crate::image::Image;
use crate::runner::Runner;
use crate::testing::elf_of;

fn run(seed: u64, code: &[u8], shard: &str) -> File {
    let text = format!(
        "setup = \"a\"\ndriver = \"disk\"\nseed = {seed}\nfaults = 20\n\
         [models]\ninterface = 1\nelided-instruction = 1"
    );
    let source = Source { name: "inject.toml".into(), text };
    let campaign = Campaign::parse(source, Path::new(".")).unwrap();
    let plan = Plan::new(&campaign, Image::parse(&elf_of(code)).unwrap()).unwrap();
    let machine = FakeMachine::new(made_up(campaign.seed));
    let mut out = Vec::new();
    let mut runner = Runner::new(&campaign, &plan, shard.parse().unwrap(), machine).unwrap();
    runner.run(None, &mut out, &mut Quiet).unwrap();
    File { name: format!("{shard}.jsonl"), text: String::from_utf8(out).unwrap() }
}

fn refusal(files: &[File]) -> String {
    Log::merge(files).expect_err("it should be refused").to_string()
}

#[test]
fn shards_make_the_whole() {
    let whole = Log::merge(&[run(1, &[0xc3], "0/1")]).unwrap();
    let shards: Vec<_> = (0..3).map(|k| run(1, &[0xc3], &format!("{k}/3"))).collect();
    let merged = Log::merge(&shards).unwrap();
    let faults = |log: &Log| log.records.values().map(|r| r.fault.clone()).collect::<Vec<_>>();
    assert_eq!(faults(&merged), faults(&whole));
    assert!(merged.missing(Shard::WHOLE).is_empty());
    assert!(merged.notes.is_empty());
}

#[test]
fn a_missing_shard_is_seen() {
    let some = Log::merge(&[run(1, &[0xc3], "0/3"), run(1, &[0xc3], "2/3")]).unwrap();
    let missing = some.missing(Shard::WHOLE);
    assert_eq!(missing, [(1, 1), (4, 4), (7, 7), (10, 10), (13, 13), (16, 16)]);
    assert!(some.missing("2/3".parse().unwrap()).is_empty());
}

#[test]
fn a_fault_that_came_twice_counts_once_and_as_it_went_worse() {
    let file = run(1, &[0xc3], "0/1");
    let same = Log::merge(&[file.clone(), file.clone()]).unwrap();
    assert_eq!((same.records.len(), same.notes.len()), (20, 0));
    let worse = File {
        name: "worse".into(),
        text: file.text.replace("\"outcome\":\"recovered-invisible\"", "\"outcome\":\"escape\""),
    };
    for files in [[file.clone(), worse.clone()], [worse, file]] {
        let log = Log::merge(&files).unwrap();
        assert!(!log.records.values().any(|r| r.outcome.name() == "recovered-invisible"));
        assert!(log.notes[0].contains("more than once"), "{:?}", log.notes);
    }
}

#[test]
fn logs_of_different_campaigns_are_not_mixed() {
    let one = run(1, &[0xc3], "0/1");
    let said = refusal(&[one.clone(), run(2, &[0xc3], "0/1")]);
    assert!(said.contains("seeds are 1 and 2"), "{said}");
    let said = refusal(&[one.clone(), run(1, &[0x90, 0xc3], "0/1")]);
    assert!(said.contains("different builds"), "{said}");
    let changed = one.text.replace("\"after_us\":", "\"after_us\":1");
    let said = refusal(&[one, File { name: "changed".into(), text: changed }]);
    assert!(said.contains("another one"), "{said}");
}

#[test]
fn a_last_line_that_was_cut_off_is_left_out_and_any_other_is_refused() {
    let file = run(1, &[0xc3], "0/1");
    let cut = File { name: "cut".into(), text: file.text[..file.text.len() - 9].into() };
    let log = Log::merge(std::slice::from_ref(&cut)).unwrap();
    assert!(log.notes[0].contains("cut off"), "{:?}", log.notes);
    let inside = File { name: "cut".into(), text: cut.text.clone() + "\n" + &file.text };
    assert!(refusal(&[inside]).starts_with("cut line "));
    assert!(refusal(&[]).contains("no fault"));
}
