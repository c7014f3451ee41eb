//! The machine as a process: QEMU's arguments, its start, and what its exit means.

use crate::{
    needs,
    plan::Drive,
    setup::{Interrupt, Size},
};
use bulkhead_abi::archive::{EXIT_CORE_FAULT, EXIT_DOM0_DIED, EXIT_OK, EXIT_PORT};
use serde_json::json;
use std::{
    ffi::OsString,
    fs::File,
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

/// What QEMU is started with.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    pub core: &'a Path,
    pub archive: &'a Path,
    pub memory: Size,
    pub kvm: bool,
    /// One instruction is one nanosecond of the machine's time (TCG only).
    pub icount: bool,
    pub drives: &'a [Drive],
    /// File that gets what the core prints.
    pub debug_log: &'a Path,
    /// Socket that the tool listens on; Dom0's control link. None leaves it unconnected.
    pub link: Option<&'a Path>,
    /// File with the memory of the link's fast lane, if it has one.
    pub lane: Option<&'a Path>,
}

/// PCI device number of the fast lane.
const LANE_SLOT: u32 = 3;
/// The fast lane as the manifest names it.
pub const LANE_SBDF: u32 = LANE_SLOT << 3;

impl Options<'_> {
    /// The command line, without the program.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        let mut add = |flag: &str, value: OsString| {
            arguments.push(flag.into());
            if !value.is_empty() {
                arguments.push(value);
            }
        };
        add("-M", "q35".into());
        add("-accel", if self.kvm { "kvm" } else { "tcg" }.into());
        // With SMAP, TCG refuses the IRETQ of guest kernels in ring 3.
        add("-cpu", "max,-smap".into());
        add("-smp", "1".into());
        add("-m", format!("{}M", self.memory.mib()).into());
        for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
            add(flag, OsString::new());
        }
        add("-display", "none".into());
        // Otherwise the firmware drives every disk to see whether it can boot from it, and
        // the memory it takes for that may overlap the archive.
        add("-boot", "strict=on".into());
        add("-kernel", self.core.into());
        add("-initrd", self.archive.into());
        add("-chardev", chardev("file,id=debug", self.debug_log));
        add("-serial", "chardev:debug".into());
        let unconnected = || OsString::from("null,id=link");
        let link = self.link.map(|path| chardev("socket,id=link", path));
        add("-chardev", link.unwrap_or_else(unconnected));
        add("-serial", "chardev:link".into());
        add("-device", exit_device().into());
        if let Some(lane) = self.lane {
            let size = bulkhead_link::lane::BYTES;
            let object = format!("memory-backend-file,id=lane,share=on,size={size}");
            add("-object", with_path(&object, "mem-path", lane));
            add(
                "-device",
                format!("ivshmem-plain,memdev=lane,bus=pcie.0,addr={LANE_SLOT:#x}").into(),
            );
        }
        if self.icount && !self.kvm {
            add("-icount", "shift=0,sleep=off".into());
        }
        for drive in self.drives {
            add("-blockdev", blockdev(drive).into());
            add("-device", device(drive).into());
        }
        arguments
    }

    /// Starts QEMU; its messages go to the file `errors`.
    ///
    /// It is in a process group of its own, so that Ctrl-C reaches the tool only, and
    /// dies with the thread that started it. Call this from a thread that stays.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn start(&self, errors: &Path) -> io::Result<Child> {
        let mut command = bound_to_us("qemu-system-x86_64");
        command
            .args(self.arguments())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(errors)?)
            .spawn()
    }
}

fn exit_device() -> String {
    format!("isa-debug-exit,iobase={EXIT_PORT:#x},iosize=0x4")
}

/// A program that the kernel kills when this process ends, however it ends.
/// (`setpriv` of util-linux sets that and becomes the program.)
fn bound_to_us(program: &str) -> Command {
    let Some(setpriv) = needs::find_program("setpriv") else {
        return Command::new(program);
    };
    let mut command = Command::new(setpriv);
    command.args(["--pdeathsig", "KILL", program]);
    command
}

fn chardev(kind: &str, path: &Path) -> OsString {
    with_path(kind, "path", path)
}

/// In a path, QEMU takes a doubled comma for one.
fn with_path(rest: &str, key: &str, path: &Path) -> OsString {
    let path = path.to_string_lossy().replace(',', ",,");
    format!("{rest},{key}={path}").into()
}

fn blockdev(drive: &Drive) -> String {
    let file = json!({
        "driver": if is_block_device(&drive.image) { "host_device" } else { "file" },
        "filename": drive.image,
        "locking": "auto",
        "discard": "unmap",
    });
    json!({
        "driver": "raw",
        "node-name": format!("disk{}", drive.slot),
        "read-only": drive.read_only,
        "discard": "unmap",
        "cache": { "no-flush": drive.is_scratch },
        "file": file,
    })
    .to_string()
}

fn is_block_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
}

fn device(drive: &Drive) -> String {
    // A virtio serial number has 20 bytes.
    let serial: String = drive.name.chars().take(20).collect();
    // Without MSI-X vectors it has its pin only.
    let interrupt = match drive.interrupt {
        Interrupt::Message => "",
        Interrupt::Pin => ",vectors=0",
    };
    format!(
        "virtio-blk-pci,drive=disk{slot},bus=pcie.0,addr={slot:#x},serial={serial},disable-legacy=on,write-cache=on,rerror=report,werror=report{interrupt}",
        slot = drive.slot
    )
}

/// What the end of QEMU tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The core ended the machine because Dom0 asked for it.
    Properly,
    /// The core faulted and left its last words.
    CoreFault,
    /// Dom0 crashed.
    Dom0Died,
    /// The machine reset or QEMU left by itself; nobody asked for it.
    Unasked(Option<i32>),
    /// QEMU refused to start: its own error, status 1.
    Refused,
}

impl Ended {
    pub fn from_status(status: ExitStatus) -> Self {
        let code = |value: u32| Some((value << 1 | 1) as i32);
        match status.code() {
            found if found == code(EXIT_OK) => Self::Properly,
            found if found == code(EXIT_CORE_FAULT) => Self::CoreFault,
            found if found == code(EXIT_DOM0_DIED) => Self::Dom0Died,
            Some(1) => Self::Refused,
            other => Self::Unasked(other),
        }
    }
}

/// Whether KVM can run this core: /dev/kvm may open and then hang the guest, so the core
/// is booted without an archive. It has to end the machine by itself within the limit.
pub fn kvm_works(core: &Path, limit: std::time::Duration) -> bool {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return false;
    }
    let started = bound_to_us("qemu-system-x86_64")
        .args(["-M", "q35", "-accel", "kvm", "-cpu", "max,-smap", "-m", "64M"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-device", &exit_device(), "-kernel"])
        .arg(core)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = started else { return false };
    let status = wait_until(&mut child, std::time::Instant::now() + limit);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    status.is_some_and(|s| Ended::from_status(s) == Ended::CoreFault)
}

/// Waits for a child until a deadline.
pub fn wait_until(child: &mut Child, deadline: std::time::Instant) -> Option<ExitStatus> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if std::time::Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn the_command_line_survives_commas_and_quotes_in_paths() {
        let drives = [Drive {
            name: "a-name-longer-than-twenty-bytes".into(),
            image: "/tmp/a,b \"c\".img".into(),
            read_only: true,
            interrupt: Interrupt::Pin,
            is_scratch: true,
            slot: 4,
        }];
        let options = Options {
            core: Path::new("/core"),
            archive: Path::new("/archive"),
            memory: Size::from_mib(256),
            kvm: false,
            icount: true,
            drives: &drives,
            debug_log: Path::new("/run/a,b/core.log"),
            link: Some(Path::new("/run/link")),
            lane: Some(Path::new("/run/a,b/lane")),
        };
        let line: Vec<_> =
            options.arguments().iter().map(|a| a.to_string_lossy().into_owned()).collect();
        let after = |flag: &str| &line[line.iter().position(|a| a == flag).expect(flag) + 1];
        assert_eq!(after("-chardev"), "file,id=debug,path=/run/a,,b/core.log");
        let block: serde_json::Value = serde_json::from_str(after("-blockdev")).expect("JSON");
        assert_eq!(block["file"]["filename"], "/tmp/a,b \"c\".img");
        assert_eq!(block["read-only"], true);
        assert_eq!(block["cache"]["no-flush"], true);
        assert_eq!(after("-icount"), "shift=0,sleep=off");
        assert!(after("-object").ends_with(",mem-path=/run/a,,b/lane"), "{line:?}");
        let device = line.iter().find(|a| a.starts_with("virtio-blk-pci,")).expect("a disk");
        assert!(device.contains("addr=0x4,serial=a-name-longer-than-t,"), "{device}");
        assert!(device.ends_with(",vectors=0"), "{device}");
    }

    #[test]
    fn exit_codes_of_the_core_are_told_from_qemus_own() {
        let ended = |code: i32| Ended::from_status(ExitStatus::from_raw(code << 8));
        assert_eq!(ended(0x21), Ended::Properly);
        assert_eq!(ended(0x43), Ended::CoreFault);
        assert_eq!(ended(0x45), Ended::Dom0Died);
        assert_eq!(ended(0), Ended::Unasked(Some(0)));
        assert_eq!(ended(1), Ended::Refused);
        assert_eq!(Ended::from_status(ExitStatus::from_raw(9)), Ended::Unasked(None));
    }
}
