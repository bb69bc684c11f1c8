//! The whole life of messages, from the files of one relay or of several.
//!
//! First the messages are found of which an event says what is asked for; then every event of these messages is
//! gathered, on all relays at hand, and those of the reports about them. A message is known by its Message-ID where
//! it has one, since that is what it keeps from relay to relay, else by its number on its relay. A number alone is not
//! enough where there is more: a spool that was begun anew may have given it a second time.
//!
//! Finished days answer from their index. The file of today, and one without an index, is read from end to end, in
//! pieces on all cores and without parsing what is of no interest. Memory is bounded: so many messages, so many
//! events each, pieces of a few MiB.
//!
//! Not here: how it is shown (`cli::trace`).

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::hash::BuildHasher;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use flate2::bufread::MultiGzDecoder;
use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};

use super::facts::{self, Facts, Time};
use super::files::{Form, Name, names};
use super::index::{Index, Key};
use super::shelf::{LINE_LIMIT, Lines};
use super::{Record, day};
use crate::message::MessageId;

mod words;

pub use words::{id, moment};

/// A piece of a plain file that one thread reads at once.
const PIECE: u64 = 4 << 20;
/// Threads that read; more than so many wait for the disk only.
const THREADS: usize = 8;
/// Events stand in the file in the order in which they were written; their times may be so much out of it.
const DISORDER: SignedDuration = SignedDuration::from_mins(10);
/// Messages that match are counted up to here.
pub const COUNTED: usize = 1_000_000;
/// Events of one message that are kept; a Message-ID that everybody uses must not fill the memory.
const EVENTS: usize = 10_000;
/// Events of all messages that are kept.
const ALL_EVENTS: usize = 200_000;
/// The same where others need the memory too.
const FEWER_EVENTS: usize = 10_000;
/// A message, its reports, and what the reports are called elsewhere: so many rounds find it all.
const ROUNDS: usize = 4;

/// What is asked for. An event must say all of it.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// The number of the message on its relay.
    pub id: Option<MessageId>,
    /// Its Message-ID, with brackets or without.
    pub message_id: Option<String>,
    /// Its sender, in whatever case; `<>` or nothing is the null sender.
    pub from: Option<String>,
    /// One of its recipients, in whatever case.
    pub to: Option<String>,
    /// From then on.
    pub since: Option<Timestamp>,
    /// Until then.
    pub until: Option<Timestamp>,
    /// So many messages, those with the latest events.
    pub limit: usize,
    /// What is not read by then is not read.
    pub deadline: Option<Instant>,
    /// Others need cores and memory too: one core is left alone, and fewer events are kept.
    pub gentle: bool,
}

/// The tracking files of one relay.
#[derive(Debug)]
pub struct Relay {
    /// What it is called where events are shown.
    pub name: String,
    days: Vec<Day>,
}

/// One file.
#[derive(Debug)]
struct Day {
    path: PathBuf,
    /// `None` where its name does not tell.
    date: Option<Date>,
    file: File,
    length: u64,
    packed: bool,
    index: OnceLock<Option<Index>>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Traced {
    /// The messages, the earliest first.
    pub stories: Vec<Story>,
    /// How many more match, and are older; [`COUNTED`] means as many or more.
    pub more: usize,
    /// Files that could not be read, or only slowly, in words.
    pub remarks: Vec<String>,
}

/// One message.
#[derive(Debug, Default)]
pub struct Story {
    /// Its events on all relays, in the order of time.
    pub events: Vec<Told>,
    /// Events left out, because there are too many.
    pub omitted: usize,
    /// The reports to its sender about it.
    pub reports: Vec<Story>,
}

/// One event.
#[derive(Debug, Clone)]
pub struct Told {
    /// Which of the relays says it.
    pub relay: usize,
    /// When it was.
    pub time: Timestamp,
    /// What it says.
    pub record: Record,
}

impl Relay {
    /// The files at `path`: a folder of tracking files, or one file, compressed or not.
    ///
    /// # Errors
    /// They cannot be opened.
    pub fn open(name: &str, path: &Path) -> io::Result<Self> {
        let name = name.to_owned();
        if !std::fs::metadata(path)?.is_dir() {
            return Ok(Self { name, days: vec![Day::open(path.to_path_buf())?] });
        }
        let mut attempts = 0;
        loop {
            let days = names(path)?.into_iter().map(|name| Day::open(path.join(name.to_string()))).collect();
            attempts += 1;
            match days {
                Ok(days) => return Ok(Self { name, days }),
                // A day was finished between the look and the opening.
                Err(error) if io::Error::kind(&error) == io::ErrorKind::NotFound && attempts < 3 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// True if there is no file at all.
    pub fn is_empty(&self) -> bool {
        self.days.is_empty()
    }
}

impl Day {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::open(&path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        let mut magic = [0; 2];
        let packed = metadata.len() >= 2 && file.read_exact_at(&mut magic, 0).is_ok() && magic == [0x1f, 0x8b];
        let date = Name::of(&path).map(|name| name.day);
        Ok(Self { path, date, file, length: metadata.len(), packed, index: OnceLock::new() })
    }

    fn index(&self) -> Option<&Index> {
        let open = || {
            let name = Name::of(&self.path)?.as_form(Form::Index);
            Index::open(&self.path.with_file_name(name.to_string()), self.length).ok()
        };
        self.index.get_or_init(open).as_ref()
    }

    /// The first line of a plain file that is `time` or later begins here or behind; by halving, since lines are
    /// nearly in order.
    fn position(&self, time: &Time) -> u64 {
        let (mut low, mut high) = (0, self.length);
        while high - low > PIECE {
            let middle = low + (high - low) / 2;
            match self.time_after(middle) {
                Some(found) if found < *time => low = middle,
                Some(_) | None => high = middle,
            }
        }
        low
    }

    /// The time of the first line that begins behind `offset`, looking not too far.
    fn time_after(&self, offset: u64) -> Option<Time> {
        let mut buffer = vec![0; 64 << 10];
        let read = read_at(&self.file, &mut buffer, offset).ok()?;
        let mut rest = &buffer[..read];
        loop {
            rest = &rest[memchr::memchr(b'\n', rest)? + 1..];
            let line = rest.strip_prefix(b"{\"time\":\"").and_then(|line| line.first_chunk::<{ facts::TIME }>());
            if let Some(time) = line {
                return Some(*time);
            }
        }
    }
}

/// As much as there is.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], offset + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// The query, as lines are compared with it.
struct Filter {
    id: Option<MessageId>,
    message_id: Option<Vec<u8>>,
    from: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
    since: Option<Time>,
    until: Option<Time>,
}

impl Filter {
    fn new(query: &Query) -> Self {
        let address = |text: &String| {
            let plain = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap_or(text);
            facts::lowered(&facts::escaped(if plain.is_empty() { "<>" } else { plain })).into_owned()
        };
        let message_id = |text: &String| {
            let plain = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap_or(text);
            facts::escaped(&format!("<{plain}>"))
        };
        Self {
            id: query.id,
            message_id: query.message_id.as_ref().map(message_id),
            from: query.from.as_ref().map(address),
            to: query.to.as_ref().map(address),
            since: query.since.map(facts::time),
            until: query.until.map(facts::time),
        }
    }

    fn takes(&self, facts: &Facts<'_>) -> bool {
        self.since.is_none_or(|since| facts.time >= since)
            && self.until.is_none_or(|until| facts.time <= until)
            && self.id.is_none_or(|id| facts.id == Some(id) || facts.report() == Some(id))
            && self.message_id.as_deref().is_none_or(|wanted| facts.message_id == Some(wanted))
            && self.from.as_deref().is_none_or(|low| facts.from.is_some_and(|from| facts::same(from, low)))
            && self.to.as_deref().is_none_or(|low| facts.to().any(|to| facts::same(to, low)))
    }

    fn keys(&self) -> impl Iterator<Item = Key> {
        let id = self.id.map(Key::id);
        let message_id = self.message_id.as_deref().map(Key::message_id);
        let from = self.from.as_deref().map(Key::from);
        let to = self.to.as_deref().map(Key::to);
        [id, message_id, from, to].into_iter().flatten()
    }
}

/// Messages that are looked for.
#[derive(Default)]
struct Known {
    message_ids: HashSet<Box<[u8]>>,
    ids: HashSet<(usize, MessageId)>,
}

impl Known {
    fn is_empty(&self) -> bool {
        self.message_ids.is_empty() && self.ids.is_empty()
    }
}

/// What a pass over the files looks for.
enum Wanted<'a> {
    Matching(&'a Filter),
    Of(&'a Known),
}

impl Wanted<'_> {
    fn takes(&self, relay: usize, facts: &Facts<'_>) -> bool {
        match self {
            Self::Matching(filter) => filter.takes(facts),
            Self::Of(known) => {
                facts.id.is_some_and(|id| known.ids.contains(&(relay, id)))
                    || facts.message_id.is_some_and(|message_id| known.message_ids.contains(message_id))
            }
        }
    }

    /// The blocks in which it may stand.
    fn blocks(&self, relay: usize, index: &Index) -> io::Result<BTreeSet<u32>> {
        match self {
            Self::Matching(filter) => {
                let mut blocks: Option<BTreeSet<u32>> = None;
                for key in filter.keys() {
                    let mut found = BTreeSet::new();
                    index.find(key, &mut found)?;
                    blocks = Some(match blocks {
                        None => found,
                        Some(blocks) => blocks.intersection(&found).copied().collect(),
                    });
                }
                let mut blocks = blocks.unwrap_or_else(|| (0..index.blocks().len() as u32).collect());
                blocks.retain(|&block| {
                    let (first, last) = index.blocks()[block as usize].times;
                    filter.since.is_none_or(|since| last >= since) && filter.until.is_none_or(|until| first <= until)
                });
                Ok(blocks)
            }
            Self::Of(known) => {
                let mut blocks = BTreeSet::new();
                let ids = known.ids.iter().filter(|(of, _)| *of == relay).map(|(_, id)| Key::id(*id));
                for key in ids.chain(known.message_ids.iter().map(|message_id| Key::message_id(message_id))) {
                    index.find(key, &mut blocks)?;
                }
                Ok(blocks)
            }
        }
    }
}

/// A stretch of a file for one thread.
struct Piece<'a> {
    relay: usize,
    day: &'a Day,
    from: u64,
    to: u64,
}

fn pieces<'a>(
    relays: &'a [Relay],
    wanted: &Wanted<'_>,
    query: &Query,
    remarks: &mut BTreeSet<String>,
) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    // For gathering, any time will do.
    let (since, until) = match wanted {
        Wanted::Matching(_) => (query.since, query.until),
        Wanted::Of(_) => (None, None),
    };
    let out_of_time =
        |date: Date| since.is_some_and(|since| date < day(since)) || until.is_some_and(|until| date > day(until));
    for (number, relay) in relays.iter().enumerate() {
        for file in &relay.days {
            if file.length == 0 || file.date.is_some_and(out_of_time) {
                continue;
            }
            let mut add = |from, to| pieces.push(Piece { relay: number, day: file, from, to });
            if !file.packed {
                let moved = |time: Option<Timestamp>, by| {
                    time.map(|time: Timestamp| facts::time(time.saturating_add(by).unwrap_or(time)))
                };
                let start = moved(since, -DISORDER).map_or(0, |time| file.position(&time));
                let end =
                    moved(until, DISORDER).map_or(file.length, |time| (file.position(&time) + PIECE).min(file.length));
                let mut from = start;
                while from < end {
                    add(from, (from + PIECE).min(end));
                    from += PIECE;
                }
                continue;
            }
            match file.index().map(|index| (index, wanted.blocks(number, index))) {
                Some((index, Ok(found))) => {
                    for block in found {
                        let block = index.blocks()[block as usize];
                        add(block.offset, block.end);
                    }
                }
                Some((_, Err(_))) | None => {
                    remarks.insert(format!(
                        "{}: there is no good index; the whole file is read, until the daemon has made one",
                        file.path.display()
                    ));
                    add(0, file.length);
                }
            }
        }
    }
    pieces
}

/// Reads the pieces on all cores and shows each wanted event.
fn pass(
    pieces: &[Piece<'_>],
    wanted: &Wanted<'_>,
    query: &Query,
    remarks: &mut BTreeSet<String>,
    show: impl Fn(usize, &Facts<'_>) + Sync,
) {
    let next = AtomicUsize::new(0);
    let faults = Mutex::new(Vec::new());
    let work = || {
        let mut buffer = Vec::new();
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            if query.deadline.is_some_and(|deadline| Instant::now() > deadline) {
                let fault =
                    "not all files were read in time: there may be more; narrow the question by since and until";
                faults.lock().unwrap_or_else(PoisonError::into_inner).push(fault.to_owned());
                return;
            }
            let each = |line: &[u8]| {
                let mut room = Vec::new();
                if let Some(facts) = Facts::of(line, &mut room)
                    && wanted.takes(piece.relay, &facts)
                {
                    show(piece.relay, &facts);
                }
            };
            let read = if piece.day.packed { packed(piece, each) } else { plain(piece, &mut buffer, each) };
            if let Err(error) = read {
                let fault = format!("{}: cannot be read to its end: {error}", piece.day.path.display());
                faults.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.saturating_sub(usize::from(query.gentle)).min(THREADS).min(pieces.len());
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    remarks.extend(faults.into_inner().unwrap_or_else(PoisonError::into_inner));
}

/// The lines that begin within the piece.
fn plain(piece: &Piece<'_>, buffer: &mut Vec<u8>, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    // The byte before tells whether a line begins with the first.
    let start = piece.from.saturating_sub(1);
    buffer.resize((piece.to - start) as usize, 0);
    let read = read_at(&piece.day.file, buffer, start)?;
    buffer.truncate(read);
    // The last line may end behind the piece.
    while buffer.last().is_some_and(|&last| last != b'\n') && buffer.len() < LINE_LIMIT + PIECE as usize {
        let end = buffer.len();
        buffer.resize(end + (64 << 10), 0);
        let read = read_at(&piece.day.file, &mut buffer[end..], start + end as u64)?;
        let line_end = memchr::memchr(b'\n', &buffer[end..end + read]);
        buffer.truncate(end + line_end.map_or(read, |line_end| line_end + 1));
        if read == 0 || line_end.is_some() {
            break;
        }
    }
    let mut rest = &buffer[..];
    if piece.from > 0 {
        let Some(end) = memchr::memchr(b'\n', rest) else { return Ok(()) };
        rest = &rest[end + 1..];
    }
    while !rest.is_empty() {
        let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        each(&rest[..end]);
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    Ok(())
}

fn packed(piece: &Piece<'_>, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let section = Section { file: &piece.day.file, at: piece.from, end: piece.to };
    let mut lines = Lines::new(BufReader::with_capacity(
        128 << 10,
        MultiGzDecoder::new(BufReader::with_capacity(64 << 10, section)),
    ));
    while let Some(line) = lines.next()? {
        each(line);
    }
    Ok(())
}

/// A part of a file that several threads read.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..left], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// A message that matches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Which {
    Message(Box<[u8]>),
    Id(usize, MessageId),
    /// A refusal, before there was a message: an event by itself.
    Alone(usize, Box<[u8]>),
}

/// The messages that match, no more of them than are wanted: those with the latest events.
struct Candidates {
    limit: usize,
    last: HashMap<Which, Time>,
    /// Whoever's latest event is before that is none of the latest.
    floor: Option<Time>,
    seen: HashSet<u64>,
    hasher: RandomState,
}

impl Candidates {
    fn new(limit: usize) -> Self {
        Self { limit, last: HashMap::new(), floor: None, seen: HashSet::new(), hasher: RandomState::new() }
    }

    fn note(&mut self, relay: usize, facts: &Facts<'_>) {
        let which = match (facts.message_id, facts.id) {
            (Some(message_id), _) => Which::Message(message_id.into()),
            (None, Some(id)) => Which::Id(relay, id),
            (None, None) => Which::Alone(relay, facts.line.into()),
        };
        if self.seen.len() < COUNTED {
            self.seen.insert(self.hasher.hash_one(&which));
        }
        if self.floor.is_some_and(|floor| facts.time < floor) {
            return;
        }
        let last = self.last.entry(which).or_insert(facts.time);
        *last = facts.time.max(*last);
        // Whoever is put out here and has a later event comes in again with it, so nothing is lost.
        if self.last.len() > 4 * self.limit + 1000 {
            self.prune();
        }
    }

    fn prune(&mut self) {
        if self.last.len() > self.limit {
            let mut times: Vec<Time> = self.last.values().copied().collect();
            times.sort_unstable_by(|one, other| other.cmp(one));
            let floor = times[self.limit.saturating_sub(1)];
            let mut room = self.limit - times.iter().take_while(|&&time| time > floor).count();
            self.last.retain(|_, last| {
                let stays = *last > floor || *last == floor && room > 0;
                room -= usize::from(stays && *last == floor);
                stays
            });
            self.floor = Some(floor);
        }
    }
}

/// Finds the messages that `query` asks for, and all there is to say of them.
pub fn trace(relays: &[Relay], query: &Query) -> Traced {
    let mut remarks = BTreeSet::new();
    let filter = Filter::new(query);
    let matching = Wanted::Matching(&filter);
    let candidates = Mutex::new(Candidates::new(query.limit));
    pass(&pieces(relays, &matching, query, &mut remarks), &matching, query, &mut remarks, |relay, facts| {
        candidates.lock().unwrap_or_else(PoisonError::into_inner).note(relay, facts);
    });
    let mut candidates = candidates.into_inner().unwrap_or_else(PoisonError::into_inner);
    candidates.prune();
    let more = match candidates.seen.len() {
        COUNTED => COUNTED,
        all => all.saturating_sub(candidates.last.len()),
    };

    let room = if query.gentle { FEWER_EVENTS } else { ALL_EVENTS };
    let mut groups = Groups { room, ..Groups::default() };
    let mut known = Known::default();
    for which in candidates.last.into_keys() {
        let group = groups.begin(None);
        match which {
            Which::Message(message_id) => {
                groups.of_message.insert(message_id.clone(), group);
                known.message_ids.insert(message_id);
            }
            Which::Id(relay, id) => {
                groups.of_id.entry((relay, id)).or_default().push(Numbered { group, report: None });
                known.ids.insert((relay, id));
            }
            Which::Alone(relay, line) => {
                let mut room = Vec::new();
                let facts = Facts::of(&line, &mut room);
                groups.groups[group].events.extend(facts.and_then(|facts| told(relay, &facts)));
            }
        }
    }
    for _ in 0..ROUNDS {
        if known.is_empty() {
            break;
        }
        let wanted = Wanted::Of(&known);
        let gathered = Mutex::new(&mut groups);
        let pieces = pieces(relays, &wanted, query, &mut remarks);
        pass(&pieces, &wanted, query, &mut remarks, |relay, facts| {
            gathered.lock().unwrap_or_else(PoisonError::into_inner).take(relay, facts);
        });
        known = groups.learn(relays.len() > 1);
    }
    Traced { stories: groups.finish(), more, remarks: remarks.into_iter().collect() }
}

fn told(relay: usize, facts: &Facts<'_>) -> Option<Told> {
    let record = Record::parse(std::str::from_utf8(facts.line).ok()?).ok()?;
    Some(Told { relay, time: record.time.parse().ok()?, record })
}

/// Events, put together by message.
#[derive(Default)]
struct Groups {
    of_message: HashMap<Box<[u8]>, usize>,
    /// Those that are looked for by their number. Usually it is one.
    of_id: HashMap<(usize, MessageId), Vec<Numbered>>,
    /// Who has been seen with a number and the null sender, as reports have it, and since when.
    like_reports: HashMap<(usize, MessageId), Vec<(usize, Time)>>,
    groups: Vec<Group>,
    /// So many events are kept.
    room: usize,
    /// What was taken already: a later round may see it again.
    taken: HashSet<u64>,
    hasher: RandomState,
    /// What the last round brought that may lead on: a report that was written, a Message-ID.
    reports: Vec<(usize, usize, MessageId, Time)>,
    message_ids: Vec<(Box<[u8]>, usize)>,
}

/// A message that is looked for by its number.
#[derive(Debug, Clone, Copy)]
struct Numbered {
    group: usize,
    /// Of a report: its first event is between these, about when it was written.
    report: Option<(Time, Time)>,
}

/// About when a report was written of which an event at `time` tells.
fn about_then(time: Time) -> (Time, Time) {
    let at = std::str::from_utf8(&time).ok().and_then(|text| text.parse::<Timestamp>().ok());
    let moved = |by| at.and_then(|at| at.checked_add(by).ok()).map_or(time, facts::time);
    (moved(-DISORDER), moved(DISORDER))
}

#[derive(Default)]
struct Group {
    events: Vec<Told>,
    omitted: usize,
    /// The message that this is a report about.
    about: Option<usize>,
}

impl Groups {
    fn begin(&mut self, about: Option<usize>) -> usize {
        self.groups.push(Group { about, ..Group::default() });
        self.groups.len() - 1
    }

    fn take(&mut self, relay: usize, facts: &Facts<'_>) {
        let by_message_id = facts.message_id.and_then(|message_id| self.of_message.get(message_id).copied());
        let Some(group) = by_message_id.or_else(|| self.by_number(relay, facts)) else { return };
        if !self.taken.insert(self.hasher.hash_one((relay, facts.line))) {
            return;
        }
        if let Some(id) = facts.id
            && facts.from == Some(b"<>")
        {
            let seen = self.like_reports.entry((relay, id)).or_default();
            match seen.iter_mut().find(|(of, _)| *of == group) {
                Some((_, since)) => *since = facts.time.min(*since),
                None => seen.push((group, facts.time)),
            }
        }
        if let Some(message_id) = facts.message_id
            && !self.of_message.contains_key(message_id)
        {
            self.message_ids.push((message_id.into(), group));
        }
        self.reports.extend(facts.report().map(|report| (group, relay, report, facts.time)));
        if self.groups[group].events.len() >= EVENTS || self.taken.len() > self.room {
            self.groups[group].omitted += 1;
            return;
        }
        self.groups[group].events.extend(told(relay, facts));
    }

    /// Whose event it is by its number: that of a report which had been written by then, the latest of them, or that
    /// of a message without a Message-ID.
    fn by_number(&self, relay: usize, facts: &Facts<'_>) -> Option<usize> {
        let numbered = self.of_id.get(&(relay, facts.id?))?;
        let report =
            |one: &&Numbered| facts.from == Some(b"<>") && one.report.is_some_and(|(written, _)| written <= facts.time);
        let nameless = |one: &&Numbered| facts.message_id.is_none() && one.report.is_none();
        let reports = numbered.iter().filter(report).max_by_key(|one| one.report);
        reports.or_else(|| numbered.iter().find(nameless)).map(|one| one.group)
    }

    /// A message of a later spool may have a report's number, and the null sender too. The report is the one that
    /// begins when it was written.
    fn leave_to_others(&mut self) {
        for &Numbered { group, report } in self.of_id.values().flatten() {
            let Some((from, to)) = report else { continue };
            let mut first: HashMap<Option<String>, Timestamp> = HashMap::new();
            for told in &self.groups[group].events {
                let since = first.entry(told.record.message_id.clone()).or_insert(told.time);
                *since = told.time.min(*since);
            }
            first.retain(|_, since| (from..=to).contains(&facts::time(*since)));
            self.groups[group].events.retain(|told| first.contains_key(&told.record.message_id));
            let bytes = |id: &Option<String>| id.as_ref().map(|id| facts::escaped(id).into_boxed_slice());
            let own: HashSet<Option<Box<[u8]>>> = first.keys().map(bytes).collect();
            self.message_ids.retain(|(id, of)| *of != group || own.contains(&Some(id.clone())));
        }
    }

    /// What is to be looked for next.
    fn learn(&mut self, several: bool) -> Known {
        self.leave_to_others();
        let mut known = Known::default();
        for (message_id, group) in std::mem::take(&mut self.message_ids) {
            // On its own relay all its events were found by its number.
            if let Entry::Vacant(vacant) = self.of_message.entry(message_id) {
                if several {
                    known.message_ids.insert(vacant.key().clone());
                }
                vacant.insert(group);
            }
        }
        for (about, relay, report, time) in std::mem::take(&mut self.reports) {
            let (from, to) = about_then(time);
            let seen = self.like_reports.get(&(relay, report)).into_iter().flatten();
            let seen = seen.copied().find(|(_, since)| (from..=to).contains(since)).map(|(group, _)| group);
            let mut begun = self.of_id.get(&(relay, report)).into_iter().flatten();
            let begun = || begun.find(|one| one.report == Some((from, to))).map(|one| one.group);
            match seen.or_else(begun) {
                Some(group) => {
                    // Files may say anything; no message is a report about itself, over however many others.
                    let mut above = Some(about);
                    while let Some(one) = above.filter(|&one| one != group) {
                        above = self.groups[one].about;
                    }
                    if above.is_none() && self.groups[group].about.is_none() {
                        self.groups[group].about = Some(about);
                    }
                }
                None => {
                    let group = self.begin(Some(about));
                    let numbered = Numbered { group, report: Some((from, to)) };
                    self.of_id.entry((relay, report)).or_default().push(numbered);
                    known.ids.insert((relay, report));
                }
            }
        }
        known
    }

    /// Several messages without a Message-ID may have had one number, one after the other: each begins with its RECEIVE.
    fn part(&mut self) {
        let nameless: Vec<usize> =
            self.of_id.values().flatten().filter(|one| one.report.is_none()).map(|one| one.group).collect();
        for group in nameless {
            let events = &mut self.groups[group].events;
            events.sort_by_key(|told| told.time);
            let begins: Vec<usize> = (1..events.len()).filter(|&at| events[at].record.event == "RECEIVE").collect();
            for at in begins.into_iter().rev() {
                let events = self.groups[group].events.split_off(at);
                let Some(begin) = events.first().map(|told| told.time) else { continue };
                let later = self.begin(None);
                self.groups[later].events = events;
                for report in &mut self.groups {
                    if report.about == Some(group) && report.events.iter().all(|told| told.time >= begin) {
                        report.about = Some(later);
                    }
                }
            }
        }
    }

    fn finish(mut self) -> Vec<Story> {
        self.part();
        let mut stories: Vec<Option<Story>> = Vec::with_capacity(self.groups.len());
        let mut about = Vec::with_capacity(self.groups.len());
        for Group { mut events, omitted, about: of } in self.groups {
            events.sort_by_key(|told| (told.time, told.relay));
            stories.push(Some(Story { events, omitted, reports: Vec::new() }));
            about.push(of);
        }
        // A report's report first, so that each takes its own along.
        let depth = |mut one: usize| {
            let mut depth = 0;
            while let Some(above) = about[one] {
                depth += 1;
                one = above;
            }
            depth
        };
        let mut order: Vec<usize> = (0..stories.len()).filter(|&one| about[one].is_some()).collect();
        order.sort_by_key(|&one| std::cmp::Reverse(depth(one)));
        for one in order {
            // What nothing is told of has no reports either: they stand by themselves.
            let has_events = |one: &usize| stories[*one].as_ref().is_some_and(|story| !story.events.is_empty());
            if let Some(above) = about[one].filter(has_events)
                && let Some(story) = stories[one].take_if(|story| !story.events.is_empty())
                && let Some(above) = &mut stories[above]
            {
                above.reports.push(story);
                above.reports.sort_by_key(Story::begin);
            }
        }
        let mut stories: Vec<Story> = stories.into_iter().flatten().filter(|story| !story.events.is_empty()).collect();
        stories.sort_by_key(Story::begin);
        stories
    }
}

impl Story {
    /// The time of its first event.
    pub fn begin(&self) -> Option<Timestamp> {
        self.events.first().map(|told| told.time)
    }

    /// The Message-ID, if it has one.
    pub fn message_id(&self) -> Option<&str> {
        self.records().find_map(|record| record.message_id.as_deref())
    }

    /// The sender, `<>` for none.
    pub fn from(&self) -> Option<&str> {
        self.records().find_map(|record| record.from.as_deref())
    }

    /// Its size in bytes.
    pub fn size(&self) -> Option<u64> {
        self.records().find_map(|record| record.size)
    }

    /// The recipients as its sender named them; of a report those it was sent to.
    pub fn to(&self) -> Vec<&str> {
        // The next relay received it for other names, perhaps.
        let first = self.events.first().map(|told| told.relay);
        let here = self.events.iter().filter(|told| Some(told.relay) == first).map(|told| &told.record);
        let received = here.filter(|record| record.event == "RECEIVE");
        let mut to: Vec<&str> = Vec::new();
        let mut seen = HashSet::new();
        for record in received {
            to.extend(record.to.iter().map(String::as_str).filter(|one| seen.insert(*one)));
        }
        if to.is_empty() {
            to.extend(self.records().flat_map(|record| &record.to).map(String::as_str).filter(|one| seen.insert(*one)));
        }
        to
    }

    /// Its numbers, each with its relay.
    pub fn ids(&self) -> Vec<(usize, &str)> {
        let mut seen = HashSet::new();
        let ids = self.events.iter().filter_map(|told| Some((told.relay, told.record.id.as_deref()?)));
        ids.filter(|id| seen.insert(*id)).collect()
    }

    fn records(&self) -> impl Iterator<Item = &Record> {
        self.events.iter().map(|told| &told.record)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::super::shelf::{self, Stop};
    use super::*;
    use crate::message::Address;
    use crate::outcome::tracking::{Event, EventKind};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// One line; fields that are empty are left out.
    fn line(time: Timestamp, kind: EventKind, id: u64, message_id: &str, from: &str, to: &str, detail: &str) -> String {
        let from = Address::parse(from).ok();
        let to: Vec<Address> = to.split_whitespace().map(|to| Address::parse(to).unwrap()).collect();
        let event = Event {
            id: (id > 0).then_some(MessageId(id)),
            message_id: Some(message_id).filter(|id| !id.is_empty()),
            from: from.as_ref(),
            to: &to.iter().collect::<Vec<_>>(),
            detail: if detail.is_empty() { None } else { Some(&detail) },
            ..Event::new(time, kind, MessageId(id))
        };
        event.to_json() + "\n"
    }

    /// Thousands of messages of two events each, a second apart; message `n` is from `n % 50`, to `n % 70`.
    fn ordinary(start: Timestamp, ids: std::ops::Range<u64>) -> String {
        ids.fold(String::new(), |mut text, id| {
            let time = start + SignedDuration::from_secs((id % 80_000) as i64);
            for kind in [EventKind::Receive, EventKind::Send] {
                let (from, to) = (format!("sender{}@fabrikam.com", id % 50), format!("Reader{}@contoso.com", id % 70));
                text += &line(time, kind, id, &format!("<{id}@fabrikam.com>"), &from, &to, &"x".repeat(200));
            }
            text
        })
    }

    fn query() -> Query {
        Query { limit: 100, ..Query::default() }
    }

    /// Each story as `message-id: EVENT EVENT`, its reports in brackets.
    fn said(traced: &Traced) -> Vec<String> {
        fn whole(story: &Story) -> String {
            let mut text = format!("{}:", story.message_id().unwrap_or("-"));
            for told in &story.events {
                let _ = write!(text, " {}@{}", told.record.event, told.relay);
            }
            for report in &story.reports {
                let _ = write!(text, " [{}]", whole(report));
            }
            text
        }
        assert_eq!(traced.remarks, [] as [&str; 0]);
        traced.stories.iter().map(whole).collect()
    }

    /// Three days: plain, and then finished. The answers are the same.
    #[test]
    fn a_finished_day_answers_as_the_plain_one_did() {
        let folder = tempfile::tempdir().unwrap();
        for (day, ids) in [("2026-11-18", 1..4001), ("2026-11-19", 4001..8001), ("2026-11-20", 8001..12_001)] {
            let text = ordinary(at(&format!("{day}T00:00:00Z")), ids);
            std::fs::write(folder.path().join(format!("tracking-{day}.jsonl")), text).unwrap();
        }
        let queries = [
            Query { id: Some(MessageId(5000)), ..query() },
            Query { message_id: Some("6000@fabrikam.com".into()), ..query() },
            Query { message_id: Some("<6001@fabrikam.com>".into()), ..query() },
            Query { from: Some("SENDER7@fabrikam.com".into()), to: Some("reader17@CONTOSO.com".into()), ..query() },
            Query { from: Some("sender7@fabrikam.com".into()), limit: 5, ..query() },
            Query { since: Some(at("2026-11-19T02:00:00Z")), until: Some(at("2026-11-19T02:00:10Z")), ..query() },
            Query { to: Some("reader3@contoso.com".into()), since: Some(at("2026-11-20T03:00:00Z")), ..query() },
            Query { to: Some("reader3@contoso.com".into()), until: Some(at("2026-11-18T00:20:00Z")), ..query() },
            Query { from: Some("nobody@fabrikam.com".into()), ..query() },
            Query { from: Some("sender1@fabrikam.com".into()), to: Some("reader2@fabrikam.com".into()), ..query() },
        ];
        let answers = || -> Vec<(Vec<String>, usize)> {
            let relay = [Relay::open("here", folder.path()).unwrap()];
            queries.iter().map(|query| trace(&relay, query)).map(|traced| (said(&traced), traced.more)).collect()
        };
        let plain = answers();
        let counts: Vec<_> = plain.iter().map(|(stories, more)| (stories.len(), *more)).collect();
        // 12000 / 350 messages have both 7 and 17 as their remainders.
        let both = (1..12_001).filter(|id| id % 50 == 7 && id % 70 == 17).count();
        let late = (8001..12_001_u64).filter(|id| id % 70 == 3 && id % 80_000 >= 10_800).count();
        let early = (1..1201).filter(|id| id % 70 == 3).count();
        assert_eq!(
            counts,
            [(1, 0), (1, 0), (1, 0), (both, 0), (5, 235), (11, 0), (late, 0), (early, 0), (0, 0), (0, 0)]
        );
        assert_eq!(plain[1].0, ["<6000@fabrikam.com>: RECEIVE@0 SEND@0"]);
        assert_eq!(plain[4].0[4], "<11957@fabrikam.com>: RECEIVE@0 SEND@0", "the latest are shown");

        shelf::finish(folder.path(), &names(folder.path()).unwrap()[..2], &Stop::default());
        let forms: Vec<_> = names(folder.path()).unwrap().into_iter().map(|name| name.form).collect();
        assert_eq!(forms, [Form::Compressed, Form::Compressed, Form::Plain]);
        assert_eq!(answers(), plain, "from the index");

        for day in ["18", "19"] {
            std::fs::remove_file(folder.path().join(format!("tracking-2026-11-{day}.idx"))).unwrap();
        }
        let relay = [Relay::open("here", folder.path()).unwrap()];
        let traced = trace(&relay, &queries[0]);
        assert_eq!(traced.remarks.len(), 2, "{:?}", traced.remarks);
        assert_eq!(said(&Traced { remarks: Vec::new(), ..traced }), plain[0].0, "without an index, slowly");
    }

    /// Both premises, a report that goes back over both, and a message that has nothing to do with it.
    #[test]
    fn a_message_is_followed_over_both_premises_with_its_report() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let time = |second: i64| at("2026-11-20T10:00:00Z") + SignedDuration::from_secs(second);
        let (id, report) = ("<m@fabrikam.com>", "<r@mail.contoso.com>");
        let (erin, david, routed) = ("erin@fabrikam.com", "david@contoso.com", "david@contoso.mail.onmicrosoft.com");
        use EventKind::{Dsn, Fail, Receive, Resolve, Send};
        let here = write(
            "here.jsonl",
            [
                line(time(0), Receive, 1, id, erin, david, ""),
                line(time(0), Resolve, 1, id, erin, routed, ""),
                line(time(1), Receive, 9, "<other@fabrikam.com>", erin, "anna@contoso.com", ""),
                line(time(2), Send, 1, id, erin, routed, ""),
                line(time(9), Send, 3, report, "", erin, ""),
                line(time(8), Receive, 3, report, "", erin, ""),
                line(time(9), Receive, 0, "", "x@example.net", "y@example.net", "unable to relay"),
            ]
            .concat(),
        );
        let there = write(
            "there.jsonl",
            [
                // The same number is another message on another relay.
                line(time(0), Receive, 1, "<else@example.net>", "x@example.net", "y@contoso.com", ""),
                line(time(3), Receive, 7, id, erin, routed, ""),
                line(time(5), Fail, 7, id, erin, routed, "no such mailbox"),
                line(time(6), Dsn, 7, id, erin, erin, "failure report 000000000008 to the sender"),
                line(time(6), Resolve, 8, report, "", erin, ""),
                line(time(7), Send, 8, report, "", erin, ""),
            ]
            .concat(),
        );
        let relays = [Relay::open("here", &here).unwrap(), Relay::open("there", &there).unwrap()];
        let whole = "<m@fabrikam.com>: RECEIVE@0 RESOLVE@0 SEND@0 RECEIVE@1 FAIL@1 DSN@1 \
                     [<r@mail.contoso.com>: RESOLVE@1 SEND@1 RECEIVE@0 SEND@0]";
        for (query, what) in [
            (Query { message_id: Some(id.into()), ..query() }, "its Message-ID"),
            (Query { to: Some(david.into()), ..query() }, "its recipient as it came"),
            (Query { to: Some(routed.into()), ..query() }, "its recipient as it went on"),
            (Query { id: Some(MessageId(7)), ..query() }, "its number there"),
            (Query { id: Some(MessageId(8)), ..query() }, "the number of its report"),
            (Query { to: Some(erin.into()), ..query() }, "who got its report"),
            (Query { from: Some(erin.into()), since: Some(time(5)), ..query() }, "a late event"),
        ] {
            assert_eq!(said(&trace(&relays, &query)), [whole], "{what}");
        }
        let refused =
            trace(&relays, &Query { from: Some("x@example.net".into()), to: Some("y@example.net".into()), ..query() });
        assert_eq!(said(&refused), ["-: RECEIVE@0"]);
        let reports = trace(&relays[..1], &Query { from: Some("<>".into()), ..query() });
        assert_eq!(said(&reports), ["<r@mail.contoso.com>: RECEIVE@0 SEND@0"]);
        let by_number = said(&trace(&relays, &Query { id: Some(MessageId(1)), ..query() }));
        assert_eq!(by_number.len(), 2, "the number is anyone's on two relays: {by_number:?}");
    }

    /// A spool that is begun anew gives its numbers again, and another relay has the same: by what a number is asked
    /// for, each message stands by itself, with its own report.
    #[test]
    fn a_number_that_was_given_twice_is_two_messages() {
        let folder = tempfile::tempdir().unwrap();
        let time = |hour: i64| at("2026-11-20T00:00:00Z") + SignedDuration::from_hours(hour);
        let (erin, anna) = ("erin@fabrikam.com", "anna@contoso.com");
        use EventKind::{Dsn, Receive, Resolve, Send};
        let written = |report: &str| format!("failure report {report} to the sender");
        let write = |name: &str, lines: &[String]| {
            let path = folder.path().join(name);
            std::fs::write(&path, lines.concat()).unwrap();
            Relay::open(name, &path).unwrap()
        };
        let named = write(
            "named.jsonl",
            &[
                line(time(1), Receive, 1, "<a@fabrikam.com>", erin, anna, ""),
                line(time(2), Dsn, 1, "<a@fabrikam.com>", erin, erin, &written("000000000002")),
                line(time(2), Resolve, 2, "<ra@mail.contoso.com>", "", erin, ""),
                line(time(3), Send, 2, "<ra@mail.contoso.com>", "", erin, ""),
                // The spool is begun anew.
                line(time(5), Receive, 1, "<b@fabrikam.com>", erin, anna, ""),
                line(time(6), Dsn, 1, "<b@fabrikam.com>", erin, erin, &written("000000000002")),
                line(time(6), Resolve, 2, "<rb@mail.contoso.com>", "", erin, ""),
                // And once more: this time another sender's message has the number of the report, and a stranger's.
                line(time(7), Receive, 1, "<c@fabrikam.com>", erin, anna, ""),
                line(time(8), Receive, 2, "<d@fabrikam.com>", "", anna, ""),
                line(time(9), Send, 2, "<d@fabrikam.com>", "", anna, ""),
            ],
        );
        let a = "<a@fabrikam.com>: RECEIVE@0 DSN@0 [<ra@mail.contoso.com>: RESOLVE@0 SEND@0]";
        let b = "<b@fabrikam.com>: RECEIVE@0 DSN@0 [<rb@mail.contoso.com>: RESOLVE@0]";
        let (c, d) = ("<c@fabrikam.com>: RECEIVE@0", "<d@fabrikam.com>: RECEIVE@0 SEND@0");
        let named = [named];
        for (query, stories) in [
            (Query { id: Some(MessageId(1)), ..query() }, vec![a, b, c]),
            (Query { id: Some(MessageId(2)), ..query() }, vec![a, b, d]),
            (Query { message_id: Some("a@fabrikam.com".into()), ..query() }, vec![a]),
            (Query { message_id: Some("b@fabrikam.com".into()), ..query() }, vec![b]),
            (Query { message_id: Some("d@fabrikam.com".into()), ..query() }, vec![d]),
            (Query { from: Some(erin.into()), ..query() }, vec![a, b, c]),
            (Query { ..query() }, vec![a, b, c, d]),
        ] {
            assert_eq!(said(&trace(&named, &query)), stories, "{query:?}");
        }
        let nameless = write(
            "nameless.jsonl",
            &[
                line(time(1), Receive, 1, "", erin, anna, ""),
                line(time(2), Dsn, 1, "", erin, erin, &written("000000000002")),
                line(time(2), Resolve, 2, "<ra@mail.contoso.com>", "", erin, ""),
                line(time(5), Receive, 1, "", erin, anna, ""),
                line(time(6), Send, 1, "", erin, anna, ""),
                line(time(7), Receive, 1, "<e@fabrikam.com>", erin, anna, ""),
            ],
        );
        assert_eq!(
            said(&trace(&[nameless], &Query { id: Some(MessageId(1)), ..query() })),
            [
                "-: RECEIVE@0 DSN@0 [<ra@mail.contoso.com>: RESOLVE@0]",
                "-: RECEIVE@0 SEND@0",
                "<e@fabrikam.com>: RECEIVE@0"
            ]
        );
    }

    #[test]
    fn of_very_many_the_latest_are_kept_and_all_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tracking-2026-11-20.jsonl");
        std::fs::write(&file, ordinary(at("2026-11-20T00:00:00Z"), 1..20_001)).unwrap();
        let relay = [Relay::open("here", folder.path()).unwrap()];
        let traced = trace(&relay, &Query { since: Some(at("2026-11-20T00:00:00Z")), limit: 3, ..query() });
        assert_eq!(traced.more, 19_997);
        assert_eq!(
            said(&traced),
            (19_998..20_001).map(|id| format!("<{id}@fabrikam.com>: RECEIVE@0 SEND@0")).collect::<Vec<_>>()
        );
    }

    #[test]
    fn what_is_not_read_in_time_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tracking-2026-11-20.jsonl");
        std::fs::write(&file, ordinary(at("2026-11-20T00:00:00Z"), 1..3)).unwrap();
        let relay = [Relay::open("here", folder.path()).unwrap()];
        let now = Instant::now();
        for (deadline, stories, remarks) in
            [(None, 2, 0), (Some(now + std::time::Duration::from_secs(3600)), 2, 0), (Some(now), 0, 1)]
        {
            let traced = trace(&relay, &Query { deadline, gentle: true, ..query() });
            assert_eq!((traced.stories.len(), traced.remarks.len()), (stories, remarks), "{:?}", traced.remarks);
        }
    }

    #[test]
    fn a_file_cut_into_pieces_has_each_line_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let long = "y".repeat(4000);
        let text: String =
            (1..6000).map(|id| line(at("2026-11-20T00:00:00Z"), EventKind::Send, id, "", "", "", &long)).collect();
        std::fs::write(&path, text.trim_end()).unwrap();
        assert!(text.len() as u64 > 5 * PIECE);
        let relays = [Relay::open("here", &path).unwrap()];
        let filter = Filter::new(&query());
        let wanted = Wanted::Matching(&filter);
        let mut remarks = BTreeSet::new();
        let seen = Mutex::new(Vec::new());
        pass(&pieces(&relays, &wanted, &query(), &mut remarks), &wanted, &query(), &mut remarks, |_, facts| {
            seen.lock().unwrap().push(facts.id.unwrap().0);
        });
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, (1..6000).collect::<Vec<_>>());
    }

    /// A line that a crash tore begins as it should, and names a report; that message is there all the same.
    #[test]
    fn what_a_torn_line_says_takes_no_other_message_along() {
        let folder = tempfile::tempdir().unwrap();
        let noon = at("2026-11-20T12:00:00Z");
        let about = line(noon, EventKind::Dsn, 1, "", "", "a@b.example", "failure report 000000000002 to the sender");
        let torn = about.replace("]", "],,");
        let report = line(noon, EventKind::Receive, 2, "", "", "a@b.example", "");
        std::fs::write(folder.path().join("tracking-2026-11-20.jsonl"), torn + &report).unwrap();
        let relays = [Relay::open("mail.contoso.com", folder.path()).unwrap()];
        assert_eq!(said(&trace(&relays, &query())), ["-: RECEIVE@0"]);
    }

    #[test]
    fn what_is_no_tracking_file_ends_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tracking-2026-11-20.jsonl.gz");
        std::fs::write(&path, b"\x1f\x8b\x08\x00 not gzip at all, whatever its first bytes say").unwrap();
        let traced =
            trace(&[Relay::open("here", folder.path()).unwrap()], &Query { id: Some(MessageId(1)), ..query() });
        assert!(traced.stories.is_empty());
        assert!(
            traced.remarks.iter().any(|remark| remark.contains("cannot be read to its end")),
            "{:?}",
            traced.remarks
        );
        assert!(Relay::open("here", &folder.path().join("gone")).is_err());
        assert!(Relay::open("here", folder.path()).is_ok_and(|relay| !relay.is_empty()));
    }
}
