//! The fast lane: memory that the host tool and Dom0 share, for the bytes of the link. A
//! UART costs a machine exit for every byte, and under emulation far more. Where there is
//! a lane, the UART only wakes the other side. Knows the layout and nothing of how
//! either side comes by the memory.
//!
//! The memory is BAR 2 of an `ivshmem-plain` device of QEMU, whose address the manifest
//! gives. The tool writes [`MAGIC`] and [`VERSION`](crate::VERSION) before the machine starts,
//! and that it sleeps.
//! Dom0 sets [`IN_USE`] before it says anything, or leaves it and speaks on the UART; the
//! tool says nothing before Dom0 has.
//!
//! Each direction is a buffer with free-running u32 indices, as in a console ring, and a
//! word that says whether its reader sleeps. A reader that finds nothing sets the word and
//! looks once more. A writer that finds it set after it has moved its index clears it and
//! sends a byte on the UART: any but zero, which would end a message there.

/// Bytes of the memory.
pub const BYTES: usize = 1 << 20;
/// At [`MAGIC_OFFSET`]: what tells it from other memory.
pub const MAGIC: u32 = 0x656e_616c;
pub const MAGIC_OFFSET: usize = 0;
/// u32, the version of the link that the tool speaks.
pub const VERSION_OFFSET: usize = 4;
/// u32, 1 when Dom0 uses the lane.
pub const IN_USE: usize = 8;

/// From Dom0 to the tool.
pub const TO_TOOL: Way =
    Way { prod: 0x100, cons: 0x140, sleeps: 0x180, buffer: 512 << 10, size: 512 << 10 };
/// From the tool to Dom0.
pub const TO_DOM0: Way =
    Way { prod: 0x200, cons: 0x240, sleeps: 0x280, buffer: 256 << 10, size: 256 << 10 };

/// The byte on the UART that wakes.
pub const BELL: u8 = 1;

/// Where one direction is, in bytes from the start; indices and flag are u32.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub prod: usize,
    pub cons: usize,
    /// Its reader waits for the bell.
    pub sleeps: usize,
    pub buffer: usize,
    /// Bytes of the buffer, a power of two.
    pub size: usize,
}

const _: () = {
    assert!(TO_TOOL.buffer + TO_TOOL.size <= BYTES && TO_TOOL.size.is_power_of_two());
    assert!(TO_DOM0.buffer + TO_DOM0.size <= TO_TOOL.buffer && TO_DOM0.size.is_power_of_two());
};
