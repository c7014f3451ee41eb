//! Memory of other domains: what they may have, Dom0's mappings of it, their page tables
//! and grants made in their name.

use crate::calls::{PAGES, create, destroy, free_frames, info, populate, set_max_pages, unpin};
use crate::program::Program;
use crate::small::{DATA_PAGE, L1, L2, L4, Small, WRITE};
use crate::tap::{check, equal, refused};
use domain_rt::abi::control::SetGrant;
use domain_rt::abi::grant::{GNTST_BAD_GNTREF, GNTST_GENERAL_ERROR};
use domain_rt::abi::{DomId, Errno, Gref, Mfn, PAGE_SIZE, memory::MAX_ORDER};
use domain_rt::grant::map_grants;
use domain_rt::hypercall::pin_foreign;
use domain_rt::mem::{self, map_foreign};
use domain_rt::{control, hypercall};

pub fn run() {
    limits();
    foreign();
    tables();
    grants();
}

fn limits() {
    let domid = create(0, 1, 0).expect("a domain");
    set_max_pages(domid, 100).expect("a domain that is there");
    equal("the limit is told", info(domid).expect("there").max_pages, 100);
    equal("a domain gets up to its limit", populate(domid, 0, 0, 150).len(), 100);
    equal("a domain gets nothing beyond it", populate(domid, 0, 100, 1).len(), 0);
    set_max_pages(domid, 40).expect("a domain that is there");
    equal("a lower limit takes nothing away", info(domid).expect("there").tot_pages, 100);
    set_max_pages(domid, 100 + 15).expect("a domain that is there");
    equal("a block that does not fit is not begun", populate(domid, 4, 128, 1).len(), 0);
    equal("a block that does is given", populate(domid, 3, 128, 1).len(), 1);
    set_max_pages(domid, u64::MAX).expect("a domain that is there");
    equal("no limit is no overflow", populate(domid, 0, 200, 1).len(), 1);
    equal("blocks have a largest size", populate(domid, MAX_ORDER + 1, 0, 1).len(), 0);
    let free = free_frames();
    let too_much = populate(domid, MAX_ORDER, 0, free / 512 + 1).len() as u64;
    check("memory that is not there is not given", too_much <= free / 512);
    equal("what was given was free", free_frames(), free - too_much * 512);
    destroy(domid).expect("a domain that is there");
    equal("nobody gets no memory", populate(domid, 0, 0, 1).len(), 0);
    let pfns = &mut [0];
    let done = hypercall::populate_physmap(DomId::new(0x7ff1), 0, pfns);
    equal("a name that is no domain's gets none", done, Ok(0));
}

/// A page that says what its frame is.
fn pattern(mfn: Mfn) -> u64 {
    mfn.get() << 20 | 0xabc
}

fn foreign() {
    let before = free_frames();
    let domid = create(0, 1, 0).expect("a domain");
    let frames = populate(domid, 0, 0, 700);
    let all = map_foreign(domid, &frames, true).expect("frames of a domain");
    let word = |n: usize| n * PAGE_SIZE + 8 * (n % 512);
    let clean = (0..700).all(|n| all.shared().read_u64(word(n)) == 0);
    check("a domain's memory starts empty", clean);
    frames.iter().enumerate().for_each(|(n, &mfn)| all.shared().write_u64(word(n), pattern(mfn)));
    drop(all);
    let again = map_foreign(domid, &frames, false).expect("frames of a domain");
    let kept =
        frames.iter().enumerate().all(|(n, &mfn)| again.shared().read_u64(word(n)) == pattern(mfn));
    check("what is written there stays there", kept);
    let other = create(0, 1, 0).expect("a domain");
    refused(
        "a frame is not mapped under another domain's name",
        map_foreign(other, &frames[..1], false),
        Errno::EBUSY,
    );
    destroy(other).expect("there");
    destroy(domid).expect("there");
    let last = again.shared().read_u64(word(699));
    equal("a mapping outlives its domain", last, pattern(frames[699]));
    equal("what is mapped is not free", free_frames(), before - 700);
    drop(again);
    equal("what is unmapped is", free_frames(), before);
    refused(
        "a dead domain's frames are gone",
        map_foreign(domid, &frames[..1], false),
        Errno::ESRCH,
    );
}

fn tables() {
    let small = Small::create(&Program::default()).expect("a small domain");
    let (domid, root) = (small.domid, small.frames[L4]);
    equal("a table is pinned in another domain", pin_foreign(domid, 4, root), Ok(()));
    refused("a table is pinned once", pin_foreign(domid, 4, root), Errno::EINVAL);
    for (name, page) in [("a root", L4), ("a table under a root", L1)] {
        refused(
            &alloc::format!("{name} is not mapped writable"),
            map_foreign(domid, &small.frames[page..=page], true),
            Errno::EBUSY,
        );
    }
    let seen = map_foreign(domid, &small.frames[L1..=L1], false).expect("readable");
    let entry = seen.shared().read_u64(DATA_PAGE * 8);
    check(
        "a table may be read",
        entry & !0xfff & !(1 << 63) == small.frames[DATA_PAGE].maddr().get(),
    );
    refused("a table has one level", pin_foreign(domid, 3, root), Errno::EINVAL);
    equal("a pin is taken back", unpin(domid, root), Ok(()));
    refused("a pin is taken back once", unpin(domid, root), Errno::EINVAL);
    drop(seen);
    check("what is no table any more may be written", small.map(L1).is_ok());
    bad_tables(&small);
    small.destroy();
}

fn bad_tables(small: &Small) {
    let domid = small.domid;
    let ours = mem::alloc_pages(1).expect("a page");
    small.write(L1, 100, ours.maddr(0).get() | WRITE).expect("no table yet");
    refused(
        "a table that maps Dom0's memory is no table",
        pin_foreign(domid, 4, small.frames[L4]),
        Errno::EBUSY,
    );
    small.write(L1, 100, small.frames[L1].maddr().get() | WRITE).expect("nothing was pinned");
    refused(
        "a table that maps itself writable is no table",
        pin_foreign(domid, 1, small.frames[L1]),
        Errno::EBUSY,
    );
    small.write(L1, 100, 0).expect("nothing was pinned");
    small.write(L2, 3, small.frames[DATA_PAGE].maddr().get() | 0x80 | WRITE).expect("no table");
    refused(
        "a table with a large page is no table",
        pin_foreign(domid, 2, small.frames[L2]),
        Errno::EINVAL,
    );
    small.write(L2, 3, 0).expect("nothing was pinned");
    let held = small.map(L4).expect("no table");
    refused(
        "a page that is mapped writable is no table",
        pin_foreign(domid, 4, small.frames[L4]),
        Errno::EINVAL,
    );
    drop(held);
    equal("and it is one again afterwards", pin_foreign(domid, 4, small.frames[L4]), Ok(()));
    refused(
        "Dom0's frame is nobody else's table",
        pin_foreign(domid, 1, ours.mfn(0)),
        Errno::EINVAL,
    );
}

fn set_grant(domid: DomId, gref: u32, grantee: DomId, mfn: Mfn) -> Result<(), Errno> {
    let (domid, grantee) = (domid.get(), grantee.get());
    control::set_grant(&mut SetGrant { domid, grantee, gref, mfn: mfn.get() })
}

fn grants() {
    let before = free_frames();
    let domid = create(0, 1, 0).expect("a domain");
    let frames = populate(domid, 0, 0, 2);
    let page = map_foreign(domid, &frames, true).expect("frames of a domain");
    page.shared().write_u64(PAGE_SIZE, 4711);
    drop(page);
    let status = |gref| map_grants(domid, &[Gref::new(gref)], false).err().map(|e| e.status);
    equal("a domain that granted nothing has no grants", status(1), Some(GNTST_BAD_GNTREF));
    equal("Dom0 grants in a domain's name", set_grant(domid, 1, DomId::DOM0, frames[1]), Ok(()));
    let mapped = map_grants(domid, &[Gref::new(1)], false).expect("granted to us");
    equal("the granted page is the one that is seen", mapped.shared().read_u64(0), 4711);
    equal("to another domain", set_grant(domid, 8, DomId::new(9), frames[0]), Ok(()));
    equal("a grant to another domain is not ours", status(8), Some(GNTST_GENERAL_ERROR));
    equal("an entry that was not written grants nothing", status(511), Some(GNTST_GENERAL_ERROR));
    let past = set_grant(domid, 512, DomId::DOM0, frames[0]);
    refused("the first page of the table is what can be written", past, Errno::EINVAL);
    let wide = set_grant(domid, 9, DomId::DOM0, Mfn::new(1 << 32));
    refused("a frame number fits its entry", wide, Errno::EINVAL);
    set_max_pages(domid, PAGES).expect("there");
    destroy(domid).expect("there");
    mapped.shared().write_u64(0, 1);
    equal("a mapped grant outlives its granter", free_frames(), before - 1);
    drop(mapped);
    equal("and is free with its last mapping", free_frames(), before);
}
