//! Requests to a Vault server: its API in JSON, and its answers in words.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;
use ureq::http::{Request, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use zeroize::Zeroizing;

use super::VaultError;
use crate::config::VaultConfig;

/// No answer in this time is no answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Keys are small; more is something else.
const MAX_ANSWER: u64 = 4 << 20;

/// A connection to one server.
#[derive(Debug)]
pub(super) struct Http {
    agent: Agent,
    url: String,
    namespace: Option<String>,
}

/// A status and the document that came with it.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
}

impl Answer {
    /// What the server gave as its reason.
    pub(super) fn reason(&self) -> String {
        let errors = self.body["errors"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let reason: Vec<&str> = errors.collect();
        if reason.is_empty() { "it gave no reason".to_owned() } else { reason.join("; ") }
    }
}

impl Http {
    pub(super) fn new(config: &VaultConfig) -> Result<Self, VaultError> {
        let mut builder = Agent::config_builder()
            .http_status_as_error(false)
            // A token must not follow a redirection to who knows where.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(PATIENCE))
            .user_agent(concat!("vsync/", env!("CARGO_PKG_VERSION")));
        if config.url.starts_with("https://") {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let tls =
                TlsConfig::builder().root_certs(roots(config)?).unversioned_rustls_crypto_provider(provider).build();
            builder = builder.tls_config(tls);
        }
        let agent = builder.build().new_agent();
        Ok(Self { agent, url: config.url.clone(), namespace: config.namespace.clone() })
    }

    pub(super) fn url(&self) -> String {
        self.url.clone()
    }

    /// Asks for `path`, below `/v1/`. A sealed or standby server is an error, other statuses
    /// are the caller's to judge.
    pub(super) fn get(&self, path: &str, token: Option<&str>) -> Result<Answer, VaultError> {
        self.send("GET", path, token, None)
    }

    /// Sends a document to `path`.
    pub(super) fn post(&self, path: &str, token: Option<&str>, body: &Value) -> Result<Answer, VaultError> {
        self.send("POST", path, token, Some(Zeroizing::new(body.to_string())))
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<Zeroizing<String>>,
    ) -> Result<Answer, VaultError> {
        let failed = |error| self.failed(error);
        let mut request = Request::builder().method(method).uri(format!("{}/v1/{path}", self.url));
        // Without it, some proxies in front of a server refuse us.
        request = request.header("X-Vault-Request", "true");
        if let Some(token) = token {
            request = request.header("X-Vault-Token", token);
        }
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        let response = match body {
            None => self.agent.run(request.body(()).map_err(|error| failed(error.into()))?),
            Some(body) => {
                let request = request.header("Content-Type", "application/json");
                self.agent.run(request.body(body.as_bytes()).map_err(|error| failed(error.into()))?)
            }
        };
        self.judged(response.map_err(failed)?)
    }

    fn judged(&self, mut response: Response<ureq::Body>) -> Result<Answer, VaultError> {
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(MAX_ANSWER).read_to_string();
        let text = Zeroizing::new(text.map_err(|error| self.failed(error))?);
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        match status {
            503 => Err(VaultError::Sealed { url: self.url() }),
            301 | 302 | 307 | 308 => Err(VaultError::Standby { url: self.url() }),
            _ => Ok(Answer { status, body }),
        }
    }

    fn failed(&self, error: ureq::Error) -> VaultError {
        let (url, source) = (self.url(), Box::new(error));
        // Errors of the handshake arrive as those of the stream below it.
        let is_tls = match &*source {
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
            ureq::Error::Io(error) => error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()),
            _ => false,
        };
        if is_tls { VaultError::Tls { url, source } } else { VaultError::Unreachable { url, source } }
    }
}

/// The certificates that are believed: those of the file, else the system's.
fn roots(config: &VaultConfig) -> Result<RootCerts, VaultError> {
    let certificates: Vec<Certificate<'static>> = match &config.ca {
        Some(path) => {
            let wrong = |reason: String| VaultError::Ca { path: path.clone(), reason };
            let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            let certificates = parse_pem(&pem).filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
                Ok(_) => None,
                Err(error) => Some(Err(wrong(error.to_string()))),
            });
            let certificates: Vec<_> = certificates.collect::<Result<_, _>>()?;
            if certificates.is_empty() {
                return Err(wrong("it holds no certificate".to_owned()));
            }
            certificates
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            if found.certs.is_empty() {
                let reason = found.errors.first().map_or_else(|| "it has none".to_owned(), ToString::to_string);
                return Err(VaultError::Ca { path: "/etc/ssl/certs".into(), reason });
            }
            found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
        }
    };
    Ok(certificates.into())
}
