//! What the store keeps for one client: replies and events it has not taken yet,
//! and its open transactions. Bounded whatever the client does or leaves undone.

use super::{transaction::Transaction, watch::Watch, wire::message};
use alloc::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    string::String,
    vec::Vec,
};
use bulkhead_abi::xs_wire::XS_WATCH_EVENT;

#[derive(Debug)]
enum Outgoing {
    Reply(Vec<u8>),
    Event(Event),
}

/// A node that a client watches may have changed.
#[derive(Debug, Clone)]
pub struct Event {
    pub watch: Rc<Watch>,
    /// Absolute path of what changed.
    pub path: Rc<str>,
}

impl Event {
    fn to_wire(&self) -> Vec<u8> {
        let mut payload = self.watch.shown(&self.path).into_bytes();
        payload.push(0);
        payload.extend_from_slice(&self.watch.token);
        payload.push(0);
        message(XS_WATCH_EVENT, 0, 0, &payload)
    }
}

/// The store's side of one client.
#[derive(Debug, Default)]
pub struct Connection {
    outgoing: VecDeque<Outgoing>,
    replies: usize,
    /// Which events are in `outgoing`: each only once.
    queued: BTreeSet<(u64, Rc<str>)>,
    pub transactions: BTreeMap<u32, Transaction>,
    last_transaction: u32,
}

impl Connection {
    /// Replies not taken yet.
    pub fn replies(&self) -> usize {
        self.replies
    }

    /// Whether something waits to be taken.
    pub fn has_output(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Queues a reply.
    pub fn reply(&mut self, bytes: Vec<u8>) {
        self.replies += 1;
        self.outgoing.push_back(Outgoing::Reply(bytes));
    }

    /// Queues an event unless the very same waits already. With `limit` events
    /// waiting, what comes is merged into one event for the watched node itself: the
    /// client learns that something below it changed, and memory stays bounded.
    pub fn event(&mut self, watch: &Rc<Watch>, path: &Rc<str>, limit: usize) {
        let path = match self.queued.len() < limit {
            true => path,
            false => &watch.path,
        };
        if self.queued.insert((watch.id, path.clone())) {
            self.outgoing
                .push_back(Outgoing::Event(Event { watch: watch.clone(), path: path.clone() }));
        }
    }

    /// The next message for the client, ready for the wire.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        match self.outgoing.pop_front()? {
            Outgoing::Reply(bytes) => {
                self.replies -= 1;
                Some(bytes)
            }
            Outgoing::Event(event) => {
                self.queued.remove(&(event.watch.id, event.path.clone()));
                Some(event.to_wire())
            }
        }
    }

    /// The events that wait, as path and token; for a client without a wire.
    pub fn take_events(&mut self) -> Vec<(String, Vec<u8>)> {
        self.queued.clear();
        self.replies = 0;
        let events = self.outgoing.drain(..).filter_map(|outgoing| match outgoing {
            Outgoing::Event(e) => Some((e.watch.shown(&e.path), e.watch.token.clone())),
            Outgoing::Reply(_) => None,
        });
        events.collect()
    }

    /// Opens a transaction and gives its number, never 0 and not in use.
    pub fn open_transaction(&mut self) -> u32 {
        loop {
            self.last_transaction = self.last_transaction.wrapping_add(1);
            let id = self.last_transaction;
            if id != 0 && !self.transactions.contains_key(&id) {
                self.transactions.insert(id, Transaction::default());
                return id;
            }
        }
    }

    /// Nodes that all open transactions together have touched.
    pub fn touched(&self) -> usize {
        self.transactions.values().map(Transaction::touched).sum()
    }
}
