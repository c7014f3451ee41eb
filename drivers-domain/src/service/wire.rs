//! What is written in xenstore about a disk: reading what Dom0 and the front end wrote,
//! writing what they wait for (public/io/blkif.h). Everything read is checked here.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_abi::xs_wire::{XENBUS_CONNECTED, XENBUS_INITIALISING};
use bulkhead_abi::{DomId, Gref, Port};
use domain_rt::xenstore::{Error, Result, Xenstore};

/// log2 of the most pages of a ring.
pub const MAX_RING_PAGE_ORDER: u32 = 2;

/// A disk as Dom0 announced it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The front end's folder.
    pub frontend: String,
    /// Its domain.
    pub front: DomId,
    /// The device: bus << 8 | device << 3 | function.
    pub device: u32,
    /// First sector of the range.
    pub first_sector: u64,
    /// Its sectors; 0 for all that follow.
    pub sectors: u64,
    /// Writes are allowed.
    pub writable: bool,
    /// Its slot in the ledger.
    pub ledger_slot: usize,
    /// Our state, as it stands in xenstore.
    pub state: u32,
}

/// Reads the announcement in the folder `path`.
pub async fn read_announced(store: &Xenstore, path: &str) -> Result<Announced> {
    let number = async |name: &str| store.read_u64(&format!("{path}/{name}")).await;
    let or = async |name: &str, otherwise| match number(name).await {
        Err(Error::NotFound) => Ok(otherwise),
        other => other,
    };
    Ok(Announced {
        frontend: store.read(&format!("{path}/frontend")).await?,
        front: DomId::new(narrow(number("frontend-id").await?)?),
        device: narrow(number("device").await?)?,
        first_sector: or("first-sector", 0).await?,
        sectors: or("sectors-wanted", or("sectors", 0).await?).await?,
        writable: store.read(&format!("{path}/mode")).await?.trim() == "w",
        ledger_slot: narrow(or("ledger-slot", 0).await?)?,
        state: narrow(number("state").await?)?,
    })
}

/// Whether a disk waits for us: it is new, or a life of ours before this one served it. That
/// can have died at any point of the handshake, so at the `first_look` of a life any state will
/// do; later on the others are those of disks that are in service, or over.
pub async fn wants_service(store: &Xenstore, path: &str, first_look: bool) -> Result<bool> {
    match store.read_u64(&format!("{path}/state")).await {
        Ok(_) if first_look => Ok(true),
        Ok(state) => Ok([XENBUS_INITIALISING, XENBUS_CONNECTED].map(u64::from).contains(&state)),
        Err(Error::NotFound | Error::Malformed | Error::Access) => Ok(false),
        Err(error) => Err(error),
    }
}

fn narrow<T: TryFrom<u64>>(number: u64) -> Result<T> {
    T::try_from(number).map_err(|_| Error::Malformed)
}

/// How to reach the ring of a front end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingWire {
    /// Its pages, in order.
    pub pages: Vec<Gref>,
    /// The front end's port.
    pub port: Port,
}

/// Reads what the front end wrote before it said that it is ready.
pub async fn read_ring(store: &Xenstore, frontend: &str) -> Result<RingWire> {
    let number = async |name: &str| store.read_u64(&format!("{frontend}/{name}")).await;
    let protocol = store.read(&format!("{frontend}/protocol")).await;
    if protocol.is_ok_and(|protocol| protocol.trim() != "x86_64-abi") {
        return Err(Error::Invalid);
    }
    let mut pages = Vec::new();
    match number("ring-page-order").await {
        Ok(order) if order <= MAX_RING_PAGE_ORDER.into() => {
            for i in 0..1_u32 << order {
                let gref = number(&format!("ring-ref{i}")).await?;
                pages.push(Gref::new(narrow(gref)?));
            }
        }
        Ok(_) => return Err(Error::Malformed),
        Err(_) => pages.push(Gref::new(narrow(number("ring-ref").await?)?)),
    }
    let port = Port::new(narrow(number("event-channel").await?)?);
    Ok(RingWire { pages, port })
}

/// Writes nodes in a folder.
pub async fn write_all(store: &Xenstore, path: &str, nodes: &[(&str, u64)]) -> Result<()> {
    for (name, value) in nodes {
        let node = format!("{path}/{name}");
        store.write(&node, &value.to_string()).await?;
    }
    Ok(())
}

/// The state of a front end, 0 once it has no folder any more.
pub async fn front_state(store: &Xenstore, frontend: &str) -> Result<u32> {
    match store.read_u64(&format!("{frontend}/state")).await {
        Ok(state) => Ok(u32::try_from(state).unwrap_or_default()),
        Err(Error::NotFound | Error::Malformed | Error::Access) => Ok(0),
        Err(error) => Err(error),
    }
}
