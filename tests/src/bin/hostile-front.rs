//! A hostile front end: tells the block back end every lie the ring has room for, each
//! named, in TAP. Lies about requests (operations, segments, sectors, references,
//! fields that change while they are read) must get an error and leave the ring
//! working; lies about the ring itself may end the service of that one disk and of
//! nobody else. What lies outside its disks is judged by whoever looks at the image.
//!
//! Its first disk takes the lies about requests; each further disk one about the ring.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::{format, string::String, vec::Vec};
use core::time::Duration;
use domain_rt::{Boot, Shutdown, exec, println, shutdown, time, xenstore};
use guest_frontends::{
    blkfront,
    platform::{Channel, Pages, Peer, Platform, Store},
    rt::{Domain, Granted},
};
use ring_proto::{
    RingMemory,
    blkif::{RawRequest, RawResponse},
    layout::{REQ_EVENT, REQ_PROD, RSP_PROD, SLOTS},
};
use zerocopy::{FromZeros, IntoBytes};

domain_rt::entry!(main);

const READ: u8 = 0;
const WRITE: u8 = 1;
const DISCARD: u8 = 5;
const INDIRECT: u8 = 6;
const SLOT_BYTES: usize = 112;
const RING_SLOTS: u32 = 32;
/// How long an answer may take before there is none.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the back end has to look at a broken ring. It need not answer.
const GLANCE: Duration = Duration::from_millis(300);

/// A disk, connected by hand.
struct Line {
    ring: Granted,
    data: Granted,
    channel: <Domain as Platform>::Channel,
    sectors: u64,
    sent: u32,
}

/// What came of a lie.
type Found = Result<String, String>;

fn main(boot: &'static Boot) {
    let Some(store) = xenstore::connect(boot) else {
        println!("Bail out! there is no xenstore");
        shutdown(Shutdown::Crash);
    };
    let failed = exec::block_on(run(Domain::new(store)));
    println!("hostile-front: {failed} lies had an effect");
    shutdown(if failed == 0 { Shutdown::Poweroff } else { Shutdown::Crash })
}

async fn run(domain: Domain) -> u32 {
    let disks = blkfront::disks(&domain).await.unwrap_or_default();
    let mut report = Report::default();
    let mut disks = disks.into_iter();
    match disks.next() {
        Some(first) => about_requests(&domain, &first, &mut report).await,
        None => report.line("it has a disk", Err("no disk".into())),
    }
    for ((name, lie), disk) in RING_LIES.iter().zip(disks) {
        let found = match Line::connect(&domain, &disk, None).await {
            Ok(mut line) => {
                lie(&mut line);
                Channel::notify(&line.channel);
                // An answer is as good as none; the back end must only stay within bounds.
                line.wait_for(line.sent.wrapping_add(1), GLANCE).await;
                Ok(String::from("survived"))
            }
            Err(e) => Err(e),
        };
        report.line(name, found);
    }
    println!("1..{}", report.lines);
    report.failed
}

#[derive(Default)]
struct Report {
    lines: u32,
    failed: u32,
}

impl Report {
    fn line(&mut self, name: &str, found: Found) {
        self.lines += 1;
        match found {
            Ok(how) => println!("ok {} - {name} # {how}", self.lines),
            Err(how) => {
                self.failed += 1;
                println!("not ok {} - {name} # {how}", self.lines);
            }
        }
    }
}

/// A lie about the ring itself.
type RingLie = (&'static str, fn(&mut Line));

const RING_LIES: &[RingLie] = &[
    ("a thousand requests that are not there", |l| l.ring.store(REQ_PROD, l.sent + 1000)),
    ("a request counter that runs backwards", |l| l.ring.store(REQ_PROD, l.sent.wrapping_sub(1))),
    ("a request counter half way round", |l| l.ring.store(REQ_PROD, l.sent ^ 0x8000_0000)),
    ("a response counter of its own invention", |l| {
        l.ring.store(RSP_PROD, 0xdead_beef);
        l.ring.store(REQ_PROD, l.sent + 1);
    }),
    ("every word of the ring page at random", |l| {
        let mut word = 0x1234_5678u32;
        for offset in (0..l.ring.bytes()).step_by(4) {
            word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            l.ring.store(offset, word);
        }
    }),
    ("a storm of events", |l| {
        for n in 0..10_000u32 {
            l.ring.store(REQ_EVENT, n);
            Channel::notify(&l.channel);
        }
    }),
];

impl Line {
    async fn connect(domain: &Domain, name: &str, ring_ref: Option<&str>) -> Result<Self, String> {
        let number = blkfront::virtual_device(name).ok_or("no such disk name")?;
        let front = format!("device/vbd/{number}");
        let store = domain.store();
        let peer = read(store, &format!("{front}/backend-id")).await?;
        let peer = Peer::new(peer.parse().map_err(|_| "backend-id is no number")?);
        let back = read(store, &format!("{front}/backend")).await?;
        wait_state(store, &back, 2).await?;
        let ring = domain.share(peer, 1).map_err(|_| "no memory")?;
        let data = domain.share(peer, 2).map_err(|_| "no memory")?;
        let channel = domain.open_channel(peer).map_err(|_| "no port")?;
        ring.store(REQ_EVENT, 1);
        ring.store(12, 1);
        let gref = ring_ref.map_or_else(|| format!("{}", ring.grefs()[0].get()), String::from);
        for (node, value) in [
            ("ring-ref", gref),
            ("event-channel", format!("{}", Channel::port(&channel))),
            ("protocol", "x86_64-abi".into()),
            ("state", "3".into()),
        ] {
            write(store, &format!("{front}/{node}"), &value).await?;
        }
        wait_state(store, &back, 4).await?;
        let sectors = read(store, &format!("{back}/sectors")).await?;
        let sectors = sectors.parse().map_err(|_| "sectors is no number")?;
        write(store, &format!("{front}/state"), "4").await?;
        Ok(Self { ring, data, channel, sectors, sent: 0 })
    }

    /// Publishes one request.
    fn send(&mut self, request: &RawRequest) {
        self.ring.copy_in(self.slot(), request.as_bytes());
        self.sent = self.sent.wrapping_add(1);
        self.ring.store(REQ_PROD, self.sent);
        Channel::notify(&self.channel);
    }

    /// What the ring says when no answer came.
    fn silence(&self) -> String {
        let word = |offset| self.ring.load(offset);
        let (events, answered) = (word(REQ_EVENT), word(RSP_PROD));
        format!("no answer to {}: req_event {events}, rsp_prod {answered}", self.sent)
    }

    fn slot(&self) -> usize {
        SLOTS + SLOT_BYTES * (self.sent % RING_SLOTS) as usize
    }

    /// Waits until the back end has answered up to `index`; `false` if it does not.
    async fn wait_for(&self, index: u32, patience: Duration) -> bool {
        let end = time::after(time::now(), patience);
        while self.ring.load(RSP_PROD) != index {
            if time::now() > end {
                return false;
            }
            time::sleep(Duration::from_micros(200)).await;
        }
        true
    }

    /// Sends a request and gives its answer, checked to be the answer to it.
    async fn ask(&mut self, request: &RawRequest) -> Result<i16, String> {
        let slot = self.slot();
        self.send(request);
        if !self.wait_for(self.sent, PATIENCE).await {
            return Err(self.silence());
        }
        let mut response = RawResponse::new_zeroed();
        self.ring.copy_out(slot, response.as_mut_bytes());
        let echo = if request.operation == INDIRECT { request.detail } else { request.operation };
        if response.id != request.id || response.operation != echo {
            return Err(format!("answer to {} op {}", response.id, response.operation));
        }
        Ok(response.status)
    }

    fn gref(&self) -> u32 {
        self.data.grefs()[0].get()
    }

    /// A request of one segment over the first data page.
    fn request(&self, operation: u8, sector: u64) -> RawRequest {
        let mut request = RawRequest::new_zeroed();
        request.operation = operation;
        request.detail = 1;
        request.id = 0x0123_4567_89ab_cdef ^ u64::from(self.sent);
        request.sector = sector;
        segment(&mut request, 0, self.gref(), 0, 7);
        request
    }

    /// An indirect request whose list of segments is in the second data page.
    fn indirect(&self, operation: u8, segments: u16) -> RawRequest {
        let mut request = self.request(INDIRECT, 0);
        request.detail = operation;
        request.handle = segments;
        request.body = [0; 88];
        request.body[4..8].copy_from_slice(&self.data.grefs()[1].get().to_le_bytes());
        request
    }
}

fn segment(request: &mut RawRequest, index: usize, gref: u32, first: u8, last: u8) {
    let at = index * 8;
    request.body[at..at + 4].copy_from_slice(&gref.to_le_bytes());
    request.body[at + 4] = first;
    request.body[at + 5] = last;
}

async fn about_requests(domain: &Domain, disk: &str, report: &mut Report) {
    match Line::connect(domain, disk, Some("4294967295")).await {
        Err(_) => report.line("a ring reference that was never granted", Ok("refused".into())),
        Ok(_) => report.line("a ring reference that was never granted", Err("connected".into())),
    }
    let mut line = match reconnect(domain, disk).await {
        Ok(line) => line,
        Err(e) => return report.line("the disk connects after a refusal", Err(e)),
    };
    for (name, request) in malformed(&line) {
        let found = match line.ask(&request).await {
            Ok(0) => Err("it was done".into()),
            Ok(status) => Ok(format!("status {status}")),
            Err(e) => Err(e),
        };
        report.line(name, found);
    }
    report.line("sectors that change while they are read", double_fetch(&mut line).await);
    report.line("segments that change while they are read", double_fetch_indirect(&mut line).await);
    let found = match line.ask(&line.request(READ, 0)).await {
        Ok(0) => Ok("served".into()),
        other => Err(format!("{other:?}")),
    };
    report.line("an honest read after all the lies", found);
}

/// After a refusal the front end goes through Closed to the start.
async fn reconnect(domain: &Domain, disk: &str) -> Result<Line, String> {
    let number = blkfront::virtual_device(disk).ok_or("no such disk name")?;
    let front = format!("device/vbd/{number}");
    for state in ["5", "6", "1"] {
        write(domain.store(), &format!("{front}/state"), state).await?;
        time::sleep(Duration::from_millis(50)).await;
    }
    Line::connect(domain, disk, None).await
}

fn malformed(line: &Line) -> Vec<(&'static str, RawRequest)> {
    let read = line.request(READ, 0);
    let edit = |change: &dyn Fn(&mut RawRequest)| {
        let mut request = read;
        change(&mut request);
        request
    };
    let mut all = Vec::from([
        ("an operation that does not exist", edit(&|r| r.operation = 77)),
        ("the operation of a barrier, never offered", edit(&|r| r.operation = 2)),
        ("no segments", edit(&|r| r.detail = 0)),
        ("twelve segments in a request for eleven", edit(&|r| r.detail = 12)),
        ("255 segments", edit(&|r| r.detail = 255)),
        ("a segment that ends before it starts", edit(&|r| segment(r, 0, line.gref(), 5, 4))),
        ("a segment past the end of its page", edit(&|r| segment(r, 0, line.gref(), 0, 8))),
        ("a segment of sector 255", edit(&|r| segment(r, 0, line.gref(), 255, 255))),
        ("a reference that was never granted", edit(&|r| segment(r, 0, 500, 0, 7))),
        ("a reference past the end of the table", edit(&|r| segment(r, 0, u32::MAX, 0, 7))),
        ("a reference granted to somebody else", edit(&|r| segment(r, 0, 0, 0, 7))),
        (
            "a second reference that is bad",
            edit(&|r| {
                r.detail = 2;
                segment(r, 1, 501, 0, 7);
            }),
        ),
        ("a read past the end of the disk", line.request(READ, line.sectors)),
        ("a read over the end of the disk", line.request(READ, line.sectors - 1)),
        ("a write past the end of the disk", line.request(WRITE, line.sectors)),
        ("a write over the end of the disk", line.request(WRITE, line.sectors - 7)),
        ("a sector number that overflows", line.request(WRITE, u64::MAX)),
        ("a sector number that overflows in bytes", line.request(WRITE, u64::MAX / 512 + 1)),
        (
            "a discard past the end of the disk",
            edit(&|r| {
                (r.operation, r.detail, r.sector) = (DISCARD, 0, line.sectors);
                r.body[..8].copy_from_slice(&1u64.to_le_bytes());
            }),
        ),
        (
            "a discard whose length overflows",
            edit(&|r| {
                (r.operation, r.detail, r.sector) = (DISCARD, 0, 1);
                r.body[..8].copy_from_slice(&u64::MAX.to_le_bytes());
            }),
        ),
        ("an indirect request without segments", line.indirect(READ, 0)),
        ("an indirect request of 65535 segments", line.indirect(READ, 65535)),
        ("an indirect request of more than is offered", line.indirect(READ, 4097)),
        ("an indirect discard", line.indirect(DISCARD, 1)),
        ("an indirect indirect request", line.indirect(INDIRECT, 1)),
        ("an indirect request with empty segments", line.indirect(READ, 3)),
    ]);
    let mut bad = line.indirect(WRITE, 1);
    bad.body[4..8].copy_from_slice(&502u32.to_le_bytes());
    all.push(("an indirect page that was never granted", bad));
    all
}

/// Flips the sector between one inside and one outside the disk while the request
/// waits: any status is right, as long as nothing outside is touched.
async fn double_fetch(line: &mut Line) -> Found {
    let mut statuses = [0u32; 2];
    for round in 0..200u64 {
        let slot = line.slot();
        let request = line.request(WRITE, round % 8);
        line.send(&request);
        for _ in 0..50 {
            line.ring.store_wide(slot + 16, line.sectors + round);
            line.ring.store(slot + 24, 500);
            line.ring.store_wide(slot + 16, round % 8);
            line.ring.store(slot + 24, line.gref());
        }
        if !line.wait_for(line.sent, PATIENCE).await {
            return Err(format!("round {round}: {}", line.silence()));
        }
        let mut response = RawResponse::new_zeroed();
        line.ring.copy_out(slot, response.as_mut_bytes());
        statuses[usize::from(response.status != 0)] += 1;
    }
    Ok(format!("{} done, {} refused", statuses[0], statuses[1]))
}

/// The same with the page of an indirect request.
async fn double_fetch_indirect(line: &mut Line) -> Found {
    let mut refused = 0;
    for round in 0..200u32 {
        let page = 4096;
        for segment in 0..20 {
            line.data.store(page + segment * 8, line.gref());
            line.data.store(page + segment * 8 + 4, 0x0700);
        }
        let slot = line.slot();
        let request = line.indirect(READ, 20);
        line.send(&request);
        for _ in 0..50 {
            line.data.store(page + 8, 500 + round);
            line.data.store(page + 12, 0xff00);
            line.data.store(page + 8, line.gref());
            line.data.store(page + 12, 0x0700);
        }
        if !line.wait_for(line.sent, PATIENCE).await {
            return Err(format!("round {round}: {}", line.silence()));
        }
        let mut response = RawResponse::new_zeroed();
        line.ring.copy_out(slot, response.as_mut_bytes());
        refused += u32::from(response.status != 0);
    }
    Ok(format!("{} done, {refused} refused", 200 - refused))
}

async fn read<S: Store>(store: &S, path: &str) -> Result<String, String> {
    let value = store.read(path).await.map_err(|e| format!("{path}: {e}"))?;
    value.ok_or_else(|| format!("{path} is missing"))
}

async fn write<S: Store>(store: &S, path: &str, value: &str) -> Result<(), String> {
    store.write(path, value).await.map_err(|e| format!("{path}: {e}"))
}

/// Waits for the back end to show `wanted`, or a state beyond it.
async fn wait_state<S: Store>(store: &S, back: &str, wanted: u32) -> Result<(), String> {
    let end = time::after(time::now(), PATIENCE);
    loop {
        let state = read(store, &format!("{back}/state")).await?;
        match state.parse::<u32>() {
            Ok(state) if state == wanted => return Ok(()),
            Ok(5 | 6) if wanted == 4 => return Err(String::from("the back end closed")),
            _ if time::now() > end => return Err(format!("the back end stays in state {state}")),
            _ => time::sleep(Duration::from_millis(5)).await,
        }
    }
}
