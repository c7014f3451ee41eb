//! How much the guest's disk did, from looks at its counters: the rate in each stretch, and
//! what the kills cost. Pure: times and counts go in.

use super::schedule::{Kind, Schedule, Stretch};
use serde::Serialize;
use std::time::Duration;

/// Steps of the picture that is kept.
pub const STEP: Duration = Duration::from_millis(200);

/// A look at the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Since the first stretch began.
    pub at: Duration,
    /// Read and written since the start of the machine.
    pub bytes: u64,
    /// CPU time that the machine has had on the host, if the host says.
    pub cpu: Option<Duration>,
}

/// The looks, in the order of time.
#[derive(Clone, Debug, Default)]
pub struct Series {
    samples: Vec<Sample>,
}

/// A stretch and its rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rate {
    pub kind: Kind,
    pub from_s: f64,
    pub length_s: f64,
    /// Null if it was not seen to its end.
    pub bytes_per_s: Option<f64>,
    /// CPU time of the machine on the host by the time of the stretch.
    pub cpu_share: Option<f64>,
}

/// What the kills cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Over all stretches without kills whose partner was seen to its end too.
    pub undisturbed_bytes_per_s: Option<f64>,
    /// Over their partners.
    pub killed_bytes_per_s: Option<f64>,
    /// The second by the first.
    pub ratio: Option<f64>,
    /// The same of each pair of neighbours: how far they differ is the host's noise.
    pub ratios: Vec<f64>,
    /// Of these the middle one: less than `ratio` it depends on when the host was busy.
    pub median_ratio: Option<f64>,
    /// The same by the machine's CPU time in place of time: what others do on the host does not
    /// show, nor does time in which the machine idles.
    pub by_cpu: Option<ByCpu>,
    pub stretches: Vec<Rate>,
}

/// Rates by CPU time, over the pairs of which it is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ByCpu {
    pub undisturbed_bytes_per_cpu_s: f64,
    pub killed_bytes_per_cpu_s: f64,
    pub ratio: f64,
    /// How much of a processor the machine had.
    pub undisturbed_share: f64,
    pub killed_share: f64,
}

impl Series {
    /// Takes a look. One that is not later than the last, or counts less, is left out: the
    /// counters are a driver domain's word.
    pub fn add(&mut self, sample: Sample) {
        let follows = |last: &Sample| sample.at > last.at && sample.bytes >= last.bytes;
        if self.samples.last().is_none_or(follows) {
            self.samples.push(sample);
        }
    }

    /// A count at a time, by a straight line between two looks; none outside of all looks.
    fn at(&self, at: Duration, count: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let after = self.samples.partition_point(|s| s.at < at);
        let right = self.samples.get(after)?;
        if right.at == at {
            return count(right);
        }
        let left = self.samples.get(after.checked_sub(1)?)?;
        let share = (at - left.at).as_secs_f64() / (right.at - left.at).as_secs_f64();
        let (from, to) = (count(left)?, count(right)?);
        Some(from + share * (to - from))
    }

    /// Bytes in a part of the time.
    pub fn bytes_in(&self, from: Duration, to: Duration) -> Option<f64> {
        let bytes = |sample: &Sample| Some(sample.bytes as f64);
        Some(self.at(to, bytes)? - self.at(from, bytes)?)
    }

    /// Seconds of CPU time in a part of the time.
    fn cpu_in(&self, from: Duration, to: Duration) -> Option<f64> {
        let cpu = |sample: &Sample| sample.cpu.map(|cpu| cpu.as_secs_f64());
        Some(self.at(to, cpu)? - self.at(from, cpu)?)
    }

    /// Bytes in each step from the beginning on.
    pub fn steps(&self) -> Vec<Option<u64>> {
        let last = self.samples.last().map_or(Duration::ZERO, |s| s.at);
        let count = (last.as_nanos() / STEP.as_nanos()) as u32;
        (0..count)
            .map(|n| self.bytes_in(STEP * n, STEP * (n + 1)).map(|bytes| bytes.round() as u64))
            .collect()
    }

    fn rate(&self, stretch: &Stretch) -> Rate {
        let length_s = stretch.length.as_secs_f64();
        Rate {
            kind: stretch.kind,
            from_s: stretch.from.as_secs_f64(),
            length_s,
            bytes_per_s: self.bytes_in(stretch.from, stretch.end()).map(|bytes| bytes / length_s),
            cpu_share: self.cpu_in(stretch.from, stretch.end()).map(|cpu| cpu / length_s),
        }
    }

    /// Compares the stretches with kills with those without.
    pub fn compare(&self, schedule: &Schedule) -> Comparison {
        let stretches: Vec<_> = schedule.stretches().iter().map(|s| self.rate(s)).collect();
        let pairs: Vec<_> = stretches.chunks_exact(2).filter_map(seen_pair).collect();
        let total: f64 = pairs.iter().map(|pair| pair.length_s).sum();
        let mean = |rate: fn(&Pair) -> f64| {
            let bytes: f64 = pairs.iter().map(|pair| rate(pair) * pair.length_s).sum();
            (total > 0.0).then(|| bytes / total)
        };
        let undisturbed = mean(|pair| pair.undisturbed);
        let killed = mean(|pair| pair.killed);
        let ratio =
            |killed: f64, undisturbed: f64| (undisturbed > 0.0).then(|| killed / undisturbed);
        let ratios: Vec<_> = pairs.iter().filter_map(|p| ratio(p.killed, p.undisturbed)).collect();
        Comparison {
            undisturbed_bytes_per_s: undisturbed,
            killed_bytes_per_s: killed,
            ratio: killed.zip(undisturbed).and_then(|(k, u)| ratio(k, u)),
            median_ratio: median(&ratios),
            ratios,
            by_cpu: by_cpu(&stretches),
            stretches,
        }
    }
}

fn by_cpu(stretches: &[Rate]) -> Option<ByCpu> {
    let known = |pair: &[Rate]| pair.iter().all(|r| r.bytes_per_s.and(r.cpu_share).is_some());
    let pairs: Vec<_> = stretches.chunks_exact(2).filter(|pair| known(pair)).collect();
    let sum = |kind, of: fn(&Rate) -> Option<f64>| -> f64 {
        let rates = pairs.iter().copied().flatten().filter(|rate| rate.kind == kind);
        rates.map(|rate| of(rate).unwrap_or(0.0) * rate.length_s).sum()
    };
    // Bytes, seconds of CPU time, seconds.
    let sums = |kind| {
        [|rate: &Rate| rate.bytes_per_s, |rate: &Rate| rate.cpu_share, |_: &Rate| Some(1.0)]
            .map(|of| sum(kind, of))
    };
    let [quiet_bytes, quiet_cpu, quiet] = sums(Kind::Undisturbed);
    let [killed_bytes, killed_cpu, killed] = sums(Kind::Killed);
    let (undisturbed_rate, killed_rate) = (quiet_bytes / quiet_cpu, killed_bytes / killed_cpu);
    let found = ByCpu {
        undisturbed_bytes_per_cpu_s: undisturbed_rate,
        killed_bytes_per_cpu_s: killed_rate,
        ratio: killed_rate / undisturbed_rate,
        undisturbed_share: quiet_cpu / quiet,
        killed_share: killed_cpu / killed,
    };
    // Without pairs, bytes or CPU time there is nothing to compare.
    found.ratio.is_finite().then_some(found)
}

/// The middle one, or the mean of the two in the middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    match sorted.len() % 2 {
        1 => Some(upper),
        _ => Some((sorted[sorted.len() / 2 - 1] + upper) / 2.0),
    }
}

/// The rates of neighbours, in bytes per second.
struct Pair {
    length_s: f64,
    undisturbed: f64,
    killed: f64,
}

fn seen_pair(pair: &[Rate]) -> Option<Pair> {
    let [undisturbed, killed] = pair else { return None };
    Some(Pair {
        length_s: killed.length_s,
        undisturbed: undisturbed.bytes_per_s?,
        killed: killed.bytes_per_s?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn series(looks: &[(u64, u64)]) -> Series {
        let mut series = Series::default();
        for &(ms, bytes) in looks {
            let at = Duration::from_millis(ms);
            series.add(Sample { at, bytes, cpu: None });
        }
        series
    }

    #[test]
    fn by_cpu_time_a_host_that_gives_half_makes_no_difference() {
        let mut series = Series::default();
        for (s, bytes, cpu_ms) in [(0, 0, 0), (1, 1000, 1000), (2, 1450, 1500)] {
            let cpu = Some(Duration::from_millis(cpu_ms));
            series.add(Sample { at: S * s, bytes, cpu });
        }
        let found = series.compare(&Schedule::new(1, S, S));
        assert_eq!(found.ratio, Some(0.45));
        let by_cpu = found.by_cpu.expect("known");
        assert_eq!((by_cpu.ratio, by_cpu.killed_bytes_per_cpu_s), (0.9, 900.0));
        assert_eq!((by_cpu.undisturbed_share, by_cpu.killed_share), (1.0, 0.5));
    }

    #[test]
    fn bytes_between_two_looks_are_on_a_straight_line() {
        let series = series(&[(0, 1000), (1000, 3000), (3000, 3000)]);
        assert_eq!(series.bytes_in(S / 4, S / 2), Some(500.0));
        assert_eq!(series.bytes_in(S / 2, 2 * S), Some(1000.0));
        assert_eq!(series.bytes_in(S, 4 * S), None, "nobody looked there");
        assert_eq!(series.steps()[..6], [400, 400, 400, 400, 400, 0].map(Some));
        assert_eq!(series.steps().len(), 15);
    }

    #[test]
    fn counters_that_go_backwards_are_not_believed() {
        let series = series(&[(0, 0), (1000, 100), (1500, 20), (1000, 500), (2000, 200)]);
        assert_eq!(series.bytes_in(Duration::ZERO, 2 * S), Some(200.0));
        assert_eq!(series.bytes_in(S, 2 * S), Some(100.0));
    }

    #[test]
    fn the_ratio_is_of_the_sums_and_each_pair_shows_its_own() {
        let schedule = Schedule::new(2, S, S);
        let series = series(&[(0, 0), (1000, 100), (2000, 190), (3000, 390), (4000, 570)]);
        let found = series.compare(&schedule);
        assert_eq!(found.undisturbed_bytes_per_s, Some(150.0));
        assert_eq!(found.killed_bytes_per_s, Some(135.0));
        assert_eq!(found.ratio, Some(0.9));
        assert_eq!(found.ratios, [0.9, 0.9]);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), Some(3.0));
    }

    #[test]
    fn a_pair_that_was_cut_short_is_left_out() {
        let schedule = Schedule::new(2, S, S);
        let found = series(&[(0, 0), (1000, 100), (2000, 150), (3500, 600)]).compare(&schedule);
        assert_eq!((found.ratio, found.ratios.len()), (Some(0.5), 1));
        assert_eq!(found.stretches[3].bytes_per_s, None);
        let nothing = Series::default().compare(&schedule);
        assert_eq!((nothing.ratio, nothing.undisturbed_bytes_per_s), (None, None));
        assert!(nothing.by_cpu.is_none() && found.by_cpu.is_none(), "the host said nothing");
    }
}
