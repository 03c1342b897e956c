//! `vsync diff`.

use jiff::Zoned;
use serde_json::json;
use vsync_protocol::id::MachineName;
use vsync_protocol::tree::{EntryKind, EntryPath};

use super::GlobalArgs;
use super::output;
use super::report::{Exit, Failure};
use super::session::{Session, short};
use super::spec::{Bare, Spec};
use crate::diff::{Change, Diff, Kind};
use crate::restore;

/// Show what differs between two snapshots
///
/// `+` added, `-` removed, `M` content changed, `U` only metadata changed, `T` another kind
/// of entry. What the two have in common is not read, so that this takes as long as there
/// are differences.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync diff barman_recover@latest~1 barman_recover
  vsync diff 1a2b3c4d 5e6f7a8b --json")]
pub(super) struct DiffArgs {
    /// The first snapshot: an id, `latest~1`, or VOLUME[@SNAPSHOT]
    #[arg(value_name = "SNAPSHOT")]
    old: String,

    /// The second snapshot
    #[arg(value_name = "SNAPSHOT")]
    new: String,

    /// The server to ask [default: the only one]
    #[arg(long, env = "VSYNC_SERVER", value_name = "NAME")]
    server: Option<MachineName>,

    /// The machine whose backups they are [default: the only one that has them]
    #[arg(long, env = "VSYNC_SOURCE", value_name = "NAME")]
    source: Option<MachineName>,
}

/// How much of each there is.
#[derive(Default)]
struct Totals {
    files: u64,
    directories: u64,
    others: u64,
    bytes: u64,
}

#[derive(Default)]
struct Summary {
    changed: u64,
    added: Totals,
    removed: Totals,
}

impl DiffArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let now = Zoned::now();
        let parse = |text: &str| Spec::parse(text, Bare::Snapshot, &now);
        let (old, new) = (parse(&self.old)?, parse(&self.new)?);
        if !old.path.is_root() || !new.path.is_root() {
            return Err(Failure::new(Exit::Usage, "snapshots are compared as a whole, without :PATH"));
        }
        let session = Session::open(global, self.server.as_ref())?;
        let old = session.find(&old, self.source.as_ref())?;
        let new = session.find(&new, self.source.as_ref())?;
        let open = |snapshot| -> Result<_, Failure> {
            let vault = session.vault(snapshot)?;
            Ok(restore::open_tree(&session.remote, &vault, snapshot, &EntryPath::root())?.1)
        };
        let mut summary = Summary::default();
        // The same root is the same everything.
        if old.body.root != new.body.root {
            let mut diff = Diff::new(open(&old)?, open(&new)?);
            while let Some(change) = diff.next_change()? {
                summary.add(&change);
                print(global, &change)?;
            }
        }
        if global.json {
            return output::json(&json!({
                "message_type": "statistics",
                "source_snapshot": old.id.to_string(),
                "target_snapshot": new.id.to_string(),
                "changed_files": summary.changed,
                "added": summary.added.json(),
                "removed": summary.removed.json(),
            }))
            .map(|()| Exit::Exact);
        }
        if !global.quiet {
            summary.print(&short(old.id), &short(new.id))?;
        }
        Ok(Exit::Exact)
    }
}

const fn modifier(kind: Kind) -> &'static str {
    match kind {
        Kind::Added => "+",
        Kind::Removed => "-",
        Kind::Content => "M",
        Kind::Metadata => "U",
        Kind::Type => "T",
    }
}

fn print(global: &GlobalArgs, change: &Change) -> Result<(), Failure> {
    let path = change.path.to_string();
    if global.json {
        return output::json(&json!({"message_type": "change", "path": path, "modifier": modifier(change.kind)}));
    }
    output::line(format_args!("{:<4} {path}", modifier(change.kind)))
}

impl Summary {
    fn add(&mut self, change: &Change) {
        self.added.bytes = self.added.bytes.saturating_add(change.bytes_added);
        self.removed.bytes = self.removed.bytes.saturating_add(change.bytes_removed);
        match change.kind {
            Kind::Added => change.new.iter().for_each(|entry| self.added.count(entry.kind)),
            Kind::Removed => change.old.iter().for_each(|entry| self.removed.count(entry.kind)),
            Kind::Content | Kind::Metadata | Kind::Type => self.changed += 1,
        }
    }

    fn print(&self, old: &str, new: &str) -> Result<(), Failure> {
        output::line(format_args!("from {old} to {new}: {} entries changed", self.changed))?;
        for (word, totals) in [("added", &self.added), ("removed", &self.removed)] {
            output::line(format_args!(
                "{word}: {} files, {} directories, {} others, {}",
                totals.files,
                totals.directories,
                totals.others,
                output::size(totals.bytes),
            ))?;
        }
        Ok(())
    }
}

impl Totals {
    const fn count(&mut self, kind: EntryKind) {
        match kind {
            EntryKind::File => self.files += 1,
            EntryKind::Directory => self.directories += 1,
            EntryKind::Symlink
            | EntryKind::HardLink
            | EntryKind::CharDevice
            | EntryKind::BlockDevice
            | EntryKind::Fifo
            | EntryKind::Socket => self.others += 1,
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({"files": self.files, "dirs": self.directories, "others": self.others, "bytes": self.bytes})
    }
}
