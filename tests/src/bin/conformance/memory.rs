//! `memory_op`.

use crate::hv::{HOLE, UNMAPPED, op, rc, said};
use crate::tables::{FRAME, PRESENT, RW, Scratch, frame_of_the_core, leaf};
use crate::tap::check;
use alloc::format;
use domain_rt::abi::hypercall::MEMORY_OP;
use domain_rt::abi::memory::{self, MachphysMapping, MemoryExchange, MemoryMap, MemoryReservation};
use domain_rt::abi::mmu::M2P_START;
use domain_rt::abi::{DomId, Mfn, Pfn};

pub fn run() {
    figures();
    reservations();
    exchanges();
    refusals();
}

fn figures() {
    let mut map = MachphysMapping::default();
    let result = op(MEMORY_OP, memory::XENMEM_MACHPHYS_MAPPING, &mut map);
    let found = (map.v_start == M2P_START, map.v_end > map.v_start, map.max_mfn > 0);
    check("machphys_mapping: where the table is", format!("{} {found:?}", rc(result)));
    let frame = op(MEMORY_OP, memory::XENMEM_MAXIMUM_RAM_PAGE, &mut 0u64);
    check("maximum_ram_page: there is one", frame > 0);
    let mut me = DomId::SELF.get();
    let now = op(MEMORY_OP, memory::XENMEM_CURRENT_RESERVATION, &mut me);
    let most = op(MEMORY_OP, memory::XENMEM_MAXIMUM_RESERVATION, &mut me);
    check("reservations: at most the maximum", now > 0 && most >= now);
    let mut nobody = 0x1234u16;
    check(
        "current_reservation: refuses a domain that is not there",
        rc(op(MEMORY_OP, memory::XENMEM_CURRENT_RESERVATION, &mut nobody)),
    );
    let mut map = MemoryMap { nr_entries: 1, buffer: UNMAPPED, ..Default::default() };
    let result = op(MEMORY_OP, memory::XENMEM_MEMORY_MAP, &mut map);
    check("memory_map: does not succeed with an unmapped buffer", result < 0);
}

fn reservation(list: u64, extents: u64, order: u32) -> MemoryReservation {
    MemoryReservation {
        extent_start: list,
        nr_extents: extents,
        extent_order: order,
        domid: DomId::SELF.get(),
        ..Default::default()
    }
}

fn m2p(mfn: u64) -> u64 {
    // SAFETY: the table is mapped readable for every guest.
    unsafe { ((M2P_START + mfn * 8) as *const u64).read_volatile() }
}

/// Gives a frame away and gets one back in its place.
fn reservations() {
    let page = Scratch::new();
    page.write(0, 0x5555);
    let mut frame = page.mfn().get();
    page.remap(0);
    let me = || op(MEMORY_OP, memory::XENMEM_CURRENT_RESERVATION, &mut DomId::SELF.get());
    let before = me();
    let mut arg = reservation((&raw mut frame) as u64, 1, 0);
    let result = op(MEMORY_OP, memory::XENMEM_DECREASE_RESERVATION, &mut arg);
    check("decrease_reservation: of one frame", format!("{} {}", rc(result), me() - before));
    check(
        "decrease_reservation: the frame is ours no more",
        page.remap(Mfn::new(frame).maddr().get() | RW),
    );
    let mut place = page.pfn();
    let mut arg = reservation((&raw mut place) as u64, 1, 0);
    let result = op(MEMORY_OP, memory::XENMEM_POPULATE_PHYSMAP, &mut arg);
    check("populate_physmap: of one frame", format!("{} {}", rc(result), me() - before));
    check("populate_physmap: the table names its place", m2p(place) == page.pfn());
    let mapped = page.remap(Mfn::new(place).maddr().get() | RW);
    check("populate_physmap: the frame can be mapped", mapped);
    adopt(&page, place);
}

/// Tells the runtime that a page of it has another frame now.
fn adopt(page: &Scratch, mfn: u64) {
    let mapped = leaf(page.va()).1;
    if mapped & FRAME == Mfn::new(mfn).maddr().get() && mapped & PRESENT != 0 {
        // SAFETY: the frame is ours and mapped at this page, as was just seen.
        unsafe { domain_rt::mem::replace_frame(Pfn::new(page.pfn()), Mfn::new(mfn)) };
    }
}

fn exchanges() {
    let page = Scratch::new();
    page.remap(0);
    let mut old = page.mfn().get();
    let mut place = page.pfn();
    let mut arg = MemoryExchange {
        input: reservation((&raw mut old) as u64, 1, 0),
        output: reservation((&raw mut place) as u64, 1, 0),
        nr_exchanged: 0,
    };
    let result = op(MEMORY_OP, memory::XENMEM_EXCHANGE, &mut arg);
    check("exchange: one frame for another", format!("{} {}", rc(result), arg.nr_exchanged));
    let new = if arg.nr_exchanged == 1 { place } else { old };
    check("exchange: the table names its place", m2p(new) == page.pfn());
    check("exchange: the frame can be mapped", page.remap(Mfn::new(new).maddr().get() | RW));
    adopt(&page, new);
    let mut arg = MemoryExchange {
        input: reservation((&raw mut old) as u64, 1, 0),
        output: reservation((&raw mut place) as u64, 2, 0),
        nr_exchanged: 0,
    };
    check("exchange: refuses unequal sums", rc(op(MEMORY_OP, memory::XENMEM_EXCHANGE, &mut arg)));
    let mut core = frame_of_the_core().get();
    let mut arg = MemoryExchange {
        input: reservation((&raw mut core) as u64, 1, 0),
        output: reservation((&raw mut place) as u64, 1, 0),
        nr_exchanged: 0,
    };
    let result = op(MEMORY_OP, memory::XENMEM_EXCHANGE, &mut arg);
    check("exchange: refuses a frame of the core", format!("{} {}", rc(result), arg.nr_exchanged));
}

fn refusals() {
    let mut frame = frame_of_the_core().get();
    let mut arg = reservation((&raw mut frame) as u64, 1, 0);
    check(
        "decrease_reservation: does nothing to a frame of the core",
        rc(op(MEMORY_OP, memory::XENMEM_DECREASE_RESERVATION, &mut arg)),
    );
    let mut frame = 1u64 << 39;
    let mut arg = reservation((&raw mut frame) as u64, 1, 0);
    check(
        "decrease_reservation: does nothing to a frame past the end",
        rc(op(MEMORY_OP, memory::XENMEM_DECREASE_RESERVATION, &mut arg)),
    );
    for (name, cmd) in [
        ("decrease_reservation", memory::XENMEM_DECREASE_RESERVATION),
        ("populate_physmap", memory::XENMEM_POPULATE_PHYSMAP),
    ] {
        let mut arg = reservation(UNMAPPED, 1, 0);
        check(&format!("{name}: with an unmapped list"), rc(op(MEMORY_OP, cmd, &mut arg)));
        let mut arg = reservation(HOLE, 1, 0);
        check(&format!("{name}: with a list in the hole"), rc(op(MEMORY_OP, cmd, &mut arg)));
        check(&format!("{name}: with an unmapped structure"), said(MEMORY_OP, &[cmd, UNMAPPED]));
        let mut arg = MemoryReservation { domid: 0x1234, ..reservation(0, 0, 0) };
        check(
            &format!("{name}: with a domain that is not there"),
            rc(op(MEMORY_OP, cmd, &mut arg)),
        );
    }
    let mut place = 0u64;
    let mut arg = reservation((&raw mut place) as u64, 1, 60);
    check(
        "populate_physmap: an absurd order",
        rc(op(MEMORY_OP, memory::XENMEM_POPULATE_PHYSMAP, &mut arg)),
    );
    check("memory_op: refuses an unknown operation", said(MEMORY_OP, &[63, 0]));
}
