//! Configuration space of our own device, as a PCI library expects it. The core owns
//! the BARs and the command register's meaning; a library that sizes a BAR by writing
//! ones into it meets a shadow here, filled with what the core says.

use domain_rt::device::{self, MemoryBar, Sbdf};
use domain_rt::hypercall::Result;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};

const COMMAND: u8 = 0x04;
const BAR0: u8 = 0x10;
const BAR5: u8 = 0x24;
const CAPABILITIES: u16 = 0x34;
/// Status register, bit 4: there are capabilities.
const HAS_CAPABILITIES: u32 = 1 << 4;
/// Command register: memory decoding and bus mastering.
const MEMORY_AND_MASTER: u32 = 1 << 1 | 1 << 2;
/// BAR bits 2-1: 64 bits wide.
const BAR_WIDE: u32 = 0b100;
/// Most capabilities that fit in configuration space: the end of a loop.
const MAX_CAPABILITIES: usize = 48;

/// One device.
#[derive(Clone, Debug)]
pub struct Config {
    sbdf: Sbdf,
    bars: Bars,
}

impl Config {
    /// Looks at a device of this domain.
    pub fn new(sbdf: Sbdf) -> Result<Self> {
        let mut bars = Bars::default();
        let mut index = 0;
        while index < 6 {
            let flags = device::config_read(sbdf, u16::from(BAR0) + 4 * index, 4)? & 0xf;
            let bar = device::memory_bar(sbdf, index.into())?;
            let wide = flags & BAR_WIDE != 0;
            if let Some(bar) = bar {
                bars.set(index.into(), bar, flags);
            }
            index += if bar.is_some() && wide { 2 } else { 1 };
        }
        Ok(Self { sbdf, bars })
    }

    /// Where the library finds the device: there is no other one on this bus.
    pub fn function(&self) -> DeviceFunction {
        DeviceFunction {
            bus: (self.sbdf.0 >> 8) as u8,
            device: (self.sbdf.0 >> 3) as u8 & 31,
            function: self.sbdf.0 as u8 & 7,
        }
    }

    /// Lets the device decode memory accesses and reach memory by itself.
    pub fn enable(&self) -> Result<()> {
        let command = device::config_read(self.sbdf, COMMAND.into(), 2)?;
        device::config_write(self.sbdf, COMMAND.into(), 2, command | MEMORY_AND_MASTER)
    }

    /// The device.
    pub fn sbdf(&self) -> Sbdf {
        self.sbdf
    }

    /// Finds a vendor capability (id 9) with this byte at offset 3: where it starts.
    pub fn vendor_capability(&self, kind: u8) -> Option<u16> {
        let read = |offset, width| device::config_read(self.sbdf, offset, width).ok();
        if read(u16::from(COMMAND) + 2, 2)? & HAS_CAPABILITIES == 0 {
            return None;
        }
        let mut at = read(CAPABILITIES, 1)? & 0xfc;
        for _ in 0..MAX_CAPABILITIES {
            if at < 0x40 {
                return None;
            }
            let head = read(at as u16, 4)?;
            if head & 0xff == 9 && (head >> 24) as u8 == kind {
                return Some(at as u16);
            }
            at = head >> 8 & 0xfc;
        }
        None
    }

    /// Reads a word of configuration space.
    pub fn word(&self, offset: u16) -> Option<u32> {
        device::config_read(self.sbdf, offset, 4).ok()
    }

    /// A memory BAR.
    pub fn bar(&self, index: u32) -> Option<MemoryBar> {
        device::memory_bar(self.sbdf, index).ok().flatten()
    }
}

impl ConfigurationAccess for Config {
    fn read_word(&self, _: DeviceFunction, offset: u8) -> u32 {
        match offset {
            BAR0..=BAR5 => self.bars.read(usize::from(offset - BAR0) / 4),
            // What a bus without a device answers.
            _ => self.word(offset.into()).unwrap_or(u32::MAX),
        }
    }

    fn write_word(&mut self, _: DeviceFunction, offset: u8, data: u32) {
        match offset {
            BAR0..=BAR5 => self.bars.write(usize::from(offset - BAR0) / 4, data),
            // Decoding goes off and on only around the sizing of BARs, which is played
            // on the shadow.
            COMMAND => {}
            _ => {
                let written = device::config_write(self.sbdf, offset.into(), 4, data);
                if let Err(error) = written {
                    log::warn!("configuration register {offset:#x}: {error}");
                }
            }
        }
    }

    #[allow(unsafe_code)] // The signature is the library's; nothing unsafe happens.
    unsafe fn unsafe_clone(&self) -> Self {
        self.clone()
    }
}

/// The six BAR registers as a library sees them.
#[derive(Clone, Debug, Default)]
struct Bars {
    /// What is read now.
    value: [u32; 6],
    /// Bits that can be written.
    mask: [u32; 6],
    /// Low bits, which cannot.
    flags: [u32; 6],
}

impl Bars {
    fn set(&mut self, index: usize, bar: MemoryBar, flags: u32) {
        let mask = !bar.bytes.next_power_of_two().saturating_sub(1);
        let halves = [(0, bar.maddr.get(), mask), (1, bar.maddr.get() >> 32, mask >> 32)];
        let count = if flags & BAR_WIDE != 0 { 2 } else { 1 };
        for (half, value, mask) in halves.into_iter().take(count) {
            let Some(slot) = self.value.get_mut(index + half) else {
                return;
            };
            let low = if half == 0 { flags } else { 0 };
            *slot = value as u32 | low;
            self.mask[index + half] = if half == 0 { mask as u32 & !0xf } else { mask as u32 };
            self.flags[index + half] = low;
        }
    }

    fn read(&self, index: usize) -> u32 {
        self.value.get(index).copied().unwrap_or_default()
    }

    fn write(&mut self, index: usize, data: u32) {
        if let Some(slot) = self.value.get_mut(index) {
            *slot = data & self.mask[index] | self.flags[index];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_abi::Maddr;

    #[test]
    fn a_library_that_sizes_a_wide_bar_finds_its_size_and_its_address_again() {
        let mut bars = Bars::default();
        let bar = MemoryBar { maddr: Maddr::new(0x38_0000_4000), bytes: 0x4000 };
        bars.set(4, bar, 0b1100);
        assert_eq!((bars.read(4), bars.read(5)), (0x400c, 0x38));
        bars.write(4, u32::MAX);
        bars.write(5, u32::MAX);
        let size = u64::from(bars.read(5)) << 32 | u64::from(bars.read(4) & !0xf);
        assert_eq!(!size + 1, 0x4000);
        bars.write(4, 0x400c);
        bars.write(5, 0x38);
        assert_eq!((bars.read(4), bars.read(5)), (0x400c, 0x38));
    }

    #[test]
    fn a_bar_that_is_absent_reads_as_nothing_whatever_is_written() {
        let mut bars = Bars::default();
        bars.write(2, u32::MAX);
        assert_eq!((bars.read(2), bars.read(9)), (0, 0));
    }
}
