//! Memory that another domain writes at the same time, as the ring code sees it.
//! What it is (a foreign mapping, a granted page, an array in a test) is not
//! known here.

/// One shared page, reached by byte offset.
///
/// Offsets come from our own code and are within the page; values read are the
/// word of a stranger. An implementation never panics for what the peer wrote.
pub trait SharedPage {
    /// Reads a u32 at a 4-aligned offset, with acquire order.
    fn read_u32(&self, offset: usize) -> u32;
    /// Writes a u32 at a 4-aligned offset, with release order.
    fn write_u32(&self, offset: usize, value: u32);
    /// Copies bytes out of the page, once.
    fn read_bytes(&self, offset: usize, into: &mut [u8]);
    /// Copies bytes into the page.
    fn write_bytes(&self, offset: usize, from: &[u8]);
}

/// A byte stream in one direction inside a shared page: free-running u32
/// indices over a power-of-two buffer. The geometry of the xenstore and console rings.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    /// Offset of the buffer.
    pub buffer: usize,
    /// Bytes of the buffer, a power of two.
    pub size: usize,
    /// Offset of the consumer index.
    pub cons: usize,
    /// Offset of the producer index.
    pub prod: usize,
}

/// The peer's indices say that more is in a buffer than fits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AbsurdIndices {
    pub cons: u32,
    pub prod: u32,
}

impl Lane {
    /// Bytes waiting to be consumed, with the index of the first.
    fn waiting(&self, page: &impl SharedPage) -> Result<(u32, u32, usize), AbsurdIndices> {
        let cons = page.read_u32(self.cons);
        let prod = page.read_u32(self.prod);
        let used = prod.wrapping_sub(cons) as usize;
        if used > self.size {
            return Err(AbsurdIndices { cons, prod });
        }
        Ok((cons, prod, used))
    }

    /// Consumes up to `into.len()` bytes as the reader of this lane.
    ///
    /// Holds: the indices are read once, and the bytes are copied once.
    pub fn take(&self, page: &impl SharedPage, into: &mut [u8]) -> Result<usize, AbsurdIndices> {
        let (cons, _, used) = self.waiting(page)?;
        let count = used.min(into.len());
        let start = cons as usize & (self.size - 1);
        let first = count.min(self.size - start);
        page.read_bytes(self.buffer + start, &mut into[..first]);
        page.read_bytes(self.buffer, &mut into[first..count]);
        if count > 0 {
            page.write_u32(self.cons, cons.wrapping_add(count as u32));
        }
        Ok(count)
    }

    /// Produces as many of `bytes` as fit, as the writer of this lane.
    pub fn put(&self, page: &impl SharedPage, bytes: &[u8]) -> Result<usize, AbsurdIndices> {
        let (_, prod, used) = self.waiting(page)?;
        let count = (self.size - used).min(bytes.len());
        let start = prod as usize & (self.size - 1);
        let first = count.min(self.size - start);
        page.write_bytes(self.buffer + start, &bytes[..first]);
        page.write_bytes(self.buffer, &bytes[first..count]);
        if count > 0 {
            page.write_u32(self.prod, prod.wrapping_add(count as u32));
        }
        Ok(count)
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A page in plain memory, for tests of both ends of a ring.
    use super::SharedPage;
    use core::cell::RefCell;
    use std::vec::Vec;

    pub struct FakePage(pub RefCell<Vec<u8>>);

    impl FakePage {
        pub fn new() -> Self {
            Self(RefCell::new(std::vec![0; 4096]))
        }
    }

    impl SharedPage for FakePage {
        fn read_u32(&self, offset: usize) -> u32 {
            let page = self.0.borrow();
            u32::from_le_bytes(page[offset..offset + 4].try_into().unwrap())
        }
        fn write_u32(&self, offset: usize, value: u32) {
            self.0.borrow_mut()[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        }
        fn read_bytes(&self, offset: usize, into: &mut [u8]) {
            into.copy_from_slice(&self.0.borrow()[offset..offset + into.len()]);
        }
        fn write_bytes(&self, offset: usize, from: &[u8]) {
            self.0.borrow_mut()[offset..offset + from.len()].copy_from_slice(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{fake::FakePage, *};
    use proptest::prelude::*;
    use std::{collections::VecDeque, vec::Vec};

    const LANE: Lane = Lane { buffer: 64, size: 32, cons: 0, prod: 4 };

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in_from_any_start(
            start: u32,
            steps in prop::collection::vec((any::<bool>(), 0usize..50), 1..60),
        ) {
            let page = FakePage::new();
            page.write_u32(0, start);
            page.write_u32(4, start);
            let mut model = VecDeque::new();
            let mut next = 0u8;
            for (is_put, count) in steps {
                if is_put {
                    let bytes: Vec<u8> = (0..count).map(|i| next.wrapping_add(i as u8)).collect();
                    let put = LANE.put(&page, &bytes).unwrap();
                    prop_assert_eq!(put, count.min(32 - model.len()));
                    model.extend(&bytes[..put]);
                    next = next.wrapping_add(put as u8);
                } else {
                    let mut into = std::vec![0; count];
                    let took = LANE.take(&page, &mut into).unwrap();
                    prop_assert_eq!(took, count.min(model.len()));
                    let expected: Vec<u8> = model.drain(..took).collect();
                    prop_assert_eq!(&into[..took], &expected[..]);
                }
            }
        }

        #[test]
        fn absurd_indices_are_an_error_and_nothing_else(cons: u32, prod: u32) {
            let page = FakePage::new();
            page.write_u32(0, cons);
            page.write_u32(4, prod);
            let absurd = prod.wrapping_sub(cons) > 32;
            prop_assert_eq!(LANE.take(&page, &mut [0; 64]).is_err(), absurd);
            page.write_u32(0, cons);
            page.write_u32(4, prod);
            prop_assert_eq!(LANE.put(&page, &[7; 64]).is_err(), absurd);
        }
    }
}
