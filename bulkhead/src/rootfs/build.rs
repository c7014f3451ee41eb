//! Builds the template: mmdebstrap writes the tree as an archive into a pipe, and at its
//! other end mke2fs lays it out. Both lead process groups of their own, which end with this
//! side, whatever happens.

use super::{
    RootfsError, overlay, recipe,
    told::{self, Cause, Told},
};
use crate::{
    distro::{self, Job},
    needs,
    progress::{Amount, Task},
    sparse,
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    env,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Room for the tree, the packages' files and the image at once.
const WORK_SPACE: u64 = 1400 << 20;
/// The part of it that mmdebstrap takes, elsewhere when an ordinary user builds.
const TREE_SPACE: u64 = 600 << 20;
/// How often it is looked whether a process has ended or the user wants to stop.
const TICK: Duration = Duration::from_millis(50);
/// How long a process may take to clean up before it is killed.
const GRACE: Duration = Duration::from_secs(3);

/// Configuration of dpkg that is there for the build alone.
const UNSAFE_IO: &str = "/etc/dpkg/dpkg.cfg.d/unsafe-io";

/// Unpacks the archive and lays it out. For an ordinary user fakeroot remembers from one to
/// the other whom the files belong to.
const LAY_OUT: &str = "set -eu\n\
    mkdir tree\n\
    tar -x -f - -C tree --numeric-owner --same-owner -p --xattrs --xattrs-include='*'\n\
    \"$@\" -d tree image\n";

/// Builds the template in the folder `work`, which is made, and says where it is there.
pub(super) fn build(work: &Path, job: &Job<'_>) -> Result<PathBuf, RootfsError> {
    let image = work.join("image");
    fs::create_dir_all(work)
        .and_then(|()| fs::write(work.join("overlay.tar"), overlay::archive()?))
        .and_then(|()| File::create(&image)?.set_len(recipe::LEAST.bytes()))
        .map_err(|e| RootfsError::io("make a folder for the build", &e))?;
    enough_space(work)?;
    let task = job.progress.begin("building Debian's root file system", Amount::Unknown);
    carry_out(work, job, &task)?;
    Ok(image)
}

fn enough_space(work: &Path) -> Result<(), RootfsError> {
    let places = match needs::is_root() {
        true => vec![(work.to_owned(), WORK_SPACE, "XDG_CACHE_HOME")],
        false => vec![
            (work.to_owned(), WORK_SPACE - TREE_SPACE, "XDG_CACHE_HOME"),
            (env::temp_dir(), TREE_SPACE, "TMPDIR"),
        ],
    };
    for (place, needed, variable) in places {
        let free = File::open(&place).and_then(|folder| sparse::free(&folder));
        let free = free.map_err(|e| RootfsError::io("see how much room there is", &e))?;
        if free < needed {
            let place = if place == work { work.parent().unwrap_or(work) } else { &place };
            return Err(RootfsError::space(place, needed, free, variable));
        }
    }
    Ok(())
}

fn carry_out(work: &Path, job: &Job<'_>, task: &Task) -> Result<(), RootfsError> {
    let cannot = |e| RootfsError::io("start mmdebstrap and mke2fs", &e);
    let mut strap = Process::start(&mut strap(work)).map_err(cannot)?;
    let archive = strap.0.stdout.take().map_or_else(Stdio::null, Stdio::from);
    let mut lay_out = Process::start(lay_out(work).stdin(archive)).map_err(cannot)?;
    let printed = Mutex::new(Vec::new());
    let ended = thread::scope(|scope| {
        let (from_strap, from_lay_out) = (strap.0.stderr.take(), lay_out.0.stderr.take());
        scope.spawn(|| listen(from_strap, &printed, &mut Follower::new(task)));
        scope.spawn(|| listen(from_lay_out, &printed, &mut ()));
        let ended = wait(&mut strap, &mut lay_out, job);
        // Whoever still runs holds an end of what the threads read.
        drop((strap, lay_out));
        ended
    });
    let printed = printed.into_inner().unwrap_or_else(PoisonError::into_inner);
    match ended.map_err(cannot)? {
        Ended::Well => Ok(()),
        Ended::Stopped => Err(RootfsError::interrupted()),
        Ended::Failed(program, status) => Err(failure(program, status, &printed)),
    }
}

/// The command that writes the tree as an archive to its standard output.
fn strap(work: &Path) -> Command {
    let is_root = needs::is_root();
    // With mounts of its own, so that none outlives it.
    let mut command = match is_root && may_unshare() {
        true => Command::new("unshare"),
        false => Command::new("mmdebstrap"),
    };
    if command.get_program() == "unshare" {
        command.args(["--mount", "--", "mmdebstrap"]);
    }
    command.args(["--verbose", "--variant=minbase", "--format=tar"]);
    command.args(["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]);
    command.arg(format!("--include={}", recipe::PACKAGES.join(",")));
    command.args(recipe::LEFT_OUT.iter().map(|option| format!("--dpkgopt={option}")));
    // If the host goes down meanwhile, the build begins anew: nothing has to reach the disk.
    command.arg(format!("--setup-hook=echo force-unsafe-io >\"$1\"{UNSAFE_IO}"));
    command.arg(format!("--customize-hook=rm \"$1\"{UNSAFE_IO}"));
    command.arg("--customize-hook=tar-in overlay.tar /");
    command.arg("--customize-hook=chroot \"$1\" passwd --delete --quiet root");
    if is_root {
        command.arg("--mode=root").env("TMPDIR", work);
    }
    command.args([recipe::SUITE, "-"]).args(distro::sources());
    if let Some(proxy) = distro::proxy() {
        command.env("http_proxy", proxy);
    }
    command.current_dir(work).stdin(Stdio::null());
    command
}

/// Whether this process may have mounts of its own; in some containers root may not.
fn may_unshare() -> bool {
    let tried = Command::new("unshare").args(["--mount", "true"]).output();
    tried.is_ok_and(|done| done.status.success())
}

/// The command that makes `image` of the archive on its standard input.
fn lay_out(work: &Path) -> Command {
    let mut command = match needs::is_root() {
        true => Command::new("sh"),
        false => Command::new("fakeroot"),
    };
    if command.get_program() == "fakeroot" {
        command.args(["--", "sh"]);
    }
    let mke2fs = needs::find_program("mke2fs").unwrap_or_else(|| "mke2fs".into());
    command.args(["-c", LAY_OUT, "lay-out"]).arg(mke2fs).args(recipe::MKE2FS);
    command.current_dir(work).stdout(Stdio::null());
    command
}

/// A process and those it has started. Dropping it ends them all.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> io::Result<Self> {
        if command.get_program() != "fakeroot" && command.get_program() != "sh" {
            command.stdout(Stdio::piped());
        }
        command.env("LC_ALL", "C.UTF-8").stderr(Stdio::piped()).process_group(0).spawn().map(Self)
    }

    fn signal(&self, signal: Signal) {
        if let Ok(group) = i32::try_from(self.0.id()) {
            let _ = killpg(Pid::from_raw(group), signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let deadline = Instant::now() + GRACE;
        if let Ok(None) = self.0.try_wait() {
            self.signal(Signal::SIGTERM);
        }
        while let Ok(None) = self.0.try_wait() {
            if Instant::now() > deadline {
                self.signal(Signal::SIGKILL);
                let _ = self.0.wait();
                return;
            }
            thread::sleep(TICK);
        }
    }
}

/// How the two came to their end.
enum Ended {
    Well,
    Stopped,
    /// The one that failed first.
    Failed(&'static str, ExitStatus),
}

fn wait(strap: &mut Process, lay_out: &mut Process, job: &Job<'_>) -> io::Result<Ended> {
    loop {
        if job.is_stopped() {
            return Ok(Ended::Stopped);
        }
        let (one, other) = (strap.0.try_wait()?, lay_out.0.try_wait()?);
        let failed = |status: &ExitStatus| !status.success();
        if let Some(status) = one.filter(failed) {
            return Ok(Ended::Failed("mmdebstrap", status));
        }
        if let Some(status) = other.filter(failed) {
            return Ok(Ended::Failed("mke2fs", status));
        }
        if one.is_some() && other.is_some() {
            return Ok(Ended::Well);
        }
        thread::sleep(TICK);
    }
}

/// Who is told the lines of a process.
trait Listener {
    fn line(&mut self, line: &str);
}

impl Listener for () {
    fn line(&mut self, _: &str) {}
}

/// Turns mmdebstrap's lines into a task's progress.
struct Follower<'a> {
    task: &'a Task,
    fetching_lists: bool,
}

impl<'a> Follower<'a> {
    fn new(task: &'a Task) -> Self {
        task.set_amount(Amount::Steps(recipe::ABOUT_PACKAGES * told::STEPS));
        Self { task, fetching_lists: true }
    }
}

impl Listener for Follower<'_> {
    fn line(&mut self, line: &str) {
        match told::read(line, self.fetching_lists) {
            Some(Told::Phase { name, fetching_lists }) => {
                self.fetching_lists = fetching_lists;
                self.task.phase(name);
            }
            Some(Told::Step) => self.task.advance(1),
            None => {}
        }
    }
}

/// Keeps what a process prints, and passes it on line by line.
fn listen(from: Option<impl Read>, kept: &Mutex<Vec<String>>, listener: &mut impl Listener) {
    for line in from.into_iter().flat_map(|from| BufReader::new(from).split(b'\n')) {
        let Ok(line) = line else { return };
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        listener.line(&line);
        kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

fn failure(program: &str, status: ExitStatus, printed: &[String]) -> RootfsError {
    let help = match told::cause(printed) {
        Cause::NoNetwork => {
            "is there a network? It is needed once, then the root file system is kept; or give an image of your own: image = PATH, without `make`"
        }
        Cause::NoSpace => {
            "make room, or set XDG_CACHE_HOME (and TMPDIR, if you are not root) to a folder with more"
        }
        Cause::NoKeys => {
            "the mirror's signature cannot be checked; apt-get install debian-archive-keyring"
        }
        Cause::NotAllowed => {
            "this host lets only root do it: run it as root once, or apt-get install uidmap fakechroot and give your user a range in /etc/subuid and /etc/subgid"
        }
        Cause::Other => "try it again; if it fails in the same way, the lines above say where",
    };
    let message = format!(
        "Debian's root file system could not be built: {program} failed ({status})\n{}",
        told::gist(printed)
    );
    RootfsError::new(message, help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Progress;
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    fn started(line: &str) -> Process {
        Process::start(Command::new("sh").args(["-c", line])).expect("starts")
    }

    fn waited(one: &str, other: &str, interrupts: &AtomicU32) -> Ended {
        let job = Job { say: &|_| {}, progress: Progress::default(), interrupts };
        wait(&mut started(one), &mut started(other), &job).expect("waits")
    }

    #[test]
    fn the_first_to_fail_is_named_and_the_other_is_ended() {
        let calm = AtomicU32::new(0);
        let forever = "while :; do sleep 1; done";
        assert!(matches!(waited("true", "true", &calm), Ended::Well));
        assert!(matches!(waited("exit 3", forever, &calm), Ended::Failed("mmdebstrap", _)));
        assert!(matches!(waited(forever, "exit 3", &calm), Ended::Failed("mke2fs", _)));
        assert!(matches!(waited(forever, forever, &AtomicU32::new(1)), Ended::Stopped));
    }

    #[test]
    fn dropping_a_process_ends_its_children_too() {
        let mut process = started("sh -c 'echo $$ >&2; exec sleep 1000' & wait");
        let mut first = String::new();
        let from = process.0.stderr.take().expect("piped");
        BufReader::new(from).read_line(&mut first).expect("a line");
        let child = Path::new("/proc").join(first.trim());
        assert!(child.exists());
        drop(process);
        let state = || fs::read_to_string(child.join("stat")).unwrap_or_default();
        // Nobody's child may stay a zombie until init looks.
        let is_gone = || state().is_empty() || state().contains(") Z ");
        let deadline = Instant::now() + GRACE;
        while !is_gone() && Instant::now() < deadline {
            thread::yield_now();
        }
        assert!(is_gone(), "{}", state());
    }

    #[test]
    fn a_follower_counts_packages_and_not_lists() {
        let lines = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&lines);
        let progress = Progress::lines(move |line| {
            if line.contains("2 of ") {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let task = progress.begin("x", Amount::Unknown);
        let printed = Mutex::new(Vec::new());
        let text = "I: running apt-get update...\nGet:1 http://m InRelease\n\
            I: downloading packages with apt...\nGet:1 http://m a\nUnpacking a (1) ...\n\
            I: creating tarball...\n";
        listen(Some(text.as_bytes()), &printed, &mut Follower::new(&task));
        assert_eq!(lines.load(Ordering::Relaxed), 1, "told once, at the last phase");
        assert_eq!(printed.into_inner().expect("whole").len(), 6);
    }

    #[test]
    fn a_failure_says_what_to_do_about_it() {
        let status = Command::new("false").status().expect("runs");
        let printed = ["E: Could not resolve 'deb.debian.org'".to_owned()];
        let told = failure("mmdebstrap", status, &printed);
        assert!(told.message.contains("Could not resolve 'deb.debian.org'"), "{told}");
        assert!(told.help.contains("is there a network?"), "{}", told.help);
    }
}
