//! Logs: JSON Lines files, one line for each fault; and the merging of several.

use crate::error::CampaignError;
use crate::plan::{Plan, Shard};
use crate::record::{Line, LoadSeries, Record};
use crate::units::{Hash, Seed};
use std::collections::BTreeMap;
use std::path::Path;

/// The lines of one campaign, whatever files they were in.
#[derive(Clone, Debug)]
pub struct Log {
    /// What all lines agree on.
    pub identity: Identity,
    /// The faults, by number.
    pub records: BTreeMap<u64, Record>,
    /// What the load did.
    pub load: Vec<LoadSeries>,
    /// What a person should know about the merging: lines that were cut off or came twice.
    pub notes: Vec<String>,
}

/// What tells one campaign on one build from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What its faults are drawn from.
    pub seed: Seed,
    /// The campaign's hash.
    pub campaign: Hash,
    /// The driver domain's hash.
    pub image: Hash,
}

impl Identity {
    /// That of a plan.
    pub const fn of(plan: &Plan) -> Self {
        Self { seed: plan.seed(), campaign: plan.identity(), image: plan.image().hash() }
    }

    const fn of_record(record: &Record) -> Self {
        Self { seed: record.seed, campaign: record.campaign, image: record.image }
    }

    /// What differs, in words.
    fn difference(&self, other: &Self) -> Option<String> {
        if self.seed != other.seed {
            Some(format!("their seeds are {} and {}", self.seed, other.seed))
        } else if self.campaign != other.campaign {
            Some("their models, weights or places differ".into())
        } else if self.image != other.image {
            let (one, other) = (self.image.short(), other.image.short());
            Some(format!("they ran different builds of the driver domain ({one} and {other})"))
        } else {
            None
        }
    }
}

/// One file's text with its name.
#[derive(Clone, Debug)]
pub struct File {
    /// What the user calls it.
    pub name: String,
    /// All of it.
    pub text: String,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(path: &Path) -> Result<Self, CampaignError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| {
            CampaignError::plain(format!("cannot read the log {name}: {e}"))
                .help("give the JSON Lines file of a campaign")
        })?;
        Ok(Self { name, text })
    }
}

impl Log {
    /// Merges files of one campaign: the shards of it, or one that was continued.
    ///
    /// A fault that was run more than once counts as it went the worst time. The last
    /// line of a file may be cut off, since a machine can stop at any moment.
    ///
    /// # Errors
    /// Files of different campaigns, a damaged line, or no fault at all.
    pub fn merge(files: &[File]) -> Result<Self, CampaignError> {
        let mut merging = Merging::default();
        for file in files {
            merging.add(file)?;
        }
        let Some((identity, _)) = merging.identity else {
            return Err(CampaignError::plain("there is no fault in these logs")
                .help("give the JSON Lines files that a campaign has written"));
        };
        if merging.again > 0 {
            merging.notes.push(format!(
                "{} faults were run more than once; the worst of each counts",
                merging.again
            ));
        }
        merging.load.sort_by_key(|series| (series.shard, series.boot, series.from_us));
        merging.load.dedup();
        let Merging { records, load, notes, .. } = merging;
        Ok(Self { identity, records, load, notes })
    }

    /// Refuses to go on with a log of another campaign.
    ///
    /// # Errors
    /// What differs.
    pub fn check(&self, plan: &Plan) -> Result<(), CampaignError> {
        match self.identity.difference(&Identity::of(plan)) {
            None => Ok(()),
            Some(what) => {
                Err(CampaignError::plain(format!("the log is not of this campaign: {what}"))
                    .help("give another file to write to"))
            }
        }
    }

    /// The numbers below the greatest one that are missing: as ranges, both ends in.
    pub fn missing(&self, shard: Shard) -> Vec<(u64, u64)> {
        let end = self.records.last_key_value().map_or(0, |(number, _)| number + 1);
        let mut gaps: Vec<(u64, u64)> = Vec::new();
        let mut is_gap = false;
        for number in shard.numbers(end) {
            let is_missing = !self.records.contains_key(&number);
            match gaps.last_mut() {
                Some(gap) if is_missing && is_gap => gap.1 = number,
                _ if is_missing => gaps.push((number, number)),
                _ => {}
            }
            is_gap = is_missing;
        }
        gaps
    }
}

#[derive(Default)]
struct Merging {
    /// With the name of the file that it was first seen in.
    identity: Option<(Identity, String)>,
    records: BTreeMap<u64, Record>,
    load: Vec<LoadSeries>,
    notes: Vec<String>,
    again: u64,
}

impl Merging {
    fn add(&mut self, file: &File) -> Result<(), CampaignError> {
        let mut lines = (1..).zip(file.text.split_inclusive('\n')).peekable();
        while let Some((number, line)) = lines.next() {
            if line.trim().is_empty() {
                continue;
            }
            match Line::parse(line) {
                Ok(Line::Fault(record)) => self.add_record(*record, &file.name)?,
                Ok(Line::Load(series)) => self.load.push(series),
                Err(_) if lines.peek().is_none() && !line.ends_with('\n') => {
                    self.notes
                        .push(format!("{}: its last line was cut off and left out", file.name));
                }
                Err(error) => {
                    return Err(CampaignError::plain(format!(
                        "{} line {number}: {error}",
                        file.name
                    ))
                    .help(error.remedy().unwrap_or("take the line out").to_owned()));
                }
            }
        }
        Ok(())
    }

    fn add_record(&mut self, record: Record, file: &str) -> Result<(), CampaignError> {
        let identity = Identity::of_record(&record);
        let (known, first) = self.identity.get_or_insert_with(|| (identity, file.to_owned()));
        if let Some(what) = known.difference(&identity) {
            return Err(CampaignError::plain(format!(
                "{first} and {file} are not of one campaign: {what}"
            ))
            .help("merge the shards of one campaign, run with one build"));
        }
        match self.records.get_mut(&record.number) {
            None => drop(self.records.insert(record.number, record)),
            Some(known) if known.fault != record.fault => {
                return Err(CampaignError::plain(format!(
                    "{file}: fault {} is another one than in {first}, although seed and build agree",
                    record.number
                ))
                .help("one of the files was changed after it was written"));
            }
            Some(known) if *known == record => {}
            Some(known) => {
                self.again += 1;
                if record.outcome > known.outcome {
                    *known = record;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
