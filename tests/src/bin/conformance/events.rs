//! `event_channel_op`.

use crate::hv::{UNMAPPED, op, rc, said, shared_info};
use crate::tap::check;
use alloc::format;
use alloc::string::String;
use core::sync::atomic::Ordering::Relaxed;
use domain_rt::abi::DomId;
use domain_rt::abi::event::{
    self, AllocUnbound, BindInterdomain, BindIpi, BindPirq, BindVcpu, BindVirq, PortOp, Status,
};
use domain_rt::abi::hypercall::EVENT_CHANNEL_OP;

const SELF: u16 = DomId::SELF.get();
/// No domain has this id.
const NOBODY: u16 = 0x1234;
/// Past the last port.
const PAST: u32 = 5000;

pub fn run(is_dom0: bool) {
    unbound();
    interdomain();
    virtual_interrupts();
    ipis();
    vcpus();
    masks();
    bad_ports();
    others(is_dom0);
}

fn channel<T>(cmd: u64, arg: &mut T) -> i64 {
    op(EVENT_CHANNEL_OP, cmd, arg)
}

fn port_op(cmd: u64, port: u32) -> String {
    rc(channel(cmd, &mut PortOp { port }))
}

pub fn send(port: u32) -> String {
    port_op(event::EVTCHNOP_SEND, port)
}

pub fn close(port: u32) -> String {
    port_op(event::EVTCHNOP_CLOSE, port)
}

fn alloc(dom: u16, remote_dom: u16) -> Result<u32, String> {
    let mut arg = AllocUnbound { dom, remote_dom, port: 0 };
    match channel(event::EVTCHNOP_ALLOC_UNBOUND, &mut arg) {
        0 => Ok(arg.port),
        e => Err(rc(e)),
    }
}

fn bind(remote_dom: u16, remote_port: u32) -> Result<u32, String> {
    let mut arg = BindInterdomain { remote_dom, remote_port, ..Default::default() };
    match channel(event::EVTCHNOP_BIND_INTERDOMAIN, &mut arg) {
        0 => Ok(arg.local_port),
        e => Err(rc(e)),
    }
}

fn bind_virq(virq: u32, vcpu: u32) -> Result<u32, String> {
    let mut arg = BindVirq { virq, vcpu, port: 0 };
    match channel(event::EVTCHNOP_BIND_VIRQ, &mut arg) {
        0 => Ok(arg.port),
        e => Err(rc(e)),
    }
}

pub fn bind_ipi(vcpu: u32) -> Result<u32, String> {
    let mut arg = BindIpi { vcpu, port: 0 };
    match channel(event::EVTCHNOP_BIND_IPI, &mut arg) {
        0 => Ok(arg.port),
        e => Err(rc(e)),
    }
}

/// The port that the runtime bound to the timer.
pub fn timer_port() -> Option<u32> {
    (1..64).find(|&port| {
        let status = status_of(port);
        status.is_ok_and(|s| s.status == event::EVTCHNSTAT_VIRQ && s.arg0 == event::VIRQ_TIMER)
    })
}

fn status_of(port: u32) -> Result<Status, i64> {
    let mut arg = Status { dom: SELF, port, ..Default::default() };
    match channel(event::EVTCHNOP_STATUS, &mut arg) {
        0 => Ok(arg),
        e => Err(e),
    }
}

/// Status and binding; the port numbers themselves are left out.
fn status(port: u32) -> String {
    match status_of(port) {
        Ok(s) => format!("status {} vcpu {}", s.status, s.vcpu),
        Err(e) => rc(e),
    }
}

pub fn is_pending(port: u32) -> bool {
    shared_info().read_u64(2048 + port as usize / 64 * 8) >> (port % 64) & 1 == 1
}

pub fn clear(port: u32) {
    let info = shared_info();
    let bit = 1u64 << (port % 64);
    info.atomic_u64(2048 + port as usize / 64 * 8).fetch_and(!bit, Relaxed);
    info.atomic_u64(8).store(0, Relaxed);
    info.swap_u8(0, 0);
}

pub fn set_mask(port: u32, masked: bool) {
    let word = shared_info();
    let word = word.atomic_u64(2560 + port as usize / 64 * 8);
    let bit = 1u64 << (port % 64);
    if masked {
        word.fetch_or(bit, Relaxed)
    } else {
        word.fetch_and(!bit, Relaxed)
    };
}

fn word(result: Result<u32, String>) -> String {
    result.map_or_else(
        |e| e,
        |port| {
            if port == 0 { "port 0".into() } else { "a port".into() }
        },
    )
}

fn unbound() {
    let port = alloc(SELF, SELF);
    check("alloc_unbound: for ourselves", word(port.clone()));
    let port = port.expect("a free port");
    check("status: of an unbound port", status(port));
    check("send: on an unbound port", send(port));
    check("close: an unbound port", close(port));
    check("status: of a closed port", status(port));
    check("close: a closed port", close(port));
    check("send: on a closed port", send(port));
    let again = alloc(SELF, SELF).expect("a free port");
    check("alloc_unbound: takes the lowest free port again", again == port);
    check("bind_interdomain: of a port for ourselves names a port", word(bind(SELF, again)));
    check("bind_interdomain: refuses a port that is bound", word(bind(SELF, again)));
    close(again);
}

fn interdomain() {
    let near = alloc(SELF, SELF).expect("a free port");
    let far = bind(SELF, near).expect("an unbound port");
    check(
        "bind_interdomain: makes the new port pending",
        format!("{} {}", is_pending(far), is_pending(near)),
    );
    let found = status_of(far).map(|s| (s.status, s.arg1 == near, s.arg0 != u32::from(SELF)));
    check("status: of an interdomain port names the other end", format!("{found:?}"));
    clear(far);
    set_mask(far, true);
    set_mask(near, true);
    check("send: on an interdomain port", send(near));
    check("send: reaches the other end only", format!("{} {}", is_pending(far), is_pending(near)));
    clear(far);
    check("close: an interdomain port", close(far));
    check("close: makes the other end unbound", status(near));
    check("close: raises no event at the other end", is_pending(near));
    check("send: to an end that has closed", format!("{} {}", send(near), is_pending(far)));
    let anew = bind(SELF, near).expect("the port fell back to unbound");
    check("bind_interdomain: binds such a port again", status(anew));
    close(near);
    close(anew);
    clear(anew);
}

fn virtual_interrupts() {
    check("bind_virq: the timer is bound already", word(bind_virq(event::VIRQ_TIMER, 0)));
    check("bind_virq: refuses a number past the last", word(bind_virq(event::NR_VIRQS, 0)));
    check("bind_virq: refuses a vcpu that is not there", word(bind_virq(event::VIRQ_DEBUG, 99)));
    let port = bind_virq(event::VIRQ_DEBUG, 0).expect("free");
    let found = status_of(port).map(|s| (s.status, s.vcpu, s.arg0));
    check("status: of a virtual interrupt names it", format!("{found:?}"));
    check("send: refuses a virtual interrupt", send(port));
    check(
        "bind_vcpu: refuses a per-vcpu interrupt",
        rc(channel(event::EVTCHNOP_BIND_VCPU, &mut BindVcpu { port, vcpu: 0 })),
    );
    check("close: a virtual interrupt", close(port));
    let again = bind_virq(event::VIRQ_DEBUG, 0);
    check("bind_virq: binds it again", word(again.clone()));
    close(again.unwrap_or(0));
}

fn ipis() {
    check("bind_ipi: refuses a vcpu that is not there", word(bind_ipi(99)));
    let port = bind_ipi(0).expect("a free port");
    check("status: of an inter-processor port", status(port));
    set_mask(port, true);
    check("send: on an inter-processor port", format!("{} {}", send(port), is_pending(port)));
    check(
        "bind_vcpu: refuses an inter-processor port",
        rc(channel(event::EVTCHNOP_BIND_VCPU, &mut BindVcpu { port, vcpu: 0 })),
    );
    close(port);
    clear(port);
}

fn vcpus() {
    let port = alloc(SELF, SELF).expect("a free port");
    for (name, vcpu) in
        [("bind_vcpu: to vcpu 0", 0), ("bind_vcpu: refuses a vcpu that is not there", 9)]
    {
        check(name, rc(channel(event::EVTCHNOP_BIND_VCPU, &mut BindVcpu { port, vcpu })));
    }
    close(port);
    check(
        "bind_vcpu: refuses a closed port",
        rc(channel(event::EVTCHNOP_BIND_VCPU, &mut BindVcpu { port, vcpu: 0 })),
    );
}

fn masks() {
    let port = bind_ipi(0).expect("a free port");
    clear(port);
    set_mask(port, true);
    send(port);
    let info = shared_info();
    let result = port_op(event::EVTCHNOP_UNMASK, port);
    let masked = info.read_u64(2560 + port as usize / 64 * 8) >> (port % 64) & 1;
    let raised = (masked, info.read_u64(8) != 0, info.read_u8(0));
    check("unmask: raises what waited behind the mask", format!("{result} {raised:?}"));
    clear(port);
    set_mask(port, true);
    let result = port_op(event::EVTCHNOP_UNMASK, port);
    check("unmask: raises nothing where nothing waits", format!("{result} {}", info.read_u8(0)));
    close(port);
}

fn bad_ports() {
    for (what, port) in
        [("port 0", 0), ("a port past the last", PAST), ("the highest number", u32::MAX)]
    {
        check(&format!("send: {what}"), send(port));
        check(&format!("close: {what}"), close(port));
        check(&format!("unmask: {what}"), port_op(event::EVTCHNOP_UNMASK, port));
        check(&format!("status: {what}"), status(port));
        check(&format!("bind_interdomain: {what}"), word(bind(SELF, port)));
    }
    check(
        "event_channel_op: refuses an unmapped structure",
        said(EVENT_CHANNEL_OP, &[event::EVTCHNOP_SEND, UNMAPPED]),
    );
    check("event_channel_op: refuses an unknown operation", said(EVENT_CHANNEL_OP, &[99, 0]));
    let mut arg = BindPirq { pirq: 100_000, ..Default::default() };
    check(
        "bind_pirq: refuses an interrupt that is not ours",
        rc(channel(event::EVTCHNOP_BIND_PIRQ, &mut arg)),
    );
}

fn others(is_dom0: bool) {
    check("bind_interdomain: refuses a domain that is not there", word(bind(NOBODY, 1)));
    let port = alloc(SELF, NOBODY);
    check("alloc_unbound: for a domain that is not there yet", word(port.clone()));
    let port = port.unwrap_or(0);
    check("bind_interdomain: refuses a port that waits for another", word(bind(SELF, port)));
    close(port);
    // What follows depends on privilege: Dom0 learns that the domain does not exist.
    let denied = if is_dom0 { "-ESRCH" } else { "-EPERM" };
    let found = alloc(NOBODY, SELF);
    check(
        "alloc_unbound: refuses to act for a domain that is not there",
        found == Err(denied.into()),
    );
    let mut arg = Status { dom: NOBODY, port: 1, ..Default::default() };
    check(
        "status: refuses a domain that is not there",
        rc(channel(event::EVTCHNOP_STATUS, &mut arg)),
    );
}
