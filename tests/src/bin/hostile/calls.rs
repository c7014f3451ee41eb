//! Attempts by the other hypercalls: memory that is not its own given away, grants
//! and channels of others, privileged calls, pointers into the core.

use super::{Attempt, Env, Verdict, env::call, expect_errno};
use bulkhead_abi::{DomId, PAGE_SIZE};
use bulkhead_abi::{
    control, device, event, grant, hypercall as nr, memory, mmu, sched, trap, vcpu,
};
use zerocopy::{FromBytes, IntoBytes};

/// A pointer into the core's part of the address space.
const INTO_CORE: u64 = 0xffff_8300_0010_0000;
/// A pointer to nothing.
const UNMAPPED: u64 = 0x0000_1234_5678_9000;
/// A pointer that no processor accepts.
const NON_CANONICAL: u64 = 0x8000_0000_0000_0000;

/// Issues `number` with `cmd` and the address of `arg`.
fn with<T: FromBytes + IntoBytes>(number: u64, cmd: u64, mut arg: T) -> (i64, T) {
    let rax = call(number, [cmd, (&raw mut arg) as u64, 1, 0, 0]);
    (rax, arg)
}

fn refused<T: FromBytes + IntoBytes>(number: u64, cmd: u64, arg: T) -> Verdict {
    expect_errno(with(number, cmd, arg).0)
}

/// Issues the call with each bad pointer as argument `position`; all must be refused.
fn bad_pointers(number: u64, args: [u64; 5], position: usize) -> Verdict {
    let mut verdict = Verdict::Skipped("no pointer");
    for pointer in [INTO_CORE, mmu::HOLE_END - 8, UNMAPPED, NON_CANONICAL, u64::MAX - 3] {
        let mut args = args;
        args[position] = pointer;
        verdict = expect_errno(call(number, args));
        if matches!(verdict, Verdict::Broken(_)) {
            break;
        }
    }
    verdict
}

/// The status of a grant operation: negative is refused.
fn status(call: i64, status: i16) -> Verdict {
    match (call, status) {
        (0, 0) => Verdict::Broken(0),
        (0, s) => Verdict::Refused(s.into()),
        (e, _) => expect_errno(e),
    }
}

fn map_grant(env: &Env, dom: u16, gref: u32, flags: u32) -> Verdict {
    let op =
        grant::MapGrantRef { host_addr: env.spare.va(), flags, gref, dom, ..Default::default() };
    let (rax, op) = with(nr::GRANT_TABLE_OP, grant::GNTTABOP_MAP_GRANT_REF, op);
    status(rax, op.status)
}

fn end(gref_or_gmfn: u64, domid: u16, offset: u16) -> grant::CopyPtr {
    grant::CopyPtr { gref_or_gmfn, domid, offset, _pad: 0 }
}

fn copy(source: grant::CopyPtr, dest: grant::CopyPtr, len: u16, flags: u16) -> Verdict {
    let op = grant::GrantCopy { source, dest, len, flags, ..Default::default() };
    let (rax, op) = with(nr::GRANT_TABLE_OP, grant::GNTTABOP_COPY, op);
    status(rax, op.status)
}

const SELF: u16 = DomId::SELF.get();

fn reservation(frames: &mut [u64], domid: u16) -> memory::MemoryReservation {
    memory::MemoryReservation {
        extent_start: frames.as_mut_ptr() as u64,
        nr_extents: frames.len() as u64,
        domid,
        ..Default::default()
    }
}

/// `memory_op` returns how many extents it did: none is a refusal.
fn extents(cmd: u64, mut frames: [u64; 1], domid: u16) -> Verdict {
    match with(nr::MEMORY_OP, cmd, reservation(&mut frames, domid)).0 {
        0 => Verdict::Refused(0),
        rax => expect_errno(rax),
    }
}

pub const ATTEMPTS: &[Attempt] = &[
    ("give away a core frame", |e| {
        extents(memory::XENMEM_DECREASE_RESERVATION, [e.core_frame().get()], SELF)
    }),
    ("give away another domain's frame", |e| match e.foreign {
        Some(mfn) => extents(memory::XENMEM_DECREASE_RESERVATION, [mfn.get()], SELF),
        None => Verdict::Skipped("no frame of another domain in sight"),
    }),
    ("give away a frame past the end", |e| {
        extents(memory::XENMEM_DECREASE_RESERVATION, [e.past_end.get()], SELF)
    }),
    ("take memory for Dom0", |_| extents(memory::XENMEM_POPULATE_PHYSMAP, [0], 0)),
    ("take memory away from Dom0", |_| extents(memory::XENMEM_DECREASE_RESERVATION, [0], 0)),
    ("take more memory than it may have", |_| {
        let mut frames = [0u64; 256];
        let mut verdict = Verdict::Skipped("never tried");
        // Far more than any test guest's limit; what is had is kept.
        for _ in 0..4096 {
            let op = reservation(&mut frames, SELF);
            let (done, _) = with(nr::MEMORY_OP, memory::XENMEM_POPULATE_PHYSMAP, op);
            verdict = if done == 256 { Verdict::Broken(done) } else { Verdict::Refused(done) };
            if matches!(verdict, Verdict::Refused(_)) {
                break;
            }
        }
        verdict
    }),
    ("take an extent of an absurd order", |_| {
        let mut frames = [0u64; 1];
        let op = memory::MemoryReservation { extent_order: 63, ..reservation(&mut frames, SELF) };
        match with(nr::MEMORY_OP, memory::XENMEM_POPULATE_PHYSMAP, op).0 {
            0 => Verdict::Refused(0),
            rax => expect_errno(rax),
        }
    }),
    ("exchange another domain's frame", |e| {
        let (mut input, mut output) = ([e.foreign.unwrap_or(e.core_frame()).get()], [0u64]);
        let op = memory::MemoryExchange {
            input: reservation(&mut input, SELF),
            output: reservation(&mut output, SELF),
            nr_exchanged: 0,
        };
        refused(nr::MEMORY_OP, memory::XENMEM_EXCHANGE, op)
    }),
    ("exchange with counts that overflow", |e| {
        let mut frames = [e.spare.mfn(0).get()];
        let mut input = reservation(&mut frames, SELF);
        (input.nr_extents, input.extent_order) = (u64::MAX / 2, 9);
        let op = memory::MemoryExchange { input, output: input, nr_exchanged: u64::MAX - 1 };
        refused(nr::MEMORY_OP, memory::XENMEM_EXCHANGE, op)
    }),
    ("map a grant of a domain that is not there", |e| {
        map_grant(e, 4000, 8, grant::GNTMAP_HOST_MAP)
    }),
    ("map a grant that Dom0 never made", |e| map_grant(e, 0, 9, grant::GNTMAP_HOST_MAP)),
    ("map a grant past the end of Dom0's table", |e| {
        map_grant(e, 0, u32::MAX, grant::GNTMAP_HOST_MAP)
    }),
    ("map its own console grant, meant for Dom0", |e| {
        map_grant(e, SELF, 0, grant::GNTMAP_HOST_MAP)
    }),
    ("map a grant at a machine address of the core", |e| {
        let op = grant::MapGrantRef {
            host_addr: e.core_frame().maddr().get(),
            flags: grant::GNTMAP_HOST_MAP | grant::GNTMAP_CONTAINS_PTE,
            gref: 8,
            ..Default::default()
        };
        let (rax, op) = with(nr::GRANT_TABLE_OP, grant::GNTTABOP_MAP_GRANT_REF, op);
        status(rax, op.status)
    }),
    ("unmap a handle it never had", |e| {
        let op = grant::UnmapGrantRef {
            host_addr: e.spare.va(),
            handle: 0xffff_0000,
            ..Default::default()
        };
        let (rax, op) = with(nr::GRANT_TABLE_OP, grant::GNTTABOP_UNMAP_GRANT_REF, op);
        status(rax, op.status)
    }),
    ("copy from a frame of Dom0 without a grant", |e| {
        let frame = e.foreign.unwrap_or(e.core_frame()).get();
        copy(end(frame, 0, 0), end(e.spare.mfn(0).get(), SELF, 0), 64, 0)
    }),
    ("copy to a frame of Dom0 without a grant", |e| {
        let frame = e.foreign.unwrap_or(e.core_frame()).get();
        copy(end(e.spare.mfn(0).get(), SELF, 0), end(frame, 0, 0), 64, 0)
    }),
    ("copy from a core frame as if its own", |e| {
        copy(end(e.core_frame().get(), SELF, 0), end(e.spare.mfn(0).get(), SELF, 0), 64, 0)
    }),
    ("copy over its own page table", |e| {
        copy(end(e.spare.mfn(0).get(), SELF, 0), end(e.path[3].get(), SELF, 0), 64, 0)
    }),
    ("copy across the end of a page", |e| {
        let own = e.spare.mfn(0).get();
        copy(end(own, SELF, 4090), end(own, SELF, 0), 64, 0)
    }),
    ("copy from a gref that wraps around", |e| {
        copy(
            end(u64::MAX, 0, 0),
            end(e.spare.mfn(0).get(), SELF, 0),
            64,
            grant::GNTCOPY_SOURCE_GREF,
        )
    }),
    ("set up Dom0's grant table", |e| {
        let op = grant::SetupTable {
            dom: 0,
            nr_frames: 1,
            frame_list: e.spare.va(),
            ..Default::default()
        };
        let (rax, op) = with(nr::GRANT_TABLE_OP, grant::GNTTABOP_SETUP_TABLE, op);
        status(rax, op.status)
    }),
    ("set up a grant table of a million frames", |e| {
        let op = grant::SetupTable {
            dom: SELF,
            nr_frames: 1 << 20,
            frame_list: e.spare.va(),
            ..Default::default()
        };
        let (rax, op) = with(nr::GRANT_TABLE_OP, grant::GNTTABOP_SETUP_TABLE, op);
        status(rax, op.status)
    }),
    ("send on a port it does not have", |_| {
        refused(nr::EVENT_CHANNEL_OP, event::EVTCHNOP_SEND, event::PortOp { port: 4000 })
    }),
    ("send on a port beyond all numbers", |_| {
        refused(nr::EVENT_CHANNEL_OP, event::EVTCHNOP_SEND, event::PortOp { port: u32::MAX })
    }),
    ("close port 0", |_| {
        refused(nr::EVENT_CHANNEL_OP, event::EVTCHNOP_CLOSE, event::PortOp { port: 0 })
    }),
    ("bind every port of Dom0", |_| {
        (0..4096)
            .map(|remote_port| {
                let op =
                    event::BindInterdomain { remote_dom: 0, remote_port, ..Default::default() };
                refused(nr::EVENT_CHANNEL_OP, event::EVTCHNOP_BIND_INTERDOMAIN, op)
            })
            .reduce(|a, b| if matches!(a, Verdict::Broken(_)) { a } else { b })
            .unwrap_or(Verdict::Skipped("no ports"))
    }),
    ("make a port in Dom0", |_| {
        let op = event::AllocUnbound { dom: 0, remote_dom: SELF, port: 0 };
        refused(nr::EVENT_CHANNEL_OP, event::EVTCHNOP_ALLOC_UNBOUND, op)
    }),
    ("look at Dom0's ports", |_| {
        let op = event::Status { dom: 0, port: 1, ..Default::default() };
        refused(nr::EVENT_CHANNEL_OP, event::EVTCHNOP_STATUS, op)
    }),
    ("reset Dom0's ports", |_| {
        refused(nr::EVENT_CHANNEL_OP, event::EVTCHNOP_RESET, event::Reset { dom: 0 })
    }),
    ("bind an interrupt of a device", |_| {
        (0..64)
            .map(|pirq| {
                let op = event::BindPirq { pirq, ..Default::default() };
                refused(nr::EVENT_CHANNEL_OP, event::EVTCHNOP_BIND_PIRQ, op)
            })
            .reduce(|a, b| if matches!(a, Verdict::Broken(_)) { a } else { b })
            .unwrap_or(Verdict::Skipped("no pirqs"))
    }),
    ("bind Dom0's domain-exception interrupt", |_| {
        let op = event::BindVirq { virq: event::VIRQ_DOM_EXC, ..Default::default() };
        refused(nr::EVENT_CHANNEL_OP, event::EVTCHNOP_BIND_VIRQ, op)
    }),
    ("bind a virtual interrupt that does not exist", |_| {
        let op = event::BindVirq { virq: 1 << 20, ..Default::default() };
        refused(nr::EVENT_CHANNEL_OP, event::EVTCHNOP_BIND_VIRQ, op)
    }),
    ("bind an IPI of a vCPU it does not have", |_| {
        let op = event::BindIpi { vcpu: 9999, port: 0 };
        refused(nr::EVENT_CHANNEL_OP, event::EVTCHNOP_BIND_IPI, op)
    }),
    ("create a domain", |_| {
        refused(nr::CONTROL, control::CREATE_DOMAIN, control::CreateDomain::default())
    }),
    ("destroy Dom0", |_| {
        refused(nr::CONTROL, control::DESTROY_DOMAIN, control::DomainOnly::default())
    }),
    ("pause Dom0", |_| refused(nr::CONTROL, control::PAUSE_DOMAIN, control::DomainOnly::default())),
    ("look at Dom0's state", |_| {
        refused(nr::CONTROL, control::DOMAIN_INFO, control::DomainInfo::default())
    }),
    ("raise its own weight", |_| {
        let op = control::SchedParams { weight: 65535, ..Default::default() };
        refused(nr::CONTROL, control::SET_SCHED, op)
    }),
    ("grant itself a frame of Dom0", |e| {
        let op = control::SetGrant {
            mfn: e.foreign.unwrap_or(e.core_frame()).get(),
            ..Default::default()
        };
        refused(nr::CONTROL, control::SET_GRANT, op)
    }),
    ("assign itself a device", |_| {
        refused(nr::CONTROL, control::ASSIGN_DEVICE, control::DeviceRef::default())
    }),
    ("stop the machine", |_| {
        refused(nr::CONTROL, control::MACHINE_SHUTDOWN, control::Shutdown::default())
    }),
    ("list the devices", |_| refused(nr::DEVICE, device::DESCRIBE, device::Describe::default())),
    ("write configuration space of every slot", |_| {
        (0..256)
            .map(|n| {
                let op = device::Config { sbdf: n, offset: 4, width: 2, value: 7 };
                refused(nr::DEVICE, device::CONFIG_WRITE, op)
            })
            .reduce(|a, b| if matches!(a, Verdict::Broken(_)) { a } else { b })
            .unwrap_or(Verdict::Skipped("no slots"))
    }),
    ("reset a device", |_| {
        refused(nr::DEVICE, device::RESET, device::Describe { sbdf: 4 << 3, ..Default::default() })
    }),
    ("take its own vcpu_info into another's frame", |e| {
        let op = vcpu::RegisterVcpuInfo {
            mfn: e.foreign.unwrap_or(e.core_frame()).get(),
            ..Default::default()
        };
        expect_errno(call(
            nr::VCPU_OP,
            [vcpu::VCPUOP_REGISTER_VCPU_INFO, 0, (&raw const op) as u64, 0, 0],
        ))
    }),
    ("take its own vcpu_info across a page's end", |e| {
        let op = vcpu::RegisterVcpuInfo { mfn: e.spare.mfn(0).get(), offset: 4090, _pad: 0 };
        expect_errno(call(
            nr::VCPU_OP,
            [vcpu::VCPUOP_REGISTER_VCPU_INFO, 0, (&raw const op) as u64, 0, 0],
        ))
    }),
    ("start a vCPU it does not have", |_| {
        expect_errno(call(nr::VCPU_OP, [vcpu::VCPUOP_UP, 31, 0, 0, 0]))
    }),
    ("take a frame of the core as descriptor table", |e| {
        let frames = [e.core_frame().get()];
        expect_errno(call(nr::SET_GDT, [frames.as_ptr() as u64, 16, 0, 0, 0]))
    }),
    ("take its own page table as descriptor table", |e| {
        let frames = [e.path[3].get()];
        expect_errno(call(nr::SET_GDT, [frames.as_ptr() as u64, 16, 0, 0, 0]))
    }),
    ("take a page it can write as descriptor table", |e| {
        let frames = [e.spare.mfn(0).get()];
        expect_errno(call(nr::SET_GDT, [frames.as_ptr() as u64, 16, 0, 0, 0]))
    }),
    ("take a descriptor table over the core's entries", |e| {
        let frames = [e.spare.mfn(0).get(); 16];
        expect_errno(call(nr::SET_GDT, [frames.as_ptr() as u64, 8000, 0, 0, 0]))
    }),
    ("have a task-state descriptor in its table", |e| {
        // Type 9, present: available 64-bit TSS.
        e.spare.shared().write_u64(8, 0x0000_8900_0000_0067);
        let rax = e.with_spare_read_only(|e| {
            let frames = [e.spare.mfn(0).get()];
            call(nr::SET_GDT, [frames.as_ptr() as u64, 16, 0, 0, 0])
        });
        expect_errno(rax)
    }),
    ("write a descriptor into its own page table", |e| {
        expect_errno(call(nr::UPDATE_DESCRIPTOR, [e.entry(1).get(), 0, 0, 0, 0]))
    }),
    ("write a descriptor into a core frame", |e| {
        expect_errno(call(nr::UPDATE_DESCRIPTOR, [e.core_frame().maddr().get(), 0, 0, 0, 0]))
    }),
    ("set a breakpoint in the core", |_| {
        expect_errno(call(nr::SET_DEBUGREG, [0, INTO_CORE, 0, 0, 0]))
    }),
    ("set a segment base that is not canonical", |_| {
        expect_errno(call(nr::SET_SEGMENT_BASE, [trap::SEGBASE_FS, NON_CANONICAL, 0, 0, 0]))
    }),
    ("poll more ports than allowed", |_| {
        let op = sched::Poll { nr_ports: u32::MAX, ports: UNMAPPED, ..Default::default() };
        refused(nr::SCHED_OP, sched::SCHEDOP_POLL, op)
    }),
    ("shut down another domain", |_| {
        let op = [0u32, sched::SHUTDOWN_CRASH];
        refused(nr::SCHED_OP, sched::SCHEDOP_REMOTE_SHUTDOWN, op)
    }),
    ("call a number that does not exist", |_| expect_errno(call(63, [0; 5]))),
    ("call a number beyond all numbers", |_| expect_errno(call(u64::MAX, [0; 5]))),
    ("nest a multicall", |_| {
        let mut inner = [nr::MulticallEntry::default()];
        let mut outer = [nr::MulticallEntry { op: nr::MULTICALL, ..Default::default() }];
        outer[0].args[0] = inner.as_mut_ptr() as u64;
        outer[0].args[1] = 1;
        let rax = call(nr::MULTICALL, [outer.as_mut_ptr() as u64, 1, 0, 0, 0]);
        expect_errno(if rax == 0 { outer[0].result as i64 } else { rax })
    }),
    ("have the core print its own memory", |_| bad_pointers(nr::CONSOLE_IO, [0, 64, 0, 0, 0], 2)),
    ("have the core read updates from bad pointers", |_| {
        bad_pointers(nr::MMU_UPDATE, [0, 1, 0, SELF.into(), 0], 0)
    }),
    ("have the core read operations from bad pointers", |_| {
        bad_pointers(nr::MMUEXT_OP, [0, 1, 0, SELF.into(), 0], 0)
    }),
    ("have the core write its version to bad pointers", |_| {
        bad_pointers(nr::XEN_VERSION, [3, 0, 0, 0, 0], 1)
    }),
    ("have the core use a multicall at bad pointers", |_| {
        bad_pointers(nr::MULTICALL, [0, 1, 0, 0, 0], 0)
    }),
    ("have the core write a port to bad pointers", |_| {
        bad_pointers(nr::EVENT_CHANNEL_OP, [event::EVTCHNOP_BIND_IPI, 0, 0, 0, 0], 1)
    }),
    ("have the core use grant operations at bad pointers", |_| {
        bad_pointers(nr::GRANT_TABLE_OP, [grant::GNTTABOP_QUERY_SIZE, 0, 1, 0, 0], 1)
    }),
    ("have the core write the memory map to bad pointers", |_| {
        bad_pointers(nr::MEMORY_OP, [memory::XENMEM_MACHPHYS_MAPPING, 0, 0, 0, 0], 1)
    }),
    ("have the core read a trap table from bad pointers", |_| {
        // Address 0 means "clear the table" and is legal: it is not among the pointers.
        bad_pointers(nr::SET_TRAP_TABLE, [0; 5], 0)
    }),
    ("have the core read a callback from bad pointers", |_| {
        bad_pointers(nr::CALLBACK_OP, [0, 0, 0, 0, 0], 1)
    }),
    ("have the core read a timer from bad pointers", |_| {
        bad_pointers(nr::VCPU_OP, [vcpu::VCPUOP_SET_SINGLESHOT_TIMER, 0, 0, 0, 0], 2)
    }),
    ("have the core read poll ports from bad pointers", |_| {
        bad_pointers(nr::SCHED_OP, [sched::SCHEDOP_POLL, 0, 0, 0, 0], 1)
    }),
    ("have the core write a result into a page it may only read", |e| {
        let rax = e.with_spare_read_only(|e| {
            call(nr::MEMORY_OP, [memory::XENMEM_MACHPHYS_MAPPING, e.spare.va(), 0, 0, 0])
        });
        expect_errno(rax)
    }),
    ("have the core write a result over a page's end into the core", |_| {
        let last = mmu::HOLE_START - PAGE_SIZE as u64 / 2;
        expect_errno(call(nr::XEN_VERSION, [3, last, 0, 0, 0]))
    }),
];
