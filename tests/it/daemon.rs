//! The daemon as its operator meets it: signals, reload, files that change, limits, exit statuses.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::common::{
    At, Client, Daemon, IN, PATIENCE, Reaction, Scratch, Sink, SinkPlan, awkward_message, behind_trace, causeway,
    history, out, relay,
};
use crate::common::{run, said, wait_until};

const MESSAGE: &[u8] = b"From: erin@fabrikam.com\r\nSubject: one\r\n\r\nhello\r\n";

/// A plain relay for contoso.com in front of one sink. `more` is put into the receive connector.
fn config(sink: SocketAddr, more: &str) -> String {
    relay(&format!("shutdown_grace = \"10s\"\n\n{IN}{more}\n\n{}", out(sink)))
}

const IN_THE_CLEAR: &str = "tls = \"off\"";

#[test]
fn the_message_arrives_behind_one_received_field() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let daemon = Daemon::spawn(scratch.path(), &config(sink.address, IN_THE_CLEAR));
    let content = awkward_message("whole");
    let reply = Client::hello(daemon.address())
        .deliver("erin@fabrikam.com", &["julie@contoso.com", "david@contoso.com"], &content)
        .unwrap();
    assert!(reply.starts_with("250 2.0.0 queued as "), "{reply}");
    let arrival = sink.wait_for(1).remove(0);
    assert_eq!(arrival.from, "erin@fabrikam.com");
    assert_eq!(arrival.to, ["julie@contoso.com", "david@contoso.com"]);
    assert_eq!(behind_trace(&arrival.content, "From: "), content);
    let text = arrival.text();
    assert!(text.starts_with("Received: from client.example"), "{text}");
    assert_eq!(text.matches("\r\nReceived:").count(), 0, "one field, at the very front: {text}");
    assert!(text.contains("by mail.contoso.com"), "{text}");
    assert_eq!(sink.count(), 1);
}

/// SIGTERM: what is under way is finished, exit status 0, and nothing that was acknowledged is lost.
#[test]
fn sigterm_drains_and_ends_with_nothing_lost() {
    let scratch = Scratch::new();
    let sink = Sink::with(SinkPlan::new().reacting(|at| match at {
        // A slow hop, so that the end comes in the middle of deliveries.
        At::End(_) => {
            std::thread::sleep(Duration::from_millis(10));
            Reaction::Go
        }
        _ => Reaction::Go,
    }));
    let text = config(sink.address, IN_THE_CLEAR);
    let mut daemon = Daemon::spawn(scratch.path(), &text);
    let mut client = Client::hello(daemon.address());
    let mut idle = Client::hello(daemon.address());
    for number in 0..100 {
        let content = format!("Subject: {number}\r\n\r\nbody\r\n");
        let reply = client.deliver("erin@fabrikam.com", &["julie@contoso.com"], content.as_bytes()).unwrap();
        assert!(reply.starts_with("250"), "{reply}");
    }
    // One message is in the middle of its data: C020, it is finished and answered.
    assert!(client.say("MAIL FROM:<erin@fabrikam.com>").starts_with("250"));
    assert!(client.say("RCPT TO:<julie@contoso.com>").starts_with("250"));
    assert!(client.say("DATA").starts_with("354"));
    client.send(b"Subject: 100\r\n\r\n").unwrap();
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    let goodbye = idle.reply().unwrap();
    assert!(goodbye.starts_with("421 4.3.2"), "an idle client is told: {goodbye}");
    assert!(idle.is_closed());
    client.send(b"the rest\r\n.\r\n").unwrap();
    let reply = client.reply().unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    let status = daemon.wait(PATIENCE);
    assert_eq!(status.code(), Some(0), "{}", daemon.log_text());
    assert!(TcpStream::connect(daemon.address()).is_err(), "the port is closed");

    let mut again = Daemon::spawn(scratch.path(), &text);
    sink.wait_for(101);
    wait_until("nothing waits", PATIENCE, || sink.count() == 101);
    assert_eq!(again.terminate().code(), Some(0));
    assert!(again.log_text().contains("\"waiting\":0"), "{}", again.log_text());
    let mut subjects: Vec<u32> = sink.look(|arrivals| {
        arrivals
            .iter()
            .map(|arrival| {
                let text = arrival.text();
                text.split_once("Subject: ").unwrap().1.lines().next().unwrap().trim().parse().unwrap()
            })
            .collect()
    });
    subjects.sort_unstable();
    assert_eq!(subjects, (0..=100).collect::<Vec<_>>(), "each once");
}

/// The ports at which a process listens, however little of it has started: as the kernel knows them.
fn listening(pid: u32) -> Vec<SocketAddr> {
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let sockets: Vec<String> = descriptors
        .flatten()
        .filter_map(|one| std::fs::read_link(one.path()).ok()?.to_str().map(str::to_owned))
        .filter_map(|target| Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let listener = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
        (*state == "0A" && sockets.iter().any(|socket| socket == inode)).then(|| ([127, 0, 0, 1], port).into())
    };
    table.lines().skip(1).filter_map(listener).collect()
}

/// Is SIGHUP held back or caught by this process? `/proc/PID/status` has a bit for each signal.
pub(super) fn holds_signals(pid: u32) -> bool {
    use nix::sys::signal::Signal;
    // Whoever starts a process or a thread blocks all signals for a moment, the allocator before `main` too, and lets them
    // go again. The daemon blocks its own.
    survives_signals(pid) && mask(pid, "SigBlk:") & (1 << (Signal::SIGUSR1 as u32 - 1)) == 0
}

/// Would it survive SIGHUP at this moment?
fn survives_signals(pid: u32) -> bool {
    (mask(pid, "SigBlk:") | mask(pid, "SigCgt:")) & 1 != 0
}

fn mask(pid: u32, word: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(word)).unwrap_or("0");
    u64::from_str_radix(line.trim(), 16).unwrap_or_default()
}

/// A signal that comes while the daemon starts is obeyed as soon as it is up, and never ends the process where it stands:
/// neither before the port listens, nor when the kernel has accepted the first connection and nobody has greeted it.
#[test]
fn a_signal_at_any_moment_of_a_start_is_obeyed() {
    use nix::sys::signal::Signal;
    let starts = history::number("CAUSEWAY_STARTS").unwrap_or(40) as usize;
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let text = config(sink.address, IN_THE_CLEAR);
    for number in 0..starts {
        let mut daemon = Daemon::launch(scratch.path(), &text, &[]);
        let pid = daemon.pid();
        let signal = [Signal::SIGHUP, Signal::SIGHUP, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT][number % 5];
        let is_early = number % 4 == 3;
        if is_early {
            wait_until("it holds signals", PATIENCE, || holds_signals(pid));
            daemon.signal(signal);
        }
        let mut client = None;
        if signal == Signal::SIGHUP || !is_early {
            wait_until("it listens", PATIENCE, || !listening(pid).is_empty());
            assert!(survives_signals(pid), "start {number}: it listens, and a signal would end it");
            client = Some(TcpStream::connect(listening(pid)[0]).unwrap());
        }
        if !is_early {
            daemon.signal(signal);
        }
        let what = format!("start {number}: {signal}, early: {is_early}");
        if signal == Signal::SIGHUP {
            daemon.wait_for_log("the new configuration is in force");
            assert!(daemon.is_running(), "{what}: {}", daemon.log_text());
            let mut greeting = [0; 4];
            let mut client = client.unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            std::io::Read::read_exact(&mut client, &mut greeting).unwrap();
            assert_eq!(&greeting, b"220 ", "{what}");
            drop(client);
            daemon.signal(Signal::SIGTERM);
        }
        assert_eq!(daemon.wait(PATIENCE).code(), Some(0), "{what}: {}", daemon.log_text());
    }
}

#[test]
fn a_second_daemon_on_the_same_spool_refuses() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let text = config(sink.address, IN_THE_CLEAR);
    let mut first = Daemon::spawn(scratch.path(), &text);
    let mut second = Daemon::launch(scratch.path(), &text, &[]);
    assert_eq!(second.wait(PATIENCE).code(), Some(1), "{}", second.log_text());
    assert!(second.log_text().contains("spool"), "it says why: {}", second.log_text());
    assert!(first.is_running());
    let reply = Client::hello(first.address()).deliver("a@b.example", &["julie@contoso.com"], MESSAGE).unwrap();
    assert!(reply.starts_with("250"), "the first goes on: {reply}");
    sink.wait_for(1);
}

/// SIGHUP: a faulty file changes nothing, and the log names file, line and column; a good one is in force at once.
#[test]
fn a_reload_is_whole_or_not_at_all() {
    let (scratch, first, second) = (Scratch::new(), Sink::start(), Sink::start());
    let text = config(first.address, IN_THE_CLEAR);
    let daemon = Daemon::spawn(scratch.path(), &text);
    let send = || {
        let reply = Client::hello(daemon.address()).deliver("a@b.example", &["julie@contoso.com"], MESSAGE).unwrap();
        assert!(reply.starts_with("250"), "{reply}");
    };
    send();
    first.wait_for(1);

    let faulty = text.replace("retry = [\"1s\"]", "retry = [\"1s\"]\nretries = 7");
    assert_ne!(faulty, text);
    let line = faulty.lines().position(|line| line == "retries = 7").unwrap() + 1;
    scratch.write("causeway.toml", faulty);
    daemon.hang_up();
    daemon.wait_for_log("the old one stays");
    let log = daemon.log_text();
    assert!(log.contains(&format!("causeway.toml:{line}:1")), "file, line and column: {log}");
    assert!(log.contains("retries"), "and the key: {log}");
    send();
    first.wait_for(2);

    scratch.write("causeway.toml", config(second.address, IN_THE_CLEAR));
    daemon.hang_up();
    daemon.wait_for_log("the new configuration is in force");
    send();
    second.wait_for(1);
    assert_eq!(first.count(), 2);

    let missing = scratch.file("causeway.toml");
    std::fs::remove_file(missing).unwrap();
    daemon.hang_up();
    daemon.wait_for_log("cannot be read");
    send();
    second.wait_for(2);
}

/// A session that stands open while the configuration changes is not dropped, nor judged by a mixture.
#[test]
fn reloads_under_load_drop_no_session() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let text = config(sink.address, IN_THE_CLEAR);
    let daemon = Daemon::spawn(scratch.path(), &text);
    let mut client = Client::hello(daemon.address());
    for round in 0..20 {
        assert!(client.say("MAIL FROM:<a@b.example>").starts_with("250"));
        assert!(client.say("RCPT TO:<julie@contoso.com>").starts_with("250"));
        daemon.hang_up();
        wait_until("the reload happened", PATIENCE, || {
            daemon.times_logged("the new configuration is in force") > round
        });
        assert!(client.say("DATA").starts_with("354"));
        client.send(b"Subject: x\r\n\r\nx\r\n.\r\n").unwrap();
        assert!(client.reply().unwrap().starts_with("250"));
    }
    sink.wait_for(20);
}

fn hybrid(sink: SocketAddr) -> String {
    let cloud = "\n[[send_connector]]\nname = \"cloud\"\nsmart_hosts = [\"127.0.0.1:9\"]\ntls = \"off\"\n";
    config(sink, "tls = \"offer\"\ncertificate = \"relay.crt\"\nkey = \"relay.key\"")
        .replace("type = \"external-relay\"", "type = \"authoritative\"\n\n[[directory]]\nkind = \"file\"\npath = \"recipients.csv\"")
        .replace("[[accepted_domain]]", "[hybrid]\nside = \"on-premises\"\non_premises = \"out\"\ncloud = \"cloud\"\nrouting_domain = \"contoso.mail.onmicrosoft.com\"\n\n[[accepted_domain]]")
        + cloud
}

/// The directory is read again when it changes; a file in which nothing is usable leaves the old one.
#[test]
fn a_new_recipient_is_known_without_a_signal() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    scratch.issue(&scratch.authority(), "relay", &["mail.contoso.com"]);
    scratch.write("recipients.csv", "address,type,target\njulie@contoso.com,on-premises,\n");
    let daemon = Daemon::spawn(scratch.path(), &hybrid(sink.address));
    // A connection of its own each time: too many refusals end a session.
    let is_known = |address: &str| {
        let mut client = Client::hello(daemon.address());
        assert!(client.say("MAIL FROM:<a@b.example>").starts_with("250"));
        let reply = client.say(&format!("RCPT TO:<{address}>"));
        assert!(reply.starts_with("250 ") || reply.starts_with("550 5.1.1 "), "{reply}");
        reply.starts_with("250 ")
    };
    assert!(!is_known("newcomer@contoso.com"));
    // As tools do it: another file, then a rename over the old one.
    let next = scratch
        .write("next.csv", "address,type,target\njulie@contoso.com,on-premises,\nnewcomer@contoso.com,on-premises,\n");
    std::fs::rename(next, scratch.file("recipients.csv")).unwrap();
    wait_until("newcomer@contoso.com is known", PATIENCE, || is_known("newcomer@contoso.com"));

    scratch.write("recipients.csv", "not a directory at all\n");
    daemon.wait_for_log("stays");
    assert!(is_known("newcomer@contoso.com"), "the last good one stays");
}

/// A change of recipients or of users costs no connection to the hops, and a reload none of a connector that stays as it was.
#[test]
fn kept_connections_outlive_changed_files_and_reloads() {
    /// Well below the eight seconds after which a relay closes a connection that has no work.
    const SOON: Duration = Duration::from_secs(4);
    let (scratch, sink, cloud) = (Scratch::new(), Sink::start(), Sink::start());
    scratch.issue(&scratch.authority(), "relay", &["mail.contoso.com"]);
    scratch.write("users", "# nobody\n");
    std::fs::set_permissions(scratch.file("users"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let csv = "address,type,target\njulie@contoso.com,on-premises,\ndavid@contoso.com,cloud,david@contoso.mail.onmicrosoft.com\n";
    scratch.write("recipients.csv", csv);
    let text = hybrid(sink.address)
        .replace("127.0.0.1:9", &cloud.address.to_string())
        .replace("key = \"relay.key\"", "key = \"relay.key\"\nusers_file = \"users\"");
    let daemon = Daemon::spawn(scratch.path(), &text);
    let send = || {
        let before = (sink.count(), cloud.count());
        let to = ["julie@contoso.com", "david@contoso.com"];
        let reply = Client::hello(daemon.address()).deliver("erin@fabrikam.com", &to, MESSAGE).unwrap();
        assert!(reply.starts_with("250"), "{reply}");
        sink.wait_for(before.0 + 1);
        cloud.wait_for(before.1 + 1);
    };
    let connections = || (sink.crowd().came_after.len(), cloud.crowd().came_after.len());
    let changed = text.replace("name = \"cloud\"", "name = \"cloud\"\nhelo = \"other.contoso.com\"");
    assert_ne!(changed, text);
    let mut rounds = 0;
    let mut after = |what: &str, log: &str, expected: (usize, usize), change: &dyn Fn(usize)| {
        // On a machine that is very busy a connection may be closed for want of work; then it is tried again.
        for _ in 0..10 {
            rounds += 1;
            send();
            let (began, before, told) = (Instant::now(), connections(), daemon.times_logged(log));
            change(rounds);
            wait_until(what, PATIENCE, || daemon.times_logged(log) > told);
            send();
            let now = connections();
            if began.elapsed() < SOON {
                assert_eq!((now.0 - before.0, now.1 - before.1), expected, "{what}: {}", daemon.log_text());
                return;
            }
        }
        eprintln!("{what}: this machine is too slow to tell");
    };
    let again = "looked at again";
    after("recipients changed", again, (0, 0), &|round| {
        _ = scratch.write("recipients.csv", format!("{csv}r{round}@contoso.com,on-premises,\n"));
    });
    after("users changed", again, (0, 0), &|round| {
        _ = scratch.write("users", format!("# nobody, {round}\n"));
    });
    after("a reload without a change", "in force", (0, 0), &|_| daemon.hang_up());
    after("a reload with a change of one connector", "in force", (0, 1), &|round| {
        let helo = format!("r{round}.contoso.com");
        scratch.write("causeway.toml", changed.replace("other.contoso.com", &helo));
        daemon.hang_up();
    });
}

/// The tracking file is renamed, as logrotate does it, removed, or its folder is: a new one is there with the next events, and
/// at SIGHUP at once; each is told once.
#[test]
fn a_tracking_file_that_is_gone_is_begun_anew() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let mut daemon = Daemon::spawn(scratch.path(), &config(sink.address, IN_THE_CLEAR));
    let folder = scratch.file("tracking");
    let files = || -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "jsonl")).collect()
    };
    let mut number = 0;
    let mut send = || {
        number += 1;
        let content = format!("Message-ID: <m{number}@fabrikam.com>\r\nSubject: x\r\n\r\nx\r\n");
        let reply = Client::hello(daemon.address())
            .deliver("erin@fabrikam.com", &["julie@contoso.com"], content.as_bytes())
            .unwrap();
        assert!(reply.starts_with("250"), "{reply}");
        format!("<m{number}@fabrikam.com>")
    };
    let has = |id: &str| files().iter().any(|file| std::fs::read_to_string(file).is_ok_and(|text| text.contains(id)));
    let rename = || files().iter().for_each(|file| std::fs::rename(file, file.with_extension("jsonl.1")).unwrap());
    let remove = || files().iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let remove_folder = || std::fs::remove_dir_all(&folder).unwrap();
    let losses: [(&str, &dyn Fn()); 3] = [("renamed", &rename), ("removed", &remove), ("folder", &remove_folder)];
    let mut told = 0;
    for (what, lose) in losses {
        let id = send();
        wait_until("its events are in the file", PATIENCE, || has(&id));
        lose();
        let mut last = String::new();
        wait_until(&format!("{what}: a new file has new events"), PATIENCE, || {
            last = send();
            !files().is_empty()
        });
        wait_until(&format!("{what}: the last event"), PATIENCE, || has(&last));
        told += 1;
        daemon.logs_times("was renamed, replaced or removed", told);

        lose();
        daemon.hang_up();
        wait_until(&format!("{what}: a new file at SIGHUP, without an event"), PATIENCE, || !files().is_empty());
        told += 1;
        daemon.logs_times("was renamed, replaced or removed", told);
    }
    let last = send();
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(has(&last));
}

/// The key of visits is copied from another relay: its marks count from then on, and one that is no key changes nothing.
#[test]
fn a_key_of_visits_that_is_replaced_counts_without_a_signal() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    scratch.issue(&scratch.authority(), "relay", &["mail.contoso.com"]);
    scratch.write("recipients.csv", "address,type,target\njulie@contoso.com,on-premises,\n");
    let daemon = Daemon::spawn(scratch.path(), &hybrid(sink.address));
    let send = |content: &[u8]| {
        let mut client = Client::hello(daemon.address());
        client.deliver("erin@fabrikam.com", &["julie@contoso.com"], content).unwrap()
    };
    assert!(send(MESSAGE).starts_with("250"));
    let marked = sink.wait_for(1).remove(0).content;
    let is_known = || send(&marked).starts_with("451 4.4.6");
    assert!(is_known(), "it has been here");
    let file = scratch.file("spool/visit.key");
    let own = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, "5".repeat(64)).unwrap();
    wait_until("marks of the old key mean nothing", PATIENCE, || !is_known());
    std::fs::write(&file, "no key").unwrap();
    daemon.wait_for_log("visit.key: expected 64 hexadecimal digits");
    assert!(!is_known(), "the last good one stays");
    std::fs::write(&file, own).unwrap();
    wait_until("its own key is back", PATIENCE, is_known);
}

/// A renewed certificate is presented without restart or signal.
#[test]
fn a_renewed_certificate_is_presented() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let authority = scratch.authority();
    scratch.issue(&authority, "relay", &["mail.contoso.com"]);
    scratch.write("recipients.csv", "address,type,target\njulie@contoso.com,on-premises,\n");
    let daemon = Daemon::spawn(scratch.path(), &hybrid(sink.address));
    let address = daemon.address().to_string();
    let presented = || {
        let output = run(
            std::process::Command::new("openssl").args([
                "s_client",
                "-starttls",
                "smtp",
                "-connect",
                &address,
                "-showcerts",
            ]),
            PATIENCE,
        );
        let text = said(&output);
        text.split_once("-----BEGIN CERTIFICATE-----")
            .unwrap_or_else(|| panic!("{text}"))
            .1
            .split_once("-----END")
            .unwrap()
            .0
            .replace(['\n', '\r'], "")
    };
    let file = |name: &str| {
        let pem = std::fs::read_to_string(scratch.file(name)).unwrap();
        pem.split_once("-----BEGIN CERTIFICATE-----")
            .unwrap()
            .1
            .split_once("-----END")
            .unwrap()
            .0
            .replace(['\n', '\r'], "")
    };
    let old = file("relay.crt");
    assert_eq!(presented(), old);
    scratch.issue(&authority, "relay", &["mail.contoso.com"]);
    let new = file("relay.crt");
    assert_ne!(old, new);
    wait_until("the new certificate is presented", PATIENCE, || presented() == new);
}

/// C003: beyond a limit the client hears why, while those within it stay.
#[test]
fn c003_beyond_a_limit_the_client_hears_421() {
    for (limit, code) in [("max_connections = 3", "421 4.3.2 "), ("max_connections_per_ip = 3", "421 4.7.0 ")] {
        let (scratch, sink) = (Scratch::new(), Sink::start());
        let daemon = Daemon::spawn(scratch.path(), &config(sink.address, &format!("{IN_THE_CLEAR}\n{limit}")));
        let mut held: Vec<Client> = (0..3).map(|_| Client::hello(daemon.address())).collect();
        let (mut refused, greeting) = Client::greeted(daemon.address()).unwrap();
        assert!(greeting.starts_with(code), "{limit}: {greeting}");
        assert!(refused.is_closed(), "{limit}");
        assert!(held.pop().unwrap().say("QUIT").starts_with("221"));
        wait_until("a place is free again", PATIENCE, || {
            Client::greeted(daemon.address()).is_ok_and(|(_, greeting)| greeting.starts_with("220"))
        });
    }
}

/// S-120, C003: two thousand idle connections, and a new client is served beside them.
#[test]
fn a_flood_of_idle_connections_delays_nobody() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = hard.min(4200);
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).unwrap();
    }
    let flood = usize::try_from(soft.max(wanted)).unwrap().saturating_sub(200).min(2000);
    assert!(flood >= 500, "only {soft} files may be open here: too few for a flood");
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let more = format!("{IN_THE_CLEAR}\nmax_connections_per_ip = 5000");
    let daemon = Daemon::spawn(scratch.path(), &config(sink.address, &more));
    let address = daemon.address();
    let idle: Vec<TcpStream> = (0..flood).map(|_| TcpStream::connect(address).unwrap()).collect();
    for round in 0..5 {
        let started = Instant::now();
        let reply = Client::hello(address).deliver("a@b.example", &["julie@contoso.com"], MESSAGE).unwrap();
        assert!(reply.starts_with("250"), "{reply}");
        let took = started.elapsed();
        assert!(took < PATIENCE / 3, "beside {flood} idle clients the message took {took:?} (round {round})");
    }
    sink.wait_for(5);
    drop(idle);
    // Nothing of the flood stays behind.
    let descriptors = format!("/proc/{}/fd", daemon.pid());
    wait_until("the daemon closed its side of the flood", PATIENCE, || {
        std::fs::read_dir(&descriptors).unwrap().count() < flood / 2
    });
}

/// Exit status: 0 done, 1 the answer is no, 2 the command line or the configuration is wrong, 3 nothing answers.
#[test]
fn exit_statuses_are_those_of_the_interface() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    scratch.write("good.toml", config(sink.address, IN_THE_CLEAR));
    let faulty = config(sink.address, "tls = \"sometimes\"");
    let line = faulty.lines().position(|line| line.contains("sometimes")).unwrap() + 1;
    let place = format!("faulty.toml:{line}:7");
    scratch.write("faulty.toml", faulty);
    scratch.write("taken.toml", config(sink.address, IN_THE_CLEAR).replace("127.0.0.1:0", &sink.address.to_string()));
    let explain = |to: &'static str| vec!["-c", "good.toml", "explain", "--from", "a@b.example", "--to", to];
    for (arguments, status, words) in [
        (vec!["--version"], 0, "causeway 0.1.0"),
        (vec!["--help"], 0, "explain"),
        (vec!["-c", "good.toml", "check"], 0, ""),
        (explain("julie@contoso.com"), 0, "out"),
        (explain("eve@elsewhere.example"), 1, "5.7.1"),
        (vec!["-c", "taken.toml", "run"], 1, "another program listens there"),
        (vec![], 2, "Usage"),
        (vec!["fly"], 2, "fly"),
        (vec!["-c", "faulty.toml", "run"], 2, place.as_str()),
        (vec!["-c", "faulty.toml", "check"], 1, place.as_str()),
        (vec!["-c", "missing.toml", "run"], 2, "missing.toml"),
        (vec!["health", "--address", "127.0.0.1:1"], 3, "127.0.0.1:1"),
        (vec!["health", "--address", "mail.contoso.com"], 2, "expected a host and a port"),
    ] {
        let output = run(causeway().current_dir(scratch.path()).args(&arguments), PATIENCE);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
        assert!(text.contains(words), "{arguments:?} should say {words:?}: {text}");
    }
}

#[test]
fn health_asks_for_the_greeting() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let daemon = Daemon::spawn(scratch.path(), &config(sink.address, IN_THE_CLEAR));
    let busy = Sink::with(SinkPlan::new().reacting(|_| Reaction::Say("421 4.3.2 busy".into())));
    let named = format!("localhost:{}", daemon.address().port());
    for (address, status) in [(daemon.address().to_string(), 0), (busy.address.to_string(), 1), (named, 0)] {
        let output = run(causeway().args(["health", "--address", &address]), PATIENCE);
        assert_eq!(output.status.code(), Some(status), "{}", said(&output));
    }
}

/// What is not built is refused by name, never ignored.
#[test]
fn what_is_not_built_is_refused_by_name() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let refused = |output: std::process::Output, what: &str| {
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{what}: {text}");
        assert!(text.contains("not supported in this version"), "{what}: {text}");
    };
    let good = config(sink.address, IN_THE_CLEAR);
    for (after, key) in [
        ("name = \"out\"", "srs = \"contoso.com\""),
        ("shutdown_grace = \"10s\"", "[inbound_authentication]\nspf = true"),
        ("shutdown_grace = \"10s\"", "[[milter]]\naddress = \"127.0.0.1:11332\""),
        ("shutdown_grace = \"10s\"", "[[journal]]\nrecipient = \"archive@contoso.com\""),
    ] {
        assert!(good.contains(after));
        let file = scratch.write("unbuilt.toml", good.replacen(after, &format!("{after}\n{key}"), 1));
        refused(run(causeway().arg("-c").arg(file).arg("run"), PATIENCE), key);
    }
}

/// The README's promise to whoever tries it first.
#[test]
fn demo_once_shows_both_copies_and_their_proofs() {
    let output = run(causeway().args(["demo", "--once"]), PATIENCE);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for word in [
        "julie@contoso.com",
        "david@contoso.mail.onmicrosoft.com",
        "on-premises",
        "cloud",
        "ex1.contoso.com",
        "mail.protection.outlook.com",
        "mail.contoso.com",
        "TLS",
    ] {
        assert!(text.contains(word), "the demo does not mention {word}:\n{text}");
    }
}

/// SMTPUTF8 and quoted local parts pass as they came; SIZE is judged as soon as it is announced. C030, C043.
#[test]
fn parameters_and_odd_addresses_travel_on() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let daemon =
        Daemon::spawn(scratch.path(), &config(sink.address, &format!("{IN_THE_CLEAR}\nmax_message_size = \"1MiB\"")));
    let mut client = Client::hello(daemon.address());
    let reply = client.say("MAIL FROM:<erin@fabrikam.com> SIZE=1048577");
    assert!(reply.starts_with("552 5.3.4 "), "{reply}");
    let verp = format!("bounces+{}@fabrikam.com", "x".repeat(200));
    for (mail, rcpt, from, to, passed) in [
        (
            &*format!("MAIL FROM:  {verp} SIZE=100"),
            "RCPT TO:\t<julie..smith@contoso.com>",
            &*verp,
            "\"julie..smith\"@contoso.com",
            "",
        ),
        (
            "MAIL FROM:<root> AUTH=<> ENVID=+C3+A9",
            "RCPT TO:julie@contoso.com ORCPT=rfc822;+C3+A9@contoso.com",
            "root@mail.contoso.com",
            "julie@contoso.com",
            "",
        ),
        (
            "MAIL FROM:<Erin.O'Hara@fabrikam.com> SIZE=100",
            "RCPT TO:<\"a b\"@contoso.com>",
            "Erin.O'Hara@fabrikam.com",
            "\"a b\"@contoso.com",
            "",
        ),
        (
            "MAIL FROM:<gr\u{fc}n@fabrikam.com> SMTPUTF8 BODY=8BITMIME",
            "RCPT TO:<j\u{fc}rgen@contoso.com>",
            "gr\u{fc}n@fabrikam.com",
            "j\u{fc}rgen@contoso.com",
            "SMTPUTF8",
        ),
        ("MAIL FROM:<> BODY=8BITMIME", "RCPT TO:<julie@contoso.com>", "", "julie@contoso.com", "BODY=8BITMIME"),
        (
            "MAIL FROM:<erin@fabrikam.com> RET=HDRS ENVID=QQ+2B1",
            "RCPT TO:<julie@contoso.com> NOTIFY=NEVER ORCPT=rfc822;julie@x.example",
            "erin@fabrikam.com",
            "julie@contoso.com",
            "ENVID=QQ+2B1",
        ),
    ] {
        let before = sink.count();
        for line in [mail, rcpt] {
            let reply = client.say(line);
            assert!(reply.starts_with("250 "), "{line}: {reply}");
        }
        assert!(client.say("DATA").starts_with("354"));
        client.send(b"Subject: gr\xc3\xbcn\r\n\r\n\xff\r\n.\r\n").unwrap();
        let reply = client.reply().unwrap();
        assert!(reply.starts_with("250 "), "{mail}: {reply}");
        let arrival = sink.wait_for(before + 1).pop().unwrap();
        assert_eq!((arrival.from.as_str(), arrival.to.as_slice()), (from, &[to.to_owned()][..]), "{mail}");
        assert!(arrival.mail.contains(passed), "{passed}: {}", arrival.mail);
        assert!(arrival.content.ends_with(b"\r\n\r\n\xff\r\n"), "{mail}");
        if rcpt.contains("NOTIFY") {
            assert!(arrival.rcpt[0].contains("NOTIFY=NEVER"), "{:?}", arrival.rcpt);
            assert!(arrival.rcpt[0].contains("ORCPT=rfc822;julie@x.example"), "{:?}", arrival.rcpt);
        }
    }
}

/// A device that calls itself something that no host is called may send. The name stands in a comment of `Received:` and in
/// the event, cleaned up.
#[test]
fn a_client_may_call_itself_what_it_likes() {
    let (scratch, sink) = (Scratch::new(), Sink::start());
    let daemon = Daemon::spawn(scratch.path(), &config(sink.address, IN_THE_CLEAR));
    for (number, (hello, expected)) in [
        (&b"EHLO b\xc3\xbcro-pc\r\n"[..], "b%C3%BCro-pc"),
        (b"EHLO DESKTOP-\xc4\xd6\r\n", "DESKTOP-%C4%D6"),
        (b"HELO host name (with blanks)\r\n", "host%20name%20%28with%20blanks%29"),
    ]
    .into_iter()
    .enumerate()
    {
        let (mut client, _) = Client::greeted(daemon.address()).unwrap();
        client.send(hello).unwrap();
        assert!(client.reply().unwrap().starts_with("250"), "{expected}");
        let reply = client.deliver("erin@fabrikam.com", &["julie@contoso.com"], MESSAGE).unwrap();
        assert!(reply.starts_with("250 "), "{expected}: {reply}");
        let arrival = sink.wait_for(number + 1).pop().unwrap();
        let text = String::from_utf8(arrival.content).unwrap().replace("\r\n\t", " ");
        let field = format!("Received: from [127.0.0.1] (helo={expected}) by mail.contoso.com");
        assert!(text.contains(&field), "{field}: {text}");
    }
}

/// A rate holds messages back, and nothing else: a new configuration counts at once for those that wait, and so does a stop.
#[test]
fn a_rate_holds_messages_back_and_nothing_else() {
    let scratch = Scratch::new();
    let sink = Sink::start();
    let text = config(sink.address, IN_THE_CLEAR);
    let slow = |rate: &str| text.replace("smart_hosts", &format!("rate = \"{rate}\"\nsmart_hosts"));
    let mut daemon = Daemon::spawn(scratch.path(), &slow("20/s"));
    let mut client = Client::hello(daemon.address());
    let mut send = |count: usize| {
        for _ in 0..count {
            let reply = client.deliver("erin@fabrikam.com", &["julie@contoso.com"], MESSAGE).unwrap();
            assert!(reply.starts_with("250"), "{reply}");
        }
    };
    // A second's worth is saved up; the ten behind it come at the rate.
    let began = Instant::now();
    send(30);
    sink.wait_for(30);
    assert!(began.elapsed() >= Duration::from_millis(450), "{:?}", began.elapsed());

    // The first has its turn, the others an hour each.
    scratch.write("causeway.toml", slow("1/h"));
    daemon.hang_up();
    daemon.wait_for_log("the new configuration is in force");
    send(4);
    sink.wait_for(31);
    scratch.write("causeway.toml", &text);
    daemon.hang_up();
    sink.wait_for(34);

    scratch.write("causeway.toml", slow("1/h"));
    daemon.hang_up();
    wait_until("it is in force", PATIENCE, || daemon.times_logged("the new configuration is in force") >= 3);
    send(3);
    sink.wait_for(35);
    let began = Instant::now();
    assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.log_text());
    assert!(began.elapsed() < PATIENCE / 2, "{:?}: it waited for turns", began.elapsed());
    assert_eq!(sink.count(), 35);
}
