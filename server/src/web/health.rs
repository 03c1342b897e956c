//! Answers for probes: 200 when all is well, 503 and the reason when not.

use std::time::Duration;

use hyper::StatusCode;
use vsync_protocol::wire::Standing;

use super::routes::Page;
use crate::archive::Archive;
use crate::overview::View;
use crate::words::report;

/// Whether backups would be taken now.
pub(super) fn server(archive: &Archive) -> Page {
    match archive.check_writable() {
        Ok(()) => Page::text(StatusCode::OK, "ok\n"),
        Err(error) => {
            Page::text(StatusCode::SERVICE_UNAVAILABLE, format!("no backups are taken: {}\n", report(&error)))
        }
    }
}

/// Whether every declared volume has a snapshot that is young enough. A configuration that
/// cannot be understood declares nothing, which must not look as if all were well.
pub(super) fn backup(view: &View) -> Page {
    let overview = &view.overview;
    if !view.configured {
        let message = "what is to be backed up is not known: the server's vsync.toml cannot be understood\n";
        return Page::text(StatusCode::SERVICE_UNAVAILABLE, message);
    }
    let late = overview.volumes.iter().filter(|standing| standing.is_overdue(overview.server.now));
    let lines: String = late.map(|standing| line(standing, overview.server.now)).collect();
    if lines.is_empty() {
        return Page::text(StatusCode::OK, "ok\n");
    }
    Page::text(StatusCode::SERVICE_UNAVAILABLE, lines)
}

fn line(standing: &Standing, now: i64) -> String {
    let hours = |millis: u64| Duration::from_millis(millis).as_secs_f64() / 3600.0;
    let most = standing.max_age.map_or(0.0, hours);
    let Standing { volume, source, .. } = standing;
    match standing.age(now) {
        None => format!("never backed up: {volume} of {source}\n"),
        Some(age) => {
            let age = hours(age);
            format!("overdue: {volume} of {source}: the last snapshot is {age:.1} h old, it may be {most:.1} h\n")
        }
    }
}
