//! Finding PCI functions and what they have: BARs, capabilities, the way to reset them.
//! Reads configuration space as the word of a stranger: lists are walked with a bound,
//! and a capability that does not fit is not there.
//!
//! Numbers: PCI Local Bus Specification 3.0, sections 6.1, 6.2 and 6.8.2; PCI Express
//! Base Specification, 7.5.3; virtio 1.2, 4.1.4.

use super::{
    IoRange,
    machine::{pci_read, pci_write},
    msix::Msix,
};
use crate::arch::DeviceWindow;
use bulkhead_abi::{DomId, Maddr, PAGE_SIZE};
use core::fmt;

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

    const fn function(self) -> u32 {
        self.0 & 7
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

impl fmt::Display for Sbdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
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

/// A base address register with its size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bar {
    pub maddr: u64,
    /// 0 if absent.
    pub bytes: u64,
    pub is_io: bool,
    pub is_prefetchable: bool,
}

/// How a device is made to forget what it was doing.
#[derive(Clone, Copy, Debug)]
pub enum ResetMethod {
    /// Function-level reset through the PCI Express capability here.
    Express(u16),
    /// Function-level reset through the Advanced Features capability here.
    AdvancedFeatures(u16),
    /// Through D3hot, by the power management capability here.
    Power(u16),
    /// Zero into virtio's device status register, at this offset of the window.
    Virtio(DeviceWindow, usize),
    /// None known: bus mastering goes off, and that is all.
    None,
}

/// One function of a device.
#[derive(Clone, Copy, Debug)]
pub struct PciDevice {
    pub sbdf: Sbdf,
    pub vendor: u16,
    pub device: u16,
    /// class << 16 | subclass << 8 | prog-if
    pub class: u32,
    pub is_bridge: bool,
    pub bars: [Bar; 6],
    /// INTA..INTD as 0..=3.
    pub pin: Option<u32>,
    /// Pin and device as the root bus sees them, through the bridges above.
    pub root_pin: Option<(u32, u32)>,
    pub msi: Option<u16>,
    pub msix: Option<Msix>,
    pub reset: ResetMethod,
    pub owner: Option<DomId>,
}

impl PciDevice {
    /// Runs of frames that an owner may map: whole pages of memory BARs, without those
    /// that hold the MSI-X table or its pending bits.
    pub fn mappable(&self) -> impl Iterator<Item = IoRange> + '_ {
        const PAGE: u64 = PAGE_SIZE as u64;
        self.bars.iter().enumerate().filter(|(_, bar)| !bar.is_io && bar.bytes >= PAGE).flat_map(
            move |(index, bar)| {
                let hole = self.msix.as_ref().and_then(|msix| msix.hole(index));
                let frames = bar.bytes / PAGE;
                let (start, end) = hole.unwrap_or((frames, frames));
                let (start, end) = (start.min(frames), end.min(frames));
                [(0, start), (end, frames)].into_iter().filter(|(from, to)| from < to).map(
                    move |(from, to)| IoRange {
                        // Can not overflow: a BAR is below 2^64 bytes, a frame number below 2^52.
                        first: Maddr::new(bar.maddr).mfn().checked_add(from).unwrap_or_default(),
                        frames: to - from,
                        sbdf: self.sbdf,
                    },
                )
            },
        )
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

/// Sizes a BAR by writing ones, decoding switched off meanwhile. Gives it and whether
/// it takes the next register too.
fn size_bar(sbdf: Sbdf, index: u16) -> (Bar, bool) {
    let at = BARS + 4 * index;
    let probe = |at: u16| {
        let old = sbdf.read(at, 4);
        sbdf.write(at, 4, u32::MAX);
        let mask = sbdf.read(at, 4);
        sbdf.write(at, 4, old);
        (old, mask)
    };
    let (low, low_mask) = probe(at);
    if low & 1 != 0 {
        // Ports: 16 or 32 bits of address; what the top reads as does not matter.
        let bytes = u64::from((!(low_mask & !3) & 0xffff).wrapping_add(1) & 0xffff);
        let bar = Bar { maddr: u64::from(low & !3), bytes, is_io: true, is_prefetchable: false };
        return (bar, false);
    }
    let is_wide = low & 6 == 4 && index < 5;
    let (high, high_mask) = if is_wide { probe(at + 4) } else { (0, u32::MAX) };
    let maddr = u64::from(high) << 32 | u64::from(low & !15);
    let mask = u64::from(high_mask) << 32 | u64::from(low_mask & !15);
    // A register that is not there reads as zero.
    let bytes = if low_mask & !15 == 0 && (!is_wide || high_mask == 0) {
        0
    } else {
        (!mask).wrapping_add(1)
    };
    // Sizes are powers of two and addresses their multiples; anything else is a lie.
    let sane = bytes.is_power_of_two() && maddr.is_multiple_of(bytes) && maddr != 0;
    let bar = Bar {
        maddr,
        bytes: if sane { bytes } else { 0 },
        is_io: false,
        is_prefetchable: low & 8 != 0,
    };
    (bar, is_wide)
}

fn bars(sbdf: Sbdf) -> [Bar; 6] {
    let command = sbdf.read(COMMAND, 2);
    sbdf.write(COMMAND, 2, command & !(CMD_IO | CMD_MEMORY));
    let mut bars = [Bar::default(); 6];
    let mut index = 0;
    while let Some(slot) = bars.get_mut(usize::from(index)) {
        let (bar, is_wide) = size_bar(sbdf, index);
        *slot = bar;
        index += if is_wide { 2 } else { 1 };
    }
    sbdf.write(COMMAND, 2, command);
    bars
}

/// Virtio's device status register, for functions that have no reset of their own.
fn virtio_status(sbdf: Sbdf, bars: &[Bar; 6]) -> Option<(DeviceWindow, usize)> {
    const COMMON_CONFIG: u32 = 1;
    const DEVICE_STATUS: u64 = 0x14;
    let (_, cap) = capabilities(sbdf).find(|&(id, at)| {
        id == CAP_VENDOR && at <= 0xf0 && sbdf.read(at + 3, 1) == COMMON_CONFIG
    })?;
    let bar = bars.get(sbdf.read(cap + 4, 1) as usize).filter(|bar| !bar.is_io)?;
    let at = u64::from(sbdf.read(cap + 8, 4)).checked_add(DEVICE_STATUS)?;
    let page = at & !(PAGE_SIZE as u64 - 1);
    (at < bar.bytes).then_some(())?;
    let window = DeviceWindow::map(Maddr::new(bar.maddr.checked_add(page)?), PAGE_SIZE)?;
    Some((window, (at - page) as usize))
}

fn reset_method(sbdf: Sbdf, vendor: u16, bars: &[Bar; 6]) -> ResetMethod {
    const VIRTIO_VENDOR: u16 = 0x1af4;
    let find = |id| capabilities(sbdf).find(|cap| cap.0 == id).map(|cap| cap.1);
    if let Some(at) =
        find(CAP_EXPRESS).filter(|&at| at <= 0xf0 && sbdf.read(at + 4, 4) & 1 << 28 != 0)
    {
        return ResetMethod::Express(at);
    }
    if let Some(at) = find(CAP_AF).filter(|&at| at <= 0xf8 && sbdf.read(at + 3, 1) & 2 != 0) {
        return ResetMethod::AdvancedFeatures(at);
    }
    if vendor == VIRTIO_VENDOR
        && let Some((window, at)) = virtio_status(sbdf, bars)
    {
        return ResetMethod::Virtio(window, at);
    }
    // Bit 3 of the control register: going through D3hot keeps the state, so is no reset.
    if let Some(at) = find(CAP_PM).filter(|&at| at <= 0xf8 && sbdf.read(at + 4, 2) & 1 << 3 == 0) {
        return ResetMethod::Power(at);
    }
    ResetMethod::None
}

/// Reads all there is to know of one endpoint.
fn endpoint(sbdf: Sbdf, id: u32, root_of: impl Fn(u32) -> (u32, u32)) -> PciDevice {
    let bars = bars(sbdf);
    let pin = sbdf.read(INTERRUPT_PIN, 1).checked_sub(1).filter(|&pin| pin < 4);
    let vendor = id as u16;
    let find = |id| capabilities(sbdf).find(|cap| cap.0 == id).map(|cap| cap.1);
    PciDevice {
        sbdf,
        vendor,
        device: (id >> 16) as u16,
        class: sbdf.read(CLASS, 4) >> 8,
        is_bridge: false,
        bars,
        pin,
        root_pin: pin.map(root_of),
        msi: find(CAP_MSI).filter(|&at| at <= 0xf0),
        msix: find(CAP_MSIX).and_then(|at| Msix::find(sbdf, at, &bars)),
        reset: reset_method(sbdf, vendor, &bars),
        owner: None,
    }
}

fn bridge(sbdf: Sbdf, id: u32) -> PciDevice {
    PciDevice {
        sbdf,
        vendor: id as u16,
        device: (id >> 16) as u16,
        class: sbdf.read(CLASS, 4) >> 8,
        is_bridge: true,
        bars: [Bar::default(); 6],
        pin: None,
        root_pin: None,
        msi: None,
        msix: None,
        reset: ResetMethod::None,
        owner: None,
    }
}

/// Most bridges between the root and an endpoint.
const MAX_DEPTH: usize = 8;

/// Device numbers of the bridges from the root bus down to a bus.
type Path = heapless::Vec<u32, MAX_DEPTH>;

/// What a pin of a device on a bus becomes on the root bus: each bridge turns it by the
/// number of the device below (PCI-to-PCI Bridge Architecture 1.2, 9.1).
fn swizzle(path: &Path, device: u32, pin: u32) -> (u32, u32) {
    path.iter().rev().fold((device, pin), |(device, pin), &bridge| (bridge, (pin + device) % 4))
}

/// Walks all buses from bus 0 and hands each function to `found` until it says no.
pub fn scan(mut found: impl FnMut(PciDevice) -> bool) {
    scan_bus(0, &Path::new(), &mut found);
}

fn scan_bus(bus: u8, path: &Path, found: &mut impl FnMut(PciDevice) -> bool) -> bool {
    for device in 0..32 {
        for function in 0..8 {
            let sbdf = Sbdf::of(bus, device, function);
            let id = sbdf.read(0, 4);
            if id as u16 == 0xffff {
                // Function 0 must be there if any is.
                if function == 0 {
                    break;
                }
                continue;
            }
            if !visit(sbdf, id, path, found) {
                return false;
            }
            if function == 0 && sbdf.read(HEADER_TYPE, 1) & 0x80 == 0 {
                break;
            }
        }
    }
    true
}

fn visit(sbdf: Sbdf, id: u32, path: &Path, found: &mut impl FnMut(PciDevice) -> bool) -> bool {
    // Host, ISA and other bridges have plain headers but are the machine's.
    const CLASS_BRIDGE: u32 = 0x06;
    match sbdf.read(HEADER_TYPE, 1) & 0x7f {
        0 if sbdf.read(CLASS + 3, 1) != CLASS_BRIDGE => {
            found(endpoint(sbdf, id, |pin| swizzle(path, sbdf.device(), pin)))
        }
        1 => {
            let below = sbdf.read(SECONDARY_BUS, 1) as u8;
            let mut path = path.clone();
            // A bridge that leads upward or too deep is left alone.
            let descend = below > sbdf.bus() && path.push(sbdf.device()).is_ok();
            found(bridge(sbdf, id)) && (!descend || scan_bus(below, &path, found))
        }
        _ => found(bridge(sbdf, id)),
    }
}
