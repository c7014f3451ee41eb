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
mod link;
mod requests;
mod world;

use alloc::string::String;
use bulkhead_abi::{archive::EXIT_DOM0_DIED, event::VIRQ_DOM_EXC};
use bulkhead_link::{Event, VERSION};
use dom0::payload::Payload;
use domain_rt::{Boot, control, event, exec, mem};
use world::World;

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
    let payload = Payload::parse(mem::map_ramdisk())?;
    let (wake, woken) = async_channel::bounded(1);
    let world = World::new(wake);
    world.borrow_mut().event(Event::Ready { version: VERSION });
    exec::spawn(link::serve(world.clone(), woken)).detach();
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
    for spec in &payload.manifest.domains {
        build::bring_up(&world, &payload, spec).await;
    }
    core::future::pending().await
}
