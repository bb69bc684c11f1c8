//! The promises of the spool, each under the number it has among the cases we hold ourselves to.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use tokio::runtime::Runtime;

use super::model::{CHANGES, Fault, Model, ModelDisk, Op};
use super::*;
use crate::config::ConnectorName;
use crate::message::{Address, BodyType, Domain, Notify, OrganizationHeaders, OriginalRecipient, Recipient, Ret};
use crate::route::{CopyRecipient, Hop};

mod sweep;

const ROOT: &str = "/spool";

fn small() -> Options {
    Options {
        segment_size: Some(8 << 10),
        large_at: 1500,
        dead_segments: 1,
        committer_thread: true,
        keeper_thread: false,
        pause: Duration::from_micros(100),
        read_patience: Duration::from_hours(1),
    }
}

fn settings() -> Settings {
    Settings { path: ROOT.into(), min_free_space: 0 }
}

fn open(disk: &Arc<Model>, options: Options) -> (Spool, Recovered) {
    let (spool, recovery) = Spool::open_on(Arc::new(ModelDisk(disk.clone())), settings(), options).unwrap();
    let recovered = recovery.run();
    (spool, recovered)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs it on a runtime of its own, never longer than a minute.
fn run<T>(work: impl Future<Output = T>) -> T {
    runtime().block_on(async { tokio::time::timeout(Duration::from_secs(60), work).await.expect("it hangs") })
}

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

fn recipient(text: &str) -> CopyRecipient {
    let recipient = Recipient { address: address(text), notify: Notify::Unsaid, orcpt: None };
    CopyRecipient { asked: address(text), recipient }
}

/// Copies with so many recipients each.
fn copies(counts: &[usize]) -> Vec<HopCopy> {
    let copy = |(number, count): (usize, &usize)| HopCopy {
        via: ConnectorName("to-cloud".into()),
        hop: if number % 2 == 0 { Hop::SmartHosts } else { Hop::Mx(Domain::parse("example.net").unwrap()) },
        recipients: (0..*count).map(|r| recipient(&format!("r{r}@c{number}.example"))).collect(),
    };
    counts.iter().enumerate().map(copy).collect()
}

fn envelope() -> Envelope {
    Envelope {
        sender: Some(address("anna@contoso.com")),
        recipients: Vec::new(),
        ret: None,
        envid: None,
        body: BodyType::SevenBit,
        smtputf8: false,
        requiretls: false,
    }
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

/// A message whose every byte follows from its number and length.
fn message(spool: &Spool, content: Draft, counts: &[usize]) -> NewMessage {
    let id = spool.next_id();
    NewMessage {
        id,
        accepted: time(id.0 as i64 & 0xFFFF),
        envelope: envelope(),
        connector: "internet".into(),
        message_id: Some(format!("<{id}@example.com>").into()),
        prefix: Bytes::from(format!("Received: {id}\r\n")),
        organization: OrganizationHeaders::None,
        content,
        copies: copies(counts),
        settles: Vec::new(),
    }
}

fn content(seed: u64, len: usize) -> Bytes {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rng.u8(..)).collect::<Vec<_>>().into()
}

async fn draft(spool: &Spool, bytes: &Bytes) -> Draft {
    let mut draft = spool.draft();
    for piece in bytes.chunks(700) {
        draft.push(bytes.slice_ref(piece)).await.unwrap();
    }
    draft
}

fn read(body: &Body) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let block = body.read(all.len() as u64, 1 << 20).unwrap();
        if block.is_empty() {
            return all;
        }
        all.extend_from_slice(&block);
    }
}

async fn put(spool: &Spool, seed: u64, len: usize, counts: &[usize]) -> Result<MessageId, PutError> {
    let content = draft(spool, &content(seed, len)).await;
    spool.put(message(spool, content, counts)).await.map(|receipt| receipt.message.id)
}

fn settled(id: MessageId, copy: u16, recipient: u16) -> Settlement {
    Settlement { id, copy, recipient, end: End::Delivered }
}

/// What the spool must know of one message.
#[derive(Debug, Clone)]
struct Known {
    content: Bytes,
    copies: Vec<Vec<Doneness>>,
    /// What may be found as the last deferral of each copy; the first is the one that is surely durable.
    deferrals: Vec<Vec<(Option<Timestamp>, u16)>>,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// There is a receipt.
    Acknowledged,
    /// The power failed, or the caller left, before there was an answer.
    Unknown,
    /// It was refused, on a disk that was working again by then.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Doneness {
    Open,
    /// By a message of which nobody knows what became.
    Maybe,
    /// Settled, not flushed.
    Said,
    Durable,
}

/// A spool on a model disk, and what it must not forget.
struct World {
    disk: Arc<Model>,
    spool: Spool,
    options: Options,
    known: BTreeMap<MessageId, Known>,
    rng: fastrand::Rng,
    seed: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let disk = Model::new(seed);
        if rng.u8(0..3) == 0 {
            disk.write_short();
        }
        let options = Options { keeper_thread: rng.u8(0..4) == 0, ..small() };
        let (spool, _) = open(&disk, options.clone());
        Self { disk, spool, options, known: BTreeMap::new(), rng, seed }
    }

    /// Some messages at once, so that they share batches.
    async fn put_some(&mut self) {
        let count = if self.rng.u8(0..4) == 0 { self.rng.usize(1..12) } else { 1 };
        let mut puts = Vec::new();
        for _ in 0..count {
            let len = if self.rng.u8(0..8) == 0 { self.rng.usize(1500..4000) } else { self.rng.usize(0..1200) };
            let bytes = content(self.rng.u64(..), len);
            let counts: Vec<_> = (0..self.rng.usize(1..4)).map(|_| self.rng.usize(1..4)).collect();
            let mut draft = self.spool.draft();
            let mut pushed = Ok(());
            for piece in bytes.chunks(700) {
                pushed = pushed.and(draft.push(bytes.slice_ref(piece)).await);
            }
            if pushed.is_err() {
                continue;
            }
            let mut message = message(&self.spool, draft, &counts);
            if self.rng.u8(0..6) == 0 {
                message.settles.extend(self.some_open());
            }
            // One of its own was delivered before it was put.
            if counts.iter().sum::<usize>() > 1 && self.rng.u8(0..6) == 0 {
                message.settles.push(settled(message.id, 0, 0));
            }
            let known = Known {
                content: bytes,
                copies: counts.iter().map(|count| vec![Doneness::Open; *count]).collect(),
                deferrals: counts.iter().map(|_| vec![(None, 0)]).collect(),
                standing: Standing::Unknown,
            };
            let (id, settles) = (message.id, message.settles.clone());
            self.known.insert(id, known);
            for settlement in &settles {
                self.settlement(settlement, Doneness::Maybe);
            }
            let spool = self.spool.clone();
            // Some callers leave at once, some a little later.
            let leaves = self.rng.u8(0..12) == 0;
            let task = tokio::spawn(async move { spool.put(message).await.map(|receipt| receipt.message) });
            if leaves {
                for _ in 0..self.rng.usize(0..3) {
                    tokio::task::yield_now().await;
                }
                task.abort();
            }
            puts.push((id, settles, task));
        }
        for (id, settles, task) in puts {
            let result = task.await;
            // The disk died or is still broken: nobody could cancel what was refused.
            let sick = self.disk.is_dead() || self.spool.has_room(0).is_err();
            let known = self.known.get_mut(&id).unwrap();
            match result {
                Ok(Ok(stored)) => {
                    known.standing = Standing::Acknowledged;
                    assert_eq!(read(&stored.content), known.content, "seed {}", self.seed);
                    for settlement in settles {
                        self.settlement(&settlement, Doneness::Durable);
                    }
                }
                Ok(Err(error)) => {
                    assert!(self.disk.fired() > 0 || sick, "seed {}: refused without a reason", self.seed);
                    // The words of the variant, what failed, and what the disk said.
                    assert!(error.to_string().split(": ").count() > 2, "seed {}: {error} does not say why", self.seed);
                    if !sick {
                        known.standing = Standing::Refused;
                        for settlement in settles {
                            self.settlement(&settlement, Doneness::Open);
                        }
                    }
                }
                Err(_) => {}
            }
        }
    }

    fn settlement(&mut self, settlement: &Settlement, doneness: Doneness) {
        let known = self.known.get_mut(&settlement.id).unwrap();
        let now = &mut known.copies[usize::from(settlement.copy)][usize::from(settlement.recipient)];
        // What was said once is not unsaid because something else failed.
        if *now != Doneness::Durable && !(*now == Doneness::Said && doneness < Doneness::Said) {
            *now = doneness;
        }
    }

    fn some_open(&mut self) -> Option<Settlement> {
        let mut open = Vec::new();
        for (id, known) in self.known.iter().filter(|(_, known)| known.standing == Standing::Acknowledged) {
            for (copy, recipients) in (0..).zip(&known.copies) {
                for (recipient, doneness) in (0..).zip(recipients) {
                    if *doneness == Doneness::Open {
                        open.push(settled(*id, copy, recipient));
                    }
                }
            }
        }
        if open.is_empty() { None } else { Some(open[self.rng.usize(..open.len())]) }
    }

    async fn flush(&mut self) {
        let fired = self.disk.fired();
        self.spool.flush().await;
        if self.disk.is_dead() || self.disk.fired() > fired || self.spool.has_room(0).is_err() {
            return;
        }
        for known in self.known.values_mut() {
            for doneness in known.copies.iter_mut().flatten().filter(|doneness| **doneness == Doneness::Said) {
                *doneness = Doneness::Durable;
            }
            for deferrals in &mut known.deferrals {
                deferrals.drain(..deferrals.len() - 1);
            }
        }
    }

    async fn act(&mut self) {
        match self.rng.u8(0..20) {
            0..7 => self.put_some().await,
            7..14 => {
                // Mostly all of a message, so that segments die.
                if let Some(one) = self.some_open() {
                    let all = self.rng.u8(0..4) > 0;
                    let copies: Vec<_> = self.known[&one.id].copies.iter().map(Vec::len).collect();
                    for (copy, count) in (0..).zip(copies) {
                        for recipient in 0..count as u16 {
                            if all || (copy, recipient) == (one.copy, one.recipient) {
                                self.settlement(&settled(one.id, copy, recipient), Doneness::Said);
                                self.spool.settle(settled(one.id, copy, recipient));
                            }
                        }
                    }
                }
            }
            14..16 => {
                if let Some(one) = self.some_open() {
                    let (until, attempts) = (time(self.rng.i64(0..100_000)), self.rng.u16(1..50));
                    self.known.get_mut(&one.id).unwrap().deferrals[usize::from(one.copy)].push((Some(until), attempts));
                    self.spool.defer(Deferral {
                        id: one.id,
                        copy: one.copy,
                        until,
                        attempts,
                        warned: attempts > 9,
                        held: false,
                        panics: 0,
                    });
                }
            }
            16..18 => self.flush().await,
            18 => {
                let op = CHANGES[self.rng.usize(..CHANGES.len())];
                let errno = if self.rng.bool() { Errno::EIO } else { Errno::ENOSPC };
                self.disk.inject(Fault { op, after: self.rng.u64(0..4), errno, lasts: false });
            }
            _ => self.disk.die_after(self.rng.u64(1..30)),
        }
    }

    /// Stops, by a power cut or in good order, starts again and compares.
    async fn restart(&mut self) {
        let clean = !self.disk.is_dead() && self.rng.u8(0..3) == 0;
        if clean {
            self.disk.heal();
            self.flush().await;
            self.spool.clone().close().await;
            if self.rng.bool() || self.disk.is_dead() {
                // After a clean end nothing may hang on what was not synced.
                self.disk = self.disk.crash();
            }
        } else {
            let left = self.disk.crash();
            self.spool.clone().close().await;
            self.disk = left;
        }
        // Starts that are killed themselves.
        for _ in 0..self.rng.usize(0..3) {
            self.disk.die_after(self.rng.u64(1..60));
            if let Ok((spool, recovery)) =
                Spool::open_on(Arc::new(ModelDisk(self.disk.clone())), settings(), self.options.clone())
            {
                if self.rng.bool() {
                    recovery.run();
                }
                let left = self.disk.crash();
                spool.close().await;
                self.disk = left;
            } else {
                self.disk = self.disk.crash();
            }
        }
        let (spool, recovered) = open(&self.disk, self.options.clone());
        self.spool = spool;
        self.compare(&recovered);
    }

    fn compare(&mut self, recovered: &Recovered) {
        let seed = self.seed;
        assert_eq!(recovered.corrupt, [], "seed {seed}: a crash is no damage");
        let mut found: BTreeMap<MessageId, Vec<&Waiting>> = BTreeMap::new();
        for waiting in &recovered.waiting {
            found.entry(waiting.id).or_default().push(waiting);
        }
        assert_eq!(recovered.messages, found.len());
        assert_eq!(self.spool.waiting(), found.len());
        for id in found.keys() {
            assert!(self.known.contains_key(id), "seed {seed}: {id} came from nowhere");
        }
        for (id, known) in &mut self.known {
            let waiting = found.get(id).map_or(&[][..], Vec::as_slice);
            match known.standing {
                Standing::Refused => assert!(waiting.is_empty(), "seed {seed}: P2: {id} was refused and came back"),
                // It is there or not; what was found is the truth from now on.
                Standing::Unknown if waiting.is_empty() => {
                    known.standing = Standing::Refused;
                }
                Standing::Unknown => known.standing = Standing::Acknowledged,
                Standing::Acknowledged => {}
            }
            if known.standing != Standing::Acknowledged {
                continue;
            }
            let open = match self.spool.load(*id) {
                Ok(loaded) => {
                    let message = loaded.message;
                    assert_eq!(read(&message.content), known.content, "seed {seed}: P4: {id}");
                    assert_eq!(message.prefix, format!("Received: {id}\r\n"), "seed {seed}");
                    assert_eq!(message.envelope, envelope());
                    let counts: Vec<_> = known.copies.iter().map(Vec::len).collect();
                    assert_eq!(message.copies, copies(&counts), "seed {seed}");
                    loaded.open
                }
                Err(LoadError::Gone) => vec![Vec::new(); known.copies.len()],
                Err(error) => panic!("seed {seed}: {id}: {error}"),
            };
            for (copy, recipients) in (0u16..).zip(&mut known.copies) {
                for (recipient, doneness) in (0u16..).zip(recipients) {
                    let is_open = open[usize::from(copy)].contains(&recipient);
                    match (*doneness, is_open) {
                        (Doneness::Open, false) => panic!("seed {seed}: P1: {id}/{copy}/{recipient} was lost"),
                        (Doneness::Durable, true) => panic!("seed {seed}: P3: {id}/{copy}/{recipient} came back"),
                        (_, is_open) => *doneness = if is_open { Doneness::Open } else { Doneness::Durable },
                    }
                }
                let here = waiting.iter().find(|waiting| waiting.copy == copy);
                assert_eq!(here.is_some(), !open[usize::from(copy)].is_empty(), "seed {seed}");
                if let Some(waiting) = here {
                    let now = (waiting.until, waiting.attempts);
                    let possible = &mut known.deferrals[usize::from(copy)];
                    assert!(possible.contains(&now), "seed {seed}: {id}/{copy}: {now:?} is none of {possible:?}");
                    *possible = vec![now];
                }
            }
        }
    }
}

fn histories(default: u64) -> u64 {
    std::env::var("CAUSEWAY_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn f002_f003_f004_f008_f010_f018_nothing_acknowledged_is_lost_or_doubled_in_any_history() {
    let first = std::env::var("CAUSEWAY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    for seed in first..first + histories(1500) {
        run(async {
            let mut world = World::new(seed);
            for _ in 0..world.rng.usize(1..4) {
                for _ in 0..world.rng.usize(1..40) {
                    world.act().await;
                    if world.disk.is_dead() {
                        break;
                    }
                }
                world.restart().await;
            }
            world.spool.close().await;
            assert_eq!(world.disk.touched_again(), 0, "seed {seed}: F-012: a file was touched after its sync failed");
        });
    }
}

/// Waits until the keeper, who works between batches, has nothing to do.
async fn come_to_rest(spool: &Spool) {
    for _ in 0..3 {
        spool.flush().await;
    }
}

/// Says whether the disk works again: puts until one is taken.
async fn accepts_again(spool: &Spool, seed: u64) -> MessageId {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        match put(spool, seed, 100, &[1]).await {
            Ok(id) => return id,
            Err(error) if tokio::time::Instant::now() > deadline => panic!("it does not accept again: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_micros(200)).await,
        }
    }
}

/// Nobody else has to come for it: a relay that is idle by then would deliver it again after its next start.
#[test]
fn f012_what_was_settled_when_a_write_failed_is_written_by_itself() {
    run(async {
        for op in [Op::Write, Op::Sync] {
            let disk = Model::new(1);
            let (spool, _) = open(&disk, small());
            let id = put(&spool, 1, 300, &[1]).await.unwrap();
            come_to_rest(&spool).await;
            disk.inject(Fault { op, after: 0, errno: Errno::EIO, lasts: false });
            spool.settle(settled(id, 0, 0));
            let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
            while spool.waiting() > 0 {
                assert!(tokio::time::Instant::now() < deadline, "{op:?}: it waits for ever");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(disk.fired(), 1, "{op:?}");
            spool.close().await;
        }
    });
}

#[test]
fn f012_what_was_refused_for_a_failed_sync_does_not_come_back_and_what_was_acknowledged_before_stays() {
    run(async {
        for seed in 0..50 {
            let disk = Model::new(seed);
            let (spool, _) = open(&disk, small());
            let before = put(&spool, 1, 300, &[1]).await.unwrap();
            come_to_rest(&spool).await;
            disk.inject(Fault { op: Op::Sync, after: 0, errno: Errno::EIO, lasts: false });
            let refused = put(&spool, 2, 300, &[1]).await;
            assert!(matches!(refused, Err(PutError::Fault(_))), "{refused:?}");
            // Without a restart, and at once.
            let after = put(&spool, 3, 300, &[1]).await.unwrap();
            assert!(spool.load(before).is_ok());
            let left = disk.crash();
            spool.close().await;
            let (spool, recovered) = open(&left, small());
            let ids: Vec<_> = recovered.waiting.iter().map(|waiting| waiting.id).collect();
            assert_eq!(ids, [before, after], "seed {seed}");
            assert_eq!(recovered.corrupt, []);
            spool.close().await;
        }
    });
}

#[test]
fn f011_a_full_disk_refuses_new_mail_lets_the_queue_drain_and_takes_mail_again() {
    run(async {
        let disk = Model::new(1);
        disk.limit(100 << 10);
        let (spool, _) = open(&disk, small());
        let mut ids = Vec::new();
        let full = loop {
            match put(&spool, ids.len() as u64, 1000, &[2]).await {
                Ok(id) => ids.push(id),
                Err(error) => break error,
            }
        };
        assert!(matches!(full, PutError::Full(_)), "{full:?}");
        assert!(ids.len() > 40, "only {} fitted", ids.len());
        // A report still comes in: it makes room.
        let content = Draft::from_bytes(content(7, 600));
        let report = NewMessage { settles: vec![settled(ids[0], 0, 0)], ..message(&spool, content, &[1]) };
        let report = spool.put(report).await.unwrap().message.id;
        for id in &ids {
            spool.settle(settled(*id, 0, 0));
            spool.settle(settled(*id, 0, 1));
            spool.flush().await;
        }
        assert_eq!(spool.waiting(), 1);
        let again = accepts_again(&spool, 1).await;
        let left = disk.crash();
        spool.close().await;
        let (spool, recovered) = open(&left, small());
        let found: Vec<_> = recovered.waiting.iter().map(|waiting| waiting.id).collect();
        assert_eq!(found, [report, again]);
        spool.close().await;
    });
}

/// A disk without a byte left is no reason not to start. With the last run's reserve what was accepted drains durably; without
/// it, what was accepted can still be delivered, and is written down when there is room.
#[test]
fn a_start_on_a_full_disk_goes_on_with_what_was_accepted() {
    run(async {
        for (lose_the_reserve, starts) in [(false, 1), (false, 4), (true, 1), (true, 3)] {
            let what = format!("{lose_the_reserve} {starts}");
            let disk = Model::new(1);
            disk.limit(100 << 10);
            let (spool, _) = open(&disk, small());
            let mut ids = Vec::new();
            while let Ok(id) = put(&spool, ids.len() as u64, 1000, &[1]).await {
                ids.push(id);
            }
            spool.close().await;
            let used: u64 = disk.files("/spool/log").iter().map(|path| disk.content(path).len() as u64).sum();
            let mut disk = disk.kill();
            if lose_the_reserve {
                let reserve = disk.files("/spool/log").into_iter().max().unwrap();
                disk.remove(&reserve);
                disk.limit(used - (8 << 10));
            } else {
                disk.limit(used);
            }
            let mut numbers = std::collections::BTreeSet::new();
            let mut spool = None;
            for _ in 0..starts {
                if let Some(before) = spool.take() {
                    Spool::close(before).await;
                    disk = disk.kill();
                }
                let (opened, recovered) = open(&disk, small());
                assert_eq!(recovered.messages, ids.len(), "{what}");
                assert!(numbers.insert(opened.next_id()), "{what}");
                let refused = put(&opened, 1, 1000, &[1]).await;
                assert!(matches!(refused, Err(PutError::Full(_))), "{what}: {refused:?}");
                assert!(opened.load(ids[0]).is_ok(), "{what}: it can be delivered");
                spool = Some(opened);
            }
            let spool = spool.unwrap();
            for id in &ids {
                spool.settle(settled(*id, 0, 0));
            }
            let unwritten = spool.flush().await;
            assert_eq!(unwritten.is_empty(), !lose_the_reserve, "{what}");
            if lose_the_reserve {
                disk.unlimit();
            }
            let again = accepts_again(&spool, 1).await;
            spool.flush().await;
            let left = disk.crash();
            spool.close().await;
            let (spool, recovered) = open(&left, small());
            let found: Vec<_> = recovered.waiting.iter().map(|waiting| waiting.id).collect();
            assert_eq!(found, [again], "{what}");
            assert!(recovered.corrupt.is_empty(), "{what}: {:?}", recovered.corrupt);
            spool.close().await;
        }
    });
}

#[test]
fn f011_min_free_space_has_two_thresholds() {
    let disk = Model::new(1);
    let on = ModelDisk(disk.clone());
    let mib = 1u64 << 20;
    let room = |free: u64, known_full: bool| {
        disk.limit(free);
        let room = Room::new(256 * mib);
        if known_full {
            disk.limit(0);
            assert!(room.check(&on, Path::new(ROOT), 0).is_err());
            disk.limit(free);
            room.ask_again();
        }
        room.check(&on, Path::new(ROOT), 10 * mib).is_ok()
    };
    for (free, known_full, expected) in [
        (1000 * mib, false, true),
        (266 * mib, false, true),
        (265 * mib, false, false),
        (255 * mib, false, false),
        (266 * mib, true, false),
        (272 * mib, true, true),
    ] {
        assert_eq!(room(free, known_full), expected, "{} MiB free, was full: {known_full}", free / mib);
    }
}

/// A spool with messages of these lengths, closed; its only segment that has records, and where they stand.
async fn closed(lengths: &[usize]) -> (Arc<Model>, Vec<MessageId>, PathBuf, Vec<Place>) {
    let disk = Model::new(1);
    let (spool, _) = open(&disk, small());
    let mut ids = Vec::new();
    for (seed, len) in lengths.iter().enumerate() {
        ids.push(put(&spool, seed as u64, *len, &[1]).await.unwrap());
    }
    let places = {
        let index = spool.shared.index.lock().unwrap();
        ids.iter().map(|id| index.get(*id).unwrap().place).collect()
    };
    spool.close().await;
    (disk, ids, Path::new(ROOT).join("log/00000001.segment"), places)
}

fn again(disk: &Arc<Model>, path: &Path, bytes: &[u8]) -> (Spool, Recovered) {
    let copy = Model::new(1);
    for name in disk.files(ROOT) {
        copy.plant(&name, &disk.content(&name));
    }
    copy.plant(path, bytes);
    open(&copy, small())
}

#[test]
fn f014_a_log_cut_at_any_byte_keeps_exactly_what_was_whole() {
    run(async {
        let (disk, ids, path, places) = closed(&[200, 0, 333]).await;
        let whole = disk.content(&path);
        let end = (places[2].offset + places[2].size) as usize;
        let mut rng = fastrand::Rng::with_seed(1);
        for cut in 64..=end {
            // What is behind the cut: nothing, zeros, rubbish, or the beginning once more.
            for behind in 0..4 {
                if (cut, behind) == (64, 3) {
                    continue; // nothing was cut
                }
                let mut bytes = whole[..cut].to_vec();
                match behind {
                    0 => {}
                    1 => bytes.resize(whole.len(), 0),
                    2 => bytes.extend((cut..whole.len()).map(|_| rng.u8(..))),
                    _ => bytes.extend_from_slice(&whole[64..whole.len() - cut + 64]),
                }
                let (spool, recovered) = again(&disk, &path, &bytes);
                let expected = places.iter().filter(|place| (place.offset + place.size) as usize <= cut);
                let found: Vec<_> = recovered.waiting.iter().map(|waiting| waiting.id).collect();
                assert_eq!(found, ids[..expected.count()], "cut at {cut}, then {behind}");
                for (seed, id) in found.iter().enumerate() {
                    let loaded = spool.load(*id).unwrap();
                    assert_eq!(read(&loaded.message.content), content(seed as u64, [200, 0, 333][seed]));
                }
                drop(spool);
            }
        }
    });
}

#[test]
fn f013_a_bit_that_flips_costs_no_other_message_and_is_set_aside_with_a_reason() {
    run(async {
        let (disk, ids, path, places) = closed(&[100, 80, 90]).await;
        let whole = disk.content(&path);
        for at in 0..(places[2].offset + places[2].size) as usize {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            let (spool, recovered) = again(&disk, &path, &bytes);
            let hit = places.iter().position(|p| (p.offset..p.offset + p.size).contains(&(at as u32)));
            let expected: Vec<_> = (0..3).filter(|number| Some(*number) != hit).map(|number| ids[number]).collect();
            let found: Vec<_> = recovered.waiting.iter().map(|waiting| waiting.id).collect();
            assert_eq!(found, expected, "byte {at}");
            // The end of the run left word that all of it had been synced, so this is damage and no torn write.
            assert_eq!(recovered.corrupt.len(), usize::from(hit.is_some()), "byte {at}: {:?}", recovered.corrupt);
            if let Some(corrupt) = recovered.corrupt.first() {
                assert_eq!(corrupt.offset, places[hit.unwrap()].offset);
                assert_eq!(
                    corrupt.path,
                    Path::new(ROOT).join(format!("corrupt/00000001-{:08x}.record", corrupt.offset))
                );
            }
            drop(spool);
        }
    });
}

#[test]
fn f013_damage_found_while_running_sets_one_message_aside_and_the_others_go_on() {
    run(async {
        let disk = Model::new(1);
        let (spool, _) = open(&disk, small());
        let ids = [
            put(&spool, 1, 100, &[1]).await.unwrap(),
            put(&spool, 2, 100, &[1]).await.unwrap(),
            put(&spool, 3, 4000, &[1]).await.unwrap(),
        ];
        let place = spool.shared.index.lock().unwrap().get(ids[0]).unwrap().place;
        disk.tamper(&Path::new(ROOT).join("log/00000001.segment"), |bytes| bytes[place.offset as usize + 150] ^= 1);
        disk.tamper(&disk.files("/spool/large")[0], |bytes| bytes[2000] ^= 1);
        for id in [ids[0], ids[2]] {
            assert!(matches!(spool.load(id), Err(LoadError::Damaged(_))));
        }
        assert!(spool.load(ids[1]).is_ok());
        spool.flush().await;
        assert_eq!(spool.waiting(), 1);
        assert!(matches!(spool.load(ids[0]), Err(LoadError::Gone)));
        let aside = disk.files("/spool/corrupt");
        // Bytes and reason of each, and the file that the large one had of its own.
        assert_eq!(aside.len(), 5, "{aside:?}");
        assert!(disk.content(&aside[4]).len() == 4000 && disk.files("/spool/large").is_empty(), "{aside:?}");
        let reason = String::from_utf8(disk.content(&aside[1])).unwrap();
        assert!(reason.contains(&format!("reason: message {}: its checksum does not match", ids[0])), "{reason}");
        spool.close().await;
    });
}

/// What is left of a large message whose record is lost is kept: a start removes a file that no record names only where
/// it has read all that could name one.
#[test]
fn f013_a_start_keeps_the_file_of_a_message_whose_record_it_cannot_read() {
    run(async {
        for for_good in [true, false] {
            let (disk, _, path, places) = closed(&[100, 4000, 100]).await;
            if for_good {
                disk.tamper(&path, |bytes| bytes[places[1].offset as usize + 150] ^= 1);
            }
            let (spool, recovery) = Spool::open_on(Arc::new(ModelDisk(disk.clone())), settings(), small()).unwrap();
            if !for_good {
                disk.inject(Fault { op: Op::Read, after: 0, errno: Errno::EIO, lasts: true });
            }
            let recovered = recovery.run();
            disk.heal();
            let left = if for_good { 2 } else { 0 };
            assert_eq!((recovered.messages, recovered.orphans), (left, 0), "{for_good}");
            assert!(!recovered.corrupt.is_empty(), "{for_good}");
            let aside = disk.files("/spool/corrupt");
            let body = aside.iter().find(|path| path.extension().is_some_and(|extension| extension == "body"));
            assert_eq!(disk.content(body.unwrap()), content(1, 4000).to_vec(), "{for_good}");
            assert!(disk.files("/spool/large").is_empty(), "{for_good}");
            spool.close().await;
        }
    });
}

/// A disk that does not answer for a while costs nothing; a message that it never gives does not keep the log for ever.
#[test]
fn f013_a_message_that_the_disk_does_not_give_is_set_aside_only_after_an_hour() {
    run(async {
        for len in [100, 4000] {
            let disk = Model::new(1);
            let (spool, _) = open(&disk, Options { read_patience: Duration::from_millis(400), ..small() });
            let id = put(&spool, 1, len, &[1]).await.unwrap();
            let errno = Errno::EIO;
            disk.inject(Fault { op: Op::Read, after: 0, errno, lasts: true });
            assert!(matches!(spool.load(id), Err(LoadError::Io(_))));
            disk.heal();
            assert_eq!(read(&spool.load(id).unwrap().message.content), content(1, len), "it came back");
            // Running out of memory is no reason, however long it takes.
            for (errno, expected) in [(Errno::ENOMEM, false), (errno, true)] {
                disk.inject(Fault { op: Op::Read, after: 0, errno, lasts: true });
                let began = std::time::Instant::now();
                let damaged = loop {
                    match spool.load(id) {
                        Err(LoadError::Io(_)) if !expected && began.elapsed() > Duration::from_secs(1) => break false,
                        Err(LoadError::Io(_)) if began.elapsed() > Duration::from_secs(60) => panic!("it never is"),
                        Err(LoadError::Io(_)) => tokio::time::sleep(Duration::from_millis(2)).await,
                        Err(LoadError::Damaged(reason)) => {
                            assert!(reason.contains("could not be read for 400ms: Input/output error"), "{reason}");
                            break true;
                        }
                        other => panic!("{other:?}"),
                    }
                };
                assert_eq!(damaged, expected, "{errno}");
                disk.heal();
            }
            let other = put(&spool, 2, 100, &[1]).await.unwrap();
            spool.flush().await;
            assert!(matches!(spool.load(id), Err(LoadError::Gone)) && spool.load(other).is_ok());
            spool.close().await;
        }
    });
}

#[test]
fn s091_the_image_of_a_record_in_a_mail_stays_a_mail() {
    run(async {
        let (disk, ids, path, places) = closed(&[100, 1200]).await;
        // The second message's body becomes a copy of the first record, made right for the place it is in; only the
        // salt is guessed. Then the head of the second record is damaged, so that recovery has to search.
        let mut bytes = disk.content(&path);
        let (first, second) = (places[0], places[1]);
        let at = second.offset + 400;
        let image = bytes[first.offset as usize..(first.offset + first.size) as usize].to_vec();
        for guess in [false, true] {
            let head = RecordHeadImage { image: &image, at, guess };
            bytes[at as usize..at as usize + image.len()].copy_from_slice(&head.bytes());
            bytes[second.offset as usize] ^= 0xFF;
            let (spool, recovered) = again(&disk, &path, &bytes);
            let found: Vec<_> = recovered.waiting.iter().map(|waiting| waiting.id).collect();
            assert_eq!(found, ids[..1]);
            // With the right salt it would have been taken for one: that is what the salt is for.
            assert!(spool.load(ids[0]).is_ok());
            let place = spool.shared.index.lock().unwrap().get(ids[0]).unwrap().place;
            assert_eq!(place.offset == at, !guess, "guessed: {guess}");
            bytes[second.offset as usize] ^= 0xFF;
            drop(spool);
        }
    });
}

/// A record's bytes, moved.
struct RecordHeadImage<'a> {
    image: &'a [u8],
    at: u32,
    /// The salt is not the segment's.
    guess: bool,
}

impl RecordHeadImage<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.image.to_vec();
        bytes[12..16].copy_from_slice(&self.at.to_le_bytes());
        if self.guess {
            bytes[1..4].copy_from_slice(&[1, 2, 3]);
        }
        let crc = format::checksum(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

#[test]
fn f020_a_newer_format_is_refused_and_left_as_it_is() {
    run(async {
        let (disk, _, path, _) = closed(&[100]).await;
        disk.tamper(&path, |bytes| {
            bytes[8] = 4;
            let crc = format::checksum(&bytes[..32]);
            bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        });
        let files = |disk: &Model| {
            let names = ["/spool", "/spool/log", "/spool/large"].into_iter().flat_map(|folder| disk.files(folder));
            names.map(|path| (disk.content(&path), path)).collect::<Vec<_>>()
        };
        let before = files(&disk);
        let opened = Spool::open_on(Arc::new(ModelDisk(disk.clone())), settings(), small());
        let error = opened.map(|_| ()).unwrap_err();
        assert!(matches!(error, OpenError::Newer { found: 4, .. }));
        assert!(error.to_string().contains("has format 4, and this version reads up to 3"), "{error}");
        assert!(files(&disk) == before, "something was changed");
    });
}

#[test]
fn f020_a_spool_of_every_version_is_read_exactly() {
    let until = time(3600);
    // Written by the versions of their names; never to be made again.
    let first = format!("050000000001/1 to-cloud the MX of example.net Some({until}) 3 true false 0");
    let untried = "050000000001/0 to-cloud its smart hosts None 0 false false 0".to_owned();
    let held = format!("050000000001/0 to-cloud its smart hosts Some({until}) 1 false true 0");
    let panicked = format!("050000000001/1 to-cloud the MX of example.net Some({until}) 3 true false 2");
    for (golden, expected) in [
        (&include_bytes!("golden/v1.segment")[..], [untried, first.clone()]),
        (include_bytes!("golden/v2.segment"), [held.clone(), first]),
        (include_bytes!("golden/v3.segment"), [held, panicked]),
    ] {
        read_golden(golden, &expected);
    }
}

/// What stands in its place begins with numbers that the spool before it has not given.
#[test]
fn a_spool_that_is_begun_anew_does_not_repeat_numbers() {
    for (now, generation) in [
        ("1970-01-01T00:00:00Z", 1),
        ("2025-12-31T23:00:00Z", 1),
        ("2026-01-01T00:00:30Z", 1),
        ("2026-11-20T10:00:00Z", 465_720),
        ("2026-11-20T10:01:00Z", 465_721),
        ("2090-01-01T00:00:00Z", 1 << 23),
    ] {
        assert_eq!(first_generation(now.parse().unwrap()), generation, "{now}");
    }
    let (spool, _) = open(&Model::new(1), small());
    assert!(spool.next_id().0 >> 40 > 400_000, "{}", spool.next_id());
}

/// Two spools that are begun in the same minute give different numbers, in each of their starts, and each spool's numbers grow.
#[test]
fn spools_that_were_begun_together_number_apart() {
    for (random, first) in [(0, 1), (1 << 25, 1), (u64::MAX, (1 << 39) - 1)] {
        assert_eq!(first_number(random), first);
    }
    clock::held::hold(Some("2026-11-20T10:00:00Z".parse().unwrap()));
    // The seed of the numbers; the clock that is held makes them repeat.
    fastrand::seed(7);
    let disks = [Model::new(1), Model::new(2)];
    let mut last = [MessageId(0); 2];
    for start in 0..3 {
        let ids = [0, 1].map(|which| {
            let (spool, _) = open(&disks[which], by_hand());
            let id = spool.next_id();
            assert!(id > last[which] && id.0 >> 40 == 465_720 + start, "{id}");
            last[which] = spool.next_id();
            assert_eq!(last[which].0, id.0 + 1);
            run(spool.close());
            id
        });
        assert!(ids[0].0.abs_diff(ids[1].0) > 1_000_000, "{ids:?}");
    }
    clock::held::hold(None);
}

fn read_golden(golden: &[u8], expected: &[String]) {
    let disk = Model::new(1);
    let mut bytes = golden.to_vec();
    bytes.resize(8 << 10, 0);
    disk.plant(&Path::new(ROOT).join("log/00000007.segment"), &bytes);
    let (spool, recovered) = open(&disk, small());
    assert_eq!(recovered.corrupt, []);
    let waiting: Vec<_> = recovered
        .waiting
        .iter()
        .map(|w| {
            let Waiting { id, copy, via, hop, until, attempts, warned, held, panics, .. } = w;
            format!("{id}/{copy} {via} {hop} {until:?} {attempts} {warned} {held} {panics}")
        })
        .collect();
    assert_eq!(waiting, expected);
    let loaded = spool.load(MessageId(5 << 40 | 1)).unwrap();
    assert_eq!(loaded.open, [vec![0], vec![1]]);
    let expected = golden_message();
    let found = loaded.message;
    assert_eq!(found.accepted, expected.accepted);
    assert_eq!(found.envelope, expected.envelope);
    assert_eq!(found.connector, expected.connector);
    assert_eq!(found.message_id, expected.message_id);
    assert_eq!(found.prefix, expected.prefix);
    assert_eq!(found.organization, expected.organization);
    assert_eq!(found.copies, expected.copies);
    assert_eq!(read(&found.content), read(&expected.content));
    // The generation goes on from the newest segment, though its file is missing.
    assert_eq!(spool.next_id().0 >> 40, 6);
}

fn golden_message() -> Message {
    let mut copies = copies(&[1, 2]);
    copies[1].recipients[1] = CopyRecipient {
        asked: address("\"odd name\"@contoso.com"),
        recipient: Recipient {
            address: address("david@contoso.mail.onmicrosoft.com"),
            notify: Notify::On { success: false, failure: true, delay: true },
            orcpt: Some(OriginalRecipient { kind: "rfc822".into(), address: "first@example.org".into() }),
        },
    };
    Message {
        id: MessageId(5 << 40 | 1),
        accepted: Timestamp::new(1_700_000_000, 123_456_789).unwrap(),
        envelope: Envelope {
            ret: Some(Ret::Headers),
            envid: Some("QQ314159".into()),
            body: BodyType::EightBit,
            smtputf8: true,
            requiretls: true,
            ..envelope()
        },
        connector: "internet".into(),
        message_id: Some("<1@example.com>".into()),
        prefix: Bytes::from_static(b"Received: from here\r\n"),
        // The first version did not look for them; what it left is looked at when it leaves.
        organization: OrganizationHeaders::Cut,
        content: Body::from_bytes(&b"Subject: hi\r\n\r\nbody\r\n"[..]),
        copies,
    }
}

/// Makes the golden segment; only a new version of the format ever has to.
#[test]
fn f020_the_format_written_today_is_version_3() {
    use format::{Kind, RecordHead, SEGMENT_HEAD, Salt, SegmentHead};
    let salt = Salt::of_record(&[0xC5, 1, 2, 3, 0, 4, 5, 6]).unwrap();
    let mut segment = SegmentHead { version: 3, number: 7, generation: 5, salt }.encode().to_vec();
    let message = golden_message();
    let mut first = format::encode_message(&message, &[], &[], Content::Inline { len: message.content.len() });
    first.extend_from_slice(&read(&message.content));
    let gone = Message { id: MessageId(5 << 40 | 2), copies: copies(&[1]), ..golden_message() };
    let mut second =
        format::encode_message(&gone, &[settled(message.id, 1, 0)], &[], Content::Inline { len: gone.content.len() });
    second.extend_from_slice(&read(&gone.content));
    let deferral =
        Deferral { id: message.id, copy: 1, until: time(3600), attempts: 3, warned: true, held: false, panics: 2 };
    let held = Deferral { copy: 0, attempts: 1, warned: false, held: true, panics: 0, ..deferral };
    for (kind, mut bytes) in [
        (Kind::Mark, format::encode_mark(6, 64)),
        (Kind::Cancelled, format::encode_removed(&[MessageId(77)])),
        (Kind::Message, first),
        (Kind::Message, second),
        (Kind::Deferred, format::encode_deferred(&[deferral, held])),
        (Kind::Settled, format::encode_settled(&[Settlement { end: End::Failed, ..settled(gone.id, 0, 0) }])),
        (Kind::Removed, format::encode_removed(&[MessageId(78)])),
    ] {
        let length = (bytes.len() - RECORD_HEAD) as u32;
        let crc = format::checksum(&bytes[RECORD_HEAD..]);
        let head = RecordHead { kind, segment: 7, offset: segment.len() as u32, batch: SEGMENT_HEAD, length, crc };
        bytes[..RECORD_HEAD].copy_from_slice(&head.encode(salt));
        segment.extend_from_slice(&bytes);
    }
    if let Ok(path) = std::env::var("CAUSEWAY_WRITE_GOLDEN") {
        std::fs::write(path, &segment).unwrap();
    }
    assert_eq!(segment, include_bytes!("golden/v3.segment"));
}

#[test]
fn f004_what_comes_during_a_sync_shares_the_next_one() {
    run(async {
        let disk = Model::new(1);
        let (spool, _) = open(&disk, Options { segment_size: Some(1 << 20), ..small() });
        come_to_rest(&spool).await;
        let (writes, syncs) = (disk.count("write"), disk.count("sync"));
        disk.hold();
        let first = tokio::spawn({
            let spool = spool.clone();
            async move { put(&spool, 0, 100, &[1]).await }
        });
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while disk.count("write") == writes {
            assert!(std::time::Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (1..64)
            .map(|seed| {
                let spool = spool.clone();
                tokio::spawn(async move { put(&spool, seed, 100, &[1]).await })
            })
            .collect();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!first.is_finished(), "acknowledged before the sync returned");
        disk.release();
        first.await.unwrap().unwrap();
        for other in others {
            other.await.unwrap().unwrap();
        }
        assert_eq!((disk.count("write") - writes, disk.count("sync") - syncs), (2, 2));
        assert_eq!(spool.waiting(), 64);
        spool.close().await;
    });
}

#[test]
fn f016_f017_a_caller_that_leaves_takes_its_message_back() {
    run(async {
        let disk = Model::new(1);
        let (spool, _) = open(&disk, small());
        disk.hold();
        let leaving = tokio::time::timeout(Duration::from_millis(20), put(&spool, 0, 100, &[1])).await;
        assert!(leaving.is_err());
        // A large one too.
        let stays = spool.clone();
        let stays = tokio::spawn(async move { put(&stays, 1, 100, &[1]).await });
        disk.release();
        let stays = stays.await.unwrap().unwrap();
        spool.flush().await;
        spool.flush().await;
        assert_eq!(spool.waiting(), 1);
        spool.close().await;
        let (spool, recovered) = open(&disk, small());
        assert_eq!(recovered.waiting.iter().map(|waiting| waiting.id).collect::<Vec<_>>(), [stays]);
        spool.close().await;
    });
}

#[test]
fn f010_one_message_that_stays_does_not_keep_the_log() {
    run(async {
        for keeper_thread in [false, true] {
            let disk = Model::new(1);
            let (spool, _) = open(&disk, Options { keeper_thread, ..small() });
            let stays = put(&spool, 99, 700, &[3, 1]).await.unwrap();
            spool.settle(settled(stays, 0, 1));
            spool.defer(Deferral {
                id: stays,
                copy: 1,
                until: time(5),
                attempts: 2,
                warned: true,
                held: false,
                panics: 3,
            });
            let (mut most, mut sum) = (0, 0u64);
            let before = disk.written();
            for seed in 0..600 {
                let id = put(&spool, seed, 700, &[1]).await.unwrap();
                sum += 700;
                spool.settle(settled(id, 0, 0));
                most = most.max(disk.files("/spool/log").len());
            }
            spool.flush().await;
            assert!(most < 16, "{most} segments for one message");
            let written = disk.written() - before;
            // Segment heads and copies of the one that stays included.
            assert!(written < sum * 11 / 10 + 600 * 512, "{written} bytes written for {sum}");
            spool.close().await;
            let (spool, recovered) = open(&disk, small());
            assert_eq!(recovered.messages, 1);
            let loaded = spool.load(stays).unwrap();
            assert_eq!(loaded.open, [vec![0, 2], vec![0]]);
            assert_eq!(read(&loaded.message.content), content(99, 700));
            let deferred: Vec<_> = recovered.waiting.iter().map(|w| (w.copy, w.until, w.attempts, w.warned)).collect();
            assert_eq!(deferred, [(0, None, 0, false), (1, Some(time(5)), 2, true)]);
            spool.close().await;
        }
    });
}

/// The committer has no thread: it does something when a test says so.
fn by_hand() -> Options {
    Options { committer_thread: false, ..small() }
}

/// Turns the committer until `work` is done.
async fn turning<T>(spool: &Spool, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::task::yield_now() => drop(spool.step()),
        }
    }
}

/// The process is killed between a write and its sync, and the power fails after the next start: that start has read from
/// memory what was never on the disk, and what follows from it (here: that nobody is to be tried) must not come undone.
#[test]
fn what_a_start_read_of_an_unsynced_settlement_survives_a_power_cut() {
    run(async {
        for seed in 0..100 {
            let disk = Model::new(seed);
            let (spool, _) = open(&disk, by_hand());
            let id = turning(&spool, put(&spool, 1, 100, &[1])).await.unwrap();
            spool.settle(settled(id, 0, 0));
            // The write is the first step, its sync the second.
            disk.die_after(2);
            turning(&spool, spool.flush()).await;
            assert!(disk.is_dead());
            let killed = disk.kill();
            spool.close().await;

            let (spool, recovered) = open(&killed, by_hand());
            assert_eq!(recovered.messages, 0, "seed {seed}: the settlement was written");
            let left = killed.crash();
            spool.close().await;
            let (spool, recovered) = open(&left, by_hand());
            assert_eq!(recovered.messages, 0, "seed {seed}: a message that a start held to be delivered is open again");
            spool.close().await;
        }
    });
}

/// The same with the copy that compaction makes of a message: the next start removes the segment with the original.
#[test]
fn what_a_start_read_of_an_unsynced_copy_survives_a_power_cut() {
    run(async {
        let mut removed = 0;
        for seed in 0..100 {
            let disk = Model::new(seed);
            let (spool, _) = open(&disk, by_hand());
            let stays = turning(&spool, put(&spool, 99, 700, &[1])).await.unwrap();
            let original = spool.shared.lock_index().get(stays).unwrap().place.segment;
            // Until compaction has read it, and its copy waits to be written.
            let mut number = 0;
            while spool.shared.lock_index().copying == 0 {
                number += 1;
                assert!(number < 1000, "seed {seed}: the log is never compacted");
                let goes = turning(&spool, put(&spool, number, 600, &[1])).await.unwrap();
                spool.settle(settled(goes, 0, 0));
                turning(&spool, spool.flush()).await;
            }
            // At the sync of the copy, or a few steps before or behind it.
            disk.die_after(1 + seed % 5);
            for _ in 0..10 {
                turning(&spool, spool.flush()).await;
            }
            assert!(disk.is_dead(), "seed {seed}");
            let killed = disk.kill();
            spool.close().await;

            let (spool, recovered) = open(&killed, by_hand());
            assert_eq!(recovered.messages, 1, "seed {seed}");
            turning(&spool, spool.flush()).await;
            removed += u32::from(!spool.shared.lock_index().segments.contains_key(&original));
            let left = killed.crash();
            spool.close().await;
            let (spool, recovered) = open(&left, by_hand());
            assert_eq!(
                recovered.messages, 1,
                "seed {seed}: an acknowledged message went with the segment it was copied from"
            );
            assert_eq!(read(&spool.load(stays).unwrap().message.content), content(99, 700), "seed {seed}");
            spool.close().await;
        }
        assert!(removed > 10, "only {removed} starts removed the original's segment");
    });
}

#[test]
fn f009_a_report_and_what_it_reports_become_durable_together() {
    run(async {
        for seed in 0..200 {
            let disk = Model::new(seed);
            let (spool, _) = open(&disk, small());
            let failed = put(&spool, 1, 100, &[1]).await.unwrap();
            disk.die_after(fastrand::Rng::with_seed(seed).u64(1..5));
            let report = message(&spool, Draft::from_bytes(content(2, 300)), &[1]);
            let id = report.id;
            let _ = spool.put(NewMessage { settles: vec![settled(failed, 0, 0)], ..report }).await;
            let left = disk.crash();
            spool.close().await;
            let (spool, recovered) = open(&left, small());
            let found: Vec<_> = recovered.waiting.iter().map(|waiting| waiting.id).collect();
            assert!(found == [failed] || found == [id], "seed {seed}: {found:?}");
            spool.close().await;
        }
    });
}

#[test]
fn f058_numbers_are_never_given_twice() {
    run(async {
        let mut disk = Model::new(1);
        let mut seen = std::collections::HashSet::new();
        for round in 0..20 {
            let (spool, _) = open(&disk, small());
            for _ in 0..5 {
                assert!(seen.insert(spool.next_id()));
            }
            assert!(seen.insert(put(&spool, round, 10, &[1]).await.unwrap()));
            let left = disk.crash();
            spool.close().await;
            disk = left;
            if round % 3 == 0 {
                // Damaged beyond reading: the segments know.
                disk.tamper(&Path::new(ROOT).join("generation"), |bytes| bytes.fill(0xFF));
            }
        }
    });
}

/// F-054: a header is whole in memory wherever the content goes on in a file, and however it is cut.
#[test]
fn f054_in_need_a_long_header_stays_whole() {
    run(async {
        let disk = Model::new(1);
        let (spool, _) = open(&disk, Options { segment_size: Some(2 << 20), large_at: 1 << 20, ..small() });
        spool.limit_drafts(600 << 10);
        let mut others = spool.draft();
        others.push(content(1, 310 << 10)).await.unwrap();
        let header = "X-A: b\r\n".repeat(20_000) + "\r\n";
        let whole = format!("{header}{}", "text\r\n".repeat(10_000));
        for size in [1, 700, 8 << 10, 100_000, header.len() - 2, header.len() - 1, header.len()] {
            let mut draft = spool.draft();
            for piece in whole.as_bytes().chunks(size) {
                draft.push(Bytes::copy_from_slice(piece)).await.unwrap();
            }
            assert!(draft.in_memory().is_none(), "{size}: it is in a file");
            assert!(draft.head().starts_with(header.as_bytes()), "{size}: {} bytes", draft.head().len());
            assert!(draft.head().len() < header.len() + size, "{size}: no more than that");
        }
    });
}

/// F-054: unfinished content may take so much memory and no more; in need it goes to a file long before it is large, and
/// all is as ever when those who took it are gone.
#[test]
fn f054_drafts_stay_within_their_room() {
    run(async {
        let disk = Model::new(1);
        let options = Options { segment_size: Some(2 << 20), large_at: 400 << 10, ..small() };
        let (spool, _) = open(&disk, options);
        spool.limit_drafts(256 << 10);
        let piece = content(1, 50 << 10);
        let mut calm = spool.draft();
        calm.push(piece.clone()).await.unwrap();
        calm.push(piece.clone()).await.unwrap();
        assert!(calm.in_memory().is_some(), "there is room enough");
        // Half of it is taken now: what is longer than 64 KiB goes to disk.
        let mut short = spool.draft();
        short.push(piece.clone()).await.unwrap();
        assert!(short.in_memory().is_some());
        let mut long = spool.draft();
        long.push(piece.clone()).await.unwrap();
        long.push(piece.clone()).await.unwrap();
        assert!(long.in_memory().is_none(), "it is in a file");
        // And so is this one; then it is full, and nobody gets more.
        let mut others = Vec::new();
        let refused = loop {
            let mut other = spool.draft();
            match other.push(piece.clone()).await {
                Ok(()) => others.push(other),
                Err(error) => break error,
            }
            assert!(others.len() < 10, "without an end");
        };
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert_eq!(calm.push(piece.clone()).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
        drop((others, calm));
        short.push(piece.clone()).await.unwrap();
        // What is put counts until it is on disk, and then no longer.
        for one in [short, long] {
            let _ = spool.put(message(&spool, one, &[1])).await.unwrap();
        }
        let mut last = spool.draft();
        for _ in 0..2 {
            last.push(piece.clone()).await.unwrap();
        }
        assert!(last.in_memory().is_some(), "all room is free again");
        spool.close().await;
    });
}

mod on_a_real_disk {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn open_at(path: &Path) -> Result<(Spool, Recovery), OpenError> {
        Spool::open(Settings { path: path.into(), min_free_space: 0 })
    }

    #[test]
    fn f019_a_second_daemon_is_refused_and_told_who_has_the_spool() {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("spool");
            let (spool, _recovery) = open_at(&path).unwrap();
            let error = open_at(&path).map(|_| ()).unwrap_err();
            assert!(matches!(error, OpenError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
            assert!(error.to_string().contains("is in use by another daemon (process "), "{error}");
            spool.close().await;
            let (spool, _recovery) = open_at(&path).unwrap();
            spool.close().await;
        });
    }

    #[test]
    fn s165_a_folder_that_is_not_ours_alone_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        std::fs::create_dir(&real).unwrap();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o770)).unwrap();
        let link = folder.path().join("link");
        symlink(&real, &link).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        for (path, expected) in [
            (&real, "others may write to it (mode 770)"),
            (&link, "it is a symbolic link"),
            (&file, "it is not a folder"),
        ] {
            let error = open_at(path).map(|_| ()).unwrap_err();
            assert!(matches!(error, OpenError::Folder { .. }));
            assert!(error.to_string().contains(expected), "{error}");
        }
        // A parent that is missing is made, and the folder is closed to others.
        let path = folder.path().join("a/b/spool");
        drop(open_at(&path).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn large_messages_have_files_of_their_own_and_leave_nothing_behind() {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("spool");
            let files = || std::fs::read_dir(path.join("large")).unwrap().count();
            let (spool, recovery) = open_at(&path).unwrap();
            recovery.run();
            let bytes = content(1, 3 << 20);
            let mut draft = spool.draft();
            for piece in bytes.chunks(100_000) {
                draft.push(bytes.slice_ref(piece)).await.unwrap();
            }
            assert_eq!(files(), 1);
            assert_eq!(spool.bytes().large, 0, "it may still be refused");
            assert_eq!(draft.len(), 3 << 20);
            assert!(draft.head().len() >= 1 << 20 && bytes.starts_with(&draft.head()));
            let receipt = spool.put(message(&spool, draft, &[1])).await.unwrap();
            assert_eq!(read(&receipt.message.content), bytes);

            // One that is given up, one that is a little larger than what stays in the log, one a little smaller.
            let mut unfinished = spool.draft();
            unfinished.push(bytes.clone()).await.unwrap();
            assert_eq!(files(), 2);
            drop(unfinished);
            poll(|| files() == 1).await;
            let small = put(&spool, 2, 900_000, &[1]).await.unwrap();
            assert_eq!((files(), spool.bytes().large), (1, 3 << 20));
            spool.close().await;

            std::fs::write(path.join("large/00000000000000ff.body"), "orphan").unwrap();
            std::fs::write(path.join("large/README"), "not ours").unwrap();
            let (spool, recovery) = open_at(&path).unwrap();
            let recovered = recovery.run();
            assert_eq!((recovered.messages, recovered.orphans), (2, 1));
            assert_eq!((files(), spool.bytes().large), (2, 3 << 20));
            let loaded = spool.load(receipt.message.id).unwrap();
            assert!(matches!(loaded.message.content, Body::File { offset: 0, .. }));
            assert_eq!(read(&loaded.message.content), bytes);
            assert_eq!(loaded.message.prefix, receipt.message.prefix);
            let in_the_log = spool.load(small).unwrap();
            assert!(matches!(in_the_log.message.content, Body::File { .. }));
            assert_eq!(read(&in_the_log.message.content), content(2, 900_000));
            spool.settle(settled(receipt.message.id, 0, 0));
            spool.flush().await;
            assert_eq!(spool.bytes().large, 0);
            poll(|| files() == 1).await;
            spool.close().await;
        });
    }

    #[test]
    fn p4_a_body_that_is_being_read_is_not_written_over() {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let settings = Settings { path: folder.path().join("spool"), min_free_space: 0 };
            let options = Options { segment_size: Some(512 << 10), dead_segments: 1, ..Options::default() };
            let (spool, recovery) = Spool::open_on(Arc::new(Local), settings, options).unwrap();
            recovery.run();
            let id = put(&spool, 1, 100_000, &[1]).await.unwrap();
            let reading = spool.load(id).unwrap().message;
            assert!(matches!(reading.content, Body::File { .. }));
            spool.settle(settled(id, 0, 0));
            for seed in 0..60 {
                let id = put(&spool, 100 + seed, 100_000, &[1]).await.unwrap();
                spool.settle(settled(id, 0, 0));
            }
            spool.flush().await;
            assert_eq!(read(&reading.content), content(1, 100_000));
            spool.close().await;
        });
    }

    /// F-019: the folder is moved, removed or replaced under a running relay. Nothing is acknowledged that a start would
    /// not find; when the very folder is back, all goes on.
    #[test]
    fn f019_a_spool_that_is_not_in_its_place_takes_nothing() {
        run(async {
            type Act = fn(&Path, &Path);
            let away: Act = |path, aside| std::fs::rename(path, aside).unwrap();
            let replaced: Act = |path, aside| {
                std::fs::rename(path, aside).unwrap();
                std::fs::create_dir(path).unwrap();
                std::fs::create_dir(path.join("log")).unwrap();
                std::fs::create_dir(path.join("large")).unwrap();
            };
            let log_only: Act = |path, aside| std::fs::rename(path.join("log"), aside).unwrap();
            let large_only: Act = |path, aside| {
                std::fs::rename(path.join("large"), aside).unwrap();
                std::fs::create_dir(path.join("large")).unwrap();
            };
            let back: Act = |path, aside| std::fs::rename(aside, path).unwrap();
            let replaced_back: Act = |path, aside| {
                std::fs::remove_dir_all(path).unwrap();
                std::fs::rename(aside, path).unwrap();
            };
            let log_back: Act = |path, aside| std::fs::rename(aside, path.join("log")).unwrap();
            let large_back: Act = |path, aside| {
                std::fs::remove_dir_all(path.join("large")).unwrap();
                std::fs::rename(aside, path.join("large")).unwrap();
            };
            for (what, act, undo, len) in [
                ("moved", away, back, 1000),
                ("replaced", replaced, replaced_back, 1000),
                ("its log moved", log_only, log_back, 1000),
                ("the folder of large messages replaced", large_only, large_back, 200_000),
            ] {
                let folder = tempfile::tempdir().unwrap();
                let (path, aside) = (folder.path().join("spool"), folder.path().join("aside"));
                let settings = Settings { path: path.clone(), min_free_space: 0 };
                let pause = Duration::from_millis(5);
                let options = Options { segment_size: Some(512 << 10), large_at: 100_000, pause, ..Options::default() };
                let open = || Spool::open_on(Arc::new(Local), settings.clone(), options.clone()).unwrap();
                let (spool, recovery) = open();
                recovery.run();
                let before = put(&spool, 1, len, &[1]).await.unwrap();
                act(&path, &aside);
                for seed in 2..5 {
                    let refused = put(&spool, seed, len, &[1]).await;
                    assert!(matches!(refused, Err(PutError::Fault(_))), "{what}: {refused:?}");
                }
                undo(&path, &aside);
                let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
                let after = loop {
                    match put(&spool, 9, len, &[1]).await {
                        Ok(id) => break id,
                        Err(error) => assert!(tokio::time::Instant::now() < deadline, "{what}: {error}"),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                };
                spool.close().await;
                let (spool, recovery) = open();
                let recovered = recovery.run();
                assert_eq!(recovered.corrupt, [], "{what}");
                let found: Vec<_> = recovered.waiting.iter().map(|waiting| waiting.id).collect();
                assert_eq!(found, [before, after], "{what}: and nothing that was refused");
                spool.close().await;
            }
        });
    }

    /// F-019: removed for good, it takes nothing until it is started again.
    #[test]
    fn f019_a_spool_that_is_removed_takes_nothing() {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("spool");
            let settings = Settings { path: path.clone(), min_free_space: 0 };
            let options = Options { pause: Duration::from_millis(1), ..Options::default() };
            let (spool, recovery) = Spool::open_on(Arc::new(Local), settings, options).unwrap();
            recovery.run();
            put(&spool, 1, 1000, &[1]).await.unwrap();
            std::fs::remove_dir_all(&path).unwrap();
            for seed in 2..20 {
                assert!(put(&spool, seed, 1000, &[1]).await.is_err());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert!(spool.has_room(0).is_err(), "MAIL is refused already");
            assert!(!path.exists(), "and nobody makes another in its place");
            spool.close().await;
        });
    }

    /// What no segment can hold is refused for good.
    #[test]
    fn an_envelope_longer_than_a_segment_never_fits() {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let settings = Settings { path: folder.path().join("spool"), min_free_space: 0 };
            let options = Options { segment_size: Some(512 << 10), ..Options::default() };
            let (spool, recovery) = Spool::open_on(Arc::new(Local), settings, options).unwrap();
            recovery.run();
            let refused = put(&spool, 1, 1000, &[60_000]).await;
            assert!(matches!(refused, Err(PutError::TooLong(_))), "{refused:?}");
            put(&spool, 1, 1000, &[100]).await.unwrap();
            spool.close().await;
        });
    }

    async fn poll(mut done: impl FnMut() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn p1_p4_fifty_sessions_at_once_get_their_own_messages_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        let settings = Settings { path: path.clone(), min_free_space: 0 };
        let options = Options { segment_size: Some(512 << 10), dead_segments: 1, ..Options::default() };
        let (spool, recovery) = Spool::open_on(Arc::new(Local), settings, options).unwrap();
        recovery.run();
        let sessions: Vec<_> = (0..50u64)
            .map(|session| {
                let spool = spool.clone();
                tokio::spawn(async move {
                    let mut kept = Vec::new();
                    for number in 0..20u64 {
                        let seed = session * 1000 + number;
                        let id = put(&spool, seed, 500 + (seed as usize * 37) % 5000, &[1]).await.unwrap();
                        if number % 5 == 0 {
                            kept.push((id, seed));
                        } else {
                            spool.settle(settled(id, 0, 0));
                        }
                    }
                    kept
                })
            })
            .collect();
        let mut kept = BTreeMap::new();
        for session in sessions {
            kept.extend(session.await.unwrap());
        }
        spool.flush().await;
        assert_eq!(spool.waiting(), kept.len());
        spool.close().await;
        let (spool, recovery) = open_at(&path).unwrap();
        let recovered = recovery.run();
        assert_eq!(recovered.corrupt, []);
        let found: Vec<_> = recovered.waiting.iter().map(|waiting| waiting.id).collect();
        assert_eq!(found, kept.keys().copied().collect::<Vec<_>>());
        for (id, seed) in kept {
            let loaded = spool.load(id).unwrap();
            assert_eq!(read(&loaded.message.content), content(seed, 500 + (seed as usize * 37) % 5000));
        }
        spool.close().await;
    }
}
