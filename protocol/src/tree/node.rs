//! Payloads of tree nodes. A node's children are the clear references of its blob, in the
//! same order as the sealed descriptions in its payload.

use minicbor::{Decode, Decoder, Encode, Encoder};

use super::path::EntryPath;
use super::record::{Entry, Record};
use crate::id::Pid;
use crate::key::ContentKey;

/// How to open a child, and how to recognise its plaintext; packed as 52 bytes:
/// `ck 32 ‖ pid 16 ‖ raw_len u32`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Child {
    /// The key that opens the child and nothing else. A secret.
    pub ck: ContentKey,
    /// Recognises the child's plaintext.
    pub pid: Pid,
    /// Bytes of the plaintext.
    pub raw_len: u32,
}

impl std::fmt::Debug for Child {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Child({} bytes, key hidden)", self.raw_len)
    }
}

/// Bytes of a packed [`Child`].
pub const CHILD_LEN: usize = 52;

impl Child {
    fn pack(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.ck.as_bytes());
        out.extend_from_slice(self.pid.as_bytes());
        out.extend_from_slice(&self.raw_len.to_le_bytes());
    }

    fn unpack(bytes: &[u8]) -> Option<Self> {
        let (ck, rest) = bytes.split_first_chunk::<{ ContentKey::LEN }>()?;
        let (pid, rest) = rest.split_first_chunk::<16>()?;
        let raw_len = u32::from_le_bytes(*rest.first_chunk::<4>()?);
        Some(Self { ck: ContentKey::from_bytes(*ck), pid: Pid::from_bytes(*pid), raw_len })
    }
}

/// Children as one byte string.
mod packed {
    use super::{CHILD_LEN, Child, Decoder, Encoder};
    use crate::limits::MAX_REFS;

    pub(super) fn encode<C, W: minicbor::encode::Write>(
        children: &[Child],
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let mut bytes = Vec::with_capacity(children.len() * CHILD_LEN);
        children.iter().for_each(|child| child.pack(&mut bytes));
        e.bytes(&bytes)?.ok()
    }

    pub(super) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Vec<Child>, minicbor::decode::Error> {
        let at = d.position();
        let bytes = d.bytes()?;
        if !bytes.len().is_multiple_of(CHILD_LEN) || bytes.len() > MAX_REFS * CHILD_LEN {
            return Err(minicbor::decode::Error::message("children of a wrong length").at(at));
        }
        Ok(bytes.chunks_exact(CHILD_LEN).filter_map(Child::unpack).collect())
    }
}

/// A node of records.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Leaf {
    /// One per reference: the chunks that this leaf's extents mean.
    #[n(0)]
    #[cbor(with = "packed")]
    pub chunks: Vec<Child>,
    /// The records, in path order. The first may continue a file of the leaf before.
    #[n(1)]
    pub records: Vec<Record>,
}

/// What a parent knows of a node below it besides how to open it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ChildSummary {
    /// Path of the first record: of the entry, or of the file that the extents continue.
    #[n(0)]
    pub first: EntryPath,
    /// The first record continues a file that began before.
    #[n(1)]
    pub continues: bool,
    /// Entries in and below the node.
    #[n(2)]
    pub entries: u64,
    /// Bytes of file content in and below the node, holes included.
    #[n(3)]
    pub bytes: u64,
}

/// Nodes in path order, with what is known of them.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Inner {
    /// One per reference.
    #[n(0)]
    #[cbor(with = "packed")]
    pub children: Vec<Child>,
    /// One per reference.
    #[n(1)]
    pub summaries: Vec<ChildSummary>,
}

/// What the whole tree is a snapshot of.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VolumeInfo {
    /// "volume", "directory" or "stream".
    #[n(0)]
    pub kind: String,
    /// Docker's volume driver.
    #[n(1)]
    pub driver: Option<String>,
    /// Docker's driver options, sorted.
    #[n(2)]
    pub options: Vec<(String, String)>,
    /// Docker's volume labels, sorted.
    #[n(3)]
    pub labels: Vec<(String, String)>,
    /// How applications were held: "none", "pause", "stop" or "hooks".
    #[n(4)]
    pub quiesce: String,
}

/// The levels below a root: nodes of one kind, in path order.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Subtree {
    /// One per reference of the root.
    #[n(0)]
    #[cbor(with = "packed")]
    pub children: Vec<Child>,
    /// One per reference of the root.
    #[n(1)]
    pub summaries: Vec<ChildSummary>,
    /// Levels of nodes below the root: 1 when the children are leaves, 0 without children.
    #[n(2)]
    pub depth: u32,
}

/// The payload of the top node. It holds nothing that changes while the volume does not,
/// so that an unchanged volume has an unchanged root.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Root {
    /// What this is a snapshot of.
    #[n(0)]
    pub volume: VolumeInfo,
    /// Metadata of the volume's own directory; its path is empty.
    #[n(1)]
    pub directory: Option<Entry>,
    /// The nodes below.
    #[n(2)]
    pub subtree: Subtree,
    /// What is not exact: path and reason, the first of them by path.
    #[n(3)]
    pub defects: Vec<(EntryPath, String)>,
    /// How many defects there are in all.
    #[n(4)]
    pub defect_count: u64,
}

#[cfg(test)]
mod tests {
    use super::super::{EntryKind, Extent, Time, Xattr};
    use super::*;
    use crate::testing::assert_golden;

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry {
            path: EntryPath::new(path).unwrap(),
            kind,
            mode: 0o644,
            uid: 1000,
            gid: 70_000,
            mtime: Time { seconds: 1_795_000_000, nanos: 999_999_999 },
            ctime: Time { seconds: -1, nanos: 1 },
            inode: 42,
            size: 0,
            target: None,
            device: None,
            xattrs: None,
        }
    }

    fn child(byte: u8) -> Child {
        Child { ck: ContentKey::from_bytes([byte; 32]), pid: Pid::from_bytes([byte + 1; 16]), raw_len: 65_536 }
    }

    fn summary(first: &str, continues: bool) -> ChildSummary {
        ChildSummary { first: EntryPath::new(first).unwrap(), continues, entries: 9, bytes: 1 << 40 }
    }

    fn leaf() -> Leaf {
        let file = Entry {
            size: 131_072 + 4096,
            xattrs: Some(vec![Xattr { name: b"user.a".to_vec(), value: vec![0, 255] }]),
            ..entry("d/file", EntryKind::File)
        };
        let link = Entry { target: Some(b"d/file".to_vec()), ..entry("d/hard", EntryKind::HardLink) };
        let device = Entry { device: Some(0x701), ..entry("e", EntryKind::BlockDevice) };
        let records = vec![
            Record::Entry(Box::new(entry("d", EntryKind::Directory))),
            Record::Entry(Box::new(file)),
            Record::Extents(vec![Extent::Chunk(0), Extent::Hole(4096), Extent::Chunk(1)]),
            Record::Entry(Box::new(link)),
            Record::Entry(Box::new(device)),
        ];
        Leaf { chunks: vec![child(1), child(3)], records }
    }

    fn root() -> Root {
        Root {
            volume: VolumeInfo {
                kind: "volume".into(),
                driver: Some("local".into()),
                options: vec![("o".into(), "size=1g".into())],
                labels: vec![],
                quiesce: "pause".into(),
            },
            directory: Some(entry("", EntryKind::Directory)),
            subtree: Subtree { children: vec![child(5)], summaries: vec![summary("d", false)], depth: 1 },
            defects: vec![(EntryPath::new("d/gone").unwrap(), "changed".into())],
            defect_count: 1,
        }
    }

    /// Payloads of all kinds of nodes, for ever; a second implementation, `tests/reader.py`, reads them too.
    #[test]
    fn golden_nodes() {
        let inner =
            Inner { children: vec![child(5), child(7)], summaries: vec![summary("d", false), summary("d/file", true)] };
        let bytes = |record: &Record| minicbor::to_vec(record).unwrap();
        let records = leaf().records;
        let found = [
            ("directory", bytes(&records[0])),
            ("file", bytes(&records[1])),
            ("extents", bytes(&records[2])),
            ("hard link", bytes(&records[3])),
            ("device", bytes(&records[4])),
            ("leaf", minicbor::to_vec(leaf()).unwrap()),
            ("inner", minicbor::to_vec(&inner).unwrap()),
            ("root", minicbor::to_vec(root()).unwrap()),
        ];
        assert_golden(&found, include_str!("node.golden"));
        assert_eq!(minicbor::decode::<Leaf>(&found[5].1).unwrap(), leaf());
        assert_eq!(minicbor::decode::<Inner>(&found[6].1).unwrap(), inner);
        assert_eq!(minicbor::decode::<Root>(&found[7].1).unwrap(), root());
    }

    #[test]
    fn a_leaf_comes_back_and_hides_keys_from_debug() {
        let child = Child { ck: ContentKey::from_bytes([7; 32]), pid: Pid::from_bytes([9; 16]), raw_len: 65_536 };
        let leaf = Leaf { chunks: vec![child; 3], records: vec![Record::Extents(vec![Extent::Chunk(2)])] };
        let bytes = minicbor::to_vec(&leaf).unwrap();
        assert_eq!(minicbor::decode::<Leaf>(&bytes).unwrap(), leaf);
        assert!(!format!("{child:?}").contains("7, 7"));
    }

    #[test]
    fn children_of_a_wrong_length_are_refused() {
        let mut bytes = Vec::new();
        Encoder::new(&mut bytes).map(1).unwrap().u8(0).unwrap().bytes(&[0; 51]).unwrap();
        assert!(minicbor::decode::<Leaf>(&bytes).is_err());
    }
}
