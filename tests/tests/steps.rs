//! The disk driver domain dies behind the instructions of a request's path, one after the
//! other, and is restarted each time: no acknowledged write is lost, none is executed for the
//! wrong range. The guest judges what it reads all the time; at the end the whole image is
//! judged here, also where the guest never wrote.

mod common;

use bulkhead::watch::Outcome;
use bulkhead_abi::ledger::step::{FLUSH, Place, READ, WRITE};
use common::{Background, Ran};
use guest_frontends::{
    pattern::pattern_sector,
    verify::{
        Counts,
        audit::{self, audit},
        summary::fields,
    },
};
use std::{convert::Infallible, fs, path::Path, time::Duration};

const BLOCK: usize = 4096;
/// Blocks of the image, and those at its start that the guest uses.
const BLOCKS: usize = 512;
const USED: usize = 64;
/// Of the pattern that the image holds before.
const SEED: u64 = 99;

/// A kind of request.
const fn kind(operation: u8, is_indirect: bool, segments: u8) -> Place {
    Place { after: 1, phase: 0, every: 0, operation, is_indirect, segments }
}

/// Requests of one page, and flushes.
const SMALL: &[Place] = &[kind(WRITE, false, 1), kind(READ, false, 1), kind(FLUSH, false, 0)];
const SMALL_LOAD: &str = "mix=40:40:20 size=1";
/// The most pages of a plain request, and indirect ones.
const LARGE: &[Place] = &[kind(WRITE, false, 11), kind(WRITE, true, 12), kind(READ, true, 12)];
const LARGE_LOAD: &str = "mix=60:40:0 size=12 least=11";

/// What came of one kind of request.
#[derive(Debug)]
struct Sweep {
    /// Instructions of the path.
    path: u64,
    deaths: u64,
    /// Deaths of lives that had not taken the way of the one before.
    elsewhere: u64,
}

impl Sweep {
    fn parse(line: &str) -> Self {
        let number = |name| {
            let (_, value) = fields(line).find(|(key, _)| *key == name).expect("in the line");
            value.parse().expect("a number")
        };
        Self { path: number("path"), deaths: number("deaths"), elsewhere: number("elsewhere") }
    }
}

/// Dies behind every `every`th instruction of requests of these kinds, one kind after the other.
fn sweep(kinds: &[Place], load: &str, every: u16, limit: Duration) -> Vec<Sweep> {
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("scratch.raw");
    let sectors = 0..(BLOCKS * BLOCK / 512) as u64;
    let before: Vec<u8> = sectors.flat_map(|sector| pattern_sector(SEED, sector)).collect();
    fs::write(&image, &before).expect("the image is written");

    let run = Background::start_for(folder.path(), &setup(kinds, load, every), limit);
    let done = run.wait_for_text("disk", |shown| {
        let done = shown.lines().filter(|line| line.starts_with("step-kill: done "));
        let sweeps: Vec<_> = done.map(Sweep::parse).collect();
        (sweeps.len() == kinds.len()).then_some(sweeps)
    });
    run.type_at("verify", "end\n");
    let ran = run.finish();
    assert_unnoticed(&ran);
    assert_image(&ran, &image, &before);
    let deaths: u64 = done.iter().map(|sweep| sweep.deaths).sum();
    let crashes = ran.report.restarts.iter().filter(|r| r.cause == "crash").count();
    assert_eq!(crashes as u64, deaths, "{}", ran.story());
    done
}

fn setup(kinds: &[Place], load: &str, every: u16) -> String {
    let arguments = kinds.iter().map(|&place| Place { every, ..place }.argument().to_string());
    let arguments = arguments.collect::<Vec<_>>().join(",");
    format!(
        r#"
[machine]
memory = "256M"
[driver.disk]
kernel = "disk-faults"
cmdline = "loglevel=error fault=step-kill fault-argument={arguments}"
memory = "16M"
restart-limit = 1000
restart-window = "1s"
[disk.scratch]
image = "scratch.raw"
[guest.verify]
kernel = "disk-verify"
disks = ["scratch"]
cmdline = "depth=1 blocks={USED} {load} status=60000"
"#
    )
}

/// The guest found nothing wrong, and heard of nothing.
fn assert_unnoticed(ran: &Ran) {
    assert_eq!(ran.report.outcome, Outcome::Ok, "{}", ran.story());
    let done = ran.console("verify").lines().find(|line| line.starts_with("disk-verify: done "));
    let counts = Counts::parse(done.unwrap_or_else(|| panic!("{}", ran.story())));
    assert!(counts.is_all_well(), "{}", ran.story());
}

/// What the guest was told is written is there, and nothing else was touched.
fn assert_image(ran: &Ran, image: &Path, before: &[u8]) {
    let after = fs::read(image).expect("the image");
    assert_eq!(after.len(), before.len());
    let found = audit(BLOCKS as u64, |block, into| {
        into.copy_from_slice(&after[block as usize * BLOCK..][..BLOCK]);
        Ok::<_, Infallible>(())
    })
    .expect("a table");
    assert_eq!((found.blocks, found.unknown, &*found.wrong), (USED as u64, 0, &[][..]));
    let digest = format!("digest={:016x}", found.digest);
    assert!(ran.console("verify").contains(&digest), "{}", ran.story());
    let table = audit::table_start(BLOCKS as u64) as usize;
    for block in (USED..table).chain(table + 1..BLOCKS) {
        let at = block * BLOCK..(block + 1) * BLOCK;
        assert!(after[at.clone()] == before[at], "block {block}, which nobody wrote, has changed");
    }
}

/// Each kind died as often as its path has room for, and mostly where it was meant to.
fn assert_swept(sweeps: &[Sweep], every: u64) {
    println!("every {every}: {sweeps:?}");
    for sweep in sweeps {
        assert!(sweep.deaths >= sweep.path / every, "{sweep:?}");
        assert!(sweep.path > 5000 && sweep.elsewhere * 2 <= sweep.deaths, "{sweep:?}");
    }
}

#[test]
fn a_request_survives_a_death_in_every_stretch_of_its_path() {
    const EVERY: u16 = 199;
    let limit = Duration::from_secs(240);
    for (kinds, load) in [(SMALL, SMALL_LOAD), (LARGE, LARGE_LOAD)] {
        assert_swept(&sweep(kinds, load, EVERY, limit), EVERY.into());
    }
}

/// All boundaries between two instructions, of one kind of request.
fn at_every_instruction(kind: Place, load: &str) {
    let sweeps = sweep(&[kind], load, 1, Duration::from_secs(4 * 3600));
    assert_swept(&sweeps, 1);
}

#[test]
#[ignore = "long"]
fn a_write_survives_a_death_behind_every_instruction_of_its_path() {
    at_every_instruction(SMALL[0], SMALL_LOAD);
}

#[test]
#[ignore = "long"]
fn a_read_survives_a_death_behind_every_instruction_of_its_path() {
    at_every_instruction(SMALL[1], SMALL_LOAD);
}

#[test]
#[ignore = "long"]
fn a_flush_survives_a_death_behind_every_instruction_of_its_path() {
    at_every_instruction(SMALL[2], SMALL_LOAD);
}

#[test]
#[ignore = "long"]
fn a_long_write_survives_a_death_behind_every_instruction_of_its_path() {
    at_every_instruction(LARGE[0], LARGE_LOAD);
}

#[test]
#[ignore = "long"]
fn an_indirect_write_survives_a_death_behind_every_instruction_of_its_path() {
    at_every_instruction(LARGE[1], LARGE_LOAD);
}

#[test]
#[ignore = "long"]
fn an_indirect_read_survives_a_death_behind_every_instruction_of_its_path() {
    at_every_instruction(LARGE[2], LARGE_LOAD);
}
