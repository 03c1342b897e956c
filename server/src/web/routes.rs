//! Which path shows what.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use vsync_protocol::id::MachineName;
use vsync_protocol::wire::JobListing;

use super::json::{day_json, job_json, server_json, volume_json};
use super::{StatusConfig, health, metrics};
use crate::alerts::alerts;
use crate::archive::ArchiveError;
use crate::catalog::Group;
use crate::overview::{View, Viewer};
use crate::words::report;

/// Answers that are put together at a time.
const TURNS: usize = 2;

/// How far back a volume's days go: a quarter of a year, in milliseconds.
const DAYS: i64 = 92 * 24 * 3_600_000;

/// Backups of each volume, and jobs of all of them, that are shown one by one.
const HISTORY: u32 = 100;

/// Bytes of jobs in a list.
const JOBS_BUDGET: usize = 256 << 10;

const TEXT: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";

/// The page for people. It fetches `/status.json` and nothing else, from nowhere else.
const PAGE: &str = include_str!("page.html");
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What is shown.
pub(super) struct Site {
    config: StatusConfig,
    viewer: Arc<Viewer>,
    turns: Semaphore,
}

/// An answer before it is one of HTTP.
pub(super) struct Page {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) body: String,
}

impl Page {
    /// Plain text.
    pub(super) fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, kind: TEXT, body: body.into() }
    }

    fn ok(kind: &'static str, body: String) -> Self {
        Self { status: StatusCode::OK, kind, body }
    }
}

impl From<Page> for Response<Full<Bytes>> {
    fn from(page: Page) -> Self {
        let mut response = Self::new(Full::new(Bytes::from(page.body)));
        *response.status_mut() = page.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
        if page.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

impl Site {
    pub(super) fn new(config: StatusConfig, viewer: Arc<Viewer>) -> Self {
        Self { config, viewer, turns: Semaphore::new(TURNS) }
    }

    /// Answers a request, whose body nobody reads.
    pub(super) async fn answer<B>(self: &Arc<Self>, request: &Request<B>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here\n").into();
        }
        let path = request.uri().path().to_owned();
        let _turn = self.turns.acquire().await;
        let site = Arc::clone(self);
        // Catalog and disk block.
        let page = tokio::task::spawn_blocking(move || site.page(&path)).await;
        page.unwrap_or_else(|_| Page::text(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n")).into()
    }

    fn page(&self, path: &str) -> Page {
        let page = match path {
            "/" => Ok(Page::ok(HTML, PAGE.to_owned())),
            "/metrics" => self.look().map(|view| Page::ok(METRICS, metrics::text(&view))),
            "/health" => Ok(health::server(&self.viewer.archive)),
            "/health/backup" => self.look().map(|view| health::backup(&view)),
            "/status.json" => self.status().map(|status| Page::ok(JSON, format!("{status}\n"))),
            _ => Ok(Page::text(
                StatusCode::NOT_FOUND,
                "there are /, /metrics, /health, /health/backup and /status.json\n",
            )),
        };
        page.unwrap_or_else(|error| {
            tracing::error!("the status cannot be shown: {}", report(&error));
            Page::text(StatusCode::INTERNAL_SERVER_ERROR, "the store failed; the server's log says more\n")
        })
    }

    fn look(&self) -> Result<View, ArchiveError> {
        self.viewer.look(None::<&MachineName>)
    }

    /// Everything at once.
    fn status(&self) -> Result<Value, ArchiveError> {
        let view = self.look()?;
        let overview = &view.overview;
        let catalog = self.viewer.archive.catalog();
        let now = overview.server.now;
        let mut volumes = Vec::new();
        for standing in &overview.volumes {
            let group = Group { source: standing.source.clone(), volume: standing.volume.clone() };
            let of_volume = JobListing {
                volume: Some(group.volume.clone()),
                source: Some(group.source.clone()),
                limit: HISTORY,
                ..JobListing::default()
            };
            let mut volume = volume_json(standing, now);
            let days = catalog.days(&group, now.saturating_sub(DAYS))?;
            volume["days"] = days.iter().map(day_json).collect();
            volume["history"] = catalog.jobs(&of_volume, None, JOBS_BUDGET)?.iter().map(job_json).collect();
            volumes.push(volume);
        }
        let all = JobListing { limit: HISTORY, ..JobListing::default() };
        let jobs: Value = catalog.jobs(&all, None, JOBS_BUDGET)?.iter().map(job_json).collect();
        let mut server = server_json(overview);
        server["name"] = self.config.server.as_str().into();
        server["realm"] = self.config.realm.as_str().into();
        let alerts = alerts(&view);
        Ok(json!({ "server": server, "alerts": alerts, "volumes": volumes, "jobs": jobs }))
    }
}
