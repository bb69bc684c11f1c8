//! Both premises, each behind its own relay, in the four scenarios: every kind of mail, hop by hop.
//!
//! What is expected stands in the tables of `demo::mail`. Two witnesses are asked for each copy: the `Received:` fields
//! of what arrived, and the tracking events of both relays; they must agree with the table and with each other.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::{Scratch, causeway, run, said};
use causeway::demo::client::Client;
use causeway::demo::hops::{self, Path, Place, Told};
use causeway::demo::hybrid::{Plan, Posted};
use causeway::demo::mail::{DAVID, ERIN, JULIE, MAIL, Mail, SCENARIOS, Scenario};
use causeway::demo::{self, Arrival, HybridWorld};
use causeway::message::header;
use causeway::smtp::Reply;
use causeway::tls::{Authority, Demand, Names, Proof};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// The fields of the organization, in lower case.
const ORGANIZATION: [&str; 3] =
    ["x-ms-exchange-organization-", "x-ms-exchange-forest-", "x-ms-exchange-crosspremises-"];

struct Test {
    world: HybridWorld,
    told: Told,
    _scratch: Scratch,
}

impl Test {
    async fn start(number: u8) -> Self {
        Self::with(number, &|_| String::new(), &|_, text| text).await
    }

    async fn with(
        number: u8,
        recipients: &dyn Fn(Place) -> String,
        configuration: &dyn Fn(Place, String) -> String,
    ) -> Self {
        let (scratch, told) = (Scratch::new(), Told::default());
        let tracker = |place| told.tracker(place);
        let scenario = Scenario::numbered(number).unwrap();
        let plan = Plan { tracker: &tracker, recipients, configuration, ..Plan::new(scenario, scratch.path()) };
        let world = HybridWorld::start(plan).await.unwrap();
        Self { world, told, _scratch: scratch }
    }

    /// Sends it, everybody accepted.
    async fn post(&self, mail: &Mail) -> Posted {
        let posted = self.world.post(mail).await.unwrap_or_else(|error| panic!("{}: {error}", mail.name));
        assert!(posted.sent.recipients.iter().all(Reply::is_positive), "{}: {:?}", mail.name, posted.sent);
        assert!(posted.sent.message.as_ref().unwrap().is_positive(), "{}: {:?}", mail.name, posted.sent);
        posted
    }

    /// Waits for `count` arrivals and until nothing waits any more; then there must be no further one. By
    /// `Message-ID`.
    async fn arrivals(&mut self, count: usize) -> BTreeMap<String, Vec<Arrival>> {
        let mut arrivals: BTreeMap<String, Vec<Arrival>> = BTreeMap::new();
        for number in 0..count {
            let Ok(arrival) = timeout(PATIENCE, self.world.arrivals.recv()).await else {
                panic!("{number} of {count} arrived: {:?}\n{}", arrivals.keys(), self.everything());
            };
            let arrival = arrival.unwrap();
            let id = header::facts(&arrival.content).message_id.unwrap_or_default();
            arrivals.entry(id).or_default().push(arrival);
        }
        assert!(self.world.quiet(PATIENCE).await, "messages wait that nobody expects:\n{}", self.everything());
        if let Ok(further) = self.world.arrivals.try_recv() {
            panic!("one arrival too many: {further:?}\n{}", self.everything());
        }
        arrivals
    }

    /// All events of both relays, for those who must find out what went wrong.
    fn everything(&self) -> String {
        let line = |(place, record): (Place, causeway::outcome::tracking::Record)| {
            let id = record.id.unwrap_or_default();
            let connector = record.connector.unwrap_or_default();
            let (to, because) = (record.to.join(" "), record.because.join(" | "));
            let detail = record.detail.unwrap_or_default();
            format!("{place} {} {id} {connector} {to}\n      {because}\n      {detail}\n", record.event)
        };
        self.told.since(0).into_iter().map(line).collect()
    }

    /// Waits for an event at `place` about `to` with this status.
    async fn event(&self, place: Place, event: &str, to: &str, status: &str) -> String {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let told = self.told.since(0);
            let found = told.iter().find(|(at, record)| {
                *at == place
                    && record.event == event
                    && record.to.iter().any(|one| one == to)
                    && record.status.as_deref() == Some(status)
            });
            if let Some((_, record)) = found {
                return record.detail.clone().unwrap_or_default();
            }
            assert!(
                tokio::time::Instant::now() < end,
                "no {event} {status} for {to} at {place}:\n{}",
                self.everything()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// All of a scenario: every mail at once, then every copy is looked at.
async fn every_mail_goes_its_way(number: u8) {
    let mut test = Test::start(number).await;
    let mut posted = Vec::new();
    for mail in MAIL {
        posted.push((mail, test.post(mail).await));
    }
    let scenario = test.world.scenario;
    let count = scenario.copies.iter().map(|(_, copies)| copies.len()).sum();
    // Two recipients behind one hop share one arrival; no table has such a row.
    let arrivals = test.arrivals(count).await;
    for (mail, posted) in &posted {
        let what = format!("scenario {number}, {}", mail.name);
        let arrivals = arrivals.get(&posted.message_id).unwrap_or_else(|| panic!("{what}: nothing arrived"));
        let mut by_fields: Vec<Path> = Vec::new();
        for arrival in arrivals {
            by_fields.extend(hops::from_received(arrival).unwrap_or_else(|error| panic!("{what}: {error}")));
            look_at(arrival, mail, posted, &what);
        }
        by_fields.sort();
        assert_eq!(shown(&by_fields), scenario.copies_of(mail.name), "{what}, by the Received fields");
        let by_events = test.told.story(&posted.message_id).map(|story| story.paths);
        let by_events = by_events.unwrap_or_else(|error| panic!("{what}: {error}\n{}", test.everything()));
        // The same hops, the same numbers at each relay, the same addresses.
        assert_eq!(by_events, by_fields, "{what}: events and fields");
    }
    test.world.stop().await;
}

fn shown(paths: &[Path]) -> Vec<String> {
    paths.iter().map(ToString::to_string).collect()
}

/// Envelope, proof and content of one copy.
fn look_at(arrival: &Arrival, mail: &Mail, posted: &Posted, what: &str) {
    // C035: the null sender stays null, on every way.
    let sender = arrival.envelope.sender.as_ref().map_or(String::new(), ToString::to_string);
    assert_eq!(sender, mail.sender, "{what}");
    let at = Place::of_arrival(arrival).unwrap();
    let inside = |place| place != Place::Internet;
    let relay = match at {
        Place::OnPremises => Some(demo::RELAY),
        Place::Cloud => Some(demo::CLOUD),
        _ => None,
    };
    match (&arrival.client, relay) {
        (Some(Proof::Named { certificate, .. }), Some(relay)) => assert_eq!(certificate, relay, "{what}"),
        (client, Some(relay)) => panic!("{what}: {relay} proved nothing: {client:?}"),
        (_, None) => assert!(arrival.tls.is_some(), "{what}: in the clear"),
    }

    // The relay vouches for its organization to the mailboxes behind it, and to nobody else.
    let vouched = arrival.xoorg.as_ref().map(|domain| domain.as_str());
    assert_eq!(vouched, inside(at).then_some(demo::DOMAIN), "{what}: XOORG");

    // In front stand the relays' own fields, and nothing else; behind them everything as it was sent. What is from
    // inside and stays inside keeps the organization's fields; the others never had any right to them.
    let content = String::from_utf8(arrival.content.to_vec()).unwrap();
    let expected =
        if inside(mail.from) && inside(at) { posted.content.clone() } else { without_organization(&posted.content) };
    let Some(front) = content.strip_suffix(&*expected) else {
        panic!("{what}: not as it was sent\n{content}\nexpected behind the relays' fields:\n{expected}");
    };
    for field in header::fields(front.as_bytes()) {
        assert!(field.is("Received") || field.is("X-Causeway-Visit"), "{what}: {front}");
    }
    if !inside(at) {
        let lower = content.to_ascii_lowercase();
        assert!(!ORGANIZATION.iter().any(|prefix| lower.contains(prefix)), "{what}: {content}");
    }
}

/// The message without the organization's fields, written the slow way: line by line.
fn without_organization(content: &str) -> String {
    let (header, body) = content.split_once("\r\n\r\n").unwrap();
    let mut kept = String::new();
    let mut removing = false;
    for line in header.split("\r\n") {
        if !line.starts_with([' ', '\t']) {
            let line = line.to_ascii_lowercase();
            removing = ORGANIZATION.iter().any(|prefix| line.starts_with(prefix));
        }
        if !removing {
            kept.push_str(line);
            kept.push_str("\r\n");
        }
    }
    format!("{kept}\r\n{body}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scenario_1_mx_and_filter_in_the_cloud() {
    every_mail_goes_its_way(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scenario_2_mx_in_the_cloud_filter_on_premises() {
    every_mail_goes_its_way(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scenario_3_mx_and_exit_on_premises() {
    every_mail_goes_its_way(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scenario_4_mx_on_premises_exit_in_the_cloud() {
    every_mail_goes_its_way(4).await;
}

/// What cannot arrive: the directories of P and C, the mail, where it ends and how, and who says so to its sender.
struct Lost {
    what: &'static str,
    scenario: u8,
    /// Lines only the relay on-premises has, and only the one in the cloud.
    recipients: [&'static str; 2],
    /// Replaced in both configurations.
    configuration: [&'static str; 2],
    from: (Place, &'static str),
    to: &'static [&'static str],
    ends: &'static str,
    report: &'static str,
    says: &'static [&'static str],
    /// What the events say.
    told: &'static [&'static str],
}

const ERIN_WRITES: (Place, &str) = (Place::Internet, ERIN);

const AUTHORITATIVE: &str = "name = \"contoso.com\"\n";
const INTERNAL_RELAY: &str = "name = \"contoso.com\"\ntype = \"internal-relay\"\n";
const HYBRID: &str = "[hybrid]\n";
const NO_GRACE: &str = "[hybrid]\ndisagreement_grace = \"0s\"\n";
/// Each side holds it to be on the other.
const MOVED: [&str; 2] = ["zoe@contoso.com,cloud,\n", "zoe@contoso.com,on-premises,\n"];
/// Each side forwards to the other: neither sees the circle in its own directory.
const CIRCLE: [&str; 2] = [
    "ping@contoso.com,cloud,\npong@contoso.com,forward,ping@contoso.com\n",
    "ping@contoso.com,forward,pong@contoso.com\npong@contoso.com,on-premises,\n",
];

/// Rows "cloud, from on-premises, on-premises mailbox" and 3, and 6.
const LOST: &[Lost] = &[
    Lost {
        what: "each side holds zoe to be on the other, MX here",
        scenario: 3,
        recipients: MOVED,
        configuration: [HYBRID, NO_GRACE],
        from: ERIN_WRITES,
        to: &["zoe@contoso.com"],
        ends: "zoe: internet > P, then 5.4.6",
        report: "erin: P > internet",
        says: OUTSIDE,
        told: BOTH_SIDES_TOLD,
    },
    Lost {
        what: "each side holds zoe to be on the other, MX there",
        scenario: 1,
        recipients: MOVED,
        configuration: [HYBRID, NO_GRACE],
        from: ERIN_WRITES,
        to: &["zoe@contoso.com"],
        ends: "zoe: internet > C > P, then 5.4.6",
        report: "erin: P > C > internet",
        says: OUTSIDE,
        told: BOTH_SIDES_TOLD,
    },
    Lost {
        what: "each side holds zoe to be on the other, everything on-premises first",
        scenario: 2,
        recipients: MOVED,
        configuration: [HYBRID, NO_GRACE],
        from: ERIN_WRITES,
        to: &["zoe@contoso.com"],
        ends: "zoe: internet > C > P, then 5.4.6",
        report: "erin: P > C > internet",
        says: OUTSIDE,
        told: BOTH_SIDES_TOLD,
    },
    Lost {
        what: "known on neither side, MX here",
        scenario: 4,
        recipients: ["", ""],
        configuration: [AUTHORITATIVE, INTERNAL_RELAY],
        from: ERIN_WRITES,
        to: &["nobody@contoso.com"],
        ends: "nobody: internet > P, then 5.1.1",
        report: "erin: P > C > internet",
        says: &["5.1.1", "nobody@contoso.com"],
        told: &[],
    },
    Lost {
        what: "known on neither side, MX there",
        scenario: 1,
        recipients: ["", ""],
        configuration: [AUTHORITATIVE, INTERNAL_RELAY],
        from: ERIN_WRITES,
        to: &["nobody@contoso.com"],
        ends: "nobody: internet > C, then 5.1.1",
        report: "erin: C > internet",
        says: &["5.1.1", "nobody@contoso.com"],
        told: &[],
    },
    Lost {
        what: "known on neither side, everything on-premises first",
        scenario: 2,
        recipients: ["", ""],
        configuration: [AUTHORITATIVE, INTERNAL_RELAY],
        from: ERIN_WRITES,
        to: &["nobody@contoso.com"],
        ends: "nobody: internet > C, then 5.1.1",
        report: "erin: C > P > C > internet",
        says: &["5.1.1", "nobody@contoso.com"],
        told: &[],
    },
    Lost {
        what: "a circle that neither side sees, MX here: cut where it comes the second time",
        scenario: 3,
        recipients: CIRCLE,
        configuration: [HYBRID, NO_GRACE],
        from: ERIN_WRITES,
        to: &["ping@contoso.com"],
        ends: "ping: internet > P > C > P, then 5.4.6",
        report: "erin: P > internet",
        says: &["5.4.6", "routing loop in the recipient's organization"],
        told: &["pong@contoso.com", "causeway trace --message-id"],
    },
    Lost {
        what: "a circle that neither side sees, MX there: by another door is no second time",
        scenario: 1,
        recipients: CIRCLE,
        configuration: [HYBRID, NO_GRACE],
        from: ERIN_WRITES,
        to: &["ping@contoso.com"],
        ends: "pong: internet > C > P > C, then 5.4.6",
        report: "erin: C > internet",
        says: &["5.4.6", "routing loop in the recipient's organization"],
        told: &["ping@contoso.com", "causeway trace --message-id"],
    },
    Lost {
        what: "each side holds zoe to be on the other, and one of our own writes",
        scenario: 3,
        recipients: MOVED,
        configuration: [HYBRID, NO_GRACE],
        from: (Place::OnPremises, JULIE),
        to: &["zoe@contoso.com"],
        ends: "zoe: onprem > P, then 5.4.6",
        report: "julie: P > onprem",
        says: BOTH_SIDES,
        told: BOTH_SIDES_TOLD,
    },
    Lost {
        what: "a circle that neither side sees, and one of our own writes",
        scenario: 3,
        recipients: CIRCLE,
        configuration: [HYBRID, NO_GRACE],
        from: (Place::OnPremises, JULIE),
        to: &["ping@contoso.com"],
        ends: "ping: onprem > P > C > P, then 5.4.6",
        report: "julie: P > onprem",
        says: &["5.4.6", "pong@contoso.com", "causeway trace --message-id"],
        told: &["pong@contoso.com", "causeway trace --message-id"],
    },
];

/// Whoever is outside learns that it is the organization's own fault, and no more.
const OUTSIDE: &[&str] = &["5.4.6", "routing loop in the recipient's organization; its postmaster has the details"];

/// What each believes stands in the events all the same.
const BOTH_SIDES_TOLD: &[&str] = &[
    "recipients.csv (here, cloud) has zoe@contoso.com as an on-premises mailbox",
    "on this side (mail.contoso.com, on-premises): found in recipients.csv: cloud mailbox",
];

/// Of a mailbox that each side holds to be at the other, the report says what each believes, and what to do.
const BOTH_SIDES: &[&str] = &[
    "5.4.6",
    "recipients.csv (here, cloud) has zoe@contoso.com as an on-premises mailbox",
    "on this side (mail.contoso.com, on-premises): found in recipients.csv: cloud mailbox",
    "so it went to <zoe@contoso.mail.onmicrosoft.com> by send connector \"to-cloud\"",
    "mend <zoe@contoso.com> in the directory of the side that is wrong",
    "See: causeway trace --message-id '<",
    "correct its entry in the directory of the side that is wrong",
];

/// Nothing goes round: the sender is told, once, by the side that knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_loop_ends_with_the_answer_of_the_interface() {
    for lost in LOST {
        let what = lost.what;
        let recipients = |place| lost.recipients[usize::from(place == Place::C)].to_owned();
        let [before, after] = lost.configuration;
        let configuration = |_, text: String| {
            assert!(text.contains(before), "{what}");
            text.replace(before, after)
        };
        let mut test = Test::with(lost.scenario, &recipients, &configuration).await;
        let posted = test.post(&Mail { name: "lost", from: lost.from.0, sender: lost.from.1, to: lost.to }).await;
        let report = test.arrivals(1).await.into_values().next().unwrap().remove(0);
        let story = test.told.story(&posted.message_id).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(shown(&story.paths), [lost.ends], "{what}\n{}", test.everything());
        assert_eq!(report.envelope.sender, None, "{what}");
        let text = String::from_utf8_lossy(&report.content).replace("\r\n ", " ");
        assert_eq!(shown(&hops::from_received(&report).unwrap()), [lost.report], "{what}\n{text}");
        let read = text.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some(line) = text.lines().find(|line| line.trim_start().starts_with("See:")) {
            assert!(line.trim_end().ends_with('\''), "{what}: the command is whole: {line}");
        }
        for words in lost.says {
            assert!(read.contains(words), "{what}: {words}\n{text}");
        }
        let everything = test.everything();
        for words in lost.told {
            assert!(everything.contains(words), "{what}: {words}\n{everything}");
        }
        if lost.from == ERIN_WRITES {
            for words in ["recipients.csv", "connector", "causeway trace", "on-premises mailbox"] {
                assert!(!text.contains(words), "{what}: {words} is not for strangers\n{text}");
            }
        }
        assert!(!text.to_ascii_lowercase().contains(ORGANIZATION[0]), "{what}: {text}");
        test.world.stop().await;
    }
}

/// `disagreement_grace`: the mailbox may be moving, so its mail waits, and arrives when the other side knows too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_for_a_mailbox_that_moves_waits_for_it() {
    let recipients = |place| MOVED[usize::from(place == Place::C)].to_owned();
    let soon = |_, text: String| text.replace("min_free_space", "retry = [\"1s\"]\nmin_free_space");
    let mut test = Test::with(3, &recipients, &soon).await;
    let mail = Mail { name: "moving", from: Place::Internet, sender: ERIN, to: &["zoe@contoso.com"] };
    let posted = test.post(&mail).await;
    let detail = test.event(Place::P, "DEFER", "zoe@contoso.mail.onmicrosoft.com", "4.4.6").await;
    assert!(detail.contains("451 4.4.6"), "{detail}");
    assert!(test.world.arrivals.try_recv().is_err());

    // The cloud's directory follows.
    let file = test.world.folder.join("C/recipients.csv");
    let moved = std::fs::read_to_string(&file).unwrap().replace(MOVED[1], MOVED[0]);
    std::fs::write(&file, moved).unwrap();
    assert!(test.world.cloud.relay.reread());
    test.arrivals(1).await;
    let story = test.told.story(&posted.message_id).unwrap();
    assert_eq!(shown(&story.paths), ["zoe: internet > P > C > cloud"]);
    test.world.stop().await;
}

/// The other way round: what changes is the directory of the side where the mail waits. It goes on at once, another way,
/// long before it would have been tried again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_in_the_middle_of_a_move_follows_the_directory_here() {
    let recipients = |place| MOVED[usize::from(place == Place::C)].to_owned();
    let late = |_, text: String| text.replace("min_free_space", "retry = [\"1h\"]\nmin_free_space");
    let mut test = Test::with(3, &recipients, &late).await;
    let mail = Mail { name: "moving", from: Place::Internet, sender: ERIN, to: &["zoe@contoso.com"] };
    let posted = test.post(&mail).await;
    test.event(Place::P, "DEFER", "zoe@contoso.mail.onmicrosoft.com", "4.4.6").await;
    assert!(test.world.arrivals.try_recv().is_err());

    let file = test.world.folder.join("P/recipients.csv");
    let moved = std::fs::read_to_string(&file).unwrap().replace(MOVED[0], MOVED[1]);
    std::fs::write(&file, moved).unwrap();
    assert!(test.world.on_premises.relay.reread());
    let arrived = test.arrivals(1).await;
    assert_eq!(arrived.keys().collect::<Vec<_>>(), [&posted.message_id]);
    let told = test.told.since(0).into_iter().filter(|(place, _)| *place == Place::P);
    let told: Vec<String> = told.map(|(_, record)| record.event).collect();
    for (event, count) in [("RECEIVE", 1), ("DEFER", 1), ("TRANSFER", 1), ("SEND", 1), ("FAIL", 0), ("DSN", 0)] {
        let found = told.iter().filter(|told| *told == event).count();
        assert_eq!(found, count, "{event}: {told:?}");
    }
    test.world.stop().await;
}

/// A peer at the door that both the Internet and the other relay use: only the right name on the right chain makes it
/// the other relay. Whoever it is not may reach the organization, as anybody may, and nobody else through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_its_certificate_makes_a_peer_the_other_premises() {
    let mut test = Test::start(3).await;
    let stranger = Authority::new("another authority");
    let (roots, ours) = (test.world.authority.roots(), &test.world.authority);
    let (right, wrong_name) = (ours.identity(&[demo::CLOUD]), ours.identity(&[demo::ON_PREMISES]));
    let wrong_chain = stranger.identity(&[demo::CLOUD]);
    let claims = |identity| {
        let names = Names::new(vec![demo::RELAY.to_owned()]).unwrap();
        Client::new(demo::CLOUD_HOST).with_tls(identity, demo::RELAY, Demand::Domain(roots.clone(), names))
    };
    let content = format!(
        "From: <{DAVID}>\r\nMessage-ID: <claim@contoso.com>\r\nX-OriginatorOrg: contoso.com\r\n\
         X-MS-Exchange-Organization-AuthAs: Internal\r\n\r\nhello\r\n"
    );
    for (who, identity, believed) in [
        ("the cloud's relay", Some(&right), true),
        ("its name, issued by another authority", Some(&wrong_chain), false),
        ("another name of ours", Some(&wrong_name), false),
        ("no certificate", None, false),
    ] {
        let sent = claims(identity).send(test.world.on_premises.door, DAVID, &[JULIE, ERIN], "", &content).await;
        let sent = sent.unwrap();
        let codes: Vec<u16> = sent.recipients.iter().map(|reply| reply.code).collect();
        assert_eq!(codes, if believed { [250, 250] } else { [250, 550] }, "{who}: {sent:?}");
        let arrivals = test.arrivals(if believed { 2 } else { 1 }).await;
        let julies = arrivals.values().flatten().find(|arrival| arrival.place == "on-premises").unwrap();
        let kept = String::from_utf8_lossy(&julies.content).contains("X-MS-Exchange-Organization-AuthAs");
        assert_eq!(kept, believed, "{who}: organization headers");
    }
    test.world.stop().await;
}

/// What a person sees: every scenario's table holds, and a file or a pipe gets neither colours nor long lines.
#[test]
fn the_demo_shows_every_scenario() {
    for scenario in &SCENARIOS {
        let number = scenario.number.to_string();
        let output = run(causeway().args(["demo", "--once", "--scenario", &number]), PATIENCE);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(0), "scenario {number}\n{text}");
        for (mail, copies) in scenario.copies {
            let (_, shown) = text.split_once(mail).unwrap_or_else(|| panic!("scenario {number}, {mail}\n{text}"));
            for copy in *copies {
                assert!(shown.contains(&format!("ok  {copy}")), "scenario {number}, {mail}: {copy}\n{text}");
            }
        }
        for line in text.lines() {
            assert!(line.chars().count() <= 80 && !line.contains('\u{1b}'), "scenario {number}: {line:?}");
        }
    }
    assert_eq!(run(causeway().args(["demo", "--once", "--scenario", "5"]), PATIENCE).status.code(), Some(2));
}

/// The configurations that everything above rests on are ones that `check` would let pass, alone and together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_finds_nothing_wrong_with_either_side() {
    for scenario in &SCENARIOS {
        let test = Test::start(scenario.number).await;
        let (inside, cloud) = (&test.world.on_premises, &test.world.cloud);
        for (premises, other) in [(inside, cloud), (cloud, inside)] {
            for with in [&[][..], &["--other-side".as_ref(), other.configuration.as_os_str()]] {
                let output = run(causeway().arg("-c").arg(&premises.configuration).arg("check").args(with), PATIENCE);
                let text = said(&output);
                assert_eq!(output.status.code(), Some(0), "scenario {}\n{text}", scenario.number);
                assert_eq!(
                    text.contains("the two sides fit"),
                    !with.is_empty(),
                    "scenario {}\n{text}",
                    scenario.number
                );
            }
        }
        test.world.stop().await;
    }
}
