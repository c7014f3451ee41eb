//! Waits for the root disk and mounts it.

use crate::{
    cmdline::{Cmdline, Wait},
    device::{self, Device, Wanted},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    io::Errno,
    mount::{MountFlags, mount},
    net::{
        AddressFamily, SocketFlags, SocketType, bind,
        netlink::{KOBJECT_UEVENT, SocketAddrNetlink},
        socket_with,
    },
};
use std::{
    ffi::CString,
    thread,
    time::{Duration, Instant},
};

/// Longest time between two looks, for disks that a lost event announced.
const LOOK: Duration = Duration::from_secs(1);

/// Waits until the disk is there: the path of its node.
///
/// # Errors
/// What to tell the user when its time is up.
pub fn wait_for(line: &Cmdline) -> Result<String, String> {
    let Some(root) = &line.root else {
        return Err("the command line has no root=; add root=/dev/xvda".into());
    };
    let wanted = Wanted::parse(root)?;
    thread::sleep(line.delay);
    // Before the first look, so that nothing appears in between unseen.
    let events = Events::open();
    let began = Instant::now();
    loop {
        let devices = Device::all();
        if let Some(path) = wanted.find(&devices) {
            return Ok(path);
        }
        let left = match line.wait {
            Wait::Forever => LOOK,
            Wait::AtMost(limit) => limit.saturating_sub(began.elapsed()),
        };
        if left.is_zero() {
            return Err(absent(root, began.elapsed(), &devices));
        }
        events.wait(left.min(LOOK));
    }
}

fn absent(root: &str, waited: Duration, devices: &[Device]) -> String {
    format!(
        "the root disk {root} did not appear within {} s.\n\
         Block devices that are there: {}.\n\
         Check that the guest has the disk in its set-up (disks = [...]; the first is xvda),\n\
         that its driver domain runs, and that root= names it.",
        waited.as_secs(),
        device::describe(devices)
    )
}

/// The kernel's announcements of devices; without them, time alone.
struct Events(Option<OwnedFd>);

impl Events {
    fn open() -> Self {
        let opened = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(KOBJECT_UEVENT),
        );
        // Group 1 is what the kernel itself says.
        Self(opened.ok().filter(|fd| bind(fd, &SocketAddrNetlink::new(0, 1)).is_ok()))
    }

    /// Returns at the next event, or after `limit`.
    fn wait(&self, limit: Duration) {
        let Some(fd) = &self.0 else {
            return thread::sleep(limit);
        };
        let limit = Timespec::try_from(limit).ok();
        let _ = poll(&mut [PollFd::new(fd, PollFlags::IN)], limit.as_ref());
        // What it says does not matter: the next look tells.
        let mut bytes = [0; 4096];
        while rustix::net::recv(fd, &mut bytes[..], rustix::net::RecvFlags::empty()).is_ok() {}
    }
}

/// Mounts the disk as the command line says, with the first type that knows it.
///
/// # Errors
/// What to tell the user.
pub fn mount_at(path: &str, line: &Cmdline, target: &str) -> Result<(), String> {
    let flags = if line.is_read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let options = CString::new(line.flags.as_str()).unwrap_or_default();
    let types = match line.types.is_empty() {
        false => line.types.clone(),
        true => device::kernel_types().unwrap_or_default(),
    };
    for kind in &types {
        match mount(path, target, kind.as_str(), flags, Some(options.as_c_str())) {
            Ok(()) => return Ok(()),
            // Not of this type, or the kernel has no such type.
            Err(Errno::INVAL | Errno::NODEV) => {}
            Err(Errno::ROFS | Errno::ACCESS) if !line.is_read_only => {
                return Err(format!(
                    "{path} cannot be written; give ro on the command line, or let the set-up's disk be written"
                ));
            }
            Err(e) => return Err(format!("cannot mount {path} as {kind}: {e}")),
        }
    }
    Err(format!(
        "{path} holds no file system that this kernel knows (tried: {}).\n\
         Check that the disk's image is a root file system; for other types add modules to the kernel.",
        types.join(", ")
    ))
}
