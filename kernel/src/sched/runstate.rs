//! How long a vCPU has been in which state. The guest is shown this and computes stolen
//! time from it.

use bulkhead_abi::{
    Ns,
    vcpu::{RUNSTATE_BLOCKED, RUNSTATE_OFFLINE, RUNSTATE_RUNNABLE, RUNSTATE_RUNNING, RunstateInfo},
};

/// The states of `vcpu_runstate_info`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum RunState {
    /// On a CPU.
    Running = RUNSTATE_RUNNING,
    /// Could run; another does.
    Runnable = RUNSTATE_RUNNABLE,
    /// Waits for an event.
    Blocked = RUNSTATE_BLOCKED,
    /// Down, or paused by Dom0.
    Offline = RUNSTATE_OFFLINE,
}

/// State, since when, and time spent in each before that.
#[derive(Clone, Copy, Debug)]
pub struct RunTimes {
    state: RunState,
    since: Ns,
    time: [u64; 4],
}

impl RunTimes {
    /// Offline from `now` on.
    pub const fn new(now: Ns) -> Self {
        Self { state: RunState::Offline, since: now, time: [0; 4] }
    }

    pub const fn state(&self) -> RunState {
        self.state
    }

    /// Enters a state, or stays in it.
    pub fn enter(&mut self, state: RunState, now: Ns) {
        if state != self.state {
            self.time = self.times_at(now);
            self.state = state;
            self.since = self.since.max(now);
        }
    }

    /// ns in each state, the present one up to `now` included.
    pub fn times_at(&self, now: Ns) -> [u64; 4] {
        let mut time = self.time;
        let spent = now.get().saturating_sub(self.since.get());
        if let Some(total) = time.get_mut(self.state as usize) {
            *total = total.saturating_add(spent);
        }
        time
    }

    /// As the guest sees it: times up to the entry into the present state.
    pub fn info(&self) -> RunstateInfo {
        RunstateInfo {
            state: self.state as u32,
            _pad: 0,
            state_entry_time: self.since.get(),
            time: self.time,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_add_up_to_the_time_that_passed() {
        let mut times = RunTimes::new(Ns::new(100));
        times.enter(RunState::Runnable, Ns::new(150));
        times.enter(RunState::Running, Ns::new(160));
        times.enter(RunState::Running, Ns::new(170));
        times.enter(RunState::Blocked, Ns::new(200));
        assert_eq!(times.times_at(Ns::new(300)), [40, 10, 100, 50]);
        assert_eq!(times.info().state_entry_time, 200);
        assert_eq!(times.info().time, [40, 10, 0, 50]);
    }

    #[test]
    fn a_clock_that_steps_back_loses_nothing_already_counted() {
        let mut times = RunTimes::new(Ns::new(100));
        times.enter(RunState::Running, Ns::new(50));
        assert_eq!(times.times_at(Ns::new(40)), [0; 4]);
        assert_eq!(times.times_at(Ns::new(120)), [20, 0, 0, 0]);
    }
}
