//! Changes of inputs.

use crate::Rng;

/// Numbers at which lengths and counters go wrong.
const NUMBERS: [u64; 18] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    1 << 62,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Heads of CBOR items: lengths that are long, indefinite or absurd, tags, and simple values.
const HEADS: [&[u8]; 14] = [
    &[0x9f],
    &[0x5f],
    &[0x7f],
    &[0xbf],
    &[0xff],
    &[0xf6],
    &[0x80],
    &[0xa0],
    &[0x40],
    &[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0xbb, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
    &[0x3b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0xc2, 0x41, 0xff],
];

/// Words of the text formats, and what does not belong into them.
const WORDS: [&str; 16] = [
    "\n",
    "\r\n",
    "\0",
    "\u{feff}",
    "machine ",
    "retired ",
    "realm ",
    "[[clients]]\n",
    "[realm]\n",
    " = ",
    "\"",
    "99999999999999999999",
    "-1",
    "ed25519 ",
    "\u{202e}",
    "//",
];

/// One to four changes of `base`; some take parts of `other`.
pub(super) fn mutate(rng: &mut Rng, base: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for _ in 0..=rng.below(4) {
        change(rng, &mut bytes, other);
    }
    bytes
}

fn below(rng: &mut Rng, end: usize) -> usize {
    usize::try_from(rng.below(end as u64)).expect("an index")
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    if bytes.is_empty() {
        bytes.extend(rng.bytes(8));
        return;
    }
    let at = below(rng, bytes.len());
    let end = (at + 1 + below(rng, 32)).min(bytes.len());
    match rng.below(13) {
        0 => bytes[at] ^= 1 << rng.below(8),
        1 => bytes[at] = rng.next_u64().to_le_bytes()[0],
        2 => bytes[at] = bytes[at].wrapping_add(1),
        3 => bytes[at] = bytes[at].wrapping_sub(1),
        4 => bytes.truncate(at),
        5 => drop(bytes.drain(at..end)),
        6 => {
            let part = bytes[at..end].to_vec();
            let to = below(rng, bytes.len());
            drop(bytes.splice(to..to, part));
        }
        7 => {
            let len = 1 + below(rng, 9);
            let noise = rng.bytes(len);
            drop(bytes.splice(at..at, noise));
        }
        8 => number(rng, bytes, at),
        9 => {
            let head = *rng.pick(&HEADS);
            let replaced = (at + head.len().min(below(rng, 10))).min(bytes.len());
            drop(bytes.splice(at..replaced, head.iter().copied()));
        }
        10 => {
            let word = *rng.pick(&WORDS);
            drop(bytes.splice(at..at, word.bytes()));
        }
        11 if !other.is_empty() => {
            let from = below(rng, other.len());
            let to = (from + 1 + below(rng, 64)).min(other.len());
            drop(bytes.splice(at..end, other[from..to].iter().copied()));
        }
        _ => lines(rng, bytes),
    }
}

/// Writes a number of 1, 2, 4 or 8 bytes, of either order.
fn number(rng: &mut Rng, bytes: &mut [u8], at: usize) {
    let value = rng.pick(&NUMBERS).wrapping_add(rng.below(3)).wrapping_sub(1);
    let width = 1_usize << rng.below(4);
    let (little, big) = (value.to_le_bytes(), value.to_be_bytes());
    let number = if rng.below(2) == 0 { &little[..width] } else { &big[8 - width..] };
    for (byte, new) in bytes[at..].iter_mut().zip(number) {
        *byte = *new;
    }
}

/// Doubles, drops or swaps lines of a text.
fn lines(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|&byte| byte == b'\n').collect();
    let (one, two) = (below(rng, lines.len()), below(rng, lines.len()));
    match rng.below(3) {
        0 => lines.insert(one, lines[two]),
        1 => drop(lines.remove(one)),
        _ => lines.swap(one, two),
    }
    *bytes = lines.concat();
}
