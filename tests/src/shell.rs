//! Other programs that a test needs: run to the end, successful or a panic that shows everything.

use std::ffi::OsStr;
use std::process::Command;

/// Runs a program to its end and returns its standard output without the final newline.
///
/// # Panics
/// If the program is missing or fails.
#[track_caller]
pub fn run<I, S>(program: &str, arguments: I) -> String
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(arguments);
    finish(&mut command)
}

/// Runs a prepared command, as [`run`] does.
///
/// # Panics
/// If the program is missing or fails.
#[track_caller]
pub fn finish(command: &mut Command) -> String {
    match attempt(command) {
        Ok(stdout) => stdout,
        Err(failure) => panic!("{failure}"),
    }
}

/// Runs a prepared command whose failure the test can live with; `Err` tells all about it.
///
/// # Errors
/// The command, its exit status and everything that it printed.
pub fn attempt(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|error| format!("{program} cannot be run ({error}): run the tests with `tests/run`"))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(stdout.trim_end_matches('\n').to_owned());
    }
    Err(format!(
        "{command:?}: {}\n--- stdout\n{stdout}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}
