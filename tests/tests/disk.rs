//! Guests read and write real disks through a driver domain, judged on the host: by the
//! sums of the files in the image, and by what the written image holds afterwards.

mod common;

use bulkhead::{needs::find_program, watch::Outcome};
use common::{Ran, run_file, run_text};
use guest_frontends::{
    pattern::pattern_sector,
    verify::{Counts, audit::audit},
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

/// `--set` that puts the images of an example into a folder of the test's own.
fn images_in(folder: &Path, names: &[&str]) -> Vec<String> {
    let set = |name: &&str| format!("disk.{name}.image={}", folder.join(name).display());
    names.iter().map(set).collect()
}

/// Every file in an ext4 image, as the host reads it: `SUM  SIZE  PATH`.
fn host_listing(image: &Path) -> BTreeSet<String> {
    let out = tempfile::tempdir().expect("a folder");
    let debugfs = find_program("debugfs").expect("e2fsprogs is installed");
    let dump = format!("rdump / {}", out.path().display());
    let done = Command::new(debugfs).arg("-R").arg(dump).arg(image).output().expect("debugfs runs");
    assert!(done.status.success());
    let mut listing = BTreeSet::new();
    add_files(out.path(), out.path(), &mut listing);
    listing
}

fn add_files(root: &Path, folder: &Path, listing: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let kind = fs::symlink_metadata(&path).expect("an entry").file_type();
        if kind.is_dir() {
            add_files(root, &path, listing);
        } else if kind.is_file() {
            let bytes = fs::read(&path).expect("a file");
            let inside = path.strip_prefix(root).expect("below the root").display();
            listing.insert(format!("{:x}  {}  /{inside}", Sha256::digest(&bytes), bytes.len()));
        }
    }
}

/// The lines of a console that list files, as one blank-separated form.
fn guest_listing(console: &str) -> BTreeSet<String> {
    let as_line = |line: &str| {
        let mut words = line.trim_end().splitn(2, ' ');
        let sum =
            words.next().filter(|s| s.len() == 64 && s.bytes().all(|b| b.is_ascii_hexdigit()))?;
        let (size, path) = words.next()?.trim_start().split_once(' ')?;
        Some(format!("{sum}  {size}  {}", path.trim_start()))
    };
    console.lines().filter_map(as_line).collect()
}

fn assert_all_well(ran: &Ran) {
    assert_eq!(ran.report.outcome, Outcome::Ok, "{}", ran.story());
}

fn assert_pattern(image: &[u8], seed: u64) {
    for (number, sector) in (0..).zip(image.chunks_exact(512)) {
        assert!(sector == pattern_sector(seed, number), "sector {number} of seed {seed}");
    }
}

#[test]
fn a_guest_lists_a_disk_as_the_host_does_and_leaves_the_pattern_on_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = run_file(&example("disk.toml"), &images_in(folder.path(), &["sample", "scratch"]));
    assert_all_well(&ran);
    let expected = host_listing(&folder.path().join("sample"));
    assert!(expected.len() > 200);
    assert_eq!(guest_listing(ran.console("reader")), expected, "{}", ran.story());
    let written = fs::read(folder.path().join("scratch")).expect("the image");
    assert_eq!(written.len(), 16 << 20);
    assert_pattern(&written, 1);
    check_report(&ran);
}

#[test]
fn disks_that_only_have_pins_read_and_write_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let names = ["sample", "scratch"];
    let mut sets = images_in(folder.path(), &names);
    sets.extend(names.map(|name| format!("disk.{name}.interrupt=pin")));
    let ran = run_file(&example("disk.toml"), &sets);
    assert_all_well(&ran);
    assert_eq!(ran.console("disk").matches("pin interrupt").count(), 2, "{}", ran.story());
    let expected = host_listing(&folder.path().join("sample"));
    assert_eq!(guest_listing(ran.console("reader")), expected, "{}", ran.story());
    assert_pattern(&fs::read(folder.path().join("scratch")).expect("the image"), 1);
}

#[test]
fn a_load_that_verifies_itself_finds_nothing_and_the_image_bears_it_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = r#"
[machine]
memory = "256M"
[driver.disk]
kernel = "disk"
[disk.one]
image = "one.raw"
size = "4M"
[disk.two]
image = "two.raw"
size = "3M"
[guest.verify]
kernel = "disk-verify"
disks = ["one", "two"]
cmdline = "rounds=2 depth=24 size=6 seed=77 integrity=1"
"#;
    let ran = run_text(folder.path(), text);
    assert_all_well(&ran);
    let console = ran.console("verify");
    for (number, name, vdev) in [(0, "one", "xvda"), (1, "two", "xvdb")] {
        let line =
            console.lines().find(|l| l.starts_with(&format!("disk-verify: done disk={vdev}")));
        let line = line.unwrap_or_else(|| panic!("{}", ran.story()));
        let counts = Counts::parse(line);
        assert!(counts.is_all_well() && counts.reads > 100 && counts.writes > 100, "{line}");
        let image = fs::read(folder.path().join(format!("{name}.raw"))).expect("the image");
        let found = audit(image.len() as u64 / 4096, |block, into| {
            into.copy_from_slice(&image[block as usize * 4096..][..4096]);
            Ok::<_, std::convert::Infallible>(())
        })
        .expect("a table");
        assert_eq!(
            (found.seed, found.disk, found.unknown, &*found.wrong),
            (77, number, 0, &[][..])
        );
        assert!(line.ends_with(&format!("digest={:016x}", found.digest)), "{line}");
    }
}

/// The figures that the tool prints belong to this run.
fn check_report(ran: &Ran) {
    let json = serde_json::to_value(&ran.report).expect("encodes");
    assert_eq!(json["outcome"], "ok");
    assert!(json["elapsed_s"].as_f64().expect("a number") > 0.0);
    let named = |name: &str| {
        let domains = json["domains"].as_array().expect("an array");
        domains.iter().find(|d| d["name"] == name).unwrap_or_else(|| panic!("{name} in {json:#}"))
    };
    for (name, kind) in [("dom0", "dom0"), ("disk", "driver"), ("reader", "guest")] {
        let domain = named(name);
        assert_eq!(domain["kind"], kind);
        for key in ["domid", "memory_kib", "cpu_ns", "weight", "restarts"] {
            assert!(domain[key].is_u64(), "{key} of {name}: {domain}");
        }
        assert!(domain["cpu_ns"].as_u64() > Some(0), "{name} ran");
    }
    assert_eq!(named("reader")["state"], "stopped");
    assert_eq!(named("reader")["exit"], "poweroff");
    assert_eq!(named("disk")["state"], "running");
    let disks = json["disks"].as_array().expect("an array");
    let scratch = disks.iter().find(|d| d["device"] == "scratch").expect("scratch");
    assert!(scratch["written_bytes"].as_u64() >= Some(16 << 20), "{scratch}");
    assert!(scratch["read_bytes"].as_u64() >= Some(16 << 20), "{scratch}");
    assert_eq!(scratch["errors"], 0);
}

#[test]
fn four_guests_share_one_driver_domain_and_stay_in_their_ranges() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = run_file(&example("disk4.toml"), &images_in(folder.path(), &["sample", "shared"]));
    assert_all_well(&ran);
    let expected = host_listing(&folder.path().join("sample"));
    let written = fs::read(folder.path().join("shared")).expect("the image");
    let quarters = written.chunks_exact(4 << 20);
    for ((name, seed), quarter) in
        [("one", 1), ("two", 2), ("three", 3), ("four", 4)].iter().zip(quarters)
    {
        assert_eq!(guest_listing(ran.console(name)), expected, "{name}\n{}", ran.story());
        assert_pattern(quarter, *seed);
    }
}

#[test]
fn a_users_own_image_is_listed_and_not_touched() {
    let folder = tempfile::tempdir().expect("a folder");
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("docs")).expect("made");
    fs::write(tree.join("docs/mine.txt"), "my own file\n").expect("written");
    let image = folder.path().join("mine.ext4");
    fs::File::create(&image).and_then(|f| f.set_len(8 << 20)).expect("made");
    let mkfs = find_program("mkfs.ext4").expect("e2fsprogs is installed");
    let made = Command::new(mkfs).args(["-q", "-F", "-d"]).args([&tree, &image]).status();
    assert!(made.expect("mkfs runs").success());
    let before = fs::read(&image).expect("the image");
    let mut sets = images_in(folder.path(), &["sample", "scratch"]);
    sets.push(format!("guest.reader.disk={}", image.display()));
    let ran = run_file(&example("disk.toml"), &sets);
    assert_all_well(&ran);
    assert_eq!(guest_listing(ran.console("reader")), host_listing(&image));
    assert!(fs::read(&image).expect("the image") == before);
    assert!(!folder.path().join("sample").exists(), "the image it replaces is not made");
}

#[test]
fn a_guest_that_fails_makes_the_run_fail_and_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = r#"
[driver.disk]
kernel = "disk"
[disk.zeroes]
image = "zeroes.raw"
size = "1M"
[guest.reader]
kernel = "disk-check"
disks = ["zeroes"]
"#;
    let ran = run_text(folder.path(), text);
    assert_eq!(ran.report.outcome, Outcome::GuestFailed, "{}", ran.story());
    assert!(ran.console("reader").contains("FAILED"), "{}", ran.story());
    assert!(ran.report.reason.contains("reader ended by crash"), "{}", ran.report.reason);
}
