//! placeholder
#![no_std]
#![no_main]
domain_rt::entry!(main);
#[inline(never)]
fn deep(n: u64) -> u64 {
    let a = [n; 64];
    core::hint::black_box(&a);
    if n == 0 { 0 } else { deep(n - 1) + a[3] }
}
fn main(boot: &'static domain_rt::Boot) {
    domain_rt::println!(
        "hello {} frames, free {} cmd {:?}",
        boot.nr_frames,
        domain_rt::mem::free_frames(),
        boot.cmdline()
    );
    let r = domain_rt::mem::map_ramdisk();
    domain_rt::println!(
        "ramdisk {:?} len {} {:?}",
        boot.ramdisk,
        r.len(),
        &r[..r.len().min(64)]
    );
    let n: usize = boot.option("try").and_then(|s| s.parse().ok()).unwrap_or(0);
    if n == 1 {
        panic!("as asked")
    }
    if n == 2 {
        domain_rt::println!("{}", deep(1000000));
    }
    if n == 3 {
        unsafe {
            (n as *mut u64).write_volatile(1);
        }
    }
    if n == 4 {
        let f = domain_rt::mem::alloc_pages(1).unwrap();
        let p: fn() = unsafe { core::mem::transmute(f.va()) };
        p();
    }
    if n == 5 {
        unsafe {
            (main as *mut u8).write_volatile(1);
        }
    }
}
