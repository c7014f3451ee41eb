//! Results as TAP on the core's debug console, flushed line by line: the last line
//! names the case that was under way when something went wrong.
//!
//! What is expected is in `expected.txt`, one line `case -> value` for each case, as
//! Debian's Xen 4.17 was seen to give it: the report of a run there, through
//! `sed -nE 's/^(not )?ok [0-9]+ - //p'`. Where Bulkhead differs on purpose,
//! `differences.txt` says `case -> value # reason`; such a case is `ok`, with the
//! reason behind it.

use alloc::format;
use core::fmt::Display;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

static EXPECTED: &str = include_str!("expected.txt");
static DIFFERENCES: &str = include_str!("differences.txt");
static COUNT: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

fn line(text: &str) {
    let text = format!("{text}\n");
    for piece in text.as_bytes().chunks(100) {
        if domain_rt::hypercall::console_write(piece).is_err() {
            // A core that keeps its debug console to itself: the ring then.
            domain_rt::console::write(piece);
        }
    }
}

/// What Xen gives for the case of this name.
fn expected(name: &str) -> Option<&'static str> {
    let mut lines = EXPECTED.lines().filter_map(|l| l.rsplit_once(" -> "));
    lines.find(|(case, _)| *case == name).map(|(_, value)| value)
}

/// Why Bulkhead gives `found` instead, if that is on purpose.
fn difference(name: &str, found: &str) -> Option<&'static str> {
    DIFFERENCES.lines().find_map(|line| {
        let (case, reason) = line.split_once(" # ")?;
        let (case, value) = case.rsplit_once(" -> ")?;
        (case == name && value == found).then_some(reason)
    })
}

/// Reports what a case found, and whether that is what Xen gives.
pub fn check(name: &str, found: impl Display) {
    let n = COUNT.fetch_add(1, Relaxed) + 1;
    let found = format!("{found}");
    let value = expected(name).unwrap_or("nothing: a new case");
    if value == found {
        line(&format!("ok {n} - {name} -> {found}"));
    } else if let Some(reason) = difference(name, &found) {
        line(&format!("ok {n} - {name} -> {found}"));
        line(&format!("# Xen gives {value}: {reason}"));
    } else {
        FAILED.fetch_add(1, Relaxed);
        line(&format!("not ok {n} - {name} -> {found}"));
        line(&format!("# expected {value}"));
    }
}

/// Ends the report; whether all was as expected.
pub fn plan() -> bool {
    line(&format!("1..{}", COUNT.load(Relaxed)));
    line(&format!("# failed {}", FAILED.load(Relaxed)));
    FAILED.load(Relaxed) == 0
}
