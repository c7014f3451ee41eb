use super::*;
use crate::{
    kernel_image::tests::{elf, note, notes},
    setup::Source,
};
use bulkhead_abi::elfnote;
use elf::abi::{PT_LOAD, PT_NOTE};

fn linux_kernel() -> Vec<u8> {
    let mut notes = notes();
    notes.extend(note(elfnote::GUEST_OS, b"linux\0"));
    elf(&[(PT_LOAD, 1 << 20, b"x", 1 << 20), (PT_NOTE, 0, &notes, 0)])
}

fn setup(folder: &Path, kernel: &str, more: &str) -> Setup {
    let text = format!(
        "[driver.disk]\nkernel = \"disk\"\n[disk.a]\nimage = \"a\"\nsize = \"1M\"\n\
         [guest.one]\nkernel = \"{kernel}\"\nmemory = \"128M\"\n{more}\n"
    );
    Setup::parse(Source { name: "t.toml".into(), text }, folder, &[]).expect("a set-up")
}

/// The error of reading early, as a person sees it.
fn told(setup: &Setup) -> String {
    let error = crate::plan::check_early(setup, &mut Kernels::default()).expect_err("refused");
    format!("{:?}", miette::Report::new(error))
}

#[test]
fn linux_gets_an_initramfs_unless_it_brings_its_own_and_others_get_none() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("linux"), linux_kernel()).expect("written");
    fs::write(folder.path().join("ird"), "data").expect("written");
    let notes = notes();
    let other = elf(&[(PT_LOAD, 1 << 20, b"x", 1), (PT_NOTE, 0, &notes, 0)]);
    fs::write(folder.path().join("other"), other).expect("written");
    let cases = [
        ("./linux", "disks = [\"a\"]", true),
        ("./linux", "ramdisk = \"ird\"", false),
        ("./other", "", false),
        ("debian", "disks = [\"a\"]", true),
        ("disk-check", "disks = [\"a\"]", false),
    ];
    for (kernel, more, wants) in cases {
        let setup = setup(folder.path(), kernel, more);
        let mut kernels = Kernels::default();
        crate::plan::check_early(&setup, &mut kernels).expect("right");
        assert_eq!(kernels.want_initramfs(&setup), wants, "{kernel} {more}");
    }
}

#[test]
fn a_linux_guest_needs_something_to_live_on() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("linux"), linux_kernel()).expect("written");
    for kernel in ["./linux", "debian-cloud"] {
        let told = told(&setup(folder.path(), kernel, ""));
        assert!(told.contains("`one` has no root disk") && told.contains("t.toml:7"), "{told}");
    }
}

#[test]
fn a_ramdisk_that_does_not_fit_is_told_with_what_each_part_takes() {
    use std::io::Write;
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("linux"), linux_kernel()).expect("written");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&vec![0; 120 << 20]).expect("packs");
    fs::write(folder.path().join("ird"), gzip.finish().expect("packs")).expect("written");
    let told = told(&setup(folder.path(), "./linux", "ramdisk = \"ird\""));
    assert!(told.contains("128 MiB is too little memory for `one`"), "{told}");
    assert!(told.contains("120 MiB more") && told.contains("t.toml:8"), "{told}");
}

#[test]
fn what_cannot_be_read_is_told_at_its_own_line() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("linux"), linux_kernel()).expect("written");
    let missing = told(&setup(folder.path(), "./linux", "ramdisk = \"none\""));
    assert!(
        missing.contains("cannot read the ramdisk") && missing.contains("t.toml:9"),
        "{missing}"
    );
    let missing = told(&setup(folder.path(), "./none.deb", "disks = [\"a\"]"));
    assert!(
        missing.contains("cannot read the kernel") && missing.contains("t.toml:7"),
        "{missing}"
    );
}

#[test]
fn modules_of_another_kernel_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let modules = folder.path().join("6.1.0-8-amd64");
    fs::create_dir_all(&modules).expect("made");
    fs::write(modules.join("modules.builtin"), "kernel/drivers/block/xen-blkfront.ko\n")
        .expect("written");
    let more = format!("modules = \"{}\"\ndisks = [\"a\"]", modules.display());
    let setup = setup(folder.path(), "debian", &more);
    let programs = Programs { init: Vec::new(), agent: None };
    let mut image = KernelImage::open(linux_kernel()).expect("a kernel");
    let domain = &setup.guests[0].domain;
    let loaded =
        |image: &KernelImage| Loaded { name: "k".into(), image: image.clone(), modules: None };
    assert!(make_one(&setup, domain, &loaded(&image), &programs).is_ok(), "of no known version");
    image.version = Some("6.1.0-9-amd64".into());
    let error = make_one(&setup, domain, &loaded(&image), &programs).expect_err("refused");
    assert!(error.to_string().contains("are of 6.1.0-8-amd64"), "{error}");
    assert!(error.remedy().is_some_and(|r| r.contains("lib/modules/6.1.0-9-amd64")));
}

#[test]
fn finds_the_modules_of_a_system_beside_its_kernel() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(folder.path().join("lib/modules/6.1")).expect("made");
    let at = |kernel: &str| beside(&folder.path().join(kernel));
    assert_eq!(at("boot/vmlinuz-6.1"), Some(folder.path().join("lib/modules/6.1")));
    assert_eq!(at("boot/vmlinuz-6.2"), None);
    assert_eq!(at("vmlinuz-6.1"), None);
}
