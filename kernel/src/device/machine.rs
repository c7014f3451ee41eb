//! The few things this room needs of the machine, under one roof: configuration space,
//! device registers, the I/O interrupt controller. On the machine they are `arch`; in
//! tests a small pretend bus (`fake`) that they fill and look at.

use bulkhead_abi::Maddr;

#[cfg(not(test))]
pub use crate::arch::{ioapic_mask, ioapic_set, map_device, msi_address_data, pci_read, pci_write};
#[cfg(test)]
pub use fake::{ioapic_mask, ioapic_set, map_device, msi_address_data, pci_read, pci_write};

/// Device registers in the core's uncached window.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the window is mapped for as long as the core runs, in every address space,
// and all access is volatile by naturally aligned words.
unsafe impl Send for Registers {}

impl Registers {
    /// Maps `bytes` of device memory from `maddr`, which must be 4-byte aligned and of
    /// a BAR that no RAM overlaps. `None` when the window is full.
    pub fn map(maddr: Maddr, bytes: usize) -> Option<Self> {
        let base = map_device(maddr, bytes)?;
        base.cast::<u32>()
            .is_aligned()
            .then_some(Self { base, bytes })
    }

    fn at(&self, offset: usize, width: usize) -> Option<*mut u8> {
        let end = offset.checked_add(width)?;
        (end <= self.bytes && offset.is_multiple_of(width)).then(|| self.base.wrapping_add(offset))
    }

    /// Writes a register; does nothing outside the range.
    pub fn write_u32(&self, offset: usize, value: u32) {
        if let Some(at) = self.at(offset, 4) {
            // SAFETY: `at` lies in the range that `map` gave, aligned by the check.
            unsafe { at.cast::<u32>().write_volatile(value) }
        }
    }

    /// Reads a register; all ones outside the range, as the bus would answer.
    pub fn read_u32(&self, offset: usize) -> u32 {
        // SAFETY: as in `write_u32`.
        self.at(offset, 4)
            .map_or(u32::MAX, |at| unsafe { at.cast::<u32>().read_volatile() })
    }

    /// Writes a byte-wide register; does nothing outside the range.
    pub fn write_u8(&self, offset: usize, value: u8) {
        if let Some(at) = self.at(offset, 1) {
            // SAFETY: `at` lies in the range that `map` gave.
            unsafe { at.write_volatile(value) }
        }
    }

    /// Reads a byte-wide register; all ones outside the range.
    pub fn read_u8(&self, offset: usize) -> u8 {
        // SAFETY: as in `write_u8`.
        self.at(offset, 1)
            .map_or(u8::MAX, |at| unsafe { at.read_volatile() })
    }
}

/// A pretend bus: one per thread, so that tests do not meet.
#[cfg(test)]
pub mod fake {
    use crate::state::CpuId;
    use bulkhead_abi::Maddr;
    use std::{cell::RefCell, collections::BTreeMap};

    /// One function: its configuration space, which bits are writable, and what was written.
    #[derive(Clone)]
    pub struct Function {
        pub bytes: [u8; 256],
        pub writable: [u8; 256],
    }

    impl Default for Function {
        fn default() -> Self {
            Self {
                bytes: [0; 256],
                writable: [0; 256],
            }
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
        pub memory: BTreeMap<u64, &'static mut [u32]>,
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
            (0..u16::from(width)).rev().fold(0, |v, n| {
                v << 8 | u32::from(function.bytes[usize::from(offset + n)])
            })
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

    pub fn map_device(maddr: Maddr, bytes: usize) -> Option<*mut u8> {
        with(|bus| {
            let page = bus
                .memory
                .entry(maddr.get())
                .or_insert_with(|| vec![0; bytes.div_ceil(4)].leak());
            Some(page.as_mut_ptr().cast())
        })
    }

    pub fn ioapic_set(gsi: u32, vector: u8, level: bool, _low_active: bool, masked: bool) {
        with(|bus| {
            bus.lines.insert(
                gsi,
                Line {
                    vector,
                    level,
                    masked,
                },
            )
        });
    }

    pub fn ioapic_mask(gsi: u32, masked: bool) {
        with(|bus| {
            if let Some(line) = bus.lines.get_mut(&gsi) {
                line.masked = masked;
            }
        })
    }

    /// Message that raises `vector` on the first CPU (Intel SDM 3A, 11.11).
    pub fn msi_address_data(vector: u8, _cpu: CpuId) -> (u64, u32) {
        (0xfee0_0000, u32::from(vector))
    }
}
