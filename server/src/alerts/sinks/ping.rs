//! A watchdog elsewhere that becomes uneasy when it is not told that all is well: the only alarm that a dead server
//! still raises.

use super::{SinkError, http, public};
use crate::alerts::{Message, Sink};
use ureq::Agent;

/// A URL that is asked for while nothing critical is wrong.
pub struct Ping {
    name: String,
    agent: Agent,
    url: String,
}

impl Ping {
    /// The watchdog listens at `url`.
    ///
    /// # Errors
    /// When it is no URL, or HTTPS cannot be set up.
    pub fn new(url: String) -> Result<Self, SinkError> {
        Ok(Self { name: format!("watchdog {}", public(&url)), agent: http::agent(&url)?, url })
    }
}

impl Sink for Ping {
    fn name(&self) -> &str {
        &self.name
    }

    /// Silence is the message.
    fn tell(&mut self, _: &Message) -> Result<(), String> {
        Ok(())
    }

    fn all_is_well(&mut self) -> Result<(), String> {
        http::accepted(self.agent.get(&self.url).call())
    }
}
