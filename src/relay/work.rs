//! Workers: each is one task and one connection's worth of concurrency on a lane.
//!
//! A worker takes a copy, has it tried, hands on what came back, and takes the next, until its lane has none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::{error, warn};

use super::schedule::{Feedback, LaneId};
use super::{Relay, Snapshot};
use crate::config::{Config, ConnectorName};
use crate::deliver::Attempt;
use crate::message::MessageId;
use crate::outcome::Setback;
use crate::spool::{LoadError, Message, Waiting};

/// Where a connector is no longer configured, its lane moves one at a time until somebody mends that.
const UNKNOWN_CONNECTOR_CONNECTIONS: usize = 1;

/// The spool could not be read for a moment: the copy is looked at again after this.
const READ_RETRY: Duration = Duration::from_secs(60);

/// One copy that waits.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: MessageId,
    pub(super) copy: u16,
    pub(super) attempts: u16,
    pub(super) warned: bool,
    /// The message itself while it is fresh; else it is read from the spool when its time comes.
    resident: Option<Arc<Resident>>,
}

/// A fresh message in memory, counted as long as any of its copies waits for the first attempt.
#[derive(Debug)]
pub(super) struct Resident {
    message: Arc<Message>,
    relay: Relay,
    bytes: usize,
}

impl Resident {
    pub(super) fn new(relay: &Relay, message: &Arc<Message>) -> Arc<Self> {
        // What lies in a file of its own costs no memory here.
        let content = match &message.content {
            crate::message::Body::Memory(_) => message.content.len() as usize,
            crate::message::Body::File { .. } => 0,
        };
        let bytes = content + 1024;
        relay.0.resident.fetch_add(bytes, Ordering::Relaxed);
        Arc::new(Self { message: Arc::clone(message), relay: relay.clone(), bytes })
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.relay.0.resident.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Item {
    pub(super) fn fresh(message: &Message, copy: usize, resident: Option<Arc<Resident>>) -> Self {
        Self { id: message.id, copy: copy as u16, attempts: 0, warned: false, resident }
    }

    pub(super) fn recovered(waiting: &Waiting) -> Self {
        Self {
            id: waiting.id,
            copy: waiting.copy,
            attempts: waiting.attempts,
            warned: waiting.warned,
            resident: None,
        }
    }

    pub(super) fn again(id: MessageId, copy: u16, attempts: u16, warned: bool) -> Self {
        Self { id, copy, attempts, warned, resident: None }
    }
}

/// A copy with what is known of it at the moment of its attempt.
pub(super) struct Tried<'a> {
    pub(super) message: &'a Message,
    pub(super) copy: u16,
    pub(super) attempts: u16,
    pub(super) warned: bool,
    pub(super) lane: LaneId,
}

/// How many connections a lane of this connector may use.
pub(super) fn max_connections(config: &Config, via: &ConnectorName) -> usize {
    config.send_connector(via).map_or(UNKNOWN_CONNECTOR_CONNECTIONS, |connector| connector.max_connections)
}

impl Relay {
    /// Starts one worker on a lane that asked for it.
    pub(super) fn work(&self, lane: LaneId) {
        self.0.workers.fetch_add(1, Ordering::AcqRel);
        let relay = self.clone();
        tokio::spawn(async move {
            // The guard counts the worker out even if an attempt panics.
            let worker = Worker { relay: &relay, lane, ended: false };
            worker.run().await;
        });
    }

    /// Moves what is due to its lanes, for ever; ends when the relay stops.
    pub async fn keep_time(&self) {
        loop {
            if self.0.stopping.load(Ordering::Acquire) {
                return;
            }
            let now = Instant::now();
            let (start, next) = {
                let mut queue = self.queue();
                (queue.due(now), queue.next_due())
            };
            for lane in start {
                self.work(lane);
            }
            let woken = self.0.wake.notified();
            match next {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at.into(), woken).await;
                }
                None => woken.await,
            }
        }
    }

    /// No new attempt begins. Returns when the last one under way ended, or at `deadline`; then everything said so
    /// far is made durable. True if all ended in time.
    pub async fn stop(&self, deadline: tokio::time::Instant) -> bool {
        self.0.stopping.store(true, Ordering::Release);
        self.0.wake.notify_one();
        let ended = async {
            loop {
                let idle = self.0.idle.notified();
                if self.0.workers.load(Ordering::Acquire) == 0 {
                    return;
                }
                idle.await;
            }
        };
        let in_time = tokio::time::timeout_at(deadline, ended).await.is_ok();
        self.snapshot().deliverer.close_idle().await;
        self.0.spool.flush().await;
        self.0.tracker.flush();
        in_time
    }

    /// The next copy for a worker of this lane; `None` ends the worker.
    fn next(&self, lane: LaneId) -> Option<Item> {
        let mut queue = self.queue();
        if self.0.stopping.load(Ordering::Acquire) {
            queue.release(lane);
            return None;
        }
        queue.take(lane, Instant::now())
    }

    async fn attempt(&self, lane: LaneId, item: Item) -> Feedback {
        let snapshot = self.snapshot();
        let Item { id, copy, attempts, warned, resident } = item;
        let fresh = resident.as_ref().filter(|_| attempts == 0);
        let (message, open) = match fresh {
            Some(resident) => {
                let message = Arc::clone(&resident.message);
                let open = (0..message.copies[usize::from(copy)].recipients.len() as u16).collect();
                (message, open)
            }
            None => match self.load(id, copy).await {
                Ok(loaded) => loaded,
                Err(Unreadable::Gone) => return Feedback::Ok,
                Err(Unreadable::Now(why)) => {
                    warn!(%id, why, "a message cannot be read from the spool now");
                    self.again(lane, Item::again(id, copy, attempts, warned), READ_RETRY);
                    return Feedback::Ok;
                }
            },
        };
        let tried = Tried { message: &message, copy, attempts, warned, lane };
        let attempt = self.deliver(&snapshot, &message, copy, &open).await;
        let feedback = feedback(&attempt);
        self.settle(&snapshot, tried, attempt).await;
        feedback
    }

    async fn deliver(&self, snapshot: &Snapshot, message: &Message, copy: u16, open: &[u16]) -> Attempt {
        let via = &message.copies[usize::from(copy)].via;
        let state = match snapshot.config.send_connector(via) {
            Some(connector) if connector.enabled => {
                return snapshot.deliverer.attempt(connector, message, usize::from(copy), open).await;
            }
            Some(_) => "disabled",
            None => "missing",
        };
        let setback = Setback::NoConnector { name: via.to_string(), state };
        Attempt { results: open.iter().map(|recipient| (*recipient, Err(setback.clone()))).collect() }
    }

    async fn load(&self, id: MessageId, copy: u16) -> Result<(Arc<Message>, Vec<u16>), Unreadable> {
        let spool = self.0.spool.clone();
        let loaded = tokio::task::spawn_blocking(move || spool.load(id)).await;
        match loaded {
            Ok(Ok(loaded)) => {
                let open = loaded.open.get(usize::from(copy)).cloned().unwrap_or_default();
                if open.is_empty() { Err(Unreadable::Gone) } else { Ok((loaded.message, open)) }
            }
            Ok(Err(LoadError::Gone)) => Err(Unreadable::Gone),
            Ok(Err(LoadError::Damaged(why))) => {
                // The spool has set the record aside; nothing is left to try, and nobody to tell but the operator.
                error!(%id, why, "a message is damaged and was set aside");
                Err(Unreadable::Gone)
            }
            Ok(Err(LoadError::Io(error))) => Err(Unreadable::Now(error.to_string())),
            Err(panic) => Err(Unreadable::Now(panic.to_string())),
        }
    }

    /// The copy is tried again after `wait`.
    pub(super) fn again(&self, lane: LaneId, item: Item, wait: Duration) {
        self.queue().later(Instant::now() + wait, lane, item);
        self.0.wake.notify_one();
    }
}

enum Unreadable {
    /// Nothing of it waits any more.
    Gone,
    /// Perhaps later.
    Now(String),
}

struct Worker<'a> {
    relay: &'a Relay,
    lane: LaneId,
    ended: bool,
}

impl Worker<'_> {
    async fn run(mut self) {
        while let Some(item) = self.relay.next(self.lane) {
            let feedback = self.relay.attempt(self.lane, item).await;
            let start = self.relay.queue().feedback(self.lane, Instant::now(), feedback);
            for lane in start {
                self.relay.work(lane);
            }
        }
        self.ended = true;
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // The attempt panicked. What it was about is still in the spool and is found at the next start; the lane
            // must not wait for this worker.
            error!("an attempt failed inside the relay; its message stays in the spool until the next start");
            self.relay.queue().release(self.lane);
        }
        if self.relay.0.workers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.relay.0.idle.notify_waiters();
        }
    }
}

/// What an attempt says of its next hop.
fn feedback(attempt: &Attempt) -> Feedback {
    let mut setbacks = attempt.results.iter().filter_map(|(_, result)| result.as_ref().err()).peekable();
    if setbacks.peek().is_none() {
        return Feedback::Ok;
    }
    if attempt.results.iter().all(|(_, result)| matches!(result, Err(Setback::Unreachable { .. }))) {
        return Feedback::Down;
    }
    if setbacks.any(Setback::throttles) { Feedback::Throttled } else { Feedback::Ok }
}

