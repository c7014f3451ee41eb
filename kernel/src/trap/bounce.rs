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
use heapless::Vec;
use zerocopy::IntoBytes;

const RFLAGS_IF: u64 = 1 << 9;
const RFLAGS_IOPL: u64 = 3 << 12;
/// TF, NT, RF, VM, AC: off on entry to a handler.
const RFLAGS_CLEARED: u64 = 1 << 8 | 1 << 14 | 1 << 16 | 1 << 17 | 1 << 18;
/// Most words of a frame: all of its parts.
const MAX_WORDS: usize = 12;
const NO_VCPU: &str = "no such vcpu";

/// One way into the guest's kernel.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub address: u64,
    pub cs: u16,
    pub mask_events: bool,
    pub error_code: Option<u64>,
    /// The frame also carries DS, ES, FS and GS.
    pub with_selectors: bool,
}

impl Entry {
    /// By a callback.
    pub fn callback(callback: Callback) -> Self {
        let Callback { address, mask_events } = callback;
        let cs = FLAT_RING3_CS64;
        Self { address, cs, mask_events, error_code: None, with_selectors: false }
    }

    /// By an entry of the trap table.
    pub fn trap(trap: &TrapInfo, error_code: Option<u32>) -> Self {
        let mask_events = trap.flags & TI_MASK_EVENTS != 0;
        let by_address = Self::callback(Callback { address: trap.address, mask_events });
        Self { cs: trap.cs, error_code: error_code.map(u64::from), ..by_address }
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
    let vcpu = core.vcpu(caller).ok_or(NO_VCPU)?;
    let words = frame(core, caller, vcpu, entry);
    let from_user = vcpu.guest.mode == Mode::User;
    let top = if from_user { vcpu.guest.kernel_sp } else { vcpu.regs().rsp };
    let base = (top & !15).wrapping_sub(8 * words.len() as u64);
    if !is_guest_address(base) || in_hole(top.wrapping_sub(1)) {
        return Err("its kernel stack lies in the core's range");
    }
    // The frame goes through the kernel's tables even when the trap came from user mode.
    core.guest(caller)
        .write_bytes(GuestVa::new(base), words.as_bytes())
        .map_err(|_| "its kernel stack can not be written")?;
    if entry.mask_events {
        event::set_upcall_mask(core, vcpu, true);
    }
    let vcpu = core.vcpu_mut(caller).ok_or(NO_VCPU)?;
    set_mode(vcpu, Mode::Kernel);
    let regs = vcpu.regs_mut();
    regs.rip = entry.address;
    regs.cs = entry.cs | 3;
    regs.ss = FLAT_RING3_SS64;
    regs.rsp = base;
    regs.rflags = sanitize_rflags(regs.rflags & !RFLAGS_CLEARED);
    Ok(())
}

/// The words of a frame, lowest address first.
fn frame(core: &Core, caller: Caller, vcpu: &Vcpu, entry: Entry) -> Vec<u64, MAX_WORDS> {
    let regs = vcpu.regs();
    let is_masked = event::is_upcall_masked(core, vcpu);
    let cs = if vcpu.guest.mode == Mode::Kernel { regs.cs & !3 } else { regs.cs };
    let mut rflags = regs.rflags & !(RFLAGS_IF | RFLAGS_IOPL);
    if !is_masked {
        rflags |= RFLAGS_IF;
    }
    if has_iopl_assist(core, caller) {
        rflags |= u64::from(vcpu.guest.iopl) << 12;
    }
    let selectors = [regs.ds, regs.es, regs.fs, regs.gs].map(u64::from);
    let cs = u64::from(cs) | u64::from(is_masked) << 32;
    let parts: [&[u64]; 4] = [
        &[regs.rcx, regs.r11],
        if entry.with_selectors { &selectors } else { &[] },
        entry.error_code.as_slice(),
        &[regs.rip, cs, rflags, regs.rsp, regs.ss.into()],
    ];
    let mut words = Vec::new();
    for part in parts {
        words.extend_from_slice(part).expect("as many as the longest frame has");
    }
    words
}

/// Whether the guest wants its I/O privilege level in frames, and kept to.
pub fn has_iopl_assist(core: &Core, caller: Caller) -> bool {
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
    let vcpu = core.vcpu(caller).ok_or(NO_VCPU)?;
    let (at, has_user_root) = (vcpu.regs().rsp, vcpu.roots.user.is_some());
    let frame: IretContext =
        core.guest(caller).read(GuestVa::new(at)).map_err(|_| "its iret frame can not be read")?;

    let vcpu = core.vcpu_mut(caller).ok_or(NO_VCPU)?;
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
    let vcpu = core.vcpu(caller).ok_or(NO_VCPU)?;
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
