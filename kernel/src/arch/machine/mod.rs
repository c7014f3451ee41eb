//! The machine itself: an x86-64 PC, one CPU running guests. Everything here is registers,
//! addresses and entry code; most of the core's `unsafe` is in this folder.

pub mod apic;
pub mod boot;
pub mod clock;
pub mod cpu;
pub mod entry;
pub mod guest;
pub mod paging;
pub mod pci;
pub mod serial;
pub mod tables;

use bulkhead_abi::archive::EXIT_PORT;
use x86_64::instructions::port::Port;

/// Reads a port.
///
/// # Safety
/// Reading it has no effect that the core's memory safety depends on.
unsafe fn inb(port: u16) -> u8 {
    // SAFETY: the caller's promise.
    unsafe { Port::new(port).read() }
}

/// Writes a port.
///
/// # Safety
/// Writing it does not make a device write the core's memory.
unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller's promise.
    unsafe { Port::new(port).write(value) }
}

/// Ends the machine: QEMU exits with `code << 1 | 1`; without its exit device the CPU stops.
pub fn exit_machine(code: u32) -> ! {
    // SAFETY: the exit device does nothing else.
    unsafe { Port::new(EXIT_PORT).write(code) };
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}
