//! The report as text: aligned, with bars, for a terminal or a commit message; and the
//! line that tells how far a running campaign is.

use super::{Blackout, Blackouts, Report};
use crate::outcome::Outcome;
use crate::runner::Progress;
use crate::statistics::Share;
use crate::units::Us;
use std::fmt::Write;

/// Characters of a bar.
const BAR: usize = 24;

/// Most faults that are listed.
const MOST_LINES: usize = 10;

/// How text is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether the terminal shows colours.
    pub colour: bool,
}

/// The summary, several lines.
pub fn summary(report: &Report, style: Style) -> String {
    let mut out = String::new();
    let w = &mut out;
    line(
        w,
        &format!(
            "seed {}: {} faults, {} activated, {} detected",
            report.seed,
            thousands(report.faults),
            thousands(report.activated),
            thousands(report.detected)
        ),
    );
    outcomes(w, report, style);
    line(
        w,
        &format!(
            "\nOf {} detected failures {} were recovered with nothing visible: {}",
            thousands(report.coverage.of),
            thousands(report.coverage.count),
            interval(&report.coverage),
        ),
    );
    models(w, report, style);
    blackouts(w, &report.blackout_us);
    failures(w, report);
    missing(w, &report.missing);
    report.notes.iter().for_each(|note| line(w, &format!("note: {note}")));
    out
}

/// One shard of many misses every other number: gaps are counted, not listed.
fn missing(out: &mut String, gaps: &[(u64, u64)]) {
    let ([(first, _), ..], [.., (_, last)]) = (gaps, gaps) else { return };
    let count: u64 = gaps.iter().map(|(first, last)| last - first + 1).sum();
    let which = match gaps.len() {
        1 => format!("faults {first} to {last}"),
        _ => format!("{} faults between {first} and {last}", thousands(count)),
    };
    line(out, &format!("missing: {which} are in none of the logs"));
}

fn line(out: &mut String, text: &str) {
    out.push_str(text.trim_end_matches(' '));
    out.push('\n');
}

fn outcomes(out: &mut String, report: &Report, style: Style) {
    line(out, "");
    for outcome in Outcome::ALL {
        let share = &report.shares[&outcome];
        let bar = paint(&bar(share.share), outcome, style);
        line(
            out,
            &format!(
                "  {:<28}{:>8}  {:<24}{bar}",
                outcome.words(),
                thousands(share.count),
                interval(share)
            ),
        );
    }
    line(out, "  (not activated: share of all faults; the others: share of those activated)");
}

fn models(out: &mut String, report: &Report, style: Style) {
    for (family, models) in report.models() {
        line(
            out,
            &format!(
                "\n{:<24}{:>9}  {:<26}{}",
                family.name(),
                "activated",
                "nothing seen by guests",
                "worst class"
            ),
        );
        for model in models {
            let share = &report.unseen[&model];
            let mut worst = report.by_model[&model].iter().rev();
            let worst = worst.find(|(o, count)| **count > 0 && **o > Outcome::RecoveredInvisible);
            let worst = worst.map_or(String::new(), |(outcome, count)| {
                paint(&format!("{} ({count})", outcome.words()), *outcome, style)
            });
            line(
                out,
                &format!(
                    "  {:<22}{:>9}  {:<26}{worst}",
                    model.name(),
                    thousands(share.of),
                    interval(share)
                ),
            );
        }
    }
}

/// Blackouts with their phases, as a table of several lines.
pub fn blackouts(out: &mut String, blackouts: &Blackouts) {
    blackout(out, "blackout", &blackouts.prompt);
    blackout(out, "blackout after a hang", &blackouts.hang);
}

fn blackout(out: &mut String, name: &str, blackout: &Blackout) {
    if blackout.all.count == 0 {
        return;
    }
    let name = format!("{name} ({})", thousands(blackout.all.count));
    line(out, &format!("\n{name:<28}{:>10}{:>11}{:>11}{:>11}", "p50", "p90", "p99", "max"));
    let all = ("all of it", blackout.all);
    for (name, spread) in blackout.phases.iter().chain([&all]) {
        let times = [spread.p50, spread.p90, spread.p99, spread.max].map(|us| us.to_string());
        let [a, b, c, d] = times;
        line(out, &format!("  {name:<26}{a:>10}{b:>11}{c:>11}{d:>11}"));
    }
}

fn failures(out: &mut String, report: &Report) {
    let lines: Vec<_> = report.escapes.iter().chain(&report.failures).collect();
    if lines.is_empty() {
        return line(out, "\nno escape, nothing lost: there is no fault to look into");
    }
    line(out, "\nto look into");
    for record in lines.iter().take(MOST_LINES) {
        let place = record.place.as_ref().map(|p| format!("{}+{:#x}", p.symbol, p.offset));
        line(
            out,
            &format!(
                "  {:<18}fault {:<8} {:<22}{}",
                record.outcome.name(),
                record.number,
                record.fault.model,
                place.unwrap_or_default()
            ),
        );
        line(out, &format!("  {:<18}{}", "", record.fault.what()));
    }
    if let Some(more) = lines.len().checked_sub(MOST_LINES).filter(|more| *more > 0) {
        line(out, &format!("  and {more} more: see the page, or the log"));
    }
}

/// A share with its interval: `99.4 %  [97.9, 99.8]`.
pub fn interval(share: &Share) -> String {
    if share.of == 0 {
        return "-".into();
    }
    let percent = |value: f64| digits(value * 100.0);
    format!("{:>5} %  [{}, {}]", percent(share.share), percent(share.low), percent(share.high))
}

/// As many digits as tell something: 100, 99.95, 12.3, 0.04.
fn digits(percent: f64) -> String {
    let near_an_end = percent.min(100.0 - percent);
    match near_an_end {
        end if end <= 0.0 => format!("{percent:.0}"),
        end if end < 0.1 => format!("{percent:.3}"),
        end if end < 1.0 => format!("{percent:.2}"),
        _ => format!("{percent:.1}"),
    }
}

/// A number with its thousands apart: 10,412.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Blocks in eighths; something that is not nothing has at least one.
fn bar(share: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share * (BAR * 8) as f64).round() as usize;
    let eighths = eighths.max(usize::from(share > 0.0));
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

fn paint(text: &str, outcome: Outcome, style: Style) -> String {
    let colour = match outcome {
        Outcome::NotActivated => 90,
        Outcome::Benign => 36,
        Outcome::RecoveredInvisible => 32,
        Outcome::RecoveredVisible => 33,
        Outcome::NotRecovered | Outcome::Hang => 35,
        Outcome::SilentCorruption | Outcome::Escape => 31,
    };
    match style.colour && !text.is_empty() {
        true => format!("\x1b[{colour}m{text}\x1b[0m"),
        false => text.to_owned(),
    }
}

/// How far a campaign is, in one line of at most `width` characters.
pub fn progress(progress: &Progress, width: usize) -> String {
    let share = progress.done as f64 / progress.goal.max(1) as f64;
    let filled = ((share * BAR as f64) as usize).min(BAR);
    let bar = "█".repeat(filled) + &"░".repeat(BAR - filled);
    let mut text = format!(
        "{bar} {}/{} {:.0} %",
        thousands(progress.done),
        thousands(progress.goal),
        (share * 100.0).min(100.0)
    );
    if let Some(rest) = progress.remaining().filter(|_| progress.done < progress.goal) {
        let _ = write!(text, "  {} left", roughly(rest));
    }
    let bad: Vec<_> = progress.outcomes.iter().filter(|(o, _)| o.is_failure()).collect();
    for (outcome, count) in bad.into_iter().rev() {
        let _ = write!(text, "  {count} {}", outcome.name());
    }
    text.chars().take(width).collect()
}

/// A time that a person waits for.
fn roughly(us: Us) -> String {
    match us.number() / 1_000_000 {
        seconds @ 0..100 => format!("{seconds} s"),
        seconds @ 100..6_000 => format!("{} min", seconds / 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_234_567), "1,234,567");
        assert_eq!(interval(&Share::new(0, 10_000)), "    0 %  [0, 0.038]");
        assert_eq!(interval(&Share::new(81, 263)), " 30.8 %  [25.5, 36.6]");
        assert_eq!(interval(&Share::new(0, 0)), "-");
    }

    #[test]
    fn one_of_many_is_still_seen_in_a_bar() {
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(0.000_01), "▏");
        assert_eq!(bar(1.0), "█".repeat(BAR));
    }

    #[test]
    fn progress_tells_what_is_left_and_what_went_wrong() {
        let outcomes = [(Outcome::Benign, 40), (Outcome::Escape, 1)].into();
        let elapsed = Us::from_ms(60_000);
        let at = Progress { done: 50, goal: 1000, before: 0, outcomes, elapsed };
        let line = progress(&at, 200);
        assert!(line.starts_with("█░░"), "{line}");
        assert!(line.ends_with("50/1,000 5 %  19 min left  1 escape"), "{line}");
        assert_eq!(progress(&at, 20).chars().count(), 20);
    }
}
