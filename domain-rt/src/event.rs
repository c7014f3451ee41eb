//! Event channels as things to wait for.
//!
//! Upcalls stay masked while code runs. The executor calls `collect`, which moves
//! pending bits of the shared page into tasks that are woken; a port stays masked
//! from its event until a task waits for the next, so that a peer that signals in a
//! loop costs one wake-up at a time. Bits set meanwhile are kept: nothing is lost.

use crate::hypercall::{self, Result, event_channel_op};
use crate::shared::Shared;
use alloc::collections::BTreeMap;
use bulkhead_abi::event::{self, AllocUnbound, BindInterdomain, BindPirq, BindVirq, PortOp};
use bulkhead_abi::shared_info::EVTCHN_2L_PORTS;
use bulkhead_abi::{DomId, Port};
use core::future::poll_fn;
use core::sync::atomic::Ordering::SeqCst;
use core::task::{Poll, Waker};
use spin::{Mutex, Once};

/// Offsets in the shared page.
const UPCALL_PENDING: usize = 0;
const UPCALL_MASK: usize = 1;
const PENDING_SEL: usize = 8;
const CR2: usize = 16;
const PENDING: usize = 2048;
const MASK: usize = 2560;

static SHARED_INFO: Once<Shared<'static>> = Once::new();
static PORTS: Mutex<BTreeMap<u32, Slot>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Slot {
    fired: bool,
    waker: Option<Waker>,
}

/// The shared-info page, once mapped. The runtime owns its event bits and masks.
pub fn shared_info() -> Option<Shared<'static>> {
    SHARED_INFO.get().copied()
}

/// The address of the last page fault.
pub(crate) fn fault_address() -> u64 {
    shared_info().map_or(0, |page| page.read_u64(CR2))
}

/// Maps the shared page and masks everything.
#[cfg(target_os = "none")]
pub(crate) fn init() {
    use bulkhead_abi::{PAGE_SIZE, mmu::UVMF_INVLPG};
    unsafe extern "C" {
        static __shared_info: u8;
    }
    let va = (&raw const __shared_info) as u64;
    let entry = crate::entry::boot().shared_info.get() | crate::mem::pte::DATA;
    // SAFETY: the linker script reserves this page for it.
    unsafe { hypercall::update_va_mapping(va, entry, UVMF_INVLPG) }
        .expect("the builder names the shared page of this domain");
    // SAFETY: mapped for good, touched only through the accessor.
    let page = unsafe { Shared::new(va as *mut u8, PAGE_SIZE) };
    page.write_u8(UPCALL_MASK, 1);
    for word in 0..64 {
        page.write_u64(MASK + word * 8, u64::MAX);
    }
    SHARED_INFO.call_once(|| page);
}

/// One end of an event channel; closed when dropped.
#[derive(Debug)]
pub struct Channel {
    port: Port,
}

impl Channel {
    /// Takes over a port that exists already, such as those named at start.
    pub fn adopt(port: Port) -> Self {
        assert!(port.get() < EVTCHN_2L_PORTS, "{port} is out of range");
        PORTS.lock().insert(port.get(), Slot::default());
        unmask(port);
        Self { port }
    }

    /// This domain's port.
    pub const fn port(&self) -> Port {
        self.port
    }

    /// Signals the other end.
    ///
    /// # Errors
    /// `EINVAL` for a port that is no interdomain channel any more.
    pub fn notify(&self) -> Result<()> {
        hypercall::send(self.port)
    }

    /// Waits for an event; one that came since the last wait counts. One task at a
    /// time may wait for a port.
    pub async fn wait(&self) {
        poll_fn(|context| {
            let mut ports = PORTS.lock();
            let slot = ports.entry(self.port.get()).or_default();
            if core::mem::take(&mut slot.fired) {
                drop(ports);
                unmask(self.port);
                return Poll::Ready(());
            }
            slot.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Keeps the channel for good.
    pub fn leak(self) -> &'static Self {
        alloc::boxed::Box::leak(alloc::boxed::Box::new(self))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Some(page) = shared_info() {
            let (word, bit) = place(self.port);
            page.atomic_u64(MASK + word * 8).fetch_or(bit, SeqCst);
        }
        let mut arg = PortOp { port: self.port.get() };
        // The port may have gone with its peer's domain; there is nothing to undo.
        let _ = event_channel_op(event::EVTCHNOP_CLOSE, &mut arg);
        PORTS.lock().remove(&self.port.get());
        if let Some(page) = shared_info() {
            let (word, bit) = place(self.port);
            page.atomic_u64(PENDING + word * 8).fetch_and(!bit, SeqCst);
        }
    }
}

/// Makes a port that `remote` may bind.
///
/// # Errors
/// `ENOSPC` when ports run out, `ESRCH` for no such domain.
pub fn alloc_unbound(remote: DomId) -> Result<Channel> {
    alloc_unbound_for(DomId::SELF, remote).map(Channel::adopt)
}

/// Makes a port in `domain` that `remote` may bind; for other domains Dom0 only.
///
/// # Errors
/// As for [`alloc_unbound`], and `EPERM`.
pub fn alloc_unbound_for(domain: DomId, remote: DomId) -> Result<Port> {
    let mut arg = AllocUnbound { dom: domain.get(), remote_dom: remote.get(), port: 0 };
    event_channel_op(event::EVTCHNOP_ALLOC_UNBOUND, &mut arg)?;
    Ok(Port::new(arg.port))
}

/// Binds to `port` of `remote`. The new channel has an event at once.
///
/// # Errors
/// `EINVAL` where that port does not wait for this domain.
pub fn bind_interdomain(remote: DomId, port: Port) -> Result<Channel> {
    let mut arg =
        BindInterdomain { remote_dom: remote.get(), remote_port: port.get(), ..Default::default() };
    event_channel_op(event::EVTCHNOP_BIND_INTERDOMAIN, &mut arg)?;
    Ok(Channel::adopt(Port::new(arg.local_port)))
}

/// Binds virtual interrupt `virq`.
///
/// # Errors
/// `EEXIST` when bound already, `EPERM` for one that is Dom0's.
pub fn bind_virq(virq: u32) -> Result<Channel> {
    let mut arg = BindVirq { virq, vcpu: 0, port: 0 };
    event_channel_op(event::EVTCHNOP_BIND_VIRQ, &mut arg)?;
    Ok(Channel::adopt(Port::new(arg.port)))
}

/// Binds the interrupt of a device, as [`crate::device::irq`] named it.
///
/// # Errors
/// `EPERM` for an interrupt that is not this domain's, `EEXIST` when bound already.
pub fn bind_pirq(pirq: u32) -> Result<Channel> {
    let mut arg = BindPirq { pirq, flags: 0, port: 0 };
    event_channel_op(event::EVTCHNOP_BIND_PIRQ, &mut arg)?;
    Ok(Channel::adopt(Port::new(arg.port)))
}

/// The id of this domain, as the core knows it: the far end of a channel to itself.
///
/// # Errors
/// `ENOSPC` when ports run out.
pub fn own_domid() -> Result<DomId> {
    let near = alloc_unbound(DomId::SELF)?;
    let far = bind_interdomain(DomId::SELF, near.port())?;
    let mut arg =
        event::Status { dom: DomId::SELF.get(), port: far.port().get(), ..Default::default() };
    event_channel_op(event::EVTCHNOP_STATUS, &mut arg)?;
    Ok(DomId::new(arg.arg0 as u16))
}

/// Re-enables a level-triggered interrupt after it was served.
///
/// # Errors
/// `EINVAL` for an interrupt that is not this domain's.
pub fn eoi(pirq: u32) -> Result<()> {
    let mut arg = bulkhead_abi::physdev::Eoi { irq: pirq };
    hypercall::with_struct(
        bulkhead_abi::hypercall::PHYSDEV_OP,
        bulkhead_abi::physdev::PHYSDEVOP_EOI,
        &mut arg,
    )
    .map(drop)
}

/// Which word of the bit maps, and which bit in it.
const fn place(port: Port) -> (usize, u64) {
    (port.get() as usize / 64, 1 << (port.get() % 64))
}

/// Lets `port` deliver again; an event that waited behind the mask is raised anew.
fn unmask(port: Port) {
    let Some(page) = shared_info() else { return };
    let (word, bit) = place(port);
    page.atomic_u64(MASK + word * 8).fetch_and(!bit, SeqCst);
    if page.atomic_u64(PENDING + word * 8).load(SeqCst) & bit != 0 {
        page.atomic_u64(PENDING_SEL).fetch_or(1 << word, SeqCst);
        page.swap_u8(UPCALL_PENDING, 1);
    }
}

/// Masks upcalls again after the core unmasked them to block.
pub(crate) fn mask_upcalls() {
    if let Some(page) = shared_info() {
        page.swap_u8(UPCALL_MASK, 1);
    }
}

/// Whether an event of this port waits to be collected, and none of another.
#[cfg(feature = "faults")]
pub fn is_alone(port: Port) -> bool {
    let Some(page) = shared_info() else { return false };
    let waiting = |word| page.load_u64(PENDING + word * 8) & !page.load_u64(MASK + word * 8);
    let (place, bit) = place(port);
    (0..64).all(|word| waiting(word) == if word == place { bit } else { 0 })
}

/// Moves pending bits into woken tasks.
pub(crate) fn collect() {
    let Some(page) = shared_info() else { return };
    if page.read_u8(UPCALL_PENDING) == 0 {
        return;
    }
    page.swap_u8(UPCALL_PENDING, 0);
    let mut words = page.atomic_u64(PENDING_SEL).swap(0, SeqCst);
    while words != 0 {
        let word = words.trailing_zeros() as usize;
        words &= words - 1;
        collect_word(page, word);
    }
}

fn collect_word(page: Shared<'_>, word: usize) {
    let pending = page.atomic_u64(PENDING + word * 8);
    let mask = page.atomic_u64(MASK + word * 8);
    let mut bits = pending.load(SeqCst) & !mask.load(SeqCst);
    mask.fetch_or(bits, SeqCst);
    pending.fetch_and(!bits, SeqCst);
    while bits != 0 {
        let port = word as u32 * 64 + bits.trailing_zeros();
        bits &= bits - 1;
        fire(port);
    }
}

fn fire(port: u32) {
    let waker = PORTS.lock().get_mut(&port).and_then(|slot| {
        slot.fired = true;
        slot.waker.take()
    });
    if let Some(waker) = waker {
        waker.wake();
    }
}
