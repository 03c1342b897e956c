//! Words that tests of this crate share.

/// Compares bytes with what `pinned` says of them: lines `name: hex`, and `#` before a comment.
pub(crate) fn assert_golden(found: &[(&str, Vec<u8>)], pinned: &str) {
    let mut pinned = pinned.lines().filter(|line| !line.starts_with('#'));
    for (name, bytes) in found {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = pinned.next().unwrap_or("(no such line)");
        assert_eq!(format!("{name}: {hex}"), line, "{name} is not what older versions read and write");
    }
    assert_eq!(pinned.next(), None, "pinned, but not made any more");
}
