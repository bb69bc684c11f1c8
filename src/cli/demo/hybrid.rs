//! The four hybrid scenarios for a person: who stands where, then every kind of mail as a picture of its way.
//!
//! Each mail is drawn from the tracking events of both relays and compared with the scenario's table, with the
//! `Received:` fields of what arrived, and with what was sent. Nothing is shown as good that only one of them says.

use std::collections::BTreeMap;
use std::io;

use anstream::println;

use super::stay::{self, Screen};
use super::{Args, BOLD, CYAN, DIM, Folder, GREEN, PATIENCE, RED, Task, heading, say};
use crate::demo::hops::{self, Hop, Path, Place, Story, Told};
use crate::demo::hybrid::{Plan, Posted};
use crate::demo::mail::{MAIL, Mail, Scenario};
use crate::demo::{self, Arrival, HybridWorld};
use crate::message::header;
use crate::tls::Proof;

/// The hops of the deepest picture end here, and the connectors begin.
const HOPS: usize = 24;
/// The longest connector's name, and a blank.
const CONNECTORS: usize = 21;

pub(super) async fn show(scenario: &'static Scenario, folder: &Folder, args: &Args) -> io::Result<bool> {
    let told = Told::default();
    let tracker = |place| told.tracker(place);
    let plan = Plan { tracker: &tracker, living: !args.once, ..Plan::new(scenario, &folder.0) };
    let mut world = HybridWorld::start(plan).await?;
    introduce(&world);

    heading("Every kind of mail");
    let mut proofs = Proofs::default();
    let mut good = true;
    for (number, mail) in MAIL.iter().enumerate() {
        good &= one(number + 1, mail, &mut world, &told, &mut proofs).await?;
    }
    proofs.show();
    let copies: usize = scenario.copies.iter().map(|(_, copies)| copies.len()).sum();
    if good {
        say(GREEN, 0, &format!("{} kinds of mail, {copies} copies: each arrived once, by its way.", MAIL.len()));
    } else {
        say(RED, 0, "Not everything went its way.");
    }
    println!();
    if args.once || !good {
        world.stop().await;
        return Ok(good);
    }
    stay(world, &told, args).await?;
    Ok(true)
}

fn introduce(world: &HybridWorld) {
    let scenario = world.scenario;
    say(BOLD, 0, &format!("Causeway demo, scenario {}: {}.", scenario.number, scenario.title));
    println!();
    let doors = [
        (Place::Internet, "a host on the Internet", world.internet.address),
        (Place::P, "the relay on-premises", world.on_premises.door),
        (Place::OnPremises, "the mailboxes there", world.on_premises.mailboxes.address),
        (Place::C, "the relay in the cloud", world.cloud.door),
        (Place::Cloud, "the mailboxes there", world.cloud.mailboxes.address),
    ];
    for (place, what, address) in doors {
        println!("    {BOLD}{:<8}{BOLD:#} {what:<22} {address:<16} {}", place.word(), place.proves());
    }
    println!();
    println!("    MX of {}       {} {DIM}({}){DIM:#}", demo::DOMAIN, scenario.mx, scenario.mx.host());
    println!("    [hybrid] of P           internet = \"{}\"", scenario.on_premises_internet);
    println!("    [hybrid] of C           internet = \"{}\"", scenario.cloud_internet);
    println!("                            inbound_first_hop = \"{}\"", scenario.inbound_first_hop);
    println!("    mailboxes on-premises   julie");
    println!("    mailboxes in the cloud  david, lisa");
    println!("    forward                 kate, to kate@{}", demo::FORWARD_DOMAIN);
    println!("    group                   sales: julie and david\n");
}

/// Sends one mail, draws its way, and says whether that is the right one.
async fn one(
    number: usize,
    mail: &Mail,
    world: &mut HybridWorld,
    told: &Told,
    proofs: &mut Proofs,
) -> io::Result<bool> {
    let posted = world.post(mail).await?;
    let quiet = world.quiet(PATIENCE).await;
    let mut arrivals = Vec::new();
    while let Ok(arrival) = world.arrivals.try_recv() {
        arrivals.push(arrival);
    }
    println!("{DIM}{number:>3}{DIM:#} {BOLD}{}{BOLD:#}", mail.name);
    let refused = posted.sent.recipients.iter().chain(&posted.sent.message).filter(|reply| !reply.is_positive());
    for reply in refused {
        say(RED, 4, &format!("the relay answers {reply}"));
    }
    let (story, mut faults) = match told.story(&posted.message_id) {
        Ok(story) => (story, Vec::new()),
        Err(error) => (Story::default(), vec![error]),
    };
    for hop in &story.hops {
        draw(hop);
    }
    proofs.learn(mail, &posted, &story, &arrivals);
    if !quiet {
        faults.push("messages still wait in the relays".to_owned());
    }
    let expected = world.scenario.copies_of(mail.name);
    for path in &story.paths {
        let arrival = arrivals.iter().find(|arrival| is_end_of(arrival, path));
        verdict(path, expected.contains(&&*path.to_string()), arrival);
    }
    faults.extend(judge(mail, &posted, &arrivals, &story.paths, expected));
    for fault in &faults {
        say(RED, 4, fault);
    }
    println!();
    Ok(faults.is_empty())
}

fn draw(hop: &Hop) {
    let indent = 4 + 2 * hop.depth;
    let way = format!("{} > {}", hop.from, hop.to);
    let (columns, connector) = (HOPS.saturating_sub(indent), &hop.connector);
    let to = hop.recipients.join(" ");
    println!("{:indent$}{way:<columns$}{CYAN}{connector:<CONNECTORS$}{CYAN:#}{to}", "");
}

/// The end of one copy's way: by which way, from whom, and whether it stayed internal.
fn verdict(path: &Path, good: bool, arrival: Option<&Arrival>) {
    let (style, word) = if good { (GREEN, "ok") } else { (RED, "no") };
    let ended = arrival.map(|arrival| {
        let sender = arrival.envelope.sender.as_ref().map_or(String::new(), ToString::to_string);
        format!("from <{sender}>{}", if has_organization(arrival) { ", internal" } else { "" })
    });
    println!("    {style}{word}  {:<37}{style:#} {DIM}{}{DIM:#}", path.to_string(), ended.unwrap_or_default());
}

fn is_end_of(arrival: &Arrival, path: &Path) -> bool {
    path.places.last() == Place::of_arrival(arrival).as_ref()
        && arrival.envelope.recipients.iter().any(|recipient| recipient.address.to_string() == path.to)
}

/// It carries fields that only the organization's own mail may carry.
fn has_organization(arrival: &Arrival) -> bool {
    header::fields(&arrival.content).any(|field| field.starts_with("X-MS-Exchange-"))
}

/// Everything that is not as it should be.
fn judge(mail: &Mail, posted: &Posted, arrivals: &[Arrival], by_events: &[Path], expected: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    let shown: Vec<String> = by_events.iter().map(ToString::to_string).collect();
    if shown != expected {
        faults.push(format!("expected {}", expected.join("; ")));
    }
    let mut by_fields = Vec::new();
    for arrival in arrivals {
        match hops::from_received(arrival) {
            Ok(paths) => by_fields.extend(paths),
            Err(error) => faults.push(format!("its Received fields: {error}")),
        }
        let at = arrival.place;
        let sender = arrival.envelope.sender.as_ref().map_or(String::new(), ToString::to_string);
        if sender != mail.sender {
            faults.push(format!("{at}: from <{sender}> instead of <{}>", mail.sender));
        }
        if arrival.tls.is_none() || (arrival.client.is_none() && at != "internet") {
            faults.push(format!("{at}: the relay proved nothing"));
        }
        let body = |content: &[u8]| header::block_len(content).and_then(|len| content.get(len..).map(<[u8]>::to_vec));
        if body(&arrival.content) != body(posted.content.as_bytes()) {
            faults.push(format!("{at}: the message is not as it was sent"));
        }
        let internal = mail.from != Place::Internet && at != "internet";
        if has_organization(arrival) != internal {
            let what = if internal { "lost" } else { "kept" };
            faults.push(format!("{at}: the organization's header fields were {what}"));
        }
    }
    by_fields.sort();
    if by_fields != by_events {
        let told: Vec<String> = by_fields.iter().map(ToString::to_string).collect();
        faults.push(format!("the Received fields say {}", told.join("; ")));
    }
    faults
}

/// What each host proved to which, learnt from all mail.
#[derive(Default)]
struct Proofs(BTreeMap<(Place, Place), Pair>);

#[derive(Default)]
struct Pair {
    client: Option<String>,
    server: Option<String>,
}

impl Proofs {
    fn learn(&mut self, mail: &Mail, posted: &Posted, story: &Story, arrivals: &[Arrival]) {
        for hop in &story.hops {
            let pair = self.0.entry((hop.from, hop.to)).or_default();
            pair.server = pair.server.take().or_else(|| hop.server.clone());
            pair.client = pair.client.take().or_else(|| hop.client.clone());
        }
        if let Some(first) = story.hops.first().filter(|hop| hop.from == mail.from) {
            self.0.entry((first.from, first.to)).or_default().server = certificate(&posted.sent.proof);
        }
        for path in &story.paths {
            if let (Some(arrival), [.., from, to]) =
                (arrivals.iter().find(|one| is_end_of(one, path)), &path.places[..])
                && let Some(proof) = &arrival.client
            {
                self.0.entry((*from, *to)).or_default().client = certificate(proof);
            }
        }
    }

    fn show(&self) {
        heading("What the certificates proved");
        println!("    {DIM}{:<14} {:<29} {}{DIM:#}", "hop", "who sends", "who receives");
        for ((from, to), Pair { client, server }) in &self.0 {
            let hop = format!("{from} > {to}");
            let shown = |name: &Option<String>| name.clone().unwrap_or_else(|| "(was not asked)".to_owned());
            println!("    {hop:<14} {:<29} {}", shown(client), shown(server));
        }
        println!();
    }
}

fn certificate(proof: &Proof) -> Option<String> {
    match proof {
        Proof::Plain | Proof::Encrypted { .. } => None,
        Proof::Chained { certificate, .. } | Proof::Named { certificate, .. } => Some(certificate.clone()),
    }
}

/// Tells what others send, until it is ended.
async fn stay(mut world: HybridWorld, told: &Told, args: &Args) -> io::Result<()> {
    invite(&world);
    let both = [("the relay on-premises", &world.on_premises), ("the relay in the cloud", &world.cloud)];
    let consoles: Vec<_> = both.iter().filter_map(|(whose, side)| Some((*whose, side.console.as_ref()?))).collect();
    stay::consoles(&consoles);
    told.take();
    let trickle = if args.quiet { None } else { world.trickle().await? };
    let _trickle = trickle.map(|trickle| Task(tokio::spawn(trickle.run())));
    let news = || told.take().into_iter().map(|(place, record)| (Some(place), record)).collect();
    Screen::new(demo::CLOUD_MAILBOXES).follow(&mut world.arrivals, news).await?;
    world.stop().await;
    Ok(())
}

fn invite(world: &HybridWorld) {
    heading("Now you; what happens is told here. Ctrl-C ends the demo.");
    let mx = match world.scenario.mx {
        Place::C => world.cloud.door,
        _ => world.on_premises.door,
    };
    let (julie, david) = (world.on_premises.own_door, world.cloud.own_door);
    let as_host = |place: Place| format!("--tls-cert {0}.crt --tls-key {0}.key", place.host());
    let (server, service) = (as_host(Place::OnPremises), as_host(Place::Cloud));
    println!("    cd {}", world.folder.display());
    for (what, line) in [
        (
            "from the Internet, by the MX, to a group with members on both sides",
            format!("swaks --server {mx} --tls --from you@fabrikam.com --to sales@contoso.com"),
        ),
        (
            "from julie's server to the Internet",
            format!("swaks --server {julie} --tls {server} --from julie@contoso.com --to erin@fabrikam.com"),
        ),
        (
            "from david's to julie",
            format!("swaks --server {david} --tls {service} --from david@contoso.com --to julie@contoso.com"),
        ),
        (
            "the other premises' door without its certificate: no open relay",
            format!("swaks --server {mx} --tls --from julie@contoso.com --to erin@fabrikam.com"),
        ),
    ] {
        println!("    {line}\n        {DIM}{what}{DIM:#}");
    }
    let causeway = std::env::current_exe().map_or_else(|_| "causeway".to_owned(), |path| path.display().to_string());
    let configuration = |place: Place| format!("{}/causeway.toml", place.word());
    let (p, c) = (configuration(Place::P), configuration(Place::C));
    println!("    {causeway} -c {p} check --other-side {c}");
    println!("        {DIM}do the two configurations fit?{DIM:#}");
    println!("    {causeway} -c {p} explain --to david@contoso.com --from you@fabrikam.com");
    println!("        {DIM}the same without sending anything{DIM:#}\n");
}

#[cfg(test)]
mod tests {
    use crate::message::{Address, BodyType, Envelope, Recipient};

    use super::*;

    const FRONT: &str = "Received: from mx1.fabrikam.com ([127.0.0.1]) by mail.contoso.com id A; now\r\n";
    const CONTENT: &str = "Subject: x\r\nX-MS-Exchange-Organization-SCL: 1\r\n\r\nhello\r\n";
    const MAIL: Mail = Mail { name: "x", from: Place::Internet, sender: "erin@fabrikam.com", to: &[] };

    fn arrival(place: &'static str, sender: Option<&str>, content: &str, proved: bool) -> Arrival {
        let recipient = Recipient {
            address: Address::parse("julie@contoso.com").unwrap(),
            notify: crate::message::Notify::default(),
            orcpt: None,
        };
        let protocol = "TLSv1.3".to_owned();
        Arrival {
            place,
            hello: "mail.contoso.com".to_owned(),
            envelope: Envelope {
                sender: sender.map(|sender| Address::parse(sender).unwrap()),
                recipients: vec![recipient],
                ret: None,
                envid: None,
                body: BodyType::SevenBit,
                smtputf8: false,
                requiretls: false,
            },
            xoorg: None,
            content: format!("{FRONT}{content}").into_bytes().into(),
            tls: Some(protocol.clone()),
            client: proved.then_some(Proof::Encrypted { protocol }),
        }
    }

    /// The demo's word is worth something only if it would say no.
    #[test]
    fn every_fault_of_a_copy_is_seen() {
        let posted = Posted {
            message_id: "<1@x>".to_owned(),
            content: CONTENT.to_owned(),
            sent: demo::client::Sent { recipients: Vec::new(), message: None, proof: Proof::Plain },
        };
        let stripped = CONTENT.replace("X-MS-Exchange-Organization-SCL: 1\r\n", "");
        let erin = Some("erin@fabrikam.com");
        let way = ["julie: internet > P > onprem"];
        let good = || arrival("on-premises", erin, &stripped, true);
        let by_events = hops::from_received(&good()).unwrap();
        let judge = |arrivals: &[Arrival], expected: &[&str]| judge(&MAIL, &posted, arrivals, &by_events, expected);
        assert_eq!(judge(&[good()], &way), Vec::<String>::new());
        for (arrivals, expected, fault) in [
            (vec![good()], ["julie: internet > C > P > onprem"], "expected julie: internet > C > P > onprem"),
            (vec![], way, "the Received fields say"),
            (vec![good(), good()], way, "the Received fields say julie: internet > P > onprem; julie:"),
            (vec![arrival("on-premises", None, &stripped, true)], way, "from <> instead of <erin@fabrikam.com>"),
            (vec![arrival("on-premises", erin, &stripped, false)], way, "proved nothing"),
            (vec![arrival("on-premises", erin, CONTENT, true)], way, "header fields were kept"),
            (vec![arrival("on-premises", erin, "Subject: x\r\n\r\nhell\r\n", true)], way, "not as it was sent"),
            (vec![arrival("cloud", erin, &stripped, true)], way, "the Received fields say"),
        ] {
            let faults = judge(&arrivals, &expected);
            assert!(faults.iter().any(|one| one.contains(fault)), "{fault}: {faults:?}");
        }
    }
}
