//! A small Debian root file system as a disk image: real Debian by its own tools, from
//! the mirror that the host's apt uses. It takes a minute or two to build, so it is built
//! once, kept in the cache as a template, and copied for each disk that wants one. It
//! knows nothing of set-ups and machines.
//!
//! No loop device and no mount is needed: mmdebstrap builds the tree (as an ordinary user,
//! in a name space of its own), and mke2fs lays it out as an image.

mod build;
mod overlay;
mod recipe;
mod told;

pub use recipe::LEAST;

use crate::{
    cache::{Cache, Lock},
    distro::Job,
    needs,
    progress::Amount,
    setup::Size,
    sparse::{self, CopyError},
};
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

/// Why there is no root file system, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RootfsError {
    pub message: String,
    pub help: String,
}

impl RootfsError {
    fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into() }
    }

    fn io(doing: &str, error: &io::Error) -> Self {
        Self::new(
            format!("cannot {doing}: {error}"),
            "is the folder there, may you write to it, and is there room?",
        )
    }

    fn interrupted() -> Self {
        Self::new("interrupted", "run it again when you like; nothing half-made is left")
    }

    fn space(place: &Path, needed: u64, free: u64, variable: &str) -> Self {
        Self::new(
            format!(
                "there is too little room at {}: {} MiB are needed, {} MiB are free",
                place.display(),
                needed.div_ceil(1 << 20),
                free >> 20
            ),
            format!("make room there, or set {variable} to a folder with more"),
        )
    }
}

/// Whether the template for [`make`] is there already, so that nothing is built.
pub fn is_cached() -> bool {
    Cache::open(PART).is_ok_and(|cache| cache.path(&recipe::name()).is_file())
}

/// The part of the cache that templates are in.
const PART: &str = "rootfs";

/// Makes an image of `size` at `path`, from the template, which is built if there is none.
/// Holds: on error, and after Ctrl-C, `path` does not exist.
///
/// # Errors
/// No network for the first time, no room, or a host that does not let this user build.
pub fn make(path: &Path, size: Size, job: &Job<'_>) -> Result<(), RootfsError> {
    let template = template(job)?;
    let mut half = path.as_os_str().to_owned();
    half.push(format!(".half-{}", std::process::id()));
    let half = PathBuf::from(half);
    let made = copy(&template, &half, size, job).and_then(|()| {
        fs::rename(&half, path).map_err(|e| RootfsError::io("give the image its name", &e))
    });
    if made.is_err() {
        let _ = fs::remove_file(&half);
    }
    made
}

/// The template, built if it is not in the cache.
fn template(job: &Job<'_>) -> Result<PathBuf, RootfsError> {
    let cache = Cache::open(PART).map_err(|e| {
        RootfsError::new(
            format!("there is no place to keep the root file system: {e}"),
            "set XDG_CACHE_HOME to a folder that you may write",
        )
    })?;
    let template = cache.path(&recipe::name());
    if template.is_file() {
        return Ok(template);
    }
    let _lock = locked(&cache, job)?;
    // Another run may have built it while this one waited.
    if !template.is_file() {
        let work = cache.half(&recipe::name());
        let built = build::build(&work, job).and_then(|image| keep(&image, &template));
        let _ = fs::remove_dir_all(&work);
        built?;
    }
    Ok(template)
}

fn locked(cache: &Cache, job: &Job<'_>) -> Result<Lock, RootfsError> {
    cache
        .lock(|| (job.say)("waiting for another run that builds the root file system"))
        .map_err(|e| RootfsError::io("lock the cache", &e))
}

/// Gives a whole image its name, once its bytes are on the disk.
fn keep(image: &Path, template: &Path) -> Result<(), RootfsError> {
    File::open(image)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(image, template))
        .map_err(|e| RootfsError::io("keep the root file system", &e))
}

fn copy(from: &Path, to: &Path, size: Size, job: &Job<'_>) -> Result<(), RootfsError> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)
            .map_err(|e| RootfsError::io("make the folder of the image", &e))?;
    }
    let name = to.file_stem().unwrap_or_default().to_string_lossy();
    let task = job.progress.begin(format!("making {name}"), Amount::Unknown);
    sparse::copy(from, to, &|| job.is_stopped(), &task).map_err(|e| match e {
        CopyError::Stopped => RootfsError::interrupted(),
        CopyError::NoSpace { needed, free } => {
            let mut told = RootfsError::space(to, needed, free, "image");
            told.help = "make room there, or name another place with `image`".into();
            told
        }
        CopyError::Io(e) => RootfsError::io("copy the root file system", &e),
    })?;
    grow(to, size)
}

/// Makes the file system in an image as large as asked for.
fn grow(image: &Path, size: Size) -> Result<(), RootfsError> {
    if size <= LEAST {
        return Ok(());
    }
    let failed = |why: &str| {
        RootfsError::new(
            format!("cannot make the file system {size} large: {why}"),
            "try another `size`, or look at the image with e2fsck",
        )
    };
    let program = needs::find_program("resize2fs")
        .ok_or_else(|| failed("resize2fs is missing; install e2fsprogs"))?;
    File::options()
        .write(true)
        .open(image)
        .and_then(|file| file.set_len(size.bytes()))
        .map_err(|e| failed(&e.to_string()))?;
    let done = Command::new(program).arg(image).env("LC_ALL", "C.UTF-8").output();
    let done = done.map_err(|e| failed(&e.to_string()))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&done.stderr).trim())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Progress;
    use std::sync::atomic::AtomicU32;

    fn template_of(folder: &Path, text: &str) -> PathBuf {
        let (tree, image) = (folder.join("tree"), folder.join("t.ext4"));
        fs::create_dir(&tree).expect("made");
        fs::write(tree.join("file"), text).expect("written");
        File::create(&image).and_then(|f| f.set_len(LEAST.bytes())).expect("made");
        let mke2fs = needs::find_program("mke2fs").expect("e2fsprogs is needed for this test");
        let done =
            Command::new(mke2fs).args(recipe::MKE2FS).arg("-d").args([&tree, &image]).output();
        assert!(done.expect("runs").status.success());
        image
    }

    fn says(program: &str, arguments: &[&str], image: &Path) -> String {
        let program = needs::find_program(program).expect("e2fsprogs is needed for this test");
        let done = Command::new(program).args(arguments).arg(image).output().expect("runs");
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).expect("text")
    }

    #[test]
    fn a_copy_is_as_large_as_asked_for_sparse_and_sound() {
        let folder = tempfile::tempdir().expect("a folder");
        let template = template_of(folder.path(), "what is in it");
        let interrupts = AtomicU32::new(0);
        let job = Job { say: &|_| {}, progress: Progress::default(), interrupts: &interrupts };
        let image = folder.path().join("new/image");
        copy(&template, &image, Size::from_mib(2048), &job).expect("copied");
        let meta = fs::metadata(&image).expect("there");
        assert_eq!(meta.len(), 2048 << 20);
        let used = std::os::unix::fs::MetadataExt::blocks(&meta) * 512;
        assert!(used < 64 << 20, "{used} bytes");
        says("e2fsck", &["-fn"], &image);
        assert_eq!(says("debugfs", &["-R", "cat file"], &image), "what is in it");
        assert!(says("dumpe2fs", &["-h"], &image).contains("524288"), "blocks of 4 KiB");
    }

    #[test]
    fn an_interrupted_copy_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let template = template_of(folder.path(), "x");
        let interrupts = AtomicU32::new(1);
        let job = Job { say: &|_| {}, progress: Progress::default(), interrupts: &interrupts };
        let image = folder.path().join("image");
        let refused = copy(&template, &image, Size::from_mib(2048), &job).expect_err("stopped");
        assert_eq!(refused, RootfsError::interrupted());
    }
}
