//! A domain's ports: what each is bound to and which vCPU it notifies. Kept in frames that
//! are taken as ports come and charged to the domain. No bits, no other domain's table.

use crate::{
    domain::MAX_VCPUS,
    memory::{frame::FrameTable, frame_box::FrameBox},
};
use bulkhead_abi::{
    DomId, PAGE_SIZE, Port, VcpuId,
    event::{NR_VIRQS, VIRQ_DEBUG, VIRQ_TIMER},
    shared_info::EVTCHN_2L_PORTS,
};
use heapless::LinearMap;

/// Ports in one frame.
const PER_BUCKET: usize = 256;
const BUCKETS: usize = EVTCHN_2L_PORTS as usize / PER_BUCKET;
/// Ports exist in runs of this many: what `status` calls closed, beyond which it says EINVAL. As
/// Xen 4.17 does.
const RUN: u32 = 64;
/// Most physical interrupts one domain may have bound.
const MAX_PIRQS: usize = 64;
/// Virtual interrupts of which each vCPU has its own (xen.h): timer, debug, and two of profiling.
const PER_VCPU: [u32; 4] = [VIRQ_TIMER, VIRQ_DEBUG, 7, 13];

/// What a port is bound to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Binding {
    Closed,
    /// `remote` may bind to it.
    Unbound {
        remote: DomId,
    },
    Interdomain {
        remote: DomId,
        port: Port,
    },
    Pirq(u32),
    Virq(u32),
    Ipi,
}

/// One port.
#[derive(Clone, Copy, Debug)]
pub struct Channel {
    binding: Binding,
    vcpu: u16,
}

const _: () = assert!(size_of::<[Channel; PER_BUCKET]>() <= PAGE_SIZE);

impl Channel {
    const CLOSED: Self = Self { binding: Binding::Closed, vcpu: 0 };

    pub const fn binding(&self) -> Binding {
        self.binding
    }

    /// The vCPU it notifies.
    pub const fn vcpu(&self) -> VcpuId {
        VcpuId::new(self.vcpu as u32)
    }

    pub const fn is_open(&self) -> bool {
        !matches!(self.binding, Binding::Closed)
    }
}

/// A domain's ports.
pub struct EventTable {
    buckets: [Option<FrameBox<[Channel; PER_BUCKET]>>; BUCKETS],
    /// Ports below this can be asked about.
    valid: u32,
    /// No port below this is free.
    free_hint: u32,
    open: u32,
    /// No port below this is open.
    open_hint: u32,
    /// vCPUs that poll.
    polling: u32,
    global_virqs: [Option<Port>; NR_VIRQS as usize],
    vcpu_virqs: [[Option<Port>; PER_VCPU.len()]; MAX_VCPUS],
    pirqs: LinearMap<u32, Port, MAX_PIRQS>,
}

impl Default for EventTable {
    fn default() -> Self {
        Self::new()
    }
}

impl EventTable {
    pub const fn new() -> Self {
        Self {
            buckets: [const { None }; BUCKETS],
            valid: RUN,
            free_hint: 1,
            open: 0,
            open_hint: EVTCHN_2L_PORTS,
            polling: 0,
            global_virqs: [None; NR_VIRQS as usize],
            vcpu_virqs: [[None; PER_VCPU.len()]; MAX_VCPUS],
            pirqs: LinearMap::new(),
        }
    }

    /// Ports in use.
    pub const fn open_ports(&self) -> u32 {
        self.open
    }

    /// Whether the port can be asked about, open or closed.
    pub const fn is_valid(&self, port: Port) -> bool {
        port.get() < self.valid
    }

    /// The lowest open port. Closing one after the other costs one pass over the table in all.
    pub(super) fn first_open(&mut self) -> Option<Port> {
        if self.open == 0 {
            return None;
        }
        let is_open = |&port: &Port| self.binding(port) != Binding::Closed;
        let first = (self.open_hint..self.valid).map(Port::new).find(is_open)?;
        self.open_hint = first.get();
        Some(first)
    }

    /// The port's state; `None` for one that was never in use.
    pub fn channel(&self, port: Port) -> Option<&Channel> {
        let n = port.get() as usize;
        self.buckets.get(n / PER_BUCKET)?.as_deref()?.get(n % PER_BUCKET)
    }

    fn channel_mut(&mut self, port: Port) -> Option<&mut Channel> {
        let n = port.get() as usize;
        self.buckets.get_mut(n / PER_BUCKET)?.as_deref_mut()?.get_mut(n % PER_BUCKET)
    }

    /// What the port is bound to; closed for any number that is no port.
    pub fn binding(&self, port: Port) -> Binding {
        self.channel(port).map_or(Binding::Closed, Channel::binding)
    }

    /// The lowest free port, without taking it.
    pub fn lowest_free(&self) -> Option<Port> {
        let is_free = |&port: &Port| self.binding(port) == Binding::Closed;
        (self.free_hint..EVTCHN_2L_PORTS).map(Port::new).find(is_free)
    }

    /// Makes sure that a port's state has a frame. Gives how many frames it took.
    pub fn reserve(&mut self, frames: &mut FrameTable, port: Port) -> Option<u64> {
        let bucket = self.buckets.get_mut(port.get() as usize / PER_BUCKET)?;
        if bucket.is_some() {
            return Some(0);
        }
        *bucket = Some(FrameBox::new(frames, [Channel::CLOSED; PER_BUCKET])?);
        Some(1)
    }

    /// Opens a free port whose frame is reserved.
    pub(super) fn open(&mut self, port: Port, binding: Binding, vcpu: VcpuId) {
        let Some(channel) = self.channel_mut(port) else {
            return;
        };
        // vCPU numbers are below MAX_VCPUS.
        *channel = Channel { binding, vcpu: vcpu.get() as u16 };
        self.open += 1;
        self.open_hint = self.open_hint.min(port.get());
        self.valid = self.valid.max(port.get() / RUN * RUN + RUN);
        if port.get() == self.free_hint {
            self.free_hint += 1;
        }
    }

    /// Closes a port; what it was bound to.
    pub(super) fn shut(&mut self, port: Port) -> Binding {
        let Some(channel) = self.channel_mut(port) else {
            return Binding::Closed;
        };
        let Channel { binding, vcpu } = core::mem::replace(channel, Channel::CLOSED);
        if binding != Binding::Closed {
            self.open -= 1;
            self.free_hint = self.free_hint.min(port.get());
        }
        match binding {
            Binding::Virq(virq) => self.set_virq(VcpuId::new(vcpu.into()), virq, None),
            Binding::Pirq(pirq) => {
                self.pirqs.remove(&pirq);
            }
            _ => {}
        }
        binding
    }

    /// Changes what an open port is bound to.
    pub(super) fn rebind(&mut self, port: Port, binding: Binding) {
        if let Some(channel) = self.channel_mut(port) {
            channel.binding = binding;
        }
    }

    pub(super) fn set_vcpu(&mut self, port: Port, vcpu: VcpuId) {
        if let Some(channel) = self.channel_mut(port) {
            channel.vcpu = vcpu.get() as u16;
        }
    }

    /// Whether each vCPU has this virtual interrupt for itself.
    pub fn is_per_vcpu(virq: u32) -> bool {
        PER_VCPU.contains(&virq)
    }

    fn virq_slot(&mut self, vcpu: VcpuId, virq: u32) -> Option<&mut Option<Port>> {
        match PER_VCPU.iter().position(|&one| one == virq) {
            Some(n) => self.vcpu_virqs.get_mut(vcpu.get() as usize)?.get_mut(n),
            None => self.global_virqs.get_mut(virq as usize),
        }
    }

    /// Notes which port a virtual interrupt goes to. For a global one the vCPU does not matter.
    pub(super) fn set_virq(&mut self, vcpu: VcpuId, virq: u32, port: Option<Port>) {
        if let Some(slot) = self.virq_slot(vcpu, virq) {
            *slot = port;
        }
    }

    /// The port of a virtual interrupt. A global one has no vCPU of its own.
    pub fn virq(&self, vcpu: Option<VcpuId>, virq: u32) -> Option<Port> {
        match PER_VCPU.iter().position(|&one| one == virq) {
            Some(n) => *self.vcpu_virqs.get(vcpu.map_or(0, VcpuId::get) as usize)?.get(n)?,
            None => *self.global_virqs.get(virq as usize)?,
        }
    }

    /// The port of a physical interrupt.
    pub fn pirq(&self, pirq: u32) -> Option<Port> {
        self.pirqs.get(&pirq).copied()
    }

    /// Notes which port a physical interrupt goes to; `false` when there is no room.
    pub(super) fn set_pirq(&mut self, pirq: u32, port: Port) -> bool {
        self.pirqs.insert(pirq, port).is_ok()
    }

    /// Which vCPUs poll: bit n is vCPU n.
    pub const fn polling(&self) -> u32 {
        self.polling
    }

    /// Notes that a vCPU polls, or no longer.
    pub fn set_polling(&mut self, vcpu: VcpuId, polls: bool) {
        let bit = 1u32.checked_shl(vcpu.get()).unwrap_or(0);
        self.polling = if polls { self.polling | bit } else { self.polling & !bit };
    }

    /// Gives back all frames of a table without open ports; it is as new afterwards. Gives how
    /// many there were.
    pub(super) fn free(&mut self, frames: &mut FrameTable) -> u64 {
        debug_assert_eq!(self.open, 0, "an open port has a peer that knows it");
        let mut given = 0;
        for bucket in self.buckets.iter_mut().filter_map(Option::take) {
            bucket.free(frames);
            given += 1;
        }
        // `polling` is the scheduler's to clear; the rest is as in a new table.
        *self = Self { polling: self.polling, ..Self::new() };
        given
    }
}
