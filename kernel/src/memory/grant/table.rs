//! The granter's side: the frames of its table, which it writes at any time, and the core's
//! own count of the uses of each entry, which it can not reach.

use super::Refusal;
use crate::memory::{
    frame::FrameTable,
    frame_box::{FrameBox, frames_for},
    phys::PhysMem,
};
use bulkhead_abi::{
    DomId, Gref, Maddr, Mfn, PAGE_SIZE,
    grant::{self as nr, ENTRIES_PER_FRAME, GTF_READING, GTF_WRITING, GrantEntryV1},
};

/// Most frames of one table: 32768 entries.
pub const MAX_FRAMES: u32 = 64;
/// How often an entry may change under our eyes before it is refused.
const MAX_TRIES: u32 = 5;

/// Whether an entry lets `by` use the frame so.
fn permits(entry: GrantEntryV1, by: DomId, writable: bool) -> bool {
    entry.flags & nr::GTF_TYPE_MASK == nr::GTF_PERMIT_ACCESS
        && entry.domid == by.get()
        && !(writable && entry.flags & nr::GTF_READONLY != 0)
}

const fn marks(writable: bool) -> u16 {
    if writable { GTF_READING | GTF_WRITING } else { GTF_READING }
}

/// Who uses an entry. All zero when nobody does.
#[derive(Clone, Copy, Debug)]
struct Active {
    frame: u32,
    by: u16,
    readers: u32,
    writers: u32,
}

impl Active {
    const NONE: Self = Self { frame: 0, by: 0, readers: 0, writers: 0 };

    const fn is_used(&self) -> bool {
        self.readers != 0 || self.writers != 0
    }
}

/// What the core knows of the entries in one frame.
type Chunk = [Active; ENTRIES_PER_FRAME as usize];

/// A domain's table.
pub struct Table {
    frames: heapless::Vec<(Mfn, FrameBox<Chunk>), { MAX_FRAMES as usize }>,
}

const _: () = assert!(size_of::<Table>() <= PAGE_SIZE);

impl Table {
    pub(super) const fn new() -> Self {
        Self { frames: heapless::Vec::new() }
    }

    pub(super) fn nr_frames(&self) -> u32 {
        self.frames.len() as u32
    }

    pub(super) fn frame(&self, index: u32) -> Option<Mfn> {
        self.frames.get(index as usize).map(|(mfn, _)| *mfn)
    }

    /// Frames of memory it takes.
    pub(super) fn overhead(&self) -> u64 {
        1 + u64::from(self.nr_frames()) * (1 + frames_for::<Chunk>() as u64)
    }

    /// Adds a frame of entries; `None`, with nothing taken, without memory or room.
    pub(super) fn grow(&mut self, frames: &mut FrameTable, dom: DomId) -> Option<()> {
        if self.frames.is_full() {
            return None;
        }
        let chunk = FrameBox::new(frames, [Active::NONE; ENTRIES_PER_FRAME as usize])?;
        let Some(mfn) = frames.alloc_shared(dom) else {
            chunk.free(frames);
            return None;
        };
        // There is room: looked at above.
        let _ = self.frames.push((mfn, chunk));
        Some(())
    }

    /// Where an entry is; `None` beyond the table.
    pub(super) fn entry_at(&self, gref: Gref) -> Option<Maddr> {
        let mfn = self.frame(gref.get() / ENTRIES_PER_FRAME)?;
        let offset = gref.get() % ENTRIES_PER_FRAME * size_of::<u64>() as u32;
        Some(Maddr::new(mfn.maddr().get() + u64::from(offset)))
    }

    fn active_mut(&mut self, gref: Gref) -> Option<&mut Active> {
        let (_, chunk) = self.frames.get_mut((gref.get() / ENTRIES_PER_FRAME) as usize)?;
        chunk.get_mut((gref.get() % ENTRIES_PER_FRAME) as usize)
    }

    /// Notes one more use of an entry by `by` and marks it; gives the frame, of which nothing is
    /// known but that the entry names it.
    ///
    /// Errors: `BAD_GNTREF`, `GENERAL_ERROR`; nothing has changed then.
    pub(super) fn acquire(
        &mut self,
        mem: PhysMem,
        gref: Gref,
        by: DomId,
        writable: bool,
    ) -> Result<Mfn, Refusal> {
        let at = self.entry_at(gref).ok_or(nr::GNTST_BAD_GNTREF)?;
        let active = self.active_mut(gref).ok_or(nr::GNTST_BAD_GNTREF)?;
        let refused = nr::GNTST_GENERAL_ERROR;
        let (is_used, frame) = (active.is_used(), active.frame);
        if is_used && active.by != by.get() {
            return Err(refused);
        }
        let count = if writable { &mut active.writers } else { &mut active.readers };
        let more = count.checked_add(1).ok_or(refused)?;
        if !is_used || (writable && active.writers == 0) {
            let same = |entry: GrantEntryV1| !is_used || entry.frame == frame;
            let entry =
                mark(mem, at, |entry| permits(entry, by, writable) && same(entry), marks(writable));
            active.frame = entry.ok_or(refused)?.frame;
            active.by = by.get();
        }
        if writable {
            active.writers = more
        } else {
            active.readers = more
        }
        Ok(Mfn::new(active.frame.into()))
    }

    /// Takes one use back and clears the marks that the last one leaves. A use that is not
    /// there (the table is a new one) is none of ours.
    pub(super) fn release(&mut self, mem: PhysMem, gref: Gref, writable: bool) {
        let at = self.entry_at(gref);
        let (Some(at), Some(active)) = (at, self.active_mut(gref)) else {
            return;
        };
        let count = if writable { &mut active.writers } else { &mut active.readers };
        let Some(less) = count.checked_sub(1) else {
            return;
        };
        *count = less;
        let writing = if writable && less == 0 { GTF_WRITING } else { 0 };
        let reading = if active.is_used() { 0 } else { GTF_READING };
        mem.fetch_and_u64(at, !u64::from(reading | writing));
    }
}

/// Sets `marks` in an entry that passes `check`, unless it keeps changing meanwhile. It is read,
/// checked and marked as one word.
fn mark(
    mem: PhysMem,
    at: Maddr,
    check: impl Fn(GrantEntryV1) -> bool,
    marks: u16,
) -> Option<GrantEntryV1> {
    for _ in 0..MAX_TRIES {
        let word = mem.read_u64(at);
        let entry = zerocopy::transmute!(word);
        if !check(entry) {
            return None;
        }
        if mem.compare_exchange_u64(at, word, word | u64::from(marks)).is_ok() {
            return Some(entry);
        }
    }
    None
}

/// Gives a table back.
pub(super) fn free(mut table: FrameBox<Table>, frames: &mut FrameTable) {
    while let Some((mfn, chunk)) = table.frames.pop() {
        frames.free_shared(mfn);
        chunk.free(frames);
    }
    table.free(frames);
}
