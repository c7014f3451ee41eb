//! The ring-0 core of Bulkhead: it validates memory, schedules virtual CPUs by
//! Borrowed Virtual Time and delivers events. It holds no device driver beyond an
//! output-only debug UART, no policy, no parser of guest images and no name.
//!
//! A library of rooms plus a thin binary. All rooms but [`arch`] run on the host
//! against plain memory ([`memory::phys::PhysMem`]) under ordinary tests and Miri.
//! Arrows point one way: `hypercall` and `trap` call rooms, rooms call
//! [`arch`] through few functions, nothing calls upward; consequences (a wake-up, a
//! TLB flush) come back as `must_use` values.
//!
//! Rules of the house: no heap, interrupts off, long work stops at a step budget
//! and continues, no panic on anything a guest can choose.
#![cfg_attr(target_os = "none", no_std)]

pub mod arch;
pub mod device;
pub mod domain;
pub mod event;
#[cfg(test)]
#[path = "tests/fixture.rs"]
pub mod fixture;
pub mod hypercall;
pub mod memory;
pub mod sched;
pub mod state;
pub mod trace;
pub mod trap;

pub use state::Core;
