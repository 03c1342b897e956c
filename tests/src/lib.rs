//! The test bed: vsync's behaviour is tested in words that a reader of the test understands.
//!
//! ```no_run
//! # use vsync_tests::{Realm, Tree, Volume, assert_same};
//! let data = Volume::new(1);
//! data.random("base/16384/2619", 3 << 20).fifo("pipe").mode("pipe", 0o600);
//! let realm = Realm::new().server("annex2").directory("data", data.path()).client("production2", &["data"]).build();
//! let _server = realm.serve("annex2");
//! realm.vsync("production2").run(["backup", "data"]).success();
//! realm.vsync("production2").run(["restore", "data", "--to-path", "/tmp/there"]).success();
//! assert_same(&Tree::read(data.path()), &Tree::read("/tmp/there"));
//! ```
//!
//! Everything is real: processes, sockets, PostgreSQL, Docker, the kernel's file systems. Whatever is missing is a
//! panic that names it, never a test skipped; `tests/run` provides it all.

pub mod bao;
pub mod cgroup;
pub mod cli;
pub mod damage;
pub mod docker;
pub mod fuzz;
pub mod http;
pub mod liar;
pub mod netns;
pub mod power;
pub mod realm;
pub mod relay;
pub mod rng;
pub mod server;
pub mod shell;
pub mod sinks;
pub mod site;
pub mod torture;
pub mod tree;
pub mod volume;

pub use bao::Bao;
pub use cgroup::MemoryGroup;
pub use cli::{Output, Running, Vsync};
pub use damage::{Damage, Place};
pub use docker::{Container, DockerVolume, Postgres};
pub use liar::{Answer, Liar};
pub use netns::Network;
pub use realm::Realm;
pub use relay::{Link, Relay};
pub use rng::Rng;
pub use server::Server;
pub use sinks::Sinks;
pub use site::{Site, Summary};
pub use tree::{Tree, assert_same};
pub use volume::Volume;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// The vsync binary under test.
#[must_use]
pub fn bin() -> PathBuf {
    provided("VSYNC_TEST_BIN")
}

/// The Python that has the packages of `tests/requirements.txt`, for readers that share no code with vsync.
#[must_use]
pub fn python() -> PathBuf {
    provided("VSYNC_TEST_PYTHON")
}

fn provided(variable: &str) -> PathBuf {
    let path = PathBuf::from(
        std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} is not set: run the tests with `tests/run`")),
    );
    assert!(path.is_file(), "{variable} names {}, which does not exist", path.display());
    path
}

/// A new empty directory that disappears with its guard.
#[must_use]
pub fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("vsync-test-").tempdir().expect("a scratch directory")
}

/// How many, for how long, or which seed: what the environment asks for, and `otherwise` without it. It is printed, so
/// that a run can be repeated.
///
/// # Panics
/// When the variable is set to anything else.
#[must_use]
#[track_caller]
pub fn asked<T: std::str::FromStr + std::fmt::Display>(variable: &str, otherwise: T) -> T {
    let number = match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, which is no such number")),
        Err(_) => otherwise,
    };
    println!("{variable}={number}");
    number
}

/// A number that no other call in this process returns.
pub(crate) fn serial() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A name that nothing else on this machine has; `tests/run` removes what such a name was left on.
pub(crate) fn unique(stem: &str) -> String {
    let run = std::env::var("VSYNC_TEST_ID").unwrap_or_else(|_| "vt".to_owned());
    format!("{run}-{}-{}-{stem}", std::process::id(), serial())
}
