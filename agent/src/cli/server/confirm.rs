//! `vsync server confirm-clock`.

use jiff::Timestamp;
use vsync_protocol::wire::Request;

use super::own_entry;
use crate::cli::GlobalArgs;
use crate::cli::context::Context;
use crate::cli::forget::order;
use crate::cli::output;
use crate::cli::report::{Exit, Failure};
use crate::cli::session::Session;

/// Say that the server's clock is right, after it leapt
///
/// A clock that went back or leapt ahead stops retention: nothing is forgotten by a clock that
/// may be wrong. So does a machine that was off for more than a day. Compare the clock with
/// another, then run this on the server. It is refused if this machine's clock and the
/// server's differ by more than an hour.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  date; vsync server confirm-clock")]
pub(in crate::cli) struct ConfirmClockArgs {}

impl ConfirmClockArgs {
    pub(super) fn run(&self, global: &GlobalArgs) -> Result<Exit, Failure> {
        let context = Context::load(global)?;
        let name = own_entry(&context)?.machine.name.clone();
        let session = Session::with(context, Some(&name))?;
        let now = Timestamp::now();
        order(&session, &Request::ConfirmClock { now: now.as_millisecond() })?;
        if global.json {
            output::json(&serde_json::json!({"server": name.as_str(), "confirmed": now.to_string()}))?;
        } else if !global.quiet {
            output::line(format_args!("the clock of {name} counts as right from now on: {now}"))?;
        }
        Ok(Exit::Exact)
    }
}
