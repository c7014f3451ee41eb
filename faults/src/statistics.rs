//! Shares with their intervals, and quantiles: what a report says of its counts.

use crate::units::Us;
use serde::Serialize;

/// The standard normal quantile of 97.5 %: intervals are two-sided, of 95 %.
const Z: f64 = 1.959_963_984_540_054;

/// So many of so many, with Wilson's interval of 95 %.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// How many.
    pub count: u64,
    /// Of how many.
    pub of: u64,
    /// `count / of`, 0 if there are none.
    pub share: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end; 1 if there are none.
    pub high: f64,
}

impl Share {
    /// Source: E. B. Wilson, "Probable inference, the law of succession, and statistical
    /// inference", JASA 22 (1927). It holds for shares near 0 and 1, and says something
    /// where nothing was seen.
    pub fn new(count: u64, of: u64) -> Self {
        if of == 0 {
            return Self { count, of, share: 0.0, low: 0.0, high: 1.0 };
        }
        let n = of as f64;
        let share = count as f64 / n;
        let scale = 1.0 / (1.0 + Z * Z / n);
        let middle = scale * (share + Z * Z / (2.0 * n));
        let half = scale * Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        let low = if count == 0 { 0.0 } else { (middle - half).max(0.0) };
        let high = if count == of { 1.0 } else { (middle + half).min(1.0) };
        Self { count, of, share, low, high }
    }
}

/// The least of sorted values that at least `share` of them do not exceed; 0 if there
/// are none.
pub fn quantile(sorted: &[Us], share: f64) -> Us {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1).min(sorted.len()).wrapping_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn close(share: Share, low: f64, high: f64) {
        assert!((share.low - low).abs() < 5e-5, "{share:?}");
        assert!((share.high - high).abs() < 5e-5, "{share:?}");
    }

    #[test]
    fn intervals_are_those_published() {
        // Newcombe, "Two-sided confidence intervals for the single proportion",
        // Statistics in Medicine 17 (1998), table I, method 3 (score).
        close(Share::new(81, 263), 0.2553, 0.3662);
        close(Share::new(15, 148), 0.0624, 0.1605);
        close(Share::new(0, 20), 0.0000, 0.1611);
        close(Share::new(1, 29), 0.0061, 0.1718);
    }

    #[test]
    fn none_of_ten_thousand_is_still_no_proof_of_never() {
        let share = Share::new(0, 10_000);
        assert!(share.low == 0.0 && share.high > 0.0003 && share.high < 0.0004, "{share:?}");
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let sorted: Vec<_> = (1..=100).map(Us::new).collect();
        assert_eq!(quantile(&sorted, 0.5), Us::new(50));
        assert_eq!(quantile(&sorted, 0.99), Us::new(99));
        assert_eq!(quantile(&sorted, 1.0), Us::new(100));
        assert_eq!(quantile(&sorted[..1], 0.01), Us::new(1));
        assert_eq!(quantile(&[], 0.5), Us::new(0));
    }

    proptest! {
        #[test]
        fn an_interval_holds_its_share_and_mirrors(of in 1u64..100_000, part in 0.0..=1.0f64) {
            let count = (of as f64 * part) as u64;
            let (share, rest) = (Share::new(count, of), Share::new(of - count, of));
            prop_assert!(0.0 <= share.low && share.low <= share.share);
            prop_assert!(share.share <= share.high && share.high <= 1.0);
            prop_assert!((share.low - (1.0 - rest.high)).abs() < 1e-9);
        }
    }
}
