//! Faults of control: branches, loops, and what is set up for a call.

use super::immediate;
use crate::image::{Code, Site};
use iced_x86::{
    Code as Opcode, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register,
};

/// How far from what it belongs to a loop's test or a call's argument is looked for, in
/// instructions.
const REACH: usize = 16;

/// System V: the registers of the first six arguments.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Whether it jumps on less or greater, with or without equal.
pub fn is_comparison(instruction: &Instruction) -> bool {
    other_bound(instruction.code()).is_some()
}

/// The jump with the opposite condition.
pub fn inverted(instruction: &Instruction) -> Vec<Instruction> {
    let mut new = *instruction;
    new.negate_condition_code();
    vec![new]
}

/// The comparison with the bound itself on the other side: `<` for `<=`, and so on.
pub fn widened(instruction: &Instruction) -> Option<Instruction> {
    let mut new = *instruction;
    new.set_code(other_bound(instruction.code())?);
    Some(new)
}

fn other_bound(code: Opcode) -> Option<Opcode> {
    const PAIRS: [(Opcode, Opcode); 8] = [
        (Opcode::Jb_rel8_64, Opcode::Jbe_rel8_64),
        (Opcode::Ja_rel8_64, Opcode::Jae_rel8_64),
        (Opcode::Jl_rel8_64, Opcode::Jle_rel8_64),
        (Opcode::Jg_rel8_64, Opcode::Jge_rel8_64),
        (Opcode::Jb_rel32_64, Opcode::Jbe_rel32_64),
        (Opcode::Ja_rel32_64, Opcode::Jae_rel32_64),
        (Opcode::Jl_rel32_64, Opcode::Jle_rel32_64),
        (Opcode::Jg_rel32_64, Opcode::Jge_rel32_64),
    ];
    PAIRS.iter().find_map(|&(a, b)| match code {
        code if code == a => Some(b),
        code if code == b => Some(a),
        _ => None,
    })
}

/// Whether it decides when a loop ends: a comparing jump back, or the test with a
/// constant that a jump back depends on.
pub fn ends_a_loop(code: &Code, index: usize) -> bool {
    let site = &code.sites()[index];
    if jumps_back(code, site) {
        return is_comparison(&site.instruction);
    }
    let is_test =
        matches!(site.instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Sub | Mnemonic::Add);
    is_test && immediate::has_a_constant(&site.instruction) && is_asked_by_a_loop(code, index)
}

/// Whether the flags that an instruction sets are those of a jump back.
fn is_asked_by_a_loop(code: &Code, index: usize) -> bool {
    let after = code.straight_after(index).take(REACH);
    let jump = after.map(|after| &code.sites()[after]).find(|site| {
        site.instruction.rflags_modified() != 0 || site.instruction.is_jcc_short_or_near()
    });
    jump.is_some_and(|site| jumps_back(code, site))
}

fn jumps_back(code: &Code, site: &Site) -> bool {
    let function = code.function(site).start.number();
    let target = site.instruction.near_branch_target();
    site.instruction.is_jcc_short_or_near() && (function..=site.instruction.ip()).contains(&target)
}

/// Whether it sets an argument of the call that follows.
pub fn sets_an_argument(code: &Code, info: &mut InstructionInfoFactory, index: usize) -> bool {
    let Some(argument) = written(info, &code.sites()[index].instruction) else { return false };
    for after in code.straight_after(index).take(REACH) {
        let instruction = &code.sites()[after].instruction;
        if matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            return true;
        }
        if written(info, instruction) == Some(argument) {
            return false;
        }
    }
    false
}

/// The argument register that it gives a new value, whatever was in it.
fn written(info: &mut InstructionInfoFactory, instruction: &Instruction) -> Option<Register> {
    if instruction.op_count() == 0 || instruction.op_kind(0) != OpKind::Register {
        return None;
    }
    let register = instruction.op_register(0).full_register();
    let is_set = info.info(instruction).op_access(0) == OpAccess::Write;
    (is_set && ARGUMENTS.contains(&register)).then_some(register)
}
