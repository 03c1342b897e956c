//! `vsync server notify`, and the ways of telling people that `[[notify]]` gives a server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vsync_protocol::id::MachineName;
use vsync_server::alerts::{Alert, Event, Mail, Message, News, Notify, Ping, Severity, Sink, SinkError, Webhook};

use super::super::GlobalArgs;
use super::super::context::Context;
use super::super::output;
use super::super::report::{Exit, Failure};
use super::own_entry;
use crate::config::{Config, SmtpTls, Way, Written};
use crate::keys::source;

/// How often watchdogs are told that all is well.
const REASSURE_EVERY: Duration = Duration::from_secs(300);

/// Send a test message to everyone whom this server tells when something is wrong
///
/// Those are the `[[notify]]` entries of vsync.toml: webhooks, e-mail, and watchdogs that raise the alarm when
/// they hear nothing. A running server is not needed, and not disturbed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync server notify\n  vsync server notify --as annex2")]
pub(in super::super) struct NotifyArgs {}

impl NotifyArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let server = own_entry(&context)?;
        let name = &server.machine.name;
        let mut sinks = sinks(&context.config, name)?;
        if sinks.is_empty() {
            let message = format!("nobody is told when something is wrong with {name}");
            let hint = "add a [[notify]] entry with `webhook`, `mail-to` or `ping` to vsync.toml".to_owned();
            return Err(Failure::new(Exit::NotFound, message).hint(hint));
        }
        let message = trial(name);
        let mut failed = 0;
        for sink in &mut sinks {
            let outcome = sink.tell(&message).and_then(|()| sink.all_is_well());
            failed += usize::from(outcome.is_err());
            if global.json {
                output::json(&serde_json::json!({ "to": sink.name(), "error": outcome.err() }))?;
            } else {
                let word = outcome.map_or_else(|error| format!("failed: {error}"), |()| "told".to_owned());
                output::line(format_args!("{}: {word}", sink.name()))?;
            }
        }
        if failed == 0 {
            return Ok(Exit::Exact);
        }
        Err(Failure::new(Exit::Failed, format!("{failed} of {} could not be told", sinks.len()))
            .hint("correct their [[notify]] entries in vsync.toml, and try again".to_owned()))
    }
}

fn trial(server: &MachineName) -> Message {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = i64::try_from(since_epoch.as_millis()).unwrap_or_default();
    let alert = Alert {
        rule: "test".to_owned(),
        about: String::new(),
        severity: Severity::Warning,
        text: format!("a test by hand; nothing is wrong with {server}"),
        passing: true,
    };
    Message { server: server.to_string(), at, news: vec![News { event: Event::Began, alert, since: at }] }
}

/// How a server tells people; none if nobody is to be told.
pub(super) fn notify(config: &Config, name: &MachineName, every: Duration) -> Result<Option<Notify>, Failure> {
    let sinks = sinks(config, name)?;
    let notify = Notify { server: name.to_string(), sinks, every, reassure_every: REASSURE_EVERY };
    Ok((!notify.sinks.is_empty()).then_some(notify))
}

fn sinks(config: &Config, name: &MachineName) -> Result<Vec<Box<dyn Sink>>, Failure> {
    config.notify.iter().filter(|entry| entry.is_for(name)).map(|entry| sink(&entry.way)).collect()
}

fn sink(way: &Way) -> Result<Box<dyn Sink>, Failure> {
    Ok(match way {
        Way::Webhook(url) => Box::new(Webhook::new(read(url)?)?),
        Way::Ping(url) => Box::new(Ping::new(read(url)?)?),
        Way::Mail { to, from, smtp, password } => {
            let password = password.as_ref().map(|variable| secret(variable)).transpose()?;
            let smtp = vsync_server::alerts::Smtp {
                host: smtp.host.clone(),
                port: smtp.port,
                tls: match smtp.tls {
                    SmtpTls::None => vsync_server::alerts::SmtpTls::None,
                    SmtpTls::Upgraded => vsync_server::alerts::SmtpTls::Upgraded,
                    SmtpTls::Whole => vsync_server::alerts::SmtpTls::Whole,
                },
                user: smtp.user.clone(),
                ca: smtp.ca.clone(),
            };
            Box::new(Mail::new(from, to, &smtp, password)?)
        }
    })
}

fn read(written: &Written) -> Result<String, Failure> {
    match written {
        Written::Here(text) => Ok(text.clone()),
        Written::Variable(name) => secret(name),
    }
}

fn secret(variable: &str) -> Result<String, Failure> {
    match source::find(variable) {
        Ok(Some(secret)) => Ok(secret.to_string()),
        Ok(None) => Err(Failure::new(Exit::Usage, format!("{variable}, which [[notify]] names, is not set"))
            .hint(format!("set {variable}, or {variable}_FILE to a file with it, or {variable}_COMMAND"))),
        Err(error) => Err(Failure::of(&error, Exit::Usage)),
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        Self::of(&error, Exit::Usage).hint("correct the [[notify]] entry in vsync.toml".to_owned())
    }
}
