use super::*;
use crate::image::Image;
use crate::testing::{TEXT, elf_of};
use iced_x86::{Decoder, DecoderOptions};
use std::collections::BTreeSet;

/// The variants of the instruction at `offset` of some code, as bytes.
fn variants(model: Model, code: &[u8], offset: u64) -> Vec<Vec<u8>> {
    let code = Code::decode(&Image::parse(&elf_of(code)).unwrap());
    let index = code.sites().iter().position(|s| s.va().number() == TEXT + offset).unwrap();
    let found = Mutator::new(&code).variants(model, index);
    found.into_iter().map(|variant| variant.new.0).collect()
}

#[test]
fn a_source_register_becomes_each_other_one_and_the_destination_stays() {
    // mov rax, rbx: the source is in bits 3-5 of the last byte and bit 2 of the prefix.
    let found = variants(Model::SourceRegister, &[0x48, 0x89, 0xd8], 0);
    let expected: BTreeSet<_> = (0u8..16)
        .filter(|register| *register != 3)
        .map(|r| vec![0x48 | r >> 3 << 2, 0x89, 0xc0 | (r & 7) << 3])
        .collect();
    assert_eq!(BTreeSet::from_iter(found), expected);
}

#[test]
fn a_destination_register_becomes_each_other_one_and_the_source_stays() {
    let found = variants(Model::DestinationRegister, &[0x48, 0x89, 0xd8], 0);
    let expected: BTreeSet<_> =
        (1u8..16).map(|r| vec![0x48 | r >> 3, 0x89, 0xd8 | (r & 7)]).collect();
    assert_eq!(BTreeSet::from_iter(found), expected);
}

#[test]
fn an_inverted_branch_differs_in_one_bit_of_its_opcode() {
    for condition in 0..16 {
        assert_eq!(
            variants(Model::InvertedBranch, &[0x70 | condition, 0x05], 0),
            [[0x70 | condition ^ 1, 0x05]]
        );
        let near = [0x0f, 0x80 | condition, 5, 0, 0, 0];
        assert_eq!(
            variants(Model::InvertedBranch, &near, 0),
            [[0x0f, 0x80 | condition ^ 1, 5, 0, 0, 0]]
        );
    }
}

#[test]
fn off_by_one_moves_a_constant_both_ways_but_not_past_its_ends() {
    let compare = |imm: u8| variants(Model::OffByOne, &[0x48, 0x83, 0xf8, imm], 0);
    assert_eq!(compare(10), [[0x48, 0x83, 0xf8, 9], [0x48, 0x83, 0xf8, 11]]);
    assert_eq!(compare(0x7f), [[0x48, 0x83, 0xf8, 0x7e]]);
    assert_eq!(compare(0x80), [[0x48, 0x83, 0xf8, 0x81]]);
    assert_eq!(compare(0), [[0x48, 0x83, 0xf8, 0xff], [0x48, 0x83, 0xf8, 1]]);
}

#[test]
fn off_by_one_takes_the_bound_into_a_comparison_or_out_of_it() {
    // jb, jae, jbe, ja; jl, jge, jle, jg: with and without equal.
    for (one, other) in [(0x72, 0x76), (0x73, 0x77), (0x7c, 0x7e), (0x7d, 0x7f)] {
        assert_eq!(variants(Model::OffByOne, &[one, 2], 0), [[other, 2]]);
        assert_eq!(variants(Model::OffByOne, &[other, 2], 0), [[one, 2]]);
    }
    assert!(variants(Model::OffByOne, &[0x74, 2], 0).is_empty(), "je has no neighbour");
}

#[test]
fn a_pointer_gets_another_base_or_another_displacement() {
    // mov rax, [rbx + 8]
    let found = variants(Model::Pointer, &[0x48, 0x8b, 0x43, 0x08], 0);
    let displacements: BTreeSet<_> =
        (0..8).map(|bit| vec![0x48, 0x8b, 0x43, 0x08 ^ (1 << bit)]).collect();
    // rsp and r12 need a byte more, for which there is no room.
    let bases: BTreeSet<_> = (0u8..16)
        .filter(|r| ![3, 4, 12].contains(r))
        .map(|r| vec![0x48 | r >> 3, 0x8b, 0x40 | (r & 7), 0x08])
        .collect();
    let expected: BTreeSet<_> = displacements.union(&bases).cloned().collect();
    assert_eq!(BTreeSet::from_iter(found), expected);
}

#[test]
fn an_address_that_is_only_computed_is_no_pointer() {
    assert!(variants(Model::Pointer, &[0x48, 0x8d, 0x43, 0x08], 0).is_empty(), "lea");
}

#[test]
fn a_stale_parameter_is_the_last_setting_of_an_argument_before_a_call() {
    let code = [
        0x48, 0x89, 0xc7, // 0: mov rdi, rax (overwritten below)
        0x48, 0x89, 0xdf, // 3: mov rdi, rbx
        0x48, 0x89, 0xc3, // 6: mov rbx, rax (no argument)
        0x31, 0xf6, // 9: xor esi, esi
        0xe8, 0, 0, 0, 0, // 11: call
        0x48, 0x89, 0xc7, // 16: mov rdi, rax (no call after it)
        0xc3,
    ];
    let stale = |offset| variants(Model::StaleParameter, &code, offset);
    assert_eq!(stale(3), [[NOP; 3]]);
    assert_eq!(stale(9), [[NOP; 2]]);
    for right in [0, 6, 11, 16] {
        assert!(stale(right).is_empty(), "at {right}");
    }
}

#[test]
fn an_argument_set_before_a_place_that_is_jumped_to_is_not_the_calls_alone() {
    let code = [
        0x48, 0x89, 0xdf, // 0: mov rdi, rbx
        0xe8, 0, 0, 0, 0, // 3: call
        0xeb, 0xf9, // 8: jmp 3
    ];
    assert!(variants(Model::StaleParameter, &code, 0).is_empty());
}

#[test]
fn a_loop_bound_is_the_test_of_a_jump_back() {
    let code = [
        0x48, 0xff, 0xc0, // 0: inc rax
        0x48, 0x83, 0xf8, 10, // 3: cmp rax, 10
        0x75, 0xf7, // 7: jne 0
        0x48, 0x83, 0xf8, 10, // 9: cmp rax, 10
        0x75, 0x00, // 13: jne 15
        0x48, 0x39, 0xd8, // 15: cmp rax, rbx
        0x72, 0xec, // 18: jb 0
        0xc3,
    ];
    let bound = |offset| variants(Model::LoopBound, &code, offset);
    assert_eq!(bound(3), [[0x48, 0x83, 0xf8, 9], [0x48, 0x83, 0xf8, 11]]);
    assert_eq!(bound(18), [[0x76, 0xec]], "jb becomes jbe");
    for other in [0, 7, 9, 13, 15] {
        assert!(bound(other).is_empty(), "at {other}");
    }
}

#[test]
fn text_bit_flips_are_all_bits_of_the_instruction() {
    let found = variants(Model::TextBitFlip, &[0x48, 0x89, 0xd8], 0);
    let bit = |bytes: &Vec<u8>| {
        let bits = bytes.iter().zip([0x48, 0x89, 0xd8]).map(|(a, b)| (a ^ b).count_ones());
        bits.sum::<u32>()
    };
    assert_eq!(found.len(), 24);
    assert!(found.iter().all(|bytes| bit(bytes) == 1));
    assert_eq!(BTreeSet::from_iter(found).len(), 24);
}

#[test]
fn what_does_nothing_is_not_elided() {
    assert!(variants(Model::ElidedInstruction, &[0x0f, 0x1f, 0x00], 0).is_empty());
    assert_eq!(variants(Model::ElidedInstruction, &[0xc3], 0), [[NOP]]);
}

/// The decoder as a judge of what the encoder made, over a program of some size: this
/// test's own.
#[test]
fn every_variant_of_real_code_is_one_instruction_wrong_in_the_named_way() {
    let file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let code = Code::decode(&Image::parse(&file).unwrap());
    let mut mutator = Mutator::new(&code);
    let models = Model::ALL.iter().copied().filter(|m| m.is_patch());
    for model in models {
        let candidates: Vec<_> = (0..code.sites().len())
            .step_by(7)
            .filter(|index| mutator.is_candidate(model, *index))
            .collect();
        let step = candidates.len().div_ceil(300).max(1);
        let mut seen = 0;
        for index in candidates.iter().step_by(step) {
            for variant in mutator.variants(model, *index) {
                judge(model, &code.sites()[*index], &variant);
                seen += 1;
            }
        }
        assert!(seen > 0, "{model} was never possible");
    }
}

fn judge(model: Model, site: &Site, variant: &Variant) {
    let (old, new) = (&site.bytes, &variant.new.0);
    assert_eq!(old.len(), new.len(), "{}", variant.what);
    assert_ne!(old, new, "{}", variant.what);
    if matches!(model, Model::TextBitFlip | Model::ElidedInstruction | Model::StaleParameter) {
        return;
    }
    let was = &site.instruction;
    let is = Decoder::with_ip(64, new, was.ip(), DecoderOptions::NONE).decode();
    assert!(!is.is_invalid(), "{}", variant.what);
    assert!(new[is.len()..].iter().all(|byte| *byte == NOP), "{}", variant.what);
    assert_eq!(was.op_count(), is.op_count(), "{}", variant.what);
    let changed: Vec<_> = (0..was.op_count()).filter(|op| differs(was, &is, *op)).collect();
    match model {
        Model::InvertedBranch => assert!(changed.is_empty(), "{}", variant.what),
        Model::OffByOne | Model::LoopBound => assert!(changed.len() <= 1, "{}", variant.what),
        _ => assert_eq!(changed.len(), 1, "{}", variant.what),
    }
    if !was.is_jcc_short_or_near() {
        assert_eq!(was.mnemonic(), is.mnemonic(), "{}", variant.what);
    }
}

fn differs(was: &Instruction, is: &Instruction, op: u32) -> bool {
    use iced_x86::OpKind;
    match was.op_kind(op) {
        OpKind::Register => was.op_register(op) != is.op_register(op),
        OpKind::Memory => {
            (was.memory_base(), was.memory_displacement64())
                != (is.memory_base(), is.memory_displacement64())
        }
        OpKind::NearBranch64 => was.near_branch_target() != is.near_branch_target(),
        _ => was.try_immediate(op).ok() != is.try_immediate(op).ok(),
    }
}
