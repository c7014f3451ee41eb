//! The frame table: owner, type, type count and reference count of every machine
//! frame, and the free list. The only code that changes a type or a count: counts here,
//! the free list in [`buddy`], what each domain owns in [`owned`], page tables coming and going in [`table`].
//!
//! A type reference is never held without a general reference beside it, so a frame with
//! a type is never on the free list. The type of a frame whose type count is zero is the
//! last one it had: turning it into another is when translations may be stale, and
//! [`FrameTable::take_flush`] then says so.
#![deny(unsafe_code)]

mod buddy;
mod owned;
pub mod table;

pub(crate) use owned::Stolen;

use super::{flush::Flush, phys::PhysMem};
use crate::domain::MAX_DOMAINS;
use bitflags::bitflags;
use bulkhead_abi::{DomId, Maddr, Mfn, memory::MAX_ORDER, mmu::M2P_INVALID};
use core::ops::Range;
use owned::Account;

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
    /// Its domain is gone, others still hold references: free when they let go. Nobody
    /// can take a new one.
    Orphan,
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
    /// A page table that is being taken apart: drain ([`FrameTable::drain`]), then try
    /// again.
    Busy { mfn: Mfn },
    /// Not the domain's to give away: never allocated to it, or given away before.
    NotAllocated { mfn: Mfn },
    /// Holds a segment descriptor that no guest may have.
    BadDescriptor { mfn: Mfn },
    /// Pinned when it must not be, or the other way round.
    Pin { mfn: Mfn },
    /// Memory that may not be mapped like this: somebody else's, or in use as something else.
    NotMappable { mfn: Mfn },
    /// No memory, and no frame of a device of the domain's.
    NotDevice { mfn: Mfn },
}

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Flags: u8 {
        /// Belongs to its domain's reservation; holds one general reference.
        const ALLOCATED = 1 << 0;
        /// Pinned by its domain; holds a general and a type reference.
        const PINNED = 1 << 1;
        /// A page table all of whose present entries hold references.
        const VALIDATED = 1 << 2;
        /// A page table whose validation stopped: entries below `done` hold references.
        /// The state itself holds the one general and type reference.
        const PARTIAL = 1 << 3;
        /// A page table to be taken apart, on its owner's undo list; otherwise as `PARTIAL`.
        const UNDO = 1 << 4;
        /// Written by the core at any time (shared-info, grant tables): holds a general
        /// and a `Writable` reference, so that it can never become a page table.
        const SHARED = 1 << 5;
        /// First frame of a block on the free list, of order `done`.
        const FREE_HEAD = 1 << 6;
        /// Visited by [`FrameTable::let_go_next`].
        const VISITED = 1 << 7;
    }
}

/// End of a list of frames.
const NIL: u32 = u32::MAX;
/// Highest count: far from overflow even if a check were missed once.
const MAX_COUNT: u32 = 1 << 30;

/// What the table knows of one frame.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Frame {
    refs: u32,
    types: u32,
    /// Neighbours among the owner's frames, or among free blocks of one order.
    prev: u32,
    next: u32,
    /// Next on the owner's undo list.
    undo: u32,
    owner: u16,
    done: u16,
    kind: FrameType,
    flags: Flags,
}

const OWNER_FREE: u16 = 0xffff;
const OWNER_CORE: u16 = 0xfffe;
const OWNER_IO: u16 = 0xfffd;
const OWNER_ORPHAN: u16 = 0xfffc;

impl Frame {
    /// No RAM: what storage is filled with before the table takes it.
    pub const IO: Self = Self {
        refs: 0,
        types: 0,
        prev: NIL,
        next: NIL,
        undo: NIL,
        owner: OWNER_IO,
        done: 0,
        kind: FrameType::None,
        flags: Flags::empty(),
    };

    fn owner(&self) -> Owner {
        match self.owner {
            OWNER_FREE => Owner::Free,
            OWNER_CORE => Owner::Core,
            OWNER_IO => Owner::Io,
            OWNER_ORPHAN => Owner::Orphan,
            dom => Owner::Domain(DomId::new(dom)),
        }
    }
}

/// The table. Its storage is a slice carved out of RAM at boot (a `Vec` in tests).
pub struct FrameTable {
    mem: PhysMem,
    frames: &'static mut [Frame],
    m2p: Maddr,
    core_slots: [u64; 16],
    free: [u32; MAX_ORDER as usize + 1],
    free_frames: u64,
    core_frames: u64,
    total_frames: u64,
    accounts: [Account; MAX_DOMAINS + 1],
    flush: Flush,
}

impl FrameTable {
    /// A table over `storage` (one element per frame of `mem`), with the
    /// machine-to-phys table at `m2p` (8 bytes per frame, contiguous).
    ///
    /// Every frame of `ram` (ranges of frame numbers) starts as the core's; boot gives
    /// back what is not in use with [`Self::free_core`]. Everything else is I/O.
    pub fn new(
        mem: PhysMem,
        storage: &'static mut [Frame],
        m2p: Maddr,
        ram: &[Range<u64>],
    ) -> Self {
        storage.fill(Frame::IO);
        let mut table = Self {
            mem,
            frames: storage,
            m2p,
            core_slots: [0; 16],
            free: [NIL; MAX_ORDER as usize + 1],
            free_frames: 0,
            core_frames: 0,
            total_frames: 0,
            accounts: [Account::EMPTY; MAX_DOMAINS + 1],
            flush: Flush::None,
        };
        let max = table.max_mfn();
        for n in ram.iter().flat_map(|range| range.start..range.end.min(max)) {
            let frame = &mut table.frames[n as usize];
            if frame.owner == OWNER_IO {
                *frame = Frame { owner: OWNER_CORE, refs: 1, ..Frame::IO };
                table.core_frames += 1;
                table.total_frames += 1;
            }
        }
        (0..max).for_each(|n| table.set_m2p(Mfn::new(n), M2P_INVALID));
        table
    }

    /// The physical memory the table speaks of.
    pub fn mem(&self) -> PhysMem {
        self.mem
    }

    pub(super) fn m2p_base(&self) -> Maddr {
        self.m2p
    }

    /// First frame number past the table.
    pub fn max_mfn(&self) -> u64 {
        (self.frames.len() as u64).min(self.mem.max_mfn())
    }

    /// Whether the frame is memory (not a device, not a hole).
    pub fn is_ram(&self, mfn: Mfn) -> bool {
        self.owner(mfn) != Owner::Io
    }

    pub fn owner(&self, mfn: Mfn) -> Owner {
        self.get(mfn).map_or(Owner::Io, Frame::owner)
    }

    /// What the frame is in use as; `None` while nobody uses it as anything.
    pub fn frame_type(&self, mfn: Mfn) -> FrameType {
        self.get(mfn).filter(|f| f.types > 0).map_or(FrameType::None, |f| f.kind)
    }

    /// Frames of RAM.
    pub fn total_frames(&self) -> u64 {
        self.total_frames
    }

    /// Frames on the free list.
    pub fn free_frames(&self) -> u64 {
        self.free_frames
    }

    /// Frames that are the core's own.
    pub fn core_frames(&self) -> u64 {
        self.core_frames
    }

    /// Frames a domain owns, including those it gave away that are still referenced;
    /// frames it shares with the core do not count.
    pub fn tot_pages(&self, dom: DomId) -> u64 {
        self.accounts.get(dom.get() as usize).map_or(0, |account| u64::from(account.frames))
    }

    /// The raw L4 entries 256..=271 that every L4 gets when it is validated.
    pub fn set_core_slots(&mut self, slots: [u64; 16]) {
        self.core_slots = slots;
    }

    /// What must be flushed before a guest runs again, because a frame changed its type
    /// or owner since the last call. The exit path asks on every exit.
    pub fn take_flush(&mut self) -> Flush {
        core::mem::take(&mut self.flush)
    }

    /// Takes `2^order` contiguous zeroed frames for a domain, aligned to their size:
    /// each is `ALLOCATED` (one reference). Limits are the caller's business
    /// ([`super::reserve`]).
    pub fn alloc_domain(&mut self, dom: DomId, order: u32) -> Option<Mfn> {
        ((dom.get() as usize) < MAX_DOMAINS).then_some(())?;
        let first = self.take_block(order)?;
        for n in first..first + (1 << order) {
            self.own(n, dom);
        }
        Some(Mfn::new(u64::from(first)))
    }

    /// Makes a frame of the core (boot archive) a domain's, contents untouched.
    pub fn adopt(&mut self, mfn: Mfn, dom: DomId) -> Result<(), FrameError> {
        match self.owner(mfn) {
            Owner::Core if (dom.get() as usize) < MAX_DOMAINS => {
                self.core_frames -= 1;
                self.own(mfn.get() as u32, dom);
                Ok(())
            }
            owner => Err(FrameError::NotOwner { mfn, owner }),
        }
    }

    /// Takes a zeroed frame that belongs to `dom` and that the core writes at any time.
    /// The guest may map it; it is outside the domain's reservation.
    pub fn alloc_shared(&mut self, dom: DomId) -> Option<Mfn> {
        ((dom.get() as usize) < MAX_DOMAINS).then_some(())?;
        let n = self.take_block(0)?;
        self.frames[n as usize] = Frame {
            owner: dom.get(),
            refs: 1,
            types: 1,
            kind: FrameType::Writable,
            flags: Flags::SHARED,
            ..Frame::IO
        };
        Some(Mfn::new(u64::from(n)))
    }

    /// Gives back what [`Self::alloc_shared`] took: free once nobody maps it.
    pub fn free_shared(&mut self, mfn: Mfn) {
        let Some(frame) = self.get_mut(mfn) else {
            return;
        };
        if frame.flags.contains(Flags::SHARED) {
            frame.flags.remove(Flags::SHARED);
            frame.owner = OWNER_ORPHAN;
            self.put_writable(mfn);
        }
    }

    /// Takes a general reference on a frame that `dom` owns.
    pub fn get_page(&mut self, mfn: Mfn, dom: DomId) -> Result<(), FrameError> {
        self.check_owner(mfn, dom)?;
        self.add_ref(mfn)
    }

    /// Drops a general reference; the last one frees the frame (its M2P entry becomes
    /// invalid).
    pub fn put_page(&mut self, mfn: Mfn) {
        let Some(frame) = self.get_mut(mfn) else {
            return;
        };
        assert!(frame.refs > 0, "{mfn} has no reference to drop");
        frame.refs -= 1;
        if frame.refs == 0 {
            self.release(mfn);
        }
    }

    /// Takes a general and a `Writable` type reference on a frame that `dom` owns.
    pub fn get_writable(&mut self, mfn: Mfn, dom: DomId) -> Result<(), FrameError> {
        self.check_owner(mfn, dom)?;
        self.take_plain(mfn, FrameType::Writable).map(drop)
    }

    /// Drops what [`Self::get_writable`] took.
    pub fn put_writable(&mut self, mfn: Mfn) {
        self.drop_plain(mfn);
    }

    /// Takes a general and a `SegDesc` type reference on a frame that `dom` owns. The first
    /// asks `validate` whether it holds only descriptors that may exist; it may
    /// rewrite them, for nobody else can any more.
    pub fn get_descriptors(
        &mut self,
        mfn: Mfn,
        dom: DomId,
        validate: impl FnOnce(PhysMem, Mfn) -> bool,
    ) -> Result<(), FrameError> {
        self.check_owner(mfn, dom)?;
        if self.take_plain(mfn, FrameType::SegDesc)? && !validate(self.mem, mfn) {
            self.drop_plain(mfn);
            return Err(FrameError::BadDescriptor { mfn });
        }
        Ok(())
    }

    /// Drops what [`Self::get_descriptors`] took.
    pub fn put_descriptors(&mut self, mfn: Mfn) {
        self.drop_plain(mfn);
    }

    fn get(&self, mfn: Mfn) -> Option<&Frame> {
        self.frames.get(usize::try_from(mfn.get()).ok()?)
    }

    fn get_mut(&mut self, mfn: Mfn) -> Option<&mut Frame> {
        self.frames.get_mut(usize::try_from(mfn.get()).ok()?)
    }

    fn check_owner(&self, mfn: Mfn, dom: DomId) -> Result<(), FrameError> {
        match self.owner(mfn) {
            Owner::Domain(owner) if owner == dom => Ok(()),
            Owner::Io => Err(FrameError::NoFrame { mfn }),
            owner => Err(FrameError::NotOwner { mfn, owner }),
        }
    }

    /// One more general reference on a frame that has one.
    fn add_ref(&mut self, mfn: Mfn) -> Result<(), FrameError> {
        let frame = self.get_mut(mfn).ok_or(FrameError::NoFrame { mfn })?;
        if frame.refs >= MAX_COUNT {
            return Err(FrameError::TooManyReferences { mfn });
        }
        frame.refs += 1;
        Ok(())
    }

    /// A general and a type reference of a type that needs no walk; whether it is the
    /// first. The caller has checked the owner.
    fn take_plain(&mut self, mfn: Mfn, kind: FrameType) -> Result<bool, FrameError> {
        self.check_type(mfn, kind)?;
        self.add_ref(mfn)?;
        let frame = self.get_mut(mfn).ok_or(FrameError::NoFrame { mfn })?;
        frame.types += 1;
        let is_first = frame.types == 1;
        if is_first {
            self.retype(mfn, kind);
        }
        Ok(is_first)
    }

    /// Whether the frame has, or may now get, this type. A half-validated table in the
    /// way is sent off to be taken apart.
    fn check_type(&mut self, mfn: Mfn, kind: FrameType) -> Result<(), FrameError> {
        let &frame = self.get(mfn).ok_or(FrameError::NoFrame { mfn })?;
        if frame.flags.contains(Flags::UNDO) {
            return Err(FrameError::Busy { mfn });
        }
        if frame.types == 0 || frame.kind == kind {
            return Ok(());
        }
        if frame.flags.contains(Flags::PARTIAL) {
            self.begin_undo(mfn);
            return Err(FrameError::Busy { mfn });
        }
        Err(FrameError::WrongType { mfn, is: frame.kind, count: frame.types })
    }

    fn drop_plain(&mut self, mfn: Mfn) {
        self.drop_type(mfn);
        self.put_page(mfn);
    }

    /// Drops a type reference, and keeps the general one.
    fn drop_type(&mut self, mfn: Mfn) {
        let Some(frame) = self.get_mut(mfn) else {
            return;
        };
        assert!(frame.types > 0, "{mfn} has no type reference to drop");
        frame.types -= 1;
    }

    /// The first reference of a type. A processor may still know the frame as what it was:
    /// written through an old translation, or walked as the table it no longer is.
    fn retype(&mut self, mfn: Mfn, kind: FrameType) {
        let Some(frame) = self.get_mut(mfn) else {
            return;
        };
        if frame.kind != kind && frame.kind != FrameType::None {
            self.flush = Flush::All;
        }
        if let Some(frame) = self.get_mut(mfn) {
            frame.kind = kind;
        }
    }

    /// The last reference is gone.
    fn release(&mut self, mfn: Mfn) {
        let n = mfn.get() as u32;
        let frame = self.frames[n as usize];
        assert!(frame.types == 0, "{mfn} is freed with a type");
        if self.is_linked(n) {
            self.unlink(n);
        }
        self.set_m2p(mfn, M2P_INVALID);
        // The guest that had it may still have translations of it.
        self.flush = Flush::All;
        self.free_range(n, 1);
    }
}

#[cfg(test)]
pub mod fake {
    use super::*;
    use crate::memory::phys;

    /// A table over `frames` frames of plain memory, all free but the first few, which
    /// hold the machine-to-phys table.
    pub fn table(frames: usize) -> FrameTable {
        let mem = phys::fake::memory(frames);
        let storage = Box::leak(vec![Frame::IO; frames].into_boxed_slice());
        let ram = 0..frames as u64;
        let mut table = FrameTable::new(mem, storage, Maddr::new(0), core::slice::from_ref(&ram));
        let used = (frames * 8).div_ceil(4096) as u64;
        table.free_core(Mfn::new(used), frames - used as usize);
        table
    }

    impl FrameTable {
        /// General references, type references, type.
        pub fn counts(&self, mfn: Mfn) -> (u32, u32, FrameType) {
            let frame = self.get(mfn).unwrap();
            (frame.refs, frame.types, frame.kind)
        }

        /// Gives up on every half-done validation.
        pub fn undo_partial(&mut self) {
            for n in 0..self.frames.len() {
                if self.frames[n].flags.contains(Flags::PARTIAL) {
                    self.begin_undo(Mfn::new(n as u64));
                }
            }
        }

        /// Whether nothing is half done.
        pub fn is_settled(&self) -> bool {
            self.frames.iter().all(|f| !f.flags.intersects(Flags::PARTIAL | Flags::UNDO))
        }

        pub fn is_allocated(&self, mfn: Mfn) -> bool {
            self.get(mfn).unwrap().flags.contains(Flags::ALLOCATED)
        }
    }
}

#[cfg(test)]
mod tests;
