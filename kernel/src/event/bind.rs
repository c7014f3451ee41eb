//! Making, using and closing event channels: each function decides first, then changes.

use super::{
    EventError, bit_of, mark_vcpu, mask_word, pending_word, set_pending, table::Binding, wake_of,
};
use crate::{
    Core,
    domain::{Domain, Life},
    memory::teardown::Progress,
    sched::Wake,
};
use bulkhead_abi::{
    DomId, Errno, Port, VcpuId,
    event::{
        EVTCHNSTAT_CLOSED, EVTCHNSTAT_INTERDOMAIN, EVTCHNSTAT_IPI, EVTCHNSTAT_PIRQ,
        EVTCHNSTAT_UNBOUND, EVTCHNSTAT_VIRQ, NR_VIRQS, Status, VIRQ_DOM_EXC,
    },
};

const VCPU0: VcpuId = VcpuId::new(0);

fn domain(core: &Core, dom: DomId) -> Result<&Domain, EventError> {
    core.domains.get(dom).ok_or(EventError::NoDomain { dom })
}

fn domain_mut(core: &mut Core, dom: DomId) -> Result<&mut Domain, EventError> {
    core.domains.get_mut(dom).ok_or(EventError::NoDomain { dom })
}

fn check_vcpu(domain: &Domain, vcpu: VcpuId) -> Result<(), EventError> {
    domain.vcpu(vcpu).map(|_| ()).ok_or(EventError::NoVcpu { vcpu })
}

/// Finds a free port of `dom` and the memory for its state.
fn free_port(core: &mut Core, dom: DomId) -> Result<Port, EventError> {
    let alive = |domain: &&mut Domain| domain.life != Life::Dying;
    let domain = core.domains.get_mut(dom).filter(alive).ok_or(EventError::NoDomain { dom })?;
    let port = domain.events.lowest_free().ok_or(EventError::NoPort)?;
    let taken = domain.events.reserve(&mut core.frames, port).ok_or(EventError::NoMemory)?;
    domain.memory.overhead_pages += taken;
    Ok(port)
}

fn open(core: &mut Core, dom: DomId, binding: Binding, vcpu: VcpuId) -> Result<Port, EventError> {
    let port = free_port(core, dom)?;
    domain_mut(core, dom)?.events.open(port, binding, vcpu);
    Ok(port)
}

/// Makes a port of `dom` that `remote` may bind to. `remote` need not exist yet. Who may do this for
/// which domain is the caller's question.
///
/// Errors: `NoDomain`, `NoPort`, `NoMemory`.
pub fn alloc_unbound(core: &mut Core, dom: DomId, remote: DomId) -> Result<Port, EventError> {
    open(core, dom, Binding::Unbound { remote }, VCPU0)
}

/// Binds a new port of `dom` to one that `remote` offers it. The new port is pending at once: what was
/// sent before nobody saw.
///
/// Errors: `NoDomain`, `NotOffered`, `NoPort`, `NoMemory`.
pub fn bind_interdomain(
    core: &mut Core,
    dom: DomId,
    remote: DomId,
    remote_port: Port,
) -> Result<(Port, Wake), EventError> {
    if domain(core, remote)?.life == Life::Dying {
        return Err(EventError::NoDomain { dom: remote });
    }
    let offered = Binding::Unbound { remote: dom };
    if domain(core, remote)?.events.binding(remote_port) != offered {
        return Err(EventError::NotOffered { dom: remote, port: remote_port });
    }
    let port = open(core, dom, Binding::Interdomain { remote, port: remote_port }, VCPU0)?;
    domain_mut(core, remote)?
        .events
        .rebind(remote_port, Binding::Interdomain { remote: dom, port });
    let wake = set_pending(core, dom, port);
    Ok((port, wake))
}

/// Binds a virtual interrupt. Global ones are bound on vCPU 0; news of other domains is
/// for Dom0 only.
///
/// Errors: `BadVirq`, `NotPermitted`, `NoVcpu`, `Exists`, `NoPort`, `NoMemory`.
pub fn bind_virq(core: &mut Core, dom: DomId, virq: u32, vcpu: VcpuId) -> Result<Port, EventError> {
    let is_per_vcpu = super::EventTable::is_per_vcpu(virq);
    if virq >= NR_VIRQS || (!is_per_vcpu && vcpu != VCPU0) {
        return Err(EventError::BadVirq { virq });
    }
    let caller = domain(core, dom)?;
    if virq == VIRQ_DOM_EXC && !caller.is_privileged() {
        return Err(EventError::NotPermitted);
    }
    check_vcpu(caller, vcpu)?;
    if let Some(port) = caller.events.virq(Some(vcpu), virq) {
        return Err(EventError::Exists { port });
    }
    let port = open(core, dom, Binding::Virq(virq), vcpu)?;
    domain_mut(core, dom)?.events.set_virq(vcpu, virq, Some(port));
    Ok(port)
}

/// Binds a port by which the vCPUs of a domain notify `vcpu`.
///
/// Errors: `NoVcpu`, `NoPort`, `NoMemory`.
pub fn bind_ipi(core: &mut Core, dom: DomId, vcpu: VcpuId) -> Result<Port, EventError> {
    check_vcpu(domain(core, dom)?, vcpu)?;
    open(core, dom, Binding::Ipi, vcpu)
}

/// Binds a physical interrupt that belongs to a device of the domain, and lets it through.
///
/// Errors: `Exists`, `NoPort`, `NoMemory`, `NotYours`.
pub fn bind_pirq(core: &mut Core, dom: DomId, pirq: u32) -> Result<Port, EventError> {
    if let Some(port) = domain(core, dom)?.events.pirq(pirq) {
        return Err(EventError::Exists { port });
    }
    let port = free_port(core, dom)?;
    core.devices.bind_pirq(dom, pirq).map_err(|_| EventError::NotYours { pirq })?;
    let events = &mut domain_mut(core, dom)?.events;
    if !events.set_pirq(pirq, port) {
        core.devices.unbind_pirq(dom, pirq);
        return Err(EventError::NoPort);
    }
    events.open(port, Binding::Pirq(pirq), VCPU0);
    Ok(port)
}

/// Chooses the vCPU that a port notifies. Ports of one vCPU (IPIs, per-vCPU virqs) stay where they are.
///
/// Errors: `NoVcpu`, `BadPort`.
pub fn bind_vcpu(core: &mut Core, dom: DomId, port: Port, vcpu: VcpuId) -> Result<(), EventError> {
    let caller = domain_mut(core, dom)?;
    check_vcpu(caller, vcpu)?;
    match caller.events.binding(port) {
        Binding::Virq(virq) if super::EventTable::is_per_vcpu(virq) => {
            Err(EventError::BadPort { port })
        }
        Binding::Closed | Binding::Ipi => Err(EventError::BadPort { port }),
        _ => {
            caller.events.set_vcpu(port, vcpu);
            Ok(())
        }
    }
}

/// Sends an event: to the peer, or to the vCPU of an IPI. On a port whose peer has gone it goes
/// nowhere, and that is no error.
///
/// Errors: `BadPort`.
pub fn send(core: &mut Core, dom: DomId, port: Port) -> Result<Wake, EventError> {
    match domain(core, dom)?.events.binding(port) {
        Binding::Interdomain { remote, port } => Ok(set_pending(core, remote, port)),
        Binding::Ipi => Ok(set_pending(core, dom, port)),
        Binding::Unbound { .. } => Ok(Wake::Nobody),
        Binding::Closed | Binding::Pirq(_) | Binding::Virq(_) => Err(EventError::BadPort { port }),
    }
}

/// Clears a port's mask; what was pending behind it is delivered.
///
/// Errors: `BadPort` beyond the ports in use.
pub fn unmask(core: &mut Core, dom: DomId, port: Port) -> Result<Wake, EventError> {
    let mem = core.frames.mem();
    let caller = domain(core, dom)?;
    if !caller.events.is_valid(port) {
        return Err(EventError::BadPort { port });
    }
    let bit = bit_of(port).1;
    let was_masked = mem.fetch_and_u64(mask_word(caller, port), !bit) & bit != 0;
    if !was_masked || mem.read_u64(pending_word(caller, port)) & bit == 0 {
        return Ok(Wake::Nobody);
    }
    let notified = caller.events.channel(port).map_or(VCPU0, |channel| channel.vcpu());
    let mask = match caller.vcpu(notified) {
        Some(vcpu) if mark_vcpu(mem, vcpu, port) => 1 << vcpu.id.get(),
        _ => 0,
    };
    Ok(wake_of(caller, mask))
}

/// What a port is bound to, as `EVTCHNOP_status` says it; `dom` and `port` are the question's.
///
/// Errors: `NoDomain`, `BadPort` beyond the ports in use.
pub fn status(core: &Core, dom: DomId, port: Port) -> Result<Status, EventError> {
    let events = &domain(core, dom)?.events;
    if !events.is_valid(port) {
        return Err(EventError::BadPort { port });
    }
    let (status, arg0, arg1) = match events.binding(port) {
        Binding::Closed => (EVTCHNSTAT_CLOSED, 0, 0),
        Binding::Unbound { remote } => (EVTCHNSTAT_UNBOUND, remote.get().into(), 0),
        Binding::Interdomain { remote, port } => {
            (EVTCHNSTAT_INTERDOMAIN, remote.get().into(), port.get())
        }
        Binding::Pirq(pirq) => (EVTCHNSTAT_PIRQ, pirq, 0),
        Binding::Virq(virq) => (EVTCHNSTAT_VIRQ, virq, 0),
        Binding::Ipi => (EVTCHNSTAT_IPI, 0, 0),
    };
    let vcpu = events.channel(port).map_or(0, |channel| channel.vcpu().get());
    Ok(Status { dom: dom.get(), port: port.get(), status, vcpu, arg0, arg1, ..Status::default() })
}

/// Closes a port. The peer of an interdomain channel falls back to unbound, offered to `dom` again,
/// and hears nothing of it: a restarted back end finds its port where it was.
///
/// Errors: `BadPort`.
pub fn close(core: &mut Core, dom: DomId, port: Port) -> Result<(), EventError> {
    let mem = core.frames.mem();
    let owner = domain_mut(core, dom)?;
    let binding = owner.events.shut(port);
    match binding {
        Binding::Closed => return Err(EventError::BadPort { port }),
        Binding::Pirq(pirq) => core.devices.unbind_pirq(dom, pirq),
        Binding::Interdomain { remote, port: peer } => {
            if let Some(remote) = core.domains.get_mut(remote)
                && remote.events.binding(peer) == (Binding::Interdomain { remote: dom, port })
            {
                remote.events.rebind(peer, Binding::Unbound { remote: dom });
            }
        }
        Binding::Unbound { .. } | Binding::Virq(_) | Binding::Ipi => {}
    }
    // The port may be bound anew to something else, for which nothing is pending yet.
    let owner = domain(core, dom)?;
    mem.fetch_and_u64(pending_word(owner, port), !bit_of(port).1);
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
pub fn close_some(core: &mut Core, dom: DomId, budget: &mut u32) -> Progress {
    while let Some(port) = core.domains.get_mut(dom).and_then(|domain| domain.events.first_open()) {
        if *budget == 0 {
            return Progress::More;
        }
        *budget -= 1;
        if close(core, dom, port).is_err() {
            break;
        }
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
    if caller == DomId::DOM0 { Ok(dom) } else { Err(EventError::NotPermitted.into()) }
}
