//! PCI devices: who owns which, what of it the owner may reach, and its interrupts.
//! No device is driven here: configuration space is mediated ([`config`]), interrupts
//! are programmed and forwarded ([`irq`]), and the rest is the owner's, who maps the
//! memory BARs by ordinary page-table entries ([`DomainDevices::allows_io`]).
//!
//! Invariants
//! 1. A function has at most one owner. Bus mastering is on only while it has one.
//! 2. Nobody but the core writes a BAR, an MSI or MSI-X register or an MSI-X table: the
//!    pages that hold a table are never part of what `allows_io` permits. So an
//!    interrupt message is always one that the core made up.
//! 3. A device is stopped ([`reset`]) before its owner's frames go back to the free
//!    list, whatever the way in which the owner loses them.
//!
//! An IOMMU would be tables of the `memory` room: assigning a device attaches it to its
//! owner's tables, stopping it detaches it, in [`Devices::assign`] and
//! [`Devices::quiesce`]. Without one, invariant 3 is all that stands between a
//! stopped driver's DMA and the next owner of a frame, and a driver domain that means
//! harm can reach any memory by DMA.
#![deny(unsafe_code)]

pub mod config;
pub mod intx;
pub mod irq;
pub mod machine;
pub mod msix;
pub mod pci;
pub mod reset;

#[cfg(test)]
pub mod tests;

use bulkhead_abi::{DomId, Errno, Mfn};
use heapless::Vec;
use irq::Irq;
use pci::{PciDevice, Sbdf};

/// Most PCI functions the core keeps; any beyond are left alone, switched off.
pub const MAX_DEVICES: usize = 64;
/// Most runs of frames the devices of one domain may have.
const MAX_RANGES: usize = 48;

/// Why a device operation is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceError {
    /// No such function, or not the caller's.
    NotOwned { sbdf: Sbdf },
    /// Somebody owns it already.
    Taken { sbdf: Sbdf, owner: DomId },
    /// Bridges stay with the core.
    Bridge { sbdf: Sbdf },
    /// It has no such interrupt.
    NoInterrupt { sbdf: Sbdf },
    /// The line is shared with a device of another domain.
    LineTaken { gsi: u32, owner: DomId },
    /// No such pirq, or not the caller's.
    NotYourPirq { pirq: u32 },
    /// All vectors, devices or ranges are in use.
    NoRoom,
    /// Configuration register that only the core writes.
    Protected { sbdf: Sbdf, offset: u16 },
    /// Offset or width that does not name a register.
    BadRegister { offset: u16, width: u8 },
}

impl From<DeviceError> for Errno {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::NotOwned { .. } => Self::ENODEV,
            DeviceError::Taken { .. } | DeviceError::LineTaken { .. } => Self::EBUSY,
            DeviceError::Bridge { .. } | DeviceError::Protected { .. } => Self::EPERM,
            DeviceError::NoInterrupt { .. }
            | DeviceError::BadRegister { .. }
            | DeviceError::NotYourPirq { .. } => Self::EINVAL,
            DeviceError::NoRoom => Self::ENOSPC,
        }
    }
}

/// Consecutive frames of device memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoRange {
    pub first: Mfn,
    pub frames: u64,
    /// Whose BAR it is.
    pub sbdf: Sbdf,
}

impl IoRange {
    fn contains(&self, mfn: Mfn) -> bool {
        mfn.get().checked_sub(self.first.get()).is_some_and(|n| n < self.frames)
    }
}

/// What a domain may map of devices.
#[derive(Default)]
pub struct DomainDevices {
    ranges: Vec<IoRange, MAX_RANGES>,
}

impl DomainDevices {
    /// Whether the domain may map this frame, which is not RAM.
    pub fn allows_io(&self, mfn: Mfn) -> bool {
        self.ranges.iter().any(|range| range.contains(mfn))
    }

    /// Lets the domain map the BARs of `device`; all of them or none.
    fn permit(&mut self, device: &PciDevice) -> Result<(), DeviceError> {
        let before = self.ranges.len();
        for range in device.mappable() {
            if self.ranges.push(range).is_err() {
                self.ranges.truncate(before);
                return Err(DeviceError::NoRoom);
            }
        }
        Ok(())
    }
}

/// All PCI functions of the machine and all interrupts of devices.
pub struct Devices {
    list: Vec<PciDevice, MAX_DEVICES>,
    /// By pirq.
    irqs: [Option<Irq>; irq::SLOTS],
}

impl Default for Devices {
    fn default() -> Self {
        Self { list: Vec::new(), irqs: [None; irq::SLOTS] }
    }
}

impl Devices {
    /// Finds the functions of the machine and switches off what would act on its own:
    /// bus mastering, pin interrupts, MSI. Gives how many there are.
    pub fn scan(&mut self) -> usize {
        pci::scan(&mut self.list);
        self.list.iter().filter(|device| !device.is_bridge).for_each(config::disable);
        self.list.len()
    }

    /// How many functions there are.
    pub fn count(&self) -> usize {
        self.list.len()
    }

    pub fn find(&self, sbdf: Sbdf) -> Option<&PciDevice> {
        self.list.iter().find(|device| device.sbdf == sbdf)
    }

    /// The device, if `dom` owns it.
    pub fn owned(&self, dom: DomId, sbdf: Sbdf) -> Result<&PciDevice, DeviceError> {
        self.find(sbdf).filter(|d| d.owner == Some(dom)).ok_or(DeviceError::NotOwned { sbdf })
    }

    /// The `index`th device of `dom`; for Dom0 the `index`th of all.
    pub fn nth(&self, dom: DomId, index: usize) -> Option<&PciDevice> {
        self.list.iter().filter(|d| dom == DomId::DOM0 || d.owner == Some(dom)).nth(index)
    }

    /// Gives a device that nobody owns to `dom`.
    ///
    /// Errors: `NotOwned` for an unknown one, `Taken`, `Bridge`, `NoRoom`; nothing has
    /// changed then.
    pub fn assign(
        &mut self,
        sbdf: Sbdf,
        dom: DomId,
        to: &mut DomainDevices,
    ) -> Result<(), DeviceError> {
        let device = self.list.iter_mut().find(|d| d.sbdf == sbdf);
        let device = device.ok_or(DeviceError::NotOwned { sbdf })?;
        if let Some(owner) = device.owner {
            return Err(DeviceError::Taken { sbdf, owner });
        }
        if device.is_bridge {
            return Err(DeviceError::Bridge { sbdf });
        }
        to.permit(device)?;
        reset::stop(device);
        device.owner = Some(dom);
        Ok(())
    }

    /// Takes a device back: stopped, its interrupts gone, nobody's. Mappings of its BARs
    /// that the domain still has stay until it drops them: the caller destroys or
    /// resets it, or trusts it that far.
    pub fn deassign(
        &mut self,
        sbdf: Sbdf,
        dom: DomId,
        from: &mut DomainDevices,
    ) -> Result<(), DeviceError> {
        self.stop(dom, sbdf)?;
        from.ranges.retain(|range| range.sbdf != sbdf);
        self.list.iter_mut().filter(|d| d.sbdf == sbdf).for_each(|d| d.owner = None);
        Ok(())
    }

    /// Stops all devices of `dom` and frees its interrupts: from here on nothing of them
    /// reaches memory or the core. They stay assigned.
    pub fn quiesce(&mut self, dom: DomId) {
        self.list.iter().filter(|d| d.owner == Some(dom)).for_each(reset::stop);
        self.release(dom, None);
    }

    /// Forgets that `dom` owned anything; after [`Self::quiesce`].
    pub fn disown(&mut self, dom: DomId) {
        self.list.iter_mut().filter(|d| d.owner == Some(dom)).for_each(|d| d.owner = None);
    }

    /// Stops one device of `dom` and frees its interrupts.
    pub fn stop(&mut self, dom: DomId, sbdf: Sbdf) -> Result<(), DeviceError> {
        reset::stop(self.owned(dom, sbdf)?);
        self.release(dom, Some(sbdf));
        Ok(())
    }
}
