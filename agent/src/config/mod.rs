//! `vsync.toml`: what the realm's machines are, and what they back up.
//!
//! The same file on every machine, so it says nothing about the machine that reads it; that
//! is [`find::identity`]'s part. Text becomes [`Config`] in two steps: [`raw`] is its shape,
//! [`check`] its sense. All that is wrong with it is reported at once.

mod check;
pub mod find;
mod problem;
mod raw;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use vsync_protocol::id::{MachineName, RealmName, VolumeName};

pub use self::problem::{ConfigError, Problem};
use crate::keys::Role;
use crate::suggest;

/// The configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that it was read from.
    pub path: PathBuf,
    /// The realm's name.
    pub realm: RealmName,
    /// Machines that store backups, in the file's order.
    pub servers: Vec<Server>,
    /// Machines that only back up or restore, in the file's order.
    pub clients: Vec<Machine>,
    /// What is said of single volumes. A volume need not be mentioned here.
    pub volumes: Vec<Volume>,
    /// What is kept where a volume has no retention of its own; `None`: everything.
    pub retention: Option<Retention>,
    /// Where private keys are.
    pub keys: KeysConfig,
}

/// What servers and clients have in common.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name.
    pub name: MachineName,
    /// Which secrets it is given.
    pub role: Role,
    /// The volumes that it backs up.
    pub backup: Vec<VolumeName>,
    /// When.
    pub schedule: Vec<Schedule>,
}

/// A machine that stores backups.
#[derive(Clone, Debug)]
pub struct Server {
    /// The server as a machine with volumes of its own.
    pub machine: Machine,
    /// Where to reach it over UDP; `None`: it is embedded in the agent.
    pub address: Option<Address>,
    /// Its data directory, absolute.
    pub data: PathBuf,
    /// Where it shows over HTTP how it is; `None`: nowhere.
    pub status: Option<SocketAddr>,
}

/// A backup that is made regularly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// What.
    pub volume: VolumeName,
    /// To where.
    pub server: MachineName,
    /// `02:00`, `@daily`, or five cron fields. Only its shape is checked here.
    pub at: String,
}

/// What is said of one volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// The directory that it stands for, absolute; `None`: a Docker volume.
    pub path: Option<PathBuf>,
    /// What is done with the containers that use it.
    pub quiesce: Quiesce,
    /// Command to run in those containers before; with [`Quiesce::Hooks`].
    pub exec_pre: Option<String>,
    /// Command to run in those containers after; with [`Quiesce::Hooks`].
    pub exec_post: Option<String>,
    /// How its files are cut.
    pub profile: Profile,
    /// What is kept of it.
    pub retention: Option<Retention>,
    /// How old its last snapshot may be before somebody must look; `None`: as its schedule suggests.
    pub max_age: Option<Duration>,
}

/// What is done with the containers that use a volume while it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quiesce {
    /// Nothing: for data that is only ever appended or renamed into place.
    #[default]
    None,
    /// They are paused: for data that must not change while it is read.
    Pause,
    /// They are stopped: for software that is only consistent when shut down.
    Stop,
    /// They run a command before and after.
    Hooks,
}

/// How a volume's files are cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Each file by what it looks like.
    #[default]
    Auto,
    /// All files by content.
    General,
    /// All files as databases with pages.
    Database,
}

/// How many snapshots of a volume are kept. A snapshot is kept if any rule keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The last so many.
    pub last: u32,
    /// The last one of each of so many hours that have any.
    pub hourly: u32,
    /// The last one of each of so many days.
    pub daily: u32,
    /// The last one of each of so many weeks.
    pub weekly: u32,
    /// The last one of each of so many months.
    pub monthly: u32,
    /// The last one of each of so many years.
    pub yearly: u32,
    /// All that are younger.
    pub within: Option<Duration>,
    /// Nothing younger is forgotten, not even on an administrator's order; `None`: seven days.
    pub floor: Option<Duration>,
}

/// Where private keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysConfig {
    /// In a directory on this machine.
    Directory(PathBuf),
    /// In a Vault server.
    Vault {
        /// Its URL.
        url: String,
        /// The path below which the realm's keys are.
        prefix: String,
    },
}

/// `host:port`; an IPv6 host in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A host name, an IPv4 address, or an IPv6 address without its brackets.
    pub host: String,
    /// The UDP port, from 1.
    pub port: u16,
}

/// The text is not `host:port`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("address {0:?} is not HOST:PORT, as in `backup.example.org:10022` or `[2001:db8::1]:10022`")]
pub struct BadAddress(pub String);

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let parse = || {
            let (host, port) = text.rsplit_once(':')?;
            let is_name =
                |host: &str| !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
            let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
                Some(inner) => inner.parse::<std::net::Ipv6Addr>().ok().map(|_| inner)?,
                None => Some(host).filter(|host| is_name(host))?,
            };
            // `u16::from_str` would accept a sign.
            let port = port.parse().ok().filter(|&number: &u16| number > 0 && number.to_string() == port)?;
            Some(Self { host: host.to_owned(), port })
        };
        parse().ok_or_else(|| BadAddress(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Config {
    /// Reads and checks the configuration at `path`.
    ///
    /// # Errors
    /// When the file cannot be read; or with everything that is wrong in it, line by line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks the text of a configuration that lies, or will lie, at `path`.
    ///
    /// # Errors
    /// With everything that is wrong in it, line by line.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let invalid = |problems| ConfigError::Invalid { path: path.to_owned(), problems };
        let raw = toml::from_str(text).map_err(|error| invalid(vec![Problem::from_toml(text, &error)]))?;
        check::check(path, text, raw).map_err(invalid)
    }

    /// Where `vsync.pub` is.
    #[must_use]
    pub fn registry_path(&self) -> PathBuf {
        self.path.with_file_name("vsync.pub")
    }

    /// All machines, servers first.
    pub fn machines(&self) -> impl Iterator<Item = &Machine> {
        self.servers.iter().map(|server| &server.machine).chain(&self.clients)
    }

    /// The machine called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn machine(&self, name: &MachineName) -> Result<&Machine, ConfigError> {
        let found = self.machines().find(|machine| machine.name == *name);
        found
            .ok_or_else(|| self.unknown("machine", name.as_str(), self.machines().map(|machine| machine.name.as_str())))
    }

    /// The server called `name`; or the only one, if `name` is `None`.
    ///
    /// # Errors
    /// When there is none, or when there are several and none was named.
    pub fn server(&self, name: Option<&MachineName>) -> Result<&Server, ConfigError> {
        let names = || self.servers.iter().map(|server| server.machine.name.as_str());
        match (name, self.servers.as_slice()) {
            (Some(name), servers) => servers
                .iter()
                .find(|server| server.machine.name == *name)
                .ok_or_else(|| self.unknown("server", name.as_str(), names())),
            (None, [server]) => Ok(server),
            (None, _) => Err(ConfigError::WhichServer {
                path: self.path.clone(),
                servers: names().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// What is said of the volume `name`, if anything.
    #[must_use]
    pub fn volume(&self, name: &VolumeName) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == *name)
    }

    /// What is kept of the volume `name`; `None`: everything.
    #[must_use]
    pub fn retention(&self, name: &VolumeName) -> Option<&Retention> {
        self.volume(name).and_then(|volume| volume.retention.as_ref()).or(self.retention.as_ref())
    }

    /// How old the last snapshot of the volume `name` may be, if that is said.
    #[must_use]
    pub fn max_age(&self, name: &VolumeName) -> Option<Duration> {
        self.volume(name).and_then(|volume| volume.max_age)
    }

    /// Every volume that any machine backs up, each once, by name.
    #[must_use]
    pub fn backed_up(&self) -> Vec<&VolumeName> {
        let mut volumes: Vec<_> = self.machines().flat_map(|machine| &machine.backup).collect();
        volumes.sort();
        volumes.dedup();
        volumes
    }

    fn unknown<'a>(&self, what: &'static str, name: &str, known: impl IntoIterator<Item = &'a str>) -> ConfigError {
        let suggestion = suggest::suffix(name, known);
        ConfigError::Unknown { what, name: name.to_owned(), path: self.path.clone(), suggestion }
    }
}
