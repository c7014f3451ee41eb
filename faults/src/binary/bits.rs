//! Faults that need not understand the instruction: missing, or with one bit wrong.

use super::{NOP, Variant, words};
use crate::image::Site;
use crate::units::Bytes;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

/// Whether leaving it out would change nothing.
pub fn does_nothing(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Pause)
}

/// The instruction left out.
pub fn elided(site: &Site) -> Variant {
    let what = format!("{} -> (nothing)", words(&site.instruction));
    Variant { new: Bytes(vec![NOP; site.bytes.len()]), what }
}

/// The instruction with each of its bits flipped, one by one.
pub fn flipped(site: &Site) -> Vec<Variant> {
    let bits = 0..site.bytes.len() * 8;
    bits.map(|bit| {
        let mut bytes = site.bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let new =
            Decoder::with_ip(64, &bytes, site.instruction.ip(), DecoderOptions::NONE).decode();
        let new = if new.is_invalid() { "(no instruction)".into() } else { words(&new) };
        let what = format!("bit {bit}: {} -> {new}", words(&site.instruction));
        Variant { new: Bytes(bytes), what }
    })
    .collect()
}
