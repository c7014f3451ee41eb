//! The way into and out of a guest's kernel: frames on its stack, the mask of its events,
//! the switch between its two modes. ABI notes 3.3 and 3.6.

use super::{
    context::{Callback, Mode, in_hole, is_guest_address, sanitize_rflags},
    exception,
};
use crate::{Core, arch, domain::vcpu::Vcpu, event, state::Caller};
use bulkhead_abi::{
    GuestVa, Maddr,
    shared_info::VcpuInfo,
    trap::{
        FLAT_RING3_CS64, FLAT_RING3_SS64, IretContext, TI_MASK_EVENTS, TrapInfo, VGCF_IN_SYSCALL,
        VMASST_ARCHITECTURAL_IOPL,
    },
    vcpu::UserRegs,
};
use core::mem::offset_of;

const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_IOPL: u64 = 3 << 12;
/// TF, NT, RF, VM, AC: off on entry to a handler.
const RFLAGS_CLEARED: u64 = 1 << 8 | 1 << 14 | 1 << 16 | 1 << 17 | 1 << 18;
/// Most words of a frame: the failsafe callback's.
const MAX_WORDS: usize = 11;

/// One way into the guest's kernel.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub address: u64,
    pub cs: u16,
    pub mask_events: bool,
    pub error_code: Option<u32>,
    /// The frame also carries DS, ES, FS and GS.
    pub with_selectors: bool,
}

impl Entry {
    /// By a callback.
    pub fn callback(callback: Callback) -> Self {
        Self {
            address: callback.address,
            cs: FLAT_RING3_CS64,
            mask_events: callback.mask_events,
            error_code: None,
            with_selectors: false,
        }
    }

    /// By an entry of the trap table.
    pub fn trap(trap: &TrapInfo, error_code: Option<u32>) -> Self {
        Self {
            address: trap.address,
            cs: trap.cs,
            mask_events: trap.flags & TI_MASK_EVENTS != 0,
            error_code,
            with_selectors: false,
        }
    }
}

/// Where in its `vcpu_info` a vCPU finds the address of a page fault.
fn fault_slot(vcpu: &Vcpu) -> Maddr {
    Maddr::new(vcpu.info.get() + offset_of!(VcpuInfo, cr2) as u64)
}

/// Enters the guest's kernel: pushes the frame and turns the registers to the handler. A guest
/// without handler, or whose stack can not take the frame, is ended: the domain then
/// is crashed when this returns.
pub fn enter_kernel(core: &mut Core, caller: Caller, entry: Entry) {
    if let Err(why) = try_enter(core, caller, entry) {
        exception::crash(core, caller, why);
    }
}

fn try_enter(core: &mut Core, caller: Caller, entry: Entry) -> Result<(), &'static str> {
    if entry.address == 0 {
        return Err("no handler registered");
    }
    let iopl_assist = has_iopl_assist(core, caller);
    let vcpu = core.vcpu(caller).ok_or("no such vcpu")?;
    let masked = u8::from(event::is_upcall_masked(core, vcpu));
    let (words, count) = frame(vcpu, entry, masked, iopl_assist);

    let from_user = vcpu.guest.mode == Mode::User;
    let top = if from_user { vcpu.guest.kernel_sp } else { vcpu.regs().rsp };
    let base = (top & !15).wrapping_sub(8 * count as u64);
    if !is_guest_address(base) || in_hole(top.wrapping_sub(1)) {
        return Err("its kernel stack lies in the core's range");
    }
    let mut bytes = [0; 8 * MAX_WORDS];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    // The frame goes through the kernel's tables even when the trap came from user mode.
    core.guest(caller)
        .write_bytes(GuestVa::new(base), &bytes[..8 * count])
        .map_err(|_| "its kernel stack can not be written")?;
    if entry.mask_events {
        event::set_upcall_mask(core, vcpu, true);
    }
    let vcpu = core.vcpu_mut(caller).ok_or("no such vcpu")?;
    set_mode(vcpu, Mode::Kernel);
    let regs = vcpu.regs_mut();
    regs.rip = entry.address;
    regs.cs = entry.cs | 3;
    regs.ss = FLAT_RING3_SS64;
    regs.rsp = base;
    regs.rflags = sanitize_rflags(regs.rflags & !RFLAGS_CLEARED);
    Ok(())
}

/// The words of a frame, lowest address first, and how many they are.
fn frame(vcpu: &Vcpu, entry: Entry, masked: u8, iopl_assist: bool) -> ([u64; MAX_WORDS], usize) {
    let regs = vcpu.regs();
    let cs = if vcpu.guest.mode == Mode::Kernel { regs.cs & !3 } else { regs.cs };
    let mut rflags = regs.rflags & !(RFLAGS_IF | RFLAGS_IOPL);
    if masked == 0 {
        rflags |= RFLAGS_IF;
    }
    if iopl_assist {
        rflags |= u64::from(vcpu.guest.iopl) << 12;
    }
    let mut words = [0; MAX_WORDS];
    let mut count = 0;
    let mut push = |word: u64| {
        if let Some(slot) = words.get_mut(count) {
            *slot = word;
            count += 1;
        }
    };
    push(regs.rcx);
    push(regs.r11);
    if entry.with_selectors {
        [regs.ds, regs.es, regs.fs, regs.gs].into_iter().for_each(|selector| push(selector.into()));
    }
    if let Some(code) = entry.error_code {
        push(code.into());
    }
    push(regs.rip);
    push(u64::from(cs) | u64::from(masked) << 32);
    push(rflags);
    push(regs.rsp);
    push(regs.ss.into());
    (words, count)
}

fn has_iopl_assist(core: &Core, caller: Caller) -> bool {
    core.domains.get(caller.dom).is_some_and(|d| d.assists >> VMASST_ARCHITECTURAL_IOPL & 1 != 0)
}

/// Switches the current vCPU between its two modes. The root follows at the exit.
pub fn set_mode(vcpu: &mut Vcpu, mode: Mode) {
    if vcpu.guest.mode != mode {
        vcpu.guest.mode = mode;
        arch::swap_gs_bases();
    }
}

/// The `iret` hypercall: the frame at RSP becomes the state of the vCPU.
pub fn leave_kernel(core: &mut Core, caller: Caller) {
    if let Err(why) = try_leave(core, caller) {
        exception::crash(core, caller, why);
    }
}

fn try_leave(core: &mut Core, caller: Caller) -> Result<(), &'static str> {
    let iopl_assist = has_iopl_assist(core, caller);
    let vcpu = core.vcpu(caller).ok_or("no such vcpu")?;
    let (at, has_user_root) = (vcpu.regs().rsp, vcpu.roots.user.is_some());
    let frame: IretContext =
        core.guest(caller).read(GuestVa::new(at)).map_err(|_| "its iret frame can not be read")?;

    let vcpu = core.vcpu_mut(caller).ok_or("no such vcpu")?;
    if frame.cs & 3 == 3 {
        if !has_user_root {
            return Err("it went to user mode without a user page table");
        }
        set_mode(vcpu, Mode::User);
    }
    if iopl_assist {
        vcpu.guest.iopl = (frame.rflags >> 12 & 3) as u8;
    }
    load_frame(vcpu.regs_mut(), &frame);
    let vcpu = core.vcpu(caller).ok_or("no such vcpu")?;
    event::set_upcall_mask(core, vcpu, frame.rflags & RFLAGS_IF == 0);
    Ok(())
}

fn load_frame(regs: &mut UserRegs, frame: &IretContext) {
    regs.rax = frame.rax;
    regs.rip = frame.rip;
    regs.cs = frame.cs as u16 | 3;
    regs.rflags = sanitize_rflags(frame.rflags);
    regs.rsp = frame.rsp;
    regs.ss = frame.ss as u16 | 3;
    let from_syscall = frame.flags & VGCF_IN_SYSCALL != 0;
    regs.r11 = if from_syscall { regs.rflags } else { frame.r11 };
    regs.rcx = if from_syscall { frame.rip } else { frame.rcx };
}

/// Stores the address of a page fault where the guest's kernel looks for it.
pub fn store_fault_address(core: &Core, caller: Caller, address: u64) {
    if let Some(vcpu) = core.vcpu(caller) {
        core.frames.mem().write_u64(fault_slot(vcpu), address);
    }
}

/// The address that [`store_fault_address`] stored, or what the guest made of it.
pub fn fault_address(core: &Core, caller: Caller) -> u64 {
    core.vcpu(caller).map_or(0, |vcpu| core.frames.mem().read_u64(fault_slot(vcpu)))
}
