//! Kernels as Debian ships them: found by apt, which verifies them, unpacked, and kept in
//! the cache. It knows packages; what is in a kernel's file it leaves to
//! [`crate::kernel_image`].

mod apt;
mod package;

pub use apt::{proxy, sources};
pub use package::Package;

use crate::{cache::Cache, progress::Progress};
use apt::Apt;
use std::{
    fs, io,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

/// How long apt's lists are good before they are asked for again.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a mirror is left alone that did not answer.
const PATIENCE: Duration = Duration::from_secs(60 * 60);

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    Debian,
    DebianCloud,
    DebianBackports,
}

impl Flavour {
    pub const ALL: [Self; 3] = [Self::Debian, Self::DebianCloud, Self::DebianBackports];

    /// Its name in a set-up file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::DebianCloud => "debian-cloud",
            Self::DebianBackports => "debian-backports",
        }
    }

    /// By the name of a set-up file.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.name() == name)
    }

    /// The package that depends on the newest kernel.
    const fn package(self) -> &'static str {
        match self {
            Self::Debian | Self::DebianBackports => "linux-image-amd64",
            Self::DebianCloud => "linux-image-cloud-amd64",
        }
    }

    /// What apt gets it from.
    const fn origin(self) -> apt::Origin {
        match self {
            Self::Debian | Self::DebianCloud => apt::Origin::Stable,
            Self::DebianBackports => apt::Origin::Backports,
        }
    }
}

/// Why there is no kernel, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct DistroError {
    pub message: String,
    pub help: String,
}

impl DistroError {
    fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into() }
    }

    fn io(what: &Path, error: &io::Error) -> Self {
        Self::new(
            format!("cannot write {}: {error}", what.display()),
            "make room there, or set XDG_CACHE_HOME to a folder that you may write",
        )
    }
}

/// What long work is done with.
pub struct Job<'a> {
    pub say: &'a dyn Fn(&str),
    pub progress: Progress,
    /// Counts the user's wishes to stop.
    pub interrupts: &'a AtomicU32,
}

impl Job<'_> {
    /// With nobody to tell and nobody to stop it.
    pub fn unwatched() -> Self {
        static NEVER: AtomicU32 = AtomicU32::new(0);
        Self { say: &|_| {}, progress: Progress::default(), interrupts: &NEVER }
    }

    /// Whether the user wants to stop.
    pub fn is_stopped(&self) -> bool {
        self.interrupts.load(Ordering::Relaxed) > 0
    }
}

/// The part of the cache that kernels are in.
///
/// # Errors
/// If it cannot be made.
pub fn cache() -> Result<Cache, DistroError> {
    Cache::open("kernels").map_err(|e| {
        DistroError::new(
            format!("there is no place for downloaded kernels: {e}"),
            "set XDG_CACHE_HOME to a folder that you may write",
        )
    })
}

/// The newest kernel of a flavour. Asks the mirror once a day; without a network, the
/// newest that was fetched before has to do.
///
/// # Errors
/// If the mirror cannot be reached and there is none yet, or it cannot be kept.
pub fn newest(flavour: Flavour, cache: &Cache, job: &Job<'_>) -> Result<Package, DistroError> {
    let waiting = || (job.say)("waiting for another run that fetches a kernel");
    let _lock = cache.lock(waiting).map_err(|e| DistroError::io(&cache.path("lock"), &e))?;
    let known = known(flavour, cache);
    if let Some(known) = &known
        && known.is_fresh
    {
        return Ok(known.package.clone());
    }
    match (fetch(flavour, cache, job), known) {
        (Ok(package), _) => Ok(package),
        (Err(e), Some(known)) if !job.is_stopped() => {
            (job.say)(&format!("{e}; {} is what was fetched before", known.package.name));
            ask_again_later(flavour, cache);
            Ok(known.package)
        }
        (Err(e), _) => Err(e),
    }
}

/// Unpacks a package that the user has as a file.
///
/// # Errors
/// If it holds no kernel, or cannot be unpacked.
pub fn from_file(deb: &Path, cache: &Cache, job: &Job<'_>) -> Result<Package, DistroError> {
    let lock = cache.lock(|| (job.say)("waiting for another run that unpacks a kernel"));
    let _lock = lock.map_err(|e| DistroError::io(&cache.path("lock"), &e))?;
    package::unpack(deb, &package::name_of_file(deb)?, cache, job)
}

/// What is in the cache of a flavour.
struct Known {
    package: Package,
    /// The mirror was asked within [`FRESH`].
    is_fresh: bool,
}

/// The file that names the newest package of a flavour. Its time is when that was asked.
fn note(flavour: Flavour) -> String {
    format!("{}.newest", flavour.name())
}

fn known(flavour: Flavour, cache: &Cache) -> Option<Known> {
    let path = cache.path(&note(flavour));
    let name = fs::read_to_string(&path).ok()?;
    let package = Package::find(name.trim(), cache).ok()?;
    let asked = fs::metadata(&path).and_then(|m| m.modified()).ok()?;
    let age = SystemTime::now().duration_since(asked).unwrap_or_default();
    Some(Known { package, is_fresh: age < FRESH })
}

/// Lets a mirror that does not answer alone for a while: each attempt takes its time.
fn ask_again_later(flavour: Flavour, cache: &Cache) {
    let asked = SystemTime::now() - (FRESH - PATIENCE);
    let note = fs::File::options().append(true).open(cache.path(&note(flavour)));
    let _ = note.and_then(|file| file.set_modified(asked));
}

fn fetch(flavour: Flavour, cache: &Cache, job: &Job<'_>) -> Result<Package, DistroError> {
    let apt = Apt::open(flavour.origin(), cache)?;
    apt.update(job)?;
    let found = apt.newest(flavour.package())?;
    let name = found.file.trim_end_matches(".deb").to_owned();
    let package = match Package::find(&name, cache) {
        Ok(package) => package,
        Err(_) => {
            let half = cache.half(&name);
            fs::create_dir_all(&half).map_err(|e| DistroError::io(&half, &e))?;
            let unpacked = apt
                .download(&found, &half, job)
                .and_then(|deb| package::unpack(&deb, &name, cache, job));
            let _ = fs::remove_dir_all(&half);
            unpacked?
        }
    };
    let path = cache.path(&note(flavour));
    let before = fs::read_to_string(&path).unwrap_or_default();
    fs::write(&path, &name).map_err(|e| DistroError::io(&path, &e))?;
    forget(before.trim(), cache);
    Ok(package)
}

/// Removes an older package that no flavour names any more: each takes hundreds of MiB.
fn forget(name: &str, cache: &Cache) {
    let is_named =
        |f: Flavour| fs::read_to_string(cache.path(&note(f))).is_ok_and(|text| text.trim() == name);
    if !name.is_empty() && !name.contains('/') && !Flavour::ALL.into_iter().any(is_named) {
        let _ = fs::remove_dir_all(cache.path(name));
    }
}

#[cfg(test)]
mod tests;
