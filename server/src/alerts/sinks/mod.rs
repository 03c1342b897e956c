//! The ways on which people read: a webhook, e-mail, and a watchdog that misses us when we fall silent.

mod http;
mod mail;
mod ping;
mod webhook;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use self::mail::{Mail, Smtp, SmtpTls};
pub use self::ping::Ping;
pub use self::webhook::Webhook;

/// Why people cannot be told on some way.
#[derive(Debug, Error)]
pub enum SinkError {
    /// It may be secret, so it is not quoted.
    #[error("its URL begins with neither https:// nor http://")]
    Url,
    /// There is no certificate on this machine that could be believed.
    #[error("this machine has no certificates of authorities, which https:// needs")]
    NoAuthorities,
    /// An address does not read as one.
    #[error("`{address}` is no e-mail address")]
    Address {
        /// The address.
        address: String,
        /// Why.
        source: lettre::address::AddressError,
    },
    /// Its authority is unknown.
    #[error("cannot read certificates from {}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// TLS towards the mail server cannot be set up.
    #[error("cannot set up TLS towards the mail server")]
    Tls(#[source] lettre::transport::smtp::Error),
}

/// A URL without what may be secret in it: its scheme and host.
fn public(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}/…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_do_not_show_what_is_secret_in_a_url() {
        assert_eq!(public("https://hooks.example.org/services/T0/B0/s3cret?x=y"), "https://hooks.example.org/…");
        assert_eq!(public("https://user:pw@example.org:8443/x"), "https://example.org:8443/…");
        assert_eq!(public("https://example.org"), "https://example.org/…");
    }
}
