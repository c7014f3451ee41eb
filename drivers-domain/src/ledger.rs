//! The pages that outlive this domain, and the signs of life in them: a heartbeat, and
//! when this life reached its milestones. Dom0 grants them (`bulkhead_abi::ledger`);
//! where it does not, private ones serve until we die.

use alloc::format;
use alloc::rc::Rc;
use alloc::vec::Vec;
use blkback::{Counters, Cursors, Ledger, OnFailure, Redo, SharedLedger};
use bulkhead_abi::{DomId, Gref, PAGE_SIZE, ledger as at};
use core::time::Duration;
use domain_rt::grant::{self, GrantMapping};
use domain_rt::mem::{self, Pages};
use domain_rt::xenstore::{Xenstore, number};
use domain_rt::{Shared, time};
use ring_proto::RingMemory;

/// Most pages of a ledger that are used.
const MAX_PAGES: u64 = 16;
/// The folder, relative to our home.
const FOLDER: &str = "bulkhead/ledger";

enum Backing {
    Granted(GrantMapping),
    Private(Pages),
}

/// The pages; clones share them.
#[derive(Clone)]
pub struct LedgerPages(Rc<Backing>);

impl LedgerPages {
    /// Finds the pages that Dom0 granted, or takes private ones, and notes there that this
    /// life has begun. `None` when memory is short.
    pub async fn find(store: &Xenstore) -> Option<Self> {
        let pages = Self::choose(store).await?;
        for milestone in [at::FIRST_RESPONSE_NS, at::DEVICE_NS] {
            pages.store_wide(milestone, 0);
        }
        pages.store_wide(at::BOOT_NS, time::started().get());
        Some(pages)
    }

    async fn choose(store: &Xenstore) -> Option<Self> {
        if let Some(mapping) = granted(store).await {
            let pages = Self(Rc::new(Backing::Granted(mapping)));
            if pages.shared().load_u64(at::MAGIC_OFFSET) == at::MAGIC {
                return Some(pages);
            }
            log::warn!("ledger: the granted pages are none");
        }
        log::info!("ledger: private pages, nothing survives this domain");
        Some(Self(Rc::new(Backing::Private(mem::alloc_pages(1)?))))
    }

    pub(crate) fn shared(&self) -> Shared<'_> {
        match &*self.0 {
            Backing::Granted(mapping) => mapping.shared(),
            Backing::Private(pages) => pages.shared(),
        }
    }

    /// What Dom0 has ordered for the requests of the life before this one.
    pub fn on_failure(&self) -> OnFailure {
        OnFailure::from_raw(self.shared().load_u32(at::ON_FAILURE))
    }

    /// Notes that all devices are up.
    pub fn devices_are_up(&self) {
        self.store_wide(at::DEVICE_NS, time::now().get());
    }

    /// Counts up for ever, so that the supervisor sees that tasks still run.
    pub async fn beat(self) {
        let interval = Duration::from_nanos(at::HEARTBEAT_NS / 2);
        loop {
            let beats = self.shared().load_u64(at::HEARTBEAT_OFFSET);
            self.shared().store_u64(at::HEARTBEAT_OFFSET, beats.wrapping_add(1));
            time::sleep(interval).await;
        }
    }
}

async fn granted(store: &Xenstore) -> Option<GrantMapping> {
    // Most have one page.
    let first = [&*format!("{FOLDER}/pages"), &format!("{FOLDER}/ref0")];
    let [count, mut gref] = store.read_all(first).await.map(number);
    let count = count.ok()?.min(MAX_PAGES);
    let mut grefs = Vec::new();
    for i in 0..count {
        grefs.push(Gref::new(u32::try_from(gref.ok()?).ok()?));
        gref = match i + 1 < count {
            true => store.read_u64(&format!("{FOLDER}/ref{}", i + 1)).await,
            false => break,
        };
    }
    if grefs.is_empty() {
        return None;
    }
    let mapping = grant::map_grants(DomId::DOM0, &grefs, false);
    mapping.inspect_err(|error| log::warn!("ledger: {error}")).ok()
}

impl RingMemory for LedgerPages {
    fn bytes(&self) -> usize {
        match &*self.0 {
            Backing::Granted(mapping) => mapping.count() * PAGE_SIZE,
            Backing::Private(pages) => pages.bytes(),
        }
    }
    fn load(&self, offset: usize) -> u32 {
        self.shared().load_u32(offset)
    }
    fn store(&self, offset: usize, value: u32) {
        self.shared().store_u32(offset, value);
    }
    fn store_wide(&self, offset: usize, value: u64) {
        self.shared().store_u64(offset, value);
    }
}

/// The slot of one ring, and the milestone of the first response.
pub struct RingLedger {
    slot: SharedLedger<LedgerPages>,
    pages: LedgerPages,
    /// This ring has answered in this life.
    has_answered: bool,
}

impl RingLedger {
    /// Slot `slot` of the pages; `None` if they do not have it.
    pub fn new(pages: LedgerPages, slot: usize) -> Option<Self> {
        let has_answered = false;
        Some(Self { slot: SharedLedger::new(pages.clone(), slot)?, pages, has_answered })
    }
}

impl Ledger for RingLedger {
    fn redo(&self) -> Option<Redo> {
        self.slot.redo()
    }
    fn set_redo(&mut self, redo: &Redo) {
        self.slot.set_redo(redo);
    }
    fn clear_redo(&mut self) {
        self.slot.clear_redo();
    }
    fn cursors(&self) -> Cursors {
        self.slot.cursors()
    }
    fn set_answered(&mut self, index: u32) {
        self.slot.set_answered(index);
    }
    fn set_taken(&mut self, index: u32) {
        self.slot.set_taken(index);
    }
    fn counters(&self) -> Counters {
        self.slot.counters()
    }
    fn set_counters(&mut self, counters: &Counters) {
        self.slot.set_counters(counters);
    }
    fn published(&mut self) {
        if self.has_answered {
            return;
        }
        self.has_answered = true;
        // Another ring of this domain may have been first.
        if self.pages.shared().load_u64(at::FIRST_RESPONSE_NS) == 0 {
            self.pages.store_wide(at::FIRST_RESPONSE_NS, time::now().get());
        }
    }
}
