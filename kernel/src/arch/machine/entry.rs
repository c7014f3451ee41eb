//! Entry code. From ring 3 the processor (or the SYSCALL stub) pushes its frame straight into the
//! running vCPU's `SaveArea`; the stubs push the rest below it, take the CPU's stack from
//! the word behind the registers and call `core_from_guest`. The way out copies the IRET frame to the
//! top of that stack and never writes the save area, so a return that the processor refuses
//! can be given to the guest as it was.
//!
//! From ring 0 only three things come: an interrupt that ends the idle wait, a fault at an
//! instruction listed in `.fixups`, and a fault that is the core's end.

use super::tables;
use crate::{domain::vcpu::SaveArea, state::CpuId};
use bulkhead_abi::{
    trap::{FLAT_RING3_CS64, FLAT_RING3_SS64},
    vcpu::UserRegs,
};
use core::{
    arch::global_asm,
    cell::UnsafeCell,
    mem::offset_of,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

/// Bytes of each CPU's stack, and of each interrupt stack.
const STACK: usize = 256 << 10;
const INTERRUPT_STACK: usize = 16 << 10;

/// A stack above a page that is never mapped once the core has its own tables.
#[repr(C, align(4096))]
struct Stack<const N: usize> {
    guard: [u8; 4096],
    bytes: UnsafeCell<[u8; N]>,
}

// SAFETY: written by the processor as a stack, never through Rust.
unsafe impl<const N: usize> Sync for Stack<N> {}

#[unsafe(export_name = "boot_stack")]
static BOOT_STACK: Stack<STACK> = Stack { guard: [0; 4096], bytes: UnsafeCell::new([0; STACK]) };
static INTERRUPT_STACKS: [Stack<INTERRUPT_STACK>; 4] =
    [const { Stack { guard: [0; 4096], bytes: UnsafeCell::new([0; INTERRUPT_STACK]) } }; 4];

/// What the SYSCALL stub needs: it has no register to spare.
#[repr(C, align(64))]
struct SyscallArea {
    /// The guest's RSP, for three instructions.
    rsp: AtomicU64,
    /// End of the running vCPU's frame.
    entry_stack: AtomicU64,
}

#[unsafe(export_name = "syscall_area")]
static SYSCALL_AREA: SyscallArea =
    SyscallArea { rsp: AtomicU64::new(0), entry_stack: AtomicU64::new(0) };

/// The interrupt that came in ring 0, plus one.
static INTERRUPT: AtomicU32 = AtomicU32::new(0);
/// The fault that a fixup answered: vector, and CR2.
static FIXED_VECTOR: AtomicU32 = AtomicU32::new(0);
static FIXED_ADDRESS: AtomicU64 = AtomicU64::new(0);

/// One place where a fault in ring 0 is expected.
#[repr(C)]
struct Fixup {
    fault: u64,
    landing: u64,
}

unsafe extern "C" {
    static vector_table: [u64; 256];
    fn syscall_long();
    fn syscall_compatible();
    fn resume_guest(regs: *mut UserRegs, stack_top: u64) -> !;
    fn load_selectors_or_null(ds: u32, es: u32, fs: u32, gs: u32) -> u32;
    fn load_gs_or_null(gs: u32);
    static __fixups_start: Fixup;
    static __fixups_end: Fixup;
}

const FRAME_END: usize = offset_of!(UserRegs, ss) + 8;

global_asm!(
    include_str!("entry.s"),
    stack_top = const STACK_TOP,
    flat_ss = const FLAT_RING3_SS64,
    flat_cs = const FLAT_RING3_CS64,
);

/// Distance from a vCPU's registers to the word that has its CPU's stack.
const STACK_TOP: usize = offset_of!(SaveArea, stack_top) - offset_of!(SaveArea, regs);
const _: () = assert!((offset_of!(SaveArea, regs) + FRAME_END).is_multiple_of(16));

/// Addresses of the 256 handlers, for the IDT.
pub fn vectors() -> [u64; 256] {
    // SAFETY: a constant table of the entry code.
    unsafe { vector_table }
}

/// Addresses of the SYSCALL stubs: from 64-bit code, and from 32-bit code.
pub fn syscalls() -> (u64, u64) {
    (syscall_long as *const () as u64, syscall_compatible as *const () as u64)
}

/// Top of a CPU's stack.
pub fn stack_top(cpu: CpuId) -> u64 {
    assert!(cpu.0 == 0, "one CPU runs guests");
    BOOT_STACK.bytes.get() as u64 + STACK as u64
}

/// Tops of the interrupt stacks.
pub fn interrupt_stacks() -> [u64; 4] {
    INTERRUPT_STACKS.each_ref().map(|stack| stack.bytes.get() as u64 + INTERRUPT_STACK as u64)
}

/// Pages that are not to be mapped.
pub fn guards() -> [u64; 5] {
    let [a, b, c, d] = INTERRUPT_STACKS.each_ref().map(|stack| stack.guard.as_ptr() as u64);
    [BOOT_STACK.guard.as_ptr() as u64, a, b, c, d]
}

/// Whether an address is on this CPU's stack or an interrupt stack.
pub fn is_on_stack(address: u64) -> bool {
    let within = |top: u64, bytes: usize| (top - bytes as u64..top).contains(&address);
    within(stack_top(CpuId(0)), STACK)
        || interrupt_stacks().into_iter().any(|top| within(top, INTERRUPT_STACK))
}

/// Makes the next entries save into these registers.
pub fn set_entry(regs: *mut UserRegs) {
    let top = regs as u64 + FRAME_END as u64;
    if SYSCALL_AREA.entry_stack.swap(top, Ordering::Relaxed) != top {
        tables::set_entry_stack(CpuId(0), top);
    }
}

/// Goes to ring 3 for the first time.
///
/// # Safety
/// `regs` are those of a vCPU's save area that entries save into, whose state is loaded.
pub unsafe fn resume(regs: *mut UserRegs) -> ! {
    // SAFETY: the caller's promise.
    unsafe { resume_guest(regs, stack_top(CpuId(0))) }
}

/// Loads data selectors; false if one had to become null.
pub fn load_selectors(ds: u16, es: u16, fs: u16, gs: u16) -> bool {
    // SAFETY: the core uses no data segment; what a selector does not name is answered by a fixup.
    unsafe { load_selectors_or_null(ds.into(), es.into(), fs.into(), gs.into()) == 0 }
}

/// Loads GS, with null if the selector names nothing.
pub fn load_gs(selector: u16) {
    // SAFETY: as in `load_selectors`.
    unsafe { load_gs_or_null(selector.into()) };
}

/// Bit of RFLAGS: the processor takes interrupts.
const RFLAGS_INTERRUPTS: u64 = 1 << 9;

/// The interrupt that came during an idle wait.
pub fn take_interrupt() -> Option<u8> {
    u8::try_from(INTERRUPT.swap(0, Ordering::Relaxed).checked_sub(1)?).ok()
}

/// The fault that the last fixup answered: vector and CR2.
pub fn last_fixed() -> (u8, u64) {
    (FIXED_VECTOR.load(Ordering::Relaxed) as u8, FIXED_ADDRESS.load(Ordering::Relaxed))
}

/// Sorts a trap from ring 0: whether to go on, at the RIP in the registers. Else it is the core's
/// fault.
pub fn from_core(regs: &mut UserRegs) -> bool {
    match regs.entry_vector {
        // Reported on the SYSCALL stub's first instruction for a guest's breakpoint.
        1 => {
            super::guest::take_debug_status();
        }
        vector @ 0..32 => {
            let Some(landing) = landing_of(regs.rip) else {
                return false;
            };
            FIXED_VECTOR.store(vector, Ordering::Relaxed);
            FIXED_ADDRESS.store(super::guest::fault_address(), Ordering::Relaxed);
            regs.rip = landing;
        }
        vector => {
            INTERRUPT.store(vector + 1, Ordering::Relaxed);
            // A second one, of higher priority, must not come before this one is handled: its
            // number would take this one's place, which then is never acknowledged.
            regs.rflags &= !RFLAGS_INTERRUPTS;
        }
    }
    true
}

fn landing_of(rip: u64) -> Option<u64> {
    let (start, end) = (&raw const __fixups_start, &raw const __fixups_end);
    let count = (end as usize - start as usize) / size_of::<Fixup>();
    // SAFETY: the linker script puts the table between the two, in read-only memory.
    let table = unsafe { core::slice::from_raw_parts(start, count) };
    table.iter().find(|fixup| fixup.fault == rip).map(|fixup| fixup.landing)
}
