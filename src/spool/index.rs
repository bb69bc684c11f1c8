//! What waits, in memory: where each message stands in the log and which of its recipients are still open.
//!
//! A cache of the log, never more: it changes after the sync that made the change durable, and recovery builds it
//! again. Settling is a one-way street (a recipient once settled stays so), so records may be applied twice and in
//! any order; of deferrals the last one counts.
//!
//! At most 128 bytes for a message with one copy, hash table and allocator included: its entry is one allocation that
//! never moves, so the table is made of pointers and half of it may be empty at little cost.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use jiff::Timestamp;

use super::disk::DiskFile;
use super::format::{Content, Decoded, Salt};
use super::remarks::{Number, Remarks};
use super::{CopyStanding, Deferral, End, Settlement, Waiting};
use crate::config::ConnectorName;
use crate::message::MessageId;
use crate::random::HashMap;
use crate::route::{Hop, HopCopy};

/// All that waits, and the segments it stands in.
#[derive(Debug, Default)]
pub struct Index {
    messages: HashMap<MessageId, Box<Entry>>,
    /// Why those wait that were tried: each copy of theirs has a number of it.
    remarks: Remarks,
    /// The log, oldest first; the last is written to.
    pub segments: BTreeMap<u32, Segment>,
    /// Bytes of records of messages that wait.
    pub live_bytes: u64,
    /// Bytes of the files of large messages that wait.
    pub large_bytes: u64,
    /// Old segments were read. Until then it is not known what is alive in them, and none may go.
    pub scanned: bool,
    /// Records on their way from the oldest segment to the newest.
    pub copying: usize,
}

/// One file of the log.
#[derive(Debug)]
pub struct Segment {
    /// Its file.
    pub file: Arc<dyn DiskFile>,
    /// How long the file is.
    pub size: u32,
    /// In each of its records.
    pub salt: Salt,
    /// Up to where it holds durable records.
    pub end: u32,
    /// Messages that wait and whose record is here.
    pub live: usize,
    /// Bytes of these records.
    pub live_bytes: u64,
    /// All messages whose record was put here, in order; some have gone since.
    pub ids: Vec<MessageId>,
    /// What becomes of its file when nothing in it lives.
    pub fate: Fate,
}

/// What becomes of a segment's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is written over.
    Reuse,
    /// It is removed: a write or sync in it failed, so it is not touched again.
    Remove,
    /// It goes to `corrupt/`: a part of it could not be read, and perhaps can be another time.
    Keep,
}

/// One message that waits.
#[derive(Debug)]
pub struct Entry {
    /// Its record.
    pub place: Place,
    /// Its own file, if it is large. Boxed, for few are.
    pub own: Option<Box<Own>>,
    copies: Copies,
}

/// The file of a large message.
#[derive(Debug)]
pub struct Own {
    /// Its number.
    pub number: NonZeroU64,
    /// Its length in bytes.
    pub len: u64,
}

/// Most messages have one copy, and need no second allocation for it.
#[derive(Debug)]
enum Copies {
    One(CopyState),
    Many(Box<[CopyState]>),
}

impl std::ops::Deref for Copies {
    type Target = [CopyState];

    fn deref(&self) -> &[CopyState] {
        match self {
            Self::One(copy) => std::slice::from_ref(copy),
            Self::Many(copies) => copies,
        }
    }
}

impl std::ops::DerefMut for Copies {
    fn deref_mut(&mut self) -> &mut [CopyState] {
        match self {
            Self::One(copy) => std::slice::from_mut(copy),
            Self::Many(copies) => copies,
        }
    }
}

/// What happened to a message since it came.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct History {
    /// Who is done with.
    pub settled: Vec<Settlement>,
    /// What is tried again later.
    pub deferred: Vec<Deferral>,
}

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The segment.
    pub segment: u32,
    /// Where in it.
    pub offset: u32,
    /// Head and payload, in bytes.
    pub size: u32,
}

#[derive(Debug)]
struct CopyState {
    open: Open,
    recipients: u16,
    attempts: u16,
    warned: bool,
    stand: Stand,
    remark: Number,
    /// Microseconds, so that an entry stays small; [`i64::MIN`] is never.
    until: i64,
}

/// Whether a copy is held, and how many attempts ended inside the relay: in one byte, so that an entry stays small.
#[derive(Debug, Clone, Copy, Default)]
struct Stand(u8);

impl Stand {
    fn new(held: bool, panics: u8) -> Self {
        Self(u8::from(held) | panics.min(0x7F) << 1)
    }

    fn held(self) -> bool {
        self.0 & 1 != 0
    }

    fn panics(self) -> u8 {
        self.0 >> 1
    }
}

/// A bit for each recipient that is not settled.
#[derive(Debug)]
enum Open {
    Few(u64),
    /// Boxed twice: a pointer with a length would make every entry larger for the few that have so many.
    Many(Box<Box<[u64]>>),
}

impl Open {
    fn all(count: u16) -> Self {
        let word = |left: usize| if left >= 64 { u64::MAX } else { (1 << left) - 1 };
        match usize::from(count) {
            few @ ..=64 => Self::Few(word(few)),
            many => Self::Many(Box::new((0..many.div_ceil(64)).map(|i| word(many - i * 64)).collect())),
        }
    }

    fn words(&self) -> &[u64] {
        match self {
            Self::Few(word) => std::slice::from_ref(word),
            Self::Many(words) => words,
        }
    }

    fn words_mut(&mut self) -> &mut [u64] {
        match self {
            Self::Few(word) => std::slice::from_mut(word),
            Self::Many(words) => words,
        }
    }

    fn is_empty(&self) -> bool {
        self.words().iter().all(|word| *word == 0)
    }

    fn contains(&self, recipient: u16) -> bool {
        let (word, bit) = (usize::from(recipient / 64), recipient % 64);
        self.words().get(word).is_some_and(|word| word >> bit & 1 == 1)
    }

    fn remove(&mut self, recipient: u16) {
        let (word, bit) = (usize::from(recipient / 64), recipient % 64);
        if let Some(word) = self.words_mut().get_mut(word) {
            *word &= !(1 << bit);
        }
    }
}

impl Entry {
    /// An entry for a new message, all recipients open.
    pub fn new(copies: &[HopCopy], content: Content) -> Box<Self> {
        let state = |copy: &HopCopy| {
            let recipients = copy.recipients.len() as u16;
            CopyState {
                open: Open::all(recipients),
                recipients,
                attempts: 0,
                warned: false,
                stand: Stand::default(),
                remark: 0,
                until: i64::MIN,
            }
        };
        let copies = match copies {
            [one] => Copies::One(state(one)),
            many => Copies::Many(many.iter().map(state).collect()),
        };
        let own = match content {
            Content::Inline { .. } => None,
            Content::Own { number, len, .. } => NonZeroU64::new(number).map(|number| Box::new(Own { number, len })),
        };
        Box::new(Self { place: Place { segment: 0, offset: 0, size: 0 }, own, copies })
    }

    /// An entry for a message that recovery found.
    pub fn found(decoded: &Decoded, place: Place) -> Box<Self> {
        let mut entry = Self::new(&decoded.copies, decoded.content);
        entry.place = place;
        entry
    }

    /// Marks a recipient as done with.
    pub fn settle(&mut self, settlement: &Settlement) {
        if let Some(copy) = self.copies.get_mut(usize::from(settlement.copy)) {
            copy.open.remove(settlement.recipient);
        }
    }

    /// Marks a copy as deferred.
    pub fn defer(&mut self, deferral: &Deferral) {
        if let Some(copy) = self.copies.get_mut(usize::from(deferral.copy)) {
            copy.until = deferral.until.as_microsecond();
            copy.attempts = deferral.attempts;
            copy.warned = deferral.warned;
            copy.stand = Stand::new(deferral.held, deferral.panics);
        }
    }

    /// Is this recipient open?
    pub fn is_open(&self, copy: u16, recipient: u16) -> bool {
        self.copies.get(usize::from(copy)).is_some_and(|copy| copy.open.contains(recipient))
    }

    fn own_bytes(&self) -> u64 {
        self.own.as_ref().map_or(0, |own| own.len)
    }

    /// Is nobody open?
    pub fn is_done(&self) -> bool {
        self.copies.iter().all(|copy| copy.open.is_empty())
    }

    /// Which recipients of each copy are open.
    pub fn open(&self) -> Vec<Vec<u16>> {
        let open = |copy: &CopyState| (0..copy.recipients).filter(|&recipient| copy.open.contains(recipient)).collect();
        self.copies.iter().map(open).collect()
    }

    /// The copies of which somebody is open; `hops` are the connectors and next hops of all of them.
    pub fn waiting(
        &self,
        id: MessageId,
        accepted: Timestamp,
        hops: &[(ConnectorName, Hop)],
    ) -> impl Iterator<Item = Waiting> {
        let copies = (0..).zip(&*self.copies).zip(hops);
        copies.filter(|((_, copy), _)| !copy.open.is_empty()).map(move |((number, copy), (via, hop))| Waiting {
            id,
            copy: number,
            accepted,
            via: via.clone(),
            hop: hop.clone(),
            until: copy.until(),
            attempts: copy.attempts,
            warned: copy.warned,
            held: copy.stand.held(),
            panics: copy.stand.panics(),
        })
    }

    fn standing(&self, plan: Vec<HopCopy>, remarks: &Remarks) -> Vec<CopyStanding> {
        let copies = (0..).zip(self.copies.iter()).zip(plan).filter(|((_, copy), _)| !copy.open.is_empty());
        copies
            .map(|((number, copy), plan)| CopyStanding {
                number,
                open: (0..copy.recipients).filter(|&recipient| copy.open.contains(recipient)).collect(),
                plan,
                until: copy.until(),
                attempts: copy.attempts,
                warned: copy.warned,
                held: copy.stand.held(),
                panics: copy.stand.panics(),
                remark: remarks.get(copy.remark),
            })
            .collect()
    }

    /// When a copy is tried again, if it ever was tried.
    pub fn deferral(&self, id: MessageId, copy: u16) -> Option<Deferral> {
        let &CopyState { attempts, warned, stand, .. } = self.copies.get(usize::from(copy))?;
        let (held, panics) = (stand.held(), stand.panics());
        let until = self.copies[usize::from(copy)].until()?;
        Some(Deferral { id, copy, until, attempts, warned, held, panics })
    }

    /// Everything that happened to the message, to be said again in a copy of its record.
    pub fn history(&self, id: MessageId) -> History {
        let History { mut settled, mut deferred } = History::default();
        for (number, copy) in (0..).zip(&*self.copies) {
            // How a recipient ended no longer matters to anyone; that it did, does.
            settled.extend(
                (0..copy.recipients).filter(|&recipient| !copy.open.contains(recipient)).map(|recipient| Settlement {
                    id,
                    copy: number,
                    recipient,
                    end: End::Delivered,
                }),
            );
            if !copy.open.is_empty()
                && let Some(until) = copy.until()
            {
                let CopyState { attempts, warned, stand, .. } = *copy;
                let (held, panics) = (stand.held(), stand.panics());
                deferred.push(Deferral { id, copy: number, until, attempts, warned, held, panics });
            }
        }
        History { settled, deferred }
    }
}

impl CopyState {
    fn until(&self) -> Option<Timestamp> {
        if self.until == i64::MIN { None } else { Timestamp::from_microsecond(self.until).ok() }
    }
}

impl Index {
    /// How many messages wait.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// So many more are about to come: the table grows once, not again and again.
    pub fn reserve(&mut self, more: usize) {
        self.messages.reserve(more);
    }

    /// One that waits.
    pub fn get(&self, id: MessageId) -> Option<&Entry> {
        self.messages.get(&id).map(|entry| &**entry)
    }

    /// The copies of a message of which somebody is open, as they stand.
    pub fn standing(&self, id: MessageId, plan: Vec<HopCopy>) -> Option<Vec<CopyStanding>> {
        Some(self.get(id)?.standing(plan, &self.remarks))
    }

    /// Why a copy waits, until it is said again or nobody of it is open; see [`Remarks::take`].
    pub fn remark(&mut self, id: MessageId, copy: u16, words: &str, short: &str) {
        let copy = self.messages.get_mut(&id).and_then(|entry| entry.copies.get_mut(usize::from(copy)));
        if let Some(copy) = copy.filter(|copy| !copy.open.is_empty()) {
            self.remarks.release(std::mem::take(&mut copy.remark));
            copy.remark = self.remarks.take(words, short);
        }
    }

    /// Is this recipient still open?
    pub fn is_open(&self, settlement: &Settlement) -> bool {
        self.messages
            .get(&settlement.id)
            .and_then(|entry| entry.copies.get(usize::from(settlement.copy)))
            .is_some_and(|copy| copy.open.contains(settlement.recipient))
    }

    /// Is anyone of this copy still open?
    pub fn is_waiting(&self, id: MessageId, copy: u16) -> bool {
        self.messages
            .get(&id)
            .and_then(|entry| entry.copies.get(usize::from(copy)))
            .is_some_and(|copy| !copy.open.is_empty())
    }

    /// A message is in the log. `place` counts, not what the entry says. Gives the entry back if nobody in it waits.
    pub fn insert(&mut self, id: MessageId, mut entry: Box<Entry>, place: Place) -> Option<Box<Entry>> {
        entry.place = place;
        if entry.is_done() {
            return Some(entry);
        }
        self.count_in(id, place);
        self.large_bytes += entry.own_bytes();
        self.messages.insert(id, entry);
        None
    }

    /// The record of a message now stands elsewhere.
    pub fn relocate(&mut self, id: MessageId, place: Place) {
        if let Some(entry) = self.messages.get_mut(&id) {
            let before = std::mem::replace(&mut entry.place, place);
            self.count_out(before);
            self.count_in(id, place);
        }
    }

    /// A recipient is done with; gives the entry back if it was the last of its message.
    pub fn settle(&mut self, settlement: &Settlement) -> Option<Box<Entry>> {
        let entry = self.messages.get_mut(&settlement.id)?;
        entry.settle(settlement);
        if let Some(copy) = entry.copies.get_mut(usize::from(settlement.copy)).filter(|copy| copy.open.is_empty()) {
            self.remarks.release(std::mem::take(&mut copy.remark));
        }
        if entry.is_done() { self.remove(settlement.id) } else { None }
    }

    /// A copy is tried later.
    pub fn defer(&mut self, deferral: &Deferral) {
        if let Some(entry) = self.messages.get_mut(&deferral.id) {
            entry.defer(deferral);
        }
    }

    /// A message is gone.
    pub fn remove(&mut self, id: MessageId) -> Option<Box<Entry>> {
        let mut entry = self.messages.remove(&id)?;
        for copy in entry.copies.iter_mut().filter(|copy| copy.remark != 0) {
            self.remarks.release(std::mem::take(&mut copy.remark));
        }
        self.count_out(entry.place);
        self.large_bytes -= entry.own_bytes();
        // A million messages came and went: do not keep their table.
        if self.messages.capacity() > 4096 && self.messages.len() < self.messages.capacity() / 8 {
            self.messages.shrink_to(self.messages.len() * 2);
        }
        Some(entry)
    }

    fn count_in(&mut self, id: MessageId, place: Place) {
        self.live_bytes += u64::from(place.size);
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.live += 1;
            segment.live_bytes += u64::from(place.size);
            segment.ids.push(id);
        }
    }

    fn count_out(&mut self, place: Place) {
        self.live_bytes -= u64::from(place.size);
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.live -= 1;
            segment.live_bytes -= u64::from(place.size);
        }
    }

    /// Bytes in closed segments and in the one written to.
    pub fn log_bytes(&self) -> u64 {
        self.segments.values().map(|segment| u64::from(segment.end)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_waits_costs_at_most_128_bytes() {
        // A table slot with its control byte at the worst load (half of 7/8), one allocation with the allocator's word,
        // its number in the segment's list (doubled at worst).
        let slot = (size_of::<(MessageId, Box<Entry>)>() + 1) * 16 / 7;
        let entry = (size_of::<Entry>() + 8).next_multiple_of(16);
        let number = 2 * size_of::<MessageId>();
        assert!(slot + entry + number <= 128, "{slot} + {entry} + {number}");
    }
}
