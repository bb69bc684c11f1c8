//! Files and directories as the spool needs them, and the seam where tests put a disk that fails and forgets.
//!
//! [`Local`] is the real one: plain system calls, so that `strace` can inject faults into them. The model disk of
//! the tests keeps what was written apart from what was synced, so a power cut is a function call.
//!
//! Each place where power could fail has a name, [`crash_point`]; the crash tests stop the daemon there.

use std::any::Any;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use tokio::task::JoinError;

/// What the spool asks of a disk.
pub trait Disk: Send + Sync + Debug {
    /// Makes a folder that only we may enter, if it is missing, and checks that it is ours alone.
    ///
    /// # Errors
    /// Why it cannot be made or must not be used.
    fn folder(&self, path: &Path) -> io::Result<()>;

    /// Takes the lock that is this file until the answer is dropped.
    ///
    /// # Errors
    /// `WouldBlock` if another process has it; its number, if known, is the error's text.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>>;

    /// Makes a file that did not exist.
    ///
    /// # Errors
    /// What the file system says.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// What the file system says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Gives a file another name.
    ///
    /// # Errors
    /// What the file system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the file system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// The names of the files in a folder.
    ///
    /// # Errors
    /// What the file system says.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Makes the names in a folder durable.
    ///
    /// # Errors
    /// What the file system says.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// What tells a file or folder from another of the same name: device and inode. A disk that has no such thing
    /// never loses one either.
    ///
    /// # Errors
    /// What the file system says; that nothing is there, mostly.
    fn identity(&self, path: &Path) -> io::Result<Option<(u64, u64)>> {
        let _ = path;
        Ok(None)
    }

    /// Free bytes, for us, where this folder is.
    ///
    /// # Errors
    /// What the file system says.
    fn free(&self, path: &Path) -> io::Result<u64>;
}

/// An open file.
pub trait DiskFile: Send + Sync + Debug {
    /// Reads at a place; 0 is the end.
    ///
    /// # Errors
    /// What the file system says.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes at a place, perhaps less than all.
    ///
    /// # Errors
    /// What the file system says.
    fn write_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;

    /// Makes what was written durable. After an error it must not be called again: Linux forgets which pages it
    /// could not write, and the second answer is a lie.
    ///
    /// # Errors
    /// What the file system says.
    fn sync(&self) -> io::Result<()>;

    /// Reserves room up to this length, and makes it the file's length.
    ///
    /// # Errors
    /// What the file system says.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Its length.
    ///
    /// # Errors
    /// What the file system says.
    fn length(&self) -> io::Result<u64>;

    /// The file itself, for a [`crate::message::Body`]; a disk that is not one has none.
    fn file(&self) -> Option<Arc<File>>;

    /// As [`Disk::identity`], of the open file, whatever became of its name.
    ///
    /// # Errors
    /// What the file system says.
    fn identity(&self) -> io::Result<Option<(u64, u64)>> {
        Ok(None)
    }

    /// Does somebody else still hold what [`DiskFile::file`] gave? Then it must not be written over.
    fn is_shared(&self) -> bool;
}

/// So many interruptions in a row are no accident any more: a disk that says nothing else must not hold a thread for good.
const INTERRUPTIONS: u32 = 100;

/// Work that waits for a disk, done where it holds up nobody else. It goes on to its end if the caller gives up.
///
/// # Errors
/// It panicked, or the runtime ends.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    // Threads keep no order; where time is simulated, so are they.
    #[cfg(test)]
    if crate::clock::held::is_held() {
        let wait = std::time::Duration::from_micros(fastrand::u64(0..3000));
        let task = tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            work()
        });
        return task.await;
    }
    #[allow(clippy::disallowed_methods, reason = "the one place that does it")]
    tokio::task::spawn_blocking(work).await
}

/// Writes all of it, from `offset` on.
///
/// # Errors
/// What the file system says; how much was written is unknown then.
pub fn write_all_at(file: &dyn DiskFile, mut pieces: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
    /// `IOV_MAX` of Linux: a longer list is an error, not a short write.
    const AT_ONCE: usize = 1024;
    IoSlice::advance_slices(&mut pieces, 0);
    let mut interruptions = 0;
    while !pieces.is_empty() {
        let some = pieces.len().min(AT_ONCE);
        match file.write_at(&pieces[..some], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut pieces, written);
                interruptions = 0;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted && interruptions < INTERRUPTIONS => {
                interruptions += 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads until `buffer` is full or the file ends; gives how much that was.
///
/// # Errors
/// What the file system says.
pub fn read_full_at(file: &dyn DiskFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    let mut interruptions = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => {
                filled += read;
                interruptions = 0;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted && interruptions < INTERRUPTIONS => {
                interruptions += 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Is it a lack of space, which passes, rather than a fault?
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Ends the process here, at once and without cleaning up, if `CAUSEWAY_CRASH_AT` says `name:n` and this is the
/// n-th time. Without that variable it costs one load.
pub fn crash_point(name: &str) {
    static AT: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let at = AT.get_or_init(|| {
        let value = std::env::var("CAUSEWAY_CRASH_AT").ok()?;
        let (name, hit) = value.rsplit_once(':').unwrap_or((&value, "1"));
        Some((name.to_owned(), AtomicU64::new(hit.parse().ok()?)))
    });
    if let Some((wanted, left)) = at
        && wanted == name
        && left.fetch_sub(1, Ordering::Relaxed) == 1
    {
        std::process::abort();
    }
}

/// The file system of this machine.
#[derive(Debug, Clone, Copy)]
pub struct Local;

#[derive(Debug)]
struct LocalFile(Arc<File>);

/// Never through a symbolic link: the folder is ours alone, so a link in it is somebody's trick.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
    options
}

impl Disk for Local {
    fn folder(&self, path: &Path) -> io::Result<()> {
        let made = match fs::DirBuilder::new().recursive(false).mode(0o700).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
                true
            }
            Err(error) => return Err(error),
        };
        let found = fs::symlink_metadata(path)?;
        if found.is_symlink() {
            return Err(io::Error::other("it is a symbolic link; name the folder it leads to"));
        }
        if !found.is_dir() {
            return Err(io::Error::other("it is not a folder"));
        }
        let us = nix::unistd::geteuid().as_raw();
        if found.uid() != us {
            return Err(io::Error::other(format!(
                "it belongs to user {}, and the relay runs as user {us}; chown it",
                found.uid()
            )));
        }
        if found.mode() & 0o022 != 0 {
            return Err(io::Error::other(format!(
                "others may write to it (mode {:03o}); chmod it to 700",
                found.mode() & 0o777
            )));
        }
        // Locks and syncs over NFS keep neither of their promises in every set-up.
        if nix::sys::statfs::statfs(path)?.filesystem_type() == nix::sys::statfs::NFS_SUPER_MAGIC {
            return Err(io::Error::other("it is on NFS; the spool needs a disk of this machine"));
        }
        if made && let Some(parent) = path.parent() {
            // A relative path of one part has the parent "", which is the folder we are in.
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            // The name of the new folder must outlive power loss just as what is in it. A parent we may enter but not
            // read cannot be synced by us; its owner made it long ago.
            match File::open(parent).and_then(|folder| folder.sync_all()) {
                Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let mut file = options().create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let pid = fs::read_to_string(path).unwrap_or_default();
                return Err(io::Error::new(io::ErrorKind::WouldBlock, pid.trim().to_owned()));
            }
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        // For people only, so a full disk is no reason not to start.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Box::new(file))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(LocalFile(Arc::new(options().create_new(true).open(path)?))))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(LocalFile(Arc::new(options().open(path)?))))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        // A name that is not UTF-8 is none of ours.
        fs::read_dir(path)?
            .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
            .collect()
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn identity(&self, path: &Path) -> io::Result<Option<(u64, u64)>> {
        let found = fs::symlink_metadata(path)?;
        Ok(Some((found.dev(), found.ino())))
    }

    fn free(&self, path: &Path) -> io::Result<u64> {
        let found = nix::sys::statvfs::statvfs(path)?;
        Ok(found.blocks_available().saturating_mul(found.fragment_size()))
    }
}

impl DiskFile for LocalFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let offset = i64::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Ok(nix::sys::uio::pwritev(&*self.0, pieces, offset)?)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let end = i64::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        match fallocate(&*self.0, FallocateFlags::empty(), 0, end) {
            // Some file systems cannot promise room; there a full disk shows at the write.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.0.set_len(len),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(()),
        }
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn file(&self) -> Option<Arc<File>> {
        Some(self.0.clone())
    }

    fn identity(&self) -> io::Result<Option<(u64, u64)>> {
        let found = self.0.metadata()?;
        Ok(Some((found.dev(), found.ino())))
    }

    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}
