//! Making, using and closing event channels: each function decides first, then changes.

use super::{
    bit_of, mask_word, notify, pending_word, set_pending,
    table::{Binding, Channel, is_per_vcpu},
    wake_of,
};
use crate::{
    Core,
    domain::{Domain, DomainTable, Life},
    memory::teardown::Progress,
    sched::Wake,
};
use bulkhead_abi::{
    DomId, Errno, Port, VcpuId,
    event::{self as nr, NR_VIRQS, Status, VIRQ_DOM_EXC},
};

const VCPU0: VcpuId = VcpuId::new(0);

fn domain(core: &Core, dom: DomId) -> Result<&Domain, Errno> {
    core.domains.get(dom).ok_or(Errno::ESRCH)
}

/// A domain whose ports may be bound.
fn living(domains: &mut DomainTable, dom: DomId) -> Result<&mut Domain, Errno> {
    domains.get_mut(dom).filter(|domain| domain.life != Life::Dying).ok_or(Errno::ESRCH)
}

/// Binds the lowest free port of `dom`; frames for its state are charged to the domain.
///
/// Errors: `ESRCH` for a domain that is not there or dying, `ENOENT` for a vCPU that it has not,
/// `EEXIST` for an interrupt that has its port, `ENOSPC` when all ports are in use, `ENOMEM`.
fn open(core: &mut Core, dom: DomId, binding: Binding, vcpu: VcpuId) -> Result<Port, Errno> {
    let domain = living(&mut core.domains, dom)?;
    domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    if domain.events.port_of(binding, vcpu).is_some() {
        return Err(Errno::EEXIST);
    }
    let port = domain.events.lowest_free().ok_or(Errno::ENOSPC)?;
    let taken = domain.events.reserve(&mut core.frames, port).ok_or(Errno::ENOMEM)?;
    domain.memory.overhead_pages += taken;
    domain.events.open(port, binding, vcpu);
    Ok(port)
}

/// Changes what an open port is bound to.
fn rebind(core: &mut Core, dom: DomId, port: Port, binding: Binding) {
    let domain = core.domains.get_mut(dom);
    if let Some(channel) = domain.and_then(|domain| domain.events.channel_mut(port)) {
        channel.binding = binding;
    }
}

/// Makes a port of `dom` that `remote` may bind to. `remote` need not exist yet. Who may do this for
/// which domain is the caller's question.
///
/// Errors: those of every new port: `ESRCH`, `ENOSPC`, `ENOMEM`.
pub fn alloc_unbound(core: &mut Core, dom: DomId, remote: DomId) -> Result<Port, Errno> {
    open(core, dom, Binding::Unbound { remote }, VCPU0)
}

/// Binds a new port of `dom` to one that `remote` offers it. The new port is pending at once: what was
/// sent before nobody saw.
///
/// Errors: `ESRCH` for a remote domain that is not there or dying, `EINVAL` for a port that it does
/// not offer; those of every new port.
pub fn bind_interdomain(
    core: &mut Core,
    dom: DomId,
    remote: DomId,
    remote_port: Port,
) -> Result<(Port, Wake), Errno> {
    let offered = living(&mut core.domains, remote)?.events.binding(remote_port);
    if offered != (Binding::Unbound { remote: dom }) {
        return Err(Errno::EINVAL);
    }
    let port = open(core, dom, Binding::Interdomain { remote, port: remote_port }, VCPU0)?;
    rebind(core, remote, remote_port, Binding::Interdomain { remote: dom, port });
    Ok((port, set_pending(core, dom, port)))
}

/// Binds a virtual interrupt. Global ones are bound on vCPU 0; news of other domains is
/// for Dom0 only.
///
/// Errors: `EINVAL` for a number that is none and for a global one on another vCPU, `EPERM`,
/// `ENOENT` for a vCPU that the domain has not, `EEXIST`; those of every new port.
pub fn bind_virq(core: &mut Core, dom: DomId, virq: u32, vcpu: VcpuId) -> Result<Port, Errno> {
    if virq >= NR_VIRQS || (!is_per_vcpu(virq) && vcpu != VCPU0) {
        return Err(Errno::EINVAL);
    }
    if virq == VIRQ_DOM_EXC && dom != DomId::DOM0 {
        return Err(Errno::EPERM);
    }
    open(core, dom, Binding::Virq(virq), vcpu)
}

/// Binds a port by which the vCPUs of a domain notify `vcpu`.
///
/// Errors: `ENOENT` for a vCPU that the domain has not; those of every new port.
pub fn bind_ipi(core: &mut Core, dom: DomId, vcpu: VcpuId) -> Result<Port, Errno> {
    open(core, dom, Binding::Ipi, vcpu)
}

/// Binds a physical interrupt that belongs to a device of the domain, and lets it through.
///
/// Errors: `EEXIST`, `EINVAL` for one that is not the domain's; those of every new port.
pub fn bind_pirq(core: &mut Core, dom: DomId, pirq: u32) -> Result<Port, Errno> {
    let port = open(core, dom, Binding::Pirq(pirq), VCPU0)?;
    if core.devices.bind_pirq(dom, pirq).is_err() {
        close(core, dom, port)?;
        return Err(Errno::EINVAL);
    }
    Ok(port)
}

/// Chooses the vCPU that a port notifies. Ports of one vCPU (IPIs, per-vCPU virqs) stay where they are.
///
/// Errors: `ENOENT` for a vCPU that the domain has not, `EINVAL` for such a port or a closed one.
pub fn bind_vcpu(core: &mut Core, dom: DomId, port: Port, vcpu: VcpuId) -> Result<(), Errno> {
    let domain = core.domains.get_mut(dom).ok_or(Errno::ESRCH)?;
    domain.vcpu(vcpu).ok_or(Errno::ENOENT)?;
    let channel = domain.events.channel_mut(port).ok_or(Errno::EINVAL)?;
    match channel.binding {
        Binding::Closed | Binding::Ipi => return Err(Errno::EINVAL),
        Binding::Virq(virq) if is_per_vcpu(virq) => return Err(Errno::EINVAL),
        _ => channel.vcpu = vcpu,
    }
    Ok(())
}

/// Sends an event: to the peer, or to the vCPU of an IPI. On a port whose peer has gone it goes
/// nowhere, and that is no error.
///
/// Errors: `EINVAL` for any other port.
pub fn send(core: &mut Core, dom: DomId, port: Port) -> Result<Wake, Errno> {
    match domain(core, dom)?.events.binding(port) {
        Binding::Interdomain { remote, port } => Ok(set_pending(core, remote, port)),
        Binding::Ipi => Ok(set_pending(core, dom, port)),
        Binding::Unbound { .. } => Ok(Wake::Nobody),
        Binding::Closed | Binding::Pirq(_) | Binding::Virq(_) => Err(Errno::EINVAL),
    }
}

/// Clears a port's mask; what was pending behind it is delivered.
///
/// Errors: `EINVAL` beyond the ports in use.
pub fn unmask(core: &mut Core, dom: DomId, port: Port) -> Result<Wake, Errno> {
    let mem = core.frames.mem();
    let caller = domain(core, dom)?;
    if !caller.events.is_valid(port) {
        return Err(Errno::EINVAL);
    }
    let bit = bit_of(port).1;
    let was_masked = mem.fetch_and_u64(mask_word(caller, port), !bit) & bit != 0;
    if !was_masked || mem.read_u64(pending_word(caller, port)) & bit == 0 {
        return Ok(Wake::Nobody);
    }
    Ok(wake_of(caller, notify(mem, caller, port)))
}

/// What a port is bound to, as `EVTCHNOP_status` says it; `dom` and `port` are the question's.
///
/// Errors: `ESRCH`, `EINVAL` beyond the ports in use.
pub fn status(core: &Core, dom: DomId, port: Port) -> Result<Status, Errno> {
    let events = &domain(core, dom)?.events;
    if !events.is_valid(port) {
        return Err(Errno::EINVAL);
    }
    let Channel { binding, vcpu } = events.channel(port);
    let (status, arg0, arg1) = match binding {
        Binding::Closed => (nr::EVTCHNSTAT_CLOSED, 0, 0),
        Binding::Unbound { remote } => (nr::EVTCHNSTAT_UNBOUND, remote.get().into(), 0),
        Binding::Interdomain { remote, port } => {
            (nr::EVTCHNSTAT_INTERDOMAIN, remote.get().into(), port.get())
        }
        Binding::Pirq(pirq) => (nr::EVTCHNSTAT_PIRQ, pirq, 0),
        Binding::Virq(virq) => (nr::EVTCHNSTAT_VIRQ, virq, 0),
        Binding::Ipi => (nr::EVTCHNSTAT_IPI, 0, 0),
    };
    let (dom, port, vcpu) = (dom.get(), port.get(), vcpu.get());
    Ok(Status { dom, port, status, vcpu, arg0, arg1, ..Status::default() })
}

/// Closes a port. The peer of an interdomain channel falls back to unbound, offered to `dom` again,
/// and hears nothing of it: a restarted back end finds its port where it was.
///
/// Errors: `EINVAL` for a port that is not open.
pub fn close(core: &mut Core, dom: DomId, port: Port) -> Result<(), Errno> {
    match core.domains.get_mut(dom).ok_or(Errno::ESRCH)?.events.shut(port) {
        Binding::Closed => return Err(Errno::EINVAL),
        Binding::Pirq(pirq) => core.devices.unbind_pirq(dom, pirq),
        Binding::Interdomain { remote, port: peer } => {
            let of_peer = domain(core, remote).map(|remote| remote.events.binding(peer));
            if of_peer == Ok(Binding::Interdomain { remote: dom, port }) {
                rebind(core, remote, peer, Binding::Unbound { remote: dom });
            }
        }
        Binding::Unbound { .. } | Binding::Virq(_) | Binding::Ipi => {}
    }
    // The port may be bound anew to something else, for which nothing is pending yet.
    let pending = pending_word(domain(core, dom)?, port);
    core.frames.mem().fetch_and_u64(pending, !bit_of(port).1);
    Ok(())
}

/// Closes all ports of a domain that is reset or destroyed, each step taking one from `budget`;
/// [`Progress::More`] when it ran out. Done, the table is as new and its memory given back.
/// The domain is [`Life::Dying`], so that nothing is opened meanwhile.
pub fn close_all(core: &mut Core, dom: DomId, budget: &mut u32) -> Progress {
    if close_some(core, dom, budget) == Progress::More {
        return Progress::More;
    }
    if let Some(domain) = core.domains.get_mut(dom) {
        let given = domain.events.free(&mut core.frames);
        domain.memory.overhead_pages = domain.memory.overhead_pages.saturating_sub(given);
    }
    Progress::Done
}

/// Closes open ports, each taking one from `budget`. `EVTCHNOP_reset` of a living domain.
///
/// Cost: besides, one pass over the table.
pub fn close_some(core: &mut Core, dom: DomId, budget: &mut u32) -> Progress {
    let mut from = 0;
    while let Some(port) = core.domains.get(dom).and_then(|dom| dom.events.first_open(from)) {
        if *budget == 0 {
            return Progress::More;
        }
        *budget -= 1;
        // It is open.
        let _ = close(core, dom, port);
        from = port.get() + 1;
    }
    Progress::Done
}

/// For the hypercall: which domain a domid in an argument means, and whether the caller may say it.
///
/// Errors: `ESRCH`, `EPERM`.
pub fn named(core: &Core, caller: DomId, raw: u16) -> Result<DomId, Errno> {
    let dom = DomId::new(raw);
    if dom == DomId::SELF || dom == caller {
        return Ok(caller);
    }
    domain(core, dom)?;
    if caller == DomId::DOM0 { Ok(dom) } else { Err(Errno::EPERM) }
}
