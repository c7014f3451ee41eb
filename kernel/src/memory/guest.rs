//! The only road into guest memory: a software walk of the guest's own tables, then the
//! map of physical memory.
//!
//! An address that a guest passes is a claim. The walk believes it exactly as far as the
//! processor would: present at every level, writable if it is to be written; and
//! never in the core's hole, and never a device. A guest can not have the core write a page table,
//! for a writable entry exists only for frames of type `Writable`. Everything is copied once.

use super::{
    frame::FrameTable,
    validate::{self, Level, Pte},
};
use crate::state::{Caller, Core};
use bulkhead_abi::{Errno, GuestVa, Maddr, Mfn, PAGE_SIZE};
use core::ops::Range;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What is to be done with the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
}

/// Why an address can not be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Not canonical, in the core's hole, or the range wraps around.
    NotGuest(GuestVa),
    /// Not mapped.
    NotPresent(GuestVa),
    /// Mapped read-only.
    ReadOnly(GuestVa),
    /// Mapped to something that is no memory.
    NotMemory(GuestVa),
}

impl From<Fault> for Errno {
    fn from(_: Fault) -> Self {
        Self::EFAULT
    }
}

/// A guest's linear address space.
#[derive(Clone, Copy)]
pub struct GuestSpace<'a> {
    frames: &'a FrameTable,
    l4: Option<Mfn>,
}

impl Core {
    /// The address space of the caller's kernel. A vCPU without page tables has an empty one.
    pub fn guest(&self, caller: Caller) -> GuestSpace<'_> {
        let vcpu = self.domains.get(caller.dom).and_then(|domain| domain.vcpu(caller.vcpu));
        GuestSpace { frames: &self.frames, l4: vcpu.and_then(|vcpu| vcpu.roots.kernel) }
    }
}

impl<'a> GuestSpace<'a> {
    /// The space under a validated root table.
    pub fn new(frames: &'a FrameTable, l4: Mfn) -> Self {
        Self { frames, l4: Some(l4) }
    }

    /// The entries that translate `va`, from L4 to L1, of which the last may be absent.
    pub(super) fn path(&self, va: GuestVa) -> Result<[Maddr; 4], Fault> {
        if !validate::is_guest_va(va) {
            return Err(Fault::NotGuest(va));
        }
        let mut path = [Maddr::default(); 4];
        let mut table = self.l4.ok_or(Fault::NotPresent(va))?;
        for (n, level) in [Level::L4, Level::L3, Level::L2, Level::L1].into_iter().enumerate() {
            if n > 0 {
                table = self.target(self.entry(path[n - 1]), va)?;
            }
            path[n] = validate::entry_at(table, level.index(va));
        }
        Ok(path)
    }

    /// Where in memory `va` is, with the accessed and dirty bits set that the access would set.
    pub fn translate(&self, va: GuestVa, access: Access) -> Result<Maddr, Fault> {
        if !validate::is_guest_va(va) {
            return Err(Fault::NotGuest(va));
        }
        let mut path = [(Maddr::default(), Pte::new(0)); 4];
        let mut table = self.l4.ok_or(Fault::NotPresent(va))?;
        let mut granted = Pte::RW;
        for (n, level) in [Level::L4, Level::L3, Level::L2, Level::L1].into_iter().enumerate() {
            let at = validate::entry_at(table, level.index(va));
            let entry = self.entry(at);
            table = self.target(entry, va)?;
            granted &= entry.raw();
            path[n] = (at, entry);
        }
        if access == Access::Write && granted == 0 {
            return Err(Fault::ReadOnly(va));
        }
        for (n, (at, entry)) in path.into_iter().enumerate() {
            let is_dirtied = n == 3 && access == Access::Write;
            let bits = Pte::ACCESSED | if is_dirtied { Pte::DIRTY } else { 0 };
            // Most often they are set, and a plain read is cheaper than a locked store.
            if entry.raw() & bits != bits {
                self.frames.mem().fetch_or_u64(at, bits);
            }
        }
        Ok(Maddr::new(table.maddr().get() + va.offset() as u64))
    }

    fn entry(&self, at: Maddr) -> Pte {
        Pte::new(self.frames.mem().read_u64(at))
    }

    /// The memory that an entry refers to.
    fn target(&self, entry: Pte, va: GuestVa) -> Result<Mfn, Fault> {
        match entry.mfn() {
            _ if !entry.is_present() => Err(Fault::NotPresent(va)),
            mfn if !self.frames.is_ram(mfn) => Err(Fault::NotMemory(va)),
            mfn => Ok(mfn),
        }
    }

    /// Reads a value; any bits are a `T`.
    pub fn read<T: FromBytes>(&self, va: GuestVa) -> Result<T, Fault> {
        let mut value = T::new_zeroed();
        // SAFETY: 1. The pointer and size are those of `value`, borrowed for the slice's life.
        // 2. `T: FromBytes`: whatever bytes are written make a `T`; writing padding is
        // harmless, and `new_zeroed` has set every byte, so the slice is initialised.
        let bytes = unsafe {
            core::slice::from_raw_parts_mut((&raw mut value).cast::<u8>(), size_of::<T>())
        };
        self.read_bytes(va, bytes)?;
        Ok(value)
    }

    /// Writes a value. On a fault, pages before the faulting one have been written.
    pub fn write<T: IntoBytes + Immutable>(&self, va: GuestVa, value: &T) -> Result<(), Fault> {
        self.write_bytes(va, value.as_bytes())
    }

    /// Copies from the guest.
    pub fn read_bytes(&self, va: GuestVa, out: &mut [u8]) -> Result<(), Fault> {
        let mem = self.frames.mem();
        self.each_page(va, out.len(), Access::Read, |at, part| mem.read_bytes(at, &mut out[part]))
    }

    /// Copies to the guest. On a fault, pages before the faulting one have been written.
    pub fn write_bytes(&self, va: GuestVa, bytes: &[u8]) -> Result<(), Fault> {
        let mem = self.frames.mem();
        self.each_page(va, bytes.len(), Access::Write, |at, part| mem.write_bytes(at, &bytes[part]))
    }

    /// Runs `f` on where each page's part of `len` bytes from `va` on is.
    fn each_page(
        &self,
        va: GuestVa,
        len: usize,
        access: Access,
        mut f: impl FnMut(Maddr, Range<usize>),
    ) -> Result<(), Fault> {
        let mut done = 0;
        while done < len {
            let at = va.get().checked_add(done as u64).ok_or(Fault::NotGuest(va))?;
            let at = GuestVa::new(at);
            let end = len.min(done + PAGE_SIZE - at.offset());
            f(self.translate(at, access)?, done..end);
            done = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::frame::{
        fake,
        table::{Budget, Owners, Walk},
    };
    use bulkhead_abi::DomId;

    const DOM: DomId = DomId::new(1);
    const RW: u64 = Pte::PRESENT | Pte::RW | Pte::USER;

    struct Fixture {
        frames: FrameTable,
        l4: Mfn,
        pages: [Mfn; 2],
    }

    /// Pages 0 and 1 of the address space: the first writable, the second read-only.
    fn fixture() -> Fixture {
        let mut frames = fake::table(64);
        let [l4, l3, l2, l1, a, b] = core::array::from_fn(|_| frames.alloc_domain(DOM, 0).unwrap());
        let mem = frames.mem();
        for (table, target) in [(l4, l3), (l3, l2), (l2, l1), (l1, a)] {
            mem.write_u64(table.maddr(), target.maddr().get() | RW);
        }
        mem.write_u64(validate::entry_at(l1, 1), b.maddr().get() | Pte::PRESENT | Pte::USER);
        let mut budget = Budget::default();
        let mut walk = Walk { budget: &mut budget, io: &|_| false };
        frames.pin(l4, DOM, Level::L4, &mut walk).unwrap();
        Fixture { frames, l4, pages: [a, b] }
    }

    #[test]
    fn reads_cross_pages_whose_frames_are_not_neighbours() {
        let Fixture { frames, l4, pages: [a, b] } = fixture();
        frames.mem().write_bytes(Maddr::new(a.maddr().get() + 4092), &[1, 2, 3, 4]);
        frames.mem().write_bytes(b.maddr(), &[5, 6, 7, 8]);
        let value: u64 = GuestSpace::new(&frames, l4).read(GuestVa::new(4092)).unwrap();
        assert_eq!(value.to_le_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_write_stops_at_a_read_only_page_and_never_reaches_it() {
        let Fixture { frames, l4, pages: [_, b] } = fixture();
        let space = GuestSpace::new(&frames, l4);
        assert_eq!(
            space.write(GuestVa::new(4092), &u64::MAX),
            Err(Fault::ReadOnly(GuestVa::new(4096)))
        );
        assert_eq!(frames.mem().read_u64(b.maddr()), 0);
        assert_eq!(space.write(GuestVa::new(16), &7u32), Ok(()));
        assert_eq!(space.read::<u32>(GuestVa::new(16)), Ok(7));
    }

    #[test]
    fn refuses_what_no_guest_may_name() {
        let Fixture { frames, l4, .. } = fixture();
        let space = GuestSpace::new(&frames, l4);
        for va in
            [0x8000_0000_0000, 0xffff_8000_0000_0000, 0xffff_87ff_ffff_fff8, 0xfff0_0000_0000_0000]
        {
            assert_eq!(space.read::<u64>(GuestVa::new(va)), Err(Fault::NotGuest(GuestVa::new(va))));
        }
        let end = GuestVa::new(u64::MAX - 3);
        assert!(space.read::<u64>(end).is_err());
        assert_eq!(
            space.read::<u64>(GuestVa::new(0x2000)),
            Err(Fault::NotPresent(GuestVa::new(0x2000)))
        );
    }

    #[test]
    fn refuses_to_touch_a_device_that_the_guest_maps() {
        let Fixture { mut frames, l4, .. } = fixture();
        let at = super::super::update::l1_entry_of(&frames, l4, GuestVa::new(0x3000)).unwrap();
        let bar = Mfn::new(1 << 20);
        let mut budget = Budget::default();
        let mut walk = Walk { budget: &mut budget, io: &|mfn| mfn == bar };
        let owners = Owners::only(DOM);
        super::super::update::write_entry(
            &mut frames,
            owners,
            at,
            |_| bar.maddr().get() | RW | Pte::PCD,
            &mut walk,
        )
        .unwrap();
        let va = GuestVa::new(0x3000);
        assert_eq!(GuestSpace::new(&frames, l4).read::<u8>(va), Err(Fault::NotMemory(va)));
    }

    #[test]
    fn sets_accessed_on_reads_and_dirty_only_on_writes() {
        let Fixture { frames, l4, .. } = fixture();
        let space = GuestSpace::new(&frames, l4);
        let at = super::super::update::l1_entry_of(&frames, l4, GuestVa::new(0)).unwrap();
        let bits = || frames.mem().read_u64(at) & (Pte::ACCESSED | Pte::DIRTY);
        space.read::<u8>(GuestVa::new(0)).unwrap();
        assert_eq!(bits(), Pte::ACCESSED);
        space.write(GuestVa::new(0), &1u8).unwrap();
        assert_eq!(bits(), Pte::ACCESSED | Pte::DIRTY);
    }

    #[test]
    fn an_empty_space_faults() {
        let Fixture { frames, .. } = fixture();
        let space = GuestSpace { frames: &frames, l4: None };
        assert!(space.read::<u8>(GuestVa::new(0)).is_err());
        assert_eq!(space.read_bytes(GuestVa::new(0), &mut []), Ok(()));
    }
}
