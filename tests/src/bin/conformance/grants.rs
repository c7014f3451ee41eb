//! `grant_table_op`: this domain grants to itself.

use crate::catch::attempt;
use crate::hv::{HOLE, UNMAPPED, hv, rc, said};
use crate::tables::{RW, Scratch, frame_of_the_core, leaf, root, uvm};
use crate::tap::check;
use alloc::format;
use alloc::string::String;
use domain_rt::abi::grant::{
    self, CopyPtr, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GNTMAP_CONTAINS_PTE, GNTMAP_HOST_MAP,
    GNTMAP_READONLY, GrantCopy, GrantEntryV1, MapGrantRef, QuerySize, SetupTable, UnmapGrantRef,
};
use domain_rt::abi::hypercall::GRANT_TABLE_OP;
use domain_rt::abi::{DomId, Mfn};
use domain_rt::event;

const SELF: u16 = DomId::SELF.get();
/// References that the cases use.
const GOOD: u32 = 20;
const READ_ONLY: u32 = 21;
const FOR_ANOTHER: u32 = 22;
const OF_A_TABLE: u32 = 23;
const OF_THE_CORE: u32 = 24;
const EMPTY: u32 = 25;

/// What the cases share.
struct Set {
    me: u16,
    table: Scratch,
    page: Scratch,
    window: Scratch,
}

pub fn run() {
    let set = Set {
        me: event::own_domid().expect("two free ports").get(),
        table: Scratch::new(),
        page: Scratch::new(),
        window: Scratch::new(),
    };
    setup(&set);
    set.map_cases();
    set.entry_cases();
    set.unmap_cases();
    set.copy_cases();
    refusals();
}

fn ops<T>(cmd: u64, list: &mut [T]) -> i64 {
    hv(GRANT_TABLE_OP, &[cmd, list.as_mut_ptr() as u64, list.len() as u64])
}

fn setup(set: &Set) {
    let mut frames = [0u64; 1];
    let mut arg = [SetupTable {
        dom: SELF,
        nr_frames: 1,
        frame_list: frames.as_mut_ptr() as u64,
        ..Default::default()
    }];
    let result = rc(ops(grant::GNTTABOP_SETUP_TABLE, &mut arg));
    check("setup_table: one frame", format!("{result} status {}", arg[0].status));
    check(
        "setup_table: the frame can be mapped",
        set.table.remap(Mfn::new(frames[0]).maddr().get() | RW),
    );
    let mut arg = [QuerySize { dom: SELF, ..Default::default() }];
    let result = rc(ops(grant::GNTTABOP_QUERY_SIZE, &mut arg));
    let found = (arg[0].nr_frames >= 1, arg[0].max_nr_frames >= 32, arg[0].status);
    check("query_size: at least 32 frames", format!("{result} {found:?}"));
    let mut arg = [SetupTable {
        dom: SELF,
        nr_frames: 1_000_000,
        frame_list: frames.as_mut_ptr() as u64,
        ..Default::default()
    }];
    let result = rc(ops(grant::GNTTABOP_SETUP_TABLE, &mut arg));
    check("setup_table: refuses more than the most", format!("{result} status {}", arg[0].status));
    let mut arg = [SetupTable { dom: 0x1234, nr_frames: 1, ..Default::default() }];
    let result = rc(ops(grant::GNTTABOP_SETUP_TABLE, &mut arg));
    check(
        "setup_table: refuses a domain that is not there",
        format!("{result} status {}", arg[0].status),
    );
    let page = set.page.mfn();
    set.put(GOOD, 1, set.me, page);
    set.put(READ_ONLY, 1 | 4, set.me, page);
    set.put(FOR_ANOTHER, 1, 0x1234, page);
    set.put(OF_A_TABLE, 1, set.me, root());
    set.put(OF_THE_CORE, 1, set.me, frame_of_the_core());
    set.put(EMPTY, 0, set.me, page);
}

impl Set {
    fn put(&self, gref: u32, flags: u16, domid: u16, frame: Mfn) {
        let at = self.table.shared().slice(gref as usize * 8, size_of::<GrantEntryV1>());
        at.write_u16(2, domid);
        at.write_u32(4, frame.get() as u32);
        at.store_u16(0, flags);
    }

    fn flags(&self, gref: u32) -> u16 {
        self.table.shared().load_u16(gref as usize * 8)
    }

    fn map_at(&self, gref: u32, flags: u32, host_addr: u64) -> (String, Option<u32>) {
        let mut arg = [MapGrantRef {
            host_addr,
            flags,
            gref,
            dom: self.me,
            status: 77,
            ..Default::default()
        }];
        let result = rc(ops(grant::GNTTABOP_MAP_GRANT_REF, &mut arg));
        let ok = arg[0].status == grant::GNTST_OKAY;
        (format!("{result} status {}", arg[0].status), ok.then_some(arg[0].handle))
    }

    fn map(&self, gref: u32, flags: u32) -> (String, Option<u32>) {
        self.map_at(gref, flags, self.window.va())
    }

    fn unmap_at(&self, host_addr: u64, handle: u32) -> String {
        let mut arg = [UnmapGrantRef { host_addr, handle, status: 77, ..Default::default() }];
        let result = rc(ops(grant::GNTTABOP_UNMAP_GRANT_REF, &mut arg));
        format!("{result} status {}", arg[0].status)
    }

    fn unmap(&self, handle: Option<u32>) -> String {
        handle.map_or("nothing mapped".into(), |h| self.unmap_at(self.window.va(), h))
    }

    /// Tries a mapping that should fail; takes it back if it did not.
    fn refuse(&self, name: &str, gref: u32, flags: u32, at: u64) {
        let (found, handle) = self.map_at(gref, flags, at);
        check(&format!("map_grant_ref: refuses {name}"), found);
        if let Some(handle) = handle {
            self.unmap_at(at, handle);
        }
    }

    /// The window stays unmapped between mappings: the core flushes nothing when it
    /// replaces an entry.
    fn map_cases(&self) {
        self.window.remap(0);
        self.page.write(1, 0x4711);
        let (found, handle) = self.map(GOOD, GNTMAP_HOST_MAP);
        check("map_grant_ref: writable", found);
        check("map_grant_ref: shows the page", format!("{:#x}", self.window.read(1)));
        self.window.write(1, 0x4712);
        check("map_grant_ref: writes arrive", format!("{:#x}", self.page.read(1)));
        check(
            "map_grant_ref: marks the entry as read and written",
            format!("{:#x}", self.flags(GOOD)),
        );
        check("unmap_grant_ref: gives it back", self.unmap(handle));
        check("unmap_grant_ref: clears the marks", format!("{:#x}", self.flags(GOOD)));
        let o = attempt!("mov rax, [{a}]", a = in(reg) self.window.va(), out("rax") _);
        check("unmap_grant_ref: the address is unmapped", o);
        let (found, handle) = self.map(GOOD, GNTMAP_HOST_MAP | GNTMAP_READONLY);
        check("map_grant_ref: read-only", format!("{found} flags {:#x}", self.flags(GOOD)));
        let o = attempt!("mov [{a}], rax", a = in(reg) self.window.va());
        check("map_grant_ref: a read-only mapping cannot be written", o);
        self.unmap(handle);
        let (found, handle) = self.map(READ_ONLY, GNTMAP_HOST_MAP | GNTMAP_READONLY);
        check(
            "map_grant_ref: a read-only grant, read-only",
            format!("{found} flags {:#x}", self.flags(READ_ONLY)),
        );
        self.unmap(handle);
        self.by_entry();
        self.window.remap(0);
    }

    /// The address of the page-table entry instead of the linear address.
    fn by_entry(&self) {
        let (entry, _) = leaf(self.window.va());
        let (found, handle) = self.map_at(GOOD, GNTMAP_HOST_MAP | GNTMAP_CONTAINS_PTE, entry);
        check("map_grant_ref: by page-table entry", found);
        if let Some(handle) = handle {
            check("unmap_grant_ref: by page-table entry", self.unmap_at(entry, handle));
        }
    }

    fn entry_cases(&self) {
        let window = self.window.va();
        self.refuse("a read-only grant, writable", READ_ONLY, GNTMAP_HOST_MAP, window);
        self.refuse("a grant for another", FOR_ANOTHER, GNTMAP_HOST_MAP, window);
        self.refuse("an empty entry", EMPTY, GNTMAP_HOST_MAP, window);
        self.refuse("a reference past the table", 1 << 20, GNTMAP_HOST_MAP, window);
        self.refuse("the highest reference", u32::MAX, GNTMAP_HOST_MAP, window);
        self.refuse("a page table, writable", OF_A_TABLE, GNTMAP_HOST_MAP, window);
        self.refuse("a frame of the core", OF_THE_CORE, GNTMAP_HOST_MAP, window);
        self.refuse("to map nowhere", GOOD, 0, window);
        self.refuse("an address in the hole", GOOD, GNTMAP_HOST_MAP, HOLE);
        self.refuse("an address without a table", GOOD, GNTMAP_HOST_MAP, UNMAPPED);
        check(
            "map_grant_ref: refusals leave no mark",
            format!("{:#x} {:#x}", self.flags(GOOD), self.flags(OF_A_TABLE)),
        );
        let mut arg = [MapGrantRef {
            host_addr: window,
            flags: GNTMAP_HOST_MAP,
            gref: GOOD,
            dom: 0x1234,
            ..Default::default()
        }];
        let result = rc(ops(grant::GNTTABOP_MAP_GRANT_REF, &mut arg));
        check(
            "map_grant_ref: refuses a domain that is not there",
            format!("{result} status {}", arg[0].status),
        );
        self.window.remap(0);
    }

    fn unmap_cases(&self) {
        let other = Scratch::new();
        let (_, handle) = self.map(GOOD, GNTMAP_HOST_MAP);
        let handle = handle.unwrap_or(0);
        check("unmap_grant_ref: refuses the wrong address", self.unmap_at(other.va(), handle));
        check("unmap_grant_ref: gives back after that", self.unmap_at(self.window.va(), handle));
        check("unmap_grant_ref: refuses a second time", self.unmap_at(self.window.va(), handle));
        check(
            "unmap_grant_ref: refuses a handle that never was",
            self.unmap_at(self.window.va(), 12345),
        );
        check(
            "unmap_grant_ref: refuses the highest handle",
            self.unmap_at(self.window.va(), u32::MAX),
        );
        self.window.remap(0);
        self.two_mappings();
    }

    /// The marks stay until the last mapping is gone.
    fn two_mappings(&self) {
        let other = Scratch::new();
        let (_, first) = self.map(GOOD, GNTMAP_HOST_MAP);
        let (_, second) = self.map_at(GOOD, GNTMAP_HOST_MAP | GNTMAP_READONLY, other.va());
        self.unmap(first);
        let between = self.flags(GOOD);
        second.map(|h| self.unmap_at(other.va(), h));
        check(
            "unmap_grant_ref: marks follow the last mapping of their kind",
            format!("{between:#x} {:#x}", self.flags(GOOD)),
        );
        self.window.remap(0);
        let _ = uvm(other.va(), other.data());
    }

    fn copy(&self, source: CopyPtr, dest: CopyPtr, len: u16, flags: u16) -> String {
        let mut arg = [GrantCopy { source, dest, len, flags, status: 77, ..Default::default() }];
        let result = rc(ops(grant::GNTTABOP_COPY, &mut arg));
        format!("{result} status {}", arg[0].status)
    }

    fn gref(&self, gref: u32, offset: u16) -> CopyPtr {
        CopyPtr { gref_or_gmfn: gref.into(), domid: self.me, offset, ..Default::default() }
    }

    fn copy_cases(&self) {
        let local = Scratch::new();
        let own = |offset| CopyPtr {
            gref_or_gmfn: local.mfn().get(),
            domid: SELF,
            offset,
            ..Default::default()
        };
        let (source, dest) = (GNTCOPY_SOURCE_GREF, GNTCOPY_DEST_GREF);
        self.page.write(0, 0x1111_2222_3333_4444);
        let found = self.copy(self.gref(GOOD, 0), own(64), 8, source);
        check("copy: from a grant", format!("{found} {:#x}", local.read(8)));
        let found = self.copy(own(64), self.gref(GOOD, 80), 8, dest);
        check("copy: to a grant", format!("{found} {:#x}", self.page.read(10)));
        let found = self.copy(own(64), own(72), 8, 0);
        check("copy: between own frames", format!("{found} {:#x}", local.read(9)));
        check("copy: of nothing", self.copy(own(0), self.gref(GOOD, 0), 0, dest));
        check(
            "copy: refuses to cross a page at the source",
            self.copy(self.gref(GOOD, 4090), own(0), 8, source),
        );
        check(
            "copy: refuses to cross a page at the target",
            self.copy(self.gref(GOOD, 0), own(4090), 8, source),
        );
        check(
            "copy: from a read-only grant",
            self.copy(self.gref(READ_ONLY, 0), own(0), 8, source),
        );
        check(
            "copy: refuses to write to a read-only grant",
            self.copy(own(0), self.gref(READ_ONLY, 0), 8, dest),
        );
        check(
            "copy: refuses a grant for another",
            self.copy(self.gref(FOR_ANOTHER, 0), own(0), 8, source),
        );
        check("copy: refuses an empty entry", self.copy(self.gref(EMPTY, 0), own(0), 8, source));
        check(
            "copy: refuses a reference past the table",
            self.copy(self.gref(1 << 20, 0), own(0), 8, source),
        );
        check(
            "copy: refuses a page table as target",
            self.copy(own(0), self.gref(OF_A_TABLE, 0), 8, dest),
        );
        let core =
            CopyPtr { gref_or_gmfn: frame_of_the_core().get(), domid: SELF, ..Default::default() };
        check("copy: refuses a frame of the core as source", self.copy(core, own(0), 8, 0));
        check("copy: refuses a frame of the core as target", self.copy(own(0), core, 8, 0));
        let table = CopyPtr { gref_or_gmfn: root().get(), domid: SELF, ..Default::default() };
        check("copy: refuses an own page table as target", self.copy(own(0), table, 8, 0));
        check(
            "copy: leaves no mark",
            format!("{:#x} {:#x}", self.flags(GOOD), self.flags(READ_ONLY)),
        );
    }
}

fn refusals() {
    check("grant_table_op: refuses an unknown operation", said(GRANT_TABLE_OP, &[99, 0, 0]));
    check(
        "grant_table_op: refuses an unmapped list",
        said(GRANT_TABLE_OP, &[grant::GNTTABOP_MAP_GRANT_REF, UNMAPPED, 1]),
    );
    check(
        "grant_table_op: refuses a list in the hole",
        said(GRANT_TABLE_OP, &[grant::GNTTABOP_COPY, HOLE, 1]),
    );
    check(
        "grant_table_op: of nothing",
        said(GRANT_TABLE_OP, &[grant::GNTTABOP_MAP_GRANT_REF, 0, 0]),
    );
}
