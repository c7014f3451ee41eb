//! A guest with a disk front end that does wrong on order, for fault campaigns: it puts its
//! first disk under load, obeys lines of its console (`guest_frontends::misuse`), and tells
//! when it has done so. At the line `again N` it gives its disk up, however that is, connects
//! it anew, and says so. What it reads is of no interest to it.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use core::cell::RefCell;
use core::fmt;
use core::time::Duration;
use domain_rt::abi::Ns;
use domain_rt::exec::{self, block_on};
use domain_rt::{Boot, Shutdown, console, println, shutdown, time, xenstore};
use guest_frontends::blkfront::{self, Disk, Options};
use guest_frontends::misuse::{Misusing, Orders};
use guest_frontends::platform::{Platform, Store};
use guest_frontends::rt::Domain;
use guest_frontends::verify::{self, Host, Plan};

domain_rt::entry!(main);

/// Longest line that is listened to.
const LINE_BYTES: usize = 80;
/// How long the back end may take to let go of a disk.
const PARTING: Duration = Duration::from_millis(500);
/// How often it is looked whether an order was obeyed, and answers that came late are taken.
const LOOK: Duration = Duration::from_millis(2);

fn main(boot: &'static Boot) {
    match run(boot) {
        Ok(never) => match never {},
        Err(what) => {
            println!("front: {what}");
            shutdown(Shutdown::Crash)
        }
    }
}

fn run(boot: &'static Boot) -> Result<core::convert::Infallible, String> {
    let plan = Plan::parse(|name| boot.option(name))?;
    let store = xenstore::connect(boot).ok_or("there is no xenstore")?;
    block_on(serve(Domain::new(store), plan))
}

async fn serve(domain: Domain, plan: Plan) -> Result<core::convert::Infallible, String> {
    let names = blkfront::disks(&domain).await.map_err(|error| format!("{error}"))?;
    let name = names.first().ok_or("there is no disk")?;
    let number = blkfront::virtual_device(name).ok_or("no such disk name")?;
    let orders = Orders::default();
    let again = Again::default();
    let (heard, said) = (orders.clone(), again.clone());
    exec::spawn(async move { listen(&heard, &said).await }).detach();
    let told = orders.clone();
    exec::spawn(async move { tell(&told).await }).detach();
    let mut wanted = 0;
    loop {
        let platform = Misusing::new(&domain, orders.clone(), || time::now().get());
        let options =
            Options { segments: plan.size as usize, in_flight: plan.depth, ..Options::default() };
        let disk = blkfront::connect(&platform, number, options).await;
        let mut disk = disk.map_err(|error| format!("{name}: {error}"))?;
        println!("front: connected {wanted}");
        wanted = {
            let load = async {
                let ended = verify::run(&mut disk, name, 0, &plan, &Quiet).await;
                if let Err(error) = ended {
                    println!("front: {error}");
                }
                // Its own violation, or answers that never came.
                core::future::pending().await
            };
            exec::select(load, again.next()).await
        };
        orders.forget();
        part(&platform, number, disk).await?;
    }
}

/// Gives a disk up, whether the back end agrees or not.
async fn part<P: Platform>(platform: &P, number: u32, disk: Disk<P>) -> Result<(), String> {
    let closed =
        async { blkfront::close(platform, number, disk).await.map_err(|error| format!("{error}")) };
    let patience = async {
        time::sleep(PARTING).await;
        Ok(())
    };
    exec::select(closed, patience).await?;
    // The back end offers the disk again when it sees this; what it says until then is old.
    let (store, front) = (platform.store(), format!("device/vbd/{number}"));
    let state = format!("{front}/state");
    store.write(&state, "1").await.map_err(|error| format!("{error}"))?;
    let back = store.read(&format!("{front}/backend")).await.map_err(|error| format!("{error}"))?;
    let state = format!("{}/state", back.ok_or("its back end is gone")?);
    let is_closed = |state: Option<String>| state.is_none_or(|state| matches!(&*state, "5" | "6"));
    while is_closed(store.read(&state).await.map_err(|error| format!("{error}"))?) {
        time::sleep(LOOK).await;
    }
    Ok(())
}

async fn listen(orders: &Orders, again: &Again) {
    let (mut line, mut bytes) = (String::new(), [0; 64]);
    while let Some(count) = console::read(&mut bytes).await {
        for &byte in bytes.iter().take(count) {
            match byte {
                b'\r' | b'\n' => {
                    let line = core::mem::take(&mut line);
                    match line.strip_prefix("again ").and_then(|number| number.parse().ok()) {
                        Some(number) => again.say(number),
                        None if orders.hear(&line) => {}
                        None => println!("front: `{line}` is no order"),
                    }
                }
                _ if line.len() < LINE_BYTES => line.push(char::from(byte)),
                _ => {}
            }
        }
    }
}

/// Says it once when an order was obeyed.
async fn tell(orders: &Orders) {
    let mut told = 0;
    loop {
        let activations = orders.activations();
        if activations != told {
            println!("front: activated now_us={}", time::now().get() / 1000);
        }
        told = activations;
        time::sleep(LOOK).await;
    }
}

/// The latest number that was said, for one who waits.
#[derive(Clone, Default)]
struct Again(alloc::rc::Rc<RefCell<Option<u64>>>);

impl Again {
    fn say(&self, number: u64) {
        *self.0.borrow_mut() = Some(number);
    }

    async fn next(&self) -> u64 {
        loop {
            if let Some(number) = self.0.borrow_mut().take() {
                return number;
            }
            time::sleep(LOOK).await;
        }
    }
}

/// This guest, for the load; what that finds is the outcome of what was ordered.
struct Quiet;

impl<P: Platform> Host<P> for Quiet {
    fn now(&self) -> u64 {
        time::now().get()
    }
    async fn sleep_until(&self, deadline: u64) {
        time::sleep_until(Ns::new(deadline)).await;
    }
    fn say(&self, _: fmt::Arguments<'_>) {}
}
