//! Privileged instructions (#GP) and forced CPUID (#UD) of a guest's kernel. ABI notes 6.

use super::{
    cpuid::{self, View},
    decode::{self, Decoder},
    fetch, msr,
};
use crate::{
    Core, arch,
    domain::vcpu::Vcpu,
    hypercall::dispatch,
    memory::{flush::Flush, update},
    state::Caller,
    trap::{bounce, context::Mode, debug, vector},
};
use bulkhead_abi::{
    Maddr, hypercall::SCHED_OP, sched::SCHEDOP_BLOCK, trap::FORCED_EMULATION_PREFIX, vcpu::UserRegs,
};

/// CR0 as a guest sees it: PE, MP, ET, NE, WP, AM, PG.
const CR0_VALUE: u64 = 0x8005_0033;
const CR0_TS: u64 = 1 << 3;
/// CR4 as a guest sees it: PAE, MCE, OSFXSR, OSXMMEXCPT.
const CR4_VALUE: u64 = 0x660;
const CR4_OSXSAVE: u64 = 1 << 18;
/// TSD and DE are remembered, and change nothing.
const CR4_GUEST: u64 = 1 << 2 | 1 << 3;

/// Runs `ud2; "xen"; cpuid` at RIP; `None` if something else is there.
pub fn forced(core: &mut Core, caller: Caller) -> Option<()> {
    let rest = fetch(core, caller)?.bytes;
    if !rest.strip_prefix(&FORCED_EMULATION_PREFIX)?.starts_with(&[0x0f, 0xa2]) {
        return None;
    }
    let incarnation = core.domains.get(caller.dom)?.incarnation.0;
    let vcpu = core.vcpu_mut(caller)?;
    let view = View {
        features: arch::features(),
        xcr0: vcpu.guest.xcr0,
        tsc_khz: arch::tsc_khz(),
        incarnation,
    };
    let regs = vcpu.regs_mut();
    let [a, b, c, d] = cpuid::leaf(arch::cpuid, &view, regs.rax as u32, regs.rcx as u32);
    (regs.rax, regs.rbx, regs.rcx, regs.rdx) = (a.into(), b.into(), c.into(), d.into());
    regs.rip = regs.rip.wrapping_add(7);
    Some(())
}

/// The vector of the `INT n` at RIP, if that is what is there. The error code of the #GP names it too,
/// but QEMU's TCG multiplies it by 16 where the manual says 8.
pub fn software_interrupt(core: &Core, caller: Caller) -> Option<u8> {
    let mut decoder = fetch(core, caller)?;
    if decoder.byte()? == 0xcd { decoder.byte() } else { None }
}

/// Emulates the privileged instruction at RIP; `None` if it is none that is done for guests, and
/// its #GP is the guest's.
pub fn privileged(core: &mut Core, caller: Caller) -> Option<()> {
    let mut decoder = fetch(core, caller)?;
    let opcode = decoder.opcode()?;
    if decoder.prefixes.lock {
        return None;
    }
    let from_kernel = core.vcpu(caller)?.guest.mode == Mode::Kernel;
    match opcode {
        0xe4..=0xe7 | 0xec..=0xef => port(core, caller, &mut decoder, opcode)?,
        // CLI and STI: events are masked by the byte in vcpu_info, and only there.
        0xfa | 0xfb if may_use_ports(core, caller)? => {}
        0xf4 if from_kernel => {
            // The exit path does the waiting.
            let _ = dispatch(core, caller, SCHED_OP, [SCHEDOP_BLOCK, 0, 0, 0, 0, 0]);
        }
        0x0f00..=0x0fff if from_kernel => two_byte(core, caller, &mut decoder, opcode)?,
        _ => return None,
    }
    let regs = core.vcpu_mut(caller)?.regs_mut();
    regs.rip = regs.rip.wrapping_add(decoder.length());
    Some(())
}

fn two_byte(core: &mut Core, caller: Caller, decoder: &mut Decoder, opcode: u16) -> Option<()> {
    let vcpu = core.vcpu_mut(caller)?;
    let (number, pair) = (vcpu.regs().rcx as u32, pair(vcpu.regs()));
    match opcode {
        // CLTS
        0x0f06 => vcpu.guest.task_switched = false,
        // WBINVD
        0x0f09 => {}
        // XSETBV
        0x0f01 if decoder.byte()? == 0xd1 && number == 0 => set_xcr0(vcpu, pair)?,
        0x0f20..=0x0f23 => move_special(core, caller, decoder, opcode)?,
        0x0f30 => {
            let done = msr::write(core, caller, number, pair);
            done.or_else(|| without_handler(core, caller))?;
        }
        0x0f32 => {
            let value = msr::read(core, caller, number);
            let value = value.or_else(|| without_handler(core, caller).map(|()| 0))?;
            let regs = core.vcpu_mut(caller)?.regs_mut();
            (regs.rax, regs.rdx) = (value & 0xffff_ffff, value >> 32);
        }
        _ => return None,
    }
    Some(())
}

/// EDX:EAX.
fn pair(regs: &UserRegs) -> u64 {
    regs.rdx << 32 | regs.rax & 0xffff_ffff
}

/// MOV to and from a control or debug register. The mod field of ModRM is ignored.
fn move_special(core: &mut Core, caller: Caller, decoder: &mut Decoder, opcode: u16) -> Option<()> {
    let modrm = decoder.byte()?;
    let (number, register) = decoder.fields(modrm);
    let vcpu = core.vcpu_mut(caller)?;
    let value = decode::register(vcpu.regs(), register);
    let read = match opcode {
        0x0f20 => read_control(core, caller, number)?,
        0x0f21 => debug::get(&vcpu.guest, number.into()).ok()?,
        0x0f22 => return write_control(core, caller, number, value),
        _ => {
            debug::set(&mut vcpu.guest, number.into(), value).ok()?;
            arch::load_debug(&vcpu.guest.debug);
            return Some(());
        }
    };
    decode::write(core.vcpu_mut(caller)?.regs_mut(), register, 8, decoder.prefixes, read);
    Some(())
}

fn read_control(core: &Core, caller: Caller, number: u8) -> Option<u64> {
    let vcpu = core.vcpu(caller)?;
    Some(match number {
        0 => CR0_VALUE | if vcpu.guest.task_switched { CR0_TS } else { 0 },
        2 => bounce::fault_address(core, caller),
        3 => vcpu.roots.kernel?.maddr().get(),
        4 => CR4_VALUE | vcpu.guest.cr4 | if arch::features().xcr0 != 0 { CR4_OSXSAVE } else { 0 },
        _ => return None,
    })
}

fn write_control(core: &mut Core, caller: Caller, number: u8, value: u64) -> Option<()> {
    let guest = &mut core.vcpu_mut(caller)?.guest;
    match number {
        0 if (value ^ CR0_VALUE) & !CR0_TS == 0 => guest.task_switched = value & CR0_TS != 0,
        2 => bounce::store_fault_address(core, caller, value),
        3 => write_root(core, caller, Maddr::new(value))?,
        4 => guest.cr4 = value & CR4_GUEST,
        _ => return None,
    }
    Some(())
}

/// MOV to CR3: another root, or the same one, which flushes. One that takes several steps to
/// validate is refused: there is `MMUEXT_NEW_BASEPTR` for it.
fn write_root(core: &mut Core, caller: Caller, at: Maddr) -> Option<()> {
    let old = core.vcpu(caller)?.roots.kernel?;
    let new = at.mfn();
    if at.offset() != 0 {
        return None;
    }
    if new != old {
        update::get_root(core, caller.dom, new).ok()?;
        core.vcpu_mut(caller)?.roots.kernel = Some(new);
        update::put_root(core, caller.dom, old);
    }
    core.request_flush(caller.cpu, Flush::All);
    Some(())
}

/// Before the guest has a #GP handler, a register that it may not use reads as 0 and takes any
/// value: there is nobody yet who could make sense of the fault.
fn without_handler(core: &Core, caller: Caller) -> Option<()> {
    let trap = core.vcpu(caller)?.guest.traps[usize::from(vector::PROTECTION)];
    (trap.address == 0).then_some(())
}

/// Whether XCR0 may be `value` on a processor that offers `offered` (Intel SDM 1, 13.3).
pub fn is_valid_xcr0(value: u64, offered: u64) -> bool {
    const SSE: u64 = 1 << 1;
    const AVX: u64 = 1 << 2;
    const AVX512: u64 = 7 << 5;
    value & !offered == 0
        && value & 1 != 0
        && (value & AVX == 0 || value & SSE != 0)
        && (value & AVX512 == 0 || value & AVX512 == AVX512 && value & AVX != 0)
}

fn set_xcr0(vcpu: &mut Vcpu, value: u64) -> Option<()> {
    if !is_valid_xcr0(value, arch::features().xcr0) {
        return None;
    }
    vcpu.guest.xcr0 = value;
    arch::write_xcr0(value);
    Some(())
}

/// Whether the virtual I/O privilege level lets the current mode touch ports.
fn may_use_ports(core: &Core, caller: Caller) -> Option<bool> {
    let guest = &core.vcpu(caller)?.guest;
    let level = match guest.mode {
        Mode::User => 3,
        Mode::Kernel => u8::from(!bounce::has_iopl_assist(core, caller)),
    };
    Some(guest.iopl >= level)
}

/// What an absent device answers. The counters of the PIT read as zero: all ones would make a
/// stock kernel poll them for seconds (ABI notes 0.7).
fn absent(port: u16, width: u32) -> u64 {
    if matches!(port, 0x40 | 0x42 | 0x61) { 0 } else { decode::mask(width) }
}

fn port(core: &mut Core, caller: Caller, decoder: &mut Decoder, opcode: u16) -> Option<()> {
    let width = match (opcode & 1, decoder.prefixes.operand16) {
        (0, _) => 1,
        (_, true) => 2,
        _ => 4,
    };
    let immediate = if opcode < 0xe8 { Some(decoder.byte()?) } else { None };
    if !may_use_ports(core, caller)? {
        return None;
    }
    let regs = core.vcpu_mut(caller)?.regs_mut();
    let number = immediate.map_or(regs.rdx as u16, u16::from);
    let is_output = opcode & 2 != 0;
    if !is_output {
        decode::write(regs, 0, width, decoder.prefixes, absent(number, width));
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::is_valid_xcr0;

    #[test]
    fn extended_state_must_be_offered_and_whole() {
        assert!(
            is_valid_xcr0(3, 7)
                && is_valid_xcr0(7, 7)
                && is_valid_xcr0(1, 7)
                && is_valid_xcr0(0xe7, 0xe7)
        );
        for value in [0, 2, 6, 5, 0xe7, 1 << 9 | 3, 0x27] {
            assert!(!is_valid_xcr0(value, 7), "{value:#x}");
        }
        assert!(!is_valid_xcr0(0x27, 0xe7) && !is_valid_xcr0(0xe3, 0xe7));
    }
}
