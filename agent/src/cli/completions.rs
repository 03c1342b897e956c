//! `vsync completions`.

use clap_complete::Shell;

use super::output;
use super::report::{Exit, Failure};

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vsync completions bash > /etc/bash_completion.d/vsync")]
pub(super) struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

impl CompletionsArgs {
    pub(super) fn run(&self) -> Result<Exit, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "vsync", &mut script);
        output::print(&script)?;
        Ok(Exit::Exact)
    }
}
