//! Debug registers as a guest may set them: its breakpoints can not lie in the core.

use super::{
    DR6_RESET, DR7_RESET,
    context::{GuestContext, in_hole},
};
use bulkhead_abi::{Errno, GuestVa};

/// DR7 bits a guest chooses: enables, length and type of each breakpoint. GD (13) would trap the
/// core's own accesses, the RTM bit (11) and the rest are reserved.
const DR7_GUEST: u64 = 0xffff_03ff;
/// DR6 bits that may be set: B0-B3, BD, BS, BT.
const DR6_GUEST: u64 = 0xe00f;

/// Whether a DR7 asks for a breakpoint on I/O (type 2), which needs CR4.DE.
fn has_io_breakpoint(dr7: u64) -> bool {
    (0..4).any(|n| dr7 >> (16 + 4 * n) & 3 == 2)
}

/// Sets a debug register of the guest; `arch` loads it when the vCPU next goes out.
///
/// Errors: `EPERM` a breakpoint in the hole or not canonical, an I/O breakpoint, or bits above 31
/// in DR6 or DR7; `ENODEV` no such register.
pub fn set(guest: &mut GuestContext, register: u64, value: u64) -> Result<(), Errno> {
    let stored = match register {
        0..=3 if GuestVa::new(value).is_canonical() && !in_hole(value) => value,
        6 if value >> 32 == 0 => value & DR6_GUEST | DR6_RESET,
        7 if value >> 32 == 0 && !has_io_breakpoint(value) => value & DR7_GUEST | DR7_RESET,
        0..=3 | 6 | 7 => return Err(Errno::EPERM),
        _ => return Err(Errno::ENODEV),
    };
    guest.debug[register as usize] = stored;
    Ok(())
}

/// Reads a debug register of the guest; 4 and 5 are other names of 6 and 7.
///
/// Errors: `ENODEV` no such register.
pub fn get(guest: &GuestContext, register: u64) -> Result<u64, Errno> {
    let number = match register {
        0..=3 | 6 | 7 => register,
        4 | 5 => register + 2,
        _ => return Err(Errno::ENODEV),
    };
    Ok(guest.debug[number as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_breakpoints_in_the_core() {
        let mut guest = GuestContext::default();
        assert_eq!(set(&mut guest, 0, 0xffff_8200_0000_0000), Err(Errno::EPERM));
        assert_eq!(set(&mut guest, 1, 0x8000_0000_0000_0000), Err(Errno::EPERM));
        assert_eq!(set(&mut guest, 2, 0xffff_8800_0000_0000), Ok(()));
        assert_eq!(get(&guest, 2), Ok(0xffff_8800_0000_0000));
    }

    #[test]
    fn general_detect_never_reaches_the_processor() {
        let mut guest = GuestContext::default();
        set(&mut guest, 7, 1 << 13 | 1).unwrap();
        assert_eq!(get(&guest, 7), Ok(DR7_RESET | 1));
    }

    #[test]
    fn refuses_io_breakpoints_and_high_bits() {
        let mut guest = GuestContext::default();
        assert_eq!(set(&mut guest, 7, 2 << 20), Err(Errno::EPERM));
        assert_eq!(set(&mut guest, 7, 1 << 32), Err(Errno::EPERM));
        assert_eq!(set(&mut guest, 6, 1 << 32), Err(Errno::EPERM));
        assert_eq!(set(&mut guest, 8, 0), Err(Errno::ENODEV));
        assert_eq!(get(&guest, 8), Err(Errno::ENODEV));
    }
}
