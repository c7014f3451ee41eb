//! The traits of [`crate::platform`] on Bulkhead's runtime. Nothing but translation.

use crate::platform::{self, NoRoom, Peer, Platform, StoreFailed};
use alloc::string::String;
use alloc::vec::Vec;
use domain_rt::abi::{DomId, Gref as OwnGref};
use domain_rt::xenstore::{self, Error, Xenstore};
use domain_rt::{event, grant, mem};
use ring_proto::{Gref, RingMemory};

/// A domain as a platform of front ends.
pub struct Domain {
    store: Store,
}

impl Domain {
    /// A domain whose store is `store`.
    pub fn new(store: Xenstore) -> Self {
        Self { store: Store(store) }
    }
}

impl Platform for Domain {
    type Pages = Granted;
    type Channel = event::Channel;
    type Store = Store;

    fn share(&self, peer: Peer, count: usize) -> Result<Granted, NoRoom> {
        let pages = mem::alloc_pages(count).ok_or(NoRoom)?;
        let mut granted = Granted { pages: Some(pages), grefs: Vec::new() };
        for index in 0..count {
            let mfn = granted.pages().mfn(index);
            let gref = grant::grant_access(DomId::new(peer.get()), mfn, false);
            let gref = gref.map_err(|_| NoRoom)?;
            granted.grefs.push(Gref::new(gref.get()));
        }
        Ok(granted)
    }

    fn open_channel(&self, peer: Peer) -> Result<event::Channel, NoRoom> {
        event::alloc_unbound(DomId::new(peer.get())).map_err(|_| NoRoom)
    }

    fn store(&self) -> &Store {
        &self.store
    }
}

/// Pages that are granted to a peer.
pub struct Granted {
    pages: Option<mem::Pages>,
    grefs: Vec<Gref>,
}

impl Granted {
    fn pages(&self) -> &mem::Pages {
        self.pages.as_ref().expect("held until dropped")
    }
}

impl RingMemory for Granted {
    fn bytes(&self) -> usize {
        self.pages().bytes()
    }
    fn load(&self, offset: usize) -> u32 {
        self.pages().shared().load_u32(offset)
    }
    fn store(&self, offset: usize, value: u32) {
        self.pages().shared().store_u32(offset, value);
    }
    fn store_wide(&self, offset: usize, value: u64) {
        self.pages().shared().store_u64(offset, value);
    }
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        self.pages().shared().copy_out(offset, into);
    }
    fn copy_in(&self, offset: usize, from: &[u8]) {
        self.pages().shared().copy_in(offset, from);
    }
}

impl platform::Pages for Granted {
    fn grefs(&self) -> &[Gref] {
        &self.grefs
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        let refused = self
            .grefs
            .iter()
            .filter(|gref| grant::end_access(OwnGref::new(gref.get())).is_err())
            .count();
        if refused > 0 {
            // The peer may still write there: these frames are lost to us.
            log::warn!("{refused} granted pages are still in use by the peer");
            core::mem::forget(self.pages.take());
        }
    }
}

impl platform::Channel for event::Channel {
    fn port(&self) -> u32 {
        event::Channel::port(self).get()
    }
    fn notify(&self) {
        // Fails only when the peer is gone; then nobody has to be woken.
        let _ = event::Channel::notify(self);
    }
    async fn wait(&self) {
        event::Channel::wait(self).await;
    }
}

/// The store of a domain.
pub struct Store(Xenstore);

impl platform::Store for Store {
    type Watch = xenstore::Watch;

    async fn read(&self, path: &str) -> Result<Option<String>, StoreFailed> {
        match self.0.read(path).await {
            Ok(value) => Ok(Some(value)),
            Err(Error::NotFound) => Ok(None),
            Err(_) => Err(StoreFailed),
        }
    }

    async fn write(&self, path: &str, value: &str) -> Result<(), StoreFailed> {
        self.0.write(path, value).await.map_err(|_| StoreFailed)
    }

    async fn watch(&self, path: &str) -> Result<xenstore::Watch, StoreFailed> {
        self.0.watch(path).await.map_err(|_| StoreFailed)
    }
}

impl platform::Watch for xenstore::Watch {
    async fn next(&mut self) {
        // A broken store shows at the read that follows.
        let _ = xenstore::Watch::next(self).await;
    }
}
