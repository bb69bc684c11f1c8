//! How many reports those outside get from us. Pure: the clock is an argument.
//!
//! Who writes with a forged sender makes us write reports to somebody who never wrote. A message is refused while its client
//! waits wherever that can be known, so few are left; but a server behind us that refuses everything for an hour could make
//! thousands of them. So one address gets ten in an hour, one domain and all together get more, and what is beyond goes
//! out later, at the same rate. What could not go out within hours waits as the failure that it is: its message is tried
//! again, and only at the end of its life the failure goes unreported, and the event says so.
//!
//! Reports to our own people and applications are not counted: they did write (`visits::is_unlimited`).

use std::time::{Duration, Instant};

use crate::message::Address;
use crate::random::HashMap;

const HOUR: Duration = Duration::from_secs(3600);

/// Reports that one address gets in an hour. S-111.
const TO_ADDRESS: u32 = 10;
/// Those that all addresses of a domain get: the large ones have many who wrote in earnest.
const TO_DOMAIN: u32 = 500;
/// And all together. A reputation is lost by less than this.
const TO_ALL: u32 = 5000;

/// A report that comes later than this helps nobody.
pub(super) const HORIZON: Duration = HOUR.saturating_mul(12);

/// So many addresses and domains are remembered. Who finds no room is held to the limit of all.
const LIMIT: usize = 50_000;

/// When a report may go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// At once.
    Now,
    /// After this wait.
    Later(Duration),
    /// Too late to be of use.
    Never,
}

/// The reports of the last hour, and those that were given a later turn.
#[derive(Debug, Default)]
pub(super) struct Backscatter {
    /// By address; by domain under its name.
    known: HashMap<Box<str>, Window>,
    all: Option<Window>,
    /// When what is over is looked for again.
    sweep: Option<Instant>,
}

/// One hour, which may lie ahead.
#[derive(Debug, Clone, Copy)]
struct Window {
    begin: Instant,
    used: u32,
}

impl Window {
    /// This window, or the next, with one more in it, and when that one goes out.
    fn next(window: Option<Self>, now: Instant, limit: u32) -> (Self, Instant) {
        let window = match window {
            Some(window) if window.begin + HOUR > now => window,
            _ => Self { begin: now, used: 0 },
        };
        if window.used < limit {
            // Of an hour that is here all may go at once; in one that lies ahead they go one after the other.
            let at = if window.begin <= now { now } else { window.begin + HOUR * window.used / limit };
            return (Self { used: window.used + 1, ..window }, at);
        }
        let begin = window.begin + HOUR;
        (Self { begin, used: 1 }, begin)
    }
}

impl Backscatter {
    /// The turn of a report to `to`. It is counted unless it is never, or later and the report cannot wait: what does not
    /// go out takes no other's turn.
    pub(super) fn turn(&mut self, to: &Address, now: Instant, may_wait: bool) -> Turn {
        if self.known.len() >= LIMIT && self.sweep.is_none_or(|at| at <= now) {
            self.known.retain(|_, window| window.begin + HOUR > now);
            self.sweep = Some(now + HOUR / 4);
        }
        let (all, mut at) = Window::next(self.all, now, TO_ALL);
        let mut windows = Vec::with_capacity(2);
        for (key, limit) in keys(to) {
            let known = self.known.get(&key).copied();
            if known.is_none() && self.known.len() >= LIMIT {
                continue;
            }
            let (window, turn) = Window::next(known, now, limit);
            at = at.max(turn);
            windows.push((key, window));
        }
        let wait = at.saturating_duration_since(now);
        if wait > HORIZON {
            return Turn::Never;
        }
        if !wait.is_zero() && !may_wait {
            return Turn::Later(wait);
        }
        self.all = Some(all);
        self.known.extend(windows);
        if wait.is_zero() { Turn::Now } else { Turn::Later(wait) }
    }

    /// The report that was counted last, or shortly before, did not come about.
    pub(super) fn give_back(&mut self, to: &Address) {
        for (key, _) in keys(to) {
            if let Some(window) = self.known.get_mut(&key) {
                window.used = window.used.saturating_sub(1);
            }
        }
        if let Some(all) = &mut self.all {
            all.used = all.used.saturating_sub(1);
        }
    }
}

/// What reports to this address are counted under, and up to how many.
fn keys(to: &Address) -> [(Box<str>, u32); 2] {
    [(to.key().into(), TO_ADDRESS), (to.domain().as_str().into(), TO_DOMAIN)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    /// Ten at once, the others one by one in the hours that follow, and in the end none.
    #[test]
    fn s111_one_address_gets_ten_in_an_hour() {
        let (now, to) = (Instant::now(), address("Victim@fabrikam.com"));
        let mut known = Backscatter::default();
        let turns: Vec<Turn> = (0..200).map(|_| known.turn(&to, now, true)).collect();
        let minutes = |minutes: u64| Turn::Later(Duration::from_secs(60 * minutes));
        assert!(turns[..10].iter().all(|turn| *turn == Turn::Now));
        assert_eq!(turns[10..21], [60, 66, 72, 78, 84, 90, 96, 102, 108, 114, 120].map(minutes));
        assert_eq!(turns.iter().filter(|turn| **turn != Turn::Never).count(), 10 + 11 * 10 + 1);
        assert_eq!(known.turn(&address("victim@fabrikam.com"), now, true), Turn::Never, "the same address");
        assert_eq!(known.turn(&address("other@fabrikam.com"), now, true), Turn::Now, "another has its own");
        // An hour with room for it is long past.
        assert_eq!(known.turn(&to, now + 20 * HOUR, true), Turn::Now);
    }

    /// Reports that do not go out, for want of time or of room on disk, take no turn from those that do.
    #[test]
    fn s111_what_does_not_go_out_is_not_counted() {
        let (now, to) = (Instant::now(), address("victim@fabrikam.com"));
        let mut known = Backscatter::default();
        for _ in 0..200 {
            assert_eq!(known.turn(&to, now, true), Turn::Now);
            known.give_back(&to);
        }
        let turns: Vec<Turn> = (0..200).map(|_| known.turn(&to, now, false)).collect();
        assert!(turns[..10].iter().all(|turn| *turn == Turn::Now));
        assert!(turns[10..].iter().all(|turn| *turn == Turn::Later(HOUR)));
        for _ in 0..200 {
            assert_eq!(known.turn(&to, now, true), Turn::Later(HOUR));
            known.give_back(&to);
        }
        assert_eq!(known.all.map(|all| all.used), Some(10));
    }

    #[test]
    fn s111_a_domain_and_all_together_have_more() {
        let now = Instant::now();
        let mut known = Backscatter::default();
        let one = |number: u32, domain: u32| address(&format!("u{number}@d{domain}.example"));
        let first: Vec<Turn> = (0..TO_DOMAIN + 1).map(|number| known.turn(&one(number, 0), now, true)).collect();
        let (last, before) = first.split_last().unwrap();
        assert!(before.iter().all(|turn| *turn == Turn::Now));
        assert_eq!(*last, Turn::Later(HOUR));
        let rest = TO_ALL - TO_DOMAIN - 1;
        assert!((0..rest).all(|number| known.turn(&one(0, 1 + number), now, true) == Turn::Now));
        assert_eq!(known.turn(&one(0, TO_ALL), now, true), Turn::Later(HOUR));
    }

    /// The memory is bounded, and who finds no room still has the limit of all.
    #[test]
    fn s111_a_flood_of_addresses_takes_no_memory() {
        let now = Instant::now();
        let mut known = Backscatter::default();
        for number in 0..LIMIT as u32 * 2 {
            known.turn(&address(&format!("u@d{number}.example")), now, true);
        }
        assert!(known.known.len() <= LIMIT + 1, "{}", known.known.len());
        assert_eq!(known.turn(&address("late@fabrikam.com"), now, true), Turn::Never);
        assert_eq!(known.turn(&address("late@fabrikam.com"), now + 24 * HOUR, true), Turn::Now);
    }
}
