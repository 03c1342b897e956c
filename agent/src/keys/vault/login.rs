//! Who we are to a Vault server: a token that somebody gave us, or one that a role's secret buys.

use std::path::PathBuf;

use serde_json::json;
use zeroize::Zeroizing;

use super::VaultError;
use super::http::Http;
use crate::config::VaultConfig;
use crate::keys::source;

/// The option with a token.
pub(crate) const TOKEN: &str = "VSYNC_VAULT_TOKEN";
/// The option with an AppRole's secret.
pub(crate) const SECRET_ID: &str = "VSYNC_VAULT_SECRET_ID";

/// Where a token comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The option of this name, given as a variable, a file or a command.
    Option(&'static str),
    /// The variable of this name.
    Variable(String),
    /// An AppRole's login.
    Role(String),
    /// The file that the `vault` command keeps it in.
    File(PathBuf),
    /// Nobody gave one.
    Nowhere,
}

/// Looks for a token: our own variables first, then what the configuration says, then what the `vault` command uses.
#[must_use]
pub(crate) fn origin(config: &VaultConfig) -> Origin {
    if source::is_given(TOKEN) {
        return Origin::Option(TOKEN);
    }
    if let Some(variable) = &config.token {
        return Origin::Variable(variable.clone());
    }
    if let Some(role) = &config.role_id {
        return Origin::Role(role.clone());
    }
    if source::is_set("VAULT_TOKEN") {
        return Origin::Variable("VAULT_TOKEN".to_owned());
    }
    let file = std::env::home_dir().map(|home| home.join(".vault-token")).filter(|file| file.is_file());
    file.map_or(Origin::Nowhere, Origin::File)
}

/// A token, and where it is from, for messages.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) secret: Zeroizing<String>,
    pub(super) origin: String,
}

/// Has a token from where [`origin`] finds one.
pub(super) fn token(config: &VaultConfig, http: &Http) -> Result<Token, VaultError> {
    let nowhere = || VaultError::NoToken { url: http.url() };
    match origin(config) {
        Origin::Option(name) => {
            let secret = source::find(name)?.ok_or_else(nowhere)?;
            Ok(Token { secret, origin: name.to_owned() })
        }
        Origin::Variable(name) => Ok(Token { secret: source::variable(&name)?, origin: name }),
        Origin::Role(role) => approle(config, http, &role),
        Origin::File(file) => {
            let origin = file.display().to_string();
            Ok(Token { secret: source::from_file("~/.vault-token", file)?, origin })
        }
        Origin::Nowhere => Err(nowhere()),
    }
}

fn approle(config: &VaultConfig, http: &Http, role: &str) -> Result<Token, VaultError> {
    let secret = match (source::find(SECRET_ID)?, &config.secret_id_file) {
        (Some(secret), _) => Some(secret),
        (None, Some(file)) => Some(source::from_file("secret-id-file", file.clone())?),
        // A role may be bound to addresses instead.
        (None, None) => None,
    };
    let mount = config.approle_mount.trim_matches('/');
    let body = match &secret {
        Some(secret) => json!({"role_id": role, "secret_id": secret.as_str()}),
        None => json!({"role_id": role}),
    };
    let answer = http.post(&format!("auth/{mount}/login"), None, &body)?;
    let token = answer.body["auth"]["client_token"].as_str().map(|token| Zeroizing::new(token.to_owned()));
    match token {
        Some(secret) if answer.status == 200 => Ok(Token { secret, origin: format!("AppRole login at auth/{mount}") }),
        _ => Err(VaultError::Login { url: http.url(), mount: mount.to_owned(), reason: answer.reason() }),
    }
}
