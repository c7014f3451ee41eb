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
        Some(Self { base: super::map_device(at, bytes)?, bytes })
    }

    /// Where a register of type `T` is; `None` outside the window or unaligned.
    fn register<T>(&self, offset: usize) -> Option<*mut T> {
        let bytes = size_of::<T>();
        (offset.is_multiple_of(bytes) && offset.checked_add(bytes)? <= self.bytes)
            .then(|| self.base.wrapping_add(offset).cast())
    }

    /// Reads a word; all ones outside the window or unaligned, as a bus without a device answers.
    pub fn read(&self, offset: usize) -> u32 {
        // SAFETY: `register` checked bounds and alignment; the mapping stays for ever.
        self.register(offset).map_or(u32::MAX, |at: *mut u32| unsafe { at.read_volatile() })
    }

    /// Writes a word; outside the window or unaligned it goes nowhere.
    pub fn write(&self, offset: usize, value: u32) {
        if let Some(at) = self.register::<u32>(offset) {
            // SAFETY: as in `read`.
            unsafe { at.write_volatile(value) }
        }
    }

    /// Reads a byte-wide register; all ones outside the window.
    pub fn read_u8(&self, offset: usize) -> u8 {
        // SAFETY: as in `read`.
        self.register(offset).map_or(u8::MAX, |at: *mut u8| unsafe { at.read_volatile() })
    }

    /// Writes a byte-wide register; outside the window it goes nowhere.
    pub fn write_u8(&self, offset: usize, value: u8) {
        if let Some(at) = self.register::<u8>(offset) {
            // SAFETY: as in `read`.
            unsafe { at.write_volatile(value) }
        }
    }
}
