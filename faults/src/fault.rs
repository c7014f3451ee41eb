//! One fault: what is done, when, and all that a machine must know to do it.
//!
//! Text is changed at a breakpoint. The machine writes `int3` over the first byte at a
//! patch's address; when the driver domain comes there, its runtime notes the time
//! ("activated"), writes the new bytes (for a register flip: the old ones) and goes on at
//! the same address. A breakpoint that nobody reached is taken out again: the fault was
//! not activated.

use crate::error::CampaignError;
use crate::image::Image;
use crate::model::Model;
use crate::units::{Bytes, Us, Va};
use serde::{Deserialize, Serialize};

/// A fault to inject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Its model.
    pub model: Model,
    /// When: so long after the load has begun to run steadily.
    pub after_us: Us,
    /// What is done.
    pub action: Action,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Action {
    /// An instruction becomes another one.
    Patch(Patch),
    /// A bit of memory is flipped.
    FlipMemory {
        /// Where.
        target: Target,
        /// 0 to 7 in the byte.
        bit: u8,
    },
    /// A bit of a register is flipped when an instruction is reached.
    FlipRegister {
        /// The instruction.
        va: Va,
        /// Its bytes, which it keeps.
        old: Bytes,
        /// The register.
        register: Register,
        /// 0 to 63.
        bit: u8,
    },
    /// The model's misbehaviour is switched on, at a ring, at the device or inside the
    /// domain; [`Dose`] says how much of it.
    Misbehave(Dose),
}

/// The same number of bytes in place of others, all of one instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// The instruction's address: where the breakpoint is set.
    pub va: Va,
    /// Its bytes.
    pub old: Bytes,
    /// What is executed instead, from the first time on.
    pub new: Bytes,
    /// Both, for a person.
    pub what: String,
}

/// Memory of the driver domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "in", rename_all = "kebab-case")]
pub enum Target {
    /// Static data, at a fixed address.
    Static {
        /// The byte.
        va: Va,
    },
    /// What of the heap is in use, from its lowest address on.
    Heap {
        /// The byte's place in it: 0 is its start, 2^32 would be its end.
        share: u32,
    },
    /// What of the stack is in use, from the stack pointer up.
    Stack {
        /// As for the heap.
        share: u32,
    },
}

impl Target {
    /// The byte's offset in memory of that many bytes; `None` for static data.
    pub const fn offset_in(self, bytes: u64) -> Option<u64> {
        match self {
            Self::Static { .. } => None,
            Self::Heap { share } | Self::Stack { share } => {
                Some(((bytes as u128 * share as u128) >> 32) as u64)
            }
        }
    }
}

/// A register that a bit is flipped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the machine's own register names")]
pub enum Register {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    Rip,
}

impl Register {
    /// All, in the order of the machine's numbers.
    pub const ALL: [Self; 17] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
        Self::Rip,
    ];
}

/// How much of a misbehaviour. What is counted are the ring's answers (a front end's:
/// its requests), the device's interrupts or requests; see docs/fault-injection.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dose {
    /// So many go right first.
    pub skip: u32,
    /// So many go wrong then; 0: all from then on.
    pub times: u32,
    /// How wrong: a distance of ids or indices, events in a storm, bytes off an address,
    /// according to the model; 0 where nothing can be chosen.
    pub amount: u32,
    /// How late or slow each is; 0 where nothing waits.
    pub delay_us: Us,
}

impl Fault {
    /// The instruction at which it is activated, if there is one.
    pub const fn instruction(&self) -> Option<(Va, &Bytes)> {
        match &self.action {
            Action::Patch(patch) => Some((patch.va, &patch.old)),
            Action::FlipRegister { va, old, .. } => Some((*va, old)),
            Action::FlipMemory { .. } | Action::Misbehave(_) => None,
        }
    }

    /// The address that it is at, if that is fixed.
    pub const fn va(&self) -> Option<Va> {
        match self.action {
            Action::FlipMemory { target: Target::Static { va }, .. } => Some(va),
            _ => match self.instruction() {
                Some((va, _)) => Some(va),
                None => None,
            },
        }
    }

    /// Whether it means the same in an image: its bytes are there, its lengths agree.
    ///
    /// # Errors
    /// What does not fit. A line that a plan has made fits the image it was made for.
    pub fn check(&self, image: &Image) -> Result<(), CampaignError> {
        let wrong = |what: String| {
            Err(CampaignError::plain(format!("this fault does not fit the driver's image: {what}"))
                .help("replay a line as the campaign wrote it, with the image that it ran"))
        };
        if let Some((va, old)) = self.instruction()
            && image.bytes(va.number(), old.0.len() as u64) != Some(&old.0)
        {
            return wrong(format!("at {va} there are other bytes than {old:?}"));
        }
        match &self.action {
            Action::Patch(patch) if patch.old.0.len() != patch.new.0.len() => {
                wrong(format!("{:?} is not as long as {:?}", patch.new, patch.old))
            }
            Action::FlipMemory { bit, .. } if *bit > 7 => wrong(format!("a byte has no bit {bit}")),
            Action::FlipMemory { target: Target::Static { va }, .. }
                if !image.statics().iter().any(|range| range.contains(&va.number())) =>
            {
                wrong(format!("{va} is no static data"))
            }
            Action::FlipRegister { bit, .. } if *bit > 63 => {
                wrong(format!("a register has no bit {bit}"))
            }
            _ => Ok(()),
        }
    }

    /// What is done, in one line.
    pub fn what(&self) -> String {
        match &self.action {
            Action::Patch(patch) => patch.what.clone(),
            Action::FlipMemory { target, bit } => format!("bit {bit} of {}", target.words()),
            Action::FlipRegister { register, bit, .. } => {
                format!("bit {bit} of {}", format!("{register:?}").to_lowercase())
            }
            Action::Misbehave(dose) => dose.words(),
        }
    }
}

impl Target {
    fn words(self) -> String {
        let percent = |share: u32| f64::from(share) / f64::from(u32::MAX) * 100.0;
        match self {
            Self::Static { va } => format!("the byte at {va}"),
            Self::Heap { share } => format!("the heap, {:.1} % up", percent(share)),
            Self::Stack { share } => format!("the stack, {:.1} % up", percent(share)),
        }
    }
}

impl Dose {
    fn words(self) -> String {
        let mut words = vec![format!("after {}", self.skip)];
        words.push(match self.times {
            0 => "from then on".into(),
            1 => "once".into(),
            times => format!("{times} times"),
        });
        if self.amount > 0 {
            words.push(format!("by {}", self.amount));
        }
        if self.delay_us > Us::default() {
            words.push(format!("for {}", self.delay_us));
        }
        words.join(", ")
    }
}
