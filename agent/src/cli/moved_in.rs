//! Whose snapshot it is: of the machine that signed it, or, if a server vouched for what privateer
//! had stored, of the machine that privateer had it from.
//!
//! Such a claim is a tag that anybody may write. It counts only on snapshots that are signed by one
//! of the realm's servers, on whose disks that data had been all the time.

use vsync_protocol::id::{MachineName, VolumeName};
use vsync_protocol::wire::Listing;

use super::report::Failure;
use super::session::{Listed, Session};

const KEY: &str = "privateer=";

/// The tag of what was `volume` of `client` in privateer's data volume.
pub(super) fn tag(client: &MachineName, volume: &VolumeName) -> String {
    format!("{KEY}{client}/{volume}")
}

/// The machine that a listed snapshot's data came from.
pub(super) fn origin(session: &Session, listed: &Listed) -> MachineName {
    let body = &listed.body;
    let servers = &session.context.config.servers;
    if !servers.iter().any(|server| server.machine.name == body.source) {
        return body.source.clone();
    }
    let claims = body.tags.iter().filter_map(|tag| tag.strip_prefix(KEY)?.split_once('/'));
    let claim =
        claims.filter(|(_, volume)| *volume == body.volume.as_str()).find_map(|(client, _)| client.parse().ok());
    claim.unwrap_or_else(|| body.source.clone())
}

/// What servers have taken over from privateer of `volume` of `client`, newest first.
pub(super) fn imports(session: &Session, volume: &VolumeName, client: &MachineName) -> Result<Vec<Listed>, Failure> {
    let mut all = Vec::new();
    for server in &session.context.config.servers {
        let source = Some(server.machine.name.clone()).filter(|name| name != client);
        let Some(source) = source else { continue };
        let listing = Listing { volume: Some(volume.clone()), source: Some(source), ..Listing::default() };
        all.extend(session.list(&listing, |_| false)?.into_iter().filter(|listed| origin(session, listed) == *client));
    }
    all.sort_by_key(|listed| std::cmp::Reverse(listed.record.received));
    Ok(all)
}
