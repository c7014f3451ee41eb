//! A page about kills that are no campaign: figures, throughput, blackouts, a table.

use super::super::{Blackouts, Throughput};
use super::{card, close, curve, open, text, time};
use std::fmt::Write;

/// What is on the page.
#[derive(Clone, Copy, Debug)]
pub struct Sheet<'a> {
    /// Of the page, and its heading.
    pub title: &'a str,
    /// What was done, in a line.
    pub subject: &'a str,
    /// What was typed to get it.
    pub command: &'a str,
    /// The figures that matter most.
    pub cards: &'a [Card],
    /// What the load did.
    pub throughput: &'a Throughput,
    /// What there is to say of that.
    pub caption: &'a str,
    /// How long answers stayed away.
    pub blackouts: &'a Blackouts,
    /// Names and values of all else.
    pub rows: &'a [(String, String)],
}

/// A figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// What it is.
    pub name: String,
    /// How much.
    pub value: String,
    /// What it is compared with.
    pub more: String,
    /// Whether it is as it should be, where that can be said.
    pub is_good: Option<bool>,
}

/// The whole page.
pub fn sheet(sheet: &Sheet<'_>) -> String {
    let mut page = String::new();
    let w = &mut page;
    open(w, sheet.title);
    let _ = writeln!(
        w,
        "<header>\n<h1>{}</h1>\n<p class=\"subject\">{}</p>\n<pre class=\"command\">{}</pre>\n</header>",
        text(sheet.title),
        text(sheet.subject),
        text(sheet.command)
    );
    w.push_str("<div class=\"cards\">\n");
    for Card { name, value, more, is_good } in sheet.cards {
        let mood = is_good.map_or("", |good| if good { "good" } else { "bad" });
        card(w, name, value, more, mood);
    }
    w.push_str("</div>\n");
    time::captioned(w, sheet.throughput, sheet.caption);
    curve::section(w, sheet.blackouts);
    rows(w, sheet.rows);
    close(w);
    page
}

fn rows(out: &mut String, rows: &[(String, String)]) {
    out.push_str("<section>\n<h2>What was looked at</h2>\n<table>\n");
    for (name, value) in rows {
        let _ = writeln!(out, "<tr><td>{}</td><td>{}</td></tr>", text(name), text(value));
    }
    out.push_str("</table>\n</section>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Us;

    #[test]
    fn a_sheet_shows_what_it_is_given_and_no_markup_of_others() {
        let throughput = Throughput {
            step_us: Us::from_ms(200),
            from_us: Us::default(),
            bytes: vec![Some(1000); 10],
            kills: Vec::new(),
        };
        let card = Card {
            name: "kills".into(),
            value: "60".into(),
            more: "<b>".into(),
            is_good: Some(true),
        };
        let page = sheet(&Sheet {
            title: "Kills",
            subject: "a & b",
            command: "cargo bulkhead demo",
            cards: &[card],
            throughput: &throughput,
            caption: "quiet, then not",
            blackouts: &Blackouts::of_restarts([]),
            rows: &[("fio".into(), "0 errors".into())],
        });
        for told in ["a &amp; b", "card good", "60", "quiet, then not", "0 errors", "load-line"] {
            assert!(page.contains(told), "{told}");
        }
        assert!(!page.contains("<b>") && !page.contains("phase0\" d="), "{page}");
    }
}
