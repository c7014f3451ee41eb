//! Memory for devices: contiguous in machine addresses.

use super::{FRAMES, Pages, alloc_pages, direct_va, facts, pte};
use crate::hypercall;
use crate::shared::Shared;
use bulkhead_abi::memory::{MAX_ORDER, MemoryExchange, MemoryReservation, XENMEM_EXCHANGE};
use bulkhead_abi::mmu::UVMF_INVLPG;
use bulkhead_abi::{DomId, Maddr, Mfn, Pfn};

/// `1 << order` pages that are contiguous in machine memory; given back when dropped.
#[derive(Debug)]
pub struct Dma {
    pages: Pages,
}

impl Dma {
    /// Machine address of the first byte.
    pub fn maddr(&self) -> Maddr {
        self.pages.maddr(0)
    }

    /// Length in bytes.
    pub const fn bytes(&self) -> usize {
        self.pages.bytes()
    }

    /// All bytes; a device may change them.
    pub fn shared(&self) -> Shared<'_> {
        self.pages.shared()
    }
}

/// Takes `1 << order` zeroed pages, contiguous in machine memory; order up to 9.
/// `None` when the domain or the core has no such run.
pub fn alloc_dma(order: u32) -> Option<Dma> {
    if order > MAX_ORDER {
        return None;
    }
    let pages = alloc_pages(1 << order)?;
    if !is_contiguous(&pages) {
        exchange(&pages, order)?;
    }
    Some(Dma { pages })
}

fn is_contiguous(pages: &Pages) -> bool {
    let first = pages.mfn(0);
    (1..pages.count()).all(|i| Some(pages.mfn(i)) == first.checked_add(i as u64))
}

/// Swaps the frames behind `pages` for a contiguous run; `None` and nothing changed
/// when the core has none.
fn exchange(pages: &Pages, order: u32) -> Option<()> {
    let old: alloc::vec::Vec<u64> = (0..pages.count()).map(|i| pages.mfn(i).get()).collect();
    for index in 0..pages.count() {
        remap(pages.pfn(index), None);
    }
    let mut out = pages.pfn(0).get();
    let reservation = |at: u64, extents, order| MemoryReservation {
        extent_start: at,
        nr_extents: extents,
        extent_order: order,
        mem_flags: 0,
        domid: DomId::SELF.get(),
        ..Default::default()
    };
    let mut arg = MemoryExchange {
        input: reservation(old.as_ptr() as u64, old.len() as u64, 0),
        output: reservation((&raw mut out) as u64, 1, order),
        nr_exchanged: 0,
    };
    // SAFETY: the frames given away were just unmapped and hold nothing.
    let result = unsafe { hypercall::memory_op(XENMEM_EXCHANGE, &mut arg) };
    let done = result.is_ok() && arg.nr_exchanged == old.len() as u64;
    for (index, &before) in old.iter().enumerate() {
        let mfn = if done { out + index as u64 } else { before };
        remap(pages.pfn(index), Some(Mfn::new(mfn)));
    }
    if !done {
        return None;
    }
    for index in 0..pages.count() {
        let entry = (pages.mfn(index), pages.pfn(index));
        hypercall::machphys_update(DomId::SELF, &[entry]).ok()?;
    }
    pages.shared().fill(0, pages.bytes(), 0);
    Some(())
}

/// Changes what is behind `pfn`: the list entry and the direct map.
fn remap(pfn: Pfn, mfn: Option<Mfn>) {
    // The lock keeps the allocator from handing out frames that are in transit.
    let _frames = FRAMES.lock();
    let entry = (facts().p2m as *mut u64).wrapping_add(pfn.get() as usize);
    // SAFETY: `pfn` is in the list: it came from the allocator.
    unsafe { entry.write_volatile(mfn.map_or(u64::MAX, Mfn::get)) };
    let value = mfn.map_or(0, |mfn| mfn.maddr().get() | pte::DATA);
    // SAFETY: the page belongs to a `Pages` that nobody else uses yet.
    unsafe { hypercall::update_va_mapping(direct_va(pfn), value, UVMF_INVLPG) }
        .expect("an own frame can be mapped and unmapped");
}
