//! Paths inside a volume: bytes, relative, checked once.

use std::cmp::Ordering;
use std::fmt;

use minicbor::{Decode, Decoder, Encode, Encoder};
use thiserror::Error;

use crate::limits::{MAX_NAME_LEN, MAX_PATH_LEN};

/// A path relative to the volume's root: names of 1 to 255 bytes, none of them `.` or
/// `..`, joined by `/`. The empty path is the root itself.
///
/// Ordered component by component, each bytewise: a directory comes right before what is
/// in it, and all of that before its next sibling.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct EntryPath(Vec<u8>);

/// Why bytes are not a path inside a volume.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{reason} in path \"{}\"", .path.escape_ascii())]
pub struct PathError {
    /// What is wrong.
    pub reason: &'static str,
    /// The offending bytes.
    pub path: Vec<u8>,
}

impl EntryPath {
    /// The volume's root.
    #[must_use]
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// Checks `bytes` and takes them as a path.
    ///
    /// # Errors
    /// When a component is empty, too long, `.`, `..`, or holds a NUL.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, PathError> {
        let path = bytes.into();
        let problem = if path.is_empty() {
            None
        } else if path.len() > MAX_PATH_LEN {
            Some("too many bytes")
        } else {
            path.split(|&byte| byte == b'/').find_map(name_problem)
        };
        match problem {
            None => Ok(Self(path)),
            Some(reason) => Err(PathError { reason, path }),
        }
    }

    /// The path of `name` inside this directory.
    ///
    /// # Errors
    /// When `name` is not one component of a path.
    pub fn child(&self, name: &[u8]) -> Result<Self, PathError> {
        let mut path = Vec::with_capacity(self.0.len() + 1 + name.len());
        path.extend_from_slice(&self.0);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        match name_problem(name) {
            Some(reason) => Err(PathError { reason, path }),
            None if path.len() > MAX_PATH_LEN => Err(PathError { reason: "too many bytes", path }),
            None => Ok(Self(path)),
        }
    }

    /// The path's bytes, without a leading slash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the volume's root.
    #[must_use]
    pub const fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The components from the root down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&byte| byte == b'/').filter(|name| !name.is_empty())
    }

    /// The last component; empty for the root.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }

    /// The directory that holds this entry; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        Some(Self(self.0[..end].to_vec()))
    }

    /// Whether this is `ancestor` itself or lies below it.
    #[must_use]
    pub fn is_within(&self, ancestor: &Self) -> bool {
        ancestor.is_root()
            || self.0.strip_prefix(ancestor.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }
}

fn name_problem(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" => Some("empty name"),
        b"." | b".." => Some("'.' or '..'"),
        _ if name.len() > MAX_NAME_LEN => Some("name of more than 255 bytes"),
        _ if name.contains(&0) => Some("NUL byte"),
        _ if name.contains(&b'/') => Some("'/' in a name"),
        _ => None,
    }
}

impl Ord for EntryPath {
    fn cmp(&self, other: &Self) -> Ordering {
        // Equal to comparing components: '/' sorts below every byte that a name may hold.
        let rank = |&byte: &u8| if byte == b'/' { 0 } else { byte };
        self.0.iter().map(rank).cmp(other.0.iter().map(rank))
    }
}

impl PartialOrd for EntryPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Printable whatever the bytes: control characters and bytes that are not UTF-8 are escaped.
impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() || is_bidi_control(c) || c == '\\' {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

/// Characters that reorder the text around them on a terminal.
const fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntryPath(\"{}\")", self.0.escape_ascii())
    }
}

impl<C> Encode<C> for EntryPath {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for EntryPath {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        Self::new(d.bytes()?).map_err(|error| minicbor::decode::Error::message(error.reason).at(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> EntryPath {
        EntryPath::new(text).unwrap()
    }

    #[test]
    fn a_directory_is_followed_by_its_content() {
        let sorted = ["", "a", "a/b", "a/b/c", "a/c", "a!", "a.b", "ab", "b"].map(path);
        assert!(sorted.is_sorted(), "{sorted:?}");
    }

    #[test]
    fn paths_that_could_escape_are_refused() {
        for bad in ["/a", "a/", "a//b", ".", "..", "a/../b", "a/.", "a\0b"] {
            assert!(EntryPath::new(bad).is_err(), "{bad:?}");
        }
        assert!(EntryPath::new(vec![b'a'; 256]).is_err());
        assert!(path("d").child(b"..").is_err() && path("d").child(b"x/y").is_err());
    }

    #[test]
    fn what_is_printed_cannot_drive_a_terminal() {
        assert_eq!(EntryPath::new(*b"a\x1b[31m\n\xff").unwrap().to_string(), "a\\u{1b}[31m\\n\\xff");
        assert_eq!(path("größe").to_string(), "größe");
    }

    #[test]
    fn relations() {
        assert!(path("a/b").is_within(&path("a")) && path("a").is_within(&path("a")));
        assert!(!path("ab").is_within(&path("a")));
        assert_eq!(path("a/b").parent(), Some(path("a")));
        assert_eq!(path("a").parent(), Some(EntryPath::root()));
        assert_eq!(path("a/b").name(), b"b");
    }
}
