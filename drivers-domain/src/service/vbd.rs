//! The task of one virtual disk: the back half of the handshake, from its announcement
//! until the front end is gone. A disk that was connected when this domain died is taken
//! up without a word to xenstore.

use super::Context;
use super::device::Service;
use super::wire::{self, Announced, MAX_RING_PAGE_ORDER, RingWire};
use crate::ledger::RingLedger;
use crate::made_of;
use crate::platform::{Bell, FrontMemory, MappedRing, OnDomain};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::{String, ToString};
use async_channel::Receiver;
use blkback::{EndReason, MAX_INDIRECT_SEGMENTS, OnFailure, Parts, Range, Vbd, VbdId};
use bulkhead_abi::xs_wire::{
    XENBUS_CLOSED, XENBUS_CLOSING, XENBUS_CONNECTED, XENBUS_INIT_WAIT, XENBUS_INITIALISED,
    XENBUS_INITIALISING,
};
use domain_rt::event::{self, Channel};
use domain_rt::exec::{self, Task};
use domain_rt::xenstore::{Watch, Xenstore};

/// `info` bit: writes fail.
const INFO_READ_ONLY: u64 = 4;
/// The front end's folder is gone, or says nothing.
const GONE: u32 = 0;

/// Why a disk is not served any more, for the log.
type Failure = String;

/// Serves the disk announced at `path` until it is over.
pub async fn serve(context: &Context, path: &str) {
    let store = &context.store;
    // One that is over has said so; saying it again might bring a folder back that is gone.
    let Err(failure) = serve_until_gone(context, path).await else {
        return;
    };
    log::warn!("{path}: {failure}");
    if let Err(error) = say_closed(store, path).await {
        log::warn!("{path}: {error}");
    }
}

/// Says that the disk is closed, unless its folder is gone: then there is nobody to
/// tell, and it must not come back.
async fn say_closed(store: &Xenstore, path: &str) -> domain_rt::xenstore::Result<()> {
    match store.read(&format!("{path}/frontend")).await {
        Ok(_) => set_state(store, path, XENBUS_CLOSED).await,
        Err(_) => Ok(()),
    }
}

async fn serve_until_gone(context: &Context, path: &str) -> Result<(), Failure> {
    let store = &context.store;
    let announced = wire::read_announced(store, path).await.map_err(text)?;
    let service = context.services.get(&announced.device);
    let service = service.ok_or("its device is not here")?;
    let range =
        Range::new(&service.facts(), announced.first_sector, announced.sectors, announced.writable);
    let mut left = None;
    let look = async {
        if announced.state == XENBUS_CONNECTED {
            left = Some(Left::read(store, &announced).await);
        }
    };
    let (watch, ()) = exec::join(watch_front(store, &announced), look).await;
    let range = range.map_err(text)?;
    let disk = Disk { context, service, path, range, watch: watch?, announced };
    // An earlier life has died while it closed.
    let is_closing = [XENBUS_CLOSING, XENBUS_CLOSED].contains(&disk.announced.state);
    if is_closing && !disk.close_and_wait().await? {
        return Ok(());
    }
    loop {
        // What a front end did wrong ends this connection, not the disk.
        match disk.serve_once(left.take()).await {
            Ok(()) => disk.see_off().await?,
            Err(failure) => log::warn!("{path}: {failure}"),
        }
        if !disk.close_and_wait().await? {
            return Ok(());
        }
    }
}

async fn watch_front(store: &Xenstore, announced: &Announced) -> Result<Watch, Failure> {
    let path = format!("{}/state", announced.frontend);
    store.watch(&path).await.map_err(text)
}

async fn set_state(store: &Xenstore, path: &str, state: u32) -> domain_rt::xenstore::Result<()> {
    store.write(&format!("{path}/state"), &state.to_string()).await
}

fn text(error: impl core::fmt::Display) -> Failure {
    error.to_string()
}

/// What an earlier life has left.
struct Left {
    state: domain_rt::xenstore::Result<u32>,
    ring: domain_rt::xenstore::Result<RingWire>,
}

impl Left {
    async fn read(store: &Xenstore, announced: &Announced) -> Self {
        let front = &announced.frontend;
        let (state, ring) =
            exec::join(wire::front_state(store, front), wire::read_ring(store, front)).await;
        Self { state, ring }
    }
}

/// A disk that is in service.
struct Life {
    id: VbdId,
    end: Receiver<EndReason>,
    /// Wakes the service when the front end calls; ends with this value.
    _listener: Task<()>,
}

/// An announced disk and what it takes to serve it.
struct Disk<'a> {
    context: &'a Context,
    service: &'a Service,
    path: &'a str,
    range: Range,
    announced: Announced,
    watch: Watch,
}

impl Disk<'_> {
    /// One connection from its start, or from where an earlier life left it, to its end.
    async fn serve_once(&self, left: Option<Left>) -> Result<(), Failure> {
        let life = match left {
            Some(left) => self.take_up(left)?,
            None => self.connect().await?,
        };
        match life {
            Some(life) => self.stay(life).await,
            None => Ok(()),
        }
    }

    /// Offers the disk, waits for the front end and connects. `None` if that goes away.
    async fn connect(&self) -> Result<Option<Life>, Failure> {
        self.offer().await.map_err(text)?;
        loop {
            match self.next_state().await? {
                XENBUS_INITIALISED | XENBUS_CONNECTED => break,
                XENBUS_CLOSING | XENBUS_CLOSED | GONE => return Ok(None),
                _ => {}
            }
        }
        let ring = wire::read_ring(&self.context.store, &self.announced.frontend);
        let ring = ring.await.map_err(text)?;
        let life = self.start(ring, |parts| Vbd::new(parts).map(|vbd| self.refusing(vbd)))?;
        let info = if self.range.is_writable() { 0 } else { INFO_READ_ONLY };
        let nodes = [
            ("sectors", self.range.sectors()),
            ("sector-size", 512),
            ("physical-sector-size", 512),
            ("info", info),
        ];
        let store = &self.context.store;
        wire::write_all(store, self.path, &nodes).await.map_err(text)?;
        set_state(store, self.path, XENBUS_CONNECTED).await.map_err(text)?;
        log::info!("{}: connected, {} sectors", self.path, self.range.sectors());
        Ok(Some(life))
    }

    /// A disk with a new ring: there is nothing to decide on but whether it is served.
    fn refusing(&self, vbd: Vbd<OnDomain>) -> Vbd<OnDomain> {
        match self.context.ledger.on_failure() {
            OnFailure::Refuse => vbd.treating(OnFailure::Refuse),
            OnFailure::Reissue | OnFailure::Queue | OnFailure::Fail => vbd,
        }
    }

    /// Goes on with a disk that an earlier life of this domain served.
    fn take_up(&self, left: Left) -> Result<Option<Life>, Failure> {
        match left.state.map_err(text)? {
            XENBUS_INITIALISED | XENBUS_CONNECTED => {}
            _ => return Ok(None),
        }
        let policy = self.context.ledger.on_failure();
        let resume = |parts| Vbd::resume(parts).map(|vbd| vbd.treating(policy));
        let life = self.start(left.ring.map_err(text)?, resume)?;
        log::info!("{}: taken up again", self.path);
        Ok(Some(life))
    }

    /// Writes what we can do, and that we wait.
    async fn offer(&self) -> domain_rt::xenstore::Result<()> {
        let store = &self.context.store;
        let facts = self.service.facts();
        let nodes = [
            ("feature-flush-cache", 1),
            ("feature-max-indirect-segments", MAX_INDIRECT_SEGMENTS as u64),
            ("max-ring-page-order", MAX_RING_PAGE_ORDER.into()),
            ("sectors-wanted", self.announced.sectors),
        ];
        wire::write_all(store, self.path, &nodes).await?;
        if facts.discard {
            wire::write_all(store, self.path, &[("feature-discard", 1)]).await?;
        }
        set_state(store, self.path, XENBUS_INIT_WAIT).await
    }

    /// Maps the ring, binds the port and takes the disk into service.
    fn start<E>(
        &self,
        RingWire { pages, port }: RingWire,
        make: impl FnOnce(Parts<OnDomain>) -> Result<Vbd<OnDomain>, E>,
    ) -> Result<Life, Failure> {
        let front = self.announced.front;
        let ring = MappedRing::map(front, &pages).map_err(text)?;
        let channel = Rc::new(event::bind_interdomain(front, port).map_err(text)?);
        let slot = self.announced.ledger_slot;
        let parts = Parts {
            ring: made_of::ring(ring),
            memory: FrontMemory::new(front).ok_or("out of memory")?,
            ledger: RingLedger::new(self.context.ledger.clone(), slot)
                .ok_or_else(|| format!("the ledger has no slot {slot}"))?,
            notifier: made_of::notifier(Bell(channel.clone())),
            range: self.range,
        };
        let vbd = make(parts).map_err(|_| "the ring is too small")?;
        let (id, end) = self.service.add(vbd);
        Ok(Life { id, end, _listener: listen(channel, self.service.clone()) })
    }

    /// Waits until the front end closes or is gone, or breaks its ring; then ends it.
    async fn stay(&self, life: Life) -> Result<(), Failure> {
        let broken = async { Ok(life.end.recv().await.ok()) };
        let closed = async {
            loop {
                match self.next_state().await {
                    Ok(XENBUS_INITIALISED | XENBUS_CONNECTED) => {}
                    Ok(_) => return Ok(None),
                    Err(failure) => return Err(failure),
                }
            }
        };
        let outcome: Result<Option<EndReason>, Failure> = exec::select(broken, closed).await;
        if let Ok(Some(reason)) = outcome {
            let store = &self.context.store;
            set_state(store, self.path, XENBUS_CLOSING).await.map_err(text)?;
            return Err(format!("not served any more: {reason}"));
        }
        self.service.close(life.id);
        // The service outlives this task, so the end is always heard of.
        let _ = life.end.recv().await;
        outcome.map(drop)
    }

    /// Its ring is unmapped. A front end that is closing waits for us to say that we close, and
    /// is done with it when it says that it has closed: only then may we.
    async fn see_off(&self) -> Result<(), Failure> {
        let store = &self.context.store;
        let mut state = self.front_state().await?;
        if state == XENBUS_CLOSING {
            set_state(store, self.path, XENBUS_CLOSING).await.map_err(text)?;
        }
        while state == XENBUS_CLOSING {
            state = self.next_state().await?;
        }
        log::info!("{}: closed", self.path);
        Ok(())
    }

    /// Says that the disk is closed, and waits: the same folder may be used again, by a guest
    /// that boots anew. False when it is gone.
    async fn close_and_wait(&self) -> Result<bool, Failure> {
        say_closed(&self.context.store, self.path).await.map_err(text)?;
        self.wait_for_return().await
    }

    /// After a close: whether the front end starts again. False when it is gone.
    async fn wait_for_return(&self) -> Result<bool, Failure> {
        loop {
            match self.front_state().await? {
                XENBUS_INITIALISING => return Ok(true),
                GONE => return Ok(false),
                _ => {}
            }
            self.watch.next().await.ok_or("xenstore is gone")?;
        }
    }

    /// Waits for a change, and gives the front end's state.
    async fn next_state(&self) -> Result<u32, Failure> {
        self.watch.next().await.ok_or("xenstore is gone")?;
        self.front_state().await
    }

    async fn front_state(&self) -> Result<u32, Failure> {
        let state = wire::front_state(&self.context.store, &self.announced.frontend);
        state.await.map_err(text)
    }
}

/// Wakes the service whenever the front end calls.
fn listen(channel: Rc<Channel>, service: Service) -> Task<()> {
    exec::spawn(async move {
        loop {
            channel.wait().await;
            service.wake();
        }
    })
}
