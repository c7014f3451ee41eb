//! What is seen of a machine under a campaign: the load's figures, restarts, domains that
//! ended. Pure: messages go in; an observation, and whether to wait on, come out. All times
//! are the machine's system time, which its domains share.

use super::stage::{BYSTANDER, NEIGHBOUR};
use bulkhead_link::{
    Cause as LinkCause, Event, Exit, FromDom0, Restart as LinkRestart, injection::Signs,
};
use faults::{
    Observation,
    outcome::{Cause, Detected, Load, Restart},
    runner::LoadSamples,
    units::Us,
};
use guest_frontends::verify::{Counts, summary};
use std::collections::BTreeMap;

/// Length of a step of the load's series.
const STEP: Us = Us::from_ms(20);
/// A neighbour that says nothing for so long stands still: it speaks every 200 ms.
const SILENCE: Us = Us::from_ms(3_000);
/// Most characters of a console's line that are kept.
const LINE: usize = 1024;

/// A disk under load.
#[derive(Clone, Copy, Debug, Default)]
struct Disk {
    counts: Counts,
    /// As they were when the present fault was injected.
    before: Counts,
    /// Latest report.
    told: Us,
    /// When requests were last seen to be answered.
    answered: Us,
    /// The last wish that is done.
    wish: u64,
    /// Longest time without answers since the mark, before anything was noticed.
    standstill: Us,
}

/// A machine under a campaign, as far as it has told.
#[derive(Debug, Default)]
pub struct Seen {
    driver: String,
    /// By guest and disk.
    disks: BTreeMap<(String, String), Disk>,
    /// Disks that there must be, by guest.
    loads: Vec<(String, usize)>,
    lines: BTreeMap<String, String>,
    neighbours: BTreeMap<&'static str, Us>,
    restarts: Vec<LinkRestart>,
    /// Domains that ended since the mark.
    ended: Vec<(String, Exit, String)>,
    /// What was said to be wrong since the mark.
    complaints: Vec<String>,
    quarantine: Option<String>,
    signs: Signs,
    /// Restarts until the mark.
    lives: u32,
    marked: Us,
    now: Us,
    disturbed: Us,
    points: Vec<(Us, u64)>,
    sampled: Us,
    /// A front end that was told to do wrong has done so.
    front_activated: Option<Us>,
    pub is_ready: bool,
}

impl Seen {
    /// Nothing yet, of a machine with these guests under load.
    pub fn new(driver: &str, loads: &[(String, usize)]) -> Self {
        Self { driver: driver.into(), loads: loads.to_vec(), ..Self::default() }
    }

    /// Takes a message in.
    pub fn take(&mut self, message: &FromDom0) {
        match message {
            FromDom0::Reply { reply: bulkhead_link::Reply::Signs(signs), .. } => {
                self.signs = *signs;
                self.pass(us(signs.now_ns));
            }
            FromDom0::Reply { .. } => {}
            FromDom0::Event(event) => self.event(event),
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Ready { .. } => self.is_ready = true,
            Event::Console { domain, bytes } => self.console(domain, bytes),
            Event::Restarted(restart) => {
                self.disturbed = self.now;
                self.restarts.push(restart.clone());
            }
            Event::Ended { domain, reason, .. } if *domain == self.driver => {
                self.quarantine = Some(reason.clone());
            }
            Event::Ended { domain, exit, reason } => {
                self.ended.push((domain.clone(), *exit, reason.clone()));
            }
            Event::BuildFailed { domain, reason } => {
                self.ended.push((domain.clone(), Exit::Crash, reason.clone()));
            }
            _ => {}
        }
    }

    fn console(&mut self, domain: &str, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        for character in text.chars() {
            let line = self.lines.entry(domain.to_owned()).or_default();
            match character {
                '\n' => {
                    let line = std::mem::take(line);
                    self.line(domain, line.trim_end());
                }
                _ if line.len() < LINE => line.push(character),
                _ => {}
            }
        }
    }

    fn line(&mut self, domain: &str, line: &str) {
        if let Some(name) = [NEIGHBOUR, BYSTANDER].into_iter().find(|name| *name == domain) {
            self.neighbours.insert(name, self.now);
        }
        let rest = line.strip_prefix("disk-verify: ").unwrap_or(line);
        if rest.starts_with("wrong ") || rest.starts_with("FAILED") || rest.contains(": WRONG") {
            self.disturbed = self.now;
            self.complaints.push(format!("{domain}: {rest}"));
        }
        if let Some(at) = rest.strip_prefix("front: activated now_us=") {
            self.front_activated = at.parse().ok().map(Us::new);
        }
        if !self.loads.iter().any(|(name, _)| name == domain) {
            return;
        }
        if let Some(status) = rest.strip_prefix("status ") {
            self.status(domain, status);
        } else if let Some(done) = rest.strip_prefix("done ") {
            self.done(domain, done);
        } else if let Some((number, rest)) =
            rest.strip_prefix("wish=").and_then(|rest| rest.split_once(" done "))
            && let (Some(disk), Ok(number)) = (field(rest, "disk"), number.parse())
        {
            self.disks.entry((domain.into(), disk.into())).or_default().wish = number;
        }
    }

    fn status(&mut self, domain: &str, line: &str) {
        let (Some(name), Some(now)) = (field(line, "disk"), field(line, "now_us")) else { return };
        let Ok(now) = now.parse().map(Us::new) else { return };
        let counts = Counts::parse(line);
        let has_noticed = self.has_noticed();
        let marked = self.marked;
        let disk = self.disks.entry((domain.into(), name.into())).or_default();
        if counts.ops != disk.counts.ops {
            let silent = field(line, "gap_us").and_then(|us| us.parse().ok()).unwrap_or(0);
            disk.answered = now.since(Us::new(silent));
        }
        if !has_noticed {
            let since = disk.answered.max(marked);
            disk.standstill = disk.standstill.max(now.since(since));
        }
        (disk.counts, disk.told) = (counts, now);
        self.pass(now);
        let bytes = self.disks.values().map(|disk| disk.counts.bytes).sum();
        self.points.push((now, bytes));
    }

    /// The end of the load on a disk.
    fn done(&mut self, domain: &str, line: &str) {
        if let Some(name) = field(line, "disk") {
            let disk = self.disks.entry((domain.into(), name.into())).or_default();
            disk.counts = Counts::parse(line);
        }
    }

    fn pass(&mut self, now: Us) {
        self.now = self.now.max(now);
    }

    /// The latest time that was told.
    pub const fn now(&self) -> Us {
        self.now
    }

    /// What Dom0 said last of the driver domain.
    pub const fn signs(&self) -> Signs {
        self.signs
    }

    /// Whether all disks are under load.
    pub fn is_under_load(&self) -> bool {
        self.loads.iter().all(|(name, count)| {
            let disks = self.disks.iter().filter(|((guest, _), _)| guest == name);
            disks.filter(|(_, disk)| disk.counts.ops > 0).count() == *count
        }) && self.neighbours.len() == 2
    }

    /// Whether a wish is done on all disks.
    pub fn is_done(&self, wish: u64) -> bool {
        self.disks.values().all(|disk| disk.wish == wish)
    }

    /// A fault is about to be injected: what comes from now on comes of it.
    pub fn mark(&mut self) {
        for disk in self.disks.values_mut() {
            (disk.before, disk.standstill) = (disk.counts, Us::default());
        }
        self.restarts.clear();
        self.ended.clear();
        self.complaints.clear();
        self.quarantine = None;
        self.front_activated = None;
        (self.marked, self.lives) = (self.now, self.signs.restarts);
    }

    /// Something was said to be wrong, or somebody ended.
    pub fn has_trouble(&self) -> bool {
        self.troubles() != Counts::default() || !self.ended.is_empty()
    }

    /// What the load complains about since the mark.
    fn troubles(&self) -> Counts {
        let mut sum = Counts::default();
        for disk in self.disks.values() {
            let (now, before) = (&disk.counts, &disk.before);
            for (sum, now, before) in [
                (&mut sum.errors, now.errors, before.errors),
                (&mut sum.lost, now.lost, before.lost),
                (&mut sum.stale, now.stale, before.stale),
                (&mut sum.torn, now.torn, before.torn),
                (&mut sum.misdirected, now.misdirected, before.misdirected),
                (&mut sum.unexpected, now.unexpected, before.unexpected),
                (&mut sum.damaged, now.damaged, before.damaged),
                (&mut sum.corrupt, now.corrupt, before.corrupt),
                (&mut sum.violations, now.violations, before.violations),
                (&mut sum.stalled, now.stalled, before.stalled),
            ] {
                *sum += now.saturating_sub(before);
            }
        }
        sum
    }

    /// Restarts since the mark that nobody asked for.
    fn own_restarts(&self) -> impl Iterator<Item = &LinkRestart> {
        let mine = |r: &&LinkRestart| r.driver == self.driver && r.cause != LinkCause::Request;
        self.restarts.iter().filter(mine)
    }

    /// How many of them have been told.
    pub fn restarts_told(&self) -> usize {
        self.own_restarts().count()
    }

    fn has_noticed(&self) -> bool {
        self.signs.restarts > self.lives || self.restarts_told() > 0 || self.quarantine.is_some()
    }

    /// When the fault had its first effect.
    pub fn activated(&self) -> Option<Us> {
        let told = us(self.signs.activated_ns);
        (told > Us::default()).then_some(told).or(self.front_activated)
    }

    /// When the latest restart was told, or something to complain about.
    pub const fn disturbed(&self) -> Us {
        self.disturbed
    }

    /// Whether requests were answered on all disks after a time.
    pub fn is_served_since(&self, time: Us) -> bool {
        self.disks.values().all(|disk| disk.answered > time)
    }

    /// A guest under load has ended: nothing more comes of it.
    pub fn has_lost_load(&self) -> bool {
        let is_load = |name: &String| self.loads.iter().any(|(load, _)| load == name);
        self.ended.iter().any(|(name, ..)| is_load(name))
    }

    /// What was seen since the mark. `serving`: requests were answered at the end of the
    /// window; `overdue`: longer than this nothing may stand still unnoticed.
    pub fn observation(&self, injected: Us, serving: bool, overdue: Us) -> Observation {
        let counts = self.troubles();
        let stood_still = self.disks.values().any(|disk| disk.standstill > overdue);
        Observation {
            activated_us: self.activated().map(|at| at.since(injected)),
            detected: self.detected(injected, &counts),
            restarts: self.own_restarts().map(restart).collect(),
            load: Load {
                errors: counts.errors + counts.corrupt,
                wrong: counts.unexpected + counts.damaged,
                stale: counts.lost + counts.stale,
                torn: counts.torn,
                misdirected: counts.misdirected,
            },
            overdue: stood_still,
            serving,
            others: self.others(&counts),
            core: None,
        }
    }

    fn detected(&self, injected: Us, counts: &Counts) -> Option<Detected> {
        let from = self.activated().unwrap_or(injected);
        if let Some(first) = self.own_restarts().next() {
            let reason = first.reason.clone();
            let after_us = us(first.ended_ns).plus(us(first.detect_ns)).since(from);
            return Some(Detected { cause: cause(first.cause), after_us, reason });
        }
        let after_us = self.now.since(from);
        let first = |words: &str| {
            let found = self.complaints.iter().find(|line| line.contains(words));
            found.cloned().unwrap_or_default()
        };
        if let Some(reason) = &self.quarantine {
            let reason = reason.clone();
            return Some(Detected { cause: Cause::Crash, after_us, reason });
        }
        if counts.violations > 0 {
            return Some(Detected { cause: Cause::Violation, after_us, reason: first("") });
        }
        (counts.corrupt > 0).then(|| Detected {
            cause: Cause::Integrity,
            after_us,
            reason: first("integrity"),
        })
    }

    /// Domains that something happened to which is not waiting. A guest under load that gave
    /// its disk up did so for what the driver domain did.
    fn others(&self, counts: &Counts) -> Vec<String> {
        let gave_up = counts.violations + counts.stalled > 0;
        let is_load = |name: &String| self.loads.iter().any(|(load, _)| load == name);
        let is_affected = |(name, exit, _): &&(String, Exit, String)| {
            *exit != Exit::PowerOff && !(gave_up && is_load(name))
        };
        let ended = self.ended.iter().filter(is_affected);
        let mut others: Vec<_> =
            ended.map(|(name, exit, why)| format!("{name} ended ({exit:?}): {why}")).collect();
        for (name, last) in &self.neighbours {
            let silent = self.now.since((*last).max(self.marked));
            if silent > SILENCE {
                others.push(format!("{name} has said nothing for {silent}"));
            }
        }
        let of_neighbours =
            |line: &&String| [NEIGHBOUR, BYSTANDER].iter().any(|name| line.starts_with(name));
        others.extend(self.complaints.iter().filter(of_neighbours).cloned());
        others
    }

    /// What the load did since the last call, in steps from `start` on.
    pub fn load(&mut self, start: Us) -> Option<LoadSamples> {
        let last = self.points.last()?.0;
        let mut from = self.sampled.max(start);
        let from_us = from.since(start);
        let mut bytes = Vec::new();
        while from.plus(STEP) <= last {
            let to = from.plus(STEP);
            bytes.push(at(&self.points, to).saturating_sub(at(&self.points, from)));
            from = to;
        }
        self.sampled = from;
        let keep = self.points.partition_point(|(time, _)| *time <= from).saturating_sub(1);
        self.points.drain(..keep);
        (!bytes.is_empty()).then_some(LoadSamples { from_us, step_us: STEP, bytes })
    }
}

/// Bytes at a time, between the reports before and after it.
fn at(points: &[(Us, u64)], time: Us) -> u64 {
    let after = points.partition_point(|(at, _)| *at <= time);
    let Some(&(t0, b0)) = after.checked_sub(1).and_then(|i| points.get(i)) else {
        return points.first().map_or(0, |(_, bytes)| *bytes);
    };
    let Some(&(t1, b1)) = points.get(after) else { return b0 };
    let span = t1.since(t0).number().max(1);
    let more = u128::from(b1.saturating_sub(b0)) * u128::from(time.since(t0).number());
    b0 + (more / u128::from(span)) as u64
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    summary::fields(line).find(|(key, _)| *key == name).map(|(_, value)| value)
}

const fn us(ns: u64) -> Us {
    Us::new(ns / 1000)
}

const fn cause(cause: LinkCause) -> Cause {
    match cause {
        LinkCause::Crash => Cause::Crash,
        LinkCause::Hang => Cause::Hang,
        LinkCause::Request => Cause::Request,
    }
}

fn restart(told: &LinkRestart) -> Restart {
    Restart {
        cause: cause(told.cause),
        detect_us: us(told.detect_ns),
        teardown_us: us(told.teardown_ns),
        rebuild_us: us(told.rebuild_ns),
        device_us: us(told.device_ns.unwrap_or(0)),
        first_response_us: us(told.first_response_ns.unwrap_or(0)),
    }
}
