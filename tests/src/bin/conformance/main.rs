//! The conformance guest: one binary that exercises the PV interface call by call and
//! prints what it sees as TAP. It boots on Xen and on Bulkhead; the two outputs are
//! compared line by line, so nothing in them may depend on addresses or time.
//!
//! A value that differs from what Debian's Xen 4.17 was seen to give makes a case
//! `not ok`, with both shown, and the domain ends with `crash`. It needs no services:
//! no store, no second vCPU, no device.
#![no_std]
#![no_main]

extern crate alloc;

mod callbacks;
mod catch;
mod descriptors;
mod emulate;
mod events;
mod grants;
mod hv;
mod memory;
mod mmu;
mod mmuext;
mod ports;
mod ptwr;
mod sched;
mod tables;
mod tap;
mod traps;
mod user;
mod vcpu;
mod version;

use domain_rt::abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF};

domain_rt::entry!(main);

fn main(boot: &'static domain_rt::Boot) {
    catch::install();
    version::run();
    traps::run();
    callbacks::run();
    events::run(boot.is_dom0);
    sched::run();
    vcpu::run();
    mmu::run(boot.is_dom0);
    mmuext::run();
    ptwr::run();
    memory::run();
    grants::run();
    descriptors::run();
    emulate::run();
    ports::run();
    user::run();
    vcpu::run_last();
    // The runtime's own end would look at the old vCPU info: leave at once.
    let reason = if tap::plan() { SHUTDOWN_POWEROFF } else { SHUTDOWN_CRASH };
    domain_rt::hypercall::shutdown(reason)
}
