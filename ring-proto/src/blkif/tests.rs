use super::*;
use proptest::prelude::*;

fn segment(gref: u32, first: u8, last: u8) -> Segment {
    Segment::new(Gref::new(gref), first, last).unwrap()
}

fn transfer(count: usize) -> Request {
    let list: [Segment; MAX_SEGMENTS] = core::array::from_fn(|i| segment(i as u32 + 9, 1, 6));
    Request::Transfer {
        direction: Direction::Write,
        sector: 0x0102_0304_0506,
        segments: List::from_slice(&list[..count]).unwrap(),
    }
}

#[test]
fn a_page_holds_thirty_two_block_requests_and_four_pages_hold_a_hundred_and_twenty_eight() {
    let slots = |pages: usize| crate::Geometry::<Blk>::of(pages * 4096).map(|g| g.slots()).ok();
    assert_eq!((slots(1), slots(2), slots(4)), (Some(32), Some(64), Some(128)));
}

#[test]
fn a_write_has_the_bytes_of_the_public_header() {
    let raw = RawRequest::encode(0x1122_3344_5566_7788, 0xca00, &transfer(2));
    let mut golden = [0_u8; 112];
    golden[..4].copy_from_slice(&[1, 2, 0x00, 0xca]);
    golden[8..16].copy_from_slice(&[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
    golden[16..24].copy_from_slice(&[6, 5, 4, 3, 2, 1, 0, 0]);
    golden[24..32].copy_from_slice(&[9, 0, 0, 0, 1, 6, 0, 0]);
    golden[32..40].copy_from_slice(&[10, 0, 0, 0, 1, 6, 0, 0]);
    assert_eq!(raw.as_bytes(), golden);
}

#[test]
fn every_kind_of_request_survives_the_wire() {
    let requests = [
        transfer(1),
        transfer(11),
        Request::Flush,
        Request::Discard { sector: 7, sectors: u64::MAX, secure: true },
        Request::Indirect {
            direction: Direction::Read,
            sector: 3,
            segments: 513,
            pages: List::from_slice(&[Gref::new(4), Gref::new(5)]).unwrap(),
        },
    ];
    for request in requests {
        let raw = RawRequest::encode(1, 2, &request);
        assert_eq!(raw.parse(), Ok(request));
    }
}

#[test]
fn an_indirect_request_is_answered_under_the_operation_it_means() {
    let mut raw = RawRequest::new_zeroed();
    (raw.operation, raw.detail) = (INDIRECT, WRITE);
    assert_eq!(raw.echo(), WRITE);
    raw.operation = 77;
    assert_eq!(raw.echo(), 77);
}

#[test]
fn refuses_no_segments_too_many_and_segments_outside_their_page() {
    let mut raw = RawRequest::encode(0, 0, &transfer(11));
    raw.detail = 12;
    assert_eq!(raw.parse(), Err(Refusal::SegmentCount { segments: 12 }));
    raw.detail = 0;
    assert_eq!(raw.parse(), Err(Refusal::SegmentCount { segments: 0 }));
    raw.detail = 11;
    raw.body[85] = 8;
    assert_eq!(raw.parse(), Err(Refusal::BadSegment { first: 1, last: 8 }));
    raw.body[84] = 7;
    raw.body[85] = 6;
    assert_eq!(raw.parse(), Err(Refusal::BadSegment { first: 7, last: 6 }));
    (raw.operation, raw.detail) = (INDIRECT, READ);
    for segments in [0, 4097, u16::MAX] {
        raw.handle = segments;
        assert_eq!(raw.parse(), Err(Refusal::SegmentCount { segments }));
    }
    raw.detail = FLUSH;
    assert_eq!(raw.parse(), Err(Refusal::Operation { operation: FLUSH }));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 3 } else { 256 },
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_bytes_at_all_make_the_parser_panic_or_leave_a_page(bytes: [[u8; 16]; 7]) {
        let raw = RawRequest::read_from_bytes(bytes.as_flattened()).unwrap();
        if let Ok(request) = raw.parse() {
            if let Request::Transfer { segments, .. } = &request {
                for s in segments.as_slice() {
                    prop_assert!(s.offset_bytes() + s.bytes() <= 4096 && s.bytes() >= 512);
                }
            }
            // What was understood means the same when written down again.
            prop_assert_eq!(RawRequest::encode(0, 0, &request).parse(), Ok(request));
        }
    }
}
