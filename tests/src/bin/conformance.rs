//! placeholder
#![no_std]
#![no_main]
domain_rt::entry!(main);
fn main(boot: &'static domain_rt::Boot) {
    domain_rt::println!(
        "hello {} frames, free {}",
        boot.nr_frames,
        domain_rt::mem::free_frames()
    );
}
