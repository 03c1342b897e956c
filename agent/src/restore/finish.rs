//! What comes last: further names, deletions, directories' metadata, the disk.

use vsync_protocol::tree::{Entry, EntryPath};

use super::RestoreError;
use super::transfer::Transferred;
use crate::volume::{Target, TargetError};

/// Finishes a restore whose content is in place.
pub(super) fn run(target: &Target, done: &mut Transferred) -> Result<(), RestoreError> {
    for link in std::mem::take(&mut done.links) {
        create_link(target, done, &link)?;
    }
    // Only now: until here the old version's files were all still there.
    for path in &done.extraneous {
        target.remove(path)?;
    }
    // Deepest first: what is done inside a directory changes its times, and its mode may
    // shut us out.
    for directory in done.directories.iter().rev() {
        done.report.unrestored.extend(target.apply_metadata(directory)?);
    }
    Ok(target.sync()?)
}

fn create_link(target: &Target, done: &mut Transferred, link: &Entry) -> Result<(), RestoreError> {
    let earlier = link.target.as_deref().and_then(|path| EntryPath::new(path).ok()).unwrap_or_default();
    match target.create_link(&link.path, &earlier) {
        Ok(()) => Ok(()),
        Err(error @ TargetError::NoSpace { .. }) => Err(error.into()),
        Err(error) => {
            let reason = format!("cannot be linked to {earlier}: {error}");
            done.report.damaged.push((link.path.clone(), reason));
            Ok(())
        }
    }
}
