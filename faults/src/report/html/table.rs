//! Tables: the faults to look into, and all counts.

use super::super::Report;
use super::super::terminal::{interval, thousands};
use super::{About, text};
use crate::outcome::Outcome;
use crate::record::{Line, Record};
use std::fmt::Write;

/// Most rows; the log has the rest.
const MOST_ROWS: usize = 200;

/// The faults that no system should have, with what to replay.
pub fn failures(out: &mut String, report: &Report, about: &About) {
    out.push_str("<section>\n<h2>Faults to look into</h2>\n");
    let all: Vec<_> = report.escapes.iter().chain(&report.failures).collect();
    if all.is_empty() {
        out.push_str(
            "<p class=\"none\">None: no escape, no silent corruption, no hang past the deadline, \
             and every failure that was noticed was recovered from.</p>\n</section>\n",
        );
        return;
    }
    out.push_str(
        "<div class=\"wide\"><table>\n<thead><tr><th>class</th><th class=\"n\">fault</th><th>model</th>\
         <th>place and change</th><th>detected by</th></tr></thead>\n<tbody>\n",
    );
    all.iter().take(MOST_ROWS).for_each(|record| row(out, record, about));
    out.push_str("</tbody></table></div>\n");
    if all.len() > MOST_ROWS {
        let more = thousands((all.len() - MOST_ROWS) as u64);
        let _ = writeln!(out, "<p class=\"caption\">{more} more are in the log.</p>");
    }
    out.push_str("</section>\n");
}

fn row(out: &mut String, record: &Record, about: &About) {
    let place = record.place.as_ref().map(|p| format!("{}+{:#x}", p.symbol, p.offset));
    let detected = record.seen.detected.as_ref().map_or("nothing", |d| d.cause.name());
    let line = Line::Fault(Box::new(record.clone())).written();
    let quoted = line.replace('\'', "'\\''");
    let command = match about.replay.as_str() {
        "" => line,
        replay => format!("{replay} '{quoted}'"),
    };
    let _ = writeln!(
        out,
        "<tr><td><i class=\"chip {}\"></i>{}</td><td class=\"n\">{}</td><td>{}</td>\
         <td><div class=\"place\">{}</div><div class=\"dim\">{}</div>\
         <details><summary>replay</summary><pre>{}</pre></details></td><td>{detected}</td></tr>",
        record.outcome.name(),
        record.outcome.words(),
        record.number,
        record.fault.model,
        text(&place.unwrap_or_default()),
        text(&consequence(record)),
        text(&command),
    );
}

/// What was changed, and what was seen of it.
fn consequence(record: &Record) -> String {
    let mut words = vec![record.fault.what()];
    words.extend(record.seen.core.iter().map(|last| format!("core: {last}")));
    words.extend(record.seen.others.iter().cloned());
    let load = &record.seen.load;
    for (count, name) in [
        (load.wrong, "wrong"),
        (load.stale, "stale"),
        (load.torn, "torn"),
        (load.misdirected, "misdirected"),
        (load.errors, "answered with an error"),
    ] {
        if count > 0 {
            words.push(format!("{count} {name}"));
        }
    }
    words.join("; ")
}

/// Every count, for those who want to compute with them.
pub fn models(out: &mut String, report: &Report) {
    out.push_str(
        "<section>\n<details class=\"all\"><summary>All counts by model</summary>\n<div class=\"wide\">\
         <table>\n<thead><tr><th>model</th>",
    );
    for outcome in Outcome::ALL {
        let _ = write!(out, "<th class=\"n\">{}</th>", outcome.words());
    }
    out.push_str("<th class=\"n\">nothing seen by guests</th></tr></thead>\n<tbody>\n");
    for model in report.models().flat_map(|(_, models)| models) {
        let _ = write!(out, "<tr><td title=\"{}\">{model}</td>", text(model.about()));
        for outcome in Outcome::ALL {
            match report.by_model[&model].get(&outcome).copied().unwrap_or(0) {
                0 => out.push_str("<td class=\"n dim\">&middot;</td>"),
                count => drop(write!(out, "<td class=\"n\">{}</td>", thousands(count))),
            }
        }
        let _ = writeln!(out, "<td class=\"n\">{}</td></tr>", interval(&report.unseen[&model]));
    }
    out.push_str("</tbody><tfoot><tr><td>all</td>");
    for outcome in Outcome::ALL {
        let _ = write!(out, "<td class=\"n\">{}</td>", thousands(report.count(outcome)));
    }
    out.push_str("<td></td></tr></tfoot></table></div>\n</details>\n</section>\n");
}
