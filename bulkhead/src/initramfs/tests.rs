use super::*;
use std::{collections::BTreeMap, fs, io::Write, path::Path};

/// An object file with the section `.modinfo` alone.
fn module(info: &str) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(1u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    let table = 64 + info.len() as u64 + names.len() as u64;
    for word in [0, 0, table] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 0, 0, 64, 3, 2] {
        file.extend(half.to_le_bytes());
    }
    file.extend(info.as_bytes());
    file.extend(names);
    let sections = [(0, 0, 0, 0), (1, 1, 64, info.len()), (10, 3, 64 + info.len(), names.len())];
    for (name, kind, offset, size) in sections {
        file.extend((name as u32).to_le_bytes());
        file.extend((kind as u32).to_le_bytes());
        for word in [0, 0, offset as u64, size as u64] {
            file.extend(word.to_le_bytes());
        }
        file.extend([0; 8]);
        for word in [1u64, 0] {
            file.extend(word.to_le_bytes());
        }
    }
    file
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().expect("one")).expect("made");
    fs::write(path, bytes).expect("written");
}

/// Like Debian's -amd64 flavour, with a module compressed and one built in.
fn debian(folder: &Path) {
    let gzip = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).expect("packs");
        out.finish().expect("packs")
    };
    let ext4 = module("license=GPL\0softdep=pre: crc32c post: later\0depends=mbcache,jbd2\0");
    write(folder, "kernel/fs/ext4/ext4.ko", &ext4);
    write(folder, "kernel/fs/mbcache.ko", &module("depends=\0"));
    write(folder, "kernel/fs/jbd2/jbd2.ko.gz", &gzip(&module("depends=crc16\0")));
    write(folder, "kernel/drivers/block/xen-blkfront.ko", &module("depends=\0name=xen_blkfront\0"));
    write(folder, "modules.builtin", b"kernel/lib/crc16.ko\nkernel/crypto/crc32c_generic.ko\n");
}

fn programs() -> Programs {
    Programs { init: b"the init".to_vec(), agent: None }
}

/// The entries of an archive by name, with their modes: a reader of its own.
fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
    let mut entries = Vec::new();
    let mut rest = archive;
    loop {
        let (header, after) = rest.split_at(110);
        let text = std::str::from_utf8(header).expect("digits");
        assert_eq!(&text[..6], "070701");
        let field = |n: usize| u32::from_str_radix(&text[6 + n * 8..14 + n * 8], 16).expect("hex");
        let name_bytes = field(11) as usize;
        let name = String::from_utf8(after[..name_bytes - 1].to_vec()).expect("text");
        assert_eq!(after[name_bytes - 1], 0);
        let pad = (4 - (110 + name_bytes) % 4) % 4;
        let contents = &after[name_bytes + pad..][..field(6) as usize];
        let end = name_bytes + pad + contents.len().div_ceil(4) * 4;
        if name == "TRAILER!!!" {
            assert_eq!(after.len(), end);
            return entries;
        }
        entries.push((name, field(1), contents.to_vec()));
        rest = &after[end..];
    }
}

#[test]
fn modules_come_after_all_that_they_need_and_what_is_built_in_does_not() {
    let folder = tempfile::tempdir().expect("a folder");
    debian(folder.path());
    let tree = Tree::open(folder.path()).expect("modules");
    let archive = build(&programs(), Some(&tree), &["ext4".into(), "xfs".into()]).expect("made");
    let entries = entries(&archive);
    let modules: Vec<_> = entries.iter().filter_map(|e| e.0.strip_prefix("modules/")).collect();
    assert_eq!(modules, ["00-mbcache.ko", "01-jbd2.ko", "02-ext4.ko", "03-xen_blkfront.ko"]);
    let by_name: BTreeMap<_, _> = entries.iter().map(|e| (e.0.as_str(), e)).collect();
    assert_eq!(by_name["modules/01-jbd2.ko"].2, module("depends=crc16\0"), "uncompressed");
    assert_eq!((by_name["init"].1, by_name["init"].2.as_slice()), (0o100755, &b"the init"[..]));
    assert_eq!(by_name["dev/console"].1, 0o020600);
    assert_eq!(by_name["proc"].1, 0o040755);
    assert_eq!(unpacked_bytes(&archive), archive.len() as u64);
}

#[test]
fn a_kernel_without_known_modules_gets_the_programs_alone() {
    let with_agent = Programs { agent: Some(b"agent".to_vec()), ..programs() };
    let archive = build(&with_agent, None, &[]).expect("made");
    let names: Vec<_> = entries(&archive).into_iter().map(|e| e.0).collect();
    assert!(names.contains(&"agent".into()) && !names.iter().any(|n| n.starts_with("modules/")));
}

#[test]
fn says_which_module_is_missing_or_damaged_and_which_folder_has_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let told = |folder: &Path| match Tree::open(folder) {
        Ok(tree) => build(&programs(), Some(&tree), &[]).expect_err("should fail").to_string(),
        Err(e) => e.to_string(),
    };
    assert!(told(folder.path()).contains("no folder of a kernel's modules"));
    assert!(told(&folder.path().join("none")).contains("cannot read"));
    debian(folder.path());
    fs::remove_file(folder.path().join("kernel/fs/mbcache.ko")).expect("removed");
    assert!(told(folder.path()).contains("no module mbcache"), "{}", told(folder.path()));
    debian(folder.path());
    fs::remove_file(folder.path().join("kernel/drivers/block/xen-blkfront.ko")).expect("removed");
    assert!(told(folder.path()).contains("no module xen_blkfront"));
    debian(folder.path());
    write(folder.path(), "kernel/fs/ext4/ext4.ko", b"not a module");
    assert!(told(folder.path()).contains("ext4.ko is damaged"));
    debian(folder.path());
    write(folder.path(), "kernel/fs/jbd2/jbd2.ko.gz", &[0x1f, 0x8b, 8, 0, 0]);
    assert!(told(folder.path()).contains("jbd2.ko.gz is damaged"));
}

#[test]
fn modules_that_need_each_other_do_not_loop() {
    let folder = tempfile::tempdir().expect("a folder");
    debian(folder.path());
    write(folder.path(), "kernel/fs/mbcache.ko", &module("depends=ext4\0"));
    let tree = Tree::open(folder.path()).expect("modules");
    assert!(build(&programs(), Some(&tree), &[]).is_ok());
}

#[test]
fn a_ramdisk_counts_with_all_its_parts() {
    let early = build(&programs(), None, &[]).expect("made");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&vec![7; 1 << 20]).expect("packs");
    let packed = gzip.finish().expect("packs");
    let mut both = early.clone();
    both.resize(both.len().next_multiple_of(512), 0);
    both.extend(&packed);
    assert_eq!(unpacked_bytes(&both), early.len() as u64 + (1 << 20));
    assert_eq!(unpacked_bytes(b""), 0);
    assert_eq!(unpacked_bytes(b"something else"), 14);
    assert_eq!(unpacked_bytes(&early[..early.len() / 2]), early.len() as u64 / 2);
}

proptest::proptest! {
    #[test]
    fn a_damaged_ramdisk_is_measured_without_a_panic(at in 0usize..400, byte: u8, cut in 0usize..400) {
        let mut archive = build(&programs(), None, &[]).expect("made");
        let len = archive.len();
        archive[at % len] = byte;
        archive.truncate(len - cut % len);
        let _ = unpacked_bytes(&archive);
    }
}
