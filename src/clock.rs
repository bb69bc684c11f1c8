//! What time it is: the one place that asks.
//!
//! Tokio's clock is the system's monotonic one, unless a test holds it; then waits, deadlines and what is due all
//! stand still together. The wall clock follows it there, so that a simulated week is a week for lifetimes too.

use std::time::Instant;

use jiff::Timestamp;

/// For waits and deadlines: monotonic.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// For what people read, and for what outlives the process.
pub fn wall() -> Timestamp {
    #[cfg(test)]
    if let Some(wall) = held::wall() {
        return wall;
    }
    #[allow(clippy::disallowed_methods, reason = "the one place that asks the system")]
    Timestamp::now()
}

/// Time as a simulation has it, for everything on its thread.
#[cfg(test)]
pub(crate) mod held {
    use std::cell::Cell;
    use std::time::Instant;

    use jiff::{SignedDuration, Timestamp};

    thread_local! {
        static SINCE: Cell<Option<(Instant, Timestamp)>> = const { Cell::new(None) };
        static AHEAD: Cell<SignedDuration> = const { Cell::new(SignedDuration::ZERO) };
    }

    /// From now on it is `wall`, and later only as tokio's clock goes; `None` ends that.
    pub fn hold(wall: Option<Timestamp>) {
        SINCE.set(wall.map(|wall| (super::now(), wall)));
        AHEAD.set(SignedDuration::ZERO);
    }

    /// Does a simulation run on this thread?
    pub fn is_held() -> bool {
        SINCE.get().is_some()
    }

    /// The wall clock jumps by so much, and the monotonic one does not.
    pub fn jump(by: SignedDuration) {
        AHEAD.set(AHEAD.get().saturating_add(by));
    }

    /// How far the wall clock is ahead, by its jumps.
    pub fn ahead() -> SignedDuration {
        AHEAD.get()
    }

    pub fn wall() -> Option<Timestamp> {
        let (since, wall) = SINCE.get()?;
        let passed = SignedDuration::try_from(super::now().saturating_duration_since(since)).ok()?;
        wall.checked_add(passed).ok()?.checked_add(AHEAD.get()).ok()
    }
}
