//! Deadlines: one-shot and periodic timers of vCPUs, time limits of polls, ends of slices.
//! One line holds the earliest deadline of each vCPU; what is due becomes `VIRQ_TIMER` or a
//! wake-up. A lost timer hangs a guest, an early one makes it arm again in a loop.

use super::{
    runq::Scheduler,
    slot::{Periodic, SlotId},
};
use crate::{
    Core, arch,
    domain::VcpuRef,
    event,
    sched::Wake,
    state::{CpuId, MAX_CPUS},
};
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
            slot.periodic = period.map(|period| Periodic { period, next: after(now, period) });
            self.arm(id);
        }
    }

    /// Puts the slot where its earliest deadline belongs.
    pub(super) fn arm(&mut self, id: SlotId) {
        match self.slots.get(id).and_then(|slot| slot.deadline()) {
            Some(_) => self.timers.put(&self.slots, id),
            None => self.timers.remove(id),
        }
    }

    /// Takes what is due of the vCPU with the earliest deadline; `None` when nothing is.
    fn expire_one(&mut self, now: Ns) -> Option<Fired> {
        let id = self.timers.first()?;
        let slot = self.slots.get_mut(id)?;
        let due = |deadline: &Ns| *deadline <= now;
        if !slot.deadline().as_ref().is_some_and(due) {
            return None;
        }
        let mut timer = slot.singleshot.take_if(|deadline| due(deadline)).is_some();
        let poll = slot.poll_until.take_if(|deadline| due(deadline)).is_some();
        if let Some(periodic) = slot.periodic.as_mut().filter(|periodic| due(&periodic.next)) {
            // Ticks missed meanwhile are not made up for.
            let late = now.get() - periodic.next.get();
            let into_period = Ns::new(late % periodic.period.get().max(1));
            periodic.next = after(now, Ns::new(periodic.period.get() - into_period.get()));
            timer = true;
        }
        let who = slot.owner?;
        self.arm(id);
        Some(Fired { who, timer, poll })
    }

    /// The earliest of all that is to happen on this CPU.
    pub fn next_deadline(&self, cpu: CpuId) -> Option<Ns> {
        let timer =
            self.timers.first().and_then(|id| self.slots.get(id)).and_then(|slot| slot.deadline());
        [timer, self.slice_end(cpu)].into_iter().flatten().min()
    }
}

fn after(now: Ns, span: Ns) -> Ns {
    Ns::new(now.get().saturating_add(span.get()))
}

/// Delivers every timer that is due and notes whose slice has ended. To be called on the timer
/// interrupt and on the way out.
///
/// Cost: each vCPU fires at most once, at the cost of a place in line.
pub fn expire(core: &mut Core, now: Ns) {
    while let Some(fired) = core.sched.expire_one(now) {
        if fired.timer {
            let wake = event::raise_virq(core, fired.who.dom, Some(fired.who.vcpu), VIRQ_TIMER);
            core.wake(wake);
        }
        if fired.poll {
            core.wake(Wake::Vcpu(fired.who));
        }
    }
    for cpu in (0..MAX_CPUS).map(CpuId) {
        if core.sched.slice_end(cpu).is_some_and(|end| end <= now) {
            core.request_reschedule(cpu);
        }
    }
}

/// Tells the machine when to interrupt next. The last thing before the return to a guest or the
/// wait of an idle CPU.
pub fn program(core: &Core, cpu: CpuId) {
    arch::set_deadline(core.sched.next_deadline(cpu));
}
