//! Requests of the owner of a PCI device, one function per command of
//! [`bulkhead_abi::device`].

use crate::hypercall::{Result, with_struct};
use bulkhead_abi::Maddr;
use bulkhead_abi::device::{self, Bar, Config, Describe, Irq};
use bulkhead_abi::hypercall::DEVICE;

/// A PCI device of this domain: bus << 8 | device << 3 | function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sbdf(pub u32);

/// A memory BAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryBar {
    /// Where it is.
    pub maddr: Maddr,
    /// How long it is.
    pub bytes: u64,
}

/// Describes device `index` of this domain (for Dom0: of the machine).
///
/// # Errors
/// `ENOENT` past the last.
pub fn describe(index: u32) -> Result<Describe> {
    let mut arg = Describe { index, ..Default::default() };
    with_struct(DEVICE, device::DESCRIBE, &mut arg)?;
    Ok(arg)
}

/// All devices of this domain.
pub fn devices() -> impl Iterator<Item = Describe> {
    (0..).map_while(|index| describe(index).ok())
}

/// Reads `width` (1, 2 or 4) bytes of configuration space.
///
/// # Errors
/// `ENODEV` for a device that is not this domain's, `EINVAL` for a bad range.
pub fn config_read(sbdf: Sbdf, offset: u16, width: u16) -> Result<u32> {
    let mut arg = Config { sbdf: sbdf.0, offset, width, value: 0 };
    with_struct(DEVICE, device::CONFIG_READ, &mut arg)?;
    Ok(arg.value)
}

/// Writes `width` (1, 2 or 4) bytes of configuration space.
///
/// # Errors
/// `EPERM` for registers that the core keeps to itself, else as for [`config_read`].
pub fn config_write(sbdf: Sbdf, offset: u16, width: u16, value: u32) -> Result<()> {
    let mut arg = Config { sbdf: sbdf.0, offset, width, value };
    with_struct(DEVICE, device::CONFIG_WRITE, &mut arg).map(drop)
}

/// Memory BAR `index` (0..=5); `None` when absent or of I/O ports.
///
/// # Errors
/// `ENODEV` for a device that is not this domain's.
pub fn memory_bar(sbdf: Sbdf, index: u32) -> Result<Option<MemoryBar>> {
    let mut arg = Bar { sbdf: sbdf.0, index, ..Default::default() };
    with_struct(DEVICE, device::BAR, &mut arg)?;
    let is_memory = arg.bytes != 0 && arg.flags & 1 == 0;
    Ok(is_memory.then(|| MemoryBar { maddr: Maddr::new(arg.maddr), bytes: arg.bytes }))
}

/// Sets up MSI-X entry `entry` (or [`device::INTX`]) and returns its pirq, for
/// [`crate::event::bind_pirq`].
///
/// # Errors
/// `ENOSPC` when the core has no more interrupts, `EINVAL` for a bad entry.
pub fn irq(sbdf: Sbdf, entry: u32) -> Result<u32> {
    let mut arg = Irq { sbdf: sbdf.0, entry, pirq: 0 };
    with_struct(DEVICE, device::IRQ, &mut arg)?;
    Ok(arg.pirq)
}

/// Switches bus mastering off and resets the function.
///
/// # Errors
/// `ENODEV` for a device that is not this domain's.
pub fn reset(sbdf: Sbdf) -> Result<()> {
    let mut arg = Describe { sbdf: sbdf.0, ..Default::default() };
    with_struct(DEVICE, device::RESET, &mut arg).map(drop)
}
