//! Stand-ins for the machine on the host: time that tests move, and a record of what
//! was asked. One machine per test thread.

use super::{Base, Features};
use crate::{state::CpuId, trap::context::FpuArea};
use bulkhead_abi::{Maddr, Mfn, Ns, vcpu::UserRegs};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    vec::Vec,
};

/// One thing the core asked of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Deadline(Option<Ns>),
    PciWrite { sbdf: u32, offset: u16, width: u8, value: u32 },
    IoApicSet { gsi: u32, vector: u8, level: bool, low_active: bool, masked: bool },
    IoApicMask { gsi: u32, masked: bool },
    Eoi,
    LeaveRoot(Mfn),
}

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
    static RECORD: RefCell<Vec<Asked>> = const { RefCell::new(Vec::new()) };
    static CONSOLE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static PCI: RefCell<BTreeMap<(u32, u16), u8>> = const { RefCell::new(BTreeMap::new()) };
}

fn record(asked: Asked) {
    RECORD.with_borrow_mut(|all| all.push(asked));
}

/// Takes what was recorded on this thread.
pub fn take_record() -> Vec<Asked> {
    RECORD.take()
}

/// Takes what was printed on this thread.
pub fn take_console() -> Vec<u8> {
    CONSOLE.take()
}

/// Sets this thread's clock.
pub fn set_now(now: Ns) {
    NOW.set(now.get());
}

/// Sets a byte of configuration space; functions without any byte read as all ones.
pub fn set_pci(sbdf: u32, offset: u16, value: u8) {
    PCI.with_borrow_mut(|all| all.insert((sbdf, offset), value));
}

pub fn now() -> Ns {
    Ns::new(NOW.get())
}

/// The stand-in's TSC counts nanoseconds.
pub fn tsc() -> u64 {
    NOW.get()
}

pub fn ns_of(cycles: u64) -> u64 {
    cycles
}

pub fn ns_at(tsc: u64) -> Ns {
    Ns::new(tsc)
}

pub fn tsc_khz() -> u64 {
    1_000_000
}

pub fn time_scale() -> (u32, i8) {
    super::scale_of(tsc_khz())
}

pub fn wallclock_ns_at_boot() -> u64 {
    1_000_000_000_000_000_000
}

pub fn set_deadline(deadline: Option<Ns>) {
    record(Asked::Deadline(deadline));
}

pub fn exit_machine(code: u32) -> ! {
    panic!("the machine was ended with code {code:#x}")
}

pub fn pci_read(sbdf: u32, offset: u16, width: u8) -> u32 {
    PCI.with_borrow(|all| {
        let present = all.range((sbdf, 0)..=(sbdf, u16::MAX)).next().is_some();
        (0..u16::from(width)).fold(0, |value, n| {
            let absent = if present { 0 } else { 0xff };
            let byte = all.get(&(sbdf, offset + n)).copied().unwrap_or(absent);
            value | u32::from(byte) << (8 * n)
        })
    })
}

pub fn pci_write(sbdf: u32, offset: u16, width: u8, value: u32) {
    record(Asked::PciWrite { sbdf, offset, width, value });
    for n in 0..u16::from(width) {
        set_pci(sbdf, offset + n, (value >> (8 * n)) as u8);
    }
}

/// Plain memory of that size, leaked, the same for the same address on one thread.
pub fn map_device(at: Maddr, bytes: usize) -> Option<*mut u8> {
    thread_local! {
        static WINDOWS: RefCell<BTreeMap<(u64, usize), usize>> = const { RefCell::new(BTreeMap::new()) };
    }
    WINDOWS.with_borrow_mut(|all| {
        let base = *all.entry((at.get(), bytes)).or_insert_with(|| {
            std::vec![0u64; bytes.div_ceil(8)].leak().as_mut_ptr().expose_provenance()
        });
        Some(core::ptr::with_exposed_provenance_mut(base))
    })
}

pub fn ioapic_set(gsi: u32, vector: u8, level: bool, low_active: bool, masked: bool) {
    record(Asked::IoApicSet { gsi, vector, level, low_active, masked });
}

pub fn ioapic_mask(gsi: u32, masked: bool) {
    record(Asked::IoApicMask { gsi, masked });
}

pub fn eoi() {
    record(Asked::Eoi);
}

pub fn msi_address_data(vector: u8, cpu: CpuId) -> (u64, u32) {
    (0xfee0_0000 | (cpu.0 as u64) << 12, u32::from(vector))
}

pub fn leave_root(root: Mfn) {
    record(Asked::LeaveRoot(root));
}

pub fn console_write(bytes: &[u8]) {
    CONSOLE.with_borrow_mut(|all| all.extend_from_slice(bytes));
}

/// A processor that answers every leaf with all ones: what is masked shows.
pub fn cpuid(_leaf: u32, _subleaf: u32) -> [u32; 4] {
    [u32::MAX; 4]
}

pub fn features() -> Features {
    Features { xcr0: 7, physical_bits: 40, rdtscp: true }
}

thread_local! {
    /// FS base, GS base, and the GS base that SWAPGS would bring.
    static BASES: Cell<[u64; 3]> = const { Cell::new([0; 3]) };
    static FAULT: Cell<u64> = const { Cell::new(0) };
    static ROOT: Cell<Option<Mfn>> = const { Cell::new(None) };
}

/// Sets what this thread's CR2 is.
pub fn set_fault_address(address: u64) {
    FAULT.set(address);
}

pub fn fault_address() -> u64 {
    FAULT.get()
}

pub fn take_debug_status() -> u64 {
    crate::trap::DR6_RESET
}

/// Selectors are where they were.
pub fn save_segments(_regs: &mut UserRegs) -> [u64; 3] {
    BASES.get()
}

pub fn load_segments(_regs: &UserRegs, bases: [u64; 3]) -> bool {
    BASES.set(bases);
    true
}

pub fn swap_gs_bases() {
    let [fs, gs, inactive] = BASES.get();
    BASES.set([fs, inactive, gs]);
}

pub fn read_base(base: Base) -> u64 {
    BASES.get()[base as usize - Base::Fs as usize]
}

pub fn write_base(base: Base, va: u64) {
    let mut bases = BASES.get();
    bases[base as usize - Base::Fs as usize] = va;
    BASES.set(bases);
}

pub fn load_user_gs(_selector: u16) {}
pub fn write_tsc_aux(_value: u32) {}
pub fn write_xcr0(_value: u64) {}
pub fn save_fpu(_area: &mut FpuArea) {}
pub fn load_fpu(_area: &FpuArea, _xcr0: u64) {}
pub fn load_debug(_registers: &[u64; 8]) {}
pub fn set_task_switched(_set: bool) {}
pub fn set_serial_access(_cpu: CpuId, _allowed: bool) {}
pub fn load_tables(_cpu: CpuId, _gdt: &[Option<Mfn>], _ldt: &[Option<Mfn>], _ldt_entries: u32) {}
pub fn flush_page(_va: u64) {}
pub fn flush_all() {}
pub fn load_idle_root() {}

/// The root that was loaded last on this thread.
pub fn loaded_root() -> Option<Mfn> {
    ROOT.get()
}

pub fn load_root(root: Mfn) -> bool {
    ROOT.replace(Some(root)) != Some(root)
}

pub fn ldt_window_page(_address: u64) -> Option<usize> {
    None
}

pub fn stack_top(_cpu: CpuId) -> u64 {
    0
}

/// A test that waits would wait for ever.
pub fn wait_for_interrupt() -> u8 {
    panic!("nothing can run and no interrupt will come")
}
