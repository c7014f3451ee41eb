//! Compares this system's clock with the host's, and steps it if it is wrong. A Linux guest
//! takes the time from its hypervisor once, as it boots, and loses some of it until it has found
//! its clock source. When to step is decided here without looking at a clock; it is not known
//! here how questions get to the host.
//!
//! The host read its clock at some moment between question and answer, so that
//! the time between the two bounds the error. An answer that was long under way is
//! therefore asked for again, and the one that came fastest counts. A clock is only stepped if
//! it is certain that it is closer to the host's afterwards.

use bulkhead_link::agent::CLOCK_QUESTIONS;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use std::{fs::OpenOptions, io, io::Write};

/// A clock that is off by less is left alone, ns.
pub const TOLERATED_NS: i64 = 100_000_000;
/// An answer that took no longer is good enough, ns.
pub const FAST_NS: i64 = 50_000_000;

/// What the system's clocks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Time since some moment, ns; nobody sets it.
    pub monotonic_ns: i64,
    /// Time since 1970, ns.
    pub unix_ns: i64,
}

/// The clocks of a system.
pub trait Clocks: Send {
    /// Reads them.
    fn now(&self) -> Reading;

    /// Steps the one that shows the date.
    ///
    /// # Errors
    /// If it may not be set, or not to that.
    fn step(&mut self, by_ns: i64) -> io::Result<()>;
}

/// What is to be done after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Ask again.
    Ask,
    /// Step the clock; nothing more is asked.
    Step { by_ns: i64 },
    /// Nothing; nothing more is asked either, unless an answer is still to come.
    Nothing,
}

/// A comparison of the clock with the host's.
#[derive(Debug, Default)]
pub struct Comparison {
    /// Number of the next question; no number comes twice, so that an answer from before the
    /// last Hello is not taken for a new one.
    next: u32,
    /// Questions since it began.
    asked: u32,
    /// The question that waits for its answer, and when it was asked.
    open: Option<(u32, i64)>,
    best: Option<Sample>,
}

/// What one answer tells.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// The host's clock less the monotonic one, which no step changes; as if the answer had been
    /// given halfway.
    host_ahead_ns: i64,
    /// How much it can be wrong, either way.
    error_ns: i64,
}

impl Comparison {
    /// Begins anew.
    pub fn begin(&mut self) {
        *self = Self { next: self.next, ..Self::default() };
    }

    /// The number of a question that is asked now.
    pub fn ask(&mut self, now: Reading) -> u32 {
        let question = self.next;
        self.next = self.next.wrapping_add(1);
        self.asked += 1;
        self.open = Some((question, now.monotonic_ns));
        question
    }

    /// Takes an answer.
    pub fn answered(&mut self, question: u32, unix_ns: u64, now: Reading) -> Next {
        let Some((_, asked_ns)) = self.open.take_if(|(open, _)| *open == question) else {
            return Next::Nothing;
        };
        let way_ns = now.monotonic_ns.saturating_sub(asked_ns).max(0);
        let error_ns = way_ns / 2;
        let host_ns = i64::try_from(unix_ns).unwrap_or(i64::MAX);
        let host_ahead_ns = host_ns.saturating_add(error_ns).saturating_sub(now.monotonic_ns);
        let sample = Sample { host_ahead_ns, error_ns };
        let best = self.best.filter(|best| best.error_ns <= error_ns).unwrap_or(sample);
        self.best = Some(best);
        if way_ns > FAST_NS && self.asked < CLOCK_QUESTIONS {
            return Next::Ask;
        }
        best.step(now).map_or(Next::Nothing, |by_ns| Next::Step { by_ns })
    }
}

impl Sample {
    /// By how much the clock is to be stepped. It is off by at least `off - error`, and by
    /// at most `error` afterwards.
    fn step(self, now: Reading) -> Option<i64> {
        let host_ns = self.host_ahead_ns.saturating_add(now.monotonic_ns);
        let off_ns = host_ns.saturating_sub(now.unix_ns);
        let least_ns = off_ns.saturating_abs().saturating_sub(self.error_ns);
        (least_ns > TOLERATED_NS.max(self.error_ns)).then_some(off_ns)
    }
}

/// The clocks of the Linux that this program runs on.
#[derive(Debug)]
pub struct System;

impl Clocks for System {
    fn now(&self) -> Reading {
        Reading { monotonic_ns: read(ClockId::Monotonic), unix_ns: read(ClockId::Realtime) }
    }

    fn step(&mut self, by_ns: i64) -> io::Result<()> {
        let time = timespec(read(ClockId::Realtime).saturating_add(by_ns));
        let set = clock_settime(ClockId::Realtime, time);
        note(&match &set {
            Ok(()) => format!("clock stepped by {:+.3} s", by_ns as f64 / 1e9),
            Err(e) => {
                format!("clock is off by {:+.3} s, cannot be set: {e}", -(by_ns as f64) / 1e9)
            }
        });
        Ok(set?)
    }
}

fn read(clock: ClockId) -> i64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    tv_sec.saturating_mul(1_000_000_000).saturating_add(tv_nsec)
}

const fn timespec(ns: i64) -> Timespec {
    Timespec { tv_sec: ns.div_euclid(1_000_000_000), tv_nsec: ns.rem_euclid(1_000_000_000) }
}

/// Leaves a line in the kernel's log, if it can.
fn note(text: &str) {
    let log = OpenOptions::new().write(true).open("/dev/kmsg");
    // Priority 6: information.
    let _ = log.and_then(|mut log| log.write_all(format!("<6>bulkhead: {text}\n").as_bytes()));
}

#[cfg(test)]
mod tests;
