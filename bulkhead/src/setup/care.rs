//! How a driver domain is looked after: the keys of it, and what they may be.

use super::{SetupError, Source, file, units::Span};
use bulkhead_link::{Care, OnFailure};
use std::ops::RangeInclusive;
use toml::Spanned;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;
/// A heart beats every 20 ms and is looked at every 20 ms: with less than this one that is
/// well may be found dead.
const DEADLINES: RangeInclusive<u64> = 60 * MS..=60 * S;
/// Dom0 remembers each failure within the window.
const MOST_RESTARTS: u32 = 1000;
const WINDOWS: RangeInclusive<u64> = 100 * MS..=3600 * S;

/// Checks what is written, and fills in the rest.
pub(super) fn resolve(source: &Source, written: &file::Care) -> Result<Care, SetupError> {
    let usual = Care::default();
    Ok(Care {
        on_failure: match written.on_failure {
            Some(file::OnFailure::Queue) => OnFailure::Queue,
            Some(file::OnFailure::Fail) => OnFailure::Fail,
            Some(file::OnFailure::Reissue) | None => OnFailure::Reissue,
        },
        hang_deadline_ns: time(
            source,
            ("hang-deadline", "60ms to 60s; 100ms is usual"),
            written.hang_deadline.as_ref(),
            usual.hang_deadline_ns,
            DEADLINES,
        )?,
        answer_deadline_ns: time(
            source,
            ("answer-deadline", "100ms to 3600s; 10s is usual"),
            written.answer_deadline.as_ref(),
            usual.answer_deadline_ns,
            WINDOWS,
        )?,
        restart_limit: limit(source, written.restart_limit.as_ref(), usual.restart_limit)?,
        restart_window_ns: time(
            source,
            ("restart-window", "100ms to 3600s; 10s is usual"),
            written.restart_window.as_ref(),
            usual.restart_window_ns,
            WINDOWS,
        )?,
        refuser: None,
    })
}

/// A time within a range; `told` is its name and the range for a person.
fn time(
    source: &Source,
    told: (&str, &str),
    written: Option<&Spanned<Span>>,
    usual: u64,
    range: RangeInclusive<u64>,
) -> Result<u64, SetupError> {
    let Some(written) = written else {
        return Ok(usual);
    };
    let ns = written.get_ref().ns();
    let (name, help) = told;
    match range.contains(&ns) {
        true => Ok(ns),
        false => Err(source
            .error(written.span(), format!("this `{name}` is out of range"))
            .help(format!("it goes from {help}"))),
    }
}

fn limit(source: &Source, written: Option<&Spanned<u32>>, usual: u32) -> Result<u32, SetupError> {
    match written {
        None => Ok(usual),
        Some(limit) if *limit.get_ref() <= MOST_RESTARTS => Ok(*limit.get_ref()),
        Some(limit) => Err(source
            .error(limit.span(), format!("a `restart-limit` of {} is too high", limit.get_ref()))
            .help(format!(
                "it goes from 0 (quarantine at the first failure) to {MOST_RESTARTS}; {usual} is usual"
            ))),
    }
}
