//! What charts have in common: a frame, a scale with round numbers, lines across.

use std::fmt::Write;

/// Width of a chart in its own units; the page scales it.
pub const WIDTH: f64 = 960.0;

/// The inside of a chart.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

impl Frame {
    pub const fn right(&self) -> f64 {
        self.left + self.width
    }
    pub const fn bottom(&self) -> f64 {
        self.top + self.height
    }
    /// Where a share of the width is.
    pub const fn x(&self, share: f64) -> f64 {
        self.left + share * self.width
    }
    /// Where a share of the height is, counted from below.
    pub const fn y(&self, share: f64) -> f64 {
        self.bottom() - share * self.height
    }
}

/// Opens a drawing of that height.
pub fn open(out: &mut String, height: f64, label: &str) {
    let _ = writeln!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{}\">",
        super::text(label)
    );
}

/// Text at a place; `class` says how it is aligned.
pub fn label(out: &mut String, x: f64, y: f64, class: &str, words: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>",
        super::text(words)
    );
}

/// A scale from 0: its greatest value and the step between its lines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    pub most: f64,
    pub step: f64,
}

impl Scale {
    /// One that holds `greatest` with about `lines` lines, at 1, 2, 2.5 or 5 times a power
    /// of ten.
    pub fn up_to(greatest: f64, lines: f64) -> Self {
        let greatest = if greatest > 0.0 { greatest } else { 1.0 };
        let rough = greatest / lines;
        let power = 10f64.powf(rough.log10().floor());
        let factor = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|f| f * power >= rough);
        let step = factor.unwrap_or(10.0) * power;
        Self { most: (greatest / step).ceil() * step, step }
    }

    /// The values at which there are lines, 0 among them.
    pub fn lines(self) -> impl Iterator<Item = f64> {
        let count = (self.most / self.step).round() as u32;
        (0..=count).map(move |line| f64::from(line) * self.step)
    }

    /// A value as a share of the scale.
    pub fn share(self, value: f64) -> f64 {
        (value / self.most).clamp(0.0, 1.0)
    }

    /// A value as its lines are written: no more digits than the step has.
    pub fn written(self, value: f64) -> String {
        let digits = (0..3).find(|digits| {
            let scaled = self.step * 10f64.powi(*digits);
            (scaled - scaled.round()).abs() < 1e-9 * scaled
        });
        format!("{value:.*}", digits.unwrap_or(3) as usize)
    }
}

/// Lines across with their values on the left.
pub fn grid(out: &mut String, frame: &Frame, scale: Scale) {
    for value in scale.lines() {
        let y = frame.y(scale.share(value));
        let _ = writeln!(
            out,
            "<line x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" class=\"grid\"/>",
            frame.left,
            frame.right()
        );
        label(out, frame.left - 8.0, y + 4.0, "end dim", &scale.written(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_has_round_lines_and_holds_its_greatest_value() {
        assert_eq!(Scale::up_to(43.0, 4.0), Scale { most: 60.0, step: 20.0 });
        assert_eq!(Scale::up_to(100.0, 5.0), Scale { most: 100.0, step: 20.0 });
        assert_eq!(Scale::up_to(0.0, 4.0).most, 1.0);
        for greatest in [0.003, 0.7, 1.0, 9.99, 12_345.0] {
            let scale = Scale::up_to(greatest, 4.0);
            assert!(scale.most >= greatest && scale.lines().count() <= 7, "{scale:?}");
        }
    }

    #[test]
    fn values_have_the_digits_of_the_step() {
        assert_eq!(Scale { most: 1.0, step: 0.25 }.written(0.5), "0.50");
        assert_eq!(Scale { most: 60.0, step: 20.0 }.written(40.0), "40");
    }
}
