//! `--start-at`: many hosts begin at one moment of the wall clock.
//!
//! It waits before a run and never during one, follows the wall clock while it does (which may be set
//! meanwhile), and never begins early.

use std::io::IsTerminal as _;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::civil::Time;
use jiff::{SignedDuration, Timestamp, Zoned};

use crate::exit::UsageError;
use crate::signals::EndRequests;
use crate::units;

/// A host that hears of its run this late still takes part: ssh and the start of a container take
/// seconds. The report says when it really began.
const GRACE: Duration = Duration::from_secs(5);
/// A moment further away is a slip of the pen.
const AHEAD_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often the wall clock is looked at while waiting.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// When a run begins: for every command that many hosts run at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Many hosts")]
pub struct StartArgs {
    /// Begin at this moment: 2026-01-31T18:00:00Z, 18:00 or 18:00:30 (today, local time), +30s from
    /// now, or @SECONDS since 1970.
    #[arg(long, value_name = "TIME", value_parser = parse_start)]
    pub start_at: Option<Timestamp>,
}

/// A moment in one of the forms of `--start-at`.
///
/// # Errors
/// When it is none of them.
pub fn parse_start(text: &str) -> Result<Timestamp, String> {
    parse_from(text, &Zoned::now())
}

fn parse_from(text: &str, now: &Zoned) -> Result<Timestamp, String> {
    if let Some(ahead) = text.strip_prefix('+') {
        let ahead = units::parse_duration(ahead).map_err(|error| error.to_string())?;
        let ahead = SignedDuration::try_from(ahead).map_err(|error| error.to_string())?;
        let then = now.timestamp().checked_add(ahead);
        return then.map_err(|error| error.to_string());
    }
    if let Some(seconds) = text.strip_prefix('@') {
        let seconds: f64 = seconds
            .parse()
            .map_err(|_| format!("'{text}': after @ come seconds since 1970"))?;
        let since =
            SignedDuration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
        return Timestamp::from_duration(since).map_err(|error| error.to_string());
    }
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment);
    }
    // A date with a time would be taken for the time alone.
    let is_time = text.contains(':') && !text.contains(['-', 'T', 't']);
    if is_time && let Ok(time) = text.parse::<Time>() {
        let today = now.date().to_datetime(time);
        let moment = today.to_zoned(now.time_zone().clone());
        return moment
            .map(|moment| moment.timestamp())
            .map_err(|error| error.to_string());
    }
    Err(format!(
        "'{text}' is no moment: use 2026-01-31T18:00:00Z (with Z or an offset), 18:00, +30s or @1769882400"
    ))
}

/// A moment as reports write it: RFC 3339, UTC, milliseconds.
#[must_use]
pub fn rfc3339(moment: SystemTime) -> String {
    let since = moment
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let moment = Timestamp::from_millisecond(since.as_millis().try_into().unwrap_or(0));
    moment.map_or_else(|_| String::new(), |moment| format!("{moment:.3}"))
}

impl StartArgs {
    /// Waits until the moment, less `lead` in which what takes time is prepared. `false`: the user ended
    /// it meanwhile.
    ///
    /// # Errors
    /// When the moment is gone by, or too far away to be meant.
    pub fn wait(&self, lead: Duration, signals: &EndRequests) -> Result<bool> {
        let Some(moment) = self.start_at else {
            return Ok(true);
        };
        refuse(moment, Timestamp::now()).map_err(UsageError)?;
        let mut waiting = None;
        Ok(self.hold(lead, signals, |left| {
            waiting
                .get_or_insert_with(|| Waiting::begin(moment, left))
                .show(left);
        }))
    }

    /// The second wait, after the preparation: a moment that is gone by now is one that the preparation
    /// took. `show` is told the time left while it waits. `false`: the user ended it meanwhile.
    pub fn hold(
        &self,
        lead: Duration,
        signals: &EndRequests,
        mut show: impl FnMut(Duration),
    ) -> bool {
        while signals.count() == 0 {
            let left = self.left().unwrap_or_default().saturating_sub(lead);
            if left.is_zero() {
                return true;
            }
            show(left);
            std::thread::park_timeout(left.min(LOOK_INTERVAL));
        }
        false
    }

    /// How long until the moment; none without one, or when it is gone by.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let left = self.start_at?.duration_since(Timestamp::now());
        Duration::try_from(left).ok()
    }

    /// The moment as reports write it.
    #[must_use]
    pub fn in_words(&self) -> Option<String> {
        self.start_at.map(|moment| format!("{moment:.3}"))
    }
}

/// What speaks against a moment.
fn refuse(moment: Timestamp, now: Timestamp) -> Result<(), String> {
    let ahead = moment.duration_since(now);
    match Duration::try_from(ahead) {
        Ok(ahead) if ahead > AHEAD_MAX => Err(format!(
            "--start-at {moment:.0} is {} days away, and more than {} are not waited for",
            ahead.as_secs() / 86_400,
            AHEAD_MAX.as_secs() / 86_400
        )),
        Ok(_) => Ok(()),
        Err(_) => {
            let gone = ahead.unsigned_abs();
            if gone <= GRACE {
                return Ok(());
            }
            Err(format!(
                "--start-at {moment:.0} was {} ago (it is {now:.0} now): give a moment to come; one of \
                 another day needs its date, and the clocks of all hosts must agree (chrony, NTP)",
                units::format_duration(gone)
            ))
        }
    }
}

/// What a person sees while it waits: one line that counts down, or one line in a log.
struct Waiting(Option<ProgressBar>);

impl Waiting {
    fn begin(moment: Timestamp, left: Duration) -> Self {
        let moment = format!("{moment:.0}");
        if !std::io::stderr().is_terminal() {
            eprintln!(
                "ringmill: waiting until {moment}, {} from now",
                units::format_duration(left)
            );
            return Self(None);
        }
        let bar = ProgressBar::new_spinner().with_prefix(moment);
        bar.set_style(
            ProgressStyle::with_template("{spinner} waiting until {prefix}: {msg}")
                .expect("a constant template"),
        );
        Self(Some(bar))
    }

    fn show(&self, left: Duration) {
        if let Some(bar) = &self.0 {
            bar.set_message(units::format_duration(left));
            bar.tick();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_in_every_form() {
        let now: Zoned = "2026-01-31T17:30:00+02:00[+02:00]".parse().unwrap();
        for (text, expected) in [
            ("2026-01-31T18:00:00Z", "2026-01-31T18:00:00Z"),
            ("2026-01-31T18:00:00.250+01:00", "2026-01-31T17:00:00.25Z"),
            // Of today, where the user is.
            ("18:00", "2026-01-31T16:00:00Z"),
            ("18:00:30", "2026-01-31T16:00:30Z"),
            ("+30s", "2026-01-31T15:30:30Z"),
            ("+2m", "2026-01-31T15:32:00Z"),
            ("@1769882400", "2026-01-31T18:00:00Z"),
            ("@1769882400.5", "2026-01-31T18:00:00.5Z"),
        ] {
            let moment = parse_from(text, &now).unwrap();
            assert_eq!(moment.to_string(), expected, "{text}");
        }
        for text in [
            "",
            "soon",
            "2026-01-31T18:00:00",
            "+soon",
            "@",
            "25:00",
            "@1e99",
        ] {
            assert!(parse_from(text, &now).is_err(), "{text:?}");
        }
    }

    #[test]
    fn moments_that_cannot_be_meant_are_refused() {
        let now: Timestamp = "2026-01-31T18:00:00Z".parse().unwrap();
        for (moment, words) in [
            ("2026-01-31T17:59:56Z", None),
            ("2026-01-31T18:10:00Z", None),
            ("2026-01-31T17:59:50Z", Some("was 10")),
            ("2026-02-10T18:00:00Z", Some("is 10 days away")),
        ] {
            let refused = refuse(moment.parse().unwrap(), now).err();
            match words {
                None => assert_eq!(refused, None, "{moment}"),
                Some(words) => {
                    let refused = refused.unwrap();
                    assert!(refused.contains(words), "{moment}: {refused}");
                }
            }
        }
    }

    #[test]
    fn a_moment_of_a_report() {
        let moment = SystemTime::UNIX_EPOCH + Duration::from_millis(1_769_882_400_250);
        assert_eq!(rfc3339(moment), "2026-01-31T18:00:00.250Z");
    }

    #[test]
    fn without_a_moment_nothing_waits() {
        let signals = EndRequests::watch(std::thread::current()).unwrap();
        let start = StartArgs::default();
        assert!(start.wait(Duration::ZERO, &signals).unwrap());
        let ahead = StartArgs {
            start_at: Some(Timestamp::now() + SignedDuration::from_secs(60)),
        };
        // Within the lead, and when the user has had enough.
        assert!(ahead.hold(Duration::from_secs(120), &signals, |_| {}));
        signals.request();
        assert!(!ahead.wait(Duration::ZERO, &signals).unwrap());
    }
}
