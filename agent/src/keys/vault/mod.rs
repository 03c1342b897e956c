//! Keys in a Vault server, in a key/value engine of either version.
//!
//! ```text
//! PREFIX/realm            {"key": the text of realm.key}
//! PREFIX/machines/NAME    {"key": the text of NAME.key}
//! ```
//!
//! Version 2 writes on condition (check-and-set), so that no key is ever replaced by
//! accident, not even by two administrators at once. Version 1 knows no condition: there the key
//! is looked for first and read back afterwards.

mod error;
mod http;
mod login;

use std::sync::OnceLock;

use serde_json::{Value, json};
use zeroize::Zeroizing;

pub(crate) use self::error::VaultError;
use self::http::{Answer, Http};
use self::login::Token;
pub(crate) use self::login::{Origin, SECRET_ID, TOKEN, origin};
use super::file::Existing;
use crate::config::{KvVersion, VaultConfig};

/// The keys of a realm in a Vault server. Nothing is asked before a key is.
#[derive(Debug)]
pub struct VaultStore {
    config: VaultConfig,
    connection: OnceLock<Connection>,
}

#[derive(Debug)]
struct Connection {
    http: Http,
    token: Token,
    version: KvVersion,
}

/// A key that was read: its text, and the version that it has.
struct Held {
    text: Zeroizing<String>,
    version: u64,
}

impl VaultStore {
    /// The store that `config` describes.
    #[must_use]
    pub const fn new(config: VaultConfig) -> Self {
        Self { config, connection: OnceLock::new() }
    }

    /// How a key is named in messages, and in `vault kv get`.
    #[must_use]
    pub fn place(&self, key: &str) -> String {
        format!("{}/{}/{key}", self.config.mount, self.config.prefix)
    }

    /// The text of a key.
    ///
    /// # Errors
    /// When there is none, or the server refuses or stays away.
    pub fn read(&self, key: &str) -> Result<Zeroizing<String>, VaultError> {
        let held = self.connection()?.read(&self.config, key)?;
        held.map(|held| held.text).ok_or_else(|| self.missing(key))
    }

    /// Stores the text of a key.
    ///
    /// # Errors
    /// When there is one already and `existing` refuses; when the server refuses or stays away.
    pub fn write(&self, key: &str, text: &str, existing: Existing) -> Result<(), VaultError> {
        let connection = self.connection()?;
        let held = connection.read(&self.config, key)?;
        if held.is_some() && existing == Existing::Refuse {
            return Err(self.exists(key));
        }
        match connection.version {
            KvVersion::V1 => self.write_v1(connection, key, text),
            KvVersion::V2 => self.write_v2(connection, key, text, held.map_or(0, |held| held.version)),
        }
    }

    fn write_v1(&self, connection: &Connection, key: &str, text: &str) -> Result<(), VaultError> {
        let path = connection.path(&self.config, key);
        let answer = connection.post(&path, &json!({"key": text}))?;
        connection.accepted(&answer, "write", &self.place(key))?;
        // The last of two writers wins; the other one has to hear of it.
        match connection.read(&self.config, key)? {
            Some(held) if *held.text == text => Ok(()),
            _ => Err(VaultError::Raced { url: connection.http.url(), path: self.place(key) }),
        }
    }

    fn write_v2(&self, connection: &Connection, key: &str, text: &str, version: u64) -> Result<(), VaultError> {
        let path = connection.path(&self.config, key);
        let answer = connection.post(&path, &json!({"options": {"cas": version}, "data": {"key": text}}))?;
        if answer.status == 400 && answer.reason().contains("check-and-set") {
            // With version 0, a deleted key whose versions are still there counts as one.
            return Err(match version {
                0 => self.exists(key),
                _ => VaultError::Raced { url: connection.http.url(), path: self.place(key) },
            });
        }
        connection.accepted(&answer, "write", &self.place(key))
    }

    fn missing(&self, key: &str) -> VaultError {
        VaultError::Missing { url: self.config.url.clone(), path: self.place(key) }
    }

    fn exists(&self, key: &str) -> VaultError {
        VaultError::Exists { url: self.config.url.clone(), path: self.place(key) }
    }

    /// Logs in, once, and finds out what kind of engine there is.
    fn connection(&self) -> Result<&Connection, VaultError> {
        if let Some(connection) = self.connection.get() {
            return Ok(connection);
        }
        let http = Http::new(&self.config)?;
        let token = login::token(&self.config, &http)?;
        let version = match self.config.kv {
            Some(version) => version,
            None => detect(&http, &token, &self.config)?,
        };
        Ok(self.connection.get_or_init(|| Connection { http, token, version }))
    }
}

/// Asks which version the engine has. Every token may ask that of a mount in which it may
/// read anything.
fn detect(http: &Http, token: &Token, config: &VaultConfig) -> Result<KvVersion, VaultError> {
    let (url, mount) = (http.url(), config.mount.clone());
    let path = format!("sys/internal/ui/mounts/{mount}/{}", config.prefix);
    let answer = http.get(&path, Some(&token.secret))?;
    let data = &answer.body["data"];
    match (answer.status, data["type"].as_str(), data["options"]["version"].as_str()) {
        (200, Some("kv" | "generic"), Some("2")) => Ok(KvVersion::V2),
        (200, Some("kv" | "generic"), _) => Ok(KvVersion::V1),
        (200, ..) => Err(VaultError::NoMount { url, mount }),
        (403, ..) => {
            check_token(http, token)?;
            // A valid token hears this where nothing is mounted, and where it may see nothing.
            Err(VaultError::NoMount { url, mount })
        }
        (404, ..) => Err(VaultError::UnknownVersion { url, mount }),
        (status, ..) => Err(VaultError::Refused { url, status, action: "look at", path, reason: answer.reason() }),
    }
}

/// Whether the token is one at all: a refusal alone does not tell that from a lack of rights.
fn check_token(http: &Http, token: &Token) -> Result<(), VaultError> {
    let answer = http.get("auth/token/lookup-self", Some(&token.secret))?;
    if answer.status == 403 {
        return Err(VaultError::WrongToken { url: http.url(), origin: token.origin.clone() });
    }
    Ok(())
}

impl Connection {
    fn path(&self, config: &VaultConfig, key: &str) -> String {
        let VaultConfig { mount, prefix, .. } = config;
        match self.version {
            KvVersion::V1 => format!("{mount}/{prefix}/{key}"),
            KvVersion::V2 => format!("{mount}/data/{prefix}/{key}"),
        }
    }

    fn post(&self, path: &str, body: &Value) -> Result<Answer, VaultError> {
        self.http.post(path, Some(&self.token.secret), body)
    }

    /// A key, if there is one.
    fn read(&self, config: &VaultConfig, key: &str) -> Result<Option<Held>, VaultError> {
        let answer = self.http.get(&self.path(config, key), Some(&self.token.secret))?;
        let place = format!("{}/{}/{key}", config.mount, config.prefix);
        if answer.status == 404 {
            let unrouted = answer.reason().contains("no handler for route");
            let no_mount = || VaultError::NoMount { url: self.http.url(), mount: config.mount.clone() };
            return if unrouted { Err(no_mount()) } else { Ok(None) };
        }
        self.accepted(&answer, "read", &place)?;
        let data = match self.version {
            KvVersion::V1 => &answer.body["data"],
            KvVersion::V2 => &answer.body["data"]["data"],
        };
        let version = answer.body["data"]["metadata"]["version"].as_u64().unwrap_or(0);
        let text = data["key"].as_str().map(|text| Zeroizing::new(text.to_owned()));
        let foreign = || VaultError::Foreign { url: self.http.url(), path: place.clone() };
        Ok(Some(Held { text: text.ok_or_else(foreign)?, version }))
    }

    fn accepted(&self, answer: &Answer, action: &'static str, path: &str) -> Result<(), VaultError> {
        let (url, path) = (self.http.url(), path.to_owned());
        match answer.status {
            200 | 204 => Ok(()),
            403 => {
                check_token(&self.http, &self.token)?;
                Err(VaultError::Denied { url, action, path })
            }
            status => Err(VaultError::Refused { url, status, action, path, reason: answer.reason() }),
        }
    }
}
