//! Page tables coming and going: a frame becomes a table when the first reference to it
//! as such is taken, and all its entries are checked then; it stops being one when
//! the last goes, and its entries' references are dropped then.
//!
//! Both may take long and stop at a [`Budget`]:
//! - Validation walks down the levels. Where it stops, each table on the way stays
//!   `PARTIAL`, which holds a reference to the table by itself; whoever wants that
//!   table next goes on where it stopped.
//! - Taking apart is a list of tables per domain, never a recursion. [`FrameTable::drain`]
//!   works it off; a hypercall that changes tables does so before each operation and before
//!   it ends, so no guest sees a half-undone table.
//!
//! Linear page tables are refused: an entry of an L(n) table needs an L(n-1), and a frame has one type.

use super::{
    Flags, FrameError, FrameTable, FrameType, Result,
    list::NIL,
    owned::{ORPHANS, slot, slot_of},
};
use crate::memory::validate::{self, ENTRIES, Level, Pte, Rule};
use bulkhead_abi::{DomId, Mfn};
use core::ops::Range;

/// Steps left in this stay; one is one page-table entry or one frame.
#[derive(Debug)]
pub struct Budget(u32);

impl Budget {
    /// What one stay in ring 0 may take: eight full tables.
    pub const STAY: u32 = 8 * ENTRIES as u32;

    pub const fn new(steps: u32) -> Self {
        Self(steps)
    }

    /// Takes a step; `false` when none is left.
    pub fn step(&mut self) -> bool {
        let is_left = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        is_left
    }

    /// How many of so many entries may be looked over.
    fn reach(&self, entries: u16) -> u16 {
        self.0.min(entries.into()) as u16
    }

    /// Takes the steps of looking over so many entries that are empty.
    fn spend(&mut self, entries: u16) {
        self.0 = self.0.saturating_sub(entries.into());
    }

    pub fn is_spent(&self) -> bool {
        self.0 == 0
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(Self::STAY)
    }
}

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

/// What a validation needs besides the table itself.
pub struct Walk<'a> {
    pub budget: &'a mut Budget,
    /// Whether the owner of the tables may map this frame of a device.
    pub io: &'a dyn Fn(Mfn) -> bool,
}

impl FrameTable {
    /// Takes a general and a type reference on a page table that `owner` owns; the first
    /// validates it.
    ///
    /// Cost: at most the budget. Errors: on [`FrameError::Again`] and
    /// [`FrameError::Busy`] the caller holds nothing and may call again; on any other the
    /// frame is what it was, or will be after [`Self::drain`].
    pub fn get_table(&mut self, mfn: Mfn, owner: DomId, level: Level, walk: &mut Walk) -> Result {
        self.check_owner(mfn, owner)?;
        let (kind, frame) = (FrameType::Table(level), self.get_mut(mfn));
        if frame.kind == kind && frame.flags.contains(Flags::PARTIAL) {
            // The reference that the state held becomes the caller's.
            frame.flags.remove(Flags::PARTIAL);
        } else if self.get_typed(mfn, owner, kind)? {
            self.get_mut(mfn).done = 0;
        } else {
            return Ok(());
        }
        self.validate(mfn, owner, level, walk)
    }

    /// Drops what [`Self::get_table`] took. After the last, the table is on the undo list.
    pub fn put_table(&mut self, mfn: Mfn) {
        match self.get(mfn).types {
            // The last reference passes to the state.
            1 => self.begin_undo(mfn),
            _ => self.put_typed(mfn),
        }
    }

    /// Pins a page table of `owner`: it stays validated with nothing referring to it.
    pub fn pin(&mut self, mfn: Mfn, owner: DomId, level: Level, walk: &mut Walk) -> Result {
        self.check_pin(mfn, owner, false)?;
        self.get_table(mfn, owner, level, walk)?;
        self.get_mut(mfn).flags.insert(Flags::PINNED);
        Ok(())
    }

    /// Undoes [`Self::pin`].
    pub fn unpin(&mut self, mfn: Mfn, owner: DomId) -> Result {
        self.check_pin(mfn, owner, true)?;
        self.get_mut(mfn).flags.remove(Flags::PINNED);
        self.put_table(mfn);
        Ok(())
    }

    fn check_pin(&self, mfn: Mfn, owner: DomId, is_pinned: bool) -> Result {
        self.check_owner(mfn, owner)?;
        match self.get(mfn).flags.contains(Flags::PINNED) == is_pinned {
            true => Ok(()),
            false => Err(FrameError::Pin { mfn }),
        }
    }

    /// Takes apart the tables of `dom` that lost their last reference; `false` when the budget
    /// ended first.
    #[inline]
    pub fn drain(&mut self, dom: DomId, budget: &mut Budget) -> bool {
        let is_idle = |slot: usize| self.accounts[slot].undo == NIL;
        is_idle(slot(dom)) && is_idle(ORPHANS) || self.drain_all(dom, budget)
    }

    #[inline(never)]
    fn drain_all(&mut self, dom: DomId, budget: &mut Budget) -> bool {
        for slot in [slot(dom), ORPHANS] {
            while self.accounts[slot].undo != NIL {
                if !self.undo_step(slot, budget) {
                    return false;
                }
            }
        }
        true
    }

    /// Level of a table whose entries can be replaced: fully validated.
    pub(in crate::memory) fn live_level(&self, mfn: Mfn) -> Option<Level> {
        let frame = self.get(mfn);
        match frame.kind {
            FrameType::Table(level)
                if frame.done == ENTRIES && !frame.flags.contains(Flags::UNDO) =>
            {
                Some(level)
            }
            _ => None,
        }
    }

    /// Whether a frame is no table at all, live or half done, nor descriptors, so that
    /// words may be stored there without more questions. A half-validated one is sent
    /// off to be taken apart.
    pub(in crate::memory) fn check_plain(&mut self, mfn: Mfn) -> Result {
        self.check_type(mfn, FrameType::Writable)
    }

    /// Whether the entry of an L1 holds references, though the table may be half undone.
    pub(in crate::memory) fn holds_leaf(&self, table: Mfn, index: u16) -> bool {
        self.frame_type(table) == FrameType::Table(Level::L1) && index < self.get(table).done
    }

    /// What would be stored for a present entry, by the rules that ask for no reference.
    pub(in crate::memory) fn check_entry(&self, level: Level, entry: Pte) -> Result<Pte> {
        let stored = validate::stored_entry(level, entry).map_err(FrameError::BadEntry)?;
        if level == Level::L1 && stored.is_uncached() && self.is_ram(stored.mfn()) {
            return Err(FrameError::BadEntry(Rule::UncachedMemory));
        }
        Ok(stored)
    }

    /// Takes the references that a present entry needs; gives the entry to store.
    pub(in crate::memory) fn take_entry(
        &mut self,
        level: Level,
        owners: Owners,
        entry: Pte,
        walk: &mut Walk,
    ) -> Result<Pte> {
        if !entry.is_present() {
            return Ok(entry);
        }
        self.take_present(level, owners, entry, walk)
    }

    fn take_present(
        &mut self,
        level: Level,
        owners: Owners,
        entry: Pte,
        walk: &mut Walk,
    ) -> Result<Pte> {
        let stored = self.check_entry(level, entry)?;
        let mfn = stored.mfn();
        match level.below() {
            Some(below) => self.get_table(mfn, owners.tables, below, walk)?,
            None if self.is_ram(mfn) => {
                self.get_mapped(mfn, owners.pages, stored.is_writable()).map_err(|refused| {
                    match refused {
                        FrameError::Busy { .. } => refused,
                        _ => FrameError::NotMappable { mfn },
                    }
                })?;
            }
            None if (walk.io)(mfn) => {}
            None => return Err(FrameError::NotDevice { mfn }),
        }
        Ok(stored)
    }

    /// Drops what [`Self::take_entry`] took.
    pub(in crate::memory) fn drop_entry(&mut self, level: Level, entry: Pte) {
        let mfn = entry.mfn();
        match level {
            _ if !entry.is_present() => {}
            Level::L1 if !self.is_ram(mfn) => {}
            Level::L1 => self.put_mapped(mfn, entry.is_writable()),
            _ => self.put_table(mfn),
        }
    }

    /// An entry for `mfn` loses its write permission and keeps the frame.
    pub(in crate::memory) fn demote_entry(&mut self, mfn: Mfn) {
        if self.is_ram(mfn) {
            self.put_type(mfn);
        }
    }

    /// Goes on with a table that has its one reference; on success that is the caller's,
    /// else it stays with the table.
    fn validate(&mut self, mfn: Mfn, owner: DomId, level: Level, walk: &mut Walk) -> Result {
        let mut from = self.get(mfn).done;
        while from < ENTRIES {
            let found = self.next_present(mfn, level, from..ENTRIES, walk.budget);
            let index = found.unwrap_or_else(|end| end);
            walk.budget.spend(index - from);
            from = index;
            if from == ENTRIES {
                break;
            }
            let valid = match found {
                Ok(index) => self.validate_entry(mfn, index, owner, level, walk),
                Err(_) => Err(FrameError::Again),
            };
            if let Err(error) = valid {
                self.get_mut(mfn).done = from;
                match error {
                    FrameError::Again | FrameError::Busy { .. } => {
                        self.get_mut(mfn).flags.insert(Flags::PARTIAL);
                    }
                    _ => self.begin_undo(mfn),
                }
                return Err(error);
            }
            from += 1;
        }
        self.get_mut(mfn).done = ENTRIES;
        Ok(())
    }

    /// The first of these entries that something is to be done about, or how far the budget
    /// allows to look.
    fn next_present(
        &self,
        mfn: Mfn,
        level: Level,
        entries: Range<u16>,
        budget: &Budget,
    ) -> core::result::Result<u16, u16> {
        if level == Level::L4 {
            // The core's slots are set and cleared, whatever they hold.
            return Ok(entries.start);
        }
        let end = entries.start + budget.reach(entries.end - entries.start);
        self.mem.first_word(mfn, entries.start..end, Pte::PRESENT).ok_or(end)
    }

    fn validate_entry(
        &mut self,
        mfn: Mfn,
        index: u16,
        owner: DomId,
        level: Level,
        walk: &mut Walk,
    ) -> Result {
        let at = validate::entry_at(mfn, index);
        if level == Level::L4 && validate::is_core_slot(index) {
            // Whatever the guest left there is ignored.
            self.mem.write_u64(at, self.core_slots[usize::from(index - 256)]);
            return Ok(());
        }
        if !walk.budget.step() {
            return Err(FrameError::Again);
        }
        let entry = Pte::new(self.mem.read_u64(at));
        if !entry.is_present() {
            return Ok(());
        }
        let stored = self.take_present(level, Owners::only(owner), entry, walk)?;
        if stored != entry {
            self.mem.write_u64(at, stored.raw());
        }
        Ok(())
    }

    /// Hands a table with one type reference to the undo list, which takes the reference over.
    pub(super) fn begin_undo(&mut self, mfn: Mfn) {
        let slot = slot_of(self.owner(mfn));
        let next = core::mem::replace(&mut self.accounts[slot].undo, mfn.get() as u32);
        let frame = self.get_mut(mfn);
        frame.undo = next;
        frame.flags.remove(Flags::PARTIAL);
        frame.flags.insert(Flags::UNDO);
    }

    /// Goes on with the first table on the list; `false` when the budget ended.
    fn undo_step(&mut self, slot: usize, budget: &mut Budget) -> bool {
        let n = self.accounts[slot].undo;
        let mfn = Mfn::new(u64::from(n));
        let frame = &mut self.frames[n as usize];
        let (done, FrameType::Table(level)) = (frame.done, frame.kind) else {
            unreachable!("{mfn} is no table and is taken apart");
        };
        let left = match self.undo_entries(mfn, level, done, budget) {
            Ok(left) => left,
            // What it named may be the next to be taken apart.
            Err(index) => {
                self.frames[n as usize].done = index;
                self.undo_upper(mfn, index, level);
                return true;
            }
        };
        let frame = &mut self.frames[n as usize];
        frame.done = left;
        if left > 0 {
            return false;
        }
        self.accounts[slot].undo = core::mem::replace(&mut frame.undo, NIL);
        frame.flags.remove(Flags::UNDO);
        self.put_typed(mfn);
        true
    }

    fn undo_upper(&mut self, mfn: Mfn, index: u16, level: Level) {
        let at = validate::entry_at(mfn, index);
        if level == Level::L4 && validate::is_core_slot(index) {
            // As when it was validated: whatever it holds.
            self.mem.write_u64(at, 0);
        } else {
            let entry = Pte::new(self.mem.read_u64(at));
            self.drop_entry(level, entry);
        }
    }

    /// Drops the entries of an L1 below `done`, highest first, and gives how many are left when
    /// the budget ends. Of another table it gives, as an error, the first that is to be dropped.
    fn undo_entries(
        &mut self,
        mfn: Mfn,
        level: Level,
        mut done: u16,
        budget: &mut Budget,
    ) -> core::result::Result<u16, u16> {
        loop {
            let least = done - budget.reach(done);
            let found = match level {
                Level::L4 => (least..done).next_back(),
                _ => self.mem.last_word(mfn, least..done, Pte::PRESENT),
            };
            budget.spend(done - found.unwrap_or(least));
            let Some(index) = found else {
                return Ok(least);
            };
            if level != Level::L1 {
                return Err(index);
            }
            done = index;
            let entry = Pte::new(self.mem.read_u64(validate::entry_at(mfn, index)));
            self.drop_entry(level, entry);
        }
    }
}
