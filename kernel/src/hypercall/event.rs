//! `event_channel_op`: RDI = operation, RSI = its structure.

use super::Outcome;
use crate::{
    Core,
    event::{self, EventError},
    memory::teardown::Progress,
    sched::Wake,
    state::Caller,
};
use bulkhead_abi::{
    DomId, Errno, GuestVa, Port, VcpuId,
    event::{
        AllocUnbound, BindInterdomain, BindIpi, BindPirq, BindVcpu, BindVirq,
        EVTCHNOP_ALLOC_UNBOUND, EVTCHNOP_BIND_INTERDOMAIN, EVTCHNOP_BIND_IPI, EVTCHNOP_BIND_PIRQ,
        EVTCHNOP_BIND_VCPU, EVTCHNOP_BIND_VIRQ, EVTCHNOP_CLOSE, EVTCHNOP_RESET, EVTCHNOP_SEND,
        EVTCHNOP_STATUS, EVTCHNOP_UNMASK, PortOp, Reset, Status,
    },
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Ports that one stay in ring 0 closes.
const RESET_BUDGET: u32 = 256;

/// `event_channel_op`.
///
/// Errors: `ENOSYS` for operations that are not offered (the FIFO interface), `EFAULT`, and those of
/// [`event`] by [`EventError`].
pub fn event_channel_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [op, at, ..] = args;
    let at = GuestVa::new(at);
    // An int: the upper half of the register says nothing.
    match op & 0xffff_ffff {
        EVTCHNOP_RESET => return reset(core, caller, args),
        EVTCHNOP_SEND => send(core, caller, at),
        EVTCHNOP_UNMASK => unmask(core, caller, at),
        EVTCHNOP_BIND_INTERDOMAIN => bind_interdomain(core, caller, at),
        EVTCHNOP_BIND_VIRQ => bind_virq(core, caller, at),
        EVTCHNOP_BIND_PIRQ => bind_pirq(core, caller, at),
        EVTCHNOP_BIND_IPI => bind_ipi(core, caller, at),
        EVTCHNOP_BIND_VCPU => bind_vcpu(core, caller, at),
        EVTCHNOP_ALLOC_UNBOUND => alloc_unbound(core, caller, at),
        EVTCHNOP_CLOSE => close(core, caller, at),
        EVTCHNOP_STATUS => status(core, caller, at),
        _ => Err(Errno::ENOSYS),
    }
    .map(|()| 0)
    .into()
}

fn read<T: FromBytes>(core: &Core, caller: Caller, at: GuestVa) -> Result<T, Errno> {
    Ok(core.guest(caller).read(at)?)
}

/// Tells the guest which port it got; one that can not be told is closed again.
fn answer<T: IntoBytes + Immutable>(
    core: &mut Core,
    caller: Caller,
    at: GuestVa,
    told: &T,
    (dom, port): (DomId, Port),
) -> Result<(), Errno> {
    let written = core.guest(caller).write(at, told);
    if written.is_err() {
        event::close(core, dom, port)?;
    }
    Ok(written?)
}

fn woken(core: &mut Core, wake: Result<Wake, EventError>) -> Result<(), Errno> {
    core.wake(wake?);
    Ok(())
}

fn send(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: PortOp = read(core, caller, at)?;
    let wake = event::send(core, caller.dom, Port::new(asked.port));
    woken(core, wake)
}

fn unmask(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: PortOp = read(core, caller, at)?;
    let wake = event::unmask(core, caller.dom, Port::new(asked.port));
    woken(core, wake)
}

fn close(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: PortOp = read(core, caller, at)?;
    Ok(event::close(core, caller.dom, Port::new(asked.port))?)
}

fn bind_interdomain(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: BindInterdomain = read(core, caller, at)?;
    let remote = match DomId::new(asked.remote_dom) {
        DomId::SELF => caller.dom,
        remote => remote,
    };
    let (port, wake) =
        event::bind_interdomain(core, caller.dom, remote, Port::new(asked.remote_port))?;
    core.wake(wake);
    let told = BindInterdomain { local_port: port.get(), ..asked };
    answer(core, caller, at, &told, (caller.dom, port))
}

fn bind_virq(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: BindVirq = read(core, caller, at)?;
    let port = event::bind_virq(core, caller.dom, asked.virq, VcpuId::new(asked.vcpu))?;
    let told = BindVirq { port: port.get(), ..asked };
    answer(core, caller, at, &told, (caller.dom, port))
}

fn bind_pirq(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: BindPirq = read(core, caller, at)?;
    let port = event::bind_pirq(core, caller.dom, asked.pirq)?;
    let told = BindPirq { port: port.get(), ..asked };
    answer(core, caller, at, &told, (caller.dom, port))
}

fn bind_ipi(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: BindIpi = read(core, caller, at)?;
    let port = event::bind_ipi(core, caller.dom, VcpuId::new(asked.vcpu))?;
    let told = BindIpi { port: port.get(), ..asked };
    answer(core, caller, at, &told, (caller.dom, port))
}

fn bind_vcpu(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: BindVcpu = read(core, caller, at)?;
    Ok(event::bind_vcpu(core, caller.dom, Port::new(asked.port), VcpuId::new(asked.vcpu))?)
}

fn alloc_unbound(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: AllocUnbound = read(core, caller, at)?;
    let dom = event::named(core, caller.dom, asked.dom)?;
    let remote = match DomId::new(asked.remote_dom) {
        DomId::SELF => caller.dom,
        remote => remote,
    };
    let port = event::alloc_unbound(core, dom, remote)?;
    let told = AllocUnbound { port: port.get(), ..asked };
    answer(core, caller, at, &told, (dom, port))
}

fn status(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: Status = read(core, caller, at)?;
    let dom = event::named(core, caller.dom, asked.dom)?;
    let status = event::status(core, dom, Port::new(asked.port))?;
    Ok(core.guest(caller).write(at, &Status { dom: asked.dom, ..status })?)
}

/// Closes all ports of the caller, or of another domain for Dom0.
fn reset(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [op, at, a2, a3, a4, _] = args;
    let asked: Result<Reset, Errno> = read(core, caller, GuestVa::new(at));
    let dom = asked.and_then(|asked| event::named(core, caller.dom, asked.dom));
    match dom.map(|dom| event::close_some(core, dom, &mut { RESET_BUDGET })) {
        Ok(Progress::Done) => Outcome::Done(0),
        Ok(Progress::More) => Outcome::Again([op, at, a2, a3, a4]),
        Err(errno) => Outcome::Done(errno.to_rax()),
    }
}
