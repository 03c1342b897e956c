//! A server that means harm (A06, A11, N02, N11): whatever it answers, the agent ends in time, within its memory, with
//! an exit status and words that fit, and what it has written is right.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use vsync_protocol::blob::{BlobKind, Header};
use vsync_protocol::id::{Cid, LogHead, ManifestHash, RealmId};
use vsync_protocol::limits::{MAX_BLOB_LEN, MAX_MESSAGE_LEN};
use vsync_protocol::log::LogEntry;
use vsync_protocol::manifest::LogPosition;
use vsync_protocol::wire::{Answers, Cids, FrameHead, Refusal, RefusalCode, Reply, Request, SnapshotRecord};
use vsync_tests::liar::Honest;
use vsync_tests::{Answer, Liar, MemoryGroup, Output, Site, Tree, Volume, Vsync, assert_same};

/// A site with snapshots of two volumes, and a machine that meets the liar in place of the server.
struct Stage {
    site: Site,
    _other: Volume,
    honest: String,
}

impl Stage {
    fn new(seed: u64) -> Self {
        let other = Volume::new(seed + 1000);
        other.write("secret", "of another volume");
        let path = other.path().to_owned();
        let site = Site::with(seed, |realm| realm.client("host2", &["data", "other"]).directory("other", &path));
        site.data.random("large", 3 << 20).write("small", "old").many("many", 40, 3000);
        let toml = fs::read_to_string(site.realm.admin().join("vsync.toml")).unwrap();
        let line = toml.lines().find(|line| line.starts_with("address")).unwrap();
        let stage = Self { honest: line.split('"').nth(1).unwrap().to_owned(), _other: other, site };
        let second = stage.site.realm.vsync("host2");
        second.run(["backup", "other"]).success();
        second.run(["backup", "data"]).success();
        stage.site.backup();
        stage.site.data.write("small", "new").patch("large", 5000, "changed");
        stage.site.backup();
        stage
    }

    /// The machine, which asks the liar from now on.
    fn victim(&self, lie: impl Fn(&Request, Honest) -> Answer + Send + Sync + 'static) -> (Vsync, Liar) {
        let realm = &self.site.realm;
        let liar = Liar::before(&self.honest, &realm.identity("store"), &realm.identity("host"), lie);
        let file = realm.machine("host").join("vsync.toml");
        let toml = fs::read_to_string(realm.admin().join("vsync.toml")).unwrap();
        assert!(toml.contains(&self.honest));
        fs::write(&file, toml.replace(&self.honest, &liar.address().to_string())).unwrap();
        (self.site.host().env("VSYNC_PATIENCE", "2").limit(Duration::from_secs(120)), liar)
    }

    /// The machine, which asks the server again.
    fn honest(&self) -> Vsync {
        let realm = &self.site.realm;
        fs::copy(realm.admin().join("vsync.toml"), realm.machine("host").join("vsync.toml")).unwrap();
        self.site.host()
    }

    /// Restores through the liar; whatever became of it, no file is there that is not right.
    #[track_caller]
    fn restore(&self, what: &str, lie: impl Fn(&Request, Honest) -> Answer + Send + Sync + 'static) -> Output {
        let (vsync, _liar) = self.victim(lie);
        let target = vsync_tests::scratch();
        let output = vsync.run(["restore", "data", "--source", "host", "--to-path", target.path().to_str().unwrap()]);
        assert!(!output.stderr().contains("panicked"), "{what}: {output}");
        let (expected, found) = (Tree::read(self.site.data.path()), Tree::read(target.path()));
        for path in found.paths().filter(|path| target.path().join(path).is_file()) {
            let right = fs::read(self.site.data.path().join(path))
                .unwrap_or_else(|error| panic!("{what}: {} was not backed up: {error}; {output}", path.display()));
            assert!(fs::read(target.path().join(path)).unwrap() == right, "{what}: {} is wrong", path.display());
        }
        if output.status() == Some(0) {
            assert_same(&expected, &found);
        }
        output
    }

    #[track_caller]
    fn backup(&self, lie: impl Fn(&Request, Honest) -> Answer + Send + Sync + 'static) -> Output {
        let (vsync, _liar) = self.victim(lie);
        let output = vsync.run(["backup", "data"]);
        assert!(!output.stderr().contains("panicked"), "{output}");
        output
    }

    /// An honest backup and restore after all that.
    #[track_caller]
    fn recovers(&self) {
        self.honest().run(["backup", "data"]).success();
        let target = vsync_tests::scratch();
        self.honest()
            .run(["restore", "data", "--source", "host", "--to-path", target.path().to_str().unwrap()])
            .success();
        assert_same(&Tree::read(self.site.data.path()), &Tree::read(target.path()));
    }
}

#[track_caller]
fn said(what: &str, output: &Output, codes: &[i32], word: &str) {
    let code = output.status().unwrap_or(-1);
    assert!(codes.contains(&code), "{what}: exit status {code}, not {codes:?}: {output}");
    assert!(output.stderr().contains(word), "{what}: no {word:?} in {output}");
}

fn is_chunk(blob: &[u8]) -> bool {
    Header::parse(blob).is_ok_and(|header| header.kind == BlobKind::Chunk)
}

/// Changes the blobs that are sent; `chunks` says which kind.
fn blobs(
    chunks: bool,
    change: impl Fn(&mut Vec<u8>) + Send + Sync,
) -> impl Fn(&Request, Honest) -> Answer + Send + Sync {
    move |_, mut honest| {
        honest.blobs.iter_mut().filter(|(_, blob)| is_chunk(blob) == chunks).for_each(|(_, blob)| change(blob));
        honest.say()
    }
}

#[test]
fn wrong_blobs_are_never_taken_for_right_ones() {
    let stage = Stage::new(1);
    type Change = fn(&mut Vec<u8>);
    let changes: [(&str, Change, &[i32]); 7] = [
        ("a bit of the first byte", |blob| blob[0] ^= 1, &[13]),
        (
            "a bit of the middle",
            |blob| {
                let at = blob.len() / 2;
                blob[at] ^= 0x10;
            },
            &[13],
        ),
        (
            "a bit of the last byte",
            |blob| {
                let at = blob.len() - 1;
                blob[at] ^= 0x80;
            },
            &[13],
        ),
        ("one byte less", |blob| blob.truncate(blob.len() - 1), &[13]),
        // Longer than it can be, or only longer than it is.
        ("one byte more", |blob| blob.push(0), &[1, 13]),
        ("nothing", Vec::clear, &[13]),
        ("zeros", |blob| blob.fill(0), &[13]),
    ];
    for chunks in [true, false] {
        for (what, change, codes) in changes {
            let output = stage.restore(what, blobs(chunks, change));
            said(what, &output, codes, "");
        }
    }
    let output = stage.restore("blobs under each other's names", |_, mut honest| {
        let wrong: Vec<Vec<u8>> = honest.blobs.iter().rev().map(|(_, blob)| blob.clone()).collect();
        let chunks = honest.blobs.iter().all(|(_, blob)| is_chunk(blob));
        if chunks {
            honest.blobs.iter_mut().zip(wrong).for_each(|((_, blob), wrong)| *blob = wrong);
        }
        honest.say()
    });
    said("blobs under each other's names", &output, &[1, 13], "");
    stage.recovers();
}

#[test]
fn frames_that_were_not_asked_for_are_refused() {
    let stage = Stage::new(2);
    let output = stage.restore("another blob", |_, mut honest| {
        for (cid, _) in &mut honest.blobs {
            *cid = Cid::of(b"something else");
        }
        honest.say()
    });
    said("another blob", &output, &[1], "was not asked for");
    let output = stage.restore("each twice", |_, mut honest| {
        honest.blobs = honest.blobs.iter().flat_map(|frame| [frame.clone(), frame.clone()]).collect();
        honest.say()
    });
    // Enough when the second one comes last: nobody reads on.
    said("each twice", &output, &[0, 1], "");
    let output = stage.restore("longer than any", |request, mut honest| match request {
        Request::Fetch { cids } => {
            honest.blobs.clear();
            let head = FrameHead { len: MAX_BLOB_LEN + 1, cid: cids.as_slice()[0] };
            Answer::Bytes([honest.bytes(), head.encode().to_vec()].concat())
        }
        _ => honest.say(),
    });
    said("longer than any", &output, &[1], "longer than any may be");
    let output = stage.restore("2^32 - 1 bytes", |request, mut honest| match request {
        Request::Fetch { cids } => {
            honest.blobs.clear();
            let head = [&u32::MAX.to_le_bytes()[..], cids.as_slice()[0].as_bytes()].concat();
            Answer::Endless([honest.bytes(), head].concat(), vec![0; 1 << 20])
        }
        _ => honest.say(),
    });
    said("2^32 - 1 bytes", &output, &[1], "longer than any may be");
    let output = stage.restore("and on and on", |_, honest| match honest.reply {
        Reply::Fetching => Answer::Endless(honest.bytes(), vec![0; 1 << 20]),
        _ => honest.say(),
    });
    said("and on and on", &output, &[0], "");
}

/// The agent would hold all that it has asked for: what is sent must be no longer than what was asked for.
#[test]
fn blobs_that_are_too_long_do_not_fill_memory() {
    let stage = Stage::new(3);
    stage.site.data.many("tiny", 20_000, 60);
    stage.honest().run(["backup", "data"]).success();
    let (vsync, _liar) = stage.victim(|_, mut honest| {
        for (_, blob) in honest.blobs.iter_mut().filter(|(_, blob)| is_chunk(blob)).take(10) {
            blob.resize(MAX_BLOB_LEN, 0);
        }
        honest.say()
    });
    let group = MemoryGroup::new("liar", 256 << 20);
    let target = vsync_tests::scratch();
    let restore = ["restore", "data", "--source", "host", "--to-path", target.path().to_str().unwrap()];
    // They take the liar a while.
    let output = vsync.with(["--patience", "60"]).through(group.prefix()).run(restore);
    assert_eq!(group.kills(), 0, "{output}");
    said("long blobs", &output, &[1], "longer than it can be");
}

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

#[test]
fn receipts_and_answers_about_a_backup_are_checked() {
    let stage = Stage::new(7);
    type Change = fn(&mut Reply);
    let changes: [(&str, Change, &[i32], &str); 9] = [
        (
            "a signature that is none",
            |reply| {
                if let Reply::Committed(receipt) = reply {
                    receipt.signature[5] ^= 1;
                }
            },
            &[1],
            "receipt is not valid",
        ),
        (
            "a receipt of another manifest",
            |reply| {
                if let Reply::Committed(receipt) = reply {
                    receipt.manifest = ManifestHash::from_bytes([1; 32]);
                }
            },
            &[1],
            "receipt is not valid",
        ),
        (
            "a receipt of another realm",
            |reply| {
                if let Reply::Committed(receipt) = reply {
                    receipt.realm = RealmId::from_bytes([1; 16]);
                }
            },
            &[1],
            "receipt is not valid",
        ),
        (
            "a receipt of another place in the log",
            |reply| {
                if let Reply::Committed(receipt) = reply {
                    receipt.log.index += 1;
                }
            },
            &[1],
            "receipt is not valid",
        ),
        (
            "everything missing, again and again",
            |reply| {
                if matches!(reply, Reply::Committed(_) | Reply::Missing(_)) {
                    *reply = Reply::Missing(Cids::new(vec![Cid::of(b"x"); 1000]));
                }
            },
            &[1, 13],
            "lacks 1000 blobs",
        ),
        (
            "an answer to another question",
            |reply| {
                if matches!(reply, Reply::Opened { .. }) {
                    *reply = Reply::Flushed;
                }
            },
            &[1],
            "protocol",
        ),
        (
            "no session, again and again",
            |reply| {
                if matches!(reply, Reply::Have(_) | Reply::Flushed | Reply::Committed(_)) {
                    let message = "no such session".to_owned();
                    *reply = Reply::Refused(Refusal { code: RefusalCode::NoSession, message });
                }
            },
            &[1],
            "no such session",
        ),
        (
            "shutting down, again and again",
            |reply| {
                if matches!(reply, Reply::Committed(_)) {
                    let message = "shutting down".to_owned();
                    *reply = Reply::Refused(Refusal { code: RefusalCode::Draining, message });
                }
            },
            &[10],
            "shutting down",
        ),
        (
            "a sequence that is none",
            |reply| {
                if let Reply::Opened { last, .. } = reply {
                    *last = Some((u64::MAX - 7, ManifestHash::from_bytes([1; 32])));
                }
            },
            &[1],
            "",
        ),
    ];
    for (number, (what, change, codes, word)) in changes.into_iter().enumerate() {
        stage.site.data.write("small", format!("version {number}"));
        let output = stage.backup(move |_, mut honest| {
            change(&mut honest.reply);
            honest.say()
        });
        said(what, &output, codes, word);
    }
    stage.recovers();
}

/// A server that says that it has everything, and one that says that it has nothing.
#[test]
fn lies_about_what_is_here_cost_no_snapshot() {
    let stage = Stage::new(8);
    stage.site.data.random("fresh", 2 << 20);
    let have = |yes: bool| {
        move |_: &Request, mut honest: Honest| {
            if let Reply::Have(answers) = &mut honest.reply {
                *answers = [yes; 1024].into_iter().collect::<Answers>();
            }
            honest.say()
        }
    };
    // All of it is there, it says, and then it has not got it.
    let output = stage.backup(have(true));
    said("it has everything", &output, &[13], "lacks");
    stage.recovers();
    stage.site.data.random("fresh", 1 << 20).random("fresher", 1 << 20);
    stage.backup(have(false)).success();
    stage.recovers();
    // It says that all is durable, and the upload never arrived.
    stage.site.data.random("freshest", 1 << 20);
    let output = stage.backup(|request, mut honest| {
        if matches!(request, Request::Flush { .. }) {
            honest.reply = Reply::Flushed;
        }
        honest.say()
    });
    assert!([Some(0), Some(13)].contains(&output.status()), "{output}");
    stage.recovers();
}

/// The name of a verb, for the words of a failure, and what silences it.
type Silenced = (&'static str, &'static [&'static str], fn(&Request) -> bool);

const SILENCED: [Silenced; 8] = [
    ("Hello", &["snapshots"], |request| matches!(request, Request::Hello { .. })),
    ("Snapshots", &["snapshots"], |request| matches!(request, Request::Snapshots(_))),
    ("Fetch", &["restore", "data", "--source", "host", "--to-path", "t"], |request| {
        matches!(request, Request::Fetch { .. })
    }),
    ("Open", &["backup", "data"], |request| matches!(request, Request::Open { .. })),
    ("Have", &["backup", "data"], |request| matches!(request, Request::Have { .. })),
    ("Flush", &["backup", "data"], |request| matches!(request, Request::Flush { .. })),
    ("Commit", &["backup", "data"], |request| matches!(request, Request::Commit { .. })),
    ("Overview", &["status"], |request| matches!(request, Request::Overview)),
];

/// What a command ends with when all answers to a verb are kept from it.
fn final_codes(verb: &str) -> &'static [i32] {
    match verb {
        // A connection that is closed at hello looks like a key that is not accepted.
        "Hello" => &[10, 12],
        // It was done all the same: the next session learns that all is there.
        "Flush" => &[0],
        _ => &[10],
    }
}

/// N11, A06: a server that keeps its connection alive and says nothing, or breaks every answer off.
#[test]
fn a_silent_server_is_given_up() {
    let stage = Stage::new(9);
    for (verb, command, silenced) in SILENCED {
        stage.site.data.write("small", format!("before {verb}"));
        let (vsync, _liar) = stage.victim(
            move |request, honest| {
                if silenced(request) { Answer::Silence(Vec::new()) } else { honest.say() }
            },
        );
        let output = vsync.with(["--patience", "1"]).run(command);
        said(verb, &output, final_codes(verb), "");
    }
    // In the middle of an answer.
    let output = stage.restore("half an answer", |request, honest| match request {
        Request::Fetch { .. } => {
            let bytes = honest.bytes();
            Answer::Silence(bytes[..bytes.len() / 2].to_vec())
        }
        _ => honest.say(),
    });
    said("half an answer", &output, &[10], "silent");
    stage.recovers();
}

#[test]
fn answers_that_are_broken_off_are_given_up() {
    let stage = Stage::new(10);
    for (verb, command, broken) in SILENCED {
        for close in [false, true] {
            stage.site.data.write("small", format!("before {verb} {close}"));
            let (vsync, _liar) = stage.victim(move |request, honest| match (broken(request), close) {
                (true, true) => Answer::Close,
                (true, false) => Answer::Reset,
                _ => honest.say(),
            });
            let output = vsync.run(command);
            said(verb, &output, final_codes(verb), "");
        }
    }
    // Once only: the work goes on by itself.
    for (verb, command, broken) in &SILENCED[1..] {
        let (once, broken) = (AtomicBool::new(true), *broken);
        stage.site.data.write("small", format!("after {verb}"));
        let (vsync, _liar) = stage.victim(move |request, honest| {
            if broken(request) && once.swap(false, Ordering::Relaxed) { Answer::Close } else { honest.say() }
        });
        let output = vsync.with(["--patience", "60"]).run(*command);
        assert!(matches!(output.status(), Some(0 | 3)), "{verb}: {output}");
    }
    stage.recovers();
}

/// N02: answers that are cut at every length, or that are noise.
#[test]
fn messages_that_are_none_are_refused() {
    let stage = Stage::new(11);
    let cases: [(&str, Vec<u8>, &[i32]); 6] = [
        ("longer than any", (u32::try_from(MAX_MESSAGE_LEN).unwrap() + 1).to_le_bytes().to_vec(), &[1]),
        ("2^32 - 1", u32::MAX.to_le_bytes().to_vec(), &[1]),
        ("empty", 0_u32.to_le_bytes().to_vec(), &[1]),
        ("noise", [&8_u32.to_le_bytes()[..], b"\xff\xfe\x00nois"].concat(), &[1, 10]),
        ("nothing", Vec::new(), &[10]),
        ("a deep nest", [&1000_u32.to_le_bytes()[..], &[0x81; 1000]].concat(), &[1]),
    ];
    for (what, bytes, codes) in cases {
        let (vsync, _liar) = stage.victim(move |request, honest| match request {
            Request::Hello { .. } => honest.say(),
            _ => Answer::Bytes(bytes.clone()),
        });
        said(what, &vsync.run(["snapshots"]), codes, "");
    }
    stage.recovers();
}
