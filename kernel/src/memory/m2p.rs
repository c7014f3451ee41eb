//! The machine-to-phys table: for each frame its owner's pfn, readable by guests at a fixed address.
//! The core writes it and never believes it.
#![deny(unsafe_code)]

use super::frame::FrameTable;
use bulkhead_abi::{Maddr, Mfn, mmu::M2P_INVALID};

impl FrameTable {
    /// What the table says of a frame: a pfn, or [`M2P_INVALID`].
    pub fn m2p(&self, mfn: Mfn) -> u64 {
        self.m2p_entry(mfn).map_or(M2P_INVALID, |at| self.mem().read_u64(at))
    }

    /// Sets the pfn of a frame; [`M2P_INVALID`] for none. Any number will do: it means
    /// something to the owner alone.
    pub fn set_m2p(&mut self, mfn: Mfn, pfn: u64) {
        if let Some(at) = self.m2p_entry(mfn) {
            self.mem().write_u64(at, pfn);
        }
    }

    fn m2p_entry(&self, mfn: Mfn) -> Option<Maddr> {
        (mfn.get() < self.max_mfn()).then(|| Maddr::new(self.m2p_base().get() + mfn.get() * 8))
    }
}
