//! Copies of large files that are mostly holes: shared with the original where the file
//! system can, else only the parts that hold data. It knows nothing of what is in them.

use crate::progress::{Amount, Task};
use rustix::fs::{SeekFrom, fstatvfs, ioctl_ficlone, seek};
use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::Path,
};

/// How much is copied between two looks at whether to stop.
const PIECE: u64 = 4 << 20;

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("stopped")]
    Stopped,
    /// In bytes.
    #[error("{needed} bytes are needed and {free} are free")]
    NoSpace { needed: u64, free: u64 },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Copies `from` to `to`, which is replaced. Holes stay holes. `stop` is asked now and then,
/// and `task` told how far it is.
/// Holds: on error `to` is gone.
///
/// # Errors
/// See [`CopyError`].
pub fn copy(from: &Path, to: &Path, stop: &dyn Fn() -> bool, task: &Task) -> Result<(), CopyError> {
    let source = File::open(from)?;
    let target = File::create(to)?;
    let copied = match ioctl_ficlone(&target, &source) {
        Ok(()) if !stop() => Ok(()),
        Ok(()) => Err(CopyError::Stopped),
        Err(_) => copy_data(&source, &target, stop, task),
    };
    if copied.is_err() {
        let _ = fs::remove_file(to);
    }
    copied
}

fn copy_data(
    source: &File,
    target: &File,
    stop: &dyn Fn() -> bool,
    task: &Task,
) -> Result<(), CopyError> {
    let meta = source.metadata()?;
    let needed = meta.blocks() * 512;
    let free = free(target)?;
    if needed > free {
        return Err(CopyError::NoSpace { needed, free });
    }
    task.set_amount(Amount::Bytes(needed));
    target.set_len(meta.len())?;
    let mut at = 0;
    while let Some((start, end)) = next_data(source, at)? {
        copy_range(source, target, start..end, stop, task)?;
        at = end;
    }
    Ok(())
}

/// Bytes that are free for this user where a file is.
///
/// # Errors
/// If the file system does not say.
pub fn free(file: &File) -> io::Result<u64> {
    let stat = fstatvfs(file)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The next part with data at or after `at`, as its start and its end.
fn next_data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some((start, seek(file, SeekFrom::Hole(start))?))),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn copy_range(
    mut source: &File,
    mut target: &File,
    range: std::ops::Range<u64>,
    stop: &dyn Fn() -> bool,
    task: &Task,
) -> Result<(), CopyError> {
    source.seek(io::SeekFrom::Start(range.start))?;
    target.seek(io::SeekFrom::Start(range.start))?;
    let mut left = range.end - range.start;
    let mut piece = vec![0; left.min(PIECE) as usize];
    while left > 0 {
        if stop() {
            return Err(CopyError::Stopped);
        }
        let size = left.min(PIECE) as usize;
        source.read_exact(&mut piece[..size])?;
        target.write_all(&piece[..size]).map_err(|e| full(e, target, left))?;
        left -= size as u64;
        task.advance(size as u64);
    }
    Ok(())
}

/// Space that was there at the beginning may be gone by now.
fn full(error: io::Error, target: &File, needed: u64) -> CopyError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            CopyError::NoSpace { needed, free: free(target).unwrap_or(0) }
        }
        _ => CopyError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Progress;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    fn silent() -> Task {
        Progress::default().begin("x", Amount::Unknown)
    }

    fn original(folder: &Path, parts: &[(u64, Vec<u8>)], length: u64) -> std::path::PathBuf {
        let path = folder.join("original");
        let file = File::create(&path).expect("made");
        file.set_len(length).expect("sized");
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).expect("written");
        }
        path
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_copy_has_the_same_bytes_and_no_more_blocks(
            parts in proptest::collection::vec((0u64..20 << 20, proptest::collection::vec(any::<u8>(), 1..9000)), 0..6),
            length in 0u64..21 << 20,
        ) {
            let folder = tempfile::tempdir().expect("a folder");
            let from = original(folder.path(), &parts, length);
            let to = folder.path().join("copy");
            // The way that every file system can go.
            let (source, target) = (File::open(&from).expect("opens"), File::create(&to).expect("made"));
            copy_data(&source, &target, &|| false, &silent()).expect("copied");
            prop_assert!(fs::read(&from).expect("reads") == fs::read(&to).expect("reads"));
            let blocks = |p| fs::metadata(p).expect("there").blocks();
            prop_assert!(blocks(&to) <= blocks(&from) + 8);
        }
    }

    #[test]
    fn stopped_or_without_an_original_it_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let from = original(folder.path(), &[(0, vec![1; 5000])], 1 << 20);
        let to = folder.path().join("copy");
        let stopped = copy(&from, &to, &|| true, &silent());
        assert!(matches!(stopped, Err(CopyError::Stopped)) && !to.exists());
        let none = copy(&folder.path().join("none"), &to, &|| false, &silent());
        assert!(matches!(none, Err(CopyError::Io(_))) && !to.exists());
    }
}
