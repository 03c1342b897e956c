//! Text of other machines, made fit to be shown.

use super::job::{JobRecord, JobResult};
use super::message::{Reply, ServerStatus};
use super::overview::{Chore, Overview, Standing};

/// Longest text that is taken from a server, in bytes.
pub const MAX_WORDS: usize = 4096;

/// Whether `text` is one line without anything that steers a terminal or turns text around.
#[must_use]
pub fn is_plain(text: &str) -> bool {
    text.chars().all(is_plain_char)
}

fn is_plain_char(c: char) -> bool {
    // Control characters; line and paragraph separators; marks that turn the direction of
    // text around, or that cannot be seen.
    !(c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'))
}

/// `text` on one line, without what [`is_plain`] refuses, cut to at most `most` bytes.
#[must_use]
pub fn plain(text: &str, most: usize) -> String {
    let mut line = String::new();
    for c in text.chars().map(|c| if is_plain_char(c) { c } else { ' ' }) {
        if line.len() + c.len_utf8() > most {
            break;
        }
        // Several in a row, as at line breaks with an indent, are one.
        if c != ' ' || !line.ends_with(' ') {
            line.push(c);
        }
    }
    line.truncate(line.trim_end().len());
    line
}

impl Reply {
    /// The same with every text in it [`plain`]: a server may be in the wrong hands, and its words
    /// end on a terminal.
    #[must_use]
    pub fn made_plain(mut self) -> Self {
        match &mut self {
            Self::Refused(refusal) => shorten(&mut refusal.message),
            Self::Status(status) => of_status(status),
            Self::Overview(overview) => of_overview(overview),
            Self::Jobs(jobs) => jobs.iter_mut().for_each(of_job),
            Self::Hello { .. }
            | Self::Opened { .. }
            | Self::Have(_)
            | Self::Flushed
            | Self::Committed(_)
            | Self::Missing(_)
            | Self::Snapshots(_)
            | Self::Fetching
            | Self::Log(_)
            | Self::Checked { .. }
            | Self::Registry(_)
            | Self::Done(_)
            | Self::Plan(_)
            | Self::Noted
            | Self::Collected(_)
            | Self::Scrubbed(_) => {}
        }
        self
    }
}

fn shorten(text: &mut String) {
    if text.len() > MAX_WORDS || !is_plain(text) {
        *text = plain(text, MAX_WORDS);
    }
}

fn of_status(status: &mut ServerStatus) {
    let ServerStatus { version, read_only, warnings, .. } = status;
    std::iter::once(version).chain(read_only).chain(warnings).for_each(shorten);
}

fn of_overview(overview: &mut Overview) {
    let Overview { server, frozen, collection, scrub, volumes, .. } = overview;
    of_status(server);
    let Chore { failure: of_collection, .. } = collection;
    let Chore { failure: of_scrub, .. } = scrub;
    [frozen, of_collection, of_scrub].into_iter().flatten().for_each(shorten);
    for Standing { result, failure, .. } in volumes {
        result.iter_mut().for_each(of_result);
        failure.iter_mut().for_each(|failure| shorten(&mut failure.message));
    }
}

fn of_job(job: &mut JobRecord) {
    shorten(&mut job.version);
    job.result.iter_mut().for_each(of_result);
}

fn of_result(result: &mut JobResult) {
    shorten(&mut result.message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Refusal, RefusalCode};

    #[test]
    fn texts_that_steer_a_terminal_are_refused() {
        assert!(is_plain("cannot read päth/名 (permission denied)"));
        for bad in ["two\nlines", "\u{1b}[2J", "\u{7f}", "\u{9b}31m", "a\u{202e}b", "a\u{2028}b", "\u{feff}", "a\tb"] {
            assert!(!is_plain(bad), "{bad:?}");
            let made = plain(bad, 100);
            assert!(is_plain(&made), "{made:?}");
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(plain("ääääää", 5), "ää");
        assert_eq!(plain("one\n  because: two\n", 100), "one because: two");
        assert_eq!(plain("", 10), "");
    }

    #[test]
    fn a_server_cannot_play_with_the_terminal() {
        let evil = || "\u{1b}]0;evil\u{7}\u{9b}2J\u{202e}".to_owned();
        let status = ServerStatus {
            version: evil(),
            read_only: Some(evil()),
            warnings: vec![evil(), evil()],
            ..ServerStatus::default()
        };
        let chore = Chore { failure: Some(evil()), ..Chore::default() };
        let overview = Overview {
            server: status.clone(),
            frozen: Some(evil()),
            collection: chore.clone(),
            scrub: chore,
            ..Overview::default()
        };
        for reply in [
            Reply::Refused(Refusal { code: RefusalCode::Store, message: evil() }),
            Reply::Status(Box::new(status)),
            Reply::Overview(Box::new(overview)),
        ] {
            // `Debug` escapes what is left of it.
            let shown = format!("{:?}", reply.made_plain());
            assert!(shown.contains("evil") && !shown.contains("\\u{"), "{shown}");
        }
    }
}
