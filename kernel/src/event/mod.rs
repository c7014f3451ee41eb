//! Event channels: ports and their bindings, pending and mask bits, upcalls. One bit
//! moves, someone may wake; who runs then is not decided here.
//!
//! Two-level interface (ABI notes 4.3, 3.8): a bit per port in shared-info, a selector bit per 64
//! ports and the upcall flag in `vcpu_info`. Guests write all of these at any time; the core only sets
//! bits, atomically, and believes none of them.
//!
//! Invariant: interdomain bindings are mutual. What [`EventTable`] says of a peer is followed only
//! while the peer's own table says the same.
#![deny(unsafe_code)]

pub mod bind;
pub mod table;

#[cfg(test)]
mod tests;

use crate::{
    Core,
    domain::{Domain, vcpu::Vcpu},
    memory::phys::PhysMem,
    sched::{Polling, Wake},
};
pub use bind::{
    alloc_unbound, bind_interdomain, bind_ipi, bind_pirq, bind_vcpu, bind_virq, close, close_all,
    close_some, named, send, status, unmask,
};
use bulkhead_abi::{
    DomId, Maddr, Port, VcpuId,
    shared_info::{EVTCHN_2L_PORTS, SharedInfo, VcpuInfo},
};
use core::mem::offset_of;
pub use table::{Binding, EventTable};

/// A port's bit: the word's offset in its bitmap, and the bit in it.
const fn bit_of(port: Port) -> (usize, u64) {
    let n = port.get() as usize;
    (n / 64 * 8, 1 << (n % 64))
}

fn pending_word(domain: &Domain, port: Port) -> Maddr {
    domain.shared_info.maddr().plus(offset_of!(SharedInfo, evtchn_pending) + bit_of(port).0)
}

fn selector(vcpu: &Vcpu) -> Maddr {
    vcpu.info.plus(offset_of!(VcpuInfo, evtchn_pending_sel))
}

fn upcall_flag(vcpu: &Vcpu) -> Maddr {
    vcpu.info.plus(offset_of!(VcpuInfo, evtchn_upcall_pending))
}

fn upcall_mask(vcpu: &Vcpu) -> Maddr {
    vcpu.info.plus(offset_of!(VcpuInfo, evtchn_upcall_mask))
}

fn mask_word(domain: &Domain, port: Port) -> Maddr {
    domain.shared_info.maddr().plus(offset_of!(SharedInfo, evtchn_mask) + bit_of(port).0)
}

/// Marks the selector and then the upcall flag of the vCPU that a pending port notifies; its bit
/// if neither was marked before, so that it is to be woken.
fn notify(mem: PhysMem, domain: &Domain, port: Port) -> u32 {
    let Some(vcpu) = domain.vcpu(domain.events.channel(port).vcpu) else {
        return 0;
    };
    let bit = 1 << (port.get() / 64);
    let is_marked = mem.fetch_or_u64(selector(vcpu), bit) & bit != 0;
    if is_marked || mem.swap_u8(upcall_flag(vcpu), 1) != 0 { 0 } else { 1 << vcpu.id.get() }
}

/// Makes a port pending, and its vCPU if the guest has not masked it. Nothing happens for a port
/// that is not in use: the domain may have died under the sender.
pub fn set_pending(core: &mut Core, dom: DomId, port: Port) -> Wake {
    let mem = core.frames.mem();
    let is_open = |domain: &&Domain| domain.events.binding(port) != Binding::Closed;
    let Some(domain) = core.domains.get(dom).filter(is_open) else {
        return Wake::Nobody;
    };
    let bit = bit_of(port).1;
    if mem.fetch_or_u64(pending_word(domain, port), bit) & bit != 0 {
        return Wake::Nobody;
    }
    let is_masked = mem.read_u64(mask_word(domain, port)) & bit != 0;
    let notified = if is_masked { 0 } else { notify(mem, domain, port) };
    wake_of(domain, notified | pollers_of(domain, port))
}

fn wake_of(domain: &Domain, mask: u32) -> Wake {
    match mask {
        0 => Wake::Nobody,
        mask => Wake::Vcpus { dom: domain.id, incarnation: domain.incarnation, mask },
    }
}

/// The vCPUs of `domain` that poll for this port.
fn pollers_of(domain: &Domain, port: Port) -> u32 {
    let ends = [Some(Polling::Port(port)), Some(Polling::Any)];
    let pollers = domain.vcpus.iter().flatten().filter(|vcpu| ends.contains(&vcpu.sched.polling));
    pollers.fold(0, |mask, vcpu| mask | 1 << vcpu.id.get())
}

fn raise(core: &mut Core, dom: DomId, vcpu: VcpuId, interrupt: Binding) -> Wake {
    let domain = core.domains.get_mut(dom);
    let port = domain.and_then(|domain| domain.events.port_of(interrupt, vcpu));
    port.map_or(Wake::Nobody, |port| set_pending(core, dom, port))
}

/// Raises a virtual interrupt: on the vCPU given, or the domain's global one. Nothing happens where the
/// guest has bound no port to it.
pub fn raise_virq(core: &mut Core, dom: DomId, vcpu: Option<VcpuId>, virq: u32) -> Wake {
    raise(core, dom, vcpu.unwrap_or_default(), Binding::Virq(virq))
}

/// Forwards a physical interrupt to the port bound to it, if any.
pub fn raise_pirq(core: &mut Core, dom: DomId, pirq: u32) -> Wake {
    raise(core, dom, VcpuId::default(), Binding::Pirq(pirq))
}

/// Whether the vCPU is to be given an upcall before it runs on: something is pending and it
/// takes events.
pub fn upcall_due(core: &Core, vcpu: &Vcpu) -> bool {
    core.frames.mem().read_u8(upcall_flag(vcpu)) != 0 && !is_upcall_masked(core, vcpu)
}

/// Whether the vCPU takes no events at present.
pub fn is_upcall_masked(core: &Core, vcpu: &Vcpu) -> bool {
    core.frames.mem().read_u8(upcall_mask(vcpu)) != 0
}

/// Sets or clears the vCPU's upcall mask, as upcalls, `iret` and block do.
pub fn set_upcall_mask(core: &Core, vcpu: &Vcpu, masked: bool) {
    core.frames.mem().write_u8(upcall_mask(vcpu), masked.into());
}

/// Whether a port of the domain is pending, as the guest sees it. For ports out of range: no.
pub fn is_pending(core: &Core, dom: DomId, port: Port) -> bool {
    core.domains.get(dom).filter(|_| port.get() < EVTCHN_2L_PORTS).is_some_and(|domain| {
        core.frames.mem().read_u64(pending_word(domain, port)) & bit_of(port).1 != 0
    })
}

/// Tells a vCPU to look at all its ports: after its `vcpu_info` has moved no event may be lost.
pub fn mark_everything(mem: PhysMem, vcpu: &Vcpu) {
    mem.write_u64(selector(vcpu), u64::MAX);
    mem.write_u8(upcall_flag(vcpu), 1);
}
