//! From the first instruction to `main`: ELF notes, stack, shared-info page, traps,
//! memory, events, console, in this order.

use crate::boot::Boot;
use spin::Once;

/// Names `fn(&'static Boot)` as the program of this domain. When it returns the
/// domain shuts down with `poweroff`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "Rust" fn __domain_main(boot: &'static $crate::Boot) {
            let main: fn(&'static $crate::Boot) = $main;
            main(boot)
        }
    };
}

/// Linear address of pfn 0 in the initial mapping; `domain.ld` agrees.
pub(crate) const VIRT_BASE: u64 = 0xffff_ffff_8000_0000;

static BOOT: Once<Boot> = Once::new();

/// What the domain was told at its start.
///
/// # Panics
/// Before `main`, which cannot call it.
pub(crate) fn boot() -> &'static Boot {
    BOOT.get().expect("the entry stub sets it before main")
}

#[cfg(target_os = "none")]
mod machine {
    use super::{BOOT, Boot, VIRT_BASE, boot};
    use crate::{Shutdown, console, event, mem, shutdown, time, trap};
    use bulkhead_abi::start_info::StartInfo;

    unsafe extern "Rust" {
        safe fn __domain_main(boot: &'static Boot);
    }

    /// The Rust half of the entry stub.
    ///
    /// `info` is what the builder left in RSI, `stack_top` in RSP.
    unsafe extern "C" fn start(info: *const StartInfo, stack_top: u64) -> ! {
        // SAFETY: reading the time stamp counter has no effect on memory.
        let first_tick = unsafe { core::arch::x86_64::_rdtsc() };
        trap::init();
        // SAFETY: the builder maps the start-info page at RSI; nobody writes it now.
        let decoded = Boot::decode(unsafe { &*info }, VIRT_BASE);
        let facts = BOOT.call_once(|| decoded.expect("start info without its magic"));
        // SAFETY: this is the one start, with the builder's own tables in place.
        unsafe { mem::init(facts, info as u64, stack_top) };
        event::init();
        time::init(first_tick);
        console::init(facts);
        __domain_main(boot());
        shutdown(Shutdown::Poweroff)
    }

    core::arch::global_asm!(
        r#"
        .section .text.start, "ax"
        .global _start
        _start:
            xor ebp, ebp
            cld
            mov rdi, rsi
            mov rsi, rsp
            lea rsp, [rip + __stack_top]
            call {start}
            ud2

        .macro note kind:req, bytes:req
            .align 4
            .long 4, \bytes, \kind
            .asciz "Xen"
        .endm
        .section .note.Xen, "a", @note
            note 1, 8
            .quad _start
            note 3, 8
            .quad {virt_base}
            note 4, 8
            .quad 0
            note 5, 8
            .asciz "xen-3.0"
            note 6, 9
            .asciz "bulkhead"
            note 8, 8
            .asciz "generic"
            note 9, 4
            .asciz "yes"
            note 16, 8
            .quad 1
            .align 4
        .text
        "#,
        start = sym start,
        virt_base = const VIRT_BASE,
    );
}
