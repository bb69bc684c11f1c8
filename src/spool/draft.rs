//! The content of a message while it arrives: in memory up to 1.25 MiB, then in a file of its own.
//!
//! Pieces are kept as they came, not copied; only very small ones are put together, so that one message does not
//! become a thousand of them. A draft that is dropped leaves nothing behind.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Shared;
use super::disk::{DiskFile, blocking, crash_point, write_all_at};
use super::format::Checksum;
use crate::message::Body;

/// Pieces shorter than this are copied together: a vector entry costs more than so few bytes.
const SMALL: usize = 512;
/// So many bytes are written to the file at a time.
const BLOCK: usize = 256 << 10;

/// The empty line behind a header block.
const HEADER_END: &[u8] = b"\r\n\r\n";

fn ends_header(bytes: &[u8]) -> bool {
    memchr::memmem::find(bytes, HEADER_END).is_some()
}

/// The content of a message while it arrives.
pub struct Draft {
    shared: Option<Arc<Shared>>,
    /// The first bytes; all of them, while there is no file.
    pieces: Vec<Bytes>,
    /// Small pieces being put together, behind `pieces`.
    tail: BytesMut,
    len: u64,
    seven_bit: bool,
    own: Option<Box<OwnFile>>,
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
        Self { shared: Some(shared), pieces: Vec::new(), tail: BytesMut::new(), len: 0, seven_bit: true, own: None }
    }

    /// A draft that is complete: a report the relay wrote.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let (len, seven_bit) = (bytes.len() as u64, bytes.is_ascii());
        let pieces = if bytes.is_empty() { Vec::new() } else { vec![bytes] };
        Self { shared: None, pieces, tail: BytesMut::new(), len, seven_bit, own: None }
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
        self.len += piece.len() as u64;
        self.seven_bit = self.seven_bit && piece.is_ascii();
        if let Some(own) = &mut self.own {
            own.waiting_len += piece.len();
            own.waiting.push(piece);
            return if own.waiting_len >= BLOCK { self.block(OwnFile::write).await } else { Ok(()) };
        }
        self.keep(piece);
        match &self.shared {
            Some(shared) if self.len > shared.options.large_at => {
                let shared = shared.clone();
                self.spill(&shared).await
            }
            _ => Ok(()),
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
        self.pieces = vec![self.head()];
        self.block(OwnFile::write).await
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
        Ok(Finished::Memory(self.pieces.into()))
    }
}

/// A draft that is complete.
pub(super) enum Finished {
    /// In these pieces.
    Memory(Arc<[Bytes]>),
    /// In this file, which goes when this goes, unless it is kept.
    Own(Box<OwnFile>),
}
