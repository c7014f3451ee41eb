//! A store of the guest's kernel into a live level-1 page table, which it has mapped
//! read-only: carried out as a validated update. A stock kernel does this at every unmap
//! and fork (ABI notes 5.6).
//!
//! Only stores that stay within one entry, naturally aligned; everything else is the guest's
//! page fault.

use super::{
    decode::{self, Decoder, ModRm, Prefixes, mask},
    fetch, flags,
};
use crate::{
    Core,
    memory::{frame::FrameType, update, validate::Level},
    state::Caller,
    trap::mapped_frame,
};
use bulkhead_abi::{GuestVa, Maddr, vcpu::UserRegs};

/// What an instruction changes besides its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    None,
    /// RDI moves on.
    String,
    /// This register gets what memory was.
    Exchange(u8),
    /// Flags tell of the result.
    Logic,
    /// Carry is what this bit was.
    Bit(u64),
    /// If memory is not this (RAX), RAX gets what memory is, and nothing is stored.
    Compare(u64),
}

/// A decoded store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Store {
    address: u64,
    /// Bytes: 1, 2, 4 or 8.
    width: u32,
    /// Memory becomes `old & keep ^ flip`: plain stores, AND, OR, XOR and those of a bit alike.
    keep: u64,
    flip: u64,
    effect: Effect,
    length: u64,
    prefixes: Prefixes,
}

impl Store {
    /// What the operand is before the store, given the whole entry.
    fn old(&self, entry: u64) -> u64 {
        entry >> (8 * (self.address & 7)) & mask(self.width)
    }

    /// What the operand is afterwards.
    fn result(&self, entry: u64) -> u64 {
        match (self.effect, self.old(entry)) {
            (Effect::Compare(expected), old) if old != expected => old,
            (_, old) => old & self.keep ^ self.flip,
        }
    }

    /// The whole entry after the store into part of it.
    fn merge(&self, entry: u64) -> u64 {
        let shift = 8 * (self.address & 7);
        let ones = mask(self.width) << shift;
        entry & !ones | self.result(entry) << shift & ones
    }

    /// Registers and flags afterwards, given the entry as it was.
    fn finish(&self, regs: &mut UserRegs, entry: u64) {
        let (old, width) = (self.old(entry), self.width);
        match self.effect {
            Effect::None => {}
            Effect::String if regs.rflags & flags::DF != 0 => {
                regs.rdi = regs.rdi.wrapping_sub(width.into());
            }
            Effect::String => regs.rdi = regs.rdi.wrapping_add(width.into()),
            Effect::Exchange(register) => decode::write(regs, register, width, self.prefixes, old),
            Effect::Logic => regs.rflags = flags::logic(regs.rflags, self.result(entry), width),
            Effect::Bit(n) => regs.rflags = flags::bit(regs.rflags, old >> n & 1 != 0),
            Effect::Compare(expected) => {
                regs.rflags = flags::compare(regs.rflags, expected, old, width);
                if old != expected {
                    decode::write(regs, 0, width, self.prefixes, old);
                }
            }
        }
        regs.rip = regs.rip.wrapping_add(self.length);
    }
}

/// Emulates the instruction at RIP if it is such a store to `address`, which faulted. `None`: the
/// fault is the guest's.
pub fn page_table_write(core: &mut Core, caller: Caller, address: u64) -> Option<()> {
    let entry = table_entry(core, caller, address)?;
    let store = decode_store(fetch(core, caller)?, core.vcpu(caller)?.regs())?;
    if store.address != address || !address.is_multiple_of(u64::from(store.width)) {
        return None;
    }
    let old = update::emulated_write(core, caller, entry, |old| store.merge(old)).ok()?;
    store.finish(core.vcpu_mut(caller)?.regs_mut(), old);
    Some(())
}

/// The machine address of the table entry that `address` is in, if the guest maps a level-1
/// table there.
fn table_entry(core: &Core, caller: Caller, address: u64) -> Option<Maddr> {
    let root = core.vcpu(caller)?.roots.kernel?;
    let mfn = mapped_frame(core, root, GuestVa::new(address))?;
    let is_table = core.frames.frame_type(mfn) == FrameType::Table(Level::L1);
    is_table.then(|| Maddr::new(mfn.maddr().get() + (address & 0xff8)))
}

fn decode_store(mut decoder: Decoder, regs: &UserRegs) -> Option<Store> {
    let opcode = decoder.opcode()?;
    let prefixes = decoder.prefixes;
    if prefixes.repeat || prefixes.based_segment {
        return None;
    }
    // In all but one of these, bit 0 of the opcode says "not a byte".
    let width = if opcode & 1 == 0 && opcode != 0x0fba { 1 } else { prefixes.width() };
    let accumulator = decode::read(regs, 0, width, prefixes);
    if matches!(opcode, 0xaa | 0xab) && !prefixes.address32 {
        let (address, length) = (regs.rdi, decoder.length());
        let (keep, flip, effect) = (0, accumulator, Effect::String);
        return Some(Store { address, width, keep, flip, effect, length, prefixes });
    }
    let immediate = match opcode {
        0xc6 | 0x80 | 0x83 | 0x0fba => 1,
        0xc7 | 0x81 => width.min(4),
        _ => 0,
    };
    let ModRm { reg, address } = decoder.modrm(regs, immediate)?;
    let value = match immediate {
        0 => decode::read(regs, reg, width, prefixes),
        _ => decoder.signed(immediate)? & mask(width),
    };
    let n = value % u64::from(8 * width);
    // A bit number past the operand moves the address: left to the guest.
    if matches!(opcode, 0x0fab | 0x0fb3 | 0x0fbb) && n != value {
        return None;
    }
    let (keep, flip, effect) = match (opcode, reg & 7) {
        (0x88 | 0x89, _) | (0xc6 | 0xc7, 0) => (0, value, Effect::None),
        (0x86 | 0x87, _) => (0, value, Effect::Exchange(reg)),
        (0x08 | 0x09, _) | (0x80 | 0x81 | 0x83, 1) => (!value, value, Effect::Logic),
        (0x20 | 0x21, _) | (0x80 | 0x81 | 0x83, 4) => (value, 0, Effect::Logic),
        (0x30 | 0x31, _) | (0x80 | 0x81 | 0x83, 6) => (u64::MAX, value, Effect::Logic),
        (0x0fab, _) | (0x0fba, 5) => (!(1 << n), 1 << n, Effect::Bit(n)),
        (0x0fb3, _) | (0x0fba, 6) => (!(1 << n), 0, Effect::Bit(n)),
        (0x0fbb, _) | (0x0fba, 7) => (u64::MAX, 1 << n, Effect::Bit(n)),
        (0x0fb0 | 0x0fb1, _) => (0, value, Effect::Compare(accumulator)),
        _ => return None,
    };
    let length = decoder.length();
    Some(Store { address, width, keep, flip, effect, length, prefixes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    fn run(bytes: &[u8], regs: &mut UserRegs, entry: u64) -> u64 {
        let store = decode_store(Decoder::new(bytes), regs).expect("a listed form");
        assert_eq!(store.length as usize, bytes.len());
        store.finish(regs, entry);
        store.merge(entry)
    }

    #[test]
    fn exchanging_a_register_with_an_entry_gives_back_the_old_entry() {
        let mut regs = UserRegs { rdi: 0x1000, rax: 5, rip: 0x100, ..Default::default() };
        assert_eq!(run(&[0x48, 0x87, 0x07], &mut regs, 0xabcd_0000_0000_1067), 5);
        assert_eq!((regs.rax, regs.rip), (0xabcd_0000_0000_1067, 0x103));
    }

    #[test]
    fn a_locked_byte_and_clears_the_writable_bit_only() {
        let mut regs = UserRegs { r8: 0x2008, rflags: 2, ..Default::default() };
        assert_eq!(
            run(&[0xf0, 0x41, 0x80, 0x20, 0xfd], &mut regs, 0x8000_0000_1234_5067),
            0x8000_0000_1234_5065
        );
    }

    #[test]
    fn clearing_a_bit_reports_what_it_was() {
        let mut regs = UserRegs { rbx: 0x3000, ..Default::default() };
        assert_eq!(run(&[0xf0, 0x48, 0x0f, 0xba, 0x33, 5], &mut regs, 0x20), 0);
        assert_eq!(regs.rflags & flags::CF, flags::CF);
    }

    #[test]
    fn a_failed_compare_and_exchange_loads_the_accumulator() {
        let mut regs = UserRegs { rdi: 0x1000, rax: 1, rcx: 9, ..Default::default() };
        assert_eq!(run(&[0xf0, 0x48, 0x0f, 0xb1, 0x0f], &mut regs, 7), 7);
        assert_eq!((regs.rax, regs.rflags & flags::ZF), (7, 0));
        assert_eq!(run(&[0xf0, 0x48, 0x0f, 0xb1, 0x0f], &mut regs, 7), 9);
        assert_eq!(regs.rflags & flags::ZF, flags::ZF);
    }

    #[test]
    fn other_instructions_are_left_to_the_guest() {
        let regs = UserRegs::default();
        for bytes in [
            &[0x48, 0x01, 0x07][..],
            &[0xf3, 0x48, 0xab],
            &[0x65, 0x48, 0x89, 0x07],
            &[0x48, 0x87, 0xc7],
        ] {
            assert_eq!(decode_store(Decoder::new(bytes), &regs), None, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn a_narrow_store_changes_its_bytes_only(entry in any::<u64>(), value in any::<u64>(), slot in 0u64..8) {
            let regs = UserRegs { rdi: 0x1000 + slot, rax: value, ..Default::default() };
            let store = decode_store(Decoder::new(&[0x88, 0x07]), &regs).unwrap();
            let mut want = entry.to_le_bytes();
            want[slot as usize] = value as u8;
            prop_assert_eq!(store.merge(entry), u64::from_le_bytes(want));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..16), entry in any::<u64>()) {
            let mut regs = UserRegs { rax: u64::MAX, ..Default::default() };
            if let Some(store) = decode_store(Decoder::new(&bytes), &regs) {
                store.merge(entry);
                store.finish(&mut regs, entry);
            }
        }
    }
}
