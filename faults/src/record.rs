//! One line of a log: a fault and what came of it, with all that is needed to inject it
//! again without the rest of the log.

use crate::error::CampaignError;
use crate::fault::Fault;
use crate::image::Image;
use crate::outcome::{Observation, Outcome};
use crate::plan::Shard;
use crate::units::{Hash, Seed, Us, Va};
use serde::{Deserialize, Serialize};

/// The form of the lines. Fields may be added to it; it changes when one is taken away or
/// comes to mean something else.
pub const SCHEMA: u32 = 1;

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Line {
    /// A fault.
    Fault(Box<Record>),
    /// What the load did meanwhile.
    Load(LoadSeries),
}

/// A fault and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Its number in the campaign.
    pub number: u64,
    /// What the campaign's faults are drawn from.
    pub seed: Seed,
    /// Tells the campaign from others with the same seed.
    pub campaign: Hash,
    /// Tells the driver domain's build from others.
    pub image: Hash,
    /// What was injected.
    pub fault: Fault,
    /// Where, as names.
    pub place: Option<Place>,
    /// The shard whose machine it was in.
    pub shard: Shard,
    /// Which boot of that machine it was in, from 0.
    pub boot: u32,
    /// When it was injected, counted from the start of the load in that boot.
    pub injected_us: Us,
    /// The class of what came of it.
    pub outcome: Outcome,
    /// What was seen.
    pub seen: Observation,
}

/// Where a fault is, as names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The function or object.
    pub symbol: String,
    /// Bytes from its start.
    pub offset: u64,
}

impl Place {
    /// Of an address in an image.
    pub fn of(image: &Image, va: Va) -> Option<Self> {
        let (symbol, offset) = image.place(va)?;
        Some(Self { symbol: symbol.to_owned(), offset })
    }
}

/// What the load did, in steps of equal length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadSeries {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The shard whose machine it was in.
    pub shard: Shard,
    /// Which boot of that machine.
    pub boot: u32,
    /// When the first step began, counted from the start of the load in that boot.
    pub from_us: Us,
    /// How long a step is.
    pub step_us: Us,
    /// Bytes that were answered in each step.
    pub bytes: Vec<u64>,
}

impl Record {
    /// Reads a line that is to be replayed with `image`.
    ///
    /// # Errors
    /// A line that is no fault's, is of another schema or of another build, or does not
    /// fit the image it claims to be for.
    pub fn for_replay(line: &str, image: &Image) -> Result<Self, CampaignError> {
        let Line::Fault(record) = Line::parse(line)? else {
            return Err(CampaignError::plain("this line is no fault's")
                .help("replay a line that begins with {\"kind\":\"fault\""));
        };
        if record.image != image.hash() {
            return Err(CampaignError::plain(format!(
                "fault {} was made for another build of the driver domain ({}; this one is {})",
                record.number,
                record.image.short(),
                image.hash().short(),
            ))
            .help("check out and build the revision that the campaign ran"));
        }
        record.fault.check(image)?;
        Ok(*record)
    }
}

impl Line {
    /// Reads one line.
    ///
    /// # Errors
    /// What is no line of a log, or one of a schema that is not known here.
    pub fn parse(text: &str) -> Result<Self, CampaignError> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let wrong = |error: serde_json::Error| {
            CampaignError::plain(format!("this is no line of a fault campaign's log: {error}"))
                .help("give one whole line of the JSON Lines file that the campaign wrote")
        };
        match serde_json::from_str::<Schema>(text).map_err(wrong)?.schema {
            SCHEMA => serde_json::from_str(text).map_err(wrong),
            other => Err(CampaignError::plain(format!(
                "this line has schema {other}; known here is {SCHEMA}"
            ))
            .help("use the version of the tool that wrote it")),
        }
    }

    /// As it is written, without the end of the line.
    pub fn written(&self) -> String {
        serde_json::to_string(self).expect("a line has text and numbers alone")
    }
}

#[cfg(test)]
mod tests;
