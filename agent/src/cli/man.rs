//! `vsync man`.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::CommandFactory;

use super::Args;
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
        let written = match &self.directory {
            Some(directory) => clap_mangen::generate_to(Args::command(), directory),
            None => page().and_then(|page| io::stdout().write_all(&page)),
        };
        written.map(|()| Exit::Exact).map_err(|error| Failure {
            causes: vec![error.to_string()],
            ..Failure::new(io_exit(&error), "cannot write the manual")
        })
    }
}

fn page() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Args::command()).render(&mut page)?;
    Ok(page)
}
