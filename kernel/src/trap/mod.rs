//! Entry and exit: exceptions and system calls bounced to the guest, privileged
//! instructions emulated, hypercalls taken out of registers and results put back.
//!
//! A guest runs in ring 3 in both its modes ([`context::Mode`]); what it does there that the processor
//! refuses arrives here. Three answers exist: do it for the guest ([`emulate`]), let the guest's
//! own handler have it ([`bounce`]), or end the domain. A guest's trap never is the core's fault.
#![deny(unsafe_code)]

pub mod bounce;
pub mod context;
pub mod debug;
pub mod descriptor;
pub mod emulate;
pub mod entry;
pub mod exception;

#[cfg(test)]
mod tests;

use crate::{
    Core,
    memory::{update, validate::Pte},
};
use bulkhead_abi::{GuestVa, Mfn};

/// The frame that a guest's tables map at `va`, whoever owns it.
fn mapped_frame(core: &Core, root: Mfn, va: GuestVa) -> Option<Mfn> {
    let at = update::l1_entry_of(&core.frames, root, va)?;
    let entry = Pte::new(core.frames.mem().read_u64(at));
    entry.is_present().then(|| entry.mfn())
}

/// DR6 with nothing reported.
pub const DR6_RESET: u64 = 0xffff_0ff0;
/// DR7 with nothing armed.
pub const DR7_RESET: u64 = 0x400;

/// Exception vectors (Intel SDM 3A, table 6-1).
pub mod vector {
    pub const DEBUG: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BREAKPOINT: u8 = 3;
    pub const OVERFLOW: u8 = 4;
    pub const INVALID_OPCODE: u8 = 6;
    pub const NO_DEVICE: u8 = 7;
    pub const DOUBLE_FAULT: u8 = 8;
    pub const INVALID_TSS: u8 = 10;
    pub const NOT_PRESENT: u8 = 11;
    pub const STACK: u8 = 12;
    pub const PROTECTION: u8 = 13;
    pub const PAGE: u8 = 14;
    pub const ALIGNMENT: u8 = 17;
    pub const MACHINE_CHECK: u8 = 18;
    /// First vector that is no exception.
    pub const FIRST_INTERRUPT: u8 = 32;

    /// Whether the frame of an exception carries an error code.
    pub const fn has_error_code(vector: u8) -> bool {
        matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
    }
}

/// What the entry code reports in `UserRegs::entry_vector`: an exception or interrupt
/// vector below 256, or one of these.
pub const ENTRY_SYSCALL: u32 = 0x100;
/// SYSCALL from 32-bit code.
pub const ENTRY_SYSCALL32: u32 = 0x101;
