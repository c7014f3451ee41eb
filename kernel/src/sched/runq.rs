//! Who runs next on a CPU: the run queues, and the steps by which a vCPU becomes
//! runnable, runs and stops. Everything here is given the time; nothing knows domains, events or
//! the machine.

use super::{
    bvt::{Params, VirtTime},
    line::Line,
    slot::{Slot, SlotId, Slots},
};
use crate::{
    domain::VcpuRef,
    memory::frame::FrameTable,
    state::{CpuId, MAX_CPUS},
};
use bulkhead_abi::{
    Errno, Ns,
    control::VcpuTimes,
    vcpu::{RUNSTATE_BLOCKED, RUNSTATE_OFFLINE, RUNSTATE_RUNNABLE, RUNSTATE_RUNNING},
};

/// What [`Scheduler::pick`] decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct Decision {
    /// Who runs; `None`: the CPU idles.
    pub next: Option<VcpuRef>,
    /// When to choose again even if nothing happens.
    pub until: Option<Ns>,
}

/// One CPU's runnable vCPUs, the running one among them.
struct RunQueue {
    line: Line,
    /// The least actual virtual time of a runnable vCPU when it was last looked for; see
    /// [`RunQueue::find_svt`].
    svt: VirtTime,
    /// In line as long as it runs.
    running: Option<SlotId>,
    /// Up to when the running vCPU's time is accounted.
    accounted: Ns,
    slice_end: Option<Ns>,
}

impl RunQueue {
    const fn new() -> Self {
        Self {
            line: Line::new(Slot::runs_before),
            svt: VirtTime::new(0),
            running: None,
            accounted: Ns::new(0),
            slice_end: None,
        }
    }

    /// Scheduler virtual time. With nobody runnable it stays where it was.
    fn find_svt(&mut self, slots: &Slots) -> VirtTime {
        let members = self.line.members().iter().filter_map(|&id| slots.get(id));
        let earlier = |a: VirtTime, b: VirtTime| if b.before(a) { b } else { a };
        if let Some(least) = members.map(|slot| slot.account.actual_vt()).reduce(earlier) {
            self.svt = least;
        }
        self.svt
    }

    /// Charges the running vCPU for the time until `now`.
    fn account(&mut self, slots: &mut Slots, now: Ns) {
        let ran = now.minus(self.accounted);
        self.accounted = self.accounted.max(now);
        if let Some(id) = self.running
            && let Some(slot) = slots.get_mut(id)
        {
            slot.account.ran(&slot.params, ran, now);
            self.line.put(slots, id);
        }
    }

    /// The first in line but for `id`, and where it stands.
    fn rival_of(&self, slots: &Slots, id: SlotId) -> Option<(SlotId, VirtTime)> {
        let rival = *self.line.members().iter().find(|&&other| other != id)?;
        Some((rival, slots.get(rival)?.effective_vt()))
    }

    /// Whom the CPU goes to.
    fn choose(&self, slots: &mut Slots) -> Option<SlotId> {
        let Some(running) = self.running else {
            return self.line.members().first().copied();
        };
        let rival = self.rival_of(slots, running);
        let slot = slots.get_mut(running)?;
        let has_yielded = core::mem::take(&mut slot.yielded);
        let gives_way = |vt| has_yielded || slot.account.yields_to(&slot.params, vt);
        Some(rival.filter(|&(_, vt)| gives_way(vt)).map_or(running, |(rival, _)| rival))
    }

    /// See [`Scheduler::pick`].
    fn pick(&mut self, slots: &mut Slots, now: Ns) -> Option<Decision> {
        self.account(slots, now);
        let next = self.choose(slots)?;
        if self.running != Some(next) {
            if let Some(previous) = self.running.and_then(|id| slots.get_mut(id)) {
                previous.times.enter(RUNSTATE_RUNNABLE, now);
            }
            self.running = Some(next);
            let slot = slots.get_mut(next)?;
            slot.times.enter(RUNSTATE_RUNNING, now);
            slot.dispatches = slot.dispatches.wrapping_add(1);
            slot.yielded = false;
        }
        let rival = self.rival_of(slots, next).map(|(_, vt)| vt);
        let slot = slots.get(next)?;
        self.slice_end = slot.account.slice(&slot.params, rival).map(|slice| now.plus(slice));
        Some(Decision { next: Some(slot.owner), until: self.slice_end })
    }
}

/// Run queues and timers of all CPUs.
pub struct Scheduler {
    pub(super) slots: Slots,
    queues: [RunQueue; MAX_CPUS],
    pub(super) timers: Line,
    /// The earliest deadline of any vCPU: it is asked for at every exit.
    pub(super) first_deadline: Option<Ns>,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            slots: Slots::default(),
            queues: [const { RunQueue::new() }; MAX_CPUS],
            timers: Line::new(Slot::due_before),
            first_deadline: None,
        }
    }
}

impl Scheduler {
    /// Takes in a vCPU, offline, with default parameters (Dom0's own for Dom0).
    ///
    /// Errors: `ENOSPC` above [`super::slot::MAX_SLOTS`] vCPUs, `ENOMEM` without a frame for its slot.
    pub fn add(&mut self, frames: &mut FrameTable, who: VcpuRef, now: Ns) -> Result<SlotId, Errno> {
        // One CPU runs guests so far; with more, the least loaded one is chosen here.
        let cpu = CpuId(0);
        let svt = self.queues[cpu.0].svt;
        self.slots.take(frames, Slot::new(who, cpu, svt, now))
    }

    /// Forgets a vCPU, its timers too. Like all that follow, gives the CPU that must choose anew.
    pub fn remove(&mut self, id: SlotId, now: Ns) -> Option<CpuId> {
        let cpu = self.set_eligible(id, false, now);
        self.disarm(id);
        self.slots.release(id);
        cpu
    }

    /// Whether it may run at all: online, and its domain neither paused nor dead.
    pub fn set_eligible(&mut self, id: SlotId, eligible: bool, now: Ns) -> Option<CpuId> {
        self.slots.get_mut(id)?.eligible = eligible;
        self.settle(id, now)
    }

    /// It waits for an event, or until a time.
    pub fn block(&mut self, id: SlotId, until: Option<Ns>, now: Ns) -> Option<CpuId> {
        let slot = self.slots.get_mut(id)?;
        slot.blocked = true;
        slot.wake_at = until;
        self.arm(id);
        self.settle(id, now)
    }

    /// It waits no longer.
    pub fn unblock(&mut self, id: SlotId, now: Ns) -> Option<CpuId> {
        let slot = self.slots.get_mut(id)?;
        slot.blocked = false;
        if slot.wake_at.take().is_some() {
            self.arm(id);
        }
        self.settle(id, now)
    }

    /// It lets another go first, once.
    pub fn yield_now(&mut self, id: SlotId) -> Option<CpuId> {
        let slot = self.slots.get_mut(id)?;
        slot.yielded = true;
        Some(slot.cpu)
    }

    /// The queue a slot belongs to, with the running vCPU's time accounted for.
    fn queue_of(&mut self, id: SlotId, now: Ns) -> Option<(CpuId, &mut RunQueue, &mut Slots)> {
        let cpu = self.slots.get(id)?.cpu;
        let queue = self.queues.get_mut(cpu.0)?;
        queue.account(&mut self.slots, now);
        Some((cpu, queue, &mut self.slots))
    }

    /// Brings queue and run state in line with what the slot says of itself.
    fn settle(&mut self, id: SlotId, now: Ns) -> Option<CpuId> {
        let (cpu, queue, slots) = self.queue_of(id, now)?;
        let is_queued = queue.line.members().contains(&id);
        let svt = queue.find_svt(slots);
        let slot = slots.get_mut(id)?;
        if slot.is_runnable() {
            if is_queued {
                return None;
            }
            slot.account.woke(&slot.params, svt, now);
            slot.times.enter(RUNSTATE_RUNNABLE, now);
            queue.line.put(slots, id);
            return Some(cpu);
        }
        // A vCPU that waits stays "blocked" while its domain is paused.
        let state = if slot.blocked { RUNSTATE_BLOCKED } else { RUNSTATE_OFFLINE };
        slot.times.enter(state, now);
        if !is_queued {
            return None;
        }
        slot.account.end_warp(&slot.params, now);
        queue.line.remove(id);
        if queue.running == Some(id) {
            queue.running = None;
            queue.slice_end = None;
        }
        Some(cpu)
    }

    /// Decides who runs on `cpu` from now on, and takes it as done.
    ///
    /// Cost: a place in line.
    pub fn pick(&mut self, cpu: CpuId, now: Ns) -> Decision {
        let queue = self.queues.get_mut(cpu.0);
        queue.and_then(|queue| queue.pick(&mut self.slots, now)).unwrap_or_default()
    }

    /// When this CPU is to choose again.
    pub fn slice_end(&self, cpu: CpuId) -> Option<Ns> {
        self.queues.get(cpu.0)?.slice_end
    }

    /// Sets BVT parameters; what has run so far counts by the old ones.
    pub fn set_params(&mut self, id: SlotId, params: Params, now: Ns) -> Option<CpuId> {
        let (cpu, queue, slots) = self.queue_of(id, now)?;
        let slot = slots.get_mut(id)?;
        slot.params = params;
        slot.account.params_changed(&params, now);
        if queue.line.members().contains(&id) {
            queue.line.put(slots, id);
        }
        Some(cpu)
    }

    /// State, times, virtual time and dispatches, up to `now`.
    pub fn times(&mut self, id: SlotId, now: Ns) -> Option<VcpuTimes> {
        let (_, _, slots) = self.queue_of(id, now)?;
        let slot = slots.get(id)?;
        Some(VcpuTimes {
            domid: slot.owner.dom.get(),
            vcpu: slot.owner.vcpu.get(),
            state: slot.times.info().state,
            time: slot.times.times_at(now),
            actual_vt: slot.account.actual_vt().get(),
            dispatches: slot.dispatches,
            ..VcpuTimes::default()
        })
    }
}
