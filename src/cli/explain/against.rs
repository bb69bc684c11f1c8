//! What two configurations, or two versions of a directory, make of the same recipients: who goes another way.
//!
//! Compared is what a recipient meets: the premises or connector, the next hop, the address there, the demand on TLS, or
//! the code of the refusal. A connector of `[hybrid]` that has another name is no other way, nor is the same way for
//! another reason. Changes are grouped by kind, those that concern most come first.
//!
//! A hundred thousand recipients take seconds, so nothing is put into words but what differs.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{BOLD, GREEN, RED, write};
use crate::config::{Config, Hops, SendConnector};
use crate::directory::Directory;
use crate::message::{Address, Notify, Recipient};
use crate::route::explain::{Coming, Explanation, asking, next_hop, reasons, refused_at_mail, tls_words};
use crate::route::{Asking, Hop, Refusal, Resolution, Routed, Rules};
use crate::smtp::Status;

/// How often a terminal is told how far it is.
const PROGRESS: Duration = Duration::from_millis(200);

/// One of the two that are asked.
pub(super) struct View<'a> {
    /// What it is called: the file that was named.
    pub file: String,
    pub config: &'a Config,
    pub directory: &'a Directory,
    /// How the message comes in, or why it cannot.
    pub coming: Result<Coming<'a>, String>,
}

/// The same question to both.
pub(super) struct Comparison<'a> {
    pub here: View<'a>,
    pub there: View<'a>,
    pub from: Option<&'a Address>,
    pub size: Option<u64>,
}

/// Whom it is about.
pub(super) enum Who {
    /// These, in this order.
    Listed(Vec<Address>),
    /// All that either directory knows.
    Everybody,
}

/// What answers: one view, made ready for many recipients.
struct Judge<'a> {
    rules: Rules<'a>,
    /// As `config.send_connectors`: what each amounts to.
    places: Vec<Place>,
    asks: Result<Asking<'a>, Refused>,
}

/// What a send connector amounts to.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// `on-premises`, `cloud`, or the connector's name.
    label: String,
    /// Its smart hosts; `None`: by MX.
    hosts: Option<String>,
    /// What it demands.
    tls: String,
}

/// What becomes of one recipient.
#[derive(Debug, PartialEq, Eq)]
enum Outcome<'j> {
    Taken {
        ends: Vec<End<'j>>,
        /// Members of groups that are not reached.
        failed: Vec<(Address, Refused)>,
    },
    Refused(Refused),
}

#[derive(Debug, PartialEq, Eq)]
struct End<'j> {
    place: &'j Place,
    hop: Hop,
    to: Address,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Refused {
    /// No receive connector takes it; why.
    Nowhere(String),
    /// MAIL or RCPT is answered so.
    With(u16, Status),
}

/// Where a recipient's way ended before it began.
enum NotTaken {
    /// No connector takes the message, or MAIL is refused.
    Earlier(Refused),
    AtRcpt(Refusal),
}

/// A change, as it is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    /// It goes to another place, or no more, or only now.
    Moves { from: String, to: String },
    /// To the same place, otherwise.
    Alters { place: String, what: String },
}

struct Change {
    address: Address,
    /// In a sentence each.
    here: String,
    there: String,
}

impl<'a> View<'a> {
    fn judge(&'a self, from: Option<&Address>, size: Option<u64>) -> Judge<'a> {
        let rules = Rules { config: self.config, directory: self.directory };
        let hybrid = self.config.hybrid.as_ref();
        let place = |connector: &Arc<SendConnector>| Place {
            label: match hybrid {
                Some(hybrid) if hybrid.on_premises == connector.name => "on-premises".to_owned(),
                Some(hybrid) if hybrid.cloud == connector.name => "cloud".to_owned(),
                _ => connector.name.to_string(),
            },
            hosts: match &connector.hops {
                Hops::SmartHosts(_) => Some(next_hop(Some(connector), &Hop::SmartHosts)),
                Hops::Mx => None,
            },
            tls: tls_words(Some(connector), &Hop::SmartHosts),
        };
        let asks = match &self.coming {
            Err(why) => Err(Refused::Nowhere(why.clone())),
            Ok(coming) => match refused_at_mail(rules, coming.door, from, size) {
                Some(reply) => Err(Refused::With(reply.code, reply.status_or_class())),
                None => Ok(asking(coming.door, size)),
            },
        };
        Judge { rules, places: self.config.send_connectors.iter().map(place).collect(), asks }
    }
}

impl Judge<'_> {
    fn resolve(&self, to: &Address) -> Result<Resolution, NotTaken> {
        let asking = self.asks.as_ref().map_err(|refused| NotTaken::Earlier(refused.clone()))?;
        let recipient = Recipient { address: to.clone(), notify: Notify::Unsaid, orcpt: None };
        self.rules.expand(asking, &recipient).map_err(NotTaken::AtRcpt)
    }

    fn outcome(&self, resolution: &Result<Resolution, NotTaken>) -> Outcome<'_> {
        match resolution {
            Err(NotTaken::AtRcpt(refusal)) => Outcome::Refused(Refused::of(refusal)),
            Err(NotTaken::Earlier(refused)) => Outcome::Refused(refused.clone()),
            Ok(Resolution { routed, failed }) => {
                let mut ends: Vec<_> = routed.iter().filter_map(|one| self.end(one)).collect();
                let mut failed: Vec<_> =
                    failed.iter().map(|one| (one.address.clone(), Refused::of(&one.refusal))).collect();
                // In what order a group names its members changes nothing.
                if ends.len() > 1 {
                    ends.sort_by_cached_key(|end| end.to.key());
                }
                failed.sort_by_cached_key(|(address, _)| address.key());
                Outcome::Taken { ends, failed }
            }
        }
    }

    fn end(&self, Routed { route, .. }: &Routed) -> Option<End<'_>> {
        let number = self.rules.config.send_connectors.iter().position(|connector| connector.name == route.via)?;
        Some(End { place: self.places.get(number)?, hop: route.hop.clone(), to: route.to.clone() })
    }
}

impl Refused {
    fn of(refusal: &Refusal) -> Self {
        let (code, status) = refusal.status();
        Self::With(code, status)
    }

    fn words(&self) -> String {
        match self {
            Self::Nowhere(why) => format!("not taken: {why}"),
            Self::With(code, status) => format!("refused with {code} {status}"),
        }
    }
}

impl End<'_> {
    fn words(&self) -> String {
        let Place { label, hosts, tls } = self.place;
        let hop = hosts.clone().unwrap_or_else(|| self.hop.to_string());
        format!("{label}, {hop}, as {}; TLS: {tls}", self.to)
    }
}

impl Outcome<'_> {
    /// The places it goes to, each once; or the refusal.
    fn label(&self) -> String {
        match self {
            Self::Refused(refused) => refused.words(),
            Self::Taken { ends, .. } => {
                let mut labels: Vec<&str> = ends.iter().map(|end| end.place.label.as_str()).collect();
                labels.sort_unstable();
                labels.dedup();
                labels.join(" and ")
            }
        }
    }

    /// The whole of it in a sentence.
    fn words(&self) -> String {
        match self {
            Self::Refused(refused) => refused.words(),
            Self::Taken { ends, failed } => {
                let ends = ends.iter().map(End::words);
                let failed = failed.iter().map(|(address, refused)| format!("{address} {}", refused.words()));
                ends.chain(failed).collect::<Vec<_>>().join("; ")
            }
        }
    }

    /// What kind of change it is from this to `other`; `None`: it is none.
    fn change(&self, other: &Self) -> Option<Kind> {
        if self == other {
            return None;
        }
        let (from, to) = (self.label(), other.label());
        if from != to {
            return Some(Kind::Moves { from, to });
        }
        let (Self::Taken { ends: own, failed: own_failed }, Self::Taken { ends: others, failed: others_failed }) =
            (self, other)
        else {
            return None;
        };
        let pairs = || own.iter().zip(others);
        let members = own.len() > 1 && pairs().any(|(one, other)| one.to != other.to);
        let mut what = Vec::new();
        if own.len() != others.len() || own_failed != others_failed || members {
            what.push("other members");
        } else {
            for (differs, words) in [
                (pairs().any(|(one, other)| one.to != other.to), "another address"),
                (pairs().any(|(one, other)| one.place.label != other.place.label), "members elsewhere"),
                (pairs().any(|(one, other)| one.place.hosts != other.place.hosts), "another next hop"),
                (pairs().any(|(one, other)| one.place.tls != other.place.tls), "another TLS demand"),
            ] {
                if differs {
                    what.push(words);
                }
            }
        }
        (!what.is_empty()).then(|| Kind::Alters { place: from, what: what.join(" and ") })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Moves { from, to } => write!(f, "{from} -> {to}"),
            Self::Alters { place, what } => write!(f, "{place}: {what}"),
        }
    }
}

impl Comparison<'_> {
    /// Recipients named one by one: what becomes of each by the first, then what differs by the second. True: nothing.
    pub(super) fn of_few(
        self,
        here: &[Address],
        there: &[Address],
        json: bool,
        out: &mut impl Write,
    ) -> io::Result<bool> {
        let Self { here: view, there: other, from, size } = self;
        let (judge, other_judge) = (view.judge(from, size), other.judge(from, size));
        let pairs: Vec<_> = here
            .iter()
            .zip(there)
            .map(|(to, other_to)| {
                let both = (judge.resolve(to), other_judge.resolve(other_to));
                let kind = judge.outcome(&both.0).change(&other_judge.outcome(&both.1));
                (to, both, kind)
            })
            .collect();
        let coming = |view: &View<'_>| match &view.coming {
            Ok(coming) => coming.words.clone(),
            Err(why) => vec![why.clone()],
        };
        let (coming_here, coming_there) = (coming(&view), coming(&other));
        let same = coming_here == coming_there && pairs.iter().all(|(.., kind)| kind.is_none());
        if json {
            let sides = |judge: &Judge<'_>, resolution: &Result<Resolution, NotTaken>| json!({ "route": judge.outcome(resolution).words(), "because": because(resolution).concat() });
            let recipients = pairs.iter().map(|(to, both, kind)| {
                json!({
                    "to": to.to_string(),
                    "differs": kind.as_ref().map(ToString::to_string),
                    "here": sides(&judge, &both.0),
                    "there": sides(&other_judge, &both.1),
                })
            });
            let answer = json!({
                "here": view.file,
                "there": other.file,
                "comes_in": { "here": coming_here, "there": coming_there },
                "recipients": recipients.collect::<Vec<_>>(),
            });
            writeln!(out, "{answer:#}")?;
            return Ok(same);
        }
        match view.coming {
            Ok(coming) => {
                write(&Explanation::of(view.config, view.directory, coming, from, here, size), out)?;
            }
            Err(why) => writeln!(out, "{RED}{why}{RED:#}")?,
        }
        writeln!(out, "\n{BOLD}by {}{BOLD:#}", other.file)?;
        if same {
            writeln!(out, "    {GREEN}nothing differs{GREEN:#}")?;
            return Ok(true);
        }
        // What a message is held to be says its clauses one by one, and one of them may be the cause of all the rest.
        for words in coming_there.iter().filter(|words| !coming_here.contains(words)) {
            writeln!(out, "    {words}")?;
        }
        for (to, both, kind) in &pairs {
            let Some(kind) = kind else {
                writeln!(out, "    {to}: the same")?;
                continue;
            };
            writeln!(out, "    {BOLD}{to}: {kind}{BOLD:#}")?;
            for reasons in because(&both.1) {
                reasons.iter().try_for_each(|reason| writeln!(out, "        {reason}"))?;
            }
            match other_judge.outcome(&both.1) {
                refused @ Outcome::Refused(_) => writeln!(out, "        {RED}{}{RED:#}", refused.words())?,
                Outcome::Taken { ends, failed } => {
                    for end in ends {
                        writeln!(out, "        {GREEN}-> {}{GREEN:#}", end.words())?;
                    }
                    for (address, refused) in failed {
                        writeln!(out, "        {RED}not to {address}: {}{RED:#}", refused.words())?;
                    }
                }
            }
        }
        Ok(false)
    }

    /// All of them: how many go another way, by kind of change, and who. True: nobody.
    pub(super) fn of_many(self, who: Who, json: bool, out: &mut impl Write) -> io::Result<bool> {
        let Self { here, there, from, size } = self;
        let (judge, other_judge) = (here.judge(from, size), there.judge(from, size));
        let who = match who {
            Who::Listed(addresses) => addresses,
            Who::Everybody => everybody(here.directory, there.directory),
        };
        let mut progress = Progress::new(who.len());
        let mut kinds: HashMap<Kind, Vec<Change>> = HashMap::new();
        for (number, address) in who.iter().enumerate() {
            progress.tell(number);
            let both = (judge.resolve(address), other_judge.resolve(address));
            let (outcome, other) = (judge.outcome(&both.0), other_judge.outcome(&both.1));
            if let Some(kind) = outcome.change(&other) {
                let change = Change { address: address.clone(), here: outcome.words(), there: other.words() };
                kinds.entry(kind).or_default().push(change);
            }
        }
        progress.end();
        let mut kinds: Vec<(String, Kind, Vec<Change>)> =
            kinds.into_iter().map(|(kind, changes)| (kind.to_string(), kind, changes)).collect();
        kinds.sort_by(|one, other| other.2.len().cmp(&one.2.len()).then_with(|| one.0.cmp(&other.0)));
        let changed: usize = kinds.iter().map(|(.., changes)| changes.len()).sum();
        if json {
            let list = |changes: &[Change]| -> Vec<Value> {
                let one = |Change { address, here, there }: &Change| json!({ "address": address.to_string(), "here": here, "there": there });
                changes.iter().map(one).collect()
            };
            let kinds = kinds.iter().map(
                |(name, _, changes)| json!({ "change": name, "count": changes.len(), "recipients": list(changes) }),
            );
            let answer = json!({
                "here": here.file,
                "there": there.file,
                "recipients": who.len(),
                "changed": changed,
                "changes": kinds.collect::<Vec<_>>(),
            });
            writeln!(out, "{answer:#}")?;
            return Ok(changed == 0);
        }
        if changed == 0 {
            writeln!(out, "{GREEN}nothing differs{GREEN:#} by {}: {}", there.file, counted(who.len()))?;
            return Ok(true);
        }
        writeln!(out, "{BOLD}by {}, {changed} of {} go another way{BOLD:#}", there.file, counted(who.len()))?;
        for (name, _, changes) in &kinds {
            writeln!(out, "{:>8}  {name}", changes.len())?;
        }
        for (name, kind, changes) in &kinds {
            writeln!(out, "\n{BOLD}{name}: {}{BOLD:#}", counted(changes.len()))?;
            for Change { address, here, there } in changes {
                match kind {
                    Kind::Moves { .. } => writeln!(out, "    {address}")?,
                    Kind::Alters { .. } => writeln!(out, "    {address}\n        {here}\n     -> {there}")?,
                }
            }
        }
        Ok(false)
    }
}

/// Everybody that one of them knows, each once, by name.
fn everybody(one: &Directory, other: &Directory) -> Vec<Address> {
    let mut all: Vec<Address> = one.addresses().chain(other.addresses()).collect();
    // Domain first: so a listing keeps those together whom one postmaster knows. The tables have lower case only.
    let key = |address: &Address, other: &Address| {
        address.domain().as_str().cmp(other.domain().as_str()).then_with(|| address.local().cmp(other.local()))
    };
    all.sort_unstable_by(key);
    all.dedup();
    all
}

/// The reasons of each end, without those that were said just before.
fn because(resolution: &Result<Resolution, NotTaken>) -> Vec<Vec<String>> {
    let lists: Vec<_> = match resolution {
        Err(NotTaken::Earlier(_)) => Vec::new(),
        Err(NotTaken::AtRcpt(refusal)) => vec![&refusal.because],
        Ok(Resolution { routed, failed }) => {
            let failed = failed.iter().map(|failed| &failed.refusal.because);
            routed.iter().map(|one| &one.route.because).chain(failed).collect()
        }
    };
    let shared = |number: usize| match number.checked_sub(1).and_then(|before| lists.get(before)) {
        Some(before) => lists[number].iter().zip(*before).take_while(|(one, other)| one == other).count(),
        None => 0,
    };
    (0..lists.len()).map(|number| reasons(&lists[number][shared(number)..])).collect()
}

fn counted(recipients: usize) -> String {
    match recipients {
        1 => "1 recipient".to_owned(),
        many => format!("{many} recipients"),
    }
}

/// How far it is, on a terminal; a pipe hears nothing.
struct Progress {
    of: usize,
    /// When it is told next; `None`: nobody looks.
    next: Option<Instant>,
    told: bool,
}

impl Progress {
    fn new(of: usize) -> Self {
        let next = io::stderr().is_terminal().then(|| Instant::now() + PROGRESS);
        Self { of, next, told: false }
    }

    fn tell(&mut self, done: usize) {
        // The clock is not asked for each of them.
        if !done.is_multiple_of(256) {
            return;
        }
        let now = Instant::now();
        if self.next.is_some_and(|next| now >= next) {
            eprint!("\r{done} of {} recipients", self.of);
            self.told = true;
            self.next = Some(now + PROGRESS);
        }
    }

    fn end(self) {
        if self.told {
            // The line is for the answer.
            eprint!("\r{:60}\r", "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::explain::Comer;
    use crate::route::world::{World, address};

    fn view<'a>(file: &str, world: &'a World, directory: &'a Directory) -> View<'a> {
        let origin = world.config.receive_connectors[0].origin;
        let coming = Coming::of(&world.config, Comer { origin: Some(origin), ..Comer::default() });
        View { file: file.to_owned(), config: &world.config, directory, coming }
    }

    enum Ask<'a> {
        Few(&'a [&'a str]),
        Many(&'a [&'a str]),
        All,
    }

    /// What is printed, and whether nothing differs.
    fn compare(here: &World, there: &World, ask: &Ask<'_>, json: bool) -> (String, bool) {
        let (one, other) = (here.directory(), there.directory());
        let comparison = Comparison {
            here: view("here.toml", here, &one),
            there: view("there.toml", there, &other),
            from: None,
            size: None,
        };
        let mut out = anstream::StripStream::new(Vec::new());
        let addresses = |names: &[&str]| names.iter().map(|name| address(name)).collect::<Vec<_>>();
        let same = match ask {
            Ask::Few(to) => comparison.of_few(&addresses(to), &addresses(to), json, &mut out),
            Ask::Many(to) => comparison.of_many(Who::Listed(addresses(to)), json, &mut out),
            Ask::All => comparison.of_many(Who::Everybody, json, &mut out),
        };
        (String::from_utf8(out.into_inner()).unwrap(), same.unwrap())
    }

    /// A directory before a night of moves.
    fn before() -> World {
        World::on_premises()
            .mailbox("anna@contoso.com")
            .mailbox("ben@contoso.com")
            .cloud_mailbox("david@contoso.com")
            .cloud_mailbox("dora@contoso.com")
            .mailbox("gone@contoso.com")
            .forward("kate@contoso.com", "kate@tailspintoys.com")
            .group("team@contoso.com", "anna@contoso.com david@contoso.com")
            .group("pair@contoso.com", "david@contoso.com dora@contoso.com")
    }

    /// And after it.
    fn after() -> World {
        World::on_premises()
            .cloud_mailbox("anna@contoso.com")
            .cloud_mailbox("ben@contoso.com")
            .cloud_mailbox("david@contoso.com")
            .cloud_mailbox_at("dora@contoso.com", "dora.x@contoso.mail.onmicrosoft.com")
            .mailbox("new@contoso.com")
            .forward("kate@contoso.com", "kate@tailspintoys.com")
            .group("team@contoso.com", "david@contoso.com anna@contoso.com")
            .group("pair@contoso.com", "dora@contoso.com david@contoso.com")
    }

    #[test]
    fn whose_mail_moves_is_counted_and_listed() {
        let (text, same) = compare(&before(), &after(), &Ask::All, false);
        assert_eq!(
            text,
            "\
by there.toml, 7 of 9 recipients go another way
       2  on-premises -> cloud
       1  cloud and on-premises -> cloud
       1  cloud: another address
       1  cloud: other members
       1  on-premises -> refused with 550 5.1.1
       1  refused with 550 5.1.1 -> on-premises

on-premises -> cloud: 2 recipients
    anna@contoso.com
    ben@contoso.com

cloud and on-premises -> cloud: 1 recipient
    team@contoso.com

cloud: another address: 1 recipient
    dora@contoso.com
        cloud, contoso-com.mail.protection.outlook.com:25, as dora@contoso.mail.onmicrosoft.com; \
TLS: if offered, with any certificate; else in the clear
     -> cloud, contoso-com.mail.protection.outlook.com:25, as dora.x@contoso.mail.onmicrosoft.com; \
TLS: if offered, with any certificate; else in the clear

cloud: other members: 1 recipient
    pair@contoso.com
        cloud, contoso-com.mail.protection.outlook.com:25, as david@contoso.mail.onmicrosoft.com; \
TLS: if offered, with any certificate; else in the clear; \
cloud, contoso-com.mail.protection.outlook.com:25, as dora@contoso.mail.onmicrosoft.com; \
TLS: if offered, with any certificate; else in the clear
     -> cloud, contoso-com.mail.protection.outlook.com:25, as david@contoso.mail.onmicrosoft.com; \
TLS: if offered, with any certificate; else in the clear; \
cloud, contoso-com.mail.protection.outlook.com:25, as dora.x@contoso.mail.onmicrosoft.com; \
TLS: if offered, with any certificate; else in the clear

on-premises -> refused with 550 5.1.1: 1 recipient
    gone@contoso.com

refused with 550 5.1.1 -> on-premises: 1 recipient
    new@contoso.com
"
        );
        assert!(!same);
        let (text, same) = compare(&before(), &after(), &Ask::All, true);
        let json: Value = serde_json::from_str(&text).unwrap();
        assert!(!same);
        assert_eq!((&json["recipients"], &json["changed"]), (&json!(9), &json!(7)));
        assert_eq!(json["changes"][0]["change"], "on-premises -> cloud");
        assert_eq!(json["changes"][0]["count"], 2);
        assert_eq!(json["changes"][0]["recipients"][1]["address"], "ben@contoso.com");
        assert!(json["changes"][0]["recipients"][1]["here"].as_str().unwrap().starts_with("on-premises, mail.inside"));
        assert_eq!(json["changes"][4]["recipients"][0]["there"], "refused with 550 5.1.1");
    }

    #[test]
    fn those_listed_are_asked_about_in_their_order_and_nobody_else() {
        let listed =
            ["team@contoso.com", "Ben@contoso.com", "david@contoso.com", "anna@contoso.com", "eve@fabrikam.com"];
        let (text, _) = compare(&before(), &after(), &Ask::Many(&listed), false);
        assert!(
            text.starts_with("by there.toml, 3 of 5 recipients go another way\n       2  on-premises -> cloud\n"),
            "{text}"
        );
        assert!(text.contains("2 recipients\n    Ben@contoso.com\n    anna@contoso.com\n"), "{text}");
    }

    #[test]
    fn the_same_way_for_another_reason_or_by_another_order_is_the_same() {
        let other = before().connector("spare", &["example.org"]).postmaster("anna@contoso.com");
        let (text, same) = compare(&before(), &other, &Ask::All, false);
        assert_eq!((text.as_str(), same), ("nothing differs by there.toml: 8 recipients\n", true));
        // Aliases of one mailbox lead to one place.
        let (one, other) = (
            before().alias("a@contoso.com", "anna@contoso.com"),
            before().forward("a@contoso.com", "anna@contoso.com"),
        );
        assert!(compare(&one, &other, &Ask::Many(&["a@contoso.com"]), false).1);
    }

    #[test]
    fn the_kind_of_a_change_names_what_differs() {
        let partner = |hosts: &'static str| before().smart("to-partner", &["fabrikam.com"], hosts);
        let to = ["kate@contoso.com", "eve@fabrikam.com"];
        for (here, there, to, expected) in [
            (before(), before().internet("cloud"), to[0], "to-internet -> cloud"),
            (partner("a.example"), partner("b.example"), "eve@fabrikam.com", "to-partner: another next hop"),
            (
                partner("a.example"),
                partner("a.example").tls("to-partner", "encrypt"),
                to[1],
                "to-partner: another TLS demand",
            ),
            (
                partner("a.example"),
                partner("b.example").tls("to-partner", "encrypt"),
                to[1],
                "to-partner: another next hop and another TLS demand",
            ),
            (before(), before().connector("to-partner", &["tailspintoys.com"]), to[0], "to-internet -> to-partner"),
            (before(), before().unavailable(), "anna@contoso.com", "on-premises -> refused with 451 4.4.3"),
            (
                before().group("g@contoso.com", "anna@contoso.com x@contoso.com"),
                before().group("g@contoso.com", "anna@contoso.com"),
                "g@contoso.com",
                "on-premises: other members",
            ),
            (
                before(),
                before()
                    .entry_first("anna@contoso.com", crate::directory::Entry::Cloud(None))
                    .entry_first("david@contoso.com", crate::directory::Entry::OnPremises),
                "team@contoso.com",
                "cloud and on-premises: other members",
            ),
        ] {
            let (here, there) = (here.origin("client"), there.origin("client"));
            let (text, same) = compare(&here, &there, &Ask::Many(&[to]), false);
            assert!(!same, "{to}: {text}");
            assert!(text.contains(&format!("       1  {expected}\n")), "{to}: {expected}: {text}");
        }
    }

    #[test]
    fn named_recipients_are_explained_by_both() {
        let to = ["david@contoso.com", "anna@contoso.com", "gone@contoso.com"];
        let (text, same) = compare(&before(), &after(), &Ask::Few(&to), false);
        assert!(!same);
        assert!(text.starts_with("from <>\n    comes in by receive connector \"door\", origin internet\n"), "{text}");
        assert_eq!(
            text.split_once("\nby there.toml\n").unwrap().1,
            "    david@contoso.com: the same
    anna@contoso.com: on-premises -> cloud
        found in recipients.csv: cloud mailbox
        rewritten to anna@contoso.mail.onmicrosoft.com
        side on-premises, from the Internet, cloud mailbox: hybrid.cloud
        -> cloud, contoso-com.mail.protection.outlook.com:25, as anna@contoso.mail.onmicrosoft.com; \
TLS: if offered, with any certificate; else in the clear
    gone@contoso.com: on-premises -> refused with 550 5.1.1
        not in the directory; contoso.com is authoritative
        refused with 550 5.1.1
"
        );
        let (text, same) = compare(&before(), &before(), &Ask::Few(&to), false);
        assert!(same);
        assert!(text.ends_with("\nby there.toml\n    nothing differs\n"), "{text}");

        let json: Value = serde_json::from_str(&compare(&before(), &after(), &Ask::Few(&to), true).0).unwrap();
        assert_eq!(json["recipients"][0]["differs"], Value::Null);
        assert_eq!(json["recipients"][1]["differs"], "on-premises -> cloud");
        assert_eq!(json["recipients"][1]["there"]["because"][0], "found in recipients.csv: cloud mailbox");
        assert_eq!(json["recipients"][2]["there"]["route"], "refused with 550 5.1.1");
    }

    #[test]
    fn another_door_is_a_difference_of_its_own() {
        let to = ["anna@contoso.com"];
        let (text, same) = compare(&before(), &before().origin("partner"), &Ask::Few(&to), false);
        assert!(!same, "{text}");
        assert!(
            text.ends_with(
                "by there.toml\n    comes in by receive connector \"door\", origin partner\n    anna@contoso.com: the same\n"
            ),
            "{text}"
        );
        let (one, other) = (before(), before());
        let (directory, other_directory) = (one.directory(), other.directory());
        let closed = View {
            coming: Err("no receive connector takes it".into()),
            ..view("there.toml", &other, &other_directory)
        };
        let comparison =
            Comparison { here: view("here.toml", &one, &directory), there: closed, from: None, size: None };
        let mut out = Vec::new();
        assert!(!comparison.of_many(Who::Everybody, true, &mut out).unwrap());
        let json: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["changes"].as_array().unwrap().len(), 4, "{json}");
        let to_nowhere = json["changes"][0]["change"].as_str().unwrap();
        assert!(to_nowhere.ends_with(" -> not taken: no receive connector takes it"), "{to_nowhere}");
    }
}
