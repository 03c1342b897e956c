//! What tests of this crate share.

use bytes::Bytes;
use vsync_protocol::blob::{BlobKind, ENCODED_HEAD_LEN, Suite, TAG_LEN, write_header};
use vsync_protocol::id::Cid;

/// A blob as the server sees one: a header, and bytes that nobody here can open.
pub(crate) fn blob(kind: BlobKind, refs: &[Cid], content: &[u8]) -> Bytes {
    let mut blob = Vec::new();
    write_header(&mut blob, kind, Suite::ChaCha20Poly1305, 1, refs);
    blob.extend_from_slice(content);
    blob.extend_from_slice(&[0; ENCODED_HEAD_LEN + TAG_LEN]);
    blob.into()
}

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
