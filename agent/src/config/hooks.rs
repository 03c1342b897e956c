//! Commands that the configuration, or a container's labels, want to be run.

use serde::{Deserialize, Serialize};

/// A command line for a shell, or the words of a command that needs none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a command: a line for the shell, or a list of words")]
pub enum Command {
    /// `sh -c LINE`.
    Line(String),
    /// A program and its arguments, run as they are.
    Words(Vec<String>),
}

impl Command {
    /// As a label holds it: a list of words in JSON, or else a line.
    #[must_use]
    pub fn from_label(text: &str) -> Self {
        serde_json::from_str(text).map_or_else(|_| Self::Line(text.to_owned()), Self::Words)
    }

    /// The program and its arguments.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        match self {
            Self::Line(line) => vec!["sh".to_owned(), "-c".to_owned(), line.clone()],
            Self::Words(words) => words.clone(),
        }
    }

    /// Whether there is nothing to run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Line(line) => line.trim().is_empty(),
            Self::Words(words) => words.first().is_none_or(String::is_empty),
        }
    }
}

/// What the failure of a command means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HookFailure {
    /// The backup fails, or is not exact any more: exit code 20.
    #[default]
    Fail,
    /// It is told, and nothing else.
    Continue,
}

/// Commands that are run on the machine itself, around a backup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunHooks {
    /// Before it.
    pub before: Option<Command>,
    /// After one that succeeded.
    pub after: Option<Command>,
    /// After one that failed.
    pub failed: Option<Command>,
    /// At the end, whatever happened.
    pub finally: Option<Command>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_holds_a_line_or_words() {
        let words = |list: &[&str]| Command::Words(list.iter().map(|&word| word.to_owned()).collect());
        for (label, expected) in [
            ("redis-cli save", Command::Line("redis-cli save".into())),
            ("[ -f /x ] && sync", Command::Line("[ -f /x ] && sync".into())),
            (r#"["redis-cli", "save"]"#, words(&["redis-cli", "save"])),
            ("[]", words(&[])),
        ] {
            assert_eq!(Command::from_label(label), expected);
        }
        assert_eq!(Command::Line("a b".into()).argv(), ["sh", "-c", "a b"]);
        assert!(Command::Line(" ".into()).is_empty() && words(&[]).is_empty() && !words(&["a"]).is_empty());
    }
}
