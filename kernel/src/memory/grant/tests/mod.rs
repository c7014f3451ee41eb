//! Grants between test domains: marks and references, each refusal. [`recount`] has
//! random sequences against an oracle.

mod recount;

use super::*;
use crate::{
    domain::Incarnation,
    fixture::{self, HOLE, frame_at, get, page, put},
    hypercall::{Outcome, grant::grant_table_op},
    memory::{
        frame::{
            FrameType,
            table::{Budget, Owners},
        },
        update,
    },
    state::Caller,
};
use bulkhead_abi::{
    GuestVa, Maddr,
    grant::{
        CopyPtr, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GNTMAP_CONTAINS_PTE, GNTMAP_HOST_MAP,
        GNTMAP_READONLY, GNTST_BAD_COPY_ARG, GNTST_BAD_DOMAIN, GNTST_BAD_GNTREF, GNTST_BAD_HANDLE,
        GNTST_BAD_PAGE, GNTST_BAD_VIRT_ADDR, GNTST_GENERAL_ERROR, GNTST_OKAY,
        GNTST_PERMISSION_DENIED, GNTTABOP_COPY, GNTTABOP_GET_VERSION, GNTTABOP_MAP_GRANT_REF,
        GNTTABOP_QUERY_SIZE, GNTTABOP_SET_VERSION, GNTTABOP_SETUP_TABLE, GNTTABOP_TRANSFER,
        GNTTABOP_UNMAP_GRANT_REF, GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_WRITING,
        GetVersion, GrantCopy, GrantEntryV1, MapGrantRef, QuerySize, SetVersion, SetupTable,
        UnmapGrantRef,
    },
};

/// Arguments go here.
const ARGS: u64 = page(1);

struct Machine {
    core: Core,
    /// Grants.
    a: Caller,
    /// Maps.
    b: Caller,
}

fn machine() -> Machine {
    let mut core = fixture::core();
    let a = fixture::domain(&mut core, 1, 1);
    let b = fixture::domain(&mut core, 2, 1);
    grow(&mut core, a.dom, 1).unwrap();
    Machine { core, a, b }
}

impl Machine {
    fn entry_at(&self, of: Caller, gref: u32) -> Maddr {
        let domain = self.core.domains.get(of.dom).unwrap();
        domain.grants.table.as_deref().unwrap().entry_at(Gref::new(gref)).unwrap()
    }

    fn write_entry(&self, of: Caller, gref: u32, flags: u16, to: Caller, frame: Mfn) {
        let entry = GrantEntryV1 { flags, domid: to.dom.get(), frame: frame.get() as u32 };
        self.core.frames.mem().write_u64(self.entry_at(of, gref), zerocopy::transmute!(entry));
    }

    /// `a` grants its page `n` to `b` as gref 8 + n.
    fn grant(&self, n: u64, flags: u16) -> u32 {
        let gref = 8 + n as u32;
        let frame = frame_at(&self.core, self.a, page(n));
        self.write_entry(self.a, gref, GTF_PERMIT_ACCESS | flags, self.b, frame);
        gref
    }

    fn flags(&self, gref: u32) -> u16 {
        self.core.frames.mem().read_u64(self.entry_at(self.a, gref)) as u16
    }

    fn marks(&self, gref: u32) -> u16 {
        self.flags(gref) & (GTF_READING | GTF_WRITING)
    }

    fn map_with(&mut self, asked: MapGrantRef) -> Result<u32, i16> {
        put(&self.core, self.b, ARGS, &asked);
        let args = [GNTTABOP_MAP_GRANT_REF, ARGS, 1, 0, 0, 0];
        assert_eq!(grant_table_op(&mut self.core, self.b, args), Outcome::Done(0));
        let told: MapGrantRef = get(&self.core, self.b, ARGS);
        if told.status == GNTST_OKAY { Ok(told.handle) } else { Err(told.status) }
    }

    fn request(&self, gref: u32, va: u64, flags: u32) -> MapGrantRef {
        MapGrantRef {
            host_addr: va,
            flags: GNTMAP_HOST_MAP | flags,
            gref,
            dom: self.a.dom.get(),
            ..Default::default()
        }
    }

    fn map(&mut self, gref: u32, va: u64, flags: u32) -> Result<u32, i16> {
        self.map_with(self.request(gref, va, flags))
    }

    fn unmap(&mut self, handle: u32, va: u64) -> i16 {
        put(
            &self.core,
            self.b,
            ARGS,
            &UnmapGrantRef { host_addr: va, handle, ..Default::default() },
        );
        let args = [GNTTABOP_UNMAP_GRANT_REF, ARGS, 1, 0, 0, 0];
        assert_eq!(grant_table_op(&mut self.core, self.b, args), Outcome::Done(0));
        get::<UnmapGrantRef>(&self.core, self.b, ARGS).status
    }

    fn copy(&mut self, asked: GrantCopy) -> i16 {
        put(&self.core, self.b, ARGS, &asked);
        let args = [GNTTABOP_COPY, ARGS, 1, 0, 0, 0];
        assert_eq!(grant_table_op(&mut self.core, self.b, args), Outcome::Done(0));
        get::<GrantCopy>(&self.core, self.b, ARGS).status
    }

    fn granted(&self, n: u64) -> Mfn {
        frame_at(&self.core, self.a, page(n))
    }

    fn refs(&self, mfn: Mfn) -> (u32, u32) {
        let (refs, types, _) = self.core.frames.counts(mfn);
        (refs, types)
    }

    fn pte_at(&self, who: Caller, va: u64) -> Maddr {
        let root = self.core.vcpu(who).unwrap().roots.kernel.unwrap();
        update::l1_entry_of(&self.core.frames, root, GuestVa::new(va)).unwrap()
    }

    /// The guest clears its own entry.
    fn clear(&mut self, who: Caller, va: u64) {
        let at = self.pte_at(who, va);
        let owners = Owners::only(who.dom);
        let mut budget = Budget::default();
        update::with_walk(&mut self.core, who.dom, &mut budget, |frames, walk| {
            update::write_entry(frames, owners, at, |_| 0, walk)
        })
        .unwrap();
    }
}

#[test]
fn a_mapped_frame_is_the_granters_frame() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    put(&m.core, m.a, page(5), &0x1234_5678u64);
    let before = m.refs(m.granted(5));
    let handle = m.map(gref, HOLE, 0).unwrap();
    assert_eq!(get::<u64>(&m.core, m.b, HOLE), 0x1234_5678);
    put(&m.core, m.b, HOLE, &7u64);
    assert_eq!(get::<u64>(&m.core, m.a, page(5)), 7);
    assert_eq!(m.marks(gref), GTF_READING | GTF_WRITING);
    assert_eq!(m.refs(m.granted(5)), (before.0 + 2, before.1 + 2), "the entry's and the handle's");
    assert_eq!(m.core.domains.get(m.b.dom).unwrap().grants.mapped(), 1);
    m.core.cpus[0].flush = Default::default();
    assert_eq!(m.unmap(handle, HOLE), GNTST_OKAY);
    assert_eq!(m.core.cpus[0].flush, crate::memory::flush::Flush::All);
    assert_eq!(m.marks(gref), 0);
    assert_eq!(m.refs(m.granted(5)), before);
    assert!(m.core.guest(m.b).read::<u64>(GuestVa::new(HOLE)).is_err());
    assert_eq!(m.unmap(handle, HOLE), GNTST_BAD_HANDLE);
}

#[test]
fn a_map_over_a_page_makes_the_processor_forget_the_page() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    m.core.cpus[0].flush = Default::default();
    m.map(gref, HOLE, 0).unwrap();
    assert_eq!(m.core.cpus[0].flush, crate::memory::flush::Flush::None);
    m.map(gref, page(9), 0).unwrap();
    assert_eq!(m.core.cpus[0].flush, crate::memory::flush::Flush::All);
}

#[test]
fn a_map_says_where_the_frame_is() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    m.map(gref, HOLE, GNTMAP_READONLY).unwrap();
    let told: MapGrantRef = get(&m.core, m.b, ARGS);
    assert_eq!(told.dev_bus_addr, m.granted(5).maddr().get());
}

#[test]
fn a_read_only_map_can_not_be_written() {
    let mut m = machine();
    let gref = m.grant(5, GTF_READONLY);
    assert_eq!(m.map(gref, HOLE, 0), Err(GNTST_GENERAL_ERROR));
    assert_eq!(m.marks(gref), 0);
    m.map(gref, HOLE, GNTMAP_READONLY).unwrap();
    assert_eq!(m.marks(gref), GTF_READING);
    assert!(m.core.guest(m.b).write(GuestVa::new(HOLE), &1u8).is_err());
    let types = m.refs(m.granted(5)).1;
    assert_eq!(types, 1, "only the granter may write");
}

#[test]
fn marks_stay_until_the_last_use_of_their_kind_ends() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    let read = m.map(gref, HOLE, GNTMAP_READONLY).unwrap();
    let write = m.map(gref, HOLE + 0x1000, 0).unwrap();
    let again = m.map(gref, HOLE + 0x2000, 0).unwrap();
    assert_eq!(m.unmap(write, HOLE + 0x1000), GNTST_OKAY);
    assert_eq!(m.marks(gref), GTF_READING | GTF_WRITING);
    assert_eq!(m.unmap(again, HOLE + 0x2000), GNTST_OKAY);
    assert_eq!(m.marks(gref), GTF_READING);
    assert_eq!(m.unmap(read, HOLE), GNTST_OKAY);
    assert_eq!(m.marks(gref), 0);
}

#[test]
fn maps_that_are_not_granted_are_refused_and_change_nothing() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    let frame = m.granted(5);
    let before = m.refs(frame);
    let of = |m: &Machine, change: &dyn Fn(&mut MapGrantRef)| {
        let mut asked = m.request(gref, HOLE, 0);
        change(&mut asked);
        asked
    };
    type Change = fn(&mut MapGrantRef);
    let cases: [(&str, Change, i16); 12] = [
        ("no such domain", |r| r.dom = 9, GNTST_BAD_DOMAIN),
        ("self by name", |r| r.dom = 0x7ff0, GNTST_BAD_DOMAIN),
        ("no table", |r| r.dom = 2, GNTST_BAD_GNTREF),
        ("beyond the table", |r| r.gref = 512, GNTST_BAD_GNTREF),
        ("far beyond", |r| r.gref = u32::MAX, GNTST_BAD_GNTREF),
        ("nothing granted", |r| r.gref = 9, GNTST_GENERAL_ERROR),
        ("no host map", |r| r.flags = GNTMAP_READONLY, GNTST_BAD_GNTREF),
        ("no table there", |r| r.host_addr = 1 << 40, GNTST_GENERAL_ERROR),
        ("the core's hole", |r| r.host_addr = 0xffff_8000_0000_0000, GNTST_GENERAL_ERROR),
        ("not canonical", |r| r.host_addr = 1 << 60, GNTST_GENERAL_ERROR),
        (
            "unaligned entry",
            |r| {
                r.flags |= GNTMAP_CONTAINS_PTE;
                r.host_addr = 0x5004
            },
            GNTST_GENERAL_ERROR,
        ),
        (
            "entry nowhere",
            |r| {
                r.flags |= GNTMAP_CONTAINS_PTE;
                r.host_addr = 1 << 50
            },
            GNTST_GENERAL_ERROR,
        ),
    ];
    for (name, change, status) in cases {
        let asked = of(&m, &change);
        assert_eq!(m.map_with(asked), Err(status), "{name}");
        assert_eq!((m.marks(gref), m.refs(frame)), (0, before), "{name}");
    }
    assert_eq!(m.core.domains.get(m.b.dom).unwrap().grants.mapped(), 0);
    assert!(m.map(gref, HOLE, 0).is_ok());
}

#[test]
fn an_entry_of_a_page_that_is_no_table_is_never_written() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    let victim = m.granted(6);
    let own = frame_at(&m.core, m.b, page(6));
    let table = m.pte_at(m.a, HOLE);
    for at in [victim.maddr(), own.maddr(), table] {
        let asked = m.request(gref, at.get(), GNTMAP_CONTAINS_PTE);
        assert_eq!(m.map_with(asked), Err(GNTST_GENERAL_ERROR));
        assert_eq!(m.core.frames.mem().read_u64(at), 0);
    }
}

#[test]
fn an_entry_can_be_named_by_its_own_address() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    let at = m.pte_at(m.b, HOLE);
    let asked = m.request(gref, at.get(), GNTMAP_CONTAINS_PTE);
    let handle = m.map_with(asked).unwrap();
    assert_eq!(frame_at(&m.core, m.b, HOLE), m.granted(5));
    assert_eq!(m.unmap(handle, HOLE), GNTST_GENERAL_ERROR, "mapped by entry, not by page");
    assert_eq!(m.unmap(handle, at.get()), GNTST_OKAY);
}

#[test]
fn what_the_entry_names_must_be_the_granters_memory() {
    let mut m = machine();
    let foreign = frame_at(&m.core, m.b, page(7));
    let table = m.core.vcpu(m.a).unwrap().roots.kernel.unwrap();
    for (frame, flags, status) in [
        (foreign, 0, GNTST_BAD_PAGE),
        (Mfn::new(1), 0, GNTST_BAD_PAGE),
        (Mfn::new(0xffff_ffff), 0, GNTST_BAD_PAGE),
        (table, 0, GNTST_GENERAL_ERROR),
    ] {
        m.write_entry(m.a, 20, GTF_PERMIT_ACCESS, m.b, frame);
        assert_eq!(m.map(20, HOLE, flags), Err(status), "{frame}");
        assert_eq!(m.marks(20), 0);
    }
    // A page table may be read.
    assert!(m.map(20, HOLE, GNTMAP_READONLY).is_ok());
}

#[test]
fn a_grant_to_another_is_refused() {
    let mut m = machine();
    let c = fixture::domain(&mut m.core, 3, 1);
    m.write_entry(m.a, 20, GTF_PERMIT_ACCESS, c, m.granted(5));
    assert_eq!(m.map(20, HOLE, 0), Err(GNTST_GENERAL_ERROR));
    m.write_entry(m.a, 20, 2, m.b, m.granted(5));
    assert_eq!(m.map(20, HOLE, 0), Err(GNTST_GENERAL_ERROR), "a transfer is no access");
}

#[test]
fn an_entry_that_changes_while_in_use_gives_no_second_frame() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    let handle = m.map(gref, HOLE, GNTMAP_READONLY).unwrap();
    m.write_entry(m.a, gref, GTF_PERMIT_ACCESS, m.b, m.granted(6));
    assert_eq!(m.map(gref, HOLE + 0x1000, 0), Err(GNTST_GENERAL_ERROR));
    assert_eq!(m.unmap(handle, HOLE), GNTST_OKAY);
    assert_eq!(m.refs(m.granted(5)), (2, 1));
}

#[test]
fn an_unmap_must_name_an_address_that_maps_the_frame() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    let handle = m.map(gref, HOLE, 0).unwrap();
    for va in [page(3), HOLE + 0x1000, 1 << 40, u64::MAX] {
        assert_eq!(m.unmap(handle, va), GNTST_GENERAL_ERROR, "{va:#x}");
    }
    for bad in [handle + 1, 102, 25_500, u32::MAX] {
        assert_eq!(m.unmap(bad, HOLE), GNTST_BAD_HANDLE);
    }
    assert_eq!(m.unmap(handle, 0), GNTST_OKAY, "nothing asked, nothing done");
    assert_eq!(m.marks(gref), GTF_READING | GTF_WRITING);
    assert_eq!(m.unmap(handle, HOLE), GNTST_OKAY);
}

#[test]
fn a_guest_that_clears_its_entry_still_holds_the_grant() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    let handle = m.map(gref, HOLE, 0).unwrap();
    m.clear(m.b, HOLE);
    assert_eq!(m.refs(m.granted(5)), (3, 2));
    assert_eq!(m.marks(gref), GTF_READING | GTF_WRITING);
    assert_eq!(m.unmap(handle, HOLE), GNTST_GENERAL_ERROR);
    assert_eq!(release_maps(&mut m.core, m.b.dom, &mut 9), Progress::Done);
    assert_eq!((m.refs(m.granted(5)), m.marks(gref)), ((2, 1), 0));
}

#[test]
fn the_death_of_a_mapper_clears_every_mark_in_steps() {
    let mut m = machine();
    let overhead = m.core.domains.get(m.b.dom).unwrap().grants.overhead();
    for n in 2..8 {
        let gref = m.grant(n, 0);
        m.map(gref, HOLE + n * 0x1000, if n % 2 == 0 { GNTMAP_READONLY } else { 0 }).unwrap();
    }
    assert_eq!(release_maps(&mut m.core, m.b.dom, &mut 4), Progress::More);
    assert_eq!(m.core.domains.get(m.b.dom).unwrap().grants.mapped(), 2);
    assert_eq!(release_maps(&mut m.core, m.b.dom, &mut 4), Progress::Done);
    for n in 2..8 {
        assert_eq!(m.marks(8 + n as u32), 0);
        assert_ne!(m.refs(m.granted(n)), (2, 1), "its entries are still there");
        m.clear(m.b, HOLE + n * 0x1000);
        assert_eq!(m.refs(m.granted(n)), (2, 1));
    }
    assert_eq!(m.core.domains.get(m.b.dom).unwrap().grants.overhead(), overhead);
}

#[test]
fn a_frame_outlives_its_owner_while_it_is_mapped() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    put(&m.core, m.a, page(5), &99u64);
    let frame = m.granted(5);
    let handle = m.map(gref, HOLE, 0).unwrap();
    loop {
        if lifecycle_destroy(&mut m.core, m.a.dom) == Progress::Done {
            break;
        }
    }
    assert!(m.core.domains.get(m.a.dom).is_none());
    assert_eq!(get::<u64>(&m.core, m.b, HOLE), 99);
    // A new domain of the same id is not touched by the old mapping.
    let again = fixture::domain(&mut m.core, 1, 1);
    grow(&mut m.core, again.dom, 1).unwrap();
    m.a = again;
    m.write_entry(again, gref, GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING, m.b, frame);
    assert_eq!(m.unmap(handle, HOLE), GNTST_OKAY);
    assert_eq!(m.marks(gref), GTF_READING | GTF_WRITING, "the new one's own affair");
    assert_ne!(m.core.frames.owner(frame), super::super::frame::Owner::Domain(again.dom));
}

fn lifecycle_destroy(core: &mut Core, dom: DomId) -> Progress {
    crate::domain::teardown::destroy(core, dom).unwrap()
}

#[test]
fn a_mapping_of_an_earlier_life_does_not_count_for_the_new_one() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    let old = m.map(gref, HOLE, 0).unwrap();
    free_table(&mut m.core, m.a.dom);
    m.core.domains.get_mut(m.a.dom).unwrap().incarnation = Incarnation(77);
    grow(&mut m.core, m.a.dom, 1).unwrap();
    assert_eq!(m.grant(6, 0), gref + 1);
    m.write_entry(m.a, gref, GTF_PERMIT_ACCESS, m.b, m.granted(6));
    let new = m.map(gref, HOLE + 0x1000, 0).unwrap();
    assert_eq!(m.unmap(old, HOLE), GNTST_OKAY);
    assert_eq!(m.marks(gref), GTF_READING | GTF_WRITING, "the new mapping's");
    assert_eq!(m.refs(m.granted(5)), (2, 1));
    assert_eq!(m.unmap(new, HOLE + 0x1000), GNTST_OKAY);
    assert_eq!(m.marks(gref), 0);
}

#[test]
fn copies_go_both_ways_and_leave_no_trace() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    put(&m.core, m.a, page(5) + 100, &0xabcdu64);
    let own = frame_at(&m.core, m.b, page(6)).get();
    let before = m.refs(m.granted(5));
    let theirs = CopyPtr { gref_or_gmfn: gref.into(), domid: 1, offset: 100, _pad: 0 };
    let mine = CopyPtr { gref_or_gmfn: own, domid: DomId::SELF.get(), offset: 4088, _pad: 0 };
    let read = GrantCopy {
        source: theirs,
        dest: mine,
        len: 8,
        flags: GNTCOPY_SOURCE_GREF,
        ..Default::default()
    };
    assert_eq!(m.copy(read), GNTST_OKAY);
    assert_eq!(get::<u64>(&m.core, m.b, page(6) + 4088), 0xabcd);
    put(&m.core, m.b, page(6) + 4088, &0x77u64);
    let write = GrantCopy { source: mine, dest: theirs, flags: GNTCOPY_DEST_GREF, ..read };
    assert_eq!(m.copy(write), GNTST_OKAY);
    assert_eq!(get::<u64>(&m.core, m.a, page(5) + 100), 0x77);
    assert_eq!((m.refs(m.granted(5)), m.marks(gref)), (before, 0));
}

#[test]
fn copies_that_are_not_allowed_are_refused() {
    let mut m = machine();
    let gref = m.grant(5, GTF_READONLY);
    let own = frame_at(&m.core, m.b, page(6)).get();
    let table = m.core.vcpu(m.b).unwrap().roots.kernel.unwrap().get();
    let foreign = m.granted(6).get();
    let theirs = CopyPtr { gref_or_gmfn: gref.into(), domid: 1, offset: 0, _pad: 0 };
    let mine = CopyPtr { gref_or_gmfn: own, domid: DomId::SELF.get(), offset: 0, _pad: 0 };
    let good = GrantCopy {
        source: theirs,
        dest: mine,
        len: 16,
        flags: GNTCOPY_SOURCE_GREF,
        ..Default::default()
    };
    assert_eq!(m.copy(good), GNTST_OKAY);
    let cases = [
        (
            "leaves the page",
            GrantCopy { source: CopyPtr { offset: 4090, ..theirs }, ..good },
            GNTST_BAD_COPY_ARG,
        ),
        (
            "starts beyond it",
            GrantCopy { dest: CopyPtr { offset: 4097, ..mine }, len: 0, ..good },
            GNTST_BAD_COPY_ARG,
        ),
        (
            "a frame of another",
            GrantCopy { dest: CopyPtr { domid: 1, ..mine }, ..good },
            GNTST_PERMISSION_DENIED,
        ),
        (
            "own frame, own id",
            GrantCopy { dest: CopyPtr { domid: 2, ..mine }, ..good },
            GNTST_PERMISSION_DENIED,
        ),
        (
            "not own frame",
            GrantCopy { dest: CopyPtr { gref_or_gmfn: foreign, ..mine }, ..good },
            GNTST_BAD_PAGE,
        ),
        (
            "no frame",
            GrantCopy { dest: CopyPtr { gref_or_gmfn: u64::MAX, ..mine }, ..good },
            GNTST_BAD_PAGE,
        ),
        (
            "onto a page table",
            GrantCopy { dest: CopyPtr { gref_or_gmfn: table, ..mine }, ..good },
            GNTST_GENERAL_ERROR,
        ),
        (
            "no such gref",
            GrantCopy { source: CopyPtr { gref_or_gmfn: 600, ..theirs }, ..good },
            GNTST_BAD_GNTREF,
        ),
        (
            "no such domain",
            GrantCopy { source: CopyPtr { domid: 9, ..theirs }, ..good },
            GNTST_BAD_DOMAIN,
        ),
        (
            "write to read-only",
            GrantCopy { source: mine, dest: theirs, flags: GNTCOPY_DEST_GREF, ..good },
            GNTST_GENERAL_ERROR,
        ),
    ];
    for (name, asked, status) in cases {
        assert_eq!(m.copy(asked), status, "{name}");
        assert_eq!(m.marks(gref), 0, "{name}");
    }
    let edge = GrantCopy { dest: CopyPtr { offset: 4096, ..mine }, len: 0, ..good };
    assert_eq!(m.copy(edge), GNTST_OKAY, "nothing, at the very end");
}

#[test]
fn tables_grow_to_their_limit_and_are_listed() {
    let mut m = machine();
    let list = page(2);
    let ask = |m: &mut Machine, dom: u16, nr_frames: u32, frame_list: u64| {
        let asked = SetupTable { dom, nr_frames, frame_list, ..Default::default() };
        put(&m.core, m.b, ARGS, &asked);
        let args = [GNTTABOP_SETUP_TABLE, ARGS, 1, 0, 0, 0];
        assert_eq!(grant_table_op(&mut m.core, m.b, args), Outcome::Done(0));
        get::<SetupTable>(&m.core, m.b, ARGS).status
    };
    let me = DomId::SELF.get();
    assert_eq!(ask(&mut m, me, 4, list), GNTST_OKAY);
    for n in 0..4 {
        let mfn = Mfn::new(get(&m.core, m.b, list + 8 * n));
        let owner = m.core.frames.owner(mfn);
        assert_eq!(owner, super::super::frame::Owner::Domain(m.b.dom), "so that it can be mapped");
        assert_eq!(m.core.frames.frame_type(mfn), FrameType::Writable);
    }
    assert_eq!(ask(&mut m, me, 65, list), GNTST_GENERAL_ERROR);
    assert_eq!(ask(&mut m, me, u32::MAX, list), GNTST_GENERAL_ERROR);
    assert_eq!(ask(&mut m, me, 2, 1 << 40), GNTST_BAD_VIRT_ADDR);
    assert_eq!(ask(&mut m, me, 2, u64::MAX), GNTST_BAD_VIRT_ADDR);
    assert_eq!(ask(&mut m, 1, 1, list), GNTST_PERMISSION_DENIED);
    assert_eq!(ask(&mut m, 9, 1, list), GNTST_BAD_DOMAIN);
    put(&m.core, m.b, ARGS, &QuerySize { dom: me, ..Default::default() });
    let args = [GNTTABOP_QUERY_SIZE, ARGS, 1, 0, 0, 0];
    assert_eq!(grant_table_op(&mut m.core, m.b, args), Outcome::Done(0));
    let told: QuerySize = get(&m.core, m.b, ARGS);
    assert_eq!((told.nr_frames, told.max_nr_frames, told.status), (4, 64, GNTST_OKAY));
    assert_eq!(ask(&mut m, me, 64, list), GNTST_OKAY);
    let before = m.core.frames.free_frames();
    free_table(&mut m.core, m.b.dom);
    assert_eq!(m.core.frames.free_frames(), before + 1 + 64 * 3);
    assert_eq!(m.core.domains.get(m.b.dom).unwrap().grants.overhead(), 0);
}

#[test]
fn only_version_1_is_offered() {
    let mut m = machine();
    let set = |m: &mut Machine, version: u32| {
        put(&m.core, m.b, ARGS, &SetVersion { version });
        grant_table_op(&mut m.core, m.b, [GNTTABOP_SET_VERSION, ARGS, 1, 0, 0, 0])
    };
    assert_eq!(set(&mut m, 1), Outcome::Done(0));
    assert_eq!(set(&mut m, 2), Outcome::Done(Errno::ENOSYS.to_rax()));
    assert_eq!(set(&mut m, 3), Outcome::Done(Errno::EINVAL.to_rax()));
    put(&m.core, m.b, ARGS, &GetVersion { dom: DomId::SELF.get(), ..Default::default() });
    let get_version = [GNTTABOP_GET_VERSION, ARGS, 1, 0, 0, 0];
    assert_eq!(grant_table_op(&mut m.core, m.b, get_version), Outcome::Done(0));
    assert_eq!(get::<GetVersion>(&m.core, m.b, ARGS).version, 1);
    let transfer = [GNTTABOP_TRANSFER, ARGS, 1, 0, 0, 0];
    assert_eq!(grant_table_op(&mut m.core, m.b, transfer), Outcome::Done(Errno::ENOSYS.to_rax()));
}

#[test]
fn counts_and_arrays_that_are_none_are_refused() {
    let mut m = machine();
    let b = m.b;
    let mut op = |args| grant_table_op(&mut m.core, b, args);
    let einval = Outcome::Done(Errno::EINVAL.to_rax());
    let efault = Outcome::Done(Errno::EFAULT.to_rax());
    assert_eq!(op([GNTTABOP_MAP_GRANT_REF, ARGS, 1 << 31, 0, 0, 0]), einval);
    assert_eq!(op([GNTTABOP_SETUP_TABLE, ARGS, 2, 0, 0, 0]), einval);
    assert_eq!(op([GNTTABOP_MAP_GRANT_REF, 1 << 40, 1, 0, 0, 0]), efault);
    assert_eq!(op([GNTTABOP_COPY, u64::MAX - 20, 5, 0, 0, 0]), efault);
    assert_eq!(op([GNTTABOP_UNMAP_GRANT_REF, 1 << 40, 0, 0, 0, 0]), Outcome::Done(0));
    assert_eq!(op([GNTTABOP_QUERY_SIZE, 1 << 40, 1, 0, 0, 0]), efault);
}

#[test]
fn a_long_batch_goes_on_where_it_stopped() {
    let mut m = machine();
    let gref = m.grant(5, 0);
    let own = frame_at(&m.core, m.b, page(10)).get();
    let count = 80;
    for n in 0..count {
        let asked = GrantCopy {
            source: CopyPtr { gref_or_gmfn: gref.into(), domid: 1, ..Default::default() },
            dest: CopyPtr { gref_or_gmfn: own, domid: DomId::SELF.get(), offset: 8, _pad: 0 },
            len: 8,
            flags: GNTCOPY_SOURCE_GREF,
            status: 55,
            _pad: 0,
        };
        put(&m.core, m.b, ARGS + n * 40, &asked);
    }
    let mut args = [GNTTABOP_COPY, ARGS, count, 0, 0, 0];
    let mut stays = 1;
    while let Outcome::Again([op, at, left, ..]) = grant_table_op(&mut m.core, m.b, args) {
        args = [op, at, left, 0, 0, 0];
        stays += 1;
    }
    assert_eq!(stays, 3);
    for n in 0..count {
        assert_eq!(get::<GrantCopy>(&m.core, m.b, ARGS + n * 40).status, GNTST_OKAY);
    }
}

#[test]
fn a_grant_that_dom0_wrote_can_be_mapped() {
    let mut m = machine();
    let frame = m.granted(9);
    set_entry(&mut m.core, m.a.dom, Gref::new(1), m.b.dom, frame).unwrap();
    assert!(m.map(1, HOLE, 0).is_ok());
    let set = |m: &mut Machine, dom: u16, gref: u32, mfn: u64| {
        set_entry(&mut m.core, DomId::new(dom), Gref::new(gref), m.b.dom, Mfn::new(mfn))
    };
    assert_eq!(set(&mut m, 1, 512, 1), Err(Errno::EINVAL));
    assert_eq!(set(&mut m, 1, 2, 1 << 32), Err(Errno::EINVAL));
    assert_eq!(set(&mut m, 9, 2, 1), Err(Errno::ESRCH));
    let entry: u64 = m.core.frames.mem().read_u64(m.entry_at(m.a, 1));
    let [low, ..] = entry.to_le_bytes();
    assert_eq!(u16::from(low), GTF_PERMIT_ACCESS | GTF_READING | GTF_WRITING);
    assert_eq!(size_of::<GrantEntryV1>(), size_of::<u64>());
}
