//! The verbs that talk to a machine another terminal runs: `list`, `kill`, `console`.

use crate::{
    console::{self, Left, Manner},
    exec,
    raw::Raw,
    report::{self, Core, Disk, Domain},
    session::{self, Info},
    setup::suggest,
    wire::Client,
};
use bulkhead_link::{Listing, Reply, Request, State};
use serde::Serialize;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::AtomicU32,
    time::Duration,
};

/// How long Dom0 may take to reply.
const LIMIT: Duration = Duration::from_secs(10);
/// Why a verb could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error("no machine is running; `bulkhead run FILE.toml` starts one")]
    NoRun,
    #[error("several machines are running; choose one with --run: {0}")]
    Several(String),
    #[error("no machine with the number {wrong} is running; {hint}")]
    UnknownRun { wrong: String, hint: String },
    #[error("there is no domain `{wrong}`; {hint}")]
    UnknownDomain { wrong: String, hint: String },
    #[error("`{image}` cannot be the image of a driver domain: {why}")]
    BadImage { image: String, why: String },
    #[error("Dom0 refused: {0}")]
    Refused(String),
    #[error("{0}")]
    NotDone(String),
    #[error(
        "{domain} has no agent to run commands: it has a kernel of this workspace, or the set-up says `agent = false`"
    )]
    NoAgent { domain: String },
    #[error(
        "the agent of {domain} was not heard of within {waited_s} s; is the guest up, with the ramdisk that this tool makes and a kernel with CONFIG_HVC_XEN_FRONTEND? `bulkhead console {domain}` shows; --wait SECONDS waits longer"
    )]
    SilentAgent { domain: String, waited_s: u64 },
    #[error(
        "the agent of {domain} speaks version {theirs}, this tool {}; start the guest with the ramdisk that this tool makes",
        bulkhead_link::agent::VERSION
    )]
    AgentVersion { domain: String, theirs: u32 },
    #[error("the command in {domain} was lost: {why}")]
    Lost { domain: String, why: String },
    #[error("{domain} has ended")]
    Ended { domain: String },
    #[error("the machine has ended")]
    Over,
    #[error("cannot talk to the machine: {0}")]
    Io(#[from] io::Error),
}

pub(crate) type Result<T> = std::result::Result<T, RemoteError>;

/// One run in the output of `list --json`.
#[derive(Debug, Serialize)]
pub struct RunListing {
    #[serde(flatten)]
    pub info: Info,
    pub domains: Vec<Domain>,
    pub disks: Vec<Disk>,
    pub core: Core,
}

/// Lists what runs: of one run, or of all.
///
/// # Errors
/// If there is none, or one does not answer.
pub fn list(run: Option<&str>) -> Result<Vec<RunListing>> {
    let runs = match run {
        Some(_) => vec![choose(run)?],
        None => session::running()?,
    };
    runs.into_iter()
        .map(|(info, socket)| {
            let listing = listing(&mut Client::connect(&socket)?)?;
            Ok(RunListing {
                info,
                domains: listing.domains.iter().map(Into::into).collect(),
                disks: listing.disks.iter().map(Into::into).collect(),
                core: (&listing.machine).into(),
            })
        })
        .collect()
}

/// The listings as tables for a person.
pub fn tables(runs: &[RunListing]) -> String {
    let table = |run: &RunListing| {
        format!(
            "run {} of {}\n{}{}",
            run.info.id,
            run.info.setup,
            report::table(&run.domains, &run.disks),
            report::quarantines(&run.domains)
        )
    };
    runs.iter().map(table).collect::<Vec<_>>().join("\n")
}

/// Destroys a domain.
///
/// # Errors
/// If there is no such domain or Dom0 refuses.
pub fn kill(run: Option<&str>, domain: &str) -> Result<()> {
    order(run, domain, Request::Kill { domain: domain.into() })
}

/// Crashes a domain at whatever instruction it is.
///
/// # Errors
/// If there is no such domain or Dom0 refuses.
pub fn crash(run: Option<&str>, domain: &str) -> Result<()> {
    order(run, domain, Request::Crash { domain: domain.into() })
}

/// Restarts a driver domain under its guests.
///
/// # Errors
/// If there is no such driver domain or Dom0 refuses.
pub fn restart(run: Option<&str>, domain: &str) -> Result<()> {
    order(run, domain, Request::Restart { domain: domain.into() })
}

/// Has Dom0 do something with a domain that is there.
fn order(run: Option<&str>, domain: &str, request: Request) -> Result<()> {
    match connect_for(run, domain)?.ask(request, LIMIT)? {
        Reply::Error(why) => Err(RemoteError::Refused(why)),
        _ => Ok(()),
    }
}

/// Runs a command in a guest; see [`exec::exec`].
///
/// # Errors
/// If there is no such guest, it has no agent, or the connection is lost.
pub fn exec(
    run: Option<&str>,
    domain: &str,
    command: exec::Command,
    interrupts: &AtomicU32,
    sink: &mut dyn exec::Sink,
) -> Result<exec::Finished> {
    let (_, socket) = choose(run)?;
    let listing = listing(&mut Client::connect(&socket)?)?;
    let found = listing.domains.iter().rev().find(|d| d.name == domain);
    if found.is_some_and(|d| matches!(d.state, State::Stopped | State::Crashed)) {
        return Err(RemoteError::Ended { domain: domain.into() });
    }
    // One that is not listed may be about to be built: its agent is waited for. The run
    // knows which domains there will be.
    let finished = exec::exec(&socket, domain, command, interrupts, sink);
    match (finished, found) {
        // A run knows nothing of the agent of what is not there.
        (Err(RemoteError::NoAgent { .. }), None) => Err(unknown(&listing, domain)),
        (finished, _) => finished,
    }
}

/// Joins a domain's console until Ctrl-], a signal, or the end of the domain or the run.
///
/// # Errors
/// If there is no such domain.
pub fn console(run: Option<&str>, domain: &str, interrupts: &AtomicU32) -> Result<()> {
    let (_, socket) = choose(run)?;
    known(&mut Client::connect(&socket)?, domain)?;
    let raw = Raw::enter();
    if raw.is_some() {
        eprint!("console of {domain}; Ctrl-] leaves\r\n");
    }
    let manner = Manner {
        input: Some(Box::new(io::stdin())),
        detach: raw.is_some(),
        leave_at_end: true,
        interrupts,
    };
    let mut show = |bytes: &[u8]| {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush())
    };
    let left = console::attend(&socket, domain, manner, &mut show);
    drop(raw);
    if let Left::Ended(reason) = left? {
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        eprintln!("\n{domain} has ended{why}");
    }
    Ok(())
}

fn choose(run: Option<&str>) -> Result<(Info, PathBuf)> {
    pick(session::running()?, run)
}

fn pick(mut runs: Vec<(Info, PathBuf)>, run: Option<&str>) -> Result<(Info, PathBuf)> {
    let ids = runs.iter().map(|(i, _)| format!("{} ({})", i.id, i.setup)).collect::<Vec<_>>();
    match (run, runs.len()) {
        (_, 0) => Err(RemoteError::NoRun),
        (None, 1) => Ok(runs.remove(0)),
        (None, _) => Err(RemoteError::Several(ids.join(", "))),
        (Some(wanted), _) => match runs.iter().position(|(i, _)| i.id == wanted) {
            Some(at) => Ok(runs.remove(at)),
            None => Err(RemoteError::UnknownRun {
                wrong: wanted.into(),
                hint: format!("there are: {}", ids.join(", ")),
            }),
        },
    }
}

pub(crate) fn connect_for(run: Option<&str>, domain: &str) -> Result<Client> {
    let (_, socket) = choose(run)?;
    checked(&socket, domain)
}

fn checked(socket: &Path, domain: &str) -> Result<Client> {
    let mut client = Client::connect(socket)?;
    known(&mut client, domain)?;
    Ok(client)
}

fn known(client: &mut Client, domain: &str) -> Result<()> {
    let listing = listing(client)?;
    match listing.domains.iter().any(|d| d.name == domain) {
        true => Ok(()),
        false => Err(unknown(&listing, domain)),
    }
}

fn unknown(listing: &Listing, domain: &str) -> RemoteError {
    let names = listing.domains.iter().map(|d| d.name.as_str());
    RemoteError::UnknownDomain { wrong: domain.into(), hint: suggest(domain, names) }
}

pub(crate) fn listing(client: &mut Client) -> Result<Listing> {
    match client.ask(Request::List, LIMIT)? {
        Reply::List(listing) => Ok(listing),
        Reply::Error(why) => Err(RemoteError::Refused(why)),
        other => Err(RemoteError::Refused(format!("an answer to another question: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_chosen_by_number_only_where_there_are_several() {
        let run = |id: &str| {
            let info = Info { id: id.into(), pid: 1, setup: "x.toml".into() };
            (info, PathBuf::from(id))
        };
        let of = |ids: &[&str], wanted| pick(ids.iter().map(|id| run(id)).collect(), wanted);
        assert!(matches!(of(&[], None), Err(RemoteError::NoRun)));
        assert_eq!(of(&["7"], None).expect("the one").0.id, "7");
        assert!(matches!(of(&["7", "8"], None), Err(RemoteError::Several(_))));
        assert_eq!(of(&["7", "8"], Some("8")).expect("found").0.id, "8");
        let wrong = of(&["7"], Some("9")).expect_err("unknown").to_string();
        assert!(wrong.contains('9') && wrong.contains("7 (x.toml)"), "{wrong}");
    }
}
