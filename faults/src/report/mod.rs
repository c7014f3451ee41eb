//! What a campaign found: the figures, from a log; as JSON, as text for a terminal
//! ([`terminal`]) and as a page ([`html`]).

pub mod html;
pub mod terminal;

mod phases;
mod throughput;

pub use phases::{Blackout, Blackouts, Column};
pub use throughput::{Kill, Throughput};

use crate::log::Log;
use crate::model::{Family, Model};
use crate::outcome::{Cause, Outcome};
use crate::record::Record;
use crate::statistics::{Share, quantile};
use crate::units::{Hash, Us};
use serde::Serialize;
use std::collections::BTreeMap;

/// The form of the JSON object. Fields may be added to it, not renamed.
pub const SCHEMA: u32 = 1;

/// The figures of a campaign. Its JSON is what `inject --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What the faults were drawn from.
    pub seed: u64,
    /// Tells the campaign from others with the same seed.
    pub campaign: Hash,
    /// Tells the driver domain's build from others.
    pub image: Hash,
    /// Faults injected.
    pub faults: u64,
    /// Of these, activated.
    pub activated: u64,
    /// Of all, how many the system noticed by itself.
    pub detected: u64,
    /// How many there are of each class.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// The same as shares: of `faults` for what was not activated, of `activated` for the
    /// rest.
    pub shares: BTreeMap<Outcome, Share>,
    /// Of those detected, how many were recovered from with nothing visible to a guest.
    pub coverage: Share,
    /// How many there are of each class, for each model.
    pub by_model: BTreeMap<Model, BTreeMap<Outcome, u64>>,
    /// For each model: of those activated, how many had no consequence that a guest saw.
    pub unseen: BTreeMap<Model, Share>,
    /// From a failure to its detection, by what detected it.
    pub detection_us: BTreeMap<Cause, Spread>,
    /// From a failure to the first new response.
    pub blackout_us: Blackouts,
    /// The faults that affected the core or another domain: the lines to replay.
    pub escapes: Vec<Record>,
    /// The faults of the other classes that no system should have: lines to replay.
    pub failures: Vec<Record>,
    /// Gaps in the faults' numbers, first and last: shards that are not in the log.
    pub missing: Vec<(u64, u64)>,
    /// What a person should know about the log.
    pub notes: Vec<String>,
    /// A stretch of the load with the failures in it.
    pub throughput: Option<Throughput>,
}

/// How times are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// Of how many.
    pub count: u64,
    /// Half are at most this.
    pub p50: Us,
    /// Nine in ten are.
    pub p90: Us,
    /// Ninety-nine in a hundred are.
    pub p99: Us,
    /// All are.
    pub max: Us,
}

impl Spread {
    /// Of times in any order.
    pub fn of(mut times: Vec<Us>) -> Self {
        times.sort_unstable();
        let at = |share| quantile(&times, share);
        Self { count: times.len() as u64, p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

impl Report {
    /// The figures of a log.
    pub fn new(log: &Log) -> Self {
        let records = || log.records.values();
        let count =
            |wanted: &dyn Fn(&Record) -> bool| records().filter(|r| wanted(r)).count() as u64;
        let activated = count(&is_activated);
        let detected = count(&|record| record.seen.is_detected());
        let invisible = count(&|record| record.outcome == Outcome::RecoveredInvisible);
        let by_model = by_model(log);
        let outcomes = total(by_model.values());
        Self {
            schema: SCHEMA,
            seed: log.identity.seed.number(),
            campaign: log.identity.campaign,
            image: log.identity.image,
            faults: log.records.len() as u64,
            activated,
            detected,
            shares: shares(&outcomes),
            coverage: Share::new(invisible, detected),
            unseen: by_model.iter().map(|(model, classes)| (*model, unseen(classes))).collect(),
            detection_us: detection(log),
            blackout_us: Blackouts::of(log),
            escapes: records().filter(|r| r.outcome == Outcome::Escape).cloned().collect(),
            failures: records().filter(|r| is_failure(r.outcome)).cloned().collect(),
            missing: log.missing(crate::Shard::WHOLE),
            notes: log.notes.clone(),
            throughput: Throughput::of(log),
            outcomes,
            by_model,
        }
    }

    /// As JSON, without the end of the line.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("a report has text and numbers alone")
    }

    /// How many there are of a class.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes.get(&outcome).copied().unwrap_or(0)
    }

    /// The models that there are faults of, family by family.
    pub fn models(&self) -> impl Iterator<Item = (Family, Vec<Model>)> {
        Family::ALL.into_iter().filter_map(|family| {
            let models: Vec<_> =
                self.by_model.keys().copied().filter(|model| model.family() == family).collect();
            (!models.is_empty()).then_some((family, models))
        })
    }
}

/// A fault that something came of was activated, seen or not.
fn is_activated(record: &Record) -> bool {
    record.outcome != Outcome::NotActivated
}

const fn is_failure(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::NotRecovered | Outcome::Hang | Outcome::SilentCorruption)
}

fn by_model(log: &Log) -> BTreeMap<Model, BTreeMap<Outcome, u64>> {
    let mut by_model: BTreeMap<Model, BTreeMap<Outcome, u64>> = BTreeMap::new();
    for record in log.records.values() {
        *by_model.entry(record.fault.model).or_default().entry(record.outcome).or_default() += 1;
    }
    by_model
}

fn total<'a>(classes: impl Iterator<Item = &'a BTreeMap<Outcome, u64>>) -> BTreeMap<Outcome, u64> {
    let mut total: BTreeMap<_, _> = Outcome::ALL.iter().map(|outcome| (*outcome, 0)).collect();
    for (outcome, count) in classes.flatten() {
        *total.entry(*outcome).or_default() += count;
    }
    total
}

fn shares(outcomes: &BTreeMap<Outcome, u64>) -> BTreeMap<Outcome, Share> {
    let all: u64 = outcomes.values().sum();
    let activated = all - outcomes.get(&Outcome::NotActivated).copied().unwrap_or(0);
    let of = |outcome| if outcome == Outcome::NotActivated { all } else { activated };
    outcomes.iter().map(|(outcome, count)| (*outcome, Share::new(*count, of(*outcome)))).collect()
}

/// The share of those activated that no guest noticed anything of.
fn unseen(classes: &BTreeMap<Outcome, u64>) -> Share {
    let count = |outcome| classes.get(&outcome).copied().unwrap_or(0);
    let activated = classes.values().sum::<u64>() - count(Outcome::NotActivated);
    Share::new(count(Outcome::Benign) + count(Outcome::RecoveredInvisible), activated)
}

fn detection(log: &Log) -> BTreeMap<Cause, Spread> {
    let mut times: BTreeMap<Cause, Vec<Us>> = BTreeMap::new();
    for detected in log.records.values().filter_map(|record| record.seen.detected.as_ref()) {
        times.entry(detected.cause).or_default().push(detected.after_us);
    }
    times.into_iter().map(|(cause, times)| (cause, Spread::of(times))).collect()
}

#[cfg(test)]
mod tests;
