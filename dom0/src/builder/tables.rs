//! The first page tables of a domain (abi-notes 1.6), written page by page.

use super::{
    GuestMemory, MfnList,
    layout::{ENTRIES, Layout, Mapped},
};
use bulkhead_abi::{PAGE_SIZE, Pfn};
use zerocopy::IntoBytes;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// Flags of every entry that points to a table.
const TABLE: u64 = PRESENT | WRITABLE | USER | ACCESSED | DIRTY;

type Table = [u64; ENTRIES as usize];

/// Writes all tables of a domain.
pub fn write<M: GuestMemory>(
    memory: &mut M,
    layout: &Layout,
    mfns: MfnList<'_>,
) -> Result<(), M::Error> {
    let mut l4: Table = [0; ENTRIES as usize];
    let mut writer = Writer { memory, layout, mfns };
    writer.mapping(&mut l4, &layout.kernel)?;
    if let Some(p2m) = &layout.p2m_mapping {
        writer.mapping(&mut l4, p2m)?;
    }
    writer.table(layout.l4.get(), &l4)
}

struct Writer<'a, M> {
    memory: &'a mut M,
    layout: &'a Layout,
    mfns: MfnList<'a>,
}

impl<M: GuestMemory> Writer<'_, M> {
    fn mapping(&mut self, l4: &mut Table, map: &Mapped) -> Result<(), M::Error> {
        for (i, pfn) in map.l1.clone().enumerate() {
            let table = self.l1(map, i as u64);
            self.table(pfn, &table)?;
        }
        for (i, pfn) in map.l2.clone().enumerate() {
            let table = self.upper(map.va >> 21, &map.l1, (map.va >> 30) + i as u64);
            self.table(pfn, &table)?;
        }
        for (i, pfn) in map.l3.clone().enumerate() {
            let table = self.upper(map.va >> 30, &map.l2, (map.va >> 39) + i as u64);
            self.table(pfn, &table)?;
        }
        for (i, pfn) in map.l3.clone().enumerate() {
            let slot = ((map.va >> 39) + i as u64) % ENTRIES;
            l4[slot as usize] = self.entry(pfn, TABLE);
        }
        Ok(())
    }

    /// L1 table `index` of a mapping.
    fn l1(&self, map: &Mapped, index: u64) -> Table {
        let first_page = map.va >> 12;
        let table_page = ((map.va >> 21) + index) * ENTRIES;
        core::array::from_fn(|slot| {
            let page = table_page + slot as u64;
            let pfn = page.checked_sub(first_page).map(|n| map.pfns.start + n);
            match pfn.filter(|pfn| map.pfns.contains(pfn)) {
                Some(pfn) if self.layout.is_table(pfn) => self.entry(pfn, TABLE & !WRITABLE),
                Some(pfn) => self.entry(pfn, TABLE),
                None => 0,
            }
        })
    }

    /// The table that stands for the 512 entries from `number * 512` on, of which
    /// those from `first` on point to the frames `below`.
    fn upper(&self, first: u64, below: &core::ops::Range<u64>, number: u64) -> Table {
        core::array::from_fn(|slot| {
            let wanted = number * ENTRIES + slot as u64;
            let pfn = wanted.checked_sub(first).map(|n| below.start + n);
            match pfn.filter(|pfn| below.contains(pfn)) {
                Some(pfn) => self.entry(pfn, TABLE),
                None => 0,
            }
        })
    }

    fn entry(&self, pfn: u64, flags: u64) -> u64 {
        self.mfns.of(Pfn::new(pfn)).maddr().get() | flags
    }

    fn table(&mut self, pfn: u64, table: &Table) -> Result<(), M::Error> {
        self.memory.write(pfn * PAGE_SIZE as u64, table.as_bytes())
    }
}
