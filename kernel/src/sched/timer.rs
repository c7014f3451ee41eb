//! Deadlines: one-shot and periodic timers of vCPUs, time limits of polls, ends of slices.
//! One line holds the earliest deadline of each vCPU; what is due becomes `VIRQ_TIMER` or a
//! wake-up. A lost timer hangs a guest, an early one makes it arm again in a loop.

use super::{
    Scheduler,
    slot::{Periodic, Slot, SlotId},
};
use crate::{Core, arch, domain::VcpuRef, event, state::CpuId};
use bulkhead_abi::{Ns, event::VIRQ_TIMER};

/// Least period of a periodic timer.
pub const MIN_PERIOD: Ns = Ns::new(1_000_000);

/// What a vCPU's deadline brought.
struct Fired {
    who: VcpuRef,
    /// `VIRQ_TIMER` is due.
    timer: bool,
    /// Its poll has timed out.
    poll: bool,
}

impl Scheduler {
    /// Sets, replaces or (with `None`) stops the one-shot timer: absolute system time.
    pub fn set_singleshot(&mut self, id: SlotId, deadline: Option<Ns>) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.singleshot = deadline;
            self.arm(id);
        }
    }

    /// Starts or (with `None`) stops the periodic timer.
    pub fn set_periodic(&mut self, id: SlotId, period: Option<Ns>, now: Ns) {
        if let Some(slot) = self.slots.get_mut(id) {
            slot.periodic = period.map(|period| Periodic { period, next: now.plus(period) });
            self.arm(id);
        }
    }

    /// Puts the slot where its earliest deadline belongs.
    pub(super) fn arm(&mut self, id: SlotId) {
        match self.slots.get(id).and_then(|slot| slot.deadline()) {
            Some(_) => self.timers.put(&self.slots, id),
            None => self.timers.remove(id),
        }
        self.find_first_deadline();
    }

    /// Stops all timers of a slot.
    pub(super) fn disarm(&mut self, id: SlotId) {
        self.timers.remove(id);
        self.find_first_deadline();
    }

    fn find_first_deadline(&mut self) {
        let first = self.timers.members().first().and_then(|&id| self.slots.get(id));
        self.first_deadline = first.and_then(Slot::deadline);
    }

    /// Takes what is due of the vCPU with the earliest deadline; `None` when nothing is.
    fn expire_one(&mut self, now: Ns) -> Option<Fired> {
        self.first_deadline.filter(|&deadline| deadline <= now)?;
        let id = *self.timers.members().first()?;
        let slot = self.slots.get_mut(id)?;
        let mut timer = slot.singleshot.take_if(|deadline| *deadline <= now).is_some();
        let poll = slot.wake_at.take_if(|deadline| *deadline <= now).is_some();
        if let Some(periodic) = slot.periodic.as_mut().filter(|periodic| periodic.next <= now) {
            // Ticks missed meanwhile are not made up for.
            let late = now.minus(periodic.next).get() % periodic.period.get().max(1);
            periodic.next = now.plus(periodic.period.minus(Ns::new(late)));
            timer = true;
        }
        let who = slot.owner;
        self.arm(id);
        Some(Fired { who, timer, poll })
    }

    /// The earliest of all that is to happen on this CPU.
    pub fn next_deadline(&self, cpu: CpuId) -> Option<Ns> {
        match (self.first_deadline, self.slice_end(cpu)) {
            (Some(timer), Some(slice)) => Some(timer.min(slice)),
            (timer, slice) => timer.or(slice),
        }
    }
}

/// Delivers every timer that is due and notes whether the slice on `cpu` has ended. To be called
/// on the way out.
///
/// Cost: each vCPU fires at most once, at the cost of a place in line.
pub fn expire(core: &mut Core, cpu: CpuId, now: Ns) {
    while let Some(fired) = core.sched.expire_one(now) {
        if fired.timer {
            let wake = event::raise_virq(core, fired.who.dom, Some(fired.who.vcpu), VIRQ_TIMER);
            core.wake(wake);
        }
        if fired.poll {
            core.wake_one(fired.who);
        }
    }
    if core.sched.slice_end(cpu).is_some_and(|end| end <= now) {
        core.request_reschedule(cpu);
    }
}

/// Tells the machine when to interrupt next. The last thing before the return to a guest or the
/// wait of an idle CPU.
pub fn program(core: &Core, cpu: CpuId) {
    arch::set_deadline(core.sched.next_deadline(cpu));
}
