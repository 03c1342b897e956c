//! Commands as a whole, from arguments to files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::context::Context;
use super::*;

/// Runs `vsync ARGS…` with the configuration in `dir`, quietly.
fn vsync(dir: &Path, args: &[&str]) -> Result<Exit, Failure> {
    let config = dir.join("vsync.toml");
    let start = ["vsync", "--quiet", "--config", config.to_str().unwrap()];
    parse(start.iter().chain(args)).unwrap().run()
}

fn realm() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    vsync(dir.path(), &["init", "--realm", "montagu"]).unwrap();
    vsync(dir.path(), &["keygen", "--all"]).unwrap();
    dir
}

#[test]
fn the_command_line_is_consistent() {
    command().debug_assert();
    for wrong in [&["vsync", "keygen"][..], &["vsync", "keygen", "a", "--all"], &["vsync", "keygen", "--rotate"]] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn from_nothing_to_a_configured_machine() {
    let dir = realm();
    let path = dir.path();
    assert_eq!(vsync(path, &["config", "check"]), Ok(Exit::Exact));
    assert_eq!(vsync(path, &["configure", "client"]), Ok(Exit::Exact));
    assert_eq!(vsync(path, &["check"]), Ok(Exit::Exact));
    let global =
        GlobalArgs { config: Some(path.join("vsync.toml")), state_dir: Some("/s".into()), ..GlobalArgs::default() };
    let context = Context::load(&global).unwrap();
    assert_eq!(context.bundle.machine.as_str(), "client");
    assert_eq!(context.registry.realm.name.as_str(), "montagu");
    assert_eq!(context.state_dir, Path::new("/s"));
    assert_eq!(fs::read_to_string(path.join(".gitignore")).unwrap(), ".vsync_identity\n");
}

#[test]
fn init_never_overwrites() {
    let dir = realm();
    let path = dir.path();
    let files = ["vsync.toml", "vsync.pub", "keys/realm.key"].map(|file| path.join(file));
    let before = files.clone().map(|file| fs::read(file).unwrap());
    assert_eq!(vsync(path, &["init"]).unwrap_err().code, Exit::Failed);
    fs::remove_file(path.join("vsync.pub")).unwrap();
    let failure = vsync(path, &["init"]).unwrap_err();
    assert!(failure.heading.ends_with("realm.key exists already; nothing was overwritten"), "{failure}");
    assert_eq!(fs::read(&files[0]).unwrap(), before[0]);
    assert_eq!(fs::read(&files[2]).unwrap(), before[2]);
    assert_eq!(vsync(path, &["init", "--realm", "other"]).unwrap_err().code, Exit::Usage);
}

#[test]
fn the_recovery_kit_is_private_and_holds_the_realm() {
    let dir = realm();
    let out = dir.path().join("kit.txt");
    let args = ["key", "recovery-kit", "--out", out.to_str().unwrap()];
    assert_eq!(vsync(dir.path(), &args), Ok(Exit::Exact));
    assert_eq!(fs::metadata(&out).unwrap().mode() & 0o7777, 0o600);
    let kit = crate::keys::Kit::parse(&fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(kit.realm.unwrap().as_str(), "montagu");
    assert_eq!(kit.servers[0].name.as_str(), "backup");
    assert_eq!(vsync(dir.path(), &args).unwrap_err().code, Exit::Failed);
}

#[test]
fn a_lost_realm_secret_comes_back_from_the_kit() {
    let dir = realm();
    let path = dir.path();
    let (kit, key) = (path.join("kit.txt"), path.join("keys/realm.key"));
    vsync(path, &["key", "recovery-kit", "--out", kit.to_str().unwrap()]).unwrap();
    let init = ["init", "--kit", kit.to_str().unwrap()];
    assert_eq!(vsync(path, &init).unwrap_err().code, Exit::Failed);

    let (public, secret) = (fs::read(path.join("vsync.pub")).unwrap(), fs::read(&key).unwrap());
    fs::remove_file(&key).unwrap();
    assert_eq!(vsync(path, &["keygen", "--all"]).unwrap_err().code, Exit::NotAuthorised);
    assert_eq!(vsync(path, &init), Ok(Exit::Exact));
    assert_eq!((fs::read(path.join("vsync.pub")).unwrap(), fs::read(&key).unwrap()), (public, secret));

    let bare = tempfile::tempdir().unwrap();
    assert_eq!(vsync(bare.path(), &init), Ok(Exit::Exact));
    assert_eq!(vsync(bare.path(), &["keygen", "--all"]), Ok(Exit::Exact));

    let other = realm();
    fs::remove_file(other.path().join("keys/realm.key")).unwrap();
    assert_eq!(vsync(other.path(), &init).unwrap_err().code, Exit::NotAuthorised);
}

#[test]
fn each_failure_has_its_code_and_its_advice() {
    let dir = realm();
    let path = dir.path();
    let failure = vsync(path, &["configure", "clint"]).unwrap_err();
    assert_eq!(failure.code, Exit::Usage);
    assert!(failure.heading.ends_with("did you mean `client`?"), "{failure}");

    let key = path.join("keys/machines/client.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let failure = vsync(path, &["configure", "client"]).unwrap_err();
    assert_eq!((failure.code, failure.hint), (Exit::NotAuthorised, Some(format!("chmod 600 {}", key.display()))));
    assert_eq!(vsync(path, &["check", "--as", "client"]), Ok(Exit::Failed));

    fs::remove_file(&key).unwrap();
    assert_eq!(vsync(path, &["configure", "client"]).unwrap_err().code, Exit::NotAuthorised);
    fs::remove_file(path.join("vsync.toml")).unwrap();
    assert_eq!(vsync(path, &["config", "check"]).unwrap_err().code, Exit::Failed);
}

#[test]
fn keys_of_before_a_rotation_are_refused() {
    let dir = realm();
    let key = dir.path().join("keys/machines/client.key");
    let old = dir.path().join("old");
    fs::copy(&key, &old).unwrap();
    vsync(dir.path(), &["keygen", "client", "--rotate"]).unwrap();
    fs::rename(&old, &key).unwrap();
    let failure = vsync(dir.path(), &["configure", "client"]).unwrap_err();
    assert_eq!(failure.code, Exit::NotAuthorised);
    assert_eq!(failure.heading, "the key of client on this machine is not the one in vsync.pub");
}

#[test]
fn manuals_are_written_for_every_command() {
    let dir = tempfile::tempdir().unwrap();
    vsync(dir.path(), &["man", dir.path().to_str().unwrap()]).unwrap();
    for page in ["vsync.1", "vsync-keygen.1", "vsync-key-recovery-kit.1"] {
        assert!(dir.path().join(page).is_file(), "{page}");
    }
}

/// Every command that does something, by its words.
fn commands(command: &clap::Command, words: &str, found: &mut Vec<(String, clap::Command)>) {
    let words = format!("{words} {}", command.get_name()).trim().to_owned();
    if !command.has_subcommands() {
        found.push((words.clone(), command.clone()));
    }
    for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help") {
        commands(below, &words, found);
    }
}

fn all_commands() -> Vec<(String, clap::Command)> {
    let mut found = Vec::new();
    commands(&command(), "", &mut found);
    assert!(found.len() > 30, "{}", found.len());
    found
}

/// Splits a line as a shell does, as far as examples go: blanks, and quotes of both kinds.
fn shell_words(line: &str) -> Vec<String> {
    let (mut words, mut quote) = (vec![String::new()], None);
    for letter in line.chars() {
        let last = words.last_mut().unwrap();
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (None, '"' | '\'') => quote = Some(letter),
            (None, ' ') if !last.is_empty() => words.push(String::new()),
            (None, ' ') => {}
            (_, letter) => last.push(letter),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_command_has_examples_and_every_example_is_right() {
    for (words, command) in all_commands() {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let (_, examples) = after.split_once("Example").unwrap_or_else(|| panic!("{words} has no examples"));
        let mut count = 0;
        for line in examples.lines().skip(1).take_while(|line| line.starts_with("  ")) {
            // What stands around it is another program's.
            let line = &line[line.find("vsync ").unwrap_or_else(|| panic!("{words}: {line:?} runs no vsync"))..];
            let line = line.split([';', '>', '|']).next().unwrap().split("  #").next().unwrap();
            let example = shell_words(line);
            parse(&example).unwrap_or_else(|error| panic!("{line:?} in the help of {words}: {error}"));
            // Another command may come before it, or after.
            count += usize::from(example.join(" ").starts_with(&words));
        }
        assert!(count > 0, "{words} has no example of its own");
    }
}

#[test]
fn every_option_has_a_variable_and_a_line_of_help() {
    for (words, command) in all_commands() {
        for option in command.get_arguments().filter(|option| option.get_long().is_some()) {
            let name = option.get_long().unwrap();
            assert!(option.get_help().is_some(), "{words} --{name} has no help");
            if !matches!(name, "help" | "version") {
                let variable = option.get_env().and_then(|variable| variable.to_str());
                let variable = variable.unwrap_or_else(|| panic!("{words} --{name} has no variable"));
                assert!(variable.starts_with("VSYNC_"), "{words} --{name}: {variable}");
            }
        }
    }
}

#[test]
fn the_table_of_exit_codes_is_the_same_everywhere() {
    let codes: std::collections::BTreeSet<u8> = (0..=u8::MAX).filter(|code| Exit::from_code(*code).is_some()).collect();
    assert_eq!(codes, [0, 1, 2, 3, 10, 11, 12, 13, 14, 20, 21, 22, 130].into());
    let numbers = |text: &str| text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    let help: std::collections::BTreeSet<u8> = numbers(EXIT_CODES);
    assert_eq!(help, codes);
    let readme = include_str!("../../../README.md");
    let table = readme.split("## Exit codes").nth(1).and_then(|rest| rest.split("With `--json`").next()).unwrap();
    let readme: std::collections::BTreeSet<u8> = numbers(table);
    assert_eq!(readme, codes);
}
