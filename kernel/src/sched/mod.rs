//! Who runs next: Borrowed Virtual Time, run queues, timers, run states.

use crate::domain::VcpuRef;

/// The scheduler's share of a vCPU.
#[derive(Default)]
pub struct VcpuSched {}

/// Run queues and timers of all CPUs.
#[derive(Default)]
pub struct Scheduler {}

/// vCPUs that became ready. Hand it to [`Scheduler::wake`]: dropped, it would be a
/// lost event, and a guest that hangs.
#[must_use = "a wake-up that is dropped is a guest that hangs"]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wake {
    #[default]
    Nobody,
    Vcpu(VcpuRef),
}
