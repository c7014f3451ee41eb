//! `bulkhead-core`: the thin binary. It brings the machine up, makes the one [`Core`], lets it build
//! Dom0, and from then on is what the entry code calls. No judgement is made here.
#![no_std]
#![no_main]

mod last_words;

use bulkhead_abi::{Maddr, Mfn, PAGE_SIZE, vcpu::UserRegs};
use core::{fmt::Write, ops::Range};
use kernel::{
    Core,
    arch::{
        self,
        machine::{apic, boot, cpu, entry as stubs, paging, serial, tables},
    },
    domain::dom0::{self, Archive},
    memory::{
        frame::{Frame, FrameTable},
        phys::PhysMem,
    },
    state::CpuId,
    trace::words::Uart,
    trap::entry,
};

/// The one core lock, and all it guards.
static CORE: spin::Mutex<Option<Core>> = spin::Mutex::new(None);
/// The CPU that runs guests.
const CPU: CpuId = CpuId(0);
const PAGE: u64 = PAGE_SIZE as u64;

/// Messages of the rooms, onto the debug UART.
struct UartLog;

impl log::Log for UartLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        // The UART takes everything.
        let _ = writeln!(Uart, "[core] {}", record.args());
    }

    fn flush(&self) {}
}

/// First Rust code: on the boot stack, under the first page tables. `info` is the address of the
/// loader's start information.
#[unsafe(no_mangle)]
extern "C" fn core_start(info: u32) -> ! {
    serial::init();
    let _ = log::set_logger(&UartLog);
    log::set_max_level(log::LevelFilter::Info);
    log::info!("Bulkhead {}", env!("CARGO_PKG_VERSION"));
    let handover = boot::handover(info.into()).unwrap_or_else(|why| panic!("{why}"));
    *CORE.lock() = Some(build(&handover));
    let regs = with_core(|core| start_dom0(core, &handover.archive));
    // SAFETY: `leave` gives the registers of the vCPU whose state it loaded, and entries save there.
    unsafe { stubs::resume(regs) }
}

/// Divides memory, builds the core's page tables and the frame table, and sets the CPU up.
fn build(handover: &boot::Handover) -> Core {
    let mut carver = boot::Carver::new(handover).expect("RAM for the core below 4 GiB");
    let max_mfn = handover.ram.iter().map(|range| range.end).max().unwrap_or(0) / PAGE;
    let large = 2 << 20;
    let m2p_bytes = (max_mfn * 8).next_multiple_of(large);
    let m2p = carver.take(m2p_bytes, large).expect("RAM for the machine-to-phys table");
    let frames_bytes = max_mfn * size_of::<Frame>() as u64;
    let frames_at = carver.take(frames_bytes, PAGE).expect("RAM for the frame table");
    let slots = paging::build(&mut carver, &handover.ram, m2p..m2p + m2p_bytes);
    tables::init(CPU);
    cpu::init().unwrap_or_else(|missing| panic!("this processor has no {missing}"));
    apic::init().unwrap_or_else(|missing| panic!("no {missing}"));

    // SAFETY: the core's tables map all RAM below `max_mfn` there, for ever; only frames that the frame table
    // knows as RAM are accessed.
    let mem = unsafe { PhysMem::new(paging::PHYSMAP as *mut u8, max_mfn) };
    let storage = (paging::PHYSMAP + frames_at) as *mut Frame;
    for n in 0..max_mfn as usize {
        // SAFETY: carved for this, `max_mfn` elements long.
        unsafe { storage.add(n).write(Frame::IO) };
    }
    // SAFETY: written above, nobody else has it, and it stays.
    let storage = unsafe { core::slice::from_raw_parts_mut(storage, max_mfn as usize) };
    let ranges: heapless::Vec<_, { boot::MAX_RANGES }> =
        handover.ram.iter().map(|range| range.start / PAGE..range.end / PAGE).collect();
    let mut frames = FrameTable::new(mem, storage, Maddr::new(m2p), &ranges);
    frames.set_core_slots(slots);
    let used = [paging::image(), carver.taken(), handover.archive.clone()];
    boot::unused(&handover.ram, &used, |free| {
        frames.free_core(Mfn::new(free.start / PAGE), ((free.end - free.start) / PAGE) as usize);
    });
    log::info!(
        "{} MiB of memory, {} MiB free, TSC {} kHz",
        frames.total_frames() >> 8,
        frames.free_frames() >> 8,
        arch::tsc_khz()
    );
    Core::new(frames)
}

fn start_dom0(core: &mut Core, archive: &Range<u64>) {
    let devices = core.devices.scan();
    log::info!("{devices} PCI functions");
    let mem = core.frames.mem();
    let (at, bytes) = (Maddr::new(archive.start), archive.end - archive.start);
    let built = Archive::open(mem, at, bytes).and_then(|archive| {
        last_words::set_symbols(mem, archive.symbols());
        dom0::build(core, &archive)
    });
    if let Err(why) = built {
        panic!("no Dom0: {why:?}");
    }
}

/// Has the core, under its lock, deal with a trap; gives the registers to go to ring 3 with.
fn with_core(handle: impl FnOnce(&mut Core)) -> *mut UserRegs {
    let mut slot = CORE.lock();
    let core = slot.as_mut().expect("guests run only after the core was made");
    handle(core);
    let regs = entry::leave(core, CPU).as_ptr();
    stubs::set_entry(regs);
    regs
}

/// A trap from ring 3; the registers are saved. Gives those to go back with.
#[unsafe(no_mangle)]
extern "C" fn core_from_guest(_saved: *mut UserRegs) -> *mut UserRegs {
    with_core(|core| entry::enter(core, CPU))
}

/// The processor refused to go to ring 3 with the registers that were given.
#[unsafe(no_mangle)]
extern "C" fn core_return_refused() -> *mut UserRegs {
    let (vector, address) = stubs::last_fixed();
    with_core(|core| entry::return_refused(core, CPU, vector, address))
}

/// A trap from ring 0.
#[unsafe(no_mangle)]
extern "C" fn core_from_core(regs: *mut UserRegs) {
    // SAFETY: the entry code passes the registers it has just saved on this stack.
    let regs = unsafe { &mut *regs };
    if !stubs::from_core(regs) {
        last_words::fault(regs);
    }
}

/// A double fault, NMI or machine check, on a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn core_fatal(regs: *mut UserRegs) -> ! {
    // SAFETY: as in `core_from_core`.
    last_words::fault(unsafe { &*regs })
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    last_words::panicked(info)
}
