//! News by e-mail.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lettre::message::{Mailbox, header::ContentType};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{SmtpTransport, Transport as _};

use super::SinkError;
use crate::alerts::{Message, Sink};

/// A mail server that is silent for so long is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server that takes mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smtp {
    /// Its host's name, which its certificate must show.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is encrypted.
    pub tls: SmtpTls,
    /// As whom to log in; none: not at all.
    pub user: Option<String>,
    /// An authority to believe besides those that this machine believes: a file in PEM format.
    pub ca: Option<PathBuf>,
}

/// How a connection to a mail server is encrypted. What is asked for is had, or no mail is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmtpTls {
    /// Not at all: for a server on this machine.
    None,
    /// After STARTTLS.
    Upgraded,
    /// From its beginning.
    Whole,
}

/// People who get mail.
pub struct Mail {
    name: String,
    from: Mailbox,
    to: Vec<Mailbox>,
    transport: SmtpTransport,
}

impl Mail {
    /// Mail from `from` to `to`, by way of `smtp`.
    ///
    /// # Errors
    /// When an address is none, or TLS cannot be set up.
    pub fn new(from: &str, to: &[String], smtp: &Smtp, password: Option<String>) -> Result<Self, SinkError> {
        let to: Vec<Mailbox> = to.iter().map(|address| mailbox(address)).collect::<Result<_, _>>()?;
        let name = format!("mail by way of {}:{}", smtp.host, smtp.port);
        Ok(Self { name, from: mailbox(from)?, to, transport: transport(smtp, password)? })
    }
}

fn mailbox(address: &str) -> Result<Mailbox, SinkError> {
    address.parse().map_err(|source| SinkError::Address { address: address.to_owned(), source })
}

fn transport(smtp: &Smtp, password: Option<String>) -> Result<SmtpTransport, SinkError> {
    let parameters = || tls(&smtp.host, smtp.ca.as_deref());
    let tls = match smtp.tls {
        SmtpTls::None => Tls::None,
        SmtpTls::Upgraded => Tls::Required(parameters()?),
        SmtpTls::Whole => Tls::Wrapper(parameters()?),
    };
    let mut builder = SmtpTransport::builder_dangerous(&smtp.host).port(smtp.port).tls(tls).timeout(Some(PATIENCE));
    if let (Some(user), Some(password)) = (&smtp.user, password) {
        builder = builder.credentials(Credentials::new(user.clone(), password));
    }
    Ok(builder.build())
}

fn tls(host: &str, ca: Option<&Path>) -> Result<TlsParameters, SinkError> {
    let mut builder = TlsParameters::builder(host.to_owned());
    if let Some(path) = ca {
        let unreadable = |source| SinkError::Certificate { path: path.to_owned(), source };
        let pem = std::fs::read(path).map_err(unreadable)?;
        builder = builder.add_root_certificate(Certificate::from_pem(&pem).map_err(SinkError::Tls)?);
    }
    builder.build().map_err(SinkError::Tls)
}

impl Sink for Mail {
    fn name(&self) -> &str {
        &self.name
    }

    fn tell(&mut self, message: &Message) -> Result<(), String> {
        let mut mail = lettre::Message::builder()
            .from(self.from.clone())
            .subject(format!("[vsync {}] {}", message.server, message.headline()))
            .header(ContentType::TEXT_PLAIN);
        for to in &self.to {
            mail = mail.to(to.clone());
        }
        let mail = mail.body(body(message)).map_err(|error| error.to_string())?;
        self.transport.send(&mail).map(drop).map_err(|error| error.to_string())
    }
}

fn body(message: &Message) -> String {
    let mut lines: Vec<String> = message
        .news
        .iter()
        .map(|news| {
            let since =
                jiff::Timestamp::from_millisecond(news.since).map(|time| time.strftime("%F %H:%M UTC").to_string());
            format!("{news} (since {})", since.unwrap_or_default())
        })
        .collect();
    lines.push(String::new());
    lines.push(format!("`vsync status --server {}` shows how all volumes are.", message.server));
    lines.join("\n")
}
