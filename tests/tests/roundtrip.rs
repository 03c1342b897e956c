//! What was backed up comes back exactly: into a new directory, and over anything that may be there.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vsync_tests::site::Summary;
use vsync_tests::{Output, Site, Tree, Volume, assert_same};

/// What is in the target before the restore, made from a copy of what was backed up.
type Before = (&'static str, fn(&Volume) -> &Volume);

const BEFORE: &[Before] = &[
    ("the same", |it| it),
    ("missing files", |it| it.remove("small").remove("links").remove("special/fifo").remove("deep")),
    ("extra files", |it| it.write("extra", "x").many("more/of/it", 20, 500).symlink("void/s", "/etc").fifo("void/f")),
    ("truncated", |it| it.resize("random", 1_000_000).resize("text", 0).resize("small", 2)),
    ("extended", |it| it.resize("random", 4 << 20).patch("text", 2 << 20, "tail").resize("empty", 9000)),
    ("changed inside", |it| it.patch("random", 1_500_000, [9; 5000]).patch("sparse", 5 << 20, "not a hole")),
    ("inserted", |it| it.insert("random", 7, "seven").insert("text", 1 << 20, "in the middle")),
    ("other modes", |it| it.mode("modes/suid", 0o755).mode("void", 0o700).mode("small", 0o600).mode("", 0o700)),
    ("other owners", |it| it.owner("small", 5, 5).owner("special", 6, 6).owner("links/good", 7, 7).owner("", 8, 8)),
    ("other times", |it| it.mtime("small", 5, 5).mtime("void", 6, 6).mtime("links/broken", 7, 7).mtime("", 8, 8)),
    ("other attributes", |it| {
        it.xattr("small", "user.note", "other").xattr("small", "user.more", "m").acl("small", "u:5:r")
    }),
    ("files for directories", |it| it.remove("void").write("void", "f").remove("names").write("names", "f")),
    ("directories for files", |it| it.remove("small").directory("small/sub").write("small/sub/f", "f")),
    ("full directories for links", |it| it.remove("links/good").many("links/good", 30, 100)),
    ("links for directories", |it| it.remove("deep").symlink("deep", "/etc").remove("void").symlink("void", "/")),
    ("links for files", |it| it.remove("small").symlink("small", "text").remove("empty").symlink("empty", "/etc/x")),
    ("files for links", |it| it.remove("links/good").write("links/good", "f").remove("links/loop")),
    ("devices for files", |it| it.remove("small").character_device("small", 1, 3).remove("special/null")),
    ("FIFOs for files", |it| it.remove("random").fifo("random").remove("text").socket("text")),
    ("other links", |it| it.remove("links/loop").symlink("links/loop", "else")),
    ("no hard link", |it| it.remove("links/hard").random("links/hard", 3 << 20)),
    ("other hard links", |it| {
        it.remove("small").link("small", "text").remove("links/hard").link("links/hard", "zeros")
    }),
    ("more hard links", |it| it.link("outside", "random").link("void/again", "text").link("fifo", "special/fifo")),
    ("one name of all", |it| {
        it.remove("twin2").link("twin2", "twin1").remove("zeros").link("zeros", "twin1").link("x", "twin1")
    }),
    ("nothing", |it| {
        let names = fs::read_dir(it.path()).expect("a directory");
        names.fold(it, |it, name| it.remove(name.expect("a name").file_name()))
    }),
];

/// The zoo, and what else a restore may get wrong.
fn fill(data: &Volume) -> &Volume {
    let deep = Path::new("deep").join(["directory-with-a-long-name"; 60].join("/"));
    data.zoo().write(deep.join("file"), "at the bottom").write("twin1", "the same").write("twin2", "the same");
    data.symlink("links/twice", "far").link("links/thrice", "links/twice").link("special/linked", "special/fifo");
    data.mtime("twin1", 1_700_000_000, 7).mode("twin2", 0o400).mode("", 0o2775).owner("", 12, 34).mtime("", 99, 9)
}

fn copy(of: &Volume) -> Volume {
    let volume = Volume::new(0);
    let from = format!("{}/", of.path().display());
    let to = volume.path().to_str().expect("a path").to_owned();
    vsync_tests::shell::run("rsync", ["-aHAXS", "--numeric-ids", "--modify-window=-1", &from, &to]);
    volume
}

#[test]
fn everything_comes_back_into_a_new_directory_and_over_anything() {
    let site = Site::new(1);
    fill(&site.data);
    site.backup();
    // A file of zeros comes back as a hole; all others as they were.
    let but_zeros = |path| Tree::with_holes(path).without(|path| path == "zeros");
    let expected = but_zeros(site.data.path());
    let fresh = vsync_tests::scratch();
    let target = fresh.path().join("new/directory");
    site.restore(&["data"], &target);
    assert_same(&expected, &but_zeros(&target));

    let expected = Tree::read(site.data.path());
    for (before, change) in BEFORE {
        let target = copy(&site.data);
        change(&target);
        let was = Tree::read(target.path());
        let planned = site.try_restore(&["data", "--dry-run"], target.path()).success();
        assert_same(&was, &Tree::read(target.path()));
        assert_eq!(changes(&planned).is_empty(), *before == "the same", "over {before}: {planned}");
        let planned = Summary::of(&planned);
        let done = site.restore(&["data", "--verify"], target.path());
        let left = changes(&site.try_restore(&["data", "--dry-run"], target.path()).success());
        assert_eq!(left, [], "over {before}");
        let differences = expected.differences(&Tree::read(target.path()));
        assert!(differences.is_empty(), "over {before}: {differences:#?}");
        let mut numbers = planned.0.as_object().expect("a summary").clone();
        numbers.retain(|_, value| value.is_number());
        numbers.retain(|key, _| key != "total_duration");
        // What has moved, and what another file has as well, is found only on the way.
        numbers.retain(|key, _| !key.starts_with("bytes_"));
        assert!(planned.number("bytes_restored") >= done.number("bytes_restored"), "{planned:?}\n{done:?}");
        for key in numbers.keys() {
            assert_eq!(planned.number(key), done.number(key), "{key} over {before}:\n{planned:?}\n{done:?}");
        }
        if *before == "the same" {
            assert_eq!((done.number("bytes_restored"), done.number("files_restored")), (0, 0), "{done:?}");
        }
    }
}

/// What a dry run says would be done: how, where, and what differs.
fn changes(planned: &Output) -> Vec<(String, String, Vec<String>)> {
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let mut lines = planned.json_lines();
    lines.retain(|line| line["message_type"] == "change");
    let change = |line: &serde_json::Value| {
        let differs = line["differs"].as_array().expect("a list").iter().map(text).collect();
        (text(&line["modifier"]), text(&line["path"]), differs)
    };
    lines.iter().map(change).collect()
}

#[test]
fn a_dry_run_lists_what_would_be_deleted_changed_and_created() {
    let site = Site::new(9);
    site.data.write("changed", "as it was").write("dir/mode", "").write("dir/gone", "").symlink("link", "there");
    site.data.write("twin", "one").link("twin2", "twin").write("kind", "a file").write("more/same", "");
    site.backup();
    let there = copy(&site.data);
    there.many("extra", 3, 10).directory("void").write("changed", "as it is").mode("dir/mode", 0o640);
    there.remove("dir/gone").remove("link").symlink("link", "elsewhere").remove("kind").directory("kind");
    there.remove("twin2").write("twin2", "one").xattr("dir/mode", "user.note", "x").owner("dir", 3, 4);
    for name in ["changed", "twin2", "dir"] {
        there.mtime(name, 7, 7);
    }
    for number in 0..25 {
        there.write(format!("x{number:02}"), "");
    }
    there.mtime("", 9, 9);
    let was = Tree::read(there.path());

    let found = changes(&site.try_restore(&["data", "--dry-run"], there.path()).success());
    let named: Vec<(&str, &str, String)> = (found.iter())
        .filter(|(_, path, _)| !path.starts_with('x'))
        .map(|(modifier, path, differs)| (&modifier[..], &path[..], differs.join(", ")))
        .collect();
    let expected = [
        ("U", "", "modification time"),
        ("M", "changed", "content, modification time"),
        ("U", "dir", "owner, modification time"),
        ("+", "dir/gone", ""),
        ("U", "dir/mode", "mode, attribute user.note"),
        ("-", "extra", ""),
        ("T", "kind", "kind"),
        ("U", "link", "link target, modification time"),
        ("T", "twin2", "hard links"),
        ("-", "void", ""),
    ];
    assert_eq!(named, expected.map(|(modifier, path, differs)| (modifier, path, differs.to_owned())));
    assert_eq!(found.iter().filter(|(modifier, ..)| modifier == "-").count(), 27);

    let path = there.path().to_str().unwrap();
    let planned = site.host().run(["restore", "data", "--to-path", path, "--dry-run"]).success();
    assert_same(&was, &Tree::read(there.path()));
    for line in [
        "would delete: extra",
        "would delete: 7 more",
        "would change: . (modification time)",
        "would change: dir (owner, modification time)",
        "would create: dir/gone",
    ] {
        assert!(planned.stdout().lines().any(|found| found == line), "no {line:?}: {planned}");
    }
    let lines = |label: &str| planned.stdout().lines().filter(|line| line.starts_with(label)).count();
    assert_eq!([lines("would delete"), lines("would change"), lines("would create")], [21, 7, 1], "{planned}");
    planned.stdout_contains("would restore");

    // Into what there is not, everything is new.
    let nowhere = there.path().join("not/there");
    let fresh = changes(&site.try_restore(&["data", "--dry-run"], &nowhere).success());
    assert!(fresh.iter().all(|(modifier, ..)| modifier == "+"), "{fresh:?}");
    let paths: Vec<&str> = fresh.iter().map(|(_, path, _)| path.as_str()).collect();
    let all = Tree::read(site.data.path());
    assert!(all.paths().map(|path| path.to_str().unwrap()).eq(paths.iter().copied()), "{paths:?}");
}

#[test]
fn verification_names_what_somebody_changed_meanwhile() {
    let site = Site::new(10);
    site.data.many("dir", 20, 3000).write("z", "z");
    site.backup();
    let there = vsync_tests::scratch();
    let intruder = there.path().join("intruder");
    let done = AtomicBool::new(false);
    let verified = std::thread::scope(|scope| {
        // It is back long before the restore has synced its work to disk.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                drop(fs::File::create_new(&intruder));
            }
        });
        let path = there.path().to_str().unwrap();
        let verified = site.host().run(["restore", "data", "--to-path", path, "--delete", "--verify"]);
        done.store(true, Ordering::Relaxed);
        verified
    });
    let verified = verified.code(13).stderr_contains("differ from the snapshot after the restore");
    verified.stderr_contains("intruder (not in the snapshot)");
    fs::remove_file(&intruder).unwrap();
    site.host()
        .run(["restore", "data", "--to-path", there.path().to_str().unwrap(), "--delete", "--verify"])
        .success()
        .stderr_contains("verified: 23 entries are as in the snapshot");
}

#[test]
fn versions_come_back_over_one_another() {
    let site = Site::new(2);
    site.data.random("a", 5 << 20).text("b", 3 << 20).write("c/d", "one").many("many", 50, 3000);
    let first = site.backup();
    let old = Tree::read(site.data.path());
    std::thread::sleep(Duration::from_millis(1100));
    let between = jiff_now();
    std::thread::sleep(Duration::from_millis(1100));
    site.data
        .patch("a", 2 << 20, "new")
        .insert("b", 5, "shift")
        .remove("c")
        .write("c", "now a file")
        .remove("many/000");
    site.backup();
    let new = Tree::read(site.data.path());

    let there = vsync_tests::scratch();
    let restored = |spec: &str, more: &[&str], expected: &Tree| {
        site.restore(&[&[spec], more].concat(), there.path());
        assert_same(expected, &Tree::read(there.path()));
    };
    restored("data", &[], &new);
    restored("data@latest~1", &[], &old);
    restored("data@latest", &[], &new);
    restored(&format!("data@{}", &first.text("snapshot_id")[..8]), &[], &old);
    restored("data@latest~0", &[], &new);
    restored("data", &["--at", &between], &old);
    // `now` is a whole second, and the backup may have begun within it.
    std::thread::sleep(Duration::from_millis(1100));
    restored(&format!("data@{}", jiff_now()), &[], &new);
    site.try_restore(&["data@latest~2"], there.path()).code(11);
    site.try_restore(&["data", "--at", "2001-01-01"], there.path()).code(11);
}

/// Now, as the command line takes it.
fn jiff_now() -> String {
    vsync_tests::shell::run("date", ["-u", "+%Y-%m-%dT%H:%M:%SZ"])
}

#[test]
fn parts_come_back() {
    let site = Site::new(3);
    site.data.many("logs", 120, 300).write("etc/a.conf", "a").write("etc/sub/b.conf", "b").write("etc/c.txt", "c");
    site.data.owner("etc/sub", 7, 8).mode("etc/sub", 0o750);
    site.backup();
    let tree = Tree::read(site.data.path());
    let part = |words: &[&str]| {
        let there = vsync_tests::scratch();
        let target = there.path().join("target");
        site.restore(words, &target);
        (Tree::read(&target), there)
    };
    let paths = |tree: &Tree| tree.paths().map(|path| path.to_str().unwrap().to_owned()).collect::<Vec<_>>();

    let (etc, _guard) = part(&["data:etc"]);
    assert_eq!(paths(&etc), ["", "a.conf", "c.txt", "sub", "sub/b.conf"]);
    assert_same(&tree.below("etc/sub"), &etc.below("sub"));
    let (file, _guard) = part(&["data:etc/sub/b.conf"]);
    assert_eq!(paths(&file), ["", "b.conf"]);
    let (configurations, _guard) = part(&["data", "--include", "*.conf"]);
    assert_eq!(configurations.entry("etc/sub/b.conf"), tree.entry("etc/sub/b.conf"));
    assert!(!paths(&configurations).iter().any(|path| path.contains("logs/") || path.ends_with("txt")));
    let (rest, _guard) = part(&["data", "--exclude", "logs", "--exclude", "*.txt"]);
    assert!(paths(&rest).contains(&"etc/a.conf".to_owned()) && !paths(&rest).iter().any(|path| path.contains("00000")));

    // A part deletes nothing around it.
    let there = Volume::new(0);
    there.write("mine", "stays");
    site.restore(&["data:etc"], there.path());
    assert!(there.path().join("mine").exists());
    site.try_restore(&["data:no/such"], there.path()).code(11);
    site.try_restore(&["data", "--include", "*.nothing"], there.path()).code(11);
}

#[test]
fn parts_come_back_with_the_names_of_their_files() {
    let site = Site::new(5);
    let data = &site.data;
    data.random("a-first", 3 << 20)
        .symlink("a-link", "nowhere")
        .write("dir/a", "of the directory")
        .write("dir/dir/a", "trap");
    data.link("dir/b", "dir/a").link("dir/dir/b", "dir/a").link("dir/c", "a-first").link("dir/d", "a-first");
    data.link("dir/e", "a-link")
        .link("dir/f", "a-link")
        .many("dir/many", 30, 300)
        .mode("a-first", 0o640)
        .owner("a-first", 3, 4);
    site.backup();
    let whole = Tree::read(data.path());
    let there = vsync_tests::scratch();
    let restored = |number: usize, words: &[&str]| {
        let target = there.path().join(number.to_string());
        site.restore(words, &target);
        let planned = site.restore(&[words, &["--dry-run"]].concat(), &target);
        assert_eq!(planned.number("bytes_restored"), 0, "{planned:?}");
        (Tree::read(&target), target)
    };
    let inode = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
    let one = |at: &Path, names: &[&str]| {
        let inodes: Vec<u64> = names.iter().map(|name| inode(&at.join(name))).collect();
        assert!(inodes.iter().all(|inode| *inode == inodes[0]), "{names:?} in {}: {inodes:?}", at.display());
    };

    // A second name gets what the first one has; all of them are one file again.
    let (part, target) = restored(1, &["data:dir"]);
    assert_same(&whole.below("dir/many"), &part.below("many"));
    for (at, names) in [(&target, &["a", "b", "dir/b"][..]), (&target, &["c", "d"][..]), (&target, &["e", "f"][..])] {
        one(at, names);
    }
    assert_eq!(fs::read_to_string(target.join("dir/a")).unwrap(), "trap");
    assert_eq!(fs::read_to_string(target.join("dir/b")).unwrap(), "of the directory");
    assert_eq!(fs::read(target.join("c")).unwrap(), fs::read(data.path().join("a-first")).unwrap());
    let about = fs::metadata(target.join("d")).unwrap();
    let about = (about.permissions().mode() & 0o7777, about.uid(), about.gid(), about.mtime_nsec());
    let first = fs::metadata(data.path().join("a-first")).unwrap();
    assert_eq!(about, (0o640, 3, 4, first.mtime_nsec()));
    // Over what is there already, nothing changes.
    site.restore(&["data:dir"], &target);
    assert_same(&part, &Tree::read(&target));

    let (_, target) = restored(2, &["data:dir/c"]);
    assert_eq!(fs::read(target.join("c")).unwrap(), fs::read(data.path().join("a-first")).unwrap());
    let (_, target) = restored(3, &["data", "--include", "dir/d", "--include", "dir/dir/b"]);
    assert_eq!(fs::read(target.join("dir/d")).unwrap(), fs::read(data.path().join("a-first")).unwrap());
    assert_eq!(fs::read_to_string(target.join("dir/dir/b")).unwrap(), "of the directory");
    assert!(!target.join("a-first").exists() && !target.join("dir/a").exists());
    let (_, target) = restored(4, &["data:dir/dir"]);
    assert_eq!(fs::read_to_string(target.join("b")).unwrap(), "of the directory");
}

#[test]
fn what_is_in_a_directory_of_others_is_not_deleted_unasked() {
    let site = Site::new(6);
    site.data.write("a", "a").write("sub/b", "b");
    site.backup();
    let there = Volume::new(0);
    there.write("mine", "stays").write("a", "mine, too");
    let (was, path) = (Tree::read(there.path()), there.path().to_str().unwrap());
    let restore = |more: &[&str]| site.host().run([&["restore", "data", "--to-path", path][..], more].concat());
    let refused = restore(&[]).code(2).stderr_contains("mine would be deleted").stderr_contains("--delete");
    assert!(refused.stderr().contains(path), "{refused}");
    restore(&["--dry-run"]).success();
    assert_same(&was, &Tree::read(there.path()));
    // A part deletes nothing, and makes the directory no vsync's own.
    restore(&["--include", "a"]).success();
    assert!(there.path().join("mine").exists());
    restore(&[]).code(2);
    restore(&["--delete"]).success();
    assert_same(&Tree::read(site.data.path()), &Tree::read(there.path()));
    // From now on it is.
    there.write("more", "goes");
    restore(&[]).success();
    assert_same(&Tree::read(site.data.path()), &Tree::read(there.path()));
    // So is where the volume itself is.
    site.data.write("more", "goes");
    let home = site.data.path().to_str().unwrap();
    site.host().run(["restore", "data", "--to-path", home]).success();
    assert_same(&Tree::read(there.path()), &Tree::read(site.data.path()));
}

#[test]
fn a_star_stays_in_its_directory() {
    let site = Site::new(7);
    site.data
        .write("data/a.tmp", "")
        .write("data/a/b.tmp", "")
        .write("data/c", "")
        .write("logs/x", "")
        .write("z/logs", "");
    site.backup();
    let there = vsync_tests::scratch();
    site.restore(&["data", "--exclude", "data/*.tmp", "--exclude", "logs/"], there.path());
    let found = Tree::read(there.path());
    let paths: Vec<_> = found.paths().map(|path| path.to_str().unwrap().to_owned()).collect();
    assert_eq!(paths, ["", "data", "data/a", "data/a/b.tmp", "data/c", "z", "z/logs"]);
}

#[test]
fn progress_grows_within_a_file() {
    let site = Site::new(8);
    let size = 8_u64 << 20;
    site.data.random("one", 8 << 20);
    site.backup();
    let there = vsync_tests::scratch();
    let to = there.path().to_str().unwrap();
    // Slow enough to be looked at.
    let restored =
        site.host().run(["restore", "data", "--json", "--to-path", to, "--limit-download", "2MiB"]).success();
    let mut lines = restored.json_lines();
    let summary = lines.pop().unwrap();
    assert_eq!(summary["total_bytes"].as_u64(), Some(size), "{restored}");
    let done: Vec<u64> = lines.iter().map(|line| line["bytes_done"].as_u64().unwrap()).collect();
    assert!(done.is_sorted() && done.iter().all(|&done| done <= size), "{restored}");
    assert!(done.iter().any(|done| (1..size).contains(done)), "{restored}");
}

#[test]
fn a_killed_restore_goes_on_and_shows_no_half_file() {
    let site = Site::new(4);
    for number in 0..6 {
        site.data.random(format!("big{number}"), 48 << 20);
    }
    site.data.many("small", 300, 4000);
    site.backup();
    let expected = Tree::read(site.data.path());
    let there = vsync_tests::scratch();
    let path = there.path().to_str().unwrap();
    let total: u64 = 6 * (48 << 20);
    let restore = site.host().spawn(["restore", "data", "--to-path", path]);
    // In the middle: some hundred MiB are on disk, some files have no name yet.
    while disk_usage(there.path()) < total / 3 {
        std::thread::sleep(Duration::from_millis(2));
    }
    restore.kill().died();
    let half = Tree::read(there.path()).without(|path| path.as_encoded_bytes().starts_with(b".vsync-partial-"));
    for name in half.paths().filter(|path| path.to_str().is_some_and(|path| path.starts_with("big"))) {
        assert_eq!(half.entry(name), expected.entry(name), "{name:?} has its name before its content");
    }
    let rest = site.restore(&["data"], there.path());
    assert_same(&expected, &Tree::read(there.path()));
    assert!(rest.number("bytes_restored") < total * 3 / 4, "{rest:?}");
}

/// Bytes of the blocks that files below a directory have.
fn disk_usage(path: &Path) -> u64 {
    let used = vsync_tests::shell::run(
        "sh",
        ["-c", "du -s -B1 \"$0\" 2>/dev/null | cut -f1", path.to_str().expect("a path in UTF-8")],
    );
    used.parse().unwrap_or(0)
}
