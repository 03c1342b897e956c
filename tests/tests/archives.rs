//! Archives out of vsync and into it, with GNU tar as the judge.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use vsync_tests::docker::docker;
use vsync_tests::site::Summary;
use vsync_tests::{DockerVolume, MemoryGroup, Site, Tree, Volume, Vsync, assert_same, scratch, shell};

/// Everything that GNU tar can keep, as its manual says.
const ALL: [&str; 4] = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"];

fn tar(directory: &Path, arguments: &[&str]) {
    shell::run("tar", ["-C".as_ref(), directory.as_os_str()].into_iter().chain(arguments.iter().map(AsRef::as_ref)));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("what the test bed made")
}

/// vsync on a machine that knows no realm.
fn vsync(home: &Path) -> Vsync {
    Vsync::at(home)
}

/// What an archive can hold of a directory.
fn without_sockets(root: &Path) -> Tree {
    Tree::read(root).without(|path| path == "special/socket")
}

#[test]
fn an_exported_archive_is_extracted_by_gnu_tar_to_an_equal_tree() {
    let site = Site::new(1);
    site.data.zoo();
    site.data.write(Path::new("deep").join("d/".repeat(60)).join("y".repeat(200)), "long path");
    site.data.owner("", 70, 71).mode("", 0o750).mtime("", 1_000_000_000, 123);
    site.backup();
    let (place, out) = (scratch(), scratch());
    let file = place.path().join("data.tar");
    let exported = site.host().run(["export", "data", "--json", "--output", text(&file)]).success();
    let exported = exported.stderr_contains("special/socket is a socket");
    assert!(Summary::of(&exported).number("total_bytes") > 64 << 20);
    let archive = fs::metadata(&file).unwrap();
    assert!(archive.len() < 16 << 20, "{} bytes: holes are not in it", archive.len());
    assert_eq!(archive.mode() & 0o777, 0o600, "it is in clear");

    tar(out.path(), &[&["--extract", "--file", text(&file), "--same-permissions"], &ALL[..]].concat());
    assert_same(&without_sockets(site.data.path()), &Tree::read(out.path()));
    for name in ["sparse", "hole"] {
        let used = fs::metadata(out.path().join(name)).unwrap().blocks() * 512;
        assert!(used <= 256 << 10, "{name} uses {used} bytes");
    }

    // The same, back through vsync, and through pipes.
    let again = scratch();
    vsync(again.path()).run(["import", text(&file), "--to-path", text(&again.path().join("x"))]).success();
    assert_same(&without_sockets(site.data.path()), &Tree::read(again.path().join("x")));
    let piped = site.host().run(["export", "data", "--output", "-"]).success();
    assert_eq!(piped.stdout_bytes(), fs::read(&file).unwrap());
    let input = vsync(again.path()).stdin(piped.stdout_bytes());
    input.run(["import", "-", "--to-path", text(&again.path().join("y"))]).success();
    assert_same(&without_sockets(site.data.path()), &Tree::read(again.path().join("y")));

    site.host().run(["export", "data", "--output", text(&file)]).code(1).stderr_contains("exists already");
    let named = site.host().run(["export", "data", "--to-dir", text(place.path())]).success();
    named.stdout_contains("host-data-");
    assert!(!fs::read_dir(place.path()).unwrap().any(|it| text(&it.unwrap().path()).ends_with(".partial")));
}

#[test]
fn a_part_of_a_volume_is_exported_and_a_file_or_stream_is_not() {
    let site = Site::new(2);
    site.data.write("a/b/file", "x").link("a/other", "a/b/file").link("top", "a/b/file").write("z", "z");
    site.backup();
    site.host().stdin("dump").run(["backup", "--stdin", "dump"]).success();
    let out = scratch();
    let file = out.path().join("a.tar");
    site.host().run(["export", "data:a", "--output", text(&file)]).success();
    tar(out.path(), &["--extract", "--file", text(&file)]);
    assert_eq!(fs::read_to_string(out.path().join("a/other")).unwrap(), "x");
    assert!(!out.path().join("z").exists());
    site.host().run(["export", "data:z", "--output", "-"]).code(2).stderr_contains("z is no directory");
    site.host().run(["export", "dump", "--output", "-"]).code(2).stderr_contains("vsync dump");
}

#[test]
fn archives_of_gnu_tar_come_in_whatever_their_format() {
    let data = Volume::new(3);
    data.zoo();
    let place = scratch();
    let expected = without_sockets(data.path());
    let exclude = "--exclude=./special/socket";
    let formats: [&[&str]; 4] = [
        &["--format=posix", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix"],
    ];
    for (number, format) in formats.into_iter().enumerate() {
        let file = place.path().join(format!("{number}.tar"));
        let words = [&["--create", exclude, "--file", text(&file)], format, &ALL[..], &["."]].concat();
        tar(data.path(), &words);
        let out = place.path().join(number.to_string());
        vsync(place.path()).run(["import", text(&file), "--to-path", text(&out)]).success();
        let differences = expected.differences(&Tree::read(&out));
        assert!(differences.is_empty(), "{format:?}: {differences:#?}");
        let used = fs::metadata(out.join("sparse")).unwrap().blocks() * 512;
        assert!(used <= 512 << 10, "{format:?}: sparse uses {used} bytes");
    }
    for (program, name) in [("gzip", "gz"), ("zstd", "zst")] {
        let file = place.path().join(format!("0.tar.{name}"));
        let pack = format!("{program} -c {} > {}", text(&place.path().join("0.tar")), text(&file));
        shell::run("sh", ["-c", &pack]);
        let out = place.path().join(name);
        vsync(place.path()).run(["import", text(&file), "--to-path", text(&out)]).success();
        assert_same(&expected, &Tree::read(&out));
    }
}

/// privateer runs `tar -cpvf FILE .` in the volume: GNU's own format, whole seconds, no attributes.
#[test]
fn an_archive_of_privateer_comes_in() {
    let data = Volume::new(4);
    data.many("archive", 40, 5000).sparse("sparse", 8 << 20, &[(4 << 20, b"x")]).symlink("link", "archive");
    data.write("n".repeat(200), "long name").symlink("far", "t".repeat(150)).link("hard", "sparse");
    data.owner("link", 5000, 6000).mode("archive", 0o2770).owner("archive", 1000, 1000).mode("archive", 0o2770);
    shell::run("sh", ["-c", "find \"$1\" -depth -exec touch -h -d @1700000000 {} +", "sh", text(data.path())]);
    let place = scratch();
    let file = place.path().join("production-data-2025.tar");
    for format in [&["--format=gnu"][..], &["--format=gnu", "--sparse"], &["--format=oldgnu", "--sparse"]] {
        tar(data.path(), &[&["-cpf", text(&file)], format, &["."]].concat());
        let out = place.path().join("out");
        vsync(place.path()).run(["import", text(&file), "--to-path", text(&out)]).success();
        let differences = Tree::read(data.path()).differences(&Tree::read(&out));
        assert!(differences.is_empty(), "{format:?}: {differences:#?}");
        fs::remove_dir_all(&out).unwrap();
    }
}

/// A place with something to steal, and a directory from which archives are made.
struct Den {
    place: tempfile::TempDir,
}

impl Den {
    fn new() -> Self {
        let den = Self { place: scratch() };
        fs::create_dir_all(den.path("make")).expect("what the test bed made");
        fs::create_dir_all(den.path("victim")).expect("what the test bed made");
        fs::write(den.path("make/evil"), "evil").expect("what the test bed made");
        fs::write(den.path("make/good"), "good").expect("what the test bed made");
        den
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Makes an archive in steps: `-c` and then `-r`.
    fn archive(&self, steps: &[&[&str]]) -> PathBuf {
        let file = self.path("hostile.tar");
        drop(fs::remove_file(&file));
        for (number, step) in steps.iter().enumerate() {
            let verb = if number == 0 { "-cPf" } else { "-rPf" };
            tar(&self.path("make"), &[&[verb, text(&file)], *step].concat());
        }
        file
    }

    #[track_caller]
    fn refused(&self, file: &Path, words: &str) {
        let out = self.path("in/out");
        drop(fs::remove_dir_all(&out));
        vsync(self.place.path()).run(["import", text(file), "--to-path", text(&out)]).code(1).stderr_contains(words);
        assert_eq!(
            fs::read_dir(self.path("victim")).expect("what the test bed made").count(),
            0,
            "{words}: something was written outside"
        );
        let outside: Vec<_> = fs::read_dir(self.path("in"))
            .expect("what the test bed made")
            .map(|it| it.expect("what the test bed made").file_name())
            .collect();
        assert_eq!(outside, ["out"], "{words}");
    }
}

#[test]
fn a_hostile_archive_is_refused_in_words_and_writes_nothing_outside() {
    let den = Den::new();
    let victim = den.path("victim");
    std::os::unix::fs::symlink(&victim, den.path("make/link")).unwrap();
    fs::hard_link(den.path("make/good"), den.path("make/hard")).unwrap();

    let absolute = format!("--transform=s,^evil,{}/evil,", text(&victim));
    den.refused(&den.archive(&[&[&absolute, "evil"]]), "it is absolute");
    den.refused(&den.archive(&[&["--transform=s,^evil,../evil,", "evil"]]), "it goes up, with `..`");
    den.refused(&den.archive(&[&["--transform=s,^evil,a/../../evil,", "evil"]]), "it goes up, with `..`");
    let through = den.archive(&[&["link"], &["--transform=s,^evil,link/evil,", "evil"]]);
    den.refused(&through, "through \"link\", which is no directory");
    let through = den.archive(&[&["link"], &["--transform=s,^evil,link/a/b/evil,", "evil"]]);
    den.refused(&through, "through \"link\", which is no directory");
    den.refused(&den.archive(&[&["good"], &["good"]]), "has \"good\" twice");
    let replaced = den.archive(&[&["link"], &["--transform=s,^evil,link,", "evil"]]);
    den.refused(&replaced, "has \"link\" twice");
    let target = format!("--transform=flags=h;s,^good$,{}/x,", text(&victim));
    den.refused(&den.archive(&[&[&target, "good", "hard"]]), "it is absolute");
    let target = "--transform=flags=h;s,^good$,missing,";
    den.refused(&den.archive(&[&[target, "good", "hard"]]), "\"hard\" to \"missing\", which does not stand before it");
    den.refused(
        &den.archive(&[&["--format=gnu", "--label=tape", "--transform=s,^evil,/evil,", "evil"]]),
        "it is absolute",
    );

    fs::write(den.path("noise"), [7; 5000]).unwrap();
    den.refused(&den.path("noise"), "not a tar archive");
    fs::write(den.path("empty"), "").unwrap();
    den.refused(&den.path("empty"), "truncated");
}

#[test]
fn an_archive_that_was_cut_anywhere_is_refused() {
    let data = Volume::new(5);
    data.write("first", "1").random("second", 3000).sparse("third", 1 << 20, &[(0, b"a"), (1 << 19, b"b")]);
    let den = Den::new();
    let whole = den.path("whole.tar");
    tar(data.path(), &["-cf", text(&whole), "--format=posix", "--sparse", "-b", "1", "."]);
    let bytes = fs::read(&whole).unwrap();
    let content = bytes.len() - 1024;
    for end in (0..=content).step_by(256) {
        fs::write(den.path("cut.tar"), &bytes[..end]).unwrap();
        den.refused(&den.path("cut.tar"), "truncated");
    }
    // No size that a header can give is too large to be refused.
    for size in [u64::MAX, u64::MAX - 511, 1 << 63] {
        let mut large = bytes.clone();
        large[124..136].copy_from_slice(&[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat());
        large[148..156].fill(b' ');
        let sum: u32 = large[..512].iter().map(|&byte| u32::from(byte)).sum();
        large[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        fs::write(den.path("large.tar"), &large).unwrap();
        vsync(den.place.path())
            .run(["import", text(&den.path("large.tar")), "--to-path", text(&den.path("large"))])
            .code(1);
    }
    // With one bit turned over, a header does not fit its checksum.
    let mut damaged = bytes;
    damaged[100] ^= 1;
    fs::write(den.path("damaged.tar"), &damaged).unwrap();
    den.refused(&den.path("damaged.tar"), "a header is wrong");
    shell::run("sh", ["-c", "gzip -c \"$1\" | head -c 1500 > \"$2\"", "sh", text(&whole), text(&den.path("cut.gz"))]);
    vsync(den.place.path()).run(["import", text(&den.path("cut.gz")), "--to-path", text(&den.path("gz"))]).code(1);
}

#[test]
fn an_import_fills_a_new_volume_and_never_an_old_one() {
    let data = Volume::new(6);
    data.many("files", 30, 4000).write("n", "1");
    let home = scratch();
    let file = home.path().join("redis_data.tar");
    tar(data.path(), &["-cpf", text(&file), "--format=posix", "."]);
    let volume = DockerVolume::absent("imported");
    vsync(home.path()).run(["import", text(&file), volume.name(), "--label", "team=malaria"]).success();
    assert_same(&Tree::read(data.path()), &Tree::read(volume.path()));
    assert_eq!(volume.inspect()["Labels"], serde_json::json!({"team": "malaria"}));

    let refused = vsync(home.path()).run(["import", text(&file), volume.name()]).code(1);
    refused.stderr_contains("exists already; nothing was changed").stderr_contains("docker volume rm");
    assert_same(&Tree::read(data.path()), &Tree::read(volume.path()));

    let broken = DockerVolume::absent("broken");
    let bytes = fs::read(&file).unwrap();
    fs::write(home.path().join("cut.tar"), &bytes[..bytes.len() / 2]).unwrap();
    vsync(home.path()).run(["import", "cut.tar", broken.name()]).code(1).stderr_contains("truncated");
    assert!(!broken.exists(), "a volume that could not be filled is gone again");
    vsync(home.path()).run(["import", "none.tar", broken.name()]).code(11).stderr_contains("cannot read none.tar");
    assert!(!docker(["volume", "ls", "-q"]).contains(broken.name()));
    vsync(home.path()).run(["import", "redis_data.tar"]).code(2);
}

#[test]
fn an_export_needs_little_memory_whatever_the_volume_holds() {
    let site = Site::new(8);
    site.data.random("large", 300 << 20).many("small", 3000, 3000);
    site.data.sparse("holes", 1 << 40, &[(1 << 30, b"x"), (1 << 39, b"y")]);
    site.backup();
    let group = MemoryGroup::new("archives", 256 << 20);
    let out = scratch();
    let file = out.path().join("data.tar");
    let host = site.host().through(group.prefix());
    host.run(["export", "data", "--output", text(&file)]).success();
    let target = out.path().join("data");
    Vsync::at(out.path()).through(group.prefix()).run(["import", text(&file), "--to-path", text(&target)]).success();
    assert_same(&Tree::read(site.data.path().join("small")), &Tree::read(target.join("small")));
    let (large, holes) = (fs::metadata(target.join("large")).unwrap(), fs::metadata(target.join("holes")).unwrap());
    assert_eq!((large.len(), holes.len()), (300 << 20, 1 << 40));
    assert!(holes.blocks() * 512 < 1 << 20, "{} blocks", holes.blocks());
}
