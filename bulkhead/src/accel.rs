//! Chooses what executes the machine: KVM only where it has been shown to work.

use crate::{
    qemu, session,
    setup::{Accel, SetupError},
};
use std::{fs, path::Path, time::Duration};

/// The probe boots the core without an archive, which takes well below a second.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// Whether to use KVM. `--icount` needs TCG.
///
/// # Errors
/// If KVM is asked for and does not work.
pub fn use_kvm(asked: Accel, icount: bool, core: &Path) -> Result<bool, SetupError> {
    match (asked, icount) {
        (Accel::Tcg, _) | (Accel::Auto, true) => Ok(false),
        (Accel::Kvm, true) => Err(SetupError::plain("KVM cannot count instructions")
            .help("leave out `--icount`, or use `--accel tcg`")),
        (Accel::Auto, false) => Ok(probe(core)),
        (Accel::Kvm, false) if probe(core) => Ok(true),
        (Accel::Kvm, false) => Err(SetupError::plain("KVM does not work on this host")
            .help("use `--accel tcg`; KVM needs /dev/kvm, the right to open it, and a processor that QEMU can use")),
    }
}

/// Probes once per boot of the host and build of the core.
fn probe(core: &Path) -> bool {
    let Some((file, key)) = cache(core) else {
        return qemu::kvm_works(core, PROBE_LIMIT);
    };
    let known = fs::read_to_string(&file).unwrap_or_default();
    match known.strip_prefix(&key) {
        Some("works") => return true,
        Some("fails") => return false,
        _ => {}
    }
    let works = qemu::kvm_works(core, PROBE_LIMIT);
    let _ = fs::write(file, format!("{key}{}", if works { "works" } else { "fails" }));
    works
}

fn cache(core: &Path) -> Option<(std::path::PathBuf, String)> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let built = fs::metadata(core).ok()?.modified().ok()?;
    let since = built.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((
        session::base().ok()?.join("kvm-probe"),
        format!("{} {} ", boot.trim(), since.as_nanos()),
    ))
}
