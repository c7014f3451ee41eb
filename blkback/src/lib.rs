//! The block back end: takes requests from the rings of several front ends, lets a
//! block device carry them out, and answers. It knows neither what the device is nor
//! how grants are mapped or events sent: that is in the traits of [`device`] and
//! [`guest`], which a driver domain fills in and a host test fakes.
//!
//! What it promises:
//! - A front end reaches the sectors of its own [`Range`] and no others, in the
//!   direction that it was allowed.
//! - Every request gets exactly one response, and responses come in the order of the
//!   requests, each published by itself, its redo record written first ([`ledger`]). So a
//!   back end that dies at any point can be followed by another one that goes on where
//!   it was ([`Vbd::resume`]); what becomes of requests that were taken is a choice
//!   ([`OnFailure`]).
//! - A request that makes no sense gets an error; a ring that makes no sense ends the
//!   service of that front end, with a reason. Neither disturbs the others.
//! - Front ends are served in turn, a bounded number of requests at a time.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod device;
#[cfg(feature = "faults")]
pub mod faults;
pub mod guest;
pub mod ledger;
mod range;
mod server;
mod takeover;
mod vbd;

pub use device::{BlockDevice, Completion, DeviceError, DeviceFacts, Job, Token};
pub use guest::{GrantRefused, GuestMemory, Notifier};
pub use ledger::{Counters, Cursors, Ledger, Redo, SharedLedger};
pub use range::{OutOfRange, Range, RangeError};
pub use ring_proto::blkif::{Direction, Segment};
pub use server::{Ended, Server, Step, VbdId};
pub use takeover::OnFailure;
pub use vbd::{EndReason, MAX_INDIRECT_SEGMENTS, Parts, Vbd};

/// The kinds of thing that one service is made of.
pub trait Platform {
    /// Memory of a ring.
    type Ring: ring_proto::RingMemory;
    /// The pages of a front end.
    type Memory: GuestMemory;
    /// Where the redo record and the counters of a ring live.
    type Ledger: Ledger;
    /// How a front end is woken.
    type Notifier: Notifier;
    /// What holds the data.
    type Device: BlockDevice<Buffer = BufferOf<Self>>;
}

/// The mapped pages of one request.
pub type BufferOf<P> = <<P as Platform>::Memory as GuestMemory>::Buffer;
