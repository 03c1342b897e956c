//! What `vsync check --connection` looks at: servers, sockets, the Docker engine.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use vsync_protocol::id::{MachineName, VolumeName};

use super::GlobalArgs;
use super::check::Finding;
use super::context::Context;
use super::output;
use super::quiesce;
use super::report::{Exit, Failure};
use super::session::Session;
use super::status;
use super::volumes::block_on;
use crate::config::{Machine, Server};
use crate::docker;
use crate::suggest;

/// Clocks may differ by this much before it is worth a word: milliseconds.
const CLOCKS: i64 = 5 * 60 * 1000;

/// How long a closed port may take to say so.
const REFUSAL: Duration = Duration::from_millis(300);

/// Everything that only a connection can tell.
pub(super) fn findings(global: &GlobalArgs) -> Vec<Finding> {
    let context = match Context::load(global) {
        Ok(context) => context,
        Err(error) => return vec![Finding::failure(error.into())],
    };
    let mut findings = Vec::new();
    for server in &context.config.servers {
        self::server(global, server, &mut findings);
    }
    if context.config.servers.iter().any(|server| server.machine.name == context.bundle.machine) {
        findings.push(buffers());
    }
    match context.config.machine(&context.bundle.machine) {
        Ok(machine) => volumes(global, &context, machine, &mut findings),
        Err(error) => findings.push(Finding::failure(error.into())),
    }
    findings
}

fn server(global: &GlobalArgs, server: &Server, findings: &mut Vec<Finding>) {
    let name = &server.machine.name;
    if let Some(address) = &server.address {
        match resolve(&address.to_string()) {
            Err(failure) => return findings.push(Finding::failure(failure)),
            Ok(resolved) if resolved.iter().all(|remote| is_refused(*remote)) => {
                return findings.push(Finding::bad(
                    format!("{name}: nothing listens on UDP {address}"),
                    format!("run `vsync server run` on {name}, and compare its `address` in vsync.toml"),
                ));
            }
            Ok(resolved) => {
                let shown: Vec<String> = resolved.iter().map(ToString::to_string).collect();
                findings.push(Finding::good(format!("{name}: {address} is {}", shown.join(", "))));
            }
        }
    }
    let session = match Session::connect(global, Some(name)) {
        Ok(session) => session,
        Err(failure) => return findings.push(Finding::failure(failure)),
    };
    findings.push(Finding::good(format!("{name}: it answers, and each side knows the other's key")));
    connected(&session, findings);
}

fn resolve(address: &str) -> Result<Vec<SocketAddr>, Failure> {
    let unknown = |error: io::Error| {
        Failure { causes: vec![error.to_string()], ..Failure::new(Exit::Unreachable, format!("cannot find {address}")) }
            .hint("check `address` in vsync.toml and this machine's DNS".to_owned())
    };
    Ok(address.to_socket_addrs().map_err(unknown)?.collect())
}

/// Whether the host says that nobody listens there. Silence says nothing: a server does not
/// answer what is no QUIC.
fn is_refused(remote: SocketAddr) -> bool {
    let local: SocketAddr =
        if remote.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let probe = || -> io::Result<()> {
        let socket = UdpSocket::bind(local)?;
        socket.connect(remote)?;
        socket.set_read_timeout(Some(REFUSAL))?;
        socket.send(&[0])?;
        socket.recv(&mut [0]).map(|_| ())
    };
    probe().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn connected(session: &Session, findings: &mut Vec<Finding>) {
    let name = session.remote.server();
    let asked = Instant::now();
    let status = match session.remote.status() {
        Ok(status) => status,
        Err(error) => return findings.push(Finding::failure(error.into())),
    };
    let took = asked.elapsed();
    findings.push(Finding::good(format!(
        "{name}: version {}, answers in {:.1} ms",
        status.version,
        took.as_secs_f64() * 1000.0
    )));
    findings.push(clocks(name, status.now - Timestamp::now().as_millisecond()));
    findings.push(match session.remote.check_history(&session.heads()) {
        Ok(()) => Finding::good(format!("{name}: its history continues what this machine has seen")),
        Err(error) => Finding::failure(error.into()),
    });
    findings.push(match &status.read_only {
        Some(reason) => {
            Finding::bad(format!("{name}: it takes no backups: {reason}"), format!("look at the log of {name}"))
        }
        None => Finding::good(format!("{name}: it takes backups; {} are free", output::size(status.free))),
    });
    let warning = |warning: &String| {
        let room = "look at its log; for room, see `vsync server gc` and `vsync forget`, or move its `data` directory";
        Finding::bad(format!("{name}: {warning}"), room)
    };
    findings.extend(status.warnings.iter().map(warning));
}

/// Whether the server's clock, so many milliseconds ahead, agrees with this machine's.
fn clocks(name: &MachineName, ahead: i64) -> Finding {
    let clock = match status::clock(ahead).as_str() {
        "agrees" => format!("{name}: its clock agrees with this machine's"),
        difference => format!("{name}: its clock is {difference}"),
    };
    if ahead.abs() > CLOCKS {
        Finding::bad(clock, "set the clock of the one that is wrong, for example with chrony")
    } else {
        Finding::good(clock)
    }
}

/// Whether the kernel gives the socket buffers that keep a burst from being dropped.
fn buffers() -> Finding {
    small_buffers()
        .map_or_else(|| Finding::good("UDP socket buffers are large enough"), |(what, to_do)| Finding::bad(what, to_do))
}

/// What is wrong with the socket buffers, and what to do, if anything is.
pub(super) fn small_buffers() -> Option<(String, String)> {
    use rustix::net::sockopt::{socket_recv_buffer_size, socket_send_buffer_size};
    let wanted = vsync_transport::SOCKET_BUFFER;
    let to_do =
        format!("sysctl -w net.core.rmem_max={wanted} net.core.wmem_max={wanted} (docs/operations.md tells more)");
    let socket = match vsync_transport::bind((Ipv4Addr::LOCALHOST, 0).into()) {
        Ok(socket) => socket,
        Err(error) => return Some((error.to_string(), "look at the limits of this process".to_owned())),
    };
    // Linux reports twice what it grants.
    let sizes = [socket_recv_buffer_size(&socket), socket_send_buffer_size(&socket)].map(|size| size.unwrap_or(0) / 2);
    let least = sizes.into_iter().min().unwrap_or(0);
    let what = || format!("UDP socket buffers hold {} only: under load, packets are lost", output::size(least as u64));
    (least < wanted).then(|| (what(), to_do))
}

/// Whether what this machine backs up is there.
fn volumes(global: &GlobalArgs, context: &Context, machine: &Machine, findings: &mut Vec<Finding>) {
    let path_of = |name: &VolumeName| context.config.volume(name).and_then(|volume| volume.path.clone());
    for (name, path) in machine.backup.iter().filter_map(|name| Some((name, path_of(name)?))) {
        findings.push(if path.is_dir() {
            Finding::good(format!("{name} is the directory {}", path.display()))
        } else {
            Finding::bad(
                format!("{name}: there is no directory {}", path.display()),
                "correct its `path` under [[volumes]] in vsync.toml",
            )
        });
    }
    // What is mounted into this container needs no engine.
    let names: Vec<&VolumeName> = machine
        .backup
        .iter()
        .filter(|name| path_of(name).is_none() && docker::mounted_inside(name).is_none())
        .collect();
    if names.is_empty() {
        return;
    }
    let asked = block_on(async {
        let engine = quiesce::engine(global).await?;
        let known = engine.list_volumes().await?;
        let mut mistakes = Vec::new();
        for volume in known.iter().filter(|volume| names.contains(&&volume.name)) {
            mistakes.extend(quiesce::label_mistakes(&engine, volume).await?);
        }
        Ok::<_, Failure>((engine.host().to_owned(), known, mistakes))
    });
    let (host, known, mistakes) = match asked {
        Ok(Ok(answer)) => answer,
        Ok(Err(failure)) => return findings.push(Finding::failure(failure)),
        Err(failure) => return findings.push(Finding::failure(failure)),
    };
    findings.push(Finding::good(format!("the Docker engine at {host} answers")));
    let to_do = "run it again with the label set right: docs/operations.md has them all";
    findings.extend(mistakes.into_iter().map(|mistake| Finding::bad(mistake, to_do)));
    let known: Vec<&str> = known.iter().map(|volume| volume.name.as_str()).collect();
    for name in names {
        findings.push(if known.contains(&name.as_str()) {
            Finding::good(format!("{name} is a Docker volume"))
        } else {
            let near = suggest::suffix(name.as_str(), known.iter().copied());
            Finding::bad(
                format!("the Docker engine has no volume {name}{near}"),
                "`docker volume ls` lists them; a directory needs a `path` under [[volumes]] in vsync.toml",
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_disagree_are_told_with_what_to_do() {
        let name = "annex2".parse().unwrap();
        for (ahead, ok, words) in [
            (0, true, "its clock agrees with this machine's"),
            (-1900, true, "its clock agrees with this machine's"),
            (60_000, true, "its clock is 1 min 00 s ahead"),
            (CLOCKS + 1, false, "its clock is 5 min 00 s ahead"),
            (-7_200_000, false, "its clock is 2 h 00 min behind"),
        ] {
            let finding = serde_json::to_value(clocks(&name, ahead)).unwrap();
            assert_eq!((&finding["ok"], &finding["what"]), (&ok.into(), &format!("annex2: {words}").into()));
            assert_eq!(finding["to_do"].is_string(), !ok, "{finding}");
        }
    }
}
