//! `vsync.pub`: the public half of a realm, one fact a line. It decides who may connect,
//! and whose signatures count; it holds nothing secret and is committed to git.
//!
//! ```text
//! realm NAME id=<32 hex> epoch=1 suite=1     exactly one, before all others
//! reader 1 age1…                             one for each key epoch: who can read its backups
//! machine annex2 ed25519 <64 hex>            may connect; its signatures count
//! retired annex2 ed25519 <64 hex>            may not connect; its old signatures still count
//! signature <128 hex>                        last; by the realm's admin key, over everything before it
//! # a comment
//! ```
//!
//! Machines that have the file from git trust git and ask for no signature. It is for the
//! one machine that has nothing but the recovery kit and gets the file from a server.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, VerifyingKey};
use thiserror::Error;

use crate::blob::Suite;
use crate::id::{BadName, MachineKey, MachineName, NotHex, RealmId, RealmName};

/// The machine as which the recovery kit connects. No machine of the configuration may have this name.
pub const RECOVERY_MACHINE: &str = "recovery-kit";

/// Separates these signatures from all others.
const SIGNING_CONTEXT: &[u8] = b"vsync.v1 registry\0";

const SIGNATURE_WORD: &str = "signature ";

/// What a newly written file says about itself.
const PREAMBLE: &str = "\
# The public keys of this realm, written by `vsync keygen`. Commit it beside vsync.toml.
# Without its `machine` line a machine is locked out; change the word to `retired` to
# lock it out and still accept the snapshots that it signed.
";

/// The realm as its machines know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm {
    /// Its name in the configuration.
    pub name: RealmName,
    /// Its identifier, derived from the root secret.
    pub id: RealmId,
    /// The key epoch in which backups are sealed now, from 1.
    pub epoch: u32,
    /// The cipher of its blobs.
    pub suite: Suite,
    /// The age recipient of each key epoch.
    pub readers: BTreeMap<u32, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Keys {
    current: Option<MachineKey>,
    /// Oldest first.
    retired: Vec<MachineKey>,
}

/// The parsed file. Its `Display` writes it back, without comments but our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// The realm to which the machines belong.
    pub realm: Realm,
    machines: BTreeMap<MachineName, Keys>,
}

/// A line of `vsync.pub` cannot be accepted.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("vsync.pub, line {line}: {problem}\n  {text}")]
pub struct RegistryError {
    /// From 1; one past the last line when something is missing.
    pub line: usize,
    /// The line as it stands.
    pub text: String,
    /// What is wrong with it.
    pub problem: RegistryProblem,
}

/// What is wrong with a line of `vsync.pub`.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RegistryProblem {
    /// An unknown first word, or the wrong number of words after it.
    #[error(
        "expected `realm NAME id=HEX epoch=N suite=N`, `reader N age1…`, `machine|retired NAME ed25519 HEX` or `signature HEX`"
    )]
    Shape,
    /// The realm's line is absent, not first, or there are two.
    #[error("exactly one line must begin with `realm`, before all others")]
    Realm,
    /// Not a name.
    #[error(transparent)]
    Name(#[from] BadName),
    /// Not a key or an identifier.
    #[error(transparent)]
    Hex(#[from] NotHex),
    /// Not a number, or one that this version does not know.
    #[error("{what} {value:?} is not one that this version of vsync knows")]
    Number {
        /// `epoch` or `suite`.
        what: &'static str,
        /// Its value in the file.
        value: String,
    },
    /// Not the text of an age X25519 recipient.
    #[error("expected an age recipient: `age1` and 58 lower-case letters and digits")]
    Recipient,
    /// No reader of the current epoch.
    #[error("no `reader {0}` line, although {0} is the current epoch")]
    NoReader(u32),
    /// The machine or the epoch has a line already.
    #[error("there is already a line for {0}")]
    Duplicate(String),
    /// The same key twice: impersonation, or a slip of the editor.
    #[error("the key belongs to {0} already; each machine needs its own")]
    SharedKey(MachineName),
}

impl Registry {
    /// A realm that has no machines yet.
    #[must_use]
    pub const fn new(realm: Realm) -> Self {
        Self { realm, machines: BTreeMap::new() }
    }

    /// Whom `key` lets in: the machine whose current key it is.
    #[must_use]
    pub fn machine_of(&self, key: &MachineKey) -> Option<&MachineName> {
        self.machines.iter().find(|(_, keys)| keys.current.as_ref() == Some(key)).map(|(name, _)| name)
    }

    /// The current key of `name`; `None` if the machine may not connect.
    #[must_use]
    pub fn key_of(&self, name: &MachineName) -> Option<MachineKey> {
        self.machines.get(name)?.current
    }

    /// Every key with which `name` ever signed, the current one first.
    pub fn keys_of<'a>(&'a self, name: &MachineName) -> impl Iterator<Item = MachineKey> + use<'a> {
        self.machines
            .get(name)
            .into_iter()
            .flat_map(|keys| keys.current.into_iter().chain(keys.retired.iter().copied()))
    }

    /// The machines that may connect, by name.
    pub fn machines(&self) -> impl Iterator<Item = (&MachineName, MachineKey)> {
        self.machines.iter().filter_map(|(name, keys)| Some((name, keys.current?)))
    }

    /// Lets `name` in with `key`; a key that it had is retired.
    ///
    /// # Errors
    /// When any machine, this one included, has or had the key.
    pub fn enrol(&mut self, name: MachineName, key: MachineKey) -> Result<(), RegistryProblem> {
        self.refuse_shared(&key)?;
        let keys = self.machines.entry(name).or_default();
        keys.retired.extend(keys.current.replace(key));
        Ok(())
    }

    fn retire(&mut self, name: MachineName, key: MachineKey) -> Result<(), RegistryProblem> {
        self.refuse_shared(&key)?;
        self.machines.entry(name).or_default().retired.push(key);
        Ok(())
    }

    fn refuse_shared(&self, key: &MachineKey) -> Result<(), RegistryProblem> {
        let owner = self.machines.iter().find(|(_, keys)| keys.current.iter().chain(&keys.retired).any(|k| k == key));
        owner.map_or(Ok(()), |(name, _)| Err(RegistryProblem::SharedKey(name.clone())))
    }

    fn accept(&mut self, words: &[&str]) -> Result<(), RegistryProblem> {
        match *words {
            ["realm", ..] => Err(RegistryProblem::Realm),
            ["reader", epoch, recipient] => self.realm.accept_reader(epoch, recipient),
            ["machine", name, "ed25519", key] => {
                let name: MachineName = name.parse()?;
                if self.key_of(&name).is_some() {
                    return Err(RegistryProblem::Duplicate(format!("machine {name}")));
                }
                // The order of lines means nothing, so a retired key may have come before.
                self.enrol(name, key.parse()?)
            }
            ["retired", name, "ed25519", key] => self.retire(name.parse()?, key.parse()?),
            // Whether it fits is for those to ask who hold the key; see `is_signed`.
            ["signature", _] => Ok(()),
            _ => Err(RegistryProblem::Shape),
        }
    }
}

/// The text of a file with a signature as its last line; `sign` makes an Ed25519 signature of
/// the message that it is given.
#[must_use]
pub fn signed(text: &str, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> String {
    use fmt::Write as _;
    let mut signed = format!("{text}{SIGNATURE_WORD}");
    for byte in sign(&message(text)) {
        // Writing into a string cannot fail.
        let _ = write!(signed, "{byte:02x}");
    }
    signed.push('\n');
    signed
}

/// Whether the file with this text is exactly as the holder of `admin` signed it.
#[must_use]
pub fn is_signed(text: &str, admin: MachineKey) -> bool {
    let verify = || {
        let (text, line) = text.split_at(text.strip_suffix('\n')?.rfind('\n')? + 1);
        let hex = line.strip_prefix(SIGNATURE_WORD)?.strip_suffix('\n')?;
        let signature = Signature::from_bytes(&signature_bytes(hex)?);
        VerifyingKey::from_bytes(admin.as_bytes()).ok()?.verify_strict(&message(text), &signature).ok()
    };
    verify().is_some()
}

fn message(text: &str) -> Vec<u8> {
    [SIGNING_CONTEXT, blake3::hash(text.as_bytes()).as_bytes()].concat()
}

/// Only lower case, so that a signature has one form.
fn signature_bytes(hex: &str) -> Option<[u8; 64]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let hex: &[u8; 128] = hex.as_bytes().try_into().ok()?;
    let mut bytes = [0; 64];
    for (byte, digits) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = digit(digits[0])? << 4 | digit(digits[1])?;
    }
    Some(bytes)
}

impl Realm {
    fn parse(words: &[&str]) -> Result<Self, RegistryProblem> {
        let ["realm", name, id, epoch, suite] = *words else {
            return Err(if words[0] == "realm" { RegistryProblem::Shape } else { RegistryProblem::Realm });
        };
        let (id, epoch, suite) = (field(id, "id=")?, field(epoch, "epoch=")?, field(suite, "suite=")?);
        let suite = suite.parse().ok().and_then(Suite::from_code).ok_or_else(|| number("suite", suite))?;
        Ok(Self { name: name.parse()?, id: id.parse()?, epoch: parse_epoch(epoch)?, suite, readers: BTreeMap::new() })
    }

    fn accept_reader(&mut self, epoch: &str, recipient: &str) -> Result<(), RegistryProblem> {
        let epoch = parse_epoch(epoch)?;
        let is_recipient = recipient
            .strip_prefix("age1")
            .is_some_and(|data| data.len() == 58 && data.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()));
        if !is_recipient {
            return Err(RegistryProblem::Recipient);
        }
        match self.readers.insert(epoch, recipient.to_owned()) {
            None => Ok(()),
            Some(_) => Err(RegistryProblem::Duplicate(format!("reader {epoch}"))),
        }
    }
}

fn field<'a>(word: &'a str, key: &str) -> Result<&'a str, RegistryProblem> {
    word.strip_prefix(key).ok_or(RegistryProblem::Shape)
}

fn number(what: &'static str, value: &str) -> RegistryProblem {
    RegistryProblem::Number { what, value: value.to_owned() }
}

fn parse_epoch(text: &str) -> Result<u32, RegistryProblem> {
    text.parse().ok().filter(|&epoch| epoch > 0).ok_or_else(|| number("epoch", text))
}

impl FromStr for Registry {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        let mut registry: Option<Self> = None;
        for (index, text) in text.lines().enumerate() {
            let words: Vec<&str> = text.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
            if words.is_empty() {
                continue;
            }
            let accepted = match &mut registry {
                Some(registry) => registry.accept(&words),
                None => Realm::parse(&words).map(|realm| registry = Some(Self::new(realm))),
            };
            accepted.map_err(|problem| RegistryError { line: index + 1, text: text.to_owned(), problem })?;
        }
        let missing =
            |problem| RegistryError { line: text.lines().count() + 1, text: "(end of file)".to_owned(), problem };
        let registry = registry.ok_or_else(|| missing(RegistryProblem::Realm))?;
        let epoch = registry.realm.epoch;
        if registry.realm.readers.contains_key(&epoch) {
            Ok(registry)
        } else {
            Err(missing(RegistryProblem::NoReader(epoch)))
        }
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Realm { name, id, epoch, suite, readers } = &self.realm;
        f.write_str(PREAMBLE)?;
        writeln!(f, "realm {name} id={id} epoch={epoch} suite={}", *suite as u8)?;
        readers.iter().try_for_each(|(epoch, recipient)| writeln!(f, "reader {epoch} {recipient}"))?;
        for (name, keys) in &self.machines {
            keys.current.iter().try_for_each(|key| writeln!(f, "machine {name} ed25519 {key}"))?;
            keys.retired.iter().try_for_each(|key| writeln!(f, "retired {name} ed25519 {key}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const READER: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

    fn realm(epoch: u32) -> Realm {
        Realm {
            name: "montagu".parse().unwrap(),
            id: RealmId::from_bytes([7; 16]),
            epoch,
            suite: Suite::ChaCha20Poly1305,
            readers: (1..=epoch).map(|epoch| (epoch, READER.to_owned())).collect(),
        }
    }

    /// The file as it is written, for ever.
    #[test]
    fn golden_file() {
        let mut registry = Registry::new(realm(2));
        registry.enrol(name("annex2"), key(1)).unwrap();
        registry.enrol(name("annex2"), key(2)).unwrap();
        registry.enrol(name("uat"), key(3)).unwrap();
        assert_eq!(registry.to_string(), include_str!("registry.golden"));
    }

    fn name(text: &str) -> MachineName {
        text.parse().unwrap()
    }

    const fn key(byte: u8) -> MachineKey {
        MachineKey::from_bytes([byte; 32])
    }

    #[test]
    fn a_signature_covers_everything_before_it_and_stands_last() {
        let admin = ed25519_dalek::SigningKey::from_bytes(&[5; 32]);
        let public = MachineKey::from_bytes(admin.verifying_key().to_bytes());
        let sign = |text: &str| signed(text, |message| ed25519_dalek::Signer::sign(&admin, message).to_bytes());
        let mut registry = Registry::new(realm(1));
        registry.enrol(name("annex2"), key(1)).unwrap();
        let text = sign(&registry.to_string());
        assert!(is_signed(&text, public));
        assert_eq!(text.parse::<Registry>().unwrap(), registry);

        assert!(!is_signed(&text, key(1)), "by another key");
        assert!(!is_signed(&registry.to_string(), public), "without a signature");
        assert!(!is_signed(&text.replace("annex2", "annex3"), public), "with a line changed");
        assert!(!is_signed(&text.replace("# The public keys", "# Public keys"), public), "with a comment changed");
        assert!(!is_signed(&format!("{text}machine b ed25519 {}\n", key(2)), public), "with a line after it");
        assert!(!is_signed(text.trim_end(), public), "cut short");
        for not in ["", "\n", "signature \n", "signature", &format!("signature {}\n", "zz".repeat(64))] {
            assert!(!is_signed(not, public), "{not:?}");
        }
        // Signing anew replaces the old signature, as `Display` does not write it.
        let again = sign(&text.parse::<Registry>().unwrap().to_string());
        assert_eq!(again, text);
    }

    #[test]
    fn a_rotated_key_still_verifies_but_no_longer_connects() {
        let mut registry = Registry::new(realm(1));
        registry.enrol(name("annex2"), key(1)).unwrap();
        registry.enrol(name("annex2"), key(2)).unwrap();
        assert_eq!(registry.machine_of(&key(1)), None);
        assert_eq!(registry.machine_of(&key(2)), Some(&name("annex2")));
        assert_eq!(registry.key_of(&name("annex2")), Some(key(2)));
        assert_eq!(registry.keys_of(&name("annex2")).collect::<Vec<_>>(), [key(2), key(1)]);
        assert_eq!(registry.enrol(name("uat"), key(1)), Err(RegistryProblem::SharedKey(name("annex2"))));
    }

    #[test]
    fn a_machine_of_retired_keys_only_is_locked_out() {
        let text = format!(
            "realm r id={0} epoch=1 suite=2\nreader 1 {READER}\nretired gone ed25519 {0}{0}\n",
            "07".repeat(16)
        );
        let registry: Registry = text.parse().unwrap();
        assert_eq!(registry.key_of(&name("gone")), None);
        assert_eq!(registry.machine_of(&key(7)), None);
        assert_eq!(registry.keys_of(&name("gone")).collect::<Vec<_>>(), [key(7)]);
        assert_eq!(registry.machines().count(), 0);
    }

    #[test]
    fn errors_name_the_line() {
        let good = Registry::new(realm(1)).to_string();
        let hex = "07".repeat(32);
        for (extra, problem) in [
            ("realm again id=00 epoch=1 suite=1".to_owned(), RegistryProblem::Realm),
            ("machine annex2".to_owned(), RegistryProblem::Shape),
            ("machines annex2 ed25519 00".to_owned(), RegistryProblem::Shape),
            ("machine annex2 ed25519 00".to_owned(), NotHex { expected: 64 }.into()),
            (format!("machine an/nex ed25519 {hex}"), BadName { what: "machine", name: "an/nex".to_owned() }.into()),
            ("reader 0 age1".to_owned(), number("epoch", "0")),
            ("reader 2 age1qqq".to_owned(), RegistryProblem::Recipient),
            (format!("reader 1 {READER}"), RegistryProblem::Duplicate("reader 1".to_owned())),
        ] {
            let error = format!("{good}{extra} # comment\n").parse::<Registry>().unwrap_err();
            assert_eq!((error.line, error.problem), (6, problem), "{extra}");
        }
        let twice =
            format!("{good}machine a ed25519 {hex}\nmachine b ed25519 {hex}\n").parse::<Registry>().unwrap_err();
        assert_eq!(
            twice.to_string(),
            format!(
                "vsync.pub, line 7: the key belongs to a already; each machine needs its own\n  machine b ed25519 {hex}"
            )
        );
        let renamed = format!("{good}machine a ed25519 {hex}\nmachine a ed25519 {}\n", "08".repeat(32));
        let problem = renamed.parse::<Registry>().unwrap_err().problem;
        assert_eq!(problem, RegistryProblem::Duplicate("machine a".to_owned()));
    }

    #[test]
    fn the_realm_line_is_needed_first_and_whole() {
        let id = "07".repeat(16);
        for (text, line, problem) in [
            (String::new(), 1, RegistryProblem::Realm),
            (format!("machine a ed25519 {id}{id}"), 1, RegistryProblem::Realm),
            (format!("realm r id={id} epoch=1"), 1, RegistryProblem::Shape),
            (format!("# hello\nrealm r id={id} epoch=1 suite=9"), 2, number("suite", "9")),
            (format!("realm r id={id} epoch=0 suite=1"), 1, number("epoch", "0")),
            (format!("realm r id={id} epoch=2 suite=1\nreader 1 {READER}"), 3, RegistryProblem::NoReader(2)),
        ] {
            let error = text.parse::<Registry>().unwrap_err();
            assert_eq!((error.line, error.problem), (line, problem), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            epoch in 1u32..4,
            owners in prop::collection::vec(("[a-z0-9][a-zA-Z0-9_.-]{0,6}", any::<bool>()), 0..20),
        ) {
            let mut registry = Registry::new(realm(epoch));
            for (index, (owner, current)) in owners.iter().enumerate() {
                let key = key(u8::try_from(index).unwrap());
                if *current {
                    registry.enrol(name(owner), key).unwrap();
                } else {
                    registry.retire(name(owner), key).unwrap();
                }
            }
            prop_assert_eq!(registry.to_string().parse::<Registry>().unwrap(), registry);
        }

        #[test]
        fn no_text_panics(text in "(realm|reader|machine|retired|#| |\n|=|[a-z0-9]){0,40}") {
            let _ = text.parse::<Registry>();
        }
    }
}
