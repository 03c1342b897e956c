//! Forgetting, pinning and bringing back over the wire, and who may.

use vsync_protocol::id::SnapshotId;
use vsync_protocol::limits::MAX_VERDICTS;
use vsync_protocol::manifest::snapshot_id;
use vsync_protocol::wire::{Listing, PlanRequest, RefusalCode, Reply, Request};

use crate::bed::{ADMIN, Bed, Client, WRITER, refused, root, tree};

fn requests(id: SnapshotId) -> [Request; 6] {
    [
        Request::Forget { ids: vec![id] },
        Request::Undelete { id },
        Request::Pin { id },
        Request::Unpin { id },
        Request::Plan(PlanRequest::default()),
        Request::ConfirmClock { now: 0 },
    ]
}

async fn commit(client: &mut Client, seed: u8) -> SnapshotId {
    let blobs = tree(seed, 4, 1000);
    client.store(&blobs).await;
    let manifest = client.manifest("data", "production", root(&blobs));
    assert!(matches!(client.commit(manifest.clone()).await, Reply::Committed(_)));
    client.open("data").await;
    snapshot_id(&manifest)
}

async fn listed(client: &Client, forgotten: bool) -> Vec<(SnapshotId, bool, bool)> {
    match client.ask(&Request::Snapshots(Listing { limit: 10, forgotten, ..Listing::default() })).await {
        Reply::Snapshots(list) => {
            list.iter().map(|record| (record.id, record.pinned, record.forgotten.is_some())).collect()
        }
        reply => panic!("{reply:?}"),
    }
}

#[tokio::test]
async fn only_administrators_decide_about_snapshots() {
    let bed = Bed::new();
    let mut client = bed.open("data").await;
    let id = commit(&mut client, 1).await;
    let writer = bed.connect(WRITER).await.unwrap();
    writer.hello().await;
    for request in requests(id) {
        assert_eq!(refused(&client.ask(&request).await), Some(RefusalCode::NotAuthorised), "{request:?}");
        assert_eq!(refused(&writer.ask(&request).await), Some(RefusalCode::NotAuthorised), "{request:?}");
    }
    assert_eq!(listed(&client, false).await, [(id, false, false)]);
}

#[tokio::test]
async fn administrators_forget_pin_and_bring_back() {
    let mut bed = Bed::new();
    // Without a floor, or nothing so young could be forgotten.
    bed.floor = 0;
    bed.stop().await;
    bed.start().unwrap();
    let mut client = bed.open("data").await;
    let (one, two) = (commit(&mut client, 1).await, commit(&mut client, 2).await);
    let admin = bed.connect(ADMIN).await.unwrap();
    admin.hello().await;
    let ask = async |request: Request| admin.ask(&request).await;

    let Reply::Plan(plan) = ask(Request::Plan(PlanRequest { ids: vec![one], ..PlanRequest::default() })).await else {
        panic!("no plan")
    };
    assert_eq!(plan.forgotten, 1);
    assert!(plan.bytes > 4000 && plan.bytes < 6000, "{plan:?}");
    let Reply::Plan(plan) = ask(Request::Plan(PlanRequest::default())).await else { panic!("no plan") };
    assert_eq!((plan.forgotten, plan.bytes, plan.verdicts.len()), (0, 0, 2));

    assert!(matches!(ask(Request::Pin { id: two }).await, Reply::Done(position) if position.index == 3));
    assert_eq!(refused(&ask(Request::Forget { ids: vec![two, one] }).await), Some(RefusalCode::Protected));
    assert_eq!(listed(&admin, false).await, [(two, true, false)], "the other one could be");
    assert_eq!(listed(&admin, true).await, [(one, false, true)]);
    assert!(matches!(ask(Request::Undelete { id: one }).await, Reply::Done(_)));
    assert!(listed(&admin, true).await.is_empty());
    assert!(matches!(ask(Request::Unpin { id: two }).await, Reply::Done(_)));
    assert_eq!(listed(&admin, false).await, [(two, false, false), (one, false, false)]);

    let absent = SnapshotId::from_bytes([0; 16]);
    for request in &requests(absent)[..4] {
        assert_eq!(refused(&ask(request.clone()).await), Some(RefusalCode::NoSnapshot), "{request:?}");
    }
    assert_eq!(refused(&ask(Request::ConfirmClock { now: 0 }).await), Some(RefusalCode::Clock));
    let too_many = Request::Forget { ids: vec![absent; MAX_VERDICTS + 1] };
    assert_eq!(refused(&ask(too_many).await), Some(RefusalCode::Malformed));
    let many = Request::Forget { ids: vec![absent; MAX_VERDICTS] };
    assert_eq!(refused(&ask(many).await), Some(RefusalCode::NoSnapshot));
}
