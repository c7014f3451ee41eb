//! `xen_version`: what the core is and can. Sub-call 0 is also the guest's cheap way to say
//! "deliver my events now": the exit path of every hypercall does that.

use super::Outcome;
use crate::{Core, state::Caller};
use bulkhead_abi::{
    Errno, GuestVa, PAGE_SIZE,
    mmu::HOLE_START,
    version::{
        FeatureInfo, VERSION, XENFEAT_DOM0, XENFEAT_GNTTAB_MAP_AVAIL_BITS, XENFEAT_HIGHMEM_ASSIST,
        XENFEAT_MMU_PT_UPDATE_PRESERVE_AD, XENVER_CAPABILITIES, XENVER_CHANGESET,
        XENVER_COMMANDLINE, XENVER_COMPILE_INFO, XENVER_EXTRAVERSION, XENVER_GET_FEATURES,
        XENVER_GUEST_HANDLE, XENVER_PAGESIZE, XENVER_PLATFORM_PARAMETERS, XENVER_VERSION,
    },
};

const EXTRAVERSION: &[u8] = b"-bulkhead";
const CAPABILITIES: &[u8] = b"xen-3.0-x86_64 ";
const COMPILER: &[u8] = b"rustc";

/// `xen_version(cmd, arg)`.
///
/// Errors: `EFAULT` bad address; `EINVAL` a feature map that does not exist; `ENOSYS` unknown `cmd`.
pub fn xen_version(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [cmd, arg, ..] = args;
    let at = GuestVa::new(arg);
    match cmd {
        XENVER_VERSION => Outcome::Done(VERSION as i64),
        XENVER_PAGESIZE => Outcome::Done(PAGE_SIZE as i64),
        XENVER_EXTRAVERSION => text::<16>(core, caller, at, EXTRAVERSION),
        XENVER_CAPABILITIES => text::<1024>(core, caller, at, CAPABILITIES),
        XENVER_CHANGESET => text::<64>(core, caller, at, b""),
        XENVER_COMMANDLINE => text::<1024>(core, caller, at, b""),
        // compiler[64], compile_by[16], compile_domain[32], compile_date[32]
        XENVER_COMPILE_INFO => text::<144>(core, caller, at, COMPILER),
        XENVER_GUEST_HANDLE => text::<16>(core, caller, at, b""),
        XENVER_PLATFORM_PARAMETERS => write(core, caller, at, &HOLE_START.to_le_bytes()),
        XENVER_GET_FEATURES => features(core, caller, at).into(),
        _ => Errno::ENOSYS.into(),
    }
}

fn write(core: &Core, caller: Caller, at: GuestVa, bytes: &[u8]) -> Outcome {
    core.guest(caller).write_bytes(at, bytes).map_err(Errno::from).into()
}

/// Answers with a NUL-padded field of `N` bytes.
fn text<const N: usize>(core: &Core, caller: Caller, at: GuestVa, text: &[u8]) -> Outcome {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(text) {
        *to = *from;
    }
    write(core, caller, at, &field)
}

fn features(core: &Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let mut info: FeatureInfo = core.guest(caller).read(at)?;
    if info.submap_idx != 0 {
        return Err(Errno::EINVAL);
    }
    info.submap = 1 << XENFEAT_MMU_PT_UPDATE_PRESERVE_AD
        | 1 << XENFEAT_HIGHMEM_ASSIST
        | 1 << XENFEAT_GNTTAB_MAP_AVAIL_BITS;
    if core.domains.get(caller.dom).is_some_and(|d| d.is_privileged()) {
        info.submap |= 1 << XENFEAT_DOM0;
    }
    Ok(core.guest(caller).write(at, &info)?)
}
