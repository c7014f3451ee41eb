//! From a set-up to what boots: the manifest for Dom0, the archive, the machine's
//! memory and its drives. Reads kernels; starts nothing.

use crate::{
    archive::{self, Dom0},
    artifacts::Built,
    builtin,
    images::Image,
    kernel_image::{ImageError, KernelImage},
    kernels::{self, Kernels, Ramdisk},
    linux, qemu,
    setup::{Domain, Guest, GuestDisk, Interrupt, Kernel, MOST_PINS, Setup, SetupError, Size},
};
use bulkhead_link::{self as link, Care, DomainSpec, Kind, Manifest, OnFailure, OnReboot};
use dom0::builder::BuildError;
use std::{
    fs,
    path::{Path, PathBuf},
    rc::Rc,
    time::{SystemTime, UNIX_EPOCH},
};
use uuid::Uuid;

/// What the core takes for itself: its image, the frame table and the machine-to-phys
/// table at 2 % of memory, and room for what firmware keeps.
const CORE_MEMORY: Size = Size::from_mib(24);
/// What a domain needs past its kernel: page tables, stack, rings, a heap.
const LEAST_SPARE: Size = Size::from_mib(4);
/// What Linux needs past its kernel and ramdisk to get as far as a shell: tried with 6.1 and
/// 6.12 of Debian. More is needed for anything beyond that.
const LINUX_SPARE: Size = Size::from_mib(8);
/// First PCI device number for disks; QEMU's q35 has its own devices below.
const FIRST_SLOT: u32 = 4;

/// A virtio disk of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    pub name: String,
    pub image: PathBuf,
    pub read_only: bool,
    pub interrupt: Interrupt,
    /// What it is told to make durable may get lost with the host.
    pub is_scratch: bool,
    /// PCI device number on bus 0.
    pub slot: u32,
}

/// Everything that a machine is started from.
#[derive(Clone, Debug)]
pub struct Plan {
    pub core: PathBuf,
    pub archive: Vec<u8>,
    pub manifest: Manifest,
    pub memory: Size,
    pub drives: Vec<Drive>,
}

impl Plan {
    /// Puts a set-up together with what was built for it. `clock_by_link`: Dom0 is told the
    /// time once it serves requests.
    ///
    /// # Errors
    /// A kernel that is missing or broken, or too little memory.
    pub fn new(
        setup: &Setup,
        built: &Built,
        images: &[Image],
        kernels: &Kernels,
        clock_by_link: bool,
    ) -> Result<Self, SetupError> {
        let mut files = Files::default();
        let parts = Parts { setup, built, images, kernels };
        let domains = parts.domains(&mut files)?;
        let mut manifest = Manifest {
            version: link::VERSION,
            images: files.named,
            domains,
            lane: Some(qemu::LANE_SBDF),
            wallclock_ns: wallclock_ns(),
            clock_by_link,
        };
        let contents: Vec<_> = files.contents.iter().map(|c| c.as_slice()).collect();
        let payload = archive::payload(&mut manifest, &contents).map_err(broken)?;
        let core = program(built, &builtin::CORE)?;
        let dom0_file = read(program(built, &builtin::DOM0)?)?;
        let dom0 = Dom0 {
            elf: &dom0_file,
            cmdline: &setup.machine.dom0_cmdline,
            frames: setup.machine.dom0_memory.kib() / 4,
        };
        let archive = archive::pack(dom0, Some(&read(core)?), &payload).map_err(broken)?;
        let memory = memory(setup, archive.len() as u64)?;
        Ok(Self { core: core.into(), archive, manifest, memory, drives: drives(setup) })
    }
}

/// The identity of a domain: always the same for a name in a set-up file, so that what a
/// guest keeps by it stays its own.
fn uuid(setup: &Setup, name: &str) -> [u8; 16] {
    let file = Path::new(&setup.source.name);
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let text = format!("bulkhead:{}#{name}", file.display());
    Uuid::new_v5(&Uuid::NAMESPACE_URL, text.as_bytes()).into_bytes()
}

/// What can be known before anything is built: memory, and the kernels that are there, which
/// before fetching are those that are files. What is read stays in `kernels`.
///
/// # Errors
/// A kernel that is missing or broken, or too little memory.
pub fn check_early(setup: &Setup, kernels: &mut Kernels) -> Result<(), SetupError> {
    kernels.read_files(setup)?;
    for guest in &setup.guests {
        check_has_root(setup, guest, kernels)?;
    }
    kernels.check_modules(setup)?;
    let guests = setup.guests.iter().map(|g| &g.domain);
    for domain in setup.drivers.iter().chain(guests) {
        if let Some(loaded) = kernels.of(domain) {
            check_kernel(setup, domain, &loaded.name, &loaded.image, kernels.ramdisk(domain))?;
        }
    }
    memory(setup, 0).map(drop)
}

/// Linux without a disk has only its ramdisk to live on.
fn check_has_root(setup: &Setup, guest: &Guest, kernels: &Kernels) -> Result<(), SetupError> {
    if !guest.disks.is_empty() || !kernels.wants_initramfs(&guest.domain) {
        return Ok(());
    }
    let message = format!("Linux guest `{}` has no root disk", guest.domain.name);
    Err(setup
        .source
        .error(guest.domain.kernel_span.clone(), message)
        .help("add disks = [\"NAME\"] with a [disk.NAME], or a `ramdisk` that needs no disk"))
}

fn broken(error: archive::PackError) -> SetupError {
    SetupError::plain(error.to_string())
}

/// The host's wall clock, ns since 1970.
pub fn wallclock_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

fn program<'a>(built: &'a Built, program: &builtin::Builtin) -> Result<&'a Path, SetupError> {
    built
        .file(program)
        .ok_or_else(|| SetupError::plain(format!("{} was not built", program.purpose)))
}

fn read(path: &Path) -> Result<Vec<u8>, SetupError> {
    fs::read(path).map_err(|e| SetupError::plain(format!("cannot read {}: {e}", path.display())))
}

/// The files for the payload, each once.
#[derive(Default)]
struct Files {
    named: Vec<link::Image>,
    contents: Vec<Rc<Vec<u8>>>,
}

impl Files {
    /// The number of the file with a name; `contents` is asked for if it is new.
    fn add<E>(
        &mut self,
        name: &str,
        contents: impl FnOnce() -> Result<Rc<Vec<u8>>, E>,
    ) -> Result<u32, E> {
        if let Some(known) = self.named.iter().position(|i| i.name == name) {
            return Ok(known as u32);
        }
        self.contents.push(contents()?);
        self.named.push(link::Image { name: name.into(), offset: 0, bytes: 0 });
        Ok(self.named.len() as u32 - 1)
    }
}

/// What domains are put together from.
#[derive(Clone, Copy)]
struct Parts<'a> {
    setup: &'a Setup,
    built: &'a Built,
    images: &'a [Image],
    kernels: &'a Kernels,
}

impl Parts<'_> {
    fn domains(&self, files: &mut Files) -> Result<Vec<DomainSpec>, SetupError> {
        let setup = self.setup;
        let mut specs = Vec::new();
        for (index, driver) in setup.drivers.iter().enumerate() {
            let mut spec = self.domain(driver, Kind::Driver, false, files)?;
            spec.devices = devices(setup, index);
            spec.care = self.care(setup.care[index], files)?;
            specs.push(spec);
        }
        for guest in &setup.guests {
            let has_disks = !guest.disks.is_empty();
            let mut spec = self.domain(&guest.domain, Kind::Guest, has_disks, files)?;
            spec.disks = guest_disks(setup, guest, self.images);
            spec.on_reboot = guest.on_reboot;
            spec.agent = guest.agent;
            specs.push(spec);
        }
        Ok(specs)
    }

    fn domain(
        &self,
        domain: &Domain,
        kind: Kind,
        has_disks: bool,
        files: &mut Files,
    ) -> Result<DomainSpec, SetupError> {
        let ramdisk = self.kernels.ramdisk(domain);
        let kernel = self.kernel(domain, ramdisk, files)?;
        let ramdisk =
            ramdisk.map(|r| files.add(&r.name, || Ok::<_, SetupError>(Rc::clone(&r.bytes))));
        Ok(DomainSpec {
            name: domain.name.clone(),
            uuid: uuid(self.setup, &domain.name),
            kind,
            kernel,
            ramdisk: ramdisk.transpose()?,
            cmdline: self.cmdline(domain, has_disks)?,
            memory_kib: domain.memory.kib(),
            vcpus: 1,
            sched: domain.sched,
            devices: Vec::new(),
            disks: Vec::new(),
            on_reboot: OnReboot::default(),
            care: Care::default(),
            agent: false,
        })
    }

    /// Sees to it that a driver domain whose guests are to fail has somebody to refuse them.
    fn care(&self, care: Care, files: &mut Files) -> Result<Care, SetupError> {
        if care.on_failure != OnFailure::Fail {
            return Ok(care);
        }
        let path = program(self.built, &builtin::REFUSER)?;
        let contents = || read(path).map(Rc::new);
        let refuser = files.add(&path.display().to_string(), contents)?;
        Ok(Care { refuser: Some(refuser), ..care })
    }

    /// The number of a domain's kernel among the files, checked.
    fn kernel(
        &self,
        domain: &Domain,
        ramdisk: Option<&Ramdisk>,
        files: &mut Files,
    ) -> Result<u32, SetupError> {
        let check = |name: &str, image: &KernelImage| {
            check_kernel(self.setup, domain, name, image, ramdisk)
        };
        if let Kernel::Builtin(found) = &domain.kernel {
            let path = program(self.built, found)?;
            let name = path.display().to_string();
            let image = KernelImage::open(read(path)?)
                .map_err(|e| kernels::bad_kernel(self.setup, domain, &name, &e))?;
            check(&name, &image)?;
            return files.add(&name, || Ok(image.elf));
        }
        let loaded = self.kernels.of(domain).ok_or_else(|| {
            SetupError::plain(format!("the kernel of `{}` was not read", domain.name))
        })?;
        check(&loaded.name, &loaded.image)?;
        files.add(&loaded.name, || Ok(Rc::clone(&loaded.image.elf)))
    }

    /// What a domain is told: Linux gets defaults, and the user's words after them.
    fn cmdline(&self, domain: &Domain, has_disks: bool) -> Result<String, SetupError> {
        let text = match self.kernels.is_linux(domain) {
            true => linux::cmdline(has_disks, &domain.cmdline),
            false => domain.cmdline.clone(),
        };
        if text.len() <= linux::MOST_CMDLINE {
            return Ok(text);
        }
        let message = format!(
            "the command line of `{}` has {} bytes; a domain can be given {}",
            domain.name,
            text.len(),
            linux::MOST_CMDLINE
        );
        Err(self.setup.source.error(domain.cmdline_span.clone(), message))
    }
}

/// Whether a kernel can be started with its ramdisk in the domain's memory.
fn check_kernel(
    setup: &Setup,
    domain: &Domain,
    name: &str,
    image: &KernelImage,
    ramdisk: Option<&Ramdisk>,
) -> Result<(), SetupError> {
    let ramdisk_bytes = ramdisk.map_or(0, |r| r.bytes.len() as u64);
    let mut least = least_memory(image, ramdisk);
    match image.plan(ramdisk_bytes, domain.memory.bytes()) {
        Ok(()) => {}
        Err(BuildError::TooLittleMemory { needed_kib, .. }) => {
            least = least.max(Size::from_bytes(needed_kib << 10));
        }
        Err(e) => return Err(kernels::bad_kernel(setup, domain, name, &ImageError::Build(e))),
    }
    if domain.memory >= least {
        return Ok(());
    }
    let mut help = format!("its kernel takes {} MiB", Size::from_bytes(image.end_paddr).mib());
    if let Some(ramdisk) = ramdisk {
        let mib = |bytes| Size::from_bytes(bytes).mib();
        help += &format!(", its ramdisk {} MiB", mib(ramdisk_bytes));
        if image.is_linux {
            help += &format!(" and {} MiB more when unpacked", mib(ramdisk.unpacked_bytes));
        }
    }
    let message = format!("{} is too little memory for `{}`", domain.memory, domain.name);
    Err(setup
        .source
        .error(domain.memory_span.clone(), message)
        .help(format!("{help}: memory = \"{}M\" or more", least.mib())))
}

/// What a domain cannot do without, by a reckoning of our own: it may be more than what
/// building it takes.
fn least_memory(image: &KernelImage, ramdisk: Option<&Ramdisk>) -> Size {
    let (packed, unpacked) = ramdisk.map_or((0, 0), |r| (r.bytes.len() as u64, r.unpacked_bytes));
    let (spare, unpacked) = match image.is_linux {
        true => (LINUX_SPARE, unpacked),
        false => (LEAST_SPARE, 0),
    };
    let parts = [packed, unpacked, spare.bytes()];
    Size::from_bytes(parts.into_iter().fold(image.end_paddr, u64::saturating_add))
}

/// PCI device number of each disk. Those with pins come first: devices in a row have lines
/// of their own, up to [`MOST_PINS`], which the set-up keeps to.
fn slots(setup: &Setup) -> Vec<u32> {
    const { assert!(MOST_PINS <= 4) };
    let is_pin = |index: usize| setup.disks[index].interrupt == Interrupt::Pin;
    let mut order: Vec<_> = (0..setup.disks.len()).collect();
    order.sort_by_key(|&index| !is_pin(index));
    let mut slots = vec![0; order.len()];
    for (index, slot) in order.into_iter().zip(FIRST_SLOT..) {
        slots[index] = slot;
    }
    slots
}

fn devices(setup: &Setup, driver: usize) -> Vec<link::Device> {
    let disks = setup.disks.iter().zip(slots(setup));
    disks
        .filter(|(disk, _)| disk.driver == driver)
        // As the core and Dom0 write it, on bus 0.
        .map(|(disk, slot)| link::Device { name: disk.name.clone(), sbdf: slot << 3 })
        .collect()
}

fn guest_disks(setup: &Setup, guest: &Guest, images: &[Image]) -> Vec<link::Disk> {
    let letters = 'a'..='p';
    let disk = |(used, letter): (&GuestDisk, char)| {
        let device = &setup.disks[used.disk];
        let all = images[used.disk].bytes.saturating_sub(used.offset);
        link::Disk {
            vdev: format!("xvd{letter}"),
            driver: setup.drivers[device.driver].name.clone(),
            device: device.name.clone(),
            first_sector: used.offset / 512,
            sectors: used.size.unwrap_or(all) / 512,
            writable: used.writable,
        }
    };
    guest.disks.iter().zip(letters).map(disk).collect()
}

fn drives(setup: &Setup) -> Vec<Drive> {
    let disks = setup.disks.iter().zip(slots(setup));
    disks
        .map(|(disk, slot)| Drive {
            name: disk.name.clone(),
            image: disk.image.clone(),
            read_only: disk.read_only,
            interrupt: disk.interrupt,
            is_scratch: false,
            slot,
        })
        .collect()
}

/// The machine's memory: as given if it is enough, else what is needed, rounded up.
fn memory(setup: &Setup, archive_bytes: u64) -> Result<Size, SetupError> {
    let guests = setup.guests.iter().map(|g| &g.domain);
    let domains: u64 = setup.drivers.iter().chain(guests).map(|d| d.memory.bytes()).sum();
    let used = domains + setup.machine.dom0_memory.bytes() + archive_bytes + CORE_MEMORY.bytes();
    let needed = Size::from_mib(Size::from_bytes(used + used / 50).mib().next_multiple_of(16));
    let Some((given, span)) = &setup.machine.memory else {
        return Ok(needed);
    };
    if *given >= needed {
        return Ok(*given);
    }
    let message = format!("a machine of {given} is too small for its domains");
    Err(setup.source.error(span.clone(), message).help(format!(
        "the domains have {}, Dom0 {}, images and core the rest: memory = \"{}M\" is enough",
        Size::from_bytes(domains),
        setup.machine.dom0_memory,
        needed.mib()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::Source;
    use std::collections::BTreeSet;

    const TEXT: &str = r#"
[machine]
memory = "208M"
[driver.one]
kernel = "k"
[driver.two]
kernel = "./k"
[disk.a]
driver = "one"
image = "a.raw"
size = "1M"
[disk.b]
driver = "two"
image = "b.raw"
size = "2M"
read-only = true
[guest.g]
kernel = "./k"
memory = "16M"
disks = ["b", { disk = "a", offset = "512K" }]
"#;

    fn kernel() -> Vec<u8> {
        use crate::kernel_image::tests::{elf, notes};
        let notes = notes();
        elf(&[(elf::abi::PT_LOAD, 1 << 20, b"x", 1 << 20), (elf::abi::PT_NOTE, 0, &notes, 0)])
    }

    fn try_domains(
        text: &str,
        folder: &Path,
    ) -> Result<(Setup, Vec<DomainSpec>, Files), SetupError> {
        let source = Source { name: "t.toml".into(), text: text.into() };
        let setup = Setup::parse(source, folder, &[])?;
        let images = crate::images::prepare(&setup, &crate::distro::Job::unwatched())?;
        let mut files = Files::default();
        let mut kernels = Kernels::default();
        check_early(&setup, &mut kernels)?;
        let built = Built::default();
        let parts = Parts { setup: &setup, built: &built, images: &images, kernels: &kernels };
        let specs = parts.domains(&mut files)?;
        memory(&setup, 0)?;
        Ok((setup, specs, files))
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("k"), kernel()).expect("written");
        folder
    }

    #[test]
    fn drivers_own_their_devices_and_guests_see_ranges_of_them() {
        let folder = folder();
        let (setup, specs, files) = try_domains(TEXT, folder.path()).expect("plans");
        let owned: Vec<_> =
            specs.iter().map(|s| s.devices.iter().map(|d| d.sbdf).collect::<Vec<_>>()).collect();
        assert_eq!(owned, [vec![4 << 3], vec![5 << 3], vec![]]);
        let [b, a] = &specs[2].disks[..] else { panic!("two disks") };
        assert_eq!((b.vdev.as_str(), b.sectors, b.writable), ("xvda", 4096, false));
        assert_eq!(
            (a.vdev.as_str(), a.first_sector, a.sectors, a.writable),
            ("xvdb", 1024, 1024, true)
        );
        assert_eq!(a.driver, "one");
        assert_eq!(files.contents.len(), 1, "one file, named in two ways");
        assert_eq!(drives(&setup)[1].slot, 5);
    }

    #[test]
    fn disks_with_pins_get_slots_whose_lines_differ() {
        let folder = folder();
        let more = |n: u32| {
            let pin = if n % 2 == 1 { "interrupt = \"pin\"\n" } else { "" };
            format!("[disk.n{n}]\ndriver = \"one\"\nimage = \"{n}.raw\"\nsize = \"1M\"\n{pin}")
        };
        let text = TEXT.replace("[guest.g]", &((0..8).map(more).collect::<String>() + "[guest.g]"));
        let (setup, specs, _) = try_domains(&text, folder.path()).expect("plans");
        let drives = drives(&setup);
        let pins = drives.iter().filter(|d| d.interrupt == Interrupt::Pin).map(|d| d.slot);
        // q35 turns INTA by the device number.
        let lines: BTreeSet<_> = pins.map(|slot| slot % 4).collect();
        assert_eq!(lines.len(), 4);
        let all: BTreeSet<_> = drives.iter().map(|d| d.slot).collect();
        assert_eq!(all, (4..14).collect());
        for device in &specs[0].devices {
            let drive = drives.iter().find(|d| d.name == device.name).expect("its drive");
            assert_eq!(device.sbdf, drive.slot << 3);
        }
    }

    #[test]
    fn too_little_memory_names_who_and_how_much() {
        let folder = folder();
        let told = |from: &str, to: &str| {
            let error =
                try_domains(&TEXT.replacen(from, to, 1), folder.path()).err().expect("refused");
            format!("{:?}", miette::Report::new(error).context(to.to_owned()))
        };
        let machine = told("208M", "100M");
        assert!(
            machine.contains("too small for its domains") && machine.contains("t.toml:3"),
            "{machine}"
        );
        let guest = told("16M", "5M");
        assert!(guest.contains("too little memory for `g`") && guest.contains("\"6M\""), "{guest}");
    }

    #[test]
    fn a_kernel_that_is_none_is_named_with_the_reason() {
        let folder = folder();
        fs::write(folder.path().join("sh"), "#!/bin/sh").expect("written");
        for (kernel, why) in [("./sh", "nor an ELF"), ("./nothing", "cannot read the kernel")] {
            let text = TEXT.replacen("\"./k\"\nmemory", &format!("\"{kernel}\"\nmemory"), 1);
            let error = try_domains(&text, folder.path()).err().expect("refused").to_string();
            assert!(error.contains(why) && error.contains("`g`"), "{error}");
        }
    }
}
