//! The block front end against the real back end, in one process: handshake, data,
//! many requests in flight, close; and the listing of a real ext4 image.

use blkback::{
    BlockDevice, Completion, DeviceFacts, Direction, GrantRefused, GuestMemory, Job, Notifier,
    Parts, Range, Segment, Server, SharedLedger, Step, Token, Vbd,
};
use guest_frontends::blkfront::{self, ConnectError, Disk, DiskError, Options};
use guest_frontends::platform::{
    Channel, NoRoom, Pages, Peer, Platform, Store, StoreFailed, Watch,
};
use guest_frontends::{check, pattern};
use ring_proto::{Gref, RingMemory};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

const NUMBER: u32 = 51728;
const FRONT: &str = "device/vbd/51728";
const BACK: &str = "/local/domain/7/backend/vbd/3/51728";

/// A page that both ends see.
type Page = Rc<Vec<Cell<u32>>>;

/// The segments of a request.
type Buffer = Vec<(Page, Segment)>;

/// Pages in a row.
#[derive(Clone)]
struct Run(Vec<Page>);

impl RingMemory for Run {
    fn bytes(&self) -> usize {
        self.0.len() * 4096
    }
    fn load(&self, offset: usize) -> u32 {
        self.0[offset / 4096][offset % 4096 / 4].get()
    }
    fn store(&self, offset: usize, value: u32) {
        self.0[offset / 4096][offset % 4096 / 4].set(value);
    }
}

/// Everything that there is: xenstore, granted pages, the back end.
#[derive(Default)]
struct World {
    nodes: RefCell<BTreeMap<String, String>>,
    granted: RefCell<HashMap<u32, Page>>,
    next_gref: Cell<u32>,
    events_sent: Cell<u32>,
    server: RefCell<Option<Server<Back>>>,
    vbd: Cell<Option<blkback::VbdId>>,
    image: Rc<RefCell<Vec<u8>>>,
    most_at_once: Rc<Cell<usize>>,
    read_only: bool,
    offer_order: u32,
    offer_indirect: u32,
    refuse: bool,
}

impl World {
    fn get(&self, path: &str) -> Option<String> {
        self.nodes.borrow().get(path).cloned()
    }
    fn set(&self, path: &str, value: impl ToString) {
        self.nodes.borrow_mut().insert(path.into(), value.to_string());
    }
    fn number(&self, path: &str) -> Option<u32> {
        self.get(path)?.parse().ok()
    }

    /// What the driver domain does about the state nodes.
    fn handshake(self: &Rc<Self>) {
        let back = self.number(&format!("{BACK}/state"));
        let front = self.number(&format!("{FRONT}/state"));
        match (back, front) {
            (Some(1), _) if self.refuse => self.set(&format!("{BACK}/state"), 6),
            (Some(1), _) => {
                self.set(&format!("{BACK}/feature-flush-cache"), 1);
                self.set(&format!("{BACK}/max-ring-page-order"), self.offer_order);
                let segments = format!("{BACK}/feature-max-indirect-segments");
                self.set(&segments, self.offer_indirect);
                self.set(&format!("{BACK}/state"), 2);
            }
            (Some(2), Some(3)) => self.connect(),
            (Some(4), Some(5)) => self.set(&format!("{BACK}/state"), 5),
            (Some(5), Some(6)) => {
                if let (Some(server), Some(id)) = (&mut *self.server.borrow_mut(), self.vbd.get()) {
                    server.close(id);
                    assert!(server.take_ended().is_some());
                }
                self.set(&format!("{BACK}/state"), 6);
            }
            _ => {}
        }
    }

    fn connect(self: &Rc<Self>) {
        let order = self.number(&format!("{FRONT}/ring-page-order"));
        let grefs: Vec<u32> = match order {
            None => vec![self.number(&format!("{FRONT}/ring-ref")).unwrap()],
            Some(order) => (0..1 << order)
                .map(|i| self.number(&format!("{FRONT}/ring-ref{i}")).unwrap())
                .collect(),
        };
        assert_eq!(self.number(&format!("{FRONT}/event-channel")), Some(9));
        assert_eq!(self.get(&format!("{FRONT}/protocol")).as_deref(), Some("x86_64-abi"));
        let granted = self.granted.borrow();
        let ring = Run(grefs.iter().map(|g| granted[g].clone()).collect());
        let disk = MemoryDisk {
            image: self.image.clone(),
            read_only: self.read_only,
            queue: Vec::new(),
            seen: 0,
            most: self.most_at_once.clone(),
        };
        let facts = disk.facts();
        let parts = Parts {
            ring,
            memory: Grants(self.clone()),
            ledger: SharedLedger::new(Run(vec![page()]), 0).unwrap(),
            notifier: Nothing,
            range: Range::new(&facts, 0, 0, true).unwrap(),
        };
        let mut server = Server::new(disk);
        self.vbd.set(Some(server.add(Vbd::new(parts).unwrap())));
        *self.server.borrow_mut() = Some(server);
        self.set(&format!("{BACK}/sectors"), facts.sectors);
        let info = if self.read_only { 4 } else { 0 };
        self.set(&format!("{BACK}/info"), info);
        self.set(&format!("{BACK}/state"), 4);
    }

    fn serve(&self) {
        if let Some(server) = &mut *self.server.borrow_mut() {
            while server.step() == Step::More || !server.may_sleep() {}
        }
    }
}

fn page() -> Page {
    Rc::new((0..1024).map(|_| Cell::new(0)).collect())
}

struct Back;

impl blkback::Platform for Back {
    type Ring = Run;
    type Memory = Grants;
    type Ledger = SharedLedger<Run>;
    type Notifier = Nothing;
    type Device = MemoryDisk;
}

/// The front end looks by itself whenever it waits.
struct Nothing;
impl Notifier for Nothing {
    fn notify(&mut self) {}
}

struct Grants(Rc<World>);

impl GuestMemory for Grants {
    type Buffer = Buffer;
    fn map(&mut self, segments: &[Segment], _: Direction) -> Result<Self::Buffer, GrantRefused> {
        let granted = self.0.granted.borrow();
        let page = |s: &Segment| granted.get(&s.gref().get()).cloned().ok_or(GrantRefused);
        segments.iter().map(|s| Ok((page(s)?, *s))).collect()
    }
    fn unmap(&mut self, _: Self::Buffer) {}
    fn copy_from(&mut self, gref: Gref, into: &mut [u8]) -> Result<(), GrantRefused> {
        let granted = self.0.granted.borrow();
        let page = granted.get(&gref.get()).ok_or(GrantRefused)?;
        Run(vec![page.clone()]).copy_out(0, into);
        Ok(())
    }
}

struct MemoryDisk {
    image: Rc<RefCell<Vec<u8>>>,
    read_only: bool,
    queue: Vec<(Token, Job<Buffer>)>,
    /// How long the queue was when last looked at: it works once no more comes.
    seen: usize,
    most: Rc<Cell<usize>>,
}

impl BlockDevice for MemoryDisk {
    type Buffer = Buffer;
    fn facts(&self) -> DeviceFacts {
        DeviceFacts {
            sectors: self.image.borrow().len() as u64 / 512,
            read_only: self.read_only,
            flush: true,
            discard: false,
        }
    }
    fn submit(&mut self, token: Token, job: Job<Self::Buffer>) -> Result<(), Job<Self::Buffer>> {
        self.queue.push((token, job));
        self.most.set(self.most.get().max(self.queue.len()));
        Ok(())
    }
    fn kick(&mut self) {}
    fn poll(&mut self) -> Option<Completion<Self::Buffer>> {
        if std::mem::replace(&mut self.seen, self.queue.len()) < self.queue.len() {
            return None;
        }
        // Last in, first out: the order is not that of the requests.
        let (token, job) = self.queue.pop()?;
        self.seen -= 1;
        let buffer = match job {
            Job::Transfer { direction, sector, buffer } => {
                let mut image = self.image.borrow_mut();
                let mut at = sector as usize * 512;
                for (page, segment) in &buffer {
                    let run = Run(vec![page.clone()]);
                    let bytes = &mut image[at..at + segment.bytes()];
                    match direction {
                        Direction::Read => run.copy_in(segment.offset_bytes(), bytes),
                        Direction::Write => run.copy_out(segment.offset_bytes(), bytes),
                    }
                    at += segment.bytes();
                }
                Some(buffer)
            }
            Job::Flush | Job::Discard { .. } => None,
        };
        Some(Completion { token, buffer, result: Ok(()) })
    }
}

/// The guest.
struct Guest(Rc<World>);

struct Shared {
    world: Rc<World>,
    run: Run,
    grefs: Vec<Gref>,
}

impl RingMemory for Shared {
    fn bytes(&self) -> usize {
        self.run.bytes()
    }
    fn load(&self, offset: usize) -> u32 {
        self.run.load(offset)
    }
    fn store(&self, offset: usize, value: u32) {
        self.run.store(offset, value);
    }
}
impl Pages for Shared {
    fn grefs(&self) -> &[Gref] {
        &self.grefs
    }
}
impl Drop for Shared {
    fn drop(&mut self) {
        for gref in &self.grefs {
            self.world.granted.borrow_mut().remove(&gref.get());
        }
    }
}

struct Line(Rc<World>);
impl Channel for Line {
    fn port(&self) -> u32 {
        9
    }
    fn notify(&self) {
        self.0.events_sent.set(self.0.events_sent.get() + 1);
    }
    async fn wait(&self) {
        self.0.serve();
    }
}

struct Nodes(Rc<World>);
impl Store for Nodes {
    type Watch = Nodes;
    async fn read(&self, path: &str) -> Result<Option<String>, StoreFailed> {
        Ok(self.0.get(path))
    }
    async fn write(&self, path: &str, value: &str) -> Result<(), StoreFailed> {
        self.0.set(path, value);
        Ok(())
    }
    async fn watch(&self, _: &str) -> Result<Nodes, StoreFailed> {
        Ok(Nodes(self.0.clone()))
    }
}
impl Watch for Nodes {
    async fn next(&mut self) {
        self.0.handshake();
    }
}

struct GuestPlatform {
    guest: Guest,
    nodes: Nodes,
}

impl Platform for GuestPlatform {
    type Pages = Shared;
    type Channel = Line;
    type Store = Nodes;
    fn share(&self, peer: Peer, count: usize) -> Result<Shared, NoRoom> {
        assert_eq!(peer.get(), 7);
        let world = &self.guest.0;
        let pages: Vec<Page> = (0..count).map(|_| page()).collect();
        let grefs = pages.iter().map(|page| {
            let gref = world.next_gref.replace(world.next_gref.get() + 1) + 8;
            world.granted.borrow_mut().insert(gref, page.clone());
            Gref::new(gref)
        });
        let grefs = grefs.collect();
        Ok(Shared { world: world.clone(), run: Run(pages), grefs })
    }
    fn open_channel(&self, _: Peer) -> Result<Line, NoRoom> {
        Ok(Line(self.guest.0.clone()))
    }
    fn store(&self) -> &Nodes {
        &self.nodes
    }
}

fn platform(world: World) -> GuestPlatform {
    let world = Rc::new(world);
    world.set(&format!("{FRONT}/backend"), BACK);
    world.set(&format!("{FRONT}/backend-id"), 7);
    world.set(&format!("{FRONT}/state"), 1);
    world.set(&format!("{BACK}/state"), 1);
    GuestPlatform { guest: Guest(world.clone()), nodes: Nodes(world) }
}

fn world(sectors: usize) -> World {
    World {
        image: Rc::new(RefCell::new(vec![0; sectors * 512])),
        offer_indirect: 32,
        ..World::default()
    }
}

fn connect(platform: &GuestPlatform, options: Options) -> Disk<GuestPlatform> {
    futures_lite::future::block_on(blkfront::connect(platform, NUMBER, options)).unwrap()
}

#[test]
fn the_pattern_goes_to_the_disk_and_back_with_thirty_two_requests_in_flight() {
    let platform = platform(world(10_007));
    let world = platform.guest.0.clone();
    let mut disk = connect(&platform, Options::default());
    assert_eq!((disk.facts().max_in_flight, disk.facts().max_bytes), (32, 128 * 1024));
    futures_lite::future::block_on(async {
        check::write(&mut disk, 5, 10_007).await.unwrap();
        check::verify(&mut disk, 5, 10_007).await.unwrap();
        let wrong = check::verify(&mut disk, 6, 10_007).await;
        assert!(matches!(wrong, Err(check::CheckError::Mismatch(_))));
    });
    let image = world.image.borrow();
    assert_eq!(pattern::first_wrong(5, 0, &image), None);
    assert_eq!(world.most_at_once.get(), 32);
}

#[test]
fn a_closed_disk_leaves_no_grant_behind() {
    let platform = platform(world(64));
    let disk = connect(&platform, Options::default());
    assert!(!platform.guest.0.granted.borrow().is_empty());
    futures_lite::future::block_on(blkfront::close(&platform, NUMBER, disk)).unwrap();
    assert!(platform.guest.0.granted.borrow().is_empty());
    assert_eq!(platform.guest.0.number(&format!("{FRONT}/state")), Some(6));
}

#[test]
fn a_ring_of_four_pages_is_used_where_both_want_it() {
    let mut world = world(4096);
    world.offer_order = 3;
    let platform = platform(world);
    let options = Options { ring_page_order: 2, in_flight: 100, segments: 1 };
    let mut disk = connect(&platform, options);
    assert_eq!(disk.facts().max_in_flight, 100);
    futures_lite::future::block_on(async {
        check::write(&mut disk, 1, 4096).await.unwrap();
        check::verify(&mut disk, 1, 4096).await.unwrap();
    });
    assert_eq!(platform.guest.0.most_at_once.get(), 100);
}

#[test]
fn without_indirect_requests_eleven_pages_go_at_a_time() {
    let mut world = world(500);
    world.offer_indirect = 0;
    let platform = platform(world);
    let mut disk = connect(&platform, Options::default());
    assert_eq!(disk.facts().max_bytes, 11 * 4096);
    futures_lite::future::block_on(async {
        check::write(&mut disk, 1, 500).await.unwrap();
        let mut all = vec![0; 500 * 512];
        disk.read(0, &mut all).await.unwrap();
        assert_eq!(pattern::first_wrong(1, 0, &all), None);
    });
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let mut world = world(64);
    world.read_only = true;
    let platform = platform(world);
    let mut disk = connect(&platform, Options::default());
    assert!(disk.facts().read_only);
    let result = futures_lite::future::block_on(check::write(&mut disk, 1, 8));
    assert_eq!(result, Err(check::CheckError::Write(0, DiskError::Failed)));
}

#[test]
fn what_is_not_whole_sectors_of_the_disk_is_refused_before_it_is_sent() {
    let platform = platform(world(64));
    let mut disk = connect(&platform, Options::default());
    for (sector, bytes) in [(0, 0), (0, 511), (64, 512), (u64::MAX, 512), (0, 1 << 20)] {
        assert_eq!(disk.start_read(sector, bytes), Err(DiskError::BadLength));
    }
    assert_eq!(disk.in_flight(), 0);
}

#[test]
fn a_back_end_that_closes_is_reported() {
    let mut world = world(64);
    world.refuse = true;
    let platform = platform(world);
    let result =
        futures_lite::future::block_on(blkfront::connect(&platform, NUMBER, Options::default()));
    assert_eq!(result.err(), Some(ConnectError::Refused));
}
