//! CPUID as a guest's kernel sees it: the processor's answer without what the core does
//! not virtualise, and the leaves that name the hypervisor. ABI notes 6.1.

use crate::arch::{Features, scale_of};

/// What the answer depends on besides the processor.
pub struct View {
    pub features: Features,
    /// The guest's XCR0.
    pub xcr0: u64,
    pub tsc_khz: u64,
    pub incarnation: u32,
}

const fn bits<const N: usize>(numbers: [u32; N]) -> u32 {
    let mut all = 0;
    let mut at = 0;
    while at < N {
        all |= 1 << numbers[at];
        at += 1;
    }
    all
}

/// Leaf 1 ECX: MONITOR, VMX, SMX, EST, TM2, CNXT-ID, SDBG, PDCM, PCID, DCA, x2APIC, TSC-deadline.
const LEAF1_ECX_OFF: u32 = bits([2, 3, 4, 5, 6, 7, 8, 10, 11, 14, 15, 17, 18, 21, 24]);
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_ECX_XSAVE: u32 = bits([26, 27]);
const LEAF1_ECX_AVX_FAMILY: u32 = bits([12, 28, 29]);
/// Leaf 1 EDX: VME, PSE, MCE, APIC, SEP, MTRR, PGE, MCA, PSE36, PSN, DS, ACPI, TM, IA64, PBE. A kernel
/// that is told of machine checks reads their banks, and panics where those are not.
const LEAF1_EDX_OFF: u32 = bits([1, 3, 7, 9, 11, 12, 13, 14, 17, 18, 21, 22, 28, 29, 30, 31]);
/// Leaf 7 EBX that stays: BMI1, AVX2, BMI2, ERMS, AVX-512 F/DQ, RDSEED, ADX, AVX-512 IFMA, CLFLUSHOPT,
/// CLWB, AVX-512 CD, SHA, AVX-512 BW/VL.
const LEAF7_EBX_ON: u32 = bits([3, 5, 8, 9, 16, 17, 18, 19, 21, 23, 24, 28, 29, 30, 31]);
/// Leaf 7 ECX that stays: AVX-512 VBMI, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ, RDPID
/// (with TSC_AUX), MOVDIRI.
const LEAF7_ECX_ON: u32 = bits([1, 6, 8, 9, 10, 11, 12, 14, 22, 27]);
/// Leaf 7 EDX that stays: FSRM, MD_CLEAR, SERIALIZE.
const LEAF7_EDX_ON: u32 = bits([4, 10, 14]);
/// 0x80000001 ECX: SVM, EXTAPIC, CR8 legacy, OSVW, IBS, SKINIT, WDT, LWP, NODEID, TOPOEXT, PERFCTR (both, and
/// PTSC, L2I), MWAITX.
const EXT1_ECX_OFF: u32 = bits([2, 3, 4, 9, 10, 12, 13, 15, 19, 22, 23, 24, 27, 28, 29]);
/// 0x80000001 EDX: as leaf 1, and 1 GiB pages; RDTSCP needs TSC_AUX.
const EXT1_EDX_OFF: u32 = bits([1, 3, 7, 9, 12, 13, 14, 17, 26]);
const EXT1_EDX_RDTSCP: u32 = 1 << 27;

/// "XenVMMXenVMM".
const SIGNATURE: [u32; 3] = [0x566e_6558, 0x6558_4d4d, 0x4d4d_566e];
const HYPERVISOR_BASE: u32 = 0x4000_0000;

/// The answer to CPUID `leaf`, `subleaf`, from that of the processor.
pub fn leaf(
    native: impl Fn(u32, u32) -> [u32; 4],
    view: &View,
    leaf: u32,
    subleaf: u32,
) -> [u32; 4] {
    match leaf {
        0x4000_0000..=0x4fff_ffff => return hypervisor(view, leaf, subleaf),
        // Of an unknown extended range the processor says nothing; one of ours ends at 21.
        0x5000_0000..=0x7fff_ffff => return [0; 4],
        _ => {}
    }
    let mut out = native(leaf, subleaf);
    let [a, b, c, d] = &mut out;
    match leaf {
        0 => *a = (*a).min(0xd),
        1 => {
            *c = *c & !LEAF1_ECX_OFF | LEAF1_ECX_HYPERVISOR;
            if view.features.xcr0 == 0 {
                *c &= !(LEAF1_ECX_XSAVE | LEAF1_ECX_AVX_FAMILY);
            } else {
                *c |= LEAF1_ECX_XSAVE;
            }
            *d &= !LEAF1_EDX_OFF;
            // One vCPU per package: no initial APIC ids are given out.
            *b = *b & 0xffff | 1 << 16;
        }
        7 => feature_leaf(&mut out, view, subleaf),
        0xd => extended_state(&native, &mut out, view, subleaf),
        // Thermal, performance counters, topology, and the rest above: not virtualised.
        5 | 6 | 9..=0xc | 0xe..=0x3fff_ffff => out = [0; 4],
        0x8000_0000 => *a = (*a).min(0x8000_0021),
        0x8000_0001 => {
            *c &= !EXT1_ECX_OFF;
            *d &= !EXT1_EDX_OFF;
            if !view.features.rdtscp {
                *d &= !EXT1_EDX_RDTSCP;
            }
        }
        // Invariant TSC is not promised, power management not offered.
        0x8000_0007 => out = [0; 4],
        // Address widths; the feature word speaks of speculation control, which is not offered,
        // and of CLZERO and XSAVEERPTR, which are harmless.
        0x8000_0008 => {
            *a &= 0xffff;
            *b &= bits([0, 2]);
            *c = 0;
            *d = 0;
        }
        0x8000_0002..=0x8000_0006 => {}
        _ => out = [0; 4],
    }
    out
}

fn feature_leaf(out: &mut [u32; 4], view: &View, subleaf: u32) {
    const AVX2: u32 = 1 << 5;
    const AVX512_EBX: u32 = bits([16, 17, 21, 28, 30, 31]);
    const AVX512_ECX: u32 = bits([1, 6, 11, 12, 14]);
    const RDPID: u32 = 1 << 22;
    let [a, b, c, d] = out;
    match subleaf {
        0 => {
            *a = (*a).min(1);
            *b &= LEAF7_EBX_ON;
            *c &= LEAF7_ECX_ON;
            *d &= LEAF7_EDX_ON;
            if view.features.xcr0 & 4 == 0 {
                *b &= !AVX2;
            }
            if view.features.xcr0 & 0xe0 == 0 {
                *b &= !AVX512_EBX;
                *c &= !AVX512_ECX;
            }
            if !view.features.rdtscp {
                *c &= !RDPID;
            }
        }
        // AVX-VNNI and the short forms of string moves.
        1 => *out = [*a & bits([4, 10, 11, 12]), 0, 0, 0],
        _ => *out = [0; 4],
    }
}

/// Leaf 0xd: sizes for the XCR0 that the guest has, and for all it may set.
fn extended_state(
    native: &impl Fn(u32, u32) -> [u32; 4],
    out: &mut [u32; 4],
    view: &View,
    subleaf: u32,
) {
    let offered = view.features.xcr0;
    if offered == 0 {
        *out = [0; 4];
        return;
    }
    let size = |state: u64| {
        (2..63).filter(|n| state >> n & 1 != 0).fold(576, |size: u32, n| {
            let [bytes, offset, ..] = native(0xd, n);
            size.max(bytes.saturating_add(offset))
        })
    };
    match subleaf {
        0 => *out = [offered as u32, size(view.xcr0), size(offered), (offered >> 32) as u32],
        // XSAVEOPT and XGETBV(1); no compacted form, no supervisor state.
        1 => *out = [out[0] & bits([0, 2]), 0, 0, 0],
        n if n < 63 && offered >> n & 1 != 0 => {}
        _ => *out = [0; 4],
    }
}

fn hypervisor(view: &View, leaf: u32, subleaf: u32) -> [u32; 4] {
    let [b, c, d] = SIGNATURE;
    let khz = view.tsc_khz as u32;
    match (leaf - HYPERVISOR_BASE, subleaf) {
        (0, _) => [HYPERVISOR_BASE + 5, b, c, d],
        (1, _) => [bulkhead_abi::version::VERSION as u32, 0, 0, 0],
        (2, _) => [1, super::msr::HYPERCALL_PAGE, 1, 0],
        // The TSC is native; mode 2 says so.
        (3, 0) => [u32::from(view.features.rdtscp) << 2, 2, khz, view.incarnation],
        (3, 1) => {
            let (mul, shift) = scale_of(view.tsc_khz.max(1));
            [0, 0, mul, shift as u32]
        }
        (3, 2) => [khz, 0, 0, 0],
        (5, _) => [0, view.features.physical_bits, 0, 0],
        _ => [0; 4],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_ones(_leaf: u32, _subleaf: u32) -> [u32; 4] {
        [u32::MAX; 4]
    }

    fn view(xcr0: u64) -> View {
        let features = Features { xcr0, physical_bits: 40, rdtscp: true };
        View { features, xcr0: 3, tsc_khz: 2_000_000, incarnation: 1 }
    }

    /// `(leaf, subleaf, register, bit)` that must never show, by the ABI notes.
    const HIDDEN: &[(u32, u32, usize, u32)] = &[
        (1, 0, 2, 3),
        (1, 0, 2, 5),
        (1, 0, 2, 17),
        (1, 0, 2, 21),
        (1, 0, 2, 24),
        (1, 0, 3, 3),
        (1, 0, 3, 7),
        (1, 0, 3, 9),
        (1, 0, 3, 12),
        (1, 0, 3, 13),
        (1, 0, 3, 14),
        (7, 0, 1, 0),
        (7, 0, 1, 7),
        (7, 0, 1, 10),
        (7, 0, 1, 14),
        (7, 0, 1, 20),
        (7, 0, 2, 2),
        (7, 0, 2, 3),
        (7, 0, 2, 4),
        (7, 0, 2, 7),
        (7, 0, 2, 16),
        (7, 0, 3, 20),
        (7, 0, 3, 26),
        (0x8000_0001, 0, 2, 2),
        (0x8000_0001, 0, 3, 26),
    ];

    #[test]
    fn what_the_core_does_not_virtualise_is_hidden() {
        for &(number, sub, register, bit) in HIDDEN {
            let out = leaf(all_ones, &view(7), number, sub);
            assert_eq!(
                out[register] >> bit & 1,
                0,
                "leaf {number:#x} register {register} bit {bit}"
            );
        }
    }

    #[test]
    fn what_a_stock_kernel_needs_is_there() {
        let out = leaf(all_ones, &view(7), 1, 0);
        for bit in [0, 4, 5, 6, 8, 15, 16, 19, 24, 25, 26] {
            assert_eq!(out[3] >> bit & 1, 1, "EDX {bit}");
        }
        for bit in [13, 26, 27, 31] {
            assert_eq!(out[2] >> bit & 1, 1, "ECX {bit}");
        }
        let out = leaf(all_ones, &view(7), 0x8000_0001, 0);
        assert_eq!(out[3] & bits([11, 20, 29]), bits([11, 20, 29]));
    }

    #[test]
    fn it_says_that_it_is_xen_at_one_place_only() {
        assert_eq!(
            leaf(all_ones, &view(7), 0x4000_0000, 0),
            [0x4000_0005, 0x566e_6558, 0x6558_4d4d, 0x4d4d_566e]
        );
        for n in 1..256 {
            assert_eq!(leaf(all_ones, &view(7), 0x4000_0000 + 0x100 * n, 0), [0; 4]);
        }
    }

    #[test]
    fn the_size_of_the_state_follows_xcr0() {
        let native = |number, sub| {
            if (number, sub) == (0xd, 2) { [256, 576, 0, 0] } else { [u32::MAX; 4] }
        };
        let mut view = view(7);
        assert_eq!(leaf(native, &view, 0xd, 0), [7, 576, 832, 0]);
        view.xcr0 = 7;
        assert_eq!(leaf(native, &view, 0xd, 0)[1], 832);
    }
}
