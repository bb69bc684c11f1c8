//! Segments that are not in the log: made ahead of time, and taken out of it to be used again.
//!
//! Making one costs a file, a reservation, a head and two syncs, so it happens before it is needed; overwriting an
//! old one costs less than half of writing a new one for the first time. The last one on the shelf is the reserve: only
//! records that make room may take it, so a full queue can drain on a full disk.
//!
//! Here too: has the disk room for new mail? Two thresholds, so that the answer does not flicker.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::PutError;
use super::disk::{Disk, DiskFile, crash_point, write_all_at};
use super::format::{Salt, SegmentHead, VERSION};
use super::index::Fate;
use crate::clock;

/// How many segments are made ahead: one to go on with, one in reserve.
pub const AHEAD: usize = 2;
/// Old segments kept to be used again, beyond those; the rest is deleted.
const SPARE: usize = 2;

/// The folders of a spool.
#[derive(Debug, Clone)]
pub struct Folders {
    /// The spool itself: the lock and the generation.
    pub root: PathBuf,
    /// The segments.
    pub log: PathBuf,
    /// The large messages.
    pub large: PathBuf,
    /// What could not be read.
    pub corrupt: PathBuf,
}

impl Folders {
    /// Below this folder.
    pub fn below(root: &Path) -> Self {
        Self { root: root.into(), log: root.join("log"), large: root.join("large"), corrupt: root.join("corrupt") }
    }

    /// A segment's file.
    pub fn segment(&self, number: u32) -> PathBuf {
        self.log.join(format!("{number:08x}.segment"))
    }

    /// The number in a segment's name.
    pub fn segment_number(name: &str) -> Option<u32> {
        let number = u32::from_str_radix(name.strip_suffix(".segment")?, 16).ok()?;
        (format!("{number:08x}.segment") == name).then_some(number)
    }

    /// A segment that left the log. Recovery never reads it.
    pub fn spare(&self, number: u32) -> PathBuf {
        self.log.join(format!("{number:08x}.spare"))
    }

    /// Is this the name of a segment that left the log?
    pub fn is_spare(name: &str) -> bool {
        name.ends_with(".spare")
    }

    /// A segment that left the log with something in it that could not be read.
    pub fn kept(&self, number: u32) -> PathBuf {
        self.corrupt.join(format!("{number:08x}.segment"))
    }

    /// A large message's own file.
    pub fn own(&self, number: u64) -> PathBuf {
        self.large.join(format!("{number:016x}.body"))
    }

    /// Such a file, of a message that could not be read.
    pub fn kept_own(&self, number: u64) -> PathBuf {
        self.corrupt.join(format!("{number:016x}.body"))
    }

    /// The number in its name.
    pub fn own_number(name: &str) -> Option<u64> {
        u64::from_str_radix(name.strip_suffix(".body")?, 16).ok()
    }
}

/// Which folders the spool was opened with. By the same names there may be others later.
#[derive(Debug)]
pub struct Places {
    root: Option<(u64, u64)>,
    log: Option<(u64, u64)>,
    large: Option<(u64, u64)>,
}

impl Places {
    /// As they are now.
    ///
    /// # Errors
    /// What the file system says.
    pub fn now(disk: &dyn Disk, folders: &Folders) -> io::Result<Self> {
        let (root, log) = (disk.identity(&folders.root)?, disk.identity(&folders.log)?);
        Ok(Self { root, log, large: disk.identity(&folders.large)? })
    }

    /// Are they the same still?
    ///
    /// # Errors
    /// Which is not.
    pub fn check(&self, disk: &dyn Disk, folders: &Folders) -> io::Result<()> {
        is_the_same(disk, &folders.root, self.root)?;
        is_the_same(disk, &folders.log, self.log)?;
        self.check_large(disk, folders)
    }

    /// That of the large messages only.
    ///
    /// # Errors
    /// It is not.
    pub fn check_large(&self, disk: &dyn Disk, folders: &Folders) -> io::Result<()> {
        is_the_same(disk, &folders.large, self.large)
    }
}

fn is_the_same(disk: &dyn Disk, path: &Path, expected: Option<(u64, u64)>) -> io::Result<()> {
    let text = match disk.identity(path) {
        Ok(found) if found == expected => return Ok(()),
        Ok(_) => "it is another folder than at the start; put the old one back, or restart the relay".to_owned(),
        Err(error) => format!("it is gone ({error}); put it back, or restart the relay"),
    };
    Err(io::Error::other(format!("{}: {text}", path.display())))
}

/// A segment ready to be written.
#[derive(Debug)]
pub struct Ready {
    /// Its number.
    pub number: u32,
    /// Its file, its head written and synced.
    pub file: Arc<dyn DiskFile>,
    /// How long it is.
    pub size: u32,
    /// In each of its records.
    pub salt: Salt,
}

/// See the module.
#[derive(Debug)]
pub struct Shelf {
    disk: Arc<dyn Disk>,
    folders: Folders,
    generation: u64,
    /// The length of new segments.
    pub segment_size: u32,
    /// After a failed attempt to make a segment, the next one waits so long.
    pause: Duration,
    /// Held while one is made, so that numbers come onto the shelf in order.
    making: Mutex<Making>,
    ready: Mutex<BTreeMap<u32, Ready>>,
    spare: Mutex<Vec<PathBuf>>,
}

#[derive(Debug)]
struct Making {
    next: u32,
    failed: Option<(Instant, io::ErrorKind, String)>,
}

impl Shelf {
    /// An empty one; the first segment made is number `next`.
    pub fn new(
        disk: Arc<dyn Disk>,
        folders: Folders,
        generation: u64,
        (segment_size, pause): (u32, Duration),
        next: u32,
        spare: Vec<PathBuf>,
    ) -> Self {
        Self {
            disk,
            folders,
            generation,
            segment_size,
            pause,
            making: Mutex::new(Making { next, failed: None }),
            ready: Mutex::default(),
            spare: Mutex::new(spare),
        }
    }

    /// How many stand ready.
    pub fn len(&self) -> usize {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Makes segments until so many stand ready.
    ///
    /// # Errors
    /// Why there are fewer. Soon after a failure the same error again, without asking the disk.
    pub fn fill(&self, count: usize) -> io::Result<()> {
        while self.len() < count {
            let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            if self.len() >= count {
                return Ok(());
            }
            if let Some((at, kind, text)) = &making.failed
                && clock::now().saturating_duration_since(*at) < self.pause
            {
                return Err(io::Error::new(*kind, text.clone()));
            }
            // A number is not used again even if making the segment failed half-way: a trace of it may be on disk.
            let number = making.next;
            making.next += 1;
            match self.make(number) {
                Ok(ready) => {
                    making.failed = None;
                    self.ready.lock().unwrap_or_else(PoisonError::into_inner).insert(number, ready);
                }
                Err(error) => {
                    making.failed = Some((clock::now(), error.kind(), error.to_string()));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Another segment's file that may be written over.
    pub fn add_spare(&self, path: PathBuf) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(path);
        self.try_again();
    }

    /// Forget that making one failed: the disk was just seen to have changed.
    pub fn try_again(&self) {
        self.making.lock().unwrap_or_else(PoisonError::into_inner).failed = None;
    }

    /// The next segment of the log, if one stands ready.
    pub fn take(&self) -> Option<Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_first().map(|(_, ready)| ready)
    }

    fn make(&self, number: u32) -> io::Result<Ready> {
        let salt = Salt::random();
        let head = SegmentHead { version: VERSION, number, generation: self.generation, salt }.encode();
        let path = self.folders.segment(number);
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let from = spare.as_ref().unwrap_or(&path);
        let made = (|| {
            let file = match &spare {
                Some(spare) => self.disk.open(spare)?,
                None => self.disk.create(&path)?,
            };
            if file.length()? != u64::from(self.segment_size) {
                file.allocate(self.segment_size.into())?;
            }
            crash_point("segment.allocated");
            write_all_at(&*file, &mut [IoSlice::new(&head)], 0)?;
            file.sync()?;
            crash_point("segment.synced");
            if let Some(spare) = &spare {
                self.disk.rename(spare, &path)?;
            }
            self.disk.sync_folder(&self.folders.log)?;
            crash_point("segment.ready");
            Ok(Ready { number, file, size: self.segment_size, salt })
        })();
        if made.is_err() {
            // Nothing was ever written to it but its head, so it may go or stay.
            let _ = self.disk.remove(from);
            let _ = self.disk.remove(&path);
        }
        made
    }

    /// Throws away a segment that was taken but never held anything worth reading.
    pub fn discard(&self, number: u32) {
        let _ = self.disk.remove(&self.folders.segment(number));
    }

    /// Takes a segment out of the log for good: durable before this returns, because the records that say what was
    /// settled in it are next to go.
    ///
    /// # Errors
    /// What the file system says; it can be tried again.
    pub fn retire(&self, number: u32, file: &dyn DiskFile, size: u32, fate: Fate) -> io::Result<()> {
        let path = self.folders.segment(number);
        let mut spares = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may be reading a body from it: then its bytes must stay as they are.
        let again = fate == Fate::Reuse && size == self.segment_size && !file.is_shared() && spares.len() < SPARE;
        let gone = match fate {
            Fate::Keep => self.disk.rename(&path, &self.folders.kept(number)),
            _ if again => self.disk.rename(&path, &self.folders.spare(number)),
            _ => self.disk.remove(&path),
        };
        match gone {
            // An earlier attempt came so far.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        crash_point("segment.retired");
        if fate == Fate::Keep {
            self.disk.sync_folder(&self.folders.corrupt)?;
        }
        self.disk.sync_folder(&self.folders.log)?;
        if again {
            spares.push(self.folders.spare(number));
        }
        Ok(())
    }
}

/// Has the disk room for new mail?
#[derive(Debug)]
pub struct Room {
    min_free: u64,
    started: Instant,
    /// Milliseconds since `started` when the disk is asked again.
    due: AtomicU64,
    free: AtomicU64,
    full: AtomicBool,
}

impl Room {
    /// How long an answer of the disk is good for.
    const FRESH: u64 = 1000;

    /// So many bytes stay free.
    pub fn new(min_free: u64) -> Self {
        Self {
            min_free,
            started: clock::now(),
            due: AtomicU64::new(0),
            free: AtomicU64::new(u64::MAX),
            full: AtomicBool::new(false),
        }
    }

    /// Lets the next check ask the disk.
    #[cfg(test)]
    pub fn ask_again(&self) {
        self.due.store(0, Ordering::Relaxed);
    }

    /// Room for so many more bytes?
    pub fn check(&self, disk: &dyn Disk, folder: &Path, size: u64) -> Result<(), PutError> {
        let now = clock::now().saturating_duration_since(self.started).as_millis() as u64;
        let due = self.due.load(Ordering::Relaxed);
        // Whoever comes first asks for all.
        if now >= due && self.due.compare_exchange(due, now + Self::FRESH, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            match disk.free(folder) {
                Ok(free) => {
                    self.free.store(free, Ordering::Relaxed);
                    // New mail comes again when there is clearly more room than when it was turned away.
                    let enough = self.min_free + (self.min_free / 16).max(1 << 20).min(self.min_free);
                    if free < self.min_free {
                        // Told once, not for each message that is turned away.
                        if !self.full.swap(true, Ordering::Relaxed) {
                            let (path, min) = (folder.display(), self.min_free);
                            tracing::error!(%path, free, min, "the disk is full: new mail is refused, 452 4.3.1");
                        }
                    } else if free >= enough && self.full.swap(false, Ordering::Relaxed) {
                        tracing::info!(path = %folder.display(), free, "the disk has room again: new mail is taken");
                    }
                }
                Err(error) => return Err(PutError::Fault(format!("{}: {error}", folder.display()))),
            }
        }
        let free = self.free.load(Ordering::Relaxed);
        if self.full.load(Ordering::Relaxed) || free < self.min_free.saturating_add(size) {
            return Err(PutError::Full(format!("{free} bytes are free, {} must stay free", self.min_free)));
        }
        Ok(())
    }
}
