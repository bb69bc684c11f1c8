//! The spool: what was acknowledged survives kill -9 and power loss.
//!
//! An append-only log of records in preallocated segment files, an index in memory, and nothing else. One
//! committer thread (`commit`) writes what waits with one vectored write and one `fdatasync`, then wakes those it
//! covers; one keeper thread (`keep`) takes dead segments out and makes new ones. Large messages have files of
//! their own, which the log names.
//!
//! ```text
//! spool/lock          one daemon at a time
//! spool/generation    counts its starts, from the time of the first one: the upper bits of every message's number; the
//!                     lower ones count from a random number on
//! spool/log/          0000002a.segment, and 00000007.spare to be used again
//! spool/large/        00000a0000000001.body
//! spool/corrupt/      what could not be read, and why
//! ```
//!
//! Not here: when a 250 may be given (`relay::acknowledge`), when an attempt is due (`relay::schedule`).

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use nix::errno::Errno;
use tokio::sync::oneshot;

use crate::clock;
use crate::config::ConnectorName;
use crate::message::{Body, Envelope, MessageId, OrganizationHeaders};
use crate::random::{self, HashMap};
use crate::route::{Hop, HopCopy};

mod commit;
pub mod disk;
mod draft;
pub mod format;
mod index;
mod keep;
pub mod look;
#[cfg(test)]
pub(crate) mod model;
pub mod recover;
mod remarks;
mod shelf;
#[cfg(test)]
mod tests;

use commit::{Committer, Put, Queue};
use disk::{Disk, DiskFile, Local, read_full_at, write_all_at};
pub use draft::Draft;
use draft::Finished;
use format::{Checksum, Content, RECORD_HEAD};
use index::{Entry, Fate, Index, Place};
use keep::Unread;
pub use look::{CopyStanding, Known, Standing, Step};
pub use recover::{CorruptRecord, Recovered, Recovery};
use shelf::{Folders, Places, Room, Shelf};

/// A message as the spool keeps it. Shared, never changed; what was settled since stands in the index.
#[derive(Debug)]
pub struct Message {
    /// Its number.
    pub id: MessageId,
    /// When it was accepted, wall clock.
    pub accepted: Timestamp,
    /// Sender and parameters; `recipients` is empty, they stand in `copies`.
    pub envelope: Envelope,
    /// The receive connector it came by; empty for reports the relay wrote.
    pub connector: Box<str>,
    /// The `Message-ID` field, for tracking.
    pub message_id: Option<Box<str>>,
    /// Fields put in front of the content: our `Received:`.
    pub prefix: Bytes,
    /// What becomes of the organization headers in the content.
    pub organization: OrganizationHeaders,
    /// What came.
    pub content: Body,
    /// The plan: one copy per next hop.
    pub copies: Vec<HopCopy>,
}

/// A message about to be put: as [`Message`], its content in a [`Draft`].
#[derive(Debug)]
pub struct NewMessage {
    /// From [`Spool::next_id`].
    pub id: MessageId,
    /// See [`Message`].
    pub accepted: Timestamp,
    /// See [`Message`].
    pub envelope: Envelope,
    /// See [`Message`].
    pub connector: Box<str>,
    /// See [`Message`].
    pub message_id: Option<Box<str>>,
    /// See [`Message`].
    pub prefix: Bytes,
    /// See [`Message`].
    pub organization: OrganizationHeaders,
    /// The content.
    pub content: Draft,
    /// See [`Message`].
    pub copies: Vec<HopCopy>,
    /// What this message settles by existing: a failure report and the failure it reports become durable in one
    /// record, so a crash can neither lose the report nor write it twice. Recipients of its own stand here too, where
    /// they were delivered before it was put.
    pub settles: Vec<Settlement>,
}

/// One recipient of one copy is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settlement {
    /// The message.
    pub id: MessageId,
    /// Index into its copies.
    pub copy: u16,
    /// Index into the copy's recipients.
    pub recipient: u16,
    /// How it ended.
    pub end: End,
}

/// How a recipient ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its next hop took it.
    Delivered,
    /// It never will be.
    Failed,
}

/// One copy is tried again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deferral {
    /// The message.
    pub id: MessageId,
    /// Index into its copies.
    pub copy: u16,
    /// When, wall clock.
    pub until: Timestamp,
    /// How many attempts were made.
    pub attempts: u16,
    /// The sender was warned of the delay.
    pub warned: bool,
    /// It is held: it is not tried until an operator releases it.
    pub held: bool,
    /// How many attempts ended inside the relay: up to three are kept.
    pub panics: u8,
}

/// Proof that a message is on stable storage. Only the committer makes one, only after the sync returned.
#[must_use = "a receipt is what a 250 follows from"]
#[derive(Debug)]
pub struct Receipt {
    /// The message as it is kept.
    pub message: Arc<Message>,
    #[expect(dead_code, reason = "keeps others from building a receipt")]
    sealed: Sealed,
}

/// What the committer hands out after the sync, and nobody else.
#[derive(Debug)]
pub(crate) struct Sealed(());

/// Why a message could not be put. New mail gets 452; what was accepted before is not touched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PutError {
    /// Below `min_free_space`, or no space left on the device.
    #[error("the spool is full: {0}")]
    Full(String),
    /// Writing or syncing failed.
    #[error("the spool cannot be written: {0}")]
    Fault(String),
    /// Its envelope is longer than any record can be: it never will be put. 552 5.3.4.
    #[error("the envelope is too long for the spool: {0}")]
    TooLong(String),
}

/// What of a copy still waits, as recovery finds it.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The message.
    pub id: MessageId,
    /// Index into its copies.
    pub copy: u16,
    /// When the message was accepted.
    pub accepted: Timestamp,
    /// The copy's send connector.
    pub via: ConnectorName,
    /// The copy's next hop.
    pub hop: Hop,
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
}

/// How to open a spool.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder; made if it is missing.
    pub path: PathBuf,
    /// Bytes that stay free.
    pub min_free_space: u64,
}

/// A message as [`Spool::load`] gives it.
#[derive(Debug)]
pub struct Loaded {
    /// The message.
    pub message: Arc<Message>,
    /// For each of its copies, which recipients (indices into the copy's) are not settled.
    pub open: Vec<Vec<u16>>,
}

/// Why a message cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is not in the spool, or not any more.
    #[error("it is not in the spool")]
    Gone,
    /// Its record is damaged. It was set aside under `corrupt/` and is no longer in the spool.
    #[error("it is damaged and was set aside under corrupt/: {0}")]
    Damaged(String),
    /// It could not be read this time.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Why a spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder may not be used.
    #[error("the spool {path} cannot be used: {error}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not, and what to do.
        error: io::Error,
    },
    /// Another daemon has it.
    #[error("the spool {path} is in use by another daemon{}; stop it first, or set another [spool] path", process(.pid))]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The other's process, if it said so.
        pid: Option<u32>,
    },
    /// A newer version wrote it.
    #[error(
        "the spool file {path} has format {found}, and this version reads up to {known}; nothing was changed: \
         start the newer version again; for the older one let it deliver what waits, then move the folder log away",
        known = format::VERSION
    )]
    Newer {
        /// The segment.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Something else failed.
    #[error("{path}: {error}; the spool needs a disk that can be written")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the file system says.
        error: io::Error,
    },
}

fn process(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// What tests and small disks have otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The length of a segment. `None`: 16 MiB, less on a small disk.
    pub(crate) segment_size: Option<u32>,
    /// Content longer than this gets a file of its own.
    pub(crate) large_at: u64,
    /// So many segments' worth of dead records are left lying.
    pub(crate) dead_segments: u32,
    /// The keeper has a thread of its own.
    pub(crate) keeper_thread: bool,
    /// The committer has one. Else it stands still until [`Spool::step`].
    #[cfg(test)]
    pub(crate) committer_thread: bool,
    /// The pause before a disk that failed is tried again.
    pub(crate) pause: Duration,
    /// A message that the disk has not given for so long is set aside.
    pub(crate) read_patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_size: None,
            // A MiB, with room for its header and line ends: one that long costs less than half in the log, where it
            // shares its sync and nothing is made and removed for it (benches/README.md).
            large_at: 5 << 18,
            dead_segments: 4,
            keeper_thread: true,
            #[cfg(test)]
            committer_thread: true,
            pause: Duration::from_millis(100),
            // A cable, a path or a controller comes back within that; a bad block never does.
            read_patience: Duration::from_hours(1),
        }
    }
}

/// The usual length of a segment: large enough that going on to the next is rare, small enough that the first turn,
/// in which every block is written for the first time and a sync costs twice as much, is soon over.
const SEGMENT: u32 = 16 << 20;
/// The least: a record must fit.
const SEGMENT_LEAST: u32 = 512 << 10;
/// Up to here recovery and `load` give content in memory; beyond, as a stretch of its file.
const SMALL_CONTENT: u64 = 64 << 10;

/// What the spool, its threads and its drafts share.
pub(crate) struct Shared {
    disk: Arc<dyn Disk>,
    folders: Folders,
    /// Which folders those are.
    places: Places,
    options: Options,
    shelf: Shelf,
    room: Room,
    generation: u64,
    next: AtomicU64,
    waiting: AtomicUsize,
    drafts: draft::Room,
    queue: Mutex<Queue>,
    bell: Condvar,
    index: Mutex<Index>,
    chores: Mutex<keep::Chores>,
    keeper_bell: Condvar,
    is_broken: AtomicBool,
    broken: Mutex<Option<PutError>>,
    /// Messages that the disk did not give when they were asked for: the first time and the last.
    unread: Mutex<HashMap<MessageId, (Instant, Instant)>>,
    lock: Mutex<Option<Box<dyn Any + Send + Sync>>>,
    /// Somebody has work for a committer without a thread.
    #[cfg(test)]
    called: tokio::sync::Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("root", &self.folders.root).finish_non_exhaustive()
    }
}

/// An open spool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool {
    shared: Arc<Shared>,
    threads: Arc<Threads>,
}

/// The committer and the keeper; they end when the last [`Spool`] does.
#[derive(Debug)]
struct Threads {
    shared: Arc<Shared>,
    committer: Mutex<Option<JoinHandle<()>>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    /// Where it has no thread.
    #[cfg(test)]
    still: Mutex<Option<Committer>>,
}

impl Threads {
    fn begin(&self, committer: Committer) -> io::Result<()> {
        #[cfg(test)]
        if !self.shared.options.committer_thread {
            *self.still.lock().unwrap_or_else(PoisonError::into_inner) = Some(committer);
            return Ok(());
        }
        let committer = spawn("spool-commit", move || committer.run())?;
        *self.committer.lock().unwrap_or_else(PoisonError::into_inner) = Some(committer);
        Ok(())
    }

    /// Ends both, after what was said so far is durable. Blocking.
    fn end(&self) {
        // The committer first: the last batch may give the keeper something to do, which can wait for the next start.
        self.shared.stop_committer();
        #[cfg(test)]
        if let Some(still) = self.still.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            still.step();
        }
        let committer = self.committer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(committer) = committer {
            let _ = committer.join();
        }
        self.shared.stop_keeper();
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            let _ = keeper.join();
        }
        self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Not joined here: this may be a task on a runtime thread. The lock goes when the last thread is done.
        self.shared.stop_committer();
        self.shared.stop_keeper();
    }
}

impl Spool {
    /// Opens the spool, or makes it: takes the lock, begins a new generation and a new segment. Old segments are read
    /// by [`Recovery::run`], while new mail may already come. Blocking.
    ///
    /// # Errors
    /// What is in the way, and what to do about it.
    pub fn open(settings: Settings) -> Result<(Self, Recovery), OpenError> {
        Self::open_on(Arc::new(Local), settings, Options::default())
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        settings: Settings,
        mut options: Options,
    ) -> Result<(Self, Recovery), OpenError> {
        let folders = Folders::below(&settings.path);
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::Io { path, error }
        };
        let folder =
            |path: &Path| disk.folder(path).map_err(|error| OpenError::Folder { path: path.to_owned(), error });
        folder(&folders.root)?;
        let lock_path = folders.root.join("lock");
        let lock = disk.lock(&lock_path).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                OpenError::Locked { path: settings.path.clone(), pid: error.to_string().parse().ok() }
            }
            _ => OpenError::Io { path: lock_path.clone(), error },
        })?;
        for path in [&folders.log, &folders.large, &folders.corrupt] {
            folder(path)?;
        }
        disk.sync_folder(&folders.root).map_err(io_error(&folders.root))?;

        // A look at every head, before anything is changed.
        let mut found = recover::look(&*disk, &folders, options.pause)?;
        let generation = next_generation(&*disk, &folders, found.generation)?;
        let own = disk.list(&folders.large).map_err(io_error(&folders.large))?;

        let free = disk.free(&folders.root).map_err(io_error(&folders.root))?;
        let segment_size = options.segment_size.unwrap_or_else(|| {
            // Four of them are needed to go round. On a small disk they take no more than a third of it.
            let usual = u32::try_from(free / 12).unwrap_or(u32::MAX);
            // If it is full, a segment that was made ahead will do.
            let made = found.segments.last().filter(|_| free < SEGMENT_LEAST.into()).map_or(0, |old| old.size);
            usual.max(made).clamp(SEGMENT_LEAST, SEGMENT)
        });
        options.large_at = options.large_at.min(u64::from(segment_size / 4));
        let size_and_pause = (segment_size, options.pause);
        let shelf = Shelf::new(disk.clone(), folders.clone(), generation, size_and_pause, found.next, found.spare);
        let take = || shelf.fill(1).and_then(|()| shelf.take().ok_or_else(|| io::ErrorKind::NotFound.into()));
        let mut first = take();
        // On a full disk the last run's reserve is written over. What was accepted goes on with that.
        while first.as_ref().is_err_and(disk::is_full)
            && let Some(reserve) = found.segments.pop_if(|last| last.is_unused())
        {
            shelf.add_spare(folders.segment(reserve.number));
            first = take();
        }
        let first = match first {
            // And without one nothing can be written until there is room, but what was accepted can be delivered.
            Err(error) if disk::is_full(&error) && !found.segments.is_empty() => Err(error),
            first => Ok(first.map_err(io_error(&folders.log))?),
        };

        let places = Places::now(&*disk, &folders).map_err(io_error(&folders.root))?;

        let mut index = Index::default();
        for old in &found.segments {
            index.segments.insert(old.number, old.segment());
        }
        let shared = Arc::new(Shared {
            disk,
            folders,
            places,
            shelf,
            room: Room::new(settings.min_free_space),
            generation,
            next: AtomicU64::new(first_number(random::number())),
            waiting: AtomicUsize::new(0),
            drafts: draft::Room::default(),
            queue: Mutex::default(),
            bell: Condvar::new(),
            index: Mutex::new(index),
            chores: Mutex::default(),
            keeper_bell: Condvar::new(),
            is_broken: AtomicBool::new(false),
            broken: Mutex::new(None),
            unread: Mutex::default(),
            lock: Mutex::new(Some(lock)),
            options,
            #[cfg(test)]
            called: tokio::sync::Notify::new(),
        });

        let beside = (!shared.options.keeper_thread).then(keep::Keeper::default);
        let committer = Committer::new(shared.clone(), first, beside);
        let threads = Threads {
            shared: shared.clone(),
            committer: Mutex::default(),
            keeper: Mutex::default(),
            #[cfg(test)]
            still: Mutex::default(),
        };
        threads.begin(committer).map_err(io_error(&settings.path))?;
        if shared.options.keeper_thread {
            let with = shared.clone();
            let keeper = spawn("spool-keep", move || keep::Keeper::default().run(&with));
            let keeper = keeper.map_err(io_error(&settings.path))?;
            *threads.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        }
        let recovery = Recovery::new(shared.clone(), found.segments, own);
        Ok((Self { shared, threads: Arc::new(threads) }, recovery))
    }

    /// A number for a message: unique for the life of the spool, across restarts and whatever the clock does.
    pub fn next_id(&self) -> MessageId {
        MessageId(self.shared.next_number())
    }

    /// Was this number given since the spool was opened?
    pub fn is_of_this_run(&self, id: MessageId) -> bool {
        id.0 >> 40 == self.shared.generation
    }

    /// An empty draft.
    pub fn draft(&self) -> Draft {
        Draft::new(self.shared.clone())
    }

    /// So many bytes of messages that are still arriving, or wait for their sync, may be in memory. From half of it on
    /// content goes to a file of its own much earlier; a draft that would go beyond is refused with
    /// [`io::ErrorKind::StorageFull`].
    pub fn limit_drafts(&self, bytes: u64) {
        self.shared.drafts.limit(bytes);
    }

    /// Is there room for a new message of so many bytes? Cheap: the disk is asked once a second.
    ///
    /// # Errors
    /// Why new mail is to be turned away.
    pub fn has_room(&self, size: u64) -> Result<(), PutError> {
        if self.shared.is_broken.load(Ordering::Relaxed)
            && let Some(error) = self.shared.broken()
        {
            return Err(error);
        }
        self.shared.room.check(&*self.shared.disk, &self.shared.folders.root, size)
    }

    /// Puts a message; it is durable when this returns a receipt. If the caller gives up before, the message is
    /// withdrawn: nobody was told of it.
    ///
    /// # Errors
    /// Why it was not put; nothing of it stays then.
    pub async fn put(&self, message: NewMessage) -> Result<Receipt, PutError> {
        let shared = &self.shared;
        let NewMessage {
            id,
            accepted,
            mut envelope,
            connector,
            message_id,
            prefix,
            organization,
            content,
            copies,
            settles,
        } = message;
        if copies.len() > usize::from(u16::MAX)
            || copies.iter().any(|copy| copy.recipients.len() > usize::from(u16::MAX))
        {
            return Err(PutError::TooLong("more recipients than it can count".into()));
        }
        envelope.recipients.clear();
        let finished = content.finish(shared).await;
        let finished =
            finished.map_err(|error| commit::put_error(&shared.folders.large.display().to_string(), &error))?;
        // What is in memory counts until it is on disk.
        let mut _held = None;
        let (content, body, own) = match finished {
            Finished::Memory(pieces, held) => {
                _held = held;
                let content = Body::Memory(pieces.clone());
                (Content::Inline { len: content.len() }, content, None)
            }
            Finished::Own(own) => {
                let content = Content::Own { number: own.number, len: own.len, crc: own.crc.value() };
                let file = own.file.as_ref().ok_or_else(|| PutError::Fault("an empty file of its own".into()))?;
                let path = shared.folders.own(own.number);
                let body =
                    body_of(&**file, path, 0, own.len).map_err(|error| commit::put_error("reading it back", &error))?;
                (content, body, Some(own))
            }
        };
        let message =
            Message { id, accepted, envelope, connector, message_id, prefix, organization, content: body, copies };
        let message = Arc::new(message);
        let head = format::encode_message(&message, &settles, &[], content);
        let pieces = match (&message.content, content) {
            (Body::Memory(pieces), Content::Inline { .. }) => pieces.clone(),
            _ => Arc::from([]),
        };
        // The checksum is made here, by as many threads as there are sessions, and not by the one committer.
        let mut crc = Checksum::new();
        crc.update(&head[RECORD_HEAD..]);
        pieces.iter().for_each(|piece| crc.update(piece));
        let length = (head.len() - RECORD_HEAD) as u64 + pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        if length + RECORD_HEAD as u64 > commit::longest_record(shared.shelf.segment_size) {
            let most = commit::longest_record(shared.shelf.segment_size);
            return Err(PutError::TooLong(format!("{length} bytes, at most {most} are possible")));
        }

        let (done, sealed) = oneshot::channel();
        // From here on the record may reach the disk, whether or not somebody still waits for it.
        let is_mail = is_mail(id, &settles);
        let mut undecided = Undecided { shared, id, own, is_mail, decided: false };
        shared.queue_put(Put {
            id,
            head,
            body: pieces,
            length: length as u32,
            crc: crc.value(),
            entry: Entry::new(&message.copies, content),
            settles,
            is_mail,
            done,
        });
        let sealed = sealed.await.unwrap_or_else(|_| Err(PutError::Fault("the spool was closed".into())));
        undecided.decided = true;
        let sealed = sealed?;
        if let Some(own) = &mut undecided.own {
            own.kept = true;
        }
        Ok(Receipt { message, sealed })
    }

    /// A recipient is done with. Durable with the next sync, 10 ms from now at the latest. When the last recipient of
    /// a message is, the message is gone and its room is used again.
    pub fn settle(&self, settlement: Settlement) {
        self.shared.note_settled(settlement);
    }

    /// A copy is tried later. Durable as [`Spool::settle`] is.
    pub fn defer(&self, deferral: Deferral) {
        self.shared.note_deferred(deferral);
    }

    /// Removes a message whoever of it is open: an operator said so. Durable as [`Spool::settle`] is.
    pub fn remove(&self, id: MessageId) {
        self.shared.note_removed(id);
    }

    /// Waits until everything said so far is durable, or the disk has refused it, which the log then says. Gives what was
    /// settled and could not be written yet.
    pub async fn flush(&self) -> Vec<Settlement> {
        let (done, flushed) = oneshot::channel();
        self.shared.queue_flush(done);
        // An error means that the committer has ended, and it writes all before it does.
        flushed.await.unwrap_or_default()
    }

    /// A message as it stands in the spool. Blocking.
    ///
    /// # Errors
    /// Why it cannot be loaded. A damaged one has been set aside.
    pub fn load(&self, id: MessageId) -> Result<Loaded, LoadError> {
        self.shared.load(id)
    }

    /// How many messages wait.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// Makes durable what was said so far, ends the threads and gives back the lock.
    pub async fn close(self) {
        let threads = self.threads.clone();
        let _ = disk::blocking(move || threads.end()).await;
    }

    /// What a committer without a thread would do now, and when it wants to do more unless it is called before.
    #[cfg(test)]
    pub(crate) fn step(&self) -> Option<std::time::Instant> {
        self.threads.still.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.step()
    }

    /// Returns when there is work for a committer without a thread.
    #[cfg(test)]
    pub(crate) async fn called(&self) {
        self.shared.called.notified().await;
    }
}

/// Does it settle nothing, or only recipients of its own? Then its client may still take it back. What settles others
/// is a report, and the failure it reports is settled whoever waits.
fn is_mail(id: MessageId, settles: &[Settlement]) -> bool {
    settles.iter().all(|settlement| settlement.id == id)
}

/// A put whose outcome its caller has not read. Dropped in that state, it takes the message back; not a report, which
/// has settled what it reports.
struct Undecided<'a> {
    shared: &'a Shared,
    id: MessageId,
    own: Option<Box<draft::OwnFile>>,
    is_mail: bool,
    decided: bool,
}

impl Drop for Undecided<'_> {
    fn drop(&mut self) {
        if !self.decided {
            // The committer skips it if it has not written it, and removes it if it has. Its own file goes after
            // the record, or is found without one at the next start.
            if let Some(own) = &mut self.own {
                own.kept = true;
            }
            if self.is_mail {
                self.shared.note_removed(self.id);
            }
        }
    }
}

impl Shared {
    fn next_number(&self) -> u64 {
        self.generation << 40 | self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn lock_index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_waiting(&self, index: &Index) {
        self.waiting.store(index.len(), Ordering::Relaxed);
    }

    fn broken(&self) -> Option<PutError> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_broken(&self, error: Option<PutError>) {
        self.is_broken.store(error.is_some(), Ordering::Relaxed);
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    fn load(&self, id: MessageId) -> Result<Loaded, LoadError> {
        let mut before = None;
        loop {
            let (place, open, file) = {
                let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
                let entry = index.get(id).ok_or(LoadError::Gone)?;
                let segment = index.segments.get(&entry.place.segment).ok_or(LoadError::Gone)?;
                // Held until we are done: a segment somebody holds is never written over.
                let held = segment.file.file();
                (entry.place, entry.open(), (segment.file.clone(), held, segment.salt))
            };
            let corrupt = |reason: String| {
                if self.set_aside(id, place, &reason) {
                    return Err(LoadError::Damaged(reason));
                }
                // It was settled or moved meanwhile, or cannot be set aside now and stays.
                let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
                Err(if index.get(id).is_none() { LoadError::Gone } else { io::Error::other(reason).into() })
            };
            let unread = |error: io::Error| match self.lost_patience(id, &error) {
                Some(reason) => corrupt(reason),
                None => Err(error.into()),
            };
            let (_, record) = match keep::read_record(&*file.0, file.2, place) {
                Ok(read) => read,
                // It may have been copied away, and its segment written over, between the look and the read.
                Err(_) if before != Some(place) => {
                    before = Some(place);
                    continue;
                }
                Err(Unread::Damaged(reason)) => return corrupt(reason),
                Err(Unread::Io(error)) => return unread(error),
            };
            let record = Bytes::from(record).slice(RECORD_HEAD..);
            let decoded = match format::decode_message(&record, record.len() as u64) {
                Ok(decoded) if decoded.id == id => decoded,
                Ok(decoded) => return corrupt(format!("it is message {}", decoded.id)),
                Err(error) => return corrupt(error.to_string()),
            };
            let prefix = record.slice(decoded.prefix_at..decoded.prefix_at + decoded.prefix_len);
            let inline = decoded.prefix_at + decoded.prefix_len;
            let content = match decoded.content {
                Content::Inline { len } => match &file.1 {
                    Some(held) if len > SMALL_CONTENT => Body::File {
                        file: held.clone(),
                        path: Arc::new(self.folders.segment(place.segment)),
                        offset: u64::from(place.offset) + (RECORD_HEAD + inline) as u64,
                        len,
                    },
                    _ => Body::from_bytes(record.slice(inline..)),
                },
                Content::Own { number, len, crc } => {
                    let path = self.folders.own(number);
                    let own = match self.disk.open(&path) {
                        Ok(own) => own,
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {
                            return corrupt(format!("{} is missing", path.display()));
                        }
                        Err(error) => return Err(error.into()),
                    };
                    // A second look, before anything follows from the first.
                    let look = || checksum_of(&*own, len);
                    match look().ok().filter(|found| *found == Some(crc)).map_or_else(look, Ok) {
                        Ok(Some(found)) if found == crc => {}
                        Ok(_) => return corrupt(format!("the content in {} is damaged", path.display())),
                        Err(error) => return unread(error),
                    }
                    body_of(&*own, path, 0, len)?
                }
            };
            // A prefix that is a slice of the record would keep a whole body in memory beside its own file.
            let prefix = if matches!(content, Body::File { .. }) { Bytes::copy_from_slice(&prefix) } else { prefix };
            return Ok(Loaded { message: Arc::new(decoded.into_message(prefix, content)), open });
        }
    }

    /// What to say of a message that the disk did not give, if it has not given it for long enough. What a process or a
    /// machine has run out of says nothing of the disk.
    fn lost_patience(&self, id: MessageId, error: &io::Error) -> Option<String> {
        /// Behind such a pause it is a new fault.
        const APART: u32 = 4;
        const OF_THE_DISK: [Errno; 6] =
            [Errno::EIO, Errno::EREMOTEIO, Errno::ENODATA, Errno::EBADMSG, Errno::EUCLEAN, Errno::EILSEQ];
        if !OF_THE_DISK.iter().any(|of_the_disk| error.raw_os_error() == Some(*of_the_disk as i32)) {
            return None;
        }
        let now = clock::now();
        let patience = self.options.read_patience;
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        unread.retain(|_, (_, last)| now.duration_since(*last) < patience / APART);
        let (first, last) = unread.entry(id).or_insert((now, now));
        *last = now;
        (now.duration_since(*first) >= patience).then(|| format!("it could not be read for {patience:?}: {error}"))
    }

    /// A message whose record cannot be read: its bytes go to `corrupt/`, it leaves the spool, the others go on.
    /// False if it is not there, or stays.
    fn set_aside(&self, id: MessageId, place: Place, reason: &str) -> bool {
        let (file, own) = {
            let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            let own = match index.get(id) {
                Some(entry) if entry.place == place => entry.own.as_ref().map(|own| own.number),
                _ => return false,
            };
            let Some(segment) = index.segments.get_mut(&place.segment) else { return false };
            // Perhaps it can be read another time.
            segment.fate = Fate::Keep;
            (segment.file.clone(), own)
        };
        let range = (place.offset, place.offset.saturating_add(place.size));
        let reason = format!("message {id}: {reason}");
        match recover::set_aside(&*self.disk, &self.folders, place.segment, &*file, range, &reason) {
            Ok(_) => {
                if let Some(own) = own
                    && let Err(error) = self.keep_own(own.get())
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::error!(%id, %error, "the content of a damaged message could not be set aside");
                    return false;
                }
                self.note_removed(id);
                true
            }
            // It stays where it is, and in the spool, until it can be kept for the operator.
            Err(error) => {
                tracing::error!(%id, %error, "a damaged message could not be set aside");
                false
            }
        }
    }

    /// Moves the file of a large message to `corrupt/`.
    fn keep_own(&self, number: u64) -> io::Result<()> {
        self.disk.rename(&self.folders.own(number), &self.folders.kept_own(number))?;
        self.disk.sync_folder(&self.folders.corrupt)
    }
}

/// A file's stretch as a body; what is not a file of this machine is read.
fn body_of(file: &dyn DiskFile, path: PathBuf, offset: u64, len: u64) -> io::Result<Body> {
    if let Some(file) = file.file() {
        return Ok(Body::File { file, path: Arc::new(path), offset, len });
    }
    let mut bytes = vec![0; len as usize];
    if read_full_at(file, &mut bytes, offset)? < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Body::from_bytes(bytes))
}

/// The checksum of a file that must have this length; `None` if it has not.
fn checksum_of(file: &dyn DiskFile, len: u64) -> io::Result<Option<u32>> {
    if file.length()? != len {
        return Ok(None);
    }
    let mut crc = Checksum::new();
    let mut block = vec![0; 256 << 10];
    let mut offset = 0;
    loop {
        let read = read_full_at(file, &mut block, offset)?;
        if read == 0 {
            return Ok(Some(crc.value()));
        }
        crc.update(&block[..read]);
        offset += read as u64;
    }
}

/// From then on minutes are counted for the first start of a spool.
const FIRST: Timestamp = Timestamp::constant(1_767_225_600, 0);
/// The upper half of the numbers that a generation may have is left for the starts that follow.
const LAST_FIRST: u64 = 1 << 23;

/// The generation of a spool of which nothing is known. The one that stood here before may have had any up to now, and
/// tracking files, logs and `Received:` fields still name its messages: so it begins with the minute it is, counted
/// from 2026, which the count of earlier starts cannot have come up to. Before 2026 the clock is wrong: 1.
fn first_generation(now: Timestamp) -> u64 {
    u64::try_from(now.duration_since(FIRST).as_mins()).unwrap_or(0).clamp(1, LAST_FIRST)
}

/// Where a start begins to count its messages. Spools that were begun in the same minute have the same generations for as
/// long as they are started equally often; a trace over both premises tells their messages apart by this. The upper half of the 40 bits
/// that a generation counts with is left for the messages.
fn first_number(random: u64) -> u64 {
    (random >> 25).max(1)
}

/// Counts the start of the daemon, durably, before a number of this generation is given to anybody.
fn next_generation(disk: &dyn Disk, folders: &Folders, newest: u64) -> Result<u64, OpenError> {
    let path = folders.root.join("generation");
    let fresh = folders.root.join("generation.new");
    let stored = match disk.open(&path) {
        Ok(file) => {
            let mut text = [0; 32];
            let read =
                read_full_at(&*file, &mut text, 0).map_err(|error| OpenError::Io { path: path.clone(), error })?;
            // Damaged or empty: the segments know the newest that was ever used, if any is left.
            std::str::from_utf8(&text[..read]).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(OpenError::Io { path, error }),
    };
    let generation = match newest.max(stored) {
        0 => first_generation(clock::wall()),
        known => known + 1,
    };
    let text = format!("{generation}\n");
    let put = |file: &dyn DiskFile| {
        write_all_at(file, &mut [IoSlice::new(text.as_bytes())], 0)?;
        file.sync()
    };
    let mut written = (|| {
        match disk.remove(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        put(&*disk.create(&fresh)?)?;
        disk.rename(&fresh, &path)?;
        disk.sync_folder(&folders.root)
    })();
    if generation > 1 && written.as_ref().is_err_and(disk::is_full) {
        // Written over where it stands, it needs no room. A crash may leave neither number; the segments have both.
        let _ = disk.remove(&fresh);
        written = disk.open(&path).and_then(|file| put(&*file));
        if let Err(error) = &written {
            // Every message that is kept in this run stands in a segment that names it.
            tracing::warn!(%error, path = %path.display(), "the start is not counted: the disk is full");
            written = if newest.max(stored) > 0 && disk::is_full(error) { Ok(()) } else { written };
        }
    }
    written.map_err(|error| OpenError::Io { path, error })?;
    Ok(generation)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // A writer that lost its head must not go on, nor leave a daemon behind that waits for it: the process ends,
        // and its restart recovers.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
            tracing::error!("a thread of the spool panicked; the process ends");
            std::process::abort();
        }
    })
}
