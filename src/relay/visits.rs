//! Messages that come back: what is answered at the second visit, and in which words.
//!
//! A recipient goes in circles if the message bears this relay's own mark for it: the same receive connector, the
//! same recipient, and routing would send it where it was sent before. While a mailbox moves, the two directories
//! disagree for minutes, so for `[hybrid] disagreement_grace` after the first visit the answer is temporary.
//!
//! Not here: the mark itself (`message::visit`); routing, which knows nothing of the past.
//!
//! Standards: RFC 3463 section 3.5 (X.4.6), 5321 section 6.3 (loops).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::Snapshot;
use crate::config::{Config, ConnectorName, Hybrid, Origin, Side};
use crate::directory::Lookup;
use crate::message::visit::{Key, Mark, Visit};
use crate::message::{Address, OrganizationHeaders, Recipient};
use crate::outcome::Setback;
use crate::route::resolve::{Asking, Rules};
use crate::route::{CopyRecipient, Hop, HopCopy, Reason, Routed};
use crate::smtp::{Reply, Status};
use crate::spool::Message;

/// The connector of recipients that go in circles while others of the same message do not: their first attempt fails,
/// so that their failure is kept and reported as any other is. No connector of a configuration has this name.
pub(super) const CIRCLES: &str = " ";

/// A message that has been here.
pub(super) struct Returning<'a> {
    pub key: &'a Key,
    pub marks: &'a [Mark],
    pub config: &'a Config,
    pub hybrid: &'a Hybrid,
    /// The receive connector.
    pub by: &'a str,
    pub message_id: Option<&'a str>,
}

/// What follows for the message as a whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Circling {
    /// Nothing.
    No,
    /// Every recipient does: the end of data is answered with this.
    Refuse(Reply),
    /// Some do: these, by their index, cannot be sent on.
    Some(Vec<usize>),
}

impl Returning<'_> {
    /// Looks at where the recipients would go.
    pub(super) fn judge(&self, routed: &[Routed], now: Timestamp) -> Circling {
        let ours = self.key.ours(self.marks);
        let found: Vec<(usize, Timestamp)> = routed
            .iter()
            .enumerate()
            .filter_map(|(index, one)| {
                let Routed { asked, route, .. } = one;
                let visit = Visit { by: self.by, asked, via: &route.via.0, to: &route.to };
                Some((index, self.key.first_visit(&ours, &visit)?))
            })
            .collect();
        let Some(&(first, since)) = found.first() else { return Circling::No };
        let moving = |since: Timestamp| age(since, now) < self.hybrid.disagreement_grace;
        if found.len() == routed.len() {
            let moving = found.iter().find(|(_, since)| moving(*since));
            let (index, since) = moving.copied().unwrap_or((first, since));
            let mut words = words(self.config, self.by, &routed[index], Some(since));
            words.extend(self.message_id.map(|id| format!("see: {}", trace(id))));
            return Circling::Refuse(Reply::second_visit(moving.is_some(), &words.join(";\n")));
        }
        // Those that may be moving go round once more, now alone: then the whole message waits on the other side.
        let settled: Vec<usize> = found.iter().filter(|(_, since)| !moving(*since)).map(|(index, _)| *index).collect();
        if settled.is_empty() { Circling::No } else { Circling::Some(settled) }
    }
}

/// A clock that was set back makes a visit young, not old.
fn age(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

/// Takes this recipient out of the circle: its first attempt will fail.
pub(super) fn cut(routed: &mut Routed) {
    routed.route.via = ConnectorName(Arc::from(CIRCLES));
    routed.route.hop = Hop::SmartHosts;
}

/// Why a recipient of a copy that was [`cut`] goes no further.
pub(super) fn setback(snapshot: &Snapshot, message: &Message, copy: &HopCopy, index: u16) -> Option<Setback> {
    let recipient = copy.recipients.get(usize::from(index))?;
    let why = match route_again(snapshot, message, recipient) {
        Some(routed) => words(&snapshot.config, &message.connector, &routed, None).join("; "),
        None => format!("it came back by receive connector \"{}\" after it had been sent on", message.connector),
    };
    let see = message.message_id.as_deref().map(trace);
    Some(Setback::Circles { address: recipient.asked.to_string(), why, see })
}

/// The same setback; but where the other premises answered that the two disagree, or that the message goes in circles, with
/// what this side holds: whoever reads of it sees both sides at once.
pub(super) fn with_this_side(
    snapshot: &Snapshot,
    message: &Message,
    copy: &HopCopy,
    index: u16,
    setback: Setback,
) -> Setback {
    let config = &snapshot.config;
    let across = config.hybrid.as_ref().is_some_and(|hybrid| copy.via == *other_premises(hybrid));
    let is_about_us =
        matches!(setback.decisive(), Setback::Answered { .. }) && matches!(setback.status(), Status(_, 4, 6));
    let recipient = copy.recipients.get(usize::from(index)).filter(|_| across && is_about_us);
    let Some(recipient) = recipient else { return setback };
    let because = route_again(snapshot, message, recipient).map(|routed| because(&routed));
    let words = [
        belief(config, "on this side", &because.unwrap_or_else(|| "its directory has changed since".to_owned())),
        format!("so it went to <{}> by send connector \"{}\"", recipient.recipient.address, copy.via),
        mend(&recipient.asked),
    ];
    let see = message.message_id.as_deref().map(trace);
    Setback::Disagreed { answer: Box::new(setback.decisive().clone()), here: words.join("; "), see }
}

/// Is who wrote this one of our own, who may read how the organization routes its mail? Both must hold: it came from a
/// place of ours, and by its sender's name. The other premises may write to the sender what it hears from us.
pub(super) fn is_inside(config: &Config, origin: Origin, sender: Option<&Address>, directory: &dyn Lookup) -> bool {
    let rules = Rules { config, directory };
    !matches!(origin, Origin::Internet | Origin::Partner)
        && sender.is_none_or(|sender| rules.ours(sender.domain()).is_some())
}

/// The same of a message that was taken.
pub(super) fn came_from_inside(snapshot: &Snapshot, message: &Message) -> bool {
    let config = &snapshot.config;
    let by = config.receive_connectors.iter().find(|connector| *connector.name.0 == *message.connector);
    by.is_some_and(|by| is_inside(config, by.origin, message.envelope.sender.as_ref(), snapshot.directory.as_ref()))
}

/// Are reports to its sender free of the limit for those outside? Our own people did write, and so did our applications,
/// whatever name they write under.
pub(super) fn is_unlimited(snapshot: &Snapshot, message: &Message) -> bool {
    let config = &snapshot.config;
    let by = config.receive_connectors.iter().find(|connector| *connector.name.0 == *message.connector);
    let origin = match by {
        Some(by) => by.origin,
        // It was removed or renamed. That what the message brought was believed says that it came from us.
        None if message.organization == OrganizationHeaders::Believed => Origin::OnPremises,
        None => Origin::Internet,
    };
    origin == Origin::Client || is_inside(config, origin, message.envelope.sender.as_ref(), snapshot.directory.as_ref())
}

/// How this recipient would be routed now.
fn route_again(snapshot: &Snapshot, message: &Message, recipient: &CopyRecipient) -> Option<Routed> {
    let config = &snapshot.config;
    let rules = Rules { config, directory: snapshot.directory.as_ref() };
    let asked = Recipient { address: recipient.asked.clone(), ..recipient.recipient.clone() };
    let connector = config.receive_connectors.iter().find(|connector| *connector.name.0 == *message.connector)?;
    let asking =
        Asking { origin: connector.origin, connector: &connector.name, may_relay: connector.relay, size: None };
    let routed = rules.resolve(&asking, &asked).ok()?;
    routed.into_iter().find(|one| one.route.to == recipient.recipient.address)
}

/// What both sides believe and what to mend. One fact a line, for as long as the lines last: other
/// servers make one of them, so the reader gets punctuation too.
fn words(config: &Config, by: &str, one: &Routed, since: Option<Timestamp>) -> Vec<String> {
    let Routed { asked, route, .. } = one;
    let when = since.map(|since| format!(" at {since}")).unwrap_or_default();
    let mut words = vec![
        belief(config, "here", &because(one)),
        format!("so it went to <{}> by send connector \"{}\"{when}", route.to, route.via),
    ];
    let hybrid = config.hybrid.as_ref();
    match hybrid.filter(|hybrid| route.via == *other_premises(hybrid)) {
        Some(hybrid) => {
            let other = match hybrid.side {
                Side::OnPremises => "the cloud",
                Side::Cloud { .. } => "on-premises",
            };
            words.push(format!(
                "{other} sent it back by receive connector \"{by}\": there the mailbox is held to be here"
            ));
            words.push(mend(asked));
        }
        None => {
            words.push(format!("and it came back by receive connector \"{by}\""));
            words.push(format!("mend what sends it back, or the entry of <{asked}> in the directory"));
        }
    }
    words
}

/// `here (mail.contoso.com, on-premises): found in recipients.csv: cloud mailbox`
fn belief(config: &Config, place: &str, because: &str) -> String {
    let side = config.hybrid.as_ref().map_or("", |hybrid| hybrid.side.word());
    format!("{place} ({}, {side}): {because}", config.hostname)
}

fn because(one: &Routed) -> String {
    one.route.because.iter().map(Reason::to_string).collect::<Vec<_>>().join("; ")
}

fn mend(asked: &Address) -> String {
    format!("mend <{asked}> in the directory of the side that is wrong")
}

/// What an administrator runs to see the whole way, ready to be pasted: the Message-ID is the sender's, and a quote in it
/// must not end the argument.
fn trace(message_id: &str) -> String {
    format!("causeway trace --message-id '{}'", message_id.replace('\'', r"'\''"))
}

/// The send connector that leads to the other premises.
fn other_premises(hybrid: &Hybrid) -> &ConnectorName {
    match hybrid.side {
        Side::OnPremises => &hybrid.cloud,
        Side::Cloud { .. } => &hybrid.on_premises,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::message::{MessageId, Notify, header};
    use crate::route::Route;

    pub(in super::super) const HYBRID: &str = r#"
hostname = "mail.contoso.com"
[spool]
path = "/spool"
[hybrid]
on_premises = "to-on-premises"
cloud = "to-cloud"
routing_domain = "contoso.mail.onmicrosoft.com"
[[accepted_domain]]
name = "contoso.com"
[[receive_connector]]
name = "from-cloud"
listen = ["127.0.0.1:0"]
origin = "cloud"
relay = false
tls = "off"
[[send_connector]]
name = "to-on-premises"
smart_hosts = ["127.0.0.1:1"]
tls = "off"
[[send_connector]]
name = "to-cloud"
smart_hosts = ["127.0.0.1:1"]
tls = "off"
"#;

    fn config(grace: &str) -> Config {
        let text =
            HYBRID.replace("[[accepted_domain]]", &format!("disagreement_grace = \"{grace}\"\n[[accepted_domain]]"));
        config::parse(&text, Path::new("/causeway.toml")).unwrap()
    }

    fn routed(asked: &str, via: &str, to: &str) -> Routed {
        let (asked, to) = (Address::parse(asked).unwrap(), Address::parse(to).unwrap());
        let reason = Reason::Found { source: "recipients.csv".into(), kind: "cloud mailbox".into(), untagged: false };
        Routed {
            asked,
            recipient: Recipient { address: to.clone(), notify: Notify::Unsaid, orcpt: None },
            route: Route { via: ConnectorName(via.into()), hop: Hop::SmartHosts, to, because: vec![reason] },
            reached: crate::route::Reached::ByName,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Marks of a copy that left at `second` for these.
    fn marks(key: &Key, second: i64, copy: &[&Routed]) -> Vec<Mark> {
        let visits = copy.iter().map(|one| Visit {
            by: "from-cloud",
            asked: &one.asked,
            via: &one.route.via.0,
            to: &one.route.to,
        });
        header::facts(key.field(MessageId(5), at(second), visits).as_bytes()).visits
    }

    #[test]
    fn the_second_visit_is_cut_and_before_that_there_is_time_to_move() {
        let key = Key::new(&[1; 32]);
        let david = routed("david@contoso.com", "to-cloud", "david@contoso.mail.onmicrosoft.com");
        let dora = routed("dora@contoso.com", "to-cloud", "dora@contoso.mail.onmicrosoft.com");
        let moved = routed("david@contoso.com", "to-on-premises", "david@contoso.com");
        let was_here = marks(&key, 1000, &[&david]);
        let both = marks(&key, 1000, &[&david, &dora]);
        let not_here: Vec<Mark> = Vec::new();
        for (what, grace, marks, now, recipients, expected) in [
            ("a first visit", "1h", &not_here, 1001, &[&david][..], "no"),
            ("it may be moving", "1h", &was_here, 1001, &[&david], "451 4.4.6"),
            ("a clock that was set back", "1h", &was_here, 10, &[&david], "451 4.4.6"),
            ("to the end of the grace", "1h", &was_here, 1000 + 3599, &[&david], "451 4.4.6"),
            ("and no longer", "1h", &was_here, 1000 + 3600, &[&david], "550 5.4.6"),
            ("without grace", "0s", &was_here, 1001, &[&david], "550 5.4.6"),
            ("it has moved: the directory knows by now", "1h", &was_here, 1001, &[&moved], "no"),
            ("a mailing list returns it to another recipient", "0s", &was_here, 1001, &[&dora], "no"),
            ("one of two goes on alone while it may be moving", "1h", &was_here, 1001, &[&dora, &david], "no"),
            ("one of two is cut alone", "0s", &was_here, 1001, &[&dora, &david], "cut 1"),
            ("both", "0s", &both, 1001, &[&dora, &david], "550 5.4.6"),
        ] {
            let config = config(grace);
            let hybrid = config.hybrid.as_ref().unwrap();
            let returning =
                Returning { key: &key, marks, config: &config, hybrid, by: "from-cloud", message_id: Some("<a@b>") };
            let recipients: Vec<Routed> = recipients.iter().map(|&one| one.clone()).collect();
            let found = match returning.judge(&recipients, at(now)) {
                Circling::No => "no".to_owned(),
                Circling::Refuse(reply) => format!("{} {}", reply.code, reply.status.unwrap()),
                Circling::Some(indexes) => format!("cut {}", indexes.iter().map(usize::to_string).collect::<String>()),
            };
            assert_eq!(found, expected, "{what}");
        }
    }

    /// From where, by whom, and whether they may read who believes what.
    #[test]
    fn who_is_inside() {
        let config = config("1h");
        let directory = crate::directory::Directory::load(&[]).0;
        for (origin, sender, expected) in [
            (Origin::OnPremises, Some("julie@contoso.com"), true),
            (Origin::Client, Some("julie@contoso.com"), true),
            (Origin::Cloud, None, true),
            (Origin::Cloud, Some("julie@contoso.mail.onmicrosoft.com"), false),
            (Origin::Cloud, Some("erin@fabrikam.com"), false),
            (Origin::Internet, Some("julie@contoso.com"), false),
            (Origin::Partner, Some("julie@contoso.com"), false),
            (Origin::Internet, None, false),
        ] {
            let address = sender.map(|sender| Address::parse(sender).unwrap());
            assert_eq!(is_inside(&config, origin, address.as_ref(), &directory), expected, "{origin:?} {sender:?}");
        }
    }

    /// The line is meant to be pasted into a shell, and the sender chose what stands in it.
    #[test]
    fn a_message_id_stays_one_argument() {
        let wild = "<a';touch /tmp/x;'@b>";
        let line = trace(wild);
        let command = line.strip_prefix("causeway").unwrap();
        let output =
            std::process::Command::new("sh").args(["-c", &format!("printf '%s\\n'{command}")]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("trace\n--message-id\n{wild}\n"));
    }

    #[test]
    fn the_answer_names_both_sides_and_what_to_mend() {
        let key = Key::new(&[1; 32]);
        let david = routed("david@contoso.com", "to-cloud", "david@contoso.mail.onmicrosoft.com");
        let (config, marks) = (config("0s"), marks(&key, 0, &[&david]));
        let hybrid = config.hybrid.as_ref().unwrap();
        let by = "from-cloud";
        let returning = Returning { key: &key, marks: &marks, config: &config, hybrid, by, message_id: Some("<a@b>") };
        let Circling::Refuse(reply) = returning.judge(&[david], at(60)) else { panic!("it goes on") };
        let mut wire = bytes::BytesMut::new();
        reply.write_to(&mut wire);
        let expected = "550-5.4.6 routing loop, cut at the second visit:\r\n\
            550-5.4.6 here (mail.contoso.com, on-premises): found in recipients.csv: cloud mailbox;\r\n\
            550-5.4.6 so it went to <david@contoso.mail.onmicrosoft.com> by send connector \"to-cloud\" at 1970-01-01T00:00:00Z;\r\n\
            550-5.4.6 the cloud sent it back by receive connector \"from-cloud\": there the mailbox is held to be here;\r\n\
            550-5.4.6 mend <david@contoso.com> in the directory of the side that is wrong;\r\n\
            550 5.4.6 see: causeway trace --message-id '<a@b>'\r\n";
        assert_eq!(str::from_utf8(&wire).unwrap(), expected);
    }
}
