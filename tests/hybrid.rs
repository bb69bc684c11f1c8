//! Both premises, each behind its own relay, in the four scenarios: every kind of mail, hop by hop.
//!
//! What is expected stands in the tables of `demo::mail`. Two witnesses are asked for each copy: the `Received:` fields
//! of what arrived, and the tracking events of both relays; they must agree with the table and with each other.

#![allow(clippy::unwrap_used)] // what goes wrong here fails the test

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use causeway::demo::hops::{self, Path, Place, Told};
use causeway::demo::hybrid::{Plan, Posted};
use causeway::demo::mail::{DAVID, ERIN, JULIE, MAIL, Mail, NOBODY, Scenario};
use causeway::demo::{self, Arrival, HybridWorld};
use causeway::message::header;
use causeway::smtp::Reply;
use causeway::tls::Proof;
use common::Scratch;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

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
