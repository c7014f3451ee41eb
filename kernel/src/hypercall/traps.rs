//! Calls by which a guest sets up its virtual CPU: traps, callbacks, stacks, descriptors,
//! segment bases, debug registers, and `iret`. ABI notes 3 and 4.1.

use super::Outcome;
use crate::{
    Core,
    arch::{self, Base},
    state::Caller,
    trap::{
        bounce,
        context::{Callback, GuestContext, guest_selector, is_guest_address, set_base},
        debug, descriptor, vector,
    },
};
use bulkhead_abi::{
    Errno, GuestVa, Maddr,
    trap::{self as nr, CallbackRegister, CallbackUnregister, TrapInfo},
};

/// Entries of a trap table before the call continues.
const TABLE_BATCH: u64 = 256;

fn guest(core: &mut Core, caller: Caller) -> Result<&mut GuestContext, Errno> {
    Ok(&mut core.vcpu_mut(caller).ok_or(Errno::ESRCH)?.guest)
}

/// `iret`: leaves the guest's kernel through the frame on its stack. Never an error: a frame that
/// can not be read ends the domain.
pub fn iret(core: &mut Core, caller: Caller, _args: [u64; 6]) -> Outcome {
    bounce::leave_kernel(core, caller);
    Outcome::Replaced
}

/// `set_trap_table(table)`: NULL clears every handler; entries before a bad one stay.
///
/// Errors: `EFAULT` bad address; `EINVAL` a handler in the hole or not canonical.
pub fn set_trap_table(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [table, ..] = args;
    if table == 0 {
        return guest(core, caller).map(|guest| guest.traps = GuestContext::default().traps).into();
    }
    for n in 0..TABLE_BATCH {
        match set_trap(core, caller, GuestVa::new(table.wrapping_add(n * 16))) {
            Ok(true) => {}
            Ok(false) => return Outcome::Done(0),
            Err(error) => return error.into(),
        }
    }
    Outcome::Again([table.wrapping_add(TABLE_BATCH * 16), 0, 0, 0, 0])
}

/// One entry; false at the end of the table.
fn set_trap(core: &mut Core, caller: Caller, at: GuestVa) -> Result<bool, Errno> {
    let trap: TrapInfo = core.guest(caller).read(at)?;
    if trap.address == 0 {
        return Ok(false);
    }
    if !is_guest_address(trap.address) {
        return Err(Errno::EINVAL);
    }
    if let Some(slot) = guest(core, caller)?.traps.get_mut(usize::from(trap.vector)) {
        *slot = TrapInfo { cs: trap.cs | 3, ..trap };
    }
    Ok(true)
}

/// `set_gdt(frames, entries)`.
///
/// Errors: `EFAULT` bad list; `EINVAL` see [`descriptor::get_gdt`].
pub fn set_gdt(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [list, entries, ..] = args;
    install_gdt(core, caller, GuestVa::new(list), entries & 0xffff_ffff).into()
}

fn install_gdt(core: &mut Core, caller: Caller, list: GuestVa, entries: u64) -> Result<(), Errno> {
    let mut frames = [0u64; descriptor::GDT_PAGES];
    let pages = (entries.div_ceil(512)) as usize;
    let wanted = frames.get_mut(..pages).ok_or(Errno::EINVAL)?;
    for (n, frame) in (0..).zip(wanted) {
        *frame = core.guest(caller).read(GuestVa::new(list.get().wrapping_add(n * 8)))?;
    }
    let held = descriptor::get_gdt(core, caller.dom, &frames, entries)?;
    let old = core::mem::replace(&mut guest(core, caller)?.gdt, held);
    core.cpu(caller.cpu).reload_tables = true;
    descriptor::put(core, &old);
    Ok(())
}

/// `update_descriptor(maddr, descriptor)`.
///
/// Errors: see [`descriptor::update`].
pub fn update_descriptor(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [at, value, ..] = args;
    descriptor::update(core, caller, Maddr::new(at), value).into()
}

/// `stack_switch(ss, sp)`: the stack on which traps from user mode enter the guest's kernel.
pub fn stack_switch(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [ss, sp, ..] = args;
    let stack = (ss as u16 | 3, sp);
    guest(core, caller).map(|guest| (guest.kernel_ss, guest.kernel_sp) = stack).into()
}

/// `set_callbacks(event, failsafe, syscall)`, the older form of [`callback_op`].
///
/// Errors: `EINVAL` an address in the hole or not canonical.
pub fn set_callbacks(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [event, failsafe, syscall, ..] = args;
    if ![event, failsafe, syscall].into_iter().all(is_guest_address) {
        return Errno::EINVAL.into();
    }
    let event = Callback { address: event, mask_events: true };
    let others = [failsafe, syscall].map(|address| Callback { address, mask_events: false });
    let set = |guest: &mut GuestContext| {
        guest.event = event;
        [guest.failsafe, guest.syscall] = others;
    };
    guest(core, caller).map(set).into()
}

/// `callback_op(cmd, arg)`.
///
/// Errors: `EFAULT` bad address; `EINVAL` a callback in the hole, or removing one that a kernel can
/// not be without; `ENOSYS` a kind that is not offered (both ways into the kernel from 32-bit user
/// code are among them), or unknown `cmd`.
pub fn callback_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [cmd, arg, ..] = args;
    match cmd & 0xffff_ffff {
        nr::CALLBACKOP_REGISTER => register(core, caller, GuestVa::new(arg)).into(),
        nr::CALLBACKOP_UNREGISTER => unregister(core, caller, GuestVa::new(arg)).into(),
        _ => Errno::ENOSYS.into(),
    }
}

fn register(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let CallbackRegister { kind, flags, address, .. } = core.guest(caller).read(at)?;
    if !is_guest_address(address) {
        return Err(Errno::EINVAL);
    }
    let callback = Callback { address, mask_events: flags & nr::CALLBACKF_MASK_EVENTS != 0 };
    let guest = guest(core, caller)?;
    match kind {
        nr::CALLBACKTYPE_EVENT => guest.event = Callback { mask_events: true, ..callback },
        nr::CALLBACKTYPE_FAILSAFE => guest.failsafe = callback,
        nr::CALLBACKTYPE_SYSCALL => guest.syscall = callback,
        nr::CALLBACKTYPE_NMI => {
            let (vector, flags, cs) = (vector::NMI, nr::TI_MASK_EVENTS, nr::FLAT_RING3_CS64);
            guest.traps[usize::from(vector)] = TrapInfo { vector, flags, cs, _pad: 0, address };
        }
        _ => return Err(Errno::ENOSYS),
    }
    Ok(())
}

fn unregister(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: CallbackUnregister = core.guest(caller).read(at)?;
    match asked.kind {
        nr::CALLBACKTYPE_NMI => {
            guest(core, caller)?.traps[usize::from(vector::NMI)].address = 0;
            Ok(())
        }
        nr::CALLBACKTYPE_EVENT | nr::CALLBACKTYPE_FAILSAFE | nr::CALLBACKTYPE_SYSCALL => {
            Err(Errno::EINVAL)
        }
        _ => Err(Errno::ENOSYS),
    }
}

/// `fpu_taskswitch(set)`: the virtual CR0.TS.
pub fn fpu_taskswitch(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [set, ..] = args;
    guest(core, caller).map(|guest| guest.task_switched = set & 0xffff_ffff != 0).into()
}

/// `set_debugreg(register, value)`.
///
/// Errors: see [`debug::set`].
pub fn set_debugreg(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [register, value, ..] = args;
    let set = |guest: &mut GuestContext| {
        debug::set(guest, register & 0xffff_ffff, value)?;
        arch::load_debug(&guest.debug);
        Ok::<_, Errno>(())
    };
    guest(core, caller).and_then(set).into()
}

/// `get_debugreg(register)`.
///
/// Errors: see [`debug::get`].
pub fn get_debugreg(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [register, ..] = args;
    let value = guest(core, caller).and_then(|guest| debug::get(guest, register & 0xffff_ffff));
    value.map(|value| value as i64).into()
}

/// `set_segment_base(which, base)`; `which` 3 loads a selector into the user's GS, a bad one
/// becomes null.
///
/// Errors: `EINVAL` unknown `which`, or a base that is not canonical.
pub fn set_segment_base(_core: &mut Core, _caller: Caller, args: [u64; 6]) -> Outcome {
    let [which, base, ..] = args;
    match which & 0xffff_ffff {
        nr::SEGBASE_FS => set_base(Base::Fs, base),
        nr::SEGBASE_GS_USER => set_base(Base::InactiveGs, base),
        nr::SEGBASE_GS_KERNEL => set_base(Base::Gs, base),
        nr::SEGBASE_GS_USER_SEL => {
            arch::load_user_gs(guest_selector(base as u16));
            Ok(())
        }
        _ => Err(Errno::EINVAL),
    }
    .into()
}
