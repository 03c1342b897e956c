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
