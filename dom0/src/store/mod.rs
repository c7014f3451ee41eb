//! The store: a tree of small values by which domains find each other, served by
//! xenstore's wire protocol (abi-notes 8). The control domain uses it by direct
//! calls, every other domain through its [`ring`].
//!
//! Holds: nothing a client sends panics, and one request costs time and memory
//! bounded by its [`Quota`]. A refusal changes nothing.

mod connection;
pub mod error;
mod local;
mod ops;
pub mod path;
pub mod perms;
pub mod quota;
mod requests;
pub mod ring;
mod transaction;
mod tree;
mod watch;
pub mod wire;

#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod tests;

pub use error::StoreError;
pub use perms::{Access, Perms};
pub use quota::Quota;

use alloc::{collections::BTreeMap, vec::Vec};
use bulkhead_abi::{DomId, xs_wire::XsMsg};
use connection::Connection;
use ops::{Change, Client};
use tree::Tree;
use watch::Watches;

/// The store and its clients.
pub struct Store {
    tree: Tree,
    watches: Watches,
    connections: BTreeMap<DomId, Connection>,
    quota: Quota,
}

impl Store {
    /// An empty store that holds every client but the control domain to `quota`.
    pub fn new(quota: Quota) -> Self {
        let mut connections = BTreeMap::new();
        connections.insert(DomId::DOM0, Connection::default());
        Self { tree: Tree::new(), watches: Watches::default(), connections, quota }
    }

    /// Makes a domain a client, and tells those who watch `@introduceDomain`.
    pub fn introduce(&mut self, domid: DomId) {
        self.connections.entry(domid).or_default();
        self.fire_special("@introduceDomain");
    }

    /// Forgets a client with its watches and transactions, and tells those who watch
    /// `@releaseDomain`. Its nodes stay.
    pub fn release(&mut self, domid: DomId) {
        if domid == DomId::DOM0 {
            return;
        }
        self.watches.remove_all(domid);
        self.connections.remove(&domid);
        self.fire_special("@releaseDomain");
    }

    /// Whether a domain is a client.
    pub fn is_introduced(&self, domid: DomId) -> bool {
        self.connections.contains_key(&domid)
    }

    /// Whether a client has taken enough replies to be heard again.
    pub fn accepts(&self, domid: DomId) -> bool {
        let connection = self.connections.get(&domid);
        connection.is_some_and(|c| c.replies() < self.quota.outstanding)
    }

    /// Whether a message waits for a client.
    pub fn has_output(&self, domid: DomId) -> bool {
        let connection = self.connections.get(&domid);
        connection.is_some_and(Connection::has_output)
    }

    /// The next message for a client.
    pub fn take_output(&mut self, domid: DomId) -> Option<Vec<u8>> {
        self.connections.get_mut(&domid)?.take()
    }

    /// Carries out one request; its reply waits in the client's output afterwards,
    /// and watchers' events in theirs.
    pub fn request(&mut self, domid: DomId, header: XsMsg, payload: &[u8]) {
        requests::serve(self, domid, header, payload);
    }

    fn client(&self, domid: DomId) -> Client {
        Client { domid, quota: (domid != DomId::DOM0).then_some(self.quota) }
    }

    fn fire(&mut self, changes: &[Change]) {
        for change in changes {
            let path = change.path.shared();
            for watch in self.watches.concerned(change) {
                if let Some(connection) = self.connections.get_mut(&watch.client) {
                    let limit = event_limit(watch.client, &self.quota);
                    connection.event(&watch, &path, limit);
                }
            }
        }
    }

    fn fire_special(&mut self, name: &str) {
        for watch in self.watches.special(name, DomId::DOM0) {
            if let Some(connection) = self.connections.get_mut(&DomId::DOM0) {
                connection.event(&watch, &watch.path, usize::MAX);
            }
        }
    }
}

fn event_limit(client: DomId, quota: &Quota) -> usize {
    if client == DomId::DOM0 { usize::MAX } else { quota.events }
}
