//! Disk images on the host: found, made where the set-up says how, checked against the
//! ranges that guests use, and locked while a machine runs on them.

use crate::{
    distro::Job,
    needs::{self, Need},
    rootfs,
    setup::{Disk, Make, Setup, SetupError, Size},
};
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::Path,
    process::Command,
};

/// Size of the sample image when the set-up gives none.
const SAMPLE: Size = Size::from_mib(24);
/// Fixed, so that two sample images are the same byte for byte but for their times.
const SAMPLE_UUID: &str = "b01c4ead-0000-4000-8000-000000000001";

/// An image that is there, open and locked.
#[derive(Debug)]
pub struct Image {
    pub bytes: u64,
    /// Holds the lock for as long as the machine runs.
    _lock: File,
}

/// Makes the images that are missing and may be made, and opens all; in the order of
/// [`Setup::disks`]. A disk that no guest uses is opened all the same.
///
/// # Errors
/// A missing image, one in use by another machine, or a range past the end of one; the
/// user's wish to stop.
pub fn prepare(setup: &Setup, job: &Job<'_>) -> Result<Vec<Image>, SetupError> {
    let images = setup
        .disks
        .iter()
        .map(|disk| prepare_one(setup, disk, job))
        .collect::<Result<Vec<_>, _>>()?;
    check_ranges(setup, &images)?;
    Ok(images)
}

/// What can be known of the images before anything is built or fetched.
///
/// # Errors
/// A size that its contents do not fit into.
pub fn check_early(setup: &Setup) -> Result<(), SetupError> {
    let too_small = |disk: &&Disk| {
        let least =
            if disk.make == Some(Make::Debian) { rootfs::LEAST } else { Size::from_bytes(0) };
        !disk.image.exists() && disk.size.is_some_and(|size| size < least)
    };
    let Some(disk) = setup.disks.iter().find(too_small) else {
        return Ok(());
    };
    let message = format!("disk `{}` is too small for Debian's root file system", disk.name);
    Err(setup
        .source
        .error(disk.image_span.clone(), message)
        .help(format!("say size = \"{}M\" or more, or leave it out", rootfs::LEAST.mib())))
}

/// What the host must have to make the images that are missing.
pub fn needs(setup: &Setup) -> Vec<Need> {
    let missing = || setup.disks.iter().filter(|d| !d.image.exists()).filter_map(|d| d.make);
    let mut needs = Vec::new();
    if missing().any(|make| make != Make::Empty) {
        needs.push(Need::Mkfs);
    }
    if missing().any(|make| make == Make::Debian) && !rootfs::is_cached() {
        needs.push(Need::Debian);
    }
    needs
}

fn prepare_one(setup: &Setup, disk: &Disk, job: &Job<'_>) -> Result<Image, SetupError> {
    let shown = disk.image.display();
    let fail = |message: String| setup.source.error(disk.image_span.clone(), message);
    if !disk.image.exists() {
        make(setup, disk, job)?;
    }
    let wrong = |e: io::Error| {
        fail(format!("cannot open the image {shown} of disk `{}`: {e}", disk.name))
            .help("give a file that you may read, and write unless it is `read-only = true`")
    };
    let file =
        OpenOptions::new().read(true).write(!disk.read_only).open(&disk.image).map_err(wrong)?;
    if file.metadata().map_err(wrong)?.is_dir() {
        return Err(fail(format!("the image {shown} of disk `{}` is a folder", disk.name))
            .help("give a raw image file"));
    }
    lock(&file, disk.read_only).map_err(|e| match e {
        TryLockError::WouldBlock => fail(format!("the image {shown} is in use by another machine"))
            .help("wait for it, see `bulkhead list`, or work on a copy"),
        TryLockError::Error(e) => wrong(e),
    })?;
    let bytes = length(&file).map_err(wrong)?;
    if bytes < 512 {
        return Err(fail(format!("the image {shown} of disk `{}` is empty", disk.name))
            .help("remove it and say `size`, or give another"));
    }
    Ok(Image { bytes: bytes / 512 * 512, _lock: file })
}

fn lock(file: &File, shared: bool) -> Result<(), TryLockError> {
    if shared { file.try_lock_shared() } else { file.try_lock() }
}

/// Bytes of a file or of a block device.
fn length(mut file: &File) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

fn check_ranges(setup: &Setup, images: &[Image]) -> Result<(), SetupError> {
    for used in setup.guests.iter().flat_map(|g| &g.disks) {
        let (disk, bytes) = (&setup.disks[used.disk], images[used.disk].bytes);
        let end = used.offset.saturating_add(used.size.unwrap_or(512));
        if end > bytes {
            let message = format!(
                "this range ends at {} of disk `{}`, which has {}",
                Size::from_bytes(end),
                disk.name,
                Size::from_bytes(bytes)
            );
            return Err(setup
                .source
                .error(used.span.clone(), message)
                .help("make it smaller, or the image larger"));
        }
    }
    Ok(())
}

fn make(setup: &Setup, disk: &Disk, job: &Job<'_>) -> Result<(), SetupError> {
    let shown = disk.image.display();
    let fail = |message: String| setup.source.error(disk.image_span.clone(), message);
    let made = match (disk.make, disk.size) {
        (Some(Make::Debian), size) => {
            return rootfs::make(&disk.image, size.unwrap_or(rootfs::LEAST), job)
                .map_err(|e| fail(format!("cannot make the image {shown}: {e}")).help(e.help));
        }
        (Some(Make::Ext4Sample), size) => make_sample(&disk.image, size.unwrap_or(SAMPLE)),
        (Some(Make::Empty) | None, Some(size)) => make_empty(&disk.image, size),
        _ => {
            return Err(fail(format!("the image {shown} of disk `{}` is not there", disk.name))
                .help("correct the path, or add size = \"16M\" to have an empty one made"));
        }
    };
    made.map_err(|e| fail(format!("cannot make the image {shown}: {e}")))
}

fn in_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

fn make_empty(path: &Path, size: Size) -> io::Result<()> {
    in_folder(path)?;
    File::create_new(path)?.set_len(size.bytes())
}

/// Makes an ext4 image with some files, next to its place first, so that an
/// interrupted run leaves no half of it behind.
fn make_sample(path: &Path, size: Size) -> io::Result<()> {
    in_folder(path)?;
    let tree = path.with_extension(format!("tree-{}", std::process::id()));
    let half = path.with_extension(format!("half-{}", std::process::id()));
    let made =
        fill(&tree).and_then(|()| mkfs(&tree, &half, size)).and_then(|()| fs::rename(&half, path));
    let _ = fs::remove_dir_all(&tree);
    let _ = fs::remove_file(&half);
    made
}

fn mkfs(tree: &Path, image: &Path, size: Size) -> io::Result<()> {
    let program = needs::find_program("mkfs.ext4").ok_or_else(|| {
        io::Error::other("mkfs.ext4 is missing; `bulkhead doctor` says how to install it")
    })?;
    make_empty(image, size)?;
    let done = Command::new(program)
        .args(["-q", "-F", "-L", "sample", "-U", SAMPLE_UUID, "-m", "0"])
        .arg("-E")
        .arg(format!("hash_seed={SAMPLE_UUID},root_owner=0:0"))
        .arg("-d")
        .args([tree, image])
        .output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&done.stderr).trim().to_owned()))
}

/// Files that reach the corners of a file system: empty, one byte, one block and a byte,
/// several extents' worth, a hole, deep folders, many names in one, names in UTF-8.
fn fill(tree: &Path) -> io::Result<()> {
    let file = |name: &str, bytes: &[u8]| {
        let path = tree.join(name);
        in_folder(&path)?;
        fs::write(path, bytes)
    };
    file("README", b"A sample file system for Bulkhead's disk-check guest.\n")?;
    file("empty", b"")?;
    file("one-byte", b"x")?;
    file("sizes/block", &noise(1, 4096))?;
    file("sizes/block-and-a-byte", &noise(2, 4097))?;
    file("sizes/sixty-four-KiB", &noise(3, 65_536))?;
    file("sizes/three-MiB", &noise(4, 3 << 20))?;
    file("a/b/c/d/e/f/g/deep", b"seven folders down\n")?;
    file("names/\u{fc}n\u{ef}c\u{f6}d\u{e9} \u{6f22}\u{5b57}", b"a name that is not ASCII\n")?;
    file(&format!("names/{}", "long-".repeat(40)), b"a name of 200 bytes\n")?;
    for i in 0..200 {
        file(&format!("many/file-{i:03}"), format!("number {i}\n").as_bytes())?;
    }
    let hole = File::create(tree.join("sizes/mostly-hole"))?;
    hole.set_len(1 << 20)?;
    std::os::unix::fs::FileExt::write_all_at(&hole, b"end of the hole", (1 << 20) - 15)
}

/// Bytes that do not repeat, the same in each run (xorshift64).
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    })
    .flatten()
    .take(bytes)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::Source;

    fn setup(folder: &Path, disk: &str, guest: &str) -> Setup {
        let text = format!(
            "[driver.disk]\nkernel = \"disk\"\n[disk.a]\n{disk}\n[guest.g]\nkernel = \"disk-check\"\ndisks = [{guest}]\n"
        );
        Setup::parse(Source { name: "t.toml".into(), text }, folder, &[]).expect("a set-up")
    }

    /// The images, made with nobody to tell.
    fn prepare(setup: &Setup) -> Result<Vec<Image>, SetupError> {
        super::prepare(setup, &Job::unwatched())
    }

    fn told(setup: &Setup) -> String {
        prepare(setup).expect_err("should be refused").to_string()
    }

    #[test]
    fn makes_an_empty_image_of_the_size_asked_for_and_keeps_it_after() {
        let folder = tempfile::tempdir().expect("a folder");
        let wanted = setup(folder.path(), "image = \"new/x\"\nsize = \"1M\"", "\"a\"");
        assert_eq!(prepare(&wanted).expect("made")[0].bytes, 1 << 20);
        fs::write(folder.path().join("new/x"), [1; 1024]).expect("written");
        assert_eq!(prepare(&wanted).expect("kept")[0].bytes, 1024);
    }

    #[test]
    fn an_image_is_lent_to_one_writer_or_many_readers() {
        let folder = tempfile::tempdir().expect("a folder");
        let writer = setup(folder.path(), "image = \"x\"\nsize = \"1M\"", "\"a\"");
        let reader = setup(folder.path(), "image = \"x\"\nread-only = true", "\"a\"");
        let first = prepare(&writer).expect("made");
        assert!(told(&reader).contains("in use by another machine"));
        drop(first);
        let _one = prepare(&reader).expect("a reader");
        let _two = prepare(&reader).expect("another reader");
        assert!(told(&writer).contains("in use by another machine"));
    }

    #[test]
    fn names_what_is_missing_empty_a_folder_or_too_short() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("empty"), b"").expect("written");
        fs::write(folder.path().join("small"), [0; 1024]).expect("written");
        let with = |disk: &str, guest: &str| told(&setup(folder.path(), disk, guest));
        assert!(with("image = \"none\"", "\"a\"").contains("none of disk `a` is not there"));
        assert!(with("image = \"empty\"", "\"a\"").contains("is empty"));
        assert!(with("image = \".\"", "\"a\"").contains("cannot open"));
        assert!(with("image = \".\"\nread-only = true", "\"a\"").contains("is a folder"));
        let far = "{ disk = \"a\", offset = \"1K\" }";
        assert!(
            with("image = \"small\"", far)
                .contains("ends at 1536 bytes of disk `a`, which has 1 KiB")
        );
    }

    #[test]
    fn a_size_that_debian_does_not_fit_into_is_refused_before_anything_is_built() {
        let folder = tempfile::tempdir().expect("a folder");
        let with = |size: &str| {
            let disk = format!("image = \"x\"\nmake = \"debian\"\nsize = \"{size}\"");
            check_early(&setup(folder.path(), &disk, "\"a\""))
        };
        let refused = with("1023M").expect_err("too small");
        assert!(refused.to_string().contains("`a` is too small"), "{refused}");
        assert!(refused.remedy().is_some_and(|r| r.contains("\"1024M\"")), "{refused:?}");
        with("1G").expect("just large enough");
        fs::write(folder.path().join("x"), b"the user's own").expect("written");
        with("1023M").expect("the image is there, so its size is not made");
    }

    #[test]
    fn the_sample_is_a_sound_ext4_with_the_files_it_was_given() {
        let Some(debugfs) = needs::find_program("debugfs") else {
            assert!(std::env::var_os("CI").is_none(), "e2fsprogs is needed for this test");
            return;
        };
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("sample.ext4");
        make_sample(&image, SAMPLE).expect("made");
        let out = Command::new(debugfs)
            .arg("-R")
            .arg("cat sizes/three-MiB")
            .arg(&image)
            .output()
            .expect("runs");
        assert!(out.stdout == noise(4, 3 << 20));
        assert_eq!(
            fs::read_dir(folder.path()).expect("a folder").count(),
            1,
            "nothing else is left"
        );
    }
}
