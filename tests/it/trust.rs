//! Trust between the premises, over the wire: who is believed, by which clause, and what that means for the headers.
//!
//! The demo's world with doors for the cloud, for a partner and for the premises among themselves. Every message goes
//! through the whole relay, and what arrives is compared byte for byte.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Scratch, behind_trace, run, same};
use bytes::BytesMut;
use causeway::demo::site::Behaviour;
use causeway::demo::{self, Arrival, Plan, World};
use causeway::outcome::tracking::Tracker;
use causeway::smtp::Reply;
use causeway::smtp::reply::{ReplyParser, Status};
use causeway::tls::authority::{Authority, Template};
use causeway::tls::{Connector, Demand, Identity, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(60);

const ORGANIZATION: &str = "X-MS-Exchange-Organization-AuthAs: Internal\r\nX-MS-Exchange-CrossPremises-SCL: -1\r\n";

/// Doors beside the demo's, on the address that the Internet uses.
fn doors(text: String) -> String {
    let door = text.lines().find(|line| line.starts_with("listen = [")).unwrap().to_owned();
    let own = text.lines().filter(|line| line.starts_with("listen = [")).nth(1).unwrap().to_owned();
    let tls =
        "certificate = \"relay.crt\"\nkey = \"relay.key\"\nclient_ca_file = \"ca.pem\"\nmax_connections_per_ip = 5000";
    let cloud = demo::CLOUD;
    let text = text
        .replace("name = \"to-on-premises\"\n", "name = \"to-on-premises\"\ninternal = true\n")
        .replace("name = \"to-cloud\"\n", "name = \"to-cloud\"\ninternal = true\n")
        .replace("min_free_space = \"1MiB\"", "min_free_space = \"1MiB\"\nretry = [\"1s\"]");
    assert_eq!(text.matches("internal = true").count(), 2);
    format!(
        r#"{text}
[[receive_connector]]
name = "from-cloud"
{door}
origin = "cloud"
tls_domain = ["{cloud}"]
internal = true
originator_org = ["contoso.com", "contoso.onmicrosoft.com"]
{tls}

[[receive_connector]]
name = "from-on-premises"
{own}
remote_ips = ["127.0.0.0/8"]
origin = "on-premises"
tls_domain = ["ex1.contoso.com"]
internal = true
{tls}

[[receive_connector]]
name = "partner"
{door}
origin = "partner"
tls_domain = ["mail.partner.example"]
sender_domains = ["partner.example"]
only_here = true
{tls}
"#
    )
}

struct Test {
    world: World,
    events: Arc<Mutex<Vec<String>>>,
    _scratch: Scratch,
}

impl Test {
    async fn start() -> Self {
        let scratch = Scratch::new();
        let events: Arc<Mutex<Vec<String>>> = Arc::default();
        let tracked = Arc::clone(&events);
        let tracker = Tracker::none().watched(move |event| tracked.lock().unwrap().push(event.to_json()));
        let plan = Plan { tracker, configuration: &doors, ..Plan::new(scratch.path()) };
        let world = World::start(plan).await.unwrap();
        Self { world, events, _scratch: scratch }
    }

    fn identity(&self, name: &str) -> Identity {
        self.world.authority.identity(&[name])
    }

    /// A session at the door of the Internet, in TLS as `identity`, or in the clear.
    async fn outside(&self, identity: Option<&Identity>) -> Client {
        let mut client = Client::connect(self.world.internet_door).await;
        client.secure(identity).await;
        client
    }

    async fn arrival(&mut self) -> Arrival {
        let arrival = timeout(PATIENCE, self.world.arrivals.recv()).await;
        arrival.unwrap_or_else(|_| panic!("nothing arrives\n{}", self.told())).unwrap()
    }

    /// Waits until nothing waits in the relay, and then nothing more must have arrived.
    async fn quiet(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.world.daemon.relay().waiting() > 0 {
            assert!(Instant::now() < end, "something waits\n{}", self.told());
            sleep(Duration::from_millis(5)).await;
        }
        if let Ok(further) = self.world.arrivals.try_recv() {
            panic!("one arrival too many: {further:?}");
        }
    }

    /// The `because` of the only event of this kind since the last look.
    fn because(&self, kind: &str) -> Vec<String> {
        let events = std::mem::take(&mut *self.events.lock().unwrap());
        let events = events.iter().map(|event| serde_json::from_str::<serde_json::Value>(event).unwrap());
        let mut found = events.filter(|event| event["event"] == kind);
        let event = found.next().unwrap_or_else(|| panic!("no {kind}"));
        assert!(found.next().is_none(), "two of {kind}");
        let because = event["because"].as_array().unwrap();
        because.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    }

    fn told(&self) -> String {
        self.events.lock().unwrap().join("\n")
    }
}

/// An SMTP client with a certificate.
struct Client {
    stream: Stream,
    parser: ReplyParser,
    unread: BytesMut,
}

impl Client {
    /// Connects and says EHLO in the clear.
    async fn connect(address: SocketAddr) -> Self {
        let stream = Stream::Plain(TcpStream::connect(address).await.unwrap());
        let mut client = Self { stream, parser: ReplyParser::default(), unread: BytesMut::new() };
        assert_eq!(client.reply().await.code, 220);
        client.hello().await;
        client
    }

    /// Goes on in TLS as `identity`, or as nobody; says EHLO and gives what is offered.
    async fn secure(&mut self, identity: Option<&Identity>) -> String {
        assert_eq!(self.say("STARTTLS").await.code, 220);
        let tls = Connector::new(identity);
        let plain = std::mem::replace(&mut self.stream, Stream::Plain(unconnected().await));
        let tcp = plain.into_tcp().unwrap();
        let deadline = Instant::now() + PATIENCE;
        let (stream, _) = tls.connect(tcp, demo::RELAY, &Demand::Nothing, deadline).await.unwrap();
        self.stream = stream;
        self.hello().await
    }

    async fn hello(&mut self) -> String {
        self.stream.write_all(b"EHLO client.example\r\n").await.unwrap();
        loop {
            if let Some(reply) = self.parser.next_hello(&mut self.unread).unwrap() {
                assert_eq!(reply.code, 250, "{reply}");
                return reply.text.to_string();
            }
            self.read().await;
        }
    }

    async fn say(&mut self, line: &str) -> Reply {
        self.stream.write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
        self.stream.flush().await.unwrap();
        self.reply().await
    }

    async fn reply(&mut self) -> Reply {
        loop {
            if let Some(reply) = self.parser.next(&mut self.unread).unwrap() {
                return reply;
            }
            self.read().await;
        }
    }

    async fn read(&mut self) {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.unread)).await;
        assert!(read.expect("an answer in time").unwrap() > 0, "the connection ended");
    }

    /// One transaction by BDAT, for content of any form; the reply that ends it, and to which command.
    async fn send(&mut self, mail: &str, to: &[&str], content: &[u8]) -> (&'static str, Reply) {
        let reply = self.say(&format!("MAIL FROM:{mail}")).await;
        if !reply.is_positive() {
            return ("MAIL", reply);
        }
        for to in to {
            let reply = self.say(&format!("RCPT TO:<{to}>")).await;
            if !reply.is_positive() {
                self.say("RSET").await;
                return ("RCPT", reply);
            }
        }
        self.stream.write_all(format!("BDAT {} LAST\r\n", content.len()).as_bytes()).await.unwrap();
        self.stream.write_all(content).await.unwrap();
        self.stream.flush().await.unwrap();
        ("end", self.reply().await)
    }
}

/// Something to stand in while the connection is in other hands.
async fn unconnected() -> TcpStream {
    let listener = tokio::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).await.unwrap()
}

fn content(header: &str) -> String {
    format!("From: David <david@contoso.com>\r\n{header}Subject: x\r\n\r\n{ORGANIZATION}body\r\n")
}

fn taken(sent: &(&'static str, Reply), row: &str) {
    assert!(sent.0 == "end" && sent.1.is_positive(), "{row}: {} {}", sent.0, sent.1);
}

/// One row: who connects and what the header says, and what the tracking event says of it. The headers arrive at the
/// other premises if and only if it says `internal: yes`, and never on the Internet. S-063, S-064.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s063_s064_each_clause_decides_and_says_so() {
    let mut test = Test::start().await;
    let cloud = test.identity(demo::CLOUD);
    let stranger = test.identity("mail.stranger.example");
    let forged = Authority::new("somebody else").identity(&[demo::CLOUD]);
    let expired = test.world.authority.identity_as(&Template::new(&[demo::CLOUD]).expired());
    let ours = "X-OriginatorOrg: contoso.com\r\n";
    const NO: &str = "internal: no, receive connector \"internet\" does not have internal = true";
    const STRANGER: &str = "internal: no, by originator_org; it counts as from the Internet";
    const CLOUD: &str = "connector \"from-cloud\" (0.0.0.0/0): matched";
    const INTERNET: &str = "connector \"internet\" (0.0.0.0/0): matched";
    const NAMED: &str = "name mail.protection.outlook.com: true";
    type Row<'a> = (&'a str, Option<Option<&'a Identity>>, &'a str, &'a str, &'a [&'a str]);
    let rows: &[Row<'_>] = &[
        (
            "the cloud",
            Some(Some(&cloud)),
            "",
            ours,
            &["internal: yes", CLOUD, "certificate chains to ", NAMED, "originator_org contoso.com: true"],
        ),
        (
            "the cloud, by XOORG",
            Some(Some(&cloud)),
            " XOORG=contoso.onmicrosoft.com",
            "",
            &["internal: yes", CLOUD, "certificate chains to ", NAMED, "originator_org contoso.onmicrosoft.com: true"],
        ),
        // XOORG speaks for the whole message: the header is not asked.
        (
            "XOORG and another header",
            Some(Some(&cloud)),
            " XOORG=contoso.com",
            "X-OriginatorOrg: evil.example\r\n",
            &["internal: yes", CLOUD, "certificate chains to ", NAMED, "originator_org contoso.com: true"],
        ),
        (
            "another tenant",
            Some(Some(&cloud)),
            "",
            "X-OriginatorOrg: evil.example\r\n",
            &[STRANGER, CLOUD, "certificate chains to ", NAMED, "originator_org: false (evil.example)"],
        ),
        (
            "another tenant that adds ours",
            Some(Some(&cloud)),
            "",
            "X-OriginatorOrg: contoso.com\r\nX-OriginatorOrg: evil.example\r\n",
            &[STRANGER, CLOUD, "certificate chains to ", NAMED, "originator_org: false (evil.example)"],
        ),
        (
            "another tenant, by XOORG",
            Some(Some(&cloud)),
            " XOORG=evil.example",
            ours,
            &[STRANGER, CLOUD, "certificate chains to ", NAMED, "originator_org: false (evil.example)"],
        ),
        (
            "nobody vouches",
            Some(Some(&cloud)),
            "",
            "",
            &[STRANGER, CLOUD, "certificate chains to ", NAMED, "originator_org: false (none was named)"],
        ),
        (
            "right name, untrusted chain",
            Some(Some(&forged)),
            "",
            ours,
            &[
                NO,
                INTERNET,
                "connector \"from-cloud\": did not match, certificate: its certificate (mail.protection.outlook.com) was not accepted",
                "connector \"partner\": did not match, certificate: ",
            ],
        ),
        (
            "right chain, another name",
            Some(Some(&stranger)),
            "",
            ours,
            &[
                NO,
                INTERNET,
                "connector \"from-cloud\": did not match, name: demanded a certificate for mail.protection.outlook.com, \
             saw one for mail.stranger.example",
                "connector \"partner\": did not match, name: ",
            ],
        ),
        (
            "expired",
            Some(Some(&expired)),
            "",
            ours,
            &[
                NO,
                INTERNET,
                "connector \"from-cloud\": did not match, certificate: its certificate (mail.protection.outlook.com) was not accepted: it was valid until",
                "connector \"partner\": did not match, certificate: ",
            ],
        ),
        (
            "no certificate",
            Some(None),
            "",
            ours,
            &[
                NO,
                INTERNET,
                "connector \"from-cloud\": did not match, certificate: none was presented",
                "connector \"partner\": did not match, certificate: none was presented",
            ],
        ),
        (
            "in the clear",
            None,
            "",
            ours,
            &[
                NO,
                INTERNET,
                "connector \"from-cloud\": did not match, certificate: the session is not in TLS",
                "connector \"partner\": did not match, certificate: the session is not in TLS",
            ],
        ),
    ];
    for (who, tls, xoorg, header, expected) in rows {
        let mut client = Client::connect(test.world.internet_door).await;
        if let Some(identity) = tls {
            let offered = client.secure(*identity).await;
            let by_cloud = expected[1] == CLOUD;
            assert_eq!(offered.lines().any(|keyword| keyword == "XOORG"), by_cloud, "{who}: {offered}");
        }
        let internal = expected[0] == "internal: yes";
        let whole = content(&format!("{header}{ORGANIZATION}"));
        let bare = content(header);
        // Kate's mailbox is forwarded to the Internet.
        for (to, place, headers) in [
            ("julie@contoso.com", "on-premises", internal),
            ("david@contoso.com", "cloud", internal),
            ("kate@contoso.com", "internet", false),
        ] {
            let row = format!("{who} to {to}");
            taken(&client.send(&format!("<david@contoso.com>{xoorg}"), &[to], whole.as_bytes()).await, &row);
            let arrival = test.arrival().await;
            assert_eq!(arrival.place, place, "{row}");
            same(behind_trace(&arrival.content, "From:"), if headers { whole.as_bytes() } else { bare.as_bytes() });
            test.quiet().await;
            let because = test.because("RECEIVE");
            assert_eq!(because.len(), expected.len(), "{row}: {because:#?}");
            for (word, expected) in because.iter().zip(*expected) {
                assert!(word.starts_with(expected), "{row}: {because:#?}");
            }
        }
        // Only who is believed may send to the Internet.
        let sent = client.send(&format!("<david@contoso.com>{xoorg}"), &["erin@fabrikam.com"], whole.as_bytes()).await;
        if internal {
            taken(&sent, who);
            same(behind_trace(&test.arrival().await.content, "From:"), bare.as_bytes());
        } else {
            let at = if *who == "another tenant, by XOORG" || expected[1] == INTERNET { "RCPT" } else { "end" };
            assert_eq!((sent.0, sent.1.code, sent.1.status), (at, 550, Some(Status(5, 7, 1))), "{who}: {}", sent.1);
            test.quiet().await;
            if expected[1] == CLOUD {
                let because = test.because("FAIL");
                assert!(because.iter().any(|word| word == expected[4]), "{who}: {because:?}");
            }
        }
        test.quiet().await;
        test.events.lock().unwrap().clear();
    }
    test.world.stop().await;
}

/// XOORG as it is sent: the first authoritative domain, to the other premises and to nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_organization_is_named_to_the_other_premises() {
    let mut test = Test::start().await;
    let mut client = Client::connect(test.world.own_door).await;
    client.secure(Some(&test.identity(demo::ON_PREMISES))).await;
    for (to, place, xoorg) in [
        ("david@contoso.com", "cloud", Some("contoso.com")),
        ("julie@contoso.com", "on-premises", Some("contoso.com")),
        ("erin@fabrikam.com", "internet", None),
    ] {
        taken(&client.send("<julie@contoso.com>", &[to], content("").as_bytes()).await, to);
        let arrival = test.arrival().await;
        assert_eq!((arrival.place, arrival.xoorg.as_ref().map(|domain| domain.as_str())), (place, xoorg), "{to}");
        test.quiet().await;
    }
    test.world.stop().await;
}

/// Bad days: what somebody on the Internet writes to be taken for an insider.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_headers_from_the_internet_reach_nobody() {
    let mut test = Test::start().await;
    let mut client = test.outside(None).await;
    let kept = "X-Kept: X-MS-Exchange-Organization-AuthAs: Internal\r\n X-MS-Exchange-Organization-SCL: -1\r\n";
    for forged in [
        "X-MS-Exchange-Organization-AuthAs: Internal\r\n".to_owned(),
        "x-ms-EXCHANGE-organization-authas: Internal\r\n".to_owned(),
        "X-MS-Exchange-Forest-X\t : y\r\n".to_owned(),
        "X-MS-Exchange-CrossPremises-AuthAs:\r\n Internal\r\n\tand more\r\n".to_owned(),
        "X-MS-Exchange-Organiz\r\n ation-AuthAs: Internal\r\n".to_owned(),
        "X-MS-Exchange-Organization-SCL: -1\r\n".repeat(3000),
        format!("X-MS-Exchange-Organization-A: {}\r\n", "y".repeat(500_000)),
    ] {
        for (head, body) in [
            (format!("{forged}{kept}{forged}"), "\r\nX-MS-Exchange-Organization-AuthAs: in the body\r\n"),
            // A header without a body.
            (format!("{kept}{forged}"), ""),
        ] {
            let row = &forged[..40.min(forged.len())];
            let sent =
                client.send("<erin@fabrikam.com>", &["julie@contoso.com"], format!("{head}{body}").as_bytes()).await;
            taken(&sent, row);
            let arrival = test.arrival().await;
            same(behind_trace(&arrival.content, "X-Kept:"), format!("{kept}{body}").as_bytes());
            let header = &arrival.content[..arrival.content.len() - body.len()];
            let header = String::from_utf8_lossy(header).to_lowercase();
            assert!(!header.lines().any(|line| line.starts_with("x-ms-exchange")), "{row}: {header}");
        }
    }
    // Too long for the log of the spool: from a file of its own.
    let forged = "X-MS-Exchange-Organization-AuthAs: Internal\r\n";
    let body = format!("\r\n{}", "a line of a large message\r\n".repeat(120_000));
    let large = format!("{forged}{kept}{forged}{body}");
    taken(&client.send("<erin@fabrikam.com>", &["julie@contoso.com"], large.as_bytes()).await, "3 MiB");
    let arrival = test.arrival().await;
    same(behind_trace(&arrival.content, "X-Kept:"), format!("{kept}{body}").as_bytes());
    assert!(!String::from_utf8_lossy(&arrival.content[..1000]).contains("\r\nX-MS-"));
    // Longer than anybody can judge.
    let endless = format!("X-MS-Exchange-Organization-A: {}\r\n\r\n", "y".repeat(1 << 20));
    let many = format!("{}X-MS-Exchange-Organization-A: b\r\n\r\n", "A: b\r\n".repeat(10_000));
    for content in [endless, many] {
        let (at, reply) = client.send("<erin@fabrikam.com>", &["julie@contoso.com"], content.as_bytes()).await;
        assert_eq!((at, reply.code, reply.status), ("end", 552, Some(Status(5, 3, 4))), "{reply}");
    }
    // A body without a header has none to be cut.
    let body = "\r\nX-MS-Exchange-Organization-AuthAs: in the body\r\n";
    taken(&client.send("<erin@fabrikam.com>", &["julie@contoso.com"], body.as_bytes()).await, "no header");
    assert!(test.arrival().await.content.ends_with(body.as_bytes()));
    test.quiet().await;
    test.world.stop().await;
}

/// A report returns nothing of what the organization keeps to itself, even to one of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_returns_no_organization_headers() {
    let mut test = Test::start().await;
    test.world.cloud.behave(Behaviour {
        recipient: Some(Reply { code: 550, status: Some(Status(5, 1, 1)), text: "nobody".into() }),
        ..Behaviour::default()
    });
    let mut client = Client::connect(test.world.own_door).await;
    client.secure(Some(&test.identity(demo::ON_PREMISES))).await;
    for ret in ["FULL", "HDRS"] {
        let whole = content(&format!("{ORGANIZATION}X-Seen: yes\r\n"));
        let mail = format!("<julie@contoso.com> RET={ret}");
        taken(&client.send(&mail, &["david@contoso.com"], whole.as_bytes()).await, ret);
        let report = test.arrival().await;
        let report = std::str::from_utf8(&report.content).unwrap();
        assert!(report.contains("X-Seen: yes") && report.contains("Action: failed"), "{report}");
        // The body of the original is the sender's own text.
        assert_eq!(report.matches("X-MS-Exchange-").count(), if ret == "FULL" { 2 } else { 0 }, "{report}");
        test.quiet().await;
    }
    test.world.stop().await;
}

/// `only_here`: the partner's mail comes in as the partner, or not at all; a certificate
/// shown after the session began decides anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partner_comes_its_own_way_also_after_starttls() {
    let mut test = Test::start().await;
    let partner = test.identity("mail.partner.example");
    let cloud = test.identity(demo::CLOUD);
    const ELSEWHERE: &str = "connector \"internet\" (0.0.0.0/0): matched";
    let message = content("");
    let mut client = Client::connect(test.world.internet_door).await;
    let refused = |sent: (&'static str, Reply)| {
        assert_eq!((sent.0, sent.1.code, sent.1.status), ("MAIL", 550, Some(Status(5, 7, 1))), "{}", sent.1);
        assert!(sent.1.text.contains("must come from its partner's servers"), "{}", sent.1);
    };
    refused(client.send("<a@partner.example>", &["julie@contoso.com"], message.as_bytes()).await);
    let because = test.because("FAIL");
    assert_eq!(because[1], ELSEWHERE);
    assert_eq!(because[3], "connector \"partner\": did not match, certificate: the session is not in TLS");
    // The same connection, now with a certificate.
    client.secure(Some(&partner)).await;
    taken(&client.send("<a@partner.example>", &["julie@contoso.com"], message.as_bytes()).await, "proved");
    test.arrival().await;
    assert_eq!(test.because("RECEIVE")[1], "connector \"partner\" (0.0.0.0/0): matched");
    // Who is the partner sends as nobody else.
    let (at, reply) = client.send("<a@fabrikam.com>", &["julie@contoso.com"], message.as_bytes()).await;
    assert_eq!((at, reply.code), ("MAIL", 550), "{reply}");
    // Another certificate, though it is trusted for something else; and none.
    for identity in [Some(&cloud), None] {
        test.events.lock().unwrap().clear();
        let mut client = test.outside(identity).await;
        refused(client.send("<a@partner.example>", &["julie@contoso.com"], message.as_bytes()).await);
        assert!(!test.because("FAIL").is_empty());
    }
    test.quiet().await;
    test.world.stop().await;
}

/// A signature made before survives the passage: the relay adds in front, and cuts what nobody signs who is not meant to
/// read it. Signed and verified by dkimpy, which takes the key record from us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dkim_signature_survives_the_passage() {
    let mut test = Test::start().await;
    let scratch = Scratch::new();
    let key = scratch.file("dkim.key");
    let made = run(Command::new("openssl").args(["genrsa", "-traditional", "-out"]).arg(&key).arg("2048"), PATIENCE);
    assert!(made.status.success(), "{}", crate::common::said(&made));
    let public = run(Command::new("openssl").args(["rsa", "-pubout", "-outform", "PEM", "-in"]).arg(&key), PATIENCE);
    let record: String = crate::common::said(&public).lines().filter(|line| !line.contains(' ')).collect();
    scratch.write("record", format!("v=DKIM1; k=rsa; p={record}"));
    let sign = scratch.write("sign.py", "import dkim, sys\nmessage = sys.stdin.buffer.read()\nsys.stdout.buffer.write(dkim.sign(message, b's', b'fabrikam.com', open(sys.argv[1], 'rb').read(), canonicalize=(b'simple', b'simple'), include_headers=[b'From', b'Subject', b'X-Kept']) + message)\n");
    let verify = scratch.write("verify.py", "import dkim, sys\nrecord = open(sys.argv[1], 'rb').read()\nprint(dkim.verify(sys.stdin.buffer.read(), dnsfunc=lambda name, timeout=5: record))\n");
    let python = |script: &std::path::Path, argument: &std::path::Path, input: &[u8]| {
        let file = scratch.write("input", input);
        let script = format!("/usr/bin/python3 {} {} < {}", script.display(), argument.display(), file.display());
        let output = run(Command::new("sh").args(["-c", &script]), PATIENCE);
        assert!(output.status.success(), "scripts/test installs python3-dkim: {}", crate::common::said(&output));
        output.stdout
    };
    let message = format!(
        "From: Erin <erin@fabrikam.com>\r\n{ORGANIZATION}X-Kept:  odd   blanks \r\n\tfolded\r\nSubject: x\r\n\r\n.dot\r\nbody  \r\n\r\n"
    );
    let signed = python(&sign, &key, message.as_bytes());
    let good = |content: &[u8]| python(&verify, &scratch.file("record"), content) == b"True\n";
    assert!(good(&signed), "the verifier and the record fit");
    let spoilt = String::from_utf8(signed.clone()).unwrap().replace("body", "Body");
    assert!(!good(spoilt.as_bytes()), "the verifier sees a change");
    let mut client = test.outside(None).await;
    let parameters =
        client.send("<erin@fabrikam.com>", &["julie@contoso.com", "david@contoso.com", "kate@contoso.com"], &signed);
    taken(&parameters.await, "signed");
    for _ in 0..3 {
        let arrival = test.arrival().await;
        assert!(!String::from_utf8_lossy(&arrival.content).contains("X-MS-Exchange-"), "{}", arrival.place);
        assert!(good(&arrival.content), "{}: {}", arrival.place, String::from_utf8_lossy(&arrival.content));
    }
    test.quiet().await;
    test.world.stop().await;
}
