//! Runs a campaign: injects one fault after the other into a machine, classifies what
//! comes of each, and writes it down at once.
//!
//! One fault at a time. Before the next one the driver domain is pristine again; after an
//! escape, or where that does not succeed, the whole machine is.

use crate::campaign::{Campaign, Deadlines, Goal};
use crate::error::CampaignError;
use crate::fault::Fault;
use crate::log::Log;
use crate::model::Model;
use crate::outcome::{Observation, Outcome};
use crate::plan::{Plan, Shard};
use crate::record::{Line, LoadSeries, Place, Record, SCHEMA};
use crate::units::Us;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

/// How often a fault is tried when the host loses the machine under it.
const TRIES: u32 = 3;

/// Something that faults can be injected into.
pub trait Machine {
    /// Whether it knows how to inject faults of this model.
    fn can_inject(&self, model: Model) -> bool;

    /// Boots it, whatever state it was in, and starts the load. Returns when the load has
    /// run steadily for a moment.
    ///
    /// # Errors
    /// What the host could not do. (A set-up that cannot run under no fault is one.)
    fn boot(&mut self) -> Result<(), MachineLost>;

    /// Waits until the load has run for `fault.after_us`, and injects the fault.
    /// Gives the time, counted from the start of the load in this boot.
    ///
    /// # Errors
    /// What the host could not do.
    fn inject(&mut self, fault: &Fault) -> Result<Us, MachineLost>;

    /// Watches what comes of the fault until its window closes, or until nothing more can
    /// come of it.
    ///
    /// # Errors
    /// What the host could not do. A core that faulted is no error: it is an observation.
    fn observe(&mut self, deadlines: &Deadlines) -> Result<Observation, MachineLost>;

    /// What the load did since the last call.
    fn load(&mut self) -> Option<LoadSamples>;

    /// Takes the fault out and makes the driver domain pristine. Returns when the load
    /// runs steadily; `false` if it does not come to that, so that a boot is needed.
    ///
    /// # Errors
    /// What the host could not do.
    fn heal(&mut self) -> Result<bool, MachineLost>;
}

/// The machine is gone for a reason that lies with the host: no fault is to blame.
#[derive(Debug, thiserror::Error)]
#[error("the machine is lost: {0}")]
pub struct MachineLost(pub String);

/// What a load did, in steps of equal length; see [`LoadSeries`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadSamples {
    /// When the first step began.
    pub from_us: Us,
    /// How long a step is.
    pub step_us: Us,
    /// Bytes that were answered in each step.
    pub bytes: Vec<u64>,
}

/// Why a campaign ended, other than by reaching its goal.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The request was wrong.
    #[error(transparent)]
    Request(#[from] CampaignError),
    /// The machine could not be kept running.
    #[error("fault {number}, {TRIES} times: {lost}")]
    Machine {
        /// Which fault was next.
        number: u64,
        /// What was said the last time.
        lost: MachineLost,
    },
    /// The log could not be written.
    #[error("cannot write the log: {0}")]
    Log(#[from] io::Error),
}

/// How a campaign ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its goal was reached.
    Goal,
    /// The limit of faults was.
    FaultLimit,
    /// The limit of time was.
    TimeLimit,
    /// The limit of escapes was: the machine is as the last one left it.
    EscapeLimit,
    /// The user wanted it to stop.
    Interrupted,
}

/// How far a campaign is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What counts so far, of how many.
    pub done: u64,
    /// The goal.
    pub goal: u64,
    /// How many of `done` were there before this run.
    pub before: u64,
    /// Faults injected, by class.
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Time on the wall since this run began.
    pub elapsed: Us,
}

impl Progress {
    /// How long the rest will take if it goes on as it went.
    pub fn remaining(&self) -> Option<Us> {
        let now = self.done.saturating_sub(self.before);
        let rest = u128::from(self.goal.saturating_sub(self.done));
        let us = u128::from(self.elapsed.number()).checked_mul(rest)?.checked_div(now.into())?;
        u64::try_from(us).ok().map(Us::new)
    }

    fn count(&mut self, outcome: Outcome, goal: Goal) {
        *self.outcomes.entry(outcome).or_default() += 1;
        let counts = matches!(goal, Goal::Faults(_)) || outcome != Outcome::NotActivated;
        self.done += u64::from(counts);
    }
}

/// What a campaign needs of its surroundings.
pub trait Surroundings {
    /// Whether the user wants it to stop.
    fn is_interrupted(&mut self) -> bool;
    /// Time on the wall since the run began.
    fn elapsed(&mut self) -> Us;
    /// Told after each fault.
    fn progress(&mut self, progress: &Progress, last: &Record);
}

/// A campaign on one machine.
pub struct Runner<'a, M> {
    campaign: &'a Campaign,
    plan: &'a Plan,
    shard: Shard,
    machine: M,
    boots: u32,
    is_up: bool,
}

impl<'a, M: Machine> Runner<'a, M> {
    /// For one shard of a campaign.
    ///
    /// # Errors
    /// Models that the machine cannot inject.
    pub fn new(
        campaign: &'a Campaign,
        plan: &'a Plan,
        shard: Shard,
        machine: M,
    ) -> Result<Self, CampaignError> {
        let cannot: Vec<_> = plan.models().filter(|m| !machine.can_inject(*m)).collect();
        if !cannot.is_empty() {
            let names: Vec<_> = cannot.iter().map(|m| m.name()).collect();
            return Err(CampaignError::plain(format!(
                "this machine cannot inject: {}",
                names.join(", ")
            ))
            .help("give these models weight 0, or list the others in [models]"));
        }
        Ok(Self { campaign, plan, shard, machine, boots: 0, is_up: false })
    }

    /// Runs the shard, or what of it is not in `before` yet. Each line is written as soon
    /// as it is known.
    ///
    /// # Errors
    /// See [`Stopped`]. What was written until then stays good.
    pub fn run(
        &mut self,
        before: Option<&Log>,
        out: &mut impl Write,
        around: &mut impl Surroundings,
    ) -> Result<End, Stopped> {
        let mut progress = self.start(before)?;
        let done: BTreeSet<u64> =
            before.iter().flat_map(|log| log.records.keys().copied()).collect();
        for number in self.shard.numbers(self.end()).filter(|number| !done.contains(number)) {
            if let Some(end) = self.is_over(&progress, around) {
                return Ok(end);
            }
            let record = self.inject(number, &self.plan.fault(number), out)?;
            progress.count(record.outcome, self.campaign.goal);
            progress.elapsed = around.elapsed();
            around.progress(&progress, &record);
        }
        Ok(self.is_over(&progress, around).unwrap_or(End::FaultLimit))
    }

    /// Injects one fault of a log again and gives what came of it this time.
    ///
    /// # Errors
    /// See [`Stopped`].
    pub fn replay(&mut self, record: &Record, out: &mut impl Write) -> Result<Record, Stopped> {
        self.inject(record.number, &record.fault, out)
    }

    /// The machine, as the last fault left it.
    pub fn into_machine(self) -> M {
        self.machine
    }

    fn start(&mut self, before: Option<&Log>) -> Result<Progress, Stopped> {
        let goal = match self.campaign.goal {
            Goal::Faults(count) | Goal::Activated(count) => self.shard.part(count),
        };
        let mut progress = Progress { goal, ..Progress::default() };
        if let Some(log) = before {
            log.check(self.plan)?;
            let mine: BTreeSet<u64> = self.shard.numbers(self.end_of(log)).collect();
            let mine = log.records.values().filter(|record| mine.contains(&record.number));
            mine.for_each(|record| progress.count(record.outcome, self.campaign.goal));
            let boots = log.records.values().map(|record| record.boot + 1).max();
            self.boots = boots.unwrap_or(0);
        }
        progress.before = progress.done;
        Ok(progress)
    }

    fn end_of(&self, log: &Log) -> u64 {
        log.records.last_key_value().map_or(0, |(number, _)| number.saturating_add(1))
    }

    /// The number at which the campaign ends for all shards, if its goal is not reached
    /// before.
    fn end(&self) -> u64 {
        let limit = self.campaign.limits.faults.unwrap_or(u64::MAX);
        match self.campaign.goal {
            Goal::Faults(count) => count.min(limit),
            Goal::Activated(_) => limit,
        }
    }

    fn is_over(&self, progress: &Progress, around: &mut impl Surroundings) -> Option<End> {
        let limits = &self.campaign.limits;
        let escapes = progress.outcomes.get(&Outcome::Escape).copied().unwrap_or(0);
        if progress.done >= progress.goal {
            Some(End::Goal)
        } else if limits.escapes.is_some_and(|most| escapes >= most) {
            Some(End::EscapeLimit)
        } else if around.is_interrupted() {
            Some(End::Interrupted)
        } else if limits.time.is_some_and(|most| around.elapsed() >= most) {
            Some(End::TimeLimit)
        } else {
            None
        }
    }

    fn inject(
        &mut self,
        number: u64,
        fault: &Fault,
        out: &mut impl Write,
    ) -> Result<Record, Stopped> {
        let mut tries = 0;
        let (injected_us, seen) = loop {
            match self.try_once(fault) {
                Ok(seen) => break seen,
                Err(lost) => {
                    self.is_up = false;
                    tries += 1;
                    if tries == TRIES {
                        return Err(Stopped::Machine { number, lost });
                    }
                }
            }
        };
        let record = self.record(number, fault, injected_us, seen);
        self.write(&record, out)?;
        // Nobody knows what an escape leaves behind.
        self.is_up = record.outcome != Outcome::Escape && self.machine.heal().unwrap_or(false);
        Ok(record)
    }

    fn try_once(&mut self, fault: &Fault) -> Result<(Us, Observation), MachineLost> {
        if !self.is_up {
            self.machine.boot()?;
            self.boots += 1;
            self.is_up = true;
        }
        let injected_us = self.machine.inject(fault)?;
        Ok((injected_us, self.machine.observe(&self.campaign.deadlines)?))
    }

    fn record(&self, number: u64, fault: &Fault, injected_us: Us, seen: Observation) -> Record {
        let image = self.plan.image();
        Record {
            schema: SCHEMA,
            number,
            seed: self.plan.seed(),
            campaign: self.plan.identity(),
            image: image.hash(),
            fault: fault.clone(),
            place: fault.va().and_then(|va| Place::of(image, va)),
            shard: self.shard,
            boot: self.boots - 1,
            injected_us,
            outcome: Outcome::of(&seen),
            seen,
        }
    }

    fn write(&mut self, record: &Record, out: &mut impl Write) -> io::Result<()> {
        let mut text = Line::Fault(Box::new(record.clone())).written() + "\n";
        if let Some(LoadSamples { from_us, step_us, bytes }) = self.machine.load() {
            let (shard, boot) = (self.shard, record.boot);
            let series = LoadSeries { schema: SCHEMA, shard, boot, from_us, step_us, bytes };
            text += &(Line::Load(series).written() + "\n");
        }
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}

#[cfg(test)]
mod tests;
