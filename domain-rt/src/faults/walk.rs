//! A stretch of code, one instruction after the other: how far it went, by which way, and
//! whether that is where it was to end. Decisions only; who traps is the stepper's business.
#![cfg_attr(not(all(feature = "faults", target_os = "none")), allow(dead_code))] // Tests only.

/// A multiplier that spreads bits: 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// How far a walk went, and by which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Instructions executed; each repetition of a string instruction counts.
    pub steps: u64,
    /// What stands for the addresses after each of them, in order.
    pub mark: u64,
}

impl Way {
    /// One instruction further: the next one is at `rip`.
    #[inline]
    pub fn to(self, rip: u64) -> Self {
        let mark = (self.mark ^ rip).wrapping_mul(SPREAD).rotate_left(23);
        Self { steps: self.steps + 1, mark }
    }
}

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errand {
    /// The walk ends for good after so many steps.
    pub last_step: u64,
    /// The way that an earlier walk took so far. One that comes as far by another way is
    /// astray and does not end.
    pub before: Option<Way>,
}

/// What comes after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The next one.
    Onward,
    /// None: this is the end.
    End,
    /// The code runs on by itself.
    Astray,
}

impl Errand {
    /// What comes now that the walk has gone this way.
    #[inline]
    pub fn after(&self, way: Way) -> Then {
        match self.before {
            Some(before) if before.steps == way.steps && before != way => Then::Astray,
            _ if way.steps >= self.last_step => Then::End,
            _ => Then::Onward,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Walks along these addresses; gives where it went and what came then.
    fn walk(errand: Errand, path: &[u64]) -> (Way, Then) {
        let mut way = Way::default();
        for &rip in path {
            way = way.to(rip);
            let then = errand.after(way);
            if then != Then::Onward {
                return (way, then);
            }
        }
        (way, Then::Onward)
    }

    #[test]
    fn a_walk_without_a_past_ends_behind_its_last_step_or_with_its_path() {
        let errand = |last_step| Errand { last_step, before: None };
        assert_eq!(walk(errand(1), &[7, 8, 9]).1, Then::End);
        let (way, then) = walk(errand(3), &[7, 8, 9]);
        assert_eq!((way.steps, then), (3, Then::End));
        let (way, then) = walk(errand(4), &[7, 8, 9]);
        assert_eq!((way.steps, then), (3, Then::Onward));
    }

    proptest! {
        /// Each walk goes one step further than the one before; one that strays says so
        /// where the last one ended, and nowhere else.
        #[test]
        fn walks_that_follow_each_other_end_at_every_step_once(
            path in prop::collection::vec(any::<u64>(), 1..40),
            stray in any::<prop::sample::Index>(),
            change in 1_u64..,
        ) {
            let mut before = None;
            for last_step in 1..=path.len() as u64 {
                let (way, then) = walk(Errand { last_step, before }, &path);
                prop_assert_eq!((way.steps, then), (last_step, Then::End));
                let mut other = path.clone();
                let at = stray.index(other.len());
                other[at] ^= change;
                let (far, then) = walk(Errand { last_step: last_step + 1, before: Some(way) }, &other);
                if (at as u64) < last_step {
                    prop_assert_eq!((far.steps, then), (last_step, Then::Astray));
                } else {
                    prop_assert!(then != Then::Astray);
                }
                before = Some(way);
            }
        }
    }
}
