//! Trees that lead out of the volume.

use std::fs;

use vsync_protocol::tree::{EntryKind, Extent, Record};
use vsync_tests::Site;

use super::forger::{Forger, directory, file, link};
use super::victim::{Victim, meet};

/// Paths that lead out of the volume, each as long as what stands in its place when the leaf is made.
const PATHS: [(&str, &str); 9] = [
    ("XX/evil", "../evil"),
    ("Xabs/evil", "/abs/evil"),
    ("aX/b", "a//b"),
    ("a/X/b", "a/./b"),
    ("a/XX/b", "a/../b"),
    ("aXb", "a\0b"),
    ("X", "."),
    ("XX", ".."),
    ("a/X", "a/."),
];

#[test]
fn paths_that_lead_out_are_refused_before_anything_is_written() {
    let site = Site::new(21);
    for (good, bad) in PATHS {
        let mut forger = Forger::new(&site);
        let chunk = forger.chunk(b"evil");
        let records = vec![file("A-first", 0), file(good, 4), Record::Extents(vec![Extent::Chunk(0)])];
        let leaf = forger.leaf_of(&[chunk], records, |payload| {
            let at = payload.windows(good.len()).rposition(|window| window == good.as_bytes()).unwrap();
            payload[at..at + good.len()].copy_from_slice(bad.as_bytes());
        });
        let id = forger.commit(&Forger::top(&[leaf], 1));
        let victim = Victim::new();
        let output = meet(&site, &victim, bad, &id).code(13);
        assert!(output.stderr().contains("malformed"), "{bad:?}: {output}");
        assert_eq!(fs::read_dir(victim.target()).unwrap().count(), 0, "{bad:?}: something was written");
    }
}

#[test]
fn links_lead_nowhere() {
    let site = Site::new(22);
    type Make = fn(&str) -> Vec<Record>;
    let cases: [(&str, Make); 8] = [
        ("a file below a symlink", |out| vec![link("a", EntryKind::Symlink, out), file("a/canary", 0)]),
        ("a directory below a symlink", |out| vec![link("a", EntryKind::Symlink, out), directory("a/new")]),
        ("a symlink below a symlink", |out| {
            vec![
                link("a", EntryKind::Symlink, ".."),
                link("a/outside", EntryKind::Symlink, out),
                file("a/outside/x", 0),
            ]
        }),
        ("a hard link to a file outside", |out| vec![link("a", EntryKind::HardLink, &format!("{out}/canary"))]),
        ("a hard link with ..", |_| vec![link("a", EntryKind::HardLink, "../outside/canary")]),
        ("a hard link through a symlink", |out| {
            vec![link("a", EntryKind::Symlink, out), link("b", EntryKind::HardLink, "a/canary")]
        }),
        ("a hard link to itself", |_| vec![link("a", EntryKind::HardLink, "a")]),
        ("a hard link to nothing", |_| vec![link("a", EntryKind::HardLink, "")]),
    ];
    for (what, make) in cases {
        let victim = Victim::new();
        let mut forger = Forger::new(&site);
        let leaf = forger.leaf(&[], make(&victim.outside()));
        let id = forger.commit(&Forger::top(&[leaf], 1));
        let output = meet(&site, &victim, what, &id);
        assert_ne!(output.status(), Some(0), "{what}: {output}");
    }
    // A hard link to a symlink is one more name of the link itself.
    let victim = Victim::new();
    let mut forger = Forger::new(&site);
    let canary = format!("{}/canary", victim.outside());
    let leaf = forger.leaf(&[], vec![link("a", EntryKind::Symlink, &canary), link("b", EntryKind::HardLink, "a")]);
    let id = forger.commit(&Forger::top(&[leaf], 1));
    meet(&site, &victim, "a hard link to a symlink", &id);
}
