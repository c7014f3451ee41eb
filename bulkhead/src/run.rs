//! `bulkhead run`: from a set-up file to a verdict.

use crate::{
    accel,
    artifacts::{self, Built},
    builtin::{self, Builtin},
    distro::Job,
    images::{self, Image},
    kernels::Kernels,
    machine::{self, CORE_LOG, Finished, LANE, LINK, Limits, Observer, QEMU_LOG},
    needs::{self, Need},
    plan::{self, Plan},
    qemu,
    report::{self, Report},
    session::Session,
    setup::{Accel, Domain, Kernel, Setup, SetupError},
    watch::{Outcome, Stop, Watch},
};
use bulkhead_link::OnFailure;
use std::{fs, path::PathBuf, sync::atomic::Ordering};

/// Lines of the core's output that are shown when it faulted.
const LAST_WORDS: usize = 60;

/// What to run and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub setup: PathBuf,
    /// `KEY=VALUE` laid over the set-up file.
    pub sets: Vec<String>,
    pub limits: Limits,
    /// In place of what the set-up says.
    pub accel: Option<Accel>,
    pub icount: bool,
    /// Leave the run's folder with its logs and archive behind.
    pub keep: bool,
    /// Show Cargo's own progress.
    pub show_build: bool,
}

/// Runs a set-up until its guests have ended.
///
/// # Errors
/// What is wrong with the request; nothing is left running.
pub fn run(options: &Options, observer: &mut dyn Observer) -> Result<Report, SetupError> {
    let setup = Setup::load(&options.setup, &options.sets)?;
    run_setup(&setup, options, observer)
}

/// As [`run`], for a set-up that is read already; `options.setup` is only its name.
///
/// # Errors
/// See [`run`].
pub fn run_setup(
    setup: &Setup,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Report, SetupError> {
    let Some(prepared) = prepare(setup, options, observer)? else {
        return Ok(not_started(Outcome::Interrupted));
    };
    let Prepared { plan, kvm, images, .. } = prepared;
    observer.say(&format!(
        "starting a machine of {} on {}: {} domains, {} disks",
        plan.memory,
        accel_word(kvm),
        plan.manifest.domains.len() + 1,
        plan.drives.len()
    ));
    let finished = start(&plan, kvm, options, observer)?;
    // Images stay locked until the machine is gone.
    drop(images);
    judge(&finished, &plan, kvm)
}

/// All that a machine is started from.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub plan: Plan,
    pub kvm: bool,
    /// Locked for as long as this lives.
    pub images: Vec<Image>,
    pub built: Built,
}

/// Checks, fetches, makes and builds what a set-up needs; `None` if the user stopped it.
pub(crate) fn prepare(
    setup: &Setup,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Option<Prepared>, SetupError> {
    // What the user can put right comes before minutes of building.
    let mut kernels = Kernels::default();
    plan::check_early(setup, &mut kernels)?;
    images::check_early(setup)?;
    ensure(setup, &kernels, observer)?;
    let fetched = with_job(options, observer, |job| kernels.fetch(setup, job));
    if is_interrupted(options) {
        return Ok(None);
    }
    fetched?;
    plan::check_early(setup, &mut kernels)?;
    let images = with_job(options, observer, |job| images::prepare(setup, job));
    if is_interrupted(options) {
        return Ok(None);
    }
    let images = images?;
    observer.say("building the core and the domains");
    let mut built = artifacts::build(&programs(setup), options.show_build);
    if built.is_ok() && kernels.want_initramfs(setup) {
        let tools = artifacts::build_guest_tools(options.show_build);
        built = built.and_then(|all| Ok(all.with(tools?)));
    }
    if is_interrupted(options) {
        return Ok(None);
    }
    let built = built.map_err(SetupError::plain)?;
    kernels.make_ramdisks(setup, &built)?;
    // The largest parts of the kernels are in the archive then.
    let plan = Plan::new(setup, &built, &images, &kernels, !options.icount)?;
    let kvm =
        accel::use_kvm(options.accel.unwrap_or(setup.machine.accel), options.icount, &plan.core)?;
    Ok(Some(Prepared { plan, kvm, images, built }))
}

/// Makes the images of a set-up that are missing and may be made, and lets go of them; false if
/// the user stopped it.
pub(crate) fn make_images(
    setup: &Setup,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<bool, SetupError> {
    images::check_early(setup)?;
    if !setup.disks.iter().all(|disk| disk.image.exists()) {
        ensure(setup, &Kernels::default(), observer)?;
    }
    // Several campaigns may copy the same images at the same time.
    let mut readers = setup.clone();
    readers.disks.iter_mut().for_each(|disk| disk.read_only = true);
    let made = with_job(options, observer, |job| images::prepare(&readers, job));
    if is_interrupted(options) {
        return Ok(false);
    }
    made.map(|_| true)
}

fn is_interrupted(options: &Options) -> bool {
    options.limits.interrupts.load(Ordering::Relaxed) > 0
}

/// Does long work that tells the observer, and that the user can stop.
fn with_job<T>(
    options: &Options,
    observer: &mut dyn Observer,
    work: impl FnOnce(&Job<'_>) -> T,
) -> T {
    let progress = observer.progress();
    let observer = std::cell::RefCell::new(observer);
    work(&Job {
        say: &|line| observer.borrow_mut().say(line),
        progress,
        interrupts: &options.limits.interrupts,
    })
}

fn ensure(setup: &Setup, kernels: &Kernels, observer: &mut dyn Observer) -> Result<(), SetupError> {
    let mut wanted = vec![Need::Qemu, Need::Target];
    wanted.extend(images::needs(setup));
    if kernels.want_initramfs(setup) {
        wanted.push(Need::GuestTarget);
    }
    let observer = std::cell::RefCell::new(observer);
    needs::ensure(&wanted, &|line| observer.borrow_mut().say(line)).map_err(|e| {
        SetupError::plain(e)
            .help("`bulkhead doctor` shows all that is needed; `bulkhead doctor --fix` installs it")
    })
}

/// The core, Dom0, and each builtin kernel of the set-up once.
fn programs(setup: &Setup) -> Vec<&'static Builtin> {
    let mut programs = vec![&builtin::CORE, &builtin::DOM0];
    if setup.care.iter().any(|care| care.on_failure == OnFailure::Fail) {
        programs.push(&builtin::REFUSER);
    }
    let guests = setup.guests.iter().map(|g| &g.domain);
    for Domain { kernel, .. } in setup.drivers.iter().chain(guests) {
        if let Kernel::Builtin(program) = kernel
            && !programs.contains(program)
        {
            programs.push(program);
        }
    }
    programs
}

fn start(
    plan: &Plan,
    kvm: bool,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Finished, SetupError> {
    let failed = |what: &str, e: std::io::Error| SetupError::plain(format!("{what}: {e}"));
    let mut session = Session::create(&options.setup.display().to_string())
        .map_err(|e| failed("cannot make a folder for the run", e))?;
    session.keep = options.keep;
    let archive = session.file("archive");
    fs::write(&archive, &plan.archive).map_err(|e| {
        failed("cannot write the boot archive", e).help(format!(
            "is there room for {} MiB at {}?",
            plan.archive.len() >> 20,
            archive.display()
        ))
    })?;
    if options.keep {
        observer.say(&format!("logs and archive stay in {}", session.file("").display()));
    }
    let (debug_log, link) = (session.file(CORE_LOG), session.file(LINK));
    let lane = session.file(LANE);
    let machine = qemu::Options {
        core: &plan.core,
        archive: &archive,
        memory: plan.memory,
        kvm,
        icount: options.icount,
        drives: &plan.drives,
        debug_log: &debug_log,
        link: Some(&link),
        lane: Some(&lane),
    };
    let errors = session.file(QEMU_LOG);
    let watch = Watch::new(&plan.manifest.domains);
    let limits = Limits { tell_clock: plan.manifest.clock_by_link, ..options.limits.clone() };
    machine::run(&session, || machine.start(&errors), watch, &limits, observer).map_err(|e| {
        failed("cannot start the machine", e).help("`bulkhead doctor` checks what it needs")
    })
}

const fn accel_word(kvm: bool) -> &'static str {
    if kvm { "kvm" } else { "tcg" }
}

fn judge(finished: &Finished, plan: &Plan, kvm: bool) -> Result<Report, SetupError> {
    let outcome = finished.watch.judge(&finished.stop);
    if outcome == Outcome::BadRequest {
        return Err(SetupError::plain(format!("QEMU refused to start:\n{}", finished.qemu_errors.trim()))
            .help("a disk or port that another program holds is named above; free it, or see `bulkhead list`"));
    }
    let listing = finished.watch.listing.as_ref();
    Ok(Report {
        outcome,
        reason: reason(finished),
        elapsed_s: finished.elapsed.as_secs_f64(),
        machine: report::Machine { accel: accel_word(kvm), cpus: 1, memory_mib: plan.memory.mib() },
        domains: finished.watch.reports().iter().map(Into::into).collect(),
        disks: listing.iter().flat_map(|l| &l.disks).map(Into::into).collect(),
        nets: Vec::new(),
        restarts: finished.watch.restarts.iter().map(Into::into).collect(),
        core: listing.map(|l| (&l.machine).into()),
    })
}

/// Why a run did not go well, for a person; empty if it did.
fn reason(finished: &Finished) -> String {
    let mut lines = match &finished.stop {
        Stop::Finished => Vec::new(),
        Stop::Stuck { guest, driver } => vec![format!("{guest} waits for {driver}, which is gone")],
        Stop::Timeout => vec!["the time limit was reached".into()],
        Stop::Interrupted => vec!["interrupted".into()],
        Stop::Machine(ended) => vec![machine_reason(*ended)],
        Stop::Version(theirs) => {
            vec![format!(
                "Dom0 speaks version {theirs} of the link, this tool {}",
                bulkhead_link::VERSION
            )]
        }
        Stop::NoDom0 => vec!["Dom0 did not come up".into()],
        Stop::NoShutdown => vec!["the machine did not shut down when asked, and was ended".into()],
    };
    lines.extend(finished.watch.complaints());
    if matches!(finished.stop, Stop::Machine(_) | Stop::NoDom0 | Stop::Version(_)) {
        lines.push("the core's last words:".into());
        lines.extend(last_lines(&finished.core_log));
        lines.extend(last_lines(&finished.qemu_errors));
    }
    lines.join("\n")
}

fn machine_reason(ended: qemu::Ended) -> String {
    match ended {
        qemu::Ended::CoreFault => "the core faulted".into(),
        qemu::Ended::Dom0Died => "Dom0 crashed".into(),
        qemu::Ended::Properly => "the machine was shut down from another terminal".into(),
        qemu::Ended::Refused => "QEMU refused to start".into(),
        qemu::Ended::Unasked(Some(code)) => {
            format!("the machine reset or QEMU left by itself (status {code})")
        }
        qemu::Ended::Unasked(None) => "QEMU was killed".into(),
    }
}

fn last_lines(log: &str) -> Vec<String> {
    let lines: Vec<_> = log.lines().map(|l| l.trim_end().to_owned()).collect();
    let from = lines.len().saturating_sub(LAST_WORDS);
    lines[from..].to_vec()
}

fn not_started(outcome: Outcome) -> Report {
    Report {
        outcome,
        reason: "interrupted before the machine was started".into(),
        elapsed_s: 0.0,
        machine: report::Machine { accel: accel_word(false), cpus: 1, memory_mib: 0 },
        domains: Vec::new(),
        disks: Vec::new(),
        nets: Vec::new(),
        restarts: Vec::new(),
        core: None,
    }
}
