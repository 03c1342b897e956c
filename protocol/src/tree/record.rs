//! The records of a tree: one entry per file, then the extents of its content.

use minicbor::{Decode, Decoder, Encode, Encoder};

use super::path::EntryPath;
use crate::limits::MAX_EXTENTS;

/// A point in time as file systems keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Default)]
#[cbor(array)]
pub struct Time {
    /// Seconds since 1970, negative before.
    #[n(0)]
    pub seconds: i64,
    /// Nanoseconds after those, below 1,000,000,000.
    #[n(1)]
    pub nanos: u32,
}

/// What kind of thing an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum EntryKind {
    /// A regular file; extents follow when it is not empty.
    #[n(0)]
    File,
    /// A directory.
    #[n(1)]
    Directory,
    /// A symbolic link to `target`.
    #[n(2)]
    Symlink,
    /// A further name of the file at `target`, an earlier path of this snapshot.
    #[n(3)]
    HardLink,
    /// A character device with number `device`.
    #[n(4)]
    CharDevice,
    /// A block device with number `device`.
    #[n(5)]
    BlockDevice,
    /// A named pipe.
    #[n(6)]
    Fifo,
    /// A socket of the file system.
    #[n(7)]
    Socket,
}

/// One extended attribute; ACLs and capabilities are such attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(array)]
pub struct Xattr {
    /// Full name, with its namespace.
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub name: Vec<u8>,
    /// Value.
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub value: Vec<u8>,
}

/// Everything about a file but its content.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Entry {
    /// Where it is.
    #[n(0)]
    pub path: EntryPath,
    /// What it is.
    #[n(1)]
    pub kind: EntryKind,
    /// Permission bits, with set-id and sticky: 0 to 0o7777.
    #[n(2)]
    pub mode: u32,
    /// Numeric owner.
    #[n(3)]
    pub uid: u32,
    /// Numeric group.
    #[n(4)]
    pub gid: u32,
    /// When the content last changed.
    #[n(5)]
    pub mtime: Time,
    /// When the inode last changed, on the source; tells an unchanged file, never restored.
    #[n(6)]
    pub ctime: Time,
    /// Inode number on the source; tells an unchanged file.
    #[n(7)]
    pub inode: u64,
    /// Bytes of a regular file: the sum of its extents. 0 for a stream, whose length is
    /// known only at its end.
    #[n(8)]
    pub size: u64,
    /// Target of a symbolic link, or path of the file that a hard link names.
    #[n(9)]
    #[cbor(with = "minicbor::bytes")]
    pub target: Option<Vec<u8>>,
    /// Device number, as `makedev` makes it.
    #[n(10)]
    pub device: Option<u64>,
    /// Extended attributes, sorted by name.
    #[n(11)]
    pub xattrs: Option<Vec<Xattr>>,
}

/// A run of a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The chunk at this position of the leaf's references.
    Chunk(u32),
    /// This many zero bytes, restored as a hole.
    Hole(u64),
}

const HOLE: u64 = 1 << 63;

/// One record of a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Begins an entry.
    Entry(Box<Entry>),
    /// Continues the content of the last file entry; 1 to [`MAX_EXTENTS`] of them.
    /// No offsets: an insertion leaves the records after it as they are.
    Extents(Vec<Extent>),
}

/// Extents are packed, 8 bytes each, little-endian: the top bit tells a hole, the others
/// its length or the reference's position.
impl<C> Encode<C> for Record {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        match self {
            Self::Entry(entry) => entry.encode(e, ctx),
            Self::Extents(extents) => {
                let mut packed = [0; MAX_EXTENTS * 8];
                for (slot, extent) in packed.chunks_exact_mut(8).zip(extents) {
                    let value = match *extent {
                        Extent::Chunk(position) => u64::from(position),
                        Extent::Hole(len) => HOLE | len,
                    };
                    slot.copy_from_slice(&value.to_le_bytes());
                }
                e.bytes(&packed[..extents.len().min(MAX_EXTENTS) * 8])?.ok()
            }
        }
    }
}

impl<'b, C> Decode<'b, C> for Record {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        let error = |message| minicbor::decode::Error::message(message).at(at);
        if d.datatype()? != minicbor::data::Type::Bytes {
            return Entry::decode(d, ctx).map(|entry| Self::Entry(Box::new(entry)));
        }
        let packed = d.bytes()?;
        if packed.is_empty() || !packed.len().is_multiple_of(8) || packed.len() > MAX_EXTENTS * 8 {
            return Err(error("extent record of a wrong length"));
        }
        let extents = packed.chunks_exact(8).map(|bytes| {
            let mut value = [0; 8];
            value.copy_from_slice(bytes);
            match u64::from_le_bytes(value) {
                hole if hole & HOLE != 0 => Ok(Extent::Hole(hole & !HOLE)),
                position => u32::try_from(position).map(Extent::Chunk).map_err(|_| error("extent out of range")),
            }
        });
        extents.collect::<Result<_, _>>().map(Self::Extents)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            path: EntryPath::new("base/1/1259").unwrap(),
            kind: EntryKind::File,
            mode: 0o600,
            uid: 999,
            gid: 999,
            mtime: Time { seconds: -5, nanos: 7 },
            ctime: Time { seconds: 9, nanos: 1 },
            inode: 42,
            size: 8192,
            target: None,
            device: None,
            xattrs: Some(vec![Xattr { name: b"user.a".to_vec(), value: b"\0\xff".to_vec() }]),
        }
    }

    #[test]
    fn records_come_back() {
        for record in [
            Record::Entry(Box::new(entry())),
            Record::Extents(vec![Extent::Chunk(0), Extent::Hole(1 << 62), Extent::Chunk(u32::MAX)]),
        ] {
            let bytes = minicbor::to_vec(&record).unwrap();
            assert_eq!(minicbor::decode::<Record>(&bytes).unwrap(), record);
        }
    }

    #[test]
    fn extents_of_a_wrong_shape_are_refused() {
        for packed in [vec![], vec![0; 7], vec![0; 8 * (MAX_EXTENTS + 1)], vec![0, 0, 0, 0, 1, 0, 0, 0]] {
            let mut bytes = Vec::new();
            Encoder::new(&mut bytes).bytes(&packed).unwrap();
            assert!(minicbor::decode::<Record>(&bytes).is_err(), "{packed:?}");
        }
    }
}
