//! `vsync schedule start` and `stop`: the schedule in a container of its own.

use std::path::Path;
use std::time::Duration;

use vsync_protocol::id::VolumeName;

use super::super::GlobalArgs;
use super::super::context::Context;
use super::super::report::{Exit, Failure};
use super::super::service::{self, Home, ImageArgs, Outside};
use super::super::volumes::block_on;
use super::own_machine;
use super::run::How;
use crate::config::{Machine, Schedule};
use crate::docker::{Bind, Engine, Network, Service, VOLUMES_INSIDE};

/// A backup that is called off finishes what it is sending, and starts containers again.
const GRACE: Duration = Duration::from_secs(120);

/// What root needs to read files of any owner, and to leave their access times alone.
const READ: &[&str] = &["DAC_READ_SEARCH", "FOWNER"];
/// The same, and to write where somebody else's state is.
const READ_AND_STATE: &[&str] = &["DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER"];

/// Run the schedule in a container, which comes back by itself after a restart of the machine
///
/// The container is called vsync-schedule-NAME, or as `schedule-container` of the machine in
/// vsync.toml says. It has every volume that the machine backs up mounted, read-only, and the
/// directories of vsync.toml and of local state, so that it shares cache and locks with backups
/// that are begun by hand. It may talk to the engine, to hold the containers that want it.
/// Variables and files that [keys] names go along, and nothing else of the environment.
/// Commands on the machine (`run-before` and its like) run inside: the image must have them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  vsync schedule start\n  vsync schedule start --as production2 --image vsync/vsync:0.1.0"
)]
pub(in super::super) struct StartArgs {
    #[command(flatten)]
    image: ImageArgs,

    #[command(flatten)]
    how: How,
}

/// Stop the schedule's container; a running backup is called off, and made up for later
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vsync schedule stop")]
pub(in super::super) struct StopArgs {}

impl StartArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let machine = own_machine(&context)?;
        if machine.schedule.is_empty() {
            let heading = format!("{} has no schedule in {}", machine.name, context.config.path.display());
            return Err(Failure::new(Exit::Usage, heading)
                .hint("add a [[clients.schedule]] with `volume`, `server` and `at`".to_owned()));
        }
        let without_address =
            |entry: &&Schedule| context.config.server(Some(&entry.server)).is_ok_and(|server| server.address.is_none());
        if let Some(entry) = machine.schedule.iter().find(without_address) {
            let heading = format!("server {} has no address, and cannot be reached from a container", entry.server);
            return Err(Failure::new(Exit::Usage, heading)
                .hint("give it an `address`, or use `vsync schedule run` under systemd".to_owned()));
        }
        block_on(async {
            let (engine, socket) = service::local_engine().await?;
            let service = self.service(&context, machine, &socket)?;
            service::start(global, &engine, &service).await
        })?
    }

    fn service(&self, context: &Context, machine: &Machine, socket: &Path) -> Result<Service, Failure> {
        std::fs::create_dir_all(&context.state_dir).map_err(|error| {
            Failure::of(&error, Exit::Failed)
                .hint(format!("make {} writable, or give --state-dir", context.state_dir.display()))
        })?;
        let home = Home::find(context)?;
        let state = service::absolute(&context.state_dir)?;
        let capabilities = if service::owner(&state)?.0 == 0 { READ } else { READ_AND_STATE };
        let mut binds = vec![Bind::writable(service::absolute(socket)?), Bind::writable(state.clone())];
        let mut volumes = Vec::new();
        for name in &machine.backup {
            match context.config.volume(name).and_then(|volume| volume.path.as_deref()) {
                Some(path) => binds.push(directory(name, path)?),
                None => volumes.push(name.clone()),
            }
        }
        let mut outside = Outside::default();
        outside.of_keys(&context.config.keys)?;
        outside.of_hooks(&context.config, machine);
        let mut service = Service {
            name: machine.schedule_container(),
            image: self.image.image.clone(),
            kind: "schedule",
            arguments: ["schedule".to_owned(), "run".to_owned()].into_iter().chain(self.how.words()).collect(),
            environment: vec![
                ("VSYNC_STATE_DIR".to_owned(), state.display().to_string()),
                ("DOCKER_HOST".to_owned(), format!("unix://{}", service::absolute(socket)?.display())),
                // For the helpers of volumes that are not mounted: those that were added later.
                ("VSYNC_IMAGE".to_owned(), self.image.image.clone()),
            ],
            binds,
            hidden: Vec::new(),
            volumes,
            // The machine's own routes to the servers.
            network: Network::Host,
            user: "0:0".to_owned(),
            capabilities,
            grace: GRACE,
            ready: "schedule of",
            needs: Vec::new(),
        };
        home.mount(&mut service);
        outside.add_to(&mut service)?;
        Ok(service)
    }
}

/// A directory with a name, where a volume of that name would be.
fn directory(name: &VolumeName, path: &Path) -> Result<Bind, Failure> {
    let from = service::absolute(path)
        .map_err(|failure| failure.hint(format!("correct the `path` of {name} under [[volumes]] in vsync.toml")))?;
    Ok(Bind { from, to: Path::new(VOLUMES_INSIDE).join(name.as_str()), write: false })
}

impl StopArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let name = own_machine(&context)?.schedule_container();
        let was_there = block_on(async { Engine::connect().await?.stop_service(&name, GRACE).await })??;
        service::stopped(global, &name, was_there)
    }
}
