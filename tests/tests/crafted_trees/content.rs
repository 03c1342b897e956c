//! Content that is not what it looks like.

use std::fs;

use vsync_protocol::tree::Leaf;
use vsync_tests::{Site, Tree, assert_same};

/// A14, B24: files whose content is a blob, a node, a manifest, a pack or a log of the same realm are files.
#[test]
fn content_that_looks_like_vsyncs_own_is_content() {
    let site = Site::new(24);
    site.data.write("file", "content").random("random", 300_000);
    site.backup();
    let volume = Leaf::default();
    site.data.write("a leaf", minicbor::to_vec(&volume).unwrap());
    let store = site.store();
    let mut copied = 0;
    for room in ["packs", "manifests", "log"] {
        let mut below = vec![store.join(room)];
        while let Some(place) = below.pop() {
            if place.is_dir() {
                below.extend(fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                copied += 1;
                site.data.write(format!("{room}-{copied}"), fs::read(&place).unwrap());
            }
        }
    }
    assert!(copied >= 3);
    site.backup();
    let target = vsync_tests::scratch();
    site.restore(&["data"], target.path());
    assert_same(&Tree::read(site.data.path()), &Tree::read(target.path()));
    site.host().run(["verify", "data", "--read-data"]).success();
}
