//! What came of the faults of each model: a bar of those activated, by class.

use super::super::Report;
use super::super::terminal::{interval, thousands};
use super::plot::{self, Frame};
use super::text;
use crate::model::Model;
use crate::outcome::Outcome;
use std::fmt::Write;

const ROW: f64 = 24.0;
const BAR: f64 = 12.0;
/// Least width of a class that occurred.
const SLIVER: f64 = 4.0;

/// Classes of faults that were activated.
const ACTIVATED: &[Outcome] = Outcome::ALL.split_at(1).1;

/// The section with its legend.
pub fn section(out: &mut String, report: &Report) {
    out.push_str("<section>\n<h2>What came of the faults, by model</h2>\n<div class=\"legend\">");
    for outcome in ACTIVATED {
        let _ = write!(
            out,
            "<span><i class=\"chip {}\"></i>{} <b>{}</b></span>",
            outcome.name(),
            outcome.words(),
            thousands(report.count(*outcome))
        );
    }
    out.push_str("</div>\n");
    chart(out, report);
    out.push_str(
        "<p class=\"caption\">Share of the activated faults of each model. The line below a bar is \
         the 95 % interval of those that no guest noticed anything of, whose figures are on the \
         right. A class that occurred is at least a sliver wide.</p>\n</section>\n",
    );
}

fn chart(out: &mut String, report: &Report) {
    let rows: f64 = report.models().map(|(_, models)| models.len() as f64 * ROW + 30.0).sum();
    let height = rows + 26.0;
    let frame = Frame { left: 190.0, top: 4.0, width: 530.0, height: rows };
    plot::open(out, height, "Outcome classes for each fault model");
    for percent in [0, 25, 50, 75, 100] {
        let x = frame.x(f64::from(percent) / 100.0);
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" class=\"grid\"/>",
            frame.top,
            frame.bottom()
        );
        plot::label(out, x, frame.bottom() + 17.0, "middle dim", &format!("{percent} %"));
    }
    plot::label(out, 770.0, frame.top + 17.0, "end dim", "activated");
    plot::label(out, plot::WIDTH - 2.0, frame.top + 17.0, "end dim", "nothing seen by guests");
    let mut y = frame.top;
    for (family, models) in report.models() {
        plot::label(out, 2.0, y + 17.0, "family", &capital(family.name()));
        y += 30.0;
        for model in models {
            row(out, report, model, &frame, y);
            y += ROW;
        }
    }
    out.push_str("</svg>\n");
}

fn row(out: &mut String, report: &Report, model: Model, frame: &Frame, y: f64) {
    let unseen = &report.unseen[&model];
    let _ = writeln!(out, "<g><title>{}</title>", text(model.about()));
    plot::label(out, frame.left - 10.0, y + 11.0, "end", model.name());
    plot::label(out, 770.0, y + 11.0, "end num", &thousands(unseen.of));
    plot::label(out, plot::WIDTH - 2.0, y + 11.0, "end num", &interval(unseen));
    out.push_str("</g>\n");
    if unseen.of == 0 {
        return plot::label(out, frame.left + 6.0, y + 11.0, "dim", "none activated");
    }
    let counts: Vec<_> = ACTIVATED
        .iter()
        .map(|outcome| (*outcome, report.by_model[&model].get(outcome).copied().unwrap_or(0)))
        .collect();
    let mut x = frame.left;
    for ((outcome, count), width) in counts.iter().zip(widths(&counts, frame.width)) {
        if *count > 0 {
            part(out, *outcome, *count, [x, y, width], model);
        }
        x += width;
    }
    whisker(out, frame.x(unseen.low), frame.x(unseen.high), y + BAR + 4.0);
}

fn part(out: &mut String, outcome: Outcome, count: u64, [x, y, width]: [f64; 3], model: Model) {
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" class=\"{}\">\
         <title>{model}: {} {}</title></rect>",
        (width - 0.7).max(0.5),
        outcome.name(),
        thousands(count),
        outcome.words(),
    );
}

fn capital(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_uppercase() + rest
}

/// Widths that add up to `whole`: by count, but no class that occurred is narrower than a
/// sliver; the widest one pays for it.
fn widths(counts: &[(Outcome, u64)], whole: f64) -> Vec<f64> {
    let sum: u64 = counts.iter().map(|(_, count)| count).sum();
    let mut widths: Vec<_> = counts
        .iter()
        .map(|(_, count)| match count {
            0 => 0.0,
            count => (*count as f64 / sum as f64 * whole).max(SLIVER),
        })
        .collect();
    let excess = widths.iter().sum::<f64>() - whole;
    if let Some(widest) = widths.iter_mut().max_by(|a, b| a.total_cmp(b)) {
        *widest -= excess;
    }
    widths
}

fn whisker(out: &mut String, low: f64, high: f64, y: f64) {
    let _ = writeln!(
        out,
        "<path class=\"whisker\" d=\"M{low:.1} {:.1}v5m0 -2.5H{high:.1}m0 -2.5v5\"/>",
        y - 2.5
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_add_up_and_nothing_that_occurred_vanishes() {
        let counts = [(Outcome::Benign, 9_999), (Outcome::Hang, 0), (Outcome::Escape, 1)];
        let widths = widths(&counts, 500.0);
        assert_eq!(widths, [496.0, 0.0, 4.0]);
    }
}
