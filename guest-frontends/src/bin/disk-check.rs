//! A guest that checks its disks. It prints every file of the ext4 file system on its
//! first disk as `SHA256  SIZE  PATH`; writes a pattern over its second disk if that is
//! writable, reads it back and prints how fast that was; and powers off. If anything is
//! wrong it says so in its last line and ends as crashed.
//!
//! Options on the command line: `list=off`, `write=off`, `seed=N` (1), `bytes=N` (the
//! most to write; all of the disk), `integrity=on` (off; the front end keeps a checksum of
//! every block and refuses what is not what was written).
#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use core::cell::RefCell;
use core::error::Error;
use domain_rt::exec::block_on;
use domain_rt::{Boot, Shutdown, println, shutdown, time, xenstore};
use guest_frontends::blkfront::{self, Disk, Options, SECTOR_BYTES};
use guest_frontends::check;
use guest_frontends::listing::{self, BlockSource};
use guest_frontends::rt::Domain;

domain_rt::entry!(main);

/// What the command line asks for.
#[derive(Clone, Copy)]
struct Wanted {
    list: bool,
    write: bool,
    seed: u64,
    max_bytes: u64,
    integrity: bool,
}

impl Wanted {
    fn parse(boot: &Boot) -> Result<Self, String> {
        Ok(Self {
            list: switch(boot, "list", true)?,
            write: switch(boot, "write", true)?,
            seed: number(boot, "seed")?.unwrap_or(1),
            max_bytes: number(boot, "bytes")?.unwrap_or(u64::MAX),
            integrity: switch(boot, "integrity", false)?,
        })
    }
}

fn switch(boot: &Boot, name: &str, otherwise: bool) -> Result<bool, String> {
    match boot.option(name) {
        None => Ok(otherwise),
        Some("on" | "1") => Ok(true),
        Some("off" | "0") => Ok(false),
        Some(other) => Err(format!("{name}={other}: on or off is meant")),
    }
}

fn number(boot: &Boot, name: &str) -> Result<Option<u64>, String> {
    let parse = |value: &str| value.parse().map_err(|_| format!("{name}={value}: not a number"));
    boot.option(name).map(parse).transpose()
}

fn main(boot: &'static Boot) {
    match run(boot) {
        Ok(()) => {
            println!("disk-check: all well");
            shutdown(Shutdown::Poweroff)
        }
        Err(what) => {
            println!("disk-check: FAILED: {what}");
            shutdown(Shutdown::Crash)
        }
    }
}

fn run(boot: &'static Boot) -> Result<(), String> {
    let wanted = Wanted::parse(boot)?;
    let store = xenstore::connect(boot).ok_or("there is no xenstore")?;
    let domain = Rc::new(Domain::new(store));
    let names = {
        let domain = domain.clone();
        block_on(async move { blkfront::disks(&*domain).await })
    };
    let mut names = names.map_err(|error| format!("{error}"))?.into_iter();
    let first = names.next().ok_or("there is no disk")?;
    if wanted.list {
        list(&domain, &first, wanted)?;
    }
    match names.next() {
        Some(second) if wanted.write => write(&domain, second, wanted),
        Some(_) | None => Ok(()),
    }
}

fn connect(domain: &Rc<Domain>, name: &str, wanted: Wanted) -> Result<(u32, Disk<Domain>), String> {
    let number = blkfront::virtual_device(name).ok_or("no such disk name")?;
    let options = Options { integrity: wanted.integrity, ..Options::default() };
    let domain = domain.clone();
    let disk = block_on(async move { blkfront::connect(&*domain, number, options).await });
    let disk = disk.map_err(|error| format!("{name}: {error}"))?;
    let facts = disk.facts();
    println!(
        "disk-check: {name}: {} MiB, {}",
        facts.sectors >> 11,
        if facts.read_only { "read-only" } else { "writable" }
    );
    Ok((number, disk))
}

fn close(domain: &Rc<Domain>, number: u32, disk: Disk<Domain>) {
    let domain = domain.clone();
    let closed = block_on(async move { blkfront::close(&*domain, number, disk).await });
    if let Err(error) = closed {
        log::warn!("closing disk {number}: {error}");
    }
}

fn list(domain: &Rc<Domain>, name: &str, wanted: Wanted) -> Result<(), String> {
    let (number, disk) = connect(domain, name, wanted)?;
    let shared = Rc::new(RefCell::new(Some(disk)));
    let source = Source {
        sectors: shared.borrow().as_ref().map_or(0, |disk| disk.facts().sectors),
        disk: shared.clone(),
    };
    let start = time::now();
    let listed = listing::list(source, |entry| println!("{}", entry.line()));
    let (files, bytes) = listed.map_err(|error| format!("{name}: {error}"))?;
    println!("disk-check: {name}: {files} files, {bytes} bytes, {}", rate(bytes, start));
    if let Some(disk) = shared.take() {
        close(domain, number, disk);
    }
    Ok(())
}

/// A disk as what the file system reads from. It is taken out while a task uses it.
struct Source {
    disk: Rc<RefCell<Option<Disk<Domain>>>>,
    sectors: u64,
}

impl BlockSource for Source {
    fn bytes(&self) -> u64 {
        self.sectors * SECTOR_BYTES as u64
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut disk = self.disk.take().ok_or("the disk is in use")?;
        let sector = offset / SECTOR_BYTES as u64;
        let mut data = vec![0; into.len()];
        let (disk, data, result) = block_on(async move {
            let result = disk.read(sector, &mut data).await;
            (disk, data, result)
        });
        self.disk.replace(Some(disk));
        result?;
        into.copy_from_slice(&data);
        Ok(())
    }
}

fn write(domain: &Rc<Domain>, name: String, wanted: Wanted) -> Result<(), String> {
    let (number, mut disk) = connect(domain, &name, wanted)?;
    if disk.facts().read_only {
        close(domain, number, disk);
        return Ok(());
    }
    let sectors = disk.facts().sectors.min(wanted.max_bytes / SECTOR_BYTES as u64);
    let seed = wanted.seed;
    let (disk, result) = block_on(async move {
        let result = write_and_verify(&mut disk, seed, sectors).await;
        (disk, result)
    });
    result.map_err(|error| format!("{name}: {error}"))?;
    println!("disk-check: {name}: {sectors} sectors hold the pattern of seed {seed}");
    close(domain, number, disk);
    Ok(())
}

async fn write_and_verify(
    disk: &mut Disk<Domain>,
    seed: u64,
    sectors: u64,
) -> Result<(), check::CheckError> {
    let bytes = sectors * SECTOR_BYTES as u64;
    let start = time::now();
    check::write(disk, seed, sectors).await?;
    println!("disk-check: wrote and flushed {bytes} bytes, {}", rate(bytes, start));
    let start = time::now();
    check::verify(disk, seed, sectors).await?;
    println!("disk-check: read back {bytes} bytes, {}", rate(bytes, start));
    Ok(())
}

/// "12 ms, 34.5 MB/s" by this guest's clock.
fn rate(bytes: u64, since: domain_rt::abi::Ns) -> String {
    let ns = time::now().get().saturating_sub(since.get()).max(1);
    // Bytes per microsecond are MB/s; one more digit by tenths.
    let tenths = u128::from(bytes) * 10_000 / u128::from(ns);
    format!("{} ms, {}.{} MB/s", ns / 1_000_000, tenths / 10, tenths % 10)
}
