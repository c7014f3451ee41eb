//! The instructions of an image, and what surrounds each: which ones are jumped to,
//! which function they are in.

use super::{Function, Image};
use crate::units::Va;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction};
use std::collections::BTreeSet;

/// Every instruction of every function.
#[derive(Clone, Debug)]
pub struct Code {
    functions: Vec<Function>,
    sites: Vec<Site>,
    targets: BTreeSet<u64>,
}

/// One instruction at its place.
#[derive(Clone, Debug)]
pub struct Site {
    /// As decoded at its address.
    pub instruction: Instruction,
    /// As they are in the image.
    pub bytes: Vec<u8>,
    function: u32,
}

impl Site {
    /// Its address.
    pub fn va(&self) -> Va {
        Va::new(self.instruction.ip())
    }
}

impl Code {
    /// Decodes all functions. What is no instruction (data, or padding between
    /// functions) is passed over.
    pub fn decode(image: &Image) -> Self {
        let mut code = Self {
            functions: image.functions.clone(),
            sites: Vec::new(),
            targets: BTreeSet::new(),
        };
        for (number, function) in image.functions.iter().enumerate() {
            let bytes = image.bytes(function.start.number(), function.size).unwrap_or(&[]);
            code.decode_function(number as u32, function.start.number(), bytes);
        }
        code
    }

    fn decode_function(&mut self, function: u32, start: u64, bytes: &[u8]) {
        let decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
        for instruction in decoder.into_iter().filter(|i| !i.is_invalid()) {
            let from = (instruction.ip() - start) as usize;
            let bytes = bytes[from..from + instruction.len()].to_vec();
            if instruction.is_jmp_short_or_near() || instruction.is_jcc_short_or_near() {
                self.targets.insert(instruction.near_branch_target());
            }
            self.sites.push(Site { instruction, bytes, function });
        }
    }

    /// All instructions, by address.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// The function that an instruction is in.
    pub fn function(&self, site: &Site) -> &Function {
        &self.functions[site.function as usize]
    }

    /// The instructions after this one that are executed after it and only after it, the
    /// nearest first: up to the first jump or call, which is the last one given.
    pub fn straight_after(&self, index: usize) -> impl Iterator<Item = usize> {
        (index + 1..self.sites.len()).take_while(move |after| self.leads_to_next(after - 1))
    }

    /// Whether an instruction is followed by the next one, and that one only reached so.
    fn leads_to_next(&self, index: usize) -> bool {
        let (this, next) = (&self.sites[index], &self.sites[index + 1]);
        this.function == next.function
            && this.instruction.next_ip() == next.instruction.ip()
            && this.instruction.flow_control() == FlowControl::Next
            && !self.targets.contains(&next.instruction.ip())
    }
}
