use super::*;
use crate::Campaign;
use crate::error::Source;
use crate::fake::{FakeMachine, Quiet, made_up};
use crate::image::Image;
use crate::log::File;
use crate::plan::{Plan, Shard};
use crate::runner::Runner;
use crate::testing::elf_of;
use crate::units::Seed;
use std::path::Path;

/// The log of a campaign that was made up, the same each time.
pub fn sample(faults: u64) -> Log {
    let text = format!(
        "setup = \"a\"\ndriver = \"disk\"\nseed = 42\nfaults = {faults}\n\
         [models]\nelided-instruction = 2\ntext-bit-flip = 1\ninterface = 1\nresource = 1"
    );
    let source = Source { name: "inject.toml".into(), text };
    let campaign = Campaign::parse(source, Path::new(".")).unwrap();
    let image = Image::parse(&elf_of(&[0x48, 0x89, 0xd8, 0xc3])).unwrap();
    let plan = Plan::new(&campaign, image).unwrap();
    let machine = FakeMachine::new(made_up(Seed::new(7).unwrap()));
    let mut out = Vec::new();
    let mut runner = Runner::new(&campaign, &plan, Shard::WHOLE, machine).unwrap();
    runner.run(None, &mut out, &mut Quiet).unwrap();
    Log::merge(&[File { name: "log".into(), text: String::from_utf8(out).unwrap() }]).unwrap()
}

#[test]
fn counts_agree_whichever_way_they_are_added() {
    let log = sample(500);
    let report = Report::new(&log);
    assert_eq!(report.faults, 500);
    assert_eq!(report.outcomes.values().sum::<u64>(), 500);
    assert_eq!(report.activated + report.count(Outcome::NotActivated), 500);
    for (outcome, count) in &report.outcomes {
        let by_hand = log.records.values().filter(|r| r.outcome == *outcome).count() as u64;
        let by_model: u64 = report.by_model.values().filter_map(|c| c.get(outcome)).sum();
        assert_eq!((*count, *count), (by_hand, by_model), "{outcome}");
    }
    let activated: u64 = report.unseen.values().map(|share| share.of).sum();
    assert_eq!(activated, report.activated);
    assert_eq!(report.escapes.len() as u64, report.count(Outcome::Escape));
}

#[test]
fn coverage_is_of_detected_failures_alone() {
    let report = Report::new(&sample(500));
    assert_eq!(report.coverage.of, report.detected);
    assert_eq!(report.coverage.count, report.count(Outcome::RecoveredInvisible));
    assert!(report.coverage.share > 0.9);
}

#[test]
fn the_distribution_rises_and_has_every_restart_in_it() {
    let report = Report::new(&sample(500));
    let prompt = &report.blackout_us.prompt;
    let columns = &prompt.distribution;
    assert!(columns.is_sorted_by(|a, b| a.share < b.share && a.blackout() <= b.blackout()));
    assert!((columns.last().unwrap().share - 1.0).abs() < f64::EPSILON);
    let last = columns.last().unwrap();
    let both = [prompt, &report.blackout_us.hang].map(|some| some.all.count);
    assert_eq!(both.iter().sum::<u64>(), report.blackout_us.all.count);
    assert!(both.iter().all(|count| *count > 0), "{both:?}");
    assert!((last.up_to(4) - last.blackout()).abs() < 1e-6);
    assert!(last.blackout() <= prompt.all.max.number() as f64 + 1e-6);
}

#[test]
fn the_stretch_of_load_is_a_minute_at_most_and_its_kills_are_in_it() {
    let throughput = Report::new(&sample(500)).throughput.unwrap();
    assert!(throughput.length() <= Us::from_ms(60_000));
    assert!(!throughput.kills.is_empty());
    assert!(throughput.kills.iter().all(|kill| kill.at_us < throughput.length()));
}

#[test]
fn a_log_without_load_or_restarts_has_a_report_too() {
    let mut log = sample(3);
    log.load.clear();
    log.records.values_mut().for_each(|r| r.seen.restarts.clear());
    let report = Report::new(&log);
    assert_eq!(report.throughput, None);
    assert_eq!(report.blackout_us.all.count, 0);
    assert!(report.blackout_us.prompt.distribution.is_empty());
}

/// Programs read these names.
#[test]
fn the_json_has_the_names_that_it_promises() {
    let json: serde_json::Value = serde_json::from_str(&Report::new(&sample(500)).json()).unwrap();
    assert_eq!(json["seed"], 42);
    assert_eq!(json["faults"], 500);
    assert!(json["activated"].as_u64().unwrap() > 0);
    assert!(json["outcomes"]["recovered-invisible"].is_u64());
    assert!(json["by_model"]["kill"]["recovered-invisible"].is_u64());
    for name in ["p50", "p99", "max"] {
        assert!(json["blackout_us"][name].is_u64(), "{name}");
    }
    assert_eq!(json["escapes"][0]["outcome"], "escape");
    assert!(json["shares"]["escape"]["high"].is_f64());
}
