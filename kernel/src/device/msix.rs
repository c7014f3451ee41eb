//! MSI-X: the table of messages in a device's memory, which only the core writes.
//! Numbers: PCI Local Bus Specification 3.0, section 6.8.2.

use super::pci::Sbdf;
use crate::arch::DeviceWindow;
use bulkhead_abi::{
    Maddr, PAGE_SIZE,
    device::{BAR_IO, Bar},
};

/// Bytes of a table entry: address low, address high, data, vector control.
const ENTRY_BYTES: usize = 16;
const ENABLE: u32 = 1 << 15;
const MASK_ALL: u32 = 1 << 14;

/// A function's MSI-X capability and table.
#[derive(Clone, Copy, Debug)]
pub struct Msix {
    capability: u16,
    entries: u16,
    table: DeviceWindow,
    /// Which BAR the table is in.
    pub bar: u32,
    /// Pages of that BAR which the table touches, so its owner may not map them: first, and
    /// first past.
    pub pages: (u64, u64),
}

impl Msix {
    /// Reads the capability at `at` and maps its table; `None` if the table does not lie in
    /// a memory BAR.
    pub fn find(sbdf: Sbdf, at: u16, bars: &[Bar; 6]) -> Option<Self> {
        (at <= 0xf4).then_some(())?;
        let entries = (sbdf.read(at + 2, 2) & 0x7ff) as u16 + 1;
        let place = sbdf.read(at + 4, 4);
        let offset = u64::from(place & !7);
        let bar = bars.get((place & 7) as usize).filter(|bar| bar.flags & BAR_IO == 0)?;
        let bytes = usize::from(entries) * ENTRY_BYTES;
        let end = offset.checked_add(bytes as u64).filter(|&end| end <= bar.bytes)?;
        let table = DeviceWindow::map(Maddr::new(bar.maddr.checked_add(offset)?), bytes)?;
        let page = PAGE_SIZE as u64;
        let pages = (offset / page, end.div_ceil(page));
        Some(Self { capability: at, entries, table, bar: place & 7, pages })
    }

    /// How many messages it has, 1..=2048.
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// Sets message `entry`, masked, and switches MSI-X on.
    pub fn program(&self, sbdf: Sbdf, entry: u16, address: u64, data: u32) {
        let at = usize::from(entry) * ENTRY_BYTES;
        self.set_masked(entry, true);
        self.table.write(at, address as u32);
        self.table.write(at + 4, (address >> 32) as u32);
        self.table.write(at + 8, data);
        let control = sbdf.read(self.capability + 2, 2);
        if control & (ENABLE | MASK_ALL) != ENABLE {
            // Whatever the table held before must not fire.
            (0..self.entries)
                .filter(|&other| other != entry)
                .for_each(|other| self.set_masked(other, true));
            sbdf.write(self.capability + 2, 2, control & !MASK_ALL | ENABLE);
        }
    }

    pub fn set_masked(&self, entry: u16, masked: bool) {
        let at = usize::from(entry) * ENTRY_BYTES + 12;
        self.table.write(at, u32::from(masked));
    }

    /// Switches MSI-X off.
    pub fn disable(&self, sbdf: Sbdf) {
        let control = sbdf.read(self.capability + 2, 2);
        sbdf.write(self.capability + 2, 2, control & !ENABLE);
    }
}
