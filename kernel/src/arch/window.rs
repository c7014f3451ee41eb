//! Registers of a device in memory: mapped uncached, accessed by aligned volatile words.
//! Who may map what is not known here.

use bulkhead_abi::Maddr;

/// A mapped range of device registers.
#[derive(Clone, Copy, Debug)]
pub struct DeviceWindow {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping stays for ever, and every access below is one volatile word.
unsafe impl Send for DeviceWindow {}
// SAFETY: as above; a word is read or written whole, from any CPU.
unsafe impl Sync for DeviceWindow {}

impl DeviceWindow {
    /// Maps `bytes` bytes of registers at `at`, for ever; `None` when the range is empty or
    /// not below the processor's address width, or the window is full.
    pub fn map(at: Maddr, bytes: usize) -> Option<Self> {
        let base = super::map_device(at, bytes)?;
        Some(Self { base, bytes })
    }

    fn word(&self, offset: usize) -> Option<*mut u32> {
        (offset.is_multiple_of(4) && offset.checked_add(4)? <= self.bytes)
            .then(|| self.base.wrapping_add(offset).cast())
    }

    /// Reads a word; all ones outside the window or unaligned, as a bus without a device answers.
    pub fn read(&self, offset: usize) -> u32 {
        match self.word(offset) {
            // SAFETY: `word` checked bounds and alignment; the mapping stays for ever.
            Some(at) => unsafe { at.read_volatile() },
            None => u32::MAX,
        }
    }

    /// Writes a word; outside the window or unaligned it goes nowhere.
    pub fn write(&self, offset: usize, value: u32) {
        if let Some(at) = self.word(offset) {
            // SAFETY: as in `read`.
            unsafe { at.write_volatile(value) }
        }
    }

    fn byte(&self, offset: usize) -> Option<*mut u8> {
        (offset < self.bytes).then(|| self.base.wrapping_add(offset))
    }

    /// Reads a byte-wide register; all ones outside the window.
    pub fn read_u8(&self, offset: usize) -> u8 {
        match self.byte(offset) {
            // SAFETY: `byte` checked the bounds; the mapping stays for ever.
            Some(at) => unsafe { at.read_volatile() },
            None => u8::MAX,
        }
    }

    /// Writes a byte-wide register; outside the window it goes nowhere.
    pub fn write_u8(&self, offset: usize, value: u8) {
        if let Some(at) = self.byte(offset) {
            // SAFETY: as in `read_u8`.
            unsafe { at.write_volatile(value) }
        }
    }
}
