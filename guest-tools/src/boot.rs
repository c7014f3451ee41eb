//! The way from the initramfs to the guest's own first process.

use crate::{cmdline::Cmdline, modules, root};
use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, mount_move, unmount},
    process::{chdir, chroot},
};
use std::{
    convert::Infallible,
    ffi::OsString,
    fs::{self, File},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::Path,
    process::Command,
};

/// Where the root disk is mounted until it becomes `/`.
const TARGET: &str = "/root";
/// A program of the initramfs that goes on beside the guest's own, if it is there.
const AGENT: &str = "/agent";
/// What the kernel tries when it is not told.
const USUAL: [&str; 4] = ["/sbin/init", "/etc/init", "/bin/init", "/bin/sh"];
/// File systems that move to the new root.
const MOVED: [(&str, &str); 3] = [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")];

/// Boots the guest: does not return if all goes well.
///
/// # Errors
/// What to tell the user. There is no way on from there.
pub fn boot(arguments: &[OsString]) -> Result<Infallible, String> {
    mount_kernels_own()?;
    let text = fs::read_to_string("/proc/cmdline").map_err(|e| format!("/proc/cmdline: {e}"))?;
    let line = Cmdline::parse(&text);
    for refused in modules::load_all() {
        eprintln!("bulkhead: {refused}");
    }
    let disk = root::wait_for(&line)?;
    make_folder(TARGET)?;
    root::mount_at(&disk, &line, TARGET)?;
    let agent = File::open(AGENT).ok();
    switch()?;
    if let Some(agent) = &agent {
        start_agent(agent);
    }
    // The kernel marks its descriptors to be closed; those of this process are.
    Err(run(&line, &disk, arguments))
}

fn make_folder(path: &str) -> Result<(), String> {
    fs::create_dir_all(path).map_err(|e| format!("cannot make {path}: {e}"))
}

fn mount_kernels_own() -> Result<(), String> {
    for (kind, path) in MOVED {
        make_folder(path)?;
        match mount(kind, path, kind, MountFlags::NOSUID, None) {
            // A kernel can mount devtmpfs by itself.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(e) => return Err(format!("cannot mount {path}: {e}")),
        }
    }
    Ok(())
}

/// Makes the root disk `/`, with the kernel's own file systems in it, and frees what the
/// initramfs held.
fn switch() -> Result<(), String> {
    for (_, path) in MOVED {
        let to = format!("{TARGET}{path}");
        // A root without the folder does without the file system.
        if mount_move(path, to.as_str()).is_err() {
            let _ = unmount(path, UnmountFlags::DETACH);
        }
    }
    for used in [modules::FOLDER, AGENT, "/init"] {
        let path = Path::new(used);
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
    let moved = chdir(TARGET)
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| chroot("."))
        .and_then(|()| chdir("/"));
    moved.map_err(|e| format!("cannot make the root disk the root: {e}"))
}

/// Starts the agent from its open file: its name is gone by now. A leading `@` in its own
/// name keeps systemd from ending it early at shutdown.
fn start_agent(file: &File) {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    if let Err(e) = Command::new(path).arg0("@bulkhead-agent").spawn() {
        eprintln!("bulkhead: the agent did not start: {e}");
    }
}

/// Becomes the guest's own first process. Returns what went wrong.
fn run(line: &Cmdline, disk: &str, arguments: &[OsString]) -> String {
    let tried: Vec<_> = match &line.init {
        Some(init) => vec![init.as_str()],
        None => USUAL.to_vec(),
    };
    let mut why = Vec::new();
    for program in tried {
        let error = Command::new(program).args(arguments).exec();
        why.push(format!("{program}: {error}"));
    }
    format!(
        "the root disk {disk} has no first process to run ({}).\n\
         Check that its image is a whole root file system, or name a program with init=.",
        why.join("; ")
    )
}
