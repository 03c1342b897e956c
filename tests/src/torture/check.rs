//! What must hold after a round, whatever happened in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use vsync_protocol::id::SnapshotId;
use vsync_protocol::log::LogEntry;
use vsync_protocol::wire::{Listing, SnapshotRecord};
use vsync_server::catalog::{Catalog, State};
use vsync_server::store::health::Health;
use vsync_server::store::journal::{Journal, Mark};

use super::{AGENTS, Counts, Round, volume_name};
use crate::{Place, Tree};

impl Round {
    /// Checks everything; panics with what is broken.
    pub(super) fn check(&self, counts: &Counts) {
        let begun = std::time::Instant::now();
        let told = |what: &str| eprintln!("  {what} after {} s of checks", begun.elapsed().as_secs());
        self.server().as_mut().expect("a server").restart();
        for number in 0..AGENTS {
            // Whatever happened, it goes on: this is also what heals damage that the sources can heal.
            let tree = Tree::read(self.volumes[number].path());
            let done = self.host(number).run(["backup", &volume_name(number), "--json"]).success();
            let id = crate::site::Summary::of(&done).text("snapshot_id").to_owned();
            self.known(number).acknowledged.push((id, tree));
        }
        told("backed up");
        for number in 0..AGENTS {
            self.check_volume(number, counts);
        }
        told("restored");
        let verified = self.host(0).run(["verify", "--read-data"]);
        assert!(verified.status() == Some(0) || self.damaging && verified.status() == Some(13), "{verified}");
        self.server().as_mut().expect("a server").stop().success();
        let scrubbed = self.realm.vsync("store").run(["server", "scrub"]);
        assert!(scrubbed.status() == Some(0) || self.damaging && scrubbed.status() == Some(13), "{scrubbed}");
        told("verified and scrubbed");
        self.check_log(counts);
        self.check_catalog(counts);
        told("rebuilt");
    }

    /// Every snapshot of a volume that stands is what the volume was; every one that was acknowledged stands, or was
    /// given up.
    fn check_volume(&self, number: usize, counts: &Counts) {
        let volume = volume_name(number);
        let listed = self.host(number).run(["snapshots", &volume, "--json"]).success().json();
        let standing: BTreeSet<String> = listed.as_array().expect("a list").iter().map(id_of).collect();
        let acknowledged: BTreeMap<String, Tree> = self.known(number).acknowledged.iter().cloned().collect();
        for id in acknowledged.keys().filter(|&id| !standing.contains(id)) {
            let given_up = self.given_up().contains(id) || self.may_be_retired(number, id);
            assert!(given_up, "{volume}@{id} was acknowledged and is gone");
        }
        let target = crate::scratch();
        for id in &standing {
            let what = format!("{volume}@{id}");
            let done = self.host(number).run(["restore", &what, "--delete", "--to-path", path(target.path())]);
            if self.damaging && done.status() == Some(13) {
                counts.add("snapshots named as damaged");
                continue;
            }
            // Retention goes on while we look.
            if done.status() == Some(11) && self.may_be_retired(number, id) {
                counts.add("snapshots retired meanwhile");
                continue;
            }
            let found = Tree::read(target.path());
            let done = done.success();
            let attempted = self.known(number).attempted.clone();
            let candidates: Vec<&Tree> = acknowledged.get(id).map_or_else(|| attempted.iter().collect(), |it| vec![it]);
            let right = candidates.iter().any(|tree| tree.differences(&found).is_empty());
            let shown = candidates.first().map(|tree| tree.differences(&found));
            assert!(right, "{what} is none of {} that it may be: {shown:#?}\n{done}", candidates.len());
            let kind = if acknowledged.contains_key(id) { "snapshots exact" } else { "unacknowledged, exact" };
            counts.add(kind);
        }
    }

    /// The chain holds from its first entry on, and it has every commit that was acknowledged.
    fn check_log(&self, counts: &Counts) {
        let store = self.realm.store("store");
        let opened = Journal::open(&store.join("log"), &store.join("quarantine"), Mark::START, Health::default());
        let (_, entries) = opened.expect("the log's chain holds");
        let (mut committed, mut forgotten) = (BTreeSet::new(), BTreeSet::new());
        for logged in &entries {
            let id = SnapshotId::from(logged.entry.manifest()).to_string();
            match logged.entry {
                LogEntry::Commit { .. } => assert!(committed.insert(id), "committed twice"),
                LogEntry::Forget { .. } => drop(forgotten.insert(id)),
                _ => {}
            }
        }
        counts.add_many("log entries checked", entries.len() as u64);
        for number in 0..AGENTS {
            for (id, _) in &self.known(number).acknowledged {
                assert!(committed.contains(id), "the log lacks {id}, which was acknowledged");
            }
        }
        for id in self.given_up().iter() {
            assert!(committed.contains(id), "{id}");
        }
        let manifests = Place::Manifest.files(&store).len();
        assert!(manifests >= committed.difference(&forgotten).count(), "{manifests} manifests");
    }

    /// A catalog made anew from the files says the same.
    fn check_catalog(&self, counts: &Counts) {
        let store = self.realm.store("store");
        let before = Content::of(&store);
        let rebuilt = self.realm.vsync("store").run(["server", "rebuild", "--rehash"]);
        assert!(rebuilt.status() == Some(0) || self.damaging && rebuilt.status() == Some(13), "{rebuilt}");
        let after = Content::of(&store);
        assert_eq!(before.snapshots, after.snapshots, "snapshots differ after a rebuild");
        assert_eq!(before.log, after.log, "the log differs after a rebuild");
        let gone: Vec<_> = before.blobs.difference(&after.blobs).collect();
        assert!(gone.is_empty(), "blobs are not where the catalog says: {gone:?}");
        let new = after.blobs.difference(&before.blobs).count();
        assert!(new == 0 || self.damaging, "{new} blobs were unknown");
        counts.add_many("blobs in rebuilt catalogs", after.blobs.len() as u64);
        counts.add("catalogs equal when rebuilt");
    }
}

/// What a catalog says.
struct Content {
    snapshots: Vec<SnapshotRecord>,
    log: Vec<LogEntry>,
    blobs: BTreeSet<String>,
}

impl Content {
    fn of(store: &Path) -> Self {
        let catalog = Catalog::open(&store.join("catalog.sqlite"), Health::default()).expect("a catalog");
        let listing = Listing { limit: u32::MAX, ..Listing::default() };
        let snapshots = catalog.snapshots(&listing, usize::MAX).expect("snapshots");
        let log = catalog.log(0, usize::MAX).expect("the log");
        let (mut blobs, mut after) = (BTreeSet::new(), None);
        loop {
            let rows = catalog.survey(after, 10_000).expect("blobs");
            let Some(last) = rows.last() else { break };
            after = Some(last.cid);
            // What was found damaged is absent in both.
            let here = rows.iter().filter(|row| row.state != State::Corrupt);
            blobs.extend(here.map(|row| format!("{} {:?} {}", row.cid, row.kind, row.len)));
        }
        catalog.close();
        Self { snapshots, log, blobs }
    }
}

fn id_of(row: &Value) -> String {
    row["id"].as_str().expect("an id").to_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path")
}
