//! What is refused, case by case, and that nothing has changed then.

use crate::MAX_VCPUS;
use crate::calls::{
    control_in_the_hole, control_on, create, destroy, free_frames, info, populate, set_context_at,
    set_max_pages,
};
use crate::program::Program;
use crate::small::{DATA_PAGE, L4, Small};
use crate::tap::{check, equal, refused};
use domain_rt::abi::control::{self as op, CREATE_DRIVER, CreateDomain, DeviceRef};
use domain_rt::abi::mmu::{HOLE_END, HOLE_START};
use domain_rt::abi::vcpu::VcpuGuestContext;
use domain_rt::abi::{DomId, Errno, Mfn, VcpuId};
use domain_rt::hypercall::pin_foreign;
use domain_rt::mem::{self, map_foreign};
use domain_rt::{control, event};

/// Domids there are, Dom0's among them.
const DOMAINS: u16 = 256;
/// A PCI function of every q35 machine: the SATA controller, 00:1f.2; and the host bridge.
const SATA: u32 = 0xfa;
const BRIDGE: u32 = 0;

pub fn run() {
    creation();
    addresses();
    nobody();
    dom0();
    contexts();
    devices();
}

fn creation() {
    let free = free_frames();
    let taken = create(7, 1, 0).expect("a domain");
    let held = free_frames();
    refused("a domid in use is not given", create(7, 1, 0), Errno::EEXIST);
    refused("a domain without vCPUs is none", create(0, 0, 0), Errno::EINVAL);
    refused("a domain with too many vCPUs is none", create(0, MAX_VCPUS + 1, 0), Errno::EINVAL);
    refused("a domain with all vCPUs there are is none", create(0, u32::MAX, 0), Errno::EINVAL);
    refused(
        "a flag that is not known is not taken",
        create(0, 1, 2 | CREATE_DRIVER),
        Errno::EINVAL,
    );
    refused("a domid past the table is none", create(DOMAINS, 1, 0), Errno::EINVAL);
    refused("a reserved domid is none", create(DomId::FIRST_RESERVED, 1, 0), Errno::EINVAL);
    refused("the greatest domid is none", create(u16::MAX, 1, 0), Errno::EINVAL);
    equal("what was refused took nothing", free_frames(), held);
    destroy(taken).expect("there");
    let last = create(DOMAINS - 1, 1, 0);
    equal("the last domid is one", last, Ok(DomId::new(DOMAINS - 1)));
    destroy(DomId::new(DOMAINS - 1)).expect("there");
    equal("nothing is left of all this", free_frames(), free);
}

fn addresses() {
    for cmd in op::CREATE_DOMAIN..=op::RESET_KEEPING {
        let name = alloc::format!("command {cmd} reads nothing in the hole");
        refused(&name, control_in_the_hole(cmd), Errno::EFAULT);
    }
    refused("command 0 is none", control_in_the_hole(0), Errno::ENOSYS);
    refused(
        "a command that is not there is none",
        control_in_the_hole(op::RESET_KEEPING + 1),
        Errno::ENOSYS,
    );
    refused(
        "a command is not cut to 32 bits",
        control_in_the_hole(1 << 32 | op::MACHINE_INFO),
        Errno::ENOSYS,
    );
    // A structure that can be read, and can not be written.
    let holder = create(0, 1, 0).expect("a domain");
    let frames = populate(holder, 0, 0, 1);
    let page = map_foreign(holder, &frames, true).expect("its page");
    let asked = CreateDomain { domid: 99, max_vcpus: 1, max_pages: 1, ..Default::default() };
    page.shared().copy_in(0, zerocopy::IntoBytes::as_bytes(&asked));
    drop(page);
    let page = map_foreign(holder, &frames, false).expect("its page");
    refused(
        "an answer is not written where Dom0 may not write",
        control_on(op::CREATE_DOMAIN, page.shared()),
        Errno::EFAULT,
    );
    check("and no domain was made", info(DomId::new(99)).is_err());
    drop(page);
    destroy(holder).expect("there");
}

/// Each call about a domain that is not there.
fn nobody() {
    for domid in [DomId::new(33), DomId::new(DOMAINS), DomId::SELF, DomId::new(u16::MAX)] {
        let name = |what: &str| alloc::format!("{domid} is not there to be {what}");
        refused(&name("destroyed"), control::destroy_domain(domid), Errno::ESRCH);
        refused(&name("paused"), control::pause_domain(domid), Errno::ESRCH);
        refused(&name("unpaused"), control::unpause_domain(domid), Errno::ESRCH);
        refused(&name("reset"), control::reset_domain(domid), Errno::ESRCH);
        refused(&name("reset as it is"), control::reset_keeping(domid), Errno::ESRCH);
        refused(&name("limited"), set_max_pages(domid, 1), Errno::ESRCH);
        refused(&name("described"), info(domid).map(|_| ()), Errno::ESRCH);
        let mut grant = op::SetGrant { domid: domid.get(), ..Default::default() };
        refused(&name("granted for"), control::set_grant(&mut grant), Errno::ESRCH);
        let mut device = DeviceRef { domid: domid.get(), sbdf: SATA, ..Default::default() };
        refused(&name("given a device"), control::assign_device(&mut device), Errno::ESRCH);
        refused(&name("robbed of a device"), control::deassign_device(&mut device), Errno::ESRCH);
        refused(&name("given a context"), set_context_at(domid, 0, HOLE_START), Errno::ESRCH);
    }
    let nobody = DomId::new(33);
    refused("nobody has ports", event::alloc_unbound_for(nobody, DomId::DOM0), Errno::ESRCH);
    refused("nobody has tables", pin_foreign(nobody, 4, Mfn::new(1)), Errno::ESRCH);
}

/// Dom0 does not saw off the branch it sits on.
fn dom0() {
    let name = |what: &str| alloc::format!("Dom0 does not {what} itself");
    refused(&name("destroy"), control::destroy_domain(DomId::DOM0), Errno::EPERM);
    refused(&name("reset"), control::reset_domain(DomId::DOM0), Errno::EPERM);
    refused(&name("reset as it is"), control::reset_keeping(DomId::DOM0), Errno::EPERM);
    refused(&name("pause"), control::pause_domain(DomId::DOM0), Errno::EPERM);
    refused(&name("unpause"), control::unpause_domain(DomId::DOM0), Errno::EPERM);
    let context = alloc::boxed::Box::new(<VcpuGuestContext as zerocopy::FromZeros>::new_zeroed());
    let boot = VcpuId::new(0);
    let again = control::set_vcpu_context(DomId::DOM0, boot, &context);
    refused(&name("overwrite"), again, Errno::EEXIST);
    let mut device = DeviceRef { domid: 0, sbdf: SATA, ..Default::default() };
    refused(&name("give a device to"), control::assign_device(&mut device), Errno::EPERM);
}

fn contexts() {
    let before = free_frames();
    let small = Small::create(&Program::default()).expect("a small domain");
    let domid = small.domid;
    refused(
        "a context in the hole is not read",
        set_context_at(domid, 0, HOLE_START + 3),
        Errno::EFAULT,
    );
    refused(
        "a context that reaches into the hole neither",
        set_context_at(domid, 0, HOLE_START - 8),
        Errno::EFAULT,
    );
    refused(
        "a context past the end of memory neither",
        set_context_at(domid, 0, u64::MAX - 7),
        Errno::EFAULT,
    );
    let other = control::set_vcpu_context(domid, VcpuId::new(1), &small.context());
    refused("a vCPU that is not there gets no context", other, Errno::ENOENT);
    let refuse = |what, change: &dyn Fn(&mut VcpuGuestContext)| {
        let mut context = small.context();
        change(&mut context);
        refused(what, small.set_context(&context), Errno::EINVAL);
    };
    refuse("a context without a root is none", &|c| c.ctrlreg[3] = 0);
    refuse("a root past all memory is none", &|c| c.ctrlreg[3] = 1 << 51);
    refuse("a root that is no address is none", &|c| c.ctrlreg[3] |= 1 << 63);
    let ours = mem::alloc_pages(1).expect("a page");
    refuse("a frame of Dom0's is no root", &|c| c.ctrlreg[3] = ours.maddr(0).get());
    refuse("a user root of Dom0's is none", &|c| c.ctrlreg[1] = ours.maddr(0).get());
    refuse("code in the hole is none", &|c| c.user_regs.rip = HOLE_END - 1);
    refuse("code at no address is none", &|c| c.user_regs.rip = 1 << 47);
    refuse("a stack in the hole is none", &|c| c.kernel_sp = HOLE_START);
    refuse("a handler in the hole is none", &|c| c.trap_ctxt[14].address = HOLE_START);
    refuse("a callback in the hole is none", &|c| c.event_callback_eip = HOLE_START);
    refuse("a base that is no address is none", &|c| c.fs_base = 1 << 47);
    refuse("a descriptor table past its end is none", &|c| c.gdt_ents = 8192);
    refuse("a descriptor table of Dom0's frames is none", &|c| {
        (c.gdt_ents, c.gdt_frames[0]) = (8, ours.mfn(0).get());
    });
    let held = small.map(L4).expect("no table yet");
    refuse("a root that is mapped writable, so not pinned, is none", &|_| ());
    drop(held);
    small.write(L4, 5, ours.maddr(0).get() | 7).expect("no table yet");
    refuse("a root that is no sound table, so not pinned, is none", &|_| ());
    small.write(L4, 5, 0).expect("still no table");
    let pin = pin_foreign(domid, 1, small.frames[DATA_PAGE]);
    equal("an empty page is an empty table", pin, Ok(()));
    refuse("a table of another level is no root", &|c| {
        c.ctrlreg[3] = small.frames[DATA_PAGE].maddr().get();
    });
    crate::calls::unpin(domid, small.frames[DATA_PAGE]).expect("pinned");
    equal("what was refused brought nothing online", info(domid).map(|i| i.online_vcpus), Ok(0));
    equal("a sound context is taken", small.prepare(), Ok(()));
    refused("and only once", small.set_context(&small.context()), Errno::EEXIST);
    small.destroy();
    let bare = Small::create(&Program::default()).expect("a small domain");
    equal("a root that is sound needs no pin", bare.set_context(&bare.context()), Ok(()));
    bare.destroy();
    equal("refusals hold no frames", free_frames(), before);
}

fn devices() {
    let plain = create(0, 1, 0).expect("a domain");
    let driver = create(0, 1, CREATE_DRIVER).expect("a driver domain");
    let assign = |domid: DomId, sbdf| {
        control::assign_device(&mut DeviceRef { domid: domid.get(), sbdf, ..Default::default() })
    };
    let deassign = |domid: DomId, sbdf| {
        control::deassign_device(&mut DeviceRef { domid: domid.get(), sbdf, ..Default::default() })
    };
    refused("a domain that is not for drivers gets no device", assign(plain, SATA), Errno::EPERM);
    refused("a bridge is nobody's", assign(driver, BRIDGE), Errno::EPERM);
    refused("a device that is not there is nobody's", assign(driver, 0xffff), Errno::ENODEV);
    refused("a number that is no device's neither", assign(driver, u32::MAX), Errno::ENODEV);
    refused("a device that is not given is not taken", deassign(driver, SATA), Errno::ENODEV);
    equal("a driver domain gets a device", assign(driver, SATA), Ok(()));
    refused("a device has one owner", assign(driver, SATA), Errno::EBUSY);
    refused("a device is taken from its owner only", deassign(plain, SATA), Errno::ENODEV);
    equal("a reset driver domain keeps its device", control::reset_domain(driver), Ok(()));
    refused("so it is not free", assign(driver, SATA), Errno::EBUSY);
    equal("a device is taken back", deassign(driver, SATA), Ok(()));
    equal("a device is given again", assign(driver, SATA), Ok(()));
    destroy(driver).expect("there");
    let next = create(0, 1, CREATE_DRIVER).expect("a driver domain");
    equal("a dead domain has no device", assign(next, SATA), Ok(()));
    destroy(next).expect("there");
    destroy(plain).expect("there");
}
