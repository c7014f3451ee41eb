//! Images that are sent piece by piece. Keeps one at a time; whether it is an image is not
//! known here.

use alloc::{format, rc::Rc, string::String, vec::Vec};
use bulkhead_link::MOST_IMAGE_BYTES;

/// A piece of an image.
#[derive(Clone, Debug)]
pub struct ImagePart {
    /// The sender's number for the whole.
    pub upload: u64,
    /// Bytes of the whole.
    pub total: u64,
    pub offset: u64,
    pub bytes: Vec<u8>,
}

/// The image that is being sent.
#[derive(Debug, Default)]
pub struct Uploads {
    current: Option<Upload>,
}

#[derive(Debug)]
struct Upload {
    number: u64,
    total: usize,
    bytes: Vec<u8>,
}

impl Uploads {
    /// Takes a piece in. The first one of another image takes the place of what is there.
    /// Errors are for a person to read; what was sent of that image is forgotten then.
    pub fn take(&mut self, part: ImagePart) -> Result<(), String> {
        if part.offset == 0 {
            self.current = Some(Upload::new(part.upload, part.total)?);
        }
        let current = self.current.as_mut().filter(|current| current.number == part.upload);
        let current = current.ok_or("another image was sent meanwhile; send it again")?;
        let is_next = part.offset == current.bytes.len() as u64;
        if !is_next || part.bytes.len() > current.total - current.bytes.len() {
            self.current = None;
            return Err("the parts of the image do not fit together; send it again".into());
        }
        current.bytes.extend(part.bytes);
        Ok(())
    }

    /// Gives a complete image out.
    pub fn finish(&mut self, upload: u64) -> Result<Rc<Vec<u8>>, String> {
        let is_whole = |u: &mut Upload| u.number == upload && u.bytes.len() == u.total;
        let whole = self.current.take_if(is_whole);
        let whole = whole.ok_or("the image was not sent as a whole; send it again")?;
        Ok(Rc::new(whole.bytes))
    }
}

impl Upload {
    fn new(number: u64, total: u64) -> Result<Self, String> {
        if !(1..=MOST_IMAGE_BYTES).contains(&total) {
            let most = MOST_IMAGE_BYTES >> 20;
            return Err(format!("an image of {total} bytes can not be sent; 1 to {most} MiB can"));
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(total as usize).map_err(|_| {
            format!(
                "Dom0 has no room for an image of {} KiB; give it more by `dom0-memory`",
                total >> 10
            )
        })?;
        Ok(Self { number, total: total as usize, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    fn part(upload: u64, total: u64, offset: u64, bytes: &[u8]) -> ImagePart {
        ImagePart { upload, total, offset, bytes: bytes.to_vec() }
    }

    #[test]
    fn parts_in_order_are_put_together_and_given_out_once() {
        let mut uploads = Uploads::default();
        uploads.take(part(7, 5, 0, b"abc")).unwrap();
        assert!(uploads.finish(7).is_err());
        uploads.take(part(7, 5, 3, b"de")).unwrap();
        assert!(uploads.finish(8).is_err());
        assert_eq!(*uploads.finish(7).unwrap(), b"abcde");
        assert!(uploads.finish(7).is_err());
    }

    #[test]
    fn what_does_not_fit_together_or_is_too_large_is_refused() {
        let mut uploads = Uploads::default();
        for total in [0, MOST_IMAGE_BYTES + 1, u64::MAX] {
            assert!(uploads.take(part(1, total, 0, b"")).unwrap_err().contains("16 MiB"));
        }
        uploads.take(part(1, 5, 0, b"abc")).unwrap();
        assert!(uploads.take(part(1, 5, 2, b"cd")).unwrap_err().contains("fit together"));
        assert!(uploads.take(part(1, 5, 3, b"de")).is_err(), "forgotten");
        uploads.take(part(1, 5, 0, b"abc")).unwrap();
        assert!(uploads.take(part(1, 5, 3, b"def")).is_err());
        uploads.take(part(1, 5, 0, b"abc")).unwrap();
        uploads.take(part(2, 1, 0, b"x")).unwrap();
        assert!(uploads.take(part(1, 5, 3, b"de")).unwrap_err().contains("meanwhile"));
        assert_eq!(*uploads.finish(2).unwrap(), b"x");
    }

    proptest! {
        #[test]
        fn no_sender_makes_it_panic_or_keep_more_than_the_most(
            parts in prop::collection::vec((0_u64..3, 0_u64..40, 0_u64..40, 0_usize..20), 0..40),
        ) {
            let mut uploads = Uploads::default();
            for (upload, total, offset, bytes) in parts {
                let _ = uploads.take(part(upload, total, offset, &vec![0; bytes]));
                let kept = uploads.current.as_ref().map_or(0, |u| u.bytes.len());
                prop_assert!(kept < 40);
                if let Ok(whole) = uploads.finish(upload) {
                    prop_assert_eq!(whole.len() as u64 >= 1, true);
                }
            }
        }
    }
}
