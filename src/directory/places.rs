//! Records lie where their hash says: one place is two cache lines, and a look-up mostly goes to memory once.
//!
//! A place holds some records, one behind the other. One that has no room goes to the next place, and the place that
//! refused it says so. A record too long for that is kept apart; its place says where. Places are at most five eighths
//! full: with an index of where each begins a look-up would go to memory twice, which costs more than the room. They
//! lie in large pages where the system has them, for with small ones the way to the page is another walk through memory.
//!
//! Not here: what a record says (`directory::table`).

use memmap2::{Advice, MmapMut};

/// Bytes of a place: processors fetch two lines of 64 together.
const PLACE: usize = 128;
/// The longest record in its place. With longer ones there might be no room although the places are not full.
const LONGEST: usize = 41;
/// A record that is kept apart: a length of 0, 32 bits of its hash, its position.
const APART: usize = 9;

/// In a place's first byte: a record had no room here and lies further on.
const REFUSED: u8 = 0x80;
/// In a place's first byte: how many bytes behind it are taken.
const TAKEN: u8 = 0x7f;

// A place refuses only what has no room, so one that refused is fuller than `Places::new` fills them all: some never do.
const _: () = assert!((PLACE - 1 - LONGEST) * 8 > PLACE * 5);

/// Records by hash.
pub(super) struct Places {
    places: MmapMut,
    /// Records too long for a place.
    apart: Vec<u8>,
}

impl Places {
    /// Room for records of these lengths, together at most 2 GiB.
    pub(super) fn new(lengths: impl Iterator<Item = usize>) -> Self {
        let (mut inside, mut apart) = (0, 0);
        for length in lengths {
            match length {
                1..=LONGEST => inside += 1 + length,
                _ => (inside, apart) = (inside + APART, apart + length),
            }
        }
        let places = (inside * 8).div_ceil(PLACE * 5).max(1);
        assert!(u32::try_from(places * PLACE + apart).is_ok(), "positions are 32 bits");
        // All zero, and not of the heap: freed as a whole.
        let places = MmapMut::map_anon(places * PLACE).expect("memory for what was counted");
        // Where there are no large pages it is slower, that is all.
        let _ = places.advise(Advice::HugePage);
        Self { places, apart: Vec::with_capacity(apart) }
    }

    /// Adds a record, which must be among those that were announced.
    pub(super) fn insert(&mut self, hash: u64, record: &[u8]) {
        let mut stub = [0; APART];
        let long;
        let pieces: [&[u8]; 2] = if (1..=LONGEST).contains(&record.len()) {
            long = [record.len() as u8];
            [&long, record]
        } else {
            // It fits: `new` has seen to it.
            let at = (self.places.len() + self.apart.len()) as u32;
            self.apart.extend_from_slice(record);
            stub[1..5].copy_from_slice(&(hash as u32).to_le_bytes());
            stub[5..].copy_from_slice(&at.to_le_bytes());
            [&stub, &[]]
        };
        let needed = pieces[0].len() + pieces[1].len();
        let mut at = self.place(hash);
        loop {
            let bytes = &mut self.places[at * PLACE..][..PLACE];
            let from = 1 + usize::from(bytes[0] & TAKEN);
            if let Some(room) = bytes.get_mut(from..from + needed) {
                let (head, rest) = room.split_at_mut(pieces[0].len());
                head.copy_from_slice(pieces[0]);
                rest.copy_from_slice(pieces[1]);
                bytes[0] += needed as u8;
                return;
            }
            bytes[0] |= REFUSED;
            at = self.next(at);
        }
    }

    /// The first of the records that may have this hash which `is` it.
    pub(super) fn find<'a, T>(&'a self, hash: u64, mut is: impl FnMut(&'a [u8]) -> Option<T>) -> Option<T> {
        let mut at = self.place(hash);
        loop {
            let bytes = &self.places[at * PLACE..][..PLACE];
            let mut rest = &bytes[1..=usize::from(bytes[0] & TAKEN)];
            while let Some((&length, behind)) = rest.split_first() {
                let found = if length == 0 {
                    let (stub, behind) = behind.split_at(APART - 1);
                    rest = behind;
                    let (hashed, position) = read(stub);
                    if hashed == hash as u32 { is(self.from(position)) } else { None }
                } else {
                    let (record, behind) = behind.split_at(length.into());
                    rest = behind;
                    is(record)
                };
                if found.is_some() {
                    return found;
                }
            }
            if bytes[0] & REFUSED == 0 {
                return None;
            }
            at = self.next(at);
        }
    }

    /// Every record with its position. One that is kept apart comes with what lies behind it.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.places.chunks_exact(PLACE).enumerate().flat_map(move |(number, bytes)| {
            let end = 1 + usize::from(bytes[0] & TAKEN);
            let mut at = 1;
            std::iter::from_fn(move || {
                let length = usize::from(*bytes[..end].get(at)?);
                let from = at + 1;
                if length == 0 {
                    at += APART;
                    let (_, position) = read(&bytes[from..at]);
                    return Some((position, self.from(position)));
                }
                at = from + length;
                // It fits: `new` has seen to it.
                Some(((number * PLACE + from) as u32, &bytes[from..at]))
            })
        })
    }

    /// What lies at a position that [`Places::all`] gave, with what lies behind it.
    pub(super) fn from(&self, position: u32) -> &[u8] {
        let position = position as usize;
        match position.checked_sub(self.places.len()) {
            None => &self.places[position..position / PLACE * PLACE + PLACE],
            Some(apart) => &self.apart[apart..],
        }
    }

    /// Bytes of memory.
    pub(super) fn memory(&self) -> usize {
        self.places.len() + self.apart.capacity()
    }

    /// How many there are.
    fn count(&self) -> usize {
        self.places.len() / PLACE
    }

    /// Where a record with this hash belongs. The high bits decide.
    fn place(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.count() as u128) >> 64) as usize
    }

    fn next(&self, place: usize) -> usize {
        if place + 1 == self.count() { 0 } else { place + 1 }
    }
}

/// What stands for a record that is kept apart: hash and position.
fn read(stub: &[u8]) -> (u32, u32) {
    let (hash, position) = stub.split_at(4);
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte));
    (number(hash), number(position))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length for each number: mostly what fits, now and then what does not.
    fn records(lengths: impl Fn(u32) -> usize) -> Vec<(u64, Vec<u8>)> {
        let record = |number: u32| {
            let mut record = number.to_le_bytes().to_vec();
            record.resize(lengths(number).max(4), b'x');
            // Crowded in a few places, and at the very end, where the first place follows.
            let hash = match number % 3 {
                0 => u64::MAX - u64::from(number),
                _ => u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            };
            (hash, record)
        };
        (0..3000).map(record).collect()
    }

    #[test]
    fn every_record_is_found_wherever_it_had_room() {
        type Lengths = fn(u32) -> usize;
        let cases: [(&str, Lengths); 5] = [
            ("short", |_| 4),
            ("as long as fits", |_| LONGEST),
            ("one too long", |_| LONGEST + 1),
            ("mixed", |number| 4 + number as usize * 7 % 60),
            ("very long now and then", |number| if number % 100 == 0 { 70_000 } else { 24 }),
        ];
        for (what, lengths) in cases {
            let records = records(lengths);
            let mut places = Places::new(records.iter().map(|(_, record)| record.len()));
            for (hash, record) in &records {
                places.insert(*hash, record);
            }
            for (hash, record) in &records {
                let found = places.find(*hash, |found| found.starts_with(record).then_some(found));
                assert!(found.is_some(), "{what}: {hash:x}");
                assert_eq!(places.find(*hash, |_| None::<()>), None, "{what}: the search ends");
            }
            let all: Vec<_> = places.all().collect();
            assert_eq!(all.len(), records.len(), "{what}");
            for (position, record) in all {
                assert!(places.from(position).starts_with(record), "{what}: {position}");
            }
        }
    }

    #[test]
    fn nobody_is_found_where_nobody_is() {
        let places = Places::new(std::iter::empty());
        assert_eq!(places.find(7, |_| Some(())), None);
        assert_eq!(places.all().count(), 0);
    }
}
