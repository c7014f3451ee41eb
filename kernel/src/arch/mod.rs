//! Everything that needs the machine and nothing that needs judgement: boot,
//! descriptor tables, entry code, APIC, TSC, port I/O. It knows registers and
//! addresses; it does not know what a domain is.
//!
//! The rooms call the functions below. On the machine they are in `machine`; on the
//! host the same names are stand-ins (`fake`) that record what was asked, so that every
//! other room compiles and runs under ordinary tests.

#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
pub use machine::{
    apic::{eoi, ioapic_mask, ioapic_set, msi_address_data, set_deadline},
    clock::{now, ns_at, ns_of, time_scale, tsc, tsc_khz, wallclock_ns_at_boot},
    cpu::{cpuid, features, wait_for_interrupt},
    entry::stack_top,
    exit_machine,
    guest::{
        fault_address, load_debug, load_fpu, load_segments, load_user_gs, read_base, save_fpu,
        save_segments, set_task_switched, swap_gs_bases, take_debug_status, write_base,
        write_tsc_aux, write_xcr0,
    },
    paging::{flush_all, flush_page, leave_root, load_idle_root, load_root, map_device},
    pci::{pci_read, pci_write},
    serial::console_write,
    tables::{ldt_window_page, load_tables, set_serial_access},
};

#[cfg(not(target_os = "none"))]
#[path = "tests/fake.rs"]
pub mod fake;
#[cfg(not(target_os = "none"))]
pub use fake::*;

// Without a machine there is nothing to measure but in its own tests.
#[cfg(any(target_os = "none", test))]
mod measure;
mod window;
pub use window::DeviceWindow;

/// First interrupt vector for devices.
pub const FIRST_DEVICE_VECTOR: u8 = 0x30;
/// Last interrupt vector for devices.
pub const LAST_DEVICE_VECTOR: u8 = 0xdf;
/// Vector of the local APIC's timer.
pub const TIMER_VECTOR: u8 = 0xf0;
/// Vector of the local APIC's spurious interrupt.
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// What the processor can do that the rooms must know of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Bits of XCR0 that guests may set; 0 without XSAVE.
    pub xcr0: u64,
    /// Width of machine addresses in bits.
    pub physical_bits: u32,
    /// RDTSCP and TSC_AUX exist.
    pub rdtscp: bool,
}

/// Segment bases of the running vCPU, each by its model-specific register. They stay in the
/// processor while the core runs: the core uses none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Base {
    Fs = 0xc000_0100,
    /// Of the mode that the vCPU is in.
    Gs = 0xc000_0101,
    /// That SWAPGS would bring.
    InactiveGs = 0xc000_0102,
}

/// Nanoseconds of `cycles`, by the arithmetic that guests use on their
/// `vcpu_time_info` (ABI notes 7.1), so that core and guest can not disagree.
pub const fn scale(cycles: u64, mul: u32, shift: i8) -> u64 {
    let shifted = if shift < 0 {
        cycles as u128 >> shift.unsigned_abs()
    } else {
        (cycles as u128) << shift as u32
    };
    ((shifted * mul as u128) >> 32) as u64
}

/// The `(mul, shift)` by which cycles at `khz` become nanoseconds: `mul` has its top bit set.
pub const fn scale_of(khz: u64) -> (u32, i8) {
    // ns per cycle = 10^6 / khz = mul / 2^32 * 2^shift.
    let mut shift = 0i8;
    let mut ratio: u128 = (1_000_000u128 << 32) / khz as u128;
    while ratio >= 1 << 32 {
        ratio >>= 1;
        shift += 1;
    }
    while ratio < 1 << 31 {
        shift -= 1;
        ratio = (1_000_000u128 << (32 + shift.unsigned_abs())) / khz as u128;
    }
    (ratio as u32, shift)
}

#[cfg(test)]
mod tests {
    use super::{scale, scale_of};
    use proptest::prelude::{prop_assert, proptest};

    proptest! {
        #[test]
        fn scaled_cycles_are_nanoseconds_within_a_millionth(khz in 100_000u64..8_000_000, ms in 1u64..100_000_000) {
            let (mul, shift) = scale_of(khz);
            let cycles = u128::from(khz) * u128::from(ms);
            let want = u128::from(ms) * 1_000_000;
            let got = u128::from(scale(u64::try_from(cycles).unwrap(), mul, shift));
            prop_assert!(got.abs_diff(want) <= want / 1_000_000 + 1, "{got} for {want}");
            prop_assert!(mul >> 31 == 1);
        }

        #[test]
        fn time_never_runs_backwards(khz in 100_000u64..8_000_000, at in 0u64..1 << 60, step in 0u64..1 << 40) {
            let (mul, shift) = scale_of(khz);
            prop_assert!(scale(at + step, mul, shift) >= scale(at, mul, shift));
        }
    }
}
