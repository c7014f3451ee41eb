//! The agent: runs commands in this guest for the host tool's `exec`, and puts its clock right. It is started by
//! `/init` of the initramfs and speaks over the second console. What it says is
//! `bulkhead_link::agent`'s.
#![forbid(unsafe_code)]

use guest_tools::agent::{Agent, clock::System, line};
use std::{process::ExitCode, thread};

fn main() -> ExitCode {
    // Somebody may want to know what happened when memory has run out.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    loop {
        let Some(line) = line::open() else {
            // Not an error: the guest was given no second console.
            return ExitCode::SUCCESS;
        };
        match Agent::new(line, Box::new(System)).serve() {
            Ok(()) => {}
            Err(e) => eprintln!("bulkhead: the agent's line failed: {e}"),
        }
        // The line comes back if its driver was only restarted.
        thread::sleep(line::RETRY);
    }
}
