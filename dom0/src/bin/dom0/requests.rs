//! What the host tool's requests do to domains.

use crate::{
    revive::Case,
    world::{World, domain_info, virtual_time},
};
use alloc::{format, string::String, vec::Vec};
use bulkhead_abi::{
    DomId,
    control::{DomainInfo, MachineInfo, SchedParams, SetMaxPages},
};
use bulkhead_link::{
    Cause, DomainReport, Kind, Listing, MachineReport, NewImage, Sched, State,
    injection::{Injection, Signs},
};
use dom0::{
    builder::Plan,
    control::{Machine, has_ended, no_such_domain},
    supervisor::{Update, disk_report},
    uploads::ImagePart,
    wishes::{self, Wish},
};
use domain_rt::{control, heap, time};

impl World {
    /// The id of a domain that is there.
    fn living(&self, name: &str) -> Result<(DomId, State), String> {
        let entry = self.table.by_name(name);
        let entry = entry.ok_or_else(|| no_such_domain(name))?;
        match entry.exists {
            true => Ok((entry.domid, entry.state)),
            false if entry.state == State::Rebooting => {
                Err(format!("domain {name:?} is about to be started again; try it then"))
            }
            false => Err(has_ended(name)),
        }
    }

    /// The id of a driver domain that can be restarted now.
    fn restartable(&mut self, domain: &str) -> Result<(DomId, State), String> {
        let (domid, state) = self.living(domain)?;
        let entry = self.table.by_domid(domid).ok_or_else(|| has_ended(domain))?;
        if entry.kind != Kind::Driver {
            return Err(format!("{domain} is a guest; `bulkhead reboot {domain}` reboots it"));
        }
        match entry.is_reviving {
            true => Err(format!("{domain} is being restarted already")),
            false => Ok((domid, state)),
        }
    }

    /// Restarts a driver domain because somebody asked for it.
    fn restart_with(&mut self, domid: DomId, state: State, reason: &str) -> Result<(), String> {
        if state == State::Quarantined
            && let Some(entry) = self.table.by_domid(domid)
        {
            entry.absolve();
        }
        let (cause, reason) = (Cause::Request, reason.into());
        self.revive(Case { domid, cause, reason, ended: time::now() });
        Ok(())
    }

    /// Lets a guest own as much memory as it is told to have: no less, or its balloon would not
    /// grow, and no more, so that what it gives back can be given to another.
    fn allow_memory(&mut self, domid: DomId, kib: u64) -> Result<(), String> {
        self.look_after_domains();
        let free_kib = machine_report().free_frames * 4;
        let entry = self.table.by_domid(domid).ok_or("it has just ended")?;
        entry.check_size(kib, free_kib)?;
        let name = entry.name.clone();
        let mut limit =
            SetMaxPages { domid: domid.get(), max_pages: kib.div_ceil(4), ..Default::default() };
        control::set_max_pages(&mut limit).map_err(|errno| format!("{name}: {errno}"))
    }
}

impl Machine for World {
    fn list(&mut self) -> Listing {
        self.look_after_domains();
        let mut domains: Vec<DomainReport> = own_report().into_iter().collect();
        domains.extend(self.table.all().iter().map(|entry| entry.report()));
        let disks = self.table.all().iter().flat_map(|entry| {
            let reports = entry.disks.iter();
            reports.map(|disk| disk_report(&entry.name, disk, self.counters(disk)))
        });
        Listing { domains, disks: disks.collect(), machine: machine_report() }
    }

    fn kill(&mut self, domain: &str) -> Result<(), String> {
        if self.table.is_rebooting(domain) {
            self.cancel_restart(domain, "killed on request");
            return Ok(());
        }
        let (domid, _) = self.living(domain)?;
        self.end(domid, "killed on request");
        Ok(())
    }

    fn crash(&mut self, domain: &str) -> Result<(), String> {
        let (domid, _) = self.living(domain)?;
        let entry = self.table.by_domid(domid).ok_or_else(|| has_ended(domain))?;
        if entry.is_reviving || entry.exit.is_some() {
            return Err(format!("{domain} is dead already"));
        }
        entry.is_condemned = true;
        // Its end comes as the news of any other.
        control::crash_domain(domid).map_err(|e| format!("{domain}: {e}"))
    }

    fn restart(&mut self, domain: &str) -> Result<(), String> {
        let (domid, state) = self.restartable(domain)?;
        self.restart_with(domid, state, "on request")
    }

    fn image_part(&mut self, part: ImagePart) -> Result<(), String> {
        self.uploads.take(part)
    }

    fn update(&mut self, domain: &str, to: NewImage) -> Result<(), String> {
        let (domid, state) = self.restartable(domain)?;
        let update = match to {
            NewImage::Original => None,
            NewImage::Sent { upload, name } => Some((self.uploads.finish(upload)?, name)),
        };
        let entry = self.table.by_domid(domid).ok_or_else(|| has_ended(domain))?;
        let (reason, update) = match update {
            None if entry.update.is_none() => {
                return Err(format!("{domain} runs the image of the set-up already"));
            }
            None => ("on request, with the image of the set-up".into(), None),
            Some((image, name)) => {
                // What fails later fails where the old image is gone.
                Plan::new(&image, &[], entry.most_memory_kib / 4).map_err(|error| {
                    format!("{name} does not load: {error}. {domain} goes on as it was")
                })?;
                (format!("on request, with the image {name}"), Some(Update { name, image }))
            }
        };
        entry.update = update;
        self.restart_with(domid, state, &reason)
    }

    fn inject(&mut self, domain: &str, injection: &Injection) -> Result<(), String> {
        self.do_wrong(domain, injection).map_err(|why| format!("{domain}: {why}"))
    }

    fn signs(&mut self, domain: &str) -> Result<Signs, String> {
        self.signs_of(domain).map_err(|why| format!("{domain}: {why}"))
    }

    fn disarm(&mut self, domain: &str) -> Result<(), String> {
        self.take_back(domain).map_err(|why| format!("{domain}: {why}"))
    }

    fn ask(&mut self, domain: &str, wish: Wish) -> Result<(), String> {
        let (domid, state) = self.living(domain)?;
        if state == State::Paused {
            return Err(format!("{domain} is paused, and can do nothing"));
        }
        wishes::check(&self.store, domid, domain, wish)?;
        match wish {
            Wish::Memory(kib) => self.allow_memory(domid, kib)?,
            Wish::PowerOff => self.watch_shutdown(domid),
            Wish::Reboot => {
                self.watch_shutdown(domid);
                if let Some(entry) = self.table.by_domid(domid) {
                    entry.reboots.want();
                }
            }
            Wish::Sysrq(_) => {}
        }
        let asked = wishes::ask(&mut self.store, domid, domain, wish);
        self.store_settled();
        asked
    }

    fn set_wall_clock(&mut self, unix_ns: u64) {
        self.clock.hear(unix_ns, time::now().get());
        // Full or closed: nobody waits any more.
        let _ = self.clock_told.try_send(());
    }

    fn pause(&mut self, domain: &str) -> Result<(), String> {
        let (domid, state) = self.living(domain)?;
        match state {
            State::Running => control::pause_domain(domid).map_err(|e| format!("{domain}: {e}"))?,
            State::Paused => return Ok(()),
            _ => return Err(has_ended(domain)),
        }
        self.set_paused(domid, true);
        Ok(())
    }

    fn unpause(&mut self, domain: &str) -> Result<(), String> {
        let (domid, state) = self.living(domain)?;
        match state {
            State::Paused => {
                control::unpause_domain(domid).map_err(|e| format!("{domain}: {e}"))?
            }
            State::Running => return Ok(()),
            _ => return Err(has_ended(domain)),
        }
        self.set_paused(domid, false);
        Ok(())
    }

    fn set_sched(&mut self, domain: &str, sched: Sched) -> Result<(), String> {
        let (domid, _) = self.living(domain)?;
        apply_sched(domid, &sched).map_err(|e| format!("{domain}: {e}"))?;
        if let Some(entry) = self.table.by_domid(domid) {
            entry.sched = sched;
        }
        Ok(())
    }

    fn console_input(&mut self, domain: &str, bytes: &[u8]) -> Result<usize, String> {
        let (domid, _) = self.living(domain)?;
        Ok(self.type_on(domid, bytes))
    }

    fn agent_input(&mut self, domain: &str, bytes: &[u8]) -> Result<(), String> {
        let (domid, _) = self.living(domain)?;
        self.feed_agent(domid, bytes)
    }

    fn shutdown(&mut self) {
        let living = self.table.all().iter().rev().filter(|e| e.exists);
        let living: Vec<DomId> = living.map(|e| e.domid).collect();
        for domid in living {
            self.end(domid, "the machine shuts down");
        }
        self.table.rebooting().for_each(|e| e.killed("the machine shuts down"));
        self.is_shutting_down = true;
    }
}

/// Sets the parameters of all vCPUs of a domain.
pub fn apply_sched(domid: DomId, sched: &Sched) -> domain_rt::hypercall::Result<()> {
    control::set_sched(&mut SchedParams {
        domid: domid.get(),
        vcpu: u32::MAX,
        weight: sched.weight,
        warp_ns: sched.warp_ns,
        warp_limit_ns: sched.warp_limit_ns,
        unwarp_ns: sched.unwarp_ns,
        allowance_ns: sched.allowance_ns,
        ..Default::default()
    })
}

fn own_report() -> Option<DomainReport> {
    let info = domain_info(DomId::DOM0)?;
    let mut sched = SchedParams::default();
    let weight = control::get_sched(&mut sched).map_or(0, |()| sched.weight);
    Some(DomainReport {
        name: "dom0".into(),
        domid: 0,
        kind: Kind::Dom0,
        state: State::Running,
        exit: None,
        reason: String::new(),
        memory_kib: info.tot_pages * 4,
        cpu_ns: info.cpu_time_ns,
        virtual_ns: virtual_time(DomId::DOM0).unwrap_or(0),
        weight,
        restarts: 0,
        updated: None,
        refuses: false,
        last_lines: Vec::new(),
    })
}

fn machine_report() -> MachineReport {
    let mut info = MachineInfo::default();
    if control::machine_info(&mut info).is_err() {
        return MachineReport::default();
    }
    MachineReport {
        total_frames: info.total_frames,
        free_frames: info.free_frames,
        core_frames: info.core_frames,
        cpus: info.cpus,
        system_time_ns: info.system_time_ns,
        longest_stay_ns: info.longest_stay_ns,
        switches: info.switches,
        grants: domains().map(|d| u64::from(d.maps)).sum(),
        ports: domains().map(|d| u64::from(d.ports)).sum(),
        dom0_heap_bytes: heap::used_bytes() as u64,
    }
}

/// All domains that the core has.
fn domains() -> impl Iterator<Item = DomainInfo> {
    let from = |domid| {
        let mut info = DomainInfo { domid, ..Default::default() };
        control::domain_info(&mut info).ok().map(|()| info)
    };
    core::iter::successors(from(0), move |last| from(last.domid.checked_add(1)?))
}
