//! A guest that changes its own code at breakpoints, as fault injection does with a driver
//! domain, and checks what comes of it: armed changes are carried out when they are
//! reached, once, across pages too, and code that is not reached stays as it is.
#![no_std]
#![no_main]

use domain_rt::abi::ledger::{PATCHES, patch as at};
use domain_rt::{Boot, Shared, Shutdown, faults, mem, println, shutdown, time};

domain_rt::entry!(main);

const BREAKPOINT: u8 = 0xcc;
/// Where the table is in its page.
const TABLE: usize = 256;
/// `mov eax, imm32`: its code and its length.
const MOV_EAX: u8 = 0xb8;
const MOV_BYTES: usize = 5;

// `plain` gives 1, and its `ret` is where a register changes; `across` gives 2 by an
// instruction that lies on two pages; `untouched` gives 3.
core::arch::global_asm!(
    r#"
    .section .text.patch_check, "ax"
    .global patch_plain, patch_plain_ret, patch_across, patch_untouched
    .balign 4096
    .skip 4094, 0x90
    patch_across:
        mov eax, 2
        ret
    patch_plain:
        mov eax, 1
    patch_plain_ret:
        ret
        nop
        nop
    patch_untouched:
        mov eax, 3
        ret
    .text
    "#
);

unsafe extern "C" {
    safe fn patch_plain() -> u32;
    safe fn patch_across() -> u32;
    safe fn patch_untouched() -> u32;
    safe static patch_plain_ret: u8;
}

fn main(_: &'static Boot) {
    match check() {
        Ok(()) => {
            println!("patch-check: all well");
            shutdown(Shutdown::Poweroff)
        }
        Err(what) => {
            println!("patch-check: FAILED: {what}");
            shutdown(Shutdown::Crash)
        }
    }
}

fn check() -> Result<(), &'static str> {
    let page = mem::alloc_pages(1).ok_or("out of memory")?.leak();
    page.store_u64(PATCHES, TABLE as u64 | 3 << 32);
    faults::arm(page);
    expect("code as it was", (patch_plain(), patch_across(), patch_untouched()), (1, 2, 3))?;

    let function = |f: extern "C" fn() -> u32| f as usize as u64;
    code(page, 0, function(patch_plain), 1, 41);
    code(page, 1, function(patch_across), 2, 42);
    let start = time::now().get();
    expect("changed code", (patch_plain(), patch_across(), patch_untouched()), (41, 42, 3))?;
    expect("the same again", (patch_plain(), patch_across(), patch_untouched()), (41, 42, 3))?;
    let reached = |entry| page.load_u64(TABLE + entry * at::BYTES + at::ACTIVATED_NS);
    let now = start..=time::now().get();
    if !now.contains(&reached(0)) || !now.contains(&reached(1)) {
        return Err("the time at which a change was reached is not noted");
    }

    // Bit 8 of rax, at the `ret`: 41 + 256, once.
    let ret = (&raw const patch_plain_ret) as u64;
    let entry = put(page, 2, ret, at::KIND_REGISTER, 1);
    page.copy_in(entry + at::OLD, &[0xc3]);
    page.store_u32(entry + at::BIT, 8);
    arm(ret);
    expect("a changed register", (patch_plain(), patch_across(), patch_plain()), (297, 42, 41))?;
    if reached(2) <= reached(1) {
        return Err("the time at which a register changed is not noted");
    }
    Ok(())
}

/// Arms the change of `mov eax, old` at an address to `mov eax, new`.
fn code(page: Shared<'static>, entry: usize, va: u64, old: u8, new: u8) {
    let at = put(page, entry, va, at::KIND_CODE, MOV_BYTES as u32);
    page.copy_in(at + at::OLD, &[MOV_EAX, old, 0, 0, 0]);
    page.copy_in(at + at::NEW, &[MOV_EAX, new, 0, 0, 0]);
    arm(va);
}

fn put(page: Shared<'static>, entry: usize, va: u64, kind: u32, length: u32) -> usize {
    let at = TABLE + entry * at::BYTES;
    page.store_u64(at + at::VA, va);
    page.store_u32(at + at::KIND, kind);
    page.store_u32(at + at::LENGTH, length);
    at
}

fn arm(va: u64) {
    // SAFETY: the table says what belongs there, and all of it is code of this check.
    let written = unsafe { faults::write_text(va, &[BREAKPOINT]) };
    assert!(written, "the code of this check is in the text");
}

fn expect(
    what: &'static str,
    found: (u32, u32, u32),
    wanted: (u32, u32, u32),
) -> Result<(), &'static str> {
    if found != wanted {
        println!("patch-check: {what}: {found:?} in place of {wanted:?}");
        return Err(what);
    }
    Ok(())
}
