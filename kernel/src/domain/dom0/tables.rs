//! Dom0's first page tables (ABI notes 1.6): the linear mapping of the layout, page
//! tables read-only in it. Entries are written raw; pinning the root validates them.

use super::layout::{Layout, SPANS};
use crate::memory::frame::FrameTable;
use bulkhead_abi::{Maddr, Mfn, PAGE_SHIFT, Pfn};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

/// Writes all tables. `mfn_of` tells where a pfn is.
pub fn fill(frames: &FrameTable, layout: &Layout, mfn_of: impl Fn(Pfn) -> Mfn) {
    let flags = PRESENT | USER | ACCESSED | DIRTY;
    let entry = |table: Pfn, index: u64| Maddr::new(mfn_of(table).maddr().get() + index % 512 * 8);
    let put = |at: Maddr, target: Pfn, flags: u64| {
        frames.mem().write_u64(at, mfn_of(target).maddr().get() | flags);
    };
    for pfn in (0..layout.mapped).map(Pfn::new) {
        let va = layout.va(pfn);
        let table = table_at(layout, 1, va);
        let writable = if layout.is_table(pfn) { 0 } else { WRITABLE };
        put(entry(table, va >> PAGE_SHIFT), pfn, flags | writable);
    }
    for level in 1..=3 {
        let span = SPANS[level - 1];
        let first = layout.virt_base >> span;
        for n in first..first + layout.tables_of(level) {
            let va = n << span;
            let parent = table_at(layout, level + 1, va);
            put(entry(parent, n), table_at(layout, level, va), flags | WRITABLE);
        }
    }
}

/// The table of a level that covers `va`.
fn table_at(layout: &Layout, level: usize, va: u64) -> Pfn {
    let index = SPANS.get(level - 1).map_or(0, |&span| (va >> span) - (layout.virt_base >> span));
    Pfn::new(layout.first_of(level).get() + index)
}
