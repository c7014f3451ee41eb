//! `bulkhead test`: format, lints, host tests, the ring under Miri, and system tests in
//! QEMU, with one summary at the end.

use crate::artifacts::workspace;
use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
};

/// What to test.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only tests whose name contains this; the other steps are left out.
    pub filter: Option<String>,
    /// No Miri, no QEMU.
    pub quick: bool,
    /// Tests that are marked as long, too.
    pub full: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub ignored: usize,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// One command of the run.
struct Step {
    name: &'static str,
    program: &'static str,
    arguments: Vec<String>,
    /// Its output has the test harness's result lines.
    counts_tests: bool,
}

fn step(name: &'static str, program: &'static str, line: &str) -> Step {
    Step {
        name,
        program,
        arguments: line.split_whitespace().map(str::to_owned).collect(),
        counts_tests: line.contains("test "),
    }
}

/// Runs the tests and tells each step as it goes. Everything goes to the standard
/// error; the caller prints the counts.
pub fn run(options: &Options) -> Counts {
    let mut total = Counts::default();
    for step in steps(options) {
        eprintln!("== {}", step.name);
        let counts = carry_out(&step);
        eprintln!("== {}: {} passed, {} failed", step.name, counts.passed, counts.failed);
        total.add(counts);
    }
    total
}

fn steps(options: &Options) -> Vec<Step> {
    let filter = options.filter.as_deref().unwrap_or_default();
    let mut steps = Vec::new();
    if filter.is_empty() {
        steps.push(step("format", "cargo", "fmt --all --check"));
        steps.push(step("lints", "cargo", "clippy --workspace --all-targets -q -- -D warnings"));
    }
    steps.push(step(
        "host tests",
        "cargo",
        &format!("test --workspace --no-fail-fast -- {filter}"),
    ));
    if options.quick {
        return steps;
    }
    match (filter.is_empty(), has_miri()) {
        (true, true) => steps.push(step(
            "ring under Miri",
            "rustup",
            "run nightly cargo miri test -p ring-proto",
        )),
        (true, false) if must_have_miri() => {
            steps.push(step("ring under Miri (not installed)", "false", ""));
        }
        (true, false) => eprintln!(
            "== ring under Miri: left out, since it is not installed; get it with\n\
             rustup toolchain install nightly --component miri,rust-src"
        ),
        (false, _) => {}
    }
    let long = if options.full { "--include-ignored" } else { "" };
    let system = format!(
        "test -p bulkhead-tests --features system --no-fail-fast -- --test-threads=1 {long} {filter}"
    );
    steps.push(step("system tests", "cargo", &system));
    steps
}

/// In CI a step that cannot run is a failure, unless that was said beforehand.
fn must_have_miri() -> bool {
    let is_set = |name| std::env::var_os(name).is_some();
    is_set("CI") && !is_set("BULKHEAD_WITHOUT_MIRI")
}

fn has_miri() -> bool {
    let asked = command("rustup").args(["run", "nightly", "cargo", "miri", "--version"]).output();
    asked.is_ok_and(|o| o.status.success())
}

/// A command in the workspace, without what `cargo run` left in the environment.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(workspace()).env_remove("CARGO");
    if program == "rustup" {
        command.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC").env_remove("RUSTDOC");
        // The property tests look for their file of past failures; and under Miri a few cases
        // of each have to do.
        command.env("MIRIFLAGS", "-Zmiri-disable-isolation").env("PROPTEST_CASES", "8");
    }
    command
}

fn carry_out(step: &Step) -> Counts {
    let spawned = command(step.program)
        .args(&step.arguments)
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn();
    let failed = Counts { failed: 1, ..Counts::default() };
    let mut child = match spawned {
        Ok(child) => child,
        Err(e) => {
            eprintln!("cannot run {}: {e}", step.program);
            return failed;
        }
    };
    let mut counts = Counts::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = writeln!(std::io::stderr(), "{line}");
            counts.add(result_line(&line).unwrap_or_default());
        }
    }
    let well = child.wait().is_ok_and(|status| status.success());
    match (well, step.counts_tests) {
        (true, true) => counts,
        (true, false) => Counts { passed: 1, ..Counts::default() },
        // It did not get as far as tests, or died in one.
        (false, _) if counts.failed == 0 => Counts { failed: 1, ..counts },
        (false, _) => counts,
    }
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; ..`.
fn result_line(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result: ")?;
    let number = |word: &str| {
        let before = rest.split(word).next()?;
        before.split_whitespace().last()?.parse().ok()
    };
    Some(Counts {
        passed: number(" passed")?,
        failed: number(" failed")?,
        ignored: number(" ignored")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_harness_result_lines() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.1s";
        let counts = Counts { passed: 12, failed: 3, ignored: 1 };
        assert_eq!(result_line(line), Some(counts));
        assert_eq!(result_line("test result of something"), None);
    }

    #[test]
    fn quick_leaves_the_machine_alone_and_a_filter_only_runs_tests() {
        let names = |options: &Options| steps(options).iter().map(|s| s.name).collect::<Vec<_>>();
        let quick = Options { quick: true, ..Options::default() };
        assert_eq!(names(&quick), ["format", "lints", "host tests"]);
        let filter = Options { filter: Some("ring".into()), ..Options::default() };
        assert_eq!(names(&filter), ["host tests", "system tests"]);
    }

    #[test]
    fn a_command_that_fails_without_tests_counts_as_one_failure() {
        let failed = carry_out(&step("x", "false", ""));
        assert_eq!(failed, Counts { failed: 1, ..Counts::default() });
        let passed = carry_out(&step("x", "true", ""));
        assert_eq!(passed, Counts { passed: 1, ..Counts::default() });
        assert_eq!(carry_out(&step("x", "no-such-program-here", "")).failed, 1);
    }
}
