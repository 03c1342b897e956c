//! What a catalog must do, written against its public surface.

use vsync_protocol::id::SnapshotId;
use vsync_protocol::manifest::manifest_hash;

use super::*;
use crate::store::journal::Journal;

fn record(tag: u8) -> Record {
    Record { cid: Cid::of(&[tag]), offset: 48, len: 100, kind: BlobKind::Chunk }
}

fn pack(byte: u8) -> PackId {
    PackId::from_bytes([byte; 32])
}

fn open() -> (tempfile::TempDir, Catalog) {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(&dir.path().join("catalog.sqlite"), Health::default()).unwrap();
    (dir, catalog)
}

#[test]
fn blobs_are_found_after_their_pack_was_added() {
    let (_dir, catalog) = open();
    let cids = [Cid::of(&[1]), Cid::of(&[2]), Cid::of(&[3])];
    assert_eq!(catalog.have(&cids).unwrap(), [false; 3]);
    catalog.add_pack(pack(1), 500, vec![record(3), record(1)]).unwrap();
    catalog.add_pack(pack(1), 500, vec![record(3), record(1)]).unwrap();
    assert_eq!(catalog.have(&cids).unwrap(), [true, false, true]);
    let location = Location { pack: pack(1), offset: 48, len: 100, kind: BlobKind::Chunk, closed: 0 };
    assert_eq!(catalog.locate(&cids).unwrap(), [Some(location), None, Some(location)]);
    assert_eq!(catalog.totals().unwrap(), Totals { blobs: 2, packs: 1, bytes: 500, snapshots: 0 });
}

#[test]
fn of_several_copies_the_lowest_pack_counts_whatever_the_order() {
    for order in [[1, 2, 3], [3, 2, 1], [2, 1, 3]] {
        let (_dir, catalog) = open();
        order.into_iter().for_each(|byte| catalog.add_pack(pack(byte), 1, vec![record(0)]).unwrap());
        assert_eq!(catalog.locate(&[record(0).cid]).unwrap()[0].unwrap().pack, pack(1));
        assert_eq!(catalog.totals().unwrap().blobs, 1);
    }
}

#[test]
fn a_damaged_blob_is_absent_until_it_comes_again() {
    let (_dir, catalog) = open();
    let cid = record(0).cid;
    catalog.add_pack(pack(1), 1, vec![record(0)]).unwrap();
    let before = catalog.generation().unwrap();
    catalog.add_closed(vec![cid], before).unwrap();
    catalog.add_damage(cid, pack(2)).unwrap();
    assert_eq!(catalog.have(&[cid]).unwrap(), [true], "another copy was meant");
    catalog.add_damage(cid, pack(1)).unwrap();
    assert_eq!(catalog.have(&[cid]).unwrap(), [false]);
    assert!(catalog.generation().unwrap() > before);
    catalog.add_pack(pack(9), 1, vec![record(0)]).unwrap();
    let location = catalog.locate(&[cid]).unwrap()[0].unwrap();
    assert_eq!((location.pack, location.closed), (pack(9), before));
    catalog.lose_pack(pack(9)).unwrap();
    assert_eq!(catalog.have(&[cid]).unwrap(), [false]);
    assert_eq!(catalog.totals().unwrap(), Totals { packs: 1, bytes: 1, ..Totals::default() });
}

/// A catalog with `count` snapshots of two volumes from two machines.
fn history(count: u64) -> (tempfile::TempDir, Catalog, Vec<Snapshot>) {
    let (dir, catalog) = open();
    let (mut journal, _) = Journal::open(dir.path(), dir.path(), Mark::START, Health::default()).unwrap();
    let mut snapshots = Vec::new();
    for index in 0..count {
        let manifest = index.to_le_bytes().to_vec();
        let snapshot = Snapshot {
            hash: manifest_hash(&manifest),
            volume: ["a", "b"][(index % 2) as usize].parse().unwrap(),
            source: ["one", "two"][(index / 2 % 2) as usize].parse().unwrap(),
            sequence: index / 4 + 1,
            manifest,
        };
        let entry = LogEntry::Commit { manifest: snapshot.hash, at: index as i64 };
        catalog.append(journal.append(entry).unwrap(), Some(snapshot.clone())).unwrap();
        snapshots.push(snapshot);
    }
    let forget = LogEntry::Forget { manifest: snapshots[0].hash, at: 0, reason: "test".to_owned() };
    catalog.append(journal.append(forget).unwrap(), None).unwrap();
    assert_eq!(catalog.mark().unwrap(), journal.mark());
    (dir, catalog, snapshots)
}

fn indexes(catalog: &Catalog, listing: &Listing) -> Vec<u64> {
    catalog.snapshots(listing, usize::MAX).unwrap().iter().map(|record| record.index).collect()
}

#[test]
fn snapshots_are_listed_newest_first_by_any_filter() {
    let (_dir, catalog, snapshots) = history(12);
    let all = Listing { limit: 100, ..Listing::default() };
    assert_eq!(indexes(&catalog, &all), (2..=12).rev().collect::<Vec<_>>(), "the forgotten one is left out");
    let of_a = Listing { volume: Some("a".parse().unwrap()), ..all.clone() };
    assert_eq!(indexes(&catalog, &of_a), [11, 9, 7, 5, 3]);
    let of_two = Listing { source: Some("two".parse().unwrap()), ..of_a.clone() };
    assert_eq!(indexes(&catalog, &of_two), [11, 7, 3]);
    assert_eq!(indexes(&catalog, &Listing { before: Some(11), limit: 1, ..of_two }), [7]);
    let id = SnapshotId::from(snapshots[4].hash).to_string();
    for len in [5, 8, 31, 32] {
        let listing = Listing { prefix: Some(id[..len].to_owned()), ..all.clone() };
        assert_eq!(indexes(&catalog, &listing), [5], "{len} digits");
    }
    for prefix in ["xyz", &"0".repeat(33)] {
        assert!(indexes(&catalog, &Listing { prefix: Some(prefix.to_owned()), ..all.clone() }).is_empty());
    }
    assert_eq!(catalog.snapshots(&all, 1).unwrap().len(), 1, "a page has at least one");
    assert_eq!(catalog.totals().unwrap().snapshots, 11);
}

#[test]
fn every_question_goes_through_an_index() {
    let (dir, _catalog, _) = history(1);
    let reader = schema::open_reader(&dir.path().join("catalog.sqlite")).unwrap();
    let volume = Some("a".parse().unwrap());
    let source = Some("one".parse().unwrap());
    let all = Listing { limit: 1, ..Listing::default() };
    for (listing, index) in [
        (all.clone(), "INTEGER PRIMARY KEY (rowid<?)"),
        (Listing { volume: volume.clone(), ..all.clone() }, "snapshots_of_volume (volume=? AND position<?)"),
        (Listing { source: source.clone(), ..all.clone() }, "snapshots_of_source (source=? AND position<?)"),
        (Listing { volume, source, ..all.clone() }, "snapshots_of_both (source=? AND volume=? AND position<?)"),
        (Listing { prefix: Some("abc".to_owned()), ..all }, "sqlite_autoindex_snapshots_1 (hash>? AND hash<?)"),
    ] {
        let (query, values) = read::listing_query(&listing).unwrap();
        let mut explain = reader.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
        let plan = explain.query_map(rusqlite::params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
        let plan: Vec<_> = plan.map(Result::unwrap).collect();
        assert!(plan[0].starts_with("SEARCH") && plan[0].contains(index), "{plan:?}");
    }
}

#[test]
fn a_sequence_goes_on_after_its_last_was_forgotten() {
    let (_dir, catalog, snapshots) = history(1);
    let found = catalog.last(&snapshots[0].volume, &snapshots[0].source).unwrap();
    assert_eq!(found, Some((1, snapshots[0].hash)));
    assert!(catalog.accepted(snapshots[0].hash).unwrap().is_some());
    assert_eq!(catalog.log(0, 1000).unwrap().len(), 2);
    assert_eq!(catalog.log(0, 1).unwrap().len(), 1, "a page has at least one");
    assert_eq!(catalog.log(1, 1).unwrap().len(), 1);
    assert!(catalog.log(2, 1000).unwrap().is_empty());
}

#[test]
fn a_damaged_or_newer_file_is_refused() {
    let (dir, catalog) = open();
    catalog.add_pack(pack(1), 1, (0..200).map(record).collect()).unwrap();
    drop(catalog);
    let path = dir.path().join("catalog.sqlite");
    drop(Catalog::open(&path, Health::default()).unwrap());
    let connection = Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 3).unwrap();
    drop(connection);
    assert!(matches!(Catalog::open(&path, Health::default()), Err(CatalogError::Format { found: 3, .. })));
    std::fs::write(&path, vec![7; 8192]).unwrap();
    assert!(matches!(Catalog::open(&path, Health::default()), Err(CatalogError::Damaged(_))));
}

/// F08.
#[test]
fn an_sqlite_that_damages_files_is_refused() {
    for refused in [3_051_002, 3_050_004, 0] {
        assert!(matches!(schema::check_sqlite(refused), Err(CatalogError::OldSqlite(_))), "{refused}");
    }
    for right in [3_051_003, 3_052_000, 4_000_000] {
        schema::check_sqlite(right).unwrap();
    }
}

/// F08: somebody else's connection writes meanwhile. Writes come one after the other, or fail
/// and say so; nothing is lost.
#[test]
fn a_second_writer_is_waited_for() {
    let (dir, catalog) = open();
    let other = Connection::open(dir.path().join("catalog.sqlite")).unwrap();
    for byte in 0..20 {
        other.execute_batch("BEGIN IMMEDIATE; UPDATE totals SET clean = clean").unwrap();
        std::thread::scope(|scope| {
            let added = scope.spawn(|| catalog.add_pack(pack(byte), 1, vec![record(byte)]));
            std::thread::sleep(Duration::from_millis(5));
            other.execute_batch("COMMIT").unwrap();
            added.join().unwrap().unwrap();
        });
    }
    assert_eq!(catalog.totals().unwrap().packs, 20);
    catalog.close();
    assert_eq!(
        Catalog::open(&dir.path().join("catalog.sqlite"), Health::default()).unwrap().totals().unwrap().packs,
        20
    );
}

#[test]
fn after_close_calls_fail() {
    let (_dir, catalog) = open();
    catalog.close();
    assert!(matches!(catalog.add_pack(pack(1), 1, vec![]), Err(CatalogError::Closed)));
}

#[test]
fn volumes_are_found_without_going_through_all_snapshots() {
    let steps = |count| {
        let (dir, catalog, _) = history(count);
        let mut groups: Vec<_> =
            catalog.groups().unwrap().into_iter().map(|it| format!("{}/{}", it.source, it.volume)).collect();
        groups.sort();
        assert_eq!(groups, ["one/a", "one/b", "two/a", "two/b"]);
        let reader = schema::open_reader(&dir.path().join("catalog.sqlite")).unwrap();
        let mut find = reader.prepare(history::GROUPS).unwrap();
        assert_eq!(find.query_map([], |_| Ok(())).unwrap().count(), 4);
        find.get_status(rusqlite::StatementStatus::VmStep)
    };
    assert_eq!(steps(40), steps(400));
}

#[test]
fn what_snapshots_hold_is_right_after_each_change() {
    use vsync_protocol::id::JobId;
    use vsync_protocol::wire::{JobKind, JobResult, JobStart, Outcome};

    let (dir, catalog, snapshots) = history(4);
    assert_eq!(catalog.content().unwrap(), 0, "nobody told of their sizes");
    for (snapshot, size) in snapshots.iter().zip([1, 20, 300, 4000]) {
        let id = JobId::from_bytes([snapshot.sequence as u8 + size as u8; 16]);
        let start = JobStart {
            id,
            kind: JobKind::Backup,
            volume: snapshot.volume.clone(),
            source: None,
            version: String::new(),
        };
        let job = NewJob { start, machine: snapshot.source.clone(), at: 1, oldest: None };
        catalog.begin_job(job).unwrap();
        let result = JobResult { size, snapshot: Some(snapshot.hash.into()), ..JobResult::new(Outcome::Success) };
        assert!(catalog.end_job(snapshot.source.clone(), id, result, 2).unwrap());
    }
    assert_eq!(catalog.content().unwrap(), 4320, "the first one is forgotten");
    let (mut journal, _) = Journal::open(dir.path(), dir.path(), catalog.mark().unwrap(), Health::default()).unwrap();
    let forget = LogEntry::Forget { manifest: snapshots[2].hash, at: 0, reason: "test".to_owned() };
    catalog.append(journal.append(forget).unwrap(), None).unwrap();
    assert_eq!(catalog.content().unwrap(), 4020);
}
