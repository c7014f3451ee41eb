//! The control domain as a program: joins the reasoning of the `dom0` library to the
//! machine by way of `domain-rt`. It decides nothing that the library could decide.
#![no_std]
#![no_main]
// Not `forbid`: the entry macro names a symbol for the runtime, its only unsafe attribute.
#![deny(unsafe_code)]

extern crate alloc;

mod agent;
mod build;
mod foreign;
mod inject;
mod lane;
mod link;
mod quarantine;
mod requests;
mod restart;
mod revive;
mod violation;
mod world;

use alloc::{rc::Rc, string::String};
use bulkhead_abi::{archive::EXIT_DOM0_DIED, event::VIRQ_DOM_EXC};
use bulkhead_link::{CLOCK_TELLS, Event, Kind, VERSION};
use core::time::Duration;
use dom0::{clock::WallClock, payload::Payload};
use domain_rt::{Boot, control, event, exec, mem, time};
use restart::Restarts;
use world::World;

/// How long guests wait for the host's clock; they then start with the manifest's.
const CLOCK_LIMIT: Duration = Duration::from_secs(2);

#[allow(unsafe_code, reason = "the runtime finds the program by an unmangled name")]
mod entry {
    domain_rt::entry!(super::main);
}

fn main(_: &'static Boot) {
    if let Err(reason) = exec::block_on(run()) {
        log::error!("{reason}");
        // Not privileged, or refused: then the end of this domain tells the same.
        let _ = control::machine_shutdown(EXIT_DOM0_DIED);
        domain_rt::shutdown(domain_rt::Shutdown::Crash);
    }
}

/// Serves until the machine ends.
async fn run() -> Result<(), String> {
    let payload = Rc::new(Payload::parse(mem::map_ramdisk())?);
    let manifest = &payload.manifest;
    let (wake, woken) = async_channel::bounded(1);
    let (clock_told, clock_is_set) = async_channel::bounded(CLOCK_TELLS);
    let (restarts, wanted) = Restarts::new();
    let (cases, new_cases) = async_channel::unbounded();
    let clock = WallClock::at_boot(manifest.wallclock_ns);
    let world = World::new(clock, clock_told, restarts, cases, wake);
    world.borrow_mut().event(Event::Ready { version: VERSION });
    exec::spawn(link::serve(world.clone(), manifest.lane, woken)).detach();
    let ends = event::bind_virq(VIRQ_DOM_EXC)
        .map_err(|errno| alloc::format!("the core does not tell of domains that end: {errno}"))?;
    let watcher = world.clone();
    exec::spawn(async move {
        loop {
            ends.wait().await;
            watcher.borrow_mut().look_after_domains();
        }
    })
    .detach();
    exec::spawn(revive::serve(world.clone(), payload.clone(), new_cases)).detach();
    exec::spawn(revive::watch_hearts(world.clone())).detach();
    exec::spawn(restart::serve(world.clone(), payload.clone(), wanted)).detach();
    let mut must_wait = manifest.clock_by_link;
    for spec in &manifest.domains {
        // Guests read the clock as they start.
        if spec.kind == Kind::Guest && core::mem::take(&mut must_wait) {
            let told = async {
                for _ in 0..CLOCK_TELLS {
                    // The sender lives in the world, which does not end.
                    let _ = clock_is_set.recv().await;
                }
            };
            exec::or(told, time::sleep(CLOCK_LIMIT)).await;
        }
        build::bring_up(&world, &payload, spec).await;
    }
    core::future::pending().await
}
