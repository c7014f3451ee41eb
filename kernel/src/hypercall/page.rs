//! The page of hypercall stubs that older guests call instead of SYSCALL itself
//! (ABI notes 3.2): 128 stubs of 32 bytes.

use crate::memory::phys::PhysMem;
use bulkhead_abi::{Maddr, Mfn, PAGE_SIZE, hypercall::IRET};

const STUB_BYTES: usize = 32;

/// `push %rcx; push %r11; mov $number,%eax; syscall; pop %r11; pop %rcx; ret`, padded by
/// INT3. The one for `iret` does not return: it pushes RAX, too, which completes the
/// frame that its caller began.
fn stub(number: u32) -> [u8; STUB_BYTES] {
    let [a, b, c, d] = number.to_le_bytes();
    let mut bytes = [0xcc; STUB_BYTES];
    if u64::from(number) == IRET {
        let code = [0x51, 0x41, 0x53, 0x50, 0xb8, a, b, c, d, 0x0f, 0x05];
        bytes[..code.len()].copy_from_slice(&code);
    } else {
        let code = [0x51, 0x41, 0x53, 0xb8, a, b, c, d, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3];
        bytes[..code.len()].copy_from_slice(&code);
    }
    bytes
}

/// Fills a frame, which the caller holds writable, with the stubs.
pub fn fill(mem: PhysMem, mfn: Mfn) {
    for number in 0..(PAGE_SIZE / STUB_BYTES) as u32 {
        let at = mfn.maddr().get() + u64::from(number) * STUB_BYTES as u64;
        mem.write_bytes(Maddr::new(at), &stub(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stub_loads_its_number_and_only_iret_does_not_return() {
        for number in 0..128 {
            let bytes = stub(number);
            let at = if u64::from(number) == IRET { 5 } else { 4 };
            assert_eq!(bytes[at..at + 4], number.to_le_bytes());
            assert_eq!(bytes[at + 4..at + 6], [0x0f, 0x05]);
            assert_eq!(bytes.contains(&0xc3), u64::from(number) != IRET);
        }
    }
}
