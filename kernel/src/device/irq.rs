//! Interrupts of devices as pirqs: a vector each, one owner each, masked until the
//! owner has bound an event channel. A level-triggered line is masked when it fires and
//! stays so until the owner acknowledges it, so a driver that is dead or never
//! acknowledges can not flood the core.

use super::{
    DeviceError, Devices, config, intx,
    machine::{ioapic_mask, ioapic_set},
    pci::Sbdf,
};
use crate::{Core, arch::msi_address_data, event, sched::Wake, state::CpuId};
use bulkhead_abi::{DomId, device::INTX};

/// First of the vectors that interrupts of devices use.
pub const FIRST_VECTOR: u8 = 0x30;
/// Last of them.
pub const LAST_VECTOR: u8 = 0xdf;
/// How many pirqs there are: each is its vector minus [`FIRST_VECTOR`].
pub const SLOTS: usize = (LAST_VECTOR - FIRST_VECTOR) as usize + 1;
/// pirqs below this are for ISA lines, by their number.
const FIRST_FREE: usize = 16;
/// The second serial port's line, Dom0's.
pub const COM2: u32 = 3;

/// Where an interrupt comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// An input of the I/O APIC: the pin of a device, level-triggered, or without one an
    /// edge-triggered ISA line.
    Line { gsi: u32, device: Option<Sbdf> },
    /// A message.
    Msix { device: Sbdf, entry: u16 },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Irq {
    owner: DomId,
    source: Source,
    /// A port is bound to it.
    is_bound: bool,
}

impl Irq {
    fn device(&self) -> Option<Sbdf> {
        match self.source {
            Source::Line { device, .. } => device,
            Source::Msix { device, .. } => Some(device),
        }
    }
}

/// The vector of a pirq below [`SLOTS`].
fn vector(pirq: u32) -> u8 {
    FIRST_VECTOR + pirq as u8
}

impl Devices {
    /// Gives an ISA line to a domain under its own number, masked.
    pub fn assign_isa(&mut self, owner: DomId, gsi: u32) {
        if let Some(slot) = self.irqs.get_mut(gsi as usize) {
            ioapic_set(gsi, vector(gsi), false, false, true);
            let source = Source::Line { gsi, device: None };
            *slot = Some(Irq { owner, source, is_bound: false });
        }
    }

    /// Programs an interrupt of a device that `dom` owns and gives its pirq; the same
    /// again for one that is programmed already. It stays masked until the pirq is bound.
    ///
    /// Errors: `NotOwned`, `NoInterrupt`, `LineTaken`, `NoRoom`.
    pub fn irq(&mut self, owner: DomId, sbdf: Sbdf, entry: u32) -> Result<u32, DeviceError> {
        let none = DeviceError::NoInterrupt { sbdf };
        let device = self.owned(owner, sbdf)?;
        let msix = device.msix;
        let source = if entry == INTX {
            Source::Line { gsi: intx::gsi(device).ok_or(none)?, device: Some(sbdf) }
        } else {
            let entries = msix.map_or(0, |msix| msix.entries());
            let entry = u16::try_from(entry).ok().filter(|&entry| entry < entries).ok_or(none)?;
            Source::Msix { device: sbdf, entry }
        };
        let is_same = |slot: &Option<Irq>| slot.is_some_and(|irq| irq.source == source);
        if let Some(pirq) = self.irqs.iter().position(is_same) {
            return Ok(pirq as u32);
        }
        let mut free = (0..).zip(&self.irqs).skip(FIRST_FREE).filter(|(_, slot)| slot.is_none());
        let (pirq, _) = free.next().ok_or(DeviceError::NoRoom)?;
        match source {
            Source::Line { gsi, .. } => {
                if let Some(owner) = self.owner_of_line(gsi) {
                    return Err(DeviceError::LineTaken { gsi, owner });
                }
                ioapic_set(gsi, vector(pirq), true, true, true);
            }
            Source::Msix { entry, .. } => {
                let (address, data) = msi_address_data(vector(pirq), CpuId(0));
                msix.ok_or(none)?.program(sbdf, entry, address, data);
            }
        }
        self.irqs[pirq as usize] = Some(Irq { owner, source, is_bound: false });
        Ok(pirq)
    }

    fn owner_of_line(&self, wanted: u32) -> Option<DomId> {
        let of_line = |irq: &&Irq| matches!(irq.source, Source::Line { gsi, .. } if gsi == wanted);
        self.irqs.iter().flatten().find(of_line).map(|irq| irq.owner)
    }

    fn own_irq(&mut self, dom: DomId, pirq: u32) -> Result<&mut Irq, DeviceError> {
        let slot = self.irqs.get_mut(pirq as usize).and_then(Option::as_mut);
        slot.filter(|irq| irq.owner == dom).ok_or(DeviceError::NotYourPirq { pirq })
    }

    /// Unmasks a pirq for its owner, which has bound it to a port.
    ///
    /// Errors: `NotYourPirq`.
    pub fn bind_pirq(&mut self, dom: DomId, pirq: u32) -> Result<(), DeviceError> {
        self.set_bound(dom, pirq, true)
    }

    /// Masks a pirq whose port closed.
    pub fn unbind_pirq(&mut self, dom: DomId, pirq: u32) {
        // A pirq that is gone already needs no mask.
        let _ = self.set_bound(dom, pirq, false);
    }

    fn set_bound(&mut self, dom: DomId, pirq: u32, bound: bool) -> Result<(), DeviceError> {
        let irq = self.own_irq(dom, pirq)?;
        irq.is_bound = bound;
        let source = irq.source;
        self.set_masked(source, !bound);
        Ok(())
    }

    fn set_masked(&self, source: Source, masked: bool) {
        match source {
            Source::Line { gsi, device } => {
                if let Some(sbdf) = device {
                    config::set_pin_enabled(sbdf, !masked);
                }
                ioapic_mask(gsi, masked);
            }
            Source::Msix { device, entry } => {
                if let Some(msix) = self.find(device).and_then(|device| device.msix) {
                    msix.set_masked(entry, masked);
                }
            }
        }
    }

    /// The owner has dealt with a level-triggered interrupt: the line may fire again.
    ///
    /// Errors: `NotYourPirq`.
    pub fn eoi(&mut self, dom: DomId, pirq: u32) -> Result<(), DeviceError> {
        let irq = self.own_irq(dom, pirq)?;
        if let Source::Line { gsi, device: Some(_) } = irq.source
            && irq.is_bound
        {
            ioapic_mask(gsi, false);
        }
        Ok(())
    }

    /// Takes back the interrupts of `dom`, or of one device only.
    pub(super) fn release(&mut self, dom: DomId, only: Option<Sbdf>) {
        for slot in 0..SLOTS {
            let irq = self.irqs[slot].filter(|irq| irq.owner == dom);
            if let Some(irq) = irq.filter(|irq| only.is_none() || irq.device() == only) {
                self.set_masked(irq.source, true);
                self.irqs[slot] = None;
            }
        }
    }

    /// Whose interrupt a vector is, if it is to be heard, and its pirq. Masks a line that is
    /// level-triggered, or that nobody listens to.
    pub(super) fn fired(&mut self, vector: u8) -> Option<(DomId, u32)> {
        let pirq = vector.checked_sub(FIRST_VECTOR)?;
        let irq = self.irqs.get(usize::from(pirq)).copied().flatten()?;
        if let Source::Line { gsi, device } = irq.source
            && (device.is_some() || !irq.is_bound)
        {
            ioapic_mask(gsi, true);
        }
        irq.is_bound.then_some((irq.owner, pirq.into()))
    }
}

/// A device's interrupt arrived: passes it to its owner's event channel. The caller
/// acknowledges it at the local APIC afterwards.
pub fn interrupt(core: &mut Core, vector: u8) -> Wake {
    match core.devices.fired(vector) {
        Some((owner, pirq)) => event::raise_pirq(core, owner, pirq),
        None => Wake::Nobody,
    }
}
