//! How a device calls its driver: by a message where it can send one, else by its pin.
//! What calls mean is not looked at here: whoever waits looks at everything.

use super::blk::OpenError;
use super::registers::{self, ISR_CFG};
use crate::pci::Config;
use bulkhead_abi::Errno;
use bulkhead_abi::device::{Describe, INTX};
use domain_rt::device::{self, Sbdf};
use domain_rt::event::{self, Channel};
use domain_rt::mem;

/// MSI-X entry of the queue.
pub(super) const VECTOR: u16 = 0;

/// The interrupt of a device.
pub struct Interrupt {
    channel: Channel,
    pin: Option<Pin>,
}

/// What a pin needs that a message does not: it stays raised until the device is told
/// (virtio 1.2, 4.1.4.5), and the core keeps its line masked until then.
struct Pin {
    pirq: u32,
    /// The ISR status register: reading it lowers the pin.
    isr: mem::Mapping,
}

impl Interrupt {
    /// Asks for the interrupt of a device: its message if it has any, else its pin.
    pub(super) fn new(found: &Describe, config: &Config) -> Result<Self, OpenError> {
        let sbdf = Sbdf(found.sbdf);
        if found.msix_vectors > 0 {
            let channel = event::bind_pirq(device::irq(sbdf, VECTOR.into())?)?;
            return Ok(Self { channel, pin: None });
        }
        let isr = registers::map(config, ISR_CFG, 1)?
            .ok_or(OpenError::Device("no interrupt status register"))?;
        let pirq = device::irq(sbdf, INTX).map_err(|errno| match errno {
            Errno::EBUSY => OpenError::Device("its interrupt line is another device's"),
            Errno::EINVAL => OpenError::Device("it has no interrupt that the core can route"),
            other => OpenError::Core(other),
        })?;
        Ok(Self { channel: event::bind_pirq(pirq)?, pin: Some(Pin { pirq, isr }) })
    }

    /// `message` or `pin`.
    pub fn kind(&self) -> &'static str {
        if self.is_pin() { "pin" } else { "message" }
    }

    pub(super) fn is_pin(&self) -> bool {
        self.pin.is_some()
    }

    /// Waits until the device calls. What it did before this returns is to be looked for
    /// afterwards; what it does later calls again.
    pub async fn wait(&self) {
        self.channel.wait().await;
        let Some(pin) = &self.pin else { return };
        // In this order: a line that is let through before the pin is down fires again
        // for nothing.
        pin.isr.shared().read_u8(0);
        if let Err(errno) = event::eoi(pin.pirq) {
            log::error!("interrupt {} cannot be acknowledged: {errno}", pin.pirq);
        }
    }
}
