//! `vsync ls`.

use jiff::{Timestamp, Zoned};
use vsync_protocol::tree::{Entry, EntryKind, EntryPath};

use super::GlobalArgs;
use super::entries;
use super::from::FromArgs;
use super::output;
use super::report::{Exit, Failure};
use super::session::short;
use super::spec::{Bare, Spec};
use super::time;
use crate::restore;

/// List what is in a snapshot
///
/// Only the parts of the snapshot's tree that are listed are fetched.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync ls latest
  vsync ls 1a2b3c4d:base/16384 --long
  vsync ls barman_recover@2026-11-19:base --recursive --json")]
pub(super) struct LsArgs {
    /// The snapshot, and a place in it: an id, `latest`, or VOLUME[@SNAPSHOT]
    #[arg(value_name = "SNAPSHOT[:PATH]")]
    what: String,

    #[command(flatten)]
    from: FromArgs,

    /// What is in directories, too
    #[arg(short = 'R', long)]
    recursive: bool,

    /// Mode, owner, group, size and time, too
    #[arg(short, long)]
    long: bool,
}

impl LsArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let now = Zoned::now();
        let spec = Spec::parse(&self.what, Bare::Snapshot, &now)?;
        let (session, snapshot) = self.from.find(global, &spec)?;
        let vault = session.vault(&snapshot)?;
        let base = &spec.path;
        let (_, mut tree) = restore::open_tree(&session.remote, &vault, &snapshot, base)?;
        if !base.is_root() {
            match tree.next_entry(None)? {
                Some(entry) if entry.path == *base => {
                    if entry.kind != EntryKind::Directory {
                        self.print(global, &entry, &now)?;
                        return Ok(Exit::Exact);
                    }
                }
                _ => return Err(no_such_path(base, &short(snapshot.id))),
            }
        }
        // What is in the directory before is passed over.
        let mut passed: Option<EntryPath> = None;
        while let Some(entry) = tree.next_entry(passed.as_ref())? {
            if !entry.path.is_within(base) {
                break;
            }
            self.print(global, &entry, &now)?;
            passed = (entry.kind == EntryKind::Directory && !self.recursive).then(|| entry.path.clone());
        }
        Ok(Exit::Exact)
    }

    fn print(&self, global: &GlobalArgs, entry: &Entry, now: &Zoned) -> Result<(), Failure> {
        if global.json {
            return output::json(&entries::node(entry));
        }
        if !self.long {
            return output::line(&entry.path);
        }
        let target = entry.target.as_ref().map_or(String::new(), |target| format!(" -> {}", entries::escaped(target)));
        let mtime =
            Timestamp::from_second(entry.mtime.seconds).map_or_else(|_| "-".to_owned(), |at| time::format(at, now));
        output::line(format_args!(
            "{} {:>5} {:>5} {:>12} {mtime} {}{target}",
            entries::permissions(entry),
            entry.uid,
            entry.gid,
            entry.size,
            entry.path,
        ))
    }
}

/// A place that the snapshot does not have.
pub(super) fn no_such_path(path: &EntryPath, snapshot: &str) -> Failure {
    Failure::new(Exit::NotFound, format!("snapshot {snapshot} has no {path}"))
        .hint(format!("`vsync ls {snapshot}` shows what there is"))
}
