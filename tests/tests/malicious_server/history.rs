//! A history that is not the one that was seen before.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vsync_protocol::id::{LogHead, ManifestHash};
use vsync_protocol::log::LogEntry;
use vsync_protocol::manifest::LogPosition;
use vsync_protocol::wire::{Reply, Request};

use super::stage::Stage;

/// What is done to the hello, or to the log, and the exit status of a backup after it.
#[test]
fn history_that_went_back_or_forked_is_refused() {
    let stage = Stage::new(6);
    type Change = fn(&mut Reply);
    let changes: [(&str, Change); 6] = [
        ("an older head", |reply| {
            if let Reply::Hello { log, .. } = reply {
                log.index -= 1;
            }
        }),
        ("an empty log", |reply| {
            if let Reply::Hello { log, .. } = reply {
                *log = LogPosition { index: 0, head: vsync_protocol::log::GENESIS };
            }
        }),
        ("another head at the same place", |reply| {
            if let Reply::Hello { log, .. } = reply {
                log.head = LogHead::from_bytes([7; 32]);
            }
        }),
        ("a longer log that nobody shows", |reply| match reply {
            Reply::Hello { log, .. } => log.index = u64::MAX,
            Reply::Log(entries) => entries.clear(),
            _ => {}
        }),
        ("a longer log with made-up entries", |reply| match reply {
            Reply::Hello { log, .. } => log.index += 3,
            Reply::Log(entries) => {
                *entries = vec![LogEntry::Commit { manifest: ManifestHash::from_bytes([1; 32]), at: 1 }; 3];
            }
            _ => {}
        }),
        ("a longer log, whose entries are other ones", |reply| match reply {
            Reply::Hello { log, .. } => {
                log.index += 1;
                log.head = LogHead::from_bytes([9; 32]);
            }
            Reply::Log(entries) => {
                entries.push(LogEntry::Commit { manifest: ManifestHash::from_bytes([1; 32]), at: 1 });
            }
            _ => {}
        }),
    ];
    let target = vsync_tests::scratch();
    for (what, change) in changes {
        for command in [
            &["backup", "data"][..],
            &["verify", "data"],
            &["restore", "data", "--source", "host", "--to-path", target.path().to_str().unwrap()],
            &["dump", "data:small", "--source", "host"],
            &["ls", "data", "--source", "host"],
            &["snapshots"],
            &["status"],
        ] {
            let (vsync, _liar) = stage.victim(move |_, mut honest| {
                change(&mut honest.reply);
                honest.say()
            });
            let output = vsync.run(command);
            let code = output.status().unwrap_or(-1);
            let all = format!("{}{}", output.stdout(), output.stderr());
            assert_eq!(code, 14, "{what}: {output}");
            assert!(all.contains("history of store"), "{what}: {output}");
        }
    }
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0, "something was written");
    // None of it was believed: the honest server is still the right one.
    stage.recovers();
}

/// The greeting says where the log stands: nobody asks for more of it who has seen that.
#[test]
fn a_history_that_is_known_is_not_asked_for() {
    let stage = Stage::new(12);
    let asked = Arc::new(AtomicU64::new(0));
    let (vsync, _liar) = stage.victim({
        let asked = asked.clone();
        move |request, honest| {
            asked.fetch_add(u64::from(matches!(request, Request::Log { .. })), Ordering::Relaxed);
            honest.say()
        }
    });
    for _ in 0..2 {
        let _ = vsync.run(["snapshots"]).success();
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    // What is new is, once.
    stage.site.realm.vsync("host2").run(["backup", "data"]).success();
    for _ in 0..2 {
        let _ = vsync.run(["snapshots"]).success();
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}
