//! The distribution of blackouts, stacked by phase.

use super::super::terminal::thousands;
use super::super::{Blackout, Blackouts, phases};
use super::plot::{self, Frame, Scale};
use crate::outcome::PHASES;
use std::fmt::Write;

const HEIGHT: f64 = 240.0;
const TOP: f64 = 26.0;

/// How far above the 99th percentile the scale goes, at most.
const ABOVE_P99: f64 = 1.5;

/// The section, if anything was restarted.
pub fn section(out: &mut String, blackouts: &Blackouts) {
    let Blackouts { all, prompt, hang } = blackouts;
    if all.count == 0 {
        return;
    }
    out.push_str(
        "<section>\n<h2>Blackout, from failure to first new response</h2>\n<div class=\"legend\">",
    );
    for (index, name) in PHASES.iter().enumerate() {
        let _ = write!(out, "<span><i class=\"chip phase{index}\"></i>{name}</span>");
    }
    out.push_str("</div>\n");
    plot::open(out, TOP + HEIGHT + 38.0, "Distribution of blackouts by phase");
    for (blackout, frame, name) in panels(prompt, hang) {
        panel(out, blackout, &frame, name);
    }
    let _ = writeln!(
        out,
        "</svg>\n<p class=\"caption\">Cumulative distribution, stacked by phase: at 50 % stands \
         the median restart and what it spent its time on. {} failures were noticed at once; \
         {} were hangs, whose blackout is for the most part the heartbeat's deadline. Longest: {}.</p>\n\
         </section>",
        thousands(prompt.all.count),
        thousands(hang.all.count),
        all.max
    );
}

/// What is shown where: both side by side, or the one that there is.
fn panels<'a>(
    prompt: &'a Blackout,
    hang: &'a Blackout,
) -> Vec<(&'a Blackout, Frame, &'static str)> {
    let frame = |left, width| Frame { left, top: TOP, width, height: HEIGHT };
    match (prompt.all.count, hang.all.count) {
        (0, _) => vec![(hang, frame(60.0, 890.0), "Hung")],
        (_, 0) => vec![(prompt, frame(60.0, 890.0), "Noticed at once")],
        _ => vec![
            (prompt, frame(60.0, 560.0), "Noticed at once"),
            (hang, frame(690.0, 260.0), "Hung"),
        ],
    }
}

fn panel(out: &mut String, blackout: &Blackout, frame: &Frame, name: &str) {
    let most = blackout.all.max.ms().min(blackout.all.p99.ms() * ABOVE_P99);
    let scale = Scale::up_to(most, 5.0);
    plot::label(out, frame.left - 8.0, 14.0, "end dim", "ms");
    plot::label(out, frame.left, 14.0, "family", name);
    plot::grid(out, frame, scale);
    for phase in (0..PHASES.len()).rev() {
        layer(out, blackout, phase, frame, scale);
    }
    // A narrow panel has no room for a label between the two outer ones.
    let is_narrow = frame.width < 400.0;
    let marks = phases::marks(&blackout.all).into_iter();
    for (name, share, us) in marks.filter(|(name, ..)| !is_narrow || *name != "p90") {
        let (x, y) = (frame.x(share), frame.y(scale.share(us.ms())));
        let _ = writeln!(
            out,
            "<path class=\"mark\" d=\"M{x:.1} {:.1}V{y:.1}\"/>\n\
             <circle class=\"mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>",
            frame.bottom()
        );
        plot::label(out, x - 6.0, y - 7.0, "end strong", &format!("{name} {us}"));
    }
    for percent in [0, 25, 50, 75, 100] {
        let x = frame.x(f64::from(percent) / 100.0);
        plot::label(out, x, frame.bottom() + 18.0, "middle dim", &format!("{percent} %"));
    }
}

/// All phases up to one; those after it are drawn first and show above it.
fn layer(out: &mut String, blackout: &Blackout, phase: usize, frame: &Frame, scale: Scale) {
    let mut path = format!("M{:.1} {:.1}", frame.left, frame.bottom());
    let mut left = 0.0;
    for column in &blackout.distribution {
        let y = frame.y(scale.share(column.up_to(phase) / 1000.0));
        let _ = write!(path, "L{:.1} {y:.1}H{:.1}", frame.x(left), frame.x(column.share));
        left = column.share;
    }
    let _ = writeln!(
        out,
        "<path class=\"phase{phase}\" d=\"{path}V{:.1}Z\"><title>{}</title></path>",
        frame.bottom(),
        PHASES[phase]
    );
}
