//! Blob to plaintext. Nothing is returned that has not passed every check.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use vsync_protocol::blob::{BlobError, BlobKind, Codec, ENCODED_HEAD_LEN, Encoded, Header, TAG_LEN};
use vsync_protocol::id::Cid;
use vsync_protocol::limits::MAX_WINDOW_LOG;
use vsync_protocol::tree::Child;

use crate::tree::{Node, Reference};

use super::{Vault, associated_data, cipher, zero_nonce};

/// Why a blob could not be opened: it is damaged, or not the one that its parent means.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The bytes do not hash to the blob's name.
    #[error("its bytes are not what its name says")]
    Name,
    /// The envelope is wrong.
    #[error(transparent)]
    Envelope(#[from] BlobError),
    /// A blob of another kind.
    #[error("it is of kind {found:?} where {expected:?} was expected")]
    Kind {
        /// What the parent means.
        expected: BlobKind,
        /// What it is.
        found: BlobKind,
    },
    /// The tag does not fit, or the key is not the one for this content.
    #[error("it does not decrypt with the key that its parent gives")]
    Decryption,
    /// It was sealed in an epoch whose secret is not at hand.
    #[error("it belongs to key epoch {0}, whose secret this machine does not hold")]
    Epoch(u32),
    /// It decrypts, but its payload does not decode to the length that its parent gives.
    #[error("its payload does not decode")]
    Payload,
    /// zstd could not be set up.
    #[error("setting up decompression failed")]
    Decompressor(#[source] io::Error),
}

/// Opens blobs on one thread.
pub struct Opener {
    vault: Arc<Vault>,
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl Opener {
    /// An opener for blobs of `vault`'s realm and epoch.
    ///
    /// # Errors
    /// When zstd cannot be set up.
    pub fn new(vault: Arc<Vault>) -> Result<Self, OpenError> {
        let mut decompressor = zstd::bulk::Decompressor::new().map_err(OpenError::Decompressor)?;
        decompressor
            .set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(MAX_WINDOW_LOG))
            .map_err(OpenError::Decompressor)?;
        Ok(Self { vault, decompressor })
    }

    /// Opens a tree node.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_node(&mut self, kind: BlobKind, node: &Reference, blob: Vec<u8>) -> Result<Node, OpenError> {
        let refs = Header::parse(&blob)?.refs().collect();
        Ok(Node { refs, payload: self.open(kind, node.cid, &node.child, blob)? })
    }

    /// Opens `blob`, which must be the one named `cid` and described by `child`.
    /// The buffer is decrypted in place.
    ///
    /// # Errors
    /// When anything about it is not exactly as it was sealed.
    pub fn open(&mut self, kind: BlobKind, cid: Cid, child: &Child, mut blob: Vec<u8>) -> Result<Vec<u8>, OpenError> {
        if Cid::of(&blob) != cid {
            return Err(OpenError::Name);
        }
        let header = Header::parse(&blob)?;
        if header.kind != kind {
            return Err(OpenError::Kind { expected: kind, found: header.kind });
        }
        if header.epoch != self.vault.epoch {
            return Err(OpenError::Epoch(header.epoch));
        }
        let (suite, header_len) = (header.suite, header.len());
        let aad = associated_data(self.vault.realm, &blob[..header_len]);
        cipher(suite, &child.ck)
            .and_then(|key| key.open_in_place(zero_nonce(), aad, &mut blob[header_len..]).map(|_| ()))
            .map_err(|_| OpenError::Decryption)?;
        blob.truncate(blob.len() - TAG_LEN);
        // The cipher does not commit to its key; deriving the key again does.
        if self.vault.content_key(&blob) != child.ck {
            return Err(OpenError::Decryption);
        }
        self.decode(blob, header_len, child.raw_len as usize)
    }

    /// Takes the payload out of a decrypted blob whose `encoded` begins at `start`.
    fn decode(&mut self, mut blob: Vec<u8>, start: usize, expected: usize) -> Result<Vec<u8>, OpenError> {
        let encoded = Encoded::parse(&blob[start..])?;
        if encoded.raw_len != expected {
            return Err(OpenError::Payload);
        }
        match encoded.codec {
            Codec::Raw => {
                // Moved to the front of the buffer that is there: no other is needed.
                let payload = start + ENCODED_HEAD_LEN;
                blob.copy_within(payload..payload + expected, 0);
                blob.truncate(expected);
                Ok(blob)
            }
            Codec::Zstd => {
                let mut plain = vec![0; expected];
                match self.decompressor.decompress_to_buffer(encoded.payload, &mut plain[..]) {
                    Ok(len) if len == expected => Ok(plain),
                    _ => Err(OpenError::Payload),
                }
            }
        }
    }
}
