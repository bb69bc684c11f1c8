//! The index of a finished day: in which blocks of its file something is said of a message or an address.
//!
//! A finished day is a row of blocks, each a gzip member of its own, so the file can be read from the middle and
//! `zcat` reads it as a whole. The index holds, for each id, Message-ID, sender and recipient, a hash and the block:
//! 40 and 24 bits in one number. Sorted numbers stand in pages; a look-up reads one page, because the first number of
//! each page is kept apart. Two different values with one hash cost a block read in vain, never a wrong answer.
//!
//! The numbers are sorted in runs, a bounded part of the day each, so that a day of any size takes the same memory
//! to index. Every page and the tables have a checksum: an index that a fault has damaged is not believed, and the
//! file is read as a whole until the daemon has made a new one. Ten million events have about 100 MB of index.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::Crc;

use super::facts::{Facts, Time, lowered};
use crate::message::MessageId;

/// The last bytes of an index; the digit is the version of its form.
const MAGIC: &[u8; 8] = b"CWTRACK1";
const PAGE: usize = 4096;
/// A checksum and a count stand in front.
const PAGE_HEAD: usize = 8;
const PER_PAGE: usize = (PAGE - PAGE_HEAD) / 8;
/// Numbers sorted at once: 16 MiB.
const RUN: usize = 2 << 20;
/// The bits of a number that name the block: with blocks of 128 KiB, 2 TiB a day.
const BLOCK_BITS: u32 = 24;
/// Length of the file, counts of blocks, pages and runs, checksum, magic.
const FOOTER: usize = 8 + 3 * 4 + 4 + 8;
/// Offset and times of a block.
const BLOCK_ENTRY: usize = 8 + 2 * std::mem::size_of::<Time>();

/// What is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key(u64);

impl Key {
    pub fn id(id: MessageId) -> Self {
        Self::new(b'i', &id.0.to_be_bytes())
    }

    /// As it stands in a line.
    pub fn message_id(text: &[u8]) -> Self {
        Self::new(b'm', text)
    }

    /// As it stands in a line, in whatever case.
    pub fn from(address: &[u8]) -> Self {
        Self::new(b'f', &lowered(address))
    }

    /// The same.
    pub fn to(address: &[u8]) -> Self {
        Self::new(b't', &lowered(address))
    }

    /// It stands on disk, so it is spelled out here and never changes: FNV-1a, then the bits are mixed, because the
    /// upper ones are used.
    fn new(kind: u8, text: &[u8]) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for &byte in [kind].iter().chain(text) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        Self((hash ^ (hash >> 33)) >> BLOCK_BITS)
    }

    /// The numbers of this key begin here.
    fn first(self) -> u64 {
        self.0 << BLOCK_BITS
    }
}

/// A stretch of the compressed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub offset: u64,
    pub end: u64,
    /// The earliest and the latest event in it.
    pub times: (Time, Time),
}

/// Writes an index while the file it is of is written or read.
pub(super) struct Builder<W> {
    out: W,
    numbers: Vec<u64>,
    blocks: Vec<(u64, Time, Time)>,
    times: Option<(Time, Time)>,
    /// The first number of each page.
    fences: Vec<u64>,
    /// The pages of each run.
    runs: Vec<u32>,
    room: Vec<u8>,
}

impl<W: Write> Builder<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            numbers: Vec::new(),
            blocks: Vec::new(),
            times: None,
            fences: Vec::new(),
            runs: Vec::new(),
            room: Vec::new(),
        }
    }

    /// A line of the block under construction.
    pub fn line(&mut self, line: &[u8]) {
        let mut room = std::mem::take(&mut self.room);
        if let Some(facts) = Facts::of(line, &mut room) {
            let (first, last) = self.times.unwrap_or((facts.time, facts.time));
            self.times = Some((first.min(facts.time), last.max(facts.time)));
            let block = self.blocks.len() as u64 & ((1 << BLOCK_BITS) - 1);
            let ids = [facts.id, facts.report()].into_iter().flatten().map(Key::id);
            let keys = ids
                .chain(facts.message_id.map(Key::message_id))
                .chain(facts.from.map(Key::from))
                .chain(facts.to().map(Key::to));
            for key in keys {
                let number = key.first() | block;
                // The events of a message follow one another; most of what they repeat is caught here.
                if !self.numbers.iter().rev().take(8).any(|&other| other == number) {
                    self.numbers.push(number);
                }
            }
        }
        self.room = room;
    }

    /// The block is complete; it begins at `offset` of the compressed file.
    pub fn end_block(&mut self, offset: u64) -> io::Result<()> {
        // A block without any event is there all the same, at a time when nothing is looked for.
        let (first, last) = self.times.take().unwrap_or(([b'9'; super::facts::TIME], [b'0'; super::facts::TIME]));
        self.blocks.push((offset, first, last));
        if self.blocks.len() > 1 << BLOCK_BITS {
            return Err(io::Error::other("too many blocks in one day"));
        }
        if self.numbers.len() >= RUN { self.end_run() } else { Ok(()) }
    }

    fn end_run(&mut self) -> io::Result<()> {
        self.numbers.sort_unstable();
        self.numbers.dedup();
        let mut pages = 0;
        for numbers in self.numbers.chunks(PER_PAGE) {
            let mut page = [0; PAGE];
            for (place, number) in page[PAGE_HEAD..].chunks_exact_mut(8).zip(numbers) {
                place.copy_from_slice(&number.to_le_bytes());
            }
            page[4..PAGE_HEAD].copy_from_slice(&(numbers.len() as u32).to_le_bytes());
            let sum = checksum(&page[4..]);
            page[..4].copy_from_slice(&sum.to_le_bytes());
            self.out.write_all(&page)?;
            self.fences.push(numbers[0]);
            pages += 1;
        }
        if pages > 0 {
            self.runs.push(pages);
        }
        self.numbers.clear();
        Ok(())
    }

    /// Writes what is left. `length` is that of the compressed file: an index is of no other.
    pub fn finish(mut self, length: u64) -> io::Result<W> {
        self.end_run()?;
        let mut tables = Vec::new();
        for (offset, first, last) in &self.blocks {
            tables.extend_from_slice(&offset.to_le_bytes());
            tables.extend_from_slice(first);
            tables.extend_from_slice(last);
        }
        for fence in &self.fences {
            tables.extend_from_slice(&fence.to_le_bytes());
        }
        for pages in &self.runs {
            tables.extend_from_slice(&pages.to_le_bytes());
        }
        tables.extend_from_slice(&length.to_le_bytes());
        for count in [self.blocks.len(), self.fences.len(), self.runs.len()] {
            let count = u32::try_from(count).map_err(io::Error::other)?;
            tables.extend_from_slice(&count.to_le_bytes());
        }
        let sum = checksum(&tables);
        tables.extend_from_slice(&sum.to_le_bytes());
        tables.extend_from_slice(MAGIC);
        self.out.write_all(&tables)?;
        Ok(self.out)
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// An index that is whole and fits its file.
#[derive(Debug)]
pub(super) struct Index {
    file: File,
    blocks: Vec<Block>,
    fences: Vec<u64>,
    runs: Vec<u32>,
}

impl Index {
    /// Opens the index at `path` of a compressed file of `length` bytes.
    ///
    /// # Errors
    /// It is not there, not whole, or of another file.
    pub fn open(path: &Path, length: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the index is damaged or of another file");
        let mut footer = [0; FOOTER];
        let tables_end = size.checked_sub(FOOTER as u64).ok_or_else(damaged)?;
        file.read_exact_at(&mut footer, tables_end)?;
        let mut numbers = Numbers(&footer);
        let (of, blocks, pages, runs) = (numbers.long(), numbers.short(), numbers.short(), numbers.short());
        let sum = numbers.short();
        let wanted = u64::from(blocks) * BLOCK_ENTRY as u64 + u64::from(pages) * 8 + u64::from(runs) * 4;
        if numbers.0 != MAGIC || of != length || u64::from(pages) * PAGE as u64 + wanted != tables_end {
            return Err(damaged());
        }
        let mut tables = vec![0; usize::try_from(wanted).map_err(io::Error::other)?];
        file.seek(SeekFrom::Start(tables_end - wanted))?;
        file.read_exact(&mut tables)?;
        let mut crc = Crc::new();
        crc.update(&tables);
        crc.update(&footer[..FOOTER - 12]);
        if crc.sum() != sum {
            return Err(damaged());
        }
        let mut numbers = Numbers(&tables);
        let mut blocks: Vec<Block> = (0..blocks)
            .map(|_| Block { offset: numbers.long(), end: length, times: (numbers.time(), numbers.time()) })
            .collect();
        for next in (1..blocks.len()).rev() {
            blocks[next - 1].end = blocks[next].offset;
        }
        let fences = (0..pages).map(|_| numbers.long()).collect();
        let runs: Vec<u32> = (0..runs).map(|_| numbers.short()).collect();
        if blocks.iter().any(|block| block.offset > block.end)
            || runs.iter().map(|&pages| u64::from(pages)).sum::<u64>() != u64::from(pages)
        {
            return Err(damaged());
        }
        Ok(Self { file, blocks, fences, runs })
    }

    /// All blocks, in their order.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// Adds the numbers of the blocks in which `key` stands, and perhaps one in which it does not.
    ///
    /// # Errors
    /// A page cannot be read or is damaged: the index is of no use.
    pub fn find(&self, key: Key, found: &mut BTreeSet<u32>) -> io::Result<()> {
        let first = key.first();
        let mut run_start = 0;
        for &pages in &self.runs {
            let run_end = run_start + pages as usize;
            let fences = &self.fences[run_start..run_end];
            // The first number that is not smaller may be the last of the page before.
            let mut page = run_start + fences.partition_point(|&fence| fence < first).saturating_sub(1);
            while page < run_end && self.fences[page] >> BLOCK_BITS <= key.0 {
                self.page(page, |number| {
                    if number >> BLOCK_BITS == key.0 {
                        // 24 bits.
                        found.insert((number & ((1 << BLOCK_BITS) - 1)) as u32);
                    }
                })?;
                page += 1;
            }
            run_start = run_end;
        }
        if found.last().is_some_and(|&block| block as usize >= self.blocks.len()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the index names a block that is not there"));
        }
        Ok(())
    }

    fn page(&self, number: usize, each: impl FnMut(u64)) -> io::Result<()> {
        let mut page = [0; PAGE];
        self.file.read_exact_at(&mut page, (number * PAGE) as u64)?;
        let mut head = Numbers(&page);
        let (sum, count) = (head.short(), head.short() as usize);
        if sum != checksum(&page[4..]) || count > PER_PAGE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a page of the index is damaged"));
        }
        let mut numbers = Numbers(&page[PAGE_HEAD..]);
        (0..count).map(|_| numbers.long()).for_each(each);
        Ok(())
    }
}

/// Reads what the builder wrote; its caller has seen that so much is there.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (taken, rest) = self.0.split_first_chunk().expect("the length was checked");
        self.0 = rest;
        *taken
    }

    fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn short(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn time(&mut self) -> Time {
        self.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Address;
    use crate::outcome::tracking::{Event, EventKind};

    fn line(id: u64, from: &str, to: &str) -> String {
        let (from, to) = (Address::parse(from).unwrap(), Address::parse(to).unwrap());
        let time = "2026-11-20T12:00:00Z".parse::<jiff::Timestamp>().unwrap();
        Event {
            message_id: Some(&format!("<{id}@example.net>")),
            from: Some(&from),
            to: &[&to],
            ..Event::new(time, EventKind::Send, MessageId(id))
        }
        .to_json()
    }

    fn found(index: &Index, key: Key) -> Vec<u32> {
        let mut found = BTreeSet::new();
        index.find(key, &mut found).unwrap();
        found.into_iter().collect()
    }

    fn written(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("day.idx");
        let mut builder = Builder::new(File::create(&path).unwrap());
        for block in 0..300_u64 {
            for id in block * 10..block * 10 + 10 {
                let to = if id % 100 == 0 { "Rare@contoso.com" } else { "often@contoso.com" };
                builder.line(line(id, &format!("{}@example.net", id / 7), to).as_bytes());
            }
            builder.end_block(block * 100).unwrap();
            // Several runs, as a large day has them.
            if block % 90 == 89 {
                builder.end_run().unwrap();
            }
        }
        builder.finish(30_000).unwrap();
        path
    }

    #[test]
    fn each_value_is_found_in_its_blocks_and_in_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(&written(folder.path()), 30_000).unwrap();
        assert_eq!(index.blocks().len(), 300);
        assert_eq!((index.blocks()[299].offset, index.blocks()[299].end), (29_900, 30_000));
        assert_eq!(&index.blocks()[7].times.0, b"2026-11-20T12:00:00.000000Z");
        for id in 0..3000 {
            assert_eq!(found(&index, Key::id(MessageId(id))), [(id / 10) as u32], "{id}");
            assert_eq!(found(&index, Key::message_id(format!("<{id}@example.net>").as_bytes())), [(id / 10) as u32]);
        }
        assert_eq!(found(&index, Key::from(b"10@example.net")), [7], "70 to 76");
        assert_eq!(found(&index, Key::from(b"4@EXAMPLE.net")), [2, 3], "28 to 34");
        assert_eq!(found(&index, Key::to(b"rare@contoso.com")), (0..30).map(|block| block * 10).collect::<Vec<_>>());
        assert_eq!(found(&index, Key::to(b"often@contoso.com")).len(), 300);
        assert_eq!(found(&index, Key::from(b"rare@contoso.com")), [] as [u32; 0]);
        assert_eq!(found(&index, Key::id(MessageId(3000))), [] as [u32; 0]);
    }

    #[test]
    fn a_damaged_index_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let good = std::fs::read(&path).unwrap();
        assert!(Index::open(&path, 30_001).is_err(), "it is of another file");
        for cut in [0, 10, FOOTER, good.len() / 2, good.len() - 1] {
            std::fs::write(&path, &good[..cut]).unwrap();
            assert!(Index::open(&path, 30_000).is_err(), "cut at {cut}");
        }
        for at in (0..good.len()).step_by(997).chain(good.len() - FOOTER..good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 0x20;
            std::fs::write(&path, &bad).unwrap();
            let believed = Index::open(&path, 30_000).and_then(|index| {
                (0..3000).try_for_each(|id| index.find(Key::id(MessageId(id)), &mut BTreeSet::new()))?;
                (0..500).try_for_each(|from| {
                    index.find(Key::from(format!("{from}@example.net").as_bytes()), &mut BTreeSet::new())
                })
            });
            assert!(believed.is_err(), "byte {at} of {} was changed", good.len());
        }
    }
}
