//! Whether a driver domain is well: the beat of its heart, and how many lives it has used
//! up. All numbers are system time; nothing is done here.

use alloc::{collections::VecDeque, format, string::String};
use bulkhead_abi::Ns;
use core::time::Duration;

/// A heart that has not beaten for this long has stopped.
pub const HANG_DEADLINE: Duration = Duration::from_millis(100);
/// How often hearts are looked at.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);
/// So many lives may end by themselves within [`LIVES_WITHIN_NS`].
pub const MOST_LIVES: usize = 10;
/// See [`MOST_LIVES`].
pub const LIVES_WITHIN_NS: u64 = 10_000_000_000;

/// The beats that were counted last, and when that number was new.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Heart {
    last: Option<(u64, Ns)>,
}

/// What a look at a heart shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Pulse {
    Beats,
    /// It has not beaten since then.
    Missed(Ns),
}

impl Heart {
    /// Looks at the count of beats. One that has not begun to beat is not missed: a domain may
    /// be about to start, or have no heart at all.
    pub fn feel(&mut self, beats: u64, now: Ns, deadline: Duration) -> Pulse {
        match self.last {
            _ if beats == 0 => self.last = None,
            Some((count, since)) if count == beats => {
                if u128::from(now.minus(since).get()) >= deadline.as_nanos() {
                    return Pulse::Missed(since);
                }
            }
            _ => self.last = Some((beats, now)),
        }
        Pulse::Beats
    }
}

/// The lives of a driver domain that ended by themselves of late.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lives {
    ended_ns: VecDeque<u64>,
}

impl Lives {
    /// Notes that a life has ended at `now_ns`. Errors: too many did of late; why, for a person
    /// to read.
    pub fn spend(&mut self, now_ns: u64) -> Result<(), String> {
        let oldest = now_ns.saturating_sub(LIVES_WITHIN_NS);
        self.ended_ns.retain(|&at| at >= oldest);
        self.ended_ns.push_back(now_ns);
        if self.ended_ns.len() <= MOST_LIVES {
            return Ok(());
        }
        let seconds = LIVES_WITHIN_NS / 1_000_000_000;
        Err(format!("it failed {} times within {seconds} s", self.ended_ns.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_heart_that_has_never_beaten_is_not_missed() {
        let mut heart = Heart::default();
        for ms in 0..1000 {
            assert_eq!(heart.feel(0, Ns::new(ms * MS), HANG_DEADLINE), Pulse::Beats);
        }
    }

    #[test]
    fn a_heart_is_missed_from_the_deadline_on_and_found_when_it_beats_again() {
        let mut heart = Heart::default();
        assert_eq!(heart.feel(7, Ns::new(5 * MS), HANG_DEADLINE), Pulse::Beats);
        assert_eq!(heart.feel(7, Ns::new(104 * MS), HANG_DEADLINE), Pulse::Beats);
        let missed = Pulse::Missed(Ns::new(5 * MS));
        assert_eq!(heart.feel(7, Ns::new(105 * MS), HANG_DEADLINE), missed);
        assert_eq!(heart.feel(8, Ns::new(106 * MS), HANG_DEADLINE), Pulse::Beats);
        assert_eq!(heart.feel(8, Ns::new(205 * MS), HANG_DEADLINE), Pulse::Beats);
    }

    #[test]
    fn lives_run_out_only_when_they_are_spent_quickly() {
        let mut slowly = Lives::default();
        for n in 0..1000 {
            assert_eq!(slowly.spend(n * LIVES_WITHIN_NS / 9), Ok(()));
        }
        let mut quickly = Lives::default();
        let results: [_; MOST_LIVES + 1] =
            core::array::from_fn(|n| quickly.spend(n as u64).is_ok());
        assert_eq!(results.iter().filter(|&&good| good).count(), MOST_LIVES);
        assert!(!results[MOST_LIVES]);
    }
}
