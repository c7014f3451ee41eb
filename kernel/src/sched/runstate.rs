//! How long a vCPU has been in which state. The guest is shown this and computes stolen
//! time from it.

use bulkhead_abi::{
    Ns,
    vcpu::{RUNSTATE_OFFLINE, RunstateInfo},
};

/// State, since when, and time spent in each before that.
#[derive(Clone, Copy, Debug)]
pub struct RunTimes(RunstateInfo);

impl RunTimes {
    /// Offline from `now` on.
    pub const fn new(now: Ns) -> Self {
        let state_entry_time = now.get();
        Self(RunstateInfo { state: RUNSTATE_OFFLINE, _pad: 0, state_entry_time, time: [0; 4] })
    }

    /// Enters a state, one of `RUNSTATE_*`, or stays in it.
    pub fn enter(&mut self, state: u32, now: Ns) {
        if state != self.0.state {
            self.0.time = self.times_at(now);
            self.0.state = state;
            self.0.state_entry_time = self.0.state_entry_time.max(now.get());
        }
    }

    /// ns in each state, the present one up to `now` included.
    pub fn times_at(&self, now: Ns) -> [u64; 4] {
        let mut time = self.0.time;
        let spent = now.get().saturating_sub(self.0.state_entry_time);
        if let Some(total) = time.get_mut(self.0.state as usize) {
            *total = total.saturating_add(spent);
        }
        time
    }

    /// As the guest sees it: times up to the entry into the present state.
    pub const fn info(&self) -> RunstateInfo {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_abi::vcpu::{RUNSTATE_BLOCKED, RUNSTATE_RUNNABLE, RUNSTATE_RUNNING};

    #[test]
    fn times_add_up_to_the_time_that_passed() {
        let mut times = RunTimes::new(Ns::new(100));
        times.enter(RUNSTATE_RUNNABLE, Ns::new(150));
        times.enter(RUNSTATE_RUNNING, Ns::new(160));
        times.enter(RUNSTATE_RUNNING, Ns::new(170));
        times.enter(RUNSTATE_BLOCKED, Ns::new(200));
        assert_eq!(times.times_at(Ns::new(300)), [40, 10, 100, 50]);
        assert_eq!(times.info().state_entry_time, 200);
        assert_eq!(times.info().time, [40, 10, 0, 50]);
    }

    #[test]
    fn a_clock_that_steps_back_loses_nothing_already_counted() {
        let mut times = RunTimes::new(Ns::new(100));
        times.enter(RUNSTATE_RUNNING, Ns::new(50));
        assert_eq!(times.times_at(Ns::new(40)), [0; 4]);
        assert_eq!(times.times_at(Ns::new(120)), [20, 0, 0, 0]);
    }
}
