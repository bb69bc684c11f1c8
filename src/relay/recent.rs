//! What came and went in the last hour, recipient by recipient: for the picture of mail flow.
//!
//! A way is one recipient's: where the message came from, what the directory said, by which send connector to which next
//! hop, and how it stands. It is noted where the tracking event is written, from what is known there: a lock, an entry and
//! the names that are shared anyway. Nothing is noted while nobody can ask ([`Recent::begin`]).
//!
//! Bounded in recipients and bytes, the oldest go first. What is refused is kept apart: a stranger who tries a thousand
//! names does not put out the mail that came.
//!
//! Not here: what happened in words (`events`), what waits (`queue`), anything of an earlier run.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::Relay;
use super::events::Noted;
use super::work::Tried;
use crate::clock;
use crate::config::{Config, ConnectorName, Origin};
use crate::message::{Address, MessageId};
use crate::random::{HashMap, HashSet};
use crate::route::explain::next_hop;
use crate::route::{Hop, HopCopy, Reason, Refusal, RefusalKind};
use crate::spool::Message;

/// Recipients that are kept: half a minute at full speed, and hours of an ordinary day.
const RECIPIENTS: usize = 20_000;
/// Recipients that were refused.
const REFUSED: usize = 4_000;
/// What either may take, in bytes: addresses may be long.
const BYTES: usize = 12 << 20;
/// Ways of a picture; more cannot be told apart.
const PATHS: usize = 200;
/// The hop of the ways that are not told apart.
const OTHERS: &str = "others";
/// Up to so many recipients it is faster to look at all of them than to hash them.
const FEW: usize = 16;
/// The longest time that can be asked about.
pub const LONGEST: u32 = 60;

/// What the directory, or whoever came before it, said of a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Said {
    /// A mailbox of the one premises.
    #[serde(rename = "on-premises mailbox")]
    OnPremises,
    /// A mailbox of the other.
    #[serde(rename = "cloud mailbox")]
    Cloud,
    /// It leads to another address.
    #[serde(rename = "forward")]
    Forward,
    /// It leads to several.
    #[serde(rename = "group")]
    Group,
    /// Another name of somebody.
    #[serde(rename = "alias")]
    Alias,
    /// Nobody known, of a domain that is ours.
    #[serde(rename = "not in the directory")]
    Unknown,
    /// It was not asked.
    #[serde(rename = "relayed by address space")]
    Relayed,
    /// Postmaster, who is always taken.
    #[serde(rename = "postmaster")]
    Postmaster,
    /// The client heard no, and not because nobody knew the recipient.
    #[serde(rename = "refused")]
    Refused,
    /// A report that this relay wrote.
    #[serde(rename = "report")]
    Report,
    /// It came before the picture begins.
    #[serde(rename = "accepted earlier")]
    Earlier,
}

/// How a recipient stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nobody has tried so far.
    Waiting,
    /// The next hop has it.
    Delivered,
    /// Tried in vain, and tried again.
    Deferred,
    /// It will never be delivered, or was not taken at all.
    Failed,
}

impl State {
    fn of(number: u8) -> Self {
        match number {
            1 => Self::Delivered,
            2 => Self::Deferred,
            3 => Self::Failed,
            _ => Self::Waiting,
        }
    }
}

/// How much went each way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flow {
    /// From then: what was asked for, or when noting began.
    pub since: Timestamp,
    /// Until then.
    pub until: Timestamp,
    /// Nothing of that time was dropped for want of room.
    pub complete: bool,
    /// The fullest first; what is beyond the limit is summed as `others`.
    pub paths: Vec<Path>,
}

/// One way, and how many recipients went it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Where it came from, in the interface's word; `this relay` for its own reports.
    pub origin: String,
    /// The receive connector; empty for reports.
    pub receive_connector: String,
    /// What the directory said.
    pub verdict: Said,
    /// The send connector; empty for what goes nowhere.
    pub connector: String,
    /// The next hop; empty for what goes nowhere.
    pub hop: String,
    /// Recipients by how they stand.
    pub delivered: u64,
    /// Tried again.
    pub deferred: u64,
    /// Never, or refused.
    pub failed: u64,
    /// Not tried so far.
    pub waiting: u64,
    /// Bytes of their messages, each recipient counted.
    pub bytes: u64,
}

impl Path {
    /// What makes it this one.
    fn key(&self) -> (&str, &str, Said, &str, &str) {
        (&self.origin, &self.receive_connector, self.verdict, &self.connector, &self.hop)
    }

    fn recipients(&self) -> u64 {
        self.delivered + self.deferred + self.failed + self.waiting
    }

    fn count(&mut self, state: State, bytes: u64) {
        let counter = match state {
            State::Waiting => &mut self.waiting,
            State::Delivered => &mut self.delivered,
            State::Deferred => &mut self.deferred,
            State::Failed => &mut self.failed,
        };
        *counter += 1;
        self.bytes += bytes;
    }

    fn add(&mut self, other: &Self) {
        self.delivered += other.delivered;
        self.deferred += other.deferred;
        self.failed += other.failed;
        self.waiting += other.waiting;
        self.bytes += other.bytes;
    }
}

/// Which ways. What is left out, or empty, takes all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Path")]
pub struct Wanted {
    pub origin: String,
    pub receive_connector: String,
    pub verdict: Option<Said>,
    pub connector: String,
    pub hop: String,
    pub state: Option<State>,
}

/// The recipients behind a band of the picture.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Listed {
    /// The newest first.
    pub messages: Vec<Line>,
    /// How many more there are.
    pub more: usize,
}

/// One of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// When it last changed.
    pub time: Timestamp,
    /// The message; `None`: it was refused before it had a number.
    pub id: Option<String>,
    /// The sender; empty for reports.
    pub from: String,
    /// The recipient, as it goes out.
    pub to: String,
    /// How it stands.
    pub state: State,
    /// Where it came from.
    pub origin: String,
    /// By which receive connector.
    pub receive_connector: String,
    /// What the directory said.
    pub verdict: Said,
    /// The send connector.
    pub connector: String,
    /// The next hop.
    pub hop: String,
}

/// What is kept.
#[derive(Debug, Default)]
pub(super) struct Recent {
    on: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    began: Timestamp,
    mail: Ring,
    refused: Ring,
}

/// The last of something, the oldest in front.
#[derive(Debug, Default)]
struct Ring {
    passages: VecDeque<Arc<Passage>>,
    /// How many were put out at the front so far: the number of the first.
    first: u64,
    places: HashMap<MessageId, u64>,
    recipients: usize,
    bytes: usize,
    /// The last change of what was put out, in microseconds.
    lost: Option<i64>,
}

/// One message's recipients.
#[derive(Debug)]
struct Passage {
    id: Option<MessageId>,
    from: Option<Address>,
    size: u64,
    /// `None`: this relay wrote it.
    origin: Option<Origin>,
    by: ConnectorName,
    ways: Box<[Way]>,
}

/// One recipient's.
#[derive(Debug)]
struct Way {
    to: Address,
    said: Said,
    via: ConnectorName,
    hop: Hop,
    /// Copy and index there.
    place: (u16, u16),
    state: AtomicU8,
    /// When it last changed, in microseconds.
    at: AtomicI64,
}

impl Way {
    fn new(copy: &HopCopy, place: (u16, u16), to: &Address, said: Said, now: i64) -> Self {
        Self {
            to: to.clone(),
            said,
            via: copy.via.clone(),
            hop: copy.hop.clone(),
            place,
            state: AtomicU8::new(State::Waiting as u8),
            at: AtomicI64::new(now),
        }
    }

    fn set(&self, state: State, now: i64) {
        self.state.store(state as u8, Ordering::Relaxed);
        self.at.store(now, Ordering::Relaxed);
    }

    fn at(&self) -> i64 {
        self.at.load(Ordering::Relaxed)
    }

    fn state(&self) -> State {
        State::of(self.state.load(Ordering::Relaxed))
    }
}

impl Passage {
    /// About what it takes.
    fn bytes(&self) -> usize {
        let length = |address: &Address| address.local().len() + address.domain().as_str().len();
        let hop = |hop: &Hop| match hop {
            Hop::SmartHosts => 0,
            Hop::Mx(domain) => domain.as_str().len(),
        };
        let ways = self.ways.iter().map(|way| size_of::<Way>() + length(&way.to) + hop(&way.hop));
        size_of::<Self>() + self.from.as_ref().map_or(0, length) + ways.sum::<usize>()
    }

    fn origin(&self) -> &'static str {
        self.origin.map_or("this relay", Origin::word)
    }
}

impl Ring {
    fn push(&mut self, passage: Passage, limit: usize) {
        self.recipients += passage.ways.len();
        self.bytes += passage.bytes();
        if let Some(id) = passage.id {
            self.places.insert(id, self.first + self.passages.len() as u64);
        }
        self.passages.push_back(Arc::new(passage));
        while self.recipients > limit || self.bytes > BYTES {
            let Some(old) = self.passages.pop_front() else { break };
            self.recipients -= old.ways.len();
            self.bytes -= old.bytes();
            if let Some(id) = old.id
                && self.places.get(&id) == Some(&self.first)
            {
                self.places.remove(&id);
            }
            self.first += 1;
            self.lost = self.lost.max(old.ways.iter().map(Way::at).max());
        }
    }

    fn find(&self, id: MessageId) -> Option<&Arc<Passage>> {
        let place = self.places.get(&id)?.checked_sub(self.first)?;
        self.passages.get(usize::try_from(place).ok()?)
    }
}

impl Recent {
    /// From now on somebody can ask.
    fn begin(&self) {
        if !self.on.swap(true, Ordering::Relaxed) {
            *self.lock() = Kept { began: clock::wall(), ..Kept::default() };
        }
    }

    /// Nobody can ask any more: nothing is kept.
    fn end(&self) {
        self.on.store(false, Ordering::Relaxed);
        *self.lock() = Kept::default();
    }

    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A panic while it was held leaves at worst an entry without its sum.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The passages of the time since `minutes` ago, in no order, and when that is, and whether all of it is there.
    fn since(&self, minutes: u32, now: Timestamp) -> (Timestamp, bool, Vec<Arc<Passage>>) {
        let kept = self.lock();
        let asked = now - SignedDuration::from_mins(i64::from(minutes.clamp(1, LONGEST)));
        let since = asked.max(kept.began);
        let lost = kept.mail.lost.max(kept.refused.lost);
        let complete = lost.is_none_or(|lost| lost < since.as_microsecond());
        // Looking at them takes a while, and mail does not wait for it.
        let passages = kept.mail.passages.iter().chain(&kept.refused.passages).cloned().collect();
        (since, complete, passages)
    }
}

/// What a recipient's reasons say of the directory.
fn said(because: &[Reason]) -> Said {
    let of = |reason: &Reason| match reason.plain() {
        Reason::Found { kind, .. } | Reason::FoundBehind { kind, .. } => Some(match &**kind {
            "on-premises mailbox" => Said::OnPremises,
            "cloud mailbox" => Said::Cloud,
            kind if kind.starts_with("forward") => Said::Forward,
            kind if kind.starts_with("group") => Said::Group,
            _ => Said::Alias,
        }),
        Reason::NotFound { kind: "external-relay", .. } => Some(Said::Relayed),
        Reason::NotFound { .. } => Some(Said::Unknown),
        Reason::Postmaster { .. } => Some(Said::Postmaster),
        Reason::Foreign { .. } | Reason::Space { .. } => Some(Said::Relayed),
        _ => None,
    };
    because.iter().find_map(of).unwrap_or(Said::Relayed)
}

/// What the directory had to do with a refusal. A recipient whom nobody knows is refused for that; any other, whatever the
/// directory said, for something else.
pub(super) fn said_of(refusal: &Refusal) -> Said {
    match (&refusal.kind, said(&refusal.because)) {
        (RefusalKind::UnknownRecipient, Said::Unknown) => Said::Unknown,
        _ => Said::Refused,
    }
}

/// The ways of a message that was accepted.
fn ways(message: &Message, noted: &[Noted], is_report: bool, now: i64) -> Box<[Way]> {
    let known: Option<HashMap<(&Address, &str), &Noted>> =
        (noted.len() > FEW).then(|| noted.iter().rev().map(|noted| (noted.key(), noted)).collect());
    let find = |to: &Address, via: &ConnectorName| {
        if is_report {
            return Said::Report;
        }
        let key = (to, &*via.0);
        let found = match &known {
            Some(known) => known.get(&key).copied(),
            None => noted.iter().find(|noted| noted.key() == key),
        };
        found.map_or(Said::Relayed, |noted| said(noted.because()))
    };
    let mut ways = Vec::with_capacity(message.copies.iter().map(|copy| copy.recipients.len()).sum());
    for (number, copy) in message.copies.iter().enumerate() {
        for (index, one) in copy.recipients.iter().enumerate() {
            let to = &one.recipient.address;
            ways.push(Way::new(copy, (number as u16, index as u16), to, find(to, &copy.via), now));
        }
    }
    ways.into_boxed_slice()
}

impl Relay {
    /// From now on it is noted what went where. Again: it goes on.
    pub fn watch_flow(&self) {
        self.0.recent.begin();
    }

    /// Nobody asks any more.
    pub fn forget_flow(&self) {
        self.0.recent.end();
    }

    /// A message was accepted; `origin` is `None` for a report of our own.
    pub(super) fn flow_in(
        &self,
        message: &Message,
        origin: Option<(Origin, &ConnectorName)>,
        size: u64,
        noted: &[Noted],
    ) {
        if !self.0.recent.is_on() {
            return;
        }
        let now = clock::wall().as_microsecond();
        let passage = Passage {
            id: Some(message.id),
            from: message.envelope.sender.clone(),
            size,
            origin: origin.map(|(origin, _)| origin),
            by: origin.map_or_else(|| ConnectorName(Arc::from("")), |(_, by)| by.clone()),
            ways: ways(message, noted, origin.is_none(), now),
        };
        self.0.recent.lock().mail.push(passage, RECIPIENTS);
    }

    /// Recipients were refused, before there was a message; `said` is what the directory had to do with it.
    pub(super) fn flow_refused<'a>(
        &self,
        (origin, said): (Origin, Said),
        by: &ConnectorName,
        from: Option<&Address>,
        to: impl Iterator<Item = &'a Address>,
    ) {
        if !self.0.recent.is_on() {
            return;
        }
        let now = clock::wall().as_microsecond();
        let nowhere = HopCopy { via: ConnectorName(Arc::from("")), hop: Hop::SmartHosts, recipients: Vec::new() };
        let way = |to: &Address| {
            let way = Way::new(&nowhere, (0, 0), to, said, now);
            way.set(State::Failed, now);
            way
        };
        let ways: Box<[Way]> = to.map(way).collect();
        let passage = Passage { id: None, from: from.cloned(), size: 0, origin: Some(origin), by: by.clone(), ways };
        self.0.recent.lock().refused.push(passage, REFUSED);
    }

    /// What an attempt brought some recipients of a copy.
    pub(super) fn flow_out(&self, tried: &Tried<'_>, indexes: impl Iterator<Item = u16> + Clone, state: State) {
        if !self.0.recent.is_on() {
            return;
        }
        let now = clock::wall().as_microsecond();
        if self.flow_settled((tried.message.id, tried.item.copy), indexes.clone(), state, now) {
            return;
        }
        let (message, copy) = (tried.message, tried.copy());
        let config = &self.snapshot().config;
        let by = config.receive_connectors.iter().find(|one| *one.name.0 == *message.connector);
        let way = |index: u16| {
            let one = copy.recipients.get(usize::from(index))?;
            let said = if message.connector.is_empty() { Said::Report } else { Said::Earlier };
            let way = Way::new(copy, (tried.item.copy, index), &one.recipient.address, said, now);
            way.set(state, now);
            Some(way)
        };
        let passage = Passage {
            id: Some(message.id),
            from: message.envelope.sender.clone(),
            size: message.content.len(),
            origin: if message.connector.is_empty() { None } else { Some(by.map_or(Origin::Internet, |by| by.origin)) },
            by: by.map_or_else(|| ConnectorName(Arc::from(&*message.connector)), |by| by.name.clone()),
            ways: indexes.filter_map(way).collect(),
        };
        self.0.recent.lock().mail.push(passage, RECIPIENTS);
    }

    /// The same, if the message is still known.
    fn flow_settled(
        &self,
        (id, copy): (MessageId, u16),
        indexes: impl Iterator<Item = u16>,
        to: State,
        now: i64,
    ) -> bool {
        let Some(passage) = self.0.recent.lock().mail.find(id).cloned() else { return false };
        let mut found = false;
        for index in indexes {
            // They stand in this order.
            if let Ok(place) = passage.ways.binary_search_by_key(&(copy, index), |way| way.place) {
                passage.ways[place].set(to, now);
                found = true;
            }
        }
        found
    }

    /// Recipients of a copy go on as `on`, another way: they count there, and no more where they went before.
    pub(super) fn flow_moved(&self, tried: &Tried<'_>, moved: &[u16], on: &Message, noted: &[Noted]) {
        if !self.0.recent.is_on() {
            return;
        }
        // Longer ago than anybody can ask about.
        self.flow_settled((tried.item.id, tried.item.copy), moved.iter().copied(), State::Waiting, 0);
        let config = &self.snapshot().config;
        let by = config.receive_connectors.iter().find(|one| *one.name.0 == *on.connector);
        self.flow_in(on, by.map(|by| (by.origin, &by.name)), on.content.len(), noted);
    }

    /// An operator took recipients away.
    pub(super) fn flow_removed(&self, id: MessageId, copy: u16, indexes: &[u16]) {
        if self.0.recent.is_on() {
            let now = clock::wall().as_microsecond();
            self.flow_settled((id, copy), indexes.iter().copied(), State::Failed, now);
        }
    }

    /// How much went each way in the last `minutes`.
    pub fn flow(&self, minutes: u32) -> Flow {
        let now = clock::wall();
        let (since, complete, passages) = self.0.recent.since(minutes, now);
        let paths = summed(paths(&passages, since, &self.snapshot().config));
        Flow { since, until: now, complete, paths }
    }

    /// Recipients that went such a way in the last `minutes`.
    pub fn flow_messages(&self, minutes: u32, wanted: &Wanted, limit: usize) -> Listed {
        let (since, _, passages) = self.0.recent.since(minutes, clock::wall());
        let config = &self.snapshot().config;
        // Those that have a band of their own are none of the others.
        let mut paths = if wanted.hop == OTHERS { paths(&passages, since, config) } else { Vec::new() };
        paths.truncate(PATHS);
        let told_apart: HashSet<_> = paths.iter().map(Path::key).collect();
        let mut hops = Hops::new(config);
        let same = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
        let mut found: Vec<(i64, &Passage, &Way)> = Vec::new();
        for passage in &passages {
            if !same(&wanted.origin, passage.origin()) || !same(&wanted.receive_connector, &passage.by.0) {
                continue;
            }
            for way in &passage.ways {
                let at = way.at();
                let is_one = at >= since.as_microsecond()
                    && wanted.verdict.is_none_or(|said| said == way.said)
                    && wanted.state.is_none_or(|state| state == way.state())
                    && same(&wanted.connector, way.via.0.trim())
                    && match wanted.hop.as_str() {
                        "" => true,
                        OTHERS => {
                            let (origin, by, via) = (passage.origin(), &*passage.by.0, way.via.0.trim());
                            !told_apart.contains(&(origin, by, way.said, via, hops.name(way)))
                        }
                        hop => hops.name(way) == hop,
                    };
                if is_one {
                    found.push((at, passage, way));
                }
            }
        }
        found.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
        let more = found.len().saturating_sub(limit);
        found.truncate(limit);
        let line = |(at, passage, way): (i64, &Passage, &Way)| Line {
            time: Timestamp::from_microsecond(at).unwrap_or_default(),
            id: passage.id.map(|id| id.to_string()),
            from: passage.from.as_ref().map(ToString::to_string).unwrap_or_default(),
            to: way.to.to_string(),
            state: way.state(),
            origin: passage.origin().to_owned(),
            receive_connector: passage.by.0.to_string(),
            verdict: way.said,
            connector: way.via.0.trim().to_owned(),
            hop: hops.name(way).to_owned(),
        };
        Listed { messages: found.into_iter().map(line).collect(), more }
    }
}

/// What the next hops are called, each found out once.
struct Hops<'a> {
    config: &'a Config,
    names: HashMap<(ConnectorName, Hop), String>,
}

impl<'a> Hops<'a> {
    fn new(config: &'a Config) -> Self {
        Self { config, names: HashMap::default() }
    }

    /// The smart hosts, or the domain whose MX it is; empty where the way ends here.
    fn name(&mut self, way: &Way) -> &str {
        let name = || match &way.hop {
            _ if way.via.0.trim().is_empty() => String::new(),
            Hop::SmartHosts => next_hop(self.config.send_connector(&way.via), &way.hop),
            Hop::Mx(domain) => domain.to_string(),
        };
        self.names.entry((way.via.clone(), way.hop.clone())).or_insert_with(name)
    }
}

/// Those beyond the limit are summed: of sums there are as few as the configuration has connectors.
fn summed(mut paths: Vec<Path>) -> Vec<Path> {
    for path in paths.split_off(paths.len().min(PATHS)) {
        let path = Path { hop: OTHERS.to_owned(), ..path };
        match paths[PATHS..].iter_mut().find(|sum| sum.key() == path.key()) {
            Some(sum) => sum.add(&path),
            None => paths.push(path),
        }
    }
    paths
}

/// A way as a key of sums.
type Key<'a> = (&'a str, &'a str, Said, &'a str, &'a Hop);

/// All of them, the fullest first.
fn paths(passages: &[Arc<Passage>], since: Timestamp, config: &Config) -> Vec<Path> {
    let mut sums: HashMap<Key<'_>, (Path, &Way)> = HashMap::default();
    for passage in passages {
        for way in passage.ways.iter().filter(|way| way.at() >= since.as_microsecond()) {
            let key = (passage.origin(), &*passage.by.0, way.said, &*way.via.0, &way.hop);
            let (path, _) = sums.entry(key).or_insert_with(|| {
                let path = Path {
                    origin: passage.origin().to_owned(),
                    receive_connector: passage.by.0.to_string(),
                    verdict: way.said,
                    connector: way.via.0.trim().to_owned(),
                    hop: String::new(),
                    delivered: 0,
                    deferred: 0,
                    failed: 0,
                    waiting: 0,
                    bytes: 0,
                };
                (path, way)
            });
            path.count(way.state(), passage.size);
        }
    }
    let mut hops = Hops::new(config);
    let mut paths: Vec<Path> =
        sums.into_values().map(|(path, way)| Path { hop: hops.name(way).to_owned(), ..path }).collect();
    // Equal ones stand in the same order each time: a picture that refreshes does not jump.
    paths.sort_by_cached_key(|path| {
        (
            std::cmp::Reverse(path.recipients()),
            path.connector.clone(),
            path.hop.clone(),
            path.origin.clone(),
            path.verdict,
        )
    });
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Domain;

    fn passage(id: u64, to: &[&str], domain: &str, at: i64) -> Passage {
        let copy = HopCopy {
            via: ConnectorName("out".into()),
            hop: Hop::Mx(Domain::parse(domain).unwrap()),
            recipients: Vec::new(),
        };
        let way = |(index, to): (usize, &&str)| {
            Way::new(&copy, (0, index as u16), &Address::parse(to).unwrap(), Said::Relayed, at)
        };
        Passage {
            id: Some(MessageId(id)),
            from: None,
            size: 10,
            origin: Some(Origin::Internet),
            by: ConnectorName("in".into()),
            ways: to.iter().enumerate().map(way).collect(),
        }
    }

    #[test]
    fn only_whom_nobody_knows_is_refused_by_the_directory() {
        let domain = || Domain::parse("contoso.com").unwrap();
        let unknown = || Reason::NotFound { domain: domain(), kind: "authoritative" };
        for (kind, because, expected) in [
            (RefusalKind::UnknownRecipient, vec![unknown()], Said::Unknown),
            (RefusalKind::UnknownRecipient, vec![], Said::Refused),
            (RefusalKind::NoRoute, vec![unknown()], Said::Refused),
            (
                RefusalKind::RelayDenied,
                vec![Reason::NotFound { domain: domain(), kind: "external-relay" }],
                Said::Refused,
            ),
        ] {
            let refusal = Refusal { asked: Address::parse("nobody@contoso.com").unwrap(), kind, because };
            assert_eq!(said_of(&refusal), expected, "{refusal:?}");
        }
    }

    #[test]
    fn a_ring_holds_so_many_recipients_and_says_what_it_lost() {
        let mut ring = Ring::default();
        for id in 0..10 {
            ring.push(passage(id, &["a@x.example", "b@x.example"], "x.example", id as i64), 6);
        }
        assert_eq!((ring.passages.len(), ring.recipients, ring.places.len()), (3, 6, 3));
        assert_eq!(ring.lost, Some(6));
        for (id, known) in [(0, false), (6, false), (7, true), (9, true), (10, false)] {
            assert_eq!(ring.find(MessageId(id)).is_some_and(|found| found.id == Some(MessageId(id))), known, "{id}");
        }
        ring.find(MessageId(7)).unwrap().ways[0].set(State::Delivered, 99);
        ring.push(passage(10, &["a@x.example"; 2], "x.example", 10), 6);
        assert_eq!(ring.lost, Some(99), "what changed last counts, not when it came");
        // One that comes again under its number, after it was put out, is found at its new place.
        ring.push(passage(7, &["a@x.example"], "x.example", 100), 6);
        assert_eq!(ring.find(MessageId(7)).unwrap().ways.len(), 1);
        for id in 20..40 {
            ring.push(passage(id, &["a@x.example"], "x.example", 101), 6);
        }
        assert!(ring.find(MessageId(7)).is_none());
        assert_eq!((ring.places.len(), ring.recipients), (6, 6));
    }

    #[test]
    fn a_ring_holds_so_many_bytes() {
        let mut ring = Ring::default();
        let one = passage(1, &["a@x.example"], "x.example", 1).bytes();
        for id in 0..(BYTES / one + 10) as u64 {
            ring.push(passage(id, &["a@x.example"], "x.example", 1), usize::MAX);
        }
        assert!(ring.bytes <= BYTES && ring.bytes > BYTES - 2 * one, "{}", ring.bytes);
        assert_eq!(ring.bytes, ring.passages.iter().map(|passage| passage.bytes()).sum::<usize>());
    }

    #[test]
    fn what_cannot_be_told_apart_is_summed() {
        let world = crate::route::world::World::on_premises();
        let mut passages = Vec::new();
        for number in 0..PATHS + 50 {
            let domain = format!("d{number}.example");
            // The first has the most recipients.
            let to = vec!["a@x.example"; 1 + usize::from(number == 7)];
            passages.push(Arc::new(passage(number as u64, &to, &domain, 1000)));
        }
        let since = Timestamp::from_microsecond(1000).unwrap();
        let paths = summed(paths(&passages, since, &world.config));
        assert_eq!(paths.len(), PATHS + 1);
        assert_eq!((paths[0].hop.as_str(), paths[0].waiting, paths[0].bytes), ("d7.example", 2, 20));
        let others = &paths[PATHS];
        assert_eq!((others.hop.as_str(), others.waiting, others.bytes), (OTHERS, 50, 500));
        let all: u64 = paths.iter().map(Path::recipients).sum();
        assert_eq!(all, PATHS as u64 + 51);
        let later = Timestamp::from_microsecond(1001).unwrap();
        assert!(super::paths(&passages, later, &world.config).is_empty(), "of the time that is asked about only");
    }
}
