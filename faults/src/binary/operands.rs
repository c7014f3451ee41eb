//! Faults in operands: another register, another address.

use iced_x86::{Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};

/// How many low bits of a long displacement may be wrong: farther off, nothing is mapped
/// and every fault is the same.
const DISPLACEMENT_BITS: u32 = 16;

/// Whether an operand is a register that is only read.
pub fn reads_a_register(info: &mut InstructionInfoFactory, instruction: &Instruction) -> bool {
    registers(info, instruction, is_read).next().is_some()
}

/// Whether an operand is a register that is written.
pub fn writes_a_register(info: &mut InstructionInfoFactory, instruction: &Instruction) -> bool {
    registers(info, instruction, is_written).next().is_some()
}

/// Whether it reads or writes memory that it names.
pub fn accesses_memory(info: &mut InstructionInfoFactory, instruction: &Instruction) -> bool {
    let access = info.info(instruction);
    (0..instruction.op_count()).any(|op| {
        instruction.op_kind(op) == OpKind::Memory
            && !matches!(access.op_access(op), OpAccess::None | OpAccess::NoMemAccess)
    })
}

/// The instruction with another register in place of each one that it reads.
pub fn sources(info: &mut InstructionInfoFactory, instruction: &Instruction) -> Vec<Instruction> {
    others(registers(info, instruction, is_read), instruction)
}

/// The instruction with another register in place of each one that it writes.
pub fn destinations(
    info: &mut InstructionInfoFactory,
    instruction: &Instruction,
) -> Vec<Instruction> {
    others(registers(info, instruction, is_written), instruction)
}

/// The instruction with another base register, or with a bit of its displacement flipped.
pub fn pointers(instruction: &Instruction) -> Vec<Instruction> {
    let base = instruction.memory_base();
    let bases = same_size(base).map(|other| {
        let mut new = *instruction;
        new.set_memory_base(other);
        new
    });
    let old = instruction.memory_displacement64();
    let displacements = (0..displacement_bits(instruction)).map(|bit| {
        let mut new = *instruction;
        new.set_memory_displacement64(flip(instruction, old, bit));
        new
    });
    bases.chain(displacements).collect()
}

fn displacement_bits(instruction: &Instruction) -> u32 {
    match instruction.memory_displ_size() {
        0 => 0,
        1 => 8,
        _ => DISPLACEMENT_BITS,
    }
}

/// A displacement of one byte is extended by its sign.
fn flip(instruction: &Instruction, old: u64, bit: u32) -> u64 {
    match instruction.memory_displ_size() {
        1 => (old as i8 ^ (1 << bit)) as i64 as u64,
        _ => old ^ 1 << bit,
    }
}

fn registers(
    info: &mut InstructionInfoFactory,
    instruction: &Instruction,
    wanted: fn(OpAccess) -> bool,
) -> impl Iterator<Item = u32> + use<> {
    let access = info.info(instruction).clone();
    let instruction = *instruction;
    (0..instruction.op_count()).filter(move |op| {
        instruction.op_kind(*op) == OpKind::Register
            && instruction.op_register(*op).is_gpr()
            && wanted(access.op_access(*op))
    })
}

const fn is_read(access: OpAccess) -> bool {
    matches!(access, OpAccess::Read | OpAccess::CondRead)
}

const fn is_written(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

fn others(operands: impl Iterator<Item = u32>, instruction: &Instruction) -> Vec<Instruction> {
    let with = |op, register| {
        let mut new = *instruction;
        new.set_op_register(op, register);
        new
    };
    operands
        .flat_map(|op| same_size(instruction.op_register(op)).map(move |register| (op, register)))
        .map(|(op, register)| with(op, register))
        .collect()
}

/// The other general registers of the same size. Those that the encoding cannot name are
/// found out when it is made.
fn same_size(register: Register) -> impl Iterator<Item = Register> {
    let all: Vec<_> = match register {
        r if r.is_gpr64() => numbered(Register::RAX),
        r if r.is_gpr32() => numbered(Register::EAX),
        r if r.is_gpr16() => numbered(Register::AX),
        r if r.is_gpr8() => numbered(Register::AL),
        _ => Vec::new(),
    };
    all.into_iter().filter(move |other| *other != register)
}

/// The registers from `first` on, as the library numbers them.
fn numbered(first: Register) -> Vec<Register> {
    let count = if first == Register::AL { 20 } else { 16 };
    (0..count).map(|n| first + n).collect()
}
