//! The sense of `vsync.toml`: names, references, times. Collects everything that is wrong.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use jiff::{Span, SpanRelativeTo};
use toml::Spanned;
use vsync_protocol::id::{MachineName, RealmName, VolumeName};
use vsync_protocol::registry::RECOVERY_MACHINE;

use super::raw::{RawClient, RawConfig, RawKeys, RawRetention, RawSchedule, RawServer, RawStore, RawVolume, Text};
use super::{Config, KeysConfig, Machine, Problem, Quiesce, Retention, Schedule, Server, Volume};
use crate::keys::Role;
use crate::suggest;

pub(super) fn check(path: &Path, text: &str, raw: RawConfig) -> Result<Config, Vec<Problem>> {
    let mut check = Check { text, problems: Vec::new() };
    let RawConfig { realm, servers, clients, volumes, retention, keys } = raw;
    check.unique("machine", servers.iter().map(|server| &server.name).chain(clients.iter().map(|client| &client.name)));
    check.unique("volume", volumes.iter().map(|volume| &volume.name));
    let server_names: Vec<String> = servers.iter().map(|server| server.name.get_ref().clone()).collect();
    let realm: Option<RealmName> = check.parse(&realm.name);
    let servers: Vec<Server> = servers.into_iter().filter_map(|raw| check.server(raw, &server_names)).collect();
    let clients: Vec<Machine> = clients.into_iter().filter_map(|raw| check.client(raw, &server_names)).collect();
    let volumes = volumes.into_iter().filter_map(|raw| check.volume(raw)).collect();
    let retention = retention.and_then(|raw| check.retention(raw));
    let keys = check.keys(keys, path);
    match (realm, keys) {
        (Some(realm), Some(keys)) if check.problems.is_empty() => {
            Ok(Config { path: path.to_owned(), realm, servers, clients, volumes, retention, keys })
        }
        _ => {
            check.problems.sort_by_key(|problem| (problem.line, problem.column));
            Err(check.problems)
        }
    }
}

struct Check<'a> {
    text: &'a str,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn problem(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.problems.push(Problem::at(self.text, span, message.into()));
    }

    fn parse<T: FromStr<Err: ToString>>(&mut self, text: &Text) -> Option<T> {
        text.get_ref().parse().map_err(|error: T::Err| self.problem(&text.span(), error.to_string())).ok()
    }

    fn unique<'b>(&mut self, what: &str, names: impl Iterator<Item = &'b Text>) {
        let mut seen = HashMap::new();
        for name in names {
            if let Some(first) = seen.insert(name.get_ref(), name.span()) {
                let line = Problem::at(self.text, &first, String::new()).line;
                self.problem(
                    &name.span(),
                    format!("{what} `{}` is defined twice; first on line {line}", name.get_ref()),
                );
            }
        }
    }

    fn server(&mut self, raw: RawServer, servers: &[String]) -> Option<Server> {
        // A server that backs up volumes of its own needs to write, and no more.
        let usual = if raw.backup.is_empty() { Role::Server } else { Role::Writer };
        let role = raw.role.as_ref().map_or(usual, |role| *role.get_ref());
        if let Some(given) = raw.role.filter(|_| role == Role::Server && usual != Role::Server) {
            self.problem(&given.span(), "role `server` cannot back up volumes; remove it, or the `backup` list");
        }
        let address = raw.address.map(|address| self.parse(&address));
        let data = self.absolute("data", &raw.data);
        let machine = self.machine(&raw.name, role, &raw.backup, raw.schedule, servers);
        let address = address.map_or(Some(None), |parsed| parsed.map(Some));
        let status = raw.status.map(|status| self.socket(&status));
        let status = status.map_or(Some(None), |parsed| parsed.map(Some));
        Some(Server { machine: machine?, address: address?, data: data?, status: status? })
    }

    fn socket(&mut self, text: &Text) -> Option<SocketAddr> {
        let wrong = format!("`{}` is not IP:PORT, as in `127.0.0.1:10080` or `[::1]:10080`", text.get_ref());
        text.get_ref().parse().map_err(|_| self.problem(&text.span(), wrong)).ok()
    }

    fn client(&mut self, raw: RawClient, servers: &[String]) -> Option<Machine> {
        let role = raw.role.as_ref().map_or(Role::Full, |role| *role.get_ref());
        if let Some(given) = raw.role.filter(|_| role == Role::Server) {
            self.problem(&given.span(), "a client's role is `full` or `writer`; servers belong under [[servers]]");
        }
        self.machine(&raw.name, role, &raw.backup, raw.schedule, servers)
    }

    fn machine(
        &mut self,
        name: &Text,
        role: Role,
        backup: &[Text],
        schedule: Vec<RawSchedule>,
        servers: &[String],
    ) -> Option<Machine> {
        self.unique("volume", backup.iter());
        if name.get_ref() == RECOVERY_MACHINE {
            self.problem(
                &name.span(),
                format!("`{RECOVERY_MACHINE}` is the name of the recovery kit; choose another one"),
            );
        }
        let name: Option<MachineName> = self.parse(name);
        let volumes = backup.iter().filter_map(|volume| self.parse(volume)).collect();
        let schedule = schedule.iter().filter_map(|raw| self.schedule(raw, backup, servers)).collect();
        Some(Machine { name: name?, role, backup: volumes, schedule })
    }

    fn schedule(&mut self, raw: &RawSchedule, backup: &[Text], servers: &[String]) -> Option<Schedule> {
        let (volume, server): (Option<VolumeName>, Option<MachineName>) =
            (self.parse(&raw.volume), self.parse(&raw.server));
        let backup = backup.iter().map(|volume| volume.get_ref().as_str());
        self.known(&raw.volume, backup, "is not in the `backup` list of this machine");
        self.known(&raw.server, servers.iter().map(String::as_str), "is not one of the [[servers]]");
        if !is_schedule(raw.at.get_ref()) {
            let at = raw.at.get_ref();
            self.problem(
                &raw.at.span(),
                format!(
                    "`{at}` is neither a time (`02:00`), nor @hourly, @daily, @weekly or @monthly, nor five cron fields"
                ),
            );
        }
        Some(Schedule { volume: volume?, server: server?, at: raw.at.get_ref().clone() })
    }

    fn known<'b>(&mut self, name: &Text, known: impl Iterator<Item = &'b str> + Clone, otherwise: &str) {
        if known.clone().all(|known| known != name.get_ref()) {
            let suggestion = suggest::suffix(name.get_ref(), known);
            self.problem(&name.span(), format!("`{}` {otherwise}{suggestion}", name.get_ref()));
        }
    }

    fn volume(&mut self, raw: RawVolume) -> Option<Volume> {
        let hooks = raw.exec_pre.iter().chain(&raw.exec_post).map(Spanned::span).next();
        if let Some(span) = hooks.filter(|_| raw.quiesce != Quiesce::Hooks) {
            self.problem(&span, "commands are only run with quiesce = \"hooks\"");
        }
        let path = raw.path.map(|path| self.absolute("path", &path));
        let retention = raw.retention.and_then(|raw| self.retention(raw));
        let max_age = raw.max_age.and_then(|text| self.duration(&text));
        Some(Volume {
            name: self.parse(&raw.name)?,
            path: path.map_or(Some(None), |checked| checked.map(Some))?,
            quiesce: raw.quiesce,
            exec_pre: raw.exec_pre.map(Spanned::into_inner),
            exec_post: raw.exec_post.map(Spanned::into_inner),
            profile: raw.profile,
            retention,
            max_age,
        })
    }

    fn duration(&mut self, text: &Text) -> Option<Duration> {
        let wrong = format!("`{}` is not a duration such as `36h`, `7d` or `4w`", text.get_ref());
        parse_duration(text.get_ref()).or_else(|| {
            self.problem(&text.span(), wrong);
            None
        })
    }

    fn retention(&mut self, raw: Spanned<RawRetention>) -> Option<Retention> {
        let span = raw.span();
        let raw = raw.into_inner();
        let mut duration = |text: &Option<Text>| self.duration(text.as_ref()?);
        let (within, floor) = (duration(&raw.keep_within), duration(&raw.min_retention));
        let retention = Retention {
            last: raw.keep_last,
            hourly: raw.keep_hourly,
            daily: raw.keep_daily,
            weekly: raw.keep_weekly,
            monthly: raw.keep_monthly,
            yearly: raw.keep_yearly,
            within,
            floor,
        };
        if retention == Retention::default() && raw.keep_within.is_none() && raw.min_retention.is_none() {
            self.problem(&span, "this retention keeps nothing; remove it to keep everything");
        }
        Some(retention)
    }

    fn keys(&mut self, raw: RawKeys, config: &Path) -> Option<KeysConfig> {
        let mut foreign = |key: &str, text: &Option<Text>, store: &str| {
            if let Some(text) = text {
                self.problem(&text.span(), format!("`{key}` has no meaning with store = \"{store}\""));
            }
        };
        match raw.store {
            RawStore::Directory => {
                foreign("url", &raw.url, "directory");
                foreign("prefix", &raw.prefix, "directory");
                let path = raw.path.map_or_else(|| "keys".to_owned(), Spanned::into_inner);
                // Beside the configuration, unless it is absolute.
                Some(KeysConfig::Directory(config.with_file_name("").join(path)))
            }
            RawStore::Vault => {
                foreign("path", &raw.path, "vault");
                let Some((url, prefix)) = raw.url.zip(raw.prefix) else {
                    let at = self.text.find("[keys]").unwrap_or_default();
                    self.problem(&(at..at), "store = \"vault\" needs `url` and `prefix`");
                    return None;
                };
                if !["http://", "https://"].iter().any(|scheme| url.get_ref().starts_with(scheme)) {
                    self.problem(&url.span(), format!("`{}` is not an http or https URL", url.get_ref()));
                }
                Some(KeysConfig::Vault { url: url.into_inner(), prefix: prefix.into_inner() })
            }
        }
    }

    fn absolute(&mut self, key: &str, path: &Text) -> Option<PathBuf> {
        if path.get_ref().starts_with('/') {
            return Some(path.get_ref().into());
        }
        self.problem(&path.span(), format!("`{key}` must be an absolute path, since every machine shares this file"));
        None
    }
}

/// Whether `at` has the shape of a schedule; whether it ever comes is for the scheduler.
fn is_schedule(at: &str) -> bool {
    let is_time = |at: &str| {
        at.split_once(':').is_some_and(|(hour, minute)| {
            let below = |text: &str, end: u8| text.len() == 2 && text.parse().is_ok_and(|number: u8| number < end);
            below(hour, 24) && below(minute, 60)
        })
    };
    let fields: Vec<&str> = at.split_whitespace().collect();
    let is_field = |field: &str| field.chars().all(|c| c.is_ascii_alphanumeric() || "*,-/".contains(c));
    is_time(at)
        || ["@hourly", "@daily", "@weekly", "@monthly"].contains(&at)
        || (fields.len() == 5 && fields.into_iter().all(is_field))
}

/// Reads `36h`, `7d`, `4w 2d`; a day has 24 hours here. Months have no length, so no.
fn parse_duration(text: &str) -> Option<Duration> {
    let span: Span = text.parse().ok()?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    Duration::try_from(duration).ok().filter(|duration| !duration.is_zero())
}
