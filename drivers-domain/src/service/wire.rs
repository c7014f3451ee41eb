//! What is written in xenstore about a disk: reading what Dom0 and the front end wrote,
//! writing what they wait for (public/io/blkif.h). Everything read is checked here.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bulkhead_abi::xs_wire::{XENBUS_CONNECTED, XENBUS_INITIALISING};
use bulkhead_abi::{DomId, Gref, Port};
use domain_rt::xenstore::{Error, Result, Xenstore, number};

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
    const NAMES: [&str; 9] = [
        "frontend",
        "mode",
        "frontend-id",
        "device",
        "first-sector",
        "sectors-wanted",
        "sectors",
        "ledger-slot",
        "state",
    ];
    let paths = NAMES.map(|name| format!("{path}/{name}"));
    let [frontend, mode, numbers @ ..] = store.read_all(paths.each_ref().map(|p| &**p)).await;
    let [front, device, first_sector, wanted, sectors, slot, state] = numbers.map(number);
    Ok(Announced {
        frontend: frontend?,
        front: DomId::new(narrow(front?)?),
        device: narrow(device?)?,
        first_sector: or(first_sector, 0)?,
        sectors: or(wanted, or(sectors, 0)?)?,
        writable: mode?.trim() == "w",
        ledger_slot: narrow(or(slot, 0)?)?,
        state: narrow(state?)?,
    })
}

/// The number of a node that may be missing.
fn or(number: Result<u64>, otherwise: u64) -> Result<u64> {
    match number {
        Err(Error::NotFound) => Ok(otherwise),
        other => other,
    }
}

/// Whether a disk waits for us: it is new, or a life of ours before this one served it. (At the
/// first look of a life any state will do, for that can have died at any point of the handshake;
/// later on the others are those of disks that are in service, or over.)
pub async fn wants_service(store: &Xenstore, path: &str) -> Result<bool> {
    match store.read_u64(&format!("{path}/state")).await {
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
    const NAMES: [&str; 8] = [
        "protocol",
        "event-channel",
        "ring-page-order",
        "ring-ref",
        "ring-ref0",
        "ring-ref1",
        "ring-ref2",
        "ring-ref3",
    ];
    let paths = NAMES.map(|name| format!("{frontend}/{name}"));
    let [protocol, numbers @ ..] = store.read_all(paths.each_ref().map(|p| &**p)).await;
    if protocol.is_ok_and(|protocol| protocol.trim() != "x86_64-abi") {
        return Err(Error::Invalid);
    }
    let [port, order, only, refs @ ..] = numbers.map(number);
    const _: () = assert!(NAMES.len() == 4 + (1 << MAX_RING_PAGE_ORDER));
    let grefs = match order {
        Ok(order) if order <= MAX_RING_PAGE_ORDER.into() => refs.into_iter().take(1 << order),
        Ok(_) => return Err(Error::Malformed),
        Err(_) => [only, Ok(0), Ok(0), Ok(0)].into_iter().take(1),
    };
    let pages = grefs.map(|gref| Ok(Gref::new(narrow(gref?)?))).collect::<Result<_>>()?;
    Ok(RingWire { pages, port: Port::new(narrow(port?)?) })
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
