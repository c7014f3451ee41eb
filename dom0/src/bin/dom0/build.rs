//! Bringing a domain up: the hypercalls that make what the library's builder planned.

use crate::{
    foreign::{ForeignMemory, ForeignPage},
    requests::apply_sched,
    world::{Handle, Rings, World},
};
use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use bulkhead_abi::{
    DomId, Errno, Mfn, Ns, Pfn, Port, VcpuId,
    control::{CREATE_DRIVER, CreateDomain, DeviceRef, MachineInfo, SetGrant},
    grant,
    shared_info::SharedInfo,
};
use bulkhead_link::{Disk, DomainSpec, Event, Kind};
use core::mem::offset_of;
use dom0::{
    builder::{MfnList, Plan, StartFacts},
    devices::{self, DomainFacts, VbdFacts},
    payload::Payload,
    supervisor::{DiskUse, Entry, Reboots},
};
use domain_rt::{control, event, exec, hypercall, mem, time};

/// Frames asked for in one hypercall.
const POPULATE_BATCH: usize = 1024;
/// Offset of the wall clock in the shared-info page.
const WALL_CLOCK: usize = offset_of!(SharedInfo, wc_version);

/// Builds a domain and lets it run, or tells why not.
pub async fn bring_up(world: &Handle, payload: &Payload<'static>, spec: &DomainSpec) {
    let progress = |step: &str| Event::Progress { domain: spec.name.clone(), step: step.into() };
    world.borrow_mut().event(progress("building"));
    exec::yield_now().await;
    let event = match build(world, payload, spec) {
        Ok(()) => progress("running"),
        Err(reason) => {
            log::error!("{}: {reason}", spec.name);
            world.borrow_mut().restart_failed(&spec.name, &reason);
            Event::BuildFailed { domain: spec.name.clone(), reason }
        }
    };
    world.borrow_mut().event(event);
    exec::yield_now().await;
}

/// Gives an errno the name of the step that met it.
fn step<T>(result: Result<T, Errno>, what: &str) -> Result<T, String> {
    result.map_err(|errno| format!("{what}: {errno}"))
}

fn build(world: &Handle, payload: &Payload<'static>, spec: &DomainSpec) -> Result<(), String> {
    let nr_pages = spec.memory_kib / 4;
    let ramdisk = match spec.ramdisk {
        Some(index) => payload.image(index)?,
        None => &[],
    };
    let kernel = payload.image(spec.kernel)?;
    let plan = Plan::new(kernel, ramdisk, nr_pages).map_err(|error| error.to_string())?;
    check_disks(&mut world.borrow_mut(), payload, spec)?;
    check_memory(nr_pages)?;
    let mut created = CreateDomain {
        max_vcpus: spec.vcpus.max(1),
        max_pages: nr_pages,
        handle: spec.uuid,
        flags: if spec.kind == Kind::Driver { CREATE_DRIVER } else { 0 },
        ..Default::default()
    };
    let domid = create(&mut world.borrow_mut(), &mut created)?;
    let shared_info = Mfn::new(created.shared_info_mfn);
    let finished =
        Construction { world, payload, spec, domid, shared_info }.carry_out(&plan, nr_pages);
    if finished.is_err() {
        world.borrow_mut().abandon(domid);
    }
    finished
}

/// Makes a domain with the next id after the last one, so that an old name for one that
/// has just ended does not mean another; with the lowest free one where that is taken.
fn create(world: &mut World, wanted: &mut CreateDomain) -> Result<DomId, String> {
    wanted.domid = world.last_domid.get() + 1;
    let made = control::create_domain(wanted).or_else(|_| {
        wanted.domid = 0;
        control::create_domain(wanted)
    });
    step(made, "creating the domain")?;
    world.last_domid = DomId::new(wanted.domid);
    Ok(world.last_domid)
}

/// Refuses before anything is made what could not be connected afterwards.
fn check_disks(world: &mut World, payload: &Payload<'_>, spec: &DomainSpec) -> Result<(), String> {
    for disk in &spec.disks {
        let driver = world.table.by_name(&disk.driver);
        if !driver.is_some_and(|d| d.exists && d.kind == Kind::Driver) {
            return Err(format!("its driver domain {:?} is not there", disk.driver));
        }
        if payload.device_of(&disk.driver, &disk.device).is_none() {
            return Err(format!("driver domain {:?} has no device {:?}", disk.driver, disk.device));
        }
        if devices::vdev_number(&disk.vdev).is_none() {
            return Err(format!("{:?} is no name of a virtual disk", disk.vdev));
        }
    }
    Ok(())
}

fn check_memory(nr_pages: u64) -> Result<(), String> {
    let mut machine = MachineInfo::default();
    step(control::machine_info(&mut machine), "asking for free memory")?;
    if machine.free_frames < nr_pages {
        return Err(format!(
            "it is to have {} KiB of memory, but the machine has {} KiB left",
            nr_pages * 4,
            machine.free_frames * 4
        ));
    }
    Ok(())
}

/// A domain that exists and has nothing yet.
pub struct Construction<'a> {
    pub world: &'a Handle,
    pub payload: &'a Payload<'static>,
    pub spec: &'a DomainSpec,
    pub domid: DomId,
    pub shared_info: Mfn,
}

impl Construction<'_> {
    /// Builds a domain that was created.
    fn carry_out(&self, plan: &Plan<'_>, nr_pages: u64) -> Result<(), String> {
        let (rings, facts) = self.lay_out(plan, self.populate(nr_pages)?, true)?;
        self.assign_devices()?;
        self.enter_in_store(&facts)?;
        World::add_service(self.world, self.domid, &self.spec.name, rings);
        if self.spec.agent {
            World::add_agent(self.world, self.domid, &self.spec.name)?;
        }
        step(control::unpause_domain(self.domid), "letting it run")
    }

    /// Builds a domain again that was reset: it still has its devices, its folder in the
    /// store and its ledger, and perhaps its memory. Gives the time at which it may run.
    pub fn carry_out_again(
        &self,
        plan: &Plan<'_>,
        nr_pages: u64,
        kept: Option<Vec<u64>>,
    ) -> Result<Ns, String> {
        let (rings, facts) = match kept {
            Some(mfns) => self.lay_out(plan, mfns, false)?,
            None => self.lay_out(plan, self.populate(nr_pages)?, true)?,
        };
        self.world.borrow_mut().reborn(&facts)?;
        World::add_service(self.world, self.domid, &self.spec.name, rings);
        // It may run at once, before this call is over.
        let running = time::now();
        step(control::unpause_domain(self.domid), "letting it run")?;
        Ok(running)
    }

    /// Gives the domain contents and registers. `mfns` is its memory, by pfn.
    fn lay_out(
        &self,
        plan: &Plan<'_>,
        mfns: Vec<u64>,
        is_fresh: bool,
    ) -> Result<(Rings, DomainFacts<'_>), String> {
        let list = MfnList::new(&mfns);
        let (store, console) = (list.of(plan.layout.store), list.of(plan.layout.console));
        let store_port = self.new_port("store")?;
        let console_port = self.new_port("console")?;
        self.grant(grant::RESERVED_XENSTORE, store)?;
        self.grant(grant::RESERVED_CONSOLE, console)?;
        let facts = StartFacts {
            shared_info: self.shared_info,
            store_port,
            console_port,
            cmdline: &self.spec.cmdline,
        };
        let mut memory = ForeignMemory::new(self.domid, &mfns, is_fresh);
        step(plan.write(&mut memory, &mfns, &facts), "writing its memory")?;
        // No writable mapping of a page table may be left when they are pinned.
        drop(memory);
        self.set_wall_clock();
        let l4 = list.of(plan.layout.l4);
        step(hypercall::pin_foreign(self.domid, 4, l4), "pinning its page tables")?;
        let context = plan.context(&mfns);
        let first = VcpuId::new(0);
        step(control::set_vcpu_context(self.domid, first, &context), "setting its registers")?;
        step(apply_sched(self.domid, &self.spec.sched), "setting its share of the CPU")?;
        let rings = self.rings(store, store_port, console, console_port)?;
        if self.spec.kind == Kind::Driver {
            let mut world = self.world.borrow_mut();
            world.hands.note(self.domid, Pfn::new(plan.layout.p2m.start));
            world.frames.insert(self.domid, mfns);
        }
        let facts = DomainFacts {
            domid: self.domid,
            name: &self.spec.name,
            uuid: self.spec.uuid,
            memory_kib: self.spec.memory_kib,
            vcpus: self.spec.vcpus.max(1),
            store_port,
            store_ring: store,
            console_port,
            console_ring: console,
        };
        Ok((rings, facts))
    }

    /// Gives the domain its memory; the list has the frame of each pfn.
    fn populate(&self, nr_pages: u64) -> Result<Vec<u64>, String> {
        let mut frames: Vec<u64> = (0..nr_pages).collect();
        for batch in frames.chunks_mut(POPULATE_BATCH) {
            let wanted = batch.len();
            let got = hypercall::populate_physmap(self.domid, 0, batch);
            if step(got, "giving it memory")? < wanted {
                return Err("the machine ran out of memory while it was built".into());
            }
        }
        Ok(frames)
    }

    /// A port of the new domain that waits for the control domain.
    fn new_port(&self, what: &str) -> Result<Port, String> {
        let port = event::alloc_unbound_for(self.domid, DomId::DOM0);
        step(port, &format!("making its {what} port"))
    }

    fn grant(&self, gref: u32, frame: Mfn) -> Result<(), String> {
        let mut arg = SetGrant {
            domid: self.domid.get(),
            grantee: DomId::DOM0.get(),
            gref,
            mfn: frame.get(),
        };
        step(control::set_grant(&mut arg), "granting its rings")
    }

    /// Sets the wall clock to the host's. The core has set it to the machine's own, which
    /// stays where this fails.
    fn set_wall_clock(&self) {
        let page = match mem::map_foreign(self.domid, &[self.shared_info], true) {
            Ok(page) => page,
            Err(error) => {
                log::warn!("{}: its wall clock is not set: {error}", self.spec.name);
                return;
            }
        };
        let page = page.shared();
        let (seconds, rest) = self.world.borrow().clock.at_zero();
        page.store_u32(WALL_CLOCK, 1);
        page.store_u32(offset_of!(SharedInfo, wc_sec), seconds as u32);
        page.store_u32(offset_of!(SharedInfo, wc_nsec), rest);
        page.store_u32(offset_of!(SharedInfo, wc_sec_hi), (seconds >> 32) as u32);
        page.store_u32(WALL_CLOCK, 2);
    }

    fn assign_devices(&self) -> Result<(), String> {
        for device in &self.spec.devices {
            let mut arg =
                DeviceRef { domid: self.domid.get(), sbdf: device.sbdf, ..Default::default() };
            let name = &device.name;
            step(control::assign_device(&mut arg), &format!("giving it device {name:?}"))?;
        }
        Ok(())
    }

    fn rings(
        &self,
        store: Mfn,
        store_port: Port,
        console: Mfn,
        console_port: Port,
    ) -> Result<Rings, String> {
        let map = |mfn| step(ForeignPage::map(self.domid, mfn), "mapping its rings");
        let bind = |port| step(event::bind_interdomain(self.domid, port), "binding its rings");
        Ok(Rings {
            console_page: map(console)?,
            console_port: bind(console_port)?,
            store_page: map(store)?,
            store_port: bind(store_port)?,
        })
    }

    /// Makes the domain known: its folder, its devices, and its place in the list.
    fn enter_in_store(&self, facts: &DomainFacts<'_>) -> Result<(), String> {
        let mut world = self.world.borrow_mut();
        let spec = self.spec;
        devices::add_domain(&mut world.store, facts).map_err(|e| e.to_string())?;
        let mut entry = Entry::new(&spec.name, spec.kind, self.domid, spec.memory_kib, spec.sched);
        entry.care = spec.care;
        if spec.kind == Kind::Driver {
            let slots = self.payload.disks_of(&spec.name);
            world.add_ledger(&spec.name, self.domid, slots, entry.orders())?;
        }
        entry.started_ns = time::now().get();
        entry.reboots = Reboots::new(spec.on_reboot);
        let mut fronts = Vec::new();
        for disk in &spec.disks {
            let (front, used) = self.add_disk(&mut world, disk)?;
            entry.disks.push(used);
            fronts.push(front);
        }
        world.store.introduce(self.domid);
        world.table.add(entry);
        for (index, front) in fronts.iter().enumerate() {
            world.watch_front_end(self.domid, index, front);
        }
        world.store_settled();
        Ok(())
    }

    fn add_disk(&self, world: &mut World, disk: &Disk) -> Result<(String, DiskUse), String> {
        let driver = world.table.by_name(&disk.driver);
        let driver = driver.ok_or("its driver domain is not there")?.domid;
        let sbdf = self.payload.device_of(&disk.driver, &disk.device);
        let slot = world.slot_for(&self.spec.name, &disk.vdev, &disk.driver);
        let facts = VbdFacts {
            guest: self.domid,
            driver,
            vdev: &disk.vdev,
            sbdf: sbdf.ok_or("its driver domain does not have the device")?,
            first_sector: disk.first_sector,
            sectors: disk.sectors,
            is_writable: disk.writable,
            ledger_slot: slot.ok_or("the ledger of its driver domain is full")?,
        };
        let front = devices::add_vbd(&mut world.store, &facts);
        let front = front.map_err(|error| format!("{}: {error}", disk.vdev))?;
        let used = DiskUse {
            vdev: disk.vdev.clone(),
            driver: disk.driver.clone(),
            device: disk.device.clone(),
            slot: facts.ledger_slot,
            is_connected: false,
        };
        Ok((front, used))
    }
}
