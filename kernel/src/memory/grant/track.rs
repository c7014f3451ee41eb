//! The mapper's side: what it has mapped of others, by handle. Frames for it are taken as
//! handles are needed and charged to the mapper.

use crate::{
    domain::Incarnation,
    memory::{frame::FrameTable, frame_box::FrameBox},
};
use bulkhead_abi::{DomId, Gref, Maddr, Mfn, PAGE_SIZE};

const PER_CHUNK: u32 = 102;
/// A domain may have 25500 mappings at once.
const CHUNKS: usize = 250;

/// One mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Track {
    pub granter: DomId,
    /// The granter's life in which it was made.
    pub life: Incarnation,
    pub gref: Gref,
    pub writable: bool,
    /// Made by the address of the entry, not of the page.
    pub by_pte: bool,
    pub pte: Maddr,
    pub frame: Mfn,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// The next free handle; [`END_OF_LIST`] where the list ends.
    Free(u32),
    Used(Track),
}

type Chunk = [Place; PER_CHUNK as usize];
const _: () = assert!(size_of::<Chunk>() <= PAGE_SIZE);

/// All mappings of a domain.
pub struct Tracks {
    chunks: heapless::Vec<FrameBox<Chunk>, CHUNKS>,
    /// First free handle, [`END_OF_LIST`] if there is none.
    free: u32,
    in_use: u32,
    /// No handle below this is in use.
    first: u32,
}

const _: () = assert!(size_of::<Tracks>() <= PAGE_SIZE);

const END_OF_LIST: u32 = u32::MAX;

impl Tracks {
    pub(super) const fn new() -> Self {
        Self { chunks: heapless::Vec::new(), free: END_OF_LIST, in_use: 0, first: 0 }
    }

    pub(super) const fn in_use(&self) -> u32 {
        self.in_use
    }

    fn place_mut(&mut self, handle: u32) -> Option<&mut Place> {
        let chunk = self.chunks.get_mut((handle / PER_CHUNK) as usize)?;
        chunk.get_mut((handle % PER_CHUNK) as usize)
    }

    /// What a handle stands for.
    pub(super) fn get(&mut self, handle: u32) -> Option<Track> {
        match *self.place_mut(handle)? {
            Place::Used(track) => Some(track),
            Place::Free(_) => None,
        }
    }

    /// Frames of memory they take.
    pub(super) fn overhead(&self) -> u64 {
        1 + self.chunks.len() as u64
    }

    /// Makes sure that the next [`Self::insert`] succeeds; `None` without memory or with all handles in use.
    pub(super) fn reserve(&mut self, frames: &mut FrameTable) -> Option<()> {
        if self.free != END_OF_LIST {
            return Some(());
        }
        if self.chunks.is_full() {
            return None;
        }
        let first = self.end();
        let mut places = [Place::Free(END_OF_LIST); PER_CHUNK as usize];
        for (place, next) in places.iter_mut().zip(first + 1..first + PER_CHUNK) {
            *place = Place::Free(next);
        }
        // There is room: looked at above.
        let _ = self.chunks.push(FrameBox::new(frames, places)?);
        self.free = first;
        Some(())
    }

    /// Handles that have memory.
    fn end(&self) -> u32 {
        self.chunks.len() as u32 * PER_CHUNK
    }

    /// Takes a handle for a mapping. There must be a free one: see [`Self::reserve`].
    pub(super) fn insert(&mut self, track: Track) -> Option<u32> {
        let handle = self.free;
        let place = self.place_mut(handle)?;
        let Place::Free(next) = *place else {
            return None;
        };
        *place = Place::Used(track);
        self.free = next;
        self.in_use += 1;
        self.first = self.first.min(handle);
        Some(handle)
    }

    /// Gives a handle back.
    pub(super) fn remove(&mut self, handle: u32) -> Option<Track> {
        let next = self.free;
        let place = self.place_mut(handle)?;
        let Place::Used(track) = *place else {
            return None;
        };
        *place = Place::Free(next);
        self.free = handle;
        self.in_use -= 1;
        Some(track)
    }

    /// The lowest handle in use. Removing one after the other costs one pass in all.
    pub(super) fn first_used(&mut self) -> Option<u32> {
        self.first = (self.first..self.end()).find(|&handle| self.get(handle).is_some())?;
        Some(self.first)
    }
}

/// Gives the memory of the mappings back, of which none is left.
pub(super) fn free(mut tracks: FrameBox<Tracks>, frames: &mut FrameTable) {
    debug_assert_eq!(tracks.in_use, 0, "a mapping in use holds references");
    while let Some(chunk) = tracks.chunks.pop() {
        chunk.free(frames);
    }
    tracks.free(frames);
}
