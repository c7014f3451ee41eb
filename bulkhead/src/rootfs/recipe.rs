//! What is in the Debian root file system: its packages, what of them is left out, and the
//! name under which the result is kept. Everything here is data; [`super::overlay`] has the
//! files that are laid over the packages.

use super::overlay;
use crate::setup::Size;
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Debian 12.
pub(super) const SUITE: &str = "bookworm";

/// Besides what every Debian has (Essential: yes, and apt): the first process and what it
/// needs, and what people come for.
pub(super) const PACKAGES: &[&str] = &[
    // With it the layout of /usr needs no conversion, and perl stays away.
    "usr-is-merged",
    "systemd-sysv",
    "udev",
    "login",
    "util-linux",
    "procps",
    "kmod",
    "iproute2",
    "e2fsprogs",
    "less",
    "fio",
    "sqlite3",
    "gcc",
    "libc6-dev",
    "make",
];

/// About how many packages that comes to, with those they depend on; only the progress
/// that is shown depends on it.
pub(super) const ABOUT_PACKAGES: u64 = 192;

/// Options of dpkg: what of the packages is left out, now and later, since a guest's disk
/// is small. Without `lto1`, gcc has no `-flto`.
pub(super) const LEFT_OUT: &[&str] = &[
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/lib/udev/hwdb.d/*",
    "path-exclude=/usr/lib/gcc/*/*/lto1",
    "path-exclude=/usr/bin/*-lto-dump-*",
];

/// Size of the template's file system, and so of the smallest image. About 360 MiB of it
/// are used, and the rest is a hole.
pub const LEAST: Size = Size::from_mib(1024);

/// Fixed, so that a set-up can name the file system by it on every host.
pub(super) const UUID: &str = "b01c4ead-0000-4000-8000-000000000002";

/// Options of mke2fs: room for many small files, nothing kept back for root, and nothing
/// left for the guest to initialise.
pub(super) const MKE2FS: &[&str] = &[
    "-q",
    "-F",
    "-t",
    "ext4",
    "-b",
    "4096",
    "-i",
    "8192",
    "-m",
    "0",
    "-L",
    "debian",
    "-U",
    UUID,
    "-E",
    "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,hash_seed=b01c4ead-0000-4000-8000-000000000002",
];

/// The template's file name: another one as soon as the recipe is another.
pub(super) fn name() -> String {
    let mut hash = Sha256::new();
    for text in [&[SUITE][..], PACKAGES, LEFT_OUT, MKE2FS].concat() {
        hash.update(text);
        hash.update([0]);
    }
    hash.update(LEAST.bytes().to_le_bytes());
    hash.update(overlay::digest_input());
    let mut name = format!("debian-{SUITE}-");
    for byte in &hash.finalize()[..8] {
        let _ = write!(name, "{byte:02x}");
    }
    name + ".ext4"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_same_each_time_and_is_a_file_name() {
        assert_eq!(name(), name());
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        assert!(name().chars().all(good) && name().len() < 64, "{}", name());
    }
}
