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

use crate::{Core, memory::guest::GuestSpace, state::Caller};
use bulkhead_abi::GuestVa;
use decode::{Decoder, MAX_INSTRUCTION};

/// The bytes at the current vCPU's RIP, as many as can be read.
fn fetch(core: &Core, caller: Caller) -> Option<Decoder> {
    let vcpu = core.vcpu(caller)?;
    let (space, rip) = (GuestSpace::new(&core.frames, vcpu.root()?), vcpu.regs().rip);
    let mut bytes = [0; MAX_INSTRUCTION];
    // The next page may not be there, and the instruction may not need it.
    let here = (0x1000 - (rip & 0xfff) as usize).min(MAX_INSTRUCTION);
    [MAX_INSTRUCTION, here].into_iter().find_map(|count| {
        space.read_bytes(GuestVa::new(rip), &mut bytes[..count]).ok()?;
        Some(Decoder::new(&bytes[..count]))
    })
}
