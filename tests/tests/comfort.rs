//! The command line as people and scripts meet it: colours, quiet, labels, variables, codes.

use std::slice;

use vsync_tests::{Output, Site, Vsync, scratch, shell};

const ESCAPE: char = '\u{1b}';

#[track_caller]
fn plain(output: &Output) {
    assert!(!output.stdout().contains(ESCAPE) && !output.stderr().contains(ESCAPE), "{output}");
    assert!(!output.stdout().contains('\r') && !output.stderr().contains('\r'), "{output}");
}

/// What a terminal shows of a command, with these variables.
fn on_terminal(vsync: &Vsync, variables: &[&str], words: &str) -> String {
    let program = vsync_tests::bin();
    let set = variables.join(" ");
    let home = vsync.home().display();
    let line = format!(
        "cd {home} && env -u NO_COLOR TERM=xterm VSYNC_STATE_DIR={home}/state {set} {} {words}",
        program.display()
    );
    shell::run("script", ["--quiet", "--return", "--command", &line, "/dev/null"])
}

#[test]
fn lines_are_plain_without_a_terminal_and_coloured_on_one_that_wants_it() {
    let site = Site::new(1);
    site.data.many("files", 20, 2000);
    let host = site.host();
    for words in [&["backup", "data"][..], &["snapshots"], &["status"], &["check"], &["verify"], &["--help"]] {
        plain(&host.run(words).success());
    }
    plain(&host.run(["restore", "nothing"]).code(11));
    assert!(on_terminal(&host, &[], "check").contains(ESCAPE));
    for off in ["NO_COLOR=1", "TERM=dumb"] {
        let shown = on_terminal(&host, &[off], "check");
        assert!(!shown.contains(ESCAPE) && shown.contains("this machine is host"), "{off}: {shown}");
    }
}

#[test]
fn quiet_says_nothing_but_errors_and_verbose_says_more() {
    let site = Site::new(2);
    site.data.write("file", "text");
    let host = site.host();
    let quiet = host.run(["backup", "data", "--quiet"]).success();
    assert_eq!((quiet.stdout(), quiet.stderr()), ("", ""));
    host.run(["restore", "nothing", "-q"]).code(11).stderr_contains("error: ");
    let usual = host.run(["backup", "data"]).success();
    assert_eq!(usual.stderr(), "", "{usual}");
    host.run(["backup", "data", "-v"]).success().stderr_contains("connecting as host to store at ");
    host.run(["backup", "data", "-q", "-v"]).code(2);
}

#[test]
fn snapshots_are_found_by_their_labels() {
    let site = Site::new(3);
    let host = site.host();
    let backup = |tags: &[&str]| {
        site.data.write("file", tags.join(" "));
        let words = ["backup", "data", "--json"].into_iter().chain(tags.iter().flat_map(|tag| ["--tag", tag]));
        host.run(words).success().summary()["snapshot_id"].clone()
    };
    let nightly = backup(&["nightly=yes", "team=malaria"]);
    let manual = backup(&["nightly=no", "team=malaria"]);
    let bare = backup(&[]);
    let listed = |words: &[&str]| {
        let all = ["snapshots", "--json"].into_iter().chain(words.iter().copied());
        let rows = host.run(all).success().json();
        rows.as_array().expect("a list").iter().map(|row| row["id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&[]), [bare, manual.clone(), nightly.clone()]);
    assert_eq!(listed(&["--tag", "team=malaria"]), [manual.clone(), nightly.clone()]);
    assert_eq!(listed(&["--tag", "team=malaria", "--limit", "1"]), slice::from_ref(&manual));
    assert_eq!(listed(&["--tag", "team=malaria,nightly=yes"]), slice::from_ref(&nightly));
    assert_eq!(listed(&["--tag", "nightly=yes", "--tag", "nightly=no"]), [manual, nightly]);
    assert_eq!(listed(&["--tag", "nightly=maybe"]), [0; 0]);
    host.run(["backup", "data", "--tag", "nightly"]).code(2).stderr_contains("not of the form KEY=VALUE");
}

#[test]
fn options_come_from_variables_too_and_the_command_line_wins() {
    let site = Site::new(4);
    site.data.write("file", "text");
    let host = site.host();
    host.run(["backup", "data"]).success();
    host.run(["backup", "data"]).success();
    let count = |vsync: &Vsync, words: &[&str]| {
        let all = ["snapshots", "--json"].into_iter().chain(words.iter().copied());
        vsync.run(all).success().json().as_array().expect("a list").len()
    };
    let limited = host.clone().env("VSYNC_LIMIT", "1");
    assert_eq!((count(&host, &[]), count(&limited, &[]), count(&limited, &["--limit", "2"])), (2, 1, 2));
    let there = scratch();
    let dry = host.clone().env("VSYNC_DRY_RUN", "yes").env("VSYNC_TO_PATH", there.path());
    dry.run(["restore", "data"]).success();
    assert!(!there.path().join("file").exists());
    host.clone().env("VSYNC_DRY_RUN", "perhaps").run(["restore", "data"]).code(2).stderr_contains("perhaps");
    host.clone().env("VSYNC_SERVER", "nobody").run(["snapshots"]).code(2).stderr_contains("nobody");
}

#[test]
fn failures_have_the_codes_that_are_promised() {
    let mut site = Site::new(5);
    let host = site.host();
    let made = host.run(["backup", "data", "--json"]).success().summary();
    let id = made["snapshot_id"].as_str().expect("an id");
    for (words, code) in [
        (&["no-such-command"][..], 2),
        (&["backup", "--no-such-option"], 2),
        (&["backup", "--as", "nobody"], 2),
        (&["backup", "other"], 11),
        (&["restore", "data@ffffffff", "--to-path", "/nonexistent/x"], 11),
        (&["forget", id], 12),
        (&["backup", "--stdin-from-command", "data", "--", "false"], 20),
    ] {
        let failed = host.run(words).code(code);
        assert!(failed.stderr().contains("error: "), "{failed}");
    }
    site.server.stop().success();
    host.run(["snapshots"]).code(10).stderr_contains("to do: ");
    let json = host.run(["snapshots", "--json"]).code(10);
    let error: serde_json::Value = serde_json::from_str(json.stderr().lines().last().expect("a line")).expect("JSON");
    assert_eq!((&error["message_type"], &error["code"]), (&"exit_error".into(), &10.into()));
}
