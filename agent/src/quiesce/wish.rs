//! What somebody wants to be done with a container: by the configuration for all that use a volume, by labels for one.

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;

use crate::config::{Command, HookFailure, Quiesce, Volume, parse_duration};
use crate::suggest;

/// What is wanted. What is not said here is said elsewhere, or nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// How it is held.
    pub mode: Option<Quiesce>,
    /// The command before.
    pub pre: Option<Command>,
    /// The command after.
    pub post: Option<Command>,
    /// Who runs the commands.
    pub user: Option<String>,
    /// How long each may take.
    pub timeout: Option<Duration>,
    /// What the failure of one means.
    pub failure: Option<HookFailure>,
    /// How long the container may take to stop.
    pub stop_timeout: Option<Duration>,
}

/// A label that cannot be obeyed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{label}={value:?}, which {why}")]
pub struct LabelMistake {
    /// The label.
    pub label: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong.
    pub why: &'static str,
}

const QUIESCE: &str = "vsync.quiesce";
const EXEC_PRE: &str = "vsync.exec-pre";
const EXEC_POST: &str = "vsync.exec-post";
const EXEC_USER: &str = "vsync.exec-user";
const HOOK_TIMEOUT: &str = "vsync.hook-timeout";
const HOOK_FAILURE: &str = "vsync.hook-failure";
const STOP_TIMEOUT: &str = "vsync.stop-timeout";

/// All labels that mean something on a container of somebody's.
const KNOWN: [&str; 7] = [QUIESCE, EXEC_PRE, EXEC_POST, EXEC_USER, HOOK_TIMEOUT, HOOK_FAILURE, STOP_TIMEOUT];

impl Wish {
    /// What the configuration says of a volume. Mode `none` is its way to say nothing.
    #[must_use]
    pub fn of_volume(volume: &Volume) -> Self {
        Self {
            mode: Some(volume.quiesce).filter(|mode| *mode != Quiesce::None),
            pre: volume.exec_pre.clone(),
            post: volume.exec_post.clone(),
            user: volume.exec_user.clone(),
            timeout: volume.hook_timeout,
            failure: Some(volume.hook_failure),
            stop_timeout: volume.stop_timeout,
        }
    }

    /// What the labels of a container say.
    ///
    /// # Errors
    /// When one of vsync's labels has a value that makes no sense.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Result<Self, LabelMistake> {
        let text = |label: &'static str| labels.get(label).map(String::as_str);
        let mistake = |label, value: &str, why| LabelMistake { label, value: value.to_owned(), why };
        let command = |label: &'static str| {
            text(label)
                .map(|value| {
                    let command = Command::from_label(value);
                    if command.is_empty() { Err(mistake(label, value, "is no command")) } else { Ok(command) }
                })
                .transpose()
        };
        let duration = |label: &'static str| {
            text(label)
                .map(|value| {
                    let seconds = value.parse().ok().map(Duration::from_secs);
                    let why = "is neither a number of seconds nor a duration such as `90s` or `5min`";
                    seconds.or_else(|| parse_duration(value)).ok_or_else(|| mistake(label, value, why))
                })
                .transpose()
        };
        let mode = text(QUIESCE).map(|value| match value {
            "none" => Ok(Quiesce::None),
            "pause" => Ok(Quiesce::Pause),
            "stop" => Ok(Quiesce::Stop),
            "hooks" => Ok(Quiesce::Hooks),
            other => Err(mistake(QUIESCE, other, "is none of: none, pause, stop, hooks")),
        });
        let failure = text(HOOK_FAILURE).map(|value| match value {
            "fail" => Ok(HookFailure::Fail),
            "continue" => Ok(HookFailure::Continue),
            other => Err(mistake(HOOK_FAILURE, other, "is none of: fail, continue")),
        });
        let wish = Self {
            mode: mode.transpose()?,
            pre: command(EXEC_PRE)?,
            post: command(EXEC_POST)?,
            user: text(EXEC_USER).map(str::to_owned),
            timeout: duration(HOOK_TIMEOUT)?,
            failure: failure.transpose()?,
            stop_timeout: duration(STOP_TIMEOUT)?,
        };
        if wish.mode == Some(Quiesce::None) && (wish.pre.is_some() || wish.post.is_some()) {
            return Err(mistake(QUIESCE, "none", "keeps its own commands from being run"));
        }
        Ok(wish)
    }

    /// This wish, and what it leaves open from `other`.
    #[must_use]
    pub fn over(self, other: &Self) -> Self {
        Self {
            mode: self.mode.or(other.mode),
            pre: self.pre.or_else(|| other.pre.clone()),
            post: self.post.or_else(|| other.post.clone()),
            user: self.user.or_else(|| other.user.clone()),
            timeout: self.timeout.or(other.timeout),
            failure: self.failure.or(other.failure),
            stop_timeout: self.stop_timeout.or(other.stop_timeout),
        }
    }

    /// The mode that it comes to: commands without a mode are wanted for their own sake.
    #[must_use]
    pub fn mode(&self) -> Quiesce {
        let commands = self.pre.is_some() || self.post.is_some();
        self.mode.unwrap_or(if commands { Quiesce::Hooks } else { Quiesce::None })
    }

    /// Whether anything is said that names this container alone.
    pub(super) const fn is_about_it(&self) -> bool {
        self.mode.is_some() || self.pre.is_some() || self.post.is_some()
    }
}

/// Labels that look like vsync's and mean nothing, each with the one that may have been meant.
pub fn unknown_labels(labels: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, String)> {
    labels
        .keys()
        .map(String::as_str)
        .filter(|label| label.starts_with("vsync.") && !KNOWN.contains(label) && *label != "vsync.helper")
        .map(|label| (label, suggest::suffix(label, KNOWN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn labels_say_what_the_configuration_can() {
        let wish = Wish::of_labels(&labels(&[
            ("vsync.quiesce", "stop"),
            ("vsync.exec-pre", "redis-cli save"),
            ("vsync.exec-post", r#"["/bin/after", "x"]"#),
            ("vsync.exec-user", "70"),
            ("vsync.hook-timeout", "5min"),
            ("vsync.hook-failure", "continue"),
            ("vsync.stop-timeout", "90"),
            ("com.example.team", "db"),
        ]));
        let expected = Wish {
            mode: Some(Quiesce::Stop),
            pre: Some(Command::Line("redis-cli save".into())),
            post: Some(Command::Words(vec!["/bin/after".into(), "x".into()])),
            user: Some("70".into()),
            timeout: Some(Duration::from_secs(300)),
            failure: Some(HookFailure::Continue),
            stop_timeout: Some(Duration::from_secs(90)),
        };
        assert_eq!(wish, Ok(expected));
        assert_eq!(Wish::of_labels(&labels(&[("org.x", "y")])), Ok(Wish::default()));
    }

    #[test]
    fn labels_that_make_no_sense_are_named() {
        for (label, value) in [
            ("vsync.quiesce", "paus"),
            ("vsync.quiesce", ""),
            ("vsync.exec-pre", " "),
            ("vsync.exec-post", "[]"),
            ("vsync.hook-timeout", "soon"),
            ("vsync.hook-failure", "ignore"),
            ("vsync.stop-timeout", "-1"),
        ] {
            let mistake = Wish::of_labels(&labels(&[(label, value)])).unwrap_err();
            assert_eq!((mistake.label, mistake.value.as_str()), (label, value));
        }
        let contradiction = labels(&[("vsync.quiesce", "none"), ("vsync.exec-pre", "sync")]);
        assert!(Wish::of_labels(&contradiction).is_err());
        let misspelt = labels(&[("vsync.exec-per", "x"), ("vsync.quiesce", "none"), ("vsync.helper", "v")]);
        let unknown: Vec<_> = unknown_labels(&misspelt).collect();
        assert_eq!(unknown, [("vsync.exec-per", "; did you mean `vsync.exec-pre`?".to_owned())]);
    }

    #[test]
    fn the_label_wins_field_by_field_and_commands_alone_are_a_mode() {
        let volume = Wish { mode: Some(Quiesce::Pause), user: Some("70".into()), ..Wish::default() };
        let label = Wish { mode: Some(Quiesce::Stop), ..Wish::default() };
        let both = label.over(&volume);
        assert_eq!((both.mode(), both.user.as_deref()), (Quiesce::Stop, Some("70")));
        let commands = Wish { pre: Some(Command::Line("x".into())), ..Wish::default() };
        assert_eq!(commands.mode(), Quiesce::Hooks);
        assert_eq!(commands.over(&volume).mode(), Quiesce::Pause);
        assert_eq!(Wish::default().mode(), Quiesce::None);
    }
}
