//! `CONTROL`: what Dom0 asks of the core, and nobody else. See [`abi::control`].

use super::Outcome;
use crate::{
    Core, arch,
    device::{DeviceError, pci::Sbdf},
    domain::{Life, lifecycle, teardown},
    memory::{grant, teardown::Progress},
    sched,
    state::Caller,
    trap::context::set_context,
};
use bulkhead_abi::{
    self as abi, DomId, Errno, Gref, GuestVa, Mfn, VcpuId,
    control::{
        CreateDomain, DeviceRef, DomainInfo, DomainOnly, MachineInfo, SchedParams, SetGrant,
        SetMaxPages, SetVcpuContext, Shutdown, VcpuTimes,
    },
    vcpu::VcpuGuestContext,
};

/// `control(cmd, arg)`.
///
/// Errors: `EPERM` for any other domain than Dom0, `EFAULT` for a bad address, `ENOSYS` for
/// an unknown command, `ESRCH` for an unknown domain, and what each command says.
pub fn control(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    use abi::control as op;
    if caller.dom != DomId::DOM0 {
        return Outcome::Done(Errno::EPERM.to_rax());
    }
    let at = GuestVa::new(args[1]);
    let done = match args[0] {
        op::CREATE_DOMAIN => create(core, caller, at),
        op::DESTROY_DOMAIN => return in_steps(core, caller, args, teardown::destroy),
        op::RESET_DOMAIN => return in_steps(core, caller, args, teardown::reset),
        op::PAUSE_DOMAIN => subject(core, caller, at).and_then(|dom| lifecycle::pause(core, dom)),
        op::UNPAUSE_DOMAIN => {
            subject(core, caller, at).and_then(|dom| lifecycle::unpause(core, dom))
        }
        op::DOMAIN_INFO => domain_info(core, caller, at),
        op::SET_VCPU_CONTEXT => match set_vcpu_context(core, caller, at) {
            // Validating the root wants another step.
            Err(Errno::ERESTART | Errno::EAGAIN) => return again(args),
            done => done,
        },
        op::SET_SCHED => set_sched(core, caller, at),
        op::GET_SCHED => get_sched(core, caller, at),
        op::VCPU_TIMES => vcpu_times(core, caller, at),
        op::SET_GRANT => set_grant(core, caller, at),
        op::ASSIGN_DEVICE => assign_device(core, caller, at),
        op::DEASSIGN_DEVICE => deassign_device(core, caller, at),
        op::MACHINE_INFO => machine_info(core, caller, at),
        op::MACHINE_SHUTDOWN => machine_shutdown(core, caller, at),
        op::SET_MAX_PAGES => set_max_pages(core, caller, at),
        _ => Err(Errno::ENOSYS),
    };
    done.map(|()| 0).into()
}

/// The same call once more, after events and the scheduler had their turn.
fn again(args: [u64; 6]) -> Outcome {
    let [cmd, at, ..] = args;
    Outcome::Again([cmd, at, 0, 0, 0])
}

fn subject(core: &mut Core, caller: Caller, at: GuestVa) -> Result<DomId, Errno> {
    let asked: DomainOnly = core.guest(caller).read(at)?;
    Ok(DomId::new(asked.domid))
}

type Step = fn(&mut Core, DomId) -> Result<Progress, Errno>;

fn in_steps(core: &mut Core, caller: Caller, args: [u64; 6], step: Step) -> Outcome {
    let progress = subject(core, caller, GuestVa::new(args[1])).and_then(|dom| step(core, dom));
    match progress {
        Ok(Progress::Done) => Outcome::Done(0),
        Ok(Progress::More) => again(args),
        Err(refused) => Outcome::Done(refused.to_rax()),
    }
}

/// The answer is written before the domain exists for good: a bad address makes none.
fn create(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: CreateDomain = core.guest(caller).read(at)?;
    core.guest(caller).write(at, &asked)?;
    let id = lifecycle::create(core, &asked)?;
    let shared_info_mfn = core.domains.get(id).map_or(0, |domain| domain.shared_info.get());
    let answer = CreateDomain { domid: id.get(), shared_info_mfn, ..asked };
    Ok(core.guest(caller).write(at, &answer)?)
}

fn domain_info(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: DomainInfo = core.guest(caller).read(at)?;
    let info = lifecycle::info(core, DomId::new(asked.domid))?;
    Ok(core.guest(caller).write(at, &info)?)
}

/// Gives a vCPU its registers and brings it online. `ENOENT` for an unknown vCPU,
/// `EEXIST` for one that has a context, `EINVAL` for a context no guest may have or a
/// domain that is not alive.
fn set_vcpu_context(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: SetVcpuContext = core.guest(caller).read(at)?;
    let (dom, vcpu) = (DomId::new(asked.domid), VcpuId::new(asked.vcpu));
    let domain = core.domains.get(dom).ok_or(Errno::ESRCH)?;
    if domain.life != Life::Alive {
        return Err(Errno::EINVAL);
    }
    let context: VcpuGuestContext = core.guest(caller).read(GuestVa::new(asked.context))?;
    set_context(core, dom, vcpu, &context)?;
    lifecycle::bring_online(core, dom, vcpu);
    Ok(())
}

fn set_sched(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: SchedParams = core.guest(caller).read(at)?;
    sched::set_params(core, &asked)
}

fn get_sched(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: SchedParams = core.guest(caller).read(at)?;
    let answer = sched::get_params(core, &asked)?;
    Ok(core.guest(caller).write(at, &answer)?)
}

fn vcpu_times(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: VcpuTimes = core.guest(caller).read(at)?;
    let answer = sched::times(core, DomId::new(asked.domid), VcpuId::new(asked.vcpu))?;
    Ok(core.guest(caller).write(at, &answer)?)
}

/// Fills an entry of a domain's own grant table.
fn set_grant(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: SetGrant = core.guest(caller).read(at)?;
    let (dom, grantee) = (DomId::new(asked.domid), DomId::new(asked.grantee));
    core.domains.get(dom).ok_or(Errno::ESRCH)?;
    grant::set_entry(core, dom, Gref::new(asked.gref), grantee, Mfn::new(asked.mfn))
}

fn device_ref(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(DomId, Sbdf), Errno> {
    let asked: DeviceRef = core.guest(caller).read(at)?;
    let sbdf = Sbdf::new(asked.sbdf).ok_or(Errno::ENODEV)?;
    Ok((DomId::new(asked.domid), sbdf))
}

/// Gives a device to a driver domain. `ENODEV` for an unknown device, `EBUSY` for one that
/// has an owner, `EPERM` for a bridge or a domain that is not for drivers.
fn assign_device(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let (dom, sbdf) = device_ref(core, caller, at)?;
    let domain = core.domains.get_mut(dom).ok_or(Errno::ESRCH)?;
    if !domain.is_driver || domain.life == Life::Dying {
        return Err(Errno::EPERM);
    }
    Ok(core.devices.assign(sbdf, dom, &mut domain.devices)?)
}

/// Takes a device back; the domain must not be alive and running, for it may have its
/// BARs mapped: `EBUSY` unless it is paused, shut down or was never started.
fn deassign_device(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let (dom, sbdf) = device_ref(core, caller, at)?;
    let domain = core.domains.get_mut(dom).ok_or(Errno::ESRCH)?;
    core.devices.owned(dom, sbdf)?;
    if (0..domain.max_vcpus)
        .map(VcpuId::new)
        .any(|id| domain.vcpu(id).is_some_and(|v| v.initialised))
    {
        return Err(Errno::EBUSY);
    }
    match core.devices.deassign(sbdf, dom, &mut domain.devices) {
        Err(DeviceError::NotOwned { .. }) => Err(Errno::ENODEV),
        done => Ok(done?),
    }
}

fn machine_info(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let counters = &core.trace;
    let info = MachineInfo {
        total_frames: core.frames.total_frames(),
        free_frames: core.frames.free_frames(),
        core_frames: core.frames.core_frames(),
        tsc_khz: arch::tsc_khz(),
        system_time_ns: arch::now().get(),
        cpus: 1,
        nr_devices: core.devices.len() as u32,
        longest_stay_ns: counters.longest_stay_ns,
        entries: counters.entries,
        switches: counters.switches,
        max_mfn: core.frames.max_mfn(),
    };
    Ok(core.guest(caller).write(at, &info)?)
}

fn machine_shutdown(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: Shutdown = core.guest(caller).read(at)?;
    log::info!("Dom0 ends the machine, code {:#x}", asked.code);
    // Nothing may write memory or a disk once nobody looks.
    let ids: heapless::Vec<DomId, { crate::domain::MAX_DOMAINS }> = core.domains.ids().collect();
    ids.into_iter().for_each(|dom| core.devices.quiesce(dom));
    arch::exit_machine(asked.code)
}

/// Sets the most frames a domain may own; what it has beyond stays.
fn set_max_pages(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: SetMaxPages = core.guest(caller).read(at)?;
    let domain = core.domains.get_mut(DomId::new(asked.domid)).ok_or(Errno::ESRCH)?;
    domain.memory.max_pages = asked.max_pages;
    Ok(())
}
