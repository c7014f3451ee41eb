//! Hypercalls, one file per family: decode, check, commit. The only place where an
//! error becomes an errno.
//!
//! A handler is `fn(&mut Core, Caller, [u64; 6]) -> Outcome`. It reads its arguments once, refuses
//! before it changes anything, and leaves what is to happen on the way out (a TLB flush, a wake-up)
//! with the core. Long work stops and says [`Outcome::Again`].
#![deny(unsafe_code)]

pub mod console;
pub mod control;
pub mod device;
pub mod event;
pub mod grant;
pub mod memory;
pub mod misc;
pub mod mmu;
pub mod multicall;
pub mod page;
pub mod sched;
pub mod traps;
pub mod vcpu;
pub mod version;

use crate::{Core, state::Caller};
use bulkhead_abi::{Errno, GuestVa, hypercall as nr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// How a hypercall ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Outcome {
    /// RAX gets this.
    Done(i64),
    /// Not finished: the guest re-executes its SYSCALL with these arguments, after
    /// events and the scheduler had their turn.
    Again([u64; 5]),
    /// The registers were replaced (`iret`, or the domain died): leave RAX alone.
    Replaced,
}

impl From<Result<i64, Errno>> for Outcome {
    fn from(result: Result<i64, Errno>) -> Self {
        Self::Done(result.unwrap_or_else(Errno::to_rax))
    }
}

impl From<Result<(), Errno>> for Outcome {
    fn from(result: Result<(), Errno>) -> Self {
        result.map(|()| 0).into()
    }
}

impl From<Errno> for Outcome {
    fn from(error: Errno) -> Self {
        Self::Done(error.to_rax())
    }
}

/// Reads the structure at `at` and does what it asks.
fn carry_out<T: FromBytes>(
    core: &mut Core,
    caller: Caller,
    at: GuestVa,
    op: impl FnOnce(&mut Core, T) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let asked = core.guest(caller).read(at)?;
    op(core, asked)
}

/// Reads the structure at `at`, has the answer filled in, and writes it back.
fn answer<T: FromBytes + IntoBytes + Immutable>(
    core: &mut Core,
    caller: Caller,
    at: GuestVa,
    op: impl FnOnce(&mut Core, &mut T) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut asked = core.guest(caller).read(at)?;
    op(core, &mut asked)?;
    Ok(core.guest(caller).write(at, &asked)?)
}

/// Runs hypercall `number` for `caller`; arguments are RDI, RSI, RDX, R10, R8, R9.
///
/// Errors: `ENOSYS` for numbers that do not exist or are not offered.
pub fn dispatch(core: &mut Core, caller: Caller, number: u64, args: [u64; 6]) -> Outcome {
    let handler: fn(&mut Core, Caller, [u64; 6]) -> Outcome = match number {
        nr::XEN_VERSION => version::xen_version,
        nr::IRET => traps::iret,
        nr::MULTICALL => multicall::multicall,
        nr::STACK_SWITCH => traps::stack_switch,
        nr::SET_SEGMENT_BASE => traps::set_segment_base,
        nr::SET_TRAP_TABLE => traps::set_trap_table,
        nr::SET_GDT => traps::set_gdt,
        nr::SET_CALLBACKS => traps::set_callbacks,
        nr::CALLBACK_OP => traps::callback_op,
        nr::FPU_TASKSWITCH => traps::fpu_taskswitch,
        nr::SET_DEBUGREG => traps::set_debugreg,
        nr::GET_DEBUGREG => traps::get_debugreg,
        nr::UPDATE_DESCRIPTOR => traps::update_descriptor,
        nr::VM_ASSIST => misc::vm_assist,
        nr::PHYSDEV_OP => misc::physdev_op,
        nr::CONSOLE_IO => console::console_io,
        nr::MMU_UPDATE => mmu::mmu_update,
        nr::MMUEXT_OP => mmu::mmuext_op,
        nr::UPDATE_VA_MAPPING => mmu::update_va_mapping,
        nr::UPDATE_VA_MAPPING_OTHERDOMAIN => mmu::update_va_mapping_otherdomain,
        nr::MEMORY_OP => memory::memory_op,
        nr::GRANT_TABLE_OP => grant::grant_table_op,
        nr::EVENT_CHANNEL_OP => event::event_channel_op,
        nr::SCHED_OP => sched::sched_op,
        nr::SCHED_OP_COMPAT => misc::sched_op_compat,
        nr::SET_TIMER_OP => sched::set_timer_op,
        nr::VCPU_OP => vcpu::vcpu_op,
        nr::CONTROL => control::control,
        nr::DEVICE => device::device,
        _ => return Errno::ENOSYS.into(),
    };
    handler(core, caller, args)
}
