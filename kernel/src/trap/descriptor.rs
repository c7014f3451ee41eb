//! Stub.
use crate::state::{Caller, Core};
use bulkhead_abi::{Errno, GuestVa};

pub fn set_ldt(_: &mut Core, _: Caller, _: GuestVa, _: u64) -> Result<(), Errno> {
    Err(Errno::ENOSYS)
}
