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
    agent.run(["backup", "data"]).code(1);
    sinks.wait_for(PATIENCE, hook_says("began", "failing"));
    // A restart makes nobody forget, and nobody hear it again.
    server.restart();
    sinks.refuse(true);
    agent.run(["backup", "data"]).code(1);
    std::thread::sleep(Duration::from_secs(3));
    sinks.refuse(false);
    sinks.wait_for(PATIENCE, hook_says("worse", "failing"));
    fs::rename(&hidden, data.path()).expect("a rename");
    agent.run(["backup", "data"]).success();
    sinks.wait_for(PATIENCE, hook_says("recovered", "failing"));
    sinks.wait_for(PATIENCE, |delivery| {
        delivery["subject"].as_str().is_some_and(|subject| subject.contains("over: production2/data could not"))
    });

    let told = sinks.deliveries().into_iter().filter(|it| it["path"] == "/hook/s3cret");
    // The disk that the tests run on may be rather full.
    let told: Vec<_> = told.flat_map(|delivery| news(&delivery)).filter(|(_, rule)| rule != "space").collect();
    let expected = [("began", "never"), ("recovered", "never"), ("began", "failing"), ("worse", "failing")];
    let expected = expected.into_iter().chain([("recovered", "failing")]);
    let expected: Vec<_> = expected.map(|(event, rule)| (event.to_owned(), rule.to_owned())).collect();
    assert_eq!(told, expected);
    assert!(!server.log().contains("s3cret"), "a secret in the log:\n{}", server.log());
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
