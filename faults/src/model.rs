//! The fault models, each by name: what can be broken.
//!
//! The binary ones are the classes that Ng and Chen made for Rio and that Nooks and
//! MINIX 3 used for drivers, so that results compare; the others are what a driver, a
//! peer or a device can do wrong on the interfaces of this system.

use crate::error::{CampaignError, suggest};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What kind of thing is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// The driver domain's code, data or registers.
    Binary,
    /// What one end of a ring does to the other.
    Interface,
    /// What the device does to its driver.
    Device,
    /// Time and memory.
    Resource,
}

impl Family {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Binary, Self::Interface, Self::Device, Self::Resource];

    /// As a file writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Interface => "interface",
            Self::Device => "device",
            Self::Resource => "resource",
        }
    }
}

/// Who misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The driver domain under test, or its device.
    Driver,
    /// The front end of the guest that the campaign names for it.
    Front,
}

macro_rules! models {
    ($($family:ident { $($variant:ident $name:literal $about:literal)* })*) => {
        /// A way to break something.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Model {
            $($(#[doc = $about] #[serde(rename = $name)] $variant,)*)*
        }

        impl Model {
            /// All, family by family.
            pub const ALL: &[Self] = &[$($(Self::$variant),*),*];

            /// As files and reports write it.
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$variant => $name,)*)* }
            }

            /// What it does, in one line.
            pub const fn about(self) -> &'static str {
                match self { $($(Self::$variant => $about,)*)* }
            }

            /// What kind of thing it breaks.
            pub const fn family(self) -> Family {
                match self { $($(Self::$variant)|* => Family::$family,)* }
            }
        }
    };
}

models! {
    Binary {
        SourceRegister "source-register" "an instruction reads another register than it should"
        DestinationRegister "destination-register" "an instruction writes another register than it should"
        Pointer "pointer" "a memory operand has another base register or displacement"
        StaleParameter "stale-parameter" "the instruction that sets an argument of a call is missing"
        LoopBound "loop-bound" "the test at a loop's end is off by one"
        InvertedBranch "inverted-branch" "a conditional jump jumps when it should not, and the reverse"
        OffByOne "off-by-one" "a constant or a comparison is off by one"
        ElidedInstruction "elided-instruction" "an instruction is missing"
        TextBitFlip "text-bit-flip" "one bit of an instruction is flipped"
        DataBitFlip "data-bit-flip" "one bit of static data, heap or stack is flipped"
        RegisterBitFlip "register-bit-flip" "one bit of a register is flipped at an instruction"
    }
    Interface {
        WrongId "wrong-id" "the back end answers with an id that it was not asked with"
        Duplicate "duplicate" "the back end answers a request twice"
        Early "early" "the back end answers before the device has done the work"
        Late "late" "the back end holds answers back"
        Never "never" "the back end does not answer a request"
        AbsurdProducer "absurd-producer" "the back end publishes a producer index that cannot be"
        EventStorm "event-storm" "the back end sends events without end"
        NoEvent "no-event" "the back end answers and sends no event"
        FrontWrongId "front-wrong-id" "the front end uses an id again that is still in flight"
        FrontDuplicate "front-duplicate" "the front end puts the same request on the ring twice"
        FrontEarly "front-early" "the front end publishes a request before it has written it"
        FrontLate "front-late" "the front end takes answers late, so that the ring stays full"
        FrontNever "front-never" "the front end takes no answers any more"
        FrontAbsurdProducer "front-absurd-producer" "the front end publishes a producer index that cannot be"
        FrontEventStorm "front-event-storm" "the front end sends events without end"
        FrontNoEvent "front-no-event" "the front end asks and sends no event"
    }
    Device {
        LostInterrupt "lost-interrupt" "an interrupt of the device does not arrive"
        SpuriousInterrupt "spurious-interrupt" "an interrupt arrives that the device did not raise"
        StuckStatus "stuck-status" "a status of the device keeps its value"
        WrongDmaAddress "wrong-dma-address" "the device is given another address than it should"
    }
    Resource {
        Hang "hang" "the driver domain loops for ever"
        Slow "slow" "the driver domain takes longer for each request than it should"
        HeapExhaustion "heap-exhaustion" "the driver domain's heap has nothing left"
        StackOverflow "stack-overflow" "the driver domain recurses without end"
        Kill "kill" "the driver domain is destroyed from outside"
    }
}

impl Model {
    /// Who misbehaves.
    pub fn victim(self) -> Victim {
        if self.name().starts_with("front-") { Victim::Front } else { Victim::Driver }
    }

    /// Whether it is made by changing one instruction, at which it then has its place.
    pub const fn is_patch(self) -> bool {
        matches!(self.family(), Family::Binary)
            && !matches!(self, Self::DataBitFlip | Self::RegisterBitFlip)
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Model {
    type Err = CampaignError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|m| m.name() == text).ok_or_else(|| {
            CampaignError::plain(format!("there is no fault model `{text}`"))
                .help(suggest(text, Self::ALL.iter().map(|m| m.name())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_lead_back_to_their_model() {
        let names: BTreeSet<_> = Model::ALL.iter().map(|m| m.name()).collect();
        assert_eq!(names.len(), Model::ALL.len());
        for model in Model::ALL {
            assert_eq!(model.name().parse::<Model>().unwrap(), *model);
            let json = serde_json::to_string(model).unwrap();
            assert_eq!(json, format!("\"{model}\""));
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest_one() {
        let error = "inverted-brunch".parse::<Model>().unwrap_err();
        assert_eq!(error.remedy(), Some("did you mean `inverted-branch`?"));
    }

    #[test]
    fn each_thing_a_back_end_does_wrong_a_front_end_can_do_too() {
        let interface = Model::ALL.iter().copied().filter(|m| m.family() == Family::Interface);
        let (front, back): (Vec<Model>, Vec<Model>) =
            interface.partition(|m| m.victim() == Victim::Front);
        let front: Vec<_> = front.iter().map(|m| &m.name()["front-".len()..]).collect();
        assert_eq!(front, back.iter().map(|m| m.name()).collect::<Vec<_>>());
    }
}
