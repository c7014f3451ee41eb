//! Enough of x86-64 decoding for the listed instructions: prefixes, ModRM, SIB,
//! displacement, immediates. A decoder that says `None` makes the guest get its fault.

use bulkhead_abi::vcpu::UserRegs;
use heapless::Vec;

/// Longest instruction.
pub const MAX_INSTRUCTION: usize = 15;

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
    /// Bytes of an operand that is not a byte.
    pub const fn width(self) -> u32 {
        match (self.rex & 8, self.operand16) {
            (8, _) => 8,
            (_, true) => 2,
            _ => 4,
        }
    }
}

/// A ModRM byte with what follows it, whose r/m operand is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModRm {
    /// The reg field, extended by REX.R.
    pub reg: u8,
    /// Linear address, without a segment base.
    pub address: u64,
}

/// Reads an instruction from front to back.
pub struct Decoder {
    pub bytes: Vec<u8, MAX_INSTRUCTION>,
    /// Those before the opcode, once it was read.
    pub prefixes: Prefixes,
    at: usize,
}

impl Decoder {
    /// Of what may be an instruction: nothing, if it is too long to be one.
    pub fn new(bytes: &[u8]) -> Self {
        let bytes = Vec::from_slice(bytes).unwrap_or_default();
        Self { bytes, prefixes: Prefixes::default(), at: 0 }
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
    pub fn signed(&mut self, width: u32) -> Option<u64> {
        let mut raw = [0u8; 8];
        for slot in raw.iter_mut().take(width as usize) {
            *slot = self.byte()?;
        }
        let unused = 64 - 8 * width;
        Some((i64::from_le_bytes(raw) << unused >> unused) as u64)
    }

    /// Prefixes and the opcode; one of two bytes is 0x0f00 and the second.
    pub fn opcode(&mut self) -> Option<u16> {
        loop {
            let byte = self.byte()?;
            // REX counts only right before the opcode.
            let rex = core::mem::take(&mut self.prefixes.rex);
            match byte {
                0xf0 => self.prefixes.lock = true,
                0xf2 | 0xf3 => self.prefixes.repeat = true,
                0x66 => self.prefixes.operand16 = true,
                0x67 => self.prefixes.address32 = true,
                0x64 | 0x65 => self.prefixes.based_segment = true,
                0x26 | 0x2e | 0x36 | 0x3e => {}
                0x40..=0x4f => self.prefixes.rex = byte,
                opcode => {
                    self.prefixes.rex = rex;
                    return match opcode {
                        0x0f => Some(0x0f00 | u16::from(self.byte()?)),
                        _ => Some(opcode.into()),
                    };
                }
            }
        }
    }

    /// The reg and r/m fields of a ModRM byte, extended by REX.
    pub fn fields(&self, modrm: u8) -> (u8, u8) {
        let rex = self.prefixes.rex;
        (modrm >> 3 & 7 | rex << 1 & 8, modrm & 7 | rex << 3 & 8)
    }

    /// ModRM, SIB and displacement. `immediate` is the number of bytes that follow them, which
    /// RIP-relative addresses count from. `None` for an operand that is a register, too.
    pub fn modrm(&mut self, regs: &UserRegs, immediate: u32) -> Option<ModRm> {
        let modrm = self.byte()?;
        let (mode, (reg, base)) = (modrm >> 6, self.fields(modrm));
        let mut rip_relative = false;
        let base = match modrm & 7 {
            _ if mode == 3 => return None,
            4 => self.sib(regs, mode)?,
            5 if mode == 0 => {
                rip_relative = true;
                self.signed(4)?
            }
            _ => register(regs, base),
        };
        let displacement = match mode {
            1 => self.signed(1)?,
            2 => self.signed(4)?,
            _ => 0,
        };
        let mut address = base.wrapping_add(displacement);
        if rip_relative {
            let length = self.length() + u64::from(immediate);
            address = address.wrapping_add(regs.rip).wrapping_add(length);
        }
        if self.prefixes.address32 {
            address &= 0xffff_ffff;
        }
        Some(ModRm { reg, address })
    }

    fn sib(&mut self, regs: &UserRegs, mode: u8) -> Option<u64> {
        let sib = self.byte()?;
        let index = sib >> 3 & 7 | self.prefixes.rex << 2 & 8;
        // Index 4 without REX.X is "none".
        let scaled = if index == 4 { 0 } else { register(regs, index) << (sib >> 6) };
        let base = match sib & 7 {
            5 if mode == 0 => self.signed(4)?,
            _ => register(regs, self.fields(sib).1),
        };
        Some(base.wrapping_add(scaled))
    }
}

/// Which word of [`UserRegs`] each general register is, by its number in instructions: RAX,
/// RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
const WORDS: [usize; 16] = [10, 11, 12, 5, 19, 4, 13, 14, 9, 8, 7, 6, 3, 2, 1, 0];

/// Value of the general register `number` (0 = RAX, 4 = RSP, 15 = R15).
pub fn register(regs: &UserRegs, number: u8) -> u64 {
    let words: &[u64; 25] = zerocopy::transmute_ref!(regs);
    words[WORDS[usize::from(number & 15)]]
}

fn register_mut(regs: &mut UserRegs, number: u8) -> &mut u64 {
    let words: &mut [u64; 25] = zerocopy::transmute_mut!(regs);
    &mut words[WORDS[usize::from(number & 15)]]
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

    fn decode(bytes: &[u8], regs: &UserRegs) -> Option<(Prefixes, u16, ModRm, u64)> {
        let mut decoder = Decoder::new(bytes);
        let opcode = decoder.opcode()?;
        let modrm = decoder.modrm(regs, 0)?;
        Some((decoder.prefixes, opcode, modrm, decoder.length()))
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
        assert!(prefixes.width() == 8 && opcode == 0x87 && length == 3);
        assert_eq!(modrm, ModRm { reg: 0, address: 0x1000 });
        // lock andb $..,0x10(%r13)
        let (prefixes, _, modrm, length) = decode(&[0xf0, 0x41, 0x80, 0x65, 0x10], &regs).unwrap();
        assert!(prefixes.lock && length == 5);
        assert_eq!(modrm, ModRm { reg: 4, address: 0x2010 });
        // mov %r9,-8(%rsp,%rax,4)
        let (.., modrm, length) = decode(&[0x4c, 0x89, 0x4c, 0x84, 0xf8], &regs).unwrap();
        assert_eq!((modrm, length), (ModRm { reg: 9, address: 0x3018 }, 5));
        // mov %rax,0x10(%rip)
        let (.., modrm, _) = decode(&[0x48, 0x89, 0x05, 0x10, 0, 0, 0], &regs).unwrap();
        assert_eq!(modrm, ModRm { reg: 0, address: 0x4017 });
    }

    #[test]
    fn a_rex_that_is_not_last_is_ignored() {
        let mut decoder = Decoder::new(&[0x48, 0x66, 0x89]);
        assert_eq!(decoder.opcode(), Some(0x89));
        assert!(decoder.prefixes.width() == 2 && decoder.prefixes.operand16);
    }

    #[test]
    fn byte_registers_without_rex_are_the_high_ones() {
        let mut regs = UserRegs { rax: 0x1234, ..Default::default() };
        assert_eq!(read(&regs, 4, 1, Prefixes::default()), 0x12);
        write(&mut regs, 4, 1, Prefixes::default(), 0xff);
        assert_eq!(regs.rax, 0xff34);
    }

    #[test]
    fn each_number_names_its_register() {
        let regs = UserRegs {
            rax: 0,
            rcx: 1,
            rdx: 2,
            rbx: 3,
            rsp: 4,
            rbp: 5,
            rsi: 6,
            rdi: 7,
            r8: 8,
            r9: 9,
            r10: 10,
            r11: 11,
            r12: 12,
            r13: 13,
            r14: 14,
            r15: 15,
            rip: 99,
            ..Default::default()
        };
        assert!((0..16).all(|n| register(&regs, n) == u64::from(n)));
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
