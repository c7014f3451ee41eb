//! The fast lane's memory, by way of its PCI device: nothing of the device is used but the
//! memory behind a BAR.

use crate::{link::Uart, world::Handle};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use bulkhead_abi::{DomId, control::DeviceRef};
use bulkhead_link::{
    VERSION,
    lane::{BELL, BYTES, IN_USE, MAGIC, MAGIC_OFFSET, TO_DOM0, TO_TOOL, VERSION_OFFSET},
};
use dom0::{lane, shared::SharedPage};
use domain_rt::{
    Shared, control,
    device::{Sbdf, memory_bar},
    mem::map_mmio,
};

/// The BAR of an ivshmem device that holds its memory.
const MEMORY_BAR: u32 = 2;
/// Bytes moved before others get their turn.
const BURST: usize = 16 << 10;

/// The lane, mapped for good.
pub struct Lane(Memory);

struct Memory(Shared<'static>);

impl SharedPage for Memory {
    fn read_u32(&self, offset: usize) -> u32 {
        self.0.load_u32(offset)
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.0.store_u32(offset, value);
    }
    fn read_bytes(&self, offset: usize, into: &mut [u8]) {
        self.0.copy_out(offset, into);
    }
    fn write_bytes(&self, offset: usize, from: &[u8]) {
        self.0.copy_in(offset, from);
    }
}

impl Lane {
    /// Takes the device and its memory. Errors are for a person to read.
    pub fn open(sbdf: u32) -> Result<Self, String> {
        let mut device = DeviceRef { domid: DomId::DOM0.get(), sbdf, ..Default::default() };
        let taken = control::assign_device(&mut device);
        taken.map_err(|e| format!("its device {sbdf:#x} is not to be had: {e}"))?;
        let bar = memory_bar(Sbdf(sbdf), MEMORY_BAR).map_err(|e| e.to_string())?;
        let bar = bar.filter(|bar| bar.bytes >= BYTES as u64).ok_or("its memory is not there")?;
        let memory = map_mmio(bar.maddr, BYTES).map_err(|e| e.to_string())?;
        let memory = Memory(memory.leak());
        let found = (memory.read_u32(MAGIC_OFFSET), memory.read_u32(VERSION_OFFSET));
        if found != (MAGIC, VERSION) {
            return Err(format!("its memory holds something else: {found:x?}"));
        }
        memory.write_u32(IN_USE, 1);
        Ok(Self(memory))
    }

    /// What has arrived; the bell is silenced.
    pub fn read_some(&self, uart: &Uart) -> Vec<u8> {
        uart.read_some();
        let mut bytes = alloc::vec![0; BURST];
        let count = lane::receive(&TO_DOM0, &self.0, &mut bytes);
        // The tool is trusted; a lane that it spoilt carries nothing more.
        bytes.truncate(count.unwrap_or(0));
        bytes
    }

    /// Sends what there is room for; gives how many bytes.
    pub fn transmit(&self, uart: &Uart, world: &Handle) -> usize {
        let mut world = world.borrow_mut();
        let was_full = world.outbox.console_room() == 0;
        let mut sent = 0;
        while sent < BURST && !world.outbox.is_empty() {
            let Ok(done) = lane::send(&TO_TOOL, &self.0, world.outbox.front()) else {
                return 0;
            };
            if done.wake {
                uart.write(&[BELL]);
            }
            if done.bytes == 0 {
                break;
            }
            world.outbox.sent(done.bytes);
            sent += done.bytes;
        }
        if was_full && world.outbox.console_room() > 0 {
            world.wake_consoles();
        }
        sent
    }

    /// Nothing has arrived: whether it may be waited for.
    pub fn may_sleep(&self) -> bool {
        lane::may_sleep(&TO_DOM0, &self.0)
    }
}
