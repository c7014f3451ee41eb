//! A control domain that does nothing but check the control interface on the real core:
//! what Dom0 may ask is done, what it may not is refused, and what it gave it gets back.
//! It prints TAP and ends with `poweroff`, or `crash` when something failed.
//!
//! It must be Bulkhead's Dom0, alone. It knows no image format and no protocol of Dom0's:
//! the one domain that it runs is made of six pages by hand ([`small`]).
#![no_std]
#![no_main]

extern crate alloc;

mod build;
mod calls;
mod life;
mod memory;
mod news;
mod program;
mod refusals;
mod sched;
mod small;
mod tap;

use calls::{create, destroy, free_frames, info};
use domain_rt::{Boot, Shutdown, abi::DomId, event, exec, grant, mem, println, shutdown};
use news::News;
use tap::{check, equal};

domain_rt::entry!(main);

/// vCPUs that one domain may have.
const MAX_VCPUS: u32 = 32;

fn main(boot: &'static Boot) {
    if !boot.is_dom0 {
        println!("Bail out! This is the control domain's business.");
        shutdown(Shutdown::Crash);
    }
    exec::block_on(async {
        let mut news = News::bind();
        warm_up();
        let (frames, ports) = (free_frames(), own_ports());
        build::run();
        memory::run();
        sched::run(&mut news).await;
        life::run(&mut news).await;
        refusals::run();
        equal("all frames are free again in the end", free_frames(), frames);
        equal("all ports are closed again in the end", own_ports(), ports);
        let only_dom0 = info(DomId::DOM0).is_ok() && calls::next_info(1).is_err();
        check("no domain is left but Dom0", only_dom0);
    });
    if !tap::plan() {
        shutdown(Shutdown::Crash);
    }
}

/// Has the core take what it takes once and keeps: room for as many vCPUs as are used at
/// once, and for Dom0's own grants, mappings and ports. All else must come back.
fn warm_up() {
    let full = create(0, MAX_VCPUS, 0).expect("a domain with all vCPUs");
    let more = [(); 4].map(|()| create(0, 1, 0).expect("a domain"));
    more.into_iter().chain([full]).for_each(|domid| destroy(domid).expect("goes"));
    let page = mem::alloc_pages(1).expect("a page");
    let gref = grant::grant_access(DomId::DOM0, page.mfn(0), false).expect("a grant");
    drop(grant::map_grants(DomId::DOM0, &[gref], false).expect("an own grant can be mapped"));
    grant::end_access(gref).expect("nobody uses it");
    drop(event::alloc_unbound(DomId::DOM0).expect("a port"));
}

fn own_ports() -> u32 {
    info(DomId::DOM0).expect("there").ports
}
