use super::*;
use crate::error::Source;
use crate::fake::{FakeMachine, Step};
use crate::image::Image;
use crate::outcome::{Cause, Detected};
use crate::testing::elf_of;
use std::path::Path;

/// Surroundings that interrupt after so many faults, and where a fault takes a second.
struct Around {
    until: u64,
    seen: u64,
    last: Progress,
}

impl Around {
    fn until(until: u64) -> Self {
        Self { until, seen: 0, last: Progress::default() }
    }
}

impl Surroundings for Around {
    fn is_interrupted(&mut self) -> bool {
        self.seen >= self.until
    }
    fn elapsed(&mut self) -> Us {
        Us::from_ms(self.seen * 1000)
    }
    fn progress(&mut self, progress: &Progress, _: &Record) {
        self.seen += 1;
        self.last = progress.clone();
    }
}

fn campaign(goal: &str) -> Campaign {
    let text = format!(
        "setup = \"a\"\ndriver = \"disk\"\nseed = 3\n{goal}\n[models]\nresource = 1\nelided-instruction = 1"
    );
    Campaign::parse(Source { name: "inject.toml".into(), text }, Path::new(".")).unwrap()
}

fn plan(campaign: &Campaign) -> Plan {
    Plan::new(campaign, Image::parse(&elf_of(&[0x90, 0xc3])).unwrap()).unwrap()
}

fn benign() -> Observation {
    Observation { activated_us: Some(Us::new(1)), serving: true, ..Observation::default() }
}

fn escape() -> Observation {
    Observation { core: Some("made up".into()), ..benign() }
}

fn recovered() -> Observation {
    let detected = Detected { cause: Cause::Crash, after_us: Us::new(3), reason: String::new() };
    Observation { detected: Some(detected), ..benign() }
}

/// Runs the whole of a campaign; gives its end, its log, and the machine.
fn run<F: FnMut(&Fault) -> Step>(
    campaign: &Campaign,
    script: F,
    around: &mut Around,
) -> (End, Vec<Record>, FakeMachine<F>) {
    let plan = plan(campaign);
    let mut runner = Runner::new(campaign, &plan, Shard::WHOLE, FakeMachine::new(script)).unwrap();
    let mut out = Vec::new();
    let end = runner.run(None, &mut out, around).unwrap();
    (end, records(&out), runner.into_machine())
}

fn records(out: &[u8]) -> Vec<Record> {
    let lines = str::from_utf8(out).unwrap().lines().map(|line| Line::parse(line).unwrap());
    lines
        .filter_map(|line| match line {
            Line::Fault(record) => Some(*record),
            Line::Load(_) => None,
        })
        .collect()
}

#[test]
fn a_campaign_injects_its_plan_one_fault_after_the_other() {
    let campaign = campaign("faults = 12");
    let (end, records, machine) = run(&campaign, |_| benign().into(), &mut Around::until(99));
    assert_eq!(end, End::Goal);
    let planned: Vec<_> = (0..12).map(|number| plan(&campaign).fault(number)).collect();
    assert_eq!(machine.injected, planned);
    assert!(records.iter().map(|r| r.number).eq(0..12));
    assert_eq!((machine.boots, machine.heals), (1, 12), "pristine after each");
}

#[test]
fn a_spoiled_machine_is_booted_again_and_no_other() {
    let mut count = 0;
    let script = |_: &Fault| {
        count += 1;
        if count == 3 { escape() } else { recovered() }.into()
    };
    let (_, records, machine) = run(&campaign("faults = 6"), script, &mut Around::until(99));
    assert_eq!(machine.boots, 2);
    let boots: Vec<_> = records.iter().map(|record| record.boot).collect();
    assert_eq!(boots, [0, 0, 0, 1, 1, 1]);
    assert_eq!(records[2].outcome, Outcome::Escape);
}

#[test]
fn a_campaign_of_activated_faults_goes_on_until_it_has_them() {
    let mut count = 0;
    let script = |_: &Fault| {
        count += 1;
        let unreached = Observation { serving: true, ..Observation::default() };
        if count % 3 == 0 { benign() } else { unreached }.into()
    };
    let mut around = Around::until(99);
    let (end, records, _) = run(&campaign("activated = 4"), script, &mut around);
    assert_eq!((end, records.len()), (End::Goal, 12));
    assert_eq!((around.last.done, around.last.goal), (4, 4));
}

#[test]
fn limits_end_a_campaign_before_its_goal() {
    let never = |_: &Fault| Observation { serving: true, ..Observation::default() }.into();
    let ends = |text: &str| run(&campaign(text), never, &mut Around::until(99)).0;
    assert_eq!(ends("activated = 4\nlimits.faults = 7"), End::FaultLimit);
    assert_eq!(ends("faults = 10\nlimits.faults = 7"), End::FaultLimit);
    assert_eq!(ends("faults = 10\nlimits.time = \"5s\""), End::TimeLimit);
    let (end, records, machine) = run(
        &campaign("faults = 10\nlimits.escapes = 2"),
        |_| escape().into(),
        &mut Around::until(99),
    );
    assert_eq!((end, records.len()), (End::EscapeLimit, 2));
    assert_eq!((machine.boots, machine.heals), (2, 0), "left as the last one made it");
}

#[test]
fn an_interrupted_campaign_is_continued_where_it_stopped() {
    let campaign = campaign("faults = 10");
    let plan = plan(&campaign);
    let mut text = Vec::new();
    let machine = FakeMachine::new(|_: &Fault| benign().into());
    let mut runner = Runner::new(&campaign, &plan, Shard::WHOLE, machine).unwrap();
    let end = runner.run(None, &mut text, &mut Around::until(4)).unwrap();
    assert_eq!((end, records(&text).len()), (End::Interrupted, 4));

    let file = crate::log::File { name: "log".into(), text: String::from_utf8(text).unwrap() };
    let before = Log::merge(&[file]).unwrap();
    let mut rest = Vec::new();
    let mut around = Around::until(99);
    let machine = FakeMachine::new(|_: &Fault| benign().into());
    let mut runner = Runner::new(&campaign, &plan, Shard::WHOLE, machine).unwrap();
    assert_eq!(runner.run(Some(&before), &mut rest, &mut around).unwrap(), End::Goal);
    assert!(records(&rest).iter().map(|r| r.number).eq(4..10));
    assert!(records(&rest).iter().all(|r| r.boot == 1), "a boot of its own");
    assert_eq!((around.last.before, around.last.done), (4, 10));
}

#[test]
fn a_log_of_another_campaign_is_not_continued() {
    let (one, other) = (campaign("faults = 3"), campaign("faults = 3\nplaces.library = 9"));
    let (_, records, _) = run(&one, |_| benign().into(), &mut Around::until(99));
    let text = records.into_iter().map(|r| Line::Fault(Box::new(r)).written() + "\n").collect();
    let before = Log::merge(&[crate::log::File { name: "log".into(), text }]).unwrap();
    let plan = plan(&other);
    let machine = FakeMachine::new(|_: &Fault| benign().into());
    let mut runner = Runner::new(&other, &plan, Shard::WHOLE, machine).unwrap();
    let error = runner.run(Some(&before), &mut Vec::new(), &mut Around::until(99)).unwrap_err();
    assert!(error.to_string().contains("places differ"), "{error}");
}

#[test]
fn a_lost_machine_is_tried_again_but_not_for_ever() {
    let mut count = 0;
    let script = |_: &Fault| {
        count += 1;
        if count == 2 || count == 3 { Step::Lost } else { benign().into() }
    };
    let (end, records, machine) = run(&campaign("faults = 3"), script, &mut Around::until(99));
    assert_eq!((end, records.len(), machine.boots), (End::Goal, 3, 3));
    assert_eq!(machine.injected[1], machine.injected[2], "the same fault again");

    let campaign = campaign("faults = 3");
    let plan = plan(&campaign);
    let machine = FakeMachine::new(|_: &Fault| Step::Lost);
    let mut runner = Runner::new(&campaign, &plan, Shard::WHOLE, machine).unwrap();
    let error = runner.run(None, &mut Vec::new(), &mut Around::until(99)).unwrap_err();
    assert!(matches!(error, Stopped::Machine { number: 0, .. }), "{error}");
}

#[test]
fn a_model_that_the_machine_cannot_inject_is_refused_before_anything_runs() {
    let campaign = campaign("faults = 3");
    let mut machine = FakeMachine::new(|_: &Fault| benign().into());
    machine.cannot = vec![Model::Kill, Model::Late];
    let plan = plan(&campaign);
    let error = Runner::new(&campaign, &plan, Shard::WHOLE, machine).err().unwrap();
    assert_eq!(error.to_string(), "this machine cannot inject: kill");
}

#[test]
fn a_replayed_line_injects_the_same_fault() {
    let campaign = campaign("faults = 5");
    let (_, records, _) = run(&campaign, |_| escape().into(), &mut Around::until(99));
    let plan = plan(&campaign);
    let line = Line::Fault(Box::new(records[3].clone())).written();
    let record = Record::for_replay(&line, plan.image()).unwrap();
    let machine = FakeMachine::new(|_: &Fault| recovered().into());
    let mut runner = Runner::new(&campaign, &plan, Shard::WHOLE, machine).unwrap();
    let again = runner.replay(&record, &mut Vec::new()).unwrap();
    assert_eq!(again.fault, records[3].fault);
    assert_eq!(again.outcome, Outcome::RecoveredInvisible);
    assert_eq!(runner.into_machine().injected, [records[3].fault.clone()]);
}

#[test]
fn the_rest_takes_as_long_as_what_was_done_in_this_run() {
    let progress = |done, before, elapsed| Progress {
        done,
        before,
        goal: 100,
        elapsed: Us::new(elapsed),
        ..Progress::default()
    };
    assert_eq!(progress(60, 50, 1_000).remaining(), Some(Us::new(4_000)));
    assert_eq!(progress(50, 50, 1_000).remaining(), None);
    assert_eq!(progress(100, 0, 1_000).remaining(), Some(Us::new(0)));
}
