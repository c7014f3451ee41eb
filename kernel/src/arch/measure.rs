//! Measures counters of unknown frequency against one of known frequency, on a machine that may
//! stop at any moment and go on later, as one does whose host is busy. It does not know
//! which counters these are.
//!
//! The reference counts down once and then says that it has run out: a count that had merely
//! wrapped would pass for a shorter time, and the others for faster than they are.

/// Ticks of the reference that a measurement takes, of the 65535 that it has.
const WANTED_TICKS: u64 = 48_000;
/// Attempts before the longest measurement so far has to do. An attempt takes 55 ms if it fails;
/// a host so busy that most do is given a few seconds.
const ATTEMPTS: u32 = 64;
/// A reference that does not count must not hang the boot: a second at 8 GHz is enough.
const LIMIT_CYCLES: u64 = 8_000_000_000;

/// What the counters say at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Ticks that the reference has left.
    pub left: u16,
    /// The TSC.
    pub tsc: u64,
    /// Another counter, counting down.
    pub other: u64,
}

/// How far the counters went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Ticks of the reference.
    pub ticks: u64,
    /// Cycles of the TSC.
    pub cycles: u64,
    /// Of the other counter.
    pub other: u64,
}

/// A counter of known frequency that counts from 65535 down to 0.
pub trait Reference {
    /// Starts it again.
    fn start(&mut self);

    /// Reads all counters at once; `None` if the reference has run out since it was started.
    fn read(&mut self) -> Option<Moment>;
}

/// Measures: all counters over the same time, as long as can be had.
pub fn measure(reference: &mut impl Reference) -> Span {
    let mut longest = Span::default();
    for _ in 0..ATTEMPTS {
        let span = attempt(reference);
        if span.ticks >= longest.ticks {
            longest = span;
        }
        if longest.ticks >= WANTED_TICKS || span.cycles > LIMIT_CYCLES {
            break;
        }
    }
    longest
}

fn attempt(reference: &mut impl Reference) -> Span {
    reference.start();
    let mut span = Span::default();
    let Some(first) = reference.read() else {
        return span;
    };
    while span.ticks < WANTED_TICKS && span.cycles <= LIMIT_CYCLES {
        let Some(now) = reference.read() else {
            break;
        };
        span = Span {
            ticks: first.left.saturating_sub(now.left).into(),
            cycles: now.tsc.saturating_sub(first.tsc),
            other: first.other.saturating_sub(now.other),
        };
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

    /// Counters of a machine that takes 10 ticks for each reading, and now and then stands
    /// still for a while.
    struct Machine {
        /// Ticks since the machine was started.
        at: u64,
        started: u64,
        /// How long it stands still before each of its readings; none later.
        stalls: std::vec::IntoIter<u64>,
        counts: bool,
    }

    const CYCLES: u64 = 2_000;
    const OTHER: u64 = 800;

    impl Reference for Machine {
        fn start(&mut self) {
            self.started = self.at;
        }

        fn read(&mut self) -> Option<Moment> {
            self.at += 10 + self.stalls.next().unwrap_or(0);
            let gone = if self.counts { self.at - self.started } else { 0 };
            let has_run_out = gone > 0xffff;
            (!has_run_out).then(|| Moment {
                left: 0xffff - gone as u16,
                tsc: self.at * CYCLES,
                other: (1 << 60) - self.at * OTHER,
            })
        }
    }

    fn machine(stalls: Vec<u64>) -> Machine {
        Machine { at: 0, started: 0, stalls: stalls.into_iter(), counts: true }
    }

    #[test]
    fn a_machine_that_stood_still_for_a_turn_of_the_reference_is_measured_again() {
        // After the stall the count is where the measurement would end, a turn later.
        let mut machine = machine(vec![0, 48_000 + 65_536]);
        let span = measure(&mut machine);
        assert!(span.ticks >= WANTED_TICKS, "{span:?}");
        assert_eq!(span.cycles, span.ticks * CYCLES);
    }

    #[test]
    fn a_reference_that_does_not_count_ends_the_measurement() {
        let mut machine = Machine { counts: false, ..machine(Vec::new()) };
        assert_eq!(measure(&mut machine).ticks, 0);
        assert!(machine.at * CYCLES < 2 * LIMIT_CYCLES);
    }

    proptest! {
        #[test]
        fn wherever_a_machine_stands_still_its_frequencies_are_right(
            stalls in prop::collection::vec(0u64..200_000, 0..60),
        ) {
            let span = measure(&mut machine(stalls));
            prop_assert!(span.ticks > 0);
            prop_assert_eq!(span.cycles, span.ticks * CYCLES);
            prop_assert_eq!(span.other, span.ticks * OTHER);
        }
    }
}
