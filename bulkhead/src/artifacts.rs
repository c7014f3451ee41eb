//! Builds the core and the domains with Cargo and says where the files are.

use crate::{
    builtin::Builtin,
    needs::{GUEST_TARGET, TARGET},
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The files of what was built, by the name of the binary.
#[derive(Clone, Debug, Default)]
pub struct Built {
    files: BTreeMap<String, PathBuf>,
}

impl Built {
    /// The ELF file of a program.
    pub fn file(&self, program: &Builtin) -> Option<&Path> {
        self.named(program.binary)
    }

    /// These and others.
    #[must_use]
    pub fn with(mut self, others: Self) -> Self {
        self.files.extend(others.files);
        self
    }

    /// A binary by its name.
    pub fn named(&self, binary: &str) -> Option<&Path> {
        self.files.get(binary).map(PathBuf::as_path)
    }
}

/// The first process of the initramfs that the tool makes.
pub const GUEST_INIT: &str = "init";
/// What goes on beside the guest's own programs, once there is such a program.
pub const GUEST_AGENT: &str = "agent";

/// The root of the workspace this tool was built from.
pub fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Builds programs for the machine. Those that do wrong on order have a call of Cargo of
/// their own: in one call a package has the same features for all of its programs.
///
/// With `show`, Cargo's own progress goes to the standard error.
///
/// # Errors
/// What Cargo printed.
pub fn build(programs: &[&Builtin], show: bool) -> Result<Built, String> {
    let mut built = Built::default();
    for has_faults in [false, true] {
        let some: Vec<_> =
            programs.iter().filter(|p| p.has_faults == has_faults).copied().collect();
        if !some.is_empty() {
            let these = cargo(&arguments(&some, has_faults), show)
                .map_err(|e| format!("building the core and the domains failed\n{e}"))?;
            built = built.with(these);
        }
    }
    match programs.iter().find(|p| built.file(p).is_none()) {
        Some(missing) => Err(format!("cargo built no binary `{}`", missing.binary)),
        None => Ok(built),
    }
}

/// Builds the programs that go into the initramfs of Linux guests.
///
/// # Errors
/// See [`build`].
pub fn build_guest_tools(show: bool) -> Result<Built, String> {
    let line = format!(
        "build --profile guest --target {GUEST_TARGET} --package guest-tools --bins {MESSAGES}"
    );
    let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
    let built = cargo(&words, show)
        .map_err(|e| format!("building the programs for Linux guests failed\n{e}"))?;
    match built.named(GUEST_INIT) {
        Some(_) => Ok(built),
        None => Err(format!("cargo built no binary `{GUEST_INIT}`")),
    }
}

/// Has Cargo tell what it made, and errors as people read them.
const MESSAGES: &str = "--message-format=json-render-diagnostics";

fn cargo(arguments: &[String], show: bool) -> Result<Built, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let stderr = if show { Stdio::inherit() } else { Stdio::piped() };
    let done = Command::new(cargo)
        .args(arguments)
        .current_dir(workspace())
        .stderr(stderr)
        .stdout(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(|e| format!("cannot run cargo: {e}"))?;
    match done.status.success() {
        true => Ok(read(&done.stdout)),
        false => Err(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
    }
}

fn arguments(programs: &[&Builtin], has_faults: bool) -> Vec<String> {
    let text = ["build", "--release", "--target", TARGET, MESSAGES];
    let mut arguments: Vec<_> = text.iter().map(|&a| a.to_owned()).collect();
    let packages: BTreeSet<_> = programs.iter().map(|p| p.package).collect();
    for package in &packages {
        arguments.extend(["--package".to_owned(), (*package).to_owned()]);
    }
    for program in programs {
        arguments.extend(["--bin".to_owned(), program.binary.to_owned()]);
    }
    let names: &[&str] = if has_faults { &["machine", "faults"] } else { &["machine"] };
    let of = |package: &&str| names.iter().map(|n| format!("{package}/{n}")).collect::<Vec<_>>();
    let features: Vec<_> = packages.iter().flat_map(of).collect();
    arguments.extend(["--features".to_owned(), features.join(",")]);
    arguments
}

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Takes the paths of executables out of Cargo's messages.
fn read(messages: &[u8]) -> Built {
    let files = messages
        .split(|&b| b == b'\n')
        .filter_map(|line| serde_json::from_slice::<Message>(line).ok())
        .filter_map(|message| Some((message.target?.name, message.executable?)))
        .collect();
    Built { files }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin::{CORE, DOM0};

    #[test]
    fn asks_cargo_for_each_package_once_with_its_machine_feature() {
        let line = arguments(&[&CORE, &DOM0], false).join(" ");
        assert!(
            line.contains(
                "--package bulkhead-kernel --package dom0 --bin bulkhead-core --bin dom0"
            )
        );
        assert!(line.ends_with("--features bulkhead-kernel/machine,dom0/machine"));
    }

    #[test]
    fn what_does_wrong_on_order_is_built_apart_with_its_feature() {
        let program = crate::builtin::find("disk-faults").expect("a builtin");
        let line = arguments(&[program], program.has_faults).join(" ");
        assert!(
            line.ends_with("--features drivers-domain/machine,drivers-domain/faults"),
            "{line}"
        );
    }

    #[test]
    fn finds_executables_among_cargos_messages() {
        let text = br#"{"reason":"compiler-artifact","target":{"name":"dom0"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"dom0"},"executable":"/t/dom0"}
not json
{"reason":"build-finished","success":true}"#;
        assert_eq!(read(text).file(&DOM0), Some(Path::new("/t/dom0")));
        assert_eq!(read(text).file(&CORE), None);
    }
}
