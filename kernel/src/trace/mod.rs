//! Event rings, counters, and the last words after a fault of the core. Recording costs a few
//! stores; what is recorded leaves the core through Dom0's counters, or when it dies.
#![deny(unsafe_code)]

pub mod words;

use bulkhead_abi::{DomId, VcpuId};
use core::fmt;

/// Events kept.
const KEPT: usize = 64;

/// Something that happened, for the last words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A vCPU was given the CPU.
    Switch { dom: DomId, vcpu: VcpuId },
    /// No vCPU could run.
    Idle,
    /// A guest called.
    Hypercall { dom: DomId, number: u64, first: u64 },
    /// An exception of a guest.
    Exception { dom: DomId, vector: u8, rip: u64 },
    /// A device wants attention.
    Interrupt { vector: u8 },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch { dom, vcpu } => write!(f, "{dom}{vcpu} runs"),
            Self::Idle => f.write_str("idle"),
            Self::Hypercall { dom, number, first } => {
                write!(f, "{dom} calls {number} ({first:#x}, ..)")
            }
            Self::Exception { dom, vector, rip } => {
                write!(f, "{dom} exception {vector} at {rip:#x}")
            }
            Self::Interrupt { vector } => write!(f, "interrupt {vector:#x}"),
        }
    }
}

/// Counters and the last events.
pub struct Trace {
    /// Entries from ring 3.
    pub entries: u64,
    /// vCPU switches.
    pub switches: u64,
    /// Longest stay in ring 0 between a guest and a guest, in cycles of the TSC.
    pub longest_stay: u64,
    events: [Option<(u64, Event)>; KEPT],
    next: usize,
}

impl Trace {
    pub const fn new() -> Self {
        Self { entries: 0, switches: 0, longest_stay: 0, events: [None; KEPT], next: 0 }
    }

    /// Records an event at a value of the TSC; the oldest one goes.
    pub fn record(&mut self, at: u64, event: Event) {
        self.events[self.next % KEPT] = Some((at, event));
        self.next = self.next.wrapping_add(1);
    }

    /// The last events, oldest first.
    pub fn last(&self) -> impl Iterator<Item = (u64, Event)> + '_ {
        let (newer, older) = self.events.split_at(self.next % KEPT);
        older.iter().chain(newer).flatten().copied()
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_events_in_order() {
        let mut trace = Trace::new();
        for n in 0..KEPT as u64 + 10 {
            trace.record(n, Event::Idle);
        }
        let times: Vec<u64> = trace.last().map(|(at, _)| at).collect();
        assert_eq!(times, (10..KEPT as u64 + 10).collect::<Vec<_>>());
    }
}
