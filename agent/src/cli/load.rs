//! How much of the machine and of the network a command may take.

use std::num::{NonZeroU64, NonZeroUsize};
use std::process::{Command, Stdio};

use clap::builder::BoolishValueParser;
use rustix::process::nice;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::report::{Exit, Failure};
use crate::remote::Limits;

/// Options of commands that work long.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Leaving room for others")]
pub(super) struct LoadArgs {
    /// Send at most so much a second, such as 500K or 20MiB
    #[arg(long, env = "VSYNC_LIMIT_UPLOAD", value_name = "RATE", value_parser = rate)]
    limit_upload: Option<NonZeroU64>,

    /// Receive at most so much a second
    #[arg(long, env = "VSYNC_LIMIT_DOWNLOAD", value_name = "RATE", value_parser = rate)]
    limit_download: Option<NonZeroU64>,

    /// Use at most N processors
    #[arg(long, env = "VSYNC_CPU", value_name = "N")]
    cpu: Option<NonZeroUsize>,

    /// Let other programs have the processors first: 1 to 19, as `nice` does
    #[arg(long, env = "VSYNC_NICE", value_name = "N", value_parser = clap::value_parser!(u8).range(1..=19))]
    nice: Option<u8>,

    /// Use disks only while nobody else does, where their scheduler can tell
    #[arg(long, env = "VSYNC_IDLE_IO", value_parser = BoolishValueParser::new())]
    idle_io: bool,
}

impl LoadArgs {
    /// Takes a place behind others. Threads inherit it, so that it comes before any is started.
    pub(super) fn settle(&self) -> Result<(), Failure> {
        let failed =
            |what: &str, error: &dyn std::error::Error| Failure::new(Exit::Failed, format!("cannot {what}: {error}"));
        if let Some(count) = self.cpu {
            let all = sched_getaffinity(None).map_err(|error| failed("ask which processors there are", &error))?;
            sched_setaffinity(None, &some_of(&all, count)).map_err(|error| failed("choose processors", &error))?;
        }
        if let Some(step) = self.nice {
            nice(step.into()).map_err(|error| failed("give way to other programs", &error))?;
        }
        if self.idle_io {
            take_idle_class()?;
        }
        Ok(())
    }

    /// What goes over the network.
    pub(super) const fn limits(&self) -> Limits {
        Limits { upload: self.limit_upload, download: self.limit_download }
    }

    /// The same options for another vsync.
    pub(super) fn arguments(&self) -> Vec<String> {
        let values = [
            ("--limit-upload", self.limit_upload.map(|rate| rate.to_string())),
            ("--limit-download", self.limit_download.map(|rate| rate.to_string())),
            ("--cpu", self.cpu.map(|count| count.to_string())),
            ("--nice", self.nice.map(|step| step.to_string())),
        ];
        let given = values.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value?]));
        given.flatten().chain(self.idle_io.then(|| "--idle-io".to_owned())).collect()
    }
}

/// The system call for it is one that no safe library offers; `ionice` is on every system that
/// has disks to share.
fn take_idle_class() -> Result<(), Failure> {
    let failed = |why: String| {
        Failure::new(Exit::Failed, format!("cannot take the idle class of disks: {why}"))
            .hint("install util-linux, which has `ionice`, or leave --idle-io out".to_owned())
    };
    let this = std::process::id().to_string();
    let ionice = Command::new("ionice").args(["-c", "3", "-p", &this]).stdin(Stdio::null()).output();
    let done = ionice.map_err(|error| failed(format!("`ionice` does not run: {error}")))?;
    if done.status.success() { Ok(()) } else { Err(failed(String::from_utf8_lossy(&done.stderr).trim().to_owned())) }
}

/// `count` processors of `all`; others for the next process, so that several of them do not
/// crowd on one.
fn some_of(all: &CpuSet, count: NonZeroUsize) -> CpuSet {
    let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu)).collect();
    let first = std::process::id() as usize % allowed.len().max(1);
    let mut some = CpuSet::new();
    allowed.iter().cycle().skip(first).take(count.get().min(allowed.len())).for_each(|&cpu| some.set(cpu));
    some
}

/// Bytes a second: a number, a unit if it is not bytes, and `/s` if one likes.
fn rate(text: &str) -> Result<NonZeroU64, String> {
    let text = text.trim();
    let bare = text.strip_suffix("/s").unwrap_or(text).trim_end();
    let digits = bare.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(bare.len());
    let (number, unit) = bare.split_at(digits);
    let unit = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => return Err("units are K, M, G (or KiB, MiB, GiB) of 1024, and kB, MB, GB of 1000".into()),
    };
    let number: f64 = number.parse().map_err(|_| "write a number and a unit, such as 500K or 20MiB".to_owned())?;
    // Beyond what any network carries; and so far every whole number is exact.
    let bytes = (number * unit).round().clamp(0.0, 1e15);
    NonZeroU64::new(bytes as u64).ok_or_else(|| "nothing would ever arrive at less than one byte a second".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_with_their_units() {
        for (text, bytes) in [
            ("1000", 1000),
            ("500K", 512_000),
            ("20MiB", 20 << 20),
            ("20 MiB/s", 20 << 20),
            ("1.5m/s", 3 << 19),
            ("2MB/s", 2_000_000),
            ("1g", 1 << 30),
        ] {
            assert_eq!(rate(text).map(NonZeroU64::get), Ok(bytes), "{text}");
        }
        for text in ["", "K", "fast", "10Mbit", "-1", "0", "0.1", "1.2.3M"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn processors_are_chosen_among_those_allowed() {
        let mut all = CpuSet::new();
        [1, 4, 5, 9].into_iter().for_each(|cpu| all.set(cpu));
        for count in 1..6 {
            let some = some_of(&all, NonZeroUsize::new(count).unwrap());
            assert_eq!(some.count() as usize, count.min(4));
            assert!((0..CpuSet::MAX_CPU).all(|cpu| !some.is_set(cpu) || all.is_set(cpu)));
        }
    }

    #[test]
    fn another_vsync_is_told_the_same() {
        let args = LoadArgs { limit_upload: NonZeroU64::new(7), idle_io: true, nice: Some(5), ..LoadArgs::default() };
        assert_eq!(args.arguments(), ["--limit-upload", "7", "--nice", "5", "--idle-io"]);
        assert!(LoadArgs::default().arguments().is_empty());
    }
}
