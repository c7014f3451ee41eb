//! Runs set-ups for the system tests and keeps what was seen.

// Each test program uses its own part of this.
#![allow(dead_code)]

pub mod xen;

use bulkhead::{
    exec,
    machine::{Limits, Observer},
    remote::{self, RemoteError, RunListing},
    report::Report,
    run::{self, Options},
    session,
    setup::Accel,
    wire::Client,
};
use bulkhead_link::{Event, FromDom0, Reply, Request};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// TCG on a busy host of two cores is slow; a test that is stuck ends all the same.
const LIMIT: Duration = Duration::from_secs(240);

/// A guest that uses a disk's driver, says back what is typed and listens for requests.
pub const ECHO: &str = r#"
[driver.disk]
kernel = "disk"
[disk.scratch]
image = "scratch.raw"
size = "1M"
[guest.echo]
kernel = "echo"
memory = "16M"
disks = ["scratch"]
"#;

/// Looks until there is something, or the limit is reached.
pub fn wait<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let found = look();
        if found.is_some() || Instant::now() >= deadline {
            return found;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// What was seen of a run.
pub struct Ran {
    pub report: Report,
    /// Text of each console.
    pub consoles: BTreeMap<String, String>,
    /// Everything else, for the message of a test that fails.
    pub log: Vec<String>,
}

/// What has been seen so far.
#[derive(Clone, Default)]
struct Seen {
    consoles: BTreeMap<String, Vec<u8>>,
    log: Vec<String>,
}

impl Seen {
    fn story(&self) -> String {
        let mut story = self.log.join("\n");
        for (name, bytes) in &self.consoles {
            story.push_str(&format!("\n--- console of {name}\n{}", text(bytes)));
        }
        story
    }
}

/// Notes what is seen; clones note it in the same place.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Seen>>);

impl Recorder {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().expect("nobody panics with it")
    }
}

impl Observer for Recorder {
    fn message(&mut self, message: &FromDom0) {
        let mut seen = self.seen();
        match message {
            FromDom0::Event(Event::Console { domain, bytes }) => {
                seen.consoles.entry(domain.clone()).or_default().extend(bytes);
            }
            FromDom0::Event(event) => seen.log.push(format!("{event:?}")),
            FromDom0::Reply { .. } => {}
        }
    }

    fn say(&mut self, text: &str) {
        self.seen().log.push(text.to_owned());
    }
}

/// Text of a console.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).replace('\r', "")
}

/// Runs a set-up file on TCG.
///
/// # Panics
/// If the set-up is refused.
pub fn run_file(file: &Path, sets: &[String]) -> Ran {
    run_options(&Options { sets: sets.to_vec(), ..options(file) })
}

/// Runs a set-up given as text on a machine whose time is counted in instructions: how
/// busy the host is does not show in its figures.
pub fn run_text_by_instructions(folder: &Path, text: &str) -> Ran {
    let file = folder.join("set-up.toml");
    fs::write(&file, text).expect("the set-up is written");
    run_options(&Options { icount: true, ..options(&file) })
}

fn options(file: &Path) -> Options {
    Options {
        setup: file.to_owned(),
        limits: Limits { timeout: Some(LIMIT), ..Limits::default() },
        accel: Some(Accel::Tcg),
        ..Options::default()
    }
}

fn run_options(options: &Options) -> Ran {
    run_recorded(options, Recorder::default())
}

fn run_recorded(options: &Options, mut recorder: Recorder) -> Ran {
    let done = run::run(options, &mut recorder);
    // Whoever still looks at it is to find it.
    let seen = recorder.seen().clone();
    let report = done.unwrap_or_else(|e| panic!("{e}\n{}", seen.log.join("\n")));
    let consoles = seen.consoles.iter().map(|(name, bytes)| (name.clone(), text(bytes)));
    Ran { report, consoles: consoles.collect(), log: seen.log }
}

/// Runs a set-up given as text; its relative paths start at `folder`.
pub fn run_text(folder: &Path, text: &str) -> Ran {
    let file = folder.join("set-up.toml");
    fs::write(&file, text).expect("the set-up is written");
    run_file(&file, &[])
}

/// A run on a thread of its own, to be talked to as other terminals would.
pub struct Background {
    file: PathBuf,
    thread: JoinHandle<Ran>,
    recorder: Recorder,
}

impl Background {
    /// Starts a set-up given as text.
    pub fn start(folder: &Path, text: &str) -> Self {
        Self::start_with(folder, text, false)
    }

    /// Starts a set-up given as text, on a machine whose time is counted in instructions.
    pub fn start_by_instructions(folder: &Path, text: &str) -> Self {
        Self::start_with(folder, text, true)
    }

    fn start_with(folder: &Path, text: &str, icount: bool) -> Self {
        Self::spawn(folder, text, |options| Options { icount, ..options })
    }

    /// Starts a set-up given as text that may take as long as this.
    pub fn start_for(folder: &Path, text: &str, limit: Duration) -> Self {
        let limits = Limits { timeout: Some(limit), ..Limits::default() };
        Self::spawn(folder, text, |options| Options { limits, ..options })
    }

    fn spawn(folder: &Path, text: &str, change: impl FnOnce(Options) -> Options) -> Self {
        let file = folder.join("background.toml");
        fs::write(&file, text).expect("the set-up is written");
        let options = change(options(&file));
        let recorder = Recorder::default();
        let seen = recorder.clone();
        let thread = thread::spawn(move || run_recorded(&options, seen));
        Self { file, thread, recorder }
    }

    /// The number of the run and its socket, once they are there.
    fn found(&self) -> Option<(String, PathBuf)> {
        let runs = session::running().expect("the folder of runs");
        let ours = self.file.display().to_string();
        let found = runs.into_iter().find(|(info, _)| info.setup == ours);
        found.map(|(info, socket)| (info.id, socket))
    }

    fn id(&self) -> Option<String> {
        self.found().map(|(id, _)| id)
    }

    /// Runs a command in a guest.
    ///
    /// # Panics
    /// If the run ends before it is there, or the guest before the command has ended.
    pub fn exec(&self, guest: &str, command: exec::Command) -> exec::Output {
        self.try_exec(guest, command).unwrap_or_else(|e| panic!("{guest}: {e}"))
    }

    /// Runs a command in a guest, which may end before the command does.
    ///
    /// # Errors
    /// If it did, or there is no such guest.
    ///
    /// # Panics
    /// If the run ends before it is there.
    pub fn try_exec(
        &self,
        guest: &str,
        command: exec::Command,
    ) -> Result<exec::Output, RemoteError> {
        let deadline = Instant::now() + LIMIT;
        let socket = loop {
            if let Some((_, socket)) = self.found() {
                break socket;
            }
            let may_come = Instant::now() < deadline && !self.thread.is_finished();
            assert!(may_come, "the run did not start");
            thread::sleep(Duration::from_millis(50));
        };
        exec::output(&socket, guest, command)
    }

    /// Asks for listings until `done` takes one.
    ///
    /// # Panics
    /// If the run ends or the limit is reached before.
    pub fn wait_for<T>(&self, mut done: impl FnMut(&RunListing) -> Option<T>) -> T {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline && !self.thread.is_finished() {
            let listed = self.id().and_then(|id| remote::list(Some(&id)).ok());
            if let Some(found) = listed.as_ref().and_then(|l| done(l.first()?)) {
                return found;
            }
            thread::sleep(Duration::from_millis(200));
        }
        panic!("the run did not get there");
    }

    /// Looks at the text of a domain's console until `done` takes it.
    ///
    /// # Panics
    /// If the run ends before; its own limit sees to that.
    pub fn wait_for_text<T>(&self, domain: &str, mut done: impl FnMut(&str) -> Option<T>) -> T {
        loop {
            let is_over = self.thread.is_finished();
            let seen = self.recorder.seen();
            let shown = seen.consoles.get(domain).map(|bytes| text(bytes));
            if let Some(found) = shown.as_deref().and_then(&mut done) {
                return found;
            }
            assert!(!is_over, "the run did not get there:\n{}", seen.story());
            drop(seen);
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Types at a domain.
    ///
    /// # Panics
    /// If the run is over, or does not take it.
    pub fn type_at(&self, domain: &str, text: &str) {
        let (_, socket) = self.found().expect("the run goes on");
        let request = Request::ConsoleInput { domain: domain.into(), bytes: text.into() };
        let mut client = Client::connect(&socket).expect("the run listens");
        let reply = client.ask(request, LIMIT).expect("Dom0 replies");
        assert_eq!(reply, Reply::Taken { bytes: text.len() as u32 });
    }

    /// Destroys a domain.
    pub fn kill(&self, domain: &str) {
        let id = self.id().expect("the run goes on");
        remote::kill(Some(&id), domain).expect("killed");
    }

    /// The number of the run, for the verbs.
    pub fn number(&self) -> String {
        self.id().expect("the run goes on")
    }

    /// Restarts a driver domain.
    pub fn restart(&self, domain: &str) {
        let id = self.id().expect("the run goes on");
        remote::restart(Some(&id), domain).expect("restarted");
    }

    /// Crashes a domain.
    pub fn crash(&self, domain: &str) {
        let id = self.id().expect("the run goes on");
        remote::crash(Some(&id), domain).expect("crashed");
    }

    /// Waits for the end of the run.
    pub fn finish(self) -> Ran {
        self.thread.join().expect("the run ended")
    }
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
