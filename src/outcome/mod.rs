//! What follows from an attempt: done, again at a time, or failed; the event, and the report to the sender.
//!
//! [`judge`] is a function of the attempt's result, the copy's history, the configuration and a random fraction: it
//! knows no clock and keeps nothing.
//!
//! Not here: back-off per destination (`relay::schedule`), and carrying out what was judged (`relay::settle`).
//!
//! Standards: RFC 5321 section 4.5.4.1 (retries), 3461 (who is told).

use std::time::Duration;

use crate::config::Spool as Settings;
use crate::message::Envelope;

pub mod report;
pub mod setback;
#[cfg_attr(
    feature = "otlp",
    allow(
        clippy::disallowed_methods,
        reason = "spans have their times from the system, and nothing asks for them back"
    )
)]
pub mod spans;
#[allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "real files and a real thread; a simulated world only watches the events"
)]
pub mod tracking;

pub use setback::Setback;

/// How long after the first look-up a domain's absence may be taken for true. C246.
pub const CONFIRMATION: Duration = Duration::from_secs(60);

/// A report lives this long at most: who has not taken it in a day will hardly miss it (C195).
pub const REPORT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The shortest wait: whatever the clocks and the configuration say, nothing is tried in a circle.
pub const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// What follows from an attempt, for one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its next hop took it.
    Done,
    /// Try again.
    Again {
        /// After this wait, with jitter already in it.
        at_in: Duration,
    },
    /// It never will be delivered.
    Failed(Setback),
}

/// What a copy has behind it when an attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// Since the message was accepted.
    pub age: Duration,
    /// How many attempts were made, this one among them.
    pub attempts: u16,
    /// How long ago an earlier attempt first ended in a [`Setback`] that [needs
    /// confirmation](Setback::needs_confirmation) and no other attempt since ended otherwise; `None` if none did, or
    /// if nobody remembers (after a restart): then it is tried once more.
    pub absent_for: Option<Duration>,
    /// The message has a null sender: a report, with its own shorter life.
    pub report: bool,
}

/// What follows. `fraction` is random, from 0 to 1, and spreads the waits by 20 % to both sides (F-035).
pub fn judge(result: Result<(), Setback>, history: History, settings: &Settings, fraction: f64) -> Outcome {
    let Err(setback) = result else { return Outcome::Done };
    let confirmed = history.absent_for.is_some_and(|ago| ago >= CONFIRMATION);
    if setback.is_permanent() && (confirmed || !setback.needs_confirmation()) {
        return Outcome::Failed(setback);
    }
    let lifetime = lifetime(settings, history.report);
    let Some(left) = lifetime.checked_sub(history.age).filter(|left| !left.is_zero()) else {
        if setback.is_permanent() {
            // Not confirmed, but there is no time left for that: what DNS said says more than that time is over.
            return Outcome::Failed(setback);
        }
        return Outcome::Failed(expired(setback, lifetime));
    };
    let mut wait = jittered(ladder(&settings.retry, history.attempts), fraction);
    if setback.needs_confirmation() {
        // However short the ladder is, the second look-up must count.
        wait = wait.max(CONFIRMATION.saturating_sub(history.absent_for.unwrap_or_default()));
    }
    // The last attempt falls on the end of the lifetime, so that the sender is told then and not a rung later.
    Outcome::Again { at_in: wait.min(left).max(SHORTEST_WAIT) }
}

/// Is the life of a message of this age over? For messages that wait in a queue without being tried.
pub fn is_expired(settings: &Settings, age: Duration, report: bool) -> bool {
    age >= lifetime(settings, report)
}

/// How long a message is tried.
pub fn lifetime(settings: &Settings, report: bool) -> Duration {
    if report { settings.message_lifetime.min(REPORT_LIFETIME) } else { settings.message_lifetime }
}

/// The end of a message's life, with what its last attempt ended in.
pub fn expired(last: Setback, lifetime: Duration) -> Setback {
    match last {
        Setback::Expired { .. } => last,
        last => Setback::Expired { lifetime: in_words(lifetime), last: Box::new(last) },
    }
}

/// Is the sender to be warned now that the message is late? Once, never about a report, and only for recipients whose
/// NOTIFY allows it, which [`report::Report::write`] sees to. C189.
pub fn is_delay_due(settings: &Settings, envelope: &Envelope, age: Duration, warned: bool) -> bool {
    !warned && envelope.sender.is_some() && settings.delay_warning.is_some_and(|warning| age >= warning)
}

/// A span of time as a person says it: `2 days`, `90 minutes`.
pub fn in_words(span: Duration) -> String {
    let seconds = span.as_secs();
    let (count, unit) = match seconds {
        0 => (seconds, "second"),
        _ if seconds.is_multiple_of(86_400) => (seconds / 86_400, "day"),
        _ if seconds.is_multiple_of(3_600) => (seconds / 3_600, "hour"),
        _ if seconds.is_multiple_of(60) => (seconds / 60, "minute"),
        _ => (seconds, "second"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// `span`, shortened or lengthened by up to 20 %.
pub fn jittered(span: Duration, fraction: f64) -> Duration {
    // A fraction that is no number would make the product panic.
    let fraction = if fraction.is_finite() { fraction.clamp(0.0, 1.0) } else { 0.5 };
    span.mul_f64(0.8 + 0.4 * fraction)
}

/// The wait after so many attempts; the last rung repeats.
pub fn ladder(retry: &[Duration], attempts: u16) -> Duration {
    let rung = usize::from(attempts.saturating_sub(1)).min(retry.len().saturating_sub(1));
    retry.get(rung).copied().unwrap_or(CONFIRMATION)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::{Address, BodyType, Domain};

    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(86_400);

    fn settings() -> Settings {
        Settings {
            acknowledge: crate::config::Acknowledge::Durable,
            path: "/spool".into(),
            message_lifetime: 2 * DAY,
            delay_warning: Some(240 * MINUTE),
            retry: [1, 5, 10, 20, 30].map(|minutes| minutes * MINUTE).to_vec(),
            min_free_space: 0,
        }
    }

    fn history(age: Duration, attempts: u16) -> History {
        History { age, attempts, absent_for: None, report: false }
    }

    fn dns() -> Setback {
        Setback::Dns { name: "example.net".into(), why: "SERVFAIL".into() }
    }

    fn no_domain() -> Setback {
        Setback::NoDomain { domain: Domain::parse("example.net").unwrap() }
    }

    #[test]
    fn the_ladder_is_climbed_and_its_last_rung_repeats() {
        for (attempts, minutes) in [(0, 1), (1, 1), (2, 5), (3, 10), (4, 20), (5, 30), (6, 30), (u16::MAX, 30)] {
            let outcome = judge(Err(dns()), history(MINUTE, attempts), &settings(), 0.5);
            assert_eq!(outcome, Outcome::Again { at_in: minutes * MINUTE }, "after {attempts} attempts");
        }
    }

    #[test]
    fn waits_spread_by_a_fifth_to_both_sides() {
        for (fraction, seconds) in [(0.0, 48), (0.5, 60), (1.0, 72), (-5.0, 48), (f64::NAN, 60)] {
            let outcome = judge(Err(dns()), history(MINUTE, 1), &settings(), fraction);
            assert_eq!(outcome, Outcome::Again { at_in: Duration::from_secs(seconds) }, "{fraction}");
        }
    }

    #[test]
    fn permanent_is_permanent_at_once() {
        let null = Setback::NullMx { domain: Domain::parse("example.net").unwrap() };
        assert_eq!(judge(Err(null.clone()), history(MINUTE, 1), &settings(), 0.5), Outcome::Failed(null));
        assert_eq!(judge(Ok(()), history(9 * DAY, 99), &settings(), 0.5), Outcome::Done);
    }

    /// F-034: retried until the end of its life, with the last reply in the report.
    #[test]
    fn f034_what_is_too_old_has_expired() {
        let minute_before = judge(Err(dns()), history(2 * DAY - MINUTE, 50), &settings(), 0.5);
        assert_eq!(minute_before, Outcome::Again { at_in: MINUTE }, "the last attempt falls on the end");
        for age in [2 * DAY, 9 * DAY] {
            let Outcome::Failed(setback) = judge(Err(dns()), history(age, 50), &settings(), 0.5) else {
                panic!("{age:?}")
            };
            assert_eq!(setback, Setback::Expired { lifetime: "2 days".into(), last: Box::new(dns()) });
        }
    }

    /// Where the lifetime leaves no time to look up a second time, the report says what DNS said, not that time is over.
    #[test]
    fn a_short_life_hides_no_answer_of_dns() {
        let settings = Settings { message_lifetime: MINUTE / 2, ..settings() };
        let judged = |age| judge(Err(no_domain()), history(age, 2), &settings, 0.5);
        assert!(matches!(judged(MINUTE / 4), Outcome::Again { .. }));
        assert_eq!(judged(MINUTE), Outcome::Failed(no_domain()));
    }

    /// C195.
    #[test]
    fn c195_reports_live_a_day() {
        for (report, age, expected) in [(true, DAY, true), (true, DAY - MINUTE, false), (false, DAY, false)] {
            assert_eq!(is_expired(&settings(), age, report), expected, "{report} {age:?}");
            let outcome = judge(Err(dns()), History { report, ..history(age, 9) }, &settings(), 0.5);
            assert_eq!(matches!(outcome, Outcome::Failed(_)), expected, "{report} {age:?}");
        }
    }

    /// C246: absence bounces only if a second look at least a minute later agrees.
    #[test]
    fn c246_absence_is_confirmed() {
        let seconds = Duration::from_secs;
        for (absent_for, attempts, expected) in [
            (None, 1, Some(seconds(60))),
            (None, 7, Some(30 * MINUTE)),
            (Some(seconds(59)), 1, Some(seconds(60))),
            (Some(seconds(60)), 2, None),
            (Some(seconds(900)), 2, None),
        ] {
            let outcome =
                judge(Err(no_domain()), History { absent_for, ..history(MINUTE, attempts) }, &settings(), 0.5);
            let expected = expected.map_or(Outcome::Failed(no_domain()), |at_in| Outcome::Again { at_in });
            assert_eq!(outcome, expected, "{absent_for:?}");
        }
        let hasty = Settings { retry: vec![seconds(5)], ..settings() };
        for (absent_for, wait) in [(None, 60), (Some(seconds(10)), 50)] {
            let outcome = judge(Err(no_domain()), History { absent_for, ..history(MINUTE, 1) }, &hasty, 0.5);
            assert_eq!(outcome, Outcome::Again { at_in: seconds(wait) }, "a ladder of 5 s must wait for the minute");
        }
    }

    /// C189.
    #[test]
    fn c189_the_sender_is_warned_once() {
        let anna = Address::parse("anna@contoso.com").ok();
        let envelope = |sender| Envelope {
            sender,
            recipients: Vec::new(),
            ret: None,
            envid: None,
            body: BodyType::SevenBit,
            smtputf8: false,
            requiretls: false,
        };
        let never = Settings { delay_warning: None, ..settings() };
        for (settings, sender, minutes, warned, expected) in [
            (settings(), anna.clone(), 239, false, false),
            (settings(), anna.clone(), 240, false, true),
            (settings(), anna.clone(), 999, true, false),
            (settings(), None, 999, false, false),
            (never, anna, 999, false, false),
        ] {
            assert_eq!(
                is_delay_due(&settings, &envelope(sender), minutes * MINUTE, warned),
                expected,
                "{minutes} {warned}"
            );
        }
    }

    #[test]
    fn spans_in_words() {
        for (seconds, expected) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (90, "90 seconds"),
            (5400, "90 minutes"),
            (7200, "2 hours"),
            (172_800, "2 days"),
        ] {
            assert_eq!(in_words(Duration::from_secs(seconds)), expected);
        }
    }

    proptest! {
        #[test]
        fn waits_are_never_zero_nor_beyond_the_life(
            age in 0u64..400_000, attempts: u16, fraction in -1.0f64..2.0, absent in proptest::option::of(0u64..1000), gone: bool,
        ) {
            let history = History {
                age: Duration::from_secs(age), attempts, absent_for: absent.map(Duration::from_secs), report: false,
            };
            let setback = if gone { no_domain() } else { dns() };
            match judge(Err(setback), history, &settings(), fraction) {
                Outcome::Again { at_in } => {
                    prop_assert!(at_in >= SHORTEST_WAIT && at_in <= 36 * MINUTE);
                    prop_assert!(history.age < 2 * DAY && history.age + at_in <= 2 * DAY + SHORTEST_WAIT);
                }
                Outcome::Failed(_) => prop_assert!(history.age >= 2 * DAY || gone && absent >= Some(60)),
                Outcome::Done => prop_assert!(false),
            }
        }
    }
}
