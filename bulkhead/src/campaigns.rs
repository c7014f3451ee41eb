//! What the verbs about fault campaigns print, and their exit codes.

use crate::{
    Inject, Report as Which,
    verbs::{count_interrupts, print_json},
};
use bulkhead::{
    inject::{self, Done, InjectError, Options, Reported},
    machine::Observer,
    progress::Progress,
};
use bulkhead_link::FromDom0;
use faults::{
    Record, Report,
    campaign::Goal,
    report::terminal::{self, Style},
    runner::End,
};
use serde_json::json;
use std::io::{self, IsTerminal, Write};

/// Tells on the standard error, beside the bar.
struct Show(Progress);

impl Observer for Show {
    fn message(&mut self, _: &FromDom0) {}

    fn say(&mut self, text: &str) {
        self.0.aside(|| eprintln!("{text}"));
    }

    fn progress(&self) -> Progress {
        self.0.clone()
    }
}

pub fn inject(args: Inject) -> u8 {
    let goal = match (args.faults, args.activated) {
        (Some(faults), _) => Some(Goal::Faults(faults)),
        (_, Some(activated)) => Some(Goal::Activated(activated)),
        _ => None,
    };
    let options = Options {
        file: args.file,
        seed: args.seed,
        goal,
        shard: args.shard,
        replay: args.replay,
        out: args.out,
        resume: args.resume,
        accel: args.accel,
        interrupts: count_interrupts("it stops after this fault; once more to stop at once"),
        show_build: io::stderr().is_terminal(),
        command: command(),
    };
    match inject::run(&options, &mut Show(Progress::on_stderr())) {
        Ok(done) => {
            match &done {
                Done::Campaign { end, reported } => conclude(*end, reported, args.json),
                Done::Replay { before, now } => replayed(before, now, args.json),
            }
            done.exit_code()
        }
        Err(error) => refuse(error, args.json),
    }
}

pub fn report(which: &Which) -> u8 {
    let (done, as_json) = match which {
        Which::Merge { logs, out, json } => (
            inject::merge(logs, out).map(|reported| {
                tell_files(&reported);
                reported.report
            }),
            *json,
        ),
        Which::Show { logs, json } => (inject::show(logs), *json),
    };
    match done {
        Ok(report) => {
            print(&report, as_json);
            0
        }
        Err(error) => refuse(error, as_json),
    }
}

/// What was typed.
fn command() -> String {
    let words: Vec<_> = std::env::args().skip(1).collect();
    format!("cargo bulkhead {}", words.join(" "))
}

fn print(report: &Report, as_json: bool) {
    if as_json {
        print_json(report);
    } else {
        let colour = io::stdout().is_terminal();
        let _ = write!(io::stdout(), "{}", terminal::summary(report, Style { colour }));
    }
}

fn conclude(end: End, reported: &Reported, as_json: bool) {
    print(&reported.report, as_json);
    let why = match end {
        End::Goal => "the goal was reached",
        End::FaultLimit => "the limit of faults was reached",
        End::TimeLimit => "the limit of time was reached; --resume goes on",
        End::EscapeLimit => "as many faults escaped as the campaign allows",
        End::Interrupted => "interrupted; --resume goes on",
    };
    eprintln!("{why}");
    tell_files(reported);
}

fn tell_files(reported: &Reported) {
    for file in &reported.files {
        eprintln!("wrote {}", file.display());
    }
}

fn replayed(before: &Record, now: &Record, as_json: bool) {
    if as_json {
        return print_json(now);
    }
    let mut out = io::stdout().lock();
    let place = now.place.as_ref().map(|p| format!(" at {}+{:#x}", p.symbol, p.offset));
    let _ = writeln!(
        out,
        "fault {}, {}{}: {}",
        now.number,
        now.fault.model,
        place.unwrap_or_default(),
        now.fault.what()
    );
    for (when, record) in [("before", before), ("now", now)] {
        let why =
            record.seen.detected.as_ref().map(|d| format!(", {}: {}", d.cause.name(), d.reason));
        let _ = writeln!(out, "{when:>7}: {}{}", record.outcome.words(), why.unwrap_or_default());
    }
}

fn refuse(error: InjectError, as_json: bool) -> u8 {
    let code = error.exit_code();
    if as_json {
        print_json(&json!({
            "outcome": if code == 2 { "bad-request" } else { "stopped" },
            "error": error.to_string(),
            "help": error.remedy(),
        }));
    }
    eprintln!("{:?}", miette::Report::new(error));
    code
}
