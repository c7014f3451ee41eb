//! The demonstration in a short form: a stock Debian whose fio verifies while the driver of its
//! disks is killed. Needs Debian's mirror the first time.

use bulkhead::{
    demo::{self, Guest, Live, Options, Outcome, View},
    progress,
    setup::Accel,
};
use std::{
    sync::{Arc, Mutex, atomic::AtomicU32},
    time::Duration,
};

/// Keeps what was said, for the message of a test that fails.
#[derive(Default)]
struct Recorder {
    said: Vec<String>,
}

impl View for Recorder {
    fn say(&mut self, text: &str) {
        self.said.push(text.into());
    }
    fn progress(&self) -> progress::Progress {
        progress::Progress::default()
    }
    fn live(&mut self, live: Option<&Live>) {
        self.said.extend(live.map(Live::line));
    }
}

#[test]
fn a_stock_debian_does_not_notice_that_the_driver_of_its_disks_is_killed() {
    const KILLS: usize = 5;
    let options = Options {
        length: Duration::from_secs(6),
        every: Duration::from_millis(1200),
        stretch: Duration::from_millis(3600),
        guest: Guest::DebianCloud,
        accel: Accel::Tcg,
        interrupts: Arc::new(AtomicU32::new(0)),
        show_build: false,
    };
    let recorder = Arc::new(Mutex::new(Recorder::default()));
    let report =
        demo::run(&options, Arc::clone(&recorder) as _).unwrap_or_else(|e| panic!("{e:?}"));
    let said = recorder.lock().expect("nobody panicked").said.join("\n");
    let story = format!("{}\n{said}", report.text());
    assert_eq!(report.outcome, Outcome::Unnoticed, "{story}");
    // On a busy host a driver domain may not be back yet when it is to be killed again.
    assert_eq!(report.kills + report.kills_refused, KILLS, "{story}");
    assert!(report.kills >= 3 && report.blackout_us.prompt.all.count >= 3, "{story}");
    let deaths = report.restarts.iter().filter(|r| r.cause == "crash" && r.driver == "disk");
    assert_eq!(deaths.count(), report.kills, "{story}");
    let load = report.load.as_ref().expect("it ran");
    assert!(
        load.is_clean() && load.read_bytes > 1 << 20 && load.written_bytes > 1 << 20,
        "{story}"
    );
    // What the driver domain says that it did is what fio says that it asked for.
    let (asked, counted) = (load.read_bytes + load.written_bytes, report.counted_bytes);
    let differ = counted.expect("counted").abs_diff(asked) as f64 / asked as f64;
    assert!(differ < 0.01, "{counted:?} for {asked}\n{story}");
    assert_eq!(report.audit.as_ref().map(|audit| audit.read_bytes), Some(64 << 20), "{story}");
    let rates: Vec<_> = report.throughput.stretches.iter().map(|s| s.bytes_per_s).collect();
    assert!(
        rates.len() == 4 && rates.iter().all(|r| r.is_some_and(|r| r > 0.0)),
        "{rates:?}\n{story}"
    );
    assert!(report.image.as_ref().is_some_and(|image| image.pages == 16384), "{story}");
}
