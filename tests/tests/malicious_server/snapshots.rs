//! Snapshots, lists and words that are not what was asked for.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vsync_protocol::limits::MAX_MESSAGE_LEN;
use vsync_protocol::wire::{Refusal, RefusalCode, Reply, Request, SnapshotRecord};
use vsync_tests::MemoryGroup;

use super::stage::{Stage, said};

/// What a liar may put in place of a list of snapshots.
type Change = Box<dyn Fn(&mut Vec<SnapshotRecord>) + Send + Sync>;

/// What it is, what is restored, the lie, and how the command must end.
type Case = (&'static str, &'static [&'static str], Change, &'static [i32], &'static str);

#[test]
fn snapshots_that_were_not_asked_for_are_refused() {
    let stage = Stage::new(4);
    // What there is, as an honest server lists it to whoever asks for everything.
    let (vsync, liar) = stage.victim(|_, honest| honest.say());
    let listed = vsync.run(["snapshots", "--json"]).success();
    drop(liar);
    assert_eq!(listed.stdout().matches("\"short_id\"").count(), 4, "{listed}");
    let all: Arc<std::sync::Mutex<Vec<SnapshotRecord>>> = Arc::default();
    let (vsync, liar) = stage.victim({
        let all = all.clone();
        move |_, honest| {
            if let Reply::Snapshots(list) = &honest.reply {
                all.lock().unwrap().extend(list.iter().cloned());
            }
            honest.say()
        }
    });
    let _ = vsync.run(["snapshots"]).success();
    drop(liar);
    let all = all.lock().unwrap().clone();
    let of = |volume: &str, source: &str, back: usize| -> SnapshotRecord {
        let of = |record: &&SnapshotRecord| {
            let body = vsync_protocol::manifest::Manifest::parse(&record.manifest).unwrap().body;
            body.volume.as_str() == volume && body.source.as_str() == source
        };
        all.iter().filter(of).nth(back).unwrap().clone()
    };
    let (other, of_host2, old) = (of("other", "host2", 0), of("data", "host2", 0), of("data", "host", 1));
    let in_place = |record: SnapshotRecord| -> Change {
        Box::new(move |list| list.iter_mut().for_each(|entry| *entry = record.clone()))
    };
    let manifest = move |change: fn(&mut Vec<u8>)| -> Change {
        Box::new(move |list| list.iter_mut().for_each(|entry| change(&mut entry.manifest)))
    };
    let old_manifest = old.manifest.clone();
    let cases: Vec<Case> = vec![
        ("another volume's", &["data"], in_place(other), &[13], "of the volume other, not data"),
        (
            "another machine's",
            &["data", "--source", "host"],
            in_place(of_host2),
            &[13],
            "of the machine host2, not host",
        ),
        (
            "an older manifest under the newest id",
            &["data", "--source", "host"],
            Box::new(move |list| list.iter_mut().for_each(|entry| entry.manifest.clone_from(&old_manifest))),
            &[13],
            "its manifest is another one's",
        ),
        ("a cut manifest", &["data", "--source", "host"], manifest(|bytes| bytes.truncate(bytes.len() / 2)), &[13], ""),
        ("no manifest", &["data", "--source", "host"], manifest(Vec::clear), &[13], ""),
        (
            "a forged one",
            &["data", "--source", "host"],
            manifest(|bytes| {
                let at = bytes.len() - 1;
                bytes[at] ^= 1;
            }),
            &[12, 13],
            "",
        ),
        ("a body that was changed", &["data", "--source", "host"], manifest(|bytes| bytes[30] ^= 1), &[12, 13], ""),
        (
            "the same again and again",
            &["data@latest~50", "--source", "host"],
            Box::new(move |list| list.push(old.clone())),
            &[13],
            "out of order",
        ),
    ];
    for (what, words, change, codes, word) in cases {
        let (vsync, _liar) = stage.victim(move |_, mut honest| {
            if let Reply::Snapshots(list) = &mut honest.reply {
                change(list);
            }
            honest.say()
        });
        let target = vsync_tests::scratch();
        let restore = ["restore", "--to-path", target.path().to_str().unwrap()];
        let output = vsync.run(restore.iter().chain(words));
        said(what, &output, codes, word);
        assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0, "{what}: something was written");
    }
    stage.recovers();
}

#[test]
fn a_list_without_an_end_is_given_up() {
    let stage = Stage::new(5);
    let next = AtomicU64::new(u64::MAX);
    let (vsync, _liar) = stage.victim(move |_, mut honest| {
        if let Reply::Snapshots(list) = &mut honest.reply {
            let Some(first) = list.first().cloned() else { return honest.say() };
            let count = (MAX_MESSAGE_LEN - 4096) / (first.manifest.len() + 64);
            let record = |_| SnapshotRecord { index: next.fetch_sub(1, Ordering::Relaxed), ..first.clone() };
            *list = (0..count).map(record).collect();
        }
        // It is not even asked for the right volume, so the first record is always there.
        honest.say()
    });
    let group = MemoryGroup::new("liar", 256 << 20);
    let output =
        vsync.through(group.prefix()).run(["restore", "data@latest~100000000", "--source", "host", "--to-path", "t"]);
    assert_eq!(group.kills(), 0, "{output}");
    said("an endless list", &output, &[1, 13], "");
}

/// A server's words, and those of other machines, are shown without what moves a terminal.
#[test]
fn words_cannot_play_with_the_terminal() {
    let stage = Stage::new(13);
    let evil = "\u{1b}[2Jevil\u{7}\u{202e}";
    stage.honest().run(["backup", "data", "--tag", &format!("by={evil}")]).success();
    let listed = stage.honest().run(["snapshots", "data"]).success();
    let (vsync, _liar) = stage.victim(move |request, mut honest| {
        if matches!(request, Request::Snapshots(_)) {
            honest.reply = Reply::Refused(Refusal { code: RefusalCode::Store, message: evil.to_owned() });
        }
        if let Reply::Status(status) = &mut honest.reply {
            status.version = evil.to_owned();
            status.warnings = vec![evil.to_owned()];
        }
        if let Reply::Overview(overview) = &mut honest.reply {
            overview.server.read_only = Some(evil.to_owned());
        }
        honest.say()
    });
    let refused = vsync.run(["snapshots", "data"]).code(1);
    let checked = vsync.run(["check", "--connection"]);
    let status = vsync.run(["status"]);
    for output in [listed, refused, checked, status] {
        let all = format!("{}{}", output.stdout(), output.stderr());
        assert!(all.contains("evil"), "{output:?}");
        assert!(!all.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{output:?}");
    }
}
