//! Memory that devices reach, for `virtio-drivers`.
//!
//! Pages of a guest are never turned into Rust references, yet the queue wants slices
//! to describe buffers. So it gets slices of a *stand-in*: memory of our own that
//! nobody reads or writes. While a request is put together, [`Window`] says which
//! machine address each page of the stand-in stands for, and the queue asks for nothing
//! else of a slice than its address ([`Hal::share`]).
#![allow(unsafe_code)] // Implements a trait about memory that devices use.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use bulkhead_abi::{Maddr, PAGE_SIZE, Pfn};
use core::cell::RefCell;
use core::ptr::NonNull;
use domain_rt::mem::{self, DIRECT_MAP, Dma};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

/// Pages of the stand-in: the most segments of one request.
pub const WINDOW_PAGES: usize = 32;

/// What is shared between the drivers of this domain, which has one CPU and takes no
/// interrupts while tasks run.
struct State {
    /// Queue memory, by its linear address.
    queues: BTreeMap<usize, Dma>,
    /// First address of the stand-in that is in use now, and what its pages mean.
    window: Option<(usize, Vec<Maddr>)>,
}

struct OneCpu(RefCell<State>);

// SAFETY: a domain has one vCPU and its tasks are never interrupted, so there is one
// thread; `RefCell` guards against re-entry.
unsafe impl Sync for OneCpu {}

static STATE: OneCpu = OneCpu(RefCell::new(State { queues: BTreeMap::new(), window: None }));

/// A page of the stand-in. Aligned, so that a slice from its start does not cross a page.
#[derive(Clone)]
#[repr(align(4096))]
struct Page([u8; PAGE_SIZE]);

/// Slices that stand for pages of guests.
pub struct Window {
    stand_in: Box<[Page]>,
}

impl Default for Window {
    fn default() -> Self {
        Self { stand_in: vec![Page([0; PAGE_SIZE]); WINDOW_PAGES].into_boxed_slice() }
    }
}

impl Window {
    /// Calls `f` with one slice for each part, which mean those machine addresses until
    /// it returns. At most [`WINDOW_PAGES`] parts of at most a page.
    pub fn with<R>(&mut self, parts: &[(Maddr, usize)], f: impl FnOnce(Slices<'_>) -> R) -> R {
        let base = self.stand_in.as_ptr() as usize;
        let addresses = parts.iter().map(|(maddr, _)| *maddr).collect();
        STATE.0.borrow_mut().window = Some((base, addresses));
        let slices = self
            .stand_in
            .iter_mut()
            .zip(parts)
            .filter_map(|(page, (_, bytes))| page.0.get_mut(..*bytes))
            .collect();
        let result = f(slices);
        STATE.0.borrow_mut().window = None;
        result
    }
}

/// The slices of a [`Window`].
pub type Slices<'a> = Vec<&'a mut [u8]>;

/// The machine address behind an address of our own memory.
fn maddr_of(va: usize) -> Option<Maddr> {
    let offset = (va as u64).checked_sub(DIRECT_MAP)?;
    let pfn = Pfn::new(offset / PAGE_SIZE as u64);
    let frame = mem::mfn_of(pfn)?.maddr();
    Some(Maddr::new(frame.get() + offset % PAGE_SIZE as u64))
}

/// What an address in the stand-in means now.
fn in_window(va: usize) -> Option<Maddr> {
    let state = STATE.0.borrow();
    let (base, addresses) = state.window.as_ref()?;
    let offset = va.checked_sub(*base)?;
    let page = addresses.get(offset / PAGE_SIZE)?;
    Some(Maddr::new(page.get() + (offset % PAGE_SIZE) as u64))
}

/// The machine as `virtio-drivers` sees it.
pub struct Machine;

// SAFETY: 1. `dma_alloc` gives zeroed pages, contiguous in machine memory, that nobody
// else has; 2. `mmio_phys_to_virt` maps anew on each call, for good; 3. `share` gives
// the machine address of a part of a page that a window vouches for, or behind a buffer
// that does not cross a page, so that it is contiguous for the device.
unsafe impl Hal for Machine {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let order = pages.next_power_of_two().ilog2();
        // The library has no other way to hear of failure, and this happens only at the
        // start of a device: without queues there is no driver.
        let dma = mem::alloc_dma(order).expect("memory for the queues of a device");
        let (maddr, va) = (dma.maddr(), dma.shared().as_ptr());
        STATE.0.borrow_mut().queues.insert(va as usize, dma);
        let va = NonNull::new(va).expect("mapped memory is not at zero");
        (maddr.get(), va)
    }

    unsafe fn dma_dealloc(_: PhysAddr, va: NonNull<u8>, _: usize) -> i32 {
        let freed = STATE.0.borrow_mut().queues.remove(&(va.as_ptr() as usize));
        i32::from(freed.is_none())
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, bytes: usize) -> NonNull<u8> {
        // As for `dma_alloc`: the core lets a domain map the BARs of its own devices.
        let mapping = mem::map_mmio(Maddr::new(paddr), bytes).expect("the BAR of our device");
        NonNull::new(mapping.leak().as_ptr()).expect("mapped memory is not at zero")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        let va = buffer.as_ptr().cast::<u8>() as usize;
        if let Some(maddr) = in_window(va) {
            return maddr.get();
        }
        let crosses = va % PAGE_SIZE + buffer.len() > PAGE_SIZE;
        assert!(!crosses, "a buffer for a device must not cross a page");
        maddr_of(va).expect("a buffer is in our own memory").get()
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
