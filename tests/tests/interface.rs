//! The guest interface, exercised by one guest that is booted as Dom0 with nothing
//! beside it, and judged by the TAP that it prints.

use bulkhead::{qemu::Ended, solo};
use std::{path::Path, time::Duration};

/// What a TAP stream says.
#[derive(Debug, Default)]
struct Tap {
    planned: Option<usize>,
    ok: usize,
    not_ok: Vec<String>,
}

fn read_tap(text: &str) -> Tap {
    let mut tap = Tap::default();
    for line in text.lines().map(str::trim) {
        if line.starts_with("not ok ") {
            tap.not_ok.push(line.to_owned());
        } else if line.starts_with("ok ") {
            tap.ok += 1;
        } else if let Some(count) = line.strip_prefix("1..") {
            tap.planned = count.parse().ok();
        }
    }
    tap
}

#[test]
fn each_hypercall_does_what_the_interface_says() {
    let request = solo::Request {
        dom0: Path::new("conformance"),
        cmdline: "",
        memory_mib: 64,
        limit: Duration::from_secs(180),
    };
    let booted = solo::boot(&request, &|_| ()).expect("boots");
    let tap = read_tap(&booted.log);
    assert_eq!(booted.ended, Some(Ended::Properly), "{}", booted.log);
    assert_eq!(tap.not_ok, [""; 0], "{}", booted.log);
    assert_eq!(tap.planned, Some(tap.ok), "{}", booted.log);
    assert!(tap.ok >= 50, "{} cases", tap.ok);
}
