//! Finds and maps the register blocks of a virtio device that the transport keeps to
//! itself.

use crate::pci::Config;
use bulkhead_abi::{Errno, Maddr};
use domain_rt::mem;

/// Kinds of block: the byte at offset 3 of the vendor capability (virtio 1.2, 4.1.4).
pub(super) const COMMON_CFG: u8 = 1;
pub(super) const ISR_CFG: u8 = 3;

/// Where in the capability its place is.
const CAP_BAR: u16 = 4;
const CAP_OFFSET: u16 = 8;

/// Maps the first `bytes` of the block of this kind; `None` where there is none, or it is
/// shorter than that.
pub(super) fn map(config: &Config, kind: u8, bytes: usize) -> Result<Option<mem::Mapping>, Errno> {
    match find(config, kind, bytes as u64) {
        Some(start) => Ok(Some(mem::map_mmio(start, bytes).map_err(Errno::from)?)),
        None => Ok(None),
    }
}

fn find(config: &Config, kind: u8, bytes: u64) -> Option<Maddr> {
    let cap = config.vendor_capability(kind)?;
    let bar = config.bar(config.word(cap + CAP_BAR)? & 0xff)?;
    let offset = u64::from(config.word(cap + CAP_OFFSET)?);
    let end = offset.checked_add(bytes)?;
    (end <= bar.bytes).then(|| Maddr::new(bar.maddr.get() + offset))
}
