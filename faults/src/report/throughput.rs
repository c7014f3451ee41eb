//! A stretch of the load that shows what failures do to it.

use crate::log::Log;
use crate::outcome::Outcome;
use crate::plan::Shard;
use crate::record::{LoadSeries, Record};
use crate::units::Us;
use serde::Serialize;
use std::collections::BTreeMap;

/// How long the stretch is at most.
const STRETCH: Us = Us::from_ms(60_000);

/// How many steps it has at most: a page cannot show more.
const MOST_STEPS: u64 = 10_000;

/// Bytes per step, and the failures meanwhile, of one boot of one machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Throughput {
    /// How long a step is.
    pub step_us: Us,
    /// When the first step begins, counted from the start of the load.
    pub from_us: Us,
    /// Bytes answered in each step; null where nothing was sampled.
    pub bytes: Vec<Option<u64>>,
    /// The failures that were noticed, by time.
    pub kills: Vec<Kill>,
}

/// A failure on the load's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Kill {
    /// When the fault was activated.
    pub at_us: Us,
    /// Which fault.
    pub number: u64,
    /// What came of it.
    pub outcome: Outcome,
}

impl Throughput {
    /// The first minute of the boot that was sampled longest.
    pub fn of(log: &Log) -> Option<Self> {
        let mut boots: BTreeMap<(Shard, u32), Vec<&LoadSeries>> = BTreeMap::new();
        for series in log.load.iter().filter(|series| series.step_us > Us::default()) {
            boots.entry((series.shard, series.boot)).or_default().push(series);
        }
        let steps =
            |all: &[&LoadSeries]| all.iter().map(|series| series.bytes.len()).sum::<usize>();
        // Of equally long ones the first.
        let (boot, series) = boots.into_iter().rev().max_by_key(|(_, all)| steps(all))?;
        let step_us = series.first()?.step_us;
        let from_us = series.iter().map(|series| series.from_us).min()?;
        let mut found = Self { step_us, from_us, bytes: Vec::new(), kills: Vec::new() };
        series.iter().for_each(|series| found.add(series));
        let mine = |record: &&Record| (record.shard, record.boot) == boot;
        let kills = log.records.values().filter(mine).filter_map(kill);
        let mut kills: Vec<_> = kills.filter(|kill| found.covers(kill.at_us)).collect();
        kills.sort_by_key(|kill| kill.at_us);
        found.kills = kills;
        Some(found)
    }

    fn add(&mut self, series: &LoadSeries) {
        let most = (STRETCH.number() / self.step_us.number()).min(MOST_STEPS) as usize;
        let first = series.from_us.since(self.from_us).number() / self.step_us.number();
        for (index, bytes) in (first..).zip(&series.bytes) {
            let Ok(index) = usize::try_from(index) else { return };
            if index >= most {
                return;
            }
            if self.bytes.len() <= index {
                self.bytes.resize(index + 1, None);
            }
            self.bytes[index] = Some(*bytes);
        }
    }

    /// How long the stretch is.
    pub const fn length(&self) -> Us {
        Us::new(self.step_us.number() * self.bytes.len() as u64)
    }

    fn covers(&self, at: Us) -> bool {
        at >= self.from_us && at.since(self.from_us) < self.length()
    }

    /// The steps in bytes per second.
    pub fn rates(&self) -> impl Iterator<Item = Option<f64>> {
        let seconds = self.step_us.number() as f64 / 1e6;
        self.bytes.iter().map(move |bytes| bytes.map(|bytes| bytes as f64 / seconds))
    }
}

fn kill(record: &Record) -> Option<Kill> {
    let activated = record.seen.activated_us.unwrap_or_default();
    record.seen.is_detected().then_some(Kill {
        at_us: record.injected_us.plus(activated),
        number: record.number,
        outcome: record.outcome,
    })
}
