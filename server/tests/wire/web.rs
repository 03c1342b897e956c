//! The status listener, met with raw sockets, also by those who mean no good.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use vsync_server::{Declared, StatusConfig};

use crate::bed::{Bed, root, tree};

fn bed(max_age: Duration) -> Bed {
    let mut bed = Bed::idle();
    let (source, volume) = ("production".parse().unwrap(), "data".parse().unwrap());
    bed.declared = vec![Declared { source, volume, max_age, due: None }];
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    bed.status = Some(StatusConfig { listen, server: "annex2".into(), realm: "montagu".into() });
    bed.start().unwrap();
    bed
}

fn address(bed: &Bed) -> SocketAddr {
    bed.server.as_ref().unwrap().status_address().unwrap()
}

/// Sends bytes and reads what comes until the end; nothing if the connection breaks.
fn send(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // It may have answered and gone before all of it was sent.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn get(address: SocketAddr, path: &str) -> String {
    send(address, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
}

fn code(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

/// On a thread that may wait; the server has its own.
async fn ask<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(ask).await.unwrap()
}

#[tokio::test]
async fn a_declared_volume_turns_from_unhealthy_to_healthy_with_its_first_backup() {
    let bed = bed(Duration::from_secs(3600));
    let at = address(&bed);
    let unhealthy = ask(move || get(at, "/health/backup")).await;
    assert_eq!((code(&unhealthy), body(&unhealthy)), ("503", "never backed up: data of production\n"));
    let client = bed.open("data").await;
    let blobs = tree(1, 4, 100);
    client.store(&blobs).await;
    client.commit(client.manifest("data", "production", root(&blobs))).await;
    for path in ["/health", "/health/backup"] {
        let healthy = ask(move || get(at, path)).await;
        assert_eq!((code(&healthy), body(&healthy)), ("200", "ok\n"), "{path}");
    }
    let metrics = ask(move || get(at, "/metrics")).await;
    assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.contains("vsync_backup_overdue{source=\"production\",volume=\"data\"} 0\n"), "{metrics}");
    assert!(metrics.contains("vsync_store_snapshots 1\n"), "{metrics}");
    let status: serde_json::Value = serde_json::from_str(body(&ask(move || get(at, "/status.json")).await)).unwrap();
    assert_eq!((&status["server"]["name"], &status["server"]["realm"]), (&"annex2".into(), &"montagu".into()));
    assert_eq!(status["volumes"][0]["snapshots_count"], 1);
    assert_eq!(status["volumes"][0]["days"][0]["snapshots"], 1);
}

#[tokio::test]
async fn a_snapshot_over_its_age_and_a_store_that_takes_no_data_are_unhealthy() {
    let mut young = bed(Duration::ZERO);
    let client = young.open("data").await;
    let blobs = tree(1, 4, 100);
    client.store(&blobs).await;
    client.commit(client.manifest("data", "production", root(&blobs))).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let at = address(&young);
    let overdue = ask(move || get(at, "/health/backup")).await;
    assert!(code(&overdue) == "503" && body(&overdue).starts_with("overdue: data of production"), "{overdue}");
    young.stop().await;
    let reserve = vsync_server::Reserve { bytes: u64::MAX, percent: 0 };
    let config = vsync_server::ServerConfig { reserve, ..young.config() };
    young.server = Some(vsync_server::Server::start(config).unwrap());
    let at = address(&young);
    let full = ask(move || get(at, "/health")).await;
    assert!(code(&full) == "503" && body(&full).contains("no space"), "{full}");
    assert_eq!(code(&ask(move || get(at, "/metrics")).await), "200");
}

#[tokio::test]
async fn a_configuration_that_cannot_be_understood_is_not_healthy() {
    let mut bed = bed(Duration::from_secs(3600));
    bed.stop().await;
    let config = vsync_server::ServerConfig { declared: std::sync::Arc::new(|| None), ..bed.config() };
    bed.server = Some(vsync_server::Server::start(config).unwrap());
    let at = address(&bed);
    let answer = ask(move || get(at, "/health/backup")).await;
    assert!(code(&answer) == "503" && body(&answer).contains("vsync.toml"), "{answer}");
    assert!(ask(move || get(at, "/metrics")).await.contains("vsync_warnings 1\n"));
}

#[tokio::test]
async fn only_reading_is_answered() {
    let bed = bed(Duration::from_secs(3600));
    let at = address(&bed);
    ask(move || {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"] {
            let answer = send(at, format!("{method} /metrics HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
            assert!(code(&answer) == "405" && answer.to_lowercase().contains("allow: get, head"), "{method}: {answer}");
        }
        for path in ["/nothing", "/metrics/", "/../etc/passwd", "/%2e%2e/x", "/health?x=1#y"] {
            let answer = get(at, path);
            let expected = if path.starts_with("/health?") { "200" } else { "404" };
            assert_eq!(code(&answer), expected, "{path}: {answer}");
        }
        let head = send(at, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(code(&head) == "200" && body(&head).is_empty(), "{head}");
        let old = send(at, b"GET /health HTTP/1.0\r\n\r\n");
        assert!(code(&old) == "200" && body(&old) == "ok\n", "{old}");
    })
    .await;
}

#[tokio::test]
async fn hostile_requests_harm_nobody() {
    let bed = bed(Duration::from_secs(3600));
    let at = address(&bed);
    ask(move || {
        let long = "x".repeat(100_000);
        let many = "a: b\r\n".repeat(1000);
        let attacks: [Vec<u8>; 10] = [
            b"\r\n\r\n\r\n".to_vec(),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(100),
            vec![0; 100_000],
            vec![0xff; 100_000],
            format!("GET /{long} HTTP/1.1\r\n\r\n").into_bytes(),
            format!("GET / HTTP/1.1\r\nx: {long}\r\n\r\n").into_bytes(),
            format!("GET / HTTP/1.1\r\n{many}\r\n").into_bytes(),
            b"GET /metrics HTTP/9.9\r\n\r\n".to_vec(),
            b"POST /metrics HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\nx".to_vec(),
            b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n".to_vec(),
        ];
        for attack in attacks {
            let answer = send(at, &attack);
            let shown = String::from_utf8_lossy(&attack[..attack.len().min(40)]).into_owned();
            assert!(["none", "400", "404", "405", "414", "431"].contains(&code(&answer)), "{shown:?}: {answer}");
            assert_eq!(code(&get(at, "/health")), "200", "after {shown:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn connections_that_say_nothing_give_their_places_back() {
    let bed = bed(Duration::from_secs(3600));
    let at = address(&bed);
    ask(move || {
        let idle: Vec<TcpStream> = (0..80)
            .map(|number| {
                let mut stream = TcpStream::connect(at).unwrap();
                // Some say half a sentence.
                stream.write_all(&b"GET /metrics HTTP/1.1\r\nHost: x\r\n"[..number % 30]).unwrap();
                stream
            })
            .collect();
        // It waits for its turn, which comes once the others have run into their deadline.
        assert_eq!(code(&get(at, "/health")), "200");
        drop(idle);
    })
    .await;
}

#[tokio::test]
async fn a_status_address_that_is_taken_is_said_by_name() {
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut bed = Bed::idle();
    let listen = taken.local_addr().unwrap();
    bed.status = Some(StatusConfig { listen, server: "annex2".into(), realm: "montagu".into() });
    let error = bed.start().unwrap_err().to_string();
    assert!(error.contains(&listen.to_string()) && error.contains("TCP"), "{error}");
    // Nothing of it is left behind that would keep the store locked.
    bed.status = None;
    bed.start().unwrap();
}
