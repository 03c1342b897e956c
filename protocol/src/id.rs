//! Names of things: fixed-size identifiers and the checked names of machines and volumes.

use std::fmt;
use std::str::FromStr;

use minicbor::{Decode, Decoder, Encode, Encoder};
use thiserror::Error;

macro_rules! opaque_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// Wraps bytes that are known to be such an identifier.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// Reads the identifier from a slice of exactly [`Self::LEN`] bytes.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// The identifier's bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = NotHex;

            fn from_str(text: &str) -> Result<Self, NotHex> {
                let mut bytes = [0; $len];
                parse_hex(text, &mut bytes).map(|()| Self(bytes))
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let at = d.position();
                Self::from_slice(d.bytes()?).ok_or_else(|| {
                    minicbor::decode::Error::message(concat!(stringify!($name), " has another length")).at(at)
                })
            }
        }
    };
}

opaque_id! {
    /// Names a blob: BLAKE3 of its bytes as stored and as sent.
    Cid, 32
}
opaque_id! {
    /// Recognises a plaintext on the machines that hold the realm's writer secret:
    /// the first 16 bytes of keyed BLAKE3. Never leaves sealed records.
    Pid, 16
}
opaque_id! {
    /// Names a realm; derived from its root secret, public.
    RealmId, 16
}
opaque_id! {
    /// Names a snapshot: the first 16 bytes of its manifest's hash.
    SnapshotId, 16
}
opaque_id! {
    /// BLAKE3 of a whole manifest as stored.
    ManifestHash, 32
}
opaque_id! {
    /// A job that an agent told a server of, chosen at random.
    JobId, 16
}
opaque_id! {
    /// State of the realm's log after an entry: a hash over everything before it.
    LogHead, 32
}
opaque_id! {
    /// Ed25519 public key of a machine.
    MachineKey, 32
}
opaque_id! {
    /// Names a pack file: BLAKE3 of its record table.
    PackId, 32
}

impl Cid {
    /// Names `blob`, which must be the blob's bytes in full.
    #[must_use]
    pub fn of(blob: &[u8]) -> Self {
        Self(*blake3::hash(blob).as_bytes())
    }
}

impl SnapshotId {
    /// The eight hexadecimal digits by which people know a snapshot.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

impl From<ManifestHash> for SnapshotId {
    fn from(hash: ManifestHash) -> Self {
        let mut id = [0; Self::LEN];
        id.copy_from_slice(&hash.as_bytes()[..Self::LEN]);
        Self(id)
    }
}

/// The text is not the hexadecimal form of the identifier asked for.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("expected {expected} hexadecimal digits")]
pub struct NotHex {
    /// How many digits the identifier has.
    pub expected: usize,
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn parse_hex(text: &str, into: &mut [u8]) -> Result<(), NotHex> {
    let wrong = NotHex { expected: into.len() * 2 };
    if text.len() != into.len() * 2 || !text.is_ascii() {
        return Err(wrong);
    }
    for (byte, digits) in into.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        match (digit(digits[0]), digit(digits[1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return Err(wrong),
        }
    }
    Ok(())
}

/// Why a text cannot name a realm, a machine or a volume.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{what} name {name:?} must be 1 to 128 letters, digits, '_', '.' or '-', beginning with a letter or digit")]
pub struct BadName {
    /// "realm", "machine" or "volume".
    pub what: &'static str,
    /// The offending text.
    pub name: String,
}

fn is_name(text: &str) -> bool {
    // Docker's own rule for volume names, with a bound on the length.
    (1..=128).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                if is_name(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(BadName { what: $what, name: text.to_owned() })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.str(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let at = d.position();
                d.str()?.parse().map_err(|_| minicbor::decode::Error::message(concat!("bad ", $what, " name")).at(at))
            }
        }
    };
}

name! {
    /// The machines that share one configuration and one set of secrets.
    RealmName, "realm"
}
name! {
    /// A machine of the realm, client or server.
    MachineName, "machine"
}
name! {
    /// A volume: a Docker volume, a directory, or a stream that was given a name.
    VolumeName, "volume"
}
