//! What a backup or restore costs is counted: work that nobody needs is not done.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use vsync_tests::{Site, Tree, Volume, assert_same, shell};

/// Longer than the moments in which a file may change again unnoticed.
const SETTLED: Duration = Duration::from_millis(3200);

/// Bytes of a manifest, a few tree nodes and their padding.
const OVERHEAD: u64 = 64 << 10;

/// Longest chunk, sealed.
const CHUNK: u64 = 260 << 10;

#[test]
fn an_unchanged_volume_is_neither_opened_nor_sent() {
    let site = Site::new(1);
    site.data.many("many", 300, 20_000).random("large", 20 << 20).link("many/linked", "large").zoo();
    std::thread::sleep(SETTLED);
    let first = site.backup();
    assert!(first.number("data_blobs") > 300 && first.number("files_opened") > 300, "{first:?}");
    let second = site.backup();
    for key in ["files_opened", "bytes_read", "data_blobs", "data_added_packed"] {
        assert_eq!(second.number(key), 0, "{key} of {second:?}");
    }
    assert_eq!(second.text("parent"), first.text("snapshot_id"));
    assert_ne!(second.text("snapshot_id"), first.text("snapshot_id"));

    // The kernel's word for it: no file of the volume is opened, and nothing in it is read.
    let log = vsync_tests::scratch();
    let log = log.path().join("calls");
    let calls = "trace=read,readv,pread64,preadv,preadv2,copy_file_range,mmap,open,openat,openat2";
    let traced = site.host().through(["strace", "-f", "-y", "-e", calls, "-o", log.to_str().unwrap()]);
    traced.run(["backup", "data", "-q"]).success();
    let text = fs::read_to_string(&log).unwrap();
    let name = site.data.path().to_str().unwrap();
    let (opens, reads): (Vec<_>, Vec<_>) = text
        .lines()
        .filter(|line| line.contains(name) && !line.contains(" resumed>"))
        .partition(|line| line.split_whitespace().nth(1).is_some_and(|call| call.starts_with("open")));
    assert!(reads.is_empty(), "{reads:#?}");
    // Directories are listed; what is only looked at is not opened.
    let (directories, files): (Vec<&str>, Vec<&str>) =
        opens.into_iter().partition(|line| line.contains("O_DIRECTORY") || line.contains("O_PATH"));
    assert!(files.is_empty(), "{files:#?}");
    assert!(directories.len() > 3, "the trace is empty: {text}");
}

/// How many blobs of each kind the store's packs hold, as their tables say: chunks, leaves, inner nodes, roots.
fn kinds(store: &Path) -> [u64; 4] {
    let mut counts = [0; 4];
    for shelf in fs::read_dir(store.join("packs")).unwrap().map(|entry| entry.unwrap().path()) {
        let packs = fs::read_dir(shelf).unwrap().map(|entry| entry.unwrap().path());
        for pack in packs.filter(|path| path.extension().is_some_and(|extension| extension == "pack")) {
            let bytes = fs::read(pack).unwrap();
            let end = bytes.len() - 48;
            let length = usize::try_from(u64::from_le_bytes(bytes[end..end + 8].try_into().unwrap())).unwrap();
            let rows = bytes[end - length..end].chunks_exact(48);
            rows.for_each(|row| counts[usize::from(row[44]) - 1] += 1);
        }
    }
    counts
}

#[test]
fn one_page_sends_one_chunk_one_leaf_and_its_ancestors() {
    let site = Site::new(2);
    site.data.random("base/1/1259", 1 << 30).random("archive", 96 << 20).many("many", 2000, 200);
    std::thread::sleep(SETTLED);
    let first = site.backup();
    assert!(first.number("data_blobs") > 10_000, "{first:?}");
    let before = kinds(&site.store());
    assert_eq!(before.iter().sum::<u64>(), first.number("data_blobs"), "{before:?}");
    site.data.patch("base/1/1259", 50 << 20, [0x5a; 8192]);
    let second = site.backup();
    assert_eq!(second.number("files_opened"), 1, "{second:?}");
    let after = kinds(&site.store());
    let new: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(new.iter().sum::<u64>(), second.number("data_blobs"), "{new:?}");
    // A cut point may move, in the file and in the tree: two chunks, two leaves; then one node on each level, the root.
    let [chunks, leaves, inner, roots] = new[..] else { panic!("{new:?}") };
    assert!((1..=2).contains(&chunks) && (1..=2).contains(&leaves) && inner <= 1 && roots == 1, "{new:?}");
    assert!(second.number("data_added_packed") < 2 * CHUNK + OVERHEAD, "{second:?}");

    site.data.insert("archive", 50 << 20, "inserted");
    let third = site.backup();
    assert!(third.number("data_blobs") <= 8, "{third:?}");
    let there = vsync_tests::scratch();
    site.restore(&["data"], there.path());
    assert_same(&Tree::read(site.data.path()), &Tree::read(there.path()));

    // Back: what has only moved is taken from what is there.
    let restored = site.restore(&["data@latest~1"], there.path());
    assert_eq!(restored.number("files_restored"), 1, "{restored:?}");
    assert!(restored.number("bytes_restored") < 4 * CHUNK, "{restored:?}");
    let restored = site.restore(&["data@latest~2"], there.path());
    assert!(restored.number("bytes_restored") < 2 * CHUNK, "{restored:?}");
}

#[test]
fn what_moved_or_was_copied_is_not_sent_again() {
    let site = Site::new(3);
    site.data.random("a/large", 24 << 20).text("a/text", 4 << 20).many("many", 500, 3000);
    std::thread::sleep(SETTLED);
    site.backup();
    site.data.rename("a/large", "z/renamed").rename("many", "other");
    fs::copy(site.data.join("a/text"), site.data.join("b/copy")).unwrap();
    let moved = site.backup();
    // Tree nodes only.
    assert!(moved.number("data_added_packed") < 100 << 10, "{moved:?}");
    let there = vsync_tests::scratch();
    site.restore(&["data"], there.path());
    assert_same(&Tree::read(site.data.path()), &Tree::read(there.path()));
}

#[test]
fn the_same_content_of_two_machines_is_stored_once() {
    let copy = Volume::new(4);
    copy.random("a", 20 << 20).many("many", 200, 9000);
    let site = Site::with(4, |realm| realm.client("other", &["copy"]).directory("copy", copy.path()));
    site.data.random("a", 20 << 20).many("many", 200, 9000);
    site.backup();
    let size = || shell::run("du", ["-sb", site.store().join("packs").to_str().unwrap()]);
    let bytes = |du: &str| du.split_whitespace().next().unwrap().parse::<u64>().unwrap();
    let before = bytes(&size());
    site.realm.vsync("other").run(["backup", "copy"]).success();
    let grown = bytes(&size()) - before;
    assert!(before > 20 << 20 && grown < 100 << 10, "{before} bytes grew by {grown}");
    let there = vsync_tests::scratch();
    let path = there.path().to_str().unwrap();
    site.realm.vsync("other").run(["restore", "copy", "--to-path", path]).success();
    assert_same(&Tree::read(copy.path()), &Tree::read(there.path()));
}

#[test]
fn restoring_over_an_equal_tree_fetches_nothing() {
    let site = Site::new(5);
    site.data.zoo().many("many", 300, 5000);
    site.backup();
    let there = vsync_tests::scratch();
    site.restore(&["data"], there.path());
    let files =
        || shell::run("sh", ["-c", "cd \"$0\"; find . -printf '%P %i %C@\\n' | sort", there.path().to_str().unwrap()]);
    let before = files();
    let again = site.restore(&["data"], there.path());
    assert_eq!((again.number("bytes_restored"), again.number("files_restored")), (0, 0), "{again:?}");
    // Neither replaced nor touched.
    assert_eq!(before, files());
}

#[test]
fn content_that_several_files_share_is_fetched_once() {
    let site = Site::new(6);
    site.data.random("00/first", 5 << 20);
    let content = fs::read(site.data.path().join("00/first")).unwrap();
    for copy in 0..40 {
        fs::create_dir(site.data.path().join(format!("1{copy:02}"))).unwrap();
        fs::write(site.data.path().join(format!("1{copy:02}/copy")), &content).unwrap();
        // Not the same file, but the same chunks but for the first.
        fs::write(site.data.path().join(format!("1{copy:02}/nearly")), [&[copy; 9], &content[9..]].concat()).unwrap();
    }
    site.backup();
    let there = vsync_tests::scratch();
    let restored = site.restore(&["data"], there.path());
    let once = content.len() as u64 + 40 * CHUNK;
    assert!(restored.number("bytes_restored") < 3 * once, "{restored:?}");
    assert!(restored.number("total_bytes") > 400 << 20, "{restored:?}");
    assert_same(&Tree::read(site.data.path()), &Tree::read(there.path()));
}

#[test]
fn content_that_moved_by_whole_blocks_is_not_copied() {
    let site = Site::new(7);
    site.data.random("inserted", 40 << 20).random("removed", 40 << 20);
    site.backup();
    let there = vsync_tests::scratch();
    site.restore(&["data"], there.path());
    let inodes = || ["inserted", "removed"].map(|name| fs::metadata(there.path().join(name)).unwrap().ino());
    let before = inodes();
    site.data.insert("inserted", 20 << 20, vec![7; 1 << 20]).patch("inserted", 5 << 20, "somewhere");
    let mut content = fs::read(site.data.join("removed")).unwrap();
    content.drain(10 << 20..(10 << 20) + 40_960);
    site.data.write("removed", content);
    site.backup();
    let log = vsync_tests::scratch();
    let log = log.path().join("calls");
    let traced = site.host().through(["strace", "-f", "-y", "-e", "trace=pwrite64,write", "-o", log.to_str().unwrap()]);
    traced.run(["restore", "data", "-q", "--to-path", there.path().to_str().unwrap()]).success();
    assert_same(&Tree::read(site.data.path()), &Tree::read(there.path()));
    // ext4 and XFS put blocks in and take them out; elsewhere a new file takes the old one's place.
    if [0xef53, 0x5846_5342].contains(&rustix::fs::statfs(there.path()).unwrap().f_type) {
        assert_eq!(before, inodes());
        let text = fs::read_to_string(&log).unwrap();
        let name = there.path().to_str().unwrap();
        let lengths = text.lines().filter(|line| line.contains(name)).filter_map(|line| line.rsplit("= ").next());
        let written: u64 = lengths.filter_map(|length| length.trim().parse::<u64>().ok()).sum();
        assert!(written < 8 * CHUNK + (1 << 20), "{written} bytes written");
    }
}
