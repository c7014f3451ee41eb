//! What the tool needs on the host: found, installed where it may be (Debian, as root),
//! or told exactly how to install.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// One thing that must be on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// `qemu-system-x86_64`.
    Qemu,
    /// `cargo` and the standard library for the bare machine.
    Target,
    /// The standard library for programs inside Linux guests.
    GuestTarget,
    /// `mkfs.ext4` and what comes with it, to make images.
    Mkfs,
    /// `mmdebstrap`, to build Debian's root file system; for an ordinary user with
    /// `fakeroot`, to keep whom its files belong to.
    Debian,
}

/// What was found of a need.
#[derive(Clone, Debug)]
pub struct Finding {
    pub need: Need,
    /// Where it is or which version; None if it is missing.
    pub found: Option<String>,
}

/// The target that the core and the domains are built for.
pub const TARGET: &str = "x86_64-unknown-none";
/// The target that programs inside Linux guests are built for: static, so that they run
/// whatever else is there.
pub const GUEST_TARGET: &str = "x86_64-unknown-linux-musl";

impl Need {
    pub const ALL: [Self; 5] =
        [Self::Qemu, Self::Target, Self::GuestTarget, Self::Mkfs, Self::Debian];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu-system-x86_64",
            Self::Target => "Rust target x86_64-unknown-none",
            Self::GuestTarget => "Rust target x86_64-unknown-linux-musl",
            Self::Mkfs => "mkfs.ext4",
            Self::Debian => "mmdebstrap",
        }
    }

    pub const fn purpose(self) -> &'static str {
        match self {
            Self::Qemu => "runs the machine",
            Self::Target => "builds the core and the domains",
            Self::GuestTarget => "builds the initramfs of Linux guests",
            Self::Mkfs => "makes disk images",
            Self::Debian => "builds Debian's root file system",
        }
    }

    /// The commands that install it, for a person to type.
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Qemu => "apt-get install --no-install-recommends qemu-system-x86",
            Self::Target => "rustup target add x86_64-unknown-none",
            Self::GuestTarget => "rustup target add x86_64-unknown-linux-musl",
            Self::Mkfs => "apt-get install e2fsprogs",
            Self::Debian => {
                "apt-get install --no-install-recommends mmdebstrap fakeroot uidmap debian-archive-keyring"
            }
        }
    }

    /// Looks for it.
    pub fn find(self) -> Finding {
        let found = match self {
            Self::Qemu => {
                find_program("qemu-system-x86_64").map(|p| version(&p).unwrap_or_else(|| shown(&p)))
            }
            Self::Target => find_target(TARGET),
            Self::GuestTarget => find_target(GUEST_TARGET),
            Self::Mkfs => find_program("mkfs.ext4").map(|p| shown(&p)),
            Self::Debian => find_mmdebstrap(),
        };
        Finding { need: self, found }
    }

    /// Whether this process may run the commands of [`Need::remedy`] by itself.
    pub fn may_install(self) -> bool {
        match self {
            Self::Target | Self::GuestTarget => find_program("rustup").is_some(),
            Self::Qemu | Self::Mkfs | Self::Debian => is_debian_root(),
        }
    }

    /// Installs it. `say` is told each command before it runs.
    ///
    /// # Errors
    /// What the failing command printed.
    pub fn install(self, say: &dyn Fn(&str)) -> Result<(), String> {
        if !matches!(self, Self::Target | Self::GuestTarget) {
            run(say, "apt-get update -q")?;
        }
        let remedy = self.remedy().replace("install ", "install -qy ");
        run(say, &remedy)?;
        match self.find().found {
            Some(_) => Ok(()),
            None => Err(format!("`{remedy}` ran, but {} is still not found", self.name())),
        }
    }
}

fn run(say: &dyn Fn(&str), line: &str) -> Result<(), String> {
    say(line);
    let mut words = line.split_whitespace();
    let done = Command::new(words.next().unwrap_or_default())
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .map_err(|e| format!("`{line}`: {e}"))?;
    if done.status.success() {
        return Ok(());
    }
    let printed = String::from_utf8_lossy(&done.stderr);
    Err(format!("`{line}` failed ({}):\n{}", done.status, printed.trim()))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Finds a program on the path, and where Debian keeps an administrator's programs.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(more).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn version(program: &Path) -> Option<String> {
    let out = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}

fn find_target(target: &str) -> Option<String> {
    let out = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", target])
        .current_dir(crate::artifacts::workspace())
        .output()
        .ok()?;
    let folder = PathBuf::from(String::from_utf8(out.stdout).ok()?.trim());
    folder.is_dir().then(|| shown(&folder))
}

fn find_mmdebstrap() -> Option<String> {
    let program = find_program("mmdebstrap")?;
    let is_enough = is_root() || find_program("fakeroot").is_some();
    is_enough.then(|| version(&program).unwrap_or_else(|| shown(&program)))
}

/// Root, by the owner of this process's own entry in `/proc`.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

fn is_debian_root() -> bool {
    is_root() && Path::new("/etc/debian_version").exists() && find_program("apt-get").is_some()
}

/// Sees to it that `needs` are there.
///
/// # Errors
/// What is missing and the command that installs it.
pub fn ensure(needs: &[Need], say: &dyn Fn(&str)) -> Result<(), String> {
    for need in needs {
        if need.find().found.is_some() {
            continue;
        }
        let missing = format!("{} is missing: it {}", need.name(), need.purpose());
        if !need.may_install() {
            return Err(format!("{missing}.\nInstall it (as root) with: {}", need.remedy()));
        }
        say(&missing);
        need.install(say).map_err(|e| format!("{missing}, and installing it failed.\n{e}"))?;
    }
    Ok(())
}
