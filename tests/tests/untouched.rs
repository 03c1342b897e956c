//! What vsync restored itself is not read again, unless anyone may have touched it: then it is.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vsync_tests::site::Summary;
use vsync_tests::{Site, Tree, Volume, assert_same, shell};

/// Sixteen of the longest chunks: what is compared as a whole.
const GROUP: u64 = 16 * (256 << 10);

/// Two versions of a volume: `large` differs in one page, `changed` wholly.
fn two_versions(seed: u64) -> (Site, TempDir) {
    let site = Site::new(seed);
    site.data.many("many", 200, 20_000).random("large", 48 << 20).random("base/1/1259", 16 << 20);
    site.data.write("changed", "first").random("twin", 300_000).random("other", 300_000);
    site.backup();
    site.data.patch("large", 20 << 20, [7; 4096]).patch("base/1/1259", 8 << 20, [7; 8192]).write("changed", "second");
    site.backup();
    (site, vsync_tests::scratch())
}

fn opened(summary: &Summary) -> (u64, u64) {
    (summary.number("files_opened"), summary.number("bytes_read"))
}

/// Restores the newest version over what is there; it must be right, whatever had to be read.
fn mended(site: &Site, there: &Path) -> Summary {
    let restored = site.restore(&["data"], there);
    assert_same(&Tree::read(site.data.path()), &Tree::read(there));
    restored
}

#[test]
fn what_nobody_touched_is_neither_opened_nor_read() {
    let (site, there) = two_versions(1);
    let first = site.restore(&["data@latest~1"], there.path());
    assert_eq!(opened(&first), (0, 0), "{first:?}");
    let over = mended(&site, there.path());
    assert_eq!(over.number("files_restored"), 3, "{over:?}");
    assert_eq!(over.number("files_opened"), 3, "{over:?}");
    assert!(over.number("bytes_read") <= 3 * GROUP, "{over:?}");
    let again = mended(&site, there.path());
    assert_eq!(opened(&again), (0, 0), "{again:?}");
    assert_eq!(again.number("files_restored"), 0, "{again:?}");

    // The kernel's word for it.
    let log = vsync_tests::scratch();
    let log = log.path().join("calls");
    let traced =
        site.host().through(["strace", "-f", "-y", "-e", "trace=read,pread64,preadv", "-o", log.to_str().unwrap()]);
    traced.run(["restore", "data", "-q", "--to-path", there.path().to_str().unwrap()]).success();
    let text = fs::read_to_string(&log).unwrap();
    let name = there.path().to_str().unwrap();
    let reads: Vec<_> = text.lines().filter(|line| line.contains(name)).collect();
    assert!(reads.is_empty() && text.lines().count() > 20, "{reads:#?}");
}

#[test]
fn a_file_that_was_touched_is_read_even_if_its_times_and_size_say_nothing() {
    let (site, there) = two_versions(2);
    mended(&site, there.path());
    let target = Volume::at(there.path(), 2);
    for name in ["large", "twin"] {
        let before = fs::metadata(target.join(name)).unwrap();
        target.patch(name, 4096, b"not what was restored");
        target.mtime(name, before.mtime(), u32::try_from(before.mtime_nsec()).unwrap());
        let after = fs::metadata(target.join(name)).unwrap();
        assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));
    }
    let over = mended(&site, there.path());
    assert_eq!((over.number("files_opened"), over.number("files_restored")), (2, 2), "{over:?}");
}

#[test]
fn a_file_that_another_one_replaced_is_read() {
    let (site, there) = two_versions(3);
    mended(&site, there.path());
    let target = Volume::at(there.path(), 3);
    // Both were restored by vsync, have one size, and now one has the name of the other.
    target.remove("twin").rename("other", "twin");
    target.remove("many/000/000001");
    let [from, to] = ["many/000/000000", "many/000/000001"].map(|name| target.join(name));
    shell::run("cp", ["-p".as_ref(), from.as_os_str(), to.as_os_str()]);
    shell::run("touch", ["-r", site.data.join("changed").to_str().unwrap(), target.join("twin").to_str().unwrap()]);
    let over = mended(&site, there.path());
    assert!(over.number("files_opened") >= 1 && over.number("files_restored") >= 2, "{over:?}");
}

#[test]
fn directories_that_changed_places_do_not_deceive() {
    let site = Site::new(4);
    // Same names, same sizes, same times; other content.
    for directory in ["a", "b"] {
        site.data.random(format!("{directory}/file"), 100_000).mtime(format!("{directory}/file"), 1_700_000_000, 0);
    }
    site.backup();
    let there = vsync_tests::scratch();
    mended(&site, there.path());
    Volume::at(there.path(), 4).rename("a", "c").rename("b", "a").rename("c", "b");
    let over = mended(&site, there.path());
    assert_eq!((over.number("files_opened"), over.number("files_restored")), (2, 2), "{over:?}");
}

#[test]
fn without_a_record_everything_is_read_and_with_that_of_another_place_too() {
    let (site, there) = two_versions(5);
    mended(&site, there.path());
    let records = records(&site);
    assert_eq!(record_files(&records).len(), 1);
    fs::remove_dir_all(&records).unwrap();
    let over = mended(&site, there.path());
    assert!(over.number("files_opened") > 200 && over.number("bytes_read") > 60 << 20, "{over:?}");
    assert_eq!(opened(&mended(&site, there.path())), (0, 0));

    // Another directory takes the name.
    let aside = vsync_tests::scratch();
    let aside = aside.path().join("aside");
    fs::rename(there.path(), &aside).unwrap();
    shell::run("cp", ["-a", aside.to_str().unwrap(), there.path().to_str().unwrap()]);
    Volume::at(there.path(), 5).patch("large", 0, [1; 9]);
    let over = mended(&site, there.path());
    assert!(over.number("files_opened") > 200, "{over:?}");

    // A damaged record is none.
    let record = record_files(&records).remove(0);
    File::options().write(true).open(&record).unwrap().set_len(fs::metadata(&record).unwrap().len() / 2).unwrap();
    let over = mended(&site, there.path());
    assert!(over.number("files_opened") > 200, "{over:?}");
}

/// Records among `records`; beside each lies the mark of its directory.
fn record_files(records: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(records).expect("a directory").map(|entry| entry.expect("an entry").path());
    all.filter(|path| path.extension().is_none_or(|extension| extension != "mark")).collect()
}

fn records(site: &Site) -> PathBuf {
    let state = site.host().home().join("state");
    let realm =
        fs::read_dir(&state).expect("a directory").map(|entry| entry.expect("an entry").path().join("restored"));
    realm.into_iter().find(|path| path.is_dir()).expect("records")
}

#[test]
fn a_restore_that_was_killed_deceives_no_later_one() {
    let (site, there) = two_versions(6);
    let source = Tree::read(site.data.path());
    mended(&site, there.path());
    let target = there.path().to_str().unwrap();
    for delay in [5, 20, 60, 120] {
        let older = site.host().spawn(["restore", "data@latest~1", "--to-path", target]);
        std::thread::sleep(std::time::Duration::from_millis(delay));
        // It may have come to its end.
        let _ = older.kill();
        mended(&site, there.path());
    }
    assert_same(&source, &Tree::read(there.path()));
}

#[test]
fn a_part_of_a_snapshot_that_was_restored_is_no_record_of_the_whole() {
    let (site, there) = two_versions(7);
    mended(&site, there.path());
    let target = there.path().to_str().unwrap();
    site.host().run(["restore", "data@latest~1", "--to-path", target, "--include", "changed"]).success();
    let over = mended(&site, there.path());
    assert_eq!((over.number("files_opened"), over.number("files_restored")), (1, 1), "{over:?}");
}

#[test]
fn owners_modes_and_attributes_come_back_without_reading_the_content() {
    let (site, there) = two_versions(8);
    site.data.mode("large", 0o640).owner("twin", 7, 8).xattr("other", "user.new", "value");
    site.backup();
    site.restore(&["data@latest~1"], there.path());
    let over = mended(&site, there.path());
    assert_eq!(opened(&over), (0, 0), "{over:?}");
}

#[test]
fn a_file_with_several_names_is_read_once_more_after_it_got_them() {
    let site = Site::new(9);
    site.data.random("a", 2 << 20).link("b", "a").random("c", 2 << 20).zoo();
    site.backup();
    let there = vsync_tests::scratch();
    mended(&site, there.path());
    // Another name changes an inode's time, and that may have been anyone.
    let over = mended(&site, there.path());
    assert!((1..5).contains(&over.number("files_opened")), "{over:?}");
    assert_eq!(opened(&mended(&site, there.path())), (0, 0));
    // Touched through one name, found through the other.
    Volume::at(there.path(), 9).patch("b", 9, "touched");
    let over = mended(&site, there.path());
    assert_eq!(over.number("files_restored"), 1, "{over:?}");
}
