//! Descriptor rings in memory shared between two domains, and the vocabulary
//! that block devices speak on them. One crate for both ends, and for guests
//! that want to adopt it: it knows nothing of grants, event channels, xenstore
//! or of any other crate of Bulkhead.
//!
//! Layout (public/io/ring.h, MIT): a header of 64 bytes with four free-running
//! u32 cursors, then a power-of-two number of slots, each big enough for a request
//! or a response. A response is written over the slot of a request already taken.
//!
//! The rules that keep an end safe from the other one:
//! - an entry is copied out once and judged afterwards; nothing is read twice;
//! - what the peer may do to a cursor is checked against our own, private, cursors;
//!   an absurd one is [`Broken`], a value, never a panic;
//! - no Rust reference into shared memory is ever made ([`memory`] is the only
//!   place with `unsafe`).
//!
//! How notifications are saved: an end that goes to sleep stores into `*_event` the
//! cursor value at which it wants to be woken, and looks once more
//! (`final_check`); the other one signals only if its push passed that value.
#![no_std]
#![deny(unsafe_code)]

pub mod back;
pub mod blkif;
pub mod front;
pub mod layout;
pub mod memory;

pub use back::BackRing;
pub use front::FrontRing;
pub use layout::{Broken, Geometry, Protocol, TooSmall};
pub use memory::{RawPages, RingMemory};

/// A grant reference, as it travels in requests: an index into the grant table
/// of the front end's domain. Claims nothing about what the entry holds.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
#[repr(transparent)]
pub struct Gref(u32);

impl Gref {
    /// Takes a raw reference.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The raw reference.
    pub const fn get(self) -> u32 {
        self.0
    }
}
