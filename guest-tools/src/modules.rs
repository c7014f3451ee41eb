//! Loads the kernel modules that the initramfs carries, in the order of their names.

use rustix::io::Errno;
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Where the host tool puts them: `NN-name.ko`, dependencies before those who need them.
pub const FOLDER: &str = "/modules";

/// Loads all of them. What is loaded already, or of no use on this machine, is no error.
///
/// # Errors
/// A line for each module that the kernel refused; the others are loaded all the same.
pub fn load_all() -> Vec<String> {
    let files = in_order(Path::new(FOLDER)).unwrap_or_default();
    files.iter().filter_map(|file| load(file).err()).collect()
}

fn in_order(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files =
        fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "ko"));
    files.sort();
    Ok(files)
}

fn load(path: &Path) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot load {}: {e}", path.display());
    let file = File::open(path).map_err(|e| failed(&e))?;
    match rustix::system::finit_module(&file, c"", 0) {
        // A driver for hardware that is not there says so with NODEV.
        Ok(()) | Err(Errno::EXIST | Errno::NODEV) => Ok(()),
        Err(Errno::NOEXEC) => Err(failed(&"it is not for this kernel")),
        Err(e) => Err(failed(&e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_modules_alone_by_name() {
        let folder = std::env::temp_dir().join(format!("bulkhead-modules-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("made");
        for name in ["10-b.ko", "02-a.ko", "README"] {
            fs::write(folder.join(name), "").expect("written");
        }
        let files = in_order(&folder).expect("read");
        fs::remove_dir_all(&folder).expect("removed");
        let names: Vec<_> = files.iter().filter_map(|f| f.file_name()?.to_str()).collect();
        assert_eq!(names, ["02-a.ko", "10-b.ko"]);
    }
}
