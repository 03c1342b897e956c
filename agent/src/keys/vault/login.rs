//! Who we are to a Vault server: a token that somebody gave us, or one that a role's secret buys.

use serde_json::json;
use zeroize::Zeroizing;

use super::VaultError;
use super::http::Http;
use crate::config::VaultConfig;
use crate::keys::source;

const TOKEN: &str = "VSYNC_VAULT_TOKEN";
const SECRET_ID: &str = "VSYNC_VAULT_SECRET_ID";

/// A token, and where it is from, for messages.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) secret: Zeroizing<String>,
    pub(super) origin: String,
}

/// Finds a token: our own variables first, then what the configuration says, then what the
/// `vault` command uses.
pub(super) fn token(config: &VaultConfig, http: &Http) -> Result<Token, VaultError> {
    if let Some(secret) = source::find(TOKEN)? {
        return Ok(Token { secret, origin: TOKEN.to_owned() });
    }
    if let Some(variable) = &config.token {
        return Ok(Token { secret: source::variable(variable)?, origin: variable.clone() });
    }
    if let Some(role) = &config.role_id {
        return approle(config, http, role);
    }
    if std::env::var_os("VAULT_TOKEN").is_some_and(|token| !token.is_empty()) {
        return Ok(Token { secret: source::variable("VAULT_TOKEN")?, origin: "VAULT_TOKEN".to_owned() });
    }
    let file = std::env::home_dir().map(|home| home.join(".vault-token")).filter(|file| file.is_file());
    let file = file.ok_or_else(|| VaultError::NoToken { url: http.url() })?;
    let origin = file.display().to_string();
    Ok(Token { secret: source::from_file("~/.vault-token", file)?, origin })
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
