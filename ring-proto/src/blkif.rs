//! The block device vocabulary (public/io/blkif.h, MIT; the 64-bit layout). Two
//! layers: [`RawRequest`] is what lies in a slot, copied and unjudged;
//! [`Request`] is what it means once [`RawRequest::parse`] has judged its shape.
//!
//! Knows nothing of disks: whether sectors exist and grants can be mapped is for the
//! back end to find out.

use crate::Gref;
use crate::layout::Protocol;
use core::fmt;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes of a sector as the protocol counts them, whatever the device's own.
pub const SECTOR_BYTES: u64 = 512;
/// Sectors of a page.
pub const SECTORS_PER_PAGE: u8 = 8;
/// Most segments of a plain request.
pub const MAX_SEGMENTS: usize = 11;
/// Most pages of segments that an indirect request names.
pub const MAX_INDIRECT_PAGES: usize = 8;
/// Segments that fit in an indirect page.
pub const SEGMENTS_PER_INDIRECT_PAGE: usize = 512;

const READ: u8 = 0;
const WRITE: u8 = 1;
const BARRIER: u8 = 2;
const FLUSH: u8 = 3;
const DISCARD: u8 = 5;
const INDIRECT: u8 = 6;
const DISCARD_SECURE: u8 = 1;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Okay,
    /// Failed; nothing is known of the data.
    Error,
    /// This device does not do that.
    Unsupported,
}

impl Status {
    /// As it travels.
    pub const fn raw(self) -> i16 {
        match self {
            Self::Okay => 0,
            Self::Error => -1,
            Self::Unsupported => -2,
        }
    }

    /// Reads one; anything unknown is an error.
    pub const fn from_raw(raw: i16) -> Self {
        match raw {
            0 => Self::Okay,
            -2 => Self::Unsupported,
            _ => Self::Error,
        }
    }
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the disk into the guest's pages.
    Read,
    /// From the guest's pages to the disk.
    Write,
}

impl Direction {
    const fn raw(self) -> u8 {
        match self {
            Self::Read => READ,
            Self::Write => WRITE,
        }
    }
}

/// Part of one page of the guest, as it travels.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RawSegment {
    /// `[front]` the page.
    pub gref: Gref,
    /// `[front]` first 512-byte sector in the page, 0..=7.
    pub first_sect: u8,
    /// `[front]` last one, inclusive.
    pub last_sect: u8,
    _pad: u16,
}

/// A segment that lies within its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    gref: Gref,
    first: u8,
    last: u8,
}

impl Segment {
    /// Sectors `first..=last` of a page; `None` unless `first <= last <= 7`.
    pub const fn new(gref: Gref, first: u8, last: u8) -> Option<Self> {
        if first > last || last >= SECTORS_PER_PAGE {
            return None;
        }
        Some(Self { gref, first, last })
    }

    /// A whole page.
    pub const fn page(gref: Gref) -> Self {
        Self { gref, first: 0, last: SECTORS_PER_PAGE - 1 }
    }

    /// The page.
    pub const fn gref(&self) -> Gref {
        self.gref
    }

    /// Where it starts in the page, bytes.
    pub const fn offset_bytes(&self) -> usize {
        self.first as usize * SECTOR_BYTES as usize
    }

    /// Its length: 512 to 4096, a multiple of 512.
    pub const fn bytes(&self) -> usize {
        self.sectors() as usize * SECTOR_BYTES as usize
    }

    /// Its length in sectors, 1 to 8.
    pub const fn sectors(&self) -> u64 {
        (self.last - self.first + 1) as u64
    }

    /// As it travels.
    pub const fn raw(&self) -> RawSegment {
        RawSegment { gref: self.gref, first_sect: self.first, last_sect: self.last, _pad: 0 }
    }
}

impl RawSegment {
    /// Judges it.
    pub const fn parse(&self) -> Result<Segment, Refusal> {
        match Segment::new(self.gref, self.first_sect, self.last_sect) {
            Some(segment) => Ok(segment),
            None => Err(Refusal::BadSegment { first: self.first_sect, last: self.last_sect }),
        }
    }
}

/// A slot as the front end filled it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RawRequest {
    /// `[front]` what to do.
    pub operation: u8,
    /// `[front]` plain: segments; indirect: the operation meant; discard: flags.
    pub detail: u8,
    /// `[front]` plain, discard: the front end's device number; indirect: segments.
    pub handle: u16,
    _pad: u32,
    /// `[front]` comes back in the response.
    pub id: u64,
    /// `[front]` first sector, from the start of the virtual disk.
    pub sector: u64,
    /// `[front]` what the operation needs beyond that.
    pub body: [u8; 88],
}

/// A slot as the back end fills it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RawResponse {
    /// `[back]` the request's.
    pub id: u64,
    /// `[back]` the request's; of an indirect one, the operation meant.
    pub operation: u8,
    _pad: u8,
    /// `[back]` see [`Status`].
    pub status: i16,
    _pad1: u32,
}

impl RawResponse {
    /// A response.
    pub const fn new(id: u64, operation: u8, status: i16) -> Self {
        Self { id, operation, _pad: 0, status, _pad1: 0 }
    }
}

const _: () = {
    assert!(size_of::<RawRequest>() == 112 && size_of::<RawResponse>() == 16);
    assert!(size_of::<RawSegment>() == 8);
    assert!(core::mem::offset_of!(RawRequest, body) == 24);
};

/// The block ring: 32 slots in one page.
#[derive(Clone, Copy, Debug)]
pub struct Blk;

impl Protocol for Blk {
    type Request = RawRequest;
    type Response = RawResponse;
}

/// A list of 1 to `N` items, without a heap.
#[derive(Clone, Copy, Debug)]
pub struct List<T, const N: usize> {
    /// What lies past `len` means nothing.
    items: [T; N],
    len: usize,
}

impl<T: PartialEq + Copy, const N: usize> PartialEq for List<T, N> {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}
impl<T: Eq + Copy, const N: usize> Eq for List<T, N> {}

impl<T: Copy, const N: usize> List<T, N> {
    /// The items.
    pub fn as_slice(&self) -> &[T] {
        self.items.get(..self.len).unwrap_or(&self.items)
    }

    /// Copies `items`; `None` if there are none or more than `N`.
    pub fn from_slice(items: &[T]) -> Option<Self> {
        let mut list = [*items.first()?; N];
        list.get_mut(..items.len())?.copy_from_slice(items);
        Some(Self { items: list, len: items.len() })
    }
}

/// What a well-formed request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Data between `sector` onward and at most 11 pages.
    Transfer {
        /// Which way.
        direction: Direction,
        /// First sector of the virtual disk.
        sector: u64,
        /// Where the data is, in order; at least one.
        segments: List<Segment, MAX_SEGMENTS>,
    },
    /// The same; its segments are in pages of their own.
    Indirect {
        /// Which way.
        direction: Direction,
        /// First sector of the virtual disk.
        sector: u64,
        /// How many segments, 1..=4096.
        segments: u16,
        /// The pages that hold them: as many as the count needs.
        pages: List<Gref, MAX_INDIRECT_PAGES>,
    },
    /// All writes answered so far become durable.
    Flush,
    /// The contents of a range are no longer needed.
    Discard {
        /// First sector of the virtual disk.
        sector: u64,
        /// How many, possibly 0.
        sectors: u64,
        /// They must become unreadable.
        secure: bool,
    },
}

/// Why a request is not well-formed. It is answered with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No operation that is known here.
    Operation {
        /// Its number.
        operation: u8,
    },
    /// No segments at all, or more than the kind of request holds.
    SegmentCount {
        /// The count.
        segments: u16,
    },
    /// A segment is not within a page.
    BadSegment {
        /// Its first sector.
        first: u8,
        /// Its last sector.
        last: u8,
    },
}

impl Refusal {
    /// What the front end is told.
    pub const fn status(self) -> Status {
        match self {
            Self::Operation { .. } => Status::Unsupported,
            Self::SegmentCount { .. } | Self::BadSegment { .. } => Status::Error,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operation { operation } => write!(f, "unknown operation {operation}"),
            Self::SegmentCount { segments } => write!(f, "{segments} segments"),
            Self::BadSegment { first, last } => write!(f, "segment of sectors {first}..={last}"),
        }
    }
}

impl RawRequest {
    /// The operation that the response repeats.
    pub const fn echo(&self) -> u8 {
        match self.operation {
            INDIRECT => self.detail,
            other => other,
        }
    }

    /// Judges the shape of the request.
    pub fn parse(&self) -> Result<Request, Refusal> {
        match self.operation {
            READ => self.parse_transfer(Direction::Read),
            WRITE => self.parse_transfer(Direction::Write),
            FLUSH if self.detail == 0 => Ok(Request::Flush),
            FLUSH => Err(Refusal::SegmentCount { segments: self.detail.into() }),
            DISCARD => Ok(Request::Discard {
                sector: self.sector,
                sectors: u64::from_le_bytes(self.field(0)),
                secure: self.detail & DISCARD_SECURE != 0,
            }),
            INDIRECT => self.parse_indirect(),
            // Write barriers are never offered; all else is unknown to anybody.
            BARRIER | 4 | 7.. => Err(Refusal::Operation { operation: self.operation }),
        }
    }

    fn parse_transfer(&self, direction: Direction) -> Result<Request, Refusal> {
        let count = usize::from(self.detail);
        if count == 0 || count > MAX_SEGMENTS {
            return Err(Refusal::SegmentCount { segments: self.detail.into() });
        }
        let mut items = [Segment::page(Gref::default()); MAX_SEGMENTS];
        for (i, item) in items.iter_mut().take(count).enumerate() {
            let raw: RawSegment = zerocopy::transmute!(self.field::<8>(8 * i));
            *item = raw.parse()?;
        }
        Ok(Request::Transfer {
            direction,
            sector: self.sector,
            segments: List { items, len: count },
        })
    }

    fn parse_indirect(&self) -> Result<Request, Refusal> {
        let direction = match self.detail {
            READ => Direction::Read,
            WRITE => Direction::Write,
            operation => return Err(Refusal::Operation { operation }),
        };
        let segments = self.handle;
        let pages = usize::from(segments).div_ceil(SEGMENTS_PER_INDIRECT_PAGE);
        if pages == 0 || pages > MAX_INDIRECT_PAGES {
            return Err(Refusal::SegmentCount { segments });
        }
        let mut items = [Gref::default(); MAX_INDIRECT_PAGES];
        for (i, item) in items.iter_mut().take(pages).enumerate() {
            *item = Gref::new(u32::from_le_bytes(self.field(4 + 4 * i)));
        }
        Ok(Request::Indirect {
            direction,
            sector: self.sector,
            segments,
            pages: List { items, len: pages },
        })
    }

    /// `W` bytes of the body; zeros past its end.
    fn field<const W: usize>(&self, at: usize) -> [u8; W] {
        let mut field = [0; W];
        if let Some(bytes) = self.body.get(at..at + W) {
            field.copy_from_slice(bytes);
        }
        field
    }

    /// Writes a request down, for the front end. `handle` is the low 16 bits of the
    /// number of the device.
    pub fn encode(id: u64, handle: u16, request: &Request) -> Self {
        let mut raw = Self::new_zeroed();
        raw.id = id;
        raw.handle = handle;
        match request {
            Request::Transfer { direction, sector, segments } => {
                raw.operation = direction.raw();
                raw.sector = *sector;
                raw.detail = segments.len as u8;
                for (slot, segment) in raw.body.chunks_exact_mut(8).zip(segments.as_slice()) {
                    slot.copy_from_slice(segment.raw().as_bytes());
                }
            }
            Request::Indirect { direction, sector, segments, pages } => {
                raw.operation = INDIRECT;
                raw.detail = direction.raw();
                raw.sector = *sector;
                raw.handle = *segments;
                raw.body[..2].copy_from_slice(&handle.to_le_bytes());
                for (slot, page) in raw.body[4..].chunks_exact_mut(4).zip(pages.as_slice()) {
                    slot.copy_from_slice(page.as_bytes());
                }
            }
            Request::Flush => raw.operation = FLUSH,
            Request::Discard { sector, sectors, secure } => {
                raw.operation = DISCARD;
                raw.detail = if *secure { DISCARD_SECURE } else { 0 };
                raw.sector = *sector;
                raw.body[..8].copy_from_slice(&sectors.to_le_bytes());
            }
        }
        raw
    }
}

#[cfg(test)]
mod tests;
