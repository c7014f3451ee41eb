//! Start of memory: takes the initial mapping down to what the builder loaded, and
//! begins the direct map of all frames, which grows as they are handed out.
//!
//! The tables of the direct map are one run of frames, so that it is known beforehand
//! which frames must be mapped read-only.

use super::{DIRECT_MAP, direct_va, machphys_of, pte};
use crate::bitmap::Bitmap;
use crate::boot::Boot;
use crate::entry::VIRT_BASE;
use crate::hypercall;
use bulkhead_abi::mmu::{self, MmuUpdate, MmuextOp};
use bulkhead_abi::{DomId, Mfn, PAGE_SIZE, Pfn};
use core::ops::Range;

/// Entries in a page table.
const ENTRIES: usize = 512;
/// Entries changed by one hypercall.
const BATCH: usize = 32;

/// What is left when the direct map stands.
pub struct Layout {
    /// Frames that the direct map covers, holes included.
    pub nr_frames: usize,
    /// Frames nobody uses.
    pub free: Bitmap<&'static mut [u64]>,
    pub direct: DirectMap,
}

/// Linear addresses of the program's parts, from the linker script.
mod image {
    #[cfg(target_os = "none")]
    macro_rules! symbols {
        ($($name:ident = $symbol:ident),*) => {$(
            pub fn $name() -> u64 {
                unsafe extern "C" {
                    static $symbol: u8;
                }
                (&raw const $symbol) as u64
            }
        )*};
    }
    #[cfg(not(target_os = "none"))]
    macro_rules! symbols {
        ($($name:ident = $symbol:ident),*) => {$(
            pub fn $name() -> u64 {
                crate::entry::VIRT_BASE
            }
        )*};
    }
    symbols!(
        start = __image_start,
        rodata = __rodata_start,
        data = __data_start,
        guard = __stack_guard,
        window = __window,
        end = __image_end
    );
}

/// Frames in use at start, by purpose.
struct Reserved {
    text: Range<usize>,
    rodata: Range<usize>,
    tables: Range<usize>,
    guard: usize,
    others: [Range<usize>; 7],
}

/// The pfn that the initial mapping shows at `va`.
const fn initial_pfn(va: u64) -> usize {
    ((va - VIRT_BASE) / PAGE_SIZE as u64) as usize
}

fn initial_range(start: u64, end: u64) -> Range<usize> {
    initial_pfn(start)..initial_pfn(end + PAGE_SIZE as u64 - 1)
}

impl Reserved {
    fn new(boot: &Boot, nr_frames: usize, start_info: u64, stack_top: u64) -> Self {
        let page = |va: u64| initial_pfn(va)..initial_pfn(va) + 1;
        let ring = |ring: Option<crate::boot::Ring>| {
            let pfn = ring.map(|r| machphys_of(r.mfn).get() as usize);
            pfn.filter(|&pfn| pfn < nr_frames).map_or(0..0, |pfn| pfn..pfn + 1)
        };
        let ramdisk = boot.ramdisk.map_or(0..0, |(pfn, bytes)| {
            let first = pfn.get() as usize;
            first..first + bytes.div_ceil(PAGE_SIZE)
        });
        let tables = initial_pfn(boot.pt_base);
        Self {
            text: initial_range(image::start(), image::rodata()),
            rodata: initial_range(image::rodata(), image::data()),
            tables: tables..tables + boot.nr_pt_frames,
            guard: initial_pfn(image::guard()),
            others: [
                initial_range(image::data(), image::end()),
                page(start_info),
                page(stack_top - 1),
                initial_range(boot.p2m, boot.p2m + boot.nr_frames as u64 * 8),
                ring(boot.store),
                ring(boot.console),
                ramdisk,
            ],
        }
    }

    fn all(&self) -> impl Iterator<Item = &Range<usize>> {
        [&self.text, &self.rodata, &self.tables].into_iter().chain(&self.others)
    }

    fn touches(&self, pfns: &Range<usize>) -> bool {
        self.all().any(|range| overlap(range, pfns))
    }

    fn holds(&self, pfn: usize) -> bool {
        self.all().any(|range| range.contains(&pfn))
    }

    /// Flags of the entry for `pfn` in the initial mapping; `None` to unmap it.
    fn initial_flags(&self, pfn: usize) -> Option<u64> {
        if self.text.contains(&pfn) {
            Some(pte::READ_ONLY & !pte::NO_EXECUTE)
        } else if pfn == self.guard || !self.holds(pfn) {
            None
        } else {
            Some(self.direct_flags(pfn))
        }
    }

    fn direct_flags(&self, pfn: usize) -> u64 {
        let read_only = [&self.text, &self.rodata, &self.tables];
        if read_only.iter().any(|range| range.contains(&pfn)) { pte::READ_ONLY } else { pte::DATA }
    }

    /// The lowest run of `count` frames that nobody uses.
    fn gap(&self, count: usize, nr_frames: usize) -> Option<usize> {
        let mut start = 0;
        while start + count <= nr_frames {
            let run = start..start + count;
            let clash =
                self.all().filter(|r| r.start < run.end && run.start < r.end).map(|r| r.end).max();
            match clash {
                None => return Some(start),
                Some(end) => start = end,
            }
        }
        None
    }
}

/// Page-table updates collected into few hypercalls.
struct Batch {
    updates: [MmuUpdate; BATCH],
    count: usize,
}

impl Batch {
    const fn new() -> Self {
        Self { updates: [MmuUpdate { ptr: 0, val: 0 }; BATCH], count: 0 }
    }

    fn push(&mut self, table: Mfn, index: usize, val: u64) {
        self.updates[self.count] = MmuUpdate { ptr: table.maddr().get() + index as u64 * 8, val };
        self.count += 1;
        if self.count == BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let batch = &self.updates[..core::mem::take(&mut self.count)];
        if batch.is_empty() {
            return;
        }
        // SAFETY: `build` only unmaps frames nobody uses and adds mappings elsewhere.
        let result = unsafe { hypercall::mmu_update(batch, DomId::SELF) };
        if let Err((done, errno)) = result {
            let MmuUpdate { ptr, val } = batch[done.min(batch.len() - 1)];
            panic!("the core refused entry {ptr:#x} = {val:#x} of the first tables: {errno}");
        }
    }
}

/// Frames taken at start: new L1 tables of the initial mapping, the tables of the direct map,
/// and the frame bitmap.
struct Run {
    first: usize,
    initial: usize,
    l2: usize,
    l1: usize,
    bitmap: usize,
}

impl Run {
    fn new(nr_frames: usize, initial: usize, reserved: &Reserved) -> Self {
        let l1 = nr_frames.div_ceil(ENTRIES);
        let l2 = l1.div_ceil(ENTRIES);
        assert!(l2 <= ENTRIES, "more than 512 GiB of memory");
        let bitmap = nr_frames.div_ceil(8).div_ceil(PAGE_SIZE);
        let count = initial + 1 + l2 + l1 + bitmap;
        let first = reserved.gap(count, nr_frames).expect("room for page tables");
        Self { first, initial, l2, l1, bitmap }
    }

    fn all(&self) -> Range<usize> {
        self.first..self.bitmap().end
    }

    fn tables(&self) -> Range<usize> {
        self.first..self.l1_pfn(self.l1)
    }

    fn bitmap(&self) -> Range<usize> {
        let start = self.tables().end;
        start..start + self.bitmap
    }

    fn l3_pfn(&self) -> usize {
        self.first + self.initial
    }

    fn l2_pfn(&self, index: usize) -> usize {
        self.l3_pfn() + 1 + index
    }

    fn l1_pfn(&self, index: usize) -> usize {
        self.l2_pfn(self.l2) + index
    }
}

/// The pfn-to-mfn list of the builder; past its end frames do not exist.
#[derive(Clone, Copy)]
struct P2m {
    list: *const u64,
    entries: usize,
}

// SAFETY: the list is mapped for ever, and read and written volatile.
unsafe impl Send for P2m {}

impl P2m {
    fn get(self, pfn: usize) -> Option<Mfn> {
        if pfn >= self.entries {
            return None;
        }
        // SAFETY: the builder's list has `entries` entries.
        let mfn = unsafe { self.list.add(pfn).read_volatile() };
        (mfn >> 52 == 0).then(|| Mfn::new(mfn))
    }

    fn own(self, pfn: usize) -> Mfn {
        self.get(pfn).expect("tables are built in frames that exist")
    }
}

/// The direct map: each of its L1 tables is filled and linked when one of its frames is
/// handed out for the first time, for most of a domain's memory is never used.
pub struct DirectMap {
    run: Run,
    reserved: Reserved,
    p2m: P2m,
}

impl DirectMap {
    /// Maps these frames.
    pub fn reach(&self, pfns: Range<usize>) {
        for index in pfns.start / ENTRIES..pfns.end.div_ceil(ENTRIES) {
            if !self.is_linked(index) {
                self.link(index);
            }
        }
    }

    fn is_linked(&self, index: usize) -> bool {
        let l2 = direct_va(Pfn::new(self.run.l2_pfn(index / ENTRIES) as u64));
        read_entry(l2, index % ENTRIES) & pte::PRESENT != 0
    }

    /// Fills and links L1 table `index`.
    fn link(&self, index: usize) {
        let mut batch = Batch::new();
        self.fill(index);
        map_window(0);
        self.push_link(index, &mut batch);
        batch.flush();
    }

    fn fill(&self, index: usize) {
        let pfns = index * ENTRIES..(index + 1) * ENTRIES;
        let tables = self.run.tables();
        let is_plain = !self.reserved.touches(&pfns) && !overlap(&tables, &pfns);
        write_table(self.run.l1_pfn(index), self.p2m, |i| {
            let pfn = pfns.start + i;
            let flags = match () {
                () if is_plain => pte::DATA,
                () if tables.contains(&pfn) => pte::READ_ONLY,
                () => self.reserved.direct_flags(pfn),
            };
            self.p2m.get(pfn).map_or(0, |mfn| mfn.maddr().get() | flags)
        });
    }

    fn push_link(&self, index: usize, batch: &mut Batch) {
        let l2 = self.p2m.own(self.run.l2_pfn(index / ENTRIES));
        let l1 = self.p2m.own(self.run.l1_pfn(index));
        batch.push(l2, index % ENTRIES, l1.maddr().get() | pte::TABLE);
    }

    /// Links an empty L3, empty L2s, and the L1s that are needed for the others to be read.
    fn begin(&self, l4: Mfn) {
        let run = &self.run;
        for pfn in run.l3_pfn()..run.l1_pfn(0) {
            write_table(pfn, self.p2m, |_| 0);
        }
        let needed = run.first / ENTRIES..run.all().end.div_ceil(ENTRIES);
        needed.clone().for_each(|index| self.fill(index));
        map_window(0);
        let mut batch = Batch::new();
        let table = |pfn| self.p2m.own(pfn).maddr().get() | pte::TABLE;
        batch.push(l4, slot(DIRECT_MAP, 3), table(run.l3_pfn()));
        for index in 0..run.l2 {
            batch.push(self.p2m.own(run.l3_pfn()), index, table(run.l2_pfn(index)));
        }
        needed.for_each(|index| self.push_link(index, &mut batch));
        batch.flush();
    }

    fn free_frames(&self, nr_frames: usize) -> Bitmap<&'static mut [u64]> {
        let start = direct_va(Pfn::new(self.run.bitmap().start as u64)) as *mut u64;
        let words = nr_frames.div_ceil(64);
        // SAFETY: these frames were set aside for the bitmap and are mapped in the direct
        // map, and nowhere else.
        let words = unsafe { core::slice::from_raw_parts_mut(start, words) };
        let mut free = Bitmap::new_empty(words, nr_frames);
        let taken = self.reserved.all().cloned().chain([self.run.all()]);
        taken.flatten().for_each(|pfn| free.reserve(pfn));
        (0..nr_frames).filter(|&pfn| self.p2m.get(pfn).is_none()).for_each(|pfn| free.reserve(pfn));
        free
    }
}

/// See [`super::init`].
pub unsafe fn build(boot: &Boot, start_info: u64, stack_top: u64) -> Layout {
    let p2m = P2m { list: boot.p2m as *const u64, entries: boot.nr_frames };
    let nr_frames = boot.nr_frames;
    let reserved = Reserved::new(boot, nr_frames, start_info, stack_top);
    let l4 = p2m.own(initial_pfn(boot.pt_base));
    let l3 = table_at(read_entry(boot.pt_base, slot(VIRT_BASE, 3)));
    let initial = Initial { l2: read_entry(l3, slot(VIRT_BASE, 2)) };
    let run = Run::new(nr_frames, initial.tables().count(), &reserved);
    initial.trim(&run, &reserved, p2m);
    let direct = DirectMap { run, reserved, p2m };
    direct.begin(l4);
    flush_tlb();
    for range in direct.reserved.all() {
        // Rings and ramdisk are used where the direct map has them.
        direct.reach(range.clone());
    }
    let free = direct.free_frames(nr_frames);
    Layout { nr_frames, free, direct }
}

/// The initial mapping, by the entry for its only L2.
struct Initial {
    l2: u64,
}

impl Initial {
    /// Its L1 tables: where they are linked, and the entries there.
    fn tables(&self) -> impl Iterator<Item = (usize, u64)> {
        let l2 = table_at(self.l2);
        let links = (0..ENTRIES).map(move |index| (index, read_entry(l2, index)));
        links.filter(|(_, link)| link & pte::PRESENT != 0)
    }

    /// Puts tables in the place of its own that do not map free frames and give no write or
    /// execute permission but where it is needed: checking those anew costs the core less than a
    /// change to nearly every entry.
    fn trim(&self, run: &Run, reserved: &Reserved, p2m: P2m) {
        let mut batch = Batch::new();
        for pfn in run.all() {
            // As a table a frame must not be mapped writable, and as anything else only once.
            if let Some(table) = self.table_of(pfn) {
                batch.push(table, pfn % ENTRIES, 0);
            }
        }
        batch.flush();
        flush_tlb();
        for (table, (upper, _)) in (run.first..).zip(self.tables()) {
            write_table(table, p2m, |lower| {
                let pfn = upper * ENTRIES + lower;
                let entry = reserved.initial_flags(pfn).zip(p2m.get(pfn));
                entry.map_or(0, |(flags, mfn)| mfn.maddr().get() | flags)
            });
        }
        map_window(0);
        let l2 = Mfn::new((self.l2 & pte::FRAME) >> 12);
        for (pfn, (upper, _)) in (run.first..).zip(self.tables()) {
            batch.push(l2, upper, p2m.own(pfn).maddr().get() | pte::TABLE);
        }
        batch.flush();
        flush_tlb();
    }

    /// The L1 table that maps `pfn`.
    fn table_of(&self, pfn: usize) -> Option<Mfn> {
        let link = self.tables().find(|(upper, _)| *upper == pfn / ENTRIES);
        link.map(|(_, link)| Mfn::new((link & pte::FRAME) >> 12))
    }
}

/// Linear address, in the initial mapping, of the table that `entry` names.
fn table_at(entry: u64) -> u64 {
    VIRT_BASE + machphys_of(Mfn::new((entry & pte::FRAME) >> 12)).get() * PAGE_SIZE as u64
}

fn read_entry(table: u64, index: usize) -> u64 {
    // SAFETY: `table` is a page table, mapped read-only for ever.
    unsafe { (table as *const u64).add(index).read_volatile() }
}

/// Index of `va` in the table whose entries span 512^`level` pages.
const fn slot(va: u64, level: u32) -> usize {
    (va >> (12 + 9 * level)) as usize % ENTRIES
}

/// Writes table `pfn` through the window.
fn write_table(pfn: usize, p2m: P2m, entry: impl Fn(usize) -> u64) {
    let window = image::window();
    map_window(p2m.own(pfn).maddr().get() | pte::DATA);
    for index in 0..ENTRIES {
        // SAFETY: the window page is ours and maps the frame just named.
        unsafe { (window as *mut u64).add(index).write_volatile(entry(index)) };
    }
}

/// Points the window page at a frame, or at none with 0.
fn map_window(entry: u64) {
    let flags = mmu::UVMF_INVLPG | mmu::UVMF_LOCAL;
    // SAFETY: the linker script reserves the page for this and nothing else.
    unsafe { hypercall::update_va_mapping(image::window(), entry, flags) }
        .expect("a free frame can be mapped writable");
}

fn flush_tlb() {
    let op = MmuextOp { cmd: mmu::MMUEXT_TLB_FLUSH_LOCAL, ..Default::default() };
    // SAFETY: a flush changes no mapping.
    unsafe { hypercall::mmuext_op(&[op], DomId::SELF) }.expect("a flush cannot be refused");
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserved() -> Reserved {
        Reserved {
            text: 0x100..0x110,
            rodata: 0x110..0x118,
            tables: 0x130..0x134,
            guard: 0x118,
            others: [
                0x118..0x12f,
                0x12f..0x130,
                0..0,
                0..0,
                0x12e..0x12f,
                0x134..0x135,
                0x200..0x300,
            ],
        }
    }

    #[test]
    fn no_frame_is_writable_and_executable() {
        let r = reserved();
        for pfn in 0..0x400 {
            let executable = r.initial_flags(pfn).is_some_and(|f| f & pte::NO_EXECUTE == 0);
            assert!(!executable || r.direct_flags(pfn) & pte::WRITE == 0);
            assert!(r.direct_flags(pfn) & pte::NO_EXECUTE != 0);
        }
    }

    #[test]
    fn page_tables_are_never_writable() {
        let r = reserved();
        for pfn in r.tables.clone() {
            assert_eq!(r.initial_flags(pfn), Some(pte::READ_ONLY));
            assert_eq!(r.direct_flags(pfn), pte::READ_ONLY);
        }
    }

    #[test]
    fn the_stack_guard_and_free_frames_leave_the_initial_mapping() {
        let r = reserved();
        assert_eq!(r.initial_flags(0x118), None);
        assert_eq!(r.initial_flags(5), None);
    }

    #[test]
    fn a_gap_avoids_everything_in_use() {
        let r = reserved();
        assert_eq!(r.gap(0x100, 0x400), Some(0));
        assert_eq!(r.gap(0x101, 0x500), Some(0x300));
        assert_eq!(r.gap(0x101, 0x400), None);
        assert_eq!(r.gap(0xcb, 0x400), Some(0));
    }

    #[test]
    fn slots_are_those_of_the_address_plan() {
        assert_eq!(slot(DIRECT_MAP, 3), 273);
        assert_eq!((slot(VIRT_BASE, 3), slot(VIRT_BASE, 2)), (511, 510));
    }
}
