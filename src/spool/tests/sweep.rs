//! Every call that the spool makes to its disk, times every error that call can give, times its first, second, third…
//! occurrence, once and for good; while it runs and while it starts. (SQLite tests so.)
//!
//! Whatever fails: what was acknowledged survives, what was refused is never delivered, a refusal says why, nothing hangs,
//! and when the fault is over mail is taken again without a restart. `CAUSEWAY_SWEEP` asks for more occurrences.

use super::super::model::{ALL, Short};
use super::*;

/// Occurrences of each fault that are tried, unless the work is done before.
fn occurrences(default: u64) -> u64 {
    std::env::var("CAUSEWAY_SWEEP").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Says what was being tried when something goes wrong.
struct Trying<T: std::fmt::Debug>(T);

impl<T: std::fmt::Debug> Drop for Trying<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("with {:?}", self.0);
        }
    }
}

impl World {
    /// Loads some of what was acknowledged, as deliveries do.
    fn load_some(&mut self) {
        let acknowledged: Vec<_> = self
            .known
            .iter()
            .filter(|(_, known)| known.standing == Standing::Acknowledged)
            .map(|(id, _)| *id)
            .collect();
        for _ in 0..acknowledged.len().min(3) {
            let id = acknowledged[self.rng.usize(..acknowledged.len())];
            let known = &self.known[&id];
            match self.spool.load(id) {
                Ok(loaded) => assert_eq!(read(&loaded.message.content), known.content),
                Err(LoadError::Gone) => {
                    assert!(known.copies.iter().flatten().all(|one| *one != Doneness::Open), "{id} is gone");
                }
                Err(LoadError::Io(_)) => assert!(self.disk.fired() > 0, "{id} cannot be read, and nothing is wrong"),
                Err(error) => panic!("{id}: {error}"),
            }
        }
    }

    /// A day's work with whatever fault was put in, then without it. Was it hit?
    async fn work(&mut self) -> bool {
        for _ in 0..10 {
            self.put_some().await;
            while self.rng.u8(0..8) > 0
                && let Some(one) = self.some_open()
            {
                self.settlement(&one, Doneness::Said);
                self.spool.settle(one);
            }
            self.load_some();
            if let Err(error) = self.spool.has_room(100) {
                assert!(self.disk.fired() > 0, "{error}");
            }
            self.flush().await;
        }
        let hit = self.disk.fired() > 0;
        self.disk.heal();
        let id = accepts_again(&self.spool, self.seed).await;
        let known = Known {
            content: content(self.seed, 100),
            copies: vec![vec![Doneness::Open]],
            deferrals: vec![vec![(None, 0)]],
            standing: Standing::Acknowledged,
        };
        self.known.insert(id, known);
        self.load_some();
        self.flush().await;
        self.restart().await;
        assert_eq!(self.disk.touched_again(), 0, "F-012: a file was touched after its sync failed");
        self.spool.clone().close().await;
        hit
    }
}

#[test]
fn f011_f012_f015_every_call_fails_with_every_error_once_and_for_good_and_nothing_is_lost_and_mail_comes_again() {
    let (mut runs, mut hits) = (0, BTreeMap::new());
    for op in ALL {
        for &errno in op.errors() {
            for lasts in [false, true] {
                for after in 0..occurrences(20) {
                    let _trying = Trying((op, errno, lasts, after));
                    let hit = run(async {
                        let mut world = World::new(runs);
                        world.disk.inject(Fault { op, after, errno, lasts });
                        world.work().await
                    });
                    runs += 1;
                    *hits.entry(format!("{op:?}")).or_insert(0) += u32::from(hit);
                    // Every run is another one: that one of them does without a call says nothing of the next.
                    if !hit && after >= 8 {
                        break;
                    }
                }
            }
        }
    }
    eprintln!("{runs} runs; hit: {hits:?}");
    // A folder is made, a lock is taken and a folder's names are read only at a start.
    let never: Vec<_> = hits.iter().filter(|(_, hits)| **hits == 0).map(|(op, _)| op.as_str()).collect();
    assert_eq!(never, ["Folder", "List", "Lock"]);
}

#[test]
fn f011_f013_reads_and_writes_that_come_to_less_than_was_asked_for_lose_nothing() {
    let mut runs = 0;
    for op in [Op::Read, Op::Write] {
        for bytes in [0, 1, 31, 513] {
            for lasts in [false, true] {
                // A file that ends too early, and stays so, is damaged: f013.
                if (op, bytes, lasts) == (Op::Read, 0, true) {
                    continue;
                }
                for after in 0..occurrences(20) {
                    let _trying = Trying((op, bytes, lasts, after));
                    let hit = run(async {
                        let mut world = World::new(runs);
                        world.disk.shorten(Short { op, after, bytes, lasts });
                        world.work().await
                    });
                    runs += 1;
                    if !hit && after >= 8 {
                        break;
                    }
                }
            }
        }
    }
    eprintln!("{runs} runs");
}

/// A spool with something of everything, closed: messages in several segments, some with files of their own, some
/// settled and some deferred, and a segment to be used again.
async fn grown() -> (Arc<Model>, BTreeMap<MessageId, Bytes>) {
    let disk = Model::new(1);
    let (spool, _) = open(&disk, small());
    let mut kept = BTreeMap::new();
    for seed in 0..40u64 {
        let len = if seed % 9 == 0 { 3000 } else { 700 };
        let id = put(&spool, seed, len, &[2, 1]).await.unwrap();
        spool.settle(settled(id, 0, 1));
        if seed % 3 > 0 {
            spool.settle(settled(id, 0, 0));
            spool.settle(settled(id, 1, 0));
        } else {
            spool.defer(Deferral { id, copy: 1, until: time(5), attempts: 2, warned: false, held: false, panics: 0 });
            kept.insert(id, content(seed, len));
        }
        come_to_rest(&spool).await;
    }
    spool.close().await;
    (disk, kept)
}

/// What a start finds must be all of it, each whole.
fn all_is_there(spool: &Spool, recovered: &Recovered, kept: &BTreeMap<MessageId, Bytes>) {
    assert_eq!(recovered.messages, kept.len());
    for (id, content) in kept {
        let loaded = spool.load(*id).unwrap();
        assert_eq!(read(&loaded.message.content), *content);
        assert_eq!(loaded.open, [vec![0], vec![0]]);
    }
}

#[test]
fn f011_f013_f015_every_call_of_a_start_fails_with_every_error_and_nothing_is_lost() {
    let (grown, kept) = run(grown());
    assert!(grown.files("/spool/log").iter().any(|path| path.extension().is_some_and(|is| is == "spare")));
    assert!(grown.files("/spool/large").len() > 3);
    let (mut runs, mut refused, mut set_aside, mut hits) = (0, 0, 0, BTreeMap::new());
    for op in ALL {
        for &errno in op.errors() {
            for lasts in [false, true] {
                for after in 0..occurrences(60) {
                    let _trying = Trying((op, errno, lasts, after));
                    let disk = grown.copy();
                    disk.inject(Fault { op, after, errno, lasts });
                    let hit = run(async {
                        match Spool::open_on(Arc::new(ModelDisk(disk.clone())), settings(), small()) {
                            Err(error) => {
                                refused += 1;
                                let error = error.to_string();
                                assert!(disk.fired() > 0, "{error}");
                                let why = io::Error::from(errno).to_string();
                                assert!(error.contains(ROOT) && error.contains(&why), "{error:?} does not say {why:?}");
                            }
                            Ok((spool, recovery)) => {
                                let recovered = recovery.run();
                                let hit = disk.fired() > 0;
                                disk.heal();
                                let new = accepts_again(&spool, 1).await;
                                assert!(hit || recovered.corrupt.is_empty());
                                // Only a disk that stays unreadable makes a start go on without what it could not read;
                                // then it is said, and its bytes are kept for when it can be read again.
                                if op == Op::Read && lasts && !recovered.corrupt.is_empty() {
                                    set_aside += 1;
                                    spool.flush().await;
                                    spool.close().await;
                                    all_is_kept(&grown, &disk);
                                    return hit;
                                }
                                assert_eq!(recovered.corrupt, []);
                                all_is_there(&spool, &recovered, &kept);
                                spool.settle(settled(new, 0, 0));
                                spool.close().await;
                            }
                        }
                        let hit = disk.fired() > 0;
                        disk.heal();
                        // The next start has no fault: it has to find all of it, whatever the first one came to.
                        let (spool, recovered) = open(&disk, small());
                        assert_eq!(recovered.corrupt, []);
                        all_is_there(&spool, &recovered, &kept);
                        accepts_again(&spool, 2).await;
                        spool.close().await;
                        hit
                    });
                    runs += 1;
                    *hits.entry(format!("{op:?}")).or_insert(0) += u32::from(hit);
                    if !hit {
                        break;
                    }
                }
            }
        }
    }
    eprintln!("{runs} starts, {refused} refused with the reason, {set_aside} with something set aside; hit: {hits:?}");
    assert!(refused > 100 && set_aside > 0);
}

/// Every segment that held mail is still there, byte for byte: in the log or beside it.
fn all_is_kept(before: &Model, after: &Model) {
    let segments = |disk: &Model| {
        let paths = ["/spool/log", "/spool/corrupt"].into_iter().flat_map(|folder| disk.files(folder));
        let paths = paths.filter(|path| path.extension().is_some_and(|is| is == "segment"));
        paths.map(|path| (path.file_name().unwrap().to_owned(), disk.content(&path))).collect::<BTreeMap<_, _>>()
    };
    let kept = segments(after);
    for (name, content) in segments(before) {
        if content[64..].iter().any(|byte| *byte != 0) {
            assert_eq!(kept.get(&name), Some(&content), "{}", name.display());
        }
    }
}
