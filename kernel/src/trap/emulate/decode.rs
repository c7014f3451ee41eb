//! Enough of x86-64 decoding for the listed instructions: prefixes, ModRM, SIB,
//! displacement, immediates. A decoder that says `None` makes the guest get its fault.

use bulkhead_abi::vcpu::UserRegs;

/// What stood before the opcode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    pub lock: bool,
    pub repeat: bool,
    pub operand16: bool,
    pub address32: bool,
    /// FS or GS override; the others mean nothing in 64-bit code.
    pub based_segment: bool,
    /// 0x40..=0x4f, or 0.
    pub rex: u8,
}

impl Prefixes {
    pub const fn rex_w(self) -> bool {
        self.rex & 8 != 0
    }

    /// Bytes of an operand that is not a byte.
    pub const fn width(self) -> u32 {
        if self.rex_w() {
            8
        } else if self.operand16 {
            2
        } else {
            4
        }
    }
}

/// Where the r/m operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    Register(u8),
    /// Linear address, without a segment base.
    Memory(u64),
}

/// A ModRM byte with what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModRm {
    /// The reg field, extended by REX.R.
    pub reg: u8,
    pub operand: Operand,
}

/// Reads an instruction from front to back.
pub struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn length(&self) -> u64 {
        self.at as u64
    }

    pub fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// A little-endian immediate of `width` bytes (1, 2 or 4), sign-extended.
    pub fn signed(&mut self, width: u32) -> Option<i64> {
        let mut raw = [0u8; 8];
        for slot in raw.iter_mut().take(width as usize) {
            *slot = self.byte()?;
        }
        let unused = 64 - 8 * width;
        Some(i64::from_le_bytes(raw) << unused >> unused)
    }

    /// Prefixes up to the first opcode byte, which is returned with them.
    pub fn prefixes(&mut self) -> Option<(Prefixes, u8)> {
        let mut found = Prefixes::default();
        loop {
            let byte = self.byte()?;
            match byte {
                0xf0 => found.lock = true,
                0xf2 | 0xf3 => found.repeat = true,
                0x66 => found.operand16 = true,
                0x67 => found.address32 = true,
                0x64 | 0x65 => found.based_segment = true,
                0x26 | 0x2e | 0x36 | 0x3e => {}
                0x40..=0x4f => {
                    // REX counts only right before the opcode.
                    let opcode = self.byte()?;
                    let is_prefix = matches!(
                        opcode,
                        0xf0 | 0xf2 | 0xf3 | 0x66 | 0x67 | 0x64 | 0x65 | 0x26 | 0x2e | 0x36 | 0x3e
                    ) || matches!(opcode, 0x40..=0x4f);
                    if is_prefix {
                        self.at -= 1;
                        continue;
                    }
                    found.rex = byte;
                    return Some((found, opcode));
                }
                opcode => return Some((found, opcode)),
            }
        }
    }

    /// ModRM, SIB and displacement. `immediate` is the number of bytes that follow them, which
    /// RIP-relative addresses count from.
    pub fn modrm(&mut self, prefixes: Prefixes, regs: &UserRegs, immediate: u64) -> Option<ModRm> {
        let modrm = self.byte()?;
        let (mode, low) = (modrm >> 6, modrm & 7);
        let reg = modrm >> 3 & 7 | prefixes.rex << 1 & 8;
        let rex_b = prefixes.rex << 3 & 8;
        if mode == 3 {
            return Some(ModRm { reg, operand: Operand::Register(low | rex_b) });
        }
        let mut rip_relative = false;
        let base = match low {
            4 => self.sib(prefixes, regs, mode)?,
            5 if mode == 0 => {
                rip_relative = true;
                self.signed(4)? as u64
            }
            _ => register(regs, low | rex_b),
        };
        let displacement = match mode {
            1 => self.signed(1)?,
            2 => self.signed(4)?,
            _ => 0,
        };
        let mut address = base.wrapping_add(displacement as u64);
        if rip_relative {
            address =
                address.wrapping_add(regs.rip).wrapping_add(self.length()).wrapping_add(immediate);
        }
        if prefixes.address32 {
            address &= 0xffff_ffff;
        }
        Some(ModRm { reg, operand: Operand::Memory(address) })
    }

    fn sib(&mut self, prefixes: Prefixes, regs: &UserRegs, mode: u8) -> Option<u64> {
        let sib = self.byte()?;
        let index = sib >> 3 & 7 | prefixes.rex << 2 & 8;
        // Index 4 without REX.X is "none".
        let scaled = if index == 4 { 0 } else { register(regs, index) << (sib >> 6) };
        let base = match sib & 7 {
            5 if mode == 0 => self.signed(4)? as u64,
            low => register(regs, low | prefixes.rex << 3 & 8),
        };
        Some(base.wrapping_add(scaled))
    }
}

/// Value of the general register `number` (0 = RAX, 4 = RSP, 15 = R15).
pub fn register(regs: &UserRegs, number: u8) -> u64 {
    match number & 15 {
        0 => regs.rax,
        1 => regs.rcx,
        2 => regs.rdx,
        3 => regs.rbx,
        4 => regs.rsp,
        5 => regs.rbp,
        6 => regs.rsi,
        7 => regs.rdi,
        8 => regs.r8,
        9 => regs.r9,
        10 => regs.r10,
        11 => regs.r11,
        12 => regs.r12,
        13 => regs.r13,
        14 => regs.r14,
        _ => regs.r15,
    }
}

fn register_mut(regs: &mut UserRegs, number: u8) -> &mut u64 {
    match number & 15 {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        4 => &mut regs.rsp,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        _ => &mut regs.r15,
    }
}

/// Reads `width` bytes of a register as an instruction with these prefixes names it: without
/// REX, byte registers 4 to 7 are AH, CH, DH and BH.
pub fn read(regs: &UserRegs, number: u8, width: u32, prefixes: Prefixes) -> u64 {
    if is_high_byte(number, width, prefixes) {
        return register(regs, number & 3) >> 8 & 0xff;
    }
    register(regs, number) & mask(width)
}

/// Writes `width` bytes of a register; 32 bits clear the upper half.
pub fn write(regs: &mut UserRegs, number: u8, width: u32, prefixes: Prefixes, value: u64) {
    if is_high_byte(number, width, prefixes) {
        let slot = register_mut(regs, number & 3);
        *slot = *slot & !0xff00 | (value & 0xff) << 8;
        return;
    }
    let slot = register_mut(regs, number);
    *slot = match width {
        8 => value,
        4 => value & 0xffff_ffff,
        _ => *slot & !mask(width) | value & mask(width),
    };
}

const fn is_high_byte(number: u8, width: u32, prefixes: Prefixes) -> bool {
    width == 1 && prefixes.rex == 0 && number >= 4 && number < 8
}

/// Ones in the low `width` bytes.
pub const fn mask(width: u32) -> u64 {
    if width >= 8 { u64::MAX } else { (1 << (8 * width)) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, proptest};

    fn decode(bytes: &[u8], regs: &UserRegs) -> Option<(Prefixes, u8, ModRm, u64)> {
        let mut decoder = Decoder::new(bytes);
        let (prefixes, opcode) = decoder.prefixes()?;
        let modrm = decoder.modrm(prefixes, regs, 0)?;
        Some((prefixes, opcode, modrm, decoder.length()))
    }

    #[test]
    fn decodes_the_forms_that_a_stock_kernel_uses() {
        let regs = UserRegs {
            rdi: 0x1000,
            rax: 8,
            r13: 0x2000,
            rsp: 0x3000,
            rip: 0x4000,
            ..Default::default()
        };
        // xchg %rax,(%rdi)
        let (prefixes, opcode, modrm, length) = decode(&[0x48, 0x87, 0x07], &regs).unwrap();
        assert!(prefixes.rex_w() && opcode == 0x87 && length == 3);
        assert_eq!(modrm, ModRm { reg: 0, operand: Operand::Memory(0x1000) });
        // lock andb $..,0x10(%r13)
        let (prefixes, _, modrm, length) = decode(&[0xf0, 0x41, 0x80, 0x65, 0x10], &regs).unwrap();
        assert!(prefixes.lock && length == 5);
        assert_eq!(modrm, ModRm { reg: 4, operand: Operand::Memory(0x2010) });
        // mov %r9,-8(%rsp,%rax,4)
        let (.., modrm, length) = decode(&[0x4c, 0x89, 0x4c, 0x84, 0xf8], &regs).unwrap();
        assert_eq!((modrm, length), (ModRm { reg: 9, operand: Operand::Memory(0x3018) }, 5));
        // mov %rax,0x10(%rip)
        let (.., modrm, _) = decode(&[0x48, 0x89, 0x05, 0x10, 0, 0, 0], &regs).unwrap();
        assert_eq!(modrm, ModRm { reg: 0, operand: Operand::Memory(0x4017) });
    }

    #[test]
    fn a_rex_that_is_not_last_is_ignored() {
        let (prefixes, opcode) = Decoder::new(&[0x48, 0x66, 0x89]).prefixes().unwrap();
        assert!(!prefixes.rex_w() && prefixes.operand16 && opcode == 0x89);
    }

    #[test]
    fn byte_registers_without_rex_are_the_high_ones() {
        let mut regs = UserRegs { rax: 0x1234, ..Default::default() };
        assert_eq!(read(&regs, 4, 1, Prefixes::default()), 0x12);
        write(&mut regs, 4, 1, Prefixes::default(), 0xff);
        assert_eq!(regs.rax, 0xff34);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..16)) {
            let regs = UserRegs { rsp: u64::MAX, rip: u64::MAX, ..Default::default() };
            if let Some((.., length)) = decode(&bytes, &regs) {
                prop_assert!(length as usize <= bytes.len());
            }
        }
    }
}
