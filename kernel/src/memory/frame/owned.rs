//! What each domain owns: a list of its frames, threaded through the table, so that
//! a dying domain costs what it had; and the ways a frame leaves it.

use super::{
    Flags, Frame, FrameError, FrameTable, Owner, Result,
    list::{self, NIL},
};
use crate::domain::MAX_DOMAINS;
use bulkhead_abi::{DomId, Mfn, mmu::M2P_INVALID};

/// What a domain owns.
#[derive(Clone, Copy)]
pub(super) struct Account {
    head: u32,
    pub(super) frames: u32,
    /// First of the page tables to be taken apart.
    pub(super) undo: u32,
    /// What `VISITED` says of a frame that had its turn in the walk under way.
    visited: bool,
}

impl Account {
    pub(super) const EMPTY: Self = Self { head: NIL, frames: 0, undo: NIL, visited: true };
}

/// The account of frames without a domain.
pub(super) const ORPHANS: usize = MAX_DOMAINS;

impl FrameTable {
    /// Whether the domain could give the frame away.
    pub fn check_let_go(&self, mfn: Mfn, dom: DomId) -> Result {
        self.check_owner(mfn, dom)?;
        match self.get(mfn).flags.contains(Flags::ALLOCATED) {
            true => Ok(()),
            false => Err(FrameError::NotAllocated { mfn }),
        }
    }

    /// The domain gives a frame of its reservation away: free once nobody refers to it.
    pub fn let_go(&mut self, mfn: Mfn, dom: DomId) -> Result {
        self.check_let_go(mfn, dom)?;
        let frame = self.get_mut(mfn);
        frame.flags.remove(Flags::ALLOCATED);
        if frame.flags.contains(Flags::PARTIAL) {
            self.begin_undo(mfn);
        }
        self.set_m2p(mfn, M2P_INVALID);
        self.put_page(mfn);
        Ok(())
    }

    /// Takes a frame out of its domain's reservation, if nothing but the reservation refers
    /// to it. [`Self::settle_stolen`] ends it, before the core lock is let go.
    pub(crate) fn steal(&mut self, mfn: Mfn, dom: DomId) -> Result {
        self.check_let_go(mfn, dom)?;
        let Frame { refs, types, kind, flags, .. } = self.get(mfn);
        if refs != 1 || types != 0 {
            return Err(FrameError::WrongType { mfn, is: kind, count: types });
        }
        let n = mfn.get() as u32;
        self.disown(n);
        let flags = flags & Flags::GIVEN;
        self.frames[n as usize] = Frame { owner: Owner::Core, refs: 1, kind, flags, ..Frame::IO };
        list::push(self.frames, &mut self.stolen, n);
        Ok(())
    }

    /// Gives all stolen frames back to their domain, as they were, or frees them.
    pub(crate) fn settle_stolen(&mut self, back_to: Option<DomId>) {
        while self.stolen != NIL {
            let n = self.stolen;
            list::remove(self.frames, &mut self.stolen, n);
            match back_to {
                Some(dom) => {
                    let Frame { kind, flags, .. } = self.frames[n as usize];
                    self.own(n, dom);
                    self.frames[n as usize].kind = kind;
                    self.frames[n as usize].flags |= flags;
                }
                None => self.release(Mfn::new(u64::from(n))),
            }
        }
    }

    /// Notes that Dom0 gave these frames to their owner.
    pub(crate) fn note_given(&mut self, first: Mfn, order: u32) {
        for n in first.get()..first.get() + (1 << order) {
            self.get_mut(Mfn::new(n)).flags.insert(Flags::GIVEN);
        }
    }

    /// For a dying domain: unpins and gives away one more of its frames. `false` when each
    /// had its turn.
    pub(in crate::memory) fn let_go_next(&mut self, dom: DomId) -> bool {
        let Some(n) = self.visit_next(dom) else {
            return false;
        };
        self.part_with(n, dom);
        true
    }

    /// For a domain that is reset: lets go one more of its frames, unless Dom0 gave it and
    /// nothing but the reservation refers to it. `false` when each had its turn.
    pub(in crate::memory) fn keep_next(&mut self, dom: DomId) -> bool {
        let Some(n) = self.visit_next(dom) else {
            let account = &mut self.accounts[slot(dom)];
            account.visited = !account.visited;
            return false;
        };
        let frame = &self.frames[n as usize];
        if frame.refs > 1 || !frame.flags.contains(Flags::ALLOCATED | Flags::GIVEN) {
            self.part_with(n, dom);
        }
        true
    }

    /// Unpins one of a domain's frames and gives it away.
    fn part_with(&mut self, n: u32, dom: DomId) {
        let mfn = Mfn::new(u64::from(n));
        // Neither refusal is an error here: most frames are not pinned, and some were
        // given away before.
        let _ = self.unpin(mfn, dom);
        let _ = self.let_go(mfn, dom);
    }

    /// One more of a domain's frames that had no turn yet. It is at the end of the list then, and
    /// may be freed.
    fn visit_next(&mut self, dom: DomId) -> Option<u32> {
        let account = &mut self.accounts[slot(dom)];
        let n = account.head;
        let frame = self.frames.get_mut(n as usize).filter(|_| n != NIL)?;
        if frame.flags.contains(Flags::VISITED) == account.visited {
            return None;
        }
        account.head = frame.next;
        frame.flags.toggle(Flags::VISITED);
        Some(n)
    }

    /// For a dead domain: what others still refer to stops being its own. `false` when
    /// nothing is left.
    pub(in crate::memory) fn orphan_next(&mut self, dom: DomId) -> bool {
        let n = self.accounts[slot(dom)].head;
        if n == NIL {
            return false;
        }
        if self.frames[n as usize].flags.contains(Flags::ALLOCATED) {
            // It had its turn in a reset that has turned out to be the end.
            self.part_with(n, dom);
            return true;
        }
        self.disown(n);
        self.frames[n as usize].owner = Owner::Orphan;
        true
    }

    /// Makes the frame part of a domain's reservation.
    pub(super) fn own(&mut self, n: u32, dom: DomId) {
        let account = &mut self.accounts[slot(dom)];
        let mut flags = Flags::ALLOCATED;
        flags.set(Flags::VISITED, !account.visited);
        self.frames[n as usize] = Frame { owner: Owner::Domain(dom), refs: 1, flags, ..Frame::IO };
        list::push(self.frames, &mut account.head, n);
        account.frames += 1;
    }

    /// Takes the frame off its domain's list.
    pub(super) fn disown(&mut self, n: u32) {
        let account = &mut self.accounts[slot_of(self.frames[n as usize].owner)];
        list::remove(self.frames, &mut account.head, n);
        account.frames -= 1;
    }
}

/// Where a domain's account is.
pub(super) fn slot(dom: DomId) -> usize {
    usize::from(dom.get()).min(ORPHANS)
}

/// Where the account of a frame's owner is.
pub(super) fn slot_of(owner: Owner) -> usize {
    match owner {
        Owner::Domain(dom) => slot(dom),
        _ => ORPHANS,
    }
}
