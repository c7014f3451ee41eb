//! The scheduler under domains: timers, block and poll, vCPUs up and down, and what guests are
//! shown of time.

use super::super::*;
use crate::{
    arch,
    fixture::{self, get, page, put},
    hypercall::{
        Outcome,
        sched::{sched_op, set_timer_op},
        vcpu::vcpu_op,
    },
};
use bulkhead_abi::{
    event::VIRQ_TIMER,
    sched::{Poll, SCHEDOP_BLOCK, SCHEDOP_POLL, SCHEDOP_YIELD},
    shared_info::{VcpuInfo, VcpuTimeInfo},
    vcpu::*,
};
use core::mem::offset_of;

const CPU: CpuId = CpuId(0);
const MS: u64 = 1_000_000;

fn machine() -> (Core, Caller) {
    arch::fake::set_now(Ns::new(1000 * MS));
    let mut core = fixture::core();
    let caller = fixture::domain(&mut core, 1, 2);
    core.domains.get_mut(caller.dom).unwrap().pauses = 0;
    (core, caller)
}

fn set_now(core: &mut Core, ns: u64) {
    arch::fake::set_now(Ns::new(ns));
    timer::expire(core, CpuId(0), Ns::new(ns));
}

fn pick_now(core: &mut Core) -> Option<VcpuId> {
    pick(core, CPU, arch::now()).next.map(|who| who.vcpu)
}

fn bind_timer(core: &mut Core, caller: Caller) -> Port {
    crate::event::bind_virq(core, caller.dom, VIRQ_TIMER, caller.vcpu).unwrap()
}

fn is_blocked(core: &mut Core, caller: Caller) -> bool {
    times(core, caller.dom, caller.vcpu).unwrap().state == RUNSTATE_BLOCKED
}

fn block_now(core: &mut Core, caller: Caller) {
    assert_eq!(sched_op(core, caller, [SCHEDOP_BLOCK, 0, 0, 0, 0, 0]), Outcome::Done(0));
}

/// Takes what is pending, as a guest's upcall handler does.
fn take_events(core: &mut Core, caller: Caller, port: Port) {
    let domain = core.domains.get(caller.dom).unwrap();
    let (info, shared) = (domain.vcpu(caller.vcpu).unwrap().info, domain.shared_info.maddr());
    let mem = core.frames.mem();
    mem.write_u8(info, 0);
    mem.write_u64(bulkhead_abi::Maddr::new(info.get() + 8), 0);
    let word = bulkhead_abi::Maddr::new(shared.get() + 2048 + u64::from(port.get() / 64) * 8);
    mem.fetch_and_u64(word, !(1 << (port.get() % 64)));
}

#[test]
fn a_timer_fires_at_its_deadline_and_not_before() {
    let (mut core, caller) = machine();
    let port = bind_timer(&mut core, caller);
    let at = 1010 * MS;
    assert_eq!(set_timer_op(&mut core, caller, [at, 0, 0, 0, 0, 0]), Outcome::Done(0));
    block_now(&mut core, caller);
    assert!(is_blocked(&mut core, caller));
    assert_eq!(core.sched.next_deadline(CPU), Some(Ns::new(at)));
    set_now(&mut core, at - 1);
    assert!(is_blocked(&mut core, caller));
    assert!(!crate::event::is_pending(&core, caller.dom, port));
    set_now(&mut core, at);
    assert!(crate::event::is_pending(&core, caller.dom, port));
    assert!(!is_blocked(&mut core, caller));
    assert_eq!(core.sched.next_deadline(CPU), None);
}

#[test]
fn a_new_deadline_replaces_the_old_one_and_0_stops_it() {
    let (mut core, caller) = machine();
    for (asked, deadline) in [(1010 * MS, Some(1010 * MS)), (1020 * MS, Some(1020 * MS)), (0, None)]
    {
        let _ = set_timer_op(&mut core, caller, [asked, 0, 0, 0, 0, 0]);
        assert_eq!(core.sched.next_deadline(CPU), deadline.map(Ns::new));
    }
}

#[test]
fn a_deadline_in_the_past_fires_at_once() {
    let (mut core, caller) = machine();
    let port = bind_timer(&mut core, caller);
    let _ = set_timer_op(&mut core, caller, [1, 0, 0, 0, 0, 0]);
    assert!(crate::event::is_pending(&core, caller.dom, port));
    take_events(&mut core, caller, port);
    let past = SetSingleshotTimer { timeout_abs_ns: 5, ..Default::default() };
    put(&core, caller, page(1), &past);
    let args = [VCPUOP_SET_SINGLESHOT_TIMER, 0, page(1), 0, 0, 0];
    assert_eq!(vcpu_op(&mut core, caller, args), Outcome::Done(0));
    assert!(crate::event::is_pending(&core, caller.dom, port));
}

#[test]
fn a_deadline_that_must_be_in_the_future_is_refused_in_the_past() {
    let (mut core, caller) = machine();
    let past = SetSingleshotTimer { timeout_abs_ns: 5, flags: VCPU_SSHOTTMR_FUTURE, _pad: 0 };
    put(&core, caller, page(1), &past);
    let args = [VCPUOP_SET_SINGLESHOT_TIMER, 0, page(1), 0, 0, 0];
    assert_eq!(vcpu_op(&mut core, caller, args), Outcome::Done(Errno::ETIME.to_rax()));
}

#[test]
fn a_deadline_absurdly_far_ahead_fires_soon() {
    let (mut core, caller) = machine();
    for far in [u64::MAX, 1 << 63, 1000 * MS + (1 << 50) + 1] {
        let _ = set_timer_op(&mut core, caller, [far, 0, 0, 0, 0, 0]);
        assert_eq!(core.sched.next_deadline(CPU), Some(Ns::new(1100 * MS)));
    }
}

#[test]
fn a_periodic_timer_ticks_on_and_does_not_make_up_for_missed_ticks() {
    let (mut core, caller) = machine();
    let port = bind_timer(&mut core, caller);
    put(&core, caller, page(1), &(10 * MS));
    let start = [VCPUOP_SET_PERIODIC_TIMER, 0, page(1), 0, 0, 0];
    assert_eq!(vcpu_op(&mut core, caller, start), Outcome::Done(0));
    assert_eq!(core.sched.next_deadline(CPU), Some(Ns::new(1010 * MS)));
    set_now(&mut core, 1035 * MS);
    assert!(crate::event::is_pending(&core, caller.dom, port));
    assert_eq!(core.sched.next_deadline(CPU), Some(Ns::new(1040 * MS)));
    let stop = [VCPUOP_STOP_PERIODIC_TIMER, 0, 0, 0, 0, 0];
    assert_eq!(vcpu_op(&mut core, caller, stop), Outcome::Done(0));
    assert_eq!(core.sched.next_deadline(CPU), None);
    put(&core, caller, page(1), &(MS - 1));
    assert_eq!(vcpu_op(&mut core, caller, start), Outcome::Done(Errno::EINVAL.to_rax()));
}

#[test]
fn block_takes_events_again_and_does_not_sleep_on_a_pending_one() {
    let (mut core, caller) = machine();
    let port = bind_timer(&mut core, caller);
    let wake = crate::event::set_pending(&mut core, caller.dom, port);
    core.wake(wake);
    block_now(&mut core, caller);
    assert!(!is_blocked(&mut core, caller));
    take_events(&mut core, caller, port);
    block_now(&mut core, caller);
    assert!(is_blocked(&mut core, caller));
    assert_eq!(pick_now(&mut core), None);
}

fn poll_for(core: &mut Core, caller: Caller, ports: &[u32], timeout: u64) -> Outcome {
    for (n, port) in ports.iter().enumerate() {
        put(core, caller, page(2) + 4 * n as u64, port);
    }
    let asked = Poll { ports: page(2), nr_ports: ports.len() as u32, _pad: 0, timeout };
    put(core, caller, page(1), &asked);
    sched_op(core, caller, [SCHEDOP_POLL, page(1), 0, 0, 0, 0])
}

#[test]
fn a_poll_ends_with_its_port_though_events_are_masked() {
    let (mut core, caller) = machine();
    let port = crate::event::bind_ipi(&mut core, caller.dom, caller.vcpu).unwrap();
    let other = crate::event::bind_ipi(&mut core, caller.dom, VcpuId::new(1)).unwrap();
    assert_eq!(poll_for(&mut core, caller, &[port.get()], 0), Outcome::Done(0));
    assert!(is_blocked(&mut core, caller));
    let wake = crate::event::send(&mut core, caller.dom, other).unwrap();
    core.wake(wake);
    assert!(is_blocked(&mut core, caller), "it polls for another port");
    let wake = crate::event::send(&mut core, caller.dom, port).unwrap();
    core.wake(wake);
    assert!(!is_blocked(&mut core, caller));
    assert_eq!(core.vcpu(caller).unwrap().sched.polling, None);
    assert_eq!(poll_for(&mut core, caller, &[port.get()], 0), Outcome::Done(0));
    assert!(!is_blocked(&mut core, caller), "it is pending already");
}

#[test]
fn a_poll_ends_with_its_port_though_the_port_is_masked() {
    let (mut core, caller) = machine();
    let port = crate::event::bind_ipi(&mut core, caller.dom, VcpuId::new(1)).unwrap();
    let shared = core.domains.get(caller.dom).unwrap().shared_info.maddr();
    core.frames.mem().write_u64(bulkhead_abi::Maddr::new(shared.get() + 2560), u64::MAX);
    assert_eq!(poll_for(&mut core, caller, &[port.get(), 9], 0), Outcome::Done(0));
    assert!(is_blocked(&mut core, caller));
    let wake = crate::event::send(&mut core, caller.dom, port).unwrap();
    core.wake(wake);
    assert!(!is_blocked(&mut core, caller));
}

#[test]
fn a_poll_ends_with_its_time() {
    let (mut core, caller) = machine();
    assert_eq!(poll_for(&mut core, caller, &[], 1005 * MS), Outcome::Done(0));
    assert!(is_blocked(&mut core, caller));
    set_now(&mut core, 1005 * MS);
    assert!(!is_blocked(&mut core, caller));
    assert_eq!(poll_for(&mut core, caller, &[], 1004 * MS), Outcome::Done(0));
    assert!(!is_blocked(&mut core, caller), "the time has passed");
}

#[test]
fn a_poll_for_too_many_ports_or_none_that_exists_is_refused() {
    let (mut core, caller) = machine();
    let einval = Outcome::Done(Errno::EINVAL.to_rax());
    assert_eq!(poll_for(&mut core, caller, &[4096], 0), einval);
    assert_eq!(poll_for(&mut core, caller, &[0; 129], 0), einval);
    let asked = Poll { ports: 1 << 40, nr_ports: 1, _pad: 0, timeout: 0 };
    put(&core, caller, page(1), &asked);
    let refused = sched_op(&mut core, caller, [SCHEDOP_POLL, page(1), 0, 0, 0, 0]);
    assert_eq!(refused, Outcome::Done(Errno::EFAULT.to_rax()));
    let asked = Poll { ports: u64::MAX - 2, ..asked };
    put(&core, caller, page(1), &asked);
    let refused = sched_op(&mut core, caller, [SCHEDOP_POLL, page(1), 0, 0, 0, 0]);
    assert_eq!(refused, Outcome::Done(Errno::EFAULT.to_rax()));
}

#[test]
fn vcpus_come_up_and_go_down_and_the_last_takes_the_domain_with_it() {
    let (mut core, caller) = machine();
    let op = |core: &mut Core, op, n: u64| vcpu_op(core, caller, [op, n, 0, 0, 0, 0]);
    assert_eq!(op(&mut core, VCPUOP_IS_UP, 0), Outcome::Done(1));
    assert_eq!(op(&mut core, VCPUOP_IS_UP, 1), Outcome::Done(0));
    for n in [2, 31, 32, 8191, u64::MAX] {
        assert_eq!(op(&mut core, VCPUOP_IS_UP, n), Outcome::Done(Errno::ENOENT.to_rax()));
    }
    core.domains.get_mut(caller.dom).unwrap().vcpu_mut(VcpuId::new(1)).unwrap().initialised = false;
    assert_eq!(op(&mut core, VCPUOP_UP, 1), Outcome::Done(Errno::EINVAL.to_rax()));
    core.domains.get_mut(caller.dom).unwrap().vcpu_mut(VcpuId::new(1)).unwrap().initialised = true;
    assert_eq!(op(&mut core, VCPUOP_UP, 1), Outcome::Done(0));
    assert_eq!(op(&mut core, VCPUOP_DOWN, 0), Outcome::Done(0));
    assert_eq!(pick_now(&mut core), Some(VcpuId::new(1)));
    assert_eq!(op(&mut core, VCPUOP_DOWN, 1), Outcome::Done(0));
    let life = core.domains.get(caller.dom).unwrap().life;
    assert_eq!(life, Life::Shutdown(bulkhead_abi::sched::SHUTDOWN_POWEROFF));
    assert_eq!(op(&mut core, VCPUOP_INITIALISE, 0), Outcome::Done(Errno::EEXIST.to_rax()));
    assert_eq!(op(&mut core, 99, 0), Outcome::Done(Errno::ENOSYS.to_rax()));
}

#[test]
fn a_paused_domain_does_not_run_and_keeps_what_it_waits_for() {
    let (mut core, caller) = machine();
    assert_eq!(pick_now(&mut core), Some(caller.vcpu));
    core.domains.get_mut(caller.dom).unwrap().pauses = 1;
    refresh(&mut core, caller.dom);
    assert!(core.cpus[0].need_resched);
    assert_eq!(pick_now(&mut core), None);
    core.domains.get_mut(caller.dom).unwrap().pauses = 0;
    refresh(&mut core, caller.dom);
    assert_eq!(pick_now(&mut core), Some(caller.vcpu));
    block_now(&mut core, caller);
    core.domains.get_mut(caller.dom).unwrap().pauses = 1;
    refresh(&mut core, caller.dom);
    assert!(is_blocked(&mut core, caller));
}

#[test]
fn a_wake_up_of_an_earlier_life_wakes_nobody() {
    let (mut core, caller) = machine();
    let incarnation = core.domains.get(caller.dom).unwrap().incarnation;
    let stale = Wake::Vcpus { dom: caller.dom, incarnation, mask: 1 };
    block_now(&mut core, caller);
    core.domains.get_mut(caller.dom).unwrap().incarnation = Incarnation(99);
    core.wake(stale);
    assert!(is_blocked(&mut core, caller));
}

#[test]
fn a_moved_vcpu_info_keeps_what_was_pending_and_says_look_everywhere() {
    let (mut core, caller) = machine();
    let old = core.domains.get(caller.dom).unwrap().vcpu(caller.vcpu).unwrap().info;
    let mfn = fixture::frame_at(&core, caller, page(3));
    put(&core, caller, page(1), &RegisterVcpuInfo { mfn: mfn.get(), offset: 0x100, _pad: 0 });
    let args = [VCPUOP_REGISTER_VCPU_INFO, 0, page(1), 0, 0, 0];
    assert_eq!(vcpu_op(&mut core, caller, args), Outcome::Done(0));
    let info: VcpuInfo = get(&core, caller, page(3) + 0x100);
    assert_eq!((info.evtchn_upcall_pending, info.evtchn_upcall_mask), (1, 1));
    assert_eq!(info.evtchn_pending_sel, u64::MAX);
    assert_eq!(info.time.system_time, 1000 * MS);
    assert_eq!(info.time.version % 2, 0);
    assert_ne!(core.domains.get(caller.dom).unwrap().vcpu(caller.vcpu).unwrap().info, old);
    assert_eq!(vcpu_op(&mut core, caller, args), Outcome::Done(Errno::EINVAL.to_rax()));
}

#[test]
fn a_vcpu_info_that_is_no_place_for_one_is_refused() {
    let (mut core, caller) = machine();
    let mfn = fixture::frame_at(&core, caller, page(3)).get();
    let root = core.vcpu(caller).unwrap().roots.kernel.unwrap().get();
    let args = [VCPUOP_REGISTER_VCPU_INFO, 0, page(1), 0, 0, 0];
    for (mfn, offset, refusal) in [
        (mfn, 4, Errno::ENXIO),
        (mfn, 4096 - 56, Errno::ENXIO),
        (mfn, 8192, Errno::ENXIO),
        (root, 0, Errno::EINVAL),
        (1, 0, Errno::EINVAL),
        (1 << 30, 0, Errno::EINVAL),
        (u64::MAX, 0, Errno::EINVAL),
    ] {
        put(&core, caller, page(1), &RegisterVcpuInfo { mfn, offset, _pad: 0 });
        let refused = vcpu_op(&mut core, caller, args);
        assert_eq!(refused, Outcome::Done(refusal.to_rax()), "{mfn:#x} {offset:#x}");
    }
}

#[test]
fn the_time_page_is_a_pair_that_belongs_together() {
    let (mut core, caller) = machine();
    let info = core.domains.get(caller.dom).unwrap().vcpu(caller.vcpu).unwrap().info;
    let mut versions = Vec::new();
    for ns in [1001 * MS, 1002 * MS] {
        arch::fake::set_now(Ns::new(ns));
        time::publish(&mut core, caller.dom, caller.vcpu);
        let mut bytes = [0; size_of::<VcpuTimeInfo>()];
        let at = info.get() + offset_of!(VcpuInfo, time) as u64;
        core.frames.mem().read_bytes(bulkhead_abi::Maddr::new(at), &mut bytes);
        let time: VcpuTimeInfo = zerocopy::transmute!(bytes);
        assert_eq!((time.tsc_timestamp, time.system_time), (ns, ns));
        assert_eq!((time.tsc_to_system_mul, time.tsc_shift), arch::time_scale());
        versions.push(time.version);
    }
    assert!(versions[0].is_multiple_of(2) && versions[1] == versions[0] + 2);
}

#[test]
fn the_run_state_area_is_written_whenever_the_vcpu_comes_in() {
    let (mut core, caller) = machine();
    put(&core, caller, page(1), &page(4));
    let args = [VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, 0, page(1), 0, 0, 0];
    assert_eq!(vcpu_op(&mut core, caller, args), Outcome::Done(0));
    core.domains.get_mut(caller.dom).unwrap().assists = 1 << 5;
    arch::fake::set_now(Ns::new(1003 * MS));
    let next = pick(&mut core, CPU, arch::now()).next.unwrap();
    entered(&mut core, next);
    let info: RunstateInfo = get(&core, caller, page(4));
    assert_eq!(info.state, RUNSTATE_RUNNING);
    assert_eq!(info.state_entry_time, 1003 * MS);
    assert_eq!(info.time[RUNSTATE_RUNNABLE as usize], 3 * MS);
    put(&core, caller, page(1), &0xffff_8000_0000_0000u64);
    assert_eq!(vcpu_op(&mut core, caller, args), Outcome::Done(Errno::EFAULT.to_rax()));
}

#[test]
fn dom0_sets_and_reads_parameters() {
    let (mut core, caller) = machine();
    let asked = SchedParams {
        domid: caller.dom.get(),
        vcpu: u32::MAX,
        weight: 512,
        warp_ns: 7,
        ..Default::default()
    };
    assert_eq!(set_params(&mut core, &asked), Ok(()));
    let told = get_params(&core, &SchedParams { vcpu: 1, ..asked }).unwrap();
    assert_eq!((told.weight, told.warp_ns), (512, 7));
    assert_eq!(set_params(&mut core, &SchedParams { weight: 0, ..asked }), Err(Errno::EINVAL));
    assert_eq!(set_params(&mut core, &SchedParams { vcpu: 2, ..asked }), Err(Errno::ENOENT));
    assert_eq!(set_params(&mut core, &SchedParams { domid: 9, ..asked }), Err(Errno::ESRCH));
    assert!(get_params(&core, &asked).is_err());
    assert!(times(&mut core, caller.dom, VcpuId::new(7)).is_err());
}

#[test]
fn a_yield_by_hypercall_makes_the_cpu_choose_anew() {
    let (mut core, caller) = machine();
    let other = fixture::domain(&mut core, 2, 1);
    let first = pick(&mut core, CPU, arch::now()).next.unwrap();
    let running = if first.dom == caller.dom { caller } else { other };
    core.cpus[0].need_resched = false;
    let done = sched_op(&mut core, running, [SCHEDOP_YIELD, 0, 0, 0, 0, 0]);
    assert_eq!(done, Outcome::Done(0));
    assert!(core.cpus[0].need_resched);
    assert_ne!(pick(&mut core, CPU, arch::now()).next, Some(first));
}

#[test]
fn the_run_state_that_is_asked_for_counts_up_to_now() {
    let (mut core, caller) = machine();
    block_now(&mut core, caller);
    arch::fake::set_now(Ns::new(1007 * MS));
    let args = [VCPUOP_GET_RUNSTATE_INFO, 0, page(1), 0, 0, 0];
    assert_eq!(vcpu_op(&mut core, caller, args), Outcome::Done(0));
    let info: RunstateInfo = get(&core, caller, page(1));
    assert_eq!((info.state, info.state_entry_time), (RUNSTATE_BLOCKED, 1000 * MS));
    assert_eq!(info.time[RUNSTATE_BLOCKED as usize], 7 * MS);
    assert_eq!(info.time.iter().sum::<u64>(), 7 * MS);
}
