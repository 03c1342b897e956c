//! The shape of `vsync.toml`, as serde reads it. Spans are kept where a check may complain.

use serde::Deserialize;
use toml::Spanned;

use super::{Profile, Quiesce};
use crate::keys::Role;

pub(super) type Text = Spanned<String>;

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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRealm {
    pub(super) name: Text,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawServer {
    pub(super) name: Text,
    pub(super) address: Option<Text>,
    pub(super) data: Text,
    #[serde(default)]
    pub(super) backup: Vec<Text>,
    pub(super) role: Option<Spanned<Role>>,
    #[serde(default)]
    pub(super) schedule: Vec<RawSchedule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawClient {
    pub(super) name: Text,
    #[serde(default)]
    pub(super) backup: Vec<Text>,
    pub(super) role: Option<Spanned<Role>>,
    #[serde(default)]
    pub(super) schedule: Vec<RawSchedule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSchedule {
    pub(super) volume: Text,
    pub(super) server: Text,
    pub(super) at: Text,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawVolume {
    pub(super) name: Text,
    pub(super) path: Option<Text>,
    #[serde(default)]
    pub(super) quiesce: Quiesce,
    pub(super) exec_pre: Option<Text>,
    pub(super) exec_post: Option<Text>,
    #[serde(default)]
    pub(super) profile: Profile,
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
