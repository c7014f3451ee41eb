//! The frame table: owner, type, type count and reference count of every machine
//! frame, and the free list. The only code that changes a type or a count.

use super::phys::PhysMem;
use bulkhead_abi::{DomId, Mfn};

/// What a frame is used as while its type count is above zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum FrameType {
    #[default]
    None,
    L1,
    L2,
    L3,
    L4,
    /// GDT or LDT page.
    SegDesc,
    Writable,
}

/// Who owns a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// On the free list.
    Free,
    /// The core's own: never mapped by a guest.
    Core,
    /// No RAM: device memory or nothing at all.
    Io,
    Domain(DomId),
}

/// Why the frame table refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// No such frame, or no RAM.
    NoFrame { mfn: Mfn },
    /// Belongs to somebody else.
    NotOwner { mfn: Mfn, owner: Owner },
    /// In use as something else.
    WrongType { mfn: Mfn, is: FrameType, count: u32 },
    /// A count would overflow.
    TooManyReferences { mfn: Mfn },
}

/// The table. Its storage is a slice carved out of RAM at boot (a `Vec` in tests).
pub struct FrameTable {
    mem: PhysMem,
}

impl FrameTable {
    /// The physical memory the table speaks of.
    pub fn mem(&self) -> PhysMem {
        self.mem
    }

    /// Takes `count` contiguous zeroed frames for the core itself.
    pub fn alloc_core(&mut self, count: usize) -> Option<Mfn> {
        let _ = count;
        todo!()
    }

    /// Gives back what [`Self::alloc_core`] took.
    pub fn free_core(&mut self, mfn: Mfn, count: usize) {
        let _ = (mfn, count);
        todo!()
    }

    /// Takes `2^order` contiguous zeroed frames for a domain, aligned to their size: each is `ALLOCATED` (one reference).
    /// Limits are the caller's business ([`super::reserve`]).
    pub fn alloc_domain(&mut self, dom: DomId, order: u32) -> Option<Mfn> {
        let _ = (dom, order);
        todo!()
    }

    pub fn owner(&self, mfn: Mfn) -> Owner {
        let _ = mfn;
        todo!()
    }

    /// Takes a general reference on a frame that `dom` owns.
    pub fn get_page(&mut self, mfn: Mfn, dom: DomId) -> Result<(), FrameError> {
        let _ = (mfn, dom);
        todo!()
    }

    /// Drops a general reference; the last one frees the frame (its M2P entry becomes invalid).
    pub fn put_page(&mut self, mfn: Mfn) {
        let _ = mfn;
        todo!()
    }

    /// Takes a general and a `Writable` type reference on a frame that `dom` owns.
    pub fn get_writable(&mut self, mfn: Mfn, dom: DomId) -> Result<(), FrameError> {
        let _ = (mfn, dom);
        todo!()
    }

    /// Drops what [`Self::get_writable`] took.
    pub fn put_writable(&mut self, mfn: Mfn) {
        let _ = mfn;
        todo!()
    }
}
