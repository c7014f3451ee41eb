//! The listing of an ext4 image made by `mkfs.ext4`, against the host's own view.
#![cfg(feature = "checks")]

use guest_frontends::listing::{self, BlockSource};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Command;

struct Image(Vec<u8>);

impl BlockSource for Image {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        assert_eq!(offset % listing::CHUNK as u64, 0);
        let at = offset as usize;
        into.copy_from_slice(&self.0[at..at + into.len()]);
        Ok(())
    }
}

fn make_files(root: &Path) -> BTreeMap<String, (u64, String)> {
    let mut expected = BTreeMap::new();
    let mut put = |path: &str, bytes: Vec<u8>| {
        let at = root.join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, &bytes).unwrap();
        let digest = Sha256::digest(&bytes);
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        expected.insert(format!("/{path}"), (bytes.len() as u64, hex));
    };
    put("empty", Vec::new());
    put("a/b/c/deep", vec![7; 100]);
    put("big", (0..700_001_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect());
    for i in 0..300 {
        put(&format!("many/file-{i}"), vec![i as u8; i * 7]);
    }
    std::os::unix::fs::symlink("big", root.join("link")).unwrap();
    expected
}

#[test]
fn the_listing_agrees_with_the_files_that_went_into_the_image() {
    if Command::new("mkfs.ext4").arg("-V").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "e2fsprogs is not installed");
        eprintln!("SKIPPED: no mkfs.ext4; apt-get install e2fsprogs");
        return;
    }
    let dir = std::env::temp_dir().join(format!("listing-{}", std::process::id()));
    let (root, image) = (dir.join("root"), dir.join("image"));
    fs::create_dir_all(&root).unwrap();
    let expected = make_files(&root);
    fs::write(&image, vec![0; 16 << 20]).unwrap();
    let made =
        Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).args([&root, &image]).status().unwrap();
    assert!(made.success());
    let mut found = BTreeMap::new();
    let source = Image(fs::read(&image).unwrap());
    let (files, bytes) = listing::list(source, |entry| {
        let line = entry.line();
        let mut words = line.splitn(3, "  ");
        let hex = words.next().unwrap().to_string();
        let size = words.next().unwrap().parse().unwrap();
        found.insert(words.next().unwrap().to_string(), (size, hex));
    })
    .unwrap();
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(files as usize, expected.len());
    assert_eq!(bytes, expected.values().map(|(size, _)| size).sum::<u64>());
    assert_eq!(found, expected);
}
