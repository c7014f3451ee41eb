//! A guest that burns its CPU: for ever, or for `seconds=N` of system time, and then
//! says how far it came. Shares of the CPU are judged by these figures.
#![no_std]
#![no_main]

use domain_rt::{Boot, println, time};

domain_rt::entry!(main);

/// Units of work between looks at the clock.
const STRIDE: u64 = 10_000;

fn main(boot: &'static Boot) {
    let seconds: Option<u64> = boot.option("seconds").and_then(|s| s.parse().ok());
    let start = time::now().get();
    let end = seconds.map(|s| start.saturating_add(s.saturating_mul(1_000_000_000)));
    let mut work: u64 = 0;
    while end.is_none_or(|end| time::now().get() < end) {
        for _ in 0..STRIDE {
            core::hint::black_box(work);
            work += 1;
        }
    }
    let ms = (time::now().get() - start) / 1_000_000;
    println!("spin: work {work} in {ms} ms");
}
