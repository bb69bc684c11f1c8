//! The committer: one thread that makes durable what waits, many messages at once.
//!
//! It takes everything that waits, writes it with one vectored write and one `fdatasync`, changes the index, and
//! wakes those it covered. What comes during the sync is the next batch: no timer delays a lone message. Records that
//! only settle or defer wait for a message to ride with, 10 ms at the latest.
//!
//! After a failed write or sync the file is never touched again: Linux forgets which pages it could not write. The
//! segment is closed, and the first record of the next one cancels what was refused, so that none of it comes
//! back to life. Only then are the waiters told. While no segment can be written, puts fail at once and settlements
//! wait in memory; the disk is tried again after a pause. If the process ends before it works again, what was refused
//! last may be found by the next start: nothing could be written of its refusal.
//!
//! A sync says nothing of the name: in a folder that somebody moved, removed or replaced, a file is written to as well
//! as before, and is not found by the next start. So each batch ends with a look whether the segment still stands where
//! a start would look for it. If not, nothing of the batch is acknowledged, and no new mail is taken until the very
//! folder is back: in another one there is no lock of ours, nor the mail that waits.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::disk::{DiskFile, crash_point, is_full, write_all_at};
use super::format::{
    self, Kind, RECORD_HEAD, RecordHead, SEGMENT_HEAD, Salt, checksum, encode_deferred, encode_mark, encode_removed,
    encode_settled,
};
use super::index::{Entry, Fate, History, Place, Segment};
use super::keep;
use super::shelf::Ready;
use super::{Deferral, PutError, Sealed, Settlement, Shared};
use crate::clock;
use crate::message::MessageId;

/// The longest a *settled* or *deferred* record waits for a message to ride with.
const RIDE: Duration = Duration::from_millis(10);
/// A batch ends here, so that the first message of it does not wait for the last of many large ones.
const BATCH: u64 = 8 << 20;
/// How often a flush tries before it says that it could not.
const ATTEMPTS: usize = 3;
/// The pause before a broken disk is tried again grows to so many times what it is at first: to 4 seconds.
const PATIENCE: u32 = 40;

/// What waits for the committer.
#[derive(Debug, Default)]
pub struct Queue {
    puts: Vec<Put>,
    copies: Vec<Copied>,
    notes: Notes,
    /// When the first of the notes came.
    noted: Option<Instant>,
    flushes: Vec<oneshot::Sender<Vec<Settlement>>>,
    closing: bool,
    sleep: Sleep,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Sleep {
    #[default]
    Not,
    /// Until notes are due.
    Short,
    /// Until somebody comes.
    Long,
}

/// Small records that wait for a ride.
#[derive(Debug, Default)]
struct Notes {
    settled: Vec<Settlement>,
    deferred: Vec<Deferral>,
    removed: Vec<MessageId>,
}

impl Notes {
    fn is_empty(&self) -> bool {
        self.settled.is_empty() && self.deferred.is_empty() && self.removed.is_empty()
    }
}

/// A message to be put, encoded by whoever puts it.
#[derive(Debug)]
pub struct Put {
    /// Its number.
    pub id: MessageId,
    /// Room for the head of the record, then the payload up to the content.
    pub head: Vec<u8>,
    /// The content, unless it has a file of its own.
    pub body: Arc<[Bytes]>,
    /// Length of the payload.
    pub length: u32,
    /// CRC-32C of the payload.
    pub crc: u32,
    /// What the index will hold.
    pub entry: Box<Entry>,
    /// What becomes durable with it.
    pub settles: Vec<Settlement>,
    /// See [`super::is_mail`].
    pub is_mail: bool,
    /// Who waits for it.
    pub done: oneshot::Sender<Result<Sealed, PutError>>,
}

/// A message on its way from the oldest segment to the newest.
#[derive(Debug)]
pub struct Copied {
    /// Its number.
    pub id: MessageId,
    /// Where it was read.
    pub from: Place,
    /// Room for the head of the record, then its payload, in which the history stands.
    pub bytes: Vec<u8>,
    /// CRC-32C of the payload.
    pub crc: u32,
    /// What had happened to it.
    pub history: History,
}

impl Shared {
    /// Queues a message.
    pub fn queue_put(&self, put: Put) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.closing {
            let _ = put.done.send(Err(PutError::Fault("the spool is closed".into())));
            return;
        }
        queue.puts.push(put);
        self.wake(&mut queue, Sleep::Short);
    }

    /// Queues copies of old records.
    pub fn queue_copies(&self, copies: Vec<Copied>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.copies.extend(copies);
        self.wake(&mut queue, Sleep::Short);
    }

    /// Notes that a recipient is done with.
    pub fn note_settled(&self, settlement: Settlement) {
        self.note(|notes| notes.settled.push(settlement));
    }

    /// Notes that a copy is tried later.
    pub fn note_deferred(&self, deferral: Deferral) {
        self.note(|notes| notes.deferred.push(deferral));
    }

    /// Notes that a message is gone.
    pub fn note_removed(&self, id: MessageId) {
        self.note(|notes| notes.removed.push(id));
    }

    fn note(&self, push: impl FnOnce(&mut Notes)) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        push(&mut queue.notes);
        if queue.noted.is_none() {
            queue.noted = Some(clock::now());
            // A committer that sleeps a short while has set its own alarm.
            self.wake(&mut queue, Sleep::Long);
        }
    }

    /// Queues somebody who waits until all so far is durable.
    pub fn queue_flush(&self, done: oneshot::Sender<Vec<Settlement>>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if !queue.closing {
            queue.flushes.push(done);
            self.wake(&mut queue, Sleep::Short);
        }
    }

    /// Tells the committer to finish.
    pub fn stop_committer(&self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.closing = true;
        self.wake(&mut queue, Sleep::Short);
    }

    /// Wakes the committer if it sleeps at least so deeply. One system call for a whole crowd of producers.
    fn wake(&self, queue: &mut Queue, at_least: Sleep) {
        #[cfg(test)]
        self.called.notify_one();
        if queue.sleep == Sleep::Long || queue.sleep == at_least {
            queue.sleep = Sleep::Not;
            self.bell.notify_one();
        }
    }
}

/// The committer's own state.
pub struct Committer {
    shared: Arc<Shared>,
    current: Current,
    /// Small records that are not durable yet.
    notes: Notes,
    /// When those among them are tried again that were in a batch that failed.
    retry: Option<Instant>,
    broken: Option<Broken>,
    keeper: Option<keep::Keeper>,
}

/// The segment that is written to.
struct Current {
    number: u32,
    file: Arc<dyn DiskFile>,
    size: u32,
    salt: Salt,
    /// Up to where it was written, and synced.
    at: u32,
    /// What its file is, by whatever name.
    identity: Option<(u64, u64)>,
}

impl Current {
    /// No segment has this number.
    fn none() -> Self {
        let (number, at) = (0, SEGMENT_HEAD);
        Self { number, file: Arc::new(NoFile), size: SEGMENT_HEAD, salt: Salt::random(), at, identity: None }
    }

    fn start(ready: &Ready) -> Self {
        let Ready { number, file, size, salt } = ready;
        // One that cannot be asked is not in its place either: the first write will say so.
        let identity = file.identity().unwrap_or_default();
        Self { number: *number, file: file.clone(), size: *size, salt: *salt, at: SEGMENT_HEAD, identity }
    }
}

/// What is written to before there is a first segment: nothing can be.
#[derive(Debug)]
struct NoFile;

impl DiskFile for NoFile {
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Ok(0)
    }

    fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn file(&self) -> Option<Arc<std::fs::File>> {
        None
    }

    fn is_shared(&self) -> bool {
        false
    }
}

/// Why nothing can be written at the moment.
struct Broken {
    error: PutError,
    /// Messages that were refused after they may have reached the disk.
    cancel: Vec<MessageId>,
    again: Instant,
    pause: Duration,
}

/// What waited: messages, copies, those who want to know that all is durable; and whether this was the last.
type Taken = (Vec<Put>, Vec<Copied>, Vec<oneshot::Sender<Vec<Settlement>>>, bool);

/// What a record is about, and who waits for it.
enum What {
    Settled(Vec<Settlement>),
    Deferred(Vec<Deferral>),
    Removed(Vec<MessageId>),
    Mark,
    Cancelled,
    Put(Waiter),
    Copy(MessageId),
}

struct Waiter {
    id: MessageId,
    entry: Box<Entry>,
    settles: Vec<Settlement>,
    /// It settles nothing but parts of itself: its client may still take it back.
    is_mail: bool,
    done: oneshot::Sender<Result<Sealed, PutError>>,
}

struct Record {
    kind: Kind,
    /// Starts with room for the record's head.
    bytes: Vec<u8>,
    body: Option<Arc<[Bytes]>>,
    length: u32,
    crc: u32,
    what: What,
}

impl Record {
    fn small(kind: Kind, bytes: Vec<u8>, what: What) -> Self {
        let payload = &bytes[RECORD_HEAD..];
        Self { kind, length: payload.len() as u32, crc: checksum(payload), bytes, body: None, what }
    }

    fn size(&self) -> u64 {
        RECORD_HEAD as u64 + u64::from(self.length)
    }

    /// May it take the reserve? What makes room may: settlements, copies out of the oldest segment, and reports that
    /// settle what they report.
    fn makes_room(&self) -> bool {
        match &self.what {
            What::Put(waiter) => !waiter.is_mail,
            _ => true,
        }
    }
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committer").field("segment", &self.current.number).finish_non_exhaustive()
    }
}

impl Committer {
    /// Starts with this segment, or without one, where the disk has no room for it: then as after a write that failed. With a
    /// `keeper` that one's work is done here, between batches.
    pub fn new(shared: Arc<Shared>, first: Result<Ready, io::Error>, keeper: Option<keep::Keeper>) -> Self {
        let begin =
            |shared, current, broken| Self { shared, current, notes: Notes::default(), retry: None, broken, keeper };
        match first {
            Ok(first) => {
                let mut committer = begin(shared, Current::start(&first), None);
                committer.enter(first);
                committer
            }
            Err(error) => {
                let pause = shared.options.pause;
                let error = put_error(&shared.folders.log.display().to_string(), &error);
                tracing::error!(%error, "new mail is refused until the spool can be written");
                shared.set_broken(Some(error.clone()));
                let broken = Broken { error, cancel: Vec::new(), again: clock::now() + pause, pause };
                begin(shared, Current::none(), Some(broken))
            }
        }
    }

    /// Until the spool is closed.
    pub fn run(mut self) {
        loop {
            let taken = self.wait();
            if self.turn(taken) {
                return;
            }
        }
    }

    /// Does what is due now, for whoever gives it no thread to wait on. When to come again, unless somebody calls before;
    /// `None`: not by itself.
    #[cfg(test)]
    pub fn step(&mut self) -> Option<Instant> {
        let shared = self.shared.clone();
        let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::now();
        match self.due(&queue, now) {
            Some(due) if due <= now => {
                let taken = self.take(&mut queue);
                drop(queue);
                self.turn(taken);
                let queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
                self.due(&queue, clock::now())
            }
            due => due,
        }
    }

    /// All that was taken. True: that was the last.
    fn turn(&mut self, (puts, copies, flushes, closing): Taken) -> bool {
        self.round(puts, copies);
        // What is noted may have been in a batch that failed. Those who wait for it wait for another attempt.
        for _ in 0..ATTEMPTS {
            if (flushes.is_empty() && !closing) || self.notes.is_empty() || self.broken.is_some() {
                break;
            }
            self.round(Vec::new(), Vec::new());
        }
        self.retry = (!self.notes.is_empty()).then(|| clock::now() + self.shared.options.pause);
        if (closing || !flushes.is_empty()) && !self.notes.is_empty() {
            tracing::error!("what was settled last could not be made durable; it may be delivered twice");
        }
        for flush in flushes {
            let _ = flush.send(self.notes.settled.clone());
        }
        if let Some(mut keeper) = self.keeper.take() {
            keeper.step(&self.shared);
            self.keeper = Some(keeper);
        }
        if closing {
            // Everything so far was synced, says the end of the log: what does not read next time is damage.
            let mark = encode_mark(self.current.number, self.current.at);
            if self.broken.is_none() && self.fits(&Record::small(Kind::Mark, mark.clone(), What::Mark)) {
                let mut chunk = vec![Record::small(Kind::Mark, mark, What::Mark)];
                if let Err(error) = self.write(&mut chunk) {
                    tracing::warn!(%error, "the spool's last record could not be written");
                }
            }
        }
        closing
    }

    /// When there is something to do; `None`: when somebody comes.
    fn due(&self, queue: &Queue, now: Instant) -> Option<Instant> {
        if !queue.puts.is_empty() || !queue.copies.is_empty() || !queue.flushes.is_empty() || queue.closing {
            return Some(now);
        }
        let again = self.broken.as_ref().map(|broken| broken.again);
        match (queue.noted.map(|noted| noted + RIDE), again) {
            (Some(due), None) => Some(due),
            // Notes can do nothing while the disk is broken.
            (_, Some(again)) => Some(again),
            (None, None) => self.retry,
        }
    }

    /// Waits for work and takes all of it.
    fn wait(&mut self) -> Taken {
        let shared = self.shared.clone();
        let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = clock::now();
            queue = match self.due(&queue, now) {
                Some(due) if due <= now => break,
                Some(due) => {
                    queue.sleep = Sleep::Short;
                    shared.bell.wait_timeout(queue, due - now).unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    queue.sleep = Sleep::Long;
                    shared.bell.wait(queue).unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        self.take(&mut queue)
    }

    fn take(&mut self, queue: &mut Queue) -> Taken {
        queue.sleep = Sleep::Not;
        queue.noted = None;
        let Notes { settled, deferred, removed } = &mut queue.notes;
        self.notes.settled.append(settled);
        self.notes.deferred.append(deferred);
        self.notes.removed.append(removed);
        let taken = (std::mem::take(&mut queue.puts), std::mem::take(&mut queue.copies));
        (taken.0, taken.1, std::mem::take(&mut queue.flushes), queue.closing)
    }

    fn round(&mut self, puts: Vec<Put>, copies: Vec<Copied>) {
        if let Some(broken) = &self.broken {
            if broken.again <= clock::now() {
                self.reopen();
            }
            if let Some(broken) = &self.broken {
                for put in puts {
                    let _ = put.done.send(Err(broken.error.clone()));
                }
                self.copies_over(copies.len());
                return;
            }
        }
        let mut records = self.records(puts, copies);
        let mut chunk = Vec::new();
        while !records.is_empty() {
            self.fill(&mut records, &mut chunk);
            if chunk.is_empty() {
                continue;
            }
            if let Err(error) = self.write(&mut chunk) {
                self.failed(std::mem::take(&mut chunk), &error);
                if let Some(broken) = &self.broken {
                    let error = broken.error.clone();
                    self.give_up(records.drain(..), &error);
                }
                continue;
            }
            crash_point("commit.after_sync");
            self.apply(std::mem::take(&mut chunk));
        }
    }

    /// What is to be written, in order; only what still says something new.
    ///
    /// Copies come first: what is settled in the same round then stands behind them, and goes after them.
    fn records(&mut self, puts: Vec<Put>, copies: Vec<Copied>) -> VecDeque<Record> {
        let mut records = VecDeque::with_capacity(puts.len() + copies.len() + 3);
        let Notes { mut settled, mut deferred, mut removed } = std::mem::take(&mut self.notes);
        let index = self.shared.index.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stale = 0;
        for copy in copies {
            let is_current = |entry: &Entry| entry.place == copy.from && entry.history(copy.id) == copy.history;
            // It went in the meantime, or something happened to it: the keeper looks again.
            if !index.get(copy.id).is_some_and(is_current) {
                stale += 1;
                continue;
            }
            records.push_back(Record {
                kind: Kind::Message,
                length: (copy.bytes.len() - RECORD_HEAD) as u32,
                bytes: copy.bytes,
                body: None,
                crc: copy.crc,
                what: What::Copy(copy.id),
            });
        }
        settled.retain(|settlement| index.is_open(settlement));
        deferred.retain(|deferral| index.is_waiting(deferral.id, deferral.copy));
        removed.retain(|id| index.get(*id).is_some());
        drop(index);
        self.copies_over(stale);
        self.note_records(&mut records, settled, deferred, removed);
        for put in puts {
            // Nobody waits for it any more, and it was not written: as if it had never come.
            if put.done.is_closed() {
                continue;
            }
            records.push_back(Record {
                kind: Kind::Message,
                bytes: put.head,
                body: Some(put.body),
                length: put.length,
                crc: put.crc,
                what: What::Put(Waiter {
                    id: put.id,
                    entry: put.entry,
                    is_mail: put.is_mail,
                    settles: put.settles,
                    done: put.done,
                }),
            });
        }
        records
    }

    /// Small records, no longer than a quarter of a segment each.
    fn note_records(
        &self,
        records: &mut VecDeque<Record>,
        settled: Vec<Settlement>,
        deferred: Vec<Deferral>,
        removed: Vec<MessageId>,
    ) {
        let at_once = (self.current.size as usize / 128).clamp(1, 1 << 16);
        for some in settled.chunks(at_once) {
            records.push_back(Record::small(Kind::Settled, encode_settled(some), What::Settled(some.to_vec())));
        }
        for some in deferred.chunks(at_once) {
            records.push_back(Record::small(Kind::Deferred, encode_deferred(some), What::Deferred(some.to_vec())));
        }
        for some in removed.chunks(at_once) {
            records.push_back(Record::small(Kind::Removed, encode_removed(some), What::Removed(some.to_vec())));
        }
    }

    /// Moves to `chunk` what goes into the current segment now; goes on to the next segment if nothing does.
    fn fill(&mut self, records: &mut VecDeque<Record>, chunk: &mut Vec<Record>) {
        let mut end = u64::from(self.current.at);
        while let Some(record) = records.pop_front() {
            // New mail comes only while there is a reserve behind the segment it goes to.
            if !record.makes_room()
                && let Err(error) = self.shared.shelf.fill(1)
            {
                self.give_up([record], &put_error("no segment can be made", &error));
                continue;
            }
            let next = end + record.size();
            if next <= u64::from(self.current.size) && next - u64::from(self.current.at) <= BATCH.max(record.size()) {
                end = next;
                chunk.push(record);
                continue;
            }
            if !chunk.is_empty() {
                records.push_front(record);
                return;
            }
            match self.rotate(&record) {
                Ok(mark) => {
                    records.push_front(record);
                    records.push_front(mark);
                }
                Err(error) => self.give_up([record], &error),
            }
            return;
        }
    }

    fn fits(&self, record: &Record) -> bool {
        u64::from(self.current.at) + record.size() <= u64::from(self.current.size)
    }

    /// Goes on to the next segment. The first record in it says up to where this one was synced.
    fn rotate(&mut self, record: &Record) -> Result<Record, PutError> {
        let shelf = &self.shared.shelf;
        let room = u64::from(shelf.segment_size.saturating_sub(SEGMENT_HEAD + 64));
        if record.size() > room {
            return Err(PutError::Fault(format!("{} bytes are too many for one record", record.size())));
        }
        let wanted = if record.makes_room() { 1 } else { 2 };
        shelf.fill(wanted).map_err(|error| put_error("no segment can be made", &error))?;
        let next = shelf.take().ok_or_else(|| PutError::Fault("no segment is ready".into()))?;
        let mark = encode_mark(self.current.number, self.current.at);
        self.enter(next);
        Ok(Record::small(Kind::Mark, mark, What::Mark))
    }

    fn enter(&mut self, next: Ready) {
        let mut index = self.shared.index.lock().unwrap_or_else(PoisonError::into_inner);
        index.segments.insert(
            next.number,
            Segment {
                file: next.file.clone(),
                size: next.size,
                salt: next.salt,
                end: SEGMENT_HEAD,
                live: 0,
                live_bytes: 0,
                ids: Vec::new(),
                fate: Fate::Reuse,
            },
        );
        drop(index);
        self.current = Current::start(&next);
        self.shared.kick_keeper();
    }

    /// One vectored write, one sync.
    fn write(&mut self, chunk: &mut [Record]) -> io::Result<()> {
        let batch = self.current.at;
        let mut offset = batch;
        let mut pieces = 0;
        for record in chunk.iter_mut() {
            let head = RecordHead {
                kind: record.kind,
                segment: self.current.number,
                offset,
                batch,
                length: record.length,
                crc: record.crc,
            };
            record.bytes[..RECORD_HEAD].copy_from_slice(&head.encode(self.current.salt));
            offset += head.size() as u32;
            pieces += 1 + record.body.as_ref().map_or(0, |body| body.len());
        }
        let mut slices = Vec::with_capacity(pieces);
        for record in chunk.iter() {
            slices.push(IoSlice::new(&record.bytes));
            slices.extend(record.body.iter().flat_map(|body| body.iter()).map(|piece| IoSlice::new(piece)));
        }
        crash_point("commit.before_write");
        write_all_at(&*self.current.file, &mut slices, batch.into())?;
        crash_point("commit.after_write");
        self.current.file.sync()?;
        self.check_place(chunk)?;
        self.current.at = offset;
        Ok(())
    }

    /// Would a start find what was just written?
    fn check_place(&self, chunk: &[Record]) -> io::Result<()> {
        let Shared { disk, folders, places, .. } = &*self.shared;
        let gone = |path: &Path, why: &str| io::Error::other(format!("{}: {why}", path.display()));
        let segment = folders.segment(self.current.number);
        match disk.identity(&segment) {
            Ok(found) if found == self.current.identity => {}
            Ok(_) => return Err(gone(&segment, "it was replaced while the relay runs")),
            Err(error) => return Err(gone(&segment, &format!("it is not in its place any more: {error}"))),
        }
        // What has a file of its own is found by that file's name.
        let has_own = |record: &Record| matches!(&record.what, What::Put(waiter) if waiter.entry.own.is_some());
        if chunk.iter().any(has_own) {
            places.check_large(&**disk, folders)?;
        }
        Ok(())
    }

    /// It is durable: the index changes, and those who wait are told.
    fn apply(&mut self, chunk: Vec<Record>) {
        let mut gone = Vec::new();
        let mut told = Vec::with_capacity(chunk.len());
        let mut copied = 0;
        let mut index = self.shared.index.lock().unwrap_or_else(PoisonError::into_inner);
        let size: u64 = chunk.iter().map(Record::size).sum();
        let mut offset = self.current.at - size as u32;
        for record in chunk {
            let place = Place { segment: self.current.number, offset, size: record.size() as u32 };
            offset += place.size;
            match record.what {
                What::Settled(settled) => gone.extend(settled.iter().filter_map(|one| index.settle(one))),
                What::Deferred(deferred) => deferred.iter().for_each(|one| index.defer(one)),
                What::Removed(removed) => gone.extend(removed.into_iter().filter_map(|id| index.remove(id))),
                What::Mark | What::Cancelled => {}
                What::Copy(id) => {
                    index.relocate(id, place);
                    copied += 1;
                }
                What::Put(waiter) => {
                    gone.extend(index.insert(waiter.id, waiter.entry, place));
                    gone.extend(waiter.settles.iter().filter_map(|one| index.settle(one)));
                    told.push((waiter.id, waiter.is_mail, waiter.done));
                }
            }
        }
        if let Some(segment) = index.segments.get_mut(&self.current.number) {
            segment.end = self.current.at;
        }
        self.shared.count_waiting(&index);
        let kick = keep::is_due(&index, &self.shared);
        drop(index);

        for (id, is_mail, done) in told {
            if done.send(Ok(Sealed(()))).is_err() && is_mail {
                // Its client will never read a 250, so we had better forget it. A report is part of what it settles
                // and stays.
                self.shared.note_removed(id);
            }
        }
        let had_own = self.shared.remove_own(gone.iter().filter_map(|entry| Some(entry.own.as_ref()?.number)));
        self.copies_over(copied);
        if kick || had_own {
            self.shared.kick_keeper();
        }
    }

    /// These records will not be written now: whoever waits is told, what is only noted stays noted.
    fn give_up(&mut self, records: impl IntoIterator<Item = Record>, error: &PutError) {
        let mut copies = 0;
        for record in records {
            match record.what {
                What::Settled(settled) => self.notes.settled.extend(settled),
                What::Deferred(deferred) => self.notes.deferred.extend(deferred),
                What::Removed(removed) => self.notes.removed.extend(removed),
                What::Mark | What::Cancelled => {}
                What::Copy(_) => copies += 1,
                What::Put(waiter) => {
                    let _ = waiter.done.send(Err(error.clone()));
                }
            }
        }
        self.copies_over(copies);
    }

    fn copies_over(&self, count: usize) {
        if count > 0 {
            let mut index = self.shared.index.lock().unwrap_or_else(PoisonError::into_inner);
            index.copying -= count;
            drop(index);
            self.shared.kick_keeper();
        }
    }

    /// A write or a sync failed. Nobody knows what of the batch is on disk, so the file is left as it is, and the
    /// messages in it are cancelled in the next segment before their senders hear that they were refused.
    fn failed(&mut self, chunk: Vec<Record>, error: &io::Error) {
        let path = self.shared.folders.segment(self.current.number);
        tracing::error!(%error, path = %path.display(), "the spool could not be written; this segment is given up");
        let error = put_error(&path.display().to_string(), error);
        let cancel = chunk.iter().filter_map(|record| match &record.what {
            What::Put(waiter) => Some(waiter.id),
            _ => None,
        });
        let cancel = cancel.collect();
        self.shared.doubt(self.current.number);
        let mut index = self.shared.index.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(segment) = index.segments.get_mut(&self.current.number) {
            segment.fate = Fate::Remove;
        }
        drop(index);
        self.broken =
            Some(Broken { error: error.clone(), cancel, again: clock::now(), pause: self.shared.options.pause });
        self.reopen();
        self.give_up(chunk, &error);
        self.shared.kick_keeper();
    }

    /// Tries to go on in a new segment, cancelling first what has to be cancelled.
    fn reopen(&mut self) {
        let Some(broken) = self.broken.take() else { return };
        let shared = self.shared.clone();
        let before = encode_mark(self.current.number, self.current.at);
        let ready = shared.places.check(&*shared.disk, &shared.folders).and_then(|()| {
            shared.shelf.fill(1).and_then(|()| shared.shelf.take().ok_or_else(|| io::ErrorKind::NotFound.into()))
        });
        let opened = ready.and_then(|ready| {
            let mut chunk = vec![Record::small(Kind::Mark, before, What::Mark)];
            for some in broken.cancel.chunks((ready.size as usize / 128).clamp(1, 1 << 16)) {
                chunk.push(Record::small(Kind::Cancelled, encode_removed(some), What::Cancelled));
            }
            let number = ready.number;
            let old = std::mem::replace(&mut self.current, Current::start(&ready));
            let fits = chunk.iter().map(Record::size).sum::<u64>() <= u64::from(ready.size - SEGMENT_HEAD);
            let written = if fits { self.write(&mut chunk) } else { Err(io::ErrorKind::FileTooLarge.into()) };
            match written {
                Ok(()) => Ok(ready),
                Err(error) => {
                    // It holds nothing but cancellations, which are true whether they are read again or not.
                    shared.shelf.discard(number);
                    self.current = old;
                    Err(error)
                }
            }
        });
        match opened {
            Ok(ready) => {
                let at = self.current.at;
                self.enter(ready);
                self.current.at = at;
                let mut index = shared.index.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(segment) = index.segments.get_mut(&self.current.number) {
                    segment.end = at;
                }
                drop(index);
                shared.set_broken(None);
                tracing::info!("the spool can be written again");
            }
            Err(error) => {
                let pause = (broken.pause * 2).min(shared.options.pause * PATIENCE);
                let error = put_error(&shared.folders.log.display().to_string(), &error);
                if !matches!(shared.broken(), Some(PutError::Fault(_) | PutError::Full(_))) {
                    tracing::error!(%error, "new mail is refused until the spool can be written");
                }
                shared.set_broken(Some(error.clone()));
                self.broken = Some(Broken { error, again: clock::now() + broken.pause, pause, ..broken });
            }
        }
    }
}

/// An error of the disk as those who put a message meet it.
pub fn put_error(what: &str, error: &io::Error) -> PutError {
    let text = format!("{what}: {error}");
    if is_full(error) { PutError::Full(text) } else { PutError::Fault(text) }
}

/// How long a record may be in a segment of this size.
pub fn longest_record(segment_size: u32) -> u64 {
    u64::from(segment_size.saturating_sub(SEGMENT_HEAD + 64))
}

const _: () = assert!(format::RECORD_HEAD + 8 + SEGMENT_HEAD as usize <= SEGMENT_HEAD as usize + 64);
