//! One request to a web server of this machine.

use std::io::{Read, Write};
use std::net::TcpStream;

/// Asks for `path` below `url`, which is `http://HOST:PORT/` or `HOST:PORT`, and returns the body.
///
/// # Panics
/// If there is no answer.
#[must_use]
#[track_caller]
pub fn get(url: &str, path: &str) -> String {
    attempt(url, path).unwrap_or_else(|error| panic!("{url} {path}: {error}"))
}

/// The same, when it may be that nobody answers.
///
/// # Errors
/// When nobody does.
pub fn attempt(url: &str, path: &str) -> std::io::Result<String> {
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET /{} HTTP/1.0\r\nHost: {address}\r\n\r\n", path.trim_start_matches('/'))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    body.ok_or_else(|| std::io::Error::other(format!("no answer: {answer}")))
}
