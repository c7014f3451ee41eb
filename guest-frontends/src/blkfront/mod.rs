//! Disks: finds one in xenstore, shakes hands with its back end ([`connect`]) and
//! drives it ([`Disk`]). After that the back end may die and come back: nothing here
//! notices, requests merely take longer. One that breaks the protocol is told on, and what
//! it has not answered is asked for again on a new ring ([`recover`]).

mod disk;
mod handshake;
pub mod integrity;
pub mod queue;

pub use disk::{Disk, DiskError, Done, Facts, PAGE_BYTES, SECTOR_BYTES, Ticket};
pub use handshake::{ConnectError, Options, close, connect, disks, recover, virtual_device};
