//! Driver domains that break a protocol, as the other side of it sees it: a front end, which
//! says so in the store, or this domain, which serves the driver's own rings.

use crate::{
    revive::Case,
    world::{World, front_end},
};
use alloc::format;
use bulkhead_abi::DomId;
use bulkhead_link::{Cause, Kind};
use dom0::{devices, supervisor::NotBelieved};
use domain_rt::time;

impl World {
    /// A guest may have something to say of the back end of its disk.
    pub fn complaint_moved(&mut self, guest: DomId, index: usize) {
        let Some(entry) = self.table.by_domid(guest) else {
            return;
        };
        let Some(disk) = entry.disks.get(index) else {
            return;
        };
        let (name, vdev, driver) = (entry.name.clone(), disk.vdev.clone(), disk.driver.clone());
        let front = front_end(guest, &vdev);
        let Some(what) = front.and_then(|f| devices::take_complaint(&mut self.store, &f)) else {
            return;
        };
        let reason = format!("{name} says of {vdev}: {what}");
        let ended = time::now();
        match self.table.complain(guest, &driver, ended.get()) {
            Ok(domid) => self.revive(Case { domid, cause: Cause::Violation, reason, ended }),
            Err(NotBelieved::TooMany { is_news: true }) => self.log(format!(
                "{driver} is not restarted though {reason}: there were too many complaints of late"
            )),
            Err(NotBelieved::TooMany { is_news: false } | NotBelieved::NotRunning) => {}
        }
    }

    /// A domain broke a protocol towards this one. A driver domain is restarted: its guests
    /// hang on it.
    pub fn violated(&mut self, domid: DomId, what: &str) {
        let entry = self.table.by_domid(domid);
        let is_driver =
            entry.is_some_and(|e| e.kind == Kind::Driver && e.exit.is_none() && !e.is_reviving);
        if is_driver {
            let (cause, ended) = (Cause::Violation, time::now());
            self.wants_revival(Case { domid, cause, reason: what.into(), ended });
        }
    }
}
