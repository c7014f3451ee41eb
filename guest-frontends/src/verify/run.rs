//! A plan carried out on a disk: as many requests in flight as it says, everything that
//! comes back judged, everything wrong named.

use super::audit;
use super::block::{self, BLOCK_BYTES, BLOCK_SECTORS};
use super::gaps::Gaps;
use super::load::{Action, Extent, Load, Stage};
use super::plan::Plan;
use super::summary::{Counts, Summary};
use super::table::Table;
use crate::blkfront::queue::Violation;
use crate::blkfront::{Disk, DiskError, Done, Facts};
use crate::platform::Platform;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::future::Future;
use futures_lite::future::or;

/// A back end that breaks the protocol more often is given up.
const MOST_VIOLATIONS: u64 = 1000;
/// At most so many complaints are written out; the rest is counted.
const MOST_LINES: u32 = 100;

/// What a run needs of the guest it is in.
pub trait Host<P: Platform> {
    /// A clock that never goes back, ns.
    fn now(&self) -> u64;
    /// Waits until the clock says so.
    fn sleep_until(&self, deadline: u64) -> impl Future<Output = ()>;
    /// Prints a line.
    fn say(&self, line: fmt::Arguments<'_>);
    /// What somebody wants done beside the plan; each wish is told once.
    fn wish(&self) -> Option<Wish> {
        None
    }
    /// The back end broke the protocol: makes a new connection ([`crate::blkfront::recover`]).
    /// False if there is none.
    fn recover(&self, _disk: &mut Disk<P>, _violation: &Violation) -> impl Future<Output = bool> {
        core::future::ready(false)
    }
}

/// Something that a run is to do beside its plan. It says `wish=NUMBER done` with the status
/// once it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Read every block.
    Check(u64),
    /// Write every block, then read it.
    Renew(u64),
    /// Come to the end of the plan.
    End,
}

/// Why a run did not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CannotRun {
    /// There are too few blocks on the disk: one for data and one for the table are needed.
    TooSmall,
    /// There is no memory for the table of its blocks.
    NoMemory,
}

impl fmt::Display for CannotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooSmall => "the disk is too small: 8 KiB are the least",
            Self::NoMemory => {
                "there is no memory for a table of its blocks: give the guest more, or use \
                 fewer with blocks=N"
            }
        })
    }
}

impl core::error::Error for CannotRun {}

/// No more requests: what a stage ends with, unless it is at its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The back end broke the protocol.
    Violation,
    /// It does not answer any more.
    Silence,
}

/// Carries out a plan on the disk that the guest calls `name` and that is its `number`th.
///
/// # Errors
/// It did not begin. How it went is in the summary.
pub async fn run<P: Platform>(
    disk: &mut Disk<P>,
    name: &str,
    number: u32,
    plan: &Plan,
    host: &impl Host<P>,
) -> Result<Summary, CannotRun> {
    let mut run = Run::new(disk, name, number, *plan, host)?;
    let stopped = run.all_stages().await;
    let digest = match stopped {
        Ok(()) => run.leave_table().await,
        Err(_) => None,
    };
    let now = host.now();
    run.gaps.finish(now);
    Ok(Summary {
        disk: name.into(),
        blocks: run.table.blocks(),
        counts: run.counts,
        gaps: run.gaps,
        elapsed_ns: now.saturating_sub(run.start),
        digest,
    })
}

struct Run<'a, P: Platform, H> {
    disk: &'a mut Disk<P>,
    facts: Facts,
    name: String,
    plan: Plan,
    host: &'a H,
    table: Table,
    load: Load,
    /// By the place of its ticket.
    in_flight: Vec<Option<Action>>,
    counts: Counts,
    gaps: Gaps,
    buffer: Vec<u8>,
    start: u64,
    next_status: u64,
    lines: u32,
    /// What is to be done when all that is in flight is answered.
    wish: Option<Wish>,
    /// The last stage: it goes on when the time is over.
    is_last: bool,
}

impl<'a, P: Platform, H: Host<P>> Run<'a, P, H> {
    fn new(
        disk: &'a mut Disk<P>,
        name: &str,
        number: u32,
        plan: Plan,
        host: &'a H,
    ) -> Result<Self, CannotRun> {
        let facts = disk.facts();
        let all = facts.sectors / BLOCK_SECTORS;
        if all < 2 {
            return Err(CannotRun::TooSmall);
        }
        let blocks = audit::table_start(all).min(plan.blocks);
        let table = Table::new(plan.seed, number, blocks).ok_or(CannotRun::NoMemory)?;
        let most = plan.size.min((facts.max_bytes / BLOCK_BYTES) as u64);
        // Each disk of a guest gets a load of its own.
        let seed = plan.seed ^ u64::from(number) << 48;
        let start = host.now();
        Ok(Self {
            disk,
            facts,
            name: name.into(),
            plan,
            host,
            table,
            load: Load::new(seed, plan.mix, blocks, plan.least..=most),
            in_flight: Vec::new(),
            counts: Counts::default(),
            gaps: Gaps::default(),
            buffer: vec![0; most as usize * BLOCK_BYTES],
            start,
            next_status: start.saturating_add(plan.status_ns),
            lines: 0,
            wish: None,
            is_last: false,
        })
    }

    async fn all_stages(&mut self) -> Result<(), Stop> {
        if self.plan.fill {
            self.stage(Stage::Fill).await?;
        }
        for _ in 0..self.plan.rounds {
            if self.is_over() {
                break;
            }
            if let Some(wish) = self.wish.take() {
                self.grant(wish).await?;
            }
            if self.plan.pace_ns > 0 {
                self.rest().await;
            }
            self.stage(Stage::Mixed(self.table.blocks())).await?;
            if !self.is_over() && self.wish.is_none() {
                self.stage(Stage::ReadBack).await?;
            }
        }
        // Time does not end this one: what was written last is to be seen, too.
        self.is_last = true;
        self.stage(Stage::ReadBack).await
    }

    async fn rest(&mut self) {
        let end = self.host.now().saturating_add(self.plan.pace_ns);
        self.host.sleep_until(end).await;
        if self.host.now() >= self.next_status {
            self.say_status();
        }
    }

    async fn grant(&mut self, wish: Wish) -> Result<(), Stop> {
        let number = match wish {
            Wish::Check(number) => number,
            Wish::Renew(number) => {
                self.stage(Stage::Fill).await?;
                number
            }
            Wish::End => return Ok(()),
        };
        self.stage(Stage::ReadBack).await?;
        self.say_status();
        self.host.say(format_args!("wish={number} done disk={}", self.name));
        Ok(())
    }

    /// Whether the time for new load is over.
    fn is_over(&self) -> bool {
        let time_is_over = || self.host.now().saturating_sub(self.start) >= self.plan.time_ns;
        !self.is_last && (self.is_to_end() || time_is_over())
    }

    /// Whether somebody has asked for the end: no new load then, as when the time is over.
    fn is_to_end(&self) -> bool {
        self.wish == Some(Wish::End)
    }

    /// Asks for all that a stage asks for, and waits until it is answered.
    async fn stage(&mut self, stage: Stage) -> Result<(), Stop> {
        self.load.begin(stage);
        loop {
            self.wish = self.wish.or_else(|| self.host.wish());
            // Every block is to be in the same state for a wish; random requests can wait.
            let gives_way = self.wish.is_some() && matches!(stage, Stage::Mixed(_));
            if !gives_way {
                self.ask_for_more();
            }
            if self.disk.in_flight() == 0 {
                return Ok(());
            }
            let done = self.wait().await?;
            self.take(done);
        }
    }

    fn ask_for_more(&mut self) {
        let most = self.plan.depth.min(self.facts.max_in_flight);
        while self.disk.in_flight() < most && !self.is_over() {
            let Some(action) = self.load.next_action() else { break };
            if !self.start(action) {
                break;
            }
        }
    }

    /// Starts a request; false if the disk takes none now.
    fn start(&mut self, action: Action) -> bool {
        let started = match action {
            Action::Flush if !self.facts.flush => return true,
            Action::Flush => self.disk.start_flush(),
            Action::Read { extent } => {
                self.disk.start_read(extent.first * BLOCK_SECTORS, bytes(extent))
            }
            Action::Write { extent, generation } => {
                let data = self.buffer.get_mut(..bytes(extent)).unwrap_or_default();
                for (block, into) in extent.blocks().zip(data.as_chunks_mut().0) {
                    block::fill(&self.table.stamp(block, generation), into);
                }
                self.disk.start_write(extent.first * BLOCK_SECTORS, data)
            }
        };
        match started {
            Ok(ticket) => {
                let place = ticket.place();
                if self.in_flight.len() <= place {
                    self.in_flight.resize(place + 1, None);
                }
                if let Some(slot) = self.in_flight.get_mut(place) {
                    *slot = Some(action);
                }
                self.gaps.started(self.host.now());
                true
            }
            Err(error) => {
                self.load.done(&action);
                self.complain(format_args!("{}: not started: {error}", Shown(&action)));
                self.counts.errors += 1;
                false
            }
        }
    }

    /// Waits for something to be over, and says how it goes meanwhile.
    async fn wait(&mut self) -> Result<Done, Stop> {
        loop {
            let (host, deadline) = (self.host, self.next_status);
            let answer = async { Some(self.disk.next().await) };
            let silence = async {
                host.sleep_until(deadline).await;
                None
            };
            let done = or(answer, silence).await;
            if host.now() >= deadline {
                self.say_status();
            }
            match done {
                Some(Ok(done)) => return Ok(done),
                Some(Err(error)) => self.recover(error).await?,
                None => self.lose_patience()?,
            }
        }
    }

    /// Goes on after a violation, if that can be.
    async fn recover(&mut self, error: DiskError) -> Result<(), Stop> {
        self.counts.violations += 1;
        self.complain(format_args!("{error}"));
        let DiskError::Violation(violation) = error else { return Err(Stop::Violation) };
        if self.counts.violations > MOST_VIOLATIONS {
            return Err(Stop::Violation);
        }
        loop {
            let host = self.host;
            // Not cut short by a line of status: what is begun again is told again.
            let deadline = host.now().saturating_add(self.plan.patience_ns);
            let recovery = async { Some(host.recover(self.disk, &violation).await) };
            let silence = async {
                host.sleep_until(deadline).await;
                None
            };
            match or(recovery, silence).await {
                Some(true) => {
                    self.counts.reconnects += 1;
                    return Ok(());
                }
                Some(false) => return Err(Stop::Violation),
                None => self.lose_patience()?,
            }
        }
    }

    /// Gives up on a disk that does not answer, if the run is to come to its end.
    fn lose_patience(&mut self) -> Result<(), Stop> {
        let silent = self.gaps.current(self.host.now());
        let is_endless =
            self.plan.rounds == u64::MAX && self.plan.time_ns == u64::MAX && !self.is_to_end();
        if silent < self.plan.patience_ns || is_endless && !self.is_last {
            return Ok(());
        }
        let (stalled, ms) = (self.disk.in_flight() as u64, silent / 1_000_000);
        self.counts.stalled = stalled;
        self.complain(format_args!("{stalled} requests have no answer after {ms} ms"));
        Err(Stop::Silence)
    }

    fn take(&mut self, done: Done) {
        self.gaps.completed(self.host.now());
        self.counts.ops += 1;
        let action = self.in_flight.get_mut(done.ticket.place()).and_then(Option::take);
        let Some(action) = action else { return };
        self.load.done(&action);
        match action {
            Action::Flush => {
                self.counts.flushes += 1;
                let result = done.result.and(self.disk.finish(done, &mut []));
                self.note(&action, result);
            }
            Action::Write { extent, generation } => self.wrote(&action, done, extent, generation),
            Action::Read { extent } => self.read(&action, done, extent),
        }
    }

    fn wrote(&mut self, action: &Action, done: Done, extent: Extent, generation: u64) {
        self.counts.writes += 1;
        let result = done.result.and(self.disk.finish(done, &mut []));
        for block in extent.blocks() {
            match result {
                Ok(()) => self.table.acknowledge(block, generation),
                Err(_) => self.table.doubt(block, generation),
            }
        }
        self.counts.bytes += result.map_or(0, |()| bytes(extent) as u64);
        self.note(action, result);
    }

    fn read(&mut self, action: &Action, done: Done, extent: Extent) {
        self.counts.reads += 1;
        let mut data = core::mem::take(&mut self.buffer);
        let into = data.get_mut(..bytes(extent)).unwrap_or_default();
        let answer = done.result;
        let checked = self.disk.finish(done, into);
        if answer.is_ok() {
            self.counts.bytes += bytes(extent) as u64;
            for (block, bytes) in extent.blocks().zip(into.as_chunks().0) {
                self.judge(block, bytes, checked.is_err());
            }
        }
        self.note(action, answer.and(checked));
        self.buffer = data;
    }

    /// Nobody takes for right what the front end has refused.
    fn judge(&mut self, block: u64, bytes: &[u8; BLOCK_BYTES], is_refused: bool) {
        if let Err(wrong) = self.table.check(block, block::read(bytes)) {
            match is_refused {
                true => self.counts.caught += 1,
                false => self.counts.count(&wrong.kind),
            }
            self.complain(format_args!("{wrong}"));
        }
    }

    /// Counts and names what a request came to, if not to good.
    fn note(&mut self, action: &Action, result: Result<(), DiskError>) {
        let Err(error) = result else { return };
        match error {
            DiskError::Corrupt(_) => self.counts.corrupt += 1,
            _ => self.counts.errors += 1,
        }
        self.complain(format_args!("{}: {error}", Shown(action)));
    }

    fn complain(&mut self, what: fmt::Arguments<'_>) {
        self.lines += 1;
        let name = &self.name;
        match self.lines {
            ..MOST_LINES => self.host.say(format_args!("wrong disk={name} {what}")),
            MOST_LINES => self.host.say(format_args!("wrong disk={name} more is only counted")),
            _ => {}
        }
    }

    fn say_status(&mut self) {
        let now = self.host.now();
        self.next_status = now.saturating_add(self.plan.status_ns);
        let counts = &self.counts;
        self.host.say(format_args!(
            "status disk={} t_ms={} now_us={} ops={} bytes={} wrong={}{} longest_gap_us={} gap_us={}",
            self.name,
            now.saturating_sub(self.start) / 1_000_000,
            now / 1000,
            counts.ops,
            counts.bytes,
            counts.wrong(),
            counts.troubles(),
            self.gaps.longest_us(now),
            self.gaps.current(now) / 1000,
        ));
    }

    /// Writes the table at the end of the disk. Gives its digest.
    async fn leave_table(&mut self) -> Option<u64> {
        let start = audit::table_start(self.facts.sectors / BLOCK_SECTORS);
        let blocks: Vec<_> = audit::encode(&self.table).collect();
        for (block, bytes) in (start..).zip(&blocks) {
            let started = self.disk.start_write(block * BLOCK_SECTORS, bytes);
            let result = match started {
                Ok(_) => self.finish_one().await,
                Err(error) => Err(error),
            };
            self.left(result).ok()?;
        }
        if self.facts.flush {
            let result = match self.disk.start_flush() {
                Ok(_) => self.finish_one().await,
                Err(error) => Err(error),
            };
            self.left(result).ok()?;
        }
        Some(audit::digest(&self.table))
    }

    /// Waits for the only request in flight.
    async fn finish_one(&mut self) -> Result<(), DiskError> {
        self.gaps.started(self.host.now());
        let done = self.wait().await.map_err(|_| DiskError::Failed)?;
        self.gaps.completed(self.host.now());
        done.result.and(self.disk.finish(done, &mut []))
    }

    fn left(&mut self, result: Result<(), DiskError>) -> Result<(), DiskError> {
        if let Err(error) = result {
            self.counts.errors += 1;
            self.complain(format_args!("the table: {error}"));
        }
        result
    }
}

fn bytes(extent: Extent) -> usize {
    extent.count as usize * BLOCK_BYTES
}

/// An action, for a line.
struct Shown<'a>(&'a Action);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Action::Flush => f.write_str("flush"),
            Action::Read { extent } => {
                write!(f, "read of {} blocks at {}", extent.count, extent.first)
            }
            Action::Write { extent, generation } => {
                write!(f, "write {generation} of {} blocks at {}", extent.count, extent.first)
            }
        }
    }
}
