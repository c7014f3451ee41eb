//! The part of a vCPU that stays in the processor while the core runs: data segments and their
//! bases, FPU, debug registers. The core uses none of them.

use super::entry;
use crate::{
    arch::Base,
    trap::{DR6_RESET, DR7_RESET, context::FpuArea},
};
use bulkhead_abi::vcpu::UserRegs;
use core::{
    arch::asm,
    sync::atomic::{AtomicBool, Ordering},
};
use x86_64::registers::{
    control::{Cr0, Cr0Flags, Cr2},
    model_specific::Msr,
};

const TSC_AUX: u32 = 0xc000_0103;

const BASES: [Base; 3] = [Base::Fs, Base::Gs, Base::InactiveGs];

/// The address of the last page fault.
pub fn fault_address() -> u64 {
    Cr2::read_raw()
}

pub fn read_base(base: Base) -> u64 {
    // SAFETY: a segment base register.
    unsafe { Msr::new(base as u32).read() }
}

/// Sets a base, which is canonical: every way a guest has to set one checks that.
pub fn write_base(base: Base, va: u64) {
    // SAFETY: a segment base register, and the core uses no segment.
    unsafe { Msr::new(base as u32).write(va) }
}

/// Sets TSC_AUX, where the processor has it.
pub fn write_tsc_aux(value: u32) {
    if super::cpu::features().rdtscp {
        // SAFETY: a number that the core does not use.
        unsafe { Msr::new(TSC_AUX).write(value.into()) };
    }
}

/// Exchanges the two GS bases, when a vCPU changes its mode.
pub fn swap_gs_bases() {
    // SAFETY: the core addresses nothing through GS.
    unsafe { asm!("swapgs", options(nomem, nostack, preserves_flags)) };
}

/// Takes the selectors into `regs`; gives the FS base, the GS base and the inactive GS base.
pub fn save_segments(regs: &mut UserRegs) -> [u64; 3] {
    // SAFETY: reads selectors.
    unsafe {
        asm!("mov {0:x}, ds", "mov {1:x}, es", "mov {2:x}, fs", "mov {3:x}, gs",
            out(reg) regs.ds, out(reg) regs.es, out(reg) regs.fs, out(reg) regs.gs,
            options(nomem, nostack, preserves_flags));
    }
    BASES.map(read_base)
}

/// Loads the selectors of `regs`, then bases. A selector that names nothing becomes null; false then.
pub fn load_segments(regs: &UserRegs, bases: [u64; 3]) -> bool {
    let fine = entry::load_selectors(regs.ds, regs.es, regs.fs, regs.gs);
    BASES.into_iter().zip(bases).for_each(|(base, va)| write_base(base, va));
    fine
}

/// Loads a selector into the GS of user mode, while the vCPU is in kernel mode; one that names
/// nothing becomes null.
pub fn load_user_gs(selector: u16) {
    swap_gs_bases();
    entry::load_gs(selector);
    swap_gs_bases();
}

/// Whether CR0.TS is set.
static TASK_SWITCHED: AtomicBool = AtomicBool::new(false);

/// Sets CR0.TS to what the guest has.
pub fn set_task_switched(set: bool) {
    if TASK_SWITCHED.swap(set, Ordering::Relaxed) != set {
        let mut cr0 = Cr0::read();
        cr0.set(Cr0Flags::TASK_SWITCHED, set);
        // SAFETY: changes TS only.
        unsafe { Cr0::write(cr0) };
    }
}

/// Sets XCR0, to a value that [`crate::trap::emulate::privileged::is_valid_xcr0`] accepts.
pub fn write_xcr0(value: u64) {
    // SAFETY: CR4.OSXSAVE is set and the value valid, both by the callers.
    unsafe {
        asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nomem, nostack, preserves_flags));
    }
}

/// Saves the extended state of the vCPU that goes. All components, whatever the guest's XCR0.
pub fn save_fpu(area: &mut FpuArea) {
    set_task_switched(false);
    let all = super::cpu::features().xcr0;
    let at = area.0.as_mut_ptr();
    if all == 0 {
        // SAFETY: the area is 64-byte aligned and larger than 512 bytes.
        unsafe { asm!("fxsave64 [{}]", in(reg) at, options(nostack, preserves_flags)) };
        return;
    }
    write_xcr0(all);
    // SAFETY: the area is 64-byte aligned and takes every component of XCR0 (at most to AVX-512).
    unsafe {
        asm!("xsave64 [{}]", in(reg) at, in("eax") all as u32, in("edx") (all >> 32) as u32,
            options(nostack, preserves_flags));
    }
}

/// Loads the extended state of the vCPU that comes, and its XCR0.
pub fn load_fpu(area: &FpuArea, xcr0: u64) {
    set_task_switched(false);
    let all = super::cpu::features().xcr0;
    let at = area.0.as_ptr();
    if all == 0 {
        // SAFETY: written by FXSAVE or by `FpuArea`, which masks MXCSR.
        unsafe { asm!("fxrstor64 [{}]", in(reg) at, options(nostack, readonly, preserves_flags)) };
        return;
    }
    write_xcr0(all);
    // SAFETY: written by XSAVE or by `FpuArea`, so that no reserved bit is set.
    unsafe {
        asm!("xrstor64 [{}]", in(reg) at, in("eax") all as u32, in("edx") (all >> 32) as u32,
            options(nostack, readonly, preserves_flags));
    }
    write_xcr0(xcr0 & all);
}

/// Whether debug registers differ from what they are after reset.
static ARMED: AtomicBool = AtomicBool::new(false);

/// Loads a vCPU's debug registers; nothing is done from one that uses none to another.
pub fn load_debug(registers: &[u64; 8]) {
    let [dr0, dr1, dr2, dr3, _, _, dr6, dr7] = *registers;
    let armed = dr7 != DR7_RESET || dr6 != DR6_RESET;
    if !ARMED.swap(armed, Ordering::Relaxed) && !armed {
        return;
    }
    // SAFETY: `trap::debug` lets in no breakpoint in the core, no general detect and no reserved bit.
    unsafe {
        asm!("mov dr7, {}", in(reg) DR7_RESET, options(nomem, nostack, preserves_flags));
        asm!("mov dr0, {}", in(reg) dr0, options(nomem, nostack, preserves_flags));
        asm!("mov dr1, {}", in(reg) dr1, options(nomem, nostack, preserves_flags));
        asm!("mov dr2, {}", in(reg) dr2, options(nomem, nostack, preserves_flags));
        asm!("mov dr3, {}", in(reg) dr3, options(nomem, nostack, preserves_flags));
        asm!("mov dr6, {}", in(reg) dr6, options(nomem, nostack, preserves_flags));
        asm!("mov dr7, {}", in(reg) dr7, options(nomem, nostack, preserves_flags));
    }
}

/// Takes what DR6 reports and resets it.
pub fn take_debug_status() -> u64 {
    let status: u64;
    // SAFETY: DR6 is the guest's; resetting it arms nothing.
    unsafe {
        asm!("mov {}, dr6", out(reg) status, options(nomem, nostack, preserves_flags));
        asm!("mov dr6, {}", in(reg) DR6_RESET, options(nomem, nostack, preserves_flags));
    }
    status
}
