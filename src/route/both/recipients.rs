//! Every recipient of both directories. Those whose entries are alike go the same way, so one of them is followed and
//! all are counted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::way::{End, Why, domain_of};
use super::{Faults, Pair, Spot, Who};
use crate::config::DomainKind;
use crate::directory::{Entry, Found};
use crate::message::Address;
use crate::route::Rules;

/// Entries that lead to entries are compared so deep; what goes deeper is followed by itself.
const DEPTH: usize = 4;

/// Recipients that go the same way.
struct Alike {
    first: Address,
    who: Who,
}

/// What is wrong with recipients, in the order in which it is told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// Each side holds them to be at the other.
    Loops { entries: [String; 2] },
    /// Each side holds them to be at home.
    TwoHomes,
    /// One side refuses them as unknown.
    Unknown { to: usize, others: String, domain_is_final: bool },
    /// Their entries lead to different places.
    Differ { entries: [String; 2] },
    /// A mailbox of ours is sent to the Internet.
    Leaves { site: usize, domain: String },
    /// Forwards, groups and aliases lead back to themselves.
    Own { site: usize },
}

impl Pair<'_> {
    pub(super) fn all_recipients(&mut self) {
        let entries = self.entries();
        let mut told: BTreeMap<Fault, (Spot, Who)> = BTreeMap::new();
        let mut faults = Faults::new();
        for Alike { first, who } in self.alike() {
            let beliefs = [self.belief(0, &first), self.belief(1, &first)];
            // Several entries may find the same; it is one fault of these recipients all the same.
            let mut elsewhere = Faults::new();
            let mut runs = Vec::new();
            for entry in &entries {
                let ends = self.follow(entry, &first);
                for end in &ends {
                    if !matches!(end, End::Refused { why: Why::Unknown | Why::Loop, .. } | End::Circle { .. }) {
                        self.note_end(end, &first, &who, &mut elsewhere);
                    }
                }
                runs.push(ends);
            }
            let stopped = !elsewhere.is_empty();
            for (key, (spot, who)) in elsewhere {
                faults.entry(key).or_insert_with(|| (spot, Who::default())).1.merge(who);
            }
            if let Some(fault) = self.fault(&first, &beliefs, &runs).filter(|_| !stopped) {
                let spot = self.spot(&fault, &first, &beliefs);
                told.entry(fault).or_insert_with(|| (spot, Who::default())).1.merge(who);
            }
        }
        for (fault, (spot, who)) in told {
            let text = self.words(&fault, &who);
            self.found.error(spot, text);
        }
        self.tell(faults);
    }

    /// The first thing that is wrong, given what each side says and how the probes ended.
    fn fault(&self, address: &Address, beliefs: &[Belief; 2], runs: &[Vec<End>]) -> Option<Fault> {
        let ends = || runs.iter().flatten();
        let (inside, cloud) = (&beliefs[self.at(true)], &beliefs[self.at(false)]);
        let says = || [beliefs[0].words.clone(), beliefs[1].words.clone()];
        let (inside, cloud) = (inside.entry.as_ref(), cloud.entry.as_ref());
        if let (Some(Entry::Cloud(_)), Some(Entry::OnPremises)) = (inside, cloud) {
            return Some(Fault::Loops { entries: says() });
        }
        if let (Some(Entry::OnPremises), Some(Entry::Cloud(_))) = (inside, cloud) {
            return Some(Fault::TwoHomes);
        }
        // Equal forwards, groups and aliases are right; what they lead to has its own finding.
        let same = inside == cloud && matches!(inside, Some(Entry::Forward(_) | Entry::Group(_) | Entry::Alias(_)));
        for end in ends() {
            match end {
                _ if same && !matches!(end, End::Refused { crossed: false, .. }) => {}
                End::Circle { .. } | End::Refused { why: Why::Loop, crossed: true, .. } => {
                    return Some(Fault::Loops { entries: says() });
                }
                End::Refused { site, why: Why::Loop, crossed: false, .. } => return Some(Fault::Own { site: *site }),
                _ => {}
            }
        }
        let unknown = ends().find_map(|end| match end {
            End::Refused { site, why: Why::Unknown, to, .. } => Some((*site, to)),
            _ => None,
        });
        if let Some((site, refused)) = unknown.filter(|_| !same) {
            // A member of a group that nobody knows is one directory's own affair.
            let member = Address::parse(refused).ok().filter(|member| member.key() != address.key());
            let by_itself = beliefs[site].entry.is_some()
                && member.is_some_and(|member| self.belief(1 - site, &member).entry.is_none());
            if !by_itself {
                let rules = Rules { config: &self.sites[site].config, directory: self.sites[site].directory };
                let domain = rules.accepted(address.domain());
                let domain_is_final = domain.is_some_and(|domain| domain.kind == DomainKind::Authoritative);
                return Some(Fault::Unknown { to: site, others: beliefs[1 - site].words.clone(), domain_is_final });
            }
        }
        if same {
            return None;
        }
        let mailbox = |entry: Option<&Entry>| matches!(entry, Some(Entry::OnPremises | Entry::Cloud(_)));
        if mailbox(inside) || mailbox(cloud) {
            let left = ends().find_map(|end| match end {
                End::Internet { site, to } => Some((*site, to)),
                _ => None,
            });
            if let Some((site, to)) = left {
                return Some(Fault::Leaves { site, domain: domain_of(to).to_owned() });
            }
        }
        // The same mailboxes, whichever way it came in; entries that may not send there do not count.
        let mut arrived = runs.iter().filter(|ends| {
            !ends.is_empty()
                && !ends.iter().any(|end| matches!(end, End::Nowhere | End::Refused { .. } | End::Sender { .. }))
        });
        let place = |ends: &Vec<End>| -> Vec<Option<usize>> {
            let mut places: Vec<_> = ends
                .iter()
                .map(|end| match end {
                    End::Mailbox { site } => Some(*site),
                    _ => None,
                })
                .collect();
            places.sort_unstable();
            places
        };
        let first = arrived.next().map(place)?;
        arrived.any(|ends| place(ends) != first).then(|| Fault::Differ { entries: says() })
    }

    /// Where it would be mended.
    fn spot(&self, fault: &Fault, first: &Address, beliefs: &[Belief; 2]) -> Spot {
        let recipient = |site: usize| Spot::Recipient {
            which: self.sites[site].which,
            source: beliefs[site].source.clone(),
            address: first.clone(),
        };
        match fault {
            Fault::Loops { .. } | Fault::TwoHomes | Fault::Differ { .. } => recipient(0),
            Fault::Unknown { to, .. } => recipient(1 - to),
            Fault::Leaves { site, .. } => {
                let site = &self.sites[*site];
                Spot::key(site.which, "send_connector", site.own_way(), "address_spaces")
            }
            Fault::Own { site } => recipient(*site),
        }
    }

    fn words(&self, fault: &Fault, who: &Who) -> String {
        let [own, other] = [&self.sites[0], &self.sites[1]].map(super::Site::words);
        let names = who.words();
        let (is, the) = if who.count == 1 { ("it", "the mailbox is") } else { ("them", "the mailboxes are") };
        match fault {
            Fault::Loops { entries: [one, two] } => format!(
                "{names}: mail loops: {own} has {is} as {one}, {other} as {two}; find out where {the} and mend the entry on the side that is wrong"
            ),
            Fault::TwoHomes => format!(
                "{names}: {own} and {other} each hold {is} to be at home: which mailbox gets the mail depends on where it was sent from; mend the entry on the side where {the} not"
            ),
            Fault::Unknown { to, others, domain_is_final } => {
                let (to, from) = (self.sites[*to].words(), self.sites[1 - to].words());
                let cure = match domain_is_final {
                    true => format!(
                        "add {is} there, or let the domain be \"internal-relay\" there; as it is, both sides take it for final"
                    ),
                    false => format!("add {is} there"),
                };
                format!("{names}: known to {from} ({others}), and {to} refuses {is} with 550 5.1.1; {cure}")
            }
            Fault::Differ { entries: [one, two] } => format!(
                "{names}: mail sent from one side reaches others than mail from the other side: {own} has {one}, {other} {two}; make the entries alike"
            ),
            Fault::Leaves { site, domain } => format!(
                "{names}: mail to {domain} leaves for the Internet from {}, though {the} the organization's; add \"{domain}\" to the address spaces here, or mend the target",
                self.sites[*site].words()
            ),
            Fault::Own { site } => format!(
                "{names}: the entries of {} lead back to where they began: mail is refused with 550 5.4.6; mend one of them",
                self.sites[*site].words()
            ),
        }
    }

    /// All recipients in groups that go the same way.
    fn alike(&self) -> Vec<Alike> {
        let mut groups: HashMap<String, Alike> = HashMap::new();
        let mut note = |address: &Address| {
            if self.is_apart(address) {
                return;
            }
            let mut key = address.domain().to_string();
            self.describe(address, 0, &mut key);
            match groups.get_mut(&key) {
                Some(group) => {
                    group.who.note(address);
                    // Which one is followed must not depend on chance.
                    if address.key() < group.first.key() {
                        group.first = address.clone();
                    }
                }
                None => {
                    let mut who = Who::default();
                    who.note(address);
                    groups.insert(key, Alike { first: address.clone(), who });
                }
            }
        };
        for (number, site) in self.sites.iter().enumerate() {
            // Of one that two sources of a directory know the first holds; it is still one recipient.
            let mut known = (site.config.directories.len() > 1).then(HashSet::new);
            for address in site.directory.addresses() {
                let again = known.as_mut().is_some_and(|known| !known.insert(address.key()));
                let before = number == 1 && !matches!(self.sites[0].find(&address), Found::Unknown);
                let asked = !matches!(site.find(&address), Found::Unknown);
                if asked && !again && !before {
                    note(&address);
                }
            }
        }
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_by_key(|group| group.first.key());
        groups
    }

    fn is_apart(&self, address: &Address) -> bool {
        self.apart.iter().any(|domain| address.domain().is_within(domain))
    }

    /// What both directories say of `address`, so that equal descriptions mean equal ways.
    fn describe(&self, address: &Address, depth: usize, to: &mut String) {
        if depth >= DEPTH {
            to.push('#');
            to.push_str(&address.key());
            return;
        }
        let found = [self.belief_entry(0, address), self.belief_entry(1, address)];
        // Two groups of like members that are not the same go different ways.
        if let [Some(one), Some(two)] = &found
            && one != two
            && matches!((one, two), (Entry::Group(_), Entry::Group(_)) | (Entry::Forward(_), Entry::Forward(_)))
        {
            to.push_str("!=");
            to.push_str(&address.key());
        }
        for entry in &found {
            to.push('|');
            match entry {
                None => to.push('U'),
                Some(Entry::OnPremises) => to.push('P'),
                Some(Entry::Cloud(None)) => to.push('C'),
                Some(Entry::Cloud(Some(target))) => {
                    let own = target.local().eq_ignore_ascii_case(address.local())
                        && self.sites.iter().all(|site| site.hybrid().routing_domain == *target.domain());
                    to.push('C');
                    if !own {
                        to.push('@');
                        to.push_str(target.domain().as_str());
                    }
                }
                Some(Entry::Forward(target)) => self.describe_step('F', target, depth, to),
                Some(Entry::Alias(target)) => self.describe_step('A', target, depth, to),
                Some(Entry::Group(members)) => {
                    let mut kinds: Vec<String> = members
                        .iter()
                        .map(|member| {
                            let mut kind = String::new();
                            self.describe_step('M', member, depth, &mut kind);
                            kind
                        })
                        .collect();
                    kinds.sort();
                    kinds.dedup();
                    to.push_str(&format!("G[{}]", kinds.join(",")));
                }
            }
        }
    }

    fn describe_step(&self, kind: char, address: &Address, depth: usize, to: &mut String) {
        to.push(kind);
        to.push('(');
        to.push_str(address.domain().as_str());
        self.describe(address, depth + 1, to);
        to.push(')');
    }

    fn belief_entry(&self, site: usize, address: &Address) -> Option<Entry> {
        match self.sites[site].find(address) {
            Found::Entry { entry, .. } => Some(entry),
            Found::Unknown | Found::Unavailable(_) => None,
        }
    }

    fn belief(&self, site: usize, address: &Address) -> Belief {
        match self.sites[site].find(address) {
            Found::Entry { source, entry, .. } => {
                let what = match &entry {
                    Entry::OnPremises => "on-premises mailbox",
                    Entry::Cloud(_) => "cloud mailbox",
                    Entry::Forward(_) => "forward",
                    Entry::Group(_) => "group",
                    Entry::Alias(_) => "alias",
                };
                Belief { words: format!("{what} in {source}"), entry: Some(entry), source: Some(source) }
            }
            Found::Unknown => Belief { words: "unknown".to_owned(), entry: None, source: None },
            Found::Unavailable(why) => Belief { words: format!("not to be told ({why})"), entry: None, source: None },
        }
    }
}

/// What one side says of an address.
struct Belief {
    entry: Option<Entry>,
    source: Option<Arc<str>>,
    words: String,
}
