use super::*;
use crate::{
    fixture::{self, HOLE, frame_at, get, page, put},
    memory::frame::Owner,
};
use bulkhead_abi::mmu::{HOLE_START, M2P_INVALID};

const ARG: u64 = page(1);
const LIST: u64 = page(2);
const OUT: u64 = page(3);
const SELF: u16 = 0x7ff0;

fn machine() -> (Core, Caller) {
    let mut core = fixture::core();
    let caller = fixture::domain(&mut core, 1, 1);
    (core, caller)
}

fn run(core: &mut Core, caller: Caller, command: u64, at: u64) -> (i64, usize) {
    let mut args = [command, at, 0, 0, 0, 0];
    for stays in 1..1000 {
        match memory_op(core, caller, args) {
            Outcome::Done(result) => return (result, stays),
            Outcome::Again(next) => args[..5].copy_from_slice(&next),
            Outcome::Replaced => panic!("the registers are nobody's business here"),
        }
    }
    panic!("it never ends");
}

fn list(start: u64, nr: u64, order: u32, domid: u16) -> MemoryReservation {
    MemoryReservation {
        extent_start: start,
        nr_extents: nr,
        extent_order: order,
        domid,
        ..Default::default()
    }
}

/// A reservation call over `values`, and how many extents it did.
fn extents(
    core: &mut Core,
    caller: Caller,
    command: u64,
    values: &[u64],
    order: u32,
    domid: u16,
) -> i64 {
    values.iter().enumerate().for_each(|(n, value)| put(core, caller, LIST + 8 * n as u64, value));
    put(core, caller, ARG, &list(LIST, values.len() as u64, order, domid));
    run(core, caller, command, ARG).0
}

#[test]
fn populate_gives_frames_at_the_pfns_named_and_decrease_takes_them_back() {
    let (mut core, caller) = machine();
    let before = core.frames.tot_pages(caller.dom);
    assert_eq!(extents(&mut core, caller, nr::XENMEM_POPULATE_PHYSMAP, &[100, 200], 1, SELF), 2);
    assert_eq!(core.frames.tot_pages(caller.dom), before + 4);
    let mfns = [0, 8].map(|offset| get::<u64>(&core, caller, LIST + offset));
    assert_eq!(core.frames.m2p(Mfn::new(mfns[1] + 1)), 201);
    assert_eq!(extents(&mut core, caller, nr::XENMEM_DECREASE_RESERVATION, &mfns, 1, SELF), 2);
    assert_eq!(core.frames.tot_pages(caller.dom), before);
    assert_eq!(core.frames.owner(Mfn::new(mfns[0])), Owner::Free);
    assert_eq!(core.frames.m2p(Mfn::new(mfns[0])), M2P_INVALID);
}

#[test]
fn a_list_ends_where_the_limit_does() {
    let (mut core, caller) = machine();
    let tot = core.frames.tot_pages(caller.dom);
    core.domains.get_mut(caller.dom).unwrap().memory.max_pages = tot + 2;
    assert_eq!(extents(&mut core, caller, nr::XENMEM_POPULATE_PHYSMAP, &[1, 2, 3, 4], 0, SELF), 2);
    assert_eq!(core.frames.tot_pages(caller.dom), tot + 2);
}

#[test]
fn memory_that_can_not_be_told_of_is_not_given() {
    let (mut core, caller) = machine();
    let tot = core.frames.tot_pages(caller.dom);
    let at = crate::memory::update::l1_entry_of(
        &core.frames,
        core.vcpu(caller).unwrap().roots.kernel.unwrap(),
        GuestVa::new(LIST),
    );
    // Read-only: the pfn can be read, the mfn not written.
    let entry = core.frames.mem().read_u64(at.unwrap()) & !2;
    let args = [LIST, entry, 0, 0, 0, 0];
    assert_eq!(super::super::mmu::update_va_mapping(&mut core, caller, args), Outcome::Done(0));
    put(&core, caller, ARG, &list(LIST, 1, 0, SELF));
    assert_eq!(run(&mut core, caller, nr::XENMEM_POPULATE_PHYSMAP, ARG).0, 0);
    assert_eq!(core.frames.tot_pages(caller.dom), tot);
}

#[test]
fn what_is_refused_as_a_whole_does_no_extent() {
    let (mut core, caller) = machine();
    fixture::domain(&mut core, 2, 1);
    let tot = core.frames.tot_pages(caller.dom);
    for (order, domid) in [(10, SELF), (u32::MAX, SELF), (0, 2), (0, 0), (0, 99)] {
        for command in [
            nr::XENMEM_POPULATE_PHYSMAP,
            nr::XENMEM_INCREASE_RESERVATION,
            nr::XENMEM_DECREASE_RESERVATION,
        ] {
            assert_eq!(
                extents(&mut core, caller, command, &[1], order, domid),
                0,
                "{order} {domid}"
            );
        }
    }
    put(&core, caller, ARG, &list(LIST, u64::MAX, 0, SELF));
    assert_eq!(run(&mut core, caller, nr::XENMEM_DECREASE_RESERVATION, ARG).0, 0);
    assert_eq!(core.frames.tot_pages(caller.dom), tot);
    for at in [HOLE, HOLE_START] {
        assert_eq!(
            run(&mut core, caller, nr::XENMEM_POPULATE_PHYSMAP, at).0,
            Errno::EFAULT.to_rax()
        );
    }
}

#[test]
fn only_its_own_frames_can_be_given_back_and_each_once() {
    let (mut core, caller) = machine();
    let other = fixture::domain(&mut core, 2, 1);
    let theirs = frame_at(&core, other, page(4)).get();
    let mine = frame_at(&core, caller, page(4)).get();
    let shared = core.domains.get(caller.dom).unwrap().shared_info.get();
    for bad in [theirs, shared, 0, 1 << 40, u64::MAX] {
        assert_eq!(
            extents(&mut core, caller, nr::XENMEM_DECREASE_RESERVATION, &[bad], 0, SELF),
            0,
            "{bad:#x}"
        );
    }
    assert_eq!(
        extents(&mut core, caller, nr::XENMEM_DECREASE_RESERVATION, &[mine, mine], 0, SELF),
        1
    );
    assert_eq!(core.frames.owner(Mfn::new(mine)), Owner::Domain(caller.dom), "still mapped");
}

#[test]
fn dom0_populates_others_and_long_lists_continue() {
    let mut core = fixture::core_of(2048);
    let dom0 = fixture::domain(&mut core, 0, 1);
    let guest = fixture::domain(&mut core, 3, 1);
    core.domains.get_mut(guest.dom).unwrap().memory.max_pages = 5000;
    let before = core.frames.tot_pages(guest.dom);
    for n in 0..3u64 {
        put(&core, dom0, LIST + 8 * n, &(n * 512));
    }
    put(&core, dom0, ARG, &list(LIST, 3, 9, 3));
    assert_eq!(run(&mut core, dom0, nr::XENMEM_POPULATE_PHYSMAP, ARG), (3, 2));
    assert_eq!(core.frames.tot_pages(guest.dom), before + 1536);
}

/// Four single frames, with pfns 10 to 13, in the input list.
fn four(core: &mut Core, caller: Caller) -> [u64; 4] {
    assert_eq!(extents(core, caller, nr::XENMEM_POPULATE_PHYSMAP, &[10, 11, 12, 13], 0, SELF), 4);
    core::array::from_fn(|n| get(core, caller, LIST + 8 * n as u64))
}

fn trade(core: &mut Core, caller: Caller, input: (u64, u32), output: (u64, u32)) -> i64 {
    let asked = MemoryExchange {
        input: list(LIST, input.0, input.1, SELF),
        output: list(OUT, output.0, output.1, SELF),
        nr_exchanged: 0,
    };
    put(core, caller, ARG, &asked);
    run(core, caller, nr::XENMEM_EXCHANGE, ARG).0
}

#[test]
fn exchange_trades_single_frames_for_blocks_and_back() {
    let (mut core, caller) = machine();
    four(&mut core, caller);
    let tot = core.frames.tot_pages(caller.dom);
    [500u64, 600]
        .iter()
        .enumerate()
        .for_each(|(n, pfn)| put(&core, caller, OUT + 8 * n as u64, pfn));
    assert_eq!(trade(&mut core, caller, (4, 0), (2, 1)), 0);
    let blocks = [0, 8].map(|offset| get::<u64>(&core, caller, OUT + offset));
    assert_eq!(core.frames.m2p(Mfn::new(blocks[1] + 1)), 601);
    assert_eq!(get::<MemoryExchange>(&core, caller, ARG).nr_exchanged, 4);
    assert_eq!(core.frames.tot_pages(caller.dom), tot);
    (0..2).for_each(|n| put(&core, caller, LIST + 8 * n, &blocks[n as usize]));
    (0..4u64).for_each(|n| put(&core, caller, OUT + 8 * n, &(700 + n)));
    assert_eq!(trade(&mut core, caller, (2, 1), (4, 0)), 0);
    let singles: [u64; 4] = core::array::from_fn(|n| get(&core, caller, OUT + 8 * n as u64));
    assert_eq!(singles.map(|mfn| core.frames.m2p(Mfn::new(mfn))), [700, 701, 702, 703]);
    assert_eq!(core.frames.tot_pages(caller.dom), tot);
}

#[test]
fn an_exchange_that_names_a_frame_in_use_changes_nothing() {
    let (mut core, caller) = machine();
    let mfns = four(&mut core, caller);
    let (tot, free) = (core.frames.tot_pages(caller.dom), core.frames.free_frames());
    for bad in [frame_at(&core, caller, page(4)).get(), mfns[0], 1 << 40, u64::MAX] {
        put(&core, caller, LIST + 24, &bad);
        assert_eq!(trade(&mut core, caller, (4, 0), (1, 2)), Errno::EINVAL.to_rax(), "{bad:#x}");
        assert_eq!((core.frames.tot_pages(caller.dom), core.frames.free_frames()), (tot, free));
    }
    assert!(mfns.iter().all(|&mfn| core.frames.is_allocated(Mfn::new(mfn))));
    assert_eq!(mfns.map(|mfn| core.frames.m2p(Mfn::new(mfn))), [10, 11, 12, 13]);
}

#[test]
fn an_exchange_must_add_up() {
    let (mut core, caller) = machine();
    four(&mut core, caller);
    for (input, output) in
        [((4, 0), (1, 1)), ((3, 0), (1, 2)), ((4, 0), (1, 10)), ((1 << 62, 9), (1 << 62, 9))]
    {
        assert_eq!(trade(&mut core, caller, input, output), Errno::EINVAL.to_rax());
    }
    let mut asked = MemoryExchange {
        input: list(LIST, 4, 0, SELF),
        output: list(OUT, 1, 2, SELF),
        nr_exchanged: 5,
    };
    put(&core, caller, ARG, &asked);
    assert_eq!(run(&mut core, caller, nr::XENMEM_EXCHANGE, ARG).0, Errno::EINVAL.to_rax());
    asked.nr_exchanged = 2;
    put(&core, caller, ARG, &asked);
    assert_eq!(run(&mut core, caller, nr::XENMEM_EXCHANGE, ARG).0, Errno::EINVAL.to_rax());
    (asked.nr_exchanged, asked.output.domid) = (0, 9);
    put(&core, caller, ARG, &asked);
    assert_eq!(run(&mut core, caller, nr::XENMEM_EXCHANGE, ARG).0, Errno::EINVAL.to_rax());
}

#[test]
fn guests_learn_of_their_memory_and_not_of_others() {
    let (mut core, caller) = machine();
    fixture::domain(&mut core, 2, 1);
    let tot = core.frames.tot_pages(caller.dom);
    put(&core, caller, ARG, &SELF);
    assert_eq!(run(&mut core, caller, nr::XENMEM_CURRENT_RESERVATION, ARG).0, tot as i64);
    assert_eq!(run(&mut core, caller, nr::XENMEM_MAXIMUM_RESERVATION, ARG).0, 1000);
    for (dom, errno) in [(2u16, Errno::EPERM), (7, Errno::ESRCH)] {
        put(&core, caller, ARG, &dom);
        assert_eq!(run(&mut core, caller, nr::XENMEM_CURRENT_RESERVATION, ARG).0, errno.to_rax());
    }
    put(&core, caller, ARG, &MemoryMap { nr_entries: 8, _pad: 0, buffer: OUT });
    assert_eq!(run(&mut core, caller, nr::XENMEM_MEMORY_MAP, ARG).0, 0);
    assert_eq!(get::<MemoryMap>(&core, caller, ARG).nr_entries, 1);
    assert_eq!({ get::<E820Entry>(&core, caller, OUT).size }, tot * 4096);
    put(&core, caller, ARG, &MemoryMap { nr_entries: 0, _pad: 0, buffer: OUT });
    assert_eq!(run(&mut core, caller, nr::XENMEM_MEMORY_MAP, ARG).0, Errno::EINVAL.to_rax());
}

#[test]
fn the_machine_to_phys_table_is_where_the_interface_says() {
    let (mut core, caller) = machine();
    assert_eq!(run(&mut core, caller, nr::XENMEM_MACHPHYS_MAPPING, ARG).0, 0);
    let answer: MachphysMapping = get(&core, caller, ARG);
    assert_eq!((answer.v_start, answer.max_mfn), (M2P_START, core.frames.max_mfn() - 1));
    assert_eq!(
        run(&mut core, caller, nr::XENMEM_MACHPHYS_MAPPING, HOLE_START).0,
        Errno::EFAULT.to_rax()
    );
    assert_eq!(run(&mut core, caller, nr::XENMEM_ADD_TO_PHYSMAP, ARG).0, Errno::ENOSYS.to_rax());
}
