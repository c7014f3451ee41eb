//! A kernel package, unpacked.

use super::{DistroError, Job};
use crate::{cache::Cache, needs, progress::Amount};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::UNIX_EPOCH,
};

/// A kernel and its modules in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// As the mirror names its file, without the ending.
    pub name: String,
    /// `vmlinuz-VERSION`.
    pub kernel: PathBuf,
    /// `lib/modules/VERSION`.
    pub modules: PathBuf,
}

impl Package {
    /// Finds a package in the cache by its name.
    ///
    /// # Errors
    /// What it lacks.
    pub fn find(name: &str, cache: &Cache) -> Result<Self, String> {
        Self::below(&cache.path(name), name)
    }

    fn below(folder: &Path, name: &str) -> Result<Self, String> {
        let kernel = only(&folder.join("boot"), "vmlinuz-")
            .ok_or("it holds no kernel (boot/vmlinuz-VERSION)")?;
        // Systems with a merged /usr may ship them there.
        let modules = ["lib/modules", "usr/lib/modules"]
            .iter()
            .find_map(|at| only(&folder.join(at), ""))
            .ok_or("it holds no modules (lib/modules/VERSION)")?;
        Ok(Self { name: name.into(), kernel, modules })
    }
}

/// The one entry of a folder whose name begins so.
fn only(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    let mut found: Vec<_> = entries
        .filter(|e| e.file_name().to_string_lossy().starts_with(prefix))
        .map(|e| e.path())
        .collect();
    found.sort();
    found.pop()
}

/// A name in the cache for a package that is the user's file: another file, or the same
/// one after a change, has another name.
pub(super) fn name_of_file(deb: &Path) -> Result<String, DistroError> {
    let wrong = |e: &dyn std::fmt::Display| {
        DistroError::new(
            format!("cannot read the package {}: {e}", deb.display()),
            "correct the path; packages come by `apt-get download linux-image-...`",
        )
    };
    let about = fs::metadata(deb).map_err(|e| wrong(&e))?;
    if !about.is_file() {
        return Err(wrong(&"it is not a file"));
    }
    let time = about.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    let stem = deb.file_stem().unwrap_or_default().to_string_lossy();
    let nanos = time.unwrap_or_default().as_nanos();
    Ok(format!("{stem}-{}-{nanos:x}", about.len()))
}

/// Unpacks a package's file into the cache under a name; nothing if it is there already.
pub(super) fn unpack(
    deb: &Path,
    name: &str,
    cache: &Cache,
    job: &Job<'_>,
) -> Result<Package, DistroError> {
    if let Ok(package) = Package::find(name, cache) {
        return Ok(package);
    }
    let half = cache.half(&format!("{name}.tree"));
    let _task = job.progress.begin(format!("unpacking {name}"), Amount::Unknown);
    let unpacked = extract(deb, &half)
        .and_then(|()| Package::below(&half, name).map_err(|why| not_a_kernel(deb, &why)))
        .and_then(|_| {
            let whole = cache.path(name);
            let _ = fs::remove_dir_all(&whole);
            fs::rename(&half, &whole).map_err(|e| DistroError::io(&whole, &e))
        });
    if let Err(e) = unpacked {
        let _ = fs::remove_dir_all(&half);
        return Err(e);
    }
    Package::find(name, cache).map_err(|why| not_a_kernel(deb, &why))
}

fn not_a_kernel(deb: &Path, why: &str) -> DistroError {
    DistroError::new(
        format!("{} is no package of a kernel: {why}", deb.display()),
        "give a package like linux-image-6.1.0-9-amd64; `linux-image-amd64` itself is empty and depends on one",
    )
}

fn extract(deb: &Path, into: &Path) -> Result<(), DistroError> {
    let failed = |why: &str| {
        DistroError::new(
            format!("cannot unpack {}: {}", deb.display(), why.trim()),
            "is it a whole Debian package, and is there room? `dpkg-deb --info FILE` reads it",
        )
    };
    let program = needs::find_program("dpkg-deb")
        .ok_or_else(|| failed("dpkg-deb is missing; install the package dpkg"))?;
    let done = Command::new(program)
        .arg("--extract")
        .args([deb, into])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(&e.to_string()))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(failed(&String::from_utf8_lossy(&done.stderr))),
    }
}
