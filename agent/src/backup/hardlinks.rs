//! Names of one inode: the first that the walk meets carries the content.

use std::collections::HashMap;

use vsync_protocol::tree::{EntryKind, EntryPath};

use crate::volume::Found;

/// Inodes with several names, of which not all have been met.
#[derive(Default)]
pub(super) struct HardLinks {
    open: HashMap<(u64, u64), (EntryPath, u32)>,
}

impl HardLinks {
    /// The earlier path of the same inode, if there was one.
    pub(super) fn earlier(&mut self, found: &Found) -> Option<EntryPath> {
        if found.links < 2 || found.entry.kind == EntryKind::Directory {
            return None;
        }
        let inode = (found.device, found.entry.inode);
        let Some((path, left)) = self.open.get_mut(&inode) else {
            self.open.insert(inode, (found.entry.path.clone(), found.links - 1));
            return None;
        };
        let earlier = path.clone();
        *left -= 1;
        // Once all names are met the inode is forgotten: memory holds open groups only.
        if *left == 0 {
            self.open.remove(&inode);
        }
        Some(earlier)
    }
}
