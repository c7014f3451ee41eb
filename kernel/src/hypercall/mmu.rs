//! Awaits its room.
use super::Outcome;
use crate::{Core, state::Caller};
use bulkhead_abi::Errno;
pub fn mmu_update(_core: &mut Core, _caller: Caller, _args: [u64; 6]) -> Outcome { Errno::ENOSYS.into() }
pub fn update_va_mapping(_core: &mut Core, _caller: Caller, _args: [u64; 6]) -> Outcome { Errno::ENOSYS.into() }
pub fn update_va_mapping_otherdomain(_core: &mut Core, _caller: Caller, _args: [u64; 6]) -> Outcome { Errno::ENOSYS.into() }
pub fn mmuext_op(_core: &mut Core, _caller: Caller, _args: [u64; 6]) -> Outcome { Errno::ENOSYS.into() }
