//! What is counted: mail in, mail out, how long it took. Figures, never an event of its own.
//!
//! Counting costs an addition, or a few, where a thing happens: no lock, but for the name of a connector, and no system
//! call. What is counted by name is counted by names of the configuration, so nobody who sends mail makes it grow.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::clock;
use crate::config::ConnectorName;
use crate::deliver::Delivered;
use crate::outcome::Setback;
use crate::smtp::Status;
use crate::tls::Proof;

/// The upper ends of a histogram's buckets, in milliseconds: a fast disk and a slow one, a hop next door and one that
/// was down for an hour. Between seconds and minutes they are close: there it is decided whether mail is late.
#[rustfmt::skip]
pub const BOUNDS: [u64; 26] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500,
    1_000, 2_000, 5_000, 10_000, 15_000, 30_000, 45_000,
    60_000, 120_000, 180_000, 300_000, 600_000, 1_200_000, 1_800_000,
    3_600_000, 14_400_000, 86_400_000,
];

/// More connectors than any configuration has; names that are gone would otherwise stay for ever.
const CONNECTORS: usize = 1000;

/// How often at most a connector's last proof is written down, in microseconds.
const NEWS: i64 = 1_000_000;

/// Everything that is counted.
#[derive(Debug)]
pub struct Meter {
    started: Instant,
    /// Messages that were acknowledged.
    pub accepted: AtomicU64,
    /// Their bytes.
    pub accepted_bytes: AtomicU64,
    /// What was refused for now.
    pub refused_for_now: AtomicU64,
    /// What was refused for good.
    pub refused_for_good: AtomicU64,
    /// Reports to senders.
    pub reports: AtomicU64,
    /// Logins of clients that did not succeed: a wrong password, a name nobody has, or too many of these before.
    pub failed_logins: AtomicU64,
    /// From the end of the data to stable storage.
    pub commit: Histogram,
    /// From acceptance to the next hop's 250.
    pub delivery: Histogram,
    /// Accepted in the last minute.
    pub accepted_lately: Minute,
    /// Delivered in the last minute.
    pub delivered_lately: Minute,
    connectors: RwLock<BTreeMap<Box<str>, Arc<Via>>>,
}

/// One send connector's figures, in recipients.
#[derive(Debug, Default)]
pub struct Via {
    /// Taken by the next hop.
    pub delivered: AtomicU64,
    /// Tried in vain, to be tried again.
    pub deferred: AtomicU64,
    /// Never to be delivered.
    pub failed: AtomicU64,
    told: AtomicI64,
    last: Mutex<Last>,
}

/// What was last seen of a connector.
#[derive(Debug, Default, Clone)]
pub struct Last {
    /// The last delivery: when, to which host, what TLS proved.
    pub proved: Option<(Timestamp, String, Arc<Proof>)>,
    /// The last thing that went wrong.
    pub fault: Option<(Timestamp, String)>,
}

/// How long things took.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// How often something happened in the last sixty seconds.
#[derive(Debug)]
pub struct Minute {
    /// A second in the upper half, its count in the lower.
    seconds: [AtomicU64; 64],
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            started: clock::now(),
            accepted: AtomicU64::default(),
            accepted_bytes: AtomicU64::default(),
            refused_for_now: AtomicU64::default(),
            refused_for_good: AtomicU64::default(),
            reports: AtomicU64::default(),
            failed_logins: AtomicU64::default(),
            commit: Histogram::default(),
            delivery: Histogram::default(),
            accepted_lately: Minute::default(),
            delivered_lately: Minute::default(),
            connectors: RwLock::default(),
        }
    }
}

impl Meter {
    /// How long it has been counting.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn second(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// Accepted and delivered in the last minute.
    pub fn lately(&self) -> (u64, u64) {
        let second = self.second();
        (self.accepted_lately.sum(second), self.delivered_lately.sum(second))
    }

    pub(super) fn accept(&self, bytes: u64) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        self.accepted_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.accepted_lately.add(self.second(), 1);
    }

    /// Somebody was refused, with this status.
    pub fn refuse(&self, status: Status) {
        let count = if status.0 == 4 { &self.refused_for_now } else { &self.refused_for_good };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// A client could not log in.
    pub fn login_failed(&self) {
        self.failed_logins.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn report(&self) {
        self.reports.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn deliver(&self, via: &ConnectorName, done: &[(u16, Delivered)], accepted: Timestamp, now: Timestamp) {
        let Some((_, first)) = done.first() else { return };
        let count = done.len() as u64;
        self.delivered_lately.add(self.second(), count);
        self.delivery.add(Duration::try_from(now.duration_since(accepted)).unwrap_or_default());
        self.via(via, |via| {
            via.delivered.fetch_add(count, Ordering::Relaxed);
            let micros = now.as_microsecond();
            if micros.saturating_sub(via.told.load(Ordering::Relaxed)) >= NEWS {
                via.told.store(micros, Ordering::Relaxed);
                via.last().proved = Some((now, first.host.clone(), Arc::clone(&first.proof)));
            }
        });
    }

    pub(super) fn set_back(&self, via: &ConnectorName, count: usize, failed: bool, why: &Setback) {
        self.via(via, |via| {
            let counter = if failed { &via.failed } else { &via.deferred };
            counter.fetch_add(count as u64, Ordering::Relaxed);
            // What an operator sends back says nothing of the connector.
            if matches!(why, Setback::Returned { .. }) {
                return;
            }
            via.last().fault = Some((clock::wall(), why.to_string()));
        });
    }

    /// Every connector that had something to do since the start.
    pub fn connectors(&self) -> Vec<(Box<str>, Arc<Via>)> {
        let connectors = self.connectors.read().unwrap_or_else(PoisonError::into_inner);
        connectors.iter().map(|(name, via)| (name.clone(), Arc::clone(via))).collect()
    }

    fn via(&self, name: &ConnectorName, count: impl FnOnce(&Via)) {
        if let Some(via) = self.connectors.read().unwrap_or_else(PoisonError::into_inner).get(&*name.0) {
            return count(via);
        }
        let mut connectors = self.connectors.write().unwrap_or_else(PoisonError::into_inner);
        if connectors.len() < CONNECTORS {
            count(connectors.entry((&*name.0).into()).or_default());
        }
    }
}

impl Via {
    /// What was last seen.
    pub fn seen(&self) -> Last {
        self.last().clone()
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Histogram {
    /// One more that took so long.
    pub fn add(&self, took: Duration) {
        let bucket = BOUNDS.partition_point(|bound| u128::from(*bound) * 1000 < took.as_micros());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many took at most as long as each bound says, then how many there are in all.
    pub fn counts(&self) -> [u64; BOUNDS.len() + 1] {
        let mut sum = 0;
        std::array::from_fn(|bucket| {
            sum += self.buckets[bucket].load(Ordering::Relaxed);
            sum
        })
    }

    /// All of it, in seconds.
    pub fn seconds(&self) -> f64 {
        self.micros.load(Ordering::Relaxed) as f64 / 1e6
    }

    /// So many thousandths of them took at most this long, in milliseconds: the upper end of a bucket. `None`: there is
    /// none, or it took longer than the last bound.
    pub fn at_most(&self, thousandths: u64) -> Option<u64> {
        let counts = self.counts();
        let all = counts[BOUNDS.len()];
        let wanted = (all * thousandths).div_ceil(1000);
        (all > 0).then(|| BOUNDS.get(counts.partition_point(|count| *count < wanted)).copied()).flatten()
    }
}

impl Default for Minute {
    fn default() -> Self {
        Self { seconds: std::array::from_fn(|_| AtomicU64::default()) }
    }
}

impl Minute {
    fn add(&self, second: u64, count: u64) {
        let now = second << 32;
        let slot = &self.seconds[second as usize % 64];
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| {
            Some(if before & !0xFFFF_FFFF == now { before + count } else { now | count })
        });
    }

    fn sum(&self, second: u64) -> u64 {
        let is_fresh = |slot: &u64| second.saturating_sub(slot >> 32) < 60;
        let slots = self.seconds.iter().map(|slot| slot.load(Ordering::Relaxed));
        slots.filter(is_fresh).map(|slot| slot & 0xFFFF_FFFF).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_knows_its_percentiles() {
        let histogram = Histogram::default();
        assert_eq!(histogram.at_most(500), None);
        for millis in [0, 1, 1, 2, 3, 4, 5, 6, 7, 400] {
            histogram.add(Duration::from_millis(millis));
        }
        for (thousandths, expected) in [(300, 1), (400, 2), (500, 5), (700, 5), (900, 10), (990, 500), (1000, 500)] {
            assert_eq!(histogram.at_most(thousandths), Some(expected), "{thousandths}");
        }
        let counts = histogram.counts();
        assert_eq!((counts[0], counts[2], counts[BOUNDS.len()]), (3, 7, 10));
        assert!((histogram.seconds() - 0.429).abs() < 1e-9);
        let slow = Histogram::default();
        for (seconds, expected) in [(35, 45), (50, 60), (70, 120), (125, 180), (200, 300), (400, 600)] {
            slow.add(Duration::from_secs(seconds));
            assert_eq!(slow.at_most(1000), Some(expected * 1000), "{seconds} s");
        }
        histogram.add(Duration::from_secs(90_000));
        assert_eq!(histogram.at_most(1000), None, "beyond the last bound");
    }

    #[test]
    fn a_minute_forgets() {
        let minute = Minute::default();
        for second in [0, 1, 1, 59] {
            minute.add(second, 2);
        }
        for (second, expected) in [(1, 8), (59, 8), (60, 6), (61, 2), (118, 2), (119, 0), (1000, 0)] {
            assert_eq!(minute.sum(second), expected, "{second}");
        }
        minute.add(64, 5);
        assert_eq!(minute.sum(64), 7, "the place of second 0 is used again");
    }
}
