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
    /// The guest whose front end misbehaves.
    front: Option<String>,
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
    /// Number of the wish after which its disk was connected last.
    front_connected: Option<u64>,
    pub is_ready: bool,
}

impl Seen {
    /// Nothing yet, of a machine with these guests under load.
    pub fn new(driver: &str, front: Option<&str>, loads: &[(String, usize)]) -> Self {
        let front = front.map(str::to_owned);
        Self { driver: driver.into(), front, loads: loads.to_vec(), ..Self::default() }
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
        if self.front.as_deref() == Some(domain) {
            self.front_line(line);
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

    fn front_line(&mut self, line: &str) {
        if let Some(at) = line.strip_prefix("front: activated now_us=") {
            self.front_activated = at.parse().ok().map(Us::new);
        }
        if let Some(number) = line.strip_prefix("front: connected ") {
            self.front_connected = number.parse().ok();
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
            && (self.front.is_none() || self.front_connected.is_some())
    }

    /// Whether a wish is done on all disks.
    pub fn is_done(&self, wish: u64) -> bool {
        self.disks.values().all(|disk| disk.wish == wish)
    }

    /// Whether the front end that misbehaves has connected its disk after a wish.
    pub fn is_connected(&self, wish: u64) -> bool {
        self.front_connected == Some(wish)
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
                (&mut sum.reconnects, now.reconnects, before.reconnects),
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
        let gave_up = counts.violations > counts.reconnects || counts.stalled > 0;
        let is_load = |name: &String| self.loads.iter().any(|(load, _)| load == name);
        // The front end that misbehaves is the one at fault, or gave up for the same reason.
        let is_affected = |(name, exit, _): &&(String, Exit, String)| {
            let is_excused = gave_up && is_load(name) || self.front.as_ref() == Some(name);
            *exit != Exit::PowerOff && !is_excused
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
        LinkCause::Violation => Cause::Violation,
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

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_link::Reply;
    use faults::Outcome;

    const OVERDUE: Us = Us::from_ms(250);

    /// A machine with one guest under load on one disk, whose fault is injected at 1 s.
    struct Bench(Seen);

    impl Bench {
        fn new() -> Self {
            let mut bench = Self(Seen::new("disk", Some("rude"), &[("load".into(), 1)]));
            bench.says("rude", "front: connected 0");
            bench.says(BYSTANDER, "bystander: ready");
            bench.says(NEIGHBOUR, "disk-verify: status disk=xvda now_us=900000 ops=9");
            assert!(!bench.0.is_under_load());
            bench.status(980, 100, "");
            assert!(bench.0.is_under_load());
            bench.signs(1000, 0, 0);
            bench.0.mark();
            bench
        }

        fn event(&mut self, event: Event) {
            self.0.take(&FromDom0::Event(event));
        }

        fn says(&mut self, domain: &str, line: &str) {
            // In two pieces, as a ring may give them.
            let text = format!("{line}\r\n");
            for part in text.as_bytes().chunks(text.len() / 2 + 1) {
                let (domain, bytes) = (domain.into(), part.to_vec());
                self.event(Event::Console { domain, bytes });
            }
        }

        fn status(&mut self, ms: u64, ops: u64, more: &str) {
            self.says(
                "load",
                &format!(
                    "disk-verify: status disk=xvda now_us={} ops={ops} bytes={} {more}",
                    ms * 1000,
                    ops * 4096
                ),
            );
        }

        fn signs(&mut self, ms: u64, activated_ms: u64, restarts: u32) {
            let signs = Signs {
                now_ns: ms * 1_000_000,
                activated_ns: activated_ms * 1_000_000,
                restarts,
                ..Signs::default()
            };
            self.0.take(&FromDom0::Reply { number: 1, reply: Reply::Signs(signs) });
        }

        fn restarted(&mut self, cause: LinkCause, ended_ms: u64) {
            self.event(Event::Restarted(LinkRestart {
                driver: "disk".into(),
                cause,
                reason: "why".into(),
                ended_ns: ended_ms * 1_000_000,
                detect_ns: 2_000_000,
                teardown_ns: 3_000_000,
                rebuild_ns: 4_000_000,
                device_ns: Some(5_000_000),
                first_response_ns: Some(6_000_000),
                blackout_ns: Some(20_000_000),
            }));
        }

        fn ended(&mut self, domain: &str, exit: Exit) {
            self.event(Event::Ended { domain: domain.into(), exit, reason: "so".into() });
        }

        fn seen(&self, serving: bool) -> Observation {
            self.0.observation(Us::from_ms(1000), serving, OVERDUE)
        }
    }

    #[test]
    fn nothing_is_no_activation_and_an_activation_alone_is_benign() {
        let mut bench = Bench::new();
        bench.status(1020, 120, "gap_us=500");
        assert_eq!(Outcome::of(&bench.seen(true)), Outcome::NotActivated);
        bench.signs(1030, 1007, 0);
        let seen = bench.seen(true);
        assert_eq!(seen.activated_us, Some(Us::from_ms(7)));
        assert_eq!(Outcome::of(&seen), Outcome::Benign);
    }

    #[test]
    fn a_restart_has_its_phases_and_was_noticed_when_its_end_was() {
        let mut bench = Bench::new();
        bench.signs(1030, 1010, 1);
        bench.restarted(LinkCause::Crash, 1015);
        bench.status(1060, 130, "gap_us=0");
        let seen = bench.seen(true);
        let detected = seen.detected.as_ref().expect("noticed");
        assert_eq!((detected.cause, detected.after_us), (Cause::Crash, Us::from_ms(7)));
        assert_eq!(seen.restarts[0].blackout(), Us::from_ms(20));
        assert_eq!(Outcome::of(&seen), Outcome::RecoveredInvisible);
    }

    #[test]
    fn a_restart_that_was_asked_for_is_none_of_the_faults() {
        let mut bench = Bench::new();
        bench.restarted(LinkCause::Request, 1015);
        assert!(bench.seen(true).restarts.is_empty() && bench.seen(true).detected.is_none());
    }

    #[test]
    fn what_the_load_complains_of_is_counted_from_the_injection_on() {
        let mut bench = Bench::new();
        bench.status(990, 110, "lost=3 errors=1");
        bench.0.mark();
        assert!(!bench.0.has_trouble());
        bench.status(
            1020,
            120,
            "lost=4 stale=2 torn=1 misdirected=5 damaged=6 unexpected=7 errors=9",
        );
        assert!(bench.0.has_trouble());
        let load = bench.seen(true).load;
        assert_eq!((load.errors, load.wrong, load.stale), (8, 13, 3));
        assert_eq!((load.torn, load.misdirected), (1, 5));
        assert_eq!(Outcome::of(&bench.seen(true)), Outcome::SilentCorruption);
    }

    #[test]
    fn what_a_front_end_refuses_is_an_error_that_was_noticed() {
        let mut bench = Bench::new();
        bench.says(
            "load",
            "disk-verify: wrong disk=xvda read of 1 blocks at 3: integrity: sector 24",
        );
        bench.status(1020, 120, "corrupt=2 caught=2");
        let seen = bench.seen(true);
        assert_eq!((seen.load.corrupt(), seen.load.errors), (0, 2));
        assert_eq!(seen.detected.as_ref().map(|d| d.cause), Some(Cause::Integrity));
        assert_eq!(Outcome::of(&seen), Outcome::RecoveredVisible);
    }

    #[test]
    fn a_standstill_is_overdue_only_until_something_notices_it() {
        for (restarts, overdue) in [(0, true), (1, false)] {
            let mut bench = Bench::new();
            bench.signs(1010, 1005, restarts);
            for ms in (1020..1400).step_by(20) {
                bench.status(ms, 100, &format!("gap_us={}", (ms - 1000) * 1000));
            }
            assert_eq!(bench.seen(false).overdue, overdue);
        }
    }

    #[test]
    fn requests_count_as_answered_when_they_were_and_not_when_that_was_told() {
        let mut bench = Bench::new();
        bench.status(1040, 130, "gap_us=30000");
        assert!(bench.0.is_served_since(Us::from_ms(1009)));
        assert!(!bench.0.is_served_since(Us::from_ms(1010)));
    }

    #[test]
    fn a_load_that_gave_its_disk_up_is_no_escape_and_any_other_end_is() {
        let mut bench = Bench::new();
        bench.says("load", "disk-verify: done disk=xvda ops=120 violations=1");
        bench.ended("load", Exit::Crash);
        assert!(bench.0.has_lost_load());
        let seen = bench.seen(false);
        assert_eq!(seen.detected.as_ref().map(|d| d.cause), Some(Cause::Violation));
        assert_eq!(Outcome::of(&seen), Outcome::NotRecovered);
        bench.ended("rude", Exit::Crash);
        bench.ended("somebody", Exit::PowerOff);
        assert!(bench.seen(false).others.is_empty());
        bench.ended("somebody", Exit::Crash);
        assert_eq!(Outcome::of(&bench.seen(false)), Outcome::Escape);
    }

    #[test]
    fn a_load_that_ends_for_no_reason_of_its_own_is_an_escape() {
        let mut bench = Bench::new();
        bench.ended("load", Exit::Crash);
        assert_eq!(Outcome::of(&bench.seen(false)), Outcome::Escape);
    }

    #[test]
    fn neighbours_that_see_something_or_say_nothing_are_affected() {
        let mut bench = Bench::new();
        bench.says(BYSTANDER, "bystander: WRONG: word 7 is 0x0");
        assert_eq!(bench.seen(true).others.len(), 1);
        let mut bench = Bench::new();
        bench.signs(3900, 0, 0);
        assert!(bench.seen(true).others.is_empty());
        bench.signs(4100, 0, 0);
        assert_eq!(bench.seen(true).others.len(), 2, "both have been silent for 3 s");
    }

    #[test]
    fn a_quarantine_is_a_failure_that_was_noticed() {
        let mut bench = Bench::new();
        bench.ended("disk", Exit::Crash);
        assert_eq!(Outcome::of(&bench.seen(false)), Outcome::NotRecovered);
    }

    #[test]
    fn wishes_and_orders_are_told_when_done() {
        let mut bench = Bench::new();
        assert!(!bench.0.is_done(3) && !bench.0.is_connected(3));
        bench.says("load", "disk-verify: wish=3 done disk=xvda");
        bench.says("rude", "front: connected 3");
        assert!(bench.0.is_done(3) && bench.0.is_connected(3));
        bench.says("rude", "front: activated now_us=1004000");
        assert_eq!(bench.seen(true).activated_us, Some(Us::from_ms(4)));
    }

    #[test]
    fn the_series_has_every_byte_once_in_steps_of_equal_length() {
        let mut seen = Seen::new("disk", None, &[("load".into(), 1)]);
        let start = Us::from_ms(1000);
        let mut all = Vec::new();
        for (n, ms) in [1000_u64, 1021, 1039, 1090, 1130, 1131, 1210].into_iter().enumerate() {
            let text = format!(
                "disk-verify: status disk=xvda now_us={} ops={n} bytes={}\n",
                ms * 1000,
                (ms - 1000) * 500
            );
            let event = Event::Console { domain: "load".into(), bytes: text.into_bytes() };
            seen.take(&FromDom0::Event(event));
            if let Some(samples) = seen.load(start) {
                assert_eq!(samples.step_us, STEP);
                assert_eq!(samples.from_us, Us::new(STEP.number() * all.len() as u64));
                all.extend(samples.bytes);
            }
        }
        assert_eq!(all, [10_000; 10], "500 bytes each ms, 20 ms each step");
    }
}
