//! Reservations: how much memory a domain has and may have, and giving it more.
#![deny(unsafe_code)]

use super::frame::{self, FrameError, FrameTable};
use crate::{domain::Life, state::Core};
use bulkhead_abi::{DomId, Errno, Mfn, memory::MAX_ORDER, mmu::M2P_INVALID};

/// How much memory a domain may have. How much it has is
/// [`FrameTable::tot_pages`], which alone knows when a frame is really gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reservation {
    /// Most frames it may own.
    pub max_pages: u64,
    /// Frames of the core that hold its event channels.
    pub overhead_pages: u64,
}

/// Gives a domain `2^order` contiguous zeroed frames; their pfns follow `first_pfn`
/// (all [`M2P_INVALID`] for `None`).
///
/// Errors: `ESRCH` no such domain, or it is going; `EINVAL` more than [`MAX_ORDER`]; `ENOMEM` it
/// would own more than it may, or the machine has no such block left.
pub fn populate(
    core: &mut Core,
    dom: DomId,
    order: u32,
    first_pfn: Option<u64>,
) -> Result<Mfn, Errno> {
    let domain = core.domains.get(dom).filter(|domain| domain.life != Life::Dying);
    let max_pages = domain.ok_or(Errno::ESRCH)?.memory.max_pages;
    allocate(&mut core.frames, dom, order, max_pages, first_pfn)
}

/// [`populate`] under a limit that the caller knows.
pub fn allocate(
    frames: &mut FrameTable,
    dom: DomId,
    order: u32,
    max_pages: u64,
    first_pfn: Option<u64>,
) -> Result<Mfn, Errno> {
    if order > MAX_ORDER {
        return Err(Errno::EINVAL);
    }
    if frames.tot_pages(dom) + (1 << order) > max_pages {
        return Err(Errno::ENOMEM);
    }
    let mfn = frames.alloc_domain(dom, order).ok_or(Errno::ENOMEM)?;
    set_pfns(frames, mfn, order, first_pfn);
    Ok(mfn)
}

/// Sets the pfns of `2^order` frames from `first_pfn` on.
pub fn set_pfns(frames: &mut FrameTable, mfn: Mfn, order: u32, first_pfn: Option<u64>) {
    for i in 0..1 << order {
        let pfn = first_pfn.and_then(|first| first.checked_add(i)).unwrap_or(M2P_INVALID);
        frames.set_m2p(Mfn::new(mfn.get() + i), pfn);
    }
}

/// A domain gives `2^order` frames back. All or nothing: on error none is gone.
pub fn decrease(frames: &mut FrameTable, dom: DomId, mfn: Mfn, order: u32) -> frame::Result {
    let end = mfn.checked_add(1 << order.min(MAX_ORDER));
    let end = end.filter(|_| order <= MAX_ORDER).ok_or(FrameError::NoFrame { mfn })?;
    let mut block = (mfn.get()..end.get()).map(Mfn::new);
    block.clone().try_for_each(|mfn| frames.check_let_go(mfn, dom))?;
    block.try_for_each(|mfn| frames.let_go(mfn, dom))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::frame::fake;

    const DOM: DomId = DomId::new(3);

    #[test]
    fn a_domain_gets_up_to_its_limit_and_not_a_frame_more() {
        let mut frames = fake::table(64);
        assert!(allocate(&mut frames, DOM, 2, 5, None).is_ok());
        assert_eq!(allocate(&mut frames, DOM, 1, 5, None), Err(Errno::ENOMEM));
        assert!(allocate(&mut frames, DOM, 0, 5, None).is_ok());
        assert_eq!(allocate(&mut frames, DOM, 0, 5, None), Err(Errno::ENOMEM));
    }

    #[test]
    fn a_dying_domain_gets_nothing() {
        let mut core = crate::fixture::core();
        let dom = crate::fixture::domain(&mut core, 3, 1).dom;
        assert!(populate(&mut core, dom, 0, None).is_ok());
        core.domains.get_mut(dom).unwrap().life = Life::Dying;
        assert_eq!(populate(&mut core, dom, 0, None), Err(Errno::ESRCH));
    }

    #[test]
    fn a_frame_given_away_but_still_mapped_counts_against_the_limit() {
        let mut frames = fake::table(64);
        let mfn = allocate(&mut frames, DOM, 0, 1, Some(7)).unwrap();
        frames.get_page(mfn, DOM).unwrap();
        decrease(&mut frames, DOM, mfn, 0).unwrap();
        assert_eq!(frames.m2p(mfn), M2P_INVALID);
        assert_eq!(allocate(&mut frames, DOM, 0, 1, None), Err(Errno::ENOMEM));
        frames.put_page(mfn);
        assert!(allocate(&mut frames, DOM, 0, 1, None).is_ok());
    }

    #[test]
    fn pfns_follow_each_other_and_do_not_wrap() {
        let mut frames = fake::table(64);
        let mfn = allocate(&mut frames, DOM, 1, 9, Some(u64::MAX - 1)).unwrap();
        assert_eq!(frames.m2p(mfn), u64::MAX - 1);
        let mfn = allocate(&mut frames, DOM, 1, 9, Some(40)).unwrap();
        assert_eq!(frames.m2p(mfn.checked_add(1).unwrap()), 41);
    }

    #[test]
    fn giving_back_a_block_is_all_or_nothing() {
        let mut frames = fake::table(64);
        let mfn = allocate(&mut frames, DOM, 1, 9, None).unwrap();
        let second = mfn.checked_add(1).unwrap();
        decrease(&mut frames, DOM, second, 0).unwrap();
        assert!(decrease(&mut frames, DOM, mfn, 1).is_err());
        assert!(frames.is_allocated(mfn));
        assert!(decrease(&mut frames, DOM, Mfn::new(u64::MAX), 1).is_err());
        assert!(decrease(&mut frames, DOM, mfn, 64).is_err());
        assert!(decrease(&mut frames, DomId::new(4), mfn, 0).is_err());
    }
}
