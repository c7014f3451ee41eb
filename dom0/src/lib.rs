//! The control domain's reasoning, apart from the machine it runs on: building
//! domains, the xenstore server, consoles, supervision, and the answers to the
//! host tool. All of it runs on the host against plain memory.
//!
//! Nothing here makes a hypercall or knows how memory of another domain is
//! reached: that comes as traits and closures from the binary.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod builder;
pub mod clock;
pub mod console;
pub mod control;
pub mod devices;
pub mod injection;
pub mod lane;
pub mod payload;
pub mod shared;
pub mod store;
pub mod supervisor;
pub mod uploads;
pub mod wishes;
