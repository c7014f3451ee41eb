//! `/init` of the initramfs that the host tool makes: loads modules, finds the root disk
//! and becomes the guest's own first process. If it cannot, it says why and ends, which
//! crashes the guest: that is how the run learns that it failed.
#![forbid(unsafe_code)]

use guest_tools::boot::boot;
use std::{env, fs, process::ExitCode};

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("this is the first process of a guest's initramfs; it does nothing elsewhere");
        return ExitCode::from(2);
    }
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let Err(why) = boot(&arguments);
    // The reason comes last: it is what a run reports of a guest that crashed.
    let mut lines = why.lines();
    let reason = lines.next().unwrap_or_default();
    for line in lines {
        eprintln!("bulkhead: {line}");
    }
    eprintln!("bulkhead: the guest cannot start: {reason}");
    // The kernel panics when its first process ends. Its registers and stack explain
    // nothing here and would push the reason out of sight.
    let _ = fs::write("/proc/sys/kernel/printk", "0");
    ExitCode::FAILURE
}
