//! Extended headers: records of `LENGTH KEY=VALUE⏎`, whose values may hold any byte.

use vsync_protocol::tree::{Time, Xattr};

use super::ArchiveError;
use crate::acl;

/// What extended headers say of an entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: Sparse,
    /// What could not be taken over, in words.
    pub(super) lost: Vec<String>,
}

/// What they say of holes, in GNU's three formats.
#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// Bytes of the file with its holes.
    pub(super) size: Option<u64>,
    /// Offset and length by turns, of formats 0.0 and 0.1.
    pub(super) map: Vec<u64>,
}

impl Sparse {
    /// Whether the content begins with its map (format 1.0).
    pub(super) fn is_inline(&self) -> bool {
        self.major == Some(1) && self.minor == Some(0)
    }
}

impl Pax {
    /// Adds the records of an extended header.
    pub(super) fn read(&mut self, mut records: &[u8]) -> Result<(), ArchiveError> {
        while !records.iter().all(|&byte| byte == 0) {
            let (key, value, rest) = record(records).ok_or(ArchiveError::Extension)?;
            self.set(key, value)?;
            records = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveError> {
        let text = || std::str::from_utf8(value).map_err(|_| ArchiveError::Extension);
        let number = || text()?.parse::<u64>().map_err(|_| ArchiveError::Extension);
        // An empty value takes back what a global header said.
        match (key, value) {
            (b"path", _) => self.path = some(value),
            (b"linkpath", _) => self.link = some(value),
            (b"size" | b"uid" | b"gid" | b"mtime", b"") => {}
            (b"size", _) => self.size = Some(number()?),
            (b"uid", _) => self.uid = Some(number()?),
            (b"gid", _) => self.gid = Some(number()?),
            (b"mtime", _) => self.mtime = Some(time(text()?).ok_or(ArchiveError::Extension)?),
            (b"SCHILY.acl.access", _) => self.list(acl::ACCESS, text()?),
            (b"SCHILY.acl.default", _) => self.list(acl::DEFAULT, text()?),
            (b"GNU.sparse.major", _) => self.sparse.major = Some(number()?),
            (b"GNU.sparse.minor", _) => self.sparse.minor = Some(number()?),
            (b"GNU.sparse.name", _) => self.sparse.name = some(value),
            (b"GNU.sparse.realsize" | b"GNU.sparse.size", _) => self.sparse.size = Some(number()?),
            (b"GNU.sparse.offset" | b"GNU.sparse.numbytes", _) => self.sparse.map.push(number()?),
            (b"GNU.sparse.map", _) => {
                let numbers = text()?.split(',').filter(|part| !part.is_empty()).map(str::parse);
                self.sparse.map = numbers.collect::<Result<_, _>>().map_err(|_| ArchiveError::Extension)?;
            }
            (key, _) => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attribute(name, value);
                }
            }
        }
        Ok(())
    }

    fn attribute(&mut self, name: &[u8], value: &[u8]) {
        // Labels of a security module are the system's, not the volume's.
        let ours = name.starts_with(b"user.")
            || name.starts_with(b"trusted.")
            || matches!(name, b"security.capability" | acl::ACCESS | acl::DEFAULT);
        if ours && self.xattrs.iter().all(|xattr| xattr.name != name) {
            self.xattrs.push(Xattr { name: name.to_vec(), value: value.to_vec() });
        }
    }

    fn list(&mut self, name: &[u8], text: &str) {
        self.xattrs.retain(|xattr| xattr.name != name);
        match acl::from_text(text, acl::of_this_machine) {
            Ok(value) => self.xattrs.push(Xattr { name: name.to_vec(), value }),
            Err(entry) => self.lost.push(format!("access control list: this machine does not understand {entry:?}")),
        }
    }
}

fn some(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

/// The first record: key, value, and what follows.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = records.iter().take(20).position(|&byte| byte == b' ')?;
    let len: usize = std::str::from_utf8(&records[..blank]).ok()?.parse().ok()?;
    let (line, rest) = records.split_at_checked(len)?;
    let line = line.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = line.iter().position(|&byte| byte == b'=')?;
    Some((&line[..equals], &line[equals + 1..], rest))
}

/// A decimal time; digits beyond nanoseconds are dropped.
fn time(text: &str) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: u32 =
        if digits.bytes().all(|digit| digit.is_ascii_digit()) { digits.parse().ok()? } else { return None };
    let seconds: i64 = whole.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some(Time { seconds: seconds.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(Time { seconds, nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_any_byte() {
        let mut pax = Pax::default();
        let record = |key: &[u8], value: &[u8]| {
            let body = [b" ".as_slice(), key, b"=", value, b"\n"].concat();
            let len = (1..).find(|len: &usize| len.to_string().len() + body.len() == *len).unwrap();
            [len.to_string().into_bytes(), body].concat()
        };
        let records = [
            record(b"SCHILY.xattr.user.a", b"\n\0=\xff"),
            record(b"SCHILY.xattr.security.selinux", b"x"),
            record(b"path", b"a\nb"),
            record(b"mtime", b"-0.5"),
        ];
        pax.read(&records.concat()).unwrap();
        assert_eq!(pax.xattrs, [Xattr { name: b"user.a".to_vec(), value: b"\n\0=\xff".to_vec() }]);
        assert_eq!(pax.path.as_deref(), Some(b"a\nb".as_slice()));
        assert_eq!(pax.mtime, Some(Time { seconds: -1, nanos: 500_000_000 }));
    }

    #[test]
    fn times_of_all_forms() {
        for (text, seconds, nanos) in
            [("5", 5, 0), ("1.000000005", 1, 5), ("-0.999999999", -1, 1), ("0.12", 0, 120_000_000), ("-5", -5, 0)]
        {
            assert_eq!(time(text), Some(Time { seconds, nanos }), "{text}");
        }
        assert_eq!((time("x"), time("1.x")), (None, None));
    }
}
