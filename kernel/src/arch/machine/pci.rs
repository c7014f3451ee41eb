//! PCI configuration space by mechanism 1 (ports 0xcf8 and 0xcfc). Who may touch which
//! function is decided by the room `device`.

use x86_64::instructions::port::Port;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// Selects a register; gives the data port for its byte lane.
fn select(sbdf: u32, offset: u16) -> u16 {
    let address = ENABLE | (sbdf & 0xffff) << 8 | u32::from(offset) & 0xfc;
    // SAFETY: selecting a register has no effect by itself.
    unsafe { Port::new(ADDRESS).write(address) };
    DATA + (offset & 3)
}

/// Reads 1, 2 or 4 bytes of configuration space, naturally aligned, offset below 256; anything else and
/// absent functions read as ones.
pub fn pci_read(sbdf: u32, offset: u16, width: u8) -> u32 {
    if offset >= 256 || !offset.is_multiple_of(u16::from(width.max(1))) {
        return u32::MAX;
    }
    let port = select(sbdf, offset);
    // SAFETY: reads of configuration space have no effect on memory.
    unsafe {
        match width {
            1 => Port::<u8>::new(port).read().into(),
            2 => Port::<u16>::new(port).read().into(),
            4 => Port::<u32>::new(port).read(),
            _ => u32::MAX,
        }
    }
}

/// Writes 1, 2 or 4 bytes of configuration space; see [`pci_read`] for the limits, out of which nothing is
/// written. Room `device` mediates: it lets nobody turn on bus mastering for a device that is not assigned.
pub fn pci_write(sbdf: u32, offset: u16, width: u8, value: u32) {
    if offset >= 256 || !offset.is_multiple_of(u16::from(width.max(1))) {
        return;
    }
    let port = select(sbdf, offset);
    // SAFETY: what may be written is the decision of room `device`, which keeps bus mastering off
    // but for assigned devices; their DMA is their owner's until there is an IOMMU.
    unsafe {
        match width {
            1 => Port::<u8>::new(port).write(value as u8),
            2 => Port::<u16>::new(port).write(value as u16),
            4 => Port::<u32>::new(port).write(value),
            _ => {}
        }
    }
}
