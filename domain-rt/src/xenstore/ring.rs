//! The guest's end of the ring page: bytes in, bytes out, nothing of their meaning.

use super::wire::Decoder;
use crate::shared::Shared;
use alloc::collections::VecDeque;
use bulkhead_abi::xs_wire::{REQ, REQ_CONS, REQ_PROD, RING_SIZE, RSP, RSP_CONS, RSP_PROD};

/// Moves what fits into the ring; whether any did. `None` for absurd indices.
pub fn send(page: Shared<'_>, outgoing: &mut VecDeque<u8>) -> Option<bool> {
    let prod = page.read_u32(REQ_PROD);
    let used = prod.wrapping_sub(page.load_u32(REQ_CONS)) as usize;
    let n = RING_SIZE.checked_sub(used)?.min(outgoing.len());
    for (i, byte) in outgoing.drain(..n).enumerate() {
        page.write_u8(REQ + at(prod, i), byte);
    }
    page.store_u32(REQ_PROD, prod.wrapping_add(n as u32));
    Some(n > 0)
}

/// Moves what is in the ring to the decoder; whether anything was. `None` for absurd
/// indices.
pub fn receive(page: Shared<'_>, decoder: &mut Decoder) -> Option<bool> {
    let cons = page.read_u32(RSP_CONS);
    let ready = page.load_u32(RSP_PROD).wrapping_sub(cons) as usize;
    let mut bytes = [0; RING_SIZE];
    for (i, byte) in bytes.get_mut(..ready)?.iter_mut().enumerate() {
        *byte = page.read_u8(RSP + at(cons, i));
    }
    decoder.push(&bytes[..ready]);
    page.store_u32(RSP_CONS, cons.wrapping_add(ready as u32));
    Some(ready > 0)
}

/// Place in the ring, `i` after the free-running `index`.
fn at(index: u32, i: usize) -> usize {
    (index as usize).wrapping_add(i) % RING_SIZE
}

#[cfg(test)]
mod tests {
    use super::super::wire;
    use super::*;
    use proptest::prelude::*;

    fn page(memory: &mut [u64; 512]) -> Shared<'_> {
        // SAFETY: the borrow keeps the memory alive and exclusive.
        unsafe { Shared::new(memory.as_mut_ptr().cast(), 4096) }
    }

    /// The other side: takes everything that was sent.
    fn serve(page: Shared<'_>) -> Vec<u8> {
        let (mut cons, prod) = (page.read_u32(REQ_CONS), page.read_u32(REQ_PROD));
        let mut seen = Vec::new();
        while cons != prod {
            seen.push(page.read_u8(REQ + cons as usize % 1024));
            cons = cons.wrapping_add(1);
        }
        page.write_u32(REQ_CONS, cons);
        seen
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives_in_order(start: u32, data in prop::collection::vec(any::<u8>(), 0..5000)) {
            let mut memory = [0; 512];
            let page = page(&mut memory);
            page.write_u32(REQ_CONS, start);
            page.write_u32(REQ_PROD, start);
            let mut outgoing: VecDeque<u8> = data.iter().copied().collect();
            let mut seen = Vec::new();
            while send(page, &mut outgoing).expect("sane indices") {
                seen.extend(serve(page));
            }
            prop_assert_eq!(seen, data);
        }

        #[test]
        fn replies_are_decoded_across_the_end_of_the_ring(start: u32, payload in prop::collection::vec(any::<u8>(), 0..1000)) {
            let mut memory = [0; 512];
            let page = page(&mut memory);
            let bytes = wire::encode(2, 9, 0, &[&payload]).expect("short");
            for (i, &byte) in bytes.iter().enumerate() {
                page.write_u8(RSP + at(start, i), byte);
            }
            page.write_u32(RSP_CONS, start);
            page.write_u32(RSP_PROD, start.wrapping_add(bytes.len() as u32));
            let mut decoder = Decoder::default();
            prop_assert_eq!(receive(page, &mut decoder), Some(true));
            let message = decoder.next().expect("well-formed").expect("whole");
            prop_assert_eq!(message.payload, payload);
            prop_assert_eq!(receive(page, &mut decoder), Some(false));
        }

        #[test]
        fn absurd_indices_are_noticed(cons: u32, ahead in prop_oneof![0u32..3000, any::<u32>()]) {
            let prod = cons.wrapping_add(ahead);
            let mut memory = [0; 512];
            let page = page(&mut memory);
            for (at, index) in [(REQ_CONS, cons), (REQ_PROD, prod), (RSP_CONS, cons), (RSP_PROD, prod)] {
                page.write_u32(at, index);
            }
            let sane = prod.wrapping_sub(cons) as usize <= RING_SIZE;
            prop_assert_eq!(send(page, &mut VecDeque::new()).is_some(), sane);
            prop_assert_eq!(receive(page, &mut Decoder::default()).is_some(), sane);
        }
    }
}
