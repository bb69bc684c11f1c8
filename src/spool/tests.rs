//! The promises of the spool, each under the number it has among the cases we hold ourselves to.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use tokio::runtime::Runtime;

use super::model::{CHANGES, Fault, Model, ModelDisk, Op};
use super::*;
use crate::config::ConnectorName;
use crate::message::{Address, BodyType, Domain, Notify, OriginalRecipient, Recipient, Ret};
use crate::route::{CopyRecipient, Hop};

const ROOT: &str = "/spool";

fn small() -> Options {
    Options {
        segment_size: Some(8 << 10),
        large_at: 1500,
        dead_segments: 1,
        keeper_thread: false,
        pause: Duration::from_millis(1),
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
            let known = Known {
                content: bytes,
                copies: counts.iter().map(|count| vec![Doneness::Open; *count]).collect(),
                deferrals: counts.iter().map(|_| vec![(None, 0)]).collect(),
                standing: Standing::Unknown,
            };
            let (id, settles) = (message.id, message.settles.clone());
            for settlement in &settles {
                self.settlement(settlement, Doneness::Maybe);
            }
            self.known.insert(id, known);
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
                Ok(Err(_)) => {
                    assert!(self.disk.fired() > 0 || sick, "seed {}: refused without a reason", self.seed);
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
                    self.spool.defer(Deferral { id: one.id, copy: one.copy, until, attempts, warned: attempts > 9 });
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
            if self.rng.bool() {
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
    run(async {
        for seed in first..first + histories(1500) {
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
        }
    });
}
