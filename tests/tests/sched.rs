//! Shares of the CPU, and the verbs that other terminals use, on guests that only spin.

mod common;

use bulkhead::{remote::RunListing, report::Domain, watch::Outcome};
use common::{Background, run_text_by_instructions};

const SPINNERS: &str = r#"
[guest.light]
kernel = "spin"
memory = "16M"
weight = 128
[guest.middle]
kernel = "spin"
memory = "16M"
weight = 256
[guest.heavy]
kernel = "spin"
memory = "16M"
weight = 512
"#;
const NAMES: [&str; 3] = ["light", "middle", "heavy"];

/// CPU time of each spinner, once all have some, and the machine's time.
fn figures(listing: &RunListing) -> Option<([u64; 3], u64)> {
    let of = |name: &str| {
        let found: Option<&Domain> = listing.domains.iter().find(|d| d.name == name);
        found.map(|d| d.cpu_ns).filter(|&ns| ns > 0)
    };
    let [light, middle, heavy] = NAMES.map(of);
    Some(([light?, middle?, heavy?], listing.core.system_time_ns))
}

#[test]
fn guests_that_spin_get_their_weights_shares_within_two_percent() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = Background::start_by_instructions(folder.path(), SPINNERS);
    let (before, from) = run.wait_for(figures);
    let (after, _) = run.wait_for(|listing| {
        let (cpu, now) = figures(listing)?;
        (now >= from + 10_000_000_000).then_some((cpu, now))
    });
    NAMES.iter().for_each(|name| run.kill(name));
    let ran = run.finish();
    let got = [0, 1, 2].map(|i| (after[i] - before[i]) as f64);
    let all: f64 = got.iter().sum();
    for (share, weight) in got.iter().zip([1.0, 2.0, 4.0]) {
        let (share, due) = (share / all, weight / 7.0);
        assert!(
            (share - due).abs() / due < 0.02,
            "{share:.4} of {due:.4}: {got:?}\n{}",
            ran.story()
        );
    }
}

#[test]
fn a_guest_killed_from_another_terminal_ends_the_run_as_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "[guest.g]\nkernel = \"spin\"\nmemory = \"16M\"\n";
    let run = Background::start(folder.path(), text);
    run.wait_for(|listing| {
        let guest = listing.domains.iter().find(|d| d.name == "g")?;
        (guest.state == "running" && guest.cpu_ns > 0).then_some(())
    });
    run.kill("g");
    let ran = run.finish();
    assert_eq!(ran.report.outcome, Outcome::GuestFailed, "{}", ran.story());
    let guest = ran.report.domains.iter().find(|d| d.name == "g").expect("g");
    assert_eq!(guest.exit, Some("killed"), "{}", ran.story());
}

/// "mean N us late" of a napping guest.
fn mean_lateness(console: &str) -> Option<u64> {
    let words = console.split("mean ").nth(1)?;
    words.split(' ').next()?.parse().ok()
}

#[test]
fn a_woken_guest_with_warp_preempts_those_that_spin() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut text = String::new();
    for n in 0..3 {
        text +=
            &format!("[guest.hog{n}]\nkernel = \"spin\"\nmemory = \"16M\"\nallowance = \"10ms\"\n");
    }
    for (name, warp) in [("warped", "50ms"), ("plain", "0ms")] {
        text += &format!("[guest.{name}]\nkernel = \"nap\"\nmemory = \"16M\"\nwarp = \"{warp}\"\n");
    }
    let run = Background::start_by_instructions(folder.path(), &text);
    run.wait_for(|listing| {
        let ended = |name| listing.domains.iter().any(|d| d.name == name && d.state == "stopped");
        (ended("warped") && ended("plain")).then_some(())
    });
    (0..3).for_each(|n| run.kill(&format!("hog{n}")));
    let ran = run.finish();
    let late = |name| mean_lateness(ran.console(name)).unwrap_or_else(|| panic!("{}", ran.story()));
    let (warped, plain) = (late("warped"), late("plain"));
    assert!(warped * 4 < plain, "warped {warped} us, plain {plain} us late\n{}", ran.story());
}

#[test]
fn a_driver_domain_is_woken_soon_and_one_that_loops_takes_no_more_than_its_share() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut text = String::new();
    for (name, kernel) in
        [("driver.napper", "nap"), ("driver.loops", "spin"), ("guest.plain", "nap")]
    {
        text += &format!("[{name}]\nkernel = \"{kernel}\"\nmemory = \"16M\"\n");
    }
    for name in ["one", "two"] {
        text += &format!(
            "[guest.{name}]\nkernel = \"spin\"\nmemory = \"16M\"\ncmdline = \"seconds=4\"\n"
        );
    }
    let ran = run_text_by_instructions(folder.path(), &text);
    assert_eq!(ran.report.outcome, Outcome::Ok, "{}", ran.story());
    let late = |name| mean_lateness(ran.console(name)).unwrap_or_else(|| panic!("{}", ran.story()));
    let (driver, guest) = (late("napper"), late("plain"));
    assert!(driver * 10 < guest, "driver {driver} us, guest {guest} us late\n{}", ran.story());
    for name in ["one", "two"] {
        let found = ran.report.domains.iter().find(|d| d.name == name).expect("listed");
        // A third of four seconds, less what Dom0 and those that nap took of it.
        let due = 4_000_000_000 / 3;
        assert!(found.cpu_ns * 10 > due * 9, "{name} had {} ns\n{}", found.cpu_ns, ran.story());
    }
}
