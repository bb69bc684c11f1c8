//! The way of a message through the hybrid world, told twice: by the `Received:` fields of the copy that arrived, and
//! by the tracking events of both relays. Two witnesses who never spoke to each other.
//!
//! The fields say which host took the message from which; the events say by which connector it came and went, and
//! the next relay's `queued as` ties the end of one relay's story to the beginning of the other's.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Arrival, CLOUD, CLOUD_HOST, CLOUD_MAILBOXES, INTERNET_HOST, ON_PREMISES, RELAY};
use crate::message::header;
use crate::outcome::tracking::{Record, Tracker};

/// Where a message can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Out there.
    Internet,
    /// The mailbox server on-premises.
    OnPremises,
    /// The relay on-premises.
    P,
    /// The relay in the cloud.
    C,
    /// The mailbox service in the cloud.
    Cloud,
}

impl Place {
    /// The word of the tables.
    pub fn word(self) -> &'static str {
        match self {
            Self::Internet => "internet",
            Self::OnPremises => "onprem",
            Self::P => "P",
            Self::C => "C",
            Self::Cloud => "cloud",
        }
    }

    /// What the host there is called.
    pub fn host(self) -> &'static str {
        match self {
            Self::Internet => INTERNET_HOST,
            Self::OnPremises => ON_PREMISES,
            Self::P => RELAY,
            Self::C => CLOUD_HOST,
            Self::Cloud => CLOUD_MAILBOXES,
        }
    }

    /// The first name in its certificate: what it proves to those who ask.
    pub fn proves(self) -> &'static str {
        match self {
            Self::C => CLOUD,
            place => place.host(),
        }
    }

    /// Where that host is.
    pub fn of_host(name: &str) -> Option<Self> {
        [Self::Internet, Self::OnPremises, Self::P, Self::C, Self::Cloud].into_iter().find(|place| place.host() == name)
    }

    /// The site of an [`Arrival`].
    pub fn of_arrival(arrival: &Arrival) -> Option<Self> {
        match arrival.place {
            "internet" => Some(Self::Internet),
            "on-premises" => Some(Self::OnPremises),
            "cloud" => Some(Self::Cloud),
            _ => None,
        }
    }

    /// It is a relay's: messages come here to go on.
    pub fn is_relay(self) -> bool {
        matches!(self, Self::P | Self::C)
    }

    /// Who comes by this receive connector of the relay here.
    fn before(self, receive_connector: &str) -> Option<Self> {
        match (self, receive_connector) {
            (Self::P | Self::C, "internet") => Some(Self::Internet),
            (Self::P, "from-on-premises") => Some(Self::OnPremises),
            (Self::P, "from-cloud") => Some(Self::C),
            (Self::C, "from-cloud-mailboxes") => Some(Self::Cloud),
            (Self::C, "from-on-premises") => Some(Self::P),
            _ => None,
        }
    }

    /// Where this send connector of the relay here leads.
    pub fn behind(self, send_connector: &str) -> Option<Self> {
        match (self, send_connector) {
            (Self::P | Self::C, "to-internet") => Some(Self::Internet),
            (Self::P, "to-on-premises") => Some(Self::OnPremises),
            (Self::P, "to-cloud") => Some(Self::C),
            (Self::C, "to-cloud") => Some(Self::Cloud),
            (Self::C, "to-on-premises") => Some(Self::P),
            _ => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One copy's way. It shows itself as the tables do: `david: internet > C > P > C > cloud`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path {
    /// The address in the last envelope.
    pub to: String,
    /// From where it was sent to where it ended.
    pub places: Vec<Place>,
    /// What the relays on the way called it, in order.
    pub ids: Vec<String>,
    /// The enhanced status, if the last place could not bring it further.
    pub failed: Option<String>,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.to.split('@').next().unwrap_or_default();
        let places: Vec<&str> = self.places.iter().map(|place| place.word()).collect();
        write!(f, "{name}: {}", places.join(" > "))?;
        match &self.failed {
            Some(status) => write!(f, ", then {status}"),
            None => Ok(()),
        }
    }
}

/// The way of each recipient of a copy, as its `Received:` fields tell it.
///
/// # Errors
/// What of it cannot be true: a host nobody knows, or a gap between two fields.
pub fn from_received(arrival: &Arrival) -> Result<Vec<Path>, String> {
    let mut fields: Vec<Received> = Vec::new();
    for field in header::fields(&arrival.content).filter(|field| field.is("Received")) {
        fields.push(Received::parse(&String::from_utf8_lossy(field.value()))?);
    }
    // Each host puts its field in front.
    fields.reverse();
    let known = |host: &str| Place::of_host(host).ok_or_else(|| format!("a field names {host}, whom nobody knows"));
    let mut places = Vec::new();
    let mut ids = Vec::new();
    let mut last: Option<&str> = None;
    for field in &fields {
        match last {
            // A relay's own report comes from the relay itself.
            None if field.from == field.by => {}
            None => places.push(known(&field.from)?),
            Some(by) if by == field.from => {}
            Some(by) => return Err(format!("{} took it from {}, and not from {by} before it", field.by, field.from)),
        }
        places.push(known(&field.by)?);
        ids.push(field.id.clone());
        last = Some(&field.by);
    }
    if last != Some(&*arrival.hello) {
        return Err(format!("{} brought it, and the last field is of {last:?}", arrival.hello));
    }
    places.push(Place::of_arrival(arrival).ok_or_else(|| format!("nobody lives at {}", arrival.place))?);
    let path = |to: String| Path { to, places: places.clone(), ids: ids.clone(), failed: None };
    Ok(arrival.envelope.recipients.iter().map(|recipient| path(recipient.address.to_string())).collect())
}

/// What a `Received:` field says of the way.
struct Received {
    from: String,
    by: String,
    id: String,
}

impl Received {
    fn parse(value: &str) -> Result<Self, String> {
        let clauses = value.rsplit_once(';').map_or(value, |(clauses, _date)| clauses);
        let words: Vec<&str> = clauses.split_whitespace().collect();
        let behind = |word: &str| {
            let found = words.iter().position(|one| *one == word).and_then(|at| words.get(at + 1));
            found.map(|word| (*word).to_owned()).ok_or_else(|| format!("no \"{word}\" in Received: {value}"))
        };
        Ok(Self { from: behind("from")?, by: behind("by")?, id: behind("id")? })
    }
}

/// What both relays said of their messages, in the order in which they said it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Told(Arc<Mutex<Vec<(Place, Record)>>>);

impl Told {
    /// A tracker for the relay at `place`.
    pub fn tracker(&self, place: Place) -> Tracker {
        let told = self.clone();
        Tracker::none().watched(move |event| {
            // What was just written as JSON can be read.
            if let Ok(record) = Record::parse(&event.to_json()) {
                told.0.lock().unwrap_or_else(PoisonError::into_inner).push((place, record));
            }
        })
    }

    /// All of it, from the event of this number on.
    pub fn since(&self, number: usize) -> Vec<(Place, Record)> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.get(number..).unwrap_or_default().to_vec()
    }

    /// All of it, and it is forgotten.
    pub fn take(&self) -> Vec<(Place, Record)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The story of the message with this `Message-ID`, as the events tell it. Recipients that still wait are not in it.
    ///
    /// # Errors
    /// What of it cannot be true: a message that was handed over and never got, or got and never handed over.
    pub fn story(&self, message_id: &str) -> Result<Story, String> {
        let told = self.since(0);
        let mut visits: Vec<Visit<'_>> = Vec::new();
        let mut numbers: HashMap<(Place, &str), usize> = HashMap::new();
        let about = |event: &'static [&'static str]| {
            let of_it = |record: &Record| record.message_id.as_deref() == Some(message_id);
            told.iter()
                .filter(move |(_, record)| of_it(record) && event.contains(&record.event.as_str()))
                .filter_map(|(relay, record)| Some((*relay, record.id.as_deref()?, record)))
        };
        for (relay, id, record) in about(&["RECEIVE"]) {
            let connector = record.connector.as_deref().unwrap_or_default();
            let from = relay.before(connector).ok_or_else(|| format!("{relay} got it by {connector}"))?;
            numbers.insert((relay, id), visits.len());
            visits.push(Visit { relay, id, from, record, ends: Vec::new() });
        }
        for (relay, id, record) in about(&["SEND", "FAIL"]) {
            match numbers.get(&(relay, id)) {
                Some(&number) => visits[number].ends.push(record),
                None => return Err(format!("{relay} tells what became of {id}, which it never got")),
            }
        }
        let mut walk = Walk { visits: &visits, numbers: &numbers, seen: HashSet::new(), story: Story::default() };
        for (number, visit) in visits.iter().enumerate() {
            if !visit.from.is_relay() {
                walk.story.hops.push(visit.hop_to_here());
                walk.follow(number, vec![visit.from], Vec::new())?;
            }
        }
        if let Some((_, orphan)) = visits.iter().enumerate().find(|(number, _)| !walk.seen.contains(number)) {
            return Err(format!("{} got {} from {}, who tells nothing of it", orphan.relay, orphan.id, orphan.from));
        }
        walk.story.paths.sort();
        Ok(walk.story)
    }
}

/// A message's way, as the events of both relays tell it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Story {
    /// Every hop once, each before those that follow from it.
    pub hops: Vec<Hop>,
    /// The way of each recipient that arrived or failed, in order.
    pub paths: Vec<Path>,
}

/// One message handed from one host to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// How many hops were before it.
    pub depth: usize,
    /// From where.
    pub from: Place,
    /// To where.
    pub to: Place,
    /// The connector that the relay used: of two relays the sending one's.
    pub connector: String,
    /// The envelope's recipients.
    pub recipients: Vec<String>,
    /// What the receiving host's certificate proved, where the sending one asked.
    pub server: Option<String>,
    /// What the sending host's certificate proved, where the receiving one is a relay and asked.
    pub client: Option<String>,
}

/// A message's stay at one relay.
struct Visit<'a> {
    relay: Place,
    id: &'a str,
    from: Place,
    record: &'a Record,
    ends: Vec<&'a Record>,
}

impl Visit<'_> {
    fn hop_to_here(&self) -> Hop {
        Hop {
            depth: 0,
            from: self.from,
            to: self.relay,
            connector: self.record.connector.clone().unwrap_or_default(),
            recipients: self.record.to.clone(),
            server: None,
            client: self.client(),
        }
    }

    /// What the verdict says of the client's certificate: `name mail.contoso.com: true`.
    fn client(&self) -> Option<String> {
        let named = |clause: &String| Some(clause.strip_prefix("name ")?.strip_suffix(": true")?.to_owned());
        self.record.because.iter().find_map(named)
    }
}

struct Walk<'a> {
    visits: &'a [Visit<'a>],
    numbers: &'a HashMap<(Place, &'a str), usize>,
    seen: HashSet<usize>,
    story: Story,
}

impl Walk<'_> {
    fn follow(&mut self, number: usize, mut places: Vec<Place>, mut ids: Vec<String>) -> Result<(), String> {
        let visit = &self.visits[number];
        let (relay, id) = (visit.relay, visit.id);
        if !self.seen.insert(number) {
            return Err(format!("{relay} got {id} from two"));
        }
        places.push(relay);
        ids.push(id.to_owned());
        for end in &visit.ends {
            let path = |to: &String, places: &[Place], failed: Option<&String>| Path {
                to: to.clone(),
                places: places.to_vec(),
                ids: ids.clone(),
                failed: failed.cloned(),
            };
            if end.event == "FAIL" {
                let unsaid = "no status".to_owned();
                let status = end.status.as_ref().unwrap_or(&unsaid);
                self.story.paths.extend(end.to.iter().map(|to| path(to, &places, Some(status))));
                continue;
            }
            let connector = end.connector.as_deref().unwrap_or_default();
            let next = relay.behind(connector).ok_or_else(|| format!("{relay} sent it by {connector}"))?;
            self.story.hops.push(Hop {
                depth: ids.len(),
                from: relay,
                to: next,
                connector: connector.to_owned(),
                recipients: end.to.clone(),
                server: end.tls.as_deref().and_then(proved).map(str::to_owned),
                client: None,
            });
            let drawn = self.story.hops.len() - 1;
            if !next.is_relay() {
                let places = [&places[..], &[next]].concat();
                self.story.paths.extend(end.to.iter().map(|to| path(to, &places, None)));
                continue;
            }
            let said = end.detail.as_deref().unwrap_or_default();
            let queued = said.rsplit(' ').next().unwrap_or_default();
            let Some(&after) = self.numbers.get(&(next, queued)) else {
                return Err(format!("{relay} handed {id} to {next}, who said \"{said}\" and tells nothing of it"));
            };
            let there = &self.visits[after];
            if there.from != relay || !end.to.iter().all(|to| there.record.to.contains(to)) {
                let (got, from) = (there.record.to.join(" "), there.from);
                return Err(format!("{relay} sent {id} for {}; {next} got it from {from} for {got}", end.to.join(" ")));
            }
            self.story.hops[drawn].client = there.client();
            self.follow(after, places.clone(), ids.clone())?;
        }
        Ok(())
    }
}

/// The certificate's name in what a SEND event says of TLS.
fn proved(tls: &str) -> Option<&str> {
    tls.split_once("trusted certificate for ").map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one relay says, as a row of a table: relay, event, id, connector, to, detail.
    fn told(rows: &[(Place, &str, &str, &str, &str, &str)]) -> Told {
        let told = Told::default();
        for (place, event, id, connector, to, detail) in rows {
            told.0.lock().unwrap().push((
                *place,
                Record {
                    event: (*event).to_owned(),
                    id: Some((*id).to_owned()),
                    message_id: Some("1@fabrikam.com".to_owned()),
                    to: to.split(' ').map(str::to_owned).collect(),
                    connector: Some((*connector).to_owned()),
                    status: Some("5.4.6".to_owned()),
                    detail: Some((*detail).to_owned()),
                    ..Record::default()
                },
            ));
        }
        told
    }

    #[test]
    fn events_of_two_relays_make_one_story() {
        let (p, c) = (Place::P, Place::C);
        let both = "julie@contoso.com david@contoso.com";
        let rows = [
            (c, "RECEIVE", "A", "internet", both, ""),
            (p, "RECEIVE", "B", "from-cloud", both, ""),
            (c, "SEND", "A", "to-on-premises", both, "250 2.0.0 queued as B"),
            (c, "RECEIVE", "D", "from-on-premises", "david@x", ""),
            (p, "SEND", "B", "to-cloud", "david@x", "250 2.0.0 queued as D"),
            (p, "FAIL", "B", "to-on-premises", "julie@contoso.com", ""),
            (c, "SEND", "D", "to-cloud", "david@x", "250 ok"),
        ];
        let Story { hops, paths } = told(&rows).story("1@fabrikam.com").unwrap();
        let shown: Vec<String> = paths.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["david: internet > C > P > C > cloud", "julie: internet > C > P, then 5.4.6"]);
        assert_eq!(paths[0].ids, ["A", "B", "D"]);
        let drawn: Vec<String> =
            hops.iter().map(|hop| format!("{}{} > {}", "  ".repeat(hop.depth), hop.from, hop.to)).collect();
        assert_eq!(drawn, ["internet > C", "  C > P", "    P > C", "      C > cloud"]);

        // Without any one of the first five rows the story has a hole.
        for hole in 0..5 {
            let mut rows = rows.to_vec();
            rows.remove(hole);
            assert!(told(&rows).story("1@fabrikam.com").is_err(), "without row {hole}");
        }
        // Nobody can get by one connector what was sent by another, or for others.
        for (row, wrong) in [
            (1, (p, "RECEIVE", "B", "from-on-premises", both, "")),
            (1, (p, "RECEIVE", "B", "from-cloud", "julie@contoso.com", "")),
            (4, (p, "SEND", "B", "to-cloud", "david@x", "250 2.0.0 queued as A")),
        ] {
            let mut rows = rows.to_vec();
            rows[row] = wrong;
            assert!(told(&rows).story("1@fabrikam.com").is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_received_field_is_read_as_it_is_folded() {
        let value = " from mx1.fabrikam.com ([127.0.0.1]) by mail.contoso.com with ESMTPS\r\n\t(TLSv1.3 \
                     TLS_AES_256_GCM_SHA384) id 0000000000AB\r\n\tfor <julie@contoso.com>; Sat, 21 Nov 2026 12:00:00 +0000\r\n";
        let field = Received::parse(value).unwrap();
        assert_eq!((&*field.from, &*field.by, &*field.id), ("mx1.fabrikam.com", "mail.contoso.com", "0000000000AB"));
        assert!(Received::parse("from a with SMTP id 1; now").is_err());
    }
}
