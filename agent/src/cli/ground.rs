//! Into which directories a whole snapshot is restored unasked: what it does not have is deleted there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use vsync_protocol::tree::EntryPath;

use super::report::{Exit, Failure, io_exit};
use super::session::Session;
use crate::restore::{self, Mark};
use crate::snapshot::Snapshot;

/// How many names are printed.
const SHOWN: usize = 5;

/// Refuses a directory that holds something of others: it is empty, or it is the volume's own, or this machine restored
/// into it before, or `delete` allows it. From then on it is a directory that this machine restored into.
pub(super) fn claim(session: &Session, snapshot: &Snapshot, directory: &Path, delete: bool) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure {
        causes: vec![error.to_string()],
        ..Failure::new(io_exit(&error), format!("cannot look into {}", directory.display()))
    };
    let mark = Mark::of(&session.records(), directory).map_err(failed)?;
    let own = is_own(session, snapshot, directory);
    if !delete && !own && !mark.is_set() {
        let there = present(directory).map_err(failed)?;
        if !there.is_empty() {
            return Err(refusal(directory, &there, &names(session, snapshot)?));
        }
    }
    match mark.set() {
        Ok(()) => Ok(()),
        Err(error) if delete || own => {
            tracing::warn!("not written down that {} is restored into: {error}", directory.display());
            Ok(())
        }
        // Interrupted, it could not go on: what it left would look like something of others.
        Err(error) => {
            let heading = format!("cannot write down that {} is restored into", directory.display());
            let failure = Failure { causes: vec![error.to_string()], ..Failure::new(io_exit(&error), heading) };
            Err(failure.hint("give another --state-dir, or make room there; --delete does without".to_owned()))
        }
    }
}

/// Whether this is the directory that the configuration names for the volume.
fn is_own(session: &Session, snapshot: &Snapshot, directory: &Path) -> bool {
    let volume = session.context.config.volume(&snapshot.body.volume);
    let own = volume.and_then(|volume| fs::canonicalize(volume.path.as_ref()?).ok());
    own.is_some() && own == fs::canonicalize(directory).ok()
}

/// What a directory holds.
fn present(directory: &Path) -> io::Result<BTreeSet<EntryPath>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        // Every new ext4 has one.
        if name != "lost+found" {
            names.insert(EntryPath::new(name.into_vec()).unwrap_or_default());
        }
    }
    Ok(names)
}

/// What the volume's directory holds in the snapshot.
fn names(session: &Session, snapshot: &Snapshot) -> Result<BTreeSet<EntryPath>, Failure> {
    let vault = session.vault(snapshot)?;
    let (_, mut tree) = restore::open_tree(&session.remote, &vault, snapshot, &EntryPath::root())?;
    let (mut names, mut last) = (BTreeSet::new(), None);
    while let Some(entry) = tree.next_entry(last.as_ref())? {
        names.insert(entry.path.clone());
        last = Some(entry.path);
    }
    Ok(names)
}

fn refusal(directory: &Path, there: &BTreeSet<EntryPath>, kept: &BTreeSet<EntryPath>) -> Failure {
    let mut named: Vec<String> = there.difference(kept).take(SHOWN).map(ToString::to_string).collect();
    let more = there.difference(kept).count() - named.len();
    if more > 0 {
        named.push(format!("{more} more"));
    }
    let what = if named.is_empty() { "what the snapshot does not have".to_owned() } else { named.join(", ") };
    let place = directory.display();
    Failure::new(
        Exit::Usage,
        format!("{place} is not empty, and no whole snapshot was restored into it by this machine: {what} would be deleted there"),
    )
    .hint(format!(
        "choose an empty directory; or, if all that the snapshot does not have may go: `--to-path {place} --delete` \
         (`--dry-run` shows what that is)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_would_be_deleted() {
        let names = |names: &[&str]| names.iter().map(|&name| EntryPath::new(name).unwrap()).collect::<BTreeSet<_>>();
        let text = |there: &[&str]| refusal(Path::new("/d"), &names(there), &names(&["a", "b"])).to_string();
        assert!(text(&["a", "c"]).contains(": c would be deleted there"));
        assert!(text(&["a"]).contains(": what the snapshot does not have would be"));
        assert!(text(&["1", "2", "3", "4", "5", "6", "7"]).contains(": 1, 2, 3, 4, 5, 2 more would be"));
        assert!(text(&["c"]).contains("`--to-path /d --delete`"));
    }
}
