//! The envelope of a blob: what of it is readable without a key.
//!
//! ```text
//! blob    = header ‖ ciphertext ‖ tag 16
//! header  = "VSB1" ‖ kind u8 ‖ suite u8 ‖ epoch u32 ‖ nref u32 ‖ refs [nref × 32]
//! encoded = codec u8 ‖ raw_len u32 ‖ payload_len u32 ‖ payload ‖ zeros up to Padmé
//! ```
//!
//! Integers are little-endian. `encoded` is what the agent encrypts; the references stand
//! in clear so that a server without keys can tell what a snapshot needs.

use thiserror::Error;

use crate::id::Cid;
use crate::limits::{MAX_BLOB_LEN, MAX_RAW_LEN, MAX_REFS};

/// Starts every blob; a change of layout changes the digit.
pub const MAGIC: [u8; 4] = *b"VSB1";

/// Bytes of a header without references.
pub const FIXED_HEADER_LEN: usize = 14;

/// Bytes of the authentication tag at the end.
pub const TAG_LEN: usize = 16;

/// Bytes in front of the payload inside `encoded`.
pub const ENCODED_HEAD_LEN: usize = 9;

/// What a blob holds. Authenticated, so that a file whose content looks like a tree
/// node can never be taken for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum BlobKind {
    /// A piece of a file.
    Chunk = 1,
    /// A tree node with records; its references are chunks.
    Leaf = 2,
    /// A tree node above leaves or other inner nodes.
    Inner = 3,
    /// The top of a snapshot's tree.
    Root = 4,
}

impl BlobKind {
    /// The kind with number `code`.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Chunk),
            2 => Some(Self::Leaf),
            3 => Some(Self::Inner),
            4 => Some(Self::Root),
            _ => None,
        }
    }

    /// Whether a blob of this kind may refer to one of `child`'s kind.
    #[must_use]
    pub const fn may_refer_to(self, child: Self) -> bool {
        matches!((self, child), (Self::Leaf, Self::Chunk) | (Self::Inner | Self::Root, Self::Leaf | Self::Inner))
    }
}

/// The cipher that sealed a blob. Chosen once per realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Suite {
    /// ChaCha20-Poly1305, RFC 8439.
    ChaCha20Poly1305 = 1,
    /// AES-256-GCM.
    Aes256Gcm = 2,
}

impl Suite {
    /// The suite with number `code`.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::ChaCha20Poly1305),
            2 => Some(Self::Aes256Gcm),
            _ => None,
        }
    }
}

/// How a payload is encoded inside a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

impl Codec {
    /// The codec with number `code`.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Why bytes are not a blob.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BlobError {
    /// Shorter than its own header, or longer than any blob may be.
    #[error("blob of {0} bytes is out of bounds")]
    Length(usize),
    /// The first bytes are not [`MAGIC`].
    #[error("not a blob of format 1")]
    Magic,
    /// An unknown kind, suite or codec.
    #[error("unknown {what} {code}")]
    Unknown {
        /// Which field.
        what: &'static str,
        /// Its value.
        code: u8,
    },
    /// More references than a node may have.
    #[error("{0} references are too many")]
    References(u32),
    /// The decrypted content contradicts its own lengths, or its padding is not zero.
    #[error("inconsistent lengths or padding")]
    Encoding,
}

/// The readable part of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// What the blob holds.
    pub kind: BlobKind,
    /// The cipher that sealed it.
    pub suite: Suite,
    /// The key epoch that sealed it, from 1.
    pub epoch: u32,
    refs: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads the header at the start of `blob`.
    ///
    /// # Errors
    /// When the bytes cannot be a whole blob, tag included.
    pub fn parse(blob: &'a [u8]) -> Result<Self, BlobError> {
        let length = BlobError::Length(blob.len());
        if blob.len() < FIXED_HEADER_LEN + ENCODED_HEAD_LEN + TAG_LEN || blob.len() > MAX_BLOB_LEN {
            return Err(length);
        }
        if blob[..4] != MAGIC {
            return Err(BlobError::Magic);
        }
        let kind = BlobKind::from_code(blob[4]).ok_or(BlobError::Unknown { what: "kind of blob", code: blob[4] })?;
        let suite = Suite::from_code(blob[5]).ok_or(BlobError::Unknown { what: "suite", code: blob[5] })?;
        let nref = read_u32(blob, 10);
        if nref as usize > MAX_REFS {
            return Err(BlobError::References(nref));
        }
        let end = FIXED_HEADER_LEN + nref as usize * Cid::LEN;
        if blob.len() < end + ENCODED_HEAD_LEN + TAG_LEN {
            return Err(length);
        }
        Ok(Self { kind, suite, epoch: read_u32(blob, 6), refs: &blob[FIXED_HEADER_LEN..end] })
    }

    /// Bytes of the header, references included.
    #[must_use]
    pub const fn len(&self) -> usize {
        FIXED_HEADER_LEN + self.refs.len()
    }

    /// Always false: a header has a fixed part.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// The children, in order.
    pub fn refs(&self) -> impl ExactSizeIterator<Item = Cid> + 'a {
        self.refs.chunks_exact(Cid::LEN).map(|bytes| {
            let mut cid = [0; Cid::LEN];
            cid.copy_from_slice(bytes);
            Cid::from_bytes(cid)
        })
    }
}

/// Appends a header to `out`.
pub fn write_header(out: &mut Vec<u8>, kind: BlobKind, suite: Suite, epoch: u32, refs: &[Cid]) {
    debug_assert!(refs.len() <= MAX_REFS);
    out.extend_from_slice(&MAGIC);
    out.push(kind as u8);
    out.push(suite as u8);
    out.extend_from_slice(&epoch.to_le_bytes());
    out.extend_from_slice(&(refs.len() as u32).to_le_bytes());
    refs.iter().for_each(|cid| out.extend_from_slice(cid.as_bytes()));
}

/// Appends the head of `encoded` to `out`; payload and padding follow.
pub fn write_encoded_head(out: &mut Vec<u8>, codec: Codec, raw_len: u32, payload_len: u32) {
    out.push(codec as u8);
    out.extend_from_slice(&raw_len.to_le_bytes());
    out.extend_from_slice(&payload_len.to_le_bytes());
}

/// A decrypted content, taken apart but not yet decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded<'a> {
    /// How the payload is encoded.
    pub codec: Codec,
    /// Bytes of the decoded payload; never more than [`MAX_RAW_LEN`].
    pub raw_len: usize,
    /// The payload.
    pub payload: &'a [u8],
}

impl<'a> Encoded<'a> {
    /// Takes `encoded` apart, checking its lengths and its padding.
    ///
    /// # Errors
    /// When the lengths contradict one another or the padding is not that of Padmé.
    pub fn parse(encoded: &'a [u8]) -> Result<Self, BlobError> {
        if encoded.len() < ENCODED_HEAD_LEN {
            return Err(BlobError::Encoding);
        }
        let codec = Codec::from_code(encoded[0]).ok_or(BlobError::Unknown { what: "codec", code: encoded[0] })?;
        let raw_len = read_u32(encoded, 1) as usize;
        let end = ENCODED_HEAD_LEN + read_u32(encoded, 5) as usize;
        if raw_len > MAX_RAW_LEN || encoded.len() < end || encoded.len() != padme(end) {
            return Err(BlobError::Encoding);
        }
        let (payload, padding) = (&encoded[ENCODED_HEAD_LEN..end], &encoded[end..]);
        if padding.iter().any(|&byte| byte != 0) || (codec == Codec::Raw && payload.len() != raw_len) {
            return Err(BlobError::Encoding);
        }
        Ok(Self { codec, raw_len, payload })
    }
}

/// Bytes that a blob of `kind` with a plaintext of `raw_len` bytes has at most: encoding never
/// makes a plaintext longer, and only nodes have references.
#[must_use]
pub const fn longest(kind: BlobKind, raw_len: usize) -> usize {
    let refs = match kind {
        BlobKind::Chunk => 0,
        BlobKind::Leaf | BlobKind::Inner | BlobKind::Root => MAX_REFS,
    };
    let raw_len = if raw_len < MAX_RAW_LEN { raw_len } else { MAX_RAW_LEN };
    FIXED_HEADER_LEN + refs * Cid::LEN + padme(ENCODED_HEAD_LEN + raw_len) + TAG_LEN
}

/// The length to which `len` bytes are padded, so that a length tells little: Padmé, from
/// "Reducing Metadata Leakage from Encrypted Files" (Nikitin et al. 2019). At most 12 %
/// more, 1 % on average from 64 KiB up.
#[must_use]
pub const fn padme(len: usize) -> usize {
    if len < 2 {
        return len;
    }
    let exponent = len.ilog2();
    let kept = exponent.ilog2() + 1;
    let mask = (1 << (exponent - kept)) - 1;
    (len + mask) & !mask
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_blob_is_longer_than_the_longest() {
        for raw_len in [0, 1, 31, 4096, 100_000, MAX_RAW_LEN] {
            assert_eq!(
                longest(BlobKind::Chunk, raw_len),
                FIXED_HEADER_LEN + padme(ENCODED_HEAD_LEN + raw_len) + TAG_LEN
            );
        }
        assert!(longest(BlobKind::Leaf, MAX_RAW_LEN) <= MAX_BLOB_LEN);
        assert_eq!(longest(BlobKind::Chunk, usize::MAX), longest(BlobKind::Chunk, MAX_RAW_LEN));
    }

    #[test]
    fn padme_follows_the_paper() {
        for (len, padded) in [(0, 0), (1, 1), (9, 10), (100, 104), (129, 144), (1000, 1024), (65_545, 67_584)] {
            assert_eq!(padme(len), padded, "{len}");
        }
        for len in 2..100_000 {
            let padded = padme(len);
            assert!(padded >= len && padded * 100 <= len * 112, "{len} {padded}");
            assert_eq!(padme(padded), padded);
        }
    }

    #[test]
    fn a_header_comes_back() {
        let refs = [Cid::of(b"a"), Cid::of(b"b")];
        let mut blob = Vec::new();
        write_header(&mut blob, BlobKind::Leaf, Suite::Aes256Gcm, 7, &refs);
        blob.extend_from_slice(&[0; ENCODED_HEAD_LEN + TAG_LEN]);
        let header = Header::parse(&blob).unwrap();
        assert_eq!((header.kind, header.suite, header.epoch), (BlobKind::Leaf, Suite::Aes256Gcm, 7));
        assert_eq!(header.refs().collect::<Vec<_>>(), refs);
        assert_eq!(header.len(), 14 + 64);
    }

    #[test]
    fn foreign_bytes_are_errors() {
        let mut blob = Vec::new();
        write_header(&mut blob, BlobKind::Chunk, Suite::ChaCha20Poly1305, 1, &[]);
        blob.extend_from_slice(&[0; ENCODED_HEAD_LEN + TAG_LEN]);
        for (at, value, error) in [
            (0, b'X', BlobError::Magic),
            (4, 9, BlobError::Unknown { what: "kind of blob", code: 9 }),
            (5, 0, BlobError::Unknown { what: "suite", code: 0 }),
            (10, 1, BlobError::Length(blob.len())),
            (12, 255, BlobError::References(255 << 16)),
        ] {
            let mut damaged = blob.clone();
            damaged[at] = value;
            assert_eq!(Header::parse(&damaged), Err(error), "byte {at}");
        }
        for len in 0..blob.len() {
            assert_eq!(Header::parse(&blob[..len]), Err(BlobError::Length(len)));
        }
    }

    #[test]
    fn padding_is_checked() {
        let mut encoded = Vec::new();
        write_encoded_head(&mut encoded, Codec::Raw, 3, 3);
        encoded.extend_from_slice(b"abc");
        let end = encoded.len();
        encoded.resize(padme(end), 0);
        assert_eq!(Encoded::parse(&encoded).unwrap().payload, b"abc");
        encoded.push(0);
        assert_eq!(Encoded::parse(&encoded), Err(BlobError::Encoding));
        encoded.resize(padme(100), 0);
        assert_eq!(Encoded::parse(&encoded), Err(BlobError::Encoding));
    }
}
