//! `vsync dump`.

use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Zoned;

use super::GlobalArgs;
use super::from::FromArgs;
use super::progress::Display;
use super::report::{Exit, Failure};
use super::signal::Stop;
use super::spec::{Bare, Spec};
use super::{export, output};
use crate::dump::{self, DumpError, DumpReport, Form};
use crate::progress::Progress;

const BUFFER: usize = 256 << 10;

/// Write a file of a snapshot to stdout, or a directory as a tar archive
///
/// What was backed up with --stdin NAME is dumped by that name. Nothing that is damaged is
/// written: the output then ends early, and the exit code is 13.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync dump latest:PG_VERSION
  vsync dump montagu_dump | psql montagu
  vsync dump barman_recover@latest~1:base/16384 -o base.tar")]
pub(super) struct DumpArgs {
    /// The snapshot, and a place in it: an id, `latest`, or VOLUME[@SNAPSHOT]
    #[arg(value_name = "SNAPSHOT[:PATH]")]
    what: String,

    #[command(flatten)]
    from: FromArgs,

    /// The form in which a directory is written
    #[arg(long, value_name = "FORMAT", default_value = "tar")]
    archive: Archive,

    /// Write to this file, pipe or device; a file is replaced when all is there
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The form in which a directory is written.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Archive {
    /// POSIX tar with extended headers
    Tar,
}

impl DumpArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let spec = Spec::parse(&self.what, Bare::Snapshot, &Zoned::now())?;
        let (session, snapshot) = self.from.find(global, &spec)?;
        let vault = session.vault(&snapshot)?;
        let progress = Arc::new(Progress::default());
        Stop::install()?.cancels(progress.clone());
        if spec.path.is_root() {
            progress.total_bytes.set(snapshot.sealed.bytes);
        }
        // Stdout carries the content: lines of JSON would spoil it.
        let quiet = GlobalArgs { json: false, no_progress: global.no_progress || global.json, ..global.clone() };
        let display = Display::start(&quiet, "dumping", &progress);
        let write = |output: &mut dyn Write| {
            dump::run(
                &session.remote,
                &vault,
                &snapshot,
                &spec.path,
                Form::Plain,
                BufWriter::with_capacity(BUFFER, output),
                &progress,
            )
        };
        let (Archive::Tar, outcome) = (
            self.archive,
            match &self.output {
                None => write(&mut io::stdout().lock()).map_err(Failure::from),
                Some(path) => write_to(path, write),
            },
        );
        drop(display);
        Ok(show(&outcome?))
    }
}

/// Writes to a pipe or a device as it is. A file gets its content when all of it is there.
fn write_to(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<DumpReport, DumpError>,
) -> Result<DumpReport, Failure> {
    let about = path.metadata().ok();
    // What is below these is somebody's open file, under whatever name.
    let open_already = path.starts_with("/dev") || path.starts_with("/proc");
    if open_already || about.as_ref().is_some_and(|about| !about.is_file()) {
        let file = OpenOptions::new().write(true).open(path);
        return Ok(write(&mut file.map_err(|error| export::unwritable(path, &error))?)?);
    }
    // Through a link, the file that it names.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let report = export::write_whole(&path, write)?;
    if let Some(about) = about {
        keep_rights(&path, &about).map_err(|error| export::unwritable(&path, &error))?;
    }
    Ok(report)
}

/// Whoever could read the file before can read it now.
fn keep_rights(path: &Path, before: &Metadata) -> io::Result<()> {
    // Only root can give it to somebody else.
    let _ = chown(path, Some(before.uid()), Some(before.gid()));
    fs::set_permissions(path, before.permissions())
}

fn show(report: &DumpReport) -> Exit {
    for path in &report.sockets {
        output::say(format_args!("note: {path} is a socket, which an archive cannot hold"));
    }
    for path in &report.left_out {
        output::say(format_args!("left out: {path} is another name of a file outside of the directory"));
    }
    if report.left_out.is_empty() { Exit::Exact } else { Exit::Defects }
}
