//! Too much of everything: connections, slowness, recipients, header, chunks, memory, and too few descriptors. The daemon
//! stays small, serves a healthy client meanwhile, and is as before when it is over.
//!
//! Bounds are for a busy machine without optimization; `CAUSEWAY_OVERLOAD=10` asks for ten times as many of everything
//! (`scripts/overload`).

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use causeway::tls::{Connector, Demand};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::common::deep::status;
use crate::common::{At, Client, Daemon, IN, PATIENCE, Reaction, Scratch, Sink, SinkPlan, out, relay, run, wait_until};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

const MESSAGE: &[u8] = b"From: erin@fabrikam.com\r\nSubject: one\r\n\r\nhello\r\n";

/// A healthy client waits no longer than this for its 250, whatever others do: milliseconds on an idle machine. One that
/// waits for the others would wait until they end.
const SERVED: Duration = Duration::from_secs(20);

/// How many times as much as usual.
fn times() -> usize {
    std::env::var("CAUSEWAY_OVERLOAD").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn config(sink: SocketAddr, more: &str) -> String {
    relay(&format!("shutdown_grace = \"2s\"\n\n{IN}tls = \"off\"\n{more}\n\n{}", out(sink)))
}

/// A daemon in front of a sink.
struct Site {
    daemon: Daemon,
    sink: Sink,
    scratch: Scratch,
    /// Resident before anything came, in KiB.
    before: u64,
}

impl Site {
    fn new(more: &str) -> Self {
        Self::with(more, &[])
    }

    fn with(more: &str, environment: &[(&str, &str)]) -> Self {
        Self::configured(|_, sink| config(sink, more), environment)
    }

    /// As the configuration says that `configure` makes, with files of its own beside it.
    fn configured(configure: impl FnOnce(&Scratch, SocketAddr) -> String, environment: &[(&str, &str)]) -> Self {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        let (scratch, sink) = (Scratch::new(), Sink::start());
        let daemon = Daemon::spawn_with(scratch.path(), &configure(&scratch, sink.address), environment);
        let before = status(daemon.pid(), "VmRSS:");
        Self { daemon, sink, scratch, before }
    }

    fn address(&self) -> SocketAddr {
        self.daemon.address()
    }

    /// Somebody with a plain message has his 250 in time, and it arrives.
    fn serves(&self, whom: IpAddr) {
        let start = Instant::now();
        let mut client = from(whom, self.address());
        assert!(reply(&mut client).starts_with("220 "), "no greeting");
        for (line, code) in [
            ("EHLO healthy.example", "250"),
            ("MAIL FROM:<erin@fabrikam.com>", "250"),
            ("RCPT TO:<julie@contoso.com>", "250"),
            ("DATA", "354"),
            ("From: erin@fabrikam.com\r\n\r\nhealthy\r\n.", "250"),
        ] {
            client.write_all(format!("{line}\r\n").as_bytes()).unwrap();
            let said = reply(&mut client);
            assert!(said.starts_with(code), "{line}: {said}");
        }
        let waited = start.elapsed();
        assert!(waited < SERVED, "a healthy client waited {waited:?}");
    }

    /// No more than so many KiB came on top.
    fn is_small(&self, kib: u64) {
        let grown = status(self.daemon.pid(), "VmHWM:").saturating_sub(self.before);
        eprintln!("{grown} KiB at most on top of {}", self.before);
        assert!(grown < kib, "{grown} KiB came on top of {}", self.before);
    }

    /// Nobody is connected any more, as far as the daemon's descriptors say.
    fn waits_for_quiet(&self, before: usize) {
        wait_until("connections are gone", PATIENCE, || descriptors(self.daemon.pid()) <= before);
    }
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// 127.0.0.number.
fn ip(number: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, number).into()
}

fn from(ip: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(ip, 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Many connections, fifty from each address, greeted and introduced.
fn crowd(count: usize, to: SocketAddr) -> Vec<TcpStream> {
    let mut all: Vec<TcpStream> = (0..count).map(|number| from(ip(10 + (number / 50) as u8), to)).collect();
    for one in &mut all {
        assert!(reply(one).starts_with("220 "));
        one.write_all(b"EHLO crowd.example\r\n").unwrap();
    }
    for one in &mut all {
        assert!(reply(one).starts_with("250"));
    }
    all
}

/// The next reply, all its lines; "" at the end of the stream. Reads an octet at a time: nothing behind it is lost.
fn reply(stream: &mut TcpStream) -> String {
    let (mut said, mut line) = (String::new(), Vec::new());
    let mut octet = [0];
    loop {
        match stream.read(&mut octet) {
            Ok(1) => line.push(octet[0]),
            _ => return said,
        }
        if octet[0] == b'\n' {
            said.push_str(&String::from_utf8_lossy(&line));
            if line.get(3) != Some(&b'-') {
                return said;
            }
            line.clear();
        }
    }
}

/// Whatever comes until the stream ends.
fn rest(stream: &mut TcpStream) -> String {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    String::from_utf8_lossy(&rest).into_owned()
}

/// Says more at once than anybody may answer, and reads at the same time, so that neither side blocks the other.
fn flood(stream: &TcpStream, bytes: &[u8]) -> String {
    let mut reader = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        let said = scope.spawn(move || rest(&mut reader));
        let mut writer = stream;
        // The other side may close before it has read all of it.
        let _ = writer.write_all(bytes).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        said.join().unwrap()
    })
}

/// So many commands, no two for the same recipient.
fn recipients(count: usize) -> String {
    (0..count).map(|number| format!("RCPT TO:<julie{number}@contoso.com>\r\n")).collect()
}

/// S-120.
#[test]
fn connections_beyond_the_limits_hear_421_and_the_others_are_served() {
    let site = Site::new("max_connections = 30\nmax_connections_per_ip = 20");
    let quiet = descriptors(site.daemon.pid());
    let greet = |whom| {
        let mut stream = from(whom, site.address());
        let greeting = reply(&mut stream);
        (stream, greeting)
    };
    let mut held: Vec<_> = (0..20).map(|_| greet(ip(2))).collect();
    assert!(held.iter().all(|(_, greeting)| greeting.starts_with("220 ")));
    assert!(greet(ip(2)).1.starts_with("421 4.7.0 "), "one address has its fill");
    site.serves(ip(3));
    // The place of the one that was served is free again when the daemon has seen it go.
    while held.len() < 30 {
        wait_until("there is a place", PATIENCE, || {
            let (stream, greeting) = greet(ip(3));
            let is_let_in = greeting.starts_with("220 ");
            held.extend(is_let_in.then_some((stream, greeting)));
            is_let_in
        });
    }
    assert!(greet(ip(4)).1.starts_with("421 4.3.2 "), "so has the connector");
    // Those who are in are served all the same.
    let (client, _) = &mut held[0];
    client.write_all(b"EHLO one.example\r\n").unwrap();
    assert!(reply(client).starts_with("250"));
    // A thousand more, which come all at once.
    let crowd: Vec<TcpStream> =
        (0..300 * times()).map(|number| from(ip(5 + (number % 100) as u8), site.address())).collect();
    for mut one in crowd {
        let said = rest(&mut one);
        assert!(said.is_empty() || said.starts_with("421 4.3.2 "), "{said}");
    }
    drop(held);
    site.waits_for_quiet(quiet + 2);
    site.serves(ip(4));
    site.is_small(16 * 1024);
}

/// S-120, S-122: connections that say nothing, or a command that never ends an octet at a time, cost little and end.
#[test]
fn silent_and_slow_connections_cost_little_and_end() {
    let site = Site::new("command_timeout = \"10s\"");
    let quiet = descriptors(site.daemon.pid());
    let count = (1000 * times()).min(4500);
    let mut crowd = crowd(count, site.address());
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        for slow in crowd.iter_mut().step_by(2) {
            let _ = slow.write_all(b"N");
        }
        site.serves(ip(2));
    }
    // 8 KiB each is what an idle connection may cost once the allocator has returned what opening it took.
    site.is_small(12 * count as u64 + 8 * 1024);
    for mut one in crowd {
        let said = rest(&mut one);
        assert!(said.starts_with("421 4.4.2 ") || said.is_empty(), "{said}");
    }
    site.waits_for_quiet(quiet + 2);
    site.serves(ip(2));
}

/// S-122: messages that come an octet at a time. None holds a read buffer for what has not come.
#[test]
fn slow_writers_cost_little_and_end() {
    let site = Site::new("data_timeout = \"10s\"");
    let quiet = descriptors(site.daemon.pid());
    let count = (1000 * times()).min(4500);
    let mut crowd = crowd(count, site.address());
    for slow in &mut crowd {
        slow.write_all(b"MAIL FROM:<erin@fabrikam.com>\r\nRCPT TO:<julie@contoso.com>\r\nDATA\r\nSubject: s").unwrap();
    }
    for slow in &mut crowd {
        let said = [reply(slow), reply(slow), reply(slow)].concat();
        assert!(said.contains("\r\n354 "), "{said}");
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        for slow in &mut crowd {
            let _ = slow.write_all(b"l");
        }
        site.serves(ip(2));
    }
    site.is_small(32 * count as u64 + 8 * 1024);
    // Then nothing at all.
    for mut one in crowd {
        let said = rest(&mut one);
        assert!(said.starts_with("421 4.4.2 ") || said.is_empty(), "{said}");
    }
    site.waits_for_quiet(quiet + 2);
    site.serves(ip(2));
    site.sink.wait_for(1);
    assert!(
        site.sink.arrivals().iter().all(|arrival| arrival.text().contains("healthy")),
        "half a message was sent on"
    );
}

/// S-122: what a client does not read waits in the kernel, not here.
#[test]
fn those_who_never_read_cost_little() {
    let site = Site::new("max_connections_per_ip = 1000");
    let quiet = descriptors(site.daemon.pid());
    let flood = ["MAIL FROM:<erin@fabrikam.com>\r\n", &recipients(20_000)].concat();
    let mut crowd = crowd(100, site.address());
    for deaf in &mut crowd {
        deaf.set_nonblocking(true).unwrap();
    }
    let mut sent = vec![0; crowd.len()];
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        for (deaf, sent) in crowd.iter_mut().zip(&mut sent) {
            let end = (*sent + 16 * 1024).min(flood.len());
            match deaf.write(&flood.as_bytes()[*sent..end]) {
                Ok(written) => *sent += written,
                Err(error) => assert!(matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                )),
            }
        }
        site.serves(ip(2));
    }
    // A thousand recipients each, of about a KiB, and one buffer of replies.
    site.is_small(160 * 1024);
    drop(crowd);
    site.waits_for_quiet(quiet + 2);
    site.serves(ip(2));
}

/// S-123: more recipients than there may be are 452 each, so that an honest client sends the rest later; one that goes on
/// ten times as long is closed.
#[test]
fn a_flood_of_recipients_is_answered_and_then_ended() {
    let site = Site::new("max_recipients = 100");
    let mut client = from(ip(2), site.address());
    let said = reply(&mut client);
    assert!(said.starts_with("220 "));
    let hello = "EHLO flood.example\r\nMAIL FROM:<erin@fabrikam.com>\r\n";
    let flood_of = [hello, &recipients(50_000 * times())].concat();
    let said = flood(&client, flood_of.as_bytes());
    let refused = said.matches("452 4.5.3 ").count();
    assert!((100..=1000).contains(&refused), "{refused} were told to wait");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("421 "), "{last}");
    site.is_small(16 * 1024);
    site.serves(ip(2));
}

/// S-123: headers that are too long, have too many fields or one without an end are refused for good, and cost no more
/// than a message may.
#[test]
fn header_bombs_are_refused() {
    let site = Site::new("max_message_size = \"8MiB\"");
    let long = ["Subject: one", &"\r\n folded".repeat(140_000), "\r\n\r\ntext\r\n"].concat();
    let many = ["From: erin@fabrikam.com\r\n", &"X-One: 1\r\n".repeat(10_001), "\r\ntext\r\n"].concat();
    let endless = ["Subject: ", &"x".repeat(3 << 20), "\r\n\r\ntext\r\n"].concat();
    for (name, bomb) in [("long", long), ("many", many), ("endless", endless)] {
        let mut client = Client::hello(site.address());
        let reply = client.deliver("erin@fabrikam.com", &["julie@contoso.com"], bomb.as_bytes()).unwrap();
        assert!(reply.starts_with('5'), "{name}: {reply}");
    }
    // A command without an end.
    let mut client = from(ip(2), site.address());
    assert!(reply(&mut client).starts_with("220 "));
    let said = flood(&client, &vec![b'x'; 4 << 20]);
    assert!(said.starts_with("500 ") || said.starts_with("421 ") || said.is_empty(), "{said}");
    // Fifty of the first kind at once.
    let bomb = ["Subject: one", &"\r\n folded".repeat(140_000)].concat();
    let mut crowd = crowd(50, site.address());
    for one in &mut crowd {
        one.write_all(b"MAIL FROM:<erin@fabrikam.com>\r\nRCPT TO:<julie@contoso.com>\r\nDATA\r\n").unwrap();
        one.write_all(bomb.as_bytes()).unwrap();
    }
    site.serves(ip(2));
    site.is_small(160 * 1024);
    drop(crowd);
    site.serves(ip(2));
    site.sink.wait_for(2);
    assert_eq!(site.sink.count(), 2);
}

/// C144: a message in chunks of one octet each. What is remembered of a chunk is nothing.
#[test]
fn c144_tiny_chunks_are_one_message() {
    let site = Site::new("");
    let count = 100_000 * times();
    let mut client = from(ip(2), site.address());
    assert!(reply(&mut client).starts_with("220 "));
    let mut chunks =
        "EHLO chunks.example\r\nMAIL FROM:<erin@fabrikam.com>\r\nRCPT TO:<julie@contoso.com>\r\n".to_owned();
    let content = format!("Subject: tiny\r\n\r\n{}", "abcdefgh\r\n".repeat(count / 10));
    for octet in content.chars() {
        chunks.push_str("BDAT 1\r\n");
        chunks.push(octet);
    }
    chunks.push_str("BDAT 0 LAST\r\nQUIT\r\n");
    let said = flood(&client, chunks.as_bytes());
    assert!(said.contains("queued as"), "{}", &said[said.len().saturating_sub(300)..]);
    let arrival = site.sink.wait_for(1).remove(0);
    assert!(arrival.text().ends_with(&content), "it is another message");
    site.is_small(16 * 1024 + 4 * content.len() as u64 / 1024);
}

/// S-121, F-053: the last descriptors are for deliveries; where there are none at all accepting pauses, deliveries wait,
/// nothing is lost, and all goes on by itself.
#[test]
fn s121_out_of_descriptors() {
    let site = Site::new("");
    let pid = site.daemon.pid();
    let quiet = descriptors(pid);
    let limit = |number: usize| {
        let said =
            run(Command::new("prlimit").arg(format!("--pid={pid}")).arg(format!("--nofile={number}:")), PATIENCE);
        assert!(said.status.success(), "{said:?}");
    };
    limit(64);
    // More than there are descriptors for; those that come last are told so.
    let mut crowd: Vec<TcpStream> = (0..100).map(|_| from(ip(2), site.address())).collect();
    let greetings: Vec<String> = crowd.iter_mut().map(reply).collect();
    let let_in = greetings.iter().filter(|greeting| greeting.starts_with("220 ")).count();
    assert!((10..60).contains(&let_in), "{let_in} of 100 were let in by 64 descriptors");
    assert!(greetings.iter().all(|greeting| greeting.starts_with("220 ") || greeting.starts_with("421 4.3.2 ")));
    // Who is in sends mail, and it leaves: a descriptor is there for it.
    let first = &mut crowd[0];
    let transaction = |client: &mut TcpStream| {
        let words = "MAIL FROM:<erin@fabrikam.com>\r\nRCPT TO:<julie@contoso.com>\r\nDATA\r\n";
        client.write_all(words.as_bytes()).unwrap();
        for code in ["250", "250", "354"] {
            let said = reply(client);
            assert!(said.starts_with(code), "{said}");
        }
        client.write_all(&[MESSAGE, b".\r\n"].concat()).unwrap();
        reply(client)
    };
    first.write_all(b"EHLO one.example\r\n").unwrap();
    assert!(reply(first).starts_with("250"));
    assert!(transaction(first).starts_with("250 "));
    site.sink.wait_for(1);
    // The pooled connection is used again otherwise, and the hop is not to be reached any more without a descriptor.
    site.sink
        .replan(SinkPlan::new().reacting(|at| if matches!(at, At::Mail(_)) { Reaction::HangUp } else { Reaction::Go }));
    limit(1);
    for _ in 0..3 {
        assert!(transaction(first).starts_with("250 "), "what is on disk is acknowledged");
    }
    site.daemon.wait_for_log("deferred: this relay has too much to do at once");
    // They wait in the kernel.
    let waiting: Vec<TcpStream> = (0..20).map(|_| from(ip(3), site.address())).collect();
    site.daemon.wait_for_log("no connection can be accepted");
    let cpu = crate::common::deep::cpu(pid);
    let start = Instant::now();
    wait_until("a second has gone by", PATIENCE, || start.elapsed() > Duration::from_secs(1));
    let busy = (crate::common::deep::cpu(pid) - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    assert!(busy < 0.3, "it spins: {busy}");
    assert!(site.daemon.times_logged("no connection can be accepted") <= 5, "{}", site.daemon.log_text());
    assert_eq!(site.sink.count(), 1, "nothing was delivered meanwhile");
    site.sink.replan(SinkPlan::new());
    limit(1024);
    for mut one in waiting {
        assert!(reply(&mut one).starts_with("220 "));
    }
    assert_eq!(site.sink.wait_for(4).len(), 4, "nothing was lost, nothing came twice");
    drop(crowd);
    site.waits_for_quiet(quiet + 4);
    site.serves(ip(2));
    drop(site.scratch);
}

/// F-054: content that is still arriving takes a quarter of the memory there may be. What is long goes to disk earlier,
/// and what is beyond hears 452 and comes again.
#[test]
fn f054_unfinished_messages_stay_within_their_memory() {
    let more = "max_connections_per_ip = 1000";
    let site = Site::with(more, &[("CAUSEWAY_MEMORY_LIMIT", "160MiB")]);
    let quiet = descriptors(site.daemon.pid());
    // 144 MiB in all, where 40 may be held: each is far below the size at which content goes to disk otherwise.
    let mut crowd = crowd(1200, site.address());
    let text = ["Subject: unfinished\r\n\r\n", &"It goes on and on.\r\n".repeat(120 * 1024 / 20)].concat();
    for one in &mut crowd {
        one.write_all(b"MAIL FROM:<erin@fabrikam.com>\r\nRCPT TO:<julie@contoso.com>\r\nDATA\r\n").unwrap();
        one.write_all(text.as_bytes()).unwrap();
    }
    for one in &mut crowd {
        let said = [reply(one), reply(one), reply(one)].concat();
        assert!(said.contains("\r\n354 "), "{said}");
    }
    let files = std::fs::read_dir(site.scratch.file("spool/large")).unwrap().count();
    assert!(files > 100, "{files} of them are on disk");
    for one in &mut crowd {
        one.write_all(b".\r\n").unwrap();
    }
    let mut answers = [0, 0];
    for one in &mut crowd {
        let said = reply(one);
        assert!(said.starts_with("250 ") || said.starts_with("452 4.3.1 "), "{said}");
        answers[usize::from(said.starts_with('4'))] += 1;
    }
    eprintln!("{answers:?} were taken, and told to come again");
    assert!(answers[0] > 100 && answers[1] > 0, "{answers:?}");
    drop(crowd);
    site.waits_for_quiet(quiet + 25);
    assert_eq!(site.sink.wait_for(answers[0]).len(), answers[0]);
    let most = status(site.daemon.pid(), "VmHWM:");
    assert!(most < 160 * 1024, "{most} KiB at most");
    site.serves(ip(2));
}

/// A connection costs 8 KiB, whatever its connectors ask for, and half a command costs no more than none. What the
/// allocator holds free for a while does not count; the test waits until it has returned that.
#[test]
fn idle_connections_cost_8_kib_each() {
    let count = (2000 * times()).min(4500);
    for (what, half_said) in [("after EHLO", ""), ("with half a command", "NO")] {
        let site = Site::configured(
            |scratch, sink| {
                let authority = scratch.authority();
                scratch.issue(&authority, "mail", &["mail.contoso.com"]);
                let ours = "certificate = \"mail.crt\"\nkey = \"mail.key\"\nmax_connections = 5000\n";
                let premises = |name: &str, origin: &str, proves: &str| {
                    let begin = IN.replace("\"in\"", &format!("\"{name}\"")).replace("internet", origin);
                    let asks = "client_ca_file = \"ca.pem\"\ntls = \"require\"\ninternal = true\n";
                    format!("{begin}{ours}{asks}tls_domain = [\"{proves}\"]\n\n")
                };
                let cloud = premises("from-cloud", "cloud", "cloud.contoso.com");
                let on_premises = premises("from-on-premises", "on-premises", "exchange.contoso.com");
                relay(&format!("shutdown_grace = \"2s\"\n\n{IN}{ours}\n{cloud}{on_premises}{}", out(sink)))
            },
            &[],
        );
        site.serves(ip(2));
        let resident = || status(site.daemon.pid(), "RssAnon:");
        let before = resident();
        let mut crowd = crowd(count, site.address());
        for one in &mut crowd {
            one.write_all(half_said.as_bytes()).unwrap();
        }
        site.serves(ip(2));
        let most = before + 8 * count as u64;
        wait_until(&format!("{count} connections {what} take less than {most} KiB"), PATIENCE, || resident() < most);
        let each = resident().saturating_sub(before) as f64 / count as f64;
        eprintln!("{each:.2} KiB for each of {count} connections {what}");
        drop(crowd);
    }
}

/// Strangers who guess passwords, and users who log in, take the memory of two hashes at one time. It is returned, and
/// mail is taken meanwhile.
#[test]
fn logins_take_the_memory_of_two_hashes_and_return_it() {
    let site = Site::configured(
        |scratch, sink| {
            let authority = scratch.authority();
            scratch.issue(&authority, "mail", &["mail.contoso.com"]);
            scratch.write("users", format!("tim:{}\n", causeway::directory::users::hash("tanstaaf").unwrap()));
            let clients =
                IN.replace("127.0.0.1", "127.0.0.2").replace("\"in\"", "\"clients\"").replace("internet", "client");
            let clients = format!(
                "{clients}tls = \"implicit\"\ncertificate = \"mail.crt\"\nkey = \"mail.key\"\nusers_file = \"users\"\n"
            );
            config(sink, &format!("\n{clients}"))
        },
        &[("CAUSEWAY_MEMORY_LIMIT", "256MiB")],
    );
    let clients = site.daemon.door("127.0.0.2");
    // Where from, the password, how many at one time, and the answer.
    for (addresses, each, password, expected) in [(10, 2, "guess", "535 5.7.8 "), (20, 3, "tanstaaf", "235 ")] {
        std::thread::scope(|scope| {
            let answers = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut all = JoinSet::new();
                    for number in 0..addresses {
                        all.spawn(async move {
                            let mut answers = Vec::new();
                            for _ in 0..each {
                                answers.push(login(ip(10 + number), clients, password).await);
                            }
                            answers
                        });
                    }
                    all.join_all().await.concat()
                })
            });
            while !answers.is_finished() {
                site.serves(ip(3));
            }
            let answers = answers.join().unwrap();
            assert_eq!(answers.len(), usize::from(addresses * each));
            assert!(answers.iter().all(|answer| answer.starts_with(expected)), "{answers:?}");
        });
        site.serves(ip(3));
        // Two hashes of 19 MiB, the sessions in TLS, and the mail beside them.
        site.is_small((2 * 19 + 20) * 1024);
    }
    let most = site.before + 16 * 1024;
    wait_until("the memory of the hashes is returned", PATIENCE, || status(site.daemon.pid(), "VmRSS:") < most);
    assert_eq!(site.daemon.times_logged("memory runs out"), 0, "{}", site.daemon.log_text());
}

/// What the server says to this login of tim.
async fn login(whom: IpAddr, to: SocketAddr, password: &str) -> String {
    let stream = from(whom, to);
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let connected = Connector::new(None).connect(stream, "mail.contoso.com", &Demand::Nothing, deadline).await;
    let mut stream = connected.unwrap().0;
    let mut answer = String::new();
    for line in ["", "EHLO client.example\r\n", &format!("AUTH PLAIN {}\r\n", plain(password)), "QUIT\r\n"] {
        stream.write_all(line.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut said = Vec::new();
        let is_whole = |said: &[u8]| {
            let last = said.strip_suffix(b"\r\n").and_then(|lines| lines.rsplit(|octet| *octet == b'\n').next());
            last.is_some_and(|line| line.get(3) == Some(&b' '))
        };
        while !is_whole(&said) {
            let read = tokio::time::timeout_at(deadline, stream.read_buf(&mut said)).await;
            assert!(read.expect("an answer in time").unwrap() > 0, "closed after {line:?}");
        }
        if line.starts_with("AUTH") {
            answer = String::from_utf8(said).unwrap();
        }
    }
    answer
}

/// RFC 4616, in base64.
fn plain(password: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(format!("\0tim\0{password}"))
}

/// F-054: connections fill the memory there may be until new ones are refused. Once they are gone mail is taken again.
#[test]
fn after_many_connections_mail_is_taken_again() {
    let site = Site::with("max_connections = 5000", &[("CAUSEWAY_MEMORY_LIMIT", "12MiB")]);
    site.serves(ip(2));
    let mut held = Vec::new();
    // The daemon looks at its memory once a second, so many more may have come by then.
    wait_until("a new connection is refused", PATIENCE, || {
        let mut one = from(ip(10 + (held.len() / 50) as u8), site.address());
        let greeting = reply(&mut one);
        if greeting.starts_with("421 4.3.2 ") {
            return true;
        }
        assert!(greeting.starts_with("220 "), "{greeting}");
        if held.len() < 4400 {
            one.write_all(b"EHLO crowd.example\r\n").unwrap();
            assert!(reply(&mut one).starts_with("250"));
            held.push(one);
        }
        false
    });
    eprintln!("{} connections took 12 MiB", held.len());
    drop(held);
    wait_until("connections and mail are taken again", PATIENCE, || {
        let mut one = from(ip(2), site.address());
        if !reply(&mut one).starts_with("220 ") {
            return false;
        }
        one.write_all(b"EHLO one.example\r\n").unwrap();
        assert!(reply(&mut one).starts_with("250"));
        one.write_all(b"MAIL FROM:<erin@fabrikam.com>\r\n").unwrap();
        reply(&mut one).starts_with("250 ")
    });
    site.serves(ip(2));
    wait_until("the memory is returned", PATIENCE, || status(site.daemon.pid(), "RssAnon:") < 10 * 1024);
}

/// F-054: where memory has run out already nobody is let in, and the log says why, once.
#[test]
fn f054_without_memory_new_connections_hear_421() {
    let site = Site::with("", &[("CAUSEWAY_MEMORY_LIMIT", "1MiB")]);
    for _ in 0..5 {
        let (_, greeting) = Client::greeted(site.address()).unwrap();
        assert!(greeting.starts_with("421 4.3.2 "), "{greeting}");
    }
    site.daemon.logs_times("memory runs out", 1);
}
