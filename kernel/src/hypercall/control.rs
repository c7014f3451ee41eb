//! `CONTROL`: what Dom0 asks of the core, and nobody else. See [`bulkhead_abi::control`].

use super::{Outcome, answer, carry_out};
use crate::{
    Core, arch,
    device::pci::{PciDevice, Sbdf},
    domain::{Life, MAX_DOMAINS, lifecycle, teardown},
    memory::{grant, teardown::Progress},
    sched,
    state::Caller,
    trap::context::set_context,
};
use bulkhead_abi::{DomId, Errno, Gref, GuestVa, Mfn, VcpuId, control as op};

/// `control(cmd, arg)`.
///
/// Errors: `EPERM` for any other domain than Dom0, `EFAULT` for a bad address, `ENOSYS` for
/// an unknown command, `ESRCH` for an unknown domain, and what each command says.
pub fn control(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    if caller.dom != DomId::DOM0 {
        return Errno::EPERM.into();
    }
    let [cmd, at, ..] = args;
    let va = GuestVa::new(at);
    let done = match cmd {
        op::CREATE_DOMAIN => create(core, caller, va),
        op::DESTROY_DOMAIN => {
            on_domain(core, caller, va, |core, dom| finished(teardown::destroy(core, dom)?))
        }
        op::RESET_DOMAIN => {
            on_domain(core, caller, va, |core, dom| finished(teardown::reset(core, dom)?))
        }
        op::RESET_KEEPING => {
            on_domain(core, caller, va, |core, dom| finished(teardown::reset_keeping(core, dom)?))
        }
        op::PAUSE_DOMAIN => on_domain(core, caller, va, lifecycle::pause),
        op::UNPAUSE_DOMAIN => on_domain(core, caller, va, lifecycle::unpause),
        op::DOMAIN_INFO => answer(core, caller, va, |core, info: &mut op::DomainInfo| {
            *info = lifecycle::info(core, DomId::new(info.domid))?;
            Ok(())
        }),
        op::SET_VCPU_CONTEXT => set_vcpu_context(core, caller, va),
        op::SET_SCHED => carry_out(core, caller, va, |core, asked| sched::set_params(core, &asked)),
        op::GET_SCHED => answer(core, caller, va, |core, params| {
            *params = sched::get_params(core, params)?;
            Ok(())
        }),
        op::VCPU_TIMES => answer(core, caller, va, |core, times: &mut op::VcpuTimes| {
            *times = sched::times(core, DomId::new(times.domid), VcpuId::new(times.vcpu))?;
            Ok(())
        }),
        op::SET_GRANT => carry_out(core, caller, va, set_grant),
        op::ASSIGN_DEVICE => carry_out(core, caller, va, assign_device),
        op::DEASSIGN_DEVICE => carry_out(core, caller, va, deassign_device),
        op::MACHINE_INFO => core.guest(caller).write(va, &machine_info(core)).map_err(Errno::from),
        op::MACHINE_SHUTDOWN => carry_out(core, caller, va, machine_shutdown),
        op::SET_MAX_PAGES => carry_out(core, caller, va, set_max_pages),
        _ => Err(Errno::ENOSYS),
    };
    match done {
        // The same call once more, after events and the scheduler had their turn.
        Err(Errno::EAGAIN) => Outcome::Again([cmd, at, 0, 0, 0]),
        done => done.into(),
    }
}

fn on_domain(
    core: &mut Core,
    caller: Caller,
    at: GuestVa,
    act: impl FnOnce(&mut Core, DomId) -> Result<(), Errno>,
) -> Result<(), Errno> {
    carry_out(core, caller, at, |core, asked: op::DomainOnly| act(core, DomId::new(asked.domid)))
}

fn finished(progress: Progress) -> Result<(), Errno> {
    match progress {
        Progress::Done => Ok(()),
        Progress::More => Err(Errno::EAGAIN),
    }
}

/// The answer is written before the domain exists for good: a bad address makes none.
fn create(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let mut asked: op::CreateDomain = core.guest(caller).read(at)?;
    core.guest(caller).write(at, &asked)?;
    let id = lifecycle::create(core, &asked)?;
    asked.domid = id.get();
    asked.shared_info_mfn = core.domains.get(id).map_or(0, |domain| domain.shared_info.get());
    Ok(core.guest(caller).write(at, &asked)?)
}

/// Gives a vCPU its registers and brings it online. `ENOENT` for an unknown vCPU,
/// `EEXIST` for one that has a context, `EINVAL` for a context no guest may have or a
/// domain that is not alive; `EAGAIN` when validating the root wants another step.
fn set_vcpu_context(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: op::SetVcpuContext = core.guest(caller).read(at)?;
    let (dom, vcpu) = (DomId::new(asked.domid), VcpuId::new(asked.vcpu));
    let domain = core.domains.get(dom).ok_or(Errno::ESRCH)?;
    if domain.life != Life::Alive {
        return Err(Errno::EINVAL);
    }
    let context = core.guest(caller).read(GuestVa::new(asked.context))?;
    set_context(core, dom, vcpu, &context)?;
    lifecycle::bring_online(core, dom, vcpu);
    Ok(())
}

/// Fills an entry of a domain's own grant table.
fn set_grant(core: &mut Core, asked: op::SetGrant) -> Result<(), Errno> {
    let (dom, grantee) = (DomId::new(asked.domid), DomId::new(asked.grantee));
    core.domains.get(dom).ok_or(Errno::ESRCH)?;
    grant::set_entry(core, dom, Gref::new(asked.gref), grantee, Mfn::new(asked.mfn))
}

/// Gives a device to a driver domain. `ENODEV` for an unknown device, `EBUSY` for one that
/// has an owner, `EPERM` for a bridge or a domain that is not for drivers.
fn assign_device(core: &mut Core, asked: op::DeviceRef) -> Result<(), Errno> {
    let (dom, sbdf) = (DomId::new(asked.domid), Sbdf::new(asked.sbdf).ok_or(Errno::ENODEV)?);
    let domain = core.domains.get_mut(dom).ok_or(Errno::ESRCH)?;
    // Dom0 drives no device. One that is nothing but memory is none to be driven.
    let is_ram = core.devices.find(sbdf).is_some_and(PciDevice::is_ram);
    let may_own = domain.is_driver || dom == DomId::DOM0 && is_ram;
    if !may_own || domain.life == Life::Dying {
        return Err(Errno::EPERM);
    }
    Ok(core.devices.assign(sbdf, dom, &mut domain.devices)?)
}

/// Takes a device back; the domain must not be alive and running, for it may have its
/// BARs mapped: `EBUSY` unless it is paused, shut down or was never started.
fn deassign_device(core: &mut Core, asked: op::DeviceRef) -> Result<(), Errno> {
    let (dom, sbdf) = (DomId::new(asked.domid), Sbdf::new(asked.sbdf).ok_or(Errno::ENODEV)?);
    let domain = core.domains.get_mut(dom).ok_or(Errno::ESRCH)?;
    core.devices.owned(dom, sbdf)?;
    if domain.vcpus.iter().flatten().any(|vcpu| vcpu.initialised) {
        return Err(Errno::EBUSY);
    }
    Ok(core.devices.deassign(sbdf, dom, &mut domain.devices)?)
}

fn machine_info(core: &Core) -> op::MachineInfo {
    op::MachineInfo {
        total_frames: core.frames.total_frames(),
        free_frames: core.frames.free_frames(),
        core_frames: core.frames.core_frames(),
        tsc_khz: arch::tsc_khz(),
        system_time_ns: arch::now().get(),
        cpus: 1,
        nr_devices: core.devices.count() as u32,
        longest_stay_ns: arch::ns_of(core.trace.longest_stay),
        entries: core.trace.entries,
        switches: core.trace.switches,
        max_mfn: core.frames.max_mfn(),
    }
}

fn machine_shutdown(core: &mut Core, asked: op::Shutdown) -> Result<(), Errno> {
    log::info!("Dom0 ends the machine, code {:#x}", asked.code);
    // Nothing may write memory or a disk once nobody looks.
    (0..MAX_DOMAINS as u16).for_each(|id| core.devices.quiesce(DomId::new(id)));
    arch::exit_machine(asked.code)
}

/// Sets the most frames a domain may own; what it has beyond stays.
fn set_max_pages(core: &mut Core, asked: op::SetMaxPages) -> Result<(), Errno> {
    let domain = core.domains.get_mut(DomId::new(asked.domid)).ok_or(Errno::ESRCH)?;
    domain.memory.max_pages = asked.max_pages;
    Ok(())
}
