//! Domains that break the rules, crash or hang, beside one that goes about its work:
//! judged by what the honest guest and the disk images say.

mod common;

use bulkhead::report::Domain;
use common::{Background, Ran, run_text};
use guest_frontends::pattern::pattern_sector;
use std::fs;

/// The driver domain and the disks of the honest guest.
const DISKS: &str = r#"
[machine]
memory = "384M"
[driver.disk]
kernel = "disk"
[disk.sample]
driver = "disk"
image = "sample.ext4"
make = "ext4-sample"
read-only = true
[disk.scratch]
driver = "disk"
image = "scratch.raw"
size = "16M"
"#;

/// The guest whose work must come out right whatever the others do.
const HONEST: &str = r#"
[guest.honest]
kernel = "disk-check"
disks = ["sample", { disk = "scratch", offset = "4M", size = "4M" }]
"#;

fn domain<'a>(ran: &'a Ran, name: &str) -> &'a Domain {
    let found = ran.report.domains.iter().find(|d| d.name == name);
    found.unwrap_or_else(|| panic!("{name} is not listed\n{}", ran.story()))
}

/// The honest guest ended well, its part of the disk is as it should be, and the driver
/// domain is the one that was there at the start.
fn assert_unharmed(ran: &Ran, folder: &std::path::Path) {
    assert_eq!(domain(ran, "honest").exit, Some("poweroff"), "{}", ran.story());
    assert_eq!(domain(ran, "disk").state, "running", "{}", ran.story());
    assert_eq!(domain(ran, "disk").restarts, 0);
    let image = fs::read(folder.join("scratch.raw")).expect("the image");
    for (number, sector) in (0..).zip(image[4 << 20..8 << 20].chunks_exact(512)) {
        assert!(sector == pattern_sector(1, number), "sector {number} of the honest guest");
    }
}

/// A TAP stream without `not ok`, as long as it says, and at least `cases` long.
fn assert_tap(ran: &Ran, name: &str, cases: usize) {
    let lines = || ran.console(name).lines().map(str::trim);
    let bad: Vec<_> = lines().filter(|l| l.starts_with("not ok ")).collect();
    let good = lines().filter(|l| l.starts_with("ok ")).count();
    let plan = lines().find_map(|l| l.strip_prefix("1..")?.parse().ok());
    assert!(bad.is_empty(), "{bad:#?}");
    assert_eq!(plan, Some(good), "{}", ran.story());
    assert!(good >= cases, "only {good} cases");
}

#[test]
fn a_hostile_guest_gets_at_nothing_that_is_not_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let hostile = "[guest.hostile]\nkernel = \"hostile\"\nmemory = \"32M\"\n";
    let ran = run_text(folder.path(), &format!("{DISKS}{HONEST}{hostile}"));
    assert_tap(&ran, "hostile", 100);
    assert_eq!(domain(&ran, "hostile").exit, Some("poweroff"), "{}", ran.story());
    assert_unharmed(&ran, folder.path());
}

#[test]
fn a_hostile_front_end_gets_errors_and_harms_nobody() {
    let folder = tempfile::tempdir().expect("a folder");
    let hostile = r#"
[guest.hostile]
kernel = "hostile-front"
memory = "32M"
disks = [
    { disk = "scratch", offset = "8M", size = "1M" },
    { disk = "scratch", offset = "9M", size = "1M" },
    { disk = "scratch", offset = "10M", size = "1M" },
    { disk = "scratch", offset = "11M", size = "1M" },
    { disk = "scratch", offset = "12M", size = "1M" },
    { disk = "scratch", offset = "13M", size = "1M" },
    { disk = "scratch", offset = "14M", size = "1M" },
]
"#;
    let ran = run_text(folder.path(), &format!("{DISKS}{HONEST}{hostile}"));
    assert_tap(&ran, "hostile", 30);
    assert_unharmed(&ran, folder.path());
    let image = fs::read(folder.path().join("scratch.raw")).expect("the image");
    for part in [&image[..4 << 20], &image[15 << 20..]] {
        assert!(part.iter().all(|&byte| byte == 0), "nobody's part of the disk was written");
    }
}

#[test]
fn guests_that_crash_in_every_way_end_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let ways = [
        "null-write",
        "page-table",
        "stack-overflow",
        "double-fault",
        "bad-stack",
        "bad-iret",
        "panic",
    ];
    let mut text = format!("{DISKS}{HONEST}");
    for way in ways {
        text += &format!(
            "[guest.{way}]\nkernel = \"hostile\"\ncmdline = \"how={way}\"\nmemory = \"12M\"\n"
        );
    }
    let ran = run_text(folder.path(), &text);
    for way in ways {
        let found = domain(&ran, way);
        assert_eq!(found.exit, Some("crash"), "{way}\n{}", ran.story());
        assert!(!ran.console(way).contains("still here"), "{way}");
    }
    assert_unharmed(&ran, folder.path());
}

#[test]
fn driver_domains_that_crash_or_loop_leave_the_others_working() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut text = format!("{DISKS}{HONEST}");
    for way in ["null-write", "page-table", "stack-overflow", "loop"] {
        text += &format!(
            "[driver.{way}]\nkernel = \"hostile\"\ncmdline = \"how={way}\"\nmemory = \"12M\"\n\
             [disk.of-{way}]\ndriver = \"{way}\"\nimage = \"{way}.raw\"\nsize = \"1M\"\n"
        );
    }
    let ran = run_text(folder.path(), &text);
    for way in ["null-write", "page-table", "stack-overflow"] {
        assert_eq!(domain(&ran, way).state, "quarantined", "{way}\n{}", ran.story());
    }
    assert_eq!(domain(&ran, "loop").state, "running", "{}", ran.story());
    assert_unharmed(&ran, folder.path());
}

#[test]
fn the_death_of_a_driver_domain_under_load_stops_only_its_own_guests() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = r#"
[driver.disk]
kernel = "disk"
[disk.tiny]
image = "tiny.raw"
size = "1M"
[disk.large]
image = "large.raw"
size = "1G"
[guest.victim]
kernel = "disk-check"
cmdline = "list=off"
disks = ["tiny", "large"]
[guest.spinner]
kernel = "spin"
memory = "16M"
cmdline = "seconds=12"
[guest.witness]
kernel = "spin"
memory = "16M"
"#;
    let run = Background::start(folder.path(), text);
    run.wait_for(|l| l.disks.iter().any(|d| d.written_bytes > 1 << 20).then_some(()));
    run.kill("disk");
    let before = run.wait_for(|l| {
        let ended = l.domains.iter().any(|d| d.name == "spinner" && d.state == "stopped");
        ended.then_some(l.core.free_frames)
    });
    run.kill("victim");
    run.wait_for(|l| (l.core.free_frames > before + (60 << 8)).then_some(()));
    run.kill("witness");
    let ran = run.finish();
    assert_eq!(domain(&ran, "spinner").exit, Some("poweroff"), "{}", ran.story());
    assert_eq!(domain(&ran, "disk").exit, Some("killed"), "{}", ran.story());
    assert_eq!(domain(&ran, "victim").exit, Some("killed"), "{}", ran.story());
}
