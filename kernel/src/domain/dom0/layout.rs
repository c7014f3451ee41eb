//! Where everything lies in Dom0: pure arithmetic over the archive's header.
//!
//! In order of pfn: the program, the pfn-to-mfn list, start_info, page tables, the boot
//! stack, padding, all mapped linearly from the base address; then memory that is not
//! mapped; last the payload, not mapped either.

use super::{BootError, PAGE, archive::Archive};
use bulkhead_abi::{
    GuestVa, PAGE_SHIFT, Pfn,
    mmu::{HOLE_END, HOLE_START},
};

/// Shifts of the address range that one table of level 1, 2, 3 covers.
pub const SPANS: [u32; 3] = [21, 30, 39];
/// Room above the stack that is mapped at least (ABI notes 1.3).
const PADDING: u64 = 512 << 10;
/// The mapping ends on a multiple of this.
const ROUND: u64 = 4 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    pub virt_base: u64,
    /// Frames of Dom0 besides the payload.
    pub frames: u64,
    pub payload_frames: u64,
    pub p2m: Pfn,
    pub p2m_frames: u64,
    pub start_info: Pfn,
    /// The L4; L3s, L2s and L1s follow it.
    pub tables: Pfn,
    pub table_frames: u64,
    pub stack: Pfn,
    /// pfns below this are mapped at `virt_base`.
    pub mapped: u64,
}

impl Layout {
    /// Lays Dom0 out.
    ///
    /// Errors: `TooSmall`, `BadAddress` for a base that is unaligned or whose mapping would
    /// touch the core's hole.
    pub fn plan(archive: &Archive) -> Result<Self, BootError> {
        let header = archive.header();
        let image_end = archive.segments().map(|s| s.paddr + s.mem_bytes).max().unwrap_or(0);
        let frames = header.dom0_frames;
        let payload_frames = header.payload_bytes.div_ceil(PAGE);
        let total = frames.checked_add(payload_frames).filter(|&n| n < 1 << 40);
        let total = total.ok_or(BootError::BadRange("dom0_frames"))?;
        Self::of(header.dom0_virt_base, image_end, frames, total - frames)
    }

    fn of(
        virt_base: u64,
        image_end: u64,
        frames: u64,
        payload_frames: u64,
    ) -> Result<Self, BootError> {
        let bad = BootError::BadAddress(virt_base);
        if !virt_base.is_multiple_of(PAGE) || !GuestVa::new(virt_base).is_canonical() {
            return Err(bad);
        }
        let p2m = image_end.div_ceil(PAGE);
        if p2m > frames {
            return Err(BootError::TooSmall { frames, needed: p2m });
        }
        let p2m_frames = ((frames + payload_frames) * 8).div_ceil(PAGE);
        let start_info = p2m + p2m_frames;
        let tables = start_info + 1;
        let mut table_frames = 1 + SPANS.len() as u64;
        // More tables make the mapping longer, which may take more tables; it grows far
        // slower than it maps, so this ends.
        let (stack, end) = loop {
            let stack = tables + table_frames;
            let bytes = (stack + 1) * PAGE + PADDING;
            let end =
                virt_base.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(ROUND));
            let end = end.ok_or(bad)?;
            let needed = 1 + SPANS.iter().map(|&span| tables_in(virt_base, end, span)).sum::<u64>();
            if needed <= table_frames {
                break (stack, end);
            }
            table_frames = needed;
        };
        if !(GuestVa::new(end - 1).is_canonical() && (end <= HOLE_START || virt_base >= HOLE_END))
            || (virt_base ^ (end - 1)) >> 63 != 0
        {
            return Err(bad);
        }
        let mapped = (end - virt_base) / PAGE;
        if mapped > frames {
            return Err(BootError::TooSmall { frames, needed: mapped });
        }
        Ok(Self {
            virt_base,
            frames,
            payload_frames,
            p2m: Pfn::new(p2m),
            p2m_frames,
            start_info: Pfn::new(start_info),
            tables: Pfn::new(tables),
            table_frames,
            stack: Pfn::new(stack),
            mapped,
        })
    }

    /// All of Dom0's frames.
    pub fn total(&self) -> u64 {
        self.frames + self.payload_frames
    }

    /// The linear address of a mapped pfn.
    pub fn va(&self, pfn: Pfn) -> u64 {
        self.virt_base + (pfn.get() << PAGE_SHIFT)
    }

    /// The pfn mapped at a linear address.
    pub fn pfn_of(&self, va: u64) -> Option<Pfn> {
        let pfn = va.checked_sub(self.virt_base)? >> PAGE_SHIFT;
        (pfn < self.mapped).then_some(Pfn::new(pfn))
    }

    /// First address past the mapping.
    pub fn end(&self) -> u64 {
        self.virt_base + self.mapped * PAGE
    }

    /// Whether a pfn is a page table, which must not be writable.
    pub fn is_table(&self, pfn: Pfn) -> bool {
        pfn.get().checked_sub(self.tables.get()).is_some_and(|n| n < self.table_frames)
    }

    /// How many tables of level 1, 2 or 3 there are.
    pub fn tables_of(&self, level: usize) -> u64 {
        SPANS.get(level - 1).map_or(1, |&span| tables_in(self.virt_base, self.end(), span))
    }

    /// First pfn of the tables of level 1..=4: the highest level comes first.
    pub fn first_of(&self, level: usize) -> Pfn {
        let above = (level + 1..=4).map(|l| self.tables_of(l)).sum::<u64>();
        Pfn::new(self.tables.get() + above)
    }
}

/// Ranges of `1 << span` bytes that `start..end` touches.
fn tables_in(start: u64, end: u64, span: u32) -> u64 {
    ((end - 1) >> span) - (start >> span) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: u64 = 0xffff_ffff_8000_0000;

    #[test]
    fn a_small_dom0_is_mapped_to_a_multiple_of_4_mib() {
        let l = Layout::of(KERNEL, 0x20_1234, 8192, 100).unwrap();
        assert_eq!((l.p2m.get(), l.p2m_frames), (0x202, 17));
        assert_eq!(l.start_info.get(), 0x202 + 17);
        assert_eq!(l.tables.get(), l.start_info.get() + 1);
        assert_eq!(l.stack.get(), l.tables.get() + l.table_frames);
        assert_eq!(l.mapped, 1024);
        assert_eq!(l.table_frames, 1 + 1 + 1 + 2);
        assert_eq!(l.first_of(4), l.tables);
        assert_eq!(l.first_of(1).get(), l.tables.get() + 3);
    }

    #[test]
    fn the_mapping_covers_everything_below_the_padding() {
        for image in (0..64).map(|n| n * 77_777) {
            let l = Layout::of(KERNEL, image, 1 << 18, 5000).unwrap();
            let above = l.mapped * PAGE - (l.stack.get() + 1) * PAGE;
            assert!((PADDING..PADDING + ROUND).contains(&above), "{above}");
            assert!(l.pfn_of(l.end()).is_none() && l.pfn_of(l.end() - 1).is_some());
            let needed: u64 = (1..=4).map(|level| l.tables_of(level)).sum();
            assert!(needed <= l.table_frames);
        }
    }

    #[test]
    fn refuses_a_program_that_does_not_fit() {
        assert!(matches!(Layout::of(KERNEL, 64 << 20, 1024, 0), Err(BootError::TooSmall { .. })));
        assert!(matches!(Layout::of(KERNEL, 0, 100, 0), Err(BootError::TooSmall { .. })));
    }

    #[test]
    fn refuses_a_base_in_or_into_the_hole() {
        for base in [HOLE_START, HOLE_END - (1 << 21), HOLE_START - 4096, 0x8000_0000_0000, 0x1001]
        {
            assert_eq!(Layout::of(base, 1 << 20, 1 << 16, 0), Err(BootError::BadAddress(base)));
        }
        let top = u64::MAX - 0xf_ffff;
        assert_eq!(Layout::of(top, 1 << 20, 1 << 16, 0), Err(BootError::BadAddress(top)));
    }

    #[test]
    fn any_canonical_base_outside_the_hole_will_do() {
        for base in
            [0x1000, 0x7fc0_0000, 0x8000_0000_0000 - (4 << 20), HOLE_END, HOLE_END + 0x3fe0_0000]
        {
            let l = Layout::of(base, 4096, 1 << 16, 0);
            assert!(l.is_ok() || base == 0x8000_0000_0000 - (4 << 20), "{base:#x}: {l:?}");
        }
    }
}
