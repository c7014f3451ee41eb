//! Descriptor tables of each CPU: a GDT whose first pages are a window onto the running
//! guest's, the task state with the stack for entries and the I/O bitmap, the IDT.
//!
//! Guests find their flat selectors (0xe023, 0xe02b, 0xe033) and the core its own in page 14 of
//! the GDT (ABI notes 3.1).

use super::{
    entry,
    paging::{self, NO_EXECUTE, PRESENT, WINDOWS, WRITABLE},
};
use crate::{
    state::{CpuId, MAX_CPUS},
    trap::descriptor::{GDT_PAGES, LDT_PAGES},
};
use bulkhead_abi::{Mfn, archive::CORE_BASE};
use core::{arch::asm, cell::UnsafeCell, mem::size_of};
use x86_64::{
    PrivilegeLevel, VirtAddr,
    instructions::tables::{DescriptorTablePointer, lgdt, lidt, load_tss},
    registers::segmentation::{CS, SS, Segment, SegmentSelector},
    structures::{idt::Entry, tss::TaskStateSegment},
};

const PAGE: u64 = 4096;
/// Selectors of the core, in page 14.
pub const CORE_CS: u16 = 0xe008;
const CORE_SS: u16 = 0xe010;
const TASK: u16 = 0xe040;
const LDT: u16 = 0xe050;

/// Ports below this have a bit in the map.
const PORTS: usize = 65536;
/// COM2, which Dom0 drives itself.
const COM2: core::ops::Range<usize> = 0x2f8..0x300;

/// A task state segment with the I/O bitmap behind it.
#[repr(C)]
struct Task {
    state: TaskStateSegment,
    /// One bit per port, set: no access; and one byte of ones behind it.
    io_map: [u8; PORTS / 8 + 1],
}

/// One CPU's tables, page-aligned: the first page is its page 14.
#[repr(C, align(4096))]
struct CpuTables {
    reserved: [u64; 512],
    task: Task,
}

#[repr(transparent)]
struct Shared<T>(UnsafeCell<T>);
// SAFETY: each element is touched by its own CPU only, with interrupts off.
unsafe impl<T> Sync for Shared<T> {}

const NEW_TABLES: CpuTables = CpuTables {
    reserved: [0; 512],
    task: Task { state: TaskStateSegment::new(), io_map: [0xff; PORTS / 8 + 1] },
};

static TABLES: Shared<[CpuTables; MAX_CPUS]> = Shared(UnsafeCell::new([NEW_TABLES; MAX_CPUS]));

/// What stands in the windows for pages that a guest has not set: descriptors that are absent.
#[repr(C, align(4096))]
struct ZeroPage([u8; 4096]);
static ZERO: ZeroPage = ZeroPage([0; 4096]);

/// What each window page shows now.
static SHOWN: Shared<[[u64; GDT_PAGES + LDT_PAGES]; MAX_CPUS]> =
    Shared(UnsafeCell::new([[0; GDT_PAGES + LDT_PAGES]; MAX_CPUS]));

static IDT: Shared<[Entry<()>; 256]> = Shared(UnsafeCell::new([Entry::missing(); 256]));

/// Bytes of linear addresses per CPU: 16 pages of GDT, 16 of LDT.
const WINDOW: u64 = 32 * PAGE;

fn gdt_window(cpu: CpuId) -> u64 {
    WINDOWS + cpu.0 as u64 * WINDOW
}

fn ldt_window(cpu: CpuId) -> u64 {
    gdt_window(cpu) + 16 * PAGE
}

/// Whether an address is in the LDT window, and in which of its pages.
pub fn ldt_window_page(address: u64) -> Option<usize> {
    let offset = address.checked_sub(ldt_window(CpuId(0)))?;
    (offset < LDT_PAGES as u64 * PAGE).then_some((offset / PAGE) as usize)
}

/// Machine address of something in the core's image.
fn maddr<T>(what: *const T) -> u64 {
    what as u64 - CORE_BASE + paging::CORE_LOAD
}

fn tables(cpu: CpuId) -> *mut CpuTables {
    let all: *mut CpuTables = TABLES.0.get().cast();
    assert!(cpu.0 < MAX_CPUS, "a CPU of this machine");
    all.wrapping_add(cpu.0)
}

/// The two words of a system descriptor.
fn system(kind: u64, base: u64, limit: u64) -> [u64; 2] {
    let low = limit & 0xffff
        | (base & 0xff_ffff) << 16
        | kind << 40
        | 1 << 47
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

/// Sets up and loads this CPU's tables.
pub fn init(cpu: CpuId) {
    let tables = tables(cpu);
    // SAFETY: called once per CPU before any guest runs, so nobody else refers to its element.
    let CpuTables { reserved, task } = unsafe { &mut *tables };
    let task_at = &raw const *task as u64;
    // Accessed bits are set, so the processor never writes them.
    reserved[1] = 0x00af_9b00_0000_ffff; // 0xe008 core code
    reserved[2] = 0x00cf_9300_0000_ffff; // 0xe010 core data
    reserved[4] = 0x00cf_fb00_0000_ffff; // 0xe023 32-bit code, ring 3
    reserved[5] = 0x00cf_f300_0000_ffff; // 0xe02b data, ring 3
    reserved[6] = 0x00af_fb00_0000_ffff; // 0xe033 64-bit code, ring 3
    reserved[8..10].copy_from_slice(&system(9, task_at, size_of::<Task>() as u64 - 1));
    let [a, b, c, d] = entry::interrupt_stacks().map(VirtAddr::new);
    let none = VirtAddr::zero();
    task.state.interrupt_stack_table = [a, b, c, d, none, none, none];
    for port in COM2 {
        task.io_map[port / 8] &= !(1 << (port % 8));
    }
    let page14 = gdt_window(cpu) + GDT_PAGES as u64 * PAGE;
    paging::set_window(page14, maddr(tables) | PRESENT | WRITABLE | NO_EXECUTE);
    fill_idt();
    set_serial_access(cpu, false);
    load_tables(cpu, &[None; GDT_PAGES], &[None; LDT_PAGES], 0);
    let limit = (15 * PAGE - 1) as u16;
    let gdt = DescriptorTablePointer { limit, base: VirtAddr::new(gdt_window(cpu)) };
    let idt = DescriptorTablePointer { limit: 256 * 16 - 1, base: VirtAddr::from_ptr(IDT.0.get()) };
    // SAFETY: the window shows page 14 with the core's descriptors, the IDT is filled, both stay; the
    // new code and stack selectors describe the same flat segments as those of the boot code.
    unsafe {
        lgdt(&gdt);
        CS::set_reg(SegmentSelector(CORE_CS));
        SS::set_reg(SegmentSelector(CORE_SS));
        lidt(&idt);
        load_tss(SegmentSelector(TASK));
    }
    entry::load_selectors(0, 0, 0, 0);
}

fn fill_idt() {
    let idt: *mut Entry<()> = IDT.0.get().cast();
    for (number, handler) in entry::vectors().into_iter().enumerate() {
        let mut gate = Entry::missing();
        // SAFETY: 1. The stubs are handlers, and the selector is that of the core's code. 2. The
        // stacks, by number in the task state less one, are for this only: #DF, NMI, #MC, #DB.
        // 3. `number` < 256; filled by the first CPU before any guest runs.
        unsafe {
            let options = gate.set_handler_addr(VirtAddr::new(handler));
            options.set_code_selector(SegmentSelector(CORE_CS));
            if let Some(stack) = [8, 2, 18, 1].iter().position(|special| *special == number) {
                options.set_stack_index(stack as u16);
            }
            // INT3 and INTO may be called by guests; every other INT is a #GP that says which.
            if matches!(number, 3 | 4) {
                options.set_privilege_level(PrivilegeLevel::Ring3);
            }
            idt.add(number).write(gate);
        }
    }
}

/// Puts a frame, or nothing, into a page of the windows, if it is not there already.
fn show(cpu: CpuId, page: usize, frame: Option<Mfn>) {
    let zero = maddr(&raw const ZERO);
    let at = frame.map_or(zero, |mfn| mfn.maddr().get());
    let shown: *mut [u64; GDT_PAGES + LDT_PAGES] = SHOWN.0.get().cast();
    // SAFETY: the element of this CPU, which nobody else touches.
    let slot = unsafe { &mut (&mut *shown.wrapping_add(cpu.0))[page] };
    if *slot == at {
        return;
    }
    *slot = at;
    // An LDT page that was not looked at yet faults, and is looked at then. The page of zeroes is
    // never written: the processor sets accessed bits only in descriptors that are present.
    let ldt_page = page.checked_sub(GDT_PAGES);
    let entry = match (frame, ldt_page) {
        (Some(_), _) => at | PRESENT | WRITABLE | NO_EXECUTE,
        (None, None) => at | PRESENT | NO_EXECUTE,
        (None, Some(_)) => 0,
    };
    let va = ldt_page
        .map_or(gdt_window(cpu) + page as u64 * PAGE, |n| ldt_window(cpu) + n as u64 * PAGE);
    paging::set_window(va, entry);
}

/// Shows the processor a vCPU's descriptor tables. The frames are of descriptors, every one of them
/// checked, and held by the vCPU.
pub fn load_tables(
    cpu: CpuId,
    gdt: &[Option<Mfn>; GDT_PAGES],
    ldt: &[Option<Mfn>; LDT_PAGES],
    ldt_entries: u32,
) {
    for (page, frame) in gdt.iter().chain(ldt).enumerate() {
        show(cpu, page, *frame);
    }
    let bytes = u64::from(ldt_entries) * 8;
    let selector = if bytes == 0 { 0 } else { LDT };
    let descriptor = system(2, ldt_window(cpu), bytes.saturating_sub(1));
    // SAFETY: this CPU's own page 14; LLDT of null or of the descriptor just written.
    unsafe {
        (&raw mut (*tables(cpu)).reserved[10]).cast::<[u64; 2]>().write(descriptor);
        asm!("lldt {:x}", in(reg) selector, options(nostack, preserves_flags));
    }
}

/// Where entries from ring 3 push their frame.
pub fn set_entry_stack(cpu: CpuId, top: u64) {
    // SAFETY: this CPU's own task state.
    let stacks = unsafe { &raw mut (*tables(cpu)).task.state.privilege_stack_table };
    // SAFETY: as above.
    unsafe { stacks.cast::<u64>().write_unaligned(top) };
}

/// Opens COM2's ports to the running guest, or closes them.
pub fn set_serial_access(cpu: CpuId, allowed: bool) {
    // Past the limit means no port at all.
    let base = if allowed { size_of::<TaskStateSegment>() } else { size_of::<Task>() } as u16;
    // SAFETY: this CPU's own task state; the map behind it opens COM2 only.
    unsafe { (&raw mut (*tables(cpu)).task.state.iomap_base).write_unaligned(base) };
}
