//! The frame table: owner, type, type count and reference count of every machine
//! frame, and the free list. The only code that changes a type or a count: counts here,
//! the free list in [`buddy`], what each domain owns in [`owned`], page tables coming and going in [`table`].
//! Lists of frames are circular and threaded through the table ([`list`]).
//!
//! A type reference is never held without a general reference beside it, so a frame with
//! a type is never on the free list. The type of a frame whose type count is zero is the
//! last one it had: turning it into another is when translations may be stale, and
//! [`FrameTable::take_flush`] then says so.
#![deny(unsafe_code)]

mod buddy;
mod list;
mod owned;
pub mod table;

use super::{
    flush::Flush,
    phys::PhysMem,
    validate::{Level, Rule},
};
use crate::domain::MAX_DOMAINS;
use bitflags::bitflags;
use bulkhead_abi::{DomId, Maddr, Mfn, memory::MAX_ORDER, mmu::M2P_INVALID};
use core::ops::Range;
use list::NIL;
use owned::Account;

/// What a frame is used as while its type count is above zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FrameType {
    #[default]
    None,
    Table(Level),
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
    /// The budget ended; the same call again goes on.
    Again,
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
    /// A page-table entry that may not be.
    BadEntry(Rule),
}

/// What operations on frames give.
pub type Result<T = ()> = core::result::Result<T, FrameError>;

bitflags! {
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Flags: u8 {
        /// Belongs to its domain's reservation; holds one general reference.
        const ALLOCATED = 1 << 0;
        /// Pinned by its domain; holds a general and a type reference.
        const PINNED = 1 << 1;
        /// Dom0 gave it to its owner.
        const GIVEN = 1 << 2;
        /// A page table whose validation stopped. The state itself holds the one general
        /// and type reference.
        const PARTIAL = 1 << 3;
        /// A page table to be taken apart, on its owner's undo list; otherwise as `PARTIAL`.
        const UNDO = 1 << 4;
        /// Written by the core at any time (shared-info, grant tables): holds a general
        /// and a `Writable` reference, so that it can never become a page table.
        const SHARED = 1 << 5;
        /// First frame of a block on the free list, of order `done`.
        const FREE_HEAD = 1 << 6;
        /// Its turn in the walk over its owner's frames is over, or is not, as the owner's
        /// account says.
        const VISITED = 1 << 7;
    }
}

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
    owner: Owner,
    /// A page table's entries below this hold references.
    done: u16,
    kind: FrameType,
    flags: Flags,
}

impl Frame {
    /// No RAM: what storage is filled with before the table takes it.
    pub const IO: Self = Self {
        refs: 0,
        types: 0,
        prev: NIL,
        next: NIL,
        undo: NIL,
        owner: Owner::Io,
        done: 0,
        kind: FrameType::None,
        flags: Flags::empty(),
    };
}

/// The table. Its storage is a slice carved out of RAM at boot (a `Vec` in tests).
pub struct FrameTable {
    mem: PhysMem,
    frames: &'static mut [Frame],
    /// The machine-to-phys table: for each frame its owner's pfn, readable by guests at a fixed
    /// address. The core writes it and never believes it.
    m2p: Maddr,
    core_slots: [u64; 16],
    free: [u32; MAX_ORDER as usize + 1],
    free_frames: u64,
    core_frames: u64,
    total_frames: u64,
    accounts: [Account; MAX_DOMAINS + 1],
    /// Frames on their way out of a reservation.
    stolen: u32,
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
            stolen: NIL,
            flush: Flush::None,
        };
        let max = table.max_mfn();
        for n in ram.iter().flat_map(|range| range.start..range.end.min(max)) {
            let frame = &mut table.frames[n as usize];
            if frame.owner == Owner::Io {
                *frame = Frame { owner: Owner::Core, refs: 1, ..Frame::IO };
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

    /// What the table says of a frame: a pfn, or [`M2P_INVALID`].
    pub fn m2p(&self, mfn: Mfn) -> u64 {
        self.m2p_entry(mfn).map_or(M2P_INVALID, |at| self.mem.read_u64(at))
    }

    /// Sets the pfn of a frame; [`M2P_INVALID`] for none. Any number will do: it means
    /// something to the owner alone.
    pub fn set_m2p(&mut self, mfn: Mfn, pfn: u64) {
        if let Some(at) = self.m2p_entry(mfn) {
            self.mem.write_u64(at, pfn);
        }
    }

    fn m2p_entry(&self, mfn: Mfn) -> Option<Maddr> {
        (mfn.get() < self.max_mfn()).then(|| Maddr::new(self.m2p.get() + mfn.get() * 8))
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
        self.get(mfn).owner
    }

    /// What the frame is in use as; `None` while nobody uses it as anything.
    pub fn frame_type(&self, mfn: Mfn) -> FrameType {
        let frame = self.get(mfn);
        if frame.types > 0 { frame.kind } else { FrameType::None }
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
    pub fn adopt(&mut self, mfn: Mfn, dom: DomId) -> Result {
        match self.owner(mfn) {
            Owner::Core => {
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
        let n = self.take_block(0)?;
        self.frames[n as usize] = Frame {
            owner: Owner::Domain(dom),
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
        if self.get(mfn).flags.contains(Flags::SHARED) {
            let frame = self.get_mut(mfn);
            frame.flags.remove(Flags::SHARED);
            frame.owner = Owner::Orphan;
            self.put_writable(mfn);
        }
    }

    /// Takes a general reference on a frame that `dom` owns.
    pub fn get_page(&mut self, mfn: Mfn, dom: DomId) -> Result {
        self.check_owner(mfn, dom)?;
        self.add_ref(mfn)
    }

    /// Drops a general reference; the last one frees the frame (its M2P entry becomes
    /// invalid).
    pub fn put_page(&mut self, mfn: Mfn) {
        let frame = self.get_mut(mfn);
        assert!(frame.refs > 0, "{mfn} has no reference to drop");
        frame.refs -= 1;
        if frame.refs == 0 {
            self.release(mfn);
        }
    }

    /// Takes a general and a `Writable` type reference on a frame that `dom` owns.
    pub fn get_writable(&mut self, mfn: Mfn, dom: DomId) -> Result {
        self.get_typed(mfn, dom, FrameType::Writable).map(drop)
    }

    /// Drops what [`Self::get_writable`] took.
    pub fn put_writable(&mut self, mfn: Mfn) {
        self.put_typed(mfn);
    }

    /// Takes what a mapping holds of a frame that `dom` owns: a general reference, and a
    /// `Writable` type reference if it may write.
    pub fn get_mapped(&mut self, mfn: Mfn, dom: DomId, is_writable: bool) -> Result {
        if is_writable { self.get_writable(mfn, dom) } else { self.get_page(mfn, dom) }
    }

    /// Drops what [`Self::get_mapped`] took.
    pub fn put_mapped(&mut self, mfn: Mfn, is_writable: bool) {
        if is_writable { self.put_writable(mfn) } else { self.put_page(mfn) }
    }

    /// Takes a general and a `SegDesc` type reference on a frame that `dom` owns. The first
    /// asks `validate` whether it holds only descriptors that may exist; it may
    /// rewrite them, for nobody else can any more.
    pub fn get_descriptors(
        &mut self,
        mfn: Mfn,
        dom: DomId,
        validate: impl FnOnce(PhysMem, Mfn) -> bool,
    ) -> Result {
        if self.get_typed(mfn, dom, FrameType::SegDesc)? && !validate(self.mem, mfn) {
            self.put_typed(mfn);
            return Err(FrameError::BadDescriptor { mfn });
        }
        Ok(())
    }

    /// Drops what [`Self::get_descriptors`] took.
    pub fn put_descriptors(&mut self, mfn: Mfn) {
        self.put_typed(mfn);
    }

    /// What is known of a frame; outside the table there is no RAM.
    fn get(&self, mfn: Mfn) -> Frame {
        let n = usize::try_from(mfn.get()).ok();
        n.and_then(|n| self.frames.get(n)).copied().unwrap_or(Frame::IO)
    }

    /// A frame that is somebody's. Panics outside the table, which is a bug of the core: callers
    /// have looked at the owner, or give back a reference.
    fn get_mut(&mut self, mfn: Mfn) -> &mut Frame {
        &mut self.frames[mfn.get() as usize]
    }

    fn check_owner(&self, mfn: Mfn, dom: DomId) -> Result {
        match self.owner(mfn) {
            Owner::Domain(owner) if owner == dom => Ok(()),
            Owner::Io => Err(FrameError::NoFrame { mfn }),
            owner => Err(FrameError::NotOwner { mfn, owner }),
        }
    }

    /// One more general reference on a frame that has one.
    fn add_ref(&mut self, mfn: Mfn) -> Result {
        let frame = self.get_mut(mfn);
        if frame.refs >= MAX_COUNT {
            return Err(FrameError::TooManyReferences { mfn });
        }
        frame.refs += 1;
        Ok(())
    }

    /// A general and a type reference of a type that needs no walk; whether it is the
    /// first of the type. Then a processor may still know the frame as what it was: written
    /// through an old translation, or walked as the table it no longer is.
    fn get_typed(&mut self, mfn: Mfn, dom: DomId, kind: FrameType) -> Result<bool> {
        self.check_owner(mfn, dom)?;
        self.check_type(mfn, kind)?;
        self.add_ref(mfn)?;
        let frame = self.get_mut(mfn);
        frame.types += 1;
        let is_first = frame.types == 1;
        let was = core::mem::replace(&mut frame.kind, kind);
        if was != kind && was != FrameType::None {
            self.flush = Flush::All;
        }
        Ok(is_first)
    }

    /// Whether the frame has, or may now get, this type. A half-validated table in the
    /// way is sent off to be taken apart.
    fn check_type(&mut self, mfn: Mfn, kind: FrameType) -> Result {
        let frame = self.get(mfn);
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

    /// Drops a general and a type reference.
    fn put_typed(&mut self, mfn: Mfn) {
        self.put_type(mfn);
        self.put_page(mfn);
    }

    /// Drops a type reference, and keeps the general one.
    fn put_type(&mut self, mfn: Mfn) {
        let frame = self.get_mut(mfn);
        assert!(frame.types > 0, "{mfn} has no type reference to drop");
        frame.types -= 1;
    }

    /// The last reference is gone.
    fn release(&mut self, mfn: Mfn) {
        let frame = self.get(mfn);
        assert!(frame.types == 0, "{mfn} is freed with a type");
        let n = mfn.get() as u32;
        // Frames shared with the core are on no list; they are an orphan's by now.
        if let Owner::Domain(_) = frame.owner {
            self.disown(n);
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
            let frame = self.get(mfn);
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
            self.get(mfn).flags.contains(Flags::ALLOCATED)
        }
    }
}

#[cfg(test)]
mod tests;
