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
        FrameError, FrameTable, Owner, Result,
        table::{Budget, Owners, Walk},
    },
    guest::GuestSpace,
    validate::{self, Level, Pte, Rule},
};
use crate::state::{Caller, Core};
use bulkhead_abi::{DomId, Errno, GuestVa, Maddr, Mfn};

/// Replaces the page-table entry at `at` by `new(old)`; gives the old one.
///
/// In a live table the new entry is validated and stored as [`validate::stored_entry`] says. In
/// any other frame of the domain, tables-to-be among them, the word is just stored.
///
/// Errors: nothing has changed, except that [`FrameError::Again`] and
/// [`FrameError::Busy`] made progress towards another try.
pub fn write_entry(
    frames: &mut FrameTable,
    owners: Owners,
    at: Maddr,
    new: impl Fn(u64) -> u64,
    walk: &mut Walk,
) -> Result<u64> {
    let table = at.mfn();
    // Nobody takes the frame away meanwhile: the core lock is held.
    frames.get_page(table, owners.tables)?;
    let result = match frames.live_level(table) {
        Some(level) => replace_entry(frames, owners, (level, at), new, walk),
        None => frames.check_plain(table).map(|()| store_plain(frames, at, new)),
    };
    frames.put_page(table);
    result
}

/// [`write_entry`] in a live table.
fn replace_entry(
    frames: &mut FrameTable,
    owners: Owners,
    (level, at): (Level, Maddr),
    new: impl Fn(u64) -> u64,
    walk: &mut Walk,
) -> Result<u64> {
    if level == Level::L4 && validate::is_core_slot(validate::index_of(at)) {
        return Err(FrameError::BadEntry(Rule::CoreSlot));
    }
    loop {
        let old = frames.mem().read_u64(at);
        let (was, wanted) = (Pte::new(old), Pte::new(new(old)));
        // The same use of the same frame, or less, needs no new reference. So a mapping of
        // somebody else's frame can change its bits though its maker could not make it.
        let is_leaf = level == Level::L1;
        let keeps = was.is_present()
            && wanted.is_present()
            && was.mfn() == wanted.mfn()
            && (was.is_writable() || !wanted.is_writable() || !is_leaf);
        let stored = match keeps {
            true => frames.check_entry(level, wanted)?,
            false => frames.take_entry(level, owners, wanted, walk)?,
        };
        let is_stored = frames.mem().compare_exchange_u64(at, old, stored.raw()).is_ok();
        match (keeps, is_stored) {
            (false, true) => frames.drop_entry(level, was),
            (false, false) => frames.drop_entry(level, stored),
            (true, true) if is_leaf && was.is_writable() && !wanted.is_writable() => {
                frames.demote_entry(was.mfn());
            }
            (true, _) => {}
        }
        if is_stored {
            return Ok(old);
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
    let [.., at] = GuestSpace::new(frames, l4).path(va).ok()?;
    Some(at)
}

/// Runs `f` with the frame table and the right of `dom` to its devices' memory.
pub fn with_walk<R>(
    core: &mut Core,
    dom: DomId,
    budget: &mut Budget,
    f: impl FnOnce(&mut FrameTable, &mut Walk) -> Result<R>,
) -> core::result::Result<R, Errno> {
    let Core { frames, domains, .. } = core;
    let devices = &domains.get(dom).ok_or(Errno::ESRCH)?.devices;
    let io = |mfn| devices.allows_io(mfn);
    Ok(f(frames, &mut Walk { budget, io: &io })?)
}

/// Takes the references a vCPU holds on its root table: validates it if it is none yet.
///
/// Errors: `EAGAIN` when it is not finished, or something stands in the way that was just
/// sent off: call again, later, with the same arguments.
pub fn get_root(core: &mut Core, dom: DomId, mfn: Mfn) -> core::result::Result<(), Errno> {
    let mut budget = Budget::default();
    if !core.frames.drain(dom, &mut budget) {
        return Err(Errno::EAGAIN);
    }
    with_walk(core, dom, &mut budget, |frames, walk| frames.get_table(mfn, dom, Level::L4, walk))
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
) -> core::result::Result<u64, Errno> {
    if core.frames.live_level(entry.mfn()) != Some(Level::L1) || !entry.offset().is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let mut budget = Budget::default();
    with_walk(core, caller.dom, &mut budget, |frames, walk| {
        write_entry(frames, Owners::only(caller.dom), entry, new, walk)
    })
}

/// Bits of the flags of a grant map that go into bits 9-11 of the entry (grant_table.h,
/// `_GNTMAP_guest_avail0`).
const GNTMAP_AVAIL_SHIFT: u32 = 16;

/// Makes the L1 entry `at` of `mapper` map a frame that `granter` granted it. The entry takes
/// references of its own; whatever was mapped there before is dropped, and the flush makes the
/// processor forget it.
///
/// The caller has checked the grant and holds references itself. `flags` are the
/// `GNTMAP_*` of the call.
/// Errors: `None`: not in a live table of the mapper's, or no more references.
pub fn grant_map(
    frames: &mut FrameTable,
    (mapper, at): (DomId, Maddr),
    (granter, frame): (DomId, Mfn),
    writable: bool,
    flags: u32,
) -> Option<Flush> {
    let is_own = frames.owner(at.mfn()) == Owner::Domain(mapper);
    if !is_own || frames.live_level(at.mfn()) != Some(Level::L1) {
        return None;
    }
    frames.get_mapped(frame, granter, writable).ok()?;
    let avail = (u64::from(flags >> GNTMAP_AVAIL_SHIFT) << 9) & Pte::AVAIL;
    let rw = if writable { Pte::RW | Pte::DIRTY } else { 0 };
    let bits = Pte::PRESENT | Pte::ACCESSED | Pte::USER | Pte::GUEST_KERNEL | Pte::NX | rw | avail;
    let old = Pte::new(store_plain(frames, at, |_| frame.maddr().get() | bits));
    frames.drop_entry(Level::L1, old);
    Some(if old.is_present() { Flush::All } else { Flush::None })
}

/// Clears the entry `at` of `mapper` that maps `frame`; `None` if it has put something else there,
/// or nothing, or taken the table apart. The processor may still have a translation: hence the
/// flush.
pub fn grant_unmap(frames: &mut FrameTable, mapper: DomId, at: Maddr, frame: Mfn) -> Option<Flush> {
    let is_own = frames.owner(at.mfn()) == Owner::Domain(mapper);
    if !is_own || !frames.holds_leaf(at.mfn(), validate::index_of(at)) {
        return None;
    }
    loop {
        let old = frames.mem().read_u64(at);
        let entry = Pte::new(old);
        if !entry.is_present() || entry.mfn() != frame {
            return None;
        }
        if frames.mem().compare_exchange_u64(at, old, 0).is_ok() {
            frames.drop_entry(Level::L1, entry);
            return Some(Flush::All);
        }
    }
}

impl From<FrameError> for Errno {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Again | FrameError::Busy { .. } => Self::EAGAIN,
            FrameError::TooManyReferences { .. } | FrameError::NotMappable { .. } => Self::EBUSY,
            FrameError::NotDevice { .. } => Self::EPERM,
            _ => Self::EINVAL,
        }
    }
}

#[cfg(test)]
mod tests;
