//! What the relay says of itself: whether it takes mail, what waits where, what holds it up.
//!
//! Read-only. Each question holds the queue for a moment: a line for each lane at most, of which there are as many as next
//! hops, never one for each message.

use std::collections::BTreeMap;
use std::time::Instant;

use super::Relay;
use super::meter::Meter;
use super::pressure::Level;
use crate::spool::Step;

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
    /// What the last attempt met, where it was nothing good.
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
    /// Hops that are left alone for a while.
    pub resting: usize,
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
            sum.resting += usize::from(depth.resting.is_some());
        }
        sums
    }

    /// The lanes in which something waits or that rest, the fullest first; `at_most` of them.
    pub fn lanes(&self, at_most: usize) -> Vec<LaneState> {
        let now = Instant::now();
        let queue = self.queue();
        let mut found: Vec<_> = queue
            .depths()
            .filter(|(_, _, depth)| depth.ready + depth.active + depth.later > 0 || depth.resting.is_some())
            .collect();
        let waits = |depth: &super::schedule::Depth| depth.ready + depth.active + depth.later;
        found.sort_by_key(|(via, _, depth)| (std::cmp::Reverse(waits(depth)), via.to_string()));
        found.truncate(at_most);
        found
            .into_iter()
            .map(|(via, hop, depth)| LaneState {
                connector: via.to_string(),
                hop: hop.to_string(),
                ready: depth.ready,
                active: depth.active,
                later: depth.later,
                resting: depth.resting.map(|until| until.saturating_duration_since(now).as_secs()),
                last: queue.find(via, hop).and_then(|lane| queue.last_setback(lane)).map(|setback| setback.to_string()),
            })
            .collect()
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
    pub fn oldest(&self) -> Option<jiff::Timestamp> {
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

    /// Bytes in the spool's log, those of them that belong to messages that wait, and bytes free on its disk.
    pub fn spool_bytes(&self) -> SpoolBytes {
        let (log, live) = self.0.spool.bytes();
        SpoolBytes { log, live, free: self.0.spool.free() }
    }
}

/// How much the spool takes.
#[derive(Debug, Clone, Copy)]
pub struct SpoolBytes {
    /// In its log.
    pub log: u64,
    /// Of these: records of messages that wait.
    pub live: u64,
    /// Free on its disk; `None` where the disk cannot say.
    pub free: Option<u64>,
}
