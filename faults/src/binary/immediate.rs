//! Constants that are off by one.

use iced_x86::{Instruction, Mnemonic, OpKind};

/// Whether it compares with, adds, subtracts or loads a constant.
pub fn has_a_constant(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Cmp | Mnemonic::Add | Mnemonic::Sub | Mnemonic::Mov | Mnemonic::Imul
    ) && position(instruction).is_some()
}

/// The instruction with its constant one less and one more, where both can be written.
pub fn neighbours(instruction: &Instruction) -> Vec<Instruction> {
    let Some(operand) = position(instruction) else { return Vec::new() };
    let (value, width) = (instruction.immediate(operand), width(instruction.op_kind(operand)));
    // At the ends of what the operand can hold there is a neighbour on one side only.
    let mask = if width == 64 { u64::MAX } else { (1 << width) - 1 };
    let (low, high) = (1u64 << (width - 1), (1u64 << (width - 1)) - 1);
    let less = (value & mask != low).then(|| value.wrapping_sub(1));
    let more = (value & mask != high).then(|| value.wrapping_add(1));
    less.into_iter()
        .chain(more)
        .map(|value| {
            let mut new = *instruction;
            set(&mut new, operand, value);
            new
        })
        .collect()
}

fn position(instruction: &Instruction) -> Option<u32> {
    (0..instruction.op_count()).find(|op| width(instruction.op_kind(*op)) > 0)
}

/// Bits of an immediate operand as it is encoded; 0 if it is none.
const fn width(kind: OpKind) -> u32 {
    match kind {
        OpKind::Immediate8 | OpKind::Immediate8to16 => 8,
        OpKind::Immediate8to32 | OpKind::Immediate8to64 => 8,
        OpKind::Immediate16 => 16,
        OpKind::Immediate32 | OpKind::Immediate32to64 => 32,
        OpKind::Immediate64 => 64,
        _ => 0,
    }
}

fn set(instruction: &mut Instruction, operand: u32, value: u64) {
    match instruction.op_kind(operand) {
        OpKind::Immediate8 => instruction.set_immediate8(value as u8),
        OpKind::Immediate8to16 => instruction.set_immediate8to16(value as i16),
        OpKind::Immediate8to32 => instruction.set_immediate8to32(value as i32),
        OpKind::Immediate8to64 => instruction.set_immediate8to64(value as i64),
        OpKind::Immediate16 => instruction.set_immediate16(value as u16),
        OpKind::Immediate32 => instruction.set_immediate32(value as u32),
        OpKind::Immediate32to64 => instruction.set_immediate32to64(value as i64),
        _ => instruction.set_immediate64(value),
    }
}
