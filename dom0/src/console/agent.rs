//! The second console of a guest, on which its agent is asked to run commands: bytes
//! both ways, unread. What they mean is between the agent and the host tool
//! (`bulkhead_link::agent`); who connects the page and the port is not known here.

use super::{IN, OUT};
use crate::shared::{AbsurdIndices, SharedPage};
use alloc::{collections::VecDeque, vec::Vec};
use bulkhead_link::agent::{FRAME_BYTES, INPUT_WINDOW, MOST_COMMANDS};

/// Input kept for an agent: what all its commands may have under way, framed, and a
/// command's start.
const INPUT_BYTES: usize = 2 * MOST_COMMANDS * INPUT_WINDOW as usize + FRAME_BYTES;
/// Output kept until the wire takes it. A guest waits in its kernel, with its interrupts
/// off, for room in the ring; so the ring is emptied at once as long as there is room here.
const OUTPUT_BYTES: usize = 128 << 10;

/// What is on its way to and from an agent.
#[derive(Debug, Default)]
pub struct Line {
    input: VecDeque<u8>,
    output: VecDeque<u8>,
    is_broken: bool,
}

impl Line {
    /// Queues input, all of it or, if there is no room for it, nothing.
    #[must_use]
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        let fits = self.input.len() + bytes.len() <= INPUT_BYTES;
        if fits {
            self.input.extend(bytes);
        }
        fits
    }

    /// Moves what can be moved between the queues and the ring; whether the guest wants an
    /// event.
    ///
    /// Errors: the guest's indices are absurd. That is told once; afterwards the line is dead
    /// until it is connected anew.
    pub fn pump(&mut self, page: &impl SharedPage) -> Result<bool, AbsurdIndices> {
        if self.is_broken {
            return Ok(false);
        }
        let moved = self.try_pump(page);
        self.is_broken = moved.is_err();
        moved
    }

    fn try_pump(&mut self, page: &impl SharedPage) -> Result<bool, AbsurdIndices> {
        let mut piece = [0; OUT.size];
        let room = OUTPUT_BYTES.saturating_sub(self.output.len()).min(piece.len());
        let count = OUT.take(page, &mut piece[..room])?;
        self.output.extend(&piece[..count]);
        let moved = IN.put(page, self.input.make_contiguous())?;
        self.input.drain(..moved);
        // A writer waits for nothing but a full ring.
        Ok(moved > 0 || count == OUT.size)
    }

    /// The next bytes of output, at most `max`.
    pub fn take(&mut self, max: usize) -> Vec<u8> {
        let count = self.output.len().min(max);
        self.output.drain(..count).collect()
    }

    /// The guest has a new ring: what was on its way into the old one is lost.
    pub fn reconnected(&mut self) {
        self.input.clear();
        self.is_broken = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::fake::FakePage;
    use bulkhead_abi::console as abi;

    #[test]
    fn output_is_taken_in_before_the_wire_wants_it_up_to_a_limit() {
        let (page, mut line) = (FakePage::new(), Line::default());
        let mut written = 0;
        while written < 2 * OUTPUT_BYTES {
            let put = OUT.put(&page, &[b'x'; 2000]).unwrap();
            let _ = line.pump(&page).unwrap();
            written += put;
            if put == 0 {
                break;
            }
        }
        // The queue and the ring are full.
        assert_eq!(written, OUTPUT_BYTES + abi::OUT_SIZE);
        assert_eq!(line.take(1000).len(), 1000);
        let _ = line.pump(&page).unwrap();
        assert_eq!(OUT.put(&page, &[b'y'; 2000]).unwrap(), 1000);
        assert_eq!(line.take(usize::MAX).len(), OUTPUT_BYTES);
    }

    #[test]
    fn input_goes_in_whole_or_not_at_all_and_in_order() {
        let (page, mut line) = (FakePage::new(), Line::default());
        let text: Vec<u8> = (0..INPUT_BYTES as u32).map(|i| (i % 251) as u8).collect();
        assert!(line.feed(&text));
        assert!(!line.feed(b"x"));
        let mut got: Vec<u8> = Vec::new();
        while got.len() < text.len() {
            assert_eq!(line.pump(&page), Ok(true));
            let mut piece = [0; abi::IN_SIZE];
            let count = IN.take(&page, &mut piece).unwrap();
            got.extend(&piece[..count]);
        }
        assert_eq!(got, text);
        assert_eq!(line.pump(&page), Ok(false));
    }

    #[test]
    fn an_event_is_due_for_input_and_for_a_ring_that_was_full() {
        let (page, mut line) = (FakePage::new(), Line::default());
        OUT.put(&page, &[0; abi::OUT_SIZE - 1]).unwrap();
        assert_eq!(line.pump(&page), Ok(false));
        OUT.put(&page, &[0; abi::OUT_SIZE]).unwrap();
        assert_eq!(line.pump(&page), Ok(true));
    }

    #[test]
    fn absurd_indices_kill_the_line_until_it_is_connected_anew() {
        for index in [abi::OUT_PROD, abi::OUT_CONS, abi::IN_PROD, abi::IN_CONS] {
            let (page, mut line) = (FakePage::new(), Line::default());
            page.write_u32(index, 0x7fff_0000);
            assert!(line.feed(b"for the old ring"));
            assert!(line.pump(&page).is_err());
            assert_eq!(line.pump(&page), Ok(false));
            let fresh = FakePage::new();
            line.reconnected();
            assert!(line.feed(b"new"));
            assert_eq!(line.pump(&fresh), Ok(true));
            assert_eq!(IN.take(&fresh, &mut [0; 64]), Ok(3));
        }
    }
}
