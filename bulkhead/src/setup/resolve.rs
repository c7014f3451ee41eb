//! From the file as written to a set-up whose names refer to something: defaults
//! filled in, references looked up, ranges checked against each other.

use super::{
    Disk, Domain, Guest, GuestDisk, Kernel, Machine, Setup, SetupError, Size, Source, care,
    error::suggest,
    file::{self, File, Interrupt},
};
use crate::{builtin, distro::Flavour};
use bulkhead_link::{OnReboot, Sched};
use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};
use toml::Spanned;

/// Memory of a domain that does not say.
const DRIVER_MEMORY: Size = Size::from_mib(8);
const GUEST_MEMORY: Size = Size::from_mib(64);
/// Of one with a distribution's kernel.
const LINUX_MEMORY: Size = Size::from_mib(256);
/// Most bytes of a name: it is a node in the store and a label on the terminal.
const NAME_BYTES: usize = 32;
/// Most devices: PCI addresses 4 to 30 of bus 0.
pub const MOST_DISKS: usize = 27;
/// Most disks with pin interrupts: q35 turns pins by device number onto four lines, and
/// a line has one device.
pub const MOST_PINS: usize = 4;

/// How driver domains are scheduled that do not say. Guests wait for them, so one that is
/// woken goes before those that compute. One that loops keeps to its share: virtual time
/// passes in a warp too, and the limit ends a warp that is not for short work. There is no
/// `unwarp`: it would count from the end of each short piece of work, and requests come
/// more often than that.
fn driver_sched() -> Sched {
    Sched { warp_ns: 20_000_000, warp_limit_ns: 5_000_000, ..Sched::default() }
}

type Result<T> = std::result::Result<T, SetupError>;

pub(super) fn resolve(source: Source, file: File, folder: &Path) -> Result<Setup> {
    let context = Context { source: &source, folder };
    context.unique_names(&file)?;
    context.one_console(&file)?;
    let machine = context.machine(file.machine)?;
    let (mut drivers, mut cares) = (Vec::new(), Vec::new());
    for (name, driver) in in_order(file.driver) {
        let (domain, care) = driver.split();
        drivers.push(context.domain(name, domain, DRIVER_MEMORY, driver_sched())?);
        cares.push(care::resolve(&source, &care)?);
    }
    let mut disks = in_order(file.disk)
        .map(|(name, disk)| context.disk(&name, disk, &drivers))
        .collect::<Result<Vec<_>>>()?;
    let declared = disks.len();
    let mut guests = in_order(file.guest)
        .map(|(name, guest)| context.guest(name, guest, &drivers, &mut disks))
        .collect::<Result<Vec<_>>>()?;
    drop_replaced(declared, &mut disks, &mut guests);
    context.no_shared_writes(&guests, &disks)?;
    context.enough_lines(&disks)?;
    if disks.len() > MOST_DISKS {
        let last = disks[MOST_DISKS].image_span.clone();
        return Err(source
            .error(last, format!("{} disks are too many", disks.len()))
            .help(format!("a machine has room for {MOST_DISKS}; guests can share one by ranges")));
    }
    if drivers.is_empty() && guests.is_empty() {
        return Err(source
            .error(0..0, "there is no domain to run")
            .help("add a table like [guest.NAME] with kernel = \"disk-check\""));
    }
    Ok(Setup { machine, drivers, care: cares, disks, guests, source })
}

fn in_order<T>(named: file::Named<T>) -> impl Iterator<Item = (Spanned<String>, T)> {
    let mut named: Vec<_> = named.into_iter().collect();
    named.sort_by_key(|(name, _)| name.span().start);
    named.into_iter()
}

struct Context<'a> {
    source: &'a Source,
    folder: &'a Path,
}

impl Context<'_> {
    fn unique_names(&self, file: &File) -> Result<()> {
        let mut seen = BTreeMap::from([("dom0", "the control domain")]);
        let drivers = file.driver.keys().map(|n| (n, "a driver domain"));
        let guests = file.guest.keys().map(|n| (n, "a guest"));
        let domains: Vec<_> = drivers.chain(guests).collect();
        for name in domains.iter().map(|d| d.0).chain(file.disk.keys()) {
            self.check_name(name)?;
        }
        for (name, what) in domains {
            let Some(other) = seen.insert(name.get_ref(), what) else {
                continue;
            };
            return Err(self
                .source
                .error(name.span(), format!("`{name}` is already the name of {other}"))
                .help("domains share one set of names; choose another"));
        }
        Ok(())
    }

    /// A terminal shows one console.
    fn one_console(&self, file: &File) -> Result<()> {
        let marked = |(name, guest): (&Spanned<String>, &file::Guest)| {
            let console = guest.console.as_ref().filter(|c| *c.get_ref())?;
            Some((console.span(), name.get_ref().clone()))
        };
        let mut marked: Vec<_> = file.guest.iter().filter_map(marked).collect();
        marked.sort_by_key(|(span, _)| span.start);
        let Some([(_, first), (span, second)]) = marked.first_chunk() else {
            return Ok(());
        };
        Err(self
            .source
            .error(span.clone(), format!("`{first}` and `{second}` both want the terminal"))
            .help("say console = true for one guest; `bulkhead console NAME` joins the others"))
    }

    fn check_name(&self, name: &Spanned<String>) -> Result<()> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let text = name.get_ref();
        if !text.is_empty() && text.len() <= NAME_BYTES && text.chars().all(good) {
            return Ok(());
        }
        Err(self
            .source
            .error(name.span(), format!("`{text}` cannot be a name"))
            .help(format!("names have 1 to {NAME_BYTES} letters, digits, `-` or `_`")))
    }

    fn machine(&self, machine: file::Machine) -> Result<Machine> {
        if *machine.cpus.get_ref() != 1 {
            return Err(self
                .source
                .error(machine.cpus.span(), "the core runs on one CPU")
                .help("leave `cpus` out or set it to 1"));
        }
        Ok(Machine {
            memory: machine.memory.map(|m| (*m.get_ref(), m.span())),
            cpus: 1,
            accel: machine.accel,
            dom0_memory: machine.dom0_memory,
            dom0_cmdline: machine.dom0_cmdline,
        })
    }

    /// A domain, with what it has where it does not say.
    fn domain(
        &self,
        name: Spanned<String>,
        domain: file::Domain,
        memory: Size,
        sched: Sched,
    ) -> Result<Domain> {
        let kernel_span = domain.kernel.span();
        let memory_span = domain.memory.as_ref().map_or(name.span(), Spanned::span);
        let span = |key: &Option<Spanned<String>>| key.as_ref().map(Spanned::span);
        let kernel = self.kernel(&domain.kernel)?;
        let memory = match kernel {
            Kernel::Distro(_) => memory.max(LINUX_MEMORY),
            Kernel::Builtin(_) | Kernel::File(_) => memory,
        };
        Ok(Domain {
            kernel,
            sched: self.sched(&domain, sched)?,
            ramdisk_span: span(&domain.ramdisk).unwrap_or(name.span()),
            modules_span: span(&domain.modules).unwrap_or(kernel_span.clone()),
            ramdisk: domain.ramdisk.map(|r| self.path(r.get_ref())),
            modules: domain.modules.map(|m| self.path(m.get_ref())),
            memory: domain.memory.map_or(memory, Spanned::into_inner),
            cmdline_span: domain.cmdline.span(),
            cmdline: domain.cmdline.into_inner(),
            name: name.into_inner(),
            kernel_span,
            memory_span,
        })
    }

    /// A kernel is a builtin by its bare name, else a file; what has neither a slash
    /// nor a dot and is no builtin is more likely a wrong name than a wrong path.
    fn kernel(&self, kernel: &Spanned<String>) -> Result<Kernel> {
        let text = kernel.get_ref();
        if let Some(found) = builtin::find(text) {
            return Ok(Kernel::Builtin(found));
        }
        if let Some(flavour) = Flavour::find(text) {
            return Ok(Kernel::Distro(flavour));
        }
        let path = self.path(text);
        if path.is_file() || text.contains(['/', '.']) {
            return Ok(Kernel::File(path));
        }
        let flavours = Flavour::ALL.into_iter().map(Flavour::name);
        let known = builtin::DOMAINS.iter().map(|b| b.name).chain(flavours);
        Err(self.source.error(kernel.span(), format!("there is no kernel `{text}`")).help(format!(
            "give a kernel's path (vmlinuz, an ELF file with Xen notes, a .deb) or its name: {}",
            suggest(text, known)
        )))
    }

    fn sched(&self, domain: &file::Domain, usual: Sched) -> Result<Sched> {
        let weight = domain.weight.as_ref();
        if let Some(weight) = weight
            && !(1..=65_535).contains(weight.get_ref())
        {
            return Err(self
                .source
                .error(weight.span(), format!("a weight of {weight} is out of range"))
                .help(format!("weights go from 1 to 65535; {} is usual", usual.weight)));
        }
        Ok(Sched {
            weight: weight.map_or(usual.weight, |w| *w.get_ref()),
            warp_ns: domain.warp.map_or(usual.warp_ns, |t| t.ns()),
            warp_limit_ns: domain.warp_limit.map_or(usual.warp_limit_ns, |t| t.ns()),
            unwarp_ns: domain.unwarp.map_or(usual.unwarp_ns, |t| t.ns()),
            allowance_ns: domain.allowance.map_or(usual.allowance_ns, |t| t.ns()),
        })
    }

    fn path(&self, text: &str) -> PathBuf {
        self.folder.join(text).components().collect()
    }

    fn driver(
        &self,
        named: Option<&Spanned<String>>,
        at: Range<usize>,
        drivers: &[Domain],
    ) -> Result<usize> {
        let names = || drivers.iter().map(|d| d.name.as_str());
        match (named, drivers.len()) {
            (Some(name), _) => names().position(|n| n == name.get_ref()).ok_or_else(|| {
                self.source
                    .error(name.span(), format!("there is no driver domain `{name}`"))
                    .help(suggest(name.get_ref(), names()))
            }),
            (None, 1) => Ok(0),
            (None, 0) => Err(self
                .source
                .error(at, "no driver domain can own this disk")
                .help("add [driver.disk] with kernel = \"disk\"")),
            (None, _) => Err(self
                .source
                .error(at, "this disk does not say which driver domain owns it")
                .help(format!("add driver = NAME; {}", suggest("", names())))),
        }
    }

    fn disk(&self, name: &Spanned<String>, disk: file::Disk, drivers: &[Domain]) -> Result<Disk> {
        if let Some(size) = &disk.size
            && (size.get_ref().bytes() == 0 || size.get_ref().bytes() % 512 != 0)
        {
            return Err(self.source.error(size.span(), "a disk's size is a multiple of 512 bytes"));
        }
        Ok(Disk {
            name: name.get_ref().clone(),
            driver: self.driver(disk.driver.as_ref(), name.span(), drivers)?,
            image: self.path(disk.image.get_ref()),
            read_only: disk.read_only,
            size: disk.size.map(Spanned::into_inner),
            make: disk.make,
            interrupt: disk.interrupt,
            image_span: disk.image.span(),
        })
    }

    fn guest(
        &self,
        name: Spanned<String>,
        guest: file::Guest,
        drivers: &[Domain],
        all: &mut Vec<Disk>,
    ) -> Result<Guest> {
        let on_reboot = match guest.on_reboot {
            Some(file::OnReboot::Destroy) => OnReboot::Destroy,
            Some(file::OnReboot::Restart) | None => OnReboot::Restart,
        };
        let (agent, console) = (guest.agent, guest.console.as_ref().is_some_and(|c| *c.get_ref()));
        let (domain, own, listed) = guest.split();
        let domain = self.domain(name, domain, GUEST_MEMORY, Sched::default())?;
        let mut disks =
            listed.into_iter().map(|d| self.guest_disk(&d, all)).collect::<Result<Vec<_>>>()?;
        if let Some(image) = own {
            self.own_image(&domain.name, &image, &mut disks, drivers, all)?;
        }
        if disks.len() > 16 {
            return Err(self.source.error(disks[16].span.clone(), "a guest has at most 16 disks"));
        }
        let is_builtin = matches!(domain.kernel, Kernel::Builtin(_));
        Ok(Guest { domain, disks, on_reboot, agent: agent.unwrap_or(!is_builtin), console })
    }

    /// `disk = PATH`: a device of the guest's own in place of its first disk, as
    /// writable as that one was and with its kind of interrupt.
    fn own_image(
        &self,
        guest: &str,
        image: &Spanned<String>,
        disks: &mut Vec<GuestDisk>,
        drivers: &[Domain],
        all: &mut Vec<Disk>,
    ) -> Result<()> {
        let first = disks.first().cloned();
        let (driver, interrupt) = match &first {
            Some(first) => (all[first.disk].driver, all[first.disk].interrupt),
            None => (self.driver(None, image.span(), drivers)?, Interrupt::default()),
        };
        let writable = first.as_ref().is_none_or(|f| f.writable);
        let own =
            GuestDisk { disk: all.len(), offset: 0, size: None, writable, span: image.span() };
        all.push(Disk {
            name: format!("{guest}-disk"),
            image: self.path(image.get_ref()),
            driver,
            read_only: !writable,
            size: None,
            make: None,
            interrupt,
            image_span: image.span(),
        });
        match disks.first_mut() {
            Some(first) => *first = own,
            None => disks.push(own),
        }
        Ok(())
    }

    fn guest_disk(&self, disk: &Spanned<file::GuestDisk>, all: &[Disk]) -> Result<GuestDisk> {
        let span = disk.span();
        let (name, range) = match disk.get_ref() {
            file::GuestDisk::Whole(name) => (name, None),
            file::GuestDisk::Range(range) => (&range.disk, Some(range)),
        };
        let Some(index) = all.iter().position(|d| d.name == *name) else {
            return Err(self
                .source
                .error(span, format!("there is no disk `{name}`"))
                .help(suggest(name, all.iter().map(|d| d.name.as_str()))));
        };
        let offset = range.and_then(|r| r.offset).map_or(0, Size::bytes);
        let size = range.and_then(|r| r.size).map(Size::bytes);
        if offset % 512 != 0
            || size.is_some_and(|s| s == 0 || s % 512 != 0)
            || offset.checked_add(size.unwrap_or(0)).is_none()
        {
            return Err(self.source.error(
                span,
                "`offset` and `size` are multiples of 512 bytes, and `size` is not 0",
            ));
        }
        Ok(GuestDisk {
            disk: index,
            offset,
            size,
            writable: !all[index].read_only && !range.is_some_and(|r| r.read_only),
            span,
        })
    }

    fn enough_lines(&self, disks: &[Disk]) -> Result<()> {
        let mut pins = disks.iter().filter(|d| d.interrupt == Interrupt::Pin);
        let Some(disk) = pins.nth(MOST_PINS) else {
            return Ok(());
        };
        let message = format!("there is no interrupt line left for disk `{}`", disk.name);
        Err(self.source.error(disk.image_span.clone(), message).help(format!(
            "at most {MOST_PINS} disks have interrupt = \"pin\"; say \"message\" for the others"
        )))
    }

    /// Two file systems on one range destroy each other as soon as one writes.
    fn no_shared_writes(&self, guests: &[Guest], disks: &[Disk]) -> Result<()> {
        let uses: Vec<_> = guests
            .iter()
            .flat_map(|g| g.disks.iter().map(move |d| (g.domain.name.as_str(), d)))
            .collect();
        for (i, (guest, one)) in uses.iter().enumerate() {
            for (other, two) in &uses[..i] {
                if one.disk == two.disk && (one.writable || two.writable) && overlap(one, two) {
                    let disk = &disks[one.disk].name;
                    return Err(self
                        .source
                        .error(
                            one.span.clone(),
                            format!("`{other}` and `{guest}` share a part of disk `{disk}`, and it can be written"),
                        )
                        .help("give each its own range with `offset` and `size`, or say `read-only = true`"));
                }
            }
        }
        Ok(())
    }
}

/// Drops disks that nobody uses any more because each of their guests has an image of
/// its own in their place. With no image of its own anywhere, nothing is dropped.
fn drop_replaced(declared: usize, disks: &mut Vec<Disk>, guests: &mut [Guest]) {
    if disks.len() == declared {
        return;
    }
    let is_used = |index: usize| guests.iter().any(|g| g.disks.iter().any(|d| d.disk == index));
    let kept: Vec<_> = (0..disks.len()).filter(|&index| is_used(index)).collect();
    *disks = kept.iter().map(|&index| disks[index].clone()).collect();
    for used in guests.iter_mut().flat_map(|g| &mut g.disks) {
        used.disk = kept.iter().position(|&k| k == used.disk).unwrap_or(0);
    }
}

fn overlap(one: &GuestDisk, two: &GuestDisk) -> bool {
    let end = |d: &GuestDisk| d.size.map_or(u64::MAX, |s| d.offset.saturating_add(s));
    one.offset < end(two) && two.offset < end(one)
}
