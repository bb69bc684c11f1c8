//! The crash run: the daemon is killed in the middle of everything, again and again, and then everybody is asked what
//! they know ([`common::history`] says what must not be).
//!
//! `CAUSEWAY_CRASH_ROUNDS` asks for more rounds, `CAUSEWAY_CRASH_SEED` repeats the decisions of a run.

#![allow(clippy::unwrap_used)] // what goes wrong here fails the test

mod common;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use common::history::{DURABLE, EARLY, Heard, Load, Run, Seen, Sent, number};
use common::{Arrival, Client, PATIENCE, Reaction, SinkPlan};

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
        die_at(&mut run, point);
    }
    run.drain_and_judge();
    let mut run = Run::new(EARLY);
    for point in
        ["early.delivered:1", "early.delivered:30", "early.keeping:1", "early.keeping:20", "deliver.answered:9"]
    {
        die_at(&mut run, point);
    }
    run.drain_and_judge();
}

/// Until the daemon has died there.
fn die_at(run: &mut Run, point: &str) {
    let mut daemon = run.launch(&[("CAUSEWAY_CRASH_AT", point)]);
    let mut load = None;
    // Some points need the log to be gone through once.
    let end = Instant::now() + Duration::from_secs(240);
    while daemon.is_running() {
        if load.is_none() && daemon.has_logged("causeway is up") {
            load = Some(Load::on(run, daemon.address()));
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
        (13, Heard::InTheDark, vec![steady(13), refused(13)], vec![seen(now, false)], vec![], None),
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
        let sent = Sent { size: 100, to: to.clone(), heard: Some(heard), at: None };
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
    let spool = run.spool.clone();
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
