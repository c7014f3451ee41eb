//! Domains with page tables, a context and a device: what they hold goes back, and their
//! owners' calls work.

use super::{CALLER, DOM0, SCRATCH, call, create, info, machine, only, start_info, walk};
use crate::{
    Core,
    device::{self, machine::fake, pci::Sbdf},
    domain::{Life, VcpuRef, teardown::Ending},
    event,
    hypercall::{Outcome, device::device as device_call, device::physdev_eoi, sched::sched_op},
    memory::{
        frame::{
            FrameType, Owner,
            table::{Budget, Walk},
        },
        grant, reserve,
        teardown::keep_given,
        validate::Level,
    },
    sched,
    state::{Caller, CpuId},
};
use bulkhead_abi::{
    DomId, Errno, GuestVa, Maddr, Mfn, Ns, PAGE_SIZE, VcpuId,
    control::{self, CreateDomain, DeviceRef, SchedParams, SetGrant, SetVcpuContext, VcpuTimes},
    device::{self as dev, Bar, Config, Describe, INTX, Irq},
    grant::GTF_PERMIT_ACCESS,
    sched::{RemoteShutdown, SCHEDOP_REMOTE_SHUTDOWN, SHUTDOWN_CRASH, SHUTDOWN_POWEROFF},
    vcpu::{VGCF_IN_KERNEL, VcpuGuestContext},
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

const VCPU0: VcpuId = VcpuId::new(0);
/// Padding above Dom0's stack.
const LARGE: u64 = super::BASE + 0x38_0000;

/// Gives `dom` four tables that map one page, writable, at address 0; the root, pinned.
fn tables(core: &mut Core, dom: DomId) -> Mfn {
    let frame: [Mfn; 5] = core::array::from_fn(|_| reserve::populate(core, dom, 0, None).unwrap());
    for pair in frame.windows(2) {
        core.frames.mem().write_u64(pair[0].maddr(), pair[1].maddr().get() | 0x67);
    }
    let mut walk = Walk { budget: &mut Budget::default(), io: &|_| false };
    core.frames.pin(frame[0], dom, Level::L4, &mut walk).unwrap();
    frame[0]
}

/// Starts vCPU 0 of `dom` on `root`.
fn start(core: &mut Core, dom: DomId, root: Mfn) -> Result<i64, Errno> {
    let mut context = VcpuGuestContext::new_zeroed();
    context.flags = VGCF_IN_KERNEL;
    context.user_regs.rip = 0x100;
    context.ctrlreg[3] = root.maddr().get();
    core.guest(CALLER).write(GuestVa::new(LARGE), &context).unwrap();
    let asked = SetVcpuContext { domid: dom.get(), context: LARGE, ..Default::default() };
    call(core, control::SET_VCPU_CONTEXT, asked).0
}

fn driver(core: &mut Core) -> DomId {
    let asked = CreateDomain {
        max_vcpus: 1,
        max_pages: 100,
        flags: control::CREATE_DRIVER,
        ..Default::default()
    };
    let (result, answer) = call(core, control::CREATE_DOMAIN, asked);
    result.unwrap();
    let dom = DomId::new(answer.domid);
    let root = tables(core, dom);
    start(core, dom, root).unwrap();
    dom
}

fn current(core: &mut Core) -> Option<VcpuRef> {
    let next = sched::pick(core, CpuId(0), Ns::new(0)).next;
    core.cpus[0].current = next;
    next
}

#[test]
fn a_started_domain_is_destroyed_from_under_its_cpu_and_nothing_is_lost() {
    let mut core = machine();
    create(&mut core, 1);
    let free = core.frames.free_frames();
    let dom = create(&mut core, 2);
    let root = tables(&mut core, dom);
    start(&mut core, dom, root).unwrap();
    assert_eq!(start(&mut core, dom, root), Err(Errno::EEXIST));
    call(&mut core, control::UNPAUSE_DOMAIN, only(dom)).0.unwrap();
    // Dom0 waits; the domain has the CPU.
    sched::block(&mut core, CALLER);
    assert_eq!(current(&mut core).map(|who| who.dom), Some(dom));
    assert_eq!(info(&mut core, dom).unwrap().state, control::STATE_RUNNING);
    call(&mut core, control::DESTROY_DOMAIN, only(dom)).0.unwrap();
    assert_eq!(core.cpus[0].current, None);
    assert!(core.cpus[0].need_resched);
    assert_eq!(current(&mut core), None);
    assert_eq!(core.frames.free_frames(), free);
    assert!(matches!(core.frames.owner(root), Owner::Free));
}

#[test]
fn a_reset_domain_can_be_built_and_started_again_and_old_names_are_stale() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let mut free = None;
    for life in 1..=5 {
        let root = tables(&mut core, dom);
        start(&mut core, dom, root).unwrap();
        call(&mut core, control::UNPAUSE_DOMAIN, only(dom)).0.unwrap();
        let old = core.domains.get(dom).unwrap().incarnation;
        let who = VcpuRef { dom, vcpu: VCPU0, incarnation: old };
        assert!(core.domains.resolve(who).is_some());
        call(&mut core, control::RESET_DOMAIN, only(dom)).0.unwrap();
        assert!(core.domains.resolve(who).is_none());
        let after = info(&mut core, dom).unwrap();
        assert_eq!((after.incarnation, after.online_vcpus), (life + 1, 0));
        let now = core.frames.free_frames();
        assert_eq!(*free.get_or_insert(now), now, "life {life} leaks");
    }
}

/// Notes as given by Dom0 all that a domain has.
fn give_all(core: &mut Core, dom: DomId) -> Vec<Mfn> {
    let all = (0..core.frames.max_mfn()).map(Mfn::new);
    let owned = |frame: &Mfn| core.frames.check_let_go(*frame, dom).is_ok();
    let frames: Vec<Mfn> = all.filter(owned).collect();
    frames.iter().for_each(|&mfn| core.frames.note_given(mfn, 0));
    frames
}

#[test]
fn a_reset_that_keeps_memory_keeps_what_dom0_gave_and_what_is_in_it() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let root = tables(&mut core, dom);
    let page = reserve::populate(&mut core, dom, 0, None).unwrap().maddr();
    let given = give_all(&mut core, dom);
    let mut free = None;
    for life in 1..=5 {
        core.frames.mem().write_u64(page, life);
        if life > 1 {
            // Nothing is a page table any more until it is laid out again.
            assert_eq!(core.frames.frame_type(root), FrameType::None);
        }
        start(&mut core, dom, root).unwrap();
        // It gets more by itself, and pins a table.
        let own = reserve::populate(&mut core, dom, 3, None).unwrap();
        call(&mut core, control::UNPAUSE_DOMAIN, only(dom)).0.unwrap();
        call(&mut core, control::RESET_KEEPING, only(dom)).0.unwrap();
        assert_eq!(info(&mut core, dom).unwrap().tot_pages, given.len() as u64);
        assert!(given.iter().all(|&mfn| core.frames.check_let_go(mfn, dom).is_ok()));
        assert!(matches!(core.frames.owner(own), Owner::Free));
        assert_eq!(core.frames.mem().read_u64(page), life);
        let now = core.frames.free_frames();
        assert_eq!(*free.get_or_insert(now), now, "life {life} leaks");
    }
    // A reset that takes all takes these, too.
    call(&mut core, control::RESET_DOMAIN, only(dom)).0.unwrap();
    assert_eq!(info(&mut core, dom).unwrap().tot_pages, 0);
}

#[test]
fn a_reset_keeps_no_frame_that_somebody_else_still_refers_to() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let mfn = reserve::populate(&mut core, dom, 2, None).unwrap();
    let given = give_all(&mut core, dom);
    // As a guest would that has mapped a grant of the old life.
    core.frames.get_writable(mfn, dom).unwrap();
    call(&mut core, control::RESET_KEEPING, only(dom)).0.unwrap();
    assert!(core.frames.check_let_go(mfn, dom).is_err());
    assert!(given[1..].iter().all(|&mfn| core.frames.check_let_go(mfn, dom).is_ok()));
    call(&mut core, control::RESET_DOMAIN, only(dom)).0.unwrap();
    assert_eq!(info(&mut core, dom).unwrap().tot_pages, 0);
    core.frames.put_writable(mfn);
    assert!(matches!(core.frames.owner(mfn), Owner::Free));
}

#[test]
fn a_reset_that_turns_out_to_be_the_end_leaks_nothing() {
    let mut core = machine();
    let free = core.frames.free_frames();
    for steps in [1, 7, 100, 511] {
        let dom = create(&mut core, 1);
        let root = tables(&mut core, dom);
        give_all(&mut core, dom);
        start(&mut core, dom, root).unwrap();
        core.domains.get_mut(dom).unwrap().ending = Some(Ending::ResetKeeping);
        let _ = keep_given(&mut core.frames, dom, &mut Budget::new(steps));
        core.domains.get_mut(dom).unwrap().ending = None;
        call(&mut core, control::DESTROY_DOMAIN, only(dom)).0.unwrap();
        assert_eq!(core.frames.free_frames(), free, "after {steps} steps");
    }
}

#[test]
fn the_next_domain_of_an_id_is_another_incarnation() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let first = info(&mut core, dom).unwrap().incarnation;
    call(&mut core, control::DESTROY_DOMAIN, only(dom)).0.unwrap();
    assert_eq!(create(&mut core, 1), dom);
    assert_ne!(info(&mut core, dom).unwrap().incarnation, first);
}

#[test]
fn a_stopped_domain_does_not_run_and_keeps_its_memory() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let root = tables(&mut core, dom);
    start(&mut core, dom, root).unwrap();
    call(&mut core, control::UNPAUSE_DOMAIN, only(dom)).0.unwrap();
    sched::block(&mut core, CALLER);
    assert_eq!(current(&mut core).map(|who| who.dom), Some(dom));
    crate::domain::lifecycle::crash(&mut core, dom, format_args!("bad"));
    assert_eq!(current(&mut core), None);
    assert_eq!(info(&mut core, dom).unwrap().tot_pages, 5);
    assert_eq!(core.domains.get(dom).unwrap().life, Life::Shutdown(3));
}

fn remote_shutdown(core: &mut Core, caller: Caller, dom: DomId, reason: u32) -> Outcome {
    let asked = RemoteShutdown { domain_id: dom.get(), reason, ..Default::default() };
    core.guest(CALLER).write(GuestVa::new(SCRATCH), &asked).unwrap();
    sched_op(core, caller, [SCHEDOP_REMOTE_SHUTDOWN, SCRATCH, 0, 0, 0, 0])
}

#[test]
fn dom0_crashes_a_domain_where_it_is_and_hears_of_it_as_of_any_crash() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let root = tables(&mut core, dom);
    start(&mut core, dom, root).unwrap();
    call(&mut core, control::UNPAUSE_DOMAIN, only(dom)).0.unwrap();
    let done = remote_shutdown(&mut core, CALLER, dom, SHUTDOWN_CRASH);
    assert_eq!(done, Outcome::Done(0));
    let told = info(&mut core, dom).unwrap();
    assert_eq!((told.state, told.shutdown_reason), (control::STATE_SHUTDOWN, SHUTDOWN_CRASH));
    assert!(told.reason.starts_with(b"it was crashed on request"));
    let again = remote_shutdown(&mut core, CALLER, dom, SHUTDOWN_POWEROFF);
    assert_eq!(again, Outcome::Done(0));
    assert_eq!(info(&mut core, dom).unwrap().shutdown_reason, SHUTDOWN_CRASH);
}

#[test]
fn nobody_but_dom0_stops_another_and_dom0_not_itself() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let stranger = Caller { dom, ..CALLER };
    for (caller, dom, why) in [
        (CALLER, DOM0, Errno::EPERM),
        (CALLER, DomId::new(77), Errno::ESRCH),
        (stranger, dom, Errno::EPERM),
    ] {
        let done = remote_shutdown(&mut core, caller, dom, SHUTDOWN_CRASH);
        assert_eq!(done, Outcome::from(why));
    }
    assert_eq!(core.domains.get(dom).unwrap().life, Life::Alive);
}

#[test]
fn a_registered_vcpu_info_is_let_go() {
    let mut core = machine();
    create(&mut core, 1);
    let free = core.frames.free_frames();
    let dom = create(&mut core, 1);
    let mfn = reserve::populate(&mut core, dom, 0, None).unwrap();
    core.frames.get_writable(mfn, dom).unwrap();
    let vcpu = core.domains.get_mut(dom).unwrap().vcpu_mut(VCPU0).unwrap();
    vcpu.info = Maddr::new(mfn.maddr().get() + 64);
    vcpu.info_registered = true;
    call(&mut core, control::RESET_DOMAIN, only(dom)).0.unwrap();
    let domain = core.domains.get(dom).unwrap();
    assert_eq!(domain.vcpu(VCPU0).unwrap().info, domain.shared_info.maddr());
    call(&mut core, control::DESTROY_DOMAIN, only(dom)).0.unwrap();
    assert_eq!(core.frames.free_frames(), free);
}

#[test]
fn scheduling_parameters_and_grants_are_set_by_dom0() {
    let mut core = machine();
    let dom = create(&mut core, 1);
    let asked = SchedParams {
        domid: dom.get(),
        vcpu: u32::MAX,
        weight: 512,
        allowance_ns: 1_000_000,
        ..Default::default()
    };
    call(&mut core, control::SET_SCHED, asked).0.unwrap();
    let (result, got) =
        call(&mut core, control::GET_SCHED, SchedParams { vcpu: 0, weight: 0, ..asked });
    result.unwrap();
    assert_eq!((got.weight, got.allowance_ns), (512, 1_000_000));
    assert_eq!(
        call(&mut core, control::SET_SCHED, SchedParams { weight: 0, ..asked }).0,
        Err(Errno::EINVAL)
    );
    let times = VcpuTimes { domid: dom.get(), ..Default::default() };
    call(&mut core, control::VCPU_TIMES, times).0.unwrap();
    assert!(call(&mut core, control::VCPU_TIMES, VcpuTimes { vcpu: 1, ..times }).0.is_err());
    let mfn = reserve::populate(&mut core, dom, 0, None).unwrap();
    let asked = SetGrant { domid: dom.get(), grantee: 0, gref: 1, mfn: mfn.get() };
    call(&mut core, control::SET_GRANT, asked).0.unwrap();
    let table = grant::table_frame(&core, dom, 0).unwrap();
    let entry = core.frames.mem().read_u64(Maddr::new(table.maddr().get() + 8));
    assert_eq!(entry, u64::from(GTF_PERMIT_ACCESS) | mfn.get() << 32);
    let unknown = SetGrant { domid: 99, ..asked };
    assert_eq!(call(&mut core, control::SET_GRANT, unknown).0, Err(Errno::ESRCH));
}

/// Issues a device call for the caller with its argument at `at`.
fn ask<T: IntoBytes + FromBytes + Immutable>(
    core: &mut Core,
    caller: Caller,
    at: u64,
    cmd: u64,
    arg: T,
) -> Result<T, Errno> {
    core.guest(caller).write(GuestVa::new(at), &arg).unwrap();
    match device_call(core, caller, [cmd, at, 0, 0, 0, 0]) {
        Outcome::Done(0) => Ok(core.guest(caller).read(GuestVa::new(at)).unwrap()),
        Outcome::Done(rax) => Err(Errno::from_rax(rax).unwrap()),
        other => panic!("{other:?}"),
    }
}

fn machine_with_disk() -> (Core, DomId) {
    let mut core = machine();
    core.devices = device::tests::machine();
    let dom = driver(&mut core);
    let asked = DeviceRef { domid: dom.get(), sbdf: device::tests::DISK, ..Default::default() };
    call(&mut core, control::ASSIGN_DEVICE, asked).0.unwrap();
    (core, dom)
}

#[test]
fn dom0_owns_no_device_but_memory() {
    let (mut core, dom) = machine_with_disk();
    let sbdf = device::tests::DISK;
    let asked = |dom: DomId| DeviceRef { domid: dom.get(), sbdf, ..Default::default() };
    core.domains.get_mut(dom).unwrap().vcpus.iter_mut().for_each(|vcpu| *vcpu = None);
    call(&mut core, control::DEASSIGN_DEVICE, asked(dom)).0.unwrap();
    let own = asked(DomId::DOM0);
    assert_eq!(call(&mut core, control::ASSIGN_DEVICE, own).0, Err(Errno::EPERM));
    core.devices = device::tests::machine_with_class(0x05_00_00);
    call(&mut core, control::ASSIGN_DEVICE, own).0.unwrap();
    assert_eq!(core.devices.find(Sbdf::new(sbdf).unwrap()).unwrap().owner, Some(DomId::DOM0));
}

#[test]
fn an_owner_uses_its_device_and_nobody_else_does() {
    let (mut core, dom) = machine_with_disk();
    let owner = Caller { dom, ..CALLER };
    let sbdf = device::tests::DISK;
    let seen = ask(&mut core, owner, 0, dev::DESCRIBE, Describe::default()).unwrap();
    assert_eq!(
        (seen.sbdf, seen.vendor, seen.owner, seen.msix_vectors),
        (sbdf, 0x1af4, dom.get(), 2)
    );
    let second = Describe { index: 1, ..Default::default() };
    assert_eq!(ask(&mut core, owner, 0, dev::DESCRIBE, second).unwrap_err(), Errno::ENOENT);
    let bar = Bar { sbdf, index: 4, ..Default::default() };
    let bar = ask(&mut core, owner, 0, dev::BAR, bar).unwrap();
    assert_eq!((bar.maddr, bar.bytes, bar.flags), (device::tests::MAIN_BAR, 0x4000, 2));
    let bad = Bar { index: 6, ..bar };
    assert_eq!(ask(&mut core, owner, 0, dev::BAR, bad).unwrap_err(), Errno::EINVAL);
    let command = Config { sbdf, offset: 4, width: 2, value: 6 };
    ask(&mut core, owner, 0, dev::CONFIG_WRITE, command).unwrap();
    let read = ask(&mut core, owner, 0, dev::CONFIG_READ, Config { value: 0, ..command }).unwrap();
    assert_eq!(read.value & 7, 6);
    for (offset, width, errno) in
        [(0x14, 4, Errno::EPERM), (4, 3, Errno::EINVAL), (4, 0x102, Errno::EINVAL)]
    {
        let asked = Config { sbdf, offset, width, value: 0 };
        assert_eq!(ask(&mut core, owner, 0, dev::CONFIG_WRITE, asked).unwrap_err(), errno);
    }
    // Dom0 looks at all and touches nothing.
    let all =
        ask(&mut core, CALLER, SCRATCH, dev::DESCRIBE, Describe { index: 3, ..Default::default() });
    assert_eq!(all.unwrap().owner, DomId::INVALID.get());
    ask(&mut core, CALLER, SCRATCH, dev::CONFIG_READ, command).unwrap();
    assert_eq!(
        ask(&mut core, CALLER, SCRATCH, dev::CONFIG_WRITE, command).unwrap_err(),
        Errno::ENODEV
    );
    assert_eq!(ask(&mut core, CALLER, SCRATCH, dev::BAR, bar).unwrap_err(), Errno::ENODEV);
    let irq = Irq { sbdf, entry: 0, pirq: 0 };
    assert_eq!(ask(&mut core, CALLER, SCRATCH, dev::IRQ, irq).unwrap_err(), Errno::ENODEV);
}

#[test]
fn an_interrupt_reaches_its_owners_port_until_the_domain_is_reset() {
    let (mut core, dom) = machine_with_disk();
    let owner = Caller { dom, ..CALLER };
    let asked = Irq { sbdf: device::tests::DISK, entry: INTX, pirq: 0 };
    let pirq = ask(&mut core, owner, 0, dev::IRQ, asked).unwrap().pirq;
    let vector = device::irq::FIRST_VECTOR + pirq as u8;
    let port = event::bind::bind_pirq(&mut core, dom, pirq).unwrap();
    assert!(event::bind::bind_pirq(&mut core, DOM0, pirq).is_err());
    let wake = device::irq::interrupt(&mut core, vector);
    core.wake(wake);
    assert!(event::is_pending(&core, dom, port));
    assert!(fake::with(|bus| bus.lines[&23].masked));
    core.guest(owner).write(GuestVa::new(0), &pirq).unwrap();
    assert_eq!(physdev_eoi(&mut core, owner, [12, 0, 0, 0, 0, 0]), Outcome::Done(0));
    assert!(!fake::with(|bus| bus.lines[&23].masked));
    call(&mut core, control::RESET_DOMAIN, only(dom)).0.unwrap();
    assert!(fake::with(|bus| bus.lines[&23].masked));
    let wake = device::irq::interrupt(&mut core, vector);
    assert_eq!(wake, sched::Wake::Nobody);
    // The device stays, and the next life asks for the interrupt anew.
    let sbdf = Sbdf::new(device::tests::DISK).unwrap();
    assert!(core.devices.owned(dom, sbdf).is_ok());
    let root = tables(&mut core, dom);
    start(&mut core, dom, root).unwrap();
    assert!(ask(&mut core, owner, 0, dev::IRQ, asked).is_ok());
}

#[test]
fn a_device_is_free_again_once_its_driver_is_destroyed() {
    let (mut core, dom) = machine_with_disk();
    let sbdf = device::tests::DISK;
    let asked = DeviceRef { domid: dom.get(), sbdf, ..Default::default() };
    assert_eq!(call(&mut core, control::ASSIGN_DEVICE, asked).0, Err(Errno::EBUSY));
    assert_eq!(call(&mut core, control::DEASSIGN_DEVICE, asked).0, Err(Errno::EBUSY), "it runs");
    let owner = Caller { dom, ..CALLER };
    let command = Config { sbdf, offset: 4, width: 2, value: 7 };
    ask(&mut core, owner, 0, dev::CONFIG_WRITE, command).unwrap();
    call(&mut core, control::DESTROY_DOMAIN, only(dom)).0.unwrap();
    assert_eq!(Sbdf::new(sbdf).unwrap().read(4, 2) & 4, 0, "no bus master without an owner");
    let next = driver(&mut core);
    let asked = DeviceRef { domid: next.get(), ..asked };
    call(&mut core, control::ASSIGN_DEVICE, asked).0.unwrap();
    call(&mut core, control::RESET_DOMAIN, only(next)).0.unwrap();
    call(&mut core, control::DEASSIGN_DEVICE, asked).0.unwrap();
    assert_eq!(call(&mut core, control::DEASSIGN_DEVICE, asked).0, Err(Errno::ENODEV));
}

#[test]
fn the_scratch_of_these_tests_is_dom0s_own_padding() {
    let core = machine();
    let info = start_info(&core);
    assert!(LARGE > info.pt_base + (info.nr_pt_frames + 1) * PAGE_SIZE as u64);
    assert!(walk(&core, LARGE + 2 * PAGE_SIZE as u64).unwrap().1);
}
