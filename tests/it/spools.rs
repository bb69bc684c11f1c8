//! Spools that released versions left behind, read by today's program: whoever upgrades with a full queue loses nothing.
//!
//! `tests/spools/vN` is the folder of a daemon of format N that was killed, as it lay on disk: segments without the zeros
//! at their ends, large bodies compressed. They are never made again. A new version of the format gets a folder beside
//! them, by the program that introduces it:
//!
//! ```text
//! CAUSEWAY_PROGRAM=target/debug/causeway cargo test --test it spools:: -- --ignored
//! ```
//!
//! What a single record means is held fast in `src/spool/golden`; here it is a whole folder and the whole program. F020.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{
    At, Client, Daemon, IN, PATIENCE, Reaction, Scratch, Sink, SinkPlan, behind_trace, causeway, out, relay,
    reserved_address, run, said, same, wait_until,
};
use causeway::message::Body;
use causeway::spool::format::{SEGMENT_HEAD, SegmentHead, VERSION};
use causeway::spool::{OpenError, Settings, Spool};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use nix::sys::signal::Signal;

/// As long as the daemon makes them.
const SEGMENT: u64 = 16 << 20;

/// What waits in each of the spools: subject, and who has not got it yet. Julie got each of them, and `gone`, too.
const WAITING: [(&str, &str); 3] =
    [("short", "david@contoso.com"), ("large", "erik@contoso.com"), ("held", "anna@contoso.com")];

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/spools/v{version}"))
}

/// The content of each message; one is too long for the log.
fn content(subject: &str) -> Vec<u8> {
    let head = format!("From: erin@fabrikam.com\r\nMessage-ID: <{subject}@fabrikam.com>\r\nSubject: {subject}\r\n\r\n");
    let lines = if subject == "large" { 60_000 } else { 3 };
    let body = (0..lines).map(|line| format!("{subject}, line {line} of {lines}\r\n")).collect::<String>();
    (head + &body).into_bytes()
}

fn config(sink: &Sink) -> String {
    relay(&format!(
        r#"[spool]
path = "spool"
min_free_space = "1MiB"
message_lifetime = "3650d"
delay_warning = "0s"
retry = ["1h"]

{IN}
tls = "off"

{}"#,
        out(sink.address)
    ))
}

/// With a console at a port of its own, for `queue`.
fn with_admin(config: &str) -> String {
    config.replace("[admin]\nlisten = \"\"", &format!("[admin]\nlisten = \"{}\"", reserved_address()))
}

/// Puts the spool of `version` into the scratch folder, as the daemon that was killed left it.
fn lay_out(scratch: &Scratch, version: u32) -> PathBuf {
    let root = scratch.file("spool");
    for folder in ["", "log", "large", "corrupt"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    for folder in ["", "log", "large"] {
        let Ok(names) = fs::read_dir(golden(version).join(folder)) else { continue };
        for entry in names.map(Result::unwrap).filter(|entry| entry.file_type().unwrap().is_file()) {
            let (name, bytes) = (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
            let to = root.join(folder).join(name.trim_end_matches(".gz"));
            if name.ends_with(".gz") {
                let mut body = Vec::new();
                GzDecoder::new(&bytes[..]).read_to_end(&mut body).unwrap();
                fs::write(to, body).unwrap();
            } else {
                fs::write(&to, bytes).unwrap();
                if name.ends_with(".segment") {
                    fs::File::options().write(true).open(to).unwrap().set_len(SEGMENT).unwrap();
                }
            }
        }
    }
    let only_ours = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&root, only_ours).unwrap();
    root
}

fn settings(root: &Path) -> Settings {
    Settings { path: root.to_owned(), min_free_space: 1 << 20 }
}

fn whole(body: &Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < body.len() {
        bytes.extend_from_slice(&body.read(bytes.len() as u64, 1 << 20).unwrap());
    }
    bytes
}

/// Every file below the folder, but the lock.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for folder in ["", "log", "large", "corrupt"] {
        for entry in fs::read_dir(root.join(folder)).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() && entry.file_name() != "lock" {
                found.insert(entry.path(), fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

/// Messages, delivered recipients, held copies.
#[test]
fn f020_the_spool_of_every_released_version_is_read_whole() {
    assert!(golden(VERSION).exists(), "a spool of format {VERSION} belongs to the others");
    for version in 1..=VERSION {
        let scratch = Scratch::new();
        let root = lay_out(&scratch, version);
        let (spool, recovery) = Spool::open(settings(&root)).unwrap();
        let recovered = recovery.run();
        assert_eq!((recovered.corrupt.as_slice(), recovered.messages), (&[][..], 3), "version {version}");
        let mut found = Vec::new();
        for waiting in &recovered.waiting {
            let loaded = spool.load(waiting.id).unwrap();
            let message = loaded.message;
            let arrived = whole(&message.content);
            let subject = message.message_id.as_deref().unwrap().trim_start_matches('<');
            let subject = subject.split_once('@').unwrap().0.to_owned();
            same(&arrived, &content(&subject));
            assert_eq!(message.envelope.sender.as_ref().unwrap().to_string(), "erin@fabrikam.com");
            assert_eq!((&*message.connector, &*waiting.via.0), ("in", "out"));
            let copy = usize::from(waiting.copy);
            for open in &loaded.open[copy] {
                let to = message.copies[copy].recipients[usize::from(*open)].recipient.address.to_string();
                found.push((subject.clone(), to, waiting.attempts, waiting.held));
            }
        }
        let expected = WAITING.map(|(subject, to)| {
            // Nothing could be held in version 1.
            (subject.to_owned(), to.to_owned(), 1, version > 1 && subject == "held")
        });
        assert_eq!(found, expected, "version {version}");
    }
}

/// Those who had it do not get it again, who is held waits for the operator, and then nothing is left.
#[test]
fn f020_today_s_program_delivers_what_every_released_version_left() {
    for version in 1..=VERSION {
        let (scratch, sink) = (Scratch::new(), Sink::start());
        lay_out(&scratch, version);
        let mut daemon = Daemon::spawn(scratch.path(), &with_admin(&config(&sink)));
        let queue = |arguments: &[&str]| {
            let mut command = causeway();
            said(&run(command.arg("-c").arg(scratch.file("causeway.toml")).arg("queue").args(arguments), PATIENCE))
        };
        // However early or late it is: what is due at another time goes now.
        let held = usize::from(version > 1);
        wait_until("all that is not held arrives", PATIENCE, || {
            queue(&["retry", "--domain", "contoso.com", "--yes"]);
            sink.count() >= WAITING.len() - held
        });
        let list = queue(&["list"]);
        assert_eq!(list.contains("anna@contoso.com"), held == 1, "version {version}:\n{list}");
        queue(&["release", "--recipient", "anna@contoso.com", "--yes"]);
        let mut arrived = sink.wait_for(WAITING.len());
        wait_until("the queue is empty", PATIENCE, || !queue(&["list"]).contains("contoso.com"));
        arrived.sort_by_key(|arrival| WAITING.iter().position(|(_, to)| arrival.to == [*to]));
        for (arrival, (subject, to)) in arrived.iter().zip(WAITING) {
            assert_eq!((arrival.from.as_str(), arrival.to.as_slice()), ("erin@fabrikam.com", &[to.to_owned()][..]));
            same(behind_trace(&arrival.content, "From: "), &content(subject));
        }
        assert!(daemon.terminate().success(), "{}", daemon.log_text());
        assert_eq!(sink.count(), WAITING.len(), "nobody got anything twice");
    }
}

#[test]
fn f020_a_spool_from_the_future_stops_the_program_and_stays_as_it_is() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let root = lay_out(&scratch, VERSION);
    let segment = fs::read_dir(root.join("log")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&segment).unwrap();
    let head = SegmentHead::decode(&bytes).unwrap();
    bytes[..SEGMENT_HEAD as usize].copy_from_slice(&SegmentHead { version: VERSION + 1, ..head }.encode());
    fs::write(&segment, bytes).unwrap();
    let before = files(&root);

    let mut daemon = Daemon::launch(scratch.path(), &config(&sink), &[]);
    let status = daemon.wait(PATIENCE);
    let log = daemon.log_text();
    assert!(!status.success(), "{log}");
    let reason = format!("has format {}, and this version reads up to {VERSION}; nothing was changed", VERSION + 1);
    assert!(log.contains(&reason) && log.contains("start the newer version again"), "{log}");
    assert!(files(&root) == before, "something was changed");
    assert!(matches!(Spool::open(settings(&root)), Err(OpenError::Newer { .. })));
    assert_eq!(sink.count(), 0);
}

/// What docs/operations.md says of a roll-back: with the log of an emptied spool moved away any version can start, and
/// gives no number twice, because the number of starts stays.
#[test]
fn f020_the_log_of_an_empty_spool_can_be_moved_away() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let mut ids = Vec::new();
    for turn in 1..=2 {
        let mut daemon = Daemon::spawn(scratch.path(), &config(&sink));
        let mut client = Client::hello(daemon.address());
        let reply = client.deliver("erin@fabrikam.com", &["julie@contoso.com"], &content("gone")).unwrap();
        ids.push(reply.strip_prefix("250 2.0.0 queued as ").unwrap().to_owned());
        sink.wait_for(turn);
        assert!(daemon.terminate().success(), "{}", daemon.log_text());
        fs::rename(scratch.file("spool/log"), scratch.file(&format!("log-{turn}"))).unwrap();
    }
    assert!(ids[0] < ids[1], "{ids:?}");
    assert_eq!(fs::read_dir(scratch.file("spool/corrupt")).unwrap().count(), 0, "nothing was missed");
}

/// Makes `tests/spools/vN` with the program that `CAUSEWAY_PROGRAM` names, where N is the format that it writes.
#[test]
#[ignore = "only a new version of the format needs it"]
fn writes_a_spool_to_be_kept() {
    let program = std::env::var("CAUSEWAY_PROGRAM").unwrap();
    let scratch = Scratch::new();
    let tried = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tried);
    let wait = move |at: &At<'_>| match at {
        At::Rcpt(line) if WAITING.iter().any(|(_, waiting)| line.contains(waiting)) => {
            counted.fetch_add(1, Ordering::SeqCst);
            Reaction::Say("451 4.3.0 not now".to_owned())
        }
        _ => Reaction::Go,
    };
    let sink = Sink::with(SinkPlan::new().reacting(wait));
    // A program that cannot hold does not know the section either.
    let can_hold = said(&run(Command::new(&program).arg("--help"), PATIENCE)).contains("queue");
    let config = if can_hold { with_admin(&config(&sink)) } else { config(&sink) };
    let file = scratch.write("causeway.toml", config);
    let mut command = Command::new(&program);
    command.arg("-c").arg(&file).arg("run");
    let mut daemon = Daemon::of(command);
    daemon.wait_for_log("causeway is up");
    for (subject, waits) in [("gone", None)].into_iter().chain(WAITING.map(|(subject, to)| (subject, Some(to)))) {
        // Somebody always gets it: a hop that takes nothing at all is left alone, and the next message not tried.
        let to: Vec<&str> = ["julie@contoso.com"].into_iter().chain(waits).collect();
        let reply = Client::hello(daemon.address()).deliver("erin@fabrikam.com", &to, &content(subject)).unwrap();
        assert!(reply.starts_with("250"), "{reply}");
    }
    sink.wait_for(1 + WAITING.len());
    wait_until("all of them were tried", PATIENCE, || tried.load(Ordering::SeqCst) >= WAITING.len());
    if can_hold {
        let hold = ["queue", "hold", "--recipient", "anna@contoso.com", "--yes"];
        // While the attempt is not over it is left alone.
        wait_until("it is held", PATIENCE, || {
            run(Command::new(&program).arg("-c").arg(&file).args(hold), PATIENCE).status.success()
        });
    }
    // It writes down what happened before it ends.
    daemon.signal(Signal::SIGTERM);
    daemon.wait(PATIENCE);

    let root = scratch.file("spool");
    let mut version = 0;
    let kept: Vec<(PathBuf, Vec<u8>)> = files(&root)
        .into_iter()
        .filter(|(path, _)| !path.ends_with("visit.key") && path.extension().is_none_or(|end| end != "spare"))
        .map(|(path, mut bytes)| {
            let mut name = path.strip_prefix(&root).unwrap().to_owned();
            if name.extension().is_some_and(|end| end == "segment") {
                version = SegmentHead::decode(&bytes).unwrap().version;
                let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
                bytes.truncate(end);
            }
            if name.starts_with("large") {
                name.set_extension("body.gz");
                let mut packed = GzEncoder::new(Vec::new(), Compression::best());
                packed.write_all(&bytes).unwrap();
                bytes = packed.finish().unwrap();
            }
            (name, bytes)
        })
        .collect();
    assert!(!golden(version).exists(), "{} is there already, and is never made again", golden(version).display());
    for (name, bytes) in kept {
        let path = golden(version).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}
