//! A connected disk: requests with data pages of their own, several in flight. The
//! pages are granted once, for as long as the disk lives.

use super::integrity::{Integrity, Mismatch, Refused, Sums};
use super::queue::{Queue, Tag, Violation};
use crate::platform::{Channel, Pages, Platform};
use alloc::vec::Vec;
use core::fmt;
use ring_proto::RingMemory;
use ring_proto::blkif::{Direction, List, MAX_SEGMENTS, Request, Segment, Status};
use zerocopy::IntoBytes;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;

/// What the back end said the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// 512-byte sectors.
    pub sectors: u64,
    /// Writes fail.
    pub read_only: bool,
    /// It has a cache that a flush writes out.
    pub flush: bool,
    /// It takes discards.
    pub discard: bool,
    /// Most bytes of one request.
    pub max_bytes: usize,
    /// Most requests in flight.
    pub max_in_flight: usize,
}

/// Why something did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// As many requests as there may be are in flight.
    Full,
    /// Not whole sectors, more than [`Facts::max_bytes`], or outside the disk.
    BadLength,
    /// The disk said that it failed.
    Failed,
    /// The disk does not do that.
    Unsupported,
    /// The back end broke the protocol.
    Violation(Violation),
    /// With [`super::Options::integrity`]: not what was last written or read there, from the
    /// block at this sector on.
    Corrupt(u64),
    /// With [`super::Options::integrity`]: not whole blocks of 4 KiB.
    Unaligned,
    /// With [`super::Options::integrity`]: a request to the same blocks is in flight, and one
    /// of the two writes.
    Conflict,
}

impl From<Refused> for DiskError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unaligned => Self::Unaligned,
            Refused::Conflict => Self::Conflict,
        }
    }
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the ring is full"),
            Self::BadLength => f.write_str("not whole sectors of the disk"),
            Self::Failed => f.write_str("input or output error"),
            Self::Unsupported => f.write_str("not supported by the disk"),
            Self::Violation(violation) => write!(f, "protocol violation: {violation}"),
            Self::Corrupt(sector) => write!(
                f,
                "integrity: sector {sector} and on is not what was written: the disk or its \
                 driver changed it"
            ),
            Self::Unaligned => f.write_str("integrity: not whole blocks of 4 KiB"),
            Self::Conflict => f.write_str("integrity: meets a request that is in flight"),
        }
    }
}

impl core::error::Error for DiskError {}

/// A request in flight.
#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
pub struct Ticket(Tag);

impl Ticket {
    /// A small number, unlike that of any other request in flight.
    pub fn place(self) -> usize {
        self.0.place()
    }
}

/// A request that is over. Its pages are in use until [`Disk::finish`].
#[derive(Debug)]
#[must_use = "its pages stay in use until it is finished"]
pub struct Done {
    /// Which one.
    pub ticket: Ticket,
    /// How it ended.
    pub result: Result<(), DiskError>,
    bytes: usize,
}

impl Done {
    /// Bytes that it moved, 0 for a flush.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Data pages of one request, and which one has them.
struct Slot<P> {
    pages: P,
    busy: Option<Busy>,
}

/// A request that has pages.
struct Busy {
    sector: u64,
    /// 0 for one without data.
    bytes: usize,
    /// What the blocks of a write will have, where checksums are kept.
    sums: Option<Sums>,
    /// It is a read that went well: what it gave is to be checked.
    is_good_read: bool,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
}

impl Busy {
    fn new(kind: Kind, sector: u64, bytes: usize) -> Self {
        Self { sector, bytes, sums: None, is_good_read: false, kind }
    }

    /// What is asked for, with its data in `pages`.
    fn request<P: Pages>(&self, pages: &P) -> Option<Request> {
        let direction = match self.kind {
            Kind::Read => Direction::Read,
            Kind::Write => Direction::Write,
            Kind::Flush => return Some(Request::Flush),
        };
        request(pages, direction, self.sector, self.bytes)
    }
}

impl Kind {
    fn of(direction: Direction) -> Self {
        match direction {
            Direction::Read => Self::Read,
            Direction::Write => Self::Write,
        }
    }
}

/// A disk.
pub struct Disk<P: Platform> {
    queue: Queue<P::Pages>,
    channel: P::Channel,
    facts: Facts,
    slots: Vec<Slot<P::Pages>>,
    /// By tag: the slot of the request.
    by_tag: Vec<usize>,
    integrity: Option<Integrity>,
}

impl<P: Platform> Disk<P> {
    /// Puts a connected disk together. `slots` are the data pages of as many requests;
    /// each holds [`Facts::max_bytes`] and one page for indirect segments at the end.
    pub(super) fn new(
        queue: Queue<P::Pages>,
        channel: P::Channel,
        facts: Facts,
        slots: Vec<P::Pages>,
        integrity: Option<Integrity>,
    ) -> Self {
        let by_tag = alloc::vec![0; queue.slots()];
        let slots = slots.into_iter().map(|pages| Slot { pages, busy: None });
        Self { queue, channel, facts, slots: slots.collect(), by_tag, integrity }
    }

    /// Goes on with another ring, on which nothing is in flight yet: everything that is not
    /// answered is asked for again, from the same pages.
    ///
    /// # Errors
    /// The ring is not as large. Nothing has changed then.
    pub(super) fn renew(
        &mut self,
        mut queue: Queue<P::Pages>,
        channel: P::Channel,
    ) -> Result<(), DiskError> {
        let again = |tag: Tag| {
            let slot = self.slots.get(*self.by_tag.get(tag.place())?)?;
            slot.busy.as_ref()?.request(&slot.pages)
        };
        queue.inherit(&self.queue, again).map_err(|_| DiskError::Full)?;
        (self.queue, self.channel) = (queue, channel);
        self.kick();
        Ok(())
    }

    /// Pages of its ring.
    pub(super) fn ring_pages(&self) -> usize {
        self.queue.ring_bytes() / PAGE_BYTES
    }

    /// What it is.
    pub fn facts(&self) -> Facts {
        self.facts
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    /// Starts to read `bytes` bytes from `sector` on.
    pub fn start_read(&mut self, sector: u64, bytes: usize) -> Result<Ticket, DiskError> {
        self.start_transfer(Direction::Read, sector, bytes, &[])
    }

    /// Starts to write `data` from `sector` on; it is copied.
    pub fn start_write(&mut self, sector: u64, data: &[u8]) -> Result<Ticket, DiskError> {
        self.start_transfer(Direction::Write, sector, data.len(), data)
    }

    /// Starts a flush: what was written and answered before becomes durable.
    pub fn start_flush(&mut self) -> Result<Ticket, DiskError> {
        let slot = self.free_slot()?;
        self.push(slot, Busy::new(Kind::Flush, 0, 0), &Request::Flush)
    }

    fn start_transfer(
        &mut self,
        direction: Direction,
        sector: u64,
        bytes: usize,
        data: &[u8],
    ) -> Result<Ticket, DiskError> {
        let end = sector.checked_add((bytes / SECTOR_BYTES) as u64);
        let inside = end.is_some_and(|end| end <= self.facts.sectors);
        let whole = bytes.is_multiple_of(SECTOR_BYTES) && bytes != 0;
        if !inside || !whole || bytes > self.facts.max_bytes {
            return Err(DiskError::BadLength);
        }
        let slot = self.free_slot()?;
        let Some(place) = self.slots.get(slot).filter(|_| self.queue.next_tag().is_some()) else {
            return Err(DiskError::Full);
        };
        let request = request(&place.pages, direction, sector, bytes);
        let request = request.ok_or(DiskError::BadLength)?;
        place.pages.copy_in(0, data);
        let mut busy = Busy::new(Kind::of(direction), sector, bytes);
        if let Some(integrity) = &mut self.integrity {
            match direction {
                Direction::Read => integrity.begin_read(sector, bytes)?,
                Direction::Write => busy.sums = Some(integrity.begin_write(sector, data)?),
            }
        }
        self.push(slot, busy, &request)
    }

    fn free_slot(&self) -> Result<usize, DiskError> {
        let free = self.slots.iter().position(|slot| slot.busy.is_none());
        free.ok_or(DiskError::Full)
    }

    fn push(&mut self, slot: usize, busy: Busy, request: &Request) -> Result<Ticket, DiskError> {
        let tag = self.queue.push(request).map_err(|_| DiskError::Full)?;
        if let (Some(by_tag), Some(place)) =
            (self.by_tag.get_mut(tag.place()), self.slots.get_mut(slot))
        {
            *by_tag = slot;
            place.busy = Some(busy);
        }
        Ok(Ticket(tag))
    }

    /// Shows everything started to the back end.
    pub fn kick(&mut self) {
        if self.queue.publish() {
            self.channel.notify();
        }
    }

    /// A request that is over, if there is one.
    pub fn poll(&mut self) -> Result<Option<Done>, DiskError> {
        let taken = self.queue.take().map_err(DiskError::Violation)?;
        let Some((tag, status)) = taken else {
            return Ok(None);
        };
        let result = match status {
            Status::Okay => Ok(()),
            Status::Error => Err(DiskError::Failed),
            Status::Unsupported => Err(DiskError::Unsupported),
        };
        let slot = self.by_tag.get(tag.place()).and_then(|&slot| self.slots.get_mut(slot));
        let busy = slot.and_then(|slot| slot.busy.as_mut());
        let bytes = busy.as_ref().map_or(0, |busy| busy.bytes);
        if let Some(busy) = busy {
            busy.is_good_read = busy.kind == Kind::Read && result.is_ok();
            if let (Some(integrity), Some(sums)) = (&mut self.integrity, busy.sums.take()) {
                integrity.end_write(busy.sector, &sums, result.is_ok());
            }
        }
        Ok(Some(Done { ticket: Ticket(tag), result, bytes }))
    }

    /// Waits for a request to be over. There must be one in flight, or it never ends.
    pub async fn next(&mut self) -> Result<Done, DiskError> {
        self.kick();
        loop {
            if let Some(done) = self.poll()? {
                return Ok(done);
            }
            if !self.queue.final_check().map_err(DiskError::Violation)? {
                self.channel.wait().await;
            }
        }
    }

    /// Gives the pages of a request back. The start of what was read is copied to `into`,
    /// once; after a failure or a write pass an empty slice.
    ///
    /// # Errors
    /// With [`super::Options::integrity`], [`DiskError::Corrupt`] for a read that is not what
    /// it must be; `into` has it all the same. Of a block that is copied in part nothing is
    /// said.
    pub fn finish(&mut self, done: Done, into: &mut [u8]) -> Result<(), DiskError> {
        let slot = self.by_tag.get(done.ticket.place()).and_then(|&at| self.slots.get_mut(at));
        let Some(slot) = slot else { return Ok(()) };
        let Some(busy) = slot.busy.take() else { return Ok(()) };
        let bytes = into.len().min(busy.bytes);
        let into = into.get_mut(..bytes).unwrap_or_default();
        slot.pages.copy_out(0, into);
        match &mut self.integrity {
            Some(integrity) if busy.kind == Kind::Read => {
                let data: &[u8] = if busy.is_good_read { into } else { &[] };
                let verdict = integrity.end_read(busy.sector, data);
                verdict.map_err(|Mismatch { sector }| DiskError::Corrupt(sector))
            }
            _ => Ok(()),
        }
    }

    /// Reads from `sector` on until `into` is full, as many requests at a time as it may.
    pub async fn read(&mut self, sector: u64, into: &mut [u8]) -> Result<(), DiskError> {
        let step = self.facts.max_bytes;
        let mut places: Vec<(Ticket, usize)> = Vec::new();
        let (mut asked, mut failure) = (0, None);
        while asked < into.len() || !places.is_empty() {
            while asked < into.len() && failure.is_none() {
                let bytes = step.min(into.len() - asked);
                let at = sector + (asked / SECTOR_BYTES) as u64;
                match self.start_read(at, bytes) {
                    Ok(ticket) => places.push((ticket, asked)),
                    Err(DiskError::Full) if !places.is_empty() => break,
                    Err(error) => failure = Some(error),
                }
                asked += bytes;
            }
            if failure.is_some() {
                asked = into.len();
            }
            if places.is_empty() {
                break;
            }
            let done = self.next().await?;
            let known = places.iter().position(|(ticket, _)| *ticket == done.ticket);
            let Some((_, at)) = known.map(|place| places.swap_remove(place)) else {
                self.finish(done, &mut [])?;
                continue;
            };
            failure = failure.or(done.result.err());
            let end = (at + done.bytes).min(into.len());
            let checked = self.finish(done, into.get_mut(at..end).unwrap_or_default());
            failure = failure.or(checked.err());
        }
        failure.map_or(Ok(()), Err)
    }

    /// Makes all that was written and answered durable. Without a cache that is so already.
    pub async fn flush(&mut self) -> Result<(), DiskError> {
        if !self.facts.flush {
            return Ok(());
        }
        let ticket = self.start_flush()?;
        loop {
            let done = self.next().await?;
            let (mine, result) = (done.ticket == ticket, done.result);
            self.finish(done, &mut [])?;
            if mine {
                return result;
            }
        }
    }
}

/// Describes the first `bytes` bytes of `pages`; past 11 pages through the last one.
fn request<P: Pages>(
    pages: &P,
    direction: Direction,
    sector: u64,
    bytes: usize,
) -> Option<Request> {
    let (indirect, data) = pages.grefs().split_last()?;
    let count = bytes.div_ceil(PAGE_BYTES);
    let last = ((bytes - 1) % PAGE_BYTES / SECTOR_BYTES) as u8;
    let mut segments: Vec<Segment> = data.get(..count)?.iter().map(|&g| Segment::page(g)).collect();
    if let Some(end) = segments.last_mut() {
        *end = Segment::new(end.gref(), 0, last)?;
    }
    if count <= MAX_SEGMENTS {
        return Some(Request::Transfer {
            direction,
            sector,
            segments: List::from_slice(&segments)?,
        });
    }
    for (i, segment) in segments.iter().enumerate() {
        pages.copy_in(data.len() * PAGE_BYTES + 8 * i, segment.raw().as_bytes());
    }
    Some(Request::Indirect {
        direction,
        sector,
        segments: u16::try_from(count).ok()?,
        pages: List::from_slice(&[*indirect])?,
    })
}
