//! Event channels (public/event_channel.h), two-level interface.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const EVTCHNOP_BIND_INTERDOMAIN: u64 = 0;
pub const EVTCHNOP_BIND_VIRQ: u64 = 1;
pub const EVTCHNOP_BIND_PIRQ: u64 = 2;
pub const EVTCHNOP_CLOSE: u64 = 3;
pub const EVTCHNOP_SEND: u64 = 4;
pub const EVTCHNOP_STATUS: u64 = 5;
pub const EVTCHNOP_ALLOC_UNBOUND: u64 = 6;
pub const EVTCHNOP_BIND_IPI: u64 = 7;
pub const EVTCHNOP_BIND_VCPU: u64 = 8;
pub const EVTCHNOP_UNMASK: u64 = 9;
pub const EVTCHNOP_RESET: u64 = 10;
pub const EVTCHNOP_INIT_CONTROL: u64 = 11;
pub const EVTCHNOP_EXPAND_ARRAY: u64 = 12;
pub const EVTCHNOP_SET_PRIORITY: u64 = 13;

pub const VIRQ_TIMER: u32 = 0;
pub const VIRQ_DEBUG: u32 = 1;
pub const VIRQ_CONSOLE: u32 = 2;
/// Global, Dom0 only: a domain changed its state.
pub const VIRQ_DOM_EXC: u32 = 3;
pub const NR_VIRQS: u32 = 24;

pub const EVTCHNSTAT_CLOSED: u32 = 0;
pub const EVTCHNSTAT_UNBOUND: u32 = 1;
pub const EVTCHNSTAT_INTERDOMAIN: u32 = 2;
pub const EVTCHNSTAT_PIRQ: u32 = 3;
pub const EVTCHNSTAT_VIRQ: u32 = 4;
pub const EVTCHNSTAT_IPI: u32 = 5;

macro_rules! op {
    ($(#[$d:meta])* $name:ident { $($(#[$fd:meta])* $f:ident : $t:ty),* $(,)? } $size:expr) => {
        $(#[$d])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$fd])* pub $f: $t),* }
        crate::layout!($name, $size);
    };
}

op!(BindInterdomain { remote_dom: u16, _pad: u16, remote_port: u32, /** out */ local_port: u32 } 12);
op!(BindVirq { virq: u32, vcpu: u32, /** out */ port: u32 } 12);
op!(BindPirq { pirq: u32, flags: u32, /** out */ port: u32 } 12);
op!(
    /// `close`, `send` and `unmask` take the same structure.
    PortOp { port: u32 } 4);
op!(Status { dom: u16, _pad: u16, port: u32, /** out */ status: u32, /** out */ vcpu: u32,
    /** out: unbound: remote domid; interdomain: domid; pirq, virq: its number */ arg0: u32,
    /** out: interdomain: remote port */ arg1: u32 } 24);
op!(AllocUnbound { dom: u16, remote_dom: u16, /** out */ port: u32 } 8);
op!(BindIpi { vcpu: u32, /** out */ port: u32 } 8);
op!(BindVcpu { port: u32, vcpu: u32 } 8);
op!(Reset { dom: u16 } 2);
/// `BindPirq::flags`: the line may be shared.
pub const BIND_PIRQ_WILL_SHARE: u32 = 1;
