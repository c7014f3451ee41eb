//! A guest that sleeps and measures how late it wakes: what warping is for. Naps
//! `naps=N` times (200) for `us=N` microseconds (3,000) and prints mean and worst.
#![no_std]
#![no_main]

use core::time::Duration;
use domain_rt::{Boot, exec, println, time};

domain_rt::entry!(main);

fn main(boot: &'static Boot) {
    let number =
        |name, otherwise| boot.option(name).and_then(|n| n.parse().ok()).unwrap_or(otherwise);
    let (naps, span) = (number("naps", 200), Duration::from_micros(number("us", 3_000)));
    let (mut total, mut worst) = (0, 0);
    for _ in 0..naps {
        let deadline = time::after(time::now(), span);
        exec::block_on(time::sleep_until(deadline));
        let late = time::now().get().saturating_sub(deadline.get());
        total += late;
        worst = worst.max(late);
    }
    let mean = total / naps.max(1);
    println!("nap: {naps} naps, mean {} us late, worst {} us late", mean / 1_000, worst / 1_000);
}
