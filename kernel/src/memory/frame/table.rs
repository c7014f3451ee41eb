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
    Flags, FrameError, FrameTable, NIL, Owner,
    owned::{Account, ORPHANS},
};
use crate::memory::validate::{self, ENTRIES, Level, Pte, Rule};
use bulkhead_abi::{DomId, Mfn};

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

    pub fn is_spent(&self) -> bool {
        self.0 == 0
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(Self::STAY)
    }
}

/// What a validation needs besides the table itself.
pub struct Walk<'a> {
    pub budget: &'a mut Budget,
    /// Whether the owner of the tables may map this frame of a device.
    pub io: &'a dyn Fn(Mfn) -> bool,
}

/// Why a page table or an entry can not be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableError {
    /// Not finished; the same call again goes on.
    Again,
    Frame(FrameError),
    Entry {
        table: Mfn,
        index: u16,
        rule: Rule,
    },
}

impl From<FrameError> for TableError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl FrameTable {
    /// Takes a general and a type reference on a page table that `owner` owns; the first
    /// validates it.
    ///
    /// Cost: at most the budget. Errors: on [`TableError::Again`] and
    /// [`FrameError::Busy`] the caller holds nothing and may call again; on any other the
    /// frame is what it was, or will be after [`Self::drain`].
    pub fn get_table(
        &mut self,
        mfn: Mfn,
        owner: DomId,
        level: Level,
        walk: &mut Walk,
    ) -> Result<(), TableError> {
        self.check_owner(mfn, owner)?;
        self.check_type(mfn, level.frame_type())?;
        let Some(&frame) = self.get(mfn) else {
            return Err(FrameError::NoFrame { mfn }.into());
        };
        if frame.types == 0 {
            self.take_plain(mfn, level.frame_type())?;
            self.set_done(mfn, 0);
            return self.validate(mfn, owner, level, walk);
        }
        if frame.flags.contains(Flags::PARTIAL) {
            // The reference that the state held becomes the caller's.
            self.set_flags(mfn, Flags::PARTIAL, Flags::empty());
            return self.validate(mfn, owner, level, walk);
        }
        self.take_plain(mfn, level.frame_type())?;
        Ok(())
    }

    /// Drops what [`Self::get_table`] took. After the last, the table is on the undo list.
    pub fn put_table(&mut self, mfn: Mfn) {
        match self.get(mfn) {
            // The last reference passes to the state.
            Some(frame) if frame.types == 1 => self.begin_undo(mfn),
            Some(_) => self.drop_plain(mfn),
            None => {}
        }
    }

    /// Pins a page table of `owner`: it stays validated with nothing referring to it.
    pub fn pin(
        &mut self,
        mfn: Mfn,
        owner: DomId,
        level: Level,
        walk: &mut Walk,
    ) -> Result<(), TableError> {
        self.check_owner(mfn, owner)?;
        if self.get(mfn).is_some_and(|f| f.flags.contains(Flags::PINNED)) {
            return Err(FrameError::Pin { mfn }.into());
        }
        self.get_table(mfn, owner, level, walk)?;
        self.set_flags(mfn, Flags::empty(), Flags::PINNED);
        Ok(())
    }

    /// Undoes [`Self::pin`].
    pub fn unpin(&mut self, mfn: Mfn, owner: DomId) -> Result<(), FrameError> {
        self.check_owner(mfn, owner)?;
        if !self.get(mfn).is_some_and(|f| f.flags.contains(Flags::PINNED)) {
            return Err(FrameError::Pin { mfn });
        }
        self.set_flags(mfn, Flags::PINNED, Flags::empty());
        self.put_table(mfn);
        Ok(())
    }

    /// Takes apart the tables of `dom` that lost their last reference; `false` when the budget
    /// ended first.
    pub fn drain(&mut self, dom: DomId, budget: &mut Budget) -> bool {
        self.drain_account((dom.get() as usize).min(ORPHANS), budget)
            && self.drain_account(ORPHANS, budget)
    }

    /// Level of a table whose entries can be replaced: fully validated.
    pub(in crate::memory) fn live_level(&self, mfn: Mfn) -> Option<Level> {
        let frame = self.get(mfn)?;
        frame.flags.contains(Flags::VALIDATED).then(|| Level::of(frame.kind))?
    }

    /// Whether a frame is no table at all, live or half done, nor descriptors, so that
    /// words may be stored there without more questions. A half-validated one is sent
    /// off to be taken apart.
    pub(in crate::memory) fn check_plain(&mut self, mfn: Mfn) -> Result<(), FrameError> {
        self.check_type(mfn, super::FrameType::Writable)
    }

    /// Whether the entry of an L1 holds references, though the table may be half undone.
    pub(in crate::memory) fn holds_leaf(&self, table: Mfn, index: u16) -> bool {
        self.get(table).is_some_and(|f| {
            f.types > 0
                && f.kind == super::FrameType::L1
                && (f.flags.contains(Flags::VALIDATED) || index < f.done)
        })
    }

    /// Takes the references that a present entry needs; gives the entry to store.
    /// `target` owns the frames that an L1 entry may name.
    pub(in crate::memory) fn take_entry(
        &mut self,
        (table, index): (Mfn, u16),
        level: Level,
        (owner, target): (DomId, DomId),
        entry: Pte,
        walk: &mut Walk,
    ) -> Result<Pte, TableError> {
        if !entry.is_present() {
            return Ok(entry);
        }
        let broken = |rule| TableError::Entry { table, index, rule };
        let stored = validate::stored_entry(level, entry).map_err(broken)?;
        let mfn = stored.mfn();
        match level.below() {
            Some(below) => self.get_table(mfn, owner, below, walk)?,
            None if !self.is_ram(mfn) => {
                if !(walk.io)(mfn) {
                    return Err(FrameError::NotDevice { mfn }.into());
                }
            }
            None if stored.is_uncached() => return Err(broken(Rule::UncachedMemory)),
            None => self.get_mapped(mfn, target, stored.is_writable())?,
        }
        Ok(stored)
    }

    /// Takes what an L1 entry holds of a page of `dom`.
    fn get_mapped(&mut self, mfn: Mfn, dom: DomId, is_writable: bool) -> Result<(), FrameError> {
        let taken = if is_writable { self.get_writable(mfn, dom) } else { self.get_page(mfn, dom) };
        taken.map_err(|refused| match refused {
            FrameError::Busy { .. } => refused,
            _ => FrameError::NotMappable { mfn },
        })
    }

    /// Drops what [`Self::take_entry`] took.
    pub(in crate::memory) fn drop_entry(&mut self, level: Level, entry: Pte) {
        let mfn = entry.mfn();
        match level {
            _ if !entry.is_present() => {}
            Level::L1 if !self.is_ram(mfn) => {}
            Level::L1 if entry.is_writable() => self.put_writable(mfn),
            Level::L1 => self.put_page(mfn),
            _ => self.put_table(mfn),
        }
    }

    /// References for an entry that a grant map makes, whoever owns the frame: the caller holds some already.
    pub(in crate::memory) fn take_granted(
        &mut self,
        mfn: Mfn,
        is_writable: bool,
    ) -> Result<(), FrameError> {
        match self.owner(mfn) {
            Owner::Domain(_) | Owner::Orphan if is_writable => {
                self.take_plain(mfn, super::FrameType::Writable).map(drop)
            }
            Owner::Domain(_) | Owner::Orphan => self.add_ref(mfn),
            owner => Err(FrameError::NotOwner { mfn, owner }),
        }
    }

    /// An entry for `mfn` loses its write permission and keeps the frame.
    pub(in crate::memory) fn demote_entry(&mut self, mfn: Mfn) {
        if self.is_ram(mfn) {
            self.drop_type(mfn);
        }
    }

    /// Goes on with a table that has its one reference; on success that is the caller's,
    /// else it stays with the table.
    fn validate(
        &mut self,
        mfn: Mfn,
        owner: DomId,
        level: Level,
        walk: &mut Walk,
    ) -> Result<(), TableError> {
        let first = self.get(mfn).map_or(0, |f| f.done);
        for index in first..ENTRIES {
            if let Err(error) = self.validate_entry(mfn, index, owner, level, walk) {
                self.set_done(mfn, index);
                match error {
                    TableError::Again | TableError::Frame(FrameError::Busy { .. }) => {
                        self.set_flags(mfn, Flags::empty(), Flags::PARTIAL);
                    }
                    _ => self.begin_undo(mfn),
                }
                return Err(error);
            }
        }
        self.set_done(mfn, ENTRIES);
        self.set_flags(mfn, Flags::empty(), Flags::VALIDATED);
        Ok(())
    }

    fn validate_entry(
        &mut self,
        mfn: Mfn,
        index: u16,
        owner: DomId,
        level: Level,
        walk: &mut Walk,
    ) -> Result<(), TableError> {
        let at = validate::entry_at(mfn, index);
        if level == Level::L4 && validate::is_core_slot(index) {
            // Whatever the guest left there is ignored.
            self.mem.write_u64(at, self.core_slots[usize::from(index - 256)]);
            return Ok(());
        }
        if !walk.budget.step() {
            return Err(TableError::Again);
        }
        let entry = Pte::new(self.mem.read_u64(at));
        let stored = self.take_entry((mfn, index), level, (owner, owner), entry, walk)?;
        if stored != entry {
            self.mem.write_u64(at, stored.raw());
        }
        Ok(())
    }

    /// Hands a table with one type reference to the undo list, which takes the reference over.
    pub(super) fn begin_undo(&mut self, mfn: Mfn) {
        let n = mfn.get() as u32;
        let account = self.account(n);
        let next = core::mem::replace(&mut account.undo, n);
        self.frames[n as usize].undo = next;
        self.set_flags(mfn, Flags::VALIDATED | Flags::PARTIAL, Flags::UNDO);
    }

    fn drain_account(&mut self, slot: usize, budget: &mut Budget) -> bool {
        while let Some(&Account { undo: n, .. }) = self.accounts.get(slot)
            && n != NIL
        {
            if !self.undo_step(slot, n, budget) {
                return false;
            }
        }
        true
    }

    /// One entry of the first table on the list, or its end.
    fn undo_step(&mut self, slot: usize, n: u32, budget: &mut Budget) -> bool {
        let mfn = Mfn::new(u64::from(n));
        let frame = self.frames[n as usize];
        let (Some(index), Some(level)) = (frame.done.checked_sub(1), Level::of(frame.kind)) else {
            self.accounts[slot].undo = frame.undo;
            self.frames[n as usize].undo = NIL;
            self.set_flags(mfn, Flags::UNDO, Flags::empty());
            self.drop_plain(mfn);
            return true;
        };
        if !budget.step() {
            return false;
        }
        self.set_done(mfn, index);
        let at = validate::entry_at(mfn, index);
        if level == Level::L4 && validate::is_core_slot(index) {
            self.mem.write_u64(at, 0);
        } else {
            let entry = Pte::new(self.mem.read_u64(at));
            self.drop_entry(level, entry);
        }
        true
    }

    fn set_done(&mut self, mfn: Mfn, done: u16) {
        if let Some(frame) = self.get_mut(mfn) {
            frame.done = done;
        }
    }

    fn set_flags(&mut self, mfn: Mfn, clear: Flags, set: Flags) {
        if let Some(frame) = self.get_mut(mfn) {
            frame.flags.remove(clear);
            frame.flags.insert(set);
        }
    }
}
