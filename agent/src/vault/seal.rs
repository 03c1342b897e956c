//! Plaintext to blob: compress, derive a key from the very bytes, encrypt, name.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;
use vsync_protocol::blob::{self, BlobKind, Codec, ENCODED_HEAD_LEN, FIXED_HEADER_LEN, TAG_LEN, padme};
use vsync_protocol::id::Cid;
use vsync_protocol::key::ContentKey;
use vsync_protocol::limits::{MAX_RAW_LEN, MAX_REFS};

use super::{Vault, associated_data, cipher, zero_nonce};

/// Level 1 is as small as level 3 on database pages and a quarter quicker.
const COMPRESSION_LEVEL: i32 = 1;

/// A blob, ready to be sent.
pub struct Sealed {
    /// Its name.
    pub cid: Cid,
    /// The key that opens it.
    pub ck: ContentKey,
    /// Its bytes.
    pub blob: Bytes,
}

/// Why a plaintext could not be sealed.
#[derive(Debug, Error)]
pub enum SealError {
    /// Longer than a blob may be, or more references.
    #[error("{bytes} bytes with {refs} references do not fit into a blob")]
    TooLong {
        /// Bytes of plaintext.
        bytes: usize,
        /// References.
        refs: usize,
    },
    /// The cipher refused; this does not happen with intact memory.
    #[error("encryption failed")]
    Cipher,
    /// zstd would not start.
    #[error("setting up compression failed")]
    Compressor(#[source] io::Error),
    /// What was compressed does not decompress to what it was.
    #[error("compressed data does not decode to what it was; memory or processor may be faulty")]
    Unfaithful,
}

/// Seals blobs on one thread; keeps the compressor's state between them.
pub struct Sealer {
    vault: Arc<Vault>,
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
    /// Where payloads are compressed to, and decompressed again: they grow to what the longest
    /// chunk needs and are never cleared.
    packed: Vec<u8>,
    check: Vec<u8>,
    /// Where blobs are made.
    buffer: Vec<u8>,
}

impl Sealer {
    /// A sealer for `vault`'s epoch.
    ///
    /// # Errors
    /// When zstd cannot be set up.
    pub fn new(vault: Arc<Vault>) -> Result<Self, SealError> {
        Ok(Self {
            vault,
            compressor: zstd::bulk::Compressor::new(COMPRESSION_LEVEL).map_err(SealError::Compressor)?,
            decompressor: zstd::bulk::Decompressor::new().map_err(SealError::Compressor)?,
            packed: Vec::new(),
            check: Vec::new(),
            buffer: Vec::new(),
        })
    }

    /// The vault that blobs are sealed for.
    #[must_use]
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Seals `plain` with references to `refs`.
    ///
    /// # Errors
    /// When it is too long, or what was encoded does not decode to `plain` again.
    pub fn seal(&mut self, kind: BlobKind, refs: &[Cid], plain: &[u8]) -> Result<Sealed, SealError> {
        if plain.len() > MAX_RAW_LEN || refs.len() > MAX_REFS {
            return Err(SealError::TooLong { bytes: plain.len(), refs: refs.len() });
        }
        let header_len = FIXED_HEADER_LEN + refs.len() * Cid::LEN;
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.clear();
        bytes.reserve(header_len + padme(ENCODED_HEAD_LEN + plain.len()) + TAG_LEN);
        blob::write_header(&mut bytes, kind, self.vault.suite, self.vault.epoch, refs);
        self.encode(plain, &mut bytes)?;

        let ck = self.vault.content_key(&bytes);
        let aad = associated_data(self.vault.realm, &bytes[..header_len]);
        let tag = cipher(self.vault.suite, &ck)
            .and_then(|key| key.seal_in_place_separate_tag(zero_nonce(), aad, &mut bytes[header_len..]))
            .map_err(|_| SealError::Cipher)?;
        bytes.extend_from_slice(tag.as_ref());
        Ok(Sealed { cid: Cid::of(&bytes), ck, blob: self.take(bytes) })
    }

    /// A blob waits for the network with just the room that its bytes need: one that kept the
    /// buffer of its plaintext would take many times of what it counts for.
    fn take(&mut self, buffer: Vec<u8>) -> Bytes {
        if buffer.len() >= buffer.capacity() / 8 * 7 {
            return buffer.into();
        }
        let blob = Bytes::copy_from_slice(&buffer);
        self.buffer = buffer;
        blob
    }

    /// Appends `plain`, compressed where that helps and padded, to `out`.
    fn encode(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        let head = out.len();
        // Room for less than the plaintext: what would not save 1/32 is kept as it is. zstd's
        // choices depend on the room that it has, so it is always exactly this.
        let room = at_least(&mut self.packed, plain.len() - plain.len() / 32);
        let compressed = self.compressor.compress_to_buffer(plain, room).ok();
        let (codec, payload) = match compressed {
            Some(len) => {
                let check = at_least(&mut self.check, plain.len());
                verify(&mut self.decompressor, &self.packed[..len], plain, check)?;
                (Codec::Zstd, &self.packed[..len])
            }
            None => (Codec::Raw, plain),
        };
        blob::write_encoded_head(out, codec, plain.len() as u32, payload.len() as u32);
        out.extend_from_slice(payload);
        out.resize(head + padme(ENCODED_HEAD_LEN + payload.len()), 0);
        Ok(())
    }
}

/// The first `len` bytes of `buffer`, whatever they hold.
fn at_least(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    &mut buffer[..len]
}

/// Encoders have lost data before: what does not decode is never uploaded.
fn verify(
    decompressor: &mut zstd::bulk::Decompressor<'_>,
    payload: &[u8],
    plain: &[u8],
    check: &mut [u8],
) -> Result<(), SealError> {
    match decompressor.decompress_to_buffer(payload, check) {
        Ok(len) if check[..len] == *plain => Ok(()),
        _ => Err(SealError::Unfaithful),
    }
}
