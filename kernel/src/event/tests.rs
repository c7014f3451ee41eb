//! Event channels between test domains: bits, bindings, refusals, and a model of the whole.

use super::{bind::close_all, *};
use crate::{
    domain::Life,
    fixture::{self, get, page, put},
    hypercall::{Outcome, event::event_channel_op},
    memory::teardown::Progress,
    state::Caller,
};
use bulkhead_abi::{
    Errno,
    event::{
        AllocUnbound, BindInterdomain, BindIpi, BindVcpu, BindVirq, EVTCHNOP_ALLOC_UNBOUND,
        EVTCHNOP_BIND_INTERDOMAIN, EVTCHNOP_BIND_IPI, EVTCHNOP_BIND_PIRQ, EVTCHNOP_BIND_VCPU,
        EVTCHNOP_BIND_VIRQ, EVTCHNOP_CLOSE, EVTCHNOP_INIT_CONTROL, EVTCHNOP_RESET, EVTCHNOP_SEND,
        EVTCHNOP_STATUS, EVTCHNSTAT_CLOSED, EVTCHNSTAT_INTERDOMAIN, EVTCHNSTAT_IPI,
        EVTCHNSTAT_UNBOUND, EVTCHNSTAT_VIRQ, NR_VIRQS, PortOp, Reset, Status, VIRQ_CONSOLE,
        VIRQ_DEBUG, VIRQ_DOM_EXC, VIRQ_TIMER,
    },
    shared_info::EVTCHN_2L_PORTS,
};
use proptest::prelude::*;

const V0: VcpuId = VcpuId::new(0);
const V1: VcpuId = VcpuId::new(1);

/// Domains 1 and 2 with two vCPUs each.
fn machine() -> (Core, Caller, Caller) {
    let mut core = fixture::core();
    let a = fixture::domain(&mut core, 1, 2);
    let b = fixture::domain(&mut core, 2, 2);
    (core, a, b)
}

fn call<T: zerocopy::IntoBytes + zerocopy::Immutable>(
    core: &mut Core,
    caller: Caller,
    op: u64,
    told: &T,
) -> Result<(), Errno> {
    put(core, caller, page(1), told);
    match event_channel_op(core, caller, [op, page(1), 0, 0, 0, 0]) {
        Outcome::Done(0) => Ok(()),
        Outcome::Done(rax) => Err(Errno::from_rax(rax).unwrap()),
        other => panic!("{other:?}"),
    }
}

/// A channel from `a` to `b`: their ports.
fn connect(core: &mut Core, a: Caller, b: Caller) -> (Port, Port) {
    let offered = alloc_unbound(core, a.dom, b.dom).unwrap();
    let (bound, wake) = bind_interdomain(core, b.dom, a.dom, offered).unwrap();
    core.wake(wake);
    (offered, bound)
}

fn info(core: &Core, who: Caller, vcpu: VcpuId) -> VcpuInfo {
    let at = core.domains.get(who.dom).unwrap().vcpu(vcpu).unwrap().info;
    let mut bytes = [0; size_of::<VcpuInfo>()];
    core.frames.mem().read_bytes(at, &mut bytes);
    zerocopy::transmute!(bytes)
}

/// Forgets all that is pending in a domain.
fn quiet(core: &mut Core, who: Caller) {
    let domain = core.domains.get(who.dom).unwrap();
    let mem = core.frames.mem();
    for n in 0..64 {
        mem.write_u64(domain.shared_info.maddr().plus(2048 + 8 * n), 0);
    }
    for vcpu in [V0, V1].iter().filter_map(|&n| domain.vcpu(n)) {
        mem.write_u8(vcpu.info, 0);
        mem.write_u64(vcpu.info.plus(8), 0);
    }
}

fn mask(core: &mut Core, who: Caller, port: Port) {
    let domain = core.domains.get(who.dom).unwrap();
    core.frames.mem().fetch_or_u64(mask_word(domain, port), bit_of(port).1);
}

fn wakes(who: Caller, core: &Core, mask: u32) -> Wake {
    let incarnation = core.domains.get(who.dom).unwrap().incarnation;
    Wake::Vcpus { dom: who.dom, incarnation, mask }
}

#[test]
fn an_event_sets_bit_selector_and_upcall_once() {
    let (mut core, a, b) = machine();
    // A port beyond the first word, to tell word and bit apart.
    for _ in 1..72 {
        alloc_unbound(&mut core, a.dom, b.dom).unwrap();
    }
    let (theirs, mine) = connect(&mut core, a, b);
    assert_eq!(theirs, Port::new(72));
    quiet(&mut core, a);
    assert_eq!(send(&mut core, b.dom, mine), Ok(wakes(a, &core, 1)));
    assert!(is_pending(&core, a.dom, theirs));
    let seen = info(&core, a, V0);
    assert_eq!((seen.evtchn_upcall_pending, seen.evtchn_pending_sel), (1, 1 << 1));
    assert_eq!(send(&mut core, b.dom, mine), Ok(Wake::Nobody));
}

#[test]
fn a_masked_port_becomes_pending_and_wakes_nobody_until_it_is_unmasked() {
    let (mut core, a, b) = machine();
    let (mine, theirs) = connect(&mut core, a, b);
    quiet(&mut core, b);
    mask(&mut core, b, theirs);
    assert_eq!(send(&mut core, a.dom, mine), Ok(Wake::Nobody));
    assert!(is_pending(&core, b.dom, theirs));
    assert_eq!(info(&core, b, V0).evtchn_upcall_pending, 0);
    assert_eq!(unmask(&mut core, b.dom, theirs), Ok(wakes(b, &core, 1)));
    assert_eq!(info(&core, b, V0).evtchn_upcall_pending, 1);
    assert_eq!(unmask(&mut core, b.dom, theirs), Ok(Wake::Nobody));
}

#[test]
fn an_upcall_is_due_when_pending_and_not_masked() {
    let (mut core, a, b) = machine();
    let (mine, _) = connect(&mut core, a, b);
    quiet(&mut core, b);
    let due = |core: &Core| upcall_due(core, core.domains.get(b.dom).unwrap().vcpu(V0).unwrap());
    let set_mask = |core: &Core, masked| {
        set_upcall_mask(core, core.domains.get(b.dom).unwrap().vcpu(V0).unwrap(), masked);
    };
    set_mask(&core, true);
    let _ = send(&mut core, a.dom, mine).unwrap();
    assert!(!due(&core));
    set_mask(&core, false);
    assert!(due(&core));
    quiet(&mut core, b);
    assert!(!due(&core));
}

#[test]
fn a_port_notifies_the_vcpu_it_is_bound_to() {
    let (mut core, a, b) = machine();
    let (mine, theirs) = connect(&mut core, a, b);
    quiet(&mut core, b);
    call(&mut core, b, EVTCHNOP_BIND_VCPU, &BindVcpu { port: theirs.get(), vcpu: 1 }).unwrap();
    assert_eq!(send(&mut core, a.dom, mine), Ok(wakes(b, &core, 2)));
    assert_eq!(info(&core, b, V1).evtchn_upcall_pending, 1);
    assert_eq!(info(&core, b, V0).evtchn_upcall_pending, 0);
}

#[test]
fn ports_are_given_out_lowest_first_and_port_0_never() {
    let (mut core, a, b) = machine();
    let mut take = || alloc_unbound(&mut core, a.dom, b.dom).unwrap().get();
    assert_eq!([take(), take(), take()], [1, 2, 3]);
    close(&mut core, a.dom, Port::new(2)).unwrap();
    let mut take = || alloc_unbound(&mut core, a.dom, b.dom).unwrap().get();
    assert_eq!([take(), take()], [2, 4]);
}

#[test]
fn all_ports_can_be_used_and_then_no_more() {
    let (mut core, a, b) = machine();
    let frames = core.frames.free_frames();
    for n in 1..EVTCHN_2L_PORTS {
        assert_eq!(alloc_unbound(&mut core, a.dom, b.dom), Ok(Port::new(n)));
    }
    assert_eq!(alloc_unbound(&mut core, a.dom, b.dom), Err(Errno::ENOSPC));
    let overhead = core.domains.get(a.dom).unwrap().memory.overhead_pages;
    assert!(overhead > 0 && core.frames.free_frames() < frames);
    core.domains.get_mut(a.dom).unwrap().life = Life::Dying;
    let mut rounds = 0;
    while close_all(&mut core, a.dom, &mut { 100 }) == Progress::More {
        rounds += 1;
    }
    assert_eq!(rounds, 40);
    assert_eq!(core.domains.get(a.dom).unwrap().events.open_ports(), 0);
    assert_eq!(core.domains.get(a.dom).unwrap().memory.overhead_pages, 0);
    assert_eq!(core.frames.free_frames(), frames);
}

#[test]
fn binding_is_refused_unless_the_port_is_offered_to_the_caller() {
    let (mut core, a, b) = machine();
    let for_b = alloc_unbound(&mut core, a.dom, b.dom).unwrap();
    let for_c = alloc_unbound(&mut core, a.dom, DomId::new(3)).unwrap();
    let bind = |core: &mut Core, port: u32, dom: u16| {
        let asked = BindInterdomain { remote_dom: dom, remote_port: port, ..Default::default() };
        call(core, b, EVTCHNOP_BIND_INTERDOMAIN, &asked)
    };
    for port in [0, for_c.get(), 50, 4096, u32::MAX] {
        assert_eq!(bind(&mut core, port, 1), Err(Errno::EINVAL), "{port}");
    }
    assert_eq!(bind(&mut core, for_b.get(), 7), Err(Errno::ESRCH));
    assert_eq!(bind(&mut core, for_b.get(), u16::MAX), Err(Errno::ESRCH));
    assert_eq!(bind(&mut core, for_b.get(), 1), Ok(()));
    assert_eq!(bind(&mut core, for_b.get(), 1), Err(Errno::EINVAL), "bound already");
    let told: BindInterdomain = get(&core, b, page(1));
    assert_eq!(told.local_port, 0, "refused: nothing is told");
}

#[test]
fn a_new_channel_is_pending_for_who_bound_it() {
    let (mut core, a, b) = machine();
    let (mine, theirs) = connect(&mut core, a, b);
    assert!(is_pending(&core, b.dom, theirs));
    assert!(!is_pending(&core, a.dom, mine));
}

#[test]
fn a_domain_may_have_a_channel_to_itself() {
    let (mut core, a, _) = machine();
    let asked = AllocUnbound { dom: DomId::SELF.get(), remote_dom: DomId::SELF.get(), port: 0 };
    call(&mut core, a, EVTCHNOP_ALLOC_UNBOUND, &asked).unwrap();
    let offered = get::<AllocUnbound>(&core, a, page(1)).port;
    let asked = BindInterdomain {
        remote_dom: DomId::SELF.get(),
        remote_port: offered,
        ..Default::default()
    };
    call(&mut core, a, EVTCHNOP_BIND_INTERDOMAIN, &asked).unwrap();
    let bound = Port::new(get::<BindInterdomain>(&core, a, page(1)).local_port);
    quiet(&mut core, a);
    call(&mut core, a, EVTCHNOP_SEND, &PortOp { port: bound.get() }).unwrap();
    assert!(is_pending(&core, a.dom, Port::new(offered)));
    close(&mut core, a.dom, bound).unwrap();
    let left = core.domains.get(a.dom).unwrap().events.binding(Port::new(offered));
    assert_eq!(left, Binding::Unbound { remote: a.dom });
}

#[test]
fn after_a_close_the_peer_waits_for_the_same_domain_and_keeps_what_is_pending() {
    let (mut core, a, b) = machine();
    let (mine, theirs) = connect(&mut core, a, b);
    let _ = send(&mut core, b.dom, theirs).unwrap();
    close(&mut core, b.dom, theirs).unwrap();
    let binding = core.domains.get(a.dom).unwrap().events.binding(mine);
    assert_eq!(binding, Binding::Unbound { remote: b.dom });
    assert!(is_pending(&core, a.dom, mine));
    assert!(!is_pending(&core, b.dom, theirs), "a closed port starts anew");
    assert_eq!(send(&mut core, a.dom, mine), Ok(Wake::Nobody), "sent to nobody");
    let (again, _) = bind_interdomain(&mut core, b.dom, a.dom, mine).unwrap();
    assert!(matches!(send(&mut core, a.dom, mine), Ok(Wake::Nobody)), "pending from the bind");
    quiet(&mut core, b);
    assert_eq!(send(&mut core, a.dom, mine), Ok(wakes(b, &core, 1)));
    assert!(is_pending(&core, b.dom, again));
}

#[test]
fn sending_is_refused_on_ports_that_are_not_for_it() {
    let (mut core, a, _) = machine();
    let virq = bind_virq(&mut core, a.dom, VIRQ_TIMER, V0).unwrap();
    for port in [0, virq.get(), 20, 4095, 4096, u32::MAX] {
        let refused = call(&mut core, a, EVTCHNOP_SEND, &PortOp { port });
        assert_eq!(refused, Err(Errno::EINVAL), "{port}");
        assert_eq!(
            call(&mut core, a, EVTCHNOP_CLOSE, &PortOp { port }).is_ok(),
            port == virq.get()
        );
    }
}

#[test]
fn virqs_are_bound_once_and_global_ones_on_vcpu_0() {
    let (mut core, a, _) = machine();
    let bind = |core: &mut Core, virq, vcpu| {
        call(core, a, EVTCHNOP_BIND_VIRQ, &BindVirq { virq, vcpu, port: 0 })
    };
    assert_eq!(bind(&mut core, VIRQ_TIMER, 0), Ok(()));
    assert_eq!(bind(&mut core, VIRQ_TIMER, 0), Err(Errno::EEXIST));
    assert_eq!(bind(&mut core, VIRQ_TIMER, 1), Ok(()));
    assert_eq!(bind(&mut core, VIRQ_DEBUG, 1), Ok(()));
    assert_eq!(bind(&mut core, VIRQ_CONSOLE, 1), Err(Errno::EINVAL));
    assert_eq!(bind(&mut core, VIRQ_CONSOLE, 0), Ok(()));
    assert_eq!(bind(&mut core, NR_VIRQS, 0), Err(Errno::EINVAL));
    assert_eq!(bind(&mut core, u32::MAX, 0), Err(Errno::EINVAL));
    assert_eq!(bind(&mut core, VIRQ_TIMER, 2), Err(Errno::ENOENT));
    assert_eq!(bind(&mut core, VIRQ_TIMER, u32::MAX), Err(Errno::ENOENT));
}

#[test]
fn a_virq_reaches_its_own_vcpu_until_the_port_is_closed() {
    let (mut core, a, _) = machine();
    let port = bind_virq(&mut core, a.dom, VIRQ_TIMER, V1).unwrap();
    assert_eq!(raise_virq(&mut core, a.dom, Some(V0), VIRQ_TIMER), Wake::Nobody);
    assert_eq!(raise_virq(&mut core, a.dom, Some(V1), VIRQ_TIMER), wakes(a, &core, 2));
    close(&mut core, a.dom, port).unwrap();
    quiet(&mut core, a);
    assert_eq!(raise_virq(&mut core, a.dom, Some(V1), VIRQ_TIMER), Wake::Nobody);
    assert_eq!(bind_virq(&mut core, a.dom, VIRQ_TIMER, V1), Ok(port));
    let global = bind_virq(&mut core, a.dom, VIRQ_CONSOLE, V0).unwrap();
    let _ = raise_virq(&mut core, a.dom, None, VIRQ_CONSOLE);
    assert!(is_pending(&core, a.dom, global));
    assert_eq!(raise_virq(&mut core, DomId::new(9), None, VIRQ_CONSOLE), Wake::Nobody);
}

#[test]
fn only_ports_that_belong_to_no_vcpu_can_be_moved() {
    let (mut core, a, b) = machine();
    let timer = bind_virq(&mut core, a.dom, VIRQ_TIMER, V0).unwrap();
    let ipi = bind_ipi(&mut core, a.dom, V0).unwrap();
    let global = bind_virq(&mut core, a.dom, VIRQ_CONSOLE, V0).unwrap();
    let unbound = alloc_unbound(&mut core, a.dom, b.dom).unwrap();
    let mut bind = |port, vcpu| bind_vcpu(&mut core, a.dom, port, vcpu);
    for port in [timer, ipi, Port::new(0), Port::new(9), Port::new(4096)] {
        assert_eq!(bind(port, V1), Err(Errno::EINVAL));
    }
    assert_eq!(bind(global, V1), Ok(()));
    assert_eq!(bind(unbound, V1), Ok(()));
    assert_eq!(bind(unbound, VcpuId::new(2)), Err(Errno::ENOENT));
}

#[test]
fn an_ipi_goes_to_the_vcpu_it_was_bound_for() {
    let (mut core, a, _) = machine();
    call(&mut core, a, EVTCHNOP_BIND_IPI, &BindIpi { vcpu: 1, port: 0 }).unwrap();
    let port = get::<BindIpi>(&core, a, page(1)).port;
    call(&mut core, a, EVTCHNOP_SEND, &PortOp { port }).unwrap();
    assert_eq!(info(&core, a, V1).evtchn_upcall_pending, 1);
    let refused = call(&mut core, a, EVTCHNOP_BIND_IPI, &BindIpi { vcpu: 2, port: 0 });
    assert_eq!(refused, Err(Errno::ENOENT));
}

#[test]
fn a_pirq_that_is_not_the_callers_is_refused_and_costs_no_port() {
    let (mut core, a, _) = machine();
    let asked = bulkhead_abi::event::BindPirq { pirq: 3, ..Default::default() };
    assert_eq!(call(&mut core, a, EVTCHNOP_BIND_PIRQ, &asked), Err(Errno::EINVAL));
    assert_eq!(core.domains.get(a.dom).unwrap().events.open_ports(), 0);
    assert_eq!(raise_pirq(&mut core, a.dom, 3), Wake::Nobody);
}

#[test]
fn only_dom0_acts_for_others() {
    let (mut core, a, b) = machine();
    let dom0 = fixture::domain(&mut core, 0, 1);
    let news = |core: &mut Core, dom| bind_virq(core, dom, VIRQ_DOM_EXC, V0).map(drop);
    assert_eq!(news(&mut core, a.dom), Err(Errno::EPERM));
    assert_eq!(news(&mut core, dom0.dom), Ok(()));
    let asked = AllocUnbound { dom: b.dom.get(), remote_dom: a.dom.get(), port: 0 };
    assert_eq!(call(&mut core, a, EVTCHNOP_ALLOC_UNBOUND, &asked), Err(Errno::EPERM));
    assert_eq!(call(&mut core, dom0, EVTCHNOP_ALLOC_UNBOUND, &asked), Ok(()));
    let missing = AllocUnbound { dom: 9, ..asked };
    assert_eq!(call(&mut core, dom0, EVTCHNOP_ALLOC_UNBOUND, &missing), Err(Errno::ESRCH));
    let about = Status { dom: b.dom.get(), port: 1, ..Default::default() };
    assert_eq!(call(&mut core, a, EVTCHNOP_STATUS, &about), Err(Errno::EPERM));
    assert_eq!(call(&mut core, dom0, EVTCHNOP_STATUS, &about), Ok(()));
    let told: Status = get(&core, dom0, page(1));
    assert_eq!((told.status, told.arg0), (EVTCHNSTAT_UNBOUND, 1));
    assert_eq!(call(&mut core, a, EVTCHNOP_RESET, &Reset { dom: b.dom.get() }), Err(Errno::EPERM));
}

#[test]
fn status_tells_what_a_port_is() {
    let (mut core, a, b) = machine();
    let (mine, theirs) = connect(&mut core, a, b);
    let virq = bind_virq(&mut core, a.dom, VIRQ_TIMER, V1).unwrap();
    let ipi = bind_ipi(&mut core, a.dom, V1).unwrap();
    let ask = |core: &mut Core, port: u32| {
        let asked = Status { dom: DomId::SELF.get(), port, ..Default::default() };
        call(core, a, EVTCHNOP_STATUS, &asked)?;
        let told: Status = get(core, a, page(1));
        Ok((told.status, told.vcpu, told.arg0, told.arg1))
    };
    assert_eq!(ask(&mut core, mine.get()), Ok((EVTCHNSTAT_INTERDOMAIN, 0, 2, theirs.get())));
    assert_eq!(ask(&mut core, virq.get()), Ok((EVTCHNSTAT_VIRQ, 1, 0, 0)));
    assert_eq!(ask(&mut core, ipi.get()), Ok((EVTCHNSTAT_IPI, 1, 0, 0)));
    assert_eq!(ask(&mut core, 0), Ok((EVTCHNSTAT_CLOSED, 0, 0, 0)));
    assert_eq!(ask(&mut core, 63), Ok((EVTCHNSTAT_CLOSED, 0, 0, 0)));
    assert_eq!(ask(&mut core, 64), Err(Errno::EINVAL));
    assert_eq!(ask(&mut core, u32::MAX), Err(Errno::EINVAL));
}

#[test]
fn reset_closes_everything_of_the_caller_in_steps() {
    let (mut core, a, b) = machine();
    let (mine, _) = connect(&mut core, a, b);
    for _ in 0..600 {
        alloc_unbound(&mut core, b.dom, a.dom).unwrap();
    }
    put(&core, b, page(1), &Reset { dom: DomId::SELF.get() });
    let args = [EVTCHNOP_RESET, page(1), 77, 0, 0, 0];
    let mut stays = 1;
    while let Outcome::Again(again) = event_channel_op(&mut core, b, args) {
        assert_eq!(again[..2], args[..2]);
        stays += 1;
    }
    assert_eq!(stays, 3);
    assert_eq!(core.domains.get(b.dom).unwrap().events.open_ports(), 0);
    let left = core.domains.get(a.dom).unwrap().events.binding(mine);
    assert_eq!(left, Binding::Unbound { remote: b.dom });
}

#[test]
fn what_is_not_offered_or_not_mapped_is_refused() {
    let (mut core, a, _) = machine();
    for op in [EVTCHNOP_INIT_CONTROL, 12, 13, 14, 99, u64::MAX, 1 << 31] {
        let done = event_channel_op(&mut core, a, [op, page(1), 0, 0, 0, 0]);
        assert_eq!(done, Outcome::Done(Errno::ENOSYS.to_rax()), "{op}");
    }
    for op in 0..=10 {
        for at in [0x5000_0000, 0xffff_8000_0000_0000, u64::MAX] {
            let done = event_channel_op(&mut core, a, [op, at, 0, 0, 0, 0]);
            assert_eq!(done, Outcome::Done(Errno::EFAULT.to_rax()), "{op} {at:#x}");
        }
    }
    assert_eq!(core.domains.get(a.dom).unwrap().events.open_ports(), 0);
}

#[test]
fn a_dying_domain_gets_no_new_ports() {
    let (mut core, a, b) = machine();
    let offered = alloc_unbound(&mut core, a.dom, b.dom).unwrap();
    core.domains.get_mut(a.dom).unwrap().life = Life::Dying;
    let gone = Errno::ESRCH;
    assert_eq!(alloc_unbound(&mut core, a.dom, b.dom), Err(gone));
    assert_eq!(bind_interdomain(&mut core, b.dom, a.dom, offered), Err(gone));
}

/// One thing that a domain does to its ports.
#[derive(Clone, Debug)]
enum Act {
    Offer(usize, usize),
    Bind(usize, usize, u32),
    Ipi(usize, u32),
    Virq(usize, u32, u32),
    Close(usize, u32),
    Send(usize, u32),
    Reset(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let (d, p) = (0..3usize, 0..10u32);
    let act = prop_oneof![
        3 => (d.clone(), d.clone()).prop_map(|(d, r)| Act::Offer(d, r)),
        4 => (d.clone(), d.clone(), p.clone()).prop_map(|(d, r, p)| Act::Bind(d, r, p)),
        1 => (d.clone(), 0..3u32).prop_map(|(d, v)| Act::Ipi(d, v)),
        1 => (d.clone(), 0..4u32, 0..3u32).prop_map(|(d, q, v)| Act::Virq(d, q, v)),
        3 => (d.clone(), p.clone()).prop_map(|(d, p)| Act::Close(d, p)),
        4 => (d.clone(), p).prop_map(|(d, p)| Act::Send(d, p)),
        1 => d.prop_map(Act::Reset),
    ];
    proptest::collection::vec(act, 1..120)
}

/// The model: each domain a list of ports, nothing shared, nothing cached.
type Model = [Vec<Binding>; 3];

fn dom(n: usize) -> DomId {
    DomId::new(n as u16 + 1)
}

fn open_in(model: &mut Model, d: usize, binding: Binding) -> usize {
    let ports = &mut model[d];
    let free = (1..ports.len()).find(|&p| ports[p] == Binding::Closed);
    let port = free.unwrap_or(ports.len());
    if free.is_none() {
        ports.push(Binding::Closed);
    }
    ports[port] = binding;
    port
}

fn close_in(model: &mut Model, d: usize, port: usize) {
    if let Binding::Interdomain { remote, port: peer } = model[d][port] {
        let remote = usize::from(remote.get()) - 1;
        model[remote][peer.get() as usize] = Binding::Unbound { remote: dom(d) };
    }
    model[d][port] = Binding::Closed;
}

/// What the model says the act gives: `Ok(port)` for those that open one.
fn play(model: &mut Model, act: &Act) -> Result<u32, Errno> {
    let at = |model: &Model, d: usize, p: u32| {
        model[d].get(p as usize).copied().unwrap_or(Binding::Closed)
    };
    match *act {
        Act::Offer(d, r) => Ok(open_in(model, d, Binding::Unbound { remote: dom(r) }) as u32),
        Act::Bind(d, r, p) => {
            if at(model, r, p) != (Binding::Unbound { remote: dom(d) }) {
                return Err(Errno::EINVAL);
            }
            let port =
                open_in(model, d, Binding::Interdomain { remote: dom(r), port: Port::new(p) });
            model[r][p as usize] =
                Binding::Interdomain { remote: dom(d), port: Port::new(port as u32) };
            Ok(port as u32)
        }
        Act::Ipi(_, v) if v >= 2 => Err(Errno::ENOENT),
        Act::Ipi(d, _) => Ok(open_in(model, d, Binding::Ipi) as u32),
        Act::Virq(_, q, v) if q > 1 && v > 0 => Err(Errno::EINVAL),
        Act::Virq(_, VIRQ_DOM_EXC, _) => Err(Errno::EPERM),
        Act::Virq(_, _, v) if v >= 2 => Err(Errno::ENOENT),
        Act::Virq(..) => unreachable!("decided with the vCPUs, in the test"),
        Act::Close(d, p) => match at(model, d, p) {
            Binding::Closed => Err(Errno::EINVAL),
            _ => {
                close_in(model, d, p as usize);
                Ok(0)
            }
        },
        Act::Send(d, p) => match at(model, d, p) {
            Binding::Closed | Binding::Virq(_) | Binding::Pirq(_) => Err(Errno::EINVAL),
            _ => Ok(0),
        },
        Act::Reset(d) => {
            (1..model[d].len()).for_each(|p| close_in(model, d, p));
            Ok(0)
        }
    }
}

fn act_on(core: &mut Core, act: &Act) -> Result<u32, Errno> {
    let port = |port: Result<Port, Errno>| port.map(Port::get);
    match *act {
        Act::Offer(d, r) => port(alloc_unbound(core, dom(d), dom(r))),
        Act::Bind(d, r, p) => {
            port(bind_interdomain(core, dom(d), dom(r), Port::new(p)).map(|(port, _)| port))
        }
        Act::Ipi(d, v) => port(bind_ipi(core, dom(d), VcpuId::new(v))),
        Act::Virq(d, q, v) => port(bind_virq(core, dom(d), q, VcpuId::new(v))),
        Act::Close(d, p) => close(core, dom(d), Port::new(p)).map(|()| 0),
        Act::Send(d, p) => send(core, dom(d), Port::new(p)).map(|_| 0),
        Act::Reset(d) => {
            assert_eq!(bind::close_some(core, dom(d), &mut { u32::MAX }), Progress::Done);
            Ok(0)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_tables_agree_with_a_model_that_only_keeps_lists(acts in acts()) {
        let mut core = fixture::core();
        for n in 1..=3 { fixture::domain(&mut core, n, 2); }
        let mut model: Model = core::array::from_fn(|_| vec![Binding::Closed]);
        // Per-vCPU virqs need the vCPU too: kept beside the lists.
        let mut virqs: Vec<(usize, u32, u32, u32)> = Vec::new();
        for act in &acts {
            let expected = match *act {
                Act::Virq(d, q, v) if q != VIRQ_DOM_EXC && (q <= 1 || v == 0) && v < 2 => {
                    virqs.retain(|&(d, q, _, p)| model[d].get(p as usize) == Some(&Binding::Virq(q)));
                    if virqs.iter().any(|&(vd, vq, vv, _)| (vd, vq, vv) == (d, q, v)) {
                        Err(Errno::EEXIST)
                    } else {
                        let port = open_in(&mut model, d, Binding::Virq(q)) as u32;
                        virqs.retain(|&(vd, _, _, p)| (vd, p) != (d, port));
                        virqs.push((d, q, v, port));
                        Ok(port)
                    }
                }
                _ => play(&mut model, act),
            };
            prop_assert_eq!(act_on(&mut core, act), expected, "{:?}", act);
            // A port that was closed and bound to another virq is not the old one's.
            if let Act::Close(d, p) = *act { virqs.retain(|&(vd, _, _, vp)| (vd, vp) != (d, p)); }
            if let Act::Reset(d) = *act { virqs.retain(|&(vd, ..)| vd != d); }
            for (d, ports) in model.iter().enumerate() {
                let events = &core.domains.get(dom(d)).unwrap().events;
                for (p, binding) in ports.iter().enumerate() {
                    prop_assert_eq!(events.binding(Port::new(p as u32)), *binding, "{} port {}", d, p);
                }
                let open = ports.iter().filter(|&&b| b != Binding::Closed).count();
                prop_assert_eq!(events.open_ports() as usize, open);
            }
        }
    }
}
