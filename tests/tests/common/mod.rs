//! Runs set-ups for the system tests and keeps what was seen.

use bulkhead::{
    machine::{Limits, Observer},
    report::Report,
    run::{self, Options},
    setup::Accel,
};
use bulkhead_link::{Event, FromDom0};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

/// TCG on a busy host of two cores is slow; a test that is stuck ends all the same.
const LIMIT: Duration = Duration::from_secs(240);

/// What was seen of a run.
pub struct Ran {
    pub report: Report,
    /// Text of each console.
    pub consoles: BTreeMap<String, String>,
    /// Everything else, for the message of a test that fails.
    pub log: Vec<String>,
}

#[derive(Default)]
struct Recorder {
    consoles: BTreeMap<String, Vec<u8>>,
    log: Vec<String>,
}

impl Observer for Recorder {
    fn message(&mut self, message: &FromDom0) {
        match message {
            FromDom0::Event(Event::Console { domain, bytes }) => {
                self.consoles
                    .entry(domain.clone())
                    .or_default()
                    .extend(bytes);
            }
            FromDom0::Event(event) => self.log.push(format!("{event:?}")),
            FromDom0::Reply { .. } => {}
        }
    }

    fn say(&mut self, text: &str) {
        self.log.push(text.to_owned());
    }
}

/// Runs a set-up file on TCG.
///
/// # Panics
/// If the set-up is refused.
pub fn run_file(file: &Path, sets: &[String]) -> Ran {
    let options = Options {
        setup: file.to_owned(),
        sets: sets.to_vec(),
        limits: Limits {
            timeout: Some(LIMIT),
            ..Limits::default()
        },
        accel: Some(Accel::Tcg),
        ..Options::default()
    };
    let mut seen = Recorder::default();
    let report =
        run::run(&options, &mut seen).unwrap_or_else(|e| panic!("{e}\n{}", seen.log.join("\n")));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace('\r', "");
    let consoles = seen
        .consoles
        .into_iter()
        .map(|(name, bytes)| (name, text(bytes)))
        .collect();
    Ran {
        report,
        consoles,
        log: seen.log,
    }
}

/// Runs a set-up given as text; its relative paths start at `folder`.
pub fn run_text(folder: &Path, text: &str) -> Ran {
    let file = folder.join("set-up.toml");
    fs::write(&file, text).expect("the set-up is written");
    run_file(&file, &[])
}

impl Ran {
    /// Text of a domain's console; empty if it printed nothing.
    pub fn console(&self, domain: &str) -> &str {
        self.consoles.get(domain).map_or("", String::as_str)
    }

    /// All that was seen, for a person who has to find out why a test failed.
    pub fn story(&self) -> String {
        let mut story = format!("{:#?}\n{}\n", self.report, self.log.join("\n"));
        for (name, text) in &self.consoles {
            story.push_str(&format!("--- console of {name}\n{text}\n"));
        }
        story
    }
}
