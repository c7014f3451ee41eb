//! Scheduler slots in order, first come first served among equals. A plain sorted array: to move a
//! member costs a pass over at most [`MAX_SLOTS`] small numbers, and far fewer are in line.

use super::slot::{MAX_SLOTS, Slot, SlotId, Slots};
use core::marker::PhantomData;

/// What a line is ordered by.
pub trait Order {
    /// Whether `a` comes out before `b`.
    fn before(a: &Slot, b: &Slot) -> bool;
}

/// Members in order.
pub struct Line<O> {
    ids: heapless::Vec<SlotId, MAX_SLOTS>,
    order: PhantomData<O>,
}

impl<O: Order> Line<O> {
    /// Without members.
    #[allow(clippy::new_without_default, reason = "a constant is what its users need")]
    pub const fn new() -> Self {
        Self { ids: heapless::Vec::new(), order: PhantomData }
    }

    /// The members, the one that comes first at the front.
    pub fn members(&self) -> &[SlotId] {
        &self.ids
    }

    /// The one that comes first.
    pub fn first(&self) -> Option<SlotId> {
        self.ids.first().copied()
    }

    /// Puts a slot in, or back in order after its key changed; behind its equals.
    pub fn put(&mut self, slots: &Slots, id: SlotId) {
        self.remove(id);
        let Some(slot) = slots.get(id) else { return };
        let goes_on =
            |&other: &SlotId| slots.get(other).is_some_and(|other| !O::before(slot, other));
        let place = self.ids.partition_point(goes_on);
        // There is room for every slot that exists.
        let _ = self.ids.insert(place, id);
    }

    /// Takes a slot out; nothing happens if it is not in.
    pub fn remove(&mut self, id: SlotId) {
        if let Some(place) = self.ids.iter().position(|&member| member == id) {
            self.ids.remove(place);
        }
    }
}
