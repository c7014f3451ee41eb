//! The report as one page: no script, nothing from elsewhere, light and dark.

mod bars;
mod curve;
mod plot;
mod sheet;
mod table;
mod time;

pub use sheet::{Card, Sheet, sheet};

use super::Report;
use super::terminal::{interval, thousands};
use crate::outcome::Outcome;
use std::fmt::Write;

const STYLE: &str = include_str!("style.css");

/// What a page says of the campaign beside its figures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// What was tested: "driver domain `disk` of disk.toml".
    pub subject: String,
    /// What was typed to get the figures.
    pub command: String,
    /// What is typed to get one fault again, in front of the line.
    pub replay: String,
}

/// The whole page.
pub fn page(report: &Report, about: &About) -> String {
    let mut page = String::new();
    let w = &mut page;
    open(w, &format!("Fault campaign, seed {}", report.seed));
    header(w, report, about);
    cards(w, report);
    bars::section(w, report);
    if let Some(throughput) = &report.throughput {
        time::section(w, throughput);
    }
    curve::section(w, &report.blackout_us);
    table::failures(w, report, about);
    table::models(w, report);
    footer(w, report);
    close(w);
    page
}

/// All before what is on the page.
fn open(out: &mut String, title: &str) {
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        text(title)
    );
}

fn close(out: &mut String) {
    out.push_str("</main>\n</body>\n</html>\n");
}

fn header(out: &mut String, report: &Report, about: &About) {
    let _ = write!(out, "<header>\n<h1>Fault campaign</h1>\n<p class=\"subject\">");
    if !about.subject.is_empty() {
        let _ = write!(out, "{} &middot; ", text(&about.subject));
    }
    let _ = writeln!(
        out,
        "seed {} &middot; build <code>{}</code></p>",
        report.seed,
        report.image.short()
    );
    if !about.command.is_empty() {
        let _ = writeln!(out, "<pre class=\"command\">{}</pre>", text(&about.command));
    }
    out.push_str("</header>\n");
}

fn cards(out: &mut String, report: &Report) {
    let escape = &report.shares[&Outcome::Escape];
    let corrupt = &report.shares[&Outcome::SilentCorruption];
    let (blackout, hang) = (&report.blackout_us.prompt.all, &report.blackout_us.hang.all);
    out.push_str("<div class=\"cards\">\n");
    card(
        out,
        "activated",
        &thousands(report.activated),
        &format!("of {} faults injected", thousands(report.faults)),
        "",
    );
    card(
        out,
        "escapes",
        &thousands(escape.count),
        &bound(escape.high, escape.of),
        mood(escape.count),
    );
    let coverage = report.coverage;
    let percent = format!("{} %", interval(&coverage).split(" %").next().unwrap_or("-").trim());
    let percent = if coverage.of == 0 { "-".into() } else { percent };
    card(
        out,
        "recovered, not seen",
        &percent,
        &format!("{} of {} detected", thousands(coverage.count), thousands(coverage.of)),
        "",
    );
    card(
        out,
        "silent corruptions",
        &thousands(corrupt.count),
        &bound(corrupt.high, corrupt.of),
        mood(corrupt.count),
    );
    let of =
        |us: crate::units::Us| if blackout.count == 0 { "-".to_owned() } else { us.to_string() };
    let after_hang = if hang.count == 0 { "-".to_owned() } else { hang.p50.to_string() };
    card(
        out,
        "blackout, median",
        &of(blackout.p50),
        &format!("p99 {}; after a hang {}", of(blackout.p99), after_hang),
        "",
    );
    out.push_str("</div>\n");
}

const fn mood(count: u64) -> &'static str {
    if count == 0 { "good" } else { "bad" }
}

fn bound(high: f64, of: u64) -> String {
    match of {
        0 => "none activated".into(),
        _ => format!("at most {:.2} % of those activated", (high * 100.0).max(0.01)),
    }
}

fn card(out: &mut String, name: &str, value: &str, more: &str, mood: &str) {
    let _ = writeln!(
        out,
        "<div class=\"card {mood}\"><div class=\"name\">{}</div><div class=\"value\">{}</div>\
         <div class=\"more\">{}</div></div>",
        text(name),
        text(value),
        text(more)
    );
}

fn footer(out: &mut String, report: &Report) {
    out.push_str("<footer>\n<h2>Reading this page</h2>\n<dl>\n");
    for outcome in Outcome::ALL {
        let _ = writeln!(
            out,
            "<dt><i class=\"chip {}\"></i>{}</dt><dd>{}</dd>",
            outcome.name(),
            outcome.words(),
            about_class(outcome)
        );
    }
    out.push_str("</dl>\n<p>Intervals are Wilson's, of 95 %.</p>\n");
    for (first, last) in &report.missing {
        let _ =
            writeln!(out, "<p class=\"note\">Faults {first} to {last} are missing in the log.</p>");
    }
    for note in &report.notes {
        let _ = writeln!(out, "<p class=\"note\">{}</p>", text(note));
    }
    let _ = writeln!(
        out,
        "<p class=\"hashes\">campaign <code>{}</code> image <code>{}</code></p>\n</footer>",
        report.campaign.short(),
        report.image.short()
    );
}

const fn about_class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::NotActivated => "The code was never reached while the load ran.",
        Outcome::Benign => "It was reached, and nothing came of it.",
        Outcome::RecoveredInvisible => "The failure was noticed; no guest saw an error.",
        Outcome::RecoveredVisible => "The service went on, and a guest saw an error.",
        Outcome::NotRecovered => "The failure was noticed, and the service did not come back.",
        Outcome::Hang => "The service stood still and nothing noticed in time.",
        Outcome::SilentCorruption => {
            "A guest was given wrong data as if it were right. Isolation cannot exclude this: \
             a driver can damage what it is trusted to carry."
        }
        Outcome::Escape => "The core, or a domain that only shares the machine, was affected.",
    }
}

/// Text in HTML or SVG.
fn text(raw: &str) -> String {
    let mut safe = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c if c.is_control() && c != '\n' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests;
