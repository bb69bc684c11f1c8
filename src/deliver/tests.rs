//! Attempts over loopback, against a small server that does what each test wants.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::config::{EightBit, Login, SmartHost, SmartHostAddress, Tags};
use crate::dns::{Absence, Answer, Mx};
use crate::message::{Address, Body, BodyType, Domain, Envelope, MessageId, Notify, OrganizationHeaders};
use crate::route::{CopyRecipient, HopCopy};
use crate::tls::{Acceptor, Authority, Names, Stream, Unmet};

/// How a peer behaves.
#[derive(Clone, Default)]
struct Manner {
    offers: &'static str,
    acceptor: Option<Acceptor>,
    /// STARTTLS is offered, and the handshake is nonsense.
    garbled_tls: bool,
    greeting: Option<&'static str>,
    /// Closes when this connection brings its second MAIL.
    one_message: bool,
    /// BDAT is offered and answered 502.
    no_bdat: bool,
    /// BDAT is offered, and ends the connection.
    closes_at_bdat: bool,
    /// What EHLO is answered with.
    ehlo: Option<&'static str>,
    /// What it calls itself; else `mx.example.net`.
    name: Option<&'static str>,
    /// Closes after the end of data, without an answer.
    mute_at_the_end: bool,
    /// Waits with its reply to the end of data until so many connections are open.
    meeting: usize,
}

/// What a peer has seen.
#[derive(Debug, Default, Clone)]
struct Seen {
    connections: usize,
    open: usize,
    most_open: usize,
    /// Commands, with the number of their connection.
    commands: Vec<(usize, String)>,
    messages: Vec<Vec<u8>>,
}

struct Peer {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    server: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Peer {
    async fn start(manner: Manner) -> Self {
        Self::listen(TcpListener::bind("127.0.0.1:0").await.unwrap(), manner)
    }

    fn listen(listener: TcpListener, manner: Manner) -> Self {
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let server = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                // Dropping the set with the task ends the connections too.
                let mut connections = tokio::task::JoinSet::new();
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    let number = {
                        let mut seen = seen.lock().unwrap();
                        seen.connections += 1;
                        seen.open += 1;
                        seen.most_open = seen.most_open.max(seen.open);
                        seen.connections
                    };
                    let (manner, seen) = (manner.clone(), Arc::clone(&seen));
                    connections.spawn(async move {
                        // A client that goes away ends its connection, and nothing else.
                        let _ = tcp.set_nodelay(true);
                        let _ = converse(Stream::Plain(tcp), &manner, number, &seen).await;
                        seen.lock().unwrap().open -= 1;
                    });
                }
            }
        });
        Self { address, seen, server }
    }

    /// A copy: no guard outlives the expression it stands in.
    fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    fn verbs(&self) -> Vec<String> {
        self.seen().commands.iter().map(|(_, line)| line.split(' ').next().unwrap().to_owned()).collect()
    }
}

async fn converse(stream: Stream, manner: &Manner, number: usize, seen: &Mutex<Seen>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let greeting = manner.greeting.unwrap_or("220 mx.example.net ESMTP");
    stream.write_all(format!("{greeting}\r\n").as_bytes()).await?;
    let mut mails = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let line = line.trim_end();
        seen.lock().unwrap().commands.push((number, line.to_owned()));
        let name = manner.name.unwrap_or("mx.example.net");
        let answer = match line.split(' ').next().unwrap() {
            "EHLO" if manner.ehlo.is_some() => manner.ehlo.unwrap_or_default().to_owned(),
            "HELO" => format!("250 {name}"),
            "EHLO" => {
                let secure = stream.get_ref().is_tls();
                let starttls =
                    if !secure && (manner.acceptor.is_some() || manner.garbled_tls) { "STARTTLS\n" } else { "" };
                let requiretls = if secure { "REQUIRETLS\nAUTH PLAIN LOGIN\n" } else { "" };
                let keywords = format!("{}\n{starttls}{requiretls}", manner.offers);
                let lines = keywords.split('\n').filter(|keyword| !keyword.is_empty());
                let lines: String = lines.map(|keyword| format!("250-{keyword}\r\n")).collect();
                format!("250-{name}\r\n{lines}250 HELP")
            }
            "STARTTLS" => {
                stream.write_all(b"220 go\r\n").await?;
                let tcp = stream.into_inner().into_tcp().unwrap();
                let Some(acceptor) = &manner.acceptor else {
                    let mut tcp = tcp;
                    // Not before the client begins: that would be another fault (S-031).
                    tcp.readable().await?;
                    tcp.write_all(b"250 this is no TLS\r\n").await?;
                    return Ok(());
                };
                let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
                stream = BufReader::new(acceptor.accept(tcp, deadline).await?.stream);
                continue;
            }
            "MAIL" => {
                mails += 1;
                if manner.one_message && mails > 1 {
                    return Ok(());
                }
                "250 2.1.0 ok".to_owned()
            }
            "RCPT" if line.contains("later") => "450 4.2.0 later".to_owned(),
            "RCPT" if line.contains("never") => "550 5.1.1 never".to_owned(),
            "DATA" => {
                stream.write_all(b"354 go\r\n").await?;
                let mut message = Vec::new();
                loop {
                    let mut line = Vec::new();
                    if stream.read_until(b'\n', &mut line).await? == 0 {
                        return Ok(());
                    }
                    if line == b".\r\n" {
                        break;
                    }
                    message.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
                }
                if manner.mute_at_the_end {
                    return Ok(());
                }
                seen.lock().unwrap().messages.push(message);
                "250 2.0.0 taken".to_owned()
            }
            "BDAT" if manner.closes_at_bdat => return Ok(()),
            "BDAT" => {
                let mut message = vec![0; line.split(' ').nth(1).unwrap().parse().unwrap()];
                stream.read_exact(&mut message).await?;
                if manner.mute_at_the_end {
                    return Ok(());
                }
                if manner.no_bdat {
                    "502 5.5.1 what is BDAT?".to_owned()
                } else {
                    seen.lock().unwrap().messages.push(message);
                    "250 2.0.0 taken".to_owned()
                }
            }
            "AUTH" if line == "AUTH PLAIN AHJlbGF5AHNlY3JldA==" => "235 2.7.0 welcome".to_owned(),
            "AUTH" => "535 5.7.8 who?".to_owned(),
            "QUIT" => {
                stream.write_all(b"221 bye\r\n").await?;
                return Ok(());
            }
            _ => "250 2.0.0 ok".to_owned(),
        };
        if manner.meeting > 0 && matches!(line.split(' ').next(), Some("BDAT" | "DATA")) {
            until(|| seen.lock().unwrap().most_open >= manner.meeting).await;
        }
        stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
    }
}

/// Looks again and again; a minute is more than anything here takes.
async fn until(mut done: impl FnMut() -> bool) {
    timeout(Duration::from_secs(60), async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("it happens within a minute");
}

/// DNS as a table of hosts; `d.example` has the MX records.
#[derive(Default)]
struct Table {
    mx: Vec<(u16, &'static str)>,
    hosts: HashMap<&'static str, IpAddr>,
}

impl Resolve for Table {
    async fn mx(&self, _: &Domain) -> Answer<Vec<Mx>> {
        let record = |&(preference, host)| Mx { preference, host: Some(Domain::parse(host).unwrap()) };
        Answer::Found(self.mx.iter().map(record).collect())
    }

    async fn addresses(&self, host: &Domain) -> Answer<Vec<IpAddr>> {
        self.hosts.get(host.as_str()).map_or(Answer::Absent(Absence::NoName), |ip| Answer::Found(vec![*ip]))
    }
}

fn connector(peers: &[SocketAddr]) -> SendConnector {
    let hosts = peers.iter().zip(1u16..).map(|(peer, preference)| SmartHost {
        host: SmartHostAddress::Ip(peer.ip()),
        port: Some(peer.port()),
        preference,
    });
    SendConnector {
        name: ConnectorName(Arc::from("out")),
        serves: Vec::new(),
        hops: Hops::SmartHosts(hosts.collect()),
        port: peers.first().map_or(25, SocketAddr::port),
        tls: Level::Off,
        identity: None,
        helo: None,
        source_v4: None,
        source_v6: None,
        login: None,
        max_connections: 20,
        max_messages_per_connection: 1000,
        max_recipients: 1000,
        max_message_size: None,
        rate: None,
        connect_timeout: Duration::from_secs(5),
        chunking: true,
        eight_bit: EightBit::Convert,
        tags: Tags::Keep,
        internal: false,
        enabled: true,
    }
}

/// A deliverer with one connector.
struct World {
    deliverer: Arc<Deliverer<Table>>,
    connector: Arc<SendConnector>,
}

impl World {
    fn new(connector: SendConnector) -> Self {
        Self::with_dns(connector, Table::default())
    }

    fn with_dns(connector: SendConnector, table: Table) -> Self {
        let connector = Arc::new(connector);
        let ourselves = Ourselves::new(Domain::parse("mail.contoso.com").unwrap(), Vec::new());
        let private = vec!["127.0.0.0/8".parse().unwrap()];
        let deliverer = Deliverer::with(ourselves, private, std::slice::from_ref(&connector), table);
        Self { deliverer: Arc::new(deliverer), connector }
    }

    /// The results in the order of the recipients.
    async fn attempt(&self, message: &Message) -> Vec<Result<Delivered, Setback>> {
        let open: Vec<u16> = (0..).take(message.copies[0].recipients.len()).collect();
        let attempt = self.deliverer.attempt(&self.connector, message, 0, &open);
        let mut results = timeout(Duration::from_secs(60), attempt).await.expect("it ends in time").results;
        results.sort_by_key(|(index, _)| *index);
        assert_eq!(results.iter().map(|(index, _)| *index).collect::<Vec<_>>(), open);
        results.into_iter().map(|(_, result)| result).collect()
    }

    async fn words(&self, message: &Message) -> String {
        let words = self.attempt(message).await.into_iter().map(|result| match result {
            Ok(delivered) => format!("{} {:?}", delivered.reply.code, delivered.proof),
            Err(setback) => format!("{} {setback}", setback.status()),
        });
        words.collect::<Vec<_>>().join("; ")
    }
}

fn message(to: &[&str]) -> Message {
    message_of(to, Body::from_bytes("Subject: x\r\n\r\n.dot\r\nhello\r\n"))
}

fn message_of(to: &[&str], content: Body) -> Message {
    let recipients = to.iter().map(|to| {
        let address = Address::parse(to).unwrap();
        let recipient = Recipient { address: address.clone(), notify: Notify::Unsaid, orcpt: None };
        CopyRecipient { asked: address, recipient }
    });
    Message {
        id: MessageId(1),
        accepted: Timestamp::now(),
        envelope: Envelope {
            sender: Some(Address::parse("anna@contoso.com").unwrap()),
            recipients: Vec::new(),
            ret: None,
            envid: None,
            body: if content.is_seven_bit().unwrap_or(true) { BodyType::SevenBit } else { BodyType::EightBit },
            smtputf8: false,
            requiretls: false,
        },
        connector: "internet".into(),
        message_id: None,
        prefix: Bytes::from_static(b"Received: by us\r\n"),
        organization: OrganizationHeaders::None,
        content,
        copies: vec![HopCopy {
            via: ConnectorName(Arc::from("out")),
            hop: Hop::SmartHosts,
            recipients: recipients.collect(),
        }],
    }
}

fn mx_message(to: &[&str]) -> Message {
    let mut message = message(to);
    message.copies[0].hop = Hop::Mx(Domain::parse("d.example").unwrap());
    message
}

const FAST: &str = "PIPELINING\nCHUNKING\n8BITMIME";
const TO: &[&str] = &["r1@d.example"];

#[tokio::test]
async fn a_connection_is_used_again_and_not_too_often() {
    for (offers, most, expected) in [(FAST, 1000, 1), (FAST, 2, 2), ("8BITMIME", 1000, 1), ("PIPELINING", 1, 4)] {
        let peer = Peer::start(Manner { offers, ..Manner::default() }).await;
        let world = World::new(SendConnector { max_messages_per_connection: most, ..connector(&[peer.address]) });
        for _ in 0..4 {
            assert_eq!(world.words(&message(TO)).await, "250 Plain", "{offers}");
        }
        assert_eq!(peer.seen().connections, expected, "{offers}, at most {most}");
        let whole = b"Received: by us\r\nSubject: x\r\n\r\n.dot\r\nhello\r\n";
        assert!(peer.seen().messages.len() == 4 && peer.seen().messages.iter().all(|message| message == whole));
        world.deliverer.close_idle().await;
        assert_eq!(peer.verbs().iter().filter(|verb| *verb == "QUIT").count(), expected, "goodbye is said");
        // Whoever still has it after that is served, and nothing is kept.
        assert_eq!(world.words(&message(TO)).await, "250 Plain");
        until(|| peer.seen().open == 0).await;
    }
}

/// A message in memory and one on disk, by DATA and by BDAT, for a host without 8BITMIME.
#[tokio::test]
async fn eight_bit_content_reaches_a_host_without_8bitmime() {
    let line = "Gr\u{fc}\u{df}e aus dem Norden, mit Punkt am Anfang\r\n.\r\n";
    let header = "Subject: x\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n";
    let quoted_header = header.replace("8bit", "quoted-printable");
    let quoted_line = "Gr=C3=BC=C3=9Fe aus dem Norden, mit Punkt am Anfang\r\n.\r\n";
    let bare = format!("Subject: x\r\n\r\n{line}");
    let many = 20_000;
    let large = format!("{header}{}", line.repeat(many));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(large.as_bytes()).unwrap();
    let (file, path, len) = (Arc::new(file), Arc::new("x".into()), large.len() as u64);
    let on_disk = Body::File { file, path, offset: 0, len };
    let small = format!("{header}{line}");
    let signed = format!("DKIM-Signature: v=1\r\n{small}");
    type Row<'a> = (&'a str, Body, EightBit, &'a str, Option<String>);
    let memory = |text: &str| Body::from_bytes(text.to_owned());
    let rows: Vec<Row<'_>> = vec![
        ("converted", memory(&small), EightBit::Convert, "SIZE", Some(quoted_header.clone() + quoted_line)),
        ("by BDAT", memory(&small), EightBit::Convert, "CHUNKING", Some(quoted_header.clone() + quoted_line)),
        (
            "on disk",
            on_disk.clone(),
            EightBit::Convert,
            "SIZE\nPIPELINING",
            Some(quoted_header.clone() + &quoted_line.repeat(many)),
        ),
        (
            "on disk, by BDAT",
            on_disk.clone(),
            EightBit::Convert,
            "CHUNKING",
            Some(quoted_header + &quoted_line.repeat(many)),
        ),
        ("it can take it", memory(&small), EightBit::Convert, "8BITMIME", Some(small.clone())),
        ("no MIME", memory(&bare), EightBit::Convert, "SIZE", Some(bare)),
        ("signed", memory(&signed), EightBit::Convert, "SIZE", Some(signed)),
        ("as it is", memory(&small), EightBit::AsIs, "SIZE", Some(small.clone())),
        ("as it is, on disk", on_disk, EightBit::AsIs, "SIZE", Some(large)),
        ("returned", memory(&small), EightBit::Return, "SIZE", None),
    ];
    for (what, body, eight_bit, offers, expected) in rows {
        let peer = Peer::start(Manner { offers, ..Manner::default() }).await;
        let world = World::new(SendConnector { eight_bit, ..connector(&[peer.address]) });
        let message = message_of(TO, body);
        let words = world.words(&message).await;
        let seen = peer.seen();
        let Some(expected) = expected else {
            assert!(words.starts_with("5.6.3 ") && words.contains("8BITMIME"), "{what}: {words}");
            continue;
        };
        assert_eq!(words, "250 Plain", "{what}");
        let expected = format!("Received: by us\r\n{expected}");
        assert_eq!(seen.messages.len(), 1, "{what}");
        assert!(
            seen.messages[0] == expected.as_bytes(),
            "{what}: {}",
            String::from_utf8_lossy(&seen.messages[0][..200])
        );
        let mail = seen.commands.iter().find(|(_, line)| line.starts_with("MAIL")).unwrap().1.clone();
        assert_eq!(mail.contains("BODY=8BITMIME"), offers.contains("8BITMIME"), "{what}: {mail}");
        assert!(!offers.contains("SIZE") || mail.contains(&format!("SIZE={}", expected.len())), "{what}: {mail}");
    }
}

/// C274: after a transaction that came to nothing RSET comes first.
#[tokio::test]
async fn one_answer_for_each_recipient_and_a_clean_connection_for_the_next() {
    let peer = Peer::start(Manner { offers: "PIPELINING", ..Manner::default() }).await;
    let world = World::new(connector(&[peer.address]));
    let results = world.attempt(&message(&["a@d.example", "later@d.example", "never@d.example"])).await;
    let codes = results.iter().map(|result| match result {
        Ok(delivered) => delivered.reply.code,
        Err(Setback::Answered { command: "RCPT", reply, .. }) => reply.code,
        Err(setback) => panic!("{setback}"),
    });
    assert_eq!(codes.collect::<Vec<_>>(), [250, 450, 550]);
    assert!(world.words(&message(&["never@d.example"])).await.starts_with("5.1.1 "));
    assert_eq!(world.words(&message(TO)).await, "250 Plain");
    assert_eq!(peer.seen().connections, 1);
    assert_eq!(peer.verbs().iter().filter(|verb| *verb == "RSET").count(), 1);
}

/// One mailbox under several names is said once, with what all of them wish, and each name has its answer.
#[tokio::test]
async fn a_mailbox_with_several_names_is_said_once() {
    let peer = Peer::start(Manner { offers: "PIPELINING\nDSN", ..Manner::default() }).await;
    let world = World::new(connector(&[peer.address]));
    let to = ["julie@d.example", "never@d.example", "julie@d.example", "JULIE@d.example", "never@d.example"];
    let mut message = message(&to);
    for (index, success) in [(0, false), (2, true)] {
        message.copies[0].recipients[index].recipient.notify = Notify::On { success, failure: !success, delay: false };
    }
    let heard = Mutex::new(Vec::new());
    let taken = |index| heard.lock().unwrap().push(index);
    let attempt = world.deliverer.attempt_telling(&world.connector, &message, 0, &[0, 1, 2, 3, 4], &taken).await;
    let mut codes: Vec<_> = attempt
        .results
        .into_iter()
        .map(|(index, result)| match result {
            Ok(delivered) => (index, delivered.reply.code),
            Err(Setback::Answered { reply, .. }) => (index, reply.code),
            Err(setback) => panic!("{setback}"),
        })
        .collect();
    codes.sort_unstable();
    assert_eq!(codes, [(0, 250), (1, 550), (2, 250), (3, 250), (4, 550)]);
    let said: Vec<_> = peer.seen().commands.into_iter().map(|(_, line)| line).collect();
    let said: Vec<_> = said.iter().filter(|line| line.starts_with("RCPT")).collect();
    assert_eq!(
        said,
        ["RCPT TO:<julie@d.example> NOTIFY=SUCCESS,FAILURE", "RCPT TO:<never@d.example>", "RCPT TO:<JULIE@d.example>"]
    );
    // Of those who are left of an earlier attempt, whoever comes first speaks for the others.
    let attempt = world.deliverer.attempt(&world.connector, &message, 0, &[2, 3]).await;
    assert_eq!(attempt.results.len(), 2);
    assert_eq!(peer.seen().commands.iter().filter(|(_, line)| line.ends_with("NOTIFY=SUCCESS")).count(), 1);
}

/// C272: nobody counts an attempt because a server does not keep connections.
#[tokio::test]
async fn a_kept_connection_that_was_closed_costs_nothing() {
    for offers in [FAST, "PIPELINING", "8BITMIME"] {
        let peer = Peer::start(Manner { offers, one_message: true, ..Manner::default() }).await;
        let world = World::new(connector(&[peer.address]));
        for _ in 0..3 {
            assert_eq!(world.words(&message(TO)).await, "250 Plain", "{offers}");
        }
        assert_eq!((peer.seen().connections, peer.seen().messages.len()), (3, 3), "{offers}");
    }
}

/// F-031: not at once again, and not at another host.
#[tokio::test]
async fn f031_silence_after_the_end_of_data_ends_the_attempt() {
    for offers in [FAST, "PIPELINING"] {
        let mute = Peer::start(Manner { offers, mute_at_the_end: true, ..Manner::default() }).await;
        let other = Peer::start(Manner { offers, ..Manner::default() }).await;
        let world = World::new(connector(&[mute.address, other.address]));
        let results = world.attempt(&message(TO)).await;
        assert!(matches!(results[0], Err(Setback::Ambiguous { .. })), "{:?}", results[0]);
        assert_eq!((mute.seen().connections, other.seen().connections), (1, 0));
    }
}

#[tokio::test]
async fn a_host_that_fails_is_followed_by_the_next() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let busy = Peer::start(Manner { greeting: Some("421 4.3.2 busy"), ..Manner::default() }).await;
    let closed = Peer::start(Manner { greeting: Some("554 5.7.1 go away"), ..Manner::default() }).await;
    let good = Peer::start(Manner { offers: FAST, ..Manner::default() }).await;
    let world = World::new(connector(&[gone, busy.address, closed.address, good.address]));
    assert_eq!(world.words(&message(TO)).await, "250 Plain");
    // C260: what a greeting says is no word about the message.
    let world = World::new(connector(&[gone, busy.address, closed.address]));
    let words = world.words(&message(TO)).await;
    assert!(words.starts_with("4.") && words.contains("554 5.7.1 go away"), "{words}");
}

/// Somebody's five hosts take the connection and say nothing: that costs us one connection for eight minutes, not for five
/// times five. One behind them that is well is reached all the same.
#[tokio::test(start_paused = true)]
async fn hosts_that_never_greet_share_one_patience() {
    use crate::tls::wire;
    let weather =
        wire::Weather { latency: Duration::from_millis(5), jitter: Duration::ZERO, piece: 1000, window: 1 << 16 };
    let silent: Arc<Mutex<Vec<wire::Wire>>> = Arc::default();
    let dialled = Arc::clone(&silent);
    wire::redirect(Some(Arc::new(move |address| {
        let (ours, theirs) = wire::pair(weather, &Arc::default(), Arc::new(|| false));
        if address.port() == 1 {
            tokio::spawn(async move {
                let _ = converse(Stream::Simulated(theirs), &Manner::default(), 1, &Mutex::default()).await;
            });
        } else {
            dialled.lock().unwrap().push(theirs);
        }
        Box::pin(async move { Ok(ours) })
    })));
    for (ports, good, minutes) in [([9, 8, 7, 6, 5], false, 7..=8), ([9, 8, 7, 6, 1], true, 6..=7)] {
        let peers = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let world = World::new(connector(&peers));
        let begun = tokio::time::Instant::now();
        let attempt = world.deliverer.attempt(&world.connector, &message(TO), 0, &[0]).await;
        let took = begun.elapsed();
        assert_eq!(attempt.results[0].1.is_ok(), good, "{:?}", attempt.results);
        assert!(minutes.contains(&(took.as_secs() / 60)), "{took:?}");
    }
    assert_eq!(silent.lock().unwrap().len(), 9, "each was asked");
    wire::redirect(None);
}

/// F-036: of two hosts the preferred one fails. It is tried once; the other messages go to the other one at once. Where
/// no other is left, it is tried all the same.
#[tokio::test]
async fn f036_a_host_that_failed_is_left_alone_while_there_are_others() {
    let closed = Peer::start(Manner { greeting: Some("554 5.7.1 go away"), ..Manner::default() }).await;
    let good = Peer::start(Manner { offers: FAST, ..Manner::default() }).await;
    let world = World::new(connector(&[closed.address, good.address]));
    for _ in 0..20 {
        assert_eq!(world.words(&message(TO)).await, "250 Plain");
    }
    assert_eq!((closed.seen().connections, good.seen().messages.len()), (1, 20));

    let world = World::new(connector(&[closed.address]));
    let before = closed.seen().connections;
    for _ in 0..3 {
        assert!(world.words(&message(TO)).await.contains("554 5.7.1 go away"));
    }
    assert_eq!(closed.seen().connections, before + 3);
}

#[tokio::test]
async fn what_one_host_cannot_take_another_of_equal_preference_may() {
    let old = Peer::start(Manner { offers: "PIPELINING", ..Manner::default() }).await;
    let new = Peer::start(Manner { offers: FAST, ..Manner::default() }).await;
    let eight = message_of(TO, Body::from_bytes("Subject: x\r\n\r\né\r\n"));
    let mut send = connector(&[old.address, new.address]);
    send.eight_bit = EightBit::Return;
    let one = SendConnector { hops: send.hops.clone(), eight_bit: EightBit::Return, ..connector(&[]) };
    let words = World::new(one).words(&eight).await;
    assert!(words.starts_with("5.6.3 "), "C161, another preference: {words}");
    if let Hops::SmartHosts(hosts) = &mut send.hops {
        hosts.iter_mut().for_each(|host| host.preference = 10);
    }
    let world = World::new(send);
    for _ in 0..8 {
        assert_eq!(world.words(&eight).await, "250 Plain");
    }
    assert!(old.seen().messages.is_empty());
}

/// A server that fails on BDAT is remembered and gets DATA.
#[tokio::test]
async fn bdat_that_fails_is_not_tried_again() {
    let peer = Peer::start(Manner { offers: FAST, no_bdat: true, ..Manner::default() }).await;
    let world = World::new(connector(&[peer.address]));
    for _ in 0..3 {
        assert_eq!(world.words(&message(TO)).await, "250 Plain");
    }
    assert_eq!(peer.seen().connections, 2);
    assert_eq!(peer.verbs().iter().filter(|verb| *verb == "BDAT").count(), 1);
    let world = World::new(SendConnector { chunking: false, ..connector(&[peer.address]) });
    assert_eq!(world.words(&message(TO)).await, "250 Plain");
    assert_eq!(peer.verbs().iter().filter(|verb| *verb == "BDAT").count(), 1);
}

/// What ends the connection at BDAT gets DATA from the second time on, whichever host of the hop it is.
#[tokio::test]
async fn a_hop_that_closes_at_bdat_gets_data_the_next_time() {
    let large = message_of(TO, Body::from_bytes("x\r\n".repeat(200_000)));
    for (row, message) in [("small", message(TO)), ("large", large)] {
        let manner = Manner { offers: FAST, closes_at_bdat: true, ..Manner::default() };
        let (one, other) = (Peer::start(manner.clone()).await, Peer::start(manner).await);
        let mut send = connector(&[one.address, other.address]);
        if let Hops::SmartHosts(hosts) = &mut send.hops {
            hosts.iter_mut().for_each(|host| host.preference = 10);
        }
        let world = World::new(send);
        let words = world.words(&message).await;
        // Nobody knows what became of a message that had left as a whole: that is no reason to send it at once again.
        let expected = if row == "small" { words.starts_with("4.4.2 ") } else { true };
        assert!(expected, "{row}: {words}");
        for _ in 0..8 {
            assert_eq!(world.words(&message).await, "250 Plain", "{row}");
        }
        let (one, other) = (one.verbs(), other.verbs());
        let bdat = one.iter().chain(&other).filter(|verb| *verb == "BDAT").count();
        assert_eq!(bdat, 1, "{row}: {one:?} {other:?}");
    }
    // A connection that had been kept too long says nothing of BDAT.
    let peer = Peer::start(Manner { offers: FAST, one_message: true, ..Manner::default() }).await;
    let world = World::new(connector(&[peer.address]));
    for _ in 0..3 {
        assert_eq!(world.words(&message(TO)).await, "250 Plain");
    }
    assert_eq!(peer.verbs().iter().filter(|verb| *verb == "DATA").count(), 0, "{:?}", peer.verbs());
}

/// A server that refuses EHLO hears HELO, on the same connection, and takes the message.
#[tokio::test]
async fn a_refused_ehlo_is_followed_by_helo() {
    for (ehlo, level, expected, helo) in [
        ("501 5.5.2 what?", Level::Off, "250 Plain", 1),
        ("550 5.7.1 not by EHLO", Level::Off, "250 Plain", 1),
        ("550 5.7.1 not by EHLO", Level::Opportunistic, "250 Plain", 1),
        ("500 what?", Level::Off, "250 Plain", 1),
        // What demands TLS is not helped by HELO.
        ("550 5.7.1 not by EHLO", Level::Encrypt, "4.7.1 ", 0),
        ("421 4.3.2 busy", Level::Off, "4.3.2 ", 0),
        ("450 4.7.1 later", Level::Off, "4.7.1 ", 0),
    ] {
        let peer = Peer::start(Manner { ehlo: Some(ehlo), ..Manner::default() }).await;
        let world = World::new(SendConnector { tls: level, ..connector(&[peer.address]) });
        let words = world.words(&message(TO)).await;
        assert!(words.starts_with(expected), "{ehlo}: {words}");
        assert_eq!(peer.verbs().iter().filter(|verb| *verb == "HELO").count(), helo, "{ehlo}");
        assert_eq!(peer.seen().connections, 1, "{ehlo}");
    }
}

/// A host that answers EHLO by our own name is this relay, behind a NAT that turns connections round: no message is sent to
/// it, and the error says what to do if it is another one. What is preferred to it and down only for now is waited for.
#[tokio::test]
async fn our_own_name_in_the_answer_to_ehlo_ends_the_loop() {
    let ours = Manner { offers: FAST, name: Some("Mail.Contoso.com"), ..Manner::default() };
    let down = Manner { greeting: Some("421 4.3.2 busy"), ..Manner::default() };
    let peer = Peer::start(ours.clone()).await;
    let words = World::new(connector(&[peer.address])).words(&message(TO)).await;
    assert!(words.starts_with("5.4.6 mail would loop back to this relay: [127.0.0.1]:"), "{words}");
    assert!(words.ends_with("if it is another server, give one of the two another hostname"), "{words}");
    assert!(!peer.verbs().contains(&"MAIL".to_owned()));

    // By MX, at several loopback addresses on one port.
    let (listeners, port) = loop {
        let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = first.local_addr().unwrap().port();
        let second = TcpListener::bind(("127.0.0.2", port)).await;
        let third = TcpListener::bind(("127.0.0.3", port)).await;
        if let (Ok(second), Ok(third)) = (second, third) {
            break ([first, second, third], port);
        }
    };
    let [first, second, third] = listeners;
    let third = Peer::listen(third, Manner { offers: FAST, ..Manner::default() });
    let second = Peer::listen(second, ours);
    let first = Peer::listen(first, down);
    let host = |end| IpAddr::from([127, 0, 0, end]);
    let hosts = HashMap::from([("a.example", host(1)), ("b.example", host(2)), ("c.example", host(3))]);
    for (mx, expected) in [
        (vec![(10, "b.example")], "5.4.6 "),
        (vec![(10, "a.example"), (20, "b.example"), (30, "c.example")], "4.3.2 "),
        (vec![(10, "b.example"), (20, "c.example")], "5.4.6 "),
        (vec![(10, "c.example"), (20, "b.example")], "250 "),
    ] {
        let send = SendConnector { hops: Hops::Mx, port, ..connector(&[]) };
        let world = World::with_dns(send, Table { mx: mx.clone(), hosts: hosts.clone() });
        let words = world.words(&mx_message(TO)).await;
        assert!(words.starts_with(expected), "{mx:?}: {words}");
    }
    assert!(!second.verbs().contains(&"MAIL".to_owned()));
    assert_eq!((first.seen().connections, third.seen().messages.len()), (1, 1), "what is worse leads back too");
}

/// Seven hosts fail, each in its own words; the eighth lives. The first attempt names those that it tried, and the second
/// goes on behind them.
#[tokio::test]
async fn a_later_attempt_goes_on_and_the_first_one_names_all_it_tried() {
    let mut dead = Vec::new();
    for greeting in ["554 a", "554 b", "421 c", "554 d", "554 e", "554 f", "450 g"] {
        dead.push(Peer::start(Manner { greeting: Some(greeting), ..Manner::default() }).await);
    }
    let good = Peer::start(Manner { offers: FAST, ..Manner::default() }).await;
    let peers: Vec<SocketAddr> = dead.iter().map(|peer| peer.address).chain([good.address]).collect();
    let world = World::new(connector(&peers));
    let results = world.attempt(&message(TO)).await;
    let Err(setback) = &results[0] else { panic!("{results:?}") };
    let words = setback.to_string();
    for (peer, said) in dead.iter().zip(["554", "554", "421", "554", "554"]) {
        let host = format!("[127.0.0.1]:{} answered the connection with {said}", peer.address.port());
        assert_eq!(words.matches(&host).count(), 1, "{host}: {words}");
    }
    assert!(!setback.is_permanent(), "{words}");
    assert_eq!(world.words(&message(TO)).await, "250 Plain");
    let connections: Vec<usize> = dead.iter().map(|peer| peer.seen().connections).collect();
    // The one that wants fewer connections need not rest: it is asked before what is less preferred.
    assert_eq!(connections, [1, 1, 2, 1, 1, 1, 1]);
    for _ in 0..10 {
        assert_eq!(world.words(&message(TO)).await, "250 Plain");
    }
    assert_eq!(good.seen().messages.len(), 11);

    // Who is refused for good by one of them is not told of the others; who is put off is.
    let gone = Peer::start(Manner { greeting: Some("554 a"), ..Manner::default() }).await;
    let world = World::new(connector(&[gone.address, good.address]));
    let results = world.attempt(&message(&["never@d.example", "later@d.example"])).await;
    let words: Vec<String> = results.iter().map(|result| result.as_ref().unwrap_err().to_string()).collect();
    assert!(words[0].ends_with("550 5.1.1 never"), "{words:?}");
    let also = format!("450 4.2.0 later; also tried: [127.0.0.1]:{} answered", gone.address.port());
    assert!(words[1].contains(&also), "{words:?}");
}

/// A message in several transactions that cannot be read any more: who has it has it.
#[tokio::test]
async fn what_earlier_transactions_brought_stays_known_when_the_message_cannot_be_read() {
    let content = "x\r\n".repeat(300_000).into_bytes();
    for offers in ["PIPELINING", "PIPELINING\nCHUNKING"] {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let (file, len) = (Arc::new(file), content.len() as u64);
        let body = Body::File { file: Arc::clone(&file), path: Arc::new("segment".into()), offset: 0, len };
        let peer = Peer::start(Manner { offers, ..Manner::default() }).await;
        let world = World::new(SendConnector { max_recipients: 2, ..connector(&[peer.address]) });
        let to = ["a@d.example", "never@d.example", "b@d.example", "c@d.example", "d@d.example"];
        let taken = |_| file.set_len(0).unwrap();
        let message = message_of(&to, body);
        let attempt = world.deliverer.attempt_telling(&world.connector, &message, 0, &[0, 1, 2, 3, 4], &taken);
        let mut results = timeout(Duration::from_secs(20), attempt).await.expect("it ends in time").results;
        results.sort_by_key(|(index, _)| *index);
        let words = results.iter().map(|(index, result)| match result {
            Ok(delivered) => format!("{index} {}", delivered.reply.code),
            Err(setback) => format!("{index} {}", setback.status()),
        });
        let expected = ["0 250", "1 5.1.1", "2 4.3.0", "3 4.3.0", "4 4.3.0"];
        assert_eq!(words.collect::<Vec<_>>(), expected, "{offers}");
        until(|| peer.seen().open == 0).await;
        assert_eq!(peer.seen().messages.len(), 1, "{offers}");
    }
}

#[tokio::test]
async fn max_connections_hold_for_each_host() {
    for most in [1, 3] {
        let peer = Peer::start(Manner { offers: FAST, meeting: most, ..Manner::default() }).await;
        let world = Arc::new(World::new(SendConnector { max_connections: most, ..connector(&[peer.address]) }));
        let mut attempts = tokio::task::JoinSet::new();
        for _ in 0..12 {
            let world = Arc::clone(&world);
            attempts.spawn(async move { world.words(&message(TO)).await });
        }
        while let Some(words) = attempts.join_next().await {
            assert_eq!(words.unwrap(), "250 Plain");
        }
        assert_eq!((peer.seen().most_open, peer.seen().messages.len()), (most, 12));
        assert_eq!(peer.seen().connections, most, "those who waited used what was there");
    }
}

#[tokio::test]
async fn idle_connections_are_closed_with_a_goodbye() {
    let peer = Peer::start(Manner { offers: FAST, ..Manner::default() }).await;
    let world = World::new(connector(&[peer.address]));
    world.words(&message(TO)).await;
    let now = connect::now();
    assert!(world.deliverer.pool.sweep(now + pool::IDLE / 2), "not yet");
    assert_eq!(peer.seen().open, 1);
    assert!(!world.deliverer.pool.sweep(now + pool::IDLE * 2), "nothing is left to look after");
    until(|| peer.seen().open == 0).await;
    assert_eq!(peer.verbs().last().unwrap(), "QUIT");
    assert_eq!(world.words(&message(TO)).await, "250 Plain");
    assert_eq!(peer.seen().connections, 2);
}

impl World {
    /// The same under another configuration of this connector, with what `last` has learnt.
    fn after(last: &Self, connector: SendConnector) -> Self {
        let world = Self::new(connector);
        let deliverer = Arc::into_inner(world.deliverer).unwrap().succeeding(&last.deliverer);
        last.deliverer.retire(&deliverer);
        Self { deliverer: Arc::new(deliverer), ..world }
    }
}

/// A new configuration goes on with what was learnt of a connector's hosts, if it connects to them as before.
#[tokio::test]
async fn what_was_learnt_of_hosts_outlives_a_reload() {
    let down = Peer::start(Manner { greeting: Some("554 5.7.1 go away"), ..Manner::default() }).await;
    let good = Peer::start(Manner { offers: FAST, no_bdat: true, ..Manner::default() }).await;
    let plain = || connector(&[down.address, good.address]);
    let first = World::new(plain());
    for _ in 0..2 {
        assert_eq!(first.words(&message(TO)).await, "250 Plain");
    }
    let learnt = |down: &Peer, good: &Peer| {
        let bdat = good.verbs().iter().filter(|verb| *verb == "BDAT").count();
        (down.seen().connections, good.seen().connections, bdat)
    };
    assert_eq!(learnt(&down, &good), (1, 2, 1), "one host rests, the other gets DATA on a kept connection");
    // Nothing of this is about its connections.
    let second = World::after(
        &first,
        SendConnector {
            enabled: true,
            connect_timeout: Duration::from_secs(60),
            max_message_size: Some(1000),
            max_recipients: 7,
            ..plain()
        },
    );
    assert_eq!(second.words(&message(TO)).await, "250 Plain");
    // An attempt of the former configuration shares it, also after the reload.
    assert_eq!(first.words(&message(TO)).await, "250 Plain");
    assert_eq!(learnt(&down, &good), (1, 2, 1));

    // Each of these is. The connection is closed with a goodbye, and what was learnt is asked anew.
    let mut last = second;
    let changes: [&dyn Fn(SendConnector) -> SendConnector; 5] = [
        &|connector| SendConnector { helo: Some(Domain::parse("other.contoso.com").unwrap()), ..connector },
        &|connector| SendConnector { tls: Level::Opportunistic, ..connector },
        &|connector| SendConnector { source_v4: Some([127, 0, 0, 1].into()), ..connector },
        &|connector| SendConnector { max_connections: 1, ..connector },
        &|connector| SendConnector {
            tls: Level::Opportunistic,
            identity: Some(Authority::new("CA").identity(&["mail.contoso.com"])),
            ..connector
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let (before, open) = (learnt(&down, &good), good.seen().open);
        assert_eq!(open, 1, "{number}");
        let next = World::after(&last, change(plain()));
        until(|| good.seen().open == 0).await;
        assert_eq!(good.verbs().last().unwrap(), "QUIT", "{number}");
        assert_eq!(next.words(&message(TO)).await, "250 Plain", "{number}");
        assert_eq!(learnt(&down, &good), (before.0 + 1, before.1 + 2, before.2 + 1), "{number}");
        // Who still goes by the former one is served, and nothing of it is kept.
        assert_eq!(last.words(&message(TO)).await, "250 Plain", "{number}");
        until(|| good.seen().open == 1).await;
        last = next;
    }
}

/// Of two connectors to the same host one changes: the other keeps its connection.
#[tokio::test]
async fn a_connector_that_changes_takes_nothing_from_another() {
    let peer = Peer::start(Manner { offers: FAST, ..Manner::default() }).await;
    let of = |name: &str, helo: &str| {
        let helo = Some(Domain::parse(helo).unwrap());
        Arc::new(SendConnector { name: ConnectorName(name.into()), helo, ..connector(&[peer.address]) })
    };
    let over = |connectors: &[Arc<SendConnector>]| {
        let ourselves = Ourselves::new(Domain::parse("mail.contoso.com").unwrap(), Vec::new());
        Deliverer::with(ourselves, Vec::new(), connectors, Table::default())
    };
    let helos = |peer: &Peer| -> Vec<String> {
        peer.seen().commands.into_iter().map(|(_, line)| line).filter(|line| line.starts_with("EHLO")).collect()
    };
    let (one, two) = (of("one", "one.example"), of("two", "two.example"));
    let last = over(&[Arc::clone(&one), Arc::clone(&two)]);
    let message = message(TO);
    for connector in [&one, &two] {
        assert!(last.attempt(connector, &message, 0, &[0]).await.results[0].1.is_ok());
    }
    let changed = of("two", "changed.example");
    let next = over(&[Arc::clone(&one), Arc::clone(&changed)]).succeeding(&last);
    last.retire(&next);
    until(|| peer.seen().open == 1).await;
    for connector in [&one, &changed] {
        assert!(next.attempt(connector, &message, 0, &[0]).await.results[0].1.is_ok());
    }
    assert_eq!(helos(&peer), ["EHLO one.example", "EHLO two.example", "EHLO changed.example"]);
    // One that is gone is closed, too.
    let without = over(&[one]).succeeding(&next);
    next.retire(&without);
    until(|| peer.seen().open == 1).await;
}

/// A rate goes on where it stood, whatever else of the connector changes, and begins anew when it changes itself.
#[test]
fn a_rate_goes_on_over_a_reload() {
    use crate::config::Rate;
    let hourly = |count| Some(Rate { count, per: Duration::from_hours(1) });
    let over = |rate, helo: &str| {
        let helo = Some(Domain::parse(helo).unwrap());
        let connector = Arc::new(SendConnector { rate, helo, ..connector(&[]) });
        let ourselves = Ourselves::new(Domain::parse("mail.contoso.com").unwrap(), Vec::new());
        Deliverer::with(ourselves, Vec::new(), &[connector], Table::default())
    };
    let now = connect::now();
    let name = ConnectorName("out".into());
    let wait = |deliverer: &Deliverer<Table>| {
        deliverer.turns(&name).map(|turns| turns.take(now).duration_since(now).as_secs())
    };
    let first = over(hourly(1), "a.example");
    assert_eq!(wait(&first), Some(0));
    let second = over(hourly(1), "b.example").succeeding(&first);
    assert_eq!(wait(&second), Some(3600));
    assert_eq!(wait(&first), Some(7200), "the same turns, whoever asks");
    let third = over(hourly(2), "b.example").succeeding(&second);
    assert_eq!(wait(&third), Some(0));
    let fourth = over(None, "b.example").succeeding(&third);
    assert_eq!(wait(&fourth), None);
}

/// A connection for one purpose is not used for another, and makes room for it.
#[tokio::test]
async fn connections_are_never_shared_by_address_alone() {
    let peer = Peer::start(Manner { offers: FAST, ..Manner::default() }).await;
    let hosts = HashMap::from([("a.example", peer.address.ip()), ("b.example", peer.address.ip())]);
    let name = |name: &str, preference| SmartHost {
        host: SmartHostAddress::Name(Domain::parse(name).unwrap()),
        port: Some(peer.address.port()),
        preference,
    };
    let world = World::with_dns(
        SendConnector {
            max_connections: 1,
            hops: Hops::SmartHosts(vec![name("a.example", 10), name("b.example", 10)]),
            ..connector(&[peer.address])
        },
        Table { mx: Vec::new(), hosts },
    );
    let mut used = std::collections::HashSet::new();
    for _ in 0..32 {
        let results = world.attempt(&message(TO)).await;
        used.insert(results[0].as_ref().unwrap().host.clone());
    }
    assert_eq!(used.len(), 2, "both names in turn: {used:?}");
    let seen = peer.seen();
    assert!(seen.connections > 1, "one for each change of name");
    let quits = seen.commands.iter().filter(|(_, line)| line == "QUIT").count();
    assert!(quits + 2 >= seen.connections, "the one before made room: {quits} of {}", seen.connections);
}

#[tokio::test]
async fn a_message_on_disk_arrives_as_it_is() {
    for (offers, lines) in [(FAST, 10), (FAST, 60_000), ("PIPELINING", 10), ("PIPELINING", 60_000), ("X", 60_000)] {
        let content: Vec<u8> = (0..lines)
            .flat_map(|line| format!("{}line {line}\r\n", if line % 3 == 0 { "." } else { "" }).into_bytes())
            .collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"what stands before").unwrap();
        file.write_all(&content).unwrap();
        file.write_all(b"what comes behind").unwrap();
        let body = Body::File {
            file: Arc::new(file),
            path: Arc::new("segment".into()),
            offset: 18,
            len: content.len() as u64,
        };
        let peer = Peer::start(Manner { offers, ..Manner::default() }).await;
        let world = World::new(connector(&[peer.address]));
        assert_eq!(world.words(&message_of(TO, body)).await, "250 Plain");
        assert!(
            peer.seen().messages[0] == [b"Received: by us\r\n".as_slice(), &content].concat(),
            "{offers}, {lines} lines"
        );
    }
}

/// A message that cannot be read is not sent in part.
/// Organization headers: whom they are for, how much there is, and all the rest byte for byte: from memory and from disk,
/// small and large, by BDAT and by DATA.
#[tokio::test]
async fn organization_headers_go_to_the_other_premises_and_nowhere_else() {
    use OrganizationHeaders::{Believed, Cut, None as Without};
    let forged = "X-MS-Exchange-Organization-AuthAs: Internal\r\n\tfolded\r\n";
    for lines in [3, 100_000] {
        let tail = format!("Subject: x\r\n\r\n.dot\r\n{}", "hello\r\n".repeat(lines));
        let kept = format!("{forged}X-Kept: 1\r\n{forged}{tail}");
        let left = format!("X-Kept: 1\r\n{tail}");
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(kept.as_bytes()).unwrap();
        let (file, path) = (Arc::new(file), Arc::new("x".into()));
        let bodies = [
            Body::Memory(kept.as_bytes().chunks(1000).map(Bytes::copy_from_slice).collect()),
            Body::File { file, path, offset: 0, len: kept.len() as u64 },
        ];
        for body in bodies {
            for (organization, internal, expected) in [
                (Cut, false, &left),
                (Cut, true, &left),
                (Believed, false, &left),
                (Believed, true, &kept),
                // Whoever looked says that there are none: nobody looks again.
                (Without, false, &kept),
            ] {
                for offers in ["PIPELINING\nCHUNKING\nSIZE", "PIPELINING\nSIZE"] {
                    let peer = Peer::start(Manner { offers, ..Manner::default() }).await;
                    let world = World::new(SendConnector { internal, ..connector(&[peer.address]) });
                    let message = Message { organization, ..message_of(TO, body.clone()) };
                    let row = format!("{organization:?} to internal {internal}, {lines} lines, {offers}");
                    assert_eq!(world.words(&message).await, "250 Plain", "{row}");
                    let expected = format!("Received: by us\r\n{expected}");
                    let seen = peer.seen();
                    assert!(seen.messages == [expected.as_bytes()], "{row}");
                    let mail = &seen.commands.iter().find(|(_, line)| line.starts_with("MAIL")).unwrap().1;
                    assert!(mail.ends_with(&format!(" SIZE={}", expected.len())), "{row}: {mail}");
                }
            }
        }
    }
}

/// Nothing but such fields, or nothing behind them: what is left still ends as a message does.
#[tokio::test]
async fn a_message_of_organization_headers_alone_arrives_empty() {
    for (content, expected) in [
        ("X-MS-Exchange-Organization-SCL: -1\r\n", ""),
        ("X-MS-Exchange-Organization-SCL: -1", ""),
        ("A: b\r\nX-MS-Exchange-Forest-X: y", "A: b\r\n"),
        ("X-MS-Exchange-Forest-X: y\r\n\r\n", "\r\n"),
    ] {
        for offers in ["PIPELINING\nCHUNKING", "PIPELINING"] {
            let peer = Peer::start(Manner { offers, ..Manner::default() }).await;
            let world = World::new(connector(&[peer.address]));
            let organization = OrganizationHeaders::Cut;
            let message = Message { organization, ..message_of(TO, Body::from_bytes(content)) };
            assert_eq!(world.words(&message).await, "250 Plain", "{content:?}");
            let arrived = String::from_utf8(peer.seen().messages.remove(0)).unwrap();
            assert_eq!(arrived, format!("Received: by us\r\n{expected}"), "{content:?} {offers}");
        }
    }
}

#[tokio::test]
async fn a_message_whose_file_is_damaged_stays() {
    for len in [1_000, 1_000_000] {
        let peer = Peer::start(Manner { offers: "PIPELINING", ..Manner::default() }).await;
        let world = World::new(connector(&[peer.address]));
        let file = Arc::new(tempfile::tempfile().unwrap());
        let body = Body::File { file, path: Arc::new("segment".into()), offset: 0, len };
        let words = world.words(&message_of(TO, body)).await;
        assert!(words.starts_with("4.3.0 the spool cannot read the message: segment: "), "{words}");
        until(|| peer.seen().open == 0).await;
        assert!(peer.seen().messages.is_empty());
    }
}

/// Section 6 of the interface: what each level demands, and that nothing leaves without it.
#[tokio::test]
async fn a_demand_is_met_or_nothing_is_sent() {
    let ca = Authority::new("Test CA");
    let stranger = Authority::new("Another CA");
    let acceptor = Acceptor::new(&ca.identity(&["mx.example.net"]), false);
    let names = |name: &str| Names::new(vec![name.to_owned()]);
    let tls = Manner { offers: FAST, acceptor: Some(acceptor), ..Manner::default() };
    let clear = Manner { offers: FAST, ..Manner::default() };
    let garbled = Manner { offers: FAST, garbled_tls: true, ..Manner::default() };
    #[rustfmt::skip]
    let cases = [
        ("off",              Level::Off, &tls, "250 Plain"),
        ("opportunistic",    Level::Opportunistic, &tls, "250 Encrypted"),
        ("opportunistic",    Level::Opportunistic, &clear, "250 Plain"),
        ("opportunistic",    Level::Opportunistic, &garbled, "250 Plain"),
        ("encrypt",          Level::Encrypt, &tls, "250 Encrypted"),
        ("encrypt",          Level::Encrypt, &clear, "4.7.5 "),
        ("encrypt",          Level::Encrypt, &garbled, "4.7.5 "),
        ("certificate",      Level::Certificate(ca.roots()), &tls, "250 Chained"),
        ("certificate",      Level::Certificate(stranger.roots()), &tls, "4.7.5 "),
        ("domain",           Level::Domain(ca.roots(), names("mx.example.net")), &tls, "250 Named"),
        ("domain, another",  Level::Domain(ca.roots(), names("mx.fabrikam.com")), &tls, "4.7.5 "),
        ("domain, stranger", Level::Domain(stranger.roots(), names("mx.example.net")), &tls, "4.7.5 "),
        ("domain",           Level::Domain(ca.roots(), names("mx.example.net")), &clear, "4.7.5 "),
        ("domain",           Level::Domain(ca.roots(), names("mx.example.net")), &garbled, "4.7.5 "),
        // An address has no name to prove.
        ("domain, no names", Level::Domain(ca.roots(), None), &tls, "4.7.5 "),
    ];
    for (id, level, manner, expected) in cases {
        let peer = Peer::start(manner.clone()).await;
        let world = World::new(SendConnector { tls: level, ..connector(&[peer.address]) });
        for round in 1..=2 {
            let words = world.words(&message(TO)).await;
            assert!(words.starts_with(expected), "{id}, message {round}: {words}, not {expected}");
        }
        let sent = peer.verbs().iter().filter(|verb| *verb == "MAIL").count();
        assert_eq!(sent, if expected.starts_with("250") { 2 } else { 0 }, "{id}: not a MAIL without proof");
    }
}

/// With MX and no `tls_domain`, the certificate names the host or the domain.
#[tokio::test]
async fn an_mx_proves_its_name_or_its_domain() {
    let ca = Authority::new("Test CA");
    for (certificate, expected) in
        [("mx1.example.net", "250 Named"), ("d.example", "250 Named"), ("x.example", "4.7.5 ")]
    {
        let acceptor = Acceptor::new(&ca.identity(&[certificate]), false);
        let peer = Peer::start(Manner { offers: FAST, acceptor: Some(acceptor), ..Manner::default() }).await;
        let world = World::with_dns(
            SendConnector { hops: Hops::Mx, tls: Level::Domain(ca.roots(), None), ..connector(&[peer.address]) },
            Table { mx: vec![(10, "mx1.example.net")], hosts: HashMap::from([("mx1.example.net", peer.address.ip())]) },
        );
        let words = world.words(&mx_message(TO)).await;
        assert!(words.starts_with(expected), "{certificate}: {words}");
    }
}

/// C212: REQUIRETLS goes where every host is proved, or nowhere.
#[tokio::test]
async fn c212_requiretls_is_kept() {
    let ca = Authority::new("Test CA");
    let acceptor = Acceptor::new(&ca.identity(&["mx.example.net"]), false);
    let peer = Peer::start(Manner { offers: FAST, acceptor: Some(acceptor), ..Manner::default() }).await;
    let demanding = |mut message: Message| {
        message.envelope.requiretls = true;
        message
    };
    for (level, expected) in [
        (Level::Off, "5.7.30 "),
        (Level::Opportunistic, "5.7.30 "),
        (Level::Encrypt, "5.7.30 "),
        (Level::Certificate(ca.roots()), "250 Chained"),
    ] {
        let world = World::new(SendConnector { tls: level, ..connector(&[peer.address]) });
        let words = world.words(&demanding(message(TO))).await;
        assert!(words.starts_with(expected), "{words}");
    }
    assert!(peer.seen().commands.iter().any(|(_, line)| line.starts_with("MAIL") && line.ends_with(" REQUIRETLS")));
    let world = World::with_dns(
        SendConnector { hops: Hops::Mx, tls: Level::Certificate(ca.roots()), ..connector(&[]) },
        Table::default(),
    );
    assert!(world.words(&demanding(mx_message(TO))).await.starts_with("5.7.30 "));
}

#[tokio::test]
async fn a_login_happens_in_tls_only_and_its_failure_returns_no_mail() {
    let ca = Authority::new("Test CA");
    let acceptor = Acceptor::new(&ca.identity(&["mx.example.net"]), false);
    let tls = Peer::start(Manner { offers: FAST, acceptor: Some(acceptor), ..Manner::default() }).await;
    let clear = Peer::start(Manner { offers: "AUTH PLAIN", ..Manner::default() }).await;
    let login = |password: &str| Some(Login { username: "relay".into(), password: password.into() });
    for (level, peer, password, expected) in [
        (Level::Opportunistic, &tls, "secret", "250 Encrypted"),
        (Level::Encrypt, &tls, "wrong", "4.7.8 "),
        (Level::Opportunistic, &clear, "secret", "4.7.5 "),
        (Level::Off, &clear, "secret", "4."),
    ] {
        let world = World::new(SendConnector { tls: level, login: login(password), ..connector(&[peer.address]) });
        let words = world.words(&message(TO)).await;
        assert!(words.starts_with(expected), "{words}, not {expected}");
    }
    assert!(!clear.verbs().contains(&"AUTH".to_owned()) && !clear.verbs().contains(&"MAIL".to_owned()));
}

/// C240, C243, C272 over sockets: the hosts of an MX on one port, at several loopback addresses.
#[tokio::test]
async fn mx_hosts_are_tried_in_order_in_one_attempt() {
    let (first, second) = loop {
        let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = first.local_addr().unwrap().port();
        // Somebody may have that port there; then another one.
        if let Ok(second) = TcpListener::bind(("127.0.0.2", port)).await {
            break (first, second);
        }
    };
    let first = Peer::listen(first, Manner { greeting: Some("450 4.3.2 not now"), ..Manner::default() });
    let second = Peer::listen(second, Manner { offers: FAST, ..Manner::default() });
    let hosts = HashMap::from([("a.example", first.address.ip()), ("b.example", second.address.ip())]);
    let world = World::with_dns(
        SendConnector { hops: Hops::Mx, ..connector(&[first.address]) },
        Table { mx: vec![(10, "a.example"), (20, "gone.example"), (30, "b.example")], hosts },
    );
    assert_eq!(world.words(&mx_message(TO)).await, "250 Plain");
    assert_eq!((first.seen().connections, second.seen().messages.len()), (1, 1));

    // S-140: without leave, DNS leads nobody to loopback.
    let connector = Arc::clone(&world.connector);
    let table = Table { mx: vec![(10, "b.example")], hosts: HashMap::from([("b.example", second.address.ip())]) };
    let ourselves = Ourselves::new(Domain::parse("mail.contoso.com").unwrap(), Vec::new());
    let deliverer = Deliverer::with(ourselves, Vec::new(), std::slice::from_ref(&connector), table);
    let strict = World { deliverer: Arc::new(deliverer), connector };
    assert!(strict.words(&mx_message(TO)).await.starts_with("5.4.4 "));
    assert_eq!(second.seen().connections, 1);
}

#[tokio::test]
async fn a_connector_that_is_off_or_gone_delivers_nothing() {
    let world = World::new(SendConnector { enabled: false, ..connector(&[]) });
    assert!(world.words(&message(TO)).await.starts_with("4.3.5 "));
    let other = SendConnector { name: ConnectorName(Arc::from("other")), ..connector(&[]) };
    let world = World { connector: Arc::new(other), ..world };
    assert!(world.words(&message(TO)).await.starts_with("4.3.5 "));
    // Unmet has to stay a word of this module's setbacks: it is what the log shows.
    assert!(Setback::Unproven { host: "x".into(), unmet: Unmet::NotOffered }.to_string().contains("STARTTLS"));
}
