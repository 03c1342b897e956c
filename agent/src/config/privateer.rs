//! `privateer.json`, and the `vsync.toml` that says the same.
//!
//! What privateer's file says and ours has no words for becomes a warning that names the place in
//! the JSON. A file that privateer itself would refuse is refused here too.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};

use serde_json::{Map, Value};
use thiserror::Error;
use vsync_protocol::id::{MachineName, RealmName, VolumeName};

/// The port on which privateer's documents put their servers.
const USUAL_PORT: u64 = 10022;

/// A configuration that says what a `privateer.json` says.
#[derive(Debug)]
pub(crate) struct Converted {
    /// The text of `vsync.toml`.
    pub toml: String,
    /// What was lost or guessed, in the order of the file.
    pub warnings: Vec<Warning>,
}

/// Something that has no counterpart, or that a person must look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Warning {
    /// Where in the JSON, as in `servers[0].container`.
    pub at: String,
    /// What to know.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.message)
    }
}

/// The file cannot be converted.
#[derive(Debug, Error)]
pub(crate) enum PrivateerError {
    /// It is not JSON.
    #[error("it is not JSON")]
    Json(#[from] serde_json::Error),
    /// It is of privateer before version 2, which worked with other ideas.
    #[error("it is of the first privateer, with targets and hosts: only servers, clients and volumes can be converted")]
    FirstVersion,
    /// Something is missing or of the wrong kind.
    #[error("{at}: {problem}")]
    At {
        /// Where in the JSON.
        at: String,
        /// What is wrong there.
        problem: String,
    },
}

/// Converts the text of a `privateer.json` into a configuration of realm `realm`.
///
/// # Errors
/// When the text is none, or names something that it does not define.
pub(crate) fn convert(text: &str, realm: &RealmName) -> Result<Converted, PrivateerError> {
    let root: Value = serde_json::from_str(text.trim())?;
    if root.get("targets").is_some() || root.get("hosts").is_some() {
        return Err(PrivateerError::FirstVersion);
    }
    let root = Table::of(&root, String::new())?;
    let mut out = Converter { toml: String::new(), warnings: Vec::new(), volumes: Volumes::default() };
    out.head(&root, realm)?;
    for server in root.tables("servers")? {
        out.server(&server)?;
    }
    for client in root.tables("clients")? {
        out.client(&client, &root)?;
    }
    out.unused();
    out.vault(&root)?;
    out.left(&root, &["servers", "clients", "volumes", "vault", "tag", "vault_server", "vault_prefix", "prefix"]);
    if root.value("tag").is_some() {
        out.warn("tag", "no counterpart: vsync is one binary, its image is named where it is started");
    }
    Ok(Converted { toml: out.toml, warnings: out.warnings })
}

/// An object of the JSON, and where it is.
struct Table<'a> {
    at: String,
    map: &'a Map<String, Value>,
}

impl<'a> Table<'a> {
    fn of(value: &'a Value, at: String) -> Result<Self, PrivateerError> {
        match value.as_object() {
            Some(map) => Ok(Self { at, map }),
            None => Err(PrivateerError::At {
                at: if at.is_empty() { "the file".to_owned() } else { at },
                problem: "expected an object, {…}".to_owned(),
            }),
        }
    }

    fn at(&self, key: &str) -> String {
        if self.at.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at) }
    }

    fn wrong(&self, key: &str, problem: impl Into<String>) -> PrivateerError {
        PrivateerError::At { at: self.at(key), problem: problem.into() }
    }

    /// The value of `key`; null is as good as none.
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, PrivateerError> {
        let text = |value: &'a Value| value.as_str().ok_or_else(|| self.wrong(key, "expected a text"));
        self.value(key).map(text).transpose()
    }

    fn required(&self, key: &str) -> Result<&'a str, PrivateerError> {
        self.text(key)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    fn list(&self, key: &str) -> Result<&'a [Value], PrivateerError> {
        match self.value(key) {
            None => Ok(&[]),
            Some(value) => Ok(value.as_array().ok_or_else(|| self.wrong(key, "expected a list, […]"))?),
        }
    }

    fn tables(&self, key: &str) -> Result<Vec<Self>, PrivateerError> {
        let table = |(number, value)| Self::of(value, self.at(&format!("{key}[{number}]")));
        self.list(key)?.iter().enumerate().map(table).collect()
    }

    fn flag(&self, key: &str) -> Result<bool, PrivateerError> {
        let flag = |value: &Value| value.as_bool().ok_or_else(|| self.wrong(key, "expected true or false"));
        self.value(key).map_or(Ok(false), flag)
    }

    /// A name that vsync takes, too.
    fn name<T: std::str::FromStr<Err: fmt::Display>>(&self, key: &str) -> Result<T, PrivateerError> {
        let name = self.required(key)?;
        name.parse().map_err(|error| self.wrong(key, format!("{name:?} cannot be a name in vsync: {error}")))
    }
}

#[derive(Default)]
struct Volumes {
    /// Everything in `volumes`, with its place.
    all: Vec<(VolumeName, String)>,
    /// Those that live on the servers themselves.
    local: Vec<VolumeName>,
    used: BTreeSet<VolumeName>,
}

struct Converter {
    toml: String,
    warnings: Vec<Warning>,
    volumes: Volumes,
}

impl Converter {
    fn warn(&mut self, at: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Warning { at: at.into(), message: message.into() });
    }

    fn push(&mut self, line: impl fmt::Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.toml, "{line}");
    }

    /// Warns of keys that nobody asked for.
    fn left(&mut self, table: &Table<'_>, known: &[&str]) {
        for key in table.map.keys().filter(|key| !known.contains(&key.as_str())) {
            self.warn(table.at(key), "unknown to privateer as we know it; left out");
        }
    }

    fn head(&mut self, root: &Table<'_>, realm: &RealmName) -> Result<(), PrivateerError> {
        self.push(
            "# Written by `vsync config import`. The same file for all machines: commit it together with vsync.pub.",
        );
        self.push(format_args!("\n[realm]\nname = {}", quoted(realm.as_str())));
        let mut names = BTreeSet::new();
        for machine in root.tables("servers")?.iter().chain(&root.tables("clients")?) {
            let name: MachineName = machine.name("name")?;
            if !names.insert(name.clone()) {
                return Err(machine.wrong("name", format!("there are two machines {name}")));
            }
        }
        for volume in root.tables("volumes")? {
            let name: VolumeName = volume.name("name")?;
            if self.volumes.all.iter().any(|(known, _)| *known == name) {
                self.warn(volume.at("name"), format!("{name} is listed twice"));
                continue;
            }
            if volume.flag("local")? {
                self.volumes.local.push(name.clone());
                self.volumes.used.insert(name.clone());
                if root.list("servers")?.len() > 1 {
                    self.warn(
                        volume.at("local"),
                        format!("{name} is listed under `backup` of every server: delete it where it does not live"),
                    );
                }
            }
            self.volumes.all.push((name, volume.at.clone()));
            self.left(&volume, &["name", "local"]);
        }
        Ok(())
    }

    fn server(&mut self, server: &Table<'_>) -> Result<(), PrivateerError> {
        let name: MachineName = server.name("name")?;
        let host = server.required("hostname")?;
        let port = match server.value("port") {
            None => {
                self.warn(server.at("port"), format!("is missing; {USUAL_PORT} is taken"));
                USUAL_PORT
            }
            Some(port) => port
                .as_u64()
                .filter(|port| (1..=65535).contains(port))
                .ok_or_else(|| server.wrong("port", "expected a number from 1 to 65535"))?,
        };
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        let address = format!("{host}:{port}");
        if address.parse::<super::Address>().is_err() {
            return Err(server.wrong("hostname", format!("{host:?} is not a host name")));
        }
        let data = format!("/var/lib/vsync/{name}");
        self.push(format_args!("\n[[servers]]\nname = {}", quoted(name.as_str())));
        self.push(format_args!("address = {}  # UDP; privateer's port was TCP", quoted(&address)));
        self.push(format_args!("data = {}", quoted(&data)));
        let local = self.volumes.local.clone();
        if !local.is_empty() {
            self.push(format_args!("backup = {}", list(&local)));
        }
        if let Some(volume) = server.text("data_volume")? {
            let message = format!(
                "vsync keeps backups in the directory {data}; what is in the volume {volume} becomes first snapshots with \
                 `vsync import-privateer {volume}`, run on {name}"
            );
            self.warn(server.at("data_volume"), message);
        }
        for (key, message) in [
            ("key_volume", "no counterpart: keys are read from the key store"),
            ("container", "not taken over, so that both can run; `container` of the server names it"),
        ] {
            if server.value(key).is_some() {
                self.warn(server.at(key), message);
            }
        }
        self.left(server, &["name", "hostname", "port", "key_volume", "data_volume", "container"]);
        Ok(())
    }

    fn client(&mut self, client: &Table<'_>, root: &Table<'_>) -> Result<(), PrivateerError> {
        let name: MachineName = client.name("name")?;
        let mut backup = Vec::new();
        for (number, volume) in client.list("backup")?.iter().enumerate() {
            let key = format!("backup[{number}]");
            let volume = volume.as_str().ok_or_else(|| client.wrong(&key, "expected a text"))?;
            let known = self.volumes.all.iter().find(|(known, _)| known.as_str() == volume);
            let Some((volume, _)) = known.cloned() else {
                return Err(client.wrong(&key, format!("there is no {volume:?} under volumes")));
            };
            if self.volumes.local.contains(&volume) {
                return Err(client.wrong(&key, format!("{volume} is local to the servers, so no client can have it")));
            }
            self.volumes.used.insert(volume.clone());
            backup.push(volume);
        }
        self.push(format_args!("\n[[clients]]\nname = {}", quoted(name.as_str())));
        if !backup.is_empty() {
            self.push(format_args!("backup = {}", list(&backup)));
        }
        for (number, volume) in client.list("restore")?.iter().enumerate() {
            let volume = volume.as_str().unwrap_or_default();
            self.warn(
                client.at(&format!("restore[{number}]")),
                format!("no counterpart: every machine of role \"full\" may restore {volume}"),
            );
        }
        if client.value("key_volume").is_some() {
            self.warn(client.at("key_volume"), "no counterpart: keys are read from the key store");
        }
        if let Some(schedule) = client.value("schedule") {
            self.schedule(&Table::of(schedule, client.at("schedule"))?, &backup, root)?;
        }
        self.left(client, &["name", "backup", "restore", "key_volume", "schedule"]);
        Ok(())
    }

    fn schedule(
        &mut self,
        schedule: &Table<'_>,
        backup: &[VolumeName],
        root: &Table<'_>,
    ) -> Result<(), PrivateerError> {
        for job in schedule.tables("jobs")? {
            let (volume, server, at) = (job.required("volume")?, job.required("server")?, job.required("schedule")?);
            if !root.tables("servers")?.iter().any(|known| known.text("name").is_ok_and(|name| name == Some(server))) {
                return Err(job.wrong("server", format!("there is no server {server:?}")));
            }
            if !backup.iter().any(|known| known.as_str() == volume) {
                return Err(job.wrong("volume", format!("{volume:?} is not under `backup` of this client")));
            }
            self.left(&job, &["server", "volume", "schedule"]);
            let Some(at) = when(at) else {
                self.warn(job.at("schedule"), format!("{at:?} has no counterpart; the job is left out"));
                continue;
            };
            self.push(format_args!(
                "[[clients.schedule]]\nvolume = {}\nserver = {}\nat = {}",
                quoted(volume),
                quoted(server),
                quoted(&at)
            ));
        }
        for (key, message) in [
            ("port", "no counterpart: the state of every volume is asked of the server, `vsync status`"),
            ("container", "not taken over, so that both can run; `schedule-container` of the client names it"),
        ] {
            if schedule.value(key).is_some() {
                self.warn(schedule.at(key), message);
            }
        }
        self.left(schedule, &["port", "container", "jobs"]);
        Ok(())
    }

    /// Volumes that nobody backs up.
    fn unused(&mut self) {
        let Volumes { all, used, .. } = &self.volumes;
        let unused: Vec<_> = all.iter().filter(|(name, _)| !used.contains(name)).cloned().collect();
        for (name, at) in unused {
            self.warn(at, format!("no machine backs up {name}; it is left out"));
        }
    }

    fn vault(&mut self, root: &Table<'_>) -> Result<(), PrivateerError> {
        // The oldest files name the server and the prefix beside everything else.
        let (url, prefix, token, at) = match root.value("vault") {
            Some(vault) if vault.is_object() => {
                let vault = Table::of(vault, "vault".to_owned())?;
                self.left(&vault, &["url", "prefix", "token"]);
                (vault.required("url")?, vault.required("prefix")?, vault.text("token")?, vault.at("token"))
            }
            _ if root.value("vault_server").is_some() => {
                let prefix = root.text("vault_prefix")?.map_or_else(|| root.required("prefix"), Ok)?;
                (root.required("vault_server")?, prefix, None, String::new())
            }
            _ => return Err(root.wrong("vault", "is missing")),
        };
        // privateer always meant the engine at `secret`, whether it was said or not.
        let below = prefix.trim_matches('/');
        let whole = if below == "secret" || below.starts_with("secret/") {
            below.to_owned()
        } else {
            format!("secret/{below}")
        };
        self.push(format_args!("\n[keys]\nstore = \"vault\"\nurl = {}\nprefix = {}", quoted(url), quoted(&whole)));
        match token {
            Some(token) if token.starts_with('$') => self.push(format_args!("token = {}", quoted(token))),
            Some(_) => self.warn(at, "a token does not belong into git: set VSYNC_VAULT_TOKEN instead"),
            None => {}
        }
        Ok(())
    }
}

/// The schedule in words that vsync has.
fn when(at: &str) -> Option<String> {
    let at = at.trim();
    let same = match at {
        "@midnight" => "@daily",
        "@yearly" | "@annually" => "0 0 1 1 *",
        _ => at,
    };
    crate::schedule::Calendar::parse(same, jiff::tz::TimeZone::UTC).is_ok().then(|| same.to_owned())
}

/// As a text of TOML. JSON escapes are a part of TOML's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn list(names: &[VolumeName]) -> String {
    format!("[{}]", names.iter().map(|name| quoted(name.as_str())).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, KeysConfig};

    /// The configuration in privateer's documentation.
    const DOCUMENTED: &str = include_str!("privateer/documented.json");
    /// Its example with several machines.
    const COMPLEX: &str = include_str!("privateer/complex.json");
    /// What its present users have.
    const MONTAGU: &str = include_str!("privateer/montagu.json");

    fn import(text: &str) -> (Config, Vec<String>) {
        let converted = convert(text, &"r".parse().unwrap()).unwrap();
        let config = Config::parse("vsync.toml".as_ref(), &converted.toml)
            .unwrap_or_else(|error| panic!("{error}\n{}", converted.toml));
        (config, converted.warnings.iter().map(ToString::to_string).collect())
    }

    fn at(warnings: &[String]) -> Vec<&str> {
        warnings.iter().map(|warning| warning.split_once(": ").unwrap().0).collect()
    }

    #[test]
    fn the_documented_example_says_the_same() {
        let (config, warnings) = import(DOCUMENTED);
        assert_eq!(config.servers[0].address.as_ref().unwrap().to_string(), "alice.example.com:10022");
        assert_eq!(config.machine(&"bob".parse().unwrap()).unwrap().backup, ["data".parse().unwrap()]);
        let KeysConfig::Vault(vault) = &config.keys else { panic!("no Vault") };
        assert_eq!(
            (vault.url.as_str(), vault.mount.as_str(), vault.prefix.as_str()),
            ("http://localhost:8200", "secret", "privateer")
        );
        assert_eq!(at(&warnings), ["servers[0].data_volume", "servers[0].key_volume", "servers[0].container"]);
        assert!(warnings[0].contains("vsync import-privateer privateer_data"), "{warnings:?}");
    }

    #[test]
    fn local_volumes_are_the_servers_own() {
        let (config, warnings) = import(COMPLEX);
        for name in ["alice", "carol"] {
            assert_eq!(config.machine(&name.parse().unwrap()).unwrap().backup, ["other".parse().unwrap()]);
        }
        assert_eq!(
            warnings[0],
            "volumes[1].local: other is listed under `backup` of every server: delete it where it does not live"
        );
        assert_eq!(config.servers[1].address.as_ref().unwrap().port, 10023);
    }

    #[test]
    fn schedules_come_over() {
        let (config, warnings) = import(MONTAGU);
        let production = config.machine(&"production2".parse().unwrap()).unwrap();
        assert_eq!((production.schedule.len(), production.schedule[0].at.to_string().as_str()), (1, "@daily"));
        assert_eq!(production.schedule[0].server.as_str(), "annex2");
        assert!(at(&warnings).contains(&"clients[1].schedule.port"), "{warnings:?}");
    }

    #[test]
    fn older_shapes_and_oddities_are_understood_and_named() {
        let text = r#"{"servers": [{"name": "s", "hostname": "2001:db8::1"}],
            "clients": [{"name": "c", "backup": ["v"], "restore": ["v"], "note": "x", "schedule":
                {"jobs": [{"server": "s", "volume": "v", "schedule": "@reboot"},
                          {"server": "s", "volume": "v", "schedule": "@annually"}]}}],
            "volumes": [{"name": "v"}, {"name": "idle"}],
            "vault_server": "https://vault.example.org:8200", "vault_prefix": "team/privateer", "tag": "v2"}"#;
        let (config, warnings) = import(text);
        assert_eq!(config.servers[0].address.as_ref().unwrap().to_string(), "[2001:db8::1]:10022");
        assert_eq!(config.clients[0].schedule[0].at.to_string(), "0 0 1 1 *");
        let KeysConfig::Vault(vault) = &config.keys else { panic!("no Vault") };
        assert_eq!((vault.mount.as_str(), vault.prefix.as_str()), ("secret", "team/privateer"));
        let expected = [
            "servers[0].port",
            "clients[0].restore[0]",
            "clients[0].schedule.jobs[0].schedule",
            "clients[0].note",
            "volumes[1]",
            "tag",
        ];
        assert_eq!(at(&warnings), expected, "{warnings:#?}");
        let secret = text
            .replace(r#""vault_server""#, r#""vault": {"url": "http://v", "prefix": "p/q", "token": "s.1234"}, "x""#);
        let (_, warnings) = import(&secret);
        assert!(warnings.iter().any(|warning| warning.starts_with("vault.token: ")), "{warnings:?}");
        assert!(!warnings.iter().any(|warning| warning.contains("s.1234")), "a secret is not shown");
    }

    #[test]
    fn what_privateer_would_refuse_is_refused_with_its_place() {
        let refused = |from: &str, to: &str| {
            let text = DOCUMENTED.replacen(from, to, 1);
            assert_ne!(text, DOCUMENTED, "{from}");
            convert(&text, &"r".parse().unwrap()).unwrap_err().to_string()
        };
        assert_eq!(refused("\"bob\"", "\"alice\""), "clients[0].name: there are two machines alice");
        assert_eq!(refused("[\"data\"]", "[\"dat\"]"), "clients[0].backup[0]: there is no \"dat\" under volumes");
        assert_eq!(refused("\"url\"", "\"uri\""), "vault.url: is missing");
        assert_eq!(refused("10022", "0"), "servers[0].port: expected a number from 1 to 65535");
        assert_eq!(refused("\"bob\"", "\"-x y\"").split(':').next(), Some("clients[0].name"));
        assert!(refused("{", "[").starts_with("it is not JSON"));
        assert!(refused("\"servers\"", "\"targets\"").starts_with("it is of the first privateer"));
    }
}
