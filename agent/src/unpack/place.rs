//! Names in an archive: whether they stay where they shall be unpacked.

use vsync_protocol::tree::EntryPath;

use super::ArchiveError;

/// Where a member goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MemberPath(pub(super) EntryPath);

/// The place of a member called `name`, without its first `strip` components; `None` if nothing is
/// left of it.
pub(super) fn of_member(name: &[u8], strip: usize) -> Result<Option<MemberPath>, ArchiveError> {
    let refused = |problem: &'static str| {
        let name = name.escape_ascii().to_string();
        Err(ArchiveError::Name { name, problem: problem.to_owned() })
    };
    if name.starts_with(b"/") {
        return refused("it is absolute");
    }
    let parts: Vec<&[u8]> = name.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.iter().any(|part| *part == b"..") {
        return refused("it goes up, with `..`");
    }
    if strip > 0 && parts.len() <= strip {
        return Ok(None);
    }
    match EntryPath::new(parts.get(strip..).unwrap_or_default().join(&b'/')) {
        Ok(path) => Ok(Some(MemberPath(path))),
        Err(error) => {
            let name = name.escape_ascii().to_string();
            Err(ArchiveError::Name { name, problem: error.to_string() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_below_the_target_or_refused() {
        let place = |name: &str, strip| of_member(name.as_bytes(), strip).unwrap().map(|place| place.0.to_string());
        for (name, strip, expected) in [
            ("./a/b", 0, Some("a/b")),
            ("a//b/", 0, Some("a/b")),
            ("backup/volume/x", 2, Some("x")),
            ("backup", 1, None),
        ] {
            assert_eq!(place(name, strip).as_deref(), expected, "{name}");
        }
        assert!(of_member(b"./", 0).unwrap().unwrap().0.is_root());
        for bad in ["/etc/passwd", "../x", "a/../../x", "a/..", "a\0b"] {
            assert!(matches!(of_member(bad.as_bytes(), 0), Err(ArchiveError::Name { .. })), "{bad}");
        }
    }
}
