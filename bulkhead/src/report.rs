//! What a run prints at its end: one JSON object for programs, a table for people. The
//! names are a contract: fields may be added, not renamed.

use crate::watch::{Outcome, exit_word};
use bulkhead_link::{Cause, DiskReport, DomainReport, Kind, MachineReport, State};
use serde::Serialize;
use std::fmt::Write;

/// The object that `run --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub outcome: Outcome,
    /// Why, for a person; empty when all is well.
    pub reason: String,
    pub elapsed_s: f64,
    pub machine: Machine,
    pub domains: Vec<Domain>,
    pub disks: Vec<Disk>,
    /// Network devices; none yet.
    pub nets: Vec<()>,
    pub restarts: Vec<Restart>,
    /// Figures of the core, when Dom0 could still give them.
    pub core: Option<Core>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// `tcg` or `kvm`.
    pub accel: &'static str,
    pub cpus: u32,
    pub memory_mib: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Domain {
    pub name: String,
    /// Null if Dom0 never listed it.
    pub domid: Option<u16>,
    pub kind: &'static str,
    pub state: &'static str,
    pub exit: Option<&'static str>,
    pub reason: String,
    pub memory_kib: u64,
    pub cpu_ns: u64,
    pub virtual_ns: u64,
    pub weight: u32,
    pub restarts: u32,
    /// The image that it was updated to, if it was.
    pub updated: Option<String>,
    /// In quarantine: what the requests of its guests come to, `wait` or `fail`.
    pub requests: Option<&'static str>,
    /// What lifts its quarantine.
    pub remedy: Option<String>,
    /// The last lines on its console, if it ended other than by powering off.
    pub last_lines: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Disk {
    pub guest: String,
    pub vdev: String,
    pub device: String,
    pub driver: String,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub requests: u64,
    pub errors: u64,
}

/// One restart of a driver domain: phases in microseconds, null where the new life has not
/// said, or no guest has asked.
#[derive(Clone, Debug, Serialize)]
pub struct Restart {
    pub driver: String,
    pub cause: &'static str,
    pub reason: String,
    pub detect_us: f64,
    pub teardown_us: f64,
    pub rebuild_us: f64,
    pub device_us: Option<f64>,
    pub first_response_us: Option<f64>,
    pub blackout_us: Option<f64>,
}

impl From<&bulkhead_link::Restart> for Restart {
    fn from(restart: &bulkhead_link::Restart) -> Self {
        let us = |ns: u64| ns as f64 / 1000.0;
        Self {
            driver: restart.driver.clone(),
            cause: match restart.cause {
                Cause::Crash => "crash",
                Cause::Hang => "hang",
                Cause::Violation => "violation",
                Cause::Request => "request",
            },
            reason: restart.reason.clone(),
            detect_us: us(restart.detect_ns),
            teardown_us: us(restart.teardown_ns),
            rebuild_us: us(restart.rebuild_ns),
            device_us: restart.device_ns.map(us),
            first_response_us: restart.first_response_ns.map(us),
            blackout_us: restart.blackout_ns.map(us),
        }
    }
}

/// A restart on one line, for a person.
pub fn restart_line(restart: &bulkhead_link::Restart) -> String {
    let told = Restart::from(restart);
    let ms = |us: f64| format!("{:.2} ms", us / 1000.0);
    let or_not = |us: Option<f64>| us.map_or("not yet".into(), ms);
    let answered = match told.blackout_us {
        Some(us) => format!("answered a guest after {}", ms(us)),
        None => "no guest has asked yet".into(),
    };
    format!(
        "restarted ({}): {answered} (detect {}, tear-down {}, rebuild {}, devices {}, response {})",
        told.cause,
        ms(told.detect_us),
        ms(told.teardown_us),
        ms(told.rebuild_us),
        or_not(told.device_us),
        or_not(told.first_response_us),
    )
}

#[derive(Clone, Debug, Serialize)]
pub struct Core {
    pub total_frames: u64,
    pub free_frames: u64,
    pub core_frames: u64,
    pub system_time_ns: u64,
    pub longest_stay_ns: u64,
    pub switches: u64,
    /// Mappings of granted frames, of all domains.
    pub grants: u64,
    /// Event channels in use, of all domains.
    pub ports: u64,
    pub dom0_heap_bytes: u64,
}

impl From<&DomainReport> for Domain {
    fn from(domain: &DomainReport) -> Self {
        let is_quarantined = domain.state == State::Quarantined;
        Self {
            name: domain.name.clone(),
            domid: (domain.domid != u16::MAX).then_some(domain.domid),
            kind: kind_word(domain.kind),
            state: state_word(domain.state),
            exit: domain.exit.map(exit_word),
            reason: domain.reason.clone(),
            memory_kib: domain.memory_kib,
            cpu_ns: domain.cpu_ns,
            virtual_ns: domain.virtual_ns,
            weight: domain.weight,
            restarts: domain.restarts,
            updated: domain.updated.clone(),
            requests: is_quarantined.then_some(if domain.refuses { "fail" } else { "wait" }),
            remedy: is_quarantined.then(|| remedy(domain)),
            last_lines: domain.last_lines.clone(),
        }
    }
}

impl From<&DiskReport> for Disk {
    fn from(disk: &DiskReport) -> Self {
        Self {
            guest: disk.guest.clone(),
            vdev: disk.vdev.clone(),
            device: disk.device.clone(),
            driver: disk.driver.clone(),
            read_bytes: disk.read_bytes,
            written_bytes: disk.written_bytes,
            requests: disk.requests,
            errors: disk.errors,
        }
    }
}

impl From<&MachineReport> for Core {
    fn from(machine: &MachineReport) -> Self {
        Self {
            total_frames: machine.total_frames,
            free_frames: machine.free_frames,
            core_frames: machine.core_frames,
            system_time_ns: machine.system_time_ns,
            longest_stay_ns: machine.longest_stay_ns,
            switches: machine.switches,
            grants: machine.grants,
            ports: machine.ports,
            dom0_heap_bytes: machine.dom0_heap_bytes,
        }
    }
}

const fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Dom0 => "dom0",
        Kind::Driver => "driver",
        Kind::Guest => "guest",
    }
}

const fn state_word(state: State) -> &'static str {
    match state {
        State::Running => "running",
        State::Paused => "paused",
        State::Stopped => "stopped",
        State::Crashed => "crashed",
        State::Quarantined => "quarantined",
        State::Rebooting => "rebooting",
    }
}

/// A table of domains and disks, short and aligned.
pub fn table(domains: &[Domain], disks: &[Disk]) -> String {
    let mut text = format!(
        "{:<16} {:>5} {:<7} {:<11} {:<9} {:>9} {:>10} {:>6} {:>8}\n",
        "NAME", "DOMID", "KIND", "STATE", "EXIT", "MEM(KiB)", "CPU(ms)", "WEIGHT", "RESTARTS"
    );
    for d in domains {
        let domid = d.domid.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let _ = writeln!(
            text,
            "{:<16} {domid:>5} {:<7} {:<11} {:<9} {:>9} {:>10.1} {:>6} {:>8}",
            d.name,
            d.kind,
            d.state,
            d.exit.unwrap_or("-"),
            d.memory_kib,
            d.cpu_ns as f64 / 1e6,
            d.weight,
            d.restarts
        );
    }
    if !disks.is_empty() {
        let _ = writeln!(
            text,
            "{:<16} {:<6} {:<16} {:<16} {:>12} {:>12} {:>9} {:>6}",
            "GUEST", "DISK", "DEVICE", "DRIVER", "READ(KiB)", "WRITTEN(KiB)", "REQUESTS", "ERRORS"
        );
    }
    for d in disks {
        let _ = writeln!(
            text,
            "{:<16} {:<6} {:<16} {:<16} {:>12} {:>12} {:>9} {:>6}",
            d.guest,
            d.vdev,
            d.device,
            d.driver,
            d.read_bytes >> 10,
            d.written_bytes >> 10,
            d.requests,
            d.errors
        );
    }
    text
}

/// What lifts the quarantine of a driver domain.
fn remedy(domain: &DomainReport) -> String {
    match domain.updated {
        Some(_) => format!("bulkhead restart {} --original", domain.name),
        None => format!("bulkhead restart {}", domain.name),
    }
}

/// A quarantine that has just begun, for a person.
pub fn quarantine_line(domain: &str, reason: &str, refuses: bool) -> String {
    let guests = match refuses {
        true => "its guests' requests are answered with errors",
        false => "its guests wait",
    };
    let reason = reason.trim_end_matches([':', '.']);
    format!("quarantined: {reason}. Until `bulkhead restart {domain}` {guests}")
}

/// Which driver domains are in quarantine, why, and what lifts it; empty if there is none.
pub fn quarantines(domains: &[Domain]) -> String {
    let mut text = String::new();
    for d in domains {
        if let (Some(remedy), Some(requests)) = (&d.remedy, d.requests) {
            let _ = writeln!(
                text,
                "{} is in quarantine: {}\n  requests of its guests {requests}; `{remedy}` lifts it",
                d.name, d.reason
            );
        }
    }
    text
}

/// What the domains that did not end well said last, for a person; empty if there is none.
pub fn last_words(domains: &[Domain]) -> String {
    let mut text = String::new();
    for d in domains.iter().filter(|d| !d.last_lines.is_empty()) {
        let _ = writeln!(text, "{} said last:", d.name);
        for line in &d.last_lines {
            let _ = writeln!(text, "  | {line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarantine_says_which_why_what_it_means_and_how_to_lift_it() {
        let mut domain = DomainReport {
            name: "disk".into(),
            domid: 1,
            kind: Kind::Driver,
            state: State::Quarantined,
            exit: Some(bulkhead_link::Exit::Crash),
            reason: "it failed 11 times within 10 s; last: page fault".into(),
            memory_kib: 1,
            cpu_ns: 2,
            virtual_ns: 3,
            weight: 256,
            restarts: 10,
            updated: None,
            refuses: true,
            last_lines: Vec::new(),
        };
        let told = quarantines(&[(&domain).into()]);
        for part in ["disk is in", "11 times", "guests fail", "`bulkhead restart disk` lifts it"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        (domain.refuses, domain.updated) = (false, Some("new.elf".into()));
        let told = quarantines(&[(&domain).into()]);
        assert!(told.contains("guests wait; `bulkhead restart disk --original`"), "{told}");
        let json = serde_json::to_value(Domain::from(&domain)).expect("encodes");
        assert_eq!(json["remedy"], "bulkhead restart disk --original");
        domain.state = State::Running;
        assert_eq!(quarantines(&[(&domain).into()]), "");
    }

    #[test]
    fn the_names_in_the_json_are_those_of_the_contract() {
        let domain = DomainReport {
            name: "g".into(),
            domid: 3,
            kind: Kind::Guest,
            state: State::Stopped,
            exit: Some(bulkhead_link::Exit::PowerOff),
            reason: String::new(),
            memory_kib: 1,
            cpu_ns: 2,
            virtual_ns: 3,
            weight: 256,
            restarts: 0,
            updated: None,
            refuses: false,
            last_lines: vec!["bye".into()],
        };
        let disk = DiskReport {
            guest: "g".into(),
            vdev: "xvda".into(),
            device: "d".into(),
            driver: "disk".into(),
            read_bytes: 1,
            written_bytes: 2,
            requests: 3,
            errors: 4,
        };
        let report = Report {
            outcome: Outcome::GuestFailed,
            reason: String::new(),
            elapsed_s: 1.5,
            machine: Machine { accel: "tcg", cpus: 1, memory_mib: 256 },
            domains: vec![(&domain).into()],
            disks: vec![(&disk).into()],
            nets: Vec::new(),
            restarts: Vec::new(),
            core: None,
        };
        let json = serde_json::to_value(&report).expect("encodes");
        assert_eq!(json["outcome"], "guest-failed");
        assert_eq!(json["elapsed_s"], 1.5);
        for key in ["accel", "cpus", "memory_mib"] {
            assert!(!json["machine"][key].is_null(), "{key}");
        }
        let keys = [
            "name",
            "domid",
            "kind",
            "state",
            "exit",
            "memory_kib",
            "cpu_ns",
            "weight",
            "restarts",
            "last_lines",
        ];
        for key in keys {
            assert!(!json["domains"][0][key].is_null(), "{key}");
        }
        for key in
            ["guest", "device", "driver", "read_bytes", "written_bytes", "requests", "errors"]
        {
            assert!(!json["disks"][0][key].is_null(), "{key}");
        }
        for key in ["updated", "requests", "remedy"] {
            assert!(json["domains"][0].get(key).is_some_and(serde_json::Value::is_null), "{key}");
        }
        assert_eq!(json["domains"][0]["exit"], "poweroff");
        assert!(json["nets"].is_array() && json["restarts"].is_array());
    }
}
