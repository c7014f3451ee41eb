//! `vcpu_op`: RDI = operation, RSI = vCPU of the caller's domain, RDX = its structure.

use super::Outcome;
use crate::{
    Core, arch,
    domain::{MAX_VCPUS, VcpuRef, lifecycle},
    event, sched,
    sched::timer::MIN_PERIOD,
    state::Caller,
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
    let id = VcpuId::new(vcpu as u32);
    let at = GuestVa::new(at);
    let Some(incarnation) = core
        .domains
        .get(caller.dom)
        .filter(|domain| domain.vcpu(id).is_some())
        .map(|domain| domain.incarnation)
    else {
        return Errno::ENOENT.into();
    };
    let who = VcpuRef { dom: caller.dom, vcpu: id, incarnation };
    match op & 0xffff_ffff {
        nr::VCPUOP_IS_UP => return Outcome::Done(is_up(core, who).into()),
        nr::VCPUOP_INITIALISE => initialise(core, caller, who, at),
        nr::VCPUOP_UP => up(core, who),
        nr::VCPUOP_DOWN => {
            down(core, who);
            Ok(())
        }
        nr::VCPUOP_GET_RUNSTATE_INFO => get_runstate(core, caller, who, at),
        nr::VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA => register_runstate(core, caller, who, at),
        nr::VCPUOP_REGISTER_VCPU_INFO => register_info(core, caller, who, at),
        nr::VCPUOP_SET_PERIODIC_TIMER => set_periodic(core, caller, who, at),
        nr::VCPUOP_STOP_PERIODIC_TIMER => {
            sched::set_periodic(core, who.dom, who.vcpu, None);
            Ok(())
        }
        nr::VCPUOP_SET_SINGLESHOT_TIMER => set_singleshot(core, caller, who, at),
        nr::VCPUOP_STOP_SINGLESHOT_TIMER if who.vcpu != caller.vcpu => Err(Errno::EINVAL),
        nr::VCPUOP_STOP_SINGLESHOT_TIMER => {
            sched::set_singleshot(core, who.dom, who.vcpu, None);
            Ok(())
        }
        _ => Err(Errno::ENOSYS),
    }
    .into()
}

fn is_up(core: &mut Core, who: VcpuRef) -> bool {
    core.domains.resolve(who).is_some_and(|vcpu| vcpu.online)
}

/// Gives a vCPU its first context. Once only.
fn initialise(core: &mut Core, caller: Caller, who: VcpuRef, at: GuestVa) -> Result<(), Errno> {
    if core.domains.resolve(who).is_none_or(|vcpu| vcpu.initialised) {
        return Err(Errno::EEXIST);
    }
    let wanted: nr::VcpuGuestContext = core.guest(caller).read(at)?;
    context::set_context(core, who.dom, who.vcpu, &wanted)?;
    if let Some(vcpu) = core.domains.resolve(who) {
        vcpu.initialised = true;
    }
    sched::time::publish(core, who.dom, who.vcpu);
    Ok(())
}

fn up(core: &mut Core, who: VcpuRef) -> Result<(), Errno> {
    let vcpu = core.domains.resolve(who).ok_or(Errno::ENOENT)?;
    if !vcpu.initialised {
        return Err(Errno::EINVAL);
    }
    vcpu.online = true;
    sched::refresh(core, who.dom);
    Ok(())
}

/// Takes a vCPU down; the last one takes the domain with it.
fn down(core: &mut Core, who: VcpuRef) {
    let Some(vcpu) = core.domains.resolve(who) else {
        return;
    };
    vcpu.online = false;
    let is_any_up = core.domains.get(who.dom).is_some_and(|domain| {
        let mut vcpus = (0..MAX_VCPUS as u32).filter_map(|n| domain.vcpu(VcpuId::new(n)));
        vcpus.any(|vcpu| vcpu.online)
    });
    if is_any_up {
        sched::refresh(core, who.dom);
    } else {
        lifecycle::shutdown(core, who.dom, SHUTDOWN_POWEROFF);
    }
}

fn get_runstate(core: &mut Core, caller: Caller, who: VcpuRef, at: GuestVa) -> Result<(), Errno> {
    let info = sched::runstate_info(core, who).ok_or(Errno::ENOENT)?;
    Ok(core.guest(caller).write(at, &info)?)
}

fn register_runstate(
    core: &mut Core,
    caller: Caller,
    who: VcpuRef,
    at: GuestVa,
) -> Result<(), Errno> {
    let area: u64 = core.guest(caller).read(at)?;
    let area = GuestVa::new(area);
    if !context::is_guest_address(area.get()) {
        return Err(Errno::EFAULT);
    }
    // Only the running vCPU's own address space is known to be the one meant: another sees its
    // state when it next runs.
    let info = sched::runstate_info(core, who).ok_or(Errno::ENOENT)?;
    let _ = core.guest(caller).write(area, &info);
    let vcpu = core.domains.resolve(who).ok_or(Errno::ENOENT)?;
    vcpu.sched.runstate_area = Some(area);
    Ok(())
}

/// Moves a vCPU's `vcpu_info` to where the guest wants it. Once only; nothing pending is lost.
fn register_info(core: &mut Core, caller: Caller, who: VcpuRef, at: GuestVa) -> Result<(), Errno> {
    let asked: nr::RegisterVcpuInfo = core.guest(caller).read(at)?;
    let new = info_address(&asked)?;
    let vcpu = core.domains.resolve(who).ok_or(Errno::ENOENT)?;
    if vcpu.info_registered || (who.vcpu != caller.vcpu && vcpu.online) {
        return Err(Errno::EINVAL);
    }
    core.frames.get_writable(new.mfn(), who.dom).map_err(|_| Errno::EINVAL)?;
    let old = core::mem::replace(&mut vcpu.info, new);
    vcpu.info_registered = true;
    core.frames.mem().copy(old, new, size_of::<VcpuInfo>());
    event::mark_everything(core, who);
    sched::time::publish(core, who.dom, who.vcpu);
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
    Ok(Maddr::new(Mfn::new(asked.mfn).maddr().get() + u64::from(asked.offset)))
}

fn set_periodic(core: &mut Core, caller: Caller, who: VcpuRef, at: GuestVa) -> Result<(), Errno> {
    let period = Ns::new(core.guest(caller).read(at)?);
    if period < MIN_PERIOD || period.get() > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    sched::set_periodic(core, who.dom, who.vcpu, Some(period));
    Ok(())
}

fn set_singleshot(core: &mut Core, caller: Caller, who: VcpuRef, at: GuestVa) -> Result<(), Errno> {
    if who.vcpu != caller.vcpu {
        return Err(Errno::EINVAL);
    }
    let asked: nr::SetSingleshotTimer = core.guest(caller).read(at)?;
    let now = arch::now();
    let deadline = Ns::new(asked.timeout_abs_ns);
    if asked.flags & nr::VCPU_SSHOTTMR_FUTURE != 0 && deadline < now {
        return Err(Errno::ETIME);
    }
    super::sched::arm(core, caller, Some(deadline), now);
    Ok(())
}
