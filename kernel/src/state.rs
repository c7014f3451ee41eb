//! Everything the core knows, in one structure behind the one core lock. It is
//! taken on entry from ring 3 and let go on the way back; what a CPU needs before
//! it holds the lock is in `arch`. Rooms take the parts they need, not the whole.

use crate::{
    device::Devices,
    domain::{DomainTable, VcpuRef, vcpu::Vcpu},
    hypercall::console::ConsoleState,
    memory::{flush::Flush, frame::FrameTable},
    sched::Scheduler,
    trace::Trace,
};
use bulkhead_abi::{DomId, VcpuId};

/// Most CPUs the core will run on.
pub const MAX_CPUS: usize = 4;

/// A physical CPU, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuId(pub usize);

/// What one CPU is doing.
#[derive(Default)]
pub struct CpuState {
    /// The vCPU whose registers are, or were last, on this CPU; `None` when idle.
    pub current: Option<VcpuRef>,
    /// TLB entries to drop before any guest runs here again. The core itself never
    /// reads through a guest's mapping, so this may wait until the exit.
    pub flush: Flush,
    /// The scheduler wants to choose anew before the exit.
    pub need_resched: bool,
    /// GDT or LDT of the current vCPU changed: the processor's windows onto them are to be
    /// set again before the exit.
    pub reload_tables: bool,
    /// When this CPU last came from ring 3, by the TSC; for the longest stay.
    pub entered_at: u64,
}

/// The caller of a hypercall or the origin of a trap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    pub cpu: CpuId,
    pub dom: DomId,
    pub vcpu: VcpuId,
}

pub struct Core {
    pub frames: FrameTable,
    pub domains: DomainTable,
    pub sched: Scheduler,
    pub devices: Devices,
    pub trace: Trace,
    /// Who writes on the debug UART.
    pub console: ConsoleState,
    pub cpus: [CpuState; MAX_CPUS],
}

impl Core {
    /// A machine with this memory: no domain, no device found yet.
    pub fn new(frames: FrameTable) -> Self {
        Self {
            frames,
            domains: Default::default(),
            sched: Default::default(),
            devices: Default::default(),
            trace: Default::default(),
            console: Default::default(),
            cpus: Default::default(),
        }
    }

    /// Notes that `flush` must happen before a guest runs again.
    ///
    /// One CPU runs guests today, so its own list is enough; with more, this is
    /// where the shootdown by IPI is requested.
    pub fn request_flush(&mut self, cpu: CpuId, flush: Flush) {
        let state = self.cpu(cpu);
        state.flush = state.flush.merge(flush);
    }

    /// What a CPU is doing. Numbers of CPUs are the core's own, so they exist.
    pub fn cpu(&mut self, cpu: CpuId) -> &mut CpuState {
        &mut self.cpus[cpu.0]
    }

    /// The calling vCPU.
    pub fn vcpu(&self, caller: Caller) -> Option<&Vcpu> {
        self.domains.get(caller.dom)?.vcpu(caller.vcpu)
    }

    /// The calling vCPU, to be changed.
    pub fn vcpu_mut(&mut self, caller: Caller) -> Option<&mut Vcpu> {
        self.domains.get_mut(caller.dom)?.vcpu_mut(caller.vcpu)
    }
}
