//! A machine of ours as a campaign wants it: faults go in by way of Dom0, and what comes of
//! them is told by Dom0 and by the guests under load.

use super::{
    live::{Heard, Live},
    orders::{Orders, Told},
    seen::Seen,
    stage::Staged,
};
use crate::{
    plan::wallclock_ns,
    progress::{Amount, Progress},
    qemu::Ended,
    run::Prepared,
    sparse,
};
use bulkhead_link::{CLOCK_TELLS, FromDom0, Reply, Request};
use faults::{
    Fault, Model, Observation, Outcome,
    campaign::Deadlines,
    model::Victim,
    runner::{LoadSamples, Machine, MachineLost},
    units::Us,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// How long a boot may take until all guests are under load.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long Dom0 may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// How long a wish to the load may take.
const WISH_LIMIT: Duration = Duration::from_secs(8);
/// How long a restart may take.
const RESTART_LIMIT: Duration = Duration::from_secs(8);
/// How often the driver domain is looked at.
const LOOK: Duration = Duration::from_millis(6);
/// A domain that dies again and again is watched for so many windows.
const MOST_WINDOWS: u64 = 10;
/// The load is served if requests were answered within this time.
const SERVED: Us = Us::from_ms(60);

/// A machine for a campaign.
pub struct CampaignMachine<'a> {
    prepared: &'a Prepared,
    staged: &'a Staged,
    driver: &'a str,
    front: Option<&'a str>,
    orders: Orders,
    interrupts: Arc<AtomicU32>,
    live: Option<Live>,
    seen: Seen,
    /// When the load began to run in this boot.
    start: Us,
    injected: Us,
    wish: u64,
    /// The last question for signs that is not answered, and when the last one was asked.
    asked: (Option<u32>, Option<Instant>),
    ended: Option<Ended>,
    is_well: bool,
    /// The present fault is one of a front end.
    is_front: bool,
}

impl<'a> CampaignMachine<'a> {
    /// A machine that is not booted yet.
    pub fn new(
        prepared: &'a Prepared,
        staged: &'a Staged,
        driver: &'a str,
        front: Option<&'a str>,
        orders: Orders,
        interrupts: Arc<AtomicU32>,
    ) -> Self {
        Self {
            prepared,
            staged,
            driver,
            front,
            orders,
            interrupts,
            live: None,
            seen: Seen::default(),
            start: Us::default(),
            injected: Us::default(),
            wish: 0,
            asked: (None, None),
            ended: None,
            is_well: false,
            is_front: false,
        }
    }

    fn live(&mut self) -> Result<&mut Live, MachineLost> {
        self.live.as_mut().ok_or_else(|| MachineLost("it was not booted".into()))
    }

    fn send(&mut self, request: Request) -> Result<Option<u32>, MachineLost> {
        // A link that broke shows as the end of the machine.
        Ok(self.live()?.send(request).ok())
    }

    /// Takes the next message in. `None` if there is none until the deadline or any more.
    fn hear(&mut self, deadline: Instant) -> Result<Option<FromDom0>, MachineLost> {
        if self.interrupts.load(Ordering::Relaxed) > 1 {
            return Err(MachineLost("interrupted".into()));
        }
        if self.ended.is_some() {
            return Ok(None);
        }
        match self.live()?.hear(deadline) {
            Heard::Message(message) => {
                self.seen.take(&message);
                if let FromDom0::Reply { number, .. } = &message
                    && self.asked.0 == Some(*number)
                {
                    self.asked.0 = None;
                }
                Ok(Some(message))
            }
            Heard::Nothing => Ok(None),
            Heard::Ended(ended) => {
                self.ended = Some(ended);
                Ok(None)
            }
        }
    }

    /// Waits for a moment, and has Dom0 tell how the driver domain is.
    fn look(&mut self) -> Result<(), MachineLost> {
        let now = Instant::now();
        let is_due = self.asked.1.is_none_or(|last| now >= last + LOOK);
        if self.asked.0.is_none() && is_due {
            self.asked.0 = self.send(Request::Signs { domain: self.driver.into() })?;
            self.asked.1 = Some(now);
        }
        self.hear(now + LOOK).map(drop)
    }

    /// Looks until `done`, for at most `limit`; whether that came.
    fn until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<bool, MachineLost> {
        let deadline = Instant::now() + limit;
        while !done(self) {
            if self.ended.is_some() || Instant::now() >= deadline {
                return Ok(false);
            }
            self.look()?;
        }
        Ok(true)
    }

    /// Sends a request and waits for what Dom0 says to it; `None` if it does not.
    fn ask(&mut self, request: Request) -> Result<Option<Reply>, MachineLost> {
        let Some(asked) = self.send(request)? else { return Ok(None) };
        let deadline = Instant::now() + ANSWER_LIMIT;
        while self.ended.is_none() && Instant::now() < deadline {
            if let Some(FromDom0::Reply { number, reply }) = self.hear(deadline)?
                && number == asked
            {
                return Ok(Some(reply));
            }
        }
        Ok(None)
    }

    /// As [`Self::ask`], for a request that Dom0 cannot refuse but for an error of ours.
    fn tell(&mut self, request: Request) -> Result<bool, MachineLost> {
        match self.ask(request)? {
            Some(Reply::Error(why)) => Err(MachineLost(why)),
            reply => Ok(reply.is_some()),
        }
    }

    fn type_on(&mut self, domain: &str, line: &str) -> Result<(), MachineLost> {
        let bytes = line.as_bytes().to_vec();
        self.send(Request::ConsoleInput { domain: domain.into(), bytes }).map(drop)
    }

    /// Has the load do something on every disk, and waits until it is done.
    fn wish(&mut self, what: &str) -> Result<bool, MachineLost> {
        self.wish += 1;
        let (number, line) = (self.wish, format!("{what} {}\n", self.wish));
        let staged = self.staged;
        for (guest, _) in &staged.loads {
            self.type_on(guest, &line)?;
        }
        self.until(WISH_LIMIT, |m| m.seen.is_done(number) || m.seen.has_lost_load())?;
        Ok(self.seen.is_done(number))
    }

    fn fresh_images(&self) -> Result<(), MachineLost> {
        let stop = || self.interrupts.load(Ordering::Relaxed) > 0;
        let task = Progress::default().begin("", Amount::Unknown);
        for (from, to) in &self.staged.copies {
            if from.exists() {
                sparse::copy(from, to, &stop, &task)
                    .map_err(|error| MachineLost(format!("copying {}: {error}", from.display())))?;
            }
        }
        Ok(())
    }

    fn lost(&self, what: &str) -> MachineLost {
        let words = self.live.as_ref().map(Live::last_words).unwrap_or_default();
        MachineLost(format!("{what}\n{words}"))
    }

    /// The core's words, if it is to blame for the machine's end.
    fn core(&self) -> Result<Option<String>, MachineLost> {
        let words = || self.live.as_ref().map(Live::last_words).unwrap_or_default();
        match self.ended {
            None => Ok(None),
            Some(Ended::CoreFault) => Ok(Some(format!("the core faulted\n{}", words()))),
            Some(Ended::Dom0Died) => Ok(Some(format!("Dom0 died\n{}", words()))),
            Some(Ended::Unasked(Some(code))) => {
                Ok(Some(format!("the machine reset (status {code})\n{}", words())))
            }
            Some(Ended::Unasked(None)) => Err(MachineLost("QEMU was killed".into())),
            Some(other) => Err(self.lost(&format!("it ended: {other:?}"))),
        }
    }

    /// Watches a fault until nothing more can come of it, or its window closes; whether
    /// requests are answered then.
    fn watch(&mut self, deadlines: &Deadlines) -> Result<bool, MachineLost> {
        let restarts = self.seen.signs().restarts;
        let (mut beats, mut latest) = (None, (restarts, self.injected));
        loop {
            self.look()?;
            if self.ended.is_some() || self.seen.has_lost_load() {
                return Ok(false);
            }
            if self.asked.0.is_some() && self.asked.1.is_some_and(|at| at.elapsed() > ANSWER_LIMIT)
            {
                return Ok(false);
            }
            let (now, signs) = (self.seen.now(), self.seen.signs());
            if signs.restarts != latest.0 {
                latest = (signs.restarts, now);
            }
            let lives = signs.restarts.saturating_sub(restarts) as usize;
            let is_quiet = lives == 0 && !signs.is_reviving && !self.seen.has_trouble();
            let Some(activated) = self.seen.activated().or((!is_quiet).then_some(self.injected))
            else {
                if now.since(self.injected) > deadlines.activation
                    && self.seen.is_served_since(recently(now))
                {
                    return Ok(true);
                }
                if now.since(self.injected) > deadlines.activation.plus(deadlines.window) {
                    return Ok(false);
                }
                continue;
            };
            // The heart is to beat once more in the life that goes on.
            let (life, beat) = *beats.get_or_insert((signs.restarts, signs.beats));
            let beats_on = life != signs.restarts || beat != signs.beats;
            let is_told = self.seen.restarts_told() >= lives;
            let settled = activated.max(self.seen.disturbed()).plus(deadlines.settle);
            let is_over = beats_on && is_told && !signs.is_reviving && now > settled;
            if is_over && self.seen.is_served_since(settled) {
                return Ok(true);
            }
            // A life that has just begun has as long as the first one had.
            let since = activated.max(latest.1);
            let is_late = now.since(since) > deadlines.window
                || now.since(activated).number() > deadlines.window.number() * MOST_WINDOWS;
            if signs.is_quarantined || is_late {
                return Ok(self.seen.is_served_since(recently(now)));
            }
        }
    }

    /// Takes the fault out, and looks at every block that it may have spoilt. Whether the
    /// machine is as good as new.
    fn mend(&mut self, may_have_harmed: bool) -> Result<bool, MachineLost> {
        let driver = || self.driver.to_owned();
        if self.ended.is_some() || !self.tell(Request::Disarm { domain: driver() })? {
            return Ok(false);
        }
        if self.is_front && !self.connect_front()? {
            return Ok(false);
        }
        if !may_have_harmed {
            return Ok(true);
        }
        if !self.restart()? || !self.wish("check")? {
            return Ok(false);
        }
        if !self.seen.has_trouble() {
            return Ok(true);
        }
        // What is wrong stays on the disk until it is written over.
        if !self.wish("renew")? {
            return Ok(false);
        }
        let before = self.seen.observation(self.injected, true, Us::default()).load;
        let is_checked = self.wish("check")?;
        Ok(is_checked && self.seen.observation(self.injected, true, Us::default()).load == before)
    }

    /// Has the guest that misbehaves give its disk up, and connect it anew.
    fn connect_front(&mut self) -> Result<bool, MachineLost> {
        self.wish += 1;
        let number = self.wish;
        let Some(front) = self.front else { return Ok(false) };
        self.type_on(front, &format!("again {number}\n"))?;
        self.until(WISH_LIMIT, |m| m.seen.is_connected(number))
    }

    /// Gives the driver domain a new life.
    fn restart(&mut self) -> Result<bool, MachineLost> {
        let deadline = Instant::now() + RESTART_LIMIT;
        while Instant::now() < deadline && self.ended.is_none() {
            let lives = self.seen.signs().restarts;
            match self.ask(Request::Restart { domain: self.driver.into() })? {
                Some(Reply::Done) => {
                    // A life whose heart is not heard does not hear orders, either.
                    return self.until(RESTART_LIMIT, |m| {
                        let signs = m.seen.signs();
                        signs.restarts > lives && !signs.is_reviving && signs.beats > 0
                    });
                }
                // It may be on its way already.
                Some(Reply::Error(_)) => self.look()?,
                _ => return Ok(false),
            }
        }
        Ok(false)
    }
}

/// Since when requests must have been answered for the load to be served.
const fn recently(now: Us) -> Us {
    Us::new(now.number().saturating_sub(SERVED.number()))
}

impl Machine for CampaignMachine<'_> {
    fn can_inject(&self, model: Model) -> bool {
        model.victim() == Victim::Driver || self.front.is_some()
    }

    fn boot(&mut self) -> Result<(), MachineLost> {
        self.live = None;
        if self.interrupts.load(Ordering::Relaxed) > 0 {
            return Err(MachineLost("interrupted".into()));
        }
        self.fresh_images()?;
        self.live = Some(Live::start(self.prepared, self.driver, &self.interrupts)?);
        self.seen = Seen::new(self.driver, self.front, &self.staged.loads);
        (self.ended, self.asked, self.wish) = (None, (None, None), 0);
        let deadline = Instant::now() + BOOT_LIMIT;
        let mut is_told = false;
        while !self.seen.is_under_load() {
            self.hear((Instant::now() + LOOK).min(deadline))?;
            if self.seen.is_ready && !std::mem::replace(&mut is_told, self.seen.is_ready) {
                for _ in 0..CLOCK_TELLS {
                    self.send(Request::SetWallClock { unix_ns: wallclock_ns() })?;
                }
            }
            let stopped = self.interrupts.load(Ordering::Relaxed) > 0;
            if self.ended.is_some() || stopped || Instant::now() >= deadline {
                return Err(self.lost("the guests did not come under load"));
            }
        }
        if !self.wish("check")? || self.seen.has_trouble() {
            return Err(self.lost("the load does not run well without any fault"));
        }
        self.start = self.seen.now();
        self.is_well = true;
        Ok(())
    }

    fn inject(&mut self, fault: &Fault) -> Result<Us, MachineLost> {
        let end = Instant::now() + Duration::from(fault.after_us);
        while Instant::now() < end && self.ended.is_none() {
            self.hear(end)?;
        }
        let told = self.orders.of(fault);
        self.is_front = matches!(told, Told::Front(_));
        if self.is_front && !self.connect_front()? && self.ended.is_none() {
            return Err(self.lost("the guest that is to misbehave did not connect its disk"));
        }
        self.tell(Request::Signs { domain: self.driver.into() })?;
        self.seen.mark();
        self.injected = self.seen.now();
        match told {
            Told::Driver(injection) => {
                self.tell(Request::Inject { domain: self.driver.into(), injection })?;
            }
            Told::Front(line) => {
                let front = self.front.ok_or_else(|| MachineLost("no front end".into()))?;
                self.type_on(front, &line)?;
            }
        }
        Ok(self.injected.since(self.start))
    }

    fn observe(&mut self, deadlines: &Deadlines) -> Result<Observation, MachineLost> {
        let serving = self.watch(deadlines)?;
        let activated = self.seen.activated();
        let first = self.seen.observation(self.injected, serving, deadlines.overdue);
        let may_have_harmed = Outcome::of(&first) != Outcome::NotActivated;
        self.is_well = self.mend(may_have_harmed)?;
        // Only figures of the load come from what was done since.
        let mut seen = self.seen.observation(self.injected, serving, deadlines.overdue);
        seen.activated_us = activated.map(|at| at.since(self.injected));
        (seen.detected, seen.overdue) = (first.detected.or(seen.detected), first.overdue);
        seen.restarts = first.restarts;
        seen.core = self.core()?;
        let is_silent = self.ended.is_none() && self.asked.0.is_some() && {
            self.asked.1.is_some_and(|at| at.elapsed() > ANSWER_LIMIT)
        };
        if is_silent {
            seen.core = Some("Dom0 does not answer any more".into());
        }
        Ok(seen)
    }

    fn load(&mut self) -> Option<LoadSamples> {
        self.seen.load(self.start)
    }

    fn heal(&mut self) -> Result<bool, MachineLost> {
        Ok(self.is_well && self.ended.is_none())
    }
}
