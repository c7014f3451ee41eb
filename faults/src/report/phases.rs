//! Blackouts: how long, and what of it in which phase.

use super::Spread;
use crate::log::Log;
use crate::outcome::{Cause, PHASES, Restart};
use crate::units::Us;
use serde::Serialize;

/// Most columns of the distribution.
const COLUMNS: usize = 200;

/// All blackouts. Those after a hang are looked at apart: most of such a blackout is the
/// deadline of the heartbeat, which the user has chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Blackouts {
    /// Of all restarts.
    #[serde(flatten)]
    pub all: Spread,
    /// Where the failure showed itself: by a crash, a violation, a request.
    pub prompt: Blackout,
    /// Where it showed by silence alone.
    pub hang: Blackout,
}

/// The distribution of some blackouts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Blackout {
    /// From the failure to the first new response.
    #[serde(flatten)]
    pub all: Spread,
    /// Phase by phase, each for itself: these quantiles do not add up.
    pub phases: Vec<(&'static str, Spread)>,
    /// The restarts by length, in groups of equal size.
    pub distribution: Vec<Column>,
}

/// A group of restarts with nearly the same blackout.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Column {
    /// So many of all restarts are in this group or before it; the last one has 1.
    pub share: f64,
    /// The mean of each phase, in us: they add up to the mean blackout of the group.
    pub phases: [f64; PHASES.len()],
}

impl Blackouts {
    /// Of the restarts in a log.
    pub fn of(log: &Log) -> Self {
        Self::of_restarts(log.records.values().flat_map(|record| &record.seen.restarts).copied())
    }

    /// Of restarts in any order.
    pub fn of_restarts(restarts: impl IntoIterator<Item = Restart>) -> Self {
        let (hang, prompt): (Vec<_>, Vec<_>) =
            restarts.into_iter().partition(|restart| restart.cause == Cause::Hang);
        let all = prompt.iter().chain(&hang).map(Restart::blackout).collect();
        Self { all: Spread::of(all), prompt: Blackout::of(prompt), hang: Blackout::of(hang) }
    }
}

impl Blackout {
    fn of(mut restarts: Vec<Restart>) -> Self {
        restarts.sort_by_key(Restart::blackout);
        let phase = |index: usize| {
            Spread::of(restarts.iter().map(|restart| restart.phases()[index]).collect())
        };
        Self {
            all: Spread::of(restarts.iter().map(Restart::blackout).collect()),
            phases: (0..).zip(PHASES).map(|(index, name)| (name, phase(index))).collect(),
            distribution: distribution(&restarts),
        }
    }
}

fn distribution(sorted: &[Restart]) -> Vec<Column> {
    let columns = COLUMNS.min(sorted.len());
    let edge = |column: usize| column * sorted.len() / columns;
    (0..columns)
        .map(|column| Column {
            share: edge(column + 1) as f64 / sorted.len() as f64,
            phases: mean(&sorted[edge(column)..edge(column + 1)]),
        })
        .collect()
}

fn mean(restarts: &[Restart]) -> [f64; PHASES.len()] {
    let sum =
        |index: usize| restarts.iter().map(|r| r.phases()[index].number() as f64).sum::<f64>();
    std::array::from_fn(|index| sum(index) / restarts.len() as f64)
}

impl Column {
    /// The mean blackout of the group, in us.
    pub fn blackout(&self) -> f64 {
        self.phases.iter().sum()
    }

    /// The time at which a phase ends, with those before it.
    pub fn up_to(&self, phase: usize) -> f64 {
        self.phases[..=phase].iter().sum()
    }
}

/// Where a quantile of the distribution is: a mark for a chart.
pub fn marks(all: &Spread) -> [(&'static str, f64, Us); 3] {
    [("p50", 0.5, all.p50), ("p90", 0.9, all.p90), ("p99", 0.99, all.p99)]
}
