//! What driver domains are made of: access to a PCI device through the core, drivers,
//! and the service of guests that xenstore announces. The protocol itself is in
//! `blkback`; what a domain is and how it maps and waits is `domain-rt`'s.
//!
//! A driver domain keeps nothing that it could not find again: what it needs to go on
//! after its death is in the rings of its guests, in the ledger and in xenstore.
//!
//! - [`pci`]: configuration space as drivers expect it.
//! - [`dma`]: the memory that devices reach; the only `unsafe` of this crate, with
//!   [`virtio`].
//! - [`virtio`]: the virtio block device.
//! - [`drive`]: that device, or none.
//! - [`platform`]: `blkback`'s traits on `domain-rt`.
//! - [`ledger`]: the pages that outlive this domain.
//! - [`service`]: one task per device, one per virtual disk.
//! - [`disk`]: the domain itself.
//! - `honest` and `faults`: the parts of a service as they are, and those that do wrong on
//!   order, in domains for fault injection (feature `faults`).
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod disk;
pub mod dma;
pub mod drive;
#[cfg(feature = "faults")]
pub mod faults;
#[cfg(not(feature = "faults"))]
mod honest;
pub mod ledger;
pub mod pci;
pub mod platform;
pub mod service;
pub mod virtio;

#[cfg(feature = "faults")]
use faults::parts as made_of;
#[cfg(not(feature = "faults"))]
use honest as made_of;
