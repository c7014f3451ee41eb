//! The part of a device that is one virtual disk. Pure arithmetic on numbers from a
//! hostile front end.

use crate::DeviceFacts;
use core::fmt;

/// Sectors of a device that a front end may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    first: u64,
    sectors: u64,
    writable: bool,
}

/// A request leaves the virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange;

/// The device does not have these sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeError {
    /// First sector wanted.
    pub first: u64,
    /// Sectors wanted; 0 for all that follow.
    pub sectors: u64,
    /// Sectors there are.
    pub device_sectors: u64,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sectors from {} on do not fit a device of {}",
            self.sectors, self.first, self.device_sectors
        )
    }
}

impl Range {
    /// `sectors` sectors from `first` on; 0 for all that follow. Writable if asked for
    /// and the device is.
    pub fn new(
        facts: &DeviceFacts,
        first: u64,
        sectors: u64,
        writable: bool,
    ) -> Result<Self, RangeError> {
        let error = RangeError { first, sectors, device_sectors: facts.sectors };
        let left = facts.sectors.checked_sub(first).ok_or(error)?;
        let sectors = if sectors == 0 { left } else { sectors };
        if sectors == 0 || sectors > left {
            return Err(error);
        }
        Ok(Self { first, sectors, writable: writable && !facts.read_only })
    }

    /// Length of the virtual disk, sectors.
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether it may be changed.
    pub const fn is_writable(&self) -> bool {
        self.writable
    }

    /// The device's sector for `count` sectors from `sector` of the virtual disk on.
    pub const fn locate(&self, sector: u64, count: u64) -> Result<u64, OutOfRange> {
        match sector.checked_add(count) {
            Some(end) if end <= self.sectors => Ok(self.first + sector),
            _ => Err(OutOfRange),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts(sectors: u64) -> DeviceFacts {
        DeviceFacts { sectors, read_only: false, flush: true, discard: true }
    }

    #[test]
    fn refuses_a_range_that_the_device_does_not_have() {
        assert!(Range::new(&facts(10), 11, 0, true).is_err());
        assert!(Range::new(&facts(10), 10, 0, true).is_err());
        assert!(Range::new(&facts(10), 4, 7, true).is_err());
        assert!(Range::new(&facts(10), 4, u64::MAX, true).is_err());
        assert_eq!(Range::new(&facts(10), 4, 0, true).unwrap().sectors(), 6);
    }

    #[test]
    fn a_read_only_device_makes_a_read_only_range() {
        let mut facts = facts(10);
        facts.read_only = true;
        assert!(!Range::new(&facts, 0, 0, true).unwrap().is_writable());
    }

    proptest! {
        #[test]
        fn no_sector_outside_the_range_is_ever_located(
            size in 1_u64..50, first in 0_u64..50, wanted in 0_u64..50,
            sector in prop_oneof![0_u64..60, any::<u64>()],
            count in prop_oneof![0_u64..60, any::<u64>()],
        ) {
            let Ok(range) = Range::new(&facts(size), first, wanted, true) else { return Ok(()) };
            // The oracle has 128 bits and does not overflow.
            let end = u128::from(sector) + u128::from(count);
            match range.locate(sector, count) {
                Ok(at) => {
                    prop_assert!(at >= first && u128::from(at) == u128::from(first + sector));
                    prop_assert!(end <= u128::from(range.sectors()) && first + range.sectors() <= size);
                }
                Err(OutOfRange) => prop_assert!(end > u128::from(range.sectors())),
            }
        }
    }
}
