//! The core's own end, as the user of the tool sees it: what it says last, the verdict and
//! the exit code. The core has no way to be made to fault from outside, so a script in
//! QEMU's place does something to the machine first.

use bulkhead::{artifacts::workspace, needs::find_program};
use bulkhead_abi::{archive::Header, vcpu::UserRegs};
use std::{env, ffi::OsString, fs, mem::offset_of, os::unix::fs::PermissionsExt, process::Command};

/// Finds the archive and the core's log among QEMU's arguments; what has none, such as a
/// question for its version, is left alone.
const ARGUMENTS: &str = r#"
for a; do
    [ "$last" = -initrd ] && archive=$a
    case $a in file,id=debug,path=*) log=${a#*path=} ;; esac
    last=$a
done
[ "$archive" ] || exec "$QEMU" "$@"
"#;
const NO_ARCHIVE: &str = r#"for a; do
    shift
    [ "$a" = -initrd ] || [ "$a" = "$archive" ] || set -- "$@" "$a"
done
exec "$QEMU" "$@"
"#;
/// A non-maskable interrupt once the core can take one.
const NMI: &str = r#"mkfifo "$log.monitor"
(until grep -qs 'PCI functions' "$log"; do sleep 0.1; done; sleep 1; echo nmi) >"$log.monitor" &
exec "$QEMU" -monitor stdio "$@" <"$log.monitor"
"#;

/// Makes the address where Dom0 starts one that no guest may have: upper bits that differ.
fn damage() -> String {
    let rip = offset_of!(Header, regs) + offset_of!(UserRegs, rip);
    format!(
        "printf '\\022\\064' | dd of=\"$archive\" bs=1 seek={} conv=notrunc 2>/dev/null\n\
         exec \"$QEMU\" \"$@\"\n",
        rip + 6
    )
}

/// What a run of the tool came to.
struct Ended {
    code: Option<i32>,
    outcome: String,
    /// Why, with the core's last words.
    reason: String,
}

/// Runs a set-up through the tool with a script in QEMU's place.
fn run_with(script: &str) -> Ended {
    let folder = tempfile::tempdir().expect("a folder");
    let qemu = folder.path().join("qemu-system-x86_64");
    fs::write(&qemu, format!("#!/bin/sh\n{ARGUMENTS}{script}")).expect("written");
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).expect("ours");
    let set_up = folder.path().join("set-up.toml");
    let text = "[machine]\nmemory = \"256M\"\n[guest.g]\nkernel = \"spin\"\nmemory = \"32M\"\n";
    fs::write(&set_up, text).expect("written");
    let mut path = OsString::from(folder.path());
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let done = Command::new("cargo")
        .args(["bulkhead", "run", "--json", "--accel", "tcg", "--timeout", "200"])
        .arg(&set_up)
        .current_dir(workspace())
        .env_remove("CARGO")
        .env("QEMU", find_program("qemu-system-x86_64").expect("QEMU is installed"))
        .env("PATH", path)
        .output()
        .expect("cargo runs");
    let told = String::from_utf8_lossy(&done.stderr);
    let report: serde_json::Value =
        serde_json::from_slice(&done.stdout).unwrap_or_else(|e| panic!("{e}\n{told}"));
    let text = |key: &str| report[key].as_str().unwrap_or_default().to_owned();
    let reason = match text("reason") {
        none if none.is_empty() => told.into_owned(),
        reason => reason,
    };
    Ended { code: done.status.code(), outcome: text("outcome"), reason }
}

impl Ended {
    fn assert_core_fault(&self) {
        assert_eq!(self.code, Some(3), "{}: {}", self.outcome, self.reason);
        assert_eq!(self.outcome, "core-fault", "{}", self.reason);
        self.assert_says("the core faulted");
        self.assert_says("backtrace:");
    }

    fn assert_says(&self, what: &str) {
        assert!(self.reason.contains(what), "no `{what}` in:\n{}", self.reason);
    }

    /// The lines of the backtrace: an address, and what it lies in.
    fn backtrace(&self) -> Vec<(&str, &str)> {
        let lines = self.reason.lines().skip_while(|line| *line != "backtrace:").skip(1);
        lines
            .map_while(|line| {
                let line = line.strip_prefix("  ffff")?;
                Some(line.split_once(' ').unwrap_or((line, "")))
            })
            .collect()
    }
}

#[test]
fn a_core_that_cannot_build_dom0_says_where_it_gave_up_and_the_tool_fails_with_3() {
    let ended = run_with(&damage());
    ended.assert_core_fault();
    ended.assert_says("*** core panic");
    ended.assert_says("no Dom0: Refused(\"context\", EINVAL)");
    let backtrace = ended.backtrace();
    assert!(backtrace.len() > 2, "{}", ended.reason);
    for name in ["panic_fmt+0x", "core_start+0x"] {
        assert!(backtrace.iter().any(|(_, at)| at.contains(name)), "{name}:\n{}", ended.reason);
    }
}

#[test]
fn a_core_without_an_archive_has_bare_addresses_to_tell() {
    let ended = run_with(NO_ARCHIVE);
    ended.assert_core_fault();
    ended.assert_says("no boot archive");
    let backtrace = ended.backtrace();
    assert!(backtrace.len() > 2, "{}", ended.reason);
    assert!(backtrace.iter().all(|(_, name)| name.is_empty()), "{}", ended.reason);
}

#[test]
fn a_core_that_is_stopped_tells_registers_and_what_happened_last() {
    let ended = run_with(NMI);
    ended.assert_core_fault();
    ended.assert_says("stopped by an NMI");
    ended.assert_says("rip ");
    ended.assert_says("last events, ");
}
