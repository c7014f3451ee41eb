//! The verifying load on the real front and back end: a disk that works is never accused,
//! one that plays a trick is, by the trick's name; and the image bears it out.

mod common;

use common::{FRONT, GuestPlatform, NUMBER, Trick, connect, platform, world};
use futures_lite::future::block_on;
use guest_frontends::blkfront::queue::Violation;
use guest_frontends::blkfront::{self, Disk, Options};
use guest_frontends::verify::audit::{Audit, AuditError, audit};
use guest_frontends::verify::table::{Kind, Wrong};
use guest_frontends::verify::{self, Counts, Host, Plan, Summary};
use proptest::prelude::*;
use ring_proto::{RingMemory, layout};
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt;
use std::rc::Rc;

/// 40 blocks, of which 39 are for data.
const SECTORS: usize = 320;

/// A clock that goes on by a microsecond whenever it is looked at, and a console.
#[derive(Default)]
struct Fake {
    now: Cell<u64>,
    lines: RefCell<Vec<String>>,
    /// Played at this line of status.
    on_status: RefCell<Option<Box<dyn FnOnce()>>>,
    /// Where a disk is recovered.
    platform: Option<Rc<GuestPlatform>>,
}

impl Host<GuestPlatform> for Fake {
    fn now(&self) -> u64 {
        self.now.set(self.now.get() + 1000);
        self.now.get()
    }
    async fn sleep_until(&self, _: u64) {
        std::future::pending::<()>().await;
    }
    fn say(&self, line: fmt::Arguments<'_>) {
        let line = line.to_string();
        if line.starts_with("status")
            && let Some(act) = self.on_status.take()
        {
            act();
        }
        self.lines.borrow_mut().push(line);
    }
    async fn recover(&self, disk: &mut Disk<GuestPlatform>, violation: &Violation) -> bool {
        let Some(platform) = &self.platform else { return false };
        blkfront::recover(&**platform, NUMBER, disk, violation).await.is_ok()
    }
}

fn plan(seed: u64) -> Plan {
    Plan { seed, depth: 6, size: 3, rounds: 4, status_ns: 400_000, ..Plan::default() }
}

fn run(disk: &mut Disk<GuestPlatform>, plan: &Plan, host: &Fake) -> Summary {
    block_on(verify::run(disk, "xvdb", 1, plan, host)).unwrap()
}

fn judge(image: &[u8]) -> Result<Audit, AuditError<Infallible>> {
    audit(image.len() as u64 / 4096, |block, into| {
        into.copy_from_slice(&image[block as usize * 4096..][..4096]);
        Ok(())
    })
}

fn options(integrity: bool) -> Options {
    Options { segments: 3, in_flight: 6, integrity, ..Options::default() }
}

/// A run in which the trick is played some time after the disk was filled. Gives the
/// summary, whether it came to pass, what was printed, and the image.
fn with_trick(
    seed: u64,
    after: u32,
    trick: Trick,
    integrity: bool,
) -> (Summary, bool, Vec<String>, Vec<u8>) {
    let platform = platform(world(SECTORS));
    let (tricks, image) = (platform.guest.0.tricks.clone(), platform.guest.0.image.clone());
    let mut disk = connect(&platform, options(integrity));
    let host = Fake::default();
    {
        let (tricks, image) = (tricks.clone(), image.clone());
        *host.on_status.borrow_mut() = Some(Box::new(move || {
            let mut tricks = tricks.borrow_mut();
            tricks.old = image.borrow().clone();
            tricks.next = Some((after, trick));
        }));
    }
    let summary = run(&mut disk, &Plan { integrity, ..plan(seed) }, &host);
    let image = image.borrow().clone();
    (summary, tricks.borrow().played > 0, host.lines.into_inner(), image)
}

#[test]
fn a_disk_that_works_is_never_accused_and_leaves_a_table_that_fits_its_image() {
    for (seed, integrity) in [(1, false), (2, true), (3, false)] {
        let platform = platform(world(SECTORS));
        let mut disk = connect(&platform, options(integrity));
        let host = Fake::default();
        let summary = run(&mut disk, &plan(seed), &host);
        let counts = summary.counts;
        assert!(counts.is_all_well(), "{summary}");
        assert!(counts.writes > 50 && counts.reads > 50 && counts.flushes > 0, "{summary}");
        assert_eq!(counts.ops, counts.writes + counts.reads + counts.flushes);
        assert!(host.lines.borrow().iter().all(|line| line.starts_with("status disk=xvdb t_ms=")));
        let found = judge(&platform.guest.0.image.borrow()).unwrap();
        assert_eq!((found.seed, found.disk, found.blocks, found.unknown), (seed, 1, 39, 0));
        assert_eq!((Some(found.digest), found.wrong), (summary.digest, vec![]));
    }
}

/// A run in which the back end publishes `skew` responses too many, once, and which is
/// recovered or not.
fn with_spoilt_producer(seed: u64, skew: u32, recovers: bool) -> (Summary, Rc<GuestPlatform>) {
    let platform = Rc::new(platform(world(SECTORS)));
    let mut disk = connect(&platform, options(false));
    let world = platform.guest.0.clone();
    let spoil = move || {
        let ring = world.ring.borrow();
        let ring = ring.as_ref().unwrap();
        ring.store(layout::RSP_PROD, ring.load(layout::RSP_PROD).wrapping_add(skew));
    };
    let host = Fake {
        on_status: RefCell::new(Some(Box::new(spoil))),
        platform: recovers.then(|| platform.clone()),
        ..Fake::default()
    };
    (run(&mut disk, &plan(seed), &host), platform)
}

#[test]
fn a_violation_ends_a_run_that_cannot_be_recovered() {
    let (summary, _) = with_spoilt_producer(1, 1 << 30, false);
    let Counts { violations, reconnects, .. } = summary.counts;
    assert_eq!((violations, reconnects, summary.digest), (1, 0, None));
    assert!(!summary.counts.is_all_well());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_a_back_end_that_breaks_the_protocol_has_not_answered_is_asked_for_again(
        seed: u64, skew in prop_oneof![1_u32..7, Just(1 << 30)],
    ) {
        let (summary, platform) = with_spoilt_producer(seed, skew, true);
        let counts = summary.counts;
        prop_assert!(counts.is_all_well() && summary.digest.is_some(), "{}", summary);
        prop_assert_eq!((counts.violations, counts.reconnects), (1, 1));
        let told = platform.guest.0.get(&format!("{FRONT}/bulkhead/violation"));
        prop_assert!(told.is_some_and(|told| told.contains("rsp_prod") || told.contains("id")));
        let found = judge(&platform.guest.0.image.borrow()).unwrap();
        prop_assert_eq!((Some(found.digest), found.wrong), (summary.digest, vec![]));
        prop_assert_eq!(platform.guest.0.most_at_once.get(), 6);
    }
}

#[test]
fn several_requests_are_in_flight() {
    let platform = platform(world(SECTORS));
    let mut disk = connect(&platform, options(false));
    run(&mut disk, &plan(1), &Fake::default());
    assert_eq!(platform.guest.0.most_at_once.get(), 6);
}

#[test]
fn the_load_of_a_seed_is_the_same_each_time() {
    let image = |seed| with_trick(seed, 0, Trick::FailRead, false).3;
    assert!(image(5) == image(5));
    assert!(image(5) != image(6));
}

#[test]
fn after_its_time_a_run_reads_all_back_and_ends() {
    let platform = platform(world(SECTORS));
    let mut disk = connect(&platform, options(false));
    let plan = Plan { rounds: u64::MAX, time_ns: 2_000_000, ..plan(1) };
    let summary = run(&mut disk, &plan, &Fake::default());
    assert!(summary.counts.is_all_well() && summary.digest.is_some(), "{summary}");
    assert!(summary.elapsed_ns > 2_000_000);
}

#[test]
fn a_disk_of_one_block_is_refused() {
    let platform = platform(world(8));
    let mut disk = connect(&platform, options(false));
    let refused = block_on(verify::run(&mut disk, "xvda", 0, &plan(1), &Fake::default()));
    assert_eq!(refused.unwrap_err(), verify::run::CannotRun::TooSmall);
}

/// What must be counted for a trick, and nothing but that.
fn named(trick: Trick, counts: &Counts) -> bool {
    let Counts { lost, stale, torn, misdirected, unexpected, damaged, errors, .. } = *counts;
    let others = stale + torn + misdirected + unexpected + damaged + errors
        - match trick {
            Trick::Lose | Trick::Stale => stale,
            Trick::Tear(_) => torn,
            Trick::Misdirect(_) => misdirected,
            Trick::Flip(_) => damaged + torn,
            Trick::FailRead | Trick::FailWrite => errors,
        };
    let main = match trick {
        Trick::Lose => lost,
        // Blocks that were not read between the write and the stale read are lost.
        Trick::Stale => stale + lost,
        Trick::Tear(_) => torn + lost,
        Trick::Misdirect(_) => misdirected + lost,
        Trick::Flip(_) => damaged + torn + unexpected,
        Trick::FailRead | Trick::FailWrite => errors,
    };
    main > 0 && others == 0
}

fn tricks() -> impl Strategy<Value = Trick> {
    prop_oneof![
        Just(Trick::Lose),
        (1_usize..8).prop_map(Trick::Tear),
        (1_usize..5).prop_map(|blocks| Trick::Misdirect(8 * blocks)),
        Just(Trick::Stale),
        (0_usize..1 << 16).prop_map(Trick::Flip),
        Just(Trick::FailRead),
        Just(Trick::FailWrite),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_trick_that_shows_is_named(seed: u64, after in 0_u32..20, trick in tricks()) {
        let (summary, was_played, lines, image) = with_trick(seed, after, trick, false);
        prop_assume!(was_played);
        // What a later write covered before anybody looked did no harm.
        let is_covered = summary.counts.is_all_well();
        prop_assert!(
            named(trick, &summary.counts) || is_covered && may_be_covered(trick),
            "{}\n{}", summary, lines.join("\n")
        );
        // Complaints are printed and the image is right where no harm was found.
        prop_assert_eq!(is_covered, !lines.iter().any(|line| line.starts_with("wrong disk=xvdb ")));
        if let Some(digest) = summary.digest {
            let found = judge(&image).unwrap();
            prop_assert_eq!(found.digest, digest);
            // A block that went elsewhere is still there if nothing was written over it.
            let is_misdirected = |wrong: &Wrong| {
                matches!(wrong.kind, Kind::Misdirected(_)) && wrong.expected == 0
            };
            prop_assert!(found.wrong.iter().all(is_misdirected), "{:?}", found.wrong);
            prop_assert!(found.wrong.is_empty() || matches!(trick, Trick::Misdirect(_)));
        }
    }

    #[test]
    fn with_integrity_no_trick_gives_wrong_data_without_an_error(
        seed: u64, after in 0_u32..20, trick in tricks(),
    ) {
        let (summary, was_played, lines, _) = with_trick(seed, after, trick, true);
        prop_assume!(was_played);
        let counts = summary.counts;
        // The front end sees whatever the load sees, and before it.
        prop_assert!(
            counts.wrong() == 0 && (counts.caught == 0) == (counts.corrupt == 0),
            "{}\n{}", summary, lines.join("\n")
        );
        if matches!(trick, Trick::Flip(_)) {
            prop_assert!(counts.corrupt == 1, "{}", summary);
        }
    }
}

/// Writes that go wrong can be written over before anybody reads them.
fn may_be_covered(trick: Trick) -> bool {
    matches!(trick, Trick::Lose | Trick::Tear(_) | Trick::Misdirect(_))
}
