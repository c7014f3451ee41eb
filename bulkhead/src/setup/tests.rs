use super::*;
use bulkhead_link::OnFailure;
use proptest::prelude::*;

const DISK: &str = r#"
[machine]
memory = "256M"

[driver.disk]
kernel = "disk"

[disk.sample]
image = "sample.ext4"
read-only = true

[disk.scratch]
image = "/var/scratch"
size = "16M"

[guest.reader]
kernel = "disk-check"
weight = 512
warp = "5ms"
disks = ["sample", { disk = "scratch", offset = "1M", size = "2M" }]
"#;

fn parse(text: &str, sets: &[&str]) -> Result<Setup, SetupError> {
    let source = Source { name: "test.toml".into(), text: text.into() };
    let sets: Vec<_> = sets.iter().map(|s| (*s).to_owned()).collect();
    Setup::parse(source, Path::new("/base"), &sets)
}

/// The error as a person sees it.
fn told(text: &str, sets: &[&str]) -> String {
    let error = parse(text, sets).expect_err("should be refused");
    format!("{:?}", miette::Report::new(error))
}

#[test]
fn reads_a_whole_set_up() {
    let setup = parse(DISK, &[]).expect("is right");
    assert_eq!(setup.machine.memory.as_ref().map(|m| m.0.mib()), Some(256));
    assert_eq!(setup.drivers[0].memory.mib(), 8);
    assert_eq!(setup.disks[0].image, Path::new("/base/sample.ext4"));
    assert_eq!(setup.disks[1].image, Path::new("/var/scratch"));
    let reader = &setup.guests[0];
    assert_eq!((reader.domain.sched.weight, reader.domain.sched.warp_ns), (512, 5_000_000));
    let seen: Vec<_> =
        reader.disks.iter().map(|d| (d.disk, d.offset, d.size, d.writable)).collect();
    assert_eq!(seen, [(0, 0, None, false), (1, 1 << 20, Some(2 << 20), true)]);
}

#[test]
fn guests_restart_when_they_reboot_unless_told_otherwise() {
    let of = |sets: &[&str]| parse(DISK, sets).expect("is right").guests[0].on_reboot;
    assert_eq!(of(&[]), OnReboot::Restart);
    assert_eq!(of(&["guest.reader.on-reboot=restart"]), OnReboot::Restart);
    assert_eq!(of(&["guest.reader.on-reboot=destroy"]), OnReboot::Destroy);
    assert!(told(DISK, &["guest.reader.on-reboot=never"]).contains("never"));
    assert!(told(DISK, &["driver.disk.on-reboot=restart"]).contains("unknown field"));
}

#[test]
fn how_a_driver_domain_is_looked_after_can_be_set_within_limits() {
    let care = |sets: &[&str]| parse(DISK, sets).expect("is right").care[0];
    assert_eq!(care(&[]), Care::default());
    let set = [
        "driver.disk.on-failure=queue",
        "driver.disk.hang-deadline=60ms",
        "driver.disk.answer-deadline=100ms",
        "driver.disk.restart-limit=0",
        "driver.disk.restart-window=1s",
    ];
    let wanted = Care {
        on_failure: OnFailure::Queue,
        hang_deadline_ns: 60_000_000,
        answer_deadline_ns: 100_000_000,
        restart_limit: 0,
        restart_window_ns: 1_000_000_000,
        refuser: None,
    };
    assert_eq!(care(&set), wanted);
    assert_eq!(care(&["driver.disk.on-failure=fail"]).on_failure, OnFailure::Fail);
    for (wrong, part) in [
        ("driver.disk.on-failure=retry", "expected one of `reissue`, `queue`, `fail`"),
        ("driver.disk.hang-deadline=59ms", "60ms to 60s"),
        ("driver.disk.hang-deadline=61s", "`hang-deadline` is out of range"),
        ("driver.disk.answer-deadline=99ms", "`answer-deadline` is out of range"),
        ("driver.disk.hang-deadline=100", "`100` is no time"),
        ("driver.disk.restart-limit=1001", "0 (quarantine at the first failure)"),
        ("driver.disk.restart-limit=-1", "u32"),
        ("driver.disk.restart-window=0s", "100ms to 3600s"),
        ("driver.disk.restart-windw=1s", "did you mean `restart-window`?"),
        ("guest.reader.on-failure=fail", "unknown field"),
    ] {
        let told = told(DISK, &[wrong]);
        assert!(told.contains(part), "{wrong}: {told}");
    }
}

#[test]
fn driver_domains_warp_unless_told_otherwise_and_guests_do_not() {
    let setup =
        parse(DISK, &["driver.disk.unwarp=1ms", "driver.disk.warp-limit=0ms"]).expect("is right");
    let warps = |s: &Sched| (s.warp_ns, s.warp_limit_ns, s.unwarp_ns, s.allowance_ns);
    assert_eq!(warps(&setup.drivers[0].sched), (20_000_000, 0, 1_000_000, 1_000_000));
    let setup = parse(DISK, &[]).expect("is right");
    assert_eq!(warps(&setup.drivers[0].sched), (20_000_000, 5_000_000, 0, 1_000_000));
    assert_eq!(warps(&setup.guests[0].domain.sched), (5_000_000, 0, 0, 1_000_000));
}

#[test]
fn disks_with_pins_are_refused_when_lines_run_out() {
    let pin = |n: usize| format!("[disk.p{n}]\nimage = \"p{n}\"\ninterrupt = \"pin\"\n");
    let with = |n| format!("{DISK}{}", (0..n).map(pin).collect::<String>());
    let setup = parse(&with(4), &[]).expect("is right");
    let pins = setup.disks.iter().filter(|d| d.interrupt == Interrupt::Pin).count();
    assert_eq!((pins, setup.disks.len()), (4, 6));
    let told = told(&with(5), &[]);
    assert!(told.contains("no interrupt line left for disk `p4`"), "{told}");
    assert!(told.contains("interrupt = \"pin\""), "{told}");
}

#[test]
fn a_users_own_image_takes_the_place_of_the_first_disk() {
    let setup = parse(DISK, &["guest.reader.disk=/home/me/my disk.img"]).expect("is right");
    let reader = &setup.guests[0];
    assert_eq!(reader.disks.len(), 2);
    let own = &setup.disks[reader.disks[0].disk];
    assert_eq!(own.image, Path::new("/home/me/my disk.img"));
    assert!(own.read_only && !reader.disks[0].writable, "as the disk it replaces");
}

#[test]
fn a_set_may_name_any_key_and_is_read_as_toml_first() {
    let sets = ["guest.reader.weight=7", "machine.memory=1G", "guest.reader.cmdline=\"write=off\""];
    let setup = parse(DISK, &sets).expect("is right");
    assert_eq!(setup.guests[0].domain.sched.weight, 7);
    assert_eq!(setup.guests[0].domain.cmdline, "write=off");
    assert_eq!(setup.machine.memory.map(|m| m.0.mib()), Some(1024));
}

#[test]
fn each_mistake_is_told_with_its_line_and_a_remedy() {
    let cases = [
        (("memory = \"256M\"", "memory = 256M"), "test.toml:3:", ""),
        (("weight = 512", "wieght = 512"), "test.toml:18:", "did you mean `weight`?"),
        (("weight = 512", "weight = 0"), "test.toml:18:", "weights go from 1"),
        (("\"5ms\"", "5"), "test.toml:19:", "\"5ms\""),
        (("[\"sample\"", "[\"smaple\""), "test.toml:20:", "did you mean `sample`?"),
        (("size = \"2M\"", "size = \"2049K\", offzet = 1"), "test.toml:20:", "disk = NAME"),
        (
            ("size = \"16M\"", "size = \"16M\"\ndriver = \"dsik\""),
            "test.toml:15:",
            "did you mean `disk`?",
        ),
        (
            ("kernel = \"disk-check\"", "kernel = \"disk-chek\""),
            "test.toml:17:",
            "did you mean `disk-check`?",
        ),
        (("[guest.reader]", "[guest.disk]"), "test.toml:16:", "choose another"),
        (("[guest.reader]", "[guest.\"a b\"]"), "test.toml:16:", "letters"),
        (("[machine]", "[machine]\ncpus = 4"), "test.toml:3:", "1"),
        (("[driver.disk]\nkernel = \"disk\"\n", ""), "test.toml:", "add [driver.disk]"),
        (("read-only = true", "interrupt = \"pni\""), "test.toml:10:", "`message` or `pin`"),
        (("[machine]", "[machine"), "test.toml:2:", ""),
    ];
    for ((from, to), place, remedy) in cases {
        assert!(DISK.contains(from), "{from}");
        let told = told(&DISK.replacen(from, to, 1), &[]);
        assert!(told.contains(place) && told.contains(remedy), "{to}: {place} {remedy}\n{told}");
    }
}

#[test]
fn a_mistake_in_a_set_is_shown_at_its_own_line() {
    let told = told(DISK, &["guest.reader.weight=1", "guest.reader.wrap=1ms"]);
    assert!(told.contains("guest.reader.wrap = \"1ms\" # from --set"), "{told}");
    assert!(told.contains("did you mean `warp`?"), "{told}");
    assert!(parse(DISK, &["guest.reader"]).is_err());
}

#[test]
fn two_guests_may_share_what_nobody_writes_and_nothing_else() {
    let second =
        "\n[guest.second]\nkernel = \"disk-check\"\ndisks = [\"sample\", { disk = \"scratch\", ";
    let apart = format!("{DISK}{second}offset = \"3M\" }}]");
    assert!(parse(&apart, &[]).is_ok());
    let readers = format!("{DISK}{second}read-only = true, size = \"1M\" }}]");
    assert!(parse(&readers, &[]).is_ok());
    let both = format!("{DISK}{second}offset = \"2M\" }}]");
    let told = told(&both, &[]);
    assert!(told.contains("`reader` and `second` share a part of disk `scratch`"), "{told}");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(at in 0usize..600, junk in "[\\PC\n]{0,6}", set in "\\PC{0,20}") {
        let mut text: Vec<char> = DISK.chars().collect();
        let at = at % text.len();
        text.splice(at..(at + 2).min(text.len()), junk.chars());
        let text: String = text.into_iter().collect();
        let _ = parse(&text, &[]);
        let _ = parse(DISK, &[&set]);
    }
}

#[test]
fn every_example_is_a_set_up_that_can_be_run() {
    let folder = crate::artifacts::workspace().join("examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("examples") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "toml") {
            let setup =
                Setup::load(&path, &[]).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            crate::plan::check_early(&setup, &mut Default::default())
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            seen += 1;
        }
    }
    assert!(seen >= 3);
}
