//! Driver domains that do wrong on order, and what a load that verifies itself makes of it.

mod common;

use bulkhead::watch::Outcome;
use common::{Ran, run_text};
use guest_frontends::verify::{Counts, summary};

/// A run in which the disk's driver domain is given an order under load.
fn ordered(fault: &str, argument: u64, words: &str) -> (Ran, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        r#"
[machine]
memory = "256M"
[driver.disk]
kernel = "disk-faults"
cmdline = "fault={fault} fault-argument={argument} fault-after=2500"
[disk.scratch]
image = "scratch.raw"
size = "2M"
[guest.verify]
kernel = "disk-verify"
disks = ["scratch"]
cmdline = "mix=50:50:0 seconds=5 patience=2 {words}"
"#
    );
    let ran = run_text(folder.path(), &text);
    let done = ran.console("verify").lines().find(|line| line.starts_with("disk-verify: done "));
    let done = done.unwrap_or_else(|| panic!("{}", ran.story())).to_owned();
    (ran, done)
}

fn number(line: &str, name: &str) -> u64 {
    let found = summary::fields(line).find(|(key, _)| *key == name);
    found.and_then(|(_, value)| value.parse().ok()).unwrap_or_else(|| panic!("{name} in {line}"))
}

#[test]
fn code_is_changed_where_a_breakpoint_is_reached() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = run_text(folder.path(), "[guest.patch]\nkernel = \"patch-check\"\n");
    assert_eq!(ran.report.outcome, Outcome::Ok, "{}", ran.story());
    assert!(ran.console("patch").contains("patch-check: all well"));
}

#[test]
fn errors_of_the_device_are_errors_of_as_many_requests_and_nothing_else() {
    let (ran, line) = ordered("stuck-status", 3, "");
    let counts = Counts::parse(&line);
    assert_eq!((counts.errors, counts.wrong(), counts.stalled), (3, 0, 0), "{}", ran.story());
}

#[test]
fn a_late_answer_is_a_gap_and_no_error() {
    let (ran, line) = ordered("late", 900_000_000, "");
    assert_eq!(ran.report.outcome, Outcome::Ok, "{}", ran.story());
    // The answers that are due before it still come in the meantime.
    assert!(number(&line, "longest_gap_us") >= 800_000, "{line}");
}

#[test]
fn a_driver_that_spoils_its_ledger_leaves_a_sound_one_to_its_next_life() {
    let (ran, line) = ordered("ledger-damage", 0, "");
    assert_eq!(ran.report.outcome, Outcome::Ok, "{}", ran.story());
    assert!(Counts::parse(&line).is_all_well(), "{line}");
    assert!(!ran.report.restarts.is_empty(), "{}", ran.story());
    assert!(!ran.console("disk").contains("private pages"), "{}", ran.story());
}

#[test]
fn data_that_a_driver_sends_elsewhere_is_caught_by_the_front_ends_checksums() {
    let (ran, line) = ordered("dma-inside", 1900, "integrity=1 mix=0:100:0");
    let counts = Counts::parse(&line);
    assert!(counts.corrupt == 1 && counts.errors == 0, "{}", ran.story());
}
