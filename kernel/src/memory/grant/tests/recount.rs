//! Random sequences of what granters and mappers do, against an oracle that recounts all
//! references and marks from a list of mappings and every entry of every page table.

use super::super::*;
use crate::{
    domain::Incarnation,
    fixture::{self, HOLE, PAGES, frame_at, page},
    memory::{
        frame::table::{Budget, Owners},
        update,
        validate::{self, Pte},
    },
    state::Caller,
};
use bulkhead_abi::{
    GuestVa, Maddr,
    grant::{
        CopyPtr, GNTCOPY_DEST_GREF, GNTCOPY_SOURCE_GREF, GNTMAP_CONTAINS_PTE, GNTMAP_HOST_MAP,
        GNTMAP_READONLY, GTF_PERMIT_ACCESS, GTF_READING, GTF_READONLY, GTF_WRITING, GrantCopy,
        GrantEntryV1, MapGrantRef,
    },
};
use proptest::prelude::*;

/// What domains do in the random test. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Act {
    /// Granter's page, to whom, read-only.
    Grant(usize, usize, u64, bool),
    Revoke(usize, u64),
    Map {
        by: usize,
        of: usize,
        gref: u64,
        slot: u64,
        readonly: bool,
        by_pte: bool,
    },
    Unmap {
        by: usize,
        nth: usize,
    },
    UnmapAt {
        by: usize,
        nth: usize,
        slot: u64,
    },
    Clear(usize, u64),
    Copy {
        by: usize,
        of: usize,
        gref: u64,
        write: bool,
    },
    Release(usize),
    NewLife(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let (d, g, s, flag) = (0..3usize, 2..6u64, 0..4u64, any::<bool>());
    let act = prop_oneof![
        4 => (d.clone(), d.clone(), g.clone(), flag).prop_map(|(d, t, g, ro)| Act::Grant(d, t, g, ro)),
        1 => (d.clone(), g.clone()).prop_map(|(d, g)| Act::Revoke(d, g)),
        6 => (d.clone(), d.clone(), g.clone(), s.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(by, of, gref, slot, readonly, by_pte)| Act::Map { by, of, gref, slot, readonly, by_pte }),
        4 => (d.clone(), 0..8usize).prop_map(|(by, nth)| Act::Unmap { by, nth }),
        1 => (d.clone(), 0..8usize, s.clone()).prop_map(|(by, nth, slot)| Act::UnmapAt { by, nth, slot }),
        1 => (d.clone(), s).prop_map(|(d, s)| Act::Clear(d, s)),
        2 => (d.clone(), d.clone(), g, any::<bool>()).prop_map(|(by, of, gref, write)| Act::Copy { by, of, gref, write }),
        1 => d.clone().prop_map(Act::Release),
        1 => d.prop_map(Act::NewLife),
    ];
    proptest::collection::vec(act, 1..80)
}

/// One mapping, as the oracle remembers it.
#[derive(Clone, Copy, Debug)]
struct Known {
    by: usize,
    of: usize,
    /// Granter's lives so far when it was made.
    life: u32,
    gref: u32,
    writable: bool,
    frame: Mfn,
    handle: u32,
    addr: u64,
}

struct World {
    core: Core,
    callers: [Caller; 3],
    known: Vec<Known>,
    lives: [u32; 3],
    /// Frames that are granted at times.
    frames: Vec<(usize, Mfn)>,
}

fn slot_va(slot: u64) -> u64 {
    HOLE + slot * 0x1000
}

impl World {
    fn new() -> Self {
        let mut core = fixture::core();
        let callers = [1, 2, 3].map(|id| fixture::domain(&mut core, id, 1));
        let mut frames = Vec::new();
        for (d, &caller) in callers.iter().enumerate() {
            grow(&mut core, caller.dom, 1).unwrap();
            frames.extend((2..6).map(|n| (d, frame_at(&core, caller, page(n)))));
        }
        Self { core, callers, known: Vec::new(), lives: [0; 3], frames }
    }

    fn frame(&self, d: usize, gref: u64) -> Mfn {
        self.frames[d * 4 + gref as usize - 2].1
    }

    fn entry_at(&self, d: usize, gref: u32) -> Maddr {
        let domain = self.core.domains.get(self.callers[d].dom).unwrap();
        domain.grants.table.as_deref().unwrap().entry_at(Gref::new(gref)).unwrap()
    }

    fn pte_at(&self, d: usize, va: u64) -> Maddr {
        let root = self.core.vcpu(self.callers[d]).unwrap().roots.kernel.unwrap();
        update::l1_entry_of(&self.core.frames, root, GuestVa::new(va)).unwrap()
    }

    fn nth(&self, by: usize, nth: usize) -> Option<usize> {
        let mine: Vec<usize> = (0..self.known.len()).filter(|&i| self.known[i].by == by).collect();
        mine.get(nth % mine.len().max(1)).copied()
    }

    fn act(&mut self, act: &Act) {
        let mem = self.core.frames.mem();
        match *act {
            Act::Grant(d, to, gref, readonly) => {
                let flags = GTF_PERMIT_ACCESS | if readonly { GTF_READONLY } else { 0 };
                let domid = self.callers[to].dom.get();
                let frame = self.frame(d, gref).get() as u32;
                let at = self.entry_at(d, gref as u32);
                // A well-behaved granter: not while it is in use.
                if Entry(mem.read_u64(at)).marks() == 0 {
                    let entry = GrantEntryV1 { flags, domid, frame };
                    mem.write_u64(at, zerocopy::transmute!(entry));
                }
            }
            Act::Revoke(d, gref) => {
                let at = self.entry_at(d, gref as u32);
                if Entry(mem.read_u64(at)).marks() == 0 {
                    mem.write_u64(at, 0);
                }
            }
            Act::Map { by, of, gref, slot, readonly, by_pte } => {
                let va = slot_va(slot);
                let at = self.pte_at(by, va);
                let (host_addr, kind) =
                    if by_pte { (at.get(), GNTMAP_CONTAINS_PTE) } else { (va, 0) };
                let flags = GNTMAP_HOST_MAP | kind | if readonly { GNTMAP_READONLY } else { 0 };
                let (dom, gref32) = (self.callers[of].dom.get(), gref as u32);
                let request =
                    MapGrantRef { flags, host_addr, dom, gref: gref32, ..Default::default() };
                let before = Entry(mem.read_u64(self.entry_at(of, gref as u32)));
                let result = map::map(&mut self.core, self.callers[by], &request);
                let allowed = before.lets(self.callers[by].dom, !readonly);
                assert_eq!(result.is_ok(), allowed, "{act:?} {result:?} {before:?}");
                if let Ok(mapped) = result {
                    self.known.push(Known {
                        by,
                        of,
                        life: self.lives[of],
                        gref: gref as u32,
                        writable: !readonly,
                        frame: mapped.frame,
                        handle: mapped.handle,
                        addr: host_addr,
                    });
                }
            }
            Act::Unmap { by, nth } => {
                let Some(i) = self.nth(by, nth) else { return };
                let Known { handle, addr, frame, .. } = self.known[i];
                let at = if self.by_pte(addr) { Maddr::new(addr) } else { self.pte_at(by, addr) };
                let entry = Pte::new(mem.read_u64(at));
                let is_there = entry.is_present() && entry.mfn() == frame;
                let result = map::unmap(&mut self.core, self.callers[by], addr, handle);
                assert_eq!(result.is_ok(), is_there);
                if is_there {
                    self.known.remove(i);
                }
            }
            Act::UnmapAt { by, nth, slot } => {
                let Some(i) = self.nth(by, nth) else { return };
                let Known { handle, addr, .. } = self.known[i];
                let other = slot_va(slot);
                if other != addr
                    && map::unmap(&mut self.core, self.callers[by], other, handle).is_ok()
                {
                    // The same frame was mapped there too: as good.
                    self.known.remove(i);
                }
            }
            Act::Clear(d, slot) => {
                let at = self.pte_at(d, slot_va(slot));
                let dom = self.callers[d].dom;
                update::with_walk(&mut self.core, dom, &mut Budget::default(), |frames, walk| {
                    update::write_entry(frames, Owners::only(dom), at, |_| 0, walk)
                })
                .unwrap();
            }
            Act::Copy { by, of, gref, write } => {
                let own = frame_at(&self.core, self.callers[by], page(PAGES - 1));
                let end = |gref_or_gmfn, domid: DomId, offset| CopyPtr {
                    gref_or_gmfn,
                    domid: domid.get(),
                    offset,
                    ..Default::default()
                };
                let own = end(own.get(), DomId::SELF, 3);
                let theirs = end(gref, self.callers[of].dom, 0);
                let (source, dest, flags) = match write {
                    true => (own, theirs, GNTCOPY_DEST_GREF),
                    false => (theirs, own, GNTCOPY_SOURCE_GREF),
                };
                let asked = GrantCopy { source, dest, len: 100, flags, ..Default::default() };
                let before = Entry(mem.read_u64(self.entry_at(of, gref as u32)));
                let result = copy::copy(&mut self.core, self.callers[by].dom, &asked);
                let dom = self.callers[by].dom;
                assert_eq!(result.is_ok(), before.lets(dom, write), "{act:?} {result:?}");
            }
            Act::Release(d) => {
                let dom = self.callers[d].dom;
                while release_maps(&mut self.core, dom, &mut 2) == Progress::More {}
                self.known.retain(|known| known.by != d);
            }
            Act::NewLife(d) => {
                let dom = self.callers[d].dom;
                free_table(&mut self.core, dom);
                self.lives[d] += 1;
                let domain = self.core.domains.get_mut(dom).unwrap();
                domain.incarnation = Incarnation(domain.incarnation.0 + 1);
                grow(&mut self.core, dom, 1).unwrap();
            }
        }
    }

    fn by_pte(&self, addr: u64) -> bool {
        !(HOLE..HOLE + 0x10_0000).contains(&addr)
    }

    /// Recounts from the list and from every entry of every table, and compares.
    fn check(&self) {
        let mem = self.core.frames.mem();
        let entries: Vec<Pte> = (0..3)
            .flat_map(|d| {
                let l1 = self.pte_at(d, 0).mfn();
                (0..512).map(move |n| Pte::new(mem.read_u64(validate::entry_at(l1, n))))
            })
            .filter(|entry| entry.is_present())
            .collect();
        for &(d, frame) in &self.frames {
            let maps = entries.iter().filter(|entry| entry.mfn() == frame);
            let uses = self.known.iter().filter(|known| known.frame == frame);
            let refs = 1 + maps.clone().count() + uses.clone().count();
            let types = maps.filter(|entry| entry.is_writable()).count()
                + uses.filter(|known| known.writable).count();
            let (has, has_types, _) = self.core.frames.counts(frame);
            assert_eq!((has as usize, has_types as usize), (refs, types), "domain {d} {frame}");
        }
        for d in 0..3 {
            for gref in 2..6u32 {
                let live =
                    |known: &&Known| (known.of, known.gref, known.life) == (d, gref, self.lives[d]);
                let users: Vec<&Known> = self.known.iter().filter(live).collect();
                let expected = match (users.is_empty(), users.iter().any(|known| known.writable)) {
                    (true, _) => 0,
                    (false, false) => GTF_READING,
                    (false, true) => GTF_READING | GTF_WRITING,
                };
                let marks = Entry(mem.read_u64(self.entry_at(d, gref))).marks();
                assert_eq!(marks, expected, "domain {d} gref {gref}");
            }
            let mine = self.known.iter().filter(|known| known.by == d).count();
            let domain = self.core.domains.get(self.callers[d].dom).unwrap();
            assert_eq!(domain.grants.mapped() as usize, mine);
        }
    }
}

/// The oracle's own reading of an entry.
#[derive(Clone, Copy, Debug)]
struct Entry(u64);

impl Entry {
    fn marks(self) -> u16 {
        self.0 as u16 & (GTF_READING | GTF_WRITING)
    }

    fn lets(self, dom: DomId, write: bool) -> bool {
        let bytes = self.0.to_le_bytes();
        let flags = u16::from_le_bytes([bytes[0], bytes[1]]);
        let domid = u16::from_le_bytes([bytes[2], bytes[3]]);
        flags & 3 == 1 && domid == dom.get() && !(write && flags & 4 != 0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn references_and_marks_are_what_a_recount_says(acts in acts()) {
        let mut world = World::new();
        world.check();
        for act in &acts {
            world.act(act);
            world.check();
        }
        for d in 0..3 {
            world.act(&Act::Release(d));
        }
        world.check();
    }
}
