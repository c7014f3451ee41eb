//! The guest's own segment descriptors: which may exist, who holds the frames they are
//! in. A frame of descriptors has type `SegDesc`, so nobody can write it while the
//! processor may load from it.

use super::{context::is_guest_address, mapped_frame};
use crate::{
    Core, arch,
    memory::{
        frame::{FrameError, FrameType},
        phys::PhysMem,
    },
    state::Caller,
};
use bulkhead_abi::{
    DomId, Errno, GuestVa, Maddr, Mfn, PAGE_SIZE,
    trap::{FIRST_RESERVED_GDT_ENTRY, FIRST_RESERVED_GDT_PAGE},
};

/// Pages of the GDT that are the guest's.
pub const GDT_PAGES: usize = FIRST_RESERVED_GDT_PAGE;
/// Pages of the largest LDT: 8192 descriptors.
pub const LDT_PAGES: usize = 16;
/// Descriptors in a page.
const PER_PAGE: u64 = (PAGE_SIZE / 8) as u64;

const PRESENT: u64 = 1 << 47;
/// Code or data, no system descriptor.
const CODE_OR_DATA: u64 = 1 << 44;
const TYPE: u64 = 0xf << 40;
const DPL3: u64 = 3 << 45;

/// What a descriptor becomes in a guest's table; `None` where it may not exist.
///
/// Holds: a present code or data segment has DPL 3; the only system descriptors are absent
/// ones and type 0, which no load accepts. Gates are refused: one could name the core's code.
/// Source: ABI notes 3.1; Intel SDM 3A, 3.4.5 and 3.5.
pub const fn acceptable(descriptor: u64) -> Option<u64> {
    match descriptor {
        _ if descriptor & PRESENT == 0 => Some(descriptor),
        _ if descriptor & CODE_OR_DATA != 0 => Some(descriptor | DPL3),
        _ if descriptor & TYPE == 0 => Some(descriptor),
        _ => None,
    }
}

/// The LDT of a vCPU: where the guest said it is, and the frames that have been used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ldt {
    pub base: u64,
    pub entries: u32,
    /// Each holds a general and a `SegDesc` type reference.
    pub frames: [Option<Mfn>; LDT_PAGES],
}

impl Ldt {
    /// An LDT of which no frame is held yet; see [`Self::is_acceptable`].
    pub fn new(base: u64, entries: u32) -> Self {
        Self { base, entries, frames: [None; LDT_PAGES] }
    }

    /// Whether a guest may have its LDT there.
    pub fn is_acceptable(base: u64, entries: u64) -> bool {
        let Some(last) = base.checked_add(entries.saturating_mul(8)) else {
            return false;
        };
        entries <= 8192
            && (entries == 0
                || base.is_multiple_of(PAGE_SIZE as u64)
                    && is_guest_address(base)
                    && is_guest_address(last - 1))
    }
}

fn refused(error: FrameError) -> Errno {
    match error {
        FrameError::TooManyReferences { .. } | FrameError::Busy { .. } => Errno::EBUSY,
        _ => Errno::EINVAL,
    }
}

/// Checks every descriptor of a frame and puts the accepted form in its place; false, and nothing
/// changed, if one may not exist. Nobody can write the frame meanwhile.
pub fn validate_frame(mem: PhysMem, mfn: Mfn) -> bool {
    let all = || (0..PER_PAGE).map(|n| Maddr::new(mfn.maddr().get() + 8 * n));
    let is_fine = all().all(|at| acceptable(mem.read_u64(at)).is_some());
    for at in all().filter(|_| is_fine) {
        let old = mem.read_u64(at);
        if let Some(new) = acceptable(old).filter(|new| *new != old) {
            mem.write_u64(at, new);
        }
    }
    is_fine
}

/// Takes a general and a type reference on each frame of a GDT of `entries` descriptors.
///
/// Errors: `EINVAL` more entries than are a guest's, or a frame that is not the domain's,
/// is writable somewhere, or holds a descriptor that may not exist. On error nothing is held.
pub fn get_gdt(
    core: &mut Core,
    dom: DomId,
    frames: &[u64],
    entries: u64,
) -> Result<[Option<Mfn>; GDT_PAGES], Errno> {
    if entries > u64::from(FIRST_RESERVED_GDT_ENTRY) {
        return Err(Errno::EINVAL);
    }
    let mut held = [None; GDT_PAGES];
    let pages = entries.div_ceil(PER_PAGE) as usize;
    for (slot, raw) in held.iter_mut().zip(frames.get(..pages).ok_or(Errno::EINVAL)?) {
        let mfn = Mfn::new(*raw);
        if let Err(error) = core.frames.get_descriptors(mfn, dom, validate_frame) {
            put(core, &held);
            return Err(refused(error));
        }
        *slot = Some(mfn);
    }
    Ok(held)
}

/// Drops what [`get_gdt`] took, or what an LDT has come to hold.
pub fn put(core: &mut Core, frames: &[Option<Mfn>]) {
    for mfn in frames.iter().flatten() {
        core.frames.put_descriptors(*mfn);
    }
}

/// `MMUEXT_SET_LDT`: the caller's LDT is at `base` from now on. Its pages are looked at when
/// the processor first asks for them ([`load_ldt_page`]).
///
/// Errors: `EINVAL` too many entries, or a base that is not page-aligned or not a guest's.
pub fn set_ldt(core: &mut Core, caller: Caller, base: GuestVa, entries: u64) -> Result<(), Errno> {
    if !Ldt::is_acceptable(base.get(), entries) {
        return Err(Errno::EINVAL);
    }
    let vcpu = core.vcpu_mut(caller).ok_or(Errno::ESRCH)?;
    let old = core::mem::replace(&mut vcpu.guest.ldt, Ldt::new(base.get(), entries as u32));
    core.cpu(caller.cpu).reload_tables = true;
    put(core, &old.frames);
    Ok(())
}

/// Makes a page of the caller's LDT loadable, if the fault at `address` was for one: its frame
/// becomes a frame of descriptors. `None` when the guest maps nothing acceptable there.
pub fn load_ldt_page(core: &mut Core, caller: Caller, address: u64) -> Option<()> {
    let page = arch::ldt_window_page(address)?;
    let vcpu = core.vcpu(caller)?;
    let (ldt, root) = (&vcpu.guest.ldt, vcpu.roots.kernel?);
    let is_within = (page as u64) < u64::from(ldt.entries).div_ceil(PER_PAGE);
    if !is_within || ldt.frames.get(page)?.is_some() {
        return None;
    }
    let va = GuestVa::new(ldt.base.wrapping_add((page * PAGE_SIZE) as u64));
    let mfn = mapped_frame(core, root, va)?;
    core.frames.get_descriptors(mfn, caller.dom, validate_frame).ok()?;
    core.vcpu_mut(caller)?.guest.ldt.frames[page] = Some(mfn);
    core.cpu(caller.cpu).reload_tables = true;
    Some(())
}

/// `update_descriptor`: stores one descriptor at a machine address.
///
/// Errors: `EINVAL` unaligned, a frame that is not the caller's, one used as a page table,
/// or a descriptor that may not exist where it would be loaded.
pub fn update(core: &mut Core, caller: Caller, at: Maddr, descriptor: u64) -> Result<(), Errno> {
    if !at.get().is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let mfn = at.mfn();
    if core.frames.frame_type(mfn) == FrameType::SegDesc {
        let new = acceptable(descriptor).ok_or(Errno::EINVAL)?;
        core.frames.get_descriptors(mfn, caller.dom, validate_frame).map_err(refused)?;
        core.frames.mem().write_u64(at, new);
        core.frames.put_descriptors(mfn);
    } else {
        core.frames.get_writable(mfn, caller.dom).map_err(refused)?;
        core.frames.mem().write_u64(at, descriptor);
        core.frames.put_writable(mfn);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    const CODE64_DPL0: u64 = 0x00af_9b00_0000_ffff;
    const TSS: u64 = 0x0000_8900_0000_0067;
    const CALL_GATE: u64 = 0x0000_ec00_0008_0000;

    #[test]
    fn code_and_data_get_privilege_level_three() {
        assert_eq!(acceptable(CODE64_DPL0), Some(0x00af_fb00_0000_ffff));
    }

    #[test]
    fn refuses_task_states_and_gates() {
        assert_eq!(acceptable(TSS), None);
        assert_eq!(acceptable(CALL_GATE), None);
        assert_eq!(acceptable(0), Some(0));
    }

    proptest! {
        #[test]
        fn an_accepted_descriptor_is_absent_or_harmless_by_the_manual(raw in any::<u64>()) {
            if let Some(new) = acceptable(raw) {
                let (present, s, kind, dpl) = (new >> 47 & 1, new >> 44 & 1, new >> 40 & 15, new >> 45 & 3);
                prop_assert!(present == 0 || (s == 1 && dpl == 3) || (s == 0 && kind == 0));
                prop_assert_eq!(acceptable(new), Some(new));
                prop_assert_eq!(new & !(3 << 45), raw & !(3 << 45));
            }
        }
    }

    #[test]
    fn an_ldt_must_be_aligned_small_and_outside_the_hole() {
        assert!(Ldt::is_acceptable(0x1234, 0));
        assert!(Ldt::is_acceptable(0x7000, 8192));
        assert!(!Ldt::is_acceptable(0x7000, 8193));
        assert!(!Ldt::is_acceptable(0x7008, 1));
        assert!(!Ldt::is_acceptable(0xffff_8000_0000_0000, 1));
        assert!(!Ldt::is_acceptable(0xffff_7fff_ffff_f000, 1));
        assert!(!Ldt::is_acceptable(u64::MAX - 0xfff, 8192));
    }
}
