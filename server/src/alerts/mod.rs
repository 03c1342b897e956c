//! What somebody must be told of, and telling them.
//!
//! [`rules`] judge an overview: what is wrong now. [`teller`] compares that with what was told
//! already: news. [`herald`] is the thread that hands news to [`Sink`]s, and tries again what
//! could not be delivered.

pub(crate) mod herald;
mod rules;
mod sinks;
mod teller;

use serde::{Deserialize, Serialize};

pub use herald::Notify;
pub(crate) use rules::alerts;
pub use sinks::{Mail, Ping, SinkError, Smtp, SmtpTls, Webhook};
pub use teller::{Event, News};

/// How bad it is. Later ones are graver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// To be looked at during the day.
    Warning,
    /// Data may not come back.
    Critical,
}

impl Severity {
    /// The severity in a word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// What is wrong, in a word: `overdue`, `failing`, `never`, `size`, `space`, `damage`, `verify`, `held`,
    /// `clock`, `store`, `collection`, `scrub`, `configuration`, `catalog`.
    pub rule: String,
    /// With what: `machine/volume`, or nothing for the server as a whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// How bad it is.
    pub severity: Severity,
    /// In one line, what is wrong.
    pub text: String,
    /// Whether it happened once, rather than lasts until it is mended: it then has no end to tell.
    #[serde(default)]
    pub passing: bool,
}

/// News for people, all that there are at the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The server that tells.
    pub server: String,
    /// When, in milliseconds since 1970 by its clock.
    pub at: i64,
    /// What there is to tell; never nothing.
    pub news: Vec<News>,
}

impl Message {
    /// The message in one line: the gravest news, and how many others there are.
    #[must_use]
    pub fn headline(&self) -> String {
        // Of those that are equally grave, the first.
        let gravest = self.news.iter().rev().max_by_key(|news| (news.event != Event::Recovered, news.alert.severity));
        let others = match self.news.len().saturating_sub(1) {
            0 => String::new(),
            count => format!(" (and {count} more)"),
        };
        gravest.map_or_else(String::new, |news| format!("{news}{others}"))
    }
}

/// Where messages go.
pub trait Sink: Send {
    /// What it is, without any secret: for logs.
    fn name(&self) -> &str;

    /// Delivers a message.
    ///
    /// # Errors
    /// In words, when it could not be delivered; it will be tried again.
    fn tell(&mut self, message: &Message) -> Result<(), String>;

    /// Says that all is well, to somebody who becomes uneasy when nobody does. Most sinks need not hear it.
    ///
    /// # Errors
    /// In words, when that could not be said.
    fn all_is_well(&mut self) -> Result<(), String> {
        Ok(())
    }
}
