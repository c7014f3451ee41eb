//! What is seen while the driver dies: throughput as a row of bars with a mark below each
//! kill, and the figures so far. Makes text; where it is drawn is the terminal's affair.

use super::{
    director::Seen,
    schedule::{Kind, Schedule},
    series::STEP,
};
use bulkhead_link::{Cause, Restart};
use faults::{report::Spread, units::Us};
use std::time::Duration;

/// A bar of each height, the least first.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Where nothing was seen.
const GAP: char = ' ';
/// Below the step in which a kill was done.
const MARK: char = '╵';
/// Columns that the names of the rows take.
const MARGIN: usize = 12;

/// The state at a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Live {
    pub elapsed: Duration,
    pub length: Duration,
    pub kind: Option<Kind>,
    pub kills: (usize, usize),
    /// Bytes per second in each step of [`STEP`].
    pub rates: Vec<Option<f64>>,
    /// The steps in which kills were done.
    pub marks: Vec<usize>,
    pub last: Option<Us>,
    /// Median and longest.
    pub blackout: Option<(Us, Us)>,
    pub undisturbed: Option<f64>,
    pub killed: Option<f64>,
    /// Deaths that nobody asked for: on a busy host a heart may not beat in time.
    pub hangs: usize,
}

/// How long a restart's blackout was, if it is that of a kill.
fn blackout(restart: &Restart) -> Option<Us> {
    let is_kill = restart.cause == Cause::Crash;
    restart.blackout_ns.filter(|_| is_kill).map(|ns| Us::new(ns / 1000))
}

impl Live {
    /// The state `elapsed` after the first stretch began.
    pub fn new(elapsed: Duration, schedule: &Schedule, seen: &Seen) -> Self {
        let step_s = STEP.as_secs_f64();
        let steps = seen.series.steps();
        let blackouts: Vec<_> = seen.restarts.iter().filter_map(blackout).collect();
        let (last, count) = (blackouts.last().copied(), blackouts.len());
        let spread = Spread::of(blackouts);
        let rates: Vec<_> = steps.iter().map(|b| b.map(|b| b as f64 / step_s)).collect();
        let mean = |kind| {
            let at = |n: usize| schedule.kind_at(STEP * n as u32);
            let of: Vec<_> = (0..)
                .zip(&rates)
                .filter(|(n, _)| at(*n) == Some(kind))
                .filter_map(|(_, r)| *r)
                .collect();
            (!of.is_empty()).then(|| of.iter().sum::<f64>() / of.len() as f64)
        };
        Self {
            elapsed,
            length: schedule.length(),
            kind: schedule.kind_at(elapsed),
            kills: (seen.kills.len(), schedule.kills().len()),
            marks: seen.kills.iter().map(|at| (at.as_nanos() / STEP.as_nanos()) as usize).collect(),
            last,
            blackout: (count > 0).then_some((spread.p50, spread.max)),
            undisturbed: mean(Kind::Undisturbed),
            killed: mean(Kind::Killed),
            hangs: seen.restarts.iter().filter(|r| r.cause == Cause::Hang).count(),
            rates,
        }
    }

    /// The latest rate.
    fn now(&self) -> Option<f64> {
        self.rates.last().copied().flatten()
    }

    /// One line, for a log.
    pub fn line(&self) -> String {
        let mut line = format!(
            "{:>3.0} s of {:.0}: {} of {} kills, {}",
            self.elapsed.as_secs_f64(),
            self.length.as_secs_f64(),
            self.kills.0,
            self.kills.1,
            rate(self.now()),
        );
        if let (Some(last), Some((median, longest))) = (self.last, self.blackout) {
            line += &format!("; blackout {last}, median {median}, longest {longest}");
        }
        line + &self.hangs_words()
    }

    fn hangs_words(&self) -> String {
        match self.hangs {
            0 => String::new(),
            n => format!("; and {n} by a heart that did not beat in time"),
        }
    }

    /// Lines for a terminal that is so wide.
    pub fn lines(&self, width: usize) -> Vec<String> {
        let room = width.saturating_sub(MARGIN + 14).max(10);
        let first = self.rates.len().saturating_sub(room);
        let most = self.rates.iter().flatten().fold(1.0, |a: f64, b| a.max(*b));
        let bars: String = self.rates[first..].iter().map(|r| bar(*r, most)).collect();
        let mark = |n: usize| if self.marks.contains(&n) { MARK } else { GAP };
        let marks: String = (first..self.rates.len().max(first)).map(mark).collect();
        let doing = match self.kind {
            Some(Kind::Killed) => "the driver domain is killed",
            Some(Kind::Undisturbed) => "undisturbed",
            None => "done",
        };
        let of = |us: Option<Us>| us.map_or("-".into(), |us| us.to_string());
        let (median, longest) = (self.blackout.map(|b| b.0), self.blackout.map(|b| b.1));
        let (elapsed, length) = (self.elapsed.as_secs_f64(), self.length.as_secs_f64());
        let mut lines = vec![
            format!("throughput  {bars:<room$} {}", rate(self.now())),
            format!("kills       {marks:<room$} {} of {}", self.kills.0, self.kills.1),
            format!(
                "blackout    last {}, median {}, longest {}",
                of(self.last),
                of(median),
                of(longest)
            ),
            format!(
                "mean        undisturbed {}, killed {}",
                rate(self.undisturbed),
                rate(self.killed)
            ),
            format!("time        {elapsed:.0} s of {length:.0} s, {doing}{}", self.hangs_words()),
        ];
        lines.iter_mut().for_each(|line| *line = line.chars().take(width).collect());
        lines
    }
}

fn bar(rate: Option<f64>, most: f64) -> char {
    let Some(rate) = rate else { return GAP };
    let at = (rate / most * BARS.len() as f64).ceil() as usize;
    BARS[at.clamp(1, BARS.len()) - 1]
}

/// A rate for a person.
pub fn rate(bytes_per_s: Option<f64>) -> String {
    bytes_per_s.map_or("-".into(), |rate| format!("{:.1} MB/s", rate / 1e6))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::series::Sample;

    const S: Duration = Duration::from_secs(1);

    fn restart(cause: Cause, blackout_ms: u64) -> Restart {
        Restart {
            driver: "disk".into(),
            cause,
            reason: String::new(),
            detect_ns: 0,
            teardown_ns: 0,
            rebuild_ns: 0,
            device_ns: None,
            first_response_ns: None,
            blackout_ns: Some(blackout_ms * 1_000_000),
        }
    }

    /// Two seconds of quiet at 1 MB/s, one of kills at half of it.
    fn live() -> Live {
        let mut seen = Seen::default();
        for (ms, bytes) in [(0, 0), (2000, 2_000_000), (3000, 2_500_000)] {
            seen.series.add(Sample { at: Duration::from_millis(ms), bytes, cpu: None });
        }
        seen.kills = vec![2 * S];
        seen.restarts = vec![
            restart(Cause::Crash, 3),
            restart(Cause::Request, 900),
            restart(Cause::Hang, 800),
            restart(Cause::Crash, 5),
        ];
        Live::new(3 * S, &Schedule::new(2, S, 2 * S), &seen)
    }

    #[test]
    fn a_kill_is_marked_below_its_step_and_the_dip_is_seen() {
        let lines = live().lines(80);
        let column = |line: &str, c: char| line.chars().position(|found| found == c);
        assert_eq!(column(&lines[1], MARK), Some(MARGIN + 10), "{lines:#?}");
        assert_eq!(column(&lines[0], BARS[3]), Some(MARGIN + 10), "{lines:#?}");
        assert!(lines[1].ends_with("1 of 2") && lines[0].ends_with("0.5 MB/s"), "{lines:#?}");
        assert!(lines[3].contains("undisturbed 1.0 MB/s, killed 0.5 MB/s"), "{lines:#?}");
    }

    #[test]
    fn only_kills_count_as_blackouts_and_hangs_are_told_apart() {
        let live = live();
        assert_eq!(live.last, Some(Us::from_ms(5)));
        assert_eq!(live.blackout, Some((Us::from_ms(3), Us::from_ms(5))));
        assert!(
            live.line().contains("1 of 2 kills, 0.5 MB/s; blackout 5.00 ms"),
            "{}",
            live.line()
        );
    }

    #[test]
    fn a_narrow_terminal_shows_the_latest_steps_and_no_line_is_too_long() {
        let mut live = live();
        live.rates = (0..500).map(|n| Some(n as f64)).collect();
        live.marks = vec![499];
        for width in [20, 40, 79] {
            let lines = live.lines(width);
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{lines:#?}");
        }
        assert!(live.lines(60)[1].contains(MARK), "{:#?}", live.lines(60));
    }
}
