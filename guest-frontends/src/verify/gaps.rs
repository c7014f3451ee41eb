//! How long nothing came back while something was asked for: the blackout of a disk as
//! its guest feels it. Times are the guest's own, in nanoseconds.

/// Gaps up to this are the ordinary course of things and not kept one by one, us.
pub const SHORT_US: u64 = 1000;

/// Parts of each doubling: a quantile is right to an eighth.
const PARTS: u64 = 8;
/// Doublings that are told apart: up to a day.
const DOUBLINGS: u64 = 28;

/// The gaps of a run.
#[derive(Clone, Debug)]
pub struct Gaps {
    outstanding: usize,
    /// The last completion, or the first request after there was none outstanding.
    since: u64,
    longest: u64,
    /// Gaps longer than [`SHORT_US`] by their length.
    counts: [u32; (PARTS * DOUBLINGS) as usize],
}

impl Default for Gaps {
    fn default() -> Self {
        Self { outstanding: 0, since: 0, longest: 0, counts: [0; _] }
    }
}

impl Gaps {
    /// A request was started.
    pub fn started(&mut self, now: u64) {
        if self.outstanding == 0 {
            self.since = now;
        }
        self.outstanding += 1;
    }

    /// A request is over.
    pub fn completed(&mut self, now: u64) {
        let gap = self.current(now);
        self.outstanding = self.outstanding.saturating_sub(1);
        self.since = now;
        self.longest = self.longest.max(gap);
        if let Some(count) = bucket(gap / 1000).and_then(|at| self.counts.get_mut(at)) {
            *count = count.saturating_add(1);
        }
    }

    /// Nothing more is waited for: a gap that lasts ends here.
    pub fn finish(&mut self, now: u64) {
        self.outstanding = self.outstanding.min(1);
        if self.outstanding == 1 {
            self.completed(now);
        }
    }

    /// The gap that lasts now, 0 if nothing is outstanding.
    pub fn current(&self, now: u64) -> u64 {
        if self.outstanding == 0 { 0 } else { now.saturating_sub(self.since) }
    }

    /// The longest gap, ended or not, us.
    pub fn longest_us(&self, now: u64) -> u64 {
        self.longest.max(self.current(now)) / 1000
    }

    /// How many gaps were longer than [`SHORT_US`].
    pub fn long_ones(&self) -> u64 {
        self.counts.iter().map(|&count| u64::from(count)).sum()
    }

    /// The length that so many percent of the long gaps do not exceed, us, to an eighth; 0
    /// if there was none.
    pub fn quantile_us(&self, percent: u64) -> u64 {
        let wanted = (self.long_ones() * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (at, &count) in (0..).zip(&self.counts) {
            seen += u64::from(count);
            if seen >= wanted {
                return upper(at).min(self.longest / 1000);
            }
        }
        0
    }
}

/// The place of a gap, if it is long.
fn bucket(us: u64) -> Option<usize> {
    let scaled = us.checked_sub(SHORT_US + 1)? + SHORT_US;
    let doubling = (scaled / SHORT_US).ilog2();
    let within = (scaled - (SHORT_US << doubling)) * PARTS / (SHORT_US << doubling);
    let at = u64::from(doubling) * PARTS + within;
    Some(at.min(PARTS * DOUBLINGS - 1) as usize)
}

/// The longest gap of a place.
fn upper(at: u64) -> u64 {
    let base = SHORT_US << (at / PARTS);
    base + base * (at % PARTS + 1) / PARTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn time_without_requests_is_no_gap() {
        let mut gaps = Gaps::default();
        gaps.started(0);
        gaps.completed(500_000);
        gaps.started(900_000_000);
        gaps.completed(900_100_000);
        assert_eq!((gaps.longest_us(1 << 40), gaps.long_ones()), (500, 0));
    }

    #[test]
    fn a_gap_counts_from_the_last_completion_and_while_it_lasts() {
        let mut gaps = Gaps::default();
        gaps.started(0);
        gaps.started(0);
        gaps.completed(1_000_000);
        assert_eq!(gaps.longest_us(6_000_000), 5000);
        gaps.completed(4_000_000);
        assert_eq!((gaps.longest_us(9_000_000), gaps.long_ones()), (3000, 1));
    }

    proptest! {
        #[test]
        fn quantiles_agree_with_a_sorted_list_to_an_eighth(
            lengths in prop::collection::vec(prop_oneof![0_u64..5_000, 0_u64..100_000_000], 1..60),
            percent in 1_u64..=100,
        ) {
            let mut gaps = Gaps::default();
            let mut now = 0;
            for us in &lengths {
                gaps.started(now);
                now += us * 1000;
                gaps.completed(now);
            }
            let mut long: Vec<u64> = lengths.iter().copied().filter(|&us| us > 1000).collect();
            long.sort_unstable();
            prop_assert_eq!(gaps.long_ones(), long.len() as u64);
            let rank = (long.len() as u64 * percent).div_ceil(100).max(1) as usize;
            let exact = long.get(rank - 1).copied().unwrap_or(0);
            let found = gaps.quantile_us(percent);
            prop_assert!(found >= exact && found <= exact + exact / 8, "{found} for {exact}");
        }
    }
}
