//! What an attempt brought becomes record, event, retry or report.
//!
//! Recipients are settled one by one. A failure and the report about it are one record; if that cannot be written,
//! the recipient stays open and is tried again, so that nobody's failure goes unreported.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tracing::{debug, info, warn};

use super::backscatter::{Backscatter, Turn};
use super::events::Noted;
use super::work::{Item, Tried, max_connections};
use super::{Relay, Snapshot, visits};
use crate::clock;
use crate::config::{Config, ConnectorName, Origin};
use crate::deliver::{Attempt, Delivered};
use crate::message::received::Received;
use crate::message::{Address, Body, Envelope, MessageId, OrganizationHeaders, Recipient, header};
use crate::outcome::report::{End as ReportEnd, Kind, Report, Told};
use crate::outcome::tracking::EventKind;
use crate::outcome::{History, Outcome, SHORTEST_WAIT, Setback, is_delay_due, judge, lifetime};
use crate::route::plan;
use crate::route::resolve::{Asking, Rules};
use crate::spool::disk::{blocking, crash_point};
use crate::spool::{Deferral, Draft, End, Message, NewMessage, PutError, Settlement, Waiting};

/// The name under which reports travel where a receive connector is asked for.
const OWN_CONNECTOR: &str = "reports";

/// A report could not be written: the copy is looked at again after this.
const REPORT_RETRY: Duration = Duration::from_secs(60);
/// Who would go another way is looked at again after this, where the spool took no message for it.
const SPOOL_RETRY: Duration = Duration::from_secs(60);

/// A failure that nobody may be told of for hours stays open and is tried again after this. By then its sender has a turn, or
/// the hop that refused everything is mended.
const TURN_RETRY: Duration = Duration::from_secs(3600);

/// What one attempt brought, sorted.
#[derive(Default)]
struct Sorted {
    done: Vec<(u16, Delivered)>,
    /// Tried again, and why.
    again: Vec<(u16, Setback)>,
    failed: Vec<(u16, Setback)>,
    /// The wait until the next attempt; set where `again` is not empty.
    wait: Duration,
}

impl Relay {
    /// Carries out what follows from an attempt that ended `now`.
    pub(super) async fn settle(&self, snapshot: &Snapshot, mut tried: Tried<'_>, attempt: Attempt, now: Timestamp) {
        let life = lifetime(&snapshot.config.spool, tried.message.envelope.sender.is_none());
        let age = self.age_in_life(tried.item.id, tried.message.accepted, life);
        let mut sorted = self.sort(&mut tried, attempt, snapshot, age);
        self.settle_done(snapshot, &tried, &sorted.done, now).await;
        if self.follow_move(&tried, [&mut sorted.again, &mut sorted.failed]).await {
            sorted.wait = if sorted.wait.is_zero() { SPOOL_RETRY } else { sorted.wait.min(SPOOL_RETRY) };
        }
        if !sorted.failed.is_empty()
            && let Err(wait) = self.fail(snapshot, &tried, &sorted.failed, now).await
        {
            // Nothing was settled: they are open still, and their failure is found again.
            sorted.wait = if sorted.again.is_empty() { wait } else { sorted.wait.min(wait) };
            sorted.again.append(&mut sorted.failed);
        }
        if sorted.again.is_empty() {
            return;
        }
        let settled = sorted.done.iter().map(|(index, _)| *index).chain(sorted.failed.iter().map(|(index, _)| *index));
        self.queue().note_done(tried.item.key(), settled);
        let mut warned = tried.item.warned;
        warned |= self.warn_of_delay(snapshot, &tried, &sorted.again, age, now).await;
        let next = later(now, sorted.wait);
        self.track_setbacks(&tried, EventKind::Defer, &sorted.again, Some(next));
        let why = sorted.again.first().map(|(_, setback)| setback);
        if let Some(setback) = why {
            info!(id = %tried.item.id, connector = %tried.copy().via, recipients = sorted.again.len(), next = %format_args!("{next:.0}"), "deferred: {setback}");
        }
        let attempts = tried.item.attempts.saturating_add(1);
        let Item { id, copy, panics, .. } = tried.item;
        self.defer(Deferral { id, copy, until: next, attempts, warned, held: false, panics });
        if let Some(setback) = why {
            self.0.spool.remark(id, copy, &setback.to_string(), &setback.in_short());
        }
        let copy = tried.copy();
        let item = Item { attempts, warned, resident: None, early: None, ..tried.item };
        // The lane by its name: who settles need not be the worker that kept it, and its place may be another's by now.
        let mut queue = self.queue();
        let lane = queue.lane(&copy.via, &copy.hop, max_connections(&snapshot.config, &copy.via));
        if let Some(setback) = why {
            queue.note_deferral(lane, setback.clone());
        }
        queue.later(clock::now() + sorted.wait, lane, item);
        drop(queue);
        self.0.wake.notify_one();
    }

    /// Tells the sender that the message is late, if it is. True: that is done, and not to be done again.
    pub(super) async fn warn_of_delay(
        &self,
        snapshot: &Snapshot,
        tried: &Tried<'_>,
        late: &[(u16, Setback)],
        age: Duration,
        now: Timestamp,
    ) -> bool {
        let settings = &snapshot.config.spool;
        if !is_delay_due(settings, &tried.message.envelope, age, tried.item.warned) {
            return false;
        }
        let left = lifetime(settings, false).saturating_sub(age);
        // A lifetime beyond the end of the calendar is as good as none.
        let left = SignedDuration::try_from(left).unwrap_or(SignedDuration::MAX);
        let retry_until = now.saturating_add(left).unwrap_or(Timestamp::MAX);
        self.report(snapshot, tried, Kind::Delay { retry_until }, setbacks(late), Vec::new(), now).await.is_ok()
    }

    fn sort(&self, tried: &mut Tried<'_>, attempt: Attempt, snapshot: &Snapshot, age: Duration) -> Sorted {
        let mut sorted = Sorted::default();
        let fraction = fastrand::f64();
        let now = clock::now();
        let absent = attempt.results.iter().any(|(_, result)| result.as_ref().is_err_and(Setback::needs_confirmation));
        let history = History {
            age,
            attempts: tried.item.attempts.saturating_add(1),
            absent_for: tried.item.absent_since.map(|since| now.duration_since(since)),
            report: tried.message.envelope.sender.is_none(),
        };
        if !absent {
            tried.item.absent_since = None;
        } else if tried.item.absent_since.is_none() {
            tried.item.absent_since = Some(now);
        }
        for (index, result) in attempt.results {
            let setback = match result {
                Ok(delivered) => {
                    sorted.done.push((index, delivered));
                    continue;
                }
                Err(setback) => visits::with_this_side(snapshot, tried.message, tried.copy(), index, setback),
            };
            match judge(Err(setback.clone()), history, &snapshot.config.spool, fraction) {
                Outcome::Again { at_in } => {
                    sorted.wait = if sorted.again.is_empty() { at_in } else { sorted.wait.min(at_in) };
                    sorted.again.push((index, setback));
                }
                Outcome::Failed(setback) => sorted.failed.push((index, setback)),
                // `judge` says so of a success only.
                Outcome::Done => {}
            }
        }
        sorted
    }

    async fn settle_done(&self, snapshot: &Snapshot, tried: &Tried<'_>, done: &[(u16, Delivered)], now: Timestamp) {
        if done.is_empty() {
            return;
        }
        for (index, _) in done {
            self.0.spool.settle(settlement(&tried.item, *index, End::Delivered));
        }
        crash_point("settle.noted");
        self.tell_done(snapshot, tried, done, now).await;
    }

    /// What [`Relay::settle_done`] says of deliveries whose record is made, or not needed.
    pub(super) async fn tell_done(
        &self,
        snapshot: &Snapshot,
        tried: &Tried<'_>,
        done: &[(u16, Delivered)],
        now: Timestamp,
    ) {
        self.track_sent(tried, done);
        let copy = tried.copy();
        self.0.meter.deliver(&copy.via, done, tried.message.accepted, now);
        if let Some((_, delivered)) = done.first() {
            debug!(id = %tried.item.id, connector = %copy.via, host = delivered.host, recipients = done.len(), proof = %delivered.proof, "delivered");
        }
        // Where the next hop reports nothing itself, the sender hears that the message left our world. RFC 3461
        // section 5.2.2. A crash before this report loses the report, not the message.
        let relayed: Vec<(u16, ReportEnd<'_>)> = done
            .iter()
            .filter(|(index, delivered)| {
                !delivered.dsn
                    && copy.recipients.get(usize::from(*index)).is_some_and(|one| one.recipient.notify.success())
            })
            .map(|(index, delivered)| (*index, ReportEnd::Accepted { host: &delivered.host, reply: &delivered.reply }))
            .collect();
        if !relayed.is_empty() {
            let _ = self.report(snapshot, tried, Kind::Relayed, relayed, Vec::new(), now).await;
        }
    }

    /// True if the failures are settled: reported where somebody is to be told.
    pub(super) async fn settle_failed(
        &self,
        snapshot: &Snapshot,
        tried: &Tried<'_>,
        failed: &[(u16, Setback)],
        now: Timestamp,
    ) -> bool {
        self.fail(snapshot, tried, failed, now).await.is_ok()
    }

    /// As [`Relay::settle_failed`].
    ///
    /// # Errors
    /// They are not, and this is when to try again.
    async fn fail(
        &self,
        snapshot: &Snapshot,
        tried: &Tried<'_>,
        failed: &[(u16, Setback)],
        now: Timestamp,
    ) -> Result<(), Duration> {
        let settles: Vec<Settlement> =
            failed.iter().map(|(index, _)| settlement(&tried.item, *index, End::Failed)).collect();
        self.report(snapshot, tried, Kind::Failure, setbacks(failed), settles, now).await?;
        self.track_setbacks(tried, EventKind::Fail, failed, None);
        if tried.message.envelope.sender.is_none() {
            let to: Vec<&Address> = failed
                .iter()
                .filter_map(|(index, _)| tried.copy().recipients.get(usize::from(*index)))
                .map(|one| &one.recipient.address)
                .collect();
            self.track_dropped(tried.message, &to, &"it came from <>: nobody is told of its failure");
        }
        for (index, setback) in failed {
            let Some(one) = tried.copy().recipients.get(usize::from(*index)) else { continue };
            let (id, to) = (tried.item.id, &one.recipient.address);
            warn!(%id, connector = %tried.copy().via, %to, "failed: {setback}");
        }
        Ok(())
    }

    /// Writes a report about recipients of a copy and sends it on its way; `settles` become durable with it, also
    /// where nobody is to be told.
    ///
    /// # Errors
    /// It is not written, and nothing is settled; this is when to try again.
    async fn report(
        &self,
        snapshot: &Snapshot,
        tried: &Tried<'_>,
        kind: Kind,
        ends: Vec<(u16, ReportEnd<'_>)>,
        settles: Vec<Settlement>,
        now: Timestamp,
    ) -> Result<(), Duration> {
        let settle_alone = |relay: &Self| {
            for settlement in &settles {
                relay.0.spool.settle(*settlement);
            }
        };
        let message = tried.message;
        let id = self.0.spool.next_id();
        let Some((envelope, content)) = compose(snapshot, tried, kind, &ends, id, now).await else {
            settle_alone(self);
            return Ok(());
        };
        let Some(to) = envelope.recipients.first().cloned() else {
            settle_alone(self);
            return Ok(());
        };
        let rules = Rules { config: &snapshot.config, directory: snapshot.directory.as_ref() };
        let connector = ConnectorName(Arc::from(OWN_CONNECTOR));
        // A report comes from the relay's own side.
        let origin = snapshot.config.hybrid.as_ref().map_or(Origin::OnPremises, |hybrid| hybrid.side.origin());
        let asking = Asking { origin, connector: &connector, may_relay: true, size: None };
        let mut routed = match rules.resolve(&asking, &to) {
            Ok(routed) => routed,
            Err(refusal) if refusal.is_temporary() => {
                // A directory that cannot answer now is no reason to tell nobody.
                warn!(id = %message.id, to = %to.address, "a report cannot be sent now and is tried again: {refusal}");
                return Err(REPORT_RETRY);
            }
            Err(refusal) => {
                warn!(id = %message.id, to = %to.address, "a report cannot be delivered and is dropped: {refusal}");
                self.track_dropped(message, &[&to.address], &format_args!("the report to the sender: {refusal}"));
                settle_alone(self);
                return Ok(());
            }
        };
        let is_counted = !visits::is_unlimited(snapshot, message);
        // Of a delay or a success nobody wants to hear when it is over.
        let may_wait = kind == Kind::Failure;
        let turn = match is_counted {
            true => self.backscatter(|known| known.turn(&to.address, clock::now(), may_wait)),
            false => Turn::Now,
        };
        // Only at the end of its life a failure goes unreported: it must not be in the queue for ever.
        let life = lifetime(&snapshot.config.spool, false);
        let left = life.saturating_sub(self.age_in_life(message.id, message.accepted, life));
        let wait = match turn {
            Turn::Now => None,
            Turn::Later(wait) if may_wait => Some(wait),
            Turn::Never if may_wait && !left.is_zero() => {
                warn!(id = %message.id, to = %to.address, "a failure cannot be reported for hours: there were too many of late; it is tried again");
                return Err(TURN_RETRY.min(left).max(SHORTEST_WAIT));
            }
            Turn::Later(_) | Turn::Never => {
                warn!(id = %message.id, to = %to.address, "a report is not written: there were too many of late");
                let why = "the report to the sender: too many of late for that address, its domain or in all";
                self.track_dropped(message, &[&to.address], &why);
                settle_alone(self);
                return Ok(());
            }
        };
        // Its life begins with its turn: the wait is not to be taken from it.
        let from = later(now, wait.unwrap_or_default());
        let noted: Vec<Noted> = Self::note_routes(&mut routed);
        let size = content.len() as u64;
        let facts = header::facts(&content);
        let new = NewMessage {
            id,
            accepted: from,
            envelope: Envelope { recipients: Vec::new(), ..envelope },
            connector: Box::default(),
            message_id: facts.message_id.map(String::into_boxed_str),
            prefix: own_received(&snapshot.config, id, &to, now),
            organization: OrganizationHeaders::None,
            content: Draft::from_bytes(content),
            copies: plan::plan(routed),
            settles: settles.clone(),
        };
        let put = self.0.spool.put(new).await;
        if put.is_err() && is_counted {
            // On a disk that is full for hours one failure would use up all turns of its sender.
            self.backscatter(|known| known.give_back(&to.address));
        }
        match put {
            Ok(receipt) => {
                let what = match kind {
                    Kind::Failure => "failure",
                    Kind::Delay { .. } => "delay",
                    Kind::Relayed => "success",
                };
                info!(id = %message.id, report = %id, to = %to.address, size, "{what} report to the sender");
                self.track_report(message, id, what);
                self.flow_in(&receipt.message, None, size, &noted);
                self.track_plan(&receipt.message, &noted);
                match wait {
                    None => self.schedule(snapshot, receipt.message),
                    Some(wait) => self.put_off(&receipt.message, from, wait),
                }
                Ok(())
            }
            Err(error @ PutError::TooLong(_)) => {
                // It never could be written; trying for ever would help nobody.
                warn!(id = %message.id, %error, "a report is dropped");
                self.track_dropped(message, &[&to.address], &format_args!("the report to the sender: {error}"));
                settle_alone(self);
                Ok(())
            }
            Err(error) => {
                warn!(id = %message.id, %error, "a report could not be written; it is tried again");
                Err(REPORT_RETRY)
            }
        }
    }
}

impl Relay {
    /// The limit of reports to those outside: S-111.
    fn backscatter<R>(&self, ask: impl FnOnce(&mut Backscatter) -> R) -> R {
        // Nothing in it can be half done.
        ask(&mut self.0.backscatter.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A report that is safe waits for its turn, also over a restart.
    fn put_off(&self, message: &Message, until: Timestamp, wait: Duration) {
        info!(id = %message.id, until = %format_args!("{until:.0}"), "a report waits for its turn: there were many of late");
        self.schedule_at(message, until, wait, false);
    }

    /// Every copy of a message that is safe waits so long, which is until then, also over a restart.
    pub(super) fn schedule_at(&self, message: &Message, until: Timestamp, wait: Duration, warned: bool) {
        let (id, accepted, attempts, held, panics) = (message.id, message.accepted, 0, false, 0);
        let waiting = (0u16..).zip(&message.copies).map(|(copy, plan)| {
            self.defer(Deferral { id, copy, until, attempts, warned, held, panics });
            let (via, hop) = (plan.via.clone(), plan.hop.clone());
            Waiting { id, copy, accepted, via, hop, until: Some(until), attempts, warned, held, panics }
        });
        let waiting: Vec<Waiting> = waiting.collect();
        self.take_up(&waiting, |_| wait);
    }
}

/// The report itself; `None`: nobody is to be told.
async fn compose(
    snapshot: &Snapshot,
    tried: &Tried<'_>,
    kind: Kind,
    ends: &[(u16, ReportEnd<'_>)],
    id: MessageId,
    now: Timestamp,
) -> Option<(Envelope, Vec<u8>)> {
    let message = tried.message;
    message.envelope.sender.as_ref()?;
    // What strangers are told of how we route; the event and the log have all of it.
    let inside = visits::came_from_inside(snapshot, message);
    let plain: Vec<Option<Setback>> = ends
        .iter()
        .map(|(_, end)| match end {
            ReportEnd::Setback(setback) if !inside => setback.for_outsiders(),
            _ => None,
        })
        .collect();
    let size = message.content.len() + message.prefix.len() as u64;
    let wants_whole = Report::wants_whole(kind, &message.envelope, size);
    let returned = original(message, wants_whole).await;
    let recipients = ends
        .iter()
        .zip(&plain)
        .filter_map(|((index, end), plain)| {
            let end = plain.as_ref().map_or(*end, ReportEnd::Setback);
            let recipient = tried.copy().recipients.get(usize::from(*index))?;
            Some(Told { asked: &recipient.asked, recipient: &recipient.recipient, end, last_attempt: now })
        })
        .collect();
    let report = Report {
        kind,
        hostname: &snapshot.config.hostname,
        postmaster: &snapshot.config.postmaster,
        id,
        now,
        original_id: message.id,
        original: &message.envelope,
        arrived: message.accepted,
        size,
        recipients,
        head: &returned,
        whole: wants_whole.then_some(returned.as_slice()),
    };
    report.write()
}

fn later(now: Timestamp, wait: Duration) -> Timestamp {
    now + SignedDuration::try_from(wait).unwrap_or(SignedDuration::ZERO)
}

pub(super) fn settlement(item: &Item, recipient: u16, end: End) -> Settlement {
    Settlement { id: item.id, copy: item.copy, recipient, end }
}

fn setbacks(list: &[(u16, Setback)]) -> Vec<(u16, ReportEnd<'_>)> {
    list.iter().map(|(index, setback)| (*index, ReportEnd::Setback(setback))).collect()
}

/// [`read_original`] where it may block.
async fn original(message: &Message, whole: bool) -> Vec<u8> {
    let (id, prefix, content) = (message.id, message.prefix.clone(), message.content.clone());
    match &content {
        Body::Memory(_) => read_original(id, &prefix, &content, whole),
        Body::File { .. } => blocking(move || read_original(id, &prefix, &content, whole)).await.unwrap_or_default(),
    }
}

/// The first bytes of a message, header block among them, or all of it. What cannot be read is not returned: the report
/// matters more.
fn read_original(id: MessageId, prefix: &[u8], content: &Body, whole: bool) -> Vec<u8> {
    let limit = if whole { u64::MAX } else { header::HEADER_LIMIT as u64 };
    let mut read = prefix.to_vec();
    while (read.len() as u64) < limit {
        let offset = (read.len() - prefix.len()) as u64;
        match content.read(offset, crate::message::body::BLOCK) {
            Ok(block) if block.is_empty() => break,
            Ok(block) => read.extend_from_slice(&block),
            Err(error) => {
                warn!(%id, %error, "the original cannot be read for a report");
                break;
            }
        }
        if !whole && header::block_len(&read).is_some() {
            break;
        }
    }
    read
}

/// A report begins its way here, and says so.
fn own_received(config: &Config, id: MessageId, to: &Recipient, at: Timestamp) -> Bytes {
    let received = Received {
        hello: config.hostname.as_str(),
        peer: std::net::Ipv4Addr::LOCALHOST.into(),
        by: &config.hostname,
        extended: true,
        tls: None,
        authenticated: false,
        utf8: false,
        id,
        only_recipient: Some(&to.address),
        at,
    };
    received.to_field().into()
}
