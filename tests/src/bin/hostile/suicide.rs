//! Ways for a domain to die by its own hand. Whoever else runs must not notice.

use super::env::call;
use bulkhead_abi::{
    hypercall::{IRET, SET_TRAP_TABLE, STACK_SWITCH, UPDATE_VA_MAPPING},
    mmu::UVMF_TLB_FLUSH,
};
use core::arch::asm;
use domain_rt::{Shutdown, println, shutdown};

/// Dies as named; an unknown name is a wrong request and ends with `crash`, too.
pub fn die(how: &str) -> ! {
    println!("hostile: dying by {how}");
    match how {
        "null-write" => {
            // SAFETY: address 0 is never mapped: this faults, which is the purpose.
            unsafe { asm!("mov qword ptr [0], 1") }
        }
        "page-table" => {
            // Its own text goes: the next instruction can not be fetched.
            let text = die as *const () as u64;
            for page in [0, 1] {
                let _ = call(UPDATE_VA_MAPPING, [text + page * 4096, 0, UVMF_TLB_FLUSH, 0, 0]);
            }
        }
        "stack-overflow" => {
            overflow(0);
        }
        "double-fault" => {
            let _ = call(SET_TRAP_TABLE, [0; 5]);
            // SAFETY: faults without a handler, which is the purpose.
            unsafe { asm!("ud2") }
        }
        "bad-stack" => {
            let _ = call(STACK_SWITCH, [0xe02b, 0xffff_8300_0000_0000, 0, 0, 0]);
            // SAFETY: the frame of the exception can not be stored at RSP, which is the
            // purpose.
            unsafe {
                asm!("mov rsp, {}", "ud2", in(reg) 0xffff_8300_0000_0000u64, options(noreturn))
            }
        }
        "bad-iret" => {
            // SAFETY: `iret` reads its frame from a stack that is not there, which is the
            // purpose.
            unsafe { asm!("mov rsp, 8", "mov rax, {}", "syscall", const IRET, options(noreturn)) }
        }
        "loop" => loop {
            core::hint::spin_loop();
        },
        "panic" => panic!("as asked"),
        _ => println!("hostile: no such way to die"),
    }
    println!("hostile: still here after {how}");
    shutdown(Shutdown::Poweroff)
}

#[expect(unconditional_recursion, reason = "overflowing the stack is the purpose")]
fn overflow(depth: u64) -> u64 {
    let frame = [depth; 128];
    core::hint::black_box(&frame);
    overflow(depth + 1) + frame[(depth % 128) as usize]
}
