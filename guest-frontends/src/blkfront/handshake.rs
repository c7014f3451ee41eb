//! From a folder in xenstore to a connected disk, and the state machine of a device's
//! front half (public/io/blkif.h, public/io/xenbus.h). All numbers read from the back
//! end's folder are its claims, and bounded here.

use super::disk::{Disk, Facts, PAGE_BYTES};
use super::integrity::Integrity;
use super::queue::{Queue, Violation};
use crate::platform::{Channel, NoRoom, Pages, Peer, Platform, Store, StoreFailed, Watch};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;
use ring_proto::blkif::MAX_SEGMENTS;

const INITIALISING: u32 = 1;
const INIT_WAIT: u32 = 2;
const INITIALISED: u32 = 3;
const CONNECTED: u32 = 4;
const CLOSING: u32 = 5;
const CLOSED: u32 = 6;

/// Info bit: writes fail.
const INFO_READ_ONLY: u32 = 4;

/// How much of what the back end offers is used.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// log2 of the most pages of the ring.
    pub ring_page_order: u32,
    /// Most pages of data of one request, at most 512.
    pub segments: usize,
    /// Most requests in flight that carry data: each has its own pages.
    pub in_flight: usize,
    /// Keep a checksum (CRC-32C) of every block of 4 KiB, and refuse a read that is not what
    /// was written ([`super::DiskError::Corrupt`]). Takes 4 bytes of memory for each, and requests
    /// of whole blocks that do not meet each other.
    pub integrity: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { ring_page_order: 0, segments: 32, in_flight: 32, integrity: false }
    }
}

/// Why there is no disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// Xenstore failed.
    Store,
    /// A node is missing or makes no sense.
    BadNode(String),
    /// Out of memory, grants or ports.
    NoRoom,
    /// The back end closed instead of connecting.
    Refused,
    /// It is not the same disk any more, or the back end takes less than before.
    Changed,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store => f.write_str("xenstore failed"),
            Self::BadNode(path) => write!(f, "xenstore: {path} is missing or makes no sense"),
            Self::NoRoom => f.write_str("out of memory, grants or event channels"),
            Self::Refused => f.write_str("the back end refused"),
            Self::Changed => f.write_str("the back end offers another disk than before"),
        }
    }
}

impl core::error::Error for ConnectError {}

impl From<StoreFailed> for ConnectError {
    fn from(_: StoreFailed) -> Self {
        Self::Store
    }
}

impl From<NoRoom> for ConnectError {
    fn from(_: NoRoom) -> Self {
        Self::NoRoom
    }
}

/// The number of a disk called `xvda` to `xvdp`, as its folder is named.
pub fn virtual_device(name: &str) -> Option<u32> {
    match name.strip_prefix("xvd")?.as_bytes() {
        [letter @ b'a'..=b'p'] => Some(202 << 8 | u32::from(letter - b'a') << 4),
        _ => None,
    }
}

/// The names of the disks `xvda` to `xvdp` that this guest has.
pub async fn disks<P: Platform>(platform: &P) -> Result<Vec<String>, ConnectError> {
    let mut names = Vec::new();
    for letter in 'a'..='p' {
        let name = format!("xvd{letter}");
        let number = virtual_device(&name).unwrap_or_default();
        let path = format!("device/vbd/{number}/backend");
        if platform.store().read(&path).await?.is_some() {
            names.push(name);
        }
    }
    Ok(names)
}

/// Connects the disk of that number, or waits until its back end lets it.
pub async fn connect<P: Platform>(
    platform: &P,
    number: u32,
    options: Options,
) -> Result<Disk<P>, ConnectError> {
    let nodes = Nodes::find(platform.store(), number).await?;
    nodes.wait_for(|state| matches!(state, INIT_WAIT | CONNECTED)).await?;
    let (queue, channel) = set_up_ring(platform, &nodes, number, options.ring_page_order).await?;
    let facts = nodes.facts(&options, queue.slots()).await?;
    let pages = facts.max_bytes / PAGE_BYTES + 1;
    let slots: Result<Vec<_>, _> =
        (0..facts.max_in_flight).map(|_| platform.share(nodes.peer, pages)).collect();
    let integrity = match options.integrity {
        true => Some(Integrity::new(facts.sectors).ok_or(NoRoom)?),
        false => None,
    };
    nodes.set_state(CONNECTED).await?;
    Ok(Disk::new(queue, channel, facts, slots?, integrity))
}

/// Shares a ring of at most 2^`order` pages, and waits until the back end serves it.
async fn set_up_ring<P: Platform>(
    platform: &P,
    nodes: &Nodes<'_, P::Store>,
    number: u32,
    order: u32,
) -> Result<(Queue<P::Pages>, P::Channel), ConnectError> {
    let offered: u32 = nodes.offer("max-ring-page-order", 0).await?;
    let ring = platform.share(nodes.peer, 1 << offered.min(order).min(4))?;
    let channel = platform.open_channel(nodes.peer)?;
    let ring_refs: Vec<u32> = ring.grefs().iter().map(|gref| gref.get()).collect();
    let queue = Queue::new(ring, number as u16).map_err(|_| NoRoom)?;
    nodes.announce(&ring_refs, channel.port()).await?;
    nodes.wait_for(|state| state == CONNECTED).await?;
    Ok((queue, channel))
}

/// After a violation: says so in xenstore, where Bulkhead's Dom0 hears it and restarts the
/// driver domain; closes the connection, and makes a new one on which everything that is not
/// answered is asked for again. Nothing is lost, and tickets stay good. A request may be done
/// twice. Dropping this before it is done leaves the disk as it is, to be recovered again.
///
/// # Errors
/// There is no new connection, or the disk behind it is another one.
pub async fn recover<P: Platform>(
    platform: &P,
    number: u32,
    disk: &mut Disk<P>,
    violation: &Violation,
) -> Result<(), ConnectError> {
    let nodes = Nodes::find(platform.store(), number).await?;
    // A life of the back end that begins because of what is said must not take the ring up:
    // requests in it may be damaged.
    nodes.set_state(CLOSING).await?;
    nodes.set("bulkhead/violation", violation).await?;
    // The old ring is not looked at any more once the back end has closed, and what it was
    // doing is done: only then may the same pages be used again.
    nodes.close().await?;
    nodes.set_state(INITIALISING).await?;
    nodes.wait_for_offer().await?;
    let facts = disk.facts();
    let order = disk.ring_pages().ilog2();
    let (queue, channel) = set_up_ring(platform, &nodes, number, order).await?;
    let options = Options {
        ring_page_order: order,
        segments: facts.max_bytes / PAGE_BYTES,
        in_flight: facts.max_in_flight,
        integrity: false,
    };
    if nodes.facts(&options, queue.slots()).await? != facts {
        return Err(ConnectError::Changed);
    }
    nodes.set_state(CONNECTED).await?;
    disk.renew(queue, channel).map_err(|_| ConnectError::Changed)
}

/// Closes a disk in good order: the back end agrees, we say that we are done, and it lets go
/// of every page at the latest then. What is in flight may or may not happen.
pub async fn close<P: Platform>(
    platform: &P,
    number: u32,
    disk: Disk<P>,
) -> Result<(), ConnectError> {
    Nodes::find(platform.store(), number).await?.close().await?;
    drop(disk);
    Ok(())
}

/// The folders of one device.
struct Nodes<'a, S: Store> {
    store: &'a S,
    front: String,
    back: String,
    peer: Peer,
}

impl<'a, S: Store> Nodes<'a, S> {
    async fn find(store: &'a S, number: u32) -> Result<Self, ConnectError> {
        let front = format!("device/vbd/{number}");
        let back = read(store, &format!("{front}/backend")).await?;
        let peer = Peer::new(parse(store, &format!("{front}/backend-id")).await?);
        Ok(Self { store, front, back, peer })
    }

    /// Closes the connection; the back end has let go of every page then.
    async fn close(&self) -> Result<(), ConnectError> {
        self.set_state(CLOSING).await?;
        self.wait_for(|state| state == CLOSING || state == CLOSED).await?;
        self.set_state(CLOSED).await?;
        self.wait_for(|state| state == CLOSED).await
    }

    /// Waits for a state of the back end, which may also give up.
    async fn wait_for(&self, wanted: impl Fn(u32) -> bool) -> Result<(), ConnectError> {
        let path = format!("{}/state", self.back);
        let mut watch = self.store.watch(&path).await?;
        loop {
            watch.next().await;
            let state = self.store.read(&path).await?;
            match state.and_then(|state| state.parse().ok()) {
                Some(state) if wanted(state) => return Ok(()),
                Some(CLOSED) => return Err(ConnectError::Refused),
                Some(_) | None => {}
            }
        }
    }

    /// Waits until a back end that has closed begins anew.
    async fn wait_for_offer(&self) -> Result<(), ConnectError> {
        let path = format!("{}/state", self.back);
        let mut watch = self.store.watch(&path).await?;
        loop {
            watch.next().await;
            let state = self.store.read(&path).await?;
            if state.and_then(|state| state.parse().ok()) == Some(INIT_WAIT) {
                return Ok(());
            }
        }
    }

    /// A number that the back end offers, or what holds when it does not.
    async fn offer<T: FromStr>(&self, name: &str, otherwise: T) -> Result<T, ConnectError> {
        let value = self.store.read(&format!("{}/{name}", self.back)).await?;
        let number = value.and_then(|value| value.trim().parse().ok());
        Ok(number.unwrap_or(otherwise))
    }

    async fn announce(&self, ring_refs: &[u32], port: u32) -> Result<(), ConnectError> {
        match ring_refs {
            [one] => self.set("ring-ref", one).await?,
            many => {
                let order = many.len().ilog2();
                self.set("ring-page-order", &order).await?;
                for (i, gref) in many.iter().enumerate() {
                    self.set(&format!("ring-ref{i}"), gref).await?;
                }
            }
        }
        self.set("event-channel", &port).await?;
        self.set("protocol", &"x86_64-abi").await?;
        self.set_state(INITIALISED).await
    }

    async fn facts(&self, options: &Options, slots: usize) -> Result<Facts, ConnectError> {
        let sectors = parse(self.store, &format!("{}/sectors", self.back)).await?;
        let info: u32 = self.offer("info", 0).await?;
        let indirect: usize = self.offer("feature-max-indirect-segments", 0).await?;
        let flush: u32 = self.offer("feature-flush-cache", 0).await?;
        let discard: u32 = self.offer("feature-discard", 0).await?;
        let segments = indirect.max(MAX_SEGMENTS).min(options.segments).clamp(1, 512);
        Ok(Facts {
            sectors,
            read_only: info & INFO_READ_ONLY != 0,
            flush: flush == 1,
            discard: discard == 1,
            max_bytes: segments * PAGE_BYTES,
            max_in_flight: options.in_flight.clamp(1, slots),
        })
    }

    async fn set(&self, name: &str, value: &impl ToString) -> Result<(), ConnectError> {
        let path = format!("{}/{name}", self.front);
        Ok(self.store.write(&path, &value.to_string()).await?)
    }

    async fn set_state(&self, state: u32) -> Result<(), ConnectError> {
        self.set("state", &state).await
    }
}

async fn read<S: Store>(store: &S, path: &str) -> Result<String, ConnectError> {
    let value = store.read(path).await?;
    value.ok_or_else(|| ConnectError::BadNode(path.into()))
}

async fn parse<S: Store, T: FromStr>(store: &S, path: &str) -> Result<T, ConnectError> {
    let value = read(store, path).await?;
    let number = value.trim().parse();
    number.map_err(|_| ConnectError::BadNode(path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_have_the_numbers_that_linux_gives_them() {
        assert_eq!(virtual_device("xvda"), Some(51712));
        assert_eq!(virtual_device("xvdb"), Some(51728));
        assert_eq!(virtual_device("xvdp"), Some(51952));
        for bad in ["xvdq", "xvd", "xvda1", "sda", ""] {
            assert_eq!(virtual_device(bad), None, "{bad}");
        }
    }
}
