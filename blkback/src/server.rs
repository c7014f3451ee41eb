//! All virtual disks of one device, served in turn. Knows when to go on and when to
//! sleep; what wakes it is the caller's business.

use crate::vbd::EndReason;
use crate::{BlockDevice, Platform, Token, Vbd};
use alloc::vec::Vec;

/// Requests that one front end may have taken before the next one's turn.
pub const QUANTUM: usize = 8;

/// Names a virtual disk; never names another one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VbdId {
    slot: u32,
    generation: u32,
}

/// A virtual disk that is over.
pub struct Ended<P: Platform> {
    /// Which one.
    pub id: VbdId,
    /// Why.
    pub reason: EndReason,
    /// What is left: dropping it unmaps the ring.
    pub vbd: Vbd<P>,
}

/// Whether there is more to do at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Call again.
    More,
    /// Nothing moved.
    Idle,
}

struct Slot<P: Platform> {
    generation: u32,
    /// Jobs that the device has of this slot's front end.
    on_device: usize,
    vbd: Option<Vbd<P>>,
}

/// The service of one device.
pub struct Server<P: Platform> {
    device: P::Device,
    slots: Vec<Slot<P>>,
    /// Whose turn is first.
    turn: usize,
}

impl<P: Platform> Server<P> {
    /// A service without front ends.
    pub fn new(device: P::Device) -> Self {
        Self { device, slots: Vec::new(), turn: 0 }
    }

    /// The device.
    pub fn device(&self) -> &P::Device {
        &self.device
    }

    /// The device, for what is not the back end's business.
    pub fn device_mut(&mut self) -> &mut P::Device {
        &mut self.device
    }

    /// Takes a virtual disk into service.
    pub fn add(&mut self, vbd: Vbd<P>) -> VbdId {
        let free = self.slots.iter().position(|slot| slot.vbd.is_none());
        let slot = free.unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, on_device: 0, vbd: None });
            self.slots.len() - 1
        });
        let place = &mut self.slots[slot];
        place.generation = place.generation.wrapping_add(1);
        place.vbd = Some(vbd);
        VbdId { slot: slot as u32, generation: place.generation }
    }

    /// Looks at a virtual disk in service.
    pub fn get(&self, id: VbdId) -> Option<&Vbd<P>> {
        let slot = self.slots.get(id.slot as usize)?;
        slot.vbd.as_ref().filter(|_| slot.generation == id.generation)
    }

    /// Stops taking requests of a virtual disk. It is over, and comes out of
    /// [`Server::take_ended`], once the device has given back what it has of it.
    pub fn close(&mut self, id: VbdId) {
        if let Some(slot) = self.slots.get_mut(id.slot as usize)
            && slot.generation == id.generation
            && let Some(vbd) = &mut slot.vbd
        {
            vbd.end(EndReason::Closed);
        }
    }

    /// Takes out a virtual disk that is over.
    pub fn take_ended(&mut self) -> Option<Ended<P>> {
        for (i, slot) in self.slots.iter_mut().enumerate() {
            let Some(reason) = slot.vbd.as_ref().and_then(|vbd| vbd.ended(slot.on_device)) else {
                continue;
            };
            let id = VbdId { slot: i as u32, generation: slot.generation };
            return slot.vbd.take().map(|vbd| Ended { id, reason, vbd });
        }
        None
    }

    /// One round: takes back what the device has done, takes at most [`QUANTUM`] requests
    /// from each front end, answers.
    pub fn step(&mut self) -> Step {
        let completed = self.take_completions();
        let pulled = self.pull_from_all();
        let mut answered = false;
        for vbd in self.slots.iter_mut().filter_map(|slot| slot.vbd.as_mut()) {
            answered |= vbd.answer();
        }
        match completed || pulled || answered {
            true => Step::More,
            false => Step::Idle,
        }
    }

    fn take_completions(&mut self) -> bool {
        let mut any = false;
        while let Some(done) = self.device.poll() {
            any = true;
            let Some(slot) = self.slots.get_mut(done.token.vbd as usize) else {
                continue;
            };
            // A slot is not given away while the device has jobs of it, so the
            // generations agree unless the device made the token up.
            if slot.generation == done.token.generation
                && let Some(vbd) = &mut slot.vbd
            {
                slot.on_device = slot.on_device.saturating_sub(1);
                vbd.complete(done);
            }
        }
        any
    }

    fn pull_from_all(&mut self) -> bool {
        let count = self.slots.len();
        let (mut progress, mut submitted) = (false, false);
        for turn in 0..count {
            let i = (self.turn + turn) % count;
            let slot = &mut self.slots[i];
            let (generation, vbd) = (slot.generation, i as u32);
            let Some(front) = &mut slot.vbd else { continue };
            let token = |index| Token { vbd, generation, index };
            let pulled = front.pull(&mut self.device, token, QUANTUM);
            slot.on_device += pulled.submitted;
            submitted |= pulled.submitted > 0;
            progress |= pulled.progress;
        }
        if count > 0 {
            self.turn = (self.turn + 1) % count;
        }
        if submitted {
            self.device.kick();
        }
        progress
    }

    /// Before sleeping: asks every front end for an event. False if one of them has
    /// something to do already, or one is over.
    pub fn may_sleep(&mut self) -> bool {
        let mut more = false;
        for slot in &mut self.slots {
            if let Some(vbd) = &mut slot.vbd {
                more |= vbd.has_more() || vbd.ended(slot.on_device).is_some();
            }
        }
        !more
    }
}
