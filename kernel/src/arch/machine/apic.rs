//! Interrupt controllers: the local APIC with its timer, the IOAPIC, and the PIC, which is
//! silenced. Which device has which vector is decided by room `device`.

use super::{clock, cpu, outb};
use crate::{
    arch::{DeviceWindow, SPURIOUS_VECTOR, TIMER_VECTOR, scale},
    state::CpuId,
};
use bulkhead_abi::{Maddr, Ns};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use spin::Once;
use x86_64::registers::model_specific::Msr;

const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;
const LOCAL_AT: u64 = 0xfee0_0000;
const IO_AT: u64 = 0xfec0_0000;

const REG_ID: usize = 0x20;
const REG_TPR: usize = 0x80;
const REG_EOI: usize = 0xb0;
const REG_SPURIOUS: usize = 0xf0;
const REG_TIMER: usize = 0x320;
const REG_LINT0: usize = 0x350;
const REG_LINT1: usize = 0x360;
const REG_ERROR: usize = 0x370;
const REG_INITIAL: usize = 0x380;
const REG_CURRENT: usize = 0x390;
const REG_DIVIDE: usize = 0x3e0;
const MASKED: u32 = 1 << 16;
const DELIVER_NMI: u32 = 4 << 8;
const TIMER_TSC_DEADLINE: u32 = 2 << 17;
const DIVIDE_BY_1: u32 = 0b1011;

/// IOAPIC registers: pin `n` has its entry in words `0x10 + 2n` and the next.
const IO_VERSION: u32 = 1;
const IO_REDIRECTION: u32 = 0x10;

static LOCAL: Once<DeviceWindow> = Once::new();
static IO: Once<DeviceWindow> = Once::new();
static HAS_DEADLINE: AtomicBool = AtomicBool::new(false);
/// Timer ticks per second, when it counts by itself.
static TIMER_HZ: AtomicU64 = AtomicU64::new(0);
/// What the timer is set to; 0 for nothing.
static ARMED_FOR: AtomicU64 = AtomicU64::new(0);
/// Pins of the IOAPIC.
static PINS: AtomicU32 = AtomicU32::new(0);

fn local_read(register: usize) -> u32 {
    LOCAL.get().map_or(0, |local| local.read(register))
}

fn local_write(register: usize, value: u32) {
    if let Some(local) = LOCAL.get() {
        local.write(register, value);
    }
}

fn io_read(register: u32) -> u32 {
    IO.get().map_or(0, |io| {
        io.write(0, register);
        io.read(0x10)
    })
}

fn io_write(register: u32, value: u32) {
    if let Some(io) = IO.get() {
        io.write(0, register);
        io.write(0x10, value);
    }
}

/// Silences the PIC, enables the local APIC and masks every pin of the IOAPIC; measures the clock on the
/// way, for the timer is measured with it.
///
/// Errors: what is missing.
pub fn init() -> Result<(), &'static str> {
    // Vectors where a late interrupt of the PIC harms nobody, then all masked.
    let words = [
        (0x20, 0x11),
        (0xa0, 0x11),
        (0x21, 0xe0),
        (0xa1, 0xe8),
        (0x21, 4),
        (0xa1, 2),
        (0x21, 1),
        (0xa1, 1),
    ];
    for (port, value) in words.into_iter().chain([(0x21, 0xff), (0xa1, 0xff)]) {
        // SAFETY: initialisation words of the two PICs.
        unsafe { outb(port, value) };
    }
    let local =
        DeviceWindow::map(Maddr::new(LOCAL_AT), 0x1000).ok_or("window for the local APIC")?;
    LOCAL.call_once(|| local);
    // SAFETY: enables the local APIC at the address that was mapped, without x2APIC.
    unsafe { Msr::new(APIC_BASE).write(LOCAL_AT | 1 << 11 | 1 << 8) };
    local_write(REG_SPURIOUS, 1 << 8 | u32::from(SPURIOUS_VECTOR));
    local_write(REG_TPR, 0);
    local_write(REG_LINT0, MASKED);
    local_write(REG_ERROR, MASKED);
    // The machine's NMI button makes the core say where it is, and stop.
    local_write(REG_LINT1, DELIVER_NMI);
    start_timer();

    let io = DeviceWindow::map(Maddr::new(IO_AT), 0x1000).ok_or("window for the IOAPIC")?;
    IO.call_once(|| io);
    PINS.store((io_read(IO_VERSION) >> 16 & 0xff) + 1, Ordering::Relaxed);
    for pin in 0..PINS.load(Ordering::Relaxed) {
        io_write(IO_REDIRECTION + 2 * pin, MASKED);
    }
    Ok(())
}

fn start_timer() {
    local_write(REG_DIVIDE, DIVIDE_BY_1);
    local_write(REG_TIMER, MASKED | u32::from(TIMER_VECTOR));
    local_write(REG_INITIAL, u32::MAX);
    let hz = clock::init(|| local_read(REG_CURRENT).into());
    local_write(REG_INITIAL, 0);
    TIMER_HZ.store(hz.max(1), Ordering::Relaxed);
    let has_deadline = cpu::cpuid(1, 0)[2] >> 24 & 1 != 0;
    HAS_DEADLINE.store(has_deadline, Ordering::Relaxed);
    let mode = if has_deadline { TIMER_TSC_DEADLINE } else { 0 };
    local_write(REG_TIMER, mode | u32::from(TIMER_VECTOR));
}

/// Has the timer interrupt at a system time, at once if it has passed, or not at all. It may be early
/// when the deadline is farther than the counter reaches.
pub fn set_deadline(deadline: Option<Ns>) {
    let wanted = deadline.map_or(0, |at| at.get().max(1));
    if ARMED_FOR.swap(wanted, Ordering::Relaxed) == wanted {
        return;
    }
    let left = wanted.saturating_sub(clock::now().get());
    if HAS_DEADLINE.load(Ordering::Relaxed) {
        let cycles = if wanted == 0 { 0 } else { clock::tsc() + cycles_of(left) };
        // SAFETY: arms the timer of the local APIC; the stores before it need no order.
        unsafe { Msr::new(TSC_DEADLINE).write(cycles) };
        return;
    }
    let ticks = (left as u128 * TIMER_HZ.load(Ordering::Relaxed) as u128).div_ceil(1_000_000_000);
    let count = if wanted == 0 { 0 } else { ticks.clamp(1, u32::MAX.into()) as u32 };
    local_write(REG_INITIAL, count);
}

/// Cycles of the TSC that last at least `ns`.
fn cycles_of(ns: u64) -> u64 {
    // A year is enough; longer deadlines are set again then.
    let ns = ns.min(1 << 55);
    let cycles = (ns as u128 * clock::tsc_khz() as u128).div_ceil(1_000_000) as u64;
    let (mul, shift) = clock::time_scale();
    // Rounding down on the way back must not make the interrupt early.
    if scale(cycles, mul, shift) < ns { cycles + 2 } else { cycles }
}

/// Acknowledges the interrupt in service.
pub fn eoi() {
    // The timer may be what fired: the next deadline is to be set whatever it is.
    ARMED_FOR.store(u64::MAX, Ordering::Relaxed);
    local_write(REG_EOI, 0);
}

/// Routes a pin of the IOAPIC to a vector of the first CPU.
pub fn ioapic_set(gsi: u32, vector: u8, level: bool, low_active: bool, masked: bool) {
    if gsi >= PINS.load(Ordering::Relaxed) {
        return;
    }
    let bits = u32::from(vector)
        | u32::from(low_active) << 13
        | u32::from(level) << 15
        | if masked { MASKED } else { 0 };
    io_write(IO_REDIRECTION + 2 * gsi, MASKED);
    io_write(IO_REDIRECTION + 2 * gsi + 1, local_read(REG_ID) & 0xff00_0000);
    io_write(IO_REDIRECTION + 2 * gsi, bits);
}

/// Masks or unmasks a pin.
pub fn ioapic_mask(gsi: u32, masked: bool) {
    if gsi >= PINS.load(Ordering::Relaxed) {
        return;
    }
    let old = io_read(IO_REDIRECTION + 2 * gsi);
    let new = if masked { old | MASKED } else { old & !MASKED };
    io_write(IO_REDIRECTION + 2 * gsi, new);
}

/// Address and data of a message that raises `vector` on a CPU, edge-triggered. With one CPU, that
/// is the one that asks.
pub fn msi_address_data(vector: u8, _cpu: CpuId) -> (u64, u32) {
    let id = local_read(REG_ID) >> 24;
    (LOCAL_AT | u64::from(id) << 12, u32::from(vector))
}
