//! Fault campaigns on a real machine, judged by their logs: a short one with every family of
//! faults, one of its faults again, and one in which front ends keep checksums.

use bulkhead::{
    inject::{self, Done, InjectError, Options},
    machine::Observer,
    setup::Accel,
};
use bulkhead_link::FromDom0;
use faults::{
    Family, Log, Outcome, Record, Report,
    campaign::Goal,
    log::File,
    plan::Shard,
    record::{Line, Place},
    runner::End,
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Nobody looks on.
struct Nobody;

impl Observer for Nobody {
    fn message(&mut self, _: &FromDom0) {}
    fn say(&mut self, _: &str) {}
}

/// Two guests, one of which misbehaves, and their driver domain.
const MACHINE: &str = r#"
[driver.disk]
kernel = "disk"
memory = "16M"
[disk.data]
image = "data.raw"
size = "2M"
[disk.other]
image = "other.raw"
size = "1M"
[guest.load]
kernel = "disk-verify"
memory = "16M"
disks = ["data"]
[guest.rude]
kernel = "disk-verify"
memory = "16M"
disks = ["other"]
"#;

fn campaign(folder: &Path, text: &str) -> Options {
    let file = folder.join("campaign.toml");
    fs::write(folder.join("machine.toml"), MACHINE).expect("written");
    let head = "setup = \"machine.toml\"\ndriver = \"disk\"\nfront = \"rude\"\nseed = 20260604\n";
    fs::write(&file, format!("{head}{text}")).expect("written");
    Options {
        file,
        seed: None,
        goal: None,
        shard: Shard::WHOLE,
        replay: None,
        out: Some(folder.join("out")),
        resume: false,
        accel: Some(Accel::Tcg),
        interrupts: Arc::default(),
        show_build: false,
        command: "a test".into(),
    }
}

fn run(options: &Options) -> Done {
    inject::run(options, &mut Nobody).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a campaign to its goal; gives its log, every line of which is read back.
fn to_the_end(options: &Options) -> (Log, Report) {
    let Done::Campaign { end, reported } = run(options) else { panic!("a campaign") };
    assert_eq!(end, End::Goal);
    let path = log_of(options);
    let text = fs::read_to_string(&path).expect("a log");
    for line in text.lines() {
        Line::parse(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    for name in ["report.json", "report.html"] {
        assert!(path.with_file_name(name).is_file(), "{name}");
    }
    (Log::merge(&[File::read(&path).expect("a log")]).expect("merged"), reported.report)
}

fn log_of(options: &Options) -> PathBuf {
    options.out.as_ref().expect("given").join("log.jsonl")
}

/// What a person needs of the faults of a class.
fn story(log: &Log, outcome: Outcome) -> String {
    let these: Vec<&Record> = log.records.values().filter(|r| r.outcome == outcome).collect();
    format!("{these:#?}")
}

const SHORT: &str = r#"
faults = 110
[deadlines]
spread = "20ms"
activation = "80ms"
settle = "50ms"
"#;

#[test]
fn no_fault_of_a_short_campaign_escapes_and_one_of_them_runs_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = campaign(folder.path(), SHORT);
    let (log, report) = to_the_end(&options);
    assert_eq!(log.records.len(), 110);
    assert_eq!(report.count(Outcome::Escape), 0, "{}", story(&log, Outcome::Escape));
    let activated = log.records.values().filter(|r| r.outcome != Outcome::NotActivated);
    let families: BTreeSet<Family> = activated.map(|r| r.fault.model.family()).collect();
    assert_eq!(families.len(), Family::ALL.len(), "{families:?}");
    assert!(report.activated >= 55, "{} activated", report.activated);
    assert!(report.detected >= 10, "{} detected", report.detected);
    assert!(!log.load.is_empty(), "the load's series is there");

    // There is a log now: it is not written over by mistake, and goes on if that is meant.
    let error = inject::run(&options, &mut Nobody).expect_err("refused");
    assert!(error.remedy().is_some_and(|remedy| remedy.contains("--resume")), "{error}");
    assert_eq!(error.exit_code(), 2);

    let of_code = |r: &&Record| r.place.is_some() && r.outcome == Outcome::RecoveredInvisible;
    let known = log.records.values().find(of_code).expect("one that the driver died of");
    let replay = format!("@{}:{}", log_of(&options).display(), known.number);
    let again = Options { replay: Some(replay), ..options.clone() };
    let Done::Replay { before, now } = run(&again) else { panic!("a replay") };
    assert_eq!((&before.fault, before.number), (&known.fault, known.number));
    let place = |record: &Record| -> Place { record.place.clone().expect("it has one") };
    assert_eq!((now.fault.model, place(&now)), (known.fault.model, place(known)));
    assert!(now.outcome != Outcome::Escape, "{now:#?}");

    let line = Line::Fault(Box::new(known.clone())).written();
    let image = hex(&line, "image");
    let other = line.replace(&image, &image.chars().rev().collect::<String>());
    let error = inject::run(&Options { replay: Some(other), ..options }, &mut Nobody);
    let error = error.expect_err("refused");
    assert!(error.to_string().contains("another build"), "{error}");
    assert!(matches!(error, InjectError::Campaign(_)));
}

/// The value of a field of a line that is hexadecimal text.
fn hex(line: &str, field: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
    value[field].as_str().expect("text").to_owned()
}

#[test]
fn no_corruption_is_silent_where_front_ends_keep_checksums() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = format!(
        "{SHORT}[load]\nintegrity = true\nreads-percent = 80\n[models]\nwrong-dma-address = 1\n"
    );
    let options = Options { goal: Some(Goal::Faults(40)), ..campaign(folder.path(), &text) };
    let (log, report) = to_the_end(&options);
    let silent = Outcome::SilentCorruption;
    assert_eq!(report.count(silent), 0, "{}", story(&log, silent));
    assert_eq!(report.count(Outcome::Escape), 0, "{}", story(&log, Outcome::Escape));
    // Many of these faults end the driver; others give a guest what is not its own.
    let visible = Outcome::RecoveredVisible;
    let is_caught = |r: &&Record| r.outcome == visible && r.seen.load.errors > 0;
    let caught = log.records.values().filter(is_caught).count();
    assert!(caught >= 2, "{}", story(&log, visible));
}

#[test]
fn a_campaign_that_cannot_run_is_refused_before_anything_is_built() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |change: &dyn Fn(&mut Options), text: &str, why: &str, remedy: &str| {
        let mut options = campaign(folder.path(), text);
        change(&mut options);
        let error = inject::run(&options, &mut Nobody).expect_err(why);
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(why), "{error}");
        assert!(error.remedy().is_some_and(|text| text.contains(remedy)), "{error:?}");
    };
    let nothing = |_: &mut Options| {};
    refused(&nothing, "faults = 1\n[models]\nkil = 1\n", "no fault model `kil`", "`kill`");
    let huge = |options: &mut Options| options.seed = Some(u64::MAX);
    refused(&huge, SHORT, "out of range", "2^63 - 1");
    let odd = |options: &mut Options| options.replay = Some("@nowhere".into());
    refused(&odd, SHORT, "names no fault", "@FILE:NUMBER");
    refused(&nothing, "faults = 1\n[load]\nguests = [\"laod\"]\n", "no guest `laod`", "`load`");
    refused(&nothing, "faults = 1\n[load]\ndepth = 500\n", "does not go so far", "128");
}
