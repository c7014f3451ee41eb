//! What a back end finds that follows one which died: where the ring stands, and which of
//! the requests without a response are to be run. Decides; does nothing to the ring.

use crate::{Cursors, Redo};
use bulkhead_abi::ledger::on_failure as raw;

/// What becomes of the requests of a back end that died, in the words of Linux' ublk: those
/// that it had taken are *outstanding*, those that nobody has taken yet are *issued* later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Outstanding requests are run again, those issued later wait (ublk: `USER_RECOVERY` with
    /// `USER_RECOVERY_REISSUE`). The guest notices nothing; a write may have happened twice.
    #[default]
    Reissue,
    /// Outstanding requests get an error, those issued later wait (`USER_RECOVERY`).
    Queue,
    /// Both get an error (`USER_RECOVERY_FAIL_IO`): all that is in the ring when the next
    /// back end comes to it.
    Fail,
    /// So does all that ever comes.
    Refuse,
}

impl OnFailure {
    /// From the word in the ledger; what is not known is the usual one.
    pub fn from_raw(word: u32) -> Self {
        match word {
            raw::QUEUE => Self::Queue,
            raw::FAIL => Self::Fail,
            raw::REFUSE => Self::Refuse,
            _ => Self::Reissue,
        }
    }

    /// How many of the `pending` requests from index `next` on get an error.
    pub(crate) fn refusals(self, cursors: Cursors, next: u32, pending: u32) -> Refusals {
        match self {
            Self::Reissue => Refusals::None,
            Self::Queue => {
                // Notes that make no sense here are of no use: then all may have been taken.
                let outstanding = cursors.taken.wrapping_sub(next);
                let is_past = outstanding > u32::MAX / 2;
                Refusals::first(if is_past { 0 } else { outstanding.min(pending) })
            }
            Self::Fail => Refusals::first(pending),
            Self::Refuse => Refusals::All,
        }
    }
}

/// Requests that are answered with an error and not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusals {
    None,
    /// So many of the next ones, at least one.
    Next(u32),
    All,
}

impl Refusals {
    fn first(count: u32) -> Self {
        if count == 0 { Self::None } else { Self::Next(count) }
    }

    /// Whether the next request is refused; counts it.
    pub fn refuse_next(&mut self) -> bool {
        match *self {
            Self::None => false,
            Self::Next(left) => {
                *self = Self::first(left - 1);
                true
            }
            Self::All => true,
        }
    }
}

/// The index of the next response of a ring whose header says `published`. A record that is
/// there is of the last response, which may or may not have been published.
pub(crate) fn next_response(published: u32, redo: Option<Redo>, cursors: Cursors) -> u32 {
    match redo {
        Some(redo) if published.wrapping_sub(redo.index) <= 1 => published,
        Some(redo) if cursors.answered == redo.index.wrapping_add(1) => cursors.answered,
        Some(redo) => redo.index,
        None => cursors.answered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn redo(index: u32) -> Option<Redo> {
        Some(Redo { index, id: 0, operation: 0, status: 0 })
    }

    #[test]
    fn the_words_of_the_ledger_are_known() {
        let all = [OnFailure::Reissue, OnFailure::Queue, OnFailure::Fail, OnFailure::Refuse];
        for (word, policy) in
            [raw::REISSUE, raw::QUEUE, raw::FAIL, raw::REFUSE].into_iter().zip(all)
        {
            assert_eq!(OnFailure::from_raw(word), policy);
        }
        assert_eq!(OnFailure::from_raw(99), OnFailure::Reissue);
    }

    #[test]
    fn exactly_the_requests_that_a_policy_names_are_refused() {
        let cursors = Cursors { answered: 4, taken: 7 };
        let counted = |policy: OnFailure, next, pending| {
            let mut refusals = policy.refusals(cursors, next, pending);
            (0..20).take_while(|_| refusals.refuse_next()).count()
        };
        assert_eq!(counted(OnFailure::Reissue, 4, 9), 0);
        assert_eq!(counted(OnFailure::Queue, 4, 9), 3);
        assert_eq!(counted(OnFailure::Queue, 5, 9), 2, "one was answered by its record");
        assert_eq!(counted(OnFailure::Queue, 7, 9), 0);
        assert_eq!(counted(OnFailure::Queue, 8, 9), 0, "notes of the past");
        assert_eq!(counted(OnFailure::Queue, 4, 2), 2, "no more than there are");
        assert_eq!(counted(OnFailure::Fail, 4, 9), 9);
        assert_eq!(counted(OnFailure::Fail, 4, 0), 0);
        assert_eq!(counted(OnFailure::Refuse, 4, 0), 20);
    }

    proptest! {
        #[test]
        fn a_ring_that_is_right_is_believed_and_a_wrong_one_is_put_right(
            answered: u32, wrong in 2_u32..u32::MAX, noted in 0_u32..2,
        ) {
            // `answered` responses are published; the last one's record is there, and noting
            // it may have come too late.
            let last = answered.wrapping_sub(1);
            let cursors = Cursors { answered: last.wrapping_add(noted), taken: answered };
            prop_assert_eq!(next_response(answered, redo(last), cursors), answered);
            // Recorded, not published.
            let behind = Cursors { answered: last, taken: answered };
            prop_assert_eq!(next_response(last, redo(last), behind), last);
            // Absurd: not before the one that may be missing, and not after it.
            let found = next_response(answered.wrapping_add(wrong.min(u32::MAX - 1)), redo(last), cursors);
            let right = if wrong == u32::MAX - 1 { last } else { last.wrapping_add(noted) };
            prop_assert!(found == right || found == last, "{} {}", found, right);
            // No record at all: it was about to be replaced, or there is no response yet.
            let exact = Cursors { answered, taken: answered };
            prop_assert_eq!(next_response(answered.wrapping_add(wrong), None, exact), answered);
        }
    }
}
