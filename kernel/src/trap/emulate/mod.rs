//! The few instructions that a PV guest executes although ring 3 may not: done for it, on
//! virtual registers. What is not listed here is left to the guest's own #GP or #UD handler.

pub mod cpuid;
pub mod decode;
pub mod flags;
pub mod msr;
pub mod privileged;
pub mod ptwr;

pub use privileged::{forced, privileged, software_interrupt};
pub use ptwr::page_table_write;

use crate::{Core, memory::guest::GuestSpace, state::Caller, trap::context::Mode};
use bulkhead_abi::GuestVa;

/// Longest instruction.
pub const MAX_INSTRUCTION: usize = 15;

/// The bytes at the current vCPU's RIP, as many as can be read.
fn fetch(core: &Core, caller: Caller, buffer: &mut [u8; MAX_INSTRUCTION]) -> usize {
    let Some(vcpu) = core.vcpu(caller) else {
        return 0;
    };
    let root = match vcpu.guest.mode {
        Mode::Kernel => vcpu.roots.kernel,
        Mode::User => vcpu.roots.user,
    };
    let Some(root) = root else { return 0 };
    let (space, rip) = (GuestSpace::new(&core.frames, root), vcpu.regs().rip);
    if space.read_bytes(GuestVa::new(rip), buffer).is_ok() {
        return MAX_INSTRUCTION;
    }
    // The next page may not be there, and the instruction may not need it.
    let here = (0x1000 - (rip & 0xfff) as usize).min(MAX_INSTRUCTION);
    if space.read_bytes(GuestVa::new(rip), &mut buffer[..here]).is_ok() { here } else { 0 }
}
