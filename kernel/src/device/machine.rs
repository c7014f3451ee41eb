//! The two things this room needs of the machine beside device registers, under one
//! roof: configuration space and the I/O interrupt controller. On the machine they are `arch`; in
//! tests a small pretend bus (`fake`) that they fill and look at.
#![deny(unsafe_code)]

#[cfg(not(test))]
pub use crate::arch::{ioapic_mask, ioapic_set, pci_read, pci_write};
#[cfg(test)]
pub use fake::{ioapic_mask, ioapic_set, pci_read, pci_write};

/// A pretend bus: one per thread, so that tests do not meet.
#[cfg(test)]
pub mod fake {
    use std::{cell::RefCell, collections::BTreeMap};

    /// One function: its configuration space, which bits are writable, and what was written.
    #[derive(Clone)]
    pub struct Function {
        pub bytes: [u8; 256],
        pub writable: [u8; 256],
    }

    impl Default for Function {
        fn default() -> Self {
            Self { bytes: [0; 256], writable: [0; 256] }
        }
    }

    impl Function {
        pub fn set(&mut self, offset: usize, bytes: &[u8]) -> &mut Self {
            self.bytes[offset..][..bytes.len()].copy_from_slice(bytes);
            self
        }

        pub fn allow(&mut self, offset: usize, mask: &[u8]) -> &mut Self {
            self.writable[offset..][..mask.len()].copy_from_slice(mask);
            self
        }
    }

    /// A redirection entry as the room last set it.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Line {
        pub vector: u8,
        pub level: bool,
        pub masked: bool,
    }

    #[derive(Default)]
    pub struct Bus {
        pub functions: BTreeMap<u32, Function>,
        pub lines: BTreeMap<u32, Line>,
        /// Configuration writes in order: function, offset, width, value.
        pub writes: Vec<(u32, u16, u8, u32)>,
    }

    thread_local! {
        static BUS: RefCell<Bus> = RefCell::default();
    }

    /// Looks at, or changes, this thread's bus.
    pub fn with<T>(f: impl FnOnce(&mut Bus) -> T) -> T {
        BUS.with_borrow_mut(f)
    }

    pub fn pci_read(sbdf: u32, offset: u16, width: u8) -> u32 {
        with(|bus| {
            let Some(function) = bus.functions.get(&sbdf) else {
                return u32::MAX;
            };
            (0..u16::from(width))
                .rev()
                .fold(0, |v, n| v << 8 | u32::from(function.bytes[usize::from(offset + n)]))
        })
    }

    pub fn pci_write(sbdf: u32, offset: u16, width: u8, value: u32) {
        with(|bus| {
            bus.writes.push((sbdf, offset, width, value));
            let Some(function) = bus.functions.get_mut(&sbdf) else {
                return;
            };
            for n in 0..u16::from(width) {
                let at = usize::from(offset + n);
                let mask = function.writable[at];
                function.bytes[at] = function.bytes[at] & !mask | (value >> (8 * n)) as u8 & mask;
            }
        })
    }

    pub fn ioapic_set(gsi: u32, vector: u8, level: bool, _low_active: bool, masked: bool) {
        with(|bus| bus.lines.insert(gsi, Line { vector, level, masked }));
    }

    pub fn ioapic_mask(gsi: u32, masked: bool) {
        with(|bus| {
            if let Some(line) = bus.lines.get_mut(&gsi) {
                line.masked = masked;
            }
        })
    }
}
