//! May this L1..L4 entry exist? Pure questions, no effects: which bits an entry may
//! have, and what the core changes in it before it is stored. Whose frame it may
//! name is asked where the reference is taken ([`super::frame::table`]).
#![deny(unsafe_code)]

use bulkhead_abi::{GuestVa, Maddr, Mfn, mmu};

/// Entries in a table.
pub const ENTRIES: u16 = 512;

/// Level of a page table; L1 maps pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    L1,
    L2,
    L3,
    L4,
}

impl Level {
    /// The level its entries refer to; `None` for L1.
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L1 => None,
            Self::L2 => Some(Self::L1),
            Self::L3 => Some(Self::L2),
            Self::L4 => Some(Self::L3),
        }
    }

    /// Which entry of a table of this level translates `va`.
    pub const fn index(self, va: GuestVa) -> u16 {
        (va.get() >> (12 + 9 * self as u32)) as u16 & (ENTRIES - 1)
    }
}

/// Address of an entry of a table.
pub const fn entry_at(table: Mfn, index: u16) -> Maddr {
    Maddr::new(table.maddr().get() + index as u64 * 8)
}

/// Which entry of its table is at `at`.
pub const fn index_of(at: Maddr) -> u16 {
    (at.offset() / 8) as u16
}

/// Whether an L4 slot is the core's (the hole of the PV interface).
pub const fn is_core_slot(index: u16) -> bool {
    index >= 256 && index <= 271
}

/// Whether an address may be a guest's: canonical and outside the core's hole.
pub const fn is_guest_va(va: GuestVa) -> bool {
    va.is_canonical() && !(va.get() >= mmu::HOLE_START && va.get() < mmu::HOLE_END)
}

/// A page-table entry, as hardware reads it (Intel SDM 3A, 4-level paging).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pte(u64);

impl Pte {
    pub const PRESENT: u64 = 1 << 0;
    pub const RW: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const PWT: u64 = 1 << 3;
    pub const PCD: u64 = 1 << 4;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    /// At L2 and L3 a large page; at L1 the PAT bit.
    pub const PSE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    /// Bits 9-11: the guest's to use.
    pub const AVAIL: u64 = 7 << 9;
    /// Set by the core in entries that came without [`Self::USER`]: the guest's own mark of
    /// kernel pages (ABI notes 5.3).
    pub const GUEST_KERNEL: u64 = 1 << 52;
    pub const NX: u64 = 1 << 63;
    const CACHE: u64 = Self::PWT | Self::PCD | Self::PSE;
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    pub const fn raw(self) -> u64 {
        self.0
    }

    pub const fn is_present(self) -> bool {
        self.has(Self::PRESENT)
    }

    pub const fn is_writable(self) -> bool {
        self.has(Self::RW)
    }

    /// The frame it refers to: a claim of the guest's until its table is validated.
    pub const fn mfn(self) -> Mfn {
        Mfn::new((self.0 & Self::ADDRESS) >> 12)
    }

    /// Whether any of `bits` is set.
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    /// Whether it asks for anything but write-back caching; only meaningful at L1.
    pub const fn is_uncached(self) -> bool {
        self.has(Self::CACHE)
    }
}

/// Which rule an entry breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// A bit that no guest may set at this level: large pages, cache control, global.
    ForbiddenBits,
    /// Memory mapped as anything but write-back.
    UncachedMemory,
    /// One of the core's L4 slots.
    CoreSlot,
}

/// What would be stored for a present entry of a table of this level.
///
/// The guest's kernel runs in ring 3, so every entry gets the user bit; `GLOBAL` is dropped, for
/// a global translation would outlive the switch to another domain.
pub const fn stored_entry(level: Level, entry: Pte) -> Result<Pte, Rule> {
    Ok(Pte(match level {
        Level::L1 if entry.has(Pte::USER) => entry.0 & !Pte::GLOBAL,
        Level::L1 => (entry.0 & !Pte::GLOBAL) | Pte::USER | Pte::GUEST_KERNEL,
        _ if entry.has(Pte::CACHE | Pte::GLOBAL) => return Err(Rule::ForbiddenBits),
        Level::L2 | Level::L3 => entry.0 | Pte::USER,
        Level::L4 => entry.0 | Pte::USER | Pte::ACCESSED,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: u64 = Pte::PRESENT;

    #[test]
    fn a_kernel_page_is_marked_and_made_reachable_from_ring_3() {
        // The values traced in ABI notes 5.3.
        let ro = stored_entry(Level::L1, Pte::new(0x8000_0000_0ce2_5061)).unwrap();
        assert_eq!(ro.raw(), 0x8010_0000_0ce2_5065);
    }

    #[test]
    fn a_user_page_loses_nothing_but_the_global_bit() {
        let entry =
            stored_entry(Level::L1, Pte::new(0x1000 | P | Pte::USER | Pte::GLOBAL)).unwrap();
        assert_eq!(entry.raw(), 0x1000 | P | Pte::USER);
    }

    #[test]
    fn upper_entries_get_the_user_bit_and_only_l4_the_accessed_bit() {
        for (level, extra) in [(Level::L2, 0), (Level::L3, 0), (Level::L4, Pte::ACCESSED)] {
            assert_eq!(
                stored_entry(level, Pte::new(0x1000 | P)).unwrap().raw(),
                0x1000 | P | Pte::USER | extra
            );
        }
    }

    #[test]
    fn large_pages_and_cache_bits_are_refused_above_l1() {
        for level in [Level::L2, Level::L3, Level::L4] {
            for bit in [Pte::PSE, Pte::PWT, Pte::PCD, Pte::GLOBAL] {
                assert_eq!(stored_entry(level, Pte::new(P | bit)), Err(Rule::ForbiddenBits));
            }
        }
    }

    #[test]
    fn the_hole_is_exactly_the_core_slots() {
        for slot in 0..512u64 {
            let va = GuestVa::new(if slot >= 256 {
                (slot << 39) | 0xffff_0000_0000_0000
            } else {
                slot << 39
            });
            assert_eq!(is_guest_va(va), !is_core_slot(slot as u16), "{va}");
            assert_eq!(u64::from(Level::L4.index(va)), slot);
        }
    }
}
