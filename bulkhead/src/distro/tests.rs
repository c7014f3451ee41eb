use super::*;
use std::sync::Mutex;

fn cache() -> (tempfile::TempDir, Cache) {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache::at(folder.path()).expect("made");
    (folder, cache)
}

fn with_job<T>(work: impl FnOnce(&Job<'_>) -> T) -> (T, Vec<String>) {
    let told = Mutex::new(Vec::new());
    let say = |line: &str| told.lock().expect("whole").push(line.to_owned());
    let interrupts = AtomicU32::new(0);
    let done = work(&Job { say: &say, progress: Progress::default(), interrupts: &interrupts });
    (done, told.into_inner().expect("whole"))
}

/// A package as `dpkg-deb --extract` leaves it.
fn unpacked(cache: &Cache, name: &str) {
    let version = "6.1.0-9-amd64";
    fs::create_dir_all(cache.path(name).join("boot")).expect("made");
    fs::write(cache.path(name).join(format!("boot/vmlinuz-{version}")), "k").expect("written");
    fs::create_dir_all(cache.path(name).join("lib/modules").join(version)).expect("made");
}

#[test]
fn a_kernel_that_was_asked_for_today_is_taken_without_asking_again() {
    let (_folder, cache) = cache();
    unpacked(&cache, "linux-image-9");
    fs::write(cache.path(&note(Flavour::Debian)), "linux-image-9\n").expect("written");
    let (found, _) = with_job(|job| newest(Flavour::Debian, &cache, job));
    let found = found.expect("from the cache");
    assert_eq!(found.kernel, cache.path("linux-image-9/boot/vmlinuz-6.1.0-9-amd64"));
    assert_eq!(found.modules, cache.path("linux-image-9/lib/modules/6.1.0-9-amd64"));
}

#[test]
fn what_is_named_but_not_there_or_long_ago_is_not_fresh() {
    let (_folder, cache) = cache();
    let path = cache.path(&note(Flavour::Debian));
    fs::write(&path, "linux-image-9").expect("written");
    assert!(known(Flavour::Debian, &cache).is_none());
    unpacked(&cache, "linux-image-9");
    assert!(known(Flavour::Debian, &cache).expect("there").is_fresh);
    let long_ago = SystemTime::now() - 2 * FRESH;
    fs::File::options()
        .append(true)
        .open(&path)
        .and_then(|f| f.set_modified(long_ago))
        .expect("set");
    assert!(!known(Flavour::Debian, &cache).expect("there").is_fresh);
    ask_again_later(Flavour::Debian, &cache);
    assert!(known(Flavour::Debian, &cache).expect("there").is_fresh);
}

#[test]
fn forgets_what_no_flavour_names() {
    let (_folder, cache) = cache();
    for name in ["old", "used"] {
        unpacked(&cache, name);
        forget(name, &cache);
    }
    assert!(!cache.path("old").exists());
    unpacked(&cache, "used");
    fs::write(cache.path(&note(Flavour::DebianCloud)), "used").expect("written");
    forget("used", &cache);
    assert!(cache.path("used").exists());
}

#[test]
fn a_users_package_is_unpacked_once_and_refused_if_it_holds_no_kernel() {
    if crate::needs::find_program("dpkg-deb").is_none() {
        assert!(std::env::var_os("CI").is_none(), "dpkg is needed for this test");
        return;
    }
    let (folder, cache) = cache();
    let deb = |name: &str, file: &str| {
        let tree = folder.path().join(format!("tree-{name}"));
        let file = tree.join(file);
        fs::create_dir_all(tree.join("DEBIAN")).expect("made");
        fs::create_dir_all(file.parent().expect("one")).expect("made");
        fs::create_dir_all(tree.join("lib/modules/6.1")).expect("made");
        fs::write(file, "k").expect("written");
        let control = format!(
            "Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n"
        );
        fs::write(tree.join("DEBIAN/control"), control).expect("written");
        let deb = folder.path().join(format!("{name}.deb"));
        let done = std::process::Command::new("dpkg-deb")
            .args(["--build", "--root-owner-group"])
            .args([&tree, &deb])
            .output()
            .expect("runs");
        assert!(done.status.success(), "{done:?}");
        deb
    };
    let good = deb("good", "boot/vmlinuz-6.1");
    let (first, _) = with_job(|job| from_file(&good, &cache, job));
    let first = first.expect("unpacked");
    assert_eq!(fs::read(&first.kernel).expect("there"), b"k");
    fs::write(&first.kernel, "same folder").expect("written");
    let (again, _) = with_job(|job| from_file(&good, &cache, job));
    assert_eq!(fs::read(again.expect("there").kernel).expect("there"), b"same folder");

    let meta = deb("meta", "usr/share/doc/x");
    let (refused, _) = with_job(|job| from_file(&meta, &cache, job));
    let refused = refused.expect_err("no kernel");
    assert!(refused.message.contains("holds no kernel"), "{refused}");
    fs::write(folder.path().join("text.deb"), "no package").expect("written");
    let (refused, _) = with_job(|job| from_file(&folder.path().join("text.deb"), &cache, job));
    assert!(refused.expect_err("no package").message.contains("cannot unpack"));
    let left = fs::read_dir(folder.path()).expect("read").flatten();
    assert!(!left.into_iter().any(|e| e.file_name().to_string_lossy().contains(".half-")));
}
