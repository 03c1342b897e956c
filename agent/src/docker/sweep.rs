//! Helpers that a crash left behind are removed: they still hold the keys that they were handed.

use std::collections::HashMap;

use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::ListContainersOptionsBuilder;
use jiff::{SignedDuration, Timestamp};

use super::engine::Engine;
use super::helper::{HELPER_LABEL, remove};

impl Engine {
    /// Removes helpers that do not run and that nobody can be waiting for. Failures are logged: they hinder nobody.
    pub(super) async fn sweep_helpers(&self) {
        let filters = HashMap::from([("label", vec![HELPER_LABEL]), ("status", vec!["created", "exited", "dead"])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let idle = self.client().list_containers(Some(options)).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot look for helpers that a crash left behind");
            Vec::new()
        });
        for id in idle.into_iter().filter_map(|container| container.id) {
            let Ok(inspected) = self.client().inspect_container(&id, None).await else { continue };
            if !is_abandoned(&inspected, Timestamp::now()) {
                continue;
            }
            match remove(self, &id).await {
                Ok(()) => tracing::info!(container = id, "Removed a helper that a crash had left behind"),
                Err(error) => tracing::warn!(%error, "A helper that a crash had left behind is still there"),
            }
        }
    }
}

/// Another vsync removes its helper seconds after it ended, and starts it seconds after it was created.
fn is_abandoned(container: &ContainerInspectResponse, now: Timestamp) -> bool {
    let finished = container.state.as_ref().and_then(|state| state.finished_at.as_deref());
    let created = container.created.as_deref();
    let last = [created, finished].into_iter().flatten().filter_map(|time| time.parse::<Timestamp>().ok()).max();
    last.is_some_and(|last| now.duration_since(last) > ABANDONED_AFTER)
}

const ABANDONED_AFTER: SignedDuration = SignedDuration::from_mins(10);

#[cfg(test)]
mod tests {
    use bollard::models::ContainerState;

    use super::*;

    #[test]
    fn a_helper_is_abandoned_some_time_after_its_last_sign_of_life() {
        let never = "0001-01-01T00:00:00Z";
        let table = [
            ("2026-11-20T10:00:00Z", never, false),
            ("2026-11-20T09:40:00.5Z", never, true),
            ("2026-11-19T10:00:00Z", "2026-11-20T09:59:00Z", false),
            ("2026-11-19T10:00:00Z", "2026-11-20T10:40:00+01:00", true),
            ("not a time", "", false),
        ];
        for (created, finished, expected) in table {
            let container = ContainerInspectResponse {
                created: Some(created.into()),
                state: Some(ContainerState { finished_at: Some(finished.into()), ..Default::default() }),
                ..Default::default()
            };
            let now = "2026-11-20T10:00:01Z".parse().unwrap();
            assert_eq!(is_abandoned(&container, now), expected, "{created} {finished}");
        }
    }
}
