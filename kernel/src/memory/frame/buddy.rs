//! The free list: blocks of `2^order` frames, aligned to their size, one list per order,
//! threaded through the frame table.

use super::{
    Flags, Frame, FrameTable, Owner,
    list::{self, NIL},
};
use bulkhead_abi::{Mfn, memory::MAX_ORDER};

impl FrameTable {
    /// Takes `count` contiguous zeroed frames for the core itself.
    pub fn alloc_core(&mut self, count: usize) -> Option<Mfn> {
        let order = count.max(1).checked_next_power_of_two()?.ilog2();
        let first = self.take_block(order)?;
        let count = u32::try_from(count.max(1)).ok()?;
        self.free_range(first + count, (1 << order) - count);
        for n in first..first + count {
            self.frames[n as usize] = Frame { owner: Owner::Core, refs: 1, ..Frame::IO };
        }
        self.core_frames += u64::from(count);
        Some(Mfn::new(u64::from(first)))
    }

    /// Gives back what [`Self::alloc_core`] took, or what boot did not need. Frames in the
    /// range that are not the core's are left alone.
    pub fn free_core(&mut self, mfn: Mfn, count: usize) {
        let end = mfn.get().saturating_add(count as u64).min(self.max_mfn());
        let mut n = mfn.get();
        while n < end {
            let run =
                (n..end).take_while(|&m| self.owner(Mfn::new(m)) == Owner::Core).count() as u64;
            self.core_frames -= run;
            self.free_range(n as u32, run as u32);
            n += run + 1;
        }
    }

    /// A block of `2^order` zeroed frames, on no list and with no owner yet.
    pub(super) fn take_block(&mut self, order: u32) -> Option<u32> {
        let from = (order..=MAX_ORDER).find(|&o| self.free[o as usize] != NIL)?;
        let first = self.free[from as usize];
        self.unlist(first);
        for half in (order..from).rev() {
            self.list(first + (1 << half), half);
        }
        self.free_frames -= 1 << order;
        for n in first..first + (1 << order) {
            self.mem.zero_frame(Mfn::new(u64::from(n)));
        }
        Some(first)
    }

    /// Puts `count` frames on the free list.
    pub(super) fn free_range(&mut self, first: u32, count: u32) {
        let (mut n, end) = (first, first + count);
        while n < end {
            let order = n.trailing_zeros().min((end - n).ilog2()).min(MAX_ORDER);
            self.free_block(n, order);
            n += 1 << order;
        }
        self.free_frames += u64::from(count);
    }

    fn free_block(&mut self, mut first: u32, mut order: u32) {
        for n in first..first + (1 << order) {
            self.frames[n as usize] = Frame { owner: Owner::Free, ..Frame::IO };
        }
        while order < MAX_ORDER && self.is_block(first ^ (1 << order), order) {
            self.unlist(first ^ (1 << order));
            first &= !(1 << order);
            order += 1;
        }
        self.list(first, order);
    }

    fn is_block(&self, first: u32, order: u32) -> bool {
        self.frames.get(first as usize).is_some_and(|frame| {
            frame.owner == Owner::Free
                && frame.flags.contains(Flags::FREE_HEAD)
                && u32::from(frame.done) == order
        })
    }

    fn list(&mut self, first: u32, order: u32) {
        self.frames[first as usize] =
            Frame { owner: Owner::Free, flags: Flags::FREE_HEAD, done: order as u16, ..Frame::IO };
        list::push(self.frames, &mut self.free[order as usize], first);
    }

    fn unlist(&mut self, first: u32) {
        let order = self.frames[first as usize].done;
        list::remove(self.frames, &mut self.free[usize::from(order)], first);
        self.frames[first as usize] = Frame { owner: Owner::Free, ..Frame::IO };
    }
}
