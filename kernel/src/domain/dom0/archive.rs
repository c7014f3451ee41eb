//! The boot archive's header, checked: its ranges lie inside the archive and do not
//! overlap where that matters.

use super::{BootError, PAGE};
use crate::memory::{frame::FrameTable, phys::PhysMem};
use bulkhead_abi::{
    Maddr, Mfn,
    archive::{Header, MAGIC, MAX_SEGMENTS, Segment, VERSION},
};
use core::ops::Range;
use zerocopy::{FromZeros, IntoBytes};

/// An archive in memory whose header has been checked.
pub struct Archive {
    start: Maddr,
    header: Header,
}

/// The bytes `offset..offset + bytes` if they lie in `0..total` and start on a page.
fn range(offset: u64, bytes: u64, total: u64) -> Option<Range<u64>> {
    let end = offset.checked_add(bytes)?;
    (end <= total && offset.is_multiple_of(PAGE)).then_some(offset..end)
}

/// The frames that a range touches, counted from the archive's first.
fn pages(range: &Range<u64>) -> Range<u64> {
    if range.is_empty() { 0..0 } else { range.start / PAGE..range.end.div_ceil(PAGE) }
}

impl Archive {
    /// Reads and checks the header of the `bytes` bytes at `start`.
    ///
    /// Errors: `NotAnArchive`, `BadRange`.
    pub fn open(mem: PhysMem, start: Maddr, bytes: u64) -> Result<Self, BootError> {
        let in_memory =
            start.get().checked_add(bytes).is_some_and(|end| end.div_ceil(PAGE) <= mem.max_mfn());
        if !in_memory || start.offset() != 0 || bytes < size_of::<Header>() as u64 {
            return Err(BootError::NotAnArchive);
        }
        let mut header = Header::new_zeroed();
        mem.read_bytes(start, header.as_mut_bytes());
        if header.magic != MAGIC || header.version != VERSION || header.total_bytes > bytes {
            return Err(BootError::NotAnArchive);
        }
        let archive = Self { start, header };
        archive.check()?;
        Ok(archive)
    }

    fn check(&self) -> Result<(), BootError> {
        let header = &self.header;
        let total = header.total_bytes;
        if header.nr_segments as usize > MAX_SEGMENTS {
            return Err(BootError::BadRange("segments"));
        }
        for segment in self.segments() {
            let sound = range(segment.offset, segment.file_bytes, total).is_some()
                && segment.file_bytes <= segment.mem_bytes
                && segment.paddr.checked_add(segment.mem_bytes).is_some();
            sound.then_some(()).ok_or(BootError::BadRange("segments"))?;
        }
        let payload = range(header.payload_offset, header.payload_bytes, total);
        let payload = pages(&payload.ok_or(BootError::BadRange("payload"))?);
        let symbols = range(header.symbols_offset, header.symbols_bytes, total);
        let symbols = pages(&symbols.ok_or(BootError::BadRange("symbols"))?);
        if payload.start < symbols.end && symbols.start < payload.end {
            return Err(BootError::BadRange("payload and symbols overlap"));
        }
        Ok(())
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Dom0's program.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.header.segments.iter().take(self.header.nr_segments as usize)
    }

    /// The machine address of a byte of the archive.
    pub fn at(&self, offset: u64) -> Maddr {
        // Can not overflow: offsets were checked against the archive's length.
        Maddr::new(self.start.get() + offset)
    }

    /// Where the payload starts; on a frame's first byte.
    pub fn payload(&self) -> Maddr {
        self.at(self.header.payload_offset)
    }

    /// Where the symbol table of the core is, and its length in bytes; `None` without one.
    pub fn symbols(&self) -> Option<(Maddr, u64)> {
        let bytes = self.header.symbols_bytes;
        (bytes > 0).then(|| (self.at(self.header.symbols_offset), bytes))
    }

    /// Gives back the frames that are neither payload, which Dom0 has taken over, nor
    /// symbols.
    pub fn free(&self, frames: &mut FrameTable) {
        let header = &self.header;
        let of = |offset: u64, bytes: u64| pages(&(offset..offset + bytes));
        let payload = of(header.payload_offset, header.payload_bytes);
        let symbols = of(header.symbols_offset, header.symbols_bytes);
        for n in 0..header.total_bytes.div_ceil(PAGE) {
            if !payload.contains(&n) && !symbols.contains(&n) {
                frames.free_core(Mfn::new(self.start.mfn().get() + n), 1);
            }
        }
    }
}
