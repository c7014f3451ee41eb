//! Deaths in the path of a request, at the boundary behind any one instruction
//! (`fault::STEP_KILL`). The path begins as the domain, which has nothing to do, is about to
//! see the event that announces the request, and ends as it has nothing to do again. It is
//! walked in phases, so that the way to the last instruction is not the longest.
//!
//! So that each life takes the same way, only a request that comes alone is walked through,
//! and what its device has done is not seen before the service has slept: the interrupt
//! belongs to the path, however quick the device was. A phase that went another way than the
//! last time is walked again with the next request.

use super::PAGES;
use crate::platform::MappedRing;
use alloc::sync::{Arc, Weak};
use blkback::{BlockDevice, Completion, DeviceFacts, Direction, Job, Token};
use bulkhead_abi::Port;
use bulkhead_abi::ledger::{self as at, fault, step, step::Place};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use domain_rt::faults::walk::{Errand, Way};
use domain_rt::faults::{before_collecting, begin_walk, end_walk};
use domain_rt::{event, println};
use ring_proto::blkif::{Blk, RawRequest, Request};
use ring_proto::{Geometry, RingMemory, layout};
use spin::Mutex;
use zerocopy::{FromZeros, IntoBytes};

/// Paths that went another way until one is good whatever its way.
const MOST_TRIES: u32 = 16;

/// The ring and the port of the disk that was connected last.
static RING: Mutex<Weak<MappedRing>> = Mutex::new(Weak::new());
static PORT: Mutex<Option<Port>> = Mutex::new(None);
/// The service sleeps, and the device has nothing.
static IS_AT_REST: AtomicBool = AtomicBool::new(false);
/// Requests that the device has.
static ON_DEVICE: AtomicU32 = AtomicU32::new(0);
/// The path of a request that is meant is under way.
static IS_ON_PATH: AtomicBool = AtomicBool::new(false);
/// Its phase.
static PHASE: AtomicU8 = AtomicU8::new(0);
/// Phases that went another way, in this life.
static TRIES: AtomicU32 = AtomicU32::new(0);

/// Begins to obey.
pub(super) fn listen() {
    before_collecting(look);
}

/// Whether the path of a request that is meant is under way.
pub(super) fn is_on_path() -> bool {
    IS_ON_PATH.load(Relaxed)
}

/// The argument of an order that has been obeyed in part: lives have died, and there are
/// places left.
pub(super) fn sweep() -> Option<u64> {
    let pages = PAGES.get()?.0;
    (pages.load_u64(step::DEATHS) != 0).then(|| pages.load_u64(at::FAULT_ARGUMENT))
}

/// The place that is ordered, if there is an order and it is not obeyed yet.
fn ordered() -> Option<Place> {
    let pages = PAGES.get()?.0;
    let is_given = pages.load_u64(at::FAULT_COMMAND) == fault::STEP_KILL
        && pages.load_u64(at::FAULT_ACTIVATED_NS) == 0;
    is_given.then(|| Place::of(pages.load_u64(at::FAULT_ARGUMENT)))
}

/// Begins a path if the request that is ordered, and nothing else, has just been announced.
fn look() {
    if !IS_AT_REST.load(Relaxed) || is_on_path() {
        return;
    }
    let Some(place) = ordered() else { return };
    let is_announced = PORT.lock().is_some_and(event::is_alone);
    if is_announced && next_request().is_some_and(|raw| is_meant(&raw, place)) {
        IS_ON_PATH.store(true, Relaxed);
        enter(step::EVENT);
    }
}

/// The path goes from one phase to the next.
fn enter(phase: u8) {
    if !is_on_path() {
        return;
    }
    leave(true);
    PHASE.store(phase, Relaxed);
    let (Some(pages), Some(place)) = (PAGES.get(), ordered()) else { return };
    if place.phase == phase {
        let steps = u64::from(place.after.saturating_sub(place.every.into()));
        let before = match pages.0.load_u64(step::MARK) {
            mark if mark != 0 && !is_out_of_tries() => Some(Way { steps, mark }),
            _ => None,
        };
        begin_walk(Errand { last_step: place.after.into(), before }, last_words);
    }
}

fn is_out_of_tries() -> bool {
    TRIES.load(Relaxed) >= MOST_TRIES
}

/// Tells the next life how far this one came.
fn last_words(way: Way) {
    let (Some(pages), Some(place)) = (PAGES.get(), ordered()) else { return };
    let pages = pages.0;
    if place.every == 0 {
        pages.store_u64(at::FAULT_ACTIVATED_NS, super::now().max(1));
        return;
    }
    let elsewhere = u64::from(is_out_of_tries());
    pages.store_u64(step::MARK, way.mark.max(1));
    pages.store_u64(step::DEATHS, pages.load_u64(step::DEATHS) + (elsewhere << 32 | 1));
    pages.store_u64(at::FAULT_ARGUMENT, place.next().argument());
}

/// Ends the walk through a phase, if there is one; the next life has nothing left to do in it.
/// Not if it went another way than usual.
fn leave(is_usual: bool) {
    let Some((way, is_astray)) = end_walk() else { return };
    if (is_astray || !is_usual) && !is_out_of_tries() {
        TRIES.store(TRIES.load(Relaxed) + 1, Relaxed);
        return;
    }
    TRIES.store(0, Relaxed);
    let (Some(pages), Some(place)) = (PAGES.get(), ordered()) else { return };
    let pages = pages.0;
    if place.every == 0 {
        // There is no such place.
        return pages.store_u64(at::FAULT_COMMAND, 0);
    }
    let path = pages.load_u64(step::PATH) + way.steps;
    pages.store_u64(step::PATH, path);
    pages.store_u64(step::MARK, 0);
    if place.phase < step::PUBLISHED {
        let next = Place { phase: place.phase + 1, after: 1, ..place };
        return pages.store_u64(at::FAULT_ARGUMENT, next.argument());
    }
    let deaths = pages.load_u64(step::DEATHS);
    pages.store_u64(step::DEATHS, 0);
    pages.store_u64(at::FAULT_ACTIVATED_NS, super::now().max(1));
    println!(
        "step-kill: done operation={} indirect={} segments={} every={} path={path} deaths={} \
         elsewhere={}",
        place.operation,
        place.is_indirect,
        place.segments,
        place.every,
        deaths & 0xffff_ffff,
        deaths >> 32
    );
    super::give_next();
}

/// Ends the path.
fn end(is_usual: bool) {
    if is_on_path() {
        leave(is_usual);
        IS_ON_PATH.store(false, Relaxed);
    }
}

/// The one request on the ring, if there is just one.
fn next_request() -> Option<RawRequest> {
    let ring = RING.lock().upgrade()?;
    let next = ring.load(layout::RSP_PROD);
    if ring.load(layout::REQ_PROD).wrapping_sub(next) != 1 {
        return None;
    }
    let mut raw = RawRequest::new_zeroed();
    ring.copy_out(Geometry::<Blk>::of(ring.bytes()).ok()?.offset(next), raw.as_mut_bytes());
    Some(raw)
}

fn is_meant(raw: &RawRequest, place: Place) -> bool {
    let number = |direction| match direction {
        Direction::Read => step::READ,
        Direction::Write => step::WRITE,
    };
    let (operation, is_indirect, segments) = match raw.parse() {
        Ok(Request::Transfer { direction, segments, .. }) => {
            (number(direction), false, segments.as_slice().len())
        }
        Ok(Request::Indirect { direction, segments, .. }) => {
            (number(direction), true, usize::from(segments))
        }
        Ok(Request::Flush) => (step::FLUSH, false, 0),
        _ => return false,
    };
    let is_long_enough = place.segments == 0 || segments == usize::from(place.segments);
    (operation, is_indirect) == (place.operation, place.is_indirect) && is_long_enough
}

/// The service sleeps as long as this lives.
pub(super) struct Rest;

impl Rest {
    pub(super) fn begin() -> Self {
        if ON_DEVICE.load(Relaxed) > 0 {
            enter(step::INTERRUPT);
        } else {
            end(true);
            IS_AT_REST.store(true, Relaxed);
        }
        Self
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        IS_AT_REST.store(false, Relaxed);
    }
}

/// The port by which a front end announces requests.
pub(super) fn watch_port(port: Port) {
    *PORT.lock() = Some(port);
}

/// A ring whose requests are seen before they are taken.
pub struct WatchedRing(Arc<MappedRing>);

impl WatchedRing {
    pub(super) fn new(ring: MappedRing) -> Self {
        let ring = Arc::new(ring);
        *RING.lock() = Arc::downgrade(&ring);
        Self(ring)
    }
}

impl RingMemory for WatchedRing {
    fn bytes(&self) -> usize {
        self.0.bytes()
    }
    fn load(&self, offset: usize) -> u32 {
        self.0.load(offset)
    }
    fn store(&self, offset: usize, value: u32) {
        if offset == layout::RSP_PROD {
            enter(step::PUBLISHED);
        }
        self.0.store(offset, value);
    }
    fn store_wide(&self, offset: usize, value: u64) {
        self.0.store_wide(offset, value);
    }
    fn copy_out(&self, offset: usize, into: &mut [u8]) {
        match PHASE.load(Relaxed) {
            step::EVENT => enter(step::REQUEST),
            // Another request has come before the service could sleep.
            _ => end(false),
        }
        self.0.copy_out(offset, into);
    }
}

/// A device that lets itself be waited for.
pub struct AwaitedDevice<D>(pub(super) D);

impl<D: BlockDevice> BlockDevice for AwaitedDevice<D> {
    type Buffer = D::Buffer;

    fn facts(&self) -> DeviceFacts {
        self.0.facts()
    }

    fn submit(&mut self, token: Token, job: Job<D::Buffer>) -> Result<(), Job<D::Buffer>> {
        enter(step::SUBMIT);
        self.0.submit(token, job)?;
        ON_DEVICE.store(ON_DEVICE.load(Relaxed) + 1, Relaxed);
        Ok(())
    }

    fn kick(&mut self) {
        self.0.kick();
    }

    fn poll(&mut self) -> Option<Completion<D::Buffer>> {
        let phase = PHASE.load(Relaxed);
        if is_on_path() && phase < step::INTERRUPT {
            return None;
        }
        if phase == step::INTERRUPT {
            enter(step::COMPLETION);
        }
        let done = self.0.poll()?;
        ON_DEVICE.store(ON_DEVICE.load(Relaxed).saturating_sub(1), Relaxed);
        Some(done)
    }
}
