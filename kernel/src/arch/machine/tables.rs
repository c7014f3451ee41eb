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
use core::{cell::UnsafeCell, mem::size_of};

const PAGE: u64 = 4096;
/// Selectors of the core, in page 14.
pub const CORE_CS: u16 = 0xe008;
pub const CORE_SS: u16 = 0xe010;
const TASK: u16 = 0xe040;
const LDT: u16 = 0xe050;

/// Interrupt stacks, by number in the task state.
pub const IST_DOUBLE_FAULT: u8 = 1;
pub const IST_NMI: u8 = 2;
pub const IST_MACHINE_CHECK: u8 = 3;
pub const IST_DEBUG: u8 = 4;

/// Ports below this have a bit in the map.
const PORTS: usize = 65536;
/// COM2, which Dom0 drives itself.
const COM2: core::ops::Range<usize> = 0x2f8..0x300;

/// A task state segment (Intel SDM 3A, figure 8-11) with the I/O bitmap behind it.
#[repr(C, packed(4))]
struct TaskState {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    ist: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map_base: u16,
    /// One bit per port, set: no access; and one byte of ones behind it.
    io_map: [u8; PORTS / 8 + 1],
}

const IO_MAP_BASE: u16 = core::mem::offset_of!(TaskState, io_map) as u16;
/// Past the limit: no port at all.
const NO_IO_MAP: u16 = size_of::<TaskState>() as u16;

/// One CPU's tables, page-aligned: the first page is its page 14.
#[repr(C, align(4096))]
struct CpuTables {
    reserved: [u64; 512],
    task: TaskState,
}

#[repr(transparent)]
struct Shared<T>(UnsafeCell<T>);
// SAFETY: each element is touched by its own CPU only, with interrupts off.
unsafe impl<T> Sync for Shared<T> {}

const NEW_TABLES: CpuTables = CpuTables {
    reserved: [0; 512],
    task: TaskState {
        reserved0: 0,
        rsp: [0; 3],
        reserved1: 0,
        ist: [0; 7],
        reserved2: 0,
        reserved3: 0,
        io_map_base: NO_IO_MAP,
        io_map: [0xff; PORTS / 8 + 1],
    },
};

static TABLES: Shared<[CpuTables; MAX_CPUS]> = Shared(UnsafeCell::new([NEW_TABLES; MAX_CPUS]));

/// What stands in the windows for pages that a guest has not set: descriptors that are absent.
#[repr(C, align(4096))]
struct ZeroPage([u8; 4096]);
static ZERO: ZeroPage = ZeroPage([0; 4096]);

/// What each window page shows now.
static SHOWN: Shared<[[u64; GDT_PAGES + LDT_PAGES]; MAX_CPUS]> =
    Shared(UnsafeCell::new([[0; GDT_PAGES + LDT_PAGES]; MAX_CPUS]));

/// A gate of the IDT.
#[derive(Clone, Copy)]
#[repr(C)]
struct Gate {
    low: u64,
    high: u64,
}

static IDT: Shared<[Gate; 256]> = Shared(UnsafeCell::new([Gate { low: 0, high: 0 }; 256]));

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
pub fn init(cpu: CpuId, interrupt_stacks: [u64; 4]) {
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
    reserved[8..10].copy_from_slice(&system(9, task_at, size_of::<TaskState>() as u64 - 1));
    reserved[10..12].copy_from_slice(&system(2, ldt_window(cpu), 0));
    let mut ist = [0; 7];
    ist[..4].copy_from_slice(&interrupt_stacks);
    task.ist = ist;
    for port in COM2 {
        task.io_map[port / 8] &= !(1 << (port % 8));
    }

    let flags = PRESENT | WRITABLE | NO_EXECUTE;
    for page in 0..(GDT_PAGES + LDT_PAGES) as u64 {
        show(cpu, page as usize, maddr(&raw const ZERO));
    }
    paging::set_window(gdt_window(cpu) + GDT_PAGES as u64 * PAGE, maddr(tables) | flags);
    fill_idt();
    // SAFETY: the window shows page 14 with the core's descriptors, the IDT is filled, both stay.
    unsafe { load(cpu) };
}

fn fill_idt() {
    for (number, handler) in (0u64..).zip(entry::vectors()) {
        let ist: u64 = match number {
            1 => IST_DEBUG.into(),
            2 => IST_NMI.into(),
            8 => IST_DOUBLE_FAULT.into(),
            18 => IST_MACHINE_CHECK.into(),
            _ => 0,
        };
        // INT3 and INTO may be called by guests; every other INT is a #GP that says which.
        let level: u64 = if matches!(number, 3 | 4) { 3 } else { 0 };
        let gate = Gate {
            low: handler & 0xffff
                | u64::from(CORE_CS) << 16
                | ist << 32
                | (0x8e | level << 5) << 40
                | (handler >> 16 & 0xffff) << 48,
            high: handler >> 32,
        };
        let idt: *mut Gate = IDT.0.get().cast();
        // SAFETY: `number` < 256; filled by the first CPU before any guest runs.
        unsafe { idt.add(number as usize).write(gate) };
    }
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// # Safety
/// The tables of `cpu` and the IDT are set up and stay.
unsafe fn load(cpu: CpuId) {
    let gdt = Pointer { limit: (15 * PAGE - 1) as u16, base: gdt_window(cpu) };
    let idt = Pointer { limit: 256 * 16 - 1, base: IDT.0.get() as u64 };
    // SAFETY: the new code and stack selectors describe the same flat segments as those of the boot
    // code; the far return goes to the next instruction.
    unsafe {
        core::arch::asm!(
            "lgdt [{gdt}]",
            "push {cs}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ss, {ss:e}",
            "xor {scratch:e}, {scratch:e}",
            "mov ds, {scratch:e}",
            "mov es, {scratch:e}",
            "mov fs, {scratch:e}",
            "mov gs, {scratch:e}",
            "lidt [{idt}]",
            "ltr {task:x}",
            "lldt {ldt:x}",
            gdt = in(reg) &raw const gdt,
            idt = in(reg) &raw const idt,
            cs = in(reg) u64::from(CORE_CS),
            ss = in(reg) u32::from(CORE_SS),
            task = in(reg) TASK,
            ldt = in(reg) LDT,
            scratch = out(reg) _,
        );
    }
}

/// Puts a frame into a page of the windows, if it is not there already.
fn show(cpu: CpuId, page: usize, at: u64) {
    let shown: *mut [u64; GDT_PAGES + LDT_PAGES] = SHOWN.0.get().cast();
    // SAFETY: the element of this CPU, which nobody else touches.
    let slot = unsafe { &mut (&mut *shown.wrapping_add(cpu.0))[page] };
    if *slot == at {
        return;
    }
    *slot = at;
    let va = if page < GDT_PAGES {
        gdt_window(cpu) + page as u64 * PAGE
    } else {
        ldt_window(cpu) + (page - GDT_PAGES) as u64 * PAGE
    };
    let is_absent_ldt = page >= GDT_PAGES && at == maddr(&raw const ZERO);
    let flags = PRESENT | WRITABLE | NO_EXECUTE;
    // An LDT page that was not looked at yet faults, and is looked at then. The page of zeroes is
    // never written: the processor sets accessed bits only in descriptors that are present.
    let entry = match () {
        () if is_absent_ldt => 0,
        () if at == maddr(&raw const ZERO) => at | PRESENT | NO_EXECUTE,
        () => at | flags,
    };
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
    let zero = maddr(&raw const ZERO);
    for (page, frame) in gdt.iter().chain(ldt).enumerate() {
        show(cpu, page, frame.map_or(zero, |mfn| mfn.maddr().get()));
    }
    let tables = tables(cpu);
    let (selector, limit) =
        if ldt_entries == 0 { (0, 0) } else { (LDT, u64::from(ldt_entries) * 8 - 1) };
    let descriptor = system(2, ldt_window(cpu), limit);
    // SAFETY: this CPU's own page 14; LLDT of null or of the descriptor just written.
    unsafe {
        (&raw mut (*tables).reserved[10]).write(descriptor[0]);
        (&raw mut (*tables).reserved[11]).write(descriptor[1]);
        core::arch::asm!("lldt {:x}", in(reg) selector, options(nostack, preserves_flags));
    }
}

/// Where entries from ring 3 push their frame.
pub fn set_entry_stack(cpu: CpuId, top: u64) {
    // SAFETY: this CPU's own task state.
    unsafe { (&raw mut (*tables(cpu)).task.rsp).cast::<u64>().write_unaligned(top) };
}

/// Opens or closes COM2 to the running guest.
pub fn set_io_map(cpu: CpuId, open: bool) {
    let base = if open { IO_MAP_BASE } else { NO_IO_MAP };
    // SAFETY: this CPU's own task state; the map behind it opens COM2 only.
    unsafe { (&raw mut (*tables(cpu)).task.io_map_base).write_unaligned(base) };
}
