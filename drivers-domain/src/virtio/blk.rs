//! Finding a virtio block device, waking it up, and passing requests through.

use super::interrupt::{Interrupt, VECTOR};
use super::registers::{self, COMMON_CFG};
use super::slot::Slot;
use crate::dma::{Machine, Window};
use crate::pci::Config;
use crate::platform::GrantBuffer;
use alloc::boxed::Box;
use alloc::vec::Vec;
use bitflags::bitflags;
use blkback::{BlockDevice, Completion, DeviceFacts, Job, Token};
use bulkhead_abi::device::Describe;
use core::fmt;
use domain_rt::device::Sbdf;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::pci::bus::PciRoot;

/// Descriptors of the queue: what QEMU offers, and enough for seven requests of 32
/// segments.
const QUEUE_SIZE: usize = 256;
const QUEUE: u16 = 0;
const NO_VECTOR: u16 = 0xffff;

const VENDOR: u16 = 0x1af4;
const BLOCK_TRANSITIONAL: u16 = 0x1001;
const BLOCK: u16 = 0x1042;

/// Registers of the common configuration (section 4.1.4.3).
const CONFIG_MSIX_VECTOR: usize = 16;
const QUEUE_SELECT: usize = 22;
const QUEUE_MSIX_VECTOR: usize = 26;

/// Device configuration (section 5.2.4).
const CAPACITY: usize = 0;
const MAX_DISCARD_SECTORS: usize = 36;

bitflags! {
    /// Feature bits that are understood here.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Feature: u64 {
        const READ_ONLY = 1 << 5;
        const FLUSH = 1 << 9;
        const DISCARD = 1 << 13;
        const VERSION_1 = 1 << 32;
    }
}

/// Whether a device is a virtio block device.
pub fn is_block(found: &Describe) -> bool {
    found.vendor == VENDOR && matches!(found.device, BLOCK | BLOCK_TRANSITIONAL)
}

/// Why a device cannot be driven.
#[derive(Debug)]
pub enum OpenError {
    /// The core refused something.
    Core(bulkhead_abi::Errno),
    /// It is not a usable virtio device.
    Device(&'static str),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Core(errno) => write!(f, "the core refused: {errno}"),
            Self::Device(what) => f.write_str(what),
        }
    }
}

impl From<bulkhead_abi::Errno> for OpenError {
    fn from(errno: bulkhead_abi::Errno) -> Self {
        Self::Core(errno)
    }
}

/// A virtio block device.
pub struct VirtioBlk {
    transport: PciTransport,
    queue: Box<VirtQueue<Machine, QUEUE_SIZE>>,
    window: Window,
    facts: DeviceFacts,
    max_discard: u64,
    /// By name on the queue.
    slots: Vec<Option<Slot>>,
}

impl VirtioBlk {
    /// Resets a device and gets it going. Gives its interrupt, too.
    pub fn open(found: &Describe) -> Result<(Self, Interrupt), OpenError> {
        let config = Config::new(Sbdf(found.sbdf))?;
        config.enable()?;
        let mut root = PciRoot::new(config.clone());
        let mut transport = PciTransport::new::<Machine, _>(&mut root, config.function())
            .map_err(|_| OpenError::Device("no usable virtio capabilities"))?;
        let features = transport.begin_init(Feature::all());
        if !features.contains(Feature::VERSION_1) {
            return Err(OpenError::Device("a legacy virtio device"));
        }
        let interrupt = Interrupt::new(found, &config)?;
        if !interrupt.is_pin() {
            route(&config)?;
        }
        let queue = VirtQueue::new(&mut transport, QUEUE, false, false)
            .map_err(|_| OpenError::Device("no queue of 256 descriptors"))?;
        let (facts, max_discard) = read_facts(&transport, features)?;
        transport.finish_init();
        let device = Self {
            transport,
            queue: Box::new(queue),
            window: Window::default(),
            facts,
            max_discard,
            slots: (0..QUEUE_SIZE).map(|_| None).collect(),
        };
        Ok((device, interrupt))
    }
}

/// Lets the queue interrupt through its MSI-X entry, and nothing else interrupt at all.
fn route(config: &Config) -> Result<(), OpenError> {
    let registers = registers::map(config, COMMON_CFG, QUEUE_MSIX_VECTOR + 2)?
        .ok_or(OpenError::Device("no common configuration"))?;
    let common = registers.shared();
    common.write_u16(CONFIG_MSIX_VECTOR, NO_VECTOR);
    common.write_u16(QUEUE_SELECT, QUEUE);
    common.write_u16(QUEUE_MSIX_VECTOR, VECTOR);
    match common.read_u16(QUEUE_MSIX_VECTOR) {
        VECTOR => Ok(()),
        _ => Err(OpenError::Device("the device has no interrupt to give")),
    }
}

fn read_facts(
    transport: &PciTransport,
    features: Feature,
) -> Result<(DeviceFacts, u64), OpenError> {
    let unreadable = |_| OpenError::Device("its configuration cannot be read");
    let word = |offset| transport.read_config_space::<u32>(offset);
    let capacity = transport
        .read_consistent(|| Ok(u64::from(word(CAPACITY)?) | u64::from(word(CAPACITY + 4)?) << 32));
    let max_discard = match features.contains(Feature::DISCARD) {
        true => word(MAX_DISCARD_SECTORS).map_err(unreadable)?,
        false => 0,
    };
    let facts = DeviceFacts {
        sectors: capacity.map_err(unreadable)?,
        read_only: features.contains(Feature::READ_ONLY),
        flush: features.contains(Feature::FLUSH),
        discard: max_discard > 0,
    };
    Ok((facts, max_discard.into()))
}

impl BlockDevice for VirtioBlk {
    type Buffer = GrantBuffer;

    fn facts(&self) -> DeviceFacts {
        self.facts
    }

    fn submit(&mut self, token: Token, job: Job<GrantBuffer>) -> Result<(), Job<GrantBuffer>> {
        // A discard is advice: what is longer than the device takes is cut.
        let job = match job {
            Job::Discard { sector, sectors } => {
                Job::Discard { sector, sectors: sectors.min(self.max_discard) }
            }
            other => other,
        };
        let mut slot = Slot::new(token, job);
        if slot.descriptors() > self.queue.available_desc() {
            return Err(slot.into_job());
        }
        let Some(name) = slot.add(&mut self.queue, &mut self.window) else {
            return Err(slot.into_job());
        };
        if let Some(place) = self.slots.get_mut(usize::from(name)) {
            *place = Some(slot);
        }
        Ok(())
    }

    fn kick(&mut self) {
        if self.queue.should_notify() {
            self.transport.notify(QUEUE);
        }
    }

    fn poll(&mut self) -> Option<Completion<GrantBuffer>> {
        let name = self.queue.peek_used()?;
        let slot = self.slots.get_mut(usize::from(name)).and_then(Option::take);
        // A device that answers what it was not asked may still write anywhere it was
        // ever told of: this domain must not go on.
        let mut slot = slot.expect("the device answers only what it was asked");
        let popped = slot.pop(&mut self.queue, &mut self.window, name);
        assert!(popped, "the request that was seen is taken");
        Some(slot.complete())
    }
}
