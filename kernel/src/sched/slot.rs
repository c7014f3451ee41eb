//! What the scheduler keeps of each vCPU, in frames taken as vCPUs come. Slots know
//! nothing of domains but the name of the vCPU they stand for.

use super::{
    bvt::{Account, Params, VirtTime},
    line::Order,
    runstate::RunTimes,
};
use crate::{
    domain::VcpuRef,
    memory::{frame::FrameTable, frame_box::FrameBox},
    state::CpuId,
};
use bulkhead_abi::{Errno, Ns, PAGE_SIZE, Port};

const PER_CHUNK: usize = 16;
const CHUNKS: usize = 63;
/// Most vCPUs on the machine: what lets a run queue fit one frame.
pub const MAX_SLOTS: usize = PER_CHUNK * CHUNKS - 8;

/// A slot's number. Only the scheduler makes them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotId(u16);

/// What a vCPU in `SCHEDOP_poll` waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Polling {
    /// One port.
    Port(Port),
    /// Several: any event of its domain wakes it, and it looks for itself.
    Any,
}

/// A timer that fires again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Periodic {
    pub period: Ns,
    pub next: Ns,
}

/// One vCPU's share of the scheduler.
pub struct Slot {
    /// `None`: the slot is free.
    pub(super) owner: Option<VcpuRef>,
    /// Where it runs.
    pub(super) cpu: CpuId,
    pub(super) params: Params,
    pub(super) account: Account,
    /// Online, and its domain neither paused nor dead.
    pub(super) eligible: bool,
    pub(super) blocked: bool,
    /// Asked to let another go first, once.
    pub(super) yielded: bool,
    pub(super) polling: Option<Polling>,
    pub(super) times: RunTimes,
    pub(super) dispatches: u64,
    pub(super) singleshot: Option<Ns>,
    pub(super) periodic: Option<Periodic>,
    pub(super) poll_until: Option<Ns>,
}

const _: () = assert!(size_of::<[Slot; PER_CHUNK]>() <= PAGE_SIZE);

impl Slot {
    const FREE: Self = Self {
        owner: None,
        cpu: CpuId(0),
        params: Params::DEFAULT,
        account: Account::new(VirtTime::new(0)),
        eligible: false,
        blocked: false,
        yielded: false,
        polling: None,
        times: RunTimes::new(Ns::new(0)),
        dispatches: 0,
        singleshot: None,
        periodic: None,
        poll_until: None,
    };

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
        [self.singleshot, periodic, self.poll_until].into_iter().flatten().min()
    }
}

/// Least effective virtual time first.
pub struct ByEffective;
/// Earliest deadline first; those without one last.
pub struct ByDeadline;

impl Order for ByEffective {
    fn before(a: &Slot, b: &Slot) -> bool {
        a.effective_vt().before(b.effective_vt())
    }
}

impl Order for ByDeadline {
    fn before(a: &Slot, b: &Slot) -> bool {
        let key = |slot: &Slot| slot.deadline().map_or(u64::MAX, Ns::get);
        key(a) < key(b)
    }
}

/// All slots, in frames of the core taken on demand and kept.
pub struct Slots {
    chunks: [Option<FrameBox<[Slot; PER_CHUNK]>>; CHUNKS],
}

impl Slots {
    #[allow(clippy::new_without_default, reason = "a constant is what its users need")]
    pub const fn new() -> Self {
        Self { chunks: [const { None }; CHUNKS] }
    }

    /// The slot, free or not; `None` if no frame holds it yet.
    pub fn get(&self, id: SlotId) -> Option<&Slot> {
        let index = usize::from(id.0);
        self.chunks.get(index / PER_CHUNK)?.as_ref()?.get(index % PER_CHUNK)
    }

    pub fn get_mut(&mut self, id: SlotId) -> Option<&mut Slot> {
        let index = usize::from(id.0);
        self.chunks.get_mut(index / PER_CHUNK)?.as_mut()?.get_mut(index % PER_CHUNK)
    }

    /// Takes a free slot for `owner`.
    ///
    /// Errors: `ENOSPC` when all are taken, `ENOMEM` when there is no frame for more.
    pub fn take(&mut self, frames: &mut FrameTable, owner: VcpuRef) -> Result<SlotId, Errno> {
        let id = (0..MAX_SLOTS as u16)
            .map(SlotId)
            .find(|&id| self.get(id).is_none_or(|slot| slot.owner.is_none()))
            .ok_or(Errno::ENOSPC)?;
        let chunk = self.chunks.get_mut(usize::from(id.0) / PER_CHUNK).ok_or(Errno::ENOSPC)?;
        if chunk.is_none() {
            *chunk = Some(FrameBox::new(frames, [Slot::FREE; PER_CHUNK]).ok_or(Errno::ENOMEM)?);
        }
        let slot = self.get_mut(id).ok_or(Errno::ENOMEM)?;
        *slot = Slot { owner: Some(owner), ..Slot::FREE };
        Ok(id)
    }

    /// Makes a slot free. It must be in no line any more.
    pub fn release(&mut self, id: SlotId) {
        if let Some(slot) = self.get_mut(id) {
            *slot = Slot::FREE;
        }
    }
}
