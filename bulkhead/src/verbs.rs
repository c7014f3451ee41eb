//! What each verb prints, and its exit code.

mod demo;

pub use demo::demo;

use crate::{
    Boot, Doctor, Exec, List, MemSet, Named, Pack, Restart, Run, Size, Sysrq, Test, Waiting,
};
use bulkhead::{
    accel,
    archive::{self, Dom0},
    artifacts, check,
    exec::{self, Collected, Finished, Sink},
    lifecycle,
    machine::{Limits, Observer},
    needs::Need,
    progress::Progress,
    qemu::Ended,
    remote::{self, RemoteError},
    report,
    restarts::{self, Wanted},
    run::{self, Options},
    setup::{Accel, SetupError},
    size, solo,
    terminal::{Guests, Terminal},
    update,
    watch::exit_word,
};
use bulkhead_link::{
    Event, FromDom0, Reply,
    agent::{End, Stream},
};
use serde_json::json;
use std::{
    collections::BTreeSet,
    fs,
    io::{self, IsTerminal, Write},
    path::Path,
    sync::{Arc, atomic::AtomicU32, atomic::Ordering},
    time::Duration,
};

/// The step of coming up that is the last one.
const RUNNING: &str = "running";
/// The request was wrong.
const WRONG: u8 = 2;

pub fn print_json(value: &impl serde::Serialize) {
    // Plain data with string keys: encoding it cannot fail.
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    let _ = writeln!(io::stdout(), "{text}");
}

/// Counts Ctrl-C (and a request to terminate) instead of dying of it. The first one is
/// answered with `hint`.
pub fn count_interrupts(hint: &'static str) -> Arc<AtomicU32> {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    let set = ctrlc::set_handler(move || {
        if counted.fetch_add(1, Ordering::Relaxed) == 0 && !hint.is_empty() {
            // The terminal may be raw: a new line does not begin at its left.
            eprint!("\r\n{hint}\r\n");
        }
    });
    if let Err(e) = set {
        eprintln!("Ctrl-C will not shut down cleanly: {e}");
    }
    count
}

/// Shows a run on the terminal.
struct Show {
    terminal: Terminal,
    guests: BTreeSet<String>,
}

impl Observer for Show {
    fn message(&mut self, message: &FromDom0) {
        let event = match message {
            FromDom0::Event(event) => event,
            FromDom0::Reply { reply: Reply::Error(why), .. } => {
                return self.terminal.note("dom0", why);
            }
            FromDom0::Reply { .. } => return,
        };
        match event {
            Event::Ready { .. } => self.terminal.note("dom0", "running"),
            Event::Progress { domain, step } => {
                self.terminal.note(domain, step);
                if step == RUNNING {
                    self.terminal.runs(domain);
                }
            }
            Event::Console { domain, bytes } => {
                let is_guest = self.guests.contains(domain);
                self.terminal.console(domain, is_guest, bytes);
            }
            Event::Ended { domain, exit, reason } => {
                let why = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
                self.terminal.ended(domain);
                self.terminal.note(domain, &format!("ended: {}{why}", exit_word(*exit)));
            }
            Event::Quarantined { domain, reason, refuses } => {
                self.terminal.note(domain, &report::quarantine_line(domain, reason, *refuses));
            }
            Event::ConsoleRoom { .. } | Event::Agent { .. } => {}
            Event::Restarted(restart) => {
                self.terminal.note(&restart.driver, &report::restart_line(restart));
            }
            Event::Log { line } => self.terminal.note("dom0", line),
            Event::BuildFailed { domain, reason } => {
                self.terminal.note(domain, &format!("could not be built: {reason}"));
            }
        }
    }

    fn say(&mut self, text: &str) {
        self.terminal.say(text);
    }

    fn started(&mut self, socket: &Path) {
        self.terminal.reached_at(socket.to_owned());
    }

    fn progress(&self) -> Progress {
        self.terminal.progress()
    }
}

pub fn run(args: Run) -> u8 {
    let options = Options {
        setup: args.file,
        sets: args.set,
        limits: Limits {
            timeout: args.timeout.map(|s| Duration::from_secs(s.into())),
            interrupts: count_interrupts("guests are asked to power off; once more to end at once"),
            ..Limits::default()
        },
        accel: args.accel,
        icount: args.icount,
        keep: args.keep,
        show_build: io::stderr().is_terminal(),
    };
    let done = bulkhead::setup::Setup::load(&options.setup, &options.sets).and_then(|setup| {
        let guests: BTreeSet<_> = setup.guests.iter().map(|g| g.domain.name.clone()).collect();
        let to = if args.json { Guests::Stderr } else { Guests::Stdout };
        let mut terminal = Terminal::new(to, guests.len());
        if let Some(guest) = setup.guests.iter().find(|g| g.console) {
            terminal = terminal.attach(&guest.domain.name);
        }
        let mut show = Show { terminal, guests };
        let report = run::run_setup(&setup, &options, &mut show);
        let Show { mut terminal, guests } = show;
        terminal.finish(|name| guests.contains(name));
        report
    });
    match done {
        Ok(report) => {
            conclude(&report, args.json);
            report.outcome.exit_code()
        }
        Err(error) => refuse(error, args.json),
    }
}

/// Says why a request is wrong; the exit code.
fn refuse(error: SetupError, as_json: bool) -> u8 {
    if as_json {
        let told = json!({
            "outcome": "bad-request",
            "error": error.to_string(),
            "help": error.remedy(),
        });
        print_json(&told);
    }
    eprintln!("{:?}", miette::Report::new(error));
    WRONG
}

fn conclude(report: &report::Report, as_json: bool) {
    if as_json {
        print_json(report);
    } else {
        eprint!("{}", report::table(&report.domains, &report.disks));
        eprint!("{}", report::last_words(&report.domains));
        eprint!("{}", report::quarantines(&report.domains));
    }
    if !report.reason.is_empty() {
        eprintln!("{}", report.reason);
    }
    let word = serde_json::to_value(report.outcome).unwrap_or_default();
    eprintln!("{} after {:.1} s", word.as_str().unwrap_or_default(), report.elapsed_s);
}

pub fn test(args: Test) -> u8 {
    let options = check::Options { filter: args.filter, quick: args.quick, full: args.full };
    let counts = check::run(&options);
    println!("{} passed, {} failed", counts.passed, counts.failed);
    u8::from(counts.failed > 0)
}

/// The exit code of a verb that talks to a running machine.
fn remotely(done: Result<(), RemoteError>) -> u8 {
    let Err(error) = done else { return 0 };
    eprintln!("{error}");
    match error {
        RemoteError::Refused(_) | RemoteError::NotDone(_) | RemoteError::Io(_) => 1,
        _ => WRONG,
    }
}

pub fn list(args: &List) -> u8 {
    remotely(remote::list(args.run.as_deref()).map(|runs| {
        if args.json {
            print_json(&json!({ "runs": runs }));
        } else if runs.is_empty() {
            eprintln!("{}", RemoteError::NoRun);
        } else {
            let _ = write!(io::stdout(), "{}", remote::tables(&runs));
        }
    }))
}

pub fn console(args: &Named) -> u8 {
    let interrupts = count_interrupts("");
    remotely(remote::console(args.run.as_deref(), &args.name, &interrupts))
}

/// The command's output, as it comes.
struct Through;

impl Sink for Through {
    fn output(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        match stream {
            Stream::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush())
            }
            Stream::Stderr => io::stderr().write_all(bytes),
        }
    }

    fn say(&mut self, text: &str) {
        eprintln!("{text}");
    }
}

/// The command's output kept for JSON, and the tool's own lines where they belong.
#[derive(Default)]
struct Kept(Collected);

impl Sink for Kept {
    fn output(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        self.0.output(stream, bytes)
    }

    fn say(&mut self, text: &str) {
        eprintln!("{text}");
    }
}

pub fn exec(args: Exec) -> u8 {
    /// What a shell says of a command whose reader has left: 128 and SIGPIPE.
    const BROKEN_PIPE: u8 = 141;
    let seconds = |s: u32| Duration::from_secs(s.into());
    let stdin = args.interactive || !io::stdin().is_terminal();
    let command = exec::Command {
        argv: args.command.into_iter().map(std::os::unix::ffi::OsStringExt::into_vec).collect(),
        input: stdin.then(|| Box::new(io::stdin()) as Box<dyn io::Read + Send>),
        wait: seconds(args.wait),
        timeout: args.timeout.map(seconds),
    };
    let interrupts = count_interrupts("");
    let mut kept = Kept::default();
    let sink: &mut dyn Sink = if args.json { &mut kept } else { &mut Through };
    match remote::exec(args.run.as_deref(), &args.name, command, &interrupts, sink) {
        Ok(finished) => {
            if args.json {
                print_json(&exec_report(&finished, &kept.0));
            } else if let Finished::Refused { reason, .. } = &finished {
                eprintln!("{} cannot run it: {reason}", args.name);
            } else if finished == Finished::TimedOut {
                eprintln!("the time limit was reached");
            }
            finished.code()
        }
        Err(RemoteError::Io(e)) if e.kind() == io::ErrorKind::BrokenPipe => BROKEN_PIPE,
        Err(e) if args.json => {
            print_json(&json!({ "outcome": "bad-request", "error": e.to_string() }));
            WRONG
        }
        Err(e) => {
            eprintln!("{e}");
            WRONG
        }
    }
}

fn exec_report(finished: &Finished, kept: &Collected) -> serde_json::Value {
    let (outcome, signal, error) = match finished {
        Finished::Ended(End::Exited(_)) => ("exited", None, None),
        Finished::Ended(End::Signalled(signal)) => ("signalled", Some(signal), None),
        Finished::Refused { reason, .. } => ("refused", None, Some(reason)),
        Finished::TimedOut => ("timeout", None, None),
        Finished::Interrupted => ("interrupted", None, None),
    };
    json!({
        "outcome": outcome,
        "exit": finished.code(),
        "signal": signal,
        "error": error,
        "stdout": String::from_utf8_lossy(&kept.stdout),
        "stderr": String::from_utf8_lossy(&kept.stderr),
    })
}

pub fn kill(args: &Named) -> u8 {
    remotely(remote::kill(args.run.as_deref(), &args.name))
}

pub fn crash(args: &Named) -> u8 {
    remotely(remote::crash(args.run.as_deref(), &args.name))
}

pub fn restart(args: &Restart) -> u8 {
    let run = args.run.as_deref();
    match (&args.kernel, args.times) {
        (Some(kernel), _) => {
            let (show, progress) = (io::stderr().is_terminal(), Progress::on_stderr());
            remotely(update::update(run, &args.name, kernel, show, &progress))
        }
        (None, _) if args.original => remotely(update::to_original(run, &args.name)),
        (None, Some(times)) => restart_many(args, times),
        (None, None) => remotely(remote::restart(run, &args.name)),
    }
}

/// The exit code after Ctrl-C.
const INTERRUPTED: u8 = 130;

fn restart_many(args: &Restart, times: u32) -> u8 {
    let every = Duration::from_millis(args.every.into());
    let interrupts = count_interrupts("no further restarts; what they left is looked at");
    let done = restarts::restart_many(
        args.run.as_deref(),
        &args.name,
        Wanted { times, every },
        &Progress::on_stderr(),
        &interrupts,
    );
    let summary = match done {
        Ok(summary) => summary,
        Err(error) => return remotely(Err(error)),
    };
    match args.json {
        true => print_json(&summary),
        false => print!("{}", summary.text()),
    }
    match (summary.leaks.is_empty(), summary.interrupted) {
        (false, _) => 1,
        (true, true) => INTERRUPTED,
        (true, false) => 0,
    }
}

pub fn shutdown(args: &Waiting) -> u8 {
    let wait = args.wait.then(|| args.limit());
    remotely(lifecycle::shutdown(args.run.as_deref(), &args.name, wait))
}

pub fn reboot(args: &Waiting) -> u8 {
    let wait = args.wait.then(|| args.limit());
    remotely(lifecycle::reboot(args.run.as_deref(), &args.name, wait))
}

pub fn sysrq(args: &Sysrq) -> u8 {
    remotely(lifecycle::sysrq(args.run.as_deref(), &args.name, args.key))
}

pub fn mem_set(args: &MemSet) -> u8 {
    let wait = args.target.wait.then(|| args.target.limit());
    remotely(lifecycle::mem_set(args.target.run.as_deref(), &args.target.name, args.size, wait))
}

pub fn doctor(args: &Doctor) -> u8 {
    let say = |line: &str| eprintln!("{line}");
    let mut findings = Vec::new();
    for need in Need::ALL {
        let mut finding = need.find();
        if finding.found.is_none() && args.fix {
            match need.install(&say) {
                Ok(()) => finding = need.find(),
                Err(why) => eprintln!("{why}"),
            }
        }
        findings.push(finding);
    }
    let well = findings.iter().all(|f| f.found.is_some());
    let kvm = kvm_state();
    if args.json {
        let rows: Vec<_> = findings
            .iter()
            .map(|f| {
                json!({
                    "name": f.need.name(),
                    "purpose": f.need.purpose(),
                    "found": f.found,
                    "remedy": f.found.is_none().then(|| f.need.remedy()),
                })
            })
            .collect();
        print_json(&json!({ "ok": well, "needs": rows, "kvm": kvm }));
        return u8::from(!well);
    }
    for finding in &findings {
        match &finding.found {
            Some(found) => println!("ok       {:<34} {found}", finding.need.name()),
            None => {
                println!("missing  {:<34} it {}", finding.need.name(), finding.need.purpose());
                println!("         install it (as root where needed): {}", finding.need.remedy());
            }
        }
    }
    println!("info     {:<34} {kvm}", "KVM");
    u8::from(!well)
}

/// KVM is proven with the core, so this says only what can be known without building it.
fn kvm_state() -> &'static str {
    let built = artifacts::workspace().join("target/x86_64-unknown-none/release/bulkhead-core");
    let works = |core: &Path| accel::use_kvm(Accel::Kvm, false, core).is_ok();
    match (Path::new("/dev/kvm").exists(), built.is_file()) {
        (false, _) => "not there; machines run on TCG",
        (true, false) => "there; the first run will find out whether it works",
        (true, true) if works(&built) => "works",
        (true, true) => "there, but the core does not boot on it; machines run on TCG",
    }
}

pub fn size(args: &Size) -> u8 {
    let root = artifacts::workspace().join("kernel/src");
    let files = match size::count_tree(&root) {
        Ok(files) => files,
        Err(e) => {
            eprintln!("cannot read {}: {e}", root.display());
            return WRONG;
        }
    };
    let total: usize = files.iter().map(|f| f.1).sum();
    let short = |path: &Path| path.strip_prefix(&root).unwrap_or(path).display().to_string();
    if args.json {
        let rows: Vec<_> = files
            .iter()
            .map(|(path, lines)| json!({ "file": short(path), "lines": lines }))
            .collect();
        print_json(&json!({ "lines": total, "limit": size::LIMIT, "files": rows }));
    } else {
        for (path, lines) in &files {
            println!("{lines:>6}  {}", short(path));
        }
        println!("{total:>6}  lines of Rust in ring 0; the limit is {}", size::LIMIT);
    }
    u8::from(total >= size::LIMIT)
}

pub fn pack(args: &Pack) -> u8 {
    match try_pack(args) {
        Ok(()) => 0,
        Err(why) => {
            eprintln!("{why}");
            WRONG
        }
    }
}

fn try_pack(args: &Pack) -> Result<(), String> {
    let read =
        |path: &Path| fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()));
    let elf = read(&args.dom0)?;
    let core = args.core.as_deref().map(read).transpose()?;
    let payload = args.payload.as_deref().map(read).transpose()?.unwrap_or_default();
    let dom0 = Dom0 { elf: &elf, cmdline: &args.cmdline, frames: args.memory.saturating_mul(256) };
    let packed = archive::pack(dom0, core.as_deref(), &payload).map_err(|e| e.to_string())?;
    fs::write(&args.output, packed)
        .map_err(|e| format!("cannot write {}: {e}", args.output.display()))
}

pub fn boot(args: &Boot) -> u8 {
    let request = solo::Request {
        dom0: &args.dom0,
        cmdline: &args.cmdline,
        memory_mib: args.memory,
        limit: Duration::from_secs(args.timeout.into()),
    };
    let print = |bytes: &[u8]| {
        let _ = io::stdout().write_all(bytes).and_then(|()| io::stdout().flush());
    };
    match solo::boot(&request, &print) {
        Ok(solo::Booted { ended: Some(Ended::Properly), .. }) => 0,
        Ok(solo::Booted { ended: Some(ended), .. }) => {
            eprintln!("the machine ended: {ended:?}");
            3
        }
        Ok(solo::Booted { ended: None, .. }) => {
            eprintln!("the time limit was reached");
            124
        }
        Err(why) => {
            eprintln!("{why}");
            WRONG
        }
    }
}
