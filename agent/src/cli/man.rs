//! `vsync man`.

use std::io;
use std::path::PathBuf;

use super::output;
use super::report::{Exit, Failure, io_exit};

/// Print the manual page, or write those of all commands to a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  vsync man | man -l -\n  vsync man /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Directory for the pages of all commands; it must exist
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl ManArgs {
    pub(super) fn run(&self) -> Result<Exit, Failure> {
        let failed = |error: io::Error| Failure {
            causes: vec![error.to_string()],
            ..Failure::new(io_exit(&error), "cannot write the manual")
        };
        match &self.directory {
            Some(directory) => clap_mangen::generate_to(super::command(), directory).map_err(failed)?,
            None => output::print(&page().map_err(failed)?)?,
        }
        Ok(Exit::Exact)
    }
}

fn page() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(super::command()).render(&mut page)?;
    Ok(page)
}
