//! Commands inside the containers.

use super::Say;
use super::error::HookFailed;
use super::plan::{Hook, Step};
use crate::docker::{Engine, ExecJob, HelperOutput};

/// The end of what a command printed, for the error.
const REMEMBERED: usize = 400;

/// A shell's word for a command that is not there.
const NOT_FOUND: i64 = 127;

/// What a command is told: no secrets, as all may see it.
pub(super) fn environment(volume: &str, outcome: Option<&str>) -> Vec<String> {
    let volume = format!("VSYNC_VOLUME={volume}");
    std::iter::once(volume).chain(outcome.map(|outcome| format!("VSYNC_OUTCOME={outcome}"))).collect()
}

/// A command, and what it is told.
pub(super) struct Call<'a> {
    /// What the configuration calls it.
    pub(super) name: &'static str,
    pub(super) hook: &'a Hook,
    pub(super) environment: Vec<String>,
}

/// Runs a command in a container to its end, to the end of its time, or until `interrupt` is over.
pub(super) async fn run(
    engine: &Engine,
    step: &Step,
    Call { name, hook, environment }: Call<'_>,
    say: &Say,
    interrupt: impl Future<Output = ()>,
) -> Result<(), HookFailed> {
    let failed = |reason| HookFailed { hook: name, of: format!("container {}", step.name), reason };
    let job = ExecJob { words: hook.command.argv(), user: hook.user.clone(), environment };
    let exec = engine.create_exec(&step.id, &step.name, job).await.map_err(|error| failed(chain(&error)))?;
    let mut lines = Lines { prefix: format!("{} {name}: ", step.name), pending: Vec::new(), last: String::new() };
    let mut output = |output: HelperOutput<'_>| {
        let (HelperOutput::Out(bytes) | HelperOutput::Err(bytes)) = output;
        lines.take(bytes, say);
    };
    let cut_short = tokio::select! {
        outcome = engine.run_exec(&exec, &mut output) => {
            lines.finish(say);
            return match outcome {
                Ok(0) => Ok(()),
                Ok(code) => Err(failed(lines.ended_with(code))),
                Err(error) => Err(failed(chain(&error))),
            };
        }
        () = tokio::time::sleep(hook.timeout) => format!("no end after {} s", hook.timeout.as_secs()),
        () = interrupt => "interrupted".to_owned(),
    };
    lines.finish(say);
    let killed = engine.kill_exec(&exec).await;
    let fate = if killed { "it was killed" } else { "it may still be running in the container" };
    Err(failed(format!("{cut_short}; {fate}")))
}

fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |cause| (*cause).source());
    sources.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Output, told line by line.
struct Lines {
    prefix: String,
    pending: Vec<u8>,
    last: String,
}

impl Lines {
    fn take(&mut self, bytes: &[u8], say: &Say) {
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            self.line(&line[..end], say);
        }
        // Something that prints no lines at all is told in pieces, rather than kept.
        if self.pending.len() > REMEMBERED {
            self.finish(say);
        }
    }

    fn finish(&mut self, say: &Say) {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            self.line(&rest, say);
        }
    }

    fn line(&mut self, line: &[u8], say: &Say) {
        // What a container prints is not let near the terminal's controls.
        let text: String = String::from_utf8_lossy(line).chars().filter(|c| !c.is_control() || *c == '\t').collect();
        say(&format!("{}{text}", self.prefix));
        if !text.trim().is_empty() {
            self.last = text.chars().take(REMEMBERED).collect();
        }
    }

    fn ended_with(&self, code: i64) -> String {
        let meaning = if code == NOT_FOUND { " (no such command in it)" } else { "" };
        let last = if self.last.is_empty() { String::new() } else { format!(": {}", self.last) };
        format!("exit code {code}{meaning}{last}")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn output_is_told_in_lines_and_its_last_explains_a_failure() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener = told.clone();
        let say: Say = Arc::new(move |line: &str| listener.lock().unwrap().push(line.to_owned()));
        let mut lines = Lines { prefix: "db exec-pre: ".into(), pending: Vec::new(), last: String::new() };
        for piece in ["fi", "rst\nsecond \u{1b}[31m\n\nla", "st"] {
            lines.take(piece.as_bytes(), &say);
        }
        lines.finish(&say);
        let expected = ["first", "second [31m", "", "last"].map(|line| format!("db exec-pre: {line}"));
        assert_eq!(*told.lock().unwrap(), expected);
        assert_eq!(lines.ended_with(1), "exit code 1: last");
        assert!(lines.ended_with(127).contains("no such command"));
        lines.take(&[b'x'; 1000], &say);
        assert!(lines.pending.is_empty());
    }

    #[test]
    fn a_command_is_told_the_volume_and_the_outcome() {
        assert_eq!(environment("data", None), ["VSYNC_VOLUME=data"]);
        assert_eq!(environment("data", Some("read")), ["VSYNC_VOLUME=data", "VSYNC_OUTCOME=read"]);
    }
}
