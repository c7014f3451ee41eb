//! Who runs next on a CPU: the run queues, and the steps by which a vCPU becomes
//! runnable, runs and stops. Everything here is given the time; nothing knows domains, events or
//! the machine.

use super::{
    bvt::{Account, Params, VirtTime},
    line::Line,
    runstate::RunState,
    slot::{ByDeadline, ByEffective, Polling, Slot, SlotId, Slots},
};
use crate::{
    domain::VcpuRef,
    memory::{frame::FrameTable, frame_box::FrameBox},
    state::{CpuId, MAX_CPUS},
};
use bulkhead_abi::{Errno, Ns, PAGE_SIZE, control::VcpuTimes};

/// What [`Scheduler::pick`] decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Decision {
    /// Who runs; `None`: the CPU idles.
    pub next: Option<VcpuRef>,
    /// When to choose again even if nothing happens.
    pub until: Option<Ns>,
}

/// One CPU's runnable vCPUs, the running one among them.
struct RunQueue {
    line: Line<ByEffective>,
    /// The least actual virtual time of a runnable vCPU when it was last looked for; see
    /// [`RunQueue::find_svt`].
    svt: VirtTime,
    /// In line as long as it runs.
    running: Option<SlotId>,
    /// Up to when the running vCPU's time is accounted.
    accounted: Ns,
    slice_end: Option<Ns>,
}

const _: () = assert!(size_of::<RunQueue>() <= PAGE_SIZE);

impl RunQueue {
    const fn new() -> Self {
        Self {
            line: Line::new(),
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
        let ran = Ns::new(now.get().saturating_sub(self.accounted.get()));
        self.accounted = self.accounted.max(now);
        let Some(id) = self.running else { return };
        let Some(slot) = slots.get_mut(id) else {
            return;
        };
        slot.account.ran(&slot.params, ran, now);
        self.line.put(slots, id);
    }

    /// The first in line but for `id`.
    fn rival_of(&self, id: SlotId) -> Option<SlotId> {
        self.line.members().iter().copied().find(|&other| other != id)
    }

    /// Whom the CPU goes to.
    fn choose(&self, slots: &mut Slots) -> Option<SlotId> {
        let first = self.line.first()?;
        let Some(running) = self.running else {
            return Some(first);
        };
        let rival = self.rival_of(running);
        let rival_vt = rival.and_then(|id| slots.get(id)).map(Slot::effective_vt);
        let slot = slots.get_mut(running)?;
        let gives_way = core::mem::take(&mut slot.yielded)
            || rival_vt.is_some_and(|rival| slot.account.yields_to(&slot.params, rival));
        if gives_way { rival.or(Some(running)) } else { Some(running) }
    }
}

/// Run queues and timers of all CPUs.
pub struct Scheduler {
    pub(super) slots: Slots,
    queues: [Option<FrameBox<RunQueue>>; MAX_CPUS],
    pub(super) timers: Line<ByDeadline>,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self::new()
    }
}

impl Scheduler {
    pub const fn new() -> Self {
        Self { slots: Slots::new(), queues: [const { None }; MAX_CPUS], timers: Line::new() }
    }

    fn queue(&mut self, cpu: CpuId) -> Option<(&mut RunQueue, &mut Slots)> {
        Some((self.queues.get_mut(cpu.0)?.as_deref_mut()?, &mut self.slots))
    }

    /// Takes in a vCPU, offline, with default parameters (Dom0's own for Dom0).
    ///
    /// Errors: `ENOSPC` above [`MAX_SLOTS`] vCPUs, `ENOMEM` without a frame for the tables.
    pub fn add(&mut self, frames: &mut FrameTable, who: VcpuRef, now: Ns) -> Result<SlotId, Errno> {
        // One CPU runs guests so far; with more, the least loaded one is chosen here.
        let cpu = CpuId(0);
        let queue = self.queues.get_mut(cpu.0).ok_or(Errno::ENOSPC)?;
        if queue.is_none() {
            *queue = Some(FrameBox::new(frames, RunQueue::new()).ok_or(Errno::ENOMEM)?);
        }
        let svt = queue.as_deref().map_or_else(VirtTime::default, |queue| queue.svt);
        let id = self.slots.take(frames, who)?;
        if let Some(slot) = self.slots.get_mut(id) {
            slot.cpu = cpu;
            slot.account = Account::new(svt);
            slot.times = super::runstate::RunTimes::new(now);
            if who.dom == bulkhead_abi::DomId::DOM0 {
                slot.params = Params::DOM0;
            }
        }
        Ok(id)
    }

    /// Forgets a vCPU, its timers too.
    pub fn remove(&mut self, id: SlotId, now: Ns) {
        let _ = self.set_eligible(id, false, now);
        self.timers.remove(id);
        self.slots.release(id);
    }

    /// Whether it may run at all: online, and its domain neither paused nor dead. Gives the
    /// CPU that must choose anew.
    pub fn set_eligible(&mut self, id: SlotId, eligible: bool, now: Ns) -> Option<CpuId> {
        self.slots.get_mut(id)?.eligible = eligible;
        self.settle(id, now)
    }

    /// It waits for an event.
    pub fn block(&mut self, id: SlotId, now: Ns) -> Option<CpuId> {
        self.slots.get_mut(id)?.blocked = true;
        self.settle(id, now)
    }

    /// It waits no longer, neither by block nor by poll.
    pub fn unblock(&mut self, id: SlotId, now: Ns) -> Option<CpuId> {
        let slot = self.slots.get_mut(id)?;
        slot.blocked = false;
        slot.polling = None;
        if slot.poll_until.take().is_some() {
            self.arm(id);
        }
        self.settle(id, now)
    }

    /// It waits for ports, or until a time.
    pub fn poll(&mut self, id: SlotId, what: Polling, until: Option<Ns>, now: Ns) -> Option<CpuId> {
        let slot = self.slots.get_mut(id)?;
        slot.polling = Some(what);
        slot.poll_until = until;
        self.arm(id);
        self.block(id, now)
    }

    /// It lets another go first, once.
    pub fn yield_now(&mut self, id: SlotId) -> Option<CpuId> {
        let slot = self.slots.get_mut(id)?;
        slot.yielded = true;
        Some(slot.cpu)
    }

    /// Brings queue and run state in line with what the slot says of itself.
    fn settle(&mut self, id: SlotId, now: Ns) -> Option<CpuId> {
        let cpu = self.slots.get(id)?.cpu;
        let (queue, slots) = self.queue(cpu)?;
        let is_queued = queue.line.members().contains(&id);
        // First the running vCPU's time, which scheduler virtual time may follow.
        queue.account(slots, now);
        let svt = queue.find_svt(slots);
        let slot = slots.get_mut(id)?;
        match (is_queued, slot.is_runnable()) {
            (false, true) => {
                slot.account.woke(&slot.params, svt, now);
                slot.times.enter(RunState::Runnable, now);
                queue.line.put(slots, id);
                Some(cpu)
            }
            (true, false) => {
                slot.account.blocked(&slot.params, now);
                slot.times.enter(Self::idle_state(slot), now);
                queue.line.remove(id);
                if queue.running == Some(id) {
                    queue.running = None;
                    queue.slice_end = None;
                }
                Some(cpu)
            }
            (false, false) => {
                slot.times.enter(Self::idle_state(slot), now);
                None
            }
            (true, true) => None,
        }
    }

    const fn idle_state(slot: &Slot) -> RunState {
        // A vCPU that waits stays "blocked" while its domain is paused.
        if slot.blocked { RunState::Blocked } else { RunState::Offline }
    }

    /// Charges the running vCPU of a CPU for its time until `now`.
    pub fn account(&mut self, cpu: CpuId, now: Ns) {
        if let Some((queue, slots)) = self.queue(cpu) {
            queue.account(slots, now);
        }
    }

    /// Decides who runs on `cpu` from now on, and takes it as done.
    ///
    /// Cost: a place in line.
    pub fn pick(&mut self, cpu: CpuId, now: Ns) -> Decision {
        const IDLE: Decision = Decision { next: None, until: None };
        let Some((queue, slots)) = self.queue(cpu) else {
            return IDLE;
        };
        queue.account(slots, now);
        let Some(next) = queue.choose(slots) else {
            return IDLE;
        };
        if queue.running != Some(next) {
            if let Some(previous) = queue.running.and_then(|id| slots.get_mut(id)) {
                previous.times.enter(RunState::Runnable, now);
            }
            queue.running = Some(next);
            if let Some(slot) = slots.get_mut(next) {
                slot.times.enter(RunState::Running, now);
                slot.dispatches = slot.dispatches.wrapping_add(1);
                slot.yielded = false;
            }
        }
        let rival = queue.rival_of(next).and_then(|id| slots.get(id)).map(Slot::effective_vt);
        let Some(slot) = slots.get(next) else {
            return IDLE;
        };
        let slice = slot.account.slice(&slot.params, rival);
        queue.slice_end = slice.map(|slice| Ns::new(now.get().saturating_add(slice.get())));
        Decision { next: slot.owner, until: queue.slice_end }
    }

    /// When this CPU is to choose again.
    pub fn slice_end(&self, cpu: CpuId) -> Option<Ns> {
        self.queues.get(cpu.0)?.as_deref()?.slice_end
    }

    pub fn params(&self, id: SlotId) -> Option<Params> {
        self.slots.get(id).map(|slot| slot.params)
    }

    /// Sets BVT parameters; what has run so far counts by the old ones. Gives the CPU that must
    /// choose anew.
    pub fn set_params(&mut self, id: SlotId, params: Params, now: Ns) -> Option<CpuId> {
        let cpu = self.slots.get(id)?.cpu;
        let (queue, slots) = self.queue(cpu)?;
        queue.account(slots, now);
        let slot = slots.get_mut(id)?;
        slot.params = params;
        slot.account.params_changed(&params, now);
        if queue.line.members().contains(&id) {
            queue.line.put(slots, id);
        }
        Some(cpu)
    }

    /// The slot, for the rest of the room.
    pub(super) fn slot(&self, id: SlotId) -> Option<&Slot> {
        self.slots.get(id)
    }

    /// State, times, virtual time and dispatches, up to `now`; domid and vCPU are left 0.
    pub fn times(&mut self, id: SlotId, now: Ns) -> Option<VcpuTimes> {
        let cpu = self.slots.get(id)?.cpu;
        self.account(cpu, now);
        let slot = self.slots.get(id)?;
        Some(VcpuTimes {
            state: slot.times.state() as u32,
            time: slot.times.times_at(now),
            actual_vt: slot.account.actual_vt().get(),
            dispatches: slot.dispatches,
            ..VcpuTimes::default()
        })
    }
}
