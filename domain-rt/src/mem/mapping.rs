//! Mappings of frames that are not this domain's own memory: another domain's
//! (Dom0 only), device registers, frames of the core.

use super::{Area, pfn_of, pte};
use crate::shared::Shared;
use bulkhead_abi::errno::Errno;
use bulkhead_abi::{DomId, Maddr, Mfn, PAGE_SIZE};
use core::fmt;

/// Why frames could not be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapError {
    /// Which of the frames, by position, was refused.
    pub index: usize,
    /// What the core said.
    pub errno: Errno,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frame #{} refused: {}", self.index, self.errno)
    }
}

impl core::error::Error for MapError {}

impl From<MapError> for Errno {
    fn from(error: MapError) -> Self {
        error.errno
    }
}

/// Frames mapped in a row; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    area: Area,
    offset: usize,
    bytes: usize,
}

impl Mapping {
    /// The mapped bytes.
    pub fn shared(&self) -> Shared<'_> {
        let va = self.area.va(0) as usize + self.offset;
        // SAFETY: mapped until `self` is dropped; references into it are never made.
        unsafe { Shared::new(va as *mut u8, self.bytes) }
    }

    /// Length in bytes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps the mapping for good.
    pub fn leak(self) -> Shared<'static> {
        let va = self.area.va(0) as usize + self.offset;
        let bytes = self.bytes;
        core::mem::forget(self);
        // SAFETY: never unmapped.
        unsafe { Shared::new(va as *mut u8, bytes) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.area.clear(self.area.count());
    }
}

/// Maps `frames` of `domain`, another domain that the caller controls.
///
/// # Errors
/// `EINVAL` for own frames, `EPERM` or `ESRCH` from the core.
pub fn map_foreign(domain: DomId, frames: &[Mfn], writable: bool) -> Result<Mapping, MapError> {
    if let Some(index) = frames.iter().position(|&mfn| pfn_of(mfn).is_some()) {
        // An alias of own memory would let safe code change what Rust owns.
        return Err(MapError { index, errno: Errno::EINVAL });
    }
    let flags = if writable { pte::DATA } else { pte::READ_ONLY };
    map(frames.iter().copied(), flags, domain)
}

/// Maps device registers uncached, from `start` for `bytes`.
///
/// # Errors
/// What the core says of frames that are no BAR of this domain.
pub fn map_mmio(start: Maddr, bytes: usize) -> Result<Mapping, MapError> {
    let first = start.mfn();
    let pages = (start.offset() + bytes).div_ceil(PAGE_SIZE);
    let frames = (0..pages as u64).map_while(|n| first.checked_add(n));
    let mut mapping = map(frames, pte::DATA | pte::UNCACHED, DomId::SELF)?;
    mapping.offset = start.offset();
    mapping.bytes = bytes;
    Ok(mapping)
}

/// Maps frames that the core shares with this domain, writable.
pub(crate) fn map_shared_by_core(frames: &[Mfn]) -> Result<Mapping, MapError> {
    map(frames.iter().copied(), pte::DATA, DomId::SELF)
}

fn map(
    frames: impl Iterator<Item = Mfn> + Clone,
    flags: u64,
    domain: DomId,
) -> Result<Mapping, MapError> {
    let count = frames.clone().count();
    let area = Area::new(count.max(1)).map_err(|errno| MapError { index: 0, errno })?;
    let values = frames.map(|mfn| mfn.maddr().get() | flags);
    if let Err((done, errno)) = area.set(0, values, domain) {
        area.clear(done);
        return Err(MapError { index: done, errno });
    }
    Ok(Mapping { area, offset: 0, bytes: count * PAGE_SIZE })
}
