//! What a machine that only writes can do, and what a thief of it and of the server cannot.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vsync::keys::{Bundle, EpochSecret, KeyStore, RootSecret, Secret};
use vsync::snapshot::Snapshot;
use vsync::vault::{Sealer, Vault};
use vsync_protocol::blob::BlobKind;
use vsync_protocol::registry::Registry;
use vsync_tests::{Realm, Server, Tree, Volume, assert_same, shell};

const OLD: &str = "canary-content-of-last-week-zebra";
const NEW: &str = "canary-content-of-today-giraffe";
const NAME: &str = "canary-name-okapi";

/// A realm whose machine `writer` may only write. It has its own keys and no others, as on a real machine.
struct Office {
    realm: Realm,
    data: Volume,
    server: Server,
}

impl Office {
    fn new() -> Self {
        let data = Volume::new(1);
        data.write(format!("dir-{NAME}/{NAME}"), OLD).many("more", 8, 2000).xattr("more", "user.tag", OLD);
        data.symlink("link", format!("/to/{NAME}"));
        let realm = Realm::new()
            .server("store")
            .client_with("writer", &["data"], "role = \"writer\"")
            .client("reader", &[])
            .directory("data", data.path())
            .build();
        let own = keys_of(&realm, "writer");
        fs::create_dir_all(own.join("machines")).unwrap();
        shell::run("chmod", ["700", own.to_str().unwrap(), own.join("machines").to_str().unwrap()]);
        let key = Path::new("machines/writer.key");
        fs::rename(realm.admin().parent().unwrap().join("keys").join(key), own.join(key)).unwrap();
        let server = realm.serve("store");
        Self { realm, data, server }
    }

    fn writer(&self) -> vsync_tests::Vsync {
        self.realm.vsync("writer").env("VSYNC_KEYS", keys_of(&self.realm, "writer"))
    }

    fn backup(&self) {
        self.writer().run(["backup", "data"]).success();
    }
}

fn keys_of(realm: &Realm, machine: &str) -> PathBuf {
    realm.machine(machine).join("keys")
}

#[test]
fn a_writer_backs_up_and_reads_nothing() {
    let office = Office::new();
    office.backup();
    let there = vsync_tests::scratch();
    let target = there.path().join("target");
    let refused = office.writer().run(["restore", "data", "--to-path", target.to_str().unwrap()]).code(12);
    let refused = refused.stderr_contains("it can back up, but read no backup");
    assert!(refused.stderr().contains("to do:") && !target.exists(), "{refused}");
    // It sees that its backups are there, and nothing of what is in them.
    let listed = office.writer().run(["snapshots", "--json"]).success();
    assert!(
        listed.stdout().contains("\"volume\":\"data\"") && listed.stdout().contains("\"total_bytes\":null"),
        "{listed}"
    );

    let restore = ["restore", "data", "--to-path", target.to_str().unwrap()];
    office.realm.vsync("reader").run(restore).success();
    assert_same(&Tree::read(office.data.path()), &Tree::read(&target));
}

#[test]
fn a_thief_of_writer_and_server_cannot_read_what_was_overwritten() {
    let mut office = Office::new();
    office.backup();
    office.data.write(format!("dir-{NAME}/{NAME}"), NEW);
    office.backup();
    office.server.stop().success();

    // The thief makes itself a reader, and the server its own.
    office.realm.edit(|toml| toml.replace("role = \"writer\"", "role = \"full\""));
    let server = office.realm.serve("store");
    let there = vsync_tests::scratch();
    for snapshot in ["data@latest~1", "data"] {
        let target = there.path().to_str().unwrap();
        office.writer().run(["restore", snapshot, "--to-path", target]).code(12);
        assert_eq!(fs::read_dir(there.path()).unwrap().count(), 0);
    }
    drop(server);

    // What the machine keeps is of the files that it has, none of the older content.
    let home = office.realm.machine("writer");
    let found = shell::run("sh", ["-c", "grep -rlaF \"$0\" \"$1\" || true", OLD, home.to_str().unwrap()]);
    assert_eq!(found, "", "the old content is on the writer's disk");

    // Nothing on its disk opens a manifest, whichever way it is written.
    let manifests: Vec<Vec<u8>> = fs::read_dir(office.realm.store("store").join("manifests"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| fs::read(path).unwrap())
        .collect();
    assert_eq!(manifests.len(), 2);
    let reader = Reader::of(&office.realm);
    let old = reader.keys_of_the_old(&manifests);
    let mut candidates = 0_u64;
    for bytes in files_below(&home) {
        for secret in secrets_in(&bytes) {
            candidates += 1;
            assert!(!reader.is_made_by(&secret), "a file of the writer holds a reader's key");
        }
        // Nor is there a key left that opens the older tree from its root, or its content.
        for key in &old {
            assert!(!bytes.windows(32).any(|window| window == key), "the older snapshot's keys are still there");
        }
    }
    assert!(candidates > 200, "only {candidates} candidates");
    // The same search finds the key where it is.
    let key = fs::read(office.realm.admin().parent().unwrap().join("keys/machines/reader.key")).unwrap();
    assert!(secrets_in(&key).iter().any(|secret| reader.is_made_by(secret)), "the search is blind");
}

/// What the thief is after.
struct Reader {
    bundle: Bundle,
    registry: Registry,
}

impl Reader {
    fn of(realm: &Realm) -> Self {
        let store = KeyStore::Directory(realm.admin().parent().unwrap().join("keys"));
        let bundle = store.machine(&"reader".parse().unwrap()).unwrap();
        let registry = fs::read_to_string(realm.admin().join("vsync.pub")).unwrap().parse().unwrap();
        Self { bundle, registry }
    }

    /// Whether 32 bytes are the realm's root secret, an epoch's secret, or the age identity itself.
    fn is_made_by(&self, bytes: &[u8; 32]) -> bool {
        let recipient = self.bundle.recipient(self.bundle.epoch).unwrap().to_string();
        let identity = bech32::encode_upper::<bech32::Bech32>(bech32::Hrp::parse("age-secret-key-").unwrap(), bytes);
        let identity: age::x25519::Identity = identity.unwrap().parse().unwrap();
        identity.to_public().to_string() == recipient
            || EpochSecret::new(Secret::new(*bytes)).recipient().to_string() == recipient
            || RootSecret::new(Secret::new(*bytes)).epoch(self.bundle.epoch).recipient().to_string() == recipient
    }

    /// The keys of the older snapshot's root, and of the content that only it has.
    fn keys_of_the_old(&self, manifests: &[Vec<u8>]) -> [[u8; 32]; 2] {
        let (realm, epoch) = (self.bundle.realm_id, self.bundle.epoch);
        let open = |manifest: &Vec<u8>| {
            let signers = self.registry.keys_of(&"writer".parse().unwrap());
            Snapshot::open(manifest, realm, signers, self.bundle.reader(epoch).as_ref()).unwrap()
        };
        let first = manifests.iter().map(open).find(|snapshot| snapshot.body.sequence == 1).unwrap();
        let vault = Arc::new(Vault::new(realm, self.bundle.suite, epoch, self.bundle.writer(epoch).unwrap()));
        let content = Sealer::new(vault).unwrap().seal(BlobKind::Chunk, &[], OLD.as_bytes()).unwrap();
        [first.sealed.root_key, content.ck].map(|key| *key.as_bytes())
    }
}

fn files_below(directory: &Path) -> Vec<Vec<u8>> {
    let tree = Tree::read(directory);
    let files = tree.paths().map(|path| directory.join(path)).filter(|path| path.is_file());
    files.map(|path| fs::read(path).unwrap()).collect()
}

/// Every 32 bytes in a row that could be random, and every word of 64 hexadecimal digits.
fn secrets_in(bytes: &[u8]) -> Vec<[u8; 32]> {
    let random = |window: &&[u8]| window.iter().collect::<std::collections::HashSet<_>>().len() > 20;
    let raw = bytes.windows(32).filter(random).map(<[u8]>::to_vec);
    let words = bytes.split(|byte| !byte.is_ascii_hexdigit()).filter(|word| word.len() == 64).filter_map(unhex);
    raw.chain(words).map(|secret| secret.try_into().unwrap()).collect()
}

#[test]
fn nothing_readable_is_on_the_servers_disk() {
    let office = Office::new();
    office.backup();
    let store = office.realm.store("store");
    let keys = office.realm.admin().parent().unwrap().join("keys");
    let mut canaries = vec![OLD.as_bytes().to_vec(), NAME.as_bytes().to_vec()];
    canaries.extend(key_texts(&keys.join("realm.key")));
    canaries.extend(key_texts(&keys.join("machines/reader.key")));
    canaries.extend(key_texts(&keys_of(&office.realm, "writer").join("machines/writer.key")));
    assert!(canaries.len() > 5, "no keys found");
    let tree = Tree::read(&store);
    let mut searched = 0;
    for path in tree.paths().map(|path| store.join(path)).filter(|path| path.is_file()) {
        let bytes = fs::read(&path).unwrap();
        for canary in &canaries {
            let found = bytes.windows(canary.len()).any(|window| window == canary);
            assert!(!found, "{} holds {:?}", path.display(), String::from_utf8_lossy(canary));
        }
        searched += bytes.len();
    }
    assert!(searched > 20_000, "only {searched} bytes");
}

/// The secrets in a key file, as text and as bytes. Recipients are public: they only seal.
fn key_texts(path: &Path) -> Vec<Vec<u8>> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let secrets = text.split('"').filter(|word| word.len() >= 40 && !word.starts_with("age1"));
    let words = secrets.map(|word| word.as_bytes().to_vec());
    words.flat_map(|word| [unhex(&word), Some(word)]).flatten().collect()
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    text.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}
