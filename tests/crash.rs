//! The crash run: the daemon is killed in the middle of everything, again and again, and then everybody is asked what
//! they know (quality section 3).
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
//! `CAUSEWAY_CRASH_ROUNDS` asks for more rounds, `CAUSEWAY_CRASH_SEED` repeats the decisions of a run.

#![allow(clippy::unwrap_used)] // what goes wrong here fails the test

mod common;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use common::{Arrival, At, Client, Daemon, PATIENCE, Reaction, Scratch, Sink, SinkPlan, stuffed};

const CLIENTS: usize = 6;

/// The sink's 250 has been read and handed to the spool by then, even on a busy machine.
const HANDED_OVER: Duration = Duration::from_millis(300);

/// All that waits has arrived by then, once nothing fails any more.
const DRAINED: Duration = Duration::from_secs(180);

#[test]
fn nothing_acknowledged_is_lost_whenever_it_is_killed() {
    kill_again_and_again(Run::new(DURABLE), number("CAUSEWAY_CRASH_ROUNDS").unwrap_or(8));
}

/// The same where a 250 may come before anything is on disk.
#[test]
fn nothing_delivered_or_durable_is_lost_whenever_it_is_killed() {
    kill_again_and_again(Run::new(EARLY), number("CAUSEWAY_CRASH_ROUNDS").unwrap_or(4));
}

fn kill_again_and_again(mut run: Run, rounds: u64) {
    for round in 0..rounds {
        let started = Instant::now();
        let mut daemon = run.start(&[]);
        let load = Load::on(&run, daemon.address());
        // Now and then a longer one: then most arrivals are on record when the crash comes.
        let enough = if round % 3 == 1 { 400 } else { run.random.u64(10..150) };
        run.wait_for_load(enough, &mut daemon);
        // Somewhere in the middle of whatever comes next.
        let delay = Duration::from_micros(run.random.u64(0..20_000));
        let moment = Instant::now() + delay;
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        daemon.kill9();
        run.crashes.push(Instant::now());
        load.end();
        eprintln!("round {round} ({:.1?}): {}", started.elapsed(), run.tally());
    }
    eprintln!("{rounds} rounds");
    run.drain_and_judge();
}

/// F-003 and following: each place where power could fail has a name, and the daemon dies there. The number is which
/// time it comes by.
#[test]
fn nothing_acknowledged_is_lost_at_any_named_point() {
    // A crash here is an abort, and a core file helps nobody.
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, hard).unwrap();
    let mut run = Run::new(DURABLE);
    for point in [
        "segment.allocated:1",
        "segment.synced:1",
        "segment.ready:1",
        "commit.before_write:1",
        "commit.before_write:17",
        "commit.after_write:3",
        "commit.after_write:40",
        "commit.after_sync:1",
        "commit.after_sync:25",
        "large.synced:1",
        "large.synced:3",
        "large.named:2",
        // During recovery, three times over.
        "recover.segment:1",
        "recover.segment:1",
        "recover.segment:1",
        "segment.retired:1",
        "compact.read:1",
        "commit.after_write:60",
        "accept.routed:30",
        "accept.durable:1",
        "accept.durable:40",
        "deliver.answered:1",
        "deliver.answered:50",
        "settle.noted:20",
    ] {
        run.die_at(point);
    }
    run.drain_and_judge();
    let mut run = Run::new(EARLY);
    for point in
        ["early.delivered:1", "early.delivered:30", "early.keeping:1", "early.keeping:20", "deliver.answered:9"]
    {
        run.die_at(point);
    }
    run.drain_and_judge();
}

impl Run {
    /// Until the daemon has died there.
    fn die_at(&mut self, point: &str) {
        let run = self;
        let mut daemon = run.launch(&[("CAUSEWAY_CRASH_AT", point)]);
        let mut load = None;
        // Some points need the log to be gone through once.
        let end = Instant::now() + Duration::from_secs(240);
        while daemon.is_running() {
            if load.is_none() && daemon.has_logged("causeway is up") {
                load = Some(Load::on(&run, daemon.address()));
            }
            assert!(Instant::now() < end, "{point} was never reached; seed {}\n{}", run.seed, daemon.log_text());
            std::thread::sleep(Duration::from_millis(1));
        }
        run.crashes.push(Instant::now());
        let status = daemon.wait(PATIENCE);
        assert_eq!(status.code(), None, "{point}: it did not end by itself:\n{}", daemon.log_text());
        if let Some(load) = load {
            load.end();
        }
        eprintln!("{point}: {}", run.tally());
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What a client heard of its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Taken,
    Refused,
    Unknown,
}

#[derive(Debug, Clone)]
struct Sent {
    size: usize,
    to: Vec<String>,
    heard: Option<Heard>,
}

#[derive(Debug, Clone)]
struct Seen {
    at: Instant,
    /// The sink took it and did not say so.
    silent: bool,
}

/// What everybody knows.
#[derive(Default)]
struct History {
    sent: Mutex<HashMap<u64, Sent>>,
    /// By message and recipient.
    seen: Mutex<HashMap<(u64, String), Vec<Seen>>>,
    /// Failure reports, by the message they are about.
    reports: Mutex<HashMap<u64, Vec<Seen>>>,
    /// What must not be, in words.
    wrong: Mutex<Vec<String>>,
    taken: AtomicU64,
    /// When the final dot of a taken message was sent, and when its 250 was heard.
    commits: Mutex<Vec<(Instant, Instant)>>,
    next: AtomicU64,
}

struct Run {
    seed: u64,
    /// [`DURABLE`] or [`EARLY`].
    acknowledge: &'static str,
    random: fastrand::Rng,
    history: Arc<History>,
    /// The second sink is in a bad mood.
    moody: Arc<AtomicBool>,
    steady_sink: Sink,
    moody_sink: Sink,
    crashes: Vec<Instant>,
    scratch: Scratch,
}

/// Lines of `[spool]`.
const DURABLE: &str = "";
const EARLY: &str = "acknowledge = \"delivered-or-durable\"";

impl Run {
    fn new(acknowledge: &'static str) -> Self {
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
            random: fastrand::Rng::with_seed(seed),
            history,
            moody,
            steady_sink,
            moody_sink,
            crashes: Vec::new(),
            scratch: Scratch::new(),
        }
    }

    fn config(&self) -> String {
        format!(
            r#"hostname = "mail.contoso.com"
postmaster = "postmaster@steady.example"
shutdown_grace = "20s"

[log]
format = "json"

[spool]
path = "spool"
{}
min_free_space = "1MiB"
retry = ["1s"]

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
            self.acknowledge, self.steady_sink.address, self.moody_sink.address
        )
    }

    fn launch(&self, environment: &[(&str, &str)]) -> Daemon {
        Daemon::launch(self.scratch.path(), &self.config(), environment)
    }

    fn start(&self, environment: &[(&str, &str)]) -> Daemon {
        Daemon::spawn_with(self.scratch.path(), &self.config(), environment)
    }

    fn wait_for_load(&self, enough: u64, daemon: &mut Daemon) {
        let goal = self.history.taken.load(Ordering::Relaxed) + enough;
        common::wait_until(&format!("{enough} messages are taken; seed {}", self.seed), PATIENCE, || {
            assert!(daemon.is_running(), "it ended by itself; seed {}", self.seed);
            self.history.taken.load(Ordering::Relaxed) >= goal
        });
    }

    fn tally(&self) -> String {
        let sent = self.history.sent.lock().unwrap();
        let count = |heard| sent.values().filter(|one| one.heard == heard).count();
        let seen = self.history.seen.lock().unwrap();
        format!(
            "{} taken, {} refused, {} unknown; {} arrivals",
            count(Some(Heard::Taken)),
            count(Some(Heard::Refused)),
            count(Some(Heard::Unknown)),
            seen.values().map(Vec::len).sum::<usize>()
        )
    }

    /// What a sink had in hand when the daemon died arrives behind the crash.
    fn came_from_the_dead(&self, seen: &Seen) -> bool {
        self.crashes.iter().any(|crash| *crash <= seen.at && seen.at < *crash + HANDED_OVER)
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
    fn missing(&self) -> Vec<String> {
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
                        missing.push(format!("{id} ({} bytes, {:?}) for {to}", message.size, message.heard));
                    }
                }
            }
        }
        missing
    }

    fn drain_and_judge(self) {
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

    fn judge(&self) {
        let faults = self.faults();
        let taken = self.history.taken.load(Ordering::Relaxed);
        assert!(taken >= 20, "only {taken} messages were taken: this run proves nothing");
        assert!(faults.is_empty(), "CAUSEWAY_CRASH_SEED={}\n{}", self.seed, faults.join("\n"));
        eprintln!("{}", self.second_copies());
    }

    /// Everything that must not be, in words.
    fn faults(&self) -> Vec<String> {
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
            let next = self.crashes.partition_point(|crash| *crash < one.at);
            let before = self.crashes.get(next).map(|crash| *crash - one.at);
            let after = next.checked_sub(1).map(|last| one.at - self.crashes[last]);
            let doubt = if one.silent {
                ", silently"
            } else if self.is_ambiguous(one) {
                ", in doubt"
            } else {
                ""
            };
            let _ = write!(when, "[{after:.0?} behind crash {next}, {before:.0?} before the next{doubt}] ");
        }
        when
    }

    /// How many there were, and how long before a crash the first ones of them had arrived.
    fn second_copies(&self) -> String {
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

/// A checker that lets everything pass would be worth nothing.
#[test]
fn the_checker_finds_what_must_not_be() {
    let mut run = Run::new(DURABLE);
    let now = Instant::now();
    run.crashes.push(now);
    let second = Duration::from_secs(1);
    run.history.commits.lock().unwrap().push((now - 10 * second, now - 9 * second));
    let long_ago = now.checked_sub(Duration::from_secs(60)).unwrap();
    let seen = |at, silent| Seen { at, silent };
    let steady = |id: u64| format!("rcpt-{id}@steady.example");
    let refused = |id: u64| format!("refused-{id}@moody.example");
    for (id, heard, to, arrivals, reports, fault) in [
        (1, Heard::Taken, vec![steady(1)], vec![seen(long_ago, false)], vec![], None),
        (2, Heard::Taken, vec![steady(2)], vec![], vec![], Some("lost: 2 ")),
        (3, Heard::Refused, vec![steady(3)], vec![seen(long_ago, false)], vec![], Some("ghost: 3 ")),
        (4, Heard::Taken, vec![steady(4)], vec![seen(long_ago, false); 2], vec![], Some("doubled: 4 ")),
        (5, Heard::Taken, vec![steady(5)], vec![seen(now, false); 2], vec![], None),
        (6, Heard::Taken, vec![steady(6)], vec![seen(long_ago, true); 2], vec![], None),
        (7, Heard::Unknown, vec![steady(7)], vec![], vec![], None),
        (8, Heard::Unknown, vec![steady(8), refused(8)], vec![seen(long_ago, false)], vec![], Some("lost: 8 ")),
        (9, Heard::Taken, vec![refused(9)], vec![], vec![seen(long_ago, false)], None),
        (10, Heard::Taken, vec![refused(10)], vec![], vec![], Some("lost: 10 ")),
        (11, Heard::Taken, vec![refused(11)], vec![], vec![seen(long_ago, false); 2], Some("doubled: 2 reports")),
        (
            12,
            Heard::Taken,
            vec![steady(12)],
            vec![seen(now, false)],
            vec![seen(now, false)],
            Some("ghost: a report about 12"),
        ),
    ] {
        let sent = Sent { size: 100, to: to.clone(), heard: Some(heard) };
        *run.history.sent.lock().unwrap() = HashMap::from([(id, sent)]);
        let arrived = (!arrivals.is_empty()).then(|| ((id, to[0].clone()), arrivals));
        *run.history.seen.lock().unwrap() = arrived.into_iter().collect();
        *run.history.reports.lock().unwrap() = (!reports.is_empty()).then_some((id, reports)).into_iter().collect();
        let faults = run.faults();
        match fault {
            None => assert!(faults.is_empty(), "{id}: {faults:?}"),
            Some(words) => assert!(faults.len() == 1 && faults[0].starts_with(words), "{id}: {words}: {faults:?}"),
        }
    }
}

/// F-013: a damaged record costs no other message, is kept for a person to look at, and is said in the log; also when
/// the daemon dies while it sets it aside.
#[test]
fn f013_a_damaged_record_costs_no_other_message() {
    let run = Run::new(DURABLE);
    // Both are away, so everything waits in the spool.
    let mut daemon = run.start(&[]);
    run.steady_sink.replan(SinkPlan::new().reacting(|_| Reaction::HangUp));
    let mut client = Client::hello(daemon.address());
    let victim = 7;
    for id in 0..20 {
        let body = format!("X-Id: {id}\r\n\r\nthe mark of {id} stands here\r\n{}", "line\r\n".repeat(500));
        let reply = client.deliver("", &[&format!("rcpt-{id}@steady.example")], body.as_bytes()).unwrap();
        assert!(reply.starts_with("250"), "{reply}");
    }
    daemon.kill9();
    let mark = format!("the mark of {victim} stands here");
    let spool = run.scratch.file("spool");
    let mut damaged = 0;
    for file in files_below(&spool) {
        let mut bytes = std::fs::read(&file).unwrap();
        let places: Vec<usize> = (0..bytes.len().saturating_sub(mark.len()))
            .filter(|&at| bytes[at..].starts_with(mark.as_bytes()))
            .collect();
        for at in places {
            bytes[at] ^= 1;
            std::fs::write(&file, &bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0, "the mark was not found in the spool");
    let mut dying = run.launch(&[("CAUSEWAY_CRASH_AT", "recover.set_aside:1")]);
    assert_eq!(dying.wait(PATIENCE).code(), None, "it should have died: {}", dying.log_text());

    run.steady_sink.replan(SinkPlan::new());
    daemon = run.start(&[]);
    run.steady_sink.wait_for(19);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(daemon.log_text().contains("\"waiting\":0"), "{}", daemon.log_text());
    let mut ids: Vec<u32> = run.steady_sink.look(|all| {
        let id = |one: &Arrival| one.to[0].trim_start_matches("rcpt-").split('@').next()?.parse().ok();
        all.iter().map(|one| id(one).unwrap()).collect()
    });
    ids.sort_unstable();
    assert_eq!(ids, (0..20).filter(|id| *id != victim).collect::<Vec<_>>());
    // Once is enough: it was not damaged again.
    assert!(dying.has_logged("a damaged record was set aside"), "{}", dying.log_text());
    assert!(!daemon.has_logged("a damaged record was set aside"), "{}", daemon.log_text());
    let kept = files_below(&spool.join("corrupt"));
    let record = kept.iter().find(|path| path.extension().is_some_and(|extension| extension == "record"));
    let record = std::fs::read(record.unwrap_or_else(|| panic!("{kept:?}"))).unwrap();
    assert!(String::from_utf8_lossy(&record).contains("he mark of 7 stands here"), "it is kept as it was");
}

fn files_below(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
        .collect()
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
struct Load {
    clients: Vec<std::thread::JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn on(run: &Run, address: SocketAddr) -> Self {
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

    fn end(self) {
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
    history.sent.lock().unwrap().insert(id, Sent { size, to: to.clone(), heard: None });
    let mut complete = None;
    let result = transaction(client, id, &to, &content(id, size), &mut complete);
    let heard = match &result {
        Ok(reply) if reply.starts_with('2') => Heard::Taken,
        Ok(_) => Heard::Refused,
        Err(_) if complete.is_some() => Heard::Unknown,
        Err(_) => Heard::Refused,
    };
    if let Some(sent) = history.sent.lock().unwrap().get_mut(&id) {
        sent.heard = Some(heard);
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
