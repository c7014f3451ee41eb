//! Hypercalls without judgement: any number, any argument, the bare result.

use alloc::string::String;
use domain_rt::abi::Errno;
use domain_rt::{Shared, event};

/// An address that is never mapped, in the guest's lower half.
pub const UNMAPPED: u64 = 0x0000_7000_0000_0000;
/// An address in the core's hole where nothing is readable.
pub const HOLE: u64 = 0xffff_8300_0000_0000;
/// An address that is not canonical.
pub const NON_CANONICAL: u64 = 0x8000_0000_0000_0000;

/// Issues a hypercall and returns RAX.
pub fn hv(number: u64, args: &[u64]) -> i64 {
    let mut all = [0; 5];
    all[..args.len()].copy_from_slice(args);
    // SAFETY: this program tests the interface. Each case passes pointers to memory it
    // owns or to nothing at all, and changes mappings only of pages set aside for it.
    unsafe { domain_rt::hypercall::raw(number, all) }
}

/// A hypercall `number(cmd, &arg)`.
pub fn op<T>(number: u64, cmd: u64, arg: &mut T) -> i64 {
    hv(number, &[cmd, (&raw mut *arg) as u64])
}

/// RAX in words: a value, or an error by its name.
pub fn rc(rax: i64) -> String {
    match (rax, Errno::from_rax(rax)) {
        (_, Some(errno)) => alloc::format!("-{}", errno.name()),
        (0.., None) => alloc::format!("{rax}"),
        (_, None) => alloc::format!("errno {rax}"),
    }
}

/// Issues a hypercall; result in words.
pub fn said(number: u64, args: &[u64]) -> String {
    rc(hv(number, args))
}

/// The shared-info page.
pub fn shared_info() -> Shared<'static> {
    event::shared_info().expect("mapped before main")
}
