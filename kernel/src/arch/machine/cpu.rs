//! The processor's modes and what it offers: control registers, EFER, SYSCALL, PAT, XCR0.

use super::entry;
use crate::{arch::Features, trap::emulate::msr::PAT_VALUE};
use bulkhead_abi::trap::FLAT_RING3_CS32;
use core::arch::x86_64::__cpuid_count;
use spin::Once;
use x86_64::registers::{
    control::{Cr0, Cr0Flags, Cr4, Cr4Flags},
    model_specific::Msr,
};

const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const CSTAR: u32 = 0xc000_0083;
const SFMASK: u32 = 0xc000_0084;
const SYSENTER_CS: u32 = 0x174;
const PAT: u32 = 0x277;

/// SCE, LME, NXE.
const EFER_BITS: u64 = 1 | 1 << 8 | 1 << 11;
/// Flags that SYSCALL clears: TF, IF, DF, IOPL, NT, RF, AC.
const SYSCALL_MASK: u64 = 1 << 8 | 1 << 9 | 1 << 10 | 3 << 12 | 1 << 14 | 1 << 16 | 1 << 18;

/// Extended state that vCPUs are switched with: x87, SSE, AVX, AVX-512.
const XCR0_WANTED: u64 = 0xe7;

static FEATURES: Once<Features> = Once::new();

/// The processor's answer to CPUID.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let answer = __cpuid_count(leaf, subleaf);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

/// What was found by [`init`]; before it, nothing.
pub fn features() -> Features {
    FEATURES.get().copied().unwrap_or(Features { xcr0: 0, physical_bits: 36, rdtscp: false })
}

fn has(leaf: u32, register: usize, bit: u32) -> bool {
    let [highest, ..] = cpuid(leaf & 0x8000_0000, 0);
    leaf <= highest && cpuid(leaf, 0)[register] >> bit & 1 != 0
}

/// Whether the processor is QEMU's TCG, whose IRET from ring 3 does its stack reads as the
/// supervisor's and so takes a fault on user pages where SMAP is on (ABI notes 0.4).
fn is_tcg() -> bool {
    let [_, b, c, d] = cpuid(0x4000_0000, 0);
    [b, c, d].map(u32::to_le_bytes) == [*b"TCGT", *b"CGTC", *b"GTCG"]
}

/// Physical address width.
fn physical_bits() -> u32 {
    let [highest, ..] = cpuid(0x8000_0000, 0);
    if highest >= 0x8000_0008 { (cpuid(0x8000_0008, 0)[0] & 0xff).clamp(32, 46) } else { 36 }
}

/// Sets the modes of this CPU. Its descriptor tables are loaded.
///
/// Errors: the name of a feature that the core can not be without.
pub fn init() -> Result<(), &'static str> {
    if !has(0x8000_0001, 3, 20) {
        return Err("NX");
    }
    if !has(0x8000_0001, 3, 11) {
        return Err("SYSCALL");
    }
    let mut cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION
        | Cr4Flags::MACHINE_CHECK_EXCEPTION
        | Cr4Flags::PAGE_GLOBAL
        | Cr4Flags::OSFXSR
        | Cr4Flags::OSXMMEXCPT_ENABLE
        | Cr4Flags::DEBUGGING_EXTENSIONS;
    cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, has(7, 1, 7));
    cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, has(7, 1, 20) && !is_tcg());
    cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, has(7, 2, 2));
    cr4.set(Cr4Flags::OSXSAVE, has(1, 2, 26));
    let cr0 = Cr0Flags::PROTECTED_MODE_ENABLE
        | Cr0Flags::MONITOR_COPROCESSOR
        | Cr0Flags::EXTENSION_TYPE
        | Cr0Flags::NUMERIC_ERROR
        | Cr0Flags::WRITE_PROTECT
        | Cr0Flags::ALIGNMENT_MASK
        | Cr0Flags::PAGING;
    // SAFETY: paging, PAE and long mode stay as they are; the core reaches no user page through a linear
    // address, executes none, and its own pages are mapped with the rights it uses.
    unsafe {
        Cr4::write(cr4);
        Cr0::write(cr0);
        Msr::new(EFER).write(EFER_BITS);
        Msr::new(PAT).write(PAT_VALUE);
        // SYSENTER with a null code selector is a #GP.
        Msr::new(SYSENTER_CS).write(0);
        let star = u64::from(super::tables::CORE_CS) << 32 | u64::from(FLAT_RING3_CS32) << 48;
        Msr::new(STAR).write(star);
        let (long, compatible) = entry::syscalls();
        Msr::new(LSTAR).write(long);
        Msr::new(CSTAR).write(compatible);
        Msr::new(SFMASK).write(SYSCALL_MASK);
    }
    let mut xcr0 = 0;
    if has(1, 2, 26) {
        let [low, _, _, high] = cpuid(0xd, 0);
        xcr0 = (u64::from(high) << 32 | u64::from(low)) & XCR0_WANTED;
        if xcr0 & 0xe0 != 0xe0 || xcr0 & 4 == 0 {
            xcr0 &= 7;
        }
        super::guest::write_xcr0(xcr0);
    }
    let (physical_bits, rdtscp) = (physical_bits(), has(0x8000_0001, 3, 27));
    FEATURES.call_once(|| Features { xcr0, physical_bits, rdtscp });
    Ok(())
}

/// Waits for an interrupt and gives its vector.
pub fn wait_for_interrupt() -> u8 {
    loop {
        // An interrupt that comes is taken by the stub, noted, and ends HLT.
        x86_64::instructions::interrupts::enable_and_hlt();
        x86_64::instructions::interrupts::disable();
        if let Some(vector) = entry::take_interrupt() {
            return vector;
        }
    }
}
