//! The keeper: what the spool has to do beside committing, in a thread of its own.
//!
//! Segments leave the log oldest first. So whatever says that a message was settled stands behind the message and
//! goes after it, and no dead message comes back to life. When much of the log is dead but its oldest segment is
//! not, what lives there is copied to the front, together with all that happened to it: each byte that waits long is
//! written again once per turn of the log, and a turn is at least as much new mail as there is old.

use std::collections::VecDeque;
use std::io;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Shared;
use super::commit::Copied;
use super::disk::{DiskFile, crash_point, read_full_at};
use super::format::{RECORD_HEAD, RecordHead, Salt, checksum, decode_message, encode_message};
use super::index::{History, Index, Place};
use super::shelf::AHEAD;
use crate::clock;
use crate::message::{Body, MessageId};

/// Bytes copied at a time, so that new mail never waits for more than that.
const COPY_BYTES: u64 = 1 << 20;
/// Messages copied at a time, for the same reason.
const COPY_MESSAGES: usize = 256;
/// The pause after something did not work.
const PAUSE: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Debug, Default)]
pub struct Chores {
    kicked: bool,
    closing: bool,
    /// Files of large messages that are gone.
    own: Vec<u64>,
    /// Segments in which a write or sync failed: is what was acknowledged before still readable?
    doubted: Vec<u32>,
}

/// What the keeper remembers between its turns.
#[derive(Debug, Default)]
pub struct Keeper {
    /// The segment being emptied, and the messages in it not looked at yet.
    emptying: Option<(u32, VecDeque<MessageId>)>,
    /// The disk did not give a record of it: it is asked again then.
    ask_again: Option<Instant>,
}

/// Is there anything for the keeper to do in the log?
pub fn is_due(index: &Index, shared: &Shared) -> bool {
    let mut segments = index.segments.iter();
    match (segments.next(), segments.next()) {
        (Some((_, first)), Some(_)) if index.scanned => first.live == 0 || wants_emptying(index, shared),
        _ => false,
    }
}

/// Is the log worth a turn? Half of it dead, beyond a few segments; or less if there is no reserve any more.
fn wants_emptying(index: &Index, shared: &Shared) -> bool {
    let size = u64::from(shared.shelf.segment_size);
    let dead = index.log_bytes().saturating_sub(index.live_bytes);
    if dead > index.live_bytes + u64::from(shared.options.dead_segments) * size {
        return true;
    }
    let first = index.segments.values().next();
    shared.shelf.len() == 0 && first.is_some_and(|first| first.live_bytes < u64::from(first.end) / 2)
}

impl Shared {
    /// Wakes the keeper.
    pub fn kick_keeper(&self) {
        let mut chores = self.chores.lock().unwrap_or_else(PoisonError::into_inner);
        if !chores.kicked {
            chores.kicked = true;
            self.keeper_bell.notify_one();
        }
    }

    /// Has files of large messages removed; true if there were any.
    pub fn remove_own(&self, numbers: impl Iterator<Item = std::num::NonZeroU64>) -> bool {
        let mut numbers = numbers.peekable();
        if numbers.peek().is_none() {
            return false;
        }
        self.chores.lock().unwrap_or_else(PoisonError::into_inner).own.extend(numbers.map(|number| number.get()));
        true
    }

    /// Has a segment read again in which a write or sync failed.
    pub fn doubt(&self, segment: u32) {
        self.chores.lock().unwrap_or_else(PoisonError::into_inner).doubted.push(segment);
    }

    /// Tells the keeper to finish.
    pub fn stop_keeper(&self) {
        self.chores.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
        self.keeper_bell.notify_one();
    }
}

impl Keeper {
    /// Until the spool is closed.
    pub fn run(mut self, shared: &Shared) {
        let mut more = true;
        loop {
            let mut chores = shared.chores.lock().unwrap_or_else(PoisonError::into_inner);
            while !chores.kicked && !chores.closing {
                if more {
                    chores = shared.keeper_bell.wait(chores).unwrap_or_else(PoisonError::into_inner);
                } else {
                    let (woken, waited) =
                        shared.keeper_bell.wait_timeout(chores, PAUSE).unwrap_or_else(PoisonError::into_inner);
                    chores = woken;
                    if waited.timed_out() {
                        break;
                    }
                }
            }
            if chores.closing {
                return;
            }
            drop(chores);
            more = self.step(shared);
        }
    }

    /// Does what is due now. False: something did not work and is to be tried again.
    pub fn step(&mut self, shared: &Shared) -> bool {
        let (own, doubted) = {
            let mut chores = shared.chores.lock().unwrap_or_else(PoisonError::into_inner);
            chores.kicked = false;
            (std::mem::take(&mut chores.own), std::mem::take(&mut chores.doubted))
        };
        for number in own {
            // What cannot be removed now is an orphan for the next start to find.
            if let Err(error) = shared.disk.remove(&shared.folders.own(number))
                && error.kind() != io::ErrorKind::NotFound
            // set aside
            {
                tracing::warn!(%error, path = %shared.folders.own(number).display(), "a large message's file stays");
            }
        }
        for segment in doubted {
            verify(shared, segment);
        }
        let retired = retire(shared);
        let filled = shared.shelf.fill(AHEAD).is_ok();
        self.empty(shared);
        retired && filled && self.ask_again.is_none()
    }

    /// Copies some of what lives in the oldest segment to the front.
    fn empty(&mut self, shared: &Shared) {
        if self.ask_again.is_some_and(|then| clock::now() < then) {
            return;
        }
        self.ask_again = None;
        let mut index = shared.index.lock().unwrap_or_else(PoisonError::into_inner);
        if !index.scanned || index.copying > 0 || index.segments.len() < 2 || shared.broken().is_some() {
            return;
        }
        let Some((&number, first)) = index.segments.iter().next() else { return };
        let begun = matches!(&self.emptying, Some((emptying, _)) if *emptying == number);
        if first.live == 0 || (!begun && !wants_emptying(&index, shared)) {
            return;
        }
        // One that is still alive after a whole pass (a batch failed) gets another.
        if !begun || self.emptying.as_ref().is_some_and(|(_, ids)| ids.is_empty()) {
            self.emptying = Some((number, first.ids.iter().copied().collect()));
        }
        let Some((_, ids)) = &mut self.emptying else { return };
        let (mut some, mut bytes) = (Vec::new(), 0);
        while bytes < COPY_BYTES
            && some.len() < COPY_MESSAGES
            && let Some(id) = ids.pop_front()
        {
            if let Some(entry) = index.get(id)
                && entry.place.segment == number
            {
                some.push((id, entry.place, entry.history(id)));
                bytes += u64::from(entry.place.size);
            }
        }
        let (file, salt) = (first.file.clone(), first.salt);
        index.copying += some.len();
        drop(index);

        let wanted = some.len();
        let mut copies = Vec::with_capacity(wanted);
        for (id, from, history) in some {
            // A second look, before anything follows from the first.
            match copy(&*file, salt, from, &history).or_else(|_| copy(&*file, salt, from, &history)) {
                Ok(bytes) => {
                    let crc = checksum(&bytes[RECORD_HEAD..]);
                    copies.push(Copied { id, from, bytes, crc, history });
                }
                Err(Unread::Damaged(reason)) => {
                    shared.set_aside(id, from, &reason);
                }
                // It stays, and so does its segment, until the disk gives it or has been asked for long enough.
                Err(Unread::Io(error)) => match shared.lost_patience(id, &error) {
                    Some(reason) => {
                        shared.set_aside(id, from, &reason);
                    }
                    None => {
                        tracing::warn!(%id, %error, "a message cannot be read at the moment");
                        self.ask_again = Some(clock::now() + PAUSE);
                    }
                },
            }
        }
        crash_point("compact.read");
        shared.index.lock().unwrap_or_else(PoisonError::into_inner).copying -= wanted - copies.len();
        if !copies.is_empty() {
            shared.queue_copies(copies);
        }
    }
}

/// A record as it will stand at the front: the same message, and what happened to it since.
fn copy(file: &dyn DiskFile, salt: Salt, from: Place, history: &History) -> Result<Vec<u8>, Unread> {
    let (_, record) = read_record(file, salt, from)?;
    let payload = &record[RECORD_HEAD..];
    let decoded = decode_message(payload, payload.len() as u64);
    let mut decoded = decoded.map_err(|error| Unread::Damaged(error.to_string()))?;
    let (prefix, rest) = payload[decoded.prefix_at..].split_at(decoded.prefix_len);
    let prefix = Bytes::copy_from_slice(prefix);
    let (id, content) = (decoded.id, decoded.content);
    let mut settles = std::mem::take(&mut decoded.settles);
    settles.retain(|settlement| settlement.id != id);
    settles.extend(&history.settled);
    let message = decoded.into_message(prefix, Body::from_bytes(Bytes::new()));
    let mut bytes = encode_message(&message, &settles, &history.deferred, content);
    bytes.extend_from_slice(rest);
    Ok(bytes)
}

/// Takes dead segments out of the log, oldest first, each durably before the next.
fn retire(shared: &Shared) -> bool {
    loop {
        let index = shared.index.lock().unwrap_or_else(PoisonError::into_inner);
        if !index.scanned || index.segments.len() < 2 {
            return true;
        }
        let Some((&number, first)) = index.segments.iter().next() else { return true };
        if first.live > 0 {
            return true;
        }
        // Nobody else takes a segment out, so it stays as it is until we have the lock again.
        let (file, size, fate) = (first.file.clone(), first.size, first.fate);
        drop(index);
        if let Err(error) = shared.shelf.retire(number, &*file, size, fate) {
            tracing::warn!(%error, path = %shared.folders.segment(number).display(), "a segment cannot be taken out");
            return false;
        }
        shared.index.lock().unwrap_or_else(PoisonError::into_inner).segments.remove(&number);
        // There is room again: perhaps for the reserve.
        shared.shelf.try_again();
    }
}

/// Reads the acknowledged messages in a segment again, after a write or sync in it failed.
fn verify(shared: &Shared, number: u32) {
    let index = shared.index.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(segment) = index.segments.get(&number) else { return };
    let (file, salt) = (segment.file.clone(), segment.salt);
    let here = |id: &MessageId| Some((*id, index.get(*id)?.place)).filter(|(_, place)| place.segment == number);
    let places: Vec<_> = segment.ids.iter().filter_map(here).collect();
    drop(index);
    let mut bad = 0;
    for &(id, place) in &places {
        if let Err(reason) = read_record(&*file, salt, place) {
            bad += 1;
            tracing::error!(%id, %reason, "an acknowledged message cannot be read again after the disk failed");
        }
    }
    let path = shared.folders.segment(number);
    tracing::info!(path = %path.display(), messages = places.len(), bad, "the segment that failed was read again");
}

/// Why a record does not read.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// The disk did not give it. It may another time.
    #[error("{0}")]
    Io(io::Error),
    /// The disk gave something else.
    #[error("{0}")]
    Damaged(String),
}

/// Reads a whole record and checks it. The bytes start with room for the head of the next.
pub fn read_record(file: &dyn DiskFile, salt: Salt, place: Place) -> Result<(RecordHead, Vec<u8>), Unread> {
    let damaged = |what: &str| Unread::Damaged(what.to_owned());
    let mut bytes = vec![0; place.size as usize];
    let read = read_full_at(file, &mut bytes, place.offset.into()).map_err(Unread::Io)?;
    if read < bytes.len() {
        return Err(damaged("the file ends before it"));
    }
    let head = RecordHead::decode(&bytes, salt, place.segment, place.offset);
    let head = head.ok_or_else(|| damaged("its head is damaged"))?;
    if head.size() != u64::from(place.size) {
        return Err(damaged("its length changed"));
    }
    if checksum(&bytes[RECORD_HEAD..]) != head.crc {
        return Err(damaged("its checksum does not match"));
    }
    Ok((head, bytes))
}
