//! Driver domains that died, hang or are to start afresh: each is reset in place and laid
//! out again under the same domid, while its guests' rings, grants and ports stay as they
//! are and the store says nothing. Everything between the news and the new life happens in
//! one go: guests wait for every microsecond of it.

use crate::{
    build::Construction,
    world::{Handle, World, domain_info, front_end},
};
use alloc::{
    format,
    rc::Rc,
    string::{String, ToString},
    vec::Vec,
};
use async_channel::{Receiver, Sender};
use bulkhead_abi::{DomId, Mfn, Ns, Pfn, control::DomainInfo, ledger};
use bulkhead_link::{Cause, Event, Restart, State};
use core::time::Duration;
use dom0::{
    builder::Plan,
    devices,
    payload::Payload,
    supervisor::{
        DiskUse, Entry,
        health::{LOOK_EVERY, Pulse},
    },
};
use domain_rt::{control, exec, mem, time};

/// How often the new life is asked whether it has answered a guest, and how long at most.
const ASK_EVERY: Duration = Duration::from_millis(1);
const ASK_FOR: u64 = 2_000_000_000;

/// A driver domain that wants a new life.
pub struct Case {
    pub domid: DomId,
    pub cause: Cause,
    pub reason: String,
    /// When the old life ended, by system time.
    pub ended: Ns,
}

/// Takes cases in. Full never: it is unbounded, and a domain has one case at a time.
pub type Cases = Sender<Case>;

/// Restarts driver domains as cases come.
pub async fn serve(world: Handle, payload: Rc<Payload<'static>>, cases: Receiver<Case>) {
    while let Ok(case) = cases.recv().await {
        let domid = case.domid;
        if let Err(reason) = revive(&world, &payload, case) {
            world.borrow_mut().not_revived(domid, &reason);
        }
    }
}

fn revive(world: &Handle, payload: &Payload<'static>, case: Case) -> Result<(), String> {
    let Case { domid, cause, reason, ended } = case;
    let noticed = time::now();
    let name = match world.borrow_mut().table.by_domid(domid) {
        Some(entry) => entry.name.clone(),
        None => return Ok(()),
    };
    let spec = payload.manifest.domains.iter().find(|spec| spec.name == name);
    let spec = spec.ok_or("the manifest does not have it")?;
    let nr_pages = spec.memory_kib / 4;
    let (image, refuses) = world.borrow_mut().next_image(payload, spec, domid)?;
    let plan = Plan::new(&image, &[], nr_pages).map_err(|e| e.to_string())?;
    world.borrow_mut().part_from(domid);
    let (info, kept) = reset(world, domid, nr_pages)?;
    let torn_down = time::now();
    let shared_info = Mfn::new(info.shared_info_mfn);
    let construction = Construction { world, payload, spec, domid, shared_info };
    let running = construction.carry_out_again(&plan, nr_pages, kept)?;
    if refuses {
        return Ok(());
    }
    let restart = Restart {
        driver: name.clone(),
        cause,
        reason,
        ended_ns: ended.get(),
        detect_ns: noticed.minus(ended).get(),
        teardown_ns: torn_down.minus(noticed).get(),
        rebuild_ns: running.minus(torn_down).get(),
        device_ns: None,
        first_response_ns: None,
        blackout_ns: None,
    };
    exec::spawn(follow(world.clone(), restart, ended, running)).detach();
    Ok(())
}

/// Resets a domain. Gives its memory by pfn, if all of it is as it was given out, and what is
/// known of it now.
fn reset(
    world: &Handle,
    domid: DomId,
    nr_pages: u64,
) -> Result<(DomainInfo, Option<Vec<u64>>), String> {
    let refused = |errno| format!("it can not be reset: {errno}");
    let look = || domain_info(domid).ok_or("it is gone from the core");
    control::reset_keeping(domid).map_err(refused)?;
    let info = look()?;
    let kept = world.borrow_mut().frames.remove(&domid);
    // It may have changed what the core's table says of its frames.
    let is_named = |(mfn, pfn): (&u64, u64)| mem::machphys_of(Mfn::new(*mfn)) == Pfn::new(pfn);
    let kept = kept.filter(|mfns| {
        info.tot_pages == nr_pages
            && mfns.len() as u64 == nr_pages
            && mfns.iter().zip(0..).all(is_named)
    });
    if kept.is_some() {
        return Ok((info, kept));
    }
    control::reset_domain(domid).map_err(refused)?;
    Ok((look()?, None))
}

/// Waits until the new life has answered a guest, and tells how it went.
async fn follow(world: Handle, mut restart: Restart, ended: Ns, running: Ns) {
    let lives = || {
        let world = world.borrow();
        let entry = world.table.by_name(&restart.driver);
        entry.map(|entry| (entry.restarts, entry.state == State::Quarantined))
    };
    let this_life = lives();
    let milestone = |field| world.borrow().milestone(&restart.driver, field);
    // What it says is believed only where it makes sense.
    let at = |field, after: Ns| milestone(field).filter(|&at| at >= after && at <= time::now());
    let (mut devices, mut answer) = (None, None);
    while answer.is_none() && time::now().minus(running).get() < ASK_FOR {
        time::sleep(ASK_EVERY).await;
        if lives() != this_life {
            // What is told now is the next life's.
            break;
        }
        devices = at(ledger::DEVICE_NS, running);
        answer = devices.and_then(|up| at(ledger::FIRST_RESPONSE_NS, up));
    }
    restart.device_ns = devices.map(|up| up.minus(running).get());
    restart.first_response_ns = devices.zip(answer).map(|(up, first)| first.minus(up).get());
    restart.blackout_ns = answer.map(|first| first.minus(ended).get());
    world.borrow_mut().event(Event::Restarted(restart));
}

/// Looks whether the hearts of driver domains beat, and whether they answer their guests.
pub async fn watch_hearts(world: Handle) {
    loop {
        time::sleep(LOOK_EVERY).await;
        let first = world.borrow_mut().suspects();
        if first.is_empty() {
            continue;
        }
        // A machine that stood still as a whole lets them beat now.
        time::sleep(LOOK_EVERY).await;
        let still = world.borrow_mut().suspects();
        for suspect in still {
            if first.iter().any(|before| before.domid == suspect.domid) {
                world.borrow_mut().condemn(suspect);
            }
        }
    }
}

/// A driver domain that seems to have stopped.
struct Suspect {
    domid: DomId,
    /// When it last did what it does no more.
    since: Ns,
    reason: String,
}

impl World {
    /// Has a driver domain restarted that failed, unless that happens too often.
    pub fn wants_revival(&mut self, case: Case) {
        let now = time::now().get();
        let Some(entry) = self.table.by_domid(case.domid) else {
            return;
        };
        if core::mem::take(&mut entry.is_condemned) {
            // It was crashed on request.
            return self.revive(case);
        }
        match entry.fail(&case.reason, now) {
            Ok(()) => self.revive(case),
            Err(why) => self.quarantine(case.domid, why),
        }
    }

    /// Has a driver domain restarted.
    pub fn revive(&mut self, case: Case) {
        let Some(entry) = self.table.by_domid(case.domid) else {
            return;
        };
        (entry.restarts, entry.is_reviving) = (entry.restarts + 1, true);
        // The receiver lives as long as this domain.
        let _ = self.cases.try_send(case);
    }

    fn not_revived(&mut self, domid: DomId, why: &str) {
        match self.table.by_domid(domid).is_some_and(|entry| entry.refuses) {
            true => self.deserted(domid, why),
            false => self.quarantine(domid, format!("it could not be restarted: {why}")),
        }
    }

    /// Driver domains whose hearts have not beaten, or which have not answered a guest, for the
    /// deadline.
    fn suspects(&mut self) -> Vec<Suspect> {
        let now = time::now();
        let drivers: Vec<_> = self.drivers().collect();
        let seem_stopped = |(domid, name): (DomId, String)| {
            self.is_still(domid, &name, now).or_else(|| self.is_stuck(domid, &name, now))
        };
        drivers.into_iter().filter_map(seem_stopped).collect()
    }

    fn is_still(&mut self, domid: DomId, name: &str, now: Ns) -> Option<Suspect> {
        let beats = self.beats(name);
        let entry = self.table.by_domid(domid)?;
        let deadline = entry.hang_deadline();
        let Pulse::Missed(since) = entry.pulse.feel(beats, now, deadline) else { return None };
        let reason = format!("its heart did not beat for {} ms", deadline.as_millis());
        Some(Suspect { domid, since, reason })
    }

    fn is_stuck(&mut self, domid: DomId, name: &str, now: Ns) -> Option<Suspect> {
        let lines = self.lines_of(name);
        let entry = self.table.by_domid(domid)?;
        let deadline = entry.answer_deadline();
        let ms = deadline.as_millis();
        let mut stuck = lines.into_iter().filter_map(|(slot, guest, [answered, taken])| {
            let line = entry.lines.entry(slot).or_default();
            match line.feel(answered, taken, now, deadline) {
                Pulse::Missed(since) => {
                    let reason = format!("it has not answered {guest} for {ms} ms");
                    Some(Suspect { domid, since, reason })
                }
                Pulse::Beats => None,
            }
        });
        // All are looked at, so that each is seen to go on.
        stuck.by_ref().reduce(|first, _| first)
    }

    /// The rings of a driver domain: their slots of its ledger, whose they are, and the indices
    /// after what it has answered and taken, by its own word.
    fn lines_of(&self, driver: &str) -> Vec<(usize, String, [u32; 2])> {
        let Some(pages) = self.ledger_pages(driver) else { return Vec::new() };
        let guests = self.table.all().iter().filter(|guest| guest.exists);
        let disks = guests.flat_map(|guest| guest.disks.iter().map(move |disk| (guest, disk)));
        let is_used = |(guest, disk): &(&Entry, &DiskUse)| {
            let front = front_end(guest.domid, &disk.vdev);
            disk.driver == driver && front.is_some_and(|f| devices::is_connected(&self.store, &f))
        };
        let line = |(guest, disk): (&Entry, &DiskUse)| {
            let word = |field| pages.load_u32(ledger::slot(disk.slot) + field);
            (disk.slot, guest.name.clone(), [ledger::ANSWERED, ledger::TAKEN].map(word))
        };
        disks.filter(is_used).map(line).collect()
    }

    /// Ends the life of a domain that still does not what it should.
    fn condemn(&mut self, suspect: Suspect) {
        let Suspect { domid, since, reason } = suspect;
        if let Some(entry) = self.table.by_domid(domid).filter(|entry| !entry.is_reviving) {
            (entry.pulse, entry.lines) = Default::default();
            self.wants_revival(Case { domid, cause: Cause::Hang, reason, ended: since });
        }
    }
}
