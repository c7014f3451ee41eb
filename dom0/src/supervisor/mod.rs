//! The list of domains: what each was made to be, how it is, and why it ended.
//! Reads what the core and driver domains report; acting on it is the binary's.

mod complaint;
pub mod health;
mod reboot;

pub use complaint::{MOST_COMPLAINTS, NotBelieved};
pub use reboot::{MOST_SHORT_LIVES, Reboots, SHORT_LIFE_NS};

use alloc::{
    collections::BTreeMap,
    format,
    rc::Rc,
    string::{String, ToString},
    vec::Vec,
};
use bulkhead_abi::{DomId, control, ledger::on_failure, sched};
use bulkhead_link::{Care, DiskReport, DomainReport, Exit, Kind, OnFailure, Sched, State};
use core::time::Duration;
use health::{Heart, Line, Recent, TooOften};

/// A domain and its history.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub kind: Kind,
    pub domid: DomId,
    pub state: State,
    pub exit: Option<Exit>,
    pub reason: String,
    /// The core still has it.
    pub exists: bool,
    pub memory_kib: u64,
    /// What it started with, and the most it may have.
    pub most_memory_kib: u64,
    pub cpu_ns: u64,
    pub virtual_ns: u64,
    pub sched: Sched,
    pub disks: Vec<DiskUse>,
    /// System time at which it was let run.
    pub started_ns: u64,
    pub reboots: Reboots,
    /// Times it was built again.
    pub restarts: u32,
    /// What it said last, if it did not end well.
    pub last_lines: Vec<String>,
    /// How it is looked after.
    pub care: Care,
    /// Of a driver domain: lives that ended by themselves.
    pub failures: Recent,
    /// Of a driver domain: restarts because a guest complained of it.
    pub blames: Recent,
    /// Of a guest: its complaints about driver domains, and that the last one came to nothing.
    pub complaints: Recent,
    pub complains_too_often: bool,
    /// Of a driver domain: what it runs in place of the image of the set-up.
    pub update: Option<Update>,
    /// In quarantine, something else answers its guests with errors.
    pub refuses: bool,
    /// Of a driver domain: whether its heart beats.
    pub pulse: Heart,
    /// Of a driver domain: whether it answers, by the slot of its ledger.
    pub lines: BTreeMap<usize, Line>,
    /// Its next life is being made.
    pub is_reviving: bool,
    /// Of a driver domain: it dies because somebody asked for that.
    pub is_condemned: bool,
}

/// An image that was sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Update {
    /// How a person calls it.
    pub name: String,
    pub image: Rc<Vec<u8>>,
}

/// Least memory that a guest is asked to shrink to: with less no kernel of any kind runs.
pub const LEAST_MEMORY_KIB: u64 = 4096;

/// Lines kept of what a domain said last: a kernel's panic with its stack.
pub const LAST_LINES: usize = 40;

/// A virtual disk of a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskUse {
    pub vdev: String,
    pub driver: String,
    pub device: String,
    /// Slot of the driver's ledger.
    pub slot: usize,
    /// Its connection has been announced.
    pub is_connected: bool,
}

/// What is to be done about a domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Verdict {
    /// It runs.
    Fine,
    /// It has just ended: report it, and give its memory back.
    Destroy,
    /// A driver domain has just ended: its guests hang on it, so restart it.
    Revive,
    /// What answered guests with errors in place of a driver domain in quarantine has ended.
    Deserted,
    /// It asks for a reboot: give its memory back, and build it again.
    Restart,
}

/// All domains since the start, but for the control domain.
#[derive(Clone, Debug, Default)]
pub struct Table {
    entries: Vec<Entry>,
}

impl Table {
    /// Adds a domain that has just been built. One that was to be built again goes on where it was.
    pub fn add(&mut self, mut entry: Entry) {
        let mut entries = self.entries.iter_mut();
        match entries.find(|e| e.name == entry.name && e.state == State::Rebooting) {
            Some(old) => {
                (entry.restarts, entry.reboots) = (old.restarts + 1, old.reboots);
                // A reboot gives no new right to complain.
                entry.complaints = core::mem::take(&mut old.complaints);
                *old = entry;
            }
            None => self.entries.push(entry),
        }
    }

    /// Takes a domain out again whose building failed at the last. One that was to be
    /// built again waits as before.
    pub fn forget(&mut self, domid: DomId) {
        self.entries.retain(|e| !(e.exists && e.domid == domid && e.restarts == 0));
        if let Some(entry) = self.by_domid(domid) {
            entry.restarts -= 1;
            (entry.state, entry.exists) = (State::Rebooting, false);
        }
    }

    /// Whether a domain of that name waits to be built again.
    pub fn is_rebooting(&self, name: &str) -> bool {
        self.by_name(name).is_some_and(|e| e.state == State::Rebooting)
    }

    /// Domains that wait to be built again.
    pub fn rebooting(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().filter(|e| e.state == State::Rebooting)
    }

    /// All domains, oldest first.
    pub fn all(&self) -> &[Entry] {
        &self.entries
    }

    /// The youngest domain of that name.
    pub fn by_name(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().rev().find(|e| e.name == name)
    }

    /// The domain that has this id now.
    pub fn by_domid(&mut self, domid: DomId) -> Option<&mut Entry> {
        let mut entries = self.entries.iter_mut();
        entries.find(|e| e.exists && e.domid == domid)
    }
}

impl Entry {
    /// A running domain.
    pub fn new(name: &str, kind: Kind, domid: DomId, memory_kib: u64, sched: Sched) -> Self {
        Self {
            name: name.into(),
            kind,
            domid,
            state: State::Running,
            exit: None,
            reason: String::new(),
            exists: true,
            memory_kib,
            most_memory_kib: memory_kib,
            cpu_ns: 0,
            virtual_ns: 0,
            sched,
            disks: Vec::new(),
            started_ns: 0,
            reboots: Reboots::default(),
            restarts: 0,
            last_lines: Vec::new(),
            care: Care::default(),
            failures: Recent::default(),
            blames: Recent::default(),
            complaints: Recent::default(),
            complains_too_often: false,
            update: None,
            refuses: false,
            pulse: Heart::default(),
            lines: BTreeMap::new(),
            is_reviving: false,
            is_condemned: false,
        }
    }

    /// Takes over what the core says at system time `now_ns`. `said` is what the domain said
    /// last, oldest line first.
    pub fn observe(
        &mut self,
        info: &control::DomainInfo,
        said: Vec<String>,
        now_ns: u64,
    ) -> Verdict {
        self.cpu_ns = info.cpu_time_ns;
        if info.tot_pages > 0 {
            self.memory_kib = info.tot_pages * 4;
        }
        if self.is_reviving || info.state & control::STATE_SHUTDOWN == 0 {
            return Verdict::Fine;
        }
        if core::mem::take(&mut self.refuses) {
            return Verdict::Deserted;
        }
        if self.exit.is_some() {
            return Verdict::Fine;
        }
        let (exit, mut reason) = exit_of(info, telling_line(&said));
        if exit == Exit::Crash && self.kind == Kind::Driver {
            self.reason = reason;
            self.keep_last_lines(said);
            return Verdict::Revive;
        }
        if exit == Exit::Reboot && self.kind == Kind::Guest {
            match self.reboots.asked(now_ns.saturating_sub(self.started_ns)) {
                Ok(()) => {
                    (self.state, self.exists) = (State::Rebooting, false);
                    return Verdict::Restart;
                }
                Err(why) if reason.is_empty() => reason = why,
                Err(_) => {}
            }
        }
        self.end(exit, reason);
        if exit != Exit::PowerOff {
            self.keep_last_lines(said);
        }
        self.exists = false;
        Verdict::Destroy
    }

    /// Keeps the last [`LAST_LINES`] of what it said.
    pub fn keep_last_lines(&mut self, mut said: Vec<String>) {
        said.drain(..said.len().saturating_sub(LAST_LINES));
        self.last_lines = said;
    }

    /// Whether it may have `wanted_kib` of memory, with `free_kib` left in the machine.
    /// Errors are for a person to read.
    pub fn check_size(&self, wanted_kib: u64, free_kib: u64) -> Result<(), String> {
        let name = &self.name;
        if self.kind != Kind::Guest {
            return Err(format!("{name} is a driver domain; its size does not change"));
        }
        let most = self.most_memory_kib;
        if !(LEAST_MEMORY_KIB..=most).contains(&wanted_kib) {
            return Err(format!(
                "{name} can have {LEAST_MEMORY_KIB} to {most} KiB: up to its `memory` in the set-up file"
            ));
        }
        match wanted_kib.saturating_sub(self.memory_kib) {
            more if more > free_kib => {
                Err(format!("{name} would need {more} KiB more; the machine has {free_kib} left"))
            }
            _ => Ok(()),
        }
    }

    /// Notes that it asked for a reboot and could not be built again.
    pub fn reboot_failed(&mut self, reason: &str) {
        self.end(Exit::Reboot, format!("it could not be built again: {reason}"));
    }

    /// Notes that the control domain ended it, or found it gone.
    pub fn killed(&mut self, reason: &str) {
        if self.exit.is_none() {
            self.end(Exit::Killed, reason.into());
        }
        self.exists = false;
    }

    /// Notes that it is not restarted any more, and why. It stays as it is: guests hang on it.
    pub fn quarantine(&mut self, reason: String) {
        (self.state, self.exit, self.reason) = (State::Quarantined, Some(Exit::Crash), reason);
        self.is_reviving = false;
        self.refuses = false;
    }

    /// How long its heart may be still.
    pub fn hang_deadline(&self) -> Duration {
        Duration::from_nanos(self.care.hang_deadline_ns)
    }

    /// How long it may leave all of a guest's requests unanswered.
    pub fn answer_deadline(&self) -> Duration {
        Duration::from_nanos(self.care.answer_deadline_ns)
    }

    /// What the next life of a driver domain is told to do with guests' requests, an
    /// `on_failure::*` of the ledger.
    pub fn orders(&self) -> u32 {
        match self.care.on_failure {
            _ if self.refuses => on_failure::REFUSE,
            OnFailure::Reissue => on_failure::REISSUE,
            OnFailure::Queue => on_failure::QUEUE,
            OnFailure::Fail => on_failure::FAIL,
        }
    }

    /// Notes that it is to have another chance.
    pub fn absolve(&mut self) {
        (self.exit, self.failures, self.refuses) = (None, Recent::default(), false);
        self.reason.clear();
    }

    /// Notes that a life has ended by itself at `now_ns`, because of `reason`. Errors: too many
    /// did of late; why, for a person to read.
    pub fn fail(&mut self, reason: &str, now_ns: u64) -> Result<(), String> {
        let Care { restart_limit, restart_window_ns, .. } = self.care;
        let noted = self.failures.note(now_ns, restart_limit, restart_window_ns);
        noted.map_err(|TooOften { times }| {
            let within = match times {
                1 => String::new(),
                _ => format!(" {times} times within {}", seconds(restart_window_ns)),
            };
            let image = match &self.update {
                Some(update) => format!("; its image was updated to {}", update.name),
                None => String::new(),
            };
            format!("it failed{within}; last: {reason}{image}")
        })
    }

    fn end(&mut self, exit: Exit, reason: String) {
        self.state = match exit {
            Exit::Crash => State::Crashed,
            _ => State::Stopped,
        };
        self.exit = Some(exit);
        self.reason = reason;
    }

    /// What the host tool is told.
    pub fn report(&self) -> DomainReport {
        DomainReport {
            name: self.name.clone(),
            domid: self.domid.get(),
            kind: self.kind,
            state: self.state,
            exit: self.exit,
            reason: self.reason.clone(),
            memory_kib: self.memory_kib,
            cpu_ns: self.cpu_ns,
            virtual_ns: self.virtual_ns,
            weight: self.sched.weight,
            restarts: self.restarts,
            updated: self.update.as_ref().map(|update| update.name.clone()),
            refuses: self.refuses,
            last_lines: self.last_lines.clone(),
        }
    }
}

/// A time as a person says it: "10 s", "1.5 s".
fn seconds(ns: u64) -> String {
    let (whole, ms) = (ns / 1_000_000_000, ns / 1_000_000 % 1000);
    match ms {
        0 => format!("{whole} s"),
        _ => format!("{} s", format!("{whole}.{ms:03}").trim_end_matches('0')),
    }
}

/// How the line of a panic is told: Linux's, and those of Rust's and C's kernels.
const PANICS: [&str; 3] = ["Kernel panic", "panicked", "panic:"];

/// The line that says most of why a domain ended: that of a panic, else the last one.
fn telling_line(said: &[String]) -> &str {
    // A line of the stack may be about a function of that name.
    let panics = |line: &&String| PANICS.iter().any(|words| line.contains(words));
    let panic = said.iter().rev().find(panics);
    panic.or(said.last()).map_or("", String::as_str)
}

/// Why a domain that shut down did so, which said `line`.
fn exit_of(info: &control::DomainInfo, line: &str) -> (Exit, String) {
    let end = info.reason.iter().position(|&b| b == 0);
    let told = &info.reason[..end.unwrap_or(info.reason.len())];
    let told = String::from_utf8_lossy(told).to_string();
    let or_last = |text: &str| match (told.is_empty(), line.is_empty()) {
        (false, _) => told.clone(),
        (true, false) => format!("{text}; it said: {line}"),
        (true, true) => text.into(),
    };
    match info.shutdown_reason {
        sched::SHUTDOWN_POWEROFF => (Exit::PowerOff, told),
        sched::SHUTDOWN_REBOOT => (Exit::Reboot, told),
        sched::SHUTDOWN_CRASH => (Exit::Crash, or_last("it crashed itself")),
        sched::SHUTDOWN_WATCHDOG => (Exit::Crash, or_last("its watchdog ran out")),
        sched::SHUTDOWN_SUSPEND => (Exit::Crash, "it suspended, which is not supported".into()),
        other => (Exit::Crash, or_last(&format!("it shut down with the unknown reason {other}"))),
    }
}

/// Counters of one ring, as its driver domain says in the ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub requests: u64,
    pub errors: u64,
}

/// What the host tool is told of a disk.
pub fn disk_report(guest: &str, disk: &DiskUse, counters: Counters) -> DiskReport {
    DiskReport {
        guest: guest.into(),
        vdev: disk.vdev.clone(),
        device: disk.device.clone(),
        driver: disk.driver.clone(),
        read_bytes: counters.read_bytes,
        written_bytes: counters.written_bytes,
        requests: counters.requests,
        errors: counters.errors,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_link::OnReboot;
    use control::DomainInfo;

    fn entry(kind: Kind) -> Entry {
        Entry::new("reader", kind, DomId::new(4), 65536, Sched::default())
    }

    fn shut_down(reason: u32, text: &str) -> DomainInfo {
        let mut info = DomainInfo {
            state: control::STATE_SHUTDOWN,
            shutdown_reason: reason,
            cpu_time_ns: 77,
            tot_pages: 10,
            ..Default::default()
        };
        info.reason[..text.len()].copy_from_slice(text.as_bytes());
        info
    }

    #[test]
    fn every_way_to_end_is_told_apart() {
        for (reason, text, line, exit, told) in [
            (0, "", "bye", Exit::PowerOff, ""),
            (1, "", "", Exit::Reboot, ""),
            (3, "page fault", "x", Exit::Crash, "page fault"),
            (3, "", "panic: no", Exit::Crash, "it crashed itself; it said: panic: no"),
            (4, "", "", Exit::Crash, "its watchdog ran out"),
            (2, "", "", Exit::Crash, "it suspended, which is not supported"),
            (99, "", "", Exit::Crash, "it shut down with the unknown reason 99"),
        ] {
            let mut guest = entry(Kind::Guest);
            guest.reboots = Reboots::new(OnReboot::Destroy);
            let said = Vec::from([String::from("hello"), line.into()]);
            let verdict = guest.observe(&shut_down(reason, text), said.clone(), 0);
            assert_eq!(verdict, Verdict::Destroy);
            let kept = if exit == Exit::PowerOff { Vec::new() } else { said };
            assert_eq!(guest.report().last_lines, kept);
            assert_eq!((guest.exit, &*guest.reason), (Some(exit), told));
            assert!(!guest.exists);
            let report = guest.report();
            assert_eq!((report.cpu_ns, report.memory_kib), (77, 40));
            assert_eq!(report.state == State::Crashed, exit == Exit::Crash);
        }
    }

    #[test]
    fn a_panic_whose_stack_is_long_is_named_and_the_last_lines_are_kept() {
        let mut guest = entry(Kind::Guest);
        let stack = (0..100).map(|n| format!("frame {n}"));
        let said = core::iter::once("Kernel panic - x".into()).chain(stack).collect();
        assert_eq!(guest.observe(&shut_down(3, ""), said, 0), Verdict::Destroy);
        assert!(guest.reason.contains("Kernel panic - x"), "{}", guest.reason);
        assert_eq!((guest.last_lines.len(), &*guest.last_lines[0]), (LAST_LINES, "frame 60"));
    }

    #[test]
    fn the_line_of_a_panic_tells_more_than_the_stack_behind_it() {
        let said: Vec<_> =
            ["a", "Kernel panic - not syncing: why", " panic+0x118/0x2f4"].map(String::from).into();
        assert_eq!(telling_line(&said), said[1]);
        assert_eq!(telling_line(&said[..1]), "a");
        assert_eq!(telling_line(&[]), "");
    }

    #[test]
    fn a_crashed_driver_is_to_be_revived_until_it_is_quarantined() {
        let mut driver = entry(Kind::Driver);
        assert_eq!(driver.observe(&shut_down(3, ""), Vec::new(), 0), Verdict::Revive);
        driver.is_reviving = true;
        assert_eq!(driver.observe(&shut_down(3, ""), Vec::new(), 0), Verdict::Fine);
        driver.is_reviving = false;
        assert_eq!(driver.observe(&shut_down(3, ""), Vec::new(), 0), Verdict::Revive);
        driver.quarantine("too often".into());
        assert_eq!(driver.observe(&shut_down(3, ""), Vec::new(), 0), Verdict::Fine);
        driver.refuses = true;
        assert_eq!(driver.observe(&shut_down(3, ""), Vec::new(), 0), Verdict::Deserted);
        assert_eq!(driver.observe(&shut_down(3, ""), Vec::new(), 0), Verdict::Fine);
        assert!(driver.exists);
        assert_eq!(
            (driver.state, driver.report().reason),
            (State::Quarantined, "too often".into())
        );
    }

    #[test]
    fn what_a_driver_failed_of_is_told_with_its_limits_and_its_update() {
        let mut driver = entry(Kind::Driver);
        driver.care =
            Care { restart_limit: 2, restart_window_ns: 1_500_000_000, ..Care::default() };
        assert_eq!([driver.fail("a", 1), driver.fail("b", 2)], [Ok(()), Ok(())]);
        let told = driver.fail("page fault", 3).unwrap_err();
        assert_eq!(told, "it failed 3 times within 1.5 s; last: page fault");
        driver.update = Some(Update { name: "new.elf".into(), image: Rc::default() });
        assert_eq!(driver.report().updated.as_deref(), Some("new.elf"));
        assert!(driver.fail("x", 4).unwrap_err().ends_with("its image was updated to new.elf"));
        driver.quarantine(told);
        driver.absolve();
        assert_eq!((driver.exit, &*driver.reason), (None, ""));
        assert_eq!(driver.fail("y", 5), Ok(()));
        driver.care.restart_limit = 0;
        assert_eq!(
            entry_fails_at_once(&mut driver),
            "it failed; last: z; its image was updated to new.elf"
        );
    }

    fn entry_fails_at_once(driver: &mut Entry) -> String {
        driver.absolve();
        driver.fail("z", 6).unwrap_err()
    }

    #[test]
    fn a_running_domain_is_fine_and_a_killed_one_keeps_its_first_reason() {
        let mut guest = entry(Kind::Guest);
        assert_eq!(guest.observe(&DomainInfo::default(), Vec::new(), 0), Verdict::Fine);
        assert_eq!(guest.memory_kib, 65536);
        guest.killed("on request");
        guest.killed("again");
        assert_eq!((guest.exit, &*guest.reason), (Some(Exit::Killed), "on request"));
    }

    #[test]
    fn a_guest_that_reboots_goes_on_in_its_old_place_with_its_history() {
        let mut table = Table::default();
        table.add(entry(Kind::Guest));
        for life in 0..3u16 {
            let guest = table.by_domid(DomId::new(4 + life)).unwrap();
            assert_eq!(guest.restarts, u32::from(life));
            assert_eq!(guest.observe(&shut_down(1, ""), Vec::new(), 1), Verdict::Restart);
            assert!(table.is_rebooting("reader") && !table.all()[0].exists);
            let mut next = entry(Kind::Guest);
            next.domid = DomId::new(5 + life);
            table.add(next);
            assert_eq!(table.all().len(), 1);
            assert!(!table.is_rebooting("reader"));
        }
        table.forget(DomId::new(7));
        assert!(table.is_rebooting("reader"), "building it failed: it waits as before");
        assert_eq!(table.all()[0].restarts, 2);
        table.rebooting().for_each(|e| e.reboot_failed("no memory"));
        let report = table.all()[0].report();
        assert_eq!((report.state, report.exit), (State::Stopped, Some(Exit::Reboot)));
        assert!(report.reason.contains("no memory"));
    }

    #[test]
    fn a_driver_is_not_rebooted_and_one_that_only_reboots_is_given_up() {
        let mut driver = entry(Kind::Driver);
        assert_eq!(driver.observe(&shut_down(1, ""), Vec::new(), 0), Verdict::Destroy);
        let mut table = Table::default();
        table.add(entry(Kind::Guest));
        for _ in 1..MOST_SHORT_LIVES {
            let guest = table.by_domid(DomId::new(4)).unwrap();
            assert_eq!(guest.observe(&shut_down(1, ""), Vec::new(), 9), Verdict::Restart);
            table.add(entry(Kind::Guest));
        }
        let guest = table.by_domid(DomId::new(4)).unwrap();
        assert_eq!(guest.observe(&shut_down(1, ""), Vec::new(), 9), Verdict::Destroy);
        assert_eq!(guest.exit, Some(Exit::Reboot));
        assert!(guest.reason.contains("in a row"), "{}", guest.reason);
    }

    #[test]
    fn a_guest_shrinks_and_grows_within_its_memory_and_the_machines() {
        let mut guest = entry(Kind::Guest);
        guest.memory_kib = 20_000;
        for (wanted, free, told) in [
            (LEAST_MEMORY_KIB, 0, None),
            (20_000, 0, None),
            (65_536, 45_536, None),
            (65_536, 45_535, Some("would need 45536 KiB more")),
            (65_537, 1 << 40, Some("4096 to 65536 KiB")),
            (LEAST_MEMORY_KIB - 1, 1 << 40, Some("4096 to 65536 KiB")),
            (u64::MAX, u64::MAX, Some("65536")),
        ] {
            let error = guest.check_size(wanted, free).err();
            match told {
                None => assert_eq!(error, None),
                Some(told) => assert!(error.as_ref().unwrap().contains(told), "{error:?}"),
            }
        }
        assert!(entry(Kind::Driver).check_size(8192, 1 << 30).is_err());
    }

    #[test]
    fn names_and_ids_find_the_living() {
        let mut table = Table::default();
        let mut old = entry(Kind::Guest);
        old.killed("");
        table.add(old);
        table.add(entry(Kind::Guest));
        assert!(table.by_name("reader").unwrap().exists);
        assert!(table.by_domid(DomId::new(4)).unwrap().exists);
        assert!(table.by_domid(DomId::new(5)).is_none());
        assert!(table.by_name("writer").is_none());
        table.forget(DomId::new(4));
        assert_eq!(table.all().len(), 1);
    }
}
