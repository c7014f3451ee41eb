//! Small calls without a family: `vm_assist`, and the part of `physdev_op` that is not about devices.

use super::{Outcome, device, sched};
use crate::{Core, domain::lifecycle, state::Caller};
use bulkhead_abi::{
    Errno, GuestVa, physdev,
    sched::{SCHEDOP_BLOCK, SCHEDOP_SHUTDOWN, SCHEDOP_YIELD},
    trap as nr,
};

/// Assists that may be asked for. Emulated page-table writes are always on, and the two about
/// segments and CR3 mean nothing to a 64-bit guest.
const ASSISTS: u64 = 1 << nr::VMASST_4GB_SEGMENTS
    | 1 << nr::VMASST_4GB_SEGMENTS_NOTIFY
    | 1 << nr::VMASST_WRITABLE_PAGETABLES
    | 1 << nr::VMASST_PAE_EXTENDED_CR3
    | 1 << nr::VMASST_ARCHITECTURAL_IOPL
    | 1 << nr::VMASST_RUNSTATE_UPDATE_FLAG;

/// `vm_assist(cmd, type)`.
///
/// Errors: `EINVAL` unknown type; `ENOSYS` unknown `cmd`.
pub fn vm_assist(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [cmd, kind, ..] = args;
    let bit = u32::try_from(kind).ok().and_then(|n| 1u64.checked_shl(n)).unwrap_or(0);
    let Some(domain) = core.domains.get_mut(caller.dom) else {
        return Errno::ESRCH.into();
    };
    match cmd & 0xffff_ffff {
        _ if bit & ASSISTS == 0 => return Errno::EINVAL.into(),
        nr::VMASST_CMD_ENABLE => domain.assists |= bit,
        nr::VMASST_CMD_DISABLE => domain.assists &= !bit,
        _ => return Errno::ENOSYS.into(),
    }
    Outcome::Done(0)
}

/// `physdev_op(cmd, arg)`.
///
/// The I/O privilege level is a number that is kept: port access is emulated. The I/O bitmap of
/// a guest's user program is accepted and opens nothing.
/// Errors: `EINVAL` a level above 3; `EFAULT` bad address; `ENOSYS` unknown `cmd`.
pub fn physdev_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [cmd, arg, ..] = args;
    match cmd & 0xffff_ffff {
        physdev::PHYSDEVOP_SET_IOPL => set_iopl(core, caller, GuestVa::new(arg)).into(),
        physdev::PHYSDEVOP_SET_IOBITMAP => Outcome::Done(0),
        physdev::PHYSDEVOP_EOI => device::physdev_eoi(core, caller, args),
        _ => Errno::ENOSYS.into(),
    }
}

fn set_iopl(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let iopl: u32 = core.guest(caller).read(at)?;
    if iopl > 3 {
        return Err(Errno::EINVAL);
    }
    core.vcpu_mut(caller).ok_or(Errno::ESRCH)?.guest.iopl = iopl as u8;
    Ok(())
}

/// `sched_op_compat(cmd, arg)`, what `sched_op` was before its arguments moved into a structure.
///
/// Errors: `ENOSYS` unknown `cmd`.
pub fn sched_op_compat(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [cmd, arg, ..] = args;
    match cmd & 0xffff_ffff {
        SCHEDOP_YIELD | SCHEDOP_BLOCK => sched::sched_op(core, caller, [cmd, 0, 0, 0, 0, 0]),
        SCHEDOP_SHUTDOWN => {
            lifecycle::shutdown(core, caller.dom, arg as u32);
            core.request_reschedule(caller.cpu);
            Outcome::Replaced
        }
        _ => Errno::ENOSYS.into(),
    }
}
