//! What an honest front end, and one that asks for the wrong things, gets.

mod common;

use blkback::{DeviceFacts, EndReason, Range, Vbd};
use common::{Fake, Fuel, Guest, Platter, facts, server, settle};
use ring_proto::blkif::{Direction, List, RawRequest, RawResponse, Request, Segment};
use ring_proto::{Broken, Gref, RingMemory, layout};
use zerocopy::IntoBytes;

struct Bench {
    guest: Guest,
    server: blkback::Server<Fake>,
    platter: Platter,
}

fn bench(facts: DeviceFacts, first: u64, sectors: u64, writable: bool) -> Bench {
    let (fuel, platter) = (Fuel::default(), Platter::default());
    let range = Range::new(&facts, first, sectors, writable).unwrap();
    let guest = Guest::new(&fuel, range);
    let mut server = server(&platter, facts, &fuel, 7);
    server.add(Vbd::new(guest.parts()).unwrap());
    Bench { guest, server, platter }
}

fn rw(id: u64, direction: Direction, sector: u64, segments: &[Segment]) -> RawRequest {
    let segments = List::from_slice(segments).unwrap();
    let request = Request::Transfer { direction, sector, segments };
    RawRequest::encode(id, 0xca00, &request)
}

fn indirect(id: u64, direction: Direction, sector: u64, segments: u16) -> RawRequest {
    let request = Request::Indirect {
        direction,
        sector,
        segments,
        pages: List::from_slice(&[Gref::new(99)]).unwrap(),
    };
    RawRequest::encode(id, 0xca00, &request)
}

fn page(gref: u32) -> Segment {
    Segment::page(Gref::new(gref))
}

impl Bench {
    fn ask(&mut self, raw: &RawRequest) -> RawResponse {
        self.guest.push(raw);
        settle(&mut self.server);
        let responses = self.guest.responses();
        assert_eq!(responses.len(), 1, "one request, one response");
        assert_eq!((responses[0].id, responses[0].operation), (raw.id, raw.echo()));
        assert_eq!(self.guest.pages.mapped(), 0, "nothing stays mapped");
        responses[0]
    }
}

#[test]
fn what_is_written_is_read_back_at_the_range_of_the_device() {
    let mut b = bench(facts(), 16, 16, true);
    b.guest.pages.grant(1, vec![0xab; 4096], true);
    b.guest.pages.grant(2, vec![0; 4096], false);
    let part = Segment::new(Gref::new(1), 2, 4).unwrap();
    assert_eq!(b.ask(&rw(9, Direction::Write, 5, &[part])).status, 0);
    let disk = b.platter.data.borrow().clone();
    assert!(disk[21 * 512..24 * 512].iter().all(|&x| x == 0xab));
    assert!(disk[..21 * 512].iter().chain(&disk[24 * 512..]).all(|&x| x == 0));
    let back = Segment::new(Gref::new(2), 5, 7).unwrap();
    assert_eq!(b.ask(&rw(10, Direction::Read, 5, &[back])).status, 0);
    let bytes = b.guest.pages.bytes(2);
    assert!(bytes[..5 * 512].iter().all(|&x| x == 0));
    assert!(bytes[5 * 512..].iter().all(|&x| x == 0xab));
    assert_eq!(b.guest.ledger.load(128 * 4 + 64), 1536, "bytes read");
    assert_eq!(b.guest.ledger.load(128 * 4 + 72), 1536, "bytes written");
    assert_eq!(b.guest.ledger.load(128 * 4 + 80), 2, "requests");
}

#[test]
fn refuses_what_leaves_the_range_and_writes_to_a_read_only_disk() {
    let mut b = bench(facts(), 16, 16, false);
    b.guest.pages.grant(1, vec![1; 4096], false);
    for sector in [9, 16, u64::MAX, u64::MAX - 7, u64::MAX - 16] {
        let raw = rw(1, Direction::Read, sector, &[page(1)]);
        assert_eq!(b.ask(&raw).status, -1, "sector {sector}");
    }
    assert_eq!(b.ask(&rw(2, Direction::Write, 0, &[page(1)])).status, -1);
    assert_eq!(b.ask(&rw(3, Direction::Read, 8, &[page(1)])).status, 0);
    assert_eq!(b.guest.ledger.load(128 * 4 + 88), 6, "errors");
}

#[test]
fn refuses_pages_that_are_not_granted_or_may_not_be_written() {
    let mut b = bench(facts(), 0, 0, true);
    b.guest.pages.grant(1, vec![1; 4096], true);
    assert_eq!(b.ask(&rw(1, Direction::Write, 0, &[page(1), page(5)])).status, -1);
    assert_eq!(b.ask(&rw(2, Direction::Read, 0, &[page(1)])).status, -1);
    assert_eq!(b.ask(&indirect(3, Direction::Read, 0, 2)).status, -1);
    assert!(b.platter.touched.borrow().is_empty());
}

#[test]
fn an_indirect_request_moves_thirty_two_pages_and_not_one_more() {
    let mut b = bench(facts(), 0, 0, true);
    let mut list = Vec::new();
    for gref in 0..8_u32 {
        b.guest.pages.grant(gref, vec![gref as u8; 4096], false);
        list.extend_from_slice(page(gref).raw().as_bytes());
    }
    list.resize(4096, 0);
    b.guest.pages.grant(99, list, true);
    assert_eq!(b.ask(&indirect(1, Direction::Write, 0, 8)).status, 0);
    for sector in 0..64 {
        assert_eq!(b.platter.data.borrow()[sector * 512], sector as u8 / 8);
    }
    assert_eq!(b.ask(&indirect(2, Direction::Write, 0, 9)).status, -1, "out of range");
    assert_eq!(b.ask(&indirect(3, Direction::Read, 0, 33)).status, -1, "too many");
}

#[test]
fn what_the_device_cannot_do_is_answered_as_unsupported() {
    let mut plain = facts();
    (plain.discard, plain.flush) = (false, false);
    let mut b = bench(plain, 0, 0, true);
    let discard = Request::Discard { sector: 0, sectors: 1, secure: false };
    assert_eq!(b.ask(&RawRequest::encode(1, 0, &discard)).status, -2);
    assert_eq!(b.ask(&RawRequest::encode(2, 0, &Request::Flush)).status, 0);
    let mut barrier = RawRequest::encode(3, 0, &Request::Flush);
    barrier.operation = 2;
    assert_eq!(b.ask(&barrier).status, -2);
    barrier.operation = 200;
    assert_eq!(b.ask(&barrier).status, -2);
}

#[test]
fn a_failure_of_the_device_and_a_discard_outside_the_range_are_errors() {
    let mut b = bench(facts(), 8, 8, true);
    for (sector, sectors, status) in [(0, 8, -1), (0, 9, -1), (7, u64::MAX, -1), (8, 0, 0)] {
        let discard = Request::Discard { sector, sectors, secure: false };
        assert_eq!(b.ask(&RawRequest::encode(1, 0, &discard)).status, status);
    }
    let touched: Vec<u64> = b.platter.touched.borrow().iter().copied().collect();
    assert_eq!(touched, (8..16).collect::<Vec<_>>(), "the first one got there");
}

#[test]
fn a_flush_waits_for_the_writes_before_it_and_those_behind_it_wait_for_the_flush() {
    let mut b = bench(facts(), 0, 0, true);
    b.guest.pages.grant(1, vec![1; 4096], false);
    b.server.device_mut().works = false;
    for id in 0..2 {
        b.guest.push(&rw(id, Direction::Write, id * 8, &[page(1)]));
    }
    b.guest.push(&RawRequest::encode(2, 0, &Request::Flush));
    b.guest.push(&rw(3, Direction::Write, 32, &[page(1)]));
    settle(&mut b.server);
    assert_eq!(b.server.device().queued(), 2, "two writes, no flush yet");
    b.server.device_mut().works = true;
    settle(&mut b.server);
    let ids: Vec<u64> = b.guest.responses().iter().map(|r| r.id).collect();
    assert_eq!((ids, b.platter.flushes.get()), (vec![0, 1, 2, 3], 1));
}

#[test]
fn answers_come_in_the_order_of_the_requests_with_one_event_for_a_batch() {
    let mut b = bench(facts(), 0, 0, true);
    b.guest.pages.grant(1, vec![1; 4096], false);
    b.server.device_mut().works = false;
    for id in 0..4 {
        b.guest.push(&rw(100 + id, Direction::Write, id * 8, &[page(1)]));
    }
    // Not well-formed, hence done at once, but its turn is last.
    b.guest.push(&rw(104, Direction::Read, u64::MAX, &[page(1)]));
    settle(&mut b.server);
    assert!(b.guest.responses().is_empty());
    b.server.device_mut().works = true;
    settle(&mut b.server);
    let ids: Vec<u64> = b.guest.responses().iter().map(|r| r.id).collect();
    assert_eq!(ids, [100, 101, 102, 103, 104]);
    assert_eq!(b.guest.bell.rung.get(), 1, "rsp_event was passed once");
}

#[test]
fn a_flood_from_one_front_end_does_not_keep_another_one_from_its_turn() {
    let mut b = bench(facts(), 0, 32, true);
    let fuel = Fuel::default();
    let mut other = Guest::new(&fuel, Range::new(&facts(), 32, 32, true).unwrap());
    b.server.add(Vbd::new(other.parts()).unwrap());
    for guest in [&mut b.guest, &mut other] {
        guest.pages.grant(1, vec![1; 4096], false);
    }
    b.server.device_mut().capacity = 100;
    b.server.device_mut().works = false;
    for id in 0..32 {
        b.guest.push(&rw(id, Direction::Read, 0, &[page(1)]));
    }
    other.push(&rw(7, Direction::Read, 0, &[page(1)]));
    let _ = b.server.step();
    assert_eq!(b.server.device().queued(), 8 + 1, "a quantum, then the other one");
}

#[test]
fn an_absurd_producer_ends_that_front_end_alone() {
    let mut b = bench(facts(), 0, 32, true);
    let fuel = Fuel::default();
    let mut other = Guest::new(&fuel, Range::new(&facts(), 32, 32, true).unwrap());
    let other_id = b.server.add(Vbd::new(other.parts()).unwrap());
    other.pages.grant(1, vec![1; 4096], false);
    b.guest.ring_words.store(layout::REQ_PROD, 33);
    settle(&mut b.server);
    let ended = b.server.take_ended().expect("it is over");
    assert!(matches!(ended.reason, EndReason::Broken(Broken::Requests { req_prod: 33, .. })));
    assert!(b.server.take_ended().is_none());
    other.push(&rw(1, Direction::Read, 0, &[page(1)]));
    settle(&mut b.server);
    assert_eq!(other.responses().len(), 1);
    assert!(b.server.get(other_id).is_some());
    assert!(b.server.get(ended.id).is_none());
}

#[test]
fn a_closed_disk_is_over_only_when_the_device_has_let_go_of_its_pages() {
    let mut b = bench(facts(), 0, 0, true);
    let id = b.server.add(Vbd::new(b.guest.parts()).unwrap());
    b.guest.pages.grant(1, vec![1; 4096], false);
    b.server.device_mut().works = false;
    b.guest.push(&rw(1, Direction::Read, 0, &[page(1)]));
    let _ = b.server.step();
    b.server.close(id);
    assert!(b.server.take_ended().is_none());
    b.server.device_mut().works = true;
    settle(&mut b.server);
    assert_eq!(b.server.take_ended().map(|e| e.reason), Some(EndReason::Closed));
    assert_eq!(b.guest.pages.mapped(), 0);
}

#[test]
fn a_server_may_sleep_only_when_no_ring_has_more() {
    let mut b = bench(facts(), 0, 0, true);
    assert!(b.server.may_sleep());
    b.guest.push(&rw(1, Direction::Read, u64::MAX, &[page(1)]));
    assert!(!b.server.may_sleep());
    settle(&mut b.server);
    assert!(b.server.may_sleep());
    let armed = b.guest.ring_words.load(layout::REQ_EVENT);
    assert_eq!(armed, 2, "the next request wakes us");
}

#[test]
fn the_ledger_hears_of_each_response_once_it_is_on_the_ring() {
    let mut b = bench(facts(), 0, 0, true);
    for id in 0..5 {
        b.guest.push(&RawRequest::encode(id, 0xca00, &Request::Flush));
    }
    settle(&mut b.server);
    assert_eq!(b.guest.responses().len(), 5);
    assert_eq!(*b.guest.heard.borrow(), [1, 2, 3, 4, 5]);
}
