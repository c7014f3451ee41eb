//! Time: the TSC, measured once against the PIT, and the date from the RTC.
//!
//! Accesses to the PIT take microseconds on some machines, so each sample notes the TSC
//! before and after and the tightest of a few counts.

use super::{inb, outb};
use crate::arch::{
    measure::{Moment, Reference, measure},
    scale, scale_of,
};
use bulkhead_abi::Ns;
use core::sync::atomic::{AtomicI8, AtomicU32, AtomicU64, Ordering};

const PIT_HZ: u64 = 1_193_182;
const PIT_CHANNEL2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;
const PIT_GATE: u16 = 0x61;
/// In the gate's register: channel 2 has counted down to 0.
const PIT_HAS_RUN_OUT: u8 = 1 << 5;
const RTC_INDEX: u16 = 0x70;
const RTC_DATA: u16 = 0x71;
/// Readings for each sample, of which the tightest counts.
const SAMPLES: u32 = 8;

static BOOT_TSC: AtomicU64 = AtomicU64::new(0);
static KHZ: AtomicU64 = AtomicU64::new(1_000_000);
static MUL: AtomicU32 = AtomicU32::new(1 << 31);
static SHIFT: AtomicI8 = AtomicI8::new(1);
static BOOT_WALLCLOCK: AtomicU64 = AtomicU64::new(0);

/// The time stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Nanoseconds since the core booted.
pub fn now() -> Ns {
    ns_at(tsc())
}

/// Nanoseconds that a number of cycles of the TSC lasts.
pub fn ns_of(cycles: u64) -> u64 {
    let (mul, shift) = time_scale();
    scale(cycles, mul, shift)
}

/// System time at a value of the TSC; 0 for one from before boot.
pub fn ns_at(tsc: u64) -> Ns {
    Ns::new(ns_of(tsc.saturating_sub(BOOT_TSC.load(Ordering::Relaxed))))
}

pub fn tsc_khz() -> u64 {
    KHZ.load(Ordering::Relaxed)
}

/// `(mul, shift)` of guests' `vcpu_time_info`.
pub fn time_scale() -> (u32, i8) {
    (MUL.load(Ordering::Relaxed), SHIFT.load(Ordering::Relaxed))
}

/// Nanoseconds from 1970 to boot, by the RTC (taken to be UTC).
pub fn wallclock_ns_at_boot() -> u64 {
    BOOT_WALLCLOCK.load(Ordering::Relaxed)
}

/// Channel 2 of the PIT, and another counter that is read beside it.
struct Pit<F>(F);

impl<F: Fn() -> u64> Reference for Pit<F> {
    fn start(&mut self) {
        // SAFETY: channel 2 of the PIT in mode 0 and its gate: nobody else uses it; the speaker
        // stays off.
        unsafe {
            outb(PIT_GATE, inb(PIT_GATE) & !2 | 1);
            outb(PIT_COMMAND, 0xb0);
            outb(PIT_CHANNEL2, 0xff);
            outb(PIT_CHANNEL2, 0xff);
        }
    }

    fn read(&mut self) -> Option<Moment> {
        let mut best = None;
        let mut tightest = u64::MAX;
        for _ in 0..SAMPLES {
            let before = tsc();
            // SAFETY: latches and reads channel 2 of the PIT.
            let left = unsafe {
                outb(PIT_COMMAND, 0x80);
                u16::from_le_bytes([inb(PIT_CHANNEL2), inb(PIT_CHANNEL2)])
            };
            let other = (self.0)();
            let width = tsc().saturating_sub(before);
            if width < tightest {
                tightest = width;
                best = Some(Moment { left, tsc: before + width / 2, other });
            }
        }
        // Asked last, so that it holds for all of the readings.
        // SAFETY: reads the state of channel 2.
        let has_run_out = unsafe { inb(PIT_GATE) } & PIT_HAS_RUN_OUT != 0;
        best.filter(|_| !has_run_out)
    }
}

/// Measures the TSC, starts system time and reads the date. `other` is a second counter, counting
/// down; gives its frequency in Hz.
pub fn init(other: impl Fn() -> u64) -> u64 {
    let span = measure(&mut Pit(other));
    let per_second =
        |count: u64| u128::from(count) * u128::from(PIT_HZ) / u128::from(span.ticks.max(1));
    let khz = (per_second(span.cycles) / 1000).clamp(1000, 1 << 32) as u64;
    let (mul, shift) = scale_of(khz);
    KHZ.store(khz, Ordering::Relaxed);
    MUL.store(mul, Ordering::Relaxed);
    SHIFT.store(shift, Ordering::Relaxed);
    BOOT_WALLCLOCK.store(read_rtc().saturating_mul(1_000_000_000), Ordering::Relaxed);
    BOOT_TSC.store(tsc(), Ordering::Relaxed);
    per_second(span.other) as u64
}

fn cmos(index: u8) -> u8 {
    // SAFETY: reads the RTC; NMI stays enabled (bit 7 clear).
    unsafe {
        outb(RTC_INDEX, index);
        inb(RTC_DATA)
    }
}

/// Seconds since 1970.
fn read_rtc() -> u64 {
    let read = || [0x00, 0x02, 0x04, 0x07, 0x08, 0x09].map(cmos);
    let mut last = read();
    for _ in 0..100 {
        let is_updating = cmos(0x0a) & 0x80 != 0;
        let next = read();
        if !is_updating && next == last {
            break;
        }
        last = next;
    }
    let mode = cmos(0x0b);
    let is_binary = mode & 4 != 0;
    let decode = |raw: u8| {
        if is_binary { raw.into() } else { u64::from(raw >> 4) * 10 + u64::from(raw & 15) }
    };
    let [second, minute, raw_hour, day, month, year] = last;
    let mut hour = decode(raw_hour & 0x7f);
    if mode & 2 == 0 {
        hour = hour % 12 + if raw_hour & 0x80 != 0 { 12 } else { 0 };
    }
    seconds_of(2000 + decode(year), decode(month), decode(day))
        + hour * 3600
        + decode(minute) * 60
        + decode(second)
}

/// Seconds from 1970 to the start of a day of the Gregorian calendar.
fn seconds_of(year: u64, month: u64, day: u64) -> u64 {
    // Years that begin in March, so that the leap day is the last.
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day.saturating_sub(1);
    // 719468 days from 1 March of year 0 to 1970.
    days.saturating_sub(719_468) * 86_400
}
