//! Front ends of Xen PV devices for any guest: the protocol and its state machines,
//! over the few things that a guest has to bring ([`platform`]). It knows neither
//! hypercalls nor how a guest keeps its memory; and it trusts the back end with
//! nothing but the data it was given.
//!
//! - disks: [`blkfront`];
//! - what a checkable disk holds, for guests and for the host that looks at the image
//!   afterwards: [`pattern`];
//! - writing that and reading it back: [`check`];
//! - a load that verifies itself, endless if wanted: `verify` (feature `checks`);
//! - a platform whose front ends do wrong on order: `misuse` (feature `checks`);
//! - every file of an ext4 disk with its SHA-256: `listing` (feature `checks`);
//! - the traits of [`platform`] on Bulkhead's runtime: `rt` (feature `domain-rt`).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod blkfront;
pub mod check;
mod checksum;
#[cfg(feature = "checks")]
pub mod listing;
#[cfg(feature = "checks")]
pub mod misuse;
pub mod pattern;
pub mod platform;
#[cfg(feature = "domain-rt")]
pub mod rt;
#[cfg(feature = "checks")]
pub mod verify;
