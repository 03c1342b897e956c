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

/// A script that sets a realm up reads JSON from the first command on.
#[test]
fn setting_up_speaks_json_too() {
    let home = scratch();
    let vsync = Vsync::at(home.path()).with(["--json"]);
    std::fs::write(home.path().join(".gitignore"), "target").expect("a file");
    let made = vsync.run(["init", "--realm", "montagu"]).success().json();
    assert_eq!(made["realm"], "montagu", "{made}");
    let ignored = std::fs::read_to_string(home.path().join(".gitignore")).expect("a file");
    assert_eq!(ignored, "target\n.vsync_identity\n");
    let page = vsync.run(["key", "recovery-kit"]).success().json();
    assert!(page["page"].as_str().is_some_and(|page| page.contains("vsync1")), "{page}");
    let written = vsync.run(["key", "recovery-kit", "--out", "kit.txt"]).success().json();
    assert_eq!(written["written"], "kit.txt");
    let more = "[[servers]]\nname = \"store\"\naddress = \"127.0.0.1:1\"\ndata = \"/nowhere\"\n\
                [[clients]]\nname = \"host\"\nbackup = [\"data\"]\n[[volumes]]\nname = \"dta\"\n";
    let toml = format!("[realm]\nname = \"montagu\"\n{more}");
    std::fs::write(home.path().join("vsync.toml"), toml).expect("a file");
    let checked = vsync.run(["config", "check"]).success().json();
    let warning = checked["warnings"][0].as_str().expect("a warning");
    assert!(warning.contains("dta") && warning.contains("did you mean `data`"), "{warning}");
    vsync.run(["keygen", "--all"]).success();
    let configured = vsync.run(["configure", "host"]).success().json();
    assert_eq!((&configured["machine"], &configured["role"]), (&"host".into(), &"full".into()));
    vsync.run(["configure", "hots"]).code(2).stderr_contains("vsync configure NAME");
    std::fs::write(home.path().join(".vsync_identity"), "").expect("a file");
    vsync.run(["check"]).code(1).stdout_contains(".vsync_identity does not hold the name of a machine");
    vsync.run(["snapshots", "--kit", "no-such-kit"]).code(12).stderr_contains("vsync key recovery-kit");
}
