//! The report of a campaign as files, and how far one has come as a line.

pub use faults::report::html::About;

use super::InjectError;
use faults::{
    CampaignError, Log, Report,
    log::File,
    outcome::Outcome,
    plan::Shard,
    report::{
        html,
        terminal::{self, Style},
    },
    runner::Progress,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// A report and where it is.
#[derive(Debug)]
pub struct Reported {
    pub report: Report,
    /// The files that were written.
    pub files: Vec<PathBuf>,
}

impl Reported {
    /// For a terminal.
    pub fn summary(&self, colour: bool) -> String {
        terminal::summary(&self.report, Style { colour })
    }
}

/// Merges logs of one campaign, and writes one log and its report into a folder.
///
/// # Errors
/// Logs that do not belong together or cannot be read.
pub fn merge(logs: &[PathBuf], out: &Path) -> Result<Reported, InjectError> {
    let files = read(logs)?;
    let log = Log::merge(&files)?;
    let text: String = files.iter().map(|file| whole_lines(&file.text)).collect();
    let about = About {
        subject: "a driver domain".into(),
        command: format!("cargo bulkhead report merge {}", names(logs)),
        replay: "cargo bulkhead inject CAMPAIGN.toml --replay".into(),
    };
    let mut reported = write_report(&log, out, Shard::WHOLE, &about)?;
    let path = out.join("log.jsonl");
    let is_source = |log: &PathBuf| {
        fs::canonicalize(log).ok().is_some_and(|log| fs::canonicalize(&path).ok() == Some(log))
    };
    if !logs.iter().any(is_source) {
        put(&path, &text)?;
        reported.files.insert(0, path);
    }
    Ok(reported)
}

/// Reads logs of one campaign.
///
/// # Errors
/// As for [`merge`].
pub fn show(logs: &[PathBuf]) -> Result<Report, InjectError> {
    Ok(Report::new(&Log::merge(&read(logs)?)?))
}

/// Writes the report of logs beside them.
pub(super) fn write(
    logs: &[PathBuf],
    out: &Path,
    shard: Shard,
    about: &About,
) -> Result<Reported, InjectError> {
    let log = Log::merge(&read(logs)?)?;
    let mut reported = write_report(&log, out, shard, about)?;
    reported.files.splice(0..0, logs.iter().cloned());
    Ok(reported)
}

fn write_report(
    log: &Log,
    out: &Path,
    shard: Shard,
    about: &About,
) -> Result<Reported, InjectError> {
    let report = Report::new(log);
    let suffix = match shard {
        Shard::WHOLE => String::new(),
        shard => format!("-{}", shard.to_string().replace('/', "-of-")),
    };
    let json = out.join(format!("report{suffix}.json"));
    let page = out.join(format!("report{suffix}.html"));
    fs::create_dir_all(out).map_err(|error| unwritable(out, &error))?;
    put(&json, &(report.json() + "\n"))?;
    put(&page, &html::page(&report, about))?;
    Ok(Reported { report, files: vec![json, page] })
}

fn read(logs: &[PathBuf]) -> Result<Vec<File>, CampaignError> {
    logs.iter().map(|log| File::read(log)).collect()
}

/// A file's text without a last line that was cut off.
fn whole_lines(text: &str) -> &str {
    text.rfind('\n').map_or("", |end| &text[..=end])
}

fn names(logs: &[PathBuf]) -> String {
    logs.iter().map(|log| log.display().to_string()).collect::<Vec<_>>().join(" ")
}

fn put(path: &Path, text: &str) -> Result<(), InjectError> {
    fs::write(path, text).map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &std::io::Error) -> InjectError {
    CampaignError::plain(format!("cannot write {}: {error}", path.display()))
        .help("give another folder with --out DIR")
        .into()
}

/// How far a campaign is: what is left, and how many of each class.
pub(super) fn state(progress: &Progress) -> String {
    let left = progress.remaining().filter(|_| progress.done < progress.goal);
    let left = left.map(|left| format!("{left} left"));
    let count = |outcome: &Outcome| {
        let count = progress.outcomes.get(outcome).copied().unwrap_or(0);
        (count > 0).then(|| format!("{count} {outcome}"))
    };
    let classes = Outcome::ALL.iter().rev().filter_map(count);
    left.into_iter().chain(classes).collect::<Vec<_>>().join(", ")
}
