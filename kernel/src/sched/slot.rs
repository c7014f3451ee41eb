//! What the scheduler keeps of each vCPU, in frames taken as vCPUs come. Slots know
//! nothing of domains but the name of the vCPU they stand for.

use super::{
    bvt::{Account, Params, VirtTime},
    runstate::RunTimes,
};
use crate::{
    domain::VcpuRef,
    memory::{frame::FrameTable, frame_box::FrameBox},
    state::CpuId,
};
use bulkhead_abi::{DomId, Errno, Ns, PAGE_SIZE};

/// Most vCPUs on the machine.
pub const MAX_SLOTS: usize = 1024;
const PER_CHUNK: usize = 16;

/// A slot's number. Only the scheduler makes them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotId(u16);

/// A timer that fires again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Periodic {
    pub period: Ns,
    pub next: Ns,
}

/// One vCPU's share of the scheduler.
pub struct Slot {
    pub(super) owner: VcpuRef,
    /// Where it runs.
    pub(super) cpu: CpuId,
    pub(super) params: Params,
    pub(super) account: Account,
    /// Online, and its domain neither paused nor dead.
    pub(super) eligible: bool,
    pub(super) blocked: bool,
    /// Asked to let another go first, once.
    pub(super) yielded: bool,
    pub(super) times: RunTimes,
    pub(super) dispatches: u64,
    pub(super) singleshot: Option<Ns>,
    pub(super) periodic: Option<Periodic>,
    /// When it wakes though nothing has happened.
    pub(super) wake_at: Option<Ns>,
}

/// Slots in one frame; `None` where one is free.
type Chunk = [Option<Slot>; PER_CHUNK];
const _: () = assert!(size_of::<Chunk>() <= PAGE_SIZE);

impl Slot {
    /// Of an offline vCPU that stands where the others are. Dom0 has parameters of its own.
    pub(super) fn new(owner: VcpuRef, cpu: CpuId, svt: VirtTime, now: Ns) -> Self {
        Self {
            owner,
            cpu,
            params: if owner.dom == DomId::DOM0 { Params::DOM0 } else { Params::DEFAULT },
            account: Account::new(svt),
            eligible: false,
            blocked: false,
            yielded: false,
            times: RunTimes::new(now),
            dispatches: 0,
            singleshot: None,
            periodic: None,
            wake_at: None,
        }
    }

    /// Whether it may be given the CPU.
    pub(super) const fn is_runnable(&self) -> bool {
        self.eligible && !self.blocked
    }

    pub(super) const fn effective_vt(&self) -> VirtTime {
        self.account.effective_vt(&self.params)
    }

    /// The earliest of its timers.
    pub(super) fn deadline(&self) -> Option<Ns> {
        let periodic = self.periodic.map(|periodic| periodic.next);
        [self.singleshot, periodic, self.wake_at].into_iter().flatten().min()
    }

    /// The order of a run queue: least effective virtual time first.
    pub(super) fn runs_before(&self, other: &Self) -> bool {
        self.effective_vt().before(other.effective_vt())
    }

    /// The order of timers: earliest deadline first.
    pub(super) fn due_before(&self, other: &Self) -> bool {
        let key = |slot: &Self| slot.deadline().map_or(u64::MAX, Ns::get);
        key(self) < key(other)
    }
}

/// All slots, in frames of the core taken on demand and kept.
pub struct Slots {
    chunks: [Option<FrameBox<Chunk>>; MAX_SLOTS / PER_CHUNK],
}

impl Default for Slots {
    fn default() -> Self {
        Self { chunks: [const { None }; MAX_SLOTS / PER_CHUNK] }
    }
}

impl Slots {
    /// The slot, unless it is free.
    pub fn get(&self, id: SlotId) -> Option<&Slot> {
        let n = usize::from(id.0);
        self.chunks.get(n / PER_CHUNK)?.as_ref()?.get(n % PER_CHUNK)?.as_ref()
    }

    pub fn get_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        self.place(id)?.as_mut()
    }

    fn place(&mut self, id: SlotId) -> Option<&mut Option<Slot>> {
        let n = usize::from(id.0);
        self.chunks.get_mut(n / PER_CHUNK)?.as_mut()?.get_mut(n % PER_CHUNK)
    }

    /// Takes a free slot.
    ///
    /// Errors: `ENOSPC` when all are taken, `ENOMEM` when there is no frame for more.
    pub fn take(&mut self, frames: &mut FrameTable, slot: Slot) -> Result<SlotId, Errno> {
        let mut free = (0..MAX_SLOTS as u16).map(SlotId).filter(|&id| self.get(id).is_none());
        let id = free.next().ok_or(Errno::ENOSPC)?;
        let chunk = self.chunks.get_mut(usize::from(id.0) / PER_CHUNK).ok_or(Errno::ENOSPC)?;
        if chunk.is_none() {
            *chunk = FrameBox::new(frames, [const { None }; PER_CHUNK]);
        }
        *self.place(id).ok_or(Errno::ENOMEM)? = Some(slot);
        Ok(id)
    }

    /// Makes a slot free. It must be in no line any more.
    pub fn release(&mut self, id: SlotId) {
        if let Some(place) = self.place(id) {
            *place = None;
        }
    }
}
