//! Domains from creation to destruction, on plain memory: with a Dom0 built from an
//! archive, whose own page tables carry the arguments of the control calls.

mod guest;

use super::{
    Life,
    dom0::{self, Archive, BootError},
    lifecycle, teardown,
};
use crate::{
    Core, event,
    hypercall::{Outcome, control::control, device::device},
    memory::{
        frame::{Owner, fake},
        guest::GuestSpace,
        reserve,
        teardown::Progress,
    },
    state::{Caller, CpuId},
};
use bulkhead_abi::{
    DomId, Errno, GuestVa, Maddr, Mfn, PAGE_SIZE, VcpuId,
    archive::{Header, MAGIC, Run, VERSION},
    control::{self, CreateDomain, DomainInfo, DomainOnly, MachineInfo, SetMaxPages},
    device as dev,
    event::VIRQ_DOM_EXC,
    sched::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT},
    shared_info::SharedInfo,
    start_info::StartInfo,
    vcpu::UserRegs,
};
use zerocopy::{FromZeros, IntoBytes};

const DOM0: DomId = DomId::DOM0;
const BASE: u64 = 0xffff_ffff_8000_0000;
const PAGE: u64 = PAGE_SIZE as u64;
const FRAMES: usize = 6000;
/// Pages of Dom0's image, all of them mapped.
const IMAGE_PAGES: u64 = 1024;
const PAYLOAD_PAGES: u64 = 3;
const DOM0_FRAMES: u64 = 1500 + PAYLOAD_PAGES;
const ARCHIVE_PAGES: u64 = 2 + IMAGE_PAGES + PAYLOAD_PAGES;
/// What is where in the image, by pfn: two pages of text, tables (an L4, an L3, an L2 and two
/// L1s), start_info, list, stack; zero elsewhere.
const TEXT: u64 = 0x100;
const TABLES: Run = Run { first: 0x300, pages: 5 };
const START_INFO: u64 = 0x305;
const P2M: Run = Run { first: 0x306, pages: 3 };
const STACK: u64 = 0x309;
/// Zero in the image: where tests put arguments.
const SCRATCH: u64 = BASE + 0x20_2000;

fn core() -> Core {
    Core::new(fake::table(FRAMES))
}

/// A run of frames longer than the largest block of the free list.
fn contiguous(core: &mut Core, frames: u64) -> Mfn {
    let mut blocks: Vec<_> =
        (0..frames.div_ceil(512)).map(|_| core.frames.alloc_core(512).unwrap().get()).collect();
    blocks.sort();
    assert!(blocks.windows(2).all(|pair| pair[0] + 512 == pair[1]), "an unused machine");
    let spare = blocks.len() as u64 * 512 - frames;
    core.frames.free_core(Mfn::new(blocks[0] + frames), spare as usize);
    Mfn::new(blocks[0])
}

/// A header page, a page of symbols, the image, the payload.
fn archive(core: &mut Core, change: impl Fn(&mut Header)) -> (Maddr, u64) {
    let at = contiguous(core, ARCHIVE_PAGES).maddr();
    let mut header = Header::new_zeroed();
    header.magic = MAGIC;
    header.version = VERSION;
    header.pages = ARCHIVE_PAGES;
    header.symbols = Run { first: 1, pages: 1 };
    header.image = Run { first: 2, pages: IMAGE_PAGES };
    header.payload = Run { first: 2 + IMAGE_PAGES, pages: PAYLOAD_PAGES };
    header.dom0_frames = DOM0_FRAMES;
    header.tables = TABLES;
    header.p2m = P2M;
    header.start_info = START_INFO;
    header.regs = UserRegs {
        rip: BASE + 0x10_0010,
        rsi: BASE + START_INFO * PAGE,
        rsp: BASE + (STACK + 1) * PAGE,
        rflags: 0x202,
        ..Default::default()
    };
    change(&mut header);
    let mem = core.frames.mem();
    let byte = |offset: u64| Maddr::new(at.get() + offset);
    mem.write_bytes(at, header.as_bytes());
    for page in [1, 2 + TEXT, 3 + TEXT].into_iter().chain(2 + IMAGE_PAGES..ARCHIVE_PAGES) {
        (page * PAGE..(page + 1) * PAGE).for_each(|n| mem.write_u8(byte(n), pattern(n)));
    }
    let mut info = StartInfo::new_zeroed();
    info.nr_pages = DOM0_FRAMES;
    info.pt_base = BASE + TABLES.first * PAGE;
    info.nr_pt_frames = TABLES.pages;
    info.mfn_list = BASE + P2M.first * PAGE;
    mem.write_bytes(byte((2 + START_INFO) * PAGE), info.as_bytes());
    let entry = |table: u64, index: u64, target: u64, flags: u64| {
        let table = (2 + TABLES.first + table) * PAGE;
        mem.write_u64(byte(table + index * 8), (target * PAGE) | flags);
    };
    let table = |n: u64| TABLES.first + n;
    for (level, index, below) in [(0, 511, 1), (1, 510, 2), (2, 0, 3), (2, 1, 4)] {
        entry(level, index, table(below), 0x67);
    }
    for pfn in 0..IMAGE_PAGES {
        let is_table = (table(0)..table(5)).contains(&pfn);
        entry(3 + pfn / 512, pfn % 512, pfn, if is_table { 0x65 } else { 0x67 });
    }
    (at, ARCHIVE_PAGES * PAGE)
}

fn build(core: &mut Core, (at, bytes): (Maddr, u64)) -> Result<(), BootError> {
    let archive = Archive::open(core.frames.mem(), at, bytes)?;
    dom0::build(core, &archive)
}

/// The archive's byte at `offset`.
fn pattern(offset: u64) -> u8 {
    (offset * 7 + offset / 256) as u8
}

/// A machine on which Dom0 stands.
fn machine() -> Core {
    let mut core = core();
    let archive = archive(&mut core, |_| {});
    build(&mut core, archive).unwrap();
    core
}

fn root(core: &Core) -> Mfn {
    core.domains.get(DOM0).unwrap().vcpu(VcpuId::new(0)).unwrap().roots.kernel.unwrap()
}

/// Walks tables without the core's help: the machine address and whether all levels allow writing.
fn walk(core: &Core, va: u64) -> Option<(Maddr, bool)> {
    let mut table = root(core);
    let mut writable = true;
    for shift in [39, 30, 21, 12] {
        let entry =
            core.frames.mem().read_u64(Maddr::new(table.maddr().get() + (va >> shift) % 512 * 8));
        if entry & 5 != 5 {
            return None;
        }
        writable &= entry & 2 != 0;
        table = Maddr::new(entry & 0xf_ffff_ffff_f000).mfn();
    }
    Some((Maddr::new(table.maddr().get() + va % PAGE), writable))
}

fn byte(core: &Core, va: u64) -> u8 {
    core.frames.mem().read_u8(walk(core, va).unwrap().0)
}

fn start_info(core: &Core) -> StartInfo {
    let va = core.domains.get(DOM0).unwrap().vcpu(VcpuId::new(0)).unwrap().regs().rsi;
    GuestSpace::new(&core.frames, root(core)).read(GuestVa::new(va)).unwrap()
}

const CALLER: Caller = Caller { cpu: CpuId(0), dom: DOM0, vcpu: VcpuId::new(0) };

/// Issues a control call with `arg`, again and again until it is finished; its result and
/// what it left in memory.
fn call<T: IntoBytes + zerocopy::Immutable + zerocopy::FromBytes>(
    core: &mut Core,
    cmd: u64,
    arg: T,
) -> (Result<i64, Errno>, T) {
    let va = GuestVa::new(SCRATCH);
    core.guest(CALLER).write(va, &arg).unwrap();
    let mut args = [cmd, SCRATCH, 0, 0, 0, 0];
    for _ in 0..10_000 {
        match control(core, CALLER, args) {
            Outcome::Done(rax) => {
                let result = if rax < 0 { Err(Errno::from_rax(rax).unwrap()) } else { Ok(rax) };
                return (result, core.guest(CALLER).read(va).unwrap());
            }
            Outcome::Again(next) => args[..5].copy_from_slice(&next),
            Outcome::Replaced => panic!("control calls return"),
        }
    }
    panic!("a control call does not end");
}

fn only(dom: DomId) -> DomainOnly {
    DomainOnly { domid: dom.get(), ..Default::default() }
}

fn create(core: &mut Core, max_vcpus: u32) -> DomId {
    let asked = CreateDomain { max_vcpus, max_pages: 1000, ..Default::default() };
    let (result, answer) = call(core, control::CREATE_DOMAIN, asked);
    result.unwrap();
    DomId::new(answer.domid)
}

fn info(core: &mut Core, from: DomId) -> Result<DomainInfo, Errno> {
    let asked = DomainInfo { domid: from.get(), ..Default::default() };
    let (result, answer) = call(core, control::DOMAIN_INFO, asked);
    result.map(|_| answer)
}

#[test]
fn dom0_starts_at_its_entry_with_start_info_in_rsi() {
    let core = machine();
    let domain = core.domains.get(DOM0).unwrap();
    let vcpu = domain.vcpu(VcpuId::new(0)).unwrap();
    let regs = vcpu.regs();
    assert_eq!(
        (regs.rip, regs.cs, regs.ss, regs.rflags),
        (BASE + 0x10_0010, 0xe033, 0xe02b, 0x202)
    );
    assert_eq!((regs.rax, regs.rbx, regs.rdi, regs.ds, regs.fs), (0, 0, 0, 0, 0));
    assert!(vcpu.online && domain.pauses == 0);
    assert_eq!(core.frames.mem().read_u8(Maddr::new(vcpu.info.get() + 1)), 1, "events are off");
    let info = start_info(&core);
    assert_eq!(info.nr_pages, DOM0_FRAMES);
    assert_eq!(info.shared_info, domain.shared_info.maddr().get());
    assert_eq!(walk(&core, info.pt_base).unwrap().0.mfn(), root(&core));
    // The stack is mapped, writable, and its end is RSP.
    assert!(walk(&core, regs.rsp - 8).unwrap().1);
    assert_eq!(regs.rsp % PAGE, 0);
}

#[test]
fn dom0s_program_is_where_its_image_has_it() {
    let core = machine();
    for n in TEXT * PAGE..(TEXT + 2) * PAGE {
        assert_eq!(byte(&core, BASE + n), pattern(2 * PAGE + n));
    }
    for n in [TEXT * PAGE - 1, (TEXT + 2) * PAGE, STACK * PAGE] {
        assert_eq!(byte(&core, BASE + n), 0);
    }
}

#[test]
fn dom0s_list_and_the_machines_table_agree_with_its_mapping() {
    let core = machine();
    let info = start_info(&core);
    let space = GuestSpace::new(&core.frames, root(&core));
    for pfn in 0..info.nr_pages {
        let mfn: u64 = space.read(GuestVa::new(info.mfn_list + pfn * 8)).unwrap();
        assert_eq!(core.frames.m2p(Mfn::new(mfn)), pfn);
        assert_eq!(core.frames.owner(Mfn::new(mfn)), Owner::Domain(DOM0));
        if let Some((maddr, _)) = walk(&core, BASE + pfn * PAGE) {
            assert_eq!(maddr.mfn().get(), mfn);
        } else {
            assert!(pfn >= 1024, "the first 4 MiB are mapped");
        }
    }
}

#[test]
fn dom0s_tables_are_the_only_pages_it_can_not_write() {
    let core = machine();
    let info = start_info(&core);
    let tables = info.pt_base..info.pt_base + info.nr_pt_frames * PAGE;
    for va in (BASE..BASE + (4 << 20)).step_by(PAGE_SIZE) {
        assert_eq!(walk(&core, va).unwrap().1, !tables.contains(&va), "{va:#x}");
    }
    assert!(walk(&core, BASE + (4 << 20)).is_none());
}

#[test]
fn image_and_payload_become_dom0s_and_the_header_is_free() {
    let mut core = core();
    let (at, bytes) = archive(&mut core, |_| {});
    build(&mut core, (at, bytes)).unwrap();
    let owner = |n: u64| core.frames.owner(Mfn::new(at.mfn().get() + n));
    assert_eq!(owner(0), Owner::Free);
    assert_eq!(owner(1), Owner::Core, "symbols stay");
    for (page, pfn) in
        (2..ARCHIVE_PAGES).zip((0..IMAGE_PAGES).chain(DOM0_FRAMES - PAYLOAD_PAGES..DOM0_FRAMES))
    {
        assert_eq!(owner(page), Owner::Domain(DOM0));
        assert_eq!(core.frames.m2p(Mfn::new(at.mfn().get() + page)), pfn);
    }
    for n in (ARCHIVE_PAGES - PAYLOAD_PAGES) * PAGE..bytes {
        assert_eq!(core.frames.mem().read_u8(Maddr::new(at.get() + n)), pattern(n));
    }
}

#[test]
fn a_broken_archive_is_refused_by_the_name_of_what_is_broken() {
    type Change = fn(&mut Header);
    const MAX: Run = Run { first: u64::MAX, pages: 1 };
    let cases: [(Change, BootError); 19] = [
        (|h| h.magic += 1, BootError::NotAnArchive),
        (|h| h.version += 1, BootError::NotAnArchive),
        (|h| h.pages = ARCHIVE_PAGES + 1, BootError::NotAnArchive),
        (|h| h.symbols.first = 0, BootError::BadHeader("symbols")),
        (|h| h.symbols = MAX, BootError::BadHeader("symbols")),
        (|h| h.symbols.pages = 2, BootError::BadHeader("image")),
        (|h| h.image.first = 1, BootError::BadHeader("image")),
        (|h| h.image.pages += 1, BootError::BadHeader("payload")),
        (|h| h.payload.pages += 1, BootError::BadHeader("payload")),
        (|h| h.payload.pages = u64::MAX, BootError::BadHeader("payload")),
        (|h| h.tables.first = IMAGE_PAGES - 4, BootError::BadHeader("tables")),
        (|h| h.tables = MAX, BootError::BadHeader("tables")),
        (|h| h.p2m.pages = IMAGE_PAGES, BootError::BadHeader("p2m")),
        (|h| h.start_info = IMAGE_PAGES, BootError::BadHeader("start_info")),
        (|h| h.dom0_frames = IMAGE_PAGES + PAYLOAD_PAGES - 1, BootError::BadHeader("dom0_frames")),
        (|h| h.dom0_frames = 3 * 512 + 1, BootError::BadHeader("dom0_frames")),
        (|h| (h.p2m.pages, h.dom0_frames) = (20, FRAMES as u64), BootError::OutOfMemory),
        (|h| h.tables.pages = 0, BootError::Refused("root", Errno::EINVAL)),
        (|h| h.regs.rip = 0xffff_8000_0000_0000, BootError::Refused("context", Errno::EINVAL)),
    ];
    for (change, expected) in cases {
        let mut core = core();
        let archive = archive(&mut core, change);
        assert_eq!(build(&mut core, archive), Err(expected));
    }
    let mut core = core();
    let (at, bytes) = archive(&mut core, |_| {});
    let beyond = (Maddr::new(at.get() + 8), bytes);
    for archive in [(at, u64::MAX), (at, PAGE - 1), (at, bytes - 1), beyond] {
        assert_eq!(build(&mut core, archive), Err(BootError::NotAnArchive));
    }
}

#[test]
fn a_destroyed_domain_gives_every_frame_back() {
    let mut core = machine();
    let keep = create(&mut core, 1);
    let free = core.frames.free_frames();
    let dom = create(&mut core, 3);
    assert_ne!(dom, keep);
    for order in [9, 0, 3] {
        reserve::populate(&mut core, dom, order, None).unwrap();
    }
    for n in 1..600 {
        assert_eq!(event::bind::alloc_unbound(&mut core, dom, DOM0).unwrap().get(), n);
    }
    assert!(core.frames.free_frames() < free - 520);
    call(&mut core, control::DESTROY_DOMAIN, only(dom)).0.unwrap();
    assert_eq!(core.frames.free_frames(), free);
    assert!(core.domains.get(dom).is_none());
    assert_eq!(call(&mut core, control::DESTROY_DOMAIN, only(dom)).0, Err(Errno::ESRCH));
}

#[test]
fn a_large_domain_is_destroyed_in_bounded_steps() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    core.domains.get_mut(dom).unwrap().memory.max_pages = 4096;
    while core.frames.tot_pages(dom) < 4000 && reserve::populate(&mut core, dom, 0, None).is_ok() {}
    assert!(core.frames.tot_pages(dom) > 3900);
    let mut steps = 0;
    while teardown::destroy(&mut core, dom).unwrap() == Progress::More {
        steps += 1;
        assert_eq!(core.domains.get(dom).unwrap().life, Life::Dying);
    }
    assert!(steps > 0 || core.frames.tot_pages(dom) == 0);
}

#[test]
fn creation_that_fails_leaves_nothing_behind() {
    let mut core = machine();
    let free = core.frames.free_frames();
    let create = |core: &mut Core, domid, max_vcpus, flags| {
        let asked = CreateDomain { domid, max_vcpus, max_pages: 1, flags, ..Default::default() };
        call(core, control::CREATE_DOMAIN, asked).0
    };
    assert_eq!(create(&mut core, 0, 0, 0), Err(Errno::EINVAL));
    assert_eq!(create(&mut core, 0, 33, 0), Err(Errno::EINVAL));
    assert_eq!(create(&mut core, 0, 1, 2), Err(Errno::EINVAL));
    assert_eq!(create(&mut core, 256, 1, 0), Err(Errno::EINVAL));
    assert_eq!(create(&mut core, 0x7ff0, 1, 0), Err(Errno::EINVAL));
    assert_eq!(core.frames.free_frames(), free);
    assert_eq!(create(&mut core, 7, 1, 0), Ok(0));
    assert_eq!(create(&mut core, 7, 1, 0), Err(Errno::EEXIST));
    call(&mut core, control::DESTROY_DOMAIN, only(DomId::new(7))).0.unwrap();
    // With ever less memory: refused, and nothing is lost.
    let mut held = Vec::new();
    while let Some(mfn) = core.frames.alloc_core(1) {
        held.push(mfn);
    }
    let mut succeeded = false;
    while !succeeded {
        core.frames.free_core(held.pop().unwrap(), 1);
        let free = core.frames.free_frames();
        succeeded = match create(&mut core, 0, 4, 0) {
            Ok(_) => true,
            Err(refused) => {
                assert_eq!((refused, core.frames.free_frames()), (Errno::ENOMEM, free));
                false
            }
        };
    }
}

#[test]
fn a_reset_keeps_the_name_and_nothing_else() {
    let mut core = machine();
    let dom = create(&mut core, 2);
    let before = info(&mut core, dom).unwrap();
    // Dom0's own ports take a frame from the first on.
    event::bind::alloc_unbound(&mut core, DOM0, dom).unwrap();
    let free = core.frames.free_frames();
    reserve::populate(&mut core, dom, 5, None).unwrap();
    let port = event::bind::alloc_unbound(&mut core, dom, DOM0).unwrap();
    let (mine, _) = event::bind::bind_interdomain(&mut core, DOM0, dom, port).unwrap();
    call(&mut core, control::UNPAUSE_DOMAIN, only(dom)).0.unwrap();
    lifecycle::crash(&mut core, dom, format_args!("it broke"));
    call(&mut core, control::RESET_DOMAIN, only(dom)).0.unwrap();
    let after = info(&mut core, dom).unwrap();
    assert_eq!((after.domid, after.max_vcpus, after.max_pages), (before.domid, 2, 1000));
    assert_eq!(after.state, before.state, "paused once, not shut down");
    assert_ne!(after.incarnation, before.incarnation);
    assert_eq!((after.tot_pages, after.ports, after.reason[0]), (0, 0, 0));
    assert_eq!(core.frames.free_frames(), free);
    use crate::event::table::Binding;
    let binding = core.domains.get(DOM0).unwrap().events.binding(mine);
    assert_eq!(binding, Binding::Unbound { remote: dom }, "the peer waits for the same domid");
    // The new life uses the ports from the start, and the old shared-info is not there any more.
    assert_eq!(event::bind::alloc_unbound(&mut core, dom, DOM0).unwrap().get(), 1);
    let shared = core.domains.get(dom).unwrap().shared_info;
    for at in (0..size_of::<SharedInfo>() as u64).step_by(8).skip(1) {
        let word = core.frames.mem().read_u64(Maddr::new(shared.maddr().get() + at));
        // The mask byte of each vcpu_info is set.
        if (3072..3088).contains(&at) {
            continue; // The wall clock.
        }
        assert!(word == 0 || at % 64 == 0 && word == 0x100, "{at}: {word:#x}");
    }
}

#[test]
fn what_others_still_map_of_a_dead_domain_is_not_free() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let mfn = reserve::populate(&mut core, dom, 0, None).unwrap();
    core.frames.get_writable(mfn, dom).unwrap();
    call(&mut core, control::DESTROY_DOMAIN, only(dom)).0.unwrap();
    assert!(!matches!(core.frames.owner(mfn), Owner::Free | Owner::Domain(_)));
    core.frames.put_writable(mfn);
    assert!(matches!(core.frames.owner(mfn), Owner::Free));
}

#[test]
fn pauses_nest_and_dom0_can_not_pause_itself() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let state = |core: &mut Core| info(core, dom).unwrap().state & control::STATE_PAUSED;
    call(&mut core, control::PAUSE_DOMAIN, only(dom)).0.unwrap();
    call(&mut core, control::UNPAUSE_DOMAIN, only(dom)).0.unwrap();
    assert_eq!(state(&mut core), control::STATE_PAUSED);
    call(&mut core, control::UNPAUSE_DOMAIN, only(dom)).0.unwrap();
    assert_eq!(state(&mut core), 0);
    assert_eq!(call(&mut core, control::UNPAUSE_DOMAIN, only(dom)).0, Err(Errno::EINVAL));
    for cmd in [
        control::PAUSE_DOMAIN,
        control::UNPAUSE_DOMAIN,
        control::DESTROY_DOMAIN,
        control::RESET_DOMAIN,
    ] {
        assert_eq!(call(&mut core, cmd, only(DOM0)).0, Err(Errno::EPERM));
        assert_eq!(call(&mut core, cmd, only(DomId::new(77))).0, Err(Errno::ESRCH));
        assert_eq!(call(&mut core, cmd, only(DomId::SELF)).0, Err(Errno::ESRCH));
    }
}

#[test]
fn a_crash_is_told_to_dom0_with_its_reason() {
    let mut core = machine();
    let port = event::bind::bind_virq(&mut core, DOM0, VIRQ_DOM_EXC, VcpuId::new(0)).unwrap();
    let dom = create(&mut core, 1);
    assert!(!event::is_pending(&core, DOM0, port));
    let long = "é".repeat(100);
    lifecycle::crash(&mut core, dom, format_args!("cause {long}"));
    assert!(event::is_pending(&core, DOM0, port));
    let info = info(&mut core, dom).unwrap();
    assert_eq!(info.state & control::STATE_SHUTDOWN, control::STATE_SHUTDOWN);
    assert_eq!(info.shutdown_reason, SHUTDOWN_CRASH);
    let text = core::str::from_utf8(&info.reason[..120]).unwrap().trim_end_matches('\0');
    assert!(text.starts_with("cause éé") && text.len() >= 118);
    // Only the first word counts.
    lifecycle::shutdown(&mut core, dom, SHUTDOWN_POWEROFF);
    assert_eq!(core.domains.get(dom).unwrap().life, Life::Shutdown(SHUTDOWN_CRASH));
}

#[test]
#[should_panic(expected = "0x22")]
fn dom0s_crash_ends_the_machine() {
    let mut core = machine();
    lifecycle::crash(&mut core, DOM0, format_args!("no way on"));
}

#[test]
#[should_panic(expected = "0x10")]
fn dom0s_poweroff_ends_the_machine_well() {
    let mut core = machine();
    lifecycle::shutdown(&mut core, DOM0, SHUTDOWN_POWEROFF);
}

#[test]
#[should_panic(expected = "0x22")]
fn dom0s_reboot_is_no_poweroff() {
    let mut core = machine();
    lifecycle::shutdown(&mut core, DOM0, SHUTDOWN_REBOOT);
}

#[test]
fn information_iterates_over_the_domains_there_are() {
    let mut core = machine();
    let (a, b) = (create(&mut core, 1), create(&mut core, 1));
    call(&mut core, control::DESTROY_DOMAIN, only(a)).0.unwrap();
    assert_eq!(info(&mut core, DOM0).unwrap().domid, 0);
    assert_eq!(info(&mut core, a).unwrap().domid, b.get());
    let beyond = DomId::new(b.get() + 1);
    assert_eq!(info(&mut core, beyond).unwrap_err(), Errno::ESRCH);
    let dom0 = info(&mut core, DOM0).unwrap();
    assert_eq!((dom0.tot_pages, dom0.online_vcpus), (DOM0_FRAMES, 1));
}

#[test]
fn only_dom0_controls_and_only_with_good_addresses() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let free = core.frames.free_frames();
    for cmd in 0..20 {
        let stranger = Caller { dom, ..CALLER };
        let outcome = control(&mut core, stranger, [cmd, SCRATCH, 0, 0, 0, 0]);
        assert_eq!(outcome, Outcome::Done(Errno::EPERM.to_rax()));
        for bad in [0, 0xffff_8000_0000_0000, u64::MAX - 3, 0x8000_0000_0000] {
            let outcome = control(&mut core, CALLER, [cmd, bad, 0, 0, 0, 0]);
            let Outcome::Done(rax) = outcome else { panic!("{cmd} {bad:#x}: {outcome:?}") };
            assert!(rax < 0, "{cmd} {bad:#x}: {outcome:?}");
        }
    }
    // Where the answer can not be written, nothing is made.
    let tables = start_info(&core).pt_base;
    for cmd in [control::CREATE_DOMAIN, control::DOMAIN_INFO, control::MACHINE_INFO] {
        let outcome = control(&mut core, CALLER, [cmd, tables, 0, 0, 0, 0]);
        assert_eq!(outcome, Outcome::Done(Errno::EFAULT.to_rax()));
    }
    assert_eq!(core.frames.free_frames(), free);
    assert!(core.domains.get(dom).is_some());
}

#[test]
fn a_stopped_or_dying_domain_gets_no_context() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let asked =
        control::SetVcpuContext { domid: dom.get(), context: SCRATCH + 64, ..Default::default() };
    let missing = control::SetVcpuContext { vcpu: 1, ..asked };
    assert_eq!(call(&mut core, control::SET_VCPU_CONTEXT, missing).0, Err(Errno::ENOENT));
    assert_eq!(call(&mut core, control::SET_VCPU_CONTEXT, asked).0, Err(Errno::EINVAL), "no root");
    lifecycle::shutdown(&mut core, dom, SHUTDOWN_POWEROFF);
    assert_eq!(call(&mut core, control::SET_VCPU_CONTEXT, asked).0, Err(Errno::EINVAL));
}

#[test]
fn limits_and_machine_facts_are_read_back() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let limit = SetMaxPages { domid: dom.get(), max_pages: 5, ..Default::default() };
    call(&mut core, control::SET_MAX_PAGES, limit).0.unwrap();
    assert_eq!(info(&mut core, dom).unwrap().max_pages, 5);
    assert!(reserve::populate(&mut core, dom, 3, None).is_err());
    let (result, machine) = call(&mut core, control::MACHINE_INFO, MachineInfo::default());
    result.unwrap();
    assert_eq!(machine.total_frames, FRAMES as u64);
    assert_eq!(machine.free_frames, core.frames.free_frames());
    let unknown = SetMaxPages { domid: 99, ..limit };
    assert_eq!(call(&mut core, control::SET_MAX_PAGES, unknown).0, Err(Errno::ESRCH));
}

#[test]
fn devices_that_are_not_there_are_refused() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let asked = control::DeviceRef { domid: dom.get(), sbdf: 24, ..Default::default() };
    assert_eq!(
        call(&mut core, control::ASSIGN_DEVICE, asked).0,
        Err(Errno::EPERM),
        "not for drivers"
    );
    core.domains.get_mut(dom).unwrap().is_driver = true;
    assert_eq!(call(&mut core, control::ASSIGN_DEVICE, asked).0, Err(Errno::ENODEV));
    assert_eq!(call(&mut core, control::DEASSIGN_DEVICE, asked).0, Err(Errno::ENODEV));
    let huge = control::DeviceRef { sbdf: 1 << 16, ..asked };
    assert_eq!(call(&mut core, control::ASSIGN_DEVICE, huge).0, Err(Errno::ENODEV));
    for (cmd, errno) in [
        (dev::DESCRIBE, Errno::ENOENT),
        (dev::CONFIG_READ, Errno::ENODEV),
        (dev::CONFIG_WRITE, Errno::ENODEV),
        (dev::BAR, Errno::ENODEV),
        (dev::IRQ, Errno::ENODEV),
        (dev::RESET, Errno::ENODEV),
        (7, Errno::ENOSYS),
    ] {
        core.guest(CALLER).write(GuestVa::new(SCRATCH), &[0u8; 64]).unwrap();
        let outcome = device(&mut core, CALLER, [cmd, SCRATCH, 0, 0, 0, 0]);
        assert_eq!(outcome, Outcome::Done(errno.to_rax()), "{cmd}");
    }
}
