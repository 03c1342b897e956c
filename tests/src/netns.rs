//! Hosts of a network: namespaces of the kernel's network stack, joined by a switch. What runs in one of them has
//! the machine's files and a network of its own.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{shell, unique};

/// How long a link may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Hosts on one switch; all gone with the guard.
#[derive(Debug)]
pub struct Network {
    hosts: Vec<Host>,
    switch: Namespace,
}

impl Network {
    /// A network of `count` hosts with the addresses 10.77.0.1, 10.77.0.2 …
    ///
    /// # Panics
    /// If the kernel has no namespaces or the caller is not root.
    #[must_use]
    #[track_caller]
    pub fn new(count: u8) -> Self {
        let switch = Namespace::new("switch");
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        let mut network = Self { hosts: Vec::new(), switch };
        for number in 1..=count {
            let namespace = Namespace::new(&format!("host{number}"));
            let port = format!("port{number}");
            network.switch.ip(&format!("link add {port} type veth peer name eth0 netns {}", namespace.name));
            network.switch.ip(&format!("link set {port} master br0 up"));
            let host = Host { namespace, address: Ipv4Addr::new(10, 77, 0, number) };
            host.namespace.ip(&format!("addr add {}/24 dev eth0", host.address));
            host.namespace.ip("link set eth0 up");
            network.hosts.push(host);
        }
        (1..=usize::from(count)).for_each(|number| network.wait(number));
        network
    }

    /// The host with this number, from 1.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    #[track_caller]
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    /// The same, to be changed.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn host_mut(&mut self, number: usize) -> &mut Host {
        &mut self.hosts[number - 1]
    }

    /// Pulls a host's cable, or plugs it in again.
    #[track_caller]
    pub fn cable(&self, number: usize, plugged: bool) {
        self.switch.ip(&format!("link set port{number} {}", if plugged { "up" } else { "down" }));
        if plugged {
            self.wait(number);
        }
    }

    /// Waits until packets pass between a host and the switch: the kernel brings links up at its leisure.
    #[track_caller]
    fn wait(&self, number: usize) {
        let started = Instant::now();
        loop {
            let port = self.switch.ip(&format!("-d -o link show port{number}"));
            let link = self.host(number).namespace.ip("-o link show eth0");
            if port.contains("state forwarding") && port.contains("state UP") && link.contains("state UP") {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "a link does not come up:\n{port}\n{link}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Limits what the switch sends to a host, in Mbit/s.
    #[track_caller]
    pub fn limit(&self, number: usize, megabits: u32) {
        let words = format!("qdisc replace dev port{number} root tbf rate {megabits}mbit burst 64kb latency 50ms");
        shell::finish(self.switch.command("tc").args(words.split(' ')));
    }
}

/// One host.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    address: Ipv4Addr,
}

impl Host {
    /// Its address on the switch.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Words that run what follows them on this host, for [`crate::Vsync::through`].
    #[must_use]
    pub fn prefix(&self) -> Vec<OsString> {
        self.namespace.prefix()
    }

    /// A program on this host.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        self.namespace.command(program)
    }

    /// Runs a program on this host.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, program: &str, arguments: impl IntoIterator<Item = S>) -> String {
        shell::finish(self.command(program).args(arguments))
    }

    /// Throws away so many in a hundred of the packets that arrive; 0 ends it.
    #[track_caller]
    pub fn lose(&self, percent: f64) {
        shell::finish(self.command("iptables").args(["-w", "-F", "INPUT"]));
        if percent > 0.0 {
            let probability = (percent / 100.0).to_string();
            let rule = ["-w", "-A", "INPUT", "-m", "statistic", "--mode", "random", "--probability", &probability];
            shell::finish(self.command("iptables").args(rule).args(["-j", "DROP"]));
        }
    }

    /// Another size of the largest packet.
    #[track_caller]
    pub fn mtu(&self, bytes: u32) {
        self.namespace.ip(&format!("link set eth0 mtu {bytes}"));
    }

    /// Another address, as after a new lease; the old one is gone.
    #[track_caller]
    pub fn readdress(&mut self, address: Ipv4Addr) {
        self.namespace.ip("addr flush dev eth0");
        self.namespace.ip(&format!("addr add {address}/24 dev eth0"));
        self.address = address;
    }
}

/// A network namespace with its loopback up.
#[derive(Debug)]
struct Namespace {
    name: String,
}

impl Namespace {
    #[track_caller]
    fn new(stem: &str) -> Self {
        let namespace = Self { name: unique(stem) };
        shell::run("ip", ["netns", "add", &namespace.name]);
        namespace.ip("link set lo up");
        namespace
    }

    fn prefix(&self) -> Vec<OsString> {
        // `ip netns exec` would also hide /sys, and with it the control groups.
        vec!["nsenter".into(), format!("--net=/run/netns/{}", self.name).into(), "--".into()]
    }

    fn command(&self, program: &str) -> Command {
        let prefix = self.prefix();
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(program);
        command
    }

    #[track_caller]
    fn ip(&self, words: &str) -> String {
        shell::finish(self.command("ip").args(words.split(' ')))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(shell::attempt(Command::new("ip").args(["netns", "delete", &self.name])));
    }
}
