//! The payload of the archive: the manifest, then the images it names.

use super::PackError;
use bulkhead_abi::PAGE_SIZE;
use bulkhead_link::Manifest;

/// Encodes a manifest and its images.
///
/// The offsets and sizes in `manifest.images` are filled in here; `images` are their
/// contents, in the same order. Shape: u32 length, `postcard` manifest, padding, images,
/// each at the start of a page.
///
/// # Errors
/// [`PackError::Manifest`] if there is not one content for each image.
pub fn payload(manifest: &mut Manifest, images: &[&[u8]]) -> Result<Vec<u8>, PackError> {
    if manifest.images.len() != images.len() {
        return Err(PackError::Manifest(format!(
            "{} images are named and {} given",
            manifest.images.len(),
            images.len()
        )));
    }
    // Longer offsets may lengthen the manifest, which moves the images: room only grows.
    let mut room = PAGE_SIZE;
    let head = loop {
        place(manifest, images, room);
        let head =
            postcard::to_allocvec(manifest).map_err(|e| PackError::Manifest(e.to_string()))?;
        let needed = (4 + head.len()).next_multiple_of(PAGE_SIZE);
        if needed <= room {
            break head;
        }
        room = needed;
    };
    let mut payload = (head.len() as u32).to_le_bytes().to_vec();
    payload.extend_from_slice(&head);
    payload.resize(room, 0);
    for image in images {
        payload.extend_from_slice(image);
        payload.resize(payload.len().next_multiple_of(PAGE_SIZE), 0);
    }
    Ok(payload)
}

fn place(manifest: &mut Manifest, images: &[&[u8]], room: usize) {
    let mut at = room;
    for (named, bytes) in manifest.images.iter_mut().zip(images) {
        named.offset = at as u64;
        named.bytes = bytes.len() as u64;
        at += bytes.len().next_multiple_of(PAGE_SIZE);
    }
}
