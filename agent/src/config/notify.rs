//! `[[notify]]`: whom a server tells when something is wrong.

use serde::Deserialize;
use toml::Spanned;
use vsync_protocol::id::MachineName;

use super::check::Check;
use super::raw::Text;
use super::{Notify, Smtp, SmtpTls, Way, Written};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct RawNotify {
    #[serde(default)]
    servers: Vec<Text>,
    webhook: Option<Text>,
    ping: Option<Text>,
    #[serde(default)]
    mail_to: Vec<Text>,
    mail_from: Option<Text>,
    smtp: Option<Text>,
    smtp_password: Option<Text>,
    ca: Option<Text>,
}

impl Check<'_> {
    /// One way of telling people.
    pub(super) fn notify(&mut self, raw: Spanned<RawNotify>, known: &[String]) -> Option<Notify> {
        let span = raw.span();
        let raw = raw.into_inner();
        let known = || known.iter().map(String::as_str);
        for server in &raw.servers {
            self.known(server, known(), "is not one of the [[servers]]");
        }
        let servers: Vec<MachineName> = raw.servers.iter().filter_map(|server| self.parse(server)).collect();
        let mail = !raw.mail_to.is_empty();
        if u8::from(raw.webhook.is_some()) + u8::from(raw.ping.is_some()) + u8::from(mail) != 1 {
            self.problem(&span, "[[notify]] needs one of `webhook`, `mail-to` and `ping`; make an entry for each");
            return None;
        }
        let foreign = [&raw.mail_from, &raw.smtp, &raw.smtp_password, &raw.ca];
        if let Some(text) = foreign.into_iter().flatten().next().filter(|_| !mail) {
            self.problem(&text.span(), "this belongs to `mail-to`, which is not here");
        }
        let way = match (&raw.webhook, &raw.ping) {
            (Some(url), _) => Way::Webhook(self.url(url)?),
            (_, Some(url)) => Way::Ping(self.url(url)?),
            _ => self.mail(&raw, &span)?,
        };
        Some(Notify { servers, way })
    }

    /// A URL, or the variable that holds it.
    fn url(&mut self, text: &Text) -> Option<Written> {
        let written = Written::read(text.get_ref());
        if let Written::Here(url) = &written
            && !["http://", "https://"].iter().any(|scheme| url.starts_with(scheme))
        {
            // Not quoted: whatever it is, it may be secret.
            self.problem(
                &text.span(),
                "this is neither an http or https URL, nor a variable that holds one (\"$NAME\")",
            );
            return None;
        }
        Some(written)
    }

    fn mail(&mut self, raw: &RawNotify, span: &std::ops::Range<usize>) -> Option<Way> {
        let (Some(from), Some(smtp)) = (&raw.mail_from, &raw.smtp) else {
            self.problem(span, "`mail-to` needs `mail-from` and `smtp` beside it");
            return None;
        };
        for address in raw.mail_to.iter().chain([from]) {
            if !address.get_ref().contains('@') {
                let message = format!("`{}` is no e-mail address", address.get_ref());
                self.problem(&address.span(), message);
            }
        }
        let password = raw.smtp_password.as_ref().and_then(|text| match Written::read(text.get_ref()) {
            Written::Variable(name) => Some(name),
            Written::Here(_) => {
                let at = text.span().start;
                let message = "`smtp-password` must name a variable, as in \"$SMTP_PASSWORD\": this file is in git";
                self.problem(&(at..at), message);
                None
            }
        });
        let ca = raw.ca.as_ref().map(|path| self.absolute("ca", path));
        let smtp = self.smtp(smtp, ca.map_or(Some(None), |path| path.map(Some))?)?;
        Some(Way::Mail {
            to: raw.mail_to.iter().map(|to| to.get_ref().clone()).collect(),
            from: from.get_ref().clone(),
            smtp,
            password,
        })
    }

    /// `smtps://USER@HOST:PORT`: TLS from the beginning; `smtp://`: after STARTTLS; `smtp+plain://`: none.
    fn smtp(&mut self, text: &Text, ca: Option<std::path::PathBuf>) -> Option<Smtp> {
        let parts = text.get_ref().split_once("://").and_then(|(scheme, rest)| {
            let (tls, usual) = match scheme {
                "smtps" => (SmtpTls::Whole, 465),
                "smtp" => (SmtpTls::Upgraded, 587),
                "smtp+plain" => (SmtpTls::None, 25),
                _ => return None,
            };
            let (user, host) = rest.rsplit_once('@').map_or((None, rest), |(user, host)| (Some(user.to_owned()), host));
            let (host, port) = match host.rsplit_once(':') {
                Some((host, port)) => (host, port.parse().ok()?),
                None => (host, usual),
            };
            let plain = !host.is_empty() && !host.contains('/') && user.as_ref().is_none_or(|user| !user.contains(':'));
            plain.then(|| Smtp { host: host.to_owned(), port, tls, user, ca })
        });
        if parts.is_none() {
            let message = "`smtp` is of the form smtps://USER@HOST, smtp://USER@HOST:PORT (STARTTLS) or \
                           smtp+plain://localhost; the password belongs into `smtp-password`";
            self.problem(&text.span(), message);
        }
        parts
    }
}
