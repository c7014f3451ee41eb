//! Orders to do wrong, for the whole domain: where they come from, and the faults of
//! device and domain. Those of ring and device queue are `blkback::faults`'.

use crate::ledger::LedgerPages;
pub(crate) mod parts;

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::string::String;
use blkback::faults::{LedgerOrders, Orders};
use bulkhead_abi::ledger::{self as at, fault};
use bulkhead_abi::{Maddr, PAGE_SIZE, Pfn};
use core::time::Duration;
use domain_rt::{Boot, Shared, exec, faults, mem, time};
use ring_proto::RingMemory;
use spin::Once;

static PAGES: Once<Pages> = Once::new();

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
    LedgerOrders::new(PAGES.get()?, now).take(fault)
}

/// Begins to obey, and to carry out changes to the code of this domain. Without a campaign
/// an order may come from the command line: `fault=NAME`, `fault-argument=N`, and
/// `fault-after=MS`.
pub fn listen(ledger: &LedgerPages, boot: &Boot) {
    let pages: &'static LedgerPages = Box::leak(Box::new(ledger.clone()));
    PAGES.call_once(|| Pages(pages.shared()));
    faults::arm(pages.shared());
    tell_memory(pages);
    log::warn!("faults: this domain does wrong on order");
    if let Some(name) = boot.option("fault") {
        let number = |name| boot.option(name).and_then(|value| value.parse().ok()).unwrap_or(0);
        order_later(name.into(), number("fault-argument"), number("fault-after"));
    }
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

fn order_later(name: String, argument: u64, after_ms: u64) {
    let known = fault::NAMES.iter().find(|(known, _)| *known == name);
    let Some(&(_, number)) = known else {
        log::error!("faults: there is no fault `{name}`");
        return;
    };
    exec::spawn(async move {
        time::sleep(Duration::from_millis(after_ms)).await;
        let Some(pages) = PAGES.get() else { return };
        if pages.0.load_u64(at::FAULT_COMMAND) == number {
            // An earlier life was ordered so, and this one follows it.
            return;
        }
        pages.store_wide(at::FAULT_ACTIVATED_NS, 0);
        pages.store(at::FAULT_SKIP, 0);
        pages.store(at::FAULT_MORE, 0);
        pages.store_wide(at::FAULT_ARGUMENT, argument);
        pages.store_wide(at::FAULT_ARMED_NS, now());
        pages.store_wide(at::FAULT_COMMAND, number);
    })
    .detach();
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
