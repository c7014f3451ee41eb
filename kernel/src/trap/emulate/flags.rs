//! Arithmetic flags of the emulated instructions.

use super::decode::mask;

pub const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
pub const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
/// Direction of string instructions.
pub const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
const ALL: u64 = CF | PF | AF | ZF | SF | OF;

fn of_result(result: u64, width: u32) -> u64 {
    let result = result & mask(width);
    let parity = if (result as u8).count_ones().is_multiple_of(2) { PF } else { 0 };
    let zero = if result == 0 { ZF } else { 0 };
    let sign = if result >> (8 * width - 1) & 1 != 0 { SF } else { 0 };
    parity | zero | sign
}

/// After AND, OR and XOR.
pub fn logic(rflags: u64, result: u64, width: u32) -> u64 {
    rflags & !ALL | of_result(result, width)
}

/// After comparing `a` with `b`, as CMP and CMPXCHG do.
pub fn compare(rflags: u64, a: u64, b: u64, width: u32) -> u64 {
    let (a, b) = (a & mask(width), b & mask(width));
    let result = a.wrapping_sub(b) & mask(width);
    let carry = if a < b { CF } else { 0 };
    let adjust = if (a ^ b ^ result) & 0x10 != 0 { AF } else { 0 };
    let top = 8 * width - 1;
    let overflow = if ((a ^ b) & (a ^ result)) >> top & 1 != 0 { OF } else { 0 };
    rflags & !ALL | of_result(result, width) | carry | adjust | overflow
}

/// After BTS, BTR and BTC: the old bit.
pub fn bit(rflags: u64, was_set: bool) -> u64 {
    rflags & !CF | if was_set { CF } else { 0 }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[cfg(test)]
#[allow(unsafe_code, reason = "the oracle is the host's processor")]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    /// What the processor of the host says.
    #[allow(unsafe_code, reason = "asks the host's processor, in a test")]
    fn hardware_compare(a: u64, b: u64) -> u64 {
        let flags: u64;
        // SAFETY: compares two registers and reads the flags through the stack.
        unsafe {
            core::arch::asm!("cmp {a}, {b}", "pushfq", "pop {flags}", a = in(reg) a, b = in(reg) b,
                flags = out(reg) flags);
        }
        flags & ALL
    }

    proptest! {
        #[test]
        fn comparing_sets_the_flags_that_the_processor_sets(a in any::<u64>(), b in any::<u64>()) {
            prop_assert_eq!(compare(0, a, b, 8), hardware_compare(a, b));
            prop_assert_eq!(compare(0, a, a, 8), hardware_compare(a, a));
            // A narrow operand is the wide one shifted to the top, the adjust flag excepted.
            let wide = hardware_compare(a << 56, b << 56) & !(AF | PF);
            prop_assert_eq!(compare(0, a, b, 1) & !(AF | PF), wide);
        }
    }
}
