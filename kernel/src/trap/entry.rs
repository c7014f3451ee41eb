//! From ring 3 and back: what arrives is sent to its handler, and on the way out everything
//! that waited for the exit happens: timers, the choice of the next vCPU, upcalls, TLB flushes.

use super::{
    ENTRY_SYSCALL, ENTRY_SYSCALL32, bounce, bounce::Entry, context::Mode, exception, vector,
};
use crate::{
    Core, arch, device,
    domain::{VcpuRef, vcpu::Vcpu},
    event,
    hypercall::{self, Outcome},
    memory::flush::Flush,
    sched,
    state::{Caller, CpuId},
    trace::Event,
};
use bulkhead_abi::{DomId, Ns, vcpu::UserRegs};
use core::ptr::NonNull;

/// What the current vCPU of `cpu` is, as a caller.
fn caller(core: &Core, cpu: CpuId) -> Option<Caller> {
    let current = core.cpus.get(cpu.0)?.current?;
    Some(Caller { cpu, dom: current.dom, vcpu: current.vcpu })
}

/// Handles what brought the current vCPU into ring 0: its registers say it.
pub fn enter(core: &mut Core, cpu: CpuId) {
    core.trace.entries += 1;
    if let Some(state) = core.cpus.get_mut(cpu.0) {
        state.entered_at = arch::tsc();
    }
    let Some(caller) = caller(core, cpu) else {
        return;
    };
    let Some(vcpu) = core.vcpu(caller) else {
        return;
    };
    let (entry, error, rip) = (vcpu.regs().entry_vector, vcpu.regs().error_code, vcpu.regs().rip);
    let mode = vcpu.guest.mode;
    match (entry, u8::try_from(entry)) {
        (ENTRY_SYSCALL, _) if mode == Mode::Kernel => call(core, caller),
        (ENTRY_SYSCALL, _) => exception::system_call(core, caller),
        (ENTRY_SYSCALL32, _) => exception::invalid_syscall(core, caller),
        (_, Ok(number)) if number < vector::FIRST_INTERRUPT => {
            core.trace
                .record(arch::now(), Event::Exception { dom: caller.dom, vector: number, rip });
            exception::handle(core, caller, number, error);
        }
        (_, Ok(number)) => interrupt(core, number),
        _ => {}
    }
}

/// A hypercall: arguments out of the registers, the result back into them.
fn call(core: &mut Core, caller: Caller) {
    let Some(vcpu) = core.vcpu(caller) else {
        return;
    };
    let regs = vcpu.regs();
    let number = regs.rax;
    let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
    core.trace.record(arch::now(), Event::Hypercall { dom: caller.dom, number, first: args[0] });
    let outcome = hypercall::dispatch(core, caller, number, args);
    let Some(vcpu) = core.vcpu_mut(caller) else {
        return;
    };
    finish(vcpu.regs_mut(), number, outcome);
}

/// Puts the outcome of hypercall `number` into the registers.
fn finish(regs: &mut UserRegs, number: u64, outcome: Outcome) {
    match outcome {
        Outcome::Done(result) => regs.rax = result as u64,
        Outcome::Replaced => {}
        Outcome::Again(args) => {
            [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8] = args;
            regs.rax = number;
            // SYSCALL is two bytes, in every guest and in the hypercall page.
            regs.rip = regs.rip.wrapping_sub(2);
        }
    }
}

/// An interrupt of the machine, which may have come from ring 3 or ended an idle wait.
pub fn interrupt(core: &mut Core, number: u8) {
    match number {
        arch::SPURIOUS_VECTOR => return,
        // The exit path looks at the clock.
        arch::TIMER_VECTOR => {}
        arch::FIRST_DEVICE_VECTOR..=arch::LAST_DEVICE_VECTOR => {
            core.trace.record(arch::now(), Event::Interrupt { vector: number });
            let wake = device::irq::interrupt(core, number);
            core.wake(wake);
        }
        _ => {}
    }
    arch::eoi();
}

/// Everything between the handler and ring 3. Gives the registers to go out with; waits here while
/// no vCPU can run.
pub fn leave(core: &mut Core, cpu: CpuId) -> NonNull<UserRegs> {
    loop {
        let now = arch::now();
        sched::timer::expire(core, now);
        let Some(state) = core.cpus.get(cpu.0) else {
            unreachable!("the CPU that runs this exists")
        };
        if state.need_resched || state.current.is_none() {
            reschedule(core, cpu, now);
        }
        let Some(caller) = caller(core, cpu) else {
            idle(core, cpu);
            continue;
        };
        let is_due = core.vcpu(caller).is_some_and(|vcpu| event::upcall_due(core, vcpu));
        if is_due {
            upcall(core, caller);
        }
        if core.cpus.get(cpu.0).is_some_and(|state| state.need_resched) {
            continue;
        }
        if let Some(regs) = load(core, caller) {
            return regs;
        }
    }
}

fn upcall(core: &mut Core, caller: Caller) {
    if let Some(vcpu) = core.vcpu(caller) {
        let callback = vcpu.guest.event;
        bounce::enter_kernel(core, caller, Entry::callback(callback));
    }
}

/// Waits for an interrupt with the core's own tables loaded, and handles it.
fn idle(core: &mut Core, cpu: CpuId) {
    stayed(core, cpu);
    sched::timer::program(core, cpu);
    arch::load_idle_root();
    let number = arch::wait_for_interrupt();
    if let Some(state) = core.cpus.get_mut(cpu.0) {
        state.entered_at = arch::tsc();
    }
    interrupt(core, number);
}

/// Has the scheduler choose, and changes vCPUs if it chose another.
fn reschedule(core: &mut Core, cpu: CpuId, now: Ns) {
    let next = sched::pick(core, cpu, now).next;
    let Some(state) = core.cpus.get_mut(cpu.0) else {
        return;
    };
    let previous = core::mem::replace(&mut state.current, next);
    if previous == next {
        return;
    }
    if let Some(vcpu) = previous.and_then(|who| core.domains.resolve(who)) {
        save(vcpu);
    }
    match next {
        Some(who) => switch_to(core, cpu, who, now),
        None => core.trace.record(now, Event::Idle),
    }
}

/// Takes out of the processor what entry did not save.
fn save(vcpu: &mut Vcpu) {
    let segments = arch::save_segments();
    let regs = &mut vcpu.save.regs;
    (regs.ds, regs.es, regs.fs, regs.gs) = (segments.ds, segments.es, segments.fs, segments.gs);
    let guest = &mut vcpu.guest;
    guest.fs_base = segments.fs_base;
    (guest.gs_base_kernel, guest.gs_base_user) = match guest.mode {
        Mode::Kernel => (segments.gs_base, segments.inactive_gs_base),
        Mode::User => (segments.inactive_gs_base, segments.gs_base),
    };
    arch::save_fpu(&mut guest.fpu);
}

/// Puts a vCPU's state into the processor, registers and root excepted.
fn switch_to(core: &mut Core, cpu: CpuId, who: VcpuRef, now: Ns) {
    core.trace.switches += 1;
    core.trace.record(now, Event::Switch { dom: who.dom, vcpu: who.vcpu });
    sched::entered(core, who);
    let caller = Caller { cpu, dom: who.dom, vcpu: who.vcpu };
    core.reload_tables(cpu);
    load_tables(core, caller);
    let Some(vcpu) = core.vcpu_mut(caller) else {
        return;
    };
    vcpu.save.stack_top = arch::stack_top(cpu);
    arch::load_fpu(&vcpu.guest.fpu, vcpu.guest.xcr0);
    arch::load_debug(&vcpu.guest.debug);
    arch::write_tsc_aux(vcpu.guest.tsc_aux);
    arch::set_serial_access(who.dom == DomId::DOM0);
    let guest = &vcpu.guest;
    let (gs_base, inactive_gs_base) = match guest.mode {
        Mode::Kernel => (guest.gs_base_kernel, guest.gs_base_user),
        Mode::User => (guest.gs_base_user, guest.gs_base_kernel),
    };
    let regs = vcpu.regs();
    let segments = arch::Segments {
        ds: regs.ds,
        es: regs.es,
        fs: regs.fs,
        gs: regs.gs,
        fs_base: guest.fs_base,
        gs_base,
        inactive_gs_base,
    };
    if !arch::load_segments(&segments) {
        // The tables changed under a sleeping vCPU: a selector names nothing any more.
        exception::failsafe(core, caller);
    }
}

/// Shows the processor the vCPU's GDT and LDT, if they changed.
fn load_tables(core: &mut Core, caller: Caller) {
    let Some(state) = core.cpus.get_mut(caller.cpu.0) else {
        return;
    };
    if !core::mem::take(&mut state.reload_tables) {
        return;
    }
    if let Some(vcpu) = core.vcpu(caller) {
        let ldt = &vcpu.guest.ldt;
        arch::load_tables(caller.cpu, &vcpu.guest.gdt, &ldt.frames, ldt.entries);
    }
}

/// The last steps: tables, root, TLB, deadline. `None` if the vCPU turns out not to be able to go.
fn load(core: &mut Core, caller: Caller) -> Option<NonNull<UserRegs>> {
    load_tables(core, caller);
    let late = core.frames.take_flush();
    core.request_flush(caller.cpu, late);
    let flush = core.cpus.get_mut(caller.cpu.0).map(|state| core::mem::take(&mut state.flush));
    let vcpu = core.vcpu(caller)?;
    let root = match vcpu.guest.mode {
        Mode::Kernel => vcpu.roots.kernel,
        Mode::User => vcpu.roots.user,
    };
    let Some(root) = root else {
        exception::crash(core, caller, "it has no page table for the mode it is in");
        return None;
    };
    let flushed = arch::load_root(root);
    match flush.unwrap_or(Flush::All) {
        Flush::None => {}
        Flush::Page(va) if !flushed => arch::flush_page(va.get()),
        Flush::All if !flushed => arch::flush_all(),
        _ => {}
    }
    arch::set_task_switched(vcpu.guest.task_switched);
    sched::timer::program(core, caller.cpu);
    stayed(core, caller.cpu);
    let vcpu = core.vcpu_mut(caller)?;
    Some(NonNull::from(vcpu.regs_mut()))
}

fn stayed(core: &mut Core, cpu: CpuId) {
    let since = core.cpus.get(cpu.0).map_or(0, |state| state.entered_at);
    let span = arch::ns_at(arch::tsc()).get().saturating_sub(arch::ns_at(since).get());
    if since != 0 {
        core.trace.stayed(Ns::new(span));
    }
}

/// The processor refused to return to ring 3 with the current vCPU's registers (`number`, `address`:
/// the exception it took instead). An LDT page may only have to be shown to it; else the guest's
/// failsafe callback gets it.
pub fn return_refused(core: &mut Core, cpu: CpuId, number: u8, address: u64) {
    let Some(caller) = caller(core, cpu) else {
        return;
    };
    if number == vector::PAGE
        && let Some(page) = arch::ldt_window_page(address)
        && super::descriptor::load_ldt_page(core, caller, page)
    {
        return;
    }
    exception::failsafe(core, caller);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_continued_call_is_executed_again_with_its_new_arguments() {
        let mut regs = UserRegs { rip: 0x1002, rax: 1, r9: 9, ..Default::default() };
        finish(&mut regs, 13, Outcome::Again([1, 2, 3, 4, 5]));
        assert_eq!((regs.rip, regs.rax), (0x1000, 13));
        assert_eq!([regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9], [1, 2, 3, 4, 5, 9]);
        finish(&mut regs, 13, Outcome::Done(-14));
        assert_eq!((regs.rip, regs.rax as i64), (0x1000, -14));
    }
}
