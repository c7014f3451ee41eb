//! Checks a campaign file and gives it its meaning.

use super::file::{self, File, Time};
use super::{Campaign, Deadlines, Goal, Limits, Load, Places};
use crate::error::{CampaignError, Source, suggest};
use crate::image::Area;
use crate::model::{Family, Model, Victim};
use crate::units::{Seed, Us};
use std::collections::BTreeMap;
use std::path::Path;
use toml::Spanned;

/// Most that a weight can be.
const MOST_WEIGHT: i64 = 1_000_000;

pub(super) fn resolve(
    source: Source,
    file: File,
    folder: &Path,
) -> Result<Campaign, CampaignError> {
    let seed = seed(&source, &file.seed)?;
    let goal = goal(&source, &file)?;
    let models = models(&source, &file)?;
    let deadlines = deadlines(&source, &file.deadlines)?;
    let places = places(file.places, folder);
    Ok(Campaign {
        setup: folder.join(file.setup),
        driver: file.driver,
        front: file.front,
        seed,
        goal,
        load: load(&source, file.load)?,
        deadlines,
        limits: limits(&source, &file.limits)?,
        models,
        places,
        source,
    })
}

fn seed(source: &Source, seed: &Spanned<i64>) -> Result<Seed, CampaignError> {
    u64::try_from(*seed.get_ref()).ok().and_then(Seed::new).ok_or_else(|| {
        source
            .error(seed.span(), format!("seed {} is out of range", seed.get_ref()))
            .help("a seed is a number from 0 to 2^63 - 1")
    })
}

fn goal(source: &Source, file: &File) -> Result<Goal, CampaignError> {
    let (number, goal) = match (&file.faults, &file.activated) {
        (Some(faults), None) => (faults, Goal::Faults(*faults.get_ref())),
        (None, Some(activated)) => (activated, Goal::Activated(*activated.get_ref())),
        (Some(_), Some(both)) => {
            return Err(source.error(both.span(), "`faults` and `activated` are two goals").help(
                "keep one; [limits] faults = N bounds a campaign that counts activated ones",
            ));
        }
        (None, None) => {
            return Err(CampaignError::plain(format!("{} has no goal", source.name))
                .help("write faults = 200, or activated = 200 to count those that were reached"));
        }
    };
    positive(source, number)?;
    Ok(goal)
}

fn positive(source: &Source, number: &Spanned<u64>) -> Result<u64, CampaignError> {
    match *number.get_ref() {
        0 => Err(source
            .error(number.span(), "0 of them is nothing to do")
            .help("write a number from 1 on")),
        number => Ok(number),
    }
}

fn models(source: &Source, file: &File) -> Result<BTreeMap<Model, u32>, CampaignError> {
    let Some(table) = &file.models else {
        let has_front = file.front.is_some();
        let all = Model::ALL.iter().filter(|m| has_front || m.victim() == Victim::Driver);
        return Ok(all.map(|model| (*model, 1)).collect());
    };
    let mut models = BTreeMap::new();
    // Families first: what is said of a model counts more than what is said of its family.
    let is_family = |name: &str| Family::ALL.iter().find(|f| f.name() == name);
    for (name, weight) in table.get_ref() {
        let Some(family) = is_family(name.get_ref()) else { continue };
        let has_front = file.front.is_some();
        let of_it = Model::ALL.iter().filter(|m| m.family() == *family);
        let possible = of_it.filter(|m| has_front || m.victim() == Victim::Driver);
        let weight = self::weight(source, weight)?;
        models.extend(possible.map(|model| (*model, weight)));
    }
    for (name, weight) in table.get_ref() {
        if is_family(name.get_ref()).is_none() {
            models.insert(model(source, file, name)?, self::weight(source, weight)?);
        }
    }
    models.retain(|_, weight| *weight > 0);
    match models.is_empty() {
        true => Err(source
            .error(table.span(), "no fault model has a weight")
            .help("give at least one of them a weight of 1, or leave [models] out for all")),
        false => Ok(models),
    }
}

fn model(source: &Source, file: &File, name: &Spanned<String>) -> Result<Model, CampaignError> {
    let model = name.get_ref().parse::<Model>().map_err(|_| {
        let models = Model::ALL.iter().map(|m| m.name());
        let known = models.chain(Family::ALL.iter().map(|f| f.name()));
        source
            .error(name.span(), format!("there is no fault model `{}`", name.get_ref()))
            .help(suggest(name.get_ref(), known))
    })?;
    if model.victim() == Victim::Front && file.front.is_none() {
        return Err(source
            .error(name.span(), format!("`{model}` needs a guest whose front end misbehaves"))
            .help("name a Rust guest of the set-up: front = \"NAME\""));
    }
    Ok(model)
}

fn weight(source: &Source, weight: &Spanned<i64>) -> Result<u32, CampaignError> {
    let number = *weight.get_ref();
    u32::try_from(number).ok().filter(|_| number <= MOST_WEIGHT).ok_or_else(|| {
        source
            .error(weight.span(), format!("{number} is no weight"))
            .help(format!("a weight is a number from 0 (never) to {MOST_WEIGHT}"))
    })
}

fn load(source: &Source, load: file::Load) -> Result<Load, CampaignError> {
    let within = |number: &Spanned<u32>, most: u32, least: u32| match *number.get_ref() {
        value if (least..=most).contains(&value) => Ok(value),
        value => Err(source
            .error(number.span(), format!("{value} is out of range"))
            .help(format!("write a number from {least} to {most}"))),
    };
    Ok(Load {
        depth: within(&load.depth, 1024, 1)?,
        reads_percent: within(&load.reads_percent, 100, 0)?,
        block_bytes: block(source, &load.block)?,
        integrity: load.integrity,
        guests: load.guests,
    })
}

fn block(source: &Source, text: &Spanned<String>) -> Result<u32, CampaignError> {
    let number = text.get_ref().strip_suffix('K').and_then(|n| n.parse::<u32>().ok());
    number
        .filter(|kib| (4..=1024).contains(kib) && kib.is_multiple_of(4))
        .map(|kib| kib << 10)
        .ok_or_else(|| {
            source
                .error(text.span(), format!("`{}` is no block size", text.get_ref()))
                .help("write a multiple of 4K up to \"1024K\"")
        })
}

fn deadlines(source: &Source, file: &file::Deadlines) -> Result<Deadlines, CampaignError> {
    let us = |time: &Spanned<Time>| match time.get_ref().0 {
        us if us == Us::default() => Err(source
            .error(time.span(), "a deadline of no time is always past")
            .help("write it like \"100ms\"")),
        us => Ok(us),
    };
    let hang = us(&file.hang)?;
    // A heartbeat that is looked at once in a deadline may be two of them old.
    let overdue = file.overdue.as_ref().map(us).transpose()?;
    let overdue = overdue.unwrap_or(hang.plus(hang).plus(Us::new(hang.number() / 2)));
    if overdue <= hang {
        let span = file.overdue.as_ref().map_or(0..0, Spanned::span);
        return Err(source
            .error(span, format!("{overdue} is over before the supervisor's deadline of {hang}"))
            .help("give it more time than `hang`"));
    }
    let window = us(&file.window)?;
    if window <= overdue {
        return Err(source
            .error(
                file.window.span(),
                format!("nothing overdue after {overdue} is seen in {window}"),
            )
            .help("give `window` more time than `overdue` (2.5 times `hang` if not written)"));
    }
    let (spread, activation) = (us(&file.spread)?, us(&file.activation)?);
    let settle = us(&file.settle)?;
    let answer = us(&file.answer)?;
    Ok(Deadlines { hang, answer, overdue, spread, activation, window, settle })
}

fn limits(source: &Source, file: &file::Limits) -> Result<Limits, CampaignError> {
    Ok(Limits {
        faults: file.faults.as_ref().map(|n| positive(source, n)).transpose()?,
        time: file.time.as_ref().map(|time| time.get_ref().0),
        escapes: file.escapes.as_ref().map(|n| positive(source, n)).transpose()?,
    })
}

fn places(file: file::Places, folder: &Path) -> Places {
    let weights = [file.driver, file.back_end, file.runtime, file.library];
    Places {
        areas: Area::ALL.into_iter().zip(weights).collect(),
        only: file.only,
        except: file.except,
        executed: file.executed.map(|path| folder.join(path)),
    }
}
