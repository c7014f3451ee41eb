//! What every Rust domain of Bulkhead links: entry, hypercalls, memory, heap,
//! events, grants, tasks, time, console and the xenstore client.
//!
//! A domain is an ordinary 64-bit PV guest with one vCPU: the same binary boots on
//! Bulkhead and on Xen. Events are never taken in the middle of code: they stay
//! masked while tasks run and are collected when the executor goes round, so there
//! is no interrupt context anywhere above [`trap`].
//!
//! It must not know what a domain is for: no device, no ring protocol, no policy.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! domain_rt::entry!(main);
//! fn main(boot: &'static domain_rt::Boot) {
//!     domain_rt::exec::block_on(async { log::info!("{} frames", boot.nr_frames) });
//! }
//! ```
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    not(target_os = "none"),
    allow(dead_code, reason = "entered by the stub, which exists on the machine only")
)]

extern crate alloc;

pub mod bitmap;
pub mod boot;
pub mod console;
pub mod control;
pub mod device;
pub mod event;
pub mod exec;
#[cfg(any(test, feature = "faults"))]
pub mod faults;
pub mod grant;
pub mod heap;
pub mod hypercall;
pub mod io;
pub mod mem;
pub mod shared;
pub mod time;
pub mod trap;
pub mod xenstore;

mod entry;

pub use boot::Boot;
pub use bulkhead_abi as abi;
pub use futures_lite;
pub use log;
pub use shared::Shared;

use bulkhead_abi::sched;

/// Why a domain ends, as the world outside is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Shutdown {
    /// All went well.
    Poweroff = sched::SHUTDOWN_POWEROFF,
    /// Wants to be started again.
    Reboot = sched::SHUTDOWN_REBOOT,
    /// Something is wrong.
    Crash = sched::SHUTDOWN_CRASH,
}

/// Ends this domain.
pub fn shutdown(reason: Shutdown) -> ! {
    console::drain();
    hypercall::shutdown(reason as u32)
}

#[cfg(all(not(test), target_os = "none"))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    console::emergency(format_args!("panic: {info}\n"));
    hypercall::shutdown(sched::SHUTDOWN_CRASH)
}
