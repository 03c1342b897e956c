//! The shape of `vsync.toml`, as serde reads it. Spans are kept where a check may complain.

use serde::Deserialize;
use toml::Spanned;

use super::notify::RawNotify;
use super::{Command, HookFailure, Profile, Quiesce, Role};

pub(super) type Text = Spanned<String>;
pub(super) type RawCommand = Option<Spanned<Command>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) realm: RawRealm,
    #[serde(default)]
    pub(super) servers: Vec<RawServer>,
    #[serde(default)]
    pub(super) clients: Vec<RawClient>,
    #[serde(default)]
    pub(super) volumes: Vec<RawVolume>,
    pub(super) retention: Option<Spanned<RawRetention>>,
    #[serde(default)]
    pub(super) keys: RawKeys,
    #[serde(default)]
    pub(super) notify: Vec<Spanned<RawNotify>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawRealm {
    pub(super) name: Text,
    pub(super) time_zone: Option<Text>,
    pub(super) jitter: Option<Text>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawServer {
    pub(super) name: Text,
    pub(super) container: Option<Text>,
    pub(super) schedule_container: Option<Text>,
    pub(super) address: Option<Text>,
    pub(super) data: Text,
    pub(super) status: Option<Text>,
    #[serde(default)]
    pub(super) backup: Vec<Text>,
    pub(super) role: Option<Spanned<Role>>,
    #[serde(default)]
    pub(super) schedule: Vec<RawSchedule>,
    pub(super) run_before: RawCommand,
    pub(super) run_after: RawCommand,
    pub(super) run_failed: RawCommand,
    pub(super) run_finally: RawCommand,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawClient {
    pub(super) name: Text,
    pub(super) schedule_container: Option<Text>,
    pub(super) quota: Option<Text>,
    #[serde(default)]
    pub(super) backup: Vec<Text>,
    pub(super) role: Option<Spanned<Role>>,
    #[serde(default)]
    pub(super) schedule: Vec<RawSchedule>,
    pub(super) run_before: RawCommand,
    pub(super) run_after: RawCommand,
    pub(super) run_failed: RawCommand,
    pub(super) run_finally: RawCommand,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawSchedule {
    pub(super) volume: Text,
    pub(super) server: Text,
    pub(super) at: Text,
    pub(super) time_zone: Option<Text>,
    pub(super) jitter: Option<Text>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawVolume {
    pub(super) name: Text,
    pub(super) path: Option<Text>,
    #[serde(default)]
    pub(super) quiesce: Quiesce,
    pub(super) exec_pre: RawCommand,
    pub(super) exec_post: RawCommand,
    pub(super) exec_user: Option<Text>,
    pub(super) hook_timeout: Option<Text>,
    #[serde(default)]
    pub(super) hook_failure: HookFailure,
    pub(super) stop_timeout: Option<Text>,
    pub(super) run_before: RawCommand,
    pub(super) run_after: RawCommand,
    pub(super) run_failed: RawCommand,
    pub(super) run_finally: RawCommand,
    #[serde(default)]
    pub(super) profile: Profile,
    pub(super) max_age: Option<Text>,
    pub(super) quota: Option<Text>,
    pub(super) retention: Option<Spanned<RawRetention>>,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
#[derive(Default)]
pub(super) struct RawRetention {
    pub(super) keep_last: u32,
    pub(super) keep_hourly: u32,
    pub(super) keep_daily: u32,
    pub(super) keep_weekly: u32,
    pub(super) keep_monthly: u32,
    pub(super) keep_yearly: u32,
    pub(super) keep_within: Option<Text>,
    pub(super) min_retention: Option<Text>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawKeys {
    #[serde(default)]
    pub(super) store: RawStore,
    pub(super) path: Option<Text>,
    pub(super) url: Option<Text>,
    pub(super) prefix: Option<Text>,
    pub(super) mount: Option<Text>,
    pub(super) kv: Option<Spanned<u32>>,
    pub(super) namespace: Option<Text>,
    pub(super) ca: Option<Text>,
    pub(super) token: Option<Text>,
    pub(super) role_id: Option<Text>,
    pub(super) secret_id_file: Option<Text>,
    pub(super) approle_mount: Option<Text>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RawStore {
    #[default]
    Directory,
    Vault,
}
