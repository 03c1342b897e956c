//! `vsync server start`, `stop` and `status`: the server in a container of its own.

use std::time::Duration;

use vsync_server::store::home;

use super::super::GlobalArgs;
use super::super::connection;
use super::super::context::Context;
use super::super::output::{self, Colour};
use super::super::report::{Exit, Failure};
use super::super::service::{self, Home, ImageArgs, Outside};
use super::super::volumes::block_on;
use super::own_entry;
use crate::config;
use crate::docker::{Bind, Engine, Network, Service, ServiceStatus};

/// Running requests may end, and what was received become durable.
const GRACE: Duration = Duration::from_secs(120);

/// Start the server in a container, which comes back by itself after a restart of the machine
///
/// The container is called vsync-server-NAME, or as `container` of the server in vsync.toml
/// says. It has `data` and the directory of vsync.toml mounted, its own key and no other, and
/// the UDP port of `address` published, and `status` if there is one. It runs as the owner of
/// `data`, with no privileges. Variables and files that [[notify]] and [keys] name go along, and
/// nothing else of the environment.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync server start
  vsync server start --network host
  vsync server start --as annex2 --image registry.example.org/vsync:0.1.0")]
pub(in super::super) struct StartArgs {
    #[command(flatten)]
    image: ImageArgs,

    /// A network of the engine; `host` is the machine's own, and the fastest
    #[arg(long, env = "VSYNC_NETWORK", value_name = "NAME")]
    network: Option<String>,
}

/// Stop the server's container, letting running requests end
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vsync server stop")]
pub(in super::super) struct StopArgs {}

/// Show whether the server's container runs
///
/// The exit code is 10 when it does not.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync server status\n  vsync server status --json")]
pub(in super::super) struct StatusArgs {}

impl StartArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let server = own_entry(&context)?;
        let service = self.service(&context, server)?;
        if let Some((what, to_do)) = connection::small_buffers() {
            output::say(format_args!("{}{what}\n  to do: {to_do}", Colour::stderr().red("warning: ")));
        }
        block_on(async {
            let (engine, _) = service::local_engine().await?;
            service::start(global, &engine, &service).await
        })?
    }

    fn service(&self, context: &Context, server: &config::Server) -> Result<Service, Failure> {
        let address = server.address.as_ref().ok_or_else(|| {
            let name = &server.machine.name;
            Failure::new(Exit::Usage, format!("server {name} has no address: agents run it by themselves"))
                .hint("give it an `address = \"host:port\"` in vsync.toml".to_owned())
        })?;
        let home = Home::find(context)?;
        home::create(&server.data).map_err(|error| {
            Failure::of(&error, Exit::Failed)
                .hint(format!("make the data directory {} yourself", server.data.display()))
        })?;
        let data = service::absolute(&server.data)?;
        let (uid, gid) = service::owner(&data)?;
        if let Some(key) = home.owner()?.filter(|key| key.0 != uid) {
            let heading = format!(
                "{} belongs to user {uid}, and the key of {} to user {}: the server could not read both",
                data.display(),
                server.machine.name,
                key.0
            );
            return Err(Failure::new(Exit::Failed, heading).hint(format!("chown -R {} {}", key.0, data.display())));
        }
        let network = match self.network.as_deref() {
            Some("host") => Network::Host,
            name => Network::Published { name: name.map(str::to_owned), port: address.port, status: server.status },
        };
        // It keeps nothing outside of `data`, but wants to know where it would.
        let mut environment = vec![("VSYNC_STATE_DIR".to_owned(), "/tmp".to_owned())];
        environment.extend(network.inside().map(|status| ("VSYNC_STATUS_ADDRESS".to_owned(), status.to_string())));
        let mut outside = Outside::default();
        outside.of_keys(&context.config.keys)?;
        outside.of_alerts(&context.config, &server.machine.name)?;
        let mut service = Service {
            name: server.container(),
            image: self.image.image.clone(),
            kind: "server",
            arguments: vec!["server".to_owned(), "run".to_owned()],
            environment,
            // Where vsync.toml says that it is, even if that is a link.
            binds: vec![Bind { from: data, to: server.data.clone(), write: true }],
            hidden: Vec::new(),
            volumes: Vec::new(),
            network,
            user: format!("{uid}:{gid}"),
            capabilities: &[],
            grace: GRACE,
            ready: "listening on",
            needs: Vec::new(),
        };
        home.mount(&mut service);
        outside.add_to(&mut service)?;
        Ok(service)
    }
}

impl StopArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let name = own_entry(&context)?.container();
        let was_there = block_on(async { Engine::connect().await?.stop_service(&name, GRACE).await })??;
        service::stopped(global, &name, was_there)
    }
}

impl StatusArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let name = own_entry(&context)?.container();
        let status = block_on(async { Engine::connect().await?.own_service(&name).await })??;
        if global.json {
            output::json(&service::status_json(&name, status.as_ref()))?;
        } else {
            print(&name, status.as_ref())?;
        }
        let runs = status.as_ref().is_some_and(ServiceStatus::is_running);
        Ok(if runs { Exit::Exact } else { Exit::Unreachable })
    }
}

fn print(name: &str, status: Option<&ServiceStatus>) -> Result<(), Failure> {
    let Some(status) = status else {
        return output::line(format_args!(
            "there is no container {name}; under systemd, ask `systemctl status vsync-server`\n  to do: vsync server start"
        ));
    };
    let since = status.since.as_deref().unwrap_or("?");
    output::line(format_args!(
        "container {name}: {}, since {since}, started again {} times, image {}",
        status.state, status.restarts, status.image
    ))?;
    match status.log.last() {
        Some(line) => output::line(format_args!("  {line}")),
        None => Ok(()),
    }
}
