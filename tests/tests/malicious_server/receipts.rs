//! What is said of a backup.

use vsync_protocol::id::{Cid, ManifestHash, RealmId};
use vsync_protocol::wire::{Answers, Cids, Refusal, RefusalCode, Reply, Request};
use vsync_tests::liar::Honest;

use super::stage::{Stage, said};

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
