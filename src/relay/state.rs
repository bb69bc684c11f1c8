//! What the relay says of itself: whether it takes mail, what waits where, what holds it up.
//!
//! Read-only. Each question holds the queue for a moment: a line for each lane at most, of which there are as many as next
//! hops, never one for each message; what is asked of each message is asked of a few at a time.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Relay;
use super::meter::Meter;
use super::pressure::Level;
use super::schedule::{LaneId, Place};
use super::work::age;
use crate::clock;
use crate::config::ConnectorName;
use crate::random::HashMap;
use crate::route::Hop;
use crate::spool::{Step, look};

/// A next hop with what waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneState {
    /// The send connector.
    pub connector: String,
    /// The next hop, as people read it.
    pub hop: String,
    /// Copies that could be tried now.
    pub ready: usize,
    /// Copies that are being tried.
    pub active: usize,
    /// Copies that wait for their time.
    pub later: usize,
    /// Seconds until a hop that is down, or slow, is tried again.
    pub resting: Option<u64>,
    /// What the last attempt met, where it was nothing good; else why the copy waits that was put off last.
    pub last: Option<String>,
}

/// What a connector's lanes come to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Depths {
    /// Copies that could be tried now.
    pub ready: usize,
    /// Copies that are being tried.
    pub active: usize,
    /// Copies that wait for their time.
    pub later: usize,
    /// Hops that mail waits for, or that are left alone for a while.
    pub hops: usize,
    /// Hops that are left alone for a while.
    pub resting: usize,
}

/// The ages of what waits: words for the interface, and the seconds up to which each goes.
pub const AGES: [(&str, u64); 7] = [
    ("5m", 300),
    ("15m", 900),
    ("1h", 3600),
    ("4h", 4 * 3600),
    ("1d", 86_400),
    ("2d", 2 * 86_400),
    ("beyond", u64::MAX),
];

/// Items that are looked at in one go: a tenth of a millisecond, in which nothing else is scheduled.
const GLANCE: usize = 4096;

/// How old what waits is. What is being tried at this moment is not among it.
#[derive(Debug, Default, Clone)]
pub struct Ages {
    /// Copies, by [`AGES`].
    pub copies: [usize; AGES.len()],
    /// When the oldest message for each next hop was accepted, by connector and hop as people read it.
    pub oldest: HashMap<(String, String), Timestamp>,
}

impl Ages {
    fn count(&mut self, accepted: Timestamp, now: Timestamp) {
        let seconds = age(accepted, now).as_secs();
        self.copies[AGES.partition_point(|(_, up_to)| *up_to < seconds).min(AGES.len() - 1)] += 1;
    }
}

impl Relay {
    /// Does it take mail?
    ///
    /// # Errors
    /// Why not.
    pub fn check_ready(&self) -> Result<(), String> {
        if self.is_stopping() {
            return Err("the relay is stopping".to_owned());
        }
        self.0.spool.has_room(0).map_err(|error| error.to_string())
    }

    /// Sums over each connector's lanes, by its name.
    pub fn depths(&self) -> BTreeMap<String, Depths> {
        let mut sums: BTreeMap<String, Depths> = BTreeMap::new();
        for (via, _, depth) in self.queue().depths() {
            let sum = sums.entry(via.to_string()).or_default();
            sum.ready += depth.ready;
            sum.active += depth.active;
            sum.later += depth.later;
            sum.hops += usize::from(depth.ready + depth.active + depth.later > 0 || depth.resting.is_some());
            sum.resting += usize::from(depth.resting.is_some());
        }
        sums
    }

    /// The lanes in which something waits or that rest, the fullest first; `at_most` of them.
    pub fn lanes(&self, at_most: usize) -> Vec<LaneState> {
        let now = clock::now();
        let queue = self.queue();
        let mut found: Vec<_> = queue
            .depths()
            .filter(|(_, _, depth)| depth.ready + depth.active + depth.later > 0 || depth.resting.is_some())
            .collect();
        let waits = |depth: &super::schedule::Depth| depth.ready + depth.active + depth.later;
        found.sort_by_key(|(via, _, depth)| (std::cmp::Reverse(waits(depth)), via.to_string()));
        found.truncate(at_most);
        // Of a hop that is well, what kept back one of those that wait.
        let last = |lane| queue.last_setback(lane).or_else(|| queue.last_deferral(lane));
        found
            .into_iter()
            .map(|(via, hop, depth)| LaneState {
                connector: via.to_string(),
                hop: hop.to_string(),
                ready: depth.ready,
                active: depth.active,
                later: depth.later,
                resting: depth.resting.map(|until| until.saturating_duration_since(now).as_secs()),
                last: queue.find(via, hop).and_then(last).map(ToString::to_string),
            })
            .collect()
    }

    /// How old what waits is. Blocking: a second or so for ten million copies, and the queue is free in between.
    pub fn ages(&self) -> Ages {
        let now = clock::wall();
        let mut ages = Ages::default();
        let mut oldest: HashMap<(ConnectorName, Hop), Timestamp> = HashMap::default();
        let mut place = Some(Place::default());
        while let Some(from) = place {
            let mut here: HashMap<LaneId, Timestamp> = HashMap::default();
            let queue = self.queue();
            place = queue.glance(from, GLANCE, |lane, item| {
                // An old place of a copy that has another, or is gone, says nothing.
                if item.turn != queue.turn(item.key()) {
                    return;
                }
                ages.count(item.accepted, now);
                let first = here.entry(lane).or_insert(item.accepted);
                *first = item.accepted.min(*first);
            });
            // A lane's number may be another's by the next look.
            for (lane, accepted) in here {
                let Some(name) = queue.failures(lane).1 else { continue };
                match oldest.get_mut(name) {
                    Some(first) => *first = accepted.min(*first),
                    None => drop(oldest.insert(name.clone(), accepted)),
                }
            }
        }
        for item in self.queue().aside() {
            ages.count(item.accepted, now);
        }
        ages.oldest =
            oldest.into_iter().map(|((via, hop), first)| ((via.to_string(), hop.to_string()), first)).collect();
        ages
    }

    /// What was counted since the start.
    pub fn meter(&self) -> &Meter {
        &self.0.meter
    }

    /// What is turned away for want of memory, in words; `None`: nothing.
    pub fn pressure(&self) -> Option<&'static str> {
        match self.0.pressure.level() {
            Level::Calm => None,
            Level::NoMail => Some("memory runs out: new mail is refused"),
            Level::NoConnection => Some("memory runs out: new connections are refused"),
        }
    }

    /// When the message that stands first in the log was accepted: the oldest, but for what was moved. Blocking.
    pub fn oldest(&self) -> Option<Timestamp> {
        let mut step = Some(Step::default());
        while let Some(from) = step {
            let (messages, next) = self.0.spool.walk(from);
            if let Some((_, first)) = messages.first() {
                return Some(first.accepted);
            }
            step = next;
        }
        None
    }

    /// Waits until every event so far is in its file, or a few seconds. Blocking.
    pub fn flush_events(&self) {
        self.0.tracker.flush();
    }

    /// Tracking events that could not be written.
    pub fn lost_events(&self) -> u64 {
        self.0.tracker.dropped()
    }

    /// Bytes that the spool takes, and bytes free on its disk; `None` where the disk cannot say.
    pub fn spool_bytes(&self) -> (look::Bytes, Option<u64>) {
        (self.0.spool.bytes(), self.0.spool.free())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_counts_where_it_ends() {
        let accepted: Timestamp = "2026-11-20T14:30:15Z".parse().unwrap();
        for (seconds, word) in [
            (0, "5m"),
            (300, "5m"),
            (301, "15m"),
            (3600, "1h"),
            (86_400, "1d"),
            (172_800, "2d"),
            (172_801, "beyond"),
            (-5, "5m"),
        ] {
            let mut ages = Ages::default();
            ages.count(accepted, accepted + jiff::SignedDuration::from_secs(seconds));
            let found: Vec<&str> =
                AGES.iter().zip(ages.copies).filter(|(_, copies)| *copies == 1).map(|((word, _), _)| *word).collect();
            assert_eq!(found, [word], "{seconds}");
        }
    }
}
