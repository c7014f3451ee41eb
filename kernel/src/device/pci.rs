//! Finding PCI functions and what they have: BARs, capabilities, the way to reset them.
//! Reads configuration space as the word of a stranger: lists are walked with a bound,
//! and a capability that does not fit is not there.
//!
//! Numbers: PCI Local Bus Specification 3.0, sections 6.1, 6.2 and 6.8.2; PCI Express
//! Base Specification, 7.5.3; virtio 1.2, 4.1.4.

use super::{
    IoRange, MAX_DEVICES,
    machine::{pci_read, pci_write},
    msix::Msix,
};
use crate::arch::DeviceWindow;
use bulkhead_abi::{
    DomId, Maddr, PAGE_SIZE,
    device::{BAR_IO, BAR_PREFETCHABLE, Bar},
};
use heapless::Vec;

const PAGE: u64 = PAGE_SIZE as u64;

/// Bus, device and function: bus << 8 | device << 3 | function, on segment 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Sbdf(u32);

impl Sbdf {
    /// Takes a raw number; `None` beyond bus 255.
    pub const fn new(raw: u32) -> Option<Self> {
        if raw < 1 << 16 { Some(Self(raw)) } else { None }
    }

    const fn of(bus: u8, device: u32, function: u32) -> Self {
        Self((bus as u32) << 8 | (device & 31) << 3 | function & 7)
    }

    pub const fn get(self) -> u32 {
        self.0
    }

    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    pub const fn device(self) -> u32 {
        self.0 >> 3 & 31
    }

    fn is_present(&self) -> bool {
        self.read(0, 4) as u16 != 0xffff
    }

    /// Reads `width` (1, 2 or 4) bytes of configuration space.
    pub fn read(self, offset: u16, width: u8) -> u32 {
        pci_read(self.0, offset, width)
    }

    /// Writes `width` (1, 2 or 4) bytes of configuration space.
    pub fn write(self, offset: u16, width: u8, value: u32) {
        pci_write(self.0, offset, width, value);
    }
}

/// Registers of the common header.
pub const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const CLASS: u16 = 0x08;
const HEADER_TYPE: u16 = 0x0e;
pub const BARS: u16 = 0x10;
const SECONDARY_BUS: u16 = 0x19;
const CAPABILITIES: u16 = 0x34;
const INTERRUPT_PIN: u16 = 0x3d;

/// Bits of the command register.
pub const CMD_IO: u32 = 1 << 0;
pub const CMD_MEMORY: u32 = 1 << 1;
pub const CMD_MASTER: u32 = 1 << 2;
pub const CMD_NO_INTX: u32 = 1 << 10;

/// Capability ids.
pub const CAP_PM: u8 = 0x01;
pub const CAP_MSI: u8 = 0x05;
pub const CAP_VENDOR: u8 = 0x09;
pub const CAP_EXPRESS: u8 = 0x10;
pub const CAP_MSIX: u8 = 0x11;
pub const CAP_AF: u8 = 0x13;

/// Most capabilities a 256-byte space can hold without overlap; ends a looping list.
const MAX_CAPABILITIES: usize = 48;

/// One function of a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct PciDevice {
    pub sbdf: Sbdf,
    pub vendor: u16,
    pub device: u16,
    /// class << 16 | subclass << 8 | prog-if
    pub class: u32,
    /// Stays with the core; nothing below is known of it.
    pub is_bridge: bool,
    /// Address and size of each base address register; 0 bytes if absent.
    pub bars: [Bar; 6],
    /// Device and pin (INTA..INTD as 0..=3) as the root bus sees them, through the bridges above.
    pub root_pin: Option<(u32, u32)>,
    pub msix: Option<Msix>,
    /// Virtio's device status register: a window and the offset in it.
    pub virtio_status: Option<(DeviceWindow, usize)>,
    pub owner: Option<DomId>,
}

/// Class and subclass of memory (PCI code and ID assignment, 05 00).
const CLASS_RAM: u32 = 0x0500;

impl PciDevice {
    /// Whether the function says that it is memory and nothing else (class 05, subclass 00).
    pub fn is_ram(&self) -> bool {
        self.class >> 8 == CLASS_RAM
    }

    /// Runs of frames that an owner may map: whole pages of memory BARs, without those
    /// that hold the MSI-X table or its pending bits.
    pub fn mappable(&self) -> impl Iterator<Item = IoRange> + '_ {
        let memory = self.bars.iter().filter(|bar| bar.flags & BAR_IO == 0);
        memory.flat_map(|bar| {
            let frames = bar.bytes / PAGE;
            let msix = self.msix.as_ref().filter(|msix| msix.bar == bar.index);
            let hole = msix.map_or(frames..frames, |msix| msix.pages.0..msix.pages.1);
            let around = [0..hole.start.min(frames), hole.end..frames];
            around.into_iter().filter(|run| !run.is_empty()).map(|run| IoRange {
                // Can not overflow: a BAR is below 2^64 bytes, a frame number below 2^52.
                first: Maddr::new(bar.maddr).mfn().checked_add(run.start).unwrap_or_default(),
                frames: run.end - run.start,
                sbdf: self.sbdf,
            })
        })
    }
}

/// The capabilities of a function: (id, offset), at most [`MAX_CAPABILITIES`].
pub fn capabilities(sbdf: Sbdf) -> impl Iterator<Item = (u8, u16)> {
    let has_list = sbdf.read(STATUS, 2) & 1 << 4 != 0;
    let mut next = if has_list { sbdf.read(CAPABILITIES, 1) as u16 & !3 } else { 0 };
    (0..MAX_CAPABILITIES).map_while(move |_| {
        // The header ends at 0x40; a capability takes at least its own four bytes.
        if !(0x40..=0xfc).contains(&next) {
            return None;
        }
        let here = next;
        let word = sbdf.read(here, 2);
        next = (word >> 8) as u16 & !3;
        Some((word as u8, here))
    })
}

/// The first capability with this id.
pub fn capability(sbdf: Sbdf, id: u8) -> Option<u16> {
    capabilities(sbdf).find(|cap| cap.0 == id).map(|cap| cap.1)
}

/// Sizes a BAR by writing ones, decoding switched off meanwhile. Gives whether it takes the
/// next register too.
fn size_bar(sbdf: Sbdf, bar: &mut Bar) -> bool {
    let at = BARS + 4 * bar.index as u16;
    let probe = |at: u16| {
        let old = sbdf.read(at, 4);
        sbdf.write(at, 4, u32::MAX);
        let mask = sbdf.read(at, 4);
        sbdf.write(at, 4, old);
        (old, mask)
    };
    let (low, low_mask) = probe(at);
    // Ports have 16 or 32 bits of address: what the top reads as does not matter.
    let (flags, kind_bits, ones) = match low & 1 {
        0 => (u32::from(low & 8 != 0) * BAR_PREFETCHABLE, 15, 0),
        _ => (BAR_IO, 3, 0xffff_0000),
    };
    let is_wide = low & 7 == 4 && bar.index < 5;
    let (high, high_mask) = if is_wide { probe(at + 4) } else { (0, u32::MAX) };
    let maddr = u64::from(high) << 32 | u64::from(low & !kind_bits);
    let mask = u64::from(high_mask) << 32 | u64::from(low_mask & !kind_bits | ones);
    let bytes = (!mask).wrapping_add(1);
    // Sizes are powers of two and addresses their multiples; anything else is a lie, or a
    // register that is not there.
    let sane = bytes.is_power_of_two() && maddr.is_multiple_of(bytes) && maddr != 0;
    *bar = Bar { maddr, bytes: if sane { bytes } else { 0 }, flags, ..*bar };
    is_wide
}

fn bars(sbdf: Sbdf) -> [Bar; 6] {
    let command = sbdf.read(COMMAND, 2);
    sbdf.write(COMMAND, 2, command & !(CMD_IO | CMD_MEMORY));
    let mut is_upper_half = false;
    let bars = core::array::from_fn(|index| {
        let mut bar = Bar { sbdf: sbdf.get(), index: index as u32, ..Bar::default() };
        is_upper_half = !is_upper_half && size_bar(sbdf, &mut bar);
        bar
    });
    sbdf.write(COMMAND, 2, command);
    bars
}

/// Virtio's device status register, for functions that have no reset of their own.
fn virtio_status(sbdf: Sbdf, bars: &[Bar; 6]) -> Option<(DeviceWindow, usize)> {
    const VENDOR: u32 = 0x1af4;
    const COMMON_CONFIG: u32 = 1;
    const DEVICE_STATUS: u64 = 0x14;
    (sbdf.read(0, 2) == VENDOR).then_some(())?;
    let (_, cap) = capabilities(sbdf).find(|&(id, at)| {
        id == CAP_VENDOR && at <= 0xf0 && sbdf.read(at + 3, 1) == COMMON_CONFIG
    })?;
    let bar = bars.get(sbdf.read(cap + 4, 1) as usize).filter(|bar| bar.flags & BAR_IO == 0)?;
    let at = u64::from(sbdf.read(cap + 8, 4)).checked_add(DEVICE_STATUS)?;
    let page = at & !(PAGE - 1);
    (at < bar.bytes).then_some(())?;
    let window = DeviceWindow::map(Maddr::new(bar.maddr.checked_add(page)?), PAGE_SIZE)?;
    Some((window, (at - page) as usize))
}

/// How the pins on a bus reach the root bus: the root's slot that leads there (none for the root
/// itself), and by how much the bridges on the way turn them.
type Route = (Option<u32>, u32);

/// Walks all buses that bridges lead to and lists their functions until the list is full.
///
/// A bridge turns a pin by the number of the device below (PCI-to-PCI Bridge Architecture
/// 1.2, 9.1). Buses are numbered downward, so each is met after the bridge that leads to it;
/// a bridge that leads upward is left alone.
pub fn scan(list: &mut Vec<PciDevice, MAX_DEVICES>) {
    let mut routes: [Option<Route>; 256] = [None; 256];
    routes[0] = Some((None, 0));
    for bus in 0..=u8::MAX {
        let Some((slot, turn)) = routes[usize::from(bus)] else {
            continue;
        };
        for sbdf in functions(bus) {
            let number = sbdf.device();
            let below = (slot.unwrap_or(number), slot.map_or(0, |_| turn + number));
            if list.push(examine(sbdf, below)).is_err() {
                return;
            }
            let leads_to = sbdf.read(SECONDARY_BUS, 1) as u8;
            if sbdf.read(HEADER_TYPE, 1) & 0x7f == 1 && leads_to > bus {
                routes[usize::from(leads_to)] = Some((Some(below.0), below.1));
            }
        }
    }
}

/// The functions on a bus.
fn functions(bus: u8) -> impl Iterator<Item = Sbdf> {
    (0..32).flat_map(move |device| {
        let first = Sbdf::of(bus, device, 0);
        // The others can be there only if the first is.
        let count = match first.read(HEADER_TYPE, 1) & 0x80 {
            _ if !first.is_present() => 0,
            0 => 1,
            _ => 8,
        };
        (0..count).map(move |n| Sbdf::of(bus, device, n)).filter(Sbdf::is_present)
    })
}

/// Reads all there is to know of a function whose pins reach the root bus at `slot`, turned by
/// `turn`.
fn examine(sbdf: Sbdf, (slot, turn): (u32, u32)) -> PciDevice {
    const CLASS_BRIDGE: u32 = 0x06;
    let class = sbdf.read(CLASS, 4) >> 8;
    let mut device = PciDevice {
        sbdf,
        vendor: sbdf.read(0, 2) as u16,
        device: sbdf.read(2, 2) as u16,
        class,
        // Host, ISA and other bridges have plain headers but are the machine's.
        is_bridge: sbdf.read(HEADER_TYPE, 1) & 0x7f != 0 || class >> 16 == CLASS_BRIDGE,
        ..PciDevice::default()
    };
    if !device.is_bridge {
        let pin = sbdf.read(INTERRUPT_PIN, 1).checked_sub(1).filter(|&pin| pin < 4);
        device.bars = bars(sbdf);
        device.root_pin = pin.map(|pin| (slot, (pin + turn) % 4));
        device.msix = capability(sbdf, CAP_MSIX).and_then(|at| Msix::find(sbdf, at, &device.bars));
        device.virtio_status = virtio_status(sbdf, &device.bars);
    }
    device
}
