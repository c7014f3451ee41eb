//! A domain's ports: what each is bound to and which vCPU it notifies. Kept in frames that
//! are taken as ports come and charged to the domain. No bits, no other domain's table.

use crate::{
    device::irq,
    domain::MAX_VCPUS,
    memory::{frame::FrameTable, frame_box::FrameBox},
};
use bulkhead_abi::{
    DomId, PAGE_SIZE, Port, VcpuId,
    event::{NR_VIRQS, VIRQ_DEBUG, VIRQ_TIMER},
    shared_info::EVTCHN_2L_PORTS,
};

/// Ports in one frame.
const PER_BUCKET: usize = 256;
const BUCKETS: usize = EVTCHN_2L_PORTS as usize / PER_BUCKET;
/// Ports exist in runs of this many: what `status` calls closed, beyond which it says EINVAL. As
/// Xen 4.17 does.
const RUN: u32 = 64;
/// Virtual interrupts of which each vCPU has its own (xen.h): timer, debug, and two of profiling.
const PER_VCPU: [u32; 4] = [VIRQ_TIMER, VIRQ_DEBUG, 7, 13];
/// Never a port.
const NONE: Port = Port::new(0);

/// Whether each vCPU has this virtual interrupt for itself.
pub fn is_per_vcpu(virq: u32) -> bool {
    PER_VCPU.contains(&virq)
}

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
    pub binding: Binding,
    /// The vCPU it notifies.
    pub vcpu: VcpuId,
}

const _: () = assert!(size_of::<[Channel; PER_BUCKET]>() <= PAGE_SIZE);

impl Channel {
    const CLOSED: Self = Self { binding: Binding::Closed, vcpu: VcpuId::new(0) };
}

/// A domain's ports.
pub struct EventTable {
    buckets: [Option<FrameBox<[Channel; PER_BUCKET]>>; BUCKETS],
    /// Ports below this can be asked about.
    valid: u32,
    /// By vCPU and virtual interrupt; global ones are with vCPU 0.
    virqs: [[Port; NR_VIRQS as usize]; MAX_VCPUS],
    pirqs: [Port; irq::SLOTS],
}

impl Default for EventTable {
    fn default() -> Self {
        Self {
            buckets: [const { None }; BUCKETS],
            valid: RUN,
            virqs: [[NONE; NR_VIRQS as usize]; MAX_VCPUS],
            pirqs: [NONE; irq::SLOTS],
        }
    }
}

impl EventTable {
    /// How many ports are in use.
    pub fn open_ports(&self) -> u32 {
        (0..self.valid).filter(|&n| self.binding(Port::new(n)) != Binding::Closed).count() as u32
    }

    /// The first port in use from `from` on.
    pub(super) fn first_open(&self, from: u32) -> Option<Port> {
        (from..self.valid).map(Port::new).find(|&port| self.binding(port) != Binding::Closed)
    }

    /// The lowest free port, without taking it.
    pub(super) fn lowest_free(&self) -> Option<Port> {
        let is_free = |&port: &Port| self.binding(port) == Binding::Closed;
        (1..EVTCHN_2L_PORTS).map(Port::new).find(is_free)
    }

    /// Whether the port can be asked about, open or closed.
    pub(super) const fn is_valid(&self, port: Port) -> bool {
        port.get() < self.valid
    }

    /// The port's state; closed for any number that is no port.
    pub(super) fn channel(&self, port: Port) -> Channel {
        let n = port.get() as usize;
        let bucket = self.buckets.get(n / PER_BUCKET).and_then(Option::as_deref);
        bucket.and_then(|bucket| bucket.get(n % PER_BUCKET)).copied().unwrap_or(Channel::CLOSED)
    }

    /// What the port is bound to.
    pub fn binding(&self, port: Port) -> Binding {
        self.channel(port).binding
    }

    /// The port's state, to be changed; `None` where none was ever in use.
    pub(super) fn channel_mut(&mut self, port: Port) -> Option<&mut Channel> {
        let n = port.get() as usize;
        self.buckets.get_mut(n / PER_BUCKET)?.as_deref_mut()?.get_mut(n % PER_BUCKET)
    }

    /// Makes sure that a port's state has a frame. Gives how many frames it took.
    pub(super) fn reserve(&mut self, frames: &mut FrameTable, port: Port) -> Option<u64> {
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
        *channel = Channel { binding, vcpu };
        self.valid = self.valid.max(port.get() / RUN * RUN + RUN);
        if let Some(noted) = self.noted(binding, vcpu) {
            *noted = port;
        }
    }

    /// Closes a port; what it was bound to.
    pub(super) fn shut(&mut self, port: Port) -> Binding {
        let Some(channel) = self.channel_mut(port) else {
            return Binding::Closed;
        };
        let Channel { binding, vcpu } = core::mem::replace(channel, Channel::CLOSED);
        if let Some(noted) = self.noted(binding, vcpu) {
            *noted = NONE;
        }
        binding
    }

    /// Where the port of an interrupt is noted; `None` for ports that are for something else.
    fn noted(&mut self, binding: Binding, vcpu: VcpuId) -> Option<&mut Port> {
        match binding {
            Binding::Virq(virq) => {
                let row = if is_per_vcpu(virq) { vcpu.get() as usize } else { 0 };
                self.virqs.get_mut(row)?.get_mut(virq as usize)
            }
            Binding::Pirq(pirq) => self.pirqs.get_mut(pirq as usize),
            _ => None,
        }
    }

    /// The port of an interrupt. For a physical or global one the vCPU does not matter.
    pub(super) fn port_of(&mut self, interrupt: Binding, vcpu: VcpuId) -> Option<Port> {
        self.noted(interrupt, vcpu).copied().filter(|&port| port != NONE)
    }

    /// Gives back all frames of a table without open ports; it is as new afterwards. Gives how
    /// many there were.
    pub(super) fn free(&mut self, frames: &mut FrameTable) -> u64 {
        debug_assert_eq!(self.open_ports(), 0, "an open port has a peer that knows it");
        let mut given = 0;
        for bucket in self.buckets.iter_mut().filter_map(Option::take) {
            bucket.free(frames);
            given += 1;
        }
        *self = Self::default();
        given
    }
}
