//! Keys in a Vault server: a real one, in memory, that is asked, sealed, confused and stopped.

use std::path::Path;

use vsync_tests::{Bao, Tree, Volume, Vsync, assert_same, scratch};

/// A realm of one machine with an embedded server, whose keys are in a Vault server.
struct Site {
    home: tempfile::TempDir,
    volume: Volume,
    bao: Bao,
}

impl Site {
    fn new(bao: Bao, keys: &str) -> Self {
        let site = Self { home: scratch(), volume: Volume::new(7), bao };
        site.volume.zoo();
        site.keys(keys);
        site
    }

    /// Writes the configuration, with these lines besides `store` and `url`.
    fn keys(&self, lines: &str) {
        let (home, url) = (self.home.path(), self.bao.url());
        let text = format!(
            "[realm]\nname = \"montagu\"\n[[servers]]\nname = \"annex\"\ndata = \"{home}/store\"\n\
             [[clients]]\nname = \"box\"\nbackup = [\"data\"]\n[[volumes]]\nname = \"data\"\npath = \"{volume}\"\n\
             [keys]\nstore = \"vault\"\nurl = \"{url}\"\n{lines}\n",
            home = home.display(),
            volume = self.volume.path().display(),
        );
        std::fs::write(home.join("vsync.toml"), text).expect("what the test bed made");
    }

    /// vsync without any token.
    fn bare(&self) -> Vsync {
        Vsync::at(self.home.path()).env("VSYNC_STATE_DIR", self.home.path().join("state"))
    }

    fn vsync(&self) -> Vsync {
        self.bare().env("VSYNC_VAULT_TOKEN", self.bao.root_token())
    }

    fn set_up(&self) {
        self.vsync().run(["init"]).success().stdout_contains("Vault at ");
        self.vsync().run(["keygen", "--all"]).success();
        self.vsync().run(["configure", "box"]).success();
    }

    fn back_up_and_restore(&self, vsync: &Vsync) {
        vsync.run(["backup", "data"]).success();
        let target = scratch();
        vsync.run(["restore", "data", "--to-path", &target.path().display().to_string()]).success();
        assert_same(&Tree::read(self.volume.path()), &Tree::read(target.path()));
    }

    fn secret(&self, path: &str) -> String {
        self.bao.run(&["kv", "get", "-field=key", path])
    }
}

fn lies_nowhere(home: &Path) {
    assert!(!home.join("keys").exists(), "nothing was written to a directory");
}

#[test]
fn all_keys_live_in_an_engine_of_version_2_and_none_is_replaced_unasked() {
    let site = Site::new(Bao::start(), "prefix = \"/secret/vimc/vsync\"");
    site.set_up();
    lies_nowhere(site.home.path());
    site.back_up_and_restore(&site.vsync());
    site.vsync().run(["check"]).success().stdout_contains("its keys are here");

    let before = site.secret("secret/vimc/vsync/machines/box");
    assert!(before.contains("machine = \"box\""));
    site.vsync().run(["keygen", "--all"]).success().stdout_contains("has a key already");
    assert_eq!(site.secret("secret/vimc/vsync/machines/box"), before);
    site.vsync().run(["keygen", "box", "--rotate"]).success();
    assert_ne!(site.secret("secret/vimc/vsync/machines/box"), before);
    let versions = site.bao.run(&["read", "-field=current_version", "secret/metadata/vimc/vsync/machines/box"]);
    assert_eq!(versions, "2", "the old one is still in the history");
    site.back_up_and_restore(&site.vsync());

    // A realm's secret that is there is never replaced, and one that was deleted is not forgotten.
    std::fs::remove_file(site.home.path().join("vsync.pub")).unwrap();
    let refused = site.vsync().run(["init"]).code(1);
    refused.stderr_contains("secret/vimc/vsync/realm exists already in Vault at");
    site.bao.run(&["kv", "delete", "secret/vimc/vsync/realm"]);
    site.vsync().run(["init"]).code(1).stderr_contains("exists already");
}

#[test]
fn an_engine_of_version_1_serves_as_well() {
    let bao = Bao::start();
    bao.run(&["secrets", "enable", "-path=kv1", "-version=1", "kv"]);
    let site = Site::new(bao, "prefix = \"kv1/team/vsync\"");
    site.set_up();
    site.back_up_and_restore(&site.vsync());
    let before = site.secret("kv1/team/vsync/machines/box");
    site.vsync().run(["keygen", "--all"]).success();
    assert_eq!(site.secret("kv1/team/vsync/machines/box"), before);
    site.vsync().run(["keygen", "box", "--rotate"]).success();
    assert_ne!(site.secret("kv1/team/vsync/machines/box"), before);
    std::fs::remove_file(site.home.path().join("vsync.pub")).unwrap();
    site.vsync().run(["init"]).code(1).stderr_contains("kv1/team/vsync/realm exists already");
    // A wrong statement about the version is found out, not believed.
    site.keys("prefix = \"kv1/team/vsync\"\nkv = 2");
    site.vsync().run(["keygen", "--all"]).code(12).stderr_contains("there is no key at kv1/team/vsync/realm");
}

#[test]
fn a_token_comes_from_a_variable_a_file_a_command_or_the_vault_command() {
    let site = Site::new(Bao::start(), "prefix = \"secret/vsync\"");
    site.set_up();
    let token = site.bao.root_token();
    let file = site.home.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let check = |vsync: &Vsync| vsync.run(["check"]);
    check(&site.bare().env("VSYNC_VAULT_TOKEN_FILE", &file)).success();
    check(&site.bare().env("VSYNC_VAULT_TOKEN_COMMAND", format!("echo {token}"))).success();
    check(&site.bare().env("VAULT_TOKEN", token)).success();
    // Ours counts before that of the vault command.
    check(&site.vsync().env("VAULT_TOKEN", "wrong")).success();
    check(&site.vsync().env("VSYNC_VAULT_TOKEN_FILE", &file)).code(1).stdout_contains("only one of them can count");
    check(&site.bare().env("VSYNC_VAULT_TOKEN_COMMAND", "exit 3")).code(1).stdout_contains("exit status: 3");
    check(&site.bare()).code(1).stdout_contains("there is no token for Vault at");
    site.bare().run(["configure", "box"]).code(12).stderr_contains("VSYNC_VAULT_TOKEN_COMMAND");
    std::fs::write(site.home.path().join(".vault-token"), token).unwrap();
    check(&site.bare()).success();

    site.keys("prefix = \"secret/vsync\"\ntoken = \"$MY_TOKEN\"");
    check(&site.bare().env("MY_TOKEN", token)).success();
    site.bare().run(["configure", "box"]).code(12).stderr_contains("MY_TOKEN");
    site.keys("prefix = \"secret/vsync\"\ntoken = \"s.literal\"");
    let refused = site.bare().run(["configure", "box"]).code(2).stderr_contains("must name an environment variable");
    assert_eq!(refused.stderr().matches("s.literal").count(), 1, "only the line of the file shows it");
}

#[test]
fn a_machine_logs_in_by_approle_and_reads_its_own_key_only() {
    let site = Site::new(Bao::start(), "prefix = \"secret/vsync\"");
    site.set_up();
    site.bao.policy("box", "path \"secret/data/vsync/machines/box\" { capabilities = [\"read\"] }");
    site.bao.run(&["auth", "enable", "approle"]);
    site.bao.run(&["write", "auth/approle/role/box", "token_policies=box"]);
    let role = site.bao.run(&["read", "-field=role_id", "auth/approle/role/box/role-id"]);
    let secret = site.bao.run(&["write", "-f", "-field=secret_id", "auth/approle/role/box/secret-id"]);
    let file = site.home.path().join("secret-id");
    std::fs::write(&file, &secret).unwrap();
    site.keys(&format!("prefix = \"secret/vsync\"\nrole-id = \"{role}\"\nsecret-id-file = \"{}\"", file.display()));
    site.bare().run(["configure", "box"]).success();
    // The embedded server has a key of its own, which this role may not read.
    site.bare().run(["backup", "data"]).code(12).stderr_contains("may not read secret/vsync/machines/annex");
    site.bare().run(["keygen", "--all"]).code(12).stderr_contains("may not read secret/vsync/realm");

    site.keys(&format!("prefix = \"secret/vsync\"\nrole-id = \"{role}\""));
    site.bare().env("VSYNC_VAULT_SECRET_ID", &secret).run(["configure", "box"]).success();
    let refused = site.bare().env("VSYNC_VAULT_SECRET_ID", "wrong").run(["configure", "box"]).code(12);
    refused.stderr_contains("refuses the AppRole login at auth/approle").stderr_contains("make a new secret id");
}

#[test]
fn what_is_wrong_with_a_server_is_said_with_what_to_do() {
    let site = Site::new(Bao::start(), "prefix = \"secret/vsync\"");
    site.set_up();
    let configure = |vsync: Vsync| vsync.run(["configure", "box"]);

    let wrong = configure(site.bare().env("VSYNC_VAULT_TOKEN", "s.wrong")).code(12);
    wrong.stderr_contains("does not know the token (from VSYNC_VAULT_TOKEN)").stderr_contains("vault login");
    let narrow = site.bao.token("path \"elsewhere/*\" { capabilities = [\"read\"] }");
    let denied = configure(site.bare().env("VSYNC_VAULT_TOKEN", &narrow)).code(2);
    denied.stderr_contains("has no key/value engine at secret, or none that this token may see");
    site.keys("prefix = \"secret/vsync\"\nkv = 2");
    let denied = configure(site.bare().env("VSYNC_VAULT_TOKEN", &narrow)).code(12);
    denied.stderr_contains("may not read secret/vsync/machines/box").stderr_contains("policy");
    site.keys("prefix = \"nowhere/vsync\"");
    configure(site.vsync()).code(2).stderr_contains("has no key/value engine at nowhere");
    site.keys("prefix = \"secret/other\"");
    let missing = configure(site.vsync()).code(12);
    missing.stderr_contains("there is no key at secret/other/machines/box").stderr_contains("vsync keygen");
    site.bao.run(&["kv", "put", "secret/other/machines/box", "private=ssh"]);
    configure(site.vsync()).code(12).stderr_contains("holds no key of vsync");

    site.keys("prefix = \"secret/vsync\"");
    site.bao.run(&["operator", "seal"]);
    let sealed = configure(site.vsync()).code(10);
    sealed.stderr_contains("is sealed").stderr_contains("vault operator unseal");
    let Site { home, bao, .. } = site;
    drop(bao);
    let vsync = Vsync::at(home.path()).env("VSYNC_VAULT_TOKEN", "any");
    let gone = vsync.run(["configure", "box"]).code(10);
    gone.stderr_contains("does not answer").stderr_contains("check `url`");
}

#[test]
fn a_server_with_a_certificate_of_its_own_is_believed_only_by_name() {
    let site = Site::new(Bao::start_with_tls(), "prefix = \"secret/vsync\"");
    let ca = site.bao.ca();
    let refused = site.vsync().run(["init"]).code(10);
    refused.stderr_contains("cannot be trusted").stderr_contains("name that in `ca`");
    site.keys(&format!("prefix = \"secret/vsync\"\nca = \"{}\"", ca.display()));
    site.set_up();
    site.back_up_and_restore(&site.vsync());
    site.keys(&format!("prefix = \"secret/vsync\"\nca = \"{}\"", site.home.path().join("vsync.toml").display()));
    site.vsync().run(["configure", "box"]).code(2).stderr_contains("it holds no certificate");
}
