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
use slot::{Polling, SlotId};

/// The scheduler's share of a vCPU.
#[derive(Default)]
pub struct VcpuSched {
    /// Where the rest is; `None` until [`add`].
    slot: Option<SlotId>,
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
    Vcpu(VcpuRef),
    /// Several vCPUs of one domain: bit n is vCPU n.
    Vcpus {
        dom: DomId,
        incarnation: Incarnation,
        mask: u32,
    },
}

const _: () = assert!(MAX_VCPUS <= u32::BITS as usize);

impl Core {
    /// Lets the named vCPUs run if they were blocked or polling.
    pub fn wake(&mut self, wake: Wake) {
        match wake {
            Wake::Nobody => {}
            Wake::Vcpu(who) => self.wake_one(who),
            Wake::Vcpus { dom, incarnation, mask } => {
                for n in (0..u32::BITS).filter(|n| mask & 1 << n != 0) {
                    self.wake_one(VcpuRef { dom, vcpu: VcpuId::new(n), incarnation });
                }
            }
        }
    }

    fn wake_one(&mut self, who: VcpuRef) {
        let Some(id) = slot_of(self, who) else { return };
        if let Some(domain) = self.domains.get_mut(who.dom) {
            domain.events.set_polling(who.vcpu, false);
        }
        let cpu = self.sched.unblock(id, arch::now());
        self.reschedule_if(cpu);
    }

    /// Has a CPU choose anew before it returns to a guest.
    pub fn request_reschedule(&mut self, cpu: CpuId) {
        self.cpu(cpu).need_resched = true;
    }

    fn reschedule_if(&mut self, cpu: Option<CpuId>) {
        if let Some(cpu) = cpu {
            self.request_reschedule(cpu);
        }
    }
}

fn slot_of(core: &mut Core, who: VcpuRef) -> Option<SlotId> {
    core.domains.resolve(who)?.sched.slot
}

fn slot_in(core: &Core, dom: DomId, vcpu: VcpuId) -> Option<SlotId> {
    core.domains.get(dom)?.vcpu(vcpu)?.sched.slot
}

/// Takes in a vCPU of a domain that is in the table, offline until [`refresh`].
///
/// Errors: `ESRCH` if there is no such vCPU, `EEXIST` if it is in already, `ENOSPC`, `ENOMEM`.
pub fn add(core: &mut Core, who: VcpuRef) -> Result<(), Errno> {
    let vcpu = core.domains.resolve(who).ok_or(Errno::ESRCH)?;
    if vcpu.sched.slot.is_some() {
        return Err(Errno::EEXIST);
    }
    let slot = core.sched.add(&mut core.frames, who, arch::now())?;
    vcpu.sched.slot = Some(slot);
    Ok(())
}

/// Forgets a vCPU: it never runs again, its timers and registrations are gone. Any CPU that ran
/// it chooses anew.
pub fn remove(core: &mut Core, who: VcpuRef) {
    let Some(vcpu) = core.domains.resolve(who) else {
        return;
    };
    let Some(id) = core::mem::take(&mut vcpu.sched).slot else {
        return;
    };
    let cpu = core.sched.set_eligible(id, false, arch::now());
    core.sched.remove(id, arch::now());
    core.reschedule_if(cpu);
}

/// Follows a change of `Domain::life`, `Domain::pauses` or `Vcpu::online`: the one place where it
/// is decided whether a vCPU may run.
pub fn refresh(core: &mut Core, dom: DomId) {
    let now = arch::now();
    for n in 0..MAX_VCPUS as u32 {
        let Some(domain) = core.domains.get(dom) else {
            return;
        };
        let may_run = domain.life == Life::Alive && domain.pauses == 0;
        let Some(vcpu) = domain.vcpu(VcpuId::new(n)) else {
            continue;
        };
        let Some(id) = vcpu.sched.slot else { continue };
        let eligible = may_run && vcpu.online;
        let cpu = core.sched.set_eligible(id, eligible, now);
        core.reschedule_if(cpu);
    }
}

/// Decides who runs on `cpu` from `now` on and takes it as done: run states, accounts and the end
/// of the slice. The caller switches.
pub fn pick(core: &mut Core, cpu: CpuId, now: Ns) -> Decision {
    let decision = core.sched.pick(cpu, now);
    if let Some(state) = core.cpus.get_mut(cpu.0) {
        state.need_resched = false;
    }
    decision
}

/// Shows a vCPU that is given the CPU the time and its run state. To be called after [`pick`]
/// whenever it chose another vCPU than ran before.
pub fn entered(core: &mut Core, who: VcpuRef) {
    time::publish(core, who.dom, who.vcpu);
    time::publish_runstate(core, who);
}

/// The caller waits until an event is due. The caller of this has looked that none is.
pub fn block(core: &mut Core, caller: Caller) {
    if let Some(id) = slot_in(core, caller.dom, caller.vcpu) {
        let cpu = core.sched.block(id, arch::now());
        core.reschedule_if(cpu);
    }
}

/// The caller lets another go first.
pub fn yield_(core: &mut Core, caller: Caller) {
    if let Some(id) = slot_in(core, caller.dom, caller.vcpu) {
        let cpu = core.sched.yield_now(id);
        core.reschedule_if(cpu);
    }
}

/// The caller waits for ports or until a system time.
pub fn poll(core: &mut Core, caller: Caller, what: Polling, until: Option<Ns>) {
    let Some(id) = slot_in(core, caller.dom, caller.vcpu) else {
        return;
    };
    if let Some(domain) = core.domains.get_mut(caller.dom) {
        domain.events.set_polling(caller.vcpu, true);
    }
    let cpu = core.sched.poll(id, what, until, arch::now());
    core.reschedule_if(cpu);
}

/// What a vCPU polls for, if it does.
pub fn polling(core: &Core, dom: DomId, vcpu: VcpuId) -> Option<Polling> {
    core.sched.slot(slot_in(core, dom, vcpu)?)?.polling
}

/// Whether an event on `port` ends the poll.
pub fn poll_matches(polling: Polling, port: Port) -> bool {
    match polling {
        Polling::Any => true,
        Polling::Port(one) => one == port,
    }
}

/// Sets, replaces or stops a vCPU's one-shot timer.
pub fn set_singleshot(core: &mut Core, dom: DomId, vcpu: VcpuId, deadline: Option<Ns>) {
    if let Some(id) = slot_in(core, dom, vcpu) {
        core.sched.set_singleshot(id, deadline);
    }
}

/// Starts or stops a vCPU's periodic timer.
pub fn set_periodic(core: &mut Core, dom: DomId, vcpu: VcpuId, period: Option<Ns>) {
    if let Some(id) = slot_in(core, dom, vcpu) {
        core.sched.set_periodic(id, period, arch::now());
    }
}

/// The run state as the guest asks for it: with the time in the present state up to now.
pub fn runstate_info(core: &mut Core, who: VcpuRef) -> Option<RunstateInfo> {
    let id = slot_of(core, who)?;
    let times = &core.sched.slot(id)?.times;
    Some(RunstateInfo { time: times.times_at(arch::now()), ..times.info() })
}

/// `SET_SCHED`: one vCPU, or all of a domain for `u32::MAX`.
///
/// Errors: `ESRCH` for an unknown domain, `ENOENT` for an unknown vCPU, `EINVAL` for values out
/// of range; nothing has changed then.
pub fn set_params(core: &mut Core, wanted: &SchedParams) -> Result<(), Errno> {
    let params = Params::checked(
        wanted.weight,
        Ns::new(wanted.warp_ns),
        Ns::new(wanted.warp_limit_ns),
        Ns::new(wanted.unwarp_ns),
        Ns::new(wanted.allowance_ns),
    )?;
    let dom = DomId::new(wanted.domid);
    core.domains.get(dom).ok_or(Errno::ESRCH)?;
    let vcpus = match wanted.vcpu {
        u32::MAX => 0..MAX_VCPUS as u32,
        one => {
            slot_in(core, dom, VcpuId::new(one)).ok_or(Errno::ENOENT)?;
            one..one + 1
        }
    };
    for n in vcpus {
        if let Some(id) = slot_in(core, dom, VcpuId::new(n)) {
            let cpu = core.sched.set_params(id, params, arch::now());
            core.reschedule_if(cpu);
        }
    }
    Ok(())
}

/// `GET_SCHED`: fills in the parameters of the vCPU that `about` names.
///
/// Errors: `ENOENT` for an unknown domain or vCPU.
pub fn get_params(core: &Core, about: &SchedParams) -> Result<SchedParams, Errno> {
    let id =
        slot_in(core, DomId::new(about.domid), VcpuId::new(about.vcpu)).ok_or(Errno::ENOENT)?;
    let params = core.sched.params(id).ok_or(Errno::ENOENT)?;
    Ok(SchedParams {
        weight: params.weight.get(),
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
    let id = slot_in(core, dom, vcpu).ok_or(Errno::ENOENT)?;
    let times = core.sched.times(id, arch::now()).ok_or(Errno::ENOENT)?;
    Ok(VcpuTimes { domid: dom.get(), vcpu: vcpu.get(), ..times })
}
