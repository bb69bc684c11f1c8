//! Who says a wrong token is answered late: later each time, up to a bound.
//!
//! Who guesses holds a place of the listener meanwhile, so guessing at many connections at once ends at some two hundred
//! a second. Everybody comes from this host, and there is no address to tell them by: all wrong tokens count together, and
//! whoever has the right one is answered at once. A token has 256 bits where the relay made it; one that a person chose may
//! have less.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// So many are free: a script that still has yesterday's token.
const FREE: u32 = 3;
/// The first wait; each one after it is twice as long…
const FIRST: Duration = Duration::from_millis(20);
/// …up to this.
const LONGEST: Duration = Duration::from_millis(320);
/// After so long without a wrong token one of them is forgotten.
const FORGET: Duration = Duration::from_secs(1);
/// Remembers how many wrong tokens were said.
#[derive(Debug, Default)]
pub(super) struct Throttle(Mutex<Wrong>);

#[derive(Debug, Default)]
struct Wrong {
    count: u32,
    last: Option<Instant>,
}

impl Wrong {
    /// One more, now: how long it waits.
    fn say(&mut self, now: Instant) -> Duration {
        let since = self.last.map_or(Duration::ZERO, |last| now.duration_since(last));
        let forgotten = u32::try_from(since.as_secs() / FORGET.as_secs()).unwrap_or(u32::MAX);
        self.count = self.count.saturating_sub(forgotten);
        self.last = Some(now);
        let wait = match self.count.checked_sub(FREE) {
            None => Duration::ZERO,
            Some(times) => FIRST.saturating_mul(1u32.checked_shl(times).unwrap_or(u32::MAX)).min(LONGEST),
        };
        // No more than lead to the longest wait: it is forgotten as soon.
        self.count = (self.count + 1).min(FREE + 8);
        wait
    }
}

impl Throttle {
    /// Waits until a wrong token may be answered.
    pub(super) async fn wait(&self) {
        let wait = self.0.lock().unwrap_or_else(PoisonError::into_inner).say(Instant::now());
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s163_each_wrong_token_waits_longer_up_to_a_bound() {
        let mut wrong = Wrong::default();
        let start = Instant::now();
        let waits: Vec<u128> = (0..10).map(|_| wrong.say(start).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 20, 40, 80, 160, 320, 320, 320]);
        assert_eq!(wrong.say(start + Duration::from_secs(3600)).as_millis(), 0, "it is forgotten");
        for _ in 0..1000 {
            wrong.say(start + Duration::from_secs(3600));
        }
        let later = start + Duration::from_secs(3600) + FORGET * 12;
        assert_eq!(wrong.say(later).as_millis(), 0, "however many there were");
    }
}
