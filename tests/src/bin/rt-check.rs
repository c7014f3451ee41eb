//! A guest that checks the runtime itself: memory, grants, events, time, tasks. It
//! prints TAP and ends with `poweroff`, or `crash` when something failed. It needs a
//! domain that may map its own grants, which every domain may.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use core::time::Duration;
use domain_rt::abi::{DomId, Errno, PAGE_SIZE};
use domain_rt::grant::{self, Copy, Direction};
use domain_rt::{Boot, Shutdown, event, exec, mem, println, shutdown, time};

domain_rt::entry!(main);

static DONE: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);

fn check(what: &str, ok: bool) {
    let n = DONE.fetch_add(1, Relaxed) + 1;
    if !ok {
        FAILED.fetch_add(1, Relaxed);
    }
    println!("{}ok {n} - {what}", if ok { "" } else { "not " });
}

fn main(_: &'static Boot) {
    exec::block_on(async move {
        memory();
        grants(event::own_domid().expect("two free ports"));
        events().await;
        clock().await;
    });
    println!("1..{}", DONE.load(Relaxed));
    if FAILED.load(Relaxed) > 0 {
        shutdown(Shutdown::Crash);
    }
}

fn memory() {
    let before = mem::free_frames();
    let pages = mem::alloc_pages(3).expect("three pages");
    pages.shared().write_u64(2 * PAGE_SIZE, 7);
    check("pages are counted while held", mem::free_frames() == before - 3);
    check(
        "the machine-to-phys table agrees with the pfn-to-mfn list",
        (0..3).all(|i| mem::pfn_of(pages.mfn(i)) == Some(pages.pfn(i))),
    );
    check(
        "own frames are refused as foreign ones",
        mem::map_foreign(DomId::DOM0, &[pages.mfn(0)], true)
            .is_err_and(|e| e.errno == Errno::EINVAL),
    );
    drop(pages);
    check("dropped pages are free again", mem::free_frames() == before);
    let zeroed = (0..50).all(|_| {
        let page = mem::alloc_pages(1).expect("a page");
        let zero = page.shared().read_u64(0) == 0;
        page.shared().fill(0, PAGE_SIZE, 0xff);
        zero
    });
    check("pages come zeroed", zeroed);
    dma();
    let big: Vec<u64> = (0..1_000_000).collect();
    check("the heap grows", big.iter().sum::<u64>() == 999_999 * 1_000_000 / 2);
}

fn dma() {
    let all: Vec<_> = (0..8).filter_map(|i| mem::alloc_dma(i % 4)).collect();
    check("contiguous memory is found", all.len() == 8);
    let good = all.iter().all(|dma| {
        dma.shared().fill(0, dma.bytes(), 0xa5);
        dma.shared().read_u8(dma.bytes() - 1) == 0xa5
    });
    check("contiguous memory can be written", good);
}

fn grants(me: DomId) {
    let pages = mem::alloc_pages(4).expect("four pages");
    let grefs: Vec<_> = (0..4)
        .map(|i| grant::grant_access(me, pages.mfn(i), false).expect("a free entry"))
        .collect();
    pages.shared().write_u64(3 * PAGE_SIZE + 8, 0x1234);
    let mapping = grant::map_grants(me, &grefs, false).expect("own grants can be mapped");
    let seen = mapping.shared().read_u64(3 * PAGE_SIZE + 8);
    check("a mapped grant shows the granted page", seen == 0x1234);
    mapping.shared().write_u64(PAGE_SIZE, 99);
    let seen = pages.shared().read_u64(PAGE_SIZE);
    check("a write through a mapped grant arrives", seen == 99);
    check("a mapped grant names its frame", (0..4).all(|i| mapping.maddr(i) == pages.maddr(i)));
    check("a grant in use is not taken back", grant::end_access(grefs[0]) == Err(Errno::EBUSY));
    drop(mapping);
    let mappings: Vec<_> =
        grefs.iter().filter_map(|&g| grant::map_grants(me, &[g], true).ok()).collect();
    check("grants are mapped one by one", mappings.len() == 4);
    grant::GrantMapping::unmap_all(mappings);
    copies(me, &pages, &grefs);
    check("unmapped grants are taken back", grefs.iter().all(|&g| grant::end_access(g).is_ok()));
    check("a revoked grant cannot be mapped", grant::map_grants(me, &grefs, false).is_err());
}

fn copies(me: DomId, pages: &mem::Pages, grefs: &[domain_rt::abi::Gref]) {
    let local = mem::alloc_pages(1).expect("a page");
    local.shared().copy_in(10, b"to and fro");
    let copy = |gref, remote_offset, local_offset, direction| Copy {
        domain: me,
        gref,
        remote_offset,
        pages: &local,
        local_offset,
        bytes: 10,
        direction,
    };
    let done = grant::copy(&[
        copy(grefs[1], 500, 10, Direction::Out),
        copy(grefs[1], 500, 100, Direction::In),
    ]);
    let mut there = [0; 10];
    pages.shared().copy_out(PAGE_SIZE + 500, &mut there);
    let mut back = [0; 10];
    local.shared().copy_out(100, &mut back);
    check("copies go both ways", done.is_ok() && &there == b"to and fro" && there == back);
}

async fn events() {
    let Ok(ours) = event::alloc_unbound(DomId::SELF) else {
        return check("a port can be allocated", false);
    };
    let Ok(theirs) = event::bind_interdomain(DomId::SELF, ours.port()) else {
        return check("a port can be bound to ourselves", false);
    };
    theirs.wait().await;
    check("a freshly bound channel has an event", true);
    let waiter = exec::spawn(async move {
        for _ in 0..100 {
            theirs.wait().await;
        }
        theirs
    });
    let mut sent = 0;
    while !waiter.is_finished() {
        ours.notify().expect("the channel stands");
        sent += 1;
        exec::yield_now().await;
    }
    check("every wake-up had an event", sent >= 100);
    drop(waiter.await);
    check("a channel without peer takes events", ours.notify().is_ok());
}

async fn clock() {
    let span = Duration::from_millis(20);
    let start = time::now();
    time::sleep(span).await;
    let slept = time::now().get() - start.get();
    check("sleep lasts as long as asked", slept >= 20_000_000);
    let start = time::now();
    let tasks: Vec<_> = [300u64, 100, 200]
        .map(|ms| {
            exec::spawn(async move {
                time::sleep_until(time::after(start, Duration::from_millis(ms))).await;
                time::now().get()
            })
        })
        .into();
    let mut ends = Vec::new();
    for task in tasks {
        ends.push(task.await);
    }
    check("sleepers wake in the order of their deadlines", ends[1] < ends[2] && ends[2] < ends[0]);
    let first = exec::select(
        async {
            time::sleep(Duration::from_secs(3600)).await;
            1
        },
        async {
            time::sleep(Duration::from_millis(5)).await;
            2
        },
    );
    check("the first of two wins", first.await == 2);
    let mut last = time::now();
    let monotone = (0..10_000).all(|_| {
        let now = time::now();
        core::mem::replace(&mut last, now) <= now
    });
    check("time does not go back", monotone);
}
