//! Words on the debug UART: a guest's registers when its domain crashes, and the core's own last
//! words. They are written while anything may be broken: no locks, no memory but the stack.

use super::Trace;
use crate::{arch, domain::vcpu::Vcpu, state::Caller, trap::context::Mode};
use bulkhead_abi::{archive::SymbolEntry, vcpu::UserRegs};
use core::fmt::{self, Write};

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
    writeln!(
        out,
        "rip {:04x}:{:016x} rsp {:04x}:{:016x} rflags {:x}",
        regs.cs, regs.rip, regs.ss, regs.rsp, regs.rflags
    )?;
    writeln!(
        out,
        "rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}",
        regs.rax, regs.rbx, regs.rcx, regs.rdx
    )?;
    writeln!(
        out,
        "rsi {:016x} rdi {:016x} rbp {:016x} r8  {:016x}",
        regs.rsi, regs.rdi, regs.rbp, regs.r8
    )?;
    writeln!(
        out,
        "r9  {:016x} r10 {:016x} r11 {:016x} r12 {:016x}",
        regs.r9, regs.r10, regs.r11, regs.r12
    )?;
    writeln!(out, "r13 {:016x} r14 {:016x} r15 {:016x}", regs.r13, regs.r14, regs.r15)
}

/// Says why a domain is ended, with the registers of the vCPU that broke it.
pub fn guest_registers(caller: Caller, vcpu: &Vcpu, why: &str) {
    let mode = match vcpu.guest.mode {
        Mode::Kernel => "kernel",
        Mode::User => "user",
    };
    // The UART takes everything.
    let _ = writeln!(Uart, "\n{}{} in {mode} mode: {why}", caller.dom, caller.vcpu);
    let _ = registers(&mut Uart, vcpu.regs());
    let _ = writeln!(
        Uart,
        "cr3 {:x?} user {:x?} fs {:x} gs {:x} user gs {:x} stack {:x}",
        vcpu.roots.kernel.map(|mfn| mfn.get()),
        vcpu.roots.user.map(|mfn| mfn.get()),
        vcpu.guest.fs_base,
        vcpu.guest.gs_base_kernel,
        vcpu.guest.gs_base_user,
        vcpu.guest.kernel_sp,
    );
}

/// Prints the last events.
pub fn events(out: &mut impl Write, trace: &Trace) -> fmt::Result {
    writeln!(
        out,
        "last events, {} entries, longest stay {} ns:",
        trace.entries, trace.longest_stay_ns
    )?;
    trace.last().try_for_each(|(at, event)| writeln!(out, "  {:>12} {event}", at.get()))
}

/// Bytes of the core's symbols (see [`SymbolEntry`]), by offset; `None` past the end.
pub trait SymbolBytes {
    fn read(&self, offset: u64, out: &mut [u8]) -> Option<()>;
}

/// The symbol that `offset` (from the core's base) lies in: entry and distance.
pub fn find_symbol(table: &impl SymbolBytes, offset: u32) -> Option<(SymbolEntry, u32)> {
    let count = count(table)?;
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if entry(table, middle)?.offset <= offset {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let found = entry(table, low.checked_sub(1)?)?;
    Some((found, offset - found.offset))
}

fn count(table: &impl SymbolBytes) -> Option<u32> {
    let mut raw = [0; 4];
    table.read(0, &mut raw)?;
    Some(u32::from_le_bytes(raw))
}

fn entry(table: &impl SymbolBytes, n: u32) -> Option<SymbolEntry> {
    let mut raw = [0; size_of::<SymbolEntry>()];
    table.read(8 + u64::from(n) * size_of::<SymbolEntry>() as u64, &mut raw)?;
    Some(zerocopy::transmute!(raw))
}

/// Prints an address of the core with the symbol it lies in.
pub fn address(
    out: &mut impl Write,
    table: Option<&impl SymbolBytes>,
    address: u64,
    base: u64,
) -> fmt::Result {
    write!(out, "  {address:016x}")?;
    let offset = address.checked_sub(base).and_then(|offset| u32::try_from(offset).ok());
    if let (Some(table), Some(offset)) = (table, offset)
        && let Some((symbol, distance)) = find_symbol(table, offset)
    {
        write!(out, " ")?;
        name(out, table, symbol)?;
        write!(out, "+{distance:#x}")?;
    }
    writeln!(out)
}

fn name(out: &mut impl Write, table: &impl SymbolBytes, symbol: SymbolEntry) -> fmt::Result {
    let names = 8 + u64::from(count(table).unwrap_or(0)) * size_of::<SymbolEntry>() as u64;
    for n in 0..u64::from(symbol.name_bytes) {
        let mut byte = [0];
        let read = table.read(names + u64::from(symbol.name_offset) + n, &mut byte);
        let [byte] = byte;
        if read.is_none() || !byte.is_ascii_graphic() && byte != b' ' {
            break;
        }
        out.write_char(byte.into())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    impl SymbolBytes for Vec<u8> {
        fn read(&self, offset: u64, out: &mut [u8]) -> Option<()> {
            let offset = usize::try_from(offset).ok()?;
            out.copy_from_slice(self.get(offset..offset.checked_add(out.len())?)?);
            Some(())
        }
    }

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
        address(&mut out, Some(&table()), at, 0x1000).unwrap();
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
        address(&mut out, Some(&broken), 0x1010, 0x1000).unwrap();
        assert_eq!(out, "  0000000000001010\n");
    }
}
