//! Containers of vsync that stay: a backup server, a schedule.
//!
//! They are made anew at every start, so that what was configured is what runs, and they come back by themselves after
//! a crash or a restart of the machine. What they need lies on the machine and is mounted: nothing is handed over that
//! would grow old, and nothing is lost with them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HostConfig, HostConfigLogConfig, Mount, MountBindOptions, MountType,
    MountVolumeOptions, PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use bollard::query_parameters::{
    ContainerArchiveInfoOptionsBuilder, CreateContainerOptionsBuilder, LogsOptionsBuilder, StopContainerOptions,
};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep};
use vsync_protocol::id::VolumeName;

use super::engine::Engine;
use super::error::{DockerError, found};
use super::helper::remove;

/// A container that stays.
#[derive(Clone, Debug)]
pub struct Service {
    /// The container's name.
    pub name: String,
    /// The image whose entry point is vsync.
    pub image: String,
    /// What it does: the value of its label, `server` or `schedule`.
    pub kind: &'static str,
    /// Arguments for the image's entry point. Visible to all: no secrets.
    pub arguments: Vec<String>,
    /// Environment. Whoever may ask the engine can read it.
    pub environment: Vec<(String, String)>,
    /// Files and directories of the machine.
    pub binds: Vec<Bind>,
    /// Directories of which a container sees only what is mounted below them, though they are in another mount.
    pub hidden: Vec<PathBuf>,
    /// Docker volumes, read-only, each below `/vsync/volumes`.
    pub volumes: Vec<VolumeName>,
    /// The network; `host` is the machine's own.
    pub network: Network,
    /// `UID:GID`.
    pub user: String,
    /// All that root keeps of its rights.
    pub capabilities: &'static [&'static str],
    /// How long it may take to end.
    pub grace: Duration,
    /// What it prints when it works.
    pub ready: &'static str,
    /// Programs that it runs besides vsync.
    pub needs: Vec<Need>,
}

/// A program that must be in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Its name or its path.
    pub program: String,
    /// What runs it.
    pub by: String,
}

/// A file or directory of the machine, in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Where it is on the machine.
    pub from: PathBuf,
    /// Where it is inside.
    pub to: PathBuf,
    /// Whether it may be written to.
    pub write: bool,
}

impl Bind {
    /// At the same place inside, to be read.
    #[must_use]
    pub fn same(path: PathBuf) -> Self {
        Self { from: path.clone(), to: path, write: false }
    }

    /// At the same place inside, to be written.
    #[must_use]
    pub fn writable(path: PathBuf) -> Self {
        Self { write: true, ..Self::same(path) }
    }
}

/// How a container is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// As the machine is.
    Host,
    /// Behind a network of the engine, with this UDP port of the machine passed on.
    Published {
        /// The network; none: the engine's usual one.
        name: Option<String>,
        /// The UDP port, the same inside.
        port: u16,
        /// The TCP address of the machine for the status; its port is the same inside.
        status: Option<SocketAddr>,
    },
}

impl Network {
    /// Where the status is to be served inside, if not where it is to be had on the machine: what is passed on arrives
    /// at an address that nobody knows before.
    #[must_use]
    pub fn inside(&self) -> Option<SocketAddr> {
        let Self::Published { status, .. } = self else { return None };
        status.map(|status| match status.ip() {
            IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, status.port()).into(),
            IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, status.port()).into(),
        })
    }

    /// The ports that are passed on: what they are called inside, and where they are on the machine.
    fn ports(&self) -> Vec<(String, PortBinding)> {
        let Self::Published { port, status, .. } = self else { return Vec::new() };
        let udp = (format!("{port}/udp"), PortBinding { host_ip: None, host_port: Some(port.to_string()) });
        let tcp = status.map(|status| {
            let (ip, port) = (status.ip().to_string(), status.port().to_string());
            (format!("{port}/tcp"), PortBinding { host_ip: Some(ip), host_port: Some(port) })
        });
        [udp].into_iter().chain(tcp).collect()
    }
}

/// What became of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// It runs now.
    Now,
    /// It ran already, and still does.
    Before,
}

/// What is to be known of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceStatus {
    /// `running`, `exited`, `restarting` …
    pub state: String,
    /// Since when it runs, as the engine says.
    pub since: Option<String>,
    /// How often the engine had to start it again.
    pub restarts: i64,
    /// The image that it was made from.
    pub image: String,
    /// The last lines that it printed.
    pub log: Vec<String>,
}

impl ServiceStatus {
    /// Whether it does its work.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }
}

/// Which container is one of ours, and of which kind.
pub(super) const SERVICE_LABEL: &str = "vsync.service";

/// Where programs are looked for, as the engine lets every container do.
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// How long a container may take until it works.
const READY_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);

impl Engine {
    /// Makes and starts a container, and waits until it says that it works. One that runs is left alone.
    ///
    /// # Errors
    /// When the engine refuses, when the name is another container's, or when it does not come to work; then it is
    /// removed again, and the error tells what it printed.
    pub async fn start_service(&self, service: &Service) -> Result<Started, DockerError> {
        match self.own_service(&service.name).await? {
            Some(status) if status.is_running() => return Ok(Started::Before),
            Some(_) => remove(self, &service.name).await?,
            None => {}
        }
        // The engine would make, empty, whatever is missing.
        for volume in &service.volumes {
            if self.inspect_volume(volume).await?.is_none() {
                return Err(DockerError::NoSuchVolume { volume: volume.clone(), host: self.host().to_owned() });
            }
        }
        self.ensure_helper_image(&service.image).await?;
        let options = CreateContainerOptionsBuilder::default().name(&service.name).build();
        let created = self.client().create_container(Some(options), container_for(service)).await;
        created.map_err(DockerError::container("create", &service.name))?;
        if let Err(error) = self.bring_to_work(service).await {
            remove(self, &service.name).await?;
            return Err(error);
        }
        Ok(Started::Now)
    }

    async fn bring_to_work(&self, service: &Service) -> Result<(), DockerError> {
        for need in &service.needs {
            if !self.has_program(&service.name, &need.program).await? {
                let Need { program, by } = need.clone();
                return Err(DockerError::NoProgram { image: service.image.clone(), program, by });
            }
        }
        let started = self.client().start_container(&service.name, None).await;
        started.map_err(DockerError::container("start", &service.name))?;
        self.until_ready(service).await
    }

    /// Whether a program is in a container, which need not run.
    async fn has_program(&self, container: &str, program: &str) -> Result<bool, DockerError> {
        let places: Vec<String> = match program.contains('/') {
            true => vec![program.to_owned()],
            false => PATH.iter().map(|directory| format!("{directory}/{program}")).collect(),
        };
        for place in places {
            let options = ContainerArchiveInfoOptionsBuilder::default().path(&place).build();
            let found = found(self.client().get_container_archive_info(container, Some(options)).await);
            if found.map_err(DockerError::container("look into", container))?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn until_ready(&self, service: &Service) -> Result<(), DockerError> {
        let until = Instant::now() + READY_WITHIN;
        loop {
            let status = self.own_service(&service.name).await?.unwrap_or_default();
            if status.log.iter().any(|line| line.contains(service.ready)) && status.is_running() {
                return Ok(());
            }
            if !status.is_running() || status.restarts > 0 || Instant::now() > until {
                return Err(DockerError::NotReady { container: service.name.clone(), log: status.log.join("\n") });
            }
            sleep(LOOK).await;
        }
    }

    /// Stops and removes a container, giving it the time to end that it was made with. Returns whether there was one.
    ///
    /// # Errors
    /// When the engine refuses, or the name is another container's.
    pub async fn stop_service(&self, name: &str, grace: Duration) -> Result<bool, DockerError> {
        if self.own_service(name).await?.is_none() {
            return Ok(false);
        }
        let patient = self.client().clone().with_timeout(grace + READY_WITHIN);
        let stopped = patient.stop_container(name, None::<StopContainerOptions>).await;
        found(stopped).map_err(DockerError::container("stop", name))?;
        remove(self, name).await?;
        Ok(true)
    }

    /// How a container is; none if there is none.
    ///
    /// # Errors
    /// When the engine refuses, or the name is another container's.
    pub async fn own_service(&self, name: &str) -> Result<Option<ServiceStatus>, DockerError> {
        let inspected = found(self.client().inspect_container(name, None).await);
        let Some(inspected) = inspected.map_err(DockerError::container("inspect", name))? else { return Ok(None) };
        let status = status_of(inspected).ok_or_else(|| DockerError::NotOurs { container: name.to_owned() })?;
        Ok(Some(ServiceStatus { log: self.last_words(name).await?, ..status }))
    }

    async fn last_words(&self, name: &str) -> Result<Vec<String>, DockerError> {
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail("20").build();
        let mut pieces = self.client().logs(name, Some(options)).boxed();
        let mut text = Vec::new();
        while let Some(piece) = pieces.next().await {
            match piece.map_err(DockerError::container("read the log of", name))? {
                LogOutput::StdErr { message } | LogOutput::StdOut { message } | LogOutput::Console { message } => {
                    text.extend_from_slice(&message);
                }
                LogOutput::StdIn { .. } => {}
            }
        }
        Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
    }
}

/// None if it is somebody else's container.
fn status_of(inspected: ContainerInspectResponse) -> Option<ServiceStatus> {
    let config = inspected.config.unwrap_or_default();
    config.labels.unwrap_or_default().get(SERVICE_LABEL)?;
    let state = inspected.state.unwrap_or_default();
    Some(ServiceStatus {
        state: state.status.map(|status| status.to_string()).unwrap_or_default(),
        since: state.started_at,
        restarts: inspected.restart_count.unwrap_or(0),
        image: config.image.unwrap_or_default(),
        log: Vec::new(),
    })
}

fn container_for(service: &Service) -> ContainerCreateBody {
    let ports: Vec<String> = service.network.ports().into_iter().map(|(port, _)| port).collect();
    ContainerCreateBody {
        image: Some(service.image.clone()),
        cmd: Some(service.arguments.clone()),
        env: Some(service.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        user: Some(service.user.clone()),
        labels: Some(HashMap::from([(SERVICE_LABEL.to_owned(), service.kind.to_owned())])),
        exposed_ports: (!ports.is_empty()).then_some(ports),
        stop_timeout: i64::try_from(service.grace.as_secs()).ok(),
        host_config: Some(host_config(service)),
        ..Default::default()
    }
}

fn host_config(service: &Service) -> HostConfig {
    let network = match &service.network {
        Network::Host => Some("host".to_owned()),
        Network::Published { name, .. } => name.clone(),
    };
    let ports: HashMap<_, _> =
        service.network.ports().into_iter().map(|(port, binding)| (port, Some(vec![binding]))).collect();
    let volumes = service.volumes.iter().map(|volume| Mount {
        typ: Some(MountType::VOLUME),
        source: Some(volume.to_string()),
        target: Some(format!("{}/{volume}", super::VOLUMES_INSIDE)),
        read_only: Some(true),
        volume_options: Some(MountVolumeOptions { no_copy: Some(true), ..Default::default() }),
        ..Default::default()
    });
    let hidden = service.hidden.iter().map(|path| (path.display().to_string(), "size=64k,mode=0755".to_owned()));
    let tmpfs = hidden.chain([("/tmp".to_owned(), "size=64m,mode=1777".to_owned())]);
    let log = [("max-size", "10m"), ("max-file", "3")];
    HostConfig {
        mounts: Some(service.binds.iter().map(bind).chain(volumes).collect()),
        network_mode: network,
        port_bindings: (!ports.is_empty()).then_some(ports),
        userns_mode: Some("host".to_owned()),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::UNLESS_STOPPED),
            maximum_retry_count: None,
        }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".to_owned()),
            config: Some(log.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        }),
        readonly_rootfs: Some(true),
        tmpfs: Some(tmpfs.collect()),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(service.capabilities.iter().map(|&name| name.to_owned()).collect()),
        security_opt: Some(vec!["no-new-privileges".to_owned(), "label=disable".to_owned()]),
        ..Default::default()
    }
}

fn bind(bind: &Bind) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(bind.from.display().to_string()),
        target: Some(bind.to.display().to_string()),
        read_only: Some(!bind.write),
        // What is mounted below it on the machine later is for the machine.
        bind_options: Some(MountBindOptions::default()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerConfig, ContainerState, ContainerStateStatusEnum};

    use super::*;

    fn service(network: Network) -> Service {
        Service {
            name: "vsync-server-annex2".into(),
            image: "vsync/vsync:1".into(),
            kind: "server",
            arguments: vec!["server".into(), "run".into()],
            environment: vec![("VSYNC_AS".into(), "annex2".into())],
            binds: vec![Bind::same("/etc/vsync".into()), Bind::writable("/srv/data".into())],
            hidden: vec!["/etc/vsync/keys".into()],
            volumes: vec!["data".parse().unwrap()],
            network,
            user: "7:8".into(),
            capabilities: &["FOWNER"],
            grace: Duration::from_secs(120),
            ready: "listening on",
            needs: Vec::new(),
        }
    }

    #[test]
    fn a_server_gets_its_port_its_data_and_nothing_else() {
        let body = container_for(&service(Network::Published { name: None, port: 10022, status: None }));
        let host = body.host_config.unwrap();
        assert_eq!(body.user.as_deref(), Some("7:8"));
        assert_eq!(body.stop_timeout, Some(120));
        assert_eq!(body.exposed_ports, Some(vec!["10022/udp".to_owned()]));
        let bindings = host.port_bindings.unwrap();
        assert_eq!(bindings["10022/udp"].as_ref().unwrap()[0].host_port.as_deref(), Some("10022"));
        let mounts: Vec<_> = host
            .mounts
            .unwrap()
            .into_iter()
            .map(|mount| (mount.source.unwrap(), mount.target.unwrap(), mount.read_only.unwrap()))
            .collect();
        let expected = [
            ("/etc/vsync", "/etc/vsync", true),
            ("/srv/data", "/srv/data", false),
            ("data", "/vsync/volumes/data", true),
        ];
        assert_eq!(mounts, expected.map(|(from, to, read)| (from.to_owned(), to.to_owned(), read)));
        assert_eq!(host.restart_policy.unwrap().name, Some(RestartPolicyNameEnum::UNLESS_STOPPED));
        assert_eq!(host.log_config.unwrap().config.unwrap()["max-size"], "10m");
        assert!(host.tmpfs.unwrap().contains_key("/etc/vsync/keys"), "other keys beside the configuration are hidden");
        assert_eq!((host.readonly_rootfs, host.privileged), (Some(true), None));
        assert_eq!(
            (host.cap_drop.unwrap(), host.cap_add.unwrap()),
            (vec!["ALL".to_owned()], vec!["FOWNER".to_owned()])
        );
    }

    #[test]
    fn on_the_machines_own_network_nothing_is_published() {
        let body = container_for(&service(Network::Host));
        let host = body.host_config.unwrap();
        assert_eq!((host.network_mode.as_deref(), host.port_bindings, body.exposed_ports), (Some("host"), None, None));
    }

    #[test]
    fn the_status_is_passed_on_from_the_address_that_it_is_to_have() {
        let status = Some("127.0.0.1:10080".parse().unwrap());
        let network = Network::Published { name: None, port: 10022, status };
        assert_eq!(network.inside(), Some("0.0.0.0:10080".parse().unwrap()));
        let bindings = container_for(&service(network)).host_config.unwrap().port_bindings.unwrap();
        let binding = PortBinding { host_ip: Some("127.0.0.1".into()), host_port: Some("10080".into()) };
        assert_eq!((bindings.len(), &bindings["10080/tcp"]), (2, &Some(vec![binding])));
        let six = Network::Published { name: None, port: 1, status: Some("[::1]:2".parse().unwrap()) };
        assert_eq!(six.inside(), Some("[::]:2".parse().unwrap()));
        assert_eq!(Network::Host.inside(), None, "there it is where it is to be had");
    }

    #[test]
    fn somebody_elses_container_of_that_name_is_not_ours() {
        let inspected = |labels: &[(&str, &str)]| ContainerInspectResponse {
            config: Some(ContainerConfig {
                labels: Some(labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()),
                ..Default::default()
            }),
            state: Some(ContainerState { status: Some(ContainerStateStatusEnum::RUNNING), ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(status_of(inspected(&[("com.example", "x")])), None);
        assert!(status_of(inspected(&[(SERVICE_LABEL, "server")])).unwrap().is_running());
    }
}
