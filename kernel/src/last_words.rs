//! What the core says before it ends the machine: reason, registers, a backtrace with symbols, the
//! last events. Everything is read with suspicion, for memory may be broken.

use super::CORE;
use bulkhead_abi::{
    Maddr,
    archive::{CORE_BASE, EXIT_CORE_FAULT},
    vcpu::UserRegs,
};
use core::{
    fmt::Write,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};
use kernel::{
    arch::{self, machine::entry},
    memory::phys::PhysMem,
    trace::words::{self, Uart},
};

/// The vector by which somebody asks the core where it is.
const NMI: u32 = 2;

/// Frames of the backtrace.
const DEPTH: usize = 32;

/// The symbol table in the boot archive; empty if there is none.
static SYMBOLS: spin::Once<&[u8]> = spin::Once::new();

/// Remembers where the core's symbols are: in RAM that the core keeps.
pub fn set_symbols(mem: PhysMem, at: Range<Maddr>) {
    let bytes = (at.end.get() - at.start.get()) as usize;
    if let Some(frame) = mem.frame_ptr(at.start.mfn()) {
        let start = frame.wrapping_add(at.start.offset()).cast_const();
        // SAFETY: 1. The archive was opened, so the range lies within memory, which is mapped for
        // ever. 2. Its frames stay the core's, so nobody writes them any more.
        SYMBOLS.call_once(|| unsafe { core::slice::from_raw_parts(start, bytes) });
    }
}

/// Whether somebody is speaking already: a fault in the last words ends them.
fn is_first() -> bool {
    static SPOKEN: AtomicBool = AtomicBool::new(false);
    !SPOKEN.swap(true, Ordering::Relaxed)
}

/// A fault in ring 0.
pub fn fault(regs: &UserRegs) -> ! {
    if is_first() {
        let _ = writeln!(
            Uart,
            "\n*** {}: vector {} code {:#x} address {:016x}",
            if regs.entry_vector == NMI { "stopped by an NMI" } else { "core fault" },
            regs.entry_vector,
            regs.error_code,
            arch::fault_address()
        );
        let _ = words::registers(&mut Uart, regs);
        say(regs.rip, regs.rbp);
    }
    arch::exit_machine(EXIT_CORE_FAULT)
}

/// A panic.
pub fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    if is_first() {
        let _ = writeln!(Uart, "\n*** core panic: {info}");
        let rbp: u64;
        // SAFETY: reads a register.
        unsafe {
            core::arch::asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags))
        };
        say(panicked as *const () as u64, rbp);
    }
    arch::exit_machine(EXIT_CORE_FAULT)
}

fn say(rip: u64, rbp: u64) {
    let _ = writeln!(Uart, "backtrace:");
    let symbols = SYMBOLS.get().copied().unwrap_or_default();
    let _ = words::address(&mut Uart, symbols, rip, CORE_BASE);
    let mut frame = rbp;
    for _ in 0..DEPTH {
        if !frame.is_multiple_of(8) || ![frame, frame + 8].into_iter().all(entry::is_on_stack) {
            break;
        }
        // SAFETY: both words are on one of this CPU's stacks, which are mapped.
        let (next, from) =
            unsafe { ((frame as *const u64).read(), ((frame + 8) as *const u64).read()) };
        if from == 0 {
            break;
        }
        let _ = words::address(&mut Uart, symbols, from, CORE_BASE);
        if next <= frame {
            break;
        }
        frame = next;
    }
    // SAFETY: one CPU runs, and it is here for good: whoever held the lock never goes on.
    unsafe { CORE.force_unlock() };
    if let Some(slot) = CORE.try_lock()
        && let Some(core) = slot.as_ref()
    {
        let _ = words::events(&mut Uart, &core.trace);
    }
}
