//! The recovery kit: a page of text from which a realm can be restored when every machine is
//! gone. Its `secret` line alone is enough, together with the address of a server.

use std::fmt::Write as _;

use bech32::{Bech32, Hrp};
use jiff::civil::Date;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use thiserror::Error;
use vsync_protocol::blob::Suite;
use vsync_protocol::id::{MachineKey, MachineName, RealmName};
use zeroize::Zeroizing;

use super::derive::RootSecret;
use super::realm::RealmKey;
use super::secret::Secret;

/// The human-readable part of the secret line.
const HRP: &str = "vsync";

/// Characters of the secret line: `vsync1`, 52 for 32 bytes, 6 of checksum.
const SECRET_LEN: usize = 64;

/// Characters that may follow `vsync1`.
const ALPHABET: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";

/// A server as the kit knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KitServer {
    /// Its name.
    pub name: MachineName,
    /// `host:port`, or the data directory of an embedded server.
    pub address: String,
    /// Its identity.
    pub key: MachineKey,
}

/// What a recovery kit holds.
#[derive(Debug)]
pub struct Kit {
    /// The root secret.
    pub root: RootSecret,
    /// The realm's name; `None` if only the secret line was kept.
    pub realm: Option<RealmName>,
    /// The cipher of new blobs; suite 1 if only the secret line was kept.
    pub suite: Suite,
    /// The last key epoch when the kit was made; 1 if only the secret line was kept.
    pub epoch: u32,
    /// Where the backups were.
    pub servers: Vec<KitServer>,
}

/// A text is not a recovery kit.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KitError {
    /// No secret at all.
    #[error("the recovery kit has no line `secret vsync1…`")]
    NoSecret,
    /// Characters are missing, or there are too many.
    #[error("the secret of the recovery kit has {0} characters instead of {SECRET_LEN}")]
    Length(usize),
    /// A character that cannot be part of it.
    #[error("character {at} of the recovery kit's secret, {found:?}, cannot occur there")]
    Character {
        /// Its position, from 1.
        at: usize,
        /// What stands there.
        found: char,
    },
    /// Exactly one character is wrong.
    #[error("character {at} of the recovery kit's secret is mistyped")]
    Typo {
        /// Its position, from 1.
        at: usize,
    },
    /// The checksum does not fit, and not because of one character.
    #[error("the recovery kit's secret has several mistyped characters")]
    Typos,
    /// The secret is of another realm than the page says.
    #[error("the secret of the recovery kit belongs to another realm than the id on its page")]
    OtherRealm,
    /// A line that begins like one of ours is not.
    #[error("the recovery kit's line {0:?} is damaged")]
    Line(String),
}

impl KitError {
    /// What to do about it.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::OtherRealm => "check that the page and the secret are from the same kit",
            Self::Line(_) => "compare the line with the paper; the `secret` line alone is enough to restore",
            Self::NoSecret | Self::Length(_) | Self::Character { .. } | Self::Typo { .. } | Self::Typos => {
                "compare it with the paper, or scan the QR code: its text is the secret"
            }
        }
    }
}

impl Kit {
    /// The kit of `realm`, whose backups are on `servers`.
    #[must_use]
    pub fn new(realm: RealmKey, servers: Vec<KitServer>) -> Self {
        let RealmKey { name, suite, epoch, root } = realm;
        Self { root, realm: Some(name), suite, epoch, servers }
    }

    /// The administrator's key file again, under the name that the configuration has for the realm.
    #[must_use]
    pub fn into_realm_key(self, name: RealmName) -> RealmKey {
        let Self { root, suite, epoch, .. } = self;
        RealmKey { name, suite, epoch, root }
    }

    /// The secret in Bech32, which detects every slip of up to four characters.
    #[must_use]
    pub fn secret_line(&self) -> Zeroizing<String> {
        let line = bech32::encode_lower::<Bech32>(Hrp::parse_unchecked(HRP), self.root.secret().expose());
        Zeroizing::new(line.unwrap_or_else(|_| unreachable!("32 bytes fit into Bech32")))
    }

    /// The page to print; `date` is today's.
    #[must_use]
    pub fn page(&self, date: Date) -> Zeroizing<String> {
        let secret = self.secret_line();
        let id = self.root.realm_id();
        let realm = self.realm.as_ref().map_or("-", |name| name.as_str());
        let mut page = Zeroizing::new(String::with_capacity(8192));
        let _ = write!(
            page,
            "VSYNC RECOVERY KIT\n\n\
             Print this page and lock it away. With it, anyone can read every backup of this realm.\n\
             Without it, and without a machine that still has its keys, nobody can.\n\n\
             realm   {realm}\nid      {id}\nsuite   {}\nepochs  {}\ndate    {date}\nsecret  {}\n",
            self.suite as u8, self.epoch, *secret
        );
        for KitServer { name, address, key } in &self.servers {
            let _ = writeln!(page, "server  {name} {address} ed25519 {key}");
        }
        let _ = write!(page, "\nThe secret as QR code:\n\n{}\n", *qr(&secret));
        page.push_str(&self.commands());
        page
    }

    fn commands(&self) -> String {
        let remote = self.servers.iter().find(|server| !server.address.starts_with('/'));
        let address = remote.map_or("HOST:PORT", |server| &server.address);
        format!(
            "\nTo restore on a new machine, save this page, or its line `secret`, as kit.txt. Then:\n\n    \
             chmod 600 kit.txt\n    \
             vsync snapshots --kit kit.txt --server-address {address}\n    \
             vsync restore VOLUME --kit kit.txt --server-address {address} --to-volume NAME\n\n\
             An address that is a directory belongs to a server embedded in the agent: it holds the backups.\n"
        )
    }

    /// Reads a printed page, or a lone secret line.
    ///
    /// # Errors
    /// When there is no secret, when it is mistyped, or when the page contradicts itself.
    pub fn parse(text: &str) -> Result<Self, KitError> {
        let line_of = |key: &str| {
            text.lines()
                .find_map(|line| line.trim().strip_prefix(key).filter(|rest| rest.starts_with(char::is_whitespace)))
        };
        let lone = || text.lines().map(str::trim).find(|line| line.to_ascii_lowercase().starts_with("vsync1"));
        let root = parse_secret(line_of("secret").or_else(lone).ok_or(KitError::NoSecret)?)?;
        let word = |key| line_of(key).map(str::trim).filter(|word| *word != "-");
        let damaged = |key: &str| KitError::Line(key.to_owned());
        if word("id").is_some_and(|id| id.parse() != Ok(root.realm_id())) {
            return Err(KitError::OtherRealm);
        }
        let number = |key| word(key).map(|word| word.parse::<u32>().map_err(|_| damaged(key))).transpose();
        let suite = number("suite")?.unwrap_or(1);
        Ok(Self {
            root,
            realm: word("realm").map(|name| name.parse().map_err(|_| damaged("realm"))).transpose()?,
            suite: u8::try_from(suite).ok().and_then(Suite::from_code).ok_or_else(|| damaged("suite"))?,
            epoch: number("epochs")?.unwrap_or(1).max(1),
            servers: text.lines().filter_map(parse_server).collect::<Result<_, _>>()?,
        })
    }
}

fn parse_server(line: &str) -> Option<Result<KitServer, KitError>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["server", name, address, "ed25519", key] = *words else {
        return (words.first() == Some(&"server")).then(|| Err(KitError::Line(line.to_owned())));
    };
    let server = name.parse().ok().zip(key.parse().ok());
    let server = server.map(|(name, key)| KitServer { name, address: address.to_owned(), key });
    Some(server.ok_or_else(|| KitError::Line(line.to_owned())))
}

/// Reads the secret, in any case and with any spaces, and says where it is wrong.
fn parse_secret(text: &str) -> Result<RootSecret, KitError> {
    let text: Zeroizing<String> =
        Zeroizing::new(text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_ascii_lowercase()).collect());
    let prefix = "vsync1";
    let belongs = |at: usize, c: char| prefix.chars().nth(at).map_or_else(|| ALPHABET.contains(c), |want| want == c);
    if let Some((at, found)) = text.chars().enumerate().find(|&(at, c)| !belongs(at, c)) {
        return Err(KitError::Character { at: at + 1, found });
    }
    if text.len() != SECRET_LEN {
        return Err(KitError::Length(text.len()));
    }
    decode(&text).ok_or_else(|| locate_typo(&text))
}

fn decode(text: &str) -> Option<RootSecret> {
    let checked = bech32::primitives::decode::CheckedHrpstring::new::<Bech32>(text).ok()?;
    let mut bytes = Zeroizing::new([0; 32]);
    let mut decoded = checked.byte_iter();
    bytes.iter_mut().try_for_each(|byte| decoded.next().map(|value| *byte = value))?;
    Some(RootSecret::new(Secret::new(*bytes)))
}

/// Bech32 tells any two secrets apart that differ in four characters, so if one change makes
/// the checksum right, that character was wrong. We name it; correcting it is for the paper.
fn locate_typo(text: &str) -> KitError {
    for at in HRP.len() + 1..SECRET_LEN {
        for candidate in ALPHABET.chars() {
            let fixed = Zeroizing::new(format!("{}{candidate}{}", &text[..at], &text[at + 1..]));
            if decode(&fixed).is_some() {
                return KitError::Typo { at: at + 1 };
            }
        }
    }
    KitError::Typos
}

/// Upper case, which QR codes store in fewer modules.
fn qr(secret: &str) -> Zeroizing<String> {
    let text = Zeroizing::new(secret.to_ascii_uppercase());
    let code = QrCode::new(text.as_bytes()).map(|code| code.render::<Dense1x2>().build());
    Zeroizing::new(code.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "vsync1qqqsyqcyq5rqwzqfpg9scrgwpugpzysnzs23v9ccrydpk8qarc0s0mp8xx";

    fn kit() -> Kit {
        let root = RootSecret::new(Secret::new(std::array::from_fn(|at| u8::try_from(at).unwrap())));
        let realm = RealmKey { name: "montagu".parse().unwrap(), suite: Suite::Aes256Gcm, epoch: 3, root };
        let server = |name: &str, address: &str| KitServer {
            name: name.parse().unwrap(),
            address: address.to_owned(),
            key: MachineKey::from_bytes([9; 32]),
        };
        Kit::new(realm, vec![server("annex2", "annex2.example.org:10022"), server("local", "/srv/vsync")])
    }

    #[test]
    fn a_page_comes_back() {
        let made = kit();
        let read = Kit::parse(&made.page("2026-11-20".parse().unwrap())).unwrap();
        assert_eq!(read.root.secret().expose(), made.root.secret().expose());
        assert_eq!((read.realm, read.suite, read.epoch), (made.realm, made.suite, made.epoch));
        assert_eq!(read.servers, made.servers);
    }

    /// The lines that a program reads, for ever: paper does not change.
    #[test]
    fn golden_lines() {
        let page = kit().page("2026-11-20".parse().unwrap());
        let lines = page.lines().skip_while(|line| !line.starts_with("realm ")).take_while(|line| !line.is_empty());
        let lines: Vec<&str> = lines.collect();
        assert_eq!(lines, include_str!("kit.golden").lines().collect::<Vec<_>>());
    }

    #[test]
    fn the_page_says_what_to_do() {
        let page = kit().page("2026-11-20".parse().unwrap());
        for text in [
            "date    2026-11-20",
            "epochs  3",
            "server  annex2 annex2.example.org:10022 ed25519 0909",
            "vsync restore VOLUME --kit kit.txt --server-address annex2.example.org:10022 --to-volume NAME",
            "█▀▀▀▀▀█",
        ] {
            assert!(page.contains(text), "{text}\n{}", *page);
        }
    }

    #[test]
    fn the_secret_line_is_enough_however_it_was_copied() {
        assert_eq!(*kit().secret_line(), LINE);
        let grouped = LINE.as_bytes().chunks(4).map(|part| str::from_utf8(part).unwrap()).collect::<Vec<_>>().join(" ");
        for text in [
            LINE.to_owned(),
            format!("\n{}\n", LINE.to_uppercase()),
            format!("secret {LINE}"),
            grouped.replacen(' ', "", 1),
        ] {
            let read = Kit::parse(&text).unwrap();
            assert_eq!(read.root.secret().expose(), kit().root.secret().expose());
            assert_eq!((read.realm, read.epoch), (None, 1));
        }
    }

    #[test]
    fn typos_are_located() {
        for (text, error) in [
            (String::new(), KitError::NoSecret),
            (LINE[..63].to_owned(), KitError::Length(63)),
            (LINE.replace("5rq", "5bq"), KitError::Character { at: LINE.find("5rq").unwrap() + 2, found: 'b' }),
            (LINE.replace("5rq", "5xq"), KitError::Typo { at: LINE.find("5rq").unwrap() + 2 }),
            (LINE.replace("5rq", "5qr"), KitError::Typos),
            (format!("id {}\nsecret {LINE}", "00".repeat(16)), KitError::OtherRealm),
            (format!("server a b\nsecret {LINE}"), KitError::Line("server a b".to_owned())),
        ] {
            assert_eq!(Kit::parse(&text).unwrap_err(), error, "{text}");
        }
    }
}
