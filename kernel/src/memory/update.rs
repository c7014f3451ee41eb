//! Carries out what [`super::validate`] allowed: replaces entries of live tables, sets
//! roots, makes and clears the entries of grant maps.
//!
//! An entry is replaced by compare-and-exchange, because processors set accessed and dirty bits
//! in it at any time: references for the new entry first, then the store, then
//! the old entry's references go.
#![deny(unsafe_code)]

use super::{
    flush::Flush,
    frame::{
        FrameError, FrameTable, Owner,
        table::{Budget, TableError, Walk},
    },
    validate::{self, Level, Pte, Rule},
};
use crate::state::{Caller, Core};
use bulkhead_abi::{DomId, Errno, GuestVa, Maddr, Mfn};

/// Whose tables, and whose frames their L1 entries may name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owners {
    /// Owner of the page tables.
    pub tables: DomId,
    /// Owner of the pages mapped: another domain only for Dom0.
    pub pages: DomId,
}

impl Owners {
    /// A domain that maps its own pages in its own tables.
    pub const fn only(dom: DomId) -> Self {
        Self { tables: dom, pages: dom }
    }
}

/// Replaces the page-table entry at `at` by `new(old)`; gives the old one.
///
/// In a live table the new entry is validated and stored as [`validate::stored_entry`] says. In
/// any other frame of the domain, tables-to-be among them, the word is just stored.
///
/// Errors: nothing has changed, except that [`TableError::Again`] and
/// [`FrameError::Busy`] made progress towards another try.
pub fn write_entry(
    frames: &mut FrameTable,
    owners: Owners,
    at: Maddr,
    new: impl Fn(u64) -> u64,
    walk: &mut Walk,
) -> Result<u64, TableError> {
    let table = at.mfn();
    // Nobody takes the frame away meanwhile: the core lock is held.
    frames.get_page(table, owners.tables)?;
    let result = write_entry_in(frames, owners, at, new, walk);
    frames.put_page(table);
    result
}

fn write_entry_in(
    frames: &mut FrameTable,
    owners: Owners,
    at: Maddr,
    new: impl Fn(u64) -> u64,
    walk: &mut Walk,
) -> Result<u64, TableError> {
    let (table, index) = (at.mfn(), (at.offset() / 8) as u16);
    let Some(level) = frames.live_level(table) else {
        frames.check_plain(table)?;
        return Ok(store_plain(frames, at, new));
    };
    if level == Level::L4 && validate::is_core_slot(index) {
        return Err(TableError::Entry { table, index, rule: Rule::CoreSlot });
    }
    loop {
        let old = frames.mem().read_u64(at);
        let (was, wanted) = (Pte::new(old), Pte::new(new(old)));
        let change = Change::of(level, was, wanted);
        let stored = match change {
            Change::Replace => frames.take_entry(
                (table, index),
                level,
                (owners.tables, owners.pages),
                wanted,
                walk,
            )?,
            Change::Demote | Change::Bits => {
                let stored = validate::stored_entry(level, wanted).and_then(|pte| {
                    let is_bad =
                        level == Level::L1 && pte.is_uncached() && frames.is_ram(pte.mfn());
                    if is_bad { Err(Rule::UncachedMemory) } else { Ok(pte) }
                });
                stored.map_err(|rule| TableError::Entry { table, index, rule })?
            }
        };
        let is_stored = frames.mem().compare_exchange_u64(at, old, stored.raw()).is_ok();
        match (change, is_stored) {
            (Change::Replace, true) => frames.drop_entry(level, was),
            (Change::Replace, false) => frames.drop_entry(level, stored),
            (Change::Demote, true) => frames.demote_entry(was.mfn()),
            (Change::Demote | Change::Bits, _) => {}
        }
        if is_stored {
            return Ok(old);
        }
    }
}

/// What replacing an entry means for references.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// Those of the new one taken, those of the old one dropped.
    Replace,
    /// Same page, no longer writable.
    Demote,
    /// Same frame, same use: none. So a mapping of somebody else's frame can change its
    /// bits though its maker could not make it.
    Bits,
}

impl Change {
    fn of(level: Level, was: Pte, wanted: Pte) -> Self {
        if !was.is_present() || !wanted.is_present() || was.mfn() != wanted.mfn() {
            return Self::Replace;
        }
        match (level, was.is_writable(), wanted.is_writable()) {
            (Level::L1, true, false) => Self::Demote,
            (Level::L1, false, true) => Self::Replace,
            _ => Self::Bits,
        }
    }
}

fn store_plain(frames: &FrameTable, at: Maddr, new: impl Fn(u64) -> u64) -> u64 {
    let mem = frames.mem();
    let mut old = mem.read_u64(at);
    while let Err(now) = mem.compare_exchange_u64(at, old, new(old)) {
        old = now;
    }
    old
}

/// The entry of the L1 table that would map `va` under `l4`, if there is such a table.
pub fn l1_entry_of(frames: &FrameTable, l4: Mfn, va: GuestVa) -> Option<Maddr> {
    if !validate::is_guest_va(va) {
        return None;
    }
    let mut table = l4;
    for level in [Level::L4, Level::L3, Level::L2] {
        if !frames.is_ram(table) {
            return None;
        }
        let entry = Pte::new(frames.mem().read_u64(validate::entry_at(table, level.index(va))));
        if !entry.is_present() {
            return None;
        }
        table = entry.mfn();
    }
    frames.is_ram(table).then(|| validate::entry_at(table, Level::L1.index(va)))
}

/// Runs `f` with the frame table and the right of `dom` to its devices' memory.
pub fn with_walk<R>(
    core: &mut Core,
    dom: DomId,
    budget: &mut Budget,
    f: impl FnOnce(&mut FrameTable, &mut Walk) -> R,
) -> Result<R, Errno> {
    let Core { frames, domains, .. } = core;
    let devices = &domains.get(dom).ok_or(Errno::ESRCH)?.devices;
    let io = |mfn| devices.allows_io(mfn);
    Ok(f(frames, &mut Walk { budget, io: &io }))
}

/// Takes the references a vCPU holds on its root table: validates it if it is none yet.
///
/// Errors: `EAGAIN` when it is not finished, or something stands in the way that was just
/// sent off: call again, later, with the same arguments.
pub fn get_root(core: &mut Core, dom: DomId, mfn: Mfn) -> Result<(), Errno> {
    let mut budget = Budget::default();
    if !core.frames.drain(dom, &mut budget) {
        return Err(Errno::EAGAIN);
    }
    with_walk(core, dom, &mut budget, |frames, walk| frames.get_table(mfn, dom, Level::L4, walk))?
        .map_err(Errno::from)
}

/// Drops what [`get_root`] took. If it was the last reference, the tables under it are taken
/// apart by the domain's next call that changes tables, or by its teardown.
pub fn put_root(core: &mut Core, dom: DomId, mfn: Mfn) {
    debug_assert!(
        matches!(core.frames.owner(mfn), Owner::Orphan)
            || core.frames.owner(mfn) == Owner::Domain(dom)
    );
    // The frame may be free and something else before the next exit: the processor must not
    // stand on it.
    crate::arch::leave_root(mfn);
    core.frames.put_table(mfn);
}

/// A guest's store to a live L1 table that its mapping forbids, done for it: replaces the entry by
/// `new(old)` as `mmu_update` would; gives the old one, bit for bit.
///
/// Errors: the frame is no live L1 of the caller's, or the new entry may not be: bounce
/// the fault.
pub fn emulated_write(
    core: &mut Core,
    caller: Caller,
    entry: Maddr,
    new: impl Fn(u64) -> u64,
) -> Result<u64, Errno> {
    if core.frames.live_level(entry.mfn()) != Some(Level::L1) || !entry.offset().is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let mut budget = Budget::default();
    with_walk(core, caller.dom, &mut budget, |frames, walk| {
        write_entry(frames, Owners::only(caller.dom), entry, new, walk)
    })?
    .map_err(Errno::from)
}

/// Where a grant map puts its entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PteTarget {
    /// The L1 entry of this address under the mapper's root.
    Va(GuestVa),
    /// This entry of an L1 table of the mapper.
    Pte(Maddr),
}

/// Bits of the flags of a grant map that go into bits 9-11 of the entry (grant_table.h,
/// `_GNTMAP_guest_avail0`).
const GNTMAP_AVAIL_SHIFT: u32 = 16;

/// Makes an L1 entry of `mapper` map `frame`, which somebody granted it; gives the
/// entry. It takes references of its own; whatever was mapped there before is dropped, and
/// the flush makes the processor forget it.
///
/// The caller has checked the grant and holds references itself. `flags` are the
/// `GNTMAP_*` of the call.
/// Errors: `EINVAL`: no such L1 entry, or not a live table of the mapper's.
pub fn grant_map(
    core: &mut Core,
    mapper: DomId,
    l4: Mfn,
    target: PteTarget,
    frame: Mfn,
    writable: bool,
    flags: u32,
) -> Result<(Maddr, Flush), Errno> {
    let frames = &mut core.frames;
    let at = match target {
        PteTarget::Va(va) => l1_entry_of(frames, l4, va).ok_or(Errno::EINVAL)?,
        PteTarget::Pte(at) if at.offset().is_multiple_of(8) => at,
        PteTarget::Pte(_) => return Err(Errno::EINVAL),
    };
    let flush = map_granted(frames, mapper, at, frame, writable, flags)?;
    Ok((at, flush))
}

fn map_granted(
    frames: &mut FrameTable,
    mapper: DomId,
    at: Maddr,
    frame: Mfn,
    writable: bool,
    flags: u32,
) -> Result<Flush, Errno> {
    if !is_live_l1_of(frames, at.mfn(), mapper) {
        return Err(Errno::EINVAL);
    }
    frames.take_granted(frame, writable)?;
    let avail = (u64::from(flags >> GNTMAP_AVAIL_SHIFT) << 9) & Pte::AVAIL;
    let rw = if writable { Pte::RW | Pte::DIRTY } else { 0 };
    let bits = Pte::PRESENT | Pte::ACCESSED | Pte::USER | Pte::GUEST_KERNEL | Pte::NX | rw | avail;
    let old = Pte::new(store_plain(frames, at, |_| frame.maddr().get() | bits));
    frames.drop_entry(Level::L1, old);
    Ok(if old.is_present() { Flush::All } else { Flush::None })
}

/// Clears the entry that [`grant_map`] made, unless the mapper has put something else there, or
/// nothing, or taken the table apart. The mapper may still have a translation: hence the flush.
pub fn grant_unmap(frames: &mut FrameTable, mapper: DomId, pte: Maddr, frame: Mfn) -> Flush {
    if frames.get_page(pte.mfn(), mapper).is_ok() {
        clear_grant_entry(frames, pte, frame);
        frames.put_page(pte.mfn());
    }
    Flush::All
}

fn clear_grant_entry(frames: &mut FrameTable, pte: Maddr, frame: Mfn) {
    if !frames.holds_leaf(pte.mfn(), (pte.offset() / 8) as u16) {
        return;
    }
    loop {
        let old = frames.mem().read_u64(pte);
        let entry = Pte::new(old);
        if !entry.is_present() || entry.mfn() != frame {
            return;
        }
        if frames.mem().compare_exchange_u64(pte, old, 0).is_ok() {
            return frames.drop_entry(Level::L1, entry);
        }
    }
}

/// A frame of the mapper's that is a live L1 table. A grant entry goes nowhere else.
pub fn is_live_l1_of(frames: &FrameTable, table: Mfn, mapper: DomId) -> bool {
    frames.owner(table) == Owner::Domain(mapper) && frames.live_level(table) == Some(Level::L1)
}

impl From<FrameError> for Errno {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Busy { .. } => Self::EAGAIN,
            FrameError::TooManyReferences { .. } | FrameError::NotMappable { .. } => Self::EBUSY,
            FrameError::NotDevice { .. } => Self::EPERM,
            FrameError::NoFrame { .. }
            | FrameError::NotOwner { .. }
            | FrameError::WrongType { .. }
            | FrameError::NotAllocated { .. }
            | FrameError::BadDescriptor { .. }
            | FrameError::Pin { .. } => Self::EINVAL,
        }
    }
}

impl From<TableError> for Errno {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Again => Self::EAGAIN,
            TableError::Frame(error) => error.into(),
            TableError::Entry { .. } => Self::EINVAL,
        }
    }
}

#[cfg(test)]
mod tests;
