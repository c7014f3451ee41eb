//! Traps of a guest on plain memory: what is pushed, what is refused, what ends a domain.

use super::{ENTRY_SYSCALL, bounce, context, context::Mode, emulate, entry, exception, vector};
use crate::{
    Core, arch,
    domain::Life,
    event,
    fixture::{self, get, page, put},
    hypercall::{Outcome, dispatch},
    state::Caller,
};
use bulkhead_abi::{
    Errno, GuestVa, hypercall as nr,
    hypercall::MulticallEntry,
    sched::SHUTDOWN_CRASH,
    trap::{CallbackRegister, IretContext, TrapInfo},
    vcpu::{UserRegs, VcpuGuestContext},
};
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use zerocopy::FromZeros;

const HANDLER: u64 = 0x5000;
const STACK: u64 = page(8);

fn machine() -> (Core, Caller) {
    let mut core = fixture::core();
    let caller = fixture::domain(&mut core, 1, 1);
    core.cpus[0].current = Some(crate::domain::VcpuRef {
        dom: caller.dom,
        vcpu: caller.vcpu,
        incarnation: core.domains.get(caller.dom).unwrap().incarnation,
    });
    let vcpu = core.vcpu_mut(caller).unwrap();
    *vcpu.regs_mut() = UserRegs {
        rip: 0x1000,
        cs: 0xe033,
        ss: 0xe02b,
        rsp: STACK - 3,
        rflags: 0x302,
        rcx: 0xc,
        r11: 0xb,
        ..Default::default()
    };
    vcpu.guest.kernel_sp = STACK - 64;
    let root = vcpu.roots.kernel.unwrap();
    vcpu.roots.user = Some(root);
    crate::memory::update::get_root(&mut core, caller.dom, root).unwrap();
    event::set_upcall_mask(&core, core.vcpu(caller).unwrap(), false);
    (core, caller)
}

fn set_trap(core: &mut Core, caller: Caller, number: u8, flags: u8) {
    let trap = TrapInfo { vector: number, flags, cs: 0xe033, _pad: 0, address: HANDLER };
    core.vcpu_mut(caller).unwrap().guest.traps[usize::from(number)] = trap;
}

fn call(core: &mut Core, caller: Caller, number: u64, args: [u64; 3]) -> Outcome {
    let [a, b, c] = args;
    dispatch(core, caller, number, [a, b, c, 0, 0, 0])
}

fn is_crashed(core: &Core, caller: Caller) -> bool {
    core.domains.get(caller.dom).unwrap().life == Life::Shutdown(SHUTDOWN_CRASH)
}

fn words<const N: usize>(core: &Core, caller: Caller, at: u64) -> [u64; N] {
    core::array::from_fn(|n| get(core, caller, at + 8 * n as u64))
}

#[test]
fn an_exception_of_the_kernel_pushes_its_frame_below_the_aligned_stack() {
    let (mut core, caller) = machine();
    set_trap(&mut core, caller, vector::PROTECTION, 0);
    exception::inject(&mut core, caller, vector::PROTECTION, Some(0x10));
    let regs = *core.vcpu(caller).unwrap().regs();
    assert_eq!(regs.rsp, STACK - 16 - 64);
    // RPL cleared, IF set because events are not masked, TF kept in the frame and off in the handler.
    let want = [0xc, 0xb, 0x10, 0x1000, 0xe030, 0x302, STACK - 3, 0xe02b];
    assert_eq!(words::<8>(&core, caller, regs.rsp), want);
    assert_eq!((regs.rip, regs.cs, regs.ss, regs.rflags), (HANDLER, 0xe033, 0xe02b, 0x202));
    assert!(!event::is_upcall_masked(&core, core.vcpu(caller).unwrap()));
}

#[test]
fn a_hypercall_under_the_trap_flag_is_done_and_then_a_step() {
    let (mut core, caller) = machine();
    set_trap(&mut core, caller, vector::DEBUG, 0);
    let regs = core.vcpu_mut(caller).unwrap().regs_mut();
    (regs.entry_vector, regs.rax, regs.rip) = (ENTRY_SYSCALL, nr::XEN_VERSION, 0x1002);
    entry::enter(&mut core, caller.cpu);
    let vcpu = core.vcpu(caller).unwrap();
    let regs = *vcpu.regs();
    assert_eq!((regs.rip, regs.rax, regs.rflags & 1 << 8), (HANDLER, 4 << 16 | 17, 0));
    assert_eq!(words::<5>(&core, caller, regs.rsp)[2..], [0x1002, 0xe030, 0x302]);
    assert_eq!(vcpu.guest.debug[6] >> 14 & 1, 1);
}

#[test]
fn a_hypercall_without_the_trap_flag_goes_on_behind_itself() {
    let (mut core, caller) = machine();
    let regs = core.vcpu_mut(caller).unwrap().regs_mut();
    (regs.entry_vector, regs.rax, regs.rip) = (ENTRY_SYSCALL, nr::XEN_VERSION, 0x1002);
    regs.rflags = 0x202;
    entry::enter(&mut core, caller.cpu);
    assert_eq!(core.vcpu(caller).unwrap().regs().rip, 0x1002);
    assert!(!is_crashed(&core, caller));
}

#[test]
fn a_trap_from_user_mode_uses_the_kernel_stack_and_masks_events_if_asked() {
    let (mut core, caller) = machine();
    set_trap(&mut core, caller, vector::INVALID_OPCODE, 4);
    bounce::set_mode(core.vcpu_mut(caller).unwrap(), Mode::User);
    exception::inject(&mut core, caller, vector::INVALID_OPCODE, None);
    let vcpu = core.vcpu(caller).unwrap();
    assert_eq!((vcpu.guest.mode, vcpu.regs().rsp), (Mode::Kernel, STACK - 64 - 56));
    assert_eq!(words::<5>(&core, caller, STACK - 120)[3..], [0xe033, 0x302]);
    assert!(event::is_upcall_masked(&core, vcpu));
}

#[test]
fn a_masked_kernel_shows_its_mask_and_no_interrupt_flag() {
    let (mut core, caller) = machine();
    event::set_upcall_mask(&core, core.vcpu(caller).unwrap(), true);
    set_trap(&mut core, caller, vector::BREAKPOINT, 0);
    exception::inject(&mut core, caller, vector::BREAKPOINT, None);
    let rsp = core.vcpu(caller).unwrap().regs().rsp;
    assert_eq!(words::<5>(&core, caller, rsp)[3..], [0xe030 | 1 << 32, 0x102]);
}

#[test]
fn a_domain_without_handler_or_stack_is_ended() {
    let (mut core, caller) = machine();
    exception::inject(&mut core, caller, vector::INVALID_OPCODE, None);
    assert!(is_crashed(&core, caller));
    for stack in [0xffff_8000_0000_1000, 0, 0x7000_0000_0000, fixture::HOLE + 64] {
        let (mut core, caller) = machine();
        set_trap(&mut core, caller, vector::INVALID_OPCODE, 0);
        core.vcpu_mut(caller).unwrap().regs_mut().rsp = stack;
        exception::inject(&mut core, caller, vector::INVALID_OPCODE, None);
        assert!(is_crashed(&core, caller), "{stack:#x}");
    }
}

#[test]
fn iret_loads_the_frame_and_switches_to_user_mode() {
    let (mut core, caller) = machine();
    let frame = IretContext {
        rax: 1,
        r11: 2,
        rcx: 3,
        flags: 0,
        rip: 0x4000,
        cs: 0x33,
        rflags: 3 << 12 | 1,
        rsp: 0x9000,
        ss: 0x2b,
    };
    put(&core, caller, page(2), &frame);
    core.vcpu_mut(caller).unwrap().regs_mut().rsp = page(2);
    assert_eq!(call(&mut core, caller, nr::IRET, [0; 3]), Outcome::Replaced);
    let vcpu = core.vcpu(caller).unwrap();
    let regs = vcpu.regs();
    assert_eq!(vcpu.guest.mode, Mode::User);
    assert_eq!((regs.rax, regs.r11, regs.rcx, regs.rip, regs.rsp), (1, 2, 3, 0x4000, 0x9000));
    // No I/O privilege, interrupts on in the processor; masked by the flag that was clear.
    assert_eq!((regs.cs, regs.ss, regs.rflags), (0x33, 0x2b, 0x203));
    assert!(event::is_upcall_masked(&core, vcpu));
}

#[test]
fn iret_without_frame_or_user_table_ends_the_domain() {
    let (mut core, caller) = machine();
    core.vcpu_mut(caller).unwrap().regs_mut().rsp = fixture::HOLE;
    assert_eq!(call(&mut core, caller, nr::IRET, [0; 3]), Outcome::Replaced);
    assert!(is_crashed(&core, caller));

    let (mut core, caller) = machine();
    put(&core, caller, page(2), &IretContext { cs: 3, ..Default::default() });
    let vcpu = core.vcpu_mut(caller).unwrap();
    vcpu.regs_mut().rsp = page(2);
    vcpu.roots.user = None;
    assert_eq!(call(&mut core, caller, nr::IRET, [0; 3]), Outcome::Replaced);
    assert!(is_crashed(&core, caller));
}

#[test]
fn forced_cpuid_and_msr_writes_are_done_for_the_kernel() {
    let (mut core, caller) = machine();
    put(&core, caller, 0x1000, &[0x0fu8, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2]);
    core.vcpu_mut(caller).unwrap().regs_mut().rax = 0x4000_0000;
    assert!(emulate::forced(&mut core, caller).is_some());
    let regs = *core.vcpu(caller).unwrap().regs();
    assert_eq!((regs.rbx, regs.rip), (0x566e_6558, 0x1007));
    assert!(emulate::forced(&mut core, caller).is_none());

    put(&core, caller, 0x1007, &[0x0fu8, 0x30]);
    let regs = core.vcpu_mut(caller).unwrap().regs_mut();
    (regs.rcx, regs.rax, regs.rdx) = (0xc000_0101, 0x1234, 0);
    assert!(emulate::privileged(&mut core, caller).is_some());
    assert_eq!(
        (arch::read_base(arch::Base::Gs), core.vcpu(caller).unwrap().regs().rip),
        (0x1234, 0x1009)
    );
}

#[test]
fn a_base_that_is_not_canonical_is_the_guests_fault() {
    let (mut core, caller) = machine();
    set_trap(&mut core, caller, vector::PROTECTION, 0);
    put(&core, caller, 0x1000, &[0x0fu8, 0x30]);
    let regs = core.vcpu_mut(caller).unwrap().regs_mut();
    (regs.rcx, regs.rax, regs.rdx) = (0xc000_0101, 0, 0x8000_0000);
    exception::handle(&mut core, caller, vector::PROTECTION, 0);
    assert_eq!(core.vcpu(caller).unwrap().regs().rip, HANDLER);
    let refused = call(&mut core, caller, nr::SET_SEGMENT_BASE, [0, 1 << 63, 0]);
    assert_eq!(refused, Errno::EINVAL.into());
}

#[test]
fn a_port_reads_as_absent_once_the_level_allows_it() {
    let (mut core, caller) = machine();
    put(&core, caller, 0x1000, &[0xe4u8, 0x60, 0xe4, 0x42]);
    assert!(emulate::privileged(&mut core, caller).is_none());
    core.vcpu_mut(caller).unwrap().guest.iopl = 1;
    assert!(emulate::privileged(&mut core, caller).is_some());
    assert_eq!(core.vcpu(caller).unwrap().regs().rax, 0xff);
    assert!(emulate::privileged(&mut core, caller).is_some());
    assert_eq!(core.vcpu(caller).unwrap().regs().rax, 0);
}

#[test]
fn a_page_fault_of_the_kernel_is_bounced_without_the_user_bit() {
    let (mut core, caller) = machine();
    set_trap(&mut core, caller, vector::PAGE, 0);
    arch::fake::set_fault_address(0x12_3456);
    exception::handle(&mut core, caller, vector::PAGE, 6);
    let rsp = core.vcpu(caller).unwrap().regs().rsp;
    assert_eq!(words::<3>(&core, caller, rsp)[2], 2);
    assert_eq!(bounce::fault_address(&core, caller), 0x12_3456);
}

#[test]
fn a_fault_that_the_tables_do_not_explain_is_retried_once() {
    let (mut core, caller) = machine();
    set_trap(&mut core, caller, vector::PAGE, 0);
    arch::fake::set_fault_address(page(3));
    exception::handle(&mut core, caller, vector::PAGE, 7);
    assert_eq!(core.vcpu(caller).unwrap().regs().rip, 0x1000);
    exception::handle(&mut core, caller, vector::PAGE, 7);
    assert_eq!(core.vcpu(caller).unwrap().regs().rip, HANDLER);
}

#[test]
fn a_system_call_without_callback_is_an_invalid_opcode() {
    let (mut core, caller) = machine();
    set_trap(&mut core, caller, vector::INVALID_OPCODE, 0);
    bounce::set_mode(core.vcpu_mut(caller).unwrap(), Mode::User);
    exception::system_call(&mut core, caller);
    let rsp = core.vcpu(caller).unwrap().regs().rsp;
    assert_eq!(words::<3>(&core, caller, rsp)[2], 0xffe);
}

#[test]
fn an_event_is_delivered_on_the_way_out_and_masks() {
    let (mut core, caller) = machine();
    core.vcpu_mut(caller).unwrap().guest.event =
        context::Callback { address: HANDLER, mask_events: true };
    event::mark_everything(core.frames.mem(), core.vcpu(caller).unwrap());
    let regs = core.vcpu_mut(caller).unwrap().regs_mut();
    (regs.entry_vector, regs.rax, regs.rflags) = (ENTRY_SYSCALL, nr::XEN_VERSION, 0x202);
    entry::enter(&mut core, caller.cpu);
    entry::leave(&mut core, caller.cpu);
    let vcpu = core.vcpu(caller).unwrap();
    assert_eq!(vcpu.regs().rip, HANDLER);
    assert!(event::is_upcall_masked(&core, vcpu));
    assert_eq!(arch::fake::loaded_root(), vcpu.roots.kernel);
}

#[test]
fn a_batch_goes_on_after_errors_and_does_not_nest() {
    let (mut core, caller) = machine();
    let entry = |op, arg| MulticallEntry { op, args: [arg, 0, 0, 0, 0, 0], ..Default::default() };
    let calls = [
        entry(nr::XEN_VERSION, 7),
        entry(99, 0),
        entry(nr::MULTICALL, 0),
        entry(nr::XEN_VERSION, 0),
    ];
    put(&core, caller, page(4), &calls);
    assert_eq!(call(&mut core, caller, nr::MULTICALL, [page(4), 4, 0]), Outcome::Done(0));
    let results = calls
        .iter()
        .enumerate()
        .map(|(n, _)| get::<MulticallEntry>(&core, caller, page(4) + 64 * n as u64).result as i64);
    assert!(results.eq([4096, -38, -22, (4 << 16) | 17]));
    assert_eq!(call(&mut core, caller, nr::MULTICALL, [fixture::HOLE, 1, 0]), Errno::EFAULT.into());
}

#[test]
fn a_long_batch_stops_for_others_and_goes_on() {
    let (mut core, caller) = machine();
    let entry = MulticallEntry { op: nr::XEN_VERSION, ..Default::default() };
    put(&core, caller, page(4), &[entry; 100]);
    let Outcome::Again([at, left, ..]) = call(&mut core, caller, nr::MULTICALL, [page(4), 100, 0])
    else {
        panic!("a hundred calls are more than one stay")
    };
    assert_eq!(at - page(4), 64 * (100 - left));
    assert_eq!(call(&mut core, caller, nr::MULTICALL, [at, left, 0]), Outcome::Done(0));
}

#[test]
fn tables_and_callbacks_in_the_hole_are_refused() {
    let (mut core, caller) = machine();
    let hole = 0xffff_8000_0000_0000;
    put(&core, caller, page(2), &TrapInfo { vector: 3, flags: 0, cs: 0, _pad: 0, address: hole });
    assert_eq!(call(&mut core, caller, nr::SET_TRAP_TABLE, [page(2), 0, 0]), Errno::EINVAL.into());
    put(&core, caller, page(2), &CallbackRegister { kind: 0, flags: 0, _pad: 0, address: hole });
    assert_eq!(call(&mut core, caller, nr::CALLBACK_OP, [0, page(2), 0]), Errno::EINVAL.into());
    assert_eq!(call(&mut core, caller, nr::SET_CALLBACKS, [0, hole, 0]), Errno::EINVAL.into());
    assert_eq!(call(&mut core, caller, nr::SET_TRAP_TABLE, [hole, 0, 0]), Errno::EFAULT.into());
}

#[test]
fn a_gdt_holds_its_frame_until_it_is_replaced() {
    let (mut core, caller) = machine();
    let frame = fixture::frame_at(&core, caller, page(5));
    put(&core, caller, page(6), &frame.get());
    let set = |core: &mut Core, entries| call(core, caller, nr::SET_GDT, [page(6), entries, 0]);
    assert_eq!(set(&mut core, 16), Errno::EINVAL.into(), "it is mapped writable");
    assert_eq!(set(&mut core, 7169), Errno::EINVAL.into());
    assert_eq!(set(&mut core, 0), Outcome::Done(0));

    let spare = core.frames.alloc_domain(caller.dom, 0).unwrap();
    let at = spare.maddr();
    core.frames.mem().write_u64(at, 0x00af_9b00_0000_ffff);
    put(&core, caller, page(6), &spare.get());
    assert_eq!(set(&mut core, 16), Outcome::Done(0));
    assert_eq!(core.frames.mem().read_u64(at), 0x00af_fb00_0000_ffff);
    assert!(core.frames.get_writable(spare, caller.dom).is_err());
    let update = |core: &mut Core, value| {
        call(core, caller, nr::UPDATE_DESCRIPTOR, [at.get() + 8, value, 0])
    };
    assert_eq!(update(&mut core, 0x0000_8900_0000_0067), Errno::EINVAL.into(), "a task state");
    assert_eq!(update(&mut core, 0x00cf_9300_0000_ffff), Outcome::Done(0));
    assert_eq!(set(&mut core, 0), Outcome::Done(0));
    assert!(core.frames.get_writable(spare, caller.dom).is_ok());
}

proptest! {
    #[test]
    fn whatever_context_is_asked_for_a_vcpu_gets_a_guests(cs in any::<u16>(), ss in any::<u16>(),
        ds in any::<u16>(), rflags in any::<u64>(), rip in any::<u64>(), base in any::<u64>()) {
        let (mut core, caller) = machine();
        let root = core.vcpu(caller).unwrap().roots.kernel.unwrap();
        core.vcpu_mut(caller).unwrap().initialised = false;
        let mut asked = VcpuGuestContext::new_zeroed();
        asked.user_regs = UserRegs { cs, ss, ds, rflags, rip, ..Default::default() };
        asked.ctrlreg[3] = root.maddr().get();
        asked.fs_base = base;
        let result = context::set_context(&mut core, caller.dom, caller.vcpu, &asked);
        let canonical = |va: u64| (va as i64) << 16 >> 16 == va as i64;
        let fine = canonical(rip) && canonical(base) && !(0xffff_8000_0000_0000..0xffff_8800_0000_0000).contains(&rip);
        prop_assert_eq!(result, if fine { Ok(()) } else { Err(Errno::EINVAL) });
        if fine {
            let regs = core.vcpu(caller).unwrap().regs();
            prop_assert!(regs.cs & 3 == 3 && regs.ss & 3 == 3 && (regs.ds == 0 || regs.ds & 3 == 3));
            prop_assert_eq!(regs.rflags & (1 << 9 | 3 << 12 | 1 << 17), 1 << 9);
        }
    }

    #[test]
    fn no_instruction_bytes_break_the_emulator(bytes in any::<[u8; 15]>(), seed in any::<u64>()) {
        let (mut core, caller) = machine();
        put(&core, caller, 0x1000, &bytes);
        let regs = core.vcpu_mut(caller).unwrap().regs_mut();
        (regs.rax, regs.rcx, regs.rdx, regs.rdi) = (seed, seed >> 7, seed << 9, seed ^ 0x5555);
        for number in [vector::PROTECTION, vector::INVALID_OPCODE, vector::DEBUG] {
            set_trap(&mut core, caller, number, 0);
        }
        exception::handle(&mut core, caller, vector::PROTECTION, 0);
        exception::handle(&mut core, caller, vector::INVALID_OPCODE, 0);
        let vcpu = core.vcpu(caller).unwrap();
        prop_assert!(GuestVa::new(arch::read_base(arch::Base::Fs)).is_canonical());
        prop_assert!(vcpu.roots.kernel.is_some());
    }
}
