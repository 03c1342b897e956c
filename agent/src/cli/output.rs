//! What commands print: results on stdout, remarks on stderr; tables, sizes, durations, JSON. See `report` for errors.

use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde::Serialize;
use vsync_protocol::tree::EntryPath;

use super::report::{Exit, Failure, io_exit};

/// The forms of a time on the command line, for help and for errors.
pub(crate) const TIME_FORMS: &str =
    "write a time as 2026-11-20T10:05, 2026-11-20 (the end of that day), 2026-11-20T10:05:00Z or \"2h ago\"";

/// Prints one line. A reader that has gone away (`| head`) is no failure.
///
/// # Errors
/// When stdout cannot be written, for example because the disk is full.
pub(crate) fn line(text: impl Display) -> Result<(), Failure> {
    print(format!("{text}\n").as_bytes())
}

/// Prints bytes as they are. A reader that has gone away is no failure.
///
/// # Errors
/// As [`line`].
pub(crate) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure { causes: vec![error.to_string()], ..Failure::new(io_exit(&error), "cannot write the output") })
        }
        _ => Ok(()),
    }
}

/// Says something on stderr. Whether anybody hears it changes nothing of what the command does.
pub(crate) fn say(text: impl Display) {
    // In one piece, so that the words of two threads do not mix.
    let _ = io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Prints `value` as one line of JSON.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    match serde_json::to_string(value) {
        Ok(text) => line(text),
        Err(error) => Err(Failure::of(&error, Exit::Failed)),
    }
}

/// How many of a list are printed.
pub(crate) const SHOWN: usize = 20;

/// Prints the first of `all` items to stderr, each after `label`, and how many more there are.
pub(crate) fn print_first<T: Display>(label: &str, items: impl IntoIterator<Item = T>, all: u64) {
    first(label, items, all).iter().for_each(say);
}

/// The first of `all` items as lines, each after `label`, and how many more there are.
pub(crate) fn first<T: Display>(label: &str, items: impl IntoIterator<Item = T>, all: u64) -> Vec<String> {
    let mut lines: Vec<String> = items.into_iter().take(SHOWN).map(|item| format!("{label}: {item}")).collect();
    let more = all.saturating_sub(lines.len() as u64);
    if more > 0 {
        lines.push(format!("{label}: {more} more"));
    }
    lines
}

/// A path with what is wrong with it; the volume itself is a dot.
#[must_use]
pub(crate) fn reason((path, reason): &(EntryPath, String)) -> String {
    if path.is_root() { format!(".: {reason}") } else { format!("{path}: {reason}") }
}

/// Whether a stream gets colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Colour {
    /// A terminal that shows them, and nobody set `NO_COLOR`.
    On,
    /// A file, a pipe, a dumb terminal, or a person who wants none.
    Off,
}

impl Colour {
    /// For stdout.
    #[must_use]
    pub(crate) fn stdout() -> Self {
        Self::of(io::stdout().is_terminal())
    }

    /// For stderr.
    #[must_use]
    pub(crate) fn stderr() -> Self {
        Self::of(io::stderr().is_terminal())
    }

    fn of(terminal: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if terminal && !refused && !dumb { Self::On } else { Self::Off }
    }

    /// `text` in red, for failures.
    #[must_use]
    pub(crate) fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// `text` in green, for what is well.
    #[must_use]
    pub(crate) fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::On => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            Self::Off => text.to_owned(),
        }
    }
}

/// Where the cells of a column stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows in aligned columns; `Display` renders them, header first, without a newline at the end.
#[derive(Clone, Debug)]
pub(crate) struct Table<const N: usize> {
    columns: [(&'static str, Align); N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table that has no rows yet.
    #[must_use]
    pub(crate) const fn new(columns: [(&'static str, Align); N]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }
}

impl<const N: usize> Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = self.columns.map(|(name, _)| name.to_owned());
        let lines = || std::iter::once(&header).chain(&self.rows);
        let widths: [usize; N] =
            std::array::from_fn(|at| lines().map(|cells| cells[at].chars().count()).max().unwrap_or(0));
        for (number, cells) in lines().enumerate() {
            let padded: Vec<String> = (0..N)
                .map(|at| match self.columns[at].1 {
                    Align::Left => format!("{:<1$}", cells[at], widths[at]),
                    Align::Right => format!("{:>1$}", cells[at], widths[at]),
                })
                .collect();
            let newline = if number == 0 { "" } else { "\n" };
            write!(f, "{newline}{}", padded.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// `bytes` for people, with three digits: `1.50 GiB`.
#[must_use]
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 999.5 would be shown as 1000, which has four digits.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `duration` for people, with two units: `1 h 05 min`.
#[must_use]
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{minutes} min {:02} s", seconds % 60),
        3600..86400 => format!("{hours} h {:02} min", minutes % 60),
        _ => format!("{days} d {:02} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let mut table = Table::new([("NAME", Align::Left), ("SIZE", Align::Right), ("NOTE", Align::Left)]);
        table.row(["a".into(), "1.00 KiB".into(), String::new()]);
        table.row(["größer".into(), "9 B".into(), "x".into()]);
        assert_eq!(table.to_string(), "NAME        SIZE  NOTE\na       1.00 KiB\ngrößer       9 B  x");
    }

    #[test]
    fn of_each_list_the_first_are_shown_and_the_rest_counted() {
        assert_eq!(first("x", [7], 1), ["x: 7"]);
        assert_eq!(first("x", 0..20, 20).len(), 20);
        let lines = first("damaged", 0..30, 30);
        assert_eq!((lines.len(), lines[20].as_str()), (21, "damaged: 10 more"));
    }

    #[test]
    fn sizes_and_durations_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536 << 20, "1.50 GiB"),
            (10 << 10, "10.0 KiB"),
            (1023 << 10, "1.00 MiB"),
            (757 << 30, "757 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (ms, text) in [
            (12, "12 ms"),
            (1500, "1.5 s"),
            (65_000, "1 min 05 s"),
            (3_900_000, "1 h 05 min"),
            (100_000_000, "1 d 03 h"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
    }
}
