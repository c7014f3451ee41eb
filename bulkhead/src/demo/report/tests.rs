//! That each thing a guest could notice is noticed here too.

use super::*;
use crate::demo::{series::Sample, setup::Guest};
use bulkhead_link::{Cause as Why, Restart as Told};
use std::sync::{Arc, atomic::AtomicU32};

const S: Duration = Duration::from_secs(1);

fn options() -> Options {
    Options {
        length: 2 * S,
        every: S,
        stretch: S,
        guest: Guest::Debian,
        accel: crate::setup::Accel::Tcg,
        interrupts: Arc::new(AtomicU32::new(0)),
        show_build: false,
    }
}

fn restart() -> Told {
    Told {
        driver: "disk".into(),
        cause: Why::Crash,
        reason: "it was crashed on request".into(),
        detect_ns: 100_000,
        teardown_ns: 200_000,
        rebuild_ns: 300_000,
        device_ns: Some(400_000),
        first_response_ns: Some(2_000_000),
        blackout_ns: Some(3_000_000),
    }
}

fn job() -> Job {
    Job { read_bytes: 1 << 26, written_bytes: 1 << 26, longest_us: 9_000, ..Job::default() }
}

/// Two kills in four seconds of which nothing was seen.
fn seen() -> Seen {
    let mut seen = Seen {
        kernel: "Linux 6.1.0".into(),
        kills: vec![S, 3 * S],
        restarts: vec![restart(), restart()],
        load: Some(job()),
        audit: Some(job()),
        dmesg: Some(Dmesg::default()),
        ..Seen::default()
    };
    for (s, bytes) in [(0, 0), (1, 1_000_000), (2, 1_900_000), (3, 2_900_000), (4, 3_850_000)] {
        seen.series.add(Sample { at: S * s, bytes, cpu: Some(S * s / 2) });
    }
    seen
}

fn after() -> Afterwards {
    let image = Image { pages: 16, sound: 16, wrong: Vec::new() };
    Afterwards { accel: "tcg", image: Some(image), ..Afterwards::default() }
}

fn report(seen: Seen, after: Afterwards) -> Report {
    Report::new(&options(), &Schedule::new(2, S, S), seen, after)
}

#[test]
fn a_guest_that_noticed_nothing_is_told_with_all_that_was_looked_at() {
    let report = report(seen(), after());
    assert_eq!((report.outcome, report.outcome.exit_code()), (Outcome::Unnoticed, 0));
    let text = report.text();
    for told in [
        "killed 2 times",
        "3.00 ms",
        "undisturbed 1.0 MB/s, killed 0.9 MB/s: 92.5 % (median of 2 pairs of stretches 92.5 %, 90.0 % to 95.0 %)",
        "undisturbed 2.0 MB/s, killed 1.9 MB/s: 92.5 %; it had 50 % and 50 % of a processor",
        "67 MB written",
        "16 of 16 pages",
        "clean",
        "noticed nothing",
    ] {
        assert!(text.contains(told), "{told}\n{text}");
    }
    let page = report.page("cargo bulkhead demo");
    assert_eq!(page.matches("class=\"kill recovered-invisible\"").count(), 2, "{page}");
    let json = serde_json::to_value(&report).expect("encodes");
    assert_eq!(json["outcome"], "unnoticed");
    assert_eq!(json["blackout_us"]["p50"], 3000);
    assert_eq!(json["throughput"]["ratio"], 0.925);
    assert_eq!(json["restarts"][0]["blackout_us"], 3000.0);
}

#[test]
fn each_thing_that_a_guest_could_notice_is_told() {
    type Change = fn(&mut Seen, &mut Afterwards);
    let changes: [(Change, &str); 6] = [
        (|seen, _| seen.load = Some(Job { error: 5, ..job() }), "the load: error 5"),
        (|seen, _| seen.load = Some(Job { exit: 1, ..job() }), "exit 1"),
        (|seen, _| seen.audit = Some(Job { error: 84, ..job() }), "the audit: error 84"),
        (
            |seen, _| seen.dmesg = Some(Dmesg { errors: vec!["I/O error".into()], others: vec![] }),
            "dmesg: I/O error",
        ),
        (
            |_, after| {
                after.image = Some(Image { pages: 9, sound: 8, wrong: vec!["page 3".into()] })
            },
            "1 of 9 pages",
        ),
        (|_, after| after.file_system = Some("orphans".into()), "e2fsck: orphans"),
    ];
    for (change, told) in changes {
        let (mut seen, mut after) = (seen(), after());
        change(&mut seen, &mut after);
        let report = report(seen, after);
        assert_eq!((report.outcome, report.outcome.exit_code()), (Outcome::Noticed, 1), "{told}");
        assert!(report.text().contains(told), "{told}\n{}", report.text());
    }
}

#[test]
fn a_kill_that_the_next_death_overtook_is_told_and_is_no_harm() {
    let mut seen = seen();
    seen.restarts[1].first_response_ns = None;
    seen.restarts.push(Told { cause: Why::Hang, ..restart() });
    seen.refused = 1;
    let report = report(seen, after());
    assert_eq!(report.outcome, Outcome::Unnoticed);
    for told in ["1 of 2 followed by an answer; after", "1 more came", "1 by a heart"] {
        assert!(report.text().contains(told), "{told}\n{}", report.text());
    }
}

#[test]
fn what_did_not_come_to_its_end_is_not_called_unnoticed() {
    let of = |after: Afterwards| report(seen(), after).outcome;
    let failed = vec!["the load ended before its time".to_owned()];
    assert_eq!(of(Afterwards { failed: failed.clone(), ..after() }), Outcome::Incomplete);
    assert_eq!(of(Afterwards { is_interrupted: true, ..after() }), Outcome::Interrupted);
    assert_eq!(of(Afterwards { is_core_fault: true, failed, ..after() }), Outcome::CoreFault);
    let nothing = report(Seen::default(), Afterwards { failed: vec!["x".into()], ..after() });
    assert_eq!(nothing.outcome, Outcome::Incomplete);
    assert!(nothing.text().contains("not looked at"), "{}", nothing.text());
}
