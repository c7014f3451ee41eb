//! A hostile guest: tries, by every hypercall and instruction it can think of, to map,
//! write or execute a frame that is not its own, to write a page-table frame, to
//! reach another domain's channels and devices, and to make the core read or write
//! where it must not. Prints TAP: one named attempt a line, `not ok` where it got in.
//! At the end it checks that its own memory still is what it was, and powers off.
//!
//! Options: `how=NAME` runs one of the [`suicide`] ways to die instead: the domain
//! is expected to be crashed, and nobody else to notice.
#![no_std]
#![no_main]

extern crate alloc;

mod calls;
mod env;
mod machine;
mod mapping;
mod suicide;
mod tables;
mod trap;

use domain_rt::{Boot, Shutdown, println, shutdown};
use env::Env;

domain_rt::entry!(main);

/// What an attempt found.
#[derive(Debug)]
pub enum Verdict {
    /// Refused, with the errno or the trap that said so.
    Refused(i64),
    /// It worked: the isolation is broken.
    Broken(i64),
    /// This machine has nothing to try it on.
    Skipped(&'static str),
}

/// An attempt, by name.
pub type Attempt = (&'static str, fn(&mut Env) -> Verdict);

/// Refused if RAX is a negated errno.
pub fn expect_errno(rax: i64) -> Verdict {
    if (-4095..0).contains(&rax) { Verdict::Refused(rax) } else { Verdict::Broken(rax) }
}

fn main(boot: &'static Boot) {
    trap::install();
    if let Some(how) = boot.option("how") {
        suicide::die(how);
    }
    let mut env = Env::new();
    let groups: [&[Attempt]; 4] =
        [mapping::ATTEMPTS, tables::ATTEMPTS, calls::ATTEMPTS, machine::ATTEMPTS];
    println!("TAP version 13");
    println!("1..{}", groups.iter().map(|g| g.len()).sum::<usize>() + 1);
    let (mut number, mut broken) = (0, 0);
    for (name, attempt) in groups.into_iter().flatten() {
        number += 1;
        match attempt(&mut env) {
            Verdict::Refused(why) => println!("ok {number} - {name} # refused {why}"),
            Verdict::Skipped(why) => println!("ok {number} - {name} # SKIP {why}"),
            Verdict::Broken(rax) => {
                broken += 1;
                println!("not ok {number} - {name} # got {rax:#x}");
            }
        }
    }
    let intact = env.is_intact();
    broken += u32::from(!intact);
    println!(
        "{} {} - its own memory is what it was",
        if intact { "ok" } else { "not ok" },
        number + 1
    );
    println!("hostile: {broken} of {} attempts got in", number + 1);
    shutdown(if broken == 0 { Shutdown::Poweroff } else { Shutdown::Crash });
}
