//! The list of domains: what each was made to be, how it is, and why it ended.
//! Reads what the core and driver domains report; acting on it is the binary's.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use bulkhead_abi::{DomId, control, sched};
use bulkhead_link::{DiskReport, DomainReport, Exit, Kind, Sched, State};

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
    pub cpu_ns: u64,
    pub virtual_ns: u64,
    pub sched: Sched,
    pub disks: Vec<DiskUse>,
}

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
    /// It has just ended: report it, and leave it as it is, because guests hang on it.
    Keep,
}

/// All domains since the start, but for the control domain.
#[derive(Debug, Default)]
pub struct Table {
    entries: Vec<Entry>,
}

impl Table {
    /// Adds a domain that has just been built.
    pub fn add(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Takes a domain out again whose building failed at the last.
    pub fn forget(&mut self, domid: DomId) {
        self.entries.retain(|e| !(e.exists && e.domid == domid));
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
            cpu_ns: 0,
            virtual_ns: 0,
            sched,
            disks: Vec::new(),
        }
    }

    /// Takes over what the core says. `last_line` is what the domain said last.
    pub fn observe(&mut self, info: &control::DomainInfo, last_line: &str) -> Verdict {
        self.cpu_ns = info.cpu_time_ns;
        if info.tot_pages > 0 {
            self.memory_kib = info.tot_pages * 4;
        }
        if self.exit.is_some() || info.state & control::STATE_SHUTDOWN == 0 {
            return Verdict::Fine;
        }
        let (exit, reason) = exit_of(info, last_line);
        self.end(exit, reason);
        if exit == Exit::Crash && self.kind == Kind::Driver {
            return Verdict::Keep;
        }
        self.exists = false;
        Verdict::Destroy
    }

    /// Notes that the control domain ended it, or found it gone.
    pub fn killed(&mut self, reason: &str) {
        if self.exit.is_none() {
            self.end(Exit::Killed, reason.into());
        }
        self.exists = false;
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
            restarts: 0,
        }
    }
}

/// Why a domain that shut down did so.
fn exit_of(info: &control::DomainInfo, last_line: &str) -> (Exit, String) {
    let end = info.reason.iter().position(|&b| b == 0);
    let told = &info.reason[..end.unwrap_or(info.reason.len())];
    let told = String::from_utf8_lossy(told).to_string();
    let or_last = |text: &str| match (told.is_empty(), last_line.is_empty()) {
        (false, _) => told.clone(),
        (true, false) => format!("{text}; it said last: {last_line}"),
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
            (3, "", "panic: no", Exit::Crash, "it crashed itself; it said last: panic: no"),
            (4, "", "", Exit::Crash, "its watchdog ran out"),
            (2, "", "", Exit::Crash, "it suspended, which is not supported"),
            (99, "", "", Exit::Crash, "it shut down with the unknown reason 99"),
        ] {
            let mut guest = entry(Kind::Guest);
            assert_eq!(guest.observe(&shut_down(reason, text), line), Verdict::Destroy);
            assert_eq!((guest.exit, &*guest.reason), (Some(exit), told));
            assert!(!guest.exists);
            let report = guest.report();
            assert_eq!((report.cpu_ns, report.memory_kib), (77, 40));
            assert_eq!(report.state == State::Crashed, exit == Exit::Crash);
        }
    }

    #[test]
    fn a_crashed_driver_stays_for_its_guests_and_is_reported_once() {
        let mut driver = entry(Kind::Driver);
        assert_eq!(driver.observe(&shut_down(3, ""), ""), Verdict::Keep);
        assert_eq!(driver.observe(&shut_down(3, ""), ""), Verdict::Fine);
        assert!(driver.exists);
        assert_eq!(driver.state, State::Crashed);
    }

    #[test]
    fn a_running_domain_is_fine_and_a_killed_one_keeps_its_first_reason() {
        let mut guest = entry(Kind::Guest);
        assert_eq!(guest.observe(&DomainInfo::default(), ""), Verdict::Fine);
        assert_eq!(guest.memory_kib, 65536);
        guest.killed("on request");
        guest.killed("again");
        assert_eq!((guest.exit, &*guest.reason), (Some(Exit::Killed), "on request"));
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
