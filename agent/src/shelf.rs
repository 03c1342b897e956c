//! What must wait for the end of a restore, be it a million directories: kept compressed.

use std::io;
use std::marker::PhantomData;

use minicbor::{Decode, Encode};
use vsync_protocol::encode_into;

/// Bytes of encoded things that are compressed together.
const PAGE: usize = 256 << 10;

/// Speed matters more than the last byte.
const LEVEL: i32 = 1;

/// A list that can only be added to, and read as a whole from either end.
pub(crate) struct Shelf<T> {
    /// Compressed, with the length before.
    pages: Vec<(usize, Vec<u8>)>,
    open: Vec<u8>,
    len: u64,
    kind: PhantomData<T>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), open: Vec::new(), len: 0, kind: PhantomData }
    }
}

impl<T: Encode<()> + for<'b> Decode<'b, ()>> Shelf<T> {
    /// Adds one at the end.
    pub(crate) fn push(&mut self, thing: &T) -> io::Result<()> {
        encode_into(thing, &mut self.open);
        self.len += 1;
        if self.open.len() >= PAGE {
            self.pages.push((self.open.len(), zstd::bulk::compress(&self.open, LEVEL)?));
            self.open.clear();
        }
        Ok(())
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    /// All of them, the first first; a page at a time is in memory.
    pub(crate) fn forwards(&self) -> impl Iterator<Item = io::Result<T>> {
        let pages = self.pages.iter().map(unpack).chain(std::iter::once_with(|| read(&self.open)));
        pages.flat_map(|page| each(page.map(Vec::into_iter)))
    }

    /// All of them, the last first.
    pub(crate) fn backwards(&self) -> impl Iterator<Item = io::Result<T>> {
        let pages = std::iter::once_with(|| read(&self.open)).chain(self.pages.iter().rev().map(unpack));
        pages.flat_map(|page| each(page.map(|things| things.into_iter().rev())))
    }
}

fn each<T>(page: io::Result<impl Iterator<Item = T>>) -> impl Iterator<Item = io::Result<T>> {
    let (things, error) = match page {
        Ok(things) => (Some(things), None),
        Err(error) => (None, Some(Err(error))),
    };
    things.into_iter().flatten().map(Ok).chain(error)
}

fn unpack<T: for<'b> Decode<'b, ()>>((len, page): &(usize, Vec<u8>)) -> io::Result<Vec<T>> {
    read(&zstd::bulk::decompress(page, *len)?)
}

fn read<T: for<'b> Decode<'b, ()>>(bytes: &[u8]) -> io::Result<Vec<T>> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let mut things = Vec::new();
    while decoder.position() < bytes.len() {
        things.push(decoder.decode().map_err(|error| io::Error::other(error.to_string()))?);
    }
    Ok(things)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_on_it_comes_back_in_both_orders_and_takes_little_room() {
        let path = |number: u64| format!("a/directory/of/some/depth/{number}");
        let mut shelf = Shelf::default();
        assert_eq!(shelf.backwards().count(), 0);
        (0..50_000).for_each(|number| shelf.push(&path(number)).unwrap());
        let forward: Vec<String> = shelf.forwards().map(Result::unwrap).collect();
        assert_eq!(forward, (0..50_000).map(path).collect::<Vec<_>>());
        let backward: Vec<String> = shelf.backwards().map(Result::unwrap).collect();
        assert!(backward.iter().eq(forward.iter().rev()));
        assert_eq!(shelf.len(), 50_000);
        let kept: usize = shelf.pages.iter().map(|(_, page)| page.len()).sum();
        assert!(shelf.pages.len() > 4 && kept < 50_000 * 10, "{kept} bytes");
    }
}
