//! One domain through its lives: it runs, ends, is reset in place, runs again, and is
//! destroyed; what Dom0 gave it for good is there in each life.

use crate::calls::{PAGES, create, free_frames, info, port_status};
use crate::news::{News, wait};
use crate::program::Program;
use crate::sched::{DEFAULTS, is_counting, set, spinner, values};
use crate::small::{DATA, DATA_PAGE, EMPTY, FRAMES, L4, Small};
use crate::tap::{check, equal, refused};
use core::time::Duration;
use domain_rt::abi::control::{DomainInfo, STATE_PAUSED, STATE_SHUTDOWN};
use domain_rt::abi::event::{
    EVTCHNOP_BIND_INTERDOMAIN, EVTCHNOP_SEND, EVTCHNSTAT_INTERDOMAIN, EVTCHNSTAT_UNBOUND,
};
use domain_rt::abi::grant::{GNTMAP_HOST_MAP, GNTTABOP_MAP_GRANT_REF};
use domain_rt::abi::sched::{
    SCHEDOP_SHUTDOWN, SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT, SHUTDOWN_WATCHDOG,
};
use domain_rt::abi::{DomId, Errno, Gref, PAGE_SIZE, hypercall as nr};
use domain_rt::event::Channel;
use domain_rt::mem::{Pages, alloc_pages, map_foreign};
use domain_rt::{control, event, grant};

/// Where the visitor finds and leaves things in its data: the reason to end with, the
/// arguments of its calls, and their results.
const REASON: usize = 0;
const MAP: usize = 16;
const BIND: usize = 48;
/// The port that binding gave, which is the argument of sending.
const SEND: usize = BIND + 8;
const RESULTS: [usize; 3] = [64, 72, 80];
/// Longest wait for an event.
const LIMIT: Duration = Duration::from_secs(30);

/// Maps what Dom0 granted, writes there, binds Dom0's port, sends, and ends.
fn visitor(greeting: u32) -> Program {
    let at = |offset: usize| DATA + offset as u64;
    Program::default()
        .hypercall(nr::GRANT_TABLE_OP, [GNTTABOP_MAP_GRANT_REF, at(MAP), 1])
        .store_rax(at(RESULTS[0]))
        .store(EMPTY, greeting)
        .hypercall(nr::EVENT_CHANNEL_OP, [EVTCHNOP_BIND_INTERDOMAIN, at(BIND), 0])
        .store_rax(at(RESULTS[1]))
        .hypercall(nr::EVENT_CHANNEL_OP, [EVTCHNOP_SEND, at(SEND), 0])
        .store_rax(at(RESULTS[2]))
        .hypercall(nr::SCHED_OP, [SCHEDOP_SHUTDOWN, at(REASON), 0])
        .fault()
}

/// What Dom0 has for the visitor, in all its lives.
struct House {
    page: Pages,
    gref: Gref,
    port: Channel,
}

pub async fn run(news: &mut News) {
    let before = free_frames();
    let domid = create(0, 1, 0).expect("a domain");
    let page = alloc_pages(1).expect("a page");
    let gref = grant::grant_access(domid, page.mfn(0), false).expect("a grant");
    let house = House { page, gref, port: event::alloc_unbound(domid).expect("a port") };
    let empty = free_frames();
    let born = info(domid).expect("just made");

    let first = visit(news, domid, &house, "first life", SHUTDOWN_REBOOT).await;
    dead(&first);
    equal("what it has mapped is in use", grant::end_access(house.gref), Err(Errno::EBUSY));
    set(domid, 0, (999, 1, 1, 1, 60_000)).expect("there");
    equal("it is reset", control::reset_domain(domid), Ok(()));
    as_new(domid, &born);
    equal("all that it had is free again", free_frames(), empty);
    stands(domid, &house);
    refused(
        "frames of its first life are not its own",
        map_foreign(domid, &first.frames[DATA_PAGE..], false),
        Errno::EBUSY,
    );

    let second = visit(news, domid, &house, "second life", SHUTDOWN_POWEROFF).await;
    dead(&second);
    running(domid, &house, empty).await;
    equal("it is gone", info(domid).map(|i| i.domid), Err(Errno::ESRCH));
    equal(
        "Dom0's port outlives it",
        port_status(house.port.port()),
        Ok((EVTCHNSTAT_UNBOUND, domid)),
    );
    equal("Dom0's grant is its own again", grant::end_access(house.gref), Ok(()));
    equal("nothing is lost over its lives", free_frames(), before);
    drop(house);
    crash(news).await;
    crashed_from_outside(news).await;
    odd_reason(news).await;
}

/// Loads the visitor and lets it come and go.
async fn visit(news: &mut News, domid: DomId, house: &House, life: &str, reason: u32) -> Small {
    let greeting = 1000 + reason;
    let case = |what: &str| alloc::format!("{life}: {what}");
    let small = Small::load(domid, &visitor(greeting)).expect("memory for it");
    let data = small.data();
    let shared = data.shared();
    shared.write_u32(REASON, reason);
    shared.write_u64(MAP, EMPTY);
    shared.write_u32(MAP + 8, GNTMAP_HOST_MAP);
    shared.write_u32(MAP + 12, house.gref.get());
    shared.write_u16(MAP + 16, DomId::DOM0.get());
    shared.write_u16(BIND, DomId::DOM0.get());
    shared.write_u32(BIND + 4, house.port.port().get());
    RESULTS.into_iter().for_each(|at| shared.write_u64(at, u64::MAX));
    house.page.shared().write_u64(0, 0);
    news.forget().await;
    equal(&case("it is started"), small.start(), Ok(()));
    let end = news.of_the_end(domid).await.unwrap_or_default();
    let state = (end.state, end.shutdown_reason);
    equal(&case("news of its end comes, with its reason"), state, (STATE_SHUTDOWN, reason));
    let results = RESULTS.map(|at| shared.read_u64(at));
    equal(&case("its calls were taken"), results, [0; 3]);
    equal(&case("its mapping was made"), shared.read_u16(MAP + 18), 0);
    let word = house.page.shared().read_u64(0);
    equal(&case("it wrote what it was granted"), word, greeting.into());
    check(&case("its event came"), wait(&house.port, LIMIT).await);
    let bound = port_status(house.port.port());
    equal(&case("its port is bound to Dom0's"), bound, Ok((EVTCHNSTAT_INTERDOMAIN, domid)));
    let has = (end.tot_pages, end.ports, end.maps, end.online_vcpus);
    equal(&case("what it has is counted"), has, (FRAMES, 1, 1, 1));
    drop(data);
    small
}

/// What can not be done with a domain that has ended.
fn dead(small: &Small) {
    let again = small.set_context(&small.context());
    refused("what has ended gets no context", again, Errno::EINVAL);
    let root = map_foreign(small.domid, &small.frames[L4..=L4], false);
    check("what has ended can be looked at", root.is_ok());
}

/// What a reset leaves, against what creation made.
fn as_new(domid: DomId, born: &DomainInfo) {
    let now = info(domid).expect("still there");
    equal("a reset begins the next incarnation", now.incarnation, born.incarnation + 1);
    equal(
        "a reset domain is paused, and nothing of its end is left",
        (now.state, now.shutdown_reason),
        (STATE_PAUSED, 0),
    );
    let has = (now.tot_pages, now.ports, now.maps, now.online_vcpus);
    equal("a reset domain has no memory, ports, mappings or vCPUs", has, (0, 0, 0, 0));
    equal("a reset domain may have what it might", (now.max_pages, now.max_vcpus), (PAGES, 1));
    equal("its structures are as large as they were", now.overhead_pages, born.overhead_pages);
    equal("it has not run", now.cpu_time_ns, 0);
    equal("its share is an equal one", values(domid, 0), Ok(DEFAULTS));
}

/// What Dom0 has for it stands.
fn stands(domid: DomId, house: &House) {
    let port = port_status(house.port.port());
    equal("Dom0's port waits for it again", port, Ok((EVTCHNSTAT_UNBOUND, domid)));
    equal("an event on that port goes nowhere", house.port.notify(), Ok(()));
    let nobody = event::bind_interdomain(DomId::DOM0, house.port.port());
    check("nobody else binds that port", nobody.is_err());
}

/// Reset and destruction do not wait for a domain to stop.
async fn running(domid: DomId, house: &House, empty: u64) {
    equal("what has ended is reset again", control::reset_domain(domid), Ok(()));
    for (life, last) in [("third life", false), ("fourth life", true)] {
        let small = Small::load(domid, &spinner()).expect("memory for it");
        let data = small.data();
        equal(&alloc::format!("{life}: it is started"), small.start(), Ok(()));
        check(&alloc::format!("{life}: it runs"), is_counting(&data).await);
        if last {
            equal("it is destroyed while it runs", control::destroy_domain(domid), Ok(()));
        } else {
            equal("it is reset while it runs", control::reset_domain(domid), Ok(()));
        }
        check(&alloc::format!("{life}: it stands"), !is_counting(&data).await);
        if !last {
            equal("a page of it that Dom0 looks at is not free", free_frames(), empty - 1);
            stands(domid, house);
        }
        drop(data);
    }
}

/// A domain that faults with nobody to handle it.
async fn crash(news: &mut News) {
    let small = Small::create(&Program::default().fault()).expect("a small domain");
    news.forget().await;
    small.start().expect("a sound domain");
    let end = news.of_the_end(small.domid).await.unwrap_or_default();
    let state = (end.state, end.shutdown_reason);
    equal("a domain that faults ends as crashed", state, (STATE_SHUTDOWN, SHUTDOWN_CRASH));
    let length = end.reason.iter().position(|&b| b == 0).unwrap_or(0);
    let text = core::str::from_utf8(&end.reason[..length]).unwrap_or("");
    domain_rt::println!("# {text}");
    check("with a reason for people", text.len() > 10);
    let pages = || info(small.domid).map(|i| i.tot_pages);
    let had = pages();
    equal("a crashed domain is reset as it is", control::reset_keeping(small.domid), Ok(()));
    equal("then its memory is its own still", pages(), had);
    equal("a crashed domain is reset", control::reset_domain(small.domid), Ok(()));
    equal("then it has no memory", pages(), Ok(0));
    let reason = info(small.domid).map(|i| i.reason[0]);
    equal("and the reason is gone", reason, Ok(0));
    small.destroy();
    check("news of a destruction comes", news.within(LIMIT).await);
}

/// A domain that computes, and that Dom0 crashes wherever it is.
async fn crashed_from_outside(news: &mut News) {
    let small = Small::create(&spinner()).expect("a small domain");
    let data = small.data();
    small.start().expect("a sound domain");
    check("it runs until it is crashed", is_counting(&data).await);
    news.forget().await;
    equal("a running domain is crashed", control::crash_domain(small.domid), Ok(()));
    let end = news.of_the_end(small.domid).await.unwrap_or_default();
    let state = (end.state, end.shutdown_reason);
    equal("the news is that of a crash", state, (STATE_SHUTDOWN, SHUTDOWN_CRASH));
    check("with the time of its end", end.ended_ns != 0);
    check("a crashed domain stands", !is_counting(&data).await);
    equal("once more changes nothing", control::crash_domain(small.domid), Ok(()));
    refused("Dom0 does not crash itself", control::crash_domain(DomId::DOM0), Errno::EPERM);
    drop(data);
    let domid = small.domid;
    small.destroy();
    refused("nor what is not there", control::crash_domain(domid), Errno::ESRCH);
}

/// A reason is the domain's own word.
async fn odd_reason(news: &mut News) {
    let program = Program::default().hypercall(nr::SCHED_OP, [SCHEDOP_SHUTDOWN, DATA, 0]);
    for reason in [SHUTDOWN_WATCHDOG, u32::MAX] {
        let small = Small::create(&program).expect("a small domain");
        small.data().shared().write_u32(PAGE_SIZE - 4, 0);
        small.data().shared().write_u32(0, reason);
        news.forget().await;
        small.start().expect("a sound domain");
        let end = news.of_the_end(small.domid).await.map(|end| end.shutdown_reason);
        equal("a domain ends with its own reason", end, Some(reason));
        small.destroy();
    }
}
