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
    domain::{Domain, MAX_VCPUS, VcpuRef, vcpu::Vcpu},
    memory::phys::PhysMem,
    sched::{self, Wake},
};
pub use bind::{
    alloc_unbound, bind_interdomain, bind_ipi, bind_pirq, bind_vcpu, bind_virq, close, close_all,
    close_some, named, send, status, unmask,
};
use bulkhead_abi::{
    DomId, Maddr, Port, VcpuId,
    event::NR_VIRQS,
    shared_info::{SharedInfo, VcpuInfo},
};
use core::mem::offset_of;
pub use table::{Binding, EventTable};

/// Why an event operation is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventError {
    /// No such domain.
    NoDomain { dom: DomId },
    /// No such vCPU in the caller's domain.
    NoVcpu { vcpu: VcpuId },
    /// Not a port of this table, or none that the operation is for.
    BadPort { port: Port },
    /// The remote port is not there, or not offered to the caller.
    NotOffered { dom: DomId, port: Port },
    /// No such virtual interrupt, or a global one asked for on another vCPU than 0.
    BadVirq { virq: u32 },
    /// Bound already.
    Exists { port: Port },
    /// Every port is in use.
    NoPort,
    /// No frame for more ports.
    NoMemory,
    /// Not the caller's to bind.
    NotYours { pirq: u32 },
    /// Only Dom0 may do this.
    NotPermitted,
}

impl From<EventError> for bulkhead_abi::Errno {
    fn from(error: EventError) -> Self {
        match error {
            EventError::NoDomain { .. } => Self::ESRCH,
            EventError::NoVcpu { .. } => Self::ENOENT,
            EventError::BadPort { .. }
            | EventError::NotOffered { .. }
            | EventError::BadVirq { .. }
            | EventError::NotYours { .. } => Self::EINVAL,
            EventError::Exists { .. } => Self::EEXIST,
            EventError::NoPort => Self::ENOSPC,
            EventError::NoMemory => Self::ENOMEM,
            EventError::NotPermitted => Self::EPERM,
        }
    }
}

fn at(base: Maddr, offset: usize) -> Maddr {
    Maddr::new(base.get() + offset as u64)
}

/// A port's bit: the word's offset in its bitmap, and the bit in it.
const fn bit_of(port: Port) -> (usize, u64) {
    let n = port.get() as usize;
    (n / 64 * 8, 1 << (n % 64))
}

fn pending_word(domain: &Domain, port: Port) -> Maddr {
    at(domain.shared_info.maddr(), offset_of!(SharedInfo, evtchn_pending) + bit_of(port).0)
}

fn mask_word(domain: &Domain, port: Port) -> Maddr {
    at(domain.shared_info.maddr(), offset_of!(SharedInfo, evtchn_mask) + bit_of(port).0)
}

/// Marks the vCPU's selector and upcall flag; whether it was not marked before.
fn mark_vcpu(mem: PhysMem, vcpu: &Vcpu, port: Port) -> bool {
    let selector = 1 << (port.get() / 64);
    let marked =
        mem.fetch_or_u64(at(vcpu.info, offset_of!(VcpuInfo, evtchn_pending_sel)), selector);
    marked & selector == 0 && mark_upcall(mem, vcpu)
}

fn mark_upcall(mem: PhysMem, vcpu: &Vcpu) -> bool {
    mem.swap_u8(at(vcpu.info, offset_of!(VcpuInfo, evtchn_upcall_pending)), 1) == 0
}

/// Makes a port pending, and its vCPU if the guest has not masked it. Nothing happens for a port
/// that is not in use: the domain may have died under the sender.
pub fn set_pending(core: &mut Core, dom: DomId, port: Port) -> Wake {
    let mem = core.frames.mem();
    let Some(domain) = core.domains.get(dom) else {
        return Wake::Nobody;
    };
    let Some(channel) = domain.events.channel(port).filter(|channel| channel.is_open()) else {
        return Wake::Nobody;
    };
    let bit = bit_of(port).1;
    if mem.fetch_or_u64(pending_word(domain, port), bit) & bit != 0 {
        return Wake::Nobody;
    }
    let mut mask = 0;
    if mem.read_u64(mask_word(domain, port)) & bit == 0
        && let Some(vcpu) = domain.vcpu(channel.vcpu())
        && mark_vcpu(mem, vcpu, port)
    {
        mask |= 1 << vcpu.id.get();
    }
    mask |= pollers_of(core, domain, port);
    wake_of(domain, mask)
}

fn wake_of(domain: &Domain, mask: u32) -> Wake {
    match mask {
        0 => Wake::Nobody,
        mask => Wake::Vcpus { dom: domain.id, incarnation: domain.incarnation, mask },
    }
}

/// The vCPUs of `domain` that poll for this port.
fn pollers_of(core: &Core, domain: &Domain, port: Port) -> u32 {
    let polls = |n: &u32| {
        sched::polling(core, domain.id, VcpuId::new(*n))
            .is_some_and(|polling| sched::poll_matches(polling, port))
    };
    let polling = domain.events.polling();
    (0..MAX_VCPUS as u32)
        .filter(|n| polling & 1 << n != 0)
        .filter(polls)
        .fold(0, |mask, n| mask | 1 << n)
}

/// Raises a virtual interrupt: on the vCPU given, or the domain's global one. Nothing happens where the
/// guest has bound no port to it.
pub fn raise_virq(core: &mut Core, dom: DomId, vcpu: Option<VcpuId>, virq: u32) -> Wake {
    debug_assert!(virq < NR_VIRQS, "virqs are named by the core itself");
    let port = core.domains.get(dom).and_then(|domain| domain.events.virq(vcpu, virq));
    port.map_or(Wake::Nobody, |port| set_pending(core, dom, port))
}

/// Forwards a physical interrupt to the port bound to it, if any.
pub fn raise_pirq(core: &mut Core, dom: DomId, pirq: u32) -> Wake {
    let port = core.domains.get(dom).and_then(|domain| domain.events.pirq(pirq));
    port.map_or(Wake::Nobody, |port| set_pending(core, dom, port))
}

/// Whether the vCPU is to be given an upcall before it runs on: something is pending and it
/// takes events.
pub fn upcall_due(core: &Core, vcpu: &Vcpu) -> bool {
    let mem = core.frames.mem();
    mem.read_u8(at(vcpu.info, offset_of!(VcpuInfo, evtchn_upcall_pending))) != 0
        && !is_upcall_masked(core, vcpu)
}

/// Whether the vCPU takes no events at present.
pub fn is_upcall_masked(core: &Core, vcpu: &Vcpu) -> bool {
    core.frames.mem().read_u8(at(vcpu.info, offset_of!(VcpuInfo, evtchn_upcall_mask))) != 0
}

/// Sets or clears the vCPU's upcall mask, as upcalls, `iret` and block do.
pub fn set_upcall_mask(core: &Core, vcpu: &Vcpu, masked: bool) {
    let mask = at(vcpu.info, offset_of!(VcpuInfo, evtchn_upcall_mask));
    core.frames.mem().write_u8(mask, u8::from(masked));
}

/// Whether a port of the domain is pending, as the guest sees it. For ports out of range: no.
pub fn is_pending(core: &Core, dom: DomId, port: Port) -> bool {
    let limit = bulkhead_abi::shared_info::EVTCHN_2L_PORTS;
    core.domains.get(dom).filter(|_| port.get() < limit).is_some_and(|domain| {
        core.frames.mem().read_u64(pending_word(domain, port)) & bit_of(port).1 != 0
    })
}

/// Tells a vCPU to look at all its ports: after its `vcpu_info` has moved no event may be lost.
pub fn mark_everything(core: &Core, who: VcpuRef) {
    let Some(vcpu) = core.domains.get(who.dom).and_then(|domain| domain.vcpu(who.vcpu)) else {
        return;
    };
    let mem = core.frames.mem();
    mem.fetch_or_u64(at(vcpu.info, offset_of!(VcpuInfo, evtchn_pending_sel)), u64::MAX);
    mark_upcall(mem, vcpu);
}
