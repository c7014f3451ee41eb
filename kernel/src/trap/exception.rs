//! An exception of a guest: done for it, bounced to its handler, or the end of its domain.

use super::{
    bounce::{self, Entry},
    context::Mode,
    descriptor, emulate, vector,
};
use crate::{
    Core, arch,
    domain::lifecycle,
    memory::guest::{Access, GuestSpace},
    state::Caller,
    trace::words,
};
use bulkhead_abi::{GuestVa, PAGE_SIZE};
use core::fmt::Display;

/// Page-fault error code: the page was present.
const FAULT_PRESENT: u32 = 1 << 0;
const FAULT_WRITE: u32 = 1 << 1;
const FAULT_USER: u32 = 1 << 2;
const FAULT_RESERVED: u32 = 1 << 3;
const FAULT_FETCH: u32 = 1 << 4;
/// DR6: a single step.
const DR6_SINGLE_STEP: u64 = 1 << 14;
/// RFLAGS.TF.
const RFLAGS_TF: u64 = 1 << 8;

/// Ends the caller's domain, with its registers on the debug UART.
pub fn crash(core: &mut Core, caller: Caller, why: impl Display) {
    if let Some(vcpu) = core.vcpu(caller) {
        words::guest_registers(caller, vcpu, &why);
    }
    lifecycle::crash(core, caller.dom, format_args!("{}: {why}", caller.vcpu));
    core.request_reschedule(caller.cpu);
}

/// Handles exception `number` of the current vCPU. `None`, here and below: there is no such vCPU.
pub fn handle(core: &mut Core, caller: Caller, number: u8, error: u32) -> Option<()> {
    match number {
        vector::PAGE => return page_fault(core, caller, error, arch::fault_address()),
        vector::PROTECTION => return protection(core, caller, error),
        vector::INVALID_OPCODE if emulate::forced(core, caller).is_some() => {
            return stepped(core, caller);
        }
        vector::NO_DEVICE => core.vcpu_mut(caller)?.guest.task_switched = false,
        vector::DEBUG => core.vcpu_mut(caller)?.guest.debug[6] = arch::take_debug_status(),
        _ => {}
    }
    inject(core, caller, number, vector::has_error_code(number).then_some(error))
}

/// Lets the guest's handler have an exception.
pub fn inject(core: &mut Core, caller: Caller, number: u8, error: Option<u32>) -> Option<()> {
    let trap = core.vcpu(caller)?.guest.traps[usize::from(number)];
    if trap.address == 0 {
        let code = error.unwrap_or(0);
        crash(core, caller, format_args!("unhandled exception {number}, code {code:#x}"));
    } else {
        bounce::enter_kernel(core, caller, Entry::trap(&trap, error));
    }
    Some(())
}

/// After an instruction was done for the guest: the single step that the processor would have reported.
pub fn stepped(core: &mut Core, caller: Caller) -> Option<()> {
    let vcpu = core.vcpu_mut(caller)?;
    if vcpu.regs().rflags & RFLAGS_TF == 0 {
        return Some(());
    }
    vcpu.guest.debug[6] |= DR6_SINGLE_STEP;
    inject(core, caller, vector::DEBUG, None)
}

fn protection(core: &mut Core, caller: Caller, error: u32) -> Option<()> {
    // Bit 1: the error code names an IDT entry; bit 0: an interrupt, not an instruction.
    if error & 3 == 2 {
        let number = emulate::software_interrupt(core, caller).unwrap_or((error >> 3) as u8);
        return software_interrupt(core, caller, number);
    }
    if error == 0 && emulate::privileged(core, caller).is_some() {
        return stepped(core, caller);
    }
    inject(core, caller, vector::PROTECTION, Some(error))
}

/// `INT n`: taken to the guest's handler if it may be called from where it was.
fn software_interrupt(core: &mut Core, caller: Caller, number: u8) -> Option<()> {
    let vcpu = core.vcpu_mut(caller)?;
    let trap = vcpu.guest.traps[usize::from(number)];
    let allowed = vcpu.guest.mode == Mode::Kernel || trap.flags & 3 == 3;
    if trap.address == 0 || !allowed {
        return inject(core, caller, vector::PROTECTION, Some(u32::from(number) << 3 | 2));
    }
    let regs = vcpu.regs_mut();
    regs.rip = regs.rip.wrapping_add(2);
    bounce::enter_kernel(core, caller, Entry::trap(&trap, None));
    Some(())
}

fn page_fault(core: &mut Core, caller: Caller, error: u32, address: u64) -> Option<()> {
    if descriptor::load_ldt_page(core, caller, address).is_some() {
        return Some(());
    }
    let is_kernel = core.vcpu(caller)?.guest.mode == Mode::Kernel;
    if error & (FAULT_PRESENT | FAULT_RESERVED) == FAULT_PRESENT {
        if is_stale(core, caller, error, address).unwrap_or(false) {
            arch::flush_page(address);
            return Some(());
        }
        let is_write = error & FAULT_WRITE != 0;
        if is_write && is_kernel && emulate::page_table_write(core, caller, address).is_some() {
            return stepped(core, caller);
        }
    }
    bounce::store_fault_address(core, caller, address);
    let code = if is_kernel { error & !FAULT_USER } else { error };
    inject(core, caller, vector::PAGE, Some(code))
}

/// Whether the tables allow what faulted: the TLB had an older, stricter entry, and the processor
/// has dropped it by faulting. The same instruction and address count once in a row, so that
/// nothing can loop here.
fn is_stale(core: &mut Core, caller: Caller, error: u32, address: u64) -> Option<bool> {
    if error & FAULT_FETCH != 0 {
        return Some(false);
    }
    let access = if error & FAULT_WRITE != 0 { Access::Write } else { Access::Read };
    let space = GuestSpace::new(&core.frames, core.vcpu(caller)?.root()?);
    let is_allowed = space.translate(GuestVa::new(address), access).is_ok();
    let vcpu = core.vcpu_mut(caller)?;
    let here = (vcpu.regs().rip, address & !(PAGE_SIZE as u64 - 1));
    let is_stale = is_allowed && vcpu.guest.last_spurious != here;
    vcpu.guest.last_spurious = if is_stale { here } else { (0, 0) };
    Some(is_stale)
}

/// SYSCALL from the guest's user mode: its system call.
pub fn system_call(core: &mut Core, caller: Caller) -> Option<()> {
    let callback = core.vcpu(caller)?.guest.syscall;
    if callback.address == 0 {
        return invalid_syscall(core, caller);
    }
    bounce::enter_kernel(core, caller, Entry::callback(callback));
    Some(())
}

/// SYSCALL where the guest offers none: #UD on the instruction.
pub fn invalid_syscall(core: &mut Core, caller: Caller) -> Option<()> {
    let regs = core.vcpu_mut(caller)?.regs_mut();
    regs.rip = regs.rip.wrapping_sub(2);
    inject(core, caller, vector::INVALID_OPCODE, None)
}

/// The state of the vCPU can not be loaded (a selector, or what IRET refuses): the guest's
/// failsafe callback gets it.
pub fn failsafe(core: &mut Core, caller: Caller) -> Option<()> {
    let failsafe = core.vcpu(caller)?.guest.failsafe;
    let entry = Entry { with_selectors: true, ..Entry::callback(failsafe) };
    bounce::enter_kernel(core, caller, entry);
    let regs = core.vcpu_mut(caller)?.regs_mut();
    (regs.ds, regs.es, regs.fs, regs.gs) = (0, 0, 0, 0);
    Some(())
}
