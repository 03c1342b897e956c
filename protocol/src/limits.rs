//! Every bound of the formats and the wire, with its reason. A length that comes from
//! outside is compared with one of these before anything is allocated.

use crate::blob::{ENCODED_HEAD_LEN, FIXED_HEADER_LEN, TAG_LEN, padme};

/// Longest plaintext of a blob: a chunk, or the payload of a tree node.
pub const MAX_RAW_LEN: usize = 8 << 20;

/// Most children of a tree node; one record then still fits beside them.
pub const MAX_REFS: usize = 65_536;

/// Longest blob: an incompressible chunk, its envelope and padding, and its references.
pub const MAX_BLOB_LEN: usize = MAX_RAW_LEN + (512 << 10) + MAX_REFS * 32;

/// Longest control message on the wire.
pub const MAX_MESSAGE_LEN: usize = 1 << 20;

/// Most blobs named in one `Have` or `Fetch`: 32 KiB of names.
pub const MAX_CIDS: usize = 1024;

/// Most snapshots named in one `Forget`, and most verdicts in one plan.
pub const MAX_VERDICTS: usize = 1024;

/// Longest reason of a failed job, in bytes: one line that fits into a message to a person.
pub const MAX_JOB_MESSAGE: usize = 500;

/// Longest program version that a job names.
pub const MAX_JOB_VERSION: usize = 64;

/// Most jobs of one connection that are under way; a verification has one for each volume.
pub const MAX_OPEN_JOBS: usize = 1024;

/// Most volumes in one overview: with the longest reasons, still one message.
pub const MAX_STANDINGS: usize = 500;

/// Most sizes of each volume in an overview.
pub const MAX_TREND: usize = 16;

/// Longest manifest, sealed part included.
pub const MAX_MANIFEST_LEN: usize = 256 << 10;

/// Deepest tree: with at least two children a node, no volume needs more.
pub const MAX_TREE_DEPTH: usize = 16;

/// Most chunks and holes in one extent record.
pub const MAX_EXTENTS: usize = 64;

/// Longest name of a file, as on Linux.
pub const MAX_NAME_LEN: usize = 255;

/// Longest path inside a volume. Linux has no bound for paths walked step by step;
/// this one keeps a record well below a node's size.
pub const MAX_PATH_LEN: usize = 256 << 10;

/// Most defects that a snapshot lists by name; the rest is counted.
pub const MAX_DEFECTS: usize = 1000;

/// Upload streams of one session.
pub const MAX_UPLOAD_STREAMS: u32 = 16;

/// Largest zstd window a payload may ask for, as a power of two.
pub const MAX_WINDOW_LOG: u32 = 23;

const _: () = assert!(MAX_CIDS * 32 < MAX_MESSAGE_LEN && MAX_MANIFEST_LEN < MAX_MESSAGE_LEN);

/// The longest plaintext, padded, with the most references, is a blob that may be sent.
const LONGEST_BLOB: usize = FIXED_HEADER_LEN + MAX_REFS * 32 + padme(ENCODED_HEAD_LEN + MAX_RAW_LEN) + TAG_LEN;
const _: () = assert!(LONGEST_BLOB <= MAX_BLOB_LEN);
