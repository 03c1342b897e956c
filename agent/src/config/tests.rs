//! A table of configurations and what is said of them.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::schedule;

const GOOD: &str = r#"
[realm]
name = "montagu"

[[servers]]
name = "annex2"
address = "annex2.example.org:10022"
data = "/var/lib/vsync/annex2"
backup = ["barman_recover"]

[[servers]]
name = "here"
data = "/srv/vsync"

[[clients]]
name = "production2"
backup = ["montagu_orderly_volume", "montagu_outpack_volume"]
[[clients.schedule]]
volume = "montagu_outpack_volume"
server = "annex2"
at = "02:00"

[[clients]]
name = "uat"

[[clients]]
name = "dmz"
role = "writer"

[[volumes]]
name = "montagu_orderly_volume"
quiesce = "pause"
profile = "database"
[volumes.retention]
keep-daily = 30
keep-weekly = 12

[[volumes]]
name = "etc"
path = "/etc"

[retention]
keep-last = 3
keep-within = "7d"
min-retention = "36h"
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("conf/vsync.toml"), text)
}

/// What is wrong with the good configuration once `from` is replaced by `to`.
fn complaints(from: &str, to: &str) -> Vec<String> {
    let bad = GOOD.replacen(from, to, 1);
    assert_ne!(bad, GOOD, "{from}");
    match parse(&bad).unwrap_err() {
        ConfigError::Invalid { problems, .. } => {
            problems.iter().map(|p| format!("{}:{} {}", p.line, p.column, p.message)).collect()
        }
        other => panic!("{other}"),
    }
}

fn name<T: FromStr<Err: fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

#[test]
fn the_design_parses() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.realm.as_str(), "montagu");
    assert_eq!(config.servers[0].address, Some(Address { host: "annex2.example.org".into(), port: 10022 }));
    assert_eq!(config.servers[1].address, None);
    let role = |machine: &str| config.machine(&name(machine)).unwrap().role;
    assert_eq!(
        [role("annex2"), role("here"), role("uat"), role("dmz")],
        [Role::Writer, Role::Server, Role::Full, Role::Writer]
    );
    assert_eq!(config.clients[0].schedule[0].at.to_string(), "02:00");
    assert_eq!(config.volume(&name("etc")).unwrap().path.as_deref(), Some(Path::new("/etc")));
    assert_eq!(config.retention(&name("montagu_orderly_volume")).unwrap().daily, 30);
    let general = config.retention(&name("barman_recover")).unwrap();
    assert_eq!((general.last, general.within), (3, Some(Duration::from_secs(7 * 86400))));
    assert_eq!(general.floor, Some(Duration::from_secs(36 * 3600)));
    assert_eq!(config.keys, KeysConfig::Directory("conf/keys".into()));
    assert_eq!(config.registry_path(), Path::new("conf/vsync.pub"));
    assert_eq!(config.backed_up().len(), 3);
}

#[test]
fn a_server_may_show_its_status_and_a_volume_may_be_older_than_others() {
    let text = GOOD
        .replace("data = \"/srv/vsync\"", "data = \"/srv/vsync\"\nstatus = \"[::1]:10080\"")
        .replace("path = \"/etc\"", "path = \"/etc\"\nmax-age = \"8d\"");
    let config = parse(&text).unwrap();
    assert_eq!(config.servers[0].status, None);
    assert_eq!(config.servers[1].status, Some("[::1]:10080".parse().unwrap()));
    assert_eq!(config.max_age(&name("etc")), Some(Duration::from_secs(8 * 86400)));
    assert_eq!(config.max_age(&name("barman_recover")), None);
}

#[test]
fn bad_configurations_are_told_what_is_wrong_and_where() {
    let machine_rule = "must be 1 to 128 letters, digits, '_', '.' or '-', beginning with a letter or digit";
    for (from, to, complaint) in [
        ("address =", "adress =", "7:1 unknown key `adress`; did you mean `address`?"),
        (
            "[retention]",
            "[zzz]",
            "42:2 unknown key `zzz`; known here: realm, servers, clients, volumes, retention, keys, notify",
        ),
        ("data = \"/srv/vsync\"", "", "11:1 the key `data` is missing here"),
        ("\"pause\"", "\"freeze\"", "32:11 `freeze` is not one of: none, pause, stop, hooks"),
        ("keep-daily = 30", "keep-daily = -1", "35:14 invalid value: integer `-1`, expected a whole number"),
        ("name = \"uat\"", "name = \"uat", "24:12 invalid basic string, expected `\"`"),
        ("name = \"uat\"", "name = \"u/t\"", &format!("24:8 machine name \"u/t\" {machine_rule}")),
        ("name = \"uat\"", "name = \"here\"", "24:8 machine `here` is defined twice; first on line 12"),
        (
            "name = \"etc\"",
            "name = \"montagu_orderly_volume\"",
            "39:8 volume `montagu_orderly_volume` is defined twice; first on line 31",
        ),
        (
            ":10022\"",
            "\"",
            "7:11 address \"annex2.example.org\" is not HOST:PORT, as in `backup.example.org:10022` or `[2001:db8::1]:10022`",
        ),
        (
            "\"/srv/vsync\"",
            "\"s3://b/p\"",
            "13:8 `data` must be an absolute path, since every machine shares this file",
        ),
        (
            "data = \"/srv/vsync\"",
            "data = \"/srv/vsync\"\nstatus = \"localhost:10080\"",
            "14:10 `localhost:10080` is not IP:PORT, as in `127.0.0.1:10080` or `[::1]:10080`",
        ),
        (
            "path = \"/etc\"",
            "path = \"/etc\"\nmax-age = \"soon\"",
            "41:11 `soon` is not a duration such as `36h`, `7d` or `4w`",
        ),
        (
            "server = \"annex2\"",
            "server = \"anex2\"",
            "20:10 `anex2` is not one of the [[servers]]; did you mean `annex2`?",
        ),
        (
            "volume = \"montagu_outpack_volume\"",
            "volume = \"montagu_outpack\"",
            "19:10 `montagu_outpack` is not in the `backup` list of this machine",
        ),
        (
            "\"02:00\"",
            "\"2 am\"",
            "21:6 `2 am` is neither a time (`02:00`), nor @hourly, @daily, @weekly or @monthly, nor five cron fields",
        ),
        (
            "role = \"writer\"",
            "role = \"server\"",
            "28:8 a client's role is `full` or `writer`; servers belong under [[servers]]",
        ),
        (
            "backup = [\"barman_recover\"]",
            "backup = [\"a\"]\nrole = \"server\"",
            "10:8 role `server` cannot back up volumes; remove it, or the `backup` list",
        ),
        (
            "path = \"/etc\"",
            "exec-pre = \"sync\"",
            "40:12 commands are only run with quiesce = \"hooks\", \"pause\" or \"stop\"",
        ),
        ("path = \"/etc\"", "run-before = []", "40:14 there is no command here"),
        ("path = \"/etc\"", "run-before = 7", "40:14 a command: a line for the shell, or a list of words"),
        ("path = \"/etc\"", "hook-failure = \"ignore\"", "40:16 `ignore` is not one of: fail, continue"),
        (
            "path = \"/etc\"",
            "stop-timeout = \"1 minuet\"",
            "40:16 `1 minuet` is not a duration such as `36h`, `7d` or `4w`",
        ),
        ("\"7d\"", "\"soon\"", "44:15 `soon` is not a duration such as `36h`, `7d` or `4w`"),
        (
            "keep-daily = 30\nkeep-weekly = 12",
            "keep-daily = 0",
            "34:1 this retention keeps nothing; remove it to keep everything",
        ),
        ("\"02:00\"", "\"0 25 * * *\"", "21:6 the hours in `0 25 * * *` cannot be `25`; they go from 0 to 23"),
        (
            "at = \"02:00\"",
            "at = \"02:00\"\ntime-zone = \"Europe/Lundon\"",
            "22:13 there is no time zone `Europe/Lundon`; did you mean `Europe/London`? (zones are written like `Europe/London`, or `UTC`)",
        ),
        (
            "at = \"02:00\"",
            "at = \"02:00\"\njitter = \"2d\"",
            "22:10 `2d` is not a duration such as `10m`, up to a day; `0s` for none",
        ),
        ("[retention]", "[keys]\nurl = \"x\"\n[retention]", "43:7 `url` has no meaning with store = \"directory\""),
        ("[retention]", "[keys]\nstore = \"vault\"\n[retention]", "42:1 store = \"vault\" needs `url` and `prefix`"),
    ] {
        assert_eq!(complaints(from, to), [complaint], "{from} -> {to}");
    }
}

#[test]
fn commands_are_lines_or_words() {
    let with = |lines: &str| parse(&GOOD.replacen("path = \"/etc\"", lines, 1)).unwrap();
    let config = with("quiesce = \"pause\"\nexec-pre = \"sync\"\nexec-post = [\"a\", \"b c\"]\nrun-finally = \"x\"");
    let volume = config.volume(&name("etc")).unwrap();
    assert_eq!(volume.exec_pre, Some(Command::Line("sync".into())));
    assert_eq!(volume.exec_post, Some(Command::Words(vec!["a".into(), "b c".into()])));
    assert_eq!(volume.run, RunHooks { finally: Some(Command::Line("x".into())), ..RunHooks::default() });
    let config = with("stop-timeout = \"90s\"\nhook-timeout = \"2h\"\nhook-failure = \"continue\"");
    let volume = config.volume(&name("etc")).unwrap();
    assert_eq!(
        (volume.stop_timeout, volume.hook_timeout),
        (Some(Duration::from_secs(90)), Some(Duration::from_secs(7200)))
    );
    assert_eq!(volume.hook_failure, HookFailure::Continue);
    let config = parse(&GOOD.replacen("name = \"uat\"", "name = \"uat\"\nrun-before = \"mount /backup\"", 1)).unwrap();
    let run = &config.machine(&name("uat")).unwrap().run;
    assert_eq!(run.before, Some(Command::Line("mount /backup".into())));
}

#[test]
fn everything_wrong_is_reported_at_once_in_order() {
    let bad = GOOD.replace(":10022", "").replace("\"02:00\"", "\"x\"").replace("\"7d\"", "\"\"");
    let error = parse(&bad).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().filter(|line| line.starts_with("  line")).map(|line| &line[..9]).collect();
    assert_eq!(lines, ["  line 7,", "  line 21", "  line 44"]);
    assert!(error.starts_with("conf/vsync.toml has 3 problems\n  line 7, column 11: address "), "{error}");
    assert!(error.contains("\n    | at = \"x\"\n"), "{error}");
}

#[test]
fn schedules_and_addresses() {
    for at in ["00:00", "23:59", "@daily", "*/5 * * * 1-5", "0 2 1 jan,jul *"] {
        assert!(parse(&GOOD.replace("02:00", at)).is_ok(), "{at}");
    }
    for at in ["24:00", "2:00", "12:60", "@yearl", "* * * *", "* * * * * *", "0 2 ? ! *"] {
        assert!(parse(&GOOD.replace("02:00", at)).is_err(), "{at}");
    }
    for address in ["a:1", "10.0.0.1:65535", "[2001:db8::1]:10022", "my-host.example.org:10022"] {
        assert_eq!(address.parse::<Address>().unwrap().to_string(), address);
    }
    for address in ["a", "a:", ":1", "a:0", "a:65536", "a:+1", "a b:1", "2001:db8::1:1", "[x]:1", "https://a:1"] {
        assert_eq!(address.parse::<Address>(), Err(BadAddress(address.to_owned())));
    }
}

#[test]
fn schedules_go_by_the_clocks_that_are_named() {
    let due = |text: &str| {
        let config = parse(text).unwrap();
        schedule::next_due(&config.clients[0].schedule[0], "2026-07-01T12:00:00Z".parse().unwrap()).unwrap().to_string()
    };
    let exact = GOOD.replace("name = \"montagu\"", "name = \"montagu\"\njitter = \"0s\"");
    assert_eq!(due(&exact), "2026-07-02T02:00:00Z");
    let london = exact.replace("jitter", "time-zone = \"Europe/London\"\njitter");
    assert_eq!(due(&london), "2026-07-02T01:00:00Z");
    assert_eq!(
        due(&london.replace("at = \"02:00\"", "at = \"02:00\"\ntime-zone = \"Asia/Tokyo\"")),
        "2026-07-01T17:00:00Z"
    );
    let late: jiff::Timestamp = due(GOOD).parse().unwrap();
    assert!(late > "2026-07-02T02:00:00Z".parse().unwrap() && late < "2026-07-02T02:05:00Z".parse().unwrap(), "{late}");
}

#[test]
fn containers_have_names_of_their_own() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.servers[0].container(), "vsync-server-annex2");
    assert_eq!(config.clients[0].schedule_container(), "vsync-schedule-production2");
    let named = GOOD
        .replace("name = \"annex2\"", "name = \"annex2\"\ncontainer = \"backups\"")
        .replace("name = \"production2\"", "name = \"production2\"\nschedule-container = \"nightly\"");
    let config = parse(&named).unwrap();
    assert_eq!(
        (config.servers[0].container(), config.clients[0].schedule_container()),
        ("backups".into(), "nightly".into())
    );
}

#[test]
fn names_that_are_not_there_bring_a_suggestion() {
    let config = parse(GOOD).unwrap();
    let error = config.machine(&name("production")).unwrap_err();
    assert_eq!(error.to_string(), "there is no machine production in conf/vsync.toml; did you mean `production2`?");
    assert_eq!(config.server(Some(&name("here"))).unwrap().machine.name.as_str(), "here");
    assert_eq!(
        config.server(None).unwrap_err().to_string(),
        "conf/vsync.toml has not exactly one server (it has: annex2, here)"
    );
}

#[test]
fn the_identity_is_beside_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("vsync.toml");
    let identity = |given: Option<&str>| find::identity(&config, given.map(name::<MachineName>).as_ref());
    assert!(matches!(identity(None), Err(ConfigError::NoIdentity { .. })));
    std::fs::write(dir.path().join(".vsync_identity"), "uat\n").unwrap();
    assert_eq!(identity(None).unwrap().as_str(), "uat");
    assert_eq!(identity(Some("annex2")).unwrap().as_str(), "annex2");
    std::fs::write(dir.path().join(".vsync_identity"), "{}").unwrap();
    assert!(matches!(identity(None), Err(ConfigError::BadIdentity { .. })));
}

#[test]
fn ways_of_telling_people() {
    let with = |entry: &str| parse(&format!("{GOOD}\n[[notify]]\n{entry}\n"));
    let way = |entry: &str| with(entry).unwrap().notify.remove(0).way;
    assert_eq!(
        way("webhook = \"https://h.example.org/x\""),
        Way::Webhook(Written::Here("https://h.example.org/x".into()))
    );
    assert_eq!(way("ping = \"$PING\"\nservers = [\"annex2\"]"), Way::Ping(Written::Variable("PING".into())));
    let mail = "mail-to = [\"ops@example.org\"]\nmail-from = \"vsync@example.org\"\n";
    for (smtp, expected) in [
        ("smtps://me@mail.example.org", (465, SmtpTls::Whole, Some("me"))),
        ("smtp://mail.example.org:2525", (2525, SmtpTls::Upgraded, None)),
        ("smtp+plain://localhost", (25, SmtpTls::None, None)),
    ] {
        let Way::Mail { smtp, password, .. } = way(&format!("{mail}smtp = \"{smtp}\"\nsmtp-password = \"$PW\"")) else {
            panic!("no mail");
        };
        assert_eq!((smtp.port, smtp.tls, smtp.user.as_deref()), expected);
        assert_eq!(password.as_deref(), Some("PW"));
    }
    for (entry, complaint) in [
        ("servers = []", "needs one of `webhook`, `mail-to` and `ping`"),
        ("webhook = \"https://x.org\"\nping = \"https://x.org\"", "needs one of"),
        ("webhook = \"s3cret\"", "neither an http or https URL, nor a variable"),
        ("webhook = \"$X\"\nsmtp = \"smtp://h\"", "this belongs to `mail-to`"),
        ("mail-to = [\"ops\"]\nmail-from = \"a@b\"\nsmtp = \"smtp://h\"", "`ops` is no e-mail address"),
        ("mail-to = [\"a@b\"]", "needs `mail-from` and `smtp`"),
        ("mail-to = [\"a@b\"]\nmail-from = \"a@b\"\nsmtp = \"h\"", "`smtp` is of the form"),
        ("mail-to = [\"a@b\"]\nmail-from = \"a@b\"\nsmtp = \"smtp://u:s3cret@h\"", "`smtp` is of the form"),
        (
            "mail-to = [\"a@b\"]\nmail-from = \"a@b\"\nsmtp = \"smtp://h\"\nsmtp-password = \"s3cret\"",
            "must name a variable",
        ),
        ("webhook = \"$X\"\nservers = [\"anex2\"]", "did you mean `annex2`?"),
    ] {
        let error = with(entry).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(complaint), "{entry}: {message}");
    }
}
