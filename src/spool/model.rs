//! A disk that fails on demand and forgets what was not synced.
//!
//! It keeps what was written apart from what was synced. [`Model::crash`] is the power cut: of what was not synced
//! any part may be there, sector by sector and in any order; of names, a beginning of what was done to them. After a
//! failed sync it behaves as Linux does: what it could not write is forgotten, and the next sync says all is well.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use nix::errno::Errno;

use super::disk::{Disk, DiskFile};

/// Disks write these whole or not at all.
const SECTOR: usize = 512;

/// What can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Folder,
    Lock,
    Create,
    Open,
    List,
    Allocate,
    Length,
    Identity,
    Read,
    Write,
    Sync,
    Rename,
    Remove,
    SyncFolder,
    Free,
}

/// All that the spool asks of a disk.
pub const ALL: [Op; 15] = [
    Op::Folder,
    Op::Lock,
    Op::Create,
    Op::Open,
    Op::List,
    Op::Allocate,
    Op::Length,
    Op::Identity,
    Op::Read,
    Op::Write,
    Op::Sync,
    Op::Rename,
    Op::Remove,
    Op::SyncFolder,
    Op::Free,
];

impl Op {
    /// Every error it can give, as the manual pages of Linux and the file systems below them have it. Network file
    /// systems and quotas among them: what the spool refuses to be put on may still be under it.
    pub fn errors(self) -> &'static [Errno] {
        use Errno::{EACCES, EDQUOT, EINTR, EIO, EMFILE, ENFILE, ENOENT, ENOLCK, ENOMEM, ENOSPC, EPERM, EROFS, ESTALE};
        match self {
            Self::Folder => &[EIO, ENOSPC, EDQUOT, EROFS, EACCES, EMFILE, ENFILE, ENOMEM, ESTALE],
            Self::Lock => &[EIO, ENOSPC, EDQUOT, EROFS, EACCES, EMFILE, ENFILE, ENOMEM, ENOLCK, EINTR, ESTALE],
            Self::Create => &[EIO, ENOSPC, EDQUOT, EROFS, EACCES, EMFILE, ENFILE, ENOMEM, EINTR, ESTALE],
            Self::Open => &[EIO, EROFS, EACCES, EMFILE, ENFILE, ENOMEM, EINTR, ESTALE],
            Self::List => &[EIO, EACCES, EMFILE, ENFILE, ENOMEM, ESTALE],
            Self::Allocate => &[EIO, ENOSPC, EDQUOT, EROFS, EINTR, EPERM, ENOMEM, ESTALE],
            Self::Length => &[EIO, ENOMEM, ESTALE],
            Self::Identity => &[EIO, EACCES, ENOENT, ENOMEM, ESTALE],
            Self::Read => &[EIO, EINTR, ENOMEM, ESTALE],
            Self::Write => &[EIO, ENOSPC, EDQUOT, EROFS, EINTR, EPERM, ENOMEM, ESTALE],
            Self::Sync => &[EIO, ENOSPC, EDQUOT, EROFS, EINTR, ESTALE],
            Self::Rename => &[EIO, ENOSPC, EDQUOT, EROFS, EACCES, ENOMEM, ESTALE],
            Self::Remove => &[EIO, ENOSPC, EROFS, EACCES, EPERM, ENOMEM, ESTALE],
            Self::SyncFolder => &[EIO, ENOSPC, EDQUOT, EROFS, EACCES, EMFILE, ENFILE, EINTR, ESTALE],
            Self::Free => &[EIO, EACCES, EINTR, ENOMEM, ESTALE],
        }
    }
}

/// All that changes something on the disk.
pub const CHANGES: [Op; 7] = [Op::Create, Op::Allocate, Op::Write, Op::Sync, Op::Rename, Op::Remove, Op::SyncFolder];

/// How it fails.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// What.
    pub op: Op,
    /// After so many that succeed.
    pub after: u64,
    /// With this.
    pub errno: Errno,
    /// From then on, until [`Model::heal`]; else once.
    pub lasts: bool,
}

/// A read or write that does less than it was asked to, and says so.
#[derive(Debug, Clone, Copy)]
pub struct Short {
    /// [`Op::Read`] or [`Op::Write`].
    pub op: Op,
    /// After so many whole ones.
    pub after: u64,
    /// So many bytes; 0 is the end of the file, or a write that goes nowhere.
    pub bytes: usize,
    /// From then on, until [`Model::heal`]; else once.
    pub lasts: bool,
}

#[derive(Debug)]
pub struct Model {
    state: Mutex<State>,
    held: Mutex<bool>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    nodes: Vec<Node>,
    names: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    /// What was done to names since their folder was synced.
    renames: Vec<Change>,
    faults: Vec<Fault>,
    shorts: Vec<Short>,
    fired: u64,
    steps: u64,
    dies_at: Option<u64>,
    dead: bool,
    locked: bool,
    short_writes: bool,
    lies: bool,
    capacity: Option<u64>,
    counts: BTreeMap<&'static str, u64>,
    written: u64,
    touched_again: u64,
    rng: Rng,
}

#[derive(Debug, Clone)]
struct Rng(fastrand::Rng);

impl Default for Rng {
    fn default() -> Self {
        Self(fastrand::Rng::with_seed(1))
    }
}

#[derive(Debug, Default, Clone)]
struct Node {
    now: Vec<u8>,
    synced: Vec<u8>,
    pending: Vec<Pending>,
    /// A sync of it failed.
    failed: bool,
}

#[derive(Debug, Clone)]
enum Pending {
    Write(usize, Vec<u8>),
    Len(usize),
}

#[derive(Debug, Clone)]
enum Change {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    /// One step: a rename is there or not, never half.
    Rename(PathBuf, PathBuf, usize),
}

impl Change {
    fn folder(&self) -> &Path {
        let (Self::Link(path, _) | Self::Unlink(path) | Self::Rename(path, ..)) = self;
        path.parent().unwrap()
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link(path, node) => {
                names.insert(path.clone(), *node);
            }
            Self::Unlink(path) => {
                names.remove(path);
            }
            Self::Rename(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

impl Node {
    fn write(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
        if bytes.len() < at + new.len() {
            bytes.resize(at + new.len(), 0);
        }
        bytes[at..at + new.len()].copy_from_slice(new);
    }

    fn settle(&mut self, change: &Pending) {
        match change {
            Pending::Write(at, new) => Self::write(&mut self.synced, *at, new),
            Pending::Len(len) => self.synced.resize(*len, 0),
        }
    }

    /// Some sectors of what was not synced reach the disk, others do not.
    fn settle_some(&mut self, change: &Pending, rng: &mut fastrand::Rng) {
        match (change, rng.u8(0..4)) {
            (_, 0) => {}
            (Pending::Len(_), _) | (_, 1) => self.settle(change),
            (Pending::Write(at, new), how) => {
                let mut from = 0;
                // A beginning of it, or any sectors of it.
                let torn_at = rng.usize(0..=new.len());
                while from < new.len() {
                    let to = (((at + from) / SECTOR + 1) * SECTOR - at).min(new.len());
                    if if how == 2 { to <= torn_at } else { rng.bool() } {
                        Self::write(&mut self.synced, at + from, &new[from..to]);
                    }
                    from = to;
                }
            }
        }
    }
}

impl Model {
    pub fn new(seed: u64) -> Arc<Self> {
        let state = State { rng: Rng(fastrand::Rng::with_seed(seed)), ..State::default() };
        Arc::new(Self { state: Mutex::new(state), held: Mutex::default(), released: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The power fails. What is left is a new disk; whoever holds the old one can do nothing any more.
    pub fn crash(&self) -> Arc<Self> {
        let mut old = self.state();
        old.dead = true;
        let mut rng = Rng(old.rng.0.fork());
        let mut names = old.durable.clone();
        let survive = rng.0.usize(0..=old.renames.len());
        for change in &old.renames[..survive] {
            change.apply(&mut names);
        }
        let mut nodes = old.nodes.clone();
        for node in &mut nodes {
            for change in std::mem::take(&mut node.pending) {
                node.settle_some(&change, &mut rng.0);
            }
            node.now.clone_from(&node.synced);
            node.failed = false;
        }
        let touched_again = old.touched_again;
        let state = State {
            nodes,
            durable: names.clone(),
            names,
            rng,
            capacity: old.capacity,
            short_writes: old.short_writes,
            lies: old.lies,
            touched_again,
            ..State::default()
        };
        Arc::new(Self { state: Mutex::new(state), held: Mutex::default(), released: Condvar::new() })
    }

    /// The process ends, and the machine goes on: all that was written is there still, synced or not.
    pub fn kill(&self) -> Arc<Self> {
        let mut old = self.state();
        let rng = Rng(old.rng.0.fork());
        let state = State {
            nodes: old.nodes.clone(),
            names: old.names.clone(),
            durable: old.durable.clone(),
            renames: old.renames.clone(),
            rng,
            capacity: old.capacity,
            short_writes: old.short_writes,
            touched_again: old.touched_again,
            lies: old.lies,
            ..State::default()
        };
        old.dead = true;
        Arc::new(Self { state: Mutex::new(state), held: Mutex::default(), released: Condvar::new() })
    }

    /// From now on a sync says that it was done, and was not: what no disk may do. For those who watch.
    pub fn lie(&self) {
        self.state().lies = true;
    }

    pub fn inject(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    pub fn shorten(&self, short: Short) {
        self.state().shorts.push(short);
    }

    /// The same files on another disk, all of them durable.
    pub fn copy(&self) -> Arc<Self> {
        let state = self.state();
        let copy = Self::new(1);
        for (path, node) in &state.names {
            copy.plant(path, &state.nodes[*node].now);
        }
        copy
    }

    /// No fault is left.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.shorts.clear();
        state.dies_at = None;
    }

    /// How many faults have fired.
    pub fn fired(&self) -> u64 {
        self.state().fired
    }

    /// Fails for good at the n-th step from now.
    pub fn die_after(&self, steps: u64) {
        let mut state = self.state();
        state.dies_at = Some(state.steps + steps);
    }

    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    pub fn write_short(&self) {
        self.state().short_writes = true;
    }

    pub fn limit(&self, capacity: u64) {
        self.state().capacity = Some(capacity);
    }

    /// Room without end.
    pub fn unlimit(&self) {
        self.state().capacity = None;
    }

    /// How often an operation was carried out.
    pub fn count(&self, op: &'static str) -> u64 {
        self.state().counts.get(op).copied().unwrap_or(0)
    }

    /// Writes and syncs of files after a sync of them had failed.
    pub fn touched_again(&self) -> u64 {
        self.state().touched_again
    }

    /// Holds up every sync until [`Model::release`].
    pub fn hold(&self) {
        *self.held.lock().unwrap() = true;
    }

    /// Lets them go on.
    pub fn release(&self) {
        *self.held.lock().unwrap() = false;
        self.released.notify_all();
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.state().written
    }

    pub fn files(&self, folder: &str) -> Vec<PathBuf> {
        self.state().names.keys().filter(|path| path.parent() == Some(Path::new(folder))).cloned().collect()
    }

    pub fn content(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        state.nodes[state.names[path]].now.clone()
    }

    /// Changes a file behind the spool's back.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let node = state.names[path];
        let node = &mut state.nodes[node];
        change(&mut node.now);
        node.synced.clone_from(&node.now);
        node.pending.clear();
    }

    /// Takes a file away behind the spool's back, durably.
    pub fn remove(&self, path: &Path) {
        let mut state = self.state();
        state.names.remove(path);
        state.durable.remove(path);
        state.renames.clear();
    }

    /// Puts a file there that is durable.
    pub fn plant(&self, path: &Path, content: &[u8]) {
        let mut state = self.state();
        state.nodes.push(Node { now: content.to_vec(), synced: content.to_vec(), ..Node::default() });
        let node = state.nodes.len() - 1;
        state.names.insert(path.into(), node);
        state.durable.insert(path.into(), node);
    }
}

impl State {
    fn step(&mut self, op: Op) -> io::Result<()> {
        self.steps += 1;
        if self.dies_at.is_some_and(|at| self.steps >= at) {
            self.dead = true;
        }
        if self.dead {
            return Err(Errno::EIO.into());
        }
        let mut failed = None;
        self.faults.retain_mut(|fault| {
            if fault.op != op {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            failed = Some(fault.errno);
            fault.lasts
        });
        match failed {
            Some(errno) => {
                self.fired += 1;
                Err(errno.into())
            }
            None => Ok(()),
        }
    }

    /// How much of `len` bytes this read or write does.
    fn length(&mut self, op: Op, len: usize) -> usize {
        let mut some = len;
        self.shorts.retain_mut(|short| {
            if short.op != op {
                return true;
            }
            if short.after > 0 {
                short.after -= 1;
                return true;
            }
            some = some.min(short.bytes);
            short.lasts
        });
        self.fired += u64::from(some < len);
        some
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.renames.push(change);
    }

    fn used(&self) -> u64 {
        let mut nodes: Vec<_> = self.names.values().collect();
        nodes.dedup();
        nodes.iter().map(|node| self.nodes[**node].now.len() as u64).sum()
    }
}

#[derive(Debug)]
struct ModelFile {
    disk: Arc<Model>,
    node: usize,
}

/// The disk as the spool holds it.
#[derive(Debug, Clone)]
pub struct ModelDisk(pub Arc<Model>);

impl Disk for ModelDisk {
    fn folder(&self, _: &Path) -> io::Result<()> {
        // That one can be made is not what is tested with this disk; that it may be refused is.
        self.0.state().step(Op::Folder)
    }

    fn lock(&self, _: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        struct Unlock(Arc<Model>);
        impl Drop for Unlock {
            fn drop(&mut self) {
                self.0.state().locked = false;
            }
        }
        let mut state = self.0.state();
        state.step(Op::Lock)?;
        if std::mem::replace(&mut state.locked, true) {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "1"));
        }
        // Whoever has it is another process, and knows of no sync that failed.
        state.nodes.iter_mut().for_each(|node| node.failed = false);
        Ok(Box::new(Unlock(self.0.clone())))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.state();
        state.step(Op::Create)?;
        if state.names.contains_key(path) {
            return Err(Errno::EEXIST.into());
        }
        state.nodes.push(Node::default());
        let node = state.nodes.len() - 1;
        state.change(Change::Link(path.into(), node));
        Ok(Arc::new(ModelFile { disk: self.0.clone(), node }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.0.state();
        state.step(Op::Open)?;
        let node = *state.names.get(path).ok_or(Errno::ENOENT)?;
        Ok(Arc::new(ModelFile { disk: self.0.clone(), node }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.state();
        state.step(Op::Rename)?;
        let node = *state.names.get(from).ok_or(Errno::ENOENT)?;
        state.change(Change::Rename(from.into(), to.into(), node));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.state();
        state.step(Op::Remove)?;
        if !state.names.contains_key(path) {
            return Err(Errno::ENOENT.into());
        }
        state.change(Change::Unlink(path.into()));
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut state = self.0.state();
        state.step(Op::List)?;
        let here = state.names.keys().filter(|name| name.parent() == Some(path));
        Ok(here.map(|name| name.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.state();
        state.step(Op::SyncFolder)?;
        let (done, left) = std::mem::take(&mut state.renames).into_iter().partition(|change| change.folder() == path);
        state.renames = left;
        let done: Vec<Change> = done;
        done.iter().for_each(|change| change.apply(&mut state.durable));
        Ok(())
    }

    fn identity(&self, _: &Path) -> io::Result<Option<(u64, u64)>> {
        self.0.state().step(Op::Identity).map(|()| None)
    }

    fn free(&self, _: &Path) -> io::Result<u64> {
        let mut state = self.0.state();
        state.step(Op::Free)?;
        Ok(state.capacity.map_or(1 << 40, |capacity| capacity.saturating_sub(state.used())))
    }
}

impl DiskFile for ModelFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.step(Op::Read)?;
        let there = state.nodes[self.node].now.len().saturating_sub(offset as usize);
        let len = state.length(Op::Read, there.min(buffer.len()));
        let from = (offset as usize).min(state.nodes[self.node].now.len());
        buffer[..len].copy_from_slice(&state.nodes[self.node].now[from..from + len]);
        Ok(len)
    }

    fn write_at(&self, pieces: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.touched_again += u64::from(state.nodes[self.node].failed);
        assert!(pieces.len() <= 1024, "IOV_MAX");
        let mut bytes: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        let failed = state.step(Op::Write);
        if failed.is_err() || (state.short_writes && bytes.len() > 1 && state.rng.0.bool()) {
            // A write that fails may have come some way.
            let some = state.rng.0.usize(usize::from(failed.is_ok())..=bytes.len());
            bytes.truncate(some);
        }
        if failed.is_ok() {
            let some = state.length(Op::Write, bytes.len());
            bytes.truncate(some);
        }
        let full = state.capacity.is_some_and(|capacity| {
            let grows = (offset as usize + bytes.len()).saturating_sub(state.nodes[self.node].now.len());
            grows > 0 && state.used() + grows as u64 > capacity
        });
        if full {
            return Err(Errno::ENOSPC.into());
        }
        state.written += bytes.len() as u64;
        *state.counts.entry("write").or_default() += 1;
        let node = &mut state.nodes[self.node];
        Node::write(&mut node.now, offset as usize, &bytes);
        let written = bytes.len();
        node.pending.push(Pending::Write(offset as usize, bytes));
        failed.map(|()| written)
    }

    fn sync(&self) -> io::Result<()> {
        drop(self.disk.released.wait_while(self.disk.held.lock().unwrap(), |held| *held).unwrap());
        let mut state = self.disk.state();
        state.touched_again += u64::from(state.nodes[self.node].failed);
        let failed = state.step(Op::Sync);
        if state.dead {
            return failed;
        }
        *state.counts.entry("sync").or_default() += 1;
        if state.lies && failed.is_ok() {
            return Ok(());
        }
        let mut rng = state.rng.0.fork();
        let node = &mut state.nodes[self.node];
        node.failed |= failed.is_err();
        for change in std::mem::take(&mut node.pending) {
            match failed {
                Ok(()) => node.settle(&change),
                Err(_) => node.settle_some(&change, &mut rng),
            }
        }
        failed
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.step(Op::Allocate)?;
        let grows = (len as usize).saturating_sub(state.nodes[self.node].now.len());
        if state.capacity.is_some_and(|capacity| state.used() + grows as u64 > capacity) {
            return Err(Errno::ENOSPC.into());
        }
        let node = &mut state.nodes[self.node];
        node.now.resize(len as usize, 0);
        node.pending.push(Pending::Len(len as usize));
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        let mut state = self.disk.state();
        state.step(Op::Length)?;
        Ok(state.nodes[self.node].now.len() as u64)
    }

    fn file(&self) -> Option<Arc<File>> {
        None
    }

    fn identity(&self) -> io::Result<Option<(u64, u64)>> {
        self.disk.state().step(Op::Identity).map(|()| None)
    }

    fn is_shared(&self) -> bool {
        false
    }
}
