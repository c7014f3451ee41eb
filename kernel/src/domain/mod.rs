//! Domains and their vCPUs: the tables, the lifecycle, the in-place reset, and the
//! checklist of what a dying domain must give back. Each room's share of a domain
//! is a field of its own type; this room only holds them together.

pub mod dom0;
pub mod lifecycle;
pub mod teardown;
pub mod vcpu;

#[cfg(test)]
mod tests;

use crate::{
    device::DomainDevices,
    event::EventTable,
    memory::{frame_box::FrameBox, grant::GrantTable, reserve::Reservation},
};
use bulkhead_abi::{DomId, Errno, Mfn, Ns, VcpuId};
use heapless::String;
use vcpu::Vcpu;

/// Most domains at once, Dom0 included.
pub const MAX_DOMAINS: usize = 256;
/// Most vCPUs of one domain.
pub const MAX_VCPUS: usize = 32;

/// Which life of a domid: a reset or a new domain of the same id counts on, so that a
/// timer, event or unmap of the old life can not touch the new one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Incarnation(pub u32);

/// Names a vCPU across time: stale once its domain's incarnation has moved on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuRef {
    pub dom: DomId,
    pub vcpu: VcpuId,
    pub incarnation: Incarnation,
}

/// Where a domain is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Its vCPUs may run (unless paused).
    Alive,
    /// Shut down with a SHUTDOWN_* reason; memory still there to be looked at.
    Shutdown(u32),
    /// Being destroyed or reset, in steps.
    Dying,
}

pub struct Domain {
    pub id: DomId,
    pub incarnation: Incarnation,
    pub life: Life,
    /// When it shut down.
    pub ended_at: Ns,
    /// What its teardown, if under way, ends with.
    pub ending: Option<teardown::Ending>,
    /// Nested pauses by Dom0; runs at 0.
    pub pauses: u32,
    /// What Dom0 calls it, for the domain itself to read.
    pub handle: [u8; 16],
    pub is_driver: bool,
    /// Frame that domain and core share; owned by the domain, kept by the core.
    pub shared_info: Mfn,
    pub max_vcpus: u32,
    pub vcpus: [Option<FrameBox<Vcpu>>; MAX_VCPUS],
    pub memory: Reservation,
    pub events: EventTable,
    pub grants: GrantTable,
    pub devices: DomainDevices,
    /// `vm_assist` bits.
    pub assists: u64,
    /// Why it crashed, for people.
    pub reason: String<120>,
}

impl Domain {
    pub fn is_privileged(&self) -> bool {
        self.id == DomId::DOM0
    }

    pub fn vcpu(&self, id: VcpuId) -> Option<&Vcpu> {
        self.vcpus.get(id.get() as usize)?.as_deref()
    }

    pub fn vcpu_mut(&mut self, id: VcpuId) -> Option<&mut Vcpu> {
        self.vcpus.get_mut(id.get() as usize)?.as_deref_mut()
    }
}

/// All domains, by id.
pub struct DomainTable {
    slots: [Option<FrameBox<Domain>>; MAX_DOMAINS],
    /// Lives counted per domid, whether or not it is in use.
    lives: [u32; MAX_DOMAINS],
}

impl DomainTable {
    pub fn get(&self, id: DomId) -> Option<&Domain> {
        self.slots.get(id.get() as usize)?.as_deref()
    }

    pub fn get_mut(&mut self, id: DomId) -> Option<&mut Domain> {
        self.slots.get_mut(id.get() as usize)?.as_deref_mut()
    }

    /// The vCPU, unless its domain has moved on.
    pub fn resolve(&mut self, who: VcpuRef) -> Option<&mut Vcpu> {
        let domain = self.get_mut(who.dom)?;
        (domain.incarnation == who.incarnation).then_some(())?;
        domain.vcpu_mut(who.vcpu)
    }

    /// Begins a new life of a domid.
    pub fn next_incarnation(&mut self, id: DomId) -> Incarnation {
        let Some(lives) = self.lives.get_mut(id.get() as usize) else {
            return Incarnation::default();
        };
        *lives = lives.wrapping_add(1);
        Incarnation(*lives)
    }

    pub fn ids(&self) -> impl Iterator<Item = DomId> + '_ {
        (0..).zip(&self.slots).filter(|(_, slot)| slot.is_some()).map(|(n, _)| DomId::new(n))
    }

    /// The slot for a new domain.
    ///
    /// Errors: `EINVAL` for an id too large, `EEXIST` for one in use.
    fn vacant(&mut self, id: DomId) -> Result<&mut Option<FrameBox<Domain>>, Errno> {
        let slot = self.slots.get_mut(id.get() as usize).ok_or(Errno::EINVAL)?;
        if slot.is_some() { Err(Errno::EEXIST) } else { Ok(slot) }
    }

    pub fn remove(&mut self, id: DomId) -> Option<FrameBox<Domain>> {
        self.slots.get_mut(id.get() as usize)?.take()
    }
}

impl Default for DomainTable {
    fn default() -> Self {
        Self { slots: [const { None }; MAX_DOMAINS], lives: [0; MAX_DOMAINS] }
    }
}
