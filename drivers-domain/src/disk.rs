//! The driver domain of disks: owns virtio block devices and serves parts of them to
//! guests. It trusts neither its guests nor, with anything but its own life, its device.

use crate::drive::Drive;
use crate::ledger::LedgerPages;
use crate::made_of;
use crate::service::{self, Context, Service};
use crate::virtio::{self, VirtioBlk};
use alloc::collections::BTreeMap;
use blkback::OnFailure;
use domain_rt::device;
use domain_rt::exec::{self, block_on};
use domain_rt::{Boot, Shutdown, shutdown, xenstore};

/// What the domain does: it never ends but by its death.
pub fn main(boot: &'static Boot) {
    let failure = block_on(run(boot));
    log::error!("disk: {failure}");
    shutdown(Shutdown::Crash)
}

/// Serves for ever; gives the reason when it cannot.
async fn run(boot: &'static Boot) -> &'static str {
    let Some(store) = xenstore::connect(boot) else {
        return "there is no xenstore";
    };
    let Some(ledger) = LedgerPages::find(&store).await else {
        return "out of memory for the ledger";
    };
    made_of::listen(&ledger, boot);
    exec::spawn(ledger.clone().beat()).detach();
    let services = match ledger.on_failure() {
        OnFailure::Refuse => leave_devices_alone(),
        OnFailure::Reissue | OnFailure::Queue | OnFailure::Fail => open_devices(),
    };
    if services.is_empty() {
        return "there is no disk";
    }
    ledger.devices_are_up();
    let context = Context { store, ledger, services };
    match service::run(context).await {
        Ok(()) => "the service ended",
        Err(error) => {
            log::error!("disk: {error}");
            "xenstore is gone"
        }
    }
}

/// Services that answer with errors, for as many devices as there are.
fn leave_devices_alone() -> BTreeMap<u32, Service> {
    log::warn!("disk: in quarantine: every request is answered with an error");
    let devices = device::devices().filter(virtio::is_block);
    devices.map(|found| (found.sbdf, Service::start(Drive::Absent, None))).collect()
}

/// Opens every block device of this domain; one that does not open is left out.
fn open_devices() -> BTreeMap<u32, Service> {
    let mut services = BTreeMap::new();
    for found in device::devices().filter(virtio::is_block) {
        match VirtioBlk::open(&found) {
            Ok((device, interrupt)) => {
                let kind = interrupt.kind();
                let service = Service::start(Drive::Virtio(device), Some(interrupt));
                let facts = service.facts();
                log::info!(
                    "disk {:#06x}: {} sectors, {}, {kind} interrupt",
                    found.sbdf,
                    facts.sectors,
                    if facts.read_only { "read-only" } else { "writable" }
                );
                services.insert(found.sbdf, service);
            }
            Err(error) => log::error!("disk {:#06x}: {error}", found.sbdf),
        }
    }
    services
}
