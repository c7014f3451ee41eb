//! A store of the guest's kernel into a live level-1 page table, which it has mapped
//! read-only: carried out as a validated update. A stock kernel does this at every unmap
//! and fork (ABI notes 5.6).
//!
//! Only stores that stay within one entry, naturally aligned; everything else is the guest's
//! page fault.

use super::{
    MAX_INSTRUCTION,
    decode::{self, Decoder, ModRm, Operand, Prefixes, mask},
    fetch, flags,
};
use crate::{
    Core,
    memory::{frame::FrameType, update, validate::Level},
    state::Caller,
};
use bulkhead_abi::{GuestVa, Maddr, Mfn, vcpu::UserRegs};

/// What the instruction does to its memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    /// Stores the value.
    Store(u64),
    /// Stores the value; RDI moves on.
    StoreString(u64),
    /// Stores the value; the old one goes to this register.
    Exchange(u64, u8),
    And(u64),
    Or(u64),
    Xor(u64),
    /// Sets, clears or flips the bit.
    SetBit(u32),
    ClearBit(u32),
    FlipBit(u32),
    /// Stores `new` if memory is `expected` (RAX); else RAX gets what memory is.
    CompareExchange {
        expected: u64,
        new: u64,
    },
}

/// A decoded store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Store {
    address: u64,
    /// Bytes: 1, 2, 4 or 8.
    width: u32,
    op: Op,
    length: u64,
    prefixes: Prefixes,
}

impl Op {
    /// What memory holds afterwards.
    fn apply(self, old: u64) -> u64 {
        match self {
            Self::Store(value) | Self::StoreString(value) | Self::Exchange(value, _) => value,
            Self::And(value) => old & value,
            Self::Or(value) => old | value,
            Self::Xor(value) => old ^ value,
            Self::SetBit(n) => old | 1 << n,
            Self::ClearBit(n) => old & !(1 << n),
            Self::FlipBit(n) => old ^ 1 << n,
            Self::CompareExchange { expected, new } => {
                if old == expected {
                    new
                } else {
                    old
                }
            }
        }
    }
}

impl Store {
    /// The whole entry after the store into part of it.
    fn merge(&self, entry: u64) -> u64 {
        let shift = 8 * (self.address & 7);
        let ones = mask(self.width) << shift;
        let new = self.op.apply(entry >> shift & mask(self.width));
        entry & !ones | new << shift & ones
    }

    /// Registers and flags afterwards, given the entry as it was.
    fn finish(&self, regs: &mut UserRegs, entry: u64) {
        let old = entry >> (8 * (self.address & 7)) & mask(self.width);
        match self.op {
            Op::Store(_) => {}
            Op::StoreString(_) => {
                let step = u64::from(self.width);
                let down = regs.rflags & flags::DF != 0;
                regs.rdi =
                    if down { regs.rdi.wrapping_sub(step) } else { regs.rdi.wrapping_add(step) };
            }
            Op::Exchange(_, register) => {
                decode::write(regs, register, self.width, self.prefixes, old)
            }
            Op::And(_) | Op::Or(_) | Op::Xor(_) => {
                regs.rflags = flags::logic(regs.rflags, self.op.apply(old), self.width);
            }
            Op::SetBit(n) | Op::ClearBit(n) | Op::FlipBit(n) => {
                regs.rflags = flags::bit(regs.rflags, old >> n & 1 != 0);
            }
            Op::CompareExchange { expected, .. } => {
                regs.rflags = flags::compare(regs.rflags, expected, old, self.width);
                if old != expected {
                    decode::write(regs, 0, self.width, self.prefixes, old);
                }
            }
        }
        regs.rip = regs.rip.wrapping_add(self.length);
    }
}

/// Emulates the instruction at RIP if it is such a store to `address`, which faulted. False: the
/// fault is the guest's.
pub fn page_table_write(core: &mut Core, caller: Caller, address: u64) -> bool {
    let Some(entry) = table_entry(core, caller, address) else {
        return false;
    };
    let mut bytes = [0; MAX_INSTRUCTION];
    let fetched = fetch(core, caller, &mut bytes);
    let Some(vcpu) = core.vcpu(caller) else {
        return false;
    };
    let Some(store) = decode_store(&bytes[..fetched], vcpu.regs()) else {
        return false;
    };
    if store.address != address || !address.is_multiple_of(u64::from(store.width)) {
        return false;
    }
    let Ok(old) = update::emulated_write(core, caller, entry, |old| store.merge(old)) else {
        return false;
    };
    if let Some(vcpu) = core.vcpu_mut(caller) {
        store.finish(vcpu.regs_mut(), old);
    }
    true
}

/// The machine address of the table entry that `address` is in, if the guest maps a level-1
/// table there.
fn table_entry(core: &Core, caller: Caller, address: u64) -> Option<Maddr> {
    let root = core.vcpu(caller)?.roots.kernel?;
    let at = update::l1_entry_of(&core.frames, root, GuestVa::new(address))?;
    let pte = core.frames.mem().read_u64(at);
    let mfn = Mfn::new(pte >> 12 & 0xff_ffff_ffff);
    let is_table = pte & 1 != 0 && core.frames.frame_type(mfn) == FrameType::Table(Level::L1);
    is_table.then(|| Maddr::new(mfn.maddr().get() + (address & 0xff8)))
}

fn decode_store(bytes: &[u8], regs: &UserRegs) -> Option<Store> {
    let mut decoder = Decoder::new(bytes);
    let (prefixes, opcode) = decoder.prefixes()?;
    if prefixes.repeat || prefixes.based_segment {
        return None;
    }
    if matches!(opcode, 0xaa | 0xab) && !prefixes.address32 {
        let width = if opcode == 0xaa { 1 } else { prefixes.width() };
        let op = Op::StoreString(regs.rax & mask(width));
        return Some(Store { address: regs.rdi, width, op, length: decoder.length(), prefixes });
    }
    let (modrm, width, op) = if opcode == 0x0f {
        let opcode = decoder.byte()?;
        two_byte(&mut decoder, prefixes, opcode, regs)?
    } else {
        one_byte(&mut decoder, prefixes, opcode, regs)?
    };
    let Operand::Memory(address) = modrm.operand else {
        return None;
    };
    Some(Store { address, width, op, length: decoder.length(), prefixes })
}

type Decoded = (ModRm, u32, Op);

fn one_byte(
    decoder: &mut Decoder<'_>,
    prefixes: Prefixes,
    opcode: u8,
    regs: &UserRegs,
) -> Option<Decoded> {
    // In these groups bit 0 of the opcode says "not a byte".
    let width = if opcode & 1 == 0 { 1 } else { prefixes.width() };
    let immediate = match opcode {
        0xc6 | 0x80 | 0x83 => 1,
        0xc7 | 0x81 => width.min(4),
        0x08 | 0x09 | 0x20 | 0x21 | 0x30 | 0x31 | 0x86..=0x89 => 0,
        _ => return None,
    };
    let modrm = decoder.modrm(prefixes, regs, immediate.into())?;
    let source = decode::read(regs, modrm.reg, width, prefixes);
    let op = match opcode {
        0x88 | 0x89 => Op::Store(source),
        0x86 | 0x87 => Op::Exchange(source, modrm.reg),
        0x08 | 0x09 => Op::Or(source),
        0x20 | 0x21 => Op::And(source),
        0x30 | 0x31 => Op::Xor(source),
        _ => {
            let value = decoder.signed(immediate)? as u64 & mask(width);
            match (opcode, modrm.reg & 7) {
                (0xc6 | 0xc7, 0) => Op::Store(value),
                (0x80 | 0x81 | 0x83, 1) => Op::Or(value),
                (0x80 | 0x81 | 0x83, 4) => Op::And(value),
                (0x80 | 0x81 | 0x83, 6) => Op::Xor(value),
                _ => return None,
            }
        }
    };
    Some((modrm, width, op))
}

fn two_byte(
    decoder: &mut Decoder<'_>,
    prefixes: Prefixes,
    opcode: u8,
    regs: &UserRegs,
) -> Option<Decoded> {
    let width = if opcode == 0xb0 { 1 } else { prefixes.width() };
    let bits = 8 * width;
    match opcode {
        0xb0 | 0xb1 => {
            let modrm = decoder.modrm(prefixes, regs, 0)?;
            let new = decode::read(regs, modrm.reg, width, prefixes);
            let expected = decode::read(regs, 0, width, Prefixes::default());
            Some((modrm, width, Op::CompareExchange { expected, new }))
        }
        0xab | 0xb3 | 0xbb => {
            let modrm = decoder.modrm(prefixes, regs, 0)?;
            let n = decode::read(regs, modrm.reg, width, prefixes);
            // A bit number past the operand moves the address: left to the guest.
            let n = (n < u64::from(bits)).then_some(n as u32)?;
            let op = match opcode {
                0xab => Op::SetBit(n),
                0xb3 => Op::ClearBit(n),
                _ => Op::FlipBit(n),
            };
            Some((modrm, width, op))
        }
        0xba => {
            let modrm = decoder.modrm(prefixes, regs, 1)?;
            let n = decoder.byte()? as u32 % bits;
            let op = match modrm.reg & 7 {
                5 => Op::SetBit(n),
                6 => Op::ClearBit(n),
                7 => Op::FlipBit(n),
                _ => return None,
            };
            Some((modrm, width, op))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    fn run(bytes: &[u8], regs: &mut UserRegs, entry: u64) -> u64 {
        let store = decode_store(bytes, regs).expect("a listed form");
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
            assert_eq!(decode_store(bytes, &regs), None, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn a_narrow_store_changes_its_bytes_only(entry in any::<u64>(), value in any::<u64>(), slot in 0u64..8) {
            let regs = UserRegs { rdi: 0x1000 + slot, rax: value, ..Default::default() };
            let store = decode_store(&[0x88, 0x07], &regs).unwrap();
            let mut want = entry.to_le_bytes();
            want[slot as usize] = value as u8;
            prop_assert_eq!(store.merge(entry), u64::from_le_bytes(want));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..16), entry in any::<u64>()) {
            let mut regs = UserRegs { rax: u64::MAX, ..Default::default() };
            if let Some(store) = decode_store(&bytes, &regs) {
                store.merge(entry);
                store.finish(&mut regs, entry);
            }
        }
    }
}
