//! Messages of the store as bytes. Pure: no ring, no tasks.

use alloc::string::String;
use alloc::vec::Vec;
use bulkhead_abi::xs_wire::{XENSTORE_PAYLOAD_MAX, XsMsg};
use zerocopy::{FromBytes, IntoBytes};

const HEADER: usize = size_of::<XsMsg>();

/// A whole message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub header: XsMsg,
    pub payload: Vec<u8>,
}

/// Puts a message together; `None` if the payload is too long.
pub fn encode(kind: u32, req_id: u32, tx_id: u32, parts: &[&[u8]]) -> Option<Vec<u8>> {
    let len = parts.iter().map(|p| p.len()).sum::<usize>();
    if len > XENSTORE_PAYLOAD_MAX {
        return None;
    }
    let header = XsMsg { kind, req_id, tx_id, len: len as u32 };
    let mut bytes = Vec::with_capacity(HEADER + len);
    bytes.extend_from_slice(header.as_bytes());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    Some(bytes)
}

/// Takes messages out of a stream of bytes.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

/// The stream is not the protocol: it cannot be followed any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Garbage;

impl Decoder {
    /// Adds what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message.
    pub fn next(&mut self) -> Result<Option<Message>, Garbage> {
        let Ok((header, rest)) = XsMsg::read_from_prefix(&self.buffer) else {
            return Ok(None);
        };
        let len = header.len as usize;
        if len > XENSTORE_PAYLOAD_MAX {
            return Err(Garbage);
        }
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.buffer.drain(..HEADER + len);
        Ok(Some(Message { header, payload }))
    }
}

/// The first NUL-terminated string of `bytes`, and what follows it.
pub fn split_string(bytes: &[u8]) -> (String, &[u8]) {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    let rest = bytes.get(end + 1..).unwrap_or(&[]);
    (String::from_utf8_lossy(&bytes[..end]).into_owned(), rest)
}

/// All NUL-terminated strings of `bytes`.
pub fn strings(mut bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (string, rest) = split_string(bytes);
        found.push(string);
        bytes = rest;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_survive_any_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..8),
            cut in 1usize..50,
        ) {
            let mut stream = Vec::new();
            for (id, payload) in (0u32..).zip(&payloads) {
                stream.extend(encode(2, id, 7, &[payload]).expect("short"));
            }
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                while let Some(message) = decoder.next().expect("well-formed") {
                    found.push(message);
                }
            }
            prop_assert_eq!(found.len(), payloads.len());
            for (id, (message, payload)) in (0u32..).zip(found.iter().zip(&payloads)) {
                prop_assert_eq!(message.header.req_id, id);
                prop_assert_eq!(&message.payload, payload);
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes: Vec<u8>) {
            let mut decoder = Decoder::default();
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next() {}
        }
    }

    #[test]
    fn a_length_past_the_limit_is_garbage() {
        let mut decoder = Decoder::default();
        let header = XsMsg { len: 4097, ..Default::default() };
        decoder.push(header.as_bytes());
        assert_eq!(decoder.next(), Err(Garbage));
    }

    #[test]
    fn strings_are_split_at_their_nuls() {
        assert_eq!(strings(b"a\0bc\0\0"), ["a", "bc", ""]);
        assert_eq!(split_string(b"p\0tok\0"), ("p".into(), &b"tok\0"[..]));
    }
}
