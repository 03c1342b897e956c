//! A connection to a server of the realm, and finding snapshots there.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use vsync_protocol::id::{MachineName, SnapshotId, VolumeName};
use vsync_protocol::manifest::{Body, Manifest, ManifestError};
use vsync_protocol::wire::{Listing, SnapshotRecord};

use super::GlobalArgs;
use super::context::Context;
use super::moved_in;
use super::recovery;
use super::report::{Exit, Failure};
use super::server::{self, Hosted};
use super::spec::{At, Spec};
use crate::backup::Writer;
use crate::remote::{HeadStore, Identity, Remote, RemoteError, ServerAddress};
use crate::snapshot::Snapshot;
use crate::vault::Vault;

/// How many sources are looked for before none is named.
const SOURCES_PAGE: u32 = 100;

/// Milliseconds by which two clocks may differ unmentioned.
const CLOCK_TOLERANCE: u64 = 5 * 60 * 1000;

/// A machine that is connected to a server.
pub(crate) struct Session {
    pub(crate) context: Context,
    pub(crate) remote: Remote,
    /// The server, when it runs in this process; it ends after the connection.
    _hosted: Option<Hosted>,
}

/// A snapshot in the server's list, its clear part decoded.
pub(crate) struct Listed {
    pub(crate) record: SnapshotRecord,
    pub(crate) body: Body,
}

/// All that a server lists, newest first.
#[derive(Default)]
pub(crate) struct Everything {
    pub(crate) listed: Vec<Listed>,
    /// Those whose manifests cannot be read.
    pub(crate) unreadable: Vec<(SnapshotRecord, ManifestError)>,
}

impl Session {
    /// Connects to `server`, or to the only one, whose history must go on from where this machine has seen it.
    pub(crate) fn open(global: &GlobalArgs, server: Option<&MachineName>) -> Result<Self, Failure> {
        let session = Self::connect(global, server)?;
        // Whoever has only the kit has seen nothing yet.
        if global.recovery.kit.is_none() {
            session.check_history()?;
        }
        Ok(session)
    }

    /// Connects to `server`, or to the only one, whatever has become of its history.
    pub(crate) fn connect(global: &GlobalArgs, server: Option<&MachineName>) -> Result<Self, Failure> {
        match &global.recovery.kit {
            Some(kit) => recovery::open(global, kit, server),
            None => Self::with(Context::load(global)?, server),
        }
    }

    pub(crate) fn with(context: Context, server: Option<&MachineName>) -> Result<Self, Failure> {
        let configured = context.config.server(server)?;
        let name = configured.machine.name.clone();
        let key = context.registry.key_of(&name).ok_or_else(|| {
            Failure::new(Exit::NotAuthorised, format!("server {name} has no key in vsync.pub"))
                .hint(format!("run `vsync keygen {name}` and commit vsync.pub"))
        })?;
        let (address, hosted) = match &configured.address {
            Some(address) => (address.to_string(), None),
            None => {
                let hosted = server::embedded(&context.config, configured)?;
                (hosted.address().to_string(), Some(hosted))
            }
        };
        tracing::info!("connecting as {} to {name} at {address} (UDP)", context.bundle.machine);
        let identity = Identity { key: context.bundle.identity(), realm: context.bundle.realm_id };
        let remote = Remote::connect_within(context.patience, ServerAddress { name, address, key }, identity)?;
        Ok(Self::new(context, remote, hosted))
    }

    pub(crate) fn new(context: Context, remote: Remote, hosted: Option<Hosted>) -> Self {
        warn_of_clock(&remote);
        Self { context, remote, _hosted: hosted }
    }

    /// Asks for nothing when the greeting shows what was seen last.
    fn check_history(&self) -> Result<(), Failure> {
        match self.remote.check_history(&self.heads()) {
            // Nobody must be kept from a restore by a disk on which nothing can be noted; a backup insists on it.
            Err(ref error @ RemoteError::HeadFile { ref source, .. }) if source.kind() != ErrorKind::InvalidData => {
                tracing::warn!("what is seen of the history of {} is not noted: {error}", self.remote.server());
                Ok(())
            }
            checked => Ok(checked?),
        }
    }

    fn realm_dir(&self) -> PathBuf {
        self.context.realm_dir()
    }

    /// Where this machine keeps what it has seen of the server's history.
    pub(crate) fn heads(&self) -> HeadStore {
        let (machine, server) = (&self.context.bundle.machine, self.remote.server());
        HeadStore::new(self.realm_dir().join("heads").join(format!("{machine}@{server}")))
    }

    /// Where this machine keeps the tree of a volume's last snapshot.
    pub(crate) fn cache_path(&self, volume: &VolumeName) -> PathBuf {
        let (machine, server) = (&self.context.bundle.machine, self.remote.server());
        self.realm_dir().join("cache").join(format!("{machine}@{server}")).join(format!("{volume}.sqlite"))
    }

    /// Where this machine keeps what it restored into which place.
    pub(crate) fn records(&self) -> PathBuf {
        self.realm_dir().join("restored")
    }

    /// What this machine writes with.
    pub(crate) fn writer(&self) -> Result<Writer, Failure> {
        let bundle = &self.context.bundle;
        let missing = || {
            Failure::new(Exit::NotAuthorised, format!("{} holds no keys to back up with", bundle.machine)).hint(
                format!(
                    "list its volumes under `backup` in vsync.toml, then `vsync keygen {} --rotate`",
                    bundle.machine
                ),
            )
        };
        let keys = bundle.writer(bundle.epoch).ok_or_else(missing)?;
        Ok(Writer {
            realm: bundle.realm_id,
            machine: bundle.machine.clone(),
            key: bundle.identity(),
            vault: Arc::new(Vault::new(bundle.realm_id, bundle.suite, bundle.epoch, keys)),
            reader: bundle.recipient(bundle.epoch).ok_or_else(missing)?,
        })
    }

    /// The vault in which a snapshot was sealed.
    pub(crate) fn vault(&self, snapshot: &Snapshot) -> Result<Arc<Vault>, Failure> {
        let (bundle, epoch) = (&self.context.bundle, snapshot.body.epoch);
        let keys = bundle.writer(epoch).ok_or_else(|| {
            Failure::new(Exit::NotAuthorised, format!("{} holds no keys of epoch {epoch}", bundle.machine))
        })?;
        Ok(Arc::new(Vault::new(bundle.realm_id, bundle.suite, epoch, keys)))
    }

    /// Whether this machine may read at all.
    pub(crate) fn require_reader(&self) -> Result<(), Failure> {
        let bundle = &self.context.bundle;
        if bundle.reader(bundle.epoch).is_some() {
            return Ok(());
        }
        Err(Failure::new(
            Exit::NotAuthorised,
            format!("{} is a {} machine: it can back up, but read no backup", bundle.machine, bundle.role),
        )
        .hint("restore on a machine whose role is \"full\", or with the recovery kit (`--kit`)".to_owned()))
    }

    /// Opens what a reader may know of a listed snapshot.
    pub(crate) fn open_snapshot(&self, listed: &Listed) -> Result<Snapshot, Failure> {
        let bundle = &self.context.bundle;
        let signers = self.context.registry.keys_of(&listed.body.source);
        let reader = bundle.reader(listed.body.epoch);
        Ok(Snapshot::open(&listed.record.manifest, bundle.realm_id, signers, reader.as_ref())?)
    }

    /// Snapshots, newest first; stops once `enough` says so.
    pub(crate) fn list(
        &self,
        listing: &Listing,
        mut enough: impl FnMut(&Listed) -> bool,
    ) -> Result<Vec<Listed>, Failure> {
        // What cannot be read ends the list: anything may be behind it.
        let Everything { listed, unreadable } = self.list_all(listing, |one| one.is_none_or(&mut enough))?;
        match unreadable.into_iter().next() {
            None => Ok(listed),
            Some((record, error)) => Err(Failure::of(&error, Exit::Damage)
                .hint(format!("the server's manifest of snapshot {} is damaged", record.id.short()))),
        }
    }

    /// The same, with those whose manifests cannot be read beside the others; `enough` is shown
    /// none for each of them.
    pub(crate) fn list_all(
        &self,
        listing: &Listing,
        mut enough: impl FnMut(Option<&Listed>) -> bool,
    ) -> Result<Everything, Failure> {
        let Everything { mut listed, mut unreadable } = Everything::default();
        self.remote.snapshots(listing, |record| match Manifest::parse(&record.manifest) {
            Ok(manifest) => {
                let next = Listed { record: record.clone(), body: manifest.body };
                let stop = enough(Some(&next));
                listed.push(next);
                stop
            }
            Err(error) => {
                unreadable.push((record.clone(), error));
                enough(None)
            }
        })?;
        Ok(Everything { listed, unreadable })
    }

    /// The snapshot that `spec` means, from `source` if several machines have the volume.
    pub(crate) fn find(&self, spec: &Spec, source: Option<&MachineName>) -> Result<Snapshot, Failure> {
        self.require_reader()?;
        let listed = self.find_listed(spec, source)?;
        self.open_snapshot(&listed)
    }

    /// The same in the server's list, for which nobody needs to be a reader.
    pub(crate) fn find_listed(&self, spec: &Spec, source: Option<&MachineName>) -> Result<Listed, Failure> {
        let mut listing = Listing { volume: spec.volume.clone(), source: source.cloned(), ..Listing::default() };
        match &spec.at {
            At::Id(prefix) => {
                listing.prefix = Some(prefix.clone());
                listing.limit = 3;
                let mut seen = 0;
                let found = self.list(&listing, |_| {
                    seen += 1;
                    seen == 2
                })?;
                only_one(prefix, found, || self.not_found(spec, source, 0))
            }
            At::Latest(back) => {
                listing.source = self.source_of(spec, source)?;
                listing.limit = u32::try_from(back.saturating_add(1)).unwrap_or(u32::MAX).min(SOURCES_PAGE);
                let mut seen = 0;
                let mut found = self.list(&listing, |_| {
                    seen += 1;
                    seen > *back
                })?;
                if found.len() <= *back {
                    found.extend(self.imports(&listing)?);
                }
                let count = found.len();
                if count > *back { Ok(found.swap_remove(*back)) } else { Err(self.not_found(spec, source, count)) }
            }
            At::Time(time) => {
                listing.source = self.source_of(spec, source)?;
                // By the server's clock: a client's may have been wrong.
                let before = |listed: &Listed| listed.record.received <= time.as_millisecond();
                let own = self.list(&listing, before)?.pop().filter(before);
                let imported = || Ok::<_, Failure>(self.imports(&listing)?.into_iter().find(before));
                own.map_or_else(imported, |own| Ok(Some(own)))?.ok_or_else(|| self.not_found(spec, source, 0))
            }
        }
    }

    /// What was taken over from privateer, where one volume of one source is asked for.
    fn imports(&self, listing: &Listing) -> Result<Vec<Listed>, Failure> {
        match (&listing.volume, &listing.source) {
            (Some(volume), Some(source)) => moved_in::imports(self, volume, source),
            _ => Ok(Vec::new()),
        }
    }

    /// The source to take a volume from: the one named, the one configured, the only one there is.
    fn source_of(&self, spec: &Spec, source: Option<&MachineName>) -> Result<Option<MachineName>, Failure> {
        let Some(volume) = &spec.volume else { return Ok(source.cloned()) };
        if let Some(source) = source {
            return Ok(Some(source.clone()));
        }
        let configured: Vec<MachineName> = self
            .context
            .config
            .machines()
            .filter(|machine| machine.backup.contains(volume))
            .map(|machine| machine.name.clone())
            .collect();
        if let [only] = configured.as_slice() {
            return Ok(Some(only.clone()));
        }
        let listing = Listing { volume: Some(volume.clone()), limit: SOURCES_PAGE, ..Listing::default() };
        let mut seen = 0;
        let page = self.list(&listing, |_| {
            seen += 1;
            seen == SOURCES_PAGE
        })?;
        let sources: std::collections::BTreeSet<MachineName> =
            page.iter().map(|listed| moved_in::origin(self, listed)).collect();
        if sources.len() < 2 {
            return Ok(None);
        }
        let names: Vec<String> = sources.iter().map(ToString::to_string).collect();
        Err(Failure::new(Exit::Usage, format!("{volume} has snapshots from {}", names.join(" and ")))
            .hint("say which with --source NAME".to_owned()))
    }
}

/// What is found under the beginning of an id, if that tells.
fn only_one(prefix: &str, mut found: Vec<Listed>, none: impl FnOnce() -> Failure) -> Result<Listed, Failure> {
    match (found.pop(), found.pop()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(none()),
        (Some(_), Some(_)) => {
            Err(Failure::new(Exit::Usage, format!("more than one snapshot's id begins with {prefix}"))
                .hint("give more digits".to_owned()))
        }
    }
}

/// Nothing is decided by a client's clock, but times that people read come from it.
fn warn_of_clock(remote: &Remote) {
    let (server, _) = remote.greeting();
    let apart = (Timestamp::now().as_millisecond() - server).unsigned_abs();
    if apart > CLOCK_TOLERANCE {
        tracing::warn!("this machine's clock and that of {} are {} s apart", remote.server(), apart / 1000);
    }
}

/// A moment of the server's or another machine's clock, in milliseconds since 1970.
pub(crate) fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// How a snapshot is shown.
pub(crate) fn short(id: SnapshotId) -> String {
    id.short()
}
