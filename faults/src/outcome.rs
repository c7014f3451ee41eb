//! What came of a fault: what was seen, and the class that this is.
//!
//! The classes follow Avizienis, Laprie, Randell and Landwehr (2004): a fault becomes an
//! error when it is activated, and a failure when somebody can notice it.

use crate::units::Us;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What was seen from the moment a fault was injected until its window closed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// When it was activated, counted from its injection; null if it was not.
    pub activated_us: Option<Us>,
    /// What noticed it first, other than the load; null if nothing did.
    pub detected: Option<Detected>,
    /// The driver domain's restarts, in their order.
    pub restarts: Vec<Restart>,
    /// What the verifying load says.
    pub load: Load,
    /// The load stood still for longer than the deadline before anything noticed.
    pub overdue: bool,
    /// Requests are answered at the end of the window. The front end that misbehaved, if
    /// one did, does not count.
    pub serving: bool,
    /// Domains other than the one at fault that stopped, crashed or stood still for
    /// another reason than waiting for the driver domain; what became of each.
    pub others: Vec<String>,
    /// The core's last words, if it faulted.
    pub core: Option<String>,
}

/// That something was noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detected {
    /// By what.
    pub cause: Cause,
    /// How long after the activation.
    pub after_us: Us,
    /// What it said: a panic's message, a violation.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// What noticed a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The domain crashed: a panic, an exception, a refused hypercall.
    Crash,
    /// Its heartbeat missed the deadline.
    Hang,
    /// The other side of a ring reported something that cannot be.
    Violation,
    /// A front end's checksum did not match.
    Integrity,
    /// It was stopped on request.
    Request,
}

impl Cause {
    /// As a log writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Hang => "hang",
            Self::Violation => "violation",
            Self::Integrity => "integrity",
            Self::Request => "request",
        }
    }
}

/// One restart, by its phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// Why.
    pub cause: Cause,
    /// From the failure until it was noticed.
    pub detect_us: Us,
    /// Until the old life was gone: device quiet, memory back.
    pub teardown_us: Us,
    /// Until the pristine image ran.
    pub rebuild_us: Us,
    /// Until the device was ready.
    pub device_us: Us,
    /// Until the first new response.
    pub first_response_us: Us,
}

/// The names of the phases, in their order.
pub const PHASES: [&str; 5] = ["detect", "tear down", "rebuild", "device", "first response"];

impl Restart {
    /// The phases, in their order.
    pub const fn phases(&self) -> [Us; 5] {
        [self.detect_us, self.teardown_us, self.rebuild_us, self.device_us, self.first_response_us]
    }

    /// From the failure to the first new response.
    pub fn blackout(&self) -> Us {
        self.phases().into_iter().fold(Us::default(), Us::plus)
    }
}

/// What the verifying load says: how many requests came to which end. A block says of
/// itself which one it is and which write it is from, so that these can be told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Answered with an error.
    pub errors: u64,
    /// Read with contents that nobody wrote.
    pub wrong: u64,
    /// Read with contents older than the last acknowledged write: a write was lost.
    pub stale: u64,
    /// Read half old and half new.
    pub torn: u64,
    /// Read with what belongs to another block.
    pub misdirected: u64,
}

impl Load {
    /// Requests that were answered as if all were well, with data that is not.
    pub const fn corrupt(&self) -> u64 {
        self.wrong
            .saturating_add(self.stale)
            .saturating_add(self.torn)
            .saturating_add(self.misdirected)
    }
}

/// The class of what came of a fault, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was never reached.
    NotActivated,
    /// It was reached, and nothing came of it.
    Benign,
    /// It was noticed and recovered from, and the guests saw no error.
    RecoveredInvisible,
    /// The service went on, and a guest saw an error.
    RecoveredVisible,
    /// It was noticed, and the service did not come back.
    NotRecovered,
    /// The service stood still past the deadline, and nothing noticed in time.
    Hang,
    /// A guest was given wrong data as if it were right.
    SilentCorruption,
    /// The core or another domain was affected.
    Escape,
}

impl Outcome {
    /// All, from best to worst.
    pub const ALL: [Self; 8] = [
        Self::NotActivated,
        Self::Benign,
        Self::RecoveredInvisible,
        Self::RecoveredVisible,
        Self::NotRecovered,
        Self::Hang,
        Self::SilentCorruption,
        Self::Escape,
    ];

    /// The class of an observation. The worst thing that was seen decides: one that
    /// happens although the fault was not activated is counted all the same.
    pub fn of(seen: &Observation) -> Self {
        if seen.core.is_some() || !seen.others.is_empty() {
            Self::Escape
        } else if seen.load.corrupt() > 0 {
            Self::SilentCorruption
        } else if !seen.serving && seen.is_detected() {
            Self::NotRecovered
        } else if seen.overdue || !seen.serving {
            Self::Hang
        } else if seen.load.errors > 0 {
            Self::RecoveredVisible
        } else if seen.is_detected() {
            Self::RecoveredInvisible
        } else if seen.activated_us.is_some() {
            Self::Benign
        } else {
            Self::NotActivated
        }
    }

    /// As a log writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotActivated => "not-activated",
            Self::Benign => "benign",
            Self::RecoveredInvisible => "recovered-invisible",
            Self::RecoveredVisible => "recovered-visible",
            Self::NotRecovered => "not-recovered",
            Self::Hang => "hang",
            Self::SilentCorruption => "silent-corruption",
            Self::Escape => "escape",
        }
    }

    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::NotActivated => "not activated",
            Self::Benign => "benign",
            Self::RecoveredInvisible => "recovered, nothing visible",
            Self::RecoveredVisible => "recovered, error visible",
            Self::NotRecovered => "not recovered",
            Self::Hang => "hang past the deadline",
            Self::SilentCorruption => "silent corruption",
            Self::Escape => "escape",
        }
    }

    /// Whether it is what no system should have.
    pub const fn is_failure(self) -> bool {
        !matches!(
            self,
            Self::NotActivated | Self::Benign | Self::RecoveredInvisible | Self::RecoveredVisible
        )
    }
}

impl Observation {
    /// Whether the system noticed, by itself.
    pub const fn is_detected(&self) -> bool {
        self.detected.is_some() || !self.restarts.is_empty()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESTART: Restart = Restart {
        cause: Cause::Crash,
        detect_us: Us::new(10),
        teardown_us: Us::new(20),
        rebuild_us: Us::new(30),
        device_us: Us::new(40),
        first_response_us: Us::new(50),
    };

    /// Nothing happened, and all goes on.
    fn calm() -> Observation {
        Observation { serving: true, ..Observation::default() }
    }

    fn activated() -> Observation {
        Observation { activated_us: Some(Us::new(5)), ..calm() }
    }

    fn restarted() -> Observation {
        Observation { restarts: vec![RESTART], ..activated() }
    }

    fn reported(cause: Cause) -> Observation {
        let detected = Detected { cause, after_us: Us::new(9), reason: String::new() };
        Observation { detected: Some(detected), ..activated() }
    }

    fn load(errors: u64, corrupt: [u64; 4]) -> Load {
        let [wrong, stale, torn, misdirected] = corrupt;
        Load { errors, wrong, stale, torn, misdirected }
    }

    #[test]
    fn each_observation_has_its_class() {
        use Outcome::*;
        let core = || Some("the core faulted".to_owned());
        let others = || vec!["guest-b crashed".to_owned()];
        let wrong = |corrupt| Observation { load: load(0, corrupt), ..activated() };
        #[rustfmt::skip]
        let table = [
            (NotActivated, "nothing at all", calm()),
            (Benign, "activated, nothing seen", activated()),
            (RecoveredInvisible, "restarted", restarted()),
            (RecoveredInvisible, "a front end was refused, others go on", reported(Cause::Violation)),
            (RecoveredInvisible, "restarted, activation not seen", Observation { activated_us: None, ..restarted() }),
            (RecoveredVisible, "restarted with an error", Observation { load: load(1, [0; 4]), ..restarted() }),
            (RecoveredVisible, "an error, nothing noticed", Observation { load: load(1, [0; 4]), ..activated() }),
            (NotRecovered, "restarted in vain", Observation { serving: false, ..restarted() }),
            (NotRecovered, "restarted in vain, late", Observation { serving: false, overdue: true, ..restarted() }),
            (NotRecovered, "reported, not restarted", Observation { serving: false, ..reported(Cause::Crash) }),
            (Hang, "stands still, unnoticed", Observation { serving: false, overdue: true, ..activated() }),
            (Hang, "stands still at the end", Observation { serving: false, ..activated() }),
            (Hang, "stood still, went on by itself", Observation { overdue: true, ..activated() }),
            (Hang, "noticed too late, then recovered", Observation { overdue: true, ..restarted() }),
            (SilentCorruption, "wrong", wrong([1, 0, 0, 0])),
            (SilentCorruption, "stale", wrong([0, 1, 0, 0])),
            (SilentCorruption, "torn", wrong([0, 0, 1, 0])),
            (SilentCorruption, "misdirected", wrong([0, 0, 0, 1])),
            (SilentCorruption, "with a restart and an error", Observation { load: load(1, [1, 0, 0, 0]), ..restarted() }),
            (SilentCorruption, "and not serving", Observation { load: load(0, [0, 1, 0, 0]), serving: false, ..restarted() }),
            (Escape, "the core", Observation { core: core(), ..restarted() }),
            (Escape, "another domain", Observation { others: others(), ..restarted() }),
            (Escape, "another domain, with corruption", Observation { others: others(), ..wrong([1, 0, 0, 0]) }),
            (Escape, "the core, not activated", Observation { core: core(), ..calm() }),
        ];
        for (class, name, seen) in table {
            assert_eq!(Outcome::of(&seen), class, "{name}");
        }
    }

    #[test]
    fn names_are_those_of_the_log() {
        for outcome in Outcome::ALL {
            let json = serde_json::to_string(&outcome).unwrap();
            assert_eq!(json, format!("\"{outcome}\""));
        }
    }

    #[test]
    fn a_blackout_is_the_sum_of_its_phases() {
        assert_eq!(RESTART.blackout(), Us::new(150));
    }
}
