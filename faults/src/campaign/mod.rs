//! Campaign files: one TOML file says which set-up runs, what is broken how often, and
//! how long is waited for what comes of it. Reads and checks the text alone.

mod file;
mod resolve;
#[cfg(test)]
mod tests;

use crate::error::{CampaignError, Source, suggest};
use crate::image::Area;
use crate::model::Model;
use crate::units::{Hash, Seed, Us};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Changes when a seed comes to mean other faults.
const PLAN_VERSION: u32 = 1;

/// A campaign file, checked.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The file's text, for errors found later.
    pub source: Source,
    /// The set-up file that runs.
    pub setup: PathBuf,
    /// The driver domain under test.
    pub driver: String,
    /// The guest whose front end misbehaves, for the models that need one.
    pub front: Option<String>,
    /// What the faults are drawn from.
    pub seed: Seed,
    /// When it is over.
    pub goal: Goal,
    /// What the guests do meanwhile.
    pub load: Load,
    /// How long is waited for what.
    pub deadlines: Deadlines,
    /// When it is over before its goal.
    pub limits: Limits,
    /// The chosen models with their weights, none of which is 0.
    pub models: BTreeMap<Model, u32>,
    /// Where binary faults are placed.
    pub places: Places,
}

/// What is counted until a campaign is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// So many faults injected.
    Faults(u64),
    /// So many faults activated.
    Activated(u64),
}

/// The verifying load in the guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// The guests that it runs in; empty: all that can.
    pub guests: Vec<String>,
    /// Requests in flight in each.
    pub depth: u32,
    /// Bytes of each request at most.
    pub block_bytes: u32,
    /// How many in a hundred are reads.
    pub reads_percent: u32,
    /// Their front ends keep a checksum of every block.
    pub integrity: bool,
}

/// How long is waited for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// The supervisor's: a heartbeat that is older is a hang.
    pub hang: Us,
    /// The supervisor's: requests that are not answered for longer are a hang, too.
    pub answer: Us,
    /// The load may stand still for so long before something notices; longer is overdue.
    pub overdue: Us,
    /// A fault is injected at a random instant of this time after the load runs steadily.
    pub spread: Us,
    /// A fault that is not activated in this time is taken out again.
    pub activation: Us,
    /// What comes of a fault is watched for at most so long after its activation.
    pub window: Us,
    /// Where all has gone well for so long, nothing more is waited for.
    pub settle: Us,
}

/// When a campaign is over before its goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Faults injected at most.
    pub faults: Option<u64>,
    /// Time on the wall.
    pub time: Option<Us>,
    /// So many escapes; the machine is kept as it is after the last one.
    pub escapes: Option<u64>,
}

/// Where binary faults are placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// How likely each area's code is, whatever its size.
    pub areas: BTreeMap<Area, u32>,
    /// Functions whose path starts so; empty: all.
    pub only: Vec<String>,
    /// Functions whose path starts so are left out.
    pub except: Vec<String>,
    /// A file of addresses that were executed under load, one in hexadecimal per line:
    /// others are left out, since they would not be activated.
    pub executed: Option<PathBuf>,
}

impl Campaign {
    /// Reads a campaign file.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place in the text.
    pub fn load(path: &Path) -> Result<Self, CampaignError> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            CampaignError::plain(format!("cannot read the campaign file {}: {e}", path.display()))
                .help("give the path of a TOML file; examples/campaigns/disk.toml is one to start from")
        })?;
        let name = path.display().to_string();
        Self::parse(Source { name, text }, path.parent().unwrap_or(Path::new(".")))
    }

    /// As [`Campaign::load`], for text. Relative paths in it start at `folder`.
    ///
    /// # Errors
    /// See [`Campaign::load`].
    pub fn parse(source: Source, folder: &Path) -> Result<Self, CampaignError> {
        match toml::from_str(&source.text) {
            Ok(file) => resolve::resolve(source, file, folder),
            Err(error) => Err(toml_error(&source, &error)),
        }
    }

    /// What must agree for two logs to be of one campaign: the seed, the models and the
    /// places. Deadlines, limits and the goal may differ: fault `n` is the same.
    pub fn identity(&self) -> Hash {
        let places = &self.places;
        let (only, except, executed) = (&places.only, &places.except, places.executed.is_some());
        let which = (PLAN_VERSION, self.seed, &self.models, &places.areas);
        // Integrity changes no fault, but what comes of each: such logs do not mix.
        let all = (
            which,
            (only, except, executed),
            &self.driver,
            self.deadlines.spread,
            self.load.integrity,
        );
        Hash::of(&serde_json::to_vec(&all).expect("names and numbers can be written"))
    }
}

fn toml_error(source: &Source, error: &toml::de::Error) -> CampaignError {
    let found = source.error(error.span().unwrap_or(0..0), error.message().trim());
    match unknown_field(error.message()) {
        Some((wrong, known)) => found.help(suggest(wrong, known.iter().copied())),
        None => found.help("docs/fault-injection.md lists every key with its type"),
    }
}

/// The name and the known names from serde's "unknown field `x`, expected one of `a`, `b`".
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.trim().strip_prefix("unknown field ")?;
    let mut names = rest.split('`').skip(1).step_by(2);
    Some((names.next()?, names.collect()))
}
