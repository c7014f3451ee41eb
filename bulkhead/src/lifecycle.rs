//! The verbs that ask a guest's kernel for something: `shutdown`, `reboot`, `sysrq` and
//! `mem-set`. Dom0 passes the wish on; the kernel obeys if it likes, and takes its time.

use crate::{
    remote::{RemoteError, Result, connect_for, listing},
    setup::Size,
    watch::exit_word,
    wire::Client,
};
use bulkhead_link::{Event, Exit, FromDom0, Listing, REBOOTING, Reply, Request};
use std::time::{Duration, Instant};

/// How long Dom0 may take to pass a wish on.
const LIMIT: Duration = Duration::from_secs(10);
/// How often a guest's size is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Asks a guest to power off; with `wait`, until it has, for at most so long.
///
/// # Errors
/// If there is no such guest, its kernel does not listen, or it ends otherwise or too late.
pub fn shutdown(run: Option<&str>, guest: &str, wait: Option<Duration>) -> Result<()> {
    let mut client = connect_for(run, guest)?;
    ask(&mut client, Request::PowerOff { domain: guest.into() })?;
    wait.map_or(Ok(()), |limit| follow(&mut client, guest, limit, powered_off))
}

/// Asks a guest to reboot; with `wait`, until it runs again, for at most so long.
///
/// # Errors
/// See [`shutdown`].
pub fn reboot(run: Option<&str>, guest: &str, wait: Option<Duration>) -> Result<()> {
    let mut client = connect_for(run, guest)?;
    ask(&mut client, Request::Reboot { domain: guest.into() })?;
    let mut left = false;
    wait.map_or(Ok(()), |limit| follow(&mut client, guest, limit, |e| rebooted(e, &mut left)))
}

/// Presses a SysRq key in a guest.
///
/// # Errors
/// If there is no such guest, its kernel does not listen, or this is no key.
pub fn sysrq(run: Option<&str>, guest: &str, key: char) -> Result<()> {
    // What is no byte is no key either, and Dom0 says which are.
    let key = u8::try_from(key).unwrap_or(0);
    ask(&mut connect_for(run, guest)?, Request::Sysrq { domain: guest.into(), key })
}

/// Asks a guest to have so much memory; with `wait`, until it has.
///
/// # Errors
/// If there is no such guest, its kernel does not listen, it may not have that much, or it
/// does not get there in time.
pub fn mem_set(run: Option<&str>, guest: &str, size: Size, wait: Option<Duration>) -> Result<()> {
    let mut client = connect_for(run, guest)?;
    // Whole pages.
    let wanted_kib = size.kib() / 4 * 4;
    ask(&mut client, Request::SetMemory { domain: guest.into(), memory_kib: wanted_kib })?;
    let Some(limit) = wait else {
        return Ok(());
    };
    let deadline = Instant::now() + limit;
    loop {
        let now_kib = memory_of(&listing(&mut client)?, guest)?;
        if now_kib == wanted_kib {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(RemoteError::NotDone(format!(
                "{guest} still has {now_kib} KiB; its kernel may not have that much to give back"
            )));
        }
        std::thread::sleep(LOOK);
    }
}

/// Memory of a guest that runs, KiB.
fn memory_of(listing: &Listing, guest: &str) -> Result<u64> {
    let found = listing.domains.iter().find(|d| d.name == guest && d.exit.is_none());
    found
        .map(|d| d.memory_kib)
        .ok_or_else(|| RemoteError::NotDone(format!("{guest} has ended meanwhile")))
}

fn ask(client: &mut Client, request: Request) -> Result<()> {
    match client.ask(request, LIMIT)? {
        Reply::Error(why) => Err(RemoteError::Refused(why)),
        _ => Ok(()),
    }
}

/// Hands a guest's events to `judge` until that knows how it went.
fn follow(
    client: &mut Client,
    guest: &str,
    limit: Duration,
    mut judge: impl FnMut(&Event) -> Option<std::result::Result<(), String>>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    let not_done = |why: String| RemoteError::NotDone(format!("{guest} {why}"));
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match client.receive(left)? {
            Some(FromDom0::Event(event)) if concerns(&event, guest) => {
                if let Some(verdict) = judge(&event) {
                    return verdict.map_err(not_done);
                }
            }
            Some(_) => {}
            None => {
                let why = format!("has not obeyed after {} s", limit.as_secs());
                return Err(not_done(why));
            }
        }
    }
}

fn concerns(event: &Event, guest: &str) -> bool {
    match event {
        Event::Progress { domain, .. }
        | Event::Ended { domain, .. }
        | Event::BuildFailed { domain, .. } => domain == guest,
        Event::Ready { .. }
        | Event::Quarantined { .. }
        | Event::Restarted(_)
        | Event::Console { .. }
        | Event::ConsoleRoom { .. }
        | Event::Agent { .. }
        | Event::Log { .. } => false,
    }
}

type Verdict = Option<std::result::Result<(), String>>;

fn powered_off(event: &Event) -> Verdict {
    match event {
        Event::Ended { exit: Exit::PowerOff, .. } => Some(Ok(())),
        Event::Ended { exit, reason, .. } => Some(Err(otherwise(*exit, reason))),
        Event::Progress { step, .. } if step == REBOOTING => Some(Err("reboots instead".into())),
        _ => None,
    }
}

/// `left` notes that the old life is over.
fn rebooted(event: &Event, left: &mut bool) -> Verdict {
    match event {
        Event::Progress { step, .. } if step == REBOOTING => *left = true,
        Event::Progress { step, .. } if step == "running" && *left => return Some(Ok(())),
        Event::Ended { exit, reason, .. } => return Some(Err(otherwise(*exit, reason))),
        Event::BuildFailed { reason, .. } => {
            return Some(Err(format!("could not be built again: {reason}")));
        }
        _ => {}
    }
    None
}

fn otherwise(exit: Exit, reason: &str) -> String {
    match reason.is_empty() {
        true => format!("ended by {}", exit_word(exit)),
        false => format!("ended by {}: {reason}", exit_word(exit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: &str) -> Event {
        Event::Progress { domain: "g".into(), step: step.into() }
    }

    fn ended(exit: Exit) -> Event {
        Event::Ended { domain: "g".into(), exit, reason: "why".into() }
    }

    #[test]
    fn a_shutdown_is_done_when_the_guest_has_powered_off_and_failed_if_it_ends_otherwise() {
        assert_eq!(powered_off(&step("shutting down")), None);
        assert_eq!(powered_off(&ended(Exit::PowerOff)), Some(Ok(())));
        assert_eq!(powered_off(&ended(Exit::Crash)), Some(Err("ended by crash: why".into())));
        assert!(powered_off(&step("rebooting")).is_some_and(|v| v.is_err()));
    }

    #[test]
    fn a_reboot_is_done_when_the_guest_runs_again_and_not_while_it_still_does() {
        let mut left = false;
        for (word, done) in
            [("running", false), ("rebooting", false), ("building", false), ("running", true)]
        {
            assert_eq!(rebooted(&step(word), &mut left) == Some(Ok(())), done, "{word}");
        }
        assert!(rebooted(&ended(Exit::Reboot), &mut left).is_some_and(|v| v.is_err()));
    }

    #[test]
    fn only_events_of_the_guest_itself_count() {
        assert!(concerns(&step("running"), "g") && !concerns(&step("running"), "h"));
        assert!(!concerns(&Event::Console { domain: "g".into(), bytes: Vec::new() }, "g"));
    }
}
