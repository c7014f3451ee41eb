//! `xen_version`: what the core is and can. Sub-call 0 is also the guest's cheap way to say
//! "deliver my events now": the exit path of every hypercall does that.

use super::Outcome;
use crate::{Core, state::Caller};
use bulkhead_abi::{
    Errno, GuestVa, PAGE_SIZE,
    mmu::HOLE_START,
    version::{self as nr, FeatureInfo, VERSION},
};

const EXTRAVERSION: &[u8] = b"-bulkhead";
const CAPABILITIES: &[u8] = b"xen-3.0-x86_64 ";
const COMPILER: &[u8] = b"rustc";
const BUILDER: &[u8] = b"bulkhead";

/// `xen_version(cmd, arg)`.
///
/// Errors: `EFAULT` bad address; `EINVAL` a feature map that does not exist; `ENOSYS` unknown `cmd`.
pub fn xen_version(core: &mut Core, caller: Caller, args: [u64; 6]) -> Outcome {
    let [cmd, arg, ..] = args;
    let at = GuestVa::new(arg);
    match cmd {
        nr::XENVER_VERSION => Outcome::Done(VERSION as i64),
        nr::XENVER_PAGESIZE => Outcome::Done(PAGE_SIZE as i64),
        nr::XENVER_EXTRAVERSION => text::<16>(core, caller, at, EXTRAVERSION),
        nr::XENVER_CAPABILITIES => text::<1024>(core, caller, at, CAPABILITIES),
        nr::XENVER_CHANGESET => text::<64>(core, caller, at, b""),
        nr::XENVER_COMMANDLINE => text::<1024>(core, caller, at, b""),
        nr::XENVER_COMPILE_INFO => text::<144>(core, caller, at, &compile_info()),
        nr::XENVER_GUEST_HANDLE => {
            let handle = core.domains.get(caller.dom).map(|d| d.handle).unwrap_or_default();
            write(core, caller, at, &handle)
        }
        nr::XENVER_PLATFORM_PARAMETERS => write(core, caller, at, &HOLE_START.to_le_bytes()),
        nr::XENVER_GET_FEATURES => features(core, caller, at).into(),
        _ => Errno::ENOSYS.into(),
    }
}

/// compiler[64], compile_by[16], compile_domain[32], compile_date[32]: without a date, so
/// that a build can be repeated.
fn compile_info() -> [u8; 144] {
    let mut info = [0; 144];
    info[..COMPILER.len()].copy_from_slice(COMPILER);
    info[64..64 + BUILDER.len()].copy_from_slice(BUILDER);
    info
}

fn write(core: &Core, caller: Caller, at: GuestVa, bytes: &[u8]) -> Outcome {
    core.guest(caller).write_bytes(at, bytes).map_err(Errno::from).into()
}

/// Answers with a NUL-padded field of `N` bytes.
fn text<const N: usize>(core: &Core, caller: Caller, at: GuestVa, text: &[u8]) -> Outcome {
    let mut field = [0; N];
    field[..text.len()].copy_from_slice(text);
    write(core, caller, at, &field)
}

fn features(core: &Core, caller: Caller, at: GuestVa) -> Result<(), Errno> {
    let mut info: FeatureInfo = core.guest(caller).read(at)?;
    if info.submap_idx != 0 {
        return Err(Errno::EINVAL);
    }
    info.submap = 1 << nr::XENFEAT_MMU_PT_UPDATE_PRESERVE_AD
        | 1 << nr::XENFEAT_HIGHMEM_ASSIST
        | 1 << nr::XENFEAT_GNTTAB_MAP_AVAIL_BITS;
    if core.domains.get(caller.dom).is_some_and(|d| d.is_privileged()) {
        info.submap |= 1 << nr::XENFEAT_DOM0;
    }
    Ok(core.guest(caller).write(at, &info)?)
}
