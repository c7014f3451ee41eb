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
    trace::words::{self, SymbolBytes, Uart},
};

/// The vector by which somebody asks the core where it is.
const NMI: u32 = 2;

/// Frames of the backtrace.
const DEPTH: usize = 32;

/// The symbol table in the boot archive.
struct Symbols {
    mem: PhysMem,
    at: u64,
    bytes: u64,
}

static SYMBOLS: spin::Mutex<Option<Symbols>> = spin::Mutex::new(None);

impl SymbolBytes for Symbols {
    fn read(&self, offset: u64, out: &mut [u8]) -> Option<()> {
        if offset.checked_add(out.len() as u64)? > self.bytes {
            return None;
        }
        read(self.mem, self.at + offset, out);
        Some(())
    }
}

/// Copies across frames.
fn read(mem: PhysMem, at: u64, out: &mut [u8]) {
    for (n, byte) in (0u64..).zip(out) {
        *byte = mem.read_u8(Maddr::new(at + n));
    }
}

/// Remembers where the core's symbols are.
pub fn set_symbols(mem: PhysMem, at: Range<Maddr>) {
    let (at, end) = (at.start.get(), at.end.get());
    *SYMBOLS.lock() = Some(Symbols { mem, at, bytes: end - at });
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
    let symbols = SYMBOLS.try_lock();
    let symbols = symbols.as_ref().and_then(|slot| slot.as_ref());
    let _ = words::address(&mut Uart, symbols, rip, CORE_BASE);
    let mut frame = rbp;
    for _ in 0..DEPTH {
        if !frame.is_multiple_of(8) || !entry::is_on_stack(frame) || !entry::is_on_stack(frame + 8)
        {
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
