//! What each domain owns: a list of its frames, threaded through the table, so that
//! a dying domain costs what it had; and the ways a frame leaves it.

use super::{Flags, Frame, FrameError, FrameTable, NIL, OWNER_CORE, OWNER_ORPHAN, Owner};
use crate::domain::MAX_DOMAINS;
use bulkhead_abi::{DomId, Mfn, mmu::M2P_INVALID};

/// What a domain owns.
#[derive(Clone, Copy)]
pub(super) struct Account {
    head: u32,
    tail: u32,
    pub(super) frames: u32,
    /// First of the page tables to be taken apart.
    pub(super) undo: u32,
}

impl Account {
    pub(super) const EMPTY: Self = Self { head: NIL, tail: NIL, frames: 0, undo: NIL };
}

/// Frames on their way out of a reservation, threaded through the table.
#[must_use = "its frames are nobody's until restored or freed"]
pub(crate) struct Stolen(u32);

impl Stolen {
    pub(crate) const fn new() -> Self {
        Self(NIL)
    }
}

/// The account of frames without a domain.
pub(super) const ORPHANS: usize = MAX_DOMAINS;

impl FrameTable {
    /// Whether the domain could give the frame away.
    pub fn check_let_go(&self, mfn: Mfn, dom: DomId) -> Result<(), FrameError> {
        self.check_owner(mfn, dom)?;
        match self.get(mfn) {
            Some(frame) if frame.flags.contains(Flags::ALLOCATED) => Ok(()),
            _ => Err(FrameError::NotAllocated { mfn }),
        }
    }

    /// The domain gives a frame of its reservation away: free once nobody refers to it.
    pub fn let_go(&mut self, mfn: Mfn, dom: DomId) -> Result<(), FrameError> {
        self.check_let_go(mfn, dom)?;
        let frame = self.get_mut(mfn).ok_or(FrameError::NoFrame { mfn })?;
        frame.flags.remove(Flags::ALLOCATED);
        if frame.flags.contains(Flags::PARTIAL) {
            self.begin_undo(mfn);
        }
        self.set_m2p(mfn, M2P_INVALID);
        self.put_page(mfn);
        Ok(())
    }

    /// Takes a frame out of its domain's reservation and onto a list, if nothing but the
    /// reservation refers to it. [`Self::restore`] or [`Self::free_stolen`] ends it.
    pub(crate) fn steal(
        &mut self,
        list: &mut Stolen,
        mfn: Mfn,
        dom: DomId,
    ) -> Result<(), FrameError> {
        self.check_let_go(mfn, dom)?;
        let n = mfn.get() as u32;
        let Frame { refs, types, kind, .. } = self.frames[n as usize];
        if refs != 1 || types != 0 {
            return Err(FrameError::WrongType { mfn, is: kind, count: types });
        }
        self.unlink(n);
        let next = core::mem::replace(&mut list.0, n);
        self.frames[n as usize] = Frame { owner: OWNER_CORE, refs: 1, next, kind, ..Frame::IO };
        self.core_frames += 1;
        Ok(())
    }

    /// Gives stolen frames back to their domain, as they were.
    pub(crate) fn restore(&mut self, list: Stolen, dom: DomId) {
        self.each_stolen(list, |table, n| {
            let kind = table.frames[n as usize].kind;
            table.own(n, dom);
            table.frames[n as usize].kind = kind;
        });
    }

    /// Frees stolen frames.
    pub(crate) fn free_stolen(&mut self, list: Stolen) {
        self.each_stolen(list, |table, n| table.release(Mfn::new(u64::from(n))));
    }

    fn each_stolen(&mut self, list: Stolen, mut f: impl FnMut(&mut Self, u32)) {
        let mut n = list.0;
        while n != NIL {
            let next = self.frames[n as usize].next;
            self.core_frames -= 1;
            f(self, n);
            n = next;
        }
    }

    /// For a dying domain: unpins and gives away one more of its frames. `false` when each
    /// had its turn.
    pub(in crate::memory) fn let_go_next(&mut self, dom: DomId) -> bool {
        let Some(&Account { head: n, .. }) = self.accounts.get(dom.get() as usize) else {
            return false;
        };
        if n == NIL || self.frames[n as usize].flags.contains(Flags::VISITED) {
            return false;
        }
        let mfn = Mfn::new(u64::from(n));
        // To the tail first: the frame may be free, and off the list, any moment after.
        self.unlink(n);
        self.link_tail(n);
        self.frames[n as usize].flags.insert(Flags::VISITED);
        // Neither refusal is an error here: most frames are not pinned, and some were
        // given away before.
        let _ = self.unpin(mfn, dom);
        let _ = self.let_go(mfn, dom);
        true
    }

    /// For a dead domain: what others still refer to stops being its own. `false` when
    /// nothing is left.
    pub(in crate::memory) fn orphan_next(&mut self, dom: DomId) -> bool {
        let Some(&Account { head: n, .. }) = self.accounts.get(dom.get() as usize) else {
            return false;
        };
        if n == NIL {
            return false;
        }
        self.unlink(n);
        self.frames[n as usize].owner = OWNER_ORPHAN;
        true
    }

    /// Whether the frame is among its domain's own.
    pub(super) fn is_linked(&self, n: u32) -> bool {
        let frame = &self.frames[n as usize];
        matches!(frame.owner(), Owner::Domain(_)) && !frame.flags.contains(Flags::SHARED)
    }

    /// Makes the frame part of a domain's reservation.
    pub(super) fn own(&mut self, n: u32, dom: DomId) {
        self.frames[n as usize] =
            Frame { owner: dom.get(), refs: 1, flags: Flags::ALLOCATED, ..Frame::IO };
        let head = self.account(n).head;
        self.frames[n as usize].next = head;
        if head == NIL {
            self.account(n).tail = n;
        } else {
            self.frames[head as usize].prev = n;
        }
        self.account(n).head = n;
        self.account(n).frames += 1;
    }

    fn link_tail(&mut self, n: u32) {
        let tail = self.account(n).tail;
        self.frames[n as usize].prev = tail;
        if tail == NIL {
            self.account(n).head = n;
        } else {
            self.frames[tail as usize].next = n;
        }
        self.account(n).tail = n;
        self.account(n).frames += 1;
    }

    pub(super) fn unlink(&mut self, n: u32) {
        let Frame { prev, next, .. } = self.frames[n as usize];
        match prev {
            NIL => self.account(n).head = next,
            prev => self.frames[prev as usize].next = next,
        }
        match next {
            NIL => self.account(n).tail = prev,
            next => self.frames[next as usize].prev = prev,
        }
        self.account(n).frames -= 1;
        let frame = &mut self.frames[n as usize];
        (frame.prev, frame.next) = (NIL, NIL);
    }

    /// The account of the frame's owner.
    pub(super) fn account(&mut self, n: u32) -> &mut Account {
        let slot = match self.frames[n as usize].owner() {
            Owner::Domain(dom) => dom.get() as usize,
            _ => ORPHANS,
        };
        &mut self.accounts[slot.min(ORPHANS)]
    }
}
