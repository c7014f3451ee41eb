//! Who runs next: Borrowed Virtual Time, run queues, timers, run states.
//!
//! [`bvt`] is arithmetic, [`line`] and [`slot`] memory, [`runq`] and [`timer`] the decisions over
//! them, [`time`] what guests are shown. This file joins them to domains: the functions others
//! call take the whole core, find the vCPU's slot and note which CPU must choose anew.
//! No event is interpreted here: a wake-up arrives as a value.
#![deny(unsafe_code)]

pub mod bvt;
pub mod line;
pub mod runq;
pub mod runstate;
pub mod slot;
pub mod time;
pub mod timer;

#[cfg(test)]
mod tests;

use crate::{
    Core, arch,
    domain::{Incarnation, Life, MAX_VCPUS, VcpuRef},
    state::{Caller, CpuId},
};
use bulkhead_abi::{
    DomId, Errno, GuestVa, Ns, Port, VcpuId,
    control::{SchedParams, VcpuTimes},
    vcpu::RunstateInfo,
};
use bvt::Params;
pub use runq::{Decision, Scheduler};
use slot::SlotId;

/// What a vCPU in `SCHEDOP_poll` waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Polling {
    /// One port.
    Port(Port),
    /// Several: any event of its domain wakes it, and it looks for itself.
    Any,
}

/// The scheduler's share of a vCPU.
#[derive(Default)]
pub struct VcpuSched {
    /// Where the rest is; `None` until [`add`].
    slot: Option<SlotId>,
    /// What it polls for, if it does.
    pub polling: Option<Polling>,
    /// Where the guest wants its run state written.
    pub runstate_area: Option<GuestVa>,
    /// Version last written to its `vcpu_time_info`; even.
    time_version: u32,
}

/// vCPUs that have something to wake for. Hand it to [`Core::wake`]: dropped, it would be a lost
/// event, and a guest that hangs.
#[must_use = "a wake-up that is dropped is a guest that hangs"]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wake {
    #[default]
    Nobody,
    /// Of one domain: bit n is vCPU n.
    Vcpus { dom: DomId, incarnation: Incarnation, mask: u32 },
}

const _: () = assert!(MAX_VCPUS <= u32::BITS as usize);

impl Core {
    /// Lets the named vCPUs run if they were blocked or polling.
    pub fn wake(&mut self, wake: Wake) {
        if let Wake::Vcpus { dom, incarnation, mask } = wake {
            for n in (0..u32::BITS).filter(|n| mask & 1 << n != 0) {
                self.wake_one(VcpuRef { dom, vcpu: VcpuId::new(n), incarnation });
            }
        }
    }

    fn wake_one(&mut self, who: VcpuRef) {
        if let Some(vcpu) = self.domains.resolve(who) {
            vcpu.sched.polling = None;
            let _ = on_slot(self, who.dom, who.vcpu, Scheduler::unblock);
        }
    }

    /// Has a CPU choose anew before it returns to a guest.
    pub fn request_reschedule(&mut self, cpu: CpuId) {
        self.cpu(cpu).need_resched = true;
    }
}

fn slot_of(core: &Core, dom: DomId, vcpu: VcpuId) -> Result<SlotId, Errno> {
    let vcpu = core.domains.get(dom).and_then(|domain| domain.vcpu(vcpu));
    vcpu.and_then(|vcpu| vcpu.sched.slot).ok_or(Errno::ENOENT)
}

/// Changes what the scheduler keeps of a vCPU; the CPU that this gives chooses anew.
///
/// Errors: `ENOENT` for an unknown domain or vCPU.
fn on_slot(
    core: &mut Core,
    dom: DomId,
    vcpu: VcpuId,
    change: impl FnOnce(&mut Scheduler, SlotId, Ns) -> Option<CpuId>,
) -> Result<(), Errno> {
    let id = slot_of(core, dom, vcpu)?;
    if let Some(cpu) = change(&mut core.sched, id, arch::now()) {
        core.request_reschedule(cpu);
    }
    Ok(())
}

/// Takes in a vCPU of a domain that is in the table, offline until [`refresh`].
///
/// Errors: `ESRCH` if there is no such vCPU, `EEXIST` if it is in already, `ENOSPC`, `ENOMEM`.
pub fn add(core: &mut Core, who: VcpuRef) -> Result<(), Errno> {
    let vcpu = core.domains.resolve(who).ok_or(Errno::ESRCH)?;
    if vcpu.sched.slot.is_some() {
        return Err(Errno::EEXIST);
    }
    vcpu.sched.slot = Some(core.sched.add(&mut core.frames, who, arch::now())?);
    Ok(())
}

/// Forgets a vCPU: it never runs again, its timers and registrations are gone. Any CPU that ran
/// it chooses anew.
pub fn remove(core: &mut Core, who: VcpuRef) {
    if core.domains.resolve(who).is_some() {
        let _ = on_slot(core, who.dom, who.vcpu, Scheduler::remove);
    }
    if let Some(vcpu) = core.domains.resolve(who) {
        vcpu.sched = VcpuSched::default();
    }
}

/// Follows a change of `Domain::life`, `Domain::pauses` or `Vcpu::online`: the one place where it
/// is decided whether a vCPU may run.
pub fn refresh(core: &mut Core, dom: DomId) {
    for id in (0..MAX_VCPUS as u32).map(VcpuId::new) {
        let eligible = core.domains.get(dom).is_some_and(|domain| {
            let is_online = domain.vcpu(id).is_some_and(|vcpu| vcpu.online);
            is_online && domain.life == Life::Alive && domain.pauses == 0
        });
        let _ = on_slot(core, dom, id, |sched, id, now| sched.set_eligible(id, eligible, now));
    }
}

/// Decides who runs on `cpu` from `now` on and takes it as done: run states, accounts and the end
/// of the slice. The caller switches.
pub fn pick(core: &mut Core, cpu: CpuId, now: Ns) -> Decision {
    if let Some(state) = core.cpus.get_mut(cpu.0) {
        state.need_resched = false;
    }
    core.sched.pick(cpu, now)
}

/// Shows a vCPU that is given the CPU the time and its run state. To be called after [`pick`]
/// whenever it chose another vCPU than ran before.
pub fn entered(core: &mut Core, who: VcpuRef) {
    time::publish(core, who.dom, who.vcpu);
    time::publish_runstate(core, who);
}

/// The caller waits until an event is due. The caller of this has looked that none is.
pub fn block(core: &mut Core, caller: Caller) {
    wait(core, caller, None, None);
}

/// The caller waits for ports or until a system time.
pub fn poll(core: &mut Core, caller: Caller, what: Polling, until: Option<Ns>) {
    wait(core, caller, Some(what), until);
}

fn wait(core: &mut Core, caller: Caller, polling: Option<Polling>, until: Option<Ns>) {
    if let Some(vcpu) = core.vcpu_mut(caller) {
        vcpu.sched.polling = polling;
    }
    let wait = |sched: &mut Scheduler, id, now| sched.block(id, until, now);
    let _ = on_slot(core, caller.dom, caller.vcpu, wait);
}

/// The caller lets another go first.
pub fn yield_(core: &mut Core, caller: Caller) {
    let _ = on_slot(core, caller.dom, caller.vcpu, |sched, id, _| sched.yield_now(id));
}

/// Sets, replaces or stops a vCPU's one-shot timer.
///
/// Errors: `ENOENT` for an unknown vCPU, as below.
pub fn set_singleshot(core: &mut Core, of: Caller, deadline: Option<Ns>) -> Result<(), Errno> {
    let id = slot_of(core, of.dom, of.vcpu)?;
    core.sched.set_singleshot(id, deadline);
    Ok(())
}

/// Starts or stops a vCPU's periodic timer.
pub fn set_periodic(core: &mut Core, of: Caller, period: Option<Ns>) -> Result<(), Errno> {
    let id = slot_of(core, of.dom, of.vcpu)?;
    core.sched.set_periodic(id, period, arch::now());
    Ok(())
}

/// The run state as the guest asks for it: with the time in the present state up to now.
pub fn runstate_info(core: &Core, of: Caller) -> Result<RunstateInfo, Errno> {
    let id = slot_of(core, of.dom, of.vcpu)?;
    let times = &core.sched.slots.get(id).ok_or(Errno::ENOENT)?.times;
    Ok(RunstateInfo { time: times.times_at(arch::now()), ..times.info() })
}

/// `SET_SCHED`: one vCPU, or all of a domain for `u32::MAX`.
///
/// Errors: `ESRCH` for an unknown domain, `ENOENT` for an unknown vCPU, `EINVAL` for values out
/// of range; nothing has changed then.
pub fn set_params(core: &mut Core, wanted: &SchedParams) -> Result<(), Errno> {
    let params = Params::checked(wanted)?;
    let dom = DomId::new(wanted.domid);
    core.domains.get(dom).ok_or(Errno::ESRCH)?;
    let set = |sched: &mut Scheduler, id, now| sched.set_params(id, params, now);
    if wanted.vcpu != u32::MAX {
        return on_slot(core, dom, VcpuId::new(wanted.vcpu), set);
    }
    for vcpu in (0..MAX_VCPUS as u32).map(VcpuId::new) {
        // Those that it has.
        let _ = on_slot(core, dom, vcpu, set);
    }
    Ok(())
}

/// `GET_SCHED`: fills in the parameters of the vCPU that `about` names.
///
/// Errors: `ENOENT` for an unknown domain or vCPU.
pub fn get_params(core: &Core, about: &SchedParams) -> Result<SchedParams, Errno> {
    let id = slot_of(core, DomId::new(about.domid), VcpuId::new(about.vcpu))?;
    let params = &core.sched.slots.get(id).ok_or(Errno::ENOENT)?.params;
    Ok(SchedParams {
        weight: params.weight.get().into(),
        warp_ns: params.warp.get(),
        warp_limit_ns: params.warp_limit.get(),
        unwarp_ns: params.unwarp.get(),
        allowance_ns: params.allowance.get(),
        ..*about
    })
}

/// `VCPU_TIMES`: state, times up to now, virtual time, dispatches.
///
/// Errors: `ENOENT` for an unknown domain or vCPU.
pub fn times(core: &mut Core, dom: DomId, vcpu: VcpuId) -> Result<VcpuTimes, Errno> {
    let id = slot_of(core, dom, vcpu)?;
    core.sched.times(id, arch::now()).ok_or(Errno::ENOENT)
}
