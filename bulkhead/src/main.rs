//! The command line of `bulkhead`: one verb, one function of the library.
#![forbid(unsafe_code)]

mod campaigns;
mod verbs;

use clap::{Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};

/// Builds, boots and watches Bulkhead set-ups.
///
/// Exit codes: 0 all well; 1 a guest or a test failed; 2 the request was wrong;
/// 3 the core or Dom0 failed; 124 the time limit was reached; 130 interrupted.
/// `exec` has the exit code of its command, 128 and the number for a signal.
#[derive(Parser)]
#[command(name = "bulkhead", version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Runs a set-up until its guests have ended.
    Run(Run),
    /// Shows it: kills the driver of a Debian's disks again and again while fio verifies.
    Demo(Demo),
    /// Runs a fault campaign against a driver domain.
    ///
    /// Writes log.jsonl, report.json and report.html, and prints a summary.
    /// Exit codes: 0 the campaign ran, with no escape; 1 a fault escaped, or the machine could
    /// not be kept running; 2 the request was wrong; 3 the core or Dom0 failed; 130 interrupted
    /// before the first fault.
    Inject(Inject),
    /// Makes reports of fault campaigns from their logs.
    #[command(subcommand)]
    Report(Report),
    /// Tests the workspace: host tests, then set-ups in QEMU.
    Test(Test),
    /// Lists the domains of running machines.
    List(List),
    /// Joins a domain's console; Ctrl-] leaves.
    Console(Named),
    /// Runs a command in a guest; its exit code becomes this one's.
    Exec(Exec),
    /// Destroys a domain at once.
    Kill(Named),
    /// Crashes a domain where it is: the guests of a driver domain go on.
    Crash(Named),
    /// Restarts a driver domain: its guests go on. Lifts a quarantine.
    Restart(Restart),
    /// Asks a guest's kernel to power off.
    Shutdown(Waiting),
    /// Asks a guest's kernel to reboot.
    Reboot(Waiting),
    /// Presses a key of Linux' magic SysRq in a guest.
    Sysrq(Sysrq),
    /// Asks a guest to shrink or grow to a size.
    MemSet(MemSet),
    /// Checks that everything needed is there.
    Doctor(Doctor),
    /// Counts the lines of the ring-0 core; fails at 10,000.
    Size(Size),
    /// Packs a boot archive with any PV kernel as Dom0.
    #[command(hide = true)]
    Pack(Pack),
    /// Boots any PV kernel as Dom0, alone, and prints what the debug UART says.
    #[command(hide = true)]
    Boot(Boot),
}

#[derive(clap::Args)]
struct Run {
    /// The set-up file.
    file: PathBuf,
    /// Replaces a value of the file, like guest.reader.disk=PATH; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Prints one JSON object at the end, and nothing else, on the standard output.
    #[arg(long)]
    json: bool,
    /// Stops the run after this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
    /// What executes the machine, in place of what the file says.
    #[arg(long, value_enum)]
    accel: Option<bulkhead::setup::Accel>,
    /// Makes time repeatable: one instruction is one nanosecond (TCG).
    #[arg(long)]
    icount: bool,
    /// Keeps the run's folder with its logs and the boot archive.
    #[arg(long)]
    keep: bool,
}

#[derive(clap::Args)]
struct Demo {
    /// How many seconds kills are done; as many more go by undisturbed, to compare with.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Time from kill to kill, like 500ms.
    #[arg(long, value_name = "TIME", default_value = "1s")]
    every: bulkhead::setup::Span,
    /// How long it goes without kills, and then with kills, in turns.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    stretch: bulkhead::setup::Span,
    /// The guest's kernel.
    #[arg(long, value_enum, default_value_t)]
    guest: bulkhead::demo::Guest,
    /// What executes the machine.
    #[arg(long, value_enum, default_value_t)]
    accel: bulkhead::setup::Accel,
    /// Writes report.json and report.html into this folder.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Prints one JSON object at the end, and nothing else, on the standard output.
    #[arg(long)]
    json: bool,
struct Inject {
    /// The campaign file.
    file: PathBuf,
    /// What the faults are drawn from, in place of what the file says.
    #[arg(long)]
    seed: Option<u64>,
    /// So many faults, in place of the goal of the file.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    faults: Option<u64>,
    /// So many faults that are activated, in place of the goal of the file.
    #[arg(long, value_name = "N", conflicts_with = "faults", value_parser = clap::value_parser!(u64).range(1..))]
    activated: Option<u64>,
    /// Every Nth fault from the Kth on: one machine's part of the campaign.
    #[arg(long, value_name = "K/N", default_value = "0/1")]
    shard: faults::Shard,
    /// Runs one fault again: a line of a log, or @FILE:NUMBER. No log is written.
    #[arg(long, value_name = "LINE")]
    replay: Option<String>,
    /// The folder for log and reports [default: target/campaigns/NAME of the workspace].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Goes on with the log that is in the folder.
    #[arg(long, conflicts_with = "replay")]
    resume: bool,
    /// Prints the report as one JSON object, and nothing else, on the standard output.
    #[arg(long)]
    json: bool,
    /// What executes the machine, in place of what the set-up says.
    #[arg(long, value_enum)]
    accel: Option<bulkhead::setup::Accel>,
}

#[derive(Subcommand)]
enum Report {
    /// Merges the logs of a campaign's shards, and writes one log with its report.
    Merge {
        /// JSON Lines files that `inject` wrote.
        #[arg(required = true, value_name = "LOG")]
        logs: Vec<PathBuf>,
        /// The folder for the merged log, report.json and report.html.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Prints the report as one JSON object in place of the summary.
        #[arg(long)]
        json: bool,
    },
    /// Prints the summary of logs.
    Show {
        /// JSON Lines files that `inject` wrote.
        #[arg(required = true, value_name = "LOG")]
        logs: Vec<PathBuf>,
        /// Prints the report as one JSON object in place of the summary.
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
struct Test {
    /// Only tests whose name contains this.
    #[arg(long)]
    filter: Option<String>,
    /// Only format, lints and host tests.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// The long tests too: every Debian kernel, all of the work at its full length. Half an hour more.
    #[arg(long)]
    full: bool,
}

#[derive(clap::Args)]
struct List {
    /// Number of the run, if several are going on.
    #[arg(long, value_name = "ID")]
    run: Option<String>,
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Named {
    /// Name of the domain.
    name: String,
    /// Number of the run, if several are going on.
    #[arg(long, value_name = "ID")]
    run: Option<String>,
}

#[derive(clap::Args)]
struct Restart {
    /// Name of the driver domain.
    name: String,
    /// Number of the run, if several are going on.
    #[arg(long, value_name = "ID")]
    run: Option<String>,
    /// Updates it: this is its image from now on, a builtin driver domain or an ELF file.
    #[arg(long, value_name = "KERNEL")]
    kernel: Option<String>,
    /// Goes back to the image of the set-up.
    #[arg(long, conflicts_with = "kernel")]
    original: bool,
    /// Restarts it so many times, each time once it has answered a guest, and compares what
    /// the machine uses before and after.
    #[arg(long, value_name = "N", conflicts_with_all = ["kernel", "original"], value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    times: Option<u32>,
    /// With --times: least milliseconds from one to the next.
    #[arg(long, value_name = "MS", default_value_t = 0, requires = "times")]
    every: u32,
    /// With --times: prints one JSON object.
    #[arg(long, requires = "times")]
    json: bool,
}

#[derive(clap::Args)]
struct Waiting {
    /// Name of the domain.
    name: String,
    /// Waits until it is done.
    #[arg(short, long)]
    wait: bool,
    /// Most seconds to wait.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u32,
    /// Number of the run, if several are going on.
    #[arg(long, value_name = "ID")]
    run: Option<String>,
}

impl Waiting {
    fn limit(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.timeout.into())
    }
}

#[derive(clap::Args)]
struct Sysrq {
    /// Name of the domain.
    name: String,
    /// The key: a letter or digit; `h` lists them on the guest's console.
    key: char,
    /// Number of the run, if several are going on.
    #[arg(long, value_name = "ID")]
    run: Option<String>,
}

#[derive(clap::Args)]
struct MemSet {
    #[command(flatten)]
    target: Waiting,
    /// Like 160M; at most the `memory` of the set-up file.
    size: bulkhead::setup::Size,
}

#[derive(clap::Args)]
struct Exec {
    /// Name of the guest.
    name: String,
    /// The command and its arguments; there is no shell in between.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
    /// Number of the run, if several are going on.
    #[arg(long, value_name = "ID")]
    run: Option<String>,
    /// Passes the standard input on even if it is a terminal.
    #[arg(short, long)]
    interactive: bool,
    /// Ends the command after this many seconds, with exit code 124.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout: Option<u32>,
    /// How many seconds to wait for the guest's agent.
    #[arg(long, value_name = "SECONDS", default_value_t = bulkhead::exec::WAIT.as_secs() as u32)]
    wait: u32,
    /// Prints one JSON object at the end in place of the command's output.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Doctor {
    #[arg(long)]
    json: bool,
    /// Installs what is missing, where that is possible.
    #[arg(long)]
    fix: bool,
}

#[derive(clap::Args)]
struct Size {
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Pack {
    /// ELF file with Xen notes.
    #[arg(long)]
    dom0: PathBuf,
    /// ELF file of the core, for its symbols.
    #[arg(long)]
    core: Option<PathBuf>,
    /// File that becomes Dom0's ramdisk.
    #[arg(long)]
    payload: Option<PathBuf>,
    #[arg(long, default_value = "")]
    cmdline: String,
    /// MiB of memory besides the ramdisk.
    #[arg(long, default_value_t = 64)]
    memory: u64,
    #[arg(short, long)]
    output: PathBuf,
}

#[derive(clap::Args)]
struct Boot {
    /// ELF file with Xen notes, or the name of a builtin kernel.
    #[arg(long)]
    dom0: PathBuf,
    #[arg(long, default_value = "")]
    cmdline: String,
    /// MiB of memory of the domain.
    #[arg(long, default_value_t = 64)]
    memory: u64,
    /// Seconds until the machine is ended.
    #[arg(long, default_value_t = 60)]
    timeout: u32,
}

fn main() -> ExitCode {
    let code = match Cli::parse().verb {
        Verb::Run(args) => verbs::run(args),
        Verb::Demo(args) => verbs::demo(&args),
        Verb::Inject(args) => campaigns::inject(args),
        Verb::Report(args) => campaigns::report(&args),
        Verb::Test(args) => verbs::test(args),
        Verb::List(args) => verbs::list(&args),
        Verb::Console(args) => verbs::console(&args),
        Verb::Exec(args) => verbs::exec(args),
        Verb::Kill(args) => verbs::kill(&args),
        Verb::Crash(args) => verbs::crash(&args),
        Verb::Restart(args) => verbs::restart(&args),
        Verb::Shutdown(args) => verbs::shutdown(&args),
        Verb::Reboot(args) => verbs::reboot(&args),
        Verb::Sysrq(args) => verbs::sysrq(&args),
        Verb::MemSet(args) => verbs::mem_set(&args),
        Verb::Doctor(args) => verbs::doctor(&args),
        Verb::Size(args) => verbs::size(&args),
        Verb::Pack(args) => verbs::pack(&args),
        Verb::Boot(args) => verbs::boot(&args),
    };
    ExitCode::from(code)
}
