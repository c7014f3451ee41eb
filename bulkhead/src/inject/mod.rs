//! `bulkhead inject`: from a campaign file to a log and a report. What a campaign is, and
//! what its figures mean, is the crate `faults`'; here is the machine that it runs on.

mod live;
mod machine;
mod orders;
mod report;
mod seen;
mod stage;

pub use report::{Reported, merge, show};

use crate::{
    machine::{Limits, Observer},
    progress::{Amount, Task},
    run::{self, Prepared},
    setup::{Accel, Setup, SetupError},
};
use faults::{
    Campaign, CampaignError, Image, Log, Plan, Record,
    campaign::Goal,
    log::File,
    outcome::Outcome,
    plan::Shard,
    runner::{End, Progress, Runner, Stopped, Surroundings},
    units::{Seed, Us},
};
use machine::CampaignMachine;
use orders::Orders;
use stage::Staged;
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

/// What to do, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The campaign file.
    pub file: PathBuf,
    /// In place of what the file says.
    pub seed: Option<u64>,
    /// In place of the file's goal.
    pub goal: Option<Goal>,
    pub shard: Shard,
    /// One line of a log, or `@FILE:NUMBER`, to be run again.
    pub replay: Option<String>,
    /// Where log and report go; by default a folder of the workspace.
    pub out: Option<PathBuf>,
    /// Goes on with the log that is there.
    pub resume: bool,
    pub accel: Option<Accel>,
    /// Times the user has asked to stop: after this fault, at once.
    pub interrupts: Arc<AtomicU32>,
    /// Show Cargo's own progress.
    pub show_build: bool,
    /// What was typed, for the report.
    pub command: String,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum InjectError {
    /// The set-up is wrong.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Setup(#[from] SetupError),
    /// The campaign is, or a log.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Campaign(#[from] CampaignError),
    /// The machine could not be kept running, or the log not be written.
    #[error("{0}")]
    Stopped(String),
    /// The user stopped it before there was anything.
    #[error("interrupted before the first fault")]
    Interrupted,
}

impl From<Stopped> for InjectError {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Request(error) => Self::Campaign(error),
            other => Self::Stopped(other.to_string()),
        }
    }
}

impl InjectError {
    /// The tool's exit code.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Setup(_) | Self::Campaign(_) => 2,
            Self::Stopped(_) => 1,
            Self::Interrupted => 130,
        }
    }

    /// What the user can do, if that is known.
    pub fn remedy(&self) -> Option<&str> {
        match self {
            Self::Setup(error) => error.remedy(),
            Self::Campaign(error) => error.remedy(),
            Self::Stopped(_) | Self::Interrupted => None,
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub enum Done {
    /// A campaign, with the files that it left.
    Campaign { end: End, reported: Box<Reported> },
    /// A fault that was run again: as it went before, and now.
    Replay { before: Box<Record>, now: Box<Record> },
}

impl Done {
    /// The tool's exit code: escapes are what a campaign looks for.
    pub fn exit_code(&self) -> u8 {
        let code = |records: &mut dyn Iterator<Item = &Record>| {
            let escapes: Vec<_> = records.filter(|r| r.outcome == Outcome::Escape).collect();
            match (escapes.is_empty(), escapes.iter().any(|r| r.seen.core.is_some())) {
                (true, _) => 0,
                (false, false) => 1,
                (false, true) => 3,
            }
        };
        match self {
            Self::Campaign { reported, .. } => code(&mut reported.report.escapes.iter()),
            Self::Replay { now, .. } => code(&mut std::iter::once(&**now)),
        }
    }
}

/// Runs a campaign, or one fault of it again.
///
/// # Errors
/// See [`InjectError`]. What a log has by then stays.
pub fn run(options: &Options, observer: &mut dyn Observer) -> Result<Done, InjectError> {
    let campaign = read_campaign(options)?;
    let setup = Setup::load(&campaign.setup, &[])?;
    let replay = options.replay.as_deref().map(line_to_replay).transpose()?;
    let out = options.out.clone().unwrap_or_else(|| default_out(&options.file));
    let log = out.join(log_name(options.shard));
    let before = match &replay {
        None => log_before(options, &log)?,
        Some(_) => None,
    };
    let folder = Work::create(&out)?;
    let staged = stage::stage(&campaign, setup.clone(), &folder.0)?;
    let Some((prepared, staged)) = prepare(options, &setup, staged, observer)? else {
        return Err(InjectError::Interrupted);
    };
    let image = read_image(&prepared, &staged)?;
    let orders = Orders::new(&image);
    let plan = Plan::new(&campaign, image)?;
    let record = replay.map(|line| Record::for_replay(&line, plan.image())).transpose()?;
    let machine = CampaignMachine::new(
        &prepared,
        &staged,
        &campaign.driver,
        campaign.front.as_deref(),
        orders,
        Arc::clone(&options.interrupts),
    );
    let mut runner = Runner::new(&campaign, &plan, options.shard, machine)?;
    if let Some(record) = record {
        observer.say(&format!("fault {} again: {}", record.number, record.fault.what()));
        let now = stoppable(options, runner.replay(&record, &mut io::sink()))?;
        return Ok(Done::Replay { before: Box::new(record), now: Box::new(now) });
    }
    let end = campaign_run(options, &mut runner, before.as_ref(), &log, observer)?;
    drop(runner);
    let about = report::About {
        subject: format!("driver domain `{}` of {}", campaign.driver, campaign.setup.display()),
        command: options.command.clone(),
        replay: format!("cargo bulkhead inject {} --replay", options.file.display()),
    };
    let reported = report::write(&[log], &out, options.shard, &about)?;
    Ok(Done::Campaign { end, reported: Box::new(reported) })
}

fn read_campaign(options: &Options) -> Result<Campaign, CampaignError> {
    let mut campaign = Campaign::load(&options.file)?;
    if let Some(seed) = options.seed {
        campaign.seed = Seed::new(seed).ok_or_else(|| {
            CampaignError::plain(format!("seed {seed} is out of range"))
                .help("a seed is a number from 0 to 2^63 - 1")
        })?;
    }
    campaign.goal = options.goal.unwrap_or(campaign.goal);
    Ok(campaign)
}

/// The line itself, or fault NUMBER of a log.
fn line_to_replay(text: &str) -> Result<String, CampaignError> {
    let Some(named) = text.strip_prefix('@') else { return Ok(text.to_owned()) };
    let wrong = || {
        CampaignError::plain(format!("`{text}` names no fault of a log"))
            .help("write @FILE:NUMBER, with the number that the line has in it; or the line itself")
    };
    let (file, number) = named.rsplit_once(':').ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let log = Log::merge(&[File::read(Path::new(file))?])?;
    let record = log.records.get(&number).ok_or_else(|| {
        CampaignError::plain(format!("{file} has no fault {number}"))
            .help("`report show` lists those to replay")
    })?;
    Ok(faults::record::Line::Fault(Box::new(record.clone())).written())
}

fn default_out(file: &Path) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default();
    crate::artifacts::workspace().join("target/campaigns").join(stem)
}

fn log_name(shard: Shard) -> String {
    match shard {
        Shard::WHOLE => "log.jsonl".into(),
        shard => format!("log-{}.jsonl", shard.to_string().replace('/', "-of-")),
    }
}

/// What a log has from an earlier run.
fn log_before(options: &Options, log: &Path) -> Result<Option<Log>, CampaignError> {
    let length = fs::metadata(log).map_or(0, |meta| meta.len());
    match (length, options.resume) {
        (0, _) => Ok(None),
        (_, true) => Log::merge(&[File::read(log)?]).map(Some),
        (_, false) => {
            Err(CampaignError::plain(format!("there is a log already: {}", log.display()))
                .help("--resume goes on with it; --out DIR writes elsewhere"))
        }
    }
}

/// The folder with the images that the machine runs on; gone with the campaign.
struct Work(PathBuf);

impl Work {
    fn create(out: &Path) -> Result<Self, SetupError> {
        let folder = out.join(format!("machine-{}", std::process::id()));
        match fs::create_dir_all(&folder) {
            // QEMU has a working directory of its own.
            Ok(()) => Ok(Self(fs::canonicalize(&folder).unwrap_or(folder))),
            Err(error) => {
                Err(SetupError::plain(format!("cannot make {}: {error}", folder.display()))
                    .help("give another folder with --out DIR"))
            }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes the images of the user's set-up where they are missing, copies them, and builds what
/// runs.
fn prepare(
    options: &Options,
    setup: &Setup,
    staged: Staged,
    observer: &mut dyn Observer,
) -> Result<Option<(Prepared, Staged)>, InjectError> {
    let run_options = run::Options {
        setup: PathBuf::from(&setup.source.name),
        limits: Limits { interrupts: Arc::clone(&options.interrupts), ..Limits::default() },
        accel: options.accel,
        show_build: options.show_build,
        ..run::Options::default()
    };
    if !run::make_images(setup, &run_options, observer)? {
        return Ok(None);
    }
    for (from, to) in &staged.copies {
        fs::copy(from, to).map_err(|error| {
            SetupError::plain(format!("cannot copy {}: {error}", from.display()))
        })?;
    }
    let prepared = run::prepare(&staged.setup, &run_options, observer)?;
    Ok(prepared.map(|mut prepared| {
        // Its images are gone with the campaign, and a host that is slow to write is no hang.
        prepared.plan.drives.iter_mut().for_each(|drive| drive.is_scratch = true);
        (prepared, staged)
    }))
}

fn read_image(prepared: &Prepared, staged: &Staged) -> Result<Image, InjectError> {
    let path = prepared
        .built
        .file(staged.program)
        .ok_or_else(|| SetupError::plain(format!("{} was not built", staged.program.name)))?;
    let bytes = fs::read(path)
        .map_err(|error| SetupError::plain(format!("cannot read {}: {error}", path.display())))?;
    Ok(Image::parse(&bytes)?)
}

/// Tells a machine that was lost from one that the user stopped.
fn stoppable<T>(options: &Options, result: Result<T, Stopped>) -> Result<T, InjectError> {
    match result {
        Err(Stopped::Machine { .. }) if options.interrupts.load(Ordering::Relaxed) > 0 => {
            Err(InjectError::Interrupted)
        }
        other => Ok(other?),
    }
}

fn campaign_run(
    options: &Options,
    runner: &mut Runner<'_, CampaignMachine<'_>>,
    before: Option<&Log>,
    log: &Path,
    observer: &mut dyn Observer,
) -> Result<End, InjectError> {
    let mut file =
        fs::File::options().create(true).append(true).open(log).map_err(|error| {
            SetupError::plain(format!("cannot write {}: {error}", log.display()))
        })?;
    if before.is_some() {
        // The line that was cut off, if one was, ends here.
        end_line(&mut file, log)?;
    }
    let task = observer.progress().begin("injecting", Amount::Unknown);
    let mut around = Around {
        interrupts: Arc::clone(&options.interrupts),
        began: Instant::now(),
        task,
        told: 0,
    };
    let end = runner.run(before, &mut file, &mut around);
    drop(around);
    match stoppable(options, end) {
        // Between two boots, with a log that has something in it.
        Err(InjectError::Interrupted) if file.metadata().is_ok_and(|m| m.len() > 0) => {
            Ok(End::Interrupted)
        }
        other => other,
    }
}

/// Takes off what follows the last whole line.
fn end_line(file: &mut fs::File, log: &Path) -> Result<(), InjectError> {
    let failed = |error: io::Error| InjectError::Stopped(format!("{}: {error}", log.display()));
    let text = fs::read(log).map_err(failed)?;
    let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    if whole < text.len() {
        file.set_len(whole as u64).map_err(failed)?;
    }
    file.flush().map_err(failed)
}

/// The user, the clock and the bar.
struct Around {
    interrupts: Arc<AtomicU32>,
    began: Instant,
    task: Task,
    told: u64,
}

impl Surroundings for Around {
    fn is_interrupted(&mut self) -> bool {
        self.interrupts.load(Ordering::Relaxed) > 0
    }

    fn elapsed(&mut self) -> Us {
        Us::new(self.began.elapsed().as_micros() as u64)
    }

    fn progress(&mut self, progress: &Progress, last: &Record) {
        if self.told == 0 {
            self.task.set_amount(Amount::Steps(progress.goal));
        }
        self.task.note(report::state(progress));
        self.task.advance(progress.done.saturating_sub(self.told));
        self.told = progress.done;
        if last.outcome == Outcome::Escape {
            self.task.phase(&format!("fault {} escaped", last.number));
        }
    }
}
