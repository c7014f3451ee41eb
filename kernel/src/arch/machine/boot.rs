//! From QEMU's PVH entry (32-bit, paging off) to Rust in the hole, and the division of memory:
//! what is RAM, where the archive lies, what the core takes for its tables.

use super::paging::{PHYSMAP, image};
use core::{arch::global_asm, ops::Range};
use heapless::Vec;

/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PHYS32_ENTRY: u32 = 18;
/// `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const TYPE_RAM: u32 = 1;
/// Most ranges of memory that are looked at.
pub const MAX_RANGES: usize = 32;
/// The first mebibyte is the firmware's.
const LOW: u64 = 1 << 20;
/// What the first page tables map.
const EARLY_LIMIT: u64 = 4 << 30;
/// Highest address that the core maps.
const PHYSMAP_LIMIT: u64 = 512 << 30;

global_asm!(
    include_str!("boot.s"),
    note = const NOTE_PHYS32_ENTRY,
    stack_end = const 4096 + (256 << 10),
);

/// Reads words that the loader left, through the first tables' map of low memory.
fn read_u64(at: u64) -> u64 {
    assert!(at < EARLY_LIMIT - 8, "the loader's structures lie below 4 GiB");
    // SAFETY: the first page tables map everything below 4 GiB here, and nothing else runs.
    unsafe { ((PHYSMAP + at) as *const u64).read_unaligned() }
}

fn read_u32(at: u64) -> u32 {
    read_u64(at) as u32
}

/// What the loader handed over.
pub struct Handover {
    /// RAM above the firmware's, page-aligned, ascending.
    pub ram: Vec<Range<u64>, MAX_RANGES>,
    /// The archive.
    pub archive: Option<Range<u64>>,
}

/// Reads the PVH start information at `at` (public/arch-x86/hvm/start_info.h).
///
/// Errors: what is wrong with it.
pub fn handover(at: u64) -> Result<Handover, &'static str> {
    if read_u32(at) != START_MAGIC || read_u32(at + 4) < 1 {
        return Err("not started by PVH with a memory map");
    }
    let (modules, module_list) = (read_u32(at + 12), read_u64(at + 16));
    let (map, entries) = (read_u64(at + 40), read_u32(at + 48));
    let archive = (modules > 0).then(|| {
        let start = read_u64(module_list);
        start..start.saturating_add(read_u64(module_list + 8))
    });
    let mut ram = Vec::<Range<u64>, MAX_RANGES>::new();
    for n in 0..u64::from(entries) {
        let entry = map + n * 24;
        let (start, bytes, kind) = (read_u64(entry), read_u64(entry + 8), read_u32(entry + 16));
        let end = start.saturating_add(bytes).min(PHYSMAP_LIMIT) & !0xfff;
        let start = start.max(LOW).next_multiple_of(4096);
        if kind == TYPE_RAM && start < end {
            ram.push(start..end).map_err(|_| "too many ranges of memory")?;
        }
    }
    ram.sort_unstable_by_key(|range| range.start);
    Ok(Handover { ram, archive })
}

/// Takes the core's tables out of RAM, from one contiguous range below 4 GiB.
pub struct Carver {
    next: u64,
    start: u64,
    end: u64,
}

impl Carver {
    /// The largest range of RAM below 4 GiB that neither the image nor the archive touches.
    pub fn new(handover: &Handover) -> Option<Self> {
        let image = image();
        let archive = handover.archive.clone().unwrap_or(0..0);
        let mut best = 0..0;
        for range in &handover.ram {
            let mut edges = Vec::<u64, 6>::new();
            for edge in [
                range.start,
                range.end,
                image.start,
                image.end,
                archive.start & !0xfff,
                archive.end,
            ] {
                // Six fit.
                let _ = edges.push(
                    edge.clamp(range.start, range.end).next_multiple_of(4096).min(EARLY_LIMIT),
                );
            }
            edges.sort_unstable();
            for pair in edges.windows(2) {
                let candidate = pair[0]..pair[1];
                let touches =
                    |other: &Range<u64>| candidate.start < other.end && other.start < candidate.end;
                let is_larger = candidate.end - candidate.start > best.end - best.start;
                if is_larger && !touches(&image) && !touches(&archive) {
                    best = candidate;
                }
            }
        }
        (!best.is_empty()).then_some(Self { next: best.start, start: best.start, end: best.end })
    }

    /// Takes zeroed bytes, aligned.
    pub fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        let at = self.next.checked_next_multiple_of(align)?;
        let next = at.checked_add(bytes.next_multiple_of(4096))?;
        if next > self.end {
            return None;
        }
        self.next = next;
        // SAFETY: RAM below 4 GiB that nobody else has; both the first tables and the core's map it there.
        unsafe { core::ptr::write_bytes((PHYSMAP + at) as *mut u8, 0, bytes as usize) };
        Some(at)
    }

    /// What was taken.
    pub fn taken(&self) -> Range<u64> {
        self.start..self.next
    }
}
