//! Changes that are easily missed (B04): in the same moment, with the old time put back, through a mapped page, by
//! another inode. The next backup has them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use vsync_tests::{Site, Tree, Volume, scratch, shell};

const SIZE: usize = 40_000;

/// Two contents of one size.
static OLD: [u8; SIZE] = [b'o'; SIZE];
static NEW: [u8; SIZE] = [b'n'; SIZE];

/// Gives a file the time that another had.
fn put_back(data: &Volume, path: &str, before: &fs::Metadata) {
    data.mtime(path, before.mtime(), u32::try_from(before.mtime_nsec()).unwrap());
}

fn mapped(data: &Volume) {
    let write = "import mmap, sys\n\
                 with open(sys.argv[1], 'r+b') as file:\n    \
                 memory = mmap.mmap(file.fileno(), 0)\n    \
                 memory[100:103] = b'new'\n    \
                 memory.flush()\n";
    shell::run("python3", ["-c", write, data.join("file").to_str().unwrap()]);
}

type Change = fn(&Volume, &fs::Metadata);

/// Each with what it does to `file`; `twin` has the same size and time.
const CHANGES: [(&str, Change); 13] = [
    ("written again at once", |data, _| _ = data.write("file", NEW)),
    ("one byte", |data, _| _ = data.patch("file", 777, "n")),
    ("the old time put back", |data, before| put_back(data.patch("file", 9, "new"), "file", before)),
    ("a time before it", |data, _| _ = data.patch("file", 9, "new").mtime("file", 1, 1)),
    ("through a mapped page", |data, _| mapped(data)),
    ("through a mapped page, the time put back", |data, before| {
        mapped(data);
        put_back(data, "file", before);
    }),
    ("another file of the name, the time put back", |data, before| {
        // Its inode may well be the old one's.
        put_back(data.remove("file").write("file", NEW), "file", before);
    }),
    ("the twin takes the name", |data, _| _ = data.remove("file").rename("twin", "file")),
    ("both change names", |data, _| {
        data.rename("file", "third").rename("twin", "file").rename("third", "twin");
    }),
    ("through another name", |data, before| {
        put_back(data.link("other", "file").patch("other", 5, "new").remove("other"), "file", before);
    }),
    ("longer and cut again", |data, before| {
        put_back(
            data.patch("file", SIZE as u64, "more").patch("file", 3, "new").resize("file", SIZE as u64),
            "file",
            before,
        );
    }),
    ("only its mode", |data, before| put_back(data.mode("file", 0o640), "file", before)),
    ("only an attribute", |data, before| put_back(data.xattr("file", "user.new", "n"), "file", before)),
];

/// A directory for each change below `root`, with what is changed in it.
struct Places(Vec<(Volume, fs::Metadata)>);

impl Places {
    fn new(root: &Volume) -> Self {
        Self((0..CHANGES.len()).map(|number| Self::begin(Volume::at(&root.join(number.to_string()), 1))).collect())
    }

    fn begin(place: Volume) -> (Volume, fs::Metadata) {
        place.write("file", OLD).write("twin", [b't'; SIZE]).mtime("file", 1_700_000_000, 5).mtime(
            "twin",
            1_700_000_000,
            5,
        );
        let before = fs::metadata(place.join("file")).unwrap();
        (place, before)
    }

    fn change(&self) {
        CHANGES.iter().zip(&self.0).for_each(|((_, change), (place, before))| change(place, before));
    }
}

/// The first component of what differs is the number of its change.
#[track_caller]
fn same(source: &Path, restored: &Path) {
    let differences = Tree::read(source).differences(&Tree::read(restored));
    let names: Vec<_> = CHANGES.iter().map(|(name, _)| name).enumerate().collect();
    assert!(differences.is_empty(), "{differences:#?} of {names:#?}");
}

fn is_seen(site: &Site) {
    site.backup();
    let there = scratch();
    site.restore(&["data"], there.path());
    same(site.data.path(), there.path());
}

#[test]
fn what_changes_right_after_a_backup_is_in_the_next() {
    let site = Site::new(1);
    let places = Places::new(&site.data);
    site.backup();
    places.change();
    is_seen(&site);
}

#[test]
fn what_changes_long_after_it_was_read_is_in_the_next() {
    let site = Site::new(2);
    let places = Places::new(&site.data);
    // The second backup takes the files over from the first, unread.
    std::thread::sleep(std::time::Duration::from_millis(3200));
    site.backup();
    let second = site.backup();
    assert_eq!(second.number("files_opened"), 0, "{second:?}");
    places.change();
    is_seen(&site);
}

/// A restore over what is there notices too, whatever it remembers of having made it.
#[test]
fn what_changes_in_a_restored_directory_is_noticed() {
    let site = Site::new(3);
    Places::new(&site.data);
    site.backup();
    let there = scratch();
    for _ in 0..2 {
        site.restore(&["data"], there.path());
        let places = (0..CHANGES.len()).map(|number| Volume::at(&there.path().join(number.to_string()), 3));
        let before = |place: Volume| {
            let before = fs::metadata(place.join("file")).unwrap();
            (place, before)
        };
        Places(places.map(before).collect()).change();
        site.restore(&["data"], there.path());
        same(site.data.path(), there.path());
    }
}
