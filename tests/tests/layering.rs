//! Who may know whom: crates by what they link, rooms by what their sources name. Design, "Rooms".

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The rooms of the agent, and those that each may name. `cli` may name all, and nobody names it.
const AGENT: &[(&str, &[&str])] = &[
    ("acl", &[]),
    (
        "backup",
        &["budget", "cache", "chunk", "config", "progress", "quiesce", "remote", "snapshot", "tree", "vault", "volume"],
    ),
    ("budget", &[]),
    ("cache", &["tree"]),
    ("chunk", &[]),
    ("compare", &[]),
    // What is written in vsync.toml is checked where it is read: calendars, too.
    ("config", &["schedule", "suggest"]),
    ("content", &["remote", "tree", "vault"]),
    ("diff", &["tree"]),
    ("docker", &[]),
    ("dump", &["acl", "content", "progress", "remote", "restore", "snapshot", "tree", "vault"]),
    ("durable", &[]),
    ("find", &["pattern", "tree"]),
    ("keys", &["config", "durable"]),
    ("pattern", &[]),
    ("progress", &[]),
    ("quiesce", &["config", "docker", "durable", "suggest"]),
    ("remote", &["budget", "durable", "tree", "vault"]),
    (
        "restore",
        &[
            "budget", "chunk", "durable", "pattern", "progress", "remote", "shelf", "snapshot", "tree", "vault",
            "volume",
        ],
    ),
    ("schedule", &["config", "docker", "keys", "suggest"]),
    ("shelf", &[]),
    ("snapshot", &["tree"]),
    ("suggest", &[]),
    ("tree", &[]),
    ("unpack", &["acl", "progress", "shelf", "volume"]),
    ("vault", &["chunk", "keys", "tree"]),
    ("verify", &["chunk", "content", "progress", "remote", "snapshot", "tree", "vault", "volume"]),
    ("volume", &[]),
];

/// The same of the server. `serve` puts all together.
const SERVER: &[(&str, &[&str])] = &[
    ("alerts", &["overview", "upkeep", "words"]),
    ("answers", &["catalog", "commit", "refusal", "serve", "upkeep"]),
    ("archive", &["catalog", "catchup", "clock", "pins", "store", "upkeep", "words"]),
    ("catalog", &["clock", "store", "words"]),
    ("catchup", &["archive", "catalog", "store"]),
    ("clock", &[]),
    ("commit", &["archive", "catalog"]),
    ("connection", &["catalog", "fetch", "limits", "refusal", "serve", "session"]),
    ("fetch", &["archive", "catalog", "store"]),
    ("jobs", &["archive", "catalog", "refusal", "serve", "store"]),
    ("limits", &["refusal"]),
    ("overview", &["archive", "catalog", "upkeep"]),
    ("pins", &[]),
    ("rebuild", &["archive", "catalog", "catchup", "relog", "store"]),
    ("refusal", &["archive", "catalog", "commit", "store", "upkeep", "words"]),
    ("relog", &["archive", "catalog", "rebuild", "repair", "store", "upkeep"]),
    ("repair", &["archive", "catalog", "rebuild", "store", "upkeep"]),
    (
        "serve",
        &[
            "alerts",
            "archive",
            "connection",
            "jobs",
            "limits",
            "overview",
            "refusal",
            "shares",
            "store",
            "upkeep",
            "web",
        ],
    ),
    ("session", &["archive", "catalog", "limits", "pins", "refusal", "shares", "store", "upkeep"]),
    ("shares", &["store"]),
    ("store", &["words"]),
    ("upkeep", &["archive", "catalog", "pins", "store", "words"]),
    ("web", &["alerts", "archive", "catalog", "overview", "words"]),
    ("words", &[]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All sources below `place`, as their paths there and what is in them.
fn sources(place: &Path) -> Vec<(String, String)> {
    let (mut found, mut below) = (Vec::new(), vec![place.to_owned()]);
    while let Some(path) = below.pop() {
        if path.is_dir() {
            below.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(place).unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

fn room(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// What code alone says: tests may know more, and comments bind nobody.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The rooms that `text` names: after each `crate::` one, or several in braces.
fn named(text: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let mut names = BTreeSet::new();
    for rest in code(text).split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => {
                names.extend(group.split(';').next().unwrap().split([',', '{']).map(|part| word(part.trim())));
            }
            None => names.extend([word(rest)]),
        }
    }
    names
}

#[track_caller]
fn check_rooms(place: &str, table: &[(&str, &[&str])], over_all: &[&str]) {
    let table: BTreeMap<&str, &[&str]> = table.iter().copied().collect();
    let mut wrong = Vec::new();
    for (file, text) in sources(&root().join(place)) {
        let own = room(&file);
        if over_all.contains(&own) || file.contains("tests") {
            continue;
        }
        let Some(may) = table.get(own) else {
            wrong.push(format!("{place}/{file}: room {own} is not in the table"));
            continue;
        };
        for other in named(&text).iter().filter(|other| table.contains_key(other.as_str()) || *other == "cli") {
            if other != own && !may.contains(&other.as_str()) {
                wrong.push(format!("{place}/{file} names crate::{other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rooms_name_only_those_that_they_may() {
    check_rooms("agent/src", AGENT, &["cli", "lib", "main"]);
    check_rooms("server/src", SERVER, &["lib", "testing"]);
    // The reading of sources itself.
    let text = "use crate::tree::{Node, Reference};\n// crate::no\nuse crate::{keys, vault::Vault};\ncrate::a::b()";
    assert!(["a", "keys", "tree", "vault"].iter().all(|name| named(text).contains(*name)), "{:?}", named(text));
    assert!(!named(text).contains("no"));
}

#[test]
fn only_the_command_line_knows_the_server() {
    for (file, text) in sources(&root().join("agent/src")) {
        let may =
            ["cli/server", "cli/report/server", "cli/status", "cli/quickstart"].iter().any(|at| file.starts_with(at));
        assert!(may || !code(&text).contains("vsync_server"), "agent/src/{file} names vsync_server");
    }
}

/// Everything that `package` is built from, tests aside.
fn linked(metadata: &Value, package: &str) -> BTreeSet<String> {
    let name = |id: &Value| {
        let all = metadata["packages"].as_array().unwrap();
        all.iter().find(|one| one["id"] == *id).unwrap()["name"].as_str().unwrap().to_owned()
    };
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let mut next = vec![nodes.iter().find(|node| name(&node["id"]) == package).unwrap()];
    let mut seen = BTreeSet::new();
    while let Some(node) = next.pop() {
        for dependency in node["deps"].as_array().unwrap() {
            let linked = dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null());
            if linked && seen.insert(name(&dependency["pkg"])) {
                next.push(nodes.iter().find(|node| node["id"] == dependency["pkg"]).unwrap());
            }
        }
    }
    seen
}

#[test]
fn crates_link_only_what_they_may() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform"];
    let output =
        Command::new(cargo).args(arguments).arg("x86_64-unknown-linux-gnu").current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (package, never) in [
        ("vsync-protocol", &["tokio", "quinn", "rusqlite", "rustls", "vsync", "vsync-server"][..]),
        // It cannot decrypt, whatever it is told.
        ("vsync-server", &["chacha20poly1305", "aes-gcm", "age", "zstd", "fastcdc", "vsync"]),
        ("vsync", &["vsync-tests"]),
    ] {
        let linked = linked(&metadata, package);
        assert!(linked.len() > 3, "{package}: {linked:?}");
        let wrong: Vec<_> = never.iter().filter(|name| linked.contains(**name)).collect();
        assert!(wrong.is_empty(), "{package} links {wrong:?}");
    }
}
