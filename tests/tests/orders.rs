//! What an administrator may say about snapshots: give up, keep, bring back.

use vsync_tests::{Site, Tree, assert_same, scratch};

fn ids(site: &Site, words: &[&str]) -> Vec<String> {
    let words = [["snapshots", "--json"].as_slice(), words].concat();
    let listed = site.host().run(words).success().json();
    let rows = listed.as_array().expect("a list").iter();
    rows.map(|row| row["short_id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn snapshots_are_given_up_kept_and_brought_back() {
    let site = Site::with(1, |realm| realm.extra("[retention]\nkeep-last = 1\nmin-retention = \"1s\""));
    let mut trees = Vec::new();
    for version in ["one", "two", "three"] {
        site.data.write("file", version);
        site.backup();
        trees.push(Tree::read(site.data.path()));
    }
    let admin = site.realm.vsync("store");
    let newest_first = ids(&site, &[]);
    let [_, second, first] = newest_first.as_slice() else { panic!("{newest_first:?}") };
    std::thread::sleep(std::time::Duration::from_secs(2));

    // A plan tells what retention would do, and why; a pin changes it.
    let plan = admin.run(["forget", "--dry-run", "--json"]).success().json();
    assert_eq!(plan["forgotten"], 2, "{plan}");
    admin.run(["pin", first]).success().stdout_contains("pinned");
    let plan = admin.run(["forget", "--dry-run"]).success();
    plan.stdout_contains(&format!("forget {second}")).stdout_contains(&format!("keep   {first}"));
    assert_eq!(ids(&site, &[]), newest_first);

    // A pinned one cannot be given up; another can, and comes back as it was.
    admin.run(["forget", first]).code(1).stderr_contains("refused");
    admin.run(["forget", second]).success();
    assert_eq!(ids(&site, &["--forgotten"]), std::slice::from_ref(second));
    assert_eq!(ids(&site, &[]).len(), 2);
    site.host().run(["restore", &format!("data@{second}"), "--to-path", "gone"]).code(11);
    admin.run(["undelete", second]).success();
    assert_eq!(ids(&site, &[]), newest_first);
    let there = scratch();
    site.restore(&[&format!("data@{second}")], there.path());
    assert_same(&trees[1], &Tree::read(there.path()));
    admin.run(["unpin", first]).success();
    admin.run(["forget", first]).success();

    // Clients have no say in any of this.
    site.host().run(["pin", second]).code(12);
    site.host().run(["forget", second]).code(12);
    admin.run(["undelete", "ffffffff"]).code(11).stderr_contains("--forgotten");
    admin.run(["forget"]).code(2);
}

#[test]
fn nothing_young_is_given_up_on_anybodys_order() {
    let site = Site::new(2);
    site.data.write("file", "content");
    site.backup();
    site.backup();
    let second = ids(&site, &[])[1].clone();
    site.realm.vsync("store").run(["forget", &second]).code(1).stderr_contains("refused");
    assert_eq!(ids(&site, &[]).len(), 2);
}
