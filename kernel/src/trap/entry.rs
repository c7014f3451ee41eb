//! From ring 3 and back: what arrives is sent to its handler, and on the way out everything
//! that waited for the exit happens: timers, the choice of the next vCPU, upcalls, TLB flushes.

use super::{
    ENTRY_SYSCALL, ENTRY_SYSCALL32,
    bounce::{self, Entry},
    context::Mode,
    descriptor::load_ldt_page,
    exception, vector,
};
use crate::{
    Core, arch, device,
    domain::VcpuRef,
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
    let current = core.cpus[cpu.0].current?;
    Some(Caller { cpu, dom: current.dom, vcpu: current.vcpu })
}

/// Handles what brought the current vCPU into ring 0: its registers say it.
pub fn enter(core: &mut Core, cpu: CpuId) {
    core.trace.entries += 1;
    let at = arch::tsc();
    core.cpu(cpu).entered_at = at;
    if let Some(caller) = caller(core, cpu) {
        arrive(core, caller, at);
    }
}

fn arrive(core: &mut Core, caller: Caller, at: u64) -> Option<()> {
    let vcpu = core.vcpu(caller)?;
    let UserRegs { entry_vector, error_code, rip, .. } = *vcpu.regs();
    match (entry_vector, vcpu.guest.mode) {
        (ENTRY_SYSCALL, Mode::Kernel) => call(core, caller, at),
        (ENTRY_SYSCALL, Mode::User) => exception::system_call(core, caller),
        (ENTRY_SYSCALL32, _) => exception::invalid_syscall(core, caller),
        _ => {
            let number = u8::try_from(entry_vector).ok()?;
            if number >= vector::FIRST_INTERRUPT {
                interrupt(core, number);
                return Some(());
            }
            let event = Event::Exception { dom: caller.dom, vector: number, rip };
            core.trace.record(at, event);
            exception::handle(core, caller, number, error_code)
        }
    }
}

/// A hypercall: arguments out of the registers, the result back into them.
fn call(core: &mut Core, caller: Caller, at: u64) -> Option<()> {
    let regs = core.vcpu(caller)?.regs();
    let number = regs.rax;
    let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
    core.trace.record(at, Event::Hypercall { dom: caller.dom, number, first: args[0] });
    let outcome = hypercall::dispatch(core, caller, number, args);
    let is_over = matches!(outcome, Outcome::Done(_));
    finish(core.vcpu_mut(caller)?.regs_mut(), number, outcome);
    // SYSCALL masks TF: the processor reports no step for it.
    if is_over { exception::stepped(core, caller) } else { Some(()) }
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
            core.trace.record(arch::tsc(), Event::Interrupt { vector: number });
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
        sched::timer::expire(core, cpu, now);
        let state = core.cpu(cpu);
        if state.need_resched || state.current.is_none() {
            reschedule(core, cpu, now);
        }
        let Some(caller) = caller(core, cpu) else {
            idle(core, cpu);
            continue;
        };
        if let Some(vcpu) = core.vcpu(caller)
            && event::upcall_due(core, vcpu)
        {
            let entry = Entry::callback(vcpu.guest.event);
            bounce::enter_kernel(core, caller, entry);
        }
        if !core.cpu(cpu).need_resched
            && let Some(regs) = load(core, caller)
        {
            return regs;
        }
    }
}

/// Waits for an interrupt with the core's own tables loaded, and handles it.
fn idle(core: &mut Core, cpu: CpuId) {
    stayed(core, cpu);
    sched::timer::program(core, cpu);
    arch::load_idle_root();
    let number = arch::wait_for_interrupt();
    core.cpu(cpu).entered_at = arch::tsc();
    interrupt(core, number);
}

/// Has the scheduler choose, and changes vCPUs if it chose another.
fn reschedule(core: &mut Core, cpu: CpuId, now: Ns) {
    let next = sched::pick(core, cpu, now).next;
    let previous = core::mem::replace(&mut core.cpu(cpu).current, next);
    if previous == next {
        return;
    }
    if let Some(vcpu) = previous.and_then(|who| core.domains.resolve(who)) {
        let guest = &mut vcpu.guest;
        guest.bases = guest.mode.order(arch::save_segments(&mut vcpu.save.regs));
        arch::save_fpu(&mut guest.fpu);
    }
    match next {
        Some(who) => switch_to(core, cpu, who),
        None => core.trace.record(arch::tsc(), Event::Idle),
    }
}

/// Puts a vCPU's state into the processor, registers and root excepted.
fn switch_to(core: &mut Core, cpu: CpuId, who: VcpuRef) {
    core.trace.switches += 1;
    core.trace.record(arch::tsc(), Event::Switch { dom: who.dom, vcpu: who.vcpu });
    sched::entered(core, who);
    let caller = Caller { cpu, dom: who.dom, vcpu: who.vcpu };
    core.cpu(cpu).reload_tables = true;
    load_tables(core, caller);
    let Some(vcpu) = core.vcpu_mut(caller) else {
        return;
    };
    vcpu.save.stack_top = arch::stack_top(cpu);
    let guest = &vcpu.guest;
    arch::load_fpu(&guest.fpu, guest.xcr0);
    arch::load_debug(&guest.debug);
    arch::write_tsc_aux(guest.tsc_aux);
    arch::set_serial_access(cpu, who.dom == DomId::DOM0);
    if !arch::load_segments(vcpu.regs(), guest.mode.order(guest.bases)) {
        // The tables changed under a sleeping vCPU: a selector names nothing any more.
        exception::failsafe(core, caller);
    }
}

/// Shows the processor the vCPU's GDT and LDT, if they changed.
fn load_tables(core: &mut Core, caller: Caller) {
    if core::mem::take(&mut core.cpu(caller.cpu).reload_tables)
        && let Some(vcpu) = core.vcpu(caller)
    {
        let ldt = &vcpu.guest.ldt;
        arch::load_tables(caller.cpu, &vcpu.guest.gdt, &ldt.frames, ldt.entries);
    }
}

/// The last steps: tables, root, TLB, deadline. `None` if the vCPU turns out not to be able to go.
fn load(core: &mut Core, caller: Caller) -> Option<NonNull<UserRegs>> {
    load_tables(core, caller);
    let late = core.frames.take_flush();
    core.request_flush(caller.cpu, late);
    let flush = core::mem::take(&mut core.cpu(caller.cpu).flush);
    let vcpu = core.vcpu(caller)?;
    let Some(root) = vcpu.root() else {
        exception::crash(core, caller, "it has no page table for the mode it is in");
        return None;
    };
    match (arch::load_root(root), flush) {
        (false, Flush::Page(va)) => arch::flush_page(va.get()),
        (false, Flush::All) => arch::flush_all(),
        // A root that is new to the processor has emptied the TLB.
        (true, _) | (false, Flush::None) => {}
    }
    arch::set_task_switched(vcpu.guest.task_switched);
    sched::timer::program(core, caller.cpu);
    stayed(core, caller.cpu);
    Some(NonNull::from(core.vcpu_mut(caller)?.regs_mut()))
}

fn stayed(core: &mut Core, cpu: CpuId) {
    let since = core.cpu(cpu).entered_at;
    if since != 0 {
        core.trace.longest_stay = core.trace.longest_stay.max(arch::tsc().saturating_sub(since));
    }
}

/// The processor refused to return to ring 3 with the current vCPU's registers (`number`, `address`:
/// the exception it took instead). An LDT page may only have to be shown to it; else the guest's
/// failsafe callback gets it.
pub fn return_refused(core: &mut Core, cpu: CpuId, number: u8, address: u64) {
    if let Some(caller) = caller(core, cpu)
        && !(number == vector::PAGE && load_ldt_page(core, caller, address).is_some())
    {
        exception::failsafe(core, caller);
    }
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
