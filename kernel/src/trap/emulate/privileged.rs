//! Privileged instructions (#GP) and forced CPUID (#UD) of a guest's kernel. ABI notes 6.

use super::{
    MAX_INSTRUCTION,
    cpuid::{self, View},
    decode::{self, Decoder, Prefixes},
    fetch, msr,
};
use crate::{
    Core, arch,
    hypercall::dispatch,
    memory::{flush::Flush, update},
    state::Caller,
    trap::{bounce, context::Mode, debug, vector},
};
use bulkhead_abi::{
    Maddr,
    hypercall::SCHED_OP,
    sched::SCHEDOP_BLOCK,
    trap::{FORCED_EMULATION_PREFIX, VMASST_ARCHITECTURAL_IOPL},
};

/// CR0 as a guest sees it: PE, MP, ET, NE, WP, AM, PG.
const CR0_VALUE: u64 = 0x8005_0033;
const CR0_TS: u64 = 1 << 3;
/// CR4 as a guest sees it: PAE, MCE, OSFXSR, OSXMMEXCPT.
const CR4_VALUE: u64 = 0x660;
const CR4_OSXSAVE: u64 = 1 << 18;
/// TSD and DE are remembered, and change nothing.
const CR4_GUEST: u64 = 1 << 2 | 1 << 3;

/// Runs `ud2; "xen"; cpuid` at RIP; false if something else is there.
pub fn forced(core: &mut Core, caller: Caller) -> bool {
    let mut bytes = [0; MAX_INSTRUCTION];
    let fetched = fetch(core, caller, &mut bytes);
    let Some(rest) = bytes[..fetched].strip_prefix(&FORCED_EMULATION_PREFIX) else {
        return false;
    };
    if !rest.starts_with(&[0x0f, 0xa2]) {
        return false;
    }
    run_cpuid(core, caller);
    advance(core, caller, 7);
    true
}

/// The vector of the `INT n` at RIP, if that is what is there. The error code of the #GP names it too,
/// but QEMU's TCG multiplies it by 16 where the manual says 8.
pub fn software_interrupt(core: &Core, caller: Caller) -> Option<u8> {
    let mut bytes = [0; MAX_INSTRUCTION];
    let fetched = fetch(core, caller, &mut bytes);
    match bytes[..fetched] {
        [0xcd, number, ..] => Some(number),
        _ => None,
    }
}

fn run_cpuid(core: &mut Core, caller: Caller) {
    let incarnation = core.domains.get(caller.dom).map_or(0, |d| d.incarnation.0);
    let Some(vcpu) = core.vcpu_mut(caller) else {
        return;
    };
    let view = View {
        features: arch::features(),
        xcr0: vcpu.guest.xcr0,
        tsc_khz: arch::tsc_khz(),
        incarnation,
    };
    let regs = vcpu.regs_mut();
    let [a, b, c, d] = cpuid::leaf(arch::cpuid, &view, regs.rax as u32, regs.rcx as u32);
    (regs.rax, regs.rbx, regs.rcx, regs.rdx) = (a.into(), b.into(), c.into(), d.into());
}

fn advance(core: &mut Core, caller: Caller, bytes: u64) {
    if let Some(vcpu) = core.vcpu_mut(caller) {
        let regs = vcpu.regs_mut();
        regs.rip = regs.rip.wrapping_add(bytes);
    }
}

/// Emulates the privileged instruction at RIP; false if it is none that is done for guests, and
/// its #GP is the guest's.
pub fn privileged(core: &mut Core, caller: Caller) -> bool {
    let mut bytes = [0; MAX_INSTRUCTION];
    let fetched = fetch(core, caller, &mut bytes);
    let mut decoder = Decoder::new(&bytes[..fetched]);
    let Some((prefixes, opcode)) = decoder.prefixes() else {
        return false;
    };
    if prefixes.lock {
        return false;
    }
    let from_kernel = core.vcpu(caller).is_some_and(|vcpu| vcpu.guest.mode == Mode::Kernel);
    let done = match opcode {
        0xe4..=0xe7 | 0xec..=0xef => port(core, caller, &mut decoder, prefixes, opcode),
        // CLI and STI: events are masked by the byte in vcpu_info, and only there.
        0xfa | 0xfb => may_use_ports(core, caller).then_some(()),
        _ if !from_kernel => None,
        0xf4 => {
            // The exit path does the waiting.
            let _ = dispatch(core, caller, SCHED_OP, [SCHEDOP_BLOCK, 0, 0, 0, 0, 0]);
            Some(())
        }
        0x0f => two_byte(core, caller, &mut decoder, prefixes),
        _ => None,
    };
    if done.is_some() {
        advance(core, caller, decoder.length());
    }
    done.is_some()
}

fn two_byte(
    core: &mut Core,
    caller: Caller,
    decoder: &mut Decoder<'_>,
    prefixes: Prefixes,
) -> Option<()> {
    match decoder.byte()? {
        // CLTS
        0x06 => core.vcpu_mut(caller)?.guest.task_switched = false,
        // WBINVD
        0x09 => {}
        0x01 => match decoder.byte()? {
            0xd1 => set_xcr0(core, caller)?,
            _ => return None,
        },
        0x20 => {
            let (number, register) = control_operands(decoder, prefixes)?;
            let value = read_control(core, caller, number)?;
            decode::write(core.vcpu_mut(caller)?.regs_mut(), register, 8, prefixes, value);
        }
        0x22 => {
            let (number, register) = control_operands(decoder, prefixes)?;
            let value = decode::register(core.vcpu(caller)?.regs(), register);
            write_control(core, caller, number, value)?;
        }
        0x21 => {
            let (number, register) = control_operands(decoder, prefixes)?;
            let value = debug::get(&core.vcpu(caller)?.guest, number.into()).ok()?;
            decode::write(core.vcpu_mut(caller)?.regs_mut(), register, 8, prefixes, value);
        }
        0x23 => {
            let (number, register) = control_operands(decoder, prefixes)?;
            let vcpu = core.vcpu_mut(caller)?;
            let value = decode::register(vcpu.regs(), register);
            debug::set(&mut vcpu.guest, number.into(), value).ok()?;
            arch::load_debug(&vcpu.guest.debug);
        }
        0x30 => write_msr(core, caller)?,
        0x32 => read_msr(core, caller)?,
        _ => return None,
    }
    Some(())
}

/// Of MOV to and from a control or debug register: its number, and the general register. The mod field
/// of ModRM is ignored.
fn control_operands(decoder: &mut Decoder<'_>, prefixes: Prefixes) -> Option<(u8, u8)> {
    let modrm = decoder.byte()?;
    Some((modrm >> 3 & 7 | prefixes.rex << 1 & 8, modrm & 7 | prefixes.rex << 3 & 8))
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
fn has_handler(core: &Core, caller: Caller) -> bool {
    core.vcpu(caller)
        .is_some_and(|vcpu| vcpu.guest.traps[usize::from(vector::PROTECTION)].address != 0)
}

fn read_msr(core: &mut Core, caller: Caller) -> Option<()> {
    let number = core.vcpu(caller)?.regs().rcx as u32;
    let value = match msr::read(core, caller, number) {
        Ok(value) => value,
        Err(msr::Refused) if !has_handler(core, caller) => 0,
        Err(msr::Refused) => return None,
    };
    let regs = core.vcpu_mut(caller)?.regs_mut();
    (regs.rax, regs.rdx) = (value & 0xffff_ffff, value >> 32);
    Some(())
}

fn write_msr(core: &mut Core, caller: Caller) -> Option<()> {
    let regs = core.vcpu(caller)?.regs();
    let (number, value) = (regs.rcx as u32, regs.rdx << 32 | regs.rax & 0xffff_ffff);
    match msr::write(core, caller, number, value) {
        Ok(()) => Some(()),
        Err(msr::Refused) => (!has_handler(core, caller)).then_some(()),
    }
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

fn set_xcr0(core: &mut Core, caller: Caller) -> Option<()> {
    let vcpu = core.vcpu_mut(caller)?;
    let regs = vcpu.regs();
    let value = regs.rdx << 32 | regs.rax & 0xffff_ffff;
    if regs.rcx as u32 != 0 || !is_valid_xcr0(value, arch::features().xcr0) {
        return None;
    }
    vcpu.guest.xcr0 = value;
    arch::write_xcr0(value);
    Some(())
}

/// Whether the virtual I/O privilege level lets the current mode touch ports.
fn may_use_ports(core: &Core, caller: Caller) -> bool {
    let assisted = core
        .domains
        .get(caller.dom)
        .is_some_and(|d| d.assists >> VMASST_ARCHITECTURAL_IOPL & 1 != 0);
    core.vcpu(caller).is_some_and(|vcpu| {
        let level = match vcpu.guest.mode {
            Mode::User => 3,
            Mode::Kernel => u8::from(!assisted),
        };
        vcpu.guest.iopl >= level
    })
}

/// What an absent device answers. The counters of the PIT read as zero: all ones would make a
/// stock kernel poll them for seconds (ABI notes 0.7).
fn absent(port: u16, width: u32) -> u64 {
    if matches!(port, 0x40 | 0x42 | 0x61) { 0 } else { decode::mask(width) }
}

fn port(
    core: &mut Core,
    caller: Caller,
    decoder: &mut Decoder<'_>,
    prefixes: Prefixes,
    opcode: u8,
) -> Option<()> {
    let width = match (opcode & 1, prefixes.operand16) {
        (0, _) => 1,
        (_, true) => 2,
        _ => 4,
    };
    let immediate = if opcode < 0xe8 { Some(decoder.byte()?) } else { None };
    if !may_use_ports(core, caller) {
        return None;
    }
    let regs = core.vcpu_mut(caller)?.regs_mut();
    let number = immediate.map_or(regs.rdx as u16, u16::from);
    let is_output = opcode & 2 != 0;
    if !is_output {
        decode::write(regs, 0, width, prefixes, absent(number, width));
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
