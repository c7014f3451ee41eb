//! The console ring (public/io/console.h). Offsets into its page; both indices run
//! free and are masked with the ring size.

/// Bytes from back end to guest.
pub const IN_OFFSET: usize = 0;
pub const IN_SIZE: usize = 1024;
/// Bytes from guest to back end.
pub const OUT_OFFSET: usize = 1024;
pub const OUT_SIZE: usize = 2048;
/// u32 indices.
pub const IN_CONS: usize = 3072;
pub const IN_PROD: usize = 3076;
pub const OUT_CONS: usize = 3080;
pub const OUT_PROD: usize = 3084;
