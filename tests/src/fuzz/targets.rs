//! Every decoder of bytes that others wrote.

use std::fmt::{Debug, Display};
use std::path::Path;

use minicbor::{Decode, Encode};
use vsync::config::Config;
use vsync::keys::{Bundle, Kit};
use vsync_protocol::blob::{BlobKind, Encoded, Header, Suite, padme, write_encoded_head, write_header};
use vsync_protocol::id::{Cid, PackId, SnapshotId};
use vsync_protocol::limits::{MAX_BLOB_LEN, MAX_MESSAGE_LEN, MAX_RAW_LEN, MAX_REFS};
use vsync_protocol::log::LogEntry;
use vsync_protocol::manifest::{Body, Manifest, Sealed, assemble};
use vsync_protocol::plan::retention::{Candidate, Clock, Policy, plan};
use vsync_protocol::plan::{Fate, Zone};
use vsync_protocol::registry::Registry;
use vsync_protocol::tree::{EntryPath, Inner, Leaf, Record, Root};
use vsync_protocol::wire::{
    FRAME_HEAD_LEN, FrameHead, Reply, Request, UPLOAD_HEAD_LEN, UploadHead, encode_message, message_len, spki,
};
use vsync_server::store::pack;

use super::Target;
use crate::Rng;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "blob-header", seeds: blob_seeds, run: blob_header },
    Target { name: "encoded-payload", seeds: encoded_seeds, run: encoded_payload },
    Target { name: "tree-leaf", seeds: || golden(NODES), run: cbor::<Leaf> },
    Target { name: "tree-inner", seeds: || golden(NODES), run: cbor::<Inner> },
    Target { name: "tree-root", seeds: || golden(NODES), run: cbor::<Root> },
    Target { name: "tree-record", seeds: || golden(NODES), run: cbor::<Record> },
    Target { name: "entry-path", seeds: path_seeds, run: entry_path },
    Target { name: "manifest", seeds: manifest_seeds, run: manifest },
    Target { name: "manifest-sealed", seeds: || golden(MANIFEST), run: cbor::<Sealed> },
    Target {
        name: "log-entry",
        seeds: || golden(include_str!("../../../protocol/src/log.golden")),
        run: cbor::<LogEntry>,
    },
    Target { name: "wire-request", seeds: || messages(), run: cbor_bounded::<Request> },
    Target { name: "wire-reply", seeds: || messages(), run: cbor_bounded::<Reply> },
    Target { name: "wire-heads", seeds: head_seeds, run: heads },
    Target {
        name: "raw-public-key",
        seeds: || vec![spki::encode(vsync_protocol::id::MachineKey::from_bytes([7; 32]))],
        run: raw_key,
    },
    Target { name: "pack-table", seeds: || vec![pack_seed()], run: pack_table },
    Target { name: "pack-scan", seeds: || vec![pack_seed()], run: pack_scan },
    Target { name: "registry", seeds: || vec![REGISTRY.into()], run: registry },
    Target { name: "recovery-kit", seeds: || vec![KIT.into()], run: kit },
    Target { name: "key-file", seeds: || vec![KEY_FILE.into()], run: key_file },
    Target { name: "configuration", seeds: || vec![CONFIG.into()], run: configuration },
    Target { name: "retention", seeds: || (0..8).map(|seed| Rng::new(seed).bytes(300)).collect(), run: retention },
];

const NODES: &str = include_str!("../../../protocol/src/tree/node.golden");
const MANIFEST: &str = include_str!("../../../protocol/src/manifest.golden");
const REGISTRY: &str = include_str!("../../../protocol/src/registry.golden");
const KIT: &str = include_str!("../../../agent/src/keys/kit.golden");

const KEY_FILE: &str = "machine = \"production2\"\nrealm = \"montagu\"\nrealm-id = \"07070707070707070707070707070707\"\n\
    role = \"full\"\nsuite = 1\nepoch = 2\n\
    identity = \"0202020202020202020202020202020202020202020202020202020202020202\"\n\
    name-key = \"0303030303030303030303030303030303030303030303030303030303030303\"\n\
    [[epochs]]\nepoch = 1\nsecret = \"0404040404040404040404040404040404040404040404040404040404040404\"\n\
    [[epochs]]\nepoch = 2\nsecret = \"0505050505050505050505050505050505050505050505050505050505050505\"\n";

const CONFIG: &str = "[realm]\nname = \"montagu\"\n[[servers]]\nname = \"annex2\"\naddress = \"annex2.example.org:10022\"\n\
    data = \"/var/lib/vsync\"\nbackup = [\"barman\"]\n[[clients]]\nname = \"production2\"\nbackup = [\"one\", \"two\"]\n\
    role = \"writer\"\n[[clients.schedule]]\nvolume = \"one\"\nserver = \"annex2\"\nat = \"02:00\"\n[[volumes]]\nname = \"one\"\n\
    path = \"/srv/one\"\nquiesce = \"pause\"\n[volumes.retention]\nkeep-daily = 30\nkeep-within = \"14d\"\nmin-retention = \"7d\"\n\
    [keys]\nstore = \"directory\"\npath = \"/etc/vsync/keys\"\n";

/// The bytes in a pinned file: lines `name: hex`.
fn golden(text: &str) -> Vec<Vec<u8>> {
    let hex = |line: &str| {
        let digits = line.rsplit(' ').next()?;
        (0..digits.len() / 2).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()).collect()
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(hex).collect()
}

fn said<T, E: Display>(result: Result<T, E>, well: impl FnOnce(T) -> String) -> String {
    match result {
        Ok(value) => well(value),
        Err(error) => error.to_string(),
    }
}

/// Decodes a `T`; what was decoded is encoded to bytes that mean the same.
fn cbor<T: for<'b> Decode<'b, ()> + Encode<()> + PartialEq + Debug>(bytes: &[u8]) -> String {
    said(minicbor::decode::<T>(bytes), |value| {
        let again = minicbor::to_vec(&value).expect("what was decoded can be encoded");
        let decoded: T = minicbor::decode(&again).expect("what was encoded can be decoded");
        assert_eq!(decoded, value);
        // Which variants and how many parts, but not what is in them.
        let shown = format!("{value:?}");
        shown.chars().filter(|character| "({[,".contains(*character)).collect()
    })
}

/// The same of a message, whose decoded form must not be much larger than its bytes.
fn cbor_bounded<T: for<'b> Decode<'b, ()> + Encode<()> + PartialEq + Debug>(bytes: &[u8]) -> String {
    let message = bytes.split_first_chunk::<4>().filter(|(head, _)| message_len(**head).is_some());
    let Some((_, message)) = message else { return "no message".into() };
    let outcome = cbor::<T>(message);
    if let Ok(value) = minicbor::decode::<T>(message) {
        let encoded = encode_message(&value);
        assert!(encoded.len() <= 2 * bytes.len() + 64, "{} bytes became {}", bytes.len(), encoded.len());
        assert!(encoded.len() <= 2 * MAX_MESSAGE_LEN);
    }
    outcome
}

fn messages() -> Vec<Vec<u8>> {
    golden(include_str!("../../../protocol/src/wire/session.golden"))
}

fn blob_seeds() -> Vec<Vec<u8>> {
    let seed = |kind, refs: usize| {
        let mut blob = Vec::new();
        write_header(&mut blob, kind, Suite::Aes256Gcm, 1, &vec![Cid::of(b"x"); refs]);
        blob.extend([7; 60]);
        blob
    };
    vec![seed(BlobKind::Chunk, 0), seed(BlobKind::Leaf, 3), seed(BlobKind::Root, 20)]
}

fn blob_header(bytes: &[u8]) -> String {
    said(Header::parse(bytes), |header| {
        let refs: Vec<Cid> = header.refs().collect();
        assert!(refs.len() <= MAX_REFS && bytes.len() <= MAX_BLOB_LEN && header.len() < bytes.len());
        let mut again = Vec::new();
        write_header(&mut again, header.kind, header.suite, header.epoch, &refs);
        assert_eq!(again, &bytes[..header.len()]);
        format!("{:?} {:?} {}", header.kind, header.suite, if refs.is_empty() { "bare" } else { "with children" })
    })
}

fn encoded_seeds() -> Vec<Vec<u8>> {
    let seed = |codec, raw_len, payload: &[u8]| {
        let mut encoded = Vec::new();
        write_encoded_head(&mut encoded, codec, raw_len, u32::try_from(payload.len()).expect("short"));
        encoded.extend(payload);
        encoded.resize(padme(encoded.len()), 0);
        encoded
    };
    use vsync_protocol::blob::Codec::{Raw, Zstd};
    vec![seed(Raw, 40, &[3; 40]), seed(Zstd, 4096, &[9; 100]), seed(Raw, 0, &[])]
}

fn encoded_payload(bytes: &[u8]) -> String {
    said(Encoded::parse(bytes), |encoded| {
        assert!(encoded.raw_len <= MAX_RAW_LEN && encoded.payload.len() < bytes.len());
        format!("{:?}", encoded.codec)
    })
}

fn path_seeds() -> Vec<Vec<u8>> {
    [&b"a"[..], b"a/b/c", b"../x", b"/etc", b"a//b", b"a/./b", b"a\0b", b""].map(<[u8]>::to_vec).to_vec()
}

/// I10: no path that leads out of a volume.
fn entry_path(bytes: &[u8]) -> String {
    said(EntryPath::new(bytes), |path| {
        assert_eq!(path.as_bytes(), bytes);
        for name in path.components() {
            assert!(!name.is_empty() && name.len() <= 255 && name != b"." && name != b"..");
            assert!(!name.contains(&0) && !name.contains(&b'/'));
        }
        some(path.components().count()).into()
    })
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let bodies = golden(MANIFEST).into_iter().filter(|bytes| minicbor::decode::<Body>(bytes).is_ok());
    let whole: Vec<Vec<u8>> = bodies.map(|body| assemble(&body, b"sealed", |_| [7; 64])).collect();
    assert!(!whole.is_empty(), "no body among the pinned ones");
    whole
}

fn manifest(bytes: &[u8]) -> String {
    said(Manifest::parse(bytes), |manifest| {
        // A changed one is nobody's.
        let stranger = vsync_protocol::id::MachineKey::from_bytes([7; 32]);
        assert!(manifest.verify([stranger]).is_err());
        let body = minicbor::to_vec(&manifest.body).expect("a body");
        assert_eq!(minicbor::decode::<Body>(&body).expect("a body"), manifest.body);
        format!("{:?}", manifest.body.kind)
    })
}

fn head_seeds() -> Vec<Vec<u8>> {
    let frame = FrameHead { len: 5000, cid: Cid::of(b"x") }.encode().to_vec();
    vec![frame, UploadHead { session: 3, stream: 1 }.encode().to_vec()]
}

fn heads(bytes: &[u8]) -> String {
    let frame = bytes.first_chunk::<FRAME_HEAD_LEN>().and_then(|head| {
        let decoded = FrameHead::decode(head)?;
        assert!(decoded.len <= MAX_BLOB_LEN && decoded.encode() == *head);
        Some(())
    });
    let upload = bytes.first_chunk::<UPLOAD_HEAD_LEN>().and_then(|head| {
        let decoded = UploadHead::decode(*head)?;
        assert_eq!(decoded.encode(), *head);
        Some(())
    });
    format!("{frame:?} {upload:?}")
}

fn raw_key(bytes: &[u8]) -> String {
    let key = spki::decode(bytes);
    if let Some(key) = key {
        assert_eq!(spki::encode(key), bytes);
    }
    format!("{}", key.is_some())
}

fn pack_seed() -> Vec<u8> {
    let mut builder = pack::PackBuilder::default();
    for blob in blob_seeds() {
        let kind = Header::parse(&blob).expect("a blob").kind;
        builder.push(Cid::of(&blob), kind, blob.into());
    }
    builder.finish().slices().iter().flat_map(|slice| slice.to_vec()).collect()
}

/// The end of a file that is whole or not: its footer says how long its table is.
fn pack_table(bytes: &[u8]) -> String {
    let Some(footer) = bytes.last_chunk::<{ pack::FOOTER_LEN }>() else { return "short".into() };
    said(pack::table_len(footer, bytes.len() as u64), |len| {
        let trailer = &bytes[bytes.len().checked_sub(len + pack::FOOTER_LEN).expect("a table fits into its file")..];
        // The name fits, so that damage must be found by what is inside.
        let id = PackId::from_bytes(*blake3::hash(&trailer[..len]).as_bytes());
        said(pack::read_table(id, trailer, bytes.len() as u64), |records| {
            for record in &records {
                assert!(record.offset + u64::from(record.len) <= bytes.len() as u64);
            }
            some(records.len()).into()
        })
    })
}

fn pack_scan(bytes: &[u8]) -> String {
    let records = pack::scan_records(bytes);
    for record in &records {
        let from = usize::try_from(record.offset).expect("an offset");
        let len = usize::try_from(record.len).expect("a length");
        assert_eq!(Cid::of(&bytes[from..from + len]), record.cid, "only what matches its name");
    }
    some(records.len()).into()
}

/// A count in words: numbers are left out of outcomes.
const fn some(count: usize) -> &'static str {
    match count {
        0 => "none",
        1 => "one",
        2 => "two",
        _ => "many",
    }
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn registry(bytes: &[u8]) -> String {
    said(text(bytes).parse::<Registry>(), |registry| {
        let again: Registry = registry.to_string().parse().expect("what was written can be read");
        assert_eq!(again, registry);
        some(registry.machines().count()).into()
    })
}

fn kit(bytes: &[u8]) -> String {
    said(Kit::parse(&text(bytes)), |kit| {
        let line = kit.secret_line();
        // Whoever types it may put spaces and line breaks into it.
        let typed: String = text(bytes).split_whitespace().collect();
        assert!(typed.to_lowercase().contains(line.split_whitespace().last().expect("a word")));
        format!("a kit {}", kit.realm.is_some())
    })
}

fn key_file(bytes: &[u8]) -> String {
    said(Bundle::parse(Path::new("a.key"), &text(bytes)), |bundle| {
        let again = Bundle::parse(Path::new("a.key"), &bundle.to_toml()).expect("what was written can be read");
        assert_eq!((again.public_key(), again.epochs().count()), (bundle.public_key(), bundle.epochs().count()));
        "a bundle".into()
    })
}

fn configuration(bytes: &[u8]) -> String {
    said(Config::parse(Path::new("/etc/vsync/vsync.toml"), &text(bytes)), |config| {
        some(config.machines().count()).into()
    })
}

/// Numbers out of an input, and zeros when it is used up.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn next(&mut self) -> u64 {
        let (number, rest) = self.0.split_at(self.0.len().min(8));
        self.0 = rest;
        let mut bytes = [0; 8];
        bytes[..number.len()].copy_from_slice(number);
        u64::from_le_bytes(bytes)
    }

    fn count(&mut self) -> u32 {
        u32::try_from(self.next() >> 32).expect("32 bits")
    }

    fn time(&mut self) -> i64 {
        self.next().cast_signed()
    }
}

/// Policies, clocks and histories of any shape: every snapshot gets one verdict, and what is pinned stays.
fn retention(bytes: &[u8]) -> String {
    let mut numbers = Numbers(bytes);
    let small = |number: u64| u32::try_from(number % 5).expect("small");
    let policy = Policy {
        last: small(numbers.next()),
        hourly: small(numbers.next()),
        daily: numbers.count(),
        weekly: small(numbers.next()),
        monthly: small(numbers.next()),
        yearly: numbers.count(),
        within: Some(numbers.next()).filter(|within| within % 2 == 0),
        floor: numbers.next() % (1 << 40),
    };
    let seen = Some(numbers.time()).filter(|seen| seen % 2 == 0);
    let clock = Clock { now: numbers.time(), seen, passed: numbers.next() };
    let zone =
        Zone::new(small(numbers.next()).cast_signed() * 3600, vec![(numbers.time(), -3600), (numbers.time(), 7200)]);
    let mut candidates: Vec<Candidate> = Vec::new();
    while !numbers.0.is_empty() {
        let sequence = candidates.len() as u64 + 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&sequence.to_le_bytes());
        let (received, flags) = (numbers.time(), numbers.next());
        let (pinned, partial) = (flags % 7 == 0, flags % 3 == 0);
        candidates.push(Candidate { id: SnapshotId::from_bytes(id), received, sequence, pinned, partial });
    }
    match plan(&policy, &clock, &zone, &candidates) {
        Err(frozen) => frozen.to_string(),
        Ok(verdicts) => {
            assert_eq!(verdicts.len(), candidates.len());
            let kept = |id| verdicts.iter().any(|verdict| verdict.id == id && matches!(verdict.fate, Fate::Keep(_)));
            assert!(candidates.iter().filter(|candidate| candidate.pinned).all(|candidate| kept(candidate.id)));
            let newest = candidates.iter().max_by_key(|candidate| candidate.sequence);
            assert!(newest.is_none_or(|newest| kept(newest.id)), "the newest stays");
            let forgotten = verdicts.iter().filter(|verdict| matches!(verdict.fate, Fate::Forget(_))).count();
            some(forgotten).into()
        }
    }
}
