//! Making domains and ending them, and what the core says of them.

use crate::MAX_VCPUS;
use crate::calls::{PAGES, create, destroy, free_frames, info, machine, next_info, populate};
use crate::tap::{check, equal};
use alloc::vec::Vec;
use domain_rt::abi::control::{CREATE_DRIVER, STATE_DRIVER, STATE_PAUSED};
use domain_rt::abi::{DomId, Errno, memory::MAX_ORDER};
use domain_rt::time;

const ROUNDS: u32 = 25;
/// Frames that Dom0 and the core share: shared-info, and one of Dom0's grant table.
const SHARED: u64 = 2;

pub fn run() {
    over_and_over();
    as_created();
    listing();
    the_machine();
}

/// What one domain gets is there for the next, to the frame.
fn over_and_over() {
    let free = free_frames();
    let mut lives = Vec::new();
    let mut whole = true;
    for _ in 0..ROUNDS {
        let domid = create(0, 1, 0).expect("a domain");
        let ones = populate(domid, 0, 0, 1500).len();
        let eights = populate(domid, 3, 2000, 7).len();
        let largest = populate(domid, MAX_ORDER, 2048, 2).len();
        let info = info(domid).expect("just made");
        let owned = 1500 + 7 * 8 + 2 * 512;
        whole &= (ones, eights, largest) == (1500, 7, 2) && info.tot_pages == owned;
        whole &= free_frames() == free - owned - info.overhead_pages - 1;
        lives.push((domid.get(), info.incarnation));
        destroy(domid).expect("a domain that is there");
        whole &= free_frames() == free;
    }
    check("each of many domains gets its memory and gives all of it back", whole);
    check("the lowest free domid is taken", lives.iter().all(|&(domid, _)| domid == 1));
    let follows = |pair: &[(u16, u32)]| pair[1].1 == pair[0].1 + 1;
    check("each life of a domid has the next incarnation", lives.windows(2).all(follows));
}

fn as_created() {
    let domid = create(77, MAX_VCPUS, CREATE_DRIVER).expect("a domain");
    equal("a domain gets the domid it is to have", domid, DomId::new(77));
    let info = info(domid).expect("just made");
    equal("a new domain is paused and nothing else", info.state, STATE_PAUSED | STATE_DRIVER);
    equal(
        "a new domain has what was asked for",
        (info.max_vcpus, info.max_pages),
        (MAX_VCPUS, PAGES),
    );
    let nothing = (info.online_vcpus, info.tot_pages, info.ports, info.maps, info.cpu_time_ns);
    equal("a new domain has nothing yet", nothing, (0, 0, 0, 0, 0));
    check("a new domain has a shared page", info.shared_info_mfn != 0);
    check("its structures are accounted for", info.overhead_pages > u64::from(MAX_VCPUS));
    destroy(domid).expect("a domain that is there");
}

fn listing() {
    let domids = [200, 5, 9].map(|domid| create(domid, 1, 0).expect("a domain").get());
    let mut found = Vec::new();
    let mut from = 0;
    let end = loop {
        match next_info(from) {
            Ok(info) => found.push(info.domid),
            Err(errno) => break errno,
        }
        from = found[found.len() - 1] + 1;
    };
    equal("a walk over all domains meets each once", &found[..], &[0, 5, 9, 200]);
    equal("the walk ends where there are no more", end, Errno::ESRCH);
    domids.into_iter().for_each(|domid| destroy(DomId::new(domid)).expect("there"));
}

fn the_machine() {
    let before = machine();
    let now = time::now().get();
    let after = machine();
    let dom0 = info(DomId::DOM0).expect("Dom0 is there");
    let owned = dom0.tot_pages + SHARED;
    let accounted = before.free_frames + before.core_frames + owned;
    equal("each frame is free, the core's or a domain's", accounted, before.total_frames);
    check("frames lie below the largest number", before.total_frames <= before.max_mfn);
    let between = before.system_time_ns <= now && now <= after.system_time_ns;
    check("the core's clock is the domains' clock", between);
    check("traps are counted", after.entries > before.entries);
    equal("there is one CPU", before.cpus, 1);
    check("the TSC has a frequency", before.tsc_khz > 0);
    check("there are devices", before.nr_devices > 0);
    check("stays in ring 0 are timed", after.longest_stay_ns > 0);
}
