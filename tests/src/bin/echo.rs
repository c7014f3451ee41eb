//! A guest that says back what is typed on its console, line by line, powers off at the line
//! `end`, reboots at the line `reboot`, and does both when asked through the store, as a
//! kernel would. It waits without using the CPU. With `reboot=1` it only reboots.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::{format, string::String};
use domain_rt::{
    Boot, Shutdown, console, exec, println, shutdown,
    xenstore::{self, Result, Xenstore},
};

domain_rt::entry!(main);

/// Longest line that is kept; the rest of a longer one is dropped.
const LINE_BYTES: usize = 256;

fn main(boot: &'static Boot) {
    println!("echo: ready");
    if boot.option("reboot").is_some() {
        shutdown(Shutdown::Reboot);
    }
    if let Some(store) = xenstore::connect(boot) {
        exec::spawn(async move {
            if let Err(error) = obey(&store).await {
                println!("echo: it can not be asked for anything: {error}");
            }
        })
        .detach();
    }
    exec::block_on(async {
        let (mut line, mut bytes) = (String::new(), [0; 64]);
        while let Some(count) = console::read(&mut bytes).await {
            for &byte in bytes.iter().take(count) {
                match byte {
                    b'\r' | b'\n' if line == "end" => return,
                    b'\r' | b'\n' if line == "reboot" => shutdown(Shutdown::Reboot),
                    b'\r' | b'\n' => println!("echo: {}", core::mem::take(&mut line)),
                    _ if line.len() < LINE_BYTES => line.push(char::from(byte)),
                    _ => {}
                }
            }
        }
    });
    println!("echo: the end");
}

/// Does what is asked in `control/shutdown`; takes the request first, by emptying the node.
async fn obey(store: &Xenstore) -> Result<()> {
    let watch = store.watch("control/shutdown").await?;
    for feature in ["poweroff", "reboot"] {
        store.write(&format!("control/feature-{feature}"), "1").await?;
    }
    println!("echo: listens");
    while watch.next().await.is_some() {
        let reason = match store.read("control/shutdown").await?.as_str() {
            "poweroff" => Shutdown::Poweroff,
            "reboot" => Shutdown::Reboot,
            _ => continue,
        };
        store.write("control/shutdown", "").await?;
        shutdown(reason);
    }
    Ok(())
}
