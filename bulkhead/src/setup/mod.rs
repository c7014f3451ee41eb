//! Set-up files: one TOML file says which machine, which driver domains with which
//! devices, and which guests use them. Reads and checks the text alone: no image is
//! opened and nothing is made here.

mod care;
mod error;
mod file;
mod resolve;
mod set;
mod units;

pub use error::{SetupError, Source, suggest};
pub use file::{Accel, Interrupt, Make};
pub use resolve::MOST_PINS;
pub use units::{Size, Span};

use crate::distro::Flavour;
use bulkhead_link::{Care, OnReboot, Sched};
use std::{
    ops::Range,
    path::{Path, PathBuf},
};

/// A set-up whose names all refer to something.
#[derive(Clone, Debug)]
pub struct Setup {
    pub source: Source,
    pub machine: Machine,
    /// Driver domains, in the order of the file.
    pub drivers: Vec<Domain>,
    /// How each of them is looked after.
    pub care: Vec<Care>,
    /// Devices, in the order of the file.
    pub disks: Vec<Disk>,
    /// Guests, in the order of the file.
    pub guests: Vec<Guest>,
}

#[derive(Clone, Debug)]
pub struct Machine {
    /// None: as much as the domains need.
    pub memory: Option<(Size, Range<usize>)>,
    pub cpus: u32,
    pub accel: Accel,
    pub dom0_memory: Size,
    pub dom0_cmdline: String,
}

/// What driver domains and guests have in common.
#[derive(Clone, Debug)]
pub struct Domain {
    pub name: String,
    pub kernel: Kernel,
    pub ramdisk: Option<PathBuf>,
    /// The kernel's `lib/modules/VERSION`, for the initramfs that the tool makes.
    pub modules: Option<PathBuf>,
    pub cmdline: String,
    pub memory: Size,
    pub sched: Sched,
    /// Where these are written, for errors found later; what is not written has its
    /// name's place, and modules their kernel's.
    pub kernel_span: Range<usize>,
    pub ramdisk_span: Range<usize>,
    pub modules_span: Range<usize>,
    pub cmdline_span: Range<usize>,
    pub memory_span: Range<usize>,
}

/// A domain's kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// One of this workspace; see [`crate::builtin`].
    Builtin(&'static crate::builtin::Builtin),
    /// An ELF file with Xen notes, a bzImage of one, or a Debian package of that.
    File(PathBuf),
    /// The newest one of a distribution.
    Distro(Flavour),
}

/// A device: a host file behind a virtio disk that one driver domain owns.
#[derive(Clone, Debug)]
pub struct Disk {
    pub name: String,
    pub image: PathBuf,
    /// Index into [`Setup::drivers`].
    pub driver: usize,
    pub read_only: bool,
    pub size: Option<Size>,
    pub make: Option<Make>,
    pub interrupt: Interrupt,
    pub image_span: Range<usize>,
}

#[derive(Clone, Debug)]
pub struct Guest {
    pub domain: Domain,
    pub disks: Vec<GuestDisk>,
    pub on_reboot: OnReboot,
    /// It has a second console, for the agent that runs commands.
    pub agent: bool,
    /// `run` attaches the terminal to its console.
    pub console: bool,
}

/// A guest's view of a device.
#[derive(Clone, Debug)]
pub struct GuestDisk {
    /// Index into [`Setup::disks`].
    pub disk: usize,
    /// Bytes from the device's start, a multiple of 512.
    pub offset: u64,
    /// Bytes, a multiple of 512; None for all that follow.
    pub size: Option<u64>,
    pub writable: bool,
    pub span: Range<usize>,
}

impl Setup {
    /// Reads a set-up file, with `--set KEY=VALUE` laid over it.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place in the text.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, SetupError> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            SetupError::plain(format!("cannot read the set-up file {}: {e}", path.display()))
                .help("give the path of a TOML file; `examples/` has some to start from")
        })?;
        let name = path.display().to_string();
        let folder = path.parent().unwrap_or(Path::new("."));
        Self::parse(Source { name, text }, folder, sets)
    }

    /// As [`Setup::load`], for text. Relative paths in it start at `folder`.
    ///
    /// # Errors
    /// See [`Setup::load`].
    pub fn parse(mut source: Source, folder: &Path, sets: &[String]) -> Result<Self, SetupError> {
        let length = source.text.len();
        let lines = set::append(&mut source, sets)?;
        let file = read(&source, length, &lines).map_err(|e| toml_error(&source, &e))?;
        resolve::resolve(source, file, folder)
    }
}

fn read(
    source: &Source,
    length: usize,
    lines: &[Range<usize>],
) -> Result<file::File, toml::de::Error> {
    use serde::Deserialize;
    // Each line is parsed behind as many blanks as there is text before it, so that
    // its spans are those of the whole text.
    let padded: Vec<_> = lines
        .iter()
        .map(|line| format!("{}{}", " ".repeat(line.start), &source.text[line.clone()]))
        .collect();
    let mut table = toml::de::DeTable::parse(&source.text[..length])?;
    for line in &padded {
        set::merge(table.get_mut(), toml::de::DeTable::parse(line)?.into_inner());
    }
    file::File::deserialize(toml::de::Deserializer::from(table))
}

fn toml_error(source: &Source, error: &toml::de::Error) -> SetupError {
    let found = source.error(error.span().unwrap_or(0..0), error.message().trim());
    match unknown_field(error.message()) {
        Some((wrong, known)) => found.help(suggest(wrong, known.iter().copied())),
        None => found.help("docs/set-up-file.md lists every key with its type"),
    }
}

/// The name and the known names from serde's "unknown field `x`, expected one of `a`, `b`".
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.trim().strip_prefix("unknown field ")?;
    let mut names = rest.split('`').skip(1).step_by(2);
    Some((names.next()?, names.collect()))
}

#[cfg(test)]
mod tests;
