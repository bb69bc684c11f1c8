//! How old messages are and when copies are due, whatever the wall clock does. No clock, no I/O: times are arguments.
//!
//! A message carries the wall clock's time at which it was accepted, which alone survives a restart. While the relay runs,
//! its age grows with the monotonic clock. Every jump of the wall clock is remembered, so that the time a message
//! carries can be told from the time it would carry now. Where that leaves a doubt, the younger age counts: mail that
//! stays an hour too long harms nobody, mail that is returned too early does.
//!
//! At a start there is no clock to compare with but what the spool holds:
//!
//! - A time that lies further ahead than any wait the relay makes was written under a wrong clock, or is read under one. The
//!   message is then as new as the start, and the copy is due after the wait that follows from its attempts.
//! - If the clock is far beyond the last time in the spool, either the relay was down for long or the clock is wrong.
//!   Nothing that was found expires in the first hour: it is tried meanwhile, and a clock that is wrong is set by then.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use super::backscatter;
use crate::outcome::ladder;

/// The wall clock has jumped if it moved by so much more or less than the monotonic one. Time servers that steer it
/// stay far below that between two looks.
const JUMP: SignedDuration = SignedDuration::from_secs(2);

/// Such a jump is logged…
const TOLD: SignedDuration = SignedDuration::from_secs(60);
/// …but not more often than this.
const TOLD_EVERY: Duration = Duration::from_secs(3600);

/// So many jumps are remembered, the latest.
const JUMPS: usize = 256;

/// The longest wait that the relay writes into the spool: that of a report for its turn, with room for a clock that was steered.
const LONGEST_WAIT: Duration = backscatter::HORIZON.saturating_add(Duration::from_secs(3600));

/// If the clock at a start is further than this beyond the last time in the spool, it may be wrong.
const PLAUSIBLE: SignedDuration = SignedDuration::from_hours(1);

/// Mail found at such a start does not expire before this has passed.
pub(super) const GRACE: Duration = Duration::from_secs(3600);

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct WallClock {
    started: Instant,
    /// How the wall clock stood, from the start on; never empty.
    pieces: Vec<Piece>,
    /// The clock at the start may have been wrong.
    doubtful: bool,
    /// When a jump was last logged, counted from the start.
    told: Option<Duration>,
    #[cfg(test)]
    older_by: Duration,
}

/// The wall clock between two jumps.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Since the start.
    from: SignedDuration,
    /// What it would have shown at the start.
    zero: Timestamp,
}

impl WallClock {
    /// The relay starts now.
    pub(super) fn new(now: Instant, wall: Timestamp) -> Self {
        Self {
            started: now,
            pieces: vec![Piece { from: SignedDuration::ZERO, zero: wall }],
            doubtful: false,
            told: None,
            #[cfg(test)]
            older_by: Duration::ZERO,
        }
    }

    /// The spool was last written at about this time. True: the wall clock at the start was far beyond that.
    pub(super) fn last_seen(&mut self, last: Timestamp) -> bool {
        self.doubtful = self.pieces[0].zero.duration_since(last) > PLAUSIBLE;
        self.doubtful
    }

    /// Was it?
    pub(super) fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// The wall clock shows `wall` now. The jump it has made, if it is to be logged.
    pub(super) fn note(&mut self, now: Instant, wall: Timestamp) -> Option<SignedDuration> {
        let elapsed = self.elapsed(now);
        let from = signed(elapsed);
        let zero = wall.saturating_sub(from).unwrap_or(wall);
        let last = self.pieces[self.pieces.len() - 1];
        let jump = zero.duration_since(last.zero);
        if jump.abs() <= JUMP {
            return None;
        }
        if self.pieces.len() >= JUMPS {
            // The first one says how the clock stood at the start.
            self.pieces.remove(1);
        }
        self.pieces.push(Piece { from, zero });
        let is_news = self.told.is_none_or(|told| elapsed.saturating_sub(told) >= TOLD_EVERY);
        if jump.abs() < TOLD || !is_news {
            return None;
        }
        self.told = Some(elapsed);
        Some(jump)
    }

    /// The age of a message that carries this time. `earlier`: the relay has started since it came.
    pub(super) fn age(&self, now: Instant, accepted: Timestamp, earlier: bool) -> Duration {
        let elapsed = signed(self.elapsed(now));
        let born = self.born(elapsed, accepted, earlier);
        Duration::try_from(elapsed.saturating_sub(born)).unwrap_or(Duration::ZERO)
    }

    /// The age that counts towards the end of a life of this length.
    pub(super) fn age_in_life(&self, now: Instant, accepted: Timestamp, earlier: bool, lifetime: Duration) -> Duration {
        let age = self.age(now, accepted, earlier);
        match GRACE.checked_sub(self.elapsed(now)) {
            Some(left) if earlier && self.doubtful => age.min(lifetime.saturating_sub(left)),
            _ => age,
        }
    }

    /// When a message was born, counted from the start.
    fn born(&self, elapsed: SignedDuration, accepted: Timestamp, earlier: bool) -> SignedDuration {
        let by = |piece: &Piece| accepted.duration_since(piece.zero);
        let youngest = self.pieces.iter().map(by).max().unwrap_or(SignedDuration::ZERO);
        let longest = signed(LONGEST_WAIT);
        if earlier {
            // Of how the clock stood when it came nothing is known. A report that waits for its turn lies ahead.
            return if youngest > longest { SignedDuration::ZERO } else { youngest };
        }
        let mut until = elapsed;
        for piece in self.pieces.iter().rev() {
            let born = by(piece);
            if born >= piece.from.saturating_sub(JUMP) && born <= until.saturating_add(JUMP) {
                return born;
            }
            until = piece.from;
        }
        // Nobody saw the clock so, or it lies ahead, or it was taken over from a message that came before the start.
        youngest.min(elapsed.saturating_add(longest))
    }

    fn elapsed(&self, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.started);
        #[cfg(test)]
        let elapsed = elapsed + self.older_by;
        elapsed
    }

    /// So much time passes, and has passed by this way in all.
    #[cfg(test)]
    pub(super) fn pass(&mut self, by: Duration) -> SignedDuration {
        self.older_by += by;
        signed(self.older_by)
    }
}

/// How long a copy that a start finds still waits: until the time it carries, unless no wait of ours lies so far ahead. Then as
/// long as after an attempt just now.
pub(super) fn wait_at_start(until: Timestamp, wall: Timestamp, attempts: u16, retry: &[Duration]) -> (Duration, bool) {
    let wait = Duration::try_from(until.duration_since(wall)).unwrap_or(Duration::ZERO);
    let longest = match attempts {
        // A report for its turn.
        0 => LONGEST_WAIT,
        // With the jitter, and what else an attempt may lead to: a failure that cannot be reported waits an hour.
        _ => retry.iter().max().map_or(Duration::ZERO, |longest| longest.mul_f64(1.25)).max(GRACE + GRACE / 4),
    };
    if wait <= longest { (wait, false) } else { (ladder(retry, attempts), true) }
}

fn signed(span: Duration) -> SignedDuration {
    SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;

    fn wall(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn seconds(count: i64) -> Duration {
        Duration::from_secs(count.cast_unsigned())
    }

    /// Each row: jumps of the wall clock (when, by how much, both since the start), what time a message carries, whether it is of
    /// an earlier run, and its age when so much has passed.
    #[test]
    fn ages_survive_a_wall_clock_that_jumps() {
        let three_days_ahead_for_4_s: &[_] = &[(10 * HOUR, 3 * DAY), (10 * HOUR + 4, -3 * DAY)];
        for (jumps, accepted, earlier, elapsed, age) in [
            // A clock that stands still in its course.
            (&[][..], HOUR, false, 3 * HOUR, 2 * HOUR),
            (&[], -HOUR, true, 3 * HOUR, 4 * HOUR),
            // It came before the jump, during it and after it.
            (three_days_ahead_for_4_s, 9 * HOUR, false, 10 * HOUR + 2, HOUR + 2),
            (three_days_ahead_for_4_s, 9 * HOUR, false, 12 * HOUR, 3 * HOUR),
            (three_days_ahead_for_4_s, 10 * HOUR + 2 + 3 * DAY, false, 12 * HOUR + 2, 2 * HOUR),
            (three_days_ahead_for_4_s, 11 * HOUR, false, 12 * HOUR, HOUR),
            (three_days_ahead_for_4_s, -HOUR, true, 10 * HOUR + 2, 11 * HOUR + 2),
            // It jumps and stays so.
            (&[(HOUR, 3 * DAY)], 0, false, 2 * HOUR, 2 * HOUR),
            (&[(HOUR, 3 * DAY)], -HOUR, true, 2 * HOUR, 3 * HOUR),
            (&[(HOUR, 3 * DAY)], 3 * DAY + 2 * HOUR, false, 3 * HOUR, HOUR),
            (&[(HOUR, -3 * DAY)], HOUR / 2, false, 2 * HOUR, HOUR + HOUR / 2),
            (&[(HOUR, -3 * DAY)], -3 * DAY + 2 * HOUR, false, 3 * HOUR, HOUR),
            // It was three days ahead at the start, and is set right: what came before the start is as old as it really is.
            (&[(60, -3 * DAY)], -3 * DAY - HOUR, true, 2 * HOUR, 3 * HOUR),
            // What an earlier run wrote under a clock that was a day ahead is as new as this run.
            (&[], DAY, true, 0, 0),
            (&[], DAY, true, 2 * HOUR, 2 * HOUR),
            // A report's life begins with its turn, also over a restart.
            (&[], 11 * HOUR, true, 10 * HOUR, 0),
            (&[], 11 * HOUR, true, 12 * HOUR, HOUR),
            (&[], 11 * HOUR, false, 12 * HOUR, HOUR),
            (&[(HOUR, 3 * DAY)], 11 * HOUR, false, 12 * HOUR, HOUR),
            // Sent on with the time of a message that came before the start.
            (&[], -DAY, false, HOUR, DAY + HOUR),
            (&[(HOUR, 3 * DAY)], -DAY, false, 2 * HOUR, DAY + 2 * HOUR),
        ] {
            let start = Instant::now();
            let mut clock = WallClock::new(start, wall(0));
            let mut offset = 0;
            for (at, by) in jumps.iter().filter(|(at, _)| *at <= elapsed) {
                offset += by;
                let _ = clock.note(start + seconds(*at), wall(*at + offset));
            }
            let found = clock.age(start + seconds(elapsed), wall(accepted), earlier);
            assert_eq!(found, seconds(age), "{jumps:?} {accepted} {earlier} {elapsed}");
        }
    }

    #[test]
    fn a_clock_that_is_steered_makes_no_jump_and_one_that_flickers_is_bounded_and_told_seldom() {
        let start = Instant::now();
        let mut clock = WallClock::new(start, wall(0));
        // 500 ppm for a day, looked at every minute.
        for minute in 0..24 * 60 {
            let at = minute * 60;
            assert_eq!(clock.note(start + seconds(at), wall(at) + SignedDuration::from_micros(at * 500)), None);
        }
        assert!(clock.pieces.len() < 30, "{}", clock.pieces.len());
        let mut told = 0;
        for second in 0..10_000 {
            let at = DAY + second;
            told += u32::from(clock.note(start + seconds(at), wall(at + (second % 2) * DAY)).is_some());
        }
        assert!(clock.pieces.len() <= JUMPS && told <= 4, "{} {told}", clock.pieces.len());
        assert_eq!(
            clock.age(start + seconds(2 * DAY), wall(-HOUR), true),
            seconds(2 * DAY + HOUR),
            "the start is known"
        );
    }

    /// Each row: the last time in the spool, what time a message carries, how much has passed; its age in a life of two days.
    #[test]
    fn nothing_expires_in_the_hour_after_a_start_under_a_doubtful_clock() {
        let life = seconds(2 * DAY);
        for (last, accepted, earlier, elapsed, age) in [
            // A restart of a few seconds: what is too old is too old.
            (-5, -3 * DAY, true, 60, 3 * DAY + 60),
            (HOUR / 2, -3 * DAY, true, 60, 3 * DAY + 60),
            // The clock is days beyond what the spool saw last.
            (-2 * DAY, -3 * DAY, true, 0, 2 * DAY - HOUR),
            (-2 * DAY, -3 * DAY, true, 60, 2 * DAY - HOUR + 60),
            (-2 * DAY, -3 * DAY, true, HOUR, 2 * DAY),
            (-2 * DAY, -3 * DAY, true, HOUR + 1, 3 * DAY + HOUR + 1),
            (-2 * DAY, -HOUR, true, 60, HOUR + 60),
            (-2 * DAY, 10, false, 60, 50),
        ] {
            let start = Instant::now();
            let mut clock = WallClock::new(start, wall(0));
            assert_eq!(clock.last_seen(wall(last)), last < -HOUR);
            let found = clock.age_in_life(start + seconds(elapsed), wall(accepted), earlier, life);
            assert_eq!(found, seconds(age), "{last} {accepted} {earlier} {elapsed}");
        }
    }

    /// Each row: seconds until the time a copy carries, its attempts, the ladder; how long it waits, and whether it was distrusted.
    #[test]
    fn a_start_distrusts_times_that_no_wait_leads_to() {
        let usual = &[60, 300, 600, 1200, 1800].map(Duration::from_secs)[..];
        let long = &[3 * HOUR, 6 * HOUR].map(seconds)[..];
        for (until, attempts, retry, wait, distrusted) in [
            (-DAY, 3, usual, 0, false),
            (0, 3, usual, 0, false),
            (30 * 60 * 6 / 5, 9, usual, 30 * 60 * 6 / 5, false),
            (HOUR, 1, usual, HOUR, false),
            (DAY, 1, usual, 60, true),
            (DAY, 3, usual, 600, true),
            (1000 * DAY, 99, usual, 1800, true),
            (7 * HOUR, 3, long, 7 * HOUR, false),
            (DAY, 3, long, 6 * HOUR, true),
            (11 * HOUR, 0, usual, 11 * HOUR, false),
            (DAY, 0, usual, 60, true),
            (DAY, 1, &[], 60, true),
        ] {
            let found = wait_at_start(wall(until), wall(0), attempts, retry);
            assert_eq!(found, (seconds(wait), distrusted), "{until} {attempts} {retry:?}");
        }
    }
}
