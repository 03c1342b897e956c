//! `vsync.toml`: what the realm's machines are, and what they back up.
//!
//! The same file on every machine, so it says nothing about the machine that reads it; that
//! is [`find::identity`]'s part. Text becomes [`Config`] in two steps: [`raw`] is its shape,
//! [`check`] its sense. All that is wrong with it is reported at once.

mod check;
pub(crate) mod find;
mod hooks;
mod notify;
pub(crate) mod privateer;
mod problem;
mod raw;
mod role;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vsync_protocol::id::{MachineName, RealmName, VolumeName};

pub(crate) use self::check::parse_duration;
pub use self::hooks::{Command, HookFailure, RunHooks};
pub use self::problem::{ConfigError, Problem};
pub use self::role::Role;
use crate::schedule::{Calendar, Jitter};
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
    /// Whom servers tell when something is wrong.
    pub notify: Vec<Notify>,
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
    /// When it backs up what to which server.
    pub schedule: Vec<Schedule>,
    /// Name of the container in which its schedule runs, where it is not the usual one.
    pub schedule_container: Option<String>,
    /// Commands around a run of `vsync backup` on it.
    pub run: RunHooks,
    /// Bytes that its snapshots may take on a server; `None`: as many as there are.
    pub quota: Option<u64>,
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
    /// Name of the container in which it runs, where it is not the usual one.
    pub container: Option<String>,
}

/// A way of telling people that something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// The servers that use it; all of them if none is named.
    pub servers: Vec<MachineName>,
    /// How they are told.
    pub way: Way,
}

impl Notify {
    /// Whether `server` uses it.
    #[must_use]
    pub fn is_for(&self, server: &MachineName) -> bool {
        self.servers.is_empty() || self.servers.contains(server)
    }
}

/// How news leave a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Posted as JSON to a URL.
    Webhook(Written),
    /// A URL that is asked for while all is well.
    Ping(Written),
    /// By e-mail.
    Mail {
        /// To whom.
        to: Vec<String>,
        /// From whom.
        from: String,
        /// By way of which server.
        smtp: Smtp,
        /// The variable with the password for it.
        password: Option<String>,
    },
}

/// Something that may be secret, and then stands elsewhere than in the file, which is in git.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// In the file itself.
    Here(String),
    /// In an environment variable of this name, or where its `_FILE` or `_COMMAND` say.
    Variable(String),
}

impl Written {
    fn read(text: &str) -> Self {
        text.strip_prefix('$').map_or_else(
            || Self::Here(text.to_owned()),
            |name| Self::Variable(name.trim_matches(['{', '}']).to_owned()),
        )
    }
}

/// A server that takes mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smtp {
    /// The mail server, as its certificate names it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is encrypted.
    pub tls: SmtpTls,
    /// As whom to log in; none: not at all.
    pub user: Option<String>,
    /// A certificate of an authority to believe, in PEM format.
    pub ca: Option<PathBuf>,
}

/// How a connection to a mail server is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmtpTls {
    /// Not at all.
    None,
    /// After STARTTLS.
    Upgraded,
    /// From its beginning.
    Whole,
}

/// A backup that is made regularly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// What is backed up.
    pub volume: VolumeName,
    /// To where.
    pub server: MachineName,
    /// When, and by whose clocks.
    pub at: Calendar,
    /// How long after that.
    pub jitter: Jitter,
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
    /// Command to run in those containers before they are paused, stopped or read.
    pub exec_pre: Option<Command>,
    /// Command to run in those containers afterwards.
    pub exec_post: Option<Command>,
    /// The user who runs them; the container's own if not given.
    pub exec_user: Option<String>,
    /// How long a command may take, in a container or on the machine.
    pub hook_timeout: Option<Duration>,
    /// What its failure means.
    pub hook_failure: HookFailure,
    /// How long a container may take to stop before it is killed; its own setting if not given.
    pub stop_timeout: Option<Duration>,
    /// Commands on the machine around a backup of this volume.
    pub run: RunHooks,
    /// How its files are cut.
    pub profile: Profile,
    /// Bytes that its snapshots may take on a server; `None`: as many as there are.
    pub quota: Option<u64>,
    /// What is kept of it.
    pub retention: Option<Retention>,
    /// How old its last snapshot may be before somebody must look; `None`: as its schedule suggests.
    pub max_age: Option<Duration>,
}

/// What is done with the containers that use a volume while it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
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

impl Quiesce {
    /// The word for it in the configuration.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Pause => "pause",
            Self::Stop => "stop",
            Self::Hooks => "hooks",
        }
    }
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
    Vault(VaultConfig),
}

/// How to reach the keys in a Vault server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultConfig {
    /// Its URL, without a slash at the end.
    pub url: String,
    /// Where the key/value engine is mounted.
    pub mount: String,
    /// The path below the mount under which the realm's keys are; no slash at either end.
    pub prefix: String,
    /// The engine's version; `None`: the server is asked.
    pub kv: Option<KvVersion>,
    /// The namespace, where the server has such.
    pub namespace: Option<String>,
    /// A file with the certificates to trust instead of the system's, absolute.
    pub ca: Option<PathBuf>,
    /// The environment variable that holds the token.
    pub token: Option<String>,
    /// Who to log in as by AppRole.
    pub role_id: Option<String>,
    /// The file with that role's secret, absolute.
    pub secret_id_file: Option<PathBuf>,
    /// Where the AppRole method is mounted.
    pub approle_mount: String,
}

/// The two kinds of key/value engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvVersion {
    /// One value for each path.
    V1,
    /// Values with versions, which can be written on condition.
    V2,
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

impl Machine {
    /// Name of the container in which `vsync schedule start` runs its schedule.
    #[must_use]
    pub fn schedule_container(&self) -> String {
        self.schedule_container.clone().unwrap_or_else(|| format!("vsync-schedule-{}", self.name))
    }
}

impl Server {
    /// Name of the container in which `vsync server start` runs it.
    #[must_use]
    pub fn container(&self) -> String {
        self.container.clone().unwrap_or_else(|| format!("vsync-server-{}", self.machine.name))
    }
}

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
