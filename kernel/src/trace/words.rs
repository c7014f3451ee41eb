//! Words on the debug UART: a guest's registers when its domain crashes, and the core's own last
//! words. They are written while anything may be broken: no locks, no memory but the stack.

use super::Trace;
use crate::{
    arch::{self, Base},
    domain::vcpu::Vcpu,
    state::Caller,
};
use bulkhead_abi::{archive::SymbolEntry, vcpu::UserRegs};
use core::fmt::{self, Write};
use zerocopy::{FromBytes, Unalign};

/// The debug UART as a writer.
pub struct Uart;

impl Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        arch::console_write(text.as_bytes());
        Ok(())
    }
}

/// Prints registers, four to a line.
pub fn registers(out: &mut impl Write, regs: &UserRegs) -> fmt::Result {
    let UserRegs { cs, rip, ss, rsp, rflags, .. } = *regs;
    writeln!(out, "rip {cs:04x}:{rip:016x} rsp {ss:04x}:{rsp:016x} rflags {rflags:x}")?;
    let rows: [&[_]; 4] = [
        &[("rax", regs.rax), ("rbx", regs.rbx), ("rcx", regs.rcx), ("rdx", regs.rdx)],
        &[("rsi", regs.rsi), ("rdi", regs.rdi), ("rbp", regs.rbp), ("r8", regs.r8)],
        &[("r9", regs.r9), ("r10", regs.r10), ("r11", regs.r11), ("r12", regs.r12)],
        &[("r13", regs.r13), ("r14", regs.r14), ("r15", regs.r15)],
    ];
    for row in rows {
        row.iter().try_for_each(|(name, value)| write!(out, "{name:<3} {value:016x} "))?;
        writeln!(out)?;
    }
    Ok(())
}

/// Says why a domain is ended, with the registers of the vCPU that broke it, which is the
/// current one.
pub fn guest_registers(caller: Caller, vcpu: &Vcpu, why: impl fmt::Display) {
    let guest = &vcpu.guest;
    // The UART takes everything.
    let _ = writeln!(Uart, "\n{}{} in {:?} mode: {why}", caller.dom, caller.vcpu, guest.mode);
    let _ = registers(&mut Uart, vcpu.regs());
    let [fs, gs, inactive] = [Base::Fs, Base::Gs, Base::InactiveGs].map(arch::read_base);
    let (root, user, stack) = (vcpu.roots.kernel, vcpu.roots.user, guest.kernel_sp);
    let _ = writeln!(
        Uart,
        "cr3 {root:x?} user {user:x?} fs {fs:x} gs {gs:x} other gs {inactive:x} stack {stack:x}"
    );
}

/// Prints the last events.
pub fn events(out: &mut impl Write, trace: &Trace) -> fmt::Result {
    writeln!(
        out,
        "last events, {} entries, longest stay {} ns:",
        trace.entries,
        arch::ns_of(trace.longest_stay)
    )?;
    trace
        .last()
        .try_for_each(|(at, event)| writeln!(out, "  {:>12} {event}", arch::ns_at(at).get()))
}

/// The symbol that `offset` (from the core's base) lies in, and the distance from it. `table`
/// is as [`SymbolEntry`] says.
fn find_symbol(table: &[u8], offset: u32) -> Option<(&str, u32)> {
    let (head, rest) = <[u32; 2]>::read_from_prefix(table).ok()?;
    let count = usize::try_from(head[0]).ok()?;
    let (entries, names) =
        <[Unalign<SymbolEntry>]>::ref_from_prefix_with_elems(rest, count).ok()?;
    let after = entries.partition_point(|entry| entry.get().offset <= offset);
    let found = entries.get(after.checked_sub(1)?)?.get();
    let name = names.get(found.name_offset as usize..)?.get(..found.name_bytes as usize)?;
    Some((str::from_utf8(name).ok()?, offset - found.offset))
}

/// Prints an address of the core with the symbol it lies in.
pub fn address(out: &mut impl Write, table: &[u8], address: u64, base: u64) -> fmt::Result {
    write!(out, "  {address:016x}")?;
    let offset = address.checked_sub(base).and_then(|offset| u32::try_from(offset).ok());
    if let Some((name, distance)) = offset.and_then(|offset| find_symbol(table, offset)) {
        write!(out, " {name}+{distance:#x}")?;
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn table() -> Vec<u8> {
        let mut bytes = vec![3, 0, 0, 0, 0, 0, 0, 0];
        for (offset, name_offset, name_bytes) in [(0x10, 0, 5), (0x40, 5, 3), (0x100, 8, 4)] {
            bytes.extend_from_slice(SymbolEntry { offset, name_offset, name_bytes }.as_bytes());
        }
        bytes.extend_from_slice(b"firsttwolast");
        bytes
    }

    fn said(at: u64) -> String {
        let mut out = String::new();
        address(&mut out, &table(), at, 0x1000).unwrap();
        out
    }

    #[test]
    fn names_the_symbol_that_an_address_lies_in() {
        assert_eq!(said(0x1048), "  0000000000001048 two+0x8\n");
        assert_eq!(said(0x1010), "  0000000000001010 first+0x0\n");
        assert_eq!(said(0x2000), "  0000000000002000 last+0xf00\n");
        assert_eq!(said(0x1000), "  0000000000001000\n");
        assert_eq!(said(0x10), "  0000000000000010\n");
    }

    #[test]
    fn a_broken_table_gives_an_address_without_a_name() {
        let broken = vec![0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        let mut out = String::new();
        address(&mut out, &broken, 0x1010, 0x1000).unwrap();
        assert_eq!(out, "  0000000000001010\n");
    }
}
