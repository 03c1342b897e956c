//! The sense of `vsync.toml`: names, references, times. Collects everything that is wrong.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo};
use toml::Spanned;
use vsync_protocol::id::{MachineName, RealmName, VolumeName};
use vsync_protocol::registry::RECOVERY_MACHINE;

use super::raw::{
    RawClient, RawCommand, RawConfig, RawKeys, RawRealm, RawRetention, RawSchedule, RawServer, RawStore, RawVolume,
    Text,
};
use super::{
    Command, Config, KeysConfig, KvVersion, Machine, Problem, Quiesce, Retention, Role, RunHooks, Schedule, Server,
    VaultConfig, Volume,
};
use crate::schedule::{self, Calendar, Jitter, USUAL_JITTER};
use crate::suggest;

/// Longer than that, and nobody would know any more which day a backup is of.
const LONGEST_JITTER: Duration = Duration::from_secs(86_400);

pub(super) fn check(path: &Path, text: &str, raw: RawConfig) -> Result<Config, Vec<Problem>> {
    let mut check = Check { text, problems: Vec::new(), zone: TimeZone::UTC, jitter: USUAL_JITTER };
    let RawConfig { realm, servers, clients, volumes, retention, keys, notify } = raw;
    check.unique("machine", servers.iter().map(|server| &server.name).chain(clients.iter().map(|client| &client.name)));
    check.unique("volume", volumes.iter().map(|volume| &volume.name));
    let server_names: Vec<String> = servers.iter().map(|server| server.name.get_ref().clone()).collect();
    check.usual_times(&realm);
    let realm: Option<RealmName> = check.parse(&realm.name);
    let servers: Vec<Server> = servers.into_iter().filter_map(|raw| check.server(raw, &server_names)).collect();
    let clients: Vec<Machine> = clients.into_iter().filter_map(|raw| check.client(raw, &server_names)).collect();
    let volumes = volumes.into_iter().filter_map(|raw| check.volume(raw)).collect();
    let retention = retention.and_then(|raw| check.retention(raw));
    let keys = check.keys(keys, path);
    let notify = notify.into_iter().filter_map(|raw| check.notify(raw, &server_names)).collect();
    match (realm, keys) {
        (Some(realm), Some(keys)) if check.problems.is_empty() => {
            Ok(Config { path: path.to_owned(), realm, servers, clients, volumes, retention, keys, notify })
        }
        _ => {
            check.problems.sort_by_key(|problem| (problem.line, problem.column));
            Err(check.problems)
        }
    }
}

/// What the entries of servers and of clients have in common.
struct Said<'a> {
    name: &'a Text,
    role: Role,
    backup: &'a [Text],
    schedule: &'a [RawSchedule],
    /// The container that runs the schedule.
    container: Option<Text>,
    run: RunHooks,
}

pub(super) struct Check<'a> {
    text: &'a str,
    problems: Vec<Problem>,
    /// Of schedules that say nothing else.
    zone: TimeZone,
    jitter: Duration,
}

impl Check<'_> {
    pub(super) fn problem(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.problems.push(Problem::at(self.text, span, message.into()));
    }

    pub(super) fn parse<T: FromStr<Err: ToString>>(&mut self, text: &Text) -> Option<T> {
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
        let run = self.run_hooks([raw.run_before, raw.run_after, raw.run_failed, raw.run_finally]);
        let (name, backup, schedule) = (&raw.name, &raw.backup, &raw.schedule);
        let said = Said { name, role, backup, schedule, container: raw.schedule_container, run };
        let machine = self.machine(said, servers);
        let address = address.map_or(Some(None), |parsed| parsed.map(Some));
        let status = raw.status.map(|status| self.socket(&status));
        let status = status.map_or(Some(None), |parsed| parsed.map(Some));
        let container = self.container(raw.container);
        Some(Server { machine: machine?, address: address?, data: data?, status: status?, container })
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
        let quota = self.quota(raw.quota.as_ref());
        let run = self.run_hooks([raw.run_before, raw.run_after, raw.run_failed, raw.run_finally]);
        let (name, backup, schedule) = (&raw.name, &raw.backup, &raw.schedule);
        let said = Said { name, role, backup, schedule, container: raw.schedule_container, run };
        Some(Machine { quota, ..self.machine(said, servers)? })
    }

    fn quota(&mut self, text: Option<&Text>) -> Option<u64> {
        let text = text?;
        let size = parse_size(text.get_ref()).filter(|size| *size > 0);
        if size.is_none() {
            let message = format!("`{}` is not a size such as `500GiB` or `2TiB`", text.get_ref());
            self.problem(&text.span(), message);
        }
        size
    }

    fn machine(&mut self, said: Said<'_>, servers: &[String]) -> Option<Machine> {
        let Said { name, role, backup, schedule, container, run } = said;
        self.unique("volume", backup.iter());
        if name.get_ref() == RECOVERY_MACHINE {
            self.problem(
                &name.span(),
                format!("`{RECOVERY_MACHINE}` is the name of the recovery kit; choose another one"),
            );
        }
        let name: Option<MachineName> = self.parse(name);
        let volumes = backup.iter().filter_map(|volume| self.parse(volume)).collect();
        let schedule = schedule.iter().filter_map(|raw| self.schedule(raw, name.as_ref(), backup, servers)).collect();
        let schedule_container = self.container(container);
        Some(Machine { name: name?, role, backup: volumes, schedule, schedule_container, run, quota: None })
    }

    fn schedule(
        &mut self,
        raw: &RawSchedule,
        machine: Option<&MachineName>,
        backup: &[Text],
        servers: &[String],
    ) -> Option<Schedule> {
        let (volume, server): (Option<VolumeName>, Option<MachineName>) =
            (self.parse(&raw.volume), self.parse(&raw.server));
        let backup = backup.iter().map(|volume| volume.get_ref().as_str());
        self.known(&raw.volume, backup, "is not in the `backup` list of this machine");
        self.known(&raw.server, servers.iter().map(String::as_str), "is not one of the [[servers]]");
        let zone = match &raw.time_zone {
            Some(name) => self.zone(name),
            None => Some(self.zone.clone()),
        };
        let at = zone.and_then(|zone| {
            let parsed = Calendar::parse(raw.at.get_ref(), zone);
            parsed.map_err(|error| self.problem(&raw.at.span(), error.to_string())).ok()
        });
        let longest = raw.jitter.as_ref().map_or(Some(self.jitter), |text| self.jitter(text));
        let volume = volume?;
        let jitter = Jitter::new(longest?, machine?, &volume);
        Some(Schedule { volume, server: server?, at: at?, jitter })
    }

    /// What the realm says of all schedules.
    fn usual_times(&mut self, realm: &RawRealm) {
        if let Some(zone) = realm.time_zone.as_ref().and_then(|name| self.zone(name)) {
            self.zone = zone;
        }
        if let Some(jitter) = realm.jitter.as_ref().and_then(|text| self.jitter(text)) {
            self.jitter = jitter;
        }
    }

    fn zone(&mut self, name: &Text) -> Option<TimeZone> {
        schedule::zone(name.get_ref()).map_err(|error| self.problem(&name.span(), error.to_string())).ok()
    }

    fn jitter(&mut self, text: &Text) -> Option<Duration> {
        let none = matches!(text.get_ref().as_str(), "0" | "0s" | "0m" | "0h");
        let longest = if none { Some(Duration::ZERO) } else { parse_duration(text.get_ref()) };
        longest.filter(|longest| *longest <= LONGEST_JITTER).or_else(|| {
            let message = format!("`{}` is not a duration such as `10m`, up to a day; `0s` for none", text.get_ref());
            self.problem(&text.span(), message);
            None
        })
    }

    /// A name that an engine takes for a container: its rule is that for volumes, too.
    fn container(&mut self, name: Option<Text>) -> Option<String> {
        self.parse::<VolumeName>(&name?).map(|name| name.to_string())
    }

    pub(super) fn known<'b>(&mut self, name: &Text, known: impl Iterator<Item = &'b str> + Clone, otherwise: &str) {
        if known.clone().all(|known| known != name.get_ref()) {
            let suggestion = suggest::suffix(name.get_ref(), known);
            self.problem(&name.span(), format!("`{}` {otherwise}{suggestion}", name.get_ref()));
        }
    }

    fn volume(&mut self, raw: RawVolume) -> Option<Volume> {
        let commands = raw.exec_pre.iter().chain(&raw.exec_post).map(Spanned::span).next();
        if let Some(span) = commands.filter(|_| raw.quiesce == Quiesce::None) {
            self.problem(&span, "commands are only run with quiesce = \"hooks\", \"pause\" or \"stop\"");
        }
        let path = raw.path.map(|path| self.absolute("path", &path));
        let quota = self.quota(raw.quota.as_ref());
        let retention = raw.retention.and_then(|raw| self.retention(raw));
        let max_age = self.duration(raw.max_age.as_ref());
        let run = self.run_hooks([raw.run_before, raw.run_after, raw.run_failed, raw.run_finally]);
        Some(Volume {
            name: self.parse(&raw.name)?,
            path: path.map_or(Some(None), |checked| checked.map(Some))?,
            quiesce: raw.quiesce,
            exec_pre: self.command(raw.exec_pre),
            exec_post: self.command(raw.exec_post),
            exec_user: raw.exec_user.map(Spanned::into_inner),
            hook_timeout: self.duration(raw.hook_timeout.as_ref()),
            hook_failure: raw.hook_failure,
            stop_timeout: self.duration(raw.stop_timeout.as_ref()),
            run,
            profile: raw.profile,
            quota,
            retention,
            max_age,
        })
    }

    fn command(&mut self, raw: RawCommand) -> Option<Command> {
        let raw = raw?;
        if raw.get_ref().is_empty() {
            self.problem(&raw.span(), "there is no command here");
        }
        Some(raw.into_inner())
    }

    fn run_hooks(&mut self, raw: [RawCommand; 4]) -> RunHooks {
        let [before, after, failed, finally] = raw.map(|raw| self.command(raw));
        RunHooks { before, after, failed, finally }
    }

    fn duration(&mut self, text: Option<&Text>) -> Option<Duration> {
        let text = text?;
        parse_duration(text.get_ref()).or_else(|| {
            let message = format!("`{}` is not a duration such as `36h`, `7d` or `4w`", text.get_ref());
            self.problem(&text.span(), message);
            None
        })
    }

    fn retention(&mut self, raw: Spanned<RawRetention>) -> Option<Retention> {
        let span = raw.span();
        let raw = raw.into_inner();
        let within = self.duration(raw.keep_within.as_ref());
        let floor = self.duration(raw.min_retention.as_ref());
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
        match raw.store {
            RawStore::Directory => {
                let foreign = [
                    ("url", &raw.url),
                    ("prefix", &raw.prefix),
                    ("mount", &raw.mount),
                    ("namespace", &raw.namespace),
                    ("ca", &raw.ca),
                    ("token", &raw.token),
                    ("role-id", &raw.role_id),
                    ("secret-id-file", &raw.secret_id_file),
                    ("approle-mount", &raw.approle_mount),
                ];
                foreign.iter().for_each(|(key, text)| self.foreign(key, text.as_ref(), "directory"));
                let path = raw.path.map_or_else(|| "keys".to_owned(), Spanned::into_inner);
                // Beside the configuration, unless it is absolute.
                Some(KeysConfig::Directory(config.with_file_name("").join(path)))
            }
            RawStore::Vault => {
                self.foreign("path", raw.path.as_ref(), "vault");
                self.vault(raw).map(KeysConfig::Vault)
            }
        }
    }

    fn foreign(&mut self, key: &str, text: Option<&Text>, store: &str) {
        if let Some(text) = text {
            self.problem(&text.span(), format!("`{key}` has no meaning with store = \"{store}\""));
        }
    }

    fn vault(&mut self, raw: RawKeys) -> Option<VaultConfig> {
        let Some((url, prefix)) = raw.url.zip(raw.prefix) else {
            let at = self.text.find("[keys]").unwrap_or_default();
            self.problem(&(at..at), "store = \"vault\" needs `url` and `prefix`");
            return None;
        };
        if !["http://", "https://"].iter().any(|scheme| url.get_ref().starts_with(scheme)) {
            self.problem(&url.span(), format!("`{}` is not an http or https URL", url.get_ref()));
        }
        let (mount, below) = self.vault_path(&prefix, raw.mount.as_ref())?;
        let kv = raw.kv.and_then(|kv| match kv.get_ref() {
            1 => Some(KvVersion::V1),
            2 => Some(KvVersion::V2),
            other => {
                self.problem(&kv.span(), format!("`kv = {other}`: there are versions 1 and 2"));
                None
            }
        });
        let token = raw.token.and_then(|token| {
            let name = token.get_ref().strip_prefix('$').map(str::to_owned);
            if name.is_none() {
                // Quoted by no message: it may well be the token itself.
                let at = token.span().start;
                self.problem(
                    &(at..at),
                    "`token` must name an environment variable, as in \"$VAULT_TOKEN\": this file is in git",
                );
            }
            name
        });
        if raw.role_id.is_none()
            && let Some(file) = &raw.secret_id_file
        {
            self.problem(&file.span(), "`secret-id-file` needs `role-id`");
        }
        let ca = raw.ca.and_then(|path| self.absolute("ca", &path));
        let secret_id_file = raw.secret_id_file.and_then(|path| self.absolute("secret-id-file", &path));
        Some(VaultConfig {
            url: url.get_ref().trim_end_matches('/').to_owned(),
            mount,
            prefix: below,
            kv,
            namespace: raw.namespace.map(Spanned::into_inner),
            ca,
            token,
            role_id: raw.role_id.map(Spanned::into_inner),
            secret_id_file,
            approle_mount: raw.approle_mount.map_or_else(|| "approle".to_owned(), Spanned::into_inner),
        })
    }

    /// The mount and the path below it. The mount is the first part of `prefix`, unless it is told.
    fn vault_path(&mut self, prefix: &Text, mount: Option<&Text>) -> Option<(String, String)> {
        let whole = prefix.get_ref().trim_matches('/');
        let is_plain = |path: &str| {
            path.split('/').all(|part| {
                !matches!(part, "" | "." | "..")
                    && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            })
        };
        let split = match mount {
            None => whole.split_once('/').map(|(mount, below)| (mount.to_owned(), below.to_owned())),
            Some(mount) => {
                let mount = mount.get_ref().trim_matches('/').to_owned();
                let below = whole.strip_prefix(&format!("{mount}/")).unwrap_or(whole).to_owned();
                Some((mount, below))
            }
        };
        let split = split.filter(|(mount, below)| is_plain(mount) && is_plain(below));
        if split.is_none() {
            let message = format!("`{}` is not MOUNT/PATH, as in \"secret/team/vsync\"", prefix.get_ref());
            self.problem(&prefix.span(), message);
        }
        split
    }

    pub(super) fn absolute(&mut self, key: &str, path: &Text) -> Option<PathBuf> {
        if path.get_ref().starts_with('/') {
            return Some(path.get_ref().into());
        }
        self.problem(&path.span(), format!("`{key}` must be an absolute path, since every machine shares this file"));
        None
    }
}

/// Reads `500GiB`: a whole number and a unit of two to the tenth, or none for bytes.
fn parse_size(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        "PiB" => 50,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Reads `36h`, `7d`, `4w 2d`; a day has 24 hours here. Months have no length, so no.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let span: Span = text.parse().ok()?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
    Duration::try_from(duration).ok().filter(|duration| !duration.is_zero())
}
