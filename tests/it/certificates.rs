//! Certificates over their lives, and TLS that somebody takes away: renewals while mail flows, pairs that are faulty,
//! issuers that change, STARTTLS stripped from a reply.

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Client, Daemon, PATIENCE, Scratch, Sink, SinkPlan, causeway, relay, run, said, wait_until};
use causeway::config;
use causeway::daemon::{Daemon as Running, bind_all};
use causeway::outcome::tracking::Tracker;
use causeway::tls::authority::{Authority, Template};
use causeway::tls::{Connector, Demand, Names, Proof};
use jiff::{SignedDuration, Timestamp};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

const RELAY: &str = "mail.contoso.com";
const CLOUD: &str = "mail.protection.outlook.com";
const MESSAGE: &[u8] = b"From: erin@fabrikam.com\r\nSubject: one\r\n\r\nhello\r\n";

/// A relay for contoso.com that shows `relay.crt`, in front of one host that must prove to be the cloud service.
fn config(host: SocketAddr) -> String {
    relay(&format!(
        r#"shutdown_grace = "5s"

[[receive_connector]]
name = "in"
listen = ["127.0.0.1:0"]
origin = "internet"
tls = "offer"
certificate = "relay.crt"
key = "relay.key"

[[send_connector]]
name = "to-cloud"
address_spaces = ["*"]
smart_hosts = ["{host}"]
tls = "domain"
tls_domain = ["{CLOUD}"]
ca_file = "ca.pem"
"#
    ))
}

fn names(name: &str) -> Names {
    Names::new(vec![name.to_owned()]).unwrap()
}

/// A certificate whose first name says which one it is.
fn numbered(authority: &Authority, number: usize) -> (String, String) {
    authority.issue(&[&format!("number-{number}.contoso.com"), RELAY])
}

/// One STARTTLS handshake: the number of the certificate that was shown, which its key proved and the root vouches for.
async fn number_shown(address: SocketAddr, authority: &Authority) -> Result<usize, String> {
    let words = |error: std::io::Error| error.to_string();
    let mut stream = BufReader::new(TcpStream::connect(address).await.map_err(words)?);
    for line in ["", "EHLO client.example\r\n", "STARTTLS\r\n"] {
        stream.get_mut().write_all(line.as_bytes()).await.map_err(words)?;
        loop {
            let mut reply = String::new();
            stream.read_line(&mut reply).await.map_err(words)?;
            if !reply.starts_with('2') {
                return Err(format!("{line:?} was answered {reply:?}"));
            }
            if reply.as_bytes().get(3) == Some(&b' ') {
                break;
            }
        }
    }
    let demand = Demand::Domain(authority.roots(), names(RELAY));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let connected = Connector::new(None).connect(stream.into_inner(), RELAY, &demand, deadline).await;
    let (_, proof) = connected.map_err(|unmet| unmet.to_string())?;
    let Proof::Named { certificate, .. } = proof else { return Err(format!("{proof}")) };
    let number = certificate.strip_prefix("number-").and_then(|rest| rest.split('.').next()?.parse().ok());
    number.ok_or(certificate)
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A relay in this process, so that reloads follow one another faster than files are watched.
async fn start(scratch: &Scratch, text: &str) -> Running {
    let path = scratch.write("causeway.toml", text);
    let config = config::parse(text, &path).unwrap_or_else(|problems| panic!("{problems}"));
    let listeners = bind_all(&config).unwrap();
    Running::start_with(config, text.to_owned(), listeners, Tracker::none()).await.unwrap()
}

/// F-058: handshakes while the pair is renewed again and again, its two files in either order, and the connector itself
/// is renamed: each of 1,000 gets a complete pair, and never an older one than was in force when it began.
#[test]
fn f058_a_thousand_handshakes_under_reload() {
    const HANDSHAKES: usize = 1000;
    let scratch = Scratch::new();
    let authority = Arc::new(scratch.authority());
    let (chain, key) = numbered(&authority, 0);
    scratch.write("relay.crt", chain);
    scratch.write("relay.key", key);
    let text = config("127.0.0.1:9".parse().unwrap());
    runtime().block_on(async {
        let mut daemon = start(&scratch, &text).await;
        let address = daemon.addresses()[0].1;
        let in_force = Arc::new(AtomicUsize::new(0));
        let done = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..8)
            .map(|_| {
                let (authority, in_force, done) = (Arc::clone(&authority), Arc::clone(&in_force), Arc::clone(&done));
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    while done.fetch_add(1, Ordering::Relaxed) < HANDSHAKES {
                        let least = in_force.load(Ordering::Acquire);
                        let number = number_shown(address, &authority).await.unwrap();
                        assert!(number >= least, "number {number} was shown, and {least} was in force before");
                        seen.push(number);
                    }
                    seen
                })
            })
            .collect();
        let mut number = 0;
        while done.load(Ordering::Relaxed) < HANDSHAKES {
            number += 1;
            let (chain, key) = numbered(&authority, number);
            let files = [("relay.crt", chain), ("relay.key", key)];
            let order = if number % 2 == 0 { [0, 1] } else { [1, 0] };
            for (step, file) in order.into_iter().enumerate() {
                let (name, content) = &files[file];
                let fresh = scratch.write(&format!("fresh-{name}"), content);
                std::fs::rename(fresh, scratch.file(name)).unwrap();
                assert!(daemon.reread(), "between the two files the old pair stays, and no fault is made of it");
                if step == 1 {
                    in_force.store(number, Ordering::Release);
                }
                tokio::task::yield_now().await;
            }
            let name = if number % 2 == 0 { "name = \"in\"" } else { "name = \"renamed\"" };
            std::fs::write(scratch.file("causeway.toml"), text.replace("name = \"in\"", name)).unwrap();
            assert!(daemon.reload());
        }
        let mut seen: Vec<usize> = Vec::new();
        for client in clients {
            seen.extend(tokio::time::timeout(PATIENCE, client).await.expect("it hangs").unwrap());
        }
        assert_eq!(seen.len(), HANDSHAKES);
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() >= 3, "of {number} renewals only {seen:?} were seen");
        daemon.stop(Duration::from_secs(5)).await;
    });
}

/// What the running daemon shows, by the number of the certificate.
struct Shown {
    runtime: Runtime,
    authority: Authority,
}

impl Shown {
    fn now(&self, daemon: &Daemon) -> usize {
        self.runtime.block_on(number_shown(daemon.address(), &self.authority)).unwrap()
    }

    fn wait_for(&self, daemon: &Daemon, number: usize) {
        wait_until(&format!("certificate {number} is shown"), PATIENCE, || self.now(daemon) == number);
    }
}

fn replace(scratch: &Scratch, name: &str, content: impl AsRef<[u8]>) {
    let fresh = scratch.write(&format!("fresh-{name}"), content);
    std::fs::rename(fresh, scratch.file(name)).unwrap();
}

/// S-067: renewed in any order, by rename; between the two files the old pair serves, and the log says so once. A faulty
/// pair never serves. Sessions that stand open are not touched.
#[test]
fn s067_a_renewal_in_any_order_and_every_fault() {
    let scratch = Scratch::new();
    let shown = Shown { runtime: runtime(), authority: scratch.authority() };
    let sink = Sink::with(cloud(&shown.authority));
    let (chain, key) = numbered(&shown.authority, 1);
    scratch.write("relay.crt", &chain);
    scratch.write("relay.key", &key);
    let daemon = Daemon::spawn(scratch.path(), &config(sink.address));
    let mut open = Client::hello(daemon.address());
    assert_eq!(shown.now(&daemon), 1);

    let mismatch = "the key does not belong to the first certificate";
    let mut told = 0;
    for (number, first, second) in [(2, "relay.crt", "relay.key"), (3, "relay.key", "relay.crt")] {
        let (chain, key) = numbered(&shown.authority, number);
        let content = |name| if name == "relay.crt" { &chain } else { &key };
        replace(&scratch, first, content(first));
        told += 1;
        wait_until("the mismatch is told", PATIENCE, || daemon.times_logged(mismatch) == told);
        assert_eq!(shown.now(&daemon), number - 1, "{first} came first: the old pair serves");
        // Something else changes meanwhile, and makes no second line of it.
        replace(&scratch, "ca.pem", shown.authority.pem());
        wait_until("that was seen", PATIENCE, || daemon.times_logged("ca.pem") >= told);
        replace(&scratch, second, content(second));
        shown.wait_for(&daemon, number);
        daemon.logs_times(mismatch, told);
    }

    let (chain, key) = numbered(&shown.authority, 4);
    let (expired, expired_key) = shown.authority.issue_as(&Template::new(&["number-5.contoso.com", RELAY]).expired());
    for (what, chain, key, word) in [
        ("half written", &chain[..chain.len() / 2], &key[..], "relay.crt"),
        ("half a key", &chain[..], &key[..key.len() / 2], "relay.key"),
        ("empty", "", "", "there is no certificate in it"),
        ("expired", &expired, &expired_key, "was valid until"),
    ] {
        let before = daemon.times_logged("what is in use stays");
        replace(&scratch, "relay.key", key);
        replace(&scratch, "relay.crt", chain);
        wait_until(&format!("{what} is told"), PATIENCE, || daemon.times_logged("what is in use stays") > before);
        assert!(daemon.has_logged(word), "{what}: {}", daemon.log_text());
        assert_eq!(shown.now(&daemon), 3, "{what}");
    }
    std::fs::remove_file(scratch.file("relay.crt")).unwrap();
    daemon.wait_for_log("No such file");
    assert_eq!(shown.now(&daemon), 3, "removed");
    let faulty = daemon.times_logged("the old one stays");
    daemon.hang_up();
    wait_until("SIGHUP is refused", PATIENCE, || daemon.times_logged("the old one stays") > faulty);
    assert_eq!(shown.now(&daemon), 3, "SIGHUP with a faulty pair");

    replace(&scratch, "relay.crt", &chain);
    replace(&scratch, "relay.key", &key);
    shown.wait_for(&daemon, 4);
    // The client of the very beginning was not disturbed by any of it.
    let reply = open.deliver("erin@fabrikam.com", &["julie@contoso.com"], MESSAGE).unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    sink.wait_for(1);
}

/// certbot's folder: `live/` holds links into `archive/`, which are flipped one after the other.
#[test]
fn s067_a_flipped_link_is_a_renewal() {
    let scratch = Scratch::new();
    let shown = Shown { runtime: runtime(), authority: scratch.authority() };
    for folder in ["archive", "live"] {
        std::fs::create_dir(scratch.file(folder)).unwrap();
    }
    let keep = |number: usize| {
        let (chain, key) = numbered(&shown.authority, number);
        scratch.write(&format!("archive/fullchain{number}.pem"), chain);
        let key = scratch.write(&format!("archive/privkey{number}.pem"), key);
        std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let link = |name: &str, number: usize| {
        let fresh = scratch.file("live/fresh");
        symlink(format!("../archive/{name}{number}.pem"), &fresh).unwrap();
        std::fs::rename(fresh, scratch.file(&format!("live/{name}.pem"))).unwrap();
    };
    (1..=2).for_each(keep);
    link("fullchain", 1);
    link("privkey", 1);
    let text = config("127.0.0.1:9".parse().unwrap())
        .replace("relay.crt", "live/fullchain.pem")
        .replace("relay.key", "live/privkey.pem");
    let daemon = Daemon::spawn(scratch.path(), &text);
    assert_eq!(shown.now(&daemon), 1);
    link("privkey", 2);
    link("fullchain", 2);
    shown.wait_for(&daemon, 2);
}

/// S-067: the log warns of what ends soon, trust anchors too, of chains that are not whole; once, and again for the next.
#[test]
fn s067_the_log_warns_of_certificates() {
    let scratch = Scratch::new();
    let authority = scratch.authority();
    let days = |days: i32| Timestamp::now() + SignedDuration::from_hours(24) * days;
    let soon = |until: i32| Template { not_after: days(until), ..Template::new(&[RELAY]) };
    let (chain, key) = authority.issue_as(&soon(20));
    scratch.write("relay.crt", chain);
    scratch.write("relay.key", key);
    let daemon = Daemon::spawn(scratch.path(), &config("127.0.0.1:9".parse().unwrap()));
    daemon.wait_for_log("relay.crt ends in 19 days");
    let (chain, key) = authority.intermediate("Middle").issue_as(&soon(5).without_chain());
    scratch.write("relay.crt", chain);
    scratch.write("relay.key", key);
    daemon.wait_for_log("relay.crt ends in 4 days");
    daemon.wait_for_log("the certificate of the issuer (CN=Middle) is missing from the file");
    daemon.hang_up();
    daemon.wait_for_log("SIGHUP");
    wait_until("it was read again", PATIENCE, || daemon.times_logged("the new configuration is in force") >= 1);
    for said in ["ends in 19 days", "ends in 4 days", "is missing from the file"] {
        daemon.logs_times(said, 1);
    }
}

/// A renewal by which names are lost, or the hostname, is told: once in the log, in `status` as long as it lasts, and what can
/// be seen without the former certificate in `check`.
#[test]
fn a_certificate_for_another_name_is_told() {
    let scratch = Scratch::new();
    let authority = scratch.authority();
    let renew = |names: &[&str]| {
        let (chain, key) = authority.issue(names);
        replace(&scratch, "relay.key", key);
        replace(&scratch, "relay.crt", chain);
    };
    let (chain, key) = authority.issue(&[RELAY, "smtp.contoso.com"]);
    scratch.write("relay.crt", chain);
    scratch.write("relay.key", key);
    let text = config("127.0.0.1:9".parse().unwrap());
    let daemon = Daemon::spawn(scratch.path(), &text);
    let check = || said(&run(causeway().arg("-c").arg(scratch.file("causeway.toml")).arg("check"), PATIENCE));
    let other = "no receive_connector has one for the hostname mail.contoso.com";
    assert!(!check().contains(other), "{}", check());

    renew(&["mail.fabrikam.com"]);
    let lost = "the certificate no longer carries mail.contoso.com, smtp.contoso.com, as the one before it did";
    daemon.wait_for_log(lost);
    assert!(check().contains(other), "{}", check());
    daemon.hang_up();
    daemon.wait_for_log("the new configuration is in force");
    daemon.wait_for_log(other);
    daemon.logs_times("no longer carries", 1);

    renew(&[RELAY, "mail.fabrikam.com"]);
    daemon.wait_for_log("no longer carries smtp.contoso.com, as");
    renew(&["*.contoso.com", "mail.fabrikam.com"]);
    let taken =
        || daemon.times_logged("relay.crt: looked at again") + daemon.times_logged("relay.key: looked at again");
    wait_until("it is taken", PATIENCE, || taken() >= 3);
    assert!(!check().contains(other), "a wildcard is as good: {}", check());
    daemon.logs_times("no longer carries", 2);
}

fn cloud(authority: &Authority) -> SinkPlan {
    SinkPlan { identity: Some(authority.identity(&[CLOUD])), ..SinkPlan::new() }
}

fn send(daemon: &Daemon) {
    let reply = Client::hello(daemon.address()).deliver("a@b.example", &["julie@contoso.com"], MESSAGE).unwrap();
    assert!(reply.starts_with("250"), "{reply}");
}

/// The first sight of an issuer is told, a change is warned of, and a restart forgets neither.
#[test]
fn a_new_issuer_of_a_domain_connector_is_told() {
    let scratch = Scratch::new();
    let root = scratch.authority();
    let (one, other) = (root.intermediate("One"), root.intermediate("Other"));
    let (chain, key) = numbered(&root, 1);
    scratch.write("relay.crt", chain);
    scratch.write("relay.key", key);
    let sink = Sink::with(cloud(&one));
    let text = config(sink.address).replace("\nca_file", "\nmax_messages_per_connection = 1\nca_file");
    let mut daemon = Daemon::spawn(scratch.path(), &text);
    for _ in 0..2 {
        send(&daemon);
    }
    sink.wait_for(2);
    daemon.logs_times("first sight of the certificate's issuer", 1);
    sink.replan(cloud(&other));
    send(&daemon);
    daemon.wait_for_log("a new issuer");
    let log = daemon.log_text();
    let line = log.lines().find(|line| line.contains("a new issuer")).unwrap();
    for part in ["WARN", "to-cloud", "CN=One", "CN=Other", CLOUD] {
        assert!(line.contains(part), "{part}: {line}");
    }
    wait_until("both are kept", PATIENCE, || {
        std::fs::read_to_string(scratch.file("spool/issuers")).is_ok_and(|text| text.contains("CN=Other"))
    });
    assert_eq!(daemon.terminate().code(), Some(0));
    let daemon = Daemon::spawn(scratch.path(), &text);
    send(&daemon);
    daemon.wait_for_log("was seen in an earlier run");
    assert!(!daemon.has_logged("a new issuer") && !daemon.has_logged("first sight"), "{}", daemon.log_text());
}

/// Somebody between the relay and its hop.
struct Between {
    address: SocketAddr,
    /// How it treats STARTTLS from now on.
    act: Arc<Mutex<Act>>,
    /// What the relay said while it was in the clear.
    heard: Arc<Mutex<Vec<u8>>>,
    visits: Arc<AtomicUsize>,
    _runtime: Runtime,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    /// Passes everything on.
    Honest,
    /// Takes STARTTLS out of the reply to EHLO.
    Strip,
    /// Makes `XXXXXXXX` of it, as some firewalls do.
    Mangle,
    /// Answers STARTTLS itself.
    Answer(&'static str),
}

impl Between {
    fn start(hop: SocketAddr, act: Act) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let between = Self {
            address: listener.local_addr().unwrap(),
            act: Arc::new(Mutex::new(act)),
            heard: Arc::default(),
            visits: Arc::default(),
            _runtime: runtime,
        };
        let (act, heard, visits) = (Arc::clone(&between.act), Arc::clone(&between.heard), Arc::clone(&between.visits));
        between._runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                visits.fetch_add(1, Ordering::Relaxed);
                let (act, heard) = (*act.lock().unwrap(), Arc::clone(&heard));
                tokio::spawn(async move {
                    let _ = Self::pass(client, hop, act, heard).await;
                });
            }
        });
        between
    }

    async fn pass(client: TcpStream, hop: SocketAddr, act: Act, heard: Arc<Mutex<Vec<u8>>>) -> std::io::Result<()> {
        let server = TcpStream::connect(hop).await?;
        let (from_client, mut to_client) = client.into_split();
        let (from_server, mut to_server) = server.into_split();
        let (mut from_client, mut from_server) = (BufReader::new(from_client), BufReader::new(from_server));
        // Line by line until STARTTLS is through; then whatever it is.
        let mut line = Vec::new();
        loop {
            // A reply, all lines of it.
            loop {
                line.clear();
                if from_server.read_until(b'\n', &mut line).await? == 0 {
                    return Ok(());
                }
                let text = String::from_utf8_lossy(&line).into_owned();
                let last = line.get(3) == Some(&b' ');
                let passed = match act {
                    Act::Strip if text.contains("STARTTLS") => {
                        if last {
                            "250 HELP\r\n".to_owned()
                        } else {
                            String::new()
                        }
                    }
                    Act::Mangle => text.replace("STARTTLS", "XXXXXXXX"),
                    _ => text,
                };
                to_client.write_all(passed.as_bytes()).await?;
                if last {
                    break;
                }
            }
            line.clear();
            if from_client.read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
            heard.lock().unwrap().extend_from_slice(&line);
            if line.starts_with(b"STARTTLS") {
                if let Act::Answer(answer) = act {
                    to_client.write_all(answer.as_bytes()).await?;
                    if answer.starts_with('2') {
                        // It goes on to the handshake, and meets no TLS.
                        let _ = from_client.read(&mut [0; 1024]).await?;
                        return to_client.write_all(b"500 oops\r\n").await;
                    }
                    let mut rest = Vec::new();
                    let _ = from_client.read_to_end(&mut rest).await;
                    heard.lock().unwrap().extend_from_slice(&rest);
                    return Ok(());
                }
                to_server.write_all(&line).await?;
                break;
            }
            to_server.write_all(&line).await?;
        }
        let up = async { tokio::io::copy(&mut from_client, &mut to_server).await };
        let down = async { tokio::io::copy(&mut from_server, &mut to_client).await };
        tokio::select! { _ = up => {} _ = down => {} }
        Ok(())
    }
}

/// S-032, S-033, F-039: whoever takes TLS away gets nothing: no MAIL in the clear, however often it is tried. The copy
/// waits with a 4.7.x that names host, demand and what was seen, and goes as soon as nobody stands between.
#[test]
fn s032_s033_f039_tls_taken_away_is_waited_out() {
    let cases = [
        (Act::Strip, "the server does not offer STARTTLS"),
        (Act::Mangle, "the server does not offer STARTTLS"),
        (Act::Answer("454 4.7.0 TLS not available\r\n"), "the server refused STARTTLS: 454 4.7.0"),
        (Act::Answer("502 5.5.1 what?\r\n"), "the server refused STARTTLS: 502 5.5.1"),
        (Act::Answer("220 2.0.0 go ahead\r\n"), "the TLS handshake failed"),
    ];
    // Each waits out its own retries.
    std::thread::scope(|scope| {
        for (act, seen) in cases {
            scope.spawn(move || taken_away(act, seen));
        }
    });
}

fn taken_away(act: Act, seen: &str) {
    let scratch = Scratch::new();
    let authority = scratch.authority();
    let (chain, key) = numbered(&authority, 1);
    scratch.write("relay.crt", chain);
    scratch.write("relay.key", key);
    let sink = Sink::with(cloud(&authority));
    let between = Between::start(sink.address, act);
    let mut daemon = Daemon::spawn(scratch.path(), &config(between.address));
    send(&daemon);
    // The first attempt failed, and the next ones do not conclude from it that TLS is not to be had.
    wait_until(&format!("{act:?}: three attempts"), PATIENCE, || between.visits.load(Ordering::Relaxed) >= 3);
    daemon.wait_for_log("deferred: ");
    let log = daemon.log_text();
    let line = log.lines().find(|line| line.contains("deferred: ")).unwrap();
    let address = format!("[{}]:{}", between.address.ip(), between.address.port());
    let demand = format!("demanded TLS and a trusted certificate for {CLOUD}, but");
    for part in [address.as_str(), demand.as_str(), seen] {
        assert!(line.contains(part), "{act:?}: {part}: {line}");
    }
    assert_eq!(sink.count(), 0, "{act:?}");
    *between.act.lock().unwrap() = Act::Honest;
    let arrival = sink.wait_for(1).remove(0);
    assert!(arrival.tls.is_some(), "{act:?}");
    let heard = String::from_utf8_lossy(&between.heard.lock().unwrap()).to_ascii_uppercase();
    for word in ["MAIL FROM", "RCPT TO", "DATA", "JULIE", "HELLO\r\n"] {
        assert!(!heard.contains(word), "{act:?}: in the clear: {heard}");
    }
    assert_eq!(daemon.terminate().code(), Some(0));
    let events = events(&scratch.file("tracking"));
    let deferred = events.iter().find(|event| event["event"] == "DEFER").unwrap_or_else(|| panic!("{events:?}"));
    assert!(deferred["status"].as_str().unwrap().starts_with("4.7."), "{act:?}: {deferred}");
    assert!(!events.iter().any(|event| event["event"] == "FAIL"), "{act:?}");
}

fn events(folder: &Path) -> Vec<serde_json::Value> {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files
        .flat_map(|file| std::fs::read_to_string(file).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .map(|line| serde_json::from_str(&line).unwrap())
        .collect()
}

/// F-039: expired overnight, and a new one in the morning: what came meanwhile goes by itself.
#[test]
fn f039_an_expired_certificate_of_the_other_side() {
    let scratch = Scratch::new();
    let authority = scratch.authority();
    let (chain, key) = numbered(&authority, 1);
    scratch.write("relay.crt", chain);
    scratch.write("relay.key", key);
    let expired = authority.identity_as(&Template::new(&[CLOUD]).expired());
    let sink = Sink::with(SinkPlan { identity: Some(expired), ..SinkPlan::new() });
    let daemon = Daemon::spawn(scratch.path(), &config(sink.address));
    send(&daemon);
    daemon.wait_for_log("deferred: ");
    daemon.wait_for_log("it was valid until");
    daemon.wait_for_log("none of the hosts takes mail now, it waits: ");
    assert_eq!(sink.count(), 0);
    sink.replan(cloud(&authority));
    assert!(sink.wait_for(1).remove(0).tls.is_some());
    daemon.wait_for_log("the hosts take mail again");
    daemon.logs_times("none of the hosts takes mail now", 1);
}
