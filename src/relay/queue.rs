//! The queue as an operator sees and changes it.
//!
//! Looking goes along the spool's log in small steps and keeps no more than a page in memory, however much waits; nobody
//! waits for who looks. Changing is done copy by copy under the rules of `hands`: what somebody tries at this moment is
//! left alone and said to be busy. A change is durable, and a tracking event with who asked for it, before it is answered.
//!
//! Not here: who may ask (`admin`).

use std::collections::BTreeMap;
use std::time::Instant;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Relay;
use super::hands::{Grasp, Grasped, Key};
use super::work::{Item, age, max_connections, panicked};
use crate::clock;
use crate::message::{Address, BodyType, MessageId, Ret};
use crate::outcome::Setback;
use crate::outcome::tracking::{Event, EventKind};
use crate::random::HashMap;
use crate::route::Hop;
use crate::spool::disk::blocking;
use crate::spool::{CopyStanding, Deferral, End, LoadError, Settlement, Standing, Step};

/// Recipients of one copy that a line of a list names; the rest is counted.
const NAMED: usize = 20;

/// How a copy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its first attempt has not been made, or its time has come.
    Waiting,
    /// It is being tried at this moment.
    Active,
    /// It waits for its next attempt.
    Deferred,
    /// An operator holds it, or the relay does since its attempts end inside the relay.
    Held,
}

/// Which copies. What is left out takes all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// One message, or several with commas between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The sender; `<>` for reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// A recipient that is open, as it was asked for or as it goes out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// The domain of such a recipient.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The send connector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connector: Option<String>,
    /// The next hop: a domain whose MX it is, or `smart-hosts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hop: Option<String>,
    /// How it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<State>,
    /// At least so many seconds old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_than: Option<u64>,
    /// At most so many seconds old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub younger_than: Option<u64>,
    /// No message that came after this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_to: Option<String>,
}

/// By what a list is sorted; without it, it is in the order of the log, oldest first but for what was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the fields of an entry")]
pub enum Sort {
    Age,
    Sender,
    Recipient,
    Domain,
    Connector,
    Hop,
    Status,
    Attempts,
    Next,
    Size,
}

/// One copy of a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// The message.
    pub id: String,
    /// Index into its copies.
    pub copy: u16,
    /// Its `Message-ID` field.
    pub message_id: Option<String>,
    /// The sender; empty for reports.
    pub from: String,
    /// Recipients that are open, the first of them.
    pub to: Vec<String>,
    /// How many are open.
    pub recipients: usize,
    /// The send connector.
    pub connector: String,
    /// The next hop: `smart-hosts`, or a domain whose MX it is.
    pub hop: String,
    /// How it stands.
    pub status: State,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Attempts so far.
    pub attempts: u16,
    /// When the next one is due.
    pub next: Option<Timestamp>,
    /// Bytes.
    pub size: u64,
    /// Why it waits: what its last attempt met, or what others met at its hop.
    pub last: Option<String>,
}

/// Part of a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Page {
    /// These.
    pub entries: Vec<Entry>,
    /// What to say to get those that follow; `None`: there are none.
    pub next: Option<String>,
    /// No message of it, nor one that came before, has a greater number.
    pub up_to: String,
}

/// A message with all that the spool and the schedule know of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Shown {
    /// The message.
    pub id: String,
    /// Its `Message-ID` field.
    pub message_id: Option<String>,
    /// The sender; empty for reports.
    pub from: String,
    /// The receive connector it came by; empty for reports the relay wrote.
    pub received_by: String,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Bytes.
    pub size: u64,
    /// What the sender asked for: `ENVID`, `RET`, `SMTPUTF8`, `REQUIRETLS`, `BODY`.
    pub asked_for: Vec<String>,
    /// The copies of which somebody is open, with all who are.
    pub copies: Vec<ShownCopy>,
    /// Where all of it stands, refused recipients and reports too.
    pub attempts_in: String,
    /// Why attempts may be missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// One copy of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShownCopy {
    /// As a list has it.
    pub entry: Entry,
    /// Every recipient, as asked for and as it goes out, and whether it is open.
    pub recipients: Vec<ShownRecipient>,
    /// The sender was warned of the delay.
    pub warned: bool,
    /// Seconds until the hop, which is down or slow, is tried again.
    pub resting: Option<u64>,
    /// What was tried, the newest first; the tracking files know.
    #[serde(default)]
    pub attempts: Vec<Attempted>,
}

/// One attempt, for recipients with the same result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempted {
    /// When, as the file has it.
    pub time: String,
    /// `SEND`, `DEFER` or `FAIL`.
    pub event: String,
    /// For whom.
    pub to: Vec<String>,
    /// The host that answered, or did not.
    pub host: Option<String>,
    /// What TLS proved.
    pub tls: Option<String>,
    /// The enhanced status.
    pub status: Option<String>,
    /// Its words, or what went wrong.
    pub reply: Option<String>,
    /// Which attempt this was, where it was in vain.
    #[serde(default)]
    pub attempt: Option<u32>,
    /// When the next was due then.
    #[serde(default)]
    pub next: Option<Timestamp>,
}

/// One recipient of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShownRecipient {
    /// As the client named it.
    pub asked: String,
    /// As RCPT TO will.
    pub to: String,
    /// Not done with.
    pub open: bool,
}

/// What to list.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Which.
    pub filter: Filter,
    /// In which order.
    pub sort: Option<Sort>,
    /// The other way round.
    pub descending: bool,
    /// So many.
    pub limit: usize,
    /// From [`Page::next`].
    pub cursor: Option<String>,
}

/// What an operator can do to a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Not tried until it is released, also after a restart.
    Hold,
    /// It goes on.
    Release,
    /// Tried now.
    Retry,
    /// Returned to its sender.
    Bounce,
    /// Gone; nobody is told.
    Remove,
}

/// Who wants it, and why.
#[derive(Debug, Clone)]
pub struct By {
    /// Who.
    pub who: String,
    /// Why, where it was said.
    pub reason: Option<String>,
}

/// What came of a change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Copies that were changed.
    pub changed: usize,
    /// Copies that were being tried and were left alone; a held one is held when it comes back.
    pub busy: usize,
    /// Copies for which there was nothing to do: held already, not held, held and so not tried.
    pub passed: usize,
    /// What could not be done, and why; the first of them.
    pub failed: Vec<String>,
    /// What to say to go on; `None`: that was all.
    pub next: Option<String>,
}

impl Changed {
    fn fail(&mut self, id: MessageId, why: &str) {
        if self.failed.len() < NAMED {
            self.failed.push(format!("{id}: {why}"));
        }
    }
}

/// Why a question cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// It makes no sense.
    #[error("{0}")]
    Wrong(String),
    /// There is too much to look at.
    #[error("not all that waits could be looked at in time; narrow the question, or list without sort")]
    TooLong,
    /// The relay is stopping.
    #[error("the relay is stopping")]
    Stopping,
}

/// The word for a hop in lists and filters.
fn word(hop: &Hop) -> &str {
    match hop {
        Hop::SmartHosts => "smart-hosts",
        Hop::Mx(domain) => domain.as_str(),
    }
}

/// A number as logs and lists write it.
///
/// # Errors
/// It is none.
pub fn parse_id(text: &str) -> Result<MessageId, Unanswered> {
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit()) && (1..=16).contains(&text.len());
    let number = hex(text).then(|| u64::from_str_radix(text, 16).ok()).flatten();
    number.map(MessageId).ok_or_else(|| Unanswered::Wrong(format!("{text:?} is no id; one is such as 000100000001")))
}

impl Filter {
    /// Does it say anything at all? What changes the queue must say whom it means.
    pub fn is_empty(&self) -> bool {
        Self { up_to: None, ..self.clone() } == Self::default()
    }

    fn ids(&self) -> Result<Option<Vec<MessageId>>, Unanswered> {
        let Some(text) = &self.id else { return Ok(None) };
        text.split(',').map(|one| parse_id(one.trim())).collect::<Result<_, _>>().map(Some)
    }

    fn takes(&self, message: &Standing, copy: &CopyStanding, now: Timestamp) -> bool {
        let same = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(found))
        };
        let old = age(message.accepted, now).as_secs();
        let is_in_time =
            self.older_than.is_none_or(|least| old >= least) && self.younger_than.is_none_or(|most| old <= most);
        is_in_time
            && same(&self.connector, &copy.plan.via.0)
            && same(&self.hop, word(&copy.plan.hop))
            && self.sender.as_ref().is_none_or(|wanted| match &message.envelope.sender {
                Some(sender) => wanted.eq_ignore_ascii_case(&sender.to_string()),
                None => wanted == "<>",
            })
            && (self.recipient.is_none() && self.domain.is_none()
                || copy.open_recipients().any(|one| {
                    same(&self.domain, one.recipient.address.domain().as_str())
                        && self.recipient.as_ref().is_none_or(|wanted| {
                            [&one.asked, &one.recipient.address]
                                .into_iter()
                                .any(|address| wanted.eq_ignore_ascii_case(&address.to_string()))
                        })
                }))
    }
}

impl CopyStanding {
    fn open_recipients(&self) -> impl Iterator<Item = &crate::route::CopyRecipient> {
        self.open.iter().filter_map(|index| self.plan.recipients.get(usize::from(*index)))
    }
}

/// How an entry is placed in a sorted list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    key: String,
    id: u64,
    copy: u16,
}

impl Rank {
    fn of(sort: Sort, entry: &Entry, id: MessageId) -> Self {
        let time = |time: Timestamp| format!("{:020}", time.as_microsecond().max(0));
        let recipient = entry.to.first().cloned().unwrap_or_default();
        let key = match sort {
            Sort::Age => time(entry.accepted),
            Sort::Sender => entry.from.to_ascii_lowercase(),
            Sort::Recipient => recipient.to_ascii_lowercase(),
            Sort::Domain => recipient.rsplit('@').next().unwrap_or_default().to_ascii_lowercase(),
            Sort::Connector => entry.connector.clone(),
            Sort::Hop => entry.hop.clone(),
            Sort::Status => format!("{:?}", entry.status),
            Sort::Attempts => format!("{:05}", entry.attempts),
            Sort::Next => entry.next.map_or_else(String::new, time),
            Sort::Size => format!("{:020}", entry.size),
        };
        Self { key, id: id.0, copy: entry.copy }
    }

    fn cursor(&self) -> String {
        format!("s{:x}.{}.{}", self.id, self.copy, self.key)
    }

    fn parse(cursor: &str) -> Option<Self> {
        let mut parts = cursor.strip_prefix('s')?.splitn(3, '.');
        let id = u64::from_str_radix(parts.next()?, 16).ok()?;
        Some(Self { id, copy: parts.next()?.parse().ok()?, key: parts.next()?.to_owned() })
    }
}

/// The best of a list, no more than are asked for.
struct Best {
    limit: usize,
    after: Option<Rank>,
    descending: bool,
    found: BTreeMap<Rank, Entry>,
    /// Something was left out.
    more: bool,
}

impl Best {
    fn add(&mut self, rank: Rank, entry: Entry) {
        let is_before = |after: &Rank| if self.descending { rank >= *after } else { rank <= *after };
        if self.after.as_ref().is_some_and(is_before) {
            return;
        }
        self.found.insert(rank, entry);
        if self.found.len() > self.limit {
            self.more = true;
            if self.descending {
                self.found.pop_first();
            } else {
                self.found.pop_last();
            }
        }
    }

    fn page(self, up_to: String) -> Page {
        let last = if self.descending { self.found.keys().next() } else { self.found.keys().next_back() };
        let next = last.filter(|_| self.more).map(Rank::cursor);
        let mut entries: Vec<Entry> = self.found.into_values().collect();
        if self.descending {
            entries.reverse();
        }
        Page { entries, next, up_to }
    }
}

/// A place in a walk: `w`, the step, and the newest message that belongs to it.
fn write_step(step: Step, up_to: MessageId) -> String {
    format!("w{:x}.{:x}.{:x}", step.segment, step.at, up_to.0)
}

fn parse_step(cursor: &str) -> Option<(Step, MessageId)> {
    let mut parts = cursor.strip_prefix('w')?.splitn(3, '.');
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    let step = Step { segment: number()?.try_into().ok()?, at: number()?.try_into().ok()? };
    Some((step, MessageId(number()?)))
}

impl Relay {
    /// Part of the queue. Blocking; gives up at `deadline`.
    ///
    /// # Errors
    /// The question makes no sense, or there is too much to look at.
    pub fn list(&self, listing: &Listing, deadline: Instant) -> Result<Page, Unanswered> {
        let Listing { filter, sort, descending, limit, cursor } = listing;
        let wrong = || Unanswered::Wrong("this cursor does not belong to such a list".to_owned());
        let now = clock::wall();
        let up_to = filter.up_to.as_deref().map(parse_id).transpose()?;
        let newest = up_to.unwrap_or_else(|| self.newest()).to_string();
        let page = |entries, next| Page { entries, next, up_to: newest.clone() };
        if let Some(ids) = filter.ids()? {
            let found = ids.iter().filter_map(|id| self.0.spool.standing(*id));
            let entries = found.flat_map(|message| self.entries(filter, &message, now)).collect();
            return Ok(page(entries, None));
        }
        let Some(sort) = *sort else {
            let mut step = match cursor {
                Some(cursor) => parse_step(cursor).ok_or_else(wrong)?.0,
                None => Step::default(),
            };
            let mut entries = Vec::new();
            loop {
                let (messages, next) = self.0.spool.walk(step);
                for (at, message) in messages {
                    if entries.len() >= *limit {
                        return Ok(page(entries, Some(write_step(at, MessageId(0)))));
                    }
                    if up_to.is_none_or(|up_to| message.id <= up_to) {
                        entries.extend(self.entries(filter, &message, now));
                    }
                }
                let Some(next) = next else { return Ok(page(entries, None)) };
                step = next;
                if clock::now() > deadline {
                    // What was found so far is true, and the walk can go on.
                    return Ok(page(entries, Some(write_step(step, MessageId(0)))));
                }
            }
        };
        let after = cursor.as_deref().map(|cursor| Rank::parse(cursor).ok_or_else(wrong)).transpose()?;
        let mut best = Best { limit: *limit, after, descending: *descending, found: BTreeMap::new(), more: false };
        let mut step = Some(Step::default());
        while let Some(from) = step {
            let (messages, next) = self.0.spool.walk(from);
            for (_, message) in messages {
                if up_to.is_none_or(|up_to| message.id <= up_to) {
                    for entry in self.entries(filter, &message, now) {
                        best.add(Rank::of(sort, &entry, message.id), entry);
                    }
                }
            }
            if clock::now() > deadline {
                return Err(Unanswered::TooLong);
            }
            step = next;
        }
        Ok(best.page(newest))
    }

    /// One message; `None`: it does not wait. Blocking.
    pub fn show(&self, id: MessageId) -> Option<Shown> {
        let message = self.0.spool.standing(id)?;
        let entries = self.entries(&Filter::default(), &message, clock::wall());
        let envelope = &message.envelope;
        let mut asked_for = Vec::new();
        asked_for.extend(envelope.envid.as_ref().map(|envid| format!("ENVID={envid}")));
        asked_for.extend(envelope.ret.map(|ret| format!("RET={}", if ret == Ret::Full { "FULL" } else { "HDRS" })));
        asked_for.extend((envelope.body == BodyType::EightBit).then(|| "BODY=8BITMIME".to_owned()));
        asked_for.extend(envelope.smtputf8.then(|| "SMTPUTF8".to_owned()));
        asked_for.extend(envelope.requiretls.then(|| "REQUIRETLS".to_owned()));
        let shown = |(copy, entry): (&CopyStanding, Entry)| {
            let recipients = copy.plan.recipients.iter().enumerate().map(|(index, one)| ShownRecipient {
                asked: one.asked.to_string(),
                to: one.recipient.address.to_string(),
                open: copy.open.iter().any(|open| usize::from(*open) == index),
            });
            let queue = self.queue();
            let resting = queue.find(&copy.plan.via, &copy.plan.hop).and_then(|lane| queue.depth(lane).resting);
            let resting = resting.map(|until| until.saturating_duration_since(clock::now()).as_secs());
            ShownCopy { entry, recipients: recipients.collect(), warned: copy.warned, resting, attempts: Vec::new() }
        };
        Some(Shown {
            id: message.id.to_string(),
            message_id: message.message_id.as_deref().map(str::to_owned),
            from: envelope.sender.as_ref().map(ToString::to_string).unwrap_or_default(),
            received_by: message.connector.to_string(),
            accepted: message.accepted,
            size: message.size,
            asked_for,
            copies: message.copies.iter().zip(entries).map(shown).collect(),
            attempts_in: format!("causeway trace --id {}", message.id),
            remarks: Vec::new(),
        })
    }

    /// The newest message there is: what comes later is younger.
    pub fn newest(&self) -> MessageId {
        self.0.spool.next_id()
    }

    /// How many copies are held.
    pub fn held(&self) -> usize {
        self.queue().held()
    }

    fn entries(&self, filter: &Filter, message: &Standing, now: Timestamp) -> Vec<Entry> {
        let copies: Vec<&CopyStanding> =
            message.copies.iter().filter(|copy| filter.takes(message, copy, now)).collect();
        if copies.is_empty() {
            return Vec::new();
        }
        let queue = self.queue();
        let rests_until = |copy: &CopyStanding| {
            let lane = queue.find(&copy.plan.via, &copy.plan.hop)?;
            let left = queue.depth(lane).resting?.saturating_duration_since(clock::now());
            now.checked_add(left).ok()
        };
        let entry = |copy: &CopyStanding| {
            let key = (message.id, copy.number);
            let status = if copy.held || queue.is_held(key) {
                State::Held
            } else if queue.is_tried(key) {
                State::Active
            } else if copy.until.is_some_and(|until| until > now) {
                State::Deferred
            } else {
                State::Waiting
            };
            let CopyStanding { plan, .. } = copy;
            let hop =
                || queue.find(&plan.via, &plan.hop).and_then(|lane| queue.last_setback(lane)).map(ToString::to_string);
            let panicked = || (copy.panics > 0).then(|| panicked(copy.panics));
            let own = || copy.remark.as_deref().map(str::to_owned).or_else(panicked);
            // Once its time has come, it is the hop that it waits for.
            let is_its_own = matches!(status, State::Deferred | State::Held);
            let last = if is_its_own { own().or_else(hop) } else { hop().or_else(own) };
            Entry {
                id: message.id.to_string(),
                copy: copy.number,
                message_id: message.message_id.as_deref().map(str::to_owned),
                from: message.envelope.sender.as_ref().map(ToString::to_string).unwrap_or_default(),
                to: copy.open_recipients().take(NAMED).map(|one| one.recipient.address.to_string()).collect(),
                recipients: copy.open.len(),
                connector: plan.via.to_string(),
                hop: word(&plan.hop).to_owned(),
                status,
                accepted: message.accepted,
                attempts: copy.attempts,
                next: match status {
                    State::Deferred => copy.until.max(rests_until(copy)),
                    State::Waiting => rests_until(copy),
                    State::Active | State::Held => None,
                },
                size: message.size,
                last,
            }
        };
        let entries = copies.into_iter().map(entry);
        entries.filter(|entry| filter.status.is_none_or(|wanted| wanted == entry.status)).collect()
    }

    /// Changes the copies that `filter` takes, until `deadline` or until so many were looked at that somebody should be
    /// told; [`Changed::next`] goes on from there. What comes meanwhile is not changed.
    ///
    /// # Errors
    /// The question makes no sense, or the relay is stopping.
    pub async fn change(
        &self,
        change: Change,
        filter: &Filter,
        by: &By,
        cursor: Option<&str>,
        deadline: Instant,
    ) -> Result<Changed, Unanswered> {
        let wrong = || Unanswered::Wrong("this cursor does not belong to such a change".to_owned());
        let mut done = Changed::default();
        let (mut step, up_to) = match (cursor, filter.up_to.as_deref()) {
            (Some(cursor), _) => parse_step(cursor).ok_or_else(wrong)?,
            (None, Some(up_to)) => (Step::default(), parse_id(up_to)?),
            (None, None) => (Step::default(), self.newest()),
        };
        let ids = filter.ids()?;
        loop {
            if self.is_stopping() {
                return Err(Unanswered::Stopping);
            }
            let (spool, wanted) = (self.0.spool.clone(), ids.clone());
            let walked = blocking(move || match wanted {
                Some(ids) => (ids.into_iter().filter_map(|id| Some((step, spool.standing(id)?))).collect(), None),
                None => spool.walk(step),
            });
            let Ok((messages, next)) = walked.await else { return Err(Unanswered::TooLong) };
            let now = clock::wall();
            let messages: Vec<Standing> = messages
                .into_iter()
                .map(|(_, mut message): (Step, Standing)| {
                    let mut copies = std::mem::take(&mut message.copies);
                    copies.retain(|copy| filter.takes(&message, copy, now));
                    if filter.status.is_some() {
                        let kept = Standing { copies, ..message };
                        let wanted: Vec<u16> = self.entries(filter, &kept, now).iter().map(|one| one.copy).collect();
                        message = kept;
                        copies = std::mem::take(&mut message.copies);
                        copies.retain(|copy| wanted.contains(&copy.number));
                    }
                    Standing { copies, ..message }
                })
                .filter(|message| message.id <= up_to && !message.copies.is_empty())
                .collect();
            match change {
                Change::Hold => self.hold(&messages, by, &mut done).await,
                Change::Release => self.release(&messages, by, &mut done).await,
                Change::Retry => self.retry(&messages, by, &mut done).await,
                Change::Bounce | Change::Remove => self.take_away(change, &messages, by, &mut done).await,
            }
            let Some(next) = next else { return Ok(done) };
            step = next;
            if clock::now() > deadline {
                return Ok(Changed { next: Some(write_step(step, up_to)), ..done });
            }
        }
    }

    async fn hold(&self, messages: &[Standing], by: &By, done: &mut Changed) {
        let mut fresh = Vec::new();
        {
            let mut queue = self.queue();
            for (message, copy) in copies(messages) {
                let key = (message.id, copy.number);
                if queue.is_held(key) {
                    done.passed += 1;
                    continue;
                }
                queue.hold(key);
                if queue.is_tried(key) {
                    done.busy += 1;
                } else {
                    done.changed += 1;
                }
                fresh.push((message, copy));
            }
        }
        // No attempt of theirs begins from here on. What the last ones brought is on disk before we write beside it.
        self.0.spool.flush().await;
        for (message, copy) in &fresh {
            self.0.spool.hold(message.id, copy.number, true, message.accepted);
            self.track_change(EventKind::Defer, message, copy, "held", by);
        }
        self.0.spool.flush().await;
    }

    async fn release(&self, messages: &[Standing], by: &By, done: &mut Changed) {
        let config = &self.snapshot().config;
        self.0.spool.flush().await;
        for (message, copy) in copies(messages) {
            let key = (message.id, copy.number);
            let lane = {
                let mut queue = self.queue();
                if !queue.is_held(key) {
                    done.passed += 1;
                    continue;
                }
                let aside = queue.release(key);
                // Under the lock: an attempt that begins now says what it has to say after this.
                self.0.spool.hold(message.id, copy.number, false, message.accepted);
                aside.and_then(|item| {
                    let lane = queue.lane(&copy.plan.via, &copy.plan.hop, max_connections(config, &copy.plan.via));
                    // It may fail as often again.
                    queue.ready(lane, Item { panics: 0, ..item }).then_some(lane)
                })
            };
            if let Some(lane) = lane {
                self.work(lane);
            }
            done.changed += 1;
            self.track_change(EventKind::Defer, message, copy, "released", by);
        }
        self.0.spool.flush().await;
    }

    async fn retry(&self, messages: &[Standing], by: &By, done: &mut Changed) {
        let config = &self.snapshot().config;
        for (message, copy, hand) in self.grasp(messages, false, done).await {
            let key = (message.id, copy.number);
            // Delivered a moment ago, it would be delivered again.
            let Some(known) = self.0.spool.copy(message.id, copy.number) else {
                done.passed += 1;
                continue;
            };
            let (lane, start) = {
                let mut queue = self.queue();
                let item = Item { turn: queue.turn(key), ..Item::standing(message, copy.number, known) };
                queue.let_down(key);
                let lane = queue.lane(&copy.plan.via, &copy.plan.hop, max_connections(config, &copy.plan.via));
                let start = usize::from(queue.ready(lane, item));
                (lane, start + queue.rouse(lane))
            };
            // A worker may have it in hand by now.
            hand.pass_on();
            for _ in 0..start {
                self.work(lane);
            }
            done.changed += 1;
            self.track_change(EventKind::Defer, message, copy, "to be tried now, as asked", by);
        }
    }

    async fn take_away(&self, change: Change, messages: &[Standing], by: &By, done: &mut Changed) {
        for (message, copy, mut hand) in self.grasp(messages, true, done).await {
            let key = (message.id, copy.number);
            let result = match change {
                Change::Bounce => self.bounce(message, copy, by, &hand).await,
                _ => Ok(self.remove(message.id, copy.number, by)),
            };
            match result {
                Ok(true) => {
                    done.changed += 1;
                    self.queue().forget_hold(key);
                    hand.gone();
                }
                Ok(false) => done.passed += 1,
                // It goes its usual way.
                Err(why) => done.fail(message.id, &why),
            }
        }
        self.0.spool.flush().await;
    }

    /// Takes copies in hand: nobody tries them, and what was done to them before is known for certain, since it is on disk.
    /// What is held is taken too, or passed over.
    async fn grasp<'a>(
        &self,
        messages: &'a [Standing],
        held: bool,
        done: &mut Changed,
    ) -> Vec<(&'a Standing, &'a CopyStanding, Grasped)> {
        let mut ours = Vec::new();
        for (message, copy) in copies(messages) {
            let key = (message.id, copy.number);
            let mut queue = self.queue();
            if !held && queue.is_held(key) {
                done.passed += 1;
                continue;
            }
            match queue.grasp(key) {
                Grasp::Ours => {
                    let hand = self.grasped(&queue, message, copy);
                    ours.push((message, copy, hand));
                }
                Grasp::Busy => done.busy += 1,
            }
        }
        let unwritten = self.0.spool.flush().await;
        let mut settled: HashMap<Key, Vec<Settlement>> = HashMap::default();
        for one in unwritten {
            settled.entry((one.id, one.copy)).or_default().push(one);
        }
        ours.retain_mut(|(message, copy, hand)| {
            let unwritten = settled.remove(&(message.id, copy.number)).unwrap_or_default();
            let waits = self.still_waits(message, copy, &unwritten, hand);
            done.passed += usize::from(!waits);
            waits
        });
        if self.0.spool.is_broken() {
            // What would be said of them could not be written: they go back to where they were.
            for (message, _, _hand) in ours.drain(..) {
                done.fail(message.id, "the spool cannot be written now");
            }
        }
        ours
    }

    /// Does anybody of a copy that was grasped still wait, now that all that was done to it is on disk, or known from what
    /// could not be written? What the disk has not taken is true all the same: who was delivered a moment ago is not taken up
    /// again. If not, the copy was gone before, and needs no place.
    pub(super) fn still_waits(
        &self,
        message: &Standing,
        copy: &CopyStanding,
        unwritten: &[Settlement],
        hand: &mut Grasped,
    ) -> bool {
        let key = (message.id, copy.number);
        let mut open = copy.open.clone();
        open.retain(|recipient| self.0.spool.is_open(key.0, key.1, *recipient));
        let known = self.0.spool.copy(key.0, key.1);
        let of_it = unwritten.iter().filter(|one| (one.id, one.copy) == key);
        let mut queue = self.queue();
        // Kept in mind until it is written.
        queue.note_done(key, of_it.map(|one| one.recipient));
        queue.leave_out_done(key, &mut open);
        match known {
            Some(known) if !open.is_empty() => {
                // Where its time has come, the old place is the next of its lane, or as good as.
                if known.until.is_some_and(|until| until > clock::wall())
                    && let Some(lane) = queue.find(&copy.plan.via, &copy.plan.hop)
                {
                    queue.pass_over(key, lane);
                }
                true
            }
            _ => {
                queue.let_slip(key);
                drop(queue);
                hand.gone();
                false
            }
        }
    }

    /// Settles whoever is still open. False: nobody is.
    fn remove(&self, id: MessageId, copy: u16, by: &By) -> bool {
        let Some(message) = self.0.spool.standing(id) else { return false };
        let Some(standing) = message.copies.iter().find(|one| one.number == copy) else { return false };
        for &recipient in &standing.open {
            // A terminal record like any other: P1.
            self.0.spool.settle(Settlement { id, copy, recipient, end: End::Failed });
        }
        self.flow_removed(id, copy, &standing.open);
        self.track_change(EventKind::Drop, &message, standing, "removed", by);
        true
    }

    /// Fails whoever is still open, as the sender is then told. False: nobody is.
    async fn bounce(&self, message: &Standing, copy: &CopyStanding, by: &By, hand: &Grasped) -> Result<bool, String> {
        let (spool, id) = (self.0.spool.clone(), message.id);
        let loaded = match blocking(move || spool.load(id)).await.map_err(|error| error.to_string())? {
            Ok(loaded) => loaded,
            Err(LoadError::Gone) => return Ok(false),
            Err(error) => return Err(error.to_string()),
        };
        let Some(tried) = hand.tried(&loaded.message) else { return Ok(false) };
        let mut open = loaded.open.get(usize::from(copy.number)).cloned().unwrap_or_default();
        self.queue().leave_out_done((id, copy.number), &mut open);
        if open.is_empty() {
            return Ok(false);
        }
        let reason = by.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
        let setback = Setback::Returned { who: by.who.clone(), reason };
        let failed: Vec<(u16, Setback)> = open.into_iter().map(|index| (index, setback.clone())).collect();
        if self.settle_failed(&self.snapshot(), &tried, &failed, self.wall()).await {
            Ok(true)
        } else {
            Err("the report to the sender could not be written; nothing was changed".to_owned())
        }
    }

    fn track_change(&self, kind: EventKind, message: &Standing, copy: &CopyStanding, what: &str, by: &By) {
        let to: Vec<&Address> = copy.open_recipients().map(|one| &one.recipient.address).collect();
        let detail = match &by.reason {
            Some(reason) => format!("{what} by {}: {reason}", by.who),
            None => format!("{what} by {}", by.who),
        };
        self.0.tracker.write(&Event {
            message_id: message.message_id.as_deref(),
            from: message.envelope.sender.as_ref(),
            to: &to,
            connector: Some(&copy.plan.via.0),
            detail: Some(&detail),
            ..Event::new(clock::wall(), kind, message.id)
        });
        tracing::info!(id = %message.id, copy = copy.number, connector = %copy.plan.via, "{detail}");
    }

    /// Notes that a copy is tried later, and that it is held if somebody said so during its attempt.
    pub(super) fn defer(&self, deferral: Deferral) {
        // Under the lock, so that what an operator says afterwards is written after this.
        let queue = self.queue();
        let held = queue.is_held((deferral.id, deferral.copy));
        self.0.spool.defer(Deferral { held, ..deferral });
    }

    /// What operators said of messages that are gone, and who is done with where that is durable.
    pub(super) fn forget_orders(&self) {
        let keys: Vec<Key> = self.queue().ordered();
        let gone: Vec<Key> = keys.into_iter().filter(|(id, _)| !self.0.spool.contains(*id)).collect();
        let mut queue = self.queue();
        queue.forget(&gone);
        queue.forget_done(|(id, copy), recipient| self.0.spool.is_open(id, copy, recipient));
    }
}

fn copies(messages: &[Standing]) -> impl Iterator<Item = (&Standing, &CopyStanding)> {
    messages.iter().flat_map(|message| message.copies.iter().map(move |copy| (message, copy)))
}
