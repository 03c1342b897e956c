//! A server whose clock is not the agent's: it is said, nothing is decided by it, and what is backed up is right.

use std::fs;

use vsync_protocol::wire::Reply;
use vsync_tests::{Liar, Site, Tree, assert_same};

/// Two days and a minute, in milliseconds.
const FAR: i64 = (48 * 60 + 1) * 60_000;

#[test]
fn clocks_that_disagree_are_mentioned_and_harm_nothing() {
    let site = Site::new(1);
    site.data.many("many", 20, 3000);
    site.backup();
    let file = site.realm.machine("host").join("vsync.toml");
    let toml = fs::read_to_string(&file).unwrap();
    let line = toml.lines().find(|line| line.starts_with("address")).unwrap();
    let honest = line.split('"').nth(1).unwrap();
    for (ahead, word) in [(FAR, "ahead"), (-FAR, "behind")] {
        // On its way every time of the server's is moved: that is what another clock looks like.
        let liar =
            Liar::before(honest, &site.realm.identity("store"), &site.realm.identity("host"), move |_, mut said| {
                match &mut said.reply {
                    Reply::Hello { now, .. } => *now += ahead,
                    Reply::Status(status) => status.now += ahead,
                    Reply::Overview(overview) => overview.server.now += ahead,
                    Reply::Snapshots(list) => list.iter_mut().for_each(|record| record.received += ahead),
                    _ => {}
                }
                said.say()
            });
        fs::write(&file, toml.replace(honest, &liar.address().to_string())).unwrap();
        site.data.write("file", word);
        let host = site.host();
        host.run(["backup", "data"]).success().stderr_contains(" s apart");
        let checked = host.run(["check", "--connection"]).code(1);
        assert!(checked.stdout().contains(&format!("its clock is 2 d 00 h {word}")), "{checked}");
        let there = vsync_tests::scratch();
        let path = there.path().to_str().unwrap();
        host.run(["restore", "data", "--to-path", path]).success();
        assert_same(&Tree::read(site.data.path()), &Tree::read(there.path()));
        // Times on the command line are compared with the server's.
        let at = if ahead > 0 { 11 } else { 0 };
        let _ = host.run(["restore", "data", "--at", "1h ago", "--to-path", path]).code(at);
    }
    fs::write(&file, &toml).unwrap();
    site.backup();
}
