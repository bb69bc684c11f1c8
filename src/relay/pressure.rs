//! When new mail is turned away because memory runs out. What was accepted goes on: deliveries give memory back.
//!
//! The bound is the tightest that somebody set: the memory limit of a control group this process is in, or
//! `CAUSEWAY_MEMORY_LIMIT` in the environment, for where there is none. Where nobody set one there is none: how much a
//! machine can spare nobody here knows. What counts is what cannot be reclaimed; the page cache, which a busy spool
//! fills, is not a sign of need.
//!
//! Two steps, each with a threshold to begin and a lower one to end (quality F-054): from 80 % on `MAIL` hears 452, from
//! 90 % on a new connection hears 421. The system is asked once a second, by whoever comes first.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit};
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
        Self { bounds, started: clock::now(), due: AtomicU64::new(0), level: AtomicU8::new(0) }
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
        let shares = self.bounds.iter().filter_map(|bound| Some((bound.percent()?, bound.limit())));
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

    fn percent(&self) -> Option<u64> {
        Some(self.used()?.saturating_mul(100) / self.limit().max(1))
    }

    fn used(&self) -> Option<u64> {
        match self {
            Self::Group { folder, unified, .. } => {
                let used = number(&folder.join(if *unified { "memory.current" } else { "memory.usage_in_bytes" }))?;
                let stat = fs::read_to_string(folder.join("memory.stat")).ok()?;
                let names: [&str; 2] = if *unified {
                    ["active_file", "inactive_file"]
                } else {
                    ["total_active_file", "total_inactive_file"]
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
        write("mail.slice/memory.stat", "anon 300\ninactive_file 350\nactive_file 50\nfile 400\n");
        let found = groups_of("0::/mail.slice/causeway.service\n", root.path());
        let [slice] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((slice.limit(), slice.used()), (1000, Some(500)));
        // Version 1, beside it; one number means none.
        write("memory/pod/memory.limit_in_bytes", "2000\n");
        write("memory/pod/memory.usage_in_bytes", "700\n");
        write("memory/pod/memory.stat", "cache 1\ntotal_inactive_file 100\ntotal_active_file 100\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let found = groups_of("4:memory:/pod\n3:cpuset:/pod\n0::/\n", root.path());
        let [pod] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((pod.limit(), pod.used()), (2000, Some(500)));
        // The path is one of the machine's; what is mounted is the container's own.
        write("memory.max", "3000\n");
        let found = groups_of("0::/kubepods/pod/container\n", root.path());
        assert_eq!(found.iter().map(Bound::limit).collect::<Vec<_>>(), [3000]);
    }
}
