//! No answer, or half of one.

use std::sync::atomic::{AtomicBool, Ordering};

use vsync_protocol::limits::MAX_MESSAGE_LEN;
use vsync_protocol::wire::Request;
use vsync_tests::Answer;

use super::stage::{Stage, said};

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
