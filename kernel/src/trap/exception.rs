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
};
use bulkhead_abi::{GuestVa, PAGE_SIZE};

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
pub fn crash(core: &mut Core, caller: Caller, why: &str) {
    if let Some(vcpu) = core.vcpu(caller) {
        crate::trace::words::guest_registers(caller, vcpu, why);
    }
    lifecycle::crash(core, caller.dom, format_args!("{}: {why}", caller.vcpu));
    if let Some(state) = core.cpus.get_mut(caller.cpu.0) {
        state.need_resched = true;
    }
}

/// Handles exception `number` of the current vCPU.
pub fn handle(core: &mut Core, caller: Caller, number: u8, error: u32) {
    match number {
        vector::PAGE => return page_fault(core, caller, error, arch::fault_address()),
        vector::PROTECTION => return protection(core, caller, error),
        vector::INVALID_OPCODE if emulate::forced(core, caller) => return stepped(core, caller),
        _ => {}
    }
    let Some(vcpu) = core.vcpu_mut(caller) else {
        return;
    };
    match number {
        vector::NO_DEVICE => vcpu.guest.task_switched = false,
        vector::DEBUG => vcpu.guest.debug[6] = arch::take_debug_status(),
        _ => {}
    }
    let code = vector::has_error_code(number).then_some(error);
    inject(core, caller, number, code);
}

/// Lets the guest's handler have an exception.
pub fn inject(core: &mut Core, caller: Caller, number: u8, error_code: Option<u32>) {
    let Some(vcpu) = core.vcpu(caller) else {
        return;
    };
    let trap = vcpu.guest.traps[usize::from(number)];
    if trap.address == 0 {
        let mut why = heapless::String::<64>::new();
        // Fits: 64 bytes.
        let _ = core::fmt::write(
            &mut why,
            format_args!("unhandled exception {number}, code {:#x}", error_code.unwrap_or(0)),
        );
        return crash(core, caller, &why);
    }
    bounce::enter_kernel(core, caller, Entry::trap(&trap, error_code));
}

/// After an instruction was emulated: the single step that the processor would have reported.
fn stepped(core: &mut Core, caller: Caller) {
    let Some(vcpu) = core.vcpu_mut(caller) else {
        return;
    };
    if vcpu.regs().rflags & RFLAGS_TF != 0 {
        vcpu.guest.debug[6] |= DR6_SINGLE_STEP;
        inject(core, caller, vector::DEBUG, None);
    }
}

fn protection(core: &mut Core, caller: Caller, error: u32) {
    // Bit 1: the error code names an IDT entry; bit 0: an interrupt, not an instruction.
    if error & 3 == 2 {
        let number = emulate::software_interrupt(core, caller).unwrap_or((error >> 3) as u8);
        return software_interrupt(core, caller, number);
    }
    if error == 0 && emulate::privileged(core, caller) {
        return stepped(core, caller);
    }
    inject(core, caller, vector::PROTECTION, Some(error));
}

/// `INT n`: taken to the guest's handler if it may be called from where it was.
fn software_interrupt(core: &mut Core, caller: Caller, number: u8) {
    let Some(vcpu) = core.vcpu_mut(caller) else {
        return;
    };
    let trap = vcpu.guest.traps[usize::from(number)];
    let allowed = vcpu.guest.mode == Mode::Kernel || trap.flags & 3 == 3;
    if trap.address == 0 || !allowed {
        return inject(core, caller, vector::PROTECTION, Some(u32::from(number) << 3 | 2));
    }
    let regs = vcpu.regs_mut();
    regs.rip = regs.rip.wrapping_add(2);
    bounce::enter_kernel(core, caller, Entry::trap(&trap, None));
}

fn page_fault(core: &mut Core, caller: Caller, error: u32, address: u64) {
    if let Some(page) = arch::ldt_window_page(address)
        && descriptor::load_ldt_page(core, caller, page)
    {
        return;
    }
    let Some(vcpu) = core.vcpu(caller) else {
        return;
    };
    let mode = vcpu.guest.mode;
    if error & (FAULT_PRESENT | FAULT_RESERVED) == FAULT_PRESENT {
        if is_stale(core, caller, error, address) {
            return;
        }
        if error & FAULT_WRITE != 0
            && mode == Mode::Kernel
            && emulate::page_table_write(core, caller, address)
        {
            return stepped(core, caller);
        }
    }
    bounce::store_fault_address(core, caller, address);
    let code = if mode == Mode::Kernel { error & !FAULT_USER } else { error };
    inject(core, caller, vector::PAGE, Some(code));
}

/// Whether the tables allow what faulted: the TLB had an older, stricter entry, and the processor
/// has dropped it by faulting. The same instruction and address count once in a row, so that
/// nothing can loop here.
fn is_stale(core: &mut Core, caller: Caller, error: u32, address: u64) -> bool {
    let access = match (error & FAULT_FETCH != 0, error & FAULT_WRITE != 0) {
        (true, _) => return false,
        (_, true) => Access::Write,
        _ => Access::Read,
    };
    let Some(vcpu) = core.vcpu(caller) else {
        return false;
    };
    let root = match vcpu.guest.mode {
        Mode::Kernel => vcpu.roots.kernel,
        Mode::User => vcpu.roots.user,
    };
    let Some(root) = root else { return false };
    let allowed =
        GuestSpace::new(&core.frames, root).translate(GuestVa::new(address), access).is_ok();
    let Some(vcpu) = core.vcpu_mut(caller) else {
        return false;
    };
    let here = (vcpu.regs().rip, address & !(PAGE_SIZE as u64 - 1));
    let again = vcpu.guest.last_spurious == here;
    vcpu.guest.last_spurious = if allowed && !again { here } else { (0, 0) };
    if allowed && !again {
        arch::flush_page(address);
    }
    allowed && !again
}

/// SYSCALL from the guest's user mode: its system call.
pub fn system_call(core: &mut Core, caller: Caller) {
    let Some(vcpu) = core.vcpu_mut(caller) else {
        return;
    };
    let callback = vcpu.guest.syscall;
    if callback.address == 0 {
        return invalid_syscall(core, caller);
    }
    bounce::enter_kernel(core, caller, Entry::callback(callback));
}

/// SYSCALL where the guest offers none: #UD on the instruction.
pub fn invalid_syscall(core: &mut Core, caller: Caller) {
    let Some(vcpu) = core.vcpu_mut(caller) else {
        return;
    };
    let regs = vcpu.regs_mut();
    regs.rip = regs.rip.wrapping_sub(2);
    inject(core, caller, vector::INVALID_OPCODE, None);
}

/// The state of the vCPU can not be loaded (a selector, or what IRET refuses): the guest's
/// failsafe callback gets it.
pub fn failsafe(core: &mut Core, caller: Caller) {
    let Some(vcpu) = core.vcpu_mut(caller) else {
        return;
    };
    let entry = Entry { with_selectors: true, ..Entry::callback(vcpu.guest.failsafe) };
    bounce::enter_kernel(core, caller, entry);
    if let Some(vcpu) = core.vcpu_mut(caller) {
        let regs = vcpu.regs_mut();
        (regs.ds, regs.es, regs.fs, regs.gs) = (0, 0, 0, 0);
    }
}
