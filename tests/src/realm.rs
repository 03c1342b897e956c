//! A realm made through the command line, as an administrator makes one.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use vsync::keys::KeyStore;

use crate::{Server, Vsync};

/// Says what a realm consists of; [`RealmBuilder::build`] makes it.
#[derive(Debug, Default)]
pub struct RealmBuilder {
    servers: Vec<(String, Option<String>, Vec<String>)>,
    clients: Vec<(String, Vec<String>, String)>,
    directories: Vec<(String, PathBuf, String)>,
    extra: String,
    suite: Option<String>,
}

impl RealmBuilder {
    /// A server on a loopback address that nothing else uses.
    #[must_use]
    pub fn server(self, name: &str) -> Self {
        let address = free_address();
        self.server_at(name, &address)
    }

    /// A server at a given address, such as one in a network namespace.
    #[must_use]
    pub fn server_at(mut self, name: &str, address: &str) -> Self {
        self.servers.push((name.into(), Some(address.into()), Vec::new()));
        self
    }

    /// A server that runs inside each command.
    #[must_use]
    pub fn embedded(mut self, name: &str) -> Self {
        self.servers.push((name.into(), None, Vec::new()));
        self
    }

    /// Volumes that live on the server named last.
    #[must_use]
    pub fn local(mut self, volumes: &[&str]) -> Self {
        let server = self.servers.last_mut().expect("a server before `local`");
        server.2.extend(volumes.iter().map(|volume| (*volume).to_owned()));
        self
    }

    /// A client and the volumes that it backs up.
    #[must_use]
    pub fn client(self, name: &str, backup: &[&str]) -> Self {
        self.client_with(name, backup, "")
    }

    /// A client with further lines in its table, such as `role = "writer"`.
    #[must_use]
    pub fn client_with(mut self, name: &str, backup: &[&str], lines: &str) -> Self {
        self.clients.push((name.into(), backup.iter().map(|volume| (*volume).to_owned()).collect(), lines.into()));
        self
    }

    /// A volume that is a directory.
    #[must_use]
    pub fn directory(self, name: &str, path: &Path) -> Self {
        self.directory_with(name, path, "")
    }

    /// A volume that is a directory, with further lines in its table.
    #[must_use]
    pub fn directory_with(mut self, name: &str, path: &Path, lines: &str) -> Self {
        self.directories.push((name.into(), path.into(), lines.into()));
        self
    }

    /// Another cipher than the default one, in the words of `vsync init --suite`.
    #[must_use]
    pub fn suite(mut self, suite: &str) -> Self {
        self.suite = Some(suite.into());
        self
    }

    /// Further tables at the end of the configuration.
    #[must_use]
    pub fn extra(mut self, toml: &str) -> Self {
        self.extra.push_str(toml);
        self.extra.push('\n');
        self
    }

    /// Writes the configuration, makes the keys, and configures every machine.
    #[must_use]
    #[track_caller]
    pub fn build(self) -> Realm {
        let realm = Realm { root: crate::scratch(), servers: self.servers.iter().map(|it| it.0.clone()).collect() };
        let admin = realm.root.path().join("admin");
        fs::create_dir(&admin).expect("a directory");
        fs::write(admin.join("vsync.toml"), self.toml(realm.root.path())).expect("vsync.toml");
        let suite = self.suite.iter().map(|suite| format!("--suite={suite}"));
        Vsync::at(&admin).run(["init".to_owned()].into_iter().chain(suite)).success();
        Vsync::at(&admin).run(["keygen", "--all"]).success();
        for name in self.servers.iter().map(|it| &it.0).chain(self.clients.iter().map(|it| &it.0)) {
            realm.configure(name);
        }
        realm
    }

    /// The text of `vsync.toml`, with the stores and keys below `root`. Every key that the bed knows of is here.
    #[must_use]
    pub fn toml(&self, root: &Path) -> String {
        let mut toml = String::from("[realm]\nname = \"test\"\n");
        for (name, address, backup) in &self.servers {
            let data = root.join("stores").join(name);
            write!(toml, "\n[[servers]]\nname = {name:?}\ndata = {data:?}\nbackup = {backup:?}\n").expect("a string");
            if let Some(address) = address {
                writeln!(toml, "address = {address:?}").expect("a string");
            }
        }
        for (name, backup, lines) in &self.clients {
            write!(toml, "\n[[clients]]\nname = {name:?}\nbackup = {backup:?}\n{lines}\n").expect("a string");
        }
        for (name, path, lines) in &self.directories {
            write!(toml, "\n[[volumes]]\nname = {name:?}\npath = {path:?}\n{lines}\n").expect("a string");
        }
        let keys = root.join("keys");
        write!(toml, "\n[keys]\nstore = \"directory\"\npath = {keys:?}\n\n{}", self.extra).expect("a string");
        toml
    }
}

/// Machines that share a configuration, each with a directory of its own; gone with the guard.
#[derive(Debug)]
pub struct Realm {
    root: tempfile::TempDir,
    servers: Vec<String>,
}

impl Realm {
    /// Describes a realm.
    #[must_use]
    #[expect(clippy::new_ret_no_self, reason = "`Realm::new()…build()` reads as a sentence")]
    pub fn new() -> RealmBuilder {
        RealmBuilder::default()
    }

    /// The directory of a machine: its `vsync.toml`, its identity, its home.
    #[must_use]
    pub fn machine(&self, name: &str) -> PathBuf {
        self.root.path().join("machines").join(name)
    }

    /// Where the administrator keeps the configuration.
    #[must_use]
    pub fn admin(&self) -> PathBuf {
        self.root.path().join("admin")
    }

    /// The store of a server.
    #[must_use]
    pub fn store(&self, server: &str) -> PathBuf {
        self.root.path().join("stores").join(server)
    }

    /// The key that a machine shows to others.
    ///
    /// # Panics
    /// If it has none.
    #[must_use]
    pub fn identity(&self, machine: &str) -> SigningKey {
        let store = KeyStore::Directory(self.root.path().join("keys"));
        store.machine(&machine.parse().expect("the name of a machine")).expect("a key").identity()
    }

    /// vsync as a machine runs it.
    #[must_use]
    pub fn vsync(&self, machine: &str) -> Vsync {
        let home = self.machine(machine);
        // As root, state would be shared by all tests of this machine, and stay behind.
        Vsync::at(&home).env("VSYNC_STATE_DIR", home.join("state"))
    }

    /// Hands the configuration as it is now to a machine, which takes its keys from the key store.
    #[track_caller]
    pub fn configure(&self, machine: &str) {
        let home = self.machine(machine);
        fs::create_dir_all(&home).expect("a directory");
        for file in ["vsync.toml", "vsync.pub"] {
            fs::copy(self.admin().join(file), home.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        }
        self.vsync(machine).run(["configure", machine]).success();
    }

    /// Changes the text of the configuration on every machine, as a commit to git would.
    #[track_caller]
    pub fn edit(&self, change: impl Fn(String) -> String) {
        let machines = fs::read_dir(self.root.path().join("machines")).expect("machines");
        let homes = machines.map(|entry| entry.expect("a machine").path());
        for file in homes.chain([self.admin()]).map(|home| home.join("vsync.toml")) {
            let toml = fs::read_to_string(&file).expect("vsync.toml");
            fs::write(&file, change(toml)).expect("vsync.toml");
        }
    }

    /// Starts a server.
    #[must_use]
    #[track_caller]
    pub fn serve(&self, name: &str) -> Server {
        assert!(self.servers.iter().any(|server| server == name), "the realm has no server {name:?}");
        Server::start(self.vsync(name))
    }
}

/// A UDP address of this process alone: the whole of 127/8 is local, so that two tests never want the same port.
fn free_address() -> String {
    let (process, serial) = (std::process::id().to_le_bytes(), crate::serial().to_le_bytes());
    let ip = Ipv4Addr::new(127, process[1] | 1, process[0], serial[0].clamp(1, 254));
    let socket = UdpSocket::bind((ip, 0)).unwrap_or_else(|error| panic!("no free port on {ip}: {error}"));
    socket.local_addr().expect("an address").to_string()
}
