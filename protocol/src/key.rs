//! The key of one blob.

use std::fmt;

use minicbor::{Decode, Decoder, Encode, Encoder};

/// Opens one blob and nothing else: a keyed hash of what the blob holds, so that the same content has the same key on
/// every machine of a realm. A secret: it is never shown, and compared in constant time.
#[derive(Clone, Copy)]
pub struct ContentKey([u8; Self::LEN]);

impl ContentKey {
    /// Length in bytes.
    pub const LEN: usize = 32;

    /// Wraps bytes that are known to be such a key.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// Reads the key from a slice of exactly [`Self::LEN`] bytes.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The key's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl PartialEq for ContentKey {
    fn eq(&self, other: &Self) -> bool {
        // This comparison takes the same time whatever it finds.
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }
}

impl Eq for ContentKey {}

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentKey(hidden)")
    }
}

impl<C> Encode<C> for ContentKey {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for ContentKey {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        let message = || minicbor::decode::Error::message("a content key has another length").at(at);
        Self::from_slice(d.bytes()?).ok_or_else(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_travels_as_bytes_and_is_never_shown() {
        let key = ContentKey::from_bytes([0xab; 32]);
        let bytes = minicbor::to_vec(key).unwrap();
        assert_eq!(bytes, [&[0x58, 32][..], &[0xab; 32]].concat());
        assert_eq!(minicbor::decode::<ContentKey>(&bytes).unwrap(), key);
        assert!(minicbor::decode::<ContentKey>(&[0x41, 0xab]).is_err());
        assert_ne!(key, ContentKey::from_bytes([0xac; 32]));
        assert_eq!(format!("{key:?}"), "ContentKey(hidden)");
    }
}
