//! One seed's world: what is drawn for it, the machine with the relay on it, the network around, and what befalls them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::errno::Errno;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::client::{self, Letter};
use super::hop::{self, Mood};
use super::oracle::{Cut, Oracle, RECORDED, Taken};
use crate::accept::{self, ConnectionLimits, Door};
use crate::clock;
use crate::config;
use crate::deliver::Deliverer;
use crate::directory::Directory;
use crate::dns::Resolver;
use crate::message::visit;
use crate::outcome::tracking::Tracker;
use crate::relay::pressure::Level;
use crate::relay::queue::{By, Change, Filter};
use crate::relay::{Relay, Snapshot};
use crate::spool::model::{Fault, Model, ModelDisk, Op};
use crate::spool::{Options, Settings, Spool};
use crate::tls::wire::{self, Cutter, Partition, Weather, Wire};

/// So many of a hundred.
pub fn chance(percent: u8) -> bool {
    fastrand::u8(0..100) < percent
}

/// The hosts; the first two stand behind one connector.
const HOSTS: [[u8; 4]; 4] = [[10, 1, 0, 1], [10, 1, 0, 2], [10, 2, 0, 1], [10, 3, 0, 1]];

const LISTEN: &str = "10.0.0.25:25";
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// What a seed makes possible. A feature that is off leaves room for the others.
#[derive(Debug, Clone)]
pub struct Plan {
    early: bool,
    reloads: u8,
    cuts: u8,
    kills: u8,
    stops: u8,
    disk_faults: u8,
    disk_hangs: u8,
    partitions: u8,
    shortages: u8,
    operators: u8,
    clock_jumps: u8,
    weather_changes: u8,
    /// How bad hops may become.
    grim: u8,
    /// How bad clients may become.
    rude: u8,
    null_senders: u8,
    letters: usize,
    /// How long things go wrong.
    span: Duration,
    retry: &'static [&'static str],
    pub lifetime: Duration,
    delay_warning: Duration,
    window: &'static str,
    max_recipients: usize,
    max_recipients_out: usize,
    max_connections: usize,
    max_connections_out: usize,
    max_messages: usize,
    min_free: u64,
    capacity: Option<u64>,
    segment: u32,
    pub large_at: u64,
    dead_segments: u32,
    put_limit: Duration,
    slow_disk: Duration,
    slow_network: Duration,
    short_writes: bool,
    /// The disk only says that it syncs.
    pub lies: bool,
    /// Somebody else lies.
    pub bite: Option<Bite>,
}

/// Worlds in which something is wrong that the oracle must find: to it, it is the same as if the relay did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bite {
    /// Mail that a hop had taken is nowhere.
    Loses,
    /// Mail arrives twice.
    Doubles,
    /// A byte is another.
    Garbles,
    /// Somebody gets what is not his.
    Mixes,
    /// A 250 was none.
    Denies,
}

const HOUR: Duration = Duration::from_secs(3600);

impl Plan {
    /// Nothing goes wrong but what is asked for.
    pub fn calm(&mut self) {
        *self = Self {
            cuts: 0,
            kills: 0,
            stops: 0,
            disk_faults: 0,
            disk_hangs: 0,
            partitions: 0,
            shortages: 0,
            operators: 0,
            clock_jumps: 0,
            grim: 0,
            rude: 0,
            null_senders: 0,
            capacity: None,
            put_limit: Duration::from_secs(300),
            ..self.clone()
        };
    }

    /// The power fails often.
    pub fn cut_often(&mut self) {
        self.cuts = 100;
    }

    fn draw() -> Self {
        let some = |most: u8| if chance(50) { fastrand::u8(0..=most) } else { 0 };
        let retry: [&[&str]; 4] = [&["1m", "5m", "10m"], &["10s"], &["1m"], &["5m", "20m", "30m"]];
        Self {
            early: chance(50),
            reloads: some(20),
            cuts: some(30),
            kills: some(30),
            stops: some(10),
            disk_faults: some(30),
            disk_hangs: some(15),
            partitions: some(20),
            shortages: some(10),
            operators: some(100),
            clock_jumps: some(30),
            weather_changes: fastrand::u8(10..60),
            grim: if chance(80) { fastrand::u8(0..100) } else { 0 },
            rude: if chance(60) { fastrand::u8(0..60) } else { 0 },
            null_senders: some(30),
            letters: fastrand::usize(2..20),
            span: Duration::from_secs(fastrand::u64(60..7200)),
            retry: retry[fastrand::usize(..retry.len())],
            lifetime: if chance(70) { 48 * HOUR } else { Duration::from_secs(fastrand::u64(600..7200)) },
            delay_warning: if chance(50) { Duration::from_secs(fastrand::u64(60..3600)) } else { Duration::ZERO },
            window: if chance(50) { "200ms" } else { "20s" },
            max_recipients: if chance(30) { fastrand::usize(1..4) } else { 100 },
            max_recipients_out: if chance(30) { fastrand::usize(1..3) } else { 100 },
            max_connections: if chance(20) { fastrand::usize(1..4) } else { 100 },
            max_connections_out: if chance(50) { fastrand::usize(1..4) } else { 20 },
            max_messages: if chance(30) { fastrand::usize(1..4) } else { 100 },
            min_free: if chance(50) { 0 } else { fastrand::u64(1..20_000) },
            capacity: chance(20).then(|| fastrand::u64(150_000..400_000)),
            segment: fastrand::u32(16..80) << 10,
            large_at: fastrand::u64(500..20_000),
            dead_segments: fastrand::u32(0..3),
            put_limit: if chance(20) { Duration::from_secs(fastrand::u64(1..20)) } else { Duration::from_secs(300) },
            slow_disk: Duration::from_micros([100, 3_000, 300_000][fastrand::usize(..3)]),
            slow_network: Duration::from_millis([1, 30, 2_000][fastrand::usize(..3)]),
            short_writes: chance(20),
            lies: false,
            bite: None,
        }
    }

    fn configuration(&self, early: bool, port: u16, without: Option<&str>) -> String {
        let retry: Vec<String> = self.retry.iter().map(|wait| format!("{wait:?}")).collect();
        let mut text = format!(
            r#"
hostname = "mail.contoso.com"
postmaster = "postmaster@contoso.com"
[spool]
path = "/spool"
acknowledge = "{}"
acknowledge_window = "{}"
retry = [{}]
message_lifetime = "{}s"
delay_warning = "{}s"
min_free_space = "{}B"
[[receive_connector]]
name = "clients"
listen = ["{LISTEN}"]
origin = "internet"
tls = "off"
relay = true
remote_ips = ["192.0.2.0/24"]
max_recipients = {}
max_connections = {}
"#,
            if early { "delivered-or-durable" } else { "durable" },
            self.window,
            retry.join(", "),
            self.lifetime.as_secs(),
            self.delay_warning.as_secs(),
            self.min_free,
            self.max_recipients,
            self.max_connections,
        );
        for (name, spaces, hosts) in [
            ("to-a", "a.example", &HOSTS[..2]),
            ("to-b", "b.example", &HOSTS[2..3]),
            ("to-senders", "sender.example", &HOSTS[3..]),
        ] {
            let hosts: Vec<String> = hosts.iter().map(|ip| format!("\"{}:{port}\"", Ipv4Addr::from(*ip))).collect();
            text.push_str(&format!(
                r#"
[[send_connector]]
name = "{name}"
address_spaces = ["{spaces}"]
smart_hosts = [{}]
tls = "off"
enabled = {}
max_connections = {}
max_recipients = {}
max_messages_per_connection = {}
"#,
                hosts.join(", "),
                without != Some(name),
                self.max_connections_out,
                self.max_recipients_out,
                self.max_messages,
            ));
        }
        text
    }
}

/// The relay from one start to its end.
struct Life {
    relay: Relay,
    spool: Spool,
    disk: Arc<Model>,
    door: Arc<Door>,
    limits: ConnectionLimits,
    /// It stops, and each session hears of it by a channel of its own: one for all would wake them in a random order.
    stopping: Mutex<(bool, Vec<watch::Sender<bool>>)>,
    is_over: Arc<AtomicBool>,
    /// When all that had been said was durable.
    calm: Arc<Mutex<Instant>>,
    /// Since when nothing can be written.
    broken: Mutex<Option<Instant>>,
    /// Those at the other ends.
    cutters: Arc<Mutex<Vec<Cutter>>>,
    /// Those of clients.
    sessions: Mutex<Vec<JoinHandle<()>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// What was found at the start is in the queue.
    resumed: AtomicBool,
}

/// See the module.
pub struct World {
    pub plan: Plan,
    oracle: Arc<Mutex<Oracle>>,
    moods: Mutex<Vec<Mood>>,
    partitions: Vec<Arc<Partition>>,
    /// Between clients and relay.
    partition: Arc<Partition>,
    life: Mutex<Option<Arc<Life>>>,
    /// Where the hosts are told to listen: each life has its own port, so that the dead reach nobody.
    port: AtomicU64,
    early: AtomicBool,
    healed: AtomicBool,
    disk_stands: Mutex<Option<Instant>>,
    clients: AtomicUsize,
    /// Connections open to each host.
    pub busy: Vec<AtomicUsize>,
    changed: Notify,
    died: Notify,
}

impl World {
    pub fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap()
    }

    pub fn mood(&self, place: usize) -> Mood {
        self.moods.lock().unwrap()[place].clone()
    }

    pub fn is_early(&self) -> bool {
        self.early.load(Ordering::Relaxed)
    }

    pub fn rudeness(&self) -> u8 {
        if self.healed.load(Ordering::Relaxed) { 0 } else { self.plan.rude }
    }

    pub fn client_is_done(&self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
        self.changed.notify_one();
    }

    fn life(&self) -> Option<Arc<Life>> {
        self.life.lock().unwrap().clone()
    }

    fn weather(&self) -> Weather {
        let slow = if self.healed.load(Ordering::Relaxed) { Duration::from_millis(1) } else { self.plan.slow_network };
        Weather {
            latency: slow.mul_f64(fastrand::f64()),
            jitter: slow.mul_f64(fastrand::f64()),
            piece: if chance(20) { fastrand::usize(1..100) } else { 4096 },
            window: if chance(20) { fastrand::usize(100..2000) } else { 1 << 16 },
        }
    }

    /// A client's connection.
    pub async fn connect_to_relay(self: &Arc<Self>) -> std::io::Result<Wire> {
        sleep(self.plan.slow_network).await;
        let Some(life) = self.life() else { return Err(std::io::ErrorKind::ConnectionRefused.into()) };
        let (theirs, ours) = wire::pair(self.weather(), &self.partition, life.is_dead());
        life.cutters.lock().unwrap().push(ours.cutter());
        let serving = accept::serve_simulated(
            theirs,
            CLIENT,
            Arc::clone(&life.door),
            life.relay.clone(),
            life.limits.clone(),
            life.hears_of_a_stop(),
        );
        let task = tokio::spawn(async move {
            let _ = serving.await;
        });
        life.sessions.lock().unwrap().push(task);
        Ok(ours)
    }

    /// The relay's connection to a host.
    fn connect_to_hop(self: &Arc<Self>, address: SocketAddr) -> wire::Connecting {
        let world = Arc::clone(self);
        Box::pin(async move {
            let refused = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            let life = world.life().filter(|life| !life.is_dead()()).ok_or_else(refused)?;
            let place = HOSTS.iter().position(|ip| IpAddr::from(*ip) == address.ip()).ok_or_else(refused)?;
            if u64::from(address.port()) != world.port.load(Ordering::Relaxed) {
                return std::future::pending().await;
            }
            let partition = &world.partitions[place];
            if let Some(until) = partition.closed() {
                sleep_until(until).await;
            }
            sleep(world.plan.slow_network).await;
            let mood = world.mood(place);
            if mood.silent {
                sleep(Duration::from_secs(3600)).await;
            }
            if mood.closed || life.is_dead()() {
                return Err(refused());
            }
            let (ours, theirs) = wire::pair(world.weather(), partition, life.is_dead());
            life.cutters.lock().unwrap().push(theirs.cutter());
            tokio::spawn(hop::serve(Arc::clone(&world), place, u64::from(address.port()), theirs));
            Ok(ours)
        })
    }

    fn snapshot(&self, without: Option<&str>, last: Option<&Snapshot>) -> Snapshot {
        let port = self.port.load(Ordering::Relaxed) as u16;
        let text = self.plan.configuration(self.is_early(), port, without);
        let config = config::parse(&text, Path::new("/causeway.toml"));
        let config = Arc::new(config.unwrap_or_else(|problems| panic!("{problems:?}\n{text}")));
        let (directory, _) = Directory::load(&config.directories);
        let resolver = Resolver::new(&["127.0.0.1:1".parse().unwrap()]).unwrap();
        let mut deliverer = Deliverer::new(Arc::clone(&config), resolver, Vec::new());
        if let Some(last) = last {
            deliverer = deliverer.succeeding(&last.deliverer);
        }
        let visits = Arc::new(visit::Key::new(&[7; visit::KEY_LEN]));
        Snapshot {
            config,
            directory: Arc::new(directory),
            users: Arc::default(),
            deliverer: Arc::new(deliverer),
            visits,
        }
    }

    /// The relay starts on this disk. Gives the disk back if it cannot.
    async fn start(self: &Arc<Self>, disk: Arc<Model>) -> Result<(), Arc<Model>> {
        self.port.fetch_add(1, Ordering::Relaxed);
        let plan = &self.plan;
        {
            // A start that finds times from another clock than its own cannot know which of them is right.
            let mut oracle = self.oracle();
            oracle.ages_unknown |= oracle.was_behind || clock::held::ahead().is_positive();
        }
        let options = Options {
            segment_size: Some(plan.segment),
            large_at: plan.large_at,
            dead_segments: plan.dead_segments,
            keeper_thread: false,
            committer_thread: false,
            pause: Duration::from_millis(100),
            read_patience: HOUR,
        };
        let settings = Settings { path: "/spool".into(), min_free_space: plan.min_free };
        let (spool, recovery) = match Spool::open_on(Arc::new(ModelDisk(Arc::clone(&disk))), settings, options) {
            Ok(opened) => opened,
            Err(error) => {
                self.oracle().note(format_args!("no start: {error}"));
                self.oracle().count("the relay could not start");
                return Err(disk);
            }
        };
        let world = Arc::downgrade(self);
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let tracker = Tracker::none().watched(move |event| {
            if let Some(world) = world.upgrade().filter(|_| !over.load(Ordering::Relaxed)) {
                let text = event.to_json();
                if text.contains("\"DROP\"") {
                    world.oracle().count("nobody could be told: dropped");
                }
            }
        });
        let snapshot = self.snapshot(None, None);
        let door = Arc::new(Door::new(LISTEN.parse().unwrap(), &snapshot.config));
        let relay = Relay::with(snapshot, spool.clone(), tracker, plan.put_limit);
        let life = Arc::new(Life {
            relay: relay.clone(),
            spool: spool.clone(),
            disk,
            door,
            limits: ConnectionLimits::default(),
            stopping: Mutex::default(),
            is_over,
            calm: Arc::new(Mutex::new(Instant::now())),
            broken: Mutex::default(),
            cutters: Arc::default(),
            sessions: Mutex::default(),
            tasks: Mutex::default(),
            resumed: AtomicBool::new(false),
        });
        let timekeeper = relay.clone();
        let timekeeper = tokio::spawn(async move { timekeeper.keep_time().await });
        let committer = tokio::spawn(Arc::clone(self).turn_the_disk(Arc::clone(&life)));
        let world = Arc::clone(self);
        let is_dead = life.is_dead();
        let resuming = Arc::clone(&life);
        // New mail comes while the old is read.
        let resume = tokio::spawn(async move {
            sleep(world.plan.slow_disk).await;
            let recovered = relay.resume(recovery);
            if is_dead() {
                return;
            }
            let mut oracle = world.oracle();
            if recovered.messages > 0 {
                oracle.count("messages were found at a start");
            }
            for corrupt in &recovered.corrupt {
                oracle.fault(format!("damage where there was none: {corrupt}"));
            }
            oracle.note(format_args!("{} messages were found, {} torn", recovered.messages, recovered.torn));
            drop(oracle);
            resuming.resumed.store(true, Ordering::Relaxed);
        });
        life.tasks.lock().unwrap().extend([timekeeper, committer, resume]);
        *self.life.lock().unwrap() = Some(life);
        self.oracle().note(format_args!("the relay runs"));
        Ok(())
    }

    /// What the committer's thread is in the daemon.
    async fn turn_the_disk(self: Arc<Self>, life: Arc<Life>) {
        // When it last did not work.
        let mut trouble: Option<Instant> = None;
        loop {
            let stands = *self.disk_stands.lock().unwrap();
            if let Some(until) = stands.filter(|until| *until > Instant::now()) {
                sleep_until(until).await;
                trouble = Some(Instant::now());
            }
            let next = life.spool.step();
            {
                let mut broken = life.broken.lock().unwrap();
                *broken = life.spool.is_broken().then(|| broken.unwrap_or_else(Instant::now));
                trouble = broken.map(|_| Instant::now()).or(trouble);
            }
            if life.disk.is_dead() {
                if !life.is_over.load(Ordering::Relaxed) {
                    self.oracle().count("the power failed in the middle of a commit");
                }
                self.died.notify_one();
                return;
            }
            match next {
                None => {
                    // What was heard while the disk did not work may be told to the spool a moment after it works again: a message
                    // that is still on its way there is settled when it has come.
                    if trouble.is_none_or(|at| at.elapsed() >= RECORDED) {
                        *life.calm.lock().unwrap() = Instant::now();
                    }
                    life.spool.called().await;
                }
                Some(at) => {
                    let _ =
                        timeout(Instant::from_std(at).saturating_duration_since(Instant::now()), life.spool.called())
                            .await;
                }
            }
            // A write and a sync take their time.
            sleep(self.plan.slow_disk.mul_f64(fastrand::f64())).await;
        }
    }

    /// The end of a life that nobody asked for.
    async fn end(self: &Arc<Self>, power: bool) {
        let Some(life) = self.life.lock().unwrap().take() else { return };
        life.is_over.store(true, Ordering::Relaxed);
        let calm = *life.calm.lock().unwrap();
        {
            let mut oracle = self.oracle();
            oracle.cuts.push(Cut { at: Instant::now(), life: self.port.load(Ordering::Relaxed), calm });
            if let Some(since) = *life.broken.lock().unwrap() {
                oracle.excuse(since);
            }
            oracle.count(if power { "the power failed" } else { "the relay was killed" });
            oracle.note(format_args!("{}", if power { "the power fails" } else { "the relay is killed" }));
        }
        let disk = if power { life.disk.crash() } else { life.disk.kill() };
        self.bury(&life);
        sleep(Duration::from_secs(fastrand::u64(0..120))).await;
        self.start_somehow(disk).await;
    }

    fn bury(&self, life: &Life) {
        life.relay.begin_stop();
        for task in life.sessions.lock().unwrap().drain(..).chain(life.tasks.lock().unwrap().drain(..)) {
            task.abort();
        }
        for cutter in life.cutters.lock().unwrap().drain(..) {
            cutter.cut(Duration::from_millis(fastrand::u64(0..60_000)));
        }
    }

    async fn start_somehow(self: &Arc<Self>, mut disk: Arc<Model>) {
        loop {
            match self.start(disk).await {
                Ok(()) => return,
                Err(same) => disk = same,
            }
            sleep(Duration::from_secs(10)).await;
            if self.healed.load(Ordering::Relaxed) || chance(20) {
                disk.heal();
                disk.unlimit();
            }
        }
    }

    /// As the daemon stops, and starts again.
    async fn stop_and_start(self: &Arc<Self>) {
        let Some(life) = self.life.lock().unwrap().take() else { return };
        self.oracle().count("the relay was stopped");
        self.oracle().note(format_args!("the relay stops"));
        life.tell_sessions_to_stop();
        life.relay.begin_stop();
        let deadline = Instant::now() + Duration::from_secs(30);
        let sessions = std::mem::take(&mut *life.sessions.lock().unwrap());
        let all: Vec<_> = sessions.iter().map(JoinHandle::abort_handle).collect();
        let stopping = async {
            for mut session in sessions {
                if timeout_at(deadline, &mut session).await.is_err() {
                    session.abort();
                    let _ = session.await;
                }
            }
            life.relay.stop(deadline).await
        };
        // The power may fail meanwhile, and nobody answers then.
        let mut stopping = std::pin::pin!(stopping);
        let in_time = loop {
            match timeout(Duration::from_secs(1), &mut stopping).await {
                Ok(in_time) => break in_time,
                Err(_) if life.disk.is_dead() => break false,
                Err(_) => {}
            }
        };
        if !in_time || life.broken.lock().unwrap().is_some() {
            // Attempts that are cut off end as by a crash; and what cannot be written is forgotten as by one.
            let cut =
                Cut { at: Instant::now(), life: self.port.load(Ordering::Relaxed), calm: *life.calm.lock().unwrap() };
            self.oracle().cuts.push(cut);
        }
        life.is_over.store(true, Ordering::Relaxed);
        if let Some(since) = *life.broken.lock().unwrap() {
            self.oracle().excuse(since);
        }
        all.iter().for_each(|session| session.abort());
        life.spool.clone().close().await;
        let disk = if life.disk.is_dead() { life.disk.crash() } else { life.disk.kill() };
        self.bury(&life);
        self.start_somehow(disk).await;
    }

    fn reload(&self) {
        let Some(life) = self.life() else { return };
        if chance(50) {
            self.early.store(chance(50), Ordering::Relaxed);
        }
        let without = ["to-a", "to-b", "to-senders"][fastrand::usize(..3)];
        let without = (chance(30) && !self.healed.load(Ordering::Relaxed)).then_some(without);
        let next = self.snapshot(without, Some(&life.relay.snapshot()));
        let deliverer = Arc::clone(&next.deliverer);
        let last = life.relay.replace(next);
        last.deliverer.retire(&deliverer);
        let mut oracle = self.oracle();
        oracle.count("the configuration was replaced");
        oracle.note(format_args!("reload, without {without:?}"));
    }

    /// Somebody looks after the queue.
    fn operate(&self) {
        let Some(life) = self.life() else { return };
        let changes =
            [Change::Hold, Change::Hold, Change::Release, Change::Retry, Change::Retry, Change::Bounce, Change::Remove];
        for _ in 0..fastrand::usize(1..5) {
            self.order(&life, changes[fastrand::usize(..changes.len())]);
        }
    }

    fn order(&self, life: &Life, change: Change) {
        let mut filter = Filter::default();
        let mut oracle = self.oracle();
        match change {
            // Whose mail is taken away must be known here.
            Change::Bounce | Change::Remove => {
                let Some(from) = oracle.take_away(change == Change::Remove) else { return };
                match from {
                    Taken::Message(sender) => filter.sender = Some(sender),
                    Taken::Report(to) => filter.recipient = Some(to),
                }
            }
            _ if chance(50) => {
                let domains = ["a.example", "b.example", "sender.example"];
                filter.domain = Some(domains[fastrand::usize(..domains.len())].to_owned());
            }
            _ => {}
        }
        oracle.note(format_args!("an operator: {change:?} {filter:?}"));
        drop(oracle);
        let task = tokio::spawn(self.ask(life, change, filter));
        life.tasks.lock().unwrap().push(task);
    }

    fn ask(&self, life: &Life, change: Change, filter: Filter) -> impl Future<Output = ()> + use<> {
        let relay = life.relay.clone();
        let (is_dead, oracle) = (life.is_dead(), Arc::clone(&self.oracle));
        async move {
            let by = By { who: "somebody".to_owned(), reason: None };
            let deadline = clock::now() + HOUR;
            let done = relay.change(change, &filter, &by, None, deadline).await;
            if is_dead() {
                return;
            }
            let mut oracle = oracle.lock().unwrap();
            oracle.note(format_args!("{change:?}: {done:?}"));
            if done.is_ok_and(|done| done.changed > 0) {
                oracle.count(match change {
                    Change::Hold => "a copy was held",
                    Change::Release => "a copy was released",
                    Change::Retry => "a copy was tried as asked",
                    Change::Bounce => "a copy was bounced",
                    Change::Remove => "a copy was removed",
                });
            }
        }
    }

    fn break_disk(&self) {
        let Some(life) = self.life() else { return };
        let ops = [Op::Create, Op::Allocate, Op::Write, Op::Sync, Op::Rename, Op::Remove, Op::SyncFolder];
        let fault = Fault {
            op: ops[fastrand::usize(..ops.len())],
            after: fastrand::u64(0..6),
            errno: if chance(50) { Errno::EIO } else { Errno::ENOSPC },
            lasts: chance(30),
        };
        self.oracle().note(format_args!("disk: {fault:?}"));
        life.disk.inject(fault);
    }

    /// The wall clock is wrong by hours or days, for some seconds or minutes.
    fn jump(&self) {
        let by = SignedDuration::from_secs(fastrand::i64(2..72) * 3600);
        let by = if chance(50) { by } else { -by };
        let lasts = Duration::from_secs(if chance(60) { fastrand::u64(1..10) } else { fastrand::u64(10..1800) });
        let mut oracle = self.oracle();
        oracle.count("the wall clock jumped");
        oracle.note(format_args!("the wall clock jumps by {by:?} for {lasts:?}"));
        clock::held::jump(by);
        oracle.was_behind |= clock::held::ahead().is_negative();
        tokio::spawn(async move {
            sleep(lasts).await;
            clock::held::jump(-by);
        });
    }

    /// One thing goes wrong, or right.
    async fn befall(self: &Arc<Self>) {
        let plan = &self.plan;
        let all = [
            plan.cuts,
            plan.kills,
            plan.stops,
            plan.reloads,
            plan.disk_faults,
            plan.disk_hangs,
            plan.partitions,
            plan.weather_changes,
            plan.shortages,
            plan.operators,
            plan.clock_jumps,
            10,
        ];
        let mut at = fastrand::u16(0..all.iter().map(|weight| u16::from(*weight)).sum());
        let mut what = 0;
        while at >= u16::from(all[what]) {
            at -= u16::from(all[what]);
            what += 1;
        }
        match what {
            0 if chance(50) => {
                if let Some(life) = self.life() {
                    life.disk.die_after(fastrand::u64(1..20));
                }
            }
            0 => self.end(true).await,
            1 => self.end(false).await,
            2 => self.stop_and_start().await,
            3 => self.reload(),
            4 => self.break_disk(),
            5 => {
                let until = Instant::now() + Duration::from_secs(fastrand::u64(1..400));
                self.oracle().count("the disk hung");
                self.oracle().note(format_args!("disk: it hangs"));
                *self.disk_stands.lock().unwrap() = Some(until);
            }
            6 => {
                let until = Instant::now() + Duration::from_secs(fastrand::u64(1..900));
                self.oracle().count("the network was cut");
                let which = fastrand::usize(0..=HOSTS.len());
                self.oracle().note(format_args!("partition {which} for {:?}", until - Instant::now()));
                self.partitions.get(which).unwrap_or(&self.partition).close(Some(until));
            }
            7 => {
                let place = fastrand::usize(..HOSTS.len());
                let mood = if chance(40) { Mood::good() } else { Mood::draw(plan.grim) };
                self.oracle().note(format_args!("host {place}: {mood:?}"));
                self.moods.lock().unwrap()[place] = mood;
            }
            8 => {
                let Some(life) = self.life() else { return };
                let level = [Level::Calm, Level::NoMail, Level::NoConnection][fastrand::usize(..3)];
                self.oracle().count("memory ran short");
                self.oracle().note(format_args!("memory: {level:?}"));
                life.relay.press(level);
            }
            9 => self.operate(),
            10 => self.jump(),
            _ => {
                if let Some(life) = self.life() {
                    if !life.disk.is_dead() {
                        life.disk.heal();
                    }
                    if chance(50) {
                        life.disk.unlimit();
                    } else if let Some(capacity) = plan.capacity {
                        life.disk.limit(capacity);
                    }
                }
            }
        }
    }

    async fn chaos(self: &Arc<Self>) {
        let end = Instant::now() + self.plan.span;
        let mean = self.plan.span.as_secs().max(60) / fastrand::u64(3..25);
        loop {
            let next = Instant::now() + Duration::from_secs(fastrand::u64(0..=2 * mean));
            let died = tokio::select! {
                biased;
                () = self.died.notified() => true,
                () = sleep_until(next.min(end)) => false,
            };
            let died = died || self.life().is_some_and(|life| life.disk.is_dead());
            if died {
                self.end(true).await;
            } else if Instant::now() < end {
                self.befall().await;
            } else {
                return;
            }
        }
    }

    /// Nothing goes wrong any more.
    async fn heal(self: &Arc<Self>) {
        self.healed.store(true, Ordering::Relaxed);
        self.oracle().note(format_args!("all heals"));
        self.moods.lock().unwrap().iter_mut().for_each(|mood| *mood = Mood::good());
        for partition in self.partitions.iter().chain([&self.partition]) {
            partition.close(None);
        }
        *self.disk_stands.lock().unwrap() = None;
        if self.life().is_none_or(|life| life.disk.is_dead()) {
            self.end(true).await;
        }
        if let Some(life) = self.life() {
            life.disk.heal();
            life.disk.unlimit();
            life.relay.press(Level::Calm);
        }
        self.reload();
    }

    /// Liveness: all is delivered or reported within this time after the last fault: hosts that were silent are given up,
    /// connections that hang run into their ends, the longest rest is over, and the spool has been drained.
    async fn drain(self: &Arc<Self>) {
        let limit = Duration::from_secs(3 * 3600);
        let deadline = Instant::now() + limit;
        loop {
            let life = self.life().filter(|life| life.resumed.load(Ordering::Relaxed));
            let waiting = life.as_ref().map_or(usize::MAX, |life| life.relay.waiting());
            let clients = self.clients.load(Ordering::Relaxed);
            if let Some(life) = life.filter(|life| life.relay.held() > 0) {
                self.ask(&life, Change::Release, Filter::default()).await;
            }
            if waiting == 0 && clients == 0 {
                return;
            }
            if Instant::now() >= deadline {
                let what = format!("liveness: after {limit:?} {waiting} messages and {clients} clients wait");
                return self.oracle().fault(what);
            }
            let _ = timeout(Duration::from_secs(5), self.changed.notified()).await;
        }
    }
}

impl Life {
    fn hears_of_a_stop(&self) -> watch::Receiver<bool> {
        let (stopping, heard_by) = &mut *self.stopping.lock().unwrap();
        let (sender, receiver) = watch::channel(*stopping);
        heard_by.push(sender);
        receiver
    }

    fn tell_sessions_to_stop(&self) {
        let (stopping, heard_by) = &mut *self.stopping.lock().unwrap();
        *stopping = true;
        for session in heard_by {
            session.send_replace(true);
        }
    }

    fn is_dead(&self) -> wire::IsDead {
        let (is_over, disk) = (Arc::clone(&self.is_over), Arc::clone(&self.disk));
        Arc::new(move || is_over.load(Ordering::Relaxed) || disk.is_dead())
    }
}

/// Lives through one seed, and gives the oracle.
pub async fn live(seed: u64, log: bool, change: fn(&mut Plan)) -> Arc<World> {
    fastrand::seed(seed);
    let began: Timestamp = "2026-03-28T23:30:00Z".parse().unwrap();
    clock::held::hold(Some(began));
    let mut plan = Plan::draw();
    change(&mut plan);
    let world = Arc::new(World {
        oracle: Arc::new(Mutex::new(Oracle::new(log))),
        moods: Mutex::new(HOSTS.iter().map(|_| Mood::draw(plan.grim)).collect()),
        partitions: HOSTS.iter().map(|_| Arc::default()).collect(),
        partition: Arc::default(),
        life: Mutex::default(),
        port: AtomicU64::new(2500),
        early: AtomicBool::new(plan.early),
        healed: AtomicBool::new(false),
        disk_stands: Mutex::default(),
        clients: AtomicUsize::new(0),
        busy: HOSTS.iter().map(|_| AtomicUsize::default()).collect(),
        changed: Notify::new(),
        died: Notify::new(),
        plan,
    });
    world.oracle().note(format_args!("{:?}", world.plan));
    let dialling = Arc::downgrade(&world);
    wire::redirect(Some(Arc::new(move |address| match dialling.upgrade() {
        Some(world) => world.connect_to_hop(address),
        None => Box::pin(std::future::pending()),
    })));
    let disk = Model::new(seed);
    if world.plan.short_writes {
        disk.write_short();
    }
    if world.plan.lies {
        disk.lie();
    }
    if let Some(capacity) = world.plan.capacity {
        disk.limit(capacity);
    }
    world.start_somehow(disk).await;
    let mut senders = Vec::new();
    for _ in 0..world.plan.letters {
        let domains = ["a.example", "a.example", "b.example"];
        let letter = Letter {
            to: (0..fastrand::usize(1..5)).map(|_| domains[fastrand::usize(..domains.len())]).collect(),
            size: if chance(10) { fastrand::usize(10_000..60_000) } else { fastrand::usize(0..3000) },
            null: chance(world.plan.null_senders),
            after: world.plan.span.mul_f64(fastrand::f64()),
        };
        world.clients.fetch_add(1, Ordering::Relaxed);
        senders.push(tokio::spawn(client::send(Arc::clone(&world), letter)));
    }
    world.chaos().await;
    world.heal().await;
    world.drain().await;
    // What is done with stays so, also for a relay that starts again; and nothing more goes out.
    sleep(Duration::from_secs(60)).await;
    let deliveries = world.oracle().deliveries.len();
    world.end(true).await;
    sleep(Duration::from_secs(600)).await;
    if world.oracle().deliveries.len() > deliveries {
        world.oracle().fault("something that was done with went out after a start".into());
    }
    for sender in senders {
        sender.abort();
    }
    let life = world.life.lock().unwrap().take();
    if let Some(life) = life {
        life.is_over.store(true, Ordering::Relaxed);
        world.bury(&life);
    }
    let (lifetime, reports) = (world.plan.lifetime, world.plan.lifetime.min(24 * HOUR));
    world.oracle().judge(lifetime, reports);
    wire::redirect(None);
    world
}
