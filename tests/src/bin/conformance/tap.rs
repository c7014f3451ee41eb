//! Results as TAP on the core's debug console, flushed line by line: the last line
//! names the case that was under way when something went wrong.

use alloc::format;
use core::fmt::Display;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

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

/// Reports what a case found, and whether that is what Xen gives.
pub fn check(name: &str, found: impl Display, expected: &str) {
    let n = COUNT.fetch_add(1, Relaxed) + 1;
    let found = format!("{found}");
    if found == expected {
        line(&format!("ok {n} - {name} -> {found}"));
    } else {
        FAILED.fetch_add(1, Relaxed);
        line(&format!("not ok {n} - {name} -> {found}"));
        line(&format!("# expected {expected}"));
    }
}

/// Ends the report.
pub fn plan() {
    line(&format!("1..{}", COUNT.load(Relaxed)));
    line(&format!("# failed {}", FAILED.load(Relaxed)));
}
