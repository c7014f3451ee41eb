//! Messages of the store in a stream of bytes. Knows the header and nothing of
//! what requests mean.

use alloc::vec::Vec;
use bulkhead_abi::xs_wire::{XENSTORE_PAYLOAD_MAX, XsMsg};
use zerocopy::{FromBytes, IntoBytes};

const HEADER_BYTES: usize = size_of::<XsMsg>();

/// What a stream turned out to hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Incoming {
    Request {
        header: XsMsg,
        payload: Vec<u8>,
    },
    /// The header announces more than a message may hold; that many bytes will be
    /// skipped.
    TooLong {
        header: XsMsg,
    },
}

/// Cuts a stream into messages, keeping an unfinished one.
#[derive(Debug, Default)]
pub struct Assembler {
    /// Header and payload so far.
    partial: Vec<u8>,
    skip: usize,
}

impl Assembler {
    /// Takes bytes from the front of `bytes` up to the end of one message.
    pub fn take(&mut self, bytes: &mut &[u8]) -> Option<Incoming> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        *bytes = &bytes[skipped..];
        let header = self.header(bytes)?;
        let len = header.len as usize;
        if len > XENSTORE_PAYLOAD_MAX {
            self.partial.clear();
            self.skip = len;
            return Some(Incoming::TooLong { header });
        }
        self.fill(bytes, HEADER_BYTES + len)?;
        let payload = self.partial.split_off(HEADER_BYTES);
        self.partial.clear();
        Some(Incoming::Request { header, payload })
    }

    fn header(&mut self, bytes: &mut &[u8]) -> Option<XsMsg> {
        if self.partial.len() < HEADER_BYTES {
            self.fill(bytes, HEADER_BYTES)?;
        }
        XsMsg::read_from_prefix(&self.partial).ok().map(|(h, _)| h)
    }

    /// Moves bytes over until `partial` has `wanted`.
    fn fill(&mut self, bytes: &mut &[u8], wanted: usize) -> Option<()> {
        let count = wanted.saturating_sub(self.partial.len()).min(bytes.len());
        let (now, rest) = bytes.split_at(count);
        self.partial.extend_from_slice(now);
        *bytes = rest;
        (self.partial.len() >= wanted).then_some(())
    }
}

/// One message with its header. `payload` is at most 4096 bytes.
pub fn message(kind: u32, req_id: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let header = XsMsg { kind, req_id, tx_id, len: payload.len() as u32 };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// The payload as exactly one NUL-terminated string.
pub fn one_string(payload: &[u8]) -> Option<&[u8]> {
    let (&last, text) = payload.split_last()?;
    (last == 0 && !text.contains(&0)).then_some(text)
}

/// The NUL-terminated string at the front, and what follows it.
pub fn first_string(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = payload.iter().position(|&b| b == 0)?;
    Some((&payload[..end], &payload[end + 1..]))
}

/// The payload as exactly two NUL-terminated strings.
pub fn two_strings(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let (first, rest) = first_string(payload)?;
    Some((first, one_string(rest)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_stream_is_cut_the_same_however_it_arrives(
            messages in prop::collection::vec((0u32..30, any::<u32>(), 0usize..5000), 1..8),
            cuts in prop::collection::vec(1usize..900, 1..60),
        ) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (kind, req_id, len) in messages {
                let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
                let bytes = message(kind, req_id, 3, &payload);
                let header = XsMsg { kind, req_id, tx_id: 3, len: len as u32 };
                expected.push(if len > 4096 {
                    Incoming::TooLong { header }
                } else {
                    Incoming::Request { header, payload }
                });
                stream.extend(bytes);
            }
            let mut assembler = Assembler::default();
            let mut got = Vec::new();
            let mut rest = &stream[..];
            let mut cuts = cuts.into_iter().cycle();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                let mut now = now;
                while let Some(incoming) = assembler.take(&mut now) {
                    got.push(incoming);
                }
                prop_assert!(now.is_empty());
                rest = later;
            }
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn strings_need_their_nuls() {
        assert_eq!(one_string(b"a\0"), Some(&b"a"[..]));
        assert_eq!(one_string(b"a"), None);
        assert_eq!(one_string(b"a\0b\0"), None);
        assert_eq!(one_string(b""), None);
        assert_eq!(two_strings(b"a\0b\0"), Some((&b"a"[..], &b"b"[..])));
        assert_eq!(two_strings(b"a\0b"), None);
    }
}
