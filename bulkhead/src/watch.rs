//! Follows a machine by what Dom0 tells, and judges how it ended. Pure: messages and
//! times go in, requests and a verdict come out.

use crate::qemu::Ended;
use bulkhead_link::{
    DomainReport, DomainSpec, Event, Exit, FromDom0, Kind, Listing, Reply, Restart, State,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How long guests may wait for a driver domain that died before the run is given up.
pub const DRIVER_GRACE: Duration = Duration::from_secs(10);
/// The same for one that is in quarantine: somebody may lift it.
pub const QUARANTINE_GRACE: Duration = Duration::from_secs(30);

/// How a run ended; `--json` calls it `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Ok,
    GuestFailed,
    DriverQuarantined,
    CoreFault,
    /// Dom0, which holds all policy, died; nothing can go on without it.
    Dom0Failed,
    Timeout,
    Interrupted,
    /// The set-up cannot be run; nothing was started.
    BadRequest,
}

impl Outcome {
    /// The tool's exit code.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::GuestFailed | Self::DriverQuarantined => 1,
            Self::BadRequest => 2,
            Self::CoreFault | Self::Dom0Failed => 3,
            Self::Timeout => 124,
            Self::Interrupted => 130,
        }
    }
}

/// Why a run stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All guests have ended.
    Finished,
    /// The remaining guests wait for a driver domain that is gone.
    Stuck {
        guest: String,
        driver: String,
    },
    Timeout,
    Interrupted,
    /// The machine ended by itself.
    Machine(Ended),
    /// Dom0 speaks another version of the link.
    Version(u32),
    /// Dom0 never came up.
    NoDom0,
    /// The machine did not shut down when asked.
    NoShutdown,
}

/// What is known of one domain.
#[derive(Clone, Debug)]
pub struct Known {
    pub spec: DomainSpec,
    /// Last step of coming up that Dom0 told.
    pub step: String,
    pub exit: Option<Exit>,
    pub reason: String,
    pub build_failed: bool,
    /// Of a driver domain in quarantine: its guests' requests are answered with errors.
    pub refuses: bool,
    is_quarantined: bool,
    ended_at: Option<Duration>,
}

/// The state of a run.
#[derive(Debug)]
pub struct Watch {
    pub domains: Vec<Known>,
    pub listing: Option<Listing>,
    pub ready: bool,
    wrong_version: Option<u32>,
    /// The machine was told to stop.
    pub closing: bool,
    /// Requests to power off that are not answered yet, by number, and who has agreed.
    asked: BTreeMap<u32, String>,
    powering_off: BTreeSet<String>,
    /// Restarts of driver domains.
    pub restarts: Vec<Restart>,
}

impl Watch {
    pub fn new(specs: &[DomainSpec]) -> Self {
        let known = |spec: &DomainSpec| Known {
            spec: spec.clone(),
            step: String::new(),
            exit: None,
            reason: String::new(),
            build_failed: false,
            refuses: false,
            is_quarantined: false,
            ended_at: None,
        };
        Self {
            domains: specs.iter().map(known).collect(),
            listing: None,
            ready: false,
            wrong_version: None,
            closing: false,
            asked: BTreeMap::new(),
            powering_off: BTreeSet::new(),
            restarts: Vec::new(),
        }
    }

    /// Takes one message, `now` since the start.
    pub fn take(&mut self, message: &FromDom0, now: Duration) {
        match message {
            FromDom0::Reply { reply: Reply::List(listing), .. } => {
                self.listing = Some(listing.clone())
            }
            FromDom0::Reply { reply: Reply::Hello { version }, .. } => self.version(*version),
            FromDom0::Reply { number, reply } => {
                if let Some(domain) = self.asked.remove(number)
                    && *reply == Reply::Done
                {
                    self.powering_off.insert(domain);
                }
            }
            FromDom0::Event(event) => self.event(event, now),
        }
    }

    fn version(&mut self, version: u32) {
        self.ready = true;
        self.wrong_version = (version != bulkhead_link::VERSION).then_some(version);
    }

    fn event(&mut self, event: &Event, now: Duration) {
        match event {
            Event::Ready { version } => self.version(*version),
            Event::Progress { domain, step } => {
                if let Some(known) = self.find(domain) {
                    known.step.clone_from(step);
                    // A domain that was restarted tells its steps again.
                    (known.exit, known.ended_at) = (None, None);
                    (known.is_quarantined, known.refuses) = (false, false);
                }
            }
            // The end of what still ran when the machine was told to stop is no news.
            Event::Ended { .. } if self.closing => {}
            Event::Ended { domain, exit, reason } => {
                if let Some(known) = self.find(domain) {
                    (known.exit, known.ended_at) = (Some(*exit), Some(now));
                    known.reason.clone_from(reason);
                }
            }
            Event::BuildFailed { domain, reason } => {
                if let Some(known) = self.find(domain) {
                    (known.build_failed, known.ended_at) = (true, Some(now));
                    known.reason.clone_from(reason);
                }
            }
            Event::Quarantined { domain, reason, refuses } => {
                if let Some(known) = self.find(domain) {
                    (known.exit, known.ended_at) = (Some(Exit::Crash), Some(now));
                    known.reason.clone_from(reason);
                    (known.is_quarantined, known.refuses) = (true, *refuses);
                }
            }
            Event::Restarted(restart) => self.restarts.push(restart.clone()),
            Event::Console { .. }
            | Event::ConsoleRoom { .. }
            | Event::Agent { .. }
            | Event::Log { .. } => {}
        }
    }

    /// Names of the guests that run.
    pub fn running_guests(&self) -> Vec<String> {
        let running = self.of(Kind::Guest).filter(|g| !g.has_ended());
        running.map(|g| g.spec.name.clone()).collect()
    }

    /// Request `number` asks a guest to power off.
    pub fn expect_power_off(&mut self, number: u32, domain: String) {
        self.asked.insert(number, domain);
    }

    /// Whether a message answers such a request.
    pub fn answers_power_off(&self, message: &FromDom0) -> bool {
        matches!(message, FromDom0::Reply { number, .. } if self.asked.contains_key(number))
    }

    /// Whether a guest that agreed to power off, or has not answered yet, still runs.
    pub fn is_powering_off(&self) -> bool {
        let waits = |g: &Known| !g.has_ended() && self.powering_off.contains(&g.spec.name);
        !self.asked.is_empty() || self.of(Kind::Guest).any(waits)
    }

    fn find(&mut self, name: &str) -> Option<&mut Known> {
        self.domains.iter_mut().find(|d| d.spec.name == name)
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &Known> {
        self.domains.iter().filter(move |d| d.spec.kind == kind)
    }

    /// Whether the run is over, and why.
    pub fn stop(&self, now: Duration) -> Option<Stop> {
        if let Some(version) = self.wrong_version {
            return Some(Stop::Version(version));
        }
        let mut running = self.of(Kind::Guest).filter(|g| !g.has_ended()).peekable();
        if running.peek().is_none() {
            // A set-up of driver domains alone runs until it is stopped.
            let any = self.of(Kind::Guest).next().is_some();
            return any.then_some(Stop::Finished);
        }
        let mut stuck = None;
        for guest in running {
            let driver = self.dead_driver_of(guest, now)?;
            stuck = Some(Stop::Stuck { guest: guest.spec.name.clone(), driver });
        }
        stuck
    }

    fn dead_driver_of(&self, guest: &Known, now: Duration) -> Option<String> {
        let is_dead = |driver: &&Known| {
            let used = guest.spec.disks.iter().any(|d| d.driver == driver.spec.name);
            let grace = if driver.is_quarantined { QUARANTINE_GRACE } else { DRIVER_GRACE };
            // Guests that get errors are not stuck.
            let is_silent = !driver.refuses;
            let is_late = driver.ended_at.is_some_and(|at| now.saturating_sub(at) > grace);
            used && is_silent && is_late
        };
        self.of(Kind::Driver).find(is_dead).map(|d| d.spec.name.clone())
    }

    /// The verdict on a run that stopped for a reason.
    pub fn judge(&self, stop: &Stop) -> Outcome {
        match stop {
            Stop::Machine(Ended::Dom0Died) => return Outcome::Dom0Failed,
            Stop::Machine(Ended::Refused) => return Outcome::BadRequest,
            // Somebody at another terminal asked for it.
            Stop::Machine(Ended::Properly) => return Outcome::Interrupted,
            Stop::Machine(_) => return Outcome::CoreFault,
            Stop::Version(_) | Stop::NoDom0 | Stop::NoShutdown => return Outcome::Dom0Failed,
            Stop::Timeout => return Outcome::Timeout,
            Stop::Interrupted => return Outcome::Interrupted,
            Stop::Finished | Stop::Stuck { .. } => {}
        }
        let reports = self.reports();
        if reports.iter().any(|d| d.state == State::Quarantined) {
            return Outcome::DriverQuarantined;
        }
        let guests_well = self.of(Kind::Guest).all(|g| g.exit == Some(Exit::PowerOff));
        if guests_well { Outcome::Ok } else { Outcome::GuestFailed }
    }

    /// One line on each domain that did not end as it should.
    pub fn complaints(&self) -> Vec<String> {
        let told = |d: &Known| {
            let name = &d.spec.name;
            match (d.build_failed, d.exit) {
                (true, _) => Some(format!("{name} could not be built: {}", d.reason)),
                _ if d.is_quarantined => Some(format!("{name} is in quarantine: {}", d.reason)),
                (_, Some(Exit::PowerOff)) | (_, None) => None,
                (_, Some(exit)) => {
                    Some(format!("{name} ended by {}: {}", exit_word(exit), d.reason))
                }
            }
        };
        self.domains.iter().filter_map(told).collect()
    }

    /// What Dom0 listed last; without it, what its events told.
    pub fn reports(&self) -> Vec<DomainReport> {
        match &self.listing {
            Some(listing) => listing.domains.clone(),
            None => self.domains.iter().map(Known::report).collect(),
        }
    }
}

impl Known {
    pub fn has_ended(&self) -> bool {
        self.exit.is_some() || self.build_failed
    }

    fn report(&self) -> DomainReport {
        DomainReport {
            name: self.spec.name.clone(),
            domid: u16::MAX,
            kind: self.spec.kind,
            state: match (self.build_failed, self.exit) {
                _ if self.is_quarantined => State::Quarantined,
                (true, _) | (_, Some(Exit::Crash)) => State::Crashed,
                (_, Some(_)) => State::Stopped,
                (_, None) => State::Running,
            },
            exit: self.exit,
            reason: self.reason.clone(),
            memory_kib: self.spec.memory_kib,
            cpu_ns: 0,
            virtual_ns: 0,
            weight: self.spec.sched.weight,
            restarts: 0,
            updated: None,
            refuses: self.refuses,
            last_lines: Vec::new(),
        }
    }
}

/// As `--json` spells it.
pub const fn exit_word(exit: Exit) -> &'static str {
    match exit {
        Exit::PowerOff => "poweroff",
        Exit::Reboot => "reboot",
        Exit::Crash => "crash",
        Exit::Killed => "killed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_link::{Disk, Sched};

    fn spec(name: &str, kind: Kind, driver: &str) -> DomainSpec {
        let disk = Disk {
            vdev: "xvda".into(),
            driver: driver.into(),
            device: "d".into(),
            first_sector: 0,
            sectors: 0,
            writable: false,
        };
        DomainSpec {
            name: name.into(),
            uuid: [0; 16],
            kind,
            kernel: 0,
            ramdisk: None,
            cmdline: String::new(),
            memory_kib: 1024,
            vcpus: 1,
            sched: Sched::default(),
            devices: Vec::new(),
            disks: if driver.is_empty() { Vec::new() } else { vec![disk] },
            on_reboot: Default::default(),
            care: Default::default(),
            agent: false,
        }
    }

    fn watch() -> Watch {
        Watch::new(&[
            spec("disk", Kind::Driver, ""),
            spec("a", Kind::Guest, "disk"),
            spec("b", Kind::Guest, ""),
        ])
    }

    fn ended(domain: &str, exit: Exit) -> FromDom0 {
        FromDom0::Event(Event::Ended { domain: domain.into(), exit, reason: "why".into() })
    }

    const T: Duration = Duration::from_secs(1);

    #[test]
    fn a_run_is_over_when_all_guests_have_ended_and_well_if_they_powered_off() {
        let mut watch = watch();
        watch.take(&ended("a", Exit::PowerOff), T);
        assert_eq!(watch.stop(T), None);
        watch.take(&ended("b", Exit::PowerOff), T);
        assert_eq!(watch.stop(T), Some(Stop::Finished));
        assert_eq!(watch.judge(&Stop::Finished), Outcome::Ok);
        watch.take(&ended("b", Exit::Crash), T);
        assert_eq!(watch.judge(&Stop::Finished), Outcome::GuestFailed);
        assert_eq!(watch.complaints(), ["b ended by crash: why"]);
    }

    #[test]
    fn a_guest_that_could_not_be_built_is_a_failed_guest() {
        let mut watch = watch();
        watch.take(&ended("a", Exit::PowerOff), T);
        let event = Event::BuildFailed { domain: "b".into(), reason: "no notes".into() };
        watch.take(&FromDom0::Event(event), T);
        assert_eq!(watch.stop(T), Some(Stop::Finished));
        assert_eq!(watch.judge(&Stop::Finished), Outcome::GuestFailed);
    }

    #[test]
    fn a_dead_driver_stops_the_run_only_when_nobody_else_runs_and_it_stays_dead() {
        let mut watch = watch();
        watch.take(&ended("disk", Exit::Crash), T);
        let late = T + DRIVER_GRACE + T;
        assert_eq!(watch.stop(late), None, "b still runs and needs no driver");
        watch.take(&ended("b", Exit::PowerOff), T);
        assert_eq!(watch.stop(T), None, "it may come back");
        let stuck = Stop::Stuck { guest: "a".into(), driver: "disk".into() };
        assert_eq!(watch.stop(late), Some(stuck.clone()));
        assert_eq!(watch.judge(&stuck), Outcome::GuestFailed);
        let back = Event::Progress { domain: "disk".into(), step: "running".into() };
        watch.take(&FromDom0::Event(back), late);
        assert_eq!(watch.stop(late), None);
    }

    #[test]
    fn a_quarantine_stops_a_run_later_and_only_if_guests_wait_and_nobody_lifts_it() {
        let quarantined = |refuses| {
            let (domain, reason) = ("disk".into(), "why".into());
            FromDom0::Event(Event::Quarantined { domain, reason, refuses })
        };
        let mut watch = watch();
        watch.take(&ended("b", Exit::PowerOff), T);
        watch.take(&quarantined(false), T);
        let late = T + QUARANTINE_GRACE + T;
        assert_eq!(watch.stop(T + DRIVER_GRACE + T), None);
        let stuck = Stop::Stuck { guest: "a".into(), driver: "disk".into() };
        assert_eq!(watch.stop(late), Some(stuck.clone()));
        assert_eq!(watch.judge(&stuck), Outcome::DriverQuarantined);
        assert!(watch.complaints().contains(&"disk is in quarantine: why".into()));
        watch.take(&quarantined(true), T);
        assert_eq!(watch.stop(late), None, "errors are answers");
        watch.take(&quarantined(false), T);
        let lifted = Event::Progress { domain: "disk".into(), step: "running".into() };
        watch.take(&FromDom0::Event(lifted), T);
        assert_eq!((watch.stop(late), watch.reports()[0].state), (None, State::Running));
    }

    #[test]
    fn guests_that_agree_to_power_off_are_waited_for_and_others_are_not() {
        let mut watch = watch();
        assert_eq!(watch.running_guests(), ["a", "b"]);
        for (number, name) in [(8, "a"), (9, "b")] {
            watch.expect_power_off(number, name.into());
        }
        assert!(watch.is_powering_off());
        let refused = FromDom0::Reply { number: 9, reply: Reply::Error("deaf".into()) };
        assert!(watch.answers_power_off(&refused));
        watch.take(&refused, T);
        watch.take(&FromDom0::Reply { number: 8, reply: Reply::Done }, T);
        assert!(watch.is_powering_off() && !watch.answers_power_off(&refused));
        watch.take(&ended("a", Exit::PowerOff), T);
        assert!(!watch.is_powering_off());
        assert_eq!(watch.running_guests(), ["b"]);
    }

    #[test]
    fn a_guest_that_reboots_goes_on_running() {
        let mut watch = watch();
        watch.take(&ended("b", Exit::PowerOff), T);
        for step in ["rebooting", "building", "running"] {
            let event = Event::Progress { domain: "a".into(), step: step.into() };
            watch.take(&FromDom0::Event(event), T);
            assert_eq!(watch.stop(T), None, "{step}");
        }
        let failed = Event::BuildFailed { domain: "a".into(), reason: "no memory".into() };
        watch.take(&FromDom0::Event(failed), T);
        assert_eq!(watch.stop(T), Some(Stop::Finished));
    }

    #[test]
    fn without_guests_a_run_goes_on_and_a_wrong_version_ends_it() {
        let mut watch = Watch::new(&[spec("disk", Kind::Driver, "")]);
        assert_eq!(watch.stop(T), None);
        watch.take(&FromDom0::Event(Event::Ready { version: 99 }), T);
        assert_eq!(watch.stop(T), Some(Stop::Version(99)));
    }

    #[test]
    fn how_the_machine_ended_outweighs_what_guests_did() {
        let watch = watch();
        let of = |stop| watch.judge(&stop);
        assert_eq!(of(Stop::Machine(Ended::CoreFault)), Outcome::CoreFault);
        assert_eq!(of(Stop::Machine(Ended::Unasked(Some(0)))), Outcome::CoreFault);
        assert_eq!(of(Stop::Machine(Ended::Dom0Died)), Outcome::Dom0Failed);
        assert_eq!(of(Stop::Timeout).exit_code(), 124);
    }
}
