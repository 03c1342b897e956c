//! Somebody is told when something is wrong, and when it is over: by webhook, by e-mail over TLS, and a watchdog.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use vsync_tests::realm::RealmBuilder;
use vsync_tests::{Realm, Server, Sinks, Vsync, scratch};

const PATIENCE: Duration = Duration::from_secs(90);

fn realm(sinks: &Sinks, data: &std::path::Path) -> RealmBuilder {
    Realm::new().server("annex2").directory("data", data).client("production2", &["data"]).extra(&format!(
        "[[notify]]\nwebhook = \"$TEST_HOOK\"\n\
         [[notify]]\nping = {:?}\nservers = [\"annex2\"]\n\
         [[notify]]\nmail-to = [\"ops@example.org\", \"night@example.org\"]\nmail-from = \"vsync@example.org\"\n\
         smtp = {:?}\nsmtp-password = \"$TEST_PASSWORD\"\nca = {:?}\n",
        sinks.url("watchdog"),
        sinks.smtp(),
        sinks.ca()
    ))
}

fn with_secrets(vsync: Vsync, sinks: &Sinks) -> Vsync {
    vsync.env("TEST_HOOK", sinks.url("hook/s3cret")).env("TEST_PASSWORD", "let me in").env("VSYNC_NOTIFY_EVERY", "1")
}

/// The news that a delivery brings, as the words of a webhook.
fn news(delivery: &Value) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let news = delivery["body"]["news"].as_array().cloned().unwrap_or_default();
    news.iter().map(|news| (word(&news["event"]), word(&news["rule"]))).collect()
}

fn hook_says(event: &str, rule: &str) -> impl Fn(&Value) -> bool {
    let expected = (event.to_owned(), rule.to_owned());
    move |delivery| delivery["path"] == "/hook/s3cret" && news(delivery).contains(&expected)
}

#[test]
fn a_failure_its_turn_for_the_worse_and_its_end_are_told_once_each_on_every_way() {
    let sinks = Sinks::start();
    let data = scratch();
    fs::write(data.path().join("file"), "content").expect("a file");
    let realm = realm(&sinks, data.path()).build();
    let mut server = Server::start(with_secrets(realm.vsync("annex2"), &sinks));
    let agent = realm.vsync("production2");

    // Declared, and never backed up: that is the first thing to say. Nothing is critical, so the watchdog is told, too.
    let first = sinks.wait_for(PATIENCE, hook_says("began", "never"));
    let said = first["body"]["text"].as_str().expect("a text");
    assert!(
        said.starts_with("🟡 vsync annex2: warning: production2/data is declared, and was never backed up"),
        "{said}"
    );
    sinks.wait_for(PATIENCE, |delivery| delivery["path"] == "/watchdog" && delivery["method"] == "GET");
    let mail = sinks.wait_for(PATIENCE, |delivery| delivery["way"] == "mail");
    assert_eq!(mail["encrypted"], true, "{mail}");
    assert_eq!(mail["to"], serde_json::json!(["ops@example.org", "night@example.org"]));
    let subject = mail["subject"].as_str().expect("a subject");
    assert!(subject.starts_with("[vsync annex2] warning: production2/data is declared, and was never"), "{subject}");

    agent.run(["backup", "data"]).success();
    sinks.wait_for(PATIENCE, hook_says("recovered", "never"));

    let hidden = data.path().with_extension("away");
    fs::rename(data.path(), &hidden).expect("a rename");
    agent.run(["backup", "data"]).code(11);
    sinks.wait_for(PATIENCE, hook_says("began", "failing"));
    // A restart makes nobody forget, and nobody hear it again.
    server.restart();
    sinks.refuse(true);
    agent.run(["backup", "data"]).code(11);
    std::thread::sleep(Duration::from_secs(3));
    sinks.refuse(false);
    sinks.wait_for(PATIENCE, hook_says("worse", "failing"));
    silence_while_it_is_critical(&sinks, &mut server);
    let before = pings(&sinks);
    fs::rename(&hidden, data.path()).expect("a rename");
    agent.run(["backup", "data"]).success();
    sinks.wait_for(PATIENCE, hook_says("recovered", "failing"));
    sinks.wait_for(PATIENCE, |delivery| {
        delivery["subject"].as_str().is_some_and(|subject| subject.contains("over: production2/data could not"))
    });

    until_pinged_after(&sinks, before);

    let told = sinks.deliveries().into_iter().filter(|it| it["path"] == "/hook/s3cret");
    // The disk that the tests run on may be rather full.
    let told: Vec<_> = told.flat_map(|delivery| news(&delivery)).filter(|(_, rule)| rule != "space").collect();
    let expected = [("began", "never"), ("recovered", "never"), ("began", "failing"), ("worse", "failing")];
    let expected = expected.into_iter().chain([("recovered", "failing")]);
    let expected: Vec<_> = expected.map(|(event, rule)| (event.to_owned(), rule.to_owned())).collect();
    assert_eq!(told, expected);
    assert!(!server.log().contains("s3cret"), "a secret in the log:\n{}", server.log());
}

fn pings(sinks: &Sinks) -> usize {
    sinks.deliveries().iter().filter(|delivery| delivery["path"] == "/watchdog").count()
}

/// A server that has just started says at once that all is well, unless something is critical.
fn silence_while_it_is_critical(sinks: &Sinks, server: &mut Server) {
    let before = pings(sinks);
    server.restart();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(pings(sinks), before, "the watchdog was told that all is well");
}

fn until_pinged_after(sinks: &Sinks, before: usize) {
    let started = std::time::Instant::now();
    while pings(sinks) == before {
        assert!(started.elapsed() < PATIENCE, "the watchdog does not hear that all is well again");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_configuration_that_is_not_understood_is_told_of_and_ends_no_other_alert() {
    let sinks = Sinks::start();
    let data = scratch();
    let realm = realm(&sinks, data.path()).build();
    let server = Server::start(with_secrets(realm.vsync("annex2"), &sinks));
    sinks.wait_for(PATIENCE, hook_says("began", "never"));
    let file = realm.machine("annex2").join("vsync.toml");
    let right = fs::read_to_string(&file).expect("vsync.toml");
    fs::write(&file, format!("{right}\n[[volumes]]\nnme = \"slip\"\n")).expect("vsync.toml");
    let told = sinks.wait_for(PATIENCE, hook_says("began", "configuration"));
    assert!(told["body"]["text"].as_str().is_some_and(|text| text.contains("cannot be understood")), "{told}");
    std::thread::sleep(Duration::from_secs(3));
    fs::write(&file, right).expect("vsync.toml");
    sinks.wait_for(PATIENCE, hook_says("recovered", "configuration"));
    let all: Vec<_> = sinks.deliveries().iter().flat_map(news).filter(|(_, rule)| rule == "never").collect();
    assert_eq!(all, [("began".to_owned(), "never".to_owned())], "{}", server.log());
}

#[test]
fn a_test_message_says_who_cannot_be_told() {
    let sinks = Sinks::start();
    let data = scratch();
    let realm = realm(&sinks, data.path()).build();
    let server = with_secrets(realm.vsync("annex2"), &sinks);
    let output = server.run(["server", "notify"]).success();
    assert_eq!(output.stdout().lines().filter(|line| line.ends_with(": told")).count(), 3, "{output}");
    sinks.wait_for(PATIENCE, hook_says("began", "test"));

    sinks.refuse(true);
    let output = server.run(["server", "notify"]);
    let output = output.code(1);
    assert!(output.stderr().contains("3 of 3 could not be told"), "{output}");
    sinks.refuse(false);
    let output = server.clone().env("TEST_PASSWORD", "wrong").run(["server", "notify"]);
    let output = output.code(1);
    assert!(output.stderr().contains("1 of 3 could not be told"), "{output}");
    let output = server.clone().env("TEST_PASSWORD", "").run(["server", "notify"]);
    let output = output.code(2);
    assert!(output.stderr().contains("TEST_PASSWORD_FILE"), "{output}");
}
