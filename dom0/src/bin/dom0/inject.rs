//! The hand that does wrong to driver domains on request: writes orders into their ledger,
//! changes their memory, ends them; and looks at what comes of it. One injection at a time
//! for each domain.

use crate::{revive::Case, world::World};
use alloc::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
};
use bulkhead_abi::{DomId, Mfn, PAGE_SIZE, Pfn, ledger};
use bulkhead_link::{
    Cause, Kind, State,
    injection::{Injection, Patch, Signs, Target},
};
use dom0::{
    control::no_such_domain,
    injection::{BREAKPOINT, Place, at_share, entry},
};
use domain_rt::{
    Shared,
    mem::{self, Mapping},
    time,
};

/// Entries of the table of armed changes.
pub const ENTRIES: usize = 4;

/// What is known of driver domains for this.
#[derive(Default)]
pub struct Hands(BTreeMap<DomId, Hand>);

/// A driver domain, as its memory was laid out for the present life.
struct Hand {
    /// First frame of the domain's own list, which it may have changed since.
    list: Pfn,
    injected_ns: u64,
    /// Of an injection that has its effect at once.
    at_once_ns: u64,
    armed: Option<Armed>,
}

/// A breakpoint.
struct Armed {
    place: Place,
    first_byte: u8,
    /// The life that it is in.
    life: u32,
}

impl Hands {
    /// A driver domain has been laid out; its list of frames is from `list` on.
    pub fn note(&mut self, domid: DomId, list: Pfn) {
        let old = self.0.remove(&domid);
        let (injected_ns, at_once_ns) = old.map_or((0, 0), |h| (h.injected_ns, h.at_once_ns));
        self.0.insert(domid, Hand { list, injected_ns, at_once_ns, armed: None });
    }

    /// A domain is gone.
    pub fn forget(&mut self, domid: DomId) {
        self.0.remove(&domid);
    }
}

fn map(domid: DomId, frame: Mfn) -> Result<Mapping, String> {
    mem::map_foreign(domid, &[frame], true).map_err(|error| error.to_string())
}

impl World {
    /// The driver domain of that name.
    fn driver(&mut self, name: &str) -> Result<DomId, String> {
        let entry = self.table.by_name(name).ok_or_else(|| no_such_domain(name))?;
        match entry.kind == Kind::Driver && entry.exists {
            true => Ok(entry.domid),
            false => Err(format!("{name} is no driver domain that is there")),
        }
    }

    fn hand(&mut self, domid: DomId) -> Result<&mut Hand, String> {
        self.hands.0.get_mut(&domid).ok_or_else(|| "its memory is not known".into())
    }

    /// Frames of the domain when it was laid out.
    fn pages_of(&self, domid: DomId) -> u64 {
        self.frames.get(&domid).map_or(0, |frames| frames.len() as u64)
    }

    fn frame(&self, domid: DomId, pfn: Pfn) -> Result<Mfn, String> {
        let index = usize::try_from(pfn.get()).unwrap_or(usize::MAX);
        let frame = self.frames.get(&domid).and_then(|frames| frames.get(index));
        frame.map(|&mfn| Mfn::new(mfn)).ok_or_else(|| format!("it has no frame {pfn}"))
    }

    /// The frame that the domain has at `pfn` now.
    fn frame_now(&mut self, domid: DomId, pfn: Pfn) -> Result<Mfn, String> {
        const ENTRIES: u64 = (PAGE_SIZE / 8) as u64;
        let list = self.hand(domid)?.list.get() + pfn.get() / ENTRIES;
        let page = map(domid, self.frame(domid, Pfn::new(list))?)?;
        Ok(Mfn::new(page.shared().load_u64((pfn.get() % ENTRIES * 8) as usize)))
    }

    fn life(&mut self, domid: DomId) -> u32 {
        self.table.by_domid(domid).map_or(0, |entry| entry.restarts)
    }

    /// What [`dom0::control::Machine::inject`] is for.
    pub fn do_wrong(&mut self, name: &str, injection: &Injection) -> Result<(), String> {
        let domid = self.driver(name)?;
        self.take_back(name)?;
        let pages = self.ledger_pages(name).ok_or("it has no ledger")?;
        let now = time::now();
        let hand = self.hand(domid)?;
        (hand.injected_ns, hand.at_once_ns) = (now.get(), 0);
        match injection {
            Injection::Order { fault, argument, skip, more } => {
                pages.write_u64(ledger::FAULT_ACTIVATED_NS, 0);
                pages.store_u32(ledger::FAULT_SKIP, *skip);
                pages.store_u32(ledger::FAULT_MORE, *more);
                pages.write_u64(ledger::FAULT_ARGUMENT, *argument);
                pages.write_u64(ledger::FAULT_ARMED_NS, now.get());
                pages.write_u64(ledger::FAULT_COMMAND, *fault);
            }
            Injection::Patch(patch) => self.arm(domid, pages, patch)?,
            Injection::Flip { target, bit } => {
                self.flip(domid, pages, *target, *bit)?;
                self.hand(domid)?.at_once_ns = now.get();
            }
            Injection::Kill => {
                self.hand(domid)?.at_once_ns = now.get();
                let reason = "killed by fault injection".into();
                self.wants_revival(Case { domid, cause: Cause::Crash, reason, ended: now });
            }
        }
        Ok(())
    }

    /// Fills an entry of the table, then writes the breakpoint.
    fn arm(&mut self, domid: DomId, pages: Shared<'static>, patch: &Patch) -> Result<(), String> {
        let words = entry(patch)?;
        let life = self.life(domid);
        let place = Place::of(patch.va, self.pages_of(domid))?;
        let text = map(domid, self.frame(domid, place.pfn)?)?;
        let is_old = |(offset, byte): (usize, &u8)| {
            offset >= PAGE_SIZE || text.shared().load_u8(offset) == *byte
        };
        if !(place.offset..).zip(&patch.old).all(is_old) {
            return Err(format!("at {:#x} there is other code than was said", patch.va));
        }
        let table = patches_at(pages);
        for (index, word) in words.into_iter().enumerate() {
            pages.write_u64(table + 8 * index, word);
        }
        pages.write_u64(ledger::PATCHES, table as u64 | 1 << 32);
        let first_byte = text.shared().load_u8(place.offset);
        text.shared().store_u8(place.offset, BREAKPOINT);
        self.hand(domid)?.armed = Some(Armed { place, first_byte, life });
        Ok(())
    }

    fn flip(
        &mut self,
        domid: DomId,
        pages: Shared<'static>,
        target: Target,
        bit: u8,
    ) -> Result<(), String> {
        let range = |start, end| pages.read_u64(start)..pages.read_u64(end);
        let va = match target {
            Target::Address(va) => va,
            Target::Heap(share) => at_share(range(ledger::HEAP_START, ledger::HEAP_END), share)?,
            Target::Stack(share) => at_share(range(ledger::STACK_START, ledger::STACK_END), share)?,
        };
        let place = Place::of(va, self.pages_of(domid))?;
        let page = map(domid, self.frame_now(domid, place.pfn)?)?;
        let byte = page.shared().load_u8(place.offset);
        page.shared().store_u8(place.offset, byte ^ 1 << (bit % 8));
        Ok(())
    }

    /// What [`dom0::control::Machine::disarm`] is for. The lives that a campaign took are
    /// forgotten, too: it is not the driver that fails so often.
    pub fn take_back(&mut self, name: &str) -> Result<(), String> {
        let domid = self.driver(name)?;
        let pages = self.ledger_pages(name).ok_or("it has no ledger")?;
        pages.write_u64(ledger::FAULT_COMMAND, 0);
        pages.write_u64(ledger::FAULT_ACTIVATED_NS, 0);
        pages.write_u64(ledger::PATCHES, 0);
        let life = self.life(domid);
        self.table.forgive(domid);
        let hand = self.hand(domid)?;
        let Some(armed) = hand.armed.take().filter(|armed| armed.life == life) else {
            return Ok(());
        };
        let text = map(domid, self.frame(domid, armed.place.pfn)?)?;
        let offset = armed.place.offset;
        if text.shared().load_u8(offset) == BREAKPOINT {
            text.shared().store_u8(offset, armed.first_byte);
        }
        Ok(())
    }

    /// What [`dom0::control::Machine::signs`] is for.
    pub fn signs_of(&mut self, name: &str) -> Result<Signs, String> {
        let domid = self.driver(name)?;
        let pages = self.ledger_pages(name).ok_or("it has no ledger")?;
        let entry = self.table.by_domid(domid).ok_or("it is gone")?;
        let (restarts, is_reviving) = (entry.restarts, entry.is_reviving);
        let is_quarantined = entry.state == State::Quarantined;
        let hand = self.hand(domid)?;
        let patch = match pages.read_u64(ledger::PATCHES) {
            0 => 0,
            _ => pages.read_u64(patches_at(pages) + ledger::patch::ACTIVATED_NS),
        };
        let order = pages.read_u64(ledger::FAULT_ACTIVATED_NS);
        Ok(Signs {
            now_ns: time::now().get(),
            injected_ns: hand.injected_ns,
            activated_ns: [hand.at_once_ns, order, patch].into_iter().max().unwrap_or(0),
            beats: pages.read_u64(ledger::HEARTBEAT_OFFSET),
            restarts,
            is_reviving,
            is_quarantined,
        })
    }
}

/// Where the table of armed changes is: at the end of the ledger.
pub fn patches_at(pages: Shared<'static>) -> usize {
    pages.bytes() - ENTRIES * ledger::patch::BYTES
}
