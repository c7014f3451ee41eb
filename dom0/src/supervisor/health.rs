//! Whether a driver domain is well: the beat of its heart, and how often it failed of late.
//! All numbers are system time; nothing is done here.

use alloc::collections::VecDeque;
use bulkhead_abi::Ns;
use core::time::Duration;

/// How often hearts are looked at.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The beats that were counted last, and when that number was new.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Heart {
    last: Option<(u64, Ns)>,
}

/// The requests of a ring that were answered last, while others wait, and since when.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Line {
    last: Option<(u32, Ns)>,
}

impl Line {
    /// Looks at the indices of a ring after the last request that was answered, and after the
    /// last one that was taken. Nobody waits where all that was taken is answered.
    pub fn feel(&mut self, answered: u32, taken: u32, now: Ns, deadline: Duration) -> Pulse {
        match self.last {
            _ if answered == taken => self.last = None,
            Some((index, since)) if index == answered => {
                if u128::from(now.minus(since).get()) >= deadline.as_nanos() {
                    return Pulse::Missed(since);
                }
            }
            _ => self.last = Some((answered, now)),
        }
        Pulse::Beats
    }
}

/// What a look at a heart, or at a line of requests, shows.
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

/// When something happened of late, as far back as it matters.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recent {
    at_ns: VecDeque<u64>,
}

/// It happened too often.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooOften {
    /// So many times within the window.
    pub times: usize,
}

impl Recent {
    /// Notes that it happened at `now_ns`. Errors: more than `most` times within `window_ns`;
    /// this time is forgotten then.
    pub fn note(&mut self, now_ns: u64, most: u32, window_ns: u64) -> Result<(), TooOften> {
        let oldest = now_ns.saturating_sub(window_ns);
        self.at_ns.retain(|&at| at >= oldest);
        if self.at_ns.len() >= most as usize {
            return Err(TooOften { times: self.at_ns.len() + 1 });
        }
        self.at_ns.push_back(now_ns);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const HANG_DEADLINE: Duration = Duration::from_millis(100);

    #[test]
    fn a_line_is_stuck_when_what_was_taken_is_not_answered_in_time() {
        let mut line = Line::default();
        let mut feel =
            |answered, taken, ms| line.feel(answered, taken, Ns::new(ms * MS), HANG_DEADLINE);
        for ms in 0..500 {
            assert_eq!(feel(7, 7, ms), Pulse::Beats, "nobody waits");
        }
        for ms in 500..600 {
            assert_eq!(feel(7, 8, ms), Pulse::Beats);
        }
        assert_eq!(feel(7, 9, 600), Pulse::Missed(Ns::new(500 * MS)), "more are taken");
        assert_eq!(feel(8, 9, 601), Pulse::Beats);
        assert_eq!(feel(8, 9, 700), Pulse::Beats);
        assert_eq!(feel(9, 9, 701), Pulse::Beats);
        assert_eq!(feel(9, 8, 702), Pulse::Beats, "a stranger's indices are only compared");
        assert_eq!(feel(9, 8, 802), Pulse::Missed(Ns::new(702 * MS)));
    }

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
    fn what_happens_slowly_is_never_too_often_and_what_happens_quickly_is_from_the_limit_on() {
        let window = 10_000 * MS;
        let mut slowly = Recent::default();
        for n in 0..1000 {
            assert_eq!(slowly.note(n * window / 9, 10, window), Ok(()));
        }
        let mut quickly = Recent::default();
        for n in 0..10 {
            assert_eq!(quickly.note(n, 10, window), Ok(()));
        }
        for n in 10..500 {
            assert_eq!(quickly.note(n, 10, window), Err(TooOften { times: 11 }));
        }
        assert_eq!(quickly.note(window + 5, 10, window), Ok(()), "half of them are of the past");
        assert_eq!(Recent::default().note(1, 0, window), Err(TooOften { times: 1 }));
    }
}
