//! The snapshot blob: the form in which a checked document travels to the workers.
//!
//! Header, little-endian, 32 bytes: magic `MFSN` · layout version u32 · generation u64 · payload
//! length u64 · checksum u64. Then the payload: the document in postcard. The checksum (FNV-1a, 64
//! bits) covers the header before it and the payload. It finds damage and mismatched builds; it is
//! no defence against forgery, which the sealed memory the blob lives in is.
//!
//! Only the build that wrote a blob is meant to read it: on disk are resources, not blobs.
//! Tests: below, and mutated blobs in `tests/properties.rs`.

use crate::document::Document;
use crate::error::BlobError;

/// Changes with any change of the document's types, including their order.
pub(crate) const LAYOUT_VERSION: u32 = 4;

const MAGIC: [u8; 4] = *b"MFSN";
/// Bytes before the checksum.
const COVERED: usize = 24;
const HEADER: usize = COVERED + 8;

/// Writes a document as a blob.
pub(crate) fn encode(document: &Document) -> Vec<u8> {
    let payload =
        postcard::to_stdvec(document).expect("strings, numbers and lists can always be written");
    let mut blob = Vec::with_capacity(HEADER + payload.len());
    blob.extend_from_slice(&MAGIC);
    blob.extend_from_slice(&LAYOUT_VERSION.to_le_bytes());
    blob.extend_from_slice(&document.generation.to_le_bytes());
    blob.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    let checksum = checksum(&blob, &payload);
    blob.extend_from_slice(&checksum.to_le_bytes());
    blob.extend_from_slice(&payload);
    blob
}

/// Reads a blob that [`encode`] wrote.
pub(crate) fn decode(blob: &[u8]) -> Result<Document, BlobError> {
    let (header, payload) = blob.split_at_checked(HEADER).ok_or(BlobError::Truncated)?;
    if header[..4] != MAGIC {
        return Err(BlobError::Magic);
    }
    let version = u32::from_le_bytes(word(header, 4));
    if version != LAYOUT_VERSION {
        return Err(BlobError::Version(version));
    }
    let generation = u64::from_le_bytes(word(header, 8));
    if u64::from_le_bytes(word(header, 16)) != payload.len() as u64 {
        return Err(BlobError::Length);
    }
    if u64::from_le_bytes(word(header, COVERED)) != checksum(&header[..COVERED], payload) {
        return Err(BlobError::Checksum);
    }
    match postcard::take_from_bytes::<Document>(payload) {
        Ok((document, [])) if document.generation == generation => Ok(document),
        _ => Err(BlobError::Payload),
    }
}

fn word<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    header[at..at + N]
        .try_into()
        .expect("the header is longer than any of its words reaches")
}

/// FNV-1a with 64 bits (draft-eastlake-fnv), over two pieces as if they were one.
fn checksum(first: &[u8], second: &[u8]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    first
        .iter()
        .chain(second)
        .fold(OFFSET_BASIS, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(PRIME)
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::document::Workload;

    fn blob() -> (Document, Vec<u8>) {
        let document = Document {
            version: 1,
            generation: 7,
            workload: Workload {
                name: "edge".to_owned(),
                ..Workload::default()
            },
            listeners: Vec::new(),
            clusters: Vec::new(),
            access_log_disabled: false,
            tracing: None,
        };
        let blob = encode(&document);
        (document, blob)
    }

    #[test]
    fn reads_what_it_wrote() {
        let (document, blob) = blob();
        assert_eq!(decode(&blob), Ok(document));
    }

    #[test]
    fn checksum_is_fnv_1a() {
        // Test vectors of draft-eastlake-fnv, appendix C: "" and "foobar".
        assert_eq!(checksum(b"", b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(checksum(b"foo", b"bar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn refuses_every_truncation_and_every_extension() {
        let (_, mut blob) = blob();
        for length in 0..blob.len() {
            let expected = if length < HEADER {
                BlobError::Truncated
            } else {
                BlobError::Length
            };
            assert_eq!(decode(&blob[..length]), Err(expected), "{length} bytes");
        }
        blob.push(0);
        assert_eq!(decode(&blob), Err(BlobError::Length));
    }

    #[test]
    fn refuses_every_flipped_bit() {
        let (_, blob) = blob();
        for bit in 0..blob.len() * 8 {
            let mut damaged = blob.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn says_which_layout_it_found() {
        let (_, mut blob) = blob();
        blob[4..8].copy_from_slice(&9u32.to_le_bytes());
        assert_eq!(decode(&blob), Err(BlobError::Version(9)));
        blob[0] = b'X';
        assert_eq!(decode(&blob), Err(BlobError::Magic));
    }

    /// A header that is right for its payload, whatever that is.
    fn with_header(generation: u64, payload: &[u8]) -> Vec<u8> {
        let mut blob = Vec::new();
        blob.extend_from_slice(&MAGIC);
        blob.extend_from_slice(&LAYOUT_VERSION.to_le_bytes());
        blob.extend_from_slice(&generation.to_le_bytes());
        blob.extend_from_slice(&(payload.len() as u64).to_le_bytes());
        let sum = checksum(&blob, payload);
        blob.extend_from_slice(&sum.to_le_bytes());
        blob.extend_from_slice(payload);
        blob
    }

    #[test]
    fn refuses_a_payload_of_another_build_with_a_right_checksum() {
        let (document, blob) = blob();
        let payload = &blob[HEADER..];
        assert_eq!(decode(&with_header(7, payload)), Ok(document));
        let foreign = with_header(7, &[0xff; 40]);
        let longer = with_header(7, &[payload, &[0]].concat());
        let other_generation = with_header(8, payload);
        for blob in [foreign, longer, other_generation] {
            assert_eq!(decode(&blob), Err(BlobError::Payload));
        }
    }
}
