//! Workers: each is one task and one connection's worth of concurrency on a lane.
//!
//! A worker takes a copy, has it tried, hands on what came back, and takes the next, until its lane has none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{error, info, warn};

use super::early::{Brought, Early};
use super::events::attempt_span;
use super::hands::{Key, Queue};
use super::schedule::{Feedback, LaneId};
use super::settle::settlement;
use super::{Relay, Snapshot, visits};
use crate::clock;
use crate::config::{Config, ConnectorName, Origin};
use crate::deliver::{Attempt, Delivered};
use crate::message::{MessageId, Recipient};
use crate::outcome::spans::{self, Begun, Trace};
use crate::outcome::{Setback, is_expired, lifetime};
use crate::route::resolve::{Asking, Failed, Rules};
use crate::route::{Hop, HopCopy, Reached, Route, Routed};
use crate::smtp::Status;
use crate::spool::disk::{blocking, crash_point};
use crate::spool::{Deferral, End, Known, LoadError, Message, Standing, Waiting};

/// Where a connector is no longer configured, its lane moves one at a time until somebody mends that.
const UNKNOWN_CONNECTOR_CONNECTIONS: usize = 1;

/// The spool could not be read for a moment: the copy is looked at again after this.
const READ_RETRY: Duration = Duration::from_secs(60);

/// An attempt that ended inside the relay is made again after this, if something else was the cause…
const PANIC_RETRY: Duration = Duration::from_secs(60);

/// …but a copy that ended so many of them is held until an operator releases it (F-061).
pub(super) const PANICS: u8 = 3;

/// The connector of recipients that no route leads to. No connector of a configuration has an empty name.
const NOWHERE: &str = "";

/// How often messages that nobody tries are asked for their age.
const LOOK_THROUGH: Duration = Duration::from_secs(60);

/// One copy that waits.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) id: MessageId,
    pub(super) copy: u16,
    pub(super) attempts: u16,
    pub(super) warned: bool,
    /// Which of its places in the schedule this is: see `hands`.
    pub(super) turn: u16,
    /// How many attempts ended inside the relay.
    pub(super) panics: u8,
    /// When the message was accepted.
    pub(super) accepted: Timestamp,
    /// When a look-up first said that its domain does not exist; forgotten at a restart.
    pub(super) absent_since: Option<Instant>,
    /// The message itself while it is fresh; else it is read from the spool when its time comes.
    pub(super) resident: Option<Arc<Resident>>,
    /// Set while its client may still wait for it, and it may not be on disk.
    pub(super) early: Option<Arc<Early>>,
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

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.relay.0.resident.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Item {
    pub(super) fn key(&self) -> Key {
        (self.id, self.copy)
    }

    pub(super) fn fresh(message: &Message, copy: usize, resident: Option<Arc<Resident>>) -> Self {
        Self {
            id: message.id,
            copy: copy as u16,
            attempts: 0,
            warned: false,
            turn: 0,
            panics: 0,
            accepted: message.accepted,
            absent_since: None,
            resident,
            early: None,
        }
    }

    /// A new place in the schedule for a copy that stands in the spool.
    pub(super) fn standing(message: &Standing, copy: u16, known: Known) -> Self {
        Self {
            id: message.id,
            copy,
            attempts: known.attempts,
            warned: known.warned,
            turn: 0,
            panics: 0,
            accepted: message.accepted,
            absent_since: None,
            resident: None,
            early: None,
        }
    }

    pub(super) fn recovered(waiting: &Waiting) -> Self {
        Self {
            id: waiting.id,
            copy: waiting.copy,
            attempts: waiting.attempts,
            warned: waiting.warned,
            turn: 0,
            panics: waiting.panics,
            accepted: waiting.accepted,
            absent_since: None,
            resident: None,
            early: None,
        }
    }
}

/// A copy with what is known of it at the moment of its attempt.
pub(super) struct Tried<'a> {
    pub(super) message: &'a Message,
    pub(super) item: Item,
    pub(super) lane: LaneId,
}

impl<'a> Tried<'a> {
    pub(super) fn copy(&self) -> &'a HopCopy {
        &self.message.copies[usize::from(self.item.copy)]
    }
}

/// A member of a group that no route leads to, as a recipient whose first attempt fails: so its failure is kept and
/// reported as any other is.
pub(super) fn nowhere(group: &Recipient, member: Failed) -> Routed {
    let recipient = Recipient { address: member.address.clone(), ..group.clone() };
    let via = ConnectorName(Arc::from(NOWHERE));
    let route = Route { via, hop: Hop::SmartHosts, to: member.address, because: member.refusal.because };
    Routed { asked: group.address.clone(), recipient, route, reached: Reached::Led }
}

/// What routing says now of the recipients of a copy to nowhere. They are members of groups, whoever wrote: so they may
/// lie outside of the organization.
fn unroutable(snapshot: &Snapshot, message: &Message, copy: &HopCopy, open: &[u16]) -> Attempt {
    let rules = Rules { config: &snapshot.config, directory: snapshot.directory.as_ref() };
    let by = ConnectorName(Arc::from(&*message.connector));
    // What a member is depends on where the message came from. What its header said of that is not known any more.
    let origin = snapshot.config.receive_connectors.iter().find(|connector| connector.name == by);
    let origin = origin.map_or(Origin::Internet, |connector| connector.origin);
    let asking = Asking { origin, connector: &by, may_relay: true, size: None };
    let judge = |index: &u16| {
        let recipient = &copy.recipients.get(usize::from(*index))?.recipient;
        let address = recipient.address.to_string();
        let (why, status) = match rules.resolve(&asking, recipient) {
            Err(refusal) => (refusal.to_string(), refusal.status().1),
            // Mended since; but a route is chosen when the message comes.
            Ok(_) => ("no way led there when the message came".to_owned(), Status(5, 1, 1)),
        };
        Some((*index, Err(Setback::Unroutable { address, why, status })))
    };
    Attempt { results: open.iter().filter_map(judge).collect() }
}

/// How many connections a lane of this connector may use.
pub(super) fn max_connections(config: &Config, via: &ConnectorName) -> usize {
    config.send_connector(via).map_or(UNKNOWN_CONNECTOR_CONNECTIONS, |connector| connector.max_connections)
}

/// Counted as long as it lives, also where what it is for panics: a stop waits for its end.
pub(super) struct AtWork(Relay);

impl Drop for AtWork {
    fn drop(&mut self) {
        if self.0.0.workers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.0.idle.notify_waiters();
        }
    }
}

impl Relay {
    /// Something begins that a stop has to wait for.
    pub(super) fn at_work(&self) -> AtWork {
        self.0.workers.fetch_add(1, Ordering::AcqRel);
        AtWork(self.clone())
    }

    /// Starts one worker on a lane that asked for it.
    pub(super) fn work(&self, lane: LaneId) {
        let at_work = self.at_work();
        tokio::spawn(async move {
            let worker = Worker { relay: &at_work.0, lane, trying: None, under_way: None, ended: false };
            worker.run().await;
        });
    }

    /// Moves what is due to its lanes, and looks after what nobody tries; ends when the relay stops.
    pub async fn keep_time(&self) {
        // A look through a long queue writes many reports. What is due does not wait for that.
        tokio::select! {
            biased;
            () = self.move_due() => {}
            () = self.mind_ages() => {}
            () = self.mind_moves() => {}
        }
    }

    async fn move_due(&self) {
        while !self.is_stopping() {
            let woken = self.0.wake.notified();
            let now = clock::now();
            let (start, next) = {
                let mut queue = self.queue();
                (queue.due(now), queue.next_due())
            };
            for lane in start {
                self.work(lane);
            }
            match next {
                // More than is moved at a time: the others have their turn with the queue in between.
                Some(at) if at <= now => tokio::task::yield_now().await,
                Some(at) => {
                    let _ = tokio::time::timeout_at(at.into(), woken).await;
                }
                None => woken.await,
            }
        }
    }

    async fn mind_ages(&self) {
        loop {
            tokio::time::sleep(LOOK_THROUGH).await;
            let wall = self.wall();
            self.look_through(wall).await;
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Acquire)
    }

    /// No new attempt begins from now on; those under way go on to their ends.
    pub fn begin_stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.wake.notify_one();
    }

    /// No new attempt begins. Returns when the last one under way ended, or at `deadline`; then everything said so
    /// far is made durable. True if all ended in time.
    pub async fn stop(&self, deadline: tokio::time::Instant) -> bool {
        self.begin_stop();
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

    /// The next copy for a worker of this lane, which lets go of the last; `None` ends the worker.
    fn next(&self, lane: LaneId, last: Option<Key>) -> Option<Item> {
        if self.is_stopping() {
            // The lane still counts this worker; nobody will ask it again.
            return None;
        }
        let mut queue = self.queue();
        if let Some(last) = last {
            queue.let_down(last);
        }
        let mut more = 0;
        let next = queue.next(lane, clock::now()).and_then(|item| match self.turn(&mut queue, lane) {
            None => Some(item),
            Some(at) if at <= clock::now() => {
                more = queue.follow_up(lane);
                Some(item)
            }
            Some(at) => {
                queue.wait_for_turn(lane, item, at);
                // It may be due before all that the timekeeper knows of.
                self.0.wake.notify_one();
                None
            }
        });
        if next.is_none() {
            // Its place is another's.
            let start = queue.fill();
            drop(queue);
            start.into_iter().for_each(|lane| self.work(lane));
        } else {
            drop(queue);
            (0..more).for_each(|_| self.work(lane));
        }
        next
    }

    /// When the next message of this lane may go by its connector's rate; `None`: there is no rate.
    fn turn(&self, queue: &mut Queue, lane: LaneId) -> Option<Instant> {
        if queue.take_turn(lane) {
            return Some(clock::now());
        }
        let (_, name) = queue.failures(lane);
        Some(self.0.snapshot.load().deliverer.turns(&name?.0)?.take(clock::now()))
    }

    /// `None`: the hop was not tried, so nothing is known of it.
    async fn attempt(&self, lane: LaneId, mut item: Item) -> Option<Feedback> {
        let snapshot = self.snapshot();
        let early = item.early.take();
        // Who settles it may be the session: it is in hand until that is done.
        let mut hand = early.is_some().then(|| self.in_hand(item.key()));
        if early.as_ref().is_some_and(|early| early.is_over()) {
            return None;
        }
        let was_resident = item.resident.is_some();
        let (message, open) = self.fetch(lane, &mut item).await?;
        let begun = Begun::now();
        let mut attempt = {
            // An attempt in several transactions, or at several hosts, may take many minutes. What was heard by then is not to
            // be forgotten with the process.
            let taken = |index| {
                let settlement = settlement(&item, index, End::Delivered);
                if early.as_ref().is_none_or(|early| early.taken(settlement)) {
                    self.0.spool.settle(settlement);
                    self.queue().note_done(item.key(), [index]);
                }
            };
            self.deliver(&snapshot, &message, item.copy, &open, &taken).await
        };
        let trace = Trace::of(message.message_id.as_deref(), item.id);
        let copy = &message.copies[usize::from(item.copy)];
        spans::tell(begun, trace, item.id, "attempt", || attempt_span(copy, item.attempts, &attempt));
        let feedback = feedback(&attempt);
        if let Some((_, Some(why))) = &feedback {
            // For those who wait behind it, and may never be tried themselves.
            let why = Setback::clone(why);
            self.queue().remember(lane, why);
        }
        let feedback = feedback.map(|(feedback, _)| feedback);
        if feedback == Some(Feedback::Crowded) && attempt.results.iter().all(|(_, result)| is_crowded(result)) {
            // Nothing was tried, so nothing is settled, told or counted: its turn comes when fewer are open.
            let (early, resident) = (early.clone(), was_resident.then(|| Resident::new(self, &message)));
            let untried = Item { early, resident, ..item };
            match self.queue().put_back(lane, untried) {
                Ok(()) => return feedback,
                Err(untried) => item = Item { early: None, resident: None, ..untried },
            }
        }
        crash_point("deliver.answered");
        if let Some(early) = early {
            let Some(brought) = early.hand_in(Brought { item, lane, attempt, hand }) else { return feedback };
            (item, attempt, hand) = (brought.item, brought.attempt, brought.hand);
        }
        self.settle(&snapshot, Tried { message: &message, item, lane }, attempt, self.wall()).await;
        drop(hand);
        feedback
    }

    /// What an attempt says of its hop. The log tells once when no host of a send connector takes mail any more, and when
    /// one does again: all that is to go there waits meanwhile. A domain of the Internet that is down is ordinary, and
    /// only its own messages tell of it.
    fn note(&self, lane: LaneId, feedback: Feedback) -> usize {
        let mut queue = self.queue();
        let (before, _) = queue.failures(lane);
        let more = queue.feedback(lane, clock::now(), feedback, fastrand::f64());
        let (after, name) = queue.failures(lane);
        if (before == 0) == (after == 0) {
            return more;
        }
        let Some((via, Hop::SmartHosts)) = name.cloned() else { return more };
        let why = queue.last_setback(lane).map(ToString::to_string);
        drop(queue);
        match why {
            Some(why) => warn!(connector = %via, "none of the hosts takes mail now, it waits: {why}"),
            None => info!(connector = %via, "the hosts take mail again"),
        }
        more
    }

    /// The message of an item and its open recipients; `None` if nothing is to be done with it now.
    pub(super) async fn fetch(&self, lane: LaneId, item: &mut Item) -> Option<(Arc<Message>, Vec<u16>)> {
        if let Some(resident) = item.resident.take() {
            let message = Arc::clone(&resident.message);
            let open = (0..message.copies[usize::from(item.copy)].recipients.len() as u16).collect();
            return Some((message, open));
        }
        match self.load(item.id, item.copy).await {
            Ok((message, mut open)) => {
                self.queue().leave_out_done(item.key(), &mut open);
                (!open.is_empty()).then_some((message, open))
            }
            Err(Unreadable::Gone) => None,
            Err(Unreadable::Now(why)) => {
                warn!(id = %item.id, why, "a message cannot be read from the spool now");
                self.again(lane, item.clone(), READ_RETRY);
                None
            }
        }
    }

    /// Copies whose life is over, or whose senders are to be told that they are late, in lanes that rest or are slow:
    /// what would have followed from an attempt follows without one.
    pub(super) async fn look_through(&self, wall: Timestamp) {
        let snapshot = self.snapshot();
        let settings = &snapshot.config.spool;
        // Copied, so that nobody waits for it while a long queue is gone through.
        let (now, wall_clock) = (clock::now(), self.wall_clock().clone());
        let overdue = self.queue().sweep(|item| {
            if item.early.as_ref().is_some_and(|early| !early.is_kept()) {
                return true;
            }
            let earlier = !self.0.spool.is_of_this_run(item.id);
            let age = wall_clock.age_in_life(now, item.accepted, earlier, settings.message_lifetime);
            let late = !item.warned && settings.delay_warning.is_some_and(|warning| age >= warning);
            // An attempt that falls on the very end has its chance. Who sent it is not known here; a report's life is
            // shorter, and over when a look at the message says so.
            !late && age < settings.message_lifetime.saturating_add(LOOK_THROUGH)
        });
        for (lane, item) in overdue {
            let Some(mut item) = self.queue().admit(item) else {
                self.queue().let_go(lane);
                continue;
            };
            let hand = self.in_hand(item.key());
            if let Some((message, open)) = self.fetch(lane, &mut item).await {
                self.look_at(&snapshot, Tried { message: &message, item, lane }, &open, wall).await;
            }
            self.queue().let_go(lane);
            drop(hand);
        }
        self.forget_orders();
    }

    async fn look_at(&self, snapshot: &Snapshot, mut tried: Tried<'_>, open: &[u16], wall: Timestamp) {
        let settings = &snapshot.config.spool;
        let is_report = tried.message.envelope.sender.is_none();
        let age = self.age_in_life(tried.item.id, tried.item.accepted, lifetime(settings, is_report));
        let copy = tried.copy();
        // It was not tried itself. What the others in its lane met says most: F-034.
        let last = self.queue().last_setback(tried.lane).cloned();
        let setback = last.unwrap_or_else(|| {
            let why = "no attempt was possible in this time".to_owned();
            Setback::Unreachable { host: format!("{} ({})", copy.via, copy.hop), why }
        });
        if is_expired(settings, age, is_report) {
            let attempt = Attempt { results: open.iter().map(|index| (*index, Err(setback.clone()))).collect() };
            return self.settle(snapshot, tried, attempt, wall).await;
        }
        let late: Vec<(u16, Setback)> = open.iter().map(|index| (*index, setback.clone())).collect();
        if self.warn_of_delay(snapshot, &tried, &late, age, wall).await {
            let Item { id, copy, attempts, panics, .. } = tried.item;
            self.defer(Deferral { id, copy, until: wall, attempts, warned: true, held: false, panics });
            tried.item.warned = true;
        } else if tried.message.envelope.sender.is_none() {
            // Nobody will ever be warned of it; so it need not be looked at for that again.
            tried.item.warned = true;
        }
        // It was not tried: it keeps its count of attempts, and its turn comes as soon as the lane moves.
        let start = self.queue().ready(tried.lane, tried.item);
        if start {
            self.work(tried.lane);
        }
    }

    pub(super) async fn deliver(
        &self,
        snapshot: &Snapshot,
        message: &Message,
        copy: u16,
        open: &[u16],
        taken: &(dyn Fn(u16) + Sync),
    ) -> Attempt {
        let via = &message.copies[usize::from(copy)].via;
        let state = match snapshot.config.send_connector(via) {
            Some(connector) if connector.enabled => {
                return snapshot.deliverer.attempt_telling(connector, message, usize::from(copy), open, taken).await;
            }
            Some(_) => "disabled",
            None => "missing",
        };
        if *via.0 == *NOWHERE {
            return unroutable(snapshot, message, &message.copies[usize::from(copy)], open);
        }
        if *via.0 == *visits::CIRCLES {
            let copy = &message.copies[usize::from(copy)];
            let judge = |index: &u16| Some((*index, Err(visits::setback(snapshot, message, copy, *index)?)));
            return Attempt { results: open.iter().filter_map(judge).collect() };
        }
        let setback = Setback::NoConnector { name: via.to_string(), state };
        Attempt { results: open.iter().map(|recipient| (*recipient, Err(setback.clone()))).collect() }
    }

    /// From the spool, with those that are open there.
    pub(super) async fn load(&self, id: MessageId, copy: u16) -> Result<(Arc<Message>, Vec<u16>), Unreadable> {
        let spool = self.0.spool.clone();
        let loaded = blocking(move || spool.load(id)).await;
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
        self.queue().later(clock::now() + wait, lane, item);
        self.0.wake.notify_one();
    }
}

/// Why a copy waits whose attempts ended inside the relay.
pub(super) fn panicked(panics: u8) -> String {
    let times = if panics == 1 { "an attempt".to_owned() } else { format!("{panics} attempts") };
    let held = if panics < PANICS { "" } else { "; it is held until it is released or removed" };
    format!("{times} ended inside the relay, by a fault of its own that the log names{held}")
}

impl Relay {
    /// Counts an attempt that ended inside the relay, also over a restart.
    fn note_panic(&self, item: &Item, held: bool) {
        let &Item { id, copy, attempts, warned, panics, .. } = item;
        let until = clock::wall().saturating_add(PANIC_RETRY).unwrap_or(Timestamp::MAX);
        // Not by `Relay::defer`: who is held is said here.
        let held = held || self.queue().is_held(item.key());
        self.0.spool.defer(Deferral { id, copy, until, attempts, warned, held, panics });
        let why = panicked(panics);
        self.0.spool.remark(id, copy, &why, &why);
    }

    /// A copy whose attempts end inside the relay is held: POISON.
    fn set_aside(&self, item: Item) {
        self.note_panic(&item, true);
        let Item { id, copy, panics, .. } = item;
        self.queue().lay_aside(Item { resident: None, early: None, ..item });
        let (relay, at_work) = (self.clone(), self.at_work());
        // What it is about is read from the spool, which may be what failed: not here, where a second panic ends the process.
        tokio::spawn(async move {
            let _at_work = at_work;
            let spool = relay.0.spool.clone();
            let standing = blocking(move || spool.standing(id)).await.ok().flatten();
            relay.track_poison(id, copy, standing.as_ref(), &panicked(panics));
        });
    }
}

pub(super) enum Unreadable {
    /// Nothing of it waits any more.
    Gone,
    /// Perhaps later.
    Now(String),
}

struct Worker<'a> {
    relay: &'a Relay,
    lane: LaneId,
    /// What it has in hand, unless a session settles that.
    trying: Option<Key>,
    /// What it tries, as it would be tried again.
    under_way: Option<Item>,
    ended: bool,
}

impl Worker<'_> {
    async fn run(mut self) {
        while let Some(item) = self.relay.next(self.lane, self.trying.take()) {
            self.trying = item.early.is_none().then(|| item.key());
            self.under_way = Some(Item { resident: None, early: item.early.clone(), ..item });
            let feedback = self.relay.attempt(self.lane, item).await;
            self.under_way = None;
            let Some(feedback) = feedback else { continue };
            let more = self.relay.note(self.lane, feedback);
            if feedback != Feedback::Ok {
                // The lane may rest now, and the timekeeper is to wake it.
                self.relay.0.wake.notify_one();
            }
            for _ in 0..more {
                self.relay.work(self.lane);
            }
        }
        self.ended = true;
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        // A task that is dropped in the middle, because the runtime ends, leaves nothing to be done.
        if !self.ended && std::thread::panicking() {
            // The attempt panicked. What it was about is still in the spool; the lane must not wait for this worker.
            if let Some(mut item) = self.under_way.take() {
                item.panics = item.panics.saturating_add(1);
                if item.panics < PANICS {
                    error!(id = %item.id, "an attempt failed inside the relay; the message is tried again in {PANIC_RETRY:?}");
                    self.relay.note_panic(&item, false);
                    self.relay.again(self.lane, item, PANIC_RETRY);
                } else {
                    error!(id = %item.id, "an attempt failed inside the relay again; the message is held");
                    self.relay.set_aside(item);
                }
            }
            let mut queue = self.relay.queue();
            if let Some(trying) = self.trying {
                queue.let_down(trying);
            }
            let more = queue.abandoned(self.lane);
            let others = queue.fill();
            drop(queue);
            others.into_iter().for_each(|lane| self.relay.work(lane));
            for _ in 0..more {
                self.relay.work(self.lane);
            }
        }
    }
}

/// What an attempt says of its next hop, and what was met there if it was nothing good; `None`: the hop was not asked.
fn feedback(attempt: &Attempt) -> Option<(Feedback, Option<&Setback>)> {
    // What fails on our own side is neither the hop's fault nor a sign of its life.
    let mut told =
        attempt.results.iter().map(|(_, result)| result.as_ref().err()).filter(|setback| !is_ours(*setback)).peekable();
    let first = *told.peek()?;
    if told.clone().all(|setback| setback.is_some_and(Setback::concerns_hop)) {
        return Some((Feedback::Down, first));
    }
    if told.clone().all(|setback| setback.is_some_and(Setback::is_crowded)) {
        return Some((Feedback::Crowded, first));
    }
    match told.flatten().find(|setback| setback.throttles()) {
        Some(setback) => Some((Feedback::Throttled, Some(setback))),
        None => Some((Feedback::Ok, None)),
    }
}

fn is_crowded(result: &Result<Delivered, Setback>) -> bool {
    result.as_ref().is_err_and(Setback::is_crowded)
}

/// It happened before any host was asked.
fn is_ours(setback: Option<&Setback>) -> bool {
    matches!(setback, Some(Setback::Spool { .. } | Setback::RequireTls { .. }))
}

/// How old a message is. A clock that was set back makes it new, not older than time.
pub(super) fn age(accepted: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(accepted)).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::Reply;
    use crate::tls::Proof;

    /// One row, one attempt: what became of its recipients, and what that says of the hop.
    #[test]
    fn what_an_attempt_says_of_its_hop() {
        let ours = || Err(Setback::Spool { why: "no such file".into() });
        let requiretls = || Err(Setback::RequireTls { why: "no way".into() });
        let down = || Err(Setback::Unreachable { host: "mx".into(), why: "connection refused".into() });
        let busy = || {
            let reply = Reply { code: 450, status: Some(Status(4, 7, 1)), text: "slow down".into() };
            Err(Setback::Answered { host: "mx".into(), command: "RCPT", reply })
        };
        let crowded = || {
            let reply = Reply { code: 421, status: Some(Status(4, 7, 0)), text: "too many connections".into() };
            Err(Setback::Answered { host: "mx".into(), command: "the connection", reply })
        };
        let done = || {
            let (host, proof) = ("mx".to_owned(), Arc::new(Proof::Plain));
            Ok(Delivered { host, reply: Reply::ok(), proof, dsn: false })
        };
        for (number, (results, expected)) in [
            (vec![done()], Some((Feedback::Ok, false))),
            (vec![down()], Some((Feedback::Down, true))),
            (vec![down(), done()], Some((Feedback::Ok, false))),
            (vec![busy(), done()], Some((Feedback::Throttled, true))),
            (vec![crowded(), crowded()], Some((Feedback::Crowded, true))),
            (vec![crowded(), busy()], Some((Feedback::Throttled, true))),
            (vec![crowded(), down()], Some((Feedback::Throttled, true))),
            (vec![ours()], None),
            (vec![requiretls(), requiretls()], None),
            (vec![ours(), done()], Some((Feedback::Ok, false))),
            (vec![ours(), crowded()], Some((Feedback::Crowded, true))),
            (vec![ours(), down()], Some((Feedback::Down, true))),
            (vec![], None),
        ]
        .into_iter()
        .enumerate()
        {
            let results = results.into_iter().map(|result| (0, result)).collect();
            let attempt = Attempt { results };
            let seen = feedback(&attempt).map(|(feedback, why)| (feedback, why.is_some()));
            assert_eq!(seen, expected, "row {number}");
        }
    }
}
