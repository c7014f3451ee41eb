//! Awaits its room.
use super::Outcome;
use crate::{Core, state::Caller};
use bulkhead_abi::Errno;
pub fn grant_table_op(_core: &mut Core, _caller: Caller, _args: [u64; 6]) -> Outcome { Errno::ENOSYS.into() }
