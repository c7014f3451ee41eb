//! Debian's Xen 4.17 in the same QEMU, to hear what it says to the same guest.

use bulkhead::artifacts::workspace;
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const PACKAGE: &str = "xen-hypervisor-4.17-amd64";

/// The hypervisor as QEMU takes it: fetched with apt and unpacked below `target`, once.
///
/// # Errors
/// What failed, in words: there may be no apt, or no network.
pub fn kernel() -> Result<PathBuf, String> {
    let folder = workspace().join("target/xen");
    let kernel = folder.join("xen");
    if kernel.is_file() {
        return Ok(kernel);
    }
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let run = |line: &str| {
        let done = Command::new("sh").args(["-ec", line]).current_dir(&folder).output();
        let done = done.map_err(|e| format!("{line}: {e}"))?;
        let told = || format!("{line}: {}", String::from_utf8_lossy(&done.stderr));
        done.status.success().then_some(()).ok_or_else(told)
    };
    run(&format!(
        "apt-get download -q {PACKAGE} || (apt-get update -q && apt-get download -q {PACKAGE})"
    ))?;
    run("dpkg -x xen-hypervisor-*.deb .")?;
    run("gzip -dc boot/xen-4.17-amd64.gz > xen.part && mv xen.part xen")?;
    Ok(kernel)
}

/// Boots `guest` as Dom0 of Xen; gives what came out of the serial port up to the line
/// that starts with `last`, or until the limit.
///
/// # Errors
/// If QEMU cannot be started.
pub fn boot(kernel: &Path, guest: &Path, last: &str, limit: Duration) -> Result<String, String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let log = folder.path().join("serial");
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-M", "q35", "-cpu", "max,-smap", "-m", "512"])
        .args(["-display", "none", "-nodefaults", "-no-reboot", "-serial"])
        .arg(format!("file:{}", log.display()))
        .arg("-kernel")
        .arg(kernel)
        .args(["-append", "dom0=pv console=com1", "-initrd"])
        .arg(guest)
        .stdin(Stdio::null())
        .spawn()
        .map_err(|e| format!("qemu-system-x86_64: {e}"))?;
    let deadline = Instant::now() + limit;
    let mut text = String::new();
    while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
        // Read anew each time: the log is short.
        let mut bytes = Vec::new();
        let _ = File::open(&log).and_then(|mut file| file.read_to_end(&mut bytes));
        text = String::from_utf8_lossy(&bytes).replace('\r', "");
        if text.lines().any(|line| line.starts_with(last)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let _ = child.kill();
    let _ = child.wait();
    Ok(text)
}
