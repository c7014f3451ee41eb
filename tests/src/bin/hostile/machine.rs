//! Attempts by instructions: what a processor lets only ring 0 do.

use super::{Attempt, Env, Verdict, trap};

/// The instruction must fault, or have no effect that [`undone`] can see.
fn faults(name: &str, argument: u64) -> Verdict {
    match trap::privileged(name, argument) {
        Err(vector) => Verdict::Refused(vector as i64),
        Ok(value) => Verdict::Broken(value as i64),
    }
}

/// The instruction may be emulated as nothing; either way this program goes on.
fn harmless(name: &str, argument: u64) -> Verdict {
    match trap::privileged(name, argument) {
        Err(vector) => Verdict::Refused(vector as i64),
        Ok(_) => Verdict::Refused(0),
    }
}

/// A port must read as all ones or fault: it reaches no device.
fn reads_nothing(port: u64) -> Verdict {
    match trap::privileged("in", port) {
        Err(vector) => Verdict::Refused(vector as i64),
        Ok(value) if value as u32 == u32::MAX => Verdict::Refused(-1),
        Ok(value) => Verdict::Broken(value as i64),
    }
}

fn none(_: &mut Env, verdict: Verdict) -> Verdict {
    verdict
}

pub const ATTEMPTS: &[Attempt] = &[
    ("load a descriptor table register", |e| none(e, faults("lgdt", 0))),
    ("load an interrupt table register", |e| none(e, faults("lidt", 0))),
    ("load a local descriptor table register", |e| none(e, faults("lldt", 0x28))),
    ("load a task register", |e| none(e, faults("ltr", 0x28))),
    ("drop a TLB entry", |e| none(e, faults("invlpg", 0))),
    ("return to ring 0 by SYSRET", |e| none(e, faults("sysretq", 0))),
    ("swap segment bases", |e| none(e, faults("swapgs", 0))),
    ("start a nested guest", |e| none(e, faults("vmrun", 0))),
    ("take the core's system-call entry", |e| none(e, harmless("wrmsr", 0xc000_0082))),
    ("switch off execute protection", |e| none(e, harmless("wrmsr", 0xc000_0080))),
    ("move the local APIC", |e| none(e, harmless("wrmsr", 0x1b))),
    ("switch off write protection", |e| none(e, harmless("mov cr0", 0x8000_0001))),
    ("load a root of its own making", |e| {
        let root = e.spare.maddr(0).get();
        faults("mov cr3", root)
    }),
    ("switch off supervisor protection", |e| none(e, harmless("mov cr4", 0x20))),
    ("disable interrupts", |e| none(e, harmless("cli", 0))),
    ("end the machine by its exit port", |e| none(e, harmless("out", 0xf4))),
    ("reset the machine by its keyboard controller", |e| none(e, harmless("out", 0x64))),
    ("reset the machine by its reset port", |e| none(e, harmless("out", 0xcf9))),
    ("write to the debug UART", |e| none(e, harmless("out", 0x3f8))),
    ("write to Dom0's control link", |e| none(e, harmless("out", 0x2f8))),
    ("read Dom0's control link", |e| none(e, reads_nothing(0x2f8))),
    ("read PCI configuration space", |e| none(e, reads_nothing(0xcfc))),
];
