//! Circular lists of frames, threaded through the table: the owner of a list keeps its first frame.

use super::Frame;

/// The first frame of an empty list.
pub(super) const NIL: u32 = u32::MAX;

/// Puts frame `n` at the head of a list.
pub(super) fn push(frames: &mut [Frame], head: &mut u32, n: u32) {
    let (prev, next) = match *head {
        NIL => (n, n),
        first => (frames[first as usize].prev, first),
    };
    frames[n as usize].prev = prev;
    frames[n as usize].next = next;
    frames[prev as usize].next = n;
    frames[next as usize].prev = n;
    *head = n;
}

/// Takes frame `n` off the list that it is on.
pub(super) fn remove(frames: &mut [Frame], head: &mut u32, n: u32) {
    let Frame { prev, next, .. } = frames[n as usize];
    frames[prev as usize].next = next;
    frames[next as usize].prev = prev;
    if *head == n {
        *head = if next == n { NIL } else { next };
    }
}
