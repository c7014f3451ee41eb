//! Scheduler slots in order, first come first served among equals. A plain sorted array: to move a
//! member costs a pass over at most [`MAX_SLOTS`] small numbers, and far fewer are in line.

use super::slot::{MAX_SLOTS, Slot, SlotId, Slots};

/// Members in order.
pub struct Line {
    ids: heapless::Vec<SlotId, MAX_SLOTS>,
    /// Whether `a` comes out before `b`.
    before: fn(a: &Slot, b: &Slot) -> bool,
}

impl Line {
    /// Without members, ordered by `before`.
    pub const fn new(before: fn(&Slot, &Slot) -> bool) -> Self {
        Self { ids: heapless::Vec::new(), before }
    }

    /// The members, the one that comes first at the front.
    pub fn members(&self) -> &[SlotId] {
        &self.ids
    }

    /// Puts a slot in, or back in order after its key changed; behind its equals.
    pub fn put(&mut self, slots: &Slots, id: SlotId) {
        self.remove(id);
        let Some(slot) = slots.get(id) else { return };
        let goes_on =
            |&other: &SlotId| slots.get(other).is_some_and(|other| !(self.before)(slot, other));
        let place = self.ids.partition_point(goes_on);
        // There is room for every slot that exists.
        let _ = self.ids.insert(place, id);
    }

    /// Takes a slot out; nothing happens if it is not in.
    pub fn remove(&mut self, id: SlotId) {
        self.ids.retain(|&member| member != id);
    }
}
