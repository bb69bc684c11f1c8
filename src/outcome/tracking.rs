//! Tracking events: one JSON object a line, a file per day (`[tracking]` in docs/configuration.md).
//!
//! [`Tracker::write`] formats the line on the caller's side, from borrowed values and into a buffer that is used
//! again, and leaves it for one thread that writes. A lone event is written at once, many are written together, and
//! a writer without work sleeps. The buffer is bounded: when the disk is slow or full, events are dropped and
//! counted, that is logged once, and mail goes on (F-059).
//!
//! A day that is over is compressed and gets an index (`files`, `shelf`); `search` reads all of it.
//!
//! A line has its fields in the order of [`Event`]; `time` and `event` always, `from` always when there is an `id`
//! (`<>` is the null sender), the others where there is something to say. `to` and `because` are lists. Values are
//! escaped and cut at 4 KiB (S-093).

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::Offset;
use serde::{Deserialize, Serialize};

use crate::config;
use crate::message::{Address, MessageId};
use crate::smtp::Status;

mod facts;
mod files;
mod index;
pub mod search;
mod shelf;

use files::{Files, GRACE};
pub use files::{day_of_file, file_name, files, finish_before};

/// The longest value, in bytes before escaping; the rest is cut off.
const VALUE_LIMIT: usize = 4096;

/// What may wait for the disk, in bytes: about half a second of events at full speed.
const BUFFER_LIMIT: usize = 8 << 20;

/// While events keep coming, the writer collects them for so long; it is also how old a line in the file may be.
const GATHER: Duration = Duration::from_millis(50);

/// How long [`Tracker::flush`] waits for a disk that hangs.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// What happened: what this version writes. [`Record`] reads any word, so that files of other versions can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the interface names them")]
pub enum EventKind {
    Receive,
    Resolve,
    Redirect,
    Expand,
    Transfer,
    Send,
    Defer,
    Fail,
    Dsn,
    Drop,
    Poison,
}

impl EventKind {
    /// The word of the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Receive => "RECEIVE",
            Self::Resolve => "RESOLVE",
            Self::Redirect => "REDIRECT",
            Self::Expand => "EXPAND",
            Self::Transfer => "TRANSFER",
            Self::Send => "SEND",
            Self::Defer => "DEFER",
            Self::Fail => "FAIL",
            Self::Dsn => "DSN",
            Self::Drop => "DROP",
            Self::Poison => "POISON",
        }
    }
}

/// One event. Begin with [`Event::new`] and fill in what is known:
/// `Event { peer: Some(&peer), ..Event::new(now, EventKind::Send, id) }`.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    /// When.
    pub time: Timestamp,
    /// What.
    pub event: EventKind,
    /// The spool's number of the message; `None` where there is no message yet.
    pub id: Option<MessageId>,
    /// Its `Message-ID` field.
    pub message_id: Option<&'a str>,
    /// Its sender; `None` is `<>`.
    pub from: Option<&'a Address>,
    /// The recipients this is about.
    pub to: &'a [&'a Address],
    /// The message's size in bytes.
    pub size: Option<u64>,
    /// The receive connector it came by, or the send connector it goes by.
    pub connector: Option<&'a str>,
    /// The other side: an address, or a host as a `Setback` names it.
    pub peer: Option<&'a dyn fmt::Display>,
    /// What TLS there was, and what it proved.
    pub tls: Option<&'a dyn fmt::Display>,
    /// The enhanced status.
    pub status: Option<Status>,
    /// The reasons, as `explain` gives them.
    pub because: &'a [&'a dyn fmt::Display],
    /// Anything else: a reply, a setback.
    pub detail: Option<&'a dyn fmt::Display>,
}

impl Event<'_> {
    /// An event of which nothing else is known yet.
    pub fn new(time: Timestamp, event: EventKind, id: MessageId) -> Self {
        Self {
            time,
            event,
            id: Some(id),
            message_id: None,
            from: None,
            to: &[],
            size: None,
            connector: None,
            peer: None,
            tls: None,
            status: None,
            because: &[],
            detail: None,
        }
    }

    /// The event as one line of JSON, without a line end.
    pub fn to_json(&self) -> String {
        let mut line = Line(Vec::with_capacity(512));
        line.event(self);
        String::from_utf8(line.0).expect("a line is made of str and char only")
    }
}

/// An event as it is read from a file again. Unknown fields are passed over, so that a newer daemon's files can be
/// read; what a line does not say is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
#[expect(missing_docs, reason = "see Event")]
pub struct Record {
    pub time: String,
    pub event: String,
    pub id: Option<String>,
    pub message_id: Option<String>,
    pub from: Option<String>,
    pub to: Vec<String>,
    pub size: Option<u64>,
    pub connector: Option<String>,
    pub peer: Option<String>,
    pub tls: Option<String>,
    pub status: Option<String>,
    pub because: Vec<String>,
    pub detail: Option<String>,
}

impl Record {
    /// Reads one line.
    ///
    /// # Errors
    /// It is no JSON object, or a field has another type.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }
}

/// Which attempt a DEFER or FAIL is about, and when the next is due: the end of its detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Try {
    /// Counted from one. In 32 bits: a ladder of seconds makes more attempts in a life than their counter counts.
    pub number: u32,
    /// `None`: there is none.
    pub next: Option<Timestamp>,
}

impl fmt::Display for Try {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "; attempt {}", self.number)?;
        self.next.map_or(Ok(()), |next| write!(f, ", again at {next:.0}"))
    }
}

impl Try {
    /// A detail without its end, and the end. What a host says may look like one; ours is the last.
    pub fn split(detail: &str) -> (&str, Option<Self>) {
        let parse = |end: &str| match end.split_once(", again at ") {
            Some((number, next)) => Some(Self { number: number.parse().ok()?, next: Some(next.parse().ok()?) }),
            None => Some(Self { number: end.parse().ok()?, next: None }),
        };
        match detail.rsplit_once("; attempt ").and_then(|(words, end)| Some((words, parse(end)?))) {
            Some((words, end)) => (words, Some(end)),
            None => (detail, None),
        }
    }
}

/// What sees events as they happen, on the thread where they happen: it must be quick and must not block.
pub type Watch = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

/// Where events go. Cheap to clone; the file is finished when the last clone is dropped.
#[derive(Clone, Default)]
pub struct Tracker {
    watch: Option<Watch>,
    file: Option<Arc<Writer>>,
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tracker(file: {}, watched: {})", self.file.is_some(), self.watch.is_some())
    }
}

impl Tracker {
    /// Writes files into the folder of `settings`, which is made if it is missing, and removes those that are too old.
    ///
    /// # Errors
    /// The folder cannot be made or today's file not be opened.
    pub fn open(settings: &config::Tracking) -> io::Result<Self> {
        Self::open_at(settings, Timestamp::now(), GRACE)
    }

    /// Events go nowhere.
    pub fn none() -> Self {
        Self::default()
    }

    /// Events are shown to `watch` as well.
    #[must_use]
    pub fn watched(mut self, watch: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        self.watch = Some(Arc::new(watch));
        self
    }

    /// Events are written to files as well, as by [`Tracker::open`].
    ///
    /// # Errors
    /// The folder cannot be made or today's file not be opened.
    pub fn and_files(self, settings: &config::Tracking) -> io::Result<Self> {
        Ok(Self { watch: self.watch, ..Self::open(settings)? })
    }

    /// Takes note of an event. Never waits for the disk.
    pub fn write(&self, event: &Event<'_>) {
        if let Some(watch) = &self.watch {
            watch(event);
        }
        if let Some(writer) = &self.file {
            writer.shared.push(event);
        }
    }

    /// Waits until every event so far is in the file, 5 seconds at most. Blocking. False: they are not.
    pub fn flush(&self) -> bool {
        self.file.as_ref().is_none_or(|writer| writer.shared.flush(FLUSH_LIMIT))
    }

    /// The file may have been renamed or removed: the writer looks now, and begins a new one if so. Does not wait for it.
    pub fn reopen(&self) {
        if let Some(writer) = &self.file {
            writer.shared.lock().reopen = true;
            writer.shared.work.notify_one();
        }
    }

    /// How many events were lost because the disk was slow or full.
    pub fn dropped(&self) -> u64 {
        self.file.as_ref().map_or(0, |writer| writer.shared.lock().dropped)
    }

    fn open_at(settings: &config::Tracking, now: Timestamp, grace: Duration) -> io::Result<Self> {
        std::fs::create_dir_all(&settings.path)?;
        let mut files = Files::new(settings.path.clone(), settings.keep, grace);
        files.of_day(day(now))?;
        let shared = Arc::new(Shared { buffer: Mutex::default(), work: Condvar::new(), written: Condvar::new() });
        let thread = std::thread::Builder::new().name("tracking".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.run(&mut files)
        })?;
        Ok(Self { watch: None, file: Some(Arc::new(Writer { shared, thread: Some(thread) })) })
    }
}

fn day(at: Timestamp) -> Date {
    Offset::UTC.to_datetime(at).date()
}

/// The thread's handle; dropped, it finishes what waits and ends.
struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        // A disk that hangs must not hold up the end of the process: then the thread is left to itself.
        if self.shared.flush(FLUSH_LIMIT)
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the tracking thread panicked");
        }
    }
}

struct Shared {
    buffer: Mutex<Buffer>,
    /// There is something to write, or it is time to end.
    work: Condvar,
    /// Something was written.
    written: Condvar,
}

#[derive(Default)]
struct Buffer {
    /// Lines that wait, with the day whose file they belong in.
    days: Vec<(Date, Vec<u8>)>,
    bytes: usize,
    /// A buffer that was written and can be used again.
    spare: Vec<u8>,
    /// Events taken and events done with, to know when a flush is over.
    taken: u64,
    done: u64,
    dropped: u64,
    /// Events are being dropped, and that has been logged.
    losing: bool,
    /// The writer sleeps until it is woken.
    asleep: bool,
    /// Somebody waits: do not gather.
    urgent: bool,
    /// Somebody says that the file may be gone.
    reopen: bool,
    closing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        // A panic while the lock was held leaves at worst half a line.
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: &Event<'_>) {
        thread_local! {
            static LINE: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
        }
        // A `Display` of the event's that tracks an event itself would find the buffer taken; then it gets its own.
        let mut line = Line(
            LINE.with(|line| line.try_borrow_mut().map(|mut line| std::mem::take(&mut *line))).unwrap_or_default(),
        );
        line.0.clear();
        line.event(event);
        line.0.push(b'\n');
        let lost = self.keep(day(event.time), &line.0);
        LINE.with(|kept| {
            if let Ok(mut kept) = kept.try_borrow_mut()
                && line.0.capacity() <= 16 * VALUE_LIMIT
            {
                *kept = line.0;
            }
        });
        if lost {
            tracing::warn!("tracking: the disk does not keep up; events are dropped and counted until it does");
        }
    }

    /// Adds a line to what waits. True: it was dropped, and that has to be logged.
    fn keep(&self, day: Date, line: &[u8]) -> bool {
        let mut buffer = self.lock();
        if buffer.bytes + line.len() > BUFFER_LIMIT {
            buffer.dropped += 1;
            return !std::mem::replace(&mut buffer.losing, true);
        }
        if buffer.days.last().is_none_or(|(last, _)| *last != day) {
            let lines = std::mem::take(&mut buffer.spare);
            buffer.days.push((day, lines));
        }
        if let Some((_, lines)) = buffer.days.last_mut() {
            lines.extend_from_slice(line);
        }
        buffer.bytes += line.len();
        buffer.taken += 1;
        // A writer that gathers looks by itself; to wake it for each event would cost more than the event.
        let wake = std::mem::take(&mut buffer.asleep);
        drop(buffer);
        if wake {
            self.work.notify_one();
        }
        false
    }

    fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut buffer = self.lock();
        let goal = buffer.taken;
        while buffer.done < goal {
            buffer.urgent = true;
            self.work.notify_one();
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            buffer = self.written.wait_timeout(buffer, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The writing thread.
    fn run(&self, files: &mut Files) {
        let mut fault = Fault::default();
        let mut buffer = self.lock();
        loop {
            if files.due().is_some_and(|due| due <= Instant::now()) {
                drop(buffer);
                files.finish();
                buffer = self.lock();
            }
            if std::mem::take(&mut buffer.reopen) {
                drop(buffer);
                let reopened = files.reopen();
                fault.note(&files.folder, reopened);
                buffer = self.lock();
            }
            if buffer.days.is_empty() {
                if buffer.closing {
                    return;
                }
                buffer.asleep = true;
                buffer = match files.due() {
                    None => self.work.wait(buffer).unwrap_or_else(PoisonError::into_inner),
                    Some(due) => {
                        let left = due.saturating_duration_since(Instant::now());
                        self.work.wait_timeout(buffer, left).unwrap_or_else(PoisonError::into_inner).0
                    }
                };
                buffer.asleep = false;
                continue;
            }
            let days = std::mem::take(&mut buffer.days);
            let goal = buffer.taken;
            buffer.bytes = 0;
            buffer.urgent = false;
            drop(buffer);

            let mut lost = 0;
            let mut spare = Vec::new();
            for (day, mut lines) in days {
                let written = files.append(day, &lines);
                if !fault.note(&files.folder, written) {
                    lost += memchr::memchr_iter(b'\n', &lines).count() as u64;
                }
                lines.clear();
                spare = lines;
            }

            buffer = self.lock();
            buffer.done = goal;
            buffer.dropped += lost;
            buffer.spare = spare;
            if std::mem::take(&mut buffer.losing) {
                tracing::warn!("tracking: {} events were dropped since the start", buffer.dropped);
            }
            self.written.notify_all();
            // Gather. An event that comes meanwhile does not wake this thread, a flush does.
            let deadline = Instant::now() + GATHER;
            while !buffer.urgent && !buffer.closing && !buffer.reopen {
                let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
                buffer = self.work.wait_timeout(buffer, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// Whether the files cannot be written to: logged when it begins and when it ends.
#[derive(Default)]
struct Fault(bool);

impl Fault {
    /// True: it went well.
    fn note(&mut self, folder: &Path, result: io::Result<()>) -> bool {
        let was_faulty = std::mem::replace(&mut self.0, result.is_err());
        match result {
            Ok(()) if was_faulty => tracing::info!("tracking: events are written again"),
            Err(error) if !was_faulty => {
                let folder = folder.display();
                tracing::error!("tracking: cannot write into {folder}: {error}; events are dropped until it works");
            }
            Ok(()) | Err(_) => {}
        }
        !self.0
    }
}

/// A line under construction. serde would need an owned value, or a type for each kind of borrowed one; this writes
/// what is lent, in the interface's order, without a copy.
struct Line(Vec<u8>);

impl Line {
    fn event(&mut self, event: &Event<'_>) {
        self.0.extend_from_slice(b"{\"time\":\"");
        self.time(event.time);
        self.0.extend_from_slice(b"\",\"event\":\"");
        self.0.extend_from_slice(event.event.as_str().as_bytes());
        self.0.push(b'"');
        if let Some(id) = event.id {
            self.field("id", &id);
        }
        if let Some(message_id) = event.message_id {
            self.field("message_id", &message_id);
        }
        match event.from {
            Some(from) => self.field("from", from),
            None if event.id.is_some() => self.0.extend_from_slice(b",\"from\":\"<>\""),
            None => {}
        }
        self.list("to", event.to.iter().map(|to| to as &dyn fmt::Display));
        if let Some(size) = event.size {
            // Writing to a Vec cannot fail.
            let _ = write!(self.0, ",\"size\":{size}");
        }
        if let Some(connector) = event.connector {
            self.field("connector", &connector);
        }
        if let Some(peer) = event.peer {
            self.field("peer", peer);
        }
        if let Some(tls) = event.tls {
            self.field("tls", tls);
        }
        if let Some(status) = event.status {
            self.field("status", &status);
        }
        self.list("because", event.because.iter().copied());
        if let Some(detail) = event.detail {
            self.field("detail", detail);
        }
        self.0.push(b'}');
    }

    /// The same of an event that was read; `time` is its own.
    fn record(&mut self, record: &Record, time: Timestamp) {
        self.0.extend_from_slice(b"{\"time\":\"");
        self.time(time);
        self.0.extend_from_slice(b"\",\"event\":");
        self.value(&record.event);
        let mut field = |name: &str, value: &Option<String>| {
            if let Some(value) = value {
                self.field(name, value);
            }
        };
        field("id", &record.id);
        field("message_id", &record.message_id);
        field("from", &record.from);
        self.list("to", record.to.iter().map(|to| to as &dyn fmt::Display));
        if let Some(size) = record.size {
            // Writing to a Vec cannot fail.
            let _ = write!(self.0, ",\"size\":{size}");
        }
        let mut field = |name: &str, value: &Option<String>| {
            if let Some(value) = value {
                self.field(name, value);
            }
        };
        field("connector", &record.connector);
        field("peer", &record.peer);
        field("tls", &record.tls);
        field("status", &record.status);
        self.list("because", record.because.iter().map(|reason| reason as &dyn fmt::Display));
        if let Some(detail) = &record.detail {
            self.field("detail", detail);
        }
        self.0.push(b'}');
    }

    /// RFC 3339 with microseconds, in UTC.
    fn time(&mut self, at: Timestamp) {
        let at = Offset::UTC.to_datetime(at);
        let year = at.year().unsigned_abs();
        let pair = |value: i8| [b'0' + value.unsigned_abs() / 10, b'0' + value.unsigned_abs() % 10];
        let digits = |value: u32, place: u32| b'0' + (value / place % 10) as u8;
        let micros = at.subsec_nanosecond().unsigned_abs() / 1000;
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        for (at, place) in [1000, 100, 10, 1].into_iter().enumerate() {
            text[at] = digits(u32::from(year), place);
        }
        for (start, value) in [(5, at.month()), (8, at.day()), (11, at.hour()), (14, at.minute()), (17, at.second())] {
            text[start..start + 2].copy_from_slice(&pair(value));
        }
        for (at, place) in [100_000, 10_000, 1000, 100, 10, 1].into_iter().enumerate() {
            text[20 + at] = digits(micros, place);
        }
        self.0.extend_from_slice(&text);
    }

    fn field(&mut self, name: &str, value: &dyn fmt::Display) {
        self.name(name);
        self.value(value);
    }

    fn list<'a>(&mut self, name: &str, mut values: impl Iterator<Item = &'a dyn fmt::Display>) {
        let Some(first) = values.next() else { return };
        self.name(name);
        self.0.push(b'[');
        self.value(first);
        for value in values {
            self.0.push(b',');
            self.value(value);
        }
        self.0.push(b']');
    }

    fn name(&mut self, name: &str) {
        self.0.extend_from_slice(b",\"");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn value(&mut self, value: &dyn fmt::Display) {
        self.0.push(b'"');
        // An error is the value's end at the limit, or a `Display` that gave up: either way what is there is a value.
        let _ = write!(Escaped { line: &mut self.0, left: VALUE_LIMIT }, "{value}");
        self.0.push(b'"');
    }
}

/// Writes text into a JSON string.
struct Escaped<'a> {
    line: &'a mut Vec<u8>,
    left: usize,
}

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let whole = text.len() <= self.left;
        let mut text = &text[..text.floor_char_boundary(self.left)];
        self.left -= text.len();
        // Nearly everything is plain; it is copied a stretch at a time.
        while let Some(at) =
            text.bytes().position(|byte| !(b' '..0x7f).contains(&byte) || byte == b'"' || byte == b'\\')
        {
            let (plain, rest) = text.split_at(at);
            self.line.extend_from_slice(plain.as_bytes());
            let mut chars = rest.chars();
            match chars.next() {
                Some(c @ ('"' | '\\')) => self.line.extend_from_slice(&[b'\\', c as u8]),
                Some('\n') => self.line.extend_from_slice(b"\\n"),
                Some(c) if is_unsafe(c) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        // Writing to a Vec cannot fail.
                        let _ = write!(self.line, "\\u{unit:04x}");
                    }
                }
                Some(c) => self.line.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                None => {}
            }
            text = chars.as_str();
        }
        self.line.extend_from_slice(text.as_bytes());
        if !whole {
            self.left = 0;
            self.line.extend_from_slice("…".as_bytes());
            return Err(fmt::Error);
        }
        Ok(())
    }
}

/// What would act on the terminal of somebody who looks at the file: controls, and what turns the direction of
/// writing or breaks a line.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn noon() -> Timestamp {
        at("2025-07-01T12:00:00.000001Z")
    }

    fn settings(path: &Path, keep_days: u64) -> config::Tracking {
        config::Tracking { path: path.into(), keep: Duration::from_secs(keep_days * 86_400) }
    }

    fn lines(path: PathBuf) -> Vec<Record> {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(|line| Record::parse(line).unwrap()).collect()
    }

    #[test]
    fn a_detail_is_told_from_its_attempt() {
        let next = at("2025-07-01T12:05:00Z");
        for (words, number, next) in [
            ("mx: down", 1, None),
            ("mx: down", 70_000, Some(next)),
            ("mx said: wait; attempt 9, again at noon", 2, Some(next)),
        ] {
            let one = Try { number, next };
            assert_eq!(Try::split(&format!("{words}{one}")), (words, Some(one)), "{one}");
        }
        for words in ["", "250 2.0.0 taken", "wait; attempt many", "wait; attempt 2, again at noon"] {
            assert_eq!(Try::split(words), (words, None));
        }
    }

    #[test]
    fn an_event_in_the_order_of_the_interface() {
        let (anna, bob) = (Address::parse("anna@contoso.com").unwrap(), Address::parse("bob@example.net").unwrap());
        let event = Event {
            message_id: Some("<a@b>"),
            from: Some(&anna),
            to: &[&bob, &anna],
            size: Some(1234),
            connector: Some("to-internet"),
            peer: Some(&"mx1.example.net [192.0.2.1]:25"),
            tls: Some(&"TLSv1.3 TLS_AES_256_GCM_SHA384"),
            status: Some(Status(2, 0, 0)),
            because: &[&"not an accepted domain", &"address space *"],
            detail: Some(&"250 2.0.0 queued as \"x\""),
            ..Event::new(at("2025-07-01T02:03:04.000567Z"), EventKind::Send, MessageId(42))
        };
        assert_eq!(
            event.to_json(),
            r#"{"time":"2025-07-01T02:03:04.000567Z","event":"SEND","id":"00000000002A","message_id":"<a@b>","#
                .to_owned()
                + r#""from":"anna@contoso.com","to":["bob@example.net","anna@contoso.com"],"size":1234,"#
                + r#""connector":"to-internet","peer":"mx1.example.net [192.0.2.1]:25","#
                + r#""tls":"TLSv1.3 TLS_AES_256_GCM_SHA384","status":"2.0.0","#
                + r#""because":["not an accepted domain","address space *"],"detail":"250 2.0.0 queued as \"x\""}"#
        );
        assert_eq!(
            Event::new(noon(), EventKind::Dsn, MessageId(1)).to_json(),
            r#"{"time":"2025-07-01T12:00:00.000001Z","event":"DSN","id":"000000000001","from":"<>"}"#
        );
    }

    /// S-093.
    #[test]
    fn s093_values_of_strangers_stay_one_harmless_line() {
        let long = "x".repeat(65_536);
        for (value, expected) in [
            ("a\r\nb", r"a\u000d\nb"),
            ("\u{1b}[31mred", r"\u001b[31mred"),
            ("\u{202e}abc\u{2028}", r"\u202eabc\u2028"),
            ("quote \" back \\", r#"quote \" back \\"#),
            ("\0\u{7f}\u{9b}", r"\u0000\u007f\u009b"),
            ("j\u{fc}rgen \u{1f600}", "j\u{fc}rgen \u{1f600}"),
            (&long, &format!("{}…", &long[..VALUE_LIMIT])),
        ] {
            let line = Event { detail: Some(&value), ..Event::new(noon(), EventKind::Fail, MessageId(1)) }.to_json();
            assert!(line.ends_with(&format!("\"detail\":\"{expected}\"}}")), "{value:.40?}: {line:.200}");
            assert!(!line.contains('\n'));
        }
    }

    #[test]
    fn a_file_per_day_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let tracker = Tracker::open_at(&settings(folder.path(), 30), noon(), GRACE).unwrap();
        let other = tracker.clone();
        let thread = std::thread::spawn(move || {
            for id in 0..1000 {
                other.write(&Event::new(at("2025-07-01T23:59:59.999999Z"), EventKind::Receive, MessageId(id)));
            }
        });
        for id in 0..1000 {
            tracker.write(&Event::new(at("2025-07-02T00:00:00Z"), EventKind::Send, MessageId(id)));
        }
        thread.join().unwrap();
        assert!(tracker.flush());
        for (day, event) in [("2025-07-01", "RECEIVE"), ("2025-07-02", "SEND")] {
            let records = lines(folder.path().join(format!("tracking-{day}.jsonl")));
            let ids: Vec<_> = records.iter().filter_map(|record| record.id.clone()).collect();
            assert_eq!(ids, (0..1000).map(|id| MessageId(id).to_string()).collect::<Vec<_>>(), "{day}");
            assert!(records.iter().all(|record| record.event == event));
        }
        assert_eq!(tracker.dropped(), 0);
    }

    #[test]
    fn the_last_tracker_writes_what_waits_when_it_goes() {
        let folder = tempfile::tempdir().unwrap();
        let tracker = Tracker::open_at(&settings(folder.path(), 30), noon(), GRACE).unwrap();
        for id in 0..100 {
            tracker.write(&Event::new(noon(), EventKind::Receive, MessageId(id)));
        }
        drop(tracker);
        assert_eq!(lines(folder.path().join("tracking-2025-07-01.jsonl")).len(), 100);
    }

    #[test]
    fn a_line_that_a_crash_cut_off_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tracking-2025-07-01.jsonl");
        std::fs::write(&file, "{\"time\":\"half").unwrap();
        let tracker = Tracker::open_at(&settings(folder.path(), 30), noon(), GRACE).unwrap();
        tracker.write(&Event::new(noon(), EventKind::Receive, MessageId(1)));
        assert!(tracker.flush());
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(Record::parse(text.lines().nth(1).unwrap()).is_ok(), "{text}");
    }

    #[test]
    fn old_files_go_and_foreign_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "tracking-2025-06-28.jsonl",
            "tracking-2025-06-29.jsonl",
            "tracking-2020-01-01.jsonl",
            "tracking-2020-01-01.jsonl.gz",
            "tracking-2020-01-01.idx",
            "tracking-2020-01-02.2.jsonl.gz.new",
            "tracking-old.jsonl",
            "notes.txt",
        ] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let _tracker = Tracker::open_at(&settings(folder.path(), 2), noon(), GRACE).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["notes.txt", "tracking-2025-06-29.jsonl", "tracking-2025-07-01.jsonl", "tracking-old.jsonl"]);
        let days: Vec<_> = files(folder.path()).unwrap().into_iter().map(|(day, _)| day.to_string()).collect();
        assert_eq!(days, ["2025-06-29", "2025-07-01"]);
    }

    /// The day before is compressed while events go on, and a late one of it gets a part of its own.
    #[test]
    fn a_day_that_is_over_is_finished_beside_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let write = |tracker: &Tracker, time: &str, id| {
            tracker.write(&Event::new(at(time), EventKind::Receive, MessageId(id)));
            assert!(tracker.flush());
        };
        let tracker = Tracker::open_at(&settings(folder.path(), 30), noon(), Duration::ZERO).unwrap();
        write(&tracker, "2025-07-01T23:59:59Z", 1);
        write(&tracker, "2025-07-02T00:00:00Z", 2);
        let packed = folder.path().join("tracking-2025-07-01.jsonl.gz");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !packed.exists() || folder.path().join("tracking-2025-07-01.jsonl").exists() {
            assert!(Instant::now() < deadline, "the day is not finished");
            std::thread::yield_now();
        }
        write(&tracker, "2025-07-01T23:59:59Z", 3);
        write(&tracker, "2025-07-02T00:00:01Z", 4);
        let ids = |name: &str| -> Vec<String> {
            lines(folder.path().join(name)).into_iter().filter_map(|record| record.id).collect()
        };
        assert_eq!(ids("tracking-2025-07-01.2.jsonl"), ["000000000003"]);
        assert_eq!(ids("tracking-2025-07-02.jsonl"), ["000000000002", "000000000004"]);
        drop(tracker);
        let relay = [search::Relay::open("here", folder.path()).unwrap()];
        let query = search::Query { since: Some(at("2025-07-01T00:00:00Z")), limit: 9, ..Default::default() };
        let traced = search::trace(&relay, &query);
        assert_eq!(traced.stories.len(), 4, "{traced:?}");
    }

    /// The file is moved away as logrotate does it, with and without a new one in its place, or removed, or its folder is:
    /// within a second of it, or at once if somebody says so, events are in a file of that name again.
    #[test]
    fn a_file_that_is_gone_is_begun_anew() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("log/tracking");
        let file = folder.join("tracking-2025-07-01.jsonl");
        let tracker = Tracker::open_at(&settings(&folder, 30), noon(), GRACE).unwrap();
        let mut number = 0;
        let mut write = || {
            number += 1;
            tracker.write(&Event::new(noon(), EventKind::Receive, MessageId(number)));
            assert!(tracker.flush());
            number
        };
        let away = folder.join("rotated");
        let rename = || std::fs::rename(&file, &away).unwrap();
        let renew = || {
            rename();
            std::fs::write(&file, "").unwrap();
        };
        let remove = || std::fs::remove_file(&file).unwrap();
        let remove_folder = || std::fs::remove_dir_all(&folder).unwrap();
        let remove_parent = || std::fs::remove_dir_all(folder.parent().unwrap()).unwrap();
        let losses: [&dyn Fn(); 5] = [&rename, &renew, &remove, &remove_folder, &remove_parent];
        for (at, lose) in losses.into_iter().enumerate() {
            for is_told in [true, false] {
                let before = write();
                assert!(lines(file.clone()).iter().any(|line| line.id == Some(MessageId(before).to_string())), "{at}");
                lose();
                let deadline = Instant::now() + Duration::from_secs(60);
                if is_told {
                    tracker.reopen();
                }
                let arrived = || std::fs::metadata(&file).is_ok_and(|file| is_told || file.len() > 0);
                while !arrived() {
                    assert!(Instant::now() < deadline, "{at}: no new file");
                    if is_told {
                        std::thread::yield_now();
                    } else {
                        write();
                    }
                }
                let after = write();
                let last = lines(file.clone()).pop().and_then(|line| line.id);
                assert_eq!(last, Some(MessageId(after).to_string()), "{at}, told: {is_told}");
            }
        }
        assert_eq!(tracker.dropped(), 0);
    }

    /// F-059: the folder is gone and cannot be made again, then it can.
    #[test]
    fn f059_a_fault_costs_events_and_nothing_else() {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("tracking");
        let tracker = Tracker::open_at(&settings(&folder, 30), noon(), GRACE).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::write(&folder, "").unwrap();
        let tomorrow = at("2025-07-02T12:00:00Z");
        for id in 0..3 {
            tracker.write(&Event::new(tomorrow, EventKind::Receive, MessageId(id)));
        }
        assert!(tracker.flush(), "what cannot be written is done with");
        assert_eq!(tracker.dropped(), 3);
        std::fs::remove_file(&folder).unwrap();
        tracker.write(&Event::new(tomorrow, EventKind::Receive, MessageId(3)));
        assert!(tracker.flush());
        assert_eq!(lines(folder.join("tracking-2025-07-02.jsonl")).len(), 1);
    }

    /// F-059: a disk that hangs. Nobody reads this buffer.
    #[test]
    fn f059_a_slow_disk_bounds_what_waits() {
        let shared = Shared { buffer: Mutex::default(), work: Condvar::new(), written: Condvar::new() };
        let line = [b'x'; 1024];
        let logged = (0..BUFFER_LIMIT / 1024 + 10).filter(|_| shared.keep(day(noon()), &line)).count();
        let buffer = shared.lock();
        assert_eq!((buffer.bytes, buffer.dropped, logged), (BUFFER_LIMIT, 10, 1));
        drop(buffer);
        assert!(!shared.flush(Duration::ZERO));
    }

    #[test]
    fn watchers_see_events_as_they_happen() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let tracker = Tracker::none().watched(move |event| {
            let _ = sender.send((event.event, event.id));
        });
        tracker.write(&Event::new(noon(), EventKind::Transfer, MessageId(7)));
        assert_eq!(receiver.try_recv(), Ok((EventKind::Transfer, Some(MessageId(7)))));
    }

    proptest! {
        #[test]
        fn any_value_comes_back_from_json(text in any::<String>(), seconds in 0i64..253_402_300_799, nanos in 0i32..1_000_000_000) {
            let time = Timestamp::new(seconds, nanos).unwrap();
            let event = Event {
                detail: Some(&text), because: &[&text, &1], ..Event::new(time, EventKind::Drop, MessageId(1))
            };
            let record = Record::parse(&event.to_json()).unwrap();
            prop_assert_eq!(record.detail.as_deref(), Some(&*text));
            prop_assert_eq!(record.because, [text, "1".into()]);
            let micros = record.time.parse::<Timestamp>().unwrap().as_microsecond();
            prop_assert_eq!(micros, time.as_microsecond());
            prop_assert_eq!(record.time.len(), 27);
        }
    }
}
