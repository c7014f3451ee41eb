//! The kernels and ramdisks of a set-up, ready for the archive: read once, however many
//! domains have them. Files come first, since what is wrong with them can be told before
//! anything is fetched or built.

use crate::{
    artifacts::{self, Built},
    distro::{self, DistroError, Flavour, Job, Package},
    initramfs::{self, ModulesError, Programs, Tree},
    kernel_image::{ImageError, KernelImage},
    linux,
    setup::{Domain, Kernel, Setup, SetupError},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

/// A kernel that is not one of this workspace.
#[derive(Debug)]
pub struct Loaded {
    /// What the archive calls it.
    pub name: String,
    pub image: KernelImage,
    /// Its `lib/modules/VERSION`, if it came with it.
    modules: Option<PathBuf>,
}

/// What a domain gets as its ramdisk.
#[derive(Clone, Debug)]
pub struct Ramdisk {
    /// What the archive calls it.
    pub name: String,
    pub bytes: Rc<Vec<u8>>,
    /// What it takes in the guest once it is unpacked, beside itself.
    pub unpacked_bytes: u64,
}

/// Where a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    File(PathBuf),
    Distro(Flavour),
}

impl Origin {
    fn of(kernel: &Kernel) -> Option<Self> {
        match kernel {
            Kernel::Builtin(_) => None,
            Kernel::File(path) => Some(Self::File(path.clone())),
            Kernel::Distro(flavour) => Some(Self::Distro(*flavour)),
        }
    }

    /// It takes unpacking first.
    fn is_package(&self) -> bool {
        match self {
            Self::File(path) => path.extension().is_some_and(|e| e == "deb"),
            Self::Distro(_) => true,
        }
    }
}

/// All that has been read.
#[derive(Debug, Default)]
pub struct Kernels {
    loaded: BTreeMap<Origin, Rc<Loaded>>,
    ramdisks: BTreeMap<String, Ramdisk>,
}

fn domains(setup: &Setup) -> impl Iterator<Item = &Domain> {
    setup.drivers.iter().chain(setup.guests.iter().map(|g| &g.domain))
}

impl Kernels {
    /// Reads the kernels and ramdisks that are files.
    ///
    /// # Errors
    /// One that is missing or broken, with what is wrong.
    pub fn read_files(&mut self, setup: &Setup) -> Result<(), SetupError> {
        for domain in domains(setup) {
            if let Some(origin @ Origin::File(path)) = &Origin::of(&domain.kernel) {
                if origin.is_package() {
                    fs::metadata(path).map_err(|e| no_kernel(setup, domain, path, &e))?;
                } else if !self.loaded.contains_key(origin) {
                    let loaded = load_file(setup, domain, path)?;
                    self.loaded.insert(origin.clone(), Rc::new(loaded));
                }
            }
            if let Some(path) = &domain.ramdisk {
                self.read_ramdisk(setup, domain, path)?;
            }
        }
        Ok(())
    }

    /// Fetches and unpacks the kernels that are packages.
    ///
    /// # Errors
    /// One that cannot be had, with what the user can do.
    pub fn fetch(&mut self, setup: &Setup, job: &Job<'_>) -> Result<(), SetupError> {
        for domain in domains(setup) {
            let Some(origin) = Origin::of(&domain.kernel).filter(Origin::is_package) else {
                continue;
            };
            if self.loaded.contains_key(&origin) {
                continue;
            }
            let package = package(&origin, job).map_err(|e| {
                setup.source.error(domain.kernel_span.clone(), e.message).help(e.help)
            })?;
            (job.say)(&format!("`{}` has {}", domain.name, package.name));
            let mut loaded = load_file(setup, domain, &package.kernel)?;
            loaded.name = package.name;
            loaded.modules = Some(package.modules);
            self.loaded.insert(origin, Rc::new(loaded));
        }
        Ok(())
    }

    /// The kernel of a domain; None for a builtin one, or one that is not fetched yet.
    pub fn of(&self, domain: &Domain) -> Option<&Rc<Loaded>> {
        self.loaded.get(&Origin::of(&domain.kernel)?)
    }

    /// Whether a domain runs Linux. Packages of kernels hold nothing else.
    pub fn is_linux(&self, domain: &Domain) -> bool {
        match (self.of(domain), Origin::of(&domain.kernel)) {
            (Some(loaded), _) => loaded.image.is_linux,
            (None, origin) => origin.is_some_and(|o| o.is_package()),
        }
    }

    /// Whether the tool makes a domain's initramfs: it runs Linux, and brings none.
    pub fn wants_initramfs(&self, domain: &Domain) -> bool {
        domain.ramdisk.is_none() && self.is_linux(domain)
    }

    /// Whether it does so for any.
    pub fn want_initramfs(&self, setup: &Setup) -> bool {
        domains(setup).any(|d| self.wants_initramfs(d))
    }

    /// Checks the modules of each domain that gets an initramfs, as far as kernels are
    /// there by now.
    ///
    /// # Errors
    /// Modules that are missing, or of another kernel.
    pub fn check_modules(&self, setup: &Setup) -> Result<(), SetupError> {
        for domain in domains(setup).filter(|d| self.wants_initramfs(d)) {
            if let Some(loaded) = self.of(domain) {
                tree(setup, domain, loaded)?;
            }
        }
        Ok(())
    }

    /// Makes the initramfs of each domain that wants one. `built` has the guest's programs.
    ///
    /// # Errors
    /// Modules that are missing or broken.
    pub fn make_ramdisks(&mut self, setup: &Setup, built: &Built) -> Result<(), SetupError> {
        let mut programs = None;
        for domain in domains(setup).filter(|d| d.ramdisk.is_none()) {
            let Some(loaded) = self.of(domain).filter(|l| l.image.is_linux).cloned() else {
                continue;
            };
            let name = initramfs_name(&loaded, domain);
            if self.ramdisks.contains_key(&name) {
                continue;
            }
            if programs.is_none() {
                programs = Some(read_programs(built)?);
            }
            let programs = programs.as_ref().expect("was read");
            let bytes = make_one(setup, domain, &loaded, programs)?;
            let ramdisk = Ramdisk {
                name: name.clone(),
                unpacked_bytes: bytes.len() as u64,
                bytes: Rc::new(bytes),
            };
            self.ramdisks.insert(name, ramdisk);
        }
        Ok(())
    }

    /// The ramdisk of a domain, its own or a made one.
    pub fn ramdisk(&self, domain: &Domain) -> Option<&Ramdisk> {
        let name = match &domain.ramdisk {
            Some(path) => path.display().to_string(),
            None => initramfs_name(self.of(domain)?, domain),
        };
        self.ramdisks.get(&name)
    }

    fn read_ramdisk(
        &mut self,
        setup: &Setup,
        domain: &Domain,
        path: &Path,
    ) -> Result<(), SetupError> {
        let name = path.display().to_string();
        if self.ramdisks.contains_key(&name) {
            return Ok(());
        }
        let bytes = fs::read(path).map_err(|e| {
            let message = format!("cannot read the ramdisk {name} of `{}`: {e}", domain.name);
            setup.source.error(domain.ramdisk_span.clone(), message).help(
                "correct the path, or leave `ramdisk` out: Linux guests get one made for them",
            )
        })?;
        let unpacked_bytes = initramfs::unpacked_bytes(&bytes);
        let ramdisk = Ramdisk { name: name.clone(), bytes: Rc::new(bytes), unpacked_bytes };
        self.ramdisks.insert(name, ramdisk);
        Ok(())
    }
}

fn package(origin: &Origin, job: &Job<'_>) -> Result<Package, DistroError> {
    let cache = distro::cache()?;
    match origin {
        Origin::File(deb) => distro::from_file(deb, &cache, job),
        Origin::Distro(flavour) => distro::newest(*flavour, &cache, job),
    }
}

fn no_kernel(setup: &Setup, domain: &Domain, path: &Path, why: &std::io::Error) -> SetupError {
    let message = format!("cannot read the kernel {} of `{}`: {why}", path.display(), domain.name);
    setup
        .source
        .error(domain.kernel_span.clone(), message)
        .help("correct the path, or name a builtin kernel; docs/set-up-file.md lists them")
}

/// The error for a kernel that cannot be started, with its remedy.
pub fn bad_kernel(setup: &Setup, domain: &Domain, name: &str, error: &ImageError) -> SetupError {
    let message = format!("{name} cannot be the kernel of `{}`: {error}", domain.name);
    setup.source.error(domain.kernel_span.clone(), message).help(error.remedy())
}

fn load_file(setup: &Setup, domain: &Domain, path: &Path) -> Result<Loaded, SetupError> {
    let bytes = fs::read(path).map_err(|e| no_kernel(setup, domain, path, &e))?;
    let name = path.display().to_string();
    let image = KernelImage::open(bytes).map_err(|e| bad_kernel(setup, domain, &name, &e))?;
    Ok(Loaded { name, modules: beside(path), image })
}

/// The modules of `boot/vmlinuz-VERSION` where a system has them: `lib/modules/VERSION`.
fn beside(kernel: &Path) -> Option<PathBuf> {
    let version = kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-")?;
    let folder = kernel.parent()?;
    let system = folder.parent().filter(|_| folder.file_name().is_some_and(|n| n == "boot"))?;
    let modules = system.join("lib/modules").join(version);
    modules.is_dir().then_some(modules)
}

fn initramfs_name(loaded: &Loaded, domain: &Domain) -> String {
    let modules = domain.modules.as_ref().map(|m| format!(" with {}", m.display()));
    let types = linux::root_types(&domain.cmdline).join(",");
    format!("initramfs for {}{}{types}", loaded.name, modules.unwrap_or_default())
}

fn read_programs(built: &Built) -> Result<Programs, SetupError> {
    let read = |path: &Path| {
        fs::read(path)
            .map_err(|e| SetupError::plain(format!("cannot read {}: {e}", path.display())))
    };
    let init = built
        .named(artifacts::GUEST_INIT)
        .ok_or_else(|| SetupError::plain("the programs for Linux guests were not built"))?;
    let agent = built.named(artifacts::GUEST_AGENT).map(read).transpose()?;
    Ok(Programs { init: read(init)?, agent })
}

fn make_one(
    setup: &Setup,
    domain: &Domain,
    loaded: &Loaded,
    programs: &Programs,
) -> Result<Vec<u8>, SetupError> {
    let tree = tree(setup, domain, loaded)?;
    initramfs::build(programs, tree.as_ref(), &linux::root_types(&domain.cmdline))
        .map_err(|e| bad_modules(setup, domain, &e))
}

fn bad_modules(setup: &Setup, domain: &Domain, error: &ModulesError) -> SetupError {
    let message = format!("cannot make the initramfs of `{}`: {error}", domain.name);
    setup.source.error(domain.modules_span.clone(), message).help(
        "`modules` is the folder lib/modules/VERSION that goes with the kernel; with `ramdisk` a guest brings its own",
    )
}

/// The modules of a domain's kernel, if they are known.
fn tree(setup: &Setup, domain: &Domain, loaded: &Loaded) -> Result<Option<Tree>, SetupError> {
    let folder = domain.modules.as_ref().or(loaded.modules.as_ref());
    let tree = folder.map(|f| Tree::open(f)).transpose();
    let tree = tree.map_err(|e| bad_modules(setup, domain, &e))?;
    if let Some(tree) = &tree
        && let (Some(theirs), Some(kernels)) = (tree.version(), &loaded.image.version)
        && theirs != kernels
    {
        let message =
            format!("these modules are of {theirs}, the kernel of `{}` is {kernels}", domain.name);
        let error = setup.source.error(domain.modules_span.clone(), message);
        return Err(error.help(format!("give the folder lib/modules/{kernels}")));
    }
    Ok(tree)
}

#[cfg(test)]
mod tests;
