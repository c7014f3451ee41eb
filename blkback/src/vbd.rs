//! One virtual disk: the ring of a front end, the requests that are under way, and
//! their answers in order. Knows one front end and nothing of the others.

use crate::takeover::{Refusals, next_response};
use crate::{
    BlockDevice, BufferOf, Completion, Counters, GuestMemory, Job, Ledger, Notifier, OnFailure,
    Platform, Range, Redo, Token,
};
use alloc::collections::VecDeque;
use core::fmt;
use ring_proto::blkif::{
    Blk, Direction, RawRequest, RawResponse, RawSegment, Request, Segment, Status,
};
use ring_proto::{BackRing, Broken, Gref, TooSmall};
use zerocopy::{FromZeros, IntoBytes};

/// Most segments of an indirect request that are taken; what a back end advertises as
/// `feature-max-indirect-segments`. They fit in the first indirect page.
pub const MAX_INDIRECT_SEGMENTS: usize = 32;

/// Why a front end is not served any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// It was closed from our side.
    Closed,
    /// The ring makes no sense.
    Broken(Broken),
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::Broken(broken) => broken.fmt(f),
        }
    }
}

/// What a virtual disk is made of, and what is left of one that ended.
pub struct Parts<P: Platform> {
    /// The shared ring.
    pub ring: P::Ring,
    /// The front end's pages.
    pub memory: P::Memory,
    /// Redo record and counters.
    pub ledger: P::Ledger,
    /// The way to wake the front end.
    pub notifier: P::Notifier,
    /// Its sectors.
    pub range: Range,
}

/// What a finished request moved.
#[derive(Clone, Copy)]
enum Moved {
    Nothing,
    Bytes(Direction, u64),
}

/// A request taken and not answered.
struct Entry {
    id: u64,
    echo: u8,
    moved: Moved,
    /// How it ended; `None` while the device has it.
    status: Option<Status>,
}

/// A virtual disk that is being served.
pub struct Vbd<P: Platform> {
    ring: BackRing<Blk, P::Ring>,
    memory: P::Memory,
    ledger: P::Ledger,
    notifier: P::Notifier,
    range: Range,
    counters: Counters,
    /// Requests `[rsp_prod, req_cons)` of the ring, in order.
    entries: VecDeque<Entry>,
    /// Entries without a status.
    waiting: usize,
    /// The job of the last entry, when the device could not take it yet.
    held: Option<Job<BufferOf<P>>>,
    /// Requests that are not run.
    refusals: Refusals,
    /// A notification that is owed whatever the ring says.
    owes_event: bool,
    end: Option<EndReason>,
}

impl<P: Platform> Vbd<P> {
    /// Starts on a ring that its front end has just set up.
    pub fn new(mut parts: Parts<P>) -> Result<Self, TooSmall> {
        parts.ledger.clear_redo();
        parts.ledger.set_answered(0);
        parts.ledger.set_taken(0);
        let Parts { ring, memory, ledger, notifier, range } = parts;
        let ring = BackRing::new(ring)?;
        Ok(Self::start(ring, memory, ledger, notifier, range))
    }

    /// Goes on with a ring that another back end has served until it died: publishes the
    /// response it may have been about to publish, then takes every request without a
    /// response again. The front end notices nothing.
    pub fn resume(parts: Parts<P>) -> Result<Self, TooSmall> {
        let Parts { ring, memory, mut ledger, notifier, range } = parts;
        let published = BackRing::<Blk, _>::published(&ring)?;
        let next = next_response(published, ledger.redo(), ledger.cursors());
        // The dead one may not have come to noting it, and the record goes when it is replaced.
        ledger.set_answered(next);
        let ring = BackRing::resume_at(ring, next)?;
        let mut vbd = Self::start(ring, memory, ledger, notifier, range);
        vbd.owes_event = true;
        vbd.redo();
        Ok(vbd)
    }

    /// Decides on the requests that have no response yet: all are run, unless this is called
    /// first. Of a ring that makes no sense, none.
    #[must_use]
    pub fn treating(mut self, policy: OnFailure) -> Self {
        let pending = self.ring.pending().unwrap_or_default();
        self.refusals = policy.refusals(self.ledger.cursors(), self.ring.rsp_prod(), pending);
        self
    }

    fn start(
        ring: BackRing<Blk, P::Ring>,
        memory: P::Memory,
        ledger: P::Ledger,
        notifier: P::Notifier,
        range: Range,
    ) -> Self {
        let counters = ledger.counters();
        Self {
            ring,
            memory,
            ledger,
            notifier,
            range,
            counters,
            entries: VecDeque::new(),
            waiting: 0,
            held: None,
            refusals: Refusals::None,
            owes_event: false,
            end: None,
        }
    }

    /// Publishes the recorded response if it is the next one.
    fn redo(&mut self) {
        let Some(redo) = self.ledger.redo() else {
            return;
        };
        if redo.index != self.ring.rsp_prod() {
            return;
        }
        // The slot is taken for its place; what it holds means nothing any more.
        match self.ring.take() {
            Ok(Some(_)) => self.publish(&RawResponse::new(redo.id, redo.operation, redo.status)),
            // The front end took its request back: its own loss.
            Ok(None) => {}
            Err(broken) => self.end(EndReason::Broken(broken)),
        }
    }

    /// Stops taking requests; the first reason stays.
    pub(crate) fn end(&mut self, reason: EndReason) {
        self.end.get_or_insert(reason);
        if let Some(Job::Transfer { buffer, .. }) = self.held.take() {
            self.memory.unmap(buffer);
        }
    }

    /// The reason, once it has ended and the device has given everything back.
    pub(crate) fn ended(&self, on_device: usize) -> Option<EndReason> {
        self.end.filter(|_| on_device == 0)
    }

    /// What the guest did so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The sectors it serves.
    pub fn range(&self) -> Range {
        self.range
    }

    /// Takes at most `quantum` requests and hands them to the device. Gives the number of
    /// jobs that the device took, and whether anything was done at all.
    pub(crate) fn pull(
        &mut self,
        device: &mut P::Device,
        token: impl Fn(u32) -> Token,
        quantum: usize,
    ) -> Pulled {
        let mut pulled = Pulled::default();
        for _ in 0..quantum {
            if self.end.is_some() {
                break;
            }
            if self.held.is_none() && !self.take_one(&device.facts(), &mut pulled) {
                break;
            }
            if !self.hand_over(device, &token, &mut pulled) {
                break;
            }
        }
        pulled
    }

    /// Takes the next request; its job, if it needs one, is held afterwards.
    fn take_one(&mut self, facts: &crate::DeviceFacts, pulled: &mut Pulled) -> bool {
        let raw = match self.ring.take() {
            Ok(Some(raw)) => raw,
            Ok(None) => return false,
            Err(broken) => {
                self.end(EndReason::Broken(broken));
                return false;
            }
        };
        pulled.progress = true;
        // Those that are refused may be behind ones that were taken before: not to be noted.
        if self.refusals.refuse_next() {
            let (id, echo, status) = (raw.id, raw.echo(), Some(Status::Error));
            self.entries.push_back(Entry { id, echo, moved: Moved::Nothing, status });
            return true;
        }
        self.ledger.set_taken(self.ring.rsp_prod().wrapping_add(self.ring.owed()));
        let (moved, next) = match self.prepare(&raw, facts) {
            Ok((moved, job)) => (moved, Ok(job)),
            Err(status) => (Moved::Nothing, Err(status)),
        };
        let status = match next {
            Ok(Some(job)) => {
                self.held = Some(job);
                self.waiting += 1;
                None
            }
            Ok(None) => Some(Status::Okay),
            Err(status) => Some(status),
        };
        self.entries.push_back(Entry { id: raw.id, echo: raw.echo(), moved, status });
        true
    }

    /// Gives the held job to the device, if there is one and it may go. False if it has
    /// to wait.
    fn hand_over(
        &mut self,
        device: &mut P::Device,
        token: impl Fn(u32) -> Token,
        pulled: &mut Pulled,
    ) -> bool {
        let Some(job) = self.held.take() else {
            return true;
        };
        // A flush covers every write before it in the ring: it goes alone.
        let alone = !matches!(job, Job::Flush) || self.waiting == 1;
        let last = (self.entries.len() as u32).wrapping_sub(1);
        let index = self.ring.rsp_prod().wrapping_add(last);
        let refused = match alone {
            true => device.submit(token(index), job),
            false => Err(job),
        };
        match refused {
            Ok(()) => {
                pulled.submitted += 1;
                pulled.progress = true;
                true
            }
            Err(job) => {
                self.held = Some(job);
                false
            }
        }
    }

    /// Judges a request and makes its pages reachable. Changes nothing on refusal.
    #[allow(clippy::type_complexity)] // A pair and an option say what they are.
    fn prepare(
        &mut self,
        raw: &RawRequest,
        facts: &crate::DeviceFacts,
    ) -> Result<(Moved, Option<Job<BufferOf<P>>>), Status> {
        match raw.parse().map_err(|refusal| refusal.status())? {
            Request::Transfer { direction, sector, segments } => {
                self.prepare_transfer(direction, sector, segments.as_slice())
            }
            Request::Indirect { direction, sector, segments, pages } => {
                let page = pages.as_slice().first().ok_or(Status::Error)?;
                let (list, count) = self.fetch_segments(*page, segments)?;
                let list = list.get(..count).ok_or(Status::Error)?;
                self.prepare_transfer(direction, sector, list)
            }
            Request::Flush if facts.flush => Ok((Moved::Nothing, Some(Job::Flush))),
            Request::Flush => Ok((Moved::Nothing, None)),
            Request::Discard { sector, sectors, secure } => {
                if !facts.discard || secure {
                    return Err(Status::Unsupported);
                }
                self.must_be_writable()?;
                let at = self.range.locate(sector, sectors);
                let sector = at.map_err(|_| Status::Error)?;
                let job = (sectors != 0).then_some(Job::Discard { sector, sectors });
                Ok((Moved::Nothing, job))
            }
        }
    }

    /// Copies the segments of an indirect request out of the guest, once, and judges them.
    fn fetch_segments(
        &mut self,
        page: Gref,
        count: u16,
    ) -> Result<([Segment; MAX_INDIRECT_SEGMENTS], usize), Status> {
        let count = usize::from(count);
        let mut raw: [RawSegment; MAX_INDIRECT_SEGMENTS] = FromZeros::new_zeroed();
        let wanted = raw.get_mut(..count).ok_or(Status::Error)?;
        self.memory.copy_from(page, wanted.as_mut_bytes()).map_err(|_| Status::Error)?;
        let mut list = [Segment::page(Gref::default()); MAX_INDIRECT_SEGMENTS];
        for (segment, raw) in list.iter_mut().zip(wanted) {
            *segment = raw.parse().map_err(|refusal| refusal.status())?;
        }
        Ok((list, count))
    }

    #[allow(clippy::type_complexity)] // As in `prepare`.
    fn prepare_transfer(
        &mut self,
        direction: Direction,
        sector: u64,
        segments: &[Segment],
    ) -> Result<(Moved, Option<Job<BufferOf<P>>>), Status> {
        if direction == Direction::Write {
            self.must_be_writable()?;
        }
        let count: u64 = segments.iter().map(Segment::sectors).sum();
        let located = self.range.locate(sector, count);
        let sector = located.map_err(|_| Status::Error)?;
        let mapped = self.memory.map(segments, direction);
        let buffer = mapped.map_err(|_| Status::Error)?;
        let job = Job::Transfer { direction, sector, buffer };
        Ok((Moved::Bytes(direction, count * 512), Some(job)))
    }

    fn must_be_writable(&self) -> Result<(), Status> {
        match self.range.is_writable() {
            true => Ok(()),
            false => Err(Status::Error),
        }
    }

    /// Takes a finished job back.
    pub(crate) fn complete(&mut self, done: Completion<BufferOf<P>>) {
        if let Some(buffer) = done.buffer {
            self.memory.unmap(buffer);
        }
        let place = done.token.index.wrapping_sub(self.ring.rsp_prod());
        let Some(entry) = self.entries.get_mut(place as usize) else {
            return;
        };
        if entry.status.is_none() {
            self.waiting -= 1;
            entry.status = Some(match done.result {
                Ok(()) => Status::Okay,
                Err(_) => Status::Error,
            });
        }
    }

    /// Publishes every response whose turn has come, then notifies once if asked to.
    /// False if there was none.
    pub(crate) fn answer(&mut self) -> bool {
        let mut answered = false;
        while let Some(&Entry { id, echo, moved, status: Some(status) }) = self.entries.front() {
            self.ledger.set_redo(&Redo {
                index: self.ring.rsp_prod(),
                id,
                operation: echo,
                status: status.raw(),
            });
            self.publish(&RawResponse::new(id, echo, status.raw()));
            self.count(moved, status);
            self.entries.pop_front();
            answered = true;
        }
        if answered {
            self.ledger.set_counters(&self.counters);
        }
        let asked = answered && self.ring.must_notify();
        if asked || core::mem::take(&mut self.owes_event) {
            self.notifier.notify();
        }
        answered
    }

    /// Puts a response on the ring. The caller owes one.
    fn publish(&mut self, response: &RawResponse) {
        let owed = self.ring.write(response).and_then(|()| self.ring.publish());
        debug_assert!(owed.is_ok(), "an entry stands for a request that was taken");
        self.ledger.set_answered(self.ring.rsp_prod());
        self.ledger.published();
    }

    fn count(&mut self, moved: Moved, status: Status) {
        let counters = &mut self.counters;
        counters.requests = counters.requests.wrapping_add(1);
        match (status, moved) {
            (Status::Okay, Moved::Bytes(Direction::Read, bytes)) => {
                counters.read_bytes = counters.read_bytes.wrapping_add(bytes);
            }
            (Status::Okay, Moved::Bytes(Direction::Write, bytes)) => {
                counters.written_bytes = counters.written_bytes.wrapping_add(bytes);
            }
            (Status::Okay, Moved::Nothing) => {}
            (Status::Error | Status::Unsupported, _) => {
                counters.errors = counters.errors.wrapping_add(1);
            }
        }
    }

    /// Asks the front end for an event at its next request, unless there is one already:
    /// then there is more to do. While a job is held, the device's next completion is what
    /// gets us going, not the ring.
    pub(crate) fn has_more(&mut self) -> bool {
        if self.end.is_some() || self.held.is_some() {
            return false;
        }
        match self.ring.final_check() {
            Ok(more) => more,
            Err(broken) => {
                self.end(EndReason::Broken(broken));
                true
            }
        }
    }
}

/// What a pull did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pulled {
    /// Jobs that the device took.
    pub submitted: usize,
    /// A request or a job moved on.
    pub progress: bool,
}
