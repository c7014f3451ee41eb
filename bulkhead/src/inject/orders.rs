//! From a fault of a campaign to what Dom0, or a guest, is told to do.

use bulkhead_abi::ledger::fault as order;
use bulkhead_link::injection::{Change, Injection, Patch, Target};
use faults::{
    Fault, Image, Model,
    fault::{Action, Dose, Register, Target as Memory},
    model::Victim,
};
use std::ops::Range;

/// Number of rip in an armed change.
const RIP: u32 = 17;
const PAGE: u64 = 4096;
/// Linear address of pfn 0 in the image of a domain.
const IMAGE: u64 = 0xffff_ffff_8000_0000;

/// Whom a fault is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The driver domain, by way of Dom0.
    Driver(Injection),
    /// The guest whose front end misbehaves: a line on its console.
    Front(String),
}

/// Makes orders for one build of a driver domain.
#[derive(Clone, Debug)]
pub struct Orders {
    /// The pages of its image, by pfn.
    pages: Range<u64>,
}

impl Orders {
    /// For this image.
    pub fn new(image: &Image) -> Self {
        let first = image.functions().first().map_or(IMAGE, |f| f.start.number());
        let last = image.statics().iter().map(|range| range.end).max().unwrap_or(first);
        let pfn = |va: u64| va.saturating_sub(IMAGE) / PAGE;
        Self { pages: pfn(first)..pfn(last).max(pfn(first) + 1) }
    }

    /// What a fault is made of.
    pub fn of(&self, fault: &Fault) -> Told {
        let injection = match &fault.action {
            Action::Patch(patch) => Injection::Patch(Patch {
                va: patch.va.number(),
                old: patch.old.0.clone(),
                change: Change::Code(patch.new.0.clone()),
            }),
            Action::FlipRegister { va, old, register, bit } => Injection::Patch(Patch {
                va: va.number(),
                old: old.0.clone(),
                change: Change::Register { register: number(*register), bit: u32::from(*bit) },
            }),
            Action::FlipMemory { target, bit } => {
                Injection::Flip { target: place(*target), bit: *bit }
            }
            Action::Misbehave(dose) if fault.model.victim() == Victim::Front => {
                return Told::Front(front(fault.model, *dose));
            }
            Action::Misbehave(dose) => self.misbehave(fault.model, *dose),
        };
        Told::Driver(injection)
    }

    fn misbehave(&self, model: Model, dose: Dose) -> Injection {
        let (amount, ns) = (u64::from(dose.amount), dose.delay_us.number() * 1000);
        let (fault, argument) = match model {
            Model::Kill => return Injection::Kill,
            Model::WrongId => (order::WRONG_ID, amount),
            Model::Duplicate => (order::DUPLICATE, 0),
            Model::Early => (order::EARLY, 0),
            Model::Late => (order::LATE, ns),
            Model::Never => (order::NEVER, 0),
            Model::AbsurdProducer => (order::ABSURD_PRODUCER, amount),
            Model::EventStorm => (order::EVENT_STORM, amount),
            Model::NoEvent => (order::NO_EVENT, 0),
            Model::LostInterrupt => (order::LOST_INTERRUPT, 0),
            Model::SpuriousInterrupt => (order::SPURIOUS_INTERRUPT, 0),
            Model::StuckStatus => (order::STUCK_DEVICE, 0),
            Model::WrongDmaAddress => (order::DMA_INSIDE, self.page(dose)),
            Model::Slow => (order::SLOW, ns),
            Model::HeapExhaustion => (order::HEAP_EXHAUSTION, 0),
            Model::StackOverflow => (order::STACK_OVERFLOW, 0),
            // Code and data are changed by actions of their own, front ends by their guest.
            _ => (order::HANG, 0),
        };
        // What goes on by itself once it has begun needs no second time.
        let more = dose.times.saturating_sub(1);
        Injection::Order { fault, argument, skip: dose.skip, more }
    }

    /// A page of the domain's image: without an IOMMU a device that is sent anywhere else
    /// would reach what no isolation of this machine can protect.
    fn page(&self, dose: Dose) -> u64 {
        let pages = self.pages.end - self.pages.start;
        let draw = u64::from(dose.amount) / PAGE * 64 + u64::from(dose.skip);
        self.pages.start + draw.wrapping_mul(0x9e37_79b9) % pages
    }
}

fn number(register: Register) -> u32 {
    match register {
        Register::Rip => RIP,
        other => Register::ALL.iter().position(|known| *known == other).map_or(RIP, |at| at as u32),
    }
}

const fn place(target: Memory) -> Target {
    match target {
        Memory::Static { va } => Target::Address(va.number()),
        Memory::Heap { share } => Target::Heap(share),
        Memory::Stack { share } => Target::Stack(share),
    }
}

/// The line for a front end: what, how wrong or how late (ns), and the dose.
fn front(model: Model, dose: Dose) -> String {
    let argument = match dose.delay_us.number() {
        0 => u64::from(dose.amount),
        us => us * 1000,
    };
    format!("order {model} {argument} {} {}\n", dose.skip, dose.times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use faults::units::{Bytes, Us, Va};

    fn orders() -> Orders {
        Orders { pages: 256..356 }
    }

    fn fault(model: Model, action: Action) -> Fault {
        Fault { model, after_us: Us::new(0), action }
    }

    fn dose(skip: u32, times: u32, amount: u32, ms: u64) -> Action {
        Action::Misbehave(Dose { skip, times, amount, delay_us: Us::from_ms(ms) })
    }

    #[test]
    fn every_model_of_the_driver_has_an_order_of_its_own() {
        let ours = Model::ALL
            .iter()
            .filter(|m| m.victim() == Victim::Driver && m.family() != faults::Family::Binary);
        let mut seen = Vec::new();
        for model in ours {
            let told = orders().of(&fault(*model, dose(3, 2, 8192, 0)));
            let word = match told {
                Told::Driver(Injection::Order { fault, skip, more, .. }) => {
                    assert_eq!((skip, more), (3, 1), "{model}");
                    fault
                }
                Told::Driver(Injection::Kill) => 0,
                other => panic!("{model}: {other:?}"),
            };
            assert!(!seen.contains(&word), "{model}");
            seen.push(word);
        }
    }

    #[test]
    fn a_front_end_is_told_by_a_line() {
        let late = orders().of(&fault(Model::FrontLate, dose(5, 7, 0, 2)));
        assert_eq!(late, Told::Front("order front-late 2000000 5 7\n".into()));
        let storm = orders().of(&fault(Model::FrontEventStorm, dose(0, 1, 999, 0)));
        assert_eq!(storm, Told::Front("order front-event-storm 999 0 1\n".into()));
    }

    #[test]
    fn a_wrong_dma_address_is_in_the_image() {
        for skip in 0..64 {
            for pages in 1..=64 {
                let told =
                    orders().of(&fault(Model::WrongDmaAddress, dose(skip, 1, pages << 12, 0)));
                let Told::Driver(Injection::Order { argument, .. }) = told else { panic!() };
                assert!((256..356).contains(&argument));
            }
        }
    }

    #[test]
    fn registers_are_numbered_as_instructions_do() {
        let flip = |register| {
            let (va, old) = (Va::new(7), Bytes(vec![0x90]));
            orders().of(&fault(
                Model::RegisterBitFlip,
                Action::FlipRegister { va, old, register, bit: 9 },
            ))
        };
        for (register, number) in
            [(Register::Rax, 0), (Register::Rsp, 4), (Register::R15, 15), (Register::Rip, 17)]
        {
            let change = Change::Register { register: number, bit: 9 };
            let patch = Patch { va: 7, old: vec![0x90], change };
            assert_eq!(flip(register), Told::Driver(Injection::Patch(patch)));
        }
    }
}
