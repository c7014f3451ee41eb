//! The guest interface, exercised by one guest that is booted as Dom0 with nothing
//! beside it, and judged by the TAP that it prints.

mod common;

use bulkhead::{artifacts, builtin, qemu::Ended, solo};
use common::xen;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

/// What a TAP stream says.
#[derive(Debug, Default)]
struct Tap {
    planned: Option<usize>,
    ok: usize,
    not_ok: Vec<String>,
}

fn read_tap(text: &str) -> Tap {
    let mut tap = Tap::default();
    for line in text.lines().map(str::trim) {
        if line.starts_with("not ok ") {
            tap.not_ok.push(line.to_owned());
        } else if line.starts_with("ok ") {
            tap.ok += 1;
        } else if let Some(count) = line.strip_prefix("1..") {
            tap.planned = count.parse().ok();
        }
    }
    tap
}

/// Boots a builtin alone; it has to end well, with every case it planned, and none failed.
/// Gives how many that were.
fn cases_of(guest: &str) -> usize {
    let limit = Duration::from_secs(300);
    let request = solo::Request { dom0: Path::new(guest), cmdline: "", memory_mib: 64, limit };
    let booted = solo::boot(&request, &|_| ()).expect("boots");
    let tap = read_tap(&booted.log);
    assert_eq!(booted.ended, Some(Ended::Properly), "{}", booted.log);
    assert_eq!(tap.not_ok, [""; 0], "{}", booted.log);
    assert_eq!(tap.planned, Some(tap.ok), "{}", booted.log);
    tap.ok
}

#[test]
fn each_hypercall_does_what_the_interface_says() {
    let cases = cases_of("conformance");
    assert!(cases >= 50, "{cases} cases");
}

#[test]
fn the_runtime_of_the_domains_does_what_it_promises() {
    assert_eq!(cases_of("rt-check"), 23);
}

#[test]
fn the_control_interface_gives_takes_and_refuses_as_it_says() {
    let cases = cases_of("control-check");
    assert!(cases >= 280, "{cases} cases");
}

/// By the name of a case: what it found.
fn answers(log: &str) -> BTreeMap<&str, &str> {
    log.lines()
        .filter_map(|line| {
            let line = line.trim().strip_prefix("not ").unwrap_or(line.trim());
            line.strip_prefix("ok ")?.split_once(" - ")?.1.rsplit_once(" -> ")
        })
        .collect()
}

#[test]
fn the_same_guest_gets_the_same_answers_from_xen() {
    let kernel = match xen::kernel() {
        Ok(kernel) => kernel,
        // Where there is no Debian at hand there is nothing to compare with; CI has one.
        Err(why) if std::env::var_os("CI").is_none() => return eprintln!("skipped: {why}"),
        Err(why) => panic!("{why}"),
    };
    let guest = builtin::find("conformance").expect("a builtin");
    let built = artifacts::build(&[guest], false).expect("builds");
    let guest = built.file(guest).expect("built");
    let limit = Duration::from_secs(180);
    let theirs = xen::boot(&kernel, guest, "# failed", limit).expect("QEMU starts");
    let request = solo::Request { dom0: guest, cmdline: "", memory_mib: 64, limit };
    let ours = solo::boot(&request, &|_| ()).expect("boots").log;
    let (theirs, ours) = (answers(&theirs), answers(&ours));
    assert!(theirs.len() > 600, "{} answers from Xen", theirs.len());
    assert!(theirs.keys().eq(ours.keys()), "the same cases");
    let differing: BTreeSet<_> =
        ours.iter().filter(|(case, answer)| theirs[*case] != **answer).collect();
    let listed = include_str!("../src/bin/conformance/differences.txt");
    let listed = listed.lines().filter_map(|line| line.split_once(" # ")?.0.rsplit_once(" -> "));
    let listed: BTreeMap<_, _> = listed.collect();
    assert_eq!(
        differing,
        listed.iter().collect(),
        "what differs is what is listed, with its reason"
    );
}
