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
    /// The boot archive.
    pub archive: Range<u64>,
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
    if modules == 0 {
        return Err("no boot archive: start with -initrd");
    }
    let start = read_u64(module_list);
    let archive = start..start.saturating_add(read_u64(module_list + 8));
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

/// Calls `give` with each part of `ram`, in whole pages, that no range of `used` touches.
pub fn unused(ram: &[Range<u64>], used: &[Range<u64>], mut give: impl FnMut(Range<u64>)) {
    let first = |used: &Range<u64>| used.start & !0xfff;
    for range in ram {
        let mut at = range.start;
        while at < range.end {
            if let Some(user) = used.iter().find(|used| first(used) <= at && at < used.end) {
                at = user.end.next_multiple_of(4096);
                continue;
            }
            let next = used.iter().map(first).filter(|start| *start > at).min();
            let end = next.unwrap_or(range.end).min(range.end);
            give(at..end);
            at = end;
        }
    }
}

/// Takes the core's tables out of RAM, from one contiguous range below 4 GiB.
pub struct Carver {
    range: Range<u64>,
    next: u64,
}

impl Carver {
    /// The largest range of RAM below 4 GiB that neither the image nor the archive touches.
    pub fn new(handover: &Handover) -> Option<Self> {
        let mut best = 0..0;
        let length = |range: &Range<u64>| range.end.saturating_sub(range.start);
        unused(&handover.ram, &[image(), handover.archive.clone()], |range| {
            let range = range.start..range.end.min(EARLY_LIMIT);
            if length(&range) > length(&best) {
                best = range;
            }
        });
        (!best.is_empty()).then_some(Self { next: best.start, range: best })
    }

    /// Takes zeroed bytes, aligned.
    pub fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        let at = self.next.checked_next_multiple_of(align)?;
        let next = at.checked_add(bytes.next_multiple_of(4096))?;
        if next > self.range.end {
            return None;
        }
        self.next = next;
        // SAFETY: RAM below 4 GiB that nobody else has; both the first tables and the core's map it there.
        unsafe { core::ptr::write_bytes((PHYSMAP + at) as *mut u8, 0, bytes as usize) };
        Some(at)
    }

    /// What was taken.
    pub fn taken(&self) -> Range<u64> {
        self.range.start..self.next
    }
}
