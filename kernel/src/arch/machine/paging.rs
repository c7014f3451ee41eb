//! The core's own part of every address space: L4 slots 256 to 271. Built once at boot, the
//! same in all roots, never changed at the top, so a root that takes the sixteen entries over
//! stays current for ever.
//!
//! | from | what | rights |
//! | --- | --- | --- |
//! | `0xffff800000000000` | machine-to-phys table | guests read |
//! | `0xffff810000000000` | windows onto the running vCPU's GDT and LDT, per CPU | core, writable, not executable |
//! | `0xffff820000000000` | the core's image | text executable, rodata read-only, data writable |
//! | `0xffff830000000000` | all RAM but the image | core, writable, not executable |
//! | `0xffff840000000000` | registers of devices, uncached | core, writable, not executable |

use super::{boot::Carver, cpu, entry::guards};
use bulkhead_abi::{Maddr, Mfn, archive::CORE_BASE, mmu::M2P_START};
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use x86_64::{
    PhysAddr, VirtAddr,
    registers::control::{Cr3, Cr3Flags},
    structures::paging::{PhysFrame, Size4KiB},
};

/// Where all RAM is mapped.
pub const PHYSMAP: u64 = 0xffff_8300_0000_0000;
/// Where the descriptor windows are; see [`super::tables`].
pub const WINDOWS: u64 = 0xffff_8100_0000_0000;
/// Where device registers are mapped.
const DEVICES: u64 = 0xffff_8400_0000_0000;
/// Bytes of device registers that can be mapped.
const DEVICE_BYTES: u64 = 16 << 20;
/// First byte of the core's image in memory (linker script).
pub const CORE_LOAD: u64 = 0x20_0000;

const LARGE: u64 = 2 << 20;
const PAGE: u64 = 4096;

pub const PRESENT: u64 = 1 << 0;
pub const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const UNCACHED: u64 = 1 << 4 | 1 << 3;
const LARGE_PAGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
pub const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The core's own root, and the one that is loaded.
static IDLE_ROOT: AtomicU64 = AtomicU64::new(0);
static LOADED_ROOT: AtomicU64 = AtomicU64::new(0);
/// Bytes of the device window that are taken.
static DEVICES_TAKEN: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_end: u8;
    static __core_end: u8;
}

/// Bytes of the core's image in memory, page tables and stacks included.
pub fn image() -> Range<u64> {
    CORE_LOAD..CORE_LOAD + ((&raw const __core_end) as u64 - CORE_BASE)
}

fn read(at: u64) -> u64 {
    // SAFETY: `at` is an aligned word of a page-table frame that this module took from the boot
    // carver; the first tables and these both map it there.
    unsafe { ((PHYSMAP + at) as *const u64).read_volatile() }
}

fn write(at: u64, value: u64) {
    // SAFETY: as in `read`; what is mapped by the entry is argued by the callers.
    unsafe { ((PHYSMAP + at) as *mut u64).write_volatile(value) }
}

/// Where `va` has its entry in a table, `level` levels below the root.
fn slot(table: u64, va: u64, level: u32) -> u64 {
    table + (va >> (39 - 9 * level) & 511) * 8
}

/// Builds tables top down.
struct Builder<'a> {
    carver: &'a mut Carver,
    root: u64,
}

impl Builder<'_> {
    /// The table of `depth` levels below the root that `va` goes through, made if it is absent.
    fn table(&mut self, va: u64, depth: u32) -> u64 {
        let mut table = self.root;
        for level in 0..depth {
            let at = slot(table, va, level);
            if read(at) & PRESENT == 0 {
                let new = self.carver.take(PAGE, PAGE).expect("memory for the core's page tables");
                // Rights are the leaves' business, but user pages need the bit on the way.
                let user = if (M2P_START..M2P_START + (1 << 39)).contains(&va) { USER } else { 0 };
                write(at, new | PRESENT | WRITABLE | user);
            }
            table = read(at) & ADDRESS;
        }
        table
    }

    fn small(&mut self, va: u64, at: u64, flags: u64) {
        write(slot(self.table(va, 3), va, 3), at | flags | PRESENT);
    }

    fn large(&mut self, va: u64, at: u64, flags: u64) {
        write(slot(self.table(va, 2), va, 2), at | flags | PRESENT | LARGE_PAGE);
    }

    /// The image with the rights of its sections; unused pages below stacks stay absent.
    fn image(&mut self, guards: &[u64]) {
        let (text, rodata) = ((&raw const __text_end) as u64, (&raw const __rodata_end) as u64);
        for va in (CORE_BASE..(&raw const __core_end) as u64).step_by(PAGE as usize) {
            let flags = match va {
                _ if va < text => 0,
                _ if va < rodata => NO_EXECUTE,
                _ => NO_EXECUTE | WRITABLE,
            };
            if !guards.contains(&va) {
                self.small(va, va - CORE_BASE + CORE_LOAD, flags | GLOBAL);
            }
        }
    }

    /// RAM, in large pages where none of the image is near.
    fn ram(&mut self, range: Range<u64>) {
        let image = image();
        let mut at = range.start & !(PAGE - 1);
        while at < range.end {
            let near = at & !(LARGE - 1) < image.end && image.start < (at & !(LARGE - 1)) + LARGE;
            if at.is_multiple_of(LARGE) && at + LARGE <= range.end && !near {
                self.large(PHYSMAP + at, at, WRITABLE | NO_EXECUTE | GLOBAL);
                at += LARGE;
                continue;
            }
            if !image.contains(&at) {
                self.small(PHYSMAP + at, at, WRITABLE | NO_EXECUTE | GLOBAL);
            }
            at += PAGE;
        }
    }
}

/// Builds the core's tables and loads them; gives entries 256..=271 of every root. `m2p` is
/// 2 MiB-aligned.
pub fn build(carver: &mut Carver, ram: &[Range<u64>], m2p: Range<u64>) -> [u64; 16] {
    let root = carver.take(PAGE, PAGE).expect("memory for the core's root");
    let mut builder = Builder { carver, root };
    // Every slot gets its table now, for roots copy the entries.
    for slot in 256..272u64 {
        builder.table(0xffff_0000_0000_0000 | slot << 39, 1);
    }
    builder.image(&guards());
    for range in ram {
        builder.ram(range.clone());
    }
    for (n, at) in m2p.step_by(LARGE as usize).enumerate() {
        builder.large(M2P_START + n as u64 * LARGE, at, USER | NO_EXECUTE | GLOBAL);
    }
    for va in (DEVICES..DEVICES + DEVICE_BYTES).step_by(LARGE as usize) {
        builder.table(va, 3);
    }
    builder.table(WINDOWS, 3);
    IDLE_ROOT.store(root, Ordering::Relaxed);
    load(root);
    core::array::from_fn(|n| read(root + (256 + n as u64) * 8))
}

/// Where the leaf entry of an address of the windows is.
fn leaf(va: u64) -> u64 {
    let root = IDLE_ROOT.load(Ordering::Relaxed);
    slot((0..3).fold(root, |table, level| read(slot(table, va, level)) & ADDRESS), va, 3)
}

/// Sets one page of the descriptor windows.
pub fn set_window(va: u64, entry: u64) {
    assert!((WINDOWS..WINDOWS + LARGE).contains(&va), "within the windows");
    write(leaf(va), entry);
    flush_page(va);
}

/// Maps registers of a device, uncached, for ever. `None` when the range is empty, beyond the processor's
/// addresses, or the window is full.
pub fn map_device(at: Maddr, bytes: usize) -> Option<*mut u8> {
    let first = at.get() & !(PAGE - 1);
    let end = at.get().checked_add(bytes as u64)?.checked_next_multiple_of(PAGE)?;
    if bytes == 0 || end > 1 << cpu::features().physical_bits {
        return None;
    }
    let taken = DEVICES_TAKEN.load(Ordering::Relaxed);
    let next = taken.checked_add(end - first)?;
    if next > DEVICE_BYTES {
        return None;
    }
    DEVICES_TAKEN.store(next, Ordering::Relaxed);
    let base = DEVICES + taken;
    let flags = PRESENT | WRITABLE | NO_EXECUTE | UNCACHED | GLOBAL;
    for offset in (0..end - first).step_by(PAGE as usize) {
        write(leaf(base + offset), (first + offset) | flags);
    }
    Some((base + (at.get() - first)) as *mut u8)
}

fn load(root: u64) {
    let frame = PhysFrame::<Size4KiB>::containing_address(PhysAddr::new(root));
    // SAFETY: the root is the core's own, or a guest's that was validated and carries the core's sixteen
    // entries; in both the core stays mapped as it is.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
    LOADED_ROOT.store(root, Ordering::Relaxed);
}

/// Loads a guest's validated root; true if it was not loaded before (and the TLB is now empty but for the core).
pub fn load_root(root: Mfn) -> bool {
    let is_new = LOADED_ROOT.load(Ordering::Relaxed) != root.maddr().get();
    if is_new {
        load(root.maddr().get());
    }
    is_new
}

/// Makes sure the processor does not stand on a root whose references go.
pub fn leave_root(root: Mfn) {
    if LOADED_ROOT.load(Ordering::Relaxed) == root.maddr().get() {
        load_idle_root();
    }
}

/// Loads the core's own root, which maps no guest.
pub fn load_idle_root() {
    load_root(Maddr::new(IDLE_ROOT.load(Ordering::Relaxed)).mfn());
}

/// Forgets one page of the loaded space.
pub fn flush_page(va: u64) {
    x86_64::instructions::tlb::flush(VirtAddr::new_truncate(va));
}

/// Forgets everything but the core's own pages.
pub fn flush_all() {
    load(LOADED_ROOT.load(Ordering::Relaxed));
}
