//! The area where things that are not own memory are mapped: 4 GiB of linear
//! addresses in L4 slot 274, page tables made as needed and kept.

use super::{alloc_pages, pte, root};
use crate::bitmap::Bitmap;
use crate::hypercall;
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_abi::errno::Errno;
use bulkhead_abi::mmu::{self, MmuUpdate, MmuextOp};
use bulkhead_abi::{DomId, Maddr, Mfn, PAGE_SIZE};
use spin::Mutex;

/// First linear address of the area.
const START: u64 = 0xffff_8900_0000_0000;
const L4_SLOT: usize = 274;
/// Pages of linear addresses.
const PAGES: usize = 1 << 20;
const ENTRIES: usize = 512;
/// From this many pages on a whole flush is cheaper than one page at a time.
const FLUSH_ALL_FROM: usize = 8;
/// Entries changed by one hypercall.
const BATCH: usize = 128;

static STATE: Mutex<Option<State>> = Mutex::new(None);

struct State {
    pages: Bitmap<Vec<u64>>,
    l3: Table,
    l2: [Option<Table>; PAGES / ENTRIES / ENTRIES],
    l1: Vec<Option<Table>>,
}

/// A live page table of the area: read here, written by hypercall.
#[derive(Clone, Copy)]
struct Table {
    mfn: Mfn,
    va: u64,
}

impl Table {
    /// Makes an empty table and links it as entry `index` of `parent`.
    fn new(parent: Mfn, index: usize) -> Result<Self, Errno> {
        let pages = alloc_pages(1).ok_or(Errno::ENOMEM)?;
        let table = Self { mfn: pages.mfn(0), va: pages.va() };
        let read_only = table.mfn.maddr().get() | pte::READ_ONLY;
        // SAFETY: the page is ours and nothing else lives there; it only loses write
        // permission, and is never given back.
        unsafe { hypercall::update_va_mapping(table.va, read_only, mmu::UVMF_INVLPG) }?;
        let update = MmuUpdate {
            ptr: parent.maddr().get() + index as u64 * 8,
            val: table.mfn.maddr().get() | pte::TABLE,
        };
        core::mem::forget(pages);
        // SAFETY: links an empty table at addresses nobody uses.
        unsafe { hypercall::mmu_update(&[update], DomId::SELF) }.map_err(|(_, errno)| errno)?;
        Ok(table)
    }
}

impl State {
    fn new() -> Result<Self, Errno> {
        let pages = Bitmap::new_empty(vec![0; PAGES / 64], PAGES);
        let l4 = root().ok_or(Errno::ENOENT)?;
        Ok(Self {
            pages,
            l3: Table::new(l4, L4_SLOT)?,
            l2: [None; PAGES / ENTRIES / ENTRIES],
            l1: vec![None; PAGES / ENTRIES],
        })
    }

    fn l1(&mut self, index: usize) -> Result<Table, Errno> {
        if let Some(table) = self.l1[index] {
            return Ok(table);
        }
        let upper = index / ENTRIES;
        let l2 = match self.l2[upper] {
            Some(table) => table,
            None => *self.l2[upper].insert(Table::new(self.l3.mfn, upper)?),
        };
        Ok(*self.l1[index].insert(Table::new(l2.mfn, index % ENTRIES)?))
    }
}

/// A run of linear addresses with page tables but, at first, nothing mapped.
///
/// Whoever maps something there unmaps it before this is dropped.
#[derive(Debug)]
pub(crate) struct Area {
    first: usize,
    count: usize,
}

impl Area {
    /// Takes `count` pages of addresses.
    pub fn new(count: usize) -> Result<Self, Errno> {
        let mut guard = STATE.lock();
        let state = match guard.as_mut() {
            Some(state) => state,
            None => guard.insert(State::new()?),
        };
        let first = state.pages.take(count, 1).ok_or(Errno::ENOSPC)?;
        let area = Self { first, count };
        for index in first / ENTRIES..=(first + count - 1) / ENTRIES {
            if let Err(errno) = state.l1(index) {
                drop(guard);
                return Err(errno);
            }
        }
        Ok(area)
    }

    pub const fn count(&self) -> usize {
        self.count
    }

    /// Linear address of page `index`.
    pub const fn va(&self, index: usize) -> u64 {
        START + ((self.first + index) * PAGE_SIZE) as u64
    }

    /// Machine address of the entry that maps page `index`, and what it holds.
    fn entry(&self, index: usize) -> (Maddr, u64) {
        let page = self.first + index;
        let guard = STATE.lock();
        let state = guard.as_ref().expect("an area exists");
        let table = state.l1[page / ENTRIES].expect("made with the area");
        let offset = (page % ENTRIES) * 8;
        // SAFETY: the table is mapped read-only in the direct map for ever.
        let value = unsafe { ((table.va as usize + offset) as *const u64).read_volatile() };
        (Maddr::new(table.mfn.maddr().get() + offset as u64), value)
    }

    /// The machine frame that page `index` shows, `None` if nothing.
    pub fn mfn(&self, index: usize) -> Option<Mfn> {
        let (_, value) = self.entry(index);
        (value & pte::PRESENT != 0).then(|| Maddr::new(value & pte::FRAME).mfn())
    }

    /// Writes the entries from page `first` on; frames of `domain`. Returns how many
    /// were written when it fails.
    pub fn set(
        &self,
        first: usize,
        values: impl Iterator<Item = u64>,
        domain: DomId,
    ) -> Result<(), (usize, Errno)> {
        let mut updates = [MmuUpdate::default(); BATCH];
        let mut values = values.peekable();
        let mut at = 0;
        while values.peek().is_some() {
            let mut n = 0;
            while n < BATCH {
                let Some(val) = values.next() else { break };
                let (ptr, _) = self.entry(first + at + n);
                updates[n] = MmuUpdate { ptr: ptr.get(), val };
                n += 1;
            }
            // SAFETY: the entries belong to this area, where no Rust object lives.
            unsafe { hypercall::mmu_update(&updates[..n], domain) }
                .map_err(|(done, errno)| (at + done, errno))?;
            at += n;
        }
        Ok(())
    }

    /// Clears the first `count` entries and the TLB.
    pub fn clear(&self, count: usize) {
        if count == 0 {
            return;
        }
        self.set(0, (0..count).map(|_| 0), DomId::SELF).expect("an entry can always be cleared");
        let mut ops = [MmuextOp::default(); FLUSH_ALL_FROM];
        let n = if count < FLUSH_ALL_FROM {
            for (index, op) in ops[..count].iter_mut().enumerate() {
                op.cmd = mmu::MMUEXT_INVLPG_LOCAL;
                op.arg1 = self.va(index);
            }
            count
        } else {
            ops[0].cmd = mmu::MMUEXT_TLB_FLUSH_LOCAL;
            1
        };
        // SAFETY: a flush changes no mapping.
        unsafe { hypercall::mmuext_op(&ops[..n], DomId::SELF) }.expect("a flush is not refused");
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        if let Some(state) = STATE.lock().as_mut() {
            state.pages.release(self.first, self.count);
        }
    }
}
