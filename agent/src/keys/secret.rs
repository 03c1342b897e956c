//! 32 secret bytes: wiped on drop, neither cloned, compared nor printed by accident.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error};
use zeroize::Zeroizing;

/// 32 secret bytes.
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// Wraps bytes that are known to be secret.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Fresh bytes from the operating system.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *bytes)?;
        Ok(Self(bytes))
    }

    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        if text.len() != 2 * bytes.len() {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digit = |at: usize| char::from(digits[at]).to_digit(16);
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
        }
        Some(Self(bytes))
    }

    /// The bytes as 64 hexadecimal digits, for key files.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        // Reserved in full, so that growing leaves no copy behind.
        let mut text = Zeroizing::new(String::with_capacity(2 * self.0.len()));
        for nibble in self.0.iter().flat_map(|byte| [byte >> 4, byte & 15]) {
            text.extend(char::from_digit(nibble.into(), 16));
        }
        text
    }

    /// The bytes themselves.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("..")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Self::from_hex(&text).ok_or_else(|| D::Error::custom("expected 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_comes_back_and_nothing_else_is_accepted() {
        let secret = Secret::random().unwrap();
        let hex = secret.to_hex();
        assert_eq!(Secret::from_hex(&hex).unwrap().expose(), secret.expose());
        for bad in [&hex[1..], "", &"g".repeat(64), &"é".repeat(32)] {
            assert!(Secret::from_hex(bad).is_none(), "{bad}");
        }
        assert_eq!(format!("{secret:?}"), "..");
    }
}
