//! A deep queue, made and measured: a spool with any number of deferred messages, the real daemon on it, and what an
//! observer from outside sees. `benches/million.rs` asks for a million, `tests/deep_queue.rs` for few enough to be quick.
//!
//! The messages are put and deferred through the spool itself, not by SMTP. They wait for three connectors and a
//! thousand next hops: one third for the smart host of `to-cloud`, the rest for mail exchangers, each an address of its
//! own in 127.0.0.0/8. All of them are one sink, which is reached once the configuration names its port.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use causeway::config::ConnectorName;
use causeway::message::{Address, BodyType, Domain, Envelope, Notify, OrganizationHeaders, Recipient};
use causeway::route::{CopyRecipient, Hop, HopCopy};
use causeway::spool::{Deferral, NewMessage, Settings, Spool};
use jiff::{SignedDuration, Timestamp};
use socket2::{Socket, Type};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::{Client, Daemon, Scratch, relay};

/// Next hops behind the two connectors that deliver by mail exchanger.
const EXCHANGERS: u32 = 999;

/// So many are put at the same time: the spool's sync is shared by them all.
const AT_ONCE: u32 = 1000;

/// Nobody listens there.
const NOBODY: u16 = 1;

/// What one run showed.
#[derive(Debug, Clone)]
pub struct Figures {
    pub messages: u32,
    pub filled: Duration,
    /// From the start of the process.
    pub first_220: Duration,
    /// The same, to the log line that says that all is indexed.
    pub indexed: Duration,
    /// The daemon's CPU time until then.
    pub index_cpu: Duration,
    /// Resident, in KiB: when all is indexed, and the most it ever was until then.
    pub resident: u64,
    pub peak: u64,
    /// CPU time by time, while nothing is due.
    pub idle_cpu: f64,
    /// Messages a second that come in and go out again past the queue; without one, and with it.
    pub rate_empty: f64,
    pub rate_deep: f64,
    /// After a kill -9.
    pub restart_220: Duration,
    pub restart_indexed: Duration,
    /// From the reload that brings the hops back: the first arrival, and the last.
    pub first_back: Duration,
    pub drained: Duration,
    /// The daemon's CPU time for that.
    pub drain_cpu: Duration,
    /// The most that was resident in the whole of it, and what is left in the end, in KiB.
    pub peak_drain: u64,
    pub resident_end: u64,
}

impl Figures {
    pub fn drain_rate(&self) -> f64 {
        f64::from(self.messages) / self.drained.as_secs_f64()
    }
}

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Deep {
    pub messages: u32,
    /// How long the daemon is left alone to see what it does by itself.
    pub idle: Duration,
    /// How long new mail is sent past the queue.
    pub load: Duration,
    /// How long the drain may take.
    pub patience: Duration,
}

impl Deep {
    /// Messages a second in the best of three runs: what else the machine does is in the others.
    fn best_rate(&self, runtime: &Runtime, address: SocketAddr, sink: &DeepSink) -> f64 {
        (0..3).map(|_| load(runtime, address, self.load / 3, sink)).fold(0.0, f64::max)
    }

    /// Does it all, below the folder of temporary files. Says on the way what it is at.
    pub fn measure(&self) -> Figures {
        let say = |what: &str| eprintln!("{:>9} messages: {what}", self.messages);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let sink = DeepSink::start(&runtime, self.messages);
        let configuration = |port: u16| configuration(sink.address.port(), port);

        let empty = Scratch::new();
        let mut daemon = Daemon::spawn(empty.path(), &configuration(NOBODY));
        let rate_empty = self.best_rate(&runtime, daemon.address(), &sink);
        assert!(daemon.terminate().success());
        say(&format!("{rate_empty:.0}/s without a queue"));

        let scratch = Scratch::new();
        let start = Instant::now();
        fill(&runtime, &scratch.file("spool"), self.messages);
        let filled = start.elapsed();
        say(&format!("put and deferred in {filled:.1?}"));

        let (mut daemon, first_220, indexed) = self.start(scratch.path(), &configuration(NOBODY));
        let index_cpu = cpu(daemon.pid());
        let (resident, peak) = (status(daemon.pid(), "VmRSS:"), status(daemon.pid(), "VmHWM:"));
        say(&format!("220 after {first_220:.2?}, indexed after {indexed:.2?}, {resident} KiB"));
        let idle_cpu = {
            let (start, before) = (Instant::now(), cpu(daemon.pid()));
            std::thread::sleep(self.idle);
            (cpu(daemon.pid()) - before).as_secs_f64() / start.elapsed().as_secs_f64()
        };
        let rate_deep = self.best_rate(&runtime, daemon.address(), &sink);
        say(&format!("{:.2} % CPU, {rate_deep:.0}/s past the queue", idle_cpu * 100.0));
        daemon.kill9();
        drop(daemon);

        let (mut daemon, restart_220, restart_indexed) = self.start(scratch.path(), &configuration(NOBODY));
        say(&format!("again: 220 after {restart_220:.2?}, indexed after {restart_indexed:.2?}"));
        assert_eq!(sink.arrived(), 0, "nothing was due yet");
        std::fs::write(scratch.file("causeway.toml"), configuration(sink.address.port())).unwrap();
        let before = cpu(daemon.pid());
        let start = Instant::now();
        daemon.hang_up();
        let mut first_back = None;
        let mut told = Instant::now();
        while sink.arrived() < self.messages as usize {
            if first_back.is_none() && sink.arrived() > 0 {
                first_back = Some(start.elapsed());
            }
            if told.elapsed() > Duration::from_secs(30) {
                told = Instant::now();
                say(&format!("{} have arrived", sink.arrived()));
            }
            assert!(start.elapsed() < self.patience, "{} of {} have arrived", sink.arrived(), self.messages);
            assert!(daemon.is_running(), "the daemon ended:\n{}", daemon.log_text());
            std::thread::sleep(Duration::from_millis(2));
        }
        let drained = start.elapsed();
        let drain_cpu = cpu(daemon.pid()) - before;
        let first_back = first_back.unwrap_or(drained);
        let (resident_end, peak_drain) = (status(daemon.pid(), "VmRSS:"), status(daemon.pid(), "VmHWM:"));
        say(&format!("drained in {drained:.1?}, {resident_end} KiB are left"));
        // What it still had to note is noted, and nothing is left to be sent a second time.
        assert!(daemon.terminate().success());
        assert!(daemon.has_logged("\"waiting\":0"), "something is left:\n{}", daemon.log_text());
        sink.judge();
        Figures {
            messages: self.messages,
            filled,
            first_220,
            indexed,
            index_cpu,
            resident,
            peak,
            idle_cpu,
            rate_empty,
            rate_deep,
            restart_220,
            restart_indexed,
            first_back,
            drained,
            drain_cpu,
            peak_drain,
            resident_end,
        }
    }

    fn start(&self, folder: &Path, configuration: &str) -> (Daemon, Duration, Duration) {
        let start = Instant::now();
        let daemon = Daemon::spawn(folder, configuration);
        drop(Client::connect(daemon.address()));
        let first_220 = start.elapsed();
        daemon.wait_for_log("messages of an earlier run wait in the spool");
        let indexed = start.elapsed();
        let log = daemon.log_text();
        let found = log.split("\"messages\":").nth(1).and_then(|rest| rest.split(&[',', '}'][..]).next());
        // New mail of which the last run did not note any more that it was delivered may be there too.
        let found: u32 = found.and_then(|number| number.parse().ok()).unwrap_or(0);
        assert!((self.messages..self.messages + 1000).contains(&found), "not all of them:\n{log}");
        (daemon, first_220, indexed)
    }
}

/// The deferred mail's connectors lead to `port`, new mail to the sink.
fn configuration(sink: u16, port: u16) -> String {
    relay(&format!(
        r#"shutdown_grace = "20s"

[spool]
path = "spool"
min_free_space = "1MiB"

[dns]
private_targets = ["127.0.0.0/8"]

[[receive_connector]]
name = "in"
listen = ["127.0.0.1:0"]
origin = "internet"
tls = "off"

[[send_connector]]
name = "new-mail"
address_spaces = ["*"]
smart_hosts = ["127.0.0.1:{sink}"]
tls = "off"

[[send_connector]]
name = "to-cloud"
address_spaces = ["cloud.example"]
smart_hosts = ["127.0.0.1:{port}"]
tls = "off"

[[send_connector]]
name = "to-partners"
address_spaces = ["partners.example"]
port = {port}
max_connections = 2
tls = "off"

[[send_connector]]
name = "to-internet"
address_spaces = ["*.example"]
port = {port}
max_connections = 2
tls = "off"
"#
    ))
}

/// The hop for which message `number` waits.
fn hop(number: u32) -> (&'static str, Hop) {
    let exchanger = number / 3 % EXCHANGERS;
    let literal = || Hop::Mx(Domain::parse(&format!("[127.9.{}.{}]", exchanger / 250, exchanger % 250 + 1)).unwrap());
    match number % 3 {
        0 => ("to-cloud", Hop::SmartHosts),
        _ if exchanger < EXCHANGERS / 2 => ("to-partners", literal()),
        _ => ("to-internet", literal()),
    }
}

fn content(number: u32) -> Bytes {
    let mut content = format!(
        "From: anna@contoso.com\r\nSubject: one of many\r\nMessage-ID: <{number}@deep.contoso.com>\r\nX-Number: {number}\r\n\r\n"
    );
    while content.len() < 1024 {
        content.push_str("It waits in the queue until its next hop is back, as do all the others.\r\n");
    }
    content.into()
}

fn fill(runtime: &Runtime, path: &Path, messages: u32) {
    let (spool, recovery) = Spool::open(Settings { path: path.to_owned(), min_free_space: 0 }).unwrap();
    recovery.run();
    let now = Timestamp::now();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..AT_ONCE)
            .map(|task| {
                let spool = spool.clone();
                tokio::spawn(async move {
                    for number in (task..messages).step_by(AT_ONCE as usize) {
                        put(&spool, number, now).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        spool.flush().await;
        assert_eq!(spool.waiting(), messages as usize);
        spool.close().await;
    });
}

async fn put(spool: &Spool, number: u32, now: Timestamp) {
    let address = |text: &str| Address::parse(text).unwrap();
    let to = address(&format!("m{number}@deep.example"));
    let recipient = Recipient { address: to.clone(), notify: Notify::Unsaid, orcpt: None };
    let (via, hop) = hop(number);
    let id = spool.next_id();
    let mut draft = spool.draft();
    draft.push(content(number)).await.unwrap();
    let message = NewMessage {
        id,
        accepted: now,
        envelope: Envelope {
            sender: Some(address("anna@contoso.com")),
            recipients: Vec::new(),
            ret: None,
            envid: None,
            body: BodyType::SevenBit,
            smtputf8: false,
            requiretls: false,
        },
        connector: "in".into(),
        message_id: Some(format!("<{number}@deep.contoso.com>").into()),
        prefix: Bytes::from_static(
            b"Received: from client.example by mail.contoso.com; Sat, 21 Nov 2026 12:00:00 +0000\r\n",
        ),
        organization: OrganizationHeaders::None,
        content: draft,
        copies: vec![HopCopy {
            via: ConnectorName(via.into()),
            hop,
            recipients: vec![CopyRecipient { asked: to, recipient }],
        }],
        settles: Vec::new(),
    };
    let receipt = spool.put(message).await.unwrap();
    drop(receipt);
    // One to twenty hours from now, in no order.
    let seconds = 3600 + i64::from(number.wrapping_mul(2_654_435_761) % (19 * 3600));
    let until = now + SignedDuration::from_secs(seconds);
    spool.defer(Deferral { id, copy: 0, until, attempts: 3, warned: false, held: false, panics: 0 });
}

/// A line of /proc/PID/status, in KiB.
pub fn status(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// CPU time, user and system.
pub fn cpu(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Behind the name, which may have blanks in it, stand the fields from the third on.
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // A hundred to the second, whatever the kernel's own clock does: proc(5), USER_HZ.
    Duration::from_millis(ticks * 10)
}

/// Sends new mail for so long by 20 connections; gives messages a second, from the first MAIL to the last arrival.
fn load(runtime: &Runtime, address: SocketAddr, time: Duration, sink: &DeepSink) -> f64 {
    let before = sink.fresh();
    let start = Instant::now();
    let sent: usize = runtime.block_on(async {
        let clients: Vec<_> = (0..20).map(|_| tokio::spawn(send(address, start + time))).collect();
        let mut sent = 0;
        for client in clients {
            sent += client.await.unwrap();
        }
        sent
    });
    super::wait_until("new mail arrives past the queue", super::PATIENCE, || sink.fresh() - before >= sent);
    sent as f64 / start.elapsed().as_secs_f64()
}

async fn send(address: SocketAddr, until: Instant) -> usize {
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    stream.get_mut().set_nodelay(true).unwrap();
    expect(&mut stream, "220").await;
    stream.get_mut().write_all(b"EHLO client.example\r\n").await.unwrap();
    expect(&mut stream, "250").await;
    let mut text = Vec::from(&content(0)[..]);
    text.extend_from_slice(b".\r\n");
    let mut sent = 0;
    while Instant::now() < until {
        let envelope = b"MAIL FROM:<erin@fabrikam.com>\r\nRCPT TO:<julie@contoso.com>\r\nDATA\r\n";
        stream.get_mut().write_all(envelope).await.unwrap();
        for code in ["250", "250", "354"] {
            expect(&mut stream, code).await;
        }
        stream.get_mut().write_all(&text).await.unwrap();
        expect(&mut stream, "250").await;
        sent += 1;
    }
    sent
}

async fn expect(stream: &mut BufReader<TcpStream>, code: &str) {
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert!(line.starts_with(code), "{line:?} instead of {code}");
        if line.as_bytes()[3] == b' ' {
            return;
        }
    }
}

/// Takes everything, at every address of loopback, and knows which message came how often.
pub struct DeepSink {
    pub address: SocketAddr,
    tally: Arc<Tally>,
}

struct Tally {
    /// How often each message came.
    times: Vec<AtomicU8>,
    arrived: AtomicUsize,
    fresh: AtomicUsize,
}

impl DeepSink {
    pub fn start(runtime: &Runtime, messages: u32) -> Self {
        let tally = Arc::new(Tally {
            times: (0..messages).map(|_| AtomicU8::new(0)).collect(),
            arrived: AtomicUsize::new(0),
            fresh: AtomicUsize::new(0),
        });
        // A thousand hops may come at the same moment. Where the kernel has no room for a connection, the client holds it
        // to be open all the same, and waits five minutes for a greeting.
        let socket = Socket::new(socket2::Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into()).unwrap();
        socket.listen(4096).unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(socket.into()).unwrap()
        };
        let address = listener.local_addr().unwrap();
        let with = Arc::clone(&tally);
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let tally = Arc::clone(&with);
                tokio::spawn(async move {
                    // A client that goes is no fault.
                    let _ = tally.session(stream).await;
                });
            }
        });
        Self { address, tally }
    }

    /// Deferred messages that came, second copies not counted.
    pub fn arrived(&self) -> usize {
        self.tally.arrived.load(Ordering::Acquire)
    }

    /// New messages that came.
    pub fn fresh(&self) -> usize {
        self.tally.fresh.load(Ordering::Acquire)
    }

    /// Every message came exactly once.
    fn judge(&self) {
        let wrong: Vec<(usize, u8)> = self
            .tally
            .times
            .iter()
            .map(|times| times.load(Ordering::Acquire))
            .enumerate()
            .filter(|(_, times)| *times != 1)
            .collect();
        let some = &wrong[..wrong.len().min(10)];
        assert!(wrong.is_empty(), "{} messages did not come exactly once, among them {some:?}", wrong.len());
    }
}

impl Tally {
    async fn session(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::with_capacity(4096, stream);
        let (mut out, mut line, mut content, mut to) = (Vec::new(), Vec::new(), Vec::new(), String::new());
        out.extend_from_slice(b"220 sink ESMTP\r\n");
        loop {
            // Answers to pipelined commands travel together.
            if stream.buffer().is_empty() && !out.is_empty() {
                stream.get_mut().write_all(&out).await?;
                out.clear();
            }
            line.clear();
            if stream.read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&line);
            let mut words = text.split_whitespace();
            match words.next().unwrap_or("").to_ascii_uppercase().as_str() {
                "EHLO" => out.extend_from_slice(b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 CHUNKING\r\n"),
                "RCPT" => {
                    to = text.split(['<', '>']).nth(1).unwrap_or("").to_owned();
                    out.extend_from_slice(b"250 2.1.5 ok\r\n");
                }
                "BDAT" => {
                    let length: usize = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
                    content.resize(length, 0);
                    stream.read_exact(&mut content).await?;
                    self.note(&to, &content);
                    out.extend_from_slice(b"250 2.0.0 taken\r\n");
                }
                "QUIT" => return stream.get_mut().write_all(b"221 2.0.0 bye\r\n").await,
                _ => out.extend_from_slice(b"250 2.0.0 ok\r\n"),
            }
        }
    }

    fn note(&self, to: &str, content: &[u8]) {
        let number = to.strip_prefix('m').and_then(|rest| rest.strip_suffix("@deep.example"));
        let Some(number) = number.and_then(|number| number.parse::<usize>().ok()) else {
            self.fresh.fetch_add(1, Ordering::AcqRel);
            return;
        };
        let field = format!("\r\nX-Number: {number}\r\n");
        assert!(memchr::memmem::find(content, field.as_bytes()).is_some(), "{to} got another's message");
        if self.times[number].fetch_add(1, Ordering::AcqRel) == 0 {
            self.arrived.fetch_add(1, Ordering::AcqRel);
        }
    }
}
