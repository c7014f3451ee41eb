//! Many restarts of a driver domain in a row, each after the one before has answered a
//! guest, and what they left behind: what the machine uses is compared at rest, while the
//! driver's guests are paused.

use crate::{
    progress::{Amount, Progress},
    remote::{RemoteError, Result, connect_for, listing},
    report::Restart,
    wire::Client,
};
use bulkhead_link::{Cause, Event, FromDom0, Kind, Listing, MachineReport, Reply, Request, State};
use serde::Serialize;
use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long Dom0 may take to reply.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a restart may take until it is told.
const RESTART_LIMIT: Duration = Duration::from_secs(60);
/// Refusals in a row that are believed.
const MOST_REFUSALS: u32 = 10;
/// How long the machine may take to come to rest, and how often it is looked at.
const REST_LIMIT: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(100);
/// Looks in a row that must be alike.
const ALIKE: usize = 3;
/// The core keeps a frame for mapped grants as long as many are mapped, so that it depends on
/// the load of the last moment whether it has one.
const FRAME_SLACK: u64 = 1;
/// What Dom0 may use more of its heap afterwards: it keeps the last lines of consoles, which
/// are not always as long.
const HEAP_SLACK: u64 = 16 << 10;

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub times: u32,
    /// Least time from one to the next.
    pub every: Duration,
}

/// What the machine uses when it rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Use {
    pub free_frames: u64,
    /// Mappings of granted frames, of all domains.
    pub grants: u64,
    /// Event channels of all domains.
    pub ports: u64,
    pub dom0_heap_bytes: u64,
}

impl From<&MachineReport> for Use {
    fn from(machine: &MachineReport) -> Self {
        Self {
            free_frames: machine.free_frames,
            grants: machine.grants,
            ports: machine.ports,
            dom0_heap_bytes: machine.dom0_heap_bytes,
        }
    }
}

impl Use {
    /// What is missing after restarts that began with this.
    fn leaks(&self, after: &Self) -> Vec<String> {
        let mut leaks = Vec::new();
        let mut lost = |what: &str, more: u64, slack: u64| {
            if more > slack {
                leaks.push(format!("{more} {what}"));
            }
        };
        lost("frames", self.free_frames.saturating_sub(after.free_frames), FRAME_SLACK);
        lost("grants", after.grants.saturating_sub(self.grants), 0);
        lost("ports", after.ports.saturating_sub(self.ports), 0);
        let heap = after.dom0_heap_bytes.saturating_sub(self.dom0_heap_bytes);
        lost("bytes of Dom0's heap", heap, HEAP_SLACK);
        leaks
    }
}

/// Quantiles of one phase, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Quantiles {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |percent: usize| values[(last * percent).div_ceil(100)];
        Some(Self { p50: at(50), p99: at(99), max: values[last] })
    }
}

/// How it went.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub driver: String,
    /// Restarts that were carried out.
    pub restarts: u32,
    /// Those after which no guest asked for anything.
    pub unanswered: u32,
    pub elapsed_s: f64,
    /// Null if no guest asked.
    pub blackout_us: Option<Quantiles>,
    pub teardown_us: Option<Quantiles>,
    pub rebuild_us: Option<Quantiles>,
    pub device_us: Option<Quantiles>,
    pub first_response_us: Option<Quantiles>,
    pub before: Use,
    pub after: Use,
    /// What is missing afterwards, for a person; empty if nothing is.
    pub leaks: Vec<String>,
    pub interrupted: bool,
}

impl Summary {
    fn new(driver: &str, all: &[Restart], before: Use, after: Use) -> Self {
        let of = |field: fn(&Restart) -> Option<f64>| {
            Quantiles::of(all.iter().filter_map(field).collect())
        };
        Self {
            driver: driver.into(),
            restarts: all.len() as u32,
            unanswered: all.iter().filter(|r| r.blackout_us.is_none()).count() as u32,
            elapsed_s: 0.0,
            blackout_us: of(|r| r.blackout_us),
            teardown_us: of(|r| Some(r.teardown_us)),
            rebuild_us: of(|r| Some(r.rebuild_us)),
            device_us: of(|r| r.device_us),
            first_response_us: of(|r| r.first_response_us),
            before,
            after,
            leaks: before.leaks(&after),
            interrupted: false,
        }
    }

    /// A few lines for a person.
    pub fn text(&self) -> String {
        let ms = |q: Option<Quantiles>| match q {
            Some(q) => format!(
                "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
                q.p50 / 1000.0,
                q.p99 / 1000.0,
                q.max / 1000.0
            ),
            None => "no guest asked".into(),
        };
        let row = |name: &str, of: fn(&Use) -> u64| {
            format!("{name:<18} {:>12} {:>12}\n", of(&self.before), of(&self.after))
        };
        let leaks = match self.leaks.is_empty() {
            true => "nothing leaked\n".into(),
            false => format!("LEAKED: {}\n", self.leaks.join(", ")),
        };
        format!(
            "{} restarts of {} in {:.1} s; blackout {}\n{:<18} {:>12} {:>12}\n{}{}{}{}{leaks}",
            self.restarts,
            self.driver,
            self.elapsed_s,
            ms(self.blackout_us),
            "AT REST",
            "BEFORE",
            "AFTER",
            row("free frames", |u| u.free_frames),
            row("grants mapped", |u| u.grants),
            row("ports", |u| u.ports),
            row("Dom0 heap, bytes", |u| u.dom0_heap_bytes),
        )
    }
}

/// Restarts a driver domain many times.
///
/// # Errors
/// If there is no such driver domain, Dom0 refuses, or it does not come back.
pub fn restart_many(
    run: Option<&str>,
    driver: &str,
    wanted: Wanted,
    progress: &Progress,
    interrupts: &AtomicU32,
) -> Result<Summary> {
    let mut client = connect_for(run, driver)?;
    let is_driver = |d: &bulkhead_link::DomainReport| d.name == driver && d.kind == Kind::Driver;
    if !listing(&mut client)?.domains.iter().any(is_driver) {
        return Err(RemoteError::Refused(format!("{driver} is no driver domain")));
    }
    let started = Instant::now();
    let task = progress.begin(format!("restarting {driver}"), Amount::Steps(wanted.times.into()));
    // Looked at after the first one: it leaves what each later one finds.
    let (mut all, mut due) = (vec![restart_once(&mut client, driver)?], started + wanted.every);
    task.advance(1);
    let before = at_rest(&mut client, driver)?;
    while all.len() < wanted.times as usize && interrupts.load(Ordering::Relaxed) == 0 {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        due = Instant::now() + wanted.every;
        all.push(restart_once(&mut client, driver)?);
        task.advance(1);
    }
    drop(task);
    let after = at_rest(&mut client, driver)?;
    Ok(Summary {
        elapsed_s: started.elapsed().as_secs_f64(),
        interrupted: all.len() < wanted.times as usize,
        ..Summary::new(driver, &all, before, after)
    })
}

/// Restarts it, and waits until Dom0 tells how that went. It may fail at that very moment by
/// itself, and be refused to be restarted once more.
fn restart_once(client: &mut Client, driver: &str) -> Result<Restart> {
    let mut number = client.send(Request::Restart { domain: driver.into() })?;
    let (deadline, mut refusals) = (Instant::now() + RESTART_LIMIT, 0);
    loop {
        match client.receive(deadline.saturating_duration_since(Instant::now()))? {
            Some(FromDom0::Reply { number: answered, reply: Reply::Error(why) })
                if answered == number =>
            {
                refusals += 1;
                if refusals > MOST_REFUSALS {
                    return Err(RemoteError::Refused(why));
                }
                thread::sleep(LOOK);
                number = client.send(Request::Restart { domain: driver.into() })?;
            }
            Some(FromDom0::Event(Event::Restarted(restart)))
                if restart.driver == driver && restart.cause == Cause::Request =>
            {
                return Ok((&restart).into());
            }
            Some(FromDom0::Event(Event::Quarantined { domain, reason, .. }))
                if domain == driver =>
            {
                return Err(RemoteError::NotDone(format!("{driver} is in quarantine: {reason}")));
            }
            Some(_) => {}
            None => {
                let why = format!("{driver} has not come back after {} s", RESTART_LIMIT.as_secs());
                return Err(RemoteError::NotDone(why));
            }
        }
    }
}

/// What the machine uses once the driver's guests are paused and what they asked is done.
/// They run again afterwards.
fn at_rest(client: &mut Client, driver: &str) -> Result<Use> {
    let guests = running_guests(&listing(client)?, driver);
    for guest in &guests {
        ask(client, Request::Pause { domain: guest.clone() })?;
    }
    let used = settle(client, driver);
    for guest in &guests {
        ask(client, Request::Unpause { domain: guest.clone() })?;
    }
    used
}

fn settle(client: &mut Client, driver: &str) -> Result<Use> {
    let deadline = Instant::now() + REST_LIMIT;
    let (mut last, mut alike) = (None, 0);
    loop {
        let listing = listing(client)?;
        let used = Use::from(&listing.machine);
        let now = (requests(&listing, driver), used.free_frames, used.grants, used.ports);
        alike = if last == Some(now) { alike + 1 } else { 1 };
        last = Some(now);
        // What does not come to rest is judged as it is.
        if alike >= ALIKE || Instant::now() >= deadline {
            return Ok(used);
        }
        thread::sleep(LOOK);
    }
}

/// Guests that run and have a disk of the driver.
fn running_guests(listing: &Listing, driver: &str) -> Vec<String> {
    let uses = |name: &str| listing.disks.iter().any(|d| d.guest == name && d.driver == driver);
    let guests = listing.domains.iter().filter(|d| d.state == State::Running && uses(&d.name));
    guests.map(|d| d.name.clone()).collect()
}

fn requests(listing: &Listing, driver: &str) -> u64 {
    listing.disks.iter().filter(|d| d.driver == driver).map(|d| d.requests).sum()
}

fn ask(client: &mut Client, request: Request) -> Result<()> {
    match client.ask(request, LIMIT)? {
        Reply::Error(why) => Err(RemoteError::Refused(why)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USE: Use = Use { free_frames: 100, grants: 5, ports: 9, dom0_heap_bytes: 1 << 20 };

    #[test]
    fn a_leak_of_each_kind_is_named_and_what_is_given_back_is_none() {
        let leaks = |after: Use| USE.leaks(&after).join(", ");
        assert_eq!(leaks(USE), "");
        assert_eq!(leaks(Use { free_frames: 101, grants: 4, ports: 8, dom0_heap_bytes: 0 }), "");
        assert_eq!(leaks(Use { free_frames: 99, ..USE }), "");
        assert_eq!(leaks(Use { free_frames: 98, ..USE }), "2 frames");
        assert_eq!(leaks(Use { grants: 6, ports: 10, ..USE }), "1 grants, 1 ports");
        let heap = |more| leaks(Use { dom0_heap_bytes: USE.dom0_heap_bytes + more, ..USE });
        assert_eq!(heap(HEAP_SLACK), "");
        assert!(heap(HEAP_SLACK + 1).contains("heap"));
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let of = |n: usize| Quantiles::of((1..=n).rev().map(|v| v as f64).collect());
        assert_eq!(of(0), None);
        assert_eq!(of(1), Some(Quantiles { p50: 1.0, p99: 1.0, max: 1.0 }));
        assert_eq!(of(101), Some(Quantiles { p50: 51.0, p99: 100.0, max: 101.0 }));
    }

    #[test]
    fn the_text_says_what_leaked() {
        let after = Use { free_frames: 90, ..USE };
        let text = Summary::new("disk", &[], USE, after).text();
        assert!(text.contains("LEAKED: 10 frames") && text.contains("no guest asked"), "{text}");
        assert!(Summary::new("disk", &[], USE, USE).text().ends_with("nothing leaked\n"));
    }
}
