//! Many blob names as one byte string, and the yes or no to each as bits.

use minicbor::{Decode, Decoder, Encode, Encoder};

use crate::id::Cid;
use crate::limits::MAX_CIDS;

/// Up to [`MAX_CIDS`] names.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Cids(Vec<Cid>);

impl Cids {
    /// Takes `names`; the caller keeps to [`MAX_CIDS`] of them.
    #[must_use]
    pub fn new(names: Vec<Cid>) -> Self {
        debug_assert!(names.len() <= MAX_CIDS);
        Self(names)
    }

    /// The names.
    #[must_use]
    pub fn as_slice(&self) -> &[Cid] {
        &self.0
    }

    /// The names.
    #[must_use]
    pub fn into_vec(self) -> Vec<Cid> {
        self.0
    }
}

impl<C> Encode<C> for Cids {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let mut bytes = Vec::with_capacity(self.0.len() * Cid::LEN);
        self.0.iter().for_each(|cid| bytes.extend_from_slice(cid.as_bytes()));
        e.bytes(&bytes)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Cids {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        let bytes = d.bytes()?;
        if !bytes.len().is_multiple_of(Cid::LEN) || bytes.len() > MAX_CIDS * Cid::LEN {
            return Err(minicbor::decode::Error::message("names of a wrong length").at(at));
        }
        Ok(Self(bytes.chunks_exact(Cid::LEN).filter_map(Cid::from_slice).collect()))
    }
}

/// One bit for each name asked for, in the same order.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(transparent)]
pub struct Answers(
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    Vec<u8>,
);

impl Answers {
    /// Whether the answer to question `index` is yes; no when it was never given.
    #[must_use]
    pub fn get(&self, index: usize) -> bool {
        self.0.get(index / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
    }
}

impl FromIterator<bool> for Answers {
    fn from_iter<I: IntoIterator<Item = bool>>(answers: I) -> Self {
        let mut bytes = Vec::new();
        for (index, yes) in answers.into_iter().enumerate() {
            if index % 8 == 0 {
                bytes.push(0);
            }
            if let Some(byte) = bytes.last_mut() {
                *byte |= u8::from(yes) << (index % 8);
            }
        }
        Self(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_back_in_order() {
        let given = [true, false, false, true, true, false, true, false, false, true];
        let bytes = minicbor::to_vec(given.into_iter().collect::<Answers>()).unwrap();
        let answers: Answers = minicbor::decode(&bytes).unwrap();
        assert!(given.iter().enumerate().all(|(index, &yes)| answers.get(index) == yes));
        assert!(!answers.get(10) && !answers.get(1000));
    }

    #[test]
    fn names_are_bounded() {
        for (count, good) in [(0, true), (MAX_CIDS, true), (MAX_CIDS + 1, false)] {
            let mut bytes = Vec::new();
            Encoder::new(&mut bytes).bytes(&vec![0; count * 32]).unwrap();
            assert_eq!(minicbor::decode::<Cids>(&bytes).is_ok(), good, "{count}");
        }
    }
}
