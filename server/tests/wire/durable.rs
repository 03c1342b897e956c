//! What survives: a killed server, a damaged disk, a lost catalog.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use vsync_protocol::blob::BlobKind;
use vsync_protocol::id::Cid;
use vsync_protocol::manifest::manifest_hash;
use vsync_protocol::wire::{Listing, RefusalCode, Reply, Request};
use vsync_server::archive::ArchiveError;
use vsync_server::store::StoreError;
use vsync_server::store::disk::Reserve;
use vsync_server::{Server, ServerError, Trust, rebuild};

use crate::bed::{Bed, Client, REALM, blob, refused, root, tree};

/// Commits `tree` as the next snapshot.
async fn commit(client: &mut Client, tree: &[Vec<u8>]) {
    client.store(tree).await;
    let manifest = client.manifest("data", "production", root(tree));
    assert!(matches!(client.commit(manifest.clone()).await, Reply::Committed(_)));
    client.last = Some((client.last.map_or(1, |(number, _)| number + 1), manifest_hash(&manifest)));
    client.open("data").await;
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() { copy(&entry.path(), &to) } else { drop(fs::copy(entry.path(), to)) }
    }
}

fn packs(data: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(data.join("packs")).unwrap().map(|shard| shard.unwrap().path());
    shards.flat_map(|shard| fs::read_dir(shard).unwrap().map(|pack| pack.unwrap().path())).collect()
}

/// Every row of the catalog but the memo of closed nodes, with packs by name.
pub(crate) fn rows(catalog: &Path) -> Vec<String> {
    let connection = Connection::open(catalog).unwrap();
    let mut rows = Vec::new();
    for query in [
        "SELECT hex(id), bytes FROM packs ORDER BY id",
        "SELECT hex(cid), hex(packs.id), offset, len, kind, state FROM blobs JOIN packs ON number = pack ORDER BY cid",
        "SELECT position, hex(entry), hex(head), end FROM log ORDER BY position",
        "SELECT position, hex(hash), volume, source, sequence, received, hex(manifest), forgotten FROM snapshots",
        "SELECT blobs, packs, bytes, snapshots FROM totals",
    ] {
        let mut statement = connection.prepare(query).unwrap();
        let columns = statement.column_count();
        let mut found = statement.query([]).unwrap();
        while let Some(row) = found.next().unwrap() {
            let values: Vec<_> = (0..columns).map(|column| format!("{:?}", row.get_ref(column).unwrap())).collect();
            rows.push(values.join(" "));
        }
    }
    rows
}

#[tokio::test]
async fn what_was_flushed_survives_a_kill() {
    let mut bed = Bed::new();
    let mut client = bed.open("data").await;
    let (one, two) = (tree(1, 10, 1000), tree(2, 10, 1000));
    commit(&mut client, &one).await;
    client.store(&two).await;
    // A copy of the live files is what a kill at this instant leaves.
    let crashed = bed.dir.path().join("crashed");
    copy(&bed.data(), &crashed);
    bed.kill().await;
    fs::rename(bed.data(), bed.dir.path().join("before")).unwrap();
    fs::rename(&crashed, bed.data()).unwrap();
    bed.start().unwrap();
    let client = bed.open("data").await;
    assert_eq!(client.last.unwrap().0, 1);
    assert_eq!(client.have(&one).await, [true; 13]);
    assert_eq!(client.have(&two).await, [true; 13]);
    let manifest = client.manifest("data", "production", root(&two));
    assert!(matches!(client.commit(manifest).await, Reply::Committed(receipt) if receipt.log.index == 2));
}

#[tokio::test]
async fn a_rebuilt_catalog_equals_the_live_one() {
    let mut bed = Bed::new();
    let mut client = bed.open("data").await;
    for seed in 1..=3 {
        commit(&mut client, &tree(seed, 20, 5000)).await;
    }
    // The same blobs again, as two agents at once may bring them.
    client.store(&tree(1, 20, 5000)).await;
    bed.stop().await;
    let path = bed.data().join("catalog.sqlite");
    let live = rows(&path);
    assert!(live.len() > 3 * 23);
    for trust in [Trust::Tables, Trust::Nothing] {
        fs::write(&path, "lost").unwrap();
        let report = rebuild(&bed.data(), REALM, trust).unwrap();
        assert_eq!((report.totals.snapshots, report.damaged_packs, report.lost_manifests), (3, 0, 0));
        assert_eq!(rows(&path), live, "{trust:?}");
    }
    // Without a catalog, starting makes one.
    fs::remove_file(&path).unwrap();
    bed.start().unwrap();
    bed.stop().await;
    assert_eq!(rows(&path), live);
}

#[tokio::test]
async fn a_start_catches_up_with_a_catalog_left_behind() {
    let mut bed = Bed::new();
    let mut client = bed.open("data").await;
    commit(&mut client, &tree(1, 5, 1000)).await;
    bed.stop().await;
    let path = bed.data().join("catalog.sqlite");
    let old = fs::read(&path).unwrap();
    bed.start().unwrap();
    let mut client = bed.open("data").await;
    commit(&mut client, &tree(2, 5, 1000)).await;
    bed.stop().await;
    let live = rows(&path);
    fs::write(&path, old).unwrap();
    bed.start().unwrap();
    bed.stop().await;
    assert_eq!(rows(&path), live);
}

#[tokio::test]
async fn a_damaged_blob_is_absent_once_reported_and_heals() {
    let mut bed = Bed::new();
    let mut client = bed.open("data").await;
    let blobs = tree(1, 10, 5000);
    commit(&mut client, &blobs).await;
    let (bad, good) = (Cid::of(&blobs[4]), Cid::of(&blobs[5]));
    let [path] = &packs(&bed.data())[..] else { panic!("not one pack") };
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(blobs[4].len()).position(|window| window == blobs[4]).unwrap();
    bytes[at + 100] ^= 1;
    fs::write(path, &bytes).unwrap();

    let damaged = |cid| Request::Damaged { cid };
    assert_eq!(client.ask(&damaged(good)).await, Reply::Checked { damaged: false });
    assert_eq!(client.ask(&damaged(bad)).await, Reply::Checked { damaged: true });
    assert_eq!(client.have(&blobs[4..6]).await, [false, true]);
    let fetched = client.fetch(&[bad, good]).await.unwrap();
    assert_eq!((fetched[&bad].len(), &fetched[&good]), (0, &blobs[5]));
    // The memo that the tree is whole is gone with the blob.
    let manifest = client.manifest("data", "production", root(&blobs));
    assert!(matches!(client.commit(manifest.clone()).await, Reply::Missing(cids) if cids.as_slice() == [bad]));
    client.store(&blobs[4..5]).await;
    assert_eq!(client.fetch(&[bad]).await.unwrap()[&bad], blobs[4]);
    assert!(matches!(client.commit(manifest).await, Reply::Committed(_)));

    bed.stop().await;
    let path = bed.data().join("catalog.sqlite");
    let live = rows(&path);
    let report = rebuild(&bed.data(), REALM, Trust::Nothing).unwrap();
    assert_eq!((report.damaged_blobs, rows(&path)), (0, live), "the good copy is found");
}

#[tokio::test]
async fn a_damaged_node_is_missing_at_a_commit() {
    let bed = Bed::new();
    let client = bed.open("data").await;
    let blobs = tree(1, 10, 100);
    client.store(&blobs).await;
    let [path] = &packs(&bed.data())[..] else { panic!("not one pack") };
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.windows(blobs[11].len()).position(|window| window == blobs[11]).unwrap();
    bytes[at + 20] ^= 1;
    fs::write(path, &bytes).unwrap();
    let manifest = client.manifest("data", "production", root(&blobs));
    let reply = client.commit(manifest).await;
    assert!(matches!(&reply, Reply::Missing(cids) if cids.as_slice() == [Cid::of(&blobs[11])]), "{reply:?}");
}

#[tokio::test]
async fn packs_with_damaged_tables_or_gone_cost_only_their_blobs() {
    let mut bed = Bed::new();
    let client = bed.open("data").await;
    let [one, two] = [b"one", b"two"].map(|content| blob(BlobKind::Chunk, &[], content));
    client.store(std::slice::from_ref(&one)).await;
    bed.stop().await;
    let first = packs(&bed.data()).remove(0);
    bed.start().unwrap();
    let client = bed.open("data").await;
    client.store(std::slice::from_ref(&two)).await;
    bed.stop().await;
    let second = packs(&bed.data()).into_iter().find(|path| *path != first).unwrap();
    let len = fs::metadata(&second).unwrap().len();
    fs::OpenOptions::new().write(true).open(&second).unwrap().set_len(len - 30).unwrap();
    fs::remove_file(&first).unwrap();
    let report = rebuild(&bed.data(), REALM, Trust::Tables).unwrap();
    assert_eq!((report.damaged_packs, report.totals.blobs), (1, 1));
    bed.start().unwrap();
    let client = bed.open("data").await;
    assert_eq!(client.have(&[one.clone(), two.clone()]).await, [false, true]);
    client.store(std::slice::from_ref(&one)).await;
    assert_eq!(client.have(std::slice::from_ref(&one)).await, [true]);
    bed.stop().await;
    fs::remove_file(&first).unwrap();
    bed.start().unwrap();
    let client = bed.open("data").await;
    assert_eq!(client.have(std::slice::from_ref(&one)).await, [false], "a pack that vanished is noticed at the start");
    client.store(std::slice::from_ref(&one)).await;
    assert_eq!(client.have(&[one]).await, [true]);
}

/// F08.
#[tokio::test]
async fn a_store_is_opened_once_and_only_by_who_understands_it() {
    let mut bed = Bed::new();
    let second = Server::start(bed.config());
    assert!(matches!(second, Err(ServerError::Archive(ArchiveError::Store(StoreError::Locked(_))))));
    assert!(matches!(rebuild(&bed.data(), REALM, Trust::Tables), Err(ArchiveError::Store(StoreError::Locked(_)))));
    bed.stop().await;
    fs::write(bed.data().join("VERSION"), format!("vsync-store 2\nrealm {REALM}\n")).unwrap();
    let newer = bed.start();
    assert!(matches!(newer, Err(ServerError::Archive(ArchiveError::Store(StoreError::Newer { found: 2, .. })))));
}

#[tokio::test]
async fn a_full_disk_stops_backups_but_not_reading() {
    let mut bed = Bed::new();
    let mut client = bed.open("data").await;
    let blobs = tree(1, 5, 1000);
    commit(&mut client, &blobs).await;
    bed.stop().await;
    let config = vsync_server::ServerConfig { reserve: Reserve { bytes: u64::MAX, percent: 0 }, ..bed.config() };
    bed.server = Some(Server::start(config).unwrap());
    let client = bed.connect(crate::bed::PRODUCTION).await.unwrap();
    client.hello().await;
    let open = Request::Open { volume: "data".parse().unwrap() };
    assert_eq!(refused(&client.ask(&open).await), Some(RefusalCode::NoSpace));
    assert_eq!(client.fetch(&[root(&blobs)]).await.unwrap()[&root(&blobs)], *blobs.last().unwrap());
    let listing = Listing { limit: 10, ..Listing::default() };
    assert!(matches!(client.ask(&Request::Snapshots(listing)).await, Reply::Snapshots(list) if list.len() == 1));
}
