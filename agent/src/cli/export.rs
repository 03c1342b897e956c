//! `vsync export`.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Zoned;
use serde_json::json;

use super::GlobalArgs;
use super::from::FromArgs;
use super::output;
use super::progress::Display;
use super::report::{Exit, Failure, io_exit};
use super::session::short;
use super::signal::Stop;
use super::spec::{Bare, Spec};
use crate::dump::{self, DumpError, DumpReport, Form};
use crate::durable::{Draft, Existing};
use crate::progress::Progress;
use crate::snapshot::Snapshot;

const BUFFER: usize = 256 << 10;

/// Write a snapshot as a tar archive, exactly
///
/// Numeric owners, times to the nanosecond, extended attributes, access control lists, hard
/// links, devices and holes are in it, and the volume's own directory. It is taken by `vsync
/// import`, and by GNU tar: `tar --extract --xattrs --xattrs-include='*' --acls
/// --numeric-owner`. An archive is not encrypted.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync export redis_data
  vsync export montagu_orderly_volume@latest~1 --source production2 --to-dir /mnt/usb
  vsync export redis_data --output - | zstd > redis_data.tar.zst")]
pub(super) struct ExportArgs {
    /// The snapshot; the newest of the volume unless another is named
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    what: String,

    #[command(flatten)]
    from: FromArgs,

    /// The directory for a new file SOURCE-VOLUME-TIME.tar [default: the current one]
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    to_dir: Option<PathBuf>,

    /// The file to write, which must not exist; `-` for stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl ExportArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let spec = Spec::parse(&self.what, Bare::Volume, &Zoned::now())?;
        let (session, snapshot) = self.from.find(global, &spec)?;
        let progress = Arc::new(Progress::default());
        Stop::install()?.cancels(progress.clone());
        if spec.path.is_root() {
            progress.total_bytes.set(snapshot.sealed.bytes);
        }
        let to_stdout = self.output.as_deref() == Some(Path::new("-"));
        // Lines of JSON would spoil an archive on stdout.
        let display = GlobalArgs { json: global.json && !to_stdout, ..global.clone() };
        let display = Display::start(&display, "exporting", &progress);
        let vault = session.vault(&snapshot)?;
        let write = |output: &mut dyn Write| {
            let output = BufWriter::with_capacity(BUFFER, output);
            dump::run(&session.remote, &vault, &snapshot, &spec.path, Form::Exact, output, &progress)
        };
        if to_stdout {
            let report = write(&mut io::stdout().lock())?;
            drop(display);
            return Ok(notes(&report));
        }
        let path = self.path(&snapshot);
        let report = write_file(&path, write)?;
        drop(display);
        show(global, &snapshot, &path, &report)?;
        Ok(notes(&report))
    }

    fn path(&self, snapshot: &Snapshot) -> PathBuf {
        if let Some(path) = &self.output {
            return path.clone();
        }
        let body = &snapshot.body;
        let now = Zoned::now().strftime("%Y%m%d-%H%M%S").to_string();
        let name = format!("{}-{}-{now}.tar", body.source, body.volume);
        self.to_dir.as_ref().map_or_else(|| PathBuf::from(&name), |directory| directory.join(&name))
    }
}

/// Writes a new file.
fn write_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<DumpReport, DumpError>,
) -> Result<DumpReport, Failure> {
    if path.symlink_metadata().is_ok() {
        return Err(Failure::new(Exit::Failed, format!("{} exists already; nothing was overwritten", path.display()))
            .hint("choose another name with --output, or remove it".to_owned()));
    }
    write_whole(path, write)
}

/// Writes under another name first: what has the name of an archive is a whole one.
pub(super) fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<DumpReport, DumpError>,
) -> Result<DumpReport, Failure> {
    let failed = |error| unwritable(path, &error);
    // For its owner only: it holds in clear what the volume holds.
    let mut draft = Draft::of(path, 0o600).map_err(failed)?;
    let report = write(&mut draft.file)?;
    draft.publish(Existing::Replace).map_err(failed)?;
    Ok(report)
}

/// The failure to write what should be at `path`.
pub(super) fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure {
        causes: vec![error.to_string()],
        ..Failure::new(io_exit(error), format!("cannot write {}", path.display()))
    }
}

fn notes(report: &DumpReport) -> Exit {
    for path in &report.sockets {
        output::say(format_args!("note: {path} is a socket, which an archive cannot hold"));
    }
    for path in &report.left_out {
        output::say(format_args!("left out: {path} is another name of a file outside of the directory"));
    }
    if report.left_out.is_empty() { Exit::Exact } else { Exit::Defects }
}

fn show(global: &GlobalArgs, snapshot: &Snapshot, path: &Path, report: &DumpReport) -> Result<(), Failure> {
    let body = &snapshot.body;
    if global.json {
        return output::json(&json!({
            "message_type": "summary",
            "snapshot_id": snapshot.id.to_string(),
            "volume": body.volume.as_str(),
            "hostname": body.source.as_str(),
            "output": path,
            "total_files": report.entries,
            "total_bytes": report.bytes,
        }));
    }
    if global.quiet {
        return Ok(());
    }
    output::line(format_args!(
        "exported {} of {} from {} into {}: {} in {} entries",
        short(snapshot.id),
        body.volume,
        body.source,
        path.display(),
        output::size(report.bytes),
        report.entries
    ))
}
