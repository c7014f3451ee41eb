//! A machine that is none: it answers as its script says, so that a whole campaign can be
//! tried in a moment, and a report be looked at before there is anything to report.

use crate::campaign::Deadlines;
use crate::dice::Dice;
use crate::fault::Fault;
use crate::model::{Family, Model};
use crate::outcome::{Cause, Detected, Load, Observation, Restart};
use crate::record::Record;
use crate::runner::{LoadSamples, Machine, MachineLost, Progress, Surroundings};
use crate::units::{Seed, Us};

/// How long a step of the load's series is.
const STEP: Us = Us::from_ms(100);
/// What the load does in a step if nothing disturbs it: 40 MB/s.
const STEADY: u64 = 4_000_000;

/// What a fault leads to.
#[derive(Clone, Debug)]
pub enum Step {
    /// This is seen.
    Seen(Box<Observation>),
    /// The host loses the machine.
    Lost,
}

impl From<Observation> for Step {
    fn from(seen: Observation) -> Self {
        Self::Seen(Box::new(seen))
    }
}

/// Surroundings in which nothing happens: no interrupt, no time, nobody to look on.
pub struct Quiet;

impl Surroundings for Quiet {
    fn is_interrupted(&mut self) -> bool {
        false
    }
    fn elapsed(&mut self) -> Us {
        Us::default()
    }
    fn progress(&mut self, _: &Progress, _: &Record) {}
}

/// A machine with a script.
pub struct FakeMachine<F> {
    script: F,
    /// Models that it says it cannot inject.
    pub cannot: Vec<Model>,
    /// How often it was booted.
    pub boots: u32,
    /// How often the driver domain was made pristine.
    pub heals: u32,
    /// Every fault, in the order in which they were injected.
    pub injected: Vec<Fault>,
    next: Option<Step>,
    now: Us,
    sampled: Us,
    blackouts: Vec<(Us, Us)>,
}

impl<F: FnMut(&Fault) -> Step> FakeMachine<F> {
    /// Asks `script` what each fault leads to.
    pub const fn new(script: F) -> Self {
        Self {
            script,
            cannot: Vec::new(),
            boots: 0,
            heals: 0,
            injected: Vec::new(),
            next: None,
            now: Us::new(0),
            sampled: Us::new(0),
            blackouts: Vec::new(),
        }
    }

    fn bytes_in(&self, from: Us, to: Us) -> u64 {
        let overlap = |(start, end): &(Us, Us)| (*end).min(to).since((*start).max(from)).number();
        let dark: u64 = self.blackouts.iter().map(overlap).sum();
        let light = STEP.number().saturating_sub(dark);
        // A load is never quite even.
        let noise = 960 + from.number() / STEP.number() * 7919 % 80;
        STEADY * light / STEP.number() * noise / 1000
    }
}

impl<F: FnMut(&Fault) -> Step> Machine for FakeMachine<F> {
    fn can_inject(&self, model: Model) -> bool {
        !self.cannot.contains(&model)
    }

    fn boot(&mut self) -> Result<(), MachineLost> {
        self.boots += 1;
        (self.now, self.sampled) = (Us::default(), Us::default());
        self.blackouts.clear();
        Ok(())
    }

    fn inject(&mut self, fault: &Fault) -> Result<Us, MachineLost> {
        assert!(self.boots > 0, "a fault before the first boot");
        self.injected.push(fault.clone());
        self.next = Some((self.script)(fault));
        self.now = self.now.plus(fault.after_us).plus(STEP);
        Ok(self.now)
    }

    fn observe(&mut self, deadlines: &Deadlines) -> Result<Observation, MachineLost> {
        let Some(Step::Seen(seen)) = self.next.take() else {
            return Err(MachineLost("as the script says".into()));
        };
        let from = self.now.plus(seen.activated_us.unwrap_or_default());
        let dark = seen.restarts.iter().map(Restart::blackout).fold(Us::default(), Us::plus);
        self.blackouts.push((from, from.plus(dark)));
        self.now = from.plus(dark).plus(deadlines.window);
        Ok(*seen)
    }

    fn load(&mut self) -> Option<LoadSamples> {
        let from_us = self.sampled;
        let mut bytes = Vec::new();
        while self.sampled.plus(STEP) <= self.now {
            bytes.push(self.bytes_in(self.sampled, self.sampled.plus(STEP)));
            self.sampled = self.sampled.plus(STEP);
        }
        (!bytes.is_empty()).then_some(LoadSamples { from_us, step_us: STEP, bytes })
    }

    fn heal(&mut self) -> Result<bool, MachineLost> {
        self.heals += 1;
        Ok(true)
    }
}

/// A script that makes up what could be: most faults come to nothing or are recovered
/// from, a few are not. For samples of reports.
pub fn made_up(seed: Seed) -> impl FnMut(&Fault) -> Step {
    let mut count = 0;
    move |fault| {
        count += 1;
        invent(fault, &mut Dice::new(seed, count)).into()
    }
}

fn invent(fault: &Fault, dice: &mut Dice) -> Observation {
    let mut seen = Observation { serving: true, ..Observation::default() };
    let unreached = if fault.model.family() == Family::Binary { 35 } else { 2 };
    if dice.below(100) < unreached {
        return seen;
    }
    seen.activated_us = Some(Us::new(dice.below(20_000)));
    match dice.below(1000) {
        0..=279 => {}
        280..=979 => recover(&mut seen, fault.model, dice),
        980..=985 => {
            recover(&mut seen, fault.model, dice);
            seen.load.errors = 1 + dice.below(4);
        }
        986..=988 => {
            recover(&mut seen, fault.model, dice);
            seen.serving = false;
        }
        989..=993 => (seen.overdue, seen.serving) = (true, false),
        994..=998 => seen.load = Load { stale: dice.below(2), wrong: 1, ..Load::default() },
        _ => seen.others = vec!["guest `reader` crashed: made up".into()],
    }
    seen
}

fn recover(seen: &mut Observation, model: Model, dice: &mut Dice) {
    let cause = match (model, dice.below(10)) {
        (Model::Hang | Model::Never | Model::LostInterrupt, _) => Cause::Hang,
        (model, _) if model.family() == Family::Interface => Cause::Violation,
        (_, 0) => Cause::Hang,
        _ => Cause::Crash,
    };
    let mut between = |low, high| Us::new(dice.between(low, high).into());
    let detect_us = match cause {
        Cause::Hang => between(100_000, 200_000),
        _ => between(20, 400),
    };
    let restart = Restart {
        cause,
        detect_us,
        teardown_us: between(150, 900),
        rebuild_us: between(900, 2_600),
        device_us: between(300, 1_400),
        first_response_us: between(80, 700),
    };
    let reason = format!("{} (made up)", cause.name());
    seen.detected = Some(Detected { cause, after_us: detect_us, reason });
    seen.restarts = vec![restart];
}
