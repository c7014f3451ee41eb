//! A client's ring page: requests in, replies and events out, in pieces as they
//! fit. The page is written by the client at any time.

use super::{
    Store, StoreError,
    requests::refusal,
    wire::{Assembler, Incoming},
};
use crate::shared::{AbsurdIndices, Lane, SharedPage};
use alloc::vec::Vec;
use bulkhead_abi::{DomId, xs_wire as xs};

const REQUESTS: Lane =
    Lane { buffer: xs::REQ, size: xs::RING_SIZE, cons: xs::REQ_CONS, prod: xs::REQ_PROD };
const REPLIES: Lane =
    Lane { buffer: xs::RSP, size: xs::RING_SIZE, cons: xs::RSP_CONS, prod: xs::RSP_PROD };
/// `error` of the page: the indices were absurd (xs_wire.h, XENSTORE_ERROR_RINGIDX).
const ERROR_RING_INDEX: u32 = 2;
/// Bytes of requests taken in one go, so that one client can not keep the store busy.
const BYTES_PER_PUMP: usize = 4 * xs::RING_SIZE;

/// What became of a pump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Pumped {
    /// An index moved: the client wants an event.
    pub notify: bool,
    /// There is more to do at once.
    pub again: bool,
}

/// One client's transport.
#[derive(Default)]
pub struct Transport {
    assembler: Assembler,
    /// Bytes taken from the ring that wait until the client accepts replies.
    backlog: Vec<u8>,
    /// The message on its way out, and how much of it is gone.
    leaving: Vec<u8>,
    gone: usize,
}

impl Transport {
    /// Moves what can be moved in both directions.
    ///
    /// Errors: the client's indices are absurd; the page says so, and the client is to be
    /// served no more.
    pub fn pump(
        &mut self,
        page: &impl SharedPage,
        store: &mut Store,
        domid: DomId,
    ) -> Result<Pumped, AbsurdIndices> {
        let result = self.try_pump(page, store, domid);
        if result.is_err() {
            page.write_u32(xs::ERROR, ERROR_RING_INDEX);
        }
        result
    }

    fn try_pump(
        &mut self,
        page: &impl SharedPage,
        store: &mut Store,
        domid: DomId,
    ) -> Result<Pumped, AbsurdIndices> {
        let mut notify = self.send(page, store, domid)?;
        let mut budget = BYTES_PER_PUMP;
        let mut again = false;
        while store.accepts(domid) {
            if self.backlog.is_empty() {
                let mut piece = [0; xs::RING_SIZE];
                let count = REQUESTS.take(page, &mut piece)?;
                if count == 0 {
                    break;
                }
                notify = true;
                budget = budget.saturating_sub(count);
                self.backlog.extend_from_slice(&piece[..count]);
            }
            self.serve(store, domid);
            notify |= self.send(page, store, domid)?;
            if budget == 0 {
                again = store.accepts(domid);
                break;
            }
        }
        Ok(Pumped { notify, again })
    }

    /// Serves what is in the backlog, as long as the client accepts replies.
    fn serve(&mut self, store: &mut Store, domid: DomId) {
        let mut bytes = &self.backlog[..];
        while store.accepts(domid) {
            match self.assembler.take(&mut bytes) {
                Some(Incoming::Request { header, payload }) => {
                    store.request(domid, header, &payload);
                }
                Some(Incoming::TooLong { header }) => {
                    if let Some(connection) = store.connections.get_mut(&domid) {
                        connection.reply(refusal(header, StoreError::E2BIG));
                    }
                }
                None => break,
            }
        }
        let served = self.backlog.len() - bytes.len();
        self.backlog.drain(..served);
    }

    fn send(
        &mut self,
        page: &impl SharedPage,
        store: &mut Store,
        domid: DomId,
    ) -> Result<bool, AbsurdIndices> {
        let mut is_moved = false;
        loop {
            if self.gone == self.leaving.len() {
                let Some(next) = store.take_output(domid) else {
                    return Ok(is_moved);
                };
                self.leaving = next;
                self.gone = 0;
            }
            let count = REPLIES.put(page, &self.leaving[self.gone..])?;
            if count == 0 {
                return Ok(is_moved);
            }
            is_moved = true;
            self.gone += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::wire::message, *};
    use crate::{shared::fake::FakePage, store::Quota};
    use proptest::prelude::*;

    const GUEST: DomId = DomId::new(3);

    fn store() -> Store {
        let mut store = Store::new(Quota::GUEST);
        let perms = super::super::Perms::private(GUEST);
        store.write_as("/local/domain/3", "", perms).unwrap();
        store.introduce(GUEST);
        store
    }

    fn drain(page: &FakePage) -> Vec<u8> {
        let mut into = [0; 1024];
        let count = REPLIES.take(page, &mut into).unwrap();
        into[..count].to_vec()
    }

    #[test]
    fn long_messages_pass_in_pieces_both_ways() {
        let (page, mut store, mut transport) = (FakePage::new(), store(), Transport::default());
        let mut payload = b"data\0".to_vec();
        payload.extend((0..2000).map(|i| (i % 251) as u8));
        let mut stream = message(xs::XS_WRITE, 1, 0, &payload);
        stream.extend(message(xs::XS_READ, 2, 0, b"data\0"));
        let mut sent = 0;
        let mut got = Vec::new();
        for _ in 0..50 {
            sent += REQUESTS.put(&page, &stream[sent..]).unwrap();
            let _ = transport.pump(&page, &mut store, GUEST).unwrap();
            got.extend(drain(&page));
        }
        let mut expected = message(xs::XS_WRITE, 1, 0, b"OK\0");
        expected.extend(message(xs::XS_READ, 2, 0, &payload[5..]));
        assert_eq!(got, expected);
    }

    #[test]
    fn a_client_that_takes_no_replies_is_not_heard_and_costs_bounded_memory() {
        let (page, mut store, mut transport) = (FakePage::new(), store(), Transport::default());
        let request = message(xs::XS_READ, 1, 0, b"nothing\0");
        let mut accepted = 0;
        for _ in 0..10_000 {
            if REQUESTS.put(&page, &request).unwrap() < request.len() {
                break;
            }
            accepted += 1;
            let _ = transport.pump(&page, &mut store, GUEST).unwrap();
        }
        assert!(accepted < 200, "{accepted}");
        let mut got = Vec::new();
        for _ in 0..100 {
            got.extend(drain(&page));
            let _ = transport.pump(&page, &mut store, GUEST).unwrap();
        }
        let one = refusal(
            bulkhead_abi::xs_wire::XsMsg { req_id: 1, ..Default::default() },
            StoreError::ENOENT,
        )
        .len();
        assert!(got.len() / one >= accepted, "all answered at last");
    }

    #[test]
    fn a_message_too_long_is_refused_and_skipped() {
        let (page, mut store, mut transport) = (FakePage::new(), store(), Transport::default());
        let mut stream = message(xs::XS_WRITE, 9, 0, &[0x41; 4097]);
        stream.extend(message(xs::XS_READ, 10, 0, b"x\0"));
        let (mut sent, mut got) = (0, Vec::new());
        for _ in 0..20 {
            sent += REQUESTS.put(&page, &stream[sent..]).unwrap();
            let _ = transport.pump(&page, &mut store, GUEST).unwrap();
            got.extend(drain(&page));
        }
        let mut expected = message(xs::XS_ERROR, 9, 0, b"E2BIG\0");
        expected.extend(message(xs::XS_ERROR, 10, 0, b"ENOENT\0"));
        assert_eq!(got, expected);
    }

    #[test]
    fn absurd_indices_end_the_connection_with_a_word() {
        for index in [xs::REQ_PROD, xs::REQ_CONS, xs::RSP_PROD, xs::RSP_CONS] {
            let (page, mut store, mut transport) = (FakePage::new(), store(), Transport::default());
            page.write_u32(index, 0x8000_0000);
            REQUESTS.put(&page, &message(xs::XS_READ, 1, 0, b"x\0")).ok();
            assert!(transport.pump(&page, &mut store, GUEST).is_err());
            assert_eq!(page.read_u32(xs::ERROR), ERROR_RING_INDEX);
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics_and_replies_stay_well_formed(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..40),
            kinds in prop::collection::vec((0u32..25, 0u32..40), 1..40),
        ) {
            let (page, mut store, mut transport) = (FakePage::new(), store(), Transport::default());
            let mut got = Vec::new();
            for (noise, (kind, len)) in pieces.iter().zip(kinds) {
                let mut bytes = message(kind, 5, 0, &noise[..noise.len().min(len as usize)]);
                bytes.extend(&noise[..noise.len() / 3]);
                REQUESTS.put(&page, &bytes).unwrap();
                let _ = transport.pump(&page, &mut store, GUEST).unwrap();
                got.extend(drain(&page));
            }
            let mut assembler = Assembler::default();
            let mut rest = &got[..];
            while let Some(incoming) = assembler.take(&mut rest) {
                let is_request = matches!(incoming, Incoming::Request { .. });
                prop_assert!(is_request);
            }
        }
    }
}
