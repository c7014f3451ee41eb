//! The handler on the machine. Everything is inlined into one function in the text of the
//! traps; memory is reached by bare addresses that were noted when it was armed.

use super::patch::{self, Machine, WORDS};
use super::stepper;
use crate::mem::{self, pte};
use crate::shared::Shared;
use crate::trap::{self, Frame};
use crate::{entry::VIRT_BASE, hypercall, time};
use bulkhead_abi::hypercall::UPDATE_VA_MAPPING;
use bulkhead_abi::ledger::{HEARTBEAT_OFFSET, PATCHES, patch as at};
use bulkhead_abi::{PAGE_SIZE, mmu};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// A page through which text is written: for that time it maps the text's frame.
#[repr(C, align(4096))]
struct Window(UnsafeCell<[u8; PAGE_SIZE]>);

// SAFETY: only the handler touches it, by volatile writes, and there is one vCPU; nobody
// ever makes a reference into it.
unsafe impl Sync for Window {}

static WINDOW: Window = Window(UnsafeCell::new([0; PAGE_SIZE]));
/// The window's own entry.
static HOME: AtomicU64 = AtomicU64::new(0);
/// Linear address of the pages with the table, their bytes, and of the list of frames.
static PAGES: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static FRAMES: AtomicU64 = AtomicU64::new(0);
/// The handler is at work: a breakpoint in it is nobody's.
static IS_BUSY: AtomicBool = AtomicBool::new(false);

/// Installs the handler, for the table that `ledger` names (`bulkhead_abi::ledger`).
pub fn arm(ledger: Shared<'static>) {
    prepare();
    PAGES.store(ledger.va() as u64, Relaxed);
    BYTES.store(ledger.bytes() as u64, Relaxed);
    // SAFETY: it takes no lock and allocates nothing; what it makes of the frame is what was
    // ordered, and to be unsound is the purpose of the order.
    unsafe { trap::set_hook(Some(on_trap)) };
}

/// Linear addresses of the heap, as far as it has grown.
pub fn heap() -> core::ops::Range<u64> {
    crate::heap::range()
}

/// Linear addresses of the stack above whoever asks.
#[inline(never)]
pub fn stack() -> core::ops::Range<u64> {
    unsafe extern "C" {
        static __stack_top: u8;
    }
    let here = 0_u64;
    (&raw const here) as u64..(&raw const __stack_top) as u64
}

fn prepare() {
    let va = WINDOW.0.get() as u64;
    let pfn = bulkhead_abi::Pfn::new((va - VIRT_BASE) / PAGE_SIZE as u64);
    let mfn = mem::mfn_of(pfn).expect("the program is in frames that exist");
    HOME.store(mfn.maddr().get() | pte::DATA, Relaxed);
    FRAMES.store(mem::frame_list(), Relaxed);
}

/// Writes bytes of the text of this domain; false if some are not there.
///
/// # Safety
/// What runs there afterwards must be sound to run.
pub unsafe fn write_text(va: u64, bytes: &[u8]) -> bool {
    prepare();
    (va..).zip(bytes).all(|(va, &byte)| OnMachine.write(va, byte))
}

#[unsafe(link_section = ".text.trap.faults")]
fn on_trap(frame: &mut Frame) -> bool {
    if frame.vector == 1 {
        return stepper::on_step(frame);
    }
    if IS_BUSY.load(Relaxed) {
        return false;
    }
    IS_BUSY.store(true, Relaxed);
    let is_dealt_with = patch::on_trap(frame, &OnMachine);
    IS_BUSY.store(false, Relaxed);
    is_dealt_with
}

/// One more beat of the heart.
pub(super) fn beat() {
    let heart = (PAGES.load(Relaxed) + HEARTBEAT_OFFSET as u64) as *mut u64;
    // SAFETY: the pages are mapped for ever, from before a walk can begin; nobody makes
    // references into them.
    unsafe { heart.write_volatile(heart.read_volatile().wrapping_add(1)) };
}

struct OnMachine;

impl OnMachine {
    /// Address of entry 0 and how many there are, as far as they are in the pages.
    #[inline(always)]
    fn table(&self) -> (u64, u64) {
        let (pages, bytes) = (PAGES.load(Relaxed), BYTES.load(Relaxed));
        // SAFETY: the pages are mapped for ever; the header is in the first.
        let named = unsafe { ((pages + PATCHES as u64) as *const u64).read_volatile() };
        let (offset, count) = (named & 0xffff_ffff, named >> 32);
        let is_inside = offset % 8 == 0 && offset + count * at::BYTES as u64 <= bytes;
        if offset != 0 && is_inside { (pages + offset, count) } else { (pages, 0) }
    }
}

impl Machine for OnMachine {
    #[inline(always)]
    fn count(&self) -> usize {
        self.table().1 as usize
    }

    #[inline(always)]
    fn word(&self, entry: usize, word: usize) -> u64 {
        let (start, count) = self.table();
        if entry as u64 >= count || word >= WORDS {
            return 0;
        }
        let va = start + (entry * at::BYTES + word * 8) as u64;
        // SAFETY: `table` saw that the entry is in the pages, which are mapped for ever.
        unsafe { (va as *const u64).read_volatile() }
    }

    #[inline(always)]
    fn note(&self, entry: usize) {
        let (start, count) = self.table();
        if (entry as u64) < count {
            let va = start + (entry * at::BYTES + at::ACTIVATED_NS) as u64;
            let now = time::raw_now();
            // SAFETY: as for `word`; nobody makes references into these pages.
            unsafe { (va as *mut u64).write_volatile(if now == 0 { 1 } else { now }) };
        }
    }

    #[inline(always)]
    fn write(&self, va: u64, byte: u8) -> bool {
        unsafe extern "C" {
            static __image_start: u8;
            static __rodata_start: u8;
        }
        let text = (&raw const __image_start) as u64..(&raw const __rodata_start) as u64;
        if va < text.start || va >= text.end {
            return false;
        }
        let pfn = (va - VIRT_BASE) / PAGE_SIZE as u64;
        let frames = FRAMES.load(Relaxed) as *const u64;
        // SAFETY: the list has an entry for each frame of the program.
        let mfn = unsafe { frames.add(pfn as usize).read_volatile() };
        let window = WINDOW.0.get() as u64;
        if !map(window, mfn << 12 | pte::DATA) {
            return false;
        }
        // SAFETY: the window maps the frame of the text now, and is ours alone.
        unsafe { ((window + va % PAGE_SIZE as u64) as *mut u8).write_volatile(byte) };
        map(window, HOME.load(Relaxed))
    }
}

#[inline(always)]
fn map(va: u64, entry: u64) -> bool {
    let flags = mmu::UVMF_INVLPG | mmu::UVMF_LOCAL;
    // SAFETY: the window is for this and nothing else; its own frame comes back after.
    unsafe { hypercall::raw(UPDATE_VA_MAPPING, [va, entry, flags, 0, 0]) == 0 }
}
