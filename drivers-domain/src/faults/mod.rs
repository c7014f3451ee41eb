//! Orders to do wrong, for the whole domain: where they come from, and the faults of
//! device and domain. Those of ring and device queue are `blkback::faults`'.

use crate::ledger::LedgerPages;
pub(crate) mod parts;
mod step;

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use blkback::faults::{LedgerOrders, Orders};
use bulkhead_abi::ledger::{self as at, fault};
use bulkhead_abi::{Maddr, PAGE_SIZE, Pfn};
use core::time::Duration;
use domain_rt::{Boot, Shared, exec, faults, mem, time};
use ring_proto::RingMemory;
use spin::{Mutex, Once};

static PAGES: Once<Pages> = Once::new();
/// The fault of the command line, and the arguments of its orders that are not given yet.
static REST: Mutex<(u64, VecDeque<u64>)> = Mutex::new((0, VecDeque::new()));

/// The ledger's pages, for ever.
struct Pages(Shared<'static>);

impl RingMemory for Pages {
    fn bytes(&self) -> usize {
        self.0.bytes()
    }
    fn load(&self, offset: usize) -> u32 {
        self.0.load_u32(offset)
    }
    fn store(&self, offset: usize, value: u32) {
        self.0.store_u32(offset, value);
    }
    fn store_wide(&self, offset: usize, value: u64) {
        self.0.store_u64(offset, value);
    }
}

/// Orders that are written in the ledger of this domain; none before [`listen`].
#[derive(Clone, Copy, Default)]
pub struct Ledger;

impl Orders for Ledger {
    fn take(&self, fault: u64) -> Option<u64> {
        take(fault)
    }
    fn now(&self) -> u64 {
        now()
    }
}

fn now() -> u64 {
    time::now().get()
}

/// The argument of this order, if it is given and not yet obeyed; notes that it is now.
pub fn take(fault: u64) -> Option<u64> {
    // A path that is walked is to have as few instructions of ours as can be.
    if step::is_on_path() {
        return None;
    }
    LedgerOrders::new(PAGES.get()?, now).take(fault)
}

/// Begins to obey, and to carry out changes to the code of this domain. Without a campaign
/// an order may come from the command line: `fault=NAME`, `fault-argument=N`, and
/// `fault-after=MS`. A `step-kill` can have several arguments, `N,N,..`, each given when the one
/// before is obeyed.
pub fn listen(ledger: &LedgerPages, boot: &Boot) {
    let pages: &'static LedgerPages = Box::leak(Box::new(ledger.clone()));
    PAGES.call_once(|| Pages(pages.shared()));
    faults::arm(pages.shared());
    step::listen();
    tell_memory(pages);
    log::warn!("faults: this domain does wrong on order");
    if let Some(name) = boot.option("fault") {
        let arguments = boot.option("fault-argument").unwrap_or("0");
        let after = boot.option("fault-after").and_then(|value| value.parse().ok());
        order_later(name.into(), numbers(arguments), after.unwrap_or(0));
    }
}

/// Numbers with commas between them; what is none counts as 0.
fn numbers(list: &str) -> Vec<u64> {
    list.split(',').map(|word| word.parse().unwrap_or(0)).collect()
}

/// Says where heap and stack are. Of the stack only what a task has above it counts: what is
/// below comes and goes.
fn tell_memory(pages: &LedgerPages) {
    let (heap, stack) = (faults::heap(), faults::stack());
    pages.store_wide(at::HEAP_START, heap.start);
    pages.store_wide(at::HEAP_END, heap.end);
    pages.store_wide(at::STACK_START, stack.start);
    pages.store_wide(at::STACK_END, stack.end);
}

fn order_later(name: String, arguments: Vec<u64>, after_ms: u64) {
    let known = fault::NAMES.iter().find(|(known, _)| *known == name);
    let Some(&(_, number)) = known else {
        log::error!("faults: there is no fault `{name}`");
        return;
    };
    exec::spawn(async move {
        let mut rest = VecDeque::from(arguments);
        match step::sweep() {
            // An earlier life has obeyed up to here.
            Some(given) => {
                while rest.pop_front().is_some_and(|argument| argument >> 32 != given >> 32) {}
                *REST.lock() = (number, rest);
                if let Some(pages) = PAGES.get() {
                    pages.0.store_u64(at::FAULT_COMMAND, number);
                }
            }
            None => {
                *REST.lock() = (number, rest);
                time::sleep(Duration::from_millis(after_ms)).await;
                give_next();
            }
        }
    })
    .detach();
}

/// Gives the next order of the command line, if there is one.
fn give_next() {
    let mut rest = REST.lock();
    let (Some(pages), Some(argument)) = (PAGES.get(), rest.1.pop_front()) else { return };
    for offset in [at::FAULT_ACTIVATED_NS, at::step::PATH, at::step::MARK, at::step::DEATHS] {
        pages.store_wide(offset, 0);
    }
    for offset in [at::FAULT_SKIP, at::FAULT_MORE] {
        pages.store(offset, 0);
    }
    pages.store_wide(at::FAULT_ARGUMENT, argument);
    pages.store_wide(at::FAULT_ARMED_NS, now());
    pages.store_wide(at::FAULT_COMMAND, rest.0);
}

/// What can go wrong at any point of the service; it asks each time it goes round. True if
/// it is to look for what no device has called for.
pub(crate) async fn at_work() -> bool {
    if take(fault::HANG).is_some() {
        faults::hang();
    }
    if take(fault::HANG_YIELDING).is_some() {
        loop {
            exec::yield_now().await;
        }
    }
    if take(fault::HEAP_EXHAUSTION).is_some() {
        faults::exhaust_heap();
    }
    if take(fault::STACK_OVERFLOW).is_some() {
        faults::overflow_stack(0);
    }
    if take(fault::LEDGER_DAMAGE).is_some()
        && let Some(pages) = PAGES.get()
    {
        pages.store_wide(at::MAGIC_OFFSET, 0);
        panic!("ordered, with a damaged ledger");
    }
    assert!(take(fault::PANIC).is_none(), "ordered");
    if take(fault::NULL_DEREFERENCE).is_some() {
        faults::dereference_null();
    }
    take(fault::SPURIOUS_INTERRUPT).is_some()
}

/// Whether an interrupt that came is not seen.
pub(crate) fn misses_interrupt() -> bool {
    take(fault::LOST_INTERRUPT).is_some()
}

/// The pages that the device is told of, for a request of these.
pub(crate) fn aim(parts: &[(Maddr, usize)]) -> Cow<'_, [(Maddr, usize)]> {
    let mut parts = Cow::Borrowed(parts);
    if !parts.is_empty()
        && let Some(page) = wrong_page()
        && let Some((at, _)) = parts.to_mut().first_mut()
    {
        *at = Maddr::new(page.get() + (at.get() % PAGE_SIZE as u64));
    }
    parts
}

fn wrong_page() -> Option<Maddr> {
    if let Some(pfn) = take(fault::DMA_INSIDE) {
        return mem::mfn_of(Pfn::new(pfn)).map(|mfn| mfn.maddr());
    }
    take(fault::DMA_OUTSIDE).map(|page| Maddr::new(page & !(PAGE_SIZE as u64 - 1)))
}
