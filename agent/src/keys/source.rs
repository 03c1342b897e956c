//! Where a secret option comes from: a variable, a file it names, or a command that prints it.
//!
//! For an option `NAME`: `NAME` holds the secret itself, `NAME_FILE` a file's path, as Docker
//! and systemd hand secrets out, `NAME_COMMAND` a shell command, as password managers offer.

use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use thiserror::Error;
use zeroize::Zeroizing;

/// A secret was asked for in a way that does not work. Never quotes the secret.
#[derive(Debug, Error)]
pub enum SecretError {
    /// It was given twice.
    #[error("{} are all set, and only one of them can count", names.join(" and "))]
    Twice {
        /// The variables.
        names: Vec<String>,
    },
    /// The file cannot be read.
    #[error("cannot read {}, which {variable} names", path.display())]
    File {
        /// Which variable or option named it.
        variable: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The command cannot be run.
    #[error("cannot run the command of {variable}")]
    Command {
        /// Which variable it is.
        variable: String,
        /// What the system said.
        source: io::Error,
    },
    /// The command failed.
    #[error("the command of {variable} failed: {status}")]
    Status {
        /// Which variable it is.
        variable: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// What came is no text.
    #[error("what {variable} gives is empty, or no text")]
    NoText {
        /// Which variable it is.
        variable: String,
    },
}

/// The secret of option `name`, if it was given in any of the three ways.
///
/// # Errors
/// When it was given in two ways, or cannot be had in the way that was given.
pub(crate) fn find(name: &str) -> Result<Option<Zeroizing<String>>, SecretError> {
    let (file, command) = (format!("{name}_FILE"), format!("{name}_COMMAND"));
    let given: Vec<String> =
        [name, &file, &command].into_iter().filter(|variable| is_set(variable)).map(str::to_owned).collect();
    match given.as_slice() {
        [] => Ok(None),
        [one] if *one == file => from_file(one, std::env::var_os(one).unwrap_or_default().into()).map(Some),
        [one] if *one == command => from_command(one).map(Some),
        [one] => variable(one).map(Some),
        _ => Err(SecretError::Twice { names: given }),
    }
}

/// Whether option `name` was given, in whichever way.
#[must_use]
pub(crate) fn is_given(name: &str) -> bool {
    ["", "_FILE", "_COMMAND"].iter().any(|form| is_set(&format!("{name}{form}")))
}

/// Whether a variable is set, and not to nothing.
#[must_use]
pub(crate) fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// The secret that the variable `name` itself holds.
///
/// # Errors
/// When it is not set, empty, or no text.
pub(crate) fn variable(name: &str) -> Result<Zeroizing<String>, SecretError> {
    let value = std::env::var(name).map_err(|_| SecretError::NoText { variable: name.to_owned() })?;
    trimmed(name, Zeroizing::new(value))
}

/// The secret in the file at `path`, which the option `variable` named. Its mode is not looked
/// at: Docker shows secrets to everyone in the container.
///
/// # Errors
/// When it cannot be read, is empty, or no text.
pub(crate) fn from_file(variable: &str, path: PathBuf) -> Result<Zeroizing<String>, SecretError> {
    match std::fs::read_to_string(&path) {
        Ok(text) => trimmed(variable, Zeroizing::new(text)),
        Err(source) => Err(SecretError::File { variable: variable.to_owned(), path, source }),
    }
}

fn from_command(variable: &str) -> Result<Zeroizing<String>, SecretError> {
    let failed = |source| SecretError::Command { variable: variable.to_owned(), source };
    let command = std::env::var_os(variable).unwrap_or_default();
    let output = Command::new("sh")
        .arg("-c")
        .arg(command)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(failed)?;
    let text = Zeroizing::new(output.stdout);
    if !output.status.success() {
        return Err(SecretError::Status { variable: variable.to_owned(), status: output.status });
    }
    let text = std::str::from_utf8(&text).map_err(|_| SecretError::NoText { variable: variable.to_owned() })?;
    trimmed(variable, Zeroizing::new(text.to_owned()))
}

/// Without the line break that editors and commands put at the end.
fn trimmed(variable: &str, text: Zeroizing<String>) -> Result<Zeroizing<String>, SecretError> {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err(SecretError::NoText { variable: variable.to_owned() });
    }
    Ok(Zeroizing::new(trimmed.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_file_loses_its_line_break_and_must_say_something() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "s3cret\n").unwrap();
        assert_eq!(*from_file("T", path.clone()).unwrap(), "s3cret");
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(from_file("T", path), Err(SecretError::NoText { .. })));
        assert!(matches!(from_file("T", dir.path().join("none")), Err(SecretError::File { .. })));
    }
}
