//! The command line of `bulkhead`: one verb, one function of the library.
#![forbid(unsafe_code)]

use bulkhead::archive::{Dom0, pack};
use clap::{Parser, Subcommand};
use miette::{Context, IntoDiagnostic};
use std::{fs, path::PathBuf, process::ExitCode};

#[derive(Parser)]
#[command(name = "bulkhead", version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Packs a boot archive with any PV kernel as Dom0.
    #[command(hide = true)]
    Pack(Pack),
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

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Pack(args) => run_pack(&args),
    };
    match result {
        Ok(code) => code,
        Err(report) => {
            eprintln!("{report:?}");
            ExitCode::from(2)
        }
    }
}

fn read(path: &PathBuf) -> miette::Result<Vec<u8>> {
    fs::read(path)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot read {}", path.display()))
}

fn run_pack(args: &Pack) -> miette::Result<ExitCode> {
    let elf = read(&args.dom0)?;
    let core = args.core.as_ref().map(read).transpose()?;
    let payload = args
        .payload
        .as_ref()
        .map(read)
        .transpose()?
        .unwrap_or_default();
    let dom0 = Dom0 {
        elf: &elf,
        cmdline: &args.cmdline,
        frames: args.memory * 256,
    };
    let archive = pack(dom0, core.as_deref(), &payload).into_diagnostic()?;
    fs::write(&args.output, archive)
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot write {}", args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}
