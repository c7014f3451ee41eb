//! Binary mutation: turns one instruction of the driver domain into what a programmer's
//! or a machine's error would have made of it. Always the same number of bytes; what is
//! shorter is filled up with `nop`.
//!
//! The classes are those of Ng and Chen (Rio), Swift et al. (Nooks, SOSP 2003, section
//! 6.1) and MINIX 3. A model answers two questions about an instruction: could it be
//! wrong in this way ([`Mutator::is_candidate`], cheap), and if so, in which ways
//! ([`Mutator::variants`]).

mod bits;
mod flow;
mod immediate;
mod operands;

use crate::image::{Code, Site};
use crate::model::Model;
use crate::units::Bytes;
use iced_x86::{Encoder, Formatter, Instruction, InstructionInfoFactory, IntelFormatter};

/// `nop`.
const NOP: u8 = 0x90;

/// What may stand in the place of an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// As many bytes as the instruction has.
    pub new: Bytes,
    /// Old and new, for a person.
    pub what: String,
}

/// Makes wrong instructions of right ones.
pub struct Mutator<'a> {
    code: &'a Code,
    info: InstructionInfoFactory,
}

impl<'a> Mutator<'a> {
    /// For the instructions of `code`.
    pub fn new(code: &'a Code) -> Self {
        Self { code, info: InstructionInfoFactory::new() }
    }

    /// Whether the instruction at `index` could be wrong in the way of `model`: false if
    /// it cannot, true if [`Mutator::variants`] is worth asking.
    pub fn is_candidate(&mut self, model: Model, index: usize) -> bool {
        let site = &self.code.sites()[index];
        let instruction = &site.instruction;
        match model {
            Model::SourceRegister => operands::reads_a_register(&mut self.info, instruction),
            Model::DestinationRegister => operands::writes_a_register(&mut self.info, instruction),
            Model::Pointer => operands::accesses_memory(&mut self.info, instruction),
            Model::StaleParameter => flow::sets_an_argument(self.code, &mut self.info, index),
            Model::LoopBound => flow::ends_a_loop(self.code, index),
            Model::InvertedBranch => instruction.is_jcc_short_or_near(),
            Model::OffByOne => {
                immediate::has_a_constant(instruction) || flow::is_comparison(instruction)
            }
            Model::ElidedInstruction => !bits::does_nothing(instruction),
            Model::TextBitFlip | Model::RegisterBitFlip => true,
            _ => false,
        }
    }

    /// All ways in which the instruction at `index` can be wrong; none if it is no
    /// candidate, or if no wrong one has the room.
    pub fn variants(&mut self, model: Model, index: usize) -> Vec<Variant> {
        if !self.is_candidate(model, index) {
            return Vec::new();
        }
        let site = &self.code.sites()[index];
        let instruction = &site.instruction;
        match model {
            Model::SourceRegister => encoded(site, operands::sources(&mut self.info, instruction)),
            Model::DestinationRegister => {
                encoded(site, operands::destinations(&mut self.info, instruction))
            }
            Model::Pointer => encoded(site, operands::pointers(instruction)),
            Model::LoopBound => {
                let compare = immediate::neighbours(instruction);
                encoded(site, compare.into_iter().chain(flow::widened(instruction)).collect())
            }
            Model::InvertedBranch => encoded(site, flow::inverted(instruction)),
            Model::OffByOne => {
                let constant = immediate::neighbours(instruction);
                encoded(site, constant.into_iter().chain(flow::widened(instruction)).collect())
            }
            Model::StaleParameter | Model::ElidedInstruction => vec![bits::elided(site)],
            Model::TextBitFlip => bits::flipped(site),
            _ => Vec::new(),
        }
    }
}

/// Those of the instructions that have the room, as bytes.
fn encoded(site: &Site, instructions: Vec<Instruction>) -> Vec<Variant> {
    instructions.iter().filter_map(|new| encode(site, new)).collect()
}

fn encode(site: &Site, new: &Instruction) -> Option<Variant> {
    let mut encoder = Encoder::new(64);
    encoder.encode(new, site.instruction.ip()).ok()?;
    let mut bytes = encoder.take_buffer();
    if bytes.len() > site.bytes.len() || bytes == site.bytes {
        return None;
    }
    bytes.resize(site.bytes.len(), NOP);
    let what = format!("{} -> {}", words(&site.instruction), words(new));
    Some(Variant { new: Bytes(bytes), what })
}

/// An instruction as Intel writes it.
fn words(instruction: &Instruction) -> String {
    let mut formatter = IntelFormatter::new();
    let options = formatter.options_mut();
    options.set_hex_prefix("0x");
    options.set_hex_suffix("");
    options.set_uppercase_hex(false);
    options.set_space_after_operand_separator(true);
    options.set_branch_leading_zeros(false);
    let mut text = String::new();
    formatter.format(instruction, &mut text);
    text
}

#[cfg(test)]
mod tests;
