//! A world for the back end to live in: shared memory, guest pages and a disk, all
//! of which can freeze between any two effects, as they do when the back end dies.
#![allow(dead_code)] // Each test program uses its own part.

use blkback::{
    BlockDevice, Completion, Counters, Cursors, DeviceError, DeviceFacts, Direction, GrantRefused,
    GuestMemory, Job, Ledger, Notifier, Parts, Platform, Range, Redo, Segment, Server,
    SharedLedger, Token,
};
use ring_proto::blkif::{Blk, RawRequest, RawResponse};
use ring_proto::{FrontRing, Gref, RingMemory, layout};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

pub const DISK_SECTORS: u64 = 64;

/// How many more effects the back end lives for.
#[derive(Clone, Default)]
pub struct Fuel(Rc<Cell<Option<u64>>>);

impl Fuel {
    pub fn set(&self, fuel: Option<u64>) {
        self.0.set(fuel);
    }
    pub fn is_out(&self) -> bool {
        self.0.get() == Some(0)
    }
    /// Whether one more effect happens.
    fn burn(&self) -> bool {
        match self.0.get() {
            None => true,
            Some(0) => false,
            Some(n) => {
                self.0.set(Some(n - 1));
                true
            }
        }
    }
}

/// Words seen by both ends; stores of the back end's view burn fuel.
#[derive(Clone)]
pub struct Words {
    cells: Rc<Vec<Cell<u32>>>,
    fuel: Fuel,
}

impl Words {
    pub fn new(bytes: usize, fuel: &Fuel) -> Self {
        Self { cells: Rc::new((0..bytes / 4).map(|_| Cell::new(0)).collect()), fuel: fuel.clone() }
    }
    /// The same memory for the end that does not die.
    pub fn immortal(&self) -> Self {
        Self { cells: self.cells.clone(), fuel: Fuel::default() }
    }
}

impl RingMemory for Words {
    fn bytes(&self) -> usize {
        self.cells.len() * 4
    }
    fn load(&self, offset: usize) -> u32 {
        self.cells[offset / 4].get()
    }
    fn store(&self, offset: usize, value: u32) {
        if self.fuel.burn() {
            self.cells[offset / 4].set(value);
        }
    }
}

/// The pages of one guest.
#[derive(Clone, Default)]
pub struct Pages(Rc<RefCell<HashMap<u32, Page>>>);

pub struct Page {
    pub bytes: Vec<u8>,
    pub mapped: usize,
    pub read_only: bool,
}

impl Pages {
    pub fn grant(&self, gref: u32, bytes: Vec<u8>, read_only: bool) {
        let page = Page { bytes, mapped: 0, read_only };
        self.0.borrow_mut().insert(gref, page);
    }
    pub fn bytes(&self, gref: u32) -> Vec<u8> {
        self.0.borrow()[&gref].bytes.clone()
    }
    pub fn mapped(&self) -> usize {
        self.0.borrow().values().map(|p| p.mapped).sum()
    }
    /// What the core does when the mapping domain dies.
    pub fn force_unmap(&self) {
        for page in self.0.borrow_mut().values_mut() {
            page.mapped = 0;
        }
    }
    fn with(&self, gref: u32, f: impl FnOnce(&mut Page)) {
        if let Some(page) = self.0.borrow_mut().get_mut(&gref) {
            f(page);
        }
    }
}

pub struct Buffer {
    pages: Pages,
    segments: Vec<Segment>,
}

impl GuestMemory for Pages {
    type Buffer = Buffer;

    fn map(&mut self, segments: &[Segment], way: Direction) -> Result<Buffer, GrantRefused> {
        let mut pages = self.0.borrow_mut();
        for segment in segments {
            let page = pages.get(&segment.gref().get()).ok_or(GrantRefused)?;
            if way == Direction::Read && page.read_only {
                return Err(GrantRefused);
            }
        }
        for segment in segments {
            pages.get_mut(&segment.gref().get()).unwrap().mapped += 1;
        }
        drop(pages);
        Ok(Buffer { pages: self.clone(), segments: segments.to_vec() })
    }

    fn unmap(&mut self, buffer: Buffer) {
        for segment in &buffer.segments {
            self.with(segment.gref().get(), |p| p.mapped -= 1);
        }
    }

    fn copy_from(&mut self, gref: Gref, into: &mut [u8]) -> Result<(), GrantRefused> {
        let pages = self.0.borrow();
        let page = pages.get(&gref.get()).ok_or(GrantRefused)?;
        into.copy_from_slice(&page.bytes[..into.len()]);
        Ok(())
    }
}

/// Counts events.
#[derive(Clone, Default)]
pub struct Bell {
    pub rung: Rc<Cell<u32>>,
    fuel: Fuel,
}

impl Notifier for Bell {
    fn notify(&mut self) {
        if self.fuel.burn() {
            self.rung.set(self.rung.get() + 1);
        }
    }
}

/// What a disk holds and what was done to it; outlives its driver.
#[derive(Clone)]
pub struct Platter {
    pub data: Rc<RefCell<Vec<u8>>>,
    pub touched: Rc<RefCell<BTreeSet<u64>>>,
    pub flushes: Rc<Cell<u32>>,
    /// First sector of each transfer that a driver took.
    pub submitted: Rc<RefCell<Vec<u64>>>,
}

impl Default for Platter {
    fn default() -> Self {
        Self {
            data: Rc::new(RefCell::new(vec![0; DISK_SECTORS as usize * 512])),
            touched: Rc::default(),
            flushes: Rc::default(),
            submitted: Rc::default(),
        }
    }
}

/// A disk that does its jobs in an order of its own.
pub struct Disk {
    pub platter: Platter,
    pub facts: DeviceFacts,
    pub capacity: usize,
    /// Jobs are done only while this is set.
    pub works: bool,
    queue: Vec<(Token, Job<Buffer>)>,
    rng: u64,
    fuel: Fuel,
}

impl Disk {
    pub fn new(platter: &Platter, facts: DeviceFacts, fuel: &Fuel, seed: u64) -> Self {
        Self {
            platter: platter.clone(),
            facts,
            capacity: 4,
            works: true,
            queue: Vec::new(),
            rng: seed | 1,
            fuel: fuel.clone(),
        }
    }

    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    fn random(&mut self, below: usize) -> usize {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        (self.rng >> 11) as usize % below
    }

    fn transfer(&self, way: Direction, mut sector: u64, buffer: &Buffer) {
        let mut disk = self.platter.data.borrow_mut();
        for segment in &buffer.segments {
            for part in 0..segment.sectors() {
                self.platter.touched.borrow_mut().insert(sector);
                let at = sector as usize * 512;
                let in_page = segment.offset_bytes() + part as usize * 512;
                sector += 1;
                if !self.fuel.burn() {
                    continue;
                }
                let on_disk = &mut disk[at..at + 512];
                buffer.pages.with(segment.gref().get(), |page| {
                    assert!(page.mapped > 0, "a page is used while it is mapped");
                    let in_page = &mut page.bytes[in_page..in_page + 512];
                    match way {
                        Direction::Read => in_page.copy_from_slice(on_disk),
                        Direction::Write => on_disk.copy_from_slice(in_page),
                    }
                });
            }
        }
    }
}

impl BlockDevice for Disk {
    type Buffer = Buffer;

    fn facts(&self) -> DeviceFacts {
        self.facts
    }

    fn submit(&mut self, token: Token, job: Job<Buffer>) -> Result<(), Job<Buffer>> {
        if self.queue.len() == self.capacity {
            return Err(job);
        }
        if let Job::Transfer { sector, .. } = &job
            && self.fuel.burn()
        {
            self.platter.submitted.borrow_mut().push(*sector);
        }
        self.queue.push((token, job));
        Ok(())
    }

    fn kick(&mut self) {}

    fn poll(&mut self) -> Option<Completion<Buffer>> {
        if self.queue.is_empty() || !self.works || self.random(3) == 0 {
            return None;
        }
        let pick = self.random(self.queue.len());
        let (token, job) = self.queue.swap_remove(pick);
        let (buffer, result) = match job {
            Job::Transfer { direction, sector, buffer } => {
                self.transfer(direction, sector, &buffer);
                (Some(buffer), Ok(()))
            }
            Job::Flush => {
                self.platter.flushes.set(self.platter.flushes.get() + 1);
                (None, Ok(()))
            }
            Job::Discard { sector, sectors } => {
                for s in sector..sector + sectors {
                    self.platter.touched.borrow_mut().insert(s);
                }
                (None, Err(DeviceError))
            }
        };
        Some(Completion { token, buffer, result })
    }
}

/// A slot of the ledger, and the ring's `rsp_prod` each time it hears of a response.
pub struct Listener {
    slot: SharedLedger<Words>,
    ring: Words,
    heard: Rc<RefCell<Vec<u32>>>,
}

impl Ledger for Listener {
    fn redo(&self) -> Option<Redo> {
        self.slot.redo()
    }
    fn set_redo(&mut self, redo: &Redo) {
        self.slot.set_redo(redo);
    }
    fn clear_redo(&mut self) {
        self.slot.clear_redo();
    }
    fn cursors(&self) -> Cursors {
        self.slot.cursors()
    }
    fn set_answered(&mut self, index: u32) {
        self.slot.set_answered(index);
    }
    fn set_taken(&mut self, index: u32) {
        self.slot.set_taken(index);
    }
    fn counters(&self) -> Counters {
        self.slot.counters()
    }
    fn set_counters(&mut self, counters: &Counters) {
        self.slot.set_counters(counters);
    }
    fn published(&mut self) {
        self.heard.borrow_mut().push(self.ring.load(layout::RSP_PROD));
    }
}

pub struct Fake;

impl Platform for Fake {
    type Ring = Words;
    type Memory = Pages;
    type Ledger = Listener;
    type Notifier = Bell;
    type Device = Disk;
}

/// One guest's view, which survives the back end.
pub struct Guest {
    pub ring_words: Words,
    pub ledger: Words,
    pub pages: Pages,
    pub bell: Bell,
    pub heard: Rc<RefCell<Vec<u32>>>,
    pub front: FrontRing<Blk, Words>,
    pub range: Range,
}

impl Guest {
    pub fn new(fuel: &Fuel, range: Range) -> Self {
        let ring_words = Words::new(4096, fuel);
        let front = FrontRing::new(ring_words.immortal()).unwrap();
        Self {
            ledger: Words::new(4096, fuel),
            pages: Pages::default(),
            bell: Bell { rung: Rc::default(), fuel: fuel.clone() },
            heard: Rc::default(),
            front,
            range,
            ring_words,
        }
    }

    pub fn parts(&self) -> Parts<Fake> {
        Parts {
            ring: self.ring_words.clone(),
            memory: self.pages.clone(),
            ledger: Listener {
                slot: SharedLedger::new(self.ledger.clone(), 3).unwrap(),
                ring: self.ring_words.immortal(),
                heard: self.heard.clone(),
            },
            notifier: self.bell.clone(),
            range: self.range,
        }
    }

    pub fn push(&mut self, raw: &RawRequest) {
        self.front.push(raw).unwrap();
        let _ = self.front.publish();
    }

    pub fn responses(&mut self) -> Vec<RawResponse> {
        std::iter::from_fn(|| self.front.take().unwrap()).collect()
    }
}

pub fn facts() -> DeviceFacts {
    DeviceFacts { sectors: DISK_SECTORS, read_only: false, flush: true, discard: true }
}

pub fn server(platter: &Platter, facts: DeviceFacts, fuel: &Fuel, seed: u64) -> Server<Fake> {
    Server::new(Disk::new(platter, facts, fuel, seed))
}

/// Runs until nothing has moved for a while.
pub fn settle(server: &mut Server<Fake>) {
    let mut idle = 0;
    while idle < 20 {
        idle = match server.step() {
            blkback::Step::More => 0,
            blkback::Step::Idle => idle + 1,
        };
    }
}
