//! News as a JSON document posted to a URL. Its `text` is what Slack, Mattermost and others of their kind show; the
//! rest is for programs.

use super::{SinkError, http, public};
use crate::alerts::{Event, Message, Severity, Sink};
use serde_json::{Value, json};
use ureq::Agent;

/// A URL that takes news.
pub struct Webhook {
    name: String,
    agent: Agent,
    url: String,
}

impl Webhook {
    /// News go to `url`.
    ///
    /// # Errors
    /// When it is no URL, or HTTPS cannot be set up.
    pub fn new(url: String) -> Result<Self, SinkError> {
        Ok(Self { name: format!("webhook {}", public(&url)), agent: http::agent(&url)?, url })
    }
}

impl Sink for Webhook {
    fn name(&self) -> &str {
        &self.name
    }

    fn tell(&mut self, message: &Message) -> Result<(), String> {
        let body = document(message).to_string();
        let request = self.agent.post(&self.url).header("Content-Type", "application/json");
        http::accepted(request.send(body.as_bytes()))
    }
}

fn document(message: &Message) -> Value {
    let news = message.news.iter().map(|news| {
        json!({
            "event": news.event, "severity": news.alert.severity, "rule": news.alert.rule, "about": news.alert.about,
            "text": news.alert.text, "since": time(news.since),
        })
    });
    json!({
        "text": text(message), "server": message.server, "at": time(message.at), "news": news.collect::<Vec<_>>(),
    })
}

/// A line for each piece of news; the colour is what is seen from afar.
fn text(message: &Message) -> String {
    let lines = message.news.iter().map(|news| {
        let sign = match (news.event, news.alert.severity) {
            (Event::Recovered, _) => "🟢",
            (_, Severity::Critical) => "🔴",
            (_, Severity::Warning) => "🟡",
        };
        format!("{sign} vsync {}: {news}", message.server)
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn time(millis: i64) -> Option<String> {
    jiff::Timestamp::from_millisecond(millis).ok().map(|time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alerts::{Alert, News};

    #[test]
    fn a_document_for_people_and_for_programs() {
        let alert = Alert {
            rule: "overdue".into(),
            about: "science/data".into(),
            severity: Severity::Critical,
            text: "science/data was last backed up 38 h ago".into(),
            passing: false,
        };
        let over = News { event: Event::Recovered, alert: alert.clone(), since: 1_000 };
        let began = News { event: Event::Began, alert, since: 2_000 };
        let message = Message { server: "annex2".into(), at: 3_000, news: vec![began, over] };
        let document = document(&message);
        assert_eq!(
            document["text"],
            "🔴 vsync annex2: critical: science/data was last backed up 38 h ago\n\
             🟢 vsync annex2: over: science/data was last backed up 38 h ago"
        );
        assert_eq!(document["news"][0]["event"], "began");
        assert_eq!(document["news"][1]["since"], "1970-01-01T00:00:01Z");
        assert_eq!(document["news"][0]["severity"], "critical");
    }
}
