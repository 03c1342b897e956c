//! A snapshot's description: records in path order, cut into nodes.

pub mod node;
pub mod path;
pub mod record;

pub use node::{Child, ChildSummary, Inner, Leaf, Root, Subtree, VolumeInfo};
pub use path::{EntryPath, PathError};
pub use record::{Entry, EntryKind, Extent, Record, Time, Xattr};
