//! A binary heap of scheduler slots whose members know where they stand in it, so that
//! any of them can be moved or taken out in logarithmic time. Order and position
//! are the slot's business; memory is a fixed array.

use super::slot::{MAX_SLOTS, Slot, SlotId, Slots};
use core::marker::PhantomData;

/// A place in a heap; [`NOWHERE`] for a slot that is not in it.
pub type Place = u16;
pub const NOWHERE: Place = Place::MAX;

/// What a heap orders by, and where a slot keeps its place.
pub trait Order {
    /// Whether `a` comes out before `b`.
    fn before(a: &Slot, b: &Slot) -> bool;
    fn place(slot: &Slot) -> Place;
    fn set_place(slot: &mut Slot, place: Place);
}

/// Members in heap order: a parent never comes after its children.
pub struct Heap<O> {
    len: usize,
    ids: [SlotId; MAX_SLOTS],
    order: PhantomData<O>,
}

impl<O: Order> Default for Heap<O> {
    fn default() -> Self {
        Self::new()
    }
}

impl<O: Order> Heap<O> {
    /// Without members.
    pub const fn new() -> Self {
        Self { len: 0, ids: [SlotId::FIRST; MAX_SLOTS], order: PhantomData }
    }

    fn members(&self) -> &[SlotId] {
        self.ids.get(..self.len).unwrap_or_default()
    }

    /// The one that comes first.
    pub fn first(&self) -> Option<SlotId> {
        self.members().first().copied()
    }

    /// The one that would come first without the first.
    pub fn second(&self, slots: &Slots) -> Option<SlotId> {
        self.earliest(slots, 1, 3)
    }

    /// The earliest of the members at `from..to`.
    fn earliest(&self, slots: &Slots, from: usize, to: usize) -> Option<SlotId> {
        let candidates = self.members().get(from..to.min(self.len))?;
        candidates.iter().copied().reduce(|a, b| if Self::ordered(slots, b, a) { b } else { a })
    }

    fn ordered(slots: &Slots, a: SlotId, b: SlotId) -> bool {
        match (slots.get(a), slots.get(b)) {
            (Some(a), Some(b)) => O::before(a, b),
            _ => false,
        }
    }

    /// Whether the slot is a member.
    pub fn contains(&self, slots: &Slots, id: SlotId) -> bool {
        self.place_of(slots, id).is_some()
    }

    fn place_of(&self, slots: &Slots, id: SlotId) -> Option<usize> {
        let place = usize::from(O::place(slots.get(id)?));
        (self.members().get(place) == Some(&id)).then_some(place)
    }

    /// Puts a slot in, or back in order after its key changed. There is room for all slots that
    /// exist.
    pub fn put(&mut self, slots: &mut Slots, id: SlotId) {
        if slots.get(id).is_none() {
            return;
        }
        let place = match self.place_of(slots, id) {
            Some(place) => place,
            None => {
                let Some(end) = self.ids.get_mut(self.len) else {
                    return;
                };
                *end = id;
                self.len += 1;
                self.len - 1
            }
        };
        let place = self.sift_up(slots, place, id);
        self.sift_down(slots, place, id);
    }

    /// Takes a slot out; nothing happens if it is not in.
    pub fn remove(&mut self, slots: &mut Slots, id: SlotId) {
        let Some(place) = self.place_of(slots, id) else {
            return;
        };
        if let Some(slot) = slots.get_mut(id) {
            O::set_place(slot, NOWHERE);
        }
        self.len -= 1;
        let Some(&last) = self.ids.get(self.len) else {
            return;
        };
        if last != id {
            let place = self.sift_up(slots, place, last);
            self.sift_down(slots, place, last);
        }
    }

    fn set(&mut self, slots: &mut Slots, place: usize, id: SlotId) {
        if let (Some(at), Some(slot)) = (self.ids.get_mut(place), slots.get_mut(id)) {
            *at = id;
            O::set_place(slot, place as Place);
        }
    }

    fn sift_up(&mut self, slots: &mut Slots, mut place: usize, id: SlotId) -> usize {
        while place > 0 {
            let up = (place - 1) / 2;
            let Some(&parent) = self.ids.get(up) else {
                break;
            };
            if !Self::ordered(slots, id, parent) {
                break;
            }
            self.set(slots, place, parent);
            place = up;
        }
        self.set(slots, place, id);
        place
    }

    fn sift_down(&mut self, slots: &mut Slots, mut place: usize, id: SlotId) {
        while let Some(child) = self.earliest(slots, 2 * place + 1, 2 * place + 3) {
            if !Self::ordered(slots, child, id) {
                break;
            }
            let Some(down) = self.place_of(slots, child) else {
                break;
            };
            self.set(slots, place, child);
            place = down;
        }
        self.set(slots, place, id);
    }
}
