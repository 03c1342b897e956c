//! Values to bytes, for the disk, the wire and hashes.

use minicbor::Encode;

/// `value` in the only form that is written of it.
#[must_use]
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_into(value, &mut bytes);
    bytes
}

/// Appends `value` to `bytes`.
///
/// # Panics
/// Never. A vector takes every byte, and no type of vsync refuses one of its values. If one did,
/// to stop is better than to hash or to store something else.
pub fn encode_into<T: Encode<()>>(value: &T, bytes: &mut Vec<u8>) {
    minicbor::encode(value, bytes).expect("a vector takes every byte");
}
