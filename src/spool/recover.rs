//! What a start finds; what goes to `corrupt/`.
//!
//! Segments are read once, in order, every byte of every record checked. Bytes that are no record and have good
//! ones behind them are damage if a later batch was begun behind them (they had been synced then): they go to
//! `corrupt/` with a reason, and the rest is read. Otherwise they are the torn end of a write that nobody was told of:
//! passed over quietly.
//!
//! Nothing in the log is changed here, so a start that is itself killed costs nothing.

use std::fmt;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::disk::{Disk, DiskFile, crash_point, read_full_at, write_all_at};
use super::format::{
    self, Kind, RECORD_HEAD, RECORD_MARK, RecordHead, SEGMENT_HEAD, Salt, SegmentHead, VERSION, checksum,
};
use super::index::{Entry, Fate, Place, Segment};
use super::shelf::Folders;
use super::{Deferral, OpenError, Settlement, Shared, Waiting};
use crate::config::ConnectorName;
use crate::message::MessageId;
use crate::random::{HashMap, HashSet};
use crate::route::{Hop, HopCopy};

/// How much of a damaged stretch is kept for the operator, in bytes: more than any record is.
const KEPT: u32 = 32 << 20;
/// So often in all a read that failed is tried again, after a pause. A start has to go on without what it could not
/// read, so it does not take the first no for an answer.
const TRIES: u32 = 10;
/// How much is read at a time.
const BLOCK: usize = 1 << 20;
/// So many messages are put into the index while it is held once.
const AT_ONCE: usize = 1000;

/// A segment that was there before.
#[derive(Debug)]
pub(crate) struct Old {
    pub number: u32,
    file: Arc<dyn DiskFile>,
    pub size: u32,
    salt: Salt,
    /// Its head could not be read, for this reason, and without it nothing else can.
    unread: Option<String>,
}

impl Old {
    /// Looks at its head, which is there as well if it can be read.
    fn open(number: u32, file: Arc<dyn DiskFile>, patience: &mut Patience) -> io::Result<(Self, Option<SegmentHead>)> {
        let mut bytes = [0; SEGMENT_HEAD as usize + RECORD_HEAD];
        let read = patience.read(&*file, &mut bytes, 0);
        let unread = read.as_ref().err().map(|error| format!("the head of the segment cannot be read: {error}"));
        // A head that is damaged is one thing; the first record behind it still has the salt.
        let head = SegmentHead::decode(&bytes[..read.unwrap_or(0)]);
        let salt = head.map(|head| head.salt).or_else(|| Salt::of_record(&bytes[SEGMENT_HEAD as usize..]));
        let size = u32::try_from(file.length()?).unwrap_or(u32::MAX);
        // Without a salt nothing in it reads, and nothing was ever acknowledged in it.
        Ok((Self { number, file, size, salt: salt.unwrap_or_else(Salt::random), unread }, head))
    }

    /// Does it hold nothing but marks, which say how far others were synced? It was made ahead, or nothing came before the stop.
    pub fn is_unused(&self) -> bool {
        if self.unread.is_some() {
            return false;
        }
        let mut buffer = Vec::new();
        let mut window =
            Window { file: &*self.file, buffer: &mut buffer, start: 0, filled: 0, patience: Patience::default() };
        let mut offset = SEGMENT_HEAD;
        while let Ok(bytes) = window.get(offset, RECORD_HEAD)
            && let Some(head) = RecordHead::decode(bytes, self.salt, self.number, offset)
        {
            if head.kind != Kind::Mark || u64::from(offset) + head.size() > u64::from(self.size) {
                return false;
            }
            offset += head.size() as u32;
        }
        // A block that cannot be read may hold anything.
        (offset..self.size)
            .step_by(BLOCK / 2)
            .all(|at| window.get(at, (self.size - at).min(BLOCK as u32 / 2) as usize).is_ok())
            && search(self, &mut window, offset).is_none()
    }

    /// As the index keeps it, before it was read.
    pub fn segment(&self) -> Segment {
        Segment {
            file: self.file.clone(),
            size: self.size,
            salt: self.salt,
            end: SEGMENT_HEAD,
            live: 0,
            live_bytes: 0,
            ids: Vec::new(),
            // Whether a sync of it failed in its own run nobody knows any more; such a file is not to be touched again.
            fate: Fate::Remove,
        }
    }
}

/// What a look at the heads of all segments finds.
#[derive(Debug)]
pub(crate) struct Found {
    pub segments: Vec<Old>,
    pub spare: Vec<PathBuf>,
    /// The next number.
    pub next: u32,
    /// The newest generation.
    pub generation: u64,
}

/// Looks at every head and changes nothing.
pub(crate) fn look(disk: &dyn Disk, folders: &Folders, pause: Duration) -> Result<Found, OpenError> {
    let io_error = |path: &PathBuf| {
        let path = path.clone();
        move |error| OpenError::Io { path, error }
    };
    let mut patience = Patience::new(pause);
    let mut found = Found { segments: Vec::new(), spare: Vec::new(), next: 1, generation: 0 };
    for name in disk.list(&folders.log).map_err(io_error(&folders.log))? {
        let path = folders.log.join(&name);
        if Folders::is_spare(&name) {
            found.spare.push(path);
            continue;
        }
        let Some(number) = Folders::segment_number(&name) else { continue };
        let file = disk.open(&path).map_err(io_error(&path))?;
        let (old, head) = Old::open(number, file, &mut patience).map_err(io_error(&path))?;
        if let Some(head) = head {
            if head.version > VERSION {
                return Err(OpenError::Newer { path, found: head.version });
            }
            found.generation = found.generation.max(head.generation);
        }
        found.next = found.next.max(number.saturating_add(1));
        found.segments.push(old);
    }
    found.segments.sort_by_key(|old| old.number);
    Ok(found)
}

/// What is left to do after [`super::Spool::open`]: reading what was there before.
#[derive(Debug)]
#[must_use = "mail that was accepted before is found by `run`"]
pub struct Recovery {
    shared: Arc<Shared>,
    old: Vec<Old>,
    /// The names in `large/`, as they were when the spool was opened.
    own: Vec<String>,
}

/// What a start found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The copies that wait, in the order in which their messages came; none where they were handed on already.
    pub waiting: Vec<Waiting>,
    /// What could not be read and was set aside now.
    pub corrupt: Vec<CorruptRecord>,
    /// How many messages wait.
    pub messages: usize,
    /// Stretches that a crash left unfinished. They are no loss: nobody had been told of them.
    pub torn: usize,
    /// Files of large messages without a record, removed now.
    pub orphans: usize,
}

/// A stretch of a segment that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorruptRecord {
    /// Where its bytes were set aside; beside it lies a text with the reason. If that failed: the segment itself.
    pub path: PathBuf,
    /// The segment.
    pub segment: u32,
    /// Where in it.
    pub offset: u32,
    /// How long it is.
    pub length: u32,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for CorruptRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, segment, offset, length, reason } = self;
        write!(f, "{length} bytes at {offset} of segment {segment:08x} were set aside as {}: {reason}", path.display())
    }
}

impl Recovery {
    pub(crate) fn new(shared: Arc<Shared>, old: Vec<Old>, own: Vec<String>) -> Self {
        Self { shared, old, own }
    }

    /// Reads it. Blocking, for as long as the disk takes to give all that waits.
    pub fn run(self) -> Recovered {
        let mut waiting = Vec::new();
        let recovered = self.run_with(|some, _| waiting.extend(some));
        Recovered { waiting, ..recovered }
    }

    /// The same, but hands on what waits some at a time, in the order in which it came, instead of all in the end: a
    /// million of them need not be in memory a second time, and new mail waits for the index no longer than some take.
    /// With them comes the latest time that any record carries: until about then the spool was written.
    pub fn run_with(self, mut take: impl FnMut(Vec<Waiting>, Option<Timestamp>)) -> Recovered {
        let Self { shared, old, own } = self;
        let mut scan = Scan::of(&old, Patience::new(shared.options.pause));
        // Who was killed may have written what was never synced. It has been read, and much follows from it.
        for old in &old {
            if let Err(error) = old.file.sync() {
                tracing::error!(%error, segment = old.number, "what was read at the start may not be on the disk");
            }
        }
        let mut recovered = Recovered { torn: scan.torn, ..Recovered::default() };
        let damaged = std::mem::take(&mut scan.damaged);
        for (segment, from, to, reason) in damaged.iter().cloned() {
            let Some(file) = old.iter().find(|old| old.number == segment).map(|old| &old.file) else { continue };
            let (path, is_new) = match set_aside(&*shared.disk, &shared.folders, segment, &**file, (from, to), &reason)
            {
                Ok(done) => done,
                Err(error) => {
                    tracing::error!(%error, segment, offset = from, "a damaged record could not be set aside");
                    scan.unreadable.insert(segment);
                    (shared.folders.segment(segment), true)
                }
            };
            if is_new {
                tracing::error!(segment, offset = from, reason, path = %path.display(), "a damaged record was set aside");
                recovered.corrupt.push(CorruptRecord { path, segment, offset: from, length: to - from, reason });
            }
        }
        crash_point("recover.set_aside");

        let is_damaged = !damaged.is_empty();
        let Scan { messages, plans, ends, unreadable, latest, .. } = scan;
        let mut found: Vec<_> = messages.into_iter().collect();
        // Numbers grow in the order in which messages came.
        found.sort_unstable_by_key(|(id, _)| *id);
        recovered.messages = found.len();
        let known: HashSet<u64> =
            found.iter().filter_map(|(_, seen)| Some(seen.entry.own.as_ref()?.number.get())).collect();
        let mut index = shared.lock_index();
        for (number, end) in ends {
            if let Some(segment) = index.segments.get_mut(&number) {
                segment.end = end;
                if unreadable.contains(&number) {
                    segment.fate = Fate::Keep;
                }
            }
        }
        index.reserve(found.len());
        drop(index);
        let mut found = found.into_iter();
        while found.len() > 0 {
            let mut waiting = Vec::with_capacity(AT_ONCE);
            let mut index = shared.lock_index();
            for (id, Seen { entry, accepted, plan }) in found.by_ref().take(AT_ONCE) {
                waiting.extend(entry.waiting(id, accepted, &plans[plan as usize]));
                let place = entry.place;
                index.insert(id, entry, place);
            }
            shared.count_waiting(&index);
            drop(index);
            // Whoever takes them may have them tried at once; their entries are there.
            take(waiting, latest);
        }
        shared.lock_index().scanned = true;

        // What could not be read may have named one of these files, so they are kept with it.
        let unnamed = own.iter().filter_map(|name| Folders::own_number(name)).filter(|number| !known.contains(number));
        for number in unnamed {
            let file = shared.folders.own(number);
            if is_damaged {
                match shared.keep_own(number) {
                    Ok(()) => tracing::error!(path = %file.display(), "a file that no record names was set aside"),
                    Err(error) => tracing::error!(%error, path = %file.display(), "a file cannot be set aside"),
                }
            } else if shared.disk.remove(&file).is_ok() {
                recovered.orphans += 1;
            }
        }
        shared.kick_keeper();
        recovered
    }
}

/// What a segment says, for whoever has nothing but the file.
#[derive(Debug)]
pub struct Survey {
    /// The messages that wait in it, in the order of their numbers.
    pub messages: Vec<Surveyed>,
    /// Stretches that could not be read: from, to, why.
    pub damaged: Vec<(u32, u32, String)>,
    /// Stretches that a crash left unfinished.
    pub torn: usize,
    /// Up to where it holds records.
    pub end: u32,
}

/// A message that waits.
#[derive(Debug)]
pub struct Surveyed {
    /// Its number.
    pub id: MessageId,
    /// Where its record stands.
    pub offset: u32,
    /// For each of its copies, which recipients are not settled.
    pub open: Vec<Vec<u16>>,
    /// Those of its copies of which somebody is open.
    pub copies: Vec<Waiting>,
}

/// Reads one segment as a start would read it were it the only one, and changes nothing.
///
/// # Errors
/// What the file system says. What is wrong with the segment is no error: it is in the answer.
pub fn survey(number: u32, file: Arc<dyn DiskFile>) -> io::Result<Survey> {
    let (old, _) = Old::open(number, file, &mut Patience::default())?;
    let scan = Scan::of(&[old], Patience::default());
    let plans = scan.plans;
    let mut messages: Vec<_> = scan
        .messages
        .into_iter()
        .map(|(id, Seen { entry, accepted, plan })| Surveyed {
            id,
            offset: entry.place.offset,
            open: entry.open(),
            copies: entry.waiting(id, accepted, &plans[plan as usize]).collect(),
        })
        .collect();
    messages.sort_unstable_by_key(|message| message.id);
    let damaged = scan.damaged.into_iter().map(|(_, from, to, reason)| (from, to, reason)).collect();
    let end = scan.ends.first().map_or(SEGMENT_HEAD, |&(_, end)| end);
    Ok(Survey { messages, damaged, torn: scan.torn, end })
}

/// What reading the log brings to light.
#[derive(Debug, Default)]
struct Scan {
    messages: HashMap<MessageId, Seen>,
    /// What messages settle by existing.
    settles: Vec<(MessageId, Settlement)>,
    /// Messages that never were.
    cancelled: HashSet<MessageId>,
    /// Connectors and hops of a message's copies, each list once for all messages that share it.
    plans: Vec<Plan>,
    /// Where in `plans` a list stands.
    plan_numbers: HashMap<Plan, u32>,
    /// One of each connector's name, for all lists.
    names: HashSet<Arc<str>>,
    /// Stretches that are no records: segment, from, to, reason.
    suspects: Vec<(u32, u32, u32, String)>,
    /// Up to where each segment was surely synced, as far as later records say.
    synced: HashMap<u32, u32>,
    /// Up to where each segment holds records.
    ends: Vec<(u32, u32)>,
    /// Segments that may tell more another time.
    unreadable: HashSet<u32>,
    damaged: Vec<(u32, u32, u32, String)>,
    torn: usize,
    /// The latest time that a record carries.
    latest: Option<Timestamp>,
    patience: Patience,
}

/// A message that was found, with what the index does not keep of it.
#[derive(Debug)]
struct Seen {
    entry: Box<Entry>,
    accepted: Timestamp,
    /// Connector and hop of each copy, by the number of their list.
    plan: u32,
}

/// Connector and hop of each copy.
type Plan = Arc<[(ConnectorName, Hop)]>;

/// Bytes where a record should be.
struct Bad {
    /// Where the next one should be, if that is known.
    end: Option<u32>,
    reason: String,
    /// It cannot have come from a crash.
    is_damage: bool,
}

impl Scan {
    /// Reads all segments, which are in order.
    fn of(segments: &[Old], patience: Patience) -> Self {
        let mut scan = Self { patience, ..Self::default() };
        let mut buffer = Vec::new();
        for segment in segments {
            scan.segment(segment, &mut buffer);
            crash_point("recover.segment");
        }
        scan.judge();
        for (by, settlement) in std::mem::take(&mut scan.settles) {
            if !scan.cancelled.contains(&by) {
                scan.settle(&settlement);
            }
        }
        scan
    }

    /// Reads one segment.
    fn segment(&mut self, old: &Old, buffer: &mut Vec<u8>) {
        if let Some(reason) = &old.unread {
            self.damaged.push((old.number, 0, old.size, reason.clone()));
            self.unreadable.insert(old.number);
            self.ends.push((old.number, SEGMENT_HEAD));
            return;
        }
        // Lent, so that what is read and what comes of it can be changed at once.
        let patience = std::mem::take(&mut self.patience);
        let mut window = Window { file: &*old.file, buffer, start: 0, filled: 0, patience };
        let mut offset = SEGMENT_HEAD;
        let mut end = SEGMENT_HEAD;
        while u64::from(offset) + RECORD_HEAD as u64 <= u64::from(old.size) {
            let bad = match self.record(old, &mut window, offset) {
                Ok(next) => {
                    offset = next;
                    end = next;
                    continue;
                }
                Err(bad) => bad,
            };
            // A good head says where the next record is, even if the payload is damaged.
            let next = search(old, &mut window, bad.end.unwrap_or(offset + 1));
            // The usual end: preallocated, and in this life of the file never written.
            let is_end = next.is_none() && !bad.is_damage && !window.begins_record(offset, old.salt);
            let to = next.or(bad.end).unwrap_or(0);
            if bad.is_damage {
                let to = if to > offset { to } else { (offset + 4096).min(old.size) };
                self.damaged.push((old.number, offset, to, bad.reason));
                self.unreadable.insert(old.number);
            } else {
                self.suspects.push((old.number, offset, to, if is_end { String::new() } else { bad.reason }));
            }
            match next {
                Some(next) => offset = next,
                None => break,
            }
        }
        self.patience = window.patience;
        self.ends.push((old.number, end));
    }

    /// Reads the record at `offset` and gives where it ends.
    fn record(&mut self, old: &Old, window: &mut Window<'_>, offset: u32) -> Result<u32, Bad> {
        let torn = |end, reason: &str| Bad { end, reason: reason.to_owned(), is_damage: false };
        // A crash leaves bytes that mean nothing; it does not leave some that cannot be read, or that are whole and
        // make no sense.
        let damage = |end, reason| Bad { end, reason, is_damage: true };
        let bytes = window.get(offset, RECORD_HEAD).map_err(|error| damage(None, error))?;
        let head = RecordHead::decode(bytes, old.salt, old.number, offset)
            .ok_or_else(|| torn(None, "no record begins here"))?;
        let end = u64::from(offset) + head.size();
        if end > u64::from(old.size) {
            return Err(torn(None, "it is longer than its segment"));
        }
        // Fits: `size` is 32 bits.
        let end = end as u32;
        let payload = window.get(offset + RECORD_HEAD as u32, head.length as usize);
        let payload = payload.map_err(|error| damage(Some(end), error))?;
        if checksum(payload) != head.crc {
            return Err(torn(Some(end), "its checksum does not match"));
        }
        // Everything before its batch had been synced when that was written.
        let synced = self.synced.entry(old.number).or_default();
        *synced = (*synced).max(head.batch);
        let place = Place { segment: old.number, offset, size: head.size() as u32 };
        self.apply(head.kind, payload, place).map_err(|error| damage(Some(end), error.to_string()))?;
        Ok(end)
    }

    fn apply(&mut self, kind: Kind, payload: &[u8], place: Place) -> Result<(), format::Malformed> {
        match kind {
            Kind::Message => {
                let mut decoded = format::decode_message(payload, payload.len() as u64)?;
                let (settles, deferred) = (std::mem::take(&mut decoded.settles), std::mem::take(&mut decoded.deferred));
                let (id, accepted) = (decoded.id, decoded.accepted);
                self.latest = self.latest.max(Some(accepted));
                match self.messages.get_mut(&id) {
                    // It was copied to the front.
                    Some(seen) => seen.entry.place = place,
                    None => {
                        let entry = Entry::found(&decoded, place);
                        if !entry.is_done() {
                            let plan = self.plan(decoded.copies);
                            self.messages.insert(id, Seen { entry, accepted, plan });
                        }
                    }
                }
                // What it says of itself, in a copied record, is so. What it says of others is so if it was not cancelled.
                for one in settles {
                    if one.id == id { self.settle(&one) } else { self.settles.push((id, one)) }
                }
                deferred.iter().for_each(|one| self.defer(one));
            }
            Kind::Settled => format::decode_settled(payload)?.iter().for_each(|one| self.settle(one)),
            Kind::Deferred => format::decode_deferred(payload)?.iter().for_each(|one| self.defer(one)),
            Kind::Removed => {
                for id in format::decode_removed(payload)? {
                    self.messages.remove(&id);
                }
            }
            Kind::Cancelled => {
                for id in format::decode_removed(payload)? {
                    self.messages.remove(&id);
                    self.cancelled.insert(id);
                }
            }
            Kind::Mark => {
                let (segment, end) = format::decode_mark(payload)?;
                let synced = self.synced.entry(segment).or_default();
                *synced = (*synced).max(end);
            }
        }
        Ok(())
    }

    fn settle(&mut self, settlement: &Settlement) {
        if let Some(seen) = self.messages.get_mut(&settlement.id) {
            seen.entry.settle(settlement);
            if seen.entry.is_done() {
                self.messages.remove(&settlement.id);
            }
        }
    }

    fn defer(&mut self, deferral: &Deferral) {
        self.latest = self.latest.max(Some(deferral.until));
        if let Some(seen) = self.messages.get_mut(&deferral.id) {
            seen.entry.defer(deferral);
        }
    }

    /// The number of these copies' list.
    fn plan(&mut self, copies: Vec<HopCopy>) -> u32 {
        let plan: Vec<_> = copies.into_iter().map(|copy| (copy.via, copy.hop)).collect();
        if let Some(number) = self.plan_numbers.get(plan.as_slice()) {
            return *number;
        }
        let plan: Plan = plan.into_iter().map(|(via, hop)| (self.name(via), hop)).collect();
        let number = u32::try_from(self.plans.len()).expect("memory ends before there are 2^32 lists");
        self.plans.push(Arc::clone(&plan));
        self.plan_numbers.insert(plan, number);
        number
    }

    fn name(&mut self, name: ConnectorName) -> ConnectorName {
        match self.names.get(&name.0) {
            Some(known) => ConnectorName(known.clone()),
            None => {
                self.names.insert(name.0.clone());
                name
            }
        }
    }

    /// Tells damage from what a crash left unfinished.
    fn judge(&mut self) {
        for (segment, from, to, reason) in std::mem::take(&mut self.suspects) {
            let synced = self.synced.get(&segment).copied().unwrap_or(0);
            if from < synced {
                // Nothing readable behind it: it ends where the synced part does.
                let to = if to > from { to } else { synced };
                let reason = if reason.is_empty() { "no record begins here".to_owned() } else { reason };
                self.damaged.push((segment, from, to, reason));
            } else if !reason.is_empty() {
                self.torn += 1;
            }
        }
    }
}

/// The next place from `from` on at which a record begins.
fn search(old: &Old, window: &mut Window<'_>, mut from: u32) -> Option<u32> {
    loop {
        if u64::from(from) + RECORD_HEAD as u64 > u64::from(old.size) {
            return None;
        }
        let wanted = (old.size - from).min(64 << 10) as usize;
        let Ok(bytes) = window.get(from, wanted) else {
            // An unreadable block: behind it the disk may be sound.
            from = from.checked_add(4096)?;
            continue;
        };
        match memchr::memchr(RECORD_MARK, &bytes[..wanted - (RECORD_HEAD - 1)]) {
            Some(at) => {
                let offset = from + at as u32;
                if RecordHead::decode(&bytes[at..], old.salt, old.number, offset).is_some() {
                    return Some(offset);
                }
                from = offset + 1;
            }
            None => from += (wanted - (RECORD_HEAD - 1)) as u32,
        }
    }
}

/// A stretch of a file in memory, moved along as it is read, so that every byte is read once.
struct Window<'a> {
    file: &'a dyn DiskFile,
    buffer: &'a mut Vec<u8>,
    start: u32,
    filled: usize,
    patience: Patience,
}

/// How often a read may still be tried again, and after what pause.
#[derive(Debug, Default)]
struct Patience {
    tries: u32,
    pause: Duration,
}

impl Patience {
    fn new(pause: Duration) -> Self {
        Self { tries: TRIES, pause }
    }

    fn read(&mut self, file: &dyn DiskFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match read_full_at(file, buffer, offset) {
                Err(_) if self.tries > 0 => {
                    self.tries -= 1;
                    std::thread::sleep(self.pause);
                }
                other => return other,
            }
        }
    }
}

impl Window<'_> {
    fn get(&mut self, offset: u32, len: usize) -> Result<&[u8], String> {
        let inside = offset >= self.start && (offset - self.start) as usize + len <= self.filled;
        if !inside {
            if self.buffer.len() < len.max(BLOCK) {
                self.buffer.resize(len.max(BLOCK), 0);
            }
            // What is already here of it moves to the front.
            let have = match offset.checked_sub(self.start) {
                Some(skip) if (skip as usize) < self.filled => {
                    self.buffer.copy_within(skip as usize..self.filled, 0);
                    self.filled - skip as usize
                }
                _ => 0,
            };
            self.start = offset;
            self.filled = have;
            match read_full_at(self.file, &mut self.buffer[have..], u64::from(offset) + have as u64) {
                Ok(read) => self.filled += read,
                // A smaller piece may still be readable beside a bad block.
                Err(_) => {
                    let read = self.patience.read(self.file, &mut self.buffer[..len], offset.into());
                    self.filled = 0;
                    self.filled = read.map_err(|error| error.to_string())?;
                }
            }
        }
        let at = (offset - self.start) as usize;
        self.buffer[..self.filled].get(at..at + len).ok_or_else(|| "the file ends before it".to_owned())
    }

    /// Do the bytes here look like a record at all?
    fn begins_record(&mut self, offset: u32, salt: Salt) -> bool {
        self.get(offset, RECORD_HEAD).is_ok_and(|bytes| Salt::of_record(bytes) == Some(salt))
    }
}

/// Copies a stretch of a segment to `corrupt/`, with the reason beside it. False if it had been done before.
pub(crate) fn set_aside(
    disk: &dyn Disk,
    folders: &Folders,
    segment: u32,
    file: &dyn DiskFile,
    (from, to): (u32, u32),
    reason: &str,
) -> io::Result<(PathBuf, bool)> {
    let name = format!("{segment:08x}-{from:08x}");
    let path = folders.corrupt.join(format!("{name}.record"));
    let text_path = folders.corrupt.join(format!("{name}.txt"));
    // The text is written last, so where it is the rest is.
    match disk.open(&text_path) {
        Ok(text) if text.length()? > 0 => return Ok((path, false)),
        _ => {}
    }
    let mut bytes = vec![0; to.saturating_sub(from).min(KEPT) as usize];
    // Block by block: one that cannot be read stays zero, and the others are kept.
    for (number, block) in bytes.chunks_mut(4096).enumerate() {
        let _ = read_full_at(file, block, u64::from(from) + number as u64 * 4096);
    }
    let text = format!(
        "segment: {}\noffset: {from}\nlength: {}\nreason: {reason}\n",
        folders.segment(segment).display(),
        to.saturating_sub(from)
    );
    for (path, content) in [(&path, bytes.as_slice()), (&text_path, text.as_bytes())] {
        let _ = disk.remove(path);
        let file = disk.create(path)?;
        write_all_at(&*file, &mut [IoSlice::new(content)], 0)?;
        file.sync()?;
    }
    disk.sync_folder(&folders.corrupt)?;
    Ok((path, true))
}
