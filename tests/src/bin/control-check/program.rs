//! Machine code for the hand-made domain: as many instructions as its programs need.

use alloc::vec::Vec;

/// Code from the first instruction on. Addresses are below 2 GiB, so that they fit an
/// instruction.
#[derive(Default)]
pub struct Program(Vec<u8>);

impl Program {
    /// Issues a hypercall; the result is in RAX.
    pub fn hypercall(self, number: u64, args: [u64; 3]) -> Self {
        // mov eax; mov edi; mov esi; mov edx: each with an immediate of 32 bits.
        let loads = [0xb8, 0xbf, 0xbe, 0xba].into_iter().zip([number, args[0], args[1], args[2]]);
        loads
            .fold(self, |code, (opcode, value)| code.bytes(&[opcode]).imm(value))
            .bytes(&[0x0f, 0x05])
    }

    /// Stores RAX.
    pub fn store_rax(self, at: u64) -> Self {
        self.bytes(&[0x48, 0x89, 0x04, 0x25]).imm(at)
    }

    /// Stores a small number in a word.
    pub fn store(self, at: u64, value: u32) -> Self {
        self.bytes(&[0x48, 0xc7, 0x04, 0x25]).imm(at).imm(value.into())
    }

    /// Adds one to a word.
    pub fn increment(self, at: u64) -> Self {
        self.bytes(&[0x48, 0xff, 0x04, 0x25]).imm(at)
    }

    /// Goes back to the first instruction.
    pub fn repeat(self) -> Self {
        let back = -(self.0.len() as i32 + 5);
        self.bytes(&[0xe9]).bytes(&back.to_le_bytes())
    }

    /// Raises #UD.
    pub fn fault(self) -> Self {
        self.bytes(&[0x0f, 0x0b])
    }

    pub fn code(&self) -> &[u8] {
        &self.0
    }

    fn imm(self, value: u64) -> Self {
        let value = i32::try_from(value).expect("fits an instruction");
        self.bytes(&value.to_le_bytes())
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}
