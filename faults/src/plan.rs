//! Which faults a campaign consists of: from a seed and an image to fault `n`.
//!
//! Fault `n` is drawn from a stream of numbers of its own, so nothing that happens to
//! other faults shifts it, and any part of a campaign can be run alone.

use crate::binary::{Mutator, Variant};
use crate::campaign::Campaign;
use crate::dice::Dice;
use crate::error::CampaignError;
use crate::fault::{Action, Dose, Fault, Patch, Register, Target};
use crate::image::{Area, Code, Image, is_in};
use crate::model::{Family, Model};
use crate::units::{Bytes, Hash, Seed, Us, Va};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// Most answers, requests or interrupts that go right before one goes wrong.
const MOST_SKIPPED: u32 = 63;

/// The faults of a campaign for one build of its driver domain.
#[derive(Debug)]
pub struct Plan {
    seed: Seed,
    identity: Hash,
    image: Image,
    code: Code,
    models: Vec<(Model, u32)>,
    /// For each model that changes code: the areas where it can, with their weights and
    /// the instructions.
    places: BTreeMap<Model, Vec<Place>>,
    spread: Us,
}

#[derive(Debug)]
struct Place {
    weight: u32,
    /// Indices into the sites of the code; none of them is without a variant for sure,
    /// but one at least has one.
    sites: Vec<u32>,
}

impl Plan {
    /// Finds the places for every model of a campaign in an image.
    ///
    /// # Errors
    /// A model for which there is no place, or an unreadable list of executed addresses.
    pub fn new(campaign: &Campaign, image: Image) -> Result<Self, CampaignError> {
        let (executed, listed) = match &campaign.places.executed {
            Some(path) => read_executed(path).map(|(set, hash)| (Some(set), Some(hash)))?,
            None => (None, None),
        };
        let identity = [Some(campaign.identity()), listed];
        let identity = serde_json::to_vec(&identity).expect("hashes can be written");
        let code = Code::decode(&image);
        let mut plan = Self {
            seed: campaign.seed,
            identity: Hash::of(&identity),
            image,
            code,
            models: campaign.models.iter().map(|(model, weight)| (*model, *weight)).collect(),
            places: BTreeMap::new(),
            spread: campaign.deadlines.spread,
        };
        let sites = plan.allowed_sites(campaign, executed.as_ref());
        for &model in campaign.models.keys() {
            plan.find_places(campaign, model, &sites)?;
        }
        Ok(plan)
    }

    fn allowed_sites(&self, campaign: &Campaign, executed: Option<&BTreeSet<u64>>) -> Vec<u32> {
        let places = &campaign.places;
        let among = |name: &str, list: &[String]| list.iter().any(|prefix| is_in(name, prefix));
        let is_allowed = |name: &str| {
            (places.only.is_empty() || among(name, &places.only)) && !among(name, &places.except)
        };
        let sites = (0..).zip(self.code.sites());
        sites
            .filter(|(_, site)| {
                executed.is_none_or(|set| set.contains(&site.va().number()))
                    && is_allowed(&self.code.function(site).name)
            })
            .map(|(index, _)| index)
            .collect()
    }

    fn find_places(
        &mut self,
        campaign: &Campaign,
        model: Model,
        sites: &[u32],
    ) -> Result<(), CampaignError> {
        if model == Model::DataBitFlip || model.family() != Family::Binary {
            return Ok(());
        }
        let mut mutator = Mutator::new(&self.code);
        let mut by_area: BTreeMap<Area, Vec<u32>> = BTreeMap::new();
        for &index in sites {
            if mutator.is_candidate(model, index as usize) {
                let area = self.code.function(&self.code.sites()[index as usize]).area;
                by_area.entry(area).or_default().push(index);
            }
        }
        let places: Vec<_> = by_area
            .into_iter()
            .map(|(area, sites)| Place { weight: campaign.places.areas[&area], sites })
            .filter(|place| place.weight > 0 && place.is_possible(model, &mut mutator))
            .collect();
        if places.is_empty() {
            return Err(CampaignError::plain(format!("there is no place for `{model}`")).help(
                "allow more of the driver's functions in [places], or give the model weight 0",
            ));
        }
        self.places.insert(model, places);
        Ok(())
    }

    /// What must agree for two logs to be of one campaign.
    pub const fn identity(&self) -> Hash {
        self.identity
    }

    /// What the faults are drawn from.
    pub const fn seed(&self) -> Seed {
        self.seed
    }

    /// The build that the faults are for.
    pub const fn image(&self) -> &Image {
        &self.image
    }

    /// The models that it draws from.
    pub fn models(&self) -> impl Iterator<Item = Model> {
        self.models.iter().map(|(model, _)| *model)
    }

    /// Fault `number`. There is one for every number.
    pub fn fault(&self, number: u64) -> Fault {
        let mut dice = Dice::new(self.seed, number);
        let (model, _) = self.models[dice.weighted(self.models.iter().map(|(_, weight)| *weight))];
        let after_us = Us::new(dice.below(self.spread.number()));
        let action = match model {
            Model::DataBitFlip => self.flip_memory(&mut dice),
            Model::RegisterBitFlip => self.flip_register(&mut dice),
            _ if model.is_patch() => self.patch(model, &mut dice),
            _ => Action::Misbehave(dose(model, &mut dice)),
        };
        Fault { model, after_us, action }
    }

    fn patch(&self, model: Model, dice: &mut Dice) -> Action {
        let mut mutator = Mutator::new(&self.code);
        let (site, variants) = self.site(model, dice, |site| mutator.variants(model, site));
        let Variant { new, what } = variants[dice.index(variants.len())].clone();
        let site = &self.code.sites()[site];
        Action::Patch(Patch { va: site.va(), old: Bytes(site.bytes.clone()), new, what })
    }

    fn flip_register(&self, dice: &mut Dice) -> Action {
        let (site, _) = self.site(Model::RegisterBitFlip, dice, |_| vec![()]);
        let site = &self.code.sites()[site];
        Action::FlipRegister {
            va: site.va(),
            old: Bytes(site.bytes.clone()),
            register: Register::ALL[dice.index(Register::ALL.len())],
            bit: dice.below(64) as u8,
        }
    }

    /// An instruction that a model has variants for: from a random one on, the first.
    fn site<T>(
        &self,
        model: Model,
        dice: &mut Dice,
        mut variants: impl FnMut(usize) -> Vec<T>,
    ) -> (usize, Vec<T>) {
        let places = &self.places[&model];
        let place = &places[dice.weighted(places.iter().map(|place| place.weight))];
        let start = dice.index(place.sites.len());
        let from_start = place.sites[start..].iter().chain(&place.sites[..start]);
        from_start
            .map(|site| (*site as usize, variants(*site as usize)))
            .find(|(_, variants)| !variants.is_empty())
            .expect("a place without any variant was left out of the plan")
    }

    fn flip_memory(&self, dice: &mut Dice) -> Action {
        let statics = self.image.statics();
        let share = dice.below(1 << 32) as u32;
        let target = match dice.below(if statics.is_empty() { 2 } else { 3 }) {
            0 => Target::Heap { share },
            1 => Target::Stack { share },
            _ => Target::Static { va: self.static_byte(dice) },
        };
        Action::FlipMemory { target, bit: dice.below(8) as u8 }
    }

    fn static_byte(&self, dice: &mut Dice) -> Va {
        let statics = self.image.statics();
        let mut offset = dice.below(statics.iter().map(|range| range.end - range.start).sum());
        for range in statics {
            match offset.checked_sub(range.end - range.start) {
                Some(rest) => offset = rest,
                None => return Va::new(range.start + offset),
            }
        }
        unreachable!("the draw is below the sum of the lengths")
    }
}

impl Place {
    fn is_possible(&self, model: Model, mutator: &mut Mutator) -> bool {
        model == Model::RegisterBitFlip
            || self.sites.iter().any(|site| !mutator.variants(model, *site as usize).is_empty())
    }
}

/// How much of a misbehaviour: docs/fault-injection.md has the table.
fn dose(model: Model, dice: &mut Dice) -> Dose {
    let skip = dice.between(0, MOST_SKIPPED);
    let times = match model {
        Model::Early | Model::FrontEarly | Model::NoEvent | Model::FrontNoEvent => (1, 16),
        Model::Late | Model::FrontLate | Model::SpuriousInterrupt => (1, 64),
        Model::LostInterrupt => (1, 4),
        Model::StuckStatus | Model::Slow | Model::FrontNever => (0, 0),
        _ => (1, 1),
    };
    let times = dice.between(times.0, times.1);
    let amount = match model {
        Model::WrongId => dice.between(1, 1023),
        // Farther ahead than the largest ring has slots.
        Model::AbsurdProducer | Model::FrontAbsurdProducer => dice.between(513, i32::MAX as u32),
        Model::EventStorm | Model::FrontEventStorm => dice.between(1_000, 100_000),
        Model::WrongDmaAddress => dice.between(1, 64) * 4096,
        _ => 0,
    };
    let delay_us = match model {
        Model::Late | Model::FrontLate => Us::from_ms(dice.between(1, 50).into()),
        Model::Slow => Us::new(dice.between(100, 20_000).into()),
        _ => Us::default(),
    };
    Dose { skip, times, amount, delay_us }
}

fn read_executed(path: &Path) -> Result<(BTreeSet<u64>, Hash), CampaignError> {
    let about = |what: String| {
        CampaignError::plain(format!("the list of executed addresses {}: {what}", path.display()))
            .help("it has one address in hexadecimal per line; without `executed` all code is used")
    };
    let text = std::fs::read_to_string(path).map_err(|e| about(e.to_string()))?;
    let mut set = BTreeSet::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line = line.trim();
        let address = u64::from_str_radix(line.trim_start_matches("0x"), 16);
        set.insert(address.map_err(|_| about(format!("line {}: `{line}`", number + 1)))?);
    }
    Ok((set, Hash::of(text.as_bytes())))
}

/// Every `of`th fault, from `index` on: what one machine runs of a campaign. Written
/// `K/N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shard {
    index: u64,
    of: u64,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 0, of: 1 };

    /// `None` unless `index < of`.
    pub const fn new(index: u64, of: u64) -> Option<Self> {
        if index < of { Some(Self { index, of }) } else { None }
    }

    /// The numbers of its faults below `end`.
    pub fn numbers(self, end: u64) -> impl Iterator<Item = u64> {
        (self.index..end).step_by(usize::try_from(self.of).unwrap_or(usize::MAX))
    }

    /// Its part of a number that all shards reach together.
    pub const fn part(self, whole: u64) -> u64 {
        whole / self.of + if self.index < whole % self.of { 1 } else { 0 }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

impl TryFrom<String> for Shard {
    type Error = CampaignError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for Shard {
    type Err = CampaignError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text
            .split_once('/')
            .and_then(|(index, of)| Self::new(index.parse().ok()?, of.parse().ok()?));
        numbers.ok_or_else(|| {
            CampaignError::plain(format!("`{text}` is no shard"))
                .help("write K/N with K from 0 to N - 1: 0/4, 1/4, 2/4 and 3/4 make a whole")
        })
    }
}

#[cfg(test)]
mod tests;
