//! Load, and a history of what everybody knows of it: the ground of the crash and the power runs.
//!
//! Clients note for each message what they heard: *taken* (250), *refused* (4yz, 5yz, or the data was never complete)
//! or *unknown* (the connection ended behind the final dot). The sinks note each arrival before they answer. When all
//! is drained, there must be
//!
//! - nothing lost: a message that was taken has arrived for every recipient, or was reported to its sender;
//! - no ghost: a message that was refused has arrived nowhere;
//! - no mixture: every arrival has the bytes and the recipients its client gave it;
//! - no half: a message of which one recipient heard has reached all of them;
//! - no second copy, but where the end of the first was ambiguous: a sink took it and said nothing, or the crash came
//!   right behind it.
//!
//! `CAUSEWAY_CRASH_SEED` repeats the decisions of a run.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::{Arrival, At, Client, Daemon, PATIENCE, Reaction, Scratch, Sink, SinkPlan, relay, stuffed, wait_until};

const CLIENTS: usize = 6;

/// The sink's 250 has been read and handed to the spool by then, even on a busy machine.
const HANDED_OVER: Duration = Duration::from_millis(300);

/// All that waits has arrived by then, once nothing fails any more.
const DRAINED: Duration = Duration::from_secs(180);

pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What a client heard of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    Taken,
    Refused,
    Unknown,
    /// Whatever it was, it was heard after the power had failed, where nobody speaks.
    InTheDark,
}

#[derive(Debug, Clone)]
pub struct Sent {
    pub size: usize,
    pub to: Vec<String>,
    pub heard: Option<Heard>,
    /// When.
    pub at: Option<Instant>,
}

#[derive(Debug, Clone)]
pub struct Seen {
    pub at: Instant,
    /// The sink took it and did not say so.
    pub silent: bool,
}

/// What everybody knows.
#[derive(Default)]
pub struct History {
    pub sent: Mutex<HashMap<u64, Sent>>,
    /// By message and recipient.
    pub seen: Mutex<HashMap<(u64, String), Vec<Seen>>>,
    /// Failure reports, by the message they are about.
    pub reports: Mutex<HashMap<u64, Vec<Seen>>>,
    /// What must not be, in words.
    pub wrong: Mutex<Vec<String>>,
    pub taken: AtomicU64,
    /// When the final dot of a taken message was sent, and when its 250 was heard.
    pub commits: Mutex<Vec<(Instant, Instant)>>,
    pub next: AtomicU64,
    /// The power has failed, and the process still talks, for a moment that no real one has. It means nothing: a sync
    /// that is under way while ext4 is shut down returns 0, and what it was to write is not there afterwards.
    pub power_is_out: AtomicBool,
}

pub struct Run {
    pub seed: u64,
    /// [`DURABLE`] or [`EARLY`].
    pub acknowledge: &'static str,
    /// Where it has its spool.
    pub spool: PathBuf,
    pub random: fastrand::Rng,
    pub history: Arc<History>,
    /// The second sink is in a bad mood.
    pub moody: Arc<AtomicBool>,
    pub steady_sink: Sink,
    pub moody_sink: Sink,
    pub crashes: Vec<Instant>,
    /// When it was started again, each time with nothing of the dead left on the way.
    pub starts: Mutex<Vec<Instant>>,
    pub scratch: Scratch,
}

/// Lines of `[spool]`.
pub const DURABLE: &str = "";
pub const EARLY: &str = "acknowledge = \"delivered-or-durable\"";

impl Run {
    pub fn new(acknowledge: &'static str) -> Self {
        let scratch = Scratch::new();
        let spool = scratch.file("spool");
        Self::with(acknowledge, scratch, spool)
    }

    /// With its spool at a place of its own.
    pub fn with(acknowledge: &'static str, scratch: Scratch, spool: PathBuf) -> Self {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let seed = number("CAUSEWAY_CRASH_SEED").unwrap_or(u64::from(clock.subsec_nanos()) ^ clock.as_secs());
        eprintln!("CAUSEWAY_CRASH_SEED={seed}");
        let history = Arc::new(History::default());
        let moody = Arc::new(AtomicBool::new(true));
        let watch = |moody: Arc<AtomicBool>, seed| {
            let history = Arc::clone(&history);
            let random = Mutex::new(fastrand::Rng::with_seed(seed));
            let plan = SinkPlan { keep_content: false, ..SinkPlan::new() };
            Sink::with(plan.reacting(move |at| {
                let chance = if moody.load(Ordering::Relaxed) { random.lock().unwrap().u32(0..100) } else { 100 };
                react(&history, at, chance)
            }))
        };
        let steady_sink = watch(Arc::default(), 0);
        let moody_sink = watch(Arc::clone(&moody), seed);
        Self {
            seed,
            acknowledge,
            spool,
            random: fastrand::Rng::with_seed(seed),
            history,
            moody,
            steady_sink,
            moody_sink,
            crashes: Vec::new(),
            starts: Mutex::default(),
            scratch,
        }
    }

    fn config(&self) -> String {
        relay(&format!(
            r#"postmaster = "postmaster@steady.example"
shutdown_grace = "20s"

[spool]
path = "{}"
{}
min_free_space = "1MiB"
retry = ["1s"]

[tracking]
path = "tracking"

[[accepted_domain]]
name = "steady.example"
type = "external-relay"

[[receive_connector]]
name = "in"
listen = ["127.0.0.1:0"]
origin = "on-premises"
tls = "off"

[[send_connector]]
name = "steady"
address_spaces = ["steady.example"]
smart_hosts = ["{}"]
tls = "off"

[[send_connector]]
name = "moody"
address_spaces = ["moody.example"]
smart_hosts = ["{}"]
tls = "off"
"#,
            self.spool.display(),
            self.acknowledge,
            self.steady_sink.address,
            self.moody_sink.address
        ))
    }

    pub fn launch(&self, environment: &[(&str, &str)]) -> Daemon {
        self.wait_for_the_dead();
        Daemon::launch(self.scratch.path(), &self.config(), environment)
    }

    pub fn start(&self, environment: &[(&str, &str)]) -> Daemon {
        self.wait_for_the_dead();
        Daemon::spawn_with(self.scratch.path(), &self.config(), environment)
    }

    /// What is still in a socket arrives before anything is sent anew, however busy the machine is.
    fn wait_for_the_dead(&self) {
        self.steady_sink.come_to_rest();
        self.moody_sink.come_to_rest();
        self.starts.lock().unwrap().push(Instant::now());
    }

    pub fn wait_for_load(&self, enough: u64, daemon: &mut Daemon) {
        let goal = self.history.taken.load(Ordering::Relaxed) + enough;
        wait_until(&format!("{enough} messages are taken; seed {}", self.seed), PATIENCE, || {
            assert!(daemon.is_running(), "it ended by itself; seed {}", self.seed);
            self.history.taken.load(Ordering::Relaxed) >= goal
        });
    }

    pub fn tally(&self) -> String {
        let sent = self.history.sent.lock().unwrap();
        let count = |heard| sent.values().filter(|one| one.heard == heard).count();
        let seen = self.history.seen.lock().unwrap();
        format!(
            "{} taken, {} refused, {} unknown; {} arrivals",
            count(Some(Heard::Taken)),
            count(Some(Heard::Refused)),
            count(Some(Heard::Unknown)) + count(Some(Heard::InTheDark)),
            seen.values().map(Vec::len).sum::<usize>()
        )
    }

    /// What a sink had in hand when the daemon died arrives behind the crash.
    fn came_from_the_dead(&self, seen: &Seen) -> bool {
        let starts = self.starts.lock().unwrap();
        let between = |crash: &Instant| !starts.iter().any(|start| crash < start && *start <= seen.at);
        self.crashes.iter().filter(|crash| **crash <= seen.at).any(between)
    }

    /// Was this arrival followed by something that left the relay in doubt? A crash does so until the spool, which
    /// writes in order, has acknowledged a message that came after the arrival was handed to it.
    fn is_ambiguous(&self, seen: &Seen) -> bool {
        if seen.silent || self.came_from_the_dead(seen) {
            return true;
        }
        // The crash is noted when it is over.
        let Some(crash) = self.crashes.iter().filter(|crash| **crash >= seen.at).min() else { return false };
        let commits = self.history.commits.lock().unwrap();
        !commits.iter().any(|(dot, heard)| *dot >= seen.at + HANDED_OVER && heard <= crash)
    }

    /// What was taken and has neither arrived nor been reported.
    pub fn missing(&self) -> Vec<String> {
        let sent = self.history.sent.lock().unwrap();
        let seen = self.history.seen.lock().unwrap();
        let reports = self.history.reports.lock().unwrap();
        let mut missing = Vec::new();
        for (id, message) in sent.iter() {
            let some_arrived = message.to.iter().any(|to| seen.contains_key(&(*id, to.clone())));
            // Before a 250 that waits for no disk some hops may have the message and others not: its client has it still.
            let half = self.acknowledge == DURABLE && message.heard == Some(Heard::Unknown) && some_arrived;
            if message.heard == Some(Heard::Taken) || half {
                for to in &message.to {
                    let there =
                        if is_refused(to) { reports.contains_key(id) } else { seen.contains_key(&(*id, to.clone())) };
                    if !there {
                        let heard = message.at.map_or_else(String::new, |at| self.between_crashes(at));
                        let (size, what) = (message.size, message.heard);
                        missing.push(format!("{id} ({size} bytes, {what:?} {heard}) for {to}"));
                    }
                }
            }
        }
        missing
    }

    pub fn drain_and_judge(self) {
        self.moody.store(false, Ordering::Relaxed);
        let end = Instant::now() + DRAINED;
        loop {
            let mut daemon = self.start(&[]);
            while !self.missing().is_empty() && Instant::now() < end && daemon.is_running() {
                std::thread::sleep(Duration::from_millis(20));
            }
            let status = daemon.terminate();
            assert_eq!(status.code(), Some(0), "{}", daemon.log_text());
            if daemon.has_logged("\"waiting\":0") || Instant::now() > end {
                break;
            }
        }
        eprintln!("drained: {}", self.tally());
        self.judge();
    }

    pub fn judge(&self) {
        let faults = self.faults();
        let taken = self.history.taken.load(Ordering::Relaxed);
        assert!(taken >= 20, "only {taken} messages were taken: this run proves nothing");
        assert!(faults.is_empty(), "CAUSEWAY_CRASH_SEED={}\n{}", self.seed, faults.join("\n"));
        eprintln!("{}", self.second_copies());
    }

    /// Everything that must not be, in words.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.history.wrong.lock().unwrap().clone();
        faults.extend(self.missing().into_iter().map(|what| format!("lost: {what}")));
        let too_many = |seen: &[Seen]| seen.len() > 1 + seen.iter().filter(|one| self.is_ambiguous(one)).count();
        let sent = self.history.sent.lock().unwrap();
        for ((id, to), seen) in self.history.seen.lock().unwrap().iter() {
            match sent.get(id) {
                None => faults.push(format!("{id} for {to} was never sent")),
                Some(message) if message.heard == Some(Heard::Refused) => {
                    faults.push(format!("ghost: {id} for {to} was refused and arrived"));
                }
                Some(_) => {}
            }
            if too_many(seen) {
                faults.push(format!("doubled: {id} for {to} arrived {} times: {}", seen.len(), self.when(seen)));
            }
        }
        for (id, seen) in self.history.reports.lock().unwrap().iter() {
            match sent.get(id) {
                Some(message)
                    if message.to.iter().any(|to| is_refused(to)) && message.heard != Some(Heard::Refused) => {}
                _ => faults.push(format!("ghost: a report about {id}, which had nothing to report")),
            }
            if too_many(seen) {
                faults.push(format!("doubled: {} reports about {id}: {}", seen.len(), self.when(seen)));
            }
        }
        faults
    }

    /// When something arrived, seen from the crashes.
    fn when(&self, seen: &[Seen]) -> String {
        let mut when = String::new();
        for one in seen {
            let doubt = if one.silent {
                ", silently"
            } else if self.is_ambiguous(one) {
                ", in doubt"
            } else {
                ""
            };
            let _ = write!(when, "[{}{doubt}] ", self.between_crashes(one.at));
        }
        when
    }

    fn between_crashes(&self, at: Instant) -> String {
        let next = self.crashes.partition_point(|crash| *crash < at);
        let before = self.crashes.get(next).map(|crash| *crash - at);
        let after = next.checked_sub(1).map(|last| at - self.crashes[last]);
        format!("{after:.0?} behind crash {next}, {before:.0?} before the next")
    }

    /// How many there were, and how long before a crash the first ones of them had arrived.
    pub fn second_copies(&self) -> String {
        let seen = self.history.seen.lock().unwrap();
        let mut ages: Vec<Duration> = Vec::new();
        for seen in seen.values().filter(|seen| seen.len() > 1) {
            for one in seen.iter().filter(|one| !one.silent && !self.came_from_the_dead(one)) {
                let next = self.crashes.iter().filter(|crash| **crash >= one.at).min();
                if let Some(crash) = next.filter(|crash| seen.iter().any(|other| other.at > **crash)) {
                    ages.push(*crash - one.at);
                }
            }
        }
        format!(
            "{} second copies, each behind an ambiguous end; a crash came at most {:.0?} behind the first copy",
            seen.values().map(|seen| seen.len() - 1).sum::<usize>(),
            ages.iter().max().unwrap_or(&Duration::ZERO)
        )
    }
}

fn is_refused(to: &str) -> bool {
    to.starts_with("refused-")
}

/// What a sink does, by the number drawn for it: 100 is the good one.
fn react(history: &History, at: &At<'_>, chance: u32) -> Reaction {
    match at {
        At::Rcpt(line) if line.contains("<refused-") => Reaction::Say("550 5.1.1 nobody of that name".into()),
        At::Rcpt(line) if line.contains("<stuck-") && chance < 100 => Reaction::Say("451 4.2.1 over quota".into()),
        At::Rcpt(_) if chance < 6 => Reaction::Say("451 4.2.1 come again".into()),
        At::Data if chance < 2 => Reaction::HangUp,
        At::End(arrival) => {
            let reaction = match chance {
                0..4 => Reaction::HangUp,
                4..10 => Reaction::Say("451 4.3.0 not this time".into()),
                10..13 => Reaction::TakeAndHangUp,
                _ => Reaction::Go,
            };
            if matches!(reaction, Reaction::Go | Reaction::TakeAndHangUp) {
                note(history, arrival, matches!(reaction, Reaction::TakeAndHangUp));
            }
            reaction
        }
        _ => Reaction::Go,
    }
}

/// An arrival: is it what was sent, and to whom?
fn note(history: &History, arrival: &Arrival, silent: bool) {
    let seen = Seen { at: Instant::now(), silent };
    let wrong = |text: String| history.wrong.lock().unwrap().push(text);
    if arrival.from.is_empty() {
        let [to] = arrival.to.as_slice() else { return wrong(format!("a report to {:?}", arrival.to)) };
        let Some(id) = to.strip_prefix("sender-").and_then(|rest| rest.split('@').next()?.parse().ok()) else {
            return wrong(format!("a report to {to}"));
        };
        if !arrival.text().contains(&format!("refused-{id}@moody.example")) {
            wrong(format!("mixed: the report to {to} is about another message"));
        }
        history.reports.lock().unwrap().entry(id).or_default().push(seen);
        return;
    }
    let Some(id) = arrival.from.strip_prefix("sender-").and_then(|rest| rest.split('@').next()?.parse::<u64>().ok())
    else {
        return wrong(format!("mixed: MAIL FROM:<{}>", arrival.from));
    };
    let Some(sent) = history.sent.lock().unwrap().get(&id).cloned() else {
        return wrong(format!("{id} was never sent"));
    };
    let expected = content(id, sent.size);
    let trace = arrival.content.len().saturating_sub(expected.len());
    let received = &arrival.content[..trace];
    if arrival.content[trace..] != expected[..] || !received.starts_with(b"Received: from client.example") {
        wrong(format!("mixed: {id} arrived with {} bytes that are not its own", arrival.content.len()));
    }
    for to in &arrival.to {
        if sent.to.contains(to) {
            history.seen.lock().unwrap().entry((id, to.clone())).or_default().push(seen.clone());
        } else {
            wrong(format!("mixed: {id} arrived for {to}"));
        }
    }
}

/// Message `id` of at least `size` bytes; its own bytes from beginning to end.
fn content(id: u64, size: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(id);
    let mut content = format!("X-Id: {id}\r\nSubject: message {id}\r\n\r\n");
    content.reserve(size + 100);
    while content.len() < size {
        // Now and then a dot in front, which is stuffed on the way.
        let dot = if random.u8(0..4) == 0 { "." } else { "" };
        let _ = write!(
            content,
            "{dot}{:016x}{:016x}{:016x}{:016x}\r\n",
            random.u64(..),
            random.u64(..),
            id,
            random.u64(..)
        );
    }
    content.into_bytes()
}

/// Clients that send as fast as they are answered.
pub struct Load {
    clients: Vec<std::thread::JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Load {
    pub fn on(run: &Run, address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..CLIENTS)
            .map(|_| {
                let (history, stop) = (Arc::clone(&run.history), Arc::clone(&stop));
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let Ok((mut client, greeting)) = Client::greeted(address) else { return };
                        if !greeting.starts_with("220") || client.try_say("EHLO client.example").is_err() {
                            return;
                        }
                        while !stop.load(Ordering::Relaxed) && send_one(&history, &mut client).is_ok() {}
                    }
                })
            })
            .collect();
        Self { clients, stop }
    }

    pub fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().unwrap();
        }
    }
}

/// Sends the next message and notes what was heard. An error ends the session.
fn send_one(history: &History, client: &mut Client) -> std::io::Result<()> {
    let id = history.next.fetch_add(1, Ordering::Relaxed);
    let mut random = fastrand::Rng::with_seed(!id);
    let size = match random.u32(0..100) {
        0..70 => random.usize(512..8 << 10),
        70..90 => random.usize(8 << 10..100 << 10),
        90..96 => random.usize(100 << 10..1 << 20),
        // From 1 MiB on content is a file of its own.
        _ => random.usize(1 << 20..3 << 20),
    };
    let steady = format!("rcpt-{id}@steady.example");
    let moody = format!("rcpt-{id}@moody.example");
    let to = match random.u32(0..100) {
        0..50 => vec![steady],
        50..65 => vec![moody],
        65..85 => vec![steady, moody],
        85..91 => vec![steady, format!("second-{id}@steady.example")],
        // This one waits to the end, and the old part of the log with it.
        91..93 => vec![format!("stuck-{id}@moody.example"), steady],
        _ => vec![format!("refused-{id}@moody.example"), moody, steady],
    };
    history.sent.lock().unwrap().insert(id, Sent { size, to: to.clone(), heard: None, at: None });
    let mut complete = None;
    let result = transaction(client, id, &to, &content(id, size), &mut complete);
    let heard = match &result {
        _ if complete.is_some() && history.power_is_out.load(Ordering::Relaxed) => Heard::InTheDark,
        Ok(reply) if reply.starts_with('2') => Heard::Taken,
        Ok(_) => Heard::Refused,
        Err(_) if complete.is_some() => Heard::Unknown,
        Err(_) => Heard::Refused,
    };
    if let Some(sent) = history.sent.lock().unwrap().get_mut(&id) {
        (sent.heard, sent.at) = (Some(heard), Some(Instant::now()));
    }
    if heard == Heard::Taken {
        history.taken.fetch_add(1, Ordering::Relaxed);
        history.commits.lock().unwrap().extend(complete.map(|dot| (dot, Instant::now())));
    }
    match result {
        Ok(reply) if !reply.starts_with('2') => client.try_say("RSET").map(drop),
        other => other.map(drop),
    }
}

/// `complete` is when the final dot was sent.
fn transaction(
    client: &mut Client,
    id: u64,
    to: &[String],
    content: &[u8],
    complete: &mut Option<Instant>,
) -> std::io::Result<String> {
    let mut reply = client.try_say(&format!("MAIL FROM:<sender-{id}@steady.example>"))?;
    for to in to {
        if reply.starts_with('2') {
            reply = client.try_say(&format!("RCPT TO:<{to}>"))?;
        }
    }
    if reply.starts_with('2') {
        reply = client.try_say("DATA")?;
    }
    if !reply.starts_with('3') {
        return Ok(reply);
    }
    let octets = stuffed(content);
    // All but the dot first: once the dot is handed over, the message may be taken.
    let (most, dot) = octets.split_at(octets.len() - 3);
    client.send(most)?;
    let now = Instant::now();
    client.send(dot)?;
    *complete = Some(now);
    client.reply()
}
