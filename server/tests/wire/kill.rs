//! A server process that is killed again and again in the middle of its work.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vsync_protocol::id::Cid;
use vsync_protocol::manifest::manifest_hash;
use vsync_protocol::wire::{Reply, Request, encode_message};
use vsync_server::{Server, Trust, rebuild};

use crate::bed::{Bed, Client, PRODUCTION, REALM, root, tree};
use crate::durable::rows;

/// Where a child process finds its store; set, it makes `serve` a server.
const STORE: &str = "VSYNC_TEST_STORE";

/// Not a test by itself: the process that is killed.
#[tokio::test]
async fn serve() {
    let Some(store) = std::env::var_os(STORE) else { return };
    let server =
        Server::start(vsync_server::ServerConfig { data: store.clone().into(), ..Bed::idle().config() }).unwrap();
    let address = Path::new(&store).with_extension("address");
    fs::write(address.with_extension("tmp"), server.address().to_string()).unwrap();
    fs::rename(address.with_extension("tmp"), address).unwrap();
    std::future::pending::<()>().await;
}

async fn start(store: &Path) -> (Child, Client) {
    let address = store.with_extension("address");
    let _ = fs::remove_file(&address);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::serve"])
        .env(STORE, store)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !address.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let address = fs::read_to_string(address).unwrap().parse().unwrap();
    let mut client = Client::connect(address, PRODUCTION).await.unwrap();
    client.hello().await;
    client.open("data").await;
    (child, client)
}

/// Backs up small trees for as long as the server lives; notes what it acknowledged.
async fn work(client: &mut Client, seed: &mut u8, acknowledged: &mut HashMap<Cid, Vec<u8>>, commits: &AtomicU64) {
    let mut frames = 0;
    loop {
        *seed += 1;
        let blobs = tree(*seed, 8, 100_000);
        if client.try_upload(0, &blobs).await.is_err() {
            return;
        }
        frames += blobs.len() as u64;
        let flush = Request::Flush { session: client.session, frames: vec![frames] };
        let Ok(Reply::Flushed) = client.try_ask(&encode_message(&flush)).await else { return };
        acknowledged.extend(blobs.iter().map(|blob| (Cid::of(blob), blob.clone())));
        let manifest = client.manifest("data", "production", root(&blobs));
        let commit = Request::Commit { session: client.session, manifest: manifest.clone() };
        let Ok(Reply::Committed(receipt)) = client.try_ask(&encode_message(&commit)).await else { return };
        commits.store(receipt.log.index, Ordering::Relaxed);
        client.last = Some((client.last.map_or(1, |(number, _)| number + 1), manifest_hash(&manifest)));
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_every_kill() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let (mut seed, mut acknowledged, commits) = (0, HashMap::new(), AtomicU64::new(0));
    for delay in [0, 3, 7, 12, 20, 35, 61] {
        let (mut child, mut client) = start(&store).await;
        let before = commits.load(Ordering::Relaxed);
        assert!(client.last.map_or(0, |(number, _)| number) >= before, "a commit was lost");
        let cids: Vec<Cid> = acknowledged.keys().copied().collect();
        for cids in cids.chunks(1000) {
            let fetched = client.fetch(cids).await.unwrap();
            assert!(cids.iter().all(|cid| fetched[cid] == acknowledged[cid]), "a flushed blob was lost");
        }
        let moment = async {
            while commits.load(Ordering::Relaxed) == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_millis(delay)).await;
        };
        tokio::select! {
            () = work(&mut client, &mut seed, &mut acknowledged, &commits) => panic!("the server ended by itself"),
            () = moment => {}
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let config = vsync_server::ServerConfig { data: store.clone(), ..Bed::idle().config() };
    tokio::task::spawn_blocking(move || Server::start(config).unwrap().stop()).await.unwrap();
    let catalog = store.join("catalog.sqlite");
    let live = rows(&catalog);
    let report = rebuild(&store, REALM, Trust::Nothing).unwrap();
    assert_eq!((report.damaged_blobs, report.damaged_packs, report.lost_manifests), (0, 0, 0));
    assert_eq!(rows(&catalog), live);
}
