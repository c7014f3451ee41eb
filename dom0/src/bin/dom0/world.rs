//! Everything the control domain keeps: the store, the list of domains, the
//! services of each, and what is on its way to the host tool.

use crate::{
    agent::Agent,
    foreign::ForeignPage,
    inject::{ENTRIES, Hands, patches_at},
    restart::Restarts,
    revive::{Case, Cases},
};
use alloc::{
    collections::BTreeMap,
    format,
    rc::Rc,
    string::{String, ToString},
    vec::Vec,
};
use async_channel::{Receiver, Sender};
use bulkhead_abi::{
    DomId, Gref, Ns, PAGE_SIZE, VcpuId,
    control::{DomainInfo, VcpuTimes},
    ledger,
};
use bulkhead_link::{Cause, Event, Exit, Kind, State};
use core::{cell::RefCell, fmt};
use dom0::{
    clock::WallClock,
    console::Console,
    control::Outbox,
    devices,
    store::{Quota, Store, ring::Transport},
    supervisor::{Counters, DiskUse, Table, Verdict},
    uploads::Uploads,
    wishes,
};
use domain_rt::{Shared, control, event::Channel, exec, grant, mem, time};

/// What a driver domain writes in the header of its ledger in each life, and what it is
/// ordered to do in one.
const LIFE_FIELDS: [usize; 5] = [
    ledger::HEARTBEAT_OFFSET,
    ledger::BOOT_NS,
    ledger::DEVICE_NS,
    ledger::FIRST_RESPONSE_NS,
    ledger::FAULT_COMMAND,
];

/// Shared by all tasks; never borrowed across an `await`.
pub type Handle = Rc<RefCell<World>>;

/// The state of the control domain.
pub struct World {
    pub store: Store,
    pub table: Table,
    pub outbox: Outbox,
    pub is_shutting_down: bool,
    pub clock: WallClock,
    /// Told once the host has said what time it is.
    pub clock_told: Sender<()>,
    /// The last id given to a domain.
    pub last_domid: DomId,
    /// Guests that asked for a reboot.
    pub restarts: Restarts,
    /// Driver domains that want a new life.
    pub cases: Cases,
    /// An image that is being sent.
    pub uploads: Uploads,
    services: BTreeMap<DomId, Service>,
    /// Memory that driver domains were given, by pfn.
    pub frames: BTreeMap<DomId, Vec<u64>>,
    pub agents: BTreeMap<DomId, Agent>,
    /// For faults that are injected.
    pub hands: Hands,
    ledgers: BTreeMap<String, Ledger>,
    wake_link: Sender<()>,
}

/// The back ends that a domain has here.
pub struct Service {
    pub name: String,
    pub console: Console,
    pub console_page: ForeignPage,
    pub console_port: Rc<Channel>,
    pub transport: Transport,
    pub store_page: ForeignPage,
    pub store_port: Rc<Channel>,
    is_store_broken: bool,
    wake: Sender<()>,
    /// Dropping it ends the task.
    _task: exec::Task<()>,
}

/// The ends of a new domain's rings.
pub struct Rings {
    pub console_page: ForeignPage,
    pub console_port: Channel,
    pub store_page: ForeignPage,
    pub store_port: Channel,
}

/// Memory that survives a driver domain.
pub struct Ledger {
    pages: Shared<'static>,
    pub grefs: Vec<Gref>,
    next_slot: usize,
}

impl World {
    /// An empty world. `wake_link` is told when there is something to send, `clock_told` when
    /// the host has set the clock.
    pub fn new(
        clock: WallClock,
        clock_told: Sender<()>,
        restarts: Restarts,
        cases: Cases,
        wake_link: Sender<()>,
    ) -> Handle {
        Rc::new(RefCell::new(Self {
            store: Store::new(Quota::GUEST),
            table: Table::default(),
            outbox: Outbox::default(),
            is_shutting_down: false,
            clock,
            clock_told,
            last_domid: DomId::DOM0,
            restarts,
            cases,
            uploads: Uploads::default(),
            services: BTreeMap::new(),
            frames: BTreeMap::new(),
            agents: BTreeMap::new(),
            hands: Hands::default(),
            ledgers: BTreeMap::new(),
            wake_link,
        }))
    }

    /// Tells the host tool.
    pub fn event(&mut self, event: Event) {
        self.outbox.event(event);
        wake(&self.wake_link);
    }

    /// Tells the host tool and the debug console.
    pub fn log(&mut self, line: String) {
        log::warn!("{line}");
        self.event(Event::Log { line });
    }

    /// Lets a domain's console and store be served from now on.
    pub fn add_service(this: &Handle, domid: DomId, name: &str, rings: Rings) {
        let (sender, woken) = async_channel::bounded(1);
        let console_port = Rc::new(rings.console_port);
        let store_port = Rc::new(rings.store_port);
        let ports = (console_port.clone(), store_port.clone());
        let task = exec::spawn(serve(this.clone(), domid, ports, woken));
        let service = Service {
            name: name.into(),
            console: Console::default(),
            console_page: rings.console_page,
            console_port,
            transport: Transport::default(),
            store_page: rings.store_page,
            store_port,
            is_store_broken: false,
            wake: sender,
            _task: task,
        };
        this.borrow_mut().services.insert(domid, service);
    }

    /// Moves what can be moved on a domain's rings; whether there is more at once.
    fn pump(&mut self, domid: DomId) -> bool {
        let again = self.pump_store(domid);
        let room = self.outbox.console_room();
        self.pump_console(domid, room);
        self.store_settled();
        again
    }

    fn pump_store(&mut self, domid: DomId) -> bool {
        let Some(service) = self.services.get_mut(&domid) else {
            return false;
        };
        if service.is_store_broken {
            return false;
        }
        let result = service.transport.pump(&service.store_page, &mut self.store, domid);
        match result {
            Ok(pumped) => {
                if pumped.notify {
                    // Refused only when the domain has closed its end: its loss.
                    let _ = service.store_port.notify();
                }
                pumped.again
            }
            Err(absurd) => {
                service.is_store_broken = true;
                let name = service.name.clone();
                self.store.release(domid);
                self.log(format!(
                    "{name}: its store ring holds absurd indices ({absurd:?}); it is served no more"
                ));
                self.violated(domid, "its store ring holds absurd indices");
                false
            }
        }
    }

    /// Moves up to `room` bytes of console output; gives how many.
    fn pump_console(&mut self, domid: DomId, room: usize) -> usize {
        let Some(service) = self.services.get_mut(&domid) else {
            return 0;
        };
        let name = service.name.clone();
        match service.console.pump(&service.console_page, room) {
            Ok(pumped) => {
                if pumped.notify {
                    // As for the store.
                    let _ = service.console_port.notify();
                }
                let count = pumped.output.len();
                if pumped.has_room {
                    self.event(Event::ConsoleRoom { domain: name.clone() });
                }
                if count > 0 {
                    self.event(Event::Console { domain: name, bytes: pumped.output });
                }
                count
            }
            Err(absurd) => {
                self.log(format!(
                    "{name}: its console ring holds absurd indices ({absurd:?}); it is silent now"
                ));
                0
            }
        }
    }

    /// After the store changed: wakes clients that have something to take, and looks
    /// at what the control domain itself watches.
    pub fn store_settled(&mut self) {
        for (_, token) in self.store.events() {
            match read_token(&token) {
                Some(Token::FrontEnd(domid, index)) => self.front_end_moved(domid, index),
                Some(Token::Complaint(domid, index)) => self.complaint_moved(domid, index),
                Some(Token::Shutdown(domid)) => self.shutdown_moved(domid),
                Some(Token::BackEnds(domid)) => self.restarts.back_end_moved(domid),
                None => self.agent_moved(&token),
            }
        }
        for (domid, service) in &self.services {
            if self.store.has_output(*domid) {
                wake(&service.wake);
            }
        }
    }

    /// Announces a disk once its front end is connected.
    fn front_end_moved(&mut self, domid: DomId, index: usize) {
        let Some(entry) = self.table.by_domid(domid) else {
            return;
        };
        let domain = entry.name.clone();
        let Some(disk) = entry.disks.get_mut(index).filter(|d| !d.is_connected) else {
            return;
        };
        let Some(front) = front_end(domid, &disk.vdev) else {
            return;
        };
        if devices::is_connected(&self.store, &front) {
            disk.is_connected = true;
            let step = format!("{} connected", disk.vdev);
            self.event(Event::Progress { domain, step });
        }
    }

    /// Watches a front end, to announce when it is connected, and to hear what it says of its
    /// back end.
    pub fn watch_front_end(&mut self, domid: DomId, index: usize, front: &str) {
        let watches = [
            (format!("{front}/state"), Token::FrontEnd(domid, index)),
            (devices::complaint_node(front), Token::Complaint(domid, index)),
        ];
        for (node, token) in watches {
            if let Err(error) = self.store.watch(&node, &token.to_string()) {
                self.log(format!("{node} can not be watched: {error}"));
            }
        }
    }

    /// Tells when a guest takes a request to power off or to reboot.
    pub fn watch_shutdown(&mut self, domid: DomId) {
        let token = Token::Shutdown(domid).to_string();
        // There may be a watch already, for a request before this one.
        let _ = self.store.watch(&wishes::shutdown_node(domid), &token);
    }

    fn shutdown_moved(&mut self, domid: DomId) {
        if !wishes::is_taken(&self.store, domid) {
            return;
        }
        self.store.unwatch(&wishes::shutdown_node(domid), &Token::Shutdown(domid).to_string());
        if let Some(entry) = self.table.by_domid(domid) {
            let domain = entry.name.clone();
            self.event(Event::Progress { domain, step: "shutting down".into() });
        }
    }

    /// Wakes all services: the wire to the host tool has room again.
    pub fn wake_consoles(&self) {
        for service in self.services.values() {
            wake(&service.wake);
        }
        self.wake_agents();
    }

    /// Types on a domain's console; gives the bytes taken.
    pub fn type_on(&mut self, domid: DomId, bytes: &[u8]) -> usize {
        let Some(service) = self.services.get_mut(&domid) else {
            return 0;
        };
        wake(&service.wake);
        service.console.feed(bytes)
    }

    /// Makes the ledger of a driver domain, for `slots` disks.
    pub fn add_ledger(
        &mut self,
        driver: &str,
        domid: DomId,
        slots: usize,
        orders: u32,
    ) -> Result<(), String> {
        let bytes = ledger::UNIT * (slots + 1) + ENTRIES * ledger::patch::BYTES;
        let pages = bytes.div_ceil(PAGE_SIZE);
        let pages = mem::alloc_pages(pages).ok_or("the control domain has no memory left")?;
        let mut grefs = Vec::new();
        for index in 0..pages.count() {
            let gref = grant::grant_access(domid, pages.mfn(index), false);
            grefs.push(gref.map_err(|errno| format!("its ledger can not be granted: {errno}"))?);
        }
        let pages = pages.leak();
        pages.write_u32(ledger::ON_FAILURE, orders);
        pages.write_u64(ledger::MAGIC_OFFSET, ledger::MAGIC);
        let made = Ledger { pages, grefs, next_slot: 0 };
        devices::add_ledger(&mut self.store, domid, &made.grefs).map_err(|e| e.to_string())?;
        self.ledgers.insert(driver.into(), made);
        Ok(())
    }

    /// The slot of a guest's disk in its driver domain's ledger: the one it had before a
    /// reboot, or the next.
    pub fn slot_for(&mut self, guest: &str, vdev: &str, driver: &str) -> Option<usize> {
        let before = self.table.rebooting().find(|e| e.name == guest);
        let disk = before.and_then(|e| e.disks.iter().find(|d| d.vdev == vdev));
        disk.map(|disk| disk.slot).or_else(|| self.take_slot(driver))
    }

    /// Takes the next slot of a driver domain's ledger.
    fn take_slot(&mut self, driver: &str) -> Option<usize> {
        let ledger = self.ledgers.get_mut(driver)?;
        let slot = ledger.next_slot;
        // What is behind the slots is for armed changes.
        if ledger::slot(slot + 1) > patches_at(ledger.pages) {
            return None;
        }
        ledger.next_slot += 1;
        Some(slot)
    }

    /// What a driver domain says it did for a disk.
    pub fn counters(&self, disk: &DiskUse) -> Counters {
        let Some(ledger) = self.ledgers.get(&disk.driver) else {
            return Counters::default();
        };
        let read = |field: usize| ledger.pages.read_u64(ledger::slot(disk.slot) + field);
        Counters {
            read_bytes: read(ledger::READ_BYTES),
            written_bytes: read(ledger::WRITTEN_BYTES),
            requests: read(ledger::REQUESTS),
            errors: read(ledger::ERRORS),
        }
    }

    /// Asks the core about every domain, and acts on those that ended.
    pub fn look_after_domains(&mut self) {
        let living = self.table.all().iter().filter(|e| e.exists);
        let living: Vec<DomId> = living.map(|e| e.domid).collect();
        for domid in living {
            match domain_info(domid) {
                Some(info) => self.judge(domid, &info),
                None => self.end(domid, "it is gone from the core"),
            }
        }
    }

    /// Takes over the latest figures of a domain, and ends it if it is to end.
    fn judge(&mut self, domid: DomId, info: &DomainInfo) {
        let virtual_ns = virtual_time(domid);
        let is_over = info.state & bulkhead_abi::control::STATE_SHUTDOWN != 0;
        if is_over {
            // It writes no more: its last words are in the ring.
            self.drain_console(domid);
        }
        let said = match is_over {
            true => self.said(domid),
            false => Vec::new(),
        };
        let Some(entry) = self.table.by_domid(domid) else {
            return;
        };
        entry.virtual_ns = virtual_ns.unwrap_or(entry.virtual_ns);
        let verdict = entry.observe(info, said, time::now().get());
        let is_guest = entry.kind == bulkhead_link::Kind::Guest;
        let ended = Event::Ended {
            domain: entry.name.clone(),
            exit: entry.exit.unwrap_or(Exit::Crash),
            reason: entry.reason.clone(),
        };
        match verdict {
            Verdict::Fine => {}
            Verdict::Revive => {
                let reason =
                    self.table.by_domid(domid).map(|e| e.reason.clone()).unwrap_or_default();
                let ended = Ns::new(info.ended_ns);
                self.wants_revival(Case { domid, cause: Cause::Crash, reason, ended });
            }
            Verdict::Deserted => self.deserted(domid, "it has died, too"),
            Verdict::Destroy => {
                self.tear_down(domid, is_guest);
                self.event(ended);
            }
            Verdict::Restart => self.begin_restart(domid),
        }
    }

    /// What a domain said, as far as it is remembered, oldest line first.
    fn said(&self, domid: DomId) -> Vec<String> {
        let service = self.services.get(&domid);
        service.map(|s| s.console.lines()).unwrap_or_default()
    }

    fn drain_console(&mut self, domid: DomId) {
        // The ring holds 2 KiB; a second turn catches what was behind the first.
        for _ in 0..2 {
            self.pump_console(domid, usize::MAX);
        }
    }

    /// Ends a domain from here.
    pub fn end(&mut self, domid: DomId, reason: &str) {
        // One that is gone can not be paused, and does not have to be.
        let _ = control::pause_domain(domid);
        if let Some(info) = domain_info(domid) {
            let virtual_ns = virtual_time(domid);
            if let Some(entry) = self.table.by_domid(domid) {
                entry.cpu_ns = info.cpu_time_ns;
                entry.virtual_ns = virtual_ns.unwrap_or(entry.virtual_ns);
            }
        }
        self.drain_console(domid);
        let said = self.said(domid);
        let Some(entry) = self.table.by_domid(domid) else {
            return;
        };
        let was_told = entry.exit.is_some();
        if !was_told {
            entry.keep_last_lines(said);
        }
        entry.killed(reason);
        let is_guest = entry.kind == bulkhead_link::Kind::Guest;
        let ended =
            Event::Ended { domain: entry.name.clone(), exit: Exit::Killed, reason: reason.into() };
        self.tear_down(domid, is_guest);
        if !was_told {
            self.event(ended);
        }
    }

    /// Takes everything of a domain away. A driver domain's folder stays: its guests
    /// read it, and must not see the back end close.
    fn tear_down(&mut self, domid: DomId, is_guest: bool) {
        self.remove(domid, is_guest);
        if is_guest && let Err(error) = devices::remove_back_ends(&mut self.store, domid) {
            self.log(format!("{domid}: its back ends can not be removed: {error}"));
        }
        self.store_settled();
    }

    /// Takes away all but the back ends that serve it.
    pub fn remove(&mut self, domid: DomId, is_guest: bool) {
        self.frames.remove(&domid);
        self.services.remove(&domid);
        self.agents.remove(&domid);
        self.hands.forget(domid);
        self.store.release(domid);
        self.unwatch(domid);
        if is_guest && let Err(error) = devices::remove_domain(&mut self.store, domid) {
            self.log(format!("{domid}: its folder can not be removed: {error}"));
        }
        if let Err(errno) = control::destroy_domain(domid) {
            self.log(format!("{domid} can not be destroyed: {errno}"));
        }
        self.store_settled();
    }

    /// Ends what the control domain itself watches of a domain.
    fn unwatch(&mut self, domid: DomId) {
        self.store.unwatch(&wishes::shutdown_node(domid), &Token::Shutdown(domid).to_string());
        let entry = self.table.all().iter().find(|e| e.domid == domid);
        for (index, disk) in entry.iter().flat_map(|e| &e.disks).enumerate() {
            if let Some(front) = front_end(domid, &disk.vdev) {
                let token = Token::FrontEnd(domid, index).to_string();
                self.store.unwatch(&format!("{front}/state"), &token);
                let token = Token::Complaint(domid, index).to_string();
                self.store.unwatch(&devices::complaint_node(&front), &token);
            }
        }
    }

    /// Driver domains that run, with their names.
    pub fn drivers(&self) -> impl Iterator<Item = (DomId, String)> + '_ {
        let running = |e: &&dom0::supervisor::Entry| {
            e.exists && e.kind == Kind::Driver && e.state == State::Running && !e.is_reviving
        };
        self.table.all().iter().filter(running).map(|e| (e.domid, e.name.clone()))
    }

    /// How often a driver domain's heart has beaten, by its own word.
    pub fn beats(&self, driver: &str) -> u64 {
        self.ledgers.get(driver).map_or(0, |l| l.pages.read_u64(ledger::HEARTBEAT_OFFSET))
    }

    /// The ledger of a driver domain.
    pub fn ledger_pages(&self, driver: &str) -> Option<Shared<'static>> {
        self.ledgers.get(driver).map(|ledger| ledger.pages)
    }

    /// When a driver domain's life reached a milestone, by its own word; `None` before.
    pub fn milestone(&self, driver: &str, field: usize) -> Option<Ns> {
        let at = self.ledgers.get(driver)?.pages.read_u64(field);
        (at != 0).then(|| Ns::new(at))
    }

    /// Ends what this domain does for a driver domain that is about to be reset. Its folder
    /// stays: its guests read it, and must not see the back end close.
    pub fn part_from(&mut self, domid: DomId) {
        self.drain_console(domid);
        self.services.remove(&domid);
        self.store.release(domid);
    }

    /// Takes in the new life of a driver domain that was reset.
    pub fn reborn(&mut self, facts: &devices::DomainFacts<'_>) -> Result<(), String> {
        devices::put_rings(&mut self.store, facts).map_err(|e| e.to_string())?;
        self.store.introduce(facts.domid);
        let Some(entry) = self.table.by_domid(facts.domid) else {
            return Err("it is gone from the list".into());
        };
        if let Some(ledger) = self.ledgers.get(facts.name) {
            // A life that went wild may have written here; without it the next ones would take
            // the pages for none, and neither be heard nor know where their rings are.
            ledger.pages.write_u64(ledger::MAGIC_OFFSET, ledger::MAGIC);
            for field in LIFE_FIELDS {
                ledger.pages.write_u64(field, 0);
            }
            ledger.pages.write_u32(ledger::ON_FAILURE, entry.orders());
        }
        entry.started_ns = time::now().get();
        (entry.pulse, entry.lines) = Default::default();
        entry.is_reviving = false;
        if !entry.refuses
            && core::mem::replace(&mut entry.state, State::Running) == State::Quarantined
        {
            let domain = entry.name.clone();
            self.event(Event::Progress { domain, step: "running".into() });
        }
        self.store_settled();
        Ok(())
    }

    /// Forgets a domain that was never finished.
    pub fn abandon(&mut self, domid: DomId) {
        self.table.forget(domid);
        self.tear_down(domid, true);
    }

    /// Notes that a domain was paused or lets run again.
    pub fn set_paused(&mut self, domid: DomId, is_paused: bool) {
        if let Some(entry) = self.table.by_domid(domid) {
            entry.state = match is_paused {
                true => State::Paused,
                false => State::Running,
            };
        }
    }
}

/// Serves one domain's rings for as long as it is there.
async fn serve(
    world: Handle,
    domid: DomId,
    (console, store): (Rc<Channel>, Rc<Channel>),
    woken: Receiver<()>,
) {
    loop {
        if world.borrow_mut().pump(domid) {
            exec::yield_now().await;
            continue;
        }
        let events = exec::or(console.wait(), store.wait());
        let waking = async {
            // The sender lives as long as this task.
            let _ = woken.recv().await;
        };
        exec::or(events, waking).await;
    }
}

/// Wakes a task; one wake-up is kept if it is busy.
fn wake(sender: &Sender<()>) {
    // Full means that it is woken already.
    let _ = sender.try_send(());
}

/// What a watch of the control domain's own is about.
#[derive(Clone, Copy, Debug)]
pub enum Token {
    /// The state of a guest's disk, by its place among the guest's disks.
    FrontEnd(DomId, usize),
    /// What a guest says that the back end of that disk did wrong.
    Complaint(DomId, usize),
    /// A guest's request to power off or to reboot.
    Shutdown(DomId),
    /// The back ends that served a guest which is to be built again.
    BackEnds(DomId),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FrontEnd(domid, index) => write!(f, "front {} {index}", domid.get()),
            Self::Complaint(domid, index) => write!(f, "complaint {} {index}", domid.get()),
            Self::Shutdown(domid) => write!(f, "shutdown {}", domid.get()),
            Self::BackEnds(domid) => write!(f, "back {}", domid.get()),
        }
    }
}

fn read_token(token: &[u8]) -> Option<Token> {
    let mut words = core::str::from_utf8(token).ok()?.split(' ');
    let what = words.next()?;
    let domid = DomId::new(words.next()?.parse().ok()?);
    match what {
        "front" => Some(Token::FrontEnd(domid, words.next()?.parse().ok()?)),
        "complaint" => Some(Token::Complaint(domid, words.next()?.parse().ok()?)),
        "shutdown" => Some(Token::Shutdown(domid)),
        "back" => Some(Token::BackEnds(domid)),
        _ => None,
    }
}

/// The folder of a guest's disk in the store.
pub fn front_end(domid: DomId, vdev: &str) -> Option<String> {
    let number = devices::vdev_number(vdev)?;
    Some(format!("/local/domain/{}/device/vbd/{number}", domid.get()))
}

/// What the core says of a domain, `None` if it is not there.
pub fn domain_info(domid: DomId) -> Option<DomainInfo> {
    let mut info = DomainInfo { domid: domid.get(), ..Default::default() };
    control::domain_info(&mut info).ok()?;
    (info.domid == domid.get()).then_some(info)
}

/// Actual virtual time of a domain's first vCPU, ns.
pub fn virtual_time(domid: DomId) -> Option<u64> {
    let mut times =
        VcpuTimes { domid: domid.get(), vcpu: VcpuId::new(0).get(), ..Default::default() };
    control::vcpu_times(&mut times).ok()?;
    Some(times.actual_vt)
}
