//! This domain's memory: its frames, the direct map of all of them, the area where
//! foreign things are mapped.
//!
//! Invariants:
//! - every own frame in use that is not a page table is mapped once writable in the direct
//!   map at [`DIRECT_MAP`] + pfn * 4096; page tables are mapped there read-only; free frames
//!   are mapped there too once one of their 512 neighbours was handed out;
//! - the initial mapping keeps only what the builder loaded (program, start info,
//!   rings, pfn-to-mfn list);
//! - a frame is handed out to one owner at a time; [`Pages`] gives it back.

mod area;
mod direct;
mod dma;
mod mapping;

pub use dma::{Dma, alloc_dma};
pub(crate) use mapping::map_shared_by_core;
pub use mapping::{MapError, Mapping, map_foreign, map_mmio};

pub(crate) use area::Area;

use crate::bitmap::Bitmap;
use crate::boot::Boot;
use crate::shared::Shared;
use bulkhead_abi::mmu::M2P_START;
use bulkhead_abi::{Maddr, Mfn, PAGE_SIZE, Pfn};
use spin::{Mutex, Once};

/// Linear address of the direct map: L4 slot 273.
pub const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;

/// Page-table entry flags.
pub(crate) mod pte {
    pub const PRESENT: u64 = 1;
    pub const WRITE: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const UNCACHED: u64 = 1 << 4;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const NO_EXECUTE: u64 = 1 << 63;
    pub const FRAME: u64 = 0x000f_ffff_ffff_f000;
    /// A table of the next level.
    pub const TABLE: u64 = PRESENT | WRITE | USER | ACCESSED | DIRTY;
    /// Data nobody writes.
    pub const READ_ONLY: u64 = PRESENT | USER | ACCESSED | NO_EXECUTE;
    /// Data.
    pub const DATA: u64 = READ_ONLY | WRITE | DIRTY;
}

/// What is fixed once the direct map stands.
struct Facts {
    /// Linear address of the pfn-to-mfn list.
    p2m: u64,
    /// Entries in it.
    nr_frames: usize,
    /// First frame and bytes of the ramdisk.
    ramdisk: Option<(Pfn, usize)>,
}

static FACTS: Once<Facts> = Once::new();
static FRAMES: Mutex<Option<Frames>> = Mutex::new(None);

/// Frames that are free, and where they are when they are not.
struct Frames {
    free: Bitmap<&'static mut [u64]>,
    direct: direct::DirectMap,
}

impl Frames {
    /// Takes `count` frames in a row from a multiple of `align` on, and maps them.
    fn take(&mut self, count: usize, align: usize) -> Option<usize> {
        let start = self.free.take(count, align)?;
        self.direct.reach(start..start + count);
        Some(start)
    }
}

fn facts() -> &'static Facts {
    FACTS.get().expect("set up before main")
}

/// Builds the direct map and the allocator.
///
/// # Safety
/// Once, at start, on the tables of the builder; `start_info` and `stack_top` are the
/// builder's.
pub(crate) unsafe fn init(boot: &'static Boot, start_info: u64, stack_top: u64) {
    // SAFETY: the caller's contract is the same.
    let layout = unsafe { direct::build(boot, start_info, stack_top) };
    FACTS.call_once(|| Facts { p2m: boot.p2m, nr_frames: layout.nr_frames, ramdisk: boot.ramdisk });
    *FRAMES.lock() = Some(Frames { free: layout.free, direct: layout.direct });
}

/// The machine frame behind `pfn`, `None` for a hole.
pub fn mfn_of(pfn: Pfn) -> Option<Mfn> {
    let facts = facts();
    let index = usize::try_from(pfn.get()).ok()?;
    if index >= facts.nr_frames {
        return None;
    }
    let entry = (facts.p2m as *const u64).wrapping_add(index);
    // SAFETY: the list has `nr_frames` entries, and stays mapped in the initial mapping.
    let mfn = unsafe { entry.read_volatile() };
    (mfn >> 52 == 0).then(|| Mfn::new(mfn))
}

/// Linear address of the list that [`mfn_of`] reads.
#[cfg(feature = "faults")]
pub(crate) fn frame_list() -> u64 {
    facts().p2m
}

/// Notes that another machine frame is behind `pfn` now.
///
/// # Safety
/// The frame must be this domain's, be mapped at the place of `pfn` in the direct map,
/// and nobody may use the page meanwhile.
pub unsafe fn replace_frame(pfn: Pfn, mfn: Mfn) {
    let facts = facts();
    let index = pfn.get() as usize;
    assert!(index < facts.nr_frames, "{pfn} is not in the list");
    // SAFETY: `index` is in the list, which stays mapped; the caller vouches for `mfn`.
    unsafe { (facts.p2m as *mut u64).add(index).write_volatile(mfn.get()) };
}

/// The pfn under which this domain owns `mfn`, `None` for a foreign frame.
pub fn pfn_of(mfn: Mfn) -> Option<Pfn> {
    let pfn = machphys_of(mfn);
    (mfn_of(pfn) == Some(mfn)).then_some(pfn)
}

/// What the machine-to-phys table says of a frame that the core or the builder named to us. Its
/// owner may have it say anything.
pub fn machphys_of(mfn: Mfn) -> Pfn {
    let entry = (M2P_START as *const u64).wrapping_add(mfn.get() as usize);
    // SAFETY: the core maps the table readable; entries of our own frames exist, and
    // callers ask only for frames that the core or the builder named to us.
    Pfn::new(unsafe { entry.read_volatile() })
}

/// The frame of the L4 that this domain runs on.
pub fn root() -> Option<Mfn> {
    let pfn = (crate::entry::boot().pt_base - crate::entry::VIRT_BASE) / PAGE_SIZE as u64;
    mfn_of(Pfn::new(pfn))
}

/// Linear address of `pfn` in the direct map.
pub(crate) const fn direct_va(pfn: Pfn) -> u64 {
    DIRECT_MAP + pfn.get() * PAGE_SIZE as u64
}

/// An own page that the builder shared with a service (console, store), by frame.
/// `None` when the frame is not this domain's.
pub fn own_page(mfn: Mfn) -> Option<Shared<'static>> {
    let pfn = pfn_of(mfn)?;
    // SAFETY: such frames are reserved in the allocator, so they stay mapped and no
    // Rust object lives there.
    Some(unsafe { Shared::new(direct_va(pfn) as *mut u8, PAGE_SIZE) })
}

/// The ramdisk, empty if there is none. Nobody else has its frames.
pub fn map_ramdisk() -> &'static [u8] {
    let Some((pfn, bytes)) = facts().ramdisk else {
        return &[];
    };
    // SAFETY: the frames are this domain's, contiguous in the direct map, reserved in
    // the allocator and never written.
    unsafe { core::slice::from_raw_parts(direct_va(pfn) as *const u8, bytes) }
}

/// Frames that are free.
pub fn free_frames() -> usize {
    FRAMES.lock().as_ref().map_or(0, |frames| frames.free.free())
}

/// Takes `count` frames for good; address in the direct map.
pub(crate) fn take_frames(count: usize) -> Option<*mut u8> {
    let start = FRAMES.lock().as_mut()?.take(count, 1)?;
    Some(direct_va(Pfn::new(start as u64)) as *mut u8)
}

/// A run of this domain's frames, zeroed when taken, given back when dropped.
///
/// The frames are contiguous by pfn and linear address, not in machine memory.
#[derive(Debug)]
pub struct Pages {
    pfn: Pfn,
    count: usize,
}

/// Takes `count` zeroed pages; `None` when there is no such run.
pub fn alloc_pages(count: usize) -> Option<Pages> {
    alloc_aligned(count, 1)
}

fn alloc_aligned(count: usize, align: usize) -> Option<Pages> {
    let start = FRAMES.lock().as_mut()?.take(count, align)?;
    let pages = Pages { pfn: Pfn::new(start as u64), count };
    pages.shared().fill(0, pages.bytes(), 0);
    Some(pages)
}

impl Pages {
    /// Number of pages.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Length in bytes.
    pub const fn bytes(&self) -> usize {
        self.count * PAGE_SIZE
    }

    /// Linear address of the first byte.
    pub const fn va(&self) -> u64 {
        direct_va(self.pfn)
    }

    /// The pfn of page `index`.
    pub const fn pfn(&self, index: usize) -> Pfn {
        Pfn::new(self.pfn.get() + index as u64)
    }

    /// The machine frame of page `index`.
    ///
    /// # Panics
    /// When `index` is out of range.
    pub fn mfn(&self, index: usize) -> Mfn {
        assert!(index < self.count, "page {index} of {}", self.count);
        mfn_of(self.pfn(index)).expect("the allocator holds no holes")
    }

    /// The machine address of page `index`.
    pub fn maddr(&self, index: usize) -> Maddr {
        self.mfn(index).maddr()
    }

    /// All bytes, as memory that others may change.
    pub fn shared(&self) -> Shared<'_> {
        // SAFETY: the pages stay mapped until `self` is dropped and no references
        // into them are ever made.
        unsafe { Shared::new(self.va() as *mut u8, self.bytes()) }
    }

    /// Keeps the pages for good.
    pub fn leak(self) -> Shared<'static> {
        let (va, bytes) = (self.va(), self.bytes());
        core::mem::forget(self);
        // SAFETY: never given back, so mapped for ever.
        unsafe { Shared::new(va as *mut u8, bytes) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Some(frames) = FRAMES.lock().as_mut() {
            frames.free.release(self.pfn.get() as usize, self.count);
        }
    }
}
