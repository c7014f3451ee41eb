//! The Debian root file system that the tool builds, looked at from outside: it is a sound
//! ext4, and whom its files belong to and what may be done with them is as Debian says,
//! whoever has built it. Needs the network the first time.

use bulkhead::{distro::Job, needs::find_program, rootfs};
use std::{path::Path, process::Command};

/// What a program of e2fsprogs says of an image.
fn says(program: &str, request: &[&str], image: &Path) -> String {
    let program = find_program(program).expect("e2fsprogs is installed");
    let done = Command::new(program).args(request).arg(image).output().expect("runs");
    assert!(done.status.success(), "{done:?}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Mode and owner of a file, as debugfs words them, like `0640 0 42`.
fn owned(image: &Path, path: &str) -> String {
    let stat = says("debugfs", &["-R", &format!("stat {path}")], image);
    let after = |word: &str| {
        let rest = stat.split(word).nth(1).unwrap_or_else(|| panic!("{path}: no {word} in {stat}"));
        rest.split_whitespace().next().unwrap_or_default().to_owned()
    };
    format!("{} {} {}", after("Mode:"), after("User:"), after("Group:"))
}

#[test]
fn debians_root_file_system_is_sound_and_belongs_to_whom_it_should() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("root.img");
    rootfs::make(&image, rootfs::LEAST, &Job::unwatched()).expect("made");
    says("e2fsck", &["-fn"], &image);
    assert_eq!(owned(&image, "/"), "0755 0 0");
    assert_eq!(owned(&image, "/usr/bin/su"), "04755 0 0");
    assert_eq!(owned(&image, "/usr/sbin/unix_chkpwd"), "02755 0 42");
    assert_eq!(owned(&image, "/etc/shadow"), "0640 0 42");
    assert_eq!(owned(&image, "/tmp"), "01777 0 0");
    assert_eq!(owned(&image, "/root"), "0700 0 0");
    assert_eq!(owned(&image, "/usr/local/sbin/poweroff"), "0755 0 0");
    let console = says("debugfs", &["-R", "stat /dev/console"], &image);
    assert!(console.contains("Device major/minor number: 05:01"), "{console}");
    let status = says("debugfs", &["-R", "cat /var/lib/dpkg/status"], &image);
    for package in ["apt", "bash", "coreutils", "fio", "gcc", "sqlite3", "systemd", "util-linux"] {
        let name = format!("Package: {package}");
        let mut about = status.split("\n\n").filter(|p| p.lines().next() == Some(&name));
        let about = about.next().unwrap_or_else(|| panic!("{package} is missing"));
        assert!(about.contains("\nStatus: install ok installed\n"), "{about}");
    }
    // Nothing of the host.
    let hostname = says("debugfs", &["-R", "cat /etc/hostname"], &image);
    assert_eq!(hostname, "debian\n");
    assert_eq!(says("debugfs", &["-R", "cat /etc/resolv.conf"], &image), "");
    let shadow = says("debugfs", &["-R", "cat /etc/shadow"], &image);
    assert!(shadow.lines().any(|l| l.starts_with("root::")), "root needs no password: {shadow}");
    let used = std::os::unix::fs::MetadataExt::blocks(&image.metadata().expect("there")) * 512;
    assert!(used < 450 << 20, "the image takes {} MiB", used >> 20);
}
