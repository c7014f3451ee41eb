//! What the demonstration showed: one JSON object for programs, a table for people, a page.
//! The names are a contract: fields may be added, not renamed.

use super::{
    Options,
    director::Seen,
    dmesg::Dmesg,
    fio::Job,
    image::Image,
    live,
    schedule::Schedule,
    series::{Comparison, STEP},
};
use crate::report::Restart;
use faults::{
    outcome::{self, Cause, Outcome as Class},
    report::{
        Blackouts, Kill, Throughput,
        html::{Card, Sheet, sheet},
        terminal,
    },
    units::Us,
};
use serde::Serialize;
use std::{fmt::Write, time::Duration};

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The guest saw nothing of all the kills.
    Unnoticed,
    /// Something could be seen in it.
    Noticed,
    /// It did not come to its end.
    Incomplete,
    CoreFault,
    Interrupted,
}

impl Outcome {
    /// The tool's exit code.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Unnoticed => 0,
            Self::Noticed | Self::Incomplete => 1,
            Self::CoreFault => 3,
            Self::Interrupted => 130,
        }
    }
}

/// The object that `demo --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub outcome: Outcome,
    /// What was seen that should not be, or why it did not come to its end.
    pub reasons: Vec<String>,
    /// `uname -sr` of the guest.
    pub kernel: String,
    /// `tcg` or `kvm`.
    pub accel: &'static str,
    pub every_ms: u64,
    pub kills: usize,
    /// Kills that came while the driver domain was dead; they are not among `kills`.
    pub kills_refused: usize,
    /// When each was done, seconds from the first stretch.
    pub kills_s: Vec<f64>,
    /// Of the deaths, with their phases.
    pub blackout_us: Blackouts,
    pub restarts: Vec<Restart>,
    pub throughput: Comparison,
    /// Bytes in each step of [`STEP`], from the first stretch on.
    pub step_ms: u64,
    pub step_bytes: Vec<Option<u64>>,
    pub load: Option<Job>,
    /// Bytes that the driver domain counted for the load: should be what fio counted.
    pub counted_bytes: Option<u64>,
    pub audit: Option<Job>,
    pub dmesg: Option<Dmesg>,
    /// The data disk, read on the host.
    pub image: Option<Image>,
    /// What e2fsck says of the root file system: null if it is clean.
    pub file_system: Option<String>,
    pub elapsed_s: f64,
}

/// What the host found afterwards.
#[derive(Clone, Debug, Default)]
pub struct Afterwards {
    pub accel: &'static str,
    pub image: Option<Image>,
    /// Complaints of e2fsck.
    pub file_system: Option<String>,
    /// Why the programme, or the run, was not completed.
    pub failed: Vec<String>,
    pub is_interrupted: bool,
    pub is_core_fault: bool,
    pub elapsed: Duration,
}

impl Report {
    pub fn new(options: &Options, schedule: &Schedule, seen: Seen, after: Afterwards) -> Self {
        let mut report = Self {
            outcome: Outcome::Incomplete,
            reasons: Vec::new(),
            kernel: seen.kernel,
            accel: after.accel,
            every_ms: options.every.as_millis() as u64,
            kills: seen.kills.len(),
            kills_refused: seen.refused,
            kills_s: seen.kills.iter().map(Duration::as_secs_f64).collect(),
            blackout_us: Blackouts::of_restarts(seen.restarts.iter().filter_map(death)),
            restarts: seen.restarts.iter().map(Into::into).collect(),
            throughput: seen.series.compare(schedule),
            step_ms: STEP.as_millis() as u64,
            step_bytes: seen.series.steps(),
            load: seen.load,
            counted_bytes: seen.counted,
            audit: seen.audit,
            dmesg: seen.dmesg,
            image: after.image,
            file_system: after.file_system,
            elapsed_s: after.elapsed.as_secs_f64(),
        };
        let noticed = report.noticed();
        report.outcome = match () {
            () if after.is_core_fault => Outcome::CoreFault,
            () if !noticed.is_empty() => Outcome::Noticed,
            () if after.is_interrupted => Outcome::Interrupted,
            () if !after.failed.is_empty() => Outcome::Incomplete,
            () => Outcome::Unnoticed,
        };
        report.reasons = noticed.into_iter().chain(after.failed).collect();
        report
    }

    /// What could be seen of the kills, by the guest or on its disks.
    fn noticed(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, job) in [("the load", &self.load), ("the audit", &self.audit)] {
            if let Some(job) = job.as_ref().filter(|job| !job.is_clean()) {
                found.push(format!(
                    "fio, {name}: error {} (exit {}): {}",
                    job.error, job.exit, job.said
                ));
            }
        }
        found
            .extend(self.dmesg.iter().flat_map(|d| &d.errors).map(|line| format!("dmesg: {line}")));
        if let Some(image) = self.image.as_ref().filter(|image| !image.is_sound()) {
            let wrong = image.pages - image.sound;
            found.push(format!(
                "{wrong} of {} pages on the host are wrong: {}",
                image.pages,
                image.wrong.join("; ")
            ));
        }
        found.extend(self.file_system.iter().map(|said| format!("e2fsck: {said}")));
        found
    }

    /// What a person reads at the end.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{}", self.subject());
        terminal::blackouts(&mut out, &self.blackout_us);
        out.push('\n');
        for (name, value) in self.rows() {
            let _ = writeln!(out, "{name:<14}{value}");
        }
        for reason in &self.reasons {
            let _ = writeln!(out, "! {reason}");
        }
        let _ = writeln!(out, "\n{}", self.verdict());
        out
    }

    fn subject(&self) -> String {
        format!(
            "driver domain killed {} times, one each {} s, under fio in {} ({})",
            self.kills,
            self.every_ms as f64 / 1000.0,
            if self.kernel.is_empty() { "a guest" } else { &self.kernel },
            self.accel
        )
    }

    fn verdict(&self) -> &'static str {
        match self.outcome {
            Outcome::Unnoticed => "The guest noticed nothing.",
            Outcome::Noticed => "The guest, or its disk, shows the kills.",
            Outcome::Incomplete => "It did not come to its end.",
            Outcome::CoreFault => "The core or Dom0 failed.",
            Outcome::Interrupted => "Interrupted; until then nothing was noticed.",
        }
    }

    /// Names and values of what was looked at.
    fn rows(&self) -> Vec<(String, String)> {
        let mut rows = vec![
            ("throughput".to_owned(), self.throughput_words()),
            ("by CPU time".to_owned(), self.cpu_words()),
        ];
        let mut row = |name: &str, value: Option<String>| {
            rows.push((name.into(), value.unwrap_or("not looked at".into())));
        };
        row("kills", Some(self.kill_words()));
        row("other deaths", Some(self.other_deaths()));
        row("fio", self.load.as_ref().map(job_words));
        row("audit", self.audit.as_ref().map(job_words));
        row("dmesg", self.dmesg.as_ref().map(dmesg_words));
        row(
            "data image",
            self.image.as_ref().map(|image| {
                format!(
                    "{} of {} pages are where and what they say, on the host",
                    image.sound, image.pages
                )
            }),
        );
        let clean = self.file_system.clone().unwrap_or("clean (e2fsck on the host)".into());
        row("root image", self.image.is_some().then_some(clean));
        rows
    }

    fn kill_words(&self) -> String {
        let answered = self.blackout_us.prompt.all.count as usize;
        let mut words = format!("{answered} of {} followed by an answer", self.kills);
        if answered < self.kills {
            words += "; after the others the next death came first";
        }
        if self.kills_refused > 0 {
            words += &format!("; {} more came while it was dead", self.kills_refused);
        }
        words
    }

    /// Deaths that were not asked for.
    fn other_deaths(&self) -> String {
        let hangs = self.restarts.iter().filter(|restart| restart.cause == "hang").count();
        let deaths = self.restarts.iter().filter(|restart| restart.cause == "crash").count();
        match (hangs, deaths.saturating_sub(self.kills)) {
            (0, 0) => "none".into(),
            (hangs, crashes) => {
                format!("{crashes} crashes, {hangs} by a heart that did not beat in time")
            }
        }
    }

    fn throughput_words(&self) -> String {
        let Comparison {
            undisturbed_bytes_per_s,
            killed_bytes_per_s,
            ratio,
            ratios,
            median_ratio,
            ..
        } = &self.throughput;
        let percent = |ratio: f64| format!("{:.1} %", ratio * 100.0);
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let most = ratios.iter().copied().fold(0.0, f64::max);
        let spread = match ratios.len() {
            0 | 1 => String::new(),
            n => format!(
                " (median of {n} pairs of stretches {}, {} to {})",
                percent(median_ratio.unwrap_or_default()),
                percent(least),
                percent(most)
            ),
        };
        format!(
            "undisturbed {}, killed {}: {}{spread}",
            live::rate(*undisturbed_bytes_per_s),
            live::rate(*killed_bytes_per_s),
            ratio.map_or("-".into(), percent),
        )
    }

    fn cpu_words(&self) -> String {
        let Some(by_cpu) = self.throughput.by_cpu else {
            return "not known".into();
        };
        format!(
            "undisturbed {}, killed {}: {:.1} %; it had {:.0} % and {:.0} % of a processor",
            live::rate(Some(by_cpu.undisturbed_bytes_per_cpu_s)),
            live::rate(Some(by_cpu.killed_bytes_per_cpu_s)),
            by_cpu.ratio * 100.0,
            by_cpu.undisturbed_share * 100.0,
            by_cpu.killed_share * 100.0
        )
    }

    /// The page, as one file.
    pub fn page(&self, command: &str) -> String {
        let throughput = Throughput {
            step_us: Us::from_ms(self.step_ms),
            from_us: Us::default(),
            bytes: self.step_bytes.clone(),
            kills: self.marks(),
        };
        let mut rows = self.rows();
        rows.extend(self.reasons.iter().map(|reason| ("!".into(), reason.clone())));
        sheet(&Sheet {
            title: self.verdict(),
            subject: &self.subject(),
            command,
            cards: &self.cards(),
            throughput: &throughput,
            caption: "What the guest read and wrote. Stretches without kills and stretches with \
                      them take turns; each mark above is a kill.",
            blackouts: &self.blackout_us,
            rows: &rows,
        })
    }

    fn marks(&self) -> Vec<Kill> {
        let outcome = match self.outcome {
            Outcome::Noticed => Class::RecoveredVisible,
            _ => Class::RecoveredInvisible,
        };
        let at = |s: &f64| Us::new((s * 1e6) as u64);
        (1..).zip(&self.kills_s).map(|(number, s)| Kill { at_us: at(s), number, outcome }).collect()
    }

    fn cards(&self) -> Vec<Card> {
        let all = &self.blackout_us.prompt.all;
        let of = |us: Us| if all.count == 0 { "-".to_owned() } else { us.to_string() };
        let errors = self.reasons.len();
        let card = |name: &str, value: String, more: String, is_good| Card {
            name: name.into(),
            value,
            more,
            is_good,
        };
        let ratio = self.throughput.ratio.map_or("-".into(), |r| format!("{:.1} %", r * 100.0));
        vec![
            card("kills", self.kills.to_string(), format!("one each {} ms", self.every_ms), None),
            card(
                "errors seen",
                errors.to_string(),
                "in the guest and on its disks".into(),
                Some(errors == 0),
            ),
            card(
                "blackout, median",
                of(all.p50),
                format!("p99 {}, longest {}", of(all.p99), of(all.max)),
                None,
            ),
            card("throughput", ratio, "of the undisturbed one".into(), None),
        ]
    }
}

fn job_words(job: &Job) -> String {
    let megabytes = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
    let errors = match job.is_clean() {
        true => "no error".into(),
        false => format!("error {}", job.error),
    };
    let written = match job.written_bytes {
        0 => String::new(),
        bytes => format!("{} written, ", megabytes(bytes)),
    };
    format!(
        "{errors}; {written}{} read and verified; longest request {}",
        megabytes(job.read_bytes),
        Us::new(job.longest_us)
    )
}

fn dmesg_words(dmesg: &Dmesg) -> String {
    let errors = match dmesg.errors.len() {
        0 => "no error".to_owned(),
        n => format!("{n} errors"),
    };
    match dmesg.others.len() {
        0 => errors,
        n => format!("{errors}; {n} other new warnings, the first: {}", dmesg.others[0]),
    }
}

/// A death as a campaign has it, if its phases are known.
fn death(restart: &bulkhead_link::Restart) -> Option<outcome::Restart> {
    let us = |ns: u64| Us::new(ns / 1000);
    let cause = match restart.cause {
        bulkhead_link::Cause::Crash => Cause::Crash,
        bulkhead_link::Cause::Hang => Cause::Hang,
        bulkhead_link::Cause::Request => return None,
    };
    Some(outcome::Restart {
        cause,
        detect_us: us(restart.detect_ns),
        teardown_us: us(restart.teardown_ns),
        rebuild_us: us(restart.rebuild_ns),
        device_us: us(restart.device_ns?),
        first_response_us: us(restart.first_response_ns?),
    })
}

#[cfg(test)]
mod tests;
