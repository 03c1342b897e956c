//! `tests/reader.py` shares no code with vsync and knows its formats from `docs/format.md` alone: what it restores from
//! the files of a server is what was backed up, and it accepts nothing that was changed since.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use vsync_tests::{Realm, Tree, Volume, assert_same, python, scratch, shell};

const SUITES: [&str; 2] = ["chacha20-poly1305", "aes-256-gcm"];

/// A realm in which one machine backs one directory up.
struct Bench {
    realm: Realm,
}

impl Bench {
    fn new(suite: &str, volume: &Volume) -> Self {
        let realm = Realm::new().server("annex2").directory("data", volume.path()).client("production2", &["data"]);
        let bench = Self { realm: realm.suite(suite).build() };
        let kit = bench.kit();
        let words = ["key", "recovery-kit", "--out", kit.to_str().expect("a path")];
        bench.realm.vsync("production2").run(words).success();
        bench
    }

    fn kit(&self) -> PathBuf {
        self.realm.machine("production2").join("kit.txt")
    }

    fn store(&self) -> PathBuf {
        self.realm.store("annex2")
    }

    /// Backs up, and returns the snapshot's id.
    fn back_up(&self) -> String {
        let output = self.realm.vsync("production2").run(["backup", "data", "--json"]).success();
        let lines = output.json_lines();
        lines.last().expect("a summary")["snapshot_id"].as_str().expect("an id").to_owned()
    }

    /// Restores with the independent reader; what it prints, or why it refuses.
    fn read(&self, select: [&str; 2], target: &Path) -> Result<String, String> {
        let mut command = Command::new(python());
        command.arg(reader()).args(select).arg("--kit").arg(self.kit()).arg("--store").arg(self.store());
        // No `--pub`: the kit and the store are enough.
        shell::attempt(command.arg(target))
    }

    #[track_caller]
    fn assert_restores(&self, select: [&str; 2], expected: &Tree) -> String {
        let target = scratch();
        let said = self.read(select, target.path()).unwrap_or_else(|why| panic!("{why}"));
        assert_same(expected, &Tree::read(target.path()));
        said
    }

    #[track_caller]
    fn assert_refuses(&self, what: &str) {
        let target = scratch();
        match self.read(["--volume", "data"], target.path()) {
            Ok(said) => panic!("{what}: {said}"),
            Err(why) => assert!(why.contains("refused: "), "{what}: {why}"),
        }
    }
}

fn reader() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("reader.py")
}

/// Runs a few lines that use the reader's functions.
fn script(lines: &str) -> Result<String, String> {
    shell::attempt(Command::new(python()).env("PYTHONPATH", env!("CARGO_MANIFEST_DIR")).args(["-Bc", lines]))
}

#[test]
fn every_version_of_a_volume_comes_back_in_both_suites() {
    for suite in SUITES {
        let volume = Volume::new(11);
        volume.zoo().random("big", 20 << 20).text("log/text", 20 << 20);
        volume.random("base/5/1259", 2 << 20).text("base/5/1259_fsm", 24_576);
        volume.sparse("islands", 3 << 30, &[(1 << 30, b"in the middle"), ((3 << 30) - 1, b"!")]);
        let bench = Bench::new(suite, &volume);
        let mut server = bench.realm.serve("annex2");
        let mut versions = Vec::new();
        let mut back_up = || versions.push((bench.back_up(), Tree::read(volume.path())));

        back_up();
        volume.patch("base/5/1259", 40_960, "new page").insert("big", 5 << 20, "moved").remove("small");
        volume.resize("log/text", 7 << 20).rename("random", "renamed").write("new/file", "new");
        volume.sparse("empty at first", 1 << 20, &[]).mode("void", 0o711);
        back_up();
        volume.remove("links").link("a second name", "big").patch("big", 0, "first byte");
        back_up();
        server.stop().success();

        for (id, tree) in &versions {
            bench.assert_restores(["--id", id], tree);
        }
        let target = scratch();
        bench.read(["--volume", "data"], target.path()).unwrap();
        assert_same(&versions.last().unwrap().1, &Tree::read(target.path()));
        let islands = fs::metadata(target.path().join("islands")).unwrap();
        assert!(islands.blocks() * 512 < 1 << 20, "{} blocks: its holes were filled", islands.blocks());
    }
}

#[test]
fn a_tree_of_several_levels_comes_back() {
    let volume = Volume::new(12);
    // Long paths, so that few entries fill many nodes; empty files, whose nodes end where their paths alone say.
    let directory = "long".repeat(60);
    let directory = [directory.as_str(); 12].join("/");
    volume.many(&directory, 8000, 0).text("text", 3 << 20);
    let bench = Bench::new(SUITES[0], &volume);
    let mut server = bench.realm.serve("annex2");
    bench.back_up();
    server.stop().success();
    let said = bench.assert_restores(["--volume", "data"], &Tree::read(volume.path()));
    assert!(said.contains(" 2 levels of nodes"), "{said}");
}

#[test]
fn a_bit_that_is_wrong_anywhere_is_refused() {
    let volume = Volume::new(13);
    volume.random("random", 200_000).text("text", 100_000).write("small", "small");
    let bench = Bench::new(SUITES[1], &volume);
    let mut server = bench.realm.serve("annex2");
    bench.back_up();
    server.stop().success();
    let packs = files(&bench.store().join("packs"));
    assert!(!packs.is_empty());
    for pack in &packs {
        for (region, at) in regions(&fs::read(pack).unwrap()) {
            bench.with_flipped(pack, at, region);
        }
    }
    for (file, places) in [("manifests", [0, 4, 40]), ("log", [0, 9, 20])] {
        for file in files(&bench.store().join(file)) {
            let end = fs::metadata(&file).unwrap().len() as usize - 1;
            places.into_iter().chain([end]).for_each(|at| bench.with_flipped(&file, at, "a byte"));
        }
    }
    let registry = bench.store().join("vsync.pub");
    let end = fs::metadata(&registry).unwrap().len() as usize - 2;
    [0, 300, end].into_iter().for_each(|at| bench.with_flipped(&registry, at, "a byte"));
    bench.assert_restores(["--volume", "data"], &Tree::read(volume.path()));
}

impl Bench {
    /// The reader refuses the store while one bit of a file is wrong.
    fn with_flipped(&self, file: &Path, at: usize, region: &str) {
        let good = fs::read(file).expect("a file");
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(file, bad).expect("a file");
        self.assert_refuses(&format!("{region} at byte {at} of {}", file.display()));
        fs::write(file, good).expect("a file");
    }
}

/// One place in each region of a pack, as `docs/format.md` lays it out.
fn regions(pack: &[u8]) -> Vec<(&'static str, usize)> {
    let footer = pack.len() - 48;
    let table = footer
        - usize::try_from(u64::from_le_bytes(pack[footer..footer + 8].try_into().expect("bytes"))).expect("a number");
    let row = table + 48 * ((footer - table) / 48 / 2);
    let blob =
        usize::try_from(u64::from_le_bytes(pack[row + 32..row + 40].try_into().expect("bytes"))).expect("a number");
    let len =
        usize::try_from(u32::from_le_bytes(pack[row + 40..row + 44].try_into().expect("bytes"))).expect("a number");
    vec![
        ("magic", 0),
        ("magic of a record", blob - 40),
        ("length of a record", blob - 36),
        ("name of a record", blob - 32),
        ("magic of a blob", blob),
        ("kind of a blob", blob + 4),
        ("suite of a blob", blob + 5),
        ("epoch of a blob", blob + 6),
        ("number of references", blob + 10),
        ("ciphertext", blob + len / 2),
        ("tag", blob + len - 1),
        ("name in the table", row),
        ("offset in the table", row + 32),
        ("length in the table", row + 40),
        ("kind in the table", row + 44),
        ("zeros in the table", row + 47),
        ("length of the table", footer),
        ("hash of the table", footer + 8),
        ("magic of the end", footer + 40),
    ]
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry")) {
        match entry.file_type().expect("a type").is_dir() {
            true => files.extend(self::files(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files.sort();
    files
}

/// Short enough to be read before it is trusted.
#[test]
fn the_reader_is_short() {
    let lines = fs::read_to_string(reader()).expect("the reader").lines().count();
    assert!(lines <= 400, "{lines} lines");
}

#[test]
fn both_implementations_derive_the_same_keys() {
    let derived = script(
        r#"
from reader import *
root = root_secret("vsync1 qqqsyqcyq5rqwzqfpg9scrgwpugpzysnzs23v9ccrydpk8qarc0s0mp8xx")
assert root == root_secret(bytes(range(32)).hex())
names, epoch = derived("name blind", root), Epoch(root, 1)
gear = derived("gear table", epoch.writer, 2048)
print("realm id:", derived("realm id", root)[:16].hex())
print("name key:", names.hex())
print("name:", hashed(b"montagu_db_volume", names)[:16].hex())
print("epoch 1:", epoch.secret.hex())
print("epoch 2:", Epoch(root, 2).secret.hex())
print("identity 1:", str(epoch.identity))
print("recipient 1:", epoch.identity.to_public())
print("writer 1:", epoch.writer.hex())
print("convergence 1:", epoch.convergence.hex())
print("gear 1, first:", gear[7::-1].hex())
print("gear 1, last:", gear[:-9:-1].hex())
print("gear 1, hash:", hashed(gear).hex())
print("plaintext 1:", derived("local plaintext id", epoch.writer).hex())
print("admin:", derived("admin signing", root).hex())
print("recovery:", derived("recovery identity", root).hex())
"#,
    );
    let pinned = include_str!("../../agent/src/keys/derive.golden");
    assert_eq!(derived.unwrap().lines().collect::<Vec<_>>(), pinned.lines().collect::<Vec<_>>());
}

/// Even a blob that is named after its damage: the cipher, and the key that comes from the content, tell.
#[test]
fn no_bit_of_a_blob_can_be_changed_whatever_its_name() {
    let blobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/src/vault/blob.golden");
    let lines = r##"
import sys, reader
count = 0
for line in open(sys.argv[1]):
    if line.startswith("#"):
        continue
    kind, _, ck, blob, plain = map(bytes.fromhex, line.split())
    vault = lambda blob: reader.Vault(bytes([7]) * 16, 1, bytes([1]) * 32, lambda cid: blob)
    assert vault(blob).open(kind[0], reader.hashed(blob), ck, len(plain))[1] == plain
    for bit in range(8 * len(blob)):
        bad = bytearray(blob)
        bad[bit // 8] ^= 1 << bit % 8
        try:
            vault(bytes(bad)).open(kind[0], reader.hashed(bytes(bad)), ck, len(plain))
        except reader.REFUSALS:
            count += 1
            continue
        sys.exit(f"bit {bit} of {line}")
print(count)
"##;
    let count = script(&lines.replace("sys.argv[1]", &format!("{:?}", blobs.to_str().unwrap()))).unwrap();
    assert!(count.parse::<u32>().unwrap() > 2000, "{count} bits");
}

/// Nodes as `protocol` pins them are what the reader takes them for.
#[test]
fn pinned_nodes_are_read() {
    let nodes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/src/tree/node.golden");
    let lines = r##"
import reader
nodes = dict(line.split(": ") for line in open(PATH) if not line.startswith("#"))
leaf, inner, root = (reader.decoded(bytes.fromhex(nodes[name])) for name in ("leaf", "inner", "root"))
chunks = reader.children(leaf[0], [bytes([1]) * 32, bytes([2]) * 32])
found = list(reader.items((record, chunks) for record in leaf[1]))
assert [entry[0] for entry, _ in found] == [b"d", b"d/file", b"d/hard", b"e"], found
assert [length for length, _ in found[1][1]] == [65536, 4096, 65536], found
assert found[1][0][8] == 65536 + 4096 + 65536 and found[1][0][11] == [[b"user.a", b"\0\xff"]], found
assert found[2][0][9] == b"d/file" and found[3][0][10] == 0x701, found
assert inner[1][1] == [b"d/file", True, 9, 1 << 40] and len(reader.children(inner[0], [b"", b""])) == 2
assert root[0] == {0: "volume", 1: "local", 2: [["o", "size=1g"]], 3: [], 4: "pause"} and root[2][2] == 1
assert root[3] == [[b"d/gone", "changed"]] and root[4] == 1
"##;
    script(&lines.replace("PATH", &format!("{:?}", nodes.to_str().unwrap()))).unwrap();
}
