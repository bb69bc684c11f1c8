//! When new mail is turned away because memory runs out. What was accepted goes on: deliveries give memory back.
//!
//! The bound is the tightest that somebody set: the memory limit of a control group this process is in, or
//! `CAUSEWAY_MEMORY_LIMIT` in the environment, for where there is none. Where nobody set one there is none: how much a
//! machine can spare nobody here knows.
//!
//! What counts is memory in use. Four things are resident and do not count: the page cache and the kernel's caches of
//! names, which a busy spool fills; pages that the allocator holds free and is about to return, which the next message
//! would use first; and the memory of the password hashes that are being computed. [`HashMemory`] bounds that by itself,
//! so that strangers who guess passwords cannot stop the mail.
//!
//! Two steps, each with a threshold to begin and a lower one to end (quality F-054): from 80 % on `MAIL` hears 452, from
//! 90 % on a new connection hears 421. The system is asked once a second, by whoever comes first.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit};
use tikv_jemalloc_ctl::{epoch, stats};
use tracing::{info, warn};

use crate::clock;

/// How long an answer of the system is good for, in milliseconds.
const FRESH: u64 = 1000;

/// Per cent of the bound at which each step begins, and below which it ends.
const NO_MAIL: (u64, u64) = (80, 74);
const NO_CONNECTION: (u64, u64) = (90, 84);

/// Memory that one connection to a next hop takes at most: buffers, and what TLS keeps; in bytes.
const DELIVERY: u64 = 256 * 1024;

/// Connections to next hops that there may be whatever is short, and that there need not be more of: each costs its hop
/// something too.
const LEAST_DELIVERIES: u64 = 16;
const MOST_DELIVERIES: u64 = 2000;

/// What is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    Calm,
    /// New messages.
    NoMail,
    /// New connections too.
    NoConnection,
}

/// Memory in use beside its bound.
#[derive(Debug)]
pub struct Pressure {
    bounds: Vec<Bound>,
    started: Instant,
    /// Milliseconds since `started` when the system is asked again.
    due: AtomicU64,
    level: AtomicU8,
    hashes: Arc<HashMemory>,
}

/// One limit, and where the use stands that it limits; all in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Bound {
    /// A control group's folder, version 2 or 1.
    Group { folder: PathBuf, unified: bool, limit: u64 },
    /// Of this process alone.
    Process { limit: u64 },
}

impl Pressure {
    /// Looks for bounds, once.
    pub fn find() -> Self {
        // A simulated machine has its own memory.
        #[cfg(test)]
        if crate::clock::held::is_held() {
            return Self::within(Vec::new());
        }
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut bounds = groups_of(&groups, Path::new("/sys/fs/cgroup"));
        if let Some(text) = std::env::var_os("CAUSEWAY_MEMORY_LIMIT") {
            match text.to_str().and_then(|text| crate::config::size(text).ok()) {
                Some(limit) => bounds.push(Bound::Process { limit }),
                None => warn!(?text, "CAUSEWAY_MEMORY_LIMIT is no size such as \"512MiB\"; it is ignored"),
            }
        }
        Self::within(bounds)
    }

    fn within(bounds: Vec<Bound>) -> Self {
        let hashes = Arc::new(HashMemory::within(bounds.iter().map(Bound::limit).min()));
        Self { bounds, started: clock::now(), due: AtomicU64::new(0), level: AtomicU8::new(0), hashes }
    }

    /// What password hashes may take.
    pub fn hash_memory(&self) -> &Arc<HashMemory> {
        &self.hashes
    }

    /// From now on it stands so, where nothing bounds it.
    #[cfg(test)]
    pub(crate) fn simulate(&self, level: Level) {
        self.level.store(level as u8, Ordering::Relaxed);
    }

    /// The tightest bound in bytes, if there is any.
    pub fn bound(&self) -> Option<u64> {
        self.bounds.iter().map(Bound::limit).min()
    }

    /// How much of messages that are still arriving may be in memory at one time, in bytes: a quarter of the bound, or of
    /// the machine where there is none. Beyond it they are refused one by one, whatever else takes memory.
    pub fn room_for_drafts(&self) -> u64 {
        let machine = || {
            let text = fs::read_to_string("/proc/meminfo").ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
            Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
        };
        self.bound().or_else(machine).map_or(u64::MAX, |bytes| (bytes / 4).max(8 << 20))
    }

    /// How many connections deliveries may have open at one time. A quarter of the descriptors: the rest is for clients, idle
    /// connections and files. And a quarter of the memory, where that is bounded.
    pub fn room_for_deliveries(&self) -> usize {
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        room_for_deliveries(descriptors, self.bound())
    }

    /// What is turned away now.
    pub fn level(&self) -> Level {
        if !self.bounds.is_empty() {
            let now = self.started.elapsed().as_millis() as u64;
            let due = self.due.load(Ordering::Relaxed);
            // Whoever comes first asks for all.
            if now >= due && self.due.compare_exchange(due, now + FRESH, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                self.ask();
            }
        }
        match self.level.load(Ordering::Relaxed) {
            0 => Level::Calm,
            1 => Level::NoMail,
            _ => Level::NoConnection,
        }
    }

    fn ask(&self) {
        let before = self.level.load(Ordering::Relaxed);
        let spare = held_free() + self.hashes.taken();
        let shares = self.bounds.iter().filter_map(|bound| Some((bound.percent(spare)?, bound.limit())));
        // A file that cannot be read now says nothing; as long as no other speaks, all stays as it was.
        let Some((percent, limit)) = shares.max() else { return };
        let after = next_level(before, percent);
        if after == before {
            return;
        }
        self.level.store(after, Ordering::Relaxed);
        // Told when it changes, not for each message that is turned away.
        match after {
            0 => info!(percent, limit, "there is enough memory again: new mail is taken"),
            1 if after < before => info!(percent, limit, "new connections are taken again, new mail is not yet"),
            1 => warn!(percent, limit, "memory runs out: new mail is refused, 452 4.3.1"),
            _ => warn!(percent, limit, "memory runs out: new connections are refused, 421 4.3.2"),
        }
    }
}

fn room_for_deliveries(descriptors: u64, memory: Option<u64>) -> usize {
    let by_memory = memory.map_or(u64::MAX, |bytes| bytes / 4 / DELIVERY);
    let room = (descriptors / 4).min(by_memory).clamp(LEAST_DELIVERIES, MOST_DELIVERIES);
    usize::try_from(room).unwrap_or(usize::MAX)
}

/// Steps as numbers, so that they fit into an atomic: 0, 1 or 2.
fn next_level(before: u8, percent: u64) -> u8 {
    let is_on = |step: u8, (on, off): (u64, u64)| percent >= on || (before >= step && percent >= off);
    u8::from(is_on(1, NO_MAIL)) + u8::from(is_on(2, NO_CONNECTION))
}

impl Bound {
    fn limit(&self) -> u64 {
        match self {
            Self::Group { limit, .. } | Self::Process { limit } => *limit,
        }
    }

    /// `spare`: bytes of this process that are resident and do not count.
    fn percent(&self, spare: u64) -> Option<u64> {
        Some(self.resident()?.saturating_sub(spare).saturating_mul(100) / self.limit().max(1))
    }

    /// Bytes of memory that the system cannot reclaim.
    fn resident(&self) -> Option<u64> {
        match self {
            Self::Group { folder, unified, .. } => {
                let used = number(&folder.join(if *unified { "memory.current" } else { "memory.usage_in_bytes" }))?;
                let stat = fs::read_to_string(folder.join("memory.stat")).ok()?;
                let names: &[&str] = if *unified {
                    &["active_file", "inactive_file", "slab_reclaimable"]
                } else {
                    &["total_active_file", "total_inactive_file"]
                };
                let cache = stat.lines().filter_map(|line| line.split_once(' '));
                let cache = cache.filter(|(name, _)| names.contains(name));
                let cache: u64 = cache.filter_map(|(_, bytes)| bytes.trim().parse::<u64>().ok()).sum();
                Some(used.saturating_sub(cache))
            }
            Self::Process { .. } => {
                let status = fs::read_to_string("/proc/self/status").ok()?;
                let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
                Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
            }
        }
    }
}

/// Bytes that the allocator holds free but has not returned to the system yet. 0 where another allocator is in use.
fn held_free() -> u64 {
    // The figures are those of the last epoch.
    let free = epoch::advance().and_then(|_| {
        let in_use = stats::active::read()?.saturating_add(stats::metadata::read()?);
        Ok(stats::resident::read()?.saturating_sub(in_use))
    });
    free.map_or(0, |bytes| bytes as u64)
}

/// The groups of /proc/self/cgroup that have a limit: the process's own and those around it.
fn groups_of(text: &str, root: &Path) -> Vec<Bound> {
    let mut bounds = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (unified, top, file) = match controllers {
            "" => (true, root.to_owned(), "memory.max"),
            "memory" => (false, root.join("memory"), "memory.limit_in_bytes"),
            _ => continue,
        };
        // In a container the path may be one of the machine's, while what is mounted here is the container's own.
        let own = top.join(path.trim_start_matches('/'));
        let own = if own.is_dir() { own } else { top.clone() };
        for folder in own.ancestors().take_while(|folder| folder.starts_with(&top)) {
            // "max" is no number, and version 1 says none by one that no machine has.
            if let Some(limit) = number(&folder.join(file)).filter(|limit| *limit < 1 << 50) {
                bounds.push(Bound::Group { folder: folder.to_owned(), unified, limit });
            }
        }
    }
    bounds
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// How much memory password hashes may take. Two may be computed at one time (`accept::logins`), and the users file says
/// how much each takes; where memory is bounded they take a quarter of the bound together, or one is computed alone.
#[derive(Debug)]
pub struct HashMemory {
    /// For all hashes at one time, in bytes.
    together: u64,
    /// For one hash, in bytes.
    each: u64,
    taken: Mutex<u64>,
    returned: Condvar,
    /// The log has said that a hash is too large.
    told: AtomicBool,
}

/// Memory that one hash may take, until this is dropped.
#[derive(Debug)]
pub struct HashRoom<'a> {
    memory: &'a HashMemory,
    bytes: u64,
}

impl Default for HashMemory {
    /// Without a bound.
    fn default() -> Self {
        Self::within(None)
    }
}

impl HashMemory {
    fn within(bound: Option<u64>) -> Self {
        Self {
            together: bound.map_or(u64::MAX, |bound| bound / 4),
            each: bound.map_or(u64::MAX, |bound| bound / 2),
            taken: Mutex::new(0),
            returned: Condvar::new(),
            told: AtomicBool::new(false),
        }
    }

    /// Takes so many bytes, or waits until other hashes have returned theirs. Blocking. `None`: one hash may not take so
    /// much; the log says so once.
    pub fn take(&self, bytes: u64) -> Option<HashRoom<'_>> {
        if bytes > self.each {
            if !self.told.swap(true, Ordering::Relaxed) {
                let limit = self.each;
                warn!(
                    bytes,
                    limit, "a login is refused: its hash in users_file takes more than half of the memory there may be"
                );
            }
            return None;
        }
        let is_full = |taken: &mut u64| *taken > 0 && taken.saturating_add(bytes) > self.together;
        let mut taken = self.returned.wait_while(self.lock(), is_full).unwrap_or_else(PoisonError::into_inner);
        *taken = taken.saturating_add(bytes);
        drop(taken);
        Some(HashRoom { memory: self, bytes })
    }

    /// Bytes that are taken now.
    fn taken(&self) -> u64 {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HashRoom<'_> {
    fn drop(&mut self) {
        let mut taken = self.memory.lock();
        *taken = taken.saturating_sub(self.bytes);
        drop(taken);
        self.memory.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row: what was turned away, the use in per cent, what is turned away then.
    #[test]
    fn each_step_has_two_thresholds() {
        for (before, percent, after) in [
            (0, 0, 0),
            (0, 79, 0),
            (0, 80, 1),
            (1, 79, 1),
            (1, 74, 1),
            (1, 73, 0),
            (1, 89, 1),
            (1, 90, 2),
            (0, 95, 2),
            (2, 89, 2),
            (2, 84, 2),
            (2, 83, 1),
            (2, 40, 0),
            (2, 120, 2),
        ] {
            assert_eq!(next_level(before, percent), after, "{before} at {percent} %");
        }
    }

    /// What is resident but free, or a hash's, is not in use: 950 of 1000 bytes resident, so many to spare, per cent.
    #[test]
    fn what_the_allocator_holds_free_is_not_in_use() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("memory.current"), "950\n").unwrap();
        fs::write(root.path().join("memory.stat"), "anon 950\n").unwrap();
        let bound = Bound::Group { folder: root.path().to_owned(), unified: true, limit: 1000 };
        for (spare, expected) in [(0, 95), (50, 90), (300, 65), (2000, 0)] {
            assert_eq!(bound.percent(spare), Some(expected), "{spare} to spare");
        }
    }

    /// The bound in MiB, the hash in MiB: may it be computed, and how many at one time?
    #[test]
    fn hashes_take_a_quarter_of_the_memory_or_one_is_computed_alone() {
        for (bound, hash, expected) in [
            (None, 256, 2),
            (Some(1024), 64, 2),
            (Some(512), 19, 2),
            (Some(256), 19, 2),
            (Some(150), 19, 1),
            (Some(40), 19, 1),
            (Some(512), 256, 1),
            (Some(511), 256, 0),
            (Some(36), 19, 0),
        ] {
            let memory = HashMemory::within(bound.map(|bound: u64| bound << 20));
            let first = memory.take(hash << 20);
            assert_eq!(first.is_some(), expected > 0, "{hash} of {bound:?}");
            if expected == 2 {
                assert!(memory.take(hash << 20).is_some(), "{hash} of {bound:?}");
            }
            if expected == 1 {
                std::thread::scope(|scope| {
                    let second = scope.spawn(|| memory.take(hash << 20).is_some());
                    assert_eq!(memory.taken(), hash << 20, "{hash} of {bound:?}");
                    drop(first);
                    assert!(second.join().unwrap(), "{hash} of {bound:?}");
                });
            } else {
                drop(first);
            }
            assert_eq!(memory.taken(), 0, "{hash} of {bound:?}");
        }
    }

    /// Descriptors, bound on memory in MiB, connections.
    #[test]
    fn deliveries_take_a_quarter_of_what_there_is() {
        for (descriptors, memory, expected) in [
            (1024, None, 256),
            (524_288, None, 2000),
            (524_288, Some(512), 512),
            (1024, Some(64), 64),
            (20, Some(1), 16),
        ] {
            let memory = memory.map(|megabytes: u64| megabytes << 20);
            assert_eq!(room_for_deliveries(descriptors, memory), expected, "{descriptors} {memory:?}");
        }
    }

    #[test]
    fn f054_the_limits_of_control_groups_are_found_and_the_cache_does_not_count() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        // Version 2: the service has no limit of its own, the slice around it has.
        write("mail.slice/causeway.service/memory.max", "max\n");
        write("mail.slice/memory.max", "1000\n");
        write("mail.slice/memory.current", "900\n");
        write("mail.slice/memory.stat", "anon 300\ninactive_file 300\nactive_file 50\nfile 350\nslab_reclaimable 50\n");
        let found = groups_of("0::/mail.slice/causeway.service\n", root.path());
        let [slice] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((slice.limit(), slice.resident()), (1000, Some(500)));
        // Version 1, beside it; one number means none.
        write("memory/pod/memory.limit_in_bytes", "2000\n");
        write("memory/pod/memory.usage_in_bytes", "700\n");
        write("memory/pod/memory.stat", "cache 1\ntotal_inactive_file 100\ntotal_active_file 100\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let found = groups_of("4:memory:/pod\n3:cpuset:/pod\n0::/\n", root.path());
        let [pod] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((pod.limit(), pod.resident()), (2000, Some(500)));
        // The path is one of the machine's; what is mounted is the container's own.
        write("memory.max", "3000\n");
        let found = groups_of("0::/kubepods/pod/container\n", root.path());
        assert_eq!(found.iter().map(Bound::limit).collect::<Vec<_>>(), [3000]);
    }
}
