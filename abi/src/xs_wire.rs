//! The xenstore wire (public/io/xs_wire.h).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const XS_CONTROL: u32 = 0;
pub const XS_DIRECTORY: u32 = 1;
pub const XS_READ: u32 = 2;
pub const XS_GET_PERMS: u32 = 3;
pub const XS_WATCH: u32 = 4;
pub const XS_UNWATCH: u32 = 5;
pub const XS_TRANSACTION_START: u32 = 6;
pub const XS_TRANSACTION_END: u32 = 7;
pub const XS_INTRODUCE: u32 = 8;
pub const XS_RELEASE: u32 = 9;
pub const XS_GET_DOMAIN_PATH: u32 = 10;
pub const XS_WRITE: u32 = 11;
pub const XS_MKDIR: u32 = 12;
pub const XS_RM: u32 = 13;
pub const XS_SET_PERMS: u32 = 14;
pub const XS_WATCH_EVENT: u32 = 15;
pub const XS_ERROR: u32 = 16;
pub const XS_IS_DOMAIN_INTRODUCED: u32 = 17;
pub const XS_RESUME: u32 = 18;
pub const XS_SET_TARGET: u32 = 19;
pub const XS_RESET_WATCHES: u32 = 21;
pub const XS_DIRECTORY_PART: u32 = 22;

/// Header of every message.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct XsMsg {
    pub kind: u32,
    pub req_id: u32,
    pub tx_id: u32,
    /// Bytes of payload that follow.
    pub len: u32,
}
crate::layout!(XsMsg, 16);

/// Most bytes of payload.
pub const XENSTORE_PAYLOAD_MAX: usize = 4096;
/// Longest absolute path.
pub const XENSTORE_ABS_PATH_MAX: usize = 3072;
/// Longest relative path.
pub const XENSTORE_REL_PATH_MAX: usize = 2048;

/// Offsets in the ring page; indices run free, masked with [`RING_SIZE`] - 1.
pub const RING_SIZE: usize = 1024;
pub const REQ: usize = 0;
pub const RSP: usize = 1024;
pub const REQ_CONS: usize = 2048;
pub const REQ_PROD: usize = 2052;
pub const RSP_CONS: usize = 2056;
pub const RSP_PROD: usize = 2060;
pub const SERVER_FEATURES: usize = 2064;
pub const CONNECTION: usize = 2068;
pub const ERROR: usize = 2072;

/// States of a device end (public/io/xenbus.h).
pub const XENBUS_UNKNOWN: u32 = 0;
pub const XENBUS_INITIALISING: u32 = 1;
pub const XENBUS_INIT_WAIT: u32 = 2;
pub const XENBUS_INITIALISED: u32 = 3;
pub const XENBUS_CONNECTED: u32 = 4;
pub const XENBUS_CLOSING: u32 = 5;
pub const XENBUS_CLOSED: u32 = 6;
