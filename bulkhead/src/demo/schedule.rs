//! When what is done: stretches without a kill and stretches with them take turns, so that
//! what else the host does falls on both alike. Times are counted from the beginning of the
//! first stretch.

use serde::Serialize;
use std::time::Duration;

/// Whether drivers die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Undisturbed,
    Killed,
}

/// A part of the load's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub kind: Kind,
    pub from: Duration,
    pub length: Duration,
}

impl Stretch {
    pub fn end(&self) -> Duration {
        self.from + self.length
    }
}

/// The whole plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    every: Duration,
    stretches: Vec<Stretch>,
}

impl Schedule {
    /// `kills` deaths, `every` so long, in stretches of about `stretch`. In front of each there is
    /// one of the same length without a death. The last death has as long as the others until
    /// its stretch ends.
    pub fn new(kills: u32, every: Duration, stretch: Duration) -> Self {
        let in_one = (stretch.as_nanos() / every.as_nanos().max(1)).max(1);
        let in_one = u32::try_from(in_one).unwrap_or(u32::MAX);
        let (mut stretches, mut from, mut left) = (Vec::new(), Duration::ZERO, kills);
        while left > 0 {
            let now = left.min(in_one);
            for kind in [Kind::Undisturbed, Kind::Killed] {
                let stretch = Stretch { kind, from, length: every * now };
                from = stretch.end();
                stretches.push(stretch);
            }
            left -= now;
        }
        Self { every, stretches }
    }

    /// In the order of time, without gaps.
    pub fn stretches(&self) -> &[Stretch] {
        &self.stretches
    }

    /// When to kill.
    pub fn kills(&self) -> Vec<Duration> {
        let killed = self.stretches.iter().filter(|s| s.kind == Kind::Killed);
        killed.flat_map(|s| self.kills_in(s)).collect()
    }

    fn kills_in(&self, stretch: &Stretch) -> Vec<Duration> {
        let mut kills = Vec::new();
        let mut at = stretch.from;
        while at < stretch.end() {
            kills.push(at);
            at += self.every;
        }
        kills
    }

    /// What is going on at a time.
    pub fn kind_at(&self, at: Duration) -> Option<Kind> {
        let mut stretches = self.stretches.iter();
        stretches.find(|s| at >= s.from && at < s.end()).map(|s| s.kind)
    }

    /// How long it takes.
    pub fn length(&self) -> Duration {
        self.stretches.last().map_or(Duration::ZERO, Stretch::end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_minute_of_kills_takes_turns_with_a_minute_of_quiet() {
        let schedule = Schedule::new(60, S, 10 * S);
        assert_eq!(schedule.stretches().len(), 12);
        assert_eq!(schedule.length(), 120 * S);
        assert_eq!(schedule.kills()[..2], [10 * S, 11 * S]);
        assert_eq!(schedule.kills()[10], 30 * S);
        assert_eq!(schedule.kind_at(9 * S), Some(Kind::Undisturbed));
        assert_eq!(schedule.kind_at(10 * S), Some(Kind::Killed));
        assert_eq!(schedule.kind_at(120 * S), None);
    }

    #[test]
    fn what_does_not_divide_ends_with_a_shorter_pair() {
        let schedule = Schedule::new(5, 3 * S, 10 * S);
        let lengths: Vec<_> = schedule.stretches().iter().map(|s| s.length.as_secs()).collect();
        assert_eq!(lengths, [9, 9, 6, 6]);
        assert_eq!(Schedule::new(2, 20 * S, S).stretches().len(), 4, "one kill in each");
    }

    proptest! {
        #[test]
        fn every_kill_is_in_a_stretch_for_it_and_both_kinds_last_as_long(
            kills in 1u32..200, every_ms in 100u64..5_000, stretch_ms in 1u64..30_000
        ) {
            let every = Duration::from_millis(every_ms);
            let schedule = Schedule::new(kills, every, Duration::from_millis(stretch_ms));
            let planned = schedule.kills();
            prop_assert_eq!(planned.len(), kills as usize);
            prop_assert!(planned.iter().all(|&at| schedule.kind_at(at) == Some(Kind::Killed)));
            prop_assert!(planned.windows(2).all(|pair| pair[1] - pair[0] >= every));
            let sum = |kind| -> Duration {
                schedule.stretches().iter().filter(|s| s.kind == kind).map(|s| s.length).sum()
            };
            prop_assert_eq!(sum(Kind::Killed), every * kills);
            prop_assert_eq!(sum(Kind::Undisturbed), every * kills);
            let joined = schedule.stretches().windows(2).all(|pair| pair[0].end() == pair[1].from);
            prop_assert!(joined);
        }
    }
}
