//! POSIX access control lists: the kernel's binary form, and the text that archives carry.
//!
//! ```text
//! binary   version 2 as u32, then for each entry: tag u16, permissions u16, id u32; little endian
//! text     user::rw- ⏎ user:1000:r-- ⏎ group::r-- ⏎ mask::r-- ⏎ other::r--
//! ```

use std::fmt::Write as _;

/// Attribute that holds the list which decides on access.
pub(crate) const ACCESS: &[u8] = b"system.posix_acl_access";

/// Attribute of a directory that holds the list which new entries get.
pub(crate) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
const ENTRY_LEN: usize = 8;

/// Tags, in the order in which the kernel wants them.
const TAGS: [(u16, &str, bool); 6] = [
    (0x01, "user", false),
    (0x02, "user", true),
    (0x04, "group", false),
    (0x08, "group", true),
    (0x10, "mask", false),
    (0x20, "other", false),
];

/// The text of a list in the kernel's form, with numbers for names; `None` if it is none.
#[must_use]
pub(crate) fn to_text(binary: &[u8]) -> Option<String> {
    let (version, entries) = binary.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || entries.len() % ENTRY_LEN != 0 {
        return None;
    }
    let mut text = String::new();
    for entry in entries.chunks_exact(ENTRY_LEN) {
        let [tag_low, tag_high, low, high, id @ ..] = entry else { return None };
        let (tag, permissions) = (u16::from_le_bytes([*tag_low, *tag_high]), u16::from_le_bytes([*low, *high]));
        let id = u32::from_le_bytes(id.try_into().ok()?);
        let (_, word, named) = TAGS.into_iter().find(|(known, ..)| *known == tag)?;
        let id = if named { id.to_string() } else { String::new() };
        let bit = |bit: u16, letter: char| if permissions & bit == 0 { '-' } else { letter };
        let _ = writeln!(text, "{word}:{id}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x'));
    }
    Some(text)
}

/// The kernel's form of a list in text; a name that is no number is looked up with `lookup`, which is
/// told whether it is a group.
///
/// # Errors
/// With what cannot be understood, as text.
pub(crate) fn from_text(text: &str, lookup: impl Fn(&str, bool) -> Option<u32>) -> Result<Vec<u8>, String> {
    let mut entries = Vec::new();
    for line in text.split(['\n', ',']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            entries.push(entry(line, &lookup).ok_or_else(|| line.to_owned())?);
        }
    }
    // The kernel refuses lists in any other order.
    entries.sort_unstable();
    let mut binary = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        binary.extend_from_slice(&tag.to_le_bytes());
        binary.extend_from_slice(&permissions.to_le_bytes());
        binary.extend_from_slice(&id.to_le_bytes());
    }
    Ok(binary)
}

fn entry(line: &str, lookup: &impl Fn(&str, bool) -> Option<u32>) -> Option<(u16, u32, u16)> {
    let mut fields = line.split(':');
    let (word, name, letters) = (fields.next()?, fields.next()?, fields.next()?);
    let word = match word {
        "u" => "user",
        "g" => "group",
        "m" => "mask",
        "o" => "other",
        word => word,
    };
    let (tag, _, named) = TAGS.into_iter().find(|(_, known, named)| *known == word && *named != name.is_empty())?;
    let id = match (named, fields.next()) {
        (false, _) => NO_ID,
        // Solaris and star write the number behind.
        (true, Some(number)) if number.parse::<u32>().is_ok() => number.parse().ok()?,
        (true, _) => name.parse().ok().or_else(|| lookup(name, word == "group"))?,
    };
    let mut permissions = 0;
    for letter in letters.trim().chars() {
        permissions |= match letter {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return None,
        };
    }
    Some((tag, id, permissions))
}

/// The number of a user or group of this machine.
#[must_use]
pub(crate) fn of_this_machine(name: &str, group: bool) -> Option<u32> {
    let file = if group { "/etc/group" } else { "/etc/passwd" };
    let text = std::fs::read_to_string(file).ok()?;
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.first() == Some(&name))?.get(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let text = "user::rwx\nuser:1000:r--\ngroup::r-x\ngroup:4000000000:---\nmask::r-x\nother::--x\n";
        let binary = from_text(text, |_, _| None).unwrap();
        assert_eq!(binary.len(), 4 + 6 * 8);
        assert_eq!(to_text(&binary).unwrap(), text);
        let star = "other::--x,mask::r-x,user::rwx,user:joe:r--:1000,group:staff:---,group::r-x";
        let lookup = |name: &str, group: bool| (name == "staff" && group).then_some(4_000_000_000);
        assert_eq!(from_text(star, lookup).unwrap(), binary);
    }

    #[test]
    fn what_is_no_list_is_named() {
        for bad in ["user:joe:r--", "user::rwz", "nobody::r--", "user", "mask:5:r--"] {
            assert_eq!(from_text(bad, |_, _| None), Err(bad.to_owned()));
        }
        assert_eq!(to_text(&[2, 0, 0, 0, 9, 0, 1, 0, 0, 0, 0, 0]), None);
        assert_eq!(to_text(&[3, 0, 0, 0]), None);
        assert_eq!(to_text(b"x"), None);
    }
}
