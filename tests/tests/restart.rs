//! Driver domains that die, hang or are restarted under a load that verifies itself: the
//! guest must not notice more than a pause.

mod common;

use bulkhead::{report::Restart, watch::Outcome};
use common::{Background, Ran, run_text};
use guest_frontends::verify::Counts;

fn setup(kernel: &str, orders: &str, seconds: u32) -> String {
    format!(
        r#"
[machine]
memory = "256M"
[driver.disk]
kernel = "{kernel}"
cmdline = "{orders}"
memory = "16M"
[disk.scratch]
image = "scratch.raw"
size = "4M"
[guest.verify]
kernel = "disk-verify"
disks = ["scratch"]
cmdline = "mix=50:50:0 depth=16 seconds={seconds} patience=3"
"#
    )
}

/// The load ran to its end and found nothing wrong.
fn assert_unnoticed(ran: &Ran) {
    assert_eq!(ran.report.outcome, Outcome::Ok, "{}", ran.story());
    let done = ran.console("verify").lines().find(|line| line.starts_with("disk-verify: done "));
    let counts = Counts::parse(done.unwrap_or_else(|| panic!("{}", ran.story())));
    assert_eq!(
        (counts.errors, counts.wrong(), counts.stalled, counts.violations),
        (0, 0, 0, 0),
        "{}",
        ran.story()
    );
}

fn all_answered<'a>(ran: &'a Ran, cause: &str) -> &'a [Restart] {
    let restarts = &ran.report.restarts;
    for restart in restarts {
        assert_eq!(restart.cause, cause, "{}", ran.story());
        assert!(restart.blackout_us.is_some(), "{restart:?}");
    }
    restarts
}

#[test]
fn restarts_under_load_lose_nothing_and_leak_nothing() {
    const RESTARTS: usize = 12;
    let folder = tempfile::tempdir().expect("a folder");
    let run = Background::start(folder.path(), &setup("disk", "", 15));
    run.wait_for(|l| l.disks.iter().any(|d| d.written_bytes > 1 << 20).then_some(()));
    let mut free = Vec::new();
    for done in 1..=RESTARTS {
        run.restart("disk");
        let is_back = |l: &bulkhead::remote::RunListing| {
            let disk = l.domains.iter().find(|d| d.name == "disk")?;
            let is_up = disk.restarts as usize == done && disk.state == "running";
            // A listing in which the guest has made progress since is one of the new life.
            is_up.then_some((l.core.free_frames, l.disks.first()?.requests))
        };
        let (_, before) = run.wait_for(is_back);
        let moved = |l: &bulkhead::remote::RunListing| {
            is_back(l).filter(|(_, requests)| *requests > before + 50)
        };
        free.push(run.wait_for(moved).0);
    }
    let ran = run.finish();
    assert_unnoticed(&ran);
    assert_eq!(all_answered(&ran, "request").len(), RESTARTS);
    // The core takes a frame for grants that are mapped, and gives it back when there are few.
    let (least, most) = (free.iter().min(), free.iter().max());
    assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{free:?}");
}

#[test]
fn a_driver_domain_that_is_crashed_from_outside_dies_a_real_death_and_is_not_noticed() {
    /// More than may end by themselves within the ten seconds that this takes.
    const DEATHS: usize = 14;
    let folder = tempfile::tempdir().expect("a folder");
    let run = Background::start(folder.path(), &setup("disk", "", 12));
    let progress = |l: &bulkhead::remote::RunListing, lives: u32| {
        let disk = l.domains.iter().find(|d| d.name == "disk")?;
        let is_this_life = disk.restarts == lives && disk.state == "running";
        is_this_life.then_some(l.disks.first()?.requests)
    };
    for lives in 0..=DEATHS as u32 {
        // What was done when this life was first seen may be the work of the one before.
        let before = run.wait_for(|l| progress(l, lives));
        run.wait_for(|l| progress(l, lives).filter(|&requests| requests > before + 50));
        if lives < DEATHS as u32 {
            run.crash("disk");
        }
    }
    let ran = run.finish();
    assert_unnoticed(&ran);
    let deaths = all_answered(&ran, "crash");
    assert_eq!(deaths.len(), DEATHS);
    assert!(deaths.iter().all(|d| d.reason.contains("on request")), "{deaths:?}");
}

#[test]
fn a_driver_domain_that_panics_now_and_then_is_not_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = run_text(folder.path(), &setup("disk-faults", "fault=panic fault-after=1500", 6));
    assert_unnoticed(&ran);
    assert!(all_answered(&ran, "crash").len() >= 2, "{}", ran.story());
}

#[test]
fn a_driver_domain_that_hangs_is_found_by_its_heart_and_restarted() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = setup("disk-faults", "fault=hang fault-after=1500", 6);
    for (deadline, line) in [(100, ""), (400, "hang-deadline = \"400ms\"\n")] {
        let text = text.replace("[disk.scratch]", &format!("{line}[disk.scratch]"));
        let ran = run_text(folder.path(), &text);
        assert_unnoticed(&ran);
        let restarts = all_answered(&ran, "hang");
        assert!(!restarts.is_empty(), "{}", ran.story());
        for restart in restarts {
            // From the last beat on.
            assert!(restart.detect_us >= f64::from(deadline) * 1000.0, "{restart:?}");
            assert!(restart.reason.contains(&format!("{deadline} ms")), "{restart:?}");
        }
    }
}

#[test]
fn a_driver_domain_that_keeps_dying_is_quarantined_and_told_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = run_text(folder.path(), &setup("disk-faults", "fault=panic fault-after=1", 8));
    assert_eq!(ran.report.outcome, Outcome::DriverQuarantined, "{}", ran.story());
    let disk = ran.report.domains.iter().find(|d| d.name == "disk").expect("listed");
    assert_eq!((disk.state, disk.restarts), ("quarantined", 10), "{}", ran.story());
    assert!(disk.reason.contains("failed 11 times within 10 s"), "{}", disk.reason);
    assert_eq!(disk.remedy.as_deref(), Some("bulkhead restart disk"));
}
