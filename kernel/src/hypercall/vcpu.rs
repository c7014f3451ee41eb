//! `vcpu_op`: RDI = operation, RSI = vCPU of the caller's domain, RDX = its structure.

use super::{Outcome, sched::arm};
use crate::{
    Core, arch, domain::lifecycle, event, sched, sched::timer::MIN_PERIOD, state::Caller,
    trap::context,
};
use bulkhead_abi::{
    Errno, GuestVa, Maddr, Mfn, Ns, PAGE_SIZE, VcpuId, sched::SHUTDOWN_POWEROFF,
    shared_info::VcpuInfo, vcpu as nr,
};

/// `vcpu_op`.
///
/// Errors: `ENOENT` for a vCPU the domain has not; `ENOSYS` for operations that are not offered; each
/// operation's own.
pub fn vcpu_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [op, vcpu, at, ..] = args;
    // Both are ints: the upper half of the register says nothing.
    let whom = Caller { vcpu: VcpuId::new(vcpu as u32), ..caller };
    let at = GuestVa::new(at);
    let Some(is_up) = core.vcpu(whom).map(|vcpu| vcpu.online) else {
        return Errno::ENOENT.into();
    };
    match op & 0xffff_ffff {
        nr::VCPUOP_IS_UP => return Outcome::Done(is_up.into()),
        nr::VCPUOP_INITIALISE => initialise(core, caller, whom, at),
        nr::VCPUOP_UP => up(core, whom),
        nr::VCPUOP_DOWN => down(core, whom),
        nr::VCPUOP_GET_RUNSTATE_INFO => get_runstate(core, caller, whom, at),
        nr::VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA => show_runstate(core, caller, whom, at),
        nr::VCPUOP_REGISTER_VCPU_INFO => move_info(core, caller, whom, at),
        nr::VCPUOP_SET_PERIODIC_TIMER => set_periodic(core, caller, whom, at),
        nr::VCPUOP_STOP_PERIODIC_TIMER => sched::set_periodic(core, whom, None),
        nr::VCPUOP_SET_SINGLESHOT_TIMER | nr::VCPUOP_STOP_SINGLESHOT_TIMER if whom != caller => {
            Err(Errno::EINVAL)
        }
        nr::VCPUOP_SET_SINGLESHOT_TIMER => set_singleshot(core, caller, at),
        nr::VCPUOP_STOP_SINGLESHOT_TIMER => sched::set_singleshot(core, caller, None),
        _ => Err(Errno::ENOSYS),
    }
    .into()
}

/// Gives a vCPU its first context. Once only.
fn initialise(core: &mut Core, caller: Caller, whom: Caller, at: GuestVa) -> Result<(), Errno> {
    if core.vcpu(whom).is_none_or(|vcpu| vcpu.initialised) {
        return Err(Errno::EEXIST);
    }
    let wanted: nr::VcpuGuestContext = core.guest(caller).read(at)?;
    context::set_context(core, whom.dom, whom.vcpu, &wanted)?;
    core.vcpu_mut(whom).ok_or(Errno::ENOENT)?.initialised = true;
    sched::time::publish(core, whom.dom, whom.vcpu);
    Ok(())
}

fn up(core: &mut Core, whom: Caller) -> Result<(), Errno> {
    let vcpu = core.vcpu_mut(whom).filter(|vcpu| vcpu.initialised).ok_or(Errno::EINVAL)?;
    vcpu.online = true;
    sched::refresh(core, whom.dom);
    Ok(())
}

/// Takes a vCPU down; the last one takes the domain with it.
fn down(core: &mut Core, whom: Caller) -> Result<(), Errno> {
    core.vcpu_mut(whom).ok_or(Errno::ENOENT)?.online = false;
    let domain = core.domains.get(whom.dom).ok_or(Errno::ENOENT)?;
    if domain.vcpus.iter().flatten().any(|vcpu| vcpu.online) {
        sched::refresh(core, whom.dom);
    } else {
        lifecycle::shutdown(core, whom.dom, SHUTDOWN_POWEROFF);
    }
    Ok(())
}

fn get_runstate(core: &mut Core, caller: Caller, whom: Caller, at: GuestVa) -> Result<(), Errno> {
    let info = sched::runstate_info(core, whom)?;
    Ok(core.guest(caller).write(at, &info)?)
}

/// Notes where a vCPU's run state is to be written from now on, and writes it.
fn show_runstate(core: &mut Core, caller: Caller, whom: Caller, at: GuestVa) -> Result<(), Errno> {
    let area = GuestVa::new(core.guest(caller).read(at)?);
    if !context::is_guest_address(area.get()) {
        return Err(Errno::EFAULT);
    }
    // Only the running vCPU's own address space is known to be the one meant: another sees its
    // state when it next runs.
    let info = sched::runstate_info(core, whom)?;
    let _ = core.guest(caller).write(area, &info);
    core.vcpu_mut(whom).ok_or(Errno::ENOENT)?.sched.runstate_area = Some(area);
    Ok(())
}

/// Moves a vCPU's `vcpu_info` to where the guest wants it. Once only; nothing pending is lost.
fn move_info(core: &mut Core, caller: Caller, whom: Caller, at: GuestVa) -> Result<(), Errno> {
    let new = info_address(&core.guest(caller).read(at)?)?;
    let vcpu = core.vcpu(whom).ok_or(Errno::ENOENT)?;
    if vcpu.info_registered || (whom != caller && vcpu.online) {
        return Err(Errno::EINVAL);
    }
    core.frames.get_writable(new.mfn(), whom.dom).map_err(|_| Errno::EINVAL)?;
    let mem = core.frames.mem();
    let vcpu = core.vcpu_mut(whom).ok_or(Errno::ENOENT)?;
    mem.copy(vcpu.info, new, size_of::<VcpuInfo>());
    vcpu.info = new;
    vcpu.info_registered = true;
    event::mark_everything(mem, vcpu);
    sched::time::publish(core, whom.dom, whom.vcpu);
    Ok(())
}

/// Where the structure is to be: aligned, since the core sets its bits atomically, and within one
/// frame.
///
/// Errors: `ENXIO` for the offset, `EINVAL` for a frame number beyond any machine.
fn info_address(asked: &nr::RegisterVcpuInfo) -> Result<Maddr, Errno> {
    let offset = asked.offset as usize;
    let fits = offset.is_multiple_of(8) && offset <= PAGE_SIZE - size_of::<VcpuInfo>();
    if !fits {
        return Err(Errno::ENXIO);
    }
    if asked.mfn >= 1 << 40 {
        return Err(Errno::EINVAL);
    }
    Ok(Mfn::new(asked.mfn).maddr().plus(offset))
}

fn set_periodic(core: &mut Core, caller: Caller, whom: Caller, at: GuestVa) -> Result<(), Errno> {
    let period = Ns::new(core.guest(caller).read(at)?);
    if period < MIN_PERIOD || period.get() > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    sched::set_periodic(core, whom, Some(period))
}

fn set_singleshot(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: nr::SetSingleshotTimer = core.guest(caller).read(at)?;
    let (deadline, now) = (Ns::new(asked.timeout_abs_ns), arch::now());
    if asked.flags & nr::VCPU_SSHOTTMR_FUTURE != 0 && deadline < now {
        return Err(Errno::ETIME);
    }
    arm(core, caller, Some(deadline), now)
}
