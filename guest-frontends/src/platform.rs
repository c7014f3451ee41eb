//! What a guest brings so that front ends run on it. Small on purpose: this is all
//! that a port has to write.

use alloc::string::String;
use core::fmt;
use core::future::Future;
use ring_proto::{Gref, RingMemory};

/// The domain at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(u16);

impl Peer {
    /// Takes a raw domid.
    pub const fn new(domid: u16) -> Self {
        Self(domid)
    }

    /// The raw domid.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// Pages of this guest that a peer may map and write. Dropping them takes the grants
/// back; while the peer still has them mapped they must not be used for anything else.
pub trait Pages: RingMemory {
    /// One reference for each page, in order.
    fn grefs(&self) -> &[Gref];
}

/// An event channel to a peer.
pub trait Channel {
    /// Our port, for the peer to bind to.
    fn port(&self) -> u32;
    /// Sends an event.
    fn notify(&self);
    /// Waits for an event. One that came since the last wait ends it at once.
    fn wait(&self) -> impl Future<Output = ()>;
}

/// Xenstore said no, or is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreFailed;

impl fmt::Display for StoreFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("xenstore failed")
    }
}

/// The xenstore client. Paths are absolute, or relative to this domain's home.
pub trait Store {
    /// A watch that stays until dropped.
    type Watch: Watch;
    /// Reads a node; `None` if there is none.
    fn read(&self, path: &str) -> impl Future<Output = Result<Option<String>, StoreFailed>>;
    /// Writes a node.
    fn write(&self, path: &str, value: &str) -> impl Future<Output = Result<(), StoreFailed>>;
    /// Watches a node and all below it.
    fn watch(&self, path: &str) -> impl Future<Output = Result<Self::Watch, StoreFailed>>;
}

/// A watch on a node.
pub trait Watch {
    /// Waits until it may have changed. Ends at once the first time.
    fn next(&mut self) -> impl Future<Output = ()>;
}

/// Out of memory, grants or ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// A guest.
pub trait Platform {
    /// Granted pages.
    type Pages: Pages;
    /// Event channels.
    type Channel: Channel;
    /// The xenstore client.
    type Store: Store;

    /// Gives `count` zeroed pages, next to each other, that `peer` may map and write.
    fn share(&self, peer: Peer, count: usize) -> Result<Self::Pages, NoRoom>;
    /// Opens a port that `peer` may bind to.
    fn open_channel(&self, peer: Peer) -> Result<Self::Channel, NoRoom>;
    /// The store.
    fn store(&self) -> &Self::Store;
}
