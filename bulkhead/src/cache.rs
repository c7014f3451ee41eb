//! The folder where things are kept that are long in coming: `$XDG_CACHE_HOME/bulkhead`,
//! or `~/.cache/bulkhead`. Anything in it may be removed while nothing runs, and comes
//! again when it is needed.

use std::{
    env,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// A part of the cache.
#[derive(Clone, Debug)]
pub struct Cache(PathBuf);

impl Cache {
    /// The part with a name, made if it is not there.
    ///
    /// # Errors
    /// If no place for it is known, or it cannot be made.
    pub fn open(part: &str) -> io::Result<Self> {
        let from = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        // A relative path is to be ignored, says the XDG base directory specification.
        let base = from("XDG_CACHE_HOME")
            .filter(|p| p.is_absolute())
            .or_else(|| from("HOME").map(|home| home.join(".cache")))
            .ok_or_else(|| io::Error::other("neither XDG_CACHE_HOME nor HOME is set"))?;
        Self::at(&base.join("bulkhead").join(part))
    }

    /// A cache at a place of the caller's.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn at(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self(folder.into()))
    }

    /// The path of something in it, which need not be there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A name next to `name` for what is not whole yet; rename it when it is.
    pub fn half(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.half-{}", std::process::id()))
    }

    /// Keeps others out of this part until the lock is dropped. `waiting` is called if
    /// somebody else holds it.
    ///
    /// # Errors
    /// If the lock's file cannot be opened.
    pub fn lock(&self, waiting: impl FnOnce()) -> io::Result<Lock> {
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(self.path("lock"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock()?;
            }
            Err(TryLockError::Error(e)) => return Err(e),
        }
        self.sweep();
        Ok(Lock(file))
    }

    /// Removes what runs that were killed have left half-made. Only under the lock.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(".half-") {
                let path = entry.path();
                let _ =
                    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            }
        }
    }
}

/// A part of the cache, held.
#[derive(Debug)]
#[must_use = "others are let in when it is dropped"]
pub struct Lock(#[expect(dead_code, reason = "closing the file gives the lock back")] File);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn one_at_a_time_holds_it_and_leftovers_are_gone_then() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = Cache::at(&folder.path().join("new/part")).expect("made");
        fs::create_dir(cache.path("thing.half-1")).expect("made");
        fs::write(cache.half("other"), "x").expect("written");
        let first = cache.lock(|| panic!("nobody holds it")).expect("locked");
        assert!(!cache.path("thing.half-1").exists() && !cache.half("other").exists());
        let (told, heard) = mpsc::channel();
        let other = cache.clone();
        let waits = std::thread::spawn(move || {
            let _lock = other.lock(|| told.send(()).expect("heard")).expect("locked");
        });
        heard.recv().expect("it waits");
        drop(first);
        waits.join().expect("it got it");
    }
}
