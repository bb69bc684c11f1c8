//! The hybrid world of the demo in one process: who gets which copy, under which address, proved by what.
//!
//! Each test starts a world of its own. What arrives is counted when nothing waits any more, so a second copy would
//! be found.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::Scratch;
use causeway::demo::client::{Sent, send};
use causeway::demo::site::Behaviour;
use causeway::demo::{self, Arrival, Plan, Site, World};
use causeway::outcome::tracking::Tracker;
use causeway::smtp::Reply;
use causeway::smtp::reply::Status;
use causeway::tls::Proof;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(60);
const ERIN: &str = "erin@fabrikam.com";

/// What is easily spoilt on the way: dots, 8-bit, folds, trailing blanks, a line of 998 octets.
fn content() -> String {
    format!(
        "From: Erin <erin@fabrikam.com>\r\nTo: everybody\r\nSubject: =?utf-8?q?gr=C3=BCn?=\r\nX-Folded: a\r\n\tb\r\n\
         Message-ID: <1@fabrikam.com>\r\n\r\n.\r\n..\r\n.x\r\ngrün, größer\r\nblanks  \r\n{}\r\n\r\n.\r\n",
        "y".repeat(998)
    )
}

struct Test {
    world: World,
    events: Arc<Mutex<Vec<String>>>,
    _scratch: Scratch,
}

impl Test {
    async fn start() -> Self {
        Self::with("", &|text| text).await
    }

    async fn with(recipients: &str, configuration: &dyn Fn(String) -> String) -> Self {
        let scratch = Scratch::new();
        let events: Arc<Mutex<Vec<String>>> = Arc::default();
        let tracked = Arc::clone(&events);
        let tracker = Tracker::none().watched(move |event| tracked.lock().unwrap().push(event.to_json().to_string()));
        let quick = |text: String| {
            let ladder = "min_free_space = \"1MiB\"";
            assert!(text.contains(ladder));
            configuration(text.replace(ladder, "min_free_space = \"1MiB\"\nretry = [\"1s\"]"))
        };
        let plan = Plan { tracker, recipients, configuration: &quick, ..Plan::new(scratch.path()) };
        let world = World::start(plan).await.unwrap();
        Self { world, events, _scratch: scratch }
    }

    /// From the Internet, everybody accepted.
    async fn send(&self, to: &[&str], parameters: &str) {
        accepted(&send(self.world.internet_door, ERIN, to, parameters, &content()).await.unwrap());
    }

    /// Waits for `count` arrivals and until nothing waits any more; then there must be no further one. Sorted by place
    /// and recipient.
    async fn arrivals(&mut self, count: usize) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        for number in 0..count {
            let arrival = timeout(PATIENCE, self.world.arrivals.recv()).await;
            let arrival =
                arrival.unwrap_or_else(|_| panic!("{number} of {count} arrived: {arrivals:?}\n{}", self.told()));
            arrivals.push(arrival.unwrap());
        }
        self.quiet().await;
        arrivals.sort_by_key(|arrival| (arrival.place, recipients(arrival)));
        arrivals
    }

    /// Waits until nothing waits in the relay, and then nothing more must have arrived.
    async fn quiet(&mut self) {
        let end = Instant::now() + PATIENCE;
        while self.world.daemon.relay().waiting() > 0 {
            assert!(Instant::now() < end, "{} messages wait\n{}", self.world.daemon.relay().waiting(), self.told());
            sleep(Duration::from_millis(5)).await;
        }
        if let Ok(further) = self.world.arrivals.try_recv() {
            panic!("one arrival too many: {further:?}");
        }
    }

    /// Waits for an event whose line contains all of these.
    async fn event(&self, words: &[&str]) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = {
                let events = self.events.lock().unwrap();
                events.iter().find(|event| words.iter().all(|word| event.contains(word))).cloned()
            };
            if let Some(event) = found {
                return event;
            }
            assert!(Instant::now() < end, "no event with {words:?}:\n{}", self.told());
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn told(&self) -> String {
        self.events.lock().unwrap().join("\n")
    }
}

fn accepted(sent: &Sent) {
    assert!(sent.recipients.iter().all(Reply::is_positive), "{:?}", sent.recipients);
    let reply = sent.message.as_ref().unwrap();
    assert!(reply.is_positive(), "{reply}");
}

fn refused(sent: &Sent, code: u16, status: Status) {
    for reply in &sent.recipients {
        assert_eq!((reply.code, reply.status), (code, Some(status)), "{reply}");
    }
    assert!(sent.message.is_none());
}

fn reply(code: u16, status: Status, text: &str) -> Reply {
    Reply { code, status: Some(status), text: text.into() }
}

fn sender(arrival: &Arrival) -> String {
    arrival.envelope.sender.as_ref().map_or(String::new(), ToString::to_string)
}

fn recipients(arrival: &Arrival) -> String {
    let addresses: Vec<String> = arrival.envelope.recipients.iter().map(|one| one.address.to_string()).collect();
    addresses.join(" ")
}

/// `place: sender -> recipients`, as a postmaster would note it.
fn notes(arrivals: &[Arrival]) -> Vec<String> {
    arrivals.iter().map(|one| format!("{}: {} -> {}", one.place, sender(one), recipients(one))).collect()
}

/// The content behind the field that the relay put in front.
fn behind_received(arrival: &Arrival) -> &str {
    let text = std::str::from_utf8(&arrival.content).unwrap();
    assert!(text.starts_with("Received: from client.fabrikam.com"), "{text}");
    assert!(text.contains(" by mail.contoso.com"), "{text}");
    let rest = behind_field(text);
    assert!(rest.starts_with("X-Causeway-Visit: "), "{text}");
    behind_field(rest)
}

/// What follows the first field.
fn behind_field(text: &str) -> &str {
    let mut rest = text;
    loop {
        rest = &rest[rest.find("\r\n").unwrap() + 2..];
        if !rest.starts_with([' ', '\t']) {
            return rest;
        }
    }
}

/// Came in TLS, from a client that proved to be the relay.
fn is_proved(arrival: &Arrival) {
    assert!(arrival.tls.as_ref().is_some_and(|tls| tls.starts_with("TLSv1.3")), "{:?}", arrival.tls);
    match &arrival.client {
        Some(Proof::Named { name, certificate, .. }) => {
            assert_eq!((name.as_str(), certificate.as_str()), (demo::RELAY, demo::RELAY));
        }
        other => panic!("the relay proved nothing at {}: {other:?}", arrival.place),
    }
}

/// One row: recipients as the Internet names them, and every copy that arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_from_the_internet_reaches_each_mailbox_once() {
    let mut test = Test::start().await;
    let on_premises = "on-premises: erin@fabrikam.com -> julie@contoso.com";
    let cloud = "cloud: erin@fabrikam.com -> david@contoso.mail.onmicrosoft.com";
    for (to, expected) in [
        (&["julie@contoso.com"][..], &[on_premises][..]),
        (&["david@contoso.com"], &[cloud]),
        (&["julie@contoso.com", "david@contoso.com"], &[cloud, on_premises]),
        (&["DAVID@Contoso.COM"], &["cloud: erin@fabrikam.com -> DAVID@contoso.mail.onmicrosoft.com"]),
        (&["kate@contoso.com"], &["internet: erin@fabrikam.com -> kate@fabrikam.com"]),
        (&["sales@contoso.com"], &[cloud, on_premises]),
        (&["info@contoso.com"], &[on_premises]),
        // The group's members beside themselves: one copy each all the same. C065.
        (&["sales@contoso.com", "julie@contoso.com", "david@contoso.com", "info@contoso.com"], &[cloud, on_premises]),
        (&["postmaster"], &[on_premises]),
    ] {
        test.send(to, "").await;
        let arrivals = test.arrivals(expected.len()).await;
        assert_eq!(notes(&arrivals), expected, "{to:?}");
        for arrival in &arrivals {
            assert_eq!(behind_received(arrival), content(), "{to:?}: byte for byte");
            if arrival.place != "internet" {
                is_proved(arrival);
            }
        }
    }
    test.world.stop().await;
}

/// The relay proved who it talks to, and says so in its events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_premises_is_proved_before_it_gets_anything() {
    let mut test = Test::start().await;
    test.send(&["julie@contoso.com", "david@contoso.com"], "").await;
    test.arrivals(2).await;
    for (connector, name) in [("to-on-premises", demo::ON_PREMISES), ("to-cloud", demo::CLOUD)] {
        let event = test.event(&["\"SEND\"", &format!("\"{connector}\"")]).await;
        let event: serde_json::Value = serde_json::from_str(&event).unwrap();
        let tls = event["tls"].as_str().unwrap_or_else(|| panic!("{event}"));
        assert!(tls.contains(name) && tls.contains("TLSv1.3"), "{connector}: {tls}");
    }
    test.world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_come_is_refused_at_rcpt() {
    let loops = "ping@contoso.com,forward,pong@contoso.com\npong@contoso.com,forward,ping@contoso.com\n\
                 narcissus@contoso.com,forward,narcissus@contoso.com\n";
    let mut test = Test::with(loops, &|text| text).await;
    for (to, code, status) in [
        ("nobody@contoso.com", 550, Status(5, 1, 1)),
        ("eve@elsewhere.example", 550, Status(5, 7, 1)),
        (ERIN, 550, Status(5, 7, 1)),
        ("ping@contoso.com", 550, Status(5, 4, 6)),
        ("narcissus@contoso.com", 550, Status(5, 4, 6)),
    ] {
        let sent = send(test.world.internet_door, "mallory@fabrikam.com", &[to], "", &content()).await.unwrap();
        refused(&sent, code, status);
    }
    // One who cannot be reached takes nothing from the other.
    let to = ["nobody@contoso.com", "julie@contoso.com"];
    let sent = send(test.world.internet_door, ERIN, &to, "", &content()).await.unwrap();
    assert_eq!(sent.recipients.iter().map(|reply| reply.code).collect::<Vec<_>>(), [550, 250]);
    assert!(sent.message.unwrap().is_positive());
    assert_eq!(notes(&test.arrivals(1).await), ["on-premises: erin@fabrikam.com -> julie@contoso.com"]);
    test.world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_from_our_own_servers_goes_everywhere() {
    let mut test = Test::start().await;
    let door: SocketAddr = test.world.own_door;
    let sent = send(door, "julie@contoso.com", &[ERIN, "david@contoso.com", "sales@contoso.com"], "", &content()).await;
    accepted(&sent.unwrap());
    let arrivals = test.arrivals(3).await;
    assert_eq!(
        notes(&arrivals),
        [
            "cloud: julie@contoso.com -> david@contoso.mail.onmicrosoft.com",
            "internet: julie@contoso.com -> erin@fabrikam.com",
            "on-premises: julie@contoso.com -> julie@contoso.com",
        ]
    );
    is_proved(&arrivals[0]);
    is_proved(&arrivals[2]);
    assert!(arrivals.iter().all(|arrival| behind_received(arrival) == content()));
    test.world.stop().await;
}

/// C035: the null sender stays null, across both premises.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c035_a_report_crosses_with_its_null_sender() {
    let mut test = Test::start().await;
    let to = ["julie@contoso.com", "david@contoso.com"];
    accepted(&send(test.world.internet_door, "", &to, "", &content()).await.unwrap());
    assert_eq!(
        notes(&test.arrivals(2).await),
        ["cloud:  -> david@contoso.mail.onmicrosoft.com", "on-premises:  -> julie@contoso.com"]
    );
    // If such a one fails there is nobody to tell: it is dropped. C192.
    test.world
        .cloud
        .behave(Behaviour { recipient: Some(reply(550, Status(5, 1, 1), "no such mailbox")), ..Behaviour::default() });
    accepted(&send(test.world.internet_door, "", &["david@contoso.com"], "", &content()).await.unwrap());
    test.event(&["\"FAIL\"", "david@contoso.mail.onmicrosoft.com"]).await;
    test.quiet().await;
    test.world.stop().await;
}

/// The failure report: to the sender, from `<>`, by the Internet's MX; says who, what was answered, and returns the
/// original. NOTIFY=NEVER: nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_the_cloud_is_reported_to_the_sender() {
    let mut test = Test::start().await;
    test.world.cloud.behave(Behaviour {
        recipient: Some(reply(550, Status(5, 1, 10), "recipient not found in our cloud")),
        ..Behaviour::default()
    });
    test.send(&["julie@contoso.com", "david@contoso.com"], " NOTIFY=NEVER").await;
    assert_eq!(notes(&test.arrivals(1).await), ["on-premises: erin@fabrikam.com -> julie@contoso.com"]);

    test.send(&["julie@contoso.com", "david@contoso.com"], " ORCPT=rfc822;David@Contoso.com").await;
    let arrivals = test.arrivals(2).await;
    assert_eq!(
        notes(&arrivals),
        ["internet:  -> erin@fabrikam.com", "on-premises: erin@fabrikam.com -> julie@contoso.com"]
    );
    let report = std::str::from_utf8(&arrivals[0].content).unwrap();
    let (header, body) = report.split_once("\r\n\r\n").unwrap();
    let header = header.replace("\r\n\t", " ").replace("\r\n ", " ");
    assert!(header.contains("multipart/report") && header.contains("delivery-status"), "{header}");
    assert!(header.contains("Auto-Submitted: auto-replied"), "{header}");
    assert!(header.contains("To: <erin@fabrikam.com>") || header.contains("To: erin@fabrikam.com"), "{header}");
    let body = body.replace("\r\n ", " ");
    for field in [
        "Reporting-MTA: dns; mail.contoso.com",
        "Original-Recipient: rfc822;",
        "Final-Recipient: rfc822;",
        "Action: failed",
        "Status: 5.1.10",
        "550 5.1.10 recipient not found in our cloud",
        "Subject: =?utf-8?q?gr=C3=BCn?=",
    ] {
        assert!(body.contains(field), "{field} is missing:\n{report}");
    }
    assert!(!body.contains("Action: relayed") && body.matches("Action: ").count() == 1, "julie has her copy: {report}");
    test.world.stop().await;
}

/// A member that no route leads to costs the others nothing, and the sender is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_serves_whom_it_can_and_reports_the_others() {
    let recipients = "all@contoso.com,group,julie@contoso.com gone@contoso.com david@contoso.com\n";
    let mut test = Test::with(recipients, &|text| text).await;
    test.send(&["all@contoso.com"], "").await;
    let arrivals = test.arrivals(3).await;
    assert_eq!(
        notes(&arrivals),
        [
            "cloud: erin@fabrikam.com -> david@contoso.mail.onmicrosoft.com",
            "internet:  -> erin@fabrikam.com",
            "on-premises: erin@fabrikam.com -> julie@contoso.com"
        ]
    );
    let report = String::from_utf8_lossy(&arrivals[1].content).into_owned();
    for words in ["Action: failed", "gone@contoso.com", "Status: 5.1.1", "all@contoso.com"] {
        assert!(report.contains(words), "{words}:\n{report}");
    }
    test.event(&["\"FAIL\"", "gone@contoso.com", "5.1.1"]).await;
}

/// A hop that knows DSN is told what the sender wants, and the relay says nothing itself. RFC 3461 section 5.2.1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn success_is_left_to_report_by_the_hop_that_can() {
    let mut test = Test::start().await;
    test.send(&["david@contoso.com"], " NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;David@Contoso.com").await;
    let arrival = test.arrivals(1).await.remove(0);
    let recipient = &arrival.envelope.recipients[0];
    assert!(recipient.notify.success() && recipient.notify.failure() && !recipient.notify.delay(), "{recipient:?}");
    assert_eq!(recipient.orcpt.as_ref().map(|one| &*one.address), Some("David@Contoso.com"), "{recipient:?}");
    test.world.stop().await;
}

/// Under another address in the envelope, ORCPT says which one the sender gave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_the_sender_gave_travels_as_orcpt() {
    let mut test = Test::start().await;
    test.send(&["david@contoso.com"], "").await;
    let arrival = test.arrivals(1).await.remove(0);
    let orcpt = arrival.envelope.recipients[0].orcpt.as_ref().map(|one| (&*one.kind, &*one.address));
    assert_eq!(orcpt, Some(("rfc822", "david@contoso.com")));
    test.world.stop().await;
}

/// F-035: who is away gets the message when it is back; who is there does not wait for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f035_a_message_waits_for_a_premises_that_is_away() {
    let mut test = Test::start().await;
    test.world.cloud.go_away(true);
    test.send(&["julie@contoso.com", "david@contoso.com"], "").await;
    let first = timeout(PATIENCE, test.world.arrivals.recv()).await.unwrap().unwrap();
    assert_eq!(notes(&[first]), ["on-premises: erin@fabrikam.com -> julie@contoso.com"]);
    test.event(&["\"DEFER\"", "david@contoso.mail.onmicrosoft.com"]).await;
    assert_eq!(test.world.daemon.relay().waiting(), 1);
    test.world.cloud.go_away(false);
    let arrival = test.arrivals(1).await.remove(0);
    assert_eq!(
        notes(std::slice::from_ref(&arrival)),
        ["cloud: erin@fabrikam.com -> david@contoso.mail.onmicrosoft.com"]
    );
    assert_eq!(behind_received(&arrival), content());
    test.world.stop().await;
}

/// F-033: a temporary refusal of the message is tried again until it is taken, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f033_a_temporary_refusal_is_tried_again() {
    let mut test = Test::start().await;
    let busy = Behaviour { message: Some(reply(451, Status(4, 3, 0), "not now")), ..Behaviour::default() };
    test.world.on_premises.behave(busy);
    test.send(&["julie@contoso.com"], "").await;
    let event = test.event(&["\"DEFER\"", "julie@contoso.com"]).await;
    assert!(event.contains("4.3.0"), "{event}");
    test.world.on_premises.behave(Behaviour::default());
    assert_eq!(notes(&test.arrivals(1).await), ["on-premises: erin@fabrikam.com -> julie@contoso.com"]);
    test.world.stop().await;
}

/// F-039: a demand that is not met. The message waits, never leaves in the clear, and arrives when that is mended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f039_a_message_for_a_host_without_tls_waits() {
    let mut test = Test::start().await;
    test.world.cloud.behave(Behaviour { no_tls: true, ..Behaviour::default() });
    test.send(&["david@contoso.com"], "").await;
    let event = test.event(&["\"DEFER\"", "david@contoso.mail.onmicrosoft.com"]).await;
    assert!(event.contains("does not offer STARTTLS") && event.contains("4.7."), "{event}");
    assert!(test.world.arrivals.try_recv().is_err(), "nothing leaves in the clear");
    test.world.cloud.behave(Behaviour::default());
    let arrival = test.arrivals(1).await.remove(0);
    is_proved(&arrival);
    test.world.stop().await;
}

/// F-039: the cloud's place is taken by a host with a certificate, of the right authority, for another name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f039_a_host_with_another_name_gets_nothing() {
    let mut test = Test::start().await;
    let world = &test.world;
    let (arrived, mut stolen) = tokio::sync::mpsc::channel(10);
    let another = "mail.fabrikam.com";
    let identity = world.authority.identity(&[another]);
    let thief =
        Site::start("thief", another, identity, world.authority.roots(), Behaviour::default(), arrived).await.unwrap();
    let path = world.folder.join("causeway.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    let at = |site: &Site| format!("{}:{}", demo::CLOUD_HOST, site.address.port());
    let bad = good.replace(&at(&world.cloud), &at(&thief));
    assert_ne!(good, bad);
    std::fs::write(&path, bad).unwrap();
    assert!(test.world.daemon.reload());

    test.send(&["julie@contoso.com", "david@contoso.com"], "").await;
    let first = timeout(PATIENCE, test.world.arrivals.recv()).await.unwrap().unwrap();
    assert_eq!(first.place, "on-premises", "the other premises does not wait");
    let event = test.event(&["\"DEFER\"", "david@contoso.mail.onmicrosoft.com"]).await;
    for word in ["4.7.", demo::CLOUD, another] {
        assert!(event.contains(word), "the event names {word}: {event}");
    }
    assert!(stolen.try_recv().is_err(), "the message is not for others");

    std::fs::write(&path, good).unwrap();
    assert!(test.world.daemon.reload());
    let arrival = test.arrivals(1).await.remove(0);
    assert_eq!(arrival.place, "cloud");
    is_proved(&arrival);
    assert!(stolen.try_recv().is_err());
    test.world.stop().await;
}

/// S-112: at the latest after 60 `Received:` fields a loop ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_received_fields_are_enough() {
    let mut test = Test::start().await;
    for (fields, taken) in [(59, true), (60, false)] {
        let content =
            format!("{}{}", "Received: from a by b; Sat, 21 Nov 2026 12:00:00 +0000\r\n".repeat(fields), content());
        let sent = send(test.world.internet_door, ERIN, &["julie@contoso.com"], "", &content).await.unwrap();
        let reply = sent.message.unwrap();
        assert_eq!(reply.is_positive(), taken, "{fields}: {reply}");
        if !taken {
            assert_eq!((reply.code, reply.status), (554, Some(Status(5, 4, 6))), "{reply}");
        }
    }
    test.arrivals(1).await;
    test.world.stop().await;
}

/// What is accepted and not delivered when the relay ends is delivered by the next one on the same spool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_relay_delivers_what_the_last_one_left() {
    let mut test = Test::start().await;
    test.world.cloud.go_away(true);
    for _ in 0..20 {
        test.send(&["julie@contoso.com", "david@contoso.com"], "").await;
    }
    let mut first = Vec::new();
    for _ in 0..20 {
        first.push(timeout(PATIENCE, test.world.arrivals.recv()).await.unwrap().unwrap());
    }
    assert!(first.iter().all(|arrival| arrival.place == "on-premises"));
    test.world.daemon.stop(Duration::from_secs(10)).await;
    test.world.cloud.go_away(false);

    let path = test.world.folder.join("causeway.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let config = causeway::config::parse(&text, &path).unwrap();
    let listeners = causeway::daemon::bind_all(&config).unwrap();
    test.world.daemon = causeway::daemon::Daemon::start(config, text, listeners).await.unwrap();
    let arrivals = test.arrivals(20).await;
    assert!(
        arrivals.iter().all(|arrival| arrival.place == "cloud"),
        "who had a copy gets no second: {:?}",
        notes(&arrivals)
    );
    test.world.stop().await;
}

/// A connection that lives long: the directory answers as it is now, not as it was when the connection came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_asks_the_directory_of_the_moment() {
    let mut test = Test::start().await;
    let mut stream = TcpStream::connect(test.world.internet_door).await.unwrap();
    for (say, answer) in [
        ("", "220 "),
        ("HELO client.fabrikam.com\r\n", "250 "),
        ("MAIL FROM:<erin@fabrikam.com>\r\n", "250 "),
        ("RCPT TO:<late@contoso.com>\r\n", "550 "),
        ("RSET\r\n", "250 "),
        ("!", ""),
        ("MAIL FROM:<erin@fabrikam.com>\r\n", "250 "),
        ("RCPT TO:<late@contoso.com>\r\n", "250 "),
        ("QUIT\r\n", "221 "),
    ] {
        if say == "!" {
            let file = test.world.folder.join("recipients.csv");
            let text = std::fs::read_to_string(&file).unwrap();
            std::fs::write(&file, format!("{text}late@contoso.com,on-premises,\n")).unwrap();
            assert!(test.world.daemon.reread());
            continue;
        }
        stream.write_all(say.as_bytes()).await.unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            assert!(timeout(PATIENCE, stream.read_buf(&mut line)).await.unwrap().unwrap() > 0, "{say}");
        }
        let line = String::from_utf8(line).unwrap();
        assert!(line.starts_with(answer), "{say}: {line}");
    }
    test.world.stop().await;
}

/// A slow client does not keep the relay at work: from the signal on no delivery begins, and what waits stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_end_no_delivery_begins_and_the_last_client_is_cut_off() {
    let mut test = Test::start().await;
    test.world.cloud.go_away(true);
    test.send(&["david@contoso.com"], "").await;
    test.event(&["\"DEFER\""]).await;
    test.world.cloud.go_away(false);
    let mut stream = TcpStream::connect(test.world.internet_door).await.unwrap();
    let lines = "HELO a\r\nMAIL FROM:<erin@fabrikam.com>\r\nRCPT TO:<julie@contoso.com>\r\nDATA\r\n";
    stream.write_all(lines.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while !(String::from_utf8_lossy(&said).contains("354 ") && said.ends_with(b"\r\n")) {
        assert!(timeout(PATIENCE, stream.read_buf(&mut said)).await.unwrap().unwrap() > 0);
    }
    // The message never ends. The ladder's only rung is a second, so a retry falls into the grace.
    test.world.daemon.stop(Duration::from_secs(3)).await;
    assert_eq!(test.world.daemon.relay().waiting(), 1, "{}", test.told());
    assert!(test.world.arrivals.try_recv().is_err(), "a delivery began after the signal");
    let mut rest = Vec::new();
    let end = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
    assert!(end.is_err() || rest.is_empty(), "cut off, not answered: {rest:?}");
}

/// `delivered-or-durable`, with so much patience.
async fn early(window: &str) -> Test {
    let change = |text: String| {
        let early = format!("[spool]\nacknowledge = \"delivered-or-durable\"\nacknowledge_window = \"{window}\"");
        assert!(text.contains("[spool]"));
        text.replace("[spool]", &early)
    };
    Test::with("", &change).await
}

/// Does any file of the spool hold this?
fn is_in_spool(test: &Test, what: &[u8]) -> bool {
    let log = test.world.folder.join("spool/log");
    let files = std::fs::read_dir(&log).unwrap().map(|file| std::fs::read(file.unwrap().path()).unwrap());
    files.into_iter().any(|bytes| bytes.windows(what.len()).any(|window| window == what))
}

const MARK: &[u8] = b"Message-ID: <1@fabrikam.com>";

/// `delivered-or-durable`: every copy was accepted by its next hop, and the disk was never touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_every_hop_took_needs_no_disk() {
    let mut test = early("30s").await;
    test.send(&["julie@contoso.com", "david@contoso.com"], "").await;
    // The 250 came after both.
    let arrived = [test.world.arrivals.try_recv().unwrap(), test.world.arrivals.try_recv().unwrap()];
    assert!(arrived.iter().all(|arrival| behind_received(arrival) == content()));
    for event in ["RECEIVE", "RESOLVE", "TRANSFER", "SEND"] {
        test.event(&[&format!("\"{event}\"")]).await;
    }
    test.quiet().await;
    assert!(!is_in_spool(&test, MARK));
    test.world.stop().await;
}

/// The other half: one hop is away, so the message is kept for it, and only for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_hop_did_not_take_is_kept_for_it() {
    let mut test = early("30s").await;
    test.world.cloud.go_away(true);
    test.send(&["julie@contoso.com", "david@contoso.com"], "").await;
    assert_eq!(test.world.daemon.relay().waiting(), 1);
    assert!(is_in_spool(&test, MARK));
    test.event(&["\"DEFER\"", "david@contoso.mail.onmicrosoft.com"]).await;
    // What comes while the hop rests goes to the disk at once.
    test.send(&["david@contoso.com"], "").await;
    test.world.cloud.go_away(false);
    let arrivals = test.arrivals(3).await;
    let on_premises = "on-premises: erin@fabrikam.com -> julie@contoso.com";
    let cloud = "cloud: erin@fabrikam.com -> david@contoso.mail.onmicrosoft.com";
    assert_eq!(notes(&arrivals), [cloud, cloud, on_premises]);
    test.world.stop().await;
}

/// What a hop refuses for good is reported as ever; the other recipient's copy is not sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_hop_refuses_is_reported_as_ever() {
    let mut test = early("30s").await;
    let refusal = reply(550, Status(5, 1, 1), "no such user");
    test.world.cloud.behave(Behaviour { recipient: Some(refusal), ..Behaviour::default() });
    test.send(&["julie@contoso.com", "david@contoso.com"], "").await;
    let arrivals = test.arrivals(2).await;
    assert_eq!(
        notes(&arrivals),
        ["internet:  -> erin@fabrikam.com", "on-premises: erin@fabrikam.com -> julie@contoso.com"]
    );
    test.event(&["\"FAIL\"", "david@contoso.mail.onmicrosoft.com"]).await;
    test.world.stop().await;
}

/// The window is over before the hops answer: the message is on disk, and each copy arrives once all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_is_over_costs_no_second_copy() {
    let mut test = early("0ms").await;
    for _ in 0..20 {
        test.send(&["julie@contoso.com", "david@contoso.com"], "").await;
    }
    assert_eq!(test.arrivals(40).await.len(), 40);
    assert!(is_in_spool(&test, MARK));
    test.world.stop().await;
}
