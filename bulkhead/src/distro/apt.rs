//! apt with a state of its own: the same on every host, whoever runs it and whatever else
//! that host gets packages from. The mirror, proxies and the like are the host's; the
//! signatures are checked against Debian's keys.

use super::{DistroError, Job};
use crate::{
    cache::Cache,
    needs,
    progress::{Amount, Task},
};
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

/// The release that guests run.
const SUITE: &str = "bookworm";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Which part of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The release with its updates.
    Stable,
    Backports,
}

impl Origin {
    const fn name(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Backports => "backports",
        }
    }
}

/// A kernel's package on the mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    package: String,
    /// Name of its file.
    pub file: String,
    bytes: u64,
}

/// apt, set up for one origin.
pub(super) struct Apt {
    origin: Origin,
    folder: PathBuf,
}

impl Apt {
    /// Writes apt's configuration.
    pub fn open(origin: Origin, cache: &Cache) -> Result<Self, DistroError> {
        if needs::find_program("apt-get").is_none() {
            return Err(DistroError::new(
                "apt-get is missing, which fetches Debian's kernels",
                "install apt and dpkg, or give a kernel's file: kernel = \"./vmlinuz\" and modules = \"./lib/modules/VERSION\"",
            ));
        }
        let apt = Self { origin, folder: cache.path(&format!("apt-{}", origin.name())) };
        apt.write_configuration().map_err(|e| DistroError::io(&apt.folder, &e))?;
        Ok(apt)
    }

    fn write_configuration(&self) -> std::io::Result<()> {
        for folder in ["lists/partial", "archives/partial", "none"] {
            fs::create_dir_all(self.folder.join(folder))?;
        }
        fs::write(self.folder.join("status"), "")?;
        let mirrors = Mirrors::of_host();
        fs::write(self.folder.join("sources.list"), sources_of(self.origin, &mirrors))?;
        let acquire = output("apt-config", &["dump", "Acquire"]).unwrap_or_default();
        fs::write(self.folder.join("apt.conf"), configuration(&self.folder, &acquire))
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("APT_CONFIG", self.folder.join("apt.conf"))
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    /// Fetches the lists of packages.
    pub fn update(&self, job: &Job<'_>) -> Result<(), DistroError> {
        let name = format!("fetching Debian's list of packages ({})", self.origin.name());
        let task = job.progress.begin(name, Amount::Steps(100));
        let mut command = self.command("apt-get", &["update", "-q", "--error-on=any"]);
        watched(&mut command, job, &Percent::new(&task, 100)).map_err(|why| self.unreachable(&why))
    }

    fn unreachable(&self, why: &str) -> DistroError {
        let help = match self.origin {
            Origin::Stable => {
                "is there a network? A kernel's file does without: kernel = \"./linux-image-....deb\""
            }
            Origin::Backports => {
                "the mirror may be without backports; kernel = \"debian\" is there on every one, and a .deb fetched elsewhere does too"
            }
        };
        DistroError::new(format!("cannot get kernels from Debian's mirror: {}", last(why)), help)
    }

    /// The newest kernel that `package` depends on.
    pub fn newest(&self, package: &str) -> Result<Found, DistroError> {
        let about = self.ask("apt-cache", &["show", "--no-all-versions", package])?;
        let kernel = depends_on_kernel(&about)
            .ok_or_else(|| self.unreachable(&format!("{package} there depends on no kernel")))?;
        let uris = self.ask("apt-get", &["download", "--print-uris", "-qq", &kernel])?;
        let (file, bytes) = file_and_size(&uris)
            .ok_or_else(|| self.unreachable(&format!("it has no file for {kernel}")))?;
        Ok(Found { package: kernel, file, bytes })
    }

    fn ask(&self, program: &str, arguments: &[&str]) -> Result<String, DistroError> {
        let done = self.command(program, arguments).output();
        let done = done.map_err(|e| self.unreachable(&format!("{program}: {e}")))?;
        match done.status.success() {
            true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
            false => Err(self.unreachable(&String::from_utf8_lossy(&done.stderr))),
        }
    }

    /// Fetches a package's file into a folder; apt checks it against the signed lists.
    pub fn download(
        &self,
        found: &Found,
        into: &Path,
        job: &Job<'_>,
    ) -> Result<PathBuf, DistroError> {
        let name = format!("fetching {}", found.package);
        let task = job.progress.begin(name, Amount::Bytes(found.bytes));
        let mut command = self.command("apt-get", &["download", "-q", &found.package]);
        command.current_dir(into);
        watched(&mut command, job, &Percent::new(&task, found.bytes))
            .map_err(|why| self.unreachable(&why))?;
        let deb = into.join(&found.file);
        match deb.is_file() {
            true => Ok(deb),
            false => Err(self.unreachable(&format!("apt did not leave {}", found.file))),
        }
    }
}

/// Turns apt's percentages into a task's progress.
struct Percent<'a> {
    task: &'a Task,
    all: u64,
    done: std::cell::Cell<u64>,
}

impl<'a> Percent<'a> {
    const fn new(task: &'a Task, all: u64) -> Self {
        Self { task, all, done: std::cell::Cell::new(0) }
    }

    fn reach(&self, percent: f64) {
        let now = (self.all as f64 * percent.clamp(0.0, 100.0) / 100.0) as u64;
        let before = self.done.replace(now.max(self.done.get()));
        self.task.advance(now.saturating_sub(before));
    }
}

/// Runs apt with its status on the standard output. Errors: what it printed.
fn watched(command: &mut Command, job: &Job<'_>, percent: &Percent<'_>) -> Result<(), String> {
    command.args(["-o", "APT::Status-Fd=1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("cannot run apt-get: {e}"))?;
    let errors = child.stderr.take().map(|mut from| {
        thread::spawn(move || {
            let mut text = String::new();
            let _ = from.read_to_string(&mut text);
            text
        })
    });
    for line in child.stdout.take().into_iter().flat_map(|o| BufReader::new(o).lines()) {
        if job.is_stopped() {
            let _ = child.kill();
        }
        let Ok(line) = line else { break };
        if let Some(reached) = status(&line) {
            percent.reach(reached);
        }
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    let errors = errors.and_then(|e| e.join().ok()).unwrap_or_default();
    match (job.is_stopped(), status.success()) {
        (true, _) => Err("interrupted".into()),
        (false, true) => Ok(()),
        (false, false) => Err(format!("{errors}\napt-get failed ({status})")),
    }
}

/// `dlstatus:1:42.5:Retrieving file 1 of 2 (3s remaining)`.
fn status(line: &str) -> Option<f64> {
    line.strip_prefix("dlstatus:")?.split(':').nth(1)?.trim().parse().ok()
}

/// The first error that apt printed, else the last line.
fn last(printed: &str) -> String {
    let lines = || printed.lines().map(str::trim).filter(|l| !l.is_empty());
    let error = lines().find_map(|l| l.strip_prefix("E: ").or_else(|| l.strip_prefix("Err:")));
    error.or_else(|| lines().next_back()).unwrap_or("apt-get failed").to_owned()
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Where the archive and its security updates are.
#[derive(Debug, PartialEq, Eq)]
struct Mirrors {
    archive: String,
    security: String,
}

/// The release with its updates, as lines of a `sources.list`, from the mirrors that the
/// host's apt uses.
pub fn sources() -> Vec<String> {
    sources_of(Origin::Stable, &Mirrors::of_host()).lines().map(str::to_owned).collect()
}

/// The proxy that the host's apt goes through, if it has one.
pub fn proxy() -> Option<String> {
    let told = output("apt-config", &["dump", "--format=%v", "Acquire::http::Proxy"])?;
    Some(told.trim().to_owned()).filter(|p| !p.is_empty() && p != "DIRECT")
}

impl Mirrors {
    fn of_host() -> Self {
        let targets = output("apt-get", &["indextargets", "--format", "$(REPO_URI)"]);
        Self::of(targets.unwrap_or_default().lines())
    }

    /// Those of the host, by the addresses that its apt uses; else Debian's own.
    fn of<'a>(addresses: impl Iterator<Item = &'a str>) -> Self {
        let addresses: Vec<_> = addresses.map(|a| a.trim().trim_end_matches('/')).collect();
        let ending = |end: &str, usual: &str| {
            let found = addresses.iter().find(|a| a.rsplit('/').next() == Some(end));
            found.map_or_else(|| usual.to_owned(), |a| (*a).to_owned())
        };
        Self {
            archive: ending("debian", "http://deb.debian.org/debian"),
            security: ending("debian-security", "http://deb.debian.org/debian-security"),
        }
    }
}

fn sources_of(origin: Origin, mirrors: &Mirrors) -> String {
    let keys = match Path::new(KEYS).is_file() {
        true => format!("[signed-by={KEYS}] "),
        false => String::new(),
    };
    let line = |mirror: &str, suite: &str| format!("deb {keys}{mirror} {SUITE}{suite} main\n");
    match origin {
        Origin::Backports => line(&mirrors.archive, "-backports"),
        Origin::Stable => {
            line(&mirrors.archive, "")
                + &line(&mirrors.archive, "-updates")
                + &line(&mirrors.security, "-security")
        }
    }
}

/// apt's configuration: all its places below `folder`, and of the host's own (`acquire`,
/// as `apt-config dump` prints it) what says how to reach a mirror.
fn configuration(folder: &Path, acquire: &str) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    let mut text = format!(
        "Dir::Etc::main \"/dev/null\";\n\
         Dir::Etc::parts \"{none}\";\n\
         Dir::Etc::sourcelist \"{list}\";\n\
         Dir::Etc::sourceparts \"{none}\";\n\
         Dir::Etc::preferences \"/dev/null\";\n\
         Dir::Etc::preferencesparts \"{none}\";\n\
         Dir::State \"{own}\";\n\
         Dir::State::lists \"{lists}\";\n\
         Dir::State::status \"{status}\";\n\
         Dir::Cache \"{own}\";\n\
         Dir::Cache::archives \"{archives}\";\n\
         APT::Architecture \"amd64\";\n\
         APT::Architectures \"amd64\";\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::Languages \"none\";\n",
        none = at("none"),
        list = at("sources.list"),
        own = folder.display(),
        lists = at("lists"),
        status = at("status"),
        archives = at("archives"),
    );
    // What else it downloads, and what it lets pass unsigned, is not for this.
    let foreign = ["Acquire::IndexTargets", "Acquire::Languages", "Acquire::Allow", "Acquire \""];
    for line in acquire.lines().filter(|l| l.starts_with("Acquire")) {
        if !foreign.iter().any(|f| line.starts_with(f)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// The kernel that a package depends on, from `apt-cache show`.
fn depends_on_kernel(about: &str) -> Option<String> {
    let depends = about.lines().find_map(|l| l.strip_prefix("Depends: "))?;
    let names = depends.split([',', '|']).filter_map(|d| d.split_whitespace().next());
    names.map(str::to_owned).find(|name| name.starts_with("linux-image-"))
}

/// `'http://.../x.deb' x.deb 123 SHA256:...`, as `apt-get download --print-uris` prints.
fn file_and_size(uris: &str) -> Option<(String, u64)> {
    let mut words = uris.lines().find(|l| l.starts_with('\''))?.split_whitespace().skip(1);
    let file = words.next()?.to_owned();
    let is_file = file.ends_with(".deb") && !file.contains('/');
    Some((file, words.next()?.parse().ok()?)).filter(|_| is_file)
}

#[cfg(test)]
mod tests;
