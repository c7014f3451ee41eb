//! `event_channel_op`: RDI = operation, RSI = its structure.

use super::{Outcome, answer, carry_out};
use crate::{Core, event, memory::teardown::Progress, sched::Wake, state::Caller};
use bulkhead_abi::{DomId, Errno, GuestVa, Port, VcpuId, event as nr};
use zerocopy::FromBytes;

/// Ports that one stay in ring 0 closes.
const RESET_BUDGET: u32 = 256;

/// `event_channel_op`.
///
/// Errors: `ENOSYS` for operations that are not offered (the FIFO interface), `EFAULT`, and those of
/// [`event`].
pub fn event_channel_op(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [op, at, ..] = args;
    let at = GuestVa::new(at);
    let me = caller.dom;
    // An int: the upper half of the register says nothing.
    match op & 0xffff_ffff {
        nr::EVTCHNOP_RESET => return reset(core, caller, args),
        nr::EVTCHNOP_SEND => on_port(core, caller, at, event::send),
        nr::EVTCHNOP_UNMASK => on_port(core, caller, at, event::unmask),
        nr::EVTCHNOP_CLOSE => carry_out(core, caller, at, |core, op: nr::PortOp| {
            event::close(core, me, Port::new(op.port))
        }),
        nr::EVTCHNOP_BIND_INTERDOMAIN => open(core, caller, at, |core, op: nr::BindInterdomain| {
            let remote = own_name(caller, op.remote_dom);
            let (port, wake) =
                event::bind_interdomain(core, me, remote, Port::new(op.remote_port))?;
            core.wake(wake);
            Ok((me, port))
        }),
        nr::EVTCHNOP_BIND_VIRQ => open(core, caller, at, |core, op: nr::BindVirq| {
            Ok((me, event::bind_virq(core, me, op.virq, VcpuId::new(op.vcpu))?))
        }),
        nr::EVTCHNOP_BIND_PIRQ => open(core, caller, at, |core, op: nr::BindPirq| {
            Ok((me, event::bind_pirq(core, me, op.pirq)?))
        }),
        nr::EVTCHNOP_BIND_IPI => open(core, caller, at, |core, op: nr::BindIpi| {
            Ok((me, event::bind_ipi(core, me, VcpuId::new(op.vcpu))?))
        }),
        nr::EVTCHNOP_ALLOC_UNBOUND => open(core, caller, at, |core, op: nr::AllocUnbound| {
            let dom = event::named(core, me, op.dom)?;
            Ok((dom, event::alloc_unbound(core, dom, own_name(caller, op.remote_dom))?))
        }),
        nr::EVTCHNOP_BIND_VCPU => carry_out(core, caller, at, |core, op: nr::BindVcpu| {
            event::bind_vcpu(core, me, Port::new(op.port), VcpuId::new(op.vcpu))
        }),
        nr::EVTCHNOP_STATUS => answer(core, caller, at, |core, op: &mut nr::Status| {
            let dom = event::named(core, me, op.dom)?;
            *op = nr::Status { dom: op.dom, ..event::status(core, dom, Port::new(op.port))? };
            Ok(())
        }),
        _ => Err(Errno::ENOSYS),
    }
    .into()
}

fn own_name(caller: Caller, raw: u16) -> DomId {
    match DomId::new(raw) {
        DomId::SELF => caller.dom,
        dom => dom,
    }
}

/// An operation on one of the caller's ports that may wake someone.
fn on_port(
    core: &mut Core,
    caller: Caller,
    at: GuestVa,
    act: impl FnOnce(&mut Core, DomId, Port) -> Result<Wake, Errno>,
) -> Result<(), Errno> {
    let asked: nr::PortOp = core.guest(caller).read(at)?;
    let wake = act(core, caller.dom, Port::new(asked.port))?;
    core.wake(wake);
    Ok(())
}

/// An operation that opens a port of a domain and tells the guest its number, with which all the
/// structures end. If the guest can not be told, the port is closed again.
fn open<T: FromBytes>(
    core: &mut Core,
    caller: Caller,
    at: GuestVa,
    act: impl FnOnce(&mut Core, T) -> Result<(DomId, Port), Errno>,
) -> Result<(), Errno> {
    let asked = core.guest(caller).read(at)?;
    let (dom, port) = act(core, asked)?;
    let answer = at.get().wrapping_add((size_of::<T>() - size_of::<u32>()) as u64);
    let told = core.guest(caller).write(GuestVa::new(answer), &port.get());
    if told.is_err() {
        event::close(core, dom, port)?;
    }
    Ok(told?)
}

/// Closes all ports of the caller, or of another domain for Dom0.
fn reset(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [op, at, a2, a3, a4, _] = args;
    let asked = core.guest(caller).read::<nr::Reset>(GuestVa::new(at)).map_err(Errno::from);
    let dom = asked.and_then(|asked| event::named(core, caller.dom, asked.dom));
    match dom.map(|dom| event::close_some(core, dom, &mut { RESET_BUDGET })) {
        Ok(Progress::Done) => Outcome::Done(0),
        Ok(Progress::More) => Outcome::Again([op, at, a2, a3, a4]),
        Err(errno) => errno.into(),
    }
}
