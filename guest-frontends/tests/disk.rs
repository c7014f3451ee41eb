//! The block front end against the real back end: handshake, data, many requests in
//! flight, close.

mod common;

use common::{FRONT, NUMBER, connect, platform, world};
use guest_frontends::blkfront::{self, ConnectError, DiskError, Options};
use guest_frontends::{check, pattern};

#[test]
fn the_pattern_goes_to_the_disk_and_back_with_thirty_two_requests_in_flight() {
    let platform = platform(world(10_007));
    let world = platform.guest.0.clone();
    let mut disk = connect(&platform, Options::default());
    assert_eq!((disk.facts().max_in_flight, disk.facts().max_bytes), (32, 128 * 1024));
    futures_lite::future::block_on(async {
        check::write(&mut disk, 5, 10_007).await.unwrap();
        check::verify(&mut disk, 5, 10_007).await.unwrap();
        let wrong = check::verify(&mut disk, 6, 10_007).await;
        assert!(matches!(wrong, Err(check::CheckError::Mismatch(_))));
    });
    let image = world.image.borrow();
    assert_eq!(pattern::first_wrong(5, 0, &image), None);
    assert_eq!(world.most_at_once.get(), 32);
}

#[test]
fn a_closed_disk_leaves_no_grant_behind() {
    let platform = platform(world(64));
    let disk = connect(&platform, Options::default());
    assert!(!platform.guest.0.granted.borrow().is_empty());
    futures_lite::future::block_on(blkfront::close(&platform, NUMBER, disk)).unwrap();
    assert!(platform.guest.0.granted.borrow().is_empty());
    assert_eq!(platform.guest.0.number(&format!("{FRONT}/state")), Some(6));
}

#[test]
fn a_ring_of_four_pages_is_used_where_both_want_it() {
    let mut world = world(4096);
    world.offer_order = 3;
    let platform = platform(world);
    let options = Options { ring_page_order: 2, in_flight: 100, segments: 1, integrity: false };
    let mut disk = connect(&platform, options);
    assert_eq!(disk.facts().max_in_flight, 100);
    futures_lite::future::block_on(async {
        check::write(&mut disk, 1, 4096).await.unwrap();
        check::verify(&mut disk, 1, 4096).await.unwrap();
    });
    assert_eq!(platform.guest.0.most_at_once.get(), 100);
}

#[test]
fn without_indirect_requests_eleven_pages_go_at_a_time() {
    let mut world = world(500);
    world.offer_indirect = 0;
    let platform = platform(world);
    let mut disk = connect(&platform, Options::default());
    assert_eq!(disk.facts().max_bytes, 11 * 4096);
    futures_lite::future::block_on(async {
        check::write(&mut disk, 1, 500).await.unwrap();
        let mut all = vec![0; 500 * 512];
        disk.read(0, &mut all).await.unwrap();
        assert_eq!(pattern::first_wrong(1, 0, &all), None);
    });
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let mut world = world(64);
    world.read_only = true;
    let platform = platform(world);
    let mut disk = connect(&platform, Options::default());
    assert!(disk.facts().read_only);
    let result = futures_lite::future::block_on(check::write(&mut disk, 1, 8));
    assert_eq!(result, Err(check::CheckError::Write(0, DiskError::Failed)));
}

#[test]
fn what_is_not_whole_sectors_of_the_disk_is_refused_before_it_is_sent() {
    let platform = platform(world(64));
    let mut disk = connect(&platform, Options::default());
    for (sector, bytes) in [(0, 0), (0, 511), (64, 512), (u64::MAX, 512), (0, 1 << 20)] {
        assert_eq!(disk.start_read(sector, bytes), Err(DiskError::BadLength));
    }
    assert_eq!(disk.in_flight(), 0);
}

#[test]
fn a_back_end_that_closes_is_reported() {
    let mut world = world(64);
    world.refuse = true;
    let platform = platform(world);
    let result =
        futures_lite::future::block_on(blkfront::connect(&platform, NUMBER, Options::default()));
    assert_eq!(result.err(), Some(ConnectError::Refused));
}
