//! Faults that Dom0 injects into a driver domain for a campaign, and the signs of what comes
//! of them. What the faults are for, and which there are, is the campaign's.

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Most bytes of code that a patch changes.
pub const MOST_CODE: usize = 16;

/// Something to do to a driver domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Injection {
    /// An order in its ledger, which the domain obeys by itself (`bulkhead_abi::ledger::fault`).
    Order {
        /// Its number.
        fault: u64,
        /// What that means is the fault's.
        argument: u64,
        /// What could go wrong does not, so often.
        skip: u32,
        /// After the first time it goes wrong so often again.
        more: u32,
    },
    /// Other code, or a flipped bit of a register, from when an instruction is reached.
    Patch(Patch),
    /// A bit of its memory is flipped at once.
    Flip {
        /// The byte.
        target: Target,
        /// 0 to 7.
        bit: u8,
    },
    /// It is ended at once, as by a crash.
    Kill,
}

/// A change to the code of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// Linear address of the instruction.
    pub va: u64,
    /// Its bytes, 1 to [`MOST_CODE`].
    #[serde(with = "serde_bytes")]
    pub old: Vec<u8>,
    /// What becomes of it.
    pub change: Change,
}

/// What becomes of an instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// These bytes, as many as before.
    Code(#[serde(with = "serde_bytes")] Vec<u8>),
    /// It stays, and a bit of a register is flipped before it once.
    Register {
        /// As instructions number it, 0 to 15; 17 for rip.
        register: u32,
        /// 0 to 63.
        bit: u32,
    },
}

/// A byte of a domain's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// At a linear address of its image.
    Address(u64),
    /// In its heap, at this share of 2^32 from its start to its end.
    Heap(u32),
    /// In its stack, likewise.
    Stack(u32),
}

/// What is seen of a driver domain. All times are system time, ns, and 0 before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signs {
    /// When this was looked at.
    pub now_ns: u64,
    /// When the last injection was made.
    pub injected_ns: u64,
    /// When it had its first effect, by the word of the domain.
    pub activated_ns: u64,
    /// Beats of its heart in this life.
    pub beats: u64,
    /// Times it was restarted.
    pub restarts: u32,
    /// It is about to be.
    pub is_reviving: bool,
    /// It is not restarted any more.
    pub is_quarantined: bool,
}
