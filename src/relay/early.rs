//! `delivered-or-durable`: a message is tried at once, while its client waits, and kept only if that is not enough.
//!
//! One [`Early`] joins the session that waits with the workers that try. Until the session gives up waiting, what the
//! workers bring is handed in here: if every recipient of every copy was taken, the message never touches the disk. If
//! not, the session puts it into the spool with those that are done already settled, and settles what else was handed
//! in; what comes later goes its usual way. If the spool refuses it, the client hears 451 and keeps the message: what
//! a hop took all the same is an end that the client will repeat.
//!
//! Not here: lanes, limits and rests, which hold for such a copy as for any other (`schedule`).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::warn;

use super::hands::InHand;
use super::schedule::LaneId;
use super::settle::settlement;
use super::work::{Item, Resident, Tried};
use super::{RESIDENT_LIMIT, Relay, Snapshot, acknowledge};
use crate::deliver::{Attempt, Delivered};
use crate::message::Envelope;
use crate::random::HashSet;
use crate::smtp::Reply;
use crate::spool::disk::crash_point;
use crate::spool::{End, Message, NewMessage, Settlement};

/// What a worker brought.
#[derive(Debug)]
pub(super) struct Brought {
    pub item: Item,
    pub lane: LaneId,
    pub attempt: Attempt,
    /// In hand until it is settled, by whoever does.
    pub hand: Option<InHand>,
}

/// A message that is tried before it is kept.
#[derive(Debug)]
pub(super) struct Early {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Recipients that nobody has taken so far.
    open: usize,
    /// Somebody met a setback: waiting longer is of no use.
    hopeless: bool,
    brought: Vec<Brought>,
    /// Taken in an attempt that goes on for others, and to be recorded when the message is.
    taken: Vec<Settlement>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The client waits, and nothing is on disk.
    Trying,
    /// The message is on its way to the disk.
    Keeping,
    /// It is there: what comes is settled as ever.
    Kept,
    /// It will not be: the client has it, or every hop has.
    Over,
}

/// Every recipient was taken by its next hop. Only [`Early::give_up`] makes one.
#[derive(Debug)]
#[must_use = "this is what a 250 follows from"]
pub(super) struct AllDelivered(());

/// What the session does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing is left to keep.
    Acknowledge(AllDelivered, Vec<Brought>),
    /// This was brought so far; the message has to be kept.
    Keep(Vec<Brought>),
}

impl Early {
    /// Of a message with so many recipients.
    pub(super) fn new(recipients: usize) -> Self {
        let state =
            State { phase: Phase::Trying, open: recipients, hopeless: false, brought: Vec::new(), taken: Vec::new() };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// May the copy be tried? No: its message is nobody's any more.
    pub(super) fn is_over(&self) -> bool {
        self.lock().phase == Phase::Over
    }

    /// Is it on disk, so that all is as ever?
    pub(super) fn is_kept(&self) -> bool {
        self.lock().phase == Phase::Kept
    }

    /// Hands in what came of an attempt. It comes back where the message is kept by now: then it is settled as ever.
    pub(super) fn hand_in(&self, brought: Brought) -> Option<Brought> {
        let mut state = self.lock();
        match state.phase {
            Phase::Kept => return Some(brought),
            Phase::Over => return None,
            Phase::Trying | Phase::Keeping => {}
        }
        let taken = brought.attempt.results.iter().filter(|(_, result)| result.is_ok()).count();
        state.open = state.open.saturating_sub(taken);
        state.hopeless |= taken < brought.attempt.results.len();
        state.brought.push(brought);
        let settled = state.open == 0 || state.hopeless;
        drop(state);
        if settled {
            self.changed.notify_one();
        }
        None
    }

    /// A recipient was taken, and its attempt goes on for others. True: the message is on disk, and the caller has it
    /// recorded.
    pub(super) fn taken(&self, settlement: Settlement) -> bool {
        let mut state = self.lock();
        if state.phase != Phase::Kept {
            state.taken.push(settlement);
        }
        state.phase == Phase::Kept
    }

    /// Those who were, and are not recorded yet.
    fn take_taken(&self) -> Vec<Settlement> {
        std::mem::take(&mut self.lock().taken)
    }

    /// Returns when there is nothing left to wait for.
    pub(super) async fn settled(&self) {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.lock();
                if state.open == 0 || state.hopeless {
                    return;
                }
            }
            changed.await;
        }
    }

    /// The session waits no longer.
    pub(super) fn give_up(&self) -> Next {
        let mut state = self.lock();
        let brought = std::mem::take(&mut state.brought);
        if state.open == 0 {
            state.phase = Phase::Over;
            Next::Acknowledge(AllDelivered(()), brought)
        } else {
            state.phase = Phase::Keeping;
            Next::Keep(brought)
        }
    }

    /// The message is on disk. What was handed in meanwhile is the session's to settle.
    pub(super) fn kept(&self) -> Vec<Brought> {
        self.end(Phase::Kept)
    }

    /// It will never be. What was handed in meanwhile is only to be told.
    pub(super) fn refused(&self) -> Vec<Brought> {
        self.end(Phase::Over)
    }

    fn end(&self, phase: Phase) -> Vec<Brought> {
        let mut state = self.lock();
        state.phase = phase;
        std::mem::take(&mut state.brought)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// However the session ends, nothing of a message that was not kept is tried any more.
struct Session(Arc<Early>);

impl Drop for Session {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if state.phase != Phase::Kept {
            state.phase = Phase::Over;
        }
    }
}

impl Relay {
    /// Takes a message whose hops are tried first; `received` says that it came, before anything is said of its way.
    pub(super) async fn take_early(
        &self,
        snapshot: &Arc<Snapshot>,
        mut message: NewMessage,
        window: Duration,
        received: impl FnOnce(&Self, &Message),
    ) -> Reply {
        let Some(tried) = self.may_be_early(&mut message) else {
            return match self.put(message).await {
                Ok(receipt) => {
                    let reply = acknowledge::acknowledge(&receipt);
                    received(self, &receipt.message);
                    self.schedule(snapshot, receipt.message);
                    reply
                }
                Err(reply) => reply,
            };
        };
        let recipients = tried.copies.iter().map(|copy| copy.recipients.len()).sum();
        let session = Session(Arc::new(Early::new(recipients)));
        let early = &session.0;
        self.schedule_with(snapshot, &tried, Some(Resident::new(self, &tried)), Some(early));
        let _ = tokio::time::timeout(window, early.settled()).await;
        match early.give_up() {
            Next::Acknowledge(all, brought) => {
                received(self, &tried);
                let reply = acknowledge::delivered(tried.id, all);
                crash_point("early.delivered");
                self.settle_behind(snapshot, tried, brought);
                reply
            }
            Next::Keep(brought) => {
                crash_point("early.keeping");
                message.settles = brought.iter().flat_map(Brought::settlements).collect();
                let mut known: HashSet<_> = message.settles.iter().map(|one| (one.copy, one.recipient)).collect();
                let taken = early.take_taken().into_iter();
                message.settles.extend(taken.filter(|one| known.insert((one.copy, one.recipient))));
                match self.put(message).await {
                    Ok(receipt) => {
                        let reply = acknowledge::acknowledge(&receipt);
                        received(self, &receipt.message);
                        let (relay, snapshot, late) = (self.clone(), Arc::clone(snapshot), early.kept());
                        early.take_taken().into_iter().for_each(|settlement| self.0.spool.settle(settlement));
                        let at_work = self.at_work();
                        // Reports, perhaps: the client does not wait for them. A stop does.
                        tokio::spawn(async move {
                            let _at_work = at_work;
                            for brought in brought {
                                relay.settle_early(&snapshot, &receipt.message, brought).await;
                            }
                            for Brought { item, lane, attempt, hand } in late {
                                let tried = Tried { message: &receipt.message, item, lane };
                                relay.settle(&snapshot, tried, attempt, relay.wall()).await;
                                drop(hand);
                            }
                        });
                        reply
                    }
                    Err(reply) => {
                        let brought: Vec<Brought> = brought.into_iter().chain(early.refused()).collect();
                        if brought.iter().all(|brought| brought.settlements().next().is_none()) {
                            return reply;
                        }
                        warn!(id = %tried.id, "a next hop took a message that could not be kept for the others: it will come again");
                        received(self, &tried);
                        let taken = brought.into_iter().map(Brought::only_taken).collect();
                        self.settle_behind(snapshot, tried, taken);
                        Reply::spool_fault()
                    }
                }
            }
        }
    }

    /// Says what follows from attempts of a message that is not kept. There may be a report among it, and a disk that hangs:
    /// the client has its answer meanwhile, or it would send again what was delivered. A stop waits.
    fn settle_behind(&self, snapshot: &Arc<Snapshot>, message: Arc<Message>, brought: Vec<Brought>) {
        let (relay, snapshot, at_work) = (self.clone(), Arc::clone(snapshot), self.at_work());
        tokio::spawn(async move {
            let _at_work = at_work;
            for brought in brought {
                relay.settle_early(&snapshot, &message, brought).await;
            }
        });
    }

    /// The message as workers see it, if nothing speaks against trying it now.
    fn may_be_early(&self, message: &mut NewMessage) -> Option<Arc<Message>> {
        if self.is_stopping() || self.0.resident.load(Ordering::Relaxed) >= RESIDENT_LIMIT {
            return None;
        }
        let content = message.content.in_memory()?;
        let queue = self.queue();
        let rests = |lane| queue.depth(lane).resting.is_some();
        if message.copies.iter().any(|copy| queue.find(&copy.via, &copy.hop).is_some_and(rests)) {
            return None;
        }
        drop(queue);
        Some(Arc::new(Message {
            id: message.id,
            accepted: message.accepted,
            envelope: Envelope { recipients: Vec::new(), ..message.envelope.clone() },
            connector: message.connector.clone(),
            message_id: message.message_id.clone(),
            prefix: message.prefix.clone(),
            organization: message.organization,
            content,
            copies: message.copies.clone(),
        }))
    }

    /// What follows from an attempt of which those that were taken are recorded already, or need no record.
    async fn settle_early(&self, snapshot: &Snapshot, message: &Message, brought: Brought) {
        let Brought { item, lane, attempt, hand: _hand } = brought;
        let now = self.wall();
        let (mut done, mut left): (Vec<(u16, Delivered)>, _) = (Vec::new(), Vec::new());
        for (index, result) in attempt.results {
            match result {
                Ok(delivered) => done.push((index, delivered)),
                Err(setback) => left.push((index, Err(setback))),
            }
        }
        let tried = Tried { message, item, lane };
        if !done.is_empty() {
            self.tell_done(snapshot, &tried, &done, now).await;
        }
        if !left.is_empty() {
            self.settle(snapshot, tried, Attempt { results: left }, now).await;
        }
    }
}

impl Brought {
    /// Of those that were taken.
    fn settlements(&self) -> impl Iterator<Item = crate::spool::Settlement> {
        let taken = self.attempt.results.iter().filter(|(_, result)| result.is_ok());
        taken.map(|(index, _)| settlement(&self.item, *index, End::Delivered))
    }

    /// Without those that were not.
    fn only_taken(mut self) -> Self {
        self.attempt.results.retain(|(_, result)| result.is_ok());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MessageId;
    use crate::outcome::Setback;
    use crate::relay::schedule::Schedule;

    /// What a worker brings of copy `copy`: `+` for a recipient that was taken, `-` for one that was not.
    fn brought(copy: u16, results: &str) -> Brought {
        let mut schedule: Schedule<()> = Schedule::new(vec![Duration::from_secs(1)]);
        let lane = schedule.lane(&crate::config::ConnectorName("out".into()), &crate::route::Hop::SmartHosts, 1);
        let taken = || Delivered {
            host: "host".into(),
            reply: Reply::ok(),
            proof: Arc::new(crate::tls::Proof::Plain),
            dsn: false,
        };
        let setback = || Setback::Unreachable { host: "host".into(), why: "it is down".into() };
        let results = results.chars().enumerate();
        let results = results.map(|(index, c)| (index as u16, if c == '+' { Ok(taken()) } else { Err(setback()) }));
        let item = Item {
            id: MessageId(1),
            copy,
            attempts: 0,
            warned: false,
            turn: 0,
            panics: 0,
            accepted: jiff::Timestamp::UNIX_EPOCH,
            absent_since: None,
            resident: None,
            early: None,
        };
        Brought { item, lane, attempt: Attempt { results: results.collect() }, hand: None }
    }

    /// What was handed in, whether the wait was over by itself, and what follows.
    #[tokio::test]
    async fn only_all_of_them_are_enough() {
        for (handed_in, over, acknowledged) in [
            (&[(0, "++"), (1, "+")][..], true, true),
            (&[(1, "+"), (0, "++")], true, true),
            (&[(0, "++")], false, false),
            (&[], false, false),
            (&[(0, "+-"), (1, "+")], true, false),
            (&[(1, "-")], true, false),
        ] {
            let early = Early::new(3);
            for (copy, results) in handed_in {
                assert!(early.hand_in(brought(*copy, results)).is_none());
            }
            let waited = tokio::time::timeout(Duration::ZERO, early.settled()).await;
            assert_eq!(waited.is_ok(), over, "{handed_in:?}");
            match early.give_up() {
                Next::Acknowledge(_, all) => {
                    assert!(acknowledged, "{handed_in:?}");
                    assert_eq!(all.len(), handed_in.len());
                    assert!(early.is_over());
                }
                Next::Keep(so_far) => {
                    assert!(!acknowledged, "{handed_in:?}");
                    assert_eq!(so_far.len(), handed_in.len());
                    assert!(!early.is_over() && !early.is_kept());
                }
            }
        }
    }

    /// Nothing that a worker brings is lost or settled twice, whenever it comes.
    #[test]
    fn what_comes_late_is_settled_by_exactly_one() {
        let early = Early::new(2);
        assert!(matches!(early.give_up(), Next::Keep(so_far) if so_far.is_empty()));
        assert!(early.hand_in(brought(0, "+")).is_none(), "while it is being written: the session settles it");
        assert_eq!(early.kept().len(), 1);
        assert!(early.hand_in(brought(1, "+")).is_some(), "afterwards: the worker does");

        let refused = Early::new(2);
        assert!(matches!(refused.give_up(), Next::Keep(_)));
        assert!(refused.hand_in(brought(0, "+")).is_none());
        assert_eq!(refused.refused().len(), 1);
        assert!(refused.hand_in(brought(1, "-")).is_none() && refused.is_over(), "it is nobody's");
    }
}
