//! Throughput against time, with a mark at each failure.

use super::super::Throughput;
use super::super::terminal::thousands;
use super::plot::{self, Frame, Scale};
use crate::units::Us;
use std::fmt::Write;

const FRAME: Frame = Frame { left: 60.0, top: 26.0, width: 890.0, height: 190.0 };

/// The section of a campaign.
pub fn section(out: &mut String, throughput: &Throughput) {
    let caption = format!(
        "The first {} of the longest run: what guests read and wrote, in steps of {}. Each mark \
         above is one of {} failures that were noticed, in the colour of what came of it.",
        throughput.length(),
        throughput.step_us,
        thousands(throughput.kills.len() as u64)
    );
    captioned(out, throughput, &caption);
}

/// The section with other words below.
pub fn captioned(out: &mut String, throughput: &Throughput, caption: &str) {
    out.push_str("<section>\n<h2>Throughput while drivers fail</h2>\n");
    chart(out, throughput);
    let _ = writeln!(out, "<p class=\"caption\">{}</p>\n</section>", super::text(caption));
}

fn chart(out: &mut String, throughput: &Throughput) {
    let greatest = throughput.rates().flatten().fold(0.0, f64::max);
    let scale = Scale::up_to(greatest / 1e6, 4.0);
    plot::open(out, 250.0, "Throughput against time");
    plot::label(out, FRAME.left - 8.0, 14.0, "end dim", "MB/s");
    plot::grid(out, &FRAME, scale);
    seconds(out, throughput);
    for part in unbroken(throughput) {
        area(out, throughput, scale, part);
    }
    for kill in &throughput.kills {
        let x = x_of(throughput, kill.at_us.since(throughput.from_us));
        let _ = writeln!(
            out,
            "<path class=\"kill {name}\" d=\"M{x:.1} {:.1}v-9\"><title>fault {} at {}: {name}</title></path>",
            FRAME.top - 4.0,
            kill.number,
            kill.at_us,
            name = kill.outcome.name(),
        );
    }
    out.push_str("</svg>\n");
}

fn x_of(throughput: &Throughput, at: Us) -> f64 {
    FRAME.x(at.number() as f64 / throughput.length().number().max(1) as f64)
}

fn seconds(out: &mut String, throughput: &Throughput) {
    let length = throughput.length().number() as f64 / 1e6;
    let scale = Scale::up_to(length, 6.0);
    for value in scale.lines().filter(|value| *value <= length) {
        let words = scale.written(value) + " s";
        plot::label(out, FRAME.x(value / length), FRAME.bottom() + 18.0, "middle dim", &words);
    }
}

/// Ranges of steps that were all sampled.
fn unbroken(throughput: &Throughput) -> Vec<Vec<(usize, f64)>> {
    let mut parts: Vec<Vec<_>> = vec![Vec::new()];
    for (index, rate) in throughput.rates().enumerate() {
        match (rate, parts.last_mut()) {
            (Some(rate), Some(part)) => part.push((index, rate)),
            _ => parts.push(Vec::new()),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn area(out: &mut String, throughput: &Throughput, scale: Scale, part: Vec<(usize, f64)>) {
    let x = |index: usize| x_of(throughput, Us::new(throughput.step_us.number() * index as u64));
    let mut line = String::new();
    for (index, rate) in &part {
        let y = FRAME.y(scale.share(rate / 1e6));
        let _ = write!(line, "L{:.1} {y:.1}H{:.1}", x(*index), x(index + 1));
    }
    let (first, last) = (part[0].0, part[part.len() - 1].0 + 1);
    let (left, right, floor) = (x(first), x(last), FRAME.bottom());
    let _ = writeln!(
        out,
        "<path class=\"load-area\" d=\"M{left:.1} {floor:.1}{line}L{right:.1} {floor:.1}Z\"/>\n\
         <path class=\"load-line\" d=\"M{}\"/>",
        &line[1..]
    );
}
