//! The stages together, over a spool on a disk that fails on demand; what hosts would say is made up.

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use nix::errno::Errno;

use super::schedule::Depth;
use super::work::Tried;
use super::*;
use crate::config;
use crate::deliver::{Attempt, Delivered};
use crate::dns::Resolver;
use crate::message::{Address, BodyType, Notify, visit};
use crate::outcome::Setback;
use crate::route::Clause;
use crate::smtp::Status;
use crate::spool::model::{Fault, Model, ModelDisk, Op};
use crate::spool::{LoadError, Options, Settings};
use crate::tls::Proof;

const HOUR: Duration = Duration::from_secs(3600);

const CONFIGURATION: &str = r#"
hostname = "mail.contoso.com"
postmaster = "postmaster@contoso.com"
[spool]
path = "/spool"
[[accepted_domain]]
name = "contoso.com"
type = "external-relay"
[[receive_connector]]
name = "internet"
listen = ["127.0.0.1:0"]
origin = "internet"
tls = "off"
relay = true
[[receive_connector]]
name = "partner"
listen = ["127.0.0.2:0"]
origin = "partner"
tls = "off"
sender_domains = ["*.partner.example"]
only_here = true
[[send_connector]]
name = "to-contoso"
address_spaces = ["contoso.com"]
smart_hosts = ["127.0.0.1:1"]
tls = "off"
max_message_size = "1KiB"
[[send_connector]]
name = "to-internet"
address_spaces = ["*"]
smart_hosts = ["127.0.0.1:1"]
tls = "off"
"#;

pub(super) struct Fixture {
    pub(super) relay: Relay,
    pub(super) disk: Arc<Model>,
    pub(super) events: Arc<Mutex<Vec<String>>>,
}

fn snapshot(change: &dyn Fn(String) -> String) -> Snapshot {
    snapshot_of(&change(CONFIGURATION.to_owned()), Path::new("/causeway.toml"))
}

pub(super) fn snapshot_of(text: &str, path: &Path) -> Snapshot {
    let config = Arc::new(config::parse(text, path).unwrap());
    let (directory, _) = Directory::load(&config.directories);
    let resolver = Resolver::new(&["127.0.0.1:1".parse().unwrap()]).unwrap();
    let deliverer = Deliverer::new(Arc::clone(&config), resolver, Vec::new());
    let visits = Arc::new(visit::Key::new(&[7; visit::KEY_LEN]));
    let deliverer = deliverer.marking(Arc::clone(&visits));
    Snapshot { config, directory: Arc::new(directory), users: Arc::default(), deliverer: Arc::new(deliverer), visits }
}

impl Fixture {
    /// No attempt is made by itself: the relay stands as it does while it stops.
    fn still() -> Self {
        Self::new(PUT_LIMIT)
    }

    fn new(put_limit: Duration) -> Self {
        Self::over(Model::new(1), snapshot(&|text| text), put_limit)
    }

    /// With what waits on this disk.
    pub(super) fn over(disk: Arc<Model>, snapshot: Snapshot, put_limit: Duration) -> Self {
        let settings = Settings { path: "/spool".into(), min_free_space: 0 };
        let (spool, recovery) =
            Spool::open_on(Arc::new(ModelDisk(Arc::clone(&disk))), settings, Options::default()).unwrap();
        let events: Arc<Mutex<Vec<String>>> = Arc::default();
        let tracked = Arc::clone(&events);
        let tracker = Tracker::none().watched(move |event| tracked.lock().unwrap().push(event.to_json()));
        let relay = Relay::with(snapshot, spool, tracker, put_limit);
        relay.begin_stop();
        relay.resume(recovery);
        Self { relay, disk, events }
    }

    fn connector(&self, name: &str) -> Arc<ReceiveConnector> {
        let config = Arc::clone(&self.relay.snapshot().config);
        config.receive_connectors.iter().find(|connector| &*connector.name.0 == name).unwrap().clone()
    }

    /// A whole session's questions, and the answer to the end of data.
    async fn send(&self, from: &str, to: &[&str], content: &str) -> Reply {
        self.send_by("internet", from, to, content, |_| {}).await
    }

    /// By another connector; `meanwhile` happens between the recipients and the end of data.
    pub(super) async fn send_by(
        &self,
        connector: &str,
        from: &str,
        to: &[&str],
        content: &str,
        meanwhile: impl FnOnce(&Self),
    ) -> Reply {
        let snapshot = self.relay.snapshot();
        let connector = self.connector(connector);
        let mut envelope = envelope(from);
        let verdict = Arc::new(Verdict::new(&connector, None, Clause::NotAsked, Clause::NotAsked));
        let peer = [192, 0, 2, 1].into();
        let asked = Asked { connector: &connector, peer, mail: None, routed: 0, verdict: &verdict };
        let mut routed = Vec::new();
        for to in to {
            let recipient = recipient(to);
            routed.extend(self.relay.check_recipient(&snapshot, &asked, recipient.clone()).unwrap());
            envelope.recipients.push(recipient);
        }
        meanwhile(self);
        let snapshot = self.relay.snapshot();
        let mut draft = self.relay.draft();
        draft.push(content.to_owned().into()).await.unwrap();
        let peer = Peer { ip: asked.peer, hello: "client.example".into(), extended: true, tls: None, user: None };
        self.relay.take(&snapshot, Submission { envelope, routed, draft, connector, peer, verdict }).await
    }

    fn lane(&self) -> LaneId {
        let name = config::ConnectorName("to-contoso".into());
        self.relay.queue().find(&name, &crate::route::Hop::SmartHosts).unwrap()
    }

    fn depth(&self) -> Depth {
        let lane = self.lane();
        self.relay.queue().depth(lane)
    }

    /// The one item of the lane, as a worker would have it.
    fn item(&self) -> Item {
        let out = self.relay.queue().sweep(|_| false);
        out.iter().for_each(|(lane, _)| self.relay.queue().let_go(*lane));
        let lane = self.lane();
        let mut ours: Vec<Item> = out.into_iter().filter(|(other, _)| *other == lane).map(|(_, item)| item).collect();
        assert_eq!(ours.len(), 1);
        ours.remove(0)
    }

    async fn settle(&self, item: Item, results: Vec<(u16, Result<Delivered, Setback>)>) {
        let message = self.relay.0.spool.load(item.id).unwrap().message;
        let tried = Tried { message: &message, item, lane: self.lane() };
        self.relay.settle(&self.relay.snapshot(), tried, Attempt { results }, Timestamp::now()).await;
        self.relay.0.spool.flush().await;
    }

    pub(super) fn open(&self, id: crate::message::MessageId) -> Vec<Vec<u16>> {
        match self.relay.0.spool.load(id) {
            Ok(loaded) => loaded.open,
            Err(LoadError::Gone) => Vec::new(),
            Err(error) => panic!("{error}"),
        }
    }

    /// How many events of this kind name this.
    pub(super) fn count(&self, kind: &str, what: &str) -> usize {
        let kind = format!("\"{kind}\"");
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| event.contains(&kind) && event.contains(what)).count()
    }
}

fn envelope(from: &str) -> Envelope {
    Envelope {
        sender: Address::parse(from).ok(),
        recipients: Vec::new(),
        ret: None,
        envid: None,
        body: BodyType::SevenBit,
        smtputf8: false,
        requiretls: false,
    }
}

fn recipient(to: &str) -> Recipient {
    Recipient { address: Address::parse(to).unwrap(), notify: Notify::Unsaid, orcpt: None }
}

fn answered(code: u16) -> Setback {
    let reply = Reply { code, status: Some(Status(code / 100, 1, 1)), text: "so it is".into() };
    Setback::Answered { host: "host".into(), command: "RCPT", reply }
}

fn delivered() -> Delivered {
    Delivered { host: "host".into(), reply: Reply::ok(), proof: Arc::new(Proof::Plain), dsn: false }
}

const THREE: [&str; 3] = ["one@contoso.com", "two@contoso.com", "three@contoso.com"];

/// Two spellings of a mailbox that the directory knows are one recipient of the hop, and both are in the report. Of another
/// organization's mailboxes nobody here knows whether they have a case.
#[tokio::test]
async fn two_spellings_of_a_mailbox_are_one_recipient_and_two_names() {
    let folder = tempfile::tempdir().unwrap();
    let list = "address,type,target\njulie@contoso.com,on-premises,\njules@contoso.com,alias,julie@contoso.com\n";
    std::fs::write(folder.path().join("recipients.csv"), list).unwrap();
    let text = CONFIGURATION.replace("external-relay", "authoritative").replacen(
        "[[receive_connector]]",
        "[[directory]]\nkind = \"file\"\npath = \"recipients.csv\"\n[[receive_connector]]",
        1,
    );
    let snapshot = snapshot_of(&text, &folder.path().join("causeway.toml"));
    let fixture = Fixture::over(Model::new(1), snapshot, PUT_LIMIT);
    let to = ["julie@contoso.com", "JULIE@contoso.com", "jules@contoso.com", "x@fabrikam.com", "X@fabrikam.com"];
    assert_eq!(fixture.send("erin@fabrikam.com", &to, "\r\n").await.code, 250);
    let item = fixture.item();
    let id = item.id;
    let message = fixture.relay.0.spool.load(id).unwrap().message;
    let named = |copy: &crate::route::HopCopy| {
        let names = copy.recipients.iter().map(|one| format!("{} as {}", one.asked.local(), one.recipient.address));
        names.collect::<Vec<_>>().join(", ")
    };
    let copies: Vec<_> = message.copies.iter().map(named).collect();
    assert_eq!(
        copies,
        [
            "julie as julie@contoso.com, JULIE as julie@contoso.com, jules as julie@contoso.com",
            "x as x@fabrikam.com, X as X@fabrikam.com",
        ]
    );
    fixture.settle(item, (0..3).map(|index| (index, Err(answered(550)))).collect()).await;
    assert_eq!(fixture.open(id), [vec![], vec![0, 1]]);
    assert_eq!(fixture.count("FAIL", "[\"julie@contoso.com\"]"), 1, "{:?}", fixture.events);
    assert_eq!(fixture.count("DSN", "erin@fabrikam.com"), 1);
    let out = fixture.relay.queue().sweep(|_| false);
    let mut reports = out.iter().filter(|(_, item)| item.id != id);
    let report = fixture.relay.0.spool.load(reports.next().unwrap().1.id).unwrap().message;
    let crate::message::Body::Memory(pieces) = &report.content else { panic!("not in memory") };
    let text = String::from_utf8_lossy(&pieces.concat()).into_owned();
    for name in ["julie", "JULIE", "jules"] {
        assert!(text.contains(&format!("<{name}@contoso.com>")), "{name}: {text}");
    }
    for name in ["Original-Recipient: rfc822; JULIE", "Original-Recipient: rfc822;jules"] {
        assert!(text.contains(&format!("{name}@contoso.com")), "{name}: {text}");
    }
    assert_eq!(text.matches("Final-Recipient: rfc822; julie@contoso.com").count(), 3, "{text}");
    out.iter().for_each(|(lane, _)| fixture.relay.queue().let_go(*lane));
}

/// One has it, one is to be tried again, one never: each is settled once, and the failure is one record with its
/// report.
#[tokio::test]
async fn a_partial_failure_settles_each_by_itself() {
    let fixture = Fixture::still();
    assert_eq!(fixture.send("erin@fabrikam.com", &THREE, "Subject: x\r\n\r\nx\r\n").await.code, 250);
    let item = fixture.item();
    let id = item.id;
    assert_eq!(fixture.open(id), [[0, 1, 2]]);
    fixture.settle(item, vec![(0, Ok(delivered())), (1, Err(answered(451))), (2, Err(answered(550)))]).await;
    assert_eq!(fixture.open(id), [[1]]);
    for (kind, what, count) in [
        ("SEND", "one@contoso.com", 1),
        ("DEFER", "two@contoso.com", 1),
        ("FAIL", "three@contoso.com", 1),
        ("DSN", "erin@fabrikam.com", 1),
        ("FAIL", "two@contoso.com", 0),
        ("DROP", "", 0),
    ] {
        assert_eq!(fixture.count(kind, what), count, "{kind} {what}: {:?}", fixture.events);
    }
    assert_eq!(fixture.depth().later, 1, "the second waits");
    assert_eq!(fixture.relay.waiting(), 2, "the message and the report");
}

/// The disk hangs, and the next attempt comes before it is written down who has the message: they do not get it again.
#[tokio::test]
async fn p3_a_disk_that_hangs_resends_nothing() {
    let fixture = Fixture::still();
    assert_eq!(fixture.send("erin@fabrikam.com", &THREE, "Subject: x\r\n\r\nx\r\n").await.code, 250);
    let item = fixture.item();
    let message = fixture.relay.0.spool.load(item.id).unwrap().message;
    fixture.disk.hold();
    let lane = fixture.lane();
    let mut item = item;
    for (results, expected) in [
        (vec![(0, Ok(delivered())), (1, Err(answered(451))), (2, Err(answered(451)))], &[1, 2][..]),
        (vec![(1, Ok(delivered())), (2, Err(answered(451)))], &[2]),
    ] {
        let tried = Tried { message: &message, item, lane };
        fixture.relay.settle(&fixture.relay.snapshot(), tried, Attempt { results }, Timestamp::now()).await;
        let _ = fixture.relay.queue().due(Instant::now() + HOUR);
        item = fixture.relay.queue().take(lane, Instant::now()).unwrap();
        let (_, open) = fixture.relay.fetch(lane, &mut item).await.unwrap();
        assert_eq!(open, expected);
    }
    assert_eq!(fixture.open(message.id), [[0, 1, 2]], "it is not written yet");
    fixture.disk.release();
    fixture.relay.0.spool.flush().await;
    assert_eq!(fixture.open(message.id), [[2]]);
}

/// Nor if an operator asks for the next attempt while nothing can be written: not to those of a copy who have it, and not
/// if all of them do. What is written is not kept in mind.
#[tokio::test]
async fn p3_asked_for_on_a_disk_that_fails_nothing_is_resent() {
    let fixture = Fixture::still();
    assert_eq!(fixture.send("erin@fabrikam.com", &THREE, "Subject: x\r\n\r\nx\r\n").await.code, 250);
    let item = fixture.item();
    let message = fixture.relay.0.spool.load(item.id).unwrap().message;
    assert_eq!(fixture.send("erin@fabrikam.com", &["ann@contoso.com"], "Subject: y\r\n\r\ny\r\n").await.code, 250);
    let all = fixture.item();
    fixture.disk.inject(Fault { op: Op::Write, after: 0, errno: Errno::EIO, lasts: true });
    let lane = fixture.lane();
    fixture.settle(item, vec![(0, Ok(delivered())), (1, Err(answered(451))), (2, Err(answered(451)))]).await;
    fixture.settle(all, vec![(0, Ok(delivered()))]).await;
    fixture.relay.0.stopping.store(false, Ordering::Release);
    let filter = queue::Filter::default();
    let by = queue::By { who: "root".to_owned(), reason: None };
    let changed = fixture.relay.change(queue::Change::Retry, &filter, &by, None, Instant::now() + HOUR).await.unwrap();
    assert_eq!((changed.changed, changed.passed, changed.failed.len()), (0, 1, 1), "{changed:?}");
    let later = Instant::now() + HOUR;
    let _ = fixture.relay.queue().due(later);
    // The old place means nothing any more.
    let mut item = fixture.relay.queue().next(lane, later).unwrap();
    assert_eq!(item.turn, 1);
    let (_, open) = fixture.relay.fetch(lane, &mut item).await.unwrap();
    assert_eq!(open, [1, 2]);
    assert!(fixture.relay.queue().next(lane, later).is_none(), "there is no second one");
    fixture.disk.heal();
    let deadline = Instant::now() + Duration::from_secs(60);
    while fixture.open(message.id) != [[1, 2]] {
        assert!(Instant::now() < deadline, "it is never written");
        tokio::task::yield_now().await;
    }
    fixture.relay.forget_orders();
    let mut all = vec![0, 1, 2];
    fixture.relay.queue().leave_out_done((message.id, 0), &mut all);
    assert_eq!(all, [0, 1, 2], "the spool knows it by now");
    assert_eq!(fixture.relay.queue().orders(), 1, "nothing is kept of the one that was gone");
}

/// What an operator returns is not tried meanwhile, however long its report takes; and whatever comes of it, what was not
/// returned has its place in the schedule afterwards: where the report could not be written, and where it ends before the
/// second of two has its turn.
#[tokio::test]
async fn what_an_operator_has_in_hand_is_not_tried() {
    for (what, returned, expected) in [("it hangs", 2, 0), ("it hangs, and ends there", 1, 1), ("it fails", 0, 2)] {
        let fixture = Arc::new(Fixture::still());
        for _ in 0..2 {
            assert_eq!(fixture.send("erin@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
        }
        let (of, lane) = (Arc::clone(&fixture), fixture.lane());
        let out = fixture.relay.queue().sweep(|_| false);
        let keys: Vec<_> = out.iter().map(|(_, item)| item.key()).collect();
        for (lane, item) in out {
            fixture.relay.queue().later(Instant::now() + HOUR / 2, lane, item);
            fixture.relay.queue().let_go(lane);
        }
        fixture.relay.0.stopping.store(false, Ordering::Release);
        let before = fixture.disk.written();
        match returned {
            0 => fixture.disk.inject(Fault { op: Op::Write, after: 0, errno: Errno::EIO, lasts: true }),
            _ => fixture.disk.hold(),
        }
        let changing = tokio::spawn(async move {
            let (filter, by) = (queue::Filter::default(), queue::By { who: "root".to_owned(), reason: None });
            of.relay.change(queue::Change::Bounce, &filter, &by, None, Instant::now() + HOUR).await.unwrap()
        });
        let next = || {
            let later = Instant::now() + HOUR;
            let mut queue = fixture.relay.queue();
            let _ = queue.due(later);
            if queue.depth(lane).active > 0 { queue.next(lane, later) } else { None }
        };
        let end = Instant::now() + Duration::from_secs(60);
        let in_hand = || keys.iter().all(|key| fixture.relay.queue().is_tried(*key));
        while returned > 0 && !(in_hand() && fixture.disk.written() > before) {
            assert!(Instant::now() < end, "{what}: nothing is written");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if returned > 0 {
            assert!(next().is_none(), "{what}: it would be returned and delivered");
        }
        if returned == 1 {
            changing.abort();
        }
        fixture.disk.release();
        match changing.await {
            Ok(changed) => assert_eq!((changed.changed, changed.failed.len()), (returned, expected), "{what}"),
            Err(_) => assert_eq!(returned, 1, "{what}"),
        }
        fixture.relay.begin_stop();
        fixture.disk.heal();
        fixture.relay.0.spool.flush().await;
        let mut found = 0;
        while let Some(mut item) = next() {
            found += usize::from(fixture.relay.fetch(lane, &mut item).await.is_some());
        }
        // The one whose report was on its way when it ended: which of the two is there is the disk's to say.
        assert!(found == expected || returned == 1 && found == 2, "{what}: {found} {:?}", fixture.events);
        assert_eq!(fixture.relay.waiting(), 2, "{what}: each is returned or waits, and none is both");
    }
}

/// The picture of mail flow says of each recipient what became of it, once somebody can ask.
#[tokio::test]
async fn the_flow_is_what_became_of_each_recipient() {
    use super::recent::{Said, State, Wanted};
    let ways = |fixture: &Fixture| -> Vec<(String, Said, [u64; 4])> {
        let paths = fixture.relay.flow(15).paths.into_iter();
        let mut ways: Vec<_> = paths
            .map(|path| (path.origin, path.verdict, [path.waiting, path.delivered, path.deferred, path.failed]))
            .collect();
        ways.sort_by_key(|(_, said, _)| *said);
        ways
    };
    let fixture = Fixture::still();
    let body = "Subject: x\r\n\r\nx\r\n";
    assert_eq!(fixture.send("erin@fabrikam.com", &["one@contoso.com"], body).await.code, 250);
    assert!(ways(&fixture).is_empty(), "nobody can ask, so nothing is kept");
    let before = fixture.item();
    fixture.relay.watch_flow();
    assert_eq!(fixture.send("erin@fabrikam.com", &THREE, body).await.code, 250);
    let internet = |said, counts| ("internet".to_owned(), said, counts);
    assert_eq!(ways(&fixture), [internet(Said::Relayed, [3, 0, 0, 0])]);
    let item = fixture.item();
    let id = item.id;
    fixture.settle(item, vec![(0, Ok(delivered())), (1, Err(answered(451))), (2, Err(answered(550)))]).await;
    fixture.settle(before, vec![(0, Ok(delivered()))]).await;
    let report = ("this relay".to_owned(), Said::Report, [1, 0, 0, 0]);
    assert_eq!(ways(&fixture), [internet(Said::Relayed, [0, 1, 1, 1]), report, internet(Said::Earlier, [0, 1, 0, 0])]);
    let wanted = Wanted { state: Some(State::Deferred), ..Wanted::default() };
    let listed = fixture.relay.flow_messages(15, &wanted, 10);
    let line = &listed.messages[0];
    assert_eq!((listed.messages.len(), listed.more, line.id.as_deref()), (1, 0, Some(id.to_string().as_str())));
    assert_eq!((line.from.as_str(), line.to.as_str()), ("erin@fabrikam.com", "two@contoso.com"));
    let listed = fixture.relay.flow_messages(15, &Wanted::default(), 2);
    assert_eq!((listed.messages.len(), listed.more), (2, 3));
    assert!(listed.messages[0].time >= listed.messages[1].time);
    fixture.relay.forget_flow();
    assert!(ways(&fixture).is_empty());
}

/// If the spool refuses the report, the failure is as if it had not happened yet; what was delivered stays so.
#[tokio::test]
async fn a_failure_that_cannot_be_reported_stays_open() {
    let fixture = Fixture::still();
    assert_eq!(fixture.send("erin@fabrikam.com", &THREE, "Subject: x\r\n\r\nx\r\n").await.code, 250);
    let item = fixture.item();
    let id = item.id;
    // What is written after this fails: the record of the report.
    fixture.disk.inject(Fault { op: Op::Write, after: 0, errno: Errno::EIO, lasts: true });
    let results = vec![(0, Err(answered(550))), (1, Err(answered(550))), (2, Err(answered(550)))];
    let message = fixture.relay.0.spool.load(id).unwrap().message;
    let tried = Tried { message: &message, item, lane: fixture.lane() };
    fixture.relay.settle(&fixture.relay.snapshot(), tried, Attempt { results }, Timestamp::now()).await;
    fixture.disk.heal();
    assert_eq!(fixture.open(id), [[0, 1, 2]]);
    assert_eq!((fixture.count("FAIL", ""), fixture.count("DSN", ""), fixture.count("DEFER", "")), (0, 0, 1));
    assert_eq!(fixture.depth().later, 1, "it is tried again");
}

/// S-111: who never wrote gets ten reports in an hour; the others wait for their turn, also over a restart, and every
/// failure is settled.
#[tokio::test]
async fn s111_reports_to_one_stranger_are_spread() {
    let fixture = Fixture::still();
    for _ in 0..13 {
        assert_eq!(fixture.send("victim@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
        let item = fixture.item();
        fixture.settle(item, vec![(0, Err(answered(550)))]).await;
    }
    let other = fixture.send("erin@tailspintoys.com", &["one@contoso.com"], "\r\n").await;
    assert_eq!(other.code, 250);
    let item = fixture.item();
    fixture.settle(item, vec![(0, Err(answered(550)))]).await;
    assert_eq!((fixture.count("FAIL", "one@contoso.com"), fixture.count("DSN", "victim@fabrikam.com")), (14, 13));
    assert_eq!(fixture.relay.waiting(), 14, "the reports, and nothing else");
    let name = config::ConnectorName("to-internet".into());
    let depth = |fixture: &Fixture| {
        let queue = fixture.relay.queue();
        let lane = queue.find(&name, &crate::route::Hop::SmartHosts).unwrap();
        (queue.depth(lane).ready, queue.depth(lane).later)
    };
    assert_eq!(depth(&fixture).1, 3);
    let again = Fixture::over(fixture.disk.crash(), snapshot(&|text| text), PUT_LIMIT);
    let soon = Instant::now() + Duration::from_secs(60);
    let _ = again.relay.queue().due(soon);
    assert_eq!(depth(&again), (11, 3), "they still wait for their turn");
    let _ = again.relay.queue().due(soon + HOUR + HOUR / 3);
    assert_eq!(depth(&again), (14, 0));
}

/// S-111: a report that the disk does not take has used no turn; when there is room again it goes out at once.
#[tokio::test]
async fn s111_a_full_disk_uses_up_no_turns() {
    let fixture = Fixture::still();
    assert_eq!(fixture.send("victim@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
    let item = fixture.item();
    let message = fixture.relay.0.spool.load(item.id).unwrap().message;
    let tried = Tried { message: &message, item, lane: fixture.lane() };
    let (snapshot, failed) = (fixture.relay.snapshot(), [(0, answered(550))]);
    fixture.disk.inject(Fault { op: Op::Write, after: 0, errno: Errno::ENOSPC, lasts: true });
    for _ in 0..150 {
        assert!(!fixture.relay.settle_failed(&snapshot, &tried, &failed, Timestamp::now()).await);
    }
    fixture.disk.heal();
    let end = Instant::now() + Duration::from_secs(60);
    while !fixture.relay.settle_failed(&snapshot, &tried, &failed, Timestamp::now()).await {
        assert!(Instant::now() < end, "the disk is well and nothing is written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((fixture.count("DSN", "victim@fabrikam.com"), fixture.count("DROP", "")), (1, 0));
    let name = config::ConnectorName("to-internet".into());
    let queue = fixture.relay.queue();
    let lane = queue.find(&name, &crate::route::Hop::SmartHosts).unwrap();
    assert_eq!((queue.depth(lane).ready, queue.depth(lane).later), (1, 0), "its turn is now");
}

/// S-111: who asks to hear of successes, under a forged name, does not take the reports of failures from who bears it.
#[tokio::test]
async fn s111_successes_take_no_turns_from_failures() {
    let fixture = Fixture::still();
    assert_eq!(fixture.send("victim@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
    let item = fixture.item();
    let mut message = Arc::into_inner(fixture.relay.0.spool.load(item.id).unwrap().message).unwrap();
    let notify = Notify::On { success: true, failure: true, delay: false };
    message.copies[0].recipients[0].recipient.notify = notify;
    let tried = Tried { message: &message, item, lane: fixture.lane() };
    let snapshot = fixture.relay.snapshot();
    for _ in 0..150 {
        fixture.relay.tell_done(&snapshot, &tried, &[(0, delivered())], Timestamp::now()).await;
    }
    assert_eq!((fixture.count("DSN", ""), fixture.count("DROP", "")), (10, 140));
    assert!(fixture.relay.settle_failed(&snapshot, &tried, &[(0, answered(550))], Timestamp::now()).await);
    assert_eq!((fixture.count("DSN", ""), fixture.count("DROP", "")), (11, 140), "it waits for its turn");
}

/// S-111, C195: a report that waits half a day for its turn has its whole life from there on; also over a restart.
#[tokio::test]
async fn s111_the_wait_for_its_turn_is_not_taken_from_a_reports_life() {
    let victim = Address::parse("victim@fabrikam.com").unwrap();
    for (restart, hours, waits) in [(false, 34, 1), (true, 34, 1), (false, 37, 0), (true, 37, 0)] {
        let mut fixture = Fixture::still();
        for _ in 0..118 {
            let _ = fixture.relay.0.backscatter.lock().unwrap().turn(&victim, Instant::now(), true);
        }
        assert_eq!(fixture.send("victim@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
        let item = fixture.item();
        fixture.settle(item, vec![(0, Err(answered(550)))]).await;
        assert_eq!((fixture.count("DSN", "victim@fabrikam.com"), fixture.count("DROP", "")), (1, 0));
        if restart {
            fixture = Fixture::over(fixture.disk.crash(), snapshot(&|text| text), PUT_LIMIT);
        }
        // After eleven hours and 48 minutes it may go; its hop is down then.
        let _ = fixture.relay.queue().due(Instant::now() + 13 * HOUR);
        fixture.relay.grow_older(hours * HOUR);
        fixture.relay.look_through(fixture.relay.wall()).await;
        fixture.relay.0.spool.flush().await;
        assert_eq!(fixture.relay.waiting(), waits, "after {hours} h, restart: {restart}");
        assert_eq!(fixture.count("DROP", "victim@fabrikam.com"), 1 - waits, "after {hours} h, restart: {restart}");
    }
}

/// S-111: a failure whose report would come too late stays in the queue, and is tried again until the message is too old.
#[tokio::test]
async fn s111_a_failure_that_cannot_be_reported_for_hours_is_kept() {
    let fixture = Fixture::still();
    let victim = Address::parse("victim@fabrikam.com").unwrap();
    for _ in 0..200 {
        let _ = fixture.relay.0.backscatter.lock().unwrap().turn(&victim, Instant::now(), true);
    }
    assert_eq!(fixture.send("victim@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
    let item = fixture.item();
    let id = item.id;
    fixture.settle(item, vec![(0, Err(answered(550)))]).await;
    assert_eq!((fixture.count("FAIL", ""), fixture.count("DROP", ""), fixture.count("DEFER", "")), (0, 0, 1));
    assert_eq!(fixture.open(id), [[0]]);
    let lane = fixture.lane();
    let soon = Instant::now() + HOUR - Duration::from_secs(60);
    let _ = fixture.relay.queue().due(soon);
    assert_eq!((fixture.depth().ready, fixture.depth().later), (0, 1), "the hop is not asked every minute");
    let _ = fixture.relay.queue().due(soon + Duration::from_secs(120));
    let item = fixture.item();
    let message = fixture.relay.0.spool.load(id).unwrap().message;
    let tried = Tried { message: &message, item, lane };
    let attempt = Attempt { results: vec![(0, Err(answered(550)))] };
    fixture.relay.grow_older(49 * HOUR);
    fixture.relay.settle(&fixture.relay.snapshot(), tried, attempt, fixture.relay.wall()).await;
    fixture.relay.0.spool.flush().await;
    assert_eq!((fixture.count("FAIL", ""), fixture.count("DROP", "victim@fabrikam.com")), (1, 1));
    assert_eq!((fixture.open(id).len(), fixture.count("DSN", "")), (0, 0));
}

/// The wall clock is three days ahead for four seconds: nothing expires, and what came or was tried meanwhile is neither too old
/// nor too new; not in this run, and not after the next start.
#[tokio::test]
async fn a_wall_clock_that_jumps_returns_no_mail_and_delays_none() {
    let days = jiff::SignedDuration::from_hours(72);
    clock::held::hold(Some("2026-11-20T14:30:15Z".parse().unwrap()));
    let fixture = Fixture::still();
    assert_eq!(fixture.send("erin@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
    fixture.relay.grow_older(HOUR);
    clock::held::jump(days);
    fixture.relay.look_through(fixture.relay.wall()).await;
    assert_eq!((fixture.count("FAIL", ""), fixture.count("DSN", "")), (0, 0));
    let lane = fixture.lane();
    let tried = fixture.relay.queue().take(lane, Instant::now()).unwrap();
    let first = tried.id;
    let message = fixture.relay.0.spool.load(tried.id).unwrap().message;
    let attempt = Attempt { results: vec![(0, Err(answered(451)))] };
    let tried = Tried { message: &message, item: tried, lane };
    fixture.relay.settle(&fixture.relay.snapshot(), tried, attempt, fixture.relay.wall()).await;
    assert_eq!((fixture.count("FAIL", ""), fixture.count("DEFER", "one@contoso.com")), (0, 1));
    assert_eq!(fixture.send("erin@fabrikam.com", &["two@contoso.com"], "\r\n").await.code, 250);
    clock::held::jump(-days);
    let life = |relay: &Relay, item: &Item| relay.age_in_life(item.id, item.accepted, 48 * HOUR);
    let of_both = |fixture: &Fixture| {
        let lane = fixture.lane();
        let _ = fixture.relay.queue().due(Instant::now() + HOUR);
        let taken: Vec<Item> =
            std::iter::from_fn(|| fixture.relay.queue().take(lane, Instant::now())).take(2).collect();
        assert_eq!(taken.len(), 2, "both are due within the hour");
        taken
    };
    fixture.relay.0.spool.flush().await;
    let disk = fixture.disk.crash();
    for item in of_both(&fixture) {
        let expected = if item.id == first { HOUR } else { Duration::ZERO };
        let age = life(&fixture.relay, &item);
        assert!(age >= expected && age < expected + HOUR / 2, "{}: {age:?}", item.id);
    }

    // The second message carries a time three days ahead, and so does the next attempt of the first.
    let again = Fixture::over(disk, snapshot(&|text| text), PUT_LIMIT);
    for item in of_both(&again) {
        let age = life(&again.relay, &item);
        assert!(age < 2 * HOUR, "{}: {age:?}", item.id);
        again.relay.grow_older(HOUR);
        assert!(life(&again.relay, &item) >= HOUR, "{}: it grows older, wherever its time lies", item.id);
    }
    clock::held::hold(None);
}

/// The clock is three days beyond what the spool saw last: what waits is tried for an hour before it expires. If the clock is
/// set right in that time, it does not.
#[tokio::test]
async fn a_start_under_a_clock_that_is_ahead_returns_nothing_at_once() {
    for set_right in [false, true] {
        let days = jiff::SignedDuration::from_hours(72);
        clock::held::hold(Some("2026-11-20T14:30:15Z".parse().unwrap()));
        let fixture = Fixture::still();
        assert_eq!(fixture.send("erin@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
        clock::held::jump(days);
        let again = Fixture::over(fixture.disk.crash(), snapshot(&|text| text), PUT_LIMIT);
        let _ = again.relay.queue().due(Instant::now());
        let lane = again.lane();
        let item = again.relay.queue().take(lane, Instant::now()).unwrap();
        again.settle(item, vec![(0, Err(answered(451)))]).await;
        assert_eq!((again.count("FAIL", ""), again.count("DEFER", "")), (0, 1), "tried, and not given up");
        again.relay.grow_older(HOUR / 2);
        again.relay.look_through(again.relay.wall()).await;
        assert_eq!(again.count("FAIL", ""), 0);
        if set_right {
            clock::held::jump(-days);
        }
        again.relay.grow_older(HOUR);
        let _ = again.relay.queue().due(Instant::now() + HOUR);
        again.relay.look_through(again.relay.wall()).await;
        assert_eq!(again.count("FAIL", ""), usize::from(!set_right), "{set_right}");
        clock::held::hold(None);
    }
}

/// S-111: what our applications send is reported however much of it fails, whatever name they write under.
#[tokio::test]
async fn s111_our_own_applications_hear_of_every_failure() {
    let fixture = Fixture::still();
    let client = "origin = \"client\"\nremote_ips = [\"10.0.0.0/8\"]";
    fixture.relay.replace(snapshot(&|text| text.replace("origin = \"internet\"", client)));
    for _ in 0..20 {
        assert_eq!(fixture.send("shop@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
        let item = fixture.item();
        fixture.settle(item, vec![(0, Err(answered(550)))]).await;
    }
    assert_eq!((fixture.count("DSN", "shop@fabrikam.com"), fixture.count("DROP", "")), (20, 0));
    let name = config::ConnectorName("to-internet".into());
    let queue = fixture.relay.queue();
    let lane = queue.find(&name, &crate::route::Hop::SmartHosts).unwrap();
    assert_eq!(queue.depth(lane).later, 0, "none of them waits for a turn");
}

/// By which connector, from whom, with what that was believed: who is not held to the limit.
#[tokio::test]
async fn s111_who_is_told_without_limit() {
    let fixture = Fixture::still();
    assert_eq!(fixture.send("erin@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
    let mut message = Arc::into_inner(fixture.relay.0.spool.load(fixture.item().id).unwrap().message).unwrap();
    let apps =
        "[[receive_connector]]\nname = \"apps\"\nlisten = [\"127.0.0.5:0\"]\norigin = \"client\"\ntls = \"off\"\n";
    let snapshot = snapshot(&|text| with_cloud(text) + apps);
    let (ours, theirs) = ("anna@contoso.com", "eve@elsewhere.example");
    for (connector, from, organization, expected) in [
        ("apps", ours, OrganizationHeaders::None, true),
        ("apps", theirs, OrganizationHeaders::None, true),
        ("from-cloud", ours, OrganizationHeaders::Cut, true),
        ("from-cloud", theirs, OrganizationHeaders::Believed, false),
        ("internet", ours, OrganizationHeaders::Cut, false),
        ("renamed", ours, OrganizationHeaders::Believed, true),
        ("renamed", theirs, OrganizationHeaders::Believed, false),
        ("renamed", ours, OrganizationHeaders::Cut, false),
    ] {
        message.connector = connector.into();
        message.envelope.sender = Address::parse(from).ok();
        message.organization = organization;
        assert_eq!(visits::is_unlimited(&snapshot, &message), expected, "{connector} {from} {organization:?}");
    }
}

/// A warning that comes too late to warn is not written.
#[tokio::test]
async fn s111_a_delay_is_not_reported_late() {
    let fixture = Fixture::still();
    let victim = Address::parse("victim@fabrikam.com").unwrap();
    for _ in 0..10 {
        let _ = fixture.relay.0.backscatter.lock().unwrap().turn(&victim, Instant::now(), true);
    }
    assert_eq!(fixture.send("victim@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
    for hours in [5, 6] {
        fixture.relay.grow_older(hours * HOUR);
        fixture.relay.look_through(fixture.relay.wall()).await;
    }
    assert_eq!((fixture.count("DSN", ""), fixture.count("DROP", "victim@fabrikam.com")), (0, 1), "and said once");
    assert_eq!((fixture.depth().ready, fixture.relay.waiting()), (1, 1));
}

/// C192: nobody is told of the failure of what came from `<>`, but the events say that it is dropped.
#[tokio::test]
async fn c192_a_report_that_fails_is_dropped() {
    let fixture = Fixture::still();
    assert_eq!(fixture.send("", &["one@contoso.com"], "\r\n").await.code, 250);
    let item = fixture.item();
    let id = item.id;
    fixture.settle(item, vec![(0, Err(answered(550)))]).await;
    assert_eq!(fixture.open(id), [[0u16; 0]; 0]);
    assert_eq!((fixture.count("FAIL", ""), fixture.count("DROP", "one@contoso.com")), (1, 1));
    assert_eq!((fixture.count("DSN", ""), fixture.relay.waiting()), (0, 0));
}

/// What rests is looked at for its age only: a warning, once, to whom it may concern; its turn and its attempts stay as
/// they were.
#[tokio::test]
async fn what_is_late_is_said_once_and_postpones_nothing() {
    for (from, hours, reports, ready) in [
        ("erin@fabrikam.com", 3, 0, 1),
        ("erin@fabrikam.com", 5, 1, 1),
        ("", 5, 0, 1),
        // The end of its life: a failure report, and nothing waits but that.
        ("erin@fabrikam.com", 49, 1, 0),
        ("", 49, 0, 0),
    ] {
        let fixture = Fixture::still();
        assert_eq!(fixture.send(from, &["one@contoso.com"], "\r\n").await.code, 250);
        fixture.relay.grow_older(hours * HOUR);
        for _ in 0..3 {
            fixture.relay.look_through(fixture.relay.wall()).await;
        }
        let depth = fixture.depth();
        assert_eq!((depth.ready, depth.later), (ready, 0), "{from} after {hours} h");
        assert_eq!(fixture.count("DSN", ""), reports, "{from} after {hours} h");
        assert_eq!(fixture.count("FAIL", ""), 1 - ready, "{from} after {hours} h");
        if ready == 1 {
            let item = fixture.item();
            assert_eq!((item.attempts, item.warned), (0, hours >= 4), "{from} after {hours} h");
        }
    }
}

/// F-034: what was never tried, because its hop was down all the time, is returned with what the hop's last answer was.
#[tokio::test]
async fn f034_the_end_of_a_long_rest_says_what_the_lane_met() {
    for (known, expected) in [(false, "no attempt was possible in this time"), (true, "connection refused by mx")] {
        let fixture = Fixture::still();
        assert_eq!(fixture.send("erin@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
        if known {
            let why = Setback::Unreachable { host: "mx".into(), why: "connection refused by mx".into() };
            let lane = fixture.lane();
            fixture.relay.queue().remember(lane, why);
        }
        for hours in [5, 44] {
            fixture.relay.grow_older(hours * HOUR);
            fixture.relay.look_through(fixture.relay.wall()).await;
        }
        let failed = |event: &&String| event.contains("\"FAIL\"") && event.contains("one@contoso.com");
        let events = fixture.events.lock().unwrap().clone();
        let event = events.iter().find(failed).unwrap_or_else(|| panic!("{events:?}"));
        assert!(event.contains(expected), "{event}");
        // The warning of before is too old by now; the report of the failure waits.
        let out = fixture.relay.queue().sweep(|_| false);
        assert_eq!(out.len(), 1);
        let (lane, item) = &out[0];
        let report = fixture.relay.0.spool.load(item.id).unwrap().message;
        let crate::message::Body::Memory(pieces) = &report.content else { panic!("not in memory") };
        let text = String::from_utf8_lossy(&pieces.concat()).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(expected), "{text}");
        fixture.relay.queue().let_go(*lane);
    }
}

/// F-057: when the connector is back, what waits for it goes at once.
#[tokio::test]
async fn f057_a_connector_that_is_back_is_tried_at_once() {
    let fixture = Fixture::still();
    let last = snapshot(&|text| text.replace("name = \"to-contoso\"", "name = \"renamed\""));
    fixture.relay.replace(last);
    let send = fixture.send("erin@fabrikam.com", &["one@contoso.com"], "\r\n").await;
    assert_eq!(send.code, 250);
    let name = config::ConnectorName("renamed".into());
    let lane = fixture.relay.queue().find(&name, &crate::route::Hop::SmartHosts).unwrap();
    let _ = fixture.relay.queue().feedback(lane, Instant::now(), schedule::Feedback::Down, 0.5);
    let rests = || fixture.relay.queue().depth(lane).resting.is_some();
    fixture.relay.0.stopping.store(false, Ordering::Release);
    fixture.relay.replace(snapshot(&|text| {
        text.replace("name = \"to-contoso\"", "name = \"renamed\"").replace("\"to-internet\"", "\"other\"")
    }));
    assert!(rests(), "that was another's change");
    fixture.relay.replace(snapshot(&|text| text));
    assert!(!rests());
    fixture.relay.begin_stop();
}

/// What is longer than any record is refused for good.
#[test]
fn an_envelope_that_never_fits_is_refused_for_good() {
    let reply = acknowledge::put_failed(&crate::spool::PutError::TooLong("20000000 bytes".into()));
    assert_eq!((reply.code, reply.status), (552, Some(Status(5, 3, 4))));
}

#[tokio::test]
async fn the_end_of_data_is_answered_by_what_became_of_it() {
    let hops = "Received: from a by b\r\n".repeat(HOP_LIMIT);
    let long = format!("\r\n{}\r\n", "x".repeat(1500));
    for (content, code, status) in [
        ("Subject: x\r\n\r\nx\r\n", 250, Status(2, 0, 0)),
        (&hops[..], 550, Status(5, 4, 6)),
        (&hops[hops.find('\n').unwrap() + 1..], 552, Status(5, 3, 4)),
        (&long, 552, Status(5, 3, 4)),
    ] {
        let fixture = Fixture::still();
        let reply = fixture.send("erin@fabrikam.com", &["one@contoso.com"], content).await;
        assert_eq!((reply.code / 100, reply.code == 250), (code / 100, code == 250), "{reply}");
        assert_eq!(reply.status.unwrap(), status, "{reply}");
        assert_eq!(fixture.relay.waiting(), usize::from(code == 250));
        assert_eq!(fixture.count("RECEIVE", ""), usize::from(code == 250));
    }
}

/// C116, S-123: a header that cannot be judged whole is not taken: behind the limit anything could stand.
#[tokio::test]
async fn c116_a_header_without_end_is_refused() {
    let forged = "X-MS-Exchange-Organization-AuthAs: Internal\r\n";
    let long = |fields: usize| format!("{}{forged}\r\nx\r\n", "A: b\r\n".repeat(fields));
    for (what, content, good) in [
        ("all the fields there may be", long(header::FIELD_LIMIT - 1), true),
        ("one more", long(header::FIELD_LIMIT), false),
        ("a MiB in one field", format!("A: {}\r\n{forged}\r\n", "x".repeat(header::HEADER_LIMIT)), false),
        ("a MiB and no end", format!("{forged}{}", "A: b\r\n".repeat(header::HEADER_LIMIT / 6 + 1)), false),
        ("a MiB of body", format!("{forged}\r\n{}", "x\r\n".repeat(header::HEADER_LIMIT / 3)), true),
        ("no body at all", forged.to_owned(), true),
        ("no header at all", "\r\nx\r\n".to_owned(), true),
    ] {
        let fixture = Fixture::still();
        // Neither is its size what is refused: this domain's connector has no limit.
        let reply = fixture.send("erin@fabrikam.com", &["eve@elsewhere.example"], &content).await;
        let expected = if good { (250, Status(2, 0, 0)) } else { (552, Status(5, 3, 4)) };
        assert_eq!((reply.code, reply.status.unwrap()), expected, "{what}: {reply}");
        assert_eq!(fixture.count("FAIL", "the header has more than"), usize::from(!good), "{what}");
        assert_eq!(fixture.relay.waiting(), usize::from(good), "{what}");
    }
}

/// A configuration with a connector of the cloud's that lists organizations. What it says of origin decides where
/// mail for contoso.com goes once `[hybrid]` stands; here the right to relay is what is lost.
fn with_cloud(text: String) -> String {
    text + r#"
[[receive_connector]]
name = "from-cloud"
listen = ["127.0.0.3:0"]
origin = "cloud"
tls = "off"
internal = true
originator_org = ["contoso.com"]
[[receive_connector]]
name = "from-partner"
listen = ["127.0.0.4:0"]
origin = "partner"
tls = "off"
sender_domains = ["fabrikam.example"]
only_here = true
internal = true
originator_org = ["fabrikam.example"]
"#
}

/// `originator_org`: whose the message is turns out at its end, and it is taken or refused as a whole.
#[tokio::test]
async fn a_message_of_another_organization_counts_as_from_the_internet() {
    const OURS: &str = "X-OriginatorOrg: contoso.com\r\n";
    const THEIRS: &str = "X-OriginatorOrg: evil.example\r\n";
    const INSIDE: &str = "one@contoso.com";
    const OUTSIDE: &str = "eve@elsewhere.example";
    type Row<'a> = (&'a str, &'a str, &'a [&'a str], &'a str, (u16, Status), &'a str);
    let denied = (550, Status(5, 7, 1));
    let taken = (250, Status(2, 0, 0));
    let stranger = "originator_org: false (evil.example)";
    let rows: &[Row<'_>] = &[
        ("from-cloud", "anna@contoso.com", &[INSIDE, OUTSIDE], OURS, taken, "internal: yes"),
        ("from-cloud", "anna@contoso.com", &[INSIDE, OUTSIDE], OURS, taken, "originator_org contoso.com: true"),
        ("from-cloud", "anna@contoso.com", &[INSIDE], THEIRS, taken, stranger),
        ("from-cloud", "anna@contoso.com", &[INSIDE], "", taken, "originator_org: false (none was named)"),
        ("from-cloud", "anna@contoso.com", &[INSIDE], "", taken, "it counts as from the Internet"),
        ("from-cloud", "anna@contoso.com", &[OUTSIDE], THEIRS, denied, stranger),
        // Nobody is served where one is refused.
        ("from-cloud", "anna@contoso.com", &[INSIDE, OUTSIDE], THEIRS, denied, stranger),
        ("from-cloud", "anna@contoso.com", &[INSIDE, OUTSIDE], "", denied, "originator_org: false (none was named)"),
        ("from-cloud", "", &[OUTSIDE], THEIRS, denied, stranger),
        // A partner who must come one way is one only if the service vouches for him.
        (
            "from-partner",
            "a@fabrikam.example",
            &[INSIDE],
            "X-OriginatorOrg: fabrikam.example\r\n",
            taken,
            "internal: yes",
        ),
        ("from-partner", "a@fabrikam.example", &[INSIDE], THEIRS, denied, stranger),
        ("from-cloud", "a@partner.example", &[INSIDE], THEIRS, denied, "must come from its partner's servers"),
        // A connector that lists none asks nobody.
        ("internet", "anna@contoso.com", &[INSIDE, OUTSIDE], THEIRS, taken, "does not have internal = true"),
    ];
    for (connector, from, to, header, expected, words) in rows {
        let fixture = Fixture::still();
        fixture.relay.replace(snapshot(&with_cloud));
        let content = format!("{header}X-MS-Exchange-Organization-AuthAs: Internal\r\nSubject: x\r\n\r\nx\r\n");
        let reply = fixture.send_by(connector, from, to, &content, |_| {}).await;
        let row = format!("{connector}: {from} -> {to:?}, {header:?}");
        assert_eq!((reply.code, reply.status.unwrap()), *expected, "{row}: {reply}");
        let kind = if reply.is_positive() { "RECEIVE" } else { "FAIL" };
        assert_eq!(fixture.count(kind, words), 1, "{row}: {:?}", fixture.events);
        assert_eq!(fixture.relay.waiting(), usize::from(reply.is_positive()), "{row}");
        if reply.is_positive() {
            let id = fixture.events.lock().unwrap()[0].split("\"id\":\"").nth(1).unwrap().to_owned();
            let id = id.split('"').next().unwrap();
            let id = crate::message::MessageId(u64::from_str_radix(id, 16).unwrap());
            let message = fixture.relay.0.spool.load(id).unwrap().message;
            let internal = fixture.count("RECEIVE", "internal: yes") == 1;
            let expected = if internal { OrganizationHeaders::Believed } else { OrganizationHeaders::Cut };
            assert_eq!(message.organization, expected, "{row}");
            assert_eq!(message.copies.iter().map(|copy| copy.recipients.len()).sum::<usize>(), to.len(), "{row}");
        }
    }
}

/// A recipient that cannot be judged now holds the whole message up, unless another is refused for good.
#[tokio::test]
async fn a_message_that_changes_its_origin_waits_for_what_cannot_be_judged() {
    for (to, code, status) in [
        (&["one@contoso.com"][..], 451, Status(4, 3, 5)),
        (&["one@contoso.com", "two@contoso.com"], 451, Status(4, 3, 5)),
        (&["one@contoso.com", "eve@elsewhere.example"], 550, Status(5, 7, 1)),
        (&["eve@elsewhere.example", "one@contoso.com"], 550, Status(5, 7, 1)),
    ] {
        let fixture = Fixture::still();
        fixture.relay.replace(snapshot(&with_cloud));
        let disable = |fixture: &Fixture| {
            fixture
                .relay
                .replace(snapshot(&|text| with_cloud(text.replace("smart_hosts =", "enabled = false\nsmart_hosts ="))));
        };
        let reply = fixture.send_by("from-cloud", "anna@contoso.com", to, "Subject: x\r\n\r\n", disable).await;
        assert_eq!((reply.code, reply.status.unwrap()), (code, status), "{to:?}: {reply}");
        assert_eq!((fixture.relay.waiting(), fixture.count("RECEIVE", "")), (0, 0), "{to:?}");
        assert_eq!(fixture.count("FAIL", "originator_org: false (none was named)"), 1, "{to:?}");
    }
}

/// `durable`: without a receipt there is no 250.
#[tokio::test]
async fn what_the_disk_refuses_is_not_acknowledged() {
    for (errno, code, status) in [(Errno::EIO, 452, Status(4, 3, 0)), (Errno::ENOSPC, 452, Status(4, 3, 1))] {
        let fixture = Fixture::still();
        fixture.disk.inject(Fault { op: Op::Write, after: 0, errno, lasts: true });
        let reply = fixture.send("erin@fabrikam.com", &["one@contoso.com"], "\r\n").await;
        assert_eq!((reply.code, reply.status), (code, Some(status)), "{errno}: {reply}");
        fixture.disk.heal();
        assert_eq!((fixture.count("RECEIVE", ""), fixture.relay.waiting()), (0, 0), "{errno}");
    }
}

/// `sender_domains` and `only_here`.
#[tokio::test]
async fn who_may_send_by_which_connector() {
    let fixture = Fixture::still();
    let snapshot = fixture.relay.snapshot();
    for (connector, from, good) in [
        ("internet", "anna@fabrikam.com", true),
        ("internet", "", true),
        ("internet", "anna@partner.example", false),
        ("internet", "anna@sub.partner.example", false),
        ("internet", "anna@notpartner.example", true),
        ("partner", "anna@partner.example", true),
        ("partner", "anna@sub.partner.example", true),
        ("partner", "anna@fabrikam.com", false),
        ("partner", "", true),
    ] {
        let answer = fixture.relay.check_sender(&snapshot, &fixture.connector(connector), &envelope(from), None);
        let answer = answer.map_err(|reply| (reply.code, reply.status));
        assert_eq!(answer, if good { Ok(()) } else { Err((550, Some(Status(5, 7, 1)))) }, "{connector} {from}");
    }
}

/// F-057: what waits for a connector that is gone or switched off is held, and goes when it is back.
#[tokio::test]
async fn f057_mail_for_a_missing_connector_is_held() {
    for (kind, was, is) in [
        ("missing", "name = \"to-contoso\"", "name = \"renamed\""),
        ("disabled", "max_message_size = \"1KiB\"", "enabled = false"),
    ] {
        let fixture = Fixture::still();
        assert_eq!(fixture.send("erin@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
        let item = fixture.item();
        let id = item.id;
        fixture.relay.replace(snapshot(&|text| text.replace(was, is)));
        let message = fixture.relay.0.spool.load(id).unwrap().message;
        let attempt = fixture.relay.deliver(&fixture.relay.snapshot(), &message, 0, &[0], &|_| {}).await;
        let Err(setback) = &attempt.results[0].1 else { panic!("{kind}") };
        assert!(matches!(setback, Setback::NoConnector { state, .. } if *state == kind), "{setback}");
        fixture.settle(item, attempt.results).await;
        assert_eq!(fixture.open(id), [[0]], "{kind}");
        assert_eq!((fixture.count("DEFER", kind), fixture.count("FAIL", "")), (1, 0), "{kind}");
    }
}

/// Fresh messages are counted while they are in memory, and only then.
#[tokio::test]
async fn what_is_resident_is_counted_out_again() {
    let fixture = Fixture::still();
    let to = ["one@contoso.com", "two@fabrikam.com"];
    assert_eq!(fixture.send("erin@fabrikam.com", &to, "Subject: x\r\n\r\nx\r\n").await.code, 250);
    assert!(fixture.relay.0.resident.load(Ordering::Relaxed) > 1024);
    let out = fixture.relay.queue().sweep(|_| false);
    assert_eq!(out.len(), 2);
    for (number, (lane, mut item)) in out.into_iter().enumerate() {
        let before = fixture.relay.0.resident.load(Ordering::Relaxed);
        let (_, open) = fixture.relay.fetch(lane, &mut item).await.unwrap();
        assert_eq!(open, [0]);
        let after = fixture.relay.0.resident.load(Ordering::Relaxed);
        assert_eq!((before > 0, after > 0), (true, number == 0));
        // The second time it comes from the spool.
        assert!(fixture.relay.fetch(lane, &mut item).await.is_some());
    }
}

/// What the last run left behind is found, with what is known of it, and only what is open.
#[tokio::test]
async fn what_was_left_is_taken_up_again() {
    let fixture = Fixture::still();
    assert_eq!(fixture.send("erin@fabrikam.com", &THREE, "\r\n").await.code, 250);
    let item = fixture.item();
    let id = item.id;
    fixture.settle(item, vec![(0, Ok(delivered())), (1, Err(answered(451))), (2, Ok(delivered()))]).await;
    let disk = fixture.disk.crash();
    let settings = Settings { path: "/spool".into(), min_free_space: 0 };
    let (spool, recovery) =
        Spool::open_on(Arc::new(ModelDisk(Arc::clone(&disk))), settings, Options::default()).unwrap();
    let relay = Relay::new(snapshot(&|text| text), spool, Tracker::none());
    relay.begin_stop();
    relay.resume(recovery);
    let again = Fixture { relay, disk, events: Arc::default() };
    assert_eq!((again.depth().later, again.open(id)), (1, vec![vec![1]]));
    let mut started = again.relay.queue().due(Instant::now() + HOUR);
    assert_eq!(started.len(), 1);
    let item = again.relay.queue().take(started.remove(0), Instant::now()).unwrap();
    assert_eq!((item.id, item.copy, item.attempts, item.warned), (id, 0, 1, false));
}

/// F-017: the disk hangs. In the end the client hears 451, and the message is not delivered when the disk is back.
#[tokio::test]
async fn f017_a_message_the_disk_holds_up_is_taken_back() {
    let fixture = Fixture::new(Duration::from_millis(50));
    fixture.disk.hold();
    let reply = fixture.send("erin@fabrikam.com", &["one@contoso.com"], "\r\n").await;
    assert_eq!(reply.code, 451, "{reply}");
    fixture.disk.release();
    fixture.relay.0.spool.flush().await;
    fixture.relay.0.spool.flush().await;
    assert_eq!((fixture.relay.waiting(), fixture.count("RECEIVE", ""), fixture.relay.queue().len()), (0, 0, 0));
}

/// Groups cannot make more recipients of one message than its record can count: the client sends the others again.
#[tokio::test]
async fn recipients_are_bounded_after_expansion() {
    let fixture = Fixture::still();
    let (snapshot, connector) = (fixture.relay.snapshot(), fixture.connector("internet"));
    for (before, good) in [(0, true), (ROUTED_LIMIT - 1, true), (ROUTED_LIMIT, false)] {
        let verdict = Verdict::new(&connector, None, Clause::NotAsked, Clause::NotAsked);
        let peer = [192, 0, 2, 1].into();
        let asked = Asked { connector: &connector, peer, mail: None, routed: before, verdict: &verdict };
        let answer = fixture.relay.check_recipient(&snapshot, &asked, recipient("one@contoso.com"));
        match answer {
            Ok(routed) => assert!(good && routed.len() == 1, "after {before}"),
            Err(reply) => assert_eq!((good, reply.code, reply.status), (false, 452, Some(Status(4, 5, 3))), "{reply}"),
        }
    }
}

/// What waits for a hop that is down leaves the memory to what can go.
#[tokio::test]
async fn what_waits_for_a_hop_that_rests_is_not_kept_in_memory() {
    let fixture = Fixture::still();
    for (content, resident) in [("one\r\n", true), ("two\r\n", false)] {
        assert_eq!(fixture.send("erin@fabrikam.com", &["one@contoso.com"], content).await.code, 250);
        assert_eq!(fixture.item().resident.is_some(), resident, "{content}");
        let lane = fixture.lane();
        let _ = fixture.relay.queue().feedback(lane, Instant::now(), schedule::Feedback::Down, 0.5);
    }
    assert_eq!(fixture.relay.0.resident.load(Ordering::Relaxed), 0);
}

/// S-112: of two recipients the one that goes in circles is cut, and reported to the sender; the
/// other gets its copy.
#[tokio::test]
async fn one_that_goes_in_circles_takes_nothing_from_the_other() {
    let fixture = Fixture::still();
    let hybrid = "[hybrid]\non_premises = \"to-contoso\"\ncloud = \"to-internet\"\nrouting_domain = \"r.example\"\n\
                  disagreement_grace = \"0s\"\n[spool]";
    fixture.relay.replace(snapshot(&|text| text.replace("[spool]", hybrid)));
    let [one, two] = [THREE[0], THREE[1]].map(|to| Address::parse(to).unwrap());
    let visit = visit::Visit { by: "internet", asked: &one, via: "to-contoso", to: &one };
    let mark = fixture.relay.snapshot().visits.field(crate::message::MessageId(9), Timestamp::now(), [visit]);
    let content = format!("{mark}Message-ID: <a@b>\r\n\r\nx\r\n");
    // Alone it is refused at the end of its data.
    let reply = fixture.send("erin@fabrikam.com", &[THREE[0]], &content).await;
    assert_eq!((reply.code, reply.status), (550, Some(Status(5, 4, 6))), "{reply}");
    assert_eq!((fixture.relay.waiting(), fixture.count("FAIL", "goes in circles")), (0, 0));
    assert_eq!(fixture.count("FAIL", "cut at the second visit"), 1, "{:?}", fixture.events);

    assert_eq!(fixture.send("erin@fabrikam.com", &[THREE[0], THREE[1]], &content).await.code, 250);
    let queue = fixture.relay.queue().sweep(|_| false);
    assert_eq!(queue.len(), 2, "a copy for each");
    for (lane, item) in queue {
        let loaded = fixture.relay.0.spool.load(item.id).unwrap();
        let copy = &loaded.message.copies[usize::from(item.copy)];
        assert_eq!(copy.recipients.len(), 1);
        if copy.recipients[0].asked == two {
            assert_eq!(&*copy.via.0, "to-contoso");
            continue;
        }
        let snapshot = fixture.relay.snapshot();
        let attempt = fixture.relay.deliver(&snapshot, &loaded.message, item.copy, &[0], &|_| {}).await;
        let tried = Tried { message: &loaded.message, item, lane };
        fixture.relay.settle(&snapshot, tried, attempt, Timestamp::now()).await;
    }
    assert_eq!(fixture.count("FAIL", "one@contoso.com goes in circles"), 1, "{:?}", fixture.events);
    assert_eq!(fixture.count("DSN", "erin@fabrikam.com"), 1);
    assert_eq!(fixture.count("FAIL", "5.4.6"), 2);
}

/// The cloud side of an organization with one mailbox on-premises; `grace` as `[hybrid]` has it.
fn cloud_side(grace: &str) -> (Fixture, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let csv = folder.path().join("recipients.csv");
    std::fs::write(&csv, "address,type,target\njulie@contoso.com,on-premises,\n").unwrap();
    let hybrid = format!(
        "[hybrid]\nside = \"cloud\"\non_premises = \"to-contoso\"\ncloud = \"to-internet\"\nrouting_domain = \"r.example\"\n\
         disagreement_grace = {grace:?}\n[[directory]]\nkind = \"file\"\npath = {:?}\n[spool]",
        csv.to_str().unwrap()
    );
    let fixture = Fixture::still();
    fixture.relay.replace(snapshot(&|text| {
        text.replace("[spool]", &hybrid)
            .replace("external-relay", "authoritative")
            .replace("origin = \"internet\"", "origin = \"on-premises\"\nremote_ips = [\"10.0.0.0/8\"]")
    }));
    (fixture, folder)
}

/// A mailbox that each side holds to be at the other may be moving, and is refused for now first.
#[tokio::test]
async fn a_mailbox_that_may_be_moving_is_refused_for_now() {
    for (grace, expected) in [("1h", "451 4.4.6"), ("0s", "550 5.4.6")] {
        let (fixture, _folder) = cloud_side(grace);
        let snapshot = fixture.relay.snapshot();
        let connector = fixture.connector("internet");
        let verdict = Verdict::new(&connector, None, Clause::NotAsked, Clause::NotAsked);
        let peer = [10, 0, 0, 1].into();
        let asked = Asked { connector: &connector, peer, mail: None, routed: 0, verdict: &verdict };
        for to in ["julie@contoso.com", "julie@r.example"] {
            let reply = fixture.relay.check_recipient(&snapshot, &asked, recipient(to)).unwrap_err();
            assert!(reply.to_string().starts_with(expected), "{grace} {to}: {reply}");
            assert!(reply.text.contains("has it as an on-premises") == to.ends_with("contoso.com"), "{reply}");
            assert_eq!(fixture.count("FAIL", to), 1, "{:?}", fixture.events);
        }
        let status = format!("\"status\":\"{}\"", &expected[4..]);
        assert_eq!(fixture.count("FAIL", &status), 2, "{:?}", fixture.events);
        assert_eq!(fixture.count("FAIL", "found in "), 2, "the reasons stand in the event");
        let known = fixture.relay.0.disagreements.lock().unwrap().len();
        assert_eq!(known, usize::from(grace != "0s"), "both are the same mailbox");
    }
}

/// A report that the relay writes comes from its own side: on the cloud side a sender on-premises gets it.
#[tokio::test]
async fn a_report_of_the_cloud_side_reaches_a_sender_on_premises() {
    let (fixture, _folder) = cloud_side("0s");
    assert_eq!(fixture.send("julie@contoso.com", &["eve@fabrikam.com"], "Subject: x\r\n\r\nx\r\n").await.code, 250);
    let (lane, item) = fixture.relay.queue().sweep(|_| false).remove(0);
    let message = fixture.relay.0.spool.load(item.id).unwrap().message;
    let tried = Tried { message: &message, item, lane };
    let results = vec![(0, Err(answered(550)))];
    fixture.relay.settle(&fixture.relay.snapshot(), tried, Attempt { results }, Timestamp::now()).await;
    assert_eq!((fixture.count("DSN", "julie@contoso.com"), fixture.count("DROP", "")), (1, 0), "{:?}", fixture.events);
    let resolved = "side cloud, from the cloud, on-premises mailbox: hybrid.on_premises";
    assert_eq!(fixture.count("RESOLVE", resolved), 1, "{:?}", fixture.events);
}

/// `retry = ["1s"]` is more attempts in two days than sixteen bits count: the copy goes on being tried and reported.
#[tokio::test]
async fn attempts_may_be_more_than_their_counter_counts() {
    let fixture = Fixture::still();
    assert_eq!(fixture.send("erin@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
    let item = Item { attempts: u16::MAX, ..fixture.item() };
    fixture.settle(item, vec![(0, Err(answered(451)))]).await;
    assert_eq!((fixture.depth().later, fixture.count("DEFER", "attempt 65536")), (1, 1), "{:?}", fixture.events);
}

fn everything() -> queue::Listing {
    queue::Listing { filter: queue::Filter::default(), sort: None, descending: false, limit: 9, cursor: None }
}

/// A host that is well may put off one recipient, and another for another reason: each says its own, and the hop the last.
#[tokio::test]
async fn what_waits_says_why_also_where_its_hop_is_well() {
    let fixture = Fixture::still();
    let listed = || -> Vec<Option<String>> {
        let page = fixture.relay.list(&everything(), Instant::now() + HOUR).unwrap();
        page.entries.into_iter().map(|entry| entry.last).collect()
    };
    let refused = |text: &str| {
        let reply = Reply { code: 451, status: None, text: text.into() };
        Err(Setback::Answered { host: "mx".into(), command: "RCPT", reply })
    };
    let mut items = Vec::new();
    for to in ["one@contoso.com", "two@contoso.com"] {
        assert_eq!(fixture.send("erin@fabrikam.com", &[to], "\r\n").await.code, 250);
        items.push(fixture.item());
    }
    assert_eq!(listed(), [None, None]);
    for (item, text) in items.iter().zip(["greylisted", "mailbox full"]) {
        let reply = [(0, refused(text))];
        assert_eq!(schedule::Feedback::of(reply[0].1.as_ref().map(|_: &Delivered| ())), schedule::Feedback::Ok);
        fixture.settle(item.clone(), reply.into()).await;
    }
    let why = |text: &str| Some(format!("mx answered RCPT with 451 {text}"));
    assert_eq!(listed(), [why("greylisted"), why("mailbox full")]);
    assert_eq!(fixture.relay.lanes(9)[0].last, why("mailbox full"));

    // The next attempt says something else; and who is through says nothing any more.
    fixture.settle(Item { attempts: 1, ..items[0].clone() }, vec![(0, refused("not now"))]).await;
    assert_eq!(listed(), [why("not now"), why("mailbox full")]);
    let (host, proof) = ("mx".to_owned(), Arc::new(Proof::Plain));
    let done = Ok(Delivered { host, reply: Reply::ok(), proof, dsn: false });
    fixture.settle(Item { attempts: 1, ..items[0].clone() }, vec![(0, done)]).await;
    assert_eq!(listed(), [why("mailbox full")]);
}

/// Asked for now, what waited for its time is counted once; and taken away, not at all.
#[tokio::test]
async fn what_is_changed_counts_once() {
    for (change, expected) in [(queue::Change::Retry, (2, 1)), (queue::Change::Remove, (0, 1))] {
        let fixture = Fixture::still();
        for to in ["one@contoso.com", "two@contoso.com", "other@contoso.com"] {
            assert_eq!(fixture.send("erin@fabrikam.com", &[to], "\r\n").await.code, 250);
            fixture.settle(fixture.item(), vec![(0, Err(answered(451)))]).await;
        }
        let depth = || (fixture.depth().ready, fixture.depth().later);
        assert_eq!(depth(), (0, 3));
        fixture.relay.0.stopping.store(false, Ordering::Release);
        let by = queue::By { who: "root".to_owned(), reason: None };
        let ids: Vec<String> = fixture.relay.list(&everything(), Instant::now() + HOUR).unwrap().entries[..2]
            .iter()
            .map(|entry| entry.id.clone())
            .collect();
        let filter = queue::Filter { id: Some(ids.join(",")), ..queue::Filter::default() };
        // No worker begins before this test waits for something.
        let changed = fixture.relay.change(change, &filter, &by, None, Instant::now() + HOUR).await.unwrap();
        assert_eq!((changed.changed, depth()), (2, expected), "{change:?}");
        fixture.relay.begin_stop();
    }
}

/// Tried while its client waits, a message of which one recipient goes in circles is kept for the other and answered 250;
/// each is settled once, and what is cut is reported.
#[tokio::test]
async fn early_a_recipient_that_is_cut_is_kept_and_reported_like_any_other() {
    let fixture = Fixture::still();
    let hybrid = "[hybrid]\non_premises = \"to-contoso\"\ncloud = \"to-internet\"\nrouting_domain = \"r.example\"\n\
                  disagreement_grace = \"0s\"\n[spool]\nacknowledge = \"delivered-or-durable\"";
    fixture.relay.replace(snapshot(&|text| text.replace("[spool]", hybrid)));
    fixture.relay.0.stopping.store(false, Ordering::Release);
    let one = Address::parse(THREE[0]).unwrap();
    let visit = visit::Visit { by: "internet", asked: &one, via: "to-contoso", to: &one };
    let mark = fixture.relay.snapshot().visits.field(crate::message::MessageId(9), Timestamp::now(), [visit]);
    let content = format!("{mark}Message-ID: <a@b>\r\n\r\nx\r\n");
    assert_eq!(fixture.send("erin@fabrikam.com", &[THREE[0], THREE[1]], &content).await.code, 250);
    let end = Instant::now() + Duration::from_secs(60);
    while fixture.count("DSN", "erin@fabrikam.com") < 1 || fixture.count("DEFER", THREE[1]) < 1 {
        assert!(Instant::now() < end, "{:?}", fixture.events);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fixture.relay.begin_stop();
    fixture.relay.0.spool.flush().await;
    assert_eq!(fixture.count("FAIL", "one@contoso.com goes in circles"), 1, "{:?}", fixture.events);
    assert_eq!((fixture.count("FAIL", ""), fixture.count("RECEIVE", "")), (1, 1), "{:?}", fixture.events);
    assert_eq!(fixture.relay.waiting(), 2, "the message for the other, and the report");
}

/// Takes one message a connection, and offers nothing.
async fn plain_hop() -> std::net::SocketAddr {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let (mut line, mut in_data) = (String::new(), false);
        let mut reply = "220 here\r\n";
        loop {
            stream.write_all(reply.as_bytes()).await.unwrap();
            line.clear();
            if stream.read_line(&mut line).await.unwrap() == 0 {
                return;
            }
            (reply, in_data) = match line.as_str() {
                ".\r\n" => ("250 taken\r\n", false),
                _ if in_data => ("", true),
                "DATA\r\n" => ("354 go on\r\n", true),
                _ => ("250 so it is\r\n", false),
            };
        }
    });
    address
}

/// A report of success is written behind the answer: on a disk that hangs the client would give up, and send again what was
/// delivered.
#[tokio::test]
async fn early_the_client_does_not_wait_for_a_report() {
    for (to, expected) in [(&[THREE[0]][..], 250), (&[THREE[0], "eve@fabrikam.com"], 452)] {
        let fixture = Fixture::new(Duration::from_secs(1));
        let hop = plain_hop().await;
        fixture.relay.replace(snapshot(&|text| {
            text.replace("[spool]", "[spool]\nacknowledge = \"delivered-or-durable\"").replacen(
                "smart_hosts = [\"127.0.0.1:1\"]",
                &format!("smart_hosts = [\"{hop}\"]"),
                1,
            )
        }));
        fixture.relay.0.stopping.store(false, Ordering::Release);
        fixture.disk.hold();
        let (snapshot, connector) = (fixture.relay.snapshot(), fixture.connector("internet"));
        let verdict = Arc::new(Verdict::new(&connector, None, Clause::NotAsked, Clause::NotAsked));
        let ip = [192, 0, 2, 1].into();
        let asked = Asked { connector: &connector, peer: ip, mail: None, routed: 0, verdict: &verdict };
        let mut envelope = envelope("erin@fabrikam.com");
        let notify = Notify::On { success: true, failure: true, delay: false };
        envelope.recipients = to.iter().map(|to| Recipient { notify, ..recipient(to) }).collect();
        let mut routed = Vec::new();
        for recipient in &envelope.recipients {
            routed.extend(fixture.relay.check_recipient(&snapshot, &asked, recipient.clone()).unwrap());
        }
        let mut draft = fixture.relay.draft();
        draft.push("\r\n".to_owned().into()).await.unwrap();
        let peer = Peer { ip, hello: "client.example".into(), extended: true, tls: None, user: None };
        let submission = Submission { envelope, routed, draft, connector: Arc::clone(&connector), peer, verdict };
        let reply = tokio::time::timeout(Duration::from_secs(60), fixture.relay.take(&snapshot, submission)).await;
        assert_eq!(reply.expect("it waits for the disk").code, expected);
        fixture.disk.release();
        let end = Instant::now() + Duration::from_secs(60);
        while fixture.count("DSN", "erin@fabrikam.com") < 1 {
            assert!(Instant::now() < end, "{:?}", fixture.events);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(fixture.count("SEND", THREE[0]), 1, "{:?}", fixture.events);
        assert!(fixture.relay.stop(tokio::time::Instant::now() + Duration::from_secs(60)).await, "all of it has ended");
    }
}

/// F-061, F-062: an attempt that ends inside the relay takes neither its lane nor its message with it; a copy that does it
/// again and again waits for the next start.
#[tokio::test]
async fn f062_what_a_failed_attempt_was_about_is_tried_again() {
    for (before, later) in [(0, 1), (1, 1), (2, 0)] {
        let fixture = Fixture::still();
        assert_eq!(fixture.send("erin@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
        // A copy that the message does not have.
        let (lane, planted) = (fixture.lane(), Item { copy: 9, panics: before, ..fixture.item() });
        fixture.relay.0.stopping.store(false, Ordering::Release);
        let start = fixture.relay.queue().ready(lane, planted);
        if start {
            fixture.relay.work(lane);
        }
        let end = Instant::now() + Duration::from_secs(60);
        while fixture.depth().active > 0 {
            assert!(Instant::now() < end, "the worker never ends");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!((fixture.depth().later, fixture.depth().ready), (later, 0), "after {before}");
    }
}

/// Looks again and again, for a minute at most.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A copy whose attempts end inside the relay is counted over restarts, and the third time it is held, shown and told. An
/// operator releases it, and it begins anew.
#[tokio::test]
async fn a_copy_whose_attempts_end_inside_the_relay_is_held_and_told() {
    let mut disk = Model::new(1);
    let mut id = None;
    for round in 0..3u8 {
        // Each attempt in a run of its own.
        let fixture = Fixture::over(disk, snapshot(&|text| text), PUT_LIMIT);
        if round == 0 {
            assert_eq!(fixture.send("erin@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
            id = Some(fixture.item().id);
        }
        let id = id.unwrap();
        let loaded = fixture.relay.0.spool.load(id).unwrap().message;
        let standing = fixture.relay.0.spool.standing(id).unwrap();
        assert_eq!(standing.copies[0].panics, round);
        // A message that has lost its copies: nothing that comes from outside does that.
        let broken = Message {
            id,
            accepted: loaded.accepted,
            envelope: loaded.envelope.clone(),
            connector: loaded.connector.clone(),
            message_id: None,
            prefix: loaded.prefix.clone(),
            organization: loaded.organization,
            content: loaded.content.clone(),
            copies: Vec::new(),
        };
        let resident = Some(work::Resident::new(&fixture.relay, &Arc::new(broken)));
        let planted = Item { panics: round, ..Item::fresh(&loaded, 0, resident) };
        let copy = &loaded.copies[0];
        let lane = fixture.relay.queue().lane(&copy.via, &copy.hop, 1);
        fixture.relay.0.stopping.store(false, Ordering::Release);
        let start = fixture.relay.queue().ready(lane, planted);
        if start {
            fixture.relay.work(lane);
        }
        until("the worker ends", || fixture.relay.0.workers.load(Ordering::Acquire) == 0).await;
        fixture.relay.0.spool.flush().await;
        let standing = fixture.relay.0.spool.standing(id).unwrap();
        assert_eq!((standing.copies[0].panics, standing.copies[0].held), (round + 1, round == 2));
        assert_eq!(fixture.count("POISON", "one@contoso.com"), usize::from(round == 2), "{:?}", fixture.events);
        disk = fixture.disk.crash();
    }
    let fixture = Fixture::over(disk, snapshot(&|text| text), PUT_LIMIT);
    let id = id.unwrap();
    let listing =
        queue::Listing { filter: queue::Filter::default(), sort: None, descending: false, limit: 9, cursor: None };
    let far = Instant::now() + HOUR;
    let listed = |fixture: &Fixture| fixture.relay.list(&listing, far).unwrap().entries.remove(0);
    let entry = listed(&fixture);
    assert_eq!((entry.id, entry.status), (id.to_string(), queue::State::Held));
    assert!(entry.last.as_ref().unwrap().starts_with("3 attempts ended inside the relay"), "{:?}", entry.last);
    fixture.relay.0.stopping.store(false, Ordering::Release);
    let (filter, by) = (queue::Filter::default(), queue::By { who: "root".to_owned(), reason: None });
    let changed = fixture.relay.change(queue::Change::Release, &filter, &by, None, far).await.unwrap();
    assert_eq!(changed.changed, 1);
    until("it is tried", || fixture.relay.0.spool.standing(id).is_some_and(|one| one.copies[0].attempts == 1)).await;
    let standing = fixture.relay.0.spool.standing(id).unwrap();
    assert_eq!((standing.copies[0].panics, standing.copies[0].held), (0, false));
    assert_ne!(listed(&fixture).status, queue::State::Held);
}

/// Domains whose connector has a rate wait for their turns in the schedule, and hold no worker. A new rate counts at once.
#[tokio::test]
async fn who_waits_for_a_turn_holds_no_worker() {
    const DOMAINS: usize = 30;
    let by_mx = |text: String| {
        let (before, after) = text.rsplit_once("smart_hosts = [\"127.0.0.1:1\"]").unwrap();
        format!("{before}rate = \"1/h\"{after}")
    };
    let fixture = Fixture::over(Model::new(1), snapshot(&by_mx), PUT_LIMIT);
    fixture.relay.0.stopping.store(false, Ordering::Release);
    let keeper = tokio::spawn({
        let relay = fixture.relay.clone();
        async move { relay.keep_time().await }
    });
    for number in 0..DOMAINS {
        let to = format!("one@d{number}.example");
        assert_eq!(fixture.send("erin@contoso.com", &[&to], "\r\n").await.code, 250);
    }
    // The first goes at once: nobody answers for its domain.
    let rests = || fixture.count("DEFER", ".example") > 0 && fixture.relay.0.workers.load(Ordering::Acquire) == 0;
    until("one is tried, and nobody works", rests).await;
    let (ready, active) = {
        let queue = fixture.relay.queue();
        queue.depths().fold((0, 0), |(ready, active), (_, _, depth)| (ready + depth.ready, active + depth.active))
    };
    assert_eq!((ready, active, fixture.count("DEFER", ".example")), (DOMAINS - 1, 0, 1));
    // Without a rate, and to a host that refuses: all of them are tried.
    fixture.relay.replace(snapshot(&|text| text));
    let is_tried = |number| fixture.count("DEFER", &format!("one@d{number}.example")) > 0;
    until("all are tried", || (0..DOMAINS).all(is_tried)).await;
    assert!(fixture.relay.stop(tokio::time::Instant::now() + Duration::from_secs(60)).await);
    keeper.abort();
}

/// A copy whose message is settled by its session, after the worker has left, waits in the lane of its hop, also where
/// the place of that lane was given to another hop meanwhile: there it would be lost, or counted where it never was.
#[tokio::test]
async fn what_is_settled_after_its_worker_left_waits_in_its_own_lane() {
    let fixture = Fixture::still();
    assert_eq!(fixture.send("erin@fabrikam.com", &["one@contoso.com"], "\r\n").await.code, 250);
    let place = fixture.lane();
    let item = fixture.relay.queue().take(place, Instant::now()).unwrap();
    // The worker hands in what came of it, and leaves.
    assert!(fixture.relay.queue().take(place, Instant::now()).is_none());
    let id = item.id;
    let via = config::ConnectorName("to-internet".into());
    let mut reused = false;
    for number in 0..5000 {
        let domain = crate::message::Domain::parse(&format!("d{number}.example")).unwrap();
        reused |= fixture.relay.queue().lane(&via, &crate::route::Hop::Mx(domain), 1) == place;
    }
    assert!(reused, "nothing was in the lane");
    let message = fixture.relay.0.spool.load(id).unwrap().message;
    let tried = Tried { message: &message, item, lane: place };
    let attempt = Attempt { results: vec![(0, Err(answered(451)))] };
    fixture.relay.settle(&fixture.relay.snapshot(), tried, attempt, Timestamp::now()).await;
    assert_eq!(fixture.depth().later, 1);
    let started = fixture.relay.queue().due(Instant::now() + HOUR);
    assert_eq!(started, [fixture.lane()]);
    assert_eq!(fixture.relay.queue().take(started[0], Instant::now()).map(|item| item.id), Some(id));
}

/// What follows from attempts of a message that was tried while its client waited is settled by a task of its own, and
/// a stop waits for that as it does for workers.
#[tokio::test]
async fn a_stop_waits_for_what_is_still_being_settled() {
    let fixture = Fixture::still();
    let soon = || tokio::time::Instant::now() + Duration::from_millis(20);
    let at_work = fixture.relay.at_work();
    assert!(!fixture.relay.stop(soon()).await);
    drop(at_work);
    assert!(fixture.relay.stop(soon()).await);
}

/// A new directory, or a list of users, leaves the deliverer and the configuration as they are.
#[tokio::test]
async fn a_new_directory_touches_nothing_else() {
    let fixture = Fixture::still();
    let first = fixture.relay.snapshot();
    fixture.relay.replace_directory(Arc::new(Directory::load(&[]).0));
    fixture.relay.replace_users(Arc::default());
    let second = fixture.relay.snapshot();
    assert!(!Arc::ptr_eq(&first.directory, &second.directory) && !Arc::ptr_eq(&first.users, &second.users));
    assert!(Arc::ptr_eq(&first.deliverer, &second.deliverer) && Arc::ptr_eq(&first.config, &second.config));
}

/// What a member of a group is told to be is what it is for mail from where the message came.
#[tokio::test]
async fn a_member_that_nobody_knows_is_judged_by_where_the_message_came_from() {
    let (fixture, folder) = cloud_side("0s");
    let csv = "address,type,target\nteam@contoso.com,group,julie@contoso.com ann@relay.example\njulie@contoso.com,on-premises,\n";
    std::fs::write(folder.path().join("recipients.csv"), csv).unwrap();
    let text = fixture.relay.snapshot().config.directories[0].path.to_str().unwrap().to_owned();
    let hybrid = format!(
        "[hybrid]\nside = \"cloud\"\non_premises = \"to-contoso\"\ncloud = \"to-internet\"\nrouting_domain = \"r.example\"\n\
         [[directory]]\nkind = \"file\"\npath = {text:?}\n[[accepted_domain]]\nname = \"relay.example\"\ntype = \"internal-relay\"\n[spool]"
    );
    fixture.relay.replace(snapshot(&|text| {
        text.replace("[spool]", &hybrid)
            .replace("external-relay", "authoritative")
            .replace("origin = \"internet\"", "origin = \"on-premises\"\nremote_ips = [\"10.0.0.0/8\"]")
    }));
    assert_eq!(fixture.send("erin@contoso.com", &["team@contoso.com"], "Subject: x\r\n\r\nx\r\n").await.code, 250);
    let snapshot = fixture.relay.snapshot();
    let mut told = Vec::new();
    let queue = fixture.relay.queue().sweep(|_| false);
    for (lane, item) in queue {
        let message = fixture.relay.0.spool.load(item.id).unwrap().message;
        let copy = &message.copies[usize::from(item.copy)];
        if copy.via.0.is_empty() {
            let attempt = fixture.relay.deliver(&snapshot, &message, item.copy, &[0], &|_| {}).await;
            told.extend(attempt.results.into_iter().map(|(_, result)| result.unwrap_err().to_string()));
        }
        fixture.relay.queue().let_go(lane);
    }
    assert_eq!(told, ["ann@relay.example: no such recipient"], "{:?}", fixture.events);
}
