//! How long a server may keep an agent waiting, and how often the same thing is tried.
//!
//! A server that is silent while its connection lives, or that breaks every answer off, would
//! otherwise hold a command for ever.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use vsync_protocol::wire::Request;

use super::RemoteError;

/// How long a broken connection is made anew, or an answer waited for, before the work is given up.
const DEFAULT: Duration = Duration::from_secs(180);

/// What may take a server long, because it walks trees or waits for its disk, may take so
/// many times longer.
const LONG_WORK: u32 = 10;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long a server may stay away or silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(DEFAULT)
    }
}

impl Patience {
    /// So long; a multiple of it for answers that are much work.
    #[must_use]
    pub const fn new(time: Duration) -> Self {
        Self(time)
    }

    /// How long the answer to `request` may take.
    fn for_answer(self, request: &Request) -> Duration {
        match request {
            Request::Flush { .. }
            | Request::Commit { .. }
            | Request::Forget { .. }
            | Request::Undelete { .. }
            | Request::Plan(_) => self.0 * LONG_WORK,
            _ => self.0,
        }
    }

    /// Waits for the answer to `request`.
    pub(super) async fn answer<T>(
        self,
        request: &Request,
        server: &str,
        answer: impl Future<Output = Result<T, RemoteError>>,
    ) -> Result<T, RemoteError> {
        within(self.for_answer(request), server, answer).await
    }

    /// Waits for the next part of an answer that has begun.
    pub(super) async fn part<T>(
        self,
        server: &str,
        part: impl Future<Output = Result<T, RemoteError>>,
    ) -> Result<T, RemoteError> {
        within(self.0, server, part).await
    }

    /// Tries that begin now.
    pub(super) const fn tries(self) -> Tries {
        Tries { patience: self, since: None, pause: FIRST_PAUSE }
    }
}

async fn within<T>(
    time: Duration,
    server: &str,
    answer: impl Future<Output = Result<T, RemoteError>>,
) -> Result<T, RemoteError> {
    timeout(time, answer).await.unwrap_or_else(|_| {
        let reason = format!("it is silent for {} s", time.as_secs());
        Err(RemoteError::Lost { server: server.to_owned(), reason })
    })
}

/// The same thing tried again and again, as long as patience lasts.
pub(super) struct Tries {
    patience: Patience,
    /// When the first try failed after which nothing has come about.
    since: Option<Instant>,
    pause: Duration,
}

impl Tries {
    /// Something has come about: patience begins anew.
    pub(super) const fn progressed(&mut self) {
        self.since = None;
        self.pause = FIRST_PAUSE;
    }

    /// A try has failed with `error`. Waits a little if another may help and there is time.
    ///
    /// # Errors
    /// `error`, when it is final or patience is at its end.
    pub(super) async fn again(&mut self, error: RemoteError) -> Result<(), RemoteError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if !error.is_transient() || since.elapsed() + self.pause >= self.patience.0 {
            return Err(error);
        }
        tracing::info!("{error}; trying again in {} ms", self.pause.as_millis());
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}
