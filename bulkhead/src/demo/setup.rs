//! The set-up of the demonstration: a stock Debian with two disks of one driver domain,
//! its root and one to write on. Says what runs; runs nothing.

use crate::setup::{Setup, SetupError, Size, Source};
use std::{io, path::PathBuf};
use tempfile::TempDir;

/// The driver domain that dies.
pub const DRIVER: &str = "disk";
/// The guest that must not notice.
pub const GUEST: &str = "debian";
/// The disk that is written: small enough that all of it is written many times.
pub const DATA: &str = "data";
const DATA_SIZE: Size = Size::from_mib(64);
/// In memory on every Linux, so that the host's disk has no part in the figures.
const MEMORY_FOLDER: &str = "/dev/shm";

/// Which kernel the guest has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Guest {
    /// Debian's `linux-image-amd64`.
    #[default]
    Debian,
    /// Debian's `linux-image-cloud-amd64`, which starts faster.
    DebianCloud,
}

impl Guest {
    /// As set-up files write it.
    pub const fn kernel(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::DebianCloud => "debian-cloud",
        }
    }
}

/// The disks' images, which go with this.
pub struct Images {
    folder: TempDir,
    memory: TempDir,
}

impl Images {
    /// Makes the folders that they will be in; the root file system's is in `base`.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn new(base: &std::path::Path) -> io::Result<Self> {
        let named = |folder: &std::path::Path| {
            tempfile::Builder::new().prefix("bulkhead-demo-").tempdir_in(folder)
        };
        std::fs::create_dir_all(base)?;
        let folder = named(base)?;
        let memory = named(MEMORY_FOLDER.as_ref()).or_else(|_| named(base))?;
        Ok(Self { folder, memory })
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root.img")
    }

    pub fn data(&self) -> PathBuf {
        self.memory.path().join("data.img")
    }
}

/// The set-up with these images.
///
/// # Errors
/// See [`Setup::parse`].
pub fn setup(guest: Guest, images: &Images) -> Result<Setup, SetupError> {
    // A path is not TOML, but a TOML string has JSON's escapes.
    let quoted = |path: PathBuf| serde_json::Value::from(path.display().to_string()).to_string();
    let (root, data) = (quoted(images.root()), quoted(images.data()));
    let (kernel, size) = (guest.kernel(), DATA_SIZE.mib());
    let text = format!(
        r#"[driver.{DRIVER}]
kernel = "disk"
memory = "32M"
[disk.root]
image = {root}
make = "debian"
size = "1G"
[disk.{DATA}]
image = {data}
size = "{size}M"
[guest.{GUEST}]
kernel = "{kernel}"
memory = "256M"
disks = ["root", "{DATA}"]
"#
    );
    let source = Source { name: "the demonstration's set-up".into(), text };
    Setup::parse(source, images.folder.path(), &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_up_is_a_good_one_with_both_kernels() {
        let base = tempfile::tempdir().expect("a folder");
        let images = Images::new(base.path()).expect("folders");
        for guest in [Guest::Debian, Guest::DebianCloud] {
            let setup = setup(guest, &images).unwrap_or_else(|e| panic!("{e:?}"));
            assert_eq!(setup.guests[0].disks.len(), 2);
            assert!(setup.guests[0].agent);
        }
    }

    #[test]
    fn the_images_go_with_their_owner() {
        let base = tempfile::tempdir().expect("a folder");
        let images = Images::new(base.path()).expect("folders");
        let paths = [images.root(), images.data()];
        paths.iter().for_each(|path| std::fs::write(path, "x").expect("written"));
        drop(images);
        assert!(paths.iter().all(|path| !path.parent().expect("a folder").exists()));
    }
}
