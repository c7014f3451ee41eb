//! PCI configuration space by mechanism 1 (ports 0xcf8 and 0xcfc). Who may touch which
//! function is decided by the room `device`.

use x86_64::instructions::port::Port;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// Selects a register; gives the data port for its byte lane. `None` for what is not 1, 2 or 4 bytes
/// of configuration space, naturally aligned, below offset 256.
fn select(sbdf: u32, offset: u16, width: u8) -> Option<u16> {
    let is_aligned = offset.is_multiple_of(width.into());
    let is_fine = matches!(width, 1 | 2 | 4) && offset < 256 && is_aligned;
    let address = ENABLE | (sbdf & 0xffff) << 8 | u32::from(offset) & 0xfc;
    is_fine.then(|| {
        // SAFETY: selecting a register has no effect by itself.
        unsafe { Port::new(ADDRESS).write(address) };
        DATA + (offset & 3)
    })
}

/// Reads configuration space; what [`select`] refuses and absent functions read as ones.
pub fn pci_read(sbdf: u32, offset: u16, width: u8) -> u32 {
    // SAFETY: reads of configuration space have no effect on memory.
    unsafe {
        match (select(sbdf, offset, width), width) {
            (Some(port), 1) => Port::<u8>::new(port).read().into(),
            (Some(port), 2) => Port::<u16>::new(port).read().into(),
            (Some(port), _) => Port::new(port).read(),
            (None, _) => u32::MAX,
        }
    }
}

/// Writes configuration space; nothing where [`select`] refuses. Room `device` mediates: it lets
/// nobody turn on bus mastering for a device that is not assigned.
pub fn pci_write(sbdf: u32, offset: u16, width: u8, value: u32) {
    // SAFETY: what may be written is the decision of room `device`, which keeps bus mastering off
    // but for assigned devices; their DMA is their owner's until there is an IOMMU.
    unsafe {
        match (select(sbdf, offset, width), width) {
            (Some(port), 1) => Port::new(port).write(value as u8),
            (Some(port), 2) => Port::new(port).write(value as u16),
            (Some(port), _) => Port::new(port).write(value),
            (None, _) => {}
        }
    }
}
