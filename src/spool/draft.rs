//! The content of a message while it arrives: in memory up to 1.25 MiB, then in a file of its own.
//!
//! Pieces are kept as they came, not copied; only very small ones are put together, so that one message does not
//! become a thousand of them. A draft that is dropped leaves nothing behind.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};

use super::Shared;
use super::disk::{DiskFile, blocking, crash_point, write_all_at};
use super::format::Checksum;
use crate::message::Body;
use crate::message::header::HEADER_LIMIT;
use crate::outcome::spans::Begun;

/// Pieces shorter than this are copied together: a vector entry costs more than so few bytes.
const SMALL: usize = 512;
/// So many bytes are written to the file at a time.
const BLOCK: usize = 256 << 10;
/// The same, and how much stays in memory at all, while drafts take more than half the memory they may.
const BLOCK_IN_NEED: usize = 64 << 10;

/// The empty line behind a header block.
const HEADER_END: &[u8] = b"\r\n\r\n";

fn ends_header(bytes: &[u8]) -> bool {
    memchr::memmem::find(bytes, HEADER_END).is_some()
}

/// How much memory all drafts take, and may take.
#[derive(Debug)]
pub struct Room {
    held: AtomicU64,
    limit: AtomicU64,
}

impl Default for Room {
    fn default() -> Self {
        Self { held: AtomicU64::new(0), limit: AtomicU64::new(u64::MAX) }
    }
}

impl Room {
    /// They may take so many bytes.
    pub fn limit(&self, bytes: u64) {
        self.limit.store(bytes, Ordering::Relaxed);
    }

    fn is_tight(&self) -> bool {
        self.held.load(Ordering::Relaxed) > self.limit.load(Ordering::Relaxed) / 2
    }

    fn is_full(&self) -> bool {
        self.held.load(Ordering::Relaxed) >= self.limit.load(Ordering::Relaxed)
    }
}

/// Memory that a draft takes, counted until this is dropped.
#[derive(Debug)]
pub struct Held {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Held {
    fn set(&mut self, bytes: u64) {
        // More is added and less taken away: nobody ever reads a sum that was not true.
        if bytes > self.bytes {
            self.shared.drafts.held.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            self.shared.drafts.held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The content of a message while it arrives.
pub struct Draft {
    shared: Option<Arc<Shared>>,
    held: Option<Held>,
    /// The first bytes; all of them, while there is no file.
    pieces: Vec<Bytes>,
    /// Small pieces being put together, behind `pieces`.
    tail: BytesMut,
    len: u64,
    seven_bit: bool,
    own: Option<Box<OwnFile>>,
    /// The content went on in a file of its own before its header was complete, so what comes stays in memory too.
    header_open: bool,
    begun: Begun,
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the text itself: a draft may be printed with what it is part of.
        f.debug_struct("Draft").field("len", &self.len).field("own", &self.own).finish_non_exhaustive()
    }
}

/// A large message's own file.
#[derive(Debug)]
pub struct OwnFile {
    shared: Arc<Shared>,
    /// In its name.
    pub number: u64,
    /// Itself; `None` before the first block.
    pub file: Option<Arc<dyn DiskFile>>,
    /// How much was written.
    pub len: u64,
    /// Of what was written.
    pub crc: Checksum,
    /// Not written yet.
    waiting: Vec<Bytes>,
    waiting_len: usize,
    /// It has a record; it stays.
    pub kept: bool,
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if !self.kept
            && self.file.is_some()
            && self.shared.remove_own(std::num::NonZeroU64::new(self.number).into_iter())
        {
            self.shared.kick_keeper();
        }
    }
}

impl OwnFile {
    /// Writes what waits. Blocking.
    fn write(&mut self) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => {
                let file = self.shared.disk.create(&self.shared.folders.own(self.number))?;
                self.file.insert(file).clone()
            }
        };
        let mut slices: Vec<_> = self.waiting.iter().map(|piece| IoSlice::new(piece)).collect();
        write_all_at(&*file, &mut slices, self.len)?;
        for piece in std::mem::take(&mut self.waiting) {
            self.crc.update(&piece);
        }
        self.len += std::mem::take(&mut self.waiting_len) as u64;
        Ok(())
    }

    /// Makes file and name durable. Blocking.
    fn finish(&mut self) -> io::Result<()> {
        self.write()?;
        if let Some(file) = &self.file {
            file.sync()?;
        }
        crash_point("large.synced");
        self.shared.disk.sync_folder(&self.shared.folders.large)?;
        crash_point("large.named");
        Ok(())
    }
}

impl Draft {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let held = Some(Held { shared: Arc::clone(&shared), bytes: 0 });
        let tail = BytesMut::new();
        let begun = Begun::now();
        Self {
            shared: Some(shared),
            held,
            pieces: Vec::new(),
            tail,
            len: 0,
            seven_bit: true,
            own: None,
            header_open: false,
            begun,
        }
    }

    /// A draft that is complete: a report the relay wrote.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let (len, seven_bit) = (bytes.len() as u64, bytes.is_ascii());
        let pieces = if bytes.is_empty() { Vec::new() } else { vec![bytes] };
        let begun = Begun::now();
        Self {
            shared: None,
            held: None,
            pieces,
            tail: BytesMut::new(),
            len,
            seven_bit,
            own: None,
            header_open: false,
            begun,
        }
    }

    /// When it began to arrive, for traces.
    pub fn begun(&self) -> Begun {
        self.begun
    }

    /// The whole content, if it is in memory and will stay there; the draft is as complete as before.
    pub fn in_memory(&mut self) -> Option<Body> {
        let stays = self.shared.as_ref().is_none_or(|shared| self.len <= shared.options.large_at);
        if self.own.is_some() || !stays {
            return None;
        }
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.split().freeze());
        }
        Some(Body::Memory(self.pieces.as_slice().into()))
    }

    /// The next piece. Waits only if the content has become large, while blocks of it are written.
    ///
    /// # Errors
    /// What the file system says. The draft is of no use then.
    pub async fn push(&mut self, piece: Bytes) -> io::Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        let (is_full, is_tight) = match &self.shared {
            Some(shared) => (shared.drafts.is_full(), shared.drafts.is_tight()),
            None => (false, false),
        };
        if is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.len += piece.len() as u64;
        self.seven_bit = self.seven_bit && piece.is_ascii();
        if let Some(own) = &mut self.own {
            own.waiting_len += piece.len();
            own.waiting.push(piece.clone());
            if self.header_open {
                self.go_on_with_header(&piece);
            }
            let Some(own) = &self.own else { return Ok(()) };
            let block = if is_tight { BLOCK_IN_NEED } else { BLOCK };
            if own.waiting_len >= block {
                self.block(OwnFile::write).await?;
            }
            self.count();
            return Ok(());
        }
        self.keep(piece);
        self.count();
        match &self.shared {
            Some(shared) if self.len > shared.options.large_at || (is_tight && self.len > BLOCK_IN_NEED as u64) => {
                let shared = shared.clone();
                self.spill(&shared).await?;
                self.count();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Says how much of it is in memory now.
    fn count(&mut self) {
        let bytes = match &self.own {
            // The header stays, beside what is not written yet.
            Some(own) => (own.waiting_len + self.tail.len() + self.pieces.iter().map(Bytes::len).sum::<usize>()) as u64,
            None => self.len,
        };
        if let Some(held) = &mut self.held {
            held.set(bytes);
        }
    }

    fn keep(&mut self, piece: Bytes) {
        if piece.len() < SMALL {
            self.tail.extend_from_slice(&piece);
            return;
        }
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.split().freeze());
        }
        self.pieces.push(piece);
    }

    /// Goes on in a file of its own.
    async fn spill(&mut self, shared: &Arc<Shared>) -> io::Result<()> {
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.split().freeze());
        }
        self.own = Some(Box::new(OwnFile {
            shared: shared.clone(),
            number: shared.next_number(),
            file: None,
            len: 0,
            crc: Checksum::new(),
            waiting: self.pieces.clone(),
            waiting_len: self.len as usize,
            kept: false,
        }));
        // What is in the file need not be in memory too, but for the header.
        let head = self.head();
        self.pieces.clear();
        self.header_open = true;
        self.go_on_with_header(&head);
        self.block(OwnFile::write).await
    }

    /// Keeps a header in memory to its end, or as far as anybody reads one.
    fn go_on_with_header(&mut self, piece: &[u8]) {
        // The empty line may lie across two pieces.
        let from = self.tail.len().saturating_sub(HEADER_END.len() - 1);
        self.tail.extend_from_slice(piece);
        if self.tail.len() >= HEADER_LIMIT || ends_header(&self.tail[from..]) {
            self.header_open = false;
            self.pieces = vec![self.tail.split().freeze()];
        }
    }

    async fn block(&mut self, work: fn(&mut OwnFile) -> io::Result<()>) -> io::Result<()> {
        // While it is away the draft has no file; if the caller gives up meanwhile, the file goes with the task.
        let Some(mut own) = self.own.take() else { return Ok(()) };
        let work = blocking(move || {
            let done = work(&mut own);
            (own, done)
        });
        let (own, done) = work.await.map_err(io::Error::other)?;
        self.own = Some(own);
        done
    }

    /// Length in bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True if every byte so far is below 128.
    pub fn is_seven_bit(&self) -> bool {
        self.seven_bit
    }

    /// True if there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first bytes, for a look at the header: at least to the end of the header block where that lies within the
    /// first MiB or so. Not copied if they came in one piece.
    pub fn head(&self) -> Bytes {
        match (self.pieces.as_slice(), self.tail.is_empty()) {
            ([], true) => Bytes::new(),
            ([one], true) => one.clone(),
            ([one, ..], _) if ends_header(one) => one.clone(),
            (pieces, _) => {
                let mut head = BytesMut::new();
                for piece in pieces.iter().map(Bytes::as_ref).chain([&self.tail[..]]) {
                    // The empty line may lie across two pieces.
                    let from = head.len().saturating_sub(HEADER_END.len() - 1);
                    head.extend_from_slice(piece);
                    if ends_header(&head[from..]) {
                        break;
                    }
                }
                head.freeze()
            }
        }
    }

    /// Complete: either all the pieces, or a file that is durable under its name.
    pub(super) async fn finish(mut self, shared: &Arc<Shared>) -> io::Result<Finished> {
        if self.own.is_none() && self.len > shared.options.large_at {
            self.spill(shared).await?;
        }
        if self.own.is_some() {
            self.block(OwnFile::finish).await?;
            if let Some(own) = self.own.take() {
                return Ok(Finished::Own(own));
            }
        }
        if !self.tail.is_empty() {
            self.pieces.push(self.tail.split().freeze());
        }
        Ok(Finished::Memory(self.pieces.into(), self.held.take()))
    }
}

/// A draft that is complete.
pub(super) enum Finished {
    /// In these pieces, which count as long as this is held.
    Memory(Arc<[Bytes]>, Option<Held>),
    /// In this file, which goes when this goes, unless it is kept.
    Own(Box<OwnFile>),
}
