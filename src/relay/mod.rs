//! The only module that knows all stages: takes messages in, carries results onward.
//!
//! In: [`Relay::check_sender`], [`Relay::check_recipient`] and [`Relay::take`] answer a session's questions; a message is
//! planned, put into the spool, acknowledged (`acknowledge`) and its copies are scheduled. Out: workers take copies
//! from the `schedule`, `deliver` tries them, and `settle` makes record, event, retry or report of what came back.
//!
//! Not here: any rule. Who may send where is `route`'s, when a copy is due is `schedule`'s, what an attempt means
//! is `outcome`'s.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::clock;
use crate::config::{Acknowledge, Config, ConnectorName, ReceiveConnector};
use crate::deliver::Deliverer;
use crate::directory::Directory;
use crate::directory::users::UserFiles;
use crate::message::received::Received;
use crate::message::{BodyType, Envelope, MessageId, OrganizationHeaders, Recipient, header, visit};
use crate::outcome::spans::{self, Begun, Facts, Trace};
use crate::outcome::tracking::Tracker;
use crate::route::resolve::{Asking, Resolution, Rules};
use crate::route::{Disagreements, Refusal, RefusalKind, Routed, Verdict, plan};
use crate::smtp::{Reply, Status};
use crate::spool::disk::crash_point;
use crate::spool::{Draft, Message, NewMessage, Receipt, Recovered, Recovery, Spool, Waiting};

mod acknowledge;
mod backscatter;
mod early;
mod events;
mod hands;
pub mod history;
#[cfg(test)]
mod hops;
pub mod meter;
mod moves;
mod origin;
pub mod pressure;
pub mod queue;
pub mod recent;
pub mod schedule;
mod settle;
pub mod state;
#[cfg(test)]
mod tests;
mod visits;
mod wall_clock;
mod work;

use backscatter::Backscatter;
use early::Early;
use hands::Queue;
use history::History;
use meter::Meter;
use moves::Disputed;
use pressure::{HashMemory, Level, Pressure};
use recent::Recent;
use schedule::{LaneId, Schedule};
use visits::{Circling, Returning};
use wall_clock::{GRACE, WallClock, wait_at_start};
use work::Item;

/// A message with so many `Received:` fields is going round in circles.
pub const HOP_LIMIT: usize = 60;

/// A client has waited so long since its final dot: the message is taken back, before the client gives up and sends it
/// again. RFC 5321 section 4.5.3.2.6 gives it ten minutes. F-017.
pub const PUT_LIMIT: Duration = Duration::from_secs(300);

/// Recipients that one message may have once its groups are expanded: the spool counts those of a copy in 16 bits, and a
/// record holds them all. More come with the client's next transaction.
pub const ROUTED_LIMIT: usize = 20_000;

/// Bytes of fresh messages that stay in memory until their first attempt; what is beyond is read from the spool again.
const RESIDENT_LIMIT: usize = 16 * 1024 * 1024;

/// What a message is judged by: replaced whole on reload. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The configuration.
    pub config: Arc<Config>,
    /// The directory.
    pub directory: Arc<Directory>,
    /// Who may log in.
    pub users: Arc<UserFiles>,
    /// Delivery under that configuration.
    pub deliverer: Arc<Deliverer>,
    /// Knows again what was here before; the deliverer marks with the same.
    pub visits: Arc<visit::Key>,
}

/// The relay. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Relay(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    snapshot: ArcSwap<Snapshot>,
    spool: Spool,
    tracker: Tracker,
    queue: Mutex<Queue>,
    /// The timer looks at the queue again.
    wake: Notify,
    /// No new attempt begins.
    stopping: AtomicBool,
    workers: AtomicUsize,
    /// The last worker ended.
    idle: Notify,
    resident: AtomicUsize,
    wall_clock: Mutex<WallClock>,
    meter: Meter,
    recent: Recent,
    history: Mutex<History>,
    /// Mailboxes that each premises holds to be at the other.
    disagreements: Mutex<Disagreements>,
    /// Reports to those outside.
    backscatter: Mutex<Backscatter>,
    /// Copies that wait because of one.
    disputed: Mutex<Disputed>,
    /// Something that decides where mail goes was replaced.
    replaced: Notify,
    /// [`PUT_LIMIT`], less in tests.
    put_limit: Duration,
    pressure: Pressure,
}

/// Who asks for a recipient.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The receive connector of the session.
    pub connector: &'a ReceiveConnector,
    /// Where the client is.
    pub peer: IpAddr,
    /// What MAIL said, and the size it declared.
    pub mail: Option<&'a (Envelope, Option<u64>)>,
    /// How many recipients the message has so far, groups expanded.
    pub routed: usize,
    /// What the message is held to be.
    pub verdict: &'a Verdict,
}

/// Who brought a message.
#[derive(Debug)]
pub struct Peer {
    /// Its address.
    pub ip: IpAddr,
    /// What it called itself.
    pub hello: String,
    /// By EHLO.
    pub extended: bool,
    /// Protocol version and cipher, where the session was in TLS.
    pub tls: Option<String>,
    /// Who logged in.
    pub user: Option<Box<str>>,
}

/// A message at the end of its data.
#[derive(Debug)]
pub struct Submission {
    /// Sender, parameters and the recipients that were accepted.
    pub envelope: Envelope,
    /// Where these go.
    pub routed: Vec<Routed>,
    /// The content.
    pub draft: Draft,
    /// The receive connector it came by.
    pub connector: Arc<ReceiveConnector>,
    /// Who brought it.
    pub peer: Peer,
    /// What it is held to be, so far.
    pub verdict: Arc<Verdict>,
}

impl Relay {
    /// A relay over an open spool. What is due moves once [`Relay::keep_time`] runs.
    pub fn new(snapshot: Snapshot, spool: Spool, tracker: Tracker) -> Self {
        Self::with(snapshot, spool, tracker, PUT_LIMIT)
    }

    /// As [`Relay::new`], with another patience for the disk.
    pub(crate) fn with(snapshot: Snapshot, spool: Spool, tracker: Tracker, put_limit: Duration) -> Self {
        let pressure = Pressure::find();
        let schedule = Schedule::new(snapshot.config.spool.retry.clone()).bounded(pressure.room_for_deliveries());
        let queue = Mutex::new(Queue::new(schedule));
        if let Some(bound) = pressure.bound() {
            info!(bound, "memory is bounded: new mail is refused before it is used up");
        }
        spool.limit_drafts(pressure.room_for_drafts());
        Self(Arc::new(Inner {
            snapshot: ArcSwap::from_pointee(snapshot),
            spool,
            tracker,
            queue,
            wake: Notify::new(),
            stopping: AtomicBool::new(false),
            workers: AtomicUsize::new(0),
            idle: Notify::new(),
            resident: AtomicUsize::new(0),
            wall_clock: Mutex::new(WallClock::new(clock::now(), clock::wall())),
            meter: Meter::default(),
            recent: Recent::default(),
            history: Mutex::default(),
            disagreements: Mutex::default(),
            backscatter: Mutex::default(),
            disputed: Mutex::default(),
            replaced: Notify::new(),
            put_limit,
            pressure,
        }))
    }

    /// What messages are judged by now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot.load_full()
    }

    /// From now on messages are judged by this. Messages under way keep what they began with.
    pub fn replace(&self, snapshot: Snapshot) -> Arc<Snapshot> {
        let next = Arc::new(snapshot);
        let last = self.0.snapshot.swap(Arc::clone(&next));
        // What waits for a connector that came back, or was mended, need not wait for the end of a rest.
        let is_changed = |via: &ConnectorName| next.config.send_connector(via) != last.config.send_connector(via);
        let start = {
            let mut queue = self.queue();
            queue.set_retry(next.config.spool.retry.clone());
            if self.0.stopping.load(Ordering::Acquire) {
                Vec::new()
            } else {
                queue.wake_changed(clock::now(), is_changed)
            }
        };
        for lane in start {
            self.work(lane);
        }
        self.0.wake.notify_one();
        self.0.replaced.notify_one();
        last
    }

    /// The directory changed, and nothing else. The deliverer stays, with all that it has learnt of the hops.
    pub fn replace_directory(&self, directory: Arc<Directory>) {
        self.0.snapshot.rcu(|last| Snapshot { directory: Arc::clone(&directory), ..Snapshot::clone(last) });
        self.0.replaced.notify_one();
    }

    /// Who may log in changed, and nothing else.
    pub fn replace_users(&self, users: Arc<UserFiles>) {
        self.0.snapshot.rcu(|last| Snapshot { users: Arc::clone(&users), ..Snapshot::clone(last) });
    }

    /// The tracking file may have been moved away: a new one is begun at once if so.
    pub fn reopen_tracking(&self) {
        self.0.tracker.reopen();
    }

    /// How many messages wait for delivery.
    pub fn waiting(&self) -> usize {
        self.0.spool.waiting()
    }

    /// Takes up what the last run left in the spool: reads it, and schedules it as it comes. Blocking, as long as the
    /// disk takes.
    pub fn resume(&self, recovery: Recovery) -> Recovered {
        let mut distrusted = 0;
        let recovered = recovery.run_with(|waiting, last_seen| distrusted += self.take_up_found(&waiting, last_seen));
        if distrusted > 0 {
            warn!(
                copies = distrusted,
                "next attempts lie further ahead than any wait: the clock is wrong now, or was when they were noted; they are made soon"
            );
        }
        for corrupt in &recovered.corrupt {
            warn!("{corrupt}");
        }
        if recovered.messages > 0 {
            info!(messages = recovered.messages, "messages of an earlier run wait in the spool");
        }
        recovered
    }

    /// Copies that a start finds are tried at the time they carry, if that can be. Gives how many carry one that cannot.
    fn take_up_found(&self, some: &[Waiting], last_seen: Option<Timestamp>) -> usize {
        let wall = self.wall();
        if last_seen.is_some_and(|last| self.note_last_seen(last)) {
            warn!(last = %format_args!("{:.0}", last_seen.unwrap_or_default()), now = %format_args!("{wall:.0}"), "the clock is far beyond the last time in the spool; what waits there does not expire in the next {:?}", GRACE);
        }
        let retry = &self.snapshot().config.spool.retry;
        let mut distrusted = 0;
        self.take_up(some, |waiting| {
            let Some(until) = waiting.until else { return Duration::ZERO };
            let (wait, is_distrusted) = wait_at_start(until, wall, waiting.attempts, retry);
            distrusted += usize::from(is_distrusted);
            wait
        });
        distrusted
    }

    /// Copies that wait in the spool are tried after so long. Few enough that new mail can wait for the queue meanwhile.
    fn take_up(&self, some: &[Waiting], mut wait: impl FnMut(&Waiting) -> Duration) {
        let snapshot = self.snapshot();
        let now = clock::now();
        let mut queue = self.queue();
        for waiting in some {
            if waiting.held {
                queue.lay_aside(Item::recovered(waiting));
                continue;
            }
            let max = work::max_connections(&snapshot.config, &waiting.via);
            let lane = queue.lane(&waiting.via, &waiting.hop, max);
            queue.later(now + wait(waiting), lane, Item::recovered(waiting));
        }
        drop(queue);
        self.0.wake.notify_one();
    }

    /// So much memory is left from now on, where nothing bounds it.
    #[cfg(test)]
    pub(crate) fn press(&self, level: Level) {
        self.0.pressure.simulate(level);
    }

    /// What password hashes may take of the memory there is.
    pub fn hash_memory(&self) -> &Arc<HashMemory> {
        self.0.pressure.hash_memory()
    }

    /// Is there memory for another connection?
    ///
    /// # Errors
    /// The reply that says why not.
    pub fn check_connection(&self) -> Result<(), Reply> {
        match self.0.pressure.level() {
            Level::Calm | Level::NoMail => Ok(()),
            Level::NoConnection => Err(Reply::overloaded()),
        }
    }

    /// May this sender send by this connector, and a message of this declared size?
    ///
    /// # Errors
    /// The reply that says why not.
    pub fn check_sender(
        &self,
        snapshot: &Snapshot,
        connector: &ReceiveConnector,
        envelope: &Envelope,
        size: Option<u64>,
    ) -> Result<(), Reply> {
        let rules = Rules { config: &snapshot.config, directory: snapshot.directory.as_ref() };
        rules.check_sender(connector, envelope.sender.as_ref())?;
        if self.0.pressure.level() >= Level::NoMail {
            return Err(Reply::insufficient_memory());
        }
        self.0.spool.has_room(size.unwrap_or(0)).map_err(|error| acknowledge::put_failed(&error))
    }

    /// May this recipient come, and where does it go?
    ///
    /// # Errors
    /// The reply that says why not.
    pub fn check_recipient(
        &self,
        snapshot: &Snapshot,
        asked: &Asked<'_>,
        recipient: Recipient,
    ) -> Result<Vec<Routed>, Reply> {
        // Lists of recipients that are being said take memory too.
        if self.0.pressure.level() >= Level::NoConnection {
            return Err(Reply::insufficient_memory());
        }
        let rules = Rules { config: &snapshot.config, directory: snapshot.directory.as_ref() };
        let asking = Asking {
            origin: asked.verdict.origin,
            connector: &asked.connector.name,
            may_relay: asked.verdict.may_relay,
            size: asked.mail.and_then(|(_, size)| *size),
        };
        let Resolution { mut routed, failed } = rules.expand(&asking, &recipient).map_err(|refusal| {
            let refusal = self.allow_for_a_move(&snapshot.config, refusal);
            self.track_refusal(asked, &recipient, &refusal);
            let sender = asked.mail.and_then(|(envelope, _)| envelope.sender.as_ref());
            if visits::is_inside(&snapshot.config, asked.verdict.origin, sender, snapshot.directory.as_ref()) {
                return refusal.to_reply();
            }
            if matches!(refusal.kind, RefusalKind::Disagreement(_) | RefusalKind::Moving(_)) {
                info!(peer = %asked.peer, to = %recipient.address, "refused, and told in few words: {refusal}");
            }
            refusal.to_reply_outside()
        })?;
        routed.extend(failed.into_iter().map(|member| work::nowhere(&recipient, member)));
        // One recipient alone is below the limit: `route` sees to that.
        if asked.routed + routed.len() > ROUTED_LIMIT {
            return Err(Reply::too_many_recipients(ROUTED_LIMIT));
        }
        Ok(routed)
    }

    /// A mailbox that the two sides disagree about may be moving: for a while it is refused for now only.
    fn allow_for_a_move(&self, config: &Config, refusal: Refusal) -> Refusal {
        match &config.hybrid {
            Some(hybrid) if matches!(refusal.kind, RefusalKind::Disagreement(_)) => {
                // Nothing in it can be half done.
                let mut known = self.0.disagreements.lock().unwrap_or_else(PoisonError::into_inner);
                refusal.within_grace(&mut known, clock::now(), hybrid.disagreement_grace)
            }
            _ => refusal,
        }
    }

    /// Room for the content of a message that begins to arrive.
    pub fn draft(&self) -> Draft {
        self.0.spool.draft()
    }

    /// The reply to a message whose content could not be kept.
    pub fn draft_failed(&self, error: &io::Error) -> Reply {
        warn!(%error, "the content of a message could not be kept");
        let reply = acknowledge::draft_failed(error);
        self.0.meter.refuse(reply.status_or_class());
        reply
    }

    /// Takes a whole message and says what the end of its data is answered with.
    pub async fn take(&self, snapshot: &Arc<Snapshot>, submission: Submission) -> Reply {
        let Submission { mut envelope, mut routed, draft, connector, peer, verdict } = submission;
        let (arriving, resolving) = (draft.begun(), Begun::now());
        let head = draft.head();
        let facts = header::facts(&head);
        let size = draft.len();
        let fault = if facts.received >= HOP_LIMIT {
            Some(Reply::too_many_hops())
        } else if !facts.is_judged(size) {
            Some(Reply::header_too_long(header::HEADER_LIMIT, header::FIELD_LIMIT))
        } else {
            None
        };
        if let Some(reply) = fault {
            self.track_refused_message(&envelope, &connector, &peer, &verdict, reply.status_or_class(), &reply);
            return reply;
        }
        let from = (&*connector, &peer, verdict);
        let verdict = match self.judge_header(snapshot, from, (&envelope, &head, size), &mut routed) {
            Ok(verdict) => verdict,
            Err(reply) => return reply,
        };
        drop(head);
        let config = &snapshot.config;
        let rules = Rules { config, directory: snapshot.directory.as_ref() };
        if let Err(refusal) = rules.check_size(&routed, size) {
            let reply = refusal.to_reply();
            self.track_refused_message(&envelope, &connector, &peer, &verdict, reply.status_or_class(), &refusal);
            return reply;
        }
        let accepted = self.wall();
        if let Some(hybrid) = config.hybrid.as_ref().filter(|_| !facts.visits.is_empty()) {
            let (key, marks, by) = (&*snapshot.visits, &*facts.visits, &*connector.name.0);
            let returning = Returning { key, marks, config, hybrid, by, message_id: facts.message_id.as_deref() };
            match returning.judge(&routed, accepted) {
                Circling::No => {}
                Circling::Some(indexes) => indexes.into_iter().for_each(|index| visits::cut(&mut routed[index])),
                Circling::Refuse(reply) => {
                    let status = reply.status_or_class();
                    self.track_refused_message(&envelope, &connector, &peer, &verdict, status, &reply);
                    let (sender, directory) = (envelope.sender.as_ref(), snapshot.directory.as_ref());
                    if visits::is_inside(config, verdict.origin, sender, directory) {
                        return reply;
                    }
                    info!(peer = %peer.ip, connector = %connector.name, "refused, and told in few words: {reply}");
                    return Reply::loops_inside(reply.is_temporary());
                }
            }
        }
        let id = self.0.spool.next_id();
        let only_recipient = match envelope.recipients.as_slice() {
            [only] => Some(&only.address),
            _ => None,
        };
        let received = Received {
            hello: &peer.hello,
            peer: peer.ip,
            by: &config.hostname,
            extended: peer.extended,
            tls: peer.tls.as_deref(),
            authenticated: peer.user.is_some(),
            utf8: envelope.smtputf8,
            id,
            only_recipient,
            at: accepted,
        };
        let prefix = received.to_field().into();
        envelope.recipients = Vec::new();
        if !draft.is_seven_bit() {
            // Whether it was declared or not: the next hop is told what it gets, and nobody reads it again to know.
            envelope.body = BodyType::EightBit;
        }
        let noted = Self::note_routes(&mut routed);
        crash_point("accept.routed");
        let message = NewMessage {
            id,
            accepted,
            envelope,
            connector: connector.name.to_string().into(),
            message_id: facts.message_id.map(String::into_boxed_str),
            prefix,
            organization: OrganizationHeaders::of(facts.organization, verdict.internal),
            content: draft,
            copies: plan::plan(routed),
            settles: Vec::new(),
        };
        let trace = Trace::of(message.message_id.as_deref(), id);
        spans::tell(arriving, trace, id, "receive", || events::receive_span(&message, &peer, size));
        spans::tell(resolving, trace, id, "resolve", || events::resolve_span(&message));
        if let Acknowledge::DeliveredOrDurable { window } = config.spool.acknowledge {
            return self
                .take_early(snapshot, message, window, |relay, message| {
                    relay.track_received(message, &peer, size, &verdict, &noted);
                })
                .await;
        }
        match self.put(message).await {
            Ok(receipt) => {
                let reply = acknowledge::acknowledge(&receipt);
                crash_point("accept.durable");
                self.track_received(&receipt.message, &peer, size, &verdict, &noted);
                self.schedule(snapshot, receipt.message);
                reply
            }
            Err(reply) => reply,
        }
    }

    /// Puts a message of a client that waits.
    async fn put(&self, message: NewMessage) -> Result<Receipt, Reply> {
        let id = message.id;
        let begun = clock::now();
        let (committing, trace) = (Begun::now(), Trace::of(message.message_id.as_deref(), id));
        match tokio::time::timeout(self.0.put_limit, self.0.spool.put(message)).await {
            Ok(Ok(receipt)) => {
                self.0.meter.commit.add(clock::now().saturating_duration_since(begun));
                spans::tell(committing, trace, id, "commit", Facts::default);
                Ok(receipt)
            }
            Ok(Err(error)) => {
                self.0.meter.refuse(Status(4, 3, 0));
                warn!(%id, %error, "a message was not accepted");
                Err(acknowledge::put_failed(&error))
            }
            // Dropped before its end, the put takes the message back.
            Err(_) => {
                self.0.meter.refuse(Status(4, 3, 0));
                warn!(%id, "a message was not on stable storage after {:?} and is taken back", self.0.put_limit);
                Err(Reply::took_too_long())
            }
        }
    }

    /// Every copy of a message that is safe goes to its lane.
    fn schedule(&self, snapshot: &Snapshot, message: Arc<Message>) {
        let stay = self.0.resident.load(Ordering::Relaxed) < RESIDENT_LIMIT;
        let resident = stay.then(|| work::Resident::new(self, &message));
        self.schedule_with(snapshot, &message, resident, None);
    }

    fn schedule_with(
        &self,
        snapshot: &Snapshot,
        message: &Arc<Message>,
        resident: Option<Arc<work::Resident>>,
        early: Option<&Arc<Early>>,
    ) {
        let mut start: Vec<LaneId> = Vec::new();
        let mut queue = self.queue();
        for (index, copy) in message.copies.iter().enumerate() {
            let lane = queue.lane(&copy.via, &copy.hop, work::max_connections(&snapshot.config, &copy.via));
            let depth = queue.depth(lane);
            // What waits for a hop that is down, or hangs, must not take the memory from what can go at once.
            let moves = |resident: &Arc<work::Resident>| {
                depth.resting.is_none() && self.may_hold(depth.ready, resident.bytes())
            };
            let resident = resident.clone().filter(|resident| early.is_some() || moves(resident));
            let item = Item { early: early.cloned(), ..Item::fresh(message, index, resident) };
            if queue.ready(lane, item) {
                start.push(lane);
            }
        }
        drop(queue);
        for lane in start {
            self.work(lane);
        }
    }

    /// May a lane hold one more fresh message of this size in memory? It may hold twice what is left for the others: so
    /// one lane alone has most of the memory, however many do not move, something is left for those that do, and
    /// nobody needs to be told apart. What a lane holds is guessed from this message.
    fn may_hold(&self, ready: usize, bytes: usize) -> bool {
        let left = RESIDENT_LIMIT.saturating_sub(self.0.resident.load(Ordering::Relaxed));
        ready.saturating_mul(bytes) <= left.saturating_mul(2)
    }

    /// The wall clock, for what messages carry: whether it has jumped is seen here.
    fn wall(&self) -> Timestamp {
        let (now, wall) = (clock::now(), clock::wall());
        #[cfg(test)]
        let wall = wall + self.wall_clock().pass(Duration::ZERO);
        if let Some(jump) = self.wall_clock().note(now, wall) {
            warn!(seconds = jump.as_secs(), "the wall clock jumped; ages and next attempts go by the monotonic clock");
        }
        wall
    }

    /// See [`WallClock::last_seen`]. It is said once; what a start finds comes in parts.
    fn note_last_seen(&self, last: Timestamp) -> bool {
        let mut wall_clock = self.wall_clock();
        !wall_clock.is_doubtful() && wall_clock.last_seen(last)
    }

    /// The age of a message that counts towards the end of its life.
    fn age_in_life(&self, id: MessageId, accepted: Timestamp, lifetime: Duration) -> Duration {
        let earlier = !self.0.spool.is_of_this_run(id);
        self.wall_clock().age_in_life(clock::now(), accepted, earlier, lifetime)
    }

    fn wall_clock(&self) -> MutexGuard<'_, WallClock> {
        // Nothing in it can be half done.
        self.0.wall_clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So much time passes for the messages and on both clocks, without anybody waiting for it.
    #[cfg(test)]
    fn grow_older(&self, by: Duration) {
        self.wall_clock().pass(by);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // A panic while the queue was held ended one worker; the queue itself is whole between its calls.
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
