//! `bulkhead demo`: a stock Debian writes and verifies while the driver of its disks is
//! killed again and again. Judges whether the guest could tell; says how long answers stayed
//! away and what it cost. Knows of the machine only what any terminal could ask.

mod director;
mod dmesg;
mod fio;
mod image;
mod live;
mod report;
mod schedule;
mod series;
mod setup;

pub use live::Live;
pub use report::{Outcome, Report};
pub use setup::Guest;

use crate::{
    artifacts,
    machine::{Limits, Observer},
    needs, progress,
    report::Report as RunReport,
    run,
    setup::{Accel, SetupError},
    watch,
};
use bulkhead_link::{Event, FromDom0, Restart};
use director::{Director, Failed, Seen};
use report::Afterwards;
use schedule::Schedule;
use setup::Images;
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Least time between kills: a driver domain that has not come up can not be killed.
pub const LEAST_EVERY: Duration = Duration::from_millis(100);

/// What to show.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long kills are done, all stretches together.
    pub length: Duration,
    /// Time from kill to kill.
    pub every: Duration,
    /// About how long a stretch with kills is, and one without.
    pub stretch: Duration,
    pub guest: Guest,
    /// In place of KVM where it works.
    pub accel: Accel,
    /// Times the user has asked to stop.
    pub interrupts: Arc<AtomicU32>,
    /// Show Cargo's own progress.
    pub show_build: bool,
}

impl Options {
    fn schedule(&self) -> Result<Schedule, SetupError> {
        let kills = self.length.as_nanos() / self.every.as_nanos().max(1);
        let wrong = |what: &str, help: &str| Err(SetupError::plain(what).help(help.to_owned()));
        if self.every < LEAST_EVERY {
            return wrong("kills are too close together", "say --every 100ms or more");
        }
        match u32::try_from(kills) {
            Ok(0) => wrong("there is no time for a kill", "make --seconds longer than --every"),
            Ok(kills) => Ok(Schedule::new(kills, self.every, self.stretch)),
            Err(_) => wrong("these are too many kills", "make --seconds shorter"),
        }
    }
}

/// Who watches.
pub trait View {
    /// A line of the tool's own.
    fn say(&mut self, text: &str);
    /// Where long work shows how far it has come.
    fn progress(&self) -> progress::Progress;
    /// The picture, several times a second; none when there is nothing to draw any more.
    fn live(&mut self, live: Option<&Live>);
}

/// Shows it.
///
/// # Errors
/// What is wrong with the request, or missing on this host; nothing is left running.
pub fn run(options: &Options, view: Arc<Mutex<dyn View + Send>>) -> Result<Report, SetupError> {
    let schedule = options.schedule()?;
    let began = Instant::now();
    let images = Images::new(&artifacts::workspace().join("target/demo"))
        .map_err(|e| SetupError::plain(format!("cannot make a folder for the images: {e}")))?;
    let setup = setup::setup(options.guest, &images)?;
    let run_options = run::Options {
        setup: PathBuf::from(&setup.source.name),
        limits: Limits { interrupts: Arc::clone(&options.interrupts), ..Limits::default() },
        accel: Some(options.accel),
        show_build: options.show_build,
        ..run::Options::default()
    };
    let mut stage = Stage::new(options, &schedule, view);
    let ran = run::run_setup(&setup, &run_options, &mut stage)?;
    let (seen, done) = stage.finish();
    let mut after = judge_run(&ran, done);
    if ran.outcome == watch::Outcome::Ok {
        look_at_images(&images, &mut after)?;
    }
    after.elapsed = began.elapsed();
    Ok(Report::new(options, &schedule, seen, after))
}

/// What the run and the programme came to.
fn judge_run(ran: &RunReport, done: Result<(), Failed>) -> Afterwards {
    let mut after = Afterwards { accel: ran.machine.accel, ..Afterwards::default() };
    match done {
        Err(Failed::Interrupted) => after.is_interrupted = true,
        Err(failed) => after.failed.push(failed.to_string()),
        Ok(()) => {}
    }
    match ran.outcome {
        watch::Outcome::Ok => {}
        watch::Outcome::CoreFault | watch::Outcome::Dom0Failed => after.is_core_fault = true,
        // Asked for by the director if it could not go on, and told of already.
        watch::Outcome::Interrupted if !after.failed.is_empty() => {}
        watch::Outcome::Interrupted => after.is_interrupted = true,
        _ => after.failed.push("the run did not end well".into()),
    }
    if !ran.reason.is_empty() && ran.outcome != watch::Outcome::Interrupted {
        after.failed.push(ran.reason.clone());
    }
    after
}

fn look_at_images(images: &Images, after: &mut Afterwards) -> Result<(), SetupError> {
    let data = images.data();
    let read = image::check(&data);
    after.image = Some(read.map_err(|e| {
        SetupError::plain(format!("cannot read the data disk's image {}: {e}", data.display()))
    })?);
    after.file_system = file_system_complaints(&images.root())?;
    Ok(())
}

/// What e2fsck finds wrong with a file system that was left in order.
fn file_system_complaints(image: &Path) -> Result<Option<String>, SetupError> {
    let missing = || {
        SetupError::plain("e2fsck is not there")
            .help("install e2fsprogs: apt-get install e2fsprogs")
    };
    let program = needs::find_program("e2fsck").ok_or_else(missing)?;
    let done = Command::new(program).arg("-fn").arg(image).output();
    let done = done.map_err(|e| SetupError::plain(format!("cannot run e2fsck: {e}")))?;
    let said = String::from_utf8_lossy(&done.stdout).trim().to_owned();
    Ok((!done.status.success()).then_some(said))
}

/// Watches the run, and has the director begin when it can.
struct Stage {
    director: Option<Director>,
    running: Option<JoinHandle<(Seen, Result<(), Failed>)>>,
    tell: Sender<Restart>,
    interrupts: Arc<AtomicU32>,
    view: Arc<Mutex<dyn View + Send>>,
}

impl Stage {
    fn new(options: &Options, schedule: &Schedule, view: Arc<Mutex<dyn View + Send>>) -> Self {
        let (tell, restarts): (_, Receiver<Restart>) = mpsc::channel();
        let director = Director {
            socket: PathBuf::new(),
            process: 0,
            schedule: schedule.clone(),
            restarts,
            interrupts: Arc::clone(&options.interrupts),
            view: Arc::clone(&view),
            seen: Seen::default(),
        };
        let interrupts = Arc::clone(&options.interrupts);
        Self { director: Some(director), running: None, tell, interrupts, view }
    }

    /// Waits for the director, if there was one.
    fn finish(self) -> (Seen, Result<(), Failed>) {
        let nothing = |why: Failed| (Seen::default(), Err(why));
        match self.running.map(JoinHandle::join) {
            Some(Ok(done)) => done,
            Some(Err(_)) => nothing(Failed::Told("the programme panicked".into())),
            None if self.interrupts.load(Ordering::Relaxed) > 0 => nothing(Failed::Interrupted),
            None => nothing(Failed::Told("the machine did not start".into())),
        }
    }
}

impl Observer for Stage {
    fn message(&mut self, message: &FromDom0) {
        if let FromDom0::Event(Event::Restarted(restart)) = message {
            // Nobody listens any more when the director is done.
            let _ = self.tell.send(restart.clone());
        }
    }

    fn say(&mut self, text: &str) {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).say(text);
    }

    fn progress(&self) -> progress::Progress {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).progress()
    }

    fn process(&mut self, pid: u32) {
        if let Some(director) = &mut self.director {
            director.process = pid;
        }
    }

    fn started(&mut self, socket: &Path) {
        let Some(mut director) = self.director.take() else {
            return;
        };
        director.socket = socket.to_owned();
        let interrupts = Arc::clone(&self.interrupts);
        self.running = Some(thread::spawn(move || {
            let done = director.direct();
            if done.1.is_err() {
                // The guest has not been asked to power off: the run does that.
                interrupts.fetch_add(1, Ordering::Relaxed);
            }
            done
        }));
    }
}
