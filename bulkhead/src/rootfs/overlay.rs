//! The files that make a guest out of plain Debian: a login on the console, no service that
//! a virtual machine without devices has no use for, nothing of the host that built it.
//! Boot time decides here: each process at boot costs a guest on TCG about a tenth of a
//! second, so what is not needed to log in is masked, and comes back with
//! `systemctl unmask`.

use std::io::{self, Write};

/// One name in the root file system.
#[derive(Clone, Copy, Debug)]
enum Entry {
    File { mode: u32, text: &'static str },
    Link(&'static str),
}

use Entry::{File, Link};

const fn text(text: &'static str) -> Entry {
    File { mode: 0o644, text }
}

/// All times in the overlay: the day of Debian 12's release.
const MODIFIED: u64 = 1_686_355_200;

/// systemd's own are shut down by way of logind, which is not there; they would do the
/// same after a complaint about that.
const END: &str = "#!/bin/sh\n\
    # Ends the system without asking logind, which does not run here.\n\
    name=${0##*/}\n\
    [ $# -eq 0 ] || exec \"/usr/sbin/$name\" \"$@\"\n\
    exec systemctl --no-block --job-mode=replace-irreversibly start \"$name.target\"\n";

const FILES: &[(&str, Entry)] = &[
    ("etc/hostname", text("debian\n")),
    ("etc/hosts", text("127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost\n")),
    ("etc/resolv.conf", text("")),
    // Empty, so that each guest gets one of its own at its first boot.
    ("etc/machine-id", File { mode: 0o444, text: "" }),
    ("etc/fstab", text("/dev/xvda / ext4 defaults 0 1\n")),
    ("usr/local/sbin/poweroff", File { mode: 0o755, text: END }),
    ("usr/local/sbin/reboot", File { mode: 0o755, text: END }),
    (
        "etc/systemd/system/serial-getty@hvc0.service.d/autologin.conf",
        text(
            "[Service]\nExecStart=\n\
             ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - xterm-256color\n",
        ),
    ),
    // Of the hundreds of devices, those that somebody waits for or looks up.
    (
        "etc/systemd/system/systemd-udev-trigger.service.d/few.conf",
        text(
            "[Service]\nExecStart=\n\
             ExecStart=-udevadm trigger --action=add --subsystem-match=block --subsystem-match=net\n\
             ExecStart=-udevadm trigger --action=add --subsystem-match=tty --sysname-match=hvc*\n",
        ),
    ),
    (
        "etc/systemd/system/systemd-remount-fs.service.d/needed.conf",
        text("[Unit]\nConditionPathIsReadWrite=!/\n"),
    ),
    (
        "etc/systemd/system/systemd-networkd.service.d/needed.conf",
        text("[Unit]\nConditionPathExistsGlob=/sys/class/net/e*\n"),
    ),
    (
        "etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
        Link("/lib/systemd/system/systemd-networkd.service"),
    ),
    ("etc/systemd/network/80-guest.network", text("[Match]\nName=e*\n[Network]\nDHCP=yes\n")),
    (
        "etc/systemd/journald.conf.d/small.conf",
        text("[Journal]\nStorage=volatile\nRuntimeMaxUse=8M\nAudit=no\n"),
    ),
    (
        "etc/systemd/system.conf.d/quick.conf",
        text("[Manager]\nDefaultTimeoutStopSec=10s\nDefaultTimeoutStartSec=60s\n"),
    ),
];

/// Units that a guest has no use for.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty-static.service",
    "getty@tty1.service",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "modprobe@.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-initctl.socket",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-machine-id-commit.service",
    "systemd-modules-load.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-repart.service",
    "systemd-sysusers.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-update-done.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
];

/// Programs that make units at boot, for things that a guest does not have.
const NO_GENERATORS: &[&str] = &[
    "systemd-cryptsetup-generator",
    "systemd-debug-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-run-generator",
    "systemd-system-update-generator",
    "systemd-veritysetup-generator",
];

/// Everything, as an archive whose members belong to root; the same bytes each time.
///
/// # Errors
/// None while memory lasts: the names are short and the texts are here.
pub(super) fn archive() -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut folders = Vec::new();
    for (path, entry) in entries() {
        // From the root to the file's own.
        for (at, _) in path.match_indices('/') {
            let folder = path[..=at].to_owned();
            if !folders.contains(&folder) {
                add(&mut tar, &folder, None)?;
                folders.push(folder);
            }
        }
        add(&mut tar, &path, Some(entry))?;
    }
    tar.into_inner()
}

fn entries() -> impl Iterator<Item = (String, Entry)> {
    let masked = MASKED.iter().map(|unit| format!("etc/systemd/system/{unit}"));
    let generators = NO_GENERATORS.iter().map(|g| format!("etc/systemd/system-generators/{g}"));
    let nothing = masked.chain(generators).map(|path| (path, Link("/dev/null")));
    FILES.iter().map(|(path, entry)| ((*path).to_owned(), *entry)).chain(nothing)
}

/// Adds a file, a link, or a folder (`None`).
fn add(tar: &mut tar::Builder<impl Write>, path: &str, entry: Option<Entry>) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MODIFIED);
    header.set_size(0);
    header.set_mode(0o755);
    match entry {
        None => {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, path, io::empty())
        }
        Some(File { mode, text }) => {
            header.set_mode(mode);
            header.set_size(text.len() as u64);
            tar.append_data(&mut header, path, text.as_bytes())
        }
        Some(Link(target)) => {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, path, target)
        }
    }
}

/// What a change of shows that the overlay has changed.
pub(super) fn digest_input() -> Vec<u8> {
    archive().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        collections::{BTreeMap, BTreeSet},
        path::PathBuf,
    };

    #[test]
    fn all_belongs_to_root_and_folders_come_before_what_is_in_them() {
        let bytes = archive().expect("packs");
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut seen = BTreeSet::from([PathBuf::new()]);
        for entry in archive.entries().expect("reads") {
            let entry = entry.expect("an entry");
            let path = entry.path().expect("a path").into_owned();
            let header = entry.header();
            assert_eq!((header.uid().expect("uid"), header.gid().expect("gid")), (0, 0));
            assert!(seen.contains(path.parent().expect("a parent")), "{}", path.display());
            assert!(seen.insert(path.clone()), "{} comes twice", path.display());
        }
        assert!(seen.len() > FILES.len() + MASKED.len());
    }

    #[test]
    fn masked_units_are_links_to_nothing_and_programs_may_be_run() {
        let bytes = archive().expect("packs");
        let mut archive = tar::Archive::new(&bytes[..]);
        let all: BTreeMap<_, _> = archive
            .entries()
            .expect("reads")
            .map(|e| e.expect("an entry"))
            .map(|e| {
                let link = e.link_name().expect("reads").map(std::borrow::Cow::into_owned);
                let path = e.path().expect("a path").into_owned();
                (path, (link, e.header().mode().expect("a mode")))
            })
            .collect();
        let null = Some(PathBuf::from("/dev/null"));
        assert_eq!(all[&PathBuf::from("etc/systemd/system/fstrim.timer")].0, null);
        assert_eq!(all[&PathBuf::from("usr/local/sbin/poweroff")].1, 0o755);
        assert_eq!(all[&PathBuf::from("etc/machine-id")].1, 0o444);
    }
}
