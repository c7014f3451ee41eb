//! Running machines as other terminals find them: each has a folder, named after the
//! process that runs it, with a socket that speaks the link. The folder goes with the run.

use serde::{Deserialize, Serialize};
use std::{
    env, fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// Longest path of a Unix socket.
const SOCKET_BYTES: usize = 107;

/// What a folder says of its run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    /// Names the run, for `--run`.
    pub id: String,
    pub pid: u32,
    /// Path of the set-up file.
    pub setup: String,
}

/// The folder of a run of this process.
#[derive(Debug)]
pub struct Session {
    pub info: Info,
    folder: PathBuf,
    /// Leaves the folder behind, for a look at the logs.
    pub keep: bool,
}

impl Session {
    /// Makes the folder of a new run, under [`base`].
    ///
    /// # Errors
    /// If the base cannot be made, belongs to somebody else, or is too long a path.
    pub fn create(setup: &str) -> io::Result<Self> {
        Self::create_in(&base()?, setup)
    }

    fn create_in(base: &Path, setup: &str) -> io::Result<Self> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        let id = match RUNS.fetch_add(1, Ordering::Relaxed) {
            0 => pid.to_string(),
            more => format!("{pid}-{more}"),
        };
        let folder = base.join(&id);
        // A folder of this name is of a process long gone that had this number.
        let _ = fs::remove_dir_all(&folder);
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let info = Info { id, pid, setup: setup.to_owned() };
        let session = Self { info, folder, keep: false };
        if session.control().as_os_str().len() > SOCKET_BYTES {
            return Err(io::Error::other(format!(
                "the path {} is too long for a socket; set XDG_RUNTIME_DIR to a shorter one",
                session.control().display()
            )));
        }
        fs::write(session.file("run.json"), serde_json::to_vec(&session.info)?)?;
        Ok(session)
    }

    /// A file of this run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The socket that other terminals use.
    pub fn control(&self) -> PathBuf {
        self.file("control")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Where the folders are: `$XDG_RUNTIME_DIR/bulkhead`, or `/tmp/bulkhead-UID`.
///
/// # Errors
/// If it cannot be made or belongs to another user.
pub fn base() -> io::Result<PathBuf> {
    let me = fs::metadata("/proc/self")?.uid();
    let base = match env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) if Path::new(&folder).is_dir() => Path::new(&folder).join("bulkhead"),
        _ => PathBuf::from(format!("/tmp/bulkhead-{me}")),
    };
    fs::DirBuilder::new().mode(0o700).recursive(true).create(&base)?;
    let owner = fs::symlink_metadata(&base)?;
    if owner.uid() != me || !owner.is_dir() {
        return Err(io::Error::other(format!(
            "{} is not a folder of yours; remove it",
            base.display()
        )));
    }
    Ok(base)
}

/// The runs that are going on, oldest first; folders of dead processes are removed.
///
/// # Errors
/// If the base cannot be read.
pub fn running() -> io::Result<Vec<(Info, PathBuf)>> {
    running_in(&base()?)
}

fn running_in(base: &Path) -> io::Result<Vec<(Info, PathBuf)>> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(base)? {
        let folder = entry?.path();
        let Ok(text) = fs::read(folder.join("run.json")) else {
            continue;
        };
        let Ok(info) = serde_json::from_slice::<Info>(&text) else {
            continue;
        };
        if !Path::new("/proc").join(info.pid.to_string()).exists() {
            let _ = fs::remove_dir_all(&folder);
            continue;
        }
        // A folder that was kept after its run has no socket any more.
        if folder.join("control").exists() {
            runs.push((fs::metadata(&folder)?.modified()?, info, folder.join("control")));
        }
    }
    runs.sort_by_key(|(since, ..)| *since);
    Ok(runs.into_iter().map(|(_, info, socket)| (info, socket)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_found_while_it_goes_on_and_leaves_nothing_behind() {
        let base = tempfile::tempdir().expect("a folder");
        let session = Session::create_in(base.path(), "x.toml").expect("made");
        assert_eq!(running_in(base.path()).expect("reads"), []);
        fs::write(session.control(), b"").expect("written");
        let found = running_in(base.path()).expect("reads");
        assert_eq!(found, [(session.info.clone(), session.control())]);
        drop(session);
        assert_eq!(fs::read_dir(base.path()).expect("reads").count(), 0);
    }

    #[test]
    fn what_a_dead_process_left_is_removed() {
        let base = tempfile::tempdir().expect("a folder");
        let mut session = Session::create_in(base.path(), "x.toml").expect("made");
        session.keep = true;
        // Above the largest process number that Linux gives.
        session.info.pid = u32::MAX;
        fs::write(session.file("run.json"), serde_json::to_vec(&session.info).expect("JSON"))
            .expect("written");
        drop(session);
        assert_eq!(running_in(base.path()).expect("reads"), []);
        assert_eq!(fs::read_dir(base.path()).expect("reads").count(), 0);
    }
}
