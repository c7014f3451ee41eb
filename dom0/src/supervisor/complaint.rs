//! Guests that say that a driver domain broke a protocol. A guest may lie: what its word
//! can cost the others is bounded here.
//!
//! A complaint restarts the driver domain, which is a pause for all its guests and nothing
//! worse, whoever is right. A guest is believed [`MOST_COMPLAINTS`] times within the driver's
//! `restart-window`; all guests together no more often than a driver may fail by itself
//! (`restart-limit`). Complaints never put a driver domain in quarantine: two guests could agree
//! to take a third one's disk away.

use super::Table;
use bulkhead_abi::DomId;
use bulkhead_link::{Care, Kind, State};

/// So many complaints of one guest are believed within a driver's window.
pub const MOST_COMPLAINTS: u32 = 3;

/// Why nothing comes of a complaint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotBelieved {
    /// The driver domain is being restarted, or is not there to be.
    NotRunning,
    /// There were too many; `is_news` if the last one was believed.
    TooMany { is_news: bool },
}

impl Table {
    /// Takes a guest's complaint about a driver domain in; which one is to be restarted.
    pub fn complain(
        &mut self,
        guest: DomId,
        driver: &str,
        now_ns: u64,
    ) -> Result<DomId, NotBelieved> {
        let mut entries = self.entries.iter_mut().filter(|e| e.exists);
        let driver = entries.find(|e| e.name == driver && e.kind == Kind::Driver);
        let driver = driver.filter(|d| d.state == State::Running && !d.is_reviving);
        let driver = driver.ok_or(NotBelieved::NotRunning)?;
        let (domid, Care { restart_limit, restart_window_ns: window, .. }) =
            (driver.domid, driver.care);
        // Noted only if the guest's own count allows it: what is not believed costs nothing.
        let mut blames = driver.blames.clone();
        let all = blames.note(now_ns, restart_limit, window);
        let guest = self.by_domid(guest).ok_or(NotBelieved::NotRunning)?;
        let own = all.and_then(|()| guest.complaints.note(now_ns, MOST_COMPLAINTS, window));
        let was_too_often = core::mem::replace(&mut guest.complains_too_often, own.is_err());
        own.map_err(|_| NotBelieved::TooMany { is_news: !was_too_often })?;
        if let Some(driver) = self.by_domid(domid) {
            driver.blames = blames;
        }
        Ok(domid)
    }
    /// Forgets how often a driver domain failed and who complained: what was done to it on
    /// purpose is not its fault.
    pub fn forgive(&mut self, driver: DomId) {
        for entry in &mut self.entries {
            if entry.domid == driver {
                (entry.failures, entry.blames) = Default::default();
            }
            (entry.complaints, entry.complains_too_often) = Default::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::Entry;
    use bulkhead_link::Sched;

    const S: u64 = 1_000_000_000;

    fn table(guests: u16) -> Table {
        let mut table = Table::default();
        table.add(Entry::new("disk", Kind::Driver, DomId::new(1), 1, Sched::default()));
        for id in 2..2 + guests {
            let name = alloc::format!("g{id}");
            table.add(Entry::new(&name, Kind::Guest, DomId::new(id), 1, Sched::default()));
        }
        table
    }

    #[test]
    fn a_guest_is_believed_a_few_times_in_a_window_and_told_off_once() {
        let mut table = table(1);
        let guest = DomId::new(2);
        for now in 0..3 {
            assert_eq!(table.complain(guest, "disk", now), Ok(DomId::new(1)));
        }
        let told_off = |is_news| Err(NotBelieved::TooMany { is_news });
        assert_eq!(table.complain(guest, "disk", 4), told_off(true));
        assert_eq!(table.complain(guest, "disk", 5), told_off(false));
        let mut forgiving = table.clone();
        forgiving.forgive(DomId::new(1));
        assert_eq!(forgiving.complain(guest, "disk", 6), Ok(DomId::new(1)));
        assert_eq!(table.complain(guest, "disk", 11 * S), Ok(DomId::new(1)));
        assert_eq!(table.by_name("disk").map(|d| d.state), Some(State::Running));
    }

    #[test]
    fn all_guests_together_restart_a_driver_no_more_often_than_it_may_fail() {
        let mut table = table(20);
        let mut believed = 0;
        for round in 0..5 {
            for id in 2..22 {
                believed += u32::from(table.complain(DomId::new(id), "disk", round).is_ok());
            }
        }
        assert_eq!(believed, Care::default().restart_limit);
    }

    #[test]
    fn what_does_not_run_is_not_restarted_for_a_complaint_and_the_guest_keeps_its_right() {
        let mut table = table(1);
        let guest = DomId::new(2);
        for name in ["g2", "ghost", "disk"] {
            if let Some(driver) = table.by_domid(DomId::new(1)) {
                driver.is_reviving = true;
            }
            for now in 0..9 {
                assert_eq!(table.complain(guest, name, now), Err(NotBelieved::NotRunning));
            }
        }
        if let Some(driver) = table.by_domid(DomId::new(1)) {
            driver.is_reviving = false;
        }
        assert!((0..3).all(|now| table.complain(guest, "disk", now).is_ok()));
    }
}
