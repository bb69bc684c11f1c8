//! Since when the two premises disagree about a mailbox: a short memory, with a clock that is passed in.
//!
//! While a mailbox moves, its entry changes on the one side before it does on the other, and for minutes each holds it
//! to be there. That is no fault, so mail for it waits. A disagreement that lasts longer than a move takes is one, and
//! is said. The first sight counts, not the last: a sender that tries again does not begin a new grace.
//!
//! The memory is lost at a restart, and a grace begins anew: the mail waits longer, nothing is lost.

use crate::random::HashMap;
use std::time::{Duration, Instant};

/// Disagreements that are remembered at one time. More is no move but a directory that was lost, and one that is new
/// then counts as just seen: its mail waits, which can be mended, and is not returned.
const LIMIT: usize = 100_000;

/// The disagreements of late.
#[derive(Debug, Default)]
pub struct Disagreements {
    seen: HashMap<Box<str>, Seen>,
    /// When those that nobody asks about any more are looked for.
    sweep: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    first: Instant,
    last: Instant,
}

/// What a disagreement is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disagreement {
    /// The mailbox may be moving.
    Moving {
        /// It was first seen then.
        since: Instant,
        /// The grace ends then.
        until: Instant,
    },
    /// It has lasted for too long, or no grace is given.
    Settled,
}

impl Disagreements {
    /// The two sides disagree about `key` now.
    pub fn judge(&mut self, key: &str, now: Instant, grace: Duration) -> Disagreement {
        if grace.is_zero() {
            return Disagreement::Settled;
        }
        let first = match self.seen.get_mut(key) {
            Some(seen) if !is_forgotten(seen, now, grace) => {
                seen.last = now;
                seen.first
            }
            Some(seen) => {
                *seen = Seen { first: now, last: now };
                now
            }
            None => {
                self.forget(now, grace);
                if self.seen.len() < LIMIT {
                    self.seen.insert(key.into(), Seen { first: now, last: now });
                }
                now
            }
        };
        // A grace beyond the end of the clock never ends.
        match first.checked_add(grace) {
            Some(until) if until <= now => Disagreement::Settled,
            Some(until) => Disagreement::Moving { since: first, until },
            None => Disagreement::Moving { since: first, until: now },
        }
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Lets go of what is forgotten, four times in a grace at most: who is asked for is whatever a peer sends.
    fn forget(&mut self, now: Instant, grace: Duration) {
        if self.sweep.is_some_and(|at| now < at) {
            return;
        }
        self.seen.retain(|_, seen| !is_forgotten(seen, now, grace));
        self.sweep = now.checked_add(grace / 4);
    }
}

/// Nobody asked for twice the grace. Senders try again sooner than that.
fn is_forgotten(seen: &Seen, now: Instant, grace: Duration) -> bool {
    now.duration_since(seen.last) > grace.saturating_mul(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_grace_from_the_first_sight_then_the_truth_then_forgotten() {
        let start = Instant::now();
        let mut known = Disagreements::default();
        // Minutes, who, minutes at which the grace began (none: settled).
        for (at, key, began) in [
            (0, "julie", Some(0)),
            (30, "julie", Some(0)),
            (30, "anna", Some(30)),
            (59, "julie", Some(0)),
            (60, "julie", None),
            (89, "anna", Some(30)),
            (90, "anna", None),
            // Asked for within twice the grace: it has not been forgotten.
            (180, "julie", None),
            (299, "julie", None),
            // Not within it: another move.
            (420, "julie", Some(420)),
            (479, "julie", Some(420)),
            (480, "julie", None),
            (480, "kim", Some(480)),
        ] {
            let now = start + Duration::from_secs(at * 60);
            let expected = began.map_or(Disagreement::Settled, |began| {
                let since = start + Duration::from_secs(began * 60);
                Disagreement::Moving { since, until: since + HOUR }
            });
            assert_eq!(known.judge(key, now, HOUR), expected, "{key} at {at}");
        }
        assert_eq!(known.len(), 2, "anna was not asked for any more");
    }

    #[test]
    fn without_a_grace_nothing_is_remembered() {
        let mut known = Disagreements::default();
        assert_eq!(known.judge("julie", Instant::now(), Duration::ZERO), Disagreement::Settled);
        assert!(known.is_empty());
    }

    #[test]
    fn a_grace_may_be_longer_than_any_clock_and_shorter_after_a_reload() {
        let now = Instant::now();
        let mut known = Disagreements::default();
        assert!(matches!(known.judge("julie", now, Duration::MAX), Disagreement::Moving { .. }));
        assert_eq!(known.judge("julie", now + HOUR, HOUR), Disagreement::Settled);
    }

    #[test]
    fn the_memory_is_bounded_and_who_finds_no_room_waits() {
        let start = Instant::now();
        let mut known = Disagreements::default();
        for number in 0..LIMIT + 10 {
            assert!(matches!(known.judge(&number.to_string(), start, HOUR), Disagreement::Moving { .. }));
        }
        assert_eq!(known.len(), LIMIT);
        let later = start + 2 * HOUR;
        assert_eq!(known.judge("0", later, HOUR), Disagreement::Settled);
        let since_later = Disagreement::Moving { since: later, until: later + HOUR };
        assert_eq!(known.judge("late", later, HOUR), since_later, "it counts as just seen");
        assert_eq!(known.len(), LIMIT);
        // Those that nobody asks for make room.
        let after = later + Duration::from_secs(60 * 30);
        known.judge("late", after, HOUR);
        assert_eq!(known.len(), 2, "0 and late");
    }
}
