//! What is said when a snapshot is not there: what is missing, and what was perhaps meant.

use std::collections::BTreeSet;

use jiff::Zoned;
use vsync_protocol::id::{MachineName, VolumeName};

use super::report::{Exit, Failure};
use super::session::Session;
use super::spec::{At, Spec};
use super::time;
use crate::suggest;

/// What to do when nothing is near.
const LIST: &str = "`vsync snapshots` lists what there is";

/// The volumes that the configuration or the server names, each with a machine that it comes from.
struct Series(BTreeSet<(VolumeName, MachineName)>);

impl Series {
    fn of(session: &Session) -> Self {
        let mut known = BTreeSet::new();
        for machine in session.context.config.machines() {
            known.extend(machine.backup.iter().map(|volume| (volume.clone(), machine.name.clone())));
        }
        // Streams are in no configuration. A server that does not say is no reason to say less.
        if let Ok(overview) = session.remote.overview() {
            known.extend(overview.volumes.into_iter().map(|standing| (standing.volume, standing.source)));
        }
        Self(known)
    }

    fn volume(&self, name: &VolumeName) -> bool {
        self.0.iter().any(|(volume, _)| volume == name)
    }

    fn source(&self, name: &MachineName) -> bool {
        self.0.iter().any(|(_, source)| source == name)
    }

    /// The machines that `volume` comes from; all if none is named.
    fn sources(&self, volume: Option<&VolumeName>) -> BTreeSet<&str> {
        let of = |(one, _): &&(VolumeName, MachineName)| volume.is_none_or(|volume| one == volume);
        self.0.iter().filter(of).map(|(_, source)| source.as_str()).collect()
    }

    /// What was perhaps meant instead of `volume` and `source`.
    fn advice(&self, volume: Option<&VolumeName>, source: Option<&MachineName>) -> String {
        if let Some(volume) = volume.filter(|volume| !self.volume(volume)) {
            let near = suggest::nearest(volume.as_str(), self.0.iter().map(|(volume, _)| volume.as_str()));
            return near.map_or_else(|| LIST.to_owned(), |near| format!("did you mean {near}? {LIST}"));
        }
        let sources = self.sources(volume);
        match source {
            Some(source) if !sources.contains(source.as_str()) && !sources.is_empty() => {
                let all: Vec<&str> = sources.into_iter().collect();
                let near = suggest::nearest(source.as_str(), all.iter().copied());
                let near = near.map_or_else(String::new, |near| format!("did you mean {near}? "));
                let what = volume.map_or("snapshots", VolumeName::as_str);
                format!("{near}{what} can come from {}; {LIST}", all.join(", "))
            }
            _ => LIST.to_owned(),
        }
    }
}

/// ` of VOLUME from SOURCE`, as far as they are named.
fn of(volume: Option<&VolumeName>, source: Option<&MachineName>) -> String {
    let volume = volume.map(|volume| format!(" of {volume}")).unwrap_or_default();
    let source = source.map(|source| format!(" from {source}")).unwrap_or_default();
    format!("{volume}{source}")
}

impl Session {
    /// Nothing of `volume` from `source` is there.
    pub(super) fn no_snapshot(&self, volume: Option<&VolumeName>, source: Option<&MachineName>) -> Failure {
        let heading = format!("{} has no snapshot{}", self.remote.server(), of(volume, source));
        Failure::new(Exit::NotFound, heading).hint(Series::of(self).advice(volume, source))
    }

    /// That nothing of `volume` from `source` is there says little, unless nobody has ever heard of them.
    pub(super) fn check_known(&self, volume: Option<&VolumeName>, source: Option<&MachineName>) -> Result<(), Failure> {
        if volume.is_none() && source.is_none() {
            return Ok(());
        }
        let known = Series::of(self);
        if volume.is_none_or(|volume| known.volume(volume)) && source.is_none_or(|source| known.source(source)) {
            return Ok(());
        }
        Err(self.no_snapshot(volume, source))
    }

    /// The snapshot that `spec` means is not there; of its volume there are `count`.
    pub(super) fn not_found(&self, spec: &Spec, source: Option<&MachineName>, count: usize) -> Failure {
        let (server, volume) = (self.remote.server(), spec.volume.as_ref());
        let what = of(volume, source);
        let heading = match &spec.at {
            At::Id(prefix) => format!("{server} has no snapshot {prefix}{what}"),
            At::Latest(0) => format!("{server} has no snapshot{what}"),
            At::Latest(_) if count == 0 => format!("{server} has no snapshot{what} at all"),
            At::Latest(back) => {
                format!("{server} has only {count} snapshots{what}, not {}", back.saturating_add(1))
            }
            At::Time(at) => {
                format!("{server} has no snapshot{what} as of {}", time::format(*at, &Zoned::now()))
            }
        };
        let hint = if count > 0 { LIST.to_owned() } else { Series::of(self).advice(volume, source) };
        Failure::new(Exit::NotFound, heading).hint(hint)
    }
}
