//! The life of a domain: created paused, run, stopped by itself, by Dom0 or by a crash.
//! Its end, and its reset, are [`super::teardown`]. Every change of state that Dom0 did
//! not ask for raises `VIRQ_DOM_EXC` there.
#![deny(unsafe_code)]

use super::{Domain, Life, MAX_DOMAINS, MAX_VCPUS, VcpuRef, vcpu::Vcpu};
use crate::{
    Core, arch, event,
    memory::{frame_box::FrameBox, reserve::Reservation},
    sched,
};
use bulkhead_abi::{
    DomId, Errno, Maddr, Ns, VcpuId,
    archive::{EXIT_DOM0_DIED, EXIT_OK},
    control::{
        CREATE_DRIVER, CreateDomain, DomainInfo, STATE_BLOCKED, STATE_DRIVER, STATE_DYING,
        STATE_PAUSED, STATE_RUNNING, STATE_SHUTDOWN,
    },
    event::VIRQ_DOM_EXC,
    sched::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF},
    shared_info::{LEGACY_MAX_VCPUS, VcpuInfo},
    vcpu::RUNSTATE_BLOCKED,
};
use core::fmt;
use heapless::String;

/// Makes the domain that Dom0 asks for: paused once, with shared-info, no memory, no
/// vCPU online.
///
/// Errors: `EINVAL` for a count of vCPUs out of range, unknown flags or a reserved domid;
/// `EEXIST` for a domid in use; `ENOSPC` when all are; `ENOMEM`. Nothing is left behind then.
pub fn create(core: &mut Core, asked: &CreateDomain) -> Result<DomId, Errno> {
    if asked.flags & !CREATE_DRIVER != 0 {
        return Err(Errno::EINVAL);
    }
    let id = match asked.domid {
        0 => (1..MAX_DOMAINS as u16)
            .map(DomId::new)
            .find(|&id| core.domains.get(id).is_none())
            .ok_or(Errno::ENOSPC)?,
        wanted => DomId::new(wanted),
    };
    new_domain(core, id, asked)?;
    Ok(id)
}

/// Makes a paused domain under a given id; see [`create`].
pub fn new_domain(core: &mut Core, id: DomId, asked: &CreateDomain) -> Result<(), Errno> {
    if !(1..=MAX_VCPUS as u32).contains(&asked.max_vcpus) {
        return Err(Errno::EINVAL);
    }
    core.domains.vacant(id)?;
    let shared_info = core.frames.alloc_shared(id).ok_or(Errno::ENOMEM)?;
    let domain = Domain {
        id,
        incarnation: core.domains.next_incarnation(id),
        life: Life::Alive,
        ended_at: Ns::default(),
        ending: None,
        pauses: 1,
        handle: asked.handle,
        is_driver: asked.flags & CREATE_DRIVER != 0,
        shared_info,
        max_vcpus: asked.max_vcpus,
        vcpus: [const { None }; MAX_VCPUS],
        memory: Reservation { max_pages: asked.max_pages, ..Default::default() },
        events: Default::default(),
        grants: Default::default(),
        devices: Default::default(),
        assists: 0,
        reason: String::new(),
    };
    let Some(domain) = FrameBox::new(&mut core.frames, domain) else {
        core.frames.free_shared(shared_info);
        return Err(Errno::ENOMEM);
    };
    *core.domains.vacant(id)? = Some(domain);
    begin_life(core, id).inspect_err(|_| super::teardown::discard(core, id))
}

/// Gives a domain its vCPUs, as new, and the time.
pub(super) fn begin_life(core: &mut Core, dom: DomId) -> Result<(), Errno> {
    let max_vcpus = core.domains.get(dom).map_or(0, |domain| domain.max_vcpus);
    (0..max_vcpus).map(VcpuId::new).try_for_each(|id| new_vcpu(core, dom, id))?;
    sched::time::publish_wallclock(core, dom);
    Ok(())
}

/// Makes a vCPU anew, in its old place if it has one: offline, without a context, known to
/// the scheduler.
fn new_vcpu(core: &mut Core, dom: DomId, id: VcpuId) -> Result<(), Errno> {
    let domain = core.domains.get_mut(dom).ok_or(Errno::ESRCH)?;
    let (incarnation, info) = (domain.incarnation, legacy_info(domain, id));
    let vcpu = Vcpu::new(dom, id, incarnation, info);
    match domain.vcpus.get_mut(id.get() as usize).ok_or(Errno::EINVAL)? {
        Some(old) => **old = vcpu,
        slot => *slot = Some(FrameBox::new(&mut core.frames, vcpu).ok_or(Errno::ENOMEM)?),
    }
    mask_events(core, info);
    sched::add(core, VcpuRef { dom, vcpu: id, incarnation })
}

/// Events are off until the guest says otherwise.
fn mask_events(core: &Core, info: Maddr) {
    const MASK: u64 = core::mem::offset_of!(VcpuInfo, evtchn_upcall_mask) as u64;
    core.frames.mem().write_u8(Maddr::new(info.get() + MASK), 1);
}

/// Where a vCPU's `vcpu_info` is until it registers another place.
pub(super) fn legacy_info(domain: &Domain, id: VcpuId) -> Maddr {
    const _: () = assert!(MAX_VCPUS <= LEGACY_MAX_VCPUS);
    Maddr::new(
        domain.shared_info.maddr().get() + u64::from(id.get()) * size_of::<VcpuInfo>() as u64,
    )
}

/// A vCPU has got its context: it comes online, as the first of its domain to run.
pub fn bring_online(core: &mut Core, dom: DomId, id: VcpuId) {
    if let Some(vcpu) = core.domains.get_mut(dom).and_then(|d| d.vcpu_mut(id)) {
        vcpu.online = true;
    }
    sched::time::publish(core, dom, id);
    sched::refresh(core, dom);
}

/// The domain stops for `reason` (`SHUTDOWN_*`); its memory stays to be looked at. Does
/// nothing to one that has stopped already. Dom0's end is the machine's.
pub fn shutdown(core: &mut Core, dom: DomId, reason: u32) {
    let Some(domain) = core.domains.get_mut(dom).filter(|d| d.life == Life::Alive) else {
        return;
    };
    domain.life = Life::Shutdown(reason);
    domain.ended_at = arch::now();
    if dom == DomId::DOM0 {
        log::error!("Dom0 shut down, reason {reason}: {}", domain.reason);
        arch::exit_machine(if reason == SHUTDOWN_POWEROFF { EXIT_OK } else { EXIT_DOM0_DIED });
    }
    sched::refresh(core, dom);
    tell_dom0(core);
}

/// Raises `VIRQ_DOM_EXC`.
pub(super) fn tell_dom0(core: &mut Core) {
    let wake = event::raise_virq(core, DomId::DOM0, None, VIRQ_DOM_EXC);
    core.wake(wake);
}

/// Takes as much of a text as fits.
struct Fitting<'a, const N: usize>(&'a mut String<N>);

impl<const N: usize> fmt::Write for Fitting<'_, N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            self.0.push(c).map_err(|_| fmt::Error)?;
        }
        Ok(())
    }
}

/// The domain broke its own machine: it stops, alone, and Dom0 can read why.
pub fn crash(core: &mut Core, dom: DomId, why: fmt::Arguments<'_>) {
    let Some(domain) = core.domains.get_mut(dom).filter(|d| d.life == Life::Alive) else {
        return;
    };
    domain.reason.clear();
    // What does not fit is cut off.
    let _ = fmt::write(&mut Fitting(&mut domain.reason), why);
    log::warn!("{dom} crashed: {why}");
    shutdown(core, dom, SHUTDOWN_CRASH);
}

/// Dom0 stops a domain for a reason (`SHUTDOWN_*`), at whatever instruction it is; from then on
/// it is as if the domain had done so itself. Nothing happens to one that has stopped already.
///
/// Errors: `ESRCH`, `EPERM` (Dom0).
pub fn stop(core: &mut Core, dom: DomId, reason: u32) -> Result<(), Errno> {
    subject(core, dom)?;
    match reason {
        SHUTDOWN_CRASH => crash(core, dom, format_args!("it was crashed on request")),
        reason => shutdown(core, dom, reason),
    }
    Ok(())
}

/// A domain that Dom0 may act on.
///
/// Errors: `ESRCH`; `EPERM` for Dom0 itself, which would not survive to see the answer.
pub(super) fn subject(core: &mut Core, dom: DomId) -> Result<&mut Domain, Errno> {
    if dom == DomId::DOM0 {
        return Err(Errno::EPERM);
    }
    core.domains.get_mut(dom).ok_or(Errno::ESRCH)
}

/// Stops all vCPUs until a matching [`unpause`]; nests.
///
/// Errors: `ESRCH`, `EPERM` (Dom0), `ERANGE` at 2^32 pauses.
pub fn pause(core: &mut Core, dom: DomId) -> Result<(), Errno> {
    let domain = subject(core, dom)?;
    domain.pauses = domain.pauses.checked_add(1).ok_or(Errno::ERANGE)?;
    sched::refresh(core, dom);
    Ok(())
}

/// Takes back one [`pause`].
///
/// Errors: `ESRCH`, `EPERM` (Dom0), `EINVAL` if it is not paused.
pub fn unpause(core: &mut Core, dom: DomId) -> Result<(), Errno> {
    let domain = subject(core, dom)?;
    domain.pauses = domain.pauses.checked_sub(1).ok_or(Errno::EINVAL)?;
    sched::refresh(core, dom);
    Ok(())
}

/// What is to be known of the first domain whose id is at least `from`.
///
/// Errors: `ESRCH` when there is none.
pub fn info(core: &mut Core, from: DomId) -> Result<DomainInfo, Errno> {
    let id = core.domains.ids().find(|&id| id >= from).ok_or(Errno::ESRCH)?;
    let mut cpu_time_ns = 0;
    let (mut online, mut blocked) = (0, 0);
    for vcpu in (0..MAX_VCPUS as u32).map(VcpuId::new) {
        let Ok(times) = sched::times(core, id, vcpu) else {
            continue;
        };
        cpu_time_ns += times.time[0];
        if core.domains.get(id).and_then(|d| d.vcpu(vcpu)).is_some_and(|v| v.online) {
            online += 1;
            blocked += u32::from(times.state == RUNSTATE_BLOCKED);
        }
    }
    let is_running = core.cpus.iter().flat_map(|cpu| cpu.current).any(|current| current.dom == id);
    let domain = core.domains.get(id).ok_or(Errno::ESRCH)?;
    let (life, shutdown_reason) = match domain.life {
        Life::Alive if is_running => (STATE_RUNNING, 0),
        Life::Alive if online > 0 && online == blocked => (STATE_BLOCKED, 0),
        Life::Alive => (0, 0),
        Life::Shutdown(reason) => (STATE_SHUTDOWN, reason),
        Life::Dying => (STATE_DYING, 0),
    };
    let paused = if domain.pauses > 0 { STATE_PAUSED } else { 0 };
    let driver = if domain.is_driver { STATE_DRIVER } else { 0 };
    let mut reason = [0; 120];
    for (to, from) in reason.iter_mut().zip(domain.reason.bytes()) {
        *to = from;
    }
    Ok(DomainInfo {
        domid: id.get(),
        state: life | paused | driver,
        shutdown_reason,
        incarnation: domain.incarnation.0,
        max_vcpus: domain.max_vcpus,
        online_vcpus: online,
        tot_pages: core.frames.tot_pages(id),
        max_pages: domain.memory.max_pages,
        shared_info_mfn: domain.shared_info.get(),
        cpu_time_ns,
        overhead_pages: overhead(domain),
        ports: domain.events.open_ports(),
        maps: domain.grants.mapped(),
        ended_ns: domain.ended_at.get(),
        reason,
        ..DomainInfo::default()
    })
}

/// Frames of the core that hold a domain's structures.
fn overhead(domain: &Domain) -> u64 {
    use crate::memory::frame_box::frames_for;
    let vcpus = domain.vcpus.iter().flatten().count();
    let own = frames_for::<Domain>() + vcpus * frames_for::<Vcpu>();
    own as u64 + domain.memory.overhead_pages + domain.grants.overhead()
}
