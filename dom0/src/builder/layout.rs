//! Where everything goes in a new domain (abi-notes 1.3): arithmetic on frame
//! numbers, no bytes.

use super::{error::BuildError, kernel::Kernel};
use bulkhead_abi::{
    GuestVa, PAGE_SIZE, Pfn,
    mmu::{HOLE_END, HOLE_START},
};
use core::ops::Range;

const PAGE: u64 = PAGE_SIZE as u64;
/// Entries of a page table.
pub const ENTRIES: u64 = 512;
/// Room that must be mapped past the stack.
const SLACK: u64 = 512 << 10;
/// The initial mapping ends at a multiple of this.
const MAPPING_STEP: u64 = 4 << 20;

/// Frames, counted from pfn 0 of the domain.
pub type Frames = Range<u64>;

/// A stretch of linear addresses mapped to consecutive pfns, with the frames of the
/// tables that do it, lowest addresses first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapped {
    /// Linear address of the first byte, page-aligned.
    pub va: u64,
    /// What is mapped there.
    pub pfns: Frames,
    pub l3: Frames,
    pub l2: Frames,
    pub l1: Frames,
}

/// Where the ramdisk is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ramdisk {
    pub frames: Frames,
    pub bytes: u64,
    /// It is outside of the initial mapping, and announced by its pfn.
    pub is_unmapped: bool,
}

/// The plan of a domain's memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    pub nr_pages: u64,
    pub start_info: Pfn,
    pub store: Pfn,
    pub console: Pfn,
    pub l4: Pfn,
    pub stack: Pfn,
    /// The kernel's mapping from pfn 0 on.
    pub kernel: Mapped,
    pub ramdisk: Option<Ramdisk>,
    /// Frames of the pfn-to-mfn list.
    pub p2m: Frames,
    /// Linear address of the list.
    pub p2m_va: GuestVa,
    /// Where the list is mapped, when it is apart from the kernel.
    pub p2m_mapping: Option<Mapped>,
}

impl Layout {
    /// Plans a domain of `nr_pages` frames with a ramdisk of `ramdisk_bytes` (0: none).
    pub fn plan(
        kernel: &Kernel<'_>,
        ramdisk_bytes: u64,
        nr_pages: u64,
    ) -> Result<Self, BuildError> {
        check_virt_base(kernel.virt_base)?;
        let mut next = kernel.end().div_ceil(PAGE);
        let mut take = |count: u64| {
            let first = next;
            next = next.saturating_add(count);
            first..next
        };
        let p2m_pages = (nr_pages.saturating_mul(8)).div_ceil(PAGE);
        let ramdisk_pages = ramdisk_bytes.div_ceil(PAGE);
        let is_unmapped = kernel.takes_unmapped_ramdisk;
        let inner_ramdisk = (!is_unmapped).then(|| take(ramdisk_pages));
        let inner_p2m = kernel.init_p2m.is_none().then(|| take(p2m_pages));
        let start_info = take(1).start;
        let store = take(1).start;
        let console = take(1).start;
        let mapping = plan_kernel_mapping(kernel.virt_base, console + 1)?;
        let mut next = mapping.pfns.end;
        let mut take = |count: u64| {
            let first = next;
            next = next.saturating_add(count);
            first..next
        };
        let ramdisk = inner_ramdisk.unwrap_or_else(|| take(ramdisk_pages));
        let (p2m, p2m_va, p2m_mapping) = match (inner_p2m, kernel.init_p2m) {
            (Some(frames), _) => {
                let va = kernel.virt_base.wrapping_add(frames.start * PAGE);
                (frames, va, None)
            }
            (None, init_p2m) => {
                let va = init_p2m.unwrap_or(0);
                let frames = take(p2m_pages);
                let mapping = plan_p2m_mapping(va, frames.clone(), kernel.virt_base)?;
                take(mapping.l1.end - frames.end);
                (frames, va, Some(mapping))
            }
        };
        if next > nr_pages {
            return Err(BuildError::TooLittleMemory {
                needed_kib: next.saturating_mul(PAGE / 1024),
                given_kib: nr_pages.saturating_mul(PAGE / 1024),
            });
        }
        let layout = Self {
            nr_pages,
            start_info: Pfn::new(start_info),
            store: Pfn::new(store),
            console: Pfn::new(console),
            l4: Pfn::new(console + 1),
            stack: Pfn::new(mapping.l1.end),
            ramdisk: (ramdisk_bytes > 0).then_some(Ramdisk {
                frames: ramdisk,
                bytes: ramdisk_bytes,
                is_unmapped,
            }),
            kernel: mapping,
            p2m,
            p2m_va: GuestVa::new(p2m_va),
            p2m_mapping,
        };
        layout.check_kernel_addresses(kernel)?;
        Ok(layout)
    }

    /// Linear address of a pfn in the kernel's mapping.
    pub fn va(&self, pfn: Pfn) -> GuestVa {
        GuestVa::new(self.kernel.va.wrapping_add(pfn.get() * PAGE))
    }

    /// Guest-physical address of a linear address in the kernel's mapping.
    pub fn paddr(&self, va: u64) -> Option<u64> {
        let paddr = va.wrapping_sub(self.kernel.va);
        (paddr < self.kernel.pfns.end * PAGE).then_some(paddr)
    }

    /// Page-table frames of the kernel's mapping, with the L4.
    pub fn tables(&self) -> Frames {
        self.l4.get()..self.kernel.l1.end
    }

    /// Whether the domain must not have a writable mapping of a frame.
    pub fn is_table(&self, pfn: u64) -> bool {
        let p2m = self.p2m_mapping.as_ref();
        self.tables().contains(&pfn)
            || p2m.is_some_and(|p2m| (p2m.l3.start..p2m.l1.end).contains(&pfn))
    }

    fn check_kernel_addresses(&self, kernel: &Kernel<'_>) -> Result<(), BuildError> {
        let inside = |what, address| match self.paddr(address) {
            Some(paddr) => Ok(paddr),
            None => Err(BuildError::BadAddress { what, address }),
        };
        inside("entry", kernel.entry)?;
        if let Some(page) = kernel.hypercall_page {
            let paddr = inside("hypercall page", page)?;
            if !paddr.is_multiple_of(PAGE) {
                return Err(BuildError::BadAddress { what: "hypercall page", address: page });
            }
        }
        Ok(())
    }
}

fn check_virt_base(virt_base: u64) -> Result<(), BuildError> {
    let is_aligned = virt_base.is_multiple_of(MAPPING_STEP);
    let is_in_hole = (HOLE_START..HOLE_END).contains(&virt_base);
    if !is_aligned || is_in_hole || !GuestVa::new(virt_base).is_canonical() {
        return Err(BuildError::BadNote { note: "VIRT_BASE", value: virt_base });
    }
    Ok(())
}

/// Numbers of tables that map from `va` up to `last`, both inclusive: L3, L2, L1.
fn table_counts(va: u64, last: u64) -> [u64; 3] {
    [39, 30, 21].map(|shift| (last >> shift) - (va >> shift) + 1)
}

/// The kernel's mapping: tables from frame `first` on, a stack page after them, and
/// a mapping of all of it that is long enough to map its own tables.
fn plan_kernel_mapping(va: u64, first: u64) -> Result<Mapped, BuildError> {
    let bad = || BuildError::BadAddress { what: "end", address: first.saturating_mul(PAGE) };
    let mut counts = [1; 3];
    loop {
        let tables = 1 + counts.iter().sum::<u64>();
        let stack_end = first.checked_add(tables + 1).ok_or_else(bad)?;
        let end = stack_end.checked_mul(PAGE).and_then(|e| e.checked_add(SLACK));
        let end = end.and_then(|e| e.checked_next_multiple_of(MAPPING_STEP));
        let end = end.ok_or_else(bad)?;
        let last = va.checked_add(end - 1).ok_or_else(bad)?;
        let crosses_hole = va < HOLE_END && last >= HOLE_START;
        if crosses_hole || !GuestVa::new(last).is_canonical() {
            return Err(bad());
        }
        let wanted = table_counts(va, last);
        if wanted == counts {
            return Ok(mapped(va, 0..end / PAGE, first + 1, counts));
        }
        counts = wanted;
    }
}

/// The list's own mapping, in an L4 slot that the kernel does not use.
fn plan_p2m_mapping(va: u64, frames: Frames, virt_base: u64) -> Result<Mapped, BuildError> {
    let bad = BuildError::BadNote { note: "INIT_P2M", value: va };
    let bytes = (frames.end - frames.start).saturating_mul(PAGE);
    let Some(last) = va.checked_add(bytes.max(1) - 1) else {
        return Err(bad);
    };
    let is_one_slot = va >> 39 == last >> 39 && va >> 39 != virt_base >> 39;
    let is_in_hole = va < HOLE_END && last >= HOLE_START;
    let is_canonical = GuestVa::new(va).is_canonical() && GuestVa::new(last).is_canonical();
    if !is_one_slot || is_in_hole || !is_canonical || !va.is_multiple_of(PAGE) {
        return Err(bad);
    }
    let first_table = frames.end;
    Ok(mapped(va, frames, first_table, table_counts(va, last)))
}

fn mapped(va: u64, pfns: Frames, first_table: u64, [n3, n2, n1]: [u64; 3]) -> Mapped {
    let l3 = first_table..first_table + n3;
    let l2 = l3.end..l3.end + n2;
    let l1 = l2.end..l2.end + n1;
    Mapped { va, pfns, l3, l2, l1 }
}
