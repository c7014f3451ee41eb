//! From a set-up to the one that a campaign runs: the driver domain under test does wrong on
//! order, guests put its disks under a load that verifies itself, neighbours of theirs show
//! whether anybody else is touched, and images are copies.

use crate::{
    builtin::{self, Builtin},
    setup::{Disk, Domain, Guest, GuestDisk, Kernel, Setup, SetupError, Size, suggest},
};
use bulkhead_link::{Care, OnReboot};
use faults::{Campaign, campaign};
use std::path::{Path, PathBuf};

/// Blocks of each disk that the load uses: few, so that each is looked at again soon.
const LOAD_BLOCKS: u32 = 128;
/// Time between two reports of the load, ms.
const LOAD_STATUS_MS: u32 = 20;
/// Most requests in flight and blocks of 4 KiB in a request that the load can have.
const MOST_DEPTH: u32 = 128;
const MOST_BLOCKS: u32 = 32;
/// How many in a hundred requests are flushes.
const FLUSHES: u32 = 1;
/// What the front end that misbehaves does until then.
const FRONT_LOAD: &str = "depth=4 size=2 blocks=32 pace=1 loglevel=error";
/// Memory of the domains that are added.
const SMALL: Size = Size::from_mib(16);

/// The guest that keeps a pattern in its memory.
pub const BYSTANDER: &str = "campaign-bystander";
/// The guest with a load on a driver domain of its own.
pub const NEIGHBOUR: &str = "campaign-neighbour";
const NEIGHBOURS_DRIVER: &str = "campaign-driver";
const NEIGHBOURS_DISK: &str = "campaign-disk";

/// A set-up that is made for a campaign.
#[derive(Debug)]
pub struct Staged {
    pub setup: Setup,
    /// Guests that verify, each with how many disks it does so on.
    pub loads: Vec<(String, usize)>,
    /// The program that the driver domain runs.
    pub program: &'static Builtin,
    /// Images to be copied before each boot: from where, to where.
    pub copies: Vec<(PathBuf, PathBuf)>,
}

/// Makes the set-up of a campaign. Its images are in `folder`.
///
/// # Errors
/// The set-up does not have what the campaign names, or cannot be injected into.
pub fn stage(campaign: &Campaign, mut setup: Setup, folder: &Path) -> Result<Staged, SetupError> {
    let driver = find_driver(campaign, &setup)?;
    let program = with_faults(&mut setup.drivers[driver])?;
    let care = &mut setup.care[driver];
    care.hang_deadline_ns = campaign.deadlines.hang.number() * 1000;
    care.answer_deadline_ns = campaign.deadlines.answer.number() * 1000;
    let loads = put_under_load(campaign, &mut setup, driver)?;
    put_front(campaign, &mut setup, driver)?;
    let copies = divert_images(&mut setup, folder);
    let pattern = setup.drivers[driver].clone();
    add_neighbours(&mut setup, &pattern, folder);
    setup.machine.memory = None;
    Ok(Staged { setup, loads, program, copies })
}

fn find_driver(campaign: &Campaign, setup: &Setup) -> Result<usize, SetupError> {
    let mut names = setup.drivers.iter().map(|driver| driver.name.as_str());
    let missing = || {
        SetupError::plain(format!(
            "{} has no driver domain `{}`",
            setup.source.name, campaign.driver
        ))
        .help(suggest(&campaign.driver, setup.drivers.iter().map(|d| d.name.as_str())))
    };
    names.position(|name| name == campaign.driver).ok_or_else(missing)
}

/// Gives a driver domain the program with hooks for faults.
fn with_faults(driver: &mut Domain) -> Result<&'static Builtin, SetupError> {
    let name = match driver.kernel {
        Kernel::Builtin(known) if known.has_faults => known.name.to_owned(),
        Kernel::Builtin(known) => format!("{}-faults", known.name),
        _ => String::new(),
    };
    let found = builtin::find(&name).filter(|program| program.has_faults);
    let found = found.ok_or_else(|| {
        SetupError::plain(format!("the kernel of `{}` has no hooks for faults", driver.name))
            .help("a campaign needs a driver domain of this workspace: kernel = \"disk\"")
    })?;
    driver.kernel = Kernel::Builtin(found);
    Ok(found)
}

/// Guests with a disk of the driver domain that they may write.
fn put_under_load(
    campaign: &Campaign,
    setup: &mut Setup,
    driver: usize,
) -> Result<Vec<(String, usize)>, SetupError> {
    let cmdline = cmdline(&campaign.load)?;
    let names = &campaign.load.guests;
    if let Some(unknown) = names.iter().find(|n| !setup.guests.iter().any(|g| &g.domain.name == *n))
    {
        let known = setup.guests.iter().map(|g| g.domain.name.as_str());
        return Err(SetupError::plain(format!("{} has no guest `{unknown}`", setup.source.name))
            .help(suggest(unknown, known)));
    }
    let disks = &setup.disks;
    let writable = |guest: &Guest| {
        let of_driver = |used: &&GuestDisk| {
            disks[used.disk].driver == driver && used.writable && !disks[used.disk].read_only
        };
        guest.disks.iter().filter(of_driver).count()
    };
    let mut loads = Vec::new();
    for guest in &mut setup.guests {
        let is_ours = matches!(guest.domain.kernel, Kernel::Builtin(_));
        let is_named = names.contains(&guest.domain.name);
        let count = writable(guest);
        if Some(&guest.domain.name) == campaign.front.as_ref() {
            continue;
        }
        if is_named && count == 0 {
            return Err(SetupError::plain(format!(
                "guest `{}` has no disk of `{}` that it may write",
                guest.domain.name, campaign.driver
            ))
            .help("give it one, or leave it out of `guests` in [load]"));
        }
        if is_named || names.is_empty() && is_ours && count > 0 {
            verify(guest, &cmdline);
            loads.push((guest.domain.name.clone(), count));
        }
    }
    if loads.is_empty() {
        return Err(SetupError::plain(format!(
            "no guest can put `{}` under load",
            campaign.driver
        ))
        .help(
            "name one with a disk that it may write, in [load]: guests = [\"NAME\"]; during the \
             campaign it runs the verifying load in place of its kernel",
        ));
    }
    Ok(loads)
}

fn verify(guest: &mut Guest, cmdline: &str) {
    guest.domain.kernel = Kernel::Builtin(verifier());
    (guest.domain.ramdisk, guest.domain.modules) = (None, None);
    cmdline.clone_into(&mut guest.domain.cmdline);
    (guest.agent, guest.console) = (false, false);
}

fn verifier() -> &'static Builtin {
    builtin::find("disk-verify").expect("it is among the programs of this workspace")
}

/// What the verifying guest is told.
fn cmdline(load: &campaign::Load) -> Result<String, SetupError> {
    let blocks = load.block_bytes >> 12;
    if load.depth > MOST_DEPTH || blocks > MOST_BLOCKS {
        return Err(SetupError::plain("the verifying load does not go so far").help(format!(
            "in [load], depth may be up to {MOST_DEPTH} and block up to \"{}K\"",
            MOST_BLOCKS << 2
        )));
    }
    let reads = load.reads_percent.min(100 - FLUSHES);
    let mut words = format!(
        "status={LOAD_STATUS_MS} blocks={LOAD_BLOCKS} depth={} size={blocks} \
         mix={}:{reads}:{FLUSHES} loglevel=error",
        load.depth,
        100 - FLUSHES - reads,
    );
    if load.integrity {
        words += " integrity=1";
    }
    Ok(words)
}

/// Gives the guest whose front end misbehaves the program for that.
fn put_front(campaign: &Campaign, setup: &mut Setup, driver: usize) -> Result<(), SetupError> {
    let Some(name) = &campaign.front else { return Ok(()) };
    let known: Vec<_> = setup.guests.iter().map(|g| g.domain.name.clone()).collect();
    let disks = &setup.disks;
    let Some(guest) = setup.guests.iter_mut().find(|g| g.domain.name == *name) else {
        return Err(SetupError::plain(format!("{} has no guest `{name}`", setup.source.name))
            .help(suggest(name, known.iter().map(String::as_str))));
    };
    let first = guest.disks.first();
    if !first.is_some_and(|used| disks[used.disk].driver == driver && used.writable) {
        return Err(SetupError::plain(format!(
            "the first disk of guest `{name}` is none of `{}` that it may write",
            campaign.driver
        ))
        .help("its front end is to misbehave there: give it one of its own"));
    }
    verify(guest, FRONT_LOAD);
    guest.domain.kernel =
        Kernel::Builtin(builtin::find("front-faults").expect("a program of this workspace"));
    Ok(())
}

/// Lets every disk have its image in `folder`; gives what is to be copied there.
fn divert_images(setup: &mut Setup, folder: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut copies = Vec::new();
    for disk in &mut setup.disks {
        let copy = folder.join(format!("{}.img", disk.name));
        copies.push((std::mem::replace(&mut disk.image, copy.clone()), copy));
    }
    copies
}

/// Adds a guest that touches nothing, and one that uses another driver domain a little.
fn add_neighbours(setup: &mut Setup, pattern: &Domain, folder: &Path) {
    let domain = |name: &str, program: &str, cmdline: &str| Domain {
        name: name.into(),
        kernel: Kernel::Builtin(builtin::find(program).expect("a program of this workspace")),
        cmdline: format!("loglevel=error {cmdline}"),
        memory: SMALL,
        ..pattern.clone()
    };
    let guest = |domain, disks| Guest {
        domain,
        disks,
        on_reboot: OnReboot::Destroy,
        agent: false,
        console: false,
    };
    setup.drivers.push(domain(NEIGHBOURS_DRIVER, "disk", ""));
    setup.care.push(Care::default());
    setup.disks.push(Disk {
        name: NEIGHBOURS_DISK.into(),
        image: folder.join("neighbour.img"),
        driver: setup.drivers.len() - 1,
        read_only: false,
        size: Some(Size::from_mib(1)),
        make: None,
        interrupt: Default::default(),
        image_span: 0..0,
    });
    let used = GuestDisk {
        disk: setup.disks.len() - 1,
        offset: 0,
        size: None,
        writable: true,
        span: 0..0,
    };
    let load = "depth=1 size=1 blocks=8 pace=40 status=200 mix=50:50:0";
    setup.guests.push(guest(domain(NEIGHBOUR, "disk-verify", load), vec![used]));
    setup.guests.push(guest(domain(BYSTANDER, "bystander", "memory=4"), Vec::new()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::Source;
    use faults::error::Source as CampaignSource;

    const SETUP: &str = r#"
[machine]
memory = "100M"
[driver.disk]
kernel = "disk"
[driver.linux]
kernel = "./vmlinuz"
[disk.data]
image = "data.raw"
[disk.fixed]
image = "fixed.raw"
read-only = true
[disk.other]
image = "other.raw"
[disk.root]
image = "root.raw"
driver = "linux"
[guest.load]
kernel = "disk-check"
disks = ["fixed", { disk = "data", size = "1M" }]
[guest.debian]
kernel = "./vmlinuz"
disks = [{ disk = "data", offset = "1M" }]
agent = true
[guest.rude]
kernel = "disk-verify"
disks = ["other"]
[guest.away]
kernel = "disk-verify"
disks = ["root"]
"#;

    fn staged(campaign: &str) -> Result<Staged, SetupError> {
        let text = SETUP.replace("[disk.data]", "[disk.data]\ndriver = \"disk\"");
        let text = text.replace("[disk.fixed]", "[disk.fixed]\ndriver = \"disk\"");
        let text = text.replace("[disk.other]", "[disk.other]\ndriver = \"disk\"");
        let source = Source { name: "set-up.toml".into(), text };
        let setup = Setup::parse(source, Path::new("/there"), &[]).expect("a set-up");
        let text = format!("setup = \"x\"\nseed = 1\nfaults = 1\n{campaign}");
        let source = CampaignSource { name: "campaign.toml".into(), text };
        let campaign = Campaign::parse(source, Path::new(".")).expect("a campaign");
        stage(&campaign, setup, Path::new("/work"))
    }

    fn kernel(setup: &Setup, name: &str) -> String {
        let guests = setup.guests.iter().map(|g| &g.domain);
        let found = setup.drivers.iter().chain(guests).find(|d| d.name == name);
        match &found.expect("a domain").kernel {
            Kernel::Builtin(program) => program.name.into(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn the_driver_does_wrong_on_order_and_guests_of_ours_with_its_disks_verify() {
        let Staged { setup, loads, program, copies } =
            staged("driver = \"disk\"\nfront = \"rude\"").expect("staged");
        assert_eq!((program.name, kernel(&setup, "disk").as_str()), ("disk-faults", "disk-faults"));
        assert_eq!(loads, [("load".to_owned(), 1)], "one of its two disks can be written");
        assert_eq!(kernel(&setup, "load"), "disk-verify");
        assert_eq!(kernel(&setup, "rude"), "front-faults");
        assert!(kernel(&setup, "debian").contains("vmlinuz"), "others stay as they are");
        let away = setup.guests.iter().find(|g| g.domain.name == "away").expect("a guest");
        assert_eq!(away.domain.cmdline, "", "it is not on this driver domain");
        let neighbours: Vec<_> = setup.guests[4..].iter().map(|g| &*g.domain.name).collect();
        assert_eq!(neighbours, [NEIGHBOUR, BYSTANDER]);
        assert!(setup.machine.memory.is_none(), "there are more domains now");
        assert_eq!(setup.care.len(), setup.drivers.len());
        let (from, to) = &copies[0];
        assert_eq!(
            (from.as_path(), to.as_path()),
            (Path::new("/there/data.raw"), Path::new("/work/data.img"))
        );
        assert!(setup.disks.iter().all(|disk| disk.image.starts_with("/work")));
    }

    #[test]
    fn a_guest_that_is_named_verifies_whatever_its_kernel_is() {
        let staged = staged("driver = \"disk\"\n[load]\nguests = [\"debian\"]\nintegrity = true");
        let Staged { setup, loads, .. } = staged.expect("staged");
        assert_eq!(loads, [("debian".to_owned(), 1)]);
        assert_eq!(kernel(&setup, "debian"), "disk-verify");
        let debian = setup.guests.iter().find(|g| g.domain.name == "debian").expect("a guest");
        assert!(debian.domain.cmdline.contains("integrity=1") && !debian.agent);
        assert_eq!(kernel(&setup, "load"), "disk-check");
    }

    #[test]
    fn what_a_campaign_names_and_the_set_up_does_not_have_is_told_with_what_it_has() {
        for (campaign, what, remedy) in [
            ("driver = \"dsk\"", "no driver domain `dsk`", "`disk`"),
            ("driver = \"linux\"", "has no hooks", "kernel = \"disk\""),
            ("driver = \"disk\"\nfront = \"rud\"", "no guest `rud`", "`rude`"),
            ("driver = \"disk\"\nfront = \"load\"", "the first disk of guest `load`", "of its own"),
            ("driver = \"disk\"\nfront = \"away\"", "the first disk of guest `away`", "of its own"),
            (
                "driver = \"disk\"\n[load]\nguests = [\"away\"]",
                "guest `away` has no disk",
                "[load]",
            ),
            ("driver = \"disk\"\n[load]\nblock = \"256K\"", "does not go so far", "\"128K\""),
        ] {
            let error = staged(campaign).expect_err(campaign);
            assert!(error.to_string().contains(what), "{error}");
            assert!(error.remedy().is_some_and(|text| text.contains(remedy)), "{error:?}");
        }
    }
}
