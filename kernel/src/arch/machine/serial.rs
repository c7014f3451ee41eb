//! COM1, output only: the debug UART. It waits for the device but not for ever, so a machine
//! without one is merely silent.

use super::{inb, outb};

const COM1: u16 = 0x3f8;
/// Line status: the transmitter takes another byte.
const TRANSMIT_EMPTY: u8 = 1 << 5;
/// Polls before a byte is given up.
const PATIENCE: u32 = 100_000;

/// Sets 115200 baud, 8N1, FIFO on, interrupts off.
pub fn init() {
    let settings = [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)];
    for (register, value) in settings {
        // SAFETY: registers of the UART at COM1.
        unsafe { outb(COM1 + register, value) };
    }
}

/// Writes bytes; newlines become CR LF.
pub fn console_write(bytes: &[u8]) {
    for &byte in bytes {
        if byte == b'\n' {
            write(b'\r');
        }
        write(byte);
    }
}

fn write(byte: u8) {
    for _ in 0..PATIENCE {
        // SAFETY: line status register of COM1.
        if unsafe { inb(COM1 + 5) } & TRANSMIT_EMPTY != 0 {
            break;
        }
    }
    // SAFETY: data register of COM1.
    unsafe { outb(COM1, byte) };
}
