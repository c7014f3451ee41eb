//! What becomes of a driver domain that fails, and of its guests: the policies, the words of
//! the other side of a ring, quarantine and how it is lifted, other images, and a great many
//! restarts.

mod common;

use bulkhead::{
    artifacts, builtin,
    progress::Progress,
    remote::RunListing,
    report::Domain,
    restarts::{self, Wanted},
    update,
    watch::Outcome,
};
use common::{Background, Ran, run_text};
use guest_frontends::verify::Counts;
use std::{
    fs,
    sync::atomic::AtomicU32,
    time::{Duration, Instant},
};

/// Requests in flight of the verifying guests.
const DEPTH: u64 = 16;

/// A guest under load on a driver domain with these lines. No heart is to be missed because
/// the host is busy.
fn setup(driver: &str, words: &str) -> String {
    format!(
        r#"
[driver.disk]
memory = "16M"
hang-deadline = "5s"
{driver}
[disk.scratch]
image = "scratch.raw"
size = "2M"
driver = "disk"
[guest.verify]
kernel = "disk-verify"
disks = ["scratch"]
cmdline = "mix=50:50:0 depth={DEPTH} patience=3 {words}"
"#
    )
}

/// Another driver domain and its guest, which are to notice nothing.
const OTHERS: &str = r#"
[driver.other]
kernel = "disk"
memory = "16M"
hang-deadline = "5s"
[disk.others]
image = "others.raw"
size = "2M"
driver = "other"
[guest.bystander]
kernel = "disk-verify"
disks = ["others"]
cmdline = "seconds=5 patience=30"
"#;

fn counts(ran: &Ran, guest: &str) -> Counts {
    let done = ran.console(guest).lines().find(|line| line.starts_with("disk-verify: done "));
    Counts::parse(done.unwrap_or_else(|| panic!("{}", ran.story())))
}

fn domain<'a>(ran: &'a Ran, name: &str) -> &'a Domain {
    let found = ran.report.domains.iter().find(|d| d.name == name);
    found.unwrap_or_else(|| panic!("{}", ran.story()))
}

/// Nothing that a user of the disk could see.
fn assert_unnoticed(ran: &Ran, guest: &str) {
    let counts = counts(ran, guest);
    assert!(counts.is_all_well() && counts.ops > 100, "{}", ran.story());
}

/// A run in which the driver domain dies now and then under load.
fn dying(policy: &str) -> (Ran, Counts) {
    let folder = tempfile::tempdir().expect("a folder");
    let driver = format!(
        "kernel = \"disk-faults\"\ncmdline = \"fault=panic fault-after=1500\"\non-failure = \"{policy}\""
    );
    let ran = run_text(folder.path(), &setup(&driver, "seconds=5"));
    assert!(!ran.report.restarts.is_empty(), "{}", ran.story());
    let counts = counts(&ran, "verify");
    // Whatever is answered with an error may have been done or not; nothing else is wrong.
    assert_eq!((counts.wrong(), counts.stalled), (0, 0), "{}", ran.story());
    (ran, counts)
}

#[test]
fn requests_that_a_dead_driver_had_taken_fail_under_queue_and_all_that_waited_under_fail() {
    for policy in ["queue", "fail"] {
        let (ran, counts) = dying(policy);
        let most = DEPTH * ran.report.restarts.len() as u64;
        assert!((1..=most).contains(&counts.errors), "{policy}: {}", ran.story());
        assert_eq!(ran.report.outcome, Outcome::GuestFailed, "{}", ran.story());
        assert_eq!(ran.report.disks[0].errors, counts.errors, "{}", ran.story());
    }
}

#[test]
fn a_driver_that_breaks_the_protocol_is_restarted_on_its_guests_word_and_nothing_is_lost() {
    const UNKNOWN: &str = "which is not in flight";
    const ABSURD: &str = "absurd rsp_prod";
    // One response too many may be one more than there are requests.
    for (fault, words) in [
        ("wrong-id", [UNKNOWN, UNKNOWN]),
        ("absurd-producer", [ABSURD, ABSURD]),
        ("duplicate", [UNKNOWN, ABSURD]),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let driver = format!(
            "kernel = \"disk-faults\"\ncmdline = \"fault={fault} fault-argument=1000 fault-after=1500\""
        );
        let ran = run_text(folder.path(), &setup(&driver, "seconds=4"));
        assert_unnoticed(&ran, "verify");
        assert_eq!(ran.report.outcome, Outcome::Ok, "{}", ran.story());
        let counts = counts(&ran, "verify");
        assert!(counts.violations >= 1, "{fault}: {}", ran.story());
        assert_eq!(counts.reconnects, counts.violations);
        let restarts = &ran.report.restarts;
        assert!(!restarts.is_empty(), "{fault}: {}", ran.story());
        for restart in restarts {
            assert_eq!(restart.cause, "violation", "{restart:?}");
            assert!(restart.reason.contains("verify says of xvda"), "{restart:?}");
            assert!(words.iter().any(|w| restart.reason.contains(w)), "{restart:?}");
        }
    }
}

#[test]
fn guests_of_a_quarantined_driver_stall_or_fail_by_policy_and_others_notice_nothing() {
    for (policy, requests) in [("reissue", "wait"), ("fail", "fail")] {
        let folder = tempfile::tempdir().expect("a folder");
        let driver = format!(
            "kernel = \"disk-faults\"\ncmdline = \"fault=panic fault-after=700\"\n\
             on-failure = \"{policy}\"\nrestart-limit = 2\nrestart-window = \"60s\""
        );
        let ran = run_text(folder.path(), &(setup(&driver, "seconds=6 status=500") + OTHERS));
        assert_eq!(ran.report.outcome, Outcome::DriverQuarantined, "{}", ran.story());
        let disk = domain(&ran, "disk");
        assert_eq!((disk.state, disk.restarts), ("quarantined", 2), "{}", ran.story());
        assert_eq!(disk.requests, Some(requests));
        assert!(disk.reason.contains("failed 3 times within 60 s"), "{}", disk.reason);
        assert!(disk.reason.contains("last: "), "{}", disk.reason);
        assert!(disk.reason.contains("panicked"), "{}", disk.reason);
        let told = format!("disk is in quarantine: {}", disk.reason);
        assert!(ran.report.reason.contains(&told), "{}", ran.report.reason);
        let Counts { errors, stalled, .. } = counts(&ran, "verify");
        match policy {
            "fail" => assert!(errors > 3 * DEPTH && stalled == 0, "{}", ran.story()),
            _ => assert!(errors == 0 && stalled > 0, "{}", ran.story()),
        }
        assert_unnoticed(&ran, "bystander");
        assert_eq!(domain(&ran, "bystander").exit, Some("poweroff"));
        assert_eq!(domain(&ran, "other").restarts, 0);
    }
}

/// Builds an image before a run waits for it.
fn prepare(kernel: &str) {
    let program = builtin::find(kernel).expect("a builtin");
    artifacts::build(&[program], false).expect("built");
}

fn find<'a>(listing: &'a RunListing, name: &str) -> Option<&'a Domain> {
    listing.domains.iter().find(|d| d.name == name)
}

fn requests(listing: &RunListing) -> u64 {
    listing.disks.iter().map(|d| d.requests).sum()
}

/// Waits until the guest has got so many more answers.
fn go_on(run: &Background, more: u64) {
    let now = run.wait_for(|l| Some(requests(l)));
    run.wait_for(|l| (requests(l) > now + more).then_some(()));
}

fn wait_for_quarantine(run: &Background) -> Domain {
    let is_quarantined = |d: &&Domain| d.state == "quarantined";
    run.wait_for(|l| find(l, "disk").filter(is_quarantined).cloned())
}

fn update_to(run: &Background, kernel: &str) {
    let progress = Progress::default();
    let updated = update::update(Some(&run.number()), "disk", kernel, false, &progress);
    updated.unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn a_driver_domain_gets_another_image_under_load_and_its_old_one_again() {
    let folder = tempfile::tempdir().expect("a folder");
    prepare("disk-faults");
    let run = Background::start(folder.path(), &setup("kernel = \"disk\"", "seconds=12"));
    go_on(&run, 200);
    let junk = folder.path().join("junk.elf");
    fs::write(&junk, b"\x7fELF").expect("written");
    let refused = update::update(
        Some(&run.number()),
        "disk",
        &junk.display().to_string(),
        false,
        &Progress::default(),
    );
    assert!(refused.is_err_and(|e| e.to_string().contains("junk.elf")));
    let updated = |wanted: Option<&str>| {
        let is_so = |l: &RunListing| {
            let disk = find(l, "disk")?;
            (disk.updated.as_deref() == wanted).then_some(disk.restarts)
        };
        run.wait_for(is_so)
    };
    assert_eq!(updated(None), 0, "a file that is no image changes nothing");
    update_to(&run, "disk-faults");
    assert_eq!(updated(Some("disk-faults")), 1);
    go_on(&run, 200);
    update::to_original(Some(&run.number()), "disk").expect("it goes back");
    assert_eq!(updated(None), 2);
    let again = update::to_original(Some(&run.number()), "disk");
    assert!(again.is_err(), "there is nothing to go back from");
    go_on(&run, 200);
    let ran = run.finish();
    assert_unnoticed(&ran, "verify");
    assert_eq!(ran.report.outcome, Outcome::Ok, "{}", ran.story());
    let console = ran.console("disk");
    assert_eq!(console.matches("does wrong on order").count(), 1, "the other image ran, once");
}

#[test]
fn a_quarantine_is_lifted_by_a_restart_with_an_image_that_works() {
    let folder = tempfile::tempdir().expect("a folder");
    // The set-up's own image does not look at its orders; the one that it is updated to does.
    let driver = "kernel = \"disk\"\ncmdline = \"fault=panic fault-after=1\"\nrestart-limit = 3";
    let text = setup(driver, "seconds=12").replace("patience=3", "patience=60");
    prepare("disk-faults");
    let run = Background::start(folder.path(), &text);
    go_on(&run, 100);
    update_to(&run, "disk-faults");
    let disk = wait_for_quarantine(&run);
    assert!(disk.reason.contains("its image was updated to disk-faults"), "{}", disk.reason);
    assert_eq!(disk.remedy.as_deref(), Some("bulkhead restart disk --original"));
    update::to_original(Some(&run.number()), "disk").expect("it goes back");
    go_on(&run, 100);
    let state = run.wait_for(|l| find(l, "disk").map(|d| d.state));
    assert_eq!(state, "running");
    let ran = run.finish();
    assert_unnoticed(&ran, "verify");
    assert_eq!(ran.report.outcome, Outcome::Ok, "{}", ran.story());
}

/// Restarts the driver domain so many times under load.
fn restart_many(times: u32, limit: Duration) {
    let folder = tempfile::tempdir().expect("a folder");
    // Dom0 keeps the last lines of consoles: a guest that talks would fill its heap for a while.
    let text = setup("kernel = \"disk\"", "status=999999999");
    let run = Background::start_for(folder.path(), &text, limit);
    go_on(&run, 200);
    let wanted = Wanted { times, every: Duration::ZERO };
    let (progress, interrupts) = (Progress::default(), AtomicU32::new(0));
    let began = Instant::now();
    let done = restarts::restart_many(Some(&run.number()), "disk", wanted, &progress, &interrupts);
    let summary = done.unwrap_or_else(|e| panic!("after {:?}: {e}", began.elapsed()));
    eprintln!("{}", summary.text());
    assert_eq!(summary.restarts, times);
    // Dom0 waits 2 s for an answer, which is little when the host stands still.
    assert!(summary.unanswered * 1000 <= times, "{summary:?}");
    assert_eq!(summary.leaks, Vec::<String>::new());
    let (before, after) = (summary.before, summary.after);
    assert_eq!((before.grants, before.ports), (after.grants, after.ports));
    // Numbers in the lines of the driver domain's console get longer.
    assert!(before.dom0_heap_bytes.abs_diff(after.dom0_heap_bytes) < 128, "{summary:?}");
    go_on(&run, 200);
    run.kill("verify");
    let ran = run.finish();
    assert_eq!(domain(&ran, "disk").restarts, times);
    let disk = &ran.report.disks[0];
    assert_eq!(disk.errors, 0, "{}", ran.story());
    assert!(disk.requests > u64::from(times), "{}", ran.story());
    assert!(!ran.console("verify").contains("disk-verify: wrong"), "{}", ran.story());
}

#[test]
fn two_hundred_restarts_under_load_leak_nothing_and_nobody_notices() {
    restart_many(200, Duration::from_secs(400));
}

#[test]
#[ignore = "long"]
fn ten_thousand_restarts_under_load_leak_nothing_and_nobody_notices() {
    restart_many(10_000, Duration::from_secs(4 * 3600));
}
