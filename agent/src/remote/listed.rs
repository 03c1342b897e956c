//! Whether a server lists what it was asked for.
//!
//! A manifest is signed, but its signature says only whose it is: a server that answers with
//! another volume's snapshot, or an older one, would have it restored in place of the right one.

use vsync_protocol::id::MachineName;
use vsync_protocol::manifest::{Manifest, snapshot_id};
use vsync_protocol::wire::{Listing, SnapshotRecord};

use super::RemoteError;

/// Looks whether `record` may be the next answer to `listing`.
pub(super) fn check(server: &MachineName, listing: &Listing, record: &SnapshotRecord) -> Result<(), RemoteError> {
    let wrong =
        |reason: String| Err(RemoteError::Listed { server: server.to_string(), snapshot: record.id.short(), reason });
    if listing.before.is_some_and(|before| record.index >= before) {
        return wrong("it is out of order".into());
    }
    // One that cannot be read is for the caller to judge: it is damage, not a lie.
    let Ok(manifest) = Manifest::parse(&record.manifest) else { return Ok(()) };
    if snapshot_id(&record.manifest) != record.id {
        return wrong("its manifest is another one's".into());
    }
    let body = manifest.body;
    if let Some(volume) = listing.volume.as_ref().filter(|volume| **volume != body.volume) {
        return wrong(format!("it is of the volume {}, not {volume}", body.volume));
    }
    if let Some(source) = listing.source.as_ref().filter(|source| **source != body.source) {
        return wrong(format!("it is of the machine {}, not {source}", body.source));
    }
    if let Some(prefix) =
        listing.prefix.as_ref().filter(|prefix| !record.id.to_string().starts_with(&prefix.to_ascii_lowercase()))
    {
        return wrong(format!("its id does not begin with {prefix}"));
    }
    Ok(())
}
