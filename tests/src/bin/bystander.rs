//! A guest that wants nothing of anybody: it keeps a pattern in its memory, looks at a part
//! of it all the time, and says every now and then that all is well. A word that has changed
//! is named, and ends it as crashed. `memory=MIB` (4) says how much it keeps, `status=MS` (200)
//! how often it says so.
#![no_std]
#![no_main]

use core::time::Duration;
use domain_rt::{Boot, Shutdown, exec, mem, println, shutdown, time};

domain_rt::entry!(main);

/// Bytes that are looked at before others run.
const STEP: usize = 128 << 10;
/// Time between two such looks.
const EVERY: Duration = Duration::from_millis(10);

fn main(boot: &'static Boot) {
    let option = |name, default| boot.option(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    let (mib, status_ms): (usize, u64) = (option("memory", 4), option("status", 200) as u64);
    let Some(pages) = mem::alloc_pages(mib << 8) else {
        println!("bystander: there are no {mib} MiB of memory");
        shutdown(Shutdown::Crash);
    };
    let memory = pages.leak();
    let words = memory.bytes() / 8;
    for word in 0..words {
        memory.write_u64(word * 8, pattern(word));
    }
    println!("bystander: ready");
    exec::block_on(async move {
        let (mut next, mut rounds) = (0, 0_u64);
        let mut told = time::now();
        loop {
            for word in next..words.min(next + STEP / 8) {
                let found = memory.read_u64(word * 8);
                if found != pattern(word) {
                    println!("bystander: WRONG: word {word} is {found:#x}");
                    shutdown(Shutdown::Crash);
                }
            }
            next += STEP / 8;
            if next >= words {
                (next, rounds) = (0, rounds + 1);
            }
            if time::now().minus(told).get() >= status_ms * 1_000_000 {
                told = time::now();
                println!("bystander: well rounds={rounds}");
            }
            time::sleep(EVERY).await;
        }
    });
}

/// What a word of the memory is: unlike that of any other.
fn pattern(word: usize) -> u64 {
    (word as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
