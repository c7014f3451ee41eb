//! A guest that puts its disks under a load that verifies itself, for as long as it is
//! told: every block says who wrote it and when, and whatever a correct disk never does is
//! named with its block. It says how it goes at most once a second, and at the end in one
//! line for each disk that programs can read; then it powers off, or ends as crashed if
//! anything was wrong.
//!
//! What is typed on its console it does: `check N` has every block read, `renew N` written
//! and read, and N told then; `end` has the load come to its end.
//!
//! Options on the command line: `seed=N` (1), `depth=N` requests in flight (16), `size=N`
//! most blocks of 4 KiB in one (8), `least=N` fewest (1), `mix=WRITES:READS:FLUSHES` in percent (49:49:2),
//! `blocks=N` of each disk (all), `fill=0` (do not write all of it first), `rounds=N` and
//! `seconds=N` (no end), `status=MS` (1000), `patience=SECONDS` for a silent disk at the
//! end (30), `integrity=1` (the front end keeps checksums, too), `pace=MS` of rest before each
//! round (0).
#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;
use domain_rt::abi::Ns;
use domain_rt::exec::{self, block_on};
use domain_rt::{Boot, Shutdown, console, println, shutdown, time, xenstore};
use guest_frontends::blkfront::queue::Violation;
use guest_frontends::blkfront::{self, Disk, Options};
use guest_frontends::rt::Domain;
use guest_frontends::verify::{self, Host, Plan, Wish};

domain_rt::entry!(main);

fn main(boot: &'static Boot) {
    match run(boot) {
        Ok(()) => {
            println!("disk-verify: all well");
            shutdown(Shutdown::Poweroff)
        }
        Err(what) => {
            println!("disk-verify: FAILED: {what}");
            shutdown(Shutdown::Crash)
        }
    }
}

fn run(boot: &'static Boot) -> Result<(), String> {
    let plan = Plan::parse(|name| boot.option(name))?;
    let store = xenstore::connect(boot).ok_or("there is no xenstore")?;
    let domain = Rc::new(Domain::new(store));
    let wishes = Rc::new(Wishes::default());
    let heard = wishes.clone();
    exec::spawn(async move { heard.listen().await }).detach();
    block_on(async move { on_all_disks(domain, plan, wishes).await })
}

/// Runs the plan on every disk that can be written, at the same time.
async fn on_all_disks(domain: Rc<Domain>, plan: Plan, wishes: Rc<Wishes>) -> Result<(), String> {
    let names = blkfront::disks(&*domain).await.map_err(|error| format!("{error}"))?;
    let failed = Rc::new(Cell::new(0_u32));
    let mut tasks = Vec::new();
    for (number, name) in (0..).zip(names) {
        let (device, disk) = connect(&domain, &name, &plan).await?;
        if disk.facts().read_only {
            println!("disk-verify: {name}: read-only, left alone");
            close(&domain, device, disk).await;
            continue;
        }
        let (domain, failed) = (domain.clone(), failed.clone());
        let wishes = wishes.clone();
        tasks.push(exec::spawn(async move {
            if let Err(what) = on_disk(&domain, device, disk, &name, number, &plan, wishes).await {
                println!("disk-verify: {name}: {what}");
                failed.set(failed.get() + 1);
            }
        }));
    }
    if tasks.is_empty() {
        return Err("there is no disk that can be written".into());
    }
    for task in tasks {
        task.await;
    }
    match failed.get() {
        0 => Ok(()),
        disks => Err(format!("{disks} disks did wrong, see above")),
    }
}

async fn connect(
    domain: &Rc<Domain>,
    name: &str,
    plan: &Plan,
) -> Result<(u32, Disk<Domain>), String> {
    let device = blkfront::virtual_device(name).ok_or("no such disk name")?;
    let options = Options {
        ring_page_order: 2,
        segments: plan.size as usize,
        in_flight: plan.depth,
        integrity: plan.integrity,
    };
    let disk = blkfront::connect(&**domain, device, options).await;
    let disk = disk.map_err(|error| format!("{name}: {error}"))?;
    Ok((device, disk))
}

async fn on_disk(
    domain: &Rc<Domain>,
    device: u32,
    mut disk: Disk<Domain>,
    name: &str,
    number: u32,
    plan: &Plan,
    wishes: Rc<Wishes>,
) -> Result<(), String> {
    let guest = Guest { domain, device, wishes, heard: Cell::new(0) };
    let summary = verify::run(&mut disk, name, number, plan, &guest).await;
    let summary = summary.map_err(|error| format!("{error}"))?;
    println!("disk-verify: done {summary}");
    match summary.counts.is_all_well() {
        true => {
            close(domain, device, disk).await;
            Ok(())
        }
        // A back end that did wrong may not answer to a close, either.
        false => Err("it did wrong".into()),
    }
}

async fn close(domain: &Rc<Domain>, device: u32, disk: Disk<Domain>) {
    if let Err(error) = blkfront::close(&**domain, device, disk).await {
        log::warn!("closing disk {device}: {error}");
    }
}

/// Longest line that is listened to.
const LINE_BYTES: usize = 64;

/// What was typed last, and how many wishes there were until then.
#[derive(Default)]
struct Wishes(Cell<(u64, Option<Wish>)>);

impl Wishes {
    async fn listen(&self) {
        let (mut line, mut bytes) = (String::new(), [0; 64]);
        while let Some(count) = console::read(&mut bytes).await {
            for &byte in bytes.iter().take(count) {
                match byte {
                    b'\r' | b'\n' => self.hear(&core::mem::take(&mut line)),
                    _ if line.len() < LINE_BYTES => line.push(char::from(byte)),
                    _ => {}
                }
            }
        }
    }

    fn hear(&self, line: &str) {
        let (verb, number) = line.split_once(' ').unwrap_or((line, ""));
        let wish = match (verb, number.parse()) {
            ("check", Ok(number)) => Wish::Check(number),
            ("renew", Ok(number)) => Wish::Renew(number),
            ("end", _) => Wish::End,
            _ => return println!("disk-verify: `check N`, `renew N` and `end` are listened to"),
        };
        self.0.set((self.0.get().0 + 1, Some(wish)));
    }
}

/// This guest, for the load on one disk.
struct Guest<'a> {
    domain: &'a Domain,
    device: u32,
    wishes: Rc<Wishes>,
    /// Wishes that were told.
    heard: Cell<u64>,
}

impl Host<Domain> for Guest<'_> {
    fn now(&self) -> u64 {
        time::now().get()
    }
    async fn sleep_until(&self, deadline: u64) {
        time::sleep_until(Ns::new(deadline)).await;
    }
    fn say(&self, line: fmt::Arguments<'_>) {
        println!("disk-verify: {line}");
    }
    fn wish(&self) -> Option<Wish> {
        let (count, wish) = self.wishes.0.get();
        (self.heard.replace(count) != count).then_some(wish).flatten()
    }
    async fn recover(&self, disk: &mut Disk<Domain>, violation: &Violation) -> bool {
        let recovered = blkfront::recover(self.domain, self.device, disk, violation).await;
        recovered.inspect_err(|error| println!("disk-verify: no new connection: {error}")).is_ok()
    }
}
