//! Ed25519 public keys in the form that TLS carries them (RFC 8410, RFC 7250).

use crate::id::MachineKey;

/// `SEQUENCE { SEQUENCE { OID 1.3.101.112 }, BIT STRING }` up to the key itself.
const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The SubjectPublicKeyInfo of `key`.
#[must_use]
pub fn encode(key: MachineKey) -> Vec<u8> {
    [PREFIX.as_slice(), key.as_bytes()].concat()
}

/// The key in a SubjectPublicKeyInfo; `None` when it holds anything but an Ed25519 key.
#[must_use]
pub fn decode(spki: &[u8]) -> Option<MachineKey> {
    MachineKey::from_slice(spki.strip_prefix(&PREFIX)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ed25519_keys_come_back() {
        let key = MachineKey::from_bytes([7; 32]);
        let mut spki = encode(key);
        assert_eq!(decode(&spki), Some(key));
        spki[8] ^= 1;
        assert_eq!(decode(&spki), None);
        assert_eq!(decode(&[]), None);
    }
}
