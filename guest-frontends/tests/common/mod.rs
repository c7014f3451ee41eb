//! The front end against the real back end, in one process: xenstore, granted pages, and
//! a disk in memory that can be told to misbehave.
#![allow(dead_code)] // Each test program uses its own part.

use blkback::{
    BlockDevice, Completion, DeviceError, DeviceFacts, Direction, GrantRefused, GuestMemory, Job,
    Notifier, Parts, Range, Segment, Server, SharedLedger, Step, Token, Vbd,
};
use guest_frontends::blkfront::{self, Disk, Options};
use guest_frontends::platform::{
    Channel, NoRoom, Pages, Peer, Platform, Store, StoreFailed, Watch,
};
use ring_proto::{Gref, RingMemory};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

pub const NUMBER: u32 = 51728;
pub const FRONT: &str = "device/vbd/51728";
pub const BACK: &str = "/local/domain/7/backend/vbd/3/51728";

/// A page that both ends see.
pub type Page = Rc<Vec<Cell<u32>>>;

/// The segments of a request.
pub type Buffer = Vec<(Page, Segment)>;

/// Pages in a row.
#[derive(Clone)]
pub struct Run(pub Vec<Page>);

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
pub struct World {
    pub nodes: RefCell<BTreeMap<String, String>>,
    pub granted: RefCell<HashMap<u32, Page>>,
    pub next_gref: Cell<u32>,
    pub events_sent: Cell<u32>,
    pub server: RefCell<Option<Server<Back>>>,
    pub vbd: Cell<Option<blkback::VbdId>>,
    /// The shared ring as the back end has it.
    pub ring: RefCell<Option<Run>>,
    pub image: Rc<RefCell<Vec<u8>>>,
    pub most_at_once: Rc<Cell<usize>>,
    pub tricks: Rc<RefCell<Tricks>>,
    pub read_only: bool,
    pub offer_order: u32,
    pub offer_indirect: u32,
    pub refuse: bool,
}

impl World {
    pub fn get(&self, path: &str) -> Option<String> {
        self.nodes.borrow().get(path).cloned()
    }
    pub fn set(&self, path: &str, value: impl ToString) {
        self.nodes.borrow_mut().insert(path.into(), value.to_string());
    }
    pub fn number(&self, path: &str) -> Option<u32> {
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
                    while server.take_ended().is_none() {
                        let _ = server.step();
                    }
                }
                self.set(&format!("{BACK}/state"), 6);
            }
            (Some(6), Some(1)) => self.set(&format!("{BACK}/state"), 2),
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
        *self.ring.borrow_mut() = Some(ring.clone());
        let disk = MemoryDisk {
            image: self.image.clone(),
            read_only: self.read_only,
            queue: Vec::new(),
            seen: 0,
            most: self.most_at_once.clone(),
            tricks: self.tricks.clone(),
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

pub fn page() -> Page {
    Rc::new((0..1024).map(|_| Cell::new(0)).collect())
}

pub struct Back;

impl blkback::Platform for Back {
    type Ring = Run;
    type Memory = Grants;
    type Ledger = SharedLedger<Run>;
    type Notifier = Nothing;
    type Device = MemoryDisk;
}

/// The front end looks by itself whenever it waits.
pub struct Nothing;
impl Notifier for Nothing {
    fn notify(&mut self) {}
}

pub struct Grants(pub Rc<World>);

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

pub struct MemoryDisk {
    image: Rc<RefCell<Vec<u8>>>,
    read_only: bool,
    queue: Vec<(Token, Job<Buffer>)>,
    /// How long the queue was when last looked at: it works once no more comes.
    seen: usize,
    most: Rc<Cell<usize>>,
    tricks: Rc<RefCell<Tricks>>,
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
        let (buffer, result) = match job {
            Job::Transfer { direction, sector, buffer } => {
                let result = self.transfer(direction, sector as usize * 512, &buffer);
                (Some(buffer), result)
            }
            Job::Flush | Job::Discard { .. } => (None, Ok(())),
        };
        Some(Completion { token, buffer, result })
    }
}

impl MemoryDisk {
    fn transfer(
        &self,
        direction: Direction,
        at: usize,
        buffer: &Buffer,
    ) -> Result<(), DeviceError> {
        let mut image = self.image.borrow_mut();
        let mut tricks = self.tricks.borrow_mut();
        let bytes: usize = buffer.iter().map(|(_, segment)| segment.bytes()).sum();
        let mut data = vec![0; bytes];
        let parts = buffer.iter().scan(0, |from, (page, segment)| {
            let range = *from..*from + segment.bytes();
            *from = range.end;
            Some((Run(vec![page.clone()]), segment.offset_bytes(), range))
        });
        match direction {
            Direction::Read => {
                data.copy_from_slice(&image[at..at + bytes]);
                tricks.on_read(at, &mut data)?;
                parts.for_each(|(page, offset, range)| page.copy_in(offset, &data[range]));
            }
            Direction::Write => {
                parts.for_each(|(page, offset, range)| page.copy_out(offset, &mut data[range]));
                let (at, bytes) = tricks.on_write(at, bytes, image.len())?;
                image[at..at + bytes].copy_from_slice(&data[..bytes]);
            }
        }
        Ok(())
    }
}

/// What a disk does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trick {
    /// Says that it wrote.
    Lose,
    /// Writes the first sectors only.
    Tear(usize),
    /// Writes so many sectors further.
    Misdirect(usize),
    /// Gives back what was there when the trick was prepared.
    Stale,
    /// Changes a bit of what it read.
    Flip(usize),
    /// Fails.
    FailRead,
    /// Fails.
    FailWrite,
}

/// A trick that a disk has prepared.
#[derive(Default)]
pub struct Tricks {
    /// Once, after so many requests of that kind.
    pub next: Option<(u32, Trick)>,
    /// The image of old.
    pub old: Vec<u8>,
    /// How often it came to pass.
    pub played: u32,
}

impl Tricks {
    /// Counts down, and gives the trick when it is due.
    fn due(&mut self, is_of_this_kind: impl Fn(Trick) -> bool) -> Option<Trick> {
        let (left, trick) = self.next.as_mut()?;
        if !is_of_this_kind(*trick) {
            return None;
        }
        if *left > 0 {
            *left -= 1;
            return None;
        }
        Some(*trick)
    }

    fn play(&mut self) {
        self.next = None;
        self.played += 1;
    }

    fn on_read(&mut self, at: usize, data: &mut [u8]) -> Result<(), DeviceError> {
        let due = |trick| matches!(trick, Trick::Stale | Trick::Flip(_) | Trick::FailRead);
        match self.due(due) {
            Some(Trick::Stale) if self.old[at..at + data.len()] != *data => {
                data.copy_from_slice(&self.old[at..at + data.len()]);
                self.play();
            }
            Some(Trick::Flip(bit)) => {
                let bit = bit % (data.len() * 8);
                data[bit / 8] ^= 1 << (bit % 8);
                self.play();
            }
            Some(Trick::FailRead) => {
                self.play();
                return Err(DeviceError);
            }
            _ => {}
        }
        Ok(())
    }

    /// Where to write how many bytes.
    fn on_write(
        &mut self,
        at: usize,
        bytes: usize,
        end: usize,
    ) -> Result<(usize, usize), DeviceError> {
        let due = |trick| !matches!(trick, Trick::Stale | Trick::Flip(_) | Trick::FailRead);
        match self.due(due) {
            Some(Trick::Lose) => {
                self.play();
                Ok((at, 0))
            }
            Some(Trick::Tear(sectors)) => {
                self.play();
                Ok((at, bytes.min(sectors * 512)))
            }
            Some(Trick::Misdirect(sectors)) if at + bytes + sectors * 512 <= end => {
                self.play();
                Ok((at + sectors * 512, bytes))
            }
            Some(Trick::FailWrite) => {
                self.play();
                Err(DeviceError)
            }
            _ => Ok((at, bytes)),
        }
    }
}

/// The guest.
pub struct Guest(pub Rc<World>);

pub struct Shared {
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

pub struct Line(pub Rc<World>);
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

pub struct Nodes(pub Rc<World>);
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

pub struct GuestPlatform {
    pub guest: Guest,
    pub nodes: Nodes,
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

pub fn platform(world: World) -> GuestPlatform {
    let world = Rc::new(world);
    world.set(&format!("{FRONT}/backend"), BACK);
    world.set(&format!("{FRONT}/backend-id"), 7);
    world.set(&format!("{FRONT}/state"), 1);
    world.set(&format!("{BACK}/state"), 1);
    GuestPlatform { guest: Guest(world.clone()), nodes: Nodes(world) }
}

pub fn world(sectors: usize) -> World {
    World {
        image: Rc::new(RefCell::new(vec![0; sectors * 512])),
        offer_indirect: 32,
        ..World::default()
    }
}

pub fn connect(platform: &GuestPlatform, options: Options) -> Disk<GuestPlatform> {
    futures_lite::future::block_on(blkfront::connect(platform, NUMBER, options)).unwrap()
}
