//! The Docker engine, as a backup tool needs it.
//!
//! - [`Engine`] finds volumes and the containers that use them.
//! - [`Access`] says how to reach a volume's files: from its directory on this machine, from where it is mounted into
//!   our own container, or through a helper. It never takes the empty directory of an unmounted volume for its content.
//! - [`HelperJob`] is a vsync command that runs in a container of its own, with the volume mounted.
//! - [`ContainerFacts`] says how a container is; [`Engine`] pauses, stops and starts it, and runs commands in it.
//! - [`Service`] is a container of vsync that stays: a server, a schedule.
//!
//! Nothing here reads a volume's files or holds a key for longer than it takes to hand it to a helper.

mod access;
mod containers;
mod control;
mod engine;
mod error;
mod exec;
mod helper;
mod image;
mod ourselves;
pub(crate) mod rescue;
mod service;
mod sweep;
mod tar;
mod volume;

pub use access::{Access, Facts, Mountpoint, decide_access};
pub use containers::{ContainerRole, ContainerUser};
pub use control::{ContainerFacts, ContainerStatus};
pub use engine::Engine;
pub use error::DockerError;
pub use exec::{Exec, ExecJob};
pub use helper::{HelperFile, HelperJob, HelperOutput, VolumeUse};
pub use image::DEFAULT_IMAGE;
pub use ourselves::{mounted_inside, own_container};
pub use service::{Bind, Need, Network, Service, ServiceStatus, Started};
pub use volume::VolumeDescription;

/// Where a container of vsync finds the volumes that are mounted into it, each under its own name.
pub const VOLUMES_INSIDE: &str = "/vsync/volumes";
/// Where a helper finds the files that were handed to it: configuration and keys.
pub const CONFIG_INSIDE: &str = "/vsync/config";
/// The Docker volume that keeps the agent's cache between two helpers.
pub const STATE_VOLUME: &str = "vsync-state";
/// Where [`STATE_VOLUME`] is mounted in a helper.
pub const STATE_INSIDE: &str = "/var/lib/vsync";
