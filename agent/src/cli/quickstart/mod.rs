//! `vsync quickstart`.

mod demo;
mod realm;
mod steps;
mod target;

use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::GlobalArgs;
use super::output::{self, Colour};
use super::report::{Exit, Failure, io_exit};
use super::session::{Session, short};
use crate::compare;
use realm::Realm;
use steps::{Step, Steps};
use target::Target;

/// Try everything on this machine: back up, back up again, restore, compare
///
/// Makes a realm in ./vsync-quickstart, whose server is embedded in the agent, so nothing else
/// needs to run. Without an argument, the volume is one that it makes for the purpose. A volume
/// or directory of yours is only read. Run it again, and it goes on in the same realm.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vsync quickstart
  vsync quickstart montagu_orderly_volume
  vsync quickstart ~/documents")]
pub(super) struct QuickstartArgs {
    /// A Docker volume or a directory [default: a volume made for the demonstration]
    #[arg(value_name = "PATH|VOLUME")]
    what: Option<String>,
}

impl QuickstartArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        if global.recovery.kit.is_some() {
            return Err(Failure::new(Exit::Usage, "quickstart makes a realm of its own, and takes no recovery kit"));
        }
        let home = realm::home()?;
        let target = Target::find(self.what.as_deref(), &home)?;
        let path = target.volume.is_none().then_some(target.path.as_path());
        let realm = realm::prepare(global, &home, &target.name, path)?;
        let show = Show { global, colour: Colour::stdout() };
        show.heading(&home, &realm, &target)?;
        let session = Session::open(&realm.global, None)?;
        Run { show: &show, session: &session, target: &target, home: &home }.all()
    }
}

/// Everything between the first backup and the comparison.
struct Run<'a> {
    show: &'a Show<'a>,
    session: &'a Session,
    target: &'a Target,
    home: &'a Path,
}

impl Run<'_> {
    fn all(&self) -> Result<Exit, Failure> {
        let (show, target) = (self.show, self.target);
        if is_demo(target) && !demo::fill(&target.path).map_err(|error| failed(&error, &target.path))? {
            show.plain("made", "a database, documents, links and a hole, to have something to back up")?;
        }
        let steps = Steps { global: show.global, session: self.session, target };
        let (first, _) = steps.backup()?;
        show.step(&first)?;
        let changed = self.change()?;
        show.plain("changed", &changed)?;
        let (second, snapshot) = steps.backup()?;
        show.step(&second)?;
        let to = target.counterpart(self.home)?;
        let restored = steps.restore(&snapshot, &to)?;
        show.step(&restored)?;
        let compared = steps.compare(&to)?;
        show.step(&compared)?;
        let all = [first, second, restored, compared];
        let exit = all.iter().map(|step| step.exit).max_by_key(|exit| *exit as u8).unwrap_or(Exit::Exact);
        show.end(&Summary { run: self, steps: &all, changed: &changed, snapshot: short(snapshot.id), to: &to })?;
        Ok(exit)
    }

    /// A little, in a volume of our own only.
    fn change(&self) -> Result<String, Failure> {
        if !is_demo(self.target) {
            return Ok("nothing: it is yours".to_owned());
        }
        demo::change(&self.target.path).map_err(|error| failed(&error, &self.target.path))
    }
}

/// Volumes of an earlier quickstart that are named on the command line may be restored ones:
/// only what the demonstration filled is changed by it.
fn is_demo(target: &Target) -> bool {
    target.ours && !target.name.as_str().ends_with("-restored")
}

fn failed(error: &io::Error, path: &Path) -> Failure {
    Failure::of(error, io_exit(error)).hint(format!("make room in {}, and let it be written to", path.display()))
}

struct Summary<'a> {
    run: &'a Run<'a>,
    steps: &'a [Step],
    changed: &'a str,
    snapshot: String,
    to: &'a Target,
}

/// How all this is told.
struct Show<'a> {
    global: &'a GlobalArgs,
    colour: Colour,
}

impl Show<'_> {
    fn is_silent(&self) -> bool {
        self.global.quiet || self.global.json
    }

    fn line(&self, text: &str) -> Result<(), Failure> {
        if self.is_silent() { Ok(()) } else { output::line(text) }
    }

    fn heading(&self, home: &Path, realm: &Realm, target: &Target) -> Result<(), Failure> {
        let (what, whose) = match (realm.existed, target.ours) {
            (true, true) => ("taken up again", "made for this"),
            (true, false) => ("taken up again", "yours, and only read"),
            (false, true) => ("new, with a server inside and keys of its own", "made for this"),
            (false, false) => ("new, with a server inside and keys of its own", "yours, and only read"),
        };
        self.line(&format!("  realm      {} ({what})", home.display()))?;
        self.line(&format!("  volume     {} ({whose})", target.shown()))?;
        self.line("")
    }

    fn plain(&self, verb: &str, text: &str) -> Result<(), Failure> {
        self.line(&format!("{} {verb:<10} {text}", self.colour.green("✓")))
    }

    fn step(&self, step: &Step) -> Result<(), Failure> {
        let mark = if step.exit == Exit::Exact { self.colour.green("✓") } else { self.colour.red("!") };
        let speed = step.speed().map_or_else(String::new, |speed| format!("{}/s", output::size(speed)));
        let (size, time) = (output::size(step.bytes), output::duration(step.duration));
        let line = format!("{mark} {:<10} {size:>8} in {time:>7} {speed:>10}   {}", step.verb, step.note);
        self.line(line.trim_end())?;
        if !self.global.json {
            step.defects.iter().for_each(|defect| output::say(format_args!("  not exact: {defect}")));
        }
        Ok(())
    }

    fn end(&self, summary: &Summary<'_>) -> Result<(), Failure> {
        if self.global.json {
            return output::json(&summary.json());
        }
        self.line(&summary.next())
    }
}

impl Summary<'_> {
    fn json(&self) -> Value {
        let Run { target, home, .. } = self.run;
        json!({
            "message_type": "summary",
            "realm": home.join("vsync.toml").display().to_string(),
            "volume": target.name.as_str(),
            "source": target.path.display().to_string(),
            "restored_into": self.to.path.display().to_string(),
            "changed": self.changed,
            "snapshot": self.snapshot,
            "steps": self.steps.iter().map(Step::json).collect::<Vec<_>>(),
        })
    }

    /// The commands to type next, each of which works.
    fn next(&self) -> String {
        let Run { target, home, .. } = self.run;
        let volume = &target.name;
        let there = if target.volume.is_some() { "--to-volume another" } else { "--to-path another" };
        let mut volumes = Vec::new();
        if target.volume.is_some() {
            volumes.extend(is_demo(target).then(|| target.name.to_string()));
            volumes.push(self.to.name.to_string());
        }
        let remove =
            if volumes.is_empty() { String::new() } else { format!(" && docker volume rm {}", volumes.join(" ")) };
        format!(
            "\nSnapshot {} of {volume} is in {} as well as it was here.\n\n\
             Next:\n  \
             cd {home}\n  \
             vsync snapshots\n  \
             vsync backup {volume}\n  \
             vsync restore {volume} {there}\n  \
             vsync key recovery-kit --out kit.txt\n\n\
             To be rid of it all: rm -r {home}{remove}",
            self.snapshot,
            self.to.shown(),
            home = home.display(),
        )
    }
}

impl From<compare::CompareError> for Failure {
    fn from(error: compare::CompareError) -> Self {
        Self::of(&error, io_exit(&error.source)).hint("nobody else may write there meanwhile".to_owned())
    }
}
