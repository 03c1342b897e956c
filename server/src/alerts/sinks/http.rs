//! Requests to web servers: with what trust, with what patience.

use std::sync::Arc;
use std::time::Duration;

use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::SinkError;

/// No answer in this time is no answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Asks web servers; believes the authorities that this machine believes.
pub(super) fn agent(url: &str) -> Result<Agent, SinkError> {
    let mut builder = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .user_agent(concat!("vsync/", env!("CARGO_PKG_VERSION")));
    if url.starts_with("https://") {
        let provider = vsync_transport::provider();
        let tls = TlsConfig::builder().root_certs(roots()?).unversioned_rustls_crypto_provider(provider);
        builder = builder.tls_config(tls.build());
    } else if !url.starts_with("http://") {
        return Err(SinkError::Url);
    }
    Ok(builder.build().new_agent())
}

fn roots() -> Result<RootCerts, SinkError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(SinkError::NoAuthorities);
    }
    let certificates = found.certs.iter().map(|certificate| Certificate::from_der(certificate).to_owned());
    Ok(RootCerts::Specific(Arc::new(certificates.collect())))
}

/// Whether a server took what it was sent.
pub(super) fn accepted(answer: Result<Response<Body>, ureq::Error>) -> Result<(), String> {
    match answer {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("it answered {}", answer.status())),
        Err(error) => Err(error.to_string()),
    }
}
