//! Stock Debian as a guest: its own kernel packages and its own programs on a disk that a
//! driver domain serves. What was done is judged inside the guest by Debian's programs, and
//! on the host by what the image holds afterwards. Needs Debian's mirror the first time.
//!
//! The tests marked as long belong to `cargo bulkhead test --full`.

mod common;

use bulkhead::{
    distro::{self, Flavour, Job},
    exec::Command as GuestCommand,
    needs::find_program,
    watch::Outcome,
};
use common::{Background, Ran};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Long enough for a host whose two cores are busy.
const LIMIT: Duration = Duration::from_secs(1500);

/// A set-up with Debian guests, each on a root disk of its own.
struct Setup {
    folder: tempfile::TempDir,
    text: String,
}

impl Setup {
    fn new(machine: &str) -> Self {
        let text = format!("[machine]\nmemory = \"{machine}\"\n[driver.disk]\nkernel = \"disk\"\n");
        Self { folder: tempfile::tempdir().expect("a folder"), text }
    }

    fn image(&self, guest: &str) -> PathBuf {
        self.folder.path().join(format!("{guest}.img"))
    }

    fn guest(mut self, name: &str, kernel: &str, more: &str) -> Self {
        let image = self.image(name).display().to_string();
        self.text.push_str(&format!(
            "[disk.{name}]\nimage = \"{image}\"\nmake = \"debian\"\nsize = \"1G\"\n\
             [guest.{name}]\nkernel = \"{kernel}\"\ndisks = [\"{name}\"]\n{more}\n"
        ));
        self
    }

    fn start(self) -> Machine {
        let run = Background::start_for(self.folder.path(), &self.text, LIMIT);
        Machine { setup: self, run }
    }
}

/// A run with Debian guests in it.
struct Machine {
    setup: Setup,
    run: Background,
}

impl Machine {
    /// What a script printed in a guest.
    ///
    /// # Panics
    /// If it failed.
    fn sh(&self, guest: &str, script: &str) -> String {
        let mut command = GuestCommand::new(["bash", "-e", "-o", "pipefail", "-c", script]);
        command.wait = LIMIT;
        let done = self.run.exec(guest, command);
        let (out, errors) = (
            String::from_utf8_lossy(&done.stdout).into_owned(),
            String::from_utf8_lossy(&done.stderr),
        );
        assert_eq!(done.finished.code(), 0, "{guest}: {script}\n--- out\n{out}\n--- err\n{errors}");
        out
    }

    /// Starts what does not end by itself.
    fn launch(&self, guest: &str, script: &str) {
        self.sh(guest, &detached(script));
    }

    /// Starts what ends the guest, perhaps before it is told that it has started.
    fn end_by(&self, guest: &str, script: &str) {
        let command = GuestCommand::new(["bash", "-c", &detached(script)]);
        let _ = self.run.try_exec(guest, command);
    }

    /// Waits until systemd has brought everything up.
    fn wait_until_up(&self, guest: &str) {
        // The agent is there before systemd is.
        let state = "systemctl is-system-running 2>&1";
        self.sh(guest, &format!("until {state} | grep -Eq 'running|degraded'; do sleep 0.5; done"));
        assert_eq!(self.sh(guest, "systemctl --failed --no-legend --plain"), "");
    }

    fn power_off(&self, guest: &str) {
        self.end_by(guest, "poweroff");
    }

    fn free_frames(&self) -> u64 {
        self.run.wait_for(|listing| Some(listing.core.free_frames))
    }

    fn finish(self) -> (Setup, Ran) {
        (self.setup, self.run.finish())
    }
}

/// A shell line that starts a script and does not wait for it.
fn detached(script: &str) -> String {
    format!("setsid bash -c '{script}' </dev/null >/dev/null 2>&1 &")
}

fn assert_all_well(ran: &Ran) {
    assert_eq!(ran.report.outcome, Outcome::Ok, "{}", ran.story());
}

fn assert_file_system_is_clean(image: &Path) {
    let e2fsck = find_program("e2fsck").expect("e2fsprogs is installed");
    let done = Command::new(e2fsck).arg("-fn").arg(image).output().expect("e2fsck runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

fn number(text: &str) -> f64 {
    text.trim().parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// The guest's view of itself is right.
fn looks_around(machine: &Machine, guest: &str, release_end: &str, memory_mib: f64) {
    let release = machine.sh(guest, "uname -r");
    assert!(release.trim().ends_with(release_end), "{release}");
    let said = machine.sh(guest, "dmesg | grep -i xen");
    assert!(said.contains("Booting kernel on Xen"), "{said}");
    assert_ne!(machine.sh(guest, "dmesg | grep 'blkfront: xvda'"), "");
    assert_eq!(machine.sh(guest, "lsblk -bdno NAME,SIZE,TYPE"), "xvda 1073741824 disk\n");
    let total = number(&machine.sh(guest, "free -k | awk '/^Mem:/ { print $2 }'")) / 1024.0;
    assert!(total > memory_mib * 0.75 && total < memory_mib, "{total} MiB");
    assert_eq!(machine.sh(guest, "cat /sys/hypervisor/type"), "xen\n");
    assert_ne!(
        machine.sh(guest, "cat /sys/hypervisor/uuid"),
        "00000000-0000-0000-0000-000000000000\n"
    );
    for bad in ["BUG", "Oops", "Call Trace", "I/O error"] {
        assert_eq!(machine.sh(guest, &format!("dmesg | grep '{bad}' || true")), "", "{bad}");
    }
    let date = |clock: &str| number(&machine.sh(guest, clock));
    let unix = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let before = unix();
    let theirs = date("date +%s.%N");
    assert!(theirs > before - 1.0 && theirs < unix() + 1.0, "{theirs} for {before}");
}

/// Monotonic time of the guest agrees with the host's to 1 in 1,000 over `span` of load.
fn time_agrees(machine: &Machine, guest: &str, span: Duration) {
    machine.launch(guest, "while :; do :; done");
    let read = || {
        let before = Instant::now();
        let theirs = number(&machine.sh(guest, "awk \"{ print \\$1 }\" /proc/uptime"));
        (before, theirs, Instant::now())
    };
    let (before, start, after) = read();
    thread::sleep(span);
    let (later, end, latest) = read();
    let (least, most) = (later.duration_since(after), latest.duration_since(before));
    let passed = end - start;
    // `/proc/uptime` has hundredths of a second.
    let least = least.as_secs_f64() * 0.999 - 0.02;
    let most = most.as_secs_f64() * 1.001 + 0.02;
    assert!(passed > least && passed < most, "{passed} s, the host saw {least} to {most} s");
    machine.sh(guest, "pkill -f 'while :'");
}

/// fio writes, reads back and checks every block: small and large, random and sequential,
/// one at a time and 32.
fn fio_finds_no_error(machine: &Machine, guest: &str, size: &str) {
    for pattern in [
        "--rw=randwrite --bs=4k",
        "--rw=write --bs=128k",
        "--rw=randrw --bs=4k",
        "--rw=rw --bs=128k",
    ] {
        for depth in [1, 32] {
            let job = format!(
                "fio --name=v --filename=/root/fio.dat --size={size} --direct=1 --ioengine=libaio \
                 {pattern} --iodepth={depth} --verify=crc32c --verify_fatal=1 --output-format=terse \
                 | cut -d';' -f5"
            );
            assert_eq!(machine.sh(guest, &job), "0\n", "{pattern} at depth {depth}");
        }
    }
    machine.sh(guest, "rm /root/fio.dat");
}

fn gcc_compiles_what_runs(machine: &Machine, guest: &str) {
    let said = machine.sh(
        guest,
        r#"mkdir -p /root/prog && cd /root/prog
        for i in $(seq 8); do echo "int f$i(int n) { return n * $i; }" > f$i.c; done
        { for i in $(seq 8); do echo "int f$i(int);"; done
          echo '#include <stdio.h>'
          echo 'int main(void) { int s = 0;'
          for i in $(seq 8); do echo "s += f$i(100);"; done
          echo 'printf("sum %d\n", s); return 0; }'; } > main.c
        printf 'prog: %s\n\tgcc -o $@ $^\n%%.o: %%.c\n\tgcc -O2 -c $<\n' \
            "$(for i in $(seq 8); do echo -n "f$i.o "; done)main.o" > Makefile
        make -s && ./prog"#,
    );
    assert_eq!(said, "sum 3600\n");
}

fn sqlite_keeps_every_transaction(machine: &Machine, guest: &str, count: u32) {
    let said = machine.sh(
        guest,
        &format!(
            "cd /root; rm -f t.db*; {{ echo 'create table t(n integer primary key, v text);'
             for i in $(seq {count}); do
                 echo \"begin; insert into t values($i, hex(randomblob(16))); commit;\"
             done; }} | sqlite3 t.db
             sqlite3 t.db 'select count(*), max(n) from t; pragma integrity_check'"
        ),
    );
    assert_eq!(said, format!("{count}|{count}\nok\n"));
}

fn dpkg_installs_a_local_package(machine: &Machine, guest: &str) {
    machine.sh(
        guest,
        r#"cd /root && mkdir -p hello/DEBIAN hello/usr/bin
        printf 'Package: bulkhead-hello\nVersion: 1.0\nArchitecture: all\nMaintainer: T <t@example.org>\nDescription: says hello\n' > hello/DEBIAN/control
        printf '#!/bin/sh\necho hello from a package\n' > hello/usr/bin/bulkhead-hello
        chmod 755 hello/usr/bin/bulkhead-hello
        dpkg-deb -b hello hello.deb && dpkg -i hello.deb"#,
    );
    assert_eq!(machine.sh(guest, "bulkhead-hello"), "hello from a package\n");
    assert_eq!(
        machine.sh(
            guest,
            "apt-cache policy bulkhead-hello | grep -c 'Installed: 1.0'; apt-get check -qq"
        ),
        "1\n"
    );
    machine.sh(guest, "apt-get purge -y bulkhead-hello");
    assert_eq!(machine.sh(guest, "command -v bulkhead-hello || echo gone"), "gone\n");
}

/// Children that are forked, map and touch memory, are signalled, and each counted.
const STORM: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile sig_atomic_t got;
static void hit(int s) { (void)s; got++; }
int main(int argc, char **argv) {
    int rounds = atoi(argv[1]), ended = 0, killed = 0;
    struct sigaction act = { .sa_handler = hit };
    sigaction(SIGUSR1, &act, 0);
    for (int r = 0; r < rounds; r++) {
        pid_t kids[8];
        for (int k = 0; k < 8; k++) {
            if ((kids[k] = fork()) == 0) {
                char *p = mmap(0, 1 << 18, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                memset(p, r + k, 1 << 18);
                for (int i = 0; i < 20; i++) { raise(SIGUSR1); }
                if (got != 20 || p[4096] != (char)(r + k)) _exit(1);
                mprotect(p, 4096, PROT_READ);
                if (k == 7) *(volatile char *)p = 1;
                _exit(42);
            }
        }
        for (int k = 0; k < 8; k++) {
            int how; waitpid(kids[k], &how, 0);
            if (WIFEXITED(how) && WEXITSTATUS(how) == 42) ended++;
            if (WIFSIGNALED(how) && WTERMSIG(how) == SIGSEGV) killed++;
        }
    }
    (void)argc;
    printf("%d ended, %d killed\n", ended, killed);
    return 0;
}
"#;

fn forks_and_signals_all_arrive(machine: &Machine, guest: &str, rounds: u32) {
    let said = machine.sh(
        guest,
        &format!("cd /root && cat > storm.c <<'END'\n{STORM}\nEND\ngcc -O1 -o storm storm.c && ./storm {rounds}"),
    );
    assert_eq!(said, format!("{} ended, {rounds} killed\n", rounds * 7));
}

/// Switched off while it writes, a guest leaves a sound file system.
fn powers_off_under_write_load(machine: &Machine, guest: &str) {
    machine.launch(
        guest,
        "while :; do dd if=/dev/urandom of=/root/load bs=64k count=64 conv=fsync; done",
    );
    machine.sh(guest, "until [ -s /root/load ]; do sleep 0.1; done");
    machine.power_off(guest);
}

/// How much of each kind of work.
struct Work {
    fio: &'static str,
    transactions: u32,
    storms: u32,
}

const SHORT: Work = Work { fio: "4M", transactions: 300, storms: 10 };
const MIDDLE: Work = Work { fio: "8M", transactions: 2_000, storms: 25 };
const LONG: Work = Work { fio: "24M", transactions: 10_000, storms: 50 };

fn works_as_people_do(machine: &Machine, guest: &str, work: &Work) {
    fio_finds_no_error(machine, guest, work.fio);
    gcc_compiles_what_runs(machine, guest);
    sqlite_keeps_every_transaction(machine, guest, work.transactions);
    dpkg_installs_a_local_package(machine, guest);
    forks_and_signals_all_arrive(machine, guest, work.storms);
}

#[test]
fn stock_debian_boots_works_and_powers_off() {
    let machine = Setup::new("640M").guest("deb", "debian-cloud", "memory = \"256M\"").start();
    machine.wait_until_up("deb");
    looks_around(&machine, "deb", "-cloud-amd64", 256.0);
    works_as_people_do(&machine, "deb", &SHORT);
    time_agrees(&machine, "deb", Duration::from_secs(10));
    powers_off_under_write_load(&machine, "deb");
    let (setup, ran) = machine.finish();
    assert_all_well(&ran);
    assert!(ran.console("deb").contains("root@debian:~#"), "a login shell\n{}", ran.story());
    assert_file_system_is_clean(&setup.image("deb"));
}

/// Takes all memory. Its own pages are locked: one that has to be read again and again from
/// the disk may take minutes to get there.
const HOG: &str = "#include <sys/mman.h>
int main(void) {
    mlockall(MCL_CURRENT | MCL_FUTURE);
    for (;;) mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}";

#[test]
fn a_guest_that_panics_ends_alone_and_says_how() {
    let quiet = "memory = \"128M\"\ncmdline = \"init=/bin/sh\"";
    let machine = Setup::new("900M")
        .guest("trigger", "debian-cloud", quiet)
        .guest("hungry", "debian-cloud", quiet)
        .guest("good", "debian-cloud", quiet)
        .start();
    for guest in ["trigger", "hungry", "good"] {
        machine.sh(guest, "mount -t proc proc /proc; sync");
    }
    let before = machine.free_frames();
    machine.end_by("trigger", "echo c > /proc/sysrq-trigger");
    machine.sh("hungry", &format!("cd /root && echo '{HOG}' > hog.c && gcc -O1 -o hog hog.c"));
    machine.end_by("hungry", "echo 1 > /proc/sys/vm/panic_on_oom; /root/hog");
    for guest in ["trigger", "hungry"] {
        let state = |l: &bulkhead::remote::RunListing| {
            l.domains.iter().find(|d| d.name == guest).is_some_and(|d| d.state == "crashed")
        };
        machine.run.wait_for(|listing| state(listing).then_some(()));
    }
    let gained = machine.free_frames() - before;
    assert!(gained >= 2 * (128 << 8), "{gained} frames came back");
    let sum = "dd if=/dev/urandom of=/root/x bs=1M count=8 conv=fsync 2>/dev/null; \
               md5sum < /root/x; echo 3 > /proc/sys/vm/drop_caches; md5sum < /root/x";
    let sums = machine.sh("good", sum);
    let (first, second) = sums.trim().split_once('\n').expect("two sums");
    assert_eq!(first, second);
    machine.end_by("good", "mount -o remount,ro /; echo o > /proc/sysrq-trigger");
    let (setup, ran) = machine.finish();
    assert_eq!(ran.report.outcome, Outcome::GuestFailed, "{}", ran.story());
    for (guest, why) in [("trigger", "sysrq triggered crash"), ("hungry", "panic_on_oom")] {
        let domain = ran.report.domains.iter().find(|d| d.name == guest).expect("listed");
        assert_eq!(domain.exit, Some("crash"), "{}", ran.story());
        assert!(domain.reason.contains(why), "{}: {}", guest, domain.reason);
        assert!(domain.last_lines.len() > 5, "{:?}", domain.last_lines);
    }
    let good = ran.report.domains.iter().find(|d| d.name == "good").expect("listed");
    assert_eq!(good.exit, Some("poweroff"), "{}", ran.story());
    assert_file_system_is_clean(&setup.image("good"));
}

/// Every kernel that Debian has for this machine, and one that is named by its path.
#[test]
#[ignore = "long"]
fn every_flavour_boots_to_a_login_and_powers_off() {
    let cache = distro::cache().expect("a cache");
    let package = distro::newest(Flavour::DebianCloud, &cache, &Job::unwatched()).expect("fetched");
    let named = package.kernel.display().to_string();
    let modules = format!("modules = \"{}\"", package.modules.display());
    for (kernel, more, release_end) in [
        ("debian", "", "-amd64"),
        ("debian-cloud", "", "-cloud-amd64"),
        ("debian-backports", "", "-amd64"),
        (&named, &modules, "-cloud-amd64"),
    ] {
        let more = format!("memory = \"320M\"\n{more}");
        let machine = Setup::new("900M").guest("deb", kernel, &more).start();
        machine.wait_until_up("deb");
        looks_around(&machine, "deb", release_end, 320.0);
        gcc_compiles_what_runs(&machine, "deb");
        machine.power_off("deb");
        let (setup, ran) = machine.finish();
        assert_all_well(&ran);
        assert!(ran.console("deb").contains("root@debian:~#"), "{}", ran.story());
        assert_file_system_is_clean(&setup.image("deb"));
    }
}

#[test]
#[ignore = "long"]
fn four_guests_share_a_driver_domain_and_one_that_is_destroyed_disturbs_nobody() {
    let guests = ["one", "two", "three", "four"];
    let weights = [128, 256, 512, 256];
    let setup = guests.iter().zip(weights).fold(Setup::new("1500M"), |setup, (name, weight)| {
        setup.guest(name, "debian-cloud", &format!("memory = \"224M\"\nweight = {weight}"))
    });
    let machine = setup.start();
    for guest in guests {
        machine.wait_until_up(guest);
    }
    let before = machine.free_frames();
    thread::scope(|scope| {
        for guest in ["one", "two", "three"] {
            let machine = &machine;
            scope.spawn(move || works_as_people_do(machine, guest, &MIDDLE));
        }
        machine.launch(
            "four",
            "while :; do dd if=/dev/zero of=/root/x bs=128k count=100 conv=fsync; done",
        );
        machine.sh("four", "until [ -s /root/x ]; do sleep 0.2; done");
        machine.run.kill("four");
        machine.run.wait_for(|l| {
            l.domains.iter().any(|d| d.name == "four" && d.exit == Some("killed")).then_some(())
        });
        let gained = machine.free_frames() - before;
        // The core's own frames for it come back as well.
        assert!((224 << 8..(224 << 8) + 64).contains(&gained), "{gained} frames came back");
    });
    for guest in ["one", "two", "three"] {
        powers_off_under_write_load(&machine, guest);
    }
    let (setup, ran) = machine.finish();
    for guest in ["one", "two", "three"] {
        let domain = ran.report.domains.iter().find(|d| d.name == guest).expect("listed");
        assert_eq!(domain.exit, Some("poweroff"), "{}", ran.story());
        assert_file_system_is_clean(&setup.image(guest));
    }
}

#[test]
#[ignore = "long"]
fn the_whole_work_under_the_large_kernel_and_a_minute_of_load() {
    let machine = Setup::new("700M").guest("deb", "debian", "memory = \"288M\"").start();
    machine.wait_until_up("deb");
    works_as_people_do(&machine, "deb", &LONG);
    time_agrees(&machine, "deb", Duration::from_secs(60));
    looks_around(&machine, "deb", "-amd64", 288.0);
    powers_off_under_write_load(&machine, "deb");
    let (setup, ran) = machine.finish();
    assert_all_well(&ran);
    assert_file_system_is_clean(&setup.image("deb"));
}

/// A reboot from inside gives a new life under the same name, with the same disk.
#[test]
#[ignore = "long"]
fn a_guest_reboots_and_finds_what_it_wrote() {
    let machine = Setup::new("640M").guest("deb", "debian-cloud", "memory = \"256M\"").start();
    machine.wait_until_up("deb");
    machine.sh("deb", "echo kept > /root/kept; sync");
    let boot = machine.sh("deb", "cat /proc/sys/kernel/random/boot_id");
    machine.end_by("deb", "reboot");
    let restarted = |l: &bulkhead::remote::RunListing| {
        l.domains.iter().any(|d| d.name == "deb" && d.restarts == 1 && d.state == "running")
    };
    machine.run.wait_for(|l| restarted(l).then_some(()));
    machine.wait_until_up("deb");
    assert_ne!(machine.sh("deb", "cat /proc/sys/kernel/random/boot_id"), boot);
    assert_eq!(machine.sh("deb", "cat /root/kept"), "kept\n");
    machine.power_off("deb");
    let (setup, ran) = machine.finish();
    assert_all_well(&ran);
    assert_file_system_is_clean(&setup.image("deb"));
}

#[test]
fn an_image_without_a_file_system_is_named_by_the_guest_that_looks_for_its_root() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("empty.img");
    fs::write(&image, vec![0; 1 << 20]).expect("written");
    let text = format!(
        "[machine]\nmemory = \"512M\"\n[driver.disk]\nkernel = \"disk\"\n\
         [disk.root]\nimage = \"{}\"\n[guest.deb]\nkernel = \"debian-cloud\"\nmemory = \"128M\"\ndisks = [\"root\"]\n",
        image.display()
    );
    let ran = common::run_text(folder.path(), &text);
    assert_eq!(ran.report.outcome, Outcome::GuestFailed, "{}", ran.story());
    assert!(ran.console("deb").contains("/dev/xvda"), "{}", ran.story());
}
