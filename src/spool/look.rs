//! What the spool says of itself, and of what waits in it: a few messages at a time, so that nobody waits for who looks.
//!
//! A walk goes along the log, oldest segment first, and holds the index only while it copies a handful of entries. What is
//! in a message's record (sender, recipients, next hops) is read from the disk afterwards, and only its head: the content
//! is never touched. A message that is copied to the front of the log meanwhile may be met twice, and is never missed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;

use super::disk::{DiskFile, read_full_at};
use super::format::{self, Content, Decoded, RECORD_HEAD, RecordHead, Salt};
use super::index::{Index, Place};
use super::{Deferral, Shared, Spool};
use crate::message::{Envelope, MessageId};
use crate::route::HopCopy;

/// Ids that are looked up while the index is held once: some tens of microseconds.
const AT_ONCE: usize = 512;

/// The head of most records is shorter.
const HEAD: usize = 1024;

/// How much a spool takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes {
    /// In its log.
    pub log: u64,
    /// Of these: records of messages that wait.
    pub live: u64,
    /// In the files of large messages that wait.
    pub large: u64,
}

/// Where a walk goes on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// In this segment,
    pub segment: u32,
    /// at this place in its list.
    pub at: usize,
}

/// A message that waits, without its content.
#[derive(Debug)]
pub struct Standing {
    /// Its number.
    pub id: MessageId,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Sender and parameters.
    pub envelope: Envelope,
    /// The receive connector it came by.
    pub connector: Box<str>,
    /// The `Message-ID` field.
    pub message_id: Option<Box<str>>,
    /// Bytes as it will travel.
    pub size: u64,
    /// The copies of which somebody is open.
    pub copies: Vec<CopyStanding>,
}

/// One copy of it.
#[derive(Debug)]
pub struct CopyStanding {
    /// Index into the message's copies.
    pub number: u16,
    /// Connector, next hop, all recipients.
    pub plan: HopCopy,
    /// Those that are not settled, as indices into its recipients.
    pub open: Vec<u16>,
    /// When the next attempt is due; `None`: never tried.
    pub until: Option<Timestamp>,
    /// How many attempts were made.
    pub attempts: u16,
    /// The sender was warned of the delay.
    pub warned: bool,
    /// It is held.
    pub held: bool,
    /// How many attempts ended inside the relay.
    pub panics: u8,
    /// What [`Spool::remark`] said of it in this run.
    pub remark: Option<Arc<str>>,
}

/// What is known of one copy's attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// When the next attempt is due; `None`: never tried.
    pub until: Option<Timestamp>,
    /// How many attempts were made.
    pub attempts: u16,
    /// The sender was warned of the delay.
    pub warned: bool,
}

/// Where a record is, and what it takes to read it.
struct Found {
    id: MessageId,
    place: Place,
    file: Arc<dyn DiskFile>,
    salt: Salt,
}

impl Spool {
    /// How much it takes.
    pub fn bytes(&self) -> Bytes {
        let index = self.shared.index();
        Bytes { log: index.log_bytes(), live: index.live_bytes, large: index.large_bytes }
    }

    /// Free bytes on its disk, if that says so. A system call.
    pub fn free(&self) -> Option<u64> {
        self.shared.disk.free(&self.shared.folders.root).ok()
    }

    /// Some messages from `from` on, and where the walk goes on; `None` at its end. Blocking.
    pub fn walk(&self, from: Step) -> (Vec<(Step, Standing)>, Option<Step>) {
        let (found, next) = self.shared.some(from);
        let standing = found.into_iter().filter_map(|(step, found)| Some((step, self.shared.standing(&found)?)));
        (standing.collect(), next)
    }

    /// What is known of one copy; `None`: nobody of it is open. What was said before a [`Spool::flush`] that ended well is
    /// in it.
    pub fn copy(&self, id: MessageId, copy: u16) -> Option<Known> {
        let index = self.shared.index();
        if !index.is_waiting(id, copy) {
            return None;
        }
        let deferral = index.get(id)?.deferral(id, copy);
        let none = Known { until: None, attempts: 0, warned: false };
        Some(deferral.map_or(none, |it| Known { until: Some(it.until), attempts: it.attempts, warned: it.warned }))
    }

    /// Why a copy waits, in words for whoever looks; and in fewer, should there be too many different ones. In memory only.
    pub fn remark(&self, id: MessageId, copy: u16, words: &str, short: &str) {
        self.shared.index().remark(id, copy, words, short);
    }

    /// Is the disk such that nothing can be written at the moment?
    pub fn is_broken(&self) -> bool {
        self.shared.is_broken.load(Ordering::Relaxed)
    }

    /// Is this recipient open, as far as is durable?
    pub fn is_open(&self, id: MessageId, copy: u16, recipient: u16) -> bool {
        self.shared.index().get(id).is_some_and(|entry| entry.is_open(copy, recipient))
    }

    /// Does this message wait?
    pub fn contains(&self, id: MessageId) -> bool {
        self.shared.index().get(id).is_some()
    }

    /// One message; `None`: it does not wait, or its record cannot be read. Blocking.
    pub fn standing(&self, id: MessageId) -> Option<Standing> {
        // A record that is copied to the front between the look and the read is found at the second look.
        (0..2).find_map(|_| {
            let found = self.shared.find(id)?;
            self.shared.standing(&found)
        })
    }

    /// Holds a copy, or releases it. Durable as [`Spool::settle`] is. What else is known of the copy stays as it is on
    /// disk: say [`Spool::flush`] before, and nothing of it is lost.
    pub fn hold(&self, id: MessageId, copy: u16, held: bool, accepted: Timestamp) {
        let deferral = {
            let index = self.shared.index();
            let Some(entry) = index.get(id) else { return };
            // One that was never tried is due since it came.
            let (until, attempts, warned, panics) = (accepted, 0, false, 0);
            entry.deferral(id, copy).unwrap_or(Deferral { id, copy, until, attempts, warned, held, panics })
        };
        // Who releases a copy wants it tried as if nothing had happened.
        let panics = if held { deferral.panics } else { 0 };
        self.defer(Deferral { held, panics, ..deferral });
    }
}

impl Shared {
    fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: MessageId) -> Option<Found> {
        let index = self.index();
        let place = index.get(id)?.place;
        let segment = index.segments.get(&place.segment)?;
        Some(Found { id, place, file: segment.file.clone(), salt: segment.salt })
    }

    fn some(&self, from: Step) -> (Vec<(Step, Found)>, Option<Step>) {
        let index = self.index();
        let mut found = Vec::new();
        let mut left = AT_ONCE;
        for (&number, segment) in index.segments.range(from.segment..) {
            let start = if number == from.segment { from.at } else { 0 };
            for (at, &id) in segment.ids.iter().enumerate().skip(start) {
                if left == 0 {
                    return (found, Some(Step { segment: number, at }));
                }
                left -= 1;
                // Gone, or its record stands elsewhere by now.
                let Some(entry) = index.get(id).filter(|entry| entry.place.segment == number) else { continue };
                let (place, file, salt) = (entry.place, segment.file.clone(), segment.salt);
                found.push((Step { segment: number, at }, Found { id, place, file, salt }));
            }
        }
        (found, None)
    }

    fn standing(&self, found: &Found) -> Option<Standing> {
        let decoded = read_head(found)?;
        let content = match decoded.content {
            Content::Inline { len } | Content::Own { len, .. } => len,
        };
        let copies = self.index().standing(found.id, decoded.copies)?;
        Some(Standing {
            id: found.id,
            accepted: decoded.accepted,
            envelope: decoded.envelope,
            connector: decoded.connector,
            message_id: decoded.message_id,
            size: decoded.prefix_len as u64 + content,
            copies,
        })
    }
}

/// What a record says before its content; unchecked but for its shape. `None`: it is not there any more, or damaged, which
/// who loads it will find and say.
fn read_head(found: &Found) -> Option<Decoded> {
    let Place { segment, offset, size } = found.place;
    let mut bytes = vec![0; HEAD.min(size as usize)];
    let mut read = read_full_at(&*found.file, &mut bytes, offset.into()).ok()?;
    let head = RecordHead::decode(bytes.get(..read)?, found.salt, segment, offset)?;
    let needed = RECORD_HEAD + format::message_head_len(bytes.get(RECORD_HEAD..read)?)?;
    if needed > size as usize {
        return None;
    }
    if needed > read {
        bytes.resize(needed, 0);
        read = read_full_at(&*found.file, &mut bytes, offset.into()).ok()?;
    }
    let decoded = format::decode_message(bytes.get(RECORD_HEAD..read)?, head.length.into()).ok()?;
    (decoded.id == found.id).then_some(decoded)
}
