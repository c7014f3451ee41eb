//! Interrupts of devices as pirqs: a vector each, one owner each, masked until the
//! owner has bound an event channel. A level-triggered line is masked when it fires and
//! stays so until the owner acknowledges it, so a driver that is dead or never
//! acknowledges can not flood the core.

use super::{
    DeviceError, config, intx,
    machine::{ioapic_mask, ioapic_set},
    pci::{PciDevice, Sbdf},
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
pub const COM2: Pirq = Pirq(3);

/// Number of a physical interrupt as event channels name it. Vector minus [`FIRST_VECTOR`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pirq(u32);

impl Pirq {
    pub const fn get(self) -> u32 {
        self.0
    }

    fn of_vector(vector: u8) -> Option<Self> {
        (FIRST_VECTOR..=LAST_VECTOR)
            .contains(&vector)
            .then(|| Self(u32::from(vector - FIRST_VECTOR)))
    }

    fn slot(self) -> usize {
        self.0 as usize
    }

    fn vector(self) -> u8 {
        // Pirqs are made from slots, of which there are fewer than vectors.
        FIRST_VECTOR + self.0 as u8
    }
}

/// Where an interrupt comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// An edge-triggered ISA line.
    Isa { gsi: u32 },
    /// The pin of a device: level-triggered.
    Pin { gsi: u32, sbdf: Sbdf },
    /// A message.
    Msix { sbdf: Sbdf, entry: u16 },
}

impl Source {
    /// Whether it belongs to this device.
    pub fn is_of(&self, device: Sbdf) -> bool {
        match *self {
            Self::Isa { .. } => false,
            Self::Pin { sbdf, .. } | Self::Msix { sbdf, .. } => sbdf == device,
        }
    }

    fn set_masked(&self, masked: bool, devices: &[PciDevice]) {
        match *self {
            Self::Isa { gsi } => ioapic_mask(gsi, masked),
            Self::Pin { gsi, sbdf } => {
                config::set_pin_enabled(sbdf, !masked);
                ioapic_mask(gsi, masked);
            }
            Self::Msix { sbdf, entry } => {
                if let Some(msix) =
                    devices.iter().find(|d| d.sbdf == sbdf).and_then(|d| d.msix.as_ref())
                {
                    msix.set_masked(entry, masked);
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Irq {
    owner: DomId,
    source: Source,
    /// A port is bound to it.
    is_bound: bool,
}

/// All interrupts of devices, by vector.
pub struct IrqTable {
    slots: [Option<Irq>; SLOTS],
}

impl Default for IrqTable {
    fn default() -> Self {
        Self::new()
    }
}

impl IrqTable {
    pub const fn new() -> Self {
        Self { slots: [None; SLOTS] }
    }

    /// Gives an ISA line to a domain under its own number, masked.
    pub fn assign_isa(&mut self, owner: DomId, pirq: Pirq) {
        let gsi = pirq.get();
        if let Some(slot) = self.slots.get_mut(pirq.slot()) {
            ioapic_set(gsi, pirq.vector(), false, false, true);
            *slot = Some(Irq { owner, source: Source::Isa { gsi }, is_bound: false });
        }
    }

    /// See [`super::Devices::irq`], which has checked that `dom` owns the device.
    pub fn request(
        &mut self,
        dom: DomId,
        sbdf: Sbdf,
        entry: u32,
        devices: &[PciDevice],
    ) -> Result<Pirq, DeviceError> {
        let none = DeviceError::NoInterrupt { sbdf };
        let device = devices.iter().find(|d| d.sbdf == sbdf).ok_or(none)?;
        let source = if entry == INTX {
            Source::Pin { gsi: intx::gsi(device).ok_or(none)?, sbdf }
        } else {
            let entries = device.msix.as_ref().map_or(0, |msix| msix.entries());
            let entry = u16::try_from(entry).ok().filter(|&entry| entry < entries).ok_or(none)?;
            Source::Msix { sbdf, entry }
        };
        if let Some(pirq) = self.find(|irq| irq.source == source) {
            return Ok(pirq);
        }
        if let Source::Pin { gsi, .. } = source
            && let Some(owner) = self.owner_of_line(gsi)
        {
            return Err(DeviceError::LineTaken { gsi, owner });
        }
        let free = self
            .slots
            .iter()
            .skip(FIRST_FREE)
            .position(Option::is_none)
            .ok_or(DeviceError::NoRoom)?;
        // Fewer slots than vectors, so it fits.
        let pirq = Pirq((FIRST_FREE + free) as u32);
        self.slots[pirq.slot()] = Some(Irq { owner: dom, source, is_bound: false });
        match source {
            Source::Msix { entry, .. } => {
                let (address, data) = msi_address_data(pirq.vector(), CpuId(0));
                if let Some(msix) = &device.msix {
                    msix.program(sbdf, entry, address, data);
                }
            }
            Source::Pin { gsi, .. } | Source::Isa { gsi } => {
                ioapic_set(gsi, pirq.vector(), true, true, true)
            }
        }
        Ok(pirq)
    }

    fn find(&self, matches: impl Fn(&Irq) -> bool) -> Option<Pirq> {
        let slot = self.slots.iter().position(|slot| slot.as_ref().is_some_and(&matches))?;
        Some(Pirq(slot as u32))
    }

    fn owner_of_line(&self, wanted: u32) -> Option<DomId> {
        self.slots.iter().flatten().find_map(|irq| match irq.source {
            Source::Isa { gsi } | Source::Pin { gsi, .. } => (gsi == wanted).then_some(irq.owner),
            Source::Msix { .. } => None,
        })
    }

    fn owned(&mut self, dom: DomId, pirq: u32) -> Result<&mut Irq, DeviceError> {
        let slot = self.slots.get_mut(pirq as usize).and_then(Option::as_mut);
        slot.filter(|irq| irq.owner == dom).ok_or(DeviceError::NotYourPirq { pirq })
    }

    /// Notes that a port is bound to a pirq of `dom`, or no longer, and unmasks or masks it.
    pub fn set_bound(
        &mut self,
        dom: DomId,
        pirq: u32,
        bound: bool,
        devices: &[PciDevice],
    ) -> Result<(), DeviceError> {
        let irq = self.owned(dom, pirq)?;
        irq.is_bound = bound;
        irq.source.set_masked(!bound, devices);
        Ok(())
    }

    /// The owner has dealt with a level-triggered interrupt: the line may fire again.
    ///
    /// Errors: `NotYourPirq`.
    pub fn eoi(&mut self, dom: DomId, pirq: u32) -> Result<(), DeviceError> {
        let irq = self.owned(dom, pirq)?;
        if let Source::Pin { gsi, .. } = irq.source
            && irq.is_bound
        {
            ioapic_mask(gsi, false);
        }
        Ok(())
    }

    /// Takes back the interrupts of `dom` that `which` picks.
    pub fn release(&mut self, dom: DomId, devices: &[PciDevice], which: impl Fn(&Source) -> bool) {
        for slot in &mut self.slots {
            if let Some(irq) = slot.as_ref().filter(|irq| irq.owner == dom && which(&irq.source)) {
                irq.source.set_masked(true, devices);
                *slot = None;
            }
        }
    }

    /// Whose interrupt a vector is, if it is to be heard. Masks a line that is
    /// level-triggered, or that nobody listens to.
    pub(super) fn fired(&mut self, vector: u8) -> Option<(DomId, Pirq)> {
        let pirq = Pirq::of_vector(vector)?;
        let irq = self.slots.get(pirq.slot())?.as_ref()?;
        match irq.source {
            Source::Pin { gsi, .. } => ioapic_mask(gsi, true),
            Source::Isa { gsi } if !irq.is_bound => ioapic_mask(gsi, true),
            _ => {}
        }
        irq.is_bound.then_some((irq.owner, pirq))
    }
}

/// A device's interrupt arrived: passes it to its owner's event channel. The caller
/// acknowledges it at the local APIC afterwards.
pub fn interrupt(core: &mut Core, vector: u8) -> Wake {
    match core.devices.irqs.fired(vector) {
        Some((owner, pirq)) => event::raise_pirq(core, owner, pirq.get()),
        None => Wake::Nobody,
    }
}
