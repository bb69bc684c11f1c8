//! What is wrong with the recipients: line by line, and in what they lead to together.
//!
//! The daemon skips a faulty line and answers each address by itself. Here everything is looked at at once: addresses
//! that are there twice, in one source or in two, forwards and groups that lead nowhere or back to themselves, and
//! addresses that strangers cannot ask for. A million lines take seconds.
//!
//! Not here: where mail goes (`route`), which is asked only what an accepted domain is.

use std::collections::hash_map::{Entry as Place, RandomState};
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;

use super::{Directory, Entry, Fingerprint, Found, LoadOutcome, Lookup, Owner, Report, Source, State, file, untagged};
use crate::config::{DirectorySource, DomainKind, Problem, Problems, Severity};
use crate::message::{Address, Domain};

/// `route` goes no further: forwards, groups and aliases one behind the other.
const DEPTH_LIMIT: usize = 50;
/// Addresses of a circle, or members, that are named.
const NAMED: usize = 10;

/// What the directory is measured by.
pub struct Surroundings<'a> {
    /// What the configuration says of a domain; `None`: it is no accepted domain.
    pub accepted: &'a dyn Fn(&Domain) -> Option<DomainKind>,
    /// `[hybrid] routing_domain`.
    pub routing_domain: Option<&'a Domain>,
}

/// What was found.
#[derive(Debug)]
pub struct Checked {
    /// Faults, in the order of the sources and their lines.
    pub problems: Problems,
    /// How many addresses there are, each counted once.
    pub recipients: usize,
}

/// Checks all sources together. Blocking.
pub fn check(sources: &[DirectorySource], around: &Surroundings<'_>) -> Checked {
    let (directory, reports) = Directory::load(sources);
    checked(sources, None, directory, &reports, around)
}

/// The same with `text` in place of the file of source `number`, which need not be there yet. Blocking.
pub fn check_with(sources: &[DirectorySource], number: usize, text: &str, around: &Surroundings<'_>) -> Checked {
    let others = [&sources[..number], &sources[number + 1..]].concat();
    let (mut directory, mut reports) = Directory::load(&others);
    let DirectorySource { name, path } = sources[number].clone();
    let (state, outcome) = match file::read(text.as_bytes()) {
        Ok((table, faults, unlisted)) => {
            let recipients = table.len();
            let state = State::Good(Arc::new(table), Fingerprint::default());
            (state, LoadOutcome::Loaded { recipients, faults, unlisted })
        }
        Err(why) => (State::Missing(why.to_string()), LoadOutcome::Refused { why, kept: false }),
    };
    let source = Source { name: name.clone(), path: path.clone(), state, refused: None };
    directory.sources.insert(number, Arc::new(source));
    reports.insert(number, Report { source: name, path, outcome });
    checked(sources, Some((number, text)), directory, &reports, around)
}

fn checked(
    sources: &[DirectorySource],
    text: Option<(usize, &str)>,
    directory: Directory,
    reports: &[Report],
    around: &Surroundings<'_>,
) -> Checked {
    let mut check = Check {
        sources,
        text,
        around,
        directory,
        hasher: RandomState::new(),
        first: HashMap::new(),
        nodes: Vec::new(),
        found: Vec::new(),
        all: true,
    };
    for (number, report) in reports.iter().enumerate() {
        if let LoadOutcome::Refused { why, .. } = &report.outcome {
            check.find(Severity::Error, number as u32, None, why.to_string());
        }
        check.lines(number as u32);
    }
    check.graph();
    let recipients = check.first.len();
    // Those that mean the whole file stand before its lines.
    check.found.sort_by_key(|(source, problem)| (*source, problem.place));
    Checked { problems: Problems(check.found.into_iter().map(|(_, problem)| problem).collect()), recipients }
}

/// Only what no single line shows and costs mail: circles, and groups of nobody. Of sources that are loaded. Blocking.
pub fn dead_ends(directory: &Directory, sources: &[DirectorySource], around: &Surroundings<'_>) -> Vec<Problem> {
    let mut check = Check {
        sources,
        text: None,
        around,
        directory: Directory { sources: directory.sources.clone() },
        hasher: RandomState::new(),
        first: HashMap::new(),
        nodes: Vec::new(),
        found: Vec::new(),
        all: false,
    };
    for number in 0..sources.len() {
        check.lines(number as u32);
    }
    check.found.clear();
    check.graph();
    check.found.sort_by_key(|(source, problem)| (*source, problem.place));
    check.found.into_iter().map(|(_, problem)| problem).collect()
}

struct Check<'a> {
    sources: &'a [DirectorySource],
    /// What stands in place of the file of this source.
    text: Option<(usize, &'a str)>,
    around: &'a Surroundings<'a>,
    directory: Directory,
    hasher: RandomState,
    /// Where each address stands first, by the hash of its key: a million addresses are not kept twice for that. That two
    /// of them share 64 bits of a random hash does not happen.
    first: HashMap<u64, (u32, u64)>,
    /// Forwards, groups and aliases.
    nodes: Vec<Node>,
    found: Vec<(u32, Problem)>,
    /// Targets that lead nowhere and chains that are too long are told too.
    all: bool,
}

struct Node {
    source: u32,
    line: u64,
    address: Address,
    what: What,
    targets: Vec<Address>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Forward,
    Group,
    Alias,
}

impl What {
    fn words(self) -> &'static str {
        match self {
            Self::Forward => "forward to",
            Self::Group => "group with",
            Self::Alias => "alias of",
        }
    }
}

/// What a target is.
enum Leads {
    /// Mail gets somewhere.
    Somewhere,
    /// To another forward, group or alias.
    On(usize),
    /// Nowhere, and why.
    Nowhere(String),
}

/// Lines alike in a source, of which one is named.
#[derive(Default)]
struct Alike {
    count: usize,
    line: u64,
    example: String,
}

impl Alike {
    fn add(&mut self, line: u64, example: impl FnOnce() -> String) {
        if self.count == 0 {
            (self.line, self.example) = (line, example());
        }
        self.count += 1;
    }
}

impl Check<'_> {
    fn find(&mut self, severity: Severity, source: u32, line: Option<u64>, text: String) {
        let file = self.sources[source as usize].path.clone();
        let place = line.and_then(|line| Some((usize::try_from(line).ok()?, 1)));
        self.found.push((source, Problem { severity, file, place, text }));
    }

    fn hash(&self, address: &Address) -> u64 {
        self.hasher.hash_one(address.key())
    }

    /// Each line of a source by itself, and against those before.
    fn lines(&mut self, source: u32) {
        let sources = self.sources;
        let path = &sources[source as usize].path;
        let mut outside: BTreeMap<Domain, Alike> = BTreeMap::new();
        let mut elsewhere: BTreeMap<Domain, Alike> = BTreeMap::new();
        let text = self.text.filter(|(number, _)| *number == source as usize);
        let look = |line, read: Result<(Address, Entry), String>| match read {
            Err(text) => self.find(Severity::Error, source, Some(line), format!("{text}; the line is skipped")),
            Ok((address, entry)) => {
                match self.first.entry(self.hasher.hash_one(address.key())) {
                    Place::Occupied(place) => {
                        let first = *place.get();
                        return self.again(source, line, &address, &entry, first);
                    }
                    Place::Vacant(place) => {
                        place.insert((source, line));
                    }
                }
                // Servers of the organization give names in the routing domain to mailboxes on both premises.
                let is_ours = self.around.routing_domain == Some(address.domain())
                    || (self.around.accepted)(address.domain()).is_some();
                if !is_ours {
                    outside.entry(address.domain().clone()).or_default().add(line, || address.to_string());
                }
                let (what, targets) = match entry {
                    Entry::OnPremises | Entry::Cloud(None) => return,
                    Entry::Cloud(Some(target)) => {
                        if self.around.routing_domain.is_some_and(|routing| routing != target.domain()) {
                            let example = || format!("{address} goes to {target}");
                            elsewhere.entry(target.domain().clone()).or_default().add(line, example);
                        }
                        return;
                    }
                    Entry::Forward(to) => (What::Forward, vec![to]),
                    Entry::Alias(of) => (What::Alias, vec![of]),
                    Entry::Group(members) => (What::Group, members),
                };
                self.nodes.push(Node { source, line, address, what, targets });
            }
        };
        // A file that cannot be read was reported when it was loaded.
        let _ = match text {
            Some((_, text)) => file::read_lines(text.as_bytes(), look),
            None => file::lines(path, look),
        };
        for (domain, Alike { count, line, example }) in outside {
            let text = match count {
                1 => format!("{example}: {domain} is no accepted domain, so mail from the Internet for it is refused"),
                _ => format!(
                    "{count} addresses are in {domain}, which is no accepted domain, so mail from the Internet for them is refused; the first is {example}"
                ),
            };
            self.find(Severity::Warning, source, Some(line), text);
        }
        let routing = self.around.routing_domain.map(ToString::to_string).unwrap_or_default();
        for (domain, Alike { count, line, example }) in elsewhere {
            let more = match count {
                1 => String::new(),
                _ => format!(", and {} more in {domain}", count - 1),
            };
            let text = format!("{example}{more}, which is not the hybrid routing domain {routing}");
            self.find(Severity::Warning, source, Some(line), text);
        }
    }

    /// The address stood somewhere before.
    fn again(&mut self, source: u32, line: u64, address: &Address, entry: &Entry, (before, at): (u32, u64)) {
        let held = match &self.directory.sources[before as usize].state {
            State::Good(table, _) => table.find(address.local(), address.domain()),
            State::Missing(_) => None,
        };
        let Some(held) = held else { return };
        let same = same(&held, entry);
        let (severity, text) = if before == source {
            match same {
                true => (Severity::Warning, format!("{address} stands in line {at} already, just the same")),
                false => {
                    let text = format!(
                        "{address} is {} here and {} in line {at}; line {at} holds",
                        words(entry),
                        words(&held)
                    );
                    (Severity::Error, text)
                }
            }
        } else {
            let other = self.sources[before as usize].path.display();
            match same {
                // Sources that overlap are the order of the day.
                true => return,
                false => {
                    let text = format!(
                        "{address} is {} here and {} in {other}:{at}; {other} is asked first and holds",
                        words(entry),
                        words(&held)
                    );
                    (Severity::Warning, text)
                }
            }
        };
        self.find(severity, source, Some(line), text);
    }

    /// What forwards, groups and aliases lead to.
    fn graph(&mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        let index: HashMap<u64, usize> =
            nodes.iter().enumerate().map(|(number, node)| (self.hash(&node.address), number)).collect();
        let mut edges: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
        let mut reached = vec![false; nodes.len()];
        for (number, node) in nodes.iter().enumerate() {
            let mut nowhere = Vec::new();
            for target in &node.targets {
                match self.leads(node, target, &index) {
                    Leads::Somewhere => reached[number] = true,
                    Leads::On(to) => edges[number].push(to),
                    Leads::Nowhere(why) => nowhere.push(why),
                }
            }
            let Some(first) = nowhere.first().filter(|_| self.all) else { continue };
            let more = match nowhere.len() {
                1 => String::new(),
                2 => ", and 1 more member leads nowhere".to_owned(),
                many => format!(", and {} more members lead nowhere", many - 1),
            };
            let text = format!("{}: {} {first}{more}", node.address, node.what.words());
            self.find(Severity::Error, node.source, Some(node.line), text);
        }
        let circles = circles(&edges);
        for circle in &circles.found {
            // Beginning with the line that stands first, whoever was looked at first.
            let begin =
                (0..circle.len()).min_by_key(|&at| (nodes[circle[at]].source, nodes[circle[at]].line)).unwrap_or(0);
            let around =
                (0..=circle.len()).map(|step| nodes[circle[(begin + step) % circle.len()]].address.to_string());
            let mut named: Vec<String> = around.take(NAMED).collect();
            if circle.len() >= NAMED {
                named.push(format!("… ({} addresses)", circle.len()));
            }
            let node = &nodes[circle[begin]];
            let text = format!("{} leads back to itself: {}", node.address, named.join(" -> "));
            self.find(Severity::Error, node.source, Some(node.line), text);
        }
        for (number, &depth) in circles.depth.iter().enumerate() {
            // Only where it becomes too much: those before it in the chain would all say the same.
            if depth == DEPTH_LIMIT && self.all {
                let node = &nodes[number];
                let text = format!(
                    "{}: {DEPTH_LIMIT} or more forwards, groups and aliases one behind the other",
                    node.address
                );
                self.find(Severity::Error, node.source, Some(node.line), text);
            }
        }
        spread(&edges, &mut reached);
        for (node, _) in nodes.iter().zip(&reached).filter(|(node, reached)| node.what == What::Group && !**reached) {
            let text = format!("{}: nobody in this group can be reached; its mail is refused", node.address);
            self.find(Severity::Error, node.source, Some(node.line), text);
        }
    }

    fn leads(&self, node: &Node, target: &Address, index: &HashMap<u64, usize>) -> Leads {
        let accepted = (self.around.accepted)(target.domain());
        match accepted {
            Some(DomainKind::ExternalRelay) => return Leads::Somewhere,
            Some(_) if target.local().eq_ignore_ascii_case("postmaster") => return Leads::Somewhere,
            Some(DomainKind::Authoritative | DomainKind::InternalRelay) | None => {}
        }
        // What an alias stands for is asked for by the same stranger, who may not relay.
        let outside = || match node.what {
            What::Alias => Leads::Nowhere(format!(
                "{target}, which is in no accepted domain and not in the directory: only who may relay gets through"
            )),
            What::Forward | What::Group => Leads::Somewhere,
        };
        match self.directory.find(target) {
            Found::Entry { entry: Entry::OnPremises | Entry::Cloud(_), .. } => Leads::Somewhere,
            // A contact's own external address is the host outside.
            Found::Entry { entry: Entry::Alias(to) | Entry::Forward(to), .. }
                if accepted.is_none() && [node.address.key(), target.key()].contains(&to.key()) =>
            {
                outside()
            }
            Found::Entry { untagged: without, .. } => {
                let plain = untagged(target.local()).filter(|_| without);
                let key = match plain.and_then(|local| Address::new(local, target.domain().clone()).ok()) {
                    Some(plain) => self.hash(&plain),
                    None => self.hash(target),
                };
                index.get(&key).map_or(Leads::Somewhere, |&number| Leads::On(number))
            }
            // Another source may know it; that it is missing is said already.
            Found::Unavailable(_) => Leads::Somewhere,
            Found::Unknown if accepted.is_none() => outside(),
            Found::Unknown if accepted == Some(DomainKind::InternalRelay) => Leads::Somewhere,
            Found::Unknown if self.is_owned(target) => Leads::Somewhere,
            Found::Unknown => Leads::Nowhere(format!("{target}, which is not in the directory")),
        }
    }
}

impl Check<'_> {
    /// Is it the hybrid routing address of somebody? That is a name too, where the routing domain is accepted.
    fn is_owned(&self, target: &Address) -> bool {
        let rank = |domain: &Domain| ((self.around.accepted)(domain) != Some(DomainKind::ExternalRelay)).then_some(0);
        self.around.routing_domain == Some(target.domain())
            && !matches!(self.directory.find_owner(target, &rank), Owner::Unknown)
    }
}

/// Are they the same, whatever the case?
fn same(one: &Entry, other: &Entry) -> bool {
    let keys = |all: &[Address]| all.iter().map(Address::key).collect::<Vec<_>>();
    match (one, other) {
        (Entry::OnPremises, Entry::OnPremises) | (Entry::Cloud(None), Entry::Cloud(None)) => true,
        (Entry::Cloud(Some(one)), Entry::Cloud(Some(other)))
        | (Entry::Forward(one), Entry::Forward(other))
        | (Entry::Alias(one), Entry::Alias(other)) => one.key() == other.key(),
        (Entry::Group(one), Entry::Group(other)) => keys(one) == keys(other),
        _ => false,
    }
}

/// What an entry is, to be compared with another.
pub fn words(entry: &Entry) -> String {
    match entry {
        Entry::OnPremises => "an on-premises mailbox".to_owned(),
        Entry::Cloud(None) => "a cloud mailbox".to_owned(),
        Entry::Cloud(Some(target)) => format!("a cloud mailbox at {target}"),
        Entry::Forward(to) => format!("a forward to {to}"),
        Entry::Alias(of) => format!("an alias of {of}"),
        Entry::Group(members) => {
            let mut named: Vec<String> = members.iter().take(NAMED).map(ToString::to_string).collect();
            if members.len() > NAMED {
                named.push(format!("and {} more", members.len() - NAMED));
            }
            format!("a group of {}: {}", members.len(), named.join(", "))
        }
    }
}

struct Circles {
    found: Vec<Vec<usize>>,
    /// How many nodes stand one behind the other from here, this one among them; a circle counts once.
    depth: Vec<usize>,
}

/// Depth first, without recursion: a chain may be as long as the file. Each edge that leads back to where the walk
/// came from closes a circle.
fn circles(edges: &[Vec<usize>]) -> Circles {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        OnTheWay,
        Done,
    }
    let mut marks = vec![Mark::New; edges.len()];
    let mut depth = vec![1; edges.len()];
    let mut found = Vec::new();
    for start in 0..edges.len() {
        if marks[start] != Mark::New {
            continue;
        }
        marks[start] = Mark::OnTheWay;
        // Each node of the way, and which of its edges comes next.
        let mut way = vec![(start, 0)];
        while let Some((node, next)) = way.last_mut() {
            let (node, edge) = (*node, *next);
            *next += 1;
            match edges[node].get(edge) {
                Some(&to) => match marks[to] {
                    Mark::New => {
                        marks[to] = Mark::OnTheWay;
                        way.push((to, 0));
                    }
                    Mark::OnTheWay => {
                        let begin = way.iter().position(|(one, _)| *one == to).unwrap_or(0);
                        found.push(way[begin..].iter().map(|(one, _)| *one).collect());
                    }
                    Mark::Done => depth[node] = depth[node].max(depth[to] + 1),
                },
                None => {
                    marks[node] = Mark::Done;
                    way.pop();
                    if let Some((above, _)) = way.last() {
                        depth[*above] = depth[*above].max(depth[node] + 1);
                    }
                }
            }
        }
    }
    Circles { found, depth }
}

/// Whoever leads to somebody who is reached reaches somebody.
fn spread(edges: &[Vec<usize>], reached: &mut [bool]) {
    let mut before: Vec<Vec<usize>> = vec![Vec::new(); edges.len()];
    for (from, to) in edges.iter().enumerate().flat_map(|(from, to)| to.iter().map(move |&to| (from, to))) {
        before[to].push(from);
    }
    let mut next: Vec<usize> = (0..edges.len()).filter(|&node| reached[node]).collect();
    while let Some(node) = next.pop() {
        for &from in &before[node] {
            if !std::mem::replace(&mut reached[from], true) {
                next.push(from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(files: &[&str]) -> (Vec<String>, usize) {
        checked_in(files, false)
    }

    /// `cloud`: on that side, where the routing domain is accepted too.
    fn checked_in(files: &[&str], cloud: bool) -> (Vec<String>, usize) {
        let folder = tempfile::tempdir().unwrap();
        let sources: Vec<DirectorySource> = files
            .iter()
            .enumerate()
            .map(|(number, text)| {
                let name = format!("{}.csv", ["a", "b", "c"][number]);
                let path = folder.path().join(&name);
                std::fs::write(&path, format!("address,type,target\n{text}")).unwrap();
                DirectorySource { name: name.as_str().into(), path }
            })
            .collect();
        let accepted = |domain: &Domain| match domain.as_str() {
            "contoso.com" => Some(DomainKind::Authoritative),
            "relay.example" => Some(DomainKind::InternalRelay),
            "external.example" => Some(DomainKind::ExternalRelay),
            "contoso.mail.onmicrosoft.com" if cloud => Some(DomainKind::Authoritative),
            _ => None,
        };
        let routing = Domain::parse("contoso.mail.onmicrosoft.com").unwrap();
        let checked = check(&sources, &Surroundings { accepted: &accepted, routing_domain: Some(&routing) });
        let place = format!("{}/", folder.path().display());
        let lines = checked.problems.to_string().replace(&place, "").lines().map(str::to_owned).collect();
        (lines, checked.recipients)
    }

    #[test]
    fn a_good_directory_has_no_fault() {
        let (found, recipients) = checked(&["anna@contoso.com,on-premises,\ndavid@contoso.com,cloud,\n\
             dora@contoso.com,cloud,d@contoso.mail.onmicrosoft.com\nold@contoso.com,forward,new@fabrikam.com\n\
             team@contoso.com,group,anna@contoso.com david+team@contoso.com x@fabrikam.com\n\
             a.s@contoso.com,alias,Anna@contoso.com\nall@contoso.com,group,team@contoso.com team@contoso.com\n\
             far@contoso.com,forward,somebody@relay.example\nout@contoso.com,alias,x@external.example\n\
             abuse@contoso.com,alias,postmaster@contoso.com\n"]);
        assert_eq!(found, [] as [&str; 0]);
        assert_eq!(recipients, 10);
    }

    #[test]
    fn each_fault_is_found_and_named() {
        let anna = "anna@contoso.com,on-premises,\n";
        for (files, expected) in [
            (
                vec!["anna@contoso.com,on-premises,\nnobody\nx@contoso.com,what,\n"],
                vec![
                    "error: a.csv:3:1: expected address,type,target; found one column; the line is skipped",
                    "error: a.csv:4:1: x@contoso.com: expected the type on-premises, cloud, forward, group or alias; found \"what\"; the line is skipped",
                ],
            ),
            (
                vec!["anna@contoso.com,on-premises,\nANNA@contoso.com,cloud,\nanna@contoso.com,on-premises,\n"],
                vec![
                    "error: a.csv:3:1: ANNA@contoso.com is a cloud mailbox here and an on-premises mailbox in line 2; line 2 holds",
                    "warning: a.csv:4:1: anna@contoso.com stands in line 2 already, just the same",
                ],
            ),
            (
                vec![anna, "david@contoso.com,cloud,\nanna@contoso.com,cloud,\n", anna],
                vec![
                    "warning: b.csv:3:1: anna@contoso.com is a cloud mailbox here and an on-premises mailbox in a.csv:2; a.csv is asked first and holds",
                ],
            ),
            (
                vec![
                    "a@contoso.com,alias,gone@contoso.com\nb@contoso.com,forward,gone@contoso.com\nc@contoso.com,alias,x@fabrikam.com\n",
                ],
                vec![
                    "error: a.csv:2:1: a@contoso.com: alias of gone@contoso.com, which is not in the directory",
                    "error: a.csv:3:1: b@contoso.com: forward to gone@contoso.com, which is not in the directory",
                    "error: a.csv:4:1: c@contoso.com: alias of x@fabrikam.com, which is in no accepted domain and not in the directory: only who may relay gets through",
                ],
            ),
            (
                vec![
                    "g@contoso.com,group,x@contoso.com y@contoso.com\nh@contoso.com,group,g@contoso.com z@contoso.com x@fabrikam.com\n",
                ],
                vec![
                    "error: a.csv:2:1: g@contoso.com: group with x@contoso.com, which is not in the directory, and 1 more member leads nowhere",
                    "error: a.csv:2:1: g@contoso.com: nobody in this group can be reached; its mail is refused",
                    "error: a.csv:3:1: h@contoso.com: group with z@contoso.com, which is not in the directory",
                ],
            ),
            (
                vec![
                    "anna@contoso.com,on-premises,\nc@contoso.com,alias,a@contoso.com\na@contoso.com,forward,b@contoso.com\nb@contoso.com,group,c@contoso.com anna@contoso.com\n",
                ],
                vec![
                    "error: a.csv:3:1: c@contoso.com leads back to itself: c@contoso.com -> a@contoso.com -> b@contoso.com -> c@contoso.com",
                ],
            ),
            (
                vec!["a@contoso.com,group,a+x@contoso.com\n"],
                vec![
                    "error: a.csv:2:1: a@contoso.com leads back to itself: a@contoso.com -> a@contoso.com",
                    "error: a.csv:2:1: a@contoso.com: nobody in this group can be reached; its mail is refused",
                ],
            ),
            (
                vec![
                    "a@fabrikam.com,cloud,\nb@fabrikam.com,cloud,\nc@x.example,cloud,\nd@contoso.com,cloud,d@y.example\ne@contoso.com,cloud,e@y.example\n",
                ],
                vec![
                    "warning: a.csv:2:1: 2 addresses are in fabrikam.com, which is no accepted domain, so mail from the Internet for them is refused; the first is a@fabrikam.com",
                    "warning: a.csv:4:1: c@x.example: x.example is no accepted domain, so mail from the Internet for it is refused",
                    "warning: a.csv:5:1: d@contoso.com goes to d@y.example, and 1 more in y.example, which is not the hybrid routing domain contoso.mail.onmicrosoft.com",
                ],
            ),
        ] {
            let (found, _) = checked(&files);
            assert_eq!(found, expected, "{files:?}");
        }
    }

    #[test]
    fn a_text_is_checked_in_place_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let sources =
            ["a.csv", "b.csv"].map(|name| DirectorySource { name: name.into(), path: folder.path().join(name) });
        std::fs::write(&sources[0].path, "address,type,target\nanna@contoso.com,on-premises,\n").unwrap();
        let around = Surroundings { accepted: &|_| Some(DomainKind::Authoritative), routing_domain: None };
        let text = "address,type,target\na@contoso.com,alias,anna@contoso.com\nb@contoso.com,alias,gone@contoso.com\n\
                    anna@contoso.com,cloud,\n";
        let Checked { problems, recipients } = check_with(&sources, 1, text, &around);
        let found: Vec<_> = problems.0.iter().map(|problem| (problem.place, problem.severity)).collect();
        assert_eq!(found, [(Some((3, 1)), Severity::Error), (Some((4, 1)), Severity::Warning)], "{problems}");
        assert!(problems.0.iter().all(|problem| problem.file == sources[1].path), "{problems}");
        assert_eq!(recipients, 3);
    }

    #[test]
    fn what_stands_in_the_directory_is_a_target_whatever_its_domain() {
        let (found, _) = checked(&["ann@gmail.example,on-premises,\nann@contoso.com,alias,Ann@gmail.example\n\
             a@contoso.com,alias,ann+x@gmail.example\nbob@fabrikam.com,forward,bob@gmail.example\n\
             bob@contoso.com,alias,bob@fabrikam.com\nall@contoso.com,group,ann@gmail.example bob@contoso.com\n\
             kate@contoso.com,forward,kate@tailspintoys.com\nkate@tailspintoys.com,alias,kate@contoso.com\n\
             sales@gmail.example,group,nobody@contoso.com\nour@contoso.com,alias,sales@gmail.example\n\
             round@contoso.com,forward,about@gmail.example\nabout@gmail.example,forward,back@contoso.com\n\
             back@contoso.com,alias,round@contoso.com\nann@contoso.mail.onmicrosoft.com,alias,ann@gmail.example\n"]);
        assert_eq!(
            found,
            [
                "warning: a.csv:2:1: 3 addresses are in gmail.example, which is no accepted domain, so mail from the Internet for them is refused; the first is ann@gmail.example",
                "warning: a.csv:5:1: bob@fabrikam.com: fabrikam.com is no accepted domain, so mail from the Internet for it is refused",
                "warning: a.csv:9:1: kate@tailspintoys.com: tailspintoys.com is no accepted domain, so mail from the Internet for it is refused",
                "error: a.csv:10:1: sales@gmail.example: group with nobody@contoso.com, which is not in the directory",
                "error: a.csv:10:1: sales@gmail.example: nobody in this group can be reached; its mail is refused",
                "error: a.csv:12:1: round@contoso.com leads back to itself: round@contoso.com -> about@gmail.example -> back@contoso.com -> round@contoso.com",
            ]
        );
    }

    #[test]
    fn on_the_cloud_side_a_routing_address_is_a_name() {
        let file = "david@contoso.com,cloud,\ndora@contoso.com,cloud,d@contoso.mail.onmicrosoft.com\n\
                    a@contoso.com,forward,david@contoso.mail.onmicrosoft.com\n\
                    b@contoso.com,alias,d@contoso.mail.onmicrosoft.com\n\
                    c@contoso.com,forward,nobody@contoso.mail.onmicrosoft.com\n";
        let (found, _) = checked_in(&[file], true);
        assert_eq!(
            found,
            [
                "error: a.csv:6:1: c@contoso.com: forward to nobody@contoso.mail.onmicrosoft.com, which is not in the directory"
            ]
        );
    }

    #[test]
    fn a_chain_as_long_as_the_file_is_one_fault() {
        let mut text = String::from("anna@contoso.com,on-premises,\nn0@contoso.com,alias,anna@contoso.com\n");
        for number in 1..20_000 {
            text += &format!("n{number}@contoso.com,forward,n{}@contoso.com\n", number - 1);
        }
        let (found, _) = checked(&[&text]);
        assert_eq!(
            found,
            ["error: a.csv:52:1: n49@contoso.com: 50 or more forwards, groups and aliases one behind the other"]
        );
    }

    #[test]
    fn a_source_that_cannot_be_read_is_said_once() {
        let folder = tempfile::tempdir().unwrap();
        let sources = [DirectorySource { name: "gone.csv".into(), path: folder.path().join("gone.csv") }];
        let checked = check(&sources, &Surroundings { accepted: &|_| None, routing_domain: None });
        assert_eq!(checked.problems.0.len(), 1, "{}", checked.problems);
        assert!(checked.problems.0[0].text.starts_with("cannot be read"));
    }
}
