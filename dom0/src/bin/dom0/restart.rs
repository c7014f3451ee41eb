//! Guests that asked for a reboot: each is taken away, its driver domains let go of its
//! disks, and it is built again from the manifest. The order matters: a request of the
//! old life must not reach a disk after the new one has started.

use crate::{
    build,
    world::{Handle, Token, World},
};
use alloc::{
    collections::BTreeMap,
    format,
    rc::Rc,
    string::{String, ToString},
};
use async_channel::{Receiver, Sender};
use bulkhead_abi::DomId;
use bulkhead_link::{Event, Exit};
use core::time::Duration;
use dom0::{devices, payload::Payload, store::path::home};
use domain_rt::{exec, time};

/// How long driver domains may take to let go of a guest's disks.
const CLOSING_LIMIT: Duration = Duration::from_secs(10);

/// A guest to be built again.
pub struct Rebuild {
    name: String,
    /// Its id until now.
    domid: DomId,
    /// Heard whenever one of its back ends has changed.
    news: Receiver<()>,
}

/// The guests that wait.
pub struct Restarts {
    queue: Sender<Rebuild>,
    closing: BTreeMap<DomId, Sender<()>>,
}

impl Restarts {
    /// No guest; the receiver is for [`serve`].
    pub fn new() -> (Self, Receiver<Rebuild>) {
        let (queue, wanted) = async_channel::unbounded();
        (Self { queue, closing: BTreeMap::new() }, wanted)
    }

    /// A back end of a guest that waits has changed.
    pub fn back_end_moved(&self, domid: DomId) {
        if let Some(news) = self.closing.get(&domid) {
            // Full means that it is to look already.
            let _ = news.try_send(());
        }
    }
}

/// Builds guests again, as they ask for it.
pub async fn serve(world: Handle, payload: Rc<Payload<'static>>, wanted: Receiver<Rebuild>) {
    while let Ok(rebuild) = wanted.recv().await {
        exec::spawn(build_again(world.clone(), payload.clone(), rebuild)).detach();
    }
}

async fn build_again(world: Handle, payload: Rc<Payload<'static>>, rebuild: Rebuild) {
    let Rebuild { name, domid, news } = rebuild;
    let closed = async {
        while !devices::are_back_ends_closed(&world.borrow().store, domid) {
            // The sender stays until this is over.
            let _ = news.recv().await;
        }
    };
    exec::or(closed, time::sleep(CLOSING_LIMIT)).await;
    let are_closed = world.borrow_mut().forget_back_ends(domid);
    if !world.borrow().table.is_rebooting(&name) {
        return;
    }
    let spec = payload.manifest.domains.iter().find(|spec| spec.name == name);
    match spec {
        Some(spec) if are_closed => build::bring_up(&world, &payload, spec).await,
        _ => {
            let reason = "its driver domain has not let go of its disks";
            let mut world = world.borrow_mut();
            world.restart_failed(&name, reason);
            world.event(Event::BuildFailed { domain: name, reason: reason.into() });
        }
    }
}

impl World {
    /// Takes a guest away that is to be built again, and has that done.
    pub fn begin_restart(&mut self, domid: DomId) {
        let Some(entry) = self.table.rebooting().find(|e| e.domid == domid) else {
            return;
        };
        let name = entry.name.clone();
        let (sender, news) = async_channel::bounded(1);
        self.restarts.closing.insert(domid, sender);
        for folder in self.back_end_folders(domid) {
            let watched = self.store.watch(&folder, &Token::BackEnds(domid).to_string());
            if let Err(error) = watched {
                self.log(format!("{folder} can not be watched: {error}"));
            }
        }
        self.remove(domid, true);
        self.event(Event::Progress { domain: name.clone(), step: "rebooting".into() });
        // The receiver lives as long as this domain.
        let _ = self.restarts.queue.try_send(Rebuild { name, domid, news });
    }

    /// The folders of the back ends that serve a guest.
    fn back_end_folders(&self, domid: DomId) -> impl Iterator<Item = String> + use<> {
        let entry = self.table.all().iter().find(|e| e.domid == domid);
        let disks = entry.map(|e| e.disks.clone()).unwrap_or_default();
        let drivers = disks.iter().filter_map(|disk| self.table.by_name(&disk.driver));
        let mut drivers: alloc::vec::Vec<_> = drivers.map(|driver| driver.domid).collect();
        drivers.dedup();
        drivers
            .into_iter()
            .map(move |driver| format!("{}/backend/vbd/{}", home(driver), domid.get()))
    }

    /// Removes what is left of a guest's old life; whether its back ends have let go of it.
    fn forget_back_ends(&mut self, domid: DomId) -> bool {
        let are_closed = devices::are_back_ends_closed(&self.store, domid);
        self.restarts.closing.remove(&domid);
        for folder in self.back_end_folders(domid) {
            self.store.unwatch(&folder, &Token::BackEnds(domid).to_string());
        }
        if let Err(error) = devices::remove_back_ends(&mut self.store, domid) {
            self.log(format!("{domid}: its back ends can not be removed: {error}"));
        }
        self.store_settled();
        are_closed
    }

    /// Ends a guest that waits to be built again.
    pub fn cancel_restart(&mut self, name: &str, reason: &str) {
        self.table.rebooting().filter(|e| e.name == name).for_each(|e| e.killed(reason));
        let (domain, reason) = (name.into(), reason.into());
        self.event(Event::Ended { domain, exit: Exit::Killed, reason });
    }

    /// Notes that a guest could not be built again; nothing if it did not wait for that.
    pub fn restart_failed(&mut self, name: &str, reason: &str) {
        let waiting = self.table.rebooting().filter(|e| e.name == name);
        waiting.for_each(|e| e.reboot_failed(reason));
    }
}
