//! What comes last: further names, deletions, directories' metadata, the disk.

use vsync_protocol::tree::{Entry, EntryPath};

use super::record::Writer;
use super::transfer::Transferred;
use super::{RestoreError, RestoreReport};
use crate::volume::{Target, TargetError};

/// Finishes a restore whose content is in place; `top` is the target's own directory.
pub(super) fn run(target: &Target, done: &mut Transferred, top: Option<Entry>) -> Result<(), RestoreError> {
    let report = &mut done.report;
    for link in done.links.forwards() {
        create_link(target, report, &link.map_err(RestoreError::Deferred)?)?;
    }
    // Only now: until here the old version's files were all still there.
    for path in done.extraneous.forwards() {
        target.remove(&path.map_err(RestoreError::Deferred)?)?;
    }
    // Deepest first: what is done inside a directory changes its times, and its mode may
    // shut us out.
    for directory in done.directories.backwards().chain(top.map(Ok)) {
        report.unrestored.extend(target.apply_metadata(&directory.map_err(RestoreError::Deferred)?)?.unrestored);
    }
    target.sync()?;
    // Only what is on disk may be relied on.
    if let Some(Err(error)) = done.record.take().map(Writer::finish) {
        tracing::warn!("the next restore will read all files: {error}");
    }
    Ok(())
}

fn create_link(target: &Target, report: &mut RestoreReport, link: &Entry) -> Result<(), RestoreError> {
    let earlier = link.target.as_deref().and_then(|path| EntryPath::new(path).ok()).unwrap_or_default();
    match target.create_link(&link.path, &earlier) {
        Ok(()) => Ok(()),
        Err(error @ (TargetError::NoSpace { .. } | TargetError::Root { .. })) => Err(error.into()),
        Err(error) => {
            let reason = format!("cannot be linked to {earlier}: {error}");
            report.damaged.push((link.path.clone(), reason));
            Ok(())
        }
    }
}
