//! What can be wrong with a configuration, in words that point at the line.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use thiserror::Error;

use crate::suggest;

/// The configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// There is no configuration in any of the usual places.
    #[error("no vsync.toml here; looked for {}", looked.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and "))]
    NotFound {
        /// The paths that were tried.
        looked: Vec<PathBuf>,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The text is wrong.
    #[error("{} has {}{}", path.display(), count(problems.len()), problems.iter().map(|problem| format!("\n{problem}")).collect::<String>())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that was found, in the file's order.
        problems: Vec<Problem>,
    },
    /// A name that the file does not know.
    #[error("there is no {what} {name} in {}{suggestion}", path.display())]
    Unknown {
        /// "machine" or "server".
        what: &'static str,
        /// The name asked for.
        name: String,
        /// The file.
        path: PathBuf,
        /// A name that may have been meant, as the end of a sentence.
        suggestion: String,
    },
    /// A server must be named.
    #[error("{} has not exactly one server (it has: {servers})", path.display())]
    WhichServer {
        /// The file.
        path: PathBuf,
        /// Their names.
        servers: String,
    },
    /// Nobody said which machine this is.
    #[error("this machine has no name yet: there is no {}", path.display())]
    NoIdentity {
        /// The file that would say so.
        path: PathBuf,
    },
    /// The file that names this machine holds something else.
    #[error("{} does not hold the name of a machine", path.display())]
    BadIdentity {
        /// The file.
        path: PathBuf,
    },
}

impl ConfigError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { .. } => Some("run `vsync init` to make one, or name yours with --config PATH".to_owned()),
            Self::NoIdentity { .. } | Self::BadIdentity { .. } => {
                Some("run `vsync configure NAME` with its name in vsync.toml, or give --as NAME".to_owned())
            }
            Self::WhichServer { .. } => Some("name one with --server NAME".to_owned()),
            Self::Unknown { what: "machine", .. } => Some(
                "name one of vsync.toml with `vsync configure NAME` or --as NAME, or add it there and run `vsync keygen`"
                    .to_owned(),
            ),
            Self::Unknown { path, .. } => Some(format!("use a name that is in {}", path.display())),
            Self::Read { .. } | Self::Invalid { .. } => None,
        }
    }
}

fn count(problems: usize) -> String {
    if problems == 1 { "a problem".to_owned() } else { format!("{problems} problems") }
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line, trimmed.
    pub text: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  line {}, column {}: {}\n    | {}", self.line, self.column, self.message, self.text)
    }
}

impl Problem {
    /// Says `message` of the place in `text` where `span`, in bytes, begins.
    pub(super) fn at(text: &str, span: &Range<usize>, message: String) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[start..].chars().count() + 1,
            text: text[start..].lines().next().unwrap_or_default().trim().to_owned(),
            message,
        }
    }

    pub(super) fn from_toml(text: &str, error: &toml::de::Error) -> Self {
        Self::at(text, &error.span().unwrap_or(text.len()..text.len()), reword(error.message()))
    }
}

/// Serde speaks of fields and lists them all; we speak of keys and name the likely one.
fn reword(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.as_slice() {
        [unknown, known @ ..] if message.starts_with("unknown field") => {
            let likely = suggest::suffix(unknown, known.iter().copied());
            let all = || format!("; known here: {}", known.join(", "));
            format!("unknown key `{unknown}`{}", if likely.is_empty() { all() } else { likely })
        }
        [unknown, known @ ..] if message.starts_with("unknown variant") => {
            format!("`{unknown}` is not one of: {}", known.join(", "))
        }
        [missing] if message.starts_with("missing field") => format!("the key `{missing}` is missing here"),
        [twice] if message.starts_with("duplicate field") => format!("the key `{twice}` is here twice"),
        _ => message.trim_end().replace("u32", "a whole number"),
    }
}
