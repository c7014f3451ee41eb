//! The virtio block device (OASIS virtio 1.2, section 5.2) over PCI: many requests in
//! flight, straight from and into the pages of guests. Queue and transport are
//! `virtio-drivers`'.

mod blk;
mod interrupt;
mod registers;
mod slot;

pub use blk::{OpenError, VirtioBlk, is_block};
pub use interrupt::Interrupt;
