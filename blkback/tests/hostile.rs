//! A front end that sends anything at all: nothing panics, no sector outside the range
//! is touched, every request taken gets exactly one response, in order, with its id and
//! operation; a ring out of its mind ends the service.

mod common;

use blkback::{EndReason, Range, Vbd};
use common::{Fuel, Guest, Platter, facts, server, settle};
use proptest::prelude::*;
use ring_proto::blkif::RawRequest;
use ring_proto::{RingMemory, layout};
use zerocopy::FromBytes;

const FIRST: u64 = 24;
const SECTORS: u64 = 16;

/// Requests near the edges of what is allowed, and pure noise.
fn request() -> impl Strategy<Value = RawRequest> {
    let near = (
        prop_oneof![Just(0_u8), Just(1), Just(3), Just(5), Just(6), any::<u8>()],
        prop_oneof![0_u8..13, any::<u8>()],
        prop_oneof![0_u16..35, any::<u16>()],
        prop_oneof![0_u64..20, Just(u64::MAX), any::<u64>()],
        prop::collection::vec((0_u32..6, 0_u8..9, 0_u8..9), 11),
        any::<u64>(),
    );
    let near = near.prop_map(|(operation, detail, handle, sector, segments, id)| {
        let mut raw = RawRequest::read_from_bytes(&[0; 112]).unwrap();
        (raw.operation, raw.detail, raw.handle) = (operation, detail, handle);
        (raw.sector, raw.id) = (sector, id);
        for (slot, (gref, first, last)) in raw.body.chunks_exact_mut(8).zip(segments) {
            slot[..4].copy_from_slice(&gref.to_le_bytes());
            (slot[4], slot[5]) = (first, last);
        }
        raw
    });
    let noise = any::<[[u8; 16]; 7]>()
        .prop_map(|bytes| RawRequest::read_from_bytes(bytes.as_flattened()).unwrap());
    prop_oneof![4 => near, 1 => noise]
}

proptest! {
    #[test]
    fn any_stream_of_requests_is_answered_once_each_in_order_within_the_range(
        requests in prop::collection::vec(request(), 1..60),
        indirect_page in prop::collection::vec((0_u32..6, 0_u8..9, 0_u8..9), 40),
        writable: bool,
        seed: u64,
    ) {
        let (fuel, platter) = (Fuel::default(), Platter::default());
        let range = Range::new(&facts(), FIRST, SECTORS, writable).unwrap();
        let mut guest = Guest::new(&fuel, range);
        for gref in 0..5 {
            guest.pages.grant(gref, vec![gref as u8 + 1; 4096], gref == 4);
        }
        let mut bytes: Vec<u8> = indirect_page.iter()
            .flat_map(|(g, f, l)| { let g = g.to_le_bytes(); [g[0], g[1], g[2], g[3], *f, *l, 0, 0] })
            .collect();
        bytes.resize(4096, 0xff);
        guest.pages.grant(3, bytes, false);
        let mut server = server(&platter, facts(), &fuel, seed);
        server.add(Vbd::new(guest.parts()).unwrap());
        let mut answered = Vec::new();
        for raw in &requests {
            if guest.front.free() == 0 {
                settle(&mut server);
                answered.extend(guest.responses());
            }
            guest.push(raw);
            let _ = server.step();
        }
        settle(&mut server);
        answered.extend(guest.responses());
        let got: Vec<_> = answered.iter().map(|r| (r.id, r.operation)).collect();
        let want: Vec<_> = requests.iter().map(|r| (r.id, r.echo())).collect();
        prop_assert_eq!(got, want);
        prop_assert!(platter.touched.borrow().iter().all(|s| (FIRST..FIRST + SECTORS).contains(s)));
        prop_assert_eq!(guest.pages.mapped(), 0);
        if !writable {
            prop_assert!(platter.data.borrow().iter().all(|&b| b == 0));
        }
        prop_assert!(server.may_sleep() && server.take_ended().is_none());
    }

    #[test]
    fn a_ring_scribbled_over_between_any_two_steps_harms_nobody(
        scribbles in prop::collection::vec((0_usize..1024, any::<u32>(), 0_u32..40, any::<bool>()), 1..60),
        seed: u64,
    ) {
        let (fuel, platter) = (Fuel::default(), Platter::default());
        let guest = Guest::new(&fuel, Range::new(&facts(), FIRST, SECTORS, true).unwrap());
        guest.pages.grant(0, vec![1; 4096], false);
        let mut server = server(&platter, facts(), &fuel, seed);
        let id = server.add(Vbd::new(guest.parts()).unwrap());
        for (word, value, producer, move_on) in scribbles {
            guest.ring_words.store(word * 4, value);
            if move_on {
                let old = guest.ring_words.load(layout::RSP_PROD);
                guest.ring_words.store(layout::REQ_PROD, old.wrapping_add(producer));
            }
            let _ = server.step();
            let _ = server.may_sleep();
        }
        settle(&mut server);
        prop_assert!(platter.touched.borrow().iter().all(|s| (FIRST..FIRST + SECTORS).contains(s)));
        server.close(id);
        settle(&mut server);
        let ended = server.take_ended();
        prop_assert!(ended.is_some_and(|e| matches!(e.reason, EndReason::Closed | EndReason::Broken(_))));
        prop_assert_eq!(guest.pages.mapped(), 0);
    }
}
