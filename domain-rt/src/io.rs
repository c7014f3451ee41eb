//! Port input and output. Which ports answer is the core's choice: a domain without
//! the right reads all ones and writes into nothing.
//!
//! These functions are safe because no port that a domain may be given can reach
//! memory: the core gives out UARTs, never a DMA controller or configuration space.

/// Reads a byte from `port`.
pub fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: see the module: a port read has no effect on memory.
    unsafe {
        core::arch::asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags));
    }
    value
}

/// Writes a byte to `port`.
pub fn outb(port: u16, value: u8) {
    // SAFETY: see the module: no port of a domain reaches memory.
    unsafe {
        core::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
}
