//! `event_channel_op`: RDI = operation, RSI = its structure.

use super::Outcome;
use crate::{
    Core,
    event::{self, EventError},
    memory::teardown::Progress,
    sched::Wake,
    state::Caller,
};
use bulkhead_abi::{DomId, Errno, GuestVa, Port, VcpuId, event as nr};
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
    let me = caller.dom;
    // An int: the upper half of the register says nothing.
    match op & 0xffff_ffff {
        nr::EVTCHNOP_RESET => return reset(core, caller, args),
        nr::EVTCHNOP_SEND => on_port(core, caller, at, event::send),
        nr::EVTCHNOP_UNMASK => on_port(core, caller, at, event::unmask),
        nr::EVTCHNOP_CLOSE => on_port(core, caller, at, |core, dom, port| {
            event::close(core, dom, port).map(|()| Wake::Nobody)
        }),
        nr::EVTCHNOP_BIND_INTERDOMAIN => {
            open(core, caller, at, |core, op: &mut nr::BindInterdomain| {
                let remote = own_name(caller, op.remote_dom);
                let (port, wake) =
                    event::bind_interdomain(core, me, remote, Port::new(op.remote_port))?;
                core.wake(wake);
                op.local_port = port.get();
                Ok((me, port))
            })
        }
        nr::EVTCHNOP_BIND_VIRQ => open(core, caller, at, |core, op: &mut nr::BindVirq| {
            let port = event::bind_virq(core, me, op.virq, VcpuId::new(op.vcpu))?;
            op.port = port.get();
            Ok((me, port))
        }),
        nr::EVTCHNOP_BIND_PIRQ => open(core, caller, at, |core, op: &mut nr::BindPirq| {
            let port = event::bind_pirq(core, me, op.pirq)?;
            op.port = port.get();
            Ok((me, port))
        }),
        nr::EVTCHNOP_BIND_IPI => open(core, caller, at, |core, op: &mut nr::BindIpi| {
            let port = event::bind_ipi(core, me, VcpuId::new(op.vcpu))?;
            op.port = port.get();
            Ok((me, port))
        }),
        nr::EVTCHNOP_ALLOC_UNBOUND => open(core, caller, at, |core, op: &mut nr::AllocUnbound| {
            let dom = event::named(core, me, op.dom)?;
            let port = event::alloc_unbound(core, dom, own_name(caller, op.remote_dom))?;
            op.port = port.get();
            Ok((dom, port))
        }),
        nr::EVTCHNOP_BIND_VCPU => bind_vcpu(core, caller, at),
        nr::EVTCHNOP_STATUS => status(core, caller, at),
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

/// An operation on one of the caller's ports.
fn on_port(
    core: &mut Core,
    caller: Caller,
    at: GuestVa,
    act: impl FnOnce(&mut Core, DomId, Port) -> Result<Wake, EventError>,
) -> Result<(), Errno> {
    let asked: nr::PortOp = core.guest(caller).read(at)?;
    let wake = act(core, caller.dom, Port::new(asked.port))?;
    core.wake(wake);
    Ok(())
}

/// An operation that opens a port and notes it in the structure for the guest. If the guest can not
/// be told, the port is closed again.
fn open<T: FromBytes + IntoBytes + Immutable>(
    core: &mut Core,
    caller: Caller,
    at: GuestVa,
    act: impl FnOnce(&mut Core, &mut T) -> Result<(DomId, Port), Errno>,
) -> Result<(), Errno> {
    let mut op: T = core.guest(caller).read(at)?;
    let (dom, port) = act(core, &mut op)?;
    let told = core.guest(caller).write(at, &op);
    if told.is_err() {
        event::close(core, dom, port)?;
    }
    Ok(told?)
}

fn bind_vcpu(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: nr::BindVcpu = core.guest(caller).read(at)?;
    Ok(event::bind_vcpu(core, caller.dom, Port::new(asked.port), VcpuId::new(asked.vcpu))?)
}

fn status(core: &mut Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let asked: nr::Status = core.guest(caller).read(at)?;
    let dom = event::named(core, caller.dom, asked.dom)?;
    let status = event::status(core, dom, Port::new(asked.port))?;
    Ok(core.guest(caller).write(at, &nr::Status { dom: asked.dom, ..status })?)
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
