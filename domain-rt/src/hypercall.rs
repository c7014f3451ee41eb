//! Hypercalls, typed. The only place that executes `syscall`.
//!
//! A call that could take memory from under this program's feet is `unsafe`; the
//! safe roads to the same ends are [`crate::mem`] and [`crate::grant`].

use bulkhead_abi::errno::Errno;
use bulkhead_abi::hypercall as nr;
use bulkhead_abi::memory::{self, MemoryReservation};
use bulkhead_abi::mmu::{MmuUpdate, MmuextOp};
use bulkhead_abi::{DomId, Ns, VcpuId, event, sched, trap, vcpu};
use zerocopy::{FromBytes, IntoBytes};

/// Result of a call: what RAX held, or the error it named.
pub type Result<T = u64> = core::result::Result<T, Errno>;

/// Issues hypercall `number` and returns RAX as it is.
///
/// # Safety
/// The arguments must meet the contract of that call: pointers valid for what the
/// other side reads and writes, and no memory that Rust believes to be its own may
/// be unmapped, remapped or given away.
#[inline(always)] // The handler of armed faults may call nothing.
pub unsafe fn raw(number: u64, args: [u64; 5]) -> i64 {
    let result: i64;
    // SAFETY: the caller vouches for the arguments; RCX and R11 are declared lost,
    // all else is preserved (abi-notes of the call interface: xen.h).
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as i64 => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result
}

/// Issues hypercall `number`.
///
/// # Safety
/// As for [`raw`].
#[inline]
pub unsafe fn call(number: u64, args: [u64; 5]) -> Result {
    // SAFETY: the caller's contract is the same.
    let rax = unsafe { raw(number, args) };
    if (-4095..0).contains(&rax) {
        // An errno that is not in our table is still a failure.
        Err(Errno::from_rax(rax).unwrap_or(Errno::EIO))
    } else {
        Ok(rax as u64)
    }
}

/// A call whose one argument structure is read and written by the other side.
pub(crate) fn with_struct<T: FromBytes + IntoBytes>(number: u64, cmd: u64, arg: &mut T) -> Result {
    let at = (&raw mut *arg) as u64;
    // SAFETY: `arg` is exclusively borrowed for the call and any bytes are a valid
    // `T`; callers in this crate pass the structure that belongs to `cmd`.
    unsafe { call(number, [cmd, at, 0, 0, 0]) }
}

/// `event_channel_op`; `T` is the structure that `cmd` takes.
pub(crate) fn event_channel_op<T: FromBytes + IntoBytes>(cmd: u64, arg: &mut T) -> Result {
    with_struct(nr::EVENT_CHANNEL_OP, cmd, arg)
}

/// `grant_table_op` over a batch; each element carries its own status.
pub(crate) fn grant_table_op<T: FromBytes + IntoBytes>(cmd: u64, ops: &mut [T]) -> Result {
    let args = [cmd, ops.as_mut_ptr() as u64, ops.len() as u64, 0, 0];
    // SAFETY: the slice is exclusively borrowed; what the elements map or unmap was
    // chosen by `crate::grant`, which owns those addresses.
    unsafe { call(nr::GRANT_TABLE_OP, args) }
}

/// Performs page-table updates for `domain` (as the owner of the frames mapped).
/// Returns how many were done when it fails.
///
/// # Safety
/// Must not change how memory that Rust uses is mapped.
pub unsafe fn mmu_update(
    updates: &[MmuUpdate],
    domain: DomId,
) -> core::result::Result<(), (usize, Errno)> {
    let mut done = 0u32;
    let args = [
        updates.as_ptr() as u64,
        updates.len() as u64,
        (&raw mut done) as u64,
        domain.get().into(),
        0,
    ];
    // SAFETY: the slice and `done` live through the call; the caller vouches for
    // the effects.
    unsafe { call(nr::MMU_UPDATE, args) }.map(drop).map_err(|e| (done as usize, e))
}

/// Performs extended memory operations for `domain`.
///
/// # Safety
/// Must not change how memory that Rust uses is mapped.
pub unsafe fn mmuext_op(ops: &[MmuextOp], domain: DomId) -> Result<()> {
    let args = [ops.as_ptr() as u64, ops.len() as u64, 0, domain.get().into(), 0];
    // SAFETY: the slice lives through the call; the caller vouches for the effects.
    unsafe { call(nr::MMUEXT_OP, args) }.map(drop)
}

/// Replaces the entry that maps `va`.
///
/// # Safety
/// Nothing that Rust uses may live at `va`, before or after.
pub unsafe fn update_va_mapping(va: u64, pte: u64, flags: u64) -> Result<()> {
    // SAFETY: the caller vouches for the effects.
    unsafe { call(nr::UPDATE_VA_MAPPING, [va, pte, flags, 0, 0]) }.map(drop)
}

/// `memory_op` with the structure that `cmd` takes.
///
/// # Safety
/// `arg` must be what `cmd` takes; frames given away must not be in use.
pub unsafe fn memory_op<T: FromBytes + IntoBytes>(cmd: u64, arg: &mut T) -> Result {
    with_struct(nr::MEMORY_OP, cmd, arg)
}

/// Gives `domain` extents of `1 << order` frames. `frames` holds the pfn where each
/// extent goes and, for those done, the mfn it got afterwards. Returns extents done.
///
/// # Errors
/// What the core says; a short count is not an error. For another domain than the
/// caller only where the caller controls it.
pub fn populate_physmap(domain: DomId, order: u32, frames: &mut [u64]) -> Result<usize> {
    let mut arg = MemoryReservation {
        extent_start: frames.as_mut_ptr() as u64,
        nr_extents: frames.len() as u64,
        extent_order: order,
        mem_flags: 0,
        domid: domain.get(),
        ..Default::default()
    };
    // SAFETY: the array outlives the call; new frames take memory from nobody.
    unsafe { memory_op(memory::XENMEM_POPULATE_PHYSMAP, &mut arg) }.map(|n| n as usize)
}

/// Pins frame `mfn` of `domain`, another domain, as a page table of `level` 1..=4.
///
/// # Errors
/// `EINVAL` where the table does not validate.
pub fn pin_foreign(domain: DomId, level: u32, mfn: bulkhead_abi::Mfn) -> Result<()> {
    assert!(domain != DomId::SELF && (1..=4).contains(&level));
    let op = MmuextOp { cmd: level - 1, arg1: mfn.get(), ..Default::default() };
    // SAFETY: another domain's tables map nothing of ours.
    unsafe { mmuext_op(&[op], domain) }
}

/// Writes "frame `mfn` is pfn `pfn` of `domain`" into the machine-to-phys table.
///
/// # Errors
/// The index reached and what the core said.
pub fn machphys_update(
    domain: DomId,
    entries: &[(bulkhead_abi::Mfn, bulkhead_abi::Pfn)],
) -> core::result::Result<(), (usize, Errno)> {
    let mut done = 0;
    for batch in entries.chunks(64) {
        let mut updates = [MmuUpdate::default(); 64];
        for (update, (mfn, pfn)) in updates.iter_mut().zip(batch) {
            update.ptr = mfn.maddr().get() | bulkhead_abi::mmu::MMU_MACHPHYS_UPDATE;
            update.val = pfn.get();
        }
        // SAFETY: the table only informs; no mapping changes.
        unsafe { mmu_update(&updates[..batch.len()], domain) }.map_err(|(n, e)| (done + n, e))?;
        done += batch.len();
    }
    Ok(())
}

/// Lets others run; events stay as they are.
pub fn yield_now() {
    // SAFETY: no pointer is passed.
    let _ = unsafe { call(nr::SCHED_OP, [sched::SCHEDOP_YIELD, 0, 0, 0, 0]) };
}

/// Unmasks events and sleeps until one is pending. Only the executor calls it.
pub(crate) fn block() {
    // SAFETY: no pointer is passed.
    let _ = unsafe { call(nr::SCHED_OP, [sched::SCHEDOP_BLOCK, 0, 0, 0, 0]) };
}

/// Ends the domain with `SHUTDOWN_*`.
pub fn shutdown(reason: u32) -> ! {
    let mut reason = reason;
    loop {
        let _ = with_struct(nr::SCHED_OP, sched::SCHEDOP_SHUTDOWN, &mut reason);
    }
}

/// Raises the one-shot timer at system time `at`; replaces an earlier deadline.
pub(crate) fn set_timer(at: Ns) -> Result<()> {
    let arg = vcpu::SetSingleshotTimer { timeout_abs_ns: at.get(), ..Default::default() };
    let single =
        vcpu_op(vcpu::VCPUOP_SET_SINGLESHOT_TIMER, VcpuId::new(0), (&raw const arg) as u64);
    match single {
        // SAFETY: no pointer is passed.
        Err(Errno::ENOSYS) => unsafe { call(nr::SET_TIMER_OP, [at.get(), 0, 0, 0, 0]) }.map(drop),
        other => other.map(drop),
    }
}

/// `vcpu_op` with a raw argument.
pub(crate) fn vcpu_op(cmd: u64, vcpu: VcpuId, arg: u64) -> Result {
    // SAFETY: callers in this crate pass 0 or the address of what `cmd` reads.
    unsafe { call(nr::VCPU_OP, [cmd, vcpu.get().into(), arg, 0, 0]) }
}

/// Writes to the core's debug console.
///
/// # Errors
/// `EPERM` where the core does not let this domain.
pub fn console_write(text: &[u8]) -> Result<()> {
    let args =
        [bulkhead_abi::physdev::CONSOLEIO_WRITE, text.len() as u64, text.as_ptr() as u64, 0, 0];
    // SAFETY: the text is only read.
    unsafe { call(nr::CONSOLE_IO, args) }.map(drop)
}

/// Signals the other end of `port`.
pub(crate) fn send(port: bulkhead_abi::Port) -> Result<()> {
    let mut arg = event::PortOp { port: port.get() };
    event_channel_op(event::EVTCHNOP_SEND, &mut arg).map(drop)
}

/// Registers the entry of callback `kind`.
pub(crate) fn register_callback(kind: u16, address: u64) -> Result<()> {
    let mut arg = trap::CallbackRegister {
        kind,
        flags: trap::CALLBACKF_MASK_EVENTS,
        address,
        ..Default::default()
    };
    with_struct(nr::CALLBACK_OP, trap::CALLBACKOP_REGISTER, &mut arg).map(drop)
}
