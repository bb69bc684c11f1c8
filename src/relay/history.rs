//! How much there was to do, over the last minutes, hours and the last day: for the picture of load.
//!
//! A sample of the relay's counters is taken every few seconds; each ring makes of them one slot for each step of its own.
//! Fixed in size, whatever happens. Nobody takes samples while nobody can ask.
//!
//! Not here: what is counted (`meter`).

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Relay;
use super::meter::BOUNDS;

use crate::clock;

/// How often a sample is taken: the finest step.
pub const SAMPLE: Duration = Duration::from_secs(STEPS[0].0.unsigned_abs());

/// Seconds of a step, and how many are kept: ten minutes, two hours, a day.
const STEPS: [(i64, usize); 3] = [(5, 120), (60, 120), (600, 144)];

/// How far back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// Ten minutes.
    Minutes,
    /// Two hours.
    Hours,
    /// A day.
    Day,
}

/// Columns of equal length, the oldest first; `None` where nothing is known. Counts are per second.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in the meter")]
pub struct Load {
    /// Seconds from one to the next.
    pub step: i64,
    /// When each slot begins, in Unix seconds.
    pub times: Vec<i64>,
    pub accepted: Vec<Option<f64>>,
    pub delivered: Vec<Option<f64>>,
    pub deferred: Vec<Option<f64>>,
    pub failed: Vec<Option<f64>>,
    pub refused: Vec<Option<f64>>,
    /// Messages in the spool, the most there were.
    pub waiting: Vec<Option<u64>>,
    /// Connections of clients, the most there were.
    pub connections: Vec<Option<u64>>,
    /// Milliseconds.
    pub commit_p50: Vec<Option<f64>>,
    pub commit_p99: Vec<Option<f64>>,
    pub delivery_p50: Vec<Option<f64>>,
    pub delivery_p99: Vec<Option<f64>>,
}

/// How many took at most as long as each bound, and how many there are in all.
type Counts = [u64; BOUNDS.len() + 1];

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sample {
    /// Accepted, delivered, deferred, failed, refused; since the start.
    counters: [u64; 5],
    waiting: u64,
    connections: u64,
    commit: Counts,
    delivery: Counts,
}

/// One step.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Its number: Unix seconds by the length of a step.
    number: i64,
    rates: [f64; 5],
    waiting: u64,
    connections: u64,
    /// Commit p50, p99, delivery p50, p99.
    latencies: [Option<f64>; 4],
}

#[derive(Debug)]
struct Ring {
    step: i64,
    limit: usize,
    slots: VecDeque<Slot>,
    open: Option<Open>,
}

/// The step that is not over.
#[derive(Debug)]
struct Open {
    number: i64,
    /// Microseconds.
    since: i64,
    base: Sample,
    last: Sample,
    until: i64,
    waiting: u64,
    connections: u64,
}

/// The rings.
#[derive(Debug)]
pub(super) struct History([Ring; 3]);

impl Default for History {
    fn default() -> Self {
        Self(STEPS.map(|(step, limit)| Ring { step, limit, slots: VecDeque::new(), open: None }))
    }
}

impl History {
    fn add(&mut self, now: Timestamp, sample: &Sample) {
        for ring in &mut self.0 {
            ring.add(now.as_microsecond(), sample);
        }
    }

    fn load(&self, range: Range, now: Timestamp) -> Load {
        self.0[range as usize].load(now.as_second())
    }
}

impl Ring {
    fn add(&mut self, now: i64, sample: &Sample) {
        let number = now.div_euclid(self.step * 1_000_000);
        if let Some(open) = &mut self.open {
            open.last = *sample;
            open.until = now;
            open.waiting = open.waiting.max(sample.waiting);
            open.connections = open.connections.max(sample.connections);
            if open.number == number {
                return;
            }
            // A clock that was set back begins anew; what it had said of a later time is not true any more.
            let slot = open.slot();
            self.slots.retain(|old| old.number < slot.number && old.number < number);
            if slot.number < number {
                self.slots.push_back(slot);
            }
            while self.slots.len() > self.limit {
                self.slots.pop_front();
            }
        }
        self.open = Some(Open {
            number,
            since: now,
            base: *sample,
            last: *sample,
            until: now,
            waiting: sample.waiting,
            connections: sample.connections,
        });
    }

    fn load(&self, now: i64) -> Load {
        let current = now.div_euclid(self.step);
        // Of a long step what there is so far is shown too.
        let unfinished = self.open.as_ref().filter(|open| open.until > open.since).map(Open::slot);
        let newest = unfinished.as_ref().or(self.slots.back()).map(|slot| slot.number);
        // The last slot is known a little after its end; the right edge does not come and go meanwhile.
        let end = newest.filter(|newest| (current - 1..=current).contains(newest)).unwrap_or(current);
        let mut load = Load { step: self.step, ..Load::default() };
        let mut slots = self.slots.iter().chain(&unfinished).peekable();
        for number in end + 1 - self.limit as i64..=end {
            while slots.next_if(|slot| slot.number < number).is_some() {}
            let slot = slots.next_if(|slot| slot.number == number);
            load.times.push(number * self.step);
            let rates =
                [&mut load.accepted, &mut load.delivered, &mut load.deferred, &mut load.failed, &mut load.refused];
            for (index, column) in rates.into_iter().enumerate() {
                column.push(slot.map(|slot| slot.rates[index]));
            }
            load.waiting.push(slot.map(|slot| slot.waiting));
            load.connections.push(slot.map(|slot| slot.connections));
            let latencies =
                [&mut load.commit_p50, &mut load.commit_p99, &mut load.delivery_p50, &mut load.delivery_p99];
            for (index, column) in latencies.into_iter().enumerate() {
                column.push(slot.and_then(|slot| slot.latencies[index]));
            }
        }
        load
    }
}

impl Open {
    fn slot(&self) -> Slot {
        let seconds = (self.until - self.since).max(1) as f64 / 1e6;
        let rate = |index: usize| {
            let more = self.last.counters[index].saturating_sub(self.base.counters[index]);
            (more as f64 / seconds * 1000.0).round() / 1000.0
        };
        let (commit, delivery) =
            (more(&self.last.commit, &self.base.commit), more(&self.last.delivery, &self.base.delivery));
        Slot {
            number: self.number,
            rates: std::array::from_fn(rate),
            waiting: self.waiting,
            connections: self.connections,
            latencies: [
                quantile(&commit, 0.5),
                quantile(&commit, 0.99),
                quantile(&delivery, 0.5),
                quantile(&delivery, 0.99),
            ],
        }
    }
}

/// What came between two looks at a histogram.
fn more(last: &Counts, base: &Counts) -> Counts {
    std::array::from_fn(|bucket| last[bucket].saturating_sub(base[bucket]))
}

/// The latency that `share` of them did not exceed, in milliseconds: within its bucket as if all were spread evenly there.
/// `None`: nothing was measured. Beyond the last bound it is that bound.
fn quantile(counts: &Counts, share: f64) -> Option<f64> {
    let all = counts[BOUNDS.len()];
    if all == 0 {
        return None;
    }
    let rank = share * all as f64;
    let bucket = counts.partition_point(|count| (*count as f64) < rank);
    let Some(&upper) = BOUNDS.get(bucket) else { return Some(BOUNDS[BOUNDS.len() - 1] as f64) };
    let (lower, below) = match bucket.checked_sub(1) {
        Some(before) => (BOUNDS[before], counts[before]),
        None => (0, 0),
    };
    let within = (rank - below as f64) / (counts[bucket] - below).max(1) as f64;
    let millis = lower as f64 + (upper - lower) as f64 * within.clamp(0.0, 1.0);
    Some((millis * 10.0).round() / 10.0)
}

impl Relay {
    /// Takes a sample. `connections` are those of clients.
    pub fn sample_load(&self, connections: usize) {
        let meter = &self.0.meter;
        let mut sample = Sample {
            counters: [meter.accepted.load(Ordering::Relaxed), 0, 0, 0, 0],
            waiting: self.waiting() as u64,
            connections: connections as u64,
            commit: meter.commit.counts(),
            delivery: meter.delivery.counts(),
        };
        for (_, via) in meter.connectors() {
            for (index, counter) in [&via.delivered, &via.deferred, &via.failed].into_iter().enumerate() {
                sample.counters[index + 1] += counter.load(Ordering::Relaxed);
            }
        }
        sample.counters[4] =
            meter.refused_for_now.load(Ordering::Relaxed) + meter.refused_for_good.load(Ordering::Relaxed);
        self.history().add(clock::wall(), &sample);
    }

    /// What the samples of that time come to.
    pub fn load_over(&self, range: Range) -> Load {
        self.history().load(range, clock::wall())
    }

    fn history(&self) -> std::sync::MutexGuard<'_, History> {
        self.0.history.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn sample(accepted: u64, waiting: u64) -> Sample {
        Sample { counters: [accepted, 0, 0, 0, 0], waiting, ..Sample::default() }
    }

    #[test]
    fn every_ring_makes_its_own_steps_of_the_samples() {
        let mut history = History::default();
        // An hour and a half, ten messages a second.
        for tick in 0..1080 {
            history.add(at(1_000_002 + tick * 5), &sample(50 * tick as u64, if tick == 1000 { 9 } else { 1 }));
        }
        let now = at(1_000_002 + 1079 * 5 + 1);
        for (range, step, limit, known) in
            [(Range::Minutes, 5, 120, 120), (Range::Hours, 60, 120, 91), (Range::Day, 600, 144, 10)]
        {
            let load = history.load(range, now);
            assert_eq!((load.step, load.times.len()), (step, limit));
            assert!(load.times.windows(2).all(|two| two[1] - two[0] == step), "{range:?}");
            let value = serde_json::to_value(&load).unwrap();
            for (name, column) in value.as_object().unwrap() {
                assert!(column.as_array().is_none_or(|column| column.len() == limit), "{range:?} {name}");
            }
            let rates: Vec<f64> = load.accepted.iter().copied().flatten().collect();
            assert_eq!(rates.len(), known, "{range:?}");
            assert!(rates.iter().all(|rate| (rate - 10.0).abs() < 1e-6), "{range:?}: {rates:?}");
            assert!(load.accepted.last().unwrap().is_some(), "{range:?}: the right edge is known");
            let most = load.waiting.iter().copied().flatten().max();
            assert_eq!(most, Some(9), "{range:?}: the most there were, and not what there is");
            assert!(load.commit_p50.iter().all(Option::is_none), "nothing was measured");
        }
        assert!(history.0.iter().all(|ring| ring.slots.len() <= ring.limit), "fixed in size");
    }

    #[test]
    fn a_gap_is_a_gap_and_a_clock_that_goes_back_begins_anew() {
        let mut history = History::default();
        for second in [2, 7, 12, 102, 107, 112] {
            history.add(at(second), &sample(second as u64, 0));
        }
        let load = history.load(Range::Minutes, at(113));
        let known: Vec<i64> =
            load.times.iter().zip(&load.accepted).filter_map(|(time, rate)| rate.map(|_| *time)).collect();
        // The one from 10 to 15 lasted until the samples went on: what it says is an average over the gap.
        assert_eq!(known, [0, 5, 10, 100, 105]);
        history.add(at(52), &sample(200, 0));
        history.add(at(57), &sample(210, 0));
        let load = history.load(Range::Minutes, at(58));
        let known: Vec<i64> =
            load.times.iter().zip(&load.accepted).filter_map(|(time, rate)| rate.map(|_| *time)).collect();
        assert_eq!(known, [0, 5, 10, 50], "nothing is said of a time that has not come");
        assert_eq!(load.accepted[load.times.iter().position(|time| *time == 50).unwrap()], Some(2.0));
    }

    #[test]
    fn a_percentile_lies_within_its_bucket() {
        let mut counts: Counts = [0; BOUNDS.len() + 1];
        assert_eq!(quantile(&counts, 0.5), None);
        // Ten up to 1 ms, ninety from 20 to 50 ms.
        counts[..5].fill(10);
        counts[5..].fill(100);
        for (share, expected) in [(0.05, 0.5), (0.1, 1.0), (0.55, 35.0), (1.0, 50.0)] {
            assert_eq!(quantile(&counts, share), Some(expected), "{share}");
        }
        let beyond: Counts = std::array::from_fn(|bucket| u64::from(bucket == BOUNDS.len()));
        assert_eq!(quantile(&beyond, 0.99), Some(86_400_000.0));
    }
}
